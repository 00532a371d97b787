//! XPT_ABORT: by the user's address of the CCB, in every state of the request.

use super::*;

tests! {
    abort_takes_back_what_was_not_sent;
    abort_reaches_what_the_sim_has;
    abort_reaches_what_cam_has_queued;
    abort_of_what_is_done_unknown_or_anothers_is_unable;
    aborts_race_with_completions;
}

/// Aborts `target` through `fd`; the abort's own status.
fn abort(machine: &mut dyn Sys, fd: i32, target: &Command, synchronous: bool) -> u32 {
    let mut command = Command::new(machine, 0);
    command.immediate(sys::XPT_ABORT);
    let address = target.ccb.address() as *mut sys::ccb;
    command.ccb.ccb_mut().cab.abort_ccb = address;
    if synchronous {
        command.send(machine, fd).expect("send");
    } else {
        command.queue(machine, fd).expect("queue");
        assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
        command.get(machine, fd).expect("get");
        assert_eq!(command.hdr().func_code, sys::XPT_ABORT);
    }
    // SAFETY: plain data.
    let back = unsafe { command.ccb.ccb().cab.abort_ccb };
    assert_eq!(back, address, "the user's own address comes back");
    let status = command.hdr().status & sys::CAM_STATUS_MASK;
    command.free(machine);
    status
}

fn reap(machine: &mut Machine, fd: i32, command: &mut Command) -> u32 {
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    command.get(machine, fd).expect("get");
    command.hdr().status & sys::CAM_STATUS_MASK
}

/// One command at a time, which the disk keeps.
const STUCK: fn() -> Config = || Config {
    openings: 1,
    ..Config::default()
};

fn abort_takes_back_what_was_not_sent() {
    let (mut machine, module) = boot(STUCK());
    machine.disk().stuck.store(true, Ordering::SeqCst);
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut commands: Vec<_> = (0..4)
        .map(|_| {
            let mut command = Command::new(&mut machine, 4096);
            command.rw10(false, 0, 8);
            command
        })
        .collect();
    for command in &commands {
        command.queue(&mut machine, fd).expect("queue");
    }
    for i in [2, 1] {
        let status = abort(&mut machine, fd, &commands[i], true);
        assert_eq!(status, sys::CAM_REQ_CMP);
        assert_eq!(
            reap(&mut machine, fd, &mut commands[i]),
            sys::CAM_REQ_ABORTED
        );
    }
    // And with its own completion between.
    let other = abort(&mut machine, fd, &commands[2], true);
    assert_eq!(other, sys::CAM_UA_ABORT, "it was reaped");
    assert_eq!(sysctl::value("0.cancelled"), Some(2));
    machine.disk().unstick();
    let mut any = Command::new(&mut machine, 4096);
    for _ in 0..2 {
        assert_eq!(reap(&mut machine, fd, &mut any), sys::CAM_REQ_CMP);
    }
    assert_eq!(any.get(&mut machine, fd), Err(sys::ENOENT as i32));
    assert_eq!(machine.disk().commands.load(Ordering::SeqCst), 2);
    machine.close(fd);
    machine.unload(module);
}

fn abort_reaches_what_the_sim_has() {
    let (mut machine, module) = boot(Config::default());
    machine.disk().stuck.store(true, Ordering::SeqCst);
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 4096);
    for flags in [0, sys::CAM_PASS_ERR_RECOVER] {
        command.rw10(false, 0, 8);
        command.hdr().flags &= !sys::CAM_DEV_QFRZDIS;
        command.hdr().flags |= flags;
        command.queue(&mut machine, fd).expect("queue");
        let status = abort(&mut machine, fd, &command, true);
        assert_eq!(status, sys::CAM_REQ_CMP);
        command.data.bytes_mut().fill(0x55);
        assert_eq!(reap(&mut machine, fd, &mut command), sys::CAM_REQ_ABORTED);
        // Nothing was read: what comes is nothing of somebody else's.
        let stale = |b: &u8| *b != 0 && *b != 0x55;
        assert!(!command.data.bytes().iter().any(stale));
    }
    machine.disk().unstick();
    command.test_unit_ready();
    queue_and_get(&mut machine, fd, &command);
    assert_eq!(
        command.ended().status,
        sys::CAM_REQ_CMP,
        "nothing is frozen"
    );
    assert_eq!(machine.disk().commands.load(Ordering::SeqCst), 1);
    machine.close(fd);
    machine.unload(module);
}

