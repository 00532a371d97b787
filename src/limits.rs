//! What an open, or a device, may have outstanding: requests, and bytes of data in them.
//!
//! Counts go up before anything is allocated and come down when the last of it
//! is freed, so they bound kernel memory, not intentions.

use crate::kpi::errno::{EAGAIN, EINVAL, Result};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The ceilings that apply now.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Requests outstanding: queued, sent, or done and not reaped.
    pub requests: u32,
    /// Bytes of data in them.
    pub bytes: u64,
}

impl Limits {
    /// The tighter of two.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Limits {
            requests: self.requests.min(other.requests),
            bytes: self.bytes.min(other.bytes),
        }
    }
}

/// Ceilings of an open's own, below the system's.
pub struct OwnLimits {
    requests: AtomicU32,
    bytes: AtomicU64,
}

impl OwnLimits {
    /// None.
    pub const fn none() -> Self {
        OwnLimits {
            requests: AtomicU32::new(u32::MAX),
            bytes: AtomicU64::new(u64::MAX),
        }
    }

    /// Those that apply, where the system's are `system`.
    pub fn effective(&self, system: Limits) -> Limits {
        system.min(Limits {
            requests: self.requests.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        })
    }

    /// Sets those that are not 0.
    ///
    /// # Errors
    /// `EINVAL`: one is above the system's; nothing is set.
    pub fn set(&self, wanted: Limits, system: Limits) -> Result {
        if wanted.requests > system.requests || wanted.bytes > system.bytes {
            return Err(EINVAL);
        }
        if wanted.requests != 0 {
            self.requests.store(wanted.requests, Ordering::Relaxed);
        }
        if wanted.bytes != 0 {
            self.bytes.store(wanted.bytes, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// What is outstanding now.
#[derive(Default)]
pub struct Account {
    requests: AtomicU32,
    bytes: AtomicU64,
}

impl Account {
    /// Counts one more request.
    ///
    /// # Errors
    /// `EAGAIN`: that would be over the limit; nothing is counted.
    pub fn add_request(&self, limits: Limits) -> Result {
        self.requests
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                (now < limits.requests).then_some(now + 1)
            })
            .map_or(Err(EAGAIN), |_| Ok(()))
    }

    /// Counts more bytes.
    ///
    /// # Errors
    /// `EAGAIN`: that would be over the limit; nothing is counted. One request
    /// alone is always let through, so that a low limit slows and never stops.
    pub fn add_bytes(&self, bytes: u64, limits: Limits) -> Result {
        self.bytes
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                let sum = now.checked_add(bytes)?;
                (now == 0 || sum <= limits.bytes).then_some(sum)
            })
            .map_or(Err(EAGAIN), |_| Ok(()))
    }

    /// Takes one request and its bytes off.
    pub fn release(&self, bytes: u64) {
        self.release_bytes(bytes);
        // Before the look at who waits for room: see Room::watch.
        self.requests.fetch_sub(1, Ordering::SeqCst);
    }

    /// Takes bytes off.
    pub fn release_bytes(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// What is outstanding: requests, and bytes.
    pub fn now(&self) -> (u32, u64) {
        (
            self.requests.load(Ordering::SeqCst),
            self.bytes.load(Ordering::Relaxed),
        )
    }

    /// Requests that are let through before the limit is reached.
    pub fn free_requests(&self, limits: Limits) -> u32 {
        let now = self.requests.load(Ordering::SeqCst);
        limits.requests.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        requests: 3,
        bytes: 100,
    };

    #[test]
    fn requests_are_refused_at_the_limit_and_taken_again_below_it() {
        let account = Account::default();
        for _ in 0..3 {
            assert_eq!(account.add_request(LIMITS), Ok(()));
        }
        assert_eq!(account.add_request(LIMITS), Err(EAGAIN));
        assert_eq!(account.free_requests(LIMITS), 0);
        account.release(0);
        assert_eq!(account.add_request(LIMITS), Ok(()));
    }

    #[test]
    fn an_opens_own_limits_are_below_the_systems() {
        let own = OwnLimits::none();
        let effective = |own: &OwnLimits| {
            let limits = own.effective(LIMITS);
            (limits.requests, limits.bytes)
        };
        let set = |requests, bytes| own.set(Limits { requests, bytes }, LIMITS);
        assert_eq!(effective(&own), (3, 100));
        assert_eq!(set(2, 0), Ok(()));
        assert_eq!(effective(&own), (2, 100));
        assert_eq!(set(0, 50), Ok(()));
        assert_eq!(effective(&own), (2, 50));
        // Nothing is set of what is refused.
        assert_eq!(set(1, 101), Err(EINVAL));
        assert_eq!(set(4, 1), Err(EINVAL));
        assert_eq!(effective(&own), (2, 50));
        assert_eq!(set(3, 100), Ok(()));
        assert_eq!(effective(&own), (3, 100));
    }

    #[test]
    fn bytes_are_refused_over_the_limit() {
        let account = Account::default();
        assert_eq!(account.add_bytes(60, LIMITS), Ok(()));
        assert_eq!(account.add_bytes(41, LIMITS), Err(EAGAIN));
        assert_eq!(account.add_bytes(40, LIMITS), Ok(()));
        assert_eq!(account.add_bytes(u64::MAX, LIMITS), Err(EAGAIN));
    }

    #[test]
    fn one_request_larger_than_the_limit_goes_alone() {
        let account = Account::default();
        assert_eq!(account.add_bytes(500, LIMITS), Ok(()));
        assert_eq!(account.add_bytes(1, LIMITS), Err(EAGAIN));
    }
}
