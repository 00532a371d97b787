//! What is read is what is there, and nothing else.

use super::super::{Batch, info};
use super::trial::{
    Disk, EAGAIN, MS, NUMBERED, Node, SCRATCH, Sent, Trial, differs, enter, entered, holds, limit,
    number,
};
use conform::{
    Line, Outcome,
    command::{BLOCK, Command},
    sys::{Memory, Sys},
};
use core::fmt::Write;
use sys_bindings as sys;

const O_RDWR: i32 = sys::O_RDWR as i32;
/// What is around the data, and in it before it is read.
const CANARY: u8 = 0xa5;
/// How much of that there is on either side.
const MARGIN: usize = 4096;
const PAGE: usize = 4096;

/// Whether all of some bytes are the canary.
fn untouched(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == CANARY)
}

/// What went wrong with transfers: how many, and the first.
struct Wrong {
    tried: u32,
    wrong: u32,
    first: Line,
}

impl Wrong {
    fn none() -> Self {
        Wrong {
            tried: 0,
            wrong: 0,
            first: Line::new(),
        }
    }

    fn add(&mut self, what: core::fmt::Arguments<'_>) {
        if self.wrong == 0 {
            let _ = self.first.write_fmt(what);
        }
        self.wrong += 1;
    }

    fn judge(&self, t: &mut Trial<'_>) -> Outcome {
        t.see(format_args!("{} transfers", self.tried));
        let what = format_args!(
            "{} of {}, first {}",
            self.wrong,
            self.tried,
            self.first.as_str()
        );
        holds!(what, self.wrong, 0);
        Ok(())
    }
}

/// Sends in one of the ways in turn.
fn send(t: &mut Trial<'_>, node: &Node, command: &Command, turn: u32) -> Sent {
    match turn % 2 {
        0 => t.queue(node, command),
        _ => t.enter_one(node, command),
    }
}

/// Reads and writes of each disk at every address: each byte, and the bytes
/// around, and what was written as it is read back.
pub fn f1(t: &mut Trial<'_>) -> Outcome {
    const MOST: usize = 65536;
    const OFFSETS: [usize; 13] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 256, 1111, 4095];
    let mut wrong = Wrong::none();
    let mut memory = Memory::new(t.sys, MOST + 2 * MARGIN + PAGE);
    let mut command = Command::new(t.sys, MOST);
    for disk in Disk::ALL {
        let Some(node) = t.open(disk) else { continue };
        let mut turn = 0;
        for offset in OFFSETS {
            for len in [512, 4096, 8192, 12288, MOST] {
                turn += 1;
                let at = MARGIN + offset;
                let (end, to) = (at + len, memory.address() + at);
                let lba = turn * 24 % (NUMBERED - 128);
                let name = disk.name();
                // A read.
                memory.bytes_mut().fill(CANARY);
                node.transfer(&mut command, false, lba, to, len);
                let ended = send(t, &node, &command, turn);
                wrong.tried += 1;
                let bytes = memory.bytes();
                let bad = differs(&bytes[at..end], lba, 0);
                let around = untouched(&bytes[..at]) && untouched(&bytes[end..]);
                if (ended, bad, around) != (Ok(sys::CAM_REQ_CMP), None, true) {
                    wrong.add(format_args!(
                        "{name} read offset {offset} len {len}: {ended:x?} wrong at {bad:?} \
                         around whole {around}"
                    ));
                }
                // A write, of blocks that are all others first.
                let blocks = (len / BLOCK) as u32;
                let (salt, lba) = (turn as u8 | 0x80, SCRATCH + 8);
                let data = command.data.bytes_mut();
                number(&mut data[..len], lba, 1);
                let aligned = command.data.address();
                node.transfer(&mut command, true, lba, aligned, len);
                let before = t.command(&node, &command);
                number(&mut memory.bytes_mut()[at..end], lba, salt);
                node.transfer(&mut command, true, lba, to, len);
                let ended = send(t, &node, &command, turn);
                node.transfer(&mut command, false, lba, aligned, len);
                command.data.bytes_mut().fill(CANARY);
                let back = t.command(&node, &command);
                wrong.tried += 1;
                let bad = differs(&command.data.bytes()[..len], lba, salt);
                let good = Ok(sys::CAM_REQ_CMP);
                if (before, ended, back, bad) != (good, good, good, None) {
                    wrong.add(format_args!(
                        "{name} write offset {offset} len {len}, {blocks} blocks: {before:x?} \
                         {ended:x?} {back:x?} wrong at {bad:?}"
                    ));
                }
            }
        }
        lists(t, &node, &mut wrong);
        t.sys.close(node.fd);
    }
    t.skipped = None;
    wrong.judge(t)
}

