//! QPIOC_INFO, QPIOC_LIMIT and QPIOC_CANCEL.

use super::*;

tests! {
    info_says_what_there_is;
    info_of_an_ata_device_says_what_its_commands_may_move;
    info_is_true_at_every_moment;
    reserved_fields_are_zero_or_einval;
    a_limit_is_lowered_and_raised_again;
    cancel_tells_which_of_the_outcomes_it_was;
    cancel_of_one_leaves_the_others;
    cancel_of_all_leaves_other_opens_alone;
    cancel_of_another_opens_requests_is_for_the_privileged;
    cancel_of_the_device_takes_every_opens_requests;
    what_a_closed_open_left_behind_can_be_cancelled;
    what_a_sim_cannot_abort_comes_as_it_ends;
    control_calls_of_a_gone_device_are_enxio;
    cancels_race_with_completions;
}

const EPERM: i32 = sys::EPERM as i32;
const EINVAL: i32 = sys::EINVAL as i32;
const ENOENT: i32 = sys::ENOENT as i32;

pub use conform::sys::call;

pub fn info(sys: &mut dyn Sys, fd: i32) -> Result<sys::qpass_info, i32> {
    // SAFETY: integers.
    call(sys, fd, sys::QPC_QPIOC_INFO, unsafe { core::mem::zeroed() })
}

pub fn limit(sys: &mut dyn Sys, fd: i32, requests: u32, bytes: u64) -> Result<(u32, u64), i32> {
    // SAFETY: integers.
    let mut limit: sys::qpass_limit = unsafe { core::mem::zeroed() };
    (limit.requests, limit.bytes) = (requests, bytes);
    call(sys, fd, sys::QPC_QPIOC_LIMIT, limit).map(|l| (l.requests, l.bytes))
}

/// What the open has outstanding: requests, and bytes.
pub fn outstanding(sys: &mut dyn Sys, fd: i32) -> (u32, u64) {
    let info = info(sys, fd).expect("info");
    (info.requests, info.bytes)
}

/// Dequeued, aborted, unable, done.
pub fn cancel(sys: &mut dyn Sys, fd: i32, ccb: usize) -> Result<[u32; 4], i32> {
    // SAFETY: integers.
    let mut what: sys::qpass_cancel = unsafe { core::mem::zeroed() };
    what.ccb = ccb as u64;
    call(sys, fd, sys::QPC_QPIOC_CANCEL, what).map(|c| [c.dequeued, c.aborted, c.unable, c.done])
}

fn info_says_what_there_is() {
    let (mut machine, module) = boot(Config {
        maxio: 3 << 20,
        ..Config::default()
    });
    let fd = machine.open(NODE, RDWR).expect("open");
    let other = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 4096);
    command.rw10(false, 0, 8);
    command.queue(&mut machine, fd).expect("queue");
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    let found = info(&mut machine, fd).expect("info");
    assert_eq!(found.version, sys::QPASS_VERSION);
    assert_eq!(
        found.features,
        sys::QPASS_FEATURE_CANCEL
            | sys::QPASS_FEATURE_LIMIT
            | sys::QPASS_FEATURE_ENTER
            | sys::QPASS_FEATURE_LIST
            | sys::QPASS_FEATURE_CANCEL_DEVICE
    );
    assert_eq!(found.maxio, 3 << 20);
    assert_eq!((found.requests, found.bytes), (1, 4096), "not reaped yet");
    assert_eq!((found.submitted, found.completed), (1, 1));
    assert_eq!((found.outstanding, found.bounce_bytes), (0, 4096));
    let found = info(&mut machine, other).expect("info");
    assert_eq!((found.requests, found.bytes), (0, 0), "another open's");
    assert_eq!(found.submitted, 1, "the device's");
    machine.close(fd);
    machine.close(other);
    machine.unload(module);
}

