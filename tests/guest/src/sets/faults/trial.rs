//! What an entry works with: the disks, blocks that hold their numbers, bounded
//! helpers, and the monitor.

use super::super::{Batch, RDWR, SUBMISSIONS, sims::transfer};
use crate::freebsd::{FreeBsd, Kind, SIGKILL};
use conform::{
    Line,
    command::{BLOCK, Command},
    sys::{Errno, Fd, Memory, Sys, call},
};
use core::fmt::Write;
use sys_bindings as sys;

/// Fails the entry unless the two are equal; the first says of what, in any form
/// that has a `Debug`.
macro_rules! holds {
    ($what:expr, $found:expr, $wanted:expr) => {
        conform::expect!(format_args!("{:?}", $what), $found, $wanted)
    };
}
pub(in crate::sets) use holds;

/// The errnos that the entries speak of.
pub const EINVAL: i32 = sys::EINVAL as i32;
pub const EPERM: i32 = sys::EPERM as i32;
pub const EAGAIN: i32 = sys::EAGAIN as i32;
pub const ENXIO: i32 = sys::ENXIO as i32;
pub const ENOTTY: i32 = sys::ENOTTY as i32;

/// No timeout.
pub const FOREVER: u64 = u64::MAX;
pub const MS: u64 = 1_000_000;

/// The disks of scripts/vm.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    Scsi,
    Ata,
    Nvme,
}

impl Disk {
    pub const ALL: [Disk; 3] = [Disk::Scsi, Disk::Ata, Disk::Nvme];

    /// As its own driver calls it.
    pub fn name(self) -> &'static str {
        ["da", "ada", "nda"][self as usize]
    }

    /// As the monitor calls it.
    fn drive(self) -> &'static str {
        ["hd", "disk1", "disk2"][self as usize]
    }

    pub fn is_of(self, kind: &Kind) -> bool {
        match self {
            Disk::Scsi => kind.protocol == sys::PROTO_SCSI && kind.device_type == 0,
            Disk::Ata => kind.protocol == sys::PROTO_ATA,
            Disk::Nvme => kind.protocol == sys::PROTO_NVME,
        }
    }

    /// The node of its own driver: a disk that comes back may have another
    /// number.
    pub fn block_device(self, sys: &mut FreeBsd) -> Option<&'static str> {
        const NODES: [[&str; 4]; 3] = [
            ["/dev/da0", "/dev/da1", "/dev/da2", "/dev/da3"],
            ["/dev/ada0", "/dev/ada1", "/dev/ada2", "/dev/ada3"],
            ["/dev/nda0", "/dev/nda1", "/dev/nda2", "/dev/nda3"],
        ];
        NODES[self as usize]
            .into_iter()
            .find(|node| sys.is_there(node))
    }

    /// pread(2) by its own driver, of a block that has not just been read.
    pub fn read_by_its_driver(self, sys: &mut FreeBsd) -> bool {
        let Some(node) = self.block_device(sys) else {
            return false;
        };
        let Ok(fd) = sys.open(node, sys::O_RDONLY as i32) else {
            return false;
        };
        let mut memory = Memory::new(sys, 4096);
        let at = (sys.now() / 1000 % 8192) as usize * 4096;
        let good = sys.pread(fd, &mut memory, 4096, at);
        sys.close(fd);
        good
    }
}

/// Blocks that hold their numbers: those from 0 on are read only, those from
/// [`SCRATCH`] on are written.
pub const NUMBERED: u32 = 8192;
pub const SCRATCH: u32 = 16384;

/// What the words of a block are; `salt` tells one writing from another.
fn word(lba: u32, i: usize, salt: u8) -> u64 {
    0xa5 << 56 | u64::from(salt) << 48 | u64::from(lba) << 8 | i as u64
}

/// Makes blocks of bytes that hold their numbers, from `lba` on.
pub fn number(bytes: &mut [u8], lba: u32, salt: u8) {
    for (i, chunk) in bytes.chunks_mut(8).enumerate() {
        let word = word(lba + (i / 64) as u32, i % 64, salt);
        chunk.copy_from_slice(&word.to_ne_bytes()[..chunk.len()]);
    }
}

/// The `i`th byte of the blocks from `lba` on.
pub fn byte(lba: u32, i: usize, salt: u8) -> u8 {
    word(lba + (i / 512) as u32, i % 512 / 8, salt).to_ne_bytes()[i % 8]
}

