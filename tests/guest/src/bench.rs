//! How fast the drivers are, side by side: qpass, pass(4) and, for reference,
//! da(4) on one disk, in turns.
//!
//! Every turn prints a line `bench: DRIVER CALL COMMAND DEPTH N NS SYSCALLS
//! CPU_US BUSY_TICKS ERRORS`: how many commands took how long, with how many
//! system calls, and how much of this process's and of all CPUs' time.
//! `scripts/bench` makes a table of them.

use crate::freebsd::FreeBsd;
use conform::{
    Line, Score,
    command::Command,
    sys::{Fd, Memory, Sys},
};
use core::fmt::Write;
use sys_bindings as sys;

/// Commands under way at most.
const DEEPEST: usize = 128;
const DEPTHS: [usize; 4] = [1, 8, 32, 128];
/// How long a turn is to take, in nanoseconds.
const TURN: u64 = 40_000_000;
/// Bytes that the longest transfer may have: what virtio-scsi takes in whole
/// pages, however the buffer lies.
const LONGEST: usize = 1_032_192;

/// What is asked of the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    TestUnitReady,
    /// A read of so many bytes.
    Read(usize),
}

const WHATS: [(What, &str); 4] = [
    (What::TestUnitReady, "tur"),
    (What::Read(4096), "4k"),
    (What::Read(131_072), "128k"),
    (What::Read(LONGEST), "1m"),
];

/// How it is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    /// CAMIOCOMMAND, one after the other.
    Command,
    /// CAMIOQUEUE, kevent(2), CAMIOGET.
    Queue,
    /// QPIOC_ENTER.
    Enter,
    /// The same, with every transfer copied.
    EnterCopied,
    /// pread(2).
    Pread,
}

impl Call {
    /// What waits for each command is not asked for depth, and what moves data
    /// not for a command without.
    fn has_a_turn(self, what: What, depth: usize) -> bool {
        let moves_data = what != What::TestUnitReady;
        match self {
            Call::Command => depth == 1,
            Call::Pread => depth == 1 && moves_data,
            Call::Queue | Call::Enter => true,
            Call::EnterCopied => moves_data,
        }
    }
}

const CALLS: [(&str, &str, Call, &str); 7] = [
    ("qpass", "/dev/qpass0", Call::Command, "command"),
    ("qpass", "/dev/qpass0", Call::Queue, "queue"),
    ("qpass", "/dev/qpass0", Call::Enter, "enter"),
    ("qpass", "/dev/qpass0", Call::EnterCopied, "enter-copied"),
    ("pass", "/dev/pass0", Call::Command, "command"),
    ("pass", "/dev/pass0", Call::Queue, "queue"),
    ("da", "/dev/da0", Call::Pread, "pread"),
];

/// The commands, a kqueue, and the arrays of QPIOC_ENTER.
struct Bench<'a> {
    sys: &'a mut FreeBsd,
    fd: Fd,
    kq: Fd,
    commands: &'a mut [Option<Command>; DEEPEST],
    submissions: &'a mut Memory,
    completions: &'a mut Memory,
    syscalls: u64,
    errors: u64,
}

