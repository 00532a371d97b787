//! One round: the processes of a phase, which live until they are killed.
//!
//! Everything is made of the round's seed: which attackers there are, what each
//! does, and in which order. When they do it beside each other is the machine's.

use super::{
    super::RDWR,
    Dice, Plan, Shared,
    attacker::{ARENA, Attacker, Open, Opens},
    mixed, others,
    trial::Disk,
    verify,
};
use crate::freebsd::{FreeBsd, SIGKILL};
use conform::sys::{Fd, Sys};

/// What a round is mostly about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Every opcode, flag and format.
    Opcodes,
    /// Much in flight, cancelled, aborted, closed, killed.
    Storm,
    /// Memory that goes away meanwhile.
    Memory,
    /// Limits, times and arrays at their ends, and sysctls that change.
    Edges,
    /// Opens that processes share.
    Sharing,
    /// kevent(2) and poll(2).
    Events,
    /// A slow disk, times that expire, resets, aborts and cancels.
    Timeouts,
    /// The module is loaded and unloaded, beside walks, scans and readers.
    Loads,
    /// Disks are pulled and plugged in.
    Plug,
}

/// All of them, in the order of their numbers.
pub const PHASES: [Phase; 9] = [
    Phase::Opcodes,
    Phase::Storm,
    Phase::Memory,
    Phase::Edges,
    Phase::Sharing,
    Phase::Events,
    Phase::Timeouts,
    Phase::Loads,
    Phase::Plug,
];

impl Phase {
    /// As the tunables call it.
    pub fn name(self) -> &'static str {
        const NAMES: [&str; PHASES.len()] = [
            "opcodes", "storm", "memory", "edges", "sharing", "events", "timeouts", "loads", "plug",
        ];
        NAMES[self as usize]
    }

    /// Milliseconds that a disk's own driver may wait for a block meanwhile. A slow
    /// disk serves who came first, and settles after each reset.
    pub fn patience_ms(self) -> u64 {
        match self {
            Phase::Timeouts => 20_000,
            Phase::Plug => 15_000,
            _ => 5000,
        }
    }

    /// Whether the disks come and go.
    pub fn is_plug(self) -> bool {
        self == Phase::Plug
    }

    /// Whether the module does.
    pub fn is_loads(self) -> bool {
        self == Phase::Loads
    }
}

/// The phase of a round: each once in as many rounds as there are phases.
pub fn phase_of(seed: u64, round: u32) -> Phase {
    let n = PHASES.len();
    let (block, at) = ((round - 1) as usize / n, (round - 1) as usize % n);
    let mut order = PHASES;
    let mut dice = Dice::new(mixed(seed, block as u64));
    for i in (1..n).rev() {
        order.swap(i, dice.below(i + 1));
    }
    order[at]
}

/// What an attacker is made of.
#[derive(Clone, Copy)]
pub struct Task {
    pub seed: u64,
    pub phase: Phase,
    pub opens: Opens,
    pub shared: &'static Shared,
    pub plan: &'static Plan,
    /// Its number in the round: a bit of `qpass.actors`.
    pub number: u32,
}

/// The numbers of attackers: three processes, their first and second threads, and
/// what they fork.
const PROCESSES: u32 = 3;
const THREADS: u32 = 4;
const FORKS: u32 = 12;
/// Of who verifies, one for each disk, and of the others.
const VERIFIERS: u32 = 16;
const OTHERS: u32 = 20;

