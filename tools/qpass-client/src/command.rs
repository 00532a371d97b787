//! Commands: what a device is asked, with the buffer for its data.
//!
//! A command owns its buffer. While the kernel has it, the queue owns the
//! command, so nothing can be freed or looked at too early.

use crate::{
    decode::{ata, nvme, sense::Sense},
    error::CamStatus,
    kernel::Buffer,
    outcome::{CommandError, DeviceStatus, Outcome},
};
use core::time::Duration;
use sys_bindings as sys;

/// Which way a command's data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the device.
    In,
    /// To the device.
    Out,
}

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Scsi { cdb: [u8; 16], len: u8 },
    Ata { registers: Registers, dma: bool },
    Nvme { entry: NvmeEntry, admin: bool },
}

/// The registers of an ATA command (ACS-4), of 48 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// Command.
    pub command: u8,
    /// Features.
    pub features: u16,
    /// Logical block address, 48 bits.
    pub lba: u64,
    /// Sector count.
    pub count: u16,
    /// Device.
    pub device: u8,
    /// It is one of the commands with 48-bit addresses.
    pub is_48bit: bool,
}

/// The fields of an NVMe submission queue entry that are a program's to set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NvmeEntry {
    /// Opcode.
    pub opcode: u8,
    /// Namespace.
    pub nsid: u32,
    /// Command dwords 10 to 15.
    pub cdw: [u32; 6],
}

/// In which order a SCSI device carries out what it has (SAM-6, 8.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attribute {
    /// SIMPLE: in any order.
    #[default]
    Simple,
    /// ORDERED: behind all that came before, and before all that comes behind.
    Ordered,
    /// HEAD OF QUEUE: before all others.
    HeadOfQueue,
}

/// One command.
#[derive(Debug)]
pub struct Command {
    protocol: Protocol,
    direction: Option<Direction>,
    len: usize,
    timeout: Duration,
    retries: u16,
    recover: bool,
    attribute: Attribute,
    /// ATA: the registers are wanted, where there is data too.
    wants_registers: bool,
    /// Tries that are left, where it is the library that sends it again.
    tries: u32,
    /// What the device said of tries that were followed by another.
    earlier: Vec<Sense>,
    /// At least as long as `len`: it cannot be changed for another.
    pub(crate) buffer: Option<Buffer>,
}

impl Command {
    fn new(protocol: Protocol) -> Self {
        Command {
            protocol,
            direction: None,
            len: 0,
            timeout: Duration::from_secs(30),
            retries: 0,
            recover: false,
            attribute: Attribute::Simple,
            wants_registers: false,
            tries: 0,
            earlier: Vec::new(),
            buffer: None,
        }
    }

    /// Any SCSI command, by its CDB of 1 to 16 bytes.
    ///
    /// # Panics
    /// When the CDB is of another length.
    pub fn cdb(cdb: &[u8]) -> Self {
        assert!((1..=16).contains(&cdb.len()), "a CDB has 1 to 16 bytes");
        let mut bytes = [0; 16];
        bytes[..cdb.len()].copy_from_slice(cdb);
        Command::new(Protocol::Scsi {
            cdb: bytes,
            len: cdb.len() as u8,
        })
    }

    /// Any ATA command, by its registers; `dma` if its data go by DMA.
    pub fn ata(registers: Registers, dma: bool) -> Self {
        Command::new(Protocol::Ata { registers, dma })
    }

    /// Any NVMe command, for the admin queue or an I/O queue.
    pub fn nvme(entry: NvmeEntry, admin: bool) -> Self {
        Command::new(Protocol::Nvme { entry, admin })
    }

    /// Its data go into `buffer`: as much as is in it.
    pub fn data_in(self, buffer: Buffer) -> Self {
        let len = buffer.len();
        self.data(Direction::In, buffer, len)
    }

    /// Its data come from `buffer`: all of it.
    pub fn data_out(self, buffer: Buffer) -> Self {
        let len = buffer.len();
        self.data(Direction::Out, buffer, len)
    }

    /// Its data are the first `len` bytes of `buffer`.
    ///
    /// # Panics
    /// When the buffer is shorter.
    pub fn data(mut self, direction: Direction, buffer: Buffer, len: usize) -> Self {
        assert!(
            len <= buffer.len(),
            "{len} bytes of data do not fit in a buffer of {}",
            buffer.len()
        );
        assert!(
            u32::try_from(len).is_ok(),
            "{len} bytes of data are more than a CCB can say"
        );
        self.direction = Some(direction).filter(|_| len != 0);
        self.len = len;
        self.buffer = Some(buffer);
        self
    }

