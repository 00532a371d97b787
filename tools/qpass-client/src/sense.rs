//! Sense data (SPC-5, 4.5): what a SCSI device says of an error.

use core::fmt;

/// Decoded sense data, of the fixed or the descriptor format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// The sense key, 0 to 15.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
    /// Of an earlier command, not of this one.
    pub deferred: bool,
    /// The information field: often the block address at which it went wrong.
    pub information: Option<u64>,
}

impl Sense {
    /// Decodes the sense data that a device gave.
    pub fn parse(data: &[u8]) -> Option<Self> {
        let response = data.first()? & 0x7f;
        let at = |i: usize| data.get(i).copied().unwrap_or(0);
        match response {
            0x70 | 0x71 => {
                data.get(2)?;
                let valid = data[0] & 0x80 != 0;
                let word = data.get(3..7);
                let information =
                    word.map(|w| u64::from(u32::from_be_bytes(w.try_into().unwrap())));
                Some(Sense {
                    key: at(2) & 0xf,
                    asc: at(12),
                    ascq: at(13),
                    deferred: response == 0x71,
                    information: information.filter(|_| valid),
                })
            }
            0x72 | 0x73 => Some(Sense {
                key: data.get(1)? & 0xf,
                asc: at(2),
                ascq: at(3),
                deferred: response == 0x73,
                information: information(data),
            }),
            _ => None,
        }
    }

    /// The sense key's name.
    pub fn key_name(&self) -> &'static str {
        KEYS[usize::from(self.key & 0xf)]
    }

    /// What the additional codes mean, if it is one of the common ones.
    pub fn meaning(&self) -> Option<&'static str> {
        let exact = CODES
            .iter()
            .find(|(asc, ascq, _)| (*asc, *ascq) == (self.asc, self.ascq));
        // The qualifiers of a few codes are numbers.
        let family = FAMILIES.iter().find(|(asc, _)| *asc == self.asc);
        exact
            .map(|(.., text)| *text)
            .or_else(|| family.map(|(_, text)| *text))
    }
}

/// The information descriptor's, type 0.
fn information(data: &[u8]) -> Option<u64> {
    let mut rest = data.get(8..)?;
    while let [kind, len, ..] = *rest {
        let body = rest.get(2..2 + usize::from(len))?;
        if kind == 0 && body.first()? & 0x80 != 0 {
            return Some(u64::from_be_bytes(body.get(2..10)?.try_into().ok()?));
        }
        rest = &rest[2 + usize::from(len)..];
    }
    None
}

impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (asc, ascq) = (self.asc, self.ascq);
        write!(f, "{}, asc {asc:02x}h/{ascq:02x}h", self.key_name())?;
        if let Some(meaning) = self.meaning() {
            write!(f, " {meaning}")?;
        }
        if let Some(information) = self.information {
            write!(f, ", information {information:#x}")?;
        }
        if self.deferred {
            write!(f, " (of an earlier command)")?;
        }
        Ok(())
    }
}

/// SPC-5, table 49.
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

/// Codes whose qualifier is a number of the component's.
const FAMILIES: &[(u8, &str)] = &[
    (0x40, "diagnostic failure on component"),
    (0x4d, "tagged overlapped commands"),
    (0x70, "decompression exception"),
];

