//! Time since boot, as sleep(9) and clock_gettime(2)'s CLOCK_MONOTONIC have it.

use super::errno::{ETIMEDOUT, Result};
use sys_bindings as sys;

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;

/// A point in time until which something is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline(i64);

impl Deadline {
    /// Never.
    pub const NEVER: Deadline = Deadline(0);

    /// `ns` nanoseconds after boot; `None` for more than can be said (68 years).
    pub fn at(ns: u64) -> Option<Self> {
        let seconds = i32::try_from(ns / SECOND).ok()?;
        let fraction = ((ns % SECOND) << 32) / SECOND;
        // 0 says never.
        Some(Deadline(
            (i64::from(seconds) << 32 | fraction as i64).max(1),
        ))
    }

    /// Whether it has passed.
    ///
    /// # Errors
    /// `ETIMEDOUT`: it has.
    pub fn check(self) -> Result {
        match Deadline::at(uptime()) {
            Some(now) if self != Self::NEVER && now.0 >= self.0 => Err(ETIMEDOUT),
            _ => Ok(()),
        }
    }

    /// As a sbintime_t since boot, 0 for never.
    pub fn sbintime(self) -> i64 {
        self.0
    }
}

/// Nanoseconds of a bintime.
fn nanoseconds(seconds: i64, fraction: u64) -> u64 {
    seconds as u64 * SECOND + (((fraction >> 32) * SECOND) >> 32)
}

/// binuptime(9): nanoseconds since boot.
pub fn uptime() -> u64 {
    read(sys::binuptime)
}

/// getbinuptime(9): the same, as of the last clock tick, and cheaper.
pub fn uptime_of_last_tick() -> u64 {
    read(sys::getbinuptime)
}

fn read(clock: unsafe extern "C" fn(*mut sys::bintime)) -> u64 {
    // SAFETY: plain data, which either clock fills in.
    let now = unsafe {
        let mut now: sys::bintime = core::mem::zeroed();
        clock(&mut now);
        now
    };
    nanoseconds(now.sec, now.frac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_seconds_in_fixed_point() {
        let at = |ns| Deadline::at(ns).map(Deadline::sbintime);
        assert_eq!(at(SECOND), Some(1 << 32));
        assert_eq!(at(SECOND / 2), Some(1 << 31));
        assert_eq!(at(0), Some(1), "now, and not never");
        assert_eq!(at(i32::MAX as u64 * SECOND), Some((i32::MAX as i64) << 32));
        assert_eq!(at((1 << 31) * SECOND), None);
        assert_eq!(at(u64::MAX), None);
    }

    #[test]
    fn a_bintime_is_so_many_nanoseconds() {
        assert_eq!(nanoseconds(0, 0), 0);
        assert_eq!(nanoseconds(3, 1 << 63), 3 * SECOND + SECOND / 2);
        assert_eq!(nanoseconds(0, u64::MAX), SECOND - 1);
    }
}
