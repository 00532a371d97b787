//! SCSI commands as CCBs, built the way a program with libcam would.

use crate::sys::{Errno, Fd, Memory, Sys};
use sys_bindings as sys;

/// Bytes in a block of the devices that the cases run on.
pub const BLOCK: usize = 512;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// `ccb_h.status`, without its flags.
    pub status: u32,
    /// `scsi_status`.
    pub scsi_status: u8,
    /// `resid`.
    pub resid: u32,
    /// Sense key, additional sense code and qualifier, 0 without sense.
    pub sense: (u8, u8, u8),
}

/// A CCB in process memory, with its data buffer.
pub struct Command {
    /// The CCB.
    pub ccb: Memory,
    /// The data.
    pub data: Memory,
}

impl Command {
    /// A CCB with a buffer of `len` bytes and nothing set.
    pub fn new(sys: &mut dyn Sys, len: usize) -> Self {
        Command {
            ccb: Memory::new(sys, size_of::<sys::ccb>()),
            data: Memory::new(sys, len.max(1)),
        }
    }

    /// Makes it an XPT_SCSI_IO.
    pub fn scsi(&mut self, cdb: &[u8], direction: u32, len: usize) {
        let data = self.data.address() as *mut u8;
        let ccb = self.ccb.ccb_mut();
        // SAFETY: a whole CCB of plain data.
        unsafe {
            *ccb = core::mem::zeroed();
            let csio = &mut ccb.csio;
            csio.ccb_h.func_code = sys::XPT_SCSI_IO;
            csio.ccb_h.flags = direction | sys::CAM_DEV_QFRZDIS;
            csio.ccb_h.retry_count = 1;
            csio.ccb_h.timeout = 10_000;
            csio.data_ptr = data;
            csio.dxfer_len = len as u32;
            csio.sense_len = size_of::<sys::scsi_sense_data>() as u8;
            csio.cdb_len = cdb.len() as u8;
            csio.tag_action = sys::MSG_SIMPLE_Q_TAG as u8;
            csio.cdb_io.cdb_bytes[..cdb.len()].copy_from_slice(cdb);
        }
    }

    /// Makes it an immediate CCB.
    pub fn immediate(&mut self, func_code: sys::xpt_opcode) {
        let ccb = self.ccb.ccb_mut();
        // SAFETY: a whole CCB of plain data.
        unsafe {
            *ccb = core::mem::zeroed();
            ccb.ccb_h.func_code = func_code;
        }
    }

    /// TEST UNIT READY.
    pub fn test_unit_ready(&mut self) {
        self.scsi(&[0; 6], sys::CAM_DIR_NONE, 0);
    }

    /// INQUIRY, standard data.
    pub fn inquiry(&mut self, len: u8) {
        self.scsi(&[0x12, 0, 0, 0, len, 0], sys::CAM_DIR_IN, usize::from(len));
    }

    /// READ CAPACITY(10).
    pub fn read_capacity(&mut self) {
        self.scsi(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], sys::CAM_DIR_IN, 8);
    }

    /// READ(10) or WRITE(10) of `blocks` at `lba`.
    pub fn rw10(&mut self, write: bool, lba: u32, blocks: u16) {
        let (opcode, direction) = if write {
            (0x2a, sys::CAM_DIR_OUT)
        } else {
            (0x28, sys::CAM_DIR_IN)
        };
        let [a, b, c, d] = lba.to_be_bytes();
        let [e, f] = blocks.to_be_bytes();
        self.scsi(
            &[opcode, 0, a, b, c, d, 0, e, f, 0],
            direction,
            usize::from(blocks) * BLOCK,
        );
    }

    /// Names the data by a list instead: `lens` bytes each, one after the
    /// other with `gap` bytes between, from `data` + `at`. The list itself
    /// goes into `list`.
    pub fn list(&mut self, list: &mut Memory, at: usize, gap: usize, lens: &[usize]) {
        let mut here = self.data.address() + at;
        for (i, len) in lens.iter().enumerate() {
            let segment = [here as u64, *len as u64];
            for (j, word) in segment.iter().enumerate() {
                let to = i * 16 + j * 8;
                list.bytes_mut()[to..to + 8].copy_from_slice(&word.to_ne_bytes());
            }
            here += len + gap;
        }
        let address = list.address();
        let csio = self.csio();
        csio.ccb_h.flags |= sys::CAM_DATA_SG;
        csio.data_ptr = address as *mut u8;
        csio.sglist_cnt = lens.len() as u16;
    }

    /// The header.
    pub fn hdr(&mut self) -> &mut sys::ccb_hdr {
        // SAFETY: plain data.
        unsafe { &mut self.ccb.ccb_mut().ccb_h }
    }

    /// The SCSI part.
    pub fn csio(&mut self) -> &mut sys::ccb_scsiio {
        // SAFETY: plain data.
        unsafe { &mut self.ccb.ccb_mut().csio }
    }

    /// A word of `periph_priv`, the program's own.
    pub fn private(&self, i: usize) -> u64 {
        // SAFETY: plain data.
        unsafe { self.ccb.ccb().ccb_h.periph_priv.entries[i].field }
    }

    /// Sets a word of `periph_priv`.
    pub fn set_private(&mut self, i: usize, value: u64) {
        // SAFETY: plain data.
        unsafe { self.hdr().periph_priv.entries[i].field = value };
    }

    /// CAMIOCOMMAND.
    ///
    /// # Errors
    /// The errno.
    pub fn send(&self, sys: &mut dyn Sys, fd: Fd) -> Result<(), Errno> {
        sys.ioctl(fd, sys::QPC_CAMIOCOMMAND, self.ccb.address())
    }

    /// CAMIOQUEUE.
    ///
    /// # Errors
    /// The errno.
    pub fn queue(&self, sys: &mut dyn Sys, fd: Fd) -> Result<(), Errno> {
        sys.ioctl(fd, sys::QPC_CAMIOQUEUE, self.ccb.address())
    }

    /// CAMIOGET, into this CCB.
    ///
    /// # Errors
    /// The errno.
    pub fn get(&self, sys: &mut dyn Sys, fd: Fd) -> Result<(), Errno> {
        sys.ioctl(fd, sys::QPC_CAMIOGET, self.ccb.address())
    }

    /// How it ended.
    pub fn ended(&self) -> Ended {
        // SAFETY: plain data.
        let csio = unsafe { &self.ccb.ccb().csio };
        let valid = csio.ccb_h.status & sys::CAM_AUTOSNS_VALID != 0;
        // SAFETY: sense data is plain bytes; fixed format has the key in byte 2
        // and the codes in bytes 12 and 13 (SPC-5, 4.4.3).
        let sense: &[u8; 14] = unsafe { &*(&raw const csio.sense_data).cast() };
        Ended {
            status: csio.ccb_h.status & sys::CAM_STATUS_MASK,
            scsi_status: csio.scsi_status,
            resid: csio.resid,
            sense: if valid {
                (sense[2] & 0xf, sense[12], sense[13])
            } else {
                (0, 0, 0)
            },
        }
    }

    /// Gives the memory back.
    pub fn free(self, sys: &mut dyn Sys) {
        self.ccb.unmap(sys);
        self.data.unmap(sys);
    }
}
