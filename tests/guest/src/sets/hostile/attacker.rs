//! One attacker: a process or a thread that calls, again and again, each call made
//! of the attacker's seed and the call's number alone.

use super::{
    super::RDWR,
    Dice, Plan, Shared,
    build::WILD,
    mixed,
    round::Phase,
    trial::{Disk, SCRATCH},
};
use crate::freebsd::FreeBsd;
use conform::{
    Line,
    sys::{Access, Fd, Sys, call},
};
use core::{fmt::Write, sync::atomic::Ordering::Relaxed};
use sys_bindings as sys;

const PAGE: usize = 4096;
/// Data that comes and goes.
pub const ARENA: usize = 2 << 20;
/// CCBs, and what they name, which stay.
pub const CCBS: usize = 64;
pub const CCB: usize = 2048;
pub const LISTS: usize = CCBS * CCB;
pub const LIST: usize = 1024 * 16;
const ARRAYS: usize = LISTS + 8 * LIST;
const ARRAY: usize = 64 * 40;
pub const SAFE: usize = ARRAYS + 4 * ARRAY;

/// What attackers may write of a disk.
pub const TARGET: u32 = 65536;

/// One node as an attacker sees it.
#[derive(Clone, Copy)]
pub struct Open {
    pub fd: Fd,
    pub disk: Option<Disk>,
}

/// The opens of a process.
pub type Opens = [Option<Open>; 6];

/// What a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Command,
    Queue,
    Get,
    Enter,
    Cancel,
    Limit,
    AnyIoctl,
    Ask,
    Watch,
    Reopen,
    Abort,
    Reset,
    Process,
}

/// All of them: `qpass.kinds` is a sum of powers of two, of the places here.
const KINDS: [Kind; 13] = [
    Kind::Command,
    Kind::Queue,
    Kind::Get,
    Kind::Enter,
    Kind::Cancel,
    Kind::Limit,
    Kind::AnyIoctl,
    Kind::Ask,
    Kind::Watch,
    Kind::Reopen,
    Kind::Abort,
    Kind::Reset,
    Kind::Process,
];

/// How many calls of each kind there are in a phase, of all of them.
fn weights(phase: Phase) -> [usize; KINDS.len()] {
    match phase {
        Phase::Opcodes => [5, 4, 3, 3, 1, 1, 1, 1, 1, 1, 1, 0, 0],
        Phase::Storm => [1, 6, 2, 6, 4, 1, 1, 1, 2, 1, 1, 0, 1],
        Phase::Memory => [4, 4, 4, 4, 1, 1, 0, 1, 1, 0, 0, 0, 1],
        Phase::Edges => [1, 2, 1, 6, 1, 3, 3, 3, 1, 2, 0, 0, 0],
        Phase::Sharing => [1, 4, 4, 4, 2, 1, 1, 2, 2, 1, 1, 0, 2],
        Phase::Events => [0, 4, 4, 2, 1, 1, 0, 1, 12, 2, 0, 0, 1],
        Phase::Timeouts => [1, 6, 2, 4, 3, 0, 0, 1, 1, 1, 3, 1, 0],
        Phase::Loads => [2, 3, 2, 3, 1, 1, 0, 2, 2, 6, 1, 0, 1],
        Phase::Plug => [2, 5, 2, 5, 2, 1, 0, 2, 3, 4, 1, 0, 0],
    }
}

/// One attacker.
pub struct Attacker<'a> {
    pub sys: &'a mut FreeBsd,
    /// Of the call that is being made.
    pub dice: Dice,
    pub phase: Phase,
    pub opens: Opens,
    pub safe: usize,
    pub arena: usize,
    pub shared: &'static Shared,
    pub plan: &'static Plan,
    /// Its number in the round, and its seed.
    pub number: u32,
    pub seed: u64,
    /// Queues of events of its own.
    kqs: [Option<Fd>; 3],
    /// Completions may be where its CCBs are: a negative residual and a status look like
    /// an address.
    has_other_words: bool,
}

