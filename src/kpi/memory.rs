//! The machine's memory.

use sys_bindings as sys;

/// Bytes of it.
pub fn physical() -> u64 {
    // SAFETY: the kernel set it at boot: pages.
    let pages = unsafe { sys::physmem };
    pages.max(0) as u64 * u64::from(sys::PAGE_SIZE)
}
