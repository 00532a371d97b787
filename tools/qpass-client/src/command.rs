//! Commands: what a device is asked, with the buffer for its data.
//!
//! A command owns its buffer. While the kernel has it, the queue owns the
//! command, so nothing can be freed or looked at too early.

use crate::{
    error::{CamStatus, CommandError, DeviceStatus},
    kernel::Buffer,
    sense::Sense,
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

/// One command.
#[derive(Debug)]
pub struct Command {
    protocol: Protocol,
    direction: Option<Direction>,
    len: usize,
    timeout: Duration,
    retries: u32,
    recover: bool,
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
        assert!(len <= buffer.len() && u32::try_from(len).is_ok());
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

    /// How long the device may take; else 30 seconds.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Lets the driver recover from errors as the disk's own driver would, with
    /// so many retries: a UNIT ATTENTION is not reported then.
    pub fn recover(mut self, retries: u32) -> Self {
        (self.recover, self.retries) = (true, retries);
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
    /// the first `len` bytes of the buffer.
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

    /// FLUSH CACHE EXT.
    pub fn ata_flush() -> Self {
        let registers = Registers {
            command: 0xea,
            is_48bit: true,
            ..Registers::default()
        };
        Command::ata(registers, false).timeout(Duration::from_secs(120))
    }

    /// CHECK POWER MODE.
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
            if self.recover {
                hdr.flags |= sys::CAM_PASS_ERR_RECOVER;
            }
            hdr.retry_count = self.retries as u16;
            hdr.timeout = u32::try_from(self.timeout.as_millis()).unwrap_or(u32::MAX);
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
                    io.tag_action = sys::MSG_SIMPLE_Q_TAG as u8;
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
                        | flag(self.direction.is_none(), sys::CAM_ATAIO_NEEDRESULT);
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

    /// How a completed CCB ended: the bytes that were moved, or why it failed.
    pub(crate) fn outcome(&self, ccb: &sys::ccb) -> Result<usize, CommandError> {
        // SAFETY: unions of plain data.
        unsafe {
            let cam = CamStatus(ccb.ccb_h.status);
            let resid = match self.protocol {
                Protocol::Scsi { .. } => ccb.csio.resid,
                Protocol::Ata { .. } => ccb.ataio.resid,
                Protocol::Nvme { .. } => 0,
            };
            if cam.is_good() {
                return Ok(self.len.saturating_sub(resid as usize));
            }
            let device = match (self.protocol, cam.code()) {
                (Protocol::Scsi { .. }, sys::CAM_SCSI_STATUS_ERROR) => {
                    let io = &ccb.csio;
                    let given = usize::from(io.sense_len.saturating_sub(io.sense_resid));
                    let data = core::slice::from_raw_parts(
                        (&raw const io.sense_data).cast::<u8>(),
                        given.min(size_of::<sys::scsi_sense_data>()),
                    );
                    let is_valid = cam.0 & sys::CAM_AUTOSNS_VALID != 0;
                    DeviceStatus::Scsi {
                        status: io.scsi_status,
                        sense: Sense::parse(data).filter(|_| is_valid),
                    }
                }
                (Protocol::Ata { .. }, sys::CAM_ATA_STATUS_ERROR) => DeviceStatus::Ata {
                    status: ccb.ataio.res.status,
                    error: ccb.ataio.res.error,
                },
                (Protocol::Nvme { .. }, sys::CAM_NVME_STATUS_ERROR) => {
                    let status = u16::from_le(ccb.nvmeio.cpl.status);
                    DeviceStatus::Nvme {
                        sct: (status >> 9 & 7) as u8,
                        sc: (status >> 1) as u8,
                    }
                }
                _ => DeviceStatus::None,
            };
            Err(CommandError { cam, device })
        }
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
        _ => {
            let mut cdb = vec![if write { 0x8a } else { 0x88 }, 0];
            cdb.extend(lba.to_be_bytes());
            cdb.extend(blocks.to_be_bytes());
            cdb.extend([0, 0]);
            cdb
        }
    }
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
}
