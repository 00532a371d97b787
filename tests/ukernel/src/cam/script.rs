//! A SIM in front of another one, which ends commands with the statuses that a
//! test has written down.

use super::{PathInq, Sim, device_of, done_with, freeze_simq};
use crate::sys;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

/// How a command ends.
#[derive(Clone, Copy, Debug)]
pub enum Ending {
    /// With this status, the queue frozen or not.
    Status(sys::cam_status, bool),
    /// With this SCSI status.
    Scsi(u32),
    /// With CAM_REQUEUE_REQ, the SIM's own queue frozen until that is seen.
    Requeue,
    /// With CHECK CONDITION and a sense key and its codes.
    Sense(u8, u8, u8),
}

/// The SIM.
pub struct Scripted {
    inner: Arc<dyn Sim>,
    endings: Mutex<VecDeque<Ending>>,
    /// The first CDB byte and the flags of each command that came.
    seen: Mutex<Vec<(u8, u32)>>,
}

impl Scripted {
    /// A SIM that does as `inner` when nothing is written down.
    pub fn new(inner: Arc<dyn Sim>) -> Arc<Self> {
        Arc::new(Scripted {
            inner,
            endings: Mutex::default(),
            seen: Mutex::default(),
        })
    }

    /// Writes down how the next commands end.
    pub fn write(&self, endings: &[Ending]) {
        self.endings.lock().unwrap().extend(endings);
    }

    /// Commands so far that began with that byte.
    pub fn count(&self, opcode: u8) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|s| s.0 == opcode).count()
    }

    /// Takes what came so far, and what was not needed.
    pub fn take(&self) -> (Vec<(u8, u32)>, usize) {
        let seen = core::mem::take(&mut *self.seen.lock().unwrap());
        (
            seen,
            core::mem::take(&mut *self.endings.lock().unwrap()).len(),
        )
    }

    fn answer(&self, ccb: *mut sys::ccb) {
        // SAFETY: the CCB is the SIM's until it is done.
        let csio = unsafe { &mut (*ccb).csio };
        // SAFETY: plain data.
        let opcode = unsafe { csio.cdb_io.cdb_bytes[0] };
        self.seen.lock().unwrap().push((opcode, csio.ccb_h.flags));
        let ending = self.endings.lock().unwrap().pop_front();
        let check = sys::CAM_SCSI_STATUS_ERROR;
        match ending {
            None => self.inner.start(ccb),
            Some(Ending::Status(status, freeze)) => done_with(ccb, status, freeze),
            Some(Ending::Requeue) => {
                freeze_simq(&device_of(ccb));
                done_with(ccb, sys::CAM_REQUEUE_REQ | sys::CAM_RELEASE_SIMQ, true);
            }
            Some(Ending::Scsi(status)) => {
                csio.scsi_status = status as u8;
                done_with(ccb, check, true);
            }
            Some(Ending::Sense(key, asc, ascq)) => {
                csio.scsi_status = sys::SCSI_STATUS_CHECK_COND as u8;
                let sense = [
                    0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0,
                ];
                // SAFETY: sense_data is larger than fixed sense.
                unsafe {
                    let to = (&raw mut csio.sense_data).cast::<u8>();
                    core::ptr::copy_nonoverlapping(sense.as_ptr(), to, sense.len());
                }
                csio.sense_resid = csio.sense_len.saturating_sub(sense.len() as u8);
                done_with(ccb, check | sys::CAM_AUTOSNS_VALID, true);
            }
        }
    }
}

impl Sim for Scripted {
    fn start(&self, ccb: *mut sys::ccb) {
        self.answer(ccb);
    }

    fn abort(&self, ccb: *mut sys::ccb) -> bool {
        self.inner.abort(ccb)
    }

    fn path_inq(&self) -> PathInq {
        self.inner.path_inq()
    }

    fn openings(&self) -> usize {
        self.inner.openings()
    }

    fn inquiry(&self) -> [u8; 36] {
        self.inner.inquiry()
    }

    fn serial(&self) -> &str {
        self.inner.serial()
    }

    fn pull(&self) {
        self.inner.pull();
    }
}
