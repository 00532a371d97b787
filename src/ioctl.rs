//! The ioctl(2) interface, parsed once at the door into Rust types.
//!
//! pass(4) is the reference: its numbers, its checks in its order, its errnos.

use core::ffi::c_ulong;
use kpi::{
    errno::{E2BIG, EINVAL, ENODEV, Result},
    fields::{Direction, Field, Fields, Transfer},
};
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

bitflags::bitflags! {
    /// `ccb_flags` that a SIM gets as the user set them, from cam_ccb.h. No other
    /// bit goes through: what in-tree drivers never set, or set only with an
    /// account of their own (CAM_DEV_QFREEZE, CAM_HIGH_POWER), is left out of what
    /// is sent, and comes back as it was.
    #[derive(Clone, Copy)]
    struct Passed: u32 {
        /// CAM does not freeze the device's queue when the command fails.
        const QFRZDIS = sys::CAM_DEV_QFRZDIS;
        /// The kernel recovers from errors as for its own commands.
        const ERR_RECOVER = sys::CAM_PASS_ERR_RECOVER;
        /// Transfer settings are negotiated with this command.
        const NEGOTIATE = sys::CAM_NEGOTIATE;
        /// No sense data is fetched.
        const DIS_AUTOSENSE = sys::CAM_DIS_AUTOSENSE;
        /// The device may not disconnect meanwhile.
        const DIS_DISCONNECT = sys::CAM_DIS_DISCONNECT;
        /// `tag_action` counts.
        const TAG_ACTION_VALID = sys::CAM_TAG_ACTION_VALID;
    }
}

impl Passed {
    /// Those of any command that a device carries out.
    const COMMAND: Passed = Passed::QFRZDIS.union(Passed::ERR_RECOVER);
    /// Those of an XPT_SCSI_IO.
    const SCSI: Passed = Passed::COMMAND
        .union(Passed::NEGOTIATE)
        .union(Passed::DIS_AUTOSENSE)
        .union(Passed::DIS_DISCONNECT)
        .union(Passed::TAG_ACTION_VALID);
}

/// Openings that XPT_REL_SIMQ may give a device: CAM counts them in an int, and
/// takes numbers above for negative ones.
const OPENINGS: core::ops::RangeInclusive<u32> = 1..=u16::MAX as u32;

/// Which ioctl it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// CAMIOCOMMAND: send one CCB and wait for it.
    Command,
    /// CAMIOQUEUE: send one CCB and go on.
    Queue,
    /// CAMIOGET: fetch one completed CCB.
    Get,
    /// QPIOC_INFO: the driver, the device and the open.
    Info,
    /// QPIOC_LIMIT: the open's own ceilings.
    Limit,
    /// QPIOC_CANCEL: take requests back.
    Cancel,
    /// QPIOC_ENTER: submit and reap many.
    Enter,
    /// QPIOC_LIST: what is outstanding.
    List,
    /// Another one, which CAM's periph library may know.
    Other,
}

impl Request {
    /// Reads a request's number.
    pub fn parse(cmd: c_ulong) -> Self {
        match cmd {
            sys::QPC_CAMIOCOMMAND => Request::Command,
            sys::QPC_CAMIOQUEUE => Request::Queue,
            sys::QPC_CAMIOGET => Request::Get,
            sys::QPC_QPIOC_INFO => Request::Info,
            sys::QPC_QPIOC_LIMIT => Request::Limit,
            sys::QPC_QPIOC_CANCEL => Request::Cancel,
            sys::QPC_QPIOC_ENTER => Request::Enter,
            sys::QPC_QPIOC_LIST => Request::List,
            _ => Request::Other,
        }
    }
}

/// How the pointers of a CCB name its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// CAM_DATA_VADDR: by address.
    Address,
    /// CAM_DATA_SG: by the address of a list of so many segments, not 0.
    List(u16),
    /// CAM_DATA_PADDR: by physical address.
    Physical,
    /// CAM_DATA_SG_PADDR: by the (virtual) address of a list of so many
    /// segments, not 0, whose addresses are physical.
    PhysicalList(u16),
}

