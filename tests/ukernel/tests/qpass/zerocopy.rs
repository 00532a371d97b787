//! Zero copy: which transfers move a process's own pages, and that these are
//! let go exactly once, whatever happens.

use super::*;
use conform::sys::{Access, Memory};
use ukernel::{disk, vm};

tests! {
    a_long_transfer_is_not_copied;
    a_short_one_is_copied;
    a_sim_without_unmapped_io_is_given_a_copy;
    a_buffer_at_a_block_is_not_copied;
    what_busdma_would_bounce_is_copied;
    a_list_of_whole_pages_is_not_copied;
    a_list_with_an_inner_end_inside_a_page_is_copied;
    a_read_only_buffer_is_written_from_and_not_read_into;
    a_guard_page_at_the_end_is_efault;
    a_buffer_that_is_unmapped_meanwhile_takes_its_data;
    pages_that_cannot_be_held_are_copied;
    ata_and_nvme_commands_are_not_copied;
    eight_mebibytes_are_not_copied;
    a_short_residual_leaves_the_rest_as_it_was;
    pages_are_let_go_on_every_way_out;
    held_pages_count_against_the_limit;
    the_threshold_is_a_sysctl;
}

const PAGES: Config = Config {
    model: ukernel::model::Model::PLAIN,
    file: None,
    sata: false,
    atapi: false,
    size: 16 << 20,
    maxio: 8 << 20,
    openings: 32,
    latency: Duration::ZERO,
    jitter: Duration::ZERO,
    threads: 2,
    unmapped: true,
    odd: ukernel::disk::Odd::NONE,
};

/// Copied bytes, bytes that were not, and commands that came with pages.
fn paths() -> (u64, u64, u64) {
    let counter = |name| sysctl::value(name).expect("a counter");
    (
        counter("0.copied_bytes"),
        counter("0.zerocopy_bytes"),
        disk::UNMAPPED.load(Ordering::SeqCst),
    )
}

/// What a command adds to them, queued and reaped, with what errno.
fn path_of(machine: &mut Machine, fd: i32, command: &Command) -> (u64, u64, u64) {
    let before = paths();
    queue_and_get(machine, fd, command);
    assert_eq!(command.ended().status, sys::CAM_REQ_CMP);
    assert_eq!(vm::holds(), 0, "let go");
    let after = paths();
    (after.0 - before.0, after.1 - before.1, after.2 - before.2)
}

/// Numbers bytes, so that each shows where it belongs.
fn number(bytes: &mut [u8]) {
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = (i / 512 * 7 + i) as u8;
    }
}

/// Writes and reads back `len` bytes at `offset` of a buffer, as `shape` has
/// them named; both ways are as `wanted`, and no other byte changes.
fn both_ways_by(
    machine: &mut Machine,
    fd: i32,
    (len, offset): (usize, usize),
    shape: impl Fn(&mut Command),
    wanted: (u64, u64, u64),
) {
    let mut command = Command::new(machine, offset + len + (8 << 20));
    let blocks = (len / 512) as u16;
    for write in [true, false] {
        command.rw10(write, 64, blocks);
        command.csio().data_ptr = (command.data.address() + offset) as *mut u8;
        shape(&mut command);
        if write {
            number(command.data.bytes_mut());
        } else {
            command.data.bytes_mut().fill(0xaa);
        }
        assert_eq!(path_of(machine, fd, &command), wanted, "write: {write}");
    }
    let mut numbered = vec![0; command.data.len()];
    number(&mut numbered);
    let read = command.data.bytes();
    let moved = read.iter().zip(&numbered).filter(|(a, b)| a == b).count();
    assert!(moved >= len);
    let good = |(read, wrote): (&u8, &u8)| read == wrote || *read == 0xaa;
    assert!(read.iter().zip(&numbered).all(good));
    let outside = read.iter().filter(|b| **b == 0xaa).count();
    assert!(outside >= read.len() - len, "only its own bytes");
    command.free(machine);
}

fn a_long_transfer_is_not_copied() {
    let (mut machine, module) = boot(PAGES);
    let fd = machine.open(NODE, RDWR).expect("open");
    let info = control::info(&mut machine, fd).expect("info");
    let flags = sys::QPASS_FEATURE_UNMAPPED | sys::QPASS_FEATURE_ZEROCOPY;
    assert_eq!(info.features & flags, flags);
    let len = 128 << 10;
    both_ways_by(&mut machine, fd, (len, 0), |_| (), (0, len as u64, 1));
    assert_eq!(sysctl::value("0.bounce_bytes_max"), Some(0));
    let info = control::info(&mut machine, fd).expect("info");
    assert_eq!(
        (info.copied_bytes, info.zerocopy_bytes),
        (0, 2 * len as u64)
    );
    assert_eq!(info.bytes, 0);
    machine.close(fd);
    machine.unload(module);
}

