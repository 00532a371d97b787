//! ATA: the registers in which a device answers (ACS-4), and IDENTIFY DEVICE data.

use super::{le, tables};
use core::fmt;

/// How registers came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// From the device, by its controller.
    #[default]
    Controller,
    /// In sense data, as SAT has it.
    Sense,
    /// In sense data of another meaning: they look like registers.
    Guess,
}

/// What an ATA command left in the device's registers (ACS-4, 6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Status.
    pub status: u8,
    /// Error.
    pub error: u8,
    /// Sector count; its high byte is of commands of 48 bits.
    pub count: u16,
    /// Logical block address, 48 bits; of other commands 24, of which
    /// [`device`](Self::device) has four more.
    pub lba: u64,
    /// Device.
    pub device: u8,
    /// The registers are those of a command of 48 bits.
    pub is_48bit: bool,
    /// How they came.
    pub source: Source,
}

impl Status {
    /// The ATA Status Return descriptor's body (SAT-4, 12.2.2.6).
    pub(crate) fn of_descriptor(body: &[u8; 12]) -> Self {
        let is_48bit = body[0] & 1 != 0;
        let high = |b: u8| if is_48bit { u64::from(b) } else { 0 };
        Status {
            error: body[1],
            count: (high(body[2]) as u16) << 8 | u16::from(body[3]),
            lba: u64::from(body[5])
                | u64::from(body[7]) << 8
                | u64::from(body[9]) << 16
                | high(body[4]) << 24
                | high(body[6]) << 32
                | high(body[8]) << 40,
            device: body[10],
            status: body[11],
            is_48bit,
            source: Source::Sense,
        }
    }

    /// SAT's fixed form: the INFORMATION and the COMMAND-SPECIFIC INFORMATION field.
    pub(crate) fn of_fixed([error, status, device, count]: [u8; 4], behind: [u8; 4]) -> Self {
        Status {
            status,
            error,
            device,
            count: count.into(),
            lba: u64::from(behind[1]) | u64::from(behind[2]) << 8 | u64::from(behind[3]) << 16,
            is_48bit: behind[0] & 0x80 != 0,
            source: Source::Sense,
        }
    }

    /// Four bytes that may be registers.
    pub(crate) fn of_four([error, status, device, count]: [u8; 4]) -> Self {
        Status {
            status,
            error,
            device,
            count: count.into(),
            source: Source::Guess,
            ..Status::default()
        }
    }

    /// Whether they can be registers: the device is ready, and there is an error if
    /// the status says so.
    pub(crate) fn is_likely(&self) -> bool {
        self.status & 0xc0 == 0x40 && (self.status & 1 != 0) == (self.error != 0)
    }

    /// The error register's bits, in words.
    pub fn error_names(&self) -> Vec<&'static str> {
        let known = ERRORS.iter().filter(|(bit, _)| self.error & bit != 0);
        known.map(|(_, name)| *name).collect()
    }
}

/// ACS-4, 6.2; the bits that commands of data have.
const ERRORS: [(u8, &str); 5] = [
    (0x80, "interface CRC error"),
    (0x40, "uncorrectable data"),
    (0x10, "address not found"),
    (0x04, "command aborted"),
    (0x01, "end of media, or illegal length"),
];

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (status, error) = (self.status, self.error);
        write!(f, "status {status:#04x}, error {error:#04x}")?;
        if status & 0x21 != 0 && error != 0 {
            let names = self.error_names();
            if !names.is_empty() {
                write!(f, " {}", names.join(", "))?;
            }
        }
        write!(f, ", count {:#x}", self.count)?;
        if self.source != Source::Guess {
            write!(f, ", lba {:#x}", self.lba)?;
        }
        write!(f, ", device {:#04x}", self.device)
    }
}

/// What a disk's IDENTIFY DEVICE data say (ACS-4, 7.13).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identify {
    /// Model.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// Revision of the firmware.
    pub revision: String,
    /// Bytes of a logical block.
    pub block: u64,
    /// Bytes of a physical block.
    pub physical: u64,
    /// Logical blocks.
    pub blocks: u64,
    /// It takes commands of 48 bits.
    pub has_48bit: bool,
    /// It says that it takes FLUSH CACHE, and FLUSH CACHE EXT.
    pub flushes: (bool, bool),
    /// It has a volatile write cache, if it tells, and that is on.
    pub write_cache: Option<bool>,
}

