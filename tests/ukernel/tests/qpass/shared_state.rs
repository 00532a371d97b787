//! A device is shared: what one open does to it is undone, refused, or without
//! effect on the device's other drivers.

use super::*;
use cam::{Device, Noise, Step, Walk};
use ukernel::disk::RamDisk;

tests! {
    no_flag_but_those_that_a_command_needs_reaches_the_sim;
    flags_that_freeze_stop_no_other_driver;
    a_high_power_command_leaves_no_device_on_cams_list;
    high_power_commands_of_one_device_hold_up_no_other;
    openings_that_are_no_number_of_commands_are_einval;
    openings_that_the_sim_has_no_slots_for_are_einval;
    a_device_is_probed_and_then_left_to_its_driver;
    synchronous_commands_of_any_priority_get_a_ccb;
    a_command_that_cam_refuses_leaves_no_opening_behind;
    resets_leave_the_disks_own_driver_its_retries;
    a_long_cdb_is_for_sims_that_have_room;
    a_signal_ends_the_retries_of_a_synchronous_command;
    a_queue_that_another_driver_froze_stays_frozen;
    a_release_of_what_is_not_frozen_prints_nothing;
    a_programs_priority_does_not_starve_the_disks_own_driver;
    what_a_debug_kernel_takes_for_a_bio_is_not_the_users;
    camgetpassthru_hands_out_no_address;
    loading_and_unloading_makes_no_other_driver_print;
    a_walk_through_the_periphs_meets_no_half_freed_unit;
    walks_race_with_unloads;
}

const EINVAL: i32 = sys::EINVAL as i32;

/// What a program may set and a SIM is told; the last was once CAM_QUEUE_ENABLE.
const PASSED: u32 = sys::CAM_DIR_MASK
    | sys::CAM_DATA_MASK
    | sys::CAM_CDB_POINTER
    | sys::CAM_DEV_QFRZDIS
    | sys::CAM_PASS_ERR_RECOVER
    | sys::CAM_DIS_AUTOSENSE
    | sys::CAM_DIS_DISCONNECT
    | sys::CAM_TAG_ACTION_VALID
    | sys::CAM_NEGOTIATE
    | sys::CAM_unused1;
/// What is EINVAL.
const REFUSED: u32 =
    sys::CAM_UNLOCKED | sys::CAM_CDB_PHYS | sys::CAM_SENSE_PTR | sys::CAM_SENSE_PHYS;

/// The three ways of a CCB to a device.
#[derive(Clone, Copy, Debug)]
enum Way {
    Command,
    Queue,
    Enter,
}
const WAYS: [Way; 3] = [Way::Command, Way::Queue, Way::Enter];

/// Sends a command and has it back.
fn send(machine: &mut Machine, fd: i32, command: &Command, way: Way) {
    match way {
        Way::Command => command.send(machine, fd).expect("send"),
        Way::Queue => queue_and_get(machine, fd, command),
        Way::Enter => {
            let mut arrays = enter::Arrays::new(machine);
            arrays.submit(&[(command.ccb.address(), 1)]);
            let answer = enter::enter(machine, fd, arrays.call(1, 1, 1));
            assert_eq!(answer, Ok((1, 1, 0, 0)));
        }
    }
}

fn no_flag_but_those_that_a_command_needs_reaches_the_sim() {
    let (mut machine, module) = boot(Config::default());
    let device = machine.device().clone();
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 512);
    for bit in (0..32).rev() {
        let flag = 1u32 << bit;
        if flag & (PASSED | REFUSED) != 0 {
            continue;
        }
        for way in WAYS {
            command.rw10(false, 0, 1);
            command.hdr().flags |= flag;
            let before = (command.hdr().flags, cam::last_sent(&device).1);
            send(&mut machine, fd, &command, way);
            let (sent, count) = cam::last_sent(&device);
            assert_eq!(count, before.1 + 1, "it is sent");
            assert_eq!(sent & !PASSED, 0, "{flag:#x} by {way:?}");
            assert_eq!(command.hdr().flags, before.0, "{flag:#x} by {way:?}");
            assert_eq!(command.ended().status, sys::CAM_REQ_CMP);
        }
    }
    machine.close(fd);
    machine.unload(module);
}

