//! Targets that are late, fail or vanish, while commands are with them: iSCSI over
//! the loopback, CTL's own port, and disks that the monitor makes slow.
//!
//! First each mood of a target with each thing that a program does about its
//! commands, then rounds of random programs and moods, made of a seed alone, until
//! `qpass.seconds` are over. `qpass.only` and `qpass.without` have names of cases
//! (`iscsi-mute-cancel`), parts of them (`iscsi`, `cancel`) and `round`, with a plus
//! between. After each case and round every target is cured; then nothing may be
//! outstanding, every disk answers its own driver, and the module unloads.
#![expect(
    clippy::result_large_err,
    reason = "what went wrong is a line by value: there is no heap"
)]

mod program;
mod world;

use super::{
    Sheet,
    faults::trial::{self, Disk, Trial},
    hostile::{self, Dice},
};
use crate::freebsd::{FreeBsd, PANICKED, SIGKILL};
use conform::{
    Line,
    sys::{Memory, Sys},
};
use core::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use program::{Act, How, MOST, Stage};
use sys_bindings as sys;
use world::{Mood, Target, World};

/// What the processes of a run share.
#[repr(C)]
struct Shared {
    stage: Stage,
    /// Of each disk's own driver: when the read under way began, the longest in
    /// microseconds since it was last asked, and those with wrong data or an error.
    began: [AtomicU64; 3],
    longest: [AtomicU64; 3],
    wrong: AtomicU64,
}

/// How long SIGKILL may take to end a process, and a disk's own driver to answer.
const KILLED_MS: u64 = 15_000;
const NEIGHBOUR_MS: u64 = 8000;
/// How long a program may take in all, its target's cure included.
const PROGRAM_MS: u64 = 30_000;
/// How long kldunload may take to say something, and to succeed.
const UNLOAD_CALL_MS: u64 = 15_000;
const UNLOAD_MS: u64 = 40_000;

/// What went wrong.
type Found = Result<(), Line>;

fn found<T>(what: core::fmt::Arguments<'_>) -> Result<T, Line> {
    let mut line = Line::new();
    let _ = line.write_fmt(what);
    Err(line)
}

macro_rules! found {
    ($($arg:tt)*) => { return found(format_args!($($arg)*)) };
}

/// The acts that are tried in a mood.
fn acts_in(mood: Mood) -> &'static [Act] {
    if mood.delays() {
        &[
            Act::Cancel,
            Act::CancelEach,
            Act::Abort,
            Act::Close,
            Act::Kill,
            Act::Unload,
        ]
    } else if mood.fails() {
        &[Act::Reap, Act::Cancel, Act::Close]
    } else {
        &[Act::Reap, Act::Cancel, Act::Close, Act::Kill, Act::Unload]
    }
}

/// A directed case: a mood and an act, or resets.
struct Case {
    target: Target,
    what: Option<(Mood, Act)>,
}

/// Which cases and rounds are wanted.
struct Wanted {
    only: Option<([u8; 128], usize)>,
    without: Option<([u8; 128], usize)>,
}

impl Wanted {
    fn is(&self, name: &str) -> bool {
        let names = |list: &Option<([u8; 128], usize)>| {
            let (text, len) = list.as_ref()?;
            let text = core::str::from_utf8(&text[..*len]).ok()?;
            let is_named = |one: &str| one == name || name.split('-').any(|part| part == one);
            Some(text.split('+').any(is_named))
        };
        names(&self.only).unwrap_or(true) && !names(&self.without).unwrap_or(false)
    }
}

/// The set at work.
struct Run<'a> {
    sys: &'a mut FreeBsd,
    world: World,
    shared: &'static Shared,
    slow: u64,
}

