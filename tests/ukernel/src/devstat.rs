//! devstat(9): transactions begin and end in pairs.

use crate::{
    lock::{may_sleep, uptime},
    sys,
    thread::broken,
};
use std::{
    ffi::{CStr, c_char, c_int, c_void},
    sync::Mutex,
};

/// What iostat(8) would show of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Name and number.
    pub name: String,
    /// Transactions begun.
    pub started: u64,
    /// Transactions ended.
    pub ended: u64,
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// Transactions without data.
    pub no_data: u64,
}

static ENTRIES: Mutex<Vec<(usize, Stats)>> = Mutex::new(Vec::new());
static REMOVED: Mutex<Vec<Stats>> = Mutex::new(Vec::new());

/// The devices there are.
pub fn entries() -> Vec<Stats> {
    let entries = ENTRIES.lock().unwrap();
    entries.iter().map(|(_, stats)| stats.clone()).collect()
}

/// Those that were removed, as they were at their end.
pub fn removed() -> Vec<Stats> {
    REMOVED.lock().unwrap().clone()
}

fn with(entry: *mut c_void, what: &str, f: impl FnOnce(&mut Stats)) {
    let mut entries = ENTRIES.lock().unwrap();
    match entries.iter_mut().find(|(id, _)| *id == entry as usize) {
        Some((_, stats)) => f(stats),
        None => {
            drop(entries);
            broken(&format!("{what}: no such entry"));
        }
    }
}

pub(crate) unsafe extern "C" fn devstat_new_entry(
    name: *const c_char,
    unit: c_int,
    _block: u32,
    _flags: u32,
    _kind: u32,
    _priority: u32,
) -> *mut c_void {
    may_sleep("devstat_new_entry");
    // SAFETY: the module's NUL-ended name.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let id = Box::into_raw(Box::new(0u64));
    let stats = Stats {
        name: format!("{name}{unit}"),
        ..Stats::default()
    };
    ENTRIES.lock().unwrap().push((id as usize, stats));
    id.cast()
}

pub(crate) unsafe extern "C" fn devstat_remove_entry(entry: *mut c_void) {
    with(entry, "devstat_remove_entry", |stats| {
        if stats.started != stats.ended {
            broken(&format!(
                "devstat is removed with transactions open: {stats:?}"
            ));
        }
        REMOVED.lock().unwrap().push(stats.clone());
    });
    ENTRIES
        .lock()
        .unwrap()
        .retain(|(id, _)| *id != entry as usize);
}

pub(crate) unsafe extern "C" fn devstat_start_transaction(
    entry: *mut c_void,
    now: *const sys::bintime,
) {
    if now.is_null() {
        broken("devstat_start_transaction without a time");
    }
    with(entry, "devstat_start_transaction", |stats| {
        stats.started += 1
    });
}

pub(crate) unsafe extern "C" fn devstat_end_transaction(
    entry: *mut c_void,
    bytes: u32,
    _tag: u32,
    flags: u32,
    _now: *const sys::bintime,
    then: *const sys::bintime,
) {
    // SAFETY: the time that the transaction began with.
    if unsafe { (*then).sec } == 0 {
        broken("devstat_end_transaction of one that did not begin");
    }
    with(entry, "devstat_end_transaction", |stats| {
        stats.ended += 1;
        match flags {
            sys::DEVSTAT_READ => stats.read += u64::from(bytes),
            sys::DEVSTAT_WRITE => stats.written += u64::from(bytes),
            _ => stats.no_data += 1,
        }
    });
}

pub(crate) unsafe extern "C" fn binuptime(time: *mut sys::bintime) {
    // SAFETY: the caller's place for the result.
    unsafe {
        let now = uptime();
        (*time).sec = now.as_secs() as i64;
        // In units of 2^-64 s.
        (*time).frac = ((u64::from(now.subsec_nanos()) << 32) / 1_000_000_000) << 32;
    }
}

/// The kernel's clock ticks a thousand times a second.
pub(crate) unsafe extern "C" fn getbinuptime(time: *mut sys::bintime) {
    // SAFETY: the caller's place for the result.
    unsafe {
        binuptime(time);
        let ms = (((*time).frac >> 32) * 1000) >> 32;
        (*time).frac = ((ms << 32) / 1000) << 32;
    }
}

/// Nothing may be left when the module has gone.
pub(crate) fn check_clean() {
    let left = entries();
    if !left.is_empty() {
        broken(&format!("devstat entries are left at unload: {left:?}"));
    }
}
