//! cam_periph_error(9) and the recovery that it starts, as in FreeBSD 14.2's
//! cam_periph.c and scsi_all.c. What it prints is left out.

use super::{CCB, DoneFn, EVENTS, Event, action, counts, device_of, of, queue, xpt_free_ccb};
use crate::{lock::mtx_assert_owned, memory, sys};
use std::{ffi::c_int, sync::Arc};

/// What is to be done about sense data: scsi_all.h's `SS_` values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Do {
    Nothing,
    Retry,
    Fail,
    /// START STOP UNIT, then the command again.
    Start,
    /// TEST UNIT READY, many times if it must be, then the command again.
    Test {
        many: bool,
    },
}

/// The errno, and whether it costs a retry.
#[derive(Clone, Copy)]
struct Action {
    what: Do,
    errno: c_int,
    costs: bool,
    unit_attention: bool,
}

impl Action {
    const fn new(what: Do, errno: u32, costs: bool) -> Self {
        Action {
            what,
            errno: errno as c_int,
            costs,
            unit_attention: false,
        }
    }
}

/// scsi_all.c, scsi_extract_sense_ccb(): whether it is about an earlier command,
/// the key, and the additional codes.
unsafe fn sense_of(ccb: *mut sys::ccb) -> Option<(bool, u8, u8, u8)> {
    // SAFETY: the caller's CCB.
    unsafe {
        let hdr = &raw const (*ccb).ccb_h;
        let csio = &raw const (*ccb).csio;
        if (*hdr).func_code != sys::XPT_SCSI_IO
            || (*hdr).status & sys::CAM_STATUS_MASK != sys::CAM_SCSI_STATUS_ERROR
            || u32::from((*csio).scsi_status) != sys::SCSI_STATUS_CHECK_COND
            || (*hdr).status & sys::CAM_AUTOSNS_VALID == 0
            || (*hdr).flags & sys::CAM_SENSE_PHYS != 0
        {
            return None;
        }
        let bytes: &[u8; 14] = &*(&raw const (*csio).sense_data).cast();
        let len = usize::from((*csio).sense_len.saturating_sub((*csio).sense_resid));
        let at = |i: usize| if i < len { bytes[i] } else { 0 };
        match at(0) & 0x7f {
            code @ (0x70 | 0x71) => Some((code == 0x71, at(2) & 0xf, at(12), at(13))),
            code @ (0x72 | 0x73) => Some((code == 0x73, at(1) & 0xf, at(2), at(3))),
            _ => None,
        }
    }
}

/// scsi_all.c, scsi_error_action(), with those of its tables' entries that tests
/// come to.
unsafe fn error_action(ccb: *mut sys::ccb, sense_flags: u32) -> Action {
    let default = Action::new(Do::Retry, sys::EIO, true);
    // SAFETY: the caller's CCB.
    let mut action = match unsafe { sense_of(ccb) } {
        None => default,
        // A deferred error: the retry has no errno of its own.
        Some((true, ..)) => Action::new(Do::Retry, 0, true),
        Some((false, key, asc, ascq)) => {
            let mut action = match (asc, ascq) {
                (0x04, 0x01) => Action::new(Do::Test { many: true }, sys::EBUSY, true),
                (0x04, 0x02) => Action::new(Do::Start, sys::ENXIO, true),
                (0x04, 0x03 | 0x0b | 0x0c) => Action::new(Do::Fail, sys::ENXIO, false),
                (0x04, 0x04..=0x09) => Action::new(Do::Fail, sys::EBUSY, false),
                (0x04, 0x0a) => Action::new(Do::Test { many: true }, sys::ENXIO, true),
                (0x28 | 0x29 | 0x3a, 0x00) => Action::new(Do::Fail, sys::ENXIO, false),
                (0x29, 0x01..=0x07) | (0x2a, _) | (0x3f, 0x0e) => default,
                (0x44, 0x00) => Action::new(Do::Fail, sys::EIO, false),
                _ => match key {
                    0x0 | 0x1 | 0xc | 0xe | 0xf => Action::new(Do::Nothing, 0, false),
                    0x2 | 0x3 | 0x4 | 0xb => default,
                    0x5 => Action::new(Do::Fail, sys::EINVAL, false),
                    0x6 => Action::new(Do::Fail, sys::ENXIO, false),
                    0x7 => Action::new(Do::Fail, sys::EACCES, false),
                    0x8 => Action::new(Do::Fail, sys::ENOSPC, false),
                    _ => Action::new(Do::Fail, sys::EIO, false),
                },
            };
            if key == 0x1 {
                action = Action::new(Do::Nothing, 0, false);
            } else if key == 0x6 {
                if sense_flags & sys::SF_RETRY_UA != 0 && action.what == Do::Fail {
                    (action.what, action.costs) = (Do::Retry, true);
                }
                action.unit_attention = true;
            }
            action
        }
    };
    let recovers = matches!(action.what, Do::Start | Do::Test { .. });
    if recovers && sense_flags & sys::SF_NO_RECOVERY != 0
        || action.what == Do::Retry && sense_flags & sys::SF_NO_RETRY != 0
    {
        action.what = Do::Fail;
    }
    action
}

