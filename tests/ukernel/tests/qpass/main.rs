//! qpass.ko in the user-mode kernel: the conformance suite, and what only this
//! kernel can do: faults on order, stuck and lying disks, devices pulled under
//! load, and a look at what is left.
//!
//! Every test runs in a process of its own, because a kernel is one to a
//! process and a broken rule ends it.

mod abort;
mod abort_hard;
mod attack;
mod control;
mod counts;
mod enter;
mod faults;
mod formats;
mod held;
mod life;
mod mends;
mod outstanding;
mod prps;
mod recovery;
mod refused;
mod room;
mod shared_state;
mod silent;
mod sims;
mod transfers;
mod unload;
mod zerocopy;

use conform::{command::Command, sys::Sys};
use libtest_mimic::{Arguments, Failed, Trial};
use std::{
    path::PathBuf,
    process::{Command as Process, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use ukernel::{
    cam, devfs, devfs::wait_until, disk::Config, fault, kqueue, loader::Module, lock, memory,
    process::Machine, sys, sysctl, thread,
};

const RDWR: i32 = sys::O_RDWR as i32;
const POLLIN: i16 = sys::POLLIN as i16;
const EBUSY: i32 = sys::EBUSY as i32;
const EAGAIN: i32 = sys::EAGAIN as i32;
const ENXIO: i32 = sys::ENXIO as i32;
const EFAULT: i32 = sys::EFAULT as i32;
const NODE: &str = "/dev/qpass0";
const NODEV: &str = "qpass0";

/// The module under test.
fn ko() -> Vec<u8> {
    let path = std::env::var_os("QPASS_KO").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/kmod/freebsd-14/qpass.ko"),
        PathBuf::from,
    );
    std::fs::read(&path).unwrap_or_else(|e| {
        panic!("{}: {e}: run scripts/build.sh first", path.display());
    })
}

/// A machine with the module loaded and the node there.
fn boot(config: Config) -> (Machine, Module) {
    let machine = Machine::new(config);
    let module = machine.load(&ko()).expect("load");
    wait_until("/dev/qpass0 is there", || devfs::exists(NODEV));
    (machine, module)
}

/// A test's name, and the test.
type Test = (&'static str, fn());

macro_rules! tests {
    ($($name:ident;)*) => {
        /// The tests of this file.
        pub const TESTS: &[crate::Test] = &[$((stringify!($name), $name)),*];
    };
}
use tests;

/// Every test but those of the conformance suite.
fn all_tests() -> impl Iterator<Item = &'static Test> {
    let others = [
        abort::TESTS,
        abort_hard::TESTS,
        attack::TESTS,
        control::TESTS,
        counts::TESTS,
        enter::TESTS,
        faults::TESTS,
        formats::TESTS,
        life::TESTS,
        mends::TESTS,
        outstanding::TESTS,
        recovery::TESTS,
        refused::TESTS,
        room::TESTS,
        shared_state::TESTS,
        unload::TESTS,
        held::TESTS,
        prps::TESTS,
        silent::TESTS,
        sims::TESTS,
        transfers::TESTS,
        zerocopy::TESTS,
    ];
    TESTS.iter().chain(others.into_iter().flatten())
}

tests! {
    a_missing_import_stops_the_load_by_name;
    the_node_is_roots_and_operators;
    load_and_unload_leave_nothing;
    unload_is_refused_while_open;
    unload_is_refused_while_a_closed_opens_command_is_sent;
    unload_is_refused_while_a_kqueue_holds_an_event;
    a_device_that_arrives_later_gets_a_node;
    a_device_that_leaves_loses_its_node;
    a_device_can_come_back_while_the_old_one_is_open;
    a_failed_attach_leaves_nothing;
    a_failed_registration_refuses_the_load;
    a_failed_zone_is_enomem;
    each_copy_that_fails_is_efault;
    a_ccb_that_cannot_be_had_comes_later;
    a_queued_request_needs_no_ccb_of_cams;
    the_request_limit_is_eagain;
    the_byte_limit_is_eagain;
    a_32_bit_process_gets_enotty;
    a_raised_securelevel_refuses_opens;
    a_lying_residual_shows_no_stale_byte;
    a_transfer_of_many_chunks_is_one_list;
    a_transfer_above_the_sims_limit_is_einval;
    an_ata_command_goes_through;
    an_nvme_command_goes_through_without_physical_addresses;
    an_smp_command_goes_through;
    advanced_information_is_read_and_stored;
    a_device_reset_goes_through;
    a_long_list_counts_as_bytes;
    unit_attention_is_retried_when_asked;
    unit_attention_is_told_when_not;
    a_full_queue_is_drained_in_order;
    a_completion_that_cannot_be_reaped_blocks_no_other;
    poll_wakes_a_sleeping_thread;
    kevent_wakes_a_sleeping_thread;
    edge_triggered_events_come_once_a_completion;
    nobody_is_woken_when_nobody_waits;
    room_to_queue_is_told;
    the_physical_path_is_an_alias_and_follows_its_change;
    devstat_counts_what_was_moved;
    camgetpassthru_names_the_pass_device;
    it_stands_in_for_pass_where_there_is_none;
    it_stays_qpass_where_there_is_a_pass;
    many_threads_share_an_open;
    many_opens_share_a_device;
    a_device_pulled_under_load_frees_everything;
    whatever_happens_nothing_is_left;
    the_console_stays_quiet;
    the_transcript_is_that_of_pass_but_for_the_listed_differences;
}

fn a_missing_import_stops_the_load_by_name() {
    let mut file = ko();
    let name = b"cam_periph_runccb";
    let at = file
        .windows(name.len())
        .position(|w| w == name)
        .expect("the import is in the string table");
    file[at..at + name.len()].copy_from_slice(b"cam_periph_runxxx");
    let error = Module::load(&file).err().expect("the load fails");
    assert_eq!(error, "undefined symbols: cam_periph_runxxx");
}

fn the_node_is_roots_and_operators() {
    let (machine, module) = boot(Config::default());
    assert_eq!(devfs::ownership(NODEV), Some((0, 5, 0o600)));
    machine.unload(module);
}

fn load_and_unload_leave_nothing() {
    let mut machine = Machine::new(Config::default());
    for _ in 0..5 {
        let module = machine.load(&ko()).expect("load");
        assert!(devfs::exists(NODEV));
        let fd = machine.open(NODE, RDWR).expect("open");
        let mut command = Command::new(&mut machine, 512);
        command.rw10(false, 0, 1);
        command.queue(&mut machine, fd).expect("queue");
        machine.close(fd);
        machine.unload(module);
        assert!(!devfs::exists(NODEV));
        assert_eq!(memory::malloc_live("qpass"), 0);
    }
}

fn unload_is_refused_while_open() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let (errno, module) = module.unload().expect_err("refused");
    assert_eq!(errno, EBUSY);
    let (errno, module) = module.unload_by_force().expect_err("refused");
    assert_eq!(errno, EBUSY, "by force too");
    // And nothing has changed.
    let mut command = Command::new(&mut machine, 0);
    command.test_unit_ready();
    command.send(&mut machine, fd).expect("still works");
    let second = machine.open(NODE, RDWR).expect("still opens");
    machine.close(second);
    machine.close(fd);
    machine.unload(module);
}

fn unload_is_refused_while_a_closed_opens_command_is_sent() {
    let (mut machine, module) = boot(Config::default());
    machine.disk().stuck.store(true, Ordering::SeqCst);
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 4096);
    command.rw10(false, 0, 8);
    for _ in 0..40 {
        command.queue(&mut machine, fd).expect("queue");
    }
    machine.close(fd);
    let start = Instant::now();
    let (errno, module) = module.unload().expect_err("refused");
    assert_eq!(errno, EBUSY);
    assert!(start.elapsed() < Duration::from_secs(5), "and at once");
    machine.disk().unstick();
    machine.unload(module);
    // Of the 40, the disk had as many as it takes at a time; the others were
    // not sent when the close came, and never are. One is its neighbour's.
    let sent = machine.disk().commands.load(Ordering::SeqCst) - 1;
    assert_eq!(sent, Config::default().openings as u64);
}

