//! What the driver got wrong once, where no other page has the test: each test
//! fails when the mend that it names is taken out.

use super::{
    enter::{Arrays, MS, enter, reads, with_tags},
    sims::{TAKEN, by_each_call},
    sims::{boot_open, end, end_one_of_many},
    transfers::{Protocol, build, entry, lenient, nvme, nvme_data},
    *,
};
use cam::Ending;
use ukernel::{
    busdma,
    model::{Aborts, Model},
    vm,
};

tests! {
    a_long_synchronous_transfer_reaches_the_device_aligned;
    a_user_supplied_ccb_gives_no_high_power_slot_back;
    no_flag_of_an_smp_or_mmc_command_reaches_the_sim_unasked;
    a_refusal_wakes_nobody;
    a_refused_request_keeps_no_other_thread_out;
    a_list_that_is_copied_in_the_end_goes_alone;
    a_signal_ends_the_wait_for_an_abort;
    abort_ccbs_that_are_not_answered_are_bounded;
    an_abort_ccb_is_freed_when_it_is_answered;
    a_kept_abort_ccb_is_freed_when_the_sim_has_left_it;
    a_command_of_a_closed_open_is_not_sent_again;
    a_command_cancelled_during_recovery_ends_as_aborted;
    a_retried_command_has_no_words_of_the_sims;
    a_sim_that_never_says_what_it_has_is_asked_all_the_same;
    no_word_of_a_users_payload_reaches_cam;
    target_mode_cannot_be_left_on;
    blocks_with_metadata_elsewhere_are_refused;
    blocks_of_another_namespace_are_refused;
    a_namespace_that_was_formatted_anew_is_asked_again;
    a_page_without_contents_is_not_made_dirty;
    an_abort_takes_one_of_several_with_the_same_ccb;
    the_callback_for_a_new_device_has_returned_when_the_module_goes;
    the_entry_of_a_driver_that_left_can_be_followed;
    a_cdb_by_pointer_is_one_of_scsis;
    a_namespace_with_larger_blocks_moves_no_more_than_there_is_room_for;
}

/// F1: what is longer than CAM copies is mapped where the process has it, and a
/// device gets an address of that alignment.
fn a_long_synchronous_transfer_reaches_the_device_aligned() {
    for (model, protocol) in [(Model::NVME, Protocol::Nvme), (Model::AHCI, Protocol::Ata)] {
        for unmapped in [false, true] {
            let (mut machine, module, fd) = boot_open(Config {
                unmapped,
                size: 2 << 20,
                ..Config::of(lenient(model))
            });
            let mut command = Command::new(&mut machine, 160 << 10);
            let mut random = fastrand::Rng::with_seed(1);
            for len in [66_048, 128 << 10] {
                for offset in [0, 1, 2, 3, 4, 5, 7, 8, 511, 512, 1111, 4095] {
                    for write in [false, true] {
                        let what = format!("{protocol:?}, {len} at {offset}, write: {write}");
                        let mut data = vec![0; len];
                        random.fill(&mut data);
                        let start = 4096 + offset;
                        let at = command.data.address() + start;
                        command.data.bytes_mut().fill(0xaa);
                        build(&mut command, protocol, write, at, len);
                        if write {
                            command.data.bytes_mut()[start..start + len].copy_from_slice(&data);
                            machine.disk().fill(0);
                        } else {
                            machine.disk().put(64 * 512, &data);
                        }
                        command.send(&mut machine, fd).expect("send");
                        let status = command.hdr().status & sys::CAM_STATUS_MASK;
                        assert_eq!(status, sys::CAM_REQ_CMP, "{what}");
                        let found = command.data.bytes();
                        assert!(found[start..start + len] == data, "{what}");
                        let around = found[..start].iter().chain(&found[start + len..]);
                        assert!(around.copied().all(|b| b == 0xaa), "{what}");
                        let found = machine.disk().contents(64 * 512, len);
                        assert!(found == data, "{what}: on the disk");
                    }
                }
            }
            end_one_of_many(machine, module, fd);
        }
        assert_eq!(busdma::bounced(), 0, "{}: busdma had to bounce", model.name);
    }
}