impl Format {
    /// Whether the kernel follows addresses that it cannot check.
    pub fn is_physical(self) -> bool {
        matches!(self, Format::Physical | Format::PhysicalList(_))
    }
}

/// How a CCB is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// By the device, when CAM has a CCB for it.
    Device,
    /// By CAM, at once.
    Immediate,
    /// By CAM, later, in a CCB that does not come from the device's own
    /// (XPT_FC_USER_CCB).
    UserCcb,
    /// By aborting another request of the same open, which the CCB names by the
    /// user's address of that request's CCB.
    Abort,
    /// By nobody: CAM would refuse it, see [`Unit::refuse`](crate::unit::Unit::refuse).
    Refused,
    /// By an MMC device, synchronously; its data is two pointers away, see
    /// [`mmc`](kpi::mmc).
    Mmc,
}

/// What a CCB asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// How it is carried out.
    pub route: Route,
    /// How its data is named.
    pub format: Format,
    /// Its data: one run, or for XPT_SMP_IO two.
    pub transfers: [Option<Transfer>; 2],
    /// `ccb_flags` that are sent, but for the data format.
    pub flags: u32,
}

impl Operation {
    /// Data-less, answered at once.
    pub const NOTHING: Operation = Operation {
        route: Route::Immediate,
        format: Format::Address,
        transfers: [None, None],
        flags: 0,
    };

