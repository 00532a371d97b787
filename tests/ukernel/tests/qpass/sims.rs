//! What reaches a SIM, and what a SIM may do to the driver: each test has the
//! model of a FreeBSD SIM that does not forgive what the test is about.

use super::{
    enter::{Arrays, enter},
    transfers::{Protocol, build, entry, lenient, nvme, nvme_data},
    *,
};
use conform::sys::Access;
use ukernel::{busdma, disk, model::Model};

tests! {
    a_command_without_data_reaches_a_sim_without_any;
    a_length_of_none_is_no_data;
    pages_are_for_reads_and_writes_only;
    ata_and_nvme_pages_are_for_reads_and_writes_only;
    an_inquiry_has_a_buffer_that_a_sim_may_write;
    an_odd_length_is_copied;
    bounce_pages_do_not_run_out;
    a_short_read_shows_no_byte_of_another_commands;
    a_copy_of_more_than_a_chunk_needs_no_list;
    a_residual_that_cannot_be_means_that_all_was_moved;
    an_mmc_command_without_a_direction_moves_nothing;
    a_completion_that_cannot_be_written_moves_no_data;
}

const EINVAL: i32 = sys::EINVAL as i32;
const EPERM: i32 = sys::EPERM as i32;

/// A machine with a disk of a kind, and an open of it.
pub fn boot_open(config: Config) -> (Machine, Module, i32) {
    let (mut machine, module) = boot(config);
    let fd = machine.open(NODE, RDWR).expect("open");
    (machine, module, fd)
}

pub fn end(mut machine: Machine, module: Module, fd: i32) {
    machine.close(fd);
    machine.unload(module);
}

/// The same for a machine that is not the last: its slot is emptied.
pub fn end_one_of_many(mut machine: Machine, module: Module, fd: i32) {
    machine.close(fd);
    machine.unload(module);
    machine.pull();
}

/// N1: a user's format, pointer and counts, where there is no data.
fn a_command_without_data_reaches_a_sim_without_any() {
    let formats = [
        0,
        sys::CAM_DATA_BIO,
        sys::CAM_DATA_SG,
        sys::CAM_DATA_PADDR,
        sys::CAM_DATA_SG_PADDR,
    ];
    for (model, protocol) in [
        // nvme(4) alone, and then whatever no peripheral sends.
        (lenient(Model::NVME), Protocol::Nvme),
        (Model::NVME, Protocol::Nvme),
        (Model::AHCI, Protocol::Ata),
        (Model::STRICT, Protocol::Scsi),
    ] {
        let (mut machine, module, fd) = boot_open(Config::of(model));
        let mut command = Command::new(&mut machine, 8192);
        let mut sent = 0;
        for allowed in [0, 1] {
            sysctl::set("allow_paddr", allowed);
            for format in formats {
                for pointer in [0, 0x1234, command.data.address()] {
                    for synchronous in [false, true] {
                        without_data(&mut command, protocol, format, pointer);
                        let taken = match synchronous {
                            true => command.send(&mut machine, fd),
                            false => command.queue(&mut machine, fd),
                        };
                        match taken {
                            Ok(()) => sent += 1,
                            Err(EINVAL | EPERM) => continue,
                            Err(errno) => panic!("{protocol:?} {format:#x}: errno {errno}"),
                        }
                        if !synchronous {
                            assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
                            command.get(&mut machine, fd).expect("get");
                        }
                        let io = machine.disk().last_io.lock().unwrap().expect("it was sent");
                        let is_clean = io.data.is_null() && io.len == 0 && io.segments == 0;
                        assert!(is_clean || !model.is_strict);
                        let status = command.hdr().status & sys::CAM_STATUS_MASK;
                        assert_eq!(status, sys::CAM_REQ_CMP);
                    }
                }
            }
        }
        assert!(sent >= 6, "what has no format at all is sent");
        end_one_of_many(machine, module, fd);
    }
}

/// TEST UNIT READY, CHECK POWER MODE, or FLUSH, with what a program may have
/// left in the fields that name the data.
fn without_data(command: &mut Command, protocol: Protocol, format: u32, pointer: usize) {
    let pointer = pointer as *mut u8;
    match protocol {
        Protocol::Scsi => {
            command.test_unit_ready();
            let io = command.csio();
            (io.data_ptr, io.dxfer_len, io.sglist_cnt) = (pointer, 4096, 3);
        }
        Protocol::Ata => {
            zeroed(command, sys::XPT_ATA_IO, sys::CAM_DIR_NONE);
            // SAFETY: plain data.
            let io = unsafe { &mut command.ccb.ccb_mut().ataio };
            io.cmd.command = 0xe5;
            (io.data_ptr, io.dxfer_len) = (pointer, 4096);
        }
        Protocol::Nvme => {
            nvme(command, false, 0, sys::CAM_DIR_NONE);
            nvme_data(command, pointer as usize, 4096);
            command.ccb.ccb_mut().nvmeio.sglist_cnt = 3;
        }
    }
    command.hdr().flags |= format;
}

