//! A periph like da(4) on every device: what the module does to a device that
//! all share is seen by its other drivers first.

use super::{
    Device, EDT, action, cam_periph_error, new_path_now, of, queue, xpt_free_path,
    xpt_setup_ccb_flags,
};
use crate::{sys, thread::broken};
use std::{
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

/// How long a neighbour's read may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A read that the neighbour waits for.
struct Read {
    periph: sys::cam_periph,
    ccb: sys::ccb,
    block: [u8; 512],
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Clone, Copy)]
enum State {
    /// Somebody waits.
    Waited,
    /// Nobody waits any more: who completes it frees it.
    Abandoned,
    /// It ended, with that status.
    Ended(u32),
}

/// Frees a read that is over.
unsafe fn free(read: *mut Read) {
    // SAFETY: the caller's, and nobody else's.
    unsafe {
        xpt_free_path((*read).periph.path);
        drop(Box::from_raw(read));
    }
}

/// READ(10) of the first block.
pub(super) fn read_10(ccb: &mut sys::ccb, block: &mut [u8; 512]) {
    // SAFETY: plain data.
    let csio = unsafe { &mut ccb.csio };
    csio.ccb_h.func_code = sys::XPT_SCSI_IO;
    csio.ccb_h.flags |= sys::CAM_DIR_IN;
    csio.data_ptr = block.as_mut_ptr();
    csio.dxfer_len = block.len() as u32;
    csio.sense_len = size_of::<sys::scsi_sense_data>() as u8;
    csio.tag_action = sys::MSG_SIMPLE_Q_TAG as u8;
    csio.cdb_len = 10;
    csio.cdb_io.cdb_bytes = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
}

/// ata_da.c, adastart(): READ DMA, which every disk has.
pub(super) fn read_dma(ccb: &mut sys::ccb, block: &mut [u8; 512]) {
    // SAFETY: plain data.
    let ataio = unsafe { &mut ccb.ataio };
    ataio.ccb_h.func_code = sys::XPT_ATA_IO;
    ataio.ccb_h.flags |= sys::CAM_DIR_IN;
    ataio.data_ptr = block.as_mut_ptr();
    ataio.dxfer_len = block.len() as u32;
    ataio.cmd.command = 0xc8;
    ataio.cmd.flags = sys::CAM_ATAIO_DMA as u8;
    (ataio.cmd.device, ataio.cmd.sector_count) = (0x40, 1);
}

/// scsi_da.c, dadone(): errors are retried.
unsafe extern "C" fn read_done(periph: *mut sys::cam_periph, ccb: *mut sys::ccb) {
    // SAFETY: the CCB of neighbour_reads(), the device lock held; the periph is
    // the first field of what waits for it.
    unsafe {
        let hdr = &raw mut (*ccb).ccb_h;
        if (*hdr).status & sys::CAM_STATUS_MASK != sys::CAM_REQ_CMP {
            let flags = sys::SF_RETRY_UA | sys::SF_NO_PRINT;
            if cam_periph_error(ccb, sys::CAM_RETRY_SELTO, flags) == sys::ERESTART {
                return;
            }
            if (*hdr).status & sys::CAM_DEV_QFRZN != 0 {
                (*hdr).status &= !sys::CAM_DEV_QFRZN;
                queue::unfreeze(&of((*hdr).path).device);
            }
        }
        let read = (*periph).softc.cast::<Read>();
        let mut state = (*read).state.lock().unwrap();
        if let State::Abandoned = *state {
            drop(state);
            return free(read);
        }
        *state = State::Ended((*hdr).status & sys::CAM_STATUS_MASK);
        (*read).done.notify_all();
    }
}

/// Reads a block of the device as its own driver does, and tells how long it
/// took. `None`: it takes longer than `patience`.
pub fn neighbour_reads(device: &Arc<Device>, patience: Duration) -> Option<Duration> {
    // SAFETY: plain data.
    let (periph, ccb) = unsafe { (core::mem::zeroed(), core::mem::zeroed()) };
    let read = Box::into_raw(Box::new(Read {
        periph,
        ccb,
        block: [0; 512],
        state: Mutex::new(State::Waited),
        done: Condvar::new(),
    }));
    let begun = Instant::now();
    let path = new_path_now(device);
    // SAFETY: the read is this call's, and the callback's until it has ended.
    let status = unsafe {
        let (periph, ccb) = (&raw mut (*read).periph, &raw mut (*read).ccb);
        (*periph).softc = read.cast();
        (*periph).periph_name = c"da".as_ptr().cast_mut();
        (*periph).path = path;
        (*path.cast::<super::Path>()).periph = periph;
        let hdr = &raw mut (*ccb).ccb_h;
        xpt_setup_ccb_flags(hdr, path, sys::QPC_CAM_PRIORITY_NORMAL, 0);
        // scsi_da.c: da_retry_count, da_default_timeout.
        ((*hdr).retry_count, (*hdr).timeout) = (4, 60_000);
        (*hdr).cbfcnp = Some(read_done);
        if let Some(sim) = &device.sim {
            sim.build_read(&mut *ccb, &mut (*read).block);
        }
        device.lock("dastrategy");
        action(ccb);
        device.unlock("dastrategy");
        let state = (*read).state.lock().unwrap();
        let waits = |state: &mut State| matches!(state, State::Waited);
        let done = &(*read).done;
        let (mut state, _) = done.wait_timeout_while(state, patience, waits).unwrap();
        let State::Ended(status) = *state else {
            *state = State::Abandoned;
            return None;
        };
        status
    };
    // Until the callback has left the CCB.
    device.lock("dadone");
    device.unlock("dadone");
    // SAFETY: the read is over.
    unsafe { free(read) };
    let gone = [sys::CAM_DEV_NOT_THERE, sys::CAM_SEL_TIMEOUT];
    if status != sys::CAM_REQ_CMP && !gone.contains(&status) {
        broken(&format!("a neighbour's read ends with status {status:#x}"));
    }
    Some(begun.elapsed())
}

/// Reads a block of each device that is there, and answers such a read as usual. A device that is frozen, or
/// keeps its own driver waiting, ends the process.
pub fn all_neighbours_read() {
    let devices = EDT.devices.lock().unwrap().clone();
    for device in devices {
        if device.sim.as_ref().is_some_and(|sim| !sim.is_ordinary()) {
            continue;
        }
        if neighbour_reads(&device, PATIENCE).is_none() {
            let counts = queue::counts(&device);
            broken(&format!(
                "the disk's own driver waits for longer than {PATIENCE:?}: {counts:?}"
            ));
        }
    }
}
