//! What the disk makes of a command of each kind.

use super::{
    RamDisk,
    data::{Gathered, runs},
};
use crate::{
    busdma::Map,
    model::{Io, Lists},
    nvme,
    scsi::{self, Data, Disk},
    sys,
    thread::broken,
};
use std::sync::atomic::Ordering;

impl RamDisk {
    fn gather(
        &self,
        map: Option<&Map>,
        flags: u32,
        data: *mut u8,
        segments: u16,
        len: usize,
    ) -> Gathered {
        if let Some(map) = map {
            return Gathered::of(map.parts(), len);
        }
        let mut parts = Vec::new();
        if flags & sys::CAM_DIR_MASK != sys::CAM_DIR_NONE && len != 0 && !data.is_null() {
            for run in runs(self.config.unmapped, flags, data, segments, len) {
                parts.extend(run.parts);
            }
        }
        Gathered::of(parts, len)
    }

    /// What is said to be left of a transfer of which that much is.
    fn resid(&self, left: usize) -> u32 {
        if self.lies_about_residual.load(Ordering::Relaxed) {
            return 0;
        }
        self.residual.lock().unwrap().unwrap_or(left as u32)
    }

    pub(super) fn answer_scsi(&self, csio: &mut sys::ccb_scsiio, map: Option<&Map>) -> bool {
        let len = csio.dxfer_len as usize;
        if self.config.model.lists == Lists::Refused
            && csio.ccb_h.flags & sys::CAM_DATA_SG != 0
            && csio.ccb_h.flags & sys::CAM_DIR_MASK != sys::CAM_DIR_NONE
        {
            csio.ccb_h.status = sys::CAM_REQ_INVALID;
            return false;
        }
        let answer = if self.takes_unit_attention() {
            // POWER ON, RESET, OR BUS DEVICE RESET OCCURRED
            Err((6, 0x29, 0))
        } else {
            self.execute(csio, len, map)
        };
        match answer {
            Ok(moved) => {
                csio.ccb_h.status = sys::CAM_REQ_CMP;
                csio.scsi_status = sys::SCSI_STATUS_OK as u8;
                csio.resid = self.resid(len - moved);
                true
            }
            Err(sense) => {
                let sense = scsi::fixed_sense(sense);
                let room = usize::from(csio.sense_len).min(sense.len());
                // SAFETY: sense_data is larger than fixed sense.
                unsafe {
                    core::ptr::copy_nonoverlapping(
                        sense.as_ptr(),
                        (&raw mut csio.sense_data).cast::<u8>(),
                        room,
                    );
                }
                csio.sense_resid = csio.sense_len - room as u8;
                csio.ccb_h.status = sys::CAM_SCSI_STATUS_ERROR | sys::CAM_AUTOSNS_VALID;
                csio.scsi_status = sys::SCSI_STATUS_CHECK_COND as u8;
                csio.resid = len as u32;
                false
            }
        }
    }

    fn takes_unit_attention(&self) -> bool {
        self.unit_attentions
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            .is_ok()
    }

    fn execute(&self, csio: &sys::ccb_scsiio, len: usize, map: Option<&Map>) -> scsi::Answer {
        let flags = csio.ccb_h.flags;
        let mut copy = self.gather(map, flags, csio.data_ptr, csio.sglist_cnt, len);
        // SAFETY: the union is plain data; a CDB elsewhere stays valid until
        // the CCB is done.
        let cdb = unsafe {
            if flags & sys::CAM_CDB_POINTER != 0 {
                core::slice::from_raw_parts(csio.cdb_io.cdb_ptr, usize::from(csio.cdb_len))
            } else {
                &csio.cdb_io.cdb_bytes[..usize::from(csio.cdb_len).min(16)]
            }
        };
        if cdb.first() == Some(&0x53) && flags & sys::CAM_DIR_MASK == sys::CAM_DIR_BOTH {
            return self.write_and_read(cdb, &mut copy);
        }
        if self.rots.load(Ordering::Relaxed) && flags & sys::CAM_DIR_MASK == sys::CAM_DIR_OUT {
            copy.bytes.iter_mut().take(1).for_each(|byte| *byte ^= 1);
        }
        let data = match flags & sys::CAM_DIR_MASK {
            _ if copy.bytes.is_empty() => Data::None,
            sys::CAM_DIR_IN => Data::In(&mut copy.bytes),
            sys::CAM_DIR_OUT => Data::Out(&copy.bytes),
            _ => Data::None,
        };
        let answer = Disk {
            blocks: &mut self.blocks.lock().unwrap(),
            serial: &self.serial,
        }
        .execute(cdb, data);
        if flags & sys::CAM_DIR_MASK == sys::CAM_DIR_IN {
            copy.give_back();
        }
        answer
    }

