//! The room that a device has for requests, of all its opens together, and who
//! waits for some.
//!
//! An open is told of room that another open makes, so this is the device's,
//! and those who wait for it are on one list.

use crate::{
    kpi::{knlist::KnList, mutex::Mutex, selinfo::SelInfo},
    limits::{Account, Limits},
    stats::Stats,
};
use core::sync::atomic::{AtomicBool, Ordering};

/// See the module's page.
pub struct Room {
    // Before the lock: a knlist goes before the mutex that it uses.
    pub(crate) writers: KnList,
    pub(crate) select: SelInfo,
    pub(crate) lock: Mutex<()>,
    account: Account,
    /// The device's counters.
    pub stats: Stats,
    /// Somebody has asked for room: freed requests are told.
    is_watched: AtomicBool,
}

impl Room {
    /// All of it. May sleep.
    pub fn new() -> Self {
        let lock = Mutex::new(c"qpass room", ());
        Room {
            writers: KnList::new(&lock),
            select: SelInfo::empty(),
            lock,
            account: Account::default(),
            stats: Stats::default(),
            is_watched: AtomicBool::new(false),
        }
    }

    /// What the device's requests are counted in.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// From now on, room is told when there is some.
    pub fn watch(&self) {
        self.is_watched.store(true, Ordering::SeqCst);
    }

    /// Tells who waits that a request went. No lock may be held.
    pub fn tell(&self) {
        if self.is_watched.load(Ordering::SeqCst) {
            self.tell_all();
        }
    }

    /// Tells who waits that an open changed.
    pub fn tell_all(&self) {
        let guard = self.lock.lock();
        self.writers.notify(&guard);
        drop(guard);
        self.select.wakeup();
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
