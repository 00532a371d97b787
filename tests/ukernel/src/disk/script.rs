//! Scripted answers of a disk: what it says when a command comes that matches.
//!
//! A script is lines of words; `#` begins a comment. Bytes are two hexadecimal
//! digits each; `"text"` is its characters, and `00*14` fourteen bytes of one kind.
//!
//! - `inquiry BYTES`: the standard INQUIRY data, which CAM has of the device too;
//! - `identify WORD=HEX ...`: words of IDENTIFY DEVICE data, by their decimal number;
//! - `namespace BYTE=HEX ...`: bytes of Identify Namespace data, likewise.
//!
//! `on scsi BYTES`, `on ata BYTES`, `on nvme BYTES` and `on admin BYTES` begin a rule,
//! for commands that begin with these bytes: of a CDB; of the registers command,
//! features, LBA 7:0, 15:8, 23:16, device, count; of a submission queue entry. Here
//! `..` is any byte, and `80/c0` one that is 80h in the bits of c0h. The first rule
//! that matches counts. Its lines say what happens; without any, the command ends well
//! and does nothing:
//!
//! - `at N BYTES`: and these bytes from byte N of the command on;
//! - `skip N`: not for the first N that match; `times N`: for N of them;
//! - `do`: the disk carries it out, before what else the rule says;
//! - `data BYTES`: the data; `allocation N` or `N-M`: no more of them than these bytes
//!   of the CDB say; `moved N`: so many bytes count as moved;
//! - `status XX`, `sense BYTES`: SCSI status, and CHECK CONDITION with sense data;
//! - `residual N`: what the controller says is left, with a sign;
//! - `registers status=50 error=00 count=80 lba=2cf400 device=00`;
//! - `dword0 HEX`, `nvme T/CC` and behind it `more`, `dnr`, `crd=N`;
//! - `cam CAM_CMD_TIMEOUT`, or a number: CAM's status;
//! - `after 10ms`: it takes so long; `hang`: it is never answered.

use crate::sys;
use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Which commands a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A CDB.
    Scsi,
    /// Registers.
    Ata,
    /// An I/O queue's.
    Nvme,
    /// The admin queue's.
    Admin,
}

/// Registers that a rule sets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Registers {
    pub status: Option<u8>,
    pub error: Option<u8>,
    pub count: Option<u16>,
    pub lba: Option<u64>,
    pub device: Option<u8>,
}

/// What is done about a command.
#[derive(Debug)]
pub(super) struct Rule {
    kind: Kind,
    /// Value and mask of bytes, from a place on.
    patterns: Vec<(usize, Vec<(u8, u8)>)>,
    skip: u64,
    times: u64,
    seen: AtomicU64,
    pub does: bool,
    pub data: Option<Vec<u8>>,
    pub allocation: Option<(usize, usize)>,
    pub moved: Option<usize>,
    pub status: Option<u8>,
    pub sense: Option<Vec<u8>>,
    pub residual: Option<i32>,
    pub registers: Option<Registers>,
    pub dword0: u32,
    pub nvme: u16,
    pub cam: Option<u32>,
    pub after: Option<Duration>,
    pub hangs: bool,
}

impl Rule {
    fn new(kind: Kind) -> Self {
        Rule {
            kind,
            patterns: Vec::new(),
            skip: 0,
            times: u64::MAX,
            seen: AtomicU64::new(0),
            does: false,
            data: None,
            allocation: None,
            moved: None,
            status: None,
            sense: None,
            residual: None,
            registers: None,
            dword0: 0,
            nvme: 0,
            cam: None,
            after: None,
            hangs: false,
        }
    }

    fn matches(&self, kind: Kind, command: &[u8]) -> bool {
        let fits = |(at, pattern): &(usize, Vec<(u8, u8)>)| {
            let bytes = command.get(*at..*at + pattern.len());
            bytes.is_some_and(|b| {
                let one = |(b, (value, mask)): (&u8, &(u8, u8))| b & mask == value & mask;
                b.iter().zip(pattern).all(one)
            })
        };
        self.kind == kind && self.patterns.iter().all(fits)
    }

    /// It matches: whether it is its turn.
    fn is_due(&self) -> bool {
        let n = self.seen.fetch_add(1, Ordering::SeqCst);
        n >= self.skip && n - self.skip < self.times
    }
}