impl Run<'_> {
    fn ms_since(&mut self, start: u64) -> u64 {
        (self.sys.now() - start) / trial::MS
    }

    /// Starts something in a group of processes.
    fn start(&mut self, what: impl FnOnce(&mut FreeBsd) -> i32) -> Option<usize> {
        let pid = self.sys.fork().ok()?;
        if pid == 0 {
            self.sys.lead_group(0);
            let status = what(self.sys);
            self.sys.exit(status);
        }
        self.sys.lead_group(pid);
        Some(pid)
    }

    /// Loads the module where it is not, and waits for the SIMs' devices.
    fn load(&mut self) -> Found {
        if self.sys.kldfind("qpass.ko").is_none() {
            let module = self.sys.module();
            if let Err(errno) = self.sys.kldload(module) {
                found!("kldload: errno {errno}");
            }
            self.sys.wait_disk();
        }
        Ok(())
    }

    /// One kldunload(2), which is to end soon whatever the SIMs have: whether it
    /// did not say EBUSY.
    fn try_unload(&mut self) -> Result<bool, Line> {
        let Some(id) = self.sys.kldfind("qpass.ko") else {
            return Ok(true);
        };
        let call = self.sys.now();
        let said = self.sys.kldunload(id);
        let ms = self.ms_since(call);
        if ms > UNLOAD_CALL_MS * self.slow {
            found!("kldunload took {ms} ms: {said:?}");
        }
        match said {
            Ok(()) => Ok(true),
            Err(errno) if errno == sys::EBUSY as i32 => Ok(false),
            Err(errno) => found!("kldunload: errno {errno}"),
        }
    }

    /// Unloads while commands are out, or is told EBUSY, and loads again.
    fn unload_once(&mut self) -> Found {
        self.try_unload()?;
        self.load()
    }

    /// Unloads: after some calls it is to succeed.
    fn unload(&mut self) -> Found {
        let start = self.sys.now();
        while !self.try_unload()? {
            if self.ms_since(start) > UNLOAD_MS * self.slow {
                found!("kldunload stays EBUSY");
            }
            self.sys.sleep_ms(100);
        }
        Ok(())
    }

    /// Whether no disk's own driver has waited long.
    fn neighbours(&mut self) -> Found {
        let now = self.sys.now();
        for disk in Disk::ALL {
            let at = disk as usize;
            let began = self.shared.began[at].load(Relaxed);
            let waits = if began == 0 {
                0
            } else {
                now.saturating_sub(began) / trial::MS
            };
            let ms = waits.max(self.shared.longest[at].swap(0, Relaxed) / 1000);
            if ms > NEIGHBOUR_MS * self.slow {
                found!("{}'s own driver waited {ms} ms", disk.name());
            }
        }
        Ok(())
    }

    /// After a case or a round: cures the targets, and looks whether all is as it
    /// was.
    fn settle(&mut self) -> Found {
        self.world.cure(self.sys)?;
        self.shared.stage.cured.store(1, Relaxed);
        Ok(())
    }

    /// Nothing is outstanding, the neighbours answer, and the module unloads.
    fn look_around(&mut self) -> Found {
        let start = self.sys.now();
        loop {
            let left = hostile::outstanding(self.sys);
            if left == 0 {
                break;
            }
            if self.ms_since(start) > 15_000 * self.slow {
                found!("{left} outstanding or in buffers");
            }
            self.sys.sleep_ms(50);
        }
        self.neighbours()?;
        self.unload()?;
        self.load()
    }

    /// One mood, and one thing that a program does in it.
    fn case(&mut self, target: Target, mood: Mood, act: Act, seed: u64) -> Found {
        let stage = &self.shared.stage;
        for word in [&stage.queued, &stage.go, &stage.acted, &stage.cured] {
            word.store(0, Relaxed);
        }
        stage.good.store(0, Relaxed);
        // A target that is mute from the start has the commands for as long as it is.
        let early = mood.delays() || mood.fails() || mood == Mood::Mute;
        if early {
            if !self.world.set(self.sys, target, mood) {
                found!("the target is not made so");
            }
        } else if self.sys.can_depart() {
            // So that it has commands when it vanishes.
            let rate = self.world.rate;
            self.world.throttle(self.sys, target, rate);
        }
        let slow = self.slow;
        let how = How {
            stage,
            slow,
            staged: true,
            data: mood != Mood::Mute,
            writes: mood != Mood::LoggedOut,
        };
        let Some(pid) = self.start(|sys| program::run(sys, target, act, how, seed)) else {
            found!("fork");
        };
        let began = self.sys.now();
        while stage.queued.load(Relaxed) == 0 {
            if let Some(status) = self.sys.wait_ms(pid, 0) {
                found!("the program: {}", word_of(status));
            }
            if self.ms_since(began) > 20_000 * slow {
                self.sys.end_group(pid, KILLED_MS * slow);
                found!("it does not queue");
            }
            self.sys.sleep_ms(5);
        }
        self.sys.sleep_ms(150);
        if !early {
            let done = self.world.set(self.sys, target, mood);
            if !done {
                self.sys.end_group(pid, KILLED_MS * slow);
                found!("the target is not made so");
            }
            self.sys.sleep_ms(300);
        }
        if (mood, act) == (Mood::Mute, Act::Reap) {
            // Until the initiator notices: `kern.iscsi.ping_timeout`.
            self.sys.sleep_ms(8000);
        }
        stage.go.store(1, Relaxed);
        let began = self.sys.now();
        let mut ended = None;
        while stage.acted.load(Relaxed) == 0 && ended.is_none() {
            if self.ms_since(began) > 20_000 * slow {
                let ends = self.sys.end_group(pid, KILLED_MS * slow);
                found!("it does not act, killed {ends}");
            }
            ended = self.sys.wait_ms(pid, 10);
        }
        match act {
            Act::Kill => {
                if !self.sys.end_group(pid, KILLED_MS * slow) {
                    found!("UNKILLABLE");
                }
                ended = Some(0);
            }
            Act::Close | Act::Unload => {
                // The descriptor is closed as the program ends, with all in flight.
                ended = ended.or_else(|| self.sys.wait_ms(pid, KILLED_MS * slow));
                if ended.is_none() {
                    let ends = self.sys.end_group(pid, KILLED_MS * slow);
                    found!("the close waits, killed {ends}");
                }
            }
            _ => {}
        }
        if act == Act::Unload {
            self.unload_once()?;
        }
        let settled = self.settle();
        if ended.is_none() {
            ended = self.sys.wait_ms(pid, PROGRAM_MS * slow);
            if !self.sys.end_group(pid, KILLED_MS * slow) {
                found!("UNKILLABLE");
            }
        }
        settled?;
        match ended {
            Some(0) => {}
            Some(status) => found!("the program: {}", word_of(status)),
            None => found!("the program does not end"),
        }
        let good = stage.good.load(Relaxed);
        if mood.fails() && act == Act::Reap && !(1..MOST as u64).contains(&good) {
            found!("{good} of {MOST} ended well where some fail");
        }
        self.look_around()
    }

    /// Resets that are cancelled: by their own, no mood is needed.
    fn resets(&mut self, target: Target) -> Found {
        let stage = &self.shared.stage;
        for word in [&stage.queued, &stage.good, &stage.met] {
            word.store(0, Relaxed);
        }
        let how = How {
            stage,
            slow: self.slow,
            staged: false,
            data: false,
            writes: false,
        };
        let Some(pid) = self.start(|sys| program::reset(sys, target, how)) else {
            found!("fork");
        };
        let ended = self.sys.wait_ms(pid, PROGRAM_MS * self.slow);
        if !self.sys.end_group(pid, KILLED_MS * self.slow) {
            found!("UNKILLABLE");
        }
        match ended {
            Some(0) => {}
            Some(status) => found!("the program: {}", word_of(status)),
            None => found!("the program does not end"),
        }
        self.settle()?;
        self.look_around()
    }

    /// Random programs, and random moods.
    fn round(&mut self, seed: u64, ms: u64, words: &mut Line) -> Found {
        const PROGRAMS: usize = 3;
        let mut dice = Dice::new(seed);
        let mut targets = [Target::Scsi; 5];
        let mut n = 0;
        for target in Target::ALL {
            if self.world.missing[target as usize].is_none() {
                targets[n] = target;
                n += 1;
            }
        }
        let targets = &targets[..n];
        if targets.is_empty() {
            found!("there is no target");
        }
        let stage = &self.shared.stage;
        stage.cured.store(0, Relaxed);
        let slow = self.slow;
        let how = How {
            stage,
            slow,
            staged: false,
            data: true,
            writes: dice.one_in(2),
        };
        let mut pids = [None; PROGRAMS];
        let begin = |run: &mut Self, dice: &mut Dice| {
            let own = dice.next();
            run.start(|sys| program::run_on(sys, targets, how, own))
        };
        for pid in &mut pids {
            *pid = begin(self, &mut dice);
        }
        let end = self.sys.now() + ms * trial::MS;
        let mut bad = Ok(());
        while self.sys.now() < end && bad.is_ok() {
            // Of all that can be done to all of them, one.
            let world = &self.world;
            let sys = &*self.sys;
            let all = targets.iter().flat_map(|target| {
                let can = move |mood: &Mood| {
                    (*mood != Mood::LoggedOut || !how.writes)
                        && mood.is_for(*target)
                        && world.lacks(sys, *mood).is_none()
                };
                Mood::ALL
                    .into_iter()
                    .filter(can)
                    .map(|mood| (*target, mood))
            });
            let n = all.clone().count();
            let chosen = all.clone().nth(dice.below(n.max(1)));
            let pause = 50 + dice.below(900) as u64;
            let kill = dice.below(PROGRAMS * 2);
            let (cure, unload) = (dice.one_in(4), dice.one_in(6));
            if let Some((target, mood)) = chosen {
                let _ = write!(words, " {}-{}", target.name(), mood.name());
                self.world.set(self.sys, target, mood);
            }
            self.sys.sleep_ms(pause);
            // With data on its way it is not for long: see docs/upstream.md.
            self.world.unmute(self.sys);
            for (i, pid) in pids.iter_mut().enumerate() {
                let Some(own) = *pid else { continue };
                let status = self.sys.wait_ms(own, 0);
                if let Some(status) = status {
                    bad = bad.and(found(format_args!("a program: {}", word_of(status))));
                    *pid = None;
                } else if i == kill {
                    let _ = write!(words, " kill");
                    if !self.sys.end_group(own, KILLED_MS * slow) {
                        bad = bad.and(found(format_args!("UNKILLABLE")));
                        break;
                    }
                    *pid = begin(self, &mut dice);
                }
            }
            if cure && bad.is_ok() {
                let _ = write!(words, " cure");
                bad = self.settle();
            }
            if unload && bad.is_ok() {
                let _ = write!(words, " unload");
                for pid in &mut pids {
                    if let Some(pid) = pid.take()
                        && !self.sys.end_group(pid, KILLED_MS * slow)
                    {
                        bad = bad.and(found(format_args!("UNKILLABLE")));
                    }
                }
                bad = bad.and_then(|()| self.unload_once());
                for pid in &mut pids {
                    *pid = begin(self, &mut dice);
                }
            }
        }
        let settled = self.settle();
        // What they have outstanding comes now, or they say that it does not.
        self.sys.sleep_ms(500);
        for pid in pids.into_iter().flatten() {
            let status = self.sys.wait_ms(pid, 0);
            if let Some(status) = status {
                bad = bad.and(found(format_args!("a program: {}", word_of(status))));
            } else if !self.sys.end_group(pid, KILLED_MS * slow) {
                bad = bad.and(found(format_args!("UNKILLABLE")));
            }
        }
        bad?;
        settled?;
        self.look_around()
    }
}

