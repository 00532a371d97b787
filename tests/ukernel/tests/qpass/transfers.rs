//! Every byte of every kind of transfer: by address and by list, at every
//! offset that busdma or a controller tells apart, at lengths around the ends of
//! pages, by each call, with zero copy and without. What lies around a buffer,
//! between the segments of a list, and around the blocks on the disk, stays.

use super::{
    enter::{Arrays, enter},
    *,
};
use conform::sys::Memory;
use ukernel::{busdma, disk, model::Model, vm};

tests! {
    scsi_data_is_right_at_every_offset_in_a_copy;
    ata_data_is_right_at_every_offset_in_a_copy;
    nvme_data_is_right_at_every_offset_in_a_copy;
    blockwise_data_is_right_at_every_offset_in_a_copy;
    scsi_data_is_right_at_every_offset_without_a_copy;
    ata_data_is_right_at_every_offset_without_a_copy;
    nvme_data_is_right_at_every_offset_without_a_copy;
    blockwise_data_is_right_at_every_offset_without_a_copy;
    scsi_lists_are_right_in_a_copy;
    nvme_lists_are_right_in_a_copy;
    scsi_lists_are_right_without_a_copy;
    nvme_lists_are_right_without_a_copy;
    blockwise_lists_are_right_without_a_copy;
    every_read_and_write_opcode_moves_its_data;
    what_is_sent_is_what_a_peripheral_sends;
}

/// Which kind of CCB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Scsi,
    Ata,
    Nvme,
}

/// By which call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// CAMIOQUEUE, kevent(2), CAMIOGET.
    Queue,
    /// QPIOC_ENTER.
    Enter,
    /// CAMIOCOMMAND.
    Send,
}

/// What a byte is that nothing may change.
const CANARY: u8 = 0xaa;
/// Blocks of the disk around those of a transfer.
const AROUND: u8 = 0x99;
/// Where the blocks of a transfer are.
const LBA: usize = 64;

/// Sets a read or a write up, of `len` bytes at [`LBA`].
pub fn build(command: &mut Command, protocol: Protocol, write: bool, at: usize, len: usize) {
    let blocks = (len / 512) as u16;
    let direction = match write {
        true => sys::CAM_DIR_OUT,
        false => sys::CAM_DIR_IN,
    };
    match protocol {
        Protocol::Scsi => {
            command.rw10(write, LBA as u32, blocks);
            command.csio().data_ptr = at as *mut u8;
        }
        Protocol::Ata => {
            zeroed(command, sys::XPT_ATA_IO, direction);
            // SAFETY: plain data.
            let io = unsafe { &mut command.ccb.ccb_mut().ataio };
            io.cmd.command = if write { 0x35 } else { 0x25 };
            io.cmd.flags = (sys::CAM_ATAIO_48BIT | sys::CAM_ATAIO_DMA) as u8;
            io.cmd.lba_low = LBA as u8;
            [io.cmd.sector_count, io.cmd.sector_count_exp] = blocks.to_le_bytes();
            (io.data_ptr, io.dxfer_len) = (at as *mut u8, len as u32);
        }
        Protocol::Nvme => {
            nvme(command, false, if write { 1 } else { 2 }, direction);
            entry(command)[40] = LBA as u8;
            entry(command)[48..50].copy_from_slice(&(blocks - 1).to_le_bytes());
            nvme_data(command, at, len);
        }
    }
}

/// An NVMe command without data.
pub fn nvme(command: &mut Command, admin: bool, opcode: u8, direction: u32) {
    let func_code = match admin {
        true => sys::XPT_NVME_ADMIN,
        false => sys::XPT_NVME_IO,
    };
    zeroed(command, func_code, direction);
    entry(command)[0] = opcode;
    // The first namespace.
    entry(command)[4] = 1;
}

/// Its data.
pub fn nvme_data(command: &mut Command, at: usize, len: usize) {
    // SAFETY: plain data.
    let io = unsafe { &mut command.ccb.ccb_mut().nvmeio };
    (io.data_ptr, io.dxfer_len) = (at as *mut u8, len as u32);
}