/// A direction, and nothing to move.
fn a_length_of_none_is_no_data() {
    let (mut machine, module, fd) = boot_open(Config::of(Model::NVME));
    let mut command = Command::new(&mut machine, 8192);
    for direction in [sys::CAM_DIR_IN, sys::CAM_DIR_OUT] {
        for format in [0, sys::CAM_DATA_SG, sys::CAM_DATA_BIO] {
            nvme(&mut command, false, 0, direction | format);
            let at = command.data.address();
            nvme_data(&mut command, at, 0);
            match command.queue(&mut machine, fd) {
                Err(EINVAL) => continue,
                taken => assert_eq!(taken, Ok(())),
            }
            assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
            command.get(&mut machine, fd).expect("get");
            let io = machine.disk().last_io.lock().unwrap().expect("it was sent");
            assert!(io.data.is_null() && io.format() == 0);
        }
    }
    end(machine, module, fd);
}

/// H3: whatever is long enough for pages, and is neither a read nor a write.
fn pages_are_for_reads_and_writes_only() {
    let (mut machine, module, fd) = boot_open(Config::of(Model::ISCI));
    const LEN: usize = 8192;
    let mut command = Command::new(&mut machine, LEN);
    for cdb in [
        &[0x12, 0, 0, 0x20, 0, 0][..],
        &[0x12, 1, 0x83, 0x20, 0, 0],
        &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0],
        &[0x1a, 0, 0x3f, 0, 255, 0],
        &[0x5a, 0, 0x3f, 0, 0, 0, 0, 0x20, 0, 0],
        &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0],
        &[0x4d, 0, 0x4d, 0, 0, 0, 0, 0x20, 0, 0],
    ] {
        let before = disk::UNMAPPED.load(Ordering::SeqCst);
        command.data.bytes_mut().fill(0xaa);
        command.scsi(cdb, sys::CAM_DIR_IN, LEN);
        queue_and_get(&mut machine, fd, &command);
        assert_eq!(disk::UNMAPPED.load(Ordering::SeqCst), before, "{cdb:x?}");
        let ended = command.ended();
        let moved = match ended.status {
            sys::CAM_REQ_CMP => LEN - ended.resid as usize,
            _ => 0,
        };
        let behind = &command.data.bytes()[moved..];
        assert!(behind.iter().all(|b| *b == 0xaa), "{cdb:x?}");
    }
    // UNMAP has a parameter list, which some SIMs read.
    command.scsi(&[0x42, 0, 0, 0, 0, 0, 0, 0x20, 0, 0], sys::CAM_DIR_OUT, LEN);
    queue_and_get(&mut machine, fd, &command);
    end(machine, module, fd);
}

/// H3: IDENTIFY DEVICE, SMART READ LOG and READ SECTOR(S), by PIO; IDENTIFY and
/// DATASET MANAGEMENT.
fn ata_and_nvme_pages_are_for_reads_and_writes_only() {
    const LEN: usize = 8192;
    let (mut machine, module, fd) = boot_open(Config::of(Model::AHCI));
    let mut command = Command::new(&mut machine, LEN);
    let at = command.data.address();
    for opcode in [0xec, 0xb0, 0x20, 0x24, 0x2f, 0x47] {
        build(&mut command, Protocol::Ata, false, at, LEN);
        command.ccb.ccb_mut().ataio.cmd.command = opcode;
        queue_and_get(&mut machine, fd, &command);
    }
    end_one_of_many(machine, module, fd);
    let (mut machine, module, fd) = boot_open(Config::of(Model::NVME));
    let mut command = Command::new(&mut machine, LEN);
    let at = command.data.address();
    nvme(&mut command, true, 6, sys::CAM_DIR_IN);
    // CNS: the controller's.
    entry(&mut command)[40] = 1;
    nvme_data(&mut command, at, 4096);
    assert_eq!(by_each_call(&mut machine, fd, &mut command), TAKEN);
    assert_eq!(&command.data.bytes()[24..29], b"QPASS");
    nvme(&mut command, false, 9, sys::CAM_DIR_OUT);
    entry(&mut command)[40] = 255;
    nvme_data(&mut command, at, 4096);
    assert_eq!(by_each_call(&mut machine, fd, &mut command), TAKEN);
    end(machine, module, fd);
    assert_eq!(disk::UNMAPPED.load(Ordering::SeqCst), 0);
}

