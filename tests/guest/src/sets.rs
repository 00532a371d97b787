//! The named test sets, beside the conformance suite: what wants a real kernel,
//! its SIMs, its processes and its other pass-through driver.

use crate::freebsd::{FreeBsd, Kind, Nodes};
use conform::{
    Line, Score,
    command::{BLOCK, Command},
    sys::{Fd, Memory, Sys, call},
};
use core::fmt::Write;
use sys_bindings as sys;

const RDWR: i32 = sys::O_RDWR as i32;
const POLLIN: i16 = sys::POLLIN as i16;

/// Counts what is found, and prints it.
pub struct Sheet<'a> {
    pub sys: &'a mut FreeBsd,
    pub score: Score,
}

impl Sheet<'_> {
    /// What a finding that is not good was.
    fn note(&mut self, what: core::fmt::Arguments<'_>) {
        let mut line = Line::new();
        let _ = line.write_fmt(what);
        self.sys.print(line.as_str());
    }

    /// One finding, with the node that it is of.
    fn check(&mut self, what: &str, of: &str, good: bool) {
        let mut line = Line::new();
        let word = if good { "ok  " } else { "FAIL" };
        let _ = write!(line, "{word} {what} {of}");
        self.sys.print(line.as_str());
        if good {
            self.score.passed += 1;
        } else {
            self.score.failed += 1;
        }
    }

    fn skip(&mut self, what: &str, why: &str) {
        let mut line = Line::new();
        let _ = write!(line, "skip {what}: {why}");
        self.sys.print(line.as_str());
        self.score.skipped += 1;
    }
}

/// A batch of submissions and completions, and a call.
struct Batch {
    memory: Memory,
    room: usize,
}

const SUBMISSIONS: usize = 128;

impl Batch {
    fn new(sys: &mut FreeBsd, room: usize) -> Self {
        let bytes =
            room * (size_of::<sys::qpass_submission>() + size_of::<sys::qpass_completion>());
        Batch {
            memory: Memory::new(sys, SUBMISSIONS + bytes),
            room,
        }
    }

    fn completions(&self) -> usize {
        SUBMISSIONS + self.room * size_of::<sys::qpass_submission>()
    }

    fn set(&mut self, i: usize, ccb: usize, tag: u64) {
        let at = SUBMISSIONS + i * size_of::<sys::qpass_submission>();
        let words = [ccb as u64, tag, 0];
        for (j, word) in words.iter().enumerate() {
            let to = at + j * 8;
            self.memory.bytes_mut()[to..to + 8].copy_from_slice(&word.to_ne_bytes());
        }
    }

    /// QPIOC_ENTER: how many were submitted and reaped, and the two errnos.
    fn enter(
        &mut self,
        sys: &mut FreeBsd,
        fd: Fd,
        submit: usize,
        reap: usize,
    ) -> Result<(usize, usize, i32, i32), i32> {
        // SAFETY: integers.
        let mut what: sys::qpass_enter = unsafe { core::mem::zeroed() };
        what.submissions = (self.memory.address() + SUBMISSIONS) as u64;
        what.completions = (self.memory.address() + self.completions()) as u64;
        (what.to_submit, what.to_complete) = (submit as u32, reap as u32);
        what.min_complete = reap as u32;
        what.timeout = 20_000_000_000;
        let done = call(sys, fd, sys::QPC_QPIOC_ENTER, what)?;
        Ok((
            done.submitted as usize,
            done.completed as usize,
            done.submit_error,
            done.complete_error,
        ))
    }

    /// The CAM status of a completion.
    fn status(&self, i: usize) -> u32 {
        let at = self.completions() + i * size_of::<sys::qpass_completion>() + 16;
        let bytes = &self.memory.bytes()[at..at + 4];
        bytes.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b)) & sys::CAM_STATUS_MASK
    }
}

