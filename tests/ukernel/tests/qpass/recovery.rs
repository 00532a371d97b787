//! Errors as CAM takes them: each ends as cam_periph_error(9) says, and leaves
//! the device to its other drivers.

use super::*;
use cam::{Device, Ending, Scripted};
use ukernel::disk::RamDisk;

tests! {
    every_error_ends_as_cam_says_and_lets_the_queue_go;
    a_selection_timeout_loses_the_device;
    a_recovery_command_borrows_the_ccb_and_gives_it_back;
    a_frozen_device_is_seen_by_its_neighbour;
    a_sim_that_freezes_its_queue_holds_commands_up_and_no_more;
}

/// A second device, `/dev/qpass1`, whose SIM ends commands as it is told.
pub fn scripted() -> (Arc<Scripted>, Arc<Device>) {
    let sim = Scripted::new(RamDisk::new("SCRIPT", config()));
    let device = cam::attach((0, 1, 0), sim.clone());
    cam::settle();
    wait_until("/dev/qpass1 is there", || devfs::exists("qpass1"));
    (sim, device)
}

fn config() -> Config {
    Config {
        openings: 4,
        ..Config::default()
    }
}

/// What the SIM got of a READ(10), by opcode, until it was through: once, once
/// more, or with a command of CAM's own between.
const ONCE: &[u8] = &[0x28];
const AGAIN: &[u8] = &[0x28, 0x28];
const STARTED: &[u8] = &[0x28, 0x1b, 0x28];
const TESTED: &[u8] = &[0x28, 0x00, 0x28];

/// How a command ends, and what is done about it when the program asks for
/// recovery.
const ENDINGS: &[(Ending, &[u8])] = &[
    (Ending::Status(sys::CAM_REQ_CMP_ERR, true), AGAIN),
    (Ending::Status(sys::CAM_REQ_CMP_ERR, false), AGAIN),
    (Ending::Status(sys::CAM_REQ_TERMIO, true), AGAIN),
    (Ending::Status(sys::CAM_REQUEUE_REQ, true), AGAIN),
    (Ending::Status(sys::CAM_REQUEUE_REQ, false), AGAIN),
    (Ending::Status(sys::CAM_SCSI_BUS_RESET, true), AGAIN),
    (Ending::Status(sys::CAM_BDR_SENT, true), AGAIN),
    (Ending::Status(sys::CAM_BUSY, true), AGAIN),
    (Ending::Status(sys::CAM_RESRC_UNAVAIL, true), AGAIN),
    (Ending::Status(sys::CAM_SEL_TIMEOUT, true), AGAIN),
    (Ending::Status(sys::CAM_CMD_TIMEOUT, true), AGAIN),
    (Ending::Status(sys::CAM_UNEXP_BUSFREE, true), AGAIN),
    (Ending::Status(sys::CAM_UNCOR_PARITY, true), AGAIN),
    (Ending::Status(sys::CAM_DATA_RUN_ERR, true), AGAIN),
    (Ending::Status(sys::CAM_UNREC_HBA_ERROR, true), AGAIN),
    (Ending::Status(sys::CAM_ATA_STATUS_ERROR, true), AGAIN),
    (Ending::Status(sys::CAM_NVME_STATUS_ERROR, true), AGAIN),
    (Ending::Status(sys::CAM_SMP_STATUS_ERROR, true), AGAIN),
    (Ending::Status(sys::CAM_AUTOSENSE_FAIL, true), ONCE),
    (Ending::Status(sys::CAM_UA_ABORT, true), ONCE),
    (Ending::Status(sys::CAM_MSG_REJECT_REC, true), ONCE),
    (Ending::Status(sys::CAM_REQ_INVALID, true), ONCE),
    (Ending::Status(sys::CAM_PROVIDE_FAIL, true), ONCE),
    (Ending::Status(sys::CAM_REQ_TOO_BIG, true), ONCE),
    (Ending::Status(sys::CAM_LUN_INVALID, true), ONCE),
    (Ending::Requeue, AGAIN),
    (Ending::Scsi(sys::SCSI_STATUS_BUSY), AGAIN),
    (Ending::Scsi(sys::SCSI_STATUS_QUEUE_FULL), AGAIN),
    (Ending::Scsi(sys::SCSI_STATUS_RESERV_CONFLICT), ONCE),
    // RECOVERED ERROR, NOT READY, MEDIUM ERROR, ILLEGAL REQUEST, UNIT ATTENTION,
    // DATA PROTECT, ABORTED COMMAND.
    (Ending::Sense(1, 0x17, 1), ONCE),
    (Ending::Sense(2, 4, 1), TESTED),
    (Ending::Sense(2, 4, 2), STARTED),
    (Ending::Sense(2, 4, 3), ONCE),
    (Ending::Sense(2, 0x3a, 0), ONCE),
    (Ending::Sense(3, 0x11, 0), AGAIN),
    (Ending::Sense(5, 0x20, 0), ONCE),
    (Ending::Sense(6, 0x29, 0), AGAIN),
    (Ending::Sense(6, 0x2a, 1), AGAIN),
    (Ending::Sense(7, 0x27, 0), ONCE),
    (Ending::Sense(0xb, 0x47, 0), AGAIN),
];

fn status_of(ending: Ending) -> u32 {
    match ending {
        Ending::Status(status, _) => status,
        Ending::Requeue => sys::CAM_REQUEUE_REQ,
        _ => sys::CAM_SCSI_STATUS_ERROR,
    }
}

