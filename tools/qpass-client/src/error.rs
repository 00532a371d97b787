//! What can go wrong: a system call, or a command.

use crate::{errno::Errno, outcome::CommandError};
use core::fmt;
use sys_bindings as sys;

/// A system call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The device, or whatever it was done to.
    pub what: String,
    /// What was to be done.
    pub doing: &'static str,
    /// Why it was not.
    pub errno: Errno,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.what, self.doing, self.errno)
    }
}

impl std::error::Error for Error {}

/// There is no kernel to talk to: why, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoKernel(pub String);

impl fmt::Display for NoKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoKernel {}

/// `ccb_h.status`, with its flags.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CamStatus(pub u32);

macro_rules! statuses {
    ($($name:ident $meaning:literal)*) => {
        const STATUSES: &[(u32, &str, &str)] = &[
            $((sys::$name, stringify!($name), $meaning)),*
        ];
    };
}

// CAM's statuses (cam/cam.h), in words.
statuses! {
    CAM_REQ_INPROG "still in progress"
    CAM_REQ_CMP "completed"
    CAM_REQ_ABORTED "aborted"
    CAM_UA_ABORT "could not be aborted"
    CAM_REQ_CMP_ERR "completed with an error"
    CAM_BUSY "CAM or the controller is busy"
    CAM_REQ_INVALID "not a request that the controller takes"
    CAM_PATH_INVALID "no such bus"
    CAM_DEV_NOT_THERE "the device is not there"
    CAM_UA_TERMIO "could not be terminated"
    CAM_SEL_TIMEOUT "the device did not answer selection"
    CAM_CMD_TIMEOUT "timed out"
    CAM_SCSI_STATUS_ERROR "SCSI error"
    CAM_SCSI_BUS_RESET "the bus was reset"
    CAM_UNCOR_PARITY "parity error"
    CAM_AUTOSENSE_FAIL "failed, and so did the request for sense"
    CAM_NO_HBA "the controller has gone"
    CAM_DATA_RUN_ERR "the device moved more or less than was asked for"
    CAM_UNEXP_BUSFREE "the bus went free"
    CAM_SEQUENCE_FAIL "protocol violation"
    CAM_CCB_LEN_ERR "the CCB's length is wrong"
    CAM_PROVIDE_FAIL "the controller cannot provide it"
    CAM_BDR_SENT "the device was reset"
    CAM_REQ_TERMIO "terminated"
    CAM_UNREC_HBA_ERROR "unrecoverable controller error"
    CAM_REQ_TOO_BIG "too long for the controller"
    CAM_REQUEUE_REQ "to be sent again"
    CAM_ATA_STATUS_ERROR "ATA error"
    CAM_SCSI_IT_NEXUS_LOST "the connection to the device was lost"
    CAM_SMP_STATUS_ERROR "SMP error"
    CAM_REQ_SOFTTIMEOUT "completed too late"
    CAM_NVME_STATUS_ERROR "NVMe error"
    CAM_IDE "initiator detected error"
    CAM_RESRC_UNAVAIL "no resources"
    CAM_INVALID_CDB "invalid CDB"
    CAM_LUN_INVALID "no such LUN"
    CAM_TID_INVALID "no such target"
    CAM_FUNC_NOTAVAIL "the controller does not do that"
    CAM_NO_NEXUS "no connection to the device"
    CAM_SCSI_BUSY "the device is busy"
}

impl CamStatus {
    /// Without the flags.
    pub fn code(self) -> u32 {
        self.0 & sys::CAM_STATUS_MASK
    }

    /// CAM_REQ_CMP.
    pub fn is_good(self) -> bool {
        self.code() == sys::CAM_REQ_CMP
    }

    /// CAM_REQ_ABORTED: it was cancelled.
    pub fn is_aborted(self) -> bool {
        self.code() == sys::CAM_REQ_ABORTED
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        let found = STATUSES.iter().find(|(code, ..)| *code == self.code());
        found.map_or("CAM_?", |(_, name, _)| name)
    }

    fn meaning(self) -> &'static str {
        let found = STATUSES.iter().find(|(code, ..)| *code == self.code());
        found.map_or("unknown status", |(.., meaning)| meaning)
    }
}

impl fmt::Debug for CamStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for CamStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code() {
            code if STATUSES.iter().any(|(known, ..)| *known == code) => {
                write!(f, "{} ({})", self.meaning(), self.name())
            }
            code => write!(f, "CAM status {code:#x}"),
        }
    }
}

/// How a command failed that was given to a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The driver did not take it.
    Refused(Errno),
    /// It was sent, or cancelled, and was not carried out.
    Failed(CommandError),
    /// The device has gone and its completion with it.
    Lost,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused(errno) => write!(f, "not taken: {errno}"),
            Failure::Failed(error) => error.fmt(f),
            Failure::Lost => f.write_str("the device has gone"),
        }
    }
}

impl std::error::Error for Failure {}
