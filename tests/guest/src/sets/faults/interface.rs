//! What the calls say, and when they say it.

use super::super::{RDWR, info};
use super::trial::{Disk, EAGAIN, ENOTTY, ENXIO, Ended, MS, Trial, holds, limit};
use crate::freebsd::{FreeBsd, SIGKILL};
use conform::{
    Outcome,
    cases::event,
    command::Command,
    sys::{Fd, Memory, Sys, call},
};
use sys_bindings as sys;

const POLLIN: i16 = sys::POLLIN as i16;
const POLLOUT: i16 = sys::POLLOUT as i16;

/// Whether a word is an address of the kernel's: with five levels of page tables,
/// as 15 has them where the CPU does, its half begins at `0xff00 << 48`. A pair of
/// numbers of which one is -1 is none.
fn is_kernel_address(word: u64) -> bool {
    let pair = word >> 32 == 0xffff_ffff && word & 0xffff_ffff < 0x8000_0000;
    word >> 56 == 0xff && !pair && word < u64::MAX - 0xffff
}

/// CAMGETPASSTHRU, and every other call that answers by a CCB.
pub fn m5(t: &mut Trial<'_>) -> Outcome {
    let mut ccb = Command::new(t.sys, 4096);
    for disk in Disk::ALL {
        let Some(node) = t.open(disk) else { continue };
        for opcode in [
            sys::XPT_GDEVLIST,
            sys::XPT_GDEV_TYPE,
            sys::XPT_PATH_INQ,
            sys::XPT_GDEV_STATS,
            sys::XPT_PATH_STATS,
            sys::XPT_GET_TRAN_SETTINGS,
            sys::XPT_NOOP,
        ] {
            ccb.immediate(opcode);
            let (request, name) = if opcode == sys::XPT_GDEVLIST {
                (sys::QPC_CAMGETPASSTHRU, "CAMGETPASSTHRU")
            } else {
                (sys::QPC_CAMIOCOMMAND, "CAMIOCOMMAND")
            };
            let called = t.sys.ioctl(node.fd, request, ccb.ccb.address());
            if opcode == sys::XPT_GDEVLIST {
                holds!((disk.name(), name), called, Ok(()));
            }
            // An ATA disk's IDENTIFY data may look like one.
            let looked_at = match opcode {
                sys::XPT_GDEV_TYPE => size_of::<sys::ccb_hdr>(),
                _ => size_of::<sys::ccb>(),
            };
            let words = ccb.ccb.bytes()[..looked_at].chunks_exact(8);
            let found = words.enumerate().find_map(|(i, bytes)| {
                let word = bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
                is_kernel_address(word).then_some((i * 8, word))
            });
            holds!(
                (disk.name(), name, opcode, "a kernel address at"),
                found,
                None
            );
        }
        t.sys.close(node.fd);
    }
    t.skipped = None;
    Ok(())
}

/// QPIOC_LIST in steps, with the struct that came out each time.
pub fn l2(t: &mut Trial<'_>) -> Outcome {
    const N: usize = 5;
    const SIZE: usize = size_of::<sys::qpass_outstanding>();
    let Some(node) = t.open(Disk::Scsi) else {
        return Ok(());
    };
    let mut commands: [Command; N] = core::array::from_fn(|_| Command::new(t.sys, 1));
    for command in &mut commands {
        command.test_unit_ready();
        holds!("queue", command.queue(t.sys, node.fd), Ok(()));
    }
    t.sys.sleep_ms(300);
    for device in [0, sys::QPASS_LIST_DEVICE] {
        let entries = Memory::new(t.sys, 4096);
        // SAFETY: integers.
        let mut list: sys::qpass_list = unsafe { core::mem::zeroed() };
        (list.entries, list.room, list.flags) = (entries.address() as u64, 2, device);
        let (mut seen, mut calls) = (0, 0);
        loop {
            let answer = call(t.sys, node.fd, sys::QPC_QPIOC_LIST, list);
            holds!((device, "call", calls), answer.map(|_| ()), Ok(()));
            let Ok(answer) = answer else { break };
            list = answer;
            for i in 0..list.count as usize {
                let at = &entries.bytes()[i * SIZE..i * SIZE + 8];
                let ccb = at.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
                let wanted = commands[(seen + i) % N].ccb.address() as u64;
                holds!((device, "entry", seen + i), ccb, wanted);
            }
            seen += list.count as usize;
            calls += 1;
            if list.flags & sys::QPASS_LIST_MORE == 0 || calls > N {
                break;
            }
        }
        holds!(
            (device, "entries, calls"),
            (seen, calls),
            (N, N.div_ceil(2))
        );
        entries.unmap(t.sys);
    }
    for command in &commands {
        let ended = t.reap(&node, command, 2000);
        holds!("reaped", ended, Ok(sys::CAM_REQ_CMP));
    }
    t.sys.close(node.fd);
    Ok(())
}