/// F2: CAM gives a slot back for whatever is done and has the flag.
fn a_user_supplied_ccb_gives_no_high_power_slot_back() {
    let (mut machine, module, fd) = boot_open(Config::default());
    let mut command = Command::new(&mut machine, 0);
    for synchronous in [false, true] {
        until_it_is_let_be();
        command.immediate(sys::XPT_REPROBE_LUN);
        command.hdr().flags = sys::CAM_HIGH_POWER;
        if synchronous {
            command.send(&mut machine, fd).expect("send");
        } else {
            queue_and_get(&mut machine, fd, &command);
        }
        assert_eq!(command.ended().status, sys::CAM_REQ_CMP);
        assert_eq!(command.hdr().flags, sys::CAM_HIGH_POWER, "it comes back");
    }
    end(machine, module, fd);
}

/// F2, N2: of the commands that have no CDB.
fn no_flag_of_an_smp_or_mmc_command_reaches_the_sim_unasked() {
    const PASSED: u32 = sys::CAM_DEV_QFRZDIS | sys::CAM_PASS_ERR_RECOVER;
    let refused = sys::CAM_UNLOCKED
        | sys::CAM_CDB_PHYS
        | sys::CAM_CDB_POINTER
        | sys::CAM_SENSE_PTR
        | sys::CAM_SENSE_PHYS;
    let (mut machine, module, fd) = boot_open(Config::default());
    let device = machine.device().clone();
    let mut command = Command::new(&mut machine, 8192);
    let data = command.data.address();
    for bit in 0..32 {
        let flag = 1u32 << bit;
        if flag & (refused | PASSED | sys::CAM_DIR_MASK | sys::CAM_DATA_MASK) != 0 {
            continue;
        }
        for is_mmc in [false, true] {
            if is_mmc {
                formats::mmc(&mut command, 18, sys::CAM_DIR_IN, 4096);
            } else {
                command.immediate(sys::XPT_SMP_IO);
                // SAFETY: plain data.
                let io = unsafe { &mut command.ccb.ccb_mut().smpio };
                (io.smp_request, io.smp_request_len) = (data as *mut u8, 8);
                (io.smp_response, io.smp_response_len) = ((data + 4096) as *mut u8, 60);
            }
            command.hdr().flags |= flag;
            let (asked, count) = (command.hdr().flags, cam::last_sent(&device).1);
            command.send(&mut machine, fd).expect("send");
            let (sent, now) = cam::last_sent(&device);
            assert_eq!(now, count + 1, "it is sent");
            assert_eq!(sent & flag, 0, "{flag:#x}, MMC: {is_mmc}");
            assert_eq!(command.hdr().flags, asked, "it comes back");
        }
    }
    end(machine, module, fd);
}

/// H1: a thread that waits for room sleeps on while others are refused.
fn a_refusal_wakes_nobody() {
    let (machine, module) = boot(Config::default());
    let process = machine.process();
    let fd = process.open(NODE, RDWR).expect("open");
    let mut sys = Shared(&machine);
    control::limit(&mut sys, fd, 0, 4096).expect("limit");
    let commands = reads(&mut sys, 3);
    commands[0].queue(&mut sys, fd).expect("queue");
    wait_until("it is done", || sysctl::value("0.outstanding") == Some(0));
    let mut arrays = Arrays::new(&mut sys);
    arrays.submit(&with_tags(&commands[1..2]));
    let mut call = arrays.call(1, 0, 0);
    call.flags = sys::QPASS_ENTER_WAIT_ROOM;
    call.timeout = 20_000 * MS;
    std::thread::scope(|scope| {
        let machine = &machine;
        let waiting = scope.spawn(move || enter(&mut Shared(machine), fd, call));
        wait_until("the call sleeps", || lock::catching() == 1);
        std::thread::sleep(Duration::from_millis(20));
        let before = lock::sleeps();
        for _ in 0..20 {
            assert_eq!(commands[2].queue(&mut sys, fd), Err(EAGAIN));
        }
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(lock::sleeps(), before, "it was woken");
        commands[0].get(&mut sys, fd).expect("get");
        assert_eq!(waiting.join().expect("joined"), Ok((1, 0, 0, 0)));
    });
    process.close(fd);
    machine.unload(module);
}

