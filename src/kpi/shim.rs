//! What a driver's C shim and its Rust have in common.

/// Integers of the shim's, which sysctl(9) reads and writes whole, each as a function
/// that hands it out. The shim must have each, as an aligned integer of that size.
#[macro_export]
macro_rules! shim_integers {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident = $variable:ident: $atomic:ty;)*) => {$(
        $(#[$doc])*
        $vis fn $name() -> &'static $atomic {
            unsafe extern "C" {
                static $variable: $atomic;
            }
            // SAFETY: the shim's variable lives as long as the module.
            unsafe { &$variable }
        }
    )*};
}

/// A function that the shim calls, with no arguments and no lock of the driver's held.
#[macro_export]
macro_rules! shim_call {
    ($(#[$doc:meta])* $name:ident => $function:path) => {
        $(#[$doc])*
        #[unsafe(no_mangle)]
        extern "C" fn $name() {
            $function()
        }
    };
}