/// Whether a kqueue and poll(2) say that there is room.
fn room(t: &mut Trial<'_>, kq: Fd, fd: Fd, ms: u32) -> (Option<i64>, bool) {
    let mut events = [event(0, 0, 0)];
    let told = match t.sys.kevent(kq, &[], &mut events, ms) {
        Ok(1) => Some(events[0].data),
        _ => None,
    };
    let polled = t.sys.poll(fd, POLLOUT, 0);
    (told, polled.is_ok_and(|events| events & POLLOUT != 0))
}

/// An open whose bytes are all taken says that there is no room, and does not
/// wake a program that has just been told EAGAIN.
pub fn l3(t: &mut Trial<'_>) -> Outcome {
    const LEN: usize = 32768;
    for edge in [0, sys::EV_CLEAR] {
        let Some(node) = t.open(Disk::Scsi) else {
            return Ok(());
        };
        let mut commands: [Command; 3] = core::array::from_fn(|_| Command::new(t.sys, LEN));
        for command in &mut commands {
            let to = command.data.address();
            node.transfer(command, false, 0, to, LEN);
        }
        // What one of them counts for; two are all that there is room for.
        holds!("queue", commands[0].queue(t.sys, node.fd), Ok(()));
        let each = info(t.sys, node.fd).map_or(0, |info| info.bytes);
        let ended = t.reap(&node, &commands[0], 2000);
        holds!("one", ended, Ok(sys::CAM_REQ_CMP));
        let limited = limit(t.sys, node.fd, 0, 2 * each);
        holds!("limit", limited.map(|l| l.1), Ok(2 * each));
        let Ok(kq) = t.sys.kqueue() else {
            return Ok(());
        };
        let change = event(node.fd, sys::EVFILT_WRITE, sys::EV_ADD | edge);
        let added = t.sys.kevent(kq, &[change], &mut [], 0);
        holds!("EV_ADD", added, Ok(0));
        let before = room(t, kq, node.fd, 500);
        holds!(
            (edge, "empty", before),
            before.0.is_some() && before.1,
            true
        );
        let mut answers = [Ok(()); 3];
        for (command, answer) in commands.iter_mut().zip(&mut answers) {
            *answer = command.queue(t.sys, node.fd);
        }
        holds!("queue", answers, [Ok(()), Ok(()), Err(EAGAIN)]);
        // They end, and are not reaped; what was told before is taken off.
        t.sys.sleep_ms(500);
        if edge != 0 {
            let _ = room(t, kq, node.fd, 0);
        }
        // Asked again and again, as a program would that is told that there is.
        let (mut told, mut polled) = (0, 0);
        for _ in 0..5 {
            let now = room(t, kq, node.fd, 100);
            told += u32::from(now.0.is_some());
            polled += u32::from(now.1);
            let answer = commands[2].queue(t.sys, node.fd);
            holds!((edge, "the third again"), answer, Err(EAGAIN));
        }
        holds!(
            (edge, "told of room when full: kevent, poll"),
            (told, polled),
            (0, 0)
        );
        let ended = t.reap(&node, &commands[0], 2000);
        holds!("reaped", ended, Ok(sys::CAM_REQ_CMP));
        let after = room(t, kq, node.fd, 2000);
        holds!(
            (edge, "after one was reaped", after),
            after.0.is_some() && after.1,
            true
        );
        holds!("the third", commands[2].queue(t.sys, node.fd), Ok(()));
        t.sys.close(kq);
        t.sys.close(node.fd);
    }
    Ok(())
}