/// Makes a read or a write of `blocks` blocks of whatever the device speaks.
fn transfer(command: &mut Command, kind: &Kind, write: bool, lba: u32, blocks: u16, len: usize) {
    let direction = if write {
        sys::CAM_DIR_OUT
    } else {
        sys::CAM_DIR_IN
    };
    command.rw10(write, lba, blocks);
    // SAFETY: a CCB of plain data.
    unsafe {
        let data = command.csio().data_ptr;
        let ccb = command.ccb.ccb_mut();
        match kind.protocol {
            sys::PROTO_ATA => {
                *ccb = core::mem::zeroed();
                let io = &mut ccb.ataio;
                io.ccb_h.func_code = sys::XPT_ATA_IO;
                io.cmd.flags = (sys::CAM_ATAIO_48BIT | sys::CAM_ATAIO_DMA) as u8;
                io.cmd.command = if write { 0x35 } else { 0x25 };
                io.cmd.device = 0x40;
                let [low, mid, high, rest] = lba.to_le_bytes();
                (io.cmd.lba_low, io.cmd.lba_mid, io.cmd.lba_high) = (low, mid, high);
                io.cmd.lba_low_exp = rest;
                let [low, high] = blocks.to_le_bytes();
                (io.cmd.sector_count, io.cmd.sector_count_exp) = (low, high);
                (io.data_ptr, io.dxfer_len) = (data, len as u32);
            }
            sys::PROTO_NVME => {
                *ccb = core::mem::zeroed();
                let io = &mut ccb.nvmeio;
                io.ccb_h.func_code = sys::XPT_NVME_IO;
                io.cmd.opc = if write { 1 } else { 2 };
                io.cmd.nsid = kind.lun as u32;
                io.cmd.cdw10 = lba;
                io.cmd.cdw12 = u32::from(blocks) - 1;
                (io.data_ptr, io.dxfer_len) = (data, len as u32);
            }
            _ => command.csio().dxfer_len = len as u32,
        }
        let hdr = command.hdr();
        hdr.flags = direction | sys::CAM_DEV_QFRZDIS;
        hdr.retry_count = 1;
        hdr.timeout = 30_000;
    }
}

/// A command that the device does not know.
fn nonsense(command: &mut Command, kind: &Kind) {
    transfer(command, kind, false, 0, 8, 4096);
    match kind.protocol {
        sys::PROTO_ATA => command.ccb.ccb_mut().ataio.cmd.command = 0xff,
        sys::PROTO_NVME => command.ccb.ccb_mut().nvmeio.cmd.opc = 0x7f,
        _ => command.scsi(&[0xff, 0, 0, 0, 0, 0], sys::CAM_DIR_NONE, 0),
    }
}

/// The status of an unknown command.
fn error_of(sys: &mut FreeBsd, fd: Fd, command: &mut Command, kind: &Kind) -> Option<u32> {
    nonsense(command, kind);
    command.queue(sys, fd).ok()?;
    let _ = sys.poll(fd, POLLIN, 20_000);
    command.get(sys, fd).ok()?;
    Some(command.ended().status)
}

fn info(sys: &mut FreeBsd, fd: Fd) -> Option<sys::qpass_info> {
    // SAFETY: integers.
    let zero: sys::qpass_info = unsafe { core::mem::zeroed() };
    call(sys, fd, sys::QPC_QPIOC_INFO, zero).ok()
}

fn pattern(to: &mut Memory, seed: usize) {
    for (i, byte) in to.bytes_mut().iter_mut().enumerate() {
        *byte = (i / 512 * 13 + i * 7 + seed * 31) as u8;
    }
}

/// Every SIM that there is: data arrives, long transfers too, errors are told,
/// and counters add up.
pub fn sims(sheet: &mut Sheet<'_>) {
    let mut seen = [false; 4];
    for node in Nodes::all(sheet.sys, "qpass") {
        let Some(kind) = sheet.sys.kind(node) else {
            continue;
        };
        let at = match (kind.protocol, kind.device_type) {
            (sys::PROTO_SCSI, 0) => 0,
            (sys::PROTO_ATA, _) => 1,
            (sys::PROTO_NVME, _) => 2,
            (sys::PROTO_SCSI | sys::PROTO_ATAPI, 5) => 3,
            _ => continue,
        };
        seen[at] = true;
        one_sim(sheet, node, &kind, at);
    }
    for (i, name) in ["SCSI disk", "ATA disk", "NVMe disk", "CD"]
        .iter()
        .enumerate()
    {
        if !seen[i] {
            sheet.skip(name, "there is none, or the kernel has no driver for it");
        }
    }
}