impl Identify {
    /// Decodes the 512 bytes; none if there are fewer.
    pub fn parse(data: &[u8]) -> Option<Self> {
        let data = data.first_chunk::<512>()?;
        let word = |i: usize| le(&data[i * 2..i * 2 + 2]);
        let words = |i: usize, n: usize| {
            let swapped: Vec<u8> = data[i * 2..(i + n) * 2]
                .chunks(2)
                .flat_map(|w| [w[1], w[0]])
                .collect();
            super::text(&swapped)
        };
        // Words 82 to 84 are valid, and so are 85 to 87.
        let supports = word(83) & 0xc000 == 0x4000;
        let tells = word(87) & 0xc000 == 0x4000;
        let has_48bit = supports && word(83) & 1 << 10 != 0 && (!tells || word(86) & 1 << 10 != 0);
        // Word 106: the logical sector is not of 256 words.
        let sizes = word(106);
        let has_sizes = sizes & 0xc000 == 0x4000;
        let block = match has_sizes && sizes & 1 << 12 != 0 {
            true => le(&data[234..238]).saturating_mul(2),
            false => 512,
        };
        let per_physical = match has_sizes && sizes & 1 << 13 != 0 {
            true => 1 << (sizes & 0xf),
            false => 1,
        };
        let long = le(&data[200..208]) & 0xffff_ffff_ffff;
        // Word 69 bit 3: words 230 to 233 have the count.
        let longer = le(&data[460..468]) & 0xffff_ffff_ffff;
        let blocks = match (has_48bit, word(69) & 1 << 3 != 0) {
            (true, true) if longer != 0 => longer,
            (true, _) if long != 0 => long,
            _ => le(&data[120..124]) & 0x0fff_ffff,
        };
        Some(Identify {
            model: words(27, 20),
            serial: words(10, 10),
            revision: words(23, 4),
            block,
            physical: block.saturating_mul(per_physical),
            blocks,
            has_48bit,
            flushes: (
                supports && word(83) & 1 << 12 != 0,
                supports && word(83) & 1 << 13 != 0,
            ),
            write_cache: tells.then(|| word(85) & 1 << 5 != 0),
        })
    }
}

/// The name of an ATA command (ACS-4, annex B).
pub fn command_name(command: u8) -> Option<&'static str> {
    let found = tables::ata::COMMANDS.binary_search_by_key(&command, |(code, _)| *code);
    found.ok().map(|i| tables::ata::COMMANDS[i].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(words: &[(usize, u16)]) -> Vec<u8> {
        let mut data = vec![0; 512];
        for (i, word) in words {
            data[i * 2..i * 2 + 2].copy_from_slice(&word.to_le_bytes());
        }
        data
    }

    /// Row 27: a CF card.
    #[test]
    fn a_disk_without_48_bits_is_known_by_word_83() {
        let card = Identify::parse(&with(&[(83, 0x5004), (60, 2048)])).expect("whole");
        assert_eq!(
            (card.has_48bit, card.blocks, card.block),
            (false, 2048, 512)
        );
        assert_eq!(card.flushes, (true, false));
        let disk = with(&[(83, 0x7400), (60, 0xffff), (61, 0xfff), (102, 1)]);
        let disk = Identify::parse(&disk).expect("whole");
        assert_eq!((disk.has_48bit, disk.blocks), (true, 1 << 32));
        // Supported, and not enabled.
        let off = with(&[(83, 0x7400), (87, 0x4000), (60, 77), (102, 1)]);
        assert_eq!(
            Identify::parse(&off).map(|d| (d.has_48bit, d.blocks)),
            Some((false, 77))
        );
        let native = with(&[(83, 0x7400), (106, 0x7003), (117, 2048), (100, 9)]);
        let native = Identify::parse(&native).expect("whole");
        assert_eq!(
            (native.block, native.physical, native.blocks),
            (4096, 32768, 9)
        );
        assert_eq!(Identify::parse(&[0; 511]), None);
    }

    #[test]
    fn commands_are_in_order_and_once() {
        assert!(tables::ata::COMMANDS.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(command_name(0xc8), Some("READ DMA"));
    }
}