/// How a device's queue is released after an error.
#[derive(Default)]
struct Release {
    flags: u32,
    openings: u32,
    timeout: u32,
}

/// cam_periph.c: `periph_selto_delay`, and that for a shortage or a busy SIM, in
/// milliseconds.
const SELTO_DELAY: u32 = 1000;
const BUSY_DELAY: u32 = 500;

/// cam_periph.c, camperiphscsistatuserror().
unsafe fn status_error(ccb: *mut sys::ccb, sense_flags: u32, release: &mut Release) -> c_int {
    // SAFETY: a completed XPT_SCSI_IO, the device lock held.
    unsafe {
        let hdr = &raw mut (*ccb).ccb_h;
        let status = u32::from((*ccb).csio.scsi_status);
        match status {
            sys::SCSI_STATUS_OK
            | sys::SCSI_STATUS_COND_MET
            | sys::SCSI_STATUS_INTERMED
            | sys::SCSI_STATUS_INTERMED_COND_MET => 0,
            sys::SCSI_STATUS_CMD_TERMINATED | sys::SCSI_STATUS_CHECK_COND => {
                sense_error(ccb, sense_flags, release)
            }
            sys::SCSI_STATUS_QUEUE_FULL if counts(&device_of(ccb)).active != 0 => {
                let counts = counts(&device_of(ccb));
                // The default quirk entry's mintags.
                let openings = counts.active.max(2);
                if openings < counts.active.wrapping_add(counts.openings) {
                    release.flags = sys::RELSIM_ADJUST_OPENINGS;
                } else {
                    release.flags = sys::RELSIM_RELEASE_AFTER_CMDCMPLT;
                }
                release.openings = openings as u32;
                sys::ERESTART
            }
            sys::SCSI_STATUS_QUEUE_FULL | sys::SCSI_STATUS_BUSY => {
                if is_invalid(ccb) {
                    return sys::ENXIO as c_int;
                }
                let free = sense_flags & sys::SF_RETRY_BUSY != 0;
                if !free && (*hdr).retry_count == 0 {
                    return sys::EIO as c_int;
                }
                (*hdr).retry_count -= u16::from(!free);
                release.flags =
                    sys::RELSIM_RELEASE_AFTER_TIMEOUT | sys::RELSIM_RELEASE_AFTER_CMDCMPLT;
                release.timeout = 1000;
                sys::ERESTART
            }
            _ => sys::EIO as c_int,
        }
    }
}

fn is_recovery(ccb: *mut sys::ccb) -> bool {
    // SAFETY: the caller's CCB.
    let done = unsafe { (*ccb).ccb_h.cbfcnp };
    done.is_some_and(|done| core::ptr::fn_addr_eq(done, recovered as DoneFn))
}