fn unload_is_refused_while_a_kqueue_holds_an_event() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let kq = machine.kqueue().expect("kqueue");
    watch(&mut machine, kq, fd, sys::EV_ADD);
    machine.depart();
    let (errno, module) = module.unload().expect_err("refused");
    assert_eq!(errno, EBUSY);
    machine.close(fd);
    machine.unload(module);
    machine.close(kq);
}

fn a_device_that_arrives_later_gets_a_node() {
    let mut machine = Machine::new(Config::default());
    let device = machine.pull();
    cam::wait_free(&device);
    let module = machine.load(&ko()).expect("load without a device");
    assert!(!devfs::exists(NODEV));
    machine.arrive();
    let fd = machine.open(NODE, RDWR).expect("open");
    machine.close(fd);
    machine.unload(module);
}

fn a_device_that_leaves_loses_its_node() {
    let (mut machine, module) = boot(Config::default());
    machine.depart();
    assert!(!devfs::exists(NODEV));
    assert_eq!(cam::PERIPHS.load(Ordering::SeqCst), 0);
    machine.unload(module);
}

fn a_device_can_come_back_while_the_old_one_is_open() {
    let (mut machine, module) = boot(Config::default());
    let old = machine.open(NODE, RDWR).expect("open");
    for _ in 0..3 {
        machine.depart();
        machine.arrive();
        let new = machine.open(NODE, RDWR).expect("open the new one");
        let mut command = Command::new(&mut machine, 0);
        command.test_unit_ready();
        assert_eq!(command.send(&mut machine, old), Err(ENXIO));
        assert_eq!(command.send(&mut machine, new), Ok(()));
        machine.close(new);
    }
    machine.close(old);
    machine.unload(module);
}

fn a_failed_attach_leaves_nothing() {
    let points: [(&fault::Point, u32); 3] = [
        (&fault::MALLOC, 12),
        (&fault::MAKE_DEV, 1),
        (&fault::REGISTER_ASYNC, 1),
    ];
    let (mut machine, module) = boot(Config::default());
    let mut failed = 0;
    for (point, last) in points {
        for n in 1..=last {
            machine.depart();
            point.arm(n);
            // No wait: the node may not come.
            machine.arrive_unseen();
            cam::settle();
            point.arm(0);
            if !devfs::exists(NODEV) {
                failed += 1;
                wait_until("its unit has gone", || {
                    cam::PERIPHS.load(Ordering::SeqCst) == 0
                });
                machine.depart();
                machine.arrive();
            }
        }
    }
    assert!(failed >= 4, "only {failed} attaches failed");
    let fd = machine.open(NODE, RDWR).expect("open after all that");
    machine.close(fd);
    machine.unload(module);
}

fn a_failed_registration_refuses_the_load() {
    let machine = Machine::new(Config::default());
    fault::REGISTER_ASYNC.arm(1);
    let error = machine.load(&ko()).err().expect("refused");
    assert_eq!(error, format!("MOD_LOAD: errno {ENXIO}"));
    let module = machine.load(&ko()).expect("the next load works");
    machine.unload(module);
}

fn a_failed_zone_is_enomem() {
    let (mut machine, module) = boot(Config::default());
    let mut command = Command::new(&mut machine, 512);
    command.rw10(false, 0, 1);
    let mut n = 0;
    loop {
        n += 1;
        fault::ZCREATE.arm(n);
        let fd = machine.open(NODE, RDWR).expect("open");
        let queued = command.queue(&mut machine, fd);
        let fired = fault::ZCREATE.fired();
        fault::ZCREATE.arm(0);
        if !fired {
            assert_eq!(queued, Ok(()));
            machine.close(fd);
            break;
        }
        assert_eq!(queued, Err(sys::ENOMEM as i32), "zone {n}");
        machine.close(fd);
        wait_until("no zone is left", || memory::zones().is_empty());
    }
    assert_eq!(n, 9, "a zone for requests and seven for data");
    machine.unload(module);
}

fn each_copy_that_fails_is_efault() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 8192);
    // Two copies in: the CCB and the data; the CDB by pointer is a third.
    let cdb = command.data.address() + 4096;
    command.data.bytes_mut()[4096] = 0x2a;
    command.data.bytes_mut()[4096 + 8] = 1;
    let set_up = |command: &mut Command| {
        command.rw10(true, 0, 1);
        command.hdr().flags |= sys::CAM_CDB_POINTER;
        command.csio().cdb_io.cdb_ptr = cdb as *mut u8;
    };
    for n in 1..=3 {
        set_up(&mut command);
        fault::COPYIN.arm(n);
        assert_eq!(command.queue(&mut machine, fd), Err(EFAULT), "copyin {n}");
        assert!(fault::COPYIN.fired());
        fault::COPYIN.arm(0);
        assert_eq!(command.get(&mut machine, fd), Err(sys::ENOENT as i32));
    }
    set_up(&mut command);
    command.queue(&mut machine, fd).expect("queue");
    assert_eq!(machine.poll(fd, POLLIN, 10_000), Ok(POLLIN));
    command.get(&mut machine, fd).expect("get");
    // Two copies out: the data and the CCB.
    command.inquiry(36);
    command.queue(&mut machine, fd).expect("queue");
    assert_eq!(machine.poll(fd, POLLIN, 10_000), Ok(POLLIN));
    for n in 1..=2 {
        fault::COPYOUT.arm(n);
        assert_eq!(command.get(&mut machine, fd), Err(EFAULT), "copyout {n}");
        fault::COPYOUT.arm(0);
    }
    command.get(&mut machine, fd).expect("not lost");
    assert_eq!(command.ended().status, sys::CAM_REQ_CMP);
    machine.close(fd);
    machine.unload(module);
}

fn a_ccb_that_cannot_be_had_comes_later() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 0);
    command.test_unit_ready();
    for _ in 0..20 {
        fault::GET_CCB.arm(1);
        command.send(&mut machine, fd).expect("send");
        assert!(fault::GET_CCB.fired());
    }
    machine.close(fd);
    machine.unload(module);
}

/// Once it is taken, nothing has to be allocated any more.
fn a_queued_request_needs_no_ccb_of_cams() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 512);
    command.rw10(false, 0, 1);
    let before = (fault::GET_CCB.passed(), fault::MALLOC.passed());
    for _ in 0..20 {
        queue_and_get(&mut machine, fd, &command);
    }
    let after = (fault::GET_CCB.passed(), fault::MALLOC.passed());
    assert_eq!(after, before);
    machine.close(fd);
    machine.unload(module);
}

fn the_request_limit_is_eagain() {
    let (mut machine, module) = boot(Config::default());
    sysctl::set("max_requests", 5);
    let fd = machine.open(NODE, RDWR).expect("open");
    let other = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 0);
    command.test_unit_ready();
    for _ in 0..5 {
        command.queue(&mut machine, fd).expect("queue");
    }
    assert_eq!(command.queue(&mut machine, fd), Err(EAGAIN));
    command
        .queue(&mut machine, other)
        .expect("another open's limit");
    // Done is outstanding still; reaped is not.
    assert_eq!(machine.poll(fd, POLLIN, 10_000), Ok(POLLIN));
    assert_eq!(command.queue(&mut machine, fd), Err(EAGAIN));
    command.get(&mut machine, fd).expect("get");
    command.test_unit_ready();
    command.queue(&mut machine, fd).expect("room again");
    machine.close(fd);
    machine.close(other);
    machine.unload(module);
}