fn a_short_one_is_copied() {
    let (mut machine, module) = boot(PAGES);
    let fd = machine.open(NODE, RDWR).expect("open");
    both_ways_by(&mut machine, fd, (2048, 0), |_| (), (2048, 0, 0));
    machine.close(fd);
    machine.unload(module);
}

fn a_sim_without_unmapped_io_is_given_a_copy() {
    let (mut machine, module) = boot(Config {
        unmapped: false,
        ..PAGES
    });
    let fd = machine.open(NODE, RDWR).expect("open");
    let info = control::info(&mut machine, fd).expect("info");
    let flags = sys::QPASS_FEATURE_UNMAPPED | sys::QPASS_FEATURE_ZEROCOPY;
    assert_eq!(info.features & flags, 0);
    let len = 1 << 20;
    both_ways_by(&mut machine, fd, (len, 0), |_| (), (len as u64, 0, 0));
    machine.close(fd);
    machine.unload(module);
}

fn a_buffer_at_a_block_is_not_copied() {
    let (mut machine, module) = boot(PAGES);
    let fd = machine.open(NODE, RDWR).expect("open");
    for offset in [512, 1024, 3584, 4608] {
        let len = 64 << 10;
        both_ways_by(&mut machine, fd, (len, offset), |_| (), (0, len as u64, 1));
    }
    machine.close(fd);
    machine.unload(module);
}

fn what_busdma_would_bounce_is_copied() {
    let (mut machine, module) = boot(PAGES);
    let fd = machine.open(NODE, RDWR).expect("open");
    for offset in [1, 2, 4, 8, 256, 511, 513, 4095, 4097] {
        let len = 64 << 10;
        both_ways_by(&mut machine, fd, (len, offset), |_| (), (len as u64, 0, 0));
    }
    machine.close(fd);
    machine.unload(module);
}

fn a_list_of_whole_pages_is_not_copied() {
    let (mut machine, module) = boot(PAGES);
    let fd = machine.open(NODE, RDWR).expect("open");
    let list = std::cell::RefCell::new(Memory::new(&mut machine, 4096));
    let len = 64 << 10;
    // The first may begin, and the last end, inside a page.
    let shape = |command: &mut Command| {
        let lens = [4096 - 512, 8192, 4096, len - 16384 - 4096, 4608];
        command.list(&mut list.borrow_mut(), 512, 4096 * 2, &lens);
    };
    // With a gap of whole pages between them, all boundaries are pages'.
    both_ways_by(&mut machine, fd, (len, 0), shape, (0, len as u64, 1));
    machine.close(fd);
    machine.unload(module);
}

fn a_list_with_an_inner_end_inside_a_page_is_copied() {
    let (mut machine, module) = boot(PAGES);
    let fd = machine.open(NODE, RDWR).expect("open");
    let list = std::cell::RefCell::new(Memory::new(&mut machine, 4096));
    let len = 64 << 10;
    let shape = |command: &mut Command| {
        command.list(&mut list.borrow_mut(), 0, 4096, &[4095, len - 4095]);
    };
    both_ways_by(&mut machine, fd, (len, 0), shape, (len as u64, 0, 0));
    machine.close(fd);
    machine.unload(module);
}

/// As a short transfer does: a read into it fails when it is reaped, and can be
/// reaped again once it may be written.
fn a_read_only_buffer_is_written_from_and_not_read_into() {
    let (mut machine, module) = boot(PAGES);
    let fd = machine.open(NODE, RDWR).expect("open");
    let len = 64 << 10;
    let mut command = Command::new(&mut machine, len);
    number(command.data.bytes_mut());
    let at = command.data.bytes_mut().as_mut_ptr();
    machine.protect(at, len, Access::Read);
    command.rw10(true, 0, 128);
    assert_eq!(path_of(&mut machine, fd, &command), (0, len as u64, 1));
    command.rw10(false, 0, 128);
    command.queue(&mut machine, fd).expect("queue");
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    assert_eq!(command.get(&mut machine, fd), Err(EFAULT));
    machine.protect(at, len, Access::Write);
    assert_eq!(command.get(&mut machine, fd), Ok(()));
    machine.close(fd);
    machine.unload(module);
}