fn flags_that_freeze_stop_no_other_driver() {
    let (mut machine, module) = boot(Config::default());
    let device = machine.device().clone();
    for func_code in [sys::XPT_SCSI_IO, sys::XPT_RESET_DEV, sys::XPT_NOOP] {
        for way in WAYS {
            if func_code == sys::XPT_RESET_DEV {
                until_it_is_let_be();
            }
            let fd = machine.open(NODE, RDWR).expect("open");
            let mut command = Command::new(&mut machine, 512);
            command.test_unit_ready();
            command.hdr().func_code = func_code;
            command.hdr().flags |= sys::CAM_DEV_QFREEZE;
            send(&mut machine, fd, &command, way);
            machine.close(fd);
            let frozen = cam::counts(&device).frozen;
            assert_eq!(frozen, 0, "{func_code:#x} by {way:?}");
            cam::all_neighbours_read();
        }
    }
    machine.unload(module);
}

/// A second disk, `/dev/qpass1`.
fn second() -> (Arc<Device>, Arc<RamDisk>) {
    let disk = RamDisk::new("SECOND", Config::default());
    let device = cam::attach((0, 1, 0), disk.clone());
    cam::settle();
    wait_until("/dev/qpass1 is there", || devfs::exists("qpass1"));
    (device, disk)
}

/// Reads that ask for a high power slot.
fn power_reads(machine: &mut Machine, fd: i32, n: usize) -> Vec<Command> {
    let mut commands = Vec::new();
    for _ in 0..n {
        let mut command = Command::new(machine, 512);
        command.rw10(false, 0, 1);
        command.hdr().flags |= sys::CAM_HIGH_POWER;
        command.queue(machine, fd).expect("queue");
        commands.push(command);
    }
    commands
}

/// One disk has every slot, and another one waits, is given up, and goes.
fn a_high_power_command_leaves_no_device_on_cams_list() {
    let (mut machine, module) = boot(Config::default());
    let slow = machine.open(NODE, RDWR).expect("open");
    machine.disk().stuck.store(true, Ordering::SeqCst);
    let (device, _) = second();
    let commands = power_reads(&mut machine, slow, 6);
    let fd = machine.open("/dev/qpass1", RDWR).expect("open");
    let one = power_reads(&mut machine, fd, 1);
    control::cancel(&mut machine, fd, 0).expect("cancel");
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    one[0].get(&mut machine, fd).expect("get");
    let mut release = Command::new(&mut machine, 0);
    release.immediate(sys::XPT_REL_SIMQ);
    release.send(&mut machine, fd).expect("send");
    machine.close(fd);
    cam::detach(&device);
    cam::settle();
    cam::wait_free(&device);
    machine.disk().unstick();
    for command in &commands {
        assert_eq!(machine.poll(slow, POLLIN, 20_000), Ok(POLLIN));
        command.get(&mut machine, slow).expect("get");
    }
    machine.close(slow);
    machine.unload(module);
}

fn high_power_commands_of_one_device_hold_up_no_other() {
    let (mut machine, module) = boot(Config::default());
    let slow = machine.open(NODE, RDWR).expect("open");
    machine.disk().stuck.store(true, Ordering::SeqCst);
    let (device, _) = second();
    let commands = power_reads(&mut machine, slow, 6);
    let fd = machine.open("/dev/qpass1", RDWR).expect("open");
    let one = power_reads(&mut machine, fd, 1);
    assert_eq!(machine.poll(fd, POLLIN, 2_000), Ok(POLLIN), "it goes on");
    one[0].get(&mut machine, fd).expect("get");
    let took = cam::neighbour_reads(&device, Duration::from_secs(2));
    assert!(took.is_some(), "its own driver too");
    machine.close(fd);
    machine.disk().unstick();
    for command in &commands {
        assert_eq!(machine.poll(slow, POLLIN, 20_000), Ok(POLLIN));
        command.get(&mut machine, slow).expect("get");
    }
    machine.close(slow);
    machine.unload(module);
}

/// An XPT_REL_SIMQ as a program builds it.
fn relsim(command: &mut Command, flags: u32, openings: u32, timeout: u32) {
    command.immediate(sys::XPT_REL_SIMQ);
    // SAFETY: plain data.
    let crs = unsafe { &mut command.ccb.ccb_mut().crs };
    (crs.release_flags, crs.openings, crs.release_timeout) = (flags, openings, timeout);
}

