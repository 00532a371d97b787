//! Random programs: processes and threads that share opens and memory.

use super::{super::RDWR, Dice, Shared, trial, verify};
use crate::freebsd::{FreeBsd, SIGKILL};
use conform::sys::{Fd, Sys, call};
use core::sync::atomic::Ordering::Relaxed;
use sys_bindings as sys;
use trial::{Disk, SCRATCH};

/// What a round is mostly about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Every opcode, flag and format.
    Opcodes,
    /// Much in flight, cancelled, aborted, closed, killed.
    Storm,
    /// Memory that goes away meanwhile.
    Memory,
    /// Limits, times and arrays at their ends.
    Edges,
    /// Opens that processes share.
    Sharing,
}

/// All of them.
pub const PHASES: [Phase; 5] = [
    Phase::Opcodes,
    Phase::Storm,
    Phase::Memory,
    Phase::Edges,
    Phase::Sharing,
];

impl Phase {
    /// As the tunables call it.
    pub fn name(self) -> &'static str {
        ["opcodes", "storm", "memory", "edges", "sharing"][self as usize]
    }
}

const PAGE: usize = 4096;
/// Data that comes and goes.
const ARENA: usize = 2 << 20;
/// CCBs, and what they name, which stay.
const CCBS: usize = 64;
const CCB: usize = 2048;
const LISTS: usize = CCBS * CCB;
const LIST: usize = 1024 * 16;
const ARRAYS: usize = LISTS + 8 * LIST;
const ARRAY: usize = 64 * 40;
const SAFE: usize = ARRAYS + 4 * ARRAY;

/// What attackers may write of a disk.
const TARGET: u32 = 65536;

/// One node as an attacker sees it.
#[derive(Clone, Copy)]
struct Open {
    fd: Fd,
    disk: Option<Disk>,
}

/// One attacker.
struct Attacker<'a> {
    sys: &'a mut FreeBsd,
    dice: Dice,
    phase: Phase,
    opens: [Option<Open>; 6],
    safe: usize,
    arena: usize,
    shared: &'static Shared,
}

/// Runs processes of one phase until they are killed.
pub fn run(sys: &mut FreeBsd, phase: Phase, seed: u64, shared: &'static Shared) {
    let mut dice = Dice::new(seed);
    let early = opens(sys);
    for disk in Disk::ALL {
        let own = dice.next();
        if let Ok(0) = sys.fork() {
            verify::run(sys, disk, own, shared);
        }
    }
    loop {
        let mut pids = [0; 3];
        for pid in &mut pids {
            let own = dice.next();
            let share = phase == Phase::Sharing || dice.one_in(2);
            match sys.fork() {
                Ok(0) => attack(
                    sys,
                    phase,
                    own,
                    if share { early } else { [None; 6] },
                    shared,
                ),
                Ok(child) => *pid = child,
                Err(_) => {}
            }
        }
        sys.sleep_ms(100 + dice.below(600) as u64);
        for pid in pids.into_iter().filter(|pid| *pid != 0) {
            sys.kill(pid, SIGKILL);
        }
        for pid in pids.into_iter().filter(|pid| *pid != 0) {
            sys.wait(pid);
        }
    }
}

fn opens(sys: &mut FreeBsd) -> [Option<Open>; 6] {
    let mut opens = [None; 6];
    for (to, path) in opens.iter_mut().zip(sys.nodes("qpass")) {
        let disk = sys
            .kind(path)
            .and_then(|kind| Disk::ALL.into_iter().find(|disk| disk.is_of(&kind)));
        // Of what no kind is known, no command can be made.
        let is_known = sys.kind(path).is_some();
        let fd = sys.open(path, RDWR).ok().filter(|_| is_known);
        *to = fd.map(|fd| Open { fd, disk });
    }
    opens
}

