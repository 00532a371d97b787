//! A program that has commands with a target while something happens to it: it
//! cancels, aborts, closes or waits, and verifies what it is told ended well.

use super::{
    super::{faults::trial, hostile::Dice},
    world::Target,
};
use crate::freebsd::FreeBsd;
use conform::{
    command::Command,
    sys::{Memory, Sys},
};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use sys_bindings as sys;
use trial::{NUMBERED, Node, SCRATCH};

/// What a program does about the commands that it has queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Reaps them.
    Reap,
    /// QPIOC_CANCEL of all, and reaps them.
    Cancel,
    /// QPIOC_CANCEL of each, the last first, and reaps them.
    CancelEach,
    /// XPT_ABORT of some, and reaps them.
    Abort,
    /// Closes the device.
    Close,
    /// Is killed.
    Kill,
    /// Closes the device, and the module is unloaded.
    Unload,
}

impl Act {
    pub fn name(self) -> &'static str {
        [
            "reap",
            "cancel",
            "cancel-each",
            "abort",
            "close",
            "kill",
            "unload",
        ][self as usize]
    }
}

/// What the set and its programs tell each other.
#[repr(C)]
pub struct Stage {
    /// How many commands a program has queued, 1 more than that.
    pub queued: AtomicU64,
    /// Whether it shall act, and whether it has.
    pub go: AtomicU64,
    pub acted: AtomicU64,
    /// Whether the target is as it was.
    pub cured: AtomicU64,
    /// So far: commands that were reaped, those that ended well and were verified,
    /// and those that had other data.
    pub reaped: AtomicU64,
    pub verified: AtomicU64,
    pub differed: AtomicU64,
    /// Of the last program: how many ended well.
    pub good: AtomicU64,
    /// Resets that the SIM had when they were cancelled.
    pub met: AtomicU64,
    /// The longest cancel or abort, in milliseconds.
    pub longest: AtomicU64,
    /// The next place on the disk that nobody writes to.
    pub place: AtomicU64,
}

/// How a program ended: its exit status.
pub const WORDS: [&str; 10] = [
    "",
    "its target has no node",
    "it cannot queue",
    "a cancel failed",
    "a cancel took too long",
    "a completion came twice, or of nothing",
    "a command did not come back",
    "a transfer that ended well has other data",
    "it was not told to go on",
    "a block that was written has other data",
];
const NO_NODE: i32 = 1;
const NO_QUEUE: i32 = 2;
const CANCEL_FAILED: i32 = 3;
const CANCEL_LATE: i32 = 4;
const TWICE: i32 = 5;
const LOST: i32 = 6;
const DIFFERS: i32 = 7;
const NOT_TOLD: i32 = 8;
const WRITTEN_DIFFERS: i32 = 9;

/// Commands that a program has queued at most.
pub const MOST: usize = 12;
const LEN: usize = 16384;
const BLOCKS: u32 = (LEN / 512) as u32;
/// Blocks of a place.
const PLACE: u64 = 1024;
const PLACES: u64 = 64;
/// The blocks from 0 on that `inject` has fail: every other read is of them.
const FAULTY: u32 = 512;

/// What became of a command.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It was refused.
    Refused,
    /// It is outstanding.
    Out,
    /// It ended with this CAM status.
    Ended(u32),
}

/// One program's commands.
struct Work<'a> {
    node: Node,
    stage: &'a Stage,
    slow: u64,
    may_write: bool,
    has_data: bool,
    commands: [Command; MOST],
    /// What CAMIOGET fills.
    reaped: Command,
    fates: [Fate; MOST],
    writes: [bool; MOST],
    lbas: [u32; MOST],
    salt: u8,
}

/// How a program goes about it.
#[derive(Clone, Copy)]
pub struct How<'a> {
    pub stage: &'a Stage,
    pub slow: u64,
    /// Its act comes when it is told to.
    pub staged: bool,
    /// Its commands may move data, and may write to an iSCSI disk: not where the
    /// kernel does not stand that, see docs/upstream.md.
    pub data: bool,
    pub writes: bool,
}

