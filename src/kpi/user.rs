//! copy(9): the one place where user memory is touched.

use super::errno::{Result, check};
use crate::sg::Segment;
use core::ffi::c_void;
use sys_bindings as sys;

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

    /// Fills a list of segments from user memory. May sleep: no mutex may be
    /// held.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn copyin_segments(self, to: &mut [Segment]) -> Result {
        // SAFETY: a Segment is two integers: any bytes make one, and all of
        // its bytes are initialised.
        self.copyin(unsafe {
            core::slice::from_raw_parts_mut(to.as_mut_ptr().cast(), size_of_val(to))
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