fn word_of(status: i32) -> &'static str {
    match status {
        PANICKED => "it panicked",
        -1 => "a signal ended it",
        status => {
            let at = usize::try_from(status).unwrap_or(usize::MAX);
            program::WORDS.get(at).unwrap_or(&"?")
        }
    }
}

/// Reads from a disk by its own driver, for ever.
fn neighbour(sys: &mut FreeBsd, disk: Disk, shared: &Shared) -> ! {
    let at = disk as usize;
    let mut memory = Memory::new(sys, 4096);
    let opened = disk
        .block_device(sys)
        .and_then(|node| sys.open(node, sys::O_RDONLY as i32).ok());
    let Some(fd) = opened else { sys.exit(1) };
    let mut dice = Dice::new(at as u64);
    loop {
        let lba = dice.below(trial::NUMBERED as usize / 8) * 8;
        let start = sys.now();
        shared.began[at].store(start, Relaxed);
        let good = sys.pread(fd, &mut memory, 4096, lba * 512);
        let us = (sys.now() - start) / 1000;
        shared.began[at].store(0, Relaxed);
        shared.longest[at].fetch_max(us, Relaxed);
        if !good || trial::differs(memory.bytes(), lba as u32, 0).is_some() {
            shared.wrong.fetch_add(1, Relaxed);
        }
        sys.sleep_ms(100);
    }
}