    /// XDWRITEREAD(10) (SBC-3): writes the data, and answers what it and the old
    /// data are, XORed.
    fn write_and_read(&self, cdb: &[u8], copy: &mut Gathered) -> scsi::Answer {
        let lba = u32::from_be_bytes([cdb[2], cdb[3], cdb[4], cdb[5]]) as usize;
        let at = lba * scsi::BLOCK;
        let mut blocks = self.blocks.lock().unwrap();
        let Some(range) = blocks.get_mut(at..at + copy.bytes.len()) else {
            return Err((5, 0x21, 0));
        };
        for (old, new) in range.iter_mut().zip(&mut copy.bytes) {
            let xor = *old ^ *new;
            *old = *new;
            *new = xor;
        }
        copy.give_back();
        Ok(copy.bytes.len())
    }

    /// READ DMA EXT, WRITE DMA EXT, READ and WRITE FPDMA QUEUED, IDENTIFY DEVICE,
    /// CHECK POWER MODE (ACS-4); all else is aborted.
    pub(super) fn answer_ata(&self, io: &mut sys::ccb_ataio, map: Option<&Map>) -> bool {
        let len = io.dxfer_len as usize;
        let lba = usize::from(io.cmd.lba_low)
            | usize::from(io.cmd.lba_mid) << 8
            | usize::from(io.cmd.lba_high) << 16;
        let at = lba * scsi::BLOCK;
        let mut copy = self.gather(map, io.ccb_h.flags, io.data_ptr, 0, len);
        let data = copy.bytes.as_mut_ptr();
        let is_ncq = matches!(io.cmd.command, 0x60 | 0x61);
        let sectors = if is_ncq {
            usize::from(io.cmd.features) | usize::from(io.cmd.features_exp) << 8
        } else {
            usize::from(io.cmd.sector_count) | usize::from(io.cmd.sector_count_exp) << 8
        };
        let moved = match io.cmd.command {
            command @ (0x25 | 0x35 | 0x60 | 0x61) => {
                let mut blocks = self.blocks.lock().unwrap();
                // No count stands for the most there can be.
                let len = match sectors {
                    0 => len,
                    n => len.min(n * scsi::BLOCK),
                };
                move_block(&mut blocks, at, data, len, matches!(command, 0x35 | 0x61))
            }
            0xec => {
                let mut page = vec![0; 512];
                // Words 27 to 46: the model number, bytes of a word swapped.
                for (i, byte) in b"QPASS RAM DISK".iter().enumerate() {
                    page[54 + (i ^ 1)] = *byte;
                }
                move_block(&mut page, 0, data, len.min(512), false)
            }
            0xe5 => Some(0),
            _ => None,
        };
        if io.ccb_h.flags & sys::CAM_DIR_MASK == sys::CAM_DIR_IN {
            copy.give_back();
        }
        match moved {
            Some(moved) => {
                io.resid = self.resid(len - moved);
                io.res.status = 0x50;
                io.ccb_h.status = sys::CAM_REQ_CMP;
                true
            }
            None => {
                io.resid = len as u32;
                io.res.status = 0x51;
                io.res.error = 0x04;
                io.ccb_h.status = sys::CAM_ATA_STATUS_ERROR;
                false
            }
        }
    }