fn one_sim(sheet: &mut Sheet<'_>, node: &str, kind: &Kind, which: usize) {
    const N: usize = 32;
    let Ok(fd) = sheet.sys.open(node, RDWR) else {
        sheet.check("open", node, false);
        return;
    };
    let is_cd = which == 3;
    let block = if is_cd { 2048 } else { BLOCK };
    let mut commands: [Command; N] = core::array::from_fn(|_| Command::new(sheet.sys, 4096));
    let mut batch = Batch::new(sheet.sys, N);
    let before = info(sheet.sys, fd);
    let rounds: &[bool] = if is_cd { &[false] } else { &[true, false] };
    for write in rounds {
        for (i, command) in commands.iter_mut().enumerate() {
            let blocks = (4096 / block) as u16;
            transfer(
                command,
                kind,
                *write,
                (i as u32) * u32::from(blocks),
                blocks,
                4096,
            );
            if *write {
                pattern(&mut command.data, i);
            } else {
                command.data.bytes_mut().fill(0xee);
            }
            batch.set(i, command.ccb.address(), i as u64);
        }
        let done = batch.enter(sheet.sys, fd, N, N);
        let good = (0..N).all(|i| batch.status(i) == sys::CAM_REQ_CMP);
        let what = if *write { "32 writes" } else { "32 reads" };
        sheet.check(what, node, done == Ok((N, N, 0, 0)) && good);
    }
    if !is_cd {
        let mut expected = Memory::new(sheet.sys, 4096);
        let mut same = true;
        for (i, command) in commands.iter().enumerate() {
            pattern(&mut expected, i);
            same &= command.data.bytes()[..4096] == expected.bytes()[..4096];
        }
        sheet.check("what is read is what was written", node, same);
        expected.unmap(sheet.sys);
    }
    // As long as the SIM takes, and a block more.
    let maxio = info(sheet.sys, fd).map_or(0, |i| i.maxio as usize);
    let most = maxio.min(16 << 20) / block;
    let mut long = Command::new(sheet.sys, (most + 1) * block);
    if let (Ok(blocks), false) = (u16::try_from(most), maxio == 0) {
        transfer(&mut long, kind, false, 0, blocks, most * block);
        let queued = long.queue(sheet.sys, fd);
        let polled = sheet.sys.poll(fd, POLLIN, 20_000);
        let got = long.get(sheet.sys, fd);
        let good = long.ended().status == sys::CAM_REQ_CMP;
        let is_done = (queued, polled, got) == (Ok(()), Ok(POLLIN), Ok(()));
        if !(is_done && good) {
            let status = long.ended().status;
            sheet.note(format_args!(
                "guest: {} blocks: {queued:?} {polled:?} {got:?} status {status:#x}",
                most
            ));
        }
        sheet.check("the longest read", node, is_done && good);
        transfer(&mut long, kind, false, 0, blocks, (most + 1) * block);
        let refused = long.queue(sheet.sys, fd);
        sheet.check(
            "a longer one is EINVAL",
            node,
            refused == Err(sys::EINVAL as i32),
        );
    }
    long.free(sheet.sys);
    // QEMU's AHCI does not tell which command it was, and so the driver hands it
    // back to be sent again, but for those in its first slot.
    let wanted: &[u32] = match which {
        1 => &[sys::CAM_ATA_STATUS_ERROR, sys::CAM_REQUEUE_REQ],
        2 => &[sys::CAM_NVME_STATUS_ERROR],
        _ => &[sys::CAM_SCSI_STATUS_ERROR],
    };
    let told = error_of(sheet.sys, fd, &mut commands[0], kind);
    let is_told = told.is_some_and(|status| wanted.contains(&status));
    sheet.check("an unknown command's error is told", node, is_told);
    if let Some(other) = sheet.sys.node_at("pass", kind) {
        let theirs = sheet.sys.open(other, RDWR).unwrap_or(-1);
        let told = error_of(sheet.sys, theirs, &mut commands[0], kind);
        let is_told = told.is_some_and(|status| wanted.contains(&status));
        sheet.check("by pass(4) too", other, is_told);
        sheet.sys.close(theirs);
    }
    if let (Some(before), Some(after)) = (before, info(sheet.sys, fd)) {
        let adds_up = after.submitted == after.completed + after.outstanding
            && after.submitted > before.submitted;
        sheet.check("the counters add up", node, adds_up);
        let moved = (after.zerocopy_bytes - before.zerocopy_bytes) as usize;
        if after.features & sys::QPASS_FEATURE_UNMAPPED != 0 {
            sheet.check("nothing was copied", node, moved >= N * 4096);
        }
    }
    for command in commands {
        command.free(sheet.sys);
    }
    batch.memory.unmap(sheet.sys);
    sheet.sys.close(fd);
}

