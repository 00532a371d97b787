//! errno(2) values as the driver's one error type.

use core::{ffi::c_int, num::NonZero};

/// An errno(2) value: never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(NonZero<c_int>);

/// What every fallible function of the driver returns.
pub type Result<T = ()> = core::result::Result<T, Errno>;

macro_rules! errnos {
    ($($name:ident)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "`, see errno(2).")]
            pub const $name: Errno = Errno(NonZero::new(sys_bindings::$name as c_int).unwrap());
        )*
    };
}

errnos! { E2BIG EACCES EAGAIN EBUSY EFAULT EINTR EINVAL EIO ENODEV ENOENT ENOMEM ENOTTY ENXIO EOPNOTSUPP EPERM ETIMEDOUT }

/// `ERESTART`: cam_periph_error() has sent the CCB again.
pub const ERESTART: c_int = sys_bindings::ERESTART;

impl Errno {
    /// The value that C sees.
    pub fn get(self) -> c_int {
        self.0.get()
    }
}

/// A kernel function's `int`: 0 is success, all else is an errno.
pub fn check(ret: c_int) -> Result {
    match NonZero::new(ret) {
        None => Ok(()),
        Some(errno) => Err(Errno(errno)),
    }
}

/// The `int` that the kernel expects from a callback.
pub fn to_c(result: Result) -> c_int {
    result.err().map_or(0, Errno::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_c_int_survives_the_way_there_and_back() {
        assert_eq!(to_c(check(0)), 0);
        assert_eq!(to_c(check(EFAULT.get())), 14);
        assert_eq!(check(22), Err(EINVAL));
    }
}