fn a_guard_page_at_the_end_is_efault() {
    let (mut machine, module) = boot(PAGES);
    let fd = machine.open(NODE, RDWR).expect("open");
    let len = 64 << 10;
    let mut command = Command::new(&mut machine, len);
    let last = command.data.bytes_mut()[len - 4096..].as_mut_ptr();
    machine.protect(last, 4096, Access::None);
    command.rw10(true, 0, 128);
    assert_eq!(command.queue(&mut machine, fd), Err(EFAULT));
    assert_eq!(vm::holds(), 0, "what could be held is let go");
    assert_eq!(control::outstanding(&mut machine, fd), (0, 0));
    for wild in [usize::MAX - 4096, 1 << 47, (1 << 47) - 4096, 16] {
        command.csio().data_ptr = wild as *mut u8;
        assert_eq!(command.queue(&mut machine, fd), Err(EFAULT), "{wild:#x}");
    }
    machine.close(fd);
    machine.unload(module);
}

/// The pages stay until the device is done; nobody else gets them.
fn a_buffer_that_is_unmapped_meanwhile_takes_its_data() {
    let (mut machine, module) = boot(PAGES);
    let fd = machine.open(NODE, RDWR).expect("open");
    let len = 64 << 10;
    let mut command = Command::new(&mut machine, 512);
    let data = Memory::new(&mut machine, len);
    command.rw10(false, 0, 128);
    command.csio().data_ptr = data.address() as *mut u8;
    machine.disk().stuck.store(true, Ordering::SeqCst);
    command.queue(&mut machine, fd).expect("queue");
    assert_eq!(vm::holds(), 16);
    data.unmap(&mut machine);
    machine.disk().unstick();
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    assert_eq!(command.get(&mut machine, fd), Ok(()));
    assert_eq!(vm::holds(), 0);
    machine.close(fd);
    machine.unload(module);
}

fn pages_that_cannot_be_held_are_copied() {
    let (mut machine, module) = boot(PAGES);
    let fd = machine.open(NODE, RDWR).expect("open");
    let len = 64 << 10;
    let mut list = Memory::new(&mut machine, 4096);
    let mut command = Command::new(&mut machine, len);
    for n in [1, 2] {
        command.rw10(true, 0, 128);
        command.list(&mut list, 0, 0, &[len / 2, len / 2]);
        fault::HOLD.arm(n);
        assert_eq!(path_of(&mut machine, fd, &command), (len as u64, 0, 0));
        assert!(fault::HOLD.fired());
    }
    fault::HOLD.arm(1);
    command.rw10(true, 0, 128);
    command.queue(&mut machine, fd).expect("queue");
    let bytes = control::outstanding(&mut machine, fd);
    assert_eq!(bytes, (1, len as u64), "those of the copy");
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    command.get(&mut machine, fd).expect("get");
    fault::HOLD.arm(0);
    assert_eq!(control::outstanding(&mut machine, fd), (0, 0));
    machine.close(fd);
    machine.unload(module);
}

fn ata_and_nvme_commands_are_not_copied() {
    let (mut machine, module) = boot(PAGES);
    let fd = machine.open(NODE, RDWR).expect("open");
    let len: usize = 64 << 10;
    let mut command = Command::new(&mut machine, len);
    let at = command.data.address() as *mut u8;
    for write in [true, false] {
        if write {
            number(command.data.bytes_mut());
        } else {
            command.data.bytes_mut().fill(0);
        }
        command.immediate(sys::XPT_ATA_IO);
        // SAFETY: plain data.
        let io = unsafe { &mut command.ccb.ccb_mut().ataio };
        let (direction, opcode) = match write {
            true => (sys::CAM_DIR_OUT, 0x35),
            false => (sys::CAM_DIR_IN, 0x25),
        };
        io.ccb_h.flags = direction;
        io.ccb_h.timeout = 10_000;
        io.cmd.command = opcode;
        io.cmd.flags = sys::CAM_ATAIO_DMA as u8;
        (io.data_ptr, io.dxfer_len) = (at, len as u32);
        assert_eq!(path_of(&mut machine, fd, &command), (0, len as u64, 1));
    }
    let mut numbered = vec![0; len];
    number(&mut numbered);
    assert_eq!(command.data.bytes(), numbered);
    command.data.bytes_mut().fill(0);
    command.immediate(sys::XPT_NVME_IO);
    // SAFETY: plain data; a submission queue entry has 64 bytes.
    let io = unsafe { &mut command.ccb.ccb_mut().nvmeio };
    // SAFETY: as above.
    unsafe { (*(&raw mut io.cmd).cast::<[u8; 64]>())[0] = 2 };
    io.ccb_h.flags = sys::CAM_DIR_IN;
    io.ccb_h.timeout = 10_000;
    (io.data_ptr, io.dxfer_len) = (at, len as u32);
    assert_eq!(path_of(&mut machine, fd, &command), (0, len as u64, 1));
    assert_eq!(command.data.bytes(), numbered);
    machine.close(fd);
    machine.unload(module);
}

