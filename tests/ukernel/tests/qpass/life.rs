//! Descriptors and processes: dup, fork, exec, exit, several kqueues; and a
//! module that is there before CAM.

use super::*;

tests! {
    an_event_on_a_dupd_descriptor_comes_and_goes_with_it;
    several_kqueues_hear_of_one_open;
    a_childs_reap_takes_the_parents_completion;
    the_last_of_two_processes_closes;
    a_process_is_killed_with_requests_in_every_state;
    a_program_that_is_replaced_by_exec_closes;
    it_can_be_there_before_cam;
    it_can_leave_before_cam_is_there;
    unload_waits_for_departed_devices;
    a_device_departs_with_requests_in_every_state;
    a_device_departs_while_it_is_reaped_and_polled;
    closes_and_departures_race;
    unload_races_with_arrivals_and_departures;
    what_completes_beside_a_dump_is_left_alone;
}

fn an_event_on_a_dupd_descriptor_comes_and_goes_with_it() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let dup = machine.process().dup(fd).expect("dup");
    let kq = machine.kqueue().expect("kqueue");
    watch(&mut machine, kq, dup, sys::EV_ADD);
    let mut command = Command::new(&mut machine, 0);
    command.test_unit_ready();
    command.queue(&mut machine, fd).expect("queue");
    let mut events = [event(0, 0); 2];
    assert_eq!(machine.kevent(kq, &[], &mut events, 20_000), Ok(1));
    assert_eq!((events[0].ident, events[0].data), (dup as u64, 1));
    // Both are the same open: one queue, one completion.
    command.get(&mut machine, dup).expect("get");
    assert_eq!(command.get(&mut machine, fd), Err(sys::ENOENT as i32));
    // The event goes with its descriptor, the open stays.
    machine.close(dup);
    command.queue(&mut machine, fd).expect("queue");
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    assert_eq!(machine.kevent(kq, &[], &mut events, 0), Ok(0));
    machine.close(fd);
    machine.unload(module);
    machine.close(kq);
}

fn several_kqueues_hear_of_one_open() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let queues: Vec<_> = (0..3).map(|_| machine.kqueue().expect("kqueue")).collect();
    watch(&mut machine, queues[0], fd, sys::EV_ADD);
    watch(&mut machine, queues[1], fd, sys::EV_ADD | sys::EV_CLEAR);
    watch(&mut machine, queues[2], fd, sys::EV_ADD | sys::EV_ONESHOT);
    let mut command = Command::new(&mut machine, 0);
    command.test_unit_ready();
    for _ in 0..2 {
        command.queue(&mut machine, fd).expect("queue");
    }
    wait_until("both are done", || {
        sysctl::value("0.outstanding") == Some(0)
    });
    let told = |machine: &mut Machine| {
        let mut told = [None; 3];
        for (told, kq) in told.iter_mut().zip(&queues) {
            *told = next(machine, *kq);
        }
        told
    };
    assert_eq!(told(&mut machine), [Some(2), Some(2), Some(2)]);
    // Level, edge, once.
    assert_eq!(told(&mut machine), [Some(2), None, None]);
    command.get(&mut machine, fd).expect("get");
    assert_eq!(told(&mut machine), [Some(1), None, None]);
    command.get(&mut machine, fd).expect("get");
    assert_eq!(told(&mut machine), [None, None, None]);
    command.queue(&mut machine, fd).expect("queue");
    wait_until("it is done", || sysctl::value("0.outstanding") == Some(0));
    assert_eq!(told(&mut machine), [Some(1), Some(1), None]);
    machine.close(fd);
    machine.unload(module);
}

fn a_childs_reap_takes_the_parents_completion() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 0);
    command.test_unit_ready();
    command.queue(&mut machine, fd).expect("queue");
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    let child = machine.process().fork();
    // The open is shared, and so is its queue.
    let address = command.ccb.address();
    assert_eq!(child.ioctl(fd, sys::QPC_CAMIOGET, address), Ok(()));
    assert_eq!(command.get(&mut machine, fd), Err(sys::ENOENT as i32));
    child.exit();
    command.queue(&mut machine, fd).expect("the parent goes on");
    machine.close(fd);
    machine.unload(module);
}