fn openings_that_are_no_number_of_commands_are_einval() {
    let (mut machine, module) = boot(Config::default());
    let device = machine.device().clone();
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 0);
    let before = cam::counts(&device);
    for openings in [0, 65_536, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, u32::MAX] {
        relsim(&mut command, sys::RELSIM_ADJUST_OPENINGS, openings, 0);
        let answer = command.send(&mut machine, fd);
        assert_eq!(answer, Err(EINVAL), "{openings:#x}");
        let answer = command.queue(&mut machine, fd);
        assert_eq!(answer, Err(EINVAL), "{openings:#x}");
        assert_eq!(cam::counts(&device), before, "{openings:#x}");
    }
    for openings in [1, 256, 8] {
        relsim(&mut command, sys::RELSIM_ADJUST_OPENINGS, openings, 0);
        command.send(&mut machine, fd).expect("as camcontrol(8)");
        assert_eq!(
            command.hdr().status & sys::CAM_STATUS_MASK,
            sys::CAM_REQ_CMP
        );
        let counts = cam::counts(&device);
        assert_eq!(counts.openings + counts.active, openings as i32);
        cam::all_neighbours_read();
    }
    cam::take_noise();
    machine.close(fd);
    machine.unload(module);
}

fn a_queue_that_another_driver_froze_stays_frozen() {
    let (mut machine, module) = boot(Config::default());
    let device = machine.device().clone();
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 0);
    cam::freeze(&device);
    for flags in [
        0,
        sys::RELSIM_RELEASE_AFTER_TIMEOUT,
        sys::RELSIM_RELEASE_AFTER_CMDCMPLT,
        sys::RELSIM_RELEASE_AFTER_QEMPTY,
        sys::RELSIM_ADJUST_OPENINGS,
    ] {
        for synchronous in [false, true] {
            relsim(&mut command, flags, 16, 1);
            if synchronous {
                command.send(&mut machine, fd).expect("send");
            } else {
                queue_and_get(&mut machine, fd, &command);
            }
            let status = command.hdr().status & sys::CAM_STATUS_MASK;
            assert_eq!(status, sys::CAM_REQ_CMP, "{flags:#x}");
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(cam::counts(&device).frozen, 1, "{flags:#x}");
        }
    }
    cam::unfreeze(&device);
    machine.close(fd);
    assert_eq!(cam::take_noise(), []);
    machine.unload(module);
}

fn a_release_of_what_is_not_frozen_prints_nothing() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 0);
    let timeout = sys::RELSIM_RELEASE_AFTER_TIMEOUT;
    for flags in [0, timeout, sys::RELSIM_RELEASE_AFTER_QEMPTY] {
        relsim(&mut command, flags, 0, 1);
        command.send(&mut machine, fd).expect("send");
        assert_eq!(
            command.hdr().status & sys::CAM_STATUS_MASK,
            sys::CAM_REQ_CMP
        );
        queue_and_get(&mut machine, fd, &command);
    }
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(cam::take_noise(), []);
    machine.close(fd);
    machine.unload(module);
}

/// The SIM takes one command at a time, the device 32, and a program keeps all of
/// these busy.
fn a_programs_priority_does_not_starve_the_disks_own_driver() {
    let (machine, module) = boot(Config {
        latency: Duration::from_millis(2),
        ..Config::default()
    });
    let device = machine.device().clone();
    cam::limit_sim(&device, 1);
    for priority in [0, 1, sys::QPC_CAM_PRIORITY_NORMAL] {
        let stop = AtomicBool::new(false);
        let took = std::thread::scope(|scope| {
            let (machine, stop) = (&machine, &stop);
            scope.spawn(move || {
                let mut sys = Shared(machine);
                let fd = sys.open(NODE, RDWR).expect("open");
                let mut command = Command::new(&mut sys, 512);
                let queue = |sys: &mut Shared<'_>, command: &mut Command| {
                    command.rw10(false, 0, 1);
                    command.hdr().pinfo.priority = priority;
                    command.queue(sys, fd).expect("queue");
                };
                for _ in 0..30 {
                    queue(&mut sys, &mut command);
                }
                while !stop.load(Ordering::SeqCst) {
                    assert_eq!(sys.poll(fd, POLLIN, 20_000), Ok(POLLIN));
                    command.get(&mut sys, fd).expect("get");
                    queue(&mut sys, &mut command);
                }
                sys.close(fd);
            });
            std::thread::sleep(Duration::from_millis(50));
            let took = cam::neighbour_reads(&device, Duration::from_secs(3));
            stop.store(true, Ordering::SeqCst);
            took
        });
        assert!(
            took.is_some(),
            "priority {priority}: it waits for the program"
        );
    }
    machine.unload(module);
}

