//! Waiting that ends: for something that happens soon, or else is given up.

use super::{
    driver::pause_ms,
    errno::{EBUSY, Result},
    time::uptime,
};

/// Until when a thread may be kept waiting.
pub struct Patience {
    /// Nanoseconds since boot.
    until: u64,
}

impl Patience {
    /// So many milliseconds from now.
    pub fn of_ms(ms: u64) -> Self {
        Patience {
            until: uptime().saturating_add(ms * 1_000_000),
        }
    }

    /// Waits until `is_so` says yes, which is asked every millisecond, and at
    /// least once. Sleeps.
    ///
    /// # Errors
    /// `EBUSY`: it said no to the end.
    pub fn wait(&self, mut is_so: impl FnMut() -> bool) -> Result {
        while !is_so() {
            if uptime() >= self.until {
                return Err(EBUSY);
            }
            pause_ms(1);
        }
        Ok(())
    }
}