fn info_is_true_at_every_moment() {
    let (machine, module) = boot(BUSY);
    let fd = machine.process().open(NODE, RDWR).expect("open");
    let busy = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let (machine, busy) = (&machine, &busy);
        let looking = scope.spawn(move || {
            let mut seen = 0;
            while busy.load(Ordering::SeqCst) {
                let found = info(&mut Shared(machine), fd).expect("info");
                assert_eq!(found.submitted, found.completed + found.outstanding);
                seen = seen.max(found.outstanding);
            }
            seen
        });
        let own = machine.process().open(NODE, RDWR).expect("open");
        load(machine, &[own], 2, 3000);
        busy.store(false, Ordering::SeqCst);
        assert!(looking.join().expect("it was") > 1, "under way");
        machine.process().close(own);
    });
    machine.process().close(fd);
    machine.unload(module);
}

fn reserved_fields_are_zero_or_einval() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    // SAFETY: integers, both.
    let (limit, cancel): (sys::qpass_limit, sys::qpass_cancel) =
        unsafe { (core::mem::zeroed(), core::mem::zeroed()) };
    let spoilt: [fn(&mut sys::qpass_limit); 2] = [|l| l.reserved0 = 1, |l| l.reserved[1] = 1];
    for spoil in spoilt {
        let mut limit = limit;
        spoil(&mut limit);
        let called = call(&mut machine, fd, sys::QPC_QPIOC_LIMIT, limit);
        assert_eq!(called.err(), Some(EINVAL));
    }
    let spoilt: [fn(&mut sys::qpass_cancel); 6] = [
        |c| c.flags = 2,
        |c| c.reserved0 = 1,
        |c| c.open = 1,
        |c| c.number = 1,
        |c| (c.flags, c.ccb) = (sys::QPASS_CANCEL_DEVICE, 4096),
        |c| (c.flags, c.number) = (sys::QPASS_CANCEL_DEVICE, 1),
    ];
    for spoil in spoilt {
        let mut cancel = cancel;
        spoil(&mut cancel);
        let called = call(&mut machine, fd, sys::QPC_QPIOC_CANCEL, cancel);
        assert_eq!(called.err(), Some(EINVAL));
    }
    machine.close(fd);
    machine.unload(module);
}

fn a_limit_is_lowered_and_raised_again() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let other = machine.open(NODE, RDWR).expect("open");
    let (requests, bytes) = limit(&mut machine, fd, 0, 0).expect("read");
    assert_eq!((requests, bytes), (1024, 64 << 20));
    assert_eq!(limit(&mut machine, fd, 2, 0), Ok((2, bytes)));
    let mut command = Command::new(&mut machine, 0);
    command.test_unit_ready();
    for _ in 0..2 {
        command.queue(&mut machine, fd).expect("queue");
        command.queue(&mut machine, other).expect("queue");
    }
    assert_eq!(command.queue(&mut machine, fd), Err(EAGAIN));
    assert_eq!(command.queue(&mut machine, other), Ok(()), "its own");
    // Raising makes room, and is told.
    let kq = machine.kqueue().expect("kqueue");
    let mut change = event(fd, sys::EV_ADD);
    change.filter = sys::EVFILT_WRITE as i16;
    assert_eq!(machine.kevent(kq, &[change], &mut [], 0), Ok(0));
    assert_eq!(next(&mut machine, kq), None);
    assert_eq!(limit(&mut machine, fd, 5, 8192), Ok((5, 8192)));
    assert_eq!(next(&mut machine, kq), Some(3));
    for (requests, bytes) in [(1025, 0), (0, (64 << 20) + 1)] {
        assert_eq!(limit(&mut machine, fd, requests, bytes), Err(EINVAL));
    }
    // The system's comes first.
    sysctl::set("max_requests", 3);
    assert_eq!(limit(&mut machine, fd, 0, 0), Ok((3, 8192)));
    let mut read = Command::new(&mut machine, 65536);
    read.rw10(false, 0, 8);
    read.queue(&mut machine, fd).expect("4 KiB of 8");
    assert_eq!(read.queue(&mut machine, fd), Err(EAGAIN));
    for fd in [kq, fd, other] {
        machine.close(fd);
    }
    machine.unload(module);
}

/// A machine whose disk keeps one command, and an open with four reads.
fn four_reads() -> (Machine, Module, i32, Vec<Command>) {
    let (mut machine, module) = boot(Config {
        openings: 1,
        ..Config::default()
    });
    let fd = machine.open(NODE, RDWR).expect("open");
    let commands: Vec<_> = (0..4)
        .map(|_| {
            let mut command = Command::new(&mut machine, 4096);
            command.rw10(false, 0, 8);
            command
        })
        .collect();
    // The first is done, the second sent, the others wait.
    commands[0].queue(&mut machine, fd).expect("queue");
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    machine.disk().stuck.store(true, Ordering::SeqCst);
    for command in &commands[1..] {
        command.queue(&mut machine, fd).expect("queue");
    }
    (machine, module, fd, commands)
}

