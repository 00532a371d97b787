//! What an NVMe command may say: its own length, and addresses in its dwords.
//!
//! A PRP has no length. A controller moves as many bytes as the command says, to
//! or from the pages that PRP1 and PRP2 name, and where the kernel has set up
//! fewer, PRP2 is 0, a physical address. So the length of a command and that of
//! its buffer must fit.
//!
//! NVM Express Base Specification 2.0 (figure 87: common command format), NVM
//! Command Set Specification 1.0, Zoned Namespace Command Set Specification 1.1.

use core::ops::Deref;
use kpi::{
    errno::{EINVAL, Result},
    fields::NvmeCommand,
};

/// How a namespace is formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Bytes of a block.
    pub block: u32,
    /// Bytes of metadata of each.
    pub metadata: u16,
    /// The metadata follows its block; else it has a buffer of its own, which CAM has
    /// no place for.
    pub is_extended: bool,
    /// The metadata is protection information alone, which a controller makes and
    /// takes off where a command asks for that (PRACT).
    pub is_protection: bool,
}

/// Bytes of an Identify data structure.
pub const PAGE: usize = 4096;
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
        let metadata = u16::from_le_bytes([identify[at], identify[at + 1]]);
        let shift = u32::from(identify[at + 2]);
        if !(9..=24).contains(&shift) {
            return None;
        }
        Some(Format {
            block: 1 << shift,
            metadata,
            is_extended: flbas & 1 << 4 != 0,
            // DPS: a type of protection in bits 2:0.
            is_protection: metadata == 8 && identify[29] & 7 != 0,
        })
    }

    /// Bytes that the data buffer has for each block; `None` where metadata goes
    /// elsewhere. `dw12` is the command's.
    fn bytes(self, dw12: u32) -> Option<u64> {
        const PRACT: u32 = 1 << 29;
        let without = self.metadata == 0 || self.is_protection && dw12 & PRACT != 0;
        if without {
            return Some(self.block.into());
        }
        self.is_extended
            .then(|| u64::from(self.block) + u64::from(self.metadata))
    }
}

/// What the bytes of a command come to.
#[derive(Debug, PartialEq, Eq)]
enum Length {
    /// So many blocks, which fill the buffer.
    Blocks(u64),
    /// So many bytes, which the buffer has room for.
    Bytes(u64),
    /// It is not known here.
    Unknown,
}

/// Whether an opcode moves data: bits 1:0 say which way, of any opcode, vendors' too.
fn moves_data(opcode: u8) -> bool {
    opcode & 3 != 0
}

/// What an NVMe command asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entry(pub NvmeCommand);

impl Deref for Entry {
    type Target = NvmeCommand;

    fn deref(&self) -> &NvmeCommand {
        &self.0
    }
}