fn the_byte_limit_is_eagain() {
    let (mut machine, module) = boot(Config::default());
    sysctl::set("max_bytes", 100_000);
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 65536);
    command.rw10(false, 0, 128);
    command.queue(&mut machine, fd).expect("queue");
    assert_eq!(command.queue(&mut machine, fd), Err(EAGAIN));
    let mut small = Command::new(&mut machine, 4096);
    small.rw10(false, 0, 8);
    small.queue(&mut machine, fd).expect("what fits is taken");
    assert_eq!(machine.poll(fd, POLLIN, 10_000), Ok(POLLIN));
    machine.close(fd);
    machine.unload(module);
}

fn a_32_bit_process_gets_enotty() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 0);
    command.test_unit_ready();
    thread::current().set_32bit(true);
    let enotty = Err(sys::ENOTTY as i32);
    assert_eq!(command.queue(&mut machine, fd), enotty);
    assert_eq!(command.get(&mut machine, fd), enotty);
    // The driver's own calls have one layout for all.
    assert!(control::info(&mut machine, fd).is_ok());
    thread::current().set_32bit(false);
    assert_eq!(command.queue(&mut machine, fd), Ok(()));
    machine.close(fd);
    machine.unload(module);
}

fn a_raised_securelevel_refuses_opens() {
    let (mut machine, module) = boot(Config::default());
    thread::SECURELEVEL.store(2, Ordering::SeqCst);
    assert_eq!(machine.open(NODE, RDWR), Err(sys::EPERM as i32));
    thread::SECURELEVEL.store(1, Ordering::SeqCst);
    let fd = machine.open(NODE, RDWR).expect("open");
    machine.close(fd);
    machine.unload(module);
}

fn a_lying_residual_shows_no_stale_byte() {
    const LEN: usize = 65536;
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut write = Command::new(&mut machine, LEN);
    write.rw10(true, 0, 128);
    write.data.bytes_mut().fill(0xee);
    let mut inquiry = Command::new(&mut machine, LEN);
    machine
        .disk()
        .lies_about_residual
        .store(true, Ordering::SeqCst);
    for synchronous in [false, true] {
        queue_and_get(&mut machine, fd, &write);
        inquiry.inquiry(36);
        inquiry.csio().dxfer_len = LEN as u32;
        inquiry.data.bytes_mut().fill(0x55);
        if synchronous {
            inquiry.send(&mut machine, fd).expect("send");
        } else {
            queue_and_get(&mut machine, fd, &inquiry);
        }
        assert_eq!(inquiry.ended().resid, 0, "the disk lies");
        assert_eq!(&inquiry.data.bytes()[8..13], b"QPASS");
        assert!(inquiry.data.bytes()[36..].iter().all(|b| *b == 0));
    }
    machine.close(fd);
    machine.unload(module);
}

fn a_transfer_of_many_chunks_is_one_list() {
    const LEN: usize = 8 << 20;
    let (mut machine, module) = boot(Config {
        maxio: 16 << 20,
        ..Config::default()
    });
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut write = Command::new(&mut machine, LEN);
    let mut read = Command::new(&mut machine, LEN + 4096);
    let mut list = conform::sys::Memory::new(&mut machine, 4096);
    for (i, word) in write.data.bytes_mut().chunks_exact_mut(4).enumerate() {
        word.copy_from_slice(&(i as u32).wrapping_mul(0x9e37_79b9).to_ne_bytes());
    }
    write.rw10(true, 0, (LEN / 512) as u16);
    queue_and_get(&mut machine, fd, &write);
    assert_eq!(write.ended().status, sys::CAM_REQ_CMP);
    read.rw10(false, 0, (LEN / 512) as u16);
    queue_and_get(&mut machine, fd, &read);
    assert!(read.data.bytes()[..LEN] == write.data.bytes()[..LEN]);
    // And by a list whose boundaries are nowhere near the chunks'.
    read.data.bytes_mut().fill(0);
    read.rw10(false, 0, (LEN / 512) as u16);
    read.list(
        &mut list,
        0,
        0,
        &[3, 1 << 20, (2 << 20) + 5, LEN - (3 << 20) - 8],
    );
    queue_and_get(&mut machine, fd, &read);
    assert!(read.data.bytes()[..LEN] == write.data.bytes()[..LEN]);
    machine.close(fd);
    machine.unload(module);
}

fn a_transfer_above_the_sims_limit_is_einval() {
    for (maxio, longest) in [(0, 65536), (131_072, 131_072), (3 << 20, 3 << 20)] {
        let (mut machine, module) = boot(Config {
            maxio,
            ..Config::default()
        });
        let fd = machine.open(NODE, RDWR).expect("open");
        let mut command = Command::new(&mut machine, longest + 512);
        command.rw10(false, 0, (longest / 512) as u16);
        command.queue(&mut machine, fd).expect("the limit itself");
        command.rw10(false, 0, (longest / 512 + 1) as u16);
        assert_eq!(command.queue(&mut machine, fd), Err(sys::EINVAL as i32));
        machine.close(fd);
        machine.unload(module);
        // The next machine's disk goes into the same slot.
        machine.pull();
    }
}

/// A device that was probed or reset is left to its own driver for a second.
pub fn until_it_is_let_be() {
    std::thread::sleep(Duration::from_millis(1100));
}

/// Queued, and synchronously.
fn both_ways(
    machine: &mut Machine,
    fd: i32,
    command: &mut Command,
    mut build: impl FnMut(&mut Command),
    mut check: impl FnMut(&mut Command),
) {
    for synchronous in [false, true] {
        build(command);
        if synchronous {
            command.send(machine, fd).expect("send");
        } else {
            queue_and_get(machine, fd, command);
        }
        check(command);
    }
}

fn zeroed(command: &mut Command, func_code: sys::xpt_opcode, flags: u32) {
    command.immediate(func_code);
    command.hdr().flags = flags;
    command.hdr().timeout = 10_000;
}

fn an_ata_command_goes_through() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 4096);
    let data = command.data.address() as *mut u8;
    both_ways(
        &mut machine,
        fd,
        &mut command,
        |c| {
            zeroed(c, sys::XPT_ATA_IO, sys::CAM_DIR_IN);
            // SAFETY: plain data.
            let io = unsafe { &mut c.ccb.ccb_mut().ataio };
            io.cmd.command = 0xec;
            io.data_ptr = data;
            io.dxfer_len = 1024;
        },
        |c| {
            // SAFETY: plain data.
            let io = unsafe { &c.ccb.ccb().ataio };
            assert_eq!(io.ccb_h.status & sys::CAM_STATUS_MASK, sys::CAM_REQ_CMP);
            assert_eq!((io.resid, io.res.status), (512, 0x50));
            assert_eq!(io.data_ptr, data);
            assert_eq!(&c.data.bytes()[54..60], b"PQSA S");
        },
    );
    both_ways(
        &mut machine,
        fd,
        &mut command,
        |c| {
            zeroed(c, sys::XPT_ATA_IO, sys::CAM_DIR_NONE);
            c.ccb.ccb_mut().ataio.cmd.command = 0x99;
        },
        |c| {
            // SAFETY: plain data.
            let io = unsafe { &c.ccb.ccb().ataio };
            assert_eq!(
                io.ccb_h.status & sys::CAM_STATUS_MASK,
                sys::CAM_ATA_STATUS_ERROR
            );
            assert_eq!((io.res.status, io.res.error), (0x51, 4));
        },
    );
    machine.close(fd);
    machine.unload(module);
}

