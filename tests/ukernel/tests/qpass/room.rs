//! Room for requests: what is charged, who waits for room and how that ends,
//! and who is told when there is some.

use super::*;
use conform::sys::Memory;
use enter::{Answer, Arrays, MS, enter, reads, with_tags};

tests! {
    bytes_over_the_limit_are_waited_for_asleep;
    a_deadline_ends_the_wait_for_bytes;
    a_signal_ends_the_wait_for_bytes;
    a_signal_that_is_pending_ends_it_before_it_sleeps;
    a_departure_ends_the_wait_for_bytes;
    a_list_over_the_limit_goes_alone;
    both_runs_of_an_smp_command_go_alone;
    a_completion_ends_the_wait_for_room;
    room_that_another_thread_makes_is_not_missed;
    a_refused_request_keeps_no_other_open_out;
    a_charge_is_what_the_request_takes_in_the_end;
    no_room_for_bytes_is_no_room;
    a_refusal_is_no_news_to_an_edge_triggered_event;
    an_edge_triggered_event_comes_after_the_last_free_request;
    raised_limits_are_told;
    one_poll_for_room_slows_no_later_command;
    the_total_bounds_all_devices_and_stops_none;
    room_of_another_device_is_told;
    the_defaults_follow_the_machines_memory;
    threads_that_wait_in_any_order_all_come_through;
}

const POLLOUT: i16 = sys::POLLOUT as i16;
const EINTR: i32 = sys::EINTR as i32;

