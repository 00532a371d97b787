//! Aborts against CAM at its hardest: a cancelled command is never sent again,
//! and a SIM is not asked for what it has not got.

use super::*;
use cam::Ending;

tests! {
    a_cancelled_command_is_never_sent_again;
    a_command_cancelled_in_cams_queue_is_never_sent;
    a_command_cancelled_during_recovery_is_not_sent_again;
    a_sim_is_not_asked_for_a_command_that_it_has_not_got;
    a_sim_is_not_asked_when_cam_sends_meanwhile;
    a_command_that_is_sent_again_is_not_taken_for_the_sims;
    a_sim_is_not_asked_to_abort_a_reset;
}

/// How a request is given up.
#[derive(Clone, Copy, Debug)]
enum By {
    Cancel,
    CancelAll,
    Abort,
}
const BY: [By; 3] = [By::Cancel, By::CancelAll, By::Abort];

/// Gives a request up; whether it was said that it was aborted.
fn give_up(sys: &mut dyn Sys, fd: i32, ccb: usize, by: By) -> bool {
    match by {
        By::Cancel | By::CancelAll => {
            let which = if matches!(by, By::Cancel) { ccb } else { 0 };
            let [dequeued, aborted, _, _] = control::cancel(sys, fd, which).expect("cancel");
            dequeued + aborted == 1
        }
        By::Abort => {
            let mut command = Command::new(sys, 0);
            command.immediate(sys::XPT_ABORT);
            command.ccb.ccb_mut().cab.abort_ccb = ccb as *mut sys::ccb;
            command.send(sys, fd).expect("send");
            let status = command.hdr().status & sys::CAM_STATUS_MASK;
            command.free(sys);
            status == sys::CAM_REQ_CMP
        }
    }
}

/// A write with retries, which CAM is asked to recover.
fn retried(machine: &mut Machine) -> Command {
    let mut command = Command::new(machine, 512);
    command.rw10(true, 0, 1);
    command.hdr().flags |= sys::CAM_PASS_ERR_RECOVER;
    command.hdr().retry_count = 5;
    command
}

/// The completion: in two seconds, or it is stuck in the SIM once more.
fn reap(machine: &mut Machine, fd: i32, command: &mut Command) -> u32 {
    let there = machine.poll(fd, POLLIN, 2_000);
    assert_eq!(there, Ok(POLLIN), "it comes, and is not sent again");
    command.get(machine, fd).expect("get");
    command.hdr().status & sys::CAM_STATUS_MASK
}

fn a_cancelled_command_is_never_sent_again() {
    let (mut machine, module) = boot(Config::default());
    let device = machine.device().clone();
    let fd = machine.open(NODE, RDWR).expect("open");
    for by in BY {
        for keep_frozen in [false, true] {
            machine.disk().stuck.store(true, Ordering::SeqCst);
            let mut command = retried(&mut machine);
            if keep_frozen {
                command.hdr().flags &= !sys::CAM_DEV_QFRZDIS;
            }
            let (_, before) = cam::last_sent(&device);
            command.queue(&mut machine, fd).expect("queue");
            let at = command.ccb.address();
            assert!(give_up(&mut machine, fd, at, by), "{by:?}");
            assert_eq!(reap(&mut machine, fd, &mut command), sys::CAM_REQ_ABORTED);
            machine.disk().unstick();
            std::thread::sleep(Duration::from_millis(20));
            let (_, after) = cam::last_sent(&device);
            assert_eq!(after, before + 1, "sent once, {by:?}");
            assert_eq!(cam::counts(&device).frozen, 0, "{by:?}");
        }
    }
    machine.close(fd);
    machine.unload(module);
}

fn a_command_cancelled_in_cams_queue_is_never_sent() {
    let (mut machine, module) = boot(Config::default());
    let device = machine.device().clone();
    let fd = machine.open(NODE, RDWR).expect("open");
    for by in BY {
        let mut command = retried(&mut machine);
        let (_, before) = cam::last_sent(&device);
        let counts = cam::counts(&device);
        cam::freeze(&device);
        command.queue(&mut machine, fd).expect("queue");
        let at = command.ccb.address();
        assert!(give_up(&mut machine, fd, at, by), "{by:?}");
        assert_eq!(reap(&mut machine, fd, &mut command), sys::CAM_REQ_ABORTED);
        cam::unfreeze(&device);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(cam::last_sent(&device).1, before, "not sent, {by:?}");
        // XPT_ABORT would leave an opening too many.
        assert_eq!(cam::counts(&device), counts, "{by:?}");
    }
    machine.close(fd);
    machine.unload(module);
}