/// A script.
#[derive(Debug, Default)]
pub struct Script {
    rules: Vec<Rule>,
    inquiry: Option<Vec<u8>>,
    identify: Vec<(usize, u64)>,
    namespace: Vec<(usize, u64)>,
}

/// One byte, and how often it comes.
fn byte(word: &str) -> Option<(u8, usize)> {
    let (digits, times) = word.split_once('*').unwrap_or((word, "1"));
    let is_byte = digits.len() == 2 && digits.is_ascii();
    let byte = is_byte.then(|| u8::from_str_radix(digits, 16).ok())??;
    let times = times.parse().ok().filter(|n| *n <= 1 << 20)?;
    Some((byte, times))
}

/// A line's words; what is in quotes is one, and begins with a quote.
fn words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    for (i, part) in line.split('"').enumerate() {
        if i % 2 == 1 {
            words.push(format!("\"{part}"));
            continue;
        }
        let (part, has_comment) = match part.split_once('#') {
            Some((before, _)) => (before, true),
            None => (part, false),
        };
        words.extend(part.split_whitespace().map(String::from));
        if has_comment {
            return Some(words);
        }
    }
    let is_closed = !line.split('"').count().is_multiple_of(2);
    is_closed.then_some(words)
}

fn bytes(words: &[String]) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    for word in words {
        match word.strip_prefix('"') {
            Some(text) => all.extend(text.bytes()),
            None => {
                let (byte, times) = byte(word)?;
                all.resize(all.len() + times, byte);
            }
        }
    }
    Some(all)
}

fn pattern(words: &[String]) -> Option<Vec<(u8, u8)>> {
    let mut all = Vec::new();
    for word in words {
        if word == ".." {
            all.push((0, 0));
            continue;
        }
        let (value, mask) = word.split_once('/').unwrap_or((word, "ff"));
        let (value, times) = byte(value)?;
        all.resize(all.len() + times, (value, byte(mask)?.0));
    }
    Some(all)
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

/// `WORD=HEX`, from a decimal number on as many as there are, separated by commas.
fn places(words: &[String]) -> Option<Vec<(usize, u64)>> {
    let mut all = Vec::new();
    for word in words {
        let (at, values) = word.split_once('=')?;
        let at = at.parse::<usize>().ok()?;
        for (i, value) in values.split(',').enumerate() {
            all.push((at.checked_add(i)?, hex(value)?));
        }
    }
    Some(all)
}

/// A time: `100us`, `10ms`, `2s`.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        _ => return None,
    };
    let nanos = digits.parse::<u64>().ok()?.checked_mul(unit)?;
    Some(Duration::from_nanos(nanos))
}

/// CAM's statuses that a rule may name.
const CAM: &[(&str, u32)] = &[
    ("CAM_REQ_CMP", sys::CAM_REQ_CMP),
    ("CAM_REQ_ABORTED", sys::CAM_REQ_ABORTED),
    ("CAM_REQ_CMP_ERR", sys::CAM_REQ_CMP_ERR),
    ("CAM_BUSY", sys::CAM_BUSY),
    ("CAM_REQ_INVALID", sys::CAM_REQ_INVALID),
    ("CAM_DEV_NOT_THERE", sys::CAM_DEV_NOT_THERE),
    ("CAM_SEL_TIMEOUT", sys::CAM_SEL_TIMEOUT),
    ("CAM_CMD_TIMEOUT", sys::CAM_CMD_TIMEOUT),
    ("CAM_SCSI_BUS_RESET", sys::CAM_SCSI_BUS_RESET),
    ("CAM_UNCOR_PARITY", sys::CAM_UNCOR_PARITY),
    ("CAM_AUTOSENSE_FAIL", sys::CAM_AUTOSENSE_FAIL),
    ("CAM_DATA_RUN_ERR", sys::CAM_DATA_RUN_ERR),
    ("CAM_BDR_SENT", sys::CAM_BDR_SENT),
    ("CAM_UNREC_HBA_ERROR", sys::CAM_UNREC_HBA_ERROR),
    ("CAM_REQUEUE_REQ", sys::CAM_REQUEUE_REQ),
    ("CAM_RESRC_UNAVAIL", sys::CAM_RESRC_UNAVAIL),
];