fn an_nvme_command_goes_through_without_physical_addresses() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 8192);
    let data = command.data.address() as *mut u8;
    for opcode in [1u8, 2] {
        both_ways(
            &mut machine,
            fd,
            &mut command,
            |c| {
                if opcode == 1 {
                    c.data.bytes_mut().fill(0x42);
                } else {
                    c.data.bytes_mut().fill(0);
                }
                let direction = if opcode == 1 {
                    sys::CAM_DIR_OUT
                } else {
                    sys::CAM_DIR_IN
                };
                zeroed(c, sys::XPT_NVME_IO, direction);
                // SAFETY: plain data; a submission queue entry has 64 bytes.
                let io = unsafe { &mut c.ccb.ccb_mut().nvmeio };
                // SAFETY: as above.
                let entry: &mut [u8; 64] = unsafe { &mut *(&raw mut io.cmd).cast() };
                entry[0] = opcode;
                entry[16..40].fill(0xbb);
                entry[40] = 9;
                io.data_ptr = data;
                io.dxfer_len = 4096;
            },
            |c| {
                // SAFETY: plain data.
                let io = unsafe { &c.ccb.ccb().nvmeio };
                // SAFETY: as above.
                let entry: &[u8; 64] = unsafe { &*(&raw const io.cmd).cast() };
                assert_eq!(io.ccb_h.status & sys::CAM_STATUS_MASK, sys::CAM_REQ_CMP);
                assert!(
                    entry[16..40].iter().all(|b| *b == 0xbb),
                    "the user's own come back"
                );
                assert!(c.data.bytes()[..4096].iter().all(|b| *b == 0x42));
            },
        );
        assert!(!machine.disk().nvme_addresses_seen.load(Ordering::SeqCst));
    }
    machine.close(fd);
    machine.unload(module);
}

fn an_smp_command_goes_through() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 8192);
    let data = command.data.address();
    both_ways(
        &mut machine,
        fd,
        &mut command,
        |c| {
            c.data.bytes_mut()[..8].copy_from_slice(&[0x40, 0x10, 0, 0, 0, 0, 0, 0]);
            c.data.bytes_mut()[4096..].fill(0);
            zeroed(c, sys::XPT_SMP_IO, 0);
            // SAFETY: plain data.
            let io = unsafe { &mut c.ccb.ccb_mut().smpio };
            (io.smp_request, io.smp_request_len) = (data as *mut u8, 8);
            (io.smp_response, io.smp_response_len) = ((data + 4096) as *mut u8, 60);
        },
        |c| {
            assert_eq!(c.hdr().status & sys::CAM_STATUS_MASK, sys::CAM_REQ_CMP);
            assert_eq!(&c.data.bytes()[4096..4100], &[0x41, 0x10, 0, 0]);
            // SAFETY: plain data.
            let io = unsafe { &c.ccb.ccb().smpio };
            assert_eq!(io.smp_request as usize, data);
            assert_eq!(io.smp_response as usize, data + 4096);
        },
    );
    machine.close(fd);
    machine.unload(module);
}

fn advanced_information_is_read_and_stored() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 4096);
    let data = command.data.address() as *mut u8;
    let ask = |c: &mut Command, kind: u32, flags: u32, len: i64| {
        zeroed(c, sys::XPT_DEV_ADVINFO, 0);
        // SAFETY: plain data.
        let io = unsafe { &mut c.ccb.ccb_mut().cdai };
        (io.buftype, io.flags, io.buf, io.bufsiz) = (kind, flags, data, len);
    };
    both_ways(
        &mut machine,
        fd,
        &mut command,
        |c| ask(c, sys::CDAI_TYPE_SERIAL_NUM, 0, 64),
        |c| assert_eq!(&c.data.bytes()[..9], b"QPSERIAL\0"),
    );
    command.data.bytes_mut()[..8].copy_from_slice(b"slot-one");
    ask(
        &mut command,
        sys::CDAI_TYPE_PHYS_PATH,
        sys::CDAI_FLAG_STORE,
        8,
    );
    queue_and_get(&mut machine, fd, &command);
    command.data.bytes_mut().fill(0);
    ask(&mut command, sys::CDAI_TYPE_PHYS_PATH, 0, 64);
    queue_and_get(&mut machine, fd, &command);
    assert_eq!(&command.data.bytes()[..9], b"slot-one\0");
    for len in [-1, 1 << 40] {
        ask(&mut command, sys::CDAI_TYPE_SERIAL_NUM, 0, len);
        let einval = Err(sys::EINVAL as i32);
        assert_eq!(command.queue(&mut machine, fd), einval);
        assert_eq!(command.send(&mut machine, fd), einval);
    }
    machine.close(fd);
    machine.unload(module);
}

fn a_device_reset_goes_through() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 0);
    both_ways(
        &mut machine,
        fd,
        &mut command,
        |c| {
            until_it_is_let_be();
            zeroed(c, sys::XPT_RESET_DEV, sys::CAM_DIR_NONE);
        },
        |c| assert_eq!(c.hdr().status & sys::CAM_STATUS_MASK, sys::CAM_REQ_CMP),
    );
    machine.close(fd);
    machine.unload(module);
}

fn a_long_list_counts_as_bytes() {
    let (mut machine, module) = boot(Config::default());
    sysctl::set("max_bytes", 100_000);
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut list = conform::sys::Memory::new(&mut machine, 1 << 20);
    let mut command = Command::new(&mut machine, 512);
    let mut lens = vec![0; 60_000];
    lens[0] = 512;
    command.rw10(false, 0, 1);
    command.list(&mut list, 0, 0, &lens);
    // Alone it is let through.
    assert_eq!(command.queue(&mut machine, fd), Ok(()));
    let bytes = control::outstanding(&mut machine, fd).1;
    assert_eq!(bytes, 60_000 * 16 + 4096);
    assert_eq!(command.queue(&mut machine, fd), Err(EAGAIN));
    machine.close(fd);
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut other = Command::new(&mut machine, 0);
    other.immediate(sys::XPT_NOOP);
    other.queue(&mut machine, fd).expect("queue");
    assert_eq!(command.queue(&mut machine, fd), Err(EAGAIN));
    machine.close(fd);
    machine.unload(module);
}

fn unit_attention_is_retried_when_asked() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 512);
    for freeze in [false, true] {
        for synchronous in [false, true] {
            machine.disk().unit_attentions.store(1, Ordering::SeqCst);
            let before = machine.disk().commands.load(Ordering::SeqCst);
            command.rw10(false, 0, 1);
            command.hdr().flags |= sys::CAM_PASS_ERR_RECOVER;
            if freeze {
                command.hdr().flags &= !sys::CAM_DEV_QFRZDIS;
            }
            if synchronous {
                command.send(&mut machine, fd).expect("send");
            } else {
                queue_and_get(&mut machine, fd, &command);
            }
            assert_eq!(command.ended().status, sys::CAM_REQ_CMP);
            assert_eq!(machine.disk().commands.load(Ordering::SeqCst), before + 2);
        }
    }
    machine.close(fd);
    machine.unload(module);
}

fn unit_attention_is_told_when_not() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 512);
    command.rw10(false, 0, 1);
    machine.disk().unit_attentions.store(1, Ordering::SeqCst);
    queue_and_get(&mut machine, fd, &command);
    assert_eq!(command.ended().sense, (6, 0x29, 0));
    machine.close(fd);
    machine.unload(module);
}

fn a_full_queue_is_drained_in_order() {
    let (mut machine, module) = boot(Config {
        openings: 1,
        threads: 1,
        ..Config::default()
    });
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 512);
    command.rw10(false, 0, 1);
    for tag in 0..200 {
        command.set_private(0, tag);
        command.queue(&mut machine, fd).expect("queue");
    }
    for tag in 0..200 {
        assert_eq!(machine.poll(fd, POLLIN, 10_000), Ok(POLLIN));
        command.get(&mut machine, fd).expect("get");
        assert_eq!(command.private(0), tag);
    }
    machine.close(fd);
    machine.unload(module);
}

