//! How units and the module go: whoever else looks at a unit meanwhile, and
//! whatever is stuck.

use super::*;
use std::sync::mpsc;

tests! {
    a_walk_over_the_units_does_not_find_one_that_is_freed;
    a_walk_that_has_the_last_unit_holds_it_and_the_module;
    a_device_that_comes_back_during_unload_does_not_call_a_module_that_left;
    walks_race_with_units_that_come_and_go;
    a_stuck_task_queue_refuses_the_unload;
    a_stuck_event_thread_refuses_the_unload;
    zones_are_made_once_for_all_devices;
    zones_stay_until_the_module_goes;
    a_unit_whose_attach_fails_is_let_go_while_a_walk_has_it;
    a_load_that_fails_twice_leaves_nothing;
}

/// Walks over the units in single steps, from wherever it was, until told to
/// stop; says how often a step found the list changed.
fn step_until(stop: &AtomicBool) -> u64 {
    let (mut at, mut changed) = (None, 0);
    while !stop.load(Ordering::SeqCst) {
        at = match cam::step_units("qpass", at, &|_| {}) {
            cam::UnitsStep::More(position) => Some(position),
            cam::UnitsStep::Last => None,
            cam::UnitsStep::ListChanged => {
                changed += 1;
                None
            }
        };
    }
    changed
}

/// A second disk beside the machine's.
fn second_disk() -> Arc<cam::Device> {
    let disk = ukernel::disk::RamDisk::new("SECOND", Config::default());
    let device = cam::attach((0, 1, 0), disk);
    wait_until("/dev/qpass1 is there", || devfs::exists("qpass1"));
    device
}

/// XPT_DEV_MATCH takes the unit at its saved position without a look at what
/// became of it, while the list has not changed.
fn a_walk_over_the_units_does_not_find_one_that_is_freed() {
    let (machine, module) = boot(Config::default());
    for _ in 0..5 {
        let second = second_disk();
        let cam::UnitsStep::More(at) = cam::step_units("qpass", None, &|_| {}) else {
            panic!("there are two units");
        };
        // The saved unit is the second one. It goes, and the thread that frees
        // it is held up in the middle.
        cam::FREE_DELAY_MS.store(60, Ordering::SeqCst);
        cam::detach(&second);
        let end = Instant::now() + Duration::from_millis(100);
        let mut changed = false;
        while Instant::now() < end {
            match cam::step_units("qpass", Some(at), &|_| {}) {
                cam::UnitsStep::ListChanged => changed = true,
                _ => assert!(!changed, "the list does not change back"),
            }
        }
        assert!(changed, "it went");
        cam::wait_free(&second);
        cam::FREE_DELAY_MS.store(0, Ordering::SeqCst);
    }
    machine.unload(module);
}

fn a_walk_that_has_the_last_unit_holds_it_and_the_module() {
    let (machine, module) = boot(Config::default());
    let (entered, has_entered) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel::<()>();
    let may_leave = std::sync::Mutex::new(may_leave);
    let walk = std::thread::spawn(move || {
        let mut second = None;
        let first = cam::step_units("qpass", None, &|_| {
            // With the unit's lock held: nobody gets past.
            entered.send(()).expect("the test waits");
            may_leave.lock().unwrap().recv().expect("the test goes on");
        });
        if let cam::UnitsStep::More(at) = first {
            second = Some(at);
        }
        second.is_some()
    });
    has_entered.recv().expect("the walk is there");
    cam::FREE_DELAY_MS.store(20, Ordering::SeqCst);
    let (unloaded, is_unloaded) = mpsc::channel();
    let unload = std::thread::spawn(move || {
        machine.unload(module);
        unloaded.send(()).expect("the test waits");
    });
    let early = is_unloaded.recv_timeout(Duration::from_millis(200));
    assert!(early.is_err(), "the unit is in use");
    leave.send(()).expect("the walk waits");
    assert!(!walk.join().expect("no panic"), "it was the only unit");
    is_unloaded
        .recv_timeout(Duration::from_secs(20))
        .expect("unloaded");
    unload.join().expect("no panic");
    cam::FREE_DELAY_MS.store(0, Ordering::SeqCst);
}

/// The unit of a device that went and came again is freed by whoever has the
/// last reference to it, and CAM then calls the module for the device: the
/// module must be there still.
fn a_device_that_comes_back_during_unload_does_not_call_a_module_that_left() {
    let machine = Machine::new(Config::default());
    for round in 0..12 {
        let module = machine.load(&ko()).expect("load");
        wait_until("/dev/qpass0 is there", || devfs::exists(NODEV));
        let (entered, has_entered) = mpsc::channel();
        let walk = std::thread::spawn(move || {
            cam::step_units("qpass", None, &|_| {
                entered.send(()).expect("the test waits");
                std::thread::sleep(Duration::from_millis(30));
            });
        });
        has_entered.recv().expect("the walk has the unit");
        cam::FREE_DELAY_MS.store(20, Ordering::SeqCst);
        // Told anew of the device while the old unit is still going.
        cam::lose(machine.device());
        cam::find(machine.device());
        std::thread::sleep(Duration::from_millis(round * 8));
        machine.unload(module);
        walk.join().expect("no panic");
        cam::settle();
        cam::FREE_DELAY_MS.store(0, Ordering::SeqCst);
        assert_eq!(cam::PERIPHS.load(Ordering::SeqCst), 0);
    }
}

