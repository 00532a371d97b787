//! The main job, shown: loads qpass.ko into the user-mode kernel, opens a RAM
//! disk's `/dev/qpass0` twice, queues WRITE(10) and READ(10) CCBs on both from
//! several threads, reaps them through kqueue, and compares every byte.
//!
//! usage: demo QPASS.KO

use conform::{
    command::{BLOCK, Command},
    sys::Sys,
};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    process::ExitCode,
    sync::{Mutex, mpsc},
    time::{Duration, Instant},
};
use ukernel::{
    devfs,
    devfs::wait_until,
    disk::Config,
    memory::{self, ZoneStats},
    process::{Machine, Process},
    sys, user,
};

/// Prints a line; whoever has closed the pipe has seen enough.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($words)*);
    }};
}

/// Commands of each kind.
const COMMANDS: u32 = 256;
/// Commands outstanding on an open.
const DEPTH: usize = 32;
/// Bytes a command moves.
const SIZE: usize = 16 << 10;
const BLOCKS: u16 = (SIZE / BLOCK) as u16;
const NODE: &str = "/dev/qpass0";

/// One open of the device, with a command for every slot of its depth.
struct Lane {
    number: u32,
    fd: i32,
    slots: Vec<Mutex<(Command, Instant)>>,
}

/// What a pass over the disk measured.
struct Pass {
    took: Duration,
    latency: Histogram<u64>,
    wrong_bytes: usize,
    failed: u32,
}

/// The byte at `at` of command `n`: every command's data differs.
fn pattern(n: u32, at: usize) -> u8 {
    (n.wrapping_mul(0x9e37_79b9) ^ (at as u32).wrapping_mul(0x85eb_ca6b)).to_le_bytes()[3]
}

fn main() -> ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("usage: demo QPASS.KO");
        return ExitCode::from(2);
    };
    match std::fs::read(&path)
        .map_err(|e| format!("{path}: {e}"))
        .and_then(|ko| demo(&path, &ko))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("demo: {what}");
            ExitCode::FAILURE
        }
    }
}

fn demo(path: &str, ko: &[u8]) -> Result<(), String> {
    let config = Config {
        latency: Duration::from_micros(100),
        jitter: Duration::from_micros(400),
        ..Config::default()
    };
    let size = config.size;
    let mut machine = Machine::new(config);
    let module = machine.load(ko)?;
    wait_until("/dev/qpass0 is there", || devfs::exists("qpass0"));
    say!(
        "loaded    {path} ({} bytes) into the user-mode kernel",
        ko.len()
    );
    say!(
        "devices   {} (RAM disk, {} MiB, 100 to 500 us a command)",
        devfs::names().join(" "),
        size >> 20
    );

    let mut lanes = Vec::new();
    for number in 0..2 {
        let fd = machine
            .open(NODE, sys::O_RDWR as i32)
            .map_err(|errno| format!("open {NODE}: errno {errno}"))?;
        let slots = (0..DEPTH)
            .map(|_| Mutex::new((Command::new(&mut machine, SIZE), Instant::now())))
            .collect();
        lanes.push(Lane { number, fd, slots });
    }

    let bar = ProgressBar::new(u64::from(2 * COMMANDS));
    bar.set_style(
        ProgressStyle::with_template("working   [{bar:40}] {pos}/{len} commands, {per_sec}")
            .map_err(|e| e.to_string())?
            .progress_chars("=> "),
    );
    let passes = [true, false].map(|write| (write, pass(&machine, &lanes, write, &bar)));
    bar.finish_and_clear();
    let zones = memory::zones();

    for lane in lanes {
        machine.close(lane.fd);
    }
    let mut good = true;
    for (write, pass) in &passes {
        good &= report(*write, pass);
    }
    report_zones(&zones);
    machine.unload(module);
    say!("unloaded  nothing left: no allocation, no zone item, no reference");
    if good {
        Ok(())
    } else {
        Err("a command failed, or data differs".into())
    }
}

/// Writes, or reads and compares, the whole range: every lane takes every
/// other command, one thread queues and one reaps.
fn pass(machine: &Machine, lanes: &[Lane], write: bool, bar: &ProgressBar) -> Pass {
    let start = Instant::now();
    let total = Mutex::new(Pass {
        took: Duration::ZERO,
        // Up to a minute.
        latency: Histogram::new_with_max(60_000_000, 3).expect("three digits"),
        wrong_bytes: 0,
        failed: 0,
    });
    std::thread::scope(|scope| {
        for lane in lanes {
            let (free, next) = mpsc::sync_channel(DEPTH);
            for slot in 0..DEPTH {
                free.send(slot).expect("room for every slot");
            }
            let total = &total;
            scope.spawn(move || submit(machine.process(), lane, write, &next));
            scope.spawn(move || reap(machine.process(), lane, write, &free, total, bar));
        }
    });
    let mut pass = total.into_inner().expect("no thread panicked");
    pass.took = start.elapsed();
    pass
}