fn a_completion_that_cannot_be_reaped_blocks_no_other() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut lost = Command::new(&mut machine, 4096);
    lost.rw10(false, 0, 8);
    lost.queue(&mut machine, fd).expect("queue");
    let (at, len) = (lost.data.address() as *mut u8, lost.data.len());
    machine.protect(at, len, conform::sys::Access::None);
    let mut command = Command::new(&mut machine, 0);
    command.test_unit_ready();
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    for _ in 0..10 {
        command.queue(&mut machine, fd).expect("queue");
        let mut tries = 0;
        while command.get(&mut machine, fd) != Ok(()) {
            tries += 1;
            assert!(tries < 1_000_000, "the other one comes");
        }
        command.test_unit_ready();
    }
    assert_eq!(command.get(&mut machine, fd), Err(EFAULT), "told each time");
    machine.close(fd);
    machine.unload(module);
}

fn poll_wakes_a_sleeping_thread() {
    wakes(|machine, fd| {
        assert_eq!(
            machine
                .process()
                .poll(fd, POLLIN, Some(Duration::from_secs(20))),
            Ok(POLLIN)
        );
    });
}

fn kevent_wakes_a_sleeping_thread() {
    wakes(|machine, fd| {
        let kq = machine.process().kqueue();
        let change = event(fd, sys::EV_ADD);
        let mut events = [event(0, 0)];
        let n = machine
            .process()
            .kevent(kq, &[change], &mut events, Some(Duration::from_secs(20)));
        assert_eq!(n, Ok(1));
        machine.process().close(kq);
    });
}

/// A thread sleeps in `wait` while another queues, a hundred times.
fn wakes(wait: impl Fn(&Machine, i32) + Sync) {
    let (mut machine, module) = boot(Config {
        latency: Duration::from_micros(200),
        ..Config::default()
    });
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 0);
    command.test_unit_ready();
    let ccb = command.ccb.address();
    let shared = &machine;
    for _ in 0..100 {
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| wait(shared, fd));
            shared
                .process()
                .ioctl(fd, sys::QPC_CAMIOQUEUE, ccb)
                .expect("queue");
            waiter.join().expect("the waiter is woken");
        });
        shared
            .process()
            .ioctl(fd, sys::QPC_CAMIOGET, ccb)
            .expect("get");
    }
    machine.close(fd);
    machine.unload(module);
}

fn edge_triggered_events_come_once_a_completion() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let kq = machine.kqueue().expect("kqueue");
    watch(&mut machine, kq, fd, sys::EV_ADD | sys::EV_CLEAR);
    let mut command = Command::new(&mut machine, 0);
    command.immediate(sys::XPT_PATH_INQ);
    for n in 1..=3 {
        command.queue(&mut machine, fd).expect("queue");
        assert_eq!(next(&mut machine, kq), Some(n));
        assert_eq!(next(&mut machine, kq), None);
    }
    machine.close(kq);
    machine.close(fd);
    machine.unload(module);
}

fn the_physical_path_is_an_alias_and_follows_its_change() {
    let (mut machine, module) = boot(Config::default());
    assert_eq!(devfs::names(), ["qpass0"]);
    for path in ["enc0/slot1", "enc0/slot1", "enc0/slot2"] {
        cam::set_physpath(machine.device(), path);
        let alias = format!("{path}/qpass0");
        wait_until("the alias is there", || devfs::exists(&alias));
        cam::settle();
        ukernel::task::drain();
        assert_eq!(devfs::names().len(), 2, "one alias at a time");
        let fd = machine.open(&format!("/dev/{alias}"), RDWR).expect("open");
        let mut command = Command::new(&mut machine, 0);
        command.test_unit_ready();
        command.send(&mut machine, fd).expect("send");
        machine.close(fd);
    }
    // Changes while the device goes.
    let device = machine.device().clone();
    for i in 0..20 {
        cam::set_physpath(&device, &format!("enc1/slot{i}"));
    }
    machine.depart();
    assert_eq!(devfs::names(), Vec::<String>::new());
    machine.unload(module);
}

fn devstat_counts_what_was_moved() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 4096);
    for _ in 0..3 {
        command.rw10(true, 0, 8);
        queue_and_get(&mut machine, fd, &command);
    }
    command.rw10(false, 0, 8);
    queue_and_get(&mut machine, fd, &command);
    // 36 bytes come of the 4096 that are asked for.
    command.inquiry(36);
    command.csio().dxfer_len = 4096;
    queue_and_get(&mut machine, fd, &command);
    command.test_unit_ready();
    queue_and_get(&mut machine, fd, &command);
    machine.close(fd);
    let stats = [ukernel::devstat::Stats {
        name: "qpass0".into(),
        started: 6,
        ended: 6,
        read: 4096 + 36,
        written: 3 * 4096,
        no_data: 1,
    }];
    assert_eq!(ukernel::devstat::entries(), stats);
    machine.unload(module);
    assert_eq!(ukernel::devstat::removed(), stats);
}

fn room_to_queue_is_told() {
    const POLLOUT: i16 = sys::POLLOUT as i16;
    let (mut machine, module) = boot(Config::default());
    sysctl::set("max_requests", 4);
    let fd = machine.open(NODE, RDWR).expect("open");
    let kq = machine.kqueue().expect("kqueue");
    let mut change = event(fd, sys::EV_ADD);
    change.filter = sys::EVFILT_WRITE as i16;
    assert_eq!(machine.kevent(kq, &[change], &mut [], 0), Ok(0));
    assert_eq!(next(&mut machine, kq), Some(4));
    assert_eq!(machine.poll(fd, POLLOUT, 0), Ok(POLLOUT));
    let mut command = Command::new(&mut machine, 0);
    command.test_unit_ready();
    for left in (0..4).rev() {
        command.queue(&mut machine, fd).expect("queue");
        assert_eq!(next(&mut machine, kq), (left != 0).then_some(left));
    }
    assert_eq!(machine.poll(fd, POLLOUT, 20), Ok(0));
    let shared = &machine;
    std::thread::scope(|scope| {
        let poll = scope.spawn(|| {
            shared
                .process()
                .poll(fd, POLLOUT, Some(Duration::from_secs(20)))
        });
        let kevent = scope.spawn(|| {
            let mut events = [event(0, 0)];
            let n = shared
                .process()
                .kevent(kq, &[], &mut events, Some(Duration::from_secs(20)));
            (n, events[0].data)
        });
        std::thread::sleep(Duration::from_millis(30));
        let mut sys = Shared(shared);
        assert_eq!(sys.poll(fd, POLLIN, 20_000), Ok(POLLIN));
        command.get(&mut sys, fd).expect("get");
        assert_eq!(poll.join().expect("woken"), Ok(POLLOUT));
        assert_eq!(kevent.join().expect("woken"), (Ok(1), 1));
    });
    machine.depart();
    let mut events = [event(0, 0)];
    assert_eq!(machine.kevent(kq, &[], &mut events, 20_000), Ok(1));
    assert!(u32::from(events[0].flags) & sys::EV_EOF != 0);
    machine.close(kq);
    machine.close(fd);
    machine.unload(module);
}

/// What CAMGETPASSTHRU says: name and number.
fn passthru(machine: &mut Machine, fd: i32) -> (String, u32) {
    let mut command = Command::new(machine, 0);
    machine
        .ioctl(fd, sys::QPC_CAMGETPASSTHRU, command.ccb.address())
        .expect("CAMGETPASSTHRU");
    // SAFETY: plain data.
    let list = unsafe { &command.ccb.ccb_mut().cgdl };
    let name = list
        .periph_name
        .iter()
        .map(|c| *c as u8 as char)
        .take_while(|c| *c != '\0')
        .collect();
    (name, list.unit_number)
}

