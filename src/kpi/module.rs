//! module(9): the event handler that a driver's shim declares.

use super::errno::{EOPNOTSUPP, Result, to_c};
use core::ffi::c_int;
use sys_bindings as sys;

/// What the kernel linker asks of a module, one event at a time.
pub trait Module {
    /// It is loaded.
    ///
    /// # Errors
    /// Any: it is not, and nothing of it is left.
    fn load() -> Result;

    /// It may be unloaded soon: whether that would do.
    ///
    /// # Errors
    /// `EBUSY`: no.
    fn quiesce() -> Result;

    /// It is unloaded.
    ///
    /// # Errors
    /// `EBUSY`: it stays, as it was.
    fn unload() -> Result;
}

/// The answer to an event: for [`module_events!`](crate::module_events).
pub fn answer<M: Module>(event: c_int) -> c_int {
    to_c(match event as sys::modeventtype {
        sys::MOD_LOAD => M::load(),
        sys::MOD_QUIESCE => M::quiesce(),
        sys::MOD_UNLOAD => M::unload(),
        sys::MOD_SHUTDOWN => Ok(()),
        _ => Err(EOPNOTSUPP),
    })
}

/// The function that a driver's shim names in DECLARE_MODULE.
#[macro_export]
macro_rules! module_events {
    ($name:ident, $module:ty) => {
        /// Called by the kernel linker.
        #[unsafe(no_mangle)]
        extern "C" fn $name(
            _module: *mut ::core::ffi::c_void,
            event: ::core::ffi::c_int,
            _: *mut ::core::ffi::c_void,
        ) -> ::core::ffi::c_int {
            $crate::module::answer::<$module>(event)
        }
    };
}