fn eight_mebibytes_are_not_copied() {
    let (mut machine, module) = boot(PAGES);
    let fd = machine.open(NODE, RDWR).expect("open");
    let len = 8 << 20;
    both_ways_by(&mut machine, fd, (len, 0), |_| (), (0, len as u64, 1));
    both_ways_by(&mut machine, fd, (len, 12), |_| (), (len as u64, 0, 0));
    machine.close(fd);
    machine.unload(module);
}

fn a_short_residual_leaves_the_rest_as_it_was() {
    let (mut machine, module) = boot(PAGES);
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 64 << 10);
    // One block into a long buffer.
    command.rw10(false, 0, 1);
    command.csio().dxfer_len = 64 << 10;
    command.data.bytes_mut().fill(0x77);
    let before = paths();
    queue_and_get(&mut machine, fd, &command);
    assert_eq!(paths().2 - before.2, 1);
    assert_eq!(command.ended().resid, (64 << 10) - 512);
    assert!(command.data.bytes()[512..].iter().all(|b| *b == 0x77));
    machine.close(fd);
    machine.unload(module);
}

fn pages_are_let_go_on_every_way_out() {
    let (mut machine, module) = boot(Config {
        openings: 2,
        ..PAGES
    });
    let len = 64 << 10;
    let mut command = Command::new(&mut machine, len);
    let start = |machine: &mut Machine, command: &mut Command| {
        let fd = machine.open(NODE, RDWR).expect("open");
        machine.disk().stuck.store(true, Ordering::SeqCst);
        command.rw10(false, 0, 128);
        // Two are sent, and two are not.
        for _ in 0..4 {
            command.queue(machine, fd).expect("queue");
        }
        assert_eq!(vm::holds(), 4 * 16);
        fd
    };
    // Error: the second of them is out of range.
    let fd = start(&mut machine, &mut command);
    command.rw10(false, u32::MAX, 128);
    command.queue(&mut machine, fd).expect("queue");
    machine.disk().unstick();
    for _ in 0..5 {
        assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
        command.get(&mut machine, fd).expect("get");
    }
    assert_eq!(vm::holds(), 0, "completion and error");
    machine.close(fd);
    // Cancel: some aborted, some dequeued.
    let fd = start(&mut machine, &mut command);
    assert_eq!(control::cancel(&mut machine, fd, 0), Ok([2, 2, 0, 0]));
    for _ in 0..4 {
        assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
        command.get(&mut machine, fd).expect("get");
    }
    assert_eq!(vm::holds(), 0, "cancel");
    machine.disk().unstick();
    machine.close(fd);
    // Close: what is sent stays until the device is done with it.
    let fd = start(&mut machine, &mut command);
    machine.close(fd);
    assert_eq!(vm::holds(), 2 * 16, "what the device has");
    machine.disk().unstick();
    wait_until("let go after close", || vm::holds() == 0);
    // The process dies.
    let fd = start(&mut machine, &mut command);
    machine.close_all();
    machine.disk().unstick();
    wait_until("let go after exit", || vm::holds() == 0);
    let _ = fd;
    // The device departs.
    let fd = start(&mut machine, &mut command);
    machine.depart();
    wait_until("let go after departure", || vm::holds() == 0);
    machine.close(fd);
    machine.unload(module);
}

fn held_pages_count_against_the_limit() {
    let (mut machine, module) = boot(PAGES);
    machine.disk().stuck.store(true, Ordering::SeqCst);
    let fd = machine.open(NODE, RDWR).expect("open");
    control::limit(&mut machine, fd, 0, 300 << 10).expect("limit");
    let mut command = Command::new(&mut machine, 64 << 10);
    command.rw10(false, 0, 128);
    for _ in 0..4 {
        command.queue(&mut machine, fd).expect("queue");
    }
    assert_eq!(command.queue(&mut machine, fd), Err(EAGAIN));
    assert_eq!(vm::holds(), 64);
    let (requests, bytes) = control::outstanding(&mut machine, fd);
    assert_eq!(requests, 4);
    assert!((256 << 10..300 << 10).contains(&bytes), "{bytes}");
    machine.disk().unstick();
    machine.close(fd);
    machine.unload(module);
}

fn the_threshold_is_a_sysctl() {
    let (mut machine, module) = boot(PAGES);
    let fd = machine.open(NODE, RDWR).expect("open");
    for (least, len, copied) in [
        (0, 512, false),
        (8192, 4096, true),
        (8192, 8192, false),
        (u32::MAX as u64, 1 << 20, true),
    ] {
        sysctl::set("zerocopy_min", least);
        let len64 = len as u64;
        let wanted = if copied { (len64, 0, 0) } else { (0, len64, 1) };
        both_ways_by(&mut machine, fd, (len, 0), |_| (), wanted);
    }
    machine.close(fd);
    machine.unload(module);
}