/// The common ones of T10's list of additional sense codes.
#[rustfmt::skip]
const CODES: &[(u8, u8, &str)] = &[
    (0x00, 0x00, "no additional sense information"),
    (0x00, 0x01, "filemark detected"),
    (0x00, 0x02, "end of partition or medium detected"),
    (0x00, 0x03, "setmark detected"),
    (0x00, 0x04, "beginning of partition or medium detected"),
    (0x00, 0x05, "end of data detected"),
    (0x00, 0x06, "I/O process terminated"),
    (0x00, 0x16, "operation in progress"),
    (0x00, 0x17, "cleaning requested"),
    (0x00, 0x1d, "ATA pass-through information available"),
    (0x01, 0x00, "no index or sector signal"),
    (0x02, 0x00, "no seek complete"),
    (0x03, 0x00, "peripheral device write fault"),
    (0x04, 0x00, "logical unit not ready, cause not reportable"),
    (0x04, 0x01, "logical unit is becoming ready"),
    (0x04, 0x02, "logical unit not ready, initializing command required"),
    (0x04, 0x03, "logical unit not ready, manual intervention required"),
    (0x04, 0x04, "logical unit not ready, format in progress"),
    (0x04, 0x07, "logical unit not ready, operation in progress"),
    (0x04, 0x09, "logical unit not ready, self-test in progress"),
    (0x04, 0x0a, "logical unit not accessible, asymmetric access state transition"),
    (0x04, 0x0b, "logical unit not accessible, target port in standby state"),
    (0x04, 0x0c, "logical unit not accessible, target port in unavailable state"),
    (0x04, 0x11, "logical unit not ready, notify (enable spinup) required"),
    (0x04, 0x12, "logical unit not ready, offline"),
    (0x04, 0x1b, "logical unit not ready, sanitize in progress"),
    (0x05, 0x00, "logical unit does not respond to selection"),
    (0x08, 0x00, "logical unit communication failure"),
    (0x0b, 0x01, "warning, specified temperature exceeded"),
    (0x0c, 0x00, "write error"),
    (0x0c, 0x02, "write error, auto reallocation failed"),
    (0x10, 0x00, "ID CRC or ECC error"),
    (0x10, 0x01, "logical block guard check failed"),
    (0x10, 0x02, "logical block application tag check failed"),
    (0x10, 0x03, "logical block reference tag check failed"),
    (0x11, 0x00, "unrecovered read error"),
    (0x11, 0x04, "unrecovered read error, auto reallocate failed"),
    (0x15, 0x00, "random positioning error"),
    (0x17, 0x00, "recovered data with no error correction applied"),
    (0x18, 0x00, "recovered data with error correction applied"),
    (0x1a, 0x00, "parameter list length error"),
    (0x1b, 0x00, "synchronous data transfer error"),
    (0x1d, 0x00, "miscompare during verify operation"),
    (0x20, 0x00, "invalid command operation code"),
    (0x20, 0x02, "access denied, no access rights"),
    (0x21, 0x00, "logical block address out of range"),
    (0x21, 0x01, "invalid element address"),
    (0x24, 0x00, "invalid field in CDB"),
    (0x25, 0x00, "logical unit not supported"),
    (0x26, 0x00, "invalid field in parameter list"),
    (0x26, 0x01, "parameter not supported"),
    (0x26, 0x02, "parameter value invalid"),
    (0x27, 0x00, "write protected"),
    (0x27, 0x07, "space allocation failed, write protect"),
    (0x28, 0x00, "not ready to ready change, medium may have changed"),
    (0x29, 0x00, "power on, reset, or bus device reset occurred"),
    (0x29, 0x01, "power on occurred"),
    (0x29, 0x02, "SCSI bus reset occurred"),
    (0x29, 0x03, "bus device reset function occurred"),
    (0x29, 0x04, "device internal reset"),
    (0x29, 0x07, "I_T nexus loss occurred"),
    (0x2a, 0x00, "parameters changed"),
    (0x2a, 0x01, "mode parameters changed"),
    (0x2a, 0x03, "reservations preempted"),
    (0x2a, 0x09, "capacity data has changed"),
    (0x2c, 0x00, "command sequence error"),
    (0x2f, 0x00, "commands cleared by another initiator"),
    (0x30, 0x00, "incompatible medium installed"),
    (0x30, 0x03, "cleaning cartridge installed"),
    (0x31, 0x00, "medium format corrupted"),
    (0x32, 0x00, "no defect spare location available"),
    (0x38, 0x07, "thin provisioning soft threshold reached"),
    (0x39, 0x00, "saving parameters not supported"),
    (0x3a, 0x00, "medium not present"),
    (0x3a, 0x01, "medium not present, tray closed"),
    (0x3a, 0x02, "medium not present, tray open"),
    (0x3b, 0x0d, "medium destination element full"),
    (0x3b, 0x0e, "medium source element empty"),
    (0x3b, 0x11, "medium magazine not accessible"),
    (0x3d, 0x00, "invalid bits in IDENTIFY message"),
    (0x3e, 0x00, "logical unit has not self-configured yet"),
    (0x3e, 0x01, "logical unit failure"),
    (0x3f, 0x00, "target operating conditions have changed"),
    (0x3f, 0x01, "microcode has been changed"),
    (0x3f, 0x03, "inquiry data has changed"),
    (0x3f, 0x0e, "reported LUNs data has changed"),
    (0x43, 0x00, "message error"),
    (0x44, 0x00, "internal target failure"),
    (0x45, 0x00, "select or reselect failure"),
    (0x47, 0x00, "SCSI parity error"),
    (0x48, 0x00, "initiator detected error message received"),
    (0x49, 0x00, "invalid message error"),
    (0x4b, 0x00, "data phase error"),
    (0x4e, 0x00, "overlapped commands attempted"),
    (0x53, 0x00, "media load or eject failed"),
    (0x53, 0x02, "medium removal prevented"),
    (0x55, 0x00, "system resource failure"),
    (0x5a, 0x01, "operator medium removal request"),
    (0x5d, 0x00, "failure prediction threshold exceeded"),
    (0x5d, 0xff, "failure prediction threshold exceeded (false)"),
    (0x5e, 0x00, "low power condition on"),
    (0x64, 0x00, "illegal mode for this track"),
    (0x67, 0x0b, "ATA device feature not enabled"),
    (0x74, 0x00, "security error"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_say_the_same() {
        let mut fixed = [0; 18];
        (fixed[0], fixed[2], fixed[12], fixed[13]) = (0xf0, 5, 0x21, 0);
        fixed[3..7].copy_from_slice(&0x1234u32.to_be_bytes());
        let mut descriptor = vec![0x72, 5, 0x21, 0, 0, 0, 0, 12, 0, 10, 0x80, 0];
        descriptor.extend(0x1234u64.to_be_bytes());
        let fixed = Sense::parse(&fixed).expect("fixed");
        assert_eq!(Some(fixed), Sense::parse(&descriptor));
        assert_eq!(
            fixed.to_string(),
            "ILLEGAL REQUEST, asc 21h/00h logical block address out of range, information 0x1234"
        );
    }

    #[test]
    fn no_data_makes_it_panic() {
        let mut noise = 0x2545_f491_4f6c_dd1du64;
        for len in 0..64 {
            for _ in 0..400 {
                let data: Vec<u8> = (0..len)
                    .map(|i| {
                        noise ^= noise << 13;
                        noise ^= noise >> 7;
                        noise ^= noise << 17;
                        match i {
                            0 => 0x70 | (noise & 0x83) as u8,
                            _ => noise as u8,
                        }
                    })
                    .collect();
                if let Some(sense) = Sense::parse(&data) {
                    assert!(!sense.to_string().is_empty());
                }
            }
        }
    }

    #[test]
    fn each_code_is_there_once() {
        let mut codes: Vec<_> = CODES.iter().map(|(a, q, _)| (a, q)).collect();
        codes.dedup();
        assert_eq!(codes.len(), CODES.len());
        assert!(codes.is_sorted());
    }
}
