//! What an open, or a device, may have outstanding: requests, and bytes of data in them.
//!
//! A request is charged once, for all that it will take, before any of it is
//! allocated, and its charge is given back when the last of it is freed: so the
//! counts bound kernel memory, not intentions.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use kpi::errno::{EINVAL, Result};

/// The ceilings that apply now.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Requests outstanding: queued, sent, or done and not reaped.
    pub requests: u32,
    /// Bytes of data in them.
    pub bytes: u64,
}

impl Limits {
    /// These, or the highest that an account can keep.
    #[must_use]
    pub fn held(self) -> Self {
        self.min(MOST)
    }

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

/// What is outstanding now: requests, and their bytes, in one word, so that a
/// request is charged whole or not at all and no thread sees half of it.
#[derive(Default)]
pub struct Account(AtomicU64);

/// The low bits of an account's word, which are bytes; the others are requests.
const BYTES_BITS: u32 = 42;
/// The bytes of an account's word: up to 4 TiB.
const BYTES: u64 = (1 << BYTES_BITS) - 1;
/// What limits may say at most, so that neither field of a word runs over: one
/// request, and what threads that race for the last place add for a moment, come
/// on top.
const MOST: Limits = Limits {
    requests: (u64::MAX >> BYTES_BITS >> 1) as u32,
    bytes: BYTES / 2,
};

/// What an account has at one moment: its word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outstanding(u64);

impl Outstanding {
    /// Requests.
    pub fn requests(self) -> u32 {
        (self.0 >> BYTES_BITS) as u32
    }

    /// Bytes of data in them.
    pub fn bytes(self) -> u64 {
        self.0 & BYTES
    }

    /// Whether a request of `bytes` more is let through, which are those of one
    /// request. One alone is, whatever its size, so that a low limit slows and
    /// never stops; and one without data is no matter of bytes.
    pub fn lets_through(self, bytes: u64, limits: Limits) -> bool {
        // Neither field runs over: see Limits::held.
        let sum = Outstanding(self.0.wrapping_add(one(bytes)));
        sum.requests() <= limits.requests
            && (sum.bytes() <= limits.bytes || self.requests() == 0 || bytes == 0)
    }

    /// Whether nothing more is let through, or nothing that has data.
    pub fn is_full(self, limits: Limits) -> bool {
        !self.lets_through(1, limits)
    }
}

/// One request and its bytes, as an account's word counts them.
const fn one(bytes: u64) -> u64 {
    1 << BYTES_BITS | bytes
}

impl Account {
    /// Counts one more request of `bytes`; says whether it did. `seen` is what
    /// there was a moment ago, which let it through.
    #[inline]
    #[must_use]
    pub fn charge(&self, seen: Outstanding, bytes: u64, limits: Limits) -> bool {
        let new = seen.0.wrapping_add(one(bytes));
        let swapped = self
            .0
            .compare_exchange(seen.0, new, Ordering::SeqCst, Ordering::Relaxed);
        swapped.is_ok() || self.charge_again(bytes, limits)
    }

    /// Another thread was faster.
    #[cold]
    fn charge_again(&self, bytes: u64, limits: Limits) -> bool {
        let now = self.now();
        now.lets_through(bytes, limits) && self.charge(now, bytes, limits)
    }

    /// Takes one request and its bytes off, and says what there was before.
    ///
    /// Sequentially consistent: the releasing thread looks afterwards whether
    /// anybody waits, and a waiting thread says so before it looks here.
    pub fn release(&self, bytes: u64) -> Outstanding {
        Outstanding(self.0.fetch_sub(one(bytes), Ordering::SeqCst))
    }

    /// Counts `bytes` more of a request that is charged already; says whether
    /// it did.
    #[must_use]
    pub fn grow(&self, bytes: u64, limits: Limits) -> bool {
        self.0
            .try_update(Ordering::SeqCst, Ordering::Relaxed, |now| {
                // The request itself is none of the others.
                let others = Outstanding(now - one(0));
                let limits = Limits {
                    requests: u32::MAX,
                    ..limits
                };
                others.lets_through(bytes, limits).then(|| now + bytes)
            })
            .is_ok()
    }

    /// Takes bytes off a request that stays, and says what there was before.
    pub fn shrink(&self, bytes: u64) -> Outstanding {
        Outstanding(self.0.fetch_sub(bytes, Ordering::SeqCst))
    }

    /// What is outstanding.
    pub fn now(&self) -> Outstanding {
        Outstanding(self.0.load(Ordering::SeqCst))
    }

    /// Requests that are let through before the limit is reached.
    pub fn free_requests(&self, limits: Limits) -> u32 {
        limits.requests.saturating_sub(self.now().requests())
    }
}

/// The memory of all devices' requests together, in bytes.
#[derive(Default)]
pub struct Total(AtomicU64);

impl Total {
    /// None.
    pub const fn new() -> Self {
        Total(AtomicU64::new(0))
    }