impl Attacker<'_> {
    /// One with memory of its own.
    pub fn new<'a>(
        sys: &'a mut FreeBsd,
        of: &super::round::Task,
        arena: Option<usize>,
    ) -> Attacker<'a> {
        let safe = sys.map(SAFE) as usize;
        let arena = arena.unwrap_or_else(|| sys.map(ARENA) as usize);
        Attacker {
            sys,
            dice: Dice::new(of.seed),
            phase: of.phase,
            opens: of.opens,
            safe,
            arena,
            shared: of.shared,
            plan: of.plan,
            number: of.number,
            seed: of.seed,
            kqs: [None; 3],
            has_other_words: false,
        }
    }

    /// Says what is being done, where the plan wants to hear it.
    pub fn trace(&mut self, what: core::fmt::Arguments<'_>) {
        if self.plan.traces {
            let mut line = Line::new();
            let _ = write!(line, "guest: {}: {what}", self.number);
            self.sys.print(line.as_str());
        }
    }

    /// Calls until it is killed. A call depends on its number and on what the calls
    /// before it did, and not on their dice: some can be left out.
    pub fn play(&mut self) -> ! {
        let mut step = 0;
        loop {
            let is_wanted = self.plan.steps.contains(&step);
            if step > *self.plan.steps.end() {
                self.sys.sleep_ms(1000);
                continue;
            }
            self.dice = Dice::new(mixed(self.seed, step.into()));
            let kind = self.kind();
            let is_named = self.plan.kinds >> (kind as u32) & 1 != 0;
            if is_wanted && is_named {
                self.trace(format_args!("{step} {kind:?}"));
                self.step(kind);
            } else if step.is_multiple_of(64) {
                self.sys.sleep_ms(1);
            }
            step += 1;
        }
    }

    fn kind(&mut self) -> Kind {
        let weights = weights(self.phase);
        let mut left = self.dice.below(weights.iter().sum());
        for (kind, weight) in KINDS.into_iter().zip(weights) {
            if left < weight {
                return kind;
            }
            left -= weight;
        }
        Kind::Ask
    }

    /// One of its opens; where it has none, it looks for new ones.
    fn open(&mut self) -> Option<Open> {
        let at = self.dice.below(6);
        let open = self.opens[at].or_else(|| self.opens.into_iter().flatten().next());
        if open.is_none() {
            self.sys.sleep_ms(5);
            self.opens = super::round::opens(self.sys);
        }
        open
    }

    /// One call.
    fn step(&mut self, kind: Kind) {
        let Some(open) = self.open() else { return };
        self.shared.calls.fetch_add(1, Relaxed);
        let answer = match kind {
            Kind::Command => {
                let ccb = self.ccb(open);
                let answer = self.sys.ioctl(open.fd, sys::QPC_CAMIOCOMMAND, ccb);
                if answer.is_ok() {
                    self.look_for_addresses(ccb);
                }
                answer
            }
            Kind::Queue => {
                let mut answer = Ok(());
                for _ in 0..1 + self.dice.below(8) {
                    let ccb = if self.dice.one_in(30) {
                        self.address(CCB)
                    } else {
                        self.ccb(open)
                    };
                    answer = self.sys.ioctl(open.fd, sys::QPC_CAMIOQUEUE, ccb);
                }
                answer
            }
            Kind::Get => {
                let ccb = if self.dice.one_in(10) {
                    self.address(CCB)
                } else {
                    self.safe + self.dice.below(CCBS) * CCB
                };
                let answer = self.sys.ioctl(open.fd, sys::QPC_CAMIOGET, ccb);
                if answer.is_ok() && ccb < self.safe + LISTS && ccb >= self.safe {
                    self.look_for_addresses(ccb);
                }
                answer
            }
            Kind::Enter => self.enter(open),
            Kind::Cancel => self.cancel(open),
            Kind::Limit => self.limit(open),
            Kind::AnyIoctl => self.any_ioctl(open),
            Kind::Ask => self.ask(open),
            Kind::Watch => self.watch(open),
            Kind::Reopen => {
                self.reopen();
                Ok(())
            }
            Kind::Abort => self.abort(open),
            Kind::Reset => self.reset(open),
            Kind::Process => self.process(),
        };
        if answer.is_ok() {
            self.shared.good.fetch_add(1, Relaxed);
        }
        if answer == Err(sys::ENXIO as i32) || answer == Err(sys::ENOTTY as i32) {
            self.forget_departed();
        }
    }

    /// Any request number.
    fn any_ioctl(&mut self, open: Open) -> Result<(), i32> {
        let group = self.dice.of(&[b'Q', b'Q', 0x19, 0x1a, b'f', 0]);
        let number = self.dice.below(8) as u64;
        let len = self.dice.of(&[0u64, 4, 8, 64, 1024, 8191]);
        let directions = [0x2000_0000u64, 0x4000_0000, 0x8000_0000, 0xc000_0000];
        let request = self.dice.of(&directions) | len << 16 | u64::from(group) << 8 | number;
        let at = self.address(8192);
        self.sys.ioctl(open.fd, request, at)
    }

    /// XPT_ABORT of one of its CCBs, in some way.
    fn abort(&mut self, open: Open) -> Result<(), i32> {
        let at = self.safe + self.dice.below(CCBS) * CCB;
        let target = self.safe + self.dice.below(CCBS) * CCB;
        // SAFETY: a CCB's room of this process's memory.
        let ccb = unsafe { &mut *(at as *mut sys::ccb) };
        // SAFETY: plain data.
        unsafe { (&raw mut *ccb).write_bytes(0, 1) };
        ccb.ccb_h.func_code = sys::XPT_ABORT;
        ccb.cab.abort_ccb = target as *mut sys::ccb;
        let request = if self.dice.one_in(2) {
            sys::QPC_CAMIOCOMMAND
        } else {
            sys::QPC_CAMIOQUEUE
        };
        self.sys.ioctl(open.fd, request, at)
    }

    /// XPT_RESET_DEV. Of the SCSI disk only: QEMU's AHCI and NVMe do not survive it
    /// with commands in flight.
    fn reset(&mut self, open: Open) -> Result<(), i32> {
        if open.disk != Some(Disk::Scsi) {
            return Ok(());
        }
        let at = self.safe + self.dice.below(CCBS) * CCB;
        // SAFETY: a CCB's room of this process's memory.
        let ccb = unsafe { &mut *(at as *mut sys::ccb) };
        // SAFETY: plain data.
        unsafe { (&raw mut *ccb).write_bytes(0, 1) };
        ccb.ccb_h.func_code = sys::XPT_RESET_DEV;
        ccb.ccb_h.timeout = 5000;
        self.sys.ioctl(open.fd, sys::QPC_CAMIOQUEUE, at)
    }

    /// fork(2), and in the child exec(2), exit(2) or a call or two; this one goes on.
    fn process(&mut self) -> Result<(), i32> {
        self.sys.reap_children();
        let what = self.dice.below(4);
        let ms = self.dice.below(20) as u64;
        let own = self.dice.next();
        if self.sys.fork()? != 0 {
            return Ok(());
        }
        match what {
            0 => self.sys.become_idle(),
            1 => self.sys.exit(0),
            2 => {
                self.seed = own;
                for step in 0..4 {
                    self.dice = Dice::new(mixed(own, step));
                    let kind = self.kind();
                    if kind != Kind::Process {
                        self.step(kind);
                    }
                }
                self.sys.exit(0)
            }
            _ => {
                self.sys.sleep_ms(ms);
                self.sys.exit(0)
            }
        }
    }

    /// poll(2), or kevent(2) on one of three queues that stay.
    fn watch(&mut self, open: Open) -> Result<(), i32> {
        let ms = self.dice.below(20) as i32;
        if self.dice.one_in(4) {
            let events = self.dice.next() as i16;
            return self.sys.poll(open.fd, events, ms).map(|_| ());
        }
        let at = self.dice.below(3);
        if self.dice.one_in(12)
            && let Some(kq) = self.kqs[at].take()
        {
            self.sys.close(kq);
        }
        let kq = match self.kqs[at] {
            Some(kq) => kq,
            None => *self.kqs[at].insert(self.sys.kqueue()?),
        };
        let mut changes = [const { None }; 4];
        let many = self.dice.below(4);
        for change in &mut changes[..many] {
            // SAFETY: plain data.
            let mut event: sys::kevent = unsafe { core::mem::zeroed() };
            let another = self.open().unwrap_or(open);
            event.ident = another.fd as u64;
            // EVFILT_READ and EVFILT_WRITE, and now and then one that there is not.
            event.filter = self.dice.of(&[-1, -1, -1, -2, -2, -4]);
            // EV_ADD, EV_DELETE, EV_ENABLE, EV_DISABLE, and what goes with them.
            event.flags = self.dice.of(&[1, 1, 1, 1, 2, 4, 8])
                | self.dice.of(&[0, 0, 0x10, 0x20, 0x80, 0x40]);
            // NOTE_LOWAT.
            event.fflags = self.dice.of(&[0, 0, 0, 1, u32::MAX]);
            event.data = self.dice.of(&[0, 1, 2, 100, i64::MAX, -1]);
            event.udata = 0x5a5a as *mut _;
            if self.dice.one_in(20) {
                // A queue in a queue.
                event.ident = self.kqs[(at + 1) % 3].unwrap_or(kq) as u64;
            }
            *change = Some(event);
        }
        // SAFETY: plain data.
        let none: sys::kevent = unsafe { core::mem::zeroed() };
        let mut list = [none; 4];
        for (to, change) in list.iter_mut().zip(changes.iter().flatten()) {
            *to = *change;
        }
        let mut events = [none; 4];
        self.sys
            .kevent(kq, &list[..many], &mut events, ms as u32)
            .map(|_| ())
    }

    fn reopen(&mut self) {
        let at = self.dice.below(6);
        let Some(open) = self.opens[at] else {
            self.opens = super::round::opens(self.sys);
            return;
        };
        if self.dice.one_in(3) {
            if let Ok(fd) = self.sys.dup(open.fd) {
                self.sys.close(open.fd);
                self.opens[at] = Some(Open { fd, ..open });
            }
            return;
        }
        let path = self.sys.unit(at);
        // Who is no longer root keeps what it has.
        if let Ok(fd) = self.sys.open(path, RDWR) {
            self.sys.close(open.fd);
            // It may be another device's by now.
            let disk = super::round::disk_of(self.sys, fd);
            self.opens[at] = Some(Open { fd, disk });
        }
    }

    /// Closes what answers as a device that has gone.
    fn forget_departed(&mut self) {
        for at in 0..self.opens.len() {
            let Some(open) = self.opens[at] else { continue };
            // SAFETY: integers.
            let zero: sys::qpass_info = unsafe { core::mem::zeroed() };
            let answer = call(self.sys, open.fd, sys::QPC_QPIOC_INFO, zero);
            if answer.is_err() {
                self.sys.close(open.fd);
                self.opens[at] = None;
            }
        }
    }

    fn enter(&mut self, open: Open) -> Result<(), i32> {
        let at = self.safe + ARRAYS + self.dice.below(4) * ARRAY;
        let n = self.dice.below(33);
        for i in 0..n {
            let ccb = if self.dice.one_in(100) {
                self.address(CCB)
            } else {
                self.ccb(open)
            };
            // SAFETY: inside the array's room; threads share it as plain data.
            unsafe {
                let to = (at as *mut u64).add(i * 3);
                to.write_volatile(ccb as u64);
                to.add(1).write_volatile(i as u64);
                to.add(2).write_volatile(u64::from(self.dice.one_in(300)));
            }
        }
        // SAFETY: integers.
        let mut what: sys::qpass_enter = unsafe { core::mem::zeroed() };
        what.submissions = at as u64;
        what.completions = match self.dice.below(8) {
            // The very same array, a CCB, or what goes away.
            0 => at as u64,
            1 => {
                self.has_other_words = true;
                (self.safe + self.dice.below(CCBS) * CCB) as u64
            }
            2 => self.address(4096) as u64,
            _ => (self.safe + ARRAYS + self.dice.below(4) * ARRAY) as u64,
        };
        what.to_submit = n as u32;
        what.to_complete = self.dice.below(65) as u32;
        what.min_complete = self.dice.below(what.to_complete as usize + 1) as u32;
        what.flags = self.dice.below(8) as u32;
        what.timeout = self.dice.of(&[0, 1, 1_000_000, 20_000_000]);
        if self.phase == Phase::Edges {
            what.timeout = self.dice.of(&[
                0,
                1_000_000,
                999_999_999,
                1_000_000_000,
                u64::MAX,
                u64::MAX - 1,
                i64::MAX as u64,
                i64::MAX as u64 + 1,
                1 << 62,
                1 << 32,
            ]);
            if self.dice.one_in(4) {
                what.to_submit = self.dice.of(&[0, 1, 4096, 4097, u32::MAX]);
            }
            if self.dice.one_in(4) {
                what.to_complete = self.dice.of(&[0, 1, 4096, 4097, u32::MAX]);
            }
            if self.dice.one_in(4) {
                what.min_complete = self.dice.of(&[0, 1, 4096, u32::MAX]);
            }
            if self.dice.one_in(4) {
                what.submissions = self.dice.of(WILD) as u64;
            }
            if self.dice.one_in(20) {
                what.flags = self.dice.next() as u32;
            }
        }
        call(self.sys, open.fd, sys::QPC_QPIOC_ENTER, what).map(|_| ())
    }

    fn cancel(&mut self, open: Open) -> Result<(), i32> {
        // SAFETY: integers.
        let mut what: sys::qpass_cancel = unsafe { core::mem::zeroed() };
        match self.dice.below(6) {
            0 => what.ccb = 0,
            1..=3 => what.ccb = (self.safe + self.dice.below(CCBS) * CCB) as u64,
            4 => {
                what.flags = sys::QPASS_CANCEL_DEVICE;
                what.open = self.dice.below(40) as u64;
                what.number = self.dice.below(3) as u64;
            }
            _ => {
                what.ccb = self.dice.next();
                what.flags = self.dice.below(4) as u32;
            }
        }
        call(self.sys, open.fd, sys::QPC_QPIOC_CANCEL, what).map(|_| ())
    }

    fn limit(&mut self, open: Open) -> Result<(), i32> {
        // SAFETY: integers.
        let mut what: sys::qpass_limit = unsafe { core::mem::zeroed() };
        what.requests = self.dice.of(&[0, 1, 2, 17, 1024, 1025, u32::MAX]);
        what.bytes = self
            .dice
            .of(&[0, 1, 4096, 1 << 20, 64 << 20, (64 << 20) + 1, u64::MAX]);
        what.reserved0 = u32::from(self.dice.one_in(30));
        call(self.sys, open.fd, sys::QPC_QPIOC_LIMIT, what).map(|_| ())
    }

    fn ask(&mut self, open: Open) -> Result<(), i32> {
        if self.dice.one_in(2) {
            // SAFETY: integers.
            let zero: sys::qpass_info = unsafe { core::mem::zeroed() };
            return call(self.sys, open.fd, sys::QPC_QPIOC_INFO, zero).map(|_| ());
        }
        // SAFETY: integers.
        let mut what: sys::qpass_list = unsafe { core::mem::zeroed() };
        what.entries = (self.address(256 * 72) & !7) as u64;
        what.room = self.dice.of(&[0, 1, 7, 256, 257, u32::MAX]);
        what.flags = self.dice.below(2) as u32;
        what.cursor = [self.dice.below(9) as u64, self.dice.below(99) as u64];
        if self.dice.one_in(8) {
            what.cursor = [self.dice.next(), self.dice.next()];
        }
        call(self.sys, open.fd, sys::QPC_QPIOC_LIST, what).map(|_| ())
    }

    /// Whether what came back has words that only a kernel's addresses are: no
    /// word of a program's own has its upper bits set.
    fn look_for_addresses(&mut self, ccb: usize) {
        // SAFETY: plain data.
        let code = unsafe { (*(ccb as *const sys::ccb)).ccb_h.func_code };
        // Flags and openings of its own look like one too.
        if self.has_other_words || code == sys::XPT_REL_SIMQ {
            return;
        }
        for i in 0..size_of::<sys::ccb>() / 8 {
            // SAFETY: inside the CCB.
            let word = unsafe { (ccb as *const u64).add(i).read_volatile() };
            // vmparam.h: the direct map and the kernel's own, and its text and data.
            let is_kernels = (0xffff_f800_0000_0000..0xffff_fff0_0000_0000).contains(&word)
                || (0xffff_ffff_8000_0000..0xffff_ffff_f000_0000).contains(&word);
            if !is_kernels || word & 0xffff == 0xffff || WILD.contains(&(word as usize)) {
                continue;
            }
            if self.shared.leaked.fetch_add(1, Relaxed) < 10 {
                let mut line = Line::new();
                let _ = write!(line, "guest: {word:#x} at {} of opcode {code:#x}", i * 8);
                self.sys.print(line.as_str());
            }
        }
    }

    /// Takes memory away, puts other memory there, or changes what may be done to it.
    fn remap(&mut self) {
        let pages = 1 + self.dice.below(64);
        let at = self.arena + self.dice.below(ARENA / PAGE - pages) * PAGE;
        let len = pages * PAGE;
        match self.dice.below(9) {
            0 => {
                // SAFETY: the arena's, which no code here touches.
                unsafe { self.sys.unmap(at as *mut u8, len) };
                self.sys.map_at(at, len, false);
            }
            1 => {
                self.sys.protect(at as *mut u8, len, Access::Read);
                self.sys.protect(at as *mut u8, len, Access::Write);
            }
            2 => {
                self.sys.protect(at as *mut u8, len, Access::None);
                self.sys.protect(at as *mut u8, len, Access::Write);
            }
            3 => self.sys.map_at(at, len, true),
            // MADV_FREE and MADV_DONTNEED.
            4 => self.sys.advise(at, len, 5),
            5 => self.sys.advise(at, len, 4),
            6 => {
                // Bounded by the system's limit for wired memory.
                if self.sys.wire(at as *mut u8, len.min(16 * PAGE)).is_ok() {
                    self.sys.unwire(at, len);
                }
            }
            // INHERIT_SHARE, INHERIT_NONE and INHERIT_COPY.
            7 => self.sys.inherit(at, len, self.dice.0 as usize % 3),
            _ => self.sys.map_at(at, len, false),
        }
    }

    /// Changes the arena until it is killed.
    pub fn change_memory(&mut self) -> ! {
        let mut step = 0;
        loop {
            self.dice = Dice::new(mixed(self.seed, step));
            self.remap();
            step += 1;
        }
    }
}

const _: () = assert!(size_of::<sys::ccb>() + 16 <= CCB && SCRATCH < TARGET);
