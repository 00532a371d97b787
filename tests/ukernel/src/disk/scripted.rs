//! Answers as a script has them.

use super::{
    RamDisk,
    answer::{end_nvme, end_scsi},
    script::Rule,
};
use crate::{busdma::Map, model::Io, sys};

impl RamDisk {
    /// Answers a command for which the script has a rule: whether it is good.
    pub(super) fn answer_scripted(
        &self,
        ccb: *mut sys::ccb,
        rule: Option<usize>,
        io: Option<&Io>,
        map: Option<&Map>,
    ) -> bool {
        let (Some(rule), Some(script)) = (rule, &self.config.odd.script) else {
            return false;
        };
        let rule = script.at(rule);
        // SAFETY: the CCB is the SIM's until it is done, and what its opcode says.
        let good = unsafe {
            match (*ccb).ccb_h.func_code {
                sys::XPT_SCSI_IO => self.scsi_by(rule, &mut (*ccb).csio, map),
                sys::XPT_ATA_IO => self.ata_by(rule, &mut (*ccb).ataio, map),
                _ => self.nvme_by(rule, &mut (*ccb).nvmeio, io, map),
            }
        };
        match rule.cam {
            Some(status) => {
                // SAFETY: as above.
                let hdr = unsafe { &mut (*ccb).ccb_h };
                hdr.status = status | hdr.status & sys::CAM_AUTOSNS_VALID;
                status == sys::CAM_REQ_CMP
            }
            None => good,
        }
    }

    fn scsi_by(&self, rule: &Rule, csio: &mut sys::ccb_scsiio, map: Option<&Map>) -> bool {
        let len = csio.dxfer_len as usize;
        let status = rule.status.unwrap_or(match rule.sense {
            Some(_) => sys::SCSI_STATUS_CHECK_COND as u8,
            None => 0,
        });
        let direction = csio.ccb_h.flags & sys::CAM_DIR_MASK;
        let (mut moved, mut sense) = (0, None);
        if rule.does {
            (moved, sense) = self.execute(csio, len, map);
        } else if direction == sys::CAM_DIR_OUT && status == 0 {
            // It says that it has taken them.
            moved = len;
        }
        if let Some(data) = &rule.data
            && direction == sys::CAM_DIR_IN
        {
            // SAFETY: the union is plain data.
            let cdb = unsafe { csio.cdb_io.cdb_bytes };
            let allocated = rule.allocation.map_or(usize::MAX, |(from, to)| {
                cdb[from..=to]
                    .iter()
                    .fold(0, |n, b| n << 8 | usize::from(*b))
            });
            let flags = csio.ccb_h.flags;
            let mut copy = self.gather(map, flags, csio.data_ptr, csio.sglist_cnt, len);
            moved = data.len().min(allocated).min(copy.bytes.len());
            copy.bytes[..moved].copy_from_slice(&data[..moved]);
            copy.give_back();
        }
        let moved = rule.moved.unwrap_or(moved);
        let left = len as i64 - moved as i64;
        csio.resid = rule.residual.unwrap_or(left as i32) as u32;
        let sense = rule
            .sense
            .clone()
            .or(sense.filter(|_| rule.status.is_none()));
        let status = match &sense {
            Some(_) if rule.status.is_none() => sys::SCSI_STATUS_CHECK_COND as u8,
            _ => status,
        };
        end_scsi(csio, status, sense.as_deref())
    }

    fn ata_by(&self, rule: &Rule, io: &mut sys::ccb_ataio, map: Option<&Map>) -> bool {
        let len = io.dxfer_len as usize;
        let mut moved = 0;
        let direction = io.ccb_h.flags & sys::CAM_DIR_MASK;
        if rule.does {
            self.answer_ata(io, map);
            moved = len - (io.resid as usize).min(len);
        } else {
            io.res.status = 0x50;
            if direction == sys::CAM_DIR_OUT {
                moved = len;
            }
        }
        if let Some(data) = &rule.data
            && direction == sys::CAM_DIR_IN
        {
            let mut copy = self.gather(map, io.ccb_h.flags, io.data_ptr, 0, len);
            moved = data.len().min(copy.bytes.len());
            copy.bytes[..moved].copy_from_slice(&data[..moved]);
            copy.give_back();
        }
        if let Some(registers) = &rule.registers {
            let res = &mut io.res;
            res.status = registers.status.unwrap_or(res.status);
            res.error = registers.error.unwrap_or(res.error);
            res.device = registers.device.unwrap_or(res.device);
            if let Some(count) = registers.count {
                [res.sector_count, res.sector_count_exp] = count.to_le_bytes();
            }
            if let Some(lba) = registers.lba {
                let bytes = lba.to_le_bytes();
                (res.lba_low, res.lba_mid, res.lba_high) = (bytes[0], bytes[1], bytes[2]);
                (res.lba_low_exp, res.lba_mid_exp) = (bytes[3], bytes[4]);
                res.lba_high_exp = bytes[5];
            }
        }
        let is_good = io.res.status & 0x21 == 0;
        if !is_good && rule.moved.is_none() {
            moved = 0;
        }
        let moved = rule.moved.unwrap_or(moved);
        let left = len as i64 - moved as i64;
        io.resid = rule.residual.unwrap_or(left as i32) as u32;
        io.ccb_h.status = match is_good {
            true => sys::CAM_REQ_CMP,
            false => sys::CAM_ATA_STATUS_ERROR,
        };
        is_good
    }

    fn nvme_by(
        &self,
        rule: &Rule,
        nvmeio: &mut sys::ccb_nvmeio,
        io: Option<&Io>,
        map: Option<&Map>,
    ) -> bool {
        let mut good = true;
        if rule.does {
            good = self.answer_nvme(nvmeio, io, map);
        } else {
            end_nvme(nvmeio, 0);
        }
        if let Some(data) = &rule.data {
            let flags = nvmeio.ccb_h.flags;
            let len = nvmeio.dxfer_len as usize;
            let mut copy = self.gather(map, flags, nvmeio.data_ptr, nvmeio.sglist_cnt, len);
            let moved = data.len().min(copy.bytes.len());
            copy.bytes[..moved].copy_from_slice(&data[..moved]);
            copy.give_back();
        }
        nvmeio.cpl.cdw0 = rule.dword0.to_le();
        if rule.nvme != 0 {
            good = end_nvme(nvmeio, 0) && rule.nvme >> 1 & 0x7ff == 0;
            nvmeio.cpl.status = rule.nvme.to_le();
            if !good {
                nvmeio.ccb_h.status = sys::CAM_NVME_STATUS_ERROR;
            }
        }
        good
    }
}
