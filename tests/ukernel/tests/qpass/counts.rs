//! Counters, limits of a device, and what an outstanding request costs.

use super::*;

tests! {
    counters_are_true_while_commands_are_under_way;
    an_error_is_counted_and_a_cancelled_request_is_one;
    the_devices_request_limit_is_eagain_for_all_its_opens;
    the_devices_byte_limit_is_eagain_for_all_its_opens;
    room_that_another_open_makes_is_told;
    an_outstanding_request_costs_what_the_page_says;
    unit_numbers_come_back_with_their_counters;
    an_io_costs_what_the_page_says;
}

fn counters(unit: u32) -> [u64; 4] {
    ["submitted", "completed", "outstanding", "errors"]
        .map(|name| sysctl::value(&format!("{unit}.{name}")).expect("a counter"))
}

fn counters_are_true_while_commands_are_under_way() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    assert_eq!(counters(0), [0; 4]);
    machine.disk().stuck.store(true, Ordering::SeqCst);
    let mut command = Command::new(&mut machine, 65536);
    command.rw10(true, 0, 128);
    for n in 1..=40 {
        command.queue(&mut machine, fd).expect("queue");
        assert_eq!(counters(0), [n, 0, n, 0]);
        assert_eq!(sysctl::value("0.bounce_bytes"), Some(n * 65536));
        assert_eq!(sysctl::value("0.copied_bytes"), Some(n * 65536));
    }
    machine.disk().unstick();
    for n in 1..=40 {
        assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
        command.get(&mut machine, fd).expect("get");
        let [submitted, completed, outstanding, _] = counters(0);
        assert_eq!(submitted, 40);
        // Read one after the other, while commands complete.
        assert!(completed >= n && completed + outstanding <= 40);
    }
    assert_eq!(counters(0), [40, 40, 0, 0]);
    assert_eq!(sysctl::value("0.outstanding_max"), Some(40));
    assert_eq!(sysctl::value("0.bounce_bytes"), Some(0));
    assert_eq!(sysctl::value("0.bounce_bytes_max"), Some(40 * 65536));
    // Synchronous and immediate ones count too.
    command.test_unit_ready();
    command.send(&mut machine, fd).expect("send");
    command.immediate(sys::XPT_PATH_INQ);
    command.send(&mut machine, fd).expect("send");
    command.queue(&mut machine, fd).expect("queue");
    assert_eq!(counters(0), [43, 43, 0, 0]);
    machine.close(fd);
    machine.unload(module);
}

fn an_error_is_counted_and_a_cancelled_request_is_one() {
    let (mut machine, module) = boot(Config {
        openings: 2,
        ..Config::default()
    });
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 512);
    command.rw10(false, u32::MAX, 1);
    command.send(&mut machine, fd).expect("send");
    queue_and_get(&mut machine, fd, &command);
    assert_eq!(counters(0), [2, 2, 0, 2]);
    machine.disk().stuck.store(true, Ordering::SeqCst);
    command.test_unit_ready();
    for _ in 0..6 {
        command.queue(&mut machine, fd).expect("queue");
    }
    machine.close(fd);
    assert_eq!(counters(0), [8, 6, 2, 6]);
    assert_eq!(sysctl::value("0.cancelled"), Some(4));
    machine.disk().unstick();
    wait_until("both have completed", || counters(0) == [8, 8, 0, 6]);
    machine.unload(module);
}

fn the_devices_request_limit_is_eagain_for_all_its_opens() {
    let (mut machine, module) = boot(Config::default());
    sysctl::set("device_max_requests", 6);
    let fds: Vec<_> = (0..3)
        .map(|_| machine.open(NODE, RDWR).expect("open"))
        .collect();
    let mut command = Command::new(&mut machine, 0);
    command.test_unit_ready();
    for i in 0..6 {
        command.queue(&mut machine, fds[i % 3]).expect("queue");
    }
    for fd in &fds {
        for _ in 0..10 {
            assert_eq!(command.queue(&mut machine, *fd), Err(EAGAIN));
        }
    }
    // What was refused is charged to nobody: each open has two.
    sysctl::set("device_max_requests", 9);
    sysctl::set("max_requests", 3);
    for fd in &fds {
        assert_eq!(command.queue(&mut machine, *fd), Ok(()));
        assert_eq!(command.queue(&mut machine, *fd), Err(EAGAIN));
        wait_until("one is done", || {
            Shared(&machine).poll(*fd, POLLIN, 0) == Ok(POLLIN)
        });
        command.get(&mut machine, *fd).expect("get");
        command.test_unit_ready();
    }
    sysctl::set("device_max_requests", 6);
    sysctl::set("max_requests", 1024);
    machine.close(fds[0]);
    // The close has given back its two, once the disk has.
    let queued = AtomicU64::new(0);
    let sys = || Shared(&machine);
    wait_until("there is room", || {
        let ok = command.queue(&mut sys(), fds[1]).is_ok();
        queued.fetch_add(u64::from(ok), Ordering::SeqCst) + u64::from(ok) == 2
    });
    assert_eq!(command.queue(&mut sys(), fds[2]), Err(EAGAIN));
    machine.close(fds[1]);
    machine.close(fds[2]);
    machine.unload(module);
}

