//! The room that a device has for requests, of all its opens together, and who
//! waits for some.
//!
//! An open is told of room that another open makes, so this is the device's,
//! and those who wait for it are on one list.

use crate::{
    kpi::{
        errno::{ENXIO, Result},
        knlist::KnList,
        mutex::Mutex,
        selinfo::SelInfo,
        time::Deadline,
    },
    limits::{Account, Limits},
    stats::Stats,
};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

/// See the module's page.
pub struct Room {
    // Before the lock: a knlist goes before the mutex that it uses.
    pub(crate) writers: KnList,
    pub(crate) select: SelInfo,
    pub(crate) lock: Mutex<State>,
    account: Account,
    /// The device's counters.
    pub stats: Stats,
    /// Somebody has asked for room: freed requests are told.
    is_watched: AtomicBool,
    /// Calls that wait for room, or may.
    waiting: AtomicU32,
    /// Rounds of aborts so far.
    rounds: AtomicU64,
}

/// What the room's lock guards.
pub(crate) struct State {
    /// Changes with every request that goes while somebody waits.
    freed: u64,
    /// The device has gone.
    gone: bool,
}

/// A call that may wait for room: what goes from its beginning on is not
/// missed.
pub struct Waiting<'a> {
    room: &'a Room,
    seen: u64,
}

impl Waiting<'_> {
    /// Sleeps until a request has gone, of whatever open, since the last look.
    ///
    /// # Errors
    /// `ETIMEDOUT`, `EINTR`; `ENXIO`: the device has gone.
    pub fn wait(&mut self, deadline: Deadline) -> Result {
        let mut state = self.room.lock.lock();
        while state.freed == self.seen {
            if state.gone {
                return Err(ENXIO);
            }
            state.sleep(deadline)?;
        }
        self.seen = state.freed;
        Ok(())
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.room.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Room {
    /// All of it. May sleep.
    pub fn new() -> Self {
        let state = State {
            freed: 0,
            gone: false,
        };
        let lock = Mutex::new(c"qpass room", state);
        Room {
            writers: KnList::new(&lock),
            select: SelInfo::empty(),
            lock,
            account: Account::default(),
            stats: Stats::default(),
            is_watched: AtomicBool::new(false),
            waiting: AtomicU32::new(0),
            rounds: AtomicU64::new(0),
        }
    }

    /// Numbers a round in which each request is aborted once; never 0.
    pub fn next_round(&self) -> u64 {
        self.rounds.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// What the device's requests are counted in.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// From now on, room is told when there is some.
    pub fn watch(&self) {
        self.is_watched.store(true, Ordering::SeqCst);
    }

    /// A call begins that may wait for room.
    pub fn begin_wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        // Who looks at the account after this and finds it full is told of
        // what is released after that.
        fence(Ordering::SeqCst);
        Waiting {
            room: self,
            seen: self.lock.lock().freed,
        }
    }

    /// Tells who waits that a request went. No lock may be held.
    pub fn tell(&self) {
        if self.is_watched.load(Ordering::SeqCst) || self.waiting.load(Ordering::SeqCst) != 0 {
            self.tell_all();
        }
    }

    /// Tells who waits that an open changed. No lock may be held.
    pub fn tell_all(&self) {
        let mut state = self.lock.lock();
        state.freed = state.freed.wrapping_add(1);
        self.writers.notify(&state);
        drop(state);
        self.lock.wakeup();
        self.select.wakeup();
    }

    /// The device has gone: nobody waits in a call any more.
    pub fn depart(&self) {
        self.lock.lock().gone = true;
        self.lock.wakeup();
    }

    /// The ceilings for a device's opens together.
    pub fn limits() -> Limits {
        use crate::kpi::tunable;
        Limits {
            requests: tunable::device_max_requests(),
            bytes: tunable::device_max_bytes(),
        }
    }
}

impl Default for Room {
    fn default() -> Self {
        Self::new()
    }
}