fn abort_reaches_what_cam_has_queued() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 4096);
    // The queue is frozen by somebody else's error: what is sent waits in CAM.
    cam::freeze(machine.device());
    command.rw10(false, 0, 8);
    command.queue(&mut machine, fd).expect("queue");
    assert_eq!(abort(&mut machine, fd, &command, true), sys::CAM_REQ_CMP);
    assert_eq!(reap(&mut machine, fd, &mut command), sys::CAM_REQ_ABORTED);
    cam::unfreeze(machine.device());
    command.test_unit_ready();
    queue_and_get(&mut machine, fd, &command);
    assert_eq!(command.ended().status, sys::CAM_REQ_CMP);
    machine.close(fd);
    machine.unload(module);
}

fn abort_of_what_is_done_unknown_or_anothers_is_unable() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let other = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 4096);
    for synchronous in [true, false] {
        let status = abort(&mut machine, fd, &command, synchronous);
        assert_eq!(status, sys::CAM_UA_ABORT, "unknown");
    }
    command.rw10(false, 0, 8);
    command.queue(&mut machine, fd).expect("queue");
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    let status = abort(&mut machine, fd, &command, true);
    assert_eq!(status, sys::CAM_UA_ABORT, "done");
    assert_eq!(reap(&mut machine, fd, &mut command), sys::CAM_REQ_CMP);
    machine.disk().stuck.store(true, Ordering::SeqCst);
    command.rw10(false, 0, 8);
    command.queue(&mut machine, fd).expect("queue");
    let status = abort(&mut machine, other, &command, true);
    assert_eq!(status, sys::CAM_UA_ABORT, "another open's");
    machine.disk().unstick();
    assert_eq!(reap(&mut machine, fd, &mut command), sys::CAM_REQ_CMP);
    machine.close(fd);
    machine.close(other);
    machine.unload(module);
}

/// Every request is reaped once, whatever the abort met.
fn aborts_race_with_completions() {
    const ROUNDS: usize = 400;
    let (machine, module) = boot(BUSY);
    let mut sys = Shared(&machine);
    let fd = sys.open(NODE, RDWR).expect("open");
    let mut seen = [0; 2];
    let mut targets: Vec<_> = (0..8)
        .map(|_| {
            let mut command = Command::new(&mut sys, 4096);
            command.rw10(false, 0, 8);
            command
        })
        .collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (stop, machine) = (&stop, &machine);
        let addresses: Vec<_> = targets.iter().map(|t| t.ccb.address()).collect();
        let killer = scope.spawn(move || {
            let mut sys = Shared(machine);
            let mut command = Command::new(&mut sys, 0);
            let mut told = 0;
            for i in (0..addresses.len()).cycle() {
                if stop.load(Ordering::SeqCst) {
                    return told;
                }
                command.immediate(sys::XPT_ABORT);
                command.ccb.ccb_mut().cab.abort_ccb = addresses[i] as *mut sys::ccb;
                command.send(&mut sys, fd).expect("send");
                let status = command.hdr().status & sys::CAM_STATUS_MASK;
                assert!([sys::CAM_REQ_CMP, sys::CAM_UA_ABORT].contains(&status));
                told += usize::from(status == sys::CAM_REQ_CMP);
            }
            unreachable!()
        });
        for _ in 0..ROUNDS {
            for command in &mut targets {
                command.rw10(false, 0, 8);
                command.queue(&mut sys, fd).expect("queue");
            }
            for command in &mut targets {
                assert_eq!(sys.poll(fd, POLLIN, 20_000), Ok(POLLIN));
                // Whichever it is: the buffers are alike.
                command.get(&mut sys, fd).expect("get");
                match command.hdr().status & sys::CAM_STATUS_MASK {
                    sys::CAM_REQ_CMP => seen[0] += 1,
                    sys::CAM_REQ_ABORTED => seen[1] += 1,
                    status => panic!("status {status:#x}"),
                }
            }
        }
        stop.store(true, Ordering::SeqCst);
        let told = killer.join().expect("the aborting thread");
        assert_eq!(seen[1], told, "aborted as often as it was said");
    });
    assert_eq!(seen[0] + seen[1], ROUNDS * 8);
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}: both happen");
    sys.close(fd);
    machine.unload(module);
}
