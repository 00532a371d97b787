//! NVMe: the status of a completion, and Identify data.

use super::{le, tables::nvme as tables, text};
use core::fmt;

/// The status field of a completion queue entry (NVM Express Base Specification
/// 2.0, 3.3.3.2.1), all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Status code type: 0 generic, 1 of the command, 2 of media, 3 of the path, 7
    /// of the vendor.
    pub sct: u8,
    /// Status code.
    pub sc: u8,
    /// Command Retry Delay: which of the controller's delays, 0 none.
    pub retry_delay: u8,
    /// More: the error log page has more of it.
    pub more: bool,
    /// Do Not Retry: it would end the same way.
    pub do_not_retry: bool,
}

impl Status {
    /// Of the 16 bits with the phase tag, which is the lowest.
    pub fn parse(word: u16) -> Self {
        Status {
            sct: (word >> 9 & 7) as u8,
            sc: (word >> 1) as u8,
            retry_delay: (word >> 12 & 3) as u8,
            more: word & 1 << 14 != 0,
            do_not_retry: word & 1 << 15 != 0,
        }
    }

    /// Whether the command ended well.
    pub fn is_success(self) -> bool {
        (self.sct, self.sc) == (0, 0)
    }

    /// What the code means, in the specification's words.
    pub fn meaning(self) -> &'static str {
        let code = u16::from(self.sct) << 8 | u16::from(self.sc);
        match tables::STATUS.binary_search_by_key(&code, |(code, _)| *code) {
            Ok(i) => tables::STATUS[i].1,
            Err(_) if self.sct == 7 || self.sc >= 0xc0 => "vendor specific",
            Err(_) => "unknown status",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sct, sc) = (self.sct, self.sc);
        write!(f, "type {sct:x}h code {sc:02x}h {}", self.meaning())?;
        if self.retry_delay != 0 {
            write!(f, ", retry delay {}", self.retry_delay)?;
        }
        if self.more {
            f.write_str(", more in the error log")?;
        }
        if self.do_not_retry {
            f.write_str(", do not retry")?;
        }
        Ok(())
    }
}

/// A namespace's format (NVM Command Set Specification 1.0, 4.1.5.1), by all of FLBAS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Which of the namespace's formats.
    pub index: usize,
    /// Bytes of data of a block.
    pub block: u64,
    /// Bytes of metadata of a block.
    pub metadata: u16,
    /// The metadata are at the end of each block's data, and not apart.
    pub is_extended: bool,
    /// Blocks.
    pub blocks: u64,
}

/// Why Identify Namespace data have no format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoFormat {
    /// There are not all 4096 bytes.
    Short,
    /// All of it is 0: there is no such namespace, or it is not active.
    Inactive,
    /// FLBAS names a format that the namespace has not.
    Index(usize),
}

impl fmt::Display for NoFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoFormat::Short => f.write_str("the Identify data are not whole"),
            NoFormat::Inactive => f.write_str("the namespace is not active"),
            NoFormat::Index(i) => write!(f, "it has no format {i}, which FLBAS names"),
        }
    }
}

impl Format {
    /// Decodes Identify Namespace data, 4096 bytes.
    ///
    /// # Errors
    /// There is no format to be had of them.
    pub fn parse(data: &[u8]) -> Result<Self, NoFormat> {
        let data = data.first_chunk::<4096>().ok_or(NoFormat::Short)?;
        if data[..128].iter().all(|b| *b == 0) && data[130] == 0 {
            return Err(NoFormat::Inactive);
        }
        let (count, flbas) = (usize::from(data[25]) + 1, data[26]);
        // Bits 6:5 are the index's upper ones where there are more formats than 16.
        let upper = if count > 16 { flbas >> 5 & 3 } else { 0 };
        let index = usize::from(flbas & 0xf) | usize::from(upper) << 4;
        if index >= count.min(64) {
            return Err(NoFormat::Index(index));
        }
        let at = 128 + 4 * index;
        let metadata = le(&data[at..at + 2]) as u16;
        Ok(Format {
            index,
            block: 1u64.checked_shl(data[at + 2].into()).unwrap_or(0),
            metadata,
            is_extended: flbas & 1 << 4 != 0,
            blocks: le(&data[..8]),
        })
    }
}

