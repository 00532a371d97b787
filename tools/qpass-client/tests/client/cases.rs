//! The library on qpass.ko in the user-mode kernel, which is booted once in a
//! process: each case has a process of its own, which ends with status 70 if
//! the module or the kernel is left with anything.

use libtest_mimic::{Arguments, Failed, Trial};
use qpass_client::{
    Cancel, Command, Device, DeviceStatus, Errno, Failure, Kernel, Method, Queue, State, nodes,
    umode, users,
};
use std::{
    process,
    sync::Arc,
    time::{Duration, Instant},
};

const CASES: &[(&str, fn())] = &[
    ("what_is_written_is_read", what_is_written_is_read),
    ("identity_names_the_device", identity_names_the_device),
    ("errors_carry_sense", errors_carry_sense),
    ("refused_commands_come_back", refused_commands_come_back),
    (
        "more_than_the_limit_goes_in_turns",
        more_than_the_limit_goes_in_turns,
    ),
    (
        "a_full_queue_gives_the_command_back",
        a_full_queue_gives_the_command_back,
    ),
    ("cancelled_commands_come_back", cancelled_commands_come_back),
    (
        "a_dropped_queue_takes_its_commands_back",
        a_dropped_queue_takes_its_commands_back,
    ),
    (
        "lists_and_cancels_of_the_device",
        lists_and_cancels_of_the_device,
    ),
    ("the_unprivileged_are_refused", the_unprivileged_are_refused),
    ("limits_are_read_and_set", limits_are_read_and_set),
    (
        "a_timeout_gives_what_there_is",
        a_timeout_gives_what_there_is,
    ),
    ("a_mounted_disk_is_used", a_mounted_disk_is_used),
    ("bad_names_are_refused", bad_names_are_refused),
    (
        "ata_and_nvme_commands_are_carried_out",
        ata_and_nvme_commands_are_carried_out,
    ),
    ("an_open_has_one_queue", an_open_has_one_queue),
    (
        "a_command_that_waits_holds_up_no_question",
        a_command_that_waits_holds_up_no_question,
    ),
    (
        "a_device_that_goes_gives_every_command_back",
        a_device_that_goes_gives_every_command_back,
    ),
    ("both_methods_count_the_same", both_methods_count_the_same),
];

pub fn main() {
    if let Ok(name) = std::env::var("CLIENT_CASE") {
        let mut all = CASES.iter().chain(crate::field::CASES);
        let case = all.find(|(n, _)| *n == name).expect("a case");
        case.1();
        return;
    }
    let arguments = Arguments::from_args();
    let trial = |(name, _): &(&'static str, fn())| {
        let name = *name;
        Trial::test(name, move || {
            let out = process::Command::new(std::env::current_exe()?)
                .env("CLIENT_CASE", name)
                .output()?;
            if out.status.success() {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&out.stderr).into_owned();
            Err(Failed::from(format!("{}\n{text}", out.status)))
        })
    };
    let all = CASES.iter().chain(crate::field::CASES);
    libtest_mimic::run(&arguments, all.map(trial).collect()).exit();
}

pub fn boot(description: &str) -> (Arc<dyn Kernel>, Device) {
    let kernel = umode::boot(description).expect("the kernel");
    let device = Device::open(&kernel, "qpass0").expect("open");
    (kernel, device)
}

fn all(queue: &mut Queue) -> Vec<(u64, Result<usize, Failure>)> {
    let mut found = Vec::new();
    while queue.in_flight() != 0 {
        let some = queue.reap(1, Duration::from_secs(20)).expect("reap");
        assert!(!some.is_empty(), "nothing came in 20 s");
        found.extend(some.into_iter().map(|c| (c.tag, c.result.map(|o| o.moved))));
    }
    found.sort_by_key(|(tag, _)| *tag);
    found
}

fn pattern(i: u64, len: usize) -> Vec<u8> {
    (0..len).map(|at| (i * 31 + at as u64 * 7) as u8).collect()
}

