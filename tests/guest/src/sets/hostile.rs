//! An attacker who may open the nodes: directed programs, then random ones.
//!
//! Every random program is made of a seed alone, so that a round comes again with
//! the tunables that are printed: `qpass.seed`, `qpass.seconds`, `qpass.only`
//! (names of directed programs and phases, with a plus between) and
//! `qpass.without`. Meanwhile a process for each disk reads from it by its own
//! driver, and another one verifies what it reads and writes by the calls.
#![expect(
    clippy::result_large_err,
    reason = "a failure carries its line by value: there is no heap"
)]

mod directed;
mod random;
mod verify;

use super::{Sheet, faults::trial};
use crate::freebsd::{FreeBsd, PANICKED};
use conform::{
    Line,
    sys::{Memory, Sys},
};
use core::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use trial::{Disk, Trial};

/// A small generator: what it gives depends on the seed alone (SplitMix64).
pub(super) struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Dice(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// What the processes of a run share.
#[repr(C)]
pub(super) struct Shared {
    /// Of each disk's own driver: reads, the longest in microseconds, when the one
    /// under way began, and those with wrong data or an error.
    reads: [AtomicU64; 3],
    longest: [AtomicU64; 3],
    began: [AtomicU64; 3],
    wrong: [AtomicU64; 3],
    /// By the calls: transfers that ended well, and those with wrong data.
    pub verified: AtomicU64,
    pub differed: AtomicU64,
    /// Kernel addresses in what came back.
    pub leaked: AtomicU64,
    /// Calls of random programs.
    pub calls: AtomicU64,
    pub good: AtomicU64,
}

const KILLED_MS: u64 = 15_000;

fn named(list: &Option<([u8; 128], usize)>, name: &str) -> Option<bool> {
    let (text, len) = list.as_ref()?;
    let text = core::str::from_utf8(&text[..*len]).ok()?;
    Some(text.split('+').any(|one| one == name))
}

/// Reads from a disk by its own driver, for ever.
fn neighbour(sys: &mut FreeBsd, disk: Disk, shared: &Shared) -> ! {
    let at = disk as usize;
    let mut memory = Memory::new(sys, 4096);
    let fd = disk
        .block_device(sys)
        .and_then(|node| sys.open(node, sys_bindings::O_RDONLY as i32).ok());
    let Some(fd) = fd else { sys.exit(1) };
    let mut dice = Dice::new(at as u64);
    loop {
        let lba = dice.below(trial::NUMBERED as usize / 8) * 8;
        let start = sys.now();
        shared.began[at].store(start, Relaxed);
        let good = sys.pread(fd, &mut memory, 4096, lba * 512);
        let us = (sys.now() - start) / 1000;
        shared.began[at].store(0, Relaxed);
        shared.longest[at].fetch_max(us, Relaxed);
        shared.reads[at].fetch_add(1, Relaxed);
        if !good || trial::differs(memory.bytes(), lba as u32, 0).is_some() {
            shared.wrong[at].fetch_add(1, Relaxed);
        }
        sys.sleep_ms(50);
    }
}

/// Says how the disks' own drivers fare; whether none waits too long.
fn neighbours_fare(sheet: &mut Sheet<'_>, shared: &Shared, slow: u64) -> bool {
    let now = sheet.sys.now();
    let mut good = true;
    let mut words = Line::new();
    for disk in Disk::ALL {
        let at = disk as usize;
        let began = shared.began[at].load(Relaxed);
        let waits = if began == 0 {
            0
        } else {
            now.saturating_sub(began) / 1_000_000
        };
        let _ = write!(
            words,
            " {} {} reads, longest {} ms, {} wrong",
            disk.name(),
            shared.reads[at].load(Relaxed),
            shared.longest[at].swap(0, Relaxed) / 1000,
            shared.wrong[at].load(Relaxed),
        );
        if waits > 1000 {
            let _ = write!(words, ", waits for {waits} ms");
        }
        good &= waits < 8000 * slow;
    }
    sheet.note(format_args!("guest: neighbours:{}", words.as_str()));
    good
}

/// Runs `what` in a group of processes, and ends it: what went wrong, if anything.
fn bounded(
    sheet: &mut Sheet<'_>,
    ms: u64,
    slow: u64,
    what: impl FnOnce(&mut FreeBsd) -> i32,
) -> Result<i32, &'static str> {
    let Ok(pid) = sheet.sys.fork() else {
        return Err("fork");
    };
    if pid == 0 {
        sheet.sys.lead_group(0);
        let status = what(sheet.sys);
        sheet.sys.exit(status);
    }
    sheet.sys.lead_group(pid);
    let ended = sheet.sys.wait_ms(pid, ms);
    if !sheet.sys.end_group(pid, KILLED_MS * slow) {
        return Err("UNKILLABLE");
    }
    match ended {
        Some(PANICKED) => Err("it panicked"),
        Some(status) => Ok(status),
        None => Err("killed"),
    }
}