/// Runs so many rounds.
pub fn run(sys: &mut FreeBsd, rounds: u32) -> Result<Score, &'static str> {
    crate::load(sys)?;
    crate::wait_for(sys)?;
    let mut commands = [const { None }; DEEPEST];
    for command in &mut commands {
        let mut new = Command::new(sys, LONGEST);
        // Every page is there.
        new.data.bytes_mut().fill(1);
        *command = Some(new);
    }
    let mut submissions = Memory::new(sys, DEEPEST * size_of::<sys::qpass_submission>());
    let mut completions = Memory::new(sys, DEEPEST * size_of::<sys::qpass_completion>());
    let mut score = Score::default();
    let mut usual = [0];
    sys.sysctl("kern.cam.qpass.zerocopy_min", &mut usual, None);
    for round in 0..=rounds {
        for (what, what_name) in WHATS {
            for depth in DEPTHS {
                for (driver, node, call, call_name) in CALLS {
                    if !call.has_a_turn(what, depth) {
                        continue;
                    }
                    let Ok(fd) = sys.open(node, sys::O_RDWR as i32) else {
                        continue;
                    };
                    let kq = sys.kqueue().map_err(|_| "kqueue failed")?;
                    let copied = call == Call::EnterCopied;
                    let threshold = if copied { u64::MAX } else { usual[0] };
                    sys.sysctl("kern.cam.qpass.zerocopy_min", &mut [], Some(threshold));
                    let mut bench = Bench {
                        sys,
                        fd,
                        kq,
                        commands: &mut commands,
                        submissions: &mut submissions,
                        completions: &mut completions,
                        syscalls: 0,
                        errors: 0,
                    };
                    let [n, ns, cpu, ticks] = bench.turn(call, what, depth);
                    let (syscalls, errors) = (bench.syscalls, bench.errors);
                    sys.close(fd);
                    sys.close(kq);
                    score.passed += u32::from(errors == 0);
                    score.failed += u32::from(errors != 0);
                    // The first round warms up.
                    if round == 0 && errors == 0 {
                        continue;
                    }
                    let mut line = Line::new();
                    let _ = write!(
                        line,
                        "bench: {driver} {call_name} {what_name} {depth} {n} {ns} {syscalls} {cpu} {ticks} {errors}"
                    );
                    sys.print(line.as_str());
                }
            }
        }
    }
    Ok(score)
}