/// What all opens of a device may have outstanding, against what the machine
/// has.
pub fn f8(t: &mut Trial<'_>) -> Outcome {
    let Some(node) = t.open(Disk::Scsi) else {
        return Ok(());
    };
    let memory = t.sys.sysctl_number("hw.physmem").unwrap_or(0);
    let one = t.sys.sysctl_number("kern.cam.qpass.max_bytes");
    let device = t.sys.sysctl_number("kern.cam.qpass.device_max_bytes");
    let told = limit(t.sys, node.fd, 0, 0).map(|l| l.1);
    t.sys.close(node.fd);
    let (Some(one), Some(device)) = (one, device) else {
        holds!("the sysctls are there", (one, device), (Some(0), Some(0)));
        return Ok(());
    };
    t.see(format_args!(
        "physmem {memory}, an open {one}, a device {device}, QPIOC_LIMIT {told:?}"
    ));
    holds!("hw.physmem is there", memory != 0, true);
    holds!("QPIOC_LIMIT", told, Ok(one));
    holds!(
        ("a device may have", device, "of", memory),
        device <= memory / 8,
        true
    );
    holds!(("an open may have", one, "of", device), one <= device, true);
    Ok(())
}

/// What an open says once its disk is gone: at once, and when the name is too.
pub fn f6(t: &mut Trial<'_>) -> Outcome {
    if !t.has_monitor() {
        return Ok(());
    }
    let Some(node) = t.open(Disk::Scsi) else {
        return Ok(());
    };
    let Ok(kq) = t.sys.kqueue() else {
        return Ok(());
    };
    let changes = [sys::EVFILT_READ, sys::EVFILT_WRITE]
        .map(|filter| event(node.fd, filter, sys::EV_ADD | sys::EV_CLEAR));
    let added = t.sys.kevent(kq, &changes, &mut [], 0);
    holds!("EV_ADD", added, Ok(0));
    let mut command = Command::new(t.sys, 4096);
    command.test_unit_ready();
    let pulled = t.sys.pull();
    let mut answers = [(0, 0, 0, 0); 8];
    for answer in &mut answers {
        t.sys.sleep_ms(300);
        // A look at the directory has devfs let the node go.
        t.sys.is_there(node.path);
        let of = |answer: Result<(), i32>| answer.err().unwrap_or(0);
        *answer = (
            of(command.queue(t.sys, node.fd)),
            of(command.get(t.sys, node.fd)),
            of(command.send(t.sys, node.fd)),
            of(limit(t.sys, node.fd, 0, 0).map(|_| ())),
        );
    }
    let polled = t.sys.poll(node.fd, POLLIN, 2000);
    let mut eof = 0;
    let mut events = [event(0, 0, 0), event(0, 0, 0)];
    for _ in 0..10 {
        let n = t.sys.kevent(kq, &[], &mut events, 300).unwrap_or(0);
        for event in &events[..n] {
            if event.flags & sys::EV_EOF as u16 != 0 {
                eof |= if event.filter == sys::EVFILT_READ as i16 {
                    1
                } else {
                    2
                };
            }
        }
    }
    t.sys.close(node.fd);
    t.sys.close(kq);
    t.sys.arrive();
    holds!("the disk goes", pulled, true);
    for answer in answers {
        let (a, b, c, d) = answer;
        let good = [a, b, c, d]
            .iter()
            .all(|errno| [ENXIO, ENOTTY].contains(errno));
        holds!(("queue, get, send, limit", answer), good, true);
    }
    let (first, last) = (answers[0], answers[7]);
    t.see(format_args!(
        "first {first:?}, then {last:?}, poll {polled:?}"
    ));
    let hung_up = polled.is_ok_and(|events| events & sys::POLLHUP as i16 != 0);
    holds!(("poll", polled), hung_up, true);
    holds!("EV_EOF of read and write", eof, 3);
    Ok(())
}

/// Words that processes share.
struct Words(*mut u64);

