//! Who is busy beside the attackers: with the module, CAM's lists, sysctls and disks.

use super::{super::unload::Walk, Dice, Shared, round::Phase, trial::Disk};
use crate::freebsd::FreeBsd;
use conform::{Line, command::Command, sys::Sys};
use core::{fmt::Write, sync::atomic::Ordering::Relaxed};
use sys_bindings as sys;

/// One of them.
#[derive(Clone, Copy)]
pub enum Other {
    /// Changes the limits.
    Limits,
    /// Loads and unloads the module.
    Loader,
    /// Steps through XPT_DEV_MATCH.
    Matcher,
    /// Has the buses scanned.
    Scanner,
    /// Reads every sysctl that tells of devices.
    Reader,
    /// Opens, watches and closes.
    Opener,
    /// Pulls disks and plugs them in.
    Plugger,
}

/// Those of a phase. In [`Phase::Plug`] nobody steps through XPT_DEV_MATCH: the kernel
/// faults then by itself (docs/upstream.md), and in [`Phase::Loads`] not by drivers.
pub fn of(phase: Phase) -> &'static [Other] {
    match phase {
        Phase::Edges | Phase::Storm => &[Other::Limits, Other::Reader],
        Phase::Loads => &[
            Other::Loader,
            Other::Matcher,
            Other::Matcher,
            Other::Scanner,
            Other::Reader,
            Other::Opener,
        ],
        Phase::Plug => &[Other::Plugger, Other::Reader, Other::Opener],
        Phase::Opcodes => &[Other::Matcher, Other::Scanner],
        _ => &[],
    }
}

/// Runs one until it is killed.
pub fn run(sys: &mut FreeBsd, other: Other, seed: u64, shared: &'static Shared) -> ! {
    let mut dice = Dice::new(seed);
    match other {
        Other::Limits => limits(sys, &mut dice),
        Other::Loader => loader(sys, &mut dice, shared),
        Other::Matcher => {
            let room = 1 + dice.below(2);
            let mut walk = Walk::new(sys);
            loop {
                if !walk.step(sys, false, room) {
                    sys.sleep_ms(10);
                }
            }
        }
        Other::Scanner => scanner(sys, &mut dice),
        Other::Reader => reader(sys, &mut dice),
        Other::Opener => opener(sys, &mut dice),
        Other::Plugger => plugger(sys, &mut dice, shared),
    }
}

fn limits(sys: &mut FreeBsd, dice: &mut Dice) -> ! {
    const NUMBERS: [(&str, &[u64]); 6] = [
        ("max_requests", &[1, 2, 16, 1024, 0xffff_ffff, 0]),
        ("device_max_requests", &[1, 32, 4096, 0xffff_ffff]),
        ("max_bytes", &[0, 512, 65536, 1 << 20, 64 << 20, u64::MAX]),
        ("device_max_bytes", &[4096, 1 << 20, 256 << 20, u64::MAX]),
        ("total_max_bytes", &[4096, 4 << 20, 512 << 20, u64::MAX]),
        ("zerocopy_min", &[0, 1, 512, 4096, 1 << 20, 0xffff_ffff]),
    ];
    loop {
        let (name, values) = dice.of(&NUMBERS);
        let mut path = Line::new();
        let _ = write!(path, "kern.cam.qpass.{name}");
        sys.set_sysctl(path.as_str(), dice.of(values));
        sys.sleep_ms(1 + dice.below(30) as u64);
    }
}

fn loader(sys: &mut FreeBsd, dice: &mut Dice, shared: &Shared) -> ! {
    let module = sys.module();
    loop {
        match sys.kldfind("qpass.ko") {
            Some(id) => {
                if sys.kldunload(id).is_ok() {
                    shared.unloads.fetch_add(1, Relaxed);
                }
            }
            None => {
                let _ = sys.kldload(module);
            }
        }
        sys.sleep_ms(dice.below(60) as u64);
    }
}

/// XPT_SCAN_BUS, as `camcontrol rescan` has it.
fn scanner(sys: &mut FreeBsd, dice: &mut Dice) -> ! {
    let fd = sys.open("/dev/xpt0", sys::O_RDWR as i32);
    let mut command = Command::new(sys, 0);
    loop {
        if let Ok(fd) = fd {
            command.immediate(sys::XPT_SCAN_BUS);
            let hdr = command.hdr();
            hdr.path_id = dice.below(4) as u32;
            hdr.target_id = sys::QPC_CAM_TARGET_WILDCARD;
            hdr.target_lun = sys::QPC_CAM_LUN_WILDCARD;
            let _ = command.send(sys, fd);
        }
        sys.sleep_ms(50 + dice.below(200) as u64);
    }
}

fn reader(sys: &mut FreeBsd, dice: &mut Dice) -> ! {
    const LEAVES: [&str; 10] = [
        "submitted",
        "completed",
        "outstanding",
        "outstanding_max",
        "errors",
        "cancelled",
        "copied_bytes",
        "zerocopy_bytes",
        "bounce_bytes",
        "bounce_bytes_max",
    ];
    let at = sys.map(1 << 18);
    // SAFETY: fresh memory of this process's, aligned to a page.
    let room = unsafe { core::slice::from_raw_parts_mut(at.cast::<u64>(), (1 << 18) / 8) };
    loop {
        for unit in 0..6 {
            let mut path = Line::new();
            let _ = write!(path, "kern.cam.qpass.{unit}.{}", dice.of(&LEAVES));
            let _ = sys.sysctl_number(path.as_str());
        }
        for whole in ["kern.devstat.all", "kern.geom.confxml", "kern.malloc_stats"] {
            sys.sysctl(whole, room, None);
        }
        sys.sleep_ms(dice.below(5) as u64);
    }
}

fn opener(sys: &mut FreeBsd, dice: &mut Dice) -> ! {
    let kq = sys.kqueue();
    loop {
        let path = sys.unit(dice.below(6));
        if let (Ok(fd), Ok(kq)) = (sys.open(path, sys::O_RDWR as i32), kq) {
            // SAFETY: plain data.
            let mut event: sys::kevent = unsafe { core::mem::zeroed() };
            (event.ident, event.filter, event.flags) = (fd as u64, dice.of(&[-1, -2]), 1);
            let mut events = [event; 2];
            let _ = sys.kevent(kq, &[event], &mut events, dice.below(3) as u32);
            sys.close(fd);
        } else {
            sys.sleep_ms(1);
        }
    }
}

/// The names that the monitor has for the disks which it can pull.
pub const PULLED: [(&str, Disk); 2] = [("hd", Disk::Scsi), ("disk2", Disk::Nvme)];

fn plugger(sys: &mut FreeBsd, dice: &mut Dice, shared: &Shared) -> ! {
    if !sys.can_depart() {
        sys.exit(0);
    }
    loop {
        let at = dice.below(PULLED.len());
        let (name, disk) = PULLED[at];
        sys.sleep_ms(300 + dice.below(700) as u64);
        shared.pulling[at].store(1, Relaxed);
        let gone = sys.pull_device(name, |sys| disk.block_device(sys).is_none());
        shared.pulls.fetch_add(u64::from(gone), Relaxed);
        sys.sleep_ms(200 + dice.below(300) as u64);
        if sys.plug_device(name, |sys| disk.block_device(sys).is_some()) {
            shared.pulling[at].store(0, Relaxed);
        }
    }
}