/// Its submission queue entry.
pub fn entry(command: &mut Command) -> &mut [u8; 64] {
    // SAFETY: 64 bytes of plain data.
    unsafe { &mut *(&raw mut command.ccb.ccb_mut().nvmeio.cmd).cast() }
}

/// Names the data by a list, which is in `list`.
fn name_by_list(command: &mut Command, list: &mut Memory, segments: &[(usize, usize)]) {
    for (i, (at, len)) in segments.iter().enumerate() {
        let at = command.data.address() + at;
        for (j, word) in [at as u64, *len as u64].iter().enumerate() {
            let to = i * 16 + j * 8;
            list.bytes_mut()[to..to + 8].copy_from_slice(&word.to_ne_bytes());
        }
    }
    let count = segments.len() as u16;
    let pointer = list.address() as *mut u8;
    command.hdr().flags |= sys::CAM_DATA_SG;
    if command.hdr().func_code == sys::XPT_NVME_IO {
        // SAFETY: plain data.
        let io = unsafe { &mut command.ccb.ccb_mut().nvmeio };
        (io.data_ptr, io.sglist_cnt) = (pointer, count);
    } else {
        let io = command.csio();
        (io.data_ptr, io.sglist_cnt) = (pointer, count);
    }
}

/// A machine with a disk of a kind, and what a transfer needs.
struct Rig {
    machine: Machine,
    module: Module,
    fd: i32,
    command: Command,
    list: Memory,
    arrays: Arrays,
    random: fastrand::Rng,
    transfers: u32,
}

/// Where two runs of bytes are not the same.
fn differs(found: &[u8], wanted: &[u8]) -> Option<usize> {
    if found == wanted {
        return None;
    }
    found.iter().zip(wanted).position(|(a, b)| a != b)
}

/// Bytes of the buffer, the ones around those of a transfer included.
const BUFFER: usize = 96 << 10;

impl Rig {
    fn new(model: Model, unmapped: bool) -> Self {
        let (mut machine, module) = boot(Config {
            unmapped,
            size: 2 << 20,
            ..Config::of(model)
        });
        let fd = machine.open(NODE, RDWR).expect("open");
        sysctl::set("zerocopy_min", 0);
        Rig {
            command: Command::new(&mut machine, BUFFER),
            list: Memory::new(&mut machine, 4096),
            arrays: Arrays::new(&mut machine),
            random: fastrand::Rng::with_seed(7),
            transfers: 0,
            machine,
            module,
            fd,
        }
    }

    /// One transfer of the segments, which are offsets in the buffer and
    /// lengths.
    fn run(&mut self, protocol: Protocol, by: By, write: bool, segments: &[(usize, usize)]) {
        let what = format!("{protocol:?} {by:?} write: {write} {segments:x?}");
        let len: usize = segments.iter().map(|(_, len)| len).sum();
        let mut data = vec![0; len];
        self.random.fill(&mut data);
        let mut around = vec![AROUND; len + 1024];
        // The buffer as it must be at the end.
        let mut wanted = vec![CANARY; self.command.data.len()];
        let mut from = &data[..];
        for (at, len) in segments {
            wanted[*at..at + len].copy_from_slice(&from[..*len]);
            from = &from[*len..];
        }
        if write {
            self.command.data.bytes_mut().copy_from_slice(&wanted);
        } else {
            self.command.data.bytes_mut().fill(CANARY);
            around[512..512 + len].copy_from_slice(&data);
        }
        self.machine.disk().put(LBA * 512 - 512, &around);
        let at = self.command.data.address() + segments[0].0;
        build(&mut self.command, protocol, write, at, len);
        if segments.len() > 1 {
            name_by_list(&mut self.command, &mut self.list, segments);
        }
        self.carry_out(by, &what);
        let status = self.command.hdr().status & sys::CAM_STATUS_MASK;
        let controller = *self.machine.disk().nvme_status.lock().unwrap();
        assert_eq!(status, sys::CAM_REQ_CMP, "{what}, {controller:x?}");
        assert_eq!(vm::holds(), 0, "{what}: pages are held");
        let found = self.command.data.bytes();
        if let Some(i) = differs(found, &wanted) {
            let (found, wanted) = (found[i], wanted[i]);
            panic!("{what}: byte {i:#x} of the buffer is {found:#x}, not {wanted:#x}");
        }
        around[512..512 + len].copy_from_slice(&data);
        let found = self.machine.disk().contents(LBA * 512 - 512, around.len());
        if let Some(i) = differs(&found, &around) {
            let (found, wanted) = (found[i], around[i]);
            let i = i as isize - 512;
            panic!("{what}: byte {i:#x} on the disk is {found:#x}, not {wanted:#x}");
        }
        self.transfers += 1;
    }

