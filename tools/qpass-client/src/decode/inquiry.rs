//! INQUIRY data (SPC-6, 6.7): the standard data, and vital product data pages.

use super::text;
use core::fmt;

/// Standard INQUIRY data, of which not all need to be there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standard {
    /// Peripheral qualifier: 0 the unit is there, 1 none is connected, 3 there is no
    /// such unit.
    pub qualifier: u8,
    /// Peripheral device type: 0 a disk, 1 a tape, 31 unknown.
    pub device_type: u8,
    /// The medium can be removed.
    pub removable: bool,
    /// VERSION, with what older standards had in its upper bits.
    pub version: u8,
    /// It queues commands.
    pub queueing: bool,
    /// Vendor, product and revision of the product.
    pub vendor: String,
    /// Product.
    pub product: String,
    /// Revision.
    pub revision: String,
    /// Bytes that there are of it, by its additional length.
    pub length: usize,
    /// Bytes that came, and are part of it.
    pub came: usize,
}

/// Why data are not what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// The device ended the command well, and moved nothing.
    Nothing,
    /// It moved so many bytes, of so many at least.
    Short(usize, usize),
    /// It gave another page than the one asked for.
    OtherPage(u8),
    /// It gave the standard data in place of a page.
    Standard,
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bad::Nothing => f.write_str("the device said GOOD and gave no data"),
            Bad::Short(came, least) => write!(f, "the device gave {came} of {least} bytes"),
            Bad::OtherPage(page) => write!(f, "the device gave page {page:#04x} instead"),
            Bad::Standard => f.write_str(
                "the device has no such page, and gave its standard INQUIRY data instead",
            ),
        }
    }
}

impl Standard {
    /// Decodes what was moved.
    ///
    /// # Errors
    /// There are not even the five bytes that tell how many there are.
    pub fn parse(data: &[u8]) -> Result<Self, Bad> {
        match data.len() {
            0 => return Err(Bad::Nothing),
            n @ 1..5 => return Err(Bad::Short(n, 5)),
            _ => {}
        }
        let length = 5 + usize::from(data[4]);
        let data = &data[..length.min(data.len())];
        let part = |from: usize, to: usize| {
            let to = to.min(data.len());
            data.get(from..to).map(text).unwrap_or_default()
        };
        Ok(Standard {
            qualifier: data[0] >> 5,
            device_type: data[0] & 0x1f,
            removable: data[1] & 0x80 != 0,
            version: data[2],
            queueing: data.get(7).is_some_and(|b| b & 2 != 0),
            vendor: part(8, 16),
            product: part(16, 32),
            revision: part(32, 36),
            length,
            came: data.len(),
        })
    }

    /// Which standard it follows (SPC-6, table 153): by the lowest three bits, as
    /// ISO's and ECMA's version are in the others of an old device.
    pub fn version_name(&self) -> &'static str {
        match self.version & 7 {
            0 => "no standard",
            1 => "SCSI-1",
            2 => "SCSI-2",
            3 => "SPC",
            4 => "SPC-2",
            5 => "SPC-3",
            6 => "SPC-4",
            _ => "SPC-5",
        }
    }

    /// What the qualifier says, if the unit is not there.
    pub fn absence(&self) -> Option<&'static str> {
        absence(self.qualifier)
    }
}

/// What a peripheral qualifier says, if the unit is not there.
pub fn absence(qualifier: u8) -> Option<&'static str> {
    match qualifier {
        0 => None,
        1 => Some("nothing connected"),
        3 => Some("no such LUN"),
        _ => Some("vendor specific"),
    }
}

/// What a peripheral device type is called (SPC-6, table 151).
pub fn type_name(device_type: u8) -> &'static str {
    match device_type & 0x1f {
        0x00 => "disk",
        0x01 => "tape",
        0x02 => "printer",
        0x03 => "processor",
        0x04 => "write-once disk",
        0x05 => "CD",
        0x06 => "scanner",
        0x07 => "optical disk",
        0x08 => "changer",
        0x09 => "communications",
        0x0c => "array controller",
        0x0d => "enclosure",
        0x0e => "simplified disk",
        0x0f => "card reader",
        0x10 => "bridge controller",
        0x11 => "object store",
        0x12 => "automation drive",
        0x13 => "security manager",
        0x14 => "zoned disk",
        0x1e => "well-known unit",
        0x1f => "unknown",
        _ => "other",
    }
}

/// A vital product data page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page<'a> {
    /// Its number.
    pub page: u8,
    /// What follows its header of four bytes, as far as it came.
    pub body: &'a [u8],
    /// Bytes that there are of it, with the header.
    pub length: usize,
    /// All that came of it.
    pub raw: &'a [u8],
}

impl<'a> Page<'a> {
    /// Decodes what was moved when page `page` was asked for. `standard` are the
    /// device's standard data, as far as they are known: what is the same is no page.
    ///
    /// # Errors
    /// It is not that page.
    pub fn parse(data: &'a [u8], page: u8, standard: &[u8]) -> Result<Self, Bad> {
        match data.len() {
            0 => return Err(Bad::Nothing),
            n @ 1..4 => return Err(Bad::Short(n, 4)),
            _ => {}
        }
        let length = 4 + usize::from(u16::from_be_bytes([data[2], data[3]]));
        let raw = &data[..length.min(data.len())];
        let body = &raw[4..];
        if is_standard(data, page, standard) {
            return Err(Bad::Standard);
        }
        if data[1] != page {
            return Err(Bad::OtherPage(data[1]));
        }
        // The list begins with this very page, and is in order (SPC-6, 7.7.17); a
        // device may get one of them wrong.
        let is_list = body.first().is_none_or(|first| *first == 0) || body.is_sorted();
        if page == 0 && !is_list {
            return Err(Bad::Standard);
        }
        Ok(Page {
            page,
            body,
            length,
            raw,
        })
    }
}