/// Waits for something; should it not come, the process ends, for a thread that
/// is caught in the module cannot be joined.
fn soon(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > Duration::from_secs(5) {
            thread::broken(&format!("not within 5 seconds: {what}"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn cpu_ms() -> u64 {
    // SAFETY: plain data, filled in by the call.
    let now = unsafe {
        let mut now: libc::timespec = core::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut now);
        now
    };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// An open whose one completed read has all the bytes that it may have; and a
/// call that is to submit one more, with room for no completion. `what` is done
/// while it waits, or, if `at_once`, it is to end by itself.
fn short_of_bytes(
    timeout: u64,
    at_once: bool,
    what: impl FnOnce(&Machine, i32, &Command),
) -> Answer {
    let (machine, module) = boot(Config::default());
    let process = machine.process();
    let fd = process.open(NODE, RDWR).expect("open");
    let mut sys = Shared(&machine);
    control::limit(&mut sys, fd, 0, 4096).expect("limit");
    let [hog, more] = [(); 2].map(|()| reads(&mut sys, 1));
    hog[0].queue(&mut sys, fd).expect("queue");
    wait_until("it is done", || sysctl::value("0.outstanding") == Some(0));
    let mut arrays = Arrays::new(&mut sys);
    arrays.submit(&with_tags(&more));
    let mut call = arrays.call(1, 0, 0);
    call.flags = sys::QPASS_ENTER_WAIT_ROOM;
    call.timeout = timeout;
    let answer = std::thread::scope(|scope| {
        let machine = &machine;
        let waiting = scope.spawn(move || enter(&mut Shared(machine), fd, call));
        if !at_once {
            soon("the call sleeps", || lock::catching() == 1);
            let (before, sleeps) = (cpu_ms(), lock::sleeps());
            std::thread::sleep(Duration::from_millis(200));
            assert!(cpu_ms() - before < 100, "it is awake");
            assert_eq!(lock::sleeps(), sleeps, "it was woken");
        }
        what(machine, fd, &hog[0]);
        soon("the call ends", || waiting.is_finished());
        waiting.join().expect("joined").expect("enter")
    });
    assert_eq!(lock::catching(), 0);
    process.close(fd);
    machine.unload(module);
    answer
}

fn bytes_over_the_limit_are_waited_for_asleep() {
    let answer = short_of_bytes(u64::MAX, false, |machine, fd, hog| {
        hog.get(&mut Shared(machine), fd).expect("get");
    });
    assert_eq!(answer, (1, 0, 0, 0));
}

fn a_deadline_ends_the_wait_for_bytes() {
    let start = Instant::now();
    let answer = short_of_bytes(100 * MS, true, |_, _, _| {});
    assert_eq!(answer, (0, 0, EAGAIN, 0));
    assert!(start.elapsed() >= Duration::from_millis(100));
    assert_eq!(short_of_bytes(0, true, |_, _, _| {}), (0, 0, EAGAIN, 0));
}

fn a_signal_ends_the_wait_for_bytes() {
    let answer = short_of_bytes(u64::MAX, false, |_, _, _| lock::signal());
    assert_eq!(answer, (0, 0, EINTR, 0));
}

fn a_signal_that_is_pending_ends_it_before_it_sleeps() {
    lock::pend(true);
    let before = lock::sleeps();
    let answer = short_of_bytes(u64::MAX, true, |_, _, _| {});
    assert_eq!(answer, (0, 0, EINTR, 0));
    assert!(lock::sleeps() - before <= 1, "it does not try again");
}

fn a_departure_ends_the_wait_for_bytes() {
    let answer = short_of_bytes(u64::MAX, false, |machine, _, _| {
        cam::detach(machine.device());
    });
    assert_eq!(answer, (0, 0, ENXIO, 0));
}

/// What a list takes is charged with its data, so it is the only request.
fn a_list_over_the_limit_goes_alone() {
    let (machine, module) = boot(Config::default());
    let fd = machine.process().open(NODE, RDWR).expect("open");
    let mut sys = Shared(&machine);
    control::limit(&mut sys, fd, 0, 512).expect("limit");
    let mut one = Command::new(&mut sys, 512);
    one.rw10(false, 0, 1);
    let mut list = Memory::new(&mut sys, 4096);
    one.list(&mut list, 0, 0, &[512]);
    let mut arrays = Arrays::new(&mut sys);
    arrays.submit(&[(one.ccb.address(), 1); 2]);
    let mut call = arrays.call(2, 2, 2);
    call.flags = sys::QPASS_ENTER_WAIT_ROOM;
    std::thread::scope(|scope| {
        let machine = &machine;
        let waiting = scope.spawn(move || enter(&mut Shared(machine), fd, call));
        soon("both were alone", || waiting.is_finished());
        assert_eq!(waiting.join().expect("joined"), Ok((2, 2, 0, 0)));
    });
    // CAMIOQUEUE: alone, and then not.
    assert_eq!(one.queue(&mut sys, fd), Ok(()));
    assert_eq!(control::outstanding(&mut sys, fd), (1, 4096 + 16));
    assert_eq!(one.queue(&mut sys, fd), Err(EAGAIN));
    machine.process().close(fd);
    machine.unload(module);
}

/// A command of two runs of data, each larger than the limit by itself.
fn both_runs_of_an_smp_command_go_alone() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    control::limit(&mut machine, fd, 0, 512).expect("limit");
    let mut command = Command::new(&mut machine, 8192);
    let data = command.data.address();
    command.data.bytes_mut()[..8].copy_from_slice(&[0x40, 0x10, 0, 0, 0, 0, 0, 0]);
    command.immediate(sys::XPT_SMP_IO);
    // SAFETY: plain data.
    let io = unsafe { &mut command.ccb.ccb_mut().smpio };
    (io.smp_request, io.smp_request_len) = (data as *mut u8, 8);
    (io.smp_response, io.smp_response_len) = ((data + 4096) as *mut u8, 60);
    assert_eq!(command.queue(&mut machine, fd), Ok(()));
    assert_eq!(control::outstanding(&mut machine, fd), (1, 8192));
    assert_eq!(command.queue(&mut machine, fd), Err(EAGAIN));
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    assert_eq!(command.get(&mut machine, fd), Ok(()));
    machine.close(fd);
    machine.unload(module);
}

/// The call has room for completions: its own request's makes room.
fn a_completion_ends_the_wait_for_room() {
    let (machine, module) = boot(Config::default());
    let fd = machine.process().open(NODE, RDWR).expect("open");
    let mut sys = Shared(&machine);
    control::limit(&mut sys, fd, 1, 0).expect("limit");
    let commands = reads(&mut sys, 2);
    let mut arrays = Arrays::new(&mut sys);
    arrays.submit(&with_tags(&commands));
    let mut call = arrays.call(2, 2, 2);
    call.flags = sys::QPASS_ENTER_WAIT_ROOM;
    machine.disk().stuck.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let machine = &machine;
        let waiting = scope.spawn(move || enter(&mut Shared(machine), fd, call));
        soon("the call sleeps", || lock::catching() == 1);
        machine.disk().unstick();
        soon("the call ends", || waiting.is_finished());
        assert_eq!(waiting.join().expect("joined"), Ok((2, 2, 0, 0)));
    });
    machine.process().close(fd);
    machine.unload(module);
}

/// Two threads on one open: what one of them has reaped and is copying out is
/// outstanding, and no completion will tell the other when it is freed.
fn room_that_another_thread_makes_is_not_missed() {
    let (machine, module) = boot(Config::default());
    let process = machine.process();
    let fd = process.open(NODE, RDWR).expect("open");
    let mut sys = Shared(&machine);
    control::limit(&mut sys, fd, 2, 0).expect("limit");
    let commands = reads(&mut sys, 100);
    let mut arrays = Arrays::new(&mut sys);
    arrays.submit(&with_tags(&commands));
    let other = Arrays::new(&mut sys);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (machine, stop) = (&machine, &stop);
        let mut call = other.call(0, 16, 1);
        call.timeout = MS;
        scope.spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                enter(&mut Shared(machine), fd, call).expect("enter");
            }
        });
        let mut missed = None;
        for i in 0..100 {
            let mut call = arrays.call(100, 100, 0);
            call.flags = sys::QPASS_ENTER_WAIT_ROOM;
            call.timeout = 3000 * MS;
            let answer = enter(&mut Shared(machine), fd, call).expect("enter");
            if answer.2 != 0 {
                missed = Some((i, answer));
                break;
            }
        }
        stop.store(true, Ordering::SeqCst);
        assert_eq!(missed, None, "a call that timed out beside room");
    });
    process.close(fd);
    machine.unload(module);
}