    fn carry_out(&mut self, by: By, what: &str) {
        let (machine, fd) = (&mut self.machine, self.fd);
        match by {
            By::Queue => queue_and_get(machine, fd, &self.command),
            By::Send => self.command.send(machine, fd).expect(what),
            By::Enter => {
                self.arrays.submit(&[(self.command.ccb.address(), 1)]);
                let answer = enter(machine, fd, self.arrays.call(1, 1, 1));
                assert_eq!(answer, Ok((1, 1, 0, 0)), "{what}");
                let done = self.arrays.done(1)[0];
                assert_eq!(
                    done.status & sys::CAM_STATUS_MASK,
                    sys::CAM_REQ_CMP,
                    "{what}"
                );
                assert_eq!((done.tag, done.resid), (1, 0), "{what}");
            }
        }
    }

    /// No byte went by a bounce page, and pages were used, or were not.
    fn end(self, bounces: bool, pages: bool) {
        assert!(self.transfers > 100);
        if !bounces {
            assert_eq!(busdma::bounced(), 0, "busdma had to bounce");
        }
        let with_pages = disk::UNMAPPED.load(Ordering::SeqCst);
        assert_eq!(with_pages != 0, pages, "{with_pages} went by pages");
        let mut machine = self.machine;
        machine.close(self.fd);
        machine.unload(self.module);
    }
}

/// Where a buffer begins, in the page and relative to what a device takes.
const OFFSETS: [usize; 20] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 508, 511, 512, 513, 1536, 4088, 4091, 4092, 4095, 3584,
];
const LENS: [usize; 11] = [
    512, 1024, 3584, 4096, 4608, 7680, 8192, 8704, 12288, 65_024, 65_536,
];

/// The model for what becomes of the data alone: what is sent is judged by
/// `what_is_sent_is_what_a_peripheral_sends`.
pub fn lenient(model: Model) -> Model {
    Model {
        is_strict: false,
        ..model
    }
}

fn every_offset(model: Model, protocol: Protocol, unmapped: bool) {
    let mut rig = Rig::new(lenient(model), unmapped);
    for (i, offset) in OFFSETS.into_iter().enumerate() {
        for (j, len) in LENS.into_iter().enumerate() {
            for write in [false, true] {
                // Each pair by two of the three calls, in turn.
                for by in [[By::Queue, By::Send, By::Enter][(i + j) % 3], By::Queue] {
                    rig.run(protocol, by, write, &[(8192 + offset, len)]);
                }
            }
        }
    }
    rig.end(model.name == "blockwise", unmapped);
}

fn scsi_data_is_right_at_every_offset_in_a_copy() {
    every_offset(Model::VIRTIO, Protocol::Scsi, false);
}
fn ata_data_is_right_at_every_offset_in_a_copy() {
    every_offset(Model::AHCI, Protocol::Ata, false);
}
fn nvme_data_is_right_at_every_offset_in_a_copy() {
    every_offset(Model::NVME, Protocol::Nvme, false);
}
fn blockwise_data_is_right_at_every_offset_in_a_copy() {
    every_offset(Model::BLOCKWISE, Protocol::Scsi, false);
}
fn scsi_data_is_right_at_every_offset_without_a_copy() {
    every_offset(Model::VIRTIO, Protocol::Scsi, true);
}
fn ata_data_is_right_at_every_offset_without_a_copy() {
    every_offset(Model::AHCI, Protocol::Ata, true);
}
fn nvme_data_is_right_at_every_offset_without_a_copy() {
    every_offset(Model::NVME, Protocol::Nvme, true);
}
fn blockwise_data_is_right_at_every_offset_without_a_copy() {
    every_offset(Model::BLOCKWISE, Protocol::Scsi, true);
}