    /// Reads a CCB's fields.
    ///
    /// # Errors
    /// `EINVAL`: a flag, an opcode, a data format, a segment count, a kind of tag
    /// or a number of openings that is not taken; `ENODEV`: an opcode for the XPT device only.
    #[inline(always)]
    pub fn parse(fields: &Fields) -> Result<Self> {
        if Refused::from_bits_truncate(fields.flags).intersects(Refused::all()) {
            return Err(EINVAL);
        }
        if fields.func_code & sys::XPT_FC_XPT_ONLY != 0 {
            return Err(ENODEV);
        }
        let device = |passed: Passed, (format, transfer): (Format, Option<Transfer>)| {
            let direction = match transfer {
                Some(_) => fields.flags & sys::CAM_DIR_MASK,
                None => sys::CAM_DIR_NONE,
            };
            Ok(Operation {
                route: Route::Device,
                format,
                transfers: [transfer, None],
                flags: fields.flags & passed.bits() | direction,
            })
        };
        match fields.func_code {
            sys::XPT_SCSI_IO => {
                check_tag(fields)?;
                device(Passed::SCSI, io(fields, Field::Scsi, true)?)
            }
            sys::XPT_ATA_IO => device(Passed::COMMAND, io(fields, Field::Ata, false)?),
            sys::XPT_NVME_IO | sys::XPT_NVME_ADMIN => {
                device(Passed::COMMAND, io(fields, Field::Nvme, true)?)
            }
            // A SIM follows S/G lists here when the flags say so, and CAM does
            // not look: the user's own bytes would be taken for one.
            sys::XPT_SMP_IO if fields.flags & sys::CAM_DATA_MASK != sys::CAM_DATA_VADDR => {
                Err(EINVAL)
            }
            sys::XPT_SMP_IO => Ok(Operation {
                route: Route::Device,
                format: Format::Address,
                transfers: [
                    transfer(Field::SmpRequest, Direction::Out, fields.lens[0])?,
                    transfer(Field::SmpResponse, Direction::In, fields.lens[1])?,
                ],
                flags: fields.flags & Passed::COMMAND.bits() | sys::CAM_DIR_BOTH,
            }),
            // Several SIMs divide by the number of blocks in a megabyte.
            sys::XPT_CALC_GEOMETRY if fields.block_size > 1 << 20 => Err(EINVAL),
            sys::XPT_RESET_DEV
            | sys::XPT_MMC_SET_TRAN_SETTINGS
            | sys::XPT_MMC_GET_TRAN_SETTINGS => device(Passed::COMMAND, (Format::Address, None)),
            // Its data is one more pointer away.
            sys::XPT_MMC_IO => Ok(Operation {
                flags: fields.flags & (Passed::COMMAND.bits() | sys::CAM_DIR_MASK),
                ..Self::nothing(Route::Mmc)
            }),
            // Nothing is frozen on behalf of an open, so there is nothing of its
            // own that it could release: with this flag CAM adjusts the openings
            // and leaves the freezes of others as they are.
            sys::XPT_REL_SIMQ => match fields.openings {
                Some(openings) if !OPENINGS.contains(&openings) => Err(EINVAL),
                _ => Ok(Operation {
                    flags: sys::CAM_DEV_QFREEZE,
                    ..Operation::NOTHING
                }),
            },
            sys::XPT_ABORT => Ok(Self::nothing(Route::Abort)),
            sys::XPT_REPROBE_LUN => Ok(Self::nothing(Route::UserCcb)),
            // A disk's driver relies on the rest, which its own has stored.
            sys::XPT_DEV_ADVINFO if fields.stores && fields.buftype != sys::CDAI_TYPE_PHYS_PATH => {
                Err(EINVAL)
            }
            sys::XPT_DEV_ADVINFO => {
                let direction = if fields.stores {
                    Direction::Both
                } else {
                    Direction::In
                };
                Ok(Operation {
                    transfers: [transfer(Field::AdvInfo, direction, fields.lens[0])?, None],
                    flags: match direction {
                        Direction::In => sys::CAM_DIR_IN,
                        _ => sys::CAM_DIR_OUT,
                    },
                    ..Operation::NOTHING
                })
            }
            sys::XPT_NOOP
            | sys::XPT_PATH_INQ
            | sys::XPT_GDEV_TYPE
            | sys::XPT_GDEVLIST
            | sys::XPT_GDEV_STATS
            | sys::XPT_PATH_STATS
            | sys::XPT_GET_TRAN_SETTINGS
            | sys::XPT_SET_TRAN_SETTINGS
            | sys::XPT_GET_SIM_KNOB
            | sys::XPT_CALC_GEOMETRY => Ok(Operation::NOTHING),
            // All else, and with that target mode, which would stay on when the open
            // is closed (XPT_EN_LUN), and without which SIMs take the rest of it for
            // what it is not (mpt(4) follows a null table); and XPT_SET_SIM_KNOB,
            // which changes the adapter for all of its devices.
            _ => Err(EINVAL),
        }
    }

    const fn nothing(route: Route) -> Operation {
        Operation {
            route,
            ..Operation::NOTHING
        }
    }

    /// Whether it has data.
    pub fn has_data(&self) -> bool {
        self.transfers.iter().any(Option::is_some)
    }
}

/// A SIM makes a message or a queue type of the tag's kind. It counts without
/// CAM_TAG_ACTION_VALID too, which CAM sets for a device that has queues.
///
/// # Errors
/// `EINVAL`: none of SAM-5's.
fn check_tag(fields: &Fields) -> Result {
    const KINDS: [u32; 5] = [
        sys::CAM_TAG_ACTION_NONE,
        sys::MSG_SIMPLE_Q_TAG,
        sys::MSG_HEAD_OF_Q_TAG,
        sys::MSG_ORDERED_Q_TAG,
        sys::MSG_ACA_TASK,
    ];
    if !KINDS.contains(&u32::from(fields.tag_action)) {
        return Err(EINVAL);
    }
    Ok(())
}