/// Reaps everything: how many were good, and how many aborted.
fn reap_all(machine: &mut Machine, fd: i32, count: usize) -> (usize, usize) {
    let mut command = Command::new(machine, 4096);
    let mut seen = (0, 0);
    for _ in 0..count {
        assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
        command.get(machine, fd).expect("get");
        match command.hdr().status & sys::CAM_STATUS_MASK {
            sys::CAM_REQ_CMP => seen.0 += 1,
            sys::CAM_REQ_ABORTED => seen.1 += 1,
            status => panic!("status {status:#x}"),
        }
    }
    assert_eq!(command.get(machine, fd), Err(ENOENT), "each once");
    seen
}

fn cancel_tells_which_of_the_outcomes_it_was() {
    let (mut machine, module, fd, commands) = four_reads();
    let addresses: Vec<_> = commands.iter().map(|c| c.ccb.address()).collect();
    let mut of = |i: usize| cancel(&mut machine, fd, addresses[i]);
    assert_eq!(of(0), Ok([0, 0, 0, 1]), "done");
    assert_eq!(of(1), Ok([0, 1, 0, 0]), "sent, aborted");
    assert_eq!(of(3), Ok([1, 0, 0, 0]), "not sent");
    assert_eq!(of(3), Ok([0, 0, 0, 1]), "and now it is done");
    assert_eq!(cancel(&mut machine, fd, 0x1234), Err(ENOENT));
    machine.disk().unstick();
    assert_eq!(reap_all(&mut machine, fd, 4), (2, 2));
    assert_eq!(
        cancel(&mut machine, fd, addresses[0]),
        Err(ENOENT),
        "reaped"
    );
    machine.close(fd);
    machine.unload(module);
}

fn cancel_of_one_leaves_the_others() {
    let (mut machine, module, fd, commands) = four_reads();
    // The same CCB again: both are that CCB's.
    commands[2].queue(&mut machine, fd).expect("queue");
    let at = commands[2].ccb.address();
    assert_eq!(cancel(&mut machine, fd, at), Ok([2, 0, 0, 0]));
    assert_eq!(sysctl::value("0.cancelled"), Some(2));
    machine.disk().unstick();
    assert_eq!(reap_all(&mut machine, fd, 5), (3, 2));
    machine.close(fd);
    machine.unload(module);
}

fn cancel_of_all_leaves_other_opens_alone() {
    let (mut machine, module, fd, _commands) = four_reads();
    let other = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 0);
    command.test_unit_ready();
    command.queue(&mut machine, other).expect("queue");
    assert_eq!(cancel(&mut machine, fd, 0), Ok([2, 1, 0, 1]));
    assert_eq!(reap_all(&mut machine, fd, 4), (1, 3));
    assert_eq!(cancel(&mut machine, fd, 0), Ok([0; 4]), "nothing is left");
    machine.disk().unstick();
    assert_eq!(machine.poll(other, POLLIN, 20_000), Ok(POLLIN));
    command.get(&mut machine, other).expect("get");
    assert_eq!(command.ended().status, sys::CAM_REQ_CMP);
    machine.close(fd);
    machine.close(other);
    machine.unload(module);
}