/// cam_periph.c, camperiphscsisenseerror(): the CCB may come out of it as a
/// command of CAM's own, which brings the original back when it is through.
unsafe fn sense_error(ccb: *mut sys::ccb, sense_flags: u32, release: &mut Release) -> c_int {
    // SAFETY: a completed XPT_SCSI_IO, the device lock held.
    unsafe {
        let hdr = &raw mut (*ccb).ccb_h;
        let periph = of((*hdr).path).periph;
        if (*periph).flags & sys::CAM_PERIPH_RECOVERY_INPROG != 0 && !is_recovery(ccb) {
            return sys::ERESTART;
        }
        let mut action = error_action(ccb, sense_flags);
        if is_recovery(ccb) {
            let opcode = (*ccb).csio.cdb_io.cdb_bytes[0];
            if matches!(action.what, Do::Start) && opcode == START_STOP_UNIT
                || matches!(action.what, Do::Test { .. }) && opcode == TEST_UNIT_READY
            {
                action = Action::new(Do::Retry, sys::EIO, true);
                release.flags = sys::RELSIM_RELEASE_AFTER_TIMEOUT;
                release.timeout = 500;
            }
        }
        if action.unit_attention {
            tell_unit_attention(ccb);
        }
        if action.costs {
            if (*hdr).retry_count == 0 || is_invalid(ccb) {
                return action.errno;
            }
            (*hdr).retry_count -= 1;
        }
        let (retries, cdb) = match action.what {
            Do::Nothing => return 0,
            Do::Retry => return sys::ERESTART,
            Do::Fail => return action.errno,
            Do::Start => (1, [START_STOP_UNIT, 0, 0, 0, 1, 0]),
            Do::Test { many } => {
                let failed = sys::CAM_PERIPH_RECOVERY_WAIT_FAILED;
                let polls = many && (*periph).flags & failed == 0;
                if polls {
                    (*periph).flags |= sys::CAM_PERIPH_RECOVERY_WAIT;
                }
                release.flags = sys::RELSIM_RELEASE_AFTER_TIMEOUT;
                release.timeout = 500;
                (if polls { 120 } else { 1 }, [TEST_UNIT_READY; 6])
            }
        };
        let saved = memory::alloc(size_of::<sys::ccb>(), CCB, sys::M_NOWAIT | sys::M_ZERO);
        if saved.is_null() {
            return action.errno;
        }
        // The freeze of this error goes with the ERESTART, and is not the
        // original's any more.
        (*hdr).status &= !sys::CAM_DEV_QFRZN;
        let saved = saved.cast::<sys::ccb>();
        copy_scsiio(ccb, saved);
        (*periph).flags |= sys::CAM_PERIPH_RECOVERY_INPROG;
        fill(ccb, &cdb, retries);
        // It goes first, and nothing else goes until the original is queued.
        (*hdr).pinfo.priority -= 1;
        (*hdr).flags |= sys::CAM_DEV_QFREEZE;
        (*hdr).periph_priv.entries[0].ptr = saved.cast();
        sys::ERESTART
    }
}

const TEST_UNIT_READY: u8 = 0;
const START_STOP_UNIT: u8 = 0x1b;

/// scsi_all.c, scsi_test_unit_ready() and scsi_start_stop(), by way of
/// cam_fill_csio(): the header keeps its path and place.
unsafe fn fill(ccb: *mut sys::ccb, cdb: &[u8; 6], retries: u16) {
    // SAFETY: an XPT_SCSI_IO, which the caller has saved.
    unsafe {
        let csio = &mut (*ccb).csio;
        csio.ccb_h.flags = sys::CAM_DIR_NONE;
        csio.ccb_h.xflags = 0;
        csio.ccb_h.retry_count = retries;
        csio.ccb_h.cbfcnp = Some(recovered);
        csio.ccb_h.timeout = 5000;
        (csio.data_ptr, csio.dxfer_len) = (core::ptr::null_mut(), 0);
        csio.sense_len = size_of::<sys::scsi_sense_data>() as u8;
        csio.cdb_len = cdb.len() as u8;
        csio.tag_action = sys::MSG_SIMPLE_Q_TAG as u8;
        csio.cdb_io.cdb_bytes = [0; 16];
        csio.cdb_io.cdb_bytes[..cdb.len()].copy_from_slice(cdb);
    }
}