/// H3: a SIM that corrects INQUIRY data finds the data.
fn an_inquiry_has_a_buffer_that_a_sim_may_write() {
    let (mut machine, module, fd) = boot_open(Config::of(Model::SMARTPQI));
    let mut command = Command::new(&mut machine, 64 << 10);
    for len in [36, 255, 4096, 8192, 60 << 10] {
        for synchronous in [false, true] {
            command.data.bytes_mut().fill(0xaa);
            let [high, low] = (len as u16).to_be_bytes();
            command.scsi(&[0x12, 0, 0, high, low, 0], sys::CAM_DIR_IN, len);
            if synchronous {
                command.send(&mut machine, fd).expect("send");
            } else {
                queue_and_get(&mut machine, fd, &command);
            }
            let data = command.data.bytes();
            assert_eq!(&data[8..32], b"QPASS   RAM DISK        ", "{len}");
            // CAMIOCOMMAND copies all of its buffer back, as with pass(4).
            let behind = if synchronous { len } else { 36 };
            assert!(data[behind..].iter().all(|b| *b == 0xaa), "{len}");
        }
    }
    end(machine, module, fd);
}

/// M1: address and length are both no multiple of what the device takes.
fn an_odd_length_is_copied() {
    for (model, protocol) in [(Model::AHCI, Protocol::Ata), (Model::NVME, Protocol::Nvme)] {
        let (mut machine, module, fd) = boot_open(Config::of(lenient(model)));
        let mut command = Command::new(&mut machine, 32 << 10);
        machine.disk().fill(0x42);
        for offset in [0, 1, 2, 3, 5] {
            for len in [4097, 8191, 8193, 4098, 12_287] {
                command.data.bytes_mut().fill(0xaa);
                let at = command.data.address() + 4096 + offset;
                build(&mut command, protocol, false, at, len / 512 * 512);
                match protocol {
                    Protocol::Nvme => nvme_data(&mut command, at, len),
                    _ => command.ccb.ccb_mut().ataio.dxfer_len = len as u32,
                }
                match command.queue(&mut machine, fd) {
                    // It is no whole number of blocks.
                    Err(EINVAL) => continue,
                    taken => assert_eq!(taken, Ok(())),
                }
                assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
                command.get(&mut machine, fd).expect("get");
                let data = command.data.bytes();
                let (start, moved) = (4096 + offset, len / 512 * 512);
                assert!(data[start..start + moved].iter().all(|b| *b == 0x42));
                assert!(data[..start].iter().all(|b| *b == 0xaa));
                assert!(data[start + len..].iter().all(|b| *b == 0xaa));
            }
        }
        assert_eq!(busdma::bounced(), 0);
        end_one_of_many(machine, module, fd);
    }
}

/// M1: nvme(4) has no lockfunc, so a load that waits for bounce pages ends in a
/// panic when it gets them.
fn bounce_pages_do_not_run_out() {
    let model = lenient(Model::NVME);
    let (mut machine, module, fd) = boot_open(Config {
        openings: 128,
        ..Config::of(model)
    });
    busdma::set_pages(64);
    machine.disk().fill(0x42);
    machine.disk().stuck.store(true, Ordering::SeqCst);
    const LEN: usize = 64 << 10;
    let mut command = Command::new(&mut machine, 8192 + LEN);
    let at = command.data.address() + 1;
    for _ in 0..16 {
        build(&mut command, Protocol::Nvme, false, at, LEN);
        command.queue(&mut machine, fd).expect("queue");
    }
    machine.disk().unstick();
    for _ in 0..16 {
        assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
        command.get(&mut machine, fd).expect("get");
        let status = command.hdr().status & sys::CAM_STATUS_MASK;
        assert_eq!(status, sys::CAM_REQ_CMP);
    }
    assert!(command.data.bytes()[1..=LEN].iter().all(|b| *b == 0x42));
    end(machine, module, fd);
}