fn the_last_of_two_processes_closes() {
    let (mut machine, module) = boot(Config::default());
    machine.disk().stuck.store(true, Ordering::SeqCst);
    let fd = machine.open(NODE, RDWR).expect("open");
    let child = machine.process().fork();
    let mut command = Command::new(&mut machine, 0);
    command.test_unit_ready();
    for _ in 0..40 {
        command.queue(&mut machine, fd).expect("queue");
    }
    machine.close(fd);
    assert_eq!(sysctl::value("0.cancelled"), Some(0), "the child has it");
    child.exit();
    let waiting = 40 - Config::default().openings as u64;
    assert_eq!(sysctl::value("0.cancelled"), Some(waiting));
    machine.disk().unstick();
    machine.unload(module);
}

/// Queued, sent, done, and a thread in poll(2): none of them is left.
fn a_process_is_killed_with_requests_in_every_state() {
    let (mut machine, module) = boot(Config {
        openings: 4,
        ..Config::default()
    });
    for _ in 0..5 {
        let fd = machine.open(NODE, RDWR).expect("open");
        let child = machine.process().fork();
        machine.close(fd);
        let mut command = Command::new(&mut machine, 65536);
        command.rw10(false, 0, 128);
        let queue = |command: &Command| child.ioctl(fd, sys::QPC_CAMIOQUEUE, command.ccb.address());
        for _ in 0..3 {
            queue(&command).expect("queue");
        }
        wait_until("three are done", || {
            sysctl::value("0.outstanding") == Some(0)
        });
        machine.disk().stuck.store(true, Ordering::SeqCst);
        for _ in 0..10 {
            queue(&command).expect("queue");
        }
        let kq = child.kqueue();
        let change = event(fd, sys::EV_ADD);
        assert_eq!(child.kevent(kq, &[change], &mut [], None), Ok(0));
        std::thread::scope(|scope| {
            // It has data to read, so this one returns; the next does not.
            scope.spawn(|| child.poll(fd, POLLIN, Some(Duration::from_secs(20))));
            let mut other = event(fd, sys::EV_ADD);
            other.filter = sys::EVFILT_WRITE as i16;
            let _ = child.kevent(kq, &[other], &mut [], None);
        });
        // A signal: everything is closed, in whatever order.
        child.exit();
        machine.disk().unstick();
        wait_until("all came back", || {
            sysctl::value("0.outstanding") == Some(0)
        });
        wait_until("all memory is back", all_is_back);
    }
    machine.unload(module);
}

/// exec(2) closes descriptors that were opened with O_CLOEXEC, and shared ones
/// stay with who has them.
fn a_program_that_is_replaced_by_exec_closes() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let program = machine.process().fork();
    let own = program
        .open(NODE, RDWR | sys::O_CLOEXEC as i32)
        .expect("open");
    let mut command = Command::new(&mut machine, 0);
    command.test_unit_ready();
    let queued = program.ioctl(own, sys::QPC_CAMIOQUEUE, command.ccb.address());
    assert_eq!(queued, Ok(()));
    program.close(own);
    assert_eq!(command.get(&mut machine, fd), Err(sys::ENOENT as i32));
    queue_and_get(&mut machine, fd, &command);
    program.exit();
    machine.close(fd);
    machine.unload(module);
}

fn it_can_be_there_before_cam() {
    let mut machine = Machine::new(Config::default());
    cam::boot();
    let module = machine.load(&ko()).expect("load");
    assert!(!devfs::exists(NODEV));
    cam::come_up();
    wait_until("/dev/qpass0 is there", || devfs::exists(NODEV));
    let fd = machine.open(NODE, RDWR).expect("open");
    machine.close(fd);
    machine.unload(module);
}

fn it_can_leave_before_cam_is_there() {
    let machine = Machine::new(Config::default());
    cam::boot();
    let module = machine.load(&ko()).expect("load");
    machine.unload(module);
    cam::come_up();
    assert!(!devfs::exists(NODEV));
    let module = machine.load(&ko()).expect("load again");
    wait_until("/dev/qpass0 is there", || devfs::exists(NODEV));
    machine.unload(module);
}