impl Bench<'_> {
    /// How many commands, in how many nanoseconds; microseconds of this
    /// process's CPU time; ticks of all CPUs.
    fn turn(&mut self, call: Call, what: What, depth: usize) -> [u64; 4] {
        for command in self.commands.iter_mut().flatten() {
            match what {
                What::TestUnitReady => command.test_unit_ready(),
                What::Read(len) => command.rw10(false, 0, (len / 512) as u16),
            }
        }
        let (cpu, ticks) = (self.sys.cpu_us(), self.sys.busy_ticks());
        let start = self.sys.now();
        let n = match call {
            Call::Command => self.one_by_one(start, |bench| {
                let command = bench.commands[0].as_ref().expect("a command");
                let good = command.send(bench.sys, bench.fd).is_ok();
                good && command.ended().status == sys::CAM_REQ_CMP
            }),
            Call::Pread => self.one_by_one(start, |bench| {
                let What::Read(len) = what else {
                    return false;
                };
                let command = bench.commands[0].as_mut().expect("a command");
                bench.sys.pread(bench.fd, &mut command.data, len, 0)
            }),
            Call::Queue => self.queued(start, depth),
            Call::Enter | Call::EnterCopied => self.entered(start, depth),
        };
        let ns = self.sys.now() - start;
        [
            n,
            ns,
            self.sys.cpu_us() - cpu,
            self.sys.busy_ticks() - ticks,
        ]
    }

    fn one_by_one(&mut self, start: u64, mut send: impl FnMut(&mut Self) -> bool) -> u64 {
        let mut n = 0;
        while n % 4 != 0 || self.sys.now() - start < TURN {
            self.syscalls += 1;
            self.errors += u64::from(!send(self));
            n += 1;
        }
        n
    }

    fn queue(&mut self, i: usize) {
        let command = self.commands[i].as_mut().expect("a command");
        command.set_private(0, i as u64);
        self.syscalls += 1;
        let queued = command.queue(self.sys, self.fd);
        self.errors += u64::from(queued.is_err());
    }

    /// As an asynchronous program does: wait with kevent(2), fetch all that are
    /// ready, queue each again.
    fn queued(&mut self, start: u64, depth: usize) -> u64 {
        // SAFETY: plain data.
        let mut event: sys::kevent = unsafe { core::mem::zeroed() };
        event.ident = self.fd as u64;
        event.filter = sys::EVFILT_READ as i16;
        event.flags = sys::EV_ADD as u16;
        let _ = self.sys.kevent(self.kq, &[event], &mut [], 0);
        // One more CCB than are under way, to fetch into: it takes over the
        // name of the one that comes.
        let mut spare = Memory::new(self.sys, size_of::<sys::ccb>());
        for i in 0..depth {
            self.queue(i);
        }
        let (mut n, mut under_way, mut more) = (0, depth, true);
        while under_way != 0 && self.errors < 100 {
            self.syscalls += 1;
            let mut events = [event];
            if self.sys.kevent(self.kq, &[], &mut events, 10_000) != Ok(1) {
                self.errors += 1;
                break;
            }
            // pass(4) does not say how many: until there is none.
            loop {
                self.syscalls += 1;
                let to = spare.bytes_mut().as_mut_ptr() as usize;
                if self.sys.ioctl(self.fd, sys::QPC_CAMIOGET, to).is_err() {
                    break;
                }
                // SAFETY: plain data.
                let (status, i) = unsafe {
                    let hdr = &spare.ccb().ccb_h;
                    (hdr.status, hdr.periph_priv.entries[0].field as usize)
                };
                let good = status & sys::CAM_STATUS_MASK == sys::CAM_REQ_CMP && i < depth;
                self.errors += u64::from(!good);
                n += 1;
                under_way -= 1;
                // The clock is dear to read: as seldom as the other loop does.
                more = more && (n % 16 != 0 || self.sys.now() - start < TURN);
                if more {
                    self.queue(i.min(depth - 1));
                    under_way += 1;
                }
            }
        }
        spare.unmap(self.sys);
        n
    }

    /// Half of the depth a call, but no more than 16: submit those that came,
    /// wait for as many again.
    fn entered(&mut self, start: u64, depth: usize) -> u64 {
        let batch = (depth / 2).clamp(1, 16);
        let mut ready = [0; DEEPEST];
        for (i, slot) in ready.iter_mut().enumerate() {
            *slot = i;
        }
        let mut to_submit = depth;
        let (mut n, mut under_way, mut more) = (0, 0, true);
        while to_submit + under_way != 0 && self.errors < 100 {
            let submissions = self.submissions.bytes_mut().as_mut_ptr();
            for (at, i) in ready[..to_submit].iter().enumerate() {
                let command = self.commands[*i].as_ref().expect("a command");
                let submission = sys::qpass_submission {
                    ccb: command.ccb.address() as u64,
                    tag: *i as u64,
                    reserved: 0,
                };
                // SAFETY: there is room for the deepest queue.
                unsafe {
                    submissions
                        .cast::<sys::qpass_submission>()
                        .add(at)
                        .write(submission);
                }
            }
            let mut call = sys::qpass_enter {
                submissions: submissions as u64,
                completions: self.completions.address() as u64,
                to_submit: to_submit as u32,
                to_complete: DEEPEST as u32,
                min_complete: batch.min(to_submit + under_way) as u32,
                flags: sys::QPASS_ENTER_SHORT,
                timeout: 10_000_000_000,
                submitted: 0,
                completed: 0,
                submit_error: 0,
                complete_error: 0,
                reserved: [0; 2],
            };
            self.syscalls += 1;
            let at = &raw mut call as usize;
            let entered = self.sys.ioctl(self.fd, sys::QPC_QPIOC_ENTER, at);
            let good = entered.is_ok() && (call.submit_error, call.complete_error) == (0, 0);
            self.errors += u64::from(!good);
            if !good {
                break;
            }
            under_way = under_way + to_submit - call.completed as usize;
            n += u64::from(call.completed);
            more = more && self.sys.now() - start < TURN;
            to_submit = 0;
            for i in 0..call.completed as usize {
                let from = self.completions.bytes().as_ptr();
                // SAFETY: the kernel has written so many; integers.
                let done = unsafe { from.cast::<sys::qpass_completion>().add(i).read() };
                let status = done.status & sys::CAM_STATUS_MASK;
                self.errors += u64::from(status != sys::CAM_REQ_CMP);
                if more {
                    ready[to_submit] = done.tag as usize % DEEPEST;
                    to_submit += 1;
                }
            }
        }
        n
    }
}
