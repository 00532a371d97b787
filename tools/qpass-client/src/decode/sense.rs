//! Sense data (SPC-6, 4.4): what a SCSI device says of an error.

use super::{
    ata::{Source, Status},
    be,
    tables::asc::{CODES, RANGES},
};
use core::fmt;

/// Decoded sense data, of the fixed or the descriptor format.
///
/// Only the bytes that the device gave are looked at, and of those only as many
/// as the additional length says: [`raw`](Self::raw) is all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sense {
    /// The sense key, 0 to 15.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
    /// Of an earlier command, not of this one (SPC-6, 4.4.7): an earlier write may
    /// be lost, and this command was not carried out.
    pub deferred: bool,
    /// It is of the descriptor format, 72h or 73h.
    pub is_descriptor: bool,
    /// A filemark or setmark was met (SSC-5).
    pub filemark: bool,
    /// The end of the medium was met: of a tape, early warning (SSC-5).
    pub end_of_medium: bool,
    /// ILI: the block's length is not the one asked for (SSC-5, SBC-4).
    pub incorrect_length: bool,
    /// SDAT_OVFL: there was more sense data than fits.
    pub overflow: bool,
    /// The INFORMATION field, if it is valid: often the block address at which it
    /// went wrong. See [`residual`](Self::residual).
    pub information: Option<u64>,
    /// The COMMAND-SPECIFIC INFORMATION field, if there is one.
    pub command_specific: Option<u64>,
    /// The field replaceable unit code, if there is one; 0 is none.
    pub unit: Option<u8>,
    /// The sense-key-specific field, if it is valid.
    pub specific: Option<Specific>,
    /// Registers of an ATA device behind a translator (SAT-4, 12.2.2.6 and 12.2.2.7).
    pub ata: Option<Status>,
    /// The descriptors, of the descriptor format.
    pub descriptors: Vec<Descriptor>,
    raw: Vec<u8>,
}

/// A sense data descriptor (SPC-6, 4.4.2), as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its type.
    pub kind: u8,
    /// What follows its two bytes of header.
    pub body: Vec<u8>,
}

/// The sense-key-specific field (SPC-6, 4.4.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specific {
    /// ILLEGAL REQUEST: which field is wrong.
    Field {
        /// It is in the CDB, and not in the parameters.
        in_cdb: bool,
        /// Byte, from 0.
        byte: u16,
        /// Bit, if that is told: its highest.
        bit: Option<u8>,
    },
    /// NO SENSE and NOT READY: how far an operation is, in 65536ths.
    Progress(u16),
    /// RECOVERED ERROR, MEDIUM ERROR and HARDWARE ERROR: retries that were made.
    Retries(u16),
    /// COPY ABORTED: which field of the segment or the parameters is wrong.
    Segment {
        /// It is in the segment descriptor, and not in the parameter list.
        in_segment: bool,
        /// Byte, from 0.
        byte: u16,
        /// Bit, if that is told.
        bit: Option<u8>,
    },
    /// UNIT ATTENTION: whether conditions were lost because there were too many.
    Overflow(bool),
    /// Of another key: the three bytes.
    Other([u8; 3]),
}

/// What the INFORMATION field of a short or long block is read as.
const LENGTH_FLAGS: u8 = 0xe0;

impl Sense {
    /// Decodes the sense data that a device gave; none if it is of no known format,
    /// or too short to have a key.
    pub fn parse(data: &[u8]) -> Option<Self> {
        let given = data
            .get(7)
            .map_or(data.len(), |more| 8 + usize::from(*more));
        let data = &data[..given.min(data.len())];
        let mut sense = Sense {
            raw: data.to_vec(),
            ..Sense::default()
        };
        match data.first()? & 0x7f {
            code @ (0x70 | 0x71) => {
                sense.deferred = code == 0x71;
                sense.fixed(data)?;
            }
            code @ (0x72 | 0x73) => {
                sense.deferred = code == 0x73;
                sense.is_descriptor = true;
                sense.descriptor(data)?;
            }
            _ => return None,
        }
        Some(sense)
    }