/// Queues some commands, acts, and verifies.
pub fn run(sys: &mut FreeBsd, target: Target, act: Act, how: How<'_>, seed: u64) -> i32 {
    let How {
        stage,
        slow,
        staged,
        ..
    } = how;
    let mut dice = Dice::new(seed);
    let Some(node) = target.node(sys) else {
        return NO_NODE;
    };
    let mut work = Work {
        node,
        stage,
        slow,
        has_data: how.data,
        may_write: how.writes || target != Target::Iscsi,
        commands: core::array::from_fn(|_| Command::new(sys, LEN)),
        reaped: Command::new(sys, 1),
        fates: [Fate::Refused; MOST],
        writes: [false; MOST],
        lbas: [0; MOST],
        salt: 0x80 | dice.next() as u8,
    };
    let status = work.perform(sys, act, &mut dice, staged);
    sys.close(work.node.fd);
    for command in work.commands {
        command.free(sys);
    }
    work.reaped.free(sys);
    status
}

impl Work<'_> {
    fn perform(&mut self, sys: &mut FreeBsd, act: Act, dice: &mut Dice, staged: bool) -> i32 {
        let n = if staged { MOST } else { 1 + dice.below(MOST) };
        let queued = self.queue(sys, dice, n);
        self.stage.queued.store(queued as u64 + 1, Relaxed);
        if staged && queued == 0 {
            return NO_QUEUE;
        }
        if staged {
            let end = sys.now() + 60_000_000_000 * self.slow;
            while self.stage.go.load(Relaxed) == 0 {
                if sys.now() > end {
                    return NOT_TOLD;
                }
                sys.sleep_ms(5);
            }
        } else {
            sys.sleep_ms(dice.below(400) as u64);
        }
        let status = self.act(sys, act, dice);
        self.stage.acted.store(1, Relaxed);
        if status != 0 {
            return status;
        }
        match act {
            Act::Close | Act::Unload => return 0,
            Act::Kill => loop {
                sys.sleep_ms(1000);
            },
            _ => {}
        }
        match self.reap_all(sys, staged) {
            // The device has gone, and all that it had with it.
            Ok(false) => 0,
            Ok(true) => self.verify(sys),
            Err(status) => status,
        }
    }

    /// Queues reads of numbered blocks, and writes to a place of its own: how many
    /// were taken.
    fn queue(&mut self, sys: &mut FreeBsd, dice: &mut Dice, n: usize) -> usize {
        let place = self.stage.place.fetch_add(1, Relaxed) % PLACES;
        let mut queued = 0;
        for i in 0..n {
            let command = &mut self.commands[i];
            let write = i % 3 == 2 && self.may_write && self.has_data;
            let lba = if write {
                SCRATCH + (place * PLACE) as u32 + i as u32 * BLOCKS
            } else if i % 3 == 1 {
                dice.below((FAULTY - BLOCKS) as usize) as u32
            } else {
                FAULTY + dice.below((NUMBERED - FAULTY - BLOCKS) as usize) as u32
            };
            let len = 512 << dice.below(6);
            let to = command.data.address();
            command.data.bytes_mut().fill(0xee);
            if write {
                trial::number(&mut command.data.bytes_mut()[..len], lba, self.salt);
            }
            if self.has_data {
                self.node.transfer(command, write, lba, to, len);
            } else {
                self.node.without_data(command);
            }
            let hdr = command.hdr();
            hdr.timeout = 120_000;
            if dice.one_in(3) {
                hdr.flags |= sys::CAM_PASS_ERR_RECOVER;
            }
            if dice.one_in(3) {
                // Who leaves this out leaves the queue frozen, where it fails.
                hdr.flags &= !sys::CAM_DEV_QFRZDIS;
            }
            command.set_private(0, i as u64 | (len as u64) << 32);
            (self.writes[i], self.lbas[i]) = (write, lba);
            if command.queue(sys, self.node.fd).is_ok() {
                self.fates[i] = Fate::Out;
                queued += 1;
            }
        }
        queued
    }

    fn act(&mut self, sys: &mut FreeBsd, act: Act, dice: &mut Dice) -> i32 {
        let start = sys.now();
        let fd = self.node.fd;
        let (mut calls, mut failed) = (1, None);
        match act {
            Act::Cancel => failed = trial::cancel(sys, fd, 0).err(),
            Act::CancelEach => {
                for command in self.commands.iter().rev() {
                    if dice.one_in(2) {
                        calls += 1;
                        failed = trial::cancel(sys, fd, command.ccb.address()).err();
                    }
                }
            }
            Act::Abort => {
                let mut abort = Command::new(sys, 1);
                for i in 0..3 {
                    abort.immediate(sys::XPT_ABORT);
                    let ccb = self.commands[MOST - 1 - i].ccb.address();
                    abort.ccb.ccb_mut().cab.abort_ccb = ccb as *mut sys::ccb;
                    calls += 1;
                    failed = abort.send(sys, fd).err();
                }
                abort.free(sys);
            }
            _ => return 0,
        }
        let ms = (sys.now() - start) / trial::MS;
        self.stage.longest.fetch_max(ms / calls, Relaxed);
        // It may have gone meanwhile, or have been reaped.
        let gone = [trial::ENXIO, trial::ENOTTY, sys::ENOENT as i32];
        if failed.is_some_and(|errno| !gone.contains(&errno)) {
            return CANCEL_FAILED;
        }
        if ms > 8000 * calls * self.slow {
            return CANCEL_LATE;
        }
        0
    }

    /// Reaps what is outstanding, and verifies each: false where the device has
    /// gone. Once the target is cured everything is to come within some seconds.
    fn reap_all(&mut self, sys: &mut FreeBsd, staged: bool) -> Result<bool, i32> {
        let fd = self.node.fd;
        let mut end = None;
        self.stage.good.store(0, Relaxed);
        while self.fates.contains(&Fate::Out) {
            if self.stage.cured.load(Relaxed) != 0 || !staged {
                let now = sys.now();
                let patience = if staged { 20 } else { 60 };
                let end = *end.get_or_insert(now + patience * 1_000_000_000 * self.slow);
                if now > end {
                    return Err(LOST);
                }
            }
            let _ = sys.poll(fd, sys::POLLIN as i16, 200);
            match self.reaped.get(sys, fd) {
                Ok(()) => {}
                Err(trial::ENXIO | trial::ENOTTY) => return Ok(false),
                Err(_) => {
                    // POLLHUP does not wait.
                    sys.sleep_ms(10);
                    continue;
                }
            }
            let i = self.reaped.private(0) as u32 as usize;
            if self.fates.get(i) != Some(&Fate::Out) {
                return Err(TWICE);
            }
            let status = self.reaped.ended().status;
            self.fates[i] = Fate::Ended(status);
            self.stage.reaped.fetch_add(1, Relaxed);
            if status == sys::CAM_REQ_CMP {
                self.stage.good.fetch_add(1, Relaxed);
                if self.has_data && !self.writes[i] {
                    let len = (self.reaped.private(0) >> 32) as usize;
                    self.stage.verified.fetch_add(1, Relaxed);
                    let bytes = self.commands[i].data.bytes();
                    let is_other = trial::differs(&bytes[..len], self.lbas[i], 0).is_some()
                        || bytes[len..LEN].iter().any(|b| *b != 0xee);
                    if is_other {
                        self.stage.differed.fetch_add(1, Relaxed);
                        return Err(DIFFERS);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Reads what was written, where that ended well.
    fn verify(&mut self, sys: &mut FreeBsd) -> i32 {
        let mut memory = Memory::new(sys, LEN);
        for i in 0..MOST {
            if !self.writes[i] || self.fates[i] != Fate::Ended(sys::CAM_REQ_CMP) {
                continue;
            }
            let len = (self.commands[i].private(0) >> 32) as usize;
            let to = memory.address();
            self.node
                .transfer(&mut self.reaped, false, self.lbas[i], to, len);
            // Queued, for a call that waits may wait as long as the target does.
            self.reaped.hdr().timeout = 120_000;
            let taken = self.reaped.queue(sys, self.node.fd).is_ok();
            let end = sys.now() + 10_000_000_000 * self.slow;
            let mut back = false;
            while taken && !back && sys.now() < end {
                let _ = sys.poll(self.node.fd, sys::POLLIN as i16, 200);
                back = self.reaped.get(sys, self.node.fd).is_ok();
            }
            if !back {
                // It has gone again, or is slow.
                return 0;
            }
            if self.reaped.ended().status != sys::CAM_REQ_CMP {
                continue;
            }
            self.stage.verified.fetch_add(1, Relaxed);
            let bytes = &memory.bytes_mut()[..len];
            if trial::differs(bytes, self.lbas[i], self.salt).is_some() {
                self.stage.differed.fetch_add(1, Relaxed);
                return WRITTEN_DIFFERS;
            }
        }
        0
    }
}

/// Resets of the device, each cancelled at once, behind reads that keep its target at
/// work: a task that its SIM has, and that it may not know how to abort.
pub fn reset(sys: &mut FreeBsd, target: Target, how: How<'_>) -> i32 {
    const READS: usize = 8;
    let Some(node) = target.node(sys) else {
        return NO_NODE;
    };
    let mut reads: [Command; READS] = core::array::from_fn(|_| Command::new(sys, LEN));
    let mut reset = Command::new(sys, 1);
    let reaped = Command::new(sys, 1);
    let end = sys.now() + 4_000_000_000 * how.slow;
    while sys.now() < end {
        let mut out = 0;
        for (i, command) in reads.iter_mut().enumerate() {
            let to = command.data.address();
            node.transfer(command, false, i as u32 * BLOCKS, to, LEN);
            out += usize::from(command.queue(sys, node.fd).is_ok());
        }
        reset.immediate(sys::XPT_RESET_DEV);
        reset.hdr().timeout = 10_000;
        out += usize::from(reset.queue(sys, node.fd).is_ok());
        match trial::cancel(sys, node.fd, reset.ccb.address()) {
            Ok([_, _, unable, _]) => {
                how.stage.met.fetch_add(unable.into(), Relaxed);
            }
            Err(errno) if errno == sys::ENOENT as i32 => {}
            Err(_) => return CANCEL_FAILED,
        }
        let late = sys.now() + 10_000_000_000 * how.slow;
        while out != 0 {
            let _ = sys.poll(node.fd, sys::POLLIN as i16, 200);
            if reaped.get(sys, node.fd).is_ok() {
                out -= 1;
                how.stage.reaped.fetch_add(1, Relaxed);
            } else if sys.now() > late {
                return LOST;
            }
        }
        how.stage.good.fetch_add(1, Relaxed);
    }
    0
}

/// Random programs, until it is killed.
pub fn run_on(sys: &mut FreeBsd, targets: &[Target], how: How<'_>, seed: u64) -> ! {
    const ACTS: &[Act] = &[
        Act::Reap,
        Act::Reap,
        Act::Cancel,
        Act::CancelEach,
        Act::Abort,
        Act::Close,
    ];
    let mut dice = Dice::new(seed);
    loop {
        let (target, act) = (dice.of(targets), dice.of(ACTS));
        let own = dice.next();
        match run(sys, target, act, how, own) {
            0 => {}
            NO_NODE | NO_QUEUE => sys.sleep_ms(100),
            status => sys.exit(status),
        }
    }
}

const _: () = assert!(SCRATCH as u64 + PLACES * PLACE < 131_072);
const _: () = assert!(MOST as u64 * (BLOCKS as u64) <= PLACE);