fn nvme_status(words: &[String]) -> Option<u16> {
    let (first, flags) = words.split_first()?;
    let (sct, sc) = first.split_once('/')?;
    let (sct, sc) = (hex(sct)? as u16, hex(sc)? as u16);
    let mut word = (sct & 7) << 9 | (sc & 0xff) << 1;
    for flag in flags {
        word |= match flag.as_str() {
            "more" => 1 << 14,
            "dnr" => 1 << 15,
            _ => (flag.strip_prefix("crd=")?.parse::<u16>().ok()? & 3) << 12,
        };
    }
    Some(word)
}

fn registers(words: &[String]) -> Option<Registers> {
    let mut all = Registers::default();
    for word in words {
        let (name, value) = word.split_once('=')?;
        let value = hex(value)?;
        match name {
            "status" => all.status = Some(value as u8),
            "error" => all.error = Some(value as u8),
            "count" => all.count = Some(value as u16),
            "lba" => all.lba = Some(value),
            "device" => all.device = Some(value as u8),
            _ => return None,
        }
    }
    Some(all)
}

impl Script {
    /// Reads a script's file.
    ///
    /// # Errors
    /// In words: it cannot be read, or which line is none.
    pub fn read(path: &Path) -> Result<Self, String> {
        let name = path.display();
        let text = std::fs::read_to_string(path).map_err(|e| format!("{name}: {e}"))?;
        Script::parse(&text).map_err(|line| format!("{name}:{line}: not a line of a script"))
    }

    /// The same, of its text.
    ///
    /// # Errors
    /// Which line is none.
    pub fn parse(text: &str) -> Result<Self, usize> {
        let mut script = Script::default();
        for (i, line) in text.lines().enumerate() {
            let words = words(line).ok_or(i + 1)?;
            script.line(&words).ok_or(i + 1)?;
        }
        Ok(script)
    }

    fn line(&mut self, words: &[String]) -> Option<()> {
        let Some((first, rest)) = words.split_first() else {
            return Some(());
        };
        match first.as_str() {
            "inquiry" => self.inquiry = Some(bytes(rest)?),
            "identify" => self.identify.extend(places(rest)?),
            "namespace" => self.namespace.extend(places(rest)?),
            "on" => {
                let (kind, rest) = rest.split_first()?;
                let kind = match kind.as_str() {
                    "scsi" => Kind::Scsi,
                    "ata" => Kind::Ata,
                    "nvme" => Kind::Nvme,
                    "admin" => Kind::Admin,
                    _ => return None,
                };
                let mut rule = Rule::new(kind);
                rule.patterns.push((0, pattern(rest)?));
                self.rules.push(rule);
            }
            _ => self.rules.last_mut()?.line(first, rest)?,
        }
        Some(())
    }

    /// The rule for a command, if there is one whose turn it is.
    pub(super) fn rule(&self, kind: Kind, command: &[u8]) -> Option<usize> {
        let found = |rule: &Rule| rule.matches(kind, command) && rule.is_due();
        self.rules.iter().position(found)
    }

    pub(super) fn at(&self, index: usize) -> &Rule {
        &self.rules[index]
    }

    /// The standard INQUIRY data, if it says other ones.
    pub(super) fn inquiry(&self) -> Option<&[u8]> {
        self.inquiry.as_deref()
    }

    /// Changes words of IDENTIFY DEVICE data.
    pub(super) fn change_identify(&self, data: &mut [u8]) {
        for (word, value) in &self.identify {
            if let Some(at) = data.get_mut(word * 2..word * 2 + 2) {
                at.copy_from_slice(&(*value as u16).to_le_bytes());
            }
        }
    }

    /// Changes bytes of Identify Namespace data.
    pub(super) fn change_namespace(&self, data: &mut [u8]) {
        for (at, value) in &self.namespace {
            if let Some(byte) = data.get_mut(*at) {
                *byte = *value as u8;
            }
        }
    }
}