/// Runs the processes of a phase until this one is killed.
pub fn run(
    sys: &mut FreeBsd,
    phase: Phase,
    own: u64,
    shared: &'static Shared,
    plan: &'static Plan,
) -> ! {
    let task = |number: u32, seed: u64| Task {
        seed,
        phase,
        opens: [None; 6],
        shared,
        plan,
        number,
    };
    for disk in Disk::ALL {
        let number = VERIFIERS + disk as u32;
        // Who keeps an open keeps the module.
        if plan.has(number)
            && !phase.is_loads()
            && let Ok(0) = sys.fork()
        {
            verify::run(sys, disk, mixed(own, number.into()), shared);
        }
    }
    for (i, other) in others::of(phase).iter().enumerate() {
        let number = OTHERS + i as u32;
        if plan.has(number)
            && let Ok(0) = sys.fork()
        {
            others::run(sys, *other, mixed(own, number.into()), shared);
        }
    }
    let early = if phase.is_plug() || phase.is_loads() {
        [None; 6]
    } else {
        opens(sys)
    };
    let mut dice = Dice::new(own);
    for generation in 0.. {
        let mut pids = [0; PROCESSES as usize];
        for (i, pid) in pids.iter_mut().enumerate() {
            let number = i as u32;
            let seed = mixed(own, generation << 8 | u64::from(number));
            let shares = phase == Phase::Sharing || Dice::new(seed).one_in(2);
            let mut task = task(number, seed);
            if shares {
                task.opens = early;
            }
            match sys.fork() {
                Ok(0) => attack(sys, task),
                Ok(child) => *pid = child,
                Err(_) => {}
            }
        }
        let ms = dice.below(600) as u64;
        sys.sleep_ms(if phase.is_loads() { ms / 2 } else { 100 + ms });
        for pid in pids.into_iter().filter(|pid| *pid != 0) {
            sys.kill(pid, SIGKILL);
        }
        for pid in pids.into_iter().filter(|pid| *pid != 0) {
            sys.wait(pid);
        }
        if phase.is_loads() {
            sys.sleep_ms(200 + dice.below(400) as u64);
        }
    }
    sys.exit(0)
}

/// What kind of disk an open is of.
pub fn disk_of(sys: &mut FreeBsd, fd: Fd) -> Option<Disk> {
    let kind = sys.kind_of(fd)?;
    Disk::ALL.into_iter().find(|disk| disk.is_of(&kind))
}

/// An open of each node, of which what it is is known: else no command could be made.
pub fn opens(sys: &mut FreeBsd) -> Opens {
    let mut opens = [None; 6];
    for (to, path) in opens.iter_mut().zip(sys.nodes(sys.attacked())) {
        let Ok(fd) = sys.open(path, RDWR) else {
            continue;
        };
        if sys.kind_of(fd).is_none() {
            sys.close(fd);
            continue;
        }
        let disk = disk_of(sys, fd);
        *to = Some(Open { fd, disk });
    }
    opens
}

/// One attacking process, with its threads and a child.
fn attack(sys: &mut FreeBsd, mut task: Task) -> ! {
    if task.opens.iter().all(Option::is_none) {
        task.opens = opens(sys);
    }
    let mut dice = Dice::new(mixed(task.seed, 1));
    if dice.one_in(2) {
        // Without the privileges of root.
        sys.set_user(1000);
    }
    let arena = sys.map(ARENA) as usize;
    let threads = match task.phase {
        Phase::Memory => 2,
        _ => dice.below(2) as u32,
    };
    for i in 0..threads {
        let number = task.number + THREADS * (1 + i);
        let own = Start {
            task: Task {
                seed: mixed(task.seed, 16 + u64::from(i)),
                number,
                ..task
            },
            arena,
            changes_memory: task.phase == Phase::Memory && i == 0,
        };
        if !task.plan.has(number) {
            continue;
        }
        let stack = sys.map(STACK) as usize;
        // SAFETY: fresh memory, large and aligned enough.
        unsafe { (stack as *mut Start).write(own) };
        // SAFETY: the thread's own memory, which is never unmapped.
        unsafe { sys.start_thread(thread, stack, STACK) };
    }
    let forks = task.phase == Phase::Sharing || dice.one_in(4);
    if forks && let Ok(0) = sys.fork() {
        task.seed = mixed(task.seed, 32);
        task.number += FORKS;
    }
    play(sys, &task, arena)
}

const STACK: usize = 65536;

/// What a thread begins with, at the start of its stack.
struct Start {
    task: Task,
    arena: usize,
    changes_memory: bool,
}

extern "C" fn thread(start: usize) -> ! {
    // SAFETY: written by who started the thread, before.
    let start = unsafe { (start as *const Start).read() };
    let mut sys = FreeBsd::new();
    if start.changes_memory {
        Attacker::new(&mut sys, &start.task, Some(start.arena)).change_memory()
    }
    play(&mut sys, &start.task, start.arena)
}

fn play(sys: &mut FreeBsd, task: &Task, arena: usize) -> ! {
    if !task.plan.has(task.number) {
        // Its threads, and its child, may be wanted.
        loop {
            sys.sleep_ms(1000);
        }
    }
    Attacker::new(sys, task, Some(arena)).play()
}