/// H1: one thread is refused for the device's bytes again and again; the requests
/// of another one, on the same open or not, are always within the limits. In single
/// steps, so that whatever a refusal leaves behind for an instant is seen.
fn a_refused_request_keeps_no_other_thread_out() {
    let (machine, module) = boot(Config::default());
    let process = machine.process();
    let mut sys = Shared(&machine);
    let [hog, refused, other] = [(); 3].map(|()| process.open(NODE, RDWR).expect("open"));
    let commands = reads(&mut sys, 2);
    // It has the device's bytes.
    sysctl::set("device_max_bytes", 4096);
    commands[0].queue(&mut sys, hog).expect("queue");
    wait_until("it is done", || sysctl::value("0.outstanding") == Some(0));
    let again = commands[1].ccb.address();
    for (fd, device_limit, rounds) in [(refused, 1024, 120), (other, 2, 60)] {
        sysctl::set("device_max_requests", device_limit);
        control::limit(&mut sys, fd, 1, 0).expect("limit");
        let stop = AtomicBool::new(false);
        let (kept_out, _) = ukernel::count::count(|| {
            std::thread::scope(|scope| {
                let (machine, stop) = (&machine, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::SeqCst) {
                        let queue = sys::QPC_CAMIOQUEUE;
                        let answer = machine.process().ioctl(refused, queue, again);
                        assert_eq!(answer, Err(EAGAIN));
                    }
                });
                let mut command = Command::new(&mut sys, 0);
                let mut kept_out = 0;
                for _ in 0..rounds {
                    command.immediate(sys::XPT_NOOP);
                    match command.queue(&mut sys, fd) {
                        Ok(()) => command.get(&mut sys, fd).expect("get"),
                        Err(_) => kept_out += 1,
                    }
                }
                stop.store(true, Ordering::SeqCst);
                kept_out
            })
        });
        assert_eq!(kept_out, 0, "refused because of a request that was refused");
    }
    for fd in [hog, refused, other] {
        process.close(fd);
    }
    machine.unload(module);
}

/// H1b: it was charged for pages, and takes more.
fn a_list_that_is_copied_in_the_end_goes_alone() {
    let (mut machine, module) = boot(Config {
        unmapped: true,
        ..Config::default()
    });
    let fd = machine.open(NODE, RDWR).expect("open");
    control::limit(&mut machine, fd, 0, 512).expect("limit");
    let mut command = Command::new(&mut machine, 65536);
    let mut list = conform::sys::Memory::new(&mut machine, 4096);
    for gap in [0, 512] {
        command.rw10(false, 0, 16);
        command.list(&mut list, 0, gap, &[4096, 4096]);
        command.queue(&mut machine, fd).expect("it is alone");
        let mut other = Command::new(&mut machine, 512);
        other.rw10(false, 0, 1);
        assert_eq!(other.queue(&mut machine, fd), Err(EAGAIN));
        assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
        command.get(&mut machine, fd).expect("get");
    }
    machine.close(fd);
    machine.unload(module);
}

const EINTR: i32 = sys::EINTR as i32;
const EINVAL: i32 = sys::EINVAL as i32;

/// A read that the disk has and does not end, and cannot give back.
fn stuck_read(model: Model) -> (Machine, Module, i32, Command) {
    let (mut machine, module, fd) = boot_open(Config::of(model));
    machine.disk().stuck.store(true, Ordering::SeqCst);
    machine.disk().cannot_abort.store(true, Ordering::SeqCst);
    let mut read = Command::new(&mut machine, 8192);
    read.rw10(false, 0, 16);
    read.queue(&mut machine, fd).expect("queue");
    (machine, module, fd, read)
}

/// The read is over, and so is the machine.
fn unstick_and_end(mut machine: Machine, module: Module, fd: i32, read: Command) {
    machine.disk().unstick();
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    read.get(&mut machine, fd).expect("get");
    end(machine, module, fd);
}