/// Where bytes differ from the blocks from `lba` on.
pub fn differs(bytes: &[u8], lba: u32, salt: u8) -> Option<usize> {
    bytes.chunks(8).enumerate().find_map(|(i, chunk)| {
        let word = word(lba + (i / 64) as u32, i % 64, salt);
        (*chunk != word.to_ne_bytes()[..chunk.len()]).then_some(i * 8)
    })
}

/// Makes every numbered block hold its number, by the disks' own drivers: which
/// disks there are, or the one that failed.
pub fn fill_disks(sys: &mut FreeBsd) -> (bool, &'static str) {
    const CHUNK: usize = 65536;
    let mut memory = Memory::new(sys, CHUNK);
    for disk in Disk::ALL {
        let Some(node) = disk.block_device(sys) else {
            continue;
        };
        let Ok(fd) = sys.open(node, RDWR) else {
            return (false, disk.name());
        };
        for lba in (0..NUMBERED).step_by(CHUNK / BLOCK) {
            number(memory.bytes_mut(), lba, 0);
            if !sys.pwrite(fd, memory.bytes(), lba as usize * BLOCK) {
                return (false, disk.name());
            }
        }
        sys.close(fd);
    }
    memory.unmap(sys);
    (true, "")
}

/// Takes every throttle away.
pub fn let_go(sys: &mut FreeBsd) {
    for disk in Disk::ALL {
        sys.ask_to_throttle(disk.drive(), 0, 0);
    }
    sys.sleep_ms(500);
}

/// Releases a disk's queue, some times, so that its driver can go on.
pub fn release_queue(sys: &mut FreeBsd, disk: Disk) {
    let mut ccb = Command::new(sys, 1);
    let Some(fd) = node_of(sys, disk).and_then(|(node, _)| sys.open(node, RDWR).ok()) else {
        return;
    };
    for _ in 0..16 {
        ccb.immediate(sys::XPT_REL_SIMQ);
        let _ = ccb.send(sys, fd);
    }
}

/// The pass-through node of a disk.
fn node_of(sys: &mut FreeBsd, disk: Disk) -> Option<(&'static str, Kind)> {
    let nodes = sys.nodes(sys.attacked());
    nodes.into_iter().find_map(|node| {
        let kind = sys.kind(node)?;
        disk.is_of(&kind).then_some((node, kind))
    })
}

/// An open pass-through node.
pub struct Node {
    pub disk: Disk,
    pub path: &'static str,
    pub kind: Kind,
    pub fd: Fd,
}

impl Node {
    /// Makes a command a read or a write of whole blocks, with its data at an
    /// address.
    pub fn transfer(&self, command: &mut Command, write: bool, lba: u32, to: usize, len: usize) {
        let blocks = (len / BLOCK).max(1) as u16;
        transfer(command, &self.kind, write, lba, blocks, len);
        self.aim(command, to, len);
    }

    /// Names a command's data.
    pub fn aim(&self, command: &mut Command, to: usize, len: usize) {
        let (to, len) = (to as *mut u8, len as u32);
        let ccb = command.ccb.ccb_mut();
        match self.disk {
            Disk::Scsi => (ccb.csio.data_ptr, ccb.csio.dxfer_len) = (to, len),
            Disk::Ata => (ccb.ataio.data_ptr, ccb.ataio.dxfer_len) = (to, len),
            Disk::Nvme => (ccb.nvmeio.data_ptr, ccb.nvmeio.dxfer_len) = (to, len),
        }
    }

    /// Makes a command one that moves no data.
    pub fn without_data(&self, command: &mut Command) {
        transfer(command, &self.kind, false, 0, 1, 0);
        let ccb = command.ccb.ccb_mut();
        match self.disk {
            Disk::Scsi => {
                command.test_unit_ready();
            }
            // CHECK POWER MODE, not by DMA.
            Disk::Ata => {
                ccb.ataio.cmd.command = 0xe5;
                ccb.ataio.cmd.flags = 0;
                ccb.ataio.cmd.sector_count = 0;
            }
            // FLUSH.
            Disk::Nvme => {
                ccb.nvmeio.cmd.opc = 0;
                ccb.nvmeio.cmd.cdw12 = 0;
            }
        }
        self.aim(command, 0, 0);
        let hdr = command.hdr();
        hdr.flags = sys::CAM_DIR_NONE | sys::CAM_DEV_QFRZDIS;
    }
}