/// A device that has gone holds the module while its last work is under way,
/// and not because a program has not closed it yet.
fn unload_waits_for_departed_devices() {
    for _ in 0..10 {
        let (mut machine, module) = boot(BUSY);
        let fd = machine.open(NODE, RDWR).expect("open");
        let mut command = Command::new(&mut machine, 4096);
        command.rw10(false, 0, 8);
        for _ in 0..20 {
            command.queue(&mut machine, fd).expect("queue");
        }
        let device = machine.pull();
        machine.unload(module);
        cam::wait_free(&device);
        machine.close(fd);
    }
}

fn a_device_departs_with_requests_in_every_state() {
    for synchronous_too in [false, true] {
        let (mut machine, module) = boot(Config {
            openings: 4,
            ..Config::default()
        });
        let fd = machine.open(NODE, RDWR).expect("open");
        let kq = machine.kqueue().expect("kqueue");
        watch(&mut machine, kq, fd, sys::EV_ADD);
        let mut command = Command::new(&mut machine, 65536);
        command.rw10(false, 0, 128);
        for _ in 0..3 {
            command.queue(&mut machine, fd).expect("queue");
        }
        wait_until("three are done", || {
            sysctl::value("0.outstanding") == Some(0)
        });
        machine.disk().stuck.store(true, Ordering::SeqCst);
        for _ in 0..10 {
            command.queue(&mut machine, fd).expect("queue");
        }
        let device = machine.device().clone();
        std::thread::scope(|scope| {
            let shared = &machine;
            let sender = synchronous_too.then(|| {
                scope.spawn(move || {
                    let mut sys = Shared(shared);
                    let mut command = Command::new(&mut sys, 0);
                    command.test_unit_ready();
                    let sent = command.send(&mut sys, fd);
                    (sent, command.hdr().status & sys::CAM_STATUS_MASK)
                })
            });
            std::thread::sleep(Duration::from_millis(20));
            cam::detach(&device);
            if let Some(sender) = sender {
                // It was under way: it is told that the device has gone.
                let (sent, status) = sender.join().expect("it returns");
                assert_eq!(sent, Ok(()));
                assert_eq!(status, sys::CAM_DEV_NOT_THERE);
            }
        });
        let mut events = [event(0, 0)];
        wait_until("EV_EOF", || {
            let mut events = [event(0, 0)];
            let n = Shared(&machine).kevent(kq, &[], &mut events, 0);
            n == Ok(1) && u32::from(events[0].flags) & sys::EV_EOF != 0
        });
        assert_eq!(machine.kevent(kq, &[], &mut events, 0), Ok(1));
        assert_eq!(command.get(&mut machine, fd), Err(ENXIO));
        assert_eq!(command.queue(&mut machine, fd), Err(ENXIO));
        let hup = machine.poll(fd, POLLIN, 0).expect("poll");
        assert_ne!(u32::from(hup as u16) & sys::POLLHUP, 0);
        machine.close(fd);
        machine.close(kq);
        cam::wait_free(&device);
        machine.unload(module);
        machine.replaced(device, ukernel::disk::RamDisk::new("X", Config::default()));
        machine.pull();
    }
}