/// H2: whoever waits for a SIM can be killed.
fn a_signal_ends_the_wait_for_an_abort() {
    let (machine, module, fd, read) = stuck_read(Model::ISCSI_SILENT);
    let at = read.ccb.address();
    for by_abort in [false, true] {
        let start = Instant::now();
        std::thread::scope(|scope| {
            let machine = &machine;
            let waiting = scope.spawn(move || {
                let mut sys = Shared(machine);
                if !by_abort {
                    return control::cancel(&mut sys, fd, at).map(|_| 0);
                }
                let mut abort = Command::new(&mut sys, 0);
                abort.immediate(sys::XPT_ABORT);
                abort.ccb.ccb_mut().cab.abort_ccb = at as *mut sys::ccb;
                abort.send(&mut sys, fd)?;
                Ok(abort.hdr().status & sys::CAM_STATUS_MASK)
            });
            wait_until("the call waits", || {
                lock::sleeps() > 0 || lock::catching() > 0
            });
            std::thread::sleep(Duration::from_millis(50));
            lock::pend(true);
            let answer = waiting.join().expect("joined");
            lock::pend(false);
            match by_abort {
                false => assert_eq!(answer, Err(EINTR)),
                true => assert_eq!(answer, Ok(sys::CAM_UA_ABORT)),
            }
        });
        assert!(start.elapsed() < Duration::from_secs(2), "it waits on");
    }
    unstick_and_end(machine, module, fd, read);
}

/// CCBs of CAM's that are allocated.
fn ccbs() -> usize {
    memory::malloc_live("CAM CCB")
}

/// H2: a program that cancels in a loop, and does not wait for the SIM's answers.
fn abort_ccbs_that_are_not_answered_are_bounded() {
    let (mut machine, module, fd, read) = stuck_read(Model::VIRTIO_SLOW);
    let before = ccbs();
    lock::pend(true);
    let mut most = 0;
    for _ in 0..600 {
        // It is interrupted; or nothing is sent, and it is not.
        let answer = control::cancel(&mut machine, fd, read.ccb.address());
        assert!(
            matches!(answer, Err(EINTR) | Ok([0, 0, 1, 0])),
            "{answer:?}"
        );
        most = most.max(ccbs() - before);
    }
    lock::pend(false);
    assert!((30..100).contains(&most), "{most} abort CCBs");
    assert_ne!(machine.disk().answer_aborts(), 0);
    unstick_and_end(machine, module, fd, read);
}

/// Nobody calls the driver in the meantime.
fn an_abort_ccb_is_freed_when_it_is_answered() {
    let (mut machine, module, fd, read) = stuck_read(Model::VIRTIO_SLOW);
    let before = ccbs();
    lock::pend(true);
    for _ in 0..3 {
        let answer = control::cancel(&mut machine, fd, read.ccb.address());
        assert_eq!(answer, Err(EINTR));
    }
    lock::pend(false);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(ccbs(), before + 3, "the SIM has them");
    assert_eq!(machine.disk().answer_aborts(), 3);
    wait_until("they are freed", || ccbs() == before);
    unstick_and_end(machine, module, fd, read);
}

/// M3: the same as of a CCB that was waited for: the SIM has written the status,
/// and reads the CCB.
fn a_kept_abort_ccb_is_freed_when_the_sim_has_left_it() {
    let (mut machine, module, fd, read) = stuck_read(Model {
        aborts: Aborts::ReadsOn(Duration::from_millis(700)),
        ..Model::VIRTIO
    });
    let before = ccbs();
    // The SIM may have answered before the first look: then there is nothing to keep.
    let is_kept = (0..20).any(|_| {
        lock::pend(true);
        let answer = control::cancel(&mut machine, fd, read.ccb.address());
        lock::pend(false);
        wait_until("it is freed", || ccbs() == before);
        answer == Err(EINTR)
    });
    assert!(is_kept, "it does not wait for the answer");
    std::thread::sleep(Duration::from_millis(50));
    unstick_and_end(machine, module, fd, read);
}