/// The same by lists of segments at odd addresses and of odd lengths.
fn lists(t: &mut Trial<'_>, node: &Node, wrong: &mut Wrong) {
    const LISTS: [&[usize]; 5] = [
        &[3, 509],
        &[1, 4095],
        &[4096, 4096],
        &[511, 1, 4096 - 512, 4096],
        &[4095, 4097, 8192],
    ];
    if node.disk == Disk::Ata {
        // An ATA CCB has no list.
        return;
    }
    let mut memory = Memory::new(t.sys, 65536);
    let mut list = Memory::new(t.sys, PAGE);
    let mut command = Command::new(t.sys, PAGE);
    for offset in [0, 1, 5, 512, 1111] {
        for (turn, lens) in LISTS.into_iter().enumerate() {
            for gap in [0, 7, PAGE] {
                let len: usize = lens.iter().sum();
                node.transfer(&mut command, false, 16, memory.address(), len);
                memory.bytes_mut().fill(CANARY);
                let mut here = MARGIN + offset;
                for (i, len) in lens.iter().enumerate() {
                    let words = [(memory.address() + here) as u64, *len as u64];
                    for (j, word) in words.into_iter().enumerate() {
                        let to = i * 16 + j * 8;
                        list.bytes_mut()[to..to + 8].copy_from_slice(&word.to_ne_bytes());
                    }
                    here += len + gap;
                }
                node.aim(&mut command, list.address(), len);
                command.hdr().flags |= sys::CAM_DATA_SG;
                let ccb = command.ccb.ccb_mut();
                match node.disk {
                    Disk::Nvme => ccb.nvmeio.sglist_cnt = lens.len() as u16,
                    _ => ccb.csio.sglist_cnt = lens.len() as u16,
                }
                let ended = send(t, node, &command, turn as u32);
                wrong.tried += 1;
                // What the segments hold, one after the other; and between them.
                let mut whole = [0u8; 20480];
                number(&mut whole[..len], 16, 0);
                let (mut here, mut done) = (MARGIN + offset, 0);
                let bytes = memory.bytes();
                let mut good = ended == Ok(sys::CAM_REQ_CMP) && untouched(&bytes[..here]);
                for len in lens {
                    good &= bytes[here..here + len] == whole[done..done + len];
                    (here, done) = (here + len, done + len);
                    good &= untouched(&bytes[here..here + gap]);
                    here += gap;
                }
                if !(good && untouched(&bytes[here..])) {
                    wrong.add(format_args!(
                        "{} list {lens:?} offset {offset} gap {gap}: {ended:x?}",
                        node.disk.name()
                    ));
                }
            }
        }
    }
    memory.unmap(t.sys);
    list.unmap(t.sys);
    command.free(t.sys);
}

/// A read of one block with room for four: QEMU tells a negative residual.
pub fn f5(t: &mut Trial<'_>) -> Outcome {
    let Some(node) = t.open(Disk::Scsi) else {
        return Ok(());
    };
    let mut command = Command::new(t.sys, 16384);
    for len in [2048usize, 8192] {
        for turn in 0..2 {
            command.rw10(false, 24, 1);
            command.csio().dxfer_len = len as u32;
            command.data.bytes_mut().fill(CANARY);
            let ended = send(t, &node, &command, turn);
            holds!((len, turn), ended, Ok(sys::CAM_REQ_CMP));
            let bytes = command.data.bytes();
            let bad = differs(&bytes[..BLOCK], 24, 0);
            let resid = command.ended().resid;
            holds!((len, turn, "residual", resid, "differs at"), bad, None);
            holds!((len, turn, "behind it"), untouched(&bytes[len..]), true);
        }
        t.see(format_args!("{len}: residual {:#x}", command.ended().resid));
    }
    t.sys.close(node.fd);
    Ok(())
}