/// M2: a bounce page goes back whole, with what another command has left there
/// behind what the device has written.
fn a_short_read_shows_no_byte_of_another_commands() {
    let model = lenient(Model::AHCI);
    let (mut machine, module, fd) = boot_open(Config::of(model));
    machine.disk().fill(0x42);
    const LEN: usize = 64 << 10;
    let mut command = Command::new(&mut machine, 8192 + LEN);
    for offset in [0, 1, 3, 511, 513] {
        let start = 4096 + offset;
        let at = command.data.address() + start;
        // One sector of ATA's, and INQUIRY data of SCSI's, as an ATAPI device
        // has it.
        for is_ata in [true, false] {
            command.data.bytes_mut().fill(0xaa);
            if is_ata {
                build(&mut command, Protocol::Ata, false, at, LEN);
                // SAFETY: plain data.
                let io = unsafe { &mut command.ccb.ccb_mut().ataio };
                (io.cmd.sector_count, io.cmd.sector_count_exp) = (1, 0);
            } else {
                command.scsi(&[0x12, 0, 0, 0, 36, 0], sys::CAM_DIR_IN, LEN);
                command.csio().data_ptr = at as *mut u8;
            }
            queue_and_get(&mut machine, fd, &command);
            let moved = if is_ata { 512 } else { 36 };
            let data = command.data.bytes();
            if is_ata {
                assert!(data[start..start + moved].iter().all(|b| *b == 0x42));
            } else {
                assert_eq!(&data[start + 8..start + 13], b"QPASS");
            }
            let others = data[..start].iter().chain(&data[start + moved..]);
            let foreign = others.filter(|b| **b != 0xaa).count();
            assert_eq!(foreign, 0, "at {offset}, ATA: {is_ata}");
        }
    }
    end(machine, module, fd);
}

/// By each call: what it answers.
pub fn by_each_call(machine: &mut Machine, fd: i32, command: &mut Command) -> [Result<(), i32>; 3] {
    let saved = command.ccb.bytes().to_vec();
    let mut answers = [Ok(()); 3];
    let mut arrays = Arrays::new(machine);
    for (i, answer) in answers.iter_mut().enumerate() {
        command.ccb.bytes_mut().copy_from_slice(&saved);
        *answer = match i {
            0 => command.queue(machine, fd),
            1 => command.send(machine, fd),
            _ => {
                arrays.submit(&[(command.ccb.address(), 1)]);
                match enter(machine, fd, arrays.call(1, 0, 0)).expect("enter") {
                    (1, ..) => Ok(()),
                    (_, _, errno, _) => Err(errno),
                }
            }
        };
        if answer.is_ok() && i != 1 {
            assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
            command.get(machine, fd).expect("get");
        }
    }
    command.ccb.bytes_mut().copy_from_slice(&saved);
    answers
}

pub const TAKEN: [Result<(), i32>; 3] = [Ok(()); 3];

/// M7: what is more than a chunk is refused, or goes by one address, where a
/// SIM has no code for lists.
fn a_copy_of_more_than_a_chunk_needs_no_list() {
    let models = [Model::ISCSI, Model::MRSAS].map(lenient);
    for (model, unmapped) in models.into_iter().flat_map(|m| [(m, true), (m, false)]) {
        let (mut machine, module, fd) = boot_open(Config {
            maxio: 8 << 20,
            unmapped,
            ..Config::of(model)
        });
        let mut command = Command::new(&mut machine, (4 << 20) + 8192);
        machine.disk().fill(0x42);
        for len in [(1 << 20) - 512, 1 << 20, (1 << 20) + 512, 2 << 20, 4 << 20] {
            for offset in [0, 1, 512] {
                command.data.bytes_mut().fill(0xaa);
                command.rw10(false, 0, (len / 512) as u16);
                let start = 4096 + offset;
                command.csio().data_ptr = (command.data.address() + start) as *mut u8;
                match command.queue(&mut machine, fd) {
                    Err(EINVAL) if len > 1 << 20 => continue,
                    taken => assert_eq!(taken, Ok(()), "{len} at {offset}"),
                }
                assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
                command.get(&mut machine, fd).expect("get");
                let status = command.ended().status;
                assert_eq!(
                    status,
                    sys::CAM_REQ_CMP,
                    "{}: {len} at {offset}",
                    model.name
                );
                let data = command.data.bytes();
                assert!(data[start..start + len].iter().all(|b| *b == 0x42));
                assert!(data[..start].iter().all(|b| *b == 0xaa));
                assert!(data[start + len..].iter().all(|b| *b == 0xaa));
            }
        }
        end_one_of_many(machine, module, fd);
    }
}

