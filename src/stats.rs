//! What a device's counters say: `kern.cam.qpass.N` shows them.
//!
//! A request is counted as submitted once it is taken, and as completed once
//! it has an outcome, both with the device lock held. So whoever holds it sees
//! `submitted = completed + outstanding`.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A level that goes up and down, and how high it was.
#[derive(Default)]
pub struct Gauge {
    /// Now.
    pub now: AtomicU64,
    /// At most so far.
    pub max: AtomicU64,
}

impl Gauge {
    /// Goes up.
    pub fn add(&self, n: u64) {
        self.max
            .fetch_max(self.now.fetch_add(n, Relaxed) + n, Relaxed);
    }

    /// Comes down.
    pub fn sub(&self, n: u64) {
        self.now.fetch_sub(n, Relaxed);
    }
}

/// A device's counters, since it arrived.
#[derive(Default)]
pub struct Stats {
    /// Commands taken, queued and synchronous.
    pub submitted: AtomicU64,
    /// Commands taken that have no outcome yet.
    pub outstanding: Gauge,
    /// Commands that have one.
    pub completed: AtomicU64,
    /// Of these, those with a status other than CAM_REQ_CMP.
    pub errors: AtomicU64,
    /// Of these, those that were taken back before they were sent.
    pub cancelled: AtomicU64,
    /// Bytes copied between processes and bounce buffers.
    pub copied_bytes: AtomicU64,
    /// Bytes that devices moved from and to processes' own pages.
    pub zerocopy_bytes: AtomicU64,
    /// Bytes of bounce buffers in use.
    pub bounce_bytes: Gauge,
}

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// CAM_REQ_CMP.
    Good,
    /// Another status.
    Error,
    /// Taken back before it was sent.
    Cancelled,
}

impl Outcome {
    /// Of a command that CAM has answered.
    pub fn of(good: bool) -> Self {
        if good { Outcome::Good } else { Outcome::Error }
    }
}

/// Adds where nobody else writes.
fn add(to: &AtomicU64, n: u64) {
    to.store(to.load(Relaxed) + n, Relaxed);
}

impl Stats {
    /// So many commands are taken. The device lock is held, here and in
    /// [`complete`](Self::complete), so that nobody else writes meanwhile.
    pub fn submit(&self, n: u64) {
        add(&self.submitted, n);
        let now = self.outstanding.now.load(Relaxed) + n;
        self.outstanding.now.store(now, Relaxed);
        if now > self.outstanding.max.load(Relaxed) {
            self.outstanding.max.store(now, Relaxed);
        }
    }

    /// One has an outcome.
    pub fn complete(&self, outcome: Outcome) {
        if outcome != Outcome::Good {
            add(&self.errors, 1);
        }
        if outcome == Outcome::Cancelled {
            add(&self.cancelled, 1);
        }
        add(&self.completed, 1);
        let now = self.outstanding.now.load(Relaxed);
        self.outstanding.now.store(now - 1, Relaxed);
    }

    /// A transfer of so many bytes needs no copy.
    pub fn in_place(&self, bytes: u32) {
        self.zerocopy_bytes.fetch_add(u64::from(bytes), Relaxed);
    }

    /// So many bytes were copied.
    pub fn copied(&self, bytes: usize) {
        self.copied_bytes.fetch_add(bytes as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_submitted_is_completed_or_outstanding() {
        let stats = Stats::default();
        for outcome in [Outcome::Good, Outcome::Error, Outcome::Cancelled] {
            stats.submit(2);
            stats.complete(outcome);
            let [submitted, completed, outstanding] =
                [&stats.submitted, &stats.completed, &stats.outstanding.now]
                    .map(|n| n.load(Relaxed));
            assert_eq!(submitted, completed + outstanding);
        }
        assert_eq!(stats.errors.load(Relaxed), 2);
        assert_eq!(stats.cancelled.load(Relaxed), 1);
        assert_eq!(stats.outstanding.max.load(Relaxed), 4);
    }
}
