//! Inputs that once hung, froze, panicked or deceived a real kernel.
//!
//! Each entry runs in a process of its own, with a bound: one that does not end
//! is killed, and one that cannot be killed is said to be so. After each, the
//! disks' own drivers must answer. The tunable `qpass.only` names entries, with
//! a plus between, that are run alone, `qpass.without` those that are left out;
//! `qpass.slow` is how many times longer everything may take.
#![expect(
    clippy::result_large_err,
    reason = "a failure carries its line by value: there is no heap"
)]

mod data;
mod interface;
mod sent;
pub(super) mod trial;
mod waits;

use super::Sheet;
use crate::freebsd::{FreeBsd, PANICKED};
use conform::{Line, Outcome, sys::Sys};
use core::fmt::Write;
use trial::{Disk, Trial};

/// An input that was a fault once.
struct Entry {
    /// What it is called in the texts.
    name: &'static str,
    /// What must hold.
    promise: &'static str,
    /// How many seconds it may take.
    seconds: u64,
    /// Whether it has the monitor make a disk slow.
    throttles: bool,
    run: fn(&mut Trial<'_>) -> Outcome,
}

const fn entry(
    name: &'static str,
    promise: &'static str,
    seconds: u64,
    run: fn(&mut Trial<'_>) -> Outcome,
) -> Entry {
    Entry {
        name,
        promise,
        seconds,
        throttles: false,
        run,
    }
}

const fn slowed(
    name: &'static str,
    promise: &'static str,
    seconds: u64,
    run: fn(&mut Trial<'_>) -> Outcome,
) -> Entry {
    let mut entry = entry(name, promise, seconds, run);
    entry.throttles = true;
    entry
}

/// What cannot panic a driver that has these faults comes first, and what leaves
/// threads in it that keep every CPU comes late.
const ENTRIES: &[Entry] = &[
    entry(
        "M5",
        "CAMGETPASSTHRU tells no kernel address",
        20,
        interface::m5,
    ),
    entry(
        "L2",
        "QPIOC_LIST goes on with what came out",
        20,
        interface::l2,
    ),
    entry(
        "L3",
        "EVFILT_WRITE and POLLOUT know of bytes",
        30,
        interface::l3,
    ),
    entry(
        "F8",
        "the limits follow the machine's memory",
        20,
        interface::f8,
    ),
    entry("F5", "a senseless residual hides no data", 20, data::f5),
    entry(
        "M9",
        "pages are let go when the device is through",
        40,
        data::m9,
    ),
    entry(
        "M10",
        "a shared file mapping keeps what was read",
        40,
        data::m10,
    ),
    entry(
        "L12",
        "XPT_MMC_IO without data leaves the data alone",
        20,
        sent::l12,
    ),
    entry("L8", "no physical address for XPT_NVME_IO", 20, sent::l8),
    slowed("H4", "what was cancelled is not sent again", 60, waits::h4),
    entry(
        "H5",
        "no wait for what another thread has reaped",
        60,
        waits::h5,
    ),
    slowed("F7", "the disk's own driver does not starve", 60, sent::f7),
    entry(
        "F6",
        "ENXIO or ENOTTY, EV_EOF and POLLHUP after departure",
        60,
        interface::f6,
    ),
    entry("H2", "a cancel on iSCSI ends", 60, waits::h2),
    entry(
        "M6",
        "no way round the physical address gate of NVMe",
        30,
        sent::m6,
    ),
    entry(
        "M2",
        "a short read shows nothing of bounce pages",
        40,
        data::m2,
    ),
    entry("F1", "right data at every address", 120, data::f1),
    entry("N2", "no freeze outlives the open", 60, sent::n2),
    slowed("F2", "CAM_HIGH_POWER holds no other disk", 90, sent::f2),
    entry(
        "H1b",
        "one request alone is always let through",
        40,
        waits::h1b,
    ),
    entry("H1", "a wait for bytes ends", 60, waits::h1),
    entry("N1", "a CCB without data has no data format", 30, sent::n1),
    slowed("M1", "many misaligned NVMe reads", 120, data::m1),
    entry("F4", "unload while XPT_DEV_MATCH steps", 120, interface::f4),
    // An unmended driver leaves a disk behind that nobody can thaw.
    entry(
        "F3",
        "openings that no disk can have are EINVAL",
        40,
        sent::f3,
    ),
];

/// What this machine cannot show, or this set does not.
const ELSEWHERE: &[(&str, &str)] = &[
    ("H3", "wants an isci(4); the user-mode kernel has its model"),
    ("M3", "a window of two instructions; the user-mode kernel's"),
    (
        "M4",
        "wants a pvscsi(4); the user-mode kernel has its model",
    ),
    (
        "M7",
        "wants an mrsas(4); the user-mode kernel has its model",
    ),
    ("M8", "a count of wake-ups; the user-mode kernel's"),
];

/// How long a neighbour may wait for its disk, and how long a killed process
/// may take to end.
const NEIGHBOUR_MS: u64 = 5000;
const KILLED_MS: u64 = 10_000;

/// What an entry's process tells this one: its verdict, and its words.
struct Report(*mut u8);

const GOOD: u8 = 1;
const BAD: u8 = 2;
const SKIPPED: u8 = 3;
const WORDS: usize = 400;

impl Report {
    fn new(sys: &mut FreeBsd) -> Self {
        Report(sys.map_shared(4096))
    }

    fn set(&self, verdict: u8, words: &str) {
        let len = words.len().min(WORDS);
        // SAFETY: inside the page; the parent reads it when the writer has ended.
        unsafe {
            core::ptr::copy_nonoverlapping(words.as_ptr(), self.0.add(4), len);
            self.0.add(1).cast::<u16>().write_unaligned(len as u16);
            self.0.write_volatile(verdict);
        }
    }

    fn get(&self) -> (u8, &str) {
        // SAFETY: inside the page, and no longer than it; nobody writes now.
        unsafe {
            let len = usize::from(self.0.add(1).cast::<u16>().read_unaligned()).min(WORDS);
            let words = core::slice::from_raw_parts(self.0.add(4), len);
            let words = core::str::from_utf8(words).unwrap_or("?");
            (self.0.read_volatile(), words)
        }
    }
}

/// Whether a list of names with a plus between has one.
pub(super) fn lists(list: &Option<([u8; 128], usize)>, name: &str) -> Option<bool> {
    let (text, len) = list.as_ref()?;
    let text = core::str::from_utf8(&text[..*len]).ok()?;
    Some(text.split('+').any(|one| one == name))
}

/// The disks, of which each may have stopped for good.
struct Neighbours {
    stuck: [bool; Disk::ALL.len()],
    slow: u64,
}

impl Neighbours {
    /// Reads from every disk by its own driver, in a process for each: the
    /// first that does not answer. One that only waits for a thaw gets one, so
    /// that the next entries have a disk.
    fn ask(&mut self, sys: &mut FreeBsd) -> Option<&'static str> {
        let mut silent = None;
        for (i, disk) in Disk::ALL.into_iter().enumerate() {
            if self.stuck[i] || disk.block_device(sys).is_none() {
                continue;
            }
            let Ok(reader) = sys.fork() else {
                return Some("fork");
            };
            if reader == 0 {
                let good = disk.read_by_its_driver(sys);
                sys.exit(i32::from(!good));
            }
            match sys.wait_ms(reader, NEIGHBOUR_MS * self.slow) {
                Some(0) => continue,
                Some(_) => {}
                None => self.stuck[i] = !thaw(sys, disk, reader),
            }
            silent = silent.or(Some(disk.name()));
        }
        silent
    }
}

/// Releases a disk's queue until a process that waits for it ends.
fn thaw(sys: &mut FreeBsd, disk: Disk, waiting: usize) -> bool {
    let Ok(helper) = sys.fork() else {
        return false;
    };
    if helper == 0 {
        trial::release_queue(sys, disk);
        sys.exit(0);
    }
    let helped = sys.wait_ms(helper, KILLED_MS).is_some();
    sys.kill(helper, crate::freebsd::SIGKILL);
    helped && sys.wait_ms(waiting, NEIGHBOUR_MS).is_some()
}

/// Runs every entry, and then unloads. The module is loaded.
pub fn faults(sheet: &mut Sheet<'_>) {
    entries(sheet);
    sheet.sys.sleep_ms(500);
    sheet.check_unload();
}

/// Runs every entry.
pub(super) fn entries(sheet: &mut Sheet<'_>) {
    let only = sheet.sys.tunable_text("qpass.only");
    let without = sheet.sys.tunable_text("qpass.without");
    let slow = u64::from(sheet.sys.tunable("qpass.slow").unwrap_or(1).max(1));
    let wanted =
        |name| lists(&only, name).unwrap_or(true) && !lists(&without, name).unwrap_or(false);
    let mut neighbours = Neighbours {
        stuck: [false; Disk::ALL.len()],
        slow,
    };
    sheet.sys.wait_disk();
    let filled = trial::fill_disks(sheet.sys);
    sheet.check("every block holds its number", filled.1, filled.0);
    if let Some(disk) = neighbours.ask(sheet.sys) {
        sheet.check("its own driver reads from", disk, false);
    }
    let report = Report::new(sheet.sys);
    for entry in ENTRIES.iter().filter(|entry| wanted(entry.name)) {
        sheet.note(format_args!("guest: entry {}", entry.name));
        let (verdict, mut words) = run_entry(sheet.sys, entry, &report, slow);
        if entry.throttles && sheet.sys.can_depart() {
            trial::let_go(sheet.sys);
        }
        let mut verdict = verdict;
        if let Some(disk) = neighbours.ask(sheet.sys) {
            verdict = BAD;
            let _ = write!(words, " [afterwards {disk} does not answer its own driver]");
        }
        let mut what = Line::new();
        let _ = write!(what, "{} {}:", entry.name, entry.promise);
        // The kernel prints on the same console, of what has just happened.
        sheet.sys.sleep_ms(300);
        match verdict {
            SKIPPED => sheet.skip(what.as_str().trim_end_matches(':'), words.as_str()),
            verdict => sheet.check(what.as_str(), words.as_str(), verdict == GOOD),
        }
    }
    for (name, why) in ELSEWHERE.iter().filter(|(name, _)| wanted(name)) {
        sheet.skip(name, why);
    }
}

/// Runs one entry in a process of its own, and ends all that it started.
fn run_entry(sys: &mut FreeBsd, entry: &Entry, report: &Report, slow: u64) -> (u8, Line) {
    report.set(0, "");
    let mut words = Line::new();
    let Ok(pid) = sys.fork() else {
        let _ = words.write_str("fork");
        return (BAD, words);
    };
    if pid == 0 {
        sys.lead_group(0);
        let mut trial = Trial::new(sys, slow);
        match (entry.run)(&mut trial) {
            Ok(()) => match trial.skipped {
                Some(why) => report.set(SKIPPED, why),
                None => report.set(GOOD, trial.seen.as_str().trim_start()),
            },
            Err(failure) => report.set(BAD, failure.what.as_str()),
        }
        sys.exit(0);
    }
    sys.lead_group(pid);
    let ended = sys.wait_ms(pid, entry.seconds * slow * 1000);
    let is_gone = sys.end_group(pid, KILLED_MS * slow);
    let (mut verdict, said) = report.get();
    let _ = words.write_str(said);
    let trouble = match (ended, is_gone, verdict) {
        (None, true, _) => "HUNG",
        (_, false, _) => "UNKILLABLE",
        (Some(PANICKED), ..) => "it panicked: see above",
        (.., 0) => "it ended without a verdict",
        _ => "",
    };
    if !trouble.is_empty() {
        verdict = BAD;
        let _ = write!(words, " {trouble}");
    }
    (verdict, words)
}
