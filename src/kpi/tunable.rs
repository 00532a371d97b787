//! The `kern.cam.qpass` sysctls of kmod/shim.c, which are also tunables.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::limits::{Limits, default_bytes};
use sys_bindings as sys;

unsafe extern "C" {
    static qpass_total_max_bytes: AtomicU64;
    static qpass_replace: AtomicU32;
    static qpass_max_requests: AtomicU32;
    static qpass_max_bytes: AtomicU64;
    static qpass_device_max_requests: AtomicU32;
    static qpass_device_max_bytes: AtomicU64;
    static qpass_allow_paddr: AtomicU32;
    static qpass_zerocopy_min: AtomicU32;
}

/// `hw.qpass.replace`: stand in for pass(4), where the kernel has none.
pub fn replace() -> bool {
    // SAFETY: an aligned int of the shim's, which does not change after load.
    unsafe { qpass_replace.load(Ordering::Relaxed) != 0 }
}

/// `kern.cam.qpass.max_requests`: requests one open may have outstanding.
pub fn max_requests() -> u32 {
    // SAFETY: an aligned u_int of the shim's that sysctl(9) writes whole.
    unsafe { qpass_max_requests.load(Ordering::Relaxed) }
}

/// `kern.cam.qpass.max_bytes`: bytes of data one open may have outstanding.
pub fn max_bytes() -> u64 {
    // SAFETY: an aligned u_long of the shim's that sysctl(9) writes whole.
    unsafe { qpass_max_bytes.load(Ordering::Relaxed) }
}

/// `kern.cam.qpass.device_max_requests`: requests all opens of one device
/// together may have outstanding.
pub fn device_max_requests() -> u32 {
    // SAFETY: an aligned u_int of the shim's that sysctl(9) writes whole.
    unsafe { qpass_device_max_requests.load(Ordering::Relaxed) }
}

/// `kern.cam.qpass.device_max_bytes`: bytes of data all opens of one device
/// together may have outstanding.
pub fn device_max_bytes() -> u64 {
    // SAFETY: an aligned u_long of the shim's that sysctl(9) writes whole.
    unsafe { qpass_device_max_bytes.load(Ordering::Relaxed) }
}

/// `kern.cam.qpass.total_max_bytes`: bytes of kernel memory and held pages that
/// the requests of all devices together may take.
pub fn total_max_bytes() -> u64 {
    // SAFETY: an aligned u_long of the shim's that sysctl(9) writes whole.
    unsafe { qpass_total_max_bytes.load(Ordering::Relaxed) }
}

/// Gives the limits that are 0 the values that fit the machine's memory, and
/// those that are absurd the highest: at load, and when one was set.
pub fn settle_limits() {
    // SAFETY: the kernel set it at boot: pages.
    let pages = unsafe { sys::physmem };
    let memory = pages.max(0) as u64 * u64::from(sys::PAGE_SIZE);
    // SAFETY: aligned integers of the shim's, which sysctl(9) writes whole.
    let (requests, bytes) = unsafe {
        (
            [&qpass_max_requests, &qpass_device_max_requests],
            [
                &qpass_total_max_bytes,
                &qpass_device_max_bytes,
                &qpass_max_bytes,
            ],
        )
    };
    let most = Limits {
        requests: u32::MAX,
        bytes: u64::MAX,
    };
    let most = most.held();
    for (limit, default) in bytes.into_iter().zip(default_bytes(memory)) {
        // Whoever sets another value meanwhile has the last word.
        let _ = limit.compare_exchange(0, default, Ordering::Relaxed, Ordering::Relaxed);
        limit.fetch_min(most.bytes, Ordering::Relaxed);
    }
    for limit in requests {
        limit.fetch_min(most.requests, Ordering::Relaxed);
    }
}

/// A limit was set by sysctl(8), or by a tunable while the module is being
/// loaded. Called by kmod/shim.c.
///
/// # Safety
/// For the shim's sysctl handlers only; no lock of the driver's is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qpass_limits_changed() {
    settle_limits();
    crate::room::tell_blocked();
}

/// `kern.cam.qpass.zerocopy_min`: bytes from which on a transfer is not copied.
pub fn zerocopy_min() -> u32 {
    // SAFETY: an aligned u_int of the shim's that sysctl(9) writes whole.
    unsafe { qpass_zerocopy_min.load(Ordering::Relaxed) }
}

/// `kern.cam.qpass.allow_paddr`: CCBs may carry physical addresses.
pub fn allow_paddr() -> bool {
    // SAFETY: an aligned int of the shim's that sysctl(9) writes whole.
    unsafe { qpass_allow_paddr.load(Ordering::Relaxed) != 0 }
}