/// ccb_scsiio has a trailing pointer with BUF_TRACKING, which CAM follows.
fn what_a_debug_kernel_takes_for_a_bio_is_not_the_users() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 512);
    let behind = (core::mem::offset_of!(sys::ccb_scsiio, init_id) + 4).next_multiple_of(8);
    for way in WAYS {
        command.rw10(false, 0, 1);
        command.ccb.bytes_mut()[behind..behind + 8].fill(0x5a);
        send(&mut machine, fd, &command, way);
        assert_eq!(command.ended().status, sys::CAM_REQ_CMP);
    }
    machine.close(fd);
    machine.unload(module);
}

fn camgetpassthru_hands_out_no_address() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 0);
    command.immediate(0);
    let request = sys::QPC_CAMGETPASSTHRU;
    machine
        .ioctl(fd, request, command.ccb.address())
        .expect("CAMGETPASSTHRU");
    let hdr = command.hdr();
    assert_eq!(hdr.status & sys::CAM_STATUS_MASK, sys::CAM_REQ_CMP);
    assert!(hdr.path.is_null(), "path");
    assert!(hdr.cbfcnp.is_none(), "cbfcnp");
    // SAFETY: plain data.
    unsafe {
        for (name, link) in [
            ("xpt_links", hdr.xpt_links),
            ("sim_links", hdr.sim_links),
            ("periph_links", hdr.periph_links),
        ] {
            assert!(link.le.le_next.is_null(), "{name}");
            assert!(link.le.le_prev.is_null(), "{name}");
        }
        assert_eq!(hdr.periph_priv.bytes, [0; 16], "periph_priv");
        assert_eq!(hdr.sim_priv.bytes, [0; 16], "sim_priv");
    }
    machine.close(fd);
    machine.unload(module);
}

fn loading_and_unloading_makes_no_other_driver_print() {
    let mut machine = Machine::new(Config::default());
    for _ in 0..3 {
        let module = machine.load(&ko()).expect("load");
        wait_until("/dev/qpass0 is there", || devfs::exists(NODEV));
        let fd = machine.open(NODE, RDWR).expect("open");
        machine.close(fd);
        machine.unload(module);
        let contract = |noise: &Noise| matches!(noise, Noise::Contract(_));
        assert!(!cam::take_noise().iter().any(contract), "ctl(4) prints");
    }
}

/// Another process is at the unit in its walk, and goes on while the unit is
/// being destroyed.
fn a_walk_through_the_periphs_meets_no_half_freed_unit() {
    let (machine, module) = boot(Config::default());
    cam::step_in_destructor(Walk::new(machine.device()));
    machine.unload(module);
    wait_until("the walk has gone on", || !cam::stepped().is_empty());
    assert_eq!(cam::stepped(), [Step::Changed]);
}

fn walks_race_with_unloads() {
    let machine = Machine::new(Config::default());
    let device = machine.device().clone();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (device, stop) = (&device, &stop);
        scope.spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                let mut walk = Walk::new(device);
                while let Step::Periph(name, unit) = walk.step() {
                    assert_eq!((name.as_str(), unit), ("qpass", 0));
                }
            }
        });
        for _ in 0..20 {
            let module = machine.load(&ko()).expect("load");
            machine.unload(module);
        }
        stop.store(true, Ordering::SeqCst);
    });
}

/// ahci(4) looks for a slot for each, and has 32 (ahci.c, ahci_begin_transaction()).
fn openings_that_the_sim_has_no_slots_for_are_einval() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 0);
    for (openings, wanted) in [(1, Ok(())), (256, Ok(())), (257, Err(EINVAL))] {
        for queued in [false, true] {
            command.immediate(sys::XPT_REL_SIMQ);
            let crs = unsafe_crs(&mut command);
            crs.release_flags = sys::RELSIM_ADJUST_OPENINGS;
            crs.openings = openings;
            let answer = if queued {
                command.queue(&mut machine, fd)
            } else {
                command.send(&mut machine, fd)
            };
            assert_eq!(answer, wanted, "{openings}");
        }
    }
    machine.close(fd);
    machine.unload(module);
}

