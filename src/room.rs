//! The room that a device has for requests, of all its opens together, and the
//! threads and programs that wait for some.
//!
//! A freed request looks at one word, the room's `Watch`, and does no more
//! while nobody watches. A program watches by EVFILT_WRITE, poll(2) or a call that
//! waits; it is told once what it was refused may be let through, and when an
//! account comes below its limit.
//!
//! Each side says what it did before it looks at what the other one did: a freed
//! request gives its charge back and then reads the watch; a watcher sets the
//! watch and then reads the accounts. So one of the two sees the other.

use crate::{
    limits::{Account, Limits, Outstanding, Total},
    stats::Stats,
    tunable,
};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use kpi::{
    knlist::KnList,
    mutex::Mutex,
    selinfo::SelInfo,
    shared::Shared,
    stack::{Hook, Hooked, Stack},
};

/// Of a device: what its requests take, and whom a freed one tells.
pub struct Room {
    // Before the lock: a knlist goes before the mutex that it uses.
    pub(crate) writers: KnList,
    pub(crate) select: SelInfo,
    pub(crate) lock: Mutex<State>,
    account: Account,
    /// The device's counters.
    pub stats: Stats,
    watch: Watch,
    /// On the list of rooms in which somebody was refused.
    hook: Hook,
    /// Rounds of aborts so far.
    rounds: AtomicU64,
}

/// What the room's lock guards.
pub(crate) struct State {
    /// Calls that wait for room, asleep or about to sleep.
    pub(crate) waiting: u32,
    /// The device has gone.
    pub(crate) gone: bool,
}

/// Whom a freed request tells.
struct Watch(AtomicU32);

impl Watch {
    /// Nobody.
    const NOBODY: u32 = 0;
    /// Those who watch, if an account was at its limit.
    const AT_LIMIT: u32 = 1;
    /// Those who watch: somebody was refused, at the limit or short of it.
    const ALWAYS: u32 = 2;

    fn raise(&self, to: u32) {
        self.0.fetch_max(to, Ordering::SeqCst);
    }
}

/// Requests of all devices together.
pub static TOTAL: Total = Total::new();
/// Somebody was refused because of [`TOTAL`]: freed requests of whatever device
/// are told.
static IS_TOTAL_SHORT: AtomicBool = AtomicBool::new(false);

/// The rooms in which somebody was refused since they were told last.
static BLOCKED: Stack = Stack::new();

impl Hooked for Room {
    fn hook(&self) -> &Hook {
        &self.hook
    }
    fn stack() -> &'static Stack {
        &BLOCKED
    }
}

/// Tells everybody, of whatever device, who was refused: limits were raised, or
/// the total has room. No lock may be held.
pub fn tell_blocked() {
    Stack::take::<Room>(|room| room.tell_all());
}

/// A request refused by the total is under way: it tells whom it concerns.
pub fn note_total_is_short() {
    IS_TOTAL_SHORT.store(true, Ordering::SeqCst);
}

impl Room {
    /// All of it. May sleep.
    pub fn new() -> Self {
        let state = State {
            waiting: 0,
            gone: false,
        };
        let lock = Mutex::new(c"qpass room", state);
        Room {
            writers: KnList::new(&lock),
            select: SelInfo::empty(),
            lock,
            account: Account::default(),
            stats: Stats::default(),
            watch: Watch(AtomicU32::new(Watch::NOBODY)),
            hook: Hook::new(),
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

    /// From now on, somebody watches: room is told when an account comes below
    /// its limit.
    pub fn watch(&self) {
        self.watch.raise(Watch::AT_LIMIT);
    }

    /// Whether somebody watches.
    pub fn is_watched(&self) -> bool {
        self.watch.0.load(Ordering::SeqCst) != Watch::NOBODY
    }

    /// Somebody who watches is about to look whether there is room: the next
    /// freed request is told, and so is a limit that is raised, if that look finds
    /// none. (Should a thread in [`tell_all`](Self::tell_all) forget this just
    /// now, it asks every watcher anew behind that.)
    pub fn note_refusal(this: &Shared<Self>) {
        this.watch.raise(Watch::ALWAYS);
        Stack::add(this);
    }

    /// A request of a device has gone; `was_full`: an account was at its limit
    /// before. No lock may be held.
    pub fn tell(&self, was_full: impl FnOnce() -> bool) {
        match self.watch.0.load(Ordering::SeqCst) {
            Watch::NOBODY => {}
            Watch::AT_LIMIT if !was_full() => {}
            _ => self.tell_all(),
        }
        if IS_TOTAL_SHORT.load(Ordering::SeqCst) && IS_TOTAL_SHORT.swap(false, Ordering::SeqCst) {
            tell_blocked();
        }
    }

    /// Tells whoever watches, and goes on watching for those only who are still
    /// there. No lock may be held.
    pub fn tell_all(&self) {
        let state = self.lock.lock();
        // Whoever finds no room notes it again.
        let watch = if state.waiting != 0 || !self.writers.is_empty(&state) {
            Watch::AT_LIMIT
        } else {
            Watch::NOBODY
        };
        self.watch.0.store(watch, Ordering::SeqCst);
        self.writers.notify(&state);
        drop(state);
        self.lock.wakeup();
        // A thread in poll(2) is recorded before it watches, so one that this
        // has stopped watching for is woken here.
        self.select.wakeup();
    }

    /// Has the calls that wait for room, or for completions too, look again: a
    /// completion came. The queue's lock may not be held.
    pub fn wake_waiting(&self) {
        // Whoever has looked and does not sleep yet has the lock.
        drop(self.lock.lock());
        self.lock.wakeup();
    }

    /// The device has gone: nobody waits in a call any more.
    pub fn depart(&self) {
        self.lock.lock().gone = true;
        self.lock.wakeup();
    }

    /// An open has gone, with every knote of its queue. The list of rooms does
    /// not keep this one beyond the last of its opens. No lock may be held.
    pub fn leave(&self) {
        if self.hook.is_on() {
            tell_blocked();
        }
    }

    /// The ceilings for a device's opens together.
    pub fn limits() -> Limits {
        Limits {
            requests: tunable::device_max_requests(),
            bytes: tunable::device_max_bytes(),
        }
    }

    /// Whether so much is at the limit.
    pub fn was_full(before: Outstanding) -> bool {
        before.is_full(Self::limits())
    }
}

impl Default for Room {
    fn default() -> Self {
        Self::new()
    }
}