/// Runs everything, and then unloads. The module is loaded.
pub fn targets(sheet: &mut Sheet<'_>) {
    let wanted = Wanted {
        only: sheet.sys.tunable_text("qpass.only"),
        without: sheet.sys.tunable_text("qpass.without"),
    };
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
    let world = World::new(sheet.sys, slow);
    for target in Target::ALL {
        if let Some(why) = world.missing[target as usize] {
            sheet.note(format_args!("guest: no {}: {why}", target.name()));
        }
    }
    let mut readers = [None; 3];
    for disk in Disk::ALL {
        if disk.block_device(sheet.sys).is_some() {
            readers[disk as usize] =
                Trial::new(sheet.sys, slow).start(|sys| neighbour(sys, disk, shared));
        }
    }
    let mut healthy = true;
    let mut world = Some(world);
    let mut directed = |sheet: &mut Sheet<'_>, case: Case| {
        let mut name = Line::new();
        let _ = write!(name, "{}", case.target.name());
        let _ = match case.what {
            Some((mood, act)) => write!(name, "-{}-{}", mood.name(), act.name()),
            None => write!(name, "-reset"),
        };
        if !wanted.is(name.as_str()) || !healthy {
            return;
        }
        let Some(own) = world.take() else { return };
        let lacks = case.what.and_then(|(mood, _)| own.lacks(sheet.sys, mood));
        if let Some(why) = own.missing[case.target as usize].or(lacks) {
            sheet.skip(name.as_str(), why);
            world = Some(own);
            return;
        }
        let mut run = Run {
            sys: sheet.sys,
            world: own,
            shared,
            slow,
        };
        let start = run.sys.now();
        let answer = match case.what {
            Some((mood, act)) => run.case(case.target, mood, act, seed),
            None => run.resets(case.target),
        };
        let ms = run.ms_since(start);
        let mut words = Line::new();
        let count = |n: &AtomicU64| n.load(Relaxed);
        let _ = match &answer {
            Ok(()) => {
                let queued = count(&shared.stage.queued).saturating_sub(1);
                let good = count(&shared.stage.good);
                match case.what {
                    Some(_) => write!(words, "{good} of {queued} good, {ms} ms"),
                    None => {
                        let met = count(&shared.stage.met);
                        write!(words, "{good} resets, {met} met, {ms} ms")
                    }
                }
            }
            Err(what) => write!(words, "{} ({ms} ms)", what.as_str()),
        };
        world = Some(run.world);
        healthy = answer.is_ok();
        sheet.check(name.as_str(), words.as_str(), healthy);
    };
    for target in Target::ALL {
        for mood in Mood::ALL.into_iter().filter(|mood| mood.is_for(target)) {
            for act in acts_in(mood) {
                let what = Some((mood, *act));
                directed(sheet, Case { target, what });
            }
        }
        // QEMU's AHCI and NVMe do not stand resets.
        if !matches!(target, Target::Ata | Target::Nvme) {
            directed(sheet, Case { target, what: None });
        }
    }
    let end = sheet.sys.now() + seconds * 1_000_000_000;
    let mut dice = Dice::new(seed);
    let mut round = 0;
    if let Some(world) = &mut world {
        // As many programs as there are have not much more than a disk does in a
        // few seconds.
        world.rate = 20;
    }
    while healthy && wanted.is("round") && sheet.sys.now() < end {
        let Some(own) = world.take() else { break };
        round += 1;
        let (one, ms) = (dice.next(), (2000 + dice.below(5000) as u64) * slow);
        let mut run = Run {
            sys: sheet.sys,
            world: own,
            shared,
            slow,
        };
        let mut words = Line::new();
        let answer = run.round(one, ms, &mut words);
        world = Some(run.world);
        sheet.note(format_args!(
            "guest: round {round} of seed {seed}, {ms} ms:{}",
            words.as_str()
        ));
        if let Err(what) = answer {
            sheet.check("round", what.as_str(), false);
            healthy = false;
        }
    }
    let count = |n: &AtomicU64| n.load(Relaxed);
    sheet.note(format_args!(
        "guest: {round} rounds, {} reaped, {} verified, longest cancel {} ms",
        count(&shared.stage.reaped),
        count(&shared.stage.verified),
        count(&shared.stage.longest),
    ));
    for pid in readers.into_iter().flatten() {
        sheet.sys.kill(pid, SIGKILL);
        healthy &= sheet.sys.wait_ms(pid, KILLED_MS).is_some();
    }
    sheet.check("every process ended", "", healthy);
    sheet.check(
        "no transfer was wrong",
        "",
        count(&shared.stage.differed) == 0,
    );
    let wrong = count(&shared.wrong);
    sheet.check("the disks' own drivers read what was there", "", wrong == 0);
    if let Some(mut world) = world {
        world.end(sheet.sys);
        let mut run = Run {
            sys: sheet.sys,
            world,
            shared,
            slow,
        };
        let unloaded = run.unload();
        let word = unloaded.as_ref().err().map_or("yes", |line| line.as_str());
        sheet.check("it unloads afterwards:", word, unloaded.is_ok());
    }
}