fn unsafe_crs(command: &mut Command) -> &mut sys::ccb_relsim {
    // SAFETY: plain data, whichever member was written.
    unsafe { &mut command.ccb.ccb_mut().crs }
}

/// cam_periph_getccb() gives a thread the first CCB of the periph's list, and only if
/// it has the priority that the thread asks for: with several, the openings run out in
/// CCBs that no thread takes.
fn synchronous_commands_of_any_priority_get_a_ccb() {
    const THREADS: u32 = 12;
    let (mut machine, module) = boot(Config {
        openings: 2,
        latency: Duration::from_micros(200),
        ..Config::default()
    });
    let fd = machine.open(NODE, RDWR).expect("open");
    let (done, ended) = (AtomicU64::new(0), AtomicU64::new(0));
    let end = std::time::Instant::now() + Duration::from_millis(700);
    let shared = &machine;
    std::thread::scope(|scope| {
        for i in 0..THREADS {
            let (done, ended) = (&done, &ended);
            scope.spawn(move || {
                let sys = &mut Shared(shared);
                let mut command = Command::new(sys, 4096);
                let mut random = fastrand::Rng::with_seed(i.into());
                while std::time::Instant::now() < end {
                    command.rw10(false, 0, 8);
                    command.hdr().pinfo.priority = random.u32(..);
                    command.send(sys, fd).expect("send");
                    assert_eq!(command.ended().status, sys::CAM_REQ_CMP);
                    done.fetch_add(1, Ordering::Relaxed);
                }
                command.free(sys);
                ended.fetch_add(1, Ordering::Relaxed);
            });
        }
        wait_until("every thread got its CCBs", || {
            ended.load(Ordering::Relaxed) == THREADS.into()
        });
    });
    assert!(done.into_inner() > 100);
    machine.close(fd);
    machine.unload(module);
}

/// Each reset fails what another driver has at the device, and that tries a few times
/// only.
fn resets_leave_the_disks_own_driver_its_retries() {
    const EBUSY: i32 = sys::EBUSY as i32;
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let other = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 0);
    let mut ask = |machine: &mut Machine, fd, queued: bool| {
        command.immediate(sys::XPT_RESET_DEV);
        command.hdr().timeout = 10_000;
        if !queued {
            return command.send(machine, fd);
        }
        command.queue(machine, fd)?;
        assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
        command.get(machine, fd)
    };
    for queued in [true, false] {
        assert_eq!(ask(&mut machine, fd, queued), Ok(()));
        // By any open.
        for fd in [fd, other] {
            assert_eq!(ask(&mut machine, fd, queued), Err(EBUSY));
            assert_eq!(ask(&mut machine, fd, !queued), Err(EBUSY));
        }
        until_it_is_let_be();
    }
    machine.close(fd);
    machine.close(other);
    machine.unload(module);
}

/// A CDB for a device on a bus of ATA's that takes none, or none so long: CAM ends the
/// command without having queued it, and counts it as given back.
fn a_command_that_cam_refuses_leaves_no_opening_behind() {
    for (atapi, cdb_len, status) in [
        (false, 6, sys::CAM_REQ_INVALID),
        (true, 16, sys::CAM_REQ_INVALID),
        (true, 12, sys::CAM_REQ_CMP),
    ] {
        let (mut machine, module) = boot(Config {
            sata: true,
            atapi,
            ..Config::default()
        });
        let device = machine.device().clone();
        let fd = machine.open(NODE, RDWR).expect("open");
        let before = cam::counts(&device);
        for data in [0, 512, 65536] {
            for how in 0..3 {
                let mut command = Command::new(&mut machine, 65536);
                if data == 0 {
                    command.test_unit_ready();
                } else {
                    command.rw10(false, 0, (data / 512) as u16);
                }
                command.csio().cdb_len = cdb_len;
                command.data.bytes_mut().fill(0xaa);
                match how {
                    0 => command.send(&mut machine, fd).expect("send"),
                    1 => queue_and_get(&mut machine, fd, &command),
                    _ => {
                        let mut arrays = enter::Arrays::new(&mut machine);
                        arrays.submit(&[(command.ccb.address(), 1)]);
                        let call = arrays.call(1, 1, 1);
                        enter::enter(&mut machine, fd, call).expect("enter");
                    }
                }
                let ended = command.ended().status;
                assert_eq!(ended, status, "{cdb_len} bytes, {data} of data, {how}");
                // CAM's own buffer of zeroes comes back to a synchronous call.
                if status == sys::CAM_REQ_INVALID && how != 0 {
                    assert!(command.data.bytes().iter().all(|b| *b == 0xaa), "{how}");
                }
                command.free(&mut machine);
            }
        }
        assert_eq!(cam::counts(&device), before, "{cdb_len}");
        machine.close(fd);
        machine.unload(module);
        machine.pull();
    }
}

