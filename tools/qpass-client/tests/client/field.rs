//! Devices as people have met them: each answer is a script's, and each right value
//! that of a standard or of a tool that was mended. The rows are those of the field's
//! cases, see CHANGELOG.md.

use super::cases::boot;
use qpass_client::{
    Attribute, Command, CommandError, Device, DeviceStatus, Disk, DiskError, Errno, Failure,
    Flushed, Method, Outcome, Queue, decode::inquiry,
};
use std::{
    io::Write,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// Names and cases.
pub const CASES: &[(&str, fn())] = &[
    (
        "an_error_of_an_earlier_write_is_told",
        an_error_of_an_earlier_write_is_told,
    ),
    (
        "an_error_of_an_earlier_write_ends_a_flush",
        an_error_of_an_earlier_write_ends_a_flush,
    ),
    (
        "a_write_is_sent_again_and_says_so",
        a_write_is_sent_again_and_says_so,
    ),
    (
        "a_busy_disk_is_written_to_later",
        a_busy_disk_is_written_to_later,
    ),
    (
        "a_read_that_recovered_is_a_read",
        a_read_that_recovered_is_a_read,
    ),
    ("registers_are_had_every_way", registers_are_had_every_way),
    ("dword_0_is_had_every_way", dword_0_is_had_every_way),
    ("the_whole_nvme_status_is_had", the_whole_nvme_status_is_had),
    (
        "metadata_in_the_data_are_refused",
        metadata_in_the_data_are_refused,
    ),
    (
        "a_disk_of_28_bits_is_used_by_28",
        a_disk_of_28_bits_is_used_by_28,
    ),
    (
        "a_host_managed_disk_is_used_by_16_bytes",
        a_host_managed_disk_is_used_by_16_bytes,
    ),
    (
        "a_refused_flush_is_tried_the_other_way",
        a_refused_flush_is_tried_the_other_way,
    ),
    (
        "a_cache_that_refuses_is_no_missing_cache",
        a_cache_that_refuses_is_no_missing_cache,
    ),
    (
        "a_flush_behind_a_power_loss_is_no_flush",
        a_flush_behind_a_power_loss_is_no_flush,
    ),
    (
        "a_disk_without_a_cache_is_flushed",
        a_disk_without_a_cache_is_flushed,
    ),
    (
        "a_negative_residual_hides_nothing",
        a_negative_residual_hides_nothing,
    ),
    ("an_error_says_what_was_moved", an_error_says_what_was_moved),
    ("sizes_of_all_kinds_are_read", sizes_of_all_kinds_are_read),
    ("good_without_data_is_no_size", good_without_data_is_no_size),
    ("condition_met_is_success", condition_met_is_success),
    ("one_of_ones_own_is_cancelled", one_of_ones_own_is_cancelled),
    (
        "a_wait_ends_by_its_time_and_by_a_completion",
        a_wait_ends_by_its_time_and_by_a_completion,
    ),
    (
        "what_is_sent_again_needs_no_second_flush",
        what_is_sent_again_needs_no_second_flush,
    ),
    (
        "a_command_is_taken_back_when_it_is_told_to_stop",
        a_command_is_taken_back_when_it_is_told_to_stop,
    ),
    ("no_room_is_told", no_room_is_told),
    ("a_command_times_out", a_command_times_out),
    (
        "a_full_limit_is_waited_out_in_the_kernel",
        a_full_limit_is_waited_out_in_the_kernel,
    ),
    ("a_tape_tells_its_marks", a_tape_tells_its_marks),
    ("a_files_size_is_its_own", a_files_size_is_its_own),
];

/// A machine with one disk that answers as a script says.
fn scripted(options: &str, script: &str) -> (std::sync::Arc<dyn qpass_client::Kernel>, Device) {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(script.as_bytes()).expect("written");
    boot(&format!("disk{options},script={}", file.path().display()))
}

/// Through a queue, one command.
fn queued(device: &Device, method: Method, command: Command) -> Result<Outcome, Failure> {
    let mut queue = device.queue(4, method).expect("queue");
    queue.submit(command, 1).expect("room");
    one(&mut queue)
}

fn one(queue: &mut Queue) -> Result<Outcome, Failure> {
    let mut found = queue.reap(1, Duration::from_secs(20)).expect("reap");
    found.pop().expect("it comes back").result
}

fn failed(result: Result<Outcome, Failure>) -> CommandError {
    match result {
        Err(Failure::Failed(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// The ways to send a command: CAMIOCOMMAND, CAMIOQUEUE, QPIOC_ENTER.
fn each_way(device: &Device, command: impl Fn() -> Command) -> Vec<Result<Outcome, Failure>> {
    let (_, ended) = device.run(command()).expect("sent");
    let mut all = vec![ended.map_err(Failure::Failed)];
    for method in [Method::Queue, Method::Enter] {
        all.push(queued(device, method, command()));
    }
    all
}

fn write(device: &Device, lba: u64) -> Command {
    let buffer = device.buffer(512).expect("buffer");
    Command::write(lba, 1, buffer, 512).recover(4)
}

const DEFERRED: &str = "sense f1 00 03 00 00 00 00 0a 00 00 00 00 0c 00\n";

/// Row 12: SPC-6, 4.4.7. CAM sends the command again, and the lost one is forgotten.
fn an_error_of_an_earlier_write_is_told() {
    let script = format!("on scsi 2a 00 00 00 00 80\n skip 1\n times 1\n{DEFERRED}");
    let (_kernel, device) = scripted("", &script);
    assert!(device.run(write(&device, 128)).expect("sent").1.is_ok());
    let (_, ended) = device.run(write(&device, 128)).expect("sent");
    let error = ended.expect_err("an earlier write is lost");
    assert!(error.is_deferred() && error.moved == 0, "{error}");
    assert!(
        error.to_string().contains("of an earlier command"),
        "{error}"
    );
    // Once; the next one is carried out.
    assert!(queued(&device, Method::Enter, write(&device, 128)).is_ok());
}

/// Row 14, through the queues.
fn an_error_of_an_earlier_write_ends_a_flush() {
    let script = format!("on scsi 35\n times 3\n{DEFERRED}");
    let (_kernel, device) = scripted("", &script);
    for result in each_way(&device, || Command::synchronize_cache().recover(4)) {
        assert!(failed(result).is_deferred());
    }
    let disk = Disk::probe(device).expect("a disk");
    assert_eq!(disk.flush().expect("the fourth"), Flushed::Done);
}

/// What the device said is kept: power may have gone, and a cache with it.
fn a_write_is_sent_again_and_says_so() {
    let (_kernel, device) = boot("disk,attention=2");
    let (_, ended) = device.run(write(&device, 0)).expect("sent");
    let outcome = ended.expect("sent again");
    assert_eq!((outcome.moved, outcome.earlier.len()), (512, 2));
    assert!(outcome.lost_power());
    let plain = queued(&device, Method::Enter, write(&device, 0)).expect("good");
    assert!(plain.earlier.is_empty() && !plain.lost_power());
}

fn a_busy_disk_is_written_to_later() {
    let script = "on scsi 2a\n times 2\n status 08\n";
    let (_kernel, device) = scripted("", script);
    for method in [Method::Enter, Method::Queue] {
        let begin = Instant::now();
        let outcome = queued(&device, method, write(&device, 0)).expect("good in the end");
        assert_eq!(outcome.moved, 512);
        if method == Method::Enter {
            assert!(begin.elapsed() >= Duration::from_millis(900), "it was busy");
        }
    }
    let (_, ended) = device.run(write(&device, 0)).expect("sent");
    assert!(ended.is_ok());
}

/// Row 11: SPC-6, RECOVERED ERROR: the command was completed.
fn a_read_that_recovered_is_a_read() {
    let script = "on scsi 28\n do\n sense f0 00 01 00 00 00 05 0a 00 00 00 00 17 01\n";
    let (_kernel, device) = scripted("", script);
    for result in each_way(&device, || {
        Command::read(0, 8, device.buffer(4096).expect("buffer"), 4096).recover(4)
    }) {
        let outcome = result.expect("a success");
        assert_eq!(outcome.moved, 4096);
        let remark = outcome.remark().expect("a remark").to_string();
        assert!(remark.contains("RECOVERED ERROR, asc 17h/01h"), "{remark}");
    }
}

/// Row 22: ACS-4, CHECK POWER MODE and SMART RETURN STATUS.
fn registers_are_had_every_way() {
    let script = "on ata e5\n registers count=80\non ata b0 da\n registers lba=2cf400\n";
    let (_kernel, device) = scripted(",ata", script);
    for result in each_way(&device, Command::ata_check_power) {
        assert_eq!(
            result.expect("good").registers().expect("registers").count,
            0x80
        );
    }
    for result in each_way(&device, Command::ata_smart_status) {
        let outcome = result.expect("good");
        assert_eq!(outcome.registers().expect("registers").lba, 0x2c_f400);
    }
    // Among reads that leave theirs in the kernel.
    let mut queue = device.queue(8, Method::Enter).expect("queue");
    for tag in 0..8 {
        let command = match tag {
            5 => Command::ata_check_power(),
            _ => Command::ata_read(tag, 1, device.buffer(512).expect("buffer"), 512),
        };
        queue.submit(command, tag).expect("room");
    }
    while queue.in_flight() != 0 {
        for done in queue.reap(1, Duration::from_secs(5)).expect("reap") {
            let outcome = done.result.expect("good");
            let count = outcome.registers().map(|r| r.count);
            assert_eq!(count, (done.tag == 5).then_some(0x80));
        }
    }
}

/// Row 23: Get Features, number of queues.
fn dword_0_is_had_every_way() {
    let (_kernel, device) = scripted(",nvme", "on admin 0a\n at 40 07\n dword0 000f000f\n");
    for result in each_way(&device, || Command::nvme_get_features(7, 0)) {
        let (dword0, status) = result.expect("good").nvme().expect("a completion");
        assert_eq!((dword0, status.is_success()), (0x000f_000f, true));
    }
}

/// Row 26.
fn the_whole_nvme_status_is_had() {
    let script = "on nvme 02\n times 3\n nvme 2/82 dnr more crd=2\non nvme 02\n nvme 3/02\n";
    let (_kernel, device) = scripted(",nvme", script);
    let read = || Command::nvme_read(1, 0, 1, device.buffer(4096).expect("buffer"), 512);
    for result in each_way(&device, read) {
        let error = failed(result);
        let (_, status) = error.nvme().expect("a completion");
        assert_eq!((status.sct, status.sc, status.retry_delay), (2, 0x82, 2));
        assert!(status.do_not_retry && status.more && error.moved == 0);
        assert!(error.to_string().contains("guard check error"), "{error}");
    }
    let error = failed(queued(&device, Method::Enter, read()));
    assert!(
        error.to_string().contains("asymmetric access inaccessible"),
        "{error}"
    );
}

/// Row 24: the controller would move 66560 bytes of a read of 65536.
fn metadata_in_the_data_are_refused() {
    let (_kernel, device) = scripted(",nvme", "namespace 25=01 26=11 132=08,00,09\n");
    match Disk::probe(device).err() {
        Some(error @ DiskError::Answer { .. }) => {
            assert!(error.to_string().contains("8 bytes of metadata"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

fn moves_every_byte(disk: &Disk) {
    let len = 4 * disk.block;
    let mut data = disk.device.buffer(len).expect("buffer");
    data.iter_mut()
        .enumerate()
        .for_each(|(i, b)| *b = (i * 7) as u8);
    let expected = data.to_vec();
    let (command, ended) = disk
        .device
        .run(disk.write(8, 4, data).recover(3))
        .expect("sent");
    assert_eq!(ended.expect("written").moved, len);
    let buffer = command.into_buffer().expect("buffer");
    let (command, ended) = disk
        .device
        .run(disk.read(8, 4, buffer).recover(3))
        .expect("sent");
    assert_eq!(ended.expect("read").moved, len);
    assert_eq!(&command.into_buffer().expect("data")[..len], expected);
}

/// Row 27: this disk aborts commands of 48 bits.
fn a_disk_of_28_bits_is_used_by_28() {
    let (_kernel, device) = boot("disk,ata,lba28,size=16M");
    let disk = Disk::probe(device).expect("a disk");
    assert_eq!((disk.blocks, disk.most_blocks()), (32768, 256));
    moves_every_byte(&disk);
    let (_, ended) = disk
        .device
        .run(disk.read(0, 256, disk.device.buffer(256 << 9).expect("buffer")))
        .expect("sent");
    assert_eq!(ended.expect("256 is 0").moved, 256 << 9);
    assert_eq!(disk.flush().expect("FLUSH CACHE"), Flushed::Done);
}

/// Rows 28 and 30: this disk refuses READ(10), WRITE(10) and SYNCHRONIZE CACHE(10), and
/// writes that are not at a zone's pointer.
fn a_host_managed_disk_is_used_by_16_bytes() {
    let (_kernel, device) = boot("disk,zoned=1M,size=16M");
    let disk = Disk::probe(device).expect("a disk");
    assert_eq!((disk.blocks, disk.zone), (32768, Some(2048)));
    assert!(disk.writes_in_order());
    moves_every_byte(&disk);
    assert_eq!(disk.flush().expect("SYNCHRONIZE CACHE(16)"), Flushed::Done);
    let buffer = || disk.device.buffer(512).expect("buffer");
    let (_, ended) = disk
        .device
        .run(disk.write(2050, 1, buffer()))
        .expect("sent");
    let error = ended.expect_err("not at the pointer");
    let sense = error.sense().expect("sense data");
    assert_eq!((sense.key, sense.asc, sense.ascq), (5, 0x21, 4));
    let (_, ended) = disk
        .device
        .run(disk.write(2048, 1, buffer()))
        .expect("sent");
    assert!(ended.is_ok());
}

const UNKNOWN: &str = "sense 70 00 05 00 00 00 00 0a 00 00 00 00 20 00\n";

/// Row 28: 35h refused says nothing of a cache.
fn a_refused_flush_is_tried_the_other_way() {
    let failing = "sense 70 00 03 00 00 00 00 0a 00 00 00 00 0c 00\n";
    let script = format!("on scsi 35\n{UNKNOWN}on scsi 91\n times 1\n{failing}");
    let (_kernel, device) = scripted("", &script);
    let disk = Disk::probe(device).expect("a disk");
    // It has come to 91h, which fails once and is sent again.
    assert_eq!(disk.flush().expect("flushed"), Flushed::Done);
}

fn a_cache_that_refuses_is_no_missing_cache() {
    let page = "data 00 12 00 00 00 00 00 00 08 12 04 00*17\n";
    let script = format!("on scsi 35\n{UNKNOWN}on scsi 91\n{UNKNOWN}on scsi 5a 00 08\n{page}");
    let (_kernel, device) = scripted("", &script);
    let disk = Disk::probe(device).expect("a disk");
    assert!(matches!(disk.flush(), Err(DiskError::Command { .. })));
}

/// A cache that has lost its power was not flushed.
fn a_flush_behind_a_power_loss_is_no_flush() {
    let script = "on scsi 35\n times 1\n sense 70 00 06 00 00 00 00 0a 00 00 00 00 29 01\n\
                  on scsi 35\n times 1\n sense 70 00 06 00 00 00 00 0a 00 00 00 00 2a 01\n";
    let (_kernel, device) = scripted("", script);
    let disk = Disk::probe(device).expect("a disk");
    assert!(matches!(disk.flush(), Err(DiskError::LostPower { .. })));
    // Mode parameters changed: nothing is lost by that.
    assert_eq!(disk.flush().expect("flushed"), Flushed::Done);
}

/// Row 37: bcachefs-tools#126, nanos#2184.
fn a_disk_without_a_cache_is_flushed() {
    let script = format!("on scsi 35\n{UNKNOWN}on scsi 91\n{UNKNOWN}");
    let (_kernel, device) = scripted("", &script);
    let disk = Disk::probe(device).expect("a disk");
    assert_eq!(disk.flush().expect("nothing to flush"), Flushed::NoCache);
}

/// Row 34: CAM; the calls agree.
fn a_negative_residual_hides_nothing() {
    let (_kernel, device) = scripted("", "on scsi 12\n data 41*36\n residual -60\n");
    for result in each_way(&device, || {
        Command::inquiry(None, device.buffer(36).expect("buffer"))
    }) {
        let outcome = result.expect("good");
        assert_eq!((outcome.moved, outcome.residual), (36, -60));
    }
}

/// Row 9: data and sense data together.
fn an_error_says_what_was_moved() {
    let (_kernel, device) = boot("disk,bad=3");
    for result in each_way(&device, || {
        Command::read(0, 8, device.buffer(4096).expect("buffer"), 4096)
    }) {
        let error = failed(result);
        assert_eq!(error.moved, 3 * 512);
        assert_eq!(error.sense().expect("sense").information, Some(3));
    }
}

/// Row 31, and formats of NVMe.
fn sizes_of_all_kinds_are_read() {
    let (kernel, device) = boot(
        "disk,block=4096,size=16M;disk,block=520,size=520K;disk,ata,block=4096,size=16M;\
         disk,nvme,block=4096,size=16M",
    );
    let open = |node| Device::open(&kernel, node).expect("open");
    for (device, block, blocks) in [
        (device, 4096, 4096),
        (open("qpass1"), 520, 1024),
        (open("qpass2"), 4096, 4096),
        (open("qpass3"), 4096, 4096),
    ] {
        let disk = Disk::probe(device).expect("a disk");
        assert_eq!((disk.block, disk.blocks), (block, blocks));
        moves_every_byte(&disk);
    }
}

/// Row 4, of READ CAPACITY.
fn good_without_data_is_no_size() {
    let (_kernel, device) = scripted("", "on scsi 25\n");
    let error = Disk::probe(device).err().expect("refused").to_string();
    assert!(error.contains("gave 0 bytes"), "{error}");
    assert_eq!(inquiry::Standard::parse(&[]), Err(inquiry::Bad::Nothing));
}

/// Row 15: PRE-FETCH (SBC-4).
fn condition_met_is_success() {
    let (_kernel, device) = scripted("", "on scsi 34\n status 04\n");
    for result in each_way(&device, || Command::cdb(&[0x34; 10])) {
        let outcome = result.expect("a success");
        assert_eq!(
            outcome.remark().expect("a remark").to_string(),
            "CONDITION MET"
        );
        assert!(matches!(
            outcome.device,
            DeviceStatus::Scsi { status: 4, .. }
        ));
    }
}

/// G3.
fn one_of_ones_own_is_cancelled() {
    let (_kernel, device) = scripted("", "on scsi 2f\n hang\n");
    for method in [Method::Enter, Method::Queue] {
        let mut queue = device.queue(4, method).expect("queue");
        for tag in 0..3 {
            let command = Command::cdb(&[0x2f, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            let command = command.attribute(Attribute::Ordered);
            queue.submit(command, tag).expect("room");
        }
        queue.flush().expect("flush");
        queue.submit(Command::test_unit_ready(), 3).expect("room");
        // One that has not got to the driver, and one that has.
        assert_eq!(queue.cancel_one(3).expect("staged").dequeued, 1);
        let sent = queue.cancel_one(1).expect("sent");
        assert_eq!(sent.dequeued + sent.aborted, 1, "{sent:?}");
        let none = queue.cancel_one(77).expect_err("no such tag");
        assert_eq!(none.errno, Errno::ENOENT);
        let mut back = Vec::new();
        while back.len() < 2 {
            queue
                .reap_into(&mut back, 1, Duration::from_secs(5))
                .expect("reap");
        }
        back.sort_by_key(|done| done.tag);
        assert_eq!((back[0].tag, back[1].tag), (1, 3));
        assert_eq!(queue.in_flight(), 2);
    }
}

/// G5: on every kernel.
fn a_wait_ends_by_its_time_and_by_a_completion() {
    let (_kernel, device) = scripted("", "on scsi 2f\n after 300ms\n");
    let mut queue = device.queue(1, Method::Enter).expect("queue");
    queue
        .submit(Command::cdb(&[0x2f, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 1)
        .expect("room");
    queue.flush().expect("flush");
    assert!(!queue.wait(Duration::from_millis(20)).expect("wait"));
    let begin = Instant::now();
    while !queue.wait(Duration::from_secs(5)).expect("wait") {
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "it is done after 300 ms"
        );
    }
    assert!(one(&mut queue).is_ok());
}

/// A program with a loop of its own waits for completions, and reaps what there is.
fn what_is_sent_again_needs_no_second_flush() {
    let unit = "sense 70 00 06 00 00 00 00 0a 00 00 00 00 29 02\n";
    let script = format!("on scsi 2a\n times 3\n {unit}on scsi 2a\n times 1\n status 08\n");
    let (_kernel, device) = scripted("", &script);
    for method in [Method::Enter, Method::Queue] {
        let mut queue = device.queue(2, method).expect("queue");
        queue.submit(write(&device, 0), 1).expect("room");
        queue.flush().expect("flush");
        let begin = Instant::now();
        let mut found = Vec::new();
        while queue.in_flight() != 0 {
            assert!(begin.elapsed() < Duration::from_secs(10), "{method:?}");
            queue.wait(Duration::from_secs(1)).expect("wait");
            queue
                .reap_into(&mut found, 0, Duration::ZERO)
                .expect("reap");
        }
        let outcome = found[0].result.as_ref().expect("good in the end");
        let tries = if method == Method::Enter { 3 } else { 0 };
        assert_eq!(outcome.earlier.len(), tries);
    }
}

/// C2: a device that does not answer.
fn a_command_is_taken_back_when_it_is_told_to_stop() {
    let (_kernel, device) = boot("disk,dead");
    let stops = AtomicBool::new(false);
    let begin = Instant::now();
    let ended = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            stops.store(true, Ordering::SeqCst);
        });
        device.run_until(Command::test_unit_ready(), &|| stops.load(Ordering::SeqCst))
    });
    let (_, ended) = ended.expect("it comes back");
    assert!(ended.expect_err("aborted").cam.is_aborted());
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(device.info().expect("info").counters.outstanding, 0);
}

/// B3: a limit that leaves no room is told, and the wait for it can be stopped.
fn no_room_is_told() {
    let (kernel, device) = boot("disk");
    let name = "kern.cam.qpass.max_requests";
    kernel.sysctl(name, Some(0)).expect("set");
    let device = Device::open(&kernel, device.name()).expect("open");
    let command = || Command::test_unit_ready().timeout(Duration::from_millis(300));
    let late = device.run_until(command(), &|| false);
    assert_eq!(late.expect_err("no room").errno, Errno::EAGAIN);
    let stopped = device.run_until(command(), &|| true);
    assert_eq!(stopped.expect_err("stopped").errno, Errno::ECANCELED);
}

/// E2: 100 us is a time, and a short one.
fn a_command_times_out() {
    let (_kernel, device) = boot("disk,dead");
    for time in [Duration::from_micros(100), Duration::from_millis(50)] {
        let command = || Command::test_unit_ready().timeout(time);
        for result in each_way(&device, command) {
            assert_eq!(failed(result).cam.name(), "CAM_CMD_TIMEOUT");
        }
    }
}

/// B2: at a limit a queue neither spins nor sleeps on the clock.
fn a_full_limit_is_waited_out_in_the_kernel() {
    let (_kernel, device) = boot("disk;kern.cam.qpass.device_max_requests=4");
    let mut queue = device.queue(16, Method::Enter).expect("queue");
    let begin = Instant::now();
    let (mut sent, mut back) = (0, 0);
    while back < 2000 {
        while sent < 2000 && queue.submit(Command::test_unit_ready(), sent).is_ok() {
            sent += 1;
        }
        back += queue.reap(1, Duration::from_secs(5)).expect("reap").len();
    }
    // With a sleep of 10 ms for each four it takes five seconds.
    assert!(
        begin.elapsed() < Duration::from_secs(3),
        "{:?}",
        begin.elapsed()
    );
}

/// Row 9, and markh794/mhvtl#115: SSC-5.
fn a_tape_tells_its_marks() {
    let (_kernel, device) = boot("disk,tape");
    let run = |command: Command| device.run(command).expect("sent").1;
    let mut buffer = device.buffer(80).expect("buffer");
    buffer.fill(b'A');
    let write = Command::cdb(&[0x0a, 0, 0, 0, 80, 0]).data_out(buffer);
    assert_eq!(run(write).expect("written").moved, 80);
    run(Command::cdb(&[0x10, 0, 0, 0, 1, 0])).expect("a filemark");
    run(Command::cdb(&[0x01, 0, 0, 0, 0, 0])).expect("rewound");
    let read = |len: u16, silent: u8| {
        let [high, low] = len.to_be_bytes();
        let buffer = device.buffer(len.into()).expect("buffer");
        run(Command::cdb(&[0x08, silent, 0, high, low, 0]).data_in(buffer))
    };
    let short = read(4096, 0).expect("a success");
    let sense = short.sense().expect("sense data");
    assert!(sense.incorrect_length);
    assert_eq!((short.moved, sense.residual()), (80, Some(4016)));
    let mark = read(4096, 0).expect("a success");
    assert!(mark.sense().expect("sense data").filemark && mark.moved == 0);
    let end = read(4096, 0).expect_err("blank");
    assert_eq!(end.sense().expect("sense data").key, 8);
    run(Command::cdb(&[0x01, 0, 0, 0, 0, 0])).expect("rewound");
    let long = read(16, 0).expect("a success");
    let sense = long.sense().expect("sense data");
    assert_eq!((long.moved, sense.residual()), (16, Some(-64)));
    run(Command::cdb(&[0x01, 0, 0, 0, 0, 0])).expect("rewound");
    let silent = read(4096, 2).expect("a success");
    assert_eq!((silent.moved, silent.sense()), (80, None));
}

/// A1: `list` cut an image of 100 MiB to 64.
fn a_files_size_is_its_own() {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(&[7; 100 << 10]).expect("written");
    let path = file.path().display().to_string();
    let (_kernel, device) = boot(&format!("disk={path}"));
    let disk = Disk::probe(device).expect("a disk");
    assert_eq!(disk.bytes(), 100 << 10);
    let len = || file.as_file().metadata().expect("there").len();
    moves_every_byte(&disk);
    assert_eq!(len(), 100 << 10);
    // It is this process's alone.
    let other = std::fs::File::open(file.path()).expect("open");
    assert!(other.try_lock().is_err(), "it is locked");
}
