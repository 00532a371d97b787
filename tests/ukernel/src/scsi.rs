//! What a disk makes of a CDB (SPC-5, SBC-4): data, or a CHECK CONDITION.

/// Bytes in a block.
pub const BLOCK: usize = 512;

/// Sense key, additional sense code and qualifier.
pub type Sense = (u8, u8, u8);

const INVALID_OPCODE: Sense = (5, 0x20, 0);
const LBA_OUT_OF_RANGE: Sense = (5, 0x21, 0);
const INVALID_FIELD_IN_CDB: Sense = (5, 0x24, 0);

/// What a command did: bytes moved, or why it failed.
pub type Answer = Result<usize, Sense>;

/// A disk as SCSI sees it.
pub struct Disk<'a> {
    /// Its contents, a multiple of `block`.
    pub blocks: &'a mut [u8],
    /// Its serial number, ASCII.
    pub serial: &'a str,
    /// Bytes of a block.
    pub block: usize,
    /// Its standard INQUIRY data.
    pub standard: &'a [u8],
}

/// The blocks that READ, WRITE, WRITE AND VERIFY or VERIFY is of: the first, and how
/// many (SBC-4).
pub fn range(cdb: &[u8; 16]) -> Option<(u64, u64)> {
    Some(match cdb[0] {
        0x08 | 0x0a => {
            let blocks = if cdb[4] == 0 { 256 } else { u64::from(cdb[4]) };
            (be(&cdb[1..4]) & 0x1f_ffff, blocks)
        }
        0x28 | 0x2a | 0x2e | 0x2f => (be(&cdb[2..6]), be(&cdb[7..9])),
        0xa8 | 0xaa | 0xae | 0xaf => (be(&cdb[2..6]), be(&cdb[6..10])),
        0x88 | 0x8a | 0x8e | 0x8f => (be(&cdb[2..10]), be(&cdb[10..14])),
        _ => return None,
    })
}

/// Whether a CDB is READ, WRITE or WRITE AND VERIFY, of any length (SBC-4).
pub fn is_read_or_write(cdb: &[u8]) -> bool {
    match cdb[0] {
        0x08 | 0x0a | 0x28 | 0x2a | 0x2e | 0xa8 | 0xaa | 0xae | 0x88 | 0x8a | 0x8e => true,
        // A variable length CDB: READ(32), WRITE(32), WRITE AND VERIFY(32).
        0x7f => matches!(be(&cdb[8..10]), 0x09 | 0x0b | 0x0c),
        _ => false,
    }
}