/// F5: below 0, and above the length.
fn a_residual_that_cannot_be_means_that_all_was_moved() {
    let (mut machine, module, fd) = boot_open(Config::of(lenient(Model::AHCI)));
    machine.disk().fill(0x42);
    let mut command = Command::new(&mut machine, 16 << 10);
    let mut arrays = Arrays::new(&mut machine);
    for resid in [
        -1_i32 as u32,
        -1536_i32 as u32,
        i32::MIN as u32,
        2049,
        8193,
        1 << 20,
    ] {
        *machine.disk().residual.lock().unwrap() = Some(resid);
        for (len, offset) in [(2048, 0), (2048, 1), (8192, 0), (8192, 1)] {
            if resid <= len as u32 {
                continue;
            }
            for by in 0..3 {
                for is_ata in [false, true] {
                    command.data.bytes_mut().fill(0xaa);
                    let at = command.data.address() + offset;
                    let protocol = match is_ata {
                        true => Protocol::Ata,
                        false => Protocol::Scsi,
                    };
                    build(&mut command, protocol, false, at, len);
                    match by {
                        0 => queue_and_get(&mut machine, fd, &command),
                        1 => command.send(&mut machine, fd).expect("send"),
                        _ => {
                            arrays.submit(&[(command.ccb.address(), 1)]);
                            let answer = enter(&mut machine, fd, arrays.call(1, 1, 1));
                            assert_eq!(answer, Ok((1, 1, 0, 0)));
                        }
                    }
                    let what = format!("{resid:#x}, {len} at {offset}, call {by}, ATA {is_ata}");
                    let data = command.data.bytes();
                    let moved = &data[offset..offset + len];
                    assert!(moved.iter().all(|b| *b == 0x42), "{what}");
                    assert!(data[offset + len..].iter().all(|b| *b == 0xaa), "{what}");
                }
            }
        }
    }
    let read = sysctl::value("0.copied_bytes").expect("a counter");
    assert!(read < 1 << 20, "{read} bytes are counted as copied");
    end(machine, module, fd);
}

/// L12: data with no direction.
fn an_mmc_command_without_a_direction_moves_nothing() {
    let (mut machine, module, fd) = boot_open(Config::of(Model::PLAIN));
    machine.disk().fill(0x42);
    let mut command = Command::new(&mut machine, 8192);
    super::formats::mmc(&mut command, 18, sys::CAM_DIR_NONE, 4096);
    command.data.bytes_mut()[4096..].fill(0xaa);
    let pointer = command.data.address();
    match command.queue(&mut machine, fd) {
        Err(EINVAL) => {}
        taken => {
            assert_eq!(taken, Ok(()));
            assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
            command.get(&mut machine, fd).expect("get");
            // SAFETY: plain data.
            let io = unsafe { &command.ccb.ccb().mmcio };
            assert_eq!(io.cmd.data as usize, pointer);
            assert_ne!(io.ccb_h.status & sys::CAM_STATUS_MASK, sys::CAM_REQ_CMP);
        }
    }
    assert!(command.data.bytes()[4096..].iter().all(|b| *b == 0xaa));
    end(machine, module, fd);
}

/// L13: a program is not told of a completion, so it may use the buffer for
/// something else by the time that it is told.
fn a_completion_that_cannot_be_written_moves_no_data() {
    let (mut machine, module, fd) = boot_open(Config::of(Model::STRICT));
    machine.disk().fill(0x42);
    let mut command = Command::new(&mut machine, 8192);
    command.rw10(false, 0, 1);
    command.csio().data_ptr = (command.data.address() + 1) as *mut u8;
    command.queue(&mut machine, fd).expect("queue");
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    command.data.bytes_mut().fill(0xaa);
    let mut arrays = Arrays::new(&mut machine);
    let at = arrays.completions.bytes_mut().as_mut_ptr();
    machine.protect(at, 4096, Access::Read);
    let answer = enter(&mut machine, fd, arrays.call(0, 1, 0)).expect("enter");
    assert_eq!((answer.1, answer.3), (0, EFAULT));
    assert!(command.data.bytes().iter().all(|b| *b == 0xaa));
    machine.protect(at, 4096, Access::Write);
    let answer = enter(&mut machine, fd, arrays.call(0, 1, 0)).expect("enter");
    assert_eq!((answer.1, answer.3), (1, 0));
    assert!(command.data.bytes()[1..513].iter().all(|b| *b == 0x42));
    end(machine, module, fd);
}