impl Entry {
    /// Whether it may be carried out.
    ///
    /// `len` is the buffer's length in bytes, `own` the namespace of the device,
    /// and `format` says how that is formatted, where it is known.
    ///
    /// # Errors
    /// `EINVAL`: FUSE, PSDT or a reserved bit beside them is set; or the command's
    /// own length is not the buffer's; or it moves blocks of another namespace, or
    /// blocks with metadata elsewhere, or is not known how large those are.
    pub fn check(&self, len: u32, own: u64, format: Option<Format>) -> Result {
        self.check_form()?;
        let len = u64::from(len);
        let fits = match self.length() {
            // Who may say physical addresses says how long it is.
            Length::Unknown => true,
            Length::Bytes(bytes) => bytes <= len,
            Length::Blocks(blocks) => format.is_some_and(|format| {
                u64::from(self.nsid) == own
                    && format
                        .bytes(self.dwords[2])
                        .is_some_and(|bytes| blocks * bytes == len)
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

    /// Whether only who may say physical addresses may send it: it hands some to the
    /// controller in its dwords, or changes the queues that the driver of the
    /// controller has set up, or takes one of its slots for ever (Delete and Create I/O
    /// Submission Queue, Delete and Create I/O Completion Queue, Asynchronous Event
    /// Request, Doorbell Buffer Config, Set Features with Host Memory Buffer); or it
    /// moves data and it is not known here how much.
    pub fn is_privileged(&self) -> bool {
        const HOST_MEMORY_BUFFER: u32 = 0x0d;
        let is_the_controllers = self.admin
            && match self.opcode {
                0x00 | 0x01 | 0x04 | 0x05 | 0x0c | 0x7c => true,
                0x09 => self.dwords[0] & 0xff == HOST_MEMORY_BUFFER,
                _ => false,
            };
        is_the_controllers || self.length() == Length::Unknown
    }

    /// Whether blocks may be of another size after it: Format NVM, Namespace
    /// Management and Attachment, Sanitize.
    pub fn changes_format(&self) -> bool {
        self.admin && matches!(self.opcode, 0x80 | 0x0d | 0x15 | 0x84)
    }

    /// Whether it moves blocks, so that their size counts.
    pub fn moves_blocks(&self) -> bool {
        matches!(self.length(), Length::Blocks(_))
    }

    fn length(&self) -> Length {
        let [dw10, dw11, dw12, dw13, ..] = self.dwords.map(u64::from);
        // Numbers of blocks, ranges and dwords are one less than meant.
        let blocks = (dw12 & 0xffff) + 1;
        let dwords = |count: u64| Length::Bytes((count + 1) * 4);
        match (self.admin, self.opcode) {
            (_, opcode) if !moves_data(opcode) => Length::Bytes(0),
            // Write, Read, Compare, Zone Append.
            (false, 0x01 | 0x02 | 0x05 | 0x7d) => Length::Blocks(blocks),
            // Dataset Management: ranges of 16 bytes.
            (false, 0x09) => Length::Bytes(((dw10 & 0xff) + 1) * 16),
            // Reservation Register and Acquire; Release.
            (false, 0x0d | 0x11) => Length::Bytes(16),
            (false, 0x15) => Length::Bytes(8),
            // Reservation Report; I/O Management Receive.
            (false, 0x0e) => dwords(dw10),
            (false, 0x12) => dwords(dw11),
            // Copy: ranges of 32 bytes in descriptor formats 0 and 2, of 40 in 1
            // and 3.
            (false, 0x19) => match dw12 >> 8 & 0xf {
                0 | 2 => Length::Bytes(((dw12 & 0xff) + 1) * 32),
                1 | 3 => Length::Bytes(((dw12 & 0xff) + 1) * 40),
                _ => Length::Unknown,
            },
            // Zone Management Send has data for Set Zone Descriptor Extension only,
            // as much as the format says.
            (false, 0x79) if dw13 & 0xff != 0x10 => Length::Bytes(0),
            // Zone Management Receive.
            (false, 0x7a) => dwords(dw12),
            // Get Log Page: NUMDL in dword 10, NUMDU in dword 11.
            (true, 0x02) => dwords(dw10 >> 16 | (dw11 & 0xffff) << 16),
            // Identify.
            (true, 0x06) => Length::Bytes(4096),
            // Set and Get Features.
            // A host memory buffer is set by its address, in dwords.
            (true, 0x09) if dw10 & 0xff == 0x0d => Length::Bytes(0),
            (true, 0x09 | 0x0a) => feature(dw10 as u8, dw11),
            // Namespace Management: Create has data. Namespace Attachment.
            (true, 0x0d) if dw10 & 0xf != 0 => Length::Bytes(0),
            (true, 0x0d | 0x15) => Length::Bytes(4096),
            // Firmware Image Download.
            (true, 0x11) => dwords(dw10),
            // Directive Send: those of Identify and Streams have none. Directive
            // Receive: Allocate Resources of Streams has none.
            (true, 0x19) if matches!(dw11 >> 8 & 0xff, 0 | 1) => Length::Bytes(0),
            (true, 0x1a) if dw11 & 0xffff == 0x0103 => Length::Bytes(0),
            (true, 0x1a) => dwords(dw10),
            // Security Send and Receive: bytes.
            (true, 0x81 | 0x82) => Length::Bytes(dw11),
            // Get LBA Status.
            (true, 0x86) => dwords(dw12),
            _ => Length::Unknown,
        }
    }
}

/// Bytes of a feature's data, which most have not (the Base Specification's and the
/// NVM Command Set Specification's lists of feature identifiers).
fn feature(identifier: u8, dw11: u64) -> Length {
    match identifier {
        // LBA Range Type; Host Memory Buffer's attributes; metadata of the controller
        // and of the namespace.
        0x03 | 0x0d | 0x7d..=0x7f => Length::Bytes(4096),
        // Autonomous Power State Transition.
        0x0c => Length::Bytes(256),
        // Timestamp.
        0x0e => Length::Bytes(8),
        // Predictable Latency Mode Config; Host Behavior Support.
        0x13 | 0x16 => Length::Bytes(512),
        // Host Identifier, of 64 bits or of 128 (EXHID).
        0x81 => Length::Bytes(if dw11 & 1 != 0 { 16 } else { 8 }),
        0x01 | 0x02 | 0x04..=0x0b | 0x0f..=0x12 | 0x14 | 0x15 | 0x17 | 0x18 => Length::Bytes(0),
        0x80 | 0x82..=0x84 => Length::Bytes(0),
        _ => Length::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: Option<Format> = Some(Format {
        block: 512,
        metadata: 0,
        is_extended: false,
        is_protection: false,
    });

    fn io(opcode: u8, dwords: [u32; 6]) -> Entry {
        Entry(NvmeCommand {
            opcode,
            nsid: 1,
            dwords,
            ..NvmeCommand::default()
        })
    }

    fn admin(opcode: u8, dwords: [u32; 6]) -> Entry {
        Entry(NvmeCommand {
            admin: true,
            ..io(opcode, dwords).0
        })
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
                let entry = Entry(NvmeCommand {
                    fuse,
                    admin,
                    ..io(0x00, [0; 6]).0
                });
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
            (io(0x19, [0, 0, 0x103, 0, 0, 0]), 160),
            (io(0x19, [0, 0, 0x203, 0, 0, 0]), 128),
            (io(0x19, [0, 0, 0x303, 0, 0, 0]), 160),
            (io(0x12, [0, 15, 0, 0, 0, 0]), 64),
            (admin(0x0a, [0x16, 0, 0, 0, 0, 0]), 512),
            (admin(0x0a, [0x0c, 0, 0, 0, 0, 0]), 256),
            (admin(0x09, [0x81, 0, 0, 0, 0, 0]), 8),
            (admin(0x09, [0x81, 1, 0, 0, 0, 0]), 16),
            (admin(0x0d, [0, 0, 0, 0, 0, 0]), 4096),
            (admin(0x15, [0, 0, 0, 0, 0, 0]), 4096),
            (admin(0x86, [0, 0, 1023, 0, 0, 0]), 4096),
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
    fn what_is_for_the_privileged_is_told_from_the_rest() {
        for opcode in [0x00, 0x01, 0x04, 0x05, 0x0c, 0x7c] {
            assert!(admin(opcode, [0; 6]).is_privileged());
        }
        for opcode in [0x00, 0x01, 0x04, 0x05, 0x0c] {
            assert!(!io(opcode, [0; 6]).is_privileged());
        }
        assert!(admin(0x09, [0x8000_000d, 0, 0, 0, 0, 0]).is_privileged());
        assert!(!admin(0x0a, [0x0000_000d, 0, 0, 0, 0, 0]).is_privileged());
        // What tools send: Get Log Page, Identify, Format NVM, Device Self-test,
        // Firmware Commit, Sanitize; features that are numbers.
        for opcode in [0x02, 0x06, 0x80, 0x14, 0x10, 0x84] {
            assert!(!admin(opcode, [0x0d, 0, 0, 0, 0, 0]).is_privileged());
        }
        for feature in [0x01, 0x02, 0x04, 0x06, 0x07, 0x0b, 0x10, 0x80] {
            assert!(!admin(0x0a, [feature, 0, 0, 0, 0, 0]).is_privileged());
        }
        // Vendors' commands without data, and with data of who knows what length;
        // NVMe-MI; a feature that nobody knows.
        assert!(!admin(0xc0, [0; 6]).is_privileged());
        for opcode in [0xc1, 0xc2, 0xc6, 0x1d, 0x1e] {
            assert!(admin(opcode, [0; 6]).is_privileged());
        }
        assert!(
            io(0x81, [0; 6]).is_privileged() && io(0x19, [0, 0, 0x400, 0, 0, 0]).is_privileged()
        );
        assert!(admin(0x0a, [0xc0, 0, 0, 0, 0, 0]).is_privileged());
        assert!(io(0x79, [0, 0, 0, 0x10, 0, 0]).is_privileged());
        assert!(!io(0x79, [0, 0, 0, 0x04, 0, 0]).is_privileged());
    }

    #[test]
    fn a_namespaces_format_is_read() {
        let identify = |flbas, index: usize, metadata: u16, shift, dps| {
            let mut bytes = [0; IDENTIFY];
            (bytes[26], bytes[29]) = (flbas, dps);
            let at = 128 + 4 * index;
            bytes[at..at + 2].copy_from_slice(&metadata.to_le_bytes());
            bytes[at + 2] = shift;
            Format::parse(&bytes)
        };
        let bytes = |format: Option<Format>, dw12| format.and_then(|f| f.bytes(dw12));
        const PRACT: u32 = 1 << 29;
        assert_eq!(bytes(identify(0, 0, 0, 9, 0), 0), Some(512));
        assert_eq!(bytes(identify(3, 3, 0, 12, 0), 0), Some(4096));
        assert_eq!(bytes(identify(0x11, 1, 8, 9, 0), 0), Some(520));
        assert_eq!(bytes(identify(0x11, 1, 8, 9, 0), PRACT), Some(520));
        assert_eq!(bytes(identify(0x11, 1, 8, 9, 1), PRACT), Some(512));
        assert_eq!(bytes(identify(0x01, 1, 8, 9, 0), 0), None, "elsewhere");
        assert_eq!(bytes(identify(0x01, 1, 8, 9, 1), PRACT), Some(512));
        assert_eq!(bytes(identify(0x62, 50, 0, 12, 0), 0), Some(4096));
        assert_eq!(identify(0, 0, 0, 0, 0), None);
        assert_eq!(identify(0, 0, 0, 200, 0), None);
    }
}
