//! kldunload(2) under load.

use super::{Batch, RDWR, Sheet};
use crate::freebsd::FreeBsd;
use conform::{command::Command, sys::Sys};
use sys_bindings as sys;

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
}