    /// Read, Write and Flush; Identify Controller (NVM Express 2.0).
    pub(super) fn answer_nvme(
        &self,
        io: &mut sys::ccb_nvmeio,
        what: Option<&Io>,
        map: Option<&Map>,
    ) -> bool {
        // SAFETY: 64 bytes of plain data: a submission queue entry.
        let entry: &[u8; 64] = unsafe { &*(&raw const io.cmd).cast() };
        self.nvme_addresses_seen
            .store(entry[16..40].iter().any(|b| *b != 0), Ordering::SeqCst);
        let lba = u64::from_le_bytes(entry[40..48].try_into().expect("8 bytes")) as usize;
        if let Some(what) = what
            && self.config.model.is_nvme
        {
            let answer = nvme::execute(what, map, &mut self.blocks.lock().unwrap());
            io.ccb_h.status = match answer {
                Ok(()) => sys::CAM_REQ_CMP,
                Err(_) => sys::CAM_NVME_STATUS_ERROR,
            };
            *self.nvme_status.lock().unwrap() = answer.err();
            return answer.is_ok();
        }
        let len = io.dxfer_len as usize;
        let mut copy = self.gather(None, io.ccb_h.flags, io.data_ptr, io.sglist_cnt, len);
        let admin = io.ccb_h.func_code == sys::XPT_NVME_ADMIN;
        let moved = match (admin, entry[0]) {
            (false, 0) => Some(0),
            (false, opcode @ (1 | 2)) => {
                let mut blocks = self.blocks.lock().unwrap();
                let at = lba * scsi::BLOCK;
                move_block(&mut blocks, at, copy.bytes.as_mut_ptr(), len, opcode == 1)
            }
            (true, 6) => {
                let mut page = vec![0; 4096];
                page[24..38].copy_from_slice(b"QPASS RAM DISK");
                move_block(&mut page, 0, copy.bytes.as_mut_ptr(), len.min(4096), false)
            }
            _ => None,
        };
        copy.give_back();
        io.ccb_h.status = match moved {
            Some(_) => sys::CAM_REQ_CMP,
            None => sys::CAM_NVME_STATUS_ERROR,
        };
        moved.is_some()
    }

    /// READ_MULTIPLE_BLOCK and WRITE_MULTIPLE_BLOCK by block address, and
    /// SEND_STATUS (SD Physical Layer Simplified Specification, 4.7.4).
    pub(super) fn answer_mmc(&self, io: &mut sys::ccb_mmcio) -> bool {
        if !io.cmd.mrq.is_null() || !io.stop.mrq.is_null() || !io.stop.data.is_null() {
            broken("an MMC command comes with a user's pointers");
        }
        let at = io.cmd.arg as usize * scsi::BLOCK;
        let moved = match io.cmd.opcode {
            13 => Some(0),
            opcode @ (18 | 25) if !io.cmd.data.is_null() => {
                // SAFETY: kernel memory, as long as the CCB is under way.
                let data = unsafe { &mut *io.cmd.data };
                if !data.mrq.is_null() {
                    broken("an MMC command's data comes with a user's pointer");
                }
                let mut blocks = self.blocks.lock().unwrap();
                let moved = move_block(&mut blocks, at, data.data.cast(), data.len, opcode == 25);
                data.xfer_len = moved.unwrap_or(0);
                moved
            }
            _ => None,
        };
        // R1: ready, in the transfer state.
        io.cmd.resp[0] = 0x900;
        io.ccb_h.status = match moved {
            Some(_) => sys::CAM_REQ_CMP,
            None => sys::CAM_REQ_CMP_ERR,
        };
        moved.is_some()
    }
}

/// Moves `len` bytes between the disk and kernel memory, if they are there.
fn move_block(disk: &mut [u8], at: usize, data: *mut u8, len: usize, write: bool) -> Option<usize> {
    let range = disk.get_mut(at..at.checked_add(len)?)?;
    if len != 0 && data.is_null() {
        return None;
    }
    // SAFETY: the CCB's data is kernel memory of that length.
    unsafe {
        if write {
            core::ptr::copy_nonoverlapping(data, range.as_mut_ptr(), len);
        } else {
            core::ptr::copy_nonoverlapping(range.as_ptr(), data, len);
        }
    }
    Some(len)
}

/// REPORT GENERAL in form: the function is answered as accepted (SPL-4).
pub(super) fn answer_smp(io: &mut sys::ccb_smpio) -> bool {
    io.ccb_h.status = sys::CAM_REQ_CMP;
    if io.smp_request_len < 4 || io.smp_response_len < 4 {
        io.ccb_h.status = sys::CAM_SMP_STATUS_ERROR;
        return false;
    }
    // SAFETY: both buffers are kernel memory of their lengths.
    unsafe {
        let function = *io.smp_request.add(1);
        let answer = [0x41, function, 0, 0];
        core::ptr::copy_nonoverlapping(answer.as_ptr(), io.smp_response, answer.len());
    }
    true
}