    /// Its data: what is written, or what was read.
    pub fn buffer(&self) -> Option<&Buffer> {
        self.buffer.as_ref()
    }

    /// The same, for another command.
    pub fn into_buffer(self) -> Option<Buffer> {
        self.buffer
    }

    /// How long the device may take; else 30 seconds. CAM counts milliseconds: a
    /// part of one counts as one, and 49 days are the most.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Has it sent again when it ends with an error that goes away, as the disk's
    /// own driver would, so many times at most: a UNIT ATTENTION, a busy device, a
    /// transport's error.
    ///
    /// Commands with data from the device, and those of ATA and NVMe, are recovered by
    /// CAM, in the driver: CAM_PASS_ERR_RECOVER in pass(4). A SCSI command that
    /// writes, or has no data, such as SYNCHRONIZE CACHE, is sent again by the
    /// library, for CAM sends a command again when the sense data are of an earlier
    /// one, and nobody hears that a write was lost. Such an error ends the command,
    /// see [`Outcome::is_deferred`]; what earlier tries said is in
    /// [`Outcome::earlier`].
    pub fn recover(mut self, retries: u32) -> Self {
        self.recover = true;
        self.retries = u16::try_from(retries).unwrap_or(u16::MAX);
        self.tries = retries;
        self
    }

    /// In which order a SCSI device carries it out; else [`Attribute::Simple`].
    pub fn attribute(mut self, attribute: Attribute) -> Self {
        self.attribute = attribute;
        self
    }

    /// Of an ATA command with data: its registers are wanted too. Those of one
    /// without data always are.
    pub fn want_registers(mut self) -> Self {
        self.wants_registers = true;
        self
    }

    // ---- SCSI (SPC-5, SBC-4) ----

    /// TEST UNIT READY.
    pub fn test_unit_ready() -> Self {
        Command::cdb(&[0; 6])
    }

    /// INQUIRY: the standard data, or the vital product data page `page`.
    pub fn inquiry(page: Option<u8>, buffer: Buffer) -> Self {
        let [high, low] = clamp16(buffer.len()).to_be_bytes();
        let cdb = [
            0x12,
            u8::from(page.is_some()),
            page.unwrap_or(0),
            high,
            low,
            0,
        ];
        Command::cdb(&cdb).data_in(buffer)
    }

    /// REQUEST SENSE.
    pub fn request_sense(buffer: Buffer) -> Self {
        let len = buffer.len().min(252) as u8;
        Command::cdb(&[0x03, 0, 0, 0, len, 0]).data(Direction::In, buffer, usize::from(len))
    }