/// Many long reads at odd addresses, all at once: more than busdma has bounce
/// pages for.
pub fn m1(t: &mut Trial<'_>) -> Outcome {
    const N: usize = 120;
    const ROOM: u64 = 256 << 20;
    const NAMES: [&str; 2] = [
        "kern.cam.qpass.max_bytes",
        "kern.cam.qpass.device_max_bytes",
    ];
    if !t.has_monitor() {
        return Ok(());
    }
    let Some(node) = t.open(Disk::Nvme) else {
        return Ok(());
    };
    let maxio = info(t.sys, node.fd).map_or(0, |i| i.maxio as usize);
    let len = maxio.min(512 << 10) / BLOCK * BLOCK;
    holds!("it takes a block", len >= BLOCK, true);
    let usual = NAMES.map(|name| t.sys.sysctl_number(name));
    let raised = NAMES.map(|name| t.sys.set_sysctl(name, ROOM));
    t.sys.close(node.fd);
    let Some(node) = t.open(Disk::Nvme) else {
        return Ok(());
    };
    let room = limit(t.sys, node.fd, 0, 0).map(|l| l.1);
    holds!("the NVMe disk is slow", t.throttle(Disk::Nvme, 5), true);
    let mut memory = Memory::new(t.sys, N * (len + PAGE));
    memory.bytes_mut().fill(CANARY);
    let mut commands: [Command; N] = core::array::from_fn(|_| Command::new(t.sys, 1));
    let (mut queued, mut error) = (0, Ok(()));
    for (i, command) in commands.iter_mut().enumerate() {
        let to = memory.address() + i * (len + PAGE) + 2 * (i % 200) + 1;
        node.transfer(command, false, i as u32 * 8, to, len);
        command.hdr().timeout = 120_000;
        error = command.queue(t.sys, node.fd);
        if error.is_err() {
            break;
        }
        queued += 1;
    }
    t.sys.sleep_ms(2000);
    t.let_go();
    let (mut good, mut wrong) = (0, 0);
    let into = Command::new(t.sys, 1);
    for _ in 0..queued {
        match t.reap(&node, &into, 30_000) {
            Ok(sys::CAM_REQ_CMP) => good += 1,
            _ => break,
        }
    }
    for i in 0..queued {
        let at = i * (len + PAGE) + 2 * (i % 200) + 1;
        let bytes = &memory.bytes()[at..at + len];
        wrong += usize::from(differs(bytes, i as u32 * 8, 0).is_some());
    }
    for (name, usual) in NAMES.iter().zip(usual) {
        t.sys.set_sysctl(name, usual.unwrap_or(ROOM));
    }
    t.sys.close(node.fd);
    t.see(format_args!(
        "{queued} reads of {len}, limit {room:?}, raised {raised:?}"
    ));
    // What is copied may be too much for the limits of a small machine.
    let is_limit = error == Ok(()) || error == Err(EAGAIN);
    holds!(("queue", error), is_limit && queued > 0, true);
    holds!("ended well", good, queued);
    holds!("with wrong data", wrong, 0);
    Ok(())
}

/// A short read into a long buffer at an odd address, after the bounce pages
/// carried somebody else's data.
pub fn m2(t: &mut Trial<'_>) -> Outcome {
    const LEN: usize = 65536;
    const SALT: u8 = 0x77;
    let Some(node) = t.open(Disk::Ata) else {
        return Ok(());
    };
    let Some(fd) = Disk::Ata
        .block_device(t.sys)
        .and_then(|path| t.sys.open(path, O_RDWR).ok())
    else {
        return Ok(());
    };
    let mut theirs = Memory::new(t.sys, LEN + 2 * PAGE);
    let mut mine = Memory::new(t.sys, LEN + 2 * PAGE);
    let mut command = Command::new(t.sys, 1);
    // By the disk's own driver, so that busdma bounces it, whatever this driver
    // does: a program of somebody else's. Often enough that every bounce page
    // had its turn.
    let pages = (0..8).filter_map(|zone| {
        let mut name = Line::new();
        let _ = write!(name, "hw.busdma.zone{zone}.total_bpages");
        t.sys.sysctl_number(name.as_str())
    });
    let pages = pages.max().unwrap_or(0) as usize;
    for i in 0..pages / (LEN / PAGE) + 4 {
        let at = 1 + 2 * (i % 4);
        number(&mut theirs.bytes_mut()[at..at + LEN], SCRATCH + 256, SALT);
        let bytes = &theirs.bytes()[at..at + LEN];
        let written = t.sys.pwrite(fd, bytes, (SCRATCH as usize + 256) * BLOCK);
        holds!(("pwrite", i), written, true);
    }
    t.see(format_args!("{pages} bounce pages"));
    for round in 0..8 {
        mine.bytes_mut().fill(CANARY);
        let at = [1, 3, 513, 1111][round % 4];
        let to = mine.address() + at;
        node.transfer(&mut command, false, 32, to, LEN);
        let ccb = command.ccb.ccb_mut();
        ccb.ataio.cmd.sector_count = 1;
        ccb.ataio.cmd.sector_count_exp = 0;
        let ended = send(t, &node, &command, round as u32);
        holds!(("read", round), ended, Ok(sys::CAM_REQ_CMP));
        let bytes = mine.bytes();
        let bad = differs(&bytes[at..at + BLOCK], 32, 0);
        holds!(("the block", round), bad, None);
        let stale = bytes[at + BLOCK..at + LEN]
            .iter()
            .filter(|byte| ![CANARY, 0].contains(*byte))
            .count();
        holds!(("somebody else's bytes behind it", round), stale, 0);
        let around = untouched(&bytes[..at]) && untouched(&bytes[at + LEN..]);
        holds!(("around it", round), around, true);
    }
    t.sys.close(fd);
    t.sys.close(node.fd);
    Ok(())
}

