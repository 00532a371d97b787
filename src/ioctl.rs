//! The ioctl(2) interface, parsed once at the door into Rust types.
//!
//! pass(4) is the reference: its numbers, its checks in its order, its errnos.

use crate::kpi::errno::{E2BIG, EINVAL, ENODEV, ENOTTY, Result};
use core::ffi::c_ulong;
use sys_bindings as sys;

bitflags::bitflags! {
    /// `ccb_flags` that a user may not set, from cam_ccb.h.
    #[derive(Clone, Copy)]
    struct Refused: u32 {
        /// The completion is called without the device lock: not a user's say.
        const UNLOCKED = sys::CAM_UNLOCKED;
        /// The CDB is at a physical address.
        const CDB_PHYS = sys::CAM_CDB_PHYS;
        /// `sense_data` is the address of the sense buffer.
        const SENSE_PTR = sys::CAM_SENSE_PTR;
        /// `sense_data` is the physical address of the sense buffer.
        const SENSE_PHYS = sys::CAM_SENSE_PHYS;
    }
}

/// Which ioctl it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// CAMIOCOMMAND: send one CCB and wait for it.
    Command,
    /// CAMIOQUEUE: send one CCB and go on.
    Queue,
    /// CAMIOGET: fetch one completed CCB.
    Get,
}

impl Request {
    /// # Errors
    /// `ENOTTY`: not one of this driver's.
    pub fn parse(cmd: c_ulong) -> Result<Self> {
        match cmd {
            sys::QPC_CAMIOCOMMAND => Ok(Request::Command),
            sys::QPC_CAMIOQUEUE => Ok(Request::Queue),
            sys::QPC_CAMIOGET => Ok(Request::Get),
            _ => Err(ENOTTY),
        }
    }
}

/// Where a CCB's data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the user: copied out when reaped.
    In,
    /// From the user: copied in when queued.
    Out,
    /// Both.
    Both,
}

impl Direction {
    /// Whether the device reads what the user wrote.
    pub fn copies_in(self) -> bool {
        self != Direction::In
    }

    /// Whether the user reads what the device wrote.
    pub fn copies_out(self) -> bool {
        self != Direction::Out
    }
}

/// The data of a CCB: `len` bytes at one user address, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Which way.
    pub direction: Direction,
    /// Bytes.
    pub len: u32,
}

/// What a CCB asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// XPT_SCSI_IO: a command for the device.
    Scsi(Option<Transfer>),
    /// A question that CAM answers at once, without the device: XPT_NOOP,
    /// XPT_PATH_INQ, XPT_GDEV_TYPE.
    Immediate,
}

/// The fields of a CCB that decide what becomes of it.
#[derive(Clone, Copy)]
pub struct Fields {
    /// `ccb_h.func_code`.
    pub func_code: sys::xpt_opcode,
    /// `ccb_h.flags`.
    pub flags: u32,
    /// `csio.dxfer_len`, in bytes.
    pub dxfer_len: u32,
}

impl Operation {
    /// Reads a CCB's fields.
    ///
    /// # Errors
    /// `EINVAL`: a flag, an opcode or a data format that is not taken;
    /// `ENODEV`: an opcode for the XPT device only.
    pub fn parse(fields: Fields) -> Result<Self> {
        let Fields {
            func_code,
            flags,
            dxfer_len,
        } = fields;
        if Refused::from_bits_truncate(flags).intersects(Refused::all()) {
            return Err(EINVAL);
        }
        if func_code & sys::XPT_FC_XPT_ONLY != 0 {
            return Err(ENODEV);
        }
        match func_code {
            sys::XPT_SCSI_IO => Ok(Operation::Scsi(transfer(flags, dxfer_len)?)),
            sys::XPT_NOOP | sys::XPT_PATH_INQ | sys::XPT_GDEV_TYPE => Ok(Operation::Immediate),
            _ => Err(EINVAL),
        }
    }

    /// The data, if there is any.
    pub fn transfer(self) -> Option<Transfer> {
        match self {
            Operation::Scsi(transfer) => transfer,
            Operation::Immediate => None,
        }
    }
}

fn transfer(flags: u32, len: u32) -> Result<Option<Transfer>> {
    let direction = match flags & sys::CAM_DIR_MASK {
        sys::CAM_DIR_NONE => return Ok(None),
        sys::CAM_DIR_IN => Direction::In,
        sys::CAM_DIR_OUT => Direction::Out,
        _ => Direction::Both,
    };
    if flags & sys::CAM_DATA_MASK != sys::CAM_DATA_VADDR {
        return Err(EINVAL);
    }
    Ok((len != 0).then_some(Transfer { direction, len }))
}

