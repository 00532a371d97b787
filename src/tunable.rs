//! The `kern.cam.qpass` sysctls of kmod/shim.c, which are also tunables.

use crate::{
    limits::{Limits, default_bytes},
    room,
};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use kpi::memory::physical;

kpi::shim_integers! {
    fn total_max_bytes_now = qpass_total_max_bytes: AtomicU64;
    fn replace_now = qpass_replace: AtomicU32;
    fn max_requests_now = qpass_max_requests: AtomicU32;
    fn max_bytes_now = qpass_max_bytes: AtomicU64;
    fn device_max_requests_now = qpass_device_max_requests: AtomicU32;
    fn device_max_bytes_now = qpass_device_max_bytes: AtomicU64;
    fn allow_paddr_now = qpass_allow_paddr: AtomicU32;
    fn zerocopy_min_now = qpass_zerocopy_min: AtomicU32;
}

/// `hw.qpass.replace`: stand in for pass(4), where the kernel has none.
pub fn replace() -> bool {
    replace_now().load(Relaxed) != 0
}

/// `kern.cam.qpass.max_requests`: requests one open may have outstanding.
pub fn max_requests() -> u32 {
    max_requests_now().load(Relaxed)
}

/// `kern.cam.qpass.max_bytes`: bytes of data one open may have outstanding.
pub fn max_bytes() -> u64 {
    max_bytes_now().load(Relaxed)
}

/// `kern.cam.qpass.device_max_requests`: requests all opens of one device
/// together may have outstanding.
pub fn device_max_requests() -> u32 {
    device_max_requests_now().load(Relaxed)
}

/// `kern.cam.qpass.device_max_bytes`: bytes of data all opens of one device
/// together may have outstanding.
pub fn device_max_bytes() -> u64 {
    device_max_bytes_now().load(Relaxed)
}

/// `kern.cam.qpass.total_max_bytes`: bytes of kernel memory and held pages that
/// the requests of all devices together may take.
pub fn total_max_bytes() -> u64 {
    total_max_bytes_now().load(Relaxed)
}

/// Gives the limits that are 0 the values that fit the machine's memory, and
/// those that are absurd the highest: at load, and when one was set.
pub fn settle_limits() {
    let requests = [max_requests_now(), device_max_requests_now()];
    let bytes = [
        total_max_bytes_now(),
        device_max_bytes_now(),
        max_bytes_now(),
    ];
    let most = Limits {
        requests: u32::MAX,
        bytes: u64::MAX,
    };
    let most = most.held();
    for (limit, default) in bytes.into_iter().zip(default_bytes(physical())) {
        // Whoever sets another value meanwhile has the last word.
        let _ = limit.compare_exchange(0, default, Relaxed, Relaxed);
        limit.fetch_min(most.bytes, Relaxed);
    }
    for limit in requests {
        limit.fetch_min(most.requests, Relaxed);
    }
}

fn limits_changed() {
    settle_limits();
    room::tell_blocked();
}

kpi::shim_call! {
    /// A limit was set by sysctl(8), or by a tunable while the module is being
    /// loaded.
    qpass_limits_changed => limits_changed
}

/// `kern.cam.qpass.zerocopy_min`: bytes from which on a transfer is not copied.
pub fn zerocopy_min() -> u32 {
    zerocopy_min_now().load(Relaxed)
}

/// `kern.cam.qpass.allow_paddr`: CCBs may carry physical addresses.
pub fn allow_paddr() -> bool {
    allow_paddr_now().load(Relaxed) != 0
}
