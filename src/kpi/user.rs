//! copy(9): the one place where user memory is touched.

use super::{
    errno::{Result, check},
    segment::Segment,
};
use core::ffi::c_void;
use sys_bindings as sys;
pub use sys_bindings::Plain;

/// All bytes zero.
pub fn zeroed<T: Plain>() -> T {
    // SAFETY: any bytes make one.
    unsafe { core::mem::zeroed() }
}

// SAFETY: two integers of one size.
unsafe impl Plain for Segment {}

/// An address that a process gave: a number until copyin(9) or copyout(9)
/// says otherwise, and never dereferenced.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UserPtr(usize);

impl UserPtr {
    /// Wraps an address.
    pub fn new(address: usize) -> Self {
        UserPtr(address)
    }

    /// The number.
    pub fn address(self) -> usize {
        self.0
    }

    /// The address `bytes` further on. A wild one wraps, and is refused when it
    /// is used.
    #[must_use]
    pub fn offset(self, bytes: usize) -> Self {
        UserPtr(self.0.wrapping_add(bytes))
    }

    /// Fills an array from user memory. May sleep: no mutex may be held.
    ///
    /// # Errors
    /// `EFAULT`: it is not all readable; `to` may be partly filled.
    pub fn copyin_array<T: Plain>(self, to: &mut [T]) -> Result {
        // SAFETY: any bytes make a T, and it has no padding.
        self.copyin(unsafe {
            core::slice::from_raw_parts_mut(to.as_mut_ptr().cast(), size_of_val(to))
        })
    }

    /// Writes an array to user memory. May sleep: no mutex may be held.
    ///
    /// # Errors
    /// `EFAULT`: it is not all writable; part of it may be written.
    pub fn copyout_array<T: Plain>(self, from: &[T]) -> Result {
        // SAFETY: a T has no padding.
        self.copyout(unsafe {
            core::slice::from_raw_parts(from.as_ptr().cast(), size_of_val(from))
        })
    }

    /// Fills `to` from user memory. May sleep: no mutex may be held.
    ///
    /// # Errors
    /// `EFAULT`: the range is not all readable; `to` may be partly filled.
    pub fn copyin(self, to: &mut [u8]) -> Result {
        // SAFETY: copyin(9) checks the user range itself; `to` is ours.
        check(unsafe { sys::copyin(self.0 as *const c_void, to.as_mut_ptr().cast(), to.len()) })
    }

    /// Writes `from` to user memory. May sleep: no mutex may be held.
    ///
    /// # Errors
    /// `EFAULT`: the range is not all writable; part of it may be written.
    pub fn copyout(self, from: &[u8]) -> Result {
        // SAFETY: copyout(9) checks the user range itself; `from` is ours.
        check(unsafe { sys::copyout(from.as_ptr().cast(), self.0 as *mut c_void, from.len()) })
    }
}