/// Runs everything, and then unloads. The module is loaded.
pub fn hostile(sheet: &mut Sheet<'_>) {
    let only = sheet.sys.tunable_text("qpass.only");
    let without = sheet.sys.tunable_text("qpass.without");
    let wanted =
        |name| named(&only, name).unwrap_or(true) && !named(&without, name).unwrap_or(false);
    let slow = u64::from(sheet.sys.tunable("qpass.slow").unwrap_or(1).max(1));
    let seed = u64::from(sheet.sys.tunable("qpass.seed").unwrap_or(1));
    let seconds = u64::from(sheet.sys.tunable("qpass.seconds").unwrap_or(60));
    sheet.sys.wait_disk();
    let filled = trial::fill_disks(sheet.sys);
    sheet.check("every block holds its number", filled.1, filled.0);
    let at = sheet.sys.map_shared(4096);
    // SAFETY: a zeroed page of this process's and its children's, of atomics, that
    // is never unmapped.
    let shared: &'static Shared = unsafe { &*at.cast() };
    let mut readers = [0; 3];
    for disk in Disk::ALL {
        if disk.block_device(sheet.sys).is_none() {
            continue;
        }
        let pid = sheet.sys.fork().unwrap_or(usize::MAX);
        if pid == 0 {
            neighbour(sheet.sys, disk, shared);
        }
        readers[disk as usize] = pid;
    }
    let mut healthy = true;
    for (name, seconds, program) in directed::PROGRAMS {
        if !wanted(name) || !healthy {
            continue;
        }
        sheet.note(format_args!("guest: directed {name}"));
        let ended = bounded(sheet, seconds * slow * 1000, slow, |sys| {
            let mut trial = Trial::new(sys, slow);
            let answer = program(&mut trial);
            let mut words = Line::new();
            let _ = write!(words, "guest: {name}:{}", trial.seen.as_str());
            if let Err(failure) = &answer {
                let _ = write!(words, " {}", failure.what.as_str());
            }
            trial.sys.print(words.as_str());
            i32::from(answer.is_err())
        });
        healthy = ended != Err("UNKILLABLE");
        let fares = neighbours_fare(sheet, shared, slow);
        let word = match ended {
            Ok(0) if fares => "",
            Ok(0) => "a neighbour waits",
            Ok(_) => "see above",
            Err(word) => word,
        };
        sheet.sys.sleep_ms(300);
        sheet.check(name, word, word.is_empty());
    }
    let end = sheet.sys.now() + seconds * 1_000_000_000;
    let mut dice = Dice::new(seed);
    let mut round = 0;
    while healthy && sheet.sys.now() < end {
        round += 1;
        let phase = dice.of(&random::PHASES);
        let own = dice.next();
        let ms = (1500 + dice.below(3000) as u64) * slow;
        if !wanted(phase.name()) {
            // Nothing at all may be wanted.
            sheet.sys.sleep_ms(1);
            continue;
        }
        sheet.note(format_args!(
            "guest: round {round} {} for {ms} ms, of seed {seed}",
            phase.name()
        ));
        let ended = bounded(sheet, ms, slow, |sys| {
            random::run(sys, phase, own, shared);
            0
        });
        let fares = neighbours_fare(sheet, shared, slow);
        if !matches!(ended, Ok(0) | Err("killed")) || !fares {
            let word = ended.err().unwrap_or("a neighbour waits");
            sheet.check(phase.name(), word, false);
            healthy = false;
        }
    }
    let count = |n: &AtomicU64| n.load(Relaxed);
    sheet.note(format_args!(
        "guest: {round} rounds, {} calls, {} of them good, {} transfers verified",
        count(&shared.calls),
        count(&shared.good),
        count(&shared.verified),
    ));
    for pid in readers.into_iter().filter(|pid| *pid != 0) {
        sheet.sys.kill(pid, crate::freebsd::SIGKILL);
        let ended = sheet.sys.wait_ms(pid, KILLED_MS).is_some();
        healthy &= ended;
    }
    sheet.check("every call ended", "", healthy);
    sheet.check("no transfer was wrong", "", count(&shared.differed) == 0);
    sheet.check(
        "no kernel address came back",
        "",
        count(&shared.leaked) == 0,
    );
    let wrong: u64 = shared.wrong.iter().map(count).sum();
    sheet.check("the disks' own drivers read what was there", "", wrong == 0);
    let mut left = 1;
    for _ in 0..200 {
        left = outstanding(sheet.sys);
        if left == 0 {
            break;
        }
        sheet.sys.sleep_ms(100);
    }
    sheet.check("nothing is outstanding, no buffer in use", "", left == 0);
    let unloaded = match sheet.sys.kldfind("qpass.ko") {
        Some(id) => crate::unload(sheet.sys, id),
        None => Err("it is not loaded"),
    };
    sheet.check(
        "it unloads afterwards:",
        unloaded.err().unwrap_or("yes"),
        unloaded.is_ok(),
    );
}

/// What the devices' counters say is outstanding, in commands and in bytes.
pub(super) fn outstanding(sys: &mut FreeBsd) -> u64 {
    let mut sum = 0;
    for unit in 0..8 {
        for what in ["outstanding", "bounce_bytes"] {
            let mut name = Line::new();
            let _ = write!(name, "kern.cam.qpass.{unit}.{what}");
            sum += sys.sysctl_number(name.as_str()).unwrap_or(0);
        }
    }
    sum
}