/// How a command that was sent in some way ended.
pub type Sent = Result<u32, Errno>;

/// How a bounded helper ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this status.
    With(i32),
    /// It had to be killed.
    Killed,
    /// SIGKILL did not end it.
    Unkillable,
}

/// One entry at work.
pub struct Trial<'a> {
    pub sys: &'a mut FreeBsd,
    /// What was seen that is worth a word.
    pub seen: Line,
    /// Why the entry cannot be tried here.
    pub skipped: Option<&'static str>,
    /// How many times longer everything may take.
    pub slow: u64,
}

impl<'a> Trial<'a> {
    pub fn new(sys: &'a mut FreeBsd, slow: u64) -> Self {
        Trial {
            sys,
            seen: Line::new(),
            skipped: None,
            slow,
        }
    }

    /// Adds to what was seen.
    pub fn see(&mut self, what: core::fmt::Arguments<'_>) {
        let _ = self.seen.write_str(" ");
        let _ = self.seen.write_fmt(what);
    }

    /// Opens a disk's node; says that there is none.
    pub fn open(&mut self, disk: Disk) -> Option<Node> {
        for _ in 0..50 {
            if let Some((path, kind)) = node_of(self.sys, disk) {
                let fd = self.sys.open(path, RDWR).ok()?;
                return Some(Node {
                    disk,
                    path,
                    kind,
                    fd,
                });
            }
            self.sys.sleep_ms(100);
        }
        self.skipped = Some("there is no such disk, or the kernel has no driver for it");
        None
    }

    /// Whether there is a monitor; says that there is none.
    pub fn has_monitor(&mut self) -> bool {
        if !self.sys.can_depart() {
            self.skipped = Some("there is no monitor to slow or pull a disk");
        }
        self.sys.can_depart()
    }

    /// Makes a disk do so many commands a second, and waits until it is so.
    pub fn throttle(&mut self, disk: Disk, commands: u32) -> bool {
        self.slow_down(disk, commands, 0, 1000 / u64::from(commands))
    }

    /// Makes a disk move so many bytes a second, and waits until it is so.
    pub fn throttle_bytes(&mut self, disk: Disk, bytes: u32) -> bool {
        self.slow_down(disk, 0, bytes, 4_096_000 / u64::from(bytes))
    }

    /// Makes a disk slow, so that a read of its driver's takes about `ms`.
    fn slow_down(&mut self, disk: Disk, commands: u32, bytes: u32, ms: u64) -> bool {
        for _ in 0..10 {
            self.sys.ask_to_throttle(disk.drive(), commands, bytes);
            for _ in 0..20 {
                // Twice: the machine may have been slow itself.
                let is_slow = [(); 2].map(|()| {
                    let start = self.sys.now();
                    disk.read_by_its_driver(self.sys);
                    self.sys.now() - start > ms * MS / 2
                });
                if is_slow == [true; 2] {
                    return true;
                }
                self.sys.sleep_ms(50);
            }
        }
        false
    }

    /// Takes every throttle away.
    pub fn let_go(&mut self) {
        let_go(self.sys);
    }

    /// Runs something in a process of its own that ends within `ms`: its exit
    /// status.
    pub fn within(&mut self, ms: u64, what: impl FnOnce(&mut FreeBsd) -> i32) -> Ended {
        match self.start(what) {
            Some(pid) => self.finish(pid, ms),
            None => Ended::With(-1),
        }
    }

    /// Starts something in a process of its own.
    pub fn start(&mut self, what: impl FnOnce(&mut FreeBsd) -> i32) -> Option<usize> {
        let pid = self.sys.fork().ok()?;
        if pid == 0 {
            let status = what(self.sys);
            self.sys.exit(status);
        }
        Some(pid)
    }

    /// Waits for a process, and kills it when `ms` are over.
    pub fn finish(&mut self, pid: usize, ms: u64) -> Ended {
        match self.sys.wait_ms(pid, ms * self.slow) {
            Some(status) => Ended::With(status),
            None => {
                self.sys.kill(pid, SIGKILL);
                match self.sys.wait_ms(pid, 5000 * self.slow) {
                    Some(_) => Ended::Killed,
                    None => Ended::Unkillable,
                }
            }
        }
    }

