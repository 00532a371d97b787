//! What an open, or a device, may have outstanding: requests, and bytes of data in them.
//!
//! Counts go up before anything is allocated and come down when the last of it
//! is freed, so they bound kernel memory, not intentions.

use crate::kpi::errno::{EAGAIN, Result};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The ceilings that apply now.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Requests outstanding: queued, sent, or done and not reaped.
    pub requests: u32,
    /// Bytes of data in them.
    pub bytes: u64,
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
