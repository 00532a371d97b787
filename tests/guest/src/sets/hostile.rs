//! An attacker who may open the nodes: every fault that there was, then programs that
//! were thought of, then random ones, for as long as is wanted.
//!
//! A random round is made of a seed and its number alone, and comes again with the
//! tunables that its line has: `qpass.seed` and `qpass.round`. `qpass.seconds` is how
//! long the rounds go on; `qpass.only` and `qpass.without` name directed programs and
//! phases, with a plus between (`faults` are the entries of that set, `directed` the
//! programs). `qpass.actors`, `qpass.kinds`, `qpass.first` and `qpass.last` make
//! a round smaller, by sums of powers of two and by numbers of calls: scripts/halve
//! looks for the smallest that fails; `qpass.trace=1` prints every call.
//! `qpass.on=pass` has pass(4) attacked in the driver's place.
//!
//! Meanwhile a process for each disk reads from it by its own driver. After each round
//! every process ends, nothing is outstanding, and the module is unloaded and loaded
//! again; what malloc(9) and UMA then have left is on the console, which scripts/vm
//! reads.
#![expect(
    clippy::result_large_err,
    reason = "a failure carries its line by value: there is no heap"
)]

mod attacker;
mod build;
mod directed;
mod neighbour;
mod others;
mod round;
mod verify;

use super::{Sheet, faults, faults::trial};
use crate::freebsd::{FreeBsd, PANICKED, SIGKILL};
use conform::{Line, sys::Sys};
use core::{
    fmt::Write,
    ops::RangeInclusive,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use round::Phase;
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

/// A seed for the `n`th part of what `seed` makes.
fn mixed(seed: u64, n: u64) -> u64 {
    Dice::new(seed ^ n.wrapping_mul(0xd6e8_feb8_6659_fd93)).next()
}

/// What is to be run.
pub(super) struct Plan {
    seed: u64,
    /// This round alone, so many times.
    round: Option<u32>,
    repeat: u32,
    seconds: u64,
    /// How many times longer everything may take.
    slow: u64,
    /// Which attackers of a round, and which kinds of call, by bits.
    actors: u32,
    pub kinds: u32,
    /// Which calls of each attacker.
    pub steps: RangeInclusive<u32>,
    pub traces: bool,
    only: Option<([u8; 128], usize)>,
    without: Option<([u8; 128], usize)>,
}

impl Plan {
    fn new(sys: &mut FreeBsd) -> Self {
        let mut number = |name| sys.tunable(name);
        Plan {
            seed: number("qpass.seed").unwrap_or(1).into(),
            round: number("qpass.round"),
            repeat: number("qpass.repeat").unwrap_or(1),
            seconds: number("qpass.seconds").unwrap_or(60).into(),
            slow: number("qpass.slow").unwrap_or(1).max(1).into(),
            actors: number("qpass.actors").unwrap_or(u32::MAX),
            kinds: number("qpass.kinds").unwrap_or(u32::MAX),
            steps: number("qpass.first").unwrap_or(0)..=number("qpass.last").unwrap_or(u32::MAX),
            traces: number("qpass.trace").unwrap_or(0) != 0,
            only: sys.tunable_text("qpass.only"),
            without: sys.tunable_text("qpass.without"),
        }
    }

    /// Whether an attacker takes part.
    fn has(&self, number: u32) -> bool {
        self.actors >> number & 1 != 0
    }

    fn wants(&self, name: &str) -> bool {
        let listed = |list: &Option<([u8; 128], usize)>| faults::lists(list, name);
        listed(&self.only).unwrap_or(true) && !listed(&self.without).unwrap_or(false)
    }
}

/// What the processes of a run share.
#[repr(C)]
pub(super) struct Shared {
    /// Of each disk's own driver since it was last asked: reads, the longest in
    /// microseconds, when the one under way began, those that failed, and those with
    /// wrong data.
    pub reads: [AtomicU64; 3],
    pub longest: [AtomicU64; 3],
    pub began: [AtomicU64; 3],
    pub errors: [AtomicU64; 3],
    pub wrong: [AtomicU64; 3],
    /// By the calls: transfers that ended well, and those with wrong data.
    pub verified: AtomicU64,
    pub differed: AtomicU64,
    /// Kernel addresses in what came back.
    pub leaked: AtomicU64,
    /// Calls of random programs, and those that ended well.
    pub calls: AtomicU64,
    pub good: AtomicU64,
    /// Unloads in a phase that has them, and disks that went.
    pub unloads: AtomicU64,
    pub pulls: AtomicU64,
    /// Of each disk that can be pulled: whether that was asked for, and it was not
    /// plugged in since.
    pub pulling: [AtomicU64; 2],
}

const KILLED_MS: u64 = 15_000;

/// Runs `what` in a group of processes, and ends it: what went wrong, if anything.
fn bounded(
    sys: &mut FreeBsd,
    ms: u64,
    slow: u64,
    what: impl FnOnce(&mut FreeBsd) -> i32,
) -> Result<i32, &'static str> {
    let Ok(pid) = sys.fork() else {
        return Err("fork");
    };
    if pid == 0 {
        sys.lead_group(0);
        let status = what(sys);
        sys.exit(status);
    }
    sys.lead_group(pid);
    let ended = sys.wait_ms(pid, ms);
    if !sys.end_group(pid, KILLED_MS * slow) {
        sys.print_stacks(pid);
        return Err("UNKILLABLE");
    }
    match ended {
        Some(PANICKED) => Err("it panicked"),
        Some(status) => Ok(status),
        None => Err("killed"),
    }
}