fn attack(
    sys: &mut FreeBsd,
    phase: Phase,
    seed: u64,
    shared_opens: [Option<Open>; 6],
    shared: &'static Shared,
) -> ! {
    let mut opens_of = shared_opens;
    if opens_of.iter().all(Option::is_none) {
        opens_of = opens(sys);
    }
    let mut dice = Dice::new(seed);
    if dice.one_in(2) {
        // Without the privileges of root.
        sys.set_user(1000);
    }
    let safe = sys.map(SAFE) as usize;
    let arena = sys.map(ARENA) as usize;
    let threads = match phase {
        Phase::Memory => 2,
        _ => dice.below(2),
    };
    for i in 0..threads {
        let own = Task {
            seed: dice.next(),
            phase,
            opens: opens_of,
            safe: sys.map(SAFE) as usize,
            arena,
            maps: phase == Phase::Memory && i == 0,
            shared,
        };
        let stack = sys.map(65536) as usize;
        // SAFETY: fresh memory, large and aligned enough.
        unsafe { (stack as *mut Task).write(own) };
        // SAFETY: the thread's own memory, which is never unmapped.
        unsafe { sys.start_thread(thread, stack, 65536) };
    }
    let mut attacker = Attacker {
        sys,
        dice,
        phase,
        opens: opens_of,
        safe,
        arena,
        shared,
    };
    if dice_forks(&mut attacker.dice, phase) {
        let own = attacker.dice.next();
        if let Ok(0) = attacker.sys.fork() {
            attacker.dice = Dice::new(own);
        }
    }
    loop {
        attacker.step();
    }
}

fn dice_forks(dice: &mut Dice, phase: Phase) -> bool {
    phase == Phase::Sharing || dice.one_in(4)
}

struct Task {
    seed: u64,
    phase: Phase,
    opens: [Option<Open>; 6],
    safe: usize,
    arena: usize,
    maps: bool,
    shared: &'static Shared,
}

extern "C" fn thread(task: usize) -> ! {
    // SAFETY: written by who started the thread, before.
    let task = unsafe { (task as *const Task).read() };
    let mut sys = FreeBsd::new();
    let mut attacker = Attacker {
        sys: &mut sys,
        dice: Dice::new(task.seed),
        phase: task.phase,
        opens: task.opens,
        safe: task.safe,
        arena: task.arena,
        shared: task.shared,
    };
    loop {
        if task.maps {
            attacker.remap();
        } else {
            attacker.step();
        }
    }
}

const OPCODES: &[sys::xpt_opcode] = &[
    sys::XPT_NOOP,
    sys::XPT_GDEV_TYPE,
    sys::XPT_GDEVLIST,
    sys::XPT_PATH_INQ,
    sys::XPT_REL_SIMQ,
    sys::XPT_SASYNC_CB,
    sys::XPT_SDEV_TYPE,
    sys::XPT_SCAN_BUS,
    sys::XPT_DEV_MATCH,
    sys::XPT_DEBUG,
    sys::XPT_PATH_STATS,
    sys::XPT_GDEV_STATS,
    sys::XPT_DEV_ADVINFO,
    sys::XPT_ASYNC,
    sys::XPT_ABORT,
    sys::XPT_RESET_BUS,
    sys::XPT_TERM_IO,
    sys::XPT_SCAN_LUN,
    sys::XPT_GET_TRAN_SETTINGS,
    sys::XPT_SET_TRAN_SETTINGS,
    sys::XPT_CALC_GEOMETRY,
    sys::XPT_GET_SIM_KNOB_OLD,
    sys::XPT_SET_SIM_KNOB,
    sys::XPT_GET_SIM_KNOB,
    sys::XPT_SMP_IO,
    sys::XPT_MMC_IO,
    sys::XPT_SCAN_TGT,
    sys::XPT_ENG_INQ,
    sys::XPT_ENG_EXEC,
    sys::XPT_EN_LUN,
    sys::XPT_TARGET_IO,
    sys::XPT_ACCEPT_TARGET_IO,
    sys::XPT_CONT_TARGET_IO,
    sys::XPT_IMMED_NOTIFY,
    sys::XPT_NOTIFY_ACK,
    sys::XPT_IMMEDIATE_NOTIFY,
    sys::XPT_NOTIFY_ACKNOWLEDGE,
    sys::XPT_MMC_SET_TRAN_SETTINGS,
    sys::XPT_MMC_GET_TRAN_SETTINGS,
    sys::XPT_VUNIQUE,
    0x7f,
    0x1ff,
    u32::MAX,
];

/// Addresses that are nobody's to give.
const WILD: &[usize] = &[
    0,
    1,
    0x7fff_ffff_f000,
    0x7fff_ffff_ffff,
    0x8000_0000_0000,
    0x0000_ffff_ffff_f000,
    0xffff_f800_0000_0000,
    0xffff_ffff_8020_0000,
    usize::MAX,
    usize::MAX - 4095,
];