/// What the initiator sends or receives.
pub enum Data<'a> {
    /// Nothing.
    None,
    /// From the device.
    In(&'a mut [u8]),
    /// To the device.
    Out(&'a [u8]),
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

impl Disk<'_> {
    /// Carries out a command.
    pub fn execute(&mut self, cdb: &[u8], data: Data<'_>) -> Answer {
        let cdb: [u8; 16] = std::array::from_fn(|i| cdb.get(i).copied().unwrap_or(0));
        match cdb[0] {
            // TEST UNIT READY, SYNCHRONIZE CACHE(10) and (16)
            0x00 | 0x35 | 0x91 => Ok(0),
            // REQUEST SENSE: NO SENSE, as sense comes with the command.
            0x03 => reply(data, usize::from(cdb[4]), &fixed_sense((0, 0, 0))),
            0x12 => self.inquiry(&cdb, data),
            // MODE SENSE(6) and (10): the header, no block descriptor, no page.
            0x1a => reply(data, usize::from(cdb[4]), &[3, 0, 0, 0]),
            0x5a => reply(data, be(&cdb[7..9]) as usize, &[0, 6, 0, 0, 0, 0, 0, 0]),
            0x25 => self.read_capacity_10(data),
            0x9e if cdb[1] & 0x1f == 0x10 => self.read_capacity_16(&cdb, data),
            // REPORT LUNS: one, number 0.
            0xa0 => reply(
                data,
                be(&cdb[6..10]) as usize,
                &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
            // VERIFY(10), (12) and (16), without data.
            0x2f | 0xaf | 0x8f => match range(&cdb) {
                Some((lba, count)) if lba.saturating_add(count) <= self.count() => Ok(0),
                _ => Err(LBA_OUT_OF_RANGE),
            },
            _ => match range(&cdb) {
                Some((lba, count)) => self.transfer(lba, count, data),
                None => Err(INVALID_OPCODE),
            },
        }
    }

    fn count(&self) -> u64 {
        (self.blocks.len() / self.block) as u64
    }

    fn transfer(&mut self, lba: u64, count: u64, data: Data<'_>) -> Answer {
        let end = lba.checked_add(count).ok_or(LBA_OUT_OF_RANGE)?;
        if end > self.count() {
            return Err(LBA_OUT_OF_RANGE);
        }
        let range = &mut self.blocks[lba as usize * self.block..end as usize * self.block];
        match data {
            Data::None if count == 0 => Ok(0),
            Data::None => Err(INVALID_FIELD_IN_CDB),
            Data::In(to) => {
                let len = to.len().min(range.len());
                to[..len].copy_from_slice(&range[..len]);
                Ok(len)
            }
            Data::Out(from) => {
                let len = from.len().min(range.len());
                range[..len].copy_from_slice(&from[..len]);
                Ok(len)
            }
        }
    }

    fn read_capacity_10(&self, data: Data<'_>) -> Answer {
        let last = u32::try_from(self.count() - 1).unwrap_or(u32::MAX);
        let mut reply_data = [0; 8];
        reply_data[..4].copy_from_slice(&last.to_be_bytes());
        reply_data[4..].copy_from_slice(&(self.block as u32).to_be_bytes());
        reply(data, 8, &reply_data)
    }

    fn read_capacity_16(&self, cdb: &[u8], data: Data<'_>) -> Answer {
        let mut reply_data = [0; 32];
        reply_data[..8].copy_from_slice(&(self.count() - 1).to_be_bytes());
        reply_data[8..12].copy_from_slice(&(self.block as u32).to_be_bytes());
        // RC BASIS of a host-managed disk (ZBC-2): the whole disk.
        if self.standard.first() == Some(&0x14) {
            reply_data[12] = 0x10;
        }
        reply(data, be(&cdb[10..14]) as usize, &reply_data)
    }

    fn inquiry(&self, cdb: &[u8], data: Data<'_>) -> Answer {
        let allocated = be(&cdb[3..5]) as usize;
        if cdb[1] & 1 == 0 {
            if cdb[2] != 0 {
                return Err(INVALID_FIELD_IN_CDB);
            }
            return reply(data, allocated, self.standard);
        }
        let page = match cdb[2] {
            0x00 => vec![0x00, 0x80, 0x83],
            0x80 => self.serial.as_bytes().to_vec(),
            // One designator: T10 vendor ID based, ASCII, of the unit.
            0x83 => {
                let id = format!("QPASS   {}", self.serial);
                let mut designator = vec![2, 1, 0, id.len() as u8];
                designator.extend(id.as_bytes());
                designator
            }
            _ => return Err(INVALID_FIELD_IN_CDB),
        };
        let first = self.standard.first().copied().unwrap_or(0);
        let mut whole = vec![first, cdb[2], 0, page.len() as u8];
        whole.extend(page);
        reply(data, allocated, &whole)
    }
}

/// The standard INQUIRY data: a disk with command queueing, SPC-3.
pub fn standard_inquiry() -> [u8; 36] {
    let mut data = [0; 36];
    data[2] = 5;
    data[3] = 2;
    data[4] = 31;
    data[7] = 2;
    data[8..16].copy_from_slice(b"QPASS   ");
    data[16..32].copy_from_slice(b"RAM DISK        ");
    data[32..36].copy_from_slice(b"0001");
    data
}

/// Sense data in fixed format.
pub fn fixed_sense((key, asc, ascq): Sense) -> [u8; 18] {
    let mut sense = [0; 18];
    sense[0] = 0x70;
    sense[2] = key;
    sense[7] = 10;
    sense[12] = asc;
    sense[13] = ascq;
    sense
}

fn reply(data: Data<'_>, allocated: usize, what: &[u8]) -> Answer {
    let what = &what[..what.len().min(allocated)];
    match data {
        Data::In(to) => {
            let len = what.len().min(to.len());
            to[..len].copy_from_slice(&what[..len]);
            Ok(len)
        }
        _ if what.is_empty() => Ok(0),
        _ => Err(INVALID_FIELD_IN_CDB),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(blocks: &mut [u8]) -> Disk<'_> {
        Disk {
            blocks,
            serial: "S1",
            block: BLOCK,
            standard: &[0; 36],
        }
    }

    #[test]
    fn every_size_of_write_is_read_by_every_size_of_read() {
        let writes: [&[u8]; 4] = [
            &[0x0a, 0, 0, 3, 1, 0],
            &[0x2a, 0, 0, 0, 0, 3, 0, 0, 1, 0],
            &[0xaa, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0],
            &[0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0],
        ];
        let reads: [&[u8]; 4] = [
            &[0x08, 0, 0, 3, 1, 0],
            &[0x28, 0, 0, 0, 0, 3, 0, 0, 1, 0],
            &[0xa8, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0],
            &[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0],
        ];
        let mut blocks = vec![0; 8 * BLOCK];
        for (i, write) in writes.iter().enumerate() {
            let data = [i as u8 + 1; BLOCK];
            assert_eq!(
                disk(&mut blocks).execute(write, Data::Out(&data)),
                Ok(BLOCK)
            );
            for read in reads {
                let mut found = [0; BLOCK];
                assert_eq!(
                    disk(&mut blocks).execute(read, Data::In(&mut found)),
                    Ok(BLOCK)
                );
                assert_eq!(found, data);
            }
        }
        assert!(blocks[..3 * BLOCK].iter().all(|b| *b == 0));
        assert!(blocks[4 * BLOCK..].iter().all(|b| *b == 0));
    }

    #[test]
    fn what_is_not_there_is_refused_with_sense() {
        let mut blocks = vec![0; 8 * BLOCK];
        let mut data = [0; BLOCK];
        let mut run = |cdb: &[u8]| disk(&mut blocks).execute(cdb, Data::In(&mut data));
        assert_eq!(
            run(&[0x28, 0, 0, 0, 0, 8, 0, 0, 1, 0]),
            Err(LBA_OUT_OF_RANGE)
        );
        assert_eq!(run(&[0xe5]), Err(INVALID_OPCODE));
        assert_eq!(run(&[0x12, 1, 0x99, 0, 255, 0]), Err(INVALID_FIELD_IN_CDB));
    }

    #[test]
    fn capacity_is_the_last_block() {
        let mut blocks = vec![0; 8 * BLOCK];
        let mut data = [0; 32];
        let ten = disk(&mut blocks).execute(&[0x25], Data::In(&mut data));
        assert_eq!((ten, be(&data[..4]), be(&data[4..8])), (Ok(8), 7, 512));
        let cdb = [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0];
        let sixteen = disk(&mut blocks).execute(&cdb, Data::In(&mut data));
        assert_eq!(
            (sixteen, be(&data[..8]), be(&data[8..12])),
            (Ok(32), 7, 512)
        );
    }
}
