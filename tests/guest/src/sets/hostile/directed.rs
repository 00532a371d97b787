//! Programs that were thought of, each against a part of the kernel that the
//! driver hands a program's numbers to.

use super::super::faults::trial::{self, Disk, EINVAL, Trial, cancel, holds};
use super::Dice;
use crate::freebsd::FreeBsd;
use conform::{
    Outcome,
    command::Command,
    sys::{Fd, Memory, Sys},
};
use sys_bindings as sys;

type Program = (&'static str, u64, fn(&mut Trial<'_>) -> Outcome);

/// Those that can panic a driver that does not look, or keep it busy, come last.
pub const PROGRAMS: &[Program] = &[
    ("cdb-flag", 30, cdb_flag),
    ("abandoned", 60, abandoned),
    ("requeue", 30, requeue),
    ("settings", 40, settings),
    ("physpath", 30, physpath),
    ("physpaths", 60, physpaths),
    ("openings", 30, |t| openings(t, true, false)),
    ("reprobe", 100, reprobe),
    ("retries", 60, retries),
    ("cdb", 30, cdb),
    ("priorities", 60, priorities),
    ("dequeued", 60, dequeued),
    ("more-openings", 30, |t| openings(t, false, true)),
    ("reprobes", 40, reprobes),
];

/// A command with all the retries that there are, and a time that it cannot keep.
fn retries(t: &mut Trial<'_>) -> Outcome {
    let Some(node) = t.open(Disk::Scsi) else {
        return Ok(());
    };
    let slow = t.has_monitor() && t.throttle_bytes(Disk::Scsi, 10_000);
    let ended = t.within(5000, |sys| {
        let mut command = Command::new(sys, 65536);
        command.rw10(false, 0, 128);
        let hdr = command.hdr();
        hdr.flags |= sys::CAM_PASS_ERR_RECOVER;
        (hdr.retry_count, hdr.timeout) = (u16::MAX, 100);
        i32::from(command.send(sys, node.fd).is_err())
    });
    trial::let_go(t.sys);
    t.see(format_args!("slow {slow}, {ended:?}"));
    holds!(
        "it ends, or SIGKILL ends it",
        ended == trial::Ended::Unkillable,
        false
    );
    Ok(())
}

/// What the SIM hands back to be sent again, for ever.
fn requeue(t: &mut Trial<'_>) -> Outcome {
    let Some(node) = t.open(Disk::Ata) else {
        return Ok(());
    };
    let ended = t.within(5000, |sys| {
        let mut command = Command::new(sys, 4096);
        node.without_data(&mut command);
        command.ccb.ccb_mut().ataio.cmd.command = 0xff;
        let hdr = command.hdr();
        hdr.flags |= sys::CAM_PASS_ERR_RECOVER;
        hdr.retry_count = 0;
        i32::from(command.send(sys, node.fd).is_err())
    });
    t.see(format_args!("{ended:?}"));
    holds!(
        "it ends, or SIGKILL ends it",
        ended == trial::Ended::Unkillable,
        false
    );
    Ok(())
}

/// Probing the device anew, so many times, and then a read by its driver.
fn reprobe(t: &mut Trial<'_>) -> Outcome {
    for disk in Disk::ALL {
        let Some(node) = t.open(disk) else { continue };
        let mut command = Command::new(t.sys, 1);
        for times in [10, 100, 1000] {
            for _ in 0..times {
                command.immediate(sys::XPT_REPROBE_LUN);
                let _ = command.queue(t.sys, node.fd);
                while command.get(t.sys, node.fd).is_ok() {}
            }
            let start = t.sys.now();
            let answers = t.answers(disk, 60_000);
            let ms = (t.sys.now() - start) / 1_000_000;
            t.see(format_args!("{} {times}: {ms} ms;", disk.name()));
            let is_soon = answers && ms < 5000 * t.slow;
            holds!((disk.name(), times, "its driver reads"), is_soon, true);
        }
        t.sys.close(node.fd);
    }
    t.skipped = None;
    Ok(())
}