/// The data of a command that has `dxfer_len` and direction flags.
fn io(fields: &Fields, field: Field, lists: bool) -> Result<(Format, Option<Transfer>)> {
    let Some(direction) = Direction::of(fields.flags) else {
        return Ok((Format::Address, None));
    };
    let transfer = transfer(field, direction, fields.lens[0])?;
    match fields.flags & sys::CAM_DATA_MASK {
        sys::CAM_DATA_VADDR => Ok((Format::Address, transfer)),
        // As pass(4): a list says how long it is, in bytes and segments.
        sys::CAM_DATA_SG if lists && fields.segments != 0 && transfer.is_some() => {
            Ok((Format::List(fields.segments), transfer))
        }
        // nvme(4)'s SIM takes a physical address for a virtual one.
        sys::CAM_DATA_PADDR | sys::CAM_DATA_SG_PADDR if field == Field::Nvme => Err(EINVAL),
        sys::CAM_DATA_PADDR if transfer.is_some() => Ok((Format::Physical, transfer)),
        sys::CAM_DATA_SG_PADDR if lists && fields.segments != 0 && transfer.is_some() => {
            Ok((Format::PhysicalList(fields.segments), transfer))
        }
        _ => Err(EINVAL),
    }
}

fn transfer(field: Field, direction: Direction, len: u64) -> Result<Option<Transfer>> {
    let len = u32::try_from(len).map_err(|_| EINVAL)?;
    Ok((len != 0).then_some(Transfer {
        field,
        direction,
        len,
    }))
}

/// The longest run of data that each kind of transfer may have, in bytes.
#[derive(Clone, Copy)]
pub struct Longest {
    /// What the device moves.
    pub device: u32,
    /// What CAM maps or answers at a time.
    pub chunk: u32,
}

impl Longest {
    /// The queued call's rule: a command of a disk's may be as long as the SIM
    /// takes; all else is short.
    ///
    /// # Errors
    /// `EINVAL`: longer, or an XPT_MMC_IO, which is synchronous as in pass(4).
    pub fn check_queued(self, operation: &Operation) -> Result {
        if operation.route == Route::Mmc {
            return Err(EINVAL);
        }
        for transfer in operation.transfers.iter().flatten() {
            let longest = match transfer.field {
                Field::Scsi | Field::Ata | Field::Nvme => self.device,
                Field::AdvInfo => self.chunk,
                _ => self.device.min(self.chunk),
            };
            if transfer.len > longest {
                return Err(EINVAL);
            }
        }
        Ok(())
    }

    /// The synchronous call's rule, which pass(4) answers with `E2BIG`: one
    /// address, and what CAM maps at a time.
    ///
    /// # Errors
    /// `E2BIG`; `EINVAL`: a list, or CDAI_FLAG_STORE, which the synchronous
    /// call does not take.
    pub fn check_synchronous(self, operation: &Operation) -> Result {
        if let Format::List(_) = operation.format {
            return Err(EINVAL);
        }
        for transfer in operation.transfers.iter().flatten() {
            // cam_periph_mapmem(9) would store zeroes.
            if transfer.field == Field::AdvInfo && transfer.direction == Direction::Both {
                return Err(EINVAL);
            }
            let longest = match (transfer.is_device_io(), operation.format.is_physical()) {
                (true, true) => self.device,
                (true, false) => self.device.min(self.chunk),
                (false, _) => self.chunk,
            };
            if transfer.len > longest {
                return Err(E2BIG);
            }
        }
        Ok(())
    }
}