    fn fixed(&mut self, data: &[u8]) -> Option<()> {
        let at = |i: usize| data.get(i).copied().unwrap_or(0);
        let flags = *data.get(2)?;
        self.key = flags & 0xf;
        self.marks(flags);
        self.overflow = flags & 0x10 != 0;
        (self.asc, self.ascq) = (at(12), at(13));
        let is_valid = at(0) & 0x80 != 0;
        self.information = data.get(3..7).map(be).filter(|_| is_valid);
        // There is no bit that says whether it is valid; 0 tells nothing.
        self.command_specific = data.get(8..12).map(be).filter(|n| *n != 0);
        self.unit = data.get(14).copied();
        self.specific = data.get(15..18).and_then(|field| specific(self.key, field));
        self.ata = self.fixed_registers(data);
        Some(())
    }

    /// SAT's fixed form: the registers are in the INFORMATION and the
    /// COMMAND-SPECIFIC INFORMATION field. Some translators have the first four in the
    /// one when they report UNALIGNED WRITE COMMAND, and in the other, which is 0
    /// elsewhere, when they report any error.
    fn fixed_registers(&self, data: &[u8]) -> Option<Status> {
        let words: [u8; 4] = data.get(3..7)?.try_into().ok()?;
        let behind: [u8; 4] = data.get(8..12).and_then(|b| b.try_into().ok())?;
        match (self.asc, self.ascq) {
            (0x00, 0x1d) => Some(Status::of_fixed(words, behind)),
            (0x21, 0x04) if self.information.is_some() => {
                Some(Status::of_four(words)).filter(Status::is_likely)
            }
            _ if self.information.is_none() && !matches!(self.key, 0x0 | 0x2 | 0x6) => {
                Some(Status::of_four(behind)).filter(Status::is_likely)
            }
            _ => None,
        }
    }

    fn descriptor(&mut self, data: &[u8]) -> Option<()> {
        self.key = data.get(1)? & 0xf;
        let at = |i: usize| data.get(i).copied().unwrap_or(0);
        (self.asc, self.ascq) = (at(2), at(3));
        self.overflow = at(4) & 0x80 != 0;
        let mut rest = data.get(8..).unwrap_or_default();
        while let [kind, len, ..] = *rest {
            // One that is cut off has what there is of it.
            let end = rest.len().min(2 + usize::from(len));
            let body = &rest[2..end];
            self.one(kind, body);
            self.descriptors.push(Descriptor {
                kind,
                body: body.to_vec(),
            });
            rest = &rest[end..];
        }
        Some(())
    }

    /// One descriptor: SPC-6, table 30, and the command sets' own.
    fn one(&mut self, kind: u8, body: &[u8]) {
        let valid = |i: usize| body.get(i).is_some_and(|b| b & 0x80 != 0);
        match kind {
            0x00 if valid(0) => {
                self.information = self.information.or(body.get(2..10).map(be));
            }
            0x01 => self.command_specific = body.get(2..10).map(be),
            0x02 => self.specific = body.get(2..5).and_then(|f| specific(self.key, f)),
            0x03 => self.unit = body.get(1).copied(),
            // Stream commands (SSC-5), block commands (SBC-4).
            0x04 | 0x05 => self.marks(body.get(1).copied().unwrap_or(0)),
            0x09 => {
                if let Some(body) = body.first_chunk::<12>() {
                    self.ata = Some(Status::of_descriptor(body));
                }
            }
            // Another progress indication: the first counts.
            0x0a if self.specific.is_none() => {
                let progress = body.get(4..6).map(|f| be(f) as u16);
                self.specific = progress.map(Specific::Progress);
            }
            // Direct-access block device (SBC-4): 0 to 3 and 5 in one.
            0x0d => {
                self.marks(body.first().copied().unwrap_or(0) & 0x20);
                self.specific = body.get(2..5).and_then(|f| specific(self.key, f));
                self.unit = body.get(5).copied();
                if valid(0) {
                    self.information = body.get(6..14).map(be);
                }
                self.command_specific = body.get(14..22).map(be);
            }
            _ => {}
        }
    }

    fn marks(&mut self, flags: u8) {
        let flags = flags & LENGTH_FLAGS;
        self.filemark |= flags & 0x80 != 0;
        self.end_of_medium |= flags & 0x40 != 0;
        self.incorrect_length |= flags & 0x20 != 0;
    }

    /// The bytes that were given, no more than the additional length says.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// What was asked for and not moved, where the INFORMATION field tells that: in
    /// bytes or blocks, as the command counts, and negative if the block was longer
    /// than what was asked for (SSC-5, 4.2.13; SBC-4, READ LONG).
    pub fn residual(&self) -> Option<i64> {
        let tells = self.filemark || self.end_of_medium || self.incorrect_length;
        let information = self.information.filter(|_| tells)?;
        Some(if self.is_descriptor {
            information as i64
        } else {
            i64::from(information as u32 as i32)
        })
    }

