//! QPIOC_INFO and QPIOC_LIMIT: what there is, and an open's own ceilings.

use crate::{limits::Limits, queue::Open};
use core::sync::atomic::Ordering::Relaxed;
use kpi::{
    errno::{EINVAL, ENXIO, Result},
    shared::Shared,
};
use sys_bindings as sys;

/// QPIOC_INFO.
///
/// # Errors
/// `ENXIO`: the device is gone.
pub fn info(open: &Shared<Open>, info: &mut sys::qpass_info) -> Result {
    let unit = open.unit()?;
    let stats = &unit.room.stats;
    let (requests, bytes) = open.queue.outstanding();
    let mut features = sys::QPASS_FEATURE_CANCEL
        | sys::QPASS_FEATURE_LIMIT
        | sys::QPASS_FEATURE_ENTER
        | sys::QPASS_FEATURE_LIST
        | sys::QPASS_FEATURE_CANCEL_DEVICE;
    if unit.unmapped {
        features |= sys::QPASS_FEATURE_UNMAPPED | sys::QPASS_FEATURE_ZEROCOPY;
    }
    // The counters of commands change with the device lock held.
    let mut held = open.periph().lock();
    if unit.state.get(&mut held).gone {
        return Err(ENXIO);
    }
    *info = sys::qpass_info {
        version: sys::QPASS_VERSION,
        features,
        maxio: unit.maxio,
        requests,
        bytes,
        submitted: stats.submitted.load(Relaxed),
        completed: stats.completed.load(Relaxed),
        outstanding: stats.outstanding.now.load(Relaxed),
        errors: stats.errors.load(Relaxed),
        cancelled: stats.cancelled.load(Relaxed),
        copied_bytes: stats.copied_bytes.load(Relaxed),
        bounce_bytes: stats.bounce_bytes.now.load(Relaxed),
        zerocopy_bytes: stats.zerocopy_bytes.load(Relaxed),
        reserved: [0; 7],
    };
    Ok(())
}

/// QPIOC_LIMIT.
///
/// # Errors
/// `EINVAL`: a reserved field is set, or a ceiling is above the system's.
pub fn limit(open: &Shared<Open>, limit: &mut sys::qpass_limit) -> Result {
    if limit.reserved0 != 0 || limit.reserved != [0; 2] {
        return Err(EINVAL);
    }
    open.queue.set_limits(Limits {
        requests: limit.requests,
        bytes: limit.bytes,
    })?;
    let now = open.queue.limits();
    (limit.requests, limit.bytes) = (now.requests, now.bytes);
    Ok(())
}