    /// READ CAPACITY(10), 8 bytes.
    pub fn read_capacity_10(buffer: Buffer) -> Self {
        Command::cdb(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]).data(Direction::In, buffer, 8)
    }

    /// READ CAPACITY(16), 32 bytes.
    pub fn read_capacity_16(buffer: Buffer) -> Self {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[13]) = (0x9e, 0x10, 32);
        Command::cdb(&cdb).data(Direction::In, buffer, 32)
    }

    /// READ(10) or READ(16), whichever the address wants: `blocks` blocks into
    /// the first `len` bytes of the buffer, which have to be as many as the blocks
    /// have; [`Disk::read`](crate::Disk::read) sees to that, and to the command.
    pub fn read(lba: u64, blocks: u32, buffer: Buffer, len: usize) -> Self {
        Command::cdb(&read_write_cdb(false, lba, blocks)).data(Direction::In, buffer, len)
    }

    /// WRITE(10) or WRITE(16).
    pub fn write(lba: u64, blocks: u32, buffer: Buffer, len: usize) -> Self {
        Command::cdb(&read_write_cdb(true, lba, blocks)).data(Direction::Out, buffer, len)
    }

    /// SYNCHRONIZE CACHE(10), all of it.
    pub fn synchronize_cache() -> Self {
        Command::cdb(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]).timeout(Duration::from_secs(120))
    }

    /// READ(16).
    pub fn read_16(lba: u64, blocks: u32, buffer: Buffer, len: usize) -> Self {
        Command::cdb(&cdb_16(0x88, lba, blocks)).data(Direction::In, buffer, len)
    }

    /// WRITE(16).
    pub fn write_16(lba: u64, blocks: u32, buffer: Buffer, len: usize) -> Self {
        Command::cdb(&cdb_16(0x8a, lba, blocks)).data(Direction::Out, buffer, len)
    }

    /// SYNCHRONIZE CACHE(16), all of it.
    pub fn synchronize_cache_16() -> Self {
        Command::cdb(&cdb_16(0x91, 0, 0)).timeout(Duration::from_secs(120))
    }

    /// REPORT ZONES (ZBC-2), all kinds, from the zone of `lba` on.
    pub fn report_zones(lba: u64, buffer: Buffer) -> Self {
        let len = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        Command::cdb(&cdb_16(0x95, lba, len)).data_in(buffer)
    }

    /// MODE SENSE(10), the current values of a page.
    pub fn mode_sense(page: u8, subpage: u8, buffer: Buffer) -> Self {
        let [high, low] = clamp16(buffer.len()).to_be_bytes();
        Command::cdb(&[0x5a, 0, page & 0x3f, subpage, 0, 0, 0, high, low, 0]).data_in(buffer)
    }

    /// LOG SENSE, the cumulative values of a page.
    pub fn log_sense(page: u8, subpage: u8, buffer: Buffer) -> Self {
        let [high, low] = clamp16(buffer.len()).to_be_bytes();
        let page = 0x40 | page & 0x3f;
        Command::cdb(&[0x4d, 0, page, subpage, 0, 0, 0, high, low, 0]).data_in(buffer)
    }

    /// REPORT LUNS.
    pub fn report_luns(buffer: Buffer) -> Self {
        let [a, b, c, d] = (buffer.len() as u32).to_be_bytes();
        Command::cdb(&[0xa0, 0, 0, 0, 0, 0, a, b, c, d, 0, 0]).data_in(buffer)
    }

    // ---- ATA (ACS-4) ----

    /// IDENTIFY DEVICE, 512 bytes.
    pub fn ata_identify(buffer: Buffer) -> Self {
        let registers = Registers {
            command: 0xec,
            ..Registers::default()
        };
        Command::ata(registers, false).data(Direction::In, buffer, 512)
    }

    /// READ DMA EXT.
    pub fn ata_read(lba: u64, blocks: u16, buffer: Buffer, len: usize) -> Self {
        Command::ata(ata_transfer(0x25, lba, blocks), true).data(Direction::In, buffer, len)
    }

    /// WRITE DMA EXT.
    pub fn ata_write(lba: u64, blocks: u16, buffer: Buffer, len: usize) -> Self {
        Command::ata(ata_transfer(0x35, lba, blocks), true).data(Direction::Out, buffer, len)
    }

    /// READ DMA, of 28 bits: 1 to 256 blocks.
    ///
    /// # Panics
    /// When the blocks are more, or beyond 28 bits.
    pub fn ata_read_28(lba: u64, blocks: u16, buffer: Buffer, len: usize) -> Self {
        Command::ata(ata_transfer_28(0xc8, lba, blocks), true).data(Direction::In, buffer, len)
    }

    /// WRITE DMA, of 28 bits: 1 to 256 blocks.
    ///
    /// # Panics
    /// When the blocks are more, or beyond 28 bits.
    pub fn ata_write_28(lba: u64, blocks: u16, buffer: Buffer, len: usize) -> Self {
        Command::ata(ata_transfer_28(0xca, lba, blocks), true).data(Direction::Out, buffer, len)
    }

    /// FLUSH CACHE EXT.
    pub fn ata_flush() -> Self {
        let registers = Registers {
            command: 0xea,
            is_48bit: true,
            ..Registers::default()
        };
        Command::ata(registers, false).timeout(Duration::from_secs(120))
    }

    /// FLUSH CACHE.
    pub fn ata_flush_28() -> Self {
        let registers = Registers {
            command: 0xe7,
            ..Registers::default()
        };
        Command::ata(registers, false).timeout(Duration::from_secs(120))
    }

    /// SMART RETURN STATUS: the answer is in the registers, LBA bits 23:8, which are
    /// c24fh if all is well and 2cf4h if a threshold is exceeded (ACS-4, 7.44.8).
    pub fn ata_smart_status() -> Self {
        let registers = Registers {
            command: 0xb0,
            features: 0xda,
            lba: 0xc2_4f00,
            ..Registers::default()
        };
        Command::ata(registers, false)
    }

    /// CHECK POWER MODE: the answer is in the registers, the count.
    pub fn ata_check_power() -> Self {
        let registers = Registers {
            command: 0xe5,
            ..Registers::default()
        };
        Command::ata(registers, false)
    }

    /// SMART READ DATA, 512 bytes.
    pub fn ata_smart(buffer: Buffer) -> Self {
        let registers = Registers {
            command: 0xb0,
            features: 0xd0,
            lba: 0xc2_4f00,
            ..Registers::default()
        };
        Command::ata(registers, false).data(Direction::In, buffer, 512)
    }

    // ---- NVMe (NVM Express 2.0) ----

    /// Identify: `cns` 0 a namespace, 1 the controller; 4096 bytes.
    pub fn nvme_identify(cns: u8, nsid: u32, buffer: Buffer) -> Self {
        let entry = NvmeEntry {
            opcode: 0x06,
            nsid,
            cdw: [u32::from(cns), 0, 0, 0, 0, 0],
        };
        Command::nvme(entry, true).data(Direction::In, buffer, 4096)
    }

    /// Get Log Page: as many dwords as are in the buffer.
    pub fn nvme_log_page(page: u8, nsid: u32, buffer: Buffer) -> Self {
        let dwords = (buffer.len() / 4).saturating_sub(1) as u32;
        let cdw10 = u32::from(page) | (dwords & 0xffff) << 16;
        let entry = NvmeEntry {
            opcode: 0x02,
            nsid,
            cdw: [cdw10, dwords >> 16, 0, 0, 0, 0],
        };
        Command::nvme(entry, true).data_in(buffer)
    }

    /// Get Features, current values: the answer is dword 0, see [`Outcome::nvme`].
    pub fn nvme_get_features(feature: u8, nsid: u32) -> Self {
        let entry = NvmeEntry {
            opcode: 0x0a,
            nsid,
            cdw: [u32::from(feature), 0, 0, 0, 0, 0],
        };
        Command::nvme(entry, true)
    }

    /// Read of 1 to 65536 blocks.
    pub fn nvme_read(nsid: u32, lba: u64, blocks: u32, buffer: Buffer, len: usize) -> Self {
        Command::nvme(nvme_transfer(2, nsid, lba, blocks), false).data(Direction::In, buffer, len)
    }

    /// Write of 1 to 65536 blocks.
    pub fn nvme_write(nsid: u32, lba: u64, blocks: u32, buffer: Buffer, len: usize) -> Self {
        Command::nvme(nvme_transfer(1, nsid, lba, blocks), false).data(Direction::Out, buffer, len)
    }

    /// Flush.
    pub fn nvme_flush(nsid: u32) -> Self {
        let entry = NvmeEntry {
            nsid,
            ..NvmeEntry::default()
        };
        Command::nvme(entry, false).timeout(Duration::from_secs(120))
    }

    // ---- the CCB ----

    /// Bytes of data.
    pub fn data_len(&self) -> usize {
        self.len
    }

    /// Writes the CCB, and into a word that is the program's own, `slot`.
    pub(crate) fn fill(&self, ccb: &mut sys::ccb, slot: u64) {
        // SAFETY: plain data, all of which may be zero.
        *ccb = unsafe { core::mem::zeroed() };
        let data = self.buffer.as_ref().map_or(0, Buffer::address) as *mut u8;
        // SAFETY: unions of plain data.
        unsafe {
            let hdr = &mut ccb.ccb_h;
            hdr.flags = match self.direction {
                None => sys::CAM_DIR_NONE,
                Some(Direction::In) => sys::CAM_DIR_IN,
                Some(Direction::Out) => sys::CAM_DIR_OUT,
            } | sys::CAM_DEV_QFRZDIS;
            if self.recover && !self.is_sent_again() {
                hdr.flags |= sys::CAM_PASS_ERR_RECOVER;
                hdr.retry_count = self.retries;
            }
            hdr.timeout = milliseconds(self.timeout);
            hdr.periph_priv.entries[0].field = slot;
            match self.protocol {
                Protocol::Scsi { cdb, len } => {
                    hdr.func_code = sys::XPT_SCSI_IO;
                    let io = &mut ccb.csio;
                    io.data_ptr = data;
                    io.dxfer_len = self.len as u32;
                    io.sense_len = size_of::<sys::scsi_sense_data>() as u8;
                    io.cdb_len = len;
                    io.cdb_io.cdb_bytes = cdb;
                    io.tag_action = match self.attribute {
                        Attribute::Simple => sys::MSG_SIMPLE_Q_TAG,
                        Attribute::Ordered => sys::MSG_ORDERED_Q_TAG,
                        Attribute::HeadOfQueue => sys::MSG_HEAD_OF_Q_TAG,
                    } as u8;
                }
                Protocol::Ata { registers, dma } => {
                    hdr.func_code = sys::XPT_ATA_IO;
                    let io = &mut ccb.ataio;
                    io.data_ptr = data;
                    io.dxfer_len = self.len as u32;
                    let flag = |on: bool, flag: u32| if on { flag as u8 } else { 0 };
                    let lba = registers.lba.to_le_bytes();
                    let features = registers.features.to_le_bytes();
                    let count = registers.count.to_le_bytes();
                    let cmd = &mut io.cmd;
                    cmd.flags = flag(registers.is_48bit, sys::CAM_ATAIO_48BIT)
                        | flag(dma, sys::CAM_ATAIO_DMA)
                        | flag(self.has_registers(), sys::CAM_ATAIO_NEEDRESULT);
                    cmd.command = registers.command;
                    (cmd.features, cmd.features_exp) = (features[0], features[1]);
                    (cmd.lba_low, cmd.lba_mid, cmd.lba_high) = (lba[0], lba[1], lba[2]);
                    (cmd.lba_low_exp, cmd.lba_mid_exp, cmd.lba_high_exp) = (lba[3], lba[4], lba[5]);
                    (cmd.sector_count, cmd.sector_count_exp) = (count[0], count[1]);
                    cmd.device = registers.device;
                }
                Protocol::Nvme { entry, admin } => {
                    hdr.func_code = if admin {
                        sys::XPT_NVME_ADMIN
                    } else {
                        sys::XPT_NVME_IO
                    };
                    let io = &mut ccb.nvmeio;
                    io.data_ptr = data;
                    io.dxfer_len = self.len as u32;
                    io.cmd.opc = entry.opcode;
                    io.cmd.nsid = entry.nsid.to_le();
                    let [a, b, c, d, e, f] = entry.cdw.map(u32::to_le);
                    (io.cmd.cdw10, io.cmd.cdw11, io.cmd.cdw12) = (a, b, c);
                    (io.cmd.cdw13, io.cmd.cdw14, io.cmd.cdw15) = (d, e, f);
                }
            }
        }
    }

    /// ATA: registers come with the completion, whatever its status.
    fn has_registers(&self) -> bool {
        self.direction.is_none() || self.wants_registers
    }

    /// Whether its completion is more than a status and a residual even if it ended
    /// well: then its CCB has to be written back.
    pub(crate) fn wants_ccb(&self) -> bool {
        match self.protocol {
            // What disks are read and written with answers nothing else.
            Protocol::Scsi { cdb, .. } => !matches!(
                cdb[0],
                0x00 | 0x08 | 0x0a | 0x28 | 0x2a | 0x35 | 0x88 | 0x8a | 0x91 | 0xa8 | 0xaa
            ),
            Protocol::Ata { .. } => self.has_registers(),
            Protocol::Nvme { entry, admin } => {
                admin || !matches!(entry.opcode, 0x00 | 0x01 | 0x02 | 0x05 | 0x08 | 0x09)
            }
        }
    }

    /// Whether it is the library that sends it again after an error.
    fn is_sent_again(&self) -> bool {
        matches!(self.protocol, Protocol::Scsi { .. }) && self.direction != Some(Direction::In)
    }

    /// What was moved of its data, of which that much is said to be left.
    fn moved(&self, resid: i32) -> usize {
        // Below 0 the device had more; above the length it is nonsense. Either
        // way all of it was moved (qpass(4), COMMANDS).
        let left = usize::try_from(resid).unwrap_or(0);
        self.len.checked_sub(left).unwrap_or(self.len)
    }

    /// How one ended well whose CCB was not written back.
    pub(crate) fn good(&mut self, resid: u32, scsi_status: u8) -> Outcome {
        let resid = resid as i32;
        Outcome {
            moved: self.moved(resid),
            residual: resid,
            cam: CamStatus(sys::CAM_REQ_CMP),
            device: match self.protocol {
                Protocol::Scsi { .. } => DeviceStatus::Scsi {
                    status: scsi_status,
                    sense: None,
                    unknown: Vec::new(),
                },
                _ => DeviceStatus::None,
            },
            earlier: core::mem::take(&mut self.earlier),
        }
    }

    /// How a completed CCB ended, and whether that is a failure.
    pub(crate) fn outcome(&mut self, ccb: &sys::ccb) -> Result<Outcome, CommandError> {
        // SAFETY: unions of plain data.
        let mut outcome = unsafe { self.decoded(ccb) };
        outcome.earlier = core::mem::take(&mut self.earlier);
        match outcome.is_success() {
            true => Ok(outcome),
            false => Err(CommandError(Box::new(outcome))),
        }
    }

    /// # Safety
    /// The CCB is a completed one of this command.
    unsafe fn decoded(&self, ccb: &sys::ccb) -> Outcome {
        // SAFETY: the caller's promise: the union is what the opcode says.
        unsafe {
            let cam = CamStatus(ccb.ccb_h.status);
            let code = cam.code();
            let resid = match self.protocol {
                Protocol::Scsi { .. } => ccb.csio.resid as i32,
                Protocol::Ata { .. } => ccb.ataio.resid as i32,
                // There is none: all or nothing.
                Protocol::Nvme { .. } if cam.is_good() => 0,
                Protocol::Nvme { .. } => self.len as i32,
            };
            let got_there = matches!(
                code,
                sys::CAM_REQ_CMP
                    | sys::CAM_SCSI_STATUS_ERROR
                    | sys::CAM_ATA_STATUS_ERROR
                    | sys::CAM_NVME_STATUS_ERROR
                    | sys::CAM_AUTOSENSE_FAIL
                    | sys::CAM_DATA_RUN_ERR
            );
            let device = match self.protocol {
                Protocol::Scsi { .. } if got_there => {
                    let io = &ccb.csio;
                    let given = usize::from(io.sense_len.saturating_sub(io.sense_resid));
                    let data = core::slice::from_raw_parts(
                        (&raw const io.sense_data).cast::<u8>(),
                        given.min(size_of::<sys::scsi_sense_data>()),
                    );
                    let is_valid = cam.0 & sys::CAM_AUTOSNS_VALID != 0;
                    let data = if is_valid { data } else { &[] };
                    let sense = Sense::parse(data).map(Box::new);
                    DeviceStatus::Scsi {
                        status: io.scsi_status,
                        unknown: match sense {
                            Some(_) => Vec::new(),
                            None => data.to_vec(),
                        },
                        sense,
                    }
                }
                Protocol::Ata { .. }
                    if code == sys::CAM_ATA_STATUS_ERROR
                        || code == sys::CAM_REQ_CMP && self.has_registers() =>
                {
                    DeviceStatus::Ata(registers(&ccb.ataio.res, self.is_48bit()))
                }
                Protocol::Nvme { .. } if got_there => DeviceStatus::Nvme {
                    status: nvme::Status::parse(u16::from_le(ccb.nvmeio.cpl.status)),
                    dword0: u32::from_le(ccb.nvmeio.cpl.cdw0),
                },
                _ => DeviceStatus::None,
            };
            Outcome {
                // What a SIM leaves in it says nothing when nothing came back.
                moved: if got_there { self.moved(resid) } else { 0 },
                residual: if got_there { resid } else { self.len as i32 },
                cam,
                device,
                earlier: Vec::new(),
            }
        }
    }

    /// How long it may take.
    pub(crate) fn patience(&self) -> Duration {
        self.timeout
    }

    /// It is not sent again.
    pub(crate) fn give_up(&mut self) {
        self.tries = 0;
    }

    fn is_48bit(&self) -> bool {
        matches!(self.protocol, Protocol::Ata { registers, .. } if registers.is_48bit)
    }

    /// Whether it is to be sent again after this failure, and after how long: its
    /// tries are counted, and what the device said is kept.
    pub(crate) fn again(&mut self, error: &CommandError) -> Option<Duration> {
        if self.tries == 0 || !self.is_sent_again() || error.is_deferred() {
            self.tries = 0;
            return None;
        }
        let wait = match (&error.device, error.cam.code()) {
            (_, sys::CAM_REQUEUE_REQ | sys::CAM_SCSI_BUS_RESET | sys::CAM_BDR_SENT) => {
                Duration::ZERO
            }
            (_, sys::CAM_BUSY | sys::CAM_RESRC_UNAVAIL | sys::CAM_SCSI_BUSY) => BUSY,
            (
                _,
                sys::CAM_CMD_TIMEOUT
                | sys::CAM_UNCOR_PARITY
                | sys::CAM_UNEXP_BUSFREE
                | sys::CAM_AUTOSENSE_FAIL,
            ) => Duration::ZERO,
            // BUSY and TASK SET FULL (SAM-6).
            (
                DeviceStatus::Scsi {
                    status: 0x08 | 0x28,
                    ..
                },
                _,
            ) => BUSY,
            (
                DeviceStatus::Scsi {
                    sense: Some(sense), ..
                },
                _,
            ) => match (sense.key, sense.asc, sense.ascq) {
                (0x2, 0x04, 0x01) => BUSY,
                (0x3 | 0x4 | 0x6 | 0xb, ..) => Duration::ZERO,
                _ => return None,
            },
            _ => return None,
        };
        self.tries -= 1;
        self.earlier = error.0.earlier.clone();
        self.earlier.extend(error.sense().cloned());
        Some(wait)
    }
}