/// `len` bytes in `count` segments, from `start` on: of whole units each, with
/// a gap between.
fn evenly(start: usize, len: usize, count: usize, unit: usize, gap: usize) -> Vec<(usize, usize)> {
    let each = len / count / unit * unit;
    let mut at = start;
    let segment = |i| {
        let part = match i {
            i if i + 1 == count => len - each * (count - 1),
            _ => each,
        };
        let here = at;
        at += part + gap;
        (here, part)
    };
    (0..count).map(segment).collect()
}

/// Segments whose inner ends are the ends of pages: the first begins
/// `offset` bytes into one.
fn paged(offset: usize, len: usize, count: usize) -> Vec<(usize, usize)> {
    let first = (4096 - offset).min(len);
    let mut segments = vec![(8192 + offset, first)];
    let (mut at, mut left) = (8192 + 4096 + 4096, len - first);
    while left != 0 {
        let part = if segments.len() + 1 >= count {
            left
        } else {
            left.min(4096)
        };
        segments.push((at, part));
        at += part.next_multiple_of(4096) + 4096 * (segments.len() % 2);
        left -= part;
    }
    segments
}

fn every_list(model: Model, protocol: Protocol, unmapped: bool) {
    let mut rig = Rig::new(lenient(model), unmapped);
    for offset in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 511, 512, 4095] {
        for count in [1, 2, 3, 5, 8, 15] {
            let len = 15_360;
            let start = 8192 + offset;
            let shapes = [
                evenly(start, len, count, 512, 0),
                evenly(start, len, count, 512, 7),
                evenly(start, len, count, 1, 4096),
                evenly(start, len, count, 4, 12),
                paged(offset, len, count),
                paged(offset, len + 512, count),
            ];
            for (i, shape) in shapes.iter().enumerate() {
                for write in [false, true] {
                    let by = [By::Queue, By::Enter][(i + count) % 2];
                    rig.run(protocol, by, write, shape);
                }
            }
        }
    }
    rig.end(model.name == "blockwise", unmapped);
}

fn scsi_lists_are_right_in_a_copy() {
    every_list(Model::MRSAS, Protocol::Scsi, false);
}
fn nvme_lists_are_right_in_a_copy() {
    every_list(Model::NVME, Protocol::Nvme, false);
}
fn scsi_lists_are_right_without_a_copy() {
    every_list(Model::MRSAS, Protocol::Scsi, true);
}
fn nvme_lists_are_right_without_a_copy() {
    every_list(Model::NVME, Protocol::Nvme, true);
}
fn blockwise_lists_are_right_without_a_copy() {
    every_list(Model::BLOCKWISE, Protocol::Scsi, true);
}