fn what_is_written_is_read() {
    let (_kernel, device) = boot("disk,unmapped,jitter=300us");
    for method in [Method::Enter, Method::Queue] {
        let mut queue = device.queue(32, method).expect("queue");
        // Below and above where data is not copied any more.
        for len in [512, 16384] {
            for write in [true, false] {
                let blocks = (len / 512) as u32;
                for i in 0..32 {
                    let mut buffer = device.buffer(len).expect("buffer");
                    let lba = i * u64::from(blocks);
                    let command = if write {
                        buffer.copy_from_slice(&pattern(i, len));
                        Command::write(lba, blocks, buffer, len)
                    } else {
                        Command::read(lba, blocks, buffer, len)
                    };
                    queue.submit(command, i).expect("room");
                }
                while queue.in_flight() != 0 {
                    for done in queue.reap(1, Duration::from_secs(20)).expect("reap") {
                        assert_eq!(done.result.map(|o| o.moved), Ok(len));
                        let buffer = done.command.into_buffer().expect("its buffer");
                        assert_eq!(&buffer[..], pattern(done.tag, len));
                    }
                }
            }
        }
    }
    let counters = device.info().expect("info").counters;
    assert_eq!((counters.submitted, counters.errors), (256, 0));
    assert!(counters.zerocopy_bytes != 0 && counters.copied_bytes != 0);
}

fn identity_names_the_device() {
    let (kernel, device) = boot("disk,maxio=256K;disk");
    assert_eq!(
        nodes(&kernel, "qpass").expect("nodes"),
        ["qpass0", "qpass1"]
    );
    let identity = device.identity().expect("identity");
    assert_eq!(identity.vendor, "QPASS");
    assert_eq!(identity.product, "RAM DISK");
    assert_eq!(identity.serial, "QP0000");
    assert_eq!(identity.peripherals, ["qpass0", "da0"]);
    assert_eq!((identity.bus, identity.target, identity.lun), (0, 0, 0));
    assert_eq!(identity.maxio, 256 << 10);
    let second = Device::open(&kernel, "/dev/qpass1").expect("by its path");
    assert_eq!(second.identity().expect("identity").target, 1);
}

fn errors_carry_sense() {
    let (_kernel, device) = boot("disk");
    let buffer = device.buffer(512).expect("buffer");
    let command = Command::read(1 << 40, 1, buffer, 512);
    let (_, outcome) = device.run(command).expect("sent");
    let error = outcome.expect_err("beyond the end");
    let sense = error.sense().expect("sense data");
    assert_eq!((sense.key, sense.asc, sense.ascq), (5, 0x21, 0));
    assert!(matches!(error.device, DeviceStatus::Scsi { status: 2, .. }));
    assert_eq!(
        error.to_string(),
        "SCSI error (CAM_SCSI_STATUS_ERROR): CHECK CONDITION: \
         ILLEGAL REQUEST, asc 21h/00h logical block address out of range"
    );
    // The same through a queue.
    for method in [Method::Enter, Method::Queue] {
        let mut queue = device.queue(1, method).expect("queue");
        queue.submit(Command::cdb(&[0xff]), 7).expect("room");
        let found = all(&mut queue);
        let [(7, Err(Failure::Failed(error)))] = &found[..] else {
            panic!("one error");
        };
        assert_eq!(error.sense().expect("sense").asc, 0x20);
    }
}

fn refused_commands_come_back() {
    let (_kernel, device) = boot("disk,maxio=64K");
    for method in [Method::Enter, Method::Queue] {
        let mut queue = device.queue(4, method).expect("queue");
        // The second is longer than the SIM takes.
        for (tag, len) in [(1, 512), (2, 128 << 10), (3, 512)] {
            let buffer = device.buffer(len).expect("buffer");
            let command = Command::read(0, (len / 512) as u32, buffer, len);
            queue.submit(command, tag).expect("room");
        }
        assert_eq!(
            all(&mut queue),
            [
                (1, Ok(512)),
                (2, Err(Failure::Refused(Errno::EINVAL))),
                (3, Ok(512))
            ]
        );
    }
}

