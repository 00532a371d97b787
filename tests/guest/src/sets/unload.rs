//! kldunload(2) under load, and under XPT_DEV_MATCH.

use super::{Batch, RDWR, Sheet};
use crate::freebsd::FreeBsd;
use conform::{
    command::Command,
    sys::{Fd, Memory, Sys},
};
use sys_bindings as sys;

/// Loads and unloads under XPT_DEV_MATCH.
const ROUNDS: u64 = 100;

/// A page that a process and its children share.
struct Shared(*mut u64);

impl Shared {
    fn new(sys: &mut FreeBsd) -> Self {
        Shared(sys.map_shared(4096).cast())
    }

    fn set(&self, i: usize, value: u64) {
        // SAFETY: inside the page, which stays mapped.
        unsafe { self.0.add(i).write_volatile(value) };
    }

    fn get(&self, i: usize) -> u64 {
        // SAFETY: as above.
        unsafe { self.0.add(i).read_volatile() }
    }
}

/// Opens, queues, reaps, closes, again and again, until it is told to stop; and
/// then ends with commands under way. How many commands it reaped goes into
/// its word.
fn worker(sys: &mut FreeBsd, node: &str, shared: &Shared, me: usize) -> ! {
    const N: usize = 16;
    let mut commands: [Command; N] = core::array::from_fn(|_| Command::new(sys, 16384));
    let mut batch = Batch::new(sys, N);
    for (i, command) in commands.iter_mut().enumerate() {
        command.rw10(false, i as u32 * 32, 32);
        batch.set(i, command.ccb.address(), i as u64);
    }
    let mut reaped = 0;
    while let Ok(fd) = sys.open(node, RDWR) {
        for _ in 0..20 {
            match batch.enter(sys, fd, N, N) {
                Ok((_, r, 0, 0)) => reaped += r as u64,
                // Told in the word: nobody else looks.
                _ => shared.set(me + 16, 1),
            }
        }
        shared.set(me, reaped);
        let _ = batch.enter(sys, fd, N, 0);
        if shared.get(0) != 0 {
            break;
        }
        sys.close(fd);
    }
    sys.exit(0)
}

/// kldunload while processes use the device: EBUSY, and nothing else happens;
/// and once they have ended, with commands under way, it unloads.
pub fn unload(sheet: &mut Sheet<'_>, load: impl Fn(&mut FreeBsd) -> Option<usize>) {
    for round in ["1", "2", "3"] {
        let Some(id) = load(sheet.sys) else {
            sheet.check("kldload", round, false);
            return;
        };
        let Some(node) = sheet.sys.wait_disk() else {
            sheet.check("the disk is there", round, false);
            return;
        };
        let shared = Shared::new(sheet.sys);
        let mut children = [0; 4];
        for (i, child) in children.iter_mut().enumerate() {
            match sheet.sys.fork() {
                Ok(0) => worker(sheet.sys, node, &shared, i + 1),
                Ok(pid) => *child = pid,
                Err(_) => sheet.check("fork", round, false),
            }
        }
        let keeper = sheet.sys.open(node, RDWR);
        let (mut refused, mut others) = (0, 0);
        for _ in 0..200 {
            match sheet.sys.kldunload(id) {
                Err(errno) if errno == sys::EBUSY as i32 => refused += 1,
                _ => others += 1,
            }
            sheet.sys.sleep_ms(5);
        }
        sheet.check(
            "200 unloads under load are EBUSY, round",
            round,
            (refused, others) == (200, 0),
        );
        let worked = (1..=4).all(|i| shared.get(i) > 100 && shared.get(i + 16) == 0);
        sheet.check("the load goes on meanwhile, round", round, worked);
        shared.set(0, 1);
        if let Ok(fd) = keeper {
            sheet.sys.close(fd);
        }
        for child in children {
            sheet.sys.wait(child);
        }
        let unloaded = crate::unload(sheet.sys, id);
        sheet.check(
            "it unloads when they have ended, round",
            round,
            unloaded == Ok(()),
        );
        let gone = sheet.sys.open(node, RDWR).is_err();
        sheet.check("and its nodes have gone, round", round, gone);
    }
    walks(sheet, load);
}

/// Words of the page that the walks share with their parent.
const END: usize = 0;
const PAUSE: usize = 1;
const PAUSED: usize = 16;
const STEPS: usize = 32;

/// Which of the children walks by drivers, and which does not walk.
const BY_DRIVER: usize = 2;
const OPENER: usize = 3;

/// Opens and closes a device, if it is there, until it is told to stop.
fn open_and_close(sys: &mut FreeBsd, shared: &Shared) -> ! {
    while shared.get(END) == 0 {
        match sys.open("/dev/qpass0", RDWR) {
            Ok(fd) => sys.close(fd),
            Err(_) => sys.sleep_ms(1),
        }
    }
    sys.exit(0)
}