/// The synchronous call's rule for length: pass(4) answers `E2BIG` there and
/// `EINVAL` for the queued one.
///
/// # Errors
/// `E2BIG`.
pub fn fits_synchronous(transfer: Option<Transfer>, max: u32) -> Result {
    match transfer {
        Some(transfer) if transfer.len > max => Err(E2BIG),
        _ => Ok(()),
    }
}

/// The queued call's rule for length.
///
/// # Errors
/// `EINVAL`.
pub fn fits_queued(transfer: Option<Transfer>, max: u32) -> Result {
    fits_synchronous(transfer, max).map_err(|_| EINVAL)
}

/// The priority that a CCB is scheduled with: a user's 0 and other values that
/// rank above recovery are moved below it, as pass(4) does.
pub fn priority(asked: u32) -> u32 {
    if asked <= sys::QPC_CAM_PRIORITY_OOB {
        asked + sys::QPC_CAM_PRIORITY_OOB + 1
    } else {
        asked
    }
}

/// Bytes that a device moved: `dxfer_len` less `resid`, and 0 for a residual
/// that makes no sense.
pub fn transferred(len: u32, resid: u32) -> u32 {
    len.saturating_sub(resid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scsi(flags: u32, dxfer_len: u32) -> Result<Operation> {
        Operation::parse(Fields {
            func_code: sys::XPT_SCSI_IO,
            flags,
            dxfer_len,
        })
    }

    #[test]
    fn an_opcode_for_the_xpt_only_is_enodev_and_an_unknown_one_einval() {
        let parse = |func_code| {
            Operation::parse(Fields {
                func_code,
                flags: 0,
                dxfer_len: 0,
            })
        };
        assert_eq!(parse(sys::XPT_SCAN_BUS), Err(ENODEV));
        assert_eq!(parse(0x7e), Err(EINVAL));
        assert_eq!(parse(sys::XPT_PATH_INQ), Ok(Operation::Immediate));
    }

    #[test]
    fn flags_that_hand_addresses_to_the_kernel_are_refused() {
        for flag in [
            sys::CAM_UNLOCKED,
            sys::CAM_CDB_PHYS,
            sys::CAM_SENSE_PTR,
            sys::CAM_SENSE_PHYS,
        ] {
            assert_eq!(scsi(sys::CAM_DIR_NONE | flag, 0), Err(EINVAL));
        }
        for format in [
            sys::CAM_DATA_PADDR,
            sys::CAM_DATA_SG_PADDR,
            sys::CAM_DATA_BIO,
        ] {
            assert_eq!(scsi(sys::CAM_DIR_IN | format, 512), Err(EINVAL));
        }
    }

    #[test]
    fn a_transfer_has_a_direction_and_a_length() {
        let of = |direction| {
            Ok(Operation::Scsi(Some(Transfer {
                direction,
                len: 512,
            })))
        };
        assert_eq!(scsi(sys::CAM_DIR_IN, 512), of(Direction::In));
        assert_eq!(scsi(sys::CAM_DIR_OUT, 512), of(Direction::Out));
        assert_eq!(scsi(sys::CAM_DIR_BOTH, 512), of(Direction::Both));
        assert_eq!(scsi(sys::CAM_DIR_NONE, 512), Ok(Operation::Scsi(None)));
        assert_eq!(scsi(sys::CAM_DIR_IN, 0), Ok(Operation::Scsi(None)));
    }

    #[test]
    fn the_limit_is_inclusive() {
        let transfer = Some(Transfer {
            direction: Direction::In,
            len: 4096,
        });
        assert_eq!(fits_queued(transfer, 4096), Ok(()));
        assert_eq!(fits_queued(transfer, 4095), Err(EINVAL));
        assert_eq!(fits_synchronous(transfer, 4095), Err(E2BIG));
    }

    #[test]
    fn no_user_priority_ranks_above_recovery() {
        assert!(priority(0) > sys::QPC_CAM_PRIORITY_OOB);
        assert!(priority(sys::QPC_CAM_PRIORITY_OOB) > sys::QPC_CAM_PRIORITY_OOB);
        assert_eq!(
            priority(sys::QPC_CAM_PRIORITY_NORMAL),
            sys::QPC_CAM_PRIORITY_NORMAL
        );
    }

    #[test]
    fn a_residual_larger_than_the_transfer_means_nothing_moved() {
        assert_eq!(transferred(512, 0), 512);
        assert_eq!(transferred(512, 500), 12);
        assert_eq!(transferred(512, u32::MAX), 0);
    }
}
