//! What can go wrong: a system call, or a command.

use crate::{errno::Errno, sense::Sense};
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

/// What the device said of a command that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceStatus {
    /// Nothing, or the command did not get there.
    None,
    /// The status byte (SAM-6), and sense data.
    Scsi {
        /// SCSI status.
        status: u8,
        /// Decoded sense data.
        sense: Option<Sense>,
    },
    /// The status and the error register (ACS-4).
    Ata {
        /// Status.
        status: u8,
        /// Error.
        error: u8,
    },
    /// The status field of the completion (NVM Express 2.0).
    Nvme {
        /// Status code type.
        sct: u8,
        /// Status code.
        sc: u8,
    },
}

/// A command failed: CAM's word on it, and the device's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandError {
    /// CAM status.
    pub cam: CamStatus,
    /// The device's.
    pub device: DeviceStatus,
}

impl CommandError {
    /// The sense data, if there are any.
    pub fn sense(&self) -> Option<Sense> {
        match self.device {
            DeviceStatus::Scsi { sense, .. } => sense,
            _ => None,
        }
    }
}

/// SAM-6, table 32.
fn scsi_status(status: u8) -> &'static str {
    match status {
        0x00 => "GOOD",
        0x02 => "CHECK CONDITION",
        0x04 => "CONDITION MET",
        0x08 => "BUSY",
        0x18 => "RESERVATION CONFLICT",
        0x28 => "TASK SET FULL",
        0x30 => "ACA ACTIVE",
        0x40 => "TASK ABORTED",
        _ => "unknown status",
    }
}

/// NVM Express 2.0, figures 96 to 103: the common ones.
fn nvme_status(sct: u8, sc: u8) -> &'static str {
    match (sct, sc) {
        (0, 0x01) => "invalid command opcode",
        (0, 0x02) => "invalid field in command",
        (0, 0x04) => "data transfer error",
        (0, 0x05) => "aborted due to power loss",
        (0, 0x06) => "internal error",
        (0, 0x07) => "abort requested",
        (0, 0x0b) => "invalid namespace or format",
        (0, 0x20) => "namespace is write protected",
        (0, 0x80) => "LBA out of range",
        (0, 0x81) => "capacity exceeded",
        (0, 0x82) => "namespace not ready",
        (1, 0x09) => "invalid log page",
        (1, 0x80) => "conflicting attributes",
        (2, 0x80) => "write fault",
        (2, 0x81) => "unrecovered read error",
        (2, 0x85) => "compare failure",
        (2, 0x86) => "access denied",
        _ => "unknown status",
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cam)?;
        match self.device {
            DeviceStatus::None => Ok(()),
            DeviceStatus::Scsi { status, sense } => {
                if status != 0 {
                    write!(f, ": {}", scsi_status(status))?;
                }
                match sense {
                    Some(sense) => write!(f, ": {sense}"),
                    None => Ok(()),
                }
            }
            DeviceStatus::Ata { status, error } => {
                write!(f, ": status {status:#04x}, error {error:#04x}")?;
                let why = [
                    (0x80, "interface CRC error"),
                    (0x40, "uncorrectable data"),
                    (0x10, "address not found"),
                    (0x04, "command aborted"),
                ];
                match why.iter().find(|(bit, _)| error & bit != 0) {
                    Some((_, text)) => write!(f, " {text}"),
                    None => Ok(()),
                }
            }
            DeviceStatus::Nvme { sct, sc } => {
                write!(f, ": type {sct:x}h code {sc:02x}h {}", nvme_status(sct, sc))
            }
        }
    }
}

impl std::error::Error for CommandError {}

/// How a command failed that was given to a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The driver did not take it.
    Refused(Errno),
    /// It was sent, or cancelled, and did not end with CAM_REQ_CMP.
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
