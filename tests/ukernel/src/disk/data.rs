//! A command's data: where it is, by each format that a CCB may have.

use crate::{busdma::Run, sys, thread::broken, vm};
use std::sync::atomic::{AtomicU64, Ordering};

/// Commands that came with pages.
pub static UNMAPPED: AtomicU64 = AtomicU64::new(0);
/// Commands that came with physical addresses.
pub static PHYSICAL: AtomicU64 = AtomicU64::new(0);

/// The memory of a CCB that has data, as its format says.
pub(super) fn runs(
    unmapped: bool,
    flags: u32,
    data: *mut u8,
    segments: u16,
    len: usize,
) -> Vec<Run> {
    let format = flags & sys::CAM_DATA_MASK;
    if format == sys::CAM_DATA_BIO {
        if !unmapped {
            broken("a SIM that takes no unmapped I/O is given some");
        }
        // SAFETY: the CCB names a bio, which stays until it is done.
        let bio = unsafe { &*data.cast::<sys::bio>() };
        let device_writes = flags & sys::CAM_DIR_MASK != sys::CAM_DIR_OUT;
        UNMAPPED.fetch_add(1, Ordering::Relaxed);
        return vec![Run {
            parts: vm::pieces(bio, len, device_writes),
            unmapped: true,
        }];
    }
    // A physical address is the address itself here.
    if format & sys::CAM_DATA_ISPHYS != 0 {
        PHYSICAL.fetch_add(1, Ordering::Relaxed);
    }
    if format != sys::CAM_DATA_SG && format != sys::CAM_DATA_SG_PADDR {
        return vec![Run::mapped(data, len)];
    }
    let segment = |i| {
        // SAFETY: the CCB's list has so many segments.
        let segment = unsafe { *data.cast::<sys::bus_dma_segment_t>().add(i) };
        Run::mapped(segment.ds_addr as *mut u8, segment.ds_len as usize)
    };
    (0..usize::from(segments)).map(segment).collect()
}

/// The data of a CCB in one piece, from kernel memory by address or by list.
pub(super) struct Gathered {
    pub bytes: Vec<u8>,
    parts: Vec<(*mut u8, usize)>,
}

impl Gathered {
    pub(super) fn of(parts: Vec<(*mut u8, usize)>, len: usize) -> Self {
        let mut bytes = Vec::new();
        for (at, part) in &parts {
            // SAFETY: kernel memory of that length.
            bytes.extend_from_slice(unsafe { core::slice::from_raw_parts(*at, *part) });
        }
        if !parts.is_empty() && bytes.len() != len {
            broken("a CCB's list is not as long as its transfer");
        }
        Gathered { bytes, parts }
    }

    pub(super) fn give_back(&self) {
        let mut at = 0;
        for (to, len) in &self.parts {
            // SAFETY: as in take().
            unsafe { core::ptr::copy_nonoverlapping(self.bytes[at..].as_ptr(), *to, *len) };
            at += len;
        }
    }
}