fn more_than_the_limit_goes_in_turns() {
    let (_kernel, device) = boot("disk,jitter=200us");
    device.limits(Some(3), None).expect("limits");
    for method in [Method::Enter, Method::Queue] {
        let mut queue = device.queue(16, method).expect("queue");
        for tag in 0..16 {
            queue.submit(Command::test_unit_ready(), tag).expect("room");
        }
        let done = all(&mut queue);
        assert_eq!(done.len(), 16);
        assert!(done.iter().all(|(_, result)| *result == Ok(0)));
    }
}

fn a_full_queue_gives_the_command_back() {
    let (_kernel, device) = boot("disk");
    let mut queue = device.queue(1, Method::Enter).expect("queue");
    queue.submit(Command::test_unit_ready(), 1).expect("room");
    assert!(!queue.has_room());
    let back = queue.submit(Command::cdb(&[0x12, 0, 0, 0, 36, 0]), 2);
    assert_eq!(back.expect_err("full").data_len(), 0);
    assert_eq!(all(&mut queue), [(1, Ok(0))]);
    for depth in [0, 4097] {
        let refused = device.queue(depth, Method::Enter).err().expect("refused");
        assert_eq!(refused.errno, Errno::EINVAL);
    }
}

fn cancelled_commands_come_back() {
    let (_kernel, device) = boot("disk,dead,openings=2");
    for method in [Method::Enter, Method::Queue] {
        let mut queue = device.queue(8, method).expect("queue");
        for tag in 0..6 {
            queue.submit(Command::test_unit_ready(), tag).expect("room");
        }
        queue.flush().expect("flush");
        // These two do not even get to the driver.
        for tag in 6..8 {
            queue.submit(Command::test_unit_ready(), tag).expect("room");
        }
        queue.cancel().expect("cancel");
        let done = all(&mut queue);
        assert_eq!(done.len(), 8);
        for (tag, result) in done {
            match result {
                Err(Failure::Failed(error)) if tag < 6 => assert!(error.cam.is_aborted()),
                Err(Failure::Refused(Errno::ECANCELED)) if tag >= 6 => {}
                other => panic!("{tag}: {other:?}"),
            }
        }
    }
}

fn a_dropped_queue_takes_its_commands_back() {
    let (_kernel, device) = boot("disk,dead,openings=2");
    for method in [Method::Enter, Method::Queue] {
        let mut queue = device.queue(8, method).expect("queue");
        for tag in 0..8 {
            let buffer = device.buffer(8192).expect("buffer");
            let command = Command::read(0, 16, buffer, 8192);
            queue.submit(command, tag).expect("room");
        }
        queue.flush().expect("flush");
        drop(queue);
        let info = device.info().expect("info");
        assert_eq!((info.requests, info.bytes), (0, 0), "{method:?}");
    }
}

fn lists_and_cancels_of_the_device() {
    let (_kernel, device) = boot("disk,busy=3,openings=1");
    assert!(device.outstanding(false).expect("own").is_empty());
    let found = device.outstanding(true).expect("the device's");
    let states: Vec<_> = found.iter().map(|r| r.state).collect();
    assert_eq!(states, [State::Sent, State::Queued, State::Queued]);
    assert_eq!(found[1].command[..2], [0x28, 0]);
    assert!(found[1].reads && found[1].length == 4096);
    let last = &found[2];
    let one = device.cancel(Cancel::Request(last.open, last.number));
    assert_eq!(one.expect("one").dequeued, 1);
    let none = device.cancel(Cancel::Open(99)).expect_err("no such open");
    assert_eq!(none.errno, Errno::ENOENT);
    let rest = device.cancel(Cancel::All).expect("all");
    assert_eq!((rest.dequeued, rest.aborted, rest.done), (1, 1, 1));
}

