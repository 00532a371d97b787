//! module(9): the event handler that kmod/shim.c declares.

use super::errno::{EOPNOTSUPP, to_c};
use core::ffi::{c_int, c_void};
use sys_bindings as sys;

/// Called by the kernel linker, one event at a time.
///
/// # Safety
/// For the kernel's module code only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qpass_modevent(
    _module: *mut c_void,
    event: c_int,
    _: *mut c_void,
) -> c_int {
    to_c(match event as sys::modeventtype {
        sys::MOD_LOAD => crate::module::load(),
        sys::MOD_QUIESCE => crate::module::quiesce(),
        sys::MOD_UNLOAD => crate::module::unload(),
        sys::MOD_SHUTDOWN => Ok(()),
        _ => Err(EOPNOTSUPP),
    })
}
