//! Every wait ends: by its answer, a bound, a signal, or departure.

use super::super::{Batch, RDWR};
use super::trial::{
    Disk, EAGAIN, ENXIO, Ended, FOREVER, MS, Trial, cancel, enter, entered, holds, limit,
};
use crate::freebsd::{FreeBsd, SIGTERM};
use conform::{
    Outcome,
    command::Command,
    sys::{Memory, Sys},
};
use sys_bindings as sys;

const ETIMEDOUT: i32 = sys::ETIMEDOUT as i32;

/// What a helper's exit status says.
const GOOD: i32 = 0;
const NO_OPEN: i32 = 10;
const WRONG_COUNT: i32 = 11;
const WRONG_ERROR: i32 = 12;
const TOO_EARLY: i32 = 13;
const TOO_LATE: i32 = 14;
const BUSY: i32 = 15;

/// Eight reads of 32 KiB, which are copied, where 64 KiB may be outstanding,
/// with room waited for and none of them reaped.
fn over_the_bytes(sys: &mut FreeBsd, node: &str, timeout: u64, wanted: &[i32]) -> i32 {
    const N: usize = 8;
    const LEN: usize = 32768;
    let Ok(fd) = sys.open(node, RDWR) else {
        return NO_OPEN;
    };
    if limit(sys, fd, 0, 65536).is_err() {
        return NO_OPEN;
    }
    let mut commands: [Command; N] = core::array::from_fn(|_| Command::new(sys, LEN + 4096));
    let mut batch = Batch::new(sys, N);
    for (i, command) in commands.iter_mut().enumerate() {
        command.rw10(false, i as u32 * 64, 64);
        let to = command.data.address() + 1;
        command.csio().data_ptr = to as *mut u8;
        batch.set(i, command.ccb.address(), i as u64);
    }
    let mut what = entered(&batch, N, 0, 0);
    what.flags = sys::QPASS_ENTER_WAIT_ROOM;
    what.timeout = timeout;
    let (start, used) = (sys.now(), sys.cpu_us());
    let done = enter(sys, fd, what);
    let (ms, used) = ((sys.now() - start) / MS, (sys.cpu_us() - used) / 1000);
    let errno = match done {
        // Two, or one where a copy's buffer is larger than what is in it.
        Ok((1 | 2, 0, error, 0)) => error,
        Ok(_) => return WRONG_COUNT,
        Err(error) => error,
    };
    if !wanted.contains(&errno) {
        return WRONG_ERROR;
    }
    if timeout == FOREVER {
        return GOOD;
    }
    match (ms, used) {
        (0..400, _) => TOO_EARLY,
        (400..4000, 0..300) => GOOD,
        (400..4000, _) => BUSY,
        _ => TOO_LATE,
    }
}

/// A wait for room by bytes: its timeout, a signal and a departure each end it.
pub fn h1(t: &mut Trial<'_>) -> Outcome {
    let Some(node) = t.open(Disk::Scsi) else {
        return Ok(());
    };
    t.sys.close(node.fd);
    let path = node.path;
    let timed = t.within(6000, |sys| {
        over_the_bytes(sys, path, 500 * MS, &[EAGAIN, ETIMEDOUT])
    });
    holds!("a timeout of 500 ms", timed, Ended::With(GOOD));
    let waiting = t.start(|sys| over_the_bytes(sys, path, FOREVER, &[]));
    t.sys.sleep_ms(1000 * t.slow);
    let Some(waiting) = waiting else {
        return Ok(());
    };
    holds!("it waits", t.sys.wait_ms(waiting, 0), None);
    t.sys.kill(waiting, SIGTERM);
    // It does not come back to say anything.
    holds!("a signal", t.finish(waiting, 3000), Ended::With(-1));
    if !t.sys.can_depart() {
        t.see(format_args!("no monitor to pull the disk"));
        return Ok(());
    }
    let waiting = t.start(|sys| over_the_bytes(sys, path, FOREVER, &[ENXIO]));
    t.sys.sleep_ms(1000 * t.slow);
    let pulled = t.sys.pull();
    let ended = waiting.map(|waiting| t.finish(waiting, 5000));
    t.sys.arrive();
    holds!("departure", ended, Some(Ended::With(GOOD)));
    holds!("the disk goes", pulled, true);
    Ok(())
}