fn a_device_departs_while_it_is_reaped_and_polled() {
    let (mut machine, module) = boot(BUSY);
    for _ in 0..10 {
        let fd = machine.open(NODE, RDWR).expect("open");
        let device = machine.device().clone();
        std::thread::scope(|scope| {
            let shared = &machine;
            let queueing = scope.spawn(move || {
                let mut sys = Shared(shared);
                let mut command = Command::new(&mut sys, 4096);
                command.rw10(false, 0, 8);
                loop {
                    match command.queue(&mut sys, fd) {
                        Ok(()) | Err(EAGAIN) => {}
                        Err(errno) => return errno,
                    }
                }
            });
            let reaping = scope.spawn(move || {
                let mut sys = Shared(shared);
                let command = Command::new(&mut sys, 4096);
                loop {
                    match command.get(&mut sys, fd) {
                        Ok(()) => {}
                        Err(errno) if errno == sys::ENOENT as i32 => {}
                        Err(errno) => return errno,
                    }
                }
            });
            let polling = scope.spawn(move || {
                loop {
                    let ready = Shared(shared).poll(fd, POLLIN, 20_000).expect("poll");
                    if u32::from(ready as u16) & sys::POLLHUP != 0 {
                        return;
                    }
                }
            });
            std::thread::sleep(Duration::from_millis(15));
            cam::detach(&device);
            assert_eq!(queueing.join().expect("queueing ends"), ENXIO);
            assert_eq!(reaping.join().expect("reaping ends"), ENXIO);
            polling.join().expect("polling ends");
        });
        machine.close(fd);
        cam::wait_free(&device);
        let disk = ukernel::disk::RamDisk::new("NEXT", BUSY);
        let device = cam::attach(device.id, disk.clone());
        machine.replaced(device, disk);
        wait_until("/dev/qpass0 is there", || devfs::exists(NODEV));
    }
    machine.unload(module);
}

/// Opens, closes and departures, as fast as they come.
fn closes_and_departures_race() {
    let (mut machine, module) = boot(BUSY);
    for _ in 0..20 {
        let device = machine.device().clone();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let shared = &machine;
                scope.spawn(move || {
                    let mut sys = Shared(shared);
                    let mut command = Command::new(&mut sys, 512);
                    for _ in 0..20 {
                        if let Ok(fd) = sys.open(NODE, RDWR) {
                            command.rw10(true, 0, 1);
                            let _ = command.queue(&mut sys, fd);
                            sys.close(fd);
                        }
                    }
                });
            }
            std::thread::sleep(Duration::from_micros(700));
            cam::detach(&device);
        });
        cam::wait_free(&device);
        let disk = ukernel::disk::RamDisk::new("NEXT", BUSY);
        let device = cam::attach(device.id, disk.clone());
        machine.replaced(device, disk);
        cam::settle();
    }
    machine.unload(module);
}

/// Devices come and go while the module does: it ends with no unit, or, when
/// unload was refused, with one for each device.
fn unload_races_with_arrivals_and_departures() {
    let machine = Machine::new(BUSY);
    let slots: Vec<_> = (1..4).map(|target| (0, target, 0)).collect();
    for round in 0..15 {
        let module = machine.load(&ko()).expect("load");
        std::thread::scope(|scope| {
            let coming_and_going = scope.spawn(|| {
                for slot in &slots {
                    let disk = ukernel::disk::RamDisk::new("COMES", BUSY);
                    let device = cam::attach(*slot, disk);
                    std::thread::sleep(Duration::from_micros(200 * round));
                    cam::detach(&device);
                }
            });
            std::thread::sleep(Duration::from_micros(300));
            machine.unload(module);
            coming_and_going.join().expect("no panic");
        });
        cam::settle();
        assert_eq!(cam::PERIPHS.load(Ordering::SeqCst), 0);
        assert!(devfs::names().is_empty());
    }
}

/// L7: the queue may be half changed by a thread that was stopped.
fn what_completes_beside_a_dump_is_left_alone() {
    let (mut machine, _module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    machine.disk().stuck.store(true, Ordering::SeqCst);
    let mut command = Command::new(&mut machine, 512);
    command.rw10(false, 0, 1);
    command.queue(&mut machine, fd).expect("queue");
    let carried_out = machine.disk().commands.load(Ordering::SeqCst);
    ukernel::loader::panic();
    machine.disk().unstick();
    wait_until("the disk has answered", || {
        machine.disk().commands.load(Ordering::SeqCst) > carried_out
    });
    machine.device().wait_returned();
    assert_eq!(machine.poll(fd, POLLIN, 50), Ok(0), "nobody is told");
    assert_eq!(
        sysctl::value("0.outstanding"),
        Some(1),
        "nothing is counted"
    );
    // The machine ends here: what is left is not looked for.
    std::process::exit(0);
}
