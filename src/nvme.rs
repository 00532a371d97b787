//! What an NVMe command may say: its own length, and addresses in its dwords.
//!
//! A PRP has no length. A controller moves as many bytes as the command says, to
//! or from the pages that PRP1 and PRP2 name, and where the kernel has set up
//! fewer, PRP2 is 0, a physical address. So the length of a command and that of
//! its buffer must fit.
//!
//! NVM Express Base Specification 2.0 (figure 87: common command format), NVM
//! Command Set Specification 1.0, Zoned Namespace Command Set Specification 1.1.

use crate::kpi::errno::{EINVAL, Result};

/// A submission queue entry, as far as a program has a say in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entry {
    /// For the admin queue (XPT_NVME_ADMIN).
    pub admin: bool,
    /// Opcode.
    pub opcode: u8,
    /// Byte 1: FUSE in bits 1:0, PSDT in bits 7:6.
    pub fuse: u8,
    /// Namespace.
    pub nsid: u32,
    /// Command dwords 10 to 15.
    pub dwords: [u32; 6],
}

/// How a namespace is formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Bytes that the data buffer has for each block: the block, and its metadata
    /// where that follows it.
    pub block: u32,
    /// Blocks have metadata in a buffer of its own, which CAM has no place for.
    pub has_separate_metadata: bool,
}

/// Bytes of an Identify Namespace data structure that [`Format::parse`] reads.
pub const IDENTIFY: usize = 128 + 64 * 4;

impl Format {
    /// Reads Identify Namespace data (NVM Command Set Specification, figure 97):
    /// FLBAS in byte 26, the LBA formats from byte 128 on, 4 bytes each. `None`
    /// where it makes no sense.
    pub fn parse(identify: &[u8; IDENTIFY]) -> Option<Self> {
        let flbas = identify[26];
        // Bits 6:5 are the upper ones of the index, where there are more than 16.
        let index = usize::from(flbas & 0xf | (flbas >> 5 & 3) << 4);
        let at = 128 + 4 * index;
        let metadata = u32::from(u16::from_le_bytes([identify[at], identify[at + 1]]));
        let shift = u32::from(identify[at + 2]);
        if !(9..=24).contains(&shift) {
            return None;
        }
        let is_extended = flbas & 1 << 4 != 0;
        Some(Format {
            block: (1 << shift) + if is_extended { metadata } else { 0 },
            has_separate_metadata: metadata != 0 && !is_extended,
        })
    }
}

/// What the bytes of a command come to.
#[derive(Debug, PartialEq, Eq)]
enum Length {
    /// So many blocks, which fill the buffer.
    Blocks(u64),
    /// So many bytes, which the buffer has room for.
    Bytes(u64),
    /// It does not say, or is not known here.
    Unknown,
}

impl Entry {
    /// Whether it may be carried out.
    ///
    /// `len` is the buffer's length in bytes, `own` the namespace of the device,
    /// and `format` says how that is formatted, where it is known.
    ///
    /// # Errors
    /// `EINVAL`: FUSE, PSDT or a reserved bit beside them is set; or the command's
    /// own length is not the buffer's, or cannot be told; or it moves blocks of
    /// another namespace, or blocks with metadata elsewhere.
    pub fn check(&self, len: u32, own: u64, format: Option<Format>) -> Result {
        self.check_form()?;
        let len = u64::from(len);
        let fits = match self.length() {
            Length::Unknown => true,
            Length::Bytes(bytes) => bytes <= len,
            Length::Blocks(blocks) => format.is_some_and(|format| {
                u64::from(self.nsid) == own
                    && !format.has_separate_metadata
                    && blocks * u64::from(format.block) == len
            }),
        };
        if fits { Ok(()) } else { Err(EINVAL) }
    }

    /// Whether any NVMe device may be given it.
    ///
    /// # Errors
    /// `EINVAL`: FUSE, PSDT or a reserved bit beside them is set.
    pub fn check_form(&self) -> Result {
        if self.fuse == 0 { Ok(()) } else { Err(EINVAL) }
    }