/// Transfer settings that no driver asks for.
fn settings(t: &mut Trial<'_>) -> Outcome {
    for disk in Disk::ALL {
        let Some(node) = t.open(disk) else { continue };
        let mut command = Command::new(t.sys, 1);
        for fill in [0u8, 0xff, 1] {
            for (kind, protocol, transport) in [
                (0, 2, 2),
                (1, 2, 2),
                (0, 4, 6),
                (0, 3, 5),
                (1, 4, 6),
                (0, 0, 0),
                (0, 0xff, 0xff),
            ] {
                command.immediate(sys::XPT_SET_TRAN_SETTINGS);
                let ccb = command.ccb.ccb_mut();
                // SAFETY: plain data.
                unsafe {
                    let cts = &mut ccb.cts;
                    let hdr = cts.ccb_h;
                    (&raw mut *cts).write_bytes(fill, 1);
                    cts.ccb_h = hdr;
                    (cts.type_, cts.protocol, cts.transport) = (kind, protocol, transport);
                    // Every field of the protocol's and the transport's counts.
                    let specific = (&raw mut cts.proto_specific).cast::<u32>();
                    specific.write(0xff);
                    let specific = (&raw mut cts.xport_specific).cast::<u32>();
                    specific.write(0xffff);
                }
                let _ = command.send(t.sys, node.fd);
            }
        }
        let answers = t.answers(disk, 10_000);
        holds!((disk.name(), "answers its driver"), answers, true);
        t.sys.close(node.fd);
    }
    t.skipped = None;
    Ok(())
}

/// A physical path with no end, which the disk's own driver then asks for.
fn physpath(t: &mut Trial<'_>) -> Outcome {
    for disk in Disk::ALL {
        let Some(node) = t.open(disk) else { continue };
        let mut command = Command::new(t.sys, 131_072);
        let mut said = [Ok(0); 7];
        for (i, (len, byte)) in [
            (1024usize, b'A'),
            (1023, b'A'),
            (255, b'/'),
            (256, b'.'),
            (1, b'a'),
            (8192, 0xff),
            (0, 0),
        ]
        .into_iter()
        .enumerate()
        {
            command.immediate(sys::XPT_DEV_ADVINFO);
            command.data.bytes_mut()[..len].fill(byte);
            let to = command.data.address();
            let ccb = command.ccb.ccb_mut();
            {
                ccb.cdai.flags = sys::CDAI_FLAG_STORE;
                ccb.cdai.buftype = sys::CDAI_TYPE_PHYS_PATH;
                ccb.cdai.bufsiz = len as _;
                ccb.cdai.buf = to as *mut u8;
            }
            said[i] = t.queue(&node, &command);
            // It is told later.
            t.sys.sleep_ms(300);
        }
        t.see(format_args!("{} {said:x?};", disk.name()));
        let answers = t.answers(disk, 10_000);
        holds!((disk.name(), "answers its driver"), answers, true);
        t.sys.close(node.fd);
    }
    t.skipped = None;
    Ok(())
}

/// Commands of any length, by a pointer, to whatever there is.
fn cdb(t: &mut Trial<'_>) -> Outcome {
    let mut memory = Memory::new(t.sys, 4096);
    memory.bytes_mut()[255] = 1;
    let mut command = Command::new(t.sys, 4096);
    for path in t.sys.nodes(t.sys.attacked()) {
        let Ok(fd) = t.sys.open(path, sys::O_RDWR as i32) else {
            continue;
        };
        let mut odd = 0;
        for len in [6u8, 16, 17, 32, 33, 64, 128, 255] {
            // TEST UNIT READY.
            command.test_unit_ready();
            command.hdr().flags |= sys::CAM_CDB_POINTER;
            let csio = command.csio();
            (csio.cdb_len, csio.cdb_io.cdb_ptr) = (len, memory.address() as *mut u8);
            let answer = command.send(t.sys, fd);
            if len > 16 && answer != Err(EINVAL) {
                odd += 1;
                holds!((path, "the length of a CDB"), len <= 32, true);
            }
            t.see(format_args!(
                "{len} {answer:?} {:#x}",
                command.ended().status
            ));
        }
        t.see(format_args!("{path} took {odd} long ones;"));
        let _ = cancel(t.sys, fd, 0);
        t.sys.close(fd);
    }
    Ok(())
}