    /// CAMIOCOMMAND: the CAM status.
    pub fn command(&mut self, node: &Node, command: &Command) -> Sent {
        command.send(self.sys, node.fd)?;
        Ok(command.ended().status)
    }

    /// CAMIOQUEUE, poll(2), CAMIOGET: the CAM status.
    pub fn queue(&mut self, node: &Node, command: &Command) -> Sent {
        command.queue(self.sys, node.fd)?;
        self.reap(node, command, 10_000)
    }

    /// poll(2) and CAMIOGET: the CAM status; EAGAIN where nothing comes.
    pub fn reap(&mut self, node: &Node, command: &Command, ms: u64) -> Sent {
        let ms = (ms * self.slow) as i32;
        match self.sys.poll(node.fd, sys::POLLIN as i16, ms) {
            Ok(0) => return Err(EAGAIN),
            polled => polled?,
        };
        command.get(self.sys, node.fd)?;
        Ok(command.ended().status)
    }

    /// QPIOC_ENTER, which submits and reaps one: the CAM status.
    pub fn enter_one(&mut self, node: &Node, command: &Command) -> Sent {
        let mut batch = Batch::new(self.sys, 1);
        batch.set(0, command.ccb.address(), 1);
        let mut what = entered(&batch, 1, 1, 1);
        what.timeout = 10_000 * MS * self.slow;
        let done = enter(self.sys, node.fd, what);
        let status = batch.status(0);
        batch.memory.unmap(self.sys);
        match done? {
            (1, 1, 0, 0) => Ok(status),
            (.., 0, error) => Err(error),
            (.., error, _) => Err(error),
        }
    }

    /// Whether a disk's own driver reads from it within `ms`.
    pub fn answers(&mut self, disk: Disk, ms: u64) -> bool {
        self.within(ms, |sys| i32::from(!disk.read_by_its_driver(sys))) == Ended::With(0)
    }
}

/// A call of QPIOC_ENTER.
pub fn entered(batch: &Batch, submit: usize, room: usize, min: usize) -> sys::qpass_enter {
    // SAFETY: integers.
    let mut what: sys::qpass_enter = unsafe { core::mem::zeroed() };
    what.submissions = (batch.memory.address() + SUBMISSIONS) as u64;
    what.completions = (batch.memory.address() + batch.completions()) as u64;
    (what.to_submit, what.to_complete) = (submit as u32, room as u32);
    what.min_complete = min as u32;
    what.timeout = FOREVER;
    what
}

/// QPIOC_ENTER: how many were submitted and reaped, and the two errnos.
///
/// # Errors
/// The errno.
pub fn enter(
    sys: &mut FreeBsd,
    fd: Fd,
    what: sys::qpass_enter,
) -> Result<(u32, u32, i32, i32), Errno> {
    let done = call(sys, fd, sys::QPC_QPIOC_ENTER, what)?;
    Ok((
        done.submitted,
        done.completed,
        done.submit_error,
        done.complete_error,
    ))
}

/// QPIOC_LIMIT, 0 for what stays: the requests and bytes that apply.
///
/// # Errors
/// The errno.
pub fn limit(sys: &mut FreeBsd, fd: Fd, requests: u32, bytes: u64) -> Result<(u32, u64), Errno> {
    // SAFETY: integers.
    let mut what: sys::qpass_limit = unsafe { core::mem::zeroed() };
    (what.requests, what.bytes) = (requests, bytes);
    let done = call(sys, fd, sys::QPC_QPIOC_LIMIT, what)?;
    Ok((done.requests, done.bytes))
}

/// QPIOC_CANCEL of one CCB, or of all with 0: how many were dequeued, aborted,
/// not abortable, and done.
///
/// # Errors
/// The errno.
pub fn cancel(sys: &mut FreeBsd, fd: Fd, ccb: usize) -> Result<[u32; 4], Errno> {
    // SAFETY: integers.
    let mut what: sys::qpass_cancel = unsafe { core::mem::zeroed() };
    what.ccb = ccb as u64;
    let done = call(sys, fd, sys::QPC_QPIOC_CANCEL, what)?;
    Ok([done.dequeued, done.aborted, done.unable, done.done])
}

/// The tag of a completion.
pub fn tag_of(batch: &Batch, i: usize) -> u64 {
    let at = batch.completions() + i * size_of::<sys::qpass_completion>();
    let bytes = &batch.memory.bytes()[at..at + 8];
    bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}
