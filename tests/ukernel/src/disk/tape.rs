//! A tape of blocks of any length (SSC-5): READ(6) and WRITE(6) without FIXED, WRITE
//! FILEMARKS, SPACE, REWIND, READ BLOCK LIMITS, READ POSITION.

use crate::scsi::Data;

/// What is on it, and where its head is.
#[derive(Debug, Default)]
pub(super) struct Tape {
    /// Blocks; none is a filemark.
    records: Vec<Option<Vec<u8>>>,
    at: usize,
}

/// How a command ended: bytes moved, and sense data unless it is GOOD.
pub(super) type Ended = (usize, Option<Vec<u8>>);

/// Fixed sense data, with the information that says what was not moved.
fn sense(key: u8, flags: u8, code: (u8, u8), information: Option<i32>) -> Option<Vec<u8>> {
    let mut data = vec![0; 18];
    data[0] = 0x70 | if information.is_some() { 0x80 } else { 0 };
    data[2] = flags | key;
    data[3..7].copy_from_slice(&information.unwrap_or(0).to_be_bytes());
    (data[7], data[12], data[13]) = (10, code.0, code.1);
    Some(data)
}

const FILEMARK: u8 = 0x80;
const EOM: u8 = 0x40;
const ILI: u8 = 0x20;

impl Tape {
    /// A tape that begins with these blocks, of so many bytes each, and a filemark.
    pub fn of(bytes: &[u8], block: usize) -> Self {
        let mut records: Vec<_> = bytes.chunks(block).map(|b| Some(b.to_vec())).collect();
        if !records.is_empty() {
            records.push(None);
        }
        Tape { records, at: 0 }
    }

    /// Carries a command out, if it is one of a tape's.
    pub fn execute(&mut self, cdb: &[u8; 16], data: Data<'_>) -> Option<Ended> {
        let count = u32::from_be_bytes([0, cdb[2], cdb[3], cdb[4]]);
        let invalid = || (0, sense(5, 0, (0x24, 0), None));
        Some(match cdb[0] {
            0x01 => {
                self.at = 0;
                (0, None)
            }
            0x05 => match data {
                Data::In(to) => {
                    let limits = [0, 0xff, 0xff, 0xff, 0, 1];
                    let n = to.len().min(limits.len());
                    to[..n].copy_from_slice(&limits[..n]);
                    (n, None)
                }
                _ => invalid(),
            },
            0x08 if cdb[1] & 1 == 0 => match data {
                Data::In(to) => self.read(count as usize, cdb[1] & 2 != 0, to),
                _ if count == 0 => (0, None),
                _ => invalid(),
            },
            0x0a if cdb[1] & 1 == 0 => match data {
                Data::Out(from) => {
                    let len = from.len().min(count as usize);
                    self.records.truncate(self.at);
                    self.records.push(Some(from[..len].to_vec()));
                    self.at += 1;
                    (len, None)
                }
                _ if count == 0 => (0, None),
                _ => invalid(),
            },
            0x10 => {
                self.records.truncate(self.at);
                for _ in 0..count.min(1 << 16) {
                    self.records.push(None);
                    self.at += 1;
                }
                (0, None)
            }
            0x11 => {
                // Of 24 bits, with a sign.
                let count = (count << 8) as i32 >> 8;
                (0, self.space(cdb[1] & 0xf, count))
            }
            0x34 => match data {
                Data::In(to) => {
                    let mut position = [0; 20];
                    position[0] = if self.at == 0 { 0x80 } else { 0 };
                    for at in [4, 8] {
                        position[at..at + 4].copy_from_slice(&(self.at as u32).to_be_bytes());
                    }
                    let n = to.len().min(position.len());
                    to[..n].copy_from_slice(&position[..n]);
                    (n, None)
                }
                _ => invalid(),
            },
            0x08 | 0x0a => invalid(),
            _ => return None,
        })
    }

    fn read(&mut self, asked: usize, silent: bool, to: &mut [u8]) -> Ended {
        let left = Some(asked as i32);
        let Some(record) = self.records.get(self.at) else {
            return (0, sense(8, 0, (0x00, 0x05), left));
        };
        self.at += 1;
        let Some(record) = record else {
            return (0, sense(0, FILEMARK, (0x00, 0x01), left));
        };
        let moved = record.len().min(asked).min(to.len());
        to[..moved].copy_from_slice(&record[..moved]);
        let residual = asked as i32 - record.len() as i32;
        // SILI: a block that is shorter is no matter.
        if residual == 0 || silent && residual > 0 {
            return (moved, None);
        }
        (moved, sense(0, ILI, (0, 0), Some(residual)))
    }

    /// Blocks (0), filemarks (1), or to the end of what is recorded (3).
    fn space(&mut self, code: u8, count: i32) -> Option<Vec<u8>> {
        if code == 3 {
            self.at = self.records.len();
            return None;
        }
        let mut left = count;
        while left != 0 {
            let next = match count > 0 {
                true => self.records.get(self.at),
                false => self.at.checked_sub(1).and_then(|at| self.records.get(at)),
            };
            let Some(next) = next else {
                return match count > 0 {
                    true => sense(8, 0, (0x00, 0x05), Some(left)),
                    false => sense(0, EOM, (0x00, 0x04), Some(-left)),
                };
            };
            let is_mark = next.is_none();
            self.at = if count > 0 { self.at + 1 } else { self.at - 1 };
            if is_mark && code == 0 {
                return sense(0, FILEMARK, (0x00, 0x01), Some(left.abs()));
            }
            if is_mark || code == 0 {
                left -= left.signum();
            }
        }
        None
    }
}
