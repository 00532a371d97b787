//! selrecord(9): who waits in poll(2) or select(2).

use super::{alloc::KBox, cdev::Thread};
use core::cell::UnsafeCell;
use sys_bindings as sys;

/// A `struct selinfo`.
pub struct SelInfo(KBox<UnsafeCell<sys::selinfo>>);

// SAFETY: selrecord(9) and selwakeup(9) lock it themselves.
unsafe impl Sync for SelInfo {}
// SAFETY: the memory does not move.
unsafe impl Send for SelInfo {}

impl SelInfo {
    /// Nobody waits. May sleep.
    pub fn empty() -> Self {
        // SAFETY: selrecord(9) wants a zeroed selinfo.
        SelInfo(KBox::new(UnsafeCell::new(unsafe { core::mem::zeroed() })))
    }

    /// selrecord(9), in the device's poll routine.
    pub fn record(&self, thread: Thread<'_>) {
        // SAFETY: the thread is the caller's own, in its poll(2).
        unsafe { sys::selrecord(thread.as_ptr(), self.0.get()) };
    }

    /// selwakeuppri(9).
    pub fn wakeup(&self) {
        // SAFETY: initialised in empty().
        unsafe { sys::selwakeuppri(self.0.get(), sys::PRIBIO as i32) };
    }
}

impl Drop for SelInfo {
    fn drop(&mut self) {
        // SAFETY: nobody can record again; lets go of who waits.
        unsafe { sys::seldrain(self.0.get()) };
    }
}