/// A request that is over its limit by itself, by a list and by XPT_SMP_IO.
pub fn h1b(t: &mut Trial<'_>) -> Outcome {
    let Some(node) = t.open(Disk::Scsi) else {
        return Ok(());
    };
    let lowered = limit(t.sys, node.fd, 0, 512);
    holds!("limit", lowered.map(|l| l.1), Ok(512));
    let alone = t.within(8000, |sys| {
        let mut command = Command::new(sys, 8192);
        let mut list = Memory::new(sys, 4096);
        for lens in [&[512usize][..], &[512, 512], &[4096]] {
            let blocks = (lens.iter().sum::<usize>() / 512) as u16;
            command.rw10(false, 0, blocks);
            command.list(&mut list, 0, 0, lens);
            let mut batch = Batch::new(sys, 1);
            batch.set(0, command.ccb.address(), 1);
            let mut what = entered(&batch, 1, 1, 1);
            what.flags = sys::QPASS_ENTER_WAIT_ROOM;
            what.timeout = 2000 * MS;
            match enter(sys, node.fd, what) {
                Ok((1, 1, 0, 0)) if batch.status(0) == sys::CAM_REQ_CMP => {}
                Ok((1, 1, 0, 0)) => return WRONG_ERROR,
                _ => return WRONG_COUNT,
            }
        }
        GOOD
    });
    holds!("a list, alone", alone, Ended::With(GOOD));
    // No SIM here knows SMP; it must be taken all the same, or refused for what
    // it is, and not wait for room.
    let alone = t.within(8000, |sys| {
        let mut command = Command::new(sys, 8192);
        command.immediate(sys::XPT_SMP_IO);
        let data = command.data.address();
        let ccb = command.ccb.ccb_mut();
        ccb.ccb_h.flags = sys::CAM_DIR_BOTH | sys::CAM_DEV_QFRZDIS;
        ccb.ccb_h.timeout = 2000;
        ccb.smpio.smp_request = data as *mut u8;
        ccb.smpio.smp_request_len = 1024;
        ccb.smpio.smp_response = (data + 4096) as *mut u8;
        ccb.smpio.smp_response_len = 1024;
        let mut batch = Batch::new(sys, 1);
        batch.set(0, command.ccb.address(), 1);
        let mut what = entered(&batch, 1, 1, 1);
        what.flags = sys::QPASS_ENTER_WAIT_ROOM;
        what.timeout = 2000 * MS;
        match enter(sys, node.fd, what) {
            Ok((1, 1, 0, 0)) => GOOD,
            Ok((0, 0, error, 0)) if ![EAGAIN, ETIMEDOUT].contains(&error) => GOOD,
            _ => WRONG_COUNT,
        }
    });
    holds!("XPT_SMP_IO, alone", alone, Ended::With(GOOD));
    t.sys.close(node.fd);
    Ok(())
}

/// A cancel of what an iSCSI disk has: its SIM never answers an abort.
pub fn h2(t: &mut Trial<'_>) -> Outcome {
    const N: usize = 4;
    let mut ccb = Command::new(t.sys, 1);
    for path in t.sys.nodes(t.sys.attacked()) {
        let Ok(fd) = t.sys.open(path, RDWR) else {
            continue;
        };
        ccb.immediate(sys::XPT_PATH_INQ);
        let told = ccb.send(t.sys, fd);
        // SAFETY: what the opcode says.
        let name = unsafe { ccb.ccb.ccb().cpi.dev_name };
        let is_iscsi = name[..5].iter().zip(b"iscsi").all(|(a, b)| *a as u8 == *b);
        if told.is_err() || !is_iscsi {
            t.sys.close(fd);
            continue;
        }
        let mut commands: [Command; N] = core::array::from_fn(|_| Command::new(t.sys, 4096));
        for command in &mut commands {
            command.rw10(false, 0, 8);
            holds!("queue", command.queue(t.sys, fd), Ok(()));
        }
        let ended = t.within(20_000, |sys| i32::from(cancel(sys, fd, 0).is_err()));
        holds!((path, "cancel"), ended, Ended::With(0));
        t.sys.close(fd);
        return Ok(());
    }
    t.skipped = Some("there is no iSCSI disk");
    Ok(())
}