fn the_devices_byte_limit_is_eagain_for_all_its_opens() {
    let (mut machine, module) = boot(Config::default());
    sysctl::set("device_max_bytes", 200_000);
    let fds: Vec<_> = (0..2)
        .map(|_| machine.open(NODE, RDWR).expect("open"))
        .collect();
    let mut command = Command::new(&mut machine, 65536);
    command.rw10(false, 0, 128);
    for i in 0..3 {
        command.queue(&mut machine, fds[i % 2]).expect("queue");
    }
    for fd in &fds {
        for _ in 0..10 {
            assert_eq!(command.queue(&mut machine, *fd), Err(EAGAIN));
        }
    }
    // What was refused is charged to nobody: one back, one in.
    sysctl::set("max_bytes", 3 * 65536);
    assert_eq!(machine.poll(fds[1], POLLIN, 20_000), Ok(POLLIN));
    command.get(&mut machine, fds[1]).expect("get");
    command.queue(&mut machine, fds[0]).expect("room again");
    for fd in fds {
        machine.close(fd);
    }
    machine.unload(module);
}

fn room_that_another_open_makes_is_told() {
    const POLLOUT: i16 = sys::POLLOUT as i16;
    let (mut machine, module) = boot(Config::default());
    sysctl::set("device_max_requests", 1);
    let hog = machine.open(NODE, RDWR).expect("open");
    let fd = machine.open(NODE, RDWR).expect("open");
    let kq = machine.kqueue().expect("kqueue");
    let mut change = event(fd, sys::EV_ADD);
    change.filter = sys::EVFILT_WRITE as i16;
    let mut command = Command::new(&mut machine, 0);
    command.test_unit_ready();
    command.queue(&mut machine, hog).expect("queue");
    assert_eq!(machine.kevent(kq, &[change], &mut [], 0), Ok(0));
    assert_eq!(next(&mut machine, kq), None);
    assert_eq!(machine.poll(fd, POLLOUT, 10), Ok(0));
    let shared = &machine;
    std::thread::scope(|scope| {
        let poll = scope.spawn(|| Shared(shared).poll(fd, POLLOUT, 20_000));
        let kevent = scope.spawn(|| {
            let mut events = [event(0, 0)];
            let n = Shared(shared).kevent(kq, &[], &mut events, 20_000);
            (n, events[0].data)
        });
        std::thread::sleep(Duration::from_millis(30));
        let mut sys = Shared(shared);
        assert_eq!(sys.poll(hog, POLLIN, 20_000), Ok(POLLIN));
        command.get(&mut sys, hog).expect("get");
        assert_eq!(poll.join().expect("woken"), Ok(POLLOUT));
        assert_eq!(kevent.join().expect("woken"), (Ok(1), 1));
    });
    for fd in [hog, fd, kq] {
        machine.close(fd);
    }
    machine.unload(module);
}

