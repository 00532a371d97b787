//! What the disk makes of a command of each kind.

use super::{
    RamDisk,
    data::{Gathered, runs},
    tape,
    zones::Zones,
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
    pub(super) fn gather(
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
    pub(super) fn resid(&self, left: usize) -> u32 {
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
        let (moved, sense) = if self.takes_unit_attention() {
            // POWER ON, RESET, OR BUS DEVICE RESET OCCURRED
            (0, Some(scsi::fixed_sense((6, 0x29, 0)).to_vec()))
        } else {
            self.execute(csio, len, map)
        };
        csio.resid = self.resid(len - moved);
        match sense {
            None => end_scsi(csio, 0, None),
            Some(sense) => end_scsi(csio, sys::SCSI_STATUS_CHECK_COND as u8, Some(&sense)),
        }
    }

    fn takes_unit_attention(&self) -> bool {
        self.unit_attentions
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            .is_ok()
    }

    /// Carries a command out: bytes moved, and sense data unless it is GOOD.
    pub(super) fn execute(
        &self,
        csio: &sys::ccb_scsiio,
        len: usize,
        map: Option<&Map>,
    ) -> tape::Ended {
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
            return told(self.write_and_read(cdb, &mut copy));
        }
        let is_write = flags & sys::CAM_DIR_MASK == sys::CAM_DIR_OUT;
        if self.rots.load(Ordering::Relaxed) && is_write {
            copy.bytes.iter_mut().take(1).for_each(|byte| *byte ^= 1);
        }
        let head = std::array::from_fn(|i| cdb.get(i).copied().unwrap_or(0));
        let reads = flags & sys::CAM_DIR_MASK == sys::CAM_DIR_IN;
        let data = match flags & sys::CAM_DIR_MASK {
            _ if copy.bytes.is_empty() => Data::None,
            sys::CAM_DIR_IN => Data::In(&mut copy.bytes),
            sys::CAM_DIR_OUT => Data::Out(&copy.bytes),
            _ => Data::None,
        };
        let ended = self.by_kind(cdb, &head, data);
        if reads {
            copy.give_back();
        }
        ended
    }

    /// The same, as a disk of its kind does.
    fn by_kind(&self, cdb: &[u8], head: &[u8; 16], mut data: Data<'_>) -> tape::Ended {
        let odd = &self.config.odd;
        let writes = matches!(data, Data::Out(_));
        if odd.kind == super::Kind::Tape {
            let again = reborrow(&mut data);
            if let Some(ended) = self.tape.lock().unwrap().execute(head, again) {
                return ended;
            }
        }
        if let Some(zones) = self.zones.lock().unwrap().as_mut() {
            if let Err(sense) = Zones::check(head) {
                return told(Err(sense));
            }
            if let Some(answer) = zones.execute(head, reborrow(&mut data)) {
                return told(answer);
            }
            if let (true, Some((lba, count))) = (writes, scsi::range(head))
                && let Err(sense) = zones.write(lba, count)
            {
                return told(Err(sense));
            }
        }
        if let Some((lba, count)) = scsi::range(head) {
            if writes && odd.readonly {
                return told(Err((7, 0x27, 0)));
            }
            if writes {
                self.mend(lba, count);
            } else if let Some(bad) = self.first_bad(lba, count) {
                return self.medium_error(lba, bad, reborrow(&mut data));
            }
            if let (true, Data::Out(bytes)) = (odd.lies, &data) {
                return (bytes.len(), None);
            }
        }
        let standard = self.standard();
        let answer = Disk {
            blocks: &mut self.blocks.lock().unwrap(),
            serial: &self.serial,
            block: odd.block,
            standard: &standard,
        }
        .execute(cdb, data);
        told(answer)
    }

    /// The first block of a range that cannot be read.
    pub(super) fn first_bad(&self, lba: u64, count: u64) -> Option<u64> {
        let end = lba.saturating_add(count);
        let bad = self.bad.lock().unwrap();
        let inside = bad
            .iter()
            .filter(|(first, last)| *first < end && *last >= lba);
        inside.map(|(first, _)| (*first).max(lba)).min()
    }

    /// Blocks that are written can be read.
    pub(super) fn mend(&self, lba: u64, count: u64) {
        let end = lba.saturating_add(count);
        let mut bad = self.bad.lock().unwrap();
        let rest = |(first, last): (u64, u64)| {
            let before = (first < lba).then(|| (first, last.min(lba.saturating_sub(1))));
            let behind = (last >= end).then(|| (first.max(end), last));
            before.into_iter().chain(behind)
        };
        let left: Vec<_> = bad.drain(..).flat_map(rest).collect();
        *bad = left;
    }

    /// UNRECOVERED READ ERROR at a block: what comes before it is moved.
    fn medium_error(&self, lba: u64, bad: u64, data: Data<'_>) -> tape::Ended {
        let block = self.config.odd.block;
        let mut moved = 0;
        if let Data::In(to) = data {
            let blocks = self.blocks.lock().unwrap();
            let at = lba as usize * block;
            let len = ((bad - lba) as usize * block).min(to.len());
            if let Some(from) = blocks.get(at..at + len) {
                to[..len].copy_from_slice(from);
                moved = len;
            }
        }
        let mut sense = scsi::fixed_sense((3, 0x11, 0)).to_vec();
        sense[0] |= 0x80;
        sense[3..7].copy_from_slice(&(bad as u32).to_be_bytes());
        (moved, Some(sense))
    }

    /// XDWRITEREAD(10) (SBC-3): writes the data, and answers what it and the old
    /// data are, XORed.
    fn write_and_read(&self, cdb: &[u8], copy: &mut Gathered) -> scsi::Answer {
        let lba = u32::from_be_bytes([cdb[2], cdb[3], cdb[4], cdb[5]]) as usize;
        let at = lba * self.config.odd.block;
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
            let answer = self.by_namespace(what, map, lba as u64, entry[0]);
            *self.nvme_status.lock().unwrap() = answer.err();
            return end_nvme(io, answer.err().unwrap_or(0));
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
        end_nvme(
            io,
            match moved {
                Some(_) => 0,
                None => nvme::status::INVALID_OPCODE,
            },
        )
    }

    /// What a namespace makes of a command: its status, if it fails.
    fn by_namespace(&self, io: &Io, map: Option<&Map>, lba: u64, opcode: u8) -> Result<(), u16> {
        let is_io = io.func_code == sys::XPT_NVME_IO;
        let odd = &self.config.odd;
        let count = u32::from_le_bytes(io.command[48..52].try_into().expect("4 bytes"));
        let count = u64::from(count & 0xffff) + 1;
        match opcode {
            1 if is_io && odd.readonly => return Err(nvme::status::WRITE_PROTECTED),
            1 if is_io => {
                self.mend(lba, count);
                if odd.lies {
                    return Ok(());
                }
            }
            2 if is_io && self.first_bad(lba, count).is_some() => {
                return Err(nvme::status::UNRECOVERED_READ);
            }
            _ => {}
        }
        let mut blocks = self.blocks.lock().unwrap();
        nvme::execute(io, map, &mut blocks, odd.block, || self.namespace_data())
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

/// An answer of the SCSI disk, told as sense data.
fn told(answer: scsi::Answer) -> tape::Ended {
    match answer {
        Ok(moved) => (moved, None),
        Err(sense) => (0, Some(scsi::fixed_sense(sense).to_vec())),
    }
}

fn reborrow<'a>(data: &'a mut Data<'_>) -> Data<'a> {
    match data {
        Data::None => Data::None,
        Data::In(to) => Data::In(to),
        Data::Out(from) => Data::Out(from),
    }
}

/// Ends a SCSI command with a status, and sense data: whether it is GOOD.
pub(super) fn end_scsi(csio: &mut sys::ccb_scsiio, status: u8, sense: Option<&[u8]>) -> bool {
    csio.scsi_status = status;
    csio.ccb_h.status = match status {
        0 => sys::CAM_REQ_CMP,
        _ => sys::CAM_SCSI_STATUS_ERROR,
    };
    if let Some(sense) = sense {
        let room = usize::from(csio.sense_len)
            .min(sense.len())
            .min(size_of::<sys::scsi_sense_data>());
        // SAFETY: sense_data has that much room.
        unsafe {
            core::ptr::copy_nonoverlapping(
                sense.as_ptr(),
                (&raw mut csio.sense_data).cast::<u8>(),
                room,
            );
        }
        csio.sense_resid = csio.sense_len - room as u8;
        csio.ccb_h.status |= sys::CAM_AUTOSNS_VALID;
    }
    status == 0
}

/// Ends an NVMe command with a status code, the type above it: whether it is good.
pub(super) fn end_nvme(io: &mut sys::ccb_nvmeio, status: u16) -> bool {
    io.cpl.status = (status << 1).to_le();
    io.ccb_h.status = match status {
        0 => sys::CAM_REQ_CMP,
        _ => sys::CAM_NVME_STATUS_ERROR,
    };
    status == 0
}

/// Moves `len` bytes between the disk and kernel memory, if they are there.
pub(super) fn move_block(
    disk: &mut [u8],
    at: usize,
    data: *mut u8,
    len: usize,
    write: bool,
) -> Option<usize> {
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
