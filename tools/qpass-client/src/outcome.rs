//! How a command ended: what was moved, what is to be said of it, and the device's
//! own answer, whole.

use crate::{
    decode::{ata, nvme, sense::Sense},
    error::CamStatus,
};
use core::{fmt, ops::Deref};

/// What the device said of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceStatus {
    /// Nothing, or the command did not get there, or its result was not asked for.
    None,
    /// The status byte (SAM-6), and sense data.
    Scsi {
        /// SCSI status.
        status: u8,
        /// Decoded sense data, with the bytes as they came.
        sense: Option<Box<Sense>>,
        /// Sense data of no known format, as they came; else nothing.
        unknown: Vec<u8>,
    },
    /// The registers (ACS-4).
    Ata(ata::Status),
    /// The completion queue entry (NVM Express 2.0).
    Nvme {
        /// The status field.
        status: nvme::Status,
        /// Dword 0: what a command without data answers.
        dword0: u32,
    },
}

/// How a command ended. It is the same for one that did what it was to do and for
/// one that failed, which is a [`CommandError`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes of data that were moved: never more than the command has. Data behind
    /// them are not the device's.
    pub moved: usize,
    /// What the SIM said was left of the transfer, in bytes; below 0 if the device
    /// had more than there was room for.
    pub residual: i32,
    /// CAM status.
    pub cam: CamStatus,
    /// The device's.
    pub device: DeviceStatus,
    /// What the device said of earlier tries of the command, where the library sent
    /// it again; see [`Command::recover`](crate::Command::recover).
    pub earlier: Vec<Sense>,
}

/// What is to be said of a command that was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remark<'a> {
    /// CHECK CONDITION with a key of success: RECOVERED ERROR; COMPLETED; NO SENSE, with
    /// which tapes tell of filemarks, their end, and blocks of another length.
    Sense(&'a Sense),
    /// CONDITION MET, or another good status than GOOD (SAM-6, table 32).
    Status(u8),
}

impl fmt::Display for Remark<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remark::Sense(sense) => sense.fmt(f),
            Remark::Status(status) => f.write_str(scsi_status(*status)),
        }
    }
}

impl Outcome {
    /// The sense data, if there are any.
    pub fn sense(&self) -> Option<&Sense> {
        match &self.device {
            DeviceStatus::Scsi { sense, .. } => sense.as_deref(),
            _ => None,
        }
    }

    /// The sense data as they came, of whatever format: no more than their additional
    /// length says. Nothing if there are none.
    pub fn raw_sense(&self) -> &[u8] {
        match &self.device {
            DeviceStatus::Scsi {
                sense: Some(sense), ..
            } => sense.raw(),
            DeviceStatus::Scsi { unknown, .. } => unknown,
            _ => &[],
        }
    }

    /// The SCSI status byte, of a SCSI command that got to the device.
    pub fn scsi_status(&self) -> Option<u8> {
        match self.device {
            DeviceStatus::Scsi { status, .. } => Some(status),
            _ => None,
        }
    }

    /// An ATA device's registers: of an ATA command, or in sense data (SAT-4).
    pub fn registers(&self) -> Option<&ata::Status> {
        match &self.device {
            DeviceStatus::Ata(registers) => Some(registers),
            _ => self.sense().and_then(|sense| sense.ata.as_ref()),
        }
    }

    /// An NVMe completion's dword 0 and status.
    pub fn nvme(&self) -> Option<(u32, nvme::Status)> {
        match self.device {
            DeviceStatus::Nvme { status, dword0 } => Some((dword0, status)),
            _ => None,
        }
    }

    /// Whether the sense data are of an earlier command: then this one was not
    /// carried out, and an earlier write may be lost.
    pub fn is_deferred(&self) -> bool {
        self.sense().is_some_and(|sense| sense.deferred)
    }

    /// Whether the command was carried out.
    ///
    /// CONDITION MET and the intermediate statuses are, and CHECK CONDITION with the
    /// keys NO SENSE, RECOVERED ERROR and COMPLETED, unless it is of an earlier command.
    pub fn is_success(&self) -> bool {
        use sys_bindings as sys;
        match self.cam.code() {
            sys::CAM_REQ_CMP => !self.is_deferred(),
            sys::CAM_SCSI_STATUS_ERROR => match &self.device {
                DeviceStatus::Scsi { status, sense, .. } => match status {
                    0x04 | 0x10 | 0x14 => true,
                    0x02 => sense.as_ref().is_some_and(|sense| sense.is_success()),
                    _ => false,
                },
                _ => false,
            },
            _ => false,
        }
    }

    /// What is to be said of it, if it was carried out.
    pub fn remark(&self) -> Option<Remark<'_>> {
        match &self.device {
            _ if !self.is_success() => None,
            DeviceStatus::Scsi {
                sense: Some(sense), ..
            } => Some(Remark::Sense(sense)),
            DeviceStatus::Scsi { status, .. } if *status != 0 => Some(Remark::Status(*status)),
            _ => None,
        }
    }

    /// Whether the device has told, with this command or an earlier try of it, that
    /// it was powered on or reset: what was in a volatile cache may be gone.
    pub fn lost_power(&self) -> bool {
        let mut all = self.earlier.iter().chain(self.sense());
        all.any(Sense::is_power_on)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cam)?;
        match &self.device {
            DeviceStatus::None => Ok(()),
            DeviceStatus::Scsi {
                status,
                sense,
                unknown,
            } => {
                if *status != 0 {
                    write!(f, ": {}", scsi_status(*status))?;
                }
                match sense {
                    Some(sense) => write!(f, ": {sense}"),
                    None if unknown.is_empty() => Ok(()),
                    None => f.write_str(": sense data of no known format"),
                }
            }
            DeviceStatus::Ata(registers) => write!(f, ": {registers}"),
            DeviceStatus::Nvme { status, dword0 } => {
                write!(f, ": {status}")?;
                match dword0 {
                    0 => Ok(()),
                    some => write!(f, ", dword 0 {some:#x}"),
                }
            }
        }
    }
}

/// A command that was not carried out: CAM's word on it, the device's, and what was
/// moved all the same. It is an [`Outcome`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandError(pub(crate) Box<Outcome>);

impl CommandError {
    /// The outcome itself.
    pub fn into_outcome(self) -> Outcome {
        *self.0
    }
}

impl Deref for CommandError {
    type Target = Outcome;

    fn deref(&self) -> &Outcome {
        &self.0
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for CommandError {}

/// The name of a SCSI status (SAM-6, table 32).
pub fn scsi_status(status: u8) -> &'static str {
    match status {
        0x00 => "GOOD",
        0x02 => "CHECK CONDITION",
        0x04 => "CONDITION MET",
        0x08 => "BUSY",
        0x10 => "INTERMEDIATE",
        0x14 => "INTERMEDIATE-CONDITION MET",
        0x18 => "RESERVATION CONFLICT",
        0x22 => "COMMAND TERMINATED",
        0x28 => "TASK SET FULL",
        0x30 => "ACA ACTIVE",
        0x40 => "TASK ABORTED",
        _ => "unknown status",
    }
}
