//! The `kern.cam.qpass` sysctls of kmod/shim.c, which are also tunables.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

unsafe extern "C" {
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