fn camgetpassthru_names_the_pass_device() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    assert_eq!(passthru(&mut machine, fd).0, "", "there is none");
    machine.close(fd);
    machine.unload(module);
}

fn it_stands_in_for_pass_where_there_is_none() {
    sysctl::set_tunable("replace", 1);
    let mut machine = Machine::new(Config::default());
    let module = machine.load(&ko()).expect("load");
    assert_eq!(devfs::names(), ["pass0"]);
    let fd = machine.open("/dev/pass0", RDWR).expect("open");
    assert_eq!(passthru(&mut machine, fd), ("pass".into(), 0));
    let mut command = Command::new(&mut machine, 512);
    command.rw10(false, 0, 1);
    queue_and_get(&mut machine, fd, &command);
    machine.close(fd);
    machine.unload(module);
    assert_eq!(thread::console(), "");
}

fn it_stays_qpass_where_there_is_a_pass() {
    sysctl::set_tunable("replace", 1);
    cam::register_empty_driver(c"pass");
    let (machine, module) = boot(Config::default());
    assert_eq!(devfs::names(), ["qpass0"]);
    let said = "qpass: this kernel has pass(4): hw.qpass.replace is refused\n";
    assert_eq!(thread::console(), said);
    machine.unload(module);
    let is_pass = |driver: &usize| {
        // SAFETY: a listed driver is there, with a name.
        let name = unsafe {
            let driver = *driver as *const sys::periph_driver;
            core::ffi::CStr::from_ptr((*driver).driver_name)
        };
        name == c"pass"
    };
    let listed = cam::listed_drivers();
    let passes = listed.iter().filter(|driver| is_pass(driver));
    assert_eq!(passes.count(), 1, "pass is there still, once");
}

fn nobody_is_woken_when_nobody_waits() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 0);
    command.test_unit_ready();
    let before = kqueue::WAKEUPS.load(Ordering::SeqCst);
    for _ in 0..50 {
        command.queue(&mut machine, fd).expect("queue");
        while command.get(&mut machine, fd).is_err() {
            std::thread::yield_now();
        }
        command.test_unit_ready();
    }
    assert_eq!(kqueue::WAKEUPS.load(Ordering::SeqCst), before);
    machine.close(fd);
    machine.unload(module);
}

/// Threads × commands on descriptors of one disk with latency and reordering.
fn load(machine: &Machine, fds: &[i32], threads: usize, commands: usize) -> u64 {
    let reaped = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let fd = fds[thread % fds.len()];
            let reaped = &reaped;
            scope.spawn(move || {
                let mut sys = Shared(machine);
                let mut command = Command::new(&mut sys, 8192);
                for i in 0..commands {
                    match (i + thread) % 4 {
                        0 => command.test_unit_ready(),
                        1 => command.immediate(sys::XPT_GDEV_TYPE),
                        2 => command.rw10(true, (thread * 64) as u32, 16),
                        _ => command.rw10(false, (i % 1000) as u32, 16),
                    }
                    command.queue(&mut sys, fd).expect("queue");
                    // Whose completion it is does not matter here.
                    loop {
                        let _ = sys.poll(fd, POLLIN, 20_000);
                        if command.get(&mut sys, fd).is_ok() {
                            break;
                        }
                    }
                    assert_eq!(command.ended().status, sys::CAM_REQ_CMP);
                    reaped.fetch_add(1, Ordering::Relaxed);
                }
                // Not freed: another thread may reap into its buffer.
            });
        }
    });
    reaped.into_inner()
}

const BUSY: Config = Config {
    model: ukernel::model::Model::PLAIN,
    file: None,
    sata: false,
    atapi: false,
    size: 8 << 20,
    maxio: 1 << 20,
    openings: 8,
    latency: Duration::from_micros(20),
    jitter: Duration::from_micros(300),
    threads: 3,
    unmapped: true,
    odd: ukernel::disk::Odd::NONE,
};

fn many_threads_share_an_open() {
    let (mut machine, module) = boot(BUSY);
    let fd = machine.open(NODE, RDWR).expect("open");
    assert_eq!(load(&machine, &[fd], 6, 200), 1200);
    machine.close(fd);
    machine.unload(module);
}

fn many_opens_share_a_device() {
    let (mut machine, module) = boot(BUSY);
    let fds: Vec<_> = (0..6)
        .map(|_| machine.open(NODE, RDWR).expect("open"))
        .collect();
    assert_eq!(load(&machine, &fds, 6, 200), 1200);
    for fd in fds {
        machine.close(fd);
    }
    machine.unload(module);
}

fn a_device_pulled_under_load_frees_everything() {
    let (mut machine, module) = boot(BUSY);
    for round in 0..10u64 {
        let fds: Vec<_> = (0..4)
            .map(|_| machine.open(NODE, RDWR).expect("open"))
            .collect();
        let stop = AtomicBool::new(false);
        let shared = &machine;
        let device = std::thread::scope(|scope| {
            for fd in &fds {
                let (fd, stop) = (*fd, &stop);
                scope.spawn(move || {
                    let mut sys = Shared(shared);
                    let mut command = Command::new(&mut sys, 8192);
                    command.rw10(false, 0, 16);
                    while !stop.load(Ordering::Relaxed) {
                        match command.queue(&mut sys, fd) {
                            Ok(()) | Err(EAGAIN) => {}
                            Err(errno) => assert_eq!(errno, ENXIO),
                        }
                        let _ = sys.poll(fd, POLLIN, 1);
                        if let Err(errno) = command.get(&mut sys, fd) {
                            assert!([ENXIO, sys::ENOENT as i32].contains(&errno));
                        }
                        command.rw10(false, 0, 16);
                        if let Err(errno) = command.send(&mut sys, fd) {
                            assert_eq!(errno, ENXIO);
                        }
                        command.rw10(false, 0, 16);
                    }
                    command.free(&mut sys);
                });
            }
            std::thread::sleep(Duration::from_millis(5 + round * 3));
            let device = shared.device().clone();
            cam::detach(&device);
            cam::settle();
            cam::wait_free(&device);
            stop.store(true, Ordering::Relaxed);
            device
        });
        device.check_idle();
        for fd in fds {
            machine.close(fd);
        }
        machine.arrive();
    }
    machine.unload(module);
}