fn submit(process: &Process, lane: &Lane, write: bool, next: &mpsc::Receiver<usize>) {
    for n in (lane.number..COMMANDS).step_by(2) {
        let slot = next.recv().expect("the reaper gives slots back");
        let mut guard = lane.slots[slot].lock().unwrap();
        let (command, queued) = &mut *guard;
        command.rw10(write, n * u32::from(BLOCKS), BLOCKS);
        command.set_private(0, slot as u64);
        command.set_private(1, u64::from(n));
        for (at, byte) in command.data.bytes_mut().iter_mut().enumerate() {
            *byte = if write { pattern(n, at) } else { 0 };
        }
        *queued = Instant::now();
        let ccb = command.ccb.address();
        drop(guard);
        process
            .ioctl(lane.fd, sys::QPC_CAMIOQUEUE, ccb)
            .expect("CAMIOQUEUE");
    }
}

fn reap(
    process: &Process,
    lane: &Lane,
    write: bool,
    free: &mpsc::SyncSender<usize>,
    total: &Mutex<Pass>,
    bar: &ProgressBar,
) {
    let kq = process.kqueue();
    let change = read_event(lane.fd);
    let mut events = [read_event(0)];
    process
        .kevent(kq, &[change], &mut [], None)
        .expect("EV_ADD");
    // Completions come in the device's order: they land here, and say which
    // slot they are of.
    let done = user::map(4096);
    let mut left = COMMANDS / 2;
    while left > 0 {
        process.kevent(kq, &[], &mut events, None).expect("kevent");
        while process
            .ioctl(lane.fd, sys::QPC_CAMIOGET, done as usize)
            .is_ok()
        {
            // SAFETY: CAMIOGET has written a whole CCB here.
            let csio = unsafe { &(*done.cast::<sys::ccb>()).csio };
            // SAFETY: the union is plain data.
            let private = unsafe { csio.ccb_h.periph_priv.entries.map(|e| e.field) };
            let (slot, n) = (private[0] as usize, private[1] as u32);
            let (wrong, took) = {
                let guard = lane.slots[slot].lock().unwrap();
                let data = guard.0.data.bytes();
                let differs = |(at, byte): (usize, &u8)| *byte != pattern(n, at);
                let wrong = data[..SIZE]
                    .iter()
                    .enumerate()
                    .filter(|p| differs(*p))
                    .count();
                (if write { 0 } else { wrong }, guard.1.elapsed())
            };
            let good =
                csio.ccb_h.status & sys::CAM_STATUS_MASK == sys::CAM_REQ_CMP && csio.resid == 0;
            let mut total = total.lock().unwrap();
            total.latency.saturating_record(took.as_micros() as u64);
            total.wrong_bytes += wrong;
            total.failed += u32::from(!good);
            drop(total);
            left -= 1;
            bar.inc(1);
            // The submitter leaves when it has sent its last command.
            let _ = free.send(slot);
        }
    }
    process.close(kq);
    // SAFETY: mapped above, and not used any more.
    unsafe { user::unmap(done, 4096) };
}

fn read_event(fd: i32) -> sys::kevent {
    // SAFETY: plain data.
    let mut event: sys::kevent = unsafe { core::mem::zeroed() };
    event.ident = fd as u64;
    event.filter = sys::EVFILT_READ as i16;
    event.flags = sys::EV_ADD as u16;
    event
}

/// Prints a pass; whether it went as it should.
fn report(write: bool, pass: &Pass) -> bool {
    let seconds = pass.took.as_secs_f64();
    let quantile = |q| pass.latency.value_at_quantile(q);
    say!(
        "{}  {COMMANDS} x {} KiB on 2 opens, depth {DEPTH} each: {:.0} commands/s, {:.0} MiB/s",
        if write { "WRITE(10)" } else { "READ(10) " },
        SIZE >> 10,
        f64::from(COMMANDS) / seconds,
        (COMMANDS as usize * SIZE) as f64 / seconds / f64::from(1 << 20),
    );
    say!(
        "          latency us: p50 {}  p90 {}  p99 {}  max {}",
        quantile(0.5),
        quantile(0.9),
        quantile(0.99),
        pass.latency.max()
    );
    if pass.failed != 0 {
        say!("          {} commands FAILED", pass.failed);
    }
    if !write {
        match pass.wrong_bytes {
            0 => say!(
                "verified  {} bytes read back are the bytes written",
                COMMANDS as usize * SIZE
            ),
            wrong => say!("verified  NO: {wrong} bytes differ"),
        }
    }
    pass.failed == 0 && pass.wrong_bytes == 0
}

fn report_zones(zones: &[ZoneStats]) {
    say!("zones     name            bytes   allocs  high water");
    for zone in zones.iter().filter(|z| z.allocs != 0) {
        say!(
            "          {:14} {:>6} {:>8} {:>11}",
            zone.name,
            zone.size,
            zone.allocs,
            zone.high_water
        );
    }
}