/// What is told is what is taken, in pages or as a copy.
fn info_of_an_ata_device_says_what_its_commands_may_move() {
    for unmapped in [false, true] {
        let (mut machine, module) = boot(Config {
            maxio: 3 << 20,
            sata: true,
            unmapped,
            ..Config::default()
        });
        let fd = machine.open(NODE, RDWR).expect("open");
        let maxio = info(&mut machine, fd).expect("info").maxio;
        assert_eq!(maxio, 3 << 20);
        for (len, taken) in [(maxio, Ok(())), (maxio + 512, Err(EINVAL))] {
            let mut command = Command::new(&mut machine, len as usize);
            let data = command.data.address();
            command.immediate(sys::XPT_ATA_IO);
            command.hdr().flags = sys::CAM_DIR_IN;
            // SAFETY: plain data.
            let io = unsafe { &mut command.ccb.ccb_mut().ataio };
            io.cmd.command = 0x25;
            (io.data_ptr, io.dxfer_len) = (data as *mut u8, len);
            assert_eq!(command.queue(&mut machine, fd), taken, "{len}");
            if taken.is_ok() {
                assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
                command.get(&mut machine, fd).expect("get");
                assert_eq!(command.ended().status, sys::CAM_REQ_CMP);
            }
        }
        machine.close(fd);
        machine.unload(module);
    }
}

/// QPASS_CANCEL_DEVICE: dequeued, aborted, unable, done.
pub fn cancel_of_device(
    sys: &mut dyn Sys,
    fd: i32,
    open: u64,
    number: u64,
) -> Result<[u32; 4], i32> {
    // SAFETY: integers.
    let mut what: sys::qpass_cancel = unsafe { core::mem::zeroed() };
    (what.flags, what.open, what.number) = (sys::QPASS_CANCEL_DEVICE, open, number);
    call(sys, fd, sys::QPC_QPIOC_CANCEL, what).map(|c| [c.dequeued, c.aborted, c.unable, c.done])
}

fn cancel_of_another_opens_requests_is_for_the_privileged() {
    let (mut machine, module, fd, commands) = four_reads();
    let other = machine.open(NODE, RDWR).expect("open");
    thread::PRIVILEGED.store(false, Ordering::SeqCst);
    assert_eq!(cancel_of_device(&mut machine, other, 0, 0), Err(EPERM));
    assert_eq!(cancel_of_device(&mut machine, fd, 0, 0), Err(EPERM));
    thread::PRIVILEGED.store(true, Ordering::SeqCst);
    assert_eq!(outstanding(&mut machine, fd).0, 4, "all are there still");
    // By the number that the list has: one that was sent, and one that was not.
    let found = outstanding::list(&mut machine, other, sys::QPASS_LIST_DEVICE, 10).expect("list");
    let named = |state: u32| {
        let is_it = |e: &&sys::qpass_outstanding| u32::from(e.state) == state;
        let entry = found.iter().rfind(is_it).expect("one");
        (entry.ccb, entry.open, entry.number)
    };
    let (ccb, open, number) = named(sys::QPASS_STATE_QUEUED);
    let answer = cancel_of_device(&mut machine, other, open, number);
    assert_eq!(answer, Ok([1, 0, 0, 0]));
    let (_, open, number) = named(sys::QPASS_STATE_SENT);
    let answer = cancel_of_device(&mut machine, other, open, number);
    assert_eq!(answer, Ok([0, 1, 0, 0]));
    assert_eq!(cancel_of_device(&mut machine, other, open, 99), Err(ENOENT));
    assert_eq!(cancel_of_device(&mut machine, other, 99, 0), Err(ENOENT));
    // An open with nothing outstanding is not there to cancel; its own list is.
    assert_eq!(cancel(&mut machine, other, 0), Ok([0; 4]));
    assert!(commands.iter().any(|c| c.ccb.address() as u64 == ccb));
    wait_until("it is done", || sysctl::value("0.outstanding") == Some(1));
    // The last went to the device when that one left it.
    assert_eq!(cancel(&mut machine, fd, 0), Ok([0, 1, 0, 3]));
    assert_eq!(reap_all(&mut machine, fd, 4), (1, 3));
    machine.disk().unstick();
    machine.close(fd);
    machine.close(other);
    machine.unload(module);
}