/// H4: nobody waits for it any more, and retries are for those who do.
fn a_command_of_a_closed_open_is_not_sent_again() {
    let (mut machine, module) = boot(Config::default());
    let device = machine.device().clone();
    let fd = machine.open(NODE, RDWR).expect("open");
    machine.disk().stuck.store(true, Ordering::SeqCst);
    let mut command = Command::new(&mut machine, 512);
    command.rw10(true, 0, 1);
    command.hdr().flags |= sys::CAM_PASS_ERR_RECOVER;
    command.hdr().retry_count = 5;
    let (_, before) = cam::last_sent(&device);
    command.queue(&mut machine, fd).expect("queue");
    machine.close(fd);
    machine.disk().unit_attentions.store(1, Ordering::SeqCst);
    machine.disk().unstick();
    wait_until("it is over", || sysctl::value("0.outstanding") == Some(0));
    assert_eq!(cam::last_sent(&device).1, before + 1, "it is sent once");
    assert_eq!(cam::counts(&device).frozen, 0);
    machine.unload(module);
}

/// H4: what CAM still sends in the CCB is another command, whose end is not the
/// cancelled one's.
fn a_command_cancelled_during_recovery_ends_as_aborted() {
    let (mut machine, module) = boot(Config::default());
    let (sim, device) = recovery::scripted();
    let fd = machine.open("/dev/qpass1", RDWR).expect("open");
    let mut cancelled = 0;
    for round in 0..10 {
        let mut command = Command::new(&mut machine, 512);
        command.rw10(true, 0, 1);
        command.hdr().flags |= sys::CAM_PASS_ERR_RECOVER;
        command.hdr().retry_count = 5;
        sim.write(&[Ending::Sense(2, 4, 1); 4]);
        let (_, before) = cam::last_sent(&device);
        command.queue(&mut machine, fd).expect("queue");
        wait_until("CAM asks", || cam::last_sent(&device).1 > before + 1);
        std::thread::sleep(Duration::from_millis(round % 3));
        let [_, aborted, ..] =
            control::cancel(&mut machine, fd, command.ccb.address()).unwrap_or_default();
        assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
        command.get(&mut machine, fd).expect("get");
        if aborted == 1 {
            cancelled += 1;
            let ended = command.ended();
            assert_eq!(ended.status, sys::CAM_REQ_ABORTED);
            assert_eq!(ended.resid, 512, "nothing was moved");
        }
        sim.take();
        wait_until("the queue is let go", || cam::counts(&device).frozen == 0);
    }
    assert!(cancelled > 0, "none was cancelled in time");
    machine.close(fd);
    machine.unload(module);
}

/// M4: what the SIM has left in the header names another command by then.
fn a_retried_command_has_no_words_of_the_sims() {
    let (mut machine, module) = boot(Config::default());
    let (sim, device) = recovery::scripted();
    let fd = machine.open("/dev/qpass1", RDWR).expect("open");
    for ending in [
        Ending::Status(sys::CAM_BUSY, true),
        Ending::Status(sys::CAM_REQ_CMP_ERR, true),
        Ending::Requeue,
        Ending::Sense(2, 4, 1),
        Ending::Sense(6, 0x29, 0),
    ] {
        let mut command = Command::new(&mut machine, 512);
        command.rw10(true, 0, 1);
        command.hdr().flags |= sys::CAM_PASS_ERR_RECOVER;
        sim.write(&[ending]);
        queue_and_get(&mut machine, fd, &command);
        assert_eq!(command.ended().status, sys::CAM_REQ_CMP, "{ending:?}");
        assert_eq!(sim.count(0x2a), 2, "{ending:?}: it was sent again");
        assert!(!cam::had_words(&device), "{ending:?}");
        sim.take();
    }
    machine.close(fd);
    machine.unload(module);
}

/// M4: after a while it is taken for one that has the command.
fn a_sim_that_never_says_what_it_has_is_asked_all_the_same() {
    let (mut machine, module, fd) = boot_open(Config::default());
    cam::say_nothing(machine.device());
    machine.disk().stuck.store(true, Ordering::SeqCst);
    let commands = reads(&mut machine, 2);
    for command in &commands {
        command.queue(&mut machine, fd).expect("queue");
    }
    let start = Instant::now();
    let answer = control::cancel(&mut machine, fd, 0);
    assert_eq!(answer, Ok([0, 2, 0, 0]));
    assert!(start.elapsed() < Duration::from_secs(4));
    for _ in 0..2 {
        assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
        commands[0].get(&mut machine, fd).expect("get");
    }
    machine.disk().unstick();
    end(machine, module, fd);
}