impl Words {
    fn add(&self, i: usize) {
        // SAFETY: inside the page, which stays mapped; one writer a word.
        unsafe { self.0.add(i).write_volatile(self.get(i) + 1) };
    }
    fn get(&self, i: usize) -> u64 {
        // SAFETY: as above.
        unsafe { self.0.add(i).read_volatile() }
    }
}

/// Walks through all of CAM, two results at a time, for ever.
fn step_through(sys: &mut FreeBsd, words: &Words) -> i32 {
    let mut ccb = Command::new(sys, 4096);
    let matches = ccb.data.address() as *mut sys::dev_match_result;
    let Ok(fd) = sys.open("/dev/xpt0", RDWR) else {
        return 2;
    };
    loop {
        ccb.immediate(sys::XPT_DEV_MATCH);
        let at = ccb.ccb.ccb_mut();
        at.ccb_h.path_id = sys::QPC_CAM_XPT_PATH_ID;
        at.ccb_h.target_id = sys::QPC_CAM_TARGET_WILDCARD;
        at.ccb_h.target_lun = sys::QPC_CAM_LUN_WILDCARD;
        at.cdm.match_buf_len = 2 * size_of::<sys::dev_match_result>() as u32;
        at.cdm.matches = matches;
        for _ in 0..1000 {
            if ccb.send(sys, fd).is_err() {
                break;
            }
            words.add(1);
            // SAFETY: what the opcode says.
            if unsafe { ccb.ccb.ccb().cdm.status } != sys::CAM_DEV_MATCH_MORE {
                break;
            }
        }
        words.add(0);
    }
}

/// Loads and unloads while one process steps through CAM's lists and another
/// opens and closes the nodes.
pub fn f4(t: &mut Trial<'_>) -> Outcome {
    const ROUNDS: u32 = 60;
    let rounds = t.sys.tunable("qpass.rounds").unwrap_or(ROUNDS);
    let words = Words(t.sys.map_shared(4096).cast());
    let stepper = t.start(|sys| step_through(sys, &words));
    let opener = t.start(|sys| {
        loop {
            for path in sys.nodes(sys.attacked()) {
                if let Ok(fd) = sys.open(path, RDWR) {
                    sys.close(fd);
                }
            }
            sys.sleep_ms(1);
        }
    });
    let end = t.sys.now() + 60_000 * MS * t.slow;
    let (mut done, mut busy) = (0, 0);
    let mut failed = Ok(());
    'rounds: while done < rounds && t.sys.now() < end {
        let Some(id) = t.sys.kldfind("qpass.ko") else {
            failed = Err("it is not loaded");
            break;
        };
        let mut tries = 0;
        while let Err(errno) = t.sys.kldunload(id) {
            busy += 1;
            tries += 1;
            if errno != sys::EBUSY as i32 || tries > 1000 {
                failed = Err("kldunload");
                break 'rounds;
            }
            t.sys.sleep_ms(2);
        }
        let module = t.sys.module();
        if t.sys.kldload(module).is_err() {
            failed = Err("kldload");
            break;
        }
        t.sys.sleep_ms(u64::from(done % 8) * 10);
        done += 1;
    }
    for helper in [stepper, opener].into_iter().flatten() {
        t.sys.kill(helper, SIGKILL);
        let ended = t.sys.wait_ms(helper, 10_000 * t.slow);
        holds!("a helper ends when it is killed", ended, Some(-1));
    }
    t.see(format_args!(
        "{done} unloads, {busy} EBUSY, {} walks, {} steps",
        words.get(0),
        words.get(1)
    ));
    holds!("unload and load", failed, Ok(()));
    holds!("unloads were done", done > 0, true);
    holds!("and it was walked meanwhile", words.get(0) > 0, true);
    let back = t.sys.wait_disk();
    holds!("the nodes come back", back.is_some(), true);
    // A bounded look at it: the set goes on with this module.
    let opens = t.within(5000, |sys| {
        i32::from(
            sys.wait_disk()
                .is_none_or(|path| sys.open(path, RDWR).is_err()),
        )
    });
    holds!("and can be opened", opens, Ended::With(0));
    Ok(())
}