    /// Whether it hands physical addresses to the controller in its dwords, or
    /// changes the queues that the driver of the controller has set up: Delete and
    /// Create I/O Submission Queue, Delete and Create I/O Completion Queue,
    /// Doorbell Buffer Config, Set Features with Host Memory Buffer.
    pub fn is_the_controllers(&self) -> bool {
        const HOST_MEMORY_BUFFER: u32 = 0x0d;
        self.admin
            && match self.opcode {
                0x00 | 0x01 | 0x04 | 0x05 | 0x7c => true,
                0x09 => self.dwords[0] & 0xff == HOST_MEMORY_BUFFER,
                _ => false,
            }
    }

    fn length(&self) -> Length {
        let [dw10, dw11, dw12, ..] = self.dwords.map(u64::from);
        // Numbers of blocks, ranges and dwords are one less than meant.
        let blocks = (dw12 & 0xffff) + 1;
        let dwords = |count: u64| Length::Bytes((count + 1) * 4);
        match (self.admin, self.opcode) {
            // Write, Read, Compare, Zone Append.
            (false, 0x01 | 0x02 | 0x05 | 0x7d) => Length::Blocks(blocks),
            // Dataset Management: ranges of 16 bytes.
            (false, 0x09) => Length::Bytes(((dw10 & 0xff) + 1) * 16),
            // Reservation Register and Acquire; Release.
            (false, 0x0d | 0x11) => Length::Bytes(16),
            (false, 0x15) => Length::Bytes(8),
            // Reservation Report.
            (false, 0x0e) => dwords(dw10),
            // Copy: source ranges of 32 or 40 bytes.
            (false, 0x19) => {
                let size = if dw12 >> 8 & 0xf < 2 { 32 } else { 40 };
                Length::Bytes(((dw12 & 0xff) + 1) * size)
            }
            // Zone Management Receive.
            (false, 0x7a) => dwords(dw12),
            // Get Log Page: NUMDL in dword 10, NUMDU in dword 11.
            (true, 0x02) => dwords(dw10 >> 16 | (dw11 & 0xffff) << 16),
            // Identify.
            (true, 0x06) => Length::Bytes(4096),
            // Firmware Image Download.
            (true, 0x11) => dwords(dw10),
            // Security Send and Receive: bytes.
            (true, 0x81 | 0x82) => Length::Bytes(dw11),
            // Directive Send and Receive.
            (true, 0x19 | 0x1a) => dwords(dw10),
            _ => Length::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: Option<Format> = Some(Format {
        block: 512,
        has_separate_metadata: false,
    });

    fn io(opcode: u8, dwords: [u32; 6]) -> Entry {
        Entry {
            opcode,
            nsid: 1,
            dwords,
            ..Entry::default()
        }
    }

    fn admin(opcode: u8, dwords: [u32; 6]) -> Entry {
        Entry {
            admin: true,
            ..io(opcode, dwords)
        }
    }

    #[test]
    fn blocks_fill_the_buffer_to_the_byte() {
        for opcode in [0x01, 0x02, 0x05, 0x7d] {
            // Eight blocks; flags beside their number do not count.
            let read = io(opcode, [0, 0, 0xc000_0007, 0, 0, 0]);
            assert_eq!(read.check(4096, 1, FORMAT), Ok(()));
            for len in [0, 512, 4095, 4097, 8192] {
                assert_eq!(read.check(len, 1, FORMAT), Err(EINVAL), "{len}");
            }
            assert_eq!(read.check(4096, 2, FORMAT), Err(EINVAL), "namespace");
            assert_eq!(read.check(4096, 1, None), Err(EINVAL), "unknown format");
        }
        // Flush, Write Zeroes, Verify have no data.
        for opcode in [0x00, 0x08, 0x0c] {
            assert_eq!(io(opcode, [0, 0, 7, 0, 0, 0]).check(0, 1, None), Ok(()));
        }
    }

    #[test]
    fn sgls_and_fused_commands_are_refused() {
        for fuse in 1..=u8::MAX {
            for admin in [false, true] {
                let entry = Entry {
                    fuse,
                    admin,
                    ..io(0x00, [0; 6])
                };
                assert_eq!(entry.check(0, 1, FORMAT), Err(EINVAL));
            }
        }
    }

    #[test]
    fn a_command_that_says_its_length_has_a_buffer_of_it() {
        let cases = [
            (admin(0x06, [0; 6]), 4096),
            (admin(0x02, [0x007f_0002, 0, 0, 0, 0, 0]), 512),
            (admin(0x02, [0xffff_0002, 1, 0, 0, 0, 0]), 0x2_0000 * 4),
            (admin(0x11, [1023, 0, 0, 0, 0, 0]), 4096),
            (admin(0x82, [0, 512, 0, 0, 0, 0]), 512),
            (admin(0x1a, [0, 0, 0, 0, 0, 0]), 4),
            (io(0x09, [255, 4, 0, 0, 0, 0]), 4096),
            (io(0x0e, [15, 0, 0, 0, 0, 0]), 64),
            (io(0x0d, [0; 6]), 16),
            (io(0x15, [0; 6]), 8),
            (io(0x19, [0, 0, 3, 0, 0, 0]), 128),
            (io(0x19, [0, 0, 0x203, 0, 0, 0]), 160),
            (io(0x7a, [0, 0, 1023, 0, 0, 0]), 4096),
        ];
        for (entry, len) in cases {
            assert_eq!(entry.check(len, 1, FORMAT), Ok(()), "{entry:?}");
            assert_eq!(entry.check(len + 4, 1, FORMAT), Ok(()), "{entry:?}");
            assert_eq!(entry.check(len - 1, 1, FORMAT), Err(EINVAL), "{entry:?}");
            assert_eq!(entry.check(0, 1, FORMAT), Err(EINVAL), "{entry:?}");
        }
    }

    #[test]
    fn what_is_the_controllers_is_told_from_the_rest() {
        for opcode in [0x00, 0x01, 0x04, 0x05, 0x7c] {
            assert!(admin(opcode, [0; 6]).is_the_controllers());
            assert!(!io(opcode, [0; 6]).is_the_controllers());
        }
        assert!(admin(0x09, [0x8000_000d, 0, 0, 0, 0, 0]).is_the_controllers());
        assert!(!admin(0x09, [0x0000_0002, 0, 0, 0, 0, 0]).is_the_controllers());
        // Get Log Page, Identify, Format NVM, Device Self-test.
        for opcode in [0x02, 0x06, 0x80, 0x14] {
            assert!(!admin(opcode, [0x0d, 0, 0, 0, 0, 0]).is_the_controllers());
        }
    }

    #[test]
    fn a_namespaces_format_is_read() {
        let identify = |flbas, index: usize, metadata: u16, shift| {
            let mut bytes = [0; IDENTIFY];
            bytes[26] = flbas;
            let at = 128 + 4 * index;
            bytes[at..at + 2].copy_from_slice(&metadata.to_le_bytes());
            bytes[at + 2] = shift;
            Format::parse(&bytes).map(|f| (f.block, f.has_separate_metadata))
        };
        assert_eq!(identify(0, 0, 0, 9), Some((512, false)));
        assert_eq!(identify(3, 3, 0, 12), Some((4096, false)));
        assert_eq!(identify(0x11, 1, 8, 9), Some((520, false)));
        assert_eq!(identify(0x01, 1, 8, 9), Some((512, true)));
        assert_eq!(identify(0x62, 50, 0, 12), Some((4096, false)));
        assert_eq!(identify(0, 0, 0, 0), None);
        assert_eq!(identify(0, 0, 0, 200), None);
    }
}