/// READ, WRITE and WRITE AND VERIFY of every length that a CCB has room for, and
/// ATA's DMA and NCQ commands, from a page's start and not.
fn every_read_and_write_opcode_moves_its_data() {
    const LEN: usize = 8192;
    let mut rig = Rig::new(Model::AHCI, true);
    let number = |cdb: &mut [u8], at: usize, bytes: usize, n: u64| {
        let n = n.to_be_bytes();
        cdb[at..at + bytes].copy_from_slice(&n[8 - bytes..]);
    };
    let cdb = |opcode: u8| {
        let (len, lba, count) = match opcode >> 5 {
            0 => (6, (1, 3), (4, 1)),
            1 => (10, (2, 4), (7, 2)),
            4 => (16, (2, 8), (10, 4)),
            _ => (12, (2, 4), (6, 4)),
        };
        let mut cdb = vec![0; len];
        cdb[0] = opcode;
        number(&mut cdb, lba.0, lba.1, LBA as u64);
        number(&mut cdb, count.0, count.1, LEN as u64 / 512);
        cdb
    };
    let scsi = [
        0x08, 0x0a, 0x28, 0x2a, 0x2e, 0xa8, 0xaa, 0xae, 0x88, 0x8a, 0x8e,
    ];
    let before = disk::UNMAPPED.load(Ordering::SeqCst);
    let mut data = vec![0; LEN];
    for (opcode, is_ata) in scsi
        .map(|o| (o, false))
        .into_iter()
        .chain([0x25, 0x35, 0x60, 0x61].map(|o| (o, true)))
    {
        let write = matches!(
            opcode,
            0x0a | 0x2a | 0x2e | 0xaa | 0xae | 0x8a | 0x8e | 0x35 | 0x61
        );
        for offset in [0, 1] {
            rig.random.fill(&mut data);
            let at = rig.command.data.address() + offset;
            rig.command.data.bytes_mut().fill(CANARY);
            if write {
                rig.command.data.bytes_mut()[offset..offset + LEN].copy_from_slice(&data);
            } else {
                rig.machine.disk().put(LBA * 512, &data);
            }
            if is_ata {
                build(&mut rig.command, Protocol::Ata, write, at, LEN);
                // SAFETY: plain data.
                let io = unsafe { &mut rig.command.ccb.ccb_mut().ataio };
                io.cmd.command = opcode;
                if opcode >= 0x60 {
                    io.cmd.flags = sys::CAM_ATAIO_FPDMA as u8;
                    io.cmd.features = io.cmd.sector_count;
                    io.cmd.sector_count = 0;
                }
            } else {
                let direction = if write {
                    sys::CAM_DIR_OUT
                } else {
                    sys::CAM_DIR_IN
                };
                rig.command.scsi(&cdb(opcode), direction, LEN);
                rig.command.csio().data_ptr = at as *mut u8;
            }
            queue_and_get(&mut rig.machine, rig.fd, &rig.command);
            let status = rig.command.hdr().status & sys::CAM_STATUS_MASK;
            assert_eq!(status, sys::CAM_REQ_CMP, "{opcode:#x} at {offset}");
            let found = &rig.command.data.bytes()[offset..offset + LEN];
            assert!(found == data, "{opcode:#x} at {offset}: in the buffer");
            let found = rig.machine.disk().contents(LBA * 512, LEN);
            assert!(found == data, "{opcode:#x} at {offset}: on the disk");
        }
    }
    let with_pages = disk::UNMAPPED.load(Ordering::SeqCst) - before;
    assert_eq!(with_pages, 15, "each of them once");
    assert_eq!(busdma::bounced(), 0);
    rig.machine.close(rig.fd);
    rig.machine.unload(rig.module);
}

/// The strict models look at the data's format, pointer, counts and alignment.
fn what_is_sent_is_what_a_peripheral_sends() {
    for (model, protocol) in [
        (Model::STRICT, Protocol::Scsi),
        (Model::AHCI, Protocol::Ata),
        (Model::NVME, Protocol::Nvme),
    ] {
        for unmapped in [false, true] {
            let mut rig = Rig::new(model, unmapped);
            for offset in [0, 1, 4, 8, 511, 512, 4095] {
                for write in [false, true] {
                    rig.run(protocol, By::Send, write, &[(8192 + offset, 8192)]);
                    for len in [512, 4096, 9216, 65_536] {
                        rig.run(protocol, By::Queue, write, &[(8192 + offset, len)]);
                        rig.run(protocol, By::Enter, write, &[(8192 + offset, len)]);
                    }
                    if protocol == Protocol::Ata {
                        continue;
                    }
                    for count in [2, 15] {
                        let lists = [
                            evenly(8192 + offset, 15_360, count, 1, 7),
                            paged(offset, 15_360, count),
                        ];
                        for list in lists {
                            rig.run(protocol, By::Queue, write, &list);
                        }
                    }
                }
            }
            let (mut machine, module) = (rig.machine, rig.module);
            machine.close(rig.fd);
            machine.unload(module);
            machine.pull();
        }
    }
}