fn the_unprivileged_are_refused() {
    let (kernel, device) = boot("disk,busy=1;unprivileged");
    let list = device.outstanding(true).expect_err("root's");
    assert_eq!(list.errno, Errno::EPERM);
    let cancel = device.cancel(Cancel::All).expect_err("root's");
    assert_eq!(cancel.errno, Errno::EPERM);
    let name = "kern.cam.qpass.max_requests";
    assert_eq!(kernel.sysctl(name, Some(1)), Err(Errno::EPERM));
    assert_eq!(kernel.sysctl(name, None), Ok(1024));
}

fn limits_are_read_and_set() {
    let (kernel, device) = boot("disk");
    let limits = device.limits(None, Some(1 << 20)).expect("limits");
    assert_eq!((limits.requests, limits.bytes), (1024, 1 << 20));
    let error = device.limits(Some(2000), None).expect_err("above");
    assert_eq!(error.errno, Errno::EINVAL);
    let name = "kern.cam.qpass.max_requests";
    assert_eq!(kernel.sysctl(name, Some(2000)), Ok(1024));
    let limits = device.limits(Some(2000), None).expect("not above now");
    assert_eq!(limits.requests, 2000);
    assert_eq!(kernel.sysctl("kern.cam.qpass.0.submitted", None), Ok(0));
    assert_eq!(kernel.sysctl("kern.no", None), Err(Errno::ENOENT));
}

fn a_timeout_gives_what_there_is() {
    let (_kernel, device) = boot("disk,dead");
    for method in [Method::Enter, Method::Queue] {
        let mut queue = device.queue(2, method).expect("queue");
        queue.submit(Command::test_unit_ready(), 1).expect("room");
        let begin = Instant::now();
        let found = queue.reap(1, Duration::from_millis(300)).expect("reap");
        assert!(found.is_empty() && begin.elapsed() >= Duration::from_millis(300));
        assert_eq!(queue.in_flight(), 1);
    }
}

fn a_mounted_disk_is_used() {
    let (kernel, device) = boot("disk,mounted=/mnt;disk");
    let found = users(&device).expect("users");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].mounted, ["/mnt"]);
    let free = Device::open(&kernel, "qpass1").expect("open");
    assert_eq!(users(&free), Ok(vec![]));
}

fn bad_names_are_refused() {
    let (kernel, _device) = boot("disk");
    for name in ["qpass1", "/dev/nothing", "a\0b", ""] {
        let error = Device::open(&kernel, name).err().expect("refused");
        assert_eq!(error.errno, Errno::ENOENT, "{name:?}");
        assert!(error.to_string().contains("open"));
    }
}

fn ata_and_nvme_commands_are_carried_out() {
    let (_kernel, device) = boot("disk");
    let buffer = || device.buffer(4096).expect("buffer");
    let data = pattern(3, 4096);
    let mut full = buffer();
    full.copy_from_slice(&data);
    let run = |command| {
        let (command, ended) = device.run(command).expect("sent");
        (command, ended.map(|outcome| outcome.moved))
    };
    let (_, outcome) = run(Command::ata_write(8, 8, full, 4096));
    assert_eq!(outcome, Ok(4096));
    let (command, outcome) = run(Command::ata_read(8, 8, buffer(), 4096));
    assert_eq!(outcome, Ok(4096));
    assert_eq!(&command.into_buffer().expect("data")[..], data);
    let (command, outcome) = run(Command::nvme_read(1, 8, 8, buffer(), 4096));
    assert_eq!(outcome, Ok(4096));
    assert_eq!(&command.into_buffer().expect("data")[..], data);
    let (command, outcome) = run(Command::nvme_identify(1, 0, buffer()));
    assert_eq!(outcome, Ok(4096));
    assert_eq!(
        &command.into_buffer().expect("data")[24..38],
        b"QPASS RAM DISK"
    );
    assert_eq!(run(Command::nvme_flush(1)).1, Ok(0));
    let (_, outcome) = run(Command::ata_smart(buffer()));
    let error = outcome.expect_err("not of this disk");
    assert_eq!(
        error.to_string(),
        "ATA error (CAM_ATA_STATUS_ERROR): status 0x51, error 0x04 command aborted, \
         count 0x0, lba 0x0, device 0x00"
    );
}

