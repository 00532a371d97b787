//! QPIOC_LIST: what is on its way, of one open or of the device.

use super::*;
use conform::sys::Memory;

tests! {
    every_request_is_listed_with_what_it_asks_for;
    states_are_told_apart;
    a_cursor_goes_on_where_the_list_ended;
    another_opens_requests_are_for_the_privileged;
    the_list_is_of_one_moment_under_load;
    bad_lists_are_refused;
}

const EINVAL: i32 = sys::EINVAL as i32;
const EPERM: i32 = sys::EPERM as i32;

/// One call: its answer and its entries.
fn once(
    sys: &mut dyn Sys,
    fd: i32,
    flags: u32,
    room: usize,
    cursor: [u64; 2],
) -> Result<(sys::qpass_list, Vec<sys::qpass_outstanding>), i32> {
    let entries = Memory::new(sys, room.max(1) * size_of::<sys::qpass_outstanding>());
    let call = sys::qpass_list {
        entries: entries.address() as u64,
        room: room as u32,
        count: 99,
        flags,
        reserved0: 0,
        cursor,
        reserved: [0; 2],
    };
    let answer = control::call(sys, fd, sys::QPC_QPIOC_LIST, call);
    let count = answer.map_or(0, |a| a.count as usize);
    let at = entries.bytes().as_ptr().cast::<sys::qpass_outstanding>();
    // SAFETY: the memory has room for them; integers.
    let found = (0..count).map(|i| unsafe { at.add(i).read() }).collect();
    entries.unmap(sys);
    answer.map(|answer| (answer, found))
}

/// All of it, in calls with room for `room` entries.
pub fn list(
    sys: &mut dyn Sys,
    fd: i32,
    flags: u32,
    room: usize,
) -> Result<Vec<sys::qpass_outstanding>, i32> {
    let (mut all, mut cursor) = (Vec::new(), [0; 2]);
    loop {
        let (answer, found) = once(sys, fd, flags, room, cursor)?;
        let more = answer.flags & sys::QPASS_LIST_MORE != 0;
        assert_eq!(answer.flags & !sys::QPASS_LIST_MORE, flags);
        assert_eq!(more, answer.cursor != [0; 2]);
        assert!(!more || found.len() == room.min(sys::QPASS_LIST_MAX as usize));
        all.extend(found);
        cursor = answer.cursor;
        if !more {
            return Ok(all);
        }
    }
}

/// By open, and by age in each.
pub fn check_order(found: &[sys::qpass_outstanding]) {
    let keys: Vec<_> = found.iter().map(|e| (e.open, e.number)).collect();
    assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
}

fn every_request_is_listed_with_what_it_asks_for() {
    let (mut machine, module) = boot(Config::default());
    machine.disk().stuck.store(true, Ordering::SeqCst);
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 4096);
    command.rw10(true, 0x01020304, 8);
    let mut arrays = enter::Arrays::new(&mut machine);
    arrays.submit(&[(command.ccb.address(), 0xfeed)]);
    let answer = enter::enter(&mut machine, fd, arrays.call(1, 0, 0));
    assert_eq!(answer, Ok((1, 0, 0, 0)));
    std::thread::sleep(Duration::from_millis(20));
    let found = list(&mut machine, fd, 0, 10).expect("list");
    assert_eq!(found.len(), 1);
    let entry = found[0];
    assert_eq!(
        (entry.ccb, entry.tag),
        (command.ccb.address() as u64, 0xfeed)
    );
    assert_eq!((entry.open, entry.number), (1, 1));
    assert_eq!((entry.func_code, entry.length), (sys::XPT_SCSI_IO, 4096));
    assert_eq!(entry.pid, thread::PID);
    assert_eq!(u32::from(entry.state), sys::QPASS_STATE_SENT);
    assert_eq!(u32::from(entry.direction), sys::QPASS_DIRECTION_OUT);
    assert_eq!((entry.cdb_len, entry.reserved), (10, 0));
    assert_eq!(entry.cdb[..10], [0x2a, 0, 1, 2, 3, 4, 0, 0, 8, 0]);
    assert_eq!(entry.cdb[10..], [0; 6]);
    let ms = entry.age / 1_000_000;
    assert!((19..10_000).contains(&ms), "{ms} ms");
    machine.close(fd);
    machine.disk().unstick();
    machine.unload(module);
}

fn states_are_told_apart() {
    let (mut machine, module) = boot(Config {
        openings: 2,
        ..Config::default()
    });
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 0);
    command.immediate(sys::XPT_NOOP);
    command.queue(&mut machine, fd).expect("queue");
    machine.disk().stuck.store(true, Ordering::SeqCst);
    command.test_unit_ready();
    for _ in 0..5 {
        command.queue(&mut machine, fd).expect("queue");
    }
    let found = list(&mut machine, fd, 0, 10).expect("list");
    let count = |state| found.iter().filter(|e| u32::from(e.state) == state).count();
    assert_eq!(count(sys::QPASS_STATE_DONE), 1);
    assert_eq!(count(sys::QPASS_STATE_SENT), 2);
    assert_eq!(count(sys::QPASS_STATE_QUEUED), 3);
    check_order(&found);
    let none = found.iter().filter(|e| e.func_code == sys::XPT_SCSI_IO);
    assert!(none.clone().all(|e| (e.direction, e.length) == (0, 0)));
    machine.disk().unstick();
    for _ in 0..6 {
        assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
        command.get(&mut machine, fd).expect("get");
    }
    assert!(
        list(&mut machine, fd, 0, 10).expect("list").is_empty(),
        "reaped"
    );
    machine.close(fd);
    machine.unload(module);
}