/// The priority that a CCB is scheduled with: no user's command goes before those
/// of the disk's own driver, which would starve where a SIM takes fewer at a time
/// than it has been given. Only a reset does, below recovery, as from pass(4).
pub fn priority(func_code: sys::xpt_opcode, asked: u32) -> u32 {
    match func_code {
        sys::XPT_RESET_DEV => sys::QPC_CAM_PRIORITY_OOB + 1,
        // CAM waits for ever for a CCB of priority none.
        _ => asked.clamp(sys::QPC_CAM_PRIORITY_NORMAL, sys::QPC_CAM_PRIORITY_NONE - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kpi::fields::transferred;

    fn scsi(flags: u32, len: u64) -> Result<Operation> {
        Operation::parse(&Fields {
            func_code: sys::XPT_SCSI_IO,
            flags,
            lens: [len, 0],
            ..Fields::default()
        })
    }

    fn opcode(func_code: sys::xpt_opcode) -> Result<Operation> {
        Operation::parse(&Fields {
            func_code,
            ..Fields::default()
        })
    }

    #[test]
    fn an_opcode_for_the_xpt_only_is_enodev_and_an_unknown_one_einval() {
        assert_eq!(opcode(sys::XPT_SCAN_BUS), Err(ENODEV));
        assert_eq!(opcode(sys::XPT_DEV_MATCH), Err(ENODEV));
        assert_eq!(opcode(0x7e), Err(EINVAL));
        assert_eq!(opcode(sys::XPT_PATH_INQ), Ok(Operation::NOTHING));
    }

    #[test]
    fn opcodes_that_carry_kernel_addresses_are_refused() {
        // A callback; a CCB of the kernel's; a bus's debugging, which prints.
        for func_code in [sys::XPT_SASYNC_CB, sys::XPT_TERM_IO, sys::XPT_DEBUG] {
            assert_eq!(opcode(func_code), Err(EINVAL));
        }
    }

    #[test]
    fn what_changes_the_adapter_or_wants_target_mode_is_refused() {
        for func_code in [
            sys::XPT_EN_LUN,
            sys::XPT_TARGET_IO,
            sys::XPT_ACCEPT_TARGET_IO,
            sys::XPT_CONT_TARGET_IO,
            sys::XPT_IMMED_NOTIFY,
            sys::XPT_IMMEDIATE_NOTIFY,
            sys::XPT_NOTIFY_ACK,
            sys::XPT_NOTIFY_ACKNOWLEDGE,
            sys::XPT_SET_SIM_KNOB,
        ] {
            assert_eq!(opcode(func_code), Err(EINVAL));
        }
        let store = |buftype| {
            Operation::parse(&Fields {
                func_code: sys::XPT_DEV_ADVINFO,
                lens: [64, 0],
                stores: true,
                buftype,
                ..Fields::default()
            })
            .map(|_| ())
        };
        assert_eq!(store(sys::CDAI_TYPE_PHYS_PATH), Ok(()));
        assert_eq!(store(sys::CDAI_TYPE_RCAPLONG), Err(EINVAL));
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
        assert_eq!(scsi(sys::CAM_DIR_IN | sys::CAM_DATA_BIO, 512), Err(EINVAL));
    }

    #[test]
    fn physical_addresses_are_told_from_others() {
        let format = |format, len| scsi(sys::CAM_DIR_IN | format, len).map(|o| o.format);
        assert_eq!(format(sys::CAM_DATA_PADDR, 512), Ok(Format::Physical));
        assert_eq!(format(sys::CAM_DATA_PADDR, 0), Err(EINVAL));
        // No segment.
        assert_eq!(format(sys::CAM_DATA_SG_PADDR, 512), Err(EINVAL));
        let nvme = Operation::parse(&Fields {
            func_code: sys::XPT_NVME_IO,
            flags: sys::CAM_DIR_IN | sys::CAM_DATA_PADDR,
            lens: [512, 0],
            ..Fields::default()
        });
        assert_eq!(nvme, Err(EINVAL));
        assert!(Format::Physical.is_physical() && Format::PhysicalList(1).is_physical());
        assert!(!Format::Address.is_physical() && !Format::List(1).is_physical());
    }

    #[test]
    fn no_sim_divides_by_zero_blocks_in_a_megabyte() {
        let geometry = |block_size| {
            Operation::parse(&Fields {
                func_code: sys::XPT_CALC_GEOMETRY,
                block_size,
                ..Fields::default()
            })
        };
        assert_eq!(geometry(512), Ok(Operation::NOTHING));
        assert_eq!(geometry(1 << 20), Ok(Operation::NOTHING));
        assert_eq!(geometry((1 << 20) + 1), Err(EINVAL));
    }

    #[test]
    fn each_route_is_an_opcodes() {
        let route = |func_code| opcode(func_code).map(|o| o.route);
        assert_eq!(route(sys::XPT_SCSI_IO), Ok(Route::Device));
        assert_eq!(route(sys::XPT_CALC_GEOMETRY), Ok(Route::Immediate));
        assert_eq!(route(sys::XPT_REPROBE_LUN), Ok(Route::UserCcb));
        assert_eq!(route(sys::XPT_ABORT), Ok(Route::Abort));
        assert_eq!(route(sys::XPT_MMC_IO), Ok(Route::Mmc));
        let longest = Longest {
            device: 512,
            chunk: 512,
        };
        let mmc = opcode(sys::XPT_MMC_IO).unwrap();
        assert_eq!(longest.check_queued(&mmc), Err(EINVAL));
        assert_eq!(longest.check_synchronous(&mmc), Ok(()));
    }

    #[test]
    fn a_transfer_has_a_direction_and_a_length() {
        let of = |direction| {
            let transfer = Transfer {
                field: Field::Scsi,
                direction,
                len: 512,
            };
            Ok([Some(transfer), None])
        };
        let transfers = |flags, len| scsi(flags, len).map(|o| o.transfers);
        assert_eq!(transfers(sys::CAM_DIR_IN, 512), of(Direction::In));
        assert_eq!(transfers(sys::CAM_DIR_OUT, 512), of(Direction::Out));
        assert_eq!(transfers(sys::CAM_DIR_BOTH, 512), of(Direction::Both));
        assert_eq!(transfers(sys::CAM_DIR_NONE, 512), Ok([None, None]));
        assert_eq!(transfers(sys::CAM_DIR_IN, 0), Ok([None, None]));
    }

    #[test]
    fn a_list_has_segments_and_bytes_and_only_where_cam_takes_one() {
        let list = |func_code, segments, len| {
            Operation::parse(&Fields {
                func_code,
                flags: sys::CAM_DIR_IN | sys::CAM_DATA_SG,
                lens: [len, 0],
                segments,
                ..Fields::default()
            })
            .map(|o| o.format)
        };
        assert_eq!(list(sys::XPT_SCSI_IO, 3, 512), Ok(Format::List(3)));
        assert_eq!(list(sys::XPT_NVME_IO, 3, 512), Ok(Format::List(3)));
        assert_eq!(list(sys::XPT_ATA_IO, 3, 512), Err(EINVAL));
        assert_eq!(list(sys::XPT_SCSI_IO, 0, 512), Err(EINVAL));
        assert_eq!(list(sys::XPT_SCSI_IO, 3, 0), Err(EINVAL));
    }

    #[test]
    fn an_smp_command_has_a_request_and_a_response() {
        let operation = Operation::parse(&Fields {
            func_code: sys::XPT_SMP_IO,
            lens: [8, 60],
            ..Fields::default()
        });
        let lens = operation.map(|o| o.transfers.map(|t| t.map(|t| (t.direction, t.len))));
        let wanted = [Some((Direction::Out, 8)), Some((Direction::In, 60))];
        assert_eq!(lens, Ok(wanted));
        let list = Operation::parse(&Fields {
            func_code: sys::XPT_SMP_IO,
            flags: sys::CAM_DATA_SG,
            lens: [8, 60],
            ..Fields::default()
        });
        assert_eq!(list, Err(EINVAL));
        let negative = Operation::parse(&Fields {
            func_code: sys::XPT_SMP_IO,
            lens: [-1i32 as u64, 0],
            ..Fields::default()
        });
        assert_eq!(negative, Err(EINVAL));
    }

    #[test]
    fn the_limits_are_inclusive_and_a_queued_command_goes_beyond_what_cam_maps() {
        let longest = Longest {
            device: 8192,
            chunk: 4096,
        };
        let of = |field, len| Operation {
            transfers: [
                Some(Transfer {
                    field,
                    direction: Direction::In,
                    len,
                }),
                None,
            ],
            ..Operation::NOTHING
        };
        assert_eq!(longest.check_queued(&of(Field::Scsi, 8192)), Ok(()));
        assert_eq!(longest.check_queued(&of(Field::Scsi, 8193)), Err(EINVAL));
        assert_eq!(longest.check_queued(&of(Field::Ata, 8192)), Ok(()));
        assert_eq!(longest.check_queued(&of(Field::AdvInfo, 4097)), Err(EINVAL));
        assert_eq!(longest.check_synchronous(&of(Field::Scsi, 4096)), Ok(()));
        assert_eq!(
            longest.check_synchronous(&of(Field::Scsi, 4097)),
            Err(E2BIG)
        );
    }

    #[test]
    fn no_users_command_ranks_above_the_disks_own_driver() {
        const NORMAL: u32 = sys::QPC_CAM_PRIORITY_NORMAL;
        for asked in [0, sys::QPC_CAM_PRIORITY_OOB, NORMAL - 1, NORMAL] {
            assert_eq!(priority(sys::XPT_SCSI_IO, asked), NORMAL);
        }
        assert_eq!(priority(sys::XPT_SCSI_IO, NORMAL + 1), NORMAL + 1);
        assert_eq!(priority(sys::XPT_SCSI_IO, u32::MAX), u32::MAX - 1);
        // What ends a device's hang-up is not behind what hangs.
        let reset = priority(sys::XPT_RESET_DEV, 0);
        assert!(reset > sys::QPC_CAM_PRIORITY_OOB && reset < NORMAL);
    }

    #[test]
    fn only_flags_of_the_list_are_sent() {
        let sent = |flags| scsi(flags, 512).map(|o| o.flags);
        let passed = sys::CAM_DEV_QFRZDIS
            | sys::CAM_PASS_ERR_RECOVER
            | sys::CAM_NEGOTIATE
            | sys::CAM_DIS_AUTOSENSE
            | sys::CAM_DIS_DISCONNECT
            | sys::CAM_TAG_ACTION_VALID;
        assert_eq!(sent(sys::CAM_DIR_IN | passed), Ok(sys::CAM_DIR_IN | passed));
        for bit in 0..32 {
            let refused = Refused::all().bits() | sys::CAM_DIR_MASK | sys::CAM_DATA_MASK;
            if 1 << bit & (refused | passed) == 0 {
                let asked = sys::CAM_DIR_OUT | 1 << bit;
                assert_eq!(sent(asked), Ok(sys::CAM_DIR_OUT), "bit {bit}");
            }
        }
    }

    #[test]
    fn without_data_there_is_neither_direction_nor_format() {
        for format in [sys::CAM_DATA_BIO, sys::CAM_DATA_SG, sys::CAM_DATA_SG_PADDR] {
            let none = scsi(sys::CAM_DIR_NONE | format, 512).unwrap();
            assert_eq!(
                (none.flags, none.format),
                (sys::CAM_DIR_NONE, Format::Address)
            );
        }
        assert_eq!(scsi(sys::CAM_DIR_IN, 0).unwrap().flags, sys::CAM_DIR_NONE);
    }

    #[test]
    fn a_kind_of_tag_is_one_that_there_is() {
        let tag = |flags, tag_action| {
            Operation::parse(&Fields {
                func_code: sys::XPT_SCSI_IO,
                flags: sys::CAM_DIR_NONE | flags,
                tag_action,
                ..Fields::default()
            })
            .map(|_| ())
        };
        assert_eq!(tag(sys::CAM_TAG_ACTION_VALID, 0x20), Ok(()));
        assert_eq!(tag(sys::CAM_TAG_ACTION_VALID, 0x23), Err(EINVAL));
        assert_eq!(tag(0, 0x80), Err(EINVAL), "CAM says that it counts");
    }

    #[test]
    fn a_device_keeps_openings_that_cam_can_count() {
        let adjust = |openings| {
            Operation::parse(&Fields {
                func_code: sys::XPT_REL_SIMQ,
                openings,
                ..Fields::default()
            })
            .map(|o| o.flags)
        };
        // Nobody else's freeze is released with it.
        assert_eq!(adjust(None), Ok(sys::CAM_DEV_QFREEZE));
        assert_eq!(adjust(Some(1)), Ok(sys::CAM_DEV_QFREEZE));
        assert_eq!(adjust(Some(65535)), Ok(sys::CAM_DEV_QFREEZE));
        for wild in [0, 65536, 0x8000_0001, u32::MAX] {
            assert_eq!(adjust(Some(wild)), Err(EINVAL));
        }
    }

    #[test]
    fn pages_are_for_commands_that_cam_itself_sends_with_pages() {
        let takes = |func_code, direction, bytes: &[u8]| {
            let mut command = [0; 16];
            command[..bytes.len()].copy_from_slice(bytes);
            let transfer = Transfer {
                field: Field::of(func_code)[0],
                direction,
                len: 4096,
            };
            transfer.takes_pages(func_code, &command)
        };
        let (scsi, ata, nvme) = (sys::XPT_SCSI_IO, sys::XPT_ATA_IO, sys::XPT_NVME_IO);
        use Direction::{Both, In, Out};
        for read in [0x08, 0x28, 0xa8, 0x88] {
            assert!(takes(scsi, In, &[read]));
            assert!(!takes(scsi, Out, &[read]) && !takes(scsi, Both, &[read]));
        }
        for write in [0x0a, 0x2a, 0xaa, 0x8a, 0x2e, 0xae, 0x8e] {
            assert!(takes(scsi, Out, &[write]) && !takes(scsi, In, &[write]));
        }
        // INQUIRY, READ CAPACITY, MODE SENSE, LOG SENSE, READ BUFFER, ATA
        // PASS-THROUGH, VERIFY with data, WRITE SAME, UNMAP, SEND DIAGNOSTIC.
        for other in [0x12, 0x25, 0x9e, 0x1a, 0x5a, 0x4d, 0x3c, 0x85, 0xa1, 0x03] {
            assert!(!takes(scsi, In, &[other]));
        }
        for other in [0x2f, 0x41, 0x93, 0x42, 0x1d, 0x3b, 0x15, 0x55] {
            assert!(!takes(scsi, Out, &[other]));
        }
        let (dma, fpdma) = (sys::CAM_ATAIO_DMA as u8, sys::CAM_ATAIO_FPDMA as u8);
        for (flag, read, write) in [(dma, 0xc8, 0xca), (dma, 0x25, 0x35), (fpdma, 0x60, 0x61)] {
            assert!(takes(ata, In, &[flag, read]) && takes(ata, Out, &[flag, write]));
            assert!(!takes(ata, In, &[0, read]) && !takes(ata, Out, &[0, write]));
        }
        // IDENTIFY DEVICE, SMART READ DATA, READ LOG DMA EXT, READ SECTORS.
        for other in [0xec, 0xb0, 0x47, 0x20] {
            assert!(!takes(ata, In, &[dma, other]));
        }
        assert!(takes(nvme, In, &[2]) && takes(nvme, Out, &[1]) && takes(nvme, Out, &[5]));
        assert!(!takes(nvme, In, &[5]) && !takes(nvme, Out, &[9]) && !takes(nvme, In, &[0xe]));
        assert!(!takes(sys::XPT_NVME_ADMIN, In, &[2]));
    }

    #[test]
    fn a_residual_that_makes_no_sense_means_that_all_moved() {
        assert_eq!(transferred(512, 0), 512);
        assert_eq!(transferred(512, 500), 12);
        assert_eq!(transferred(512, 512), 0);
        assert_eq!(transferred(512, 513), 512);
        assert_eq!(transferred(512, 0xffff_fa00), 512);
    }
}