/// How long a disk's own driver waits for one block while `n` processes do `what`
/// again and again: the longest of some seconds, in milliseconds.
fn storm(t: &mut Trial<'_>, disk: Disk, n: usize, what: fn(&mut FreeBsd, Fd)) -> u64 {
    let mut pids = [None; 4];
    for pid in &mut pids[..n] {
        *pid = t.start(|sys| {
            let mut all = sys.nodes(sys.attacked());
            let path = all.find(|path| sys.kind(path).is_some_and(|kind| disk.is_of(&kind)));
            let fd = path.and_then(|path| sys.open(path, sys::O_RDWR as i32).ok());
            let Some(fd) = fd else { return 1 };
            loop {
                what(sys, fd);
            }
        });
    }
    t.sys.sleep_ms(1000);
    let end = t.sys.now() + 6_000_000_000;
    let mut longest = 0;
    while t.sys.now() < end {
        let start = t.sys.now();
        disk.read_by_its_driver(t.sys);
        longest = longest.max((t.sys.now() - start) / 1_000_000);
        t.sys.sleep_ms(50);
    }
    for pid in pids.into_iter().flatten() {
        t.sys.kill(pid, crate::freebsd::SIGKILL);
        t.sys.wait_ms(pid, 10_000);
    }
    longest
}

/// Probing anew, by a process that does nothing else.
fn reprobes(t: &mut Trial<'_>) -> Outcome {
    let longest = storm(t, Disk::Scsi, 1, |sys, fd| {
        let mut command = Command::new(sys, 1);
        command.immediate(sys::XPT_REPROBE_LUN);
        for _ in 0..1000 {
            let _ = command.queue(sys, fd);
        }
        while command.get(sys, fd).is_ok() {}
        command.free(sys);
    });
    t.see(format_args!("da waits {longest} ms"));
    holds!("da waits long", longest > 5000 * t.slow, false);
    Ok(())
}

/// Physical paths, one after the other, by some processes at once.
fn physpaths(t: &mut Trial<'_>) -> Outcome {
    const WIRED: &str = "vm.stats.vm.v_wire_count";
    let before = t.sys.sysctl_number(WIRED).unwrap_or(0);
    let longest = storm(t, Disk::Scsi, 3, |sys, fd| {
        let mut command = Command::new(sys, 4096);
        for i in 0..1000 {
            command.immediate(sys::XPT_DEV_ADVINFO);
            command.data.bytes_mut()[..8].copy_from_slice(&[b'a' + i as u8 % 26; 8]);
            let to = command.data.address();
            let ccb = command.ccb.ccb_mut();
            ccb.cdai.flags = sys::CDAI_FLAG_STORE;
            ccb.cdai.buftype = sys::CDAI_TYPE_PHYS_PATH;
            ccb.cdai.bufsiz = 8;
            ccb.cdai.buf = to as *mut u8;
            let _ = command.queue(sys, fd);
            let _ = command.get(sys, fd);
        }
        command.free(sys);
    });
    let after = t.sys.sysctl_number(WIRED).unwrap_or(0);
    t.see(format_args!(
        "da waits {longest} ms, wired {before} then {after} pages;"
    ));
    // How long what was stored keeps the kernel at work.
    let node = t.open(Disk::Scsi);
    let mut last = Command::new(t.sys, 4096);
    last.immediate(sys::XPT_DEV_ADVINFO);
    last.data.bytes_mut()[..8].copy_from_slice(b"lastpath");
    let to = last.data.address();
    let ccb = last.ccb.ccb_mut();
    ccb.cdai.flags = sys::CDAI_FLAG_STORE;
    ccb.cdai.buftype = sys::CDAI_TYPE_PHYS_PATH;
    ccb.cdai.bufsiz = 8;
    ccb.cdai.buf = to as *mut u8;
    let start = t.sys.now();
    if let Some(node) = node {
        let _ = last.queue(t.sys, node.fd);
        while !t.sys.is_there("/dev/lastpath/qpass0") && !t.sys.is_there("/dev/lastpath/qpass1") {
            t.sys.sleep_ms(20);
            if t.sys.now() - start > 20_000_000_000 {
                break;
            }
        }
    }
    let ms = (t.sys.now() - start) / 1_000_000;
    let settled = t.sys.sysctl_number(WIRED).unwrap_or(0);
    t.see(format_args!("an alias came {ms} ms later, wired {settled}"));
    Ok(())
}