/// One open is refused for its bytes again and again; the other one's request is
/// always within the limits.
fn a_refused_request_keeps_no_other_open_out() {
    let (machine, module) = boot(Config::default());
    sysctl::set("device_max_requests", 2);
    sysctl::set("device_max_bytes", 4096);
    let process = machine.process();
    let [hog, fd] = [(); 2].map(|()| process.open(NODE, RDWR).expect("open"));
    let mut sys = Shared(&machine);
    let read = &reads(&mut sys, 1)[0];
    read.queue(&mut sys, hog).expect("queue");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (machine, stop) = (&machine, &stop);
        let mut again = Command::new(&mut sys, 512);
        again.rw10(false, 0, 1);
        scope.spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                assert_eq!(again.queue(&mut Shared(machine), hog), Err(EAGAIN));
            }
        });
        let mut command = Command::new(&mut sys, 0);
        let mut refused = 0;
        for _ in 0..3000 {
            command.immediate(sys::XPT_NOOP);
            match command.queue(&mut sys, fd) {
                Ok(()) => command.get(&mut sys, fd).expect("get"),
                Err(errno) => {
                    assert_eq!(errno, EAGAIN);
                    refused += 1;
                }
            }
        }
        stop.store(true, Ordering::SeqCst);
        assert_eq!(refused, 0, "refused because of a request that was refused");
    });
    process.close(hog);
    process.close(fd);
    machine.unload(module);
}