/// Reads under way while the disk is pulled: each comes back once or goes with
/// its open; and the disk works when it is back.
pub fn unplug(sheet: &mut Sheet<'_>) {
    const N: usize = 64;
    if !sheet.sys.can_depart() {
        sheet.skip("unplug", "there is no monitor to pull the disk");
        return;
    }
    for round in ["1", "2", "3", "4", "5"] {
        let Some(node) = sheet.sys.wait_disk() else {
            sheet.check("the disk is there", round, false);
            return;
        };
        let Ok(fd) = sheet.sys.open(node, RDWR) else {
            sheet.check("open", node, false);
            return;
        };
        let mut batch = Batch::new(sheet.sys, N);
        let mut command = Command::new(sheet.sys, 65536);
        command.rw10(false, 0, 128);
        for i in 0..N {
            batch.set(i, command.ccb.address(), i as u64);
        }
        let first = batch.enter(sheet.sys, fd, N, 0);
        sheet.check("64 reads are queued", node, first == Ok((N, 0, 0, 0)));
        sheet.sys.ask_to_pull();
        // Goes on until the device has gone.
        let (mut submitted, mut reaped, mut gone) = (N, 0, false);
        for _ in 0..4_000_000u32 {
            match batch.enter(sheet.sys, fd, N / 2, N / 2) {
                Ok((s, r, se, re)) => {
                    submitted += s;
                    reaped += r;
                    gone = [se, re].contains(&(sys::ENXIO as i32));
                }
                Err(errno) => gone = errno == sys::ENXIO as i32,
            }
            if gone {
                break;
            }
        }
        sheet.check("the call ends with ENXIO", node, gone);
        sheet.check("more were reaped than were at first", node, reaped > N);
        sheet.check("none came twice", node, reaped <= submitted);
        sheet.sys.close(fd);
        sheet.sys.arrive();
        let back = sheet.sys.wait_disk();
        let works = back.is_some_and(|node| {
            let Ok(fd) = sheet.sys.open(node, RDWR) else {
                return false;
            };
            let sent = command.send(sheet.sys, fd);
            let good = sent == Ok(()) && command.ended().status == sys::CAM_REQ_CMP;
            sheet.sys.close(fd);
            good
        });
        sheet.check("a new disk works, round", round, works);
        command.free(sheet.sys);
        batch.memory.unmap(sheet.sys);
    }
}

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
        let mut unloaded = Err(sys::EBUSY as i32);
        for _ in 0..200 {
            unloaded = sheet.sys.kldunload(id);
            if unloaded != Err(sys::EBUSY as i32) {
                break;
            }
            sheet.sys.sleep_ms(50);
        }
        sheet.check(
            "it unloads when they have ended, round",
            round,
            unloaded == Ok(()),
        );
        let gone = sheet.sys.open(node, RDWR).is_err();
        sheet.check("and its nodes have gone, round", round, gone);
    }
}

fn event(ident: Fd, filter: i32, flags: u32) -> sys::kevent {
    // SAFETY: plain data.
    let mut event: sys::kevent = unsafe { core::mem::zeroed() };
    event.ident = ident as u64;
    event.filter = filter as i16;
    event.flags = flags as u16;
    event
}