/// A walk through CAM's lists by XPT_DEV_MATCH on /dev/xpt0, with room for one or two
/// results at a time, as `camcontrol devlist` does with more of them.
pub(super) struct Walk {
    fd: Option<Fd>,
    results: Memory,
    patterns: Memory,
    command: Command,
}

impl Walk {
    pub fn new(sys: &mut FreeBsd) -> Self {
        Walk {
            fd: sys.open("/dev/xpt0", RDWR).ok(),
            results: Memory::new(sys, 4096),
            patterns: Memory::new(sys, 4096),
            command: Command::new(sys, 0),
        }
    }

    /// Begins anew with the next step.
    pub fn rewind(&mut self) {
        self.command.hdr().func_code = 0;
    }

    /// One step: whether the call was taken.
    pub fn step(&mut self, sys: &mut FreeBsd, by_driver: bool, room: usize) -> bool {
        // SAFETY: plain data; the CCB and the patterns are this process's.
        unsafe {
            let ccb = self.command.ccb.bytes_mut().as_mut_ptr().cast::<sys::ccb>();
            let more = (*ccb).ccb_h.func_code == sys::XPT_DEV_MATCH
                && (*ccb).cdm.status == sys::CAM_DEV_MATCH_MORE;
            if !more {
                ccb.write_bytes(0, 1);
                (*ccb).ccb_h.func_code = sys::XPT_DEV_MATCH;
                (*ccb).ccb_h.path_id = sys::QPC_CAM_XPT_PATH_ID;
                (*ccb).ccb_h.target_id = sys::QPC_CAM_TARGET_WILDCARD;
                (*ccb).ccb_h.target_lun = sys::QPC_CAM_LUN_WILDCARD;
            }
            let cdm = &mut (*ccb).cdm;
            if by_driver {
                let pattern = self.patterns.bytes_mut().as_mut_ptr();
                let pattern = pattern.cast::<sys::dev_match_pattern>();
                (*pattern).type_ = sys::DEV_MATCH_PERIPH;
                let name = &mut (*pattern).pattern.periph_pattern;
                name.flags = sys::PERIPH_MATCH_NAME;
                for (to, from) in name.periph_name.iter_mut().zip(*b"qpass") {
                    *to = from as core::ffi::c_char;
                }
                cdm.patterns = pattern;
                cdm.num_patterns = 1;
                cdm.pattern_buf_len = size_of::<sys::dev_match_pattern>() as u32;
            }
            cdm.matches = self.results.bytes_mut().as_mut_ptr().cast();
            cdm.match_buf_len = (room * size_of::<sys::dev_match_result>()) as u32;
            cdm.num_matches = 0;
        }
        self.fd.is_some_and(|fd| self.command.send(sys, fd).is_ok())
    }
}

/// Walks until it is told to stop.
///
/// A walk by drivers stands still while a driver is loaded: its saved position
/// points into an array of the kernel's that periphdriver_register() frees.
fn walk(sys: &mut FreeBsd, by_driver: bool, room: usize, shared: &Shared, me: usize) -> ! {
    let mut walk = Walk::new(sys);
    let mut steps = 0;
    while shared.get(END) == 0 {
        if by_driver && shared.get(PAUSE) != 0 {
            shared.set(PAUSED + me, 1);
            sys.sleep_ms(1);
            walk.rewind();
            continue;
        }
        shared.set(PAUSED + me, 0);
        if !walk.step(sys, by_driver, room) {
            sys.exit(2);
        }
        steps += 1;
        shared.set(STEPS + me, steps);
    }
    sys.exit(0)
}

/// Every unit goes at once while walks stand on them.
fn walks(sheet: &mut Sheet<'_>, load: impl Fn(&mut FreeBsd) -> Option<usize>) {
    let shared = Shared::new(sheet.sys);
    let mut children = [0; 4];
    for (i, child) in children.iter_mut().enumerate() {
        match sheet.sys.fork() {
            Ok(0) if i == OPENER => open_and_close(sheet.sys, &shared),
            Ok(0) => walk(sheet.sys, i == BY_DRIVER, 1 + i % 2, &shared, i),
            Ok(pid) => *child = pid,
            Err(_) => sheet.check("fork for", "a walk", false),
        }
    }
    let mut unloaded = 0;
    for round in 0..ROUNDS {
        shared.set(PAUSE, 1);
        for _ in 0..1000 {
            if shared.get(PAUSED + BY_DRIVER) == 1 {
                break;
            }
            sheet.sys.sleep_ms(1);
        }
        let Some(id) = load(sheet.sys) else { break };
        shared.set(PAUSE, 0);
        sheet.sys.sleep_ms(20 + round % 7 * 5);
        unloaded += u64::from(crate::unload(sheet.sys, id) == Ok(()));
    }
    let all_step = (0..OPENER).all(|i| shared.get(STEPS + i) > 100);
    shared.set(END, 1);
    for child in children {
        sheet.sys.wait(child);
    }
    sheet.check("100 unloads", "under XPT_DEV_MATCH", unloaded == ROUNDS);
    sheet.check("and the walks", "went on", all_step);
}
