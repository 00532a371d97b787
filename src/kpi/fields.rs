//! What a CCB says of itself: its data, and what decides what becomes of it
//! (cam_ccb.h).

use sys_bindings as sys;

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
    /// The one that a CCB's flags give, if any.
    pub fn of(flags: u32) -> Option<Self> {
        match flags & sys::CAM_DIR_MASK {
            sys::CAM_DIR_NONE => None,
            sys::CAM_DIR_IN => Some(Direction::In),
            sys::CAM_DIR_OUT => Some(Direction::Out),
            _ => Some(Direction::Both),
        }
    }

    /// Whether the device reads what the user wrote.
    pub fn copies_in(self) -> bool {
        self != Direction::In
    }

    /// Whether the user reads what the device wrote.
    pub fn copies_out(self) -> bool {
        self != Direction::Out
    }
}

/// Which pointer of a CCB names the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `csio.data_ptr`.
    Scsi,
    /// `ataio.data_ptr`.
    Ata,
    /// `nvmeio.data_ptr`.
    Nvme,
    /// `smpio.smp_request`.
    SmpRequest,
    /// `smpio.smp_response`.
    SmpResponse,
    /// `cdai.buf`.
    AdvInfo,
    /// `mmcio.cmd.data->data`, which no CCB names itself.
    Mmc,
}

impl Field {
    /// The pointers that an opcode's CCB has.
    pub fn of(func_code: sys::xpt_opcode) -> &'static [Field] {
        match func_code {
            sys::XPT_SCSI_IO => &[Field::Scsi],
            sys::XPT_ATA_IO => &[Field::Ata],
            sys::XPT_NVME_IO | sys::XPT_NVME_ADMIN => &[Field::Nvme],
            sys::XPT_SMP_IO => &[Field::SmpRequest, Field::SmpResponse],
            sys::XPT_DEV_ADVINFO => &[Field::AdvInfo],
            _ => &[],
        }
    }
}

/// One run of data of a CCB; `len` is never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Which pointer.
    pub field: Field,
    /// Which way.
    pub direction: Direction,
    /// Bytes.
    pub len: u32,
}

impl Transfer {
    /// Whether a SIM may be given it as pages: whether one of CAM's own drivers
    /// (da, ada, nda, sa, cd) would send this command so. SIMs look into the data
    /// of others: isci(4) panics, mfi(4) and smartpqi(4) change INQUIRY data in
    /// place. `command` is what [`Ccb::command`] says.
    ///
    /// Opcodes of SBC-4, SSC-5, ACS-4 and the NVM Command Set Specification.
    ///
    /// [`Ccb::command`]: super::ccb::Ccb::command
    pub fn takes_pages(self, func_code: sys::xpt_opcode, command: &[u8; 16]) -> bool {
        const DMA: u8 = sys::CAM_ATAIO_DMA as u8;
        const FPDMA: u8 = sys::CAM_ATAIO_FPDMA as u8;
        let [first, second, ..] = *command;
        match (func_code, self.direction) {
            // READ(6), (10), (12), (16).
            (sys::XPT_SCSI_IO, Direction::In) => matches!(first, 0x08 | 0x28 | 0xa8 | 0x88),
            // WRITE(6), (10), (12), (16); WRITE AND VERIFY(10), (12), (16).
            (sys::XPT_SCSI_IO, Direction::Out) => {
                matches!(first, 0x0a | 0x2a | 0xaa | 0x8a | 0x2e | 0xae | 0x8e)
            }
            // A struct ata_cmd starts with its flags. READ DMA, READ DMA EXT.
            (sys::XPT_ATA_IO, Direction::In) => match second {
                0xc8 | 0x25 => first & DMA != 0,
                0x60 => first & FPDMA != 0,
                _ => false,
            },
            // WRITE DMA, WRITE DMA EXT, WRITE DMA FUA EXT.
            (sys::XPT_ATA_IO, Direction::Out) => match second {
                0xca | 0x35 | 0x3d => first & DMA != 0,
                0x61 => first & FPDMA != 0,
                _ => false,
            },
            // Read; Write and Compare.
            (sys::XPT_NVME_IO, Direction::In) => first == 0x02,
            (sys::XPT_NVME_IO, Direction::Out) => matches!(first, 0x01 | 0x05),
            _ => false,
        }
    }

    /// Whether the device moves the data, and its limit applies; what CAM
    /// itself answers is bounded by what a chunk holds.
    pub fn is_device_io(self) -> bool {
        self.field != Field::AdvInfo
    }
}

/// The fields of a CCB that decide what becomes of it.
#[derive(Clone, Copy, Default)]
pub struct Fields {
    /// `ccb_h.func_code`.
    pub func_code: sys::xpt_opcode,
    /// `ccb_h.flags`.
    pub flags: u32,
    /// The lengths of its runs of data in bytes, as the opcode has them.
    pub lens: [u64; 2],
    /// `sglist_cnt`, where the opcode has it.
    pub segments: u16,
    /// XPT_DEV_ADVINFO: CDAI_FLAG_STORE is set.
    pub stores: bool,
    /// XPT_DEV_ADVINFO: `buftype`.
    pub buftype: u32,
    /// XPT_CALC_GEOMETRY: `block_size` in bytes.
    pub block_size: u32,
    /// XPT_REL_SIMQ: `openings`, where they are to be adjusted.
    pub openings: Option<u32>,
    /// XPT_SCSI_IO: `tag_action`.
    pub tag_action: u8,
}

/// Bytes that a device moved: `dxfer_len` less `resid`. A residual that is
/// negative, or larger than the transfer, says that it had more to say than there
/// was room for: all was moved.
pub fn transferred(len: u32, resid: u32) -> u32 {
    len.checked_sub(resid).unwrap_or(len)
}

/// A submission queue entry of an NVMe command, as far as a program has a say in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct NvmeCommand {
    /// For the admin queue (XPT_NVME_ADMIN).
    pub admin: bool,
    /// Opcode.
    pub opcode: u8,
    /// Byte 1: FUSE in bits 1:0, PSDT in bits 7:6.
    pub fuse: u8,
    /// Namespace.
    pub nsid: u32,
    /// Command dwords 10 to 15.
    pub dwords: [u32; 6],
}