/// The disk's own driver waits while it is probed, which begins after the answer. A
/// program that asks again and again would have it wait for ever.
fn a_device_is_probed_and_then_left_to_its_driver() {
    const EBUSY: i32 = sys::EBUSY as i32;
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 0);
    let mut ask = |machine: &mut Machine, queued: bool| {
        command.immediate(sys::XPT_REPROBE_LUN);
        if !queued {
            return command.send(machine, fd);
        }
        command.queue(machine, fd)?;
        assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
        command.get(machine, fd)
    };
    for queued in [true, false] {
        cam::PROBE_MS.store(2500, Ordering::SeqCst);
        assert_eq!(ask(&mut machine, queued), Ok(()));
        assert_eq!(ask(&mut machine, !queued), Err(EBUSY), "at once");
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(ask(&mut machine, queued), Err(EBUSY), "it is probed still");
        // What goes on asking does not put its own end off.
        cam::PROBE_MS.store(0, Ordering::SeqCst);
        let start = std::time::Instant::now();
        let mut refused = 0;
        while ask(&mut machine, queued) == Err(EBUSY) {
            refused += 1;
            assert!(start.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(10));
        }
        // A second behind the last look at the probe, in which the driver reads.
        assert!(start.elapsed() > Duration::from_millis(1500), "{refused}");
        std::thread::sleep(Duration::from_millis(1100));
    }
    machine.close(fd);
    machine.unload(module);
}

/// mps(4) copies as many bytes as there are into 32; iscsi(4) asserts 16.
fn a_long_cdb_is_for_sims_that_have_room() {
    let mut vtscsi = ukernel::model::Model::PLAIN;
    vtscsi.name = "vtscsi";
    let iscsi = ukernel::model::Model::ISCSI;
    for (model, longest) in [(vtscsi, 32), (iscsi, 16)] {
        let (mut machine, module) = boot(Config {
            model,
            ..Config::default()
        });
        let fd = machine.open(NODE, RDWR).expect("open");
        let mut command = Command::new(&mut machine, 512);
        command.data.bytes_mut().fill(0);
        for len in [6, 16, 17, 32, 33, 255] {
            command.test_unit_ready();
            let cdb = command.data.address();
            command.hdr().flags |= sys::CAM_CDB_POINTER;
            let csio = command.csio();
            (csio.cdb_len, csio.cdb_io.cdb_ptr) = (len, cdb as *mut u8);
            let answer = command.send(&mut machine, fd);
            let wanted = if len <= longest { Ok(()) } else { Err(EINVAL) };
            assert_eq!(answer, wanted, "{}: {len}", model.name);
        }
        machine.close(fd);
        machine.unload(module);
    }
}

/// A process that is killed does not wait for 65535 retries.
fn a_signal_ends_the_retries_of_a_synchronous_command() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 0);
    machine.disk().unit_attentions.store(1000, Ordering::SeqCst);
    command.test_unit_ready();
    command.hdr().flags |= sys::CAM_PASS_ERR_RECOVER;
    command.hdr().retry_count = u16::MAX;
    lock::pend(true);
    let answer = command.send(&mut machine, fd);
    lock::pend(false);
    assert_eq!(answer, Ok(()));
    assert_eq!(
        command.ended().status & sys::CAM_STATUS_MASK,
        sys::CAM_SCSI_STATUS_ERROR
    );
    let left = machine.disk().unit_attentions.swap(0, Ordering::SeqCst);
    assert_eq!(left, 999, "it was sent once");
    machine.close(fd);
    machine.unload(module);
}