    /// How far an operation is, in percent.
    pub fn progress(&self) -> Option<f64> {
        match self.specific {
            Some(Specific::Progress(n)) => Some(f64::from(n) * 100.0 / 65536.0),
            _ => None,
        }
    }

    /// Whether the command that it is of was carried out all the same: NO SENSE,
    /// RECOVERED ERROR and COMPLETED, unless it tells of an earlier command.
    pub fn is_success(&self) -> bool {
        matches!(self.key, 0x0 | 0x1 | 0xf) && !self.deferred
    }

    /// Whether the device has lost its power, or was reset, so that what it had
    /// in a volatile cache may be gone: 29h/00h, 01h and 04h.
    pub fn is_power_on(&self) -> bool {
        self.key == 6 && self.asc == 0x29 && matches!(self.ascq, 0x00 | 0x01 | 0x04)
    }

    /// The sense key's name.
    pub fn key_name(&self) -> &'static str {
        KEYS[usize::from(self.key & 0xf)]
    }

    /// What the additional codes mean: T10's words.
    pub fn meaning(&self) -> Option<&'static str> {
        meaning(self.asc, self.ascq)
    }
}

/// T10's words for an additional sense code and its qualifier.
pub fn meaning(asc: u8, ascq: u8) -> Option<&'static str> {
    let exact = CODES.binary_search_by_key(&(asc, ascq), |(a, q, _)| (*a, *q));
    match exact {
        Ok(i) => Some(CODES[i].2),
        Err(_) => {
            let is_in = |r: &&(u8, u8, u8, &str)| r.0 == asc && (r.1..=r.2).contains(&ascq);
            RANGES.iter().find(is_in).map(|(.., text)| *text)
        }
    }
}

fn specific(key: u8, field: &[u8]) -> Option<Specific> {
    let [flags, high, low] = *field else {
        return None;
    };
    if flags & 0x80 == 0 {
        return None;
    }
    let number = u16::from_be_bytes([high, low]);
    let bit = (flags & 0x08 != 0).then_some(flags & 7);
    Some(match key {
        0x5 => Specific::Field {
            in_cdb: flags & 0x40 != 0,
            byte: number,
            bit,
        },
        0x0 | 0x2 => Specific::Progress(number),
        0x1 | 0x3 | 0x4 => Specific::Retries(number),
        0xa => Specific::Segment {
            in_segment: flags & 0x20 != 0,
            byte: number,
            bit,
        },
        0x6 => Specific::Overflow(flags & 1 != 0),
        _ => Specific::Other([flags, high, low]),
    })
}

/// A number of percent with at most two places.
fn percent(f: &mut fmt::Formatter<'_>, value: f64) -> fmt::Result {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    write!(f, "{text} %")
}

impl fmt::Display for Specific {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |f: &mut fmt::Formatter<'_>, byte: u16, bit: Option<u8>, of: &str| match bit {
            Some(bit) => write!(f, "byte {byte:#04x} bit {bit} of the {of}"),
            None => write!(f, "byte {byte:#04x} of the {of}"),
        };
        match *self {
            Specific::Field { in_cdb, byte, bit } => {
                place(f, byte, bit, if in_cdb { "CDB" } else { "parameters" })
            }
            Specific::Segment {
                in_segment,
                byte,
                bit,
            } => {
                let of = ["parameters", "segment descriptor"][usize::from(in_segment)];
                place(f, byte, bit, of)
            }
            Specific::Progress(n) => {
                f.write_str("progress ")?;
                percent(f, f64::from(n) * 100.0 / 65536.0)
            }
            Specific::Retries(n) => write!(f, "{n} retries"),
            Specific::Overflow(true) => f.write_str("unit attentions were lost"),
            Specific::Overflow(false) => f.write_str("no unit attention was lost"),
            Specific::Other([a, b, c]) => write!(f, "specific {a:02x} {b:02x} {c:02x}"),
        }
    }
}

impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (asc, ascq) = (self.asc, self.ascq);
        write!(f, "{}, asc {asc:02x}h/{ascq:02x}h", self.key_name())?;
        if let Some(meaning) = self.meaning() {
            write!(f, " {meaning}")?;
        }
        for (is_set, name) in [
            (self.filemark, "filemark"),
            (self.end_of_medium, "end of medium (EOM)"),
            (self.incorrect_length, "incorrect length (ILI)"),
        ] {
            if is_set {
                write!(f, ", {name}")?;
            }
        }
        let is_sat = (asc, ascq) == (0x00, 0x1d) && !self.is_descriptor;
        match (self.residual(), self.information) {
            (Some(residual), _) => write!(f, ", residual {residual}")?,
            // SAT's fixed form has registers there.
            (None, Some(information)) if !is_sat => write!(f, ", information {information:#x}")?,
            _ => {}
        }
        if let Some(specific) = &self.specific {
            write!(f, ", {specific}")?;
        }
        match self.command_specific {
            Some(value) if value != 0 && self.ata.is_none_or(|a| a.source == Source::Guess) => {
                write!(f, ", command-specific {value:#x}")?;
            }
            _ => {}
        }
        match self.unit {
            Some(unit) if unit != 0 => write!(f, ", field replaceable unit {unit:02x}h")?,
            _ => {}
        }
        if let Some(ata) = &self.ata {
            let what = match ata.source {
                Source::Guess => "as ATA registers: ",
                _ => "ATA: ",
            };
            write!(f, ", {what}{ata}")?;
        }
        if self.overflow {
            f.write_str(", sense data was lost")?;
        }
        if self.deferred {
            f.write_str(" (of an earlier command)")?;
        }
        Ok(())
    }
}