/// kqueue(2) and poll(2): every completion of four opens in one queue is told,
/// whichever way it is asked for.
pub fn notify(sheet: &mut Sheet<'_>) {
    const OPENS: usize = 4;
    const ROUNDS: usize = 500;
    let Some(node) = sheet.sys.wait_disk() else {
        sheet.check("the disk is there", "", false);
        return;
    };
    let Ok(kq) = sheet.sys.kqueue() else {
        sheet.check("kqueue", "", false);
        return;
    };
    let mut command = Command::new(sheet.sys, 4096);
    command.rw10(false, 0, 8);
    let mut fds = [0; OPENS];
    for fd in &mut fds {
        *fd = sheet.sys.open(node, RDWR).unwrap_or(-1);
        let change = event(*fd, sys::EVFILT_READ, sys::EV_ADD | sys::EV_CLEAR);
        let added = sheet.sys.kevent(kq, &[change], &mut [], 0);
        sheet.check("EV_ADD", node, added == Ok(0));
    }
    let (mut queued, mut told, mut reaped, mut late) = (0, 0, 0, 0);
    let mut events = [event(0, 0, 0); OPENS];
    for round in 0..ROUNDS {
        for fd in &fds[..=round % OPENS] {
            queued += usize::from(command.queue(sheet.sys, *fd).is_ok());
        }
        while reaped < queued {
            let Ok(n @ 1..) = sheet.sys.kevent(kq, &[], &mut events, 20_000) else {
                late += 1;
                break;
            };
            told += n;
            for event in &events[..n] {
                while command.get(sheet.sys, event.ident as Fd).is_ok() {
                    reaped += 1;
                }
            }
        }
    }
    sheet.check(
        "kqueue tells of every completion",
        node,
        late == 0 && reaped == queued,
    );
    sheet.check(
        "and not more often than there are any",
        node,
        told <= queued,
    );
    // Nothing is ready: neither says that there is.
    let quiet = sheet.sys.kevent(kq, &[], &mut events, 100);
    sheet.check("kqueue is quiet then", node, quiet == Ok(0));
    let quiet = sheet.sys.poll(fds[0], POLLIN, 100);
    sheet.check("poll is quiet then", node, quiet == Ok(0));
    let mut missed = 0;
    for round in 0..ROUNDS {
        let fd = fds[round % OPENS];
        let queued = command.queue(sheet.sys, fd);
        let polled = sheet.sys.poll(fd, POLLIN, 20_000);
        let got = command.get(sheet.sys, fd);
        missed += usize::from((queued, polled, got) != (Ok(()), Ok(POLLIN), Ok(())));
    }
    sheet.check("poll tells of every completion", node, missed == 0);
    // Room, where there is a limit.
    // SAFETY: integers.
    let mut limit: sys::qpass_limit = unsafe { core::mem::zeroed() };
    limit.requests = 2;
    let _ = call(sheet.sys, fds[0], sys::QPC_QPIOC_LIMIT, limit);
    let change = event(fds[0], sys::EVFILT_WRITE, sys::EV_ADD);
    let _ = sheet.sys.kevent(kq, &[change], &mut [], 0);
    let two = [(); 2].map(|()| command.queue(sheet.sys, fds[0]));
    let third = command.queue(sheet.sys, fds[0]);
    let is_full = two == [Ok(()); 2] && third == Err(sys::EAGAIN as i32);
    sheet.check("a third of two is EAGAIN", node, is_full);
    let _ = sheet.sys.poll(fds[0], POLLIN, 20_000);
    let _ = command.get(sheet.sys, fds[0]);
    let mut room = 0;
    for _ in 0..4 {
        if let Ok(n) = sheet.sys.kevent(kq, &[], &mut events, 20_000) {
            let is_room = |e: &&sys::kevent| e.filter == sys::EVFILT_WRITE as i16;
            room += events[..n].iter().filter(is_room).count();
        }
        if room != 0 {
            break;
        }
    }
    sheet.check("EVFILT_WRITE tells of room", node, room != 0);
    for fd in fds {
        sheet.sys.close(fd);
    }
    sheet.sys.close(kq);
    command.free(sheet.sys);
}