/// Reads with retries that are cancelled while a slow disk has them.
pub fn h4(t: &mut Trial<'_>) -> Outcome {
    const N: usize = 8;
    if !t.has_monitor() {
        return Ok(());
    }
    let mut commands: [Command; N] = core::array::from_fn(|_| Command::new(t.sys, 4096));
    for disk in [Disk::Scsi, Disk::Nvme] {
        let Some(node) = t.open(disk) else { continue };
        holds!((disk.name(), "is slow"), t.throttle(disk, 2), true);
        for (i, command) in commands.iter_mut().enumerate() {
            let to = command.data.address();
            node.transfer(command, false, i as u32 * 8, to, 4096);
            let hdr = command.hdr();
            hdr.flags |= sys::CAM_PASS_ERR_RECOVER;
            hdr.retry_count = 8;
            holds!("queue", command.queue(t.sys, node.fd), Ok(()));
        }
        // Some are with the disk now.
        t.sys.sleep_ms(300);
        let start = t.sys.now();
        let told = cancel(t.sys, node.fd, 0);
        let ms = (t.sys.now() - start) / MS;
        t.see(format_args!("{} {told:?} in {ms} ms", disk.name()));
        let Ok([dequeued, aborted, unable, done]) = told else {
            t.let_go();
            holds!("cancel", told.map(|_| ()), Ok(()));
            return Ok(());
        };
        let (mut ended, mut cancelled) = (0, 0);
        for command in &commands {
            match t.reap(&node, command, 10_000) {
                Ok(sys::CAM_REQ_ABORTED) => (ended, cancelled) = (ended + 1, cancelled + 1),
                Ok(_) => ended += 1,
                Err(_) => break,
            }
        }
        t.let_go();
        t.sys.close(node.fd);
        let sum = dequeued + aborted + unable + done;
        holds!((disk.name(), "all were told of"), sum, N as u32);
        holds!((disk.name(), "all ended"), ended, N as u32);
        holds!(
            (disk.name(), "told as cancelled, and ended so"),
            cancelled,
            dequeued + aborted
        );
    }
    Ok(())
}

/// One process submits and waits for room; another that shares its open reaps.
pub fn h5(t: &mut Trial<'_>) -> Outcome {
    const N: usize = 64;
    let Some(node) = t.open(Disk::Scsi) else {
        return Ok(());
    };
    let limited = limit(t.sys, node.fd, 2, 0);
    holds!("limit", limited.map(|l| l.0), Ok(2));
    let mut commands: [Command; N] = core::array::from_fn(|_| Command::new(t.sys, 4096));
    let mut batch = Batch::new(t.sys, N);
    for (i, command) in commands.iter_mut().enumerate() {
        command.rw10(false, i as u32 * 8, 8);
        batch.set(i, command.ccb.address(), i as u64);
    }
    let fd = node.fd;
    let reaper = t.start(|sys| {
        let batch = Batch::new(sys, 16);
        loop {
            let mut what = entered(&batch, 0, 16, 1);
            what.timeout = MS;
            let _ = enter(sys, fd, what);
        }
    });
    let mut lost = None;
    for round in 0..100 {
        let mut what = entered(&batch, N, N, 0);
        what.flags = sys::QPASS_ENTER_WAIT_ROOM;
        what.timeout = 3000 * MS * t.slow;
        let answer = enter(t.sys, fd, what);
        let good = matches!(answer, Ok((n, _, 0, 0)) if n as usize == N);
        if !good {
            lost = Some((round, answer));
            break;
        }
    }
    if let Some(reaper) = reaper {
        t.sys.kill(reaper, crate::freebsd::SIGKILL);
        holds!("the reaper ends", t.sys.wait_ms(reaper, 5000), Some(-1));
    }
    holds!("a call that waited in vain", lost, None);
    t.sys.close(fd);
    Ok(())
}