/// The device becomes ready for a while, and CAM asks it every 5 ms in the
/// program's own CCB.
fn a_command_cancelled_during_recovery_is_not_sent_again() {
    let (mut machine, module) = boot(Config::default());
    let (sim, device) = recovery::scripted();
    let fd = machine.open("/dev/qpass1", RDWR).expect("open");
    for by in BY {
        let mut command = retried(&mut machine);
        sim.write(&[Ending::Sense(2, 4, 1); 20]);
        command.queue(&mut machine, fd).expect("queue");
        let (_, before) = cam::last_sent(&device);
        wait_until("CAM asks", || cam::last_sent(&device).1 > before + 2);
        let at = command.ccb.address();
        let mut written = None;
        for _ in 0..50 {
            if give_up(&mut machine, fd, at, by) {
                written = Some(sim.count(0x2a));
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = reap(&mut machine, fd, &mut command);
        std::thread::sleep(Duration::from_millis(30));
        if let Some(written) = written {
            assert_eq!(sim.count(0x2a), written, "not written again, {by:?}");
        }
        sim.take();
        wait_until("the queue is let go", || cam::counts(&device).frozen == 0);
    }
    machine.close(fd);
    machine.unload(module);
}

/// A CCB that a SIM with private pointers has not got yet, or again: an abort
/// waits for it, or leaves it alone.
fn aborts_at_the_door(machine: &mut Machine, fd: i32, by: By) {
    let device = machine.device().clone();
    cam::follow_sim_priv(&device);
    let mut command = retried(machine);
    command.hdr().retry_count = 1;
    cam::freeze(&device);
    command.queue(machine, fd).expect("queue");
    cam::hold_door(&device);
    let at = command.ccb.address();
    let shared = &*machine;
    std::thread::scope(|scope| {
        let carried = device.clone();
        scope.spawn(move || cam::unfreeze(&carried));
        cam::wait_at_door(&device);
        let cancels = scope.spawn(move || give_up(&mut Shared(shared), fd, at, by));
        std::thread::sleep(Duration::from_millis(50));
        cam::open_door(&device);
        cancels.join().expect("it ends")
    });
    let status = reap(machine, fd, &mut command);
    assert!([sys::CAM_REQ_CMP, sys::CAM_REQ_ABORTED].contains(&status));
    assert_eq!(command.get(machine, fd), Err(sys::ENOENT as i32), "once");
    wait_until("the queue is let go", || cam::counts(&device).frozen == 0);
}

fn a_sim_is_not_asked_for_a_command_that_it_has_not_got() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    for by in BY {
        aborts_at_the_door(&mut machine, fd, by);
    }
    machine.close(fd);
    machine.unload(module);
}

/// The command waits in CAM when the driver looks at it, and is on its way to the
/// SIM when CAM does.
fn a_sim_is_not_asked_when_cam_sends_meanwhile() {
    let (mut machine, module) = boot(Config::default());
    let device = machine.device().clone();
    cam::follow_sim_priv(&device);
    let fd = machine.open(NODE, RDWR).expect("open");
    for by in BY {
        let mut command = retried(&mut machine);
        cam::freeze(&device);
        command.queue(&mut machine, fd).expect("queue");
        cam::overtake_abort(&device);
        give_up(&mut machine, fd, command.ccb.address(), by);
        if cam::overtaken_waits(&device) {
            // No abort was tried: the test's own freeze is there still.
            cam::unfreeze(&device);
        }
        let status = reap(&mut machine, fd, &mut command);
        assert!([sys::CAM_REQ_CMP, sys::CAM_REQ_ABORTED].contains(&status));
        wait_until("the queue is let go", || cam::counts(&device).frozen == 0);
    }
    machine.close(fd);
    machine.unload(module);
}

/// After a retry the CCB has the SIM's words of the first time still.
fn a_command_that_is_sent_again_is_not_taken_for_the_sims() {
    let (mut machine, module) = boot(Config::default());
    let (sim, device) = recovery::scripted();
    cam::follow_sim_priv(&device);
    let fd = machine.open("/dev/qpass1", RDWR).expect("open");
    for by in BY {
        let mut command = retried(&mut machine);
        // The retry waits for a timer, and then in front of the SIM.
        command.hdr().flags &= !sys::CAM_DEV_QFRZDIS;
        sim.write(&[Ending::Status(sys::CAM_BUSY, true)]);
        let (_, before) = cam::last_sent(&device);
        command.queue(&mut machine, fd).expect("queue");
        wait_until("it was sent", || cam::last_sent(&device).1 > before);
        cam::hold_door(&device);
        let at = command.ccb.address();
        let shared = &machine;
        std::thread::scope(|scope| {
            let device = &device;
            // It may be through already, when this thread was late.
            let opener = scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(80));
                cam::open_door(device);
            });
            std::thread::sleep(Duration::from_millis(30));
            give_up(&mut Shared(shared), fd, at, by);
            opener.join().expect("it ends");
        });
        let status = reap(&mut machine, fd, &mut command);
        assert!([sys::CAM_REQ_CMP, sys::CAM_REQ_ABORTED].contains(&status));
        wait_until("the queue is let go", || cam::counts(&device).frozen == 0);
        sim.take();
    }
    machine.close(fd);
    machine.unload(module);
}

/// camsim (cfcs_action(), cam/ctl/ctl_frontend_cam_sim.c) answers the abort of what is
/// no XPT_SCSI_IO, and then goes on, and answers it once more.
fn a_sim_is_not_asked_to_abort_a_reset() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    for by in BY {
        until_it_is_let_be();
        machine.disk().stuck.store(true, Ordering::SeqCst);
        let mut reset = Command::new(&mut machine, 0);
        reset.immediate(sys::XPT_RESET_DEV);
        reset.queue(&mut machine, fd).expect("queue");
        let at = reset.ccb.address();
        assert!(!give_up(&mut machine, fd, at, by), "{by:?}");
        machine.disk().unstick();
        let status = reap(&mut machine, fd, &mut reset);
        assert_eq!(status, sys::CAM_REQ_CMP, "{by:?}");
    }
    // What waits in CAM is CAM's to give back.
    let device = machine.device().clone();
    until_it_is_let_be();
    cam::freeze(&device);
    let mut reset = Command::new(&mut machine, 0);
    reset.immediate(sys::XPT_RESET_DEV);
    reset.queue(&mut machine, fd).expect("queue");
    assert!(give_up(&mut machine, fd, reset.ccb.address(), By::Cancel));
    cam::unfreeze(&device);
    assert_eq!(reap(&mut machine, fd, &mut reset), sys::CAM_REQ_ABORTED);
    machine.close(fd);
    machine.unload(module);
}