/// Both drivers on one disk at once: neither sees what the other has queued,
/// each reads what the other wrote, and pass(4) stays when qpass(4) goes.
pub fn pair(sheet: &mut Sheet<'_>, id: usize) {
    const ROUNDS: usize = 100;
    let ours = sheet.sys.wait_disk();
    let theirs = sheet.sys.disk_of("pass");
    let (Some(ours), Some(theirs)) = (ours, theirs) else {
        sheet.skip("pair", "the kernel has no pass(4)");
        return;
    };
    let open = |sheet: &mut Sheet<'_>, node| sheet.sys.open(node, RDWR).unwrap_or(-1);
    let (a, b) = (open(sheet, ours), open(sheet, theirs));
    let mut one = Command::new(sheet.sys, 8192);
    let mut two = Command::new(sheet.sys, 8192);
    let (mut bad, mut differs, mut lost) = (0, 0, 0);
    for round in 0..ROUNDS {
        let lba = round as u32 * 64;
        // Each writes, both at once; then each reads what the other wrote.
        pattern(&mut one.data, round);
        pattern(&mut two.data, round + 1000);
        one.rw10(true, lba, 16);
        two.rw10(true, lba + 16, 16);
        for step in 0..2 {
            if step == 1 {
                one.rw10(false, lba + 16, 16);
                two.rw10(false, lba, 16);
            }
            let queued = [one.queue(sheet.sys, a), two.queue(sheet.sys, b)];
            for (fd, command, queued) in [(a, &one, queued[0]), (b, &two, queued[1])] {
                let is_theirs = fd == b;
                let limit = if is_theirs { 2000 } else { 20_000 };
                let mut polled = sheet.sys.poll(fd, POLLIN, limit);
                let got = command.get(sheet.sys, fd);
                let status = command.ended().status;
                if is_theirs && polled == Ok(0) && got == Ok(()) {
                    // It is done, and poll(2) was not told.
                    lost += 1;
                    polled = Ok(POLLIN);
                }
                let all = (queued, polled, got, status);
                if all != (Ok(()), Ok(POLLIN), Ok(()), sys::CAM_REQ_CMP) {
                    bad += 1;
                    let by = if fd == a { ours } else { theirs };
                    sheet.note(format_args!("guest: {by} {round} {step}: {all:x?}"));
                }
            }
        }
        let mut expected = Memory::new(sheet.sys, 8192);
        pattern(&mut expected, round + 1000);
        differs += usize::from(one.data.bytes()[..8192] != expected.bytes()[..8192]);
        pattern(&mut expected, round);
        differs += usize::from(two.data.bytes()[..8192] != expected.bytes()[..8192]);
        expected.unmap(sheet.sys);
    }
    if lost != 0 {
        sheet.note(format_args!(
            "guest: {theirs}: poll(2) of pass(4) missed {lost} of {} completions",
            2 * ROUNDS
        ));
    }
    sheet.check("both work at once", ours, bad == 0);
    sheet.check("each reads what the other wrote", theirs, differs == 0);
    // pass(4) has one queue of a device for all; what is qpass's is not in it.
    let _ = one.queue(sheet.sys, a);
    let _ = sheet.sys.poll(a, POLLIN, 20_000);
    let crossed = two.get(sheet.sys, b).is_ok();
    sheet.check("no completion crosses over", theirs, !crossed);
    let _ = one.get(sheet.sys, a);
    sheet.sys.close(a);
    let mut unloaded = Err(sys::EBUSY as i32);
    for _ in 0..100 {
        unloaded = sheet.sys.kldunload(id);
        if unloaded != Err(sys::EBUSY as i32) {
            break;
        }
        sheet.sys.sleep_ms(50);
    }
    sheet.check(
        "qpass unloads under pass(4)'s open",
        ours,
        unloaded == Ok(()),
    );
    two.rw10(false, 0, 16);
    let sent = two.send(sheet.sys, b);
    let works = sent == Ok(()) && two.ended().status == sys::CAM_REQ_CMP;
    sheet.check("pass(4) works on", theirs, works);
    sheet.sys.close(b);
    one.free(sheet.sys);
    two.free(sheet.sys);
}