/// Runs everything. The module is loaded, and unloaded at the end.
pub fn hostile(sheet: &mut Sheet<'_>) {
    let plan = Plan::new(sheet.sys);
    let at = sheet.sys.map_shared(4096).cast::<Plan>();
    // SAFETY: a page of this process's and its children's that is never unmapped.
    let plan: &'static Plan = unsafe {
        at.write(plan);
        &*at
    };
    let at = sheet.sys.map_shared(4096);
    // SAFETY: a zeroed page, of atomics, as above.
    let shared: &'static Shared = unsafe { &*at.cast() };
    let is_whole = plan.round.is_none();
    if is_whole && plan.wants("faults") {
        faults::entries(sheet);
        if !renew(sheet.sys) {
            sheet.check("it unloads", "after the faults", false);
            return;
        }
    }
    sheet.sys.wait_disk_of(&[sheet.sys.attacked()]);
    let filled = trial::fill_disks(sheet.sys);
    sheet.check("every block holds its number", filled.1, filled.0);
    let mut readers = [0; Disk::ALL.len()];
    for disk in Disk::ALL {
        if disk.block_device(sheet.sys).is_none() {
            continue;
        }
        let pid = sheet.sys.fork().unwrap_or(usize::MAX);
        if pid == 0 {
            neighbour::run(sheet.sys, disk, shared);
        }
        readers[disk as usize] = pid;
    }
    let goes_on = !is_whole || !plan.wants("directed") || directed_programs(sheet, plan, shared);
    if goes_on {
        rounds(sheet, plan, shared);
    }
    let mut all_end = true;
    for pid in readers.into_iter().filter(|pid| *pid != 0) {
        sheet.sys.kill(pid, SIGKILL);
        all_end &= sheet.sys.wait_ms(pid, KILLED_MS).is_some();
    }
    sheet.check("the disks' own readers end", "", all_end);
    sheet.check_unload();
}