/// What a controller says of itself (Identify Controller data).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Controller {
    /// Model.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// Revision of the firmware.
    pub revision: String,
    /// It has a volatile write cache.
    pub write_cache: bool,
}

impl Controller {
    /// Decodes Identify Controller data, 4096 bytes; none if there are fewer.
    pub fn parse(data: &[u8]) -> Option<Self> {
        let data = data.first_chunk::<4096>()?;
        Some(Controller {
            serial: text(&data[4..24]),
            model: text(&data[24..64]),
            revision: text(&data[64..72]),
            write_cache: data[525] & 1 != 0,
        })
    }
}

/// The name of a command, of the admin queue or an I/O queue.
pub fn command_name(opcode: u8, admin: bool) -> Option<&'static str> {
    let table = if admin { tables::ADMIN } else { tables::IO };
    let found = table.binary_search_by_key(&opcode, |(code, _)| *code);
    found.ok().map(|i| table[i].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(formats: u8, flbas: u8, at: usize, ms: u16, shift: u8) -> Vec<u8> {
        let mut data = vec![0; 4096];
        data[..8].copy_from_slice(&2048u64.to_le_bytes());
        (data[25], data[26]) = (formats - 1, flbas);
        data[128 + 4 * at..][..2].copy_from_slice(&ms.to_le_bytes());
        data[128 + 4 * at + 2] = shift;
        data
    }

    /// Rows 24 and 26.
    #[test]
    fn every_bit_of_flbas_is_read() {
        let format = Format::parse(&namespace(2, 0x11, 1, 8, 9)).expect("a format");
        assert_eq!((format.index, format.block, format.metadata), (1, 512, 8));
        assert!(format.is_extended);
        // NVMe 2.0: bits 6:5, where there are more than 16.
        let format = Format::parse(&namespace(33, 0x41, 33 - 1, 0, 12));
        assert_eq!(format, Err(NoFormat::Index(33)));
        let format = Format::parse(&namespace(40, 0x41, 33, 0, 12)).expect("a format");
        assert_eq!((format.index, format.block), (33, 4096));
        let format = Format::parse(&namespace(16, 0x61, 1, 0, 12)).expect("a format");
        assert_eq!(format.index, 1);
        assert_eq!(Format::parse(&[1; 100]), Err(NoFormat::Short));
        assert_eq!(Format::parse(&[0; 4096]), Err(NoFormat::Inactive));
    }

    #[test]
    fn the_whole_status_is_told() {
        for (word, words) in [
            (0x83 << 1, "type 0h code 83h reservation conflict"),
            (0x84 << 1, "format in progress"),
            (0x1d << 1, "sanitize in progress"),
            (1 << 9 | 0x0a << 1, "invalid format"),
            (1 << 9 | 0x16 << 1, "namespace identifier unavailable"),
            (2 << 9 | 0x82 << 1, "guard check error"),
            (3 << 9 | 0x02 << 1, "asymmetric access inaccessible"),
            (0x0c << 1, "command sequence error"),
            (7 << 9, "vendor specific"),
            (
                0xf002 | 0x0200,
                "retry delay 3, more in the error log, do not retry",
            ),
        ] {
            let text = Status::parse(word).to_string();
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn tables_are_in_order_and_once() {
        assert!(tables::STATUS.is_sorted_by(|a, b| a.0 < b.0));
        assert!(tables::IO.is_sorted_by(|a, b| a.0 < b.0));
        assert!(tables::ADMIN.is_sorted_by(|a, b| a.0 < b.0));
    }
}