/// Threads do at random what programs do, while the device comes and goes and
/// allocations and copies fail. `QPASS_SEED` runs one seed again.
fn whatever_happens_nothing_is_left() {
    let seeds: Vec<u64> = match std::env::var("QPASS_SEED") {
        Ok(seed) => vec![seed.parse().expect("QPASS_SEED is a number")],
        Err(_) => (1..=6).chain([fastrand::u64(..)]).collect(),
    };
    let (mut machine, module) = boot(BUSY);
    for seed in seeds {
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        sysctl::set("max_requests", random.u64(8..200));
        let running = AtomicU64::new(5);
        let shared = &machine;
        let disk = std::thread::scope(|scope| {
            for _ in 0..5 {
                let random = random.fork();
                let running = &running;
                scope.spawn(move || {
                    random_program(shared, random);
                    running.fetch_sub(1, Ordering::SeqCst);
                });
            }
            let mut device = shared.device().clone();
            let mut disk = None;
            while running.load(Ordering::SeqCst) != 0 {
                std::thread::sleep(Duration::from_micros(random.u64(100..4000)));
                let points = [
                    &fault::MALLOC,
                    &fault::GET_CCB,
                    &fault::COPYIN,
                    &fault::COPYOUT,
                    &fault::HOLD,
                ];
                points[random.usize(..points.len())].arm(random.u32(0..20));
                if random.u32(..8) == 0 {
                    cam::detach(&device);
                    let plugged = ukernel::disk::RamDisk::new("RANDOM", BUSY);
                    device = cam::attach(device.id, plugged.clone());
                    disk = Some((device.clone(), plugged));
                }
            }
            for point in [
                &fault::MALLOC,
                &fault::GET_CCB,
                &fault::COPYIN,
                &fault::COPYOUT,
                &fault::HOLD,
            ] {
                point.arm(0);
            }
            disk
        });
        if let Some((device, disk)) = disk {
            machine.replaced(device, disk);
        }
        machine.close_all();
        cam::settle();
        cam::all_neighbours_read();
        // An attach may have failed for want of memory: the next one does not.
        machine.depart();
        wait_until("every periph has gone", || {
            cam::PERIPHS.load(Ordering::SeqCst) == 0
        });
        machine.arrive();
        let fd = machine.open(NODE, RDWR).expect("open after all that");
        let mut command = Command::new(&mut machine, 4096);
        command.rw10(false, 0, 8);
        queue_and_get(&mut machine, fd, &command);
        machine.close(fd);
        wait_until("all memory is back", all_is_back);
        memory::check_freed();
    }
    machine.unload(module);
    // The table in lib.rs: what is taken under what, and nothing else.
    let orders = lock::orders();
    let orders: Vec<_> = orders
        .iter()
        .filter(|(first, second)| first.starts_with("qpass") || second.starts_with("qpass"))
        .map(|(first, second)| (first.as_str(), second.as_str()))
        .collect();
    let wanted = [
        ("CAM device lock", "qpass queue"),
        ("CAM device lock", "qpass room"),
        ("qpass room", "qpass queue"),
        ("qpass queue", "CAM queue lock"),
    ];
    for order in &orders {
        assert!(wanted.contains(order), "{order:?}");
    }
    // The third is taken when a call waits for room and for completions, the last
    // when one cancels what waits in CAM's queue.
    assert!(wanted[..2].iter().all(|order| orders.contains(order)));
}

/// One program: opens and closes, queues good and bad CCBs, reaps, waits.
fn random_program(machine: &Machine, mut random: fastrand::Rng) {
    let mut sys = Shared(machine);
    let mut list = conform::sys::Memory::new(&mut sys, 4096);
    let mut command = Command::new(&mut sys, 65536);
    let mut arrays = enter::Arrays::new(&mut sys);
    let kq = machine.process().kqueue();
    let mut fds = Vec::new();
    for _ in 0..600 {
        let fd = match fds.len() {
            0 => -1,
            n => fds[random.usize(..n)],
        };
        match random.u32(..16) {
            0 | 1 if fds.len() < 3 => {
                if let Ok(fd) = machine.process().open(NODE, RDWR) {
                    fds.push(fd);
                }
            }
            2 => {
                fds.retain(|f| *f != fd);
                machine.process().close(fd);
            }
            3 => {
                let mut change = event(fd, sys::EV_ADD);
                if random.bool() {
                    change.filter = sys::EVFILT_WRITE as i16;
                }
                if random.bool() {
                    change.flags |= sys::EV_CLEAR as u16;
                }
                let _ = sys.kevent(kq, &[change], &mut [], 0);
            }
            4 => {
                let _ = sys.kevent(kq, &[], &mut [event(0, 0); 4], random.u32(..2));
            }
            5 if random.bool() => random_enter(&mut random, &mut sys, fd, &command, &mut arrays),
            5 if random.bool() => random_control(&mut random, &mut sys, fd, &command),
            5 => {
                let _ = sys.poll(fd, POLLIN | sys::POLLOUT as i16, random.i32(..2));
            }
            6..=9 => {
                for _ in 0..random.u32(1..6) {
                    let _ = command.get(&mut sys, fd);
                }
            }
            10 => {
                random_ccb(&mut random, &mut command, &mut list);
                let _ = command.send(&mut sys, fd);
            }
            _ => {
                for _ in 0..random.u32(1..6) {
                    random_ccb(&mut random, &mut command, &mut list);
                    let _ = command.queue(&mut sys, fd);
                }
            }
        }
    }
    for fd in fds {
        machine.process().close(fd);
    }
    machine.process().close(kq);
}

/// QPIOC_ENTER with good and bad entries, and waits that end soon.
fn random_enter(
    random: &mut fastrand::Rng,
    sys: &mut Shared<'_>,
    fd: i32,
    command: &Command,
    arrays: &mut enter::Arrays,
) {
    let submissions: Vec<_> = (0..random.usize(..40))
        .map(|_| {
            let wild = random.u32(..60) == 0;
            let ccb = if wild { 16 } else { command.ccb.address() };
            (ccb, random.u64(..))
        })
        .collect();
    arrays.submit(&submissions);
    let room = random.u32(..60);
    let mut call = arrays.call(submissions.len(), room, random.u32(..=room));
    call.flags = random.u32(..8) & !sys::QPASS_ENTER_ABSTIME;
    call.timeout = random.u64(..2_000_000);
    if random.u32(..20) == 0 {
        call.completions = 16;
    }
    if let Ok((submitted, reaped, stopped, _)) = enter::enter(sys, fd, call) {
        assert!(reaped <= room);
        assert_eq!(stopped == 0, submitted == submissions.len() as u32);
    }
    if random.u32(..4) == 0 {
        lock::signal();
    }
}

/// QPIOC_CANCEL of one or all, QPIOC_LIMIT, and QPIOC_INFO, which is true at
/// every moment.
fn random_control(random: &mut fastrand::Rng, sys: &mut Shared<'_>, fd: i32, command: &Command) {
    match random.u32(..4) {
        3 => {
            let flags = random.u32(..2) * sys::QPASS_LIST_DEVICE;
            if let Ok(found) = outstanding::list(sys, fd, flags, random.usize(1..60)) {
                outstanding::check_order(&found);
            }
        }
        0 => {
            let ccb = if random.bool() {
                0
            } else {
                command.ccb.address()
            };
            let _ = control::cancel(sys, fd, ccb);
            // And as an operator would, of whatever open there may be.
            let (open, number) = (random.u64(0..4), random.u64(0..8));
            let _ = control::cancel_of_device(sys, fd, open, number);
        }
        1 => {
            let _ = control::limit(sys, fd, random.u32(..9), random.u64(..1 << 20));
        }
        _ => {
            if let Ok(info) = control::info(sys, fd) {
                assert_eq!(info.submitted, info.completed + info.outstanding);
            }
        }
    }
}

fn random_ccb(random: &mut fastrand::Rng, command: &mut Command, list: &mut conform::sys::Memory) {
    let blocks = random.u16(1..128);
    match random.u32(..8) {
        0 => command.test_unit_ready(),
        1 => command.immediate(random.u32(..0xfff)),
        2 => command.inquiry(random.u8(..)),
        4 if random.bool() => {
            // What is under way, now and then.
            command.immediate(sys::XPT_ABORT);
            command.ccb.ccb_mut().cab.abort_ccb = command.ccb.address() as *mut sys::ccb;
        }
        6 if random.u32(..8) == 0 => {
            // A number of openings that no device has, now and then.
            command.immediate(sys::XPT_REL_SIMQ);
            // SAFETY: plain data.
            let crs = unsafe { &mut command.ccb.ccb_mut().crs };
            crs.release_flags = random.u32(..16);
            crs.openings = random.u32(..) >> random.u32(..32);
            crs.release_timeout = random.u32(..10_000);
        }
        3 => {
            command.rw10(false, 0, blocks);
            let len = usize::from(blocks) * 512;
            let cut = random.usize(..len);
            command.list(list, 0, 0, &[cut, len - cut - usize::from(random.bool())]);
        }
        _ => command.rw10(random.bool(), random.u32(..20_000), blocks),
    }
    if random.u32(..4) == 0 {
        command.hdr().flags &= !sys::CAM_DEV_QFRZDIS;
    }
    if random.u32(..4) == 0 {
        command.hdr().flags |= sys::CAM_PASS_ERR_RECOVER;
    }
    if random.u32(..30) == 0 {
        command.csio().data_ptr = random.u64(..) as *mut u8;
    }
    if random.u32(..30) == 0 {
        command.hdr().flags = random.u32(..);
    }
}

