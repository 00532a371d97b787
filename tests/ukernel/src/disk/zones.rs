//! A host-managed zoned disk (ZBC-2): write pointers, REPORT ZONES, and the zones'
//! commands.

use crate::scsi::{Answer, Data, Sense};

const UNALIGNED_WRITE: Sense = (5, 0x21, 0x04);
const INVALID_FIELD_IN_CDB: Sense = (5, 0x24, 0);
const INVALID_OPCODE: Sense = (5, 0x20, 0);

/// The zones.
#[derive(Debug)]
pub(super) struct Zones {
    /// Blocks of a zone.
    len: u64,
    /// Those that are written in any order, at the beginning.
    conventional: usize,
    /// Where each zone is written next, in blocks from its beginning.
    pointers: Vec<u64>,
    blocks: u64,
}

impl Zones {
    /// Of a disk of so many bytes: a zone is written up to the last byte that is not 0
    /// of what it begins with; where it begins with nothing, nothing is.
    pub fn of(contents: &[u8], size: usize, block: usize, len: u64, conventional: u64) -> Self {
        let zone = (len as usize).saturating_mul(block).max(block);
        let written = |bytes: &[u8]| {
            let last = bytes.iter().rposition(|b| *b != 0);
            last.map_or(0, |at| at as u64 / block as u64 + 1)
        };
        Zones {
            len: len.max(1),
            conventional: conventional as usize,
            pointers: {
                let mut pointers: Vec<_> = contents.chunks(zone).map(written).collect();
                pointers.resize(size.div_ceil(zone), 0);
                pointers
            },
            blocks: (size / block) as u64,
        }
    }

    /// Whether a command is one that such a disk has: the (16) forms.
    pub fn check(cdb: &[u8; 16]) -> Result<(), Sense> {
        match cdb[0] {
            0x08 | 0x0a | 0x25 | 0x28 | 0x2a | 0x2e | 0x35 | 0xa8 | 0xaa | 0xae => {
                Err(INVALID_OPCODE)
            }
            _ => Ok(()),
        }
    }

    /// A write is to begin where the zone's pointer is, and to end in the zone.
    pub fn write(&mut self, lba: u64, count: u64) -> Result<(), Sense> {
        let zone = (lba / self.len) as usize;
        if zone < self.conventional || count == 0 {
            return Ok(());
        }
        let at = lba % self.len;
        match self.pointers.get_mut(zone) {
            Some(pointer) if *pointer == at && at + count <= self.len => {
                *pointer += count;
                Ok(())
            }
            _ => Err(UNALIGNED_WRITE),
        }
    }

    /// REPORT ZONES, and RESET WRITE POINTER, FINISH, OPEN and CLOSE ZONE.
    pub fn execute(&mut self, cdb: &[u8; 16], data: Data<'_>) -> Option<Answer> {
        let lba = u64::from_be_bytes(cdb[2..10].try_into().expect("8 bytes"));
        let first = (lba / self.len) as usize;
        match (cdb[0], cdb[1] & 0x1f) {
            (0x95, 0) => {
                let report = self.report(first);
                let allocated = u32::from_be_bytes(cdb[10..14].try_into().expect("4 bytes"));
                Some(match data {
                    Data::In(to) => {
                        let n = report.len().min(allocated as usize).min(to.len());
                        to[..n].copy_from_slice(&report[..n]);
                        Ok(n)
                    }
                    _ => Err(INVALID_FIELD_IN_CDB),
                })
            }
            (0x94, action @ 1..=4) => {
                let all = cdb[14] & 1 != 0;
                let (len, conventional) = (self.len, self.conventional);
                let zones = self.pointers.iter_mut().enumerate().skip(conventional);
                for (_, pointer) in zones.filter(|(i, _)| all || *i == first) {
                    match action {
                        2 => *pointer = len,
                        4 => *pointer = 0,
                        _ => {}
                    }
                }
                Some(Ok(0))
            }
            _ => None,
        }
    }

    fn report(&self, first: usize) -> Vec<u8> {
        let count = self.pointers.len().saturating_sub(first);
        let mut data = vec![0; 64];
        data[..4].copy_from_slice(&((count * 64) as u32).to_be_bytes());
        data[8..16].copy_from_slice(&(self.blocks.saturating_sub(1)).to_be_bytes());
        for (i, pointer) in self.pointers.iter().enumerate().skip(first) {
            let begin = i as u64 * self.len;
            let is_conventional = i < self.conventional;
            let mut zone = [0; 64];
            zone[0] = if is_conventional { 1 } else { 2 };
            // Not a write pointer, empty, full, implicitly open.
            zone[1] = match *pointer {
                _ if is_conventional => 0x00,
                0 => 0x10,
                n if n == self.len => 0xe0,
                _ => 0x20,
            };
            let len = self.len.min(self.blocks - begin);
            zone[8..16].copy_from_slice(&len.to_be_bytes());
            zone[16..24].copy_from_slice(&begin.to_be_bytes());
            let at = if is_conventional {
                u64::MAX
            } else {
                begin + pointer
            };
            zone[24..32].copy_from_slice(&at.to_be_bytes());
            data.extend(zone);
        }
        data
    }
}