/// How long a busy device is left alone: cam_periph_error(9) waits as long.
const BUSY: Duration = Duration::from_millis(500);

/// `ccb_h.timeout`: 0 and all bits set mean something else, CAM_TIME_DEFAULT and
/// CAM_TIME_INFINITY.
fn milliseconds(timeout: Duration) -> u32 {
    let all = timeout.as_nanos().div_ceil(1_000_000);
    u32::try_from(all)
        .unwrap_or(u32::MAX)
        .clamp(1, u32::MAX - 1)
}

fn registers(res: &sys::ata_res, is_48bit: bool) -> ata::Status {
    let high = |b: u8| if is_48bit { u64::from(b) } else { 0 };
    ata::Status {
        status: res.status,
        error: res.error,
        count: u16::from(res.sector_count) | (high(res.sector_count_exp) as u16) << 8,
        lba: u64::from(res.lba_low)
            | u64::from(res.lba_mid) << 8
            | u64::from(res.lba_high) << 16
            | high(res.lba_low_exp) << 24
            | high(res.lba_mid_exp) << 32
            | high(res.lba_high_exp) << 40,
        device: res.device,
        is_48bit,
        source: ata::Source::Controller,
    }
}

fn clamp16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// READ and WRITE, (10) where the address and the count fit, else (16).
pub(crate) fn read_write_cdb(write: bool, lba: u64, blocks: u32) -> Vec<u8> {
    match (u32::try_from(lba), u16::try_from(blocks)) {
        (Ok(lba), Ok(blocks)) => {
            let mut cdb = vec![if write { 0x2a } else { 0x28 }, 0];
            cdb.extend(lba.to_be_bytes());
            cdb.push(0);
            cdb.extend(blocks.to_be_bytes());
            cdb.push(0);
            cdb
        }
        _ => cdb_16(if write { 0x8a } else { 0x88 }, lba, blocks).to_vec(),
    }
}

