//! Threads that do at random what an operator can, on the SIMs that do not
//! forgive, beside others that verify every byte of what they read and write.
//! `QPASS_SEED` runs one seed again.

use super::{
    enter::{Arrays, enter},
    transfers::{Protocol, build, entry},
    *,
};
use conform::sys::{Access, Memory};
use ukernel::model::Model;

tests! {
    iscsi_stands_an_attack;
    nvme_stands_an_attack;
    ahci_stands_an_attack;
    isci_stands_an_attack;
    smartpqi_stands_an_attack;
    mrsas_stands_an_attack;
    virtio_stands_an_attack;
}

fn iscsi_stands_an_attack() {
    attack(Model::ISCSI, Protocol::Scsi);
}

fn nvme_stands_an_attack() {
    attack(Model::NVME, Protocol::Nvme);
}

fn ahci_stands_an_attack() {
    attack(Model::AHCI, Protocol::Ata);
}

fn isci_stands_an_attack() {
    attack(Model::ISCI, Protocol::Scsi);
}

fn smartpqi_stands_an_attack() {
    attack(Model::SMARTPQI, Protocol::Scsi);
}

fn mrsas_stands_an_attack() {
    attack(Model::MRSAS, Protocol::Scsi);
}

fn virtio_stands_an_attack() {
    attack(Model::VIRTIO, Protocol::Scsi);
}

/// Blocks: each verifier's own, and behind them those that attackers write.
const OWN: u32 = 2048;
const VERIFIERS: u32 = 2;
const ATTACKERS: usize = 3;
const TARGET: u32 = OWN * VERIFIERS;
const DISK: u32 = 16384;
const BUFFER: usize = 128 << 10;
const CANARY: u8 = 0xa5;

/// Sets a read or a write at a block up.
fn transfer(
    command: &mut Command,
    protocol: Protocol,
    write: bool,
    lba: u32,
    to: usize,
    len: usize,
) {
    build(command, protocol, write, to, len);
    let bytes = lba.to_le_bytes();
    match protocol {
        Protocol::Scsi => {
            command.rw10(write, lba, (len / 512) as u16);
            command.csio().data_ptr = to as *mut u8;
        }
        Protocol::Ata => {
            // SAFETY: plain data.
            let cmd = unsafe { &mut command.ccb.ccb_mut().ataio.cmd };
            [cmd.lba_low, cmd.lba_mid, cmd.lba_high, cmd.lba_low_exp] = bytes;
        }
        Protocol::Nvme => entry(command)[40..44].copy_from_slice(&bytes),
    }
    command.hdr().flags |= sys::CAM_DEV_QFRZDIS;
}

fn attack(model: Model, protocol: Protocol) {
    let seed = match std::env::var("QPASS_SEED") {
        Ok(seed) => seed.parse().expect("QPASS_SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut machine, module) = boot(Config {
        size: DISK as usize * 512,
        openings: 8,
        latency: Duration::from_micros(20),
        jitter: Duration::from_micros(200),
        threads: 3,
        sata: protocol == Protocol::Ata,
        ..Config::of(model)
    });
    let shared_open = machine.open(NODE, RDWR).expect("open");
    let end = Instant::now() + Duration::from_millis(700);
    let verified = AtomicU64::new(0);
    let shared = &machine;
    std::thread::scope(|scope| {
        for i in 0..VERIFIERS {
            let (random, verified) = (random.fork(), &verified);
            scope.spawn(move || verify(shared, protocol, i * OWN, random, end, verified));
        }
        for i in 0..ATTACKERS {
            let random = random.fork();
            let other = (i != 0).then_some(shared_open);
            scope.spawn(move || {
                Attacker::new(shared, protocol, random).run(other, end);
            });
        }
    });
    let verified = verified.into_inner();
    assert!(verified > 10, "{verified} transfers were verified");
    machine.close_all();
    cam::settle();
    cam::all_neighbours_read();
    wait_until("all memory is back", all_is_back);
    memory::check_freed();
    machine.unload(module);
}