/// Beside N1: pointers, counts, flags and lengths that are no data's. They come
/// back as they were.
fn no_word_of_a_users_payload_reaches_cam() {
    let (mut machine, module, fd) = boot_open(Config::default());
    let mut command = Command::new(&mut machine, 8192);
    let data = command.data.address();
    let junk = 0xffff_ffff_8123_4567_u64 as *mut u8;
    command.data.bytes_mut()[..8].copy_from_slice(&[0x40, 0x10, 0, 0, 0, 0, 0, 0]);
    let fill = |command: &mut Command, func_code| {
        command.immediate(func_code);
        command.hdr().flags = sys::CAM_DIR_NONE;
        command.hdr().timeout = 10_000;
        // SAFETY: plain data.
        unsafe {
            match func_code {
                sys::XPT_SCSI_IO => {
                    command.test_unit_ready();
                    let io = command.csio();
                    (io.next_ccb, io.req_map, io.msg_ptr) = (junk.cast(), junk, junk);
                    (io.msg_len, io.sense_len) = (255, 255);
                }
                sys::XPT_ATA_IO => {
                    let io = &mut command.ccb.ccb_mut().ataio;
                    io.cmd.command = 0xe5;
                    io.next_ccb = junk.cast();
                    (io.cmd.flags, io.ata_flags) = (0xe8, 0xfc);
                }
                sys::XPT_NVME_IO => {
                    entry(command)[2..4].fill(0xcc);
                    entry(command)[16..40].fill(0xcc);
                    command.ccb.ccb_mut().nvmeio.next_ccb = junk.cast();
                }
                sys::XPT_SMP_IO => {
                    let io = &mut command.ccb.ccb_mut().smpio;
                    (io.smp_request, io.smp_request_len) = (data as *mut u8, 8);
                    (io.smp_response, io.smp_response_len) = ((data + 4096) as *mut u8, 60);
                    (io.smp_request_sglist_cnt, io.smp_response_sglist_cnt) = (3, 4);
                    io.flags = sys::SMP_FLAG_REQ_SG | sys::SMP_FLAG_RSP_SG;
                }
                _ => {
                    let io = &mut command.ccb.ccb_mut().cdai;
                    io.buftype = sys::CDAI_TYPE_SERIAL_NUM;
                    (io.buf, io.bufsiz) = (data as *mut u8, 64);
                    io.flags = !sys::CDAI_FLAG_STORE;
                }
            }
        }
    };
    for func_code in [
        sys::XPT_SCSI_IO,
        sys::XPT_ATA_IO,
        sys::XPT_NVME_IO,
        sys::XPT_SMP_IO,
        sys::XPT_DEV_ADVINFO,
    ] {
        fill(&mut command, func_code);
        let asked = command.ccb.bytes().to_vec();
        for synchronous in [false, true] {
            command.ccb.bytes_mut().copy_from_slice(&asked);
            if synchronous {
                command.send(&mut machine, fd).expect("send");
            } else {
                queue_and_get(&mut machine, fd, &command);
            }
            let status = command.hdr().status & sys::CAM_STATUS_MASK;
            assert_eq!(status, sys::CAM_REQ_CMP, "{func_code:#x}");
            let at = size_of::<sys::ccb_hdr>();
            let words = |bytes: &[u8]| {
                // `next_ccb`, or what is in its place.
                bytes[at..at + 8].to_vec()
            };
            assert_eq!(words(command.ccb.bytes()), words(&asked), "{func_code:#x}");
        }
    }
    end(machine, module, fd);
}

fn target_mode_cannot_be_left_on() {
    let (mut machine, module, fd) = boot_open(Config::default());
    let mut command = Command::new(&mut machine, 0);
    command.immediate(sys::XPT_EN_LUN);
    let answers = by_each_call(&mut machine, fd, &mut command);
    assert_eq!(answers, [Err(EINVAL); 3]);
    end(machine, module, fd);
}

/// Identify Namespace data of blocks of `1 << shift` bytes, with so much metadata.
fn formatted(shift: u8, metadata: u8) -> Option<Vec<u8>> {
    let mut data = ukernel::nvme::namespace(4096);
    (data[128], data[130]) = (metadata, shift);
    Some(data)
}