fn both_methods_count_the_same() {
    let (_kernel, device) = boot("disk");
    for (method, so_far) in [(Method::Enter, 10), (Method::Queue, 20)] {
        let mut queue = device.queue(10, method).expect("queue");
        for tag in 0..10 {
            queue.submit(Command::test_unit_ready(), tag).expect("room");
        }
        assert_eq!(all(&mut queue).len(), 10);
        let counters = device.info().expect("info").counters;
        assert_eq!((counters.submitted, counters.completed), (so_far, so_far));
    }
}

fn a_device_that_goes_gives_every_command_back() {
    let (kernel, device) = boot("disk,latency=1ms,vanish=700ms;disk,latency=1ms,vanish=2s");
    let second = Device::open(&kernel, "qpass1").expect("open");
    for (device, method) in [(device, Method::Enter), (second, Method::Queue)] {
        let mut queue = device.queue(16, method).expect("queue");
        let (mut submitted, mut back, mut good) = (0u64, 0u64, 0u64);
        let mut gone = false;
        let begin = Instant::now();
        let error = loop {
            assert!(begin.elapsed() < Duration::from_secs(20));
            while !gone && queue.has_room() {
                let buffer = device.buffer(4096).expect("buffer");
                let command = Command::read(0, 8, buffer, 4096);
                queue.submit(command, submitted).expect("room");
                submitted += 1;
            }
            match queue.reap(1, Duration::from_secs(5)) {
                Ok(found) => {
                    back += found.len() as u64;
                    gone |= found.iter().any(|c| c.result == Err(Failure::Lost));
                    good += found.iter().filter(|c| c.result.is_ok()).count() as u64;
                }
                Err(error) => break error,
            }
        };
        assert_eq!(error.errno, Errno::ENXIO, "{method:?}");
        assert!(good > 16, "{good}");
        assert_eq!((submitted, queue.in_flight()), (back, 0), "{method:?}");
    }
}

/// Two would reap each other's completions.
fn an_open_has_one_queue() {
    let (kernel, device) = boot("disk");
    let mut queue = device.queue(4, Method::Enter).expect("queue");
    let second = device.clone().queue(4, Method::Queue);
    assert_eq!(second.err().expect("refused").errno, Errno::EBUSY);
    let other = Device::open(&kernel, "qpass0").expect("open");
    let mut others = other.queue(4, Method::Queue).expect("its own");
    queue.submit(Command::test_unit_ready(), 1).expect("room");
    others.submit(Command::test_unit_ready(), 2).expect("room");
    assert_eq!(all(&mut queue), [(1, Ok(0))]);
    assert_eq!(all(&mut others), [(2, Ok(0))]);
    drop(queue);
    device.queue(4, Method::Queue).expect("after the first");
}

fn a_command_that_waits_holds_up_no_question() {
    let (_kernel, device) = boot("disk,dead,vanish=700ms");
    let waits = device.clone();
    let thread = std::thread::spawn(move || waits.run(Command::test_unit_ready()));
    let deadline = Instant::now() + Duration::from_secs(20);
    while device.info().expect("info").counters.outstanding != 1 {
        assert!(Instant::now() < deadline, "it is sent");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(!thread.is_finished());
    device.limits(None, None).expect("limits");
    device.outstanding(true).expect("list");
    // It ends when the disk is pulled.
    let ended = thread.join().expect("the thread");
    assert!(ended.map_or(true, |(_, outcome)| outcome.is_err()));
}
