//! selrecord(9): who waits in poll(2) or select(2).

use super::{alloc::KBox, cdev::Thread};
use core::{
    cell::UnsafeCell,
    sync::atomic::{AtomicBool, Ordering},
};
use sys_bindings as sys;

/// A `struct selinfo`.
pub struct SelInfo {
    raw: KBox<UnsafeCell<sys::selinfo>>,
    /// Somebody was recorded since the last wake-up.
    is_recorded: AtomicBool,
}

// SAFETY: selrecord(9) and selwakeup(9) lock it themselves.
unsafe impl Sync for SelInfo {}
// SAFETY: the memory does not move.
unsafe impl Send for SelInfo {}

impl SelInfo {
    /// Nobody waits. May sleep.
    pub fn empty() -> Self {
        // SAFETY: selrecord(9) wants a zeroed selinfo.
        let raw = KBox::new(UnsafeCell::new(unsafe { core::mem::zeroed() }));
        SelInfo {
            raw,
            is_recorded: AtomicBool::new(false),
        }
    }

    /// selrecord(9), in the device's poll routine.
    pub fn record(&self, thread: Thread<'_>) {
        // SAFETY: the thread is the caller's own, in its poll(2).
        unsafe { sys::selrecord(thread.as_ptr(), self.raw.get()) };
        self.is_recorded.store(true, Ordering::SeqCst);
    }

    /// Whether somebody may wait. Who changes what is waited for asks after
    /// the change, and who waits looks at it after [`record`](Self::record):
    /// one of the two sees the other.
    pub fn is_recorded(&self) -> bool {
        self.is_recorded.load(Ordering::SeqCst)
    }

    /// selwakeuppri(9), if somebody may wait. No lock may be held.
    pub fn wakeup(&self) {
        if !self.is_recorded.swap(false, Ordering::SeqCst) {
            return;
        }
        // SAFETY: initialised in empty().
        unsafe { sys::selwakeuppri(self.raw.get(), sys::PRIBIO as i32) };
    }
}

impl Drop for SelInfo {
    fn drop(&mut self) {
        // SAFETY: nobody can record again; lets go of who waits.
        unsafe { sys::seldrain(self.raw.get()) };
    }
}