/// SPC-6, table 48.
const KEYS: [&str; 16] = [
    "NO SENSE",
    "RECOVERED ERROR",
    "NOT READY",
    "MEDIUM ERROR",
    "HARDWARE ERROR",
    "ILLEGAL REQUEST",
    "UNIT ATTENTION",
    "DATA PROTECT",
    "BLANK CHECK",
    "VENDOR SPECIFIC",
    "COPY ABORTED",
    "ABORTED COMMAND",
    "EQUAL",
    "VOLUME OVERFLOW",
    "MISCOMPARE",
    "COMPLETED",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let byte = |b| u8::from_str_radix(b, 16).expect("hex");
        text.split_whitespace().map(byte).collect()
    }

    fn sense(text: &str) -> Sense {
        Sense::parse(&hex(text)).expect("sense data")
    }

    #[test]
    fn both_formats_say_the_same() {
        let fixed = sense("f0 00 05 00 00 12 34 0a 00 00 00 00 21 00");
        let descriptor = sense("72 05 21 00 00 00 00 0c 00 0a 80 00 00 00 00 00 00 00 12 34");
        for sense in [&fixed, &descriptor] {
            assert_eq!(
                sense.to_string(),
                "ILLEGAL REQUEST, asc 21h/00h logical block address out of range, \
                 information 0x1234"
            );
        }
        assert_eq!(descriptor.descriptors[0].kind, 0);
    }

    /// Rows 9 and 10 of the field's cases: SSC-5.
    #[test]
    fn a_tapes_information_is_signed() {
        let short = sense("f0 00 20 00 00 0f b0 0a");
        assert!(short.incorrect_length && short.is_success());
        assert_eq!(short.residual(), Some(4016));
        let long = sense("f0 00 20 ff ff f0 00");
        assert_eq!(long.residual(), Some(-4096));
        let text = "72 00 00 00 00 00 00 10 00 0a 80 00 ff ff ff ff ff ff f0 00 04 02 00 20";
        let long = sense(text);
        assert!(long.incorrect_length);
        assert_eq!(long.residual(), Some(-4096));
        assert!(
            long.to_string()
                .ends_with("incorrect length (ILI), residual -4096")
        );
        assert!(sense("f0 00 80 00 00 00 01").filemark);
        assert!(sense("70 00 40 00 00 00 00 0a").end_of_medium);
    }

    /// Rows 7 and 16: SAT-4 12.2.2.6 and 12.2.2.7.
    #[test]
    fn registers_come_in_two_forms() {
        let text = "72 01 00 1d 00 00 00 0e 09 0c 00 00 00 00 00 00 00 f4 00 2c 00 50";
        let ata = sense(text).ata.expect("a descriptor");
        assert_eq!((ata.status, ata.error, ata.lba), (0x50, 0, 0x2c_f400));
        let fixed = sense("f0 00 01 00 50 00 01 0a 80 00 00 00 00 1d");
        let ata = fixed.ata.expect("SAT's fixed form");
        assert_eq!((ata.status, ata.count, ata.is_48bit), (0x50, 1, true));
        assert!(!fixed.to_string().contains("information 0x"), "{fixed}");
        let ata = sense("f0 00 05 00 58 00 01 0a 00 00 00 00 21 04 00 00").ata;
        assert_eq!(ata.expect("registers").status, 0x58);
        let ata = sense("70 00 05 00 00 00 00 0a 04 51 40 01 21 04")
            .ata
            .expect("registers");
        assert_eq!(
            (ata.error, ata.status, ata.device, ata.count),
            (4, 0x51, 0x40, 1)
        );
        let media = sense("70 00 03 00 00 00 00 0a 40 51 e0 08 11 04");
        assert_eq!(media.ata.map(|ata| ata.error), Some(0x40));
        let other = sense("70 00 03 00 00 00 00 0a 00 00 10 00 11 04");
        assert_eq!(other.ata, None);
    }

    /// Rows 18 and 19: SPC-6, 4.4.2.4.
    #[test]
    fn the_key_says_what_is_specific() {
        let format = sense("70 00 02 00 00 00 00 0a 00 00 00 00 04 04 00 80 d4 a9");
        assert!(format.to_string().ends_with("progress 83.07 %"), "{format}");
        let quarter = sense("72 00 00 16 00 00 00 08 02 06 00 00 80 40 00 00");
        assert!(quarter.to_string().ends_with("progress 25 %"), "{quarter}");
        let field = sense("70 00 05 00 00 00 00 0a 00 00 00 00 26 00 00 8f 00 12");
        assert!(
            field
                .to_string()
                .ends_with("byte 0x12 bit 7 of the parameters"),
            "{field}"
        );
        let field = sense("70 00 05 00 00 00 00 0a 00 00 00 00 24 00 00 c0 00 02");
        assert!(
            field.to_string().ends_with("byte 0x02 of the CDB"),
            "{field}"
        );
        let retries = sense("70 00 03 00 00 00 00 0a 00 00 00 00 11 00 07 80 00 09");
        assert!(retries.to_string().contains("9 retries"), "{retries}");
        assert_eq!(retries.unit, Some(7));
    }

    #[test]
    fn nothing_behind_the_additional_length_counts() {
        let mut data = hex("f0 00 05 00 00 00 01 04 11 22 33 44 21 00 05 c0 00 02");
        let cut = Sense::parse(&data).expect("sense");
        assert_eq!((cut.asc, cut.specific, cut.unit), (0, None, None));
        assert_eq!(cut.command_specific, Some(0x1122_3344));
        assert_eq!(cut.raw(), &data[..12]);
        // Nor what never came.
        data[7] = 0xff;
        let short = Sense::parse(&data[..13]).expect("sense");
        assert_eq!(
            (short.asc, short.specific, short.raw().len()),
            (0x21, None, 13)
        );
        let descriptor = sense("72 05 24 00 00 00 00 02 02 06 00 00 c0 00 02 00");
        assert_eq!((descriptor.specific, descriptor.raw().len()), (None, 10));
    }

    #[test]
    fn a_deferred_error_is_never_success() {
        for code in ["f1", "71", "73"] {
            let body = if code == "73" { "01 0c 01" } else { "00 01 00" };
            let sense = sense(&format!("{code} {body}"));
            assert!(sense.deferred && !sense.is_success(), "{sense}");
        }
    }

    #[test]
    fn each_code_is_there_once() {
        assert!(CODES.is_sorted_by(|a, b| (a.0, a.1) < (b.0, b.1)));
        assert!(CODES.len() > 700, "T10 has more than {}", CODES.len());
        for (asc, ascq, words) in [
            (0x04, 0x14, "space allocation in progress"),
            (0x0c, 0x01, "write error - recovered with auto reallocation"),
            (0x11, 0x05, "L-EC uncorrectable error"),
            (0x21, 0x04, "unaligned write command"),
            (0x30, 0x01, "cannot read medium - unknown format"),
            (0x74, 0x71, "logical unit access not authorized"),
            (0x40, 0x85, "diagnostic failure on component"),
        ] {
            let found = meaning(asc, ascq).expect("words");
            assert!(found.contains(words), "{found}");
        }
        assert_eq!(meaning(0x80, 0), None);
    }
}