impl Rule {
    fn line(&mut self, first: &str, rest: &[String]) -> Option<()> {
        let one = match rest {
            [one] => Some(one.as_str()),
            _ => None,
        };
        match first {
            "at" => {
                let (at, rest) = rest.split_first()?;
                let at = at.parse().ok().filter(|at| *at < 64)?;
                self.patterns.push((at, pattern(rest)?));
            }
            "skip" => self.skip = one?.parse().ok()?,
            "times" => self.times = one?.parse().ok()?,
            "do" if rest.is_empty() => self.does = true,
            "hang" if rest.is_empty() => self.hangs = true,
            "data" => self.data = Some(bytes(rest)?),
            "allocation" => {
                let (from, to) = one?.split_once('-').unwrap_or((one?, one?));
                let (from, to) = (from.parse().ok()?, to.parse().ok()?);
                self.allocation = (from <= to && to < 16).then_some(Some((from, to)))?;
            }
            "moved" => self.moved = Some(one?.parse().ok()?),
            "status" => self.status = Some(byte(one?)?.0),
            "sense" => self.sense = Some(bytes(rest)?),
            "residual" => self.residual = Some(one?.parse().ok()?),
            "registers" => self.registers = Some(registers(rest)?),
            "dword0" => self.dword0 = u32::try_from(hex(one?)?).ok()?,
            "nvme" => self.nvme = nvme_status(rest)?,
            "cam" => {
                let known = CAM.iter().find(|(name, _)| *name == one.unwrap_or(""));
                self.cam = Some(known.map(|(_, n)| *n).or_else(|| one?.parse().ok())?);
            }
            "after" => self.after = Some(duration(one?)?),
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read_line_by_line() {
        let script = Script::parse(
            "# a disk\ninquiry 00 00 05 02 1f 00*3 \"ATA     \"\nidentify 83=5004 60=800,0\n\
             on scsi 12 01/01 ..   # any page\n  skip 1\n  times 1\n  data 00 80 00 04 \"SN 1\"\n\
             on scsi 28\n at 5 07\n sense f0 00 03\n residual -60\n after 5ms\n\
             on nvme 02\n nvme 2/81 dnr crd=2\n dword0 0x000f000f\n",
        )
        .expect("a script");
        assert_eq!(script.inquiry().map(<[u8]>::len), Some(16));
        let inquiry = [0x12, 3, 0x80, 0, 255, 0];
        assert_eq!(script.rule(Kind::Scsi, &inquiry), None);
        assert_eq!(script.rule(Kind::Scsi, &inquiry), Some(0));
        assert_eq!(script.at(0).data.as_deref(), Some(&b"\0\x80\0\x04SN 1"[..]));
        assert_eq!(script.rule(Kind::Scsi, &inquiry), None);
        let read = |lba| [0x28, 0, 0, 0, 0, lba, 0, 0, 1, 0];
        assert_eq!(script.rule(Kind::Scsi, &read(6)), None);
        assert_eq!(script.rule(Kind::Scsi, &read(7)), Some(1));
        assert_eq!(script.at(1).residual, Some(-60));
        assert_eq!(script.at(2).nvme, 0xa000 | 2 << 9 | 0x81 << 1);
        let mut data = [0; 512];
        script.change_identify(&mut data);
        assert_eq!(
            (data[166], data[167], data[120], data[121]),
            (4, 0x50, 0, 8)
        );
        for bad in [
            "on what 00",
            "data 00",
            "on scsi 0",
            "on scsi 00\n data \"x",
            "x",
        ] {
            assert!(Script::parse(bad).is_err(), "{bad}");
        }
    }
    /// What docs/user-mode-disks.md shows is a script.
    #[test]
    fn the_examples_of_the_page_are_scripts() {
        let page = include_str!("../../../../docs/user-mode-disks.md");
        let example: Vec<_> = page
            .lines()
            .filter_map(|l| l.strip_prefix("    "))
            .collect();
        let script = Script::parse(&example.join("\n")).expect("a script");
        assert_eq!(script.rules.len(), 2);
        let mut seen = 0;
        let (_, rules) = page.split_once("| line of a rule").expect("a table");
        let cells = rules
            .lines()
            .filter_map(|l| l.strip_prefix("| `")?.split_once(" |"));
        for (cell, _) in cells {
            for line in cell.split('`').step_by(2).filter(|l| l.len() > 2) {
                let line = line.replace("BYTES", "00").replace('N', "3");
                let words = words(&line).expect("words");
                let known = ["at", "skip", "do", "data", "moved", "status", "sense"];
                let others = [
                    "residual",
                    "registers",
                    "dword0",
                    "nvme",
                    "cam",
                    "after",
                    "hang",
                ];
                if known.iter().chain(&others).any(|k| words[0] == *k) {
                    let text = format!("on scsi 00\n{}", line.replace("CAM_CMD_TIMEOUT", "11"));
                    assert!(Script::parse(&text).is_ok(), "{line}");
                    seen += 1;
                }
            }
        }
        assert!(seen >= 14, "{seen}");
    }
}