/// The copy is as long as a `ccb_scsiio`, and leaves what tells where the CCB was
/// allocated.
unsafe fn copy_scsiio(from: *mut sys::ccb, to: *mut sys::ccb) {
    // SAFETY: two CCBs of the caller's.
    unsafe {
        let alloc_flags = (*to).ccb_h.alloc_flags;
        let len = size_of::<sys::ccb_scsiio>();
        core::ptr::copy_nonoverlapping(from.cast::<u8>(), to.cast::<u8>(), len);
        (*to).ccb_h.alloc_flags = alloc_flags;
    }
}

/// cam_periph.c, camperiphdone(): a recovery command has ended; the original is
/// sent again, for the last time if the recovery failed.
unsafe extern "C" fn recovered(periph: *mut sys::cam_periph, ccb: *mut sys::ccb) {
    // SAFETY: a CCB of sense_error(), the device lock held.
    unsafe {
        let hdr = &raw mut (*ccb).ccb_h;
        let path = (*hdr).path;
        let device = of(path).device.clone();
        let mut error = 0;
        if (*hdr).status & sys::CAM_STATUS_MASK != sys::CAM_REQ_CMP {
            error = cam_periph_error(ccb, 0, sys::SF_RETRY_UA | sys::SF_NO_PRINT);
            if error == sys::ERESTART {
                return queue::unfreeze(&device);
            }
            if (*hdr).status & sys::CAM_DEV_QFRZN != 0 {
                queue::unfreeze(&device);
                (*hdr).status &= !sys::CAM_DEV_QFRZN;
            }
        }
        let waited = (*periph).flags & sys::CAM_PERIPH_RECOVERY_WAIT != 0;
        if waited && (*ccb).csio.cdb_io.cdb_bytes[0] == TEST_UNIT_READY {
            (*periph).flags &= !sys::CAM_PERIPH_RECOVERY_WAIT;
            if error != 0 && (*hdr).retry_count == 0 {
                (*periph).flags |= sys::CAM_PERIPH_RECOVERY_WAIT_FAILED;
            }
        }
        let saved = (*hdr).periph_priv.entries[0].ptr.cast::<sys::ccb>();
        (*saved).ccb_h.periph_links = (*hdr).periph_links;
        copy_scsiio(saved, ccb);
        xpt_free_ccb(saved);
        if !is_recovery(ccb) {
            (*periph).flags &= !sys::CAM_PERIPH_RECOVERY_INPROG;
        }
        if error != 0 {
            (*hdr).retry_count = 0;
        }
        action(ccb);
        // That of CAM_DEV_QFREEZE.
        queue::unfreeze(&device);
    }
}

fn is_invalid(ccb: *mut sys::ccb) -> bool {
    // SAFETY: a CCB of a periph's.
    unsafe { (*of((*ccb).ccb_h.path).periph).flags & sys::CAM_PERIPH_INVALID != 0 }
}

/// AC_UNIT_ATTENTION carries a copy of the CCB.
unsafe fn tell_unit_attention(ccb: *mut sys::ccb) {
    let mut data = vec![0u64; size_of::<sys::ccb_scsiio>().div_ceil(8)];
    // SAFETY: the caller's CCB, which is longer.
    unsafe { core::ptr::copy_nonoverlapping(ccb.cast(), data.as_mut_ptr(), data.len()) };
    EVENTS.put(Event {
        code: sys::AC_UNIT_ATTENTION,
        device: device_of(ccb),
        data,
        value: 0,
        work: None,
    });
}