impl Attacker<'_> {
    fn open(&mut self) -> Option<Open> {
        let at = self.dice.below(6);
        self.opens[at].or_else(|| self.opens.into_iter().flatten().next())
    }

    /// An address for `len` bytes of data.
    fn address(&mut self, len: usize) -> usize {
        if self.dice.one_in(25) {
            return self.dice.of(WILD);
        }
        let room = ARENA.saturating_sub(len).max(1);
        let at = self.arena + self.dice.below(room);
        match self.dice.below(4) {
            0 => at,
            1 => at & !511,
            _ => at & !4095,
        }
    }

    fn len(&mut self) -> usize {
        match self.dice.below(8) {
            0 => self.dice.below(20000),
            1 => 512 * self.dice.below(300),
            2 => self
                .dice
                .of(&[0, 1, 511, 513, 131_072, 131_073, 1 << 20, (1 << 20) + 512]),
            3 => self
                .dice
                .of(&[0x7fff_ffff, 0xffff_ffff, 0x8000_0000, 64 << 20]),
            _ => 512 * (1 + self.dice.below(64)),
        }
    }

    /// A list of segments for about `len` bytes: its address, and how many.
    fn list(&mut self, len: usize) -> (usize, u16) {
        let at = self.safe + LISTS + self.dice.below(8) * LIST;
        let many = self.dice.one_in(8);
        let n = 1 + self.dice.below(if many { 1024 } else { 6 });
        let mut left = len;
        for i in 0..n {
            let part = match self.dice.below(6) {
                0 => 0,
                1 => self.dice.below(5000),
                2 => usize::MAX - self.dice.below(3),
                _ => (left / (n - i)) & !511,
            };
            let part = if i + 1 == n { part.max(left) } else { part };
            left = left.saturating_sub(part);
            let to = self.address(part);
            // SAFETY: inside the list's room of this process's memory.
            unsafe {
                let to_list = (at as *mut u64).add(i * 2);
                to_list.write_volatile(to as u64);
                to_list.add(1).write_volatile(part as u64);
            }
        }
        if self.dice.one_in(20) {
            return (self.dice.of(WILD), n as u16);
        }
        let n = if self.dice.one_in(20) {
            self.dice.of(&[0, 1, 4096, 65535])
        } else {
            n as u16
        };
        (at, n)
    }

    fn flags(&mut self) -> u32 {
        const SOME: &[u32] = &[
            sys::CAM_DEV_QFRZDIS,
            sys::CAM_DEV_QFREEZE,
            sys::CAM_HIGH_POWER,
            sys::CAM_PASS_ERR_RECOVER,
            sys::CAM_NEGOTIATE,
            sys::CAM_DIS_AUTOSENSE,
            sys::CAM_TAG_ACTION_VALID,
            sys::CAM_SEND_STATUS,
            sys::CAM_SEND_SENSE,
            sys::CAM_CDB_POINTER,
        ];
        let mut flags = sys::CAM_DEV_QFRZDIS;
        for flag in SOME {
            if self.dice.one_in(6) {
                flags ^= flag;
            }
        }
        if self.dice.one_in(30) {
            flags ^= 1 << self.dice.below(32);
        }
        if self.dice.one_in(60) {
            flags = self.dice.next() as u32;
        }
        flags
    }

    /// Writes a CCB: its address.
    fn ccb(&mut self, open: Open) -> usize {
        let at = self.safe + self.dice.below(CCBS) * CCB;
        let dirty = self.dice.one_in(4);
        // SAFETY: a CCB's room of this process's memory; the device may not write
        // it, and a thread that shares it has plain data in it.
        let ccb = unsafe { &mut *(at as *mut sys::ccb) };
        let bytes = size_of::<sys::ccb>();
        for i in 0..bytes / 8 {
            let word = if dirty { self.dice.next() >> 1 } else { 0 };
            // SAFETY: inside the CCB.
            unsafe {
                (at as *mut u64)
                    .add(i)
                    .write_volatile(word & !(0xffff << 47))
            };
        }
        let own = self.phase != Phase::Opcodes || self.dice.one_in(2);
        let quick = open.disk == Some(Disk::Scsi) && self.dice.one_in(6);
        let code = if own {
            match open.disk {
                Some(Disk::Ata) => sys::XPT_ATA_IO,
                Some(Disk::Nvme) => sys::XPT_NVME_IO,
                _ => sys::XPT_SCSI_IO,
            }
        } else {
            self.dice.of(OPCODES)
        };
        let flags = self.flags();
        let priority = self.dice.next() as u32;
        let retries = self.dice.of(&[0, 1, 4]);
        // SAFETY: plain data.
        let hdr = unsafe { &mut ccb.ccb_h };
        (hdr.func_code, hdr.flags) = (code, flags);
        hdr.retry_count = retries;
        hdr.pinfo.priority = priority;
        // QEMU's AHCI and NVMe do not survive resets.
        hdr.timeout = if quick {
            self.dice.of(&[1, 5, 50])
        } else {
            60_000
        };
        match code {
            sys::XPT_SCSI_IO | sys::XPT_CONT_TARGET_IO => self.scsi(ccb),
            sys::XPT_ATA_IO => self.ata(ccb),
            sys::XPT_NVME_IO => self.nvme(ccb),
            sys::XPT_ABORT => {
                ccb.cab.abort_ccb = (self.safe + self.dice.below(CCBS) * CCB) as *mut sys::ccb;
            }
            sys::XPT_SMP_IO => {
                let (one, two) = (self.len(), self.len());
                let (request, response) = (self.address(one), self.address(two));
                // SAFETY: plain data.
                let smp = unsafe { &mut ccb.smpio };
                (smp.smp_request, smp.smp_request_len) = (request as *mut u8, one as i32);
                (smp.smp_response, smp.smp_response_len) = (response as *mut u8, two as i32);
            }
            sys::XPT_DEV_ADVINFO => {
                let len = self.len();
                let to = self.address(len);
                let kind = self.dice.below(12);
                let store = self.dice.one_in(4);
                // SAFETY: plain data.
                let cdai = unsafe { &mut ccb.cdai };
                (cdai.buf, cdai.bufsiz) = (to as *mut u8, len as _);
                cdai.buftype = kind as u32;
                cdai.flags = u32::from(store);
            }
            sys::XPT_REL_SIMQ => {
                ccb.crs.release_flags = self.dice.next() as u32;
                // More than a SIM has room for is what `more-openings` is about.
                ccb.crs.openings = self.dice.of(&[1, 2, 8, 16]);
            }
            sys::XPT_MMC_IO => {
                let to = self.address(4096);
                ccb.mmcio.cmd.data = (to & !7) as *mut sys::mmc_data;
            }
            _ => {}
        }
        at
    }

    /// What a command's data is: pointer, length, segments, and its flags.
    fn data(&mut self, writes: bool, exact: Option<usize>) -> (usize, u32, u16, u32) {
        let len = exact.unwrap_or_else(|| self.len());
        let direction = match self.dice.below(12) {
            0 => self.dice.of(&[sys::CAM_DIR_NONE, sys::CAM_DIR_BOTH]),
            _ if writes => sys::CAM_DIR_OUT,
            _ => sys::CAM_DIR_IN,
        };
        let (format, (at, n)) = match self.dice.below(10) {
            0..=2 => (sys::CAM_DATA_SG, self.list(len)),
            3 if self.phase == Phase::Opcodes => (
                self.dice.of(&[
                    sys::CAM_DATA_PADDR,
                    sys::CAM_DATA_SG_PADDR,
                    sys::CAM_DATA_BIO,
                ]),
                (self.address(len), 1),
            ),
            _ => (sys::CAM_DATA_VADDR, (self.address(len), 0)),
        };
        (at, len as u32, n, direction | format)
    }

    fn scsi(&mut self, ccb: &mut sys::ccb) {
        // Nothing that stops or formats the medium.
        const COMMANDS: &[u8] = &[
            0x00, 0x03, 0x08, 0x12, 0x12, 0x1a, 0x25, 0x28, 0x28, 0x28, 0x28, 0x2a, 0x2a, 0x2f,
            0x35, 0x4d, 0x5a, 0x88, 0x8a, 0x9e, 0xa0, 0xa3, 0xa8, 0xff,
        ];
        let command = self.dice.of(COMMANDS);
        let writes = matches!(command, 0x2a | 0x8a);
        let (at, len, segments, flags) = self.data(writes, None);
        let blocks = if self.dice.one_in(6) {
            self.dice.below(70_000) as u32
        } else {
            len.min(1 << 22) / 512
        };
        let lba = self.lba(writes).to_be_bytes();
        let count = blocks.to_be_bytes();
        let mut cdb = [0; 16];
        cdb[0] = command;
        match command {
            0x28 | 0x2a | 0x2f => {
                cdb[2..6].copy_from_slice(&lba);
                cdb[7..9].copy_from_slice(&count[2..]);
            }
            0x88 | 0x8a => {
                cdb[6..10].copy_from_slice(&lba);
                cdb[10..14].copy_from_slice(&count);
            }
            0xa8 => {
                cdb[2..6].copy_from_slice(&lba);
                cdb[6..10].copy_from_slice(&count);
            }
            0x08 => (cdb[3], cdb[4]) = (lba[3], count[3]),
            _ => {
                for byte in &mut cdb[1..] {
                    *byte = if self.dice.one_in(2) {
                        0
                    } else {
                        self.dice.next() as u8
                    };
                }
                cdb[3] = 0;
            }
        }
        if writes {
            // What is long would reach blocks of others.
            let most = 2048u32.min(blocks).to_be_bytes();
            let to = if command == 0x2a { 7..9 } else { 12..14 };
            cdb[10..12].fill(0);
            cdb[to].copy_from_slice(&most[2..]);
        }
        let cdb_len = match self.dice.below(20) {
            0 => self.dice.next() as u8,
            1 => self.dice.of(&[0, 1, 17, 32, 255]),
            _ => [6, 10, 10, 12, 16, 12, 16, 16][usize::from(command >> 5)],
        };
        let wild = self.dice.one_in(10);
        let elsewhere = if wild {
            self.dice.of(WILD)
        } else {
            core::ptr::from_mut(ccb) as usize + CCB - 16
        };
        let tag = self.dice.next() as u8;
        let sense = self.dice.next() as u8;
        // SAFETY: plain data.
        let io = unsafe { &mut ccb.csio };
        io.ccb_h.flags |= flags;
        (io.data_ptr, io.dxfer_len, io.sglist_cnt) = (at as *mut u8, len, segments);
        (io.cdb_len, io.sense_len, io.tag_action) = (cdb_len, sense, tag);
        io.cdb_io.cdb_bytes = cdb;
        if io.ccb_h.flags & sys::CAM_CDB_POINTER != 0 {
            // Behind the CCB, in its room: what lies elsewhere may be any command.
            if !wild {
                // SAFETY: the last bytes of the CCB's room.
                unsafe { (elsewhere as *mut [u8; 16]).write(cdb) };
            }
            io.cdb_io.cdb_ptr = elsewhere as *mut u8;
            io.cdb_len = cdb_len.min(16);
        }
    }

    fn lba(&mut self, writes: bool) -> u32 {
        if writes {
            return TARGET + self.dice.below(60_000) as u32;
        }
        if self.dice.one_in(10) {
            return self.dice.next() as u32;
        }
        self.dice.below(131_072) as u32
    }

    fn ata(&mut self, ccb: &mut sys::ccb) {
        let writes = self.dice.one_in(4);
        let blocks = 1 + self.dice.below(256);
        let (at, len, _, flags) = self.data(writes, Some(blocks * 512));
        let flags = (flags & !sys::CAM_DIR_MASK & !sys::CAM_DATA_MASK)
            | if writes {
                sys::CAM_DIR_OUT
            } else {
                sys::CAM_DIR_IN
            };
        let lba = if writes {
            TARGET + self.dice.below(60_000) as u32
        } else {
            self.dice.below(120_000) as u32
        };
        // SAFETY: plain data.
        let io = unsafe { &mut ccb.ataio };
        io.ccb_h.flags = (io.ccb_h.flags & !sys::CAM_DIR_MASK & !sys::CAM_DATA_MASK) | flags;
        // SAFETY: plain data.
        unsafe { (&raw mut io.cmd).write_bytes(0, 1) };
        io.cmd.flags = (sys::CAM_ATAIO_48BIT | sys::CAM_ATAIO_DMA) as u8;
        io.cmd.command = if writes { 0x35 } else { 0x25 };
        io.cmd.device = 0x40;
        let [low, mid, high, rest] = lba.to_le_bytes();
        (io.cmd.lba_low, io.cmd.lba_mid, io.cmd.lba_high) = (low, mid, high);
        io.cmd.lba_low_exp = rest;
        let [low, high] = (blocks as u16).to_le_bytes();
        (io.cmd.sector_count, io.cmd.sector_count_exp) = (low, high);
        (io.data_ptr, io.dxfer_len) = (at as *mut u8, len);
    }

    fn nvme(&mut self, ccb: &mut sys::ccb) {
        let opcode = self.dice.of(&[2u8, 2, 2, 1, 0, 5, 4, 8, 9, 0x0c, 0x7f]);
        let blocks = 1 + self.dice.below(256);
        let exact = (!self.dice.one_in(4)).then_some(blocks * 512);
        let (at, len, segments, flags) = self.data(opcode == 1, exact);
        let lba = if matches!(opcode, 1 | 4 | 8) {
            TARGET + self.dice.below(60_000) as u32
        } else {
            self.dice.below(130_000) as u32
        };
        let nsid = self.dice.of(&[1, 1, 1, 1, 0, 2, u32::MAX]);
        let odd = self.dice.next() as u32;
        // SAFETY: plain data.
        let io = unsafe { &mut ccb.nvmeio };
        io.ccb_h.flags |= flags;
        let (low, high) = (odd, 0);
        // SAFETY: plain data.
        unsafe { (&raw mut io.cmd).write_bytes(0, 1) };
        (io.cmd.opc, io.cmd.nsid) = (opcode, nsid);
        (io.cmd.cdw10, io.cmd.cdw11) = (lba, high);
        io.cmd.cdw12 = blocks as u32 - 1;
        if opcode == 9 {
            // Deallocating what is not said is for nobody's blocks.
            (io.cmd.cdw10, io.cmd.cdw11) = (0, 0);
            io.cmd.opc = 2;
        }
        io.cmd.cdw13 = low;
        (io.data_ptr, io.dxfer_len, io.sglist_cnt) = (at as *mut u8, len, segments);
    }

    /// One call.
    fn step(&mut self) {
        let Some(open) = self.open() else { return };
        self.shared.calls.fetch_add(1, Relaxed);
        let weights: [usize; 10] = match self.phase {
            Phase::Opcodes => [5, 4, 3, 3, 1, 1, 1, 1, 1, 1],
            Phase::Storm => [1, 6, 2, 6, 4, 1, 1, 1, 2, 1],
            Phase::Memory => [4, 4, 4, 4, 1, 1, 0, 1, 1, 0],
            Phase::Edges => [1, 2, 1, 6, 1, 3, 3, 3, 1, 2],
            Phase::Sharing => [1, 4, 4, 4, 2, 1, 1, 2, 2, 1],
        };
        let mut left = self.dice.below(weights.iter().sum());
        let what = weights.iter().position(|weight| {
            let here = left < *weight;
            left = left.saturating_sub(*weight);
            here
        });
        let answer = match what {
            Some(0) => {
                let ccb = self.ccb(open);
                let answer = self.sys.ioctl(open.fd, sys::QPC_CAMIOCOMMAND, ccb);
                if answer.is_ok() {
                    self.look_for_addresses(ccb);
                }
                answer
            }
            Some(1) => {
                let mut answer = Ok(());
                for _ in 0..1 + self.dice.below(8) {
                    let ccb = if self.dice.one_in(30) {
                        self.address(CCB)
                    } else {
                        self.ccb(open)
                    };
                    answer = self.sys.ioctl(open.fd, sys::QPC_CAMIOQUEUE, ccb);
                }
                answer
            }
            Some(2) => {
                let ccb = if self.dice.one_in(10) {
                    self.address(CCB)
                } else {
                    self.safe + self.dice.below(CCBS) * CCB
                };
                let answer = self.sys.ioctl(open.fd, sys::QPC_CAMIOGET, ccb);
                if answer.is_ok() && ccb < self.safe + LISTS && ccb >= self.safe {
                    self.look_for_addresses(ccb);
                }
                answer
            }
            Some(3) => self.enter(open),
            Some(4) => self.cancel(open),
            Some(5) => self.limit(open),
            Some(6) => {
                // Any number.
                let group = self.dice.of(&[b'Q', b'Q', 0x19, 0x1a, b'f', 0]);
                let number = self.dice.below(8) as u64;
                let len = self.dice.of(&[0u64, 4, 8, 64, 1024, 8191]);
                let request =
                    self.dice
                        .of(&[0x2000_0000u64, 0x4000_0000, 0x8000_0000, 0xc000_0000])
                        | len << 16
                        | u64::from(group) << 8
                        | number;
                let at = self.address(8192);
                self.sys.ioctl(open.fd, request, at)
            }
            Some(7) => self.list_call(open),
            Some(8) => {
                let ms = self.dice.below(20) as i32;
                let events = self.dice.next() as i16;
                let _ = self.sys.poll(open.fd, events, ms);
                self.watch(open);
                Ok(())
            }
            _ => {
                self.reopen();
                Ok(())
            }
        };
        if answer.is_ok() {
            self.shared.good.fetch_add(1, Relaxed);
        }
    }

    fn watch(&mut self, open: Open) {
        let Ok(kq) = self.sys.kqueue() else { return };
        // SAFETY: plain data.
        let mut event: sys::kevent = unsafe { core::mem::zeroed() };
        event.ident = open.fd as u64;
        event.filter = self.dice.of(&[-1, -2]);
        event.flags = self.dice.of(&[1, 1 | 0x20, 1 | 0x10, 1 | 0x80]);
        let mut events = [event; 4];
        let ms = self.dice.below(10) as u32;
        let _ = self.sys.kevent(kq, &[event], &mut events, ms);
        self.sys.close(kq);
    }

    fn reopen(&mut self) {
        let at = self.dice.below(6);
        let Some(open) = self.opens[at] else { return };
        match self.dice.below(3) {
            0 => {
                if let Ok(fd) = self.sys.dup(open.fd) {
                    self.sys.close(open.fd);
                    self.opens[at] = Some(Open { fd, ..open });
                }
            }
            _ => {
                const PATHS: [&str; 6] = [
                    "/dev/qpass0",
                    "/dev/qpass1",
                    "/dev/qpass2",
                    "/dev/qpass3",
                    "/dev/qpass4",
                    "/dev/qpass5",
                ];
                // Who is no longer root keeps what it has.
                if let Ok(fd) = self.sys.open(PATHS[at], RDWR) {
                    self.sys.close(open.fd);
                    self.opens[at] = Some(Open { fd, ..open });
                }
            }
        }
    }

    fn enter(&mut self, open: Open) -> Result<(), i32> {
        let at = self.safe + ARRAYS + self.dice.below(4) * ARRAY;
        let n = self.dice.below(33);
        for i in 0..n {
            let ccb = if self.dice.one_in(100) {
                self.address(CCB)
            } else {
                self.ccb(open)
            };
            // SAFETY: inside the array's room; threads share it as plain data.
            unsafe {
                let to = (at as *mut u64).add(i * 3);
                to.write_volatile(ccb as u64);
                to.add(1).write_volatile(i as u64);
                to.add(2).write_volatile(u64::from(self.dice.one_in(300)));
            }
        }
        // SAFETY: integers.
        let mut what: sys::qpass_enter = unsafe { core::mem::zeroed() };
        what.submissions = at as u64;
        what.completions = match self.dice.below(8) {
            // The very same array, a CCB, or what goes away.
            0 => at as u64,
            1 => (self.safe + self.dice.below(CCBS) * CCB) as u64,
            2 => self.address(4096) as u64,
            _ => (self.safe + ARRAYS + self.dice.below(4) * ARRAY) as u64,
        };
        what.to_submit = n as u32;
        what.to_complete = self.dice.below(65) as u32;
        what.min_complete = self.dice.below(what.to_complete as usize + 1) as u32;
        what.flags = self.dice.below(8) as u32;
        what.timeout = self.dice.of(&[0, 1, 1_000_000, 20_000_000]);
        if self.phase == Phase::Edges {
            what.timeout = self.dice.of(&[
                0,
                1_000_000,
                999_999_999,
                1_000_000_000,
                u64::MAX,
                u64::MAX - 1,
                i64::MAX as u64,
                i64::MAX as u64 + 1,
                1 << 62,
                1 << 32,
            ]);
            if self.dice.one_in(4) {
                what.to_submit = self.dice.of(&[0, 1, 4096, 4097, u32::MAX]);
            }
            if self.dice.one_in(4) {
                what.to_complete = self.dice.of(&[0, 1, 4096, 4097, u32::MAX]);
            }
            if self.dice.one_in(4) {
                what.min_complete = self.dice.of(&[0, 1, 4096, u32::MAX]);
            }
            if self.dice.one_in(4) {
                what.submissions = self.dice.of(WILD) as u64;
            }
            if self.dice.one_in(20) {
                what.flags = self.dice.next() as u32;
            }
        }
        call(self.sys, open.fd, sys::QPC_QPIOC_ENTER, what).map(|_| ())
    }

    fn cancel(&mut self, open: Open) -> Result<(), i32> {
        // SAFETY: integers.
        let mut what: sys::qpass_cancel = unsafe { core::mem::zeroed() };
        match self.dice.below(6) {
            0 => what.ccb = 0,
            1..=3 => what.ccb = (self.safe + self.dice.below(CCBS) * CCB) as u64,
            4 => {
                what.flags = sys::QPASS_CANCEL_DEVICE;
                what.open = self.dice.below(40) as u64;
                what.number = self.dice.below(3) as u64;
            }
            _ => {
                what.ccb = self.dice.next();
                what.flags = self.dice.below(4) as u32;
            }
        }
        call(self.sys, open.fd, sys::QPC_QPIOC_CANCEL, what).map(|_| ())
    }

    fn limit(&mut self, open: Open) -> Result<(), i32> {
        // SAFETY: integers.
        let mut what: sys::qpass_limit = unsafe { core::mem::zeroed() };
        what.requests = self.dice.of(&[0, 1, 2, 17, 1024, 1025, u32::MAX]);
        what.bytes = self
            .dice
            .of(&[0, 1, 4096, 1 << 20, 64 << 20, (64 << 20) + 1, u64::MAX]);
        what.reserved0 = u32::from(self.dice.one_in(30));
        call(self.sys, open.fd, sys::QPC_QPIOC_LIMIT, what).map(|_| ())
    }

    fn list_call(&mut self, open: Open) -> Result<(), i32> {
        if self.dice.one_in(2) {
            // SAFETY: integers.
            let zero: sys::qpass_info = unsafe { core::mem::zeroed() };
            return call(self.sys, open.fd, sys::QPC_QPIOC_INFO, zero).map(|_| ());
        }
        // SAFETY: integers.
        let mut what: sys::qpass_list = unsafe { core::mem::zeroed() };
        what.entries = (self.address(256 * 72) & !7) as u64;
        what.room = self.dice.of(&[0, 1, 7, 256, 257, u32::MAX]);
        what.flags = self.dice.below(2) as u32;
        what.cursor = [self.dice.below(9) as u64, self.dice.below(99) as u64];
        if self.dice.one_in(8) {
            what.cursor = [self.dice.next(), self.dice.next()];
        }
        call(self.sys, open.fd, sys::QPC_QPIOC_LIST, what).map(|_| ())
    }

    /// Whether what came back has words that only a kernel's addresses are: no
    /// word of a program's own has its upper bits set.
    fn look_for_addresses(&mut self, ccb: usize) {
        for i in 0..size_of::<sys::ccb>() / 8 {
            // SAFETY: inside the CCB.
            let word = unsafe { (ccb as *const u64).add(i).read_volatile() };
            // vmparam.h: the direct map and the kernel's own, and its text and data.
            let is_kernels = (0xffff_f800_0000_0000..0xffff_fff0_0000_0000).contains(&word)
                || (0xffff_ffff_8000_0000..0xffff_ffff_f000_0000).contains(&word);
            if is_kernels && word & 0xffff != 0xffff && !WILD.contains(&(word as usize)) {
                // SAFETY: plain data.
                let code = unsafe { (*(ccb as *const sys::ccb)).ccb_h.func_code };
                if self.shared.leaked.fetch_add(1, Relaxed) < 10 {
                    let mut line = conform::Line::new();
                    use core::fmt::Write;
                    let _ = write!(line, "guest: {word:#x} at {} of opcode {code:#x}", i * 8);
                    self.sys.print(line.as_str());
                }
            }
        }
    }

    /// Takes memory away, or puts other memory there.
    fn remap(&mut self) {
        let pages = 1 + self.dice.below(64);
        let at = self.arena + self.dice.below(ARENA / PAGE - pages) * PAGE;
        let len = pages * PAGE;
        match self.dice.below(4) {
            0 => {
                // SAFETY: the arena's, which no code here touches.
                unsafe { self.sys.unmap(at as *mut u8, len) };
                self.sys.map_at(at, len);
            }
            1 => {
                self.sys
                    .protect(at as *mut u8, len, conform::sys::Access::Read);
                self.sys
                    .protect(at as *mut u8, len, conform::sys::Access::Write);
            }
            2 => {
                self.sys
                    .protect(at as *mut u8, len, conform::sys::Access::None);
                self.sys
                    .protect(at as *mut u8, len, conform::sys::Access::Write);
            }
            _ => self.sys.map_at(at, len),
        }
    }
}

const _: () = assert!(size_of::<sys::ccb>() + 16 <= CCB && SCRATCH < TARGET);