/// Charged for pages, and copied in the end.
fn a_charge_is_what_the_request_takes_in_the_end() {
    let (mut machine, module) = boot(Config {
        unmapped: true,
        ..Config::default()
    });
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 65536);
    let mut list = Memory::new(&mut machine, 4096);
    let taken = |command: &Command, machine: &mut Machine| {
        machine.disk().stuck.store(true, Ordering::SeqCst);
        command.queue(machine, fd).expect("queue");
        let (_, bytes) = control::outstanding(machine, fd);
        machine.disk().unstick();
        control::cancel(machine, fd, 0).expect("cancel");
        wait_until("it is done", || sysctl::value("0.outstanding") == Some(0));
        machine.close(fd);
        let reopened = machine.open(NODE, RDWR).expect("open");
        assert_eq!(reopened, fd, "the same number");
        bytes
    };
    // In pages: two of them, and what names them.
    command.rw10(false, 0, 16);
    let pages = taken(&command, &mut machine);
    assert!(pages > 8192 && pages < 12288, "{pages}");
    // A list of the same pages takes 16 bytes a segment more.
    command.rw10(false, 0, 16);
    command.list(&mut list, 0, 0, &[4096, 4096]);
    assert_eq!(taken(&command, &mut machine), pages + 32);
    // A list that is none of pages is copied.
    command.rw10(false, 0, 16);
    command.list(&mut list, 0, 512, &[4096, 4096]);
    assert_eq!(taken(&command, &mut machine), 16384 + 32);
    // Pages that cannot be held are.
    command.rw10(false, 0, 16);
    command.csio().data_ptr = 0x10_0000_0000 as *mut u8;
    assert_eq!(taken(&command, &mut machine), 16384);
    machine.close(fd);
    machine.unload(module);
}

fn watch_for_room(machine: &mut Machine, fd: i32, flags: u32) -> i32 {
    let kq = machine.kqueue().expect("kqueue");
    let mut change = event(fd, sys::EV_ADD | flags);
    change.filter = sys::EVFILT_WRITE as i16;
    assert_eq!(machine.kevent(kq, &[change], &mut [], 0), Ok(0));
    kq
}

fn no_room_for_bytes_is_no_room() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    control::limit(&mut machine, fd, 0, 20_000).expect("limit");
    let kq = watch_for_room(&mut machine, fd, 0);
    let mut read = Command::new(&mut machine, 16384);
    read.rw10(false, 0, 32);
    read.queue(&mut machine, fd).expect("queue");
    // Some bytes are left, and then they were not enough.
    assert_eq!(next(&mut machine, kq), Some(1023));
    assert_eq!(machine.poll(fd, POLLOUT, 0), Ok(POLLOUT));
    assert_eq!(read.queue(&mut machine, fd), Err(EAGAIN));
    assert_eq!(next(&mut machine, kq), None);
    assert_eq!(machine.poll(fd, POLLOUT, 0), Ok(0));
    // What is taken says that the program does with less.
    let mut none = Command::new(&mut machine, 0);
    none.immediate(sys::XPT_NOOP);
    none.queue(&mut machine, fd).expect("queue");
    assert_eq!(next(&mut machine, kq), Some(1022));
    // Not a byte is left.
    control::limit(&mut machine, fd, 0, 16384).expect("limit");
    assert_eq!(next(&mut machine, kq), None);
    assert_eq!(machine.poll(fd, POLLOUT, 0), Ok(0));
    wait_until("it is done", || sysctl::value("0.outstanding") == Some(0));
    for _ in 0..2 {
        assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
        read.get(&mut machine, fd).expect("get");
    }
    assert_eq!(next(&mut machine, kq), Some(1024));
    assert_eq!(machine.poll(fd, POLLOUT, 0), Ok(POLLOUT));
    machine.close(kq);
    machine.close(fd);
    machine.unload(module);
}

