//! What other drivers and CAM itself print because of what one driver did.

use crate::sys;
use std::sync::Mutex;

/// A line that a real kernel would have on its console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noise {
    /// ctl(4): "unsupported contract number" (scsi_ctl.c, ctlfeasync()).
    Contract(u64),
    /// CAM: a device's queue is released more often than it is frozen
    /// (cam_xpt.c, xpt_release_devq_device(), with INVARIANTS).
    DeviceReleased {
        /// Releases asked for.
        asked: u32,
        /// Freezes that there were.
        present: u32,
    },
    /// CAM: a SIM's queue is released and was not frozen (cam_xpt.c,
    /// xpt_release_simq(), with INVARIANTS).
    SimReleased,
}

static NOISE: Mutex<Vec<Noise>> = Mutex::new(Vec::new());

pub(super) fn record(noise: Noise) {
    NOISE.lock().unwrap().push(noise);
}

/// Takes what was recorded so far: a test that makes noise on purpose.
pub fn take_noise() -> Vec<Noise> {
    core::mem::take(&mut NOISE.lock().unwrap())
}

/// An AC_CONTRACT event as ctl(4)'s listener takes it, which knows one
/// contract and prints the number of every other.
pub(super) fn hear_contract(data: &[u64]) {
    match data.first() {
        Some(number) if *number != u64::from(sys::AC_CONTRACT_DEV_CHG) => {
            record(Noise::Contract(*number));
        }
        _ => {}
    }
}