    /// Whether `bytes` more are let through. The only request of a device is,
    /// so that no device stops because of another.
    #[inline]
    pub fn lets_through(&self, bytes: u64, is_alone: bool, limit: u64) -> bool {
        self.now().wrapping_add(bytes) <= limit || is_alone
    }

    /// Counts `bytes` more, which were let through a moment ago: threads that
    /// charge at the same time may come above the limit by one request each.
    pub fn charge(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Takes bytes off.
    pub fn release(&self, bytes: u64) {
        self.0.fetch_sub(bytes, Ordering::SeqCst);
    }

    /// What is outstanding.
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// The defaults of `kern.cam.qpass.total_max_bytes`, `device_max_bytes` and
/// `max_bytes` on a machine with so many bytes of memory: an eighth, three
/// quarters of that, and half of it, the last two not above 256 and 64 MiB.
pub fn default_bytes(memory: u64) -> [u64; 3] {
    let total = memory / 8;
    [
        total,
        (total / 4 * 3).min(256 << 20),
        (total / 2).min(64 << 20),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        requests: 3,
        bytes: 100,
    };

    impl Account {
        fn take(&self, bytes: u64, limits: Limits) -> bool {
            self.charge_again(bytes, limits)
        }
    }

    #[test]
    fn requests_are_refused_at_the_limit_and_taken_again_below_it() {
        let account = Account::default();
        for _ in 0..3 {
            assert!(account.take(0, LIMITS));
        }
        assert!(!account.take(0, LIMITS));
        assert_eq!(account.free_requests(LIMITS), 0);
        assert!(account.release(0).is_full(LIMITS));
        assert!(!account.now().is_full(LIMITS));
        assert!(account.take(0, LIMITS));
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
    fn bytes_are_refused_over_the_limit_and_leave_no_trace() {
        let account = Account::default();
        assert!(account.take(60, LIMITS));
        let before = account.now();
        for bytes in [41, 1 << 34] {
            assert!(!account.take(bytes, LIMITS));
        }
        assert_eq!(account.now(), before);
        assert!(account.take(40, LIMITS));
        assert!(account.now().is_full(LIMITS));
    }

    #[test]
    fn one_request_larger_than_the_limit_goes_alone() {
        let account = Account::default();
        assert!(account.take(500, LIMITS));
        assert!(!account.take(1, LIMITS), "bytes are over already");
        assert!(account.take(0, LIMITS), "and no matter without data");
        account.release(0);
        account.release(500);
        // Alone is who is the only request, whatever that has.
        assert!(account.take(0, LIMITS));
        assert!(!account.take(101, LIMITS));
        assert!(account.take(100, LIMITS));
    }

    #[test]
    fn a_limit_of_no_requests_lets_none_through() {
        let none = Limits {
            requests: 0,
            bytes: 100,
        };
        assert!(!Account::default().take(0, none));
    }

    #[test]
    fn a_charge_is_exchanged_for_another() {
        let account = Account::default();
        assert!(account.take(500, LIMITS));
        assert!(account.grow(500, LIMITS), "it is alone");
        account.shrink(990);
        assert!(account.take(80, LIMITS));
        assert!(account.grow(10, LIMITS));
        assert!(!account.grow(1, LIMITS), "it is not");
        let now = account.now();
        assert_eq!((now.requests(), now.bytes()), (2, 100));
    }

    #[test]
    fn absurd_limits_do_not_run_one_count_into_the_other() {
        let limits = Limits {
            requests: u32::MAX,
            bytes: u64::MAX,
        };
        let limits = limits.held();
        let full = |requests: u32, bytes| {
            let account = Account::default();
            account
                .0
                .store(u64::from(requests) << BYTES_BITS | bytes, Ordering::SeqCst);
            account
        };
        // The largest request on top of all that there may be.
        let account = full(limits.requests - 1, limits.bytes - (1 << 34));
        assert!(account.take(1 << 34, limits));
        let now = account.now();
        assert_eq!(
            (now.requests(), now.bytes()),
            (limits.requests, limits.bytes)
        );
        assert!(!account.take(0, limits));
        let account = full(1, limits.bytes);
        assert!(!account.take(1 << 34, limits));
        assert!(account.take(0, limits));
    }

    #[test]
    fn the_only_request_of_a_device_is_no_matter_of_the_total() {
        let total = Total::new();
        total.charge(100);
        assert!(!total.lets_through(1, false, 100));
        assert!(total.lets_through(50, true, 100));
        total.charge(50);
        total.release(100);
        assert_eq!(total.now(), 50);
        assert!(total.lets_through(50, false, 100));
    }

    #[test]
    fn the_defaults_follow_the_memory() {
        const MIB: u64 = 1 << 20;
        for (memory, bytes) in [
            (256, [32, 24, 16]),
            (1024, [128, 96, 64]),
            (4096, [512, 256, 64]),
            (65536, [8192, 256, 64]),
        ] {
            assert_eq!(default_bytes(memory * MIB), bytes.map(|n| n * MIB));
        }
        let mut all = (0..1 << 20).map(|n| default_bytes(n * MIB));
        assert!(all.all(|[total, device, own]| own <= device && device <= total));
    }
}