fn a_refusal_is_no_news_to_an_edge_triggered_event() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    control::limit(&mut machine, fd, 0, 20_000).expect("limit");
    let mut read = Command::new(&mut machine, 16384);
    read.rw10(false, 0, 32);
    read.queue(&mut machine, fd).expect("queue");
    let kq = watch_for_room(&mut machine, fd, sys::EV_CLEAR);
    assert_eq!(next(&mut machine, kq), Some(1023));
    let other = machine.open(NODE, RDWR).expect("open");
    for _ in 0..3 {
        assert_eq!(read.queue(&mut machine, fd), Err(EAGAIN));
        assert_eq!(next(&mut machine, kq), None, "it was refused, no more");
        // Room that is not enough is none.
        let mut none = Command::new(&mut machine, 0);
        none.immediate(sys::XPT_NOOP);
        none.queue(&mut machine, other).expect("queue");
        none.get(&mut machine, other).expect("get");
        assert_eq!(next(&mut machine, kq), None);
    }
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    read.get(&mut machine, fd).expect("get");
    assert_eq!(next(&mut machine, kq), Some(1024), "room was made");
    assert_eq!(next(&mut machine, kq), None, "once");
    for fd in [kq, other, fd] {
        machine.close(fd);
    }
    machine.unload(module);
}

/// A program that queues as many as it was told, and sees no EAGAIN.
fn an_edge_triggered_event_comes_after_the_last_free_request() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    control::limit(&mut machine, fd, 2, 0).expect("limit");
    let kq = watch_for_room(&mut machine, fd, sys::EV_CLEAR);
    let mut command = Command::new(&mut machine, 0);
    for round in 0..5 {
        let free = next(&mut machine, kq);
        assert_eq!(free, Some(if round == 0 { 2 } else { 1 }));
        for _ in 0..free.expect("room") {
            command.immediate(sys::XPT_NOOP);
            command.queue(&mut machine, fd).expect("queue");
        }
        assert_eq!(next(&mut machine, kq), None);
        command.get(&mut machine, fd).expect("get");
    }
    machine.close(kq);
    machine.close(fd);
    machine.unload(module);
}

fn raised_limits_are_told() {
    let (machine, module) = boot(Config::default());
    let process = machine.process();
    let mut sys = Shared(&machine);
    for (name, low) in [
        ("max_requests", 1),
        ("device_max_requests", 1),
        ("max_bytes", 4096),
        ("device_max_bytes", 4096),
        ("total_max_bytes", 6000),
    ] {
        let usual = sysctl::number(name, None).expect("a limit");
        sysctl::set(name, low);
        let fd = process.open(NODE, RDWR).expect("open");
        let commands = reads(&mut sys, 2);
        commands[0].queue(&mut sys, fd).expect("queue");
        wait_until("it is done", || sysctl::value("0.outstanding") == Some(0));
        let kq = process.kqueue();
        let mut change = event(fd, sys::EV_ADD | sys::EV_CLEAR);
        change.filter = sys::EVFILT_WRITE as i16;
        assert_eq!(sys.kevent(kq, &[change], &mut [], 0), Ok(0));
        assert_eq!(sys.poll(fd, POLLOUT, 0), Ok(0), "{name}");
        let mut arrays = Arrays::new(&mut sys);
        arrays.submit(&with_tags(&commands[1..]));
        let mut call = arrays.call(1, 0, 0);
        call.flags = sys::QPASS_ENTER_WAIT_ROOM;
        std::thread::scope(|scope| {
            let machine = &machine;
            let waiting = scope.spawn(move || enter(&mut Shared(machine), fd, call));
            let poll = scope.spawn(move || Shared(machine).poll(fd, POLLOUT, 20_000));
            let kevent = scope.spawn(move || {
                let mut events = [event(0, 0)];
                let n = Shared(machine).kevent(kq, &[], &mut events, 20_000);
                (n, events[0].data != 0)
            });
            soon("the call sleeps", || lock::catching() == 1);
            std::thread::sleep(Duration::from_millis(20));
            // Higher by so much that all of them find some.
            sysctl::set(name, low * 3);
            soon("the call ends", || waiting.is_finished());
            soon("poll(2) ends", || poll.is_finished());
            soon("kevent(2) ends", || kevent.is_finished());
            assert_eq!(waiting.join().expect("joined"), Ok((1, 0, 0, 0)), "{name}");
            assert_eq!(poll.join().expect("joined"), Ok(POLLOUT), "{name}");
            assert_eq!(kevent.join().expect("joined"), (Ok(1), true), "{name}");
        });
        sysctl::set(name, usual);
        wait_until("all are done", || sysctl::value("0.outstanding") == Some(0));
        process.close(kq);
        process.close(fd);
    }
    machine.unload(module);
}