fn a_cursor_goes_on_where_the_list_ended() {
    let (mut machine, module) = boot(Config::default());
    machine.disk().stuck.store(true, Ordering::SeqCst);
    let fds = [(); 3].map(|()| machine.open(NODE, RDWR).expect("open"));
    let mut command = Command::new(&mut machine, 0);
    command.test_unit_ready();
    for n in [300, 0, 7] {
        let fd = fds[if n == 300 { 0 } else { 2 }];
        for _ in 0..n {
            command.queue(&mut machine, fd).expect("queue");
        }
    }
    let device = sys::QPASS_LIST_DEVICE;
    for room in [1, 7, 100, 256, 300, 400] {
        let own = list(&mut machine, fds[0], 0, room).expect("list");
        assert_eq!(own.len(), 300);
        check_order(&own);
        let all = list(&mut machine, fds[1], device, room).expect("list");
        assert_eq!(all.len(), 307);
        check_order(&all);
        assert!(
            list(&mut machine, fds[1], 0, room)
                .expect("list")
                .is_empty()
        );
    }
    // No room is no entry, and says that there are more.
    let (answer, _) = once(&mut machine, fds[0], 0, 0, [0; 2]).expect("list");
    assert_eq!((answer.count, answer.flags), (0, sys::QPASS_LIST_MORE));
    for fd in fds {
        machine.close(fd);
    }
    machine.disk().unstick();
    machine.unload(module);
}

fn another_opens_requests_are_for_the_privileged() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    thread::PRIVILEGED.store(false, Ordering::SeqCst);
    let device = sys::QPASS_LIST_DEVICE;
    assert_eq!(list(&mut machine, fd, device, 9).err(), Some(EPERM));
    assert!(list(&mut machine, fd, 0, 9).is_ok());
    thread::PRIVILEGED.store(true, Ordering::SeqCst);
    assert!(list(&mut machine, fd, device, 9).is_ok());
    machine.close(fd);
    machine.unload(module);
}

/// Two opens keep a number of requests each under way: every list shows just
/// what an open may have, each request once.
fn the_list_is_of_one_moment_under_load() {
    let (machine, module) = boot(BUSY);
    let process = machine.process();
    let fds = [(); 2].map(|()| process.open(NODE, RDWR).expect("open"));
    let watcher = process.open(NODE, RDWR).expect("open");
    let busy = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let (machine, busy) = (&machine, &busy);
        let looking = scope.spawn(move || {
            let (mut seen, mut lists) = (0, 0);
            while busy.load(Ordering::SeqCst) || lists < 10 {
                let flags = sys::QPASS_LIST_DEVICE;
                let found = list(&mut Shared(machine), watcher, flags, 256).expect("list");
                check_order(&found);
                for open in [1, 2] {
                    let of_open = found.iter().filter(|e| e.open == open);
                    assert!(of_open.count() <= 3, "more than were ever queued");
                }
                seen = seen.max(found.len());
                lists += 1;
            }
            seen
        });
        load(machine, &fds, 6, 1000);
        busy.store(false, Ordering::SeqCst);
        assert!(looking.join().expect("it was") > 1, "under way");
    });
    for fd in fds.into_iter().chain([watcher]) {
        process.close(fd);
    }
    machine.unload(module);
}

fn bad_lists_are_refused() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 0);
    command.immediate(sys::XPT_NOOP);
    command.queue(&mut machine, fd).expect("queue");
    let entries = Memory::new(&mut machine, 4096);
    let good = sys::qpass_list {
        entries: entries.address() as u64,
        room: 4,
        count: 0,
        flags: 0,
        reserved0: 0,
        cursor: [0; 2],
        reserved: [0; 2],
    };
    let spoilt: [fn(&mut sys::qpass_list); 3] =
        [|l| l.flags = 2, |l| l.reserved0 = 1, |l| l.reserved[1] = 1];
    for spoil in spoilt {
        let mut call = good;
        spoil(&mut call);
        let answer = control::call(&mut machine, fd, sys::QPC_QPIOC_LIST, call);
        assert_eq!(answer.err(), Some(EINVAL));
    }
    let mut wild = good;
    wild.entries = 16;
    let answer = control::call(&mut machine, fd, sys::QPC_QPIOC_LIST, wild);
    assert_eq!(answer.err(), Some(EFAULT));
    let answer = control::call(&mut machine, fd, sys::QPC_QPIOC_LIST, good);
    assert_eq!(answer.map(|a| a.count), Ok(1));
    // What came out of the call before goes in as it is.
    let again = sys::qpass_list {
        flags: sys::QPASS_LIST_MORE,
        ..good
    };
    let answer = control::call(&mut machine, fd, sys::QPC_QPIOC_LIST, again);
    assert_eq!(answer.map(|a| (a.count, a.flags)), Ok((1, 0)));
    machine.close(fd);
    machine.unload(module);
}
