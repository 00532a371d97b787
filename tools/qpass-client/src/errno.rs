//! errno(2) of FreeBSD, whatever system this runs on.

use core::fmt;
use sys_bindings as sys;

/// An error number of the FreeBSD kernel's.
///
/// A device that has gone is ENXIO to a call that comes soon after; once devfs(5)
/// has let its node go, with the next look into `/dev`, every call on the open is
/// ENOTTY, for good. This crate says ENXIO for both: from an open that has answered
/// a call, ENOTTY means that the device has gone, and otherwise that the node is of
/// another driver.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($name:ident $meaning:literal)*) => {
        impl Errno {
            $(
                #[doc = $meaning]
                pub const $name: Errno = Errno(sys::$name as i32);
            )*
        }

        const NAMES: &[(Errno, &str, &str)] = &[
            $((Errno::$name, stringify!($name), $meaning)),*
        ];
    };
}

// The names and their meanings: errno(2).
errnos! {
    EPERM "not permitted"
    ENOENT "no such device or file"
    EINTR "interrupted by a signal"
    EIO "input/output error"
    ENXIO "the device is not there, or has gone"
    E2BIG "too long"
    EBADF "bad file descriptor"
    ENOMEM "no memory"
    EACCES "permission denied"
    EFAULT "bad address"
    EBUSY "the device is busy"
    EEXIST "it is there already"
    ENODEV "not supported by the device"
    ENOTDIR "not a directory"
    EISDIR "is a directory"
    EINVAL "invalid argument"
    EMFILE "too many open files"
    ENOTTY "not a call of this device"
    EFBIG "the file is too large"
    ENOSPC "no space left"
    EROFS "read-only file system"
    EPIPE "broken pipe"
    EAGAIN "a limit is reached, try again later"
    EINPROGRESS "in progress"
    EOPNOTSUPP "not supported"
    ETIMEDOUT "timed out"
    ENOSYS "no such call"
    ECANCELED "cancelled"
}

impl Errno {
    /// Of a number.
    pub const fn new(number: i32) -> Self {
        Errno(number)
    }

    /// Its number.
    pub const fn get(self) -> i32 {
        self.0
    }

    /// Its name, such as `ENXIO`, if it is one of those that matter here.
    pub fn name(self) -> Option<&'static str> {
        let (_, name, _) = NAMES.iter().find(|(errno, ..)| *errno == self)?;
        Some(name)
    }

    /// What it means, in words.
    pub fn meaning(self) -> Option<&'static str> {
        let (.., meaning) = NAMES.iter().find(|(errno, ..)| *errno == self)?;
        Some(meaning)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.meaning(), self.name()) {
            (Some(meaning), Some(name)) => write!(f, "{meaning} ({name})"),
            _ => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "Errno({})", self.0),
        }
    }
}

impl std::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_freebsds() {
        // Those that are other numbers on Linux.
        assert_eq!(Errno::EAGAIN.get(), 35);
        assert_eq!(Errno::ETIMEDOUT.get(), 60);
        assert_eq!(
            Errno::new(6).to_string(),
            "the device is not there, or has gone (ENXIO)"
        );
        assert_eq!(Errno::new(4711).to_string(), "errno 4711");
    }
}