fn one_poll_for_room_slows_no_later_command() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    control::limit(&mut machine, fd, 4, 0).expect("limit");
    let mut command = Command::new(&mut machine, 0);
    let mut round = |machine: &mut Machine, n: u32| {
        for _ in 0..n {
            command.immediate(sys::XPT_NOOP);
            command.queue(machine, fd).expect("queue");
        }
        for _ in 0..n {
            command.get(machine, fd).expect("get");
        }
    };
    let mut locks = |machine: &mut Machine, n: u32| {
        let ((), cost) = ukernel::count::count(|| round(machine, n));
        cost.locks.get("qpass room").copied().unwrap_or(0)
    };
    assert_eq!(locks(&mut machine, 3), 0);
    // There is room, and there is none.
    assert_eq!(machine.poll(fd, POLLOUT, 0), Ok(POLLOUT));
    assert_eq!(locks(&mut machine, 3), 0, "nobody waits");
    let mut full = Command::new(&mut machine, 0);
    for _ in 0..4 {
        full.immediate(sys::XPT_NOOP);
        full.queue(&mut machine, fd).expect("queue");
    }
    assert_eq!(machine.poll(fd, POLLOUT, 0), Ok(0));
    full.get(&mut machine, fd).expect("get");
    for _ in 0..3 {
        full.get(&mut machine, fd).expect("get");
    }
    for _ in 0..3 {
        assert_eq!(locks(&mut machine, 4), 0, "nobody waits, once told");
    }
    // A knote is told when the limit is left, and of no other request.
    let kq = watch_for_room(&mut machine, fd, 0);
    assert_eq!(locks(&mut machine, 3), 0);
    assert!((1..=2).contains(&locks(&mut machine, 4)));
    machine.close(kq);
    locks(&mut machine, 4);
    assert_eq!(locks(&mut machine, 4), 0, "it has gone");
    machine.close(fd);
    machine.unload(module);
}

/// A machine with two disks.
fn two_devices() -> (Machine, Module, std::sync::Arc<cam::Device>) {
    let (machine, module) = boot(Config::default());
    let disk = ukernel::disk::RamDisk::new("SECOND", Config::default());
    let second = cam::attach((0, 1, 0), disk);
    cam::settle();
    wait_until("/dev/qpass1 is there", || devfs::exists("qpass1"));
    (machine, module, second)
}

/// Bytes that one read of a block has of the total: a chunk, and the request.
const READ: u64 = 4096 + 1896;

fn the_total_bounds_all_devices_and_stops_none() {
    let (mut machine, module, second) = two_devices();
    sysctl::set("total_max_bytes", 3 * READ);
    let fds = [NODE, "/dev/qpass1"].map(|node| machine.open(node, RDWR).expect("open"));
    let read = &reads(&mut machine, 1)[0];
    for _ in 0..3 {
        read.queue(&mut machine, fds[0]).expect("queue");
    }
    assert_eq!(read.queue(&mut machine, fds[0]), Err(EAGAIN));
    // The first of a device is let through, and no second.
    assert_eq!(read.queue(&mut machine, fds[1]), Ok(()));
    assert_eq!(read.queue(&mut machine, fds[1]), Err(EAGAIN));
    for (fd, n) in [(fds[0], 3), (fds[1], 1)] {
        for _ in 0..n {
            assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
            read.get(&mut machine, fd).expect("get");
        }
    }
    // All of it has come back.
    for _ in 0..3 {
        read.queue(&mut machine, fds[1]).expect("queue");
    }
    assert_eq!(read.queue(&mut machine, fds[1]), Err(EAGAIN));
    for fd in fds {
        machine.close(fd);
    }
    cam::detach(&second);
    machine.unload(module);
}

