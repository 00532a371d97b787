//! What an ATA disk makes of a command (ACS-4).

use super::{RamDisk, answer::move_block};
use crate::{busdma::Map, sys};

/// How a command ended: bytes moved and the count register, or the error register.
type Ended = Result<(usize, u16), u8>;

/// ABRT, UNC and IDNF of the error register.
const ABORTED: u8 = 0x04;
const UNCORRECTABLE: u8 = 0x40;
const NOT_FOUND: u8 = 0x10;

impl RamDisk {
    /// READ and WRITE, by DMA, by PIO and queued, of 28 and 48 bits; VERIFY, FLUSH
    /// CACHE, IDENTIFY DEVICE, CHECK POWER MODE, SMART RETURN STATUS; all else is
    /// aborted.
    pub(super) fn answer_ata(&self, io: &mut sys::ccb_ataio, map: Option<&Map>) -> bool {
        let len = io.dxfer_len as usize;
        let mut copy = self.gather(map, io.ccb_h.flags, io.data_ptr, 0, len);
        let ended = self.by_register(io, copy.bytes.as_mut_ptr(), len);
        if io.ccb_h.flags & sys::CAM_DIR_MASK == sys::CAM_DIR_IN {
            copy.give_back();
        }
        let res = &mut io.res;
        match ended {
            Ok((moved, count)) => {
                io.resid = self.resid(len - moved);
                [res.sector_count, res.sector_count_exp] = count.to_le_bytes();
                (res.status, res.error) = (0x50, 0);
                io.ccb_h.status = sys::CAM_REQ_CMP;
                true
            }
            Err(error) => {
                io.resid = len as u32;
                (res.status, res.error) = (0x51, error);
                io.ccb_h.status = sys::CAM_ATA_STATUS_ERROR;
                false
            }
        }
    }

    fn by_register(&self, io: &mut sys::ccb_ataio, data: *mut u8, len: usize) -> Ended {
        let odd = &self.config.odd;
        let cmd = &io.cmd;
        let command = cmd.command;
        let is_48bit = matches!(
            command,
            0x24 | 0x25 | 0x29 | 0x34 | 0x35 | 0x39 | 0x3d | 0x42 | 0x60 | 0x61 | 0xea
        );
        if is_48bit && odd.lba28 {
            return Err(ABORTED);
        }
        let low = [cmd.lba_low, cmd.lba_mid, cmd.lba_high];
        let high = match is_48bit {
            true => [cmd.lba_low_exp, cmd.lba_mid_exp, cmd.lba_high_exp],
            false => [cmd.device & 0xf, 0, 0],
        };
        let lba = low
            .iter()
            .chain(&high)
            .rev()
            .fold(0u64, |n, b| n << 8 | u64::from(*b));
        let count = match (command, is_48bit) {
            (0x60 | 0x61, _) => u16::from_le_bytes([cmd.features, cmd.features_exp]).into(),
            (_, true) => u16::from_le_bytes([cmd.sector_count, cmd.sector_count_exp]).into(),
            (_, false) => u64::from(cmd.sector_count),
        };
        // No count stands for the most there can be.
        let count = match (count, is_48bit) {
            (0, true) => 65536,
            (0, false) => 256,
            (n, _) => n,
        };
        let writes = matches!(
            command,
            0x30 | 0x34 | 0x35 | 0x39 | 0x3d | 0x61 | 0xc5 | 0xca
        );
        match command {
            0x20 | 0x24 | 0x25 | 0x29 | 0x60 | 0xc4 | 0xc8 | 0x40 | 0x42 => {
                if self.first_bad(lba, count).is_some() {
                    return Err(UNCORRECTABLE);
                }
            }
            _ if writes && odd.readonly => return Err(ABORTED),
            _ if writes => self.mend(lba, count),
            0xe7 | 0xea => return Ok((0, 0)),
            0xe5 => return Ok((0, 0xff)),
            0xec => {
                let mut page = self.identify_data();
                let moved = move_block(&mut page, 0, data, len.min(512), false);
                return moved.map(|n| (n, 0)).ok_or(ABORTED);
            }
            // SMART RETURN STATUS: no threshold is exceeded.
            0xb0 if cmd.features == 0xda => {
                (io.res.lba_mid, io.res.lba_high) = (0x4f, 0xc2);
                return Ok((0, 0));
            }
            _ => return Err(ABORTED),
        }
        let len = len.min(count as usize * odd.block);
        if writes && odd.lies || matches!(command, 0x40 | 0x42) {
            return Ok((len, 0));
        }
        let at = usize::try_from(lba)
            .ok()
            .and_then(|n| n.checked_mul(odd.block));
        let mut blocks = self.blocks.lock().unwrap();
        let moved = at.and_then(|at| move_block(&mut blocks, at, data, len, writes));
        moved.map(|n| (n, 0)).ok_or(NOT_FOUND)
    }

    /// IDENTIFY DEVICE data (ACS-4, 7.13).
    pub(super) fn identify_data(&self) -> Vec<u8> {
        let odd = &self.config.odd;
        let mut page = vec![0; 512];
        let texts = [
            (10, 20, self.serial.as_str()),
            (23, 8, "0001"),
            (27, 40, "QPASS RAM DISK"),
        ];
        for (word, len, text) in texts {
            // Two letters of a word are swapped.
            for i in 0..len {
                let letter = text.as_bytes().get(i).copied().unwrap_or(b' ');
                page[word * 2 + (i ^ 1)] = letter;
            }
        }
        let blocks = (self.config.size / odd.block) as u64;
        let short = blocks.min(0x0fff_ffff);
        let mut words = vec![
            (49, 0x0300),
            (60, short as u16),
            (61, (short >> 16) as u16),
            // Write cache; FLUSH CACHE, with 48 bits and FLUSH CACHE EXT.
            (82, 0x0020),
            (83, if odd.lba28 { 0x5000 } else { 0x7400 }),
            (84, 0x4000),
            (85, 0x0020),
            (86, if odd.lba28 { 0x1000 } else { 0x3400 }),
            (87, 0x4000),
        ];
        if !odd.lba28 {
            words.extend((0..4).map(|i| (100 + i, (blocks >> (16 * i)) as u16)));
        }
        if odd.block != 512 {
            let half = (odd.block / 2) as u32;
            words.extend([
                (106, 0x5000),
                (117, half as u16),
                (118, (half >> 16) as u16),
            ]);
        }
        for (word, value) in words {
            page[word * 2..word * 2 + 2].copy_from_slice(&u16::to_le_bytes(value));
        }
        if let Some(script) = &odd.script {
            script.change_identify(&mut page);
        }
        page
    }
}