/// Retries of a request that nobody waits for any more.
fn abandoned(t: &mut Trial<'_>) -> Outcome {
    let Some(node) = t.open(Disk::Scsi) else {
        return Ok(());
    };
    let is_slow = t.has_monitor() && t.throttle_bytes(Disk::Scsi, 20_000);
    let mut commands: [Command; 4] = core::array::from_fn(|_| Command::new(t.sys, 65536));
    for command in &mut commands {
        command.rw10(false, 0, 128);
        let hdr = command.hdr();
        hdr.flags |= sys::CAM_PASS_ERR_RECOVER;
        (hdr.retry_count, hdr.timeout) = (u16::MAX, 100);
        let _ = command.queue(t.sys, node.fd);
    }
    t.sys.sleep_ms(500);
    t.sys.close(node.fd);
    let start = t.sys.now();
    let mut left = 1;
    while left != 0 && t.sys.now() - start < 15_000_000_000 {
        t.sys.sleep_ms(100);
        left = super::outstanding(t.sys);
    }
    let ms = (t.sys.now() - start) / 1_000_000;
    trial::let_go(t.sys);
    t.see(format_args!("slow {is_slow}, {left} left after {ms} ms"));
    holds!("all have come back", left, 0);
    Ok(())
}

/// Makes a read of an ATA disk READ FPDMA QUEUED, of as many blocks.
fn tag(command: &mut Command) {
    // SAFETY: plain data.
    let cmd = unsafe { &mut command.ccb.ccb_mut().ataio.cmd };
    cmd.flags = (sys::CAM_ATAIO_48BIT | sys::CAM_ATAIO_FPDMA) as u8;
    cmd.command = 0x60;
    (cmd.features, cmd.features_exp) = (cmd.sector_count, cmd.sector_count_exp);
    (cmd.sector_count, cmd.sector_count_exp) = (0, 0);
}

/// Commands that are cancelled where they wait in CAM's queue, many times, and then
/// more for the device than it has slots for. ahci(4) takes NCQ commands and others
/// only by turns, so that the second waits.
fn dequeued(t: &mut Trial<'_>) -> Outcome {
    const N: usize = 30;
    let Some(node) = t.open(Disk::Ata) else {
        return Ok(());
    };
    let mut commands: [Command; N] = core::array::from_fn(|_| Command::new(t.sys, 4096));
    let slow = t.has_monitor() && t.throttle(Disk::Ata, 50);
    let mut counts = [0; 4];
    for _ in 0..20 {
        let mut queued = 0;
        for (i, command) in commands.iter_mut().enumerate() {
            let to = command.data.address();
            node.transfer(command, false, 0, to, 4096);
            if i == 0 {
                tag(command);
            }
            queued += usize::from(command.queue(t.sys, node.fd).is_ok());
        }
        let told = cancel(t.sys, node.fd, 0);
        holds!("cancel", told.is_ok(), true);
        for (sum, n) in counts.iter_mut().zip(told.unwrap_or_default()) {
            *sum += n;
        }
        for command in &commands[..queued] {
            let reaped = t.reap(&node, command, 10_000);
            holds!("reaped", reaped.is_ok(), true);
        }
    }
    trial::let_go(t.sys);
    t.see(format_args!("slow {slow}, {counts:?};"));
    for command in commands {
        command.free(t.sys);
    }
    // Beside those that are queued, which the driver bounds by itself.
    let mut pids = [None; 24];
    for pid in &mut pids {
        let kind = t.sys.kind(node.path);
        let Some(kind) = kind else { break };
        let node = trial::Node { kind, ..node };
        *pid = t.start(|sys| {
            let mut command = Command::new(sys, 65536);
            loop {
                let to = command.data.address();
                node.transfer(&mut command, false, 0, to, 65536);
                let _ = command.send(sys, node.fd);
            }
        });
    }
    let ended = openings(t, false, false);
    for pid in pids.into_iter().flatten() {
        t.sys.kill(pid, crate::freebsd::SIGKILL);
        let killed = t.sys.wait_ms(pid, 10_000 * t.slow).is_some();
        holds!("a process ends", killed, true);
    }
    ended
}