/// M6: CAM has no place for the metadata's address, which is 0 then.
fn blocks_with_metadata_elsewhere_are_refused() {
    let (mut machine, module, fd) = boot_open(Config::of(Model::NVME));
    *machine.disk().identify.lock().unwrap() = formatted(9, 8);
    let mut command = Command::new(&mut machine, 8192);
    let at = command.data.address();
    build(&mut command, Protocol::Nvme, false, at, 4096);
    let answers = by_each_call(&mut machine, fd, &mut command);
    assert_eq!(answers, [Err(EINVAL); 3]);
    end(machine, module, fd);
}

/// M6: whose blocks may be larger.
fn blocks_of_another_namespace_are_refused() {
    let (mut machine, module, fd) = boot_open(Config::of(Model::NVME));
    let mut command = Command::new(&mut machine, 8192);
    let at = command.data.address();
    for namespace in [0, 2, 255] {
        build(&mut command, Protocol::Nvme, false, at, 4096);
        entry(&mut command)[4] = namespace;
        let answers = by_each_call(&mut machine, fd, &mut command);
        assert_eq!(answers, [Err(EINVAL); 3], "{namespace}");
    }
    // FLUSH may name all of them.
    nvme(&mut command, false, 0, sys::CAM_DIR_NONE);
    entry(&mut command)[4..8].fill(0xff);
    assert_eq!(by_each_call(&mut machine, fd, &mut command), TAKEN);
    end(machine, module, fd);
}

/// M6: what fits the blocks of now is taken.
fn a_namespace_that_was_formatted_anew_is_asked_again() {
    let (mut machine, module, fd) = boot_open(Config::of(Model::NVME));
    let mut command = Command::new(&mut machine, 8192);
    let at = command.data.address();
    build(&mut command, Protocol::Nvme, false, at, 4096);
    assert_eq!(by_each_call(&mut machine, fd, &mut command), TAKEN);
    *machine.disk().identify.lock().unwrap() = formatted(12, 0);
    // Two blocks of 4096 bytes. The controller here goes on with its own of 512.
    nvme_data(&mut command, at, 8192);
    entry(&mut command)[48..50].copy_from_slice(&1_u16.to_le_bytes());
    assert_eq!(by_each_call(&mut machine, fd, &mut command), TAKEN);
    end(machine, module, fd);
}

/// M10: its file was cut short while the device wrote.
fn a_page_without_contents_is_not_made_dirty() {
    let (mut machine, module, fd) = boot_open(Config::of(Model::PLAIN));
    machine.disk().stuck.store(true, Ordering::SeqCst);
    let mut command = Command::new(&mut machine, 8192);
    command.rw10(false, 0, 16);
    command.queue(&mut machine, fd).expect("queue");
    assert_eq!(vm::holds(), 2);
    let at = command.data.address();
    vm::msync(at, 8192);
    vm::cut_short(at, 4096);
    machine.disk().unstick();
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    assert_eq!([at, at + 4096].map(vm::is_dirty), [false, true]);
    command.get(&mut machine, fd).expect("get");
    end(machine, module, fd);
}

/// L4: it looks no further, and the others stay.
fn an_abort_takes_one_of_several_with_the_same_ccb() {
    let (mut machine, module) = boot(Config {
        openings: 1,
        ..Config::default()
    });
    let fd = machine.open(NODE, RDWR).expect("open");
    machine.disk().stuck.store(true, Ordering::SeqCst);
    let commands = reads(&mut machine, 2);
    commands[0].queue(&mut machine, fd).expect("queue");
    for _ in 0..3 {
        commands[1].queue(&mut machine, fd).expect("queue");
    }
    let mut abort = Command::new(&mut machine, 0);
    abort.immediate(sys::XPT_ABORT);
    abort.ccb.ccb_mut().cab.abort_ccb = commands[1].ccb.address() as *mut sys::ccb;
    abort.send(&mut machine, fd).expect("send");
    assert_eq!(abort.ended().status, sys::CAM_REQ_CMP);
    machine.disk().unstick();
    let mut ended = [0; 2];
    for _ in 0..4 {
        assert_eq!(machine.poll(fd, POLLIN, 5_000), Ok(POLLIN));
        abort.get(&mut machine, fd).expect("get");
        ended[usize::from(abort.ended().status == sys::CAM_REQ_ABORTED)] += 1;
    }
    assert_eq!(ended, [3, 1]);
    machine.close(fd);
    machine.unload(module);
}