/// Reads that are done and not reaped: their pages are the process's again.
pub fn m9(t: &mut Trial<'_>) -> Outcome {
    const N: usize = 96;
    const LEN: usize = 65536;
    const WIRED: &str = "vm.stats.vm.v_wire_count";
    let Some(node) = t.open(Disk::Scsi) else {
        return Ok(());
    };
    let zero_copied = |t: &mut Trial<'_>| info(t.sys, node.fd).map_or(0, |i| i.zerocopy_bytes);
    let moved = zero_copied(t);
    let mut commands: [Command; N] = core::array::from_fn(|_| Command::new(t.sys, 1));
    // Once before it is measured, so that zones have what they want.
    let (mut before, mut after) = (0, 0);
    let mut taken = 0;
    for _ in 0..2 {
        let mut memory = Memory::new(t.sys, N * LEN);
        memory.bytes_mut().fill(CANARY);
        let mut batch = Batch::new(t.sys, N);
        for (i, command) in commands.iter_mut().enumerate() {
            let to = memory.address() + i * LEN;
            node.transfer(command, false, i as u32 * 8, to, LEN);
            batch.set(i, command.ccb.address(), i as u64);
        }
        before = t.sys.sysctl_number(WIRED).unwrap_or(0);
        let submitted = enter(t.sys, node.fd, entered(&batch, N, 0, 0));
        taken = submitted.map_or(0, |done| done.0);
        // All have come back when none is outstanding.
        for _ in 0..200 {
            if info(t.sys, node.fd).is_some_and(|i| i.outstanding == 0) {
                break;
            }
            t.sys.sleep_ms(50);
        }
        memory.unmap(t.sys);
        t.sys.sleep_ms(300);
        after = t.sys.sysctl_number(WIRED).unwrap_or(0);
        let mut what = entered(&batch, 0, N, taken as usize);
        what.timeout = 10_000 * MS;
        let reaped = enter(t.sys, node.fd, what);
        holds!("reaped", reaped.map(|done| done.1), Ok(taken));
        batch.memory.unmap(t.sys);
    }
    let moved = zero_copied(t) - moved;
    t.sys.close(node.fd);
    let pages = taken as u64 * (LEN / PAGE) as u64;
    t.see(format_args!(
        "{taken} reads, {pages} pages, wired before {before}, after {after}"
    ));
    holds!(("zero copy moved", moved), moved > 0, true);
    holds!(
        (
            "pages that stayed wired",
            after.saturating_sub(before),
            "of",
            pages
        ),
        after < before + pages / 4,
        true
    );
    Ok(())
}

/// A read into a shared mapping of a file: the file has it.
pub fn m10(t: &mut Trial<'_>) -> Outcome {
    const LEN: usize = 65536;
    const FILE: &str = "/tmp/m10";
    let Some(node) = t.open(Disk::Scsi) else {
        return Ok(());
    };
    if let Err(errno) = t.sys.mount("tmpfs", "/tmp") {
        t.see(format_args!("errno {errno}"));
        t.skipped = Some("no file system that can be written: no tmpfs on /tmp");
        return Ok(());
    }
    let flags = O_RDWR | sys::O_CREAT as i32;
    let Ok(file) = t.sys.open(FILE, flags) else {
        t.skipped = Some("no file can be made on the tmpfs");
        return Ok(());
    };
    let mut memory = Memory::new(t.sys, LEN);
    holds!("write", t.sys.pwrite(file, memory.bytes(), 0), true);
    let mapped = t.sys.map_shared_file(file, LEN);
    holds!("mmap", mapped.map(|_| ()), Ok(()));
    let at = mapped.unwrap_or(core::ptr::null_mut());
    let mut command = Command::new(t.sys, 1);
    node.transfer(&mut command, false, 40, at as usize, LEN);
    let ended = t.queue(&node, &command);
    holds!("read", ended, Ok(sys::CAM_REQ_CMP));
    // SAFETY: mapped a moment ago, and not used any more.
    unsafe { t.sys.unmap(at, LEN) };
    let read = t.sys.pread(file, &mut memory, LEN, 0);
    holds!("read(2)", read, true);
    holds!("the file differs at", differs(memory.bytes(), 40, 0), None);
    t.see(format_args!("on tmpfs, which nothing cleans"));
    t.sys.close(file);
    t.sys.close(node.fd);
    Ok(())
}