fn directed_programs(sheet: &mut Sheet<'_>, plan: &Plan, shared: &'static Shared) -> bool {
    for (name, seconds, program) in directed::PROGRAMS {
        if !plan.wants(name) {
            continue;
        }
        sheet.note(format_args!("guest: directed {name}"));
        let slow = plan.slow;
        let ended = bounded(sheet.sys, seconds * slow * 1000, slow, |sys| {
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
        // Some make a disk slow on purpose.
        let (words, fault) = neighbour::fare(sheet.sys, shared, 20_000 * slow, false);
        let word = match ended {
            Ok(0) => fault.unwrap_or_default(),
            Ok(_) => "see above",
            Err(word) => word,
        };
        sheet.sys.sleep_ms(300);
        let mut line = Line::new();
        let _ = write!(line, "{word};{}", words.as_str());
        sheet.check(name, line.as_str(), word.is_empty());
        if ended == Err("UNKILLABLE") {
            return false;
        }
    }
    true
}

/// The random rounds, until one leaves something behind that would fail all others.
fn rounds(sheet: &mut Sheet<'_>, plan: &'static Plan, shared: &'static Shared) {
    let end = sheet.sys.now() + plan.seconds * 1_000_000_000;
    if let Some(number) = plan.round {
        for _ in 0..plan.repeat {
            if !one_round(sheet, plan, number, shared) {
                return;
            }
        }
        return;
    }
    let wants_any = round::PHASES.iter().any(|phase| plan.wants(phase.name()));
    for number in 1.. {
        if !wants_any || sheet.sys.now() >= end {
            break;
        }
        if !one_round(sheet, plan, number, shared) {
            return;
        }
    }
}

/// One round: whether another one can be.
fn one_round(
    sheet: &mut Sheet<'_>,
    plan: &'static Plan,
    number: u32,
    shared: &'static Shared,
) -> bool {
    let phase = round::phase_of(plan.seed, number);
    if !plan.wants(phase.name()) && plan.round.is_none() {
        return true;
    }
    if phase.is_plug() && !sheet.sys.can_depart() {
        return true;
    }
    let own = mixed(plan.seed, number.into());
    let ms = (2000 + Dice::new(own).below(4000) as u64) * plan.slow;
    // A panic leaves no other line.
    sheet.note(format_args!(
        "guest: round {number} {} begins",
        phase.name()
    ));
    if phase == Phase::Timeouts && sheet.sys.can_depart() {
        sheet.sys.ask_to_throttle("hd", 40, 0);
    }
    let before = [
        &shared.calls,
        &shared.good,
        &shared.verified,
        &shared.differed,
        &shared.leaked,
        &shared.unloads,
        &shared.pulls,
    ]
    .map(|counter| (counter, counter.load(Relaxed)));
    let ended = bounded(sheet.sys, ms, plan.slow, |sys| {
        round::run(sys, phase, own, shared, plan)
    });
    if phase == Phase::Timeouts && sheet.sys.can_depart() {
        trial::let_go(sheet.sys);
    }
    if phase.is_plug() {
        plug_all(sheet.sys, shared);
    }
    let [calls, good, verified, differed, leaked, unloads, pulls] =
        before.map(|(counter, before)| counter.load(Relaxed) - before);
    let (fares, fault) = neighbour::fare(
        sheet.sys,
        shared,
        phase.patience_ms() * plan.slow,
        phase.is_plug(),
    );
    let mut fault = match ended {
        Err("killed") => fault,
        Err(word) => Some(word),
        Ok(_) => Some("it ended by itself"),
    };
    if differed != 0 {
        fault = fault.or(Some("a transfer was wrong"));
    }
    if leaked != 0 {
        fault = fault.or(Some("a kernel address came back"));
    }
    let mut goes_on = ended != Err("UNKILLABLE");
    if goes_on && !is_at_rest(sheet.sys, plan.slow) {
        goes_on = false;
        fault = fault.or(Some("something is outstanding, or a buffer in use"));
    }
    if goes_on && !renew(sheet.sys) {
        goes_on = false;
        fault = fault.or(Some("it does not unload"));
    }
    let mut line = Line::new();
    let _ = write!(
        line,
        "{}: {ms} ms, {calls} calls, {good} good, {verified} verified,",
        phase.name()
    );
    if phase.is_loads() {
        let _ = write!(line, " {unloads} unloads,");
    }
    if phase.is_plug() {
        let _ = write!(line, " {pulls} pulls,");
    }
    let _ = write!(line, "{}", fares.as_str());
    if let Some(fault) = fault {
        let _ = write!(
            line,
            ": {fault}; again with -e qpass.seed={} -e qpass.round={number}",
            plan.seed
        );
    }
    let mut what = Line::new();
    let _ = write!(what, "round {number}");
    sheet.check(what.as_str(), line.as_str(), fault.is_none());
    goes_on
}

/// Plugs in what a round has left pulled, or on its way out.
fn plug_all(sys: &mut FreeBsd, shared: &Shared) {
    for (at, (name, disk)) in others::PULLED.into_iter().enumerate() {
        if shared.pulling[at].swap(0, Relaxed) == 0 {
            continue;
        }
        sys.pull_device(name, |sys| disk.block_device(sys).is_none());
        for _ in 0..5 {
            if sys.plug_device(name, |sys| disk.block_device(sys).is_some()) {
                break;
            }
        }
    }
}

/// Whether nothing is outstanding, in time.
fn is_at_rest(sys: &mut FreeBsd, slow: u64) -> bool {
    (0..200 * slow).any(|_| {
        let left = outstanding(sys);
        if left != 0 {
            sys.sleep_ms(100);
        }
        left == 0
    })
}

/// Unloads the module and loads it again, as each round begins: whether it went.
fn renew(sys: &mut FreeBsd) -> bool {
    if let Some(id) = sys.kldfind("qpass.ko")
        && crate::unload(sys, id).is_err()
    {
        return false;
    }
    let module = sys.module();
    sys.kldload(module).is_ok() && sys.wait_disk_of(&[sys.attacked()]).is_some()
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
