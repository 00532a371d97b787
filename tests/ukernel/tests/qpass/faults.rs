//! Each thing that can fail, failing: the n-th allocation, the n-th copy, the
//! n-th CCB, for every n that a program of calls has; and nothing is left.

use super::*;

tests! {
    each_allocation_fails_in_turn;
    each_copy_in_fails_in_turn;
    each_copy_out_fails_in_turn;
    each_ccb_fails_in_turn;
    each_zone_fails_in_turn;
    each_registration_fails_in_turn;
    each_answer_of_the_sim_fails_in_turn;
}

/// A program of calls that meets every allocation and every copy: an open, a
/// command of each kind both ways, a kqueue, an abort, a close. What a call
/// answers is not its business here; what comes out is counted.
fn program(machine: &Machine) {
    let mut sys = Shared(machine);
    let Ok(fd) = sys.open(NODE, RDWR) else { return };
    let kq = sys.kqueue().expect("kqueue");
    let _ = sys.kevent(kq, &[event(fd, sys::EV_ADD)], &mut [], 0);
    let mut list = conform::sys::Memory::new(&mut sys, 4096);
    let mut command = Command::new(&mut sys, 3 << 20);
    let cdb = command.data.address() + (2 << 20) + 4096;
    let builds: [fn(&mut Command, &mut conform::sys::Memory, usize); 7] = [
        |c, _, _| c.test_unit_ready(),
        |c, _, _| c.inquiry(36),
        |c, _, _| c.rw10(true, 0, 8),
        |c, _, _| c.rw10(false, 0, 4096),
        |c, list, _| {
            c.rw10(false, 0, 8);
            c.list(list, 0, 5, &[1, 2000, 2095]);
        },
        |c, _, cdb| {
            c.data.bytes_mut()[(2 << 20) + 4096..][..16].fill(0);
            c.test_unit_ready();
            c.hdr().flags |= sys::CAM_CDB_POINTER;
            c.csio().cdb_io.cdb_ptr = cdb as *mut u8;
        },
        |c, _, _| c.immediate(sys::XPT_PATH_INQ),
    ];
    for build in builds {
        for synchronous in [false, true] {
            build(&mut command, &mut list, cdb);
            if synchronous {
                let _ = command.send(&mut sys, fd);
            } else if command.queue(&mut sys, fd).is_ok() {
                assert_eq!(sys.poll(fd, POLLIN, 20_000), Ok(POLLIN));
                // Whatever fails once can be had again.
                if command.get(&mut sys, fd).is_err() {
                    command.get(&mut sys, fd).expect("it is not lost");
                }
            }
        }
    }
    assert_eq!(command.get(&mut sys, fd), Err(sys::ENOENT as i32));
    sys.close(fd);
    sys.close(kq);
    command.free(&mut sys);
    list.unmap(&mut sys);
}

/// Runs it with the first, the second … passage of `point` failing, until one
/// run has no such passage.
fn in_turn(point: &fault::Point, least: u32) {
    let (machine, module) = boot(Config {
        maxio: 4 << 20,
        ..Config::default()
    });
    let mut n = 0;
    loop {
        n += 1;
        assert!(n < 10_000, "it has no end");
        point.arm(n);
        program(&machine);
        let fired = point.fired();
        point.arm(0);
        wait_until("all memory is back", all_is_back);
        memory::check_freed();
        if !fired {
            break;
        }
    }
    assert!(n > least, "only {n} passages");
    // And all works.
    program(&machine);
    machine.unload(module);
}

fn each_allocation_fails_in_turn() {
    // Those of attaching are in a_failed_attach_leaves_nothing; these are what
    // a program meets: CAM's CCBs for synchronous commands.
    in_turn(&fault::MALLOC, 4);
}

fn each_copy_in_fails_in_turn() {
    in_turn(&fault::COPYIN, 12);
}

fn each_copy_out_fails_in_turn() {
    in_turn(&fault::COPYOUT, 10);
}

fn each_ccb_fails_in_turn() {
    in_turn(&fault::GET_CCB, 4);
}

fn each_zone_fails_in_turn() {
    let machine = Machine::new(Config::default());
    for n in 1..=9 {
        let module = machine.load(&ko()).expect("load");
        wait_until("/dev/qpass0 is there", || devfs::exists(NODEV));
        fault::ZCREATE.arm(n);
        program(&machine);
        assert_eq!(fault::ZCREATE.fired(), n <= 8, "eight zones are made once");
        fault::ZCREATE.arm(0);
        wait_until("all memory is back", all_is_back);
        program(&machine);
        assert_eq!(memory::zones().len(), 8, "whatever failed before");
        machine.unload(module);
    }
}

fn each_registration_fails_in_turn() {
    for n in 1..=3 {
        let machine = Machine::new(Config::default());
        fault::REGISTER_ASYNC.arm(n);
        let loaded = machine.load(&ko());
        cam::settle();
        fault::REGISTER_ASYNC.arm(0);
        let has_node = devfs::exists(NODEV);
        match (n, loaded) {
            // The driver's own: it cannot hear of devices.
            (1, Err(error)) => assert_eq!(error, format!("MOD_LOAD: errno {ENXIO}")),
            // The unit's: the device has no node, the driver is there.
            (2, Ok(module)) => {
                assert!(!has_node);
                machine.unload(module);
            }
            (3, Ok(module)) => {
                assert!(has_node);
                machine.unload(module);
            }
            (n, loaded) => panic!("registration {n}: {:?}", loaded.err()),
        }
        Machine::pull(&mut { machine });
    }
}

/// The n-th command answers with an error, with and without recovery.
fn each_answer_of_the_sim_fails_in_turn() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 4096);
    let mut told = 0;
    for n in 0..8 {
        for recover in [false, true] {
            for i in 0..8 {
                let errors = u32::from(i == n);
                machine
                    .disk()
                    .unit_attentions
                    .store(errors, Ordering::SeqCst);
                command.rw10(i % 2 == 0, 0, 8);
                if recover {
                    command.hdr().flags |= sys::CAM_PASS_ERR_RECOVER;
                }
                if i % 3 == 0 {
                    command.send(&mut machine, fd).expect("send");
                } else {
                    queue_and_get(&mut machine, fd, &command);
                }
                let wanted = match (i == n, recover) {
                    (true, false) => sys::CAM_SCSI_STATUS_ERROR,
                    _ => sys::CAM_REQ_CMP,
                };
                assert_eq!(command.ended().status, wanted, "{n} {i} {recover}");
                told += u64::from(wanted != sys::CAM_REQ_CMP);
            }
        }
    }
    assert_eq!(sysctl::value("0.errors"), Some(told));
    machine.close(fd);
    machine.unload(module);
}