fn cancel_of_the_device_takes_every_opens_requests() {
    let (mut machine, module, fd, _commands) = four_reads();
    let mut command = Command::new(&mut machine, 0);
    command.test_unit_ready();
    let others = [0; 3].map(|_| machine.open(NODE, RDWR).expect("open"));
    for other in others {
        command.queue(&mut machine, other).expect("queue");
    }
    // Of one open first, then of all.
    let third = cancel_of_device(&mut machine, fd, 4, 0);
    assert_eq!(third, Ok([1, 0, 0, 0]));
    assert_eq!(reap_all(&mut machine, others[2], 1), (0, 1));
    let answer = cancel_of_device(&mut machine, others[0], 0, 0);
    assert_eq!(answer, Ok([4, 1, 0, 1]));
    assert_eq!(reap_all(&mut machine, fd, 4), (1, 3));
    for other in &others[..2] {
        let reaped = reap_all(&mut machine, *other, 1);
        assert_eq!(reaped, (0, 1), "by its own open");
    }
    assert_eq!(cancel_of_device(&mut machine, fd, 0, 0), Ok([0; 4]));
    machine.disk().unstick();
    for fd in others.into_iter().chain([fd]) {
        machine.close(fd);
    }
    machine.unload(module);
}

/// Who closes an open leaves what was sent to the device; without this, a
/// device that does not answer would have it, and the module, for ever.
fn what_a_closed_open_left_behind_can_be_cancelled() {
    let (mut machine, module, fd, _commands) = four_reads();
    machine.close(fd);
    let other = machine.open(NODE, RDWR).expect("open");
    let listed = outstanding::list(&mut machine, other, sys::QPASS_LIST_DEVICE, 10);
    assert_eq!(listed.expect("list").len(), 1);
    let answer = cancel_of_device(&mut machine, other, 1, 0);
    assert_eq!(answer, Ok([0, 1, 0, 0]));
    wait_until("it is gone", || sysctl::value("0.outstanding") == Some(0));
    machine.close(other);
    ukernel::process::unload_of_stuck(module);
    machine.disk().unstick();
}

fn what_a_sim_cannot_abort_comes_as_it_ends() {
    let (mut machine, module, fd, commands) = four_reads();
    machine.disk().cannot_abort.store(true, Ordering::SeqCst);
    let at = commands[1].ccb.address();
    for _ in 0..3 {
        assert_eq!(cancel(&mut machine, fd, at), Ok([0, 0, 1, 0]));
    }
    assert_eq!(cancel(&mut machine, fd, 0), Ok([2, 0, 1, 1]));
    machine.disk().unstick();
    assert_eq!(reap_all(&mut machine, fd, 4), (2, 2));
    machine.close(fd);
    machine.unload(module);
}

fn control_calls_of_a_gone_device_are_enxio() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    machine.depart();
    assert_eq!(info(&mut machine, fd).err(), Some(ENXIO));
    assert_eq!(limit(&mut machine, fd, 0, 0).err(), Some(ENXIO));
    assert_eq!(cancel(&mut machine, fd, 0).err(), Some(ENXIO));
    machine.close(fd);
    machine.unload(module);
}

/// Two threads cancel all, as often as they can: every request is reaped once.
fn cancels_race_with_completions() {
    const ROUNDS: usize = 300;
    let (machine, module) = boot(BUSY);
    let mut sys = Shared(&machine);
    let fd = sys.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut sys, 4096);
    command.rw10(false, 0, 8);
    let busy = AtomicBool::new(true);
    let mut seen = (0, 0);
    std::thread::scope(|scope| {
        let (machine, busy) = (&machine, &busy);
        for _ in 0..2 {
            scope.spawn(move || {
                while busy.load(Ordering::SeqCst) {
                    cancel(&mut Shared(machine), fd, 0).expect("cancel");
                    std::thread::sleep(Duration::from_micros(50));
                }
            });
        }
        let mut back = Command::new(&mut sys, 4096);
        for _ in 0..ROUNDS {
            for _ in 0..8 {
                command.queue(&mut sys, fd).expect("queue");
            }
            for _ in 0..8 {
                assert_eq!(sys.poll(fd, POLLIN, 20_000), Ok(POLLIN));
                back.get(&mut sys, fd).expect("get");
                match back.hdr().status & sys::CAM_STATUS_MASK {
                    sys::CAM_REQ_CMP => seen.0 += 1,
                    sys::CAM_REQ_ABORTED => seen.1 += 1,
                    status => panic!("status {status:#x}"),
                }
            }
        }
        busy.store(false, Ordering::SeqCst);
    });
    assert_eq!(seen.0 + seen.1, ROUNDS * 8);
    assert!(seen.0 > 0 && seen.1 > 0, "{seen:?}: both happen");
    sys.close(fd);
    machine.unload(module);
}