/// An operation code, a byte, an address, a count, two bytes.
fn cdb_16(opcode: u8, lba: u64, count: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&count.to_be_bytes());
    cdb
}

fn ata_transfer(command: u8, lba: u64, blocks: u16) -> Registers {
    Registers {
        command,
        lba,
        count: blocks,
        // LBA mode.
        device: 0x40,
        is_48bit: true,
        ..Registers::default()
    }
}

fn ata_transfer_28(command: u8, lba: u64, blocks: u16) -> Registers {
    assert!(
        (1..=256).contains(&blocks) && lba.saturating_add(blocks.into()) <= 1 << 28,
        "{blocks} blocks at {lba} are not for a command of 28 bits"
    );
    Registers {
        command,
        lba: lba & 0xff_ffff,
        // 256 is 0.
        count: blocks & 0xff,
        // LBA mode, and the address's upper bits.
        device: 0x40 | (lba >> 24) as u8,
        ..Registers::default()
    }
}

fn nvme_transfer(opcode: u8, nsid: u32, lba: u64, blocks: u32) -> NvmeEntry {
    NvmeEntry {
        opcode,
        nsid,
        cdw: [
            lba as u32,
            (lba >> 32) as u32,
            blocks.saturating_sub(1) & 0xffff,
            0,
            0,
            0,
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_beyond_32_bits_or_a_long_transfer_takes_16_bytes() {
        assert_eq!(
            read_write_cdb(false, 0x1234_5678, 0x9abc),
            [0x28, 0, 0x12, 0x34, 0x56, 0x78, 0, 0x9a, 0xbc, 0]
        );
        let long = read_write_cdb(true, 0x1_0000_0000, 1);
        assert_eq!(long, [0x8a, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(read_write_cdb(false, 0, 0x1_0000)[0], 0x88);
    }

    /// E2, and row 36 of the field's cases.
    #[test]
    fn a_timeout_is_rounded_up_and_never_a_special_value() {
        for (time, ms) in [
            (Duration::ZERO, 1),
            (Duration::from_micros(100), 1),
            (Duration::from_micros(1001), 2),
            (Duration::from_secs(2340), 2_340_000),
            (Duration::from_secs(1200 * 3600), sys::CAM_TIME_INFINITY - 1),
            (Duration::MAX, sys::CAM_TIME_INFINITY - 1),
        ] {
            assert_eq!(milliseconds(time), ms, "{time:?}");
        }
    }

    /// Row 34.
    #[test]
    fn a_residual_below_zero_says_that_all_was_moved() {
        let mut command = Command::cdb(&[0x12, 0, 0, 0, 36, 0]);
        command.len = 36;
        for (resid, moved) in [(-60i32, 36), (0, 36), (30, 6), (36, 0), (37, 36)] {
            let good = command.good(resid as u32, 0);
            assert_eq!((good.moved, good.residual), (moved, resid));
        }
    }

    /// Whatever a SIM leaves in a CCB: no more is moved than there is, and it has words.
    #[test]
    fn no_ccb_makes_it_panic() {
        let mut noise = 0x2545_f491_4f6c_dd1du64;
        let mut next = || {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            noise
        };
        let statuses = [
            sys::CAM_REQ_CMP,
            sys::CAM_SCSI_STATUS_ERROR | sys::CAM_AUTOSNS_VALID,
            sys::CAM_ATA_STATUS_ERROR,
            sys::CAM_NVME_STATUS_ERROR,
            sys::CAM_DATA_RUN_ERR,
        ];
        let entry = NvmeEntry::default();
        for i in 0..3000 {
            // SAFETY: plain data, all of which may be zero.
            let mut ccb: sys::ccb = unsafe { core::mem::zeroed() };
            let words = size_of::<sys::ccb>() / 8;
            // SAFETY: a union of plain data, of which every byte may be anything.
            let raw =
                unsafe { core::slice::from_raw_parts_mut((&raw mut ccb).cast::<u64>(), words) };
            raw.iter_mut().for_each(|word| *word = next());
            ccb.ccb_h.status = statuses[i % statuses.len()];
            for mut command in [
                Command::cdb(&[0x12, 0, 0, 0, 36, 0]),
                Command::ata(Registers::default(), false),
                Command::nvme(entry, true),
            ] {
                command.len = 36;
                let ended = command.recover(2).outcome(&ccb);
                let outcome = ended.unwrap_or_else(CommandError::into_outcome);
                assert!(outcome.moved <= 36 && !outcome.to_string().is_empty());
            }
        }
    }

    /// Row 27: ACS-4.
    #[test]
    fn an_address_of_28_bits_is_in_two_places() {
        let registers = ata_transfer_28(0xc8, 0xabc_def0, 256);
        assert_eq!((registers.device, registers.lba), (0x4a, 0xbc_def0));
        assert_eq!((registers.count, registers.is_48bit), (0, false));
    }

    /// Rows 12 to 14: CAM sends a command again that tells of another.
    #[test]
    fn cam_is_not_asked_to_recover_what_writes() {
        // SAFETY: plain data.
        let mut ccb: sys::ccb = unsafe { core::mem::zeroed() };
        let mut flags = |command: Command| {
            command.recover(70_000).fill(&mut ccb, 0);
            // SAFETY: a union of plain data.
            unsafe {
                (
                    ccb.ccb_h.flags & sys::CAM_PASS_ERR_RECOVER,
                    ccb.ccb_h.retry_count,
                )
            }
        };
        assert_eq!(flags(Command::synchronize_cache()), (0, 0));
        let read = Command {
            direction: Some(Direction::In),
            ..Command::cdb(&[0x28; 10])
        };
        assert_eq!(flags(read), (sys::CAM_PASS_ERR_RECOVER, u16::MAX));
        let write = Command {
            direction: Some(Direction::Out),
            ..Command::cdb(&[0x2a; 10])
        };
        assert_eq!(flags(write), (0, 0));
    }
}