/// Writes and reads its own blocks.
fn verify(
    machine: &Machine,
    protocol: Protocol,
    first: u32,
    mut random: fastrand::Rng,
    end: Instant,
    verified: &AtomicU64,
) {
    let mut sys = Shared(machine);
    let fd = sys.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut sys, BUFFER);
    let mut arrays = Arrays::new(&mut sys);
    while Instant::now() < end {
        let len = 512 * random.usize(1..100);
        let at = 4096 + [0, 0, 512, 1, 4, 514][random.usize(..6)];
        let lba = first + random.u32(..OWN - 100);
        let to = command.data.address() + at;
        let mut wanted = vec![CANARY; command.data.len()];
        random.fill(&mut wanted[at..at + len]);
        command.data.bytes_mut().copy_from_slice(&wanted);
        for write in [true, false] {
            if !write {
                command.data.bytes_mut().fill(CANARY);
            }
            transfer(&mut command, protocol, write, lba, to, len);
            match random.u32(..3) {
                0 => command.send(&mut sys, fd).expect("CAMIOCOMMAND"),
                1 => {
                    command.queue(&mut sys, fd).expect("CAMIOQUEUE");
                    assert_eq!(sys.poll(fd, POLLIN, 20_000), Ok(POLLIN));
                    command.get(&mut sys, fd).expect("CAMIOGET");
                }
                _ => {
                    arrays.submit(&[(command.ccb.address(), 1)]);
                    let answer = enter(&mut sys, fd, arrays.call(1, 1, 1));
                    assert_eq!(answer, Ok((1, 1, 0, 0)));
                }
            }
            // Nobody else cancels what is of this open.
            let status = command.hdr().status & sys::CAM_STATUS_MASK;
            assert_eq!(status, sys::CAM_REQ_CMP, "{protocol:?} write {write}");
        }
        let found = command.data.bytes();
        let bad = found.iter().zip(&wanted).position(|(a, b)| a != b);
        assert_eq!(bad, None, "{protocol:?} len {len} at {at}");
        verified.fetch_add(1, Ordering::Relaxed);
    }
    sys.close(fd);
}

/// One attacker: its CCBs, a list, and data that it takes away.
struct Attacker<'a> {
    sys: Shared<'a>,
    protocol: Protocol,
    random: fastrand::Rng,
    commands: Vec<Command>,
    list: Memory,
    arrays: Arrays,
}

impl<'a> Attacker<'a> {
    fn new(machine: &'a Machine, protocol: Protocol, random: fastrand::Rng) -> Self {
        let mut sys = Shared(machine);
        Attacker {
            commands: (0..16).map(|_| Command::new(&mut sys, BUFFER)).collect(),
            list: Memory::new(&mut sys, 65536),
            arrays: Arrays::new(&mut sys),
            sys,
            protocol,
            random,
        }
    }

    fn run(mut self, other: Option<i32>, end: Instant) {
        let mut own = self.sys.open(NODE, RDWR).expect("open");
        while Instant::now() < end {
            let fd = match other {
                Some(fd) if self.random.bool() => fd,
                _ => own,
            };
            self.step(fd);
            if self.random.u32(..60) == 0 {
                // All that is in flight is abandoned.
                self.sys.close(own);
                own = self.sys.open(NODE, RDWR).expect("open");
            }
        }
        self.sys.close(own);
        // What was abandoned, or is another thread's to reap, may still be
        // written: its memory goes with the process.
        std::mem::forget(self.commands);
    }