/// The table of docs/memory.md, line by line: bytes of transfer, bytes of
/// kernel memory for one outstanding request.
fn an_outstanding_request_costs_what_the_page_says() {
    let page = include_str!("../../../../docs/memory.md");
    let number = |cell: &str| {
        let digits: String = cell.chars().filter(char::is_ascii_digit).collect();
        digits.parse::<usize>().ok()
    };
    let rows: Vec<(usize, usize, usize)> = page
        .lines()
        .filter_map(|line| {
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            match cells[..] {
                ["", len, data, all, ""] => Some((number(len)?, number(data)?, number(all)?)),
                _ => None,
            }
        })
        .collect();
    assert!(rows.len() >= 8, "the table is there");
    let (mut machine, module) = boot(Config {
        maxio: 16 << 20,
        ..Config::default()
    });
    // The alias of the node is made, if it is.
    ukernel::task::drain();
    machine.disk().stuck.store(true, Ordering::SeqCst);
    let mut wrong = 0;
    for (len, data, all) in rows {
        let fd = machine.open(NODE, RDWR).expect("open");
        let mut command = Command::new(&mut machine, len);
        command.scsi(
            &[0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            if len == 0 {
                sys::CAM_DIR_NONE
            } else {
                sys::CAM_DIR_IN
            },
            len,
        );
        // The zones come with the first request.
        command.queue(&mut machine, fd).expect("queue");
        // What the open before has left is freed later, by whoever had it last.
        machine.device().wait_returned();
        ukernel::task::drain();
        let in_use = || memory::in_use("qpass");
        wait_until("nothing more is freed", || {
            let before = in_use();
            std::thread::sleep(Duration::from_millis(10));
            in_use() == before
        });
        let before = in_use();
        let bounce = sysctl::value("0.bounce_bytes").expect("a counter");
        command.queue(&mut machine, fd).expect("queue");
        let bounce = sysctl::value("0.bounce_bytes").expect("a counter") - bounce;
        let used = memory::in_use("qpass") - before;
        println!("| {len} | {bounce} | {used} |");
        wrong += usize::from((bounce as usize, used) != (data, all));
        machine.close(fd);
        machine.disk().unstick();
        wait_until("all memory is back", all_is_back);
        machine.disk().stuck.store(true, Ordering::SeqCst);
        command.free(&mut machine);
    }
    assert_eq!(wrong, 0, "lines of the page; the right ones are above");
    machine.disk().unstick();
    machine.unload(module);
}

/// sysctl(9) refuses a name that is there: the old unit's counters have gone
/// when its number comes back.
fn unit_numbers_come_back_with_their_counters() {
    let (mut machine, module) = boot(Config::default());
    for _ in 0..5 {
        let fd = machine.open(NODE, RDWR).expect("open");
        let mut command = Command::new(&mut machine, 0);
        command.test_unit_ready();
        command.send(&mut machine, fd).expect("send");
        assert_eq!(counters(0), [1, 1, 0, 0]);
        machine.close(fd);
        machine.depart();
        assert_eq!(sysctl::value("0.submitted"), None);
        machine.arrive();
    }
    machine.unload(module);
}

/// Reads of `len` bytes, or TEST UNIT READYs, that are counted together.
const TOGETHER: usize = 16;

/// What [`TOGETHER`] commands cost from their submission until they are reaped,
/// each step by itself, so that no thread meets another: submitted while the
/// disk is stuck, completed, reaped.
fn cost(len: usize, threshold: u64, batch: bool) -> ukernel::count::Cost {
    let (mut machine, module) = boot(Config {
        unmapped: true,
        ..Config::default()
    });
    sysctl::set("zerocopy_min", threshold);
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut commands: Vec<_> = (0..TOGETHER)
        .map(|_| Command::new(&mut machine, len))
        .collect();
    for command in &mut commands {
        match len {
            0 => command.test_unit_ready(),
            len => command.rw10(false, 0, (len / 512) as u16),
        }
    }
    let mut arrays = enter::Arrays::new(&mut machine);
    let names: Vec<_> = commands.iter().map(|c| (c.ccb.address(), 1)).collect();
    arrays.submit(&names);
    let mut call = arrays.call(0, 0, 0);
    call.flags = sys::QPASS_ENTER_SHORT;
    let n = TOGETHER as u32;
    let mut round = || {
        machine.disk().stuck.store(true, Ordering::SeqCst);
        if batch {
            (call.to_submit, call.to_complete) = (n, 0);
            assert_eq!(enter::enter(&mut machine, fd, call), Ok((n, 0, 0, 0)));
        } else {
            for command in &commands {
                command.queue(&mut machine, fd).expect("queue");
            }
        }
        machine.disk().unstick();
        wait_until("all are done", || sysctl::value("0.outstanding") == Some(0));
        // A command is counted as done before it is on the queue.
        machine.device().wait_returned();
        if batch {
            (call.to_submit, call.to_complete) = (0, n);
            assert_eq!(enter::enter(&mut machine, fd, call), Ok((0, n, 0, 0)));
        } else {
            for command in &commands {
                command.get(&mut machine, fd).expect("get");
            }
        }
    };
    // The zones come with the first request, and the node's alias is made.
    round();
    ukernel::task::drain();
    let ((), cost) = ukernel::count::count(round);
    machine.close(fd);
    machine.unload(module);
    cost
}

/// The table of docs/cost.md, line by line.
fn an_io_costs_what_the_page_says() {
    let page = include_str!("../../../../docs/cost.md");
    let mut wrong = Vec::new();
    let mut lines = 0;
    for line in page.lines() {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [
            "",
            len,
            copied,
            call @ ("queue" | "enter"),
            numbers @ ..,
            "",
        ] = &cells[..]
        else {
            continue;
        };
        lines += 1;
        let len: usize = len.parse().expect("bytes");
        let threshold = if *copied == "yes" { u64::MAX } else { 4096 };
        let cost = cost(len, threshold, *call == "enter");
        let locks = |name| cost.locks.get(name).copied().unwrap_or(0);
        let found = [
            cost.instructions / TOGETHER as u64,
            cost.bytes / TOGETHER as u64,
            locks("CAM device lock"),
            locks("qpass queue"),
        ];
        let wanted: Vec<u64> = numbers
            .iter()
            .map(|n| n.parse().expect("a number"))
            .collect();
        let [instructions, bytes, device, queue] = wanted[..] else {
            panic!("{line}");
        };
        let [i, b, d, q] = found;
        println!("| {len} | {copied} | {call} | {i} | {b} | {d} | {q} |");
        // Another compiler may make a little more or less of it.
        let close = |found: u64, wanted: u64| {
            (wanted - wanted / 10..=wanted + wanted / 10).contains(&found)
        };
        if !close(i, instructions) || !close(b, bytes) || (d, q) != (device, queue) {
            wrong.push(line);
        }
        assert_eq!(cost.locks.len(), 2, "other locks: {:?}", cost.locks);
    }
    assert_eq!(lines, 10, "the table is there");
    assert!(wrong.is_empty(), "the right lines are above: {wrong:#?}");
}