fn room_of_another_device_is_told() {
    let (machine, module, second) = two_devices();
    sysctl::set("total_max_bytes", 3 * READ);
    let process = machine.process();
    let mut sys = Shared(&machine);
    let [hog, fd] = [NODE, "/dev/qpass1"].map(|node| process.open(node, RDWR).expect("open"));
    let commands = reads(&mut sys, 3);
    for _ in 0..2 {
        commands[0].queue(&mut sys, hog).expect("queue");
    }
    commands[1].queue(&mut sys, fd).expect("queue");
    wait_until("they are done", || {
        ["0.outstanding", "1.outstanding"].map(sysctl::value) == [Some(0); 2]
    });
    let kq = process.kqueue();
    let mut change = event(fd, sys::EV_ADD | sys::EV_CLEAR);
    change.filter = sys::EVFILT_WRITE as i16;
    assert_eq!(sys.kevent(kq, &[change], &mut [], 0), Ok(0));
    assert_eq!(sys.poll(fd, POLLOUT, 0), Ok(0));
    let mut arrays = Arrays::new(&mut sys);
    arrays.submit(&with_tags(&commands[2..]));
    let mut call = arrays.call(1, 0, 0);
    call.flags = sys::QPASS_ENTER_WAIT_ROOM;
    std::thread::scope(|scope| {
        let machine = &machine;
        let waiting = scope.spawn(move || enter(&mut Shared(machine), fd, call));
        soon("the call sleeps", || lock::catching() == 1);
        for _ in 0..2 {
            commands[0].get(&mut Shared(machine), hog).expect("get");
        }
        soon("the call ends", || waiting.is_finished());
        assert_eq!(waiting.join().expect("joined"), Ok((1, 0, 0, 0)));
    });
    let mut events = [event(0, 0)];
    assert_eq!(sys.kevent(kq, &[], &mut events, 0), Ok(1));
    for fd in [kq, hog, fd] {
        process.close(fd);
    }
    cam::detach(&second);
    machine.unload(module);
}

fn the_defaults_follow_the_machines_memory() {
    const MIB: u64 = 1 << 20;
    let names = ["total_max_bytes", "device_max_bytes", "max_bytes"];
    for (memory, wanted) in [
        (256, [32, 24, 16]),
        (1024, [128, 96, 64]),
        (16384, [2048, 256, 64]),
    ] {
        memory::MEMORY.store(memory * MIB, Ordering::SeqCst);
        let (machine, module) = boot(Config::default());
        let found = names.map(|name| sysctl::number(name, None));
        assert_eq!(found, wanted.map(|n| Ok(n * MIB)), "{memory} MiB");
        // One that is set stays, and 0 is the default.
        sysctl::set("max_bytes", 12345);
        assert_eq!(sysctl::number("max_bytes", None), Ok(12345));
        sysctl::set("max_bytes", 0);
        assert_eq!(sysctl::number("max_bytes", None), Ok(wanted[2] * MIB));
        // What no account can hold becomes what it can.
        sysctl::set("device_max_requests", u64::from(u32::MAX));
        assert_eq!(
            sysctl::number("device_max_requests", None),
            Ok((1 << 21) - 1)
        );
        machine.unload(module);
    }
    sysctl::set_tunable("total_max_bytes", 7 * MIB);
    let (machine, module) = boot(Config::default());
    assert_eq!(sysctl::number("total_max_bytes", None), Ok(7 * MIB));
    machine.unload(module);
}