fn every_error_ends_as_cam_says_and_lets_the_queue_go() {
    let (mut machine, module) = boot(Config::default());
    let (sim, device) = scripted();
    let fd = machine.open("/dev/qpass1", RDWR).expect("open");
    let mut command = Command::new(&mut machine, 512);
    for (ending, when_asked) in ENDINGS {
        for bits in 0..8 {
            let (recover, keep_frozen, synchronous) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
            if !recover && status_of(*ending) == sys::CAM_SEL_TIMEOUT {
                // The device is lost by it.
                continue;
            }
            let what = format!("{ending:?}, {recover} {keep_frozen} {synchronous}");
            command.rw10(false, 0, 1);
            if recover {
                command.hdr().flags |= sys::CAM_PASS_ERR_RECOVER;
            }
            if keep_frozen {
                command.hdr().flags &= !sys::CAM_DEV_QFRZDIS;
            }
            sim.write(&[*ending]);
            if synchronous {
                command.send(&mut machine, fd).expect("send");
            } else {
                queue_and_get(&mut machine, fd, &command);
            }
            let (seen, left) = sim.take();
            let seen: Vec<u8> = seen.iter().map(|s| s.0).collect();
            // SF_NO_RETRY is nothing to a SCSI status.
            let anyway = matches!(ending, Ending::Scsi(_));
            let came: &[u8] = if recover || anyway { when_asked } else { ONCE };
            assert_eq!((&seen[..], left), (came, 0), "{what}");
            let status = if came == ONCE {
                status_of(*ending)
            } else {
                sys::CAM_REQ_CMP
            };
            assert_eq!(command.ended().status, status, "{what}");
            wait_until("the queue is let go", || cam::counts(&device).frozen == 0);
            let took = cam::neighbour_reads(&device, Duration::from_secs(1));
            assert!(took.is_some(), "{what}: its neighbour waits");
            sim.take();
        }
    }
    assert_eq!(cam::take_noise(), []);
    machine.close(fd);
    machine.unload(module);
}

/// Nobody asked for a retry: CAM takes the device for gone.
fn a_selection_timeout_loses_the_device() {
    let (mut machine, module) = boot(Config::default());
    let (sim, device) = scripted();
    let fd = machine.open("/dev/qpass1", RDWR).expect("open");
    let mut command = Command::new(&mut machine, 512);
    command.rw10(false, 0, 1);
    sim.write(&[Ending::Status(sys::CAM_SEL_TIMEOUT, true)]);
    command.queue(&mut machine, fd).expect("queue");
    wait_until("the node goes", || !devfs::exists("qpass1"));
    assert_eq!(command.queue(&mut machine, fd), Err(ENXIO));
    machine.close(fd);
    cam::wait_free(&device);
    device.check_idle();
    machine.unload(module);
}

/// While CAM recovers, the CCB is a TEST UNIT READY of CAM's own, with CAM's own
/// flags and callback, again and again.
fn a_recovery_command_borrows_the_ccb_and_gives_it_back() {
    let (mut machine, module) = boot(Config::default());
    let (sim, device) = scripted();
    let fd = machine.open("/dev/qpass1", RDWR).expect("open");
    let mut command = Command::new(&mut machine, 512);
    command.rw10(false, 0, 1);
    command.hdr().flags |= sys::CAM_PASS_ERR_RECOVER;
    command.set_private(0, 0x1234_5678);
    let flags = command.hdr().flags;
    let becoming_ready = Ending::Sense(2, 4, 1);
    sim.write(&[becoming_ready; 6]);
    queue_and_get(&mut machine, fd, &command);
    assert_eq!(command.ended().status, sys::CAM_REQ_CMP);
    assert_eq!(command.private(0), 0x1234_5678, "the program's own");
    assert_eq!(command.hdr().flags, flags);
    let (seen, left) = sim.take();
    let seen: Vec<u8> = seen.iter().map(|s| s.0).collect();
    assert_eq!((&seen[..], left), (&[0x28, 0, 0, 0, 0, 0, 0, 0x28][..], 0));
    wait_until("the queue is let go", || cam::counts(&device).frozen == 0);
    machine.close(fd);
    machine.unload(module);
}

fn a_frozen_device_is_seen_by_its_neighbour() {
    let (machine, module) = boot(Config::default());
    let device = machine.device().clone();
    cam::freeze(&device);
    let took = cam::neighbour_reads(&device, Duration::from_millis(50));
    assert_eq!(took, None, "frozen");
    cam::unfreeze(&device);
    wait_until("it comes late", || cam::counts(&device).active == 0);
    device.wait_returned();
    cam::all_neighbours_read();
    machine.unload(module);
}

fn a_sim_that_freezes_its_queue_holds_commands_up_and_no_more() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 512);
    command.rw10(false, 0, 1);
    cam::freeze_simq(machine.device());
    command.queue(&mut machine, fd).expect("queue");
    assert_eq!(machine.poll(fd, POLLIN, 20), Ok(0), "it waits");
    assert_eq!(cam::counts(machine.device()).waiting, 1);
    cam::release_simq(machine.device());
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    command.get(&mut machine, fd).expect("get");
    assert_eq!(command.ended().status, sys::CAM_REQ_CMP);
    assert_eq!(cam::take_noise(), []);
    machine.close(fd);
    machine.unload(module);
}