    fn step(&mut self, fd: i32) {
        let i = self.random.usize(..16);
        match self.random.u32(..16) {
            0..=4 => {
                for _ in 0..self.random.u32(1..8) {
                    let i = self.random.usize(..16);
                    self.ccb(i);
                    let _ = self.commands[i].queue(&mut self.sys, fd);
                }
            }
            5..=7 => {
                let n = self.random.usize(..24);
                let submissions: Vec<_> = (0..n)
                    .map(|_| {
                        let i = self.random.usize(..16);
                        self.ccb(i);
                        (self.commands[i].ccb.address(), i as u64)
                    })
                    .collect();
                self.arrays.submit(&submissions);
                let room = self.random.u32(..60);
                let mut call = self.arrays.call(n, room, self.random.u32(..=room));
                call.flags = self.random.u32(..8) & !sys::QPASS_ENTER_ABSTIME;
                call.timeout = self.random.u64(..2_000_000);
                match self.random.u32(..12) {
                    0 => call.completions = call.submissions,
                    1 => call.completions = self.commands[i].ccb.address() as u64,
                    2 => call.submissions = 0x10,
                    _ => {}
                }
                let _ = enter(&mut self.sys, fd, call);
            }
            8..=10 => {
                let _ = self.commands[i].get(&mut self.sys, fd);
            }
            11 => {
                self.ccb(i);
                let _ = self.commands[i].send(&mut self.sys, fd);
            }
            12 | 13 => {
                let all = self.random.u32(..6) == 0;
                let ccb = if all {
                    0
                } else {
                    self.commands[i].ccb.address()
                };
                let _ = control::cancel(&mut self.sys, fd, ccb);
            }
            14 => {
                let requests = [0, 1, 3, 1024][self.random.usize(..4)];
                let bytes = [0, 1, 4096, 1 << 20, 64 << 20][self.random.usize(..5)];
                let _ = control::limit(&mut self.sys, fd, requests, bytes);
            }
            _ => {
                let data = &self.commands[i].data;
                let (at, len) = (data.address() as *mut u8, data.len());
                let access = [Access::None, Access::Read][self.random.usize(..2)];
                self.sys.protect(at, len, access);
                std::thread::yield_now();
                self.sys.protect(at, len, Access::Write);
            }
        }
    }

    /// Makes one of its CCBs anew: mostly what a disk takes.
    fn ccb(&mut self, i: usize) {
        let target = self.commands[self.random.usize(..16)].ccb.address();
        let random = &mut self.random;
        let command = &mut self.commands[i];
        let (address, list) = (command.data.address(), self.list.address());
        let len = 512 * random.usize(1..200);
        let write = random.u32(..3) == 0;
        let lba = if write {
            TARGET + random.u32(..DISK - TARGET - 200)
        } else {
            random.u32(..DISK + 100)
        };
        let at = [0, 512, 1, 4, 1111][random.usize(..5)];
        transfer(command, self.protocol, write, lba, address + at, len);
        let is_scsi = self.protocol == Protocol::Scsi;
        match random.u32(..12) {
            0 if is_scsi => command.inquiry(random.u8(..)),
            1 if is_scsi => command.test_unit_ready(),
            2 => {
                command.immediate(sys::XPT_ABORT);
                command.ccb.ccb_mut().cab.abort_ccb = target as *mut sys::ccb;
            }
            3 => command.immediate([sys::XPT_PATH_INQ, sys::XPT_GDEV_TYPE][random.usize(..2)]),
            4..=6 if self.protocol != Protocol::Ata => {
                // A list: pieces of its data, some of them empty.
                let n = random.usize(1..20);
                let mut left = len;
                for j in 0..n {
                    let part = if j + 1 == n {
                        left
                    } else {
                        random.usize(..=left)
                    };
                    let part = if random.bool() { part } else { part & !511 };
                    let part = if j + 1 == n { left } else { part };
                    left -= part;
                    let from = random.usize(..=BUFFER - part);
                    let from = if random.bool() { from } else { from & !4095 };
                    let segment = [(address + from) as u64, part as u64];
                    for (k, word) in segment.iter().enumerate() {
                        let to = j * 16 + k * 8;
                        self.list.bytes_mut()[to..to + 8].copy_from_slice(&word.to_ne_bytes());
                    }
                }
                command.hdr().flags |= sys::CAM_DATA_SG;
                let ccb = command.ccb.ccb_mut();
                if is_scsi {
                    (ccb.csio.data_ptr, ccb.csio.sglist_cnt) = (list as *mut u8, n as u16);
                } else {
                    (ccb.nvmeio.data_ptr, ccb.nvmeio.sglist_cnt) = (list as *mut u8, n as u16);
                }
            }
            _ => {}
        }
        let hdr = command.hdr();
        for flag in [
            sys::CAM_DEV_QFRZDIS,
            sys::CAM_DEV_QFREEZE,
            sys::CAM_PASS_ERR_RECOVER,
            sys::CAM_HIGH_POWER,
        ] {
            if random.u32(..4) == 0 {
                hdr.flags ^= flag;
            }
        }
        hdr.retry_count = [0, 1, 4][random.usize(..3)];
        hdr.pinfo.priority = random.u32(..);
    }
}