/// Commands that CAM answers without having queued them, and then more for the
/// device than it has room for.
fn openings(t: &mut Trial<'_>, tagged: bool, most: bool) -> Outcome {
    const N: usize = 128;
    let Some(node) = t.open(Disk::Ata) else {
        return Ok(());
    };
    let mut refused = Command::new(t.sys, 1);
    for _ in 0..64 {
        refused.test_unit_ready();
        let sent = t.command(&node, &refused);
        holds!("a SCSI command to an ATA disk", sent.is_ok(), true);
    }
    if most {
        refused.immediate(sys::XPT_REL_SIMQ);
        let ccb = refused.ccb.ccb_mut();
        ccb.crs.release_flags = sys::RELSIM_ADJUST_OPENINGS;
        ccb.crs.openings = 255;
        let sent = t.command(&node, &refused);
        holds!("more openings than slots", sent, Err(EINVAL));
        // Of whatever the SIM does take, all of it.
        for openings in (1..255).rev() {
            refused.ccb.ccb_mut().crs.openings = openings;
            if t.command(&node, &refused).is_ok() {
                t.see(format_args!("{openings} openings;"));
                break;
            }
        }
    }
    let mut commands: [Command; N] = core::array::from_fn(|_| Command::new(t.sys, 65536));
    let slow = t.has_monitor() && t.throttle(Disk::Ata, 10);
    t.see(format_args!("slow {slow}"));
    let mut good = 0;
    for command in &mut commands {
        let to = command.data.address();
        node.transfer(command, false, 0, to, 65536);
        if tagged {
            tag(command);
        }
        good += usize::from(command.queue(t.sys, node.fd) == Ok(()));
    }
    t.sys.sleep_ms(1000);
    trial::let_go(t.sys);
    let mut ended = 0;
    for _ in 0..good {
        ended += usize::from(t.reap(&node, &refused, 10_000) == Ok(sys::CAM_REQ_CMP));
    }
    t.see(format_args!("{good} queued, {ended} ended well"));
    holds!("all ended well", ended, good);
    Ok(())
}

/// The flag that says that a CDB is elsewhere, in CCBs that have no CDB.
fn cdb_flag(t: &mut Trial<'_>) -> Outcome {
    const WORD: usize = core::mem::offset_of!(sys::ccb_scsiio, cdb_io) / 8;
    let mut command = Command::new(t.sys, 4096);
    for disk in Disk::ALL {
        let Some(node) = t.open(disk) else { continue };
        for opcode in [
            0,
            sys::XPT_NOOP,
            sys::XPT_PATH_INQ,
            sys::XPT_GDEVLIST,
            sys::XPT_PATH_STATS,
            sys::XPT_GET_TRAN_SETTINGS,
            sys::XPT_SMP_IO,
            sys::XPT_MMC_GET_TRAN_SETTINGS,
        ] {
            if opcode == 0 {
                let to = command.data.address();
                node.transfer(&mut command, false, 0, to, 4096);
                if disk == Disk::Scsi {
                    continue;
                }
            } else {
                command.immediate(opcode);
            }
            command.hdr().flags |= sys::CAM_CDB_POINTER;
            let _ = t.command(&node, &command);
            let at = command.ccb.address() as *const u64;
            // SAFETY: inside the CCB.
            let word = unsafe { at.add(WORD).read_volatile() };
            holds!((disk.name(), opcode, "a word of the CCB"), word, 0);
        }
        t.sys.close(node.fd);
    }
    t.skipped = None;
    Ok(())
}

/// Synchronous commands of several priorities, at once: CAM gives a CCB to the
/// call that asks for its very priority, and may be left with one that nobody asks
/// for.
fn priorities(t: &mut Trial<'_>) -> Outcome {
    const N: u32 = 12;
    let Some(node) = t.open(Disk::Scsi) else {
        return Ok(());
    };
    let mut pids = [None; N as usize];
    for (i, pid) in pids.iter_mut().enumerate() {
        *pid = t.start(|sys| {
            let mut command = Command::new(sys, 4096);
            let mut dice = Dice::new(i as u64);
            loop {
                if dice.one_in(8) {
                    command.immediate(sys::XPT_REL_SIMQ);
                    let ccb = command.ccb.ccb_mut();
                    ccb.crs.release_flags = sys::RELSIM_ADJUST_OPENINGS;
                    ccb.crs.openings = dice.of(&[1, 2, 4, 8]);
                } else {
                    command.rw10(false, 0, 8);
                }
                command.hdr().pinfo.priority = 0x1000 + dice.below(1 << 20) as u32;
                let _ = command.send(sys, node.fd);
            }
        });
    }
    t.sys.sleep_ms(10_000 * t.slow);
    let mut stuck = 0;
    for pid in pids.into_iter().flatten() {
        t.sys.kill(pid, crate::freebsd::SIGKILL);
        stuck += u32::from(t.sys.wait_ms(pid, 5000).is_none());
    }
    let fd = node.fd;
    let after = t.within(5000, |sys| {
        let mut command = Command::new(sys, 4096);
        command.rw10(false, 0, 8);
        i32::from(command.send(sys, fd).is_err())
    });
    t.see(format_args!("{stuck} of {N} stuck, one more {after:?}"));
    holds!("stuck", stuck, 0);
    holds!("one more", after, trial::Ended::With(0));
    Ok(())
}