/// L5: the event thread is in the driver's callback, which has no unit to show for
/// it, while the module is unloaded.
fn the_callback_for_a_new_device_has_returned_when_the_module_goes() {
    let (_machine, module) = boot(Config::default());
    cam::REFUSE_DELAY_MS.store(200, Ordering::SeqCst);
    let disk = ukernel::disk::RamDisk::new("SECOND", Config::default());
    let second = cam::attach((0, 1, 0), disk);
    wait_until("it is in cam_periph_alloc()", cam::is_refusing);
    assert!(module.unload().is_ok());
    cam::settle();
    cam::REFUSE_DELAY_MS.store(0, Ordering::SeqCst);
    cam::detach(&second);
    cam::settle();
}

/// Beside F4: a walk by drivers looks whether an entry is NULL, waits for the
/// topology lock, and follows it (cam_xpt.c, xptpdrvtraverse(), xptpdperiphtraverse()).
fn the_entry_of_a_driver_that_left_can_be_followed() {
    let (machine, module) = boot(Config::default());
    let at = cam::listed_drivers().len() - 1;
    // SAFETY: the variable has its place, and the array lives as long as CAM.
    let array = unsafe { *cam::PERIPH_DRIVERS.load(Ordering::SeqCst) };
    // SAFETY: as many entries as were listed, and NULL behind them.
    let entry = || unsafe { array.add(at).read_volatile() };
    let own = entry();
    assert!(!own.is_null());
    machine.unload(module);
    let left = entry();
    assert!(
        !left.is_null(),
        "a walk that has seen the entry follows NULL"
    );
    assert_ne!(left, own, "a walk that comes now meets a driver that left");
}

/// CAM_CDB_POINTER means something to XPT_SCSI_IO alone: a CCB of another opcode has no place for a pointer, and none of the kernel's comes
/// back in it.
fn a_cdb_by_pointer_is_one_of_scsis() {
    let (mut machine, module, fd) = boot_open(Config::default());
    let mut command = Command::new(&mut machine, 8192);
    for func_code in [
        sys::XPT_NOOP,
        sys::XPT_ATA_IO,
        sys::XPT_NVME_IO,
        sys::XPT_RESET_DEV,
        sys::XPT_CALC_GEOMETRY,
    ] {
        command.immediate(func_code);
        command.hdr().flags = sys::CAM_DIR_NONE | sys::CAM_CDB_POINTER;
        command.hdr().timeout = 10_000;
        if func_code == sys::XPT_ATA_IO {
            command.ccb.ccb_mut().ataio.cmd.command = 0xe5;
        }
        command.send(&mut machine, fd).expect("send");
        let at = core::mem::offset_of!(sys::ccb_scsiio, cdb_io);
        let found = &command.ccb.bytes()[at..at + 8];
        assert_eq!(found, [0; 8], "{func_code:#x}: an address of the kernel's");
    }
    end(machine, module, fd);
}

/// M6: what fitted the blocks of before and does not fit those of now is refused:
/// FORMAT NVM makes them larger, and the controller would move more than there is
/// memory for.
fn a_namespace_with_larger_blocks_moves_no_more_than_there_is_room_for() {
    let (mut machine, module, fd) = boot_open(Config::of(Model::NVME));
    let mut command = Command::new(&mut machine, 8192);
    let at = command.data.address();
    build(&mut command, Protocol::Nvme, false, at, 4096);
    assert_eq!(by_each_call(&mut machine, fd, &mut command), TAKEN);
    *machine.disk().identify.lock().unwrap() = formatted(12, 0);
    cam::probe_again(machine.device());
    let answers = by_each_call(&mut machine, fd, &mut command);
    assert_eq!(answers, [Err(EINVAL); 3], "8 blocks of 4096 bytes");
    end(machine, module, fd);
}
