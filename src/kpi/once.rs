//! A value that the whole module has one of, made at first use.

use super::{alloc::KBox, errno::Result};
use core::{
    ptr::null_mut,
    sync::atomic::{AtomicPtr, Ordering},
};

/// A value that is made at first use and stays until the module is unloaded.
pub struct Once<T: Send + Sync + 'static>(AtomicPtr<T>);

impl<T: Send + Sync> Once<T> {
    /// Not made yet.
    pub const fn new() -> Self {
        Once(AtomicPtr::new(null_mut()))
    }

    /// The value, once it is there.
    pub fn get(&self) -> Option<&T> {
        // SAFETY: what get_or_make() put in stays until destroy(), whose
        // caller promises that no reference is left.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }

    /// The value, made now if there is none. Sleeps.
    ///
    /// # Errors
    /// Those of `make`; the next call tries again.
    pub fn get_or_make(&self, make: impl FnOnce() -> Result<T>) -> Result<&T> {
        if let Some(value) = self.get() {
            return Ok(value);
        }
        // Two first uses may both get here: the later one's is thrown away.
        let fresh = KBox::new(make()?).into_raw().cast::<T>();
        let there = self
            .0
            .compare_exchange(null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire);
        let value = match there {
            Ok(_) => fresh,
            Err(first) => {
                // SAFETY: the box from above, which nobody else has seen.
                drop(unsafe { KBox::<T>::from_raw(fresh.cast()) });
                first
            }
        };
        // SAFETY: as get().
        Ok(unsafe { &*value })
    }

    /// Destroys the value, if there is one. May sleep.
    ///
    /// # Safety
    /// No reference to the value is in use, and none will be asked for before
    /// this returns.
    pub unsafe fn destroy(&self) {
        let value = self.0.swap(null_mut(), Ordering::AcqRel);
        if !value.is_null() {
            // SAFETY: the box that get_or_make() put in; the caller's promise.
            drop(unsafe { KBox::<T>::from_raw(value.cast()) });
        }
    }
}

impl<T: Send + Sync> Default for Once<T> {
    fn default() -> Self {
        Self::new()
    }
}