/// cam_periph_error(9): cam_periph.c, cam_periph_error().
pub(crate) unsafe extern "C" fn cam_periph_error(
    ccb: *mut sys::ccb,
    cam_flags: sys::cam_flags,
    sense_flags: u32,
) -> c_int {
    let device = device_of(ccb);
    mtx_assert_owned(device.mtx, "cam_periph_error");
    let mut release = Release::default();
    // SAFETY: a completed CCB, the device lock held.
    unsafe {
        let hdr = &raw mut (*ccb).ccb_h;
        let frozen = (*hdr).status & sys::CAM_DEV_QFRZN != 0;
        let no_retry = sense_flags & sys::SF_NO_RETRY != 0;
        let status = (*hdr).status & sys::CAM_STATUS_MASK;
        let error = match status {
            sys::CAM_REQ_CMP => 0,
            sys::CAM_SCSI_STATUS_ERROR => status_error(ccb, sense_flags, &mut release),
            sys::CAM_AUTOSENSE_FAIL
            | sys::CAM_UA_ABORT
            | sys::CAM_UA_TERMIO
            | sys::CAM_MSG_REJECT_REC => sys::EIO as c_int,
            sys::CAM_SEL_TIMEOUT
                if cam_flags & sys::CAM_RETRY_SELTO != 0
                    && (*hdr).retry_count > 0
                    && !is_invalid(ccb) =>
            {
                (*hdr).retry_count -= 1;
                release.flags = sys::RELSIM_RELEASE_AFTER_TIMEOUT;
                release.timeout = SELTO_DELAY;
                sys::ERESTART
            }
            sys::CAM_SEL_TIMEOUT | sys::CAM_DEV_NOT_THERE => {
                // The device has gone, and its drivers hear of it.
                lost(&device);
                sys::ENXIO as c_int
            }
            sys::CAM_REQ_INVALID
            | sys::CAM_PATH_INVALID
            | sys::CAM_NO_HBA
            | sys::CAM_PROVIDE_FAIL
            | sys::CAM_REQ_TOO_BIG
            | sys::CAM_LUN_INVALID
            | sys::CAM_TID_INVALID
            | sys::CAM_FUNC_NOTAVAIL => sys::EINVAL as c_int,
            sys::CAM_SCSI_BUS_RESET | sys::CAM_BDR_SENT | sys::CAM_REQUEUE_REQ => {
                if is_invalid(ccb) {
                    sys::ENXIO as c_int
                } else if no_retry {
                    sys::EIO as c_int
                } else {
                    sys::ERESTART
                }
            }
            // Every other one, CAM_REQ_ABORTED among them.
            _ => {
                if matches!(status, sys::CAM_RESRC_UNAVAIL | sys::CAM_BUSY) {
                    release.flags = sys::RELSIM_RELEASE_AFTER_TIMEOUT;
                    release.timeout = BUSY_DELAY;
                }
                if is_invalid(ccb) {
                    sys::ENXIO as c_int
                } else if (*hdr).retry_count == 0 || no_retry {
                    sys::EIO as c_int
                } else {
                    (*hdr).retry_count -= 1;
                    sys::ERESTART
                }
            }
        };
        if error == sys::ERESTART || error == 0 {
            if frozen {
                (*hdr).status &= !sys::CAM_DEV_QFRZN;
            }
            if error == sys::ERESTART {
                action(ccb);
            }
            if frozen {
                let Release {
                    flags,
                    openings,
                    timeout,
                } = release;
                queue::rel_simq(&device, flags, openings, timeout, false);
            }
        }
        error
    }
}

fn lost(device: &Arc<super::Device>) {
    EVENTS.put(Event {
        code: sys::AC_LOST_DEVICE,
        device: device.clone(),
        data: Vec::new(),
        value: 0,
        work: None,
    });
}

/// cam_release_devq(9): an XPT_REL_SIMQ.
pub(crate) unsafe extern "C" fn cam_release_devq(
    path: *mut sys::cam_path,
    relsim: u32,
    openings: u32,
    timeout: u32,
    count_only: c_int,
) -> u32 {
    let device = &of(path).device;
    mtx_assert_owned(device.mtx, "cam_release_devq");
    queue::rel_simq(device, relsim, openings, timeout, count_only != 0)
}
