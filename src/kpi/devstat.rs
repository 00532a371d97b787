//! devstat(9): what iostat(8) shows of a device.

use core::ffi::CStr;
use sys_bindings as sys;

/// A device's record, kept by the kernel.
pub struct DevStat(*mut sys::devstat);

// SAFETY: devstat(9) locks its records itself.
unsafe impl Send for DevStat {}
// SAFETY: as above.
unsafe impl Sync for DevStat {}

/// When a transaction began.
#[derive(Clone, Copy)]
pub struct Started(sys::bintime);

impl Started {
    /// binuptime(9): now. Reading the clock may be dear.
    pub fn now() -> Self {
        // SAFETY: plain data, filled in by binuptime(9).
        unsafe {
            let mut now: sys::bintime = core::mem::zeroed();
            sys::binuptime(&mut now);
            Started(now)
        }
    }
}

/// What a transaction moved.
pub enum Moved {
    /// Nothing.
    NoData,
    /// So many bytes, from the device.
    Read(u32),
    /// So many bytes, to the device.
    Written(u32),
}

impl DevStat {
    /// devstat_new_entry(9), of kind `device_type` (`DEVSTAT_TYPE_…`). Sleeps.
    pub fn new(name: &'static CStr, unit: u32, device_type: u32) -> Self {
        // SAFETY: the name is copied; the flags and the priority are pass(4)'s.
        DevStat(unsafe {
            sys::devstat_new_entry(
                name.as_ptr().cast(),
                unit as i32,
                0,
                sys::DEVSTAT_NO_BLOCKSIZE,
                device_type | sys::DEVSTAT_TYPE_PASS,
                sys::DEVSTAT_PRIORITY_PASS,
            )
        })
    }

    /// A transaction begins.
    pub fn start(&self, now: &Started) {
        // SAFETY: the record lives as long as self.
        unsafe { sys::devstat_start_transaction(self.0, &now.0) };
    }

    /// It ends.
    pub fn end(&self, started: &Started, moved: Moved, tag: u32) {
        let (flags, bytes) = match moved {
            Moved::NoData => (sys::DEVSTAT_NO_DATA, 0),
            Moved::Read(bytes) => (sys::DEVSTAT_READ, bytes),
            Moved::Written(bytes) => (sys::DEVSTAT_WRITE, bytes),
        };
        // SAFETY: the record lives as long as self; the start is its own.
        unsafe {
            sys::devstat_end_transaction(self.0, bytes, tag, flags, core::ptr::null(), &started.0);
        }
    }

    pub(super) fn as_ptr(&self) -> *mut sys::devstat {
        self.0
    }
}

impl Drop for DevStat {
    fn drop(&mut self) {
        // SAFETY: no transaction is under way: each holds the device.
        unsafe { sys::devstat_remove_entry(self.0) };
    }
}