/// Whether no item of any zone is in use.
fn all_is_back() -> bool {
    memory::zones().iter().all(|zone| zone.used == 0)
}

fn the_console_stays_quiet() {
    let (mut machine, module) = boot(Config::default());
    for case in conform::cases::ALL.iter().filter(|c| !c.departs) {
        assert!(conform::run_one(case, &mut machine, NODE).is_ok());
    }
    assert_eq!(thread::console(), "");
    machine.unload(module);
    assert_eq!(thread::console(), "");
    for (first, second) in lock::orders() {
        println!("lock order: {first} -> {second}");
    }
}

fn the_transcript_is_that_of_pass_but_for_the_listed_differences() {
    // Or that of a real kernel, as scripts/vm has left it.
    if let Some(path) = std::env::var_os("QPASS_TRANSCRIPT") {
        let text = std::fs::read_to_string(path).expect("QPASS_TRANSCRIPT");
        return compare(|case| text.lines().find(|l| is_of(l, case)).map(String::from));
    }
    let (machine, module) = boot(Config::default());
    let machine = std::cell::RefCell::new(machine);
    compare(|case| {
        let mut machine = machine.borrow_mut();
        assert!(conform::run_one(case, &mut *machine, NODE).is_ok());
        // The disk is another make.
        let line = machine.transcript.pop().expect("a line");
        Some(line.replace("QPASS   ", "QEMU    "))
    });
    machine.into_inner().unload(module);
}

/// Whether a transcript's line is of that case.
fn is_of(line: &str, case: &conform::Case) -> bool {
    line.len() > 5 && line[5..].split(':').next() == Some(case.name)
}

/// Holds a transcript to what pass(4) has answered.
fn compare(ours: impl Fn(&conform::Case) -> Option<String>) {
    let record = include_str!("../../../parity/pass-14.2-BETA1.txt");
    let differences = include_str!("../../../parity/differences.txt");
    let lines = |text: &'static str| text.lines().filter(|l| !l.starts_with('#'));
    let mut listed: Vec<&str> = lines(differences)
        .map(|l| l.split_once(": ").expect("case: reason").0)
        .collect();
    for case in conform::cases::ALL.iter().filter(|c| !c.departs) {
        let ours = ours(case).unwrap_or_else(|| panic!("no line of {}", case.name));
        assert!(ours.starts_with("ok "), "{ours}");
        let theirs = lines(record).find(|l| is_of(l, case));
        if let Some(at) = listed.iter().position(|l| *l == case.name) {
            listed.remove(at);
            assert_ne!(Some(ours.as_str()), theirs, "listed, but the same");
        } else {
            assert_eq!(Some(ours.as_str()), theirs, "not listed as a difference");
        }
    }
    assert_eq!(listed, Vec::<&str>::new(), "listed, but no case");
}

// ---- helpers ----

/// The machine's process, for a thread of its own.
struct Shared<'a>(&'a Machine);

impl Sys for Shared<'_> {
    fn open(&mut self, path: &str, flags: i32) -> Result<i32, i32> {
        self.0.process().open(path, flags)
    }
    fn close(&mut self, fd: i32) {
        self.0.process().close(fd);
    }
    fn dup(&mut self, fd: i32) -> Result<i32, i32> {
        self.0.process().dup(fd)
    }
    fn close_all(&mut self) {
        unreachable!()
    }
    fn ioctl(&mut self, fd: i32, request: u64, arg: usize) -> Result<(), i32> {
        self.0.process().ioctl(fd, request, arg)
    }
    fn kqueue(&mut self) -> Result<i32, i32> {
        Ok(self.0.process().kqueue())
    }
    fn kevent(
        &mut self,
        kq: i32,
        changes: &[sys::kevent],
        events: &mut [sys::kevent],
        ms: u32,
    ) -> Result<usize, i32> {
        let timeout = Duration::from_millis(u64::from(ms));
        self.0.process().kevent(kq, changes, events, Some(timeout))
    }
    fn poll(&mut self, fd: i32, events: i16, ms: i32) -> Result<i16, i32> {
        let timeout = u64::try_from(ms).ok().map(Duration::from_millis);
        self.0.process().poll(fd, events, timeout)
    }
    fn map(&mut self, len: usize) -> *mut u8 {
        ukernel::user::map(len)
    }
    fn map_file(&mut self, len: usize) -> *mut u8 {
        self.map(len)
    }
    fn wire(&mut self, _at: *mut u8, _len: usize) -> Result<(), i32> {
        Ok(())
    }
    unsafe fn unmap(&mut self, at: *mut u8, len: usize) {
        // SAFETY: the caller's promise.
        unsafe { ukernel::user::unmap(at, len) };
    }
    fn protect(&mut self, at: *mut u8, len: usize, access: conform::sys::Access) {
        ukernel::user::protect(at, len, access);
    }
    fn print(&mut self, line: &str) {
        println!("{line}");
    }
    fn can_depart(&self) -> bool {
        false
    }
    fn depart(&mut self) {
        unreachable!()
    }
    fn arrive(&mut self) {
        unreachable!()
    }
}

fn event(fd: i32, flags: u32) -> sys::kevent {
    // SAFETY: plain data.
    let mut event: sys::kevent = unsafe { core::mem::zeroed() };
    event.ident = fd as u64;
    event.filter = sys::EVFILT_READ as i16;
    event.flags = flags as u16;
    event
}

fn watch(machine: &mut Machine, kq: i32, fd: i32, flags: u32) {
    assert_eq!(machine.kevent(kq, &[event(fd, flags)], &mut [], 0), Ok(0));
}

/// The next event's `data`.
fn next(machine: &mut Machine, kq: i32) -> Option<i64> {
    let mut events = [event(0, 0)];
    let n = machine.kevent(kq, &[], &mut events, 0).expect("kevent");
    (n == 1).then_some(events[0].data)
}

fn queue_and_get(machine: &mut Machine, fd: i32, command: &Command) {
    command.queue(machine, fd).expect("queue");
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    command.get(machine, fd).expect("get");
}

/// A case of the conformance suite, then an unload with its checks.
fn conformance(name: &str) {
    let case = conform::cases::ALL
        .iter()
        .find(|case| case.name == name)
        .expect("a case");
    let (mut machine, module) = boot(Config::default());
    let outcome = conform::run_one(case, &mut machine, NODE);
    assert!(outcome.is_ok());
    machine.unload(module);
}

/// Runs a test in a process of its own.
fn in_child(name: &str) -> Result<(), Failed> {
    let exe = std::env::current_exe()?;
    let output = Process::new(exe).arg("--child").arg(name).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
    .into())
}

/// A test that hangs fails, and says so.
fn watchdog() {
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_secs(120));
        thread::broken("the test takes longer than two minutes");
    });
}

fn child(name: &str) {
    watchdog();
    match name.strip_prefix("conform::") {
        Some(case) => conformance(case),
        None => {
            let test = all_tests().find(|t| t.0 == name).expect("a test");
            (test.1)();
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, flag, name] = &args[..]
        && flag == "--child"
    {
        child(name);
        return ExitCode::SUCCESS;
    }
    let names = all_tests().map(|t| t.0.to_string()).chain(
        conform::cases::ALL
            .iter()
            .map(|c| format!("conform::{}", c.name)),
    );
    let trials: Vec<_> = names
        .map(|name| {
            let run: Arc<str> = name.as_str().into();
            Trial::test(name, move || in_child(&run))
        })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