/// Whether data are the standard data, which a device without pages gives
/// whatever is asked for. Byte 1 is 80h in those of a device with a medium that
/// can be removed, and 00h in those of others: two pages' numbers.
fn is_standard(data: &[u8], page: u8, standard: &[u8]) -> bool {
    let common = data.len().min(standard.len());
    if common >= 8 && data[..common] == standard[..common] {
        return true;
    }
    let [_, second, version, format, more, ..] = *data else {
        return false;
    };
    // They look like it: a version, a response data format, a length, and names.
    let names = data.get(8..36).unwrap_or_default();
    let is_text = |b: &u8| matches!(b, 0 | 0x20..=0x7e);
    let looks = version != 0
        && matches!(format & 0xf, 0..=2)
        && more >= 31
        && !names.is_empty()
        && names.iter().all(is_text);
    looks && (second != page || matches!(page, 0x00 | 0x80))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standard(head: [u8; 5], names: &str) -> Vec<u8> {
        let mut data = head.to_vec();
        data.extend([0, 0, 2]);
        data.extend(names.as_bytes());
        data.resize(96, 0);
        data
    }

    /// Row 1: devices that ignore EVPD.
    #[test]
    fn standard_data_are_no_page() {
        let dvd = standard([5, 0x80, 5, 0x32, 0x5b], "hp      DVD-RAM GH80N   RF03");
        let ocz = standard([0, 0, 5, 2, 0x5b], "ATA     OCZ-AGILITY3    2.50");
        for data in [&dvd, &ocz] {
            for page in [0, 0x80, 0x83, 0xb0] {
                let parsed = Page::parse(data, page, &[]);
                assert_eq!(parsed, Err(Bad::Standard), "{page:#x}");
            }
        }
        // One that follows no standard is known by its own data.
        let stick = standard([0, 0x80, 0, 1, 0x1f], "General USB Flash Disk  1.00");
        assert_eq!(Page::parse(&stick, 0x80, &stick[..36]), Err(Bad::Standard));
    }

    /// Rows 2 to 4.
    #[test]
    fn a_page_is_what_was_moved_of_it() {
        let serial = Page::parse(b"\0\x80\0\x08SERIAL01", 0x80, &[]).expect("a page");
        assert_eq!(
            (text(serial.body).as_str(), serial.length),
            ("SERIAL01", 12)
        );
        let cut = [0, 0x83, 0, 0x40, 2, 1, 0, 4, 0x41, 0x42];
        let cut = Page::parse(&cut, 0x83, &[]).expect("a page");
        assert_eq!((cut.raw.len(), cut.body.len(), cut.length), (10, 6, 68));
        // What is behind the page is none of it.
        let long = Page::parse(&[0, 0xb0, 0, 1, 9, 8, 7], 0xb0, &[]).expect("a page");
        assert_eq!(long.body, [9]);
        assert_eq!(Page::parse(&[], 0x80, &[]), Err(Bad::Nothing));
        assert_eq!(Page::parse(&[0, 0x80, 0], 0x80, &[]), Err(Bad::Short(3, 4)));
        assert_eq!(
            Page::parse(&[0, 0x83, 0, 0], 0x80, &[]),
            Err(Bad::OtherPage(0x83))
        );
        let list = Page::parse(&[0, 0, 0, 3, 0, 0x80, 0x83], 0, &[]).expect("a list");
        assert_eq!(list.body, [0, 0x80, 0x83]);
        let list = Page::parse(&[0, 0, 0, 3, 0, 0x83, 0x80], 0, &[]).expect("a list");
        assert_eq!(list.body, [0, 0x83, 0x80]);
    }

    /// Row 33.
    #[test]
    fn old_and_absent_devices_are_told() {
        let mut data = standard([0, 0, 1, 0, 31], "DEC     RZ24            4041");
        assert_eq!(
            Standard::parse(&data).expect("data").version_name(),
            "SCSI-1"
        );
        data[2] = 0x92;
        assert_eq!(
            Standard::parse(&data).expect("data").version_name(),
            "SCSI-2"
        );
        data[0] = 0x7f;
        let none = Standard::parse(&data).expect("data");
        assert_eq!(
            (none.absence(), none.device_type),
            (Some("no such LUN"), 31)
        );
        let short = Standard::parse(&data[..10]).expect("data");
        assert_eq!(
            (short.vendor.as_str(), short.came, short.length),
            ("DE", 10, 36)
        );
        assert_eq!(Standard::parse(&[]), Err(Bad::Nothing));
        assert_eq!(Standard::parse(&[0; 4]), Err(Bad::Short(4, 5)));
    }

    #[test]
    fn a_text_may_begin_with_nuls() {
        assert_eq!(text(b"\0\0HBA355e \0xx"), "HBA355e");
        assert_eq!(text(b" WD\x7f2 \0"), "WD 2");
        assert_eq!(text(&[0; 4]), "");
    }
}