/// The driver under pass(4)'s name, on a kernel without that.
pub fn replace(sheet: &mut Sheet<'_>) {
    let node = sheet.sys.disk_of("pass");
    let none = Nodes::all(sheet.sys, "qpass").next().is_none();
    sheet.check("the nodes are /dev/passN", "", node.is_some());
    sheet.check("and not /dev/qpassN", "", none);
    let Some(node) = node else { return };
    let score = conform::run(sheet.sys, node);
    sheet.score.passed += score.passed;
    sheet.score.failed += score.failed;
    sheet.score.skipped += score.skipped;
}

/// qpassctl, and what it says.
pub fn tools(sheet: &mut Sheet<'_>) {
    let Some(node) = sheet.sys.wait_disk() else {
        sheet.check("the disk is there", "", false);
        return;
    };
    let name = node.strip_prefix("/dev/").unwrap_or(node);
    const TOOLS: [&str; 2] = ["/bin/qpassctl", "/mnt/bin/qpassctl"];
    const REACTORS: [&str; 2] = ["/bin/reactor", "/mnt/bin/reactor"];
    let at = usize::from(!sheet.sys.has(TOOLS[0]));
    let (tool, file) = (TOOLS[at], sheet.sys.module());
    let runs: [(&str, &[&str], i32); 15] = [
        ("list", &["list"], 0),
        ("list --json", &["list", "--json"], 0),
        ("inquiry", &["inquiry", name], 0),
        ("tur", &["tur", name], 0),
        ("readcap", &["readcap", name], 0),
        ("cdb", &["cdb", name, "120000002400", "--in", "36"], 0),
        ("cdb that fails", &["cdb", name, "ff"], 1),
        (
            "write",
            &["write", file, name, "--pad", "--verify", "--seek", "64"],
            0,
        ),
        ("read", &["read", name, "/dev/null", "--count", "65536"], 0),
        (
            "bench",
            &[
                "bench",
                name,
                "--time",
                "200ms",
                "--rounds",
                "2",
                "--depth",
                "1,16",
                "--method",
                "enter,queue",
            ],
            0,
        ),
        ("outstanding", &["outstanding"], 0),
        ("cancel", &["cancel", name, "--all"], 0),
        ("stats", &["stats"], 0),
        ("limits", &["limits", "max_requests=512"], 0),
        ("no device", &["tur", "qpass99"], 3),
    ];
    for (what, args, wanted) in runs {
        let code = sheet.sys.run(tool, args);
        sheet.check("qpassctl", what, code == Ok(wanted));
    }
    // The disks that are not SCSI, by what they speak.
    for node in Nodes::all(sheet.sys, "qpass") {
        let Some(kind) = sheet.sys.kind(node) else {
            continue;
        };
        if matches!(kind.protocol, sys::PROTO_ATA | sys::PROTO_NVME) {
            let name = node.strip_prefix("/dev/").unwrap_or(node);
            let code = sheet.sys.run(tool, &["readcap", name]);
            sheet.check("qpassctl readcap", node, code == Ok(0));
            let code = sheet
                .sys
                .run(tool, &["write", file, name, "--pad", "--verify"]);
            sheet.check("qpassctl write", node, code == Ok(0));
        }
    }
    if sheet.sys.disk_of("pass").is_some() {
        let args = [
            "bench",
            name,
            "--time",
            "200ms",
            "--rounds",
            "2",
            "--depth",
            "1,16",
            "--compare",
            "pass",
        ];
        let code = sheet.sys.run(tool, &args);
        sheet.check("qpassctl bench", "beside pass(4)", code == Ok(0));
    }
    let reactor = sheet.sys.run(REACTORS[at], &[name, name]);
    sheet.check("a reactor with two queues", node, reactor == Ok(0));
    // The CD is mounted: it is the root.
    let cd = Nodes::all(sheet.sys, "qpass").find(|node| {
        let kind = sheet.sys.kind(node);
        kind.is_some_and(|k| k.device_type == 5)
    });
    if let Some(cd) = cd {
        let code = sheet.sys.run(tool, &["write", file, cd, "--pad"]);
        sheet.check("a mounted device is refused", cd, code == Ok(5));
    }
}