fn walks_race_with_units_that_come_and_go() {
    let (machine, module) = boot(Config::default());
    let stop = AtomicBool::new(false);
    let changed = std::thread::scope(|scope| {
        let walks: Vec<_> = (0..3).map(|_| scope.spawn(|| step_until(&stop))).collect();
        for round in 0..40 {
            let delay = if round % 4 == 0 { 3 } else { 0 };
            cam::FREE_DELAY_MS.store(delay, Ordering::SeqCst);
            let second = second_disk();
            cam::detach(&second);
            cam::wait_free(&second);
        }
        stop.store(true, Ordering::SeqCst);
        let changed = walks.into_iter().map(|walk| walk.join().expect("no panic"));
        changed.sum::<u64>()
    });
    assert!(changed > 0, "no walk met a unit that went");
    cam::FREE_DELAY_MS.store(0, Ordering::SeqCst);
    machine.unload(module);
}

/// Calls `f` in a thread of its own; it must be back in that time.
fn within<R: Send + 'static>(time: Duration, f: impl FnOnce() -> R + Send + 'static) -> R {
    let (back, is_back) = mpsc::channel();
    std::thread::spawn(move || back.send(f()));
    is_back.recv_timeout(time).expect("it does not hang")
}

/// A command goes through, on an open of its own.
fn works(machine: &mut Machine) {
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(machine, 4096);
    command.rw10(false, 0, 8);
    queue_and_get(machine, fd, &command);
    machine.close(fd);
    command.free(machine);
}

/// Another driver's task does not return: kldunload(8), which holds the lock
/// on loading and unloading, does.
fn a_stuck_task_queue_refuses_the_unload() {
    let (mut machine, module) = boot(Config::default());
    let (release, is_released) = mpsc::channel::<()>();
    ukernel::task::enqueue(move || is_released.recv().expect("the test goes on"));
    let limit = Duration::from_secs(20);
    let refused = within(limit, || module.unload().err());
    let (errno, module) = refused.expect("refused");
    assert_eq!(errno, EBUSY);
    let refused = within(limit, || module.unload_by_force().err());
    let (errno, module) = refused.expect("refused by force too");
    assert_eq!(errno, EBUSY);
    assert!(devfs::exists(NODEV), "nothing has changed");
    works(&mut machine);
    release.send(()).expect("the task waits");
    works(&mut machine);
    machine.unload(module);
}

fn a_stuck_event_thread_refuses_the_unload() {
    let (mut machine, module) = boot(Config::default());
    let (release, is_released) = mpsc::channel::<()>();
    cam::occupy_event_thread(move || is_released.recv().expect("the test goes on"));
    let refused = within(Duration::from_secs(20), || module.unload().err());
    let (errno, module) = refused.expect("refused");
    assert_eq!(errno, EBUSY);
    works(&mut machine);
    release.send(()).expect("the thread waits");
    machine.unload(module);
}

fn zones_are_made_once_for_all_devices() {
    let (mut machine, module) = boot(Config::default());
    let second = second_disk();
    assert!(memory::zones().is_empty(), "none before the first request");
    let mut command = Command::new(&mut machine, 4096);
    command.rw10(false, 0, 8);
    let fds = [NODE, "/dev/qpass1"].map(|node| {
        let fd = machine.open(node, RDWR).expect("open");
        queue_and_get(&mut machine, fd, &command);
        assert_eq!(memory::zones().len(), 8, "one set, whatever the device");
        fd
    });
    for fd in fds {
        machine.close(fd);
    }
    cam::detach(&second);
    cam::wait_free(&second);
    machine.unload(module);
    assert!(memory::zones().is_empty());
}

fn zones_stay_until_the_module_goes() {
    let (mut machine, module) = boot(Config::default());
    for _ in 0..20 {
        works(&mut machine);
        cam::settle();
    }
    wait_until("all memory is back", all_is_back);
    assert_eq!(memory::zones().len(), 8);
    assert_eq!(fault::ZCREATE.passed(), 8, "made with the first request");
    // The device's departure is not theirs.
    machine.depart();
    assert_eq!(memory::zones().len(), 8);
    machine.arrive();
    works(&mut machine);
    assert_eq!(fault::ZCREATE.passed(), 8);
    machine.unload(module);
    assert_eq!(memory::destroyed_zones().len(), 8, "each once");
}

/// CAM frees the periph of a constructor that fails, whoever has it.
fn a_unit_whose_attach_fails_is_let_go_while_a_walk_has_it() {
    let (mut machine, module) = boot(Config::default());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let walk = scope.spawn(|| step_until(&stop));
        for n in 0..12 {
            machine.depart();
            let point = if n % 2 == 0 {
                &fault::MAKE_DEV
            } else {
                &fault::REGISTER_ASYNC
            };
            cam::FREE_DELAY_MS.store(2, Ordering::SeqCst);
            point.arm(1);
            machine.arrive_unseen();
            cam::settle();
            assert!(point.fired());
            assert!(!devfs::exists(NODEV));
            cam::FREE_DELAY_MS.store(0, Ordering::SeqCst);
            machine.depart();
            machine.arrive();
        }
        stop.store(true, Ordering::SeqCst);
        walk.join().expect("no panic");
    });
    works(&mut machine);
    machine.unload(module);
}

/// CAM takes no callback, and has no memory for a path either: the driver is
/// off CAM's list all the same.
fn a_load_that_fails_twice_leaves_nothing() {
    let machine = Machine::new(Config::default());
    fault::REGISTER_ASYNC.arm(1);
    fault::NO_PATHS.store(true, Ordering::SeqCst);
    let error = machine.load(&ko()).err().expect("refused");
    fault::NO_PATHS.store(false, Ordering::SeqCst);
    fault::REGISTER_ASYNC.arm(0);
    assert_eq!(error, format!("MOD_LOAD: errno {ENXIO}"));
    let module = machine.load(&ko()).expect("the next load works");
    machine.unload(module);
}