/// Threads that submit and reap on two opens under limits that change: each
/// submission is taken in the end, and each that was taken is reaped.
fn threads_that_wait_in_any_order_all_come_through() {
    for seed in 1..=4 {
        println!("seed {seed}");
        one_interleaving(seed);
    }
}

fn one_interleaving(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let (machine, module) = boot(BUSY);
    let process = machine.process();
    sysctl::set("device_max_requests", random.u64(2..6));
    sysctl::set("device_max_bytes", random.u64(4096..50_000));
    sysctl::set("total_max_bytes", random.u64(8000..60_000));
    let fds = [(); 2].map(|()| process.open(NODE, RDWR).expect("open"));
    let stop = AtomicBool::new(false);
    let [taken, reaped] = [(); 2].map(|()| AtomicU64::new(0));
    let over = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let (machine, stop, over) = (&machine, &stop, &over);
        let (taken, reaped) = (&taken, &reaped);
        for thread in 0..4 {
            let mut random = fastrand::Rng::with_seed(seed * 100 + thread);
            let fd = fds[thread as usize % 2];
            scope.spawn(move || {
                let mut sys = Shared(machine);
                let mut commands: Vec<_> = (0..6)
                    .map(|_| {
                        let blocks = random.u16(1..40);
                        let mut command = Command::new(&mut sys, usize::from(blocks) * 512);
                        command.rw10(false, 0, blocks);
                        command
                    })
                    .collect();
                let mut arrays = Arrays::new(&mut sys);
                for _ in 0..25 {
                    random.shuffle(&mut commands);
                    let mut left = with_tags(&commands);
                    while !left.is_empty() {
                        arrays.submit(&left);
                        let room = random.u32(0..4);
                        let mut call = arrays.call(left.len(), room, 0);
                        call.flags = sys::QPASS_ENTER_WAIT_ROOM;
                        call.timeout = random.u64(1..8) * MS;
                        let (n, m, errno, _) = enter(&mut sys, fd, call).expect("enter");
                        assert!([0, EAGAIN].contains(&errno), "{errno}");
                        taken.fetch_add(u64::from(n), Ordering::SeqCst);
                        reaped.fetch_add(u64::from(m), Ordering::SeqCst);
                        left.drain(..n as usize);
                    }
                }
                over.fetch_add(1, Ordering::SeqCst);
            });
        }
        for fd in fds {
            scope.spawn(move || {
                let mut sys = Shared(machine);
                let arrays = Arrays::new(&mut sys);
                while !stop.load(Ordering::SeqCst) {
                    let mut call = arrays.call(0, 3, 1);
                    call.timeout = 2 * MS;
                    let (_, m, ..) = enter(&mut sys, fd, call).expect("enter");
                    reaped.fetch_add(u64::from(m), Ordering::SeqCst);
                }
            });
        }
        let start = Instant::now();
        while over.load(Ordering::SeqCst) != 4 {
            if start.elapsed() > Duration::from_secs(60) {
                thread::broken("submissions that nobody lets through");
            }
            let (name, value) = [
                ("device_max_requests", random.u64(1..6)),
                ("device_max_bytes", random.u64(1..50_000)),
                ("total_max_bytes", random.u64(1..60_000)),
            ][random.usize(0..3)];
            sysctl::set(name, value);
            std::thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, Ordering::SeqCst);
    });
    let mut sys = Shared(&machine);
    let arrays = Arrays::new(&mut sys);
    for fd in fds {
        while control::outstanding(&mut sys, fd).0 != 0 {
            let (_, m, ..) = enter(&mut sys, fd, arrays.call(0, 9, 1)).expect("enter");
            reaped.fetch_add(u64::from(m), Ordering::SeqCst);
        }
        process.close(fd);
    }
    assert_eq!(taken.into_inner(), 4 * 25 * 6);
    assert_eq!(reaped.into_inner(), 4 * 25 * 6);
    machine.unload(module);
}
