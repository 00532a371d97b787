//! QPIOC_ENTER: batches, partial success, waiting, and what ends it.

use super::*;
use conform::sys::Memory;

tests! {
    many_are_submitted_and_reaped_in_one_call;
    the_short_form_writes_only_what_failed;
    a_bad_submission_stops_and_the_others_are_taken;
    an_unreadable_array_stops_at_the_last_readable_entry;
    an_unwritable_completion_loses_nothing;
    an_unwritable_completion_is_found_before_its_data_is_copied;
    records_that_fit_are_handed_over;
    an_unwritable_buffer_lets_the_others_through;
    each_copy_that_fails_in_a_batch_is_told_and_loses_nothing;
    over_a_limit_it_stops_or_reaps_on;
    it_waits_for_room_that_another_open_makes;
    a_timeout_ends_the_wait;
    a_signal_ends_the_wait_with_counts;
    a_cancel_ends_the_wait;
    a_departure_ends_the_wait;
    a_departure_ends_a_wait_for_nothing;
    a_departure_ends_the_wait_for_room;
    it_sleeps_until_enough_is_done;
    immediate_ccbs_stay_in_order;
    bad_arguments_are_einval_and_change_nothing;
    both_interfaces_see_one_queue;
    a_reader_that_is_awake_is_not_woken_again;
}

const EINVAL: i32 = sys::EINVAL as i32;
const EINTR: i32 = sys::EINTR as i32;
const ETIMEDOUT: i32 = sys::ETIMEDOUT as i32;
const FOREVER: u64 = u64::MAX;
pub const MS: u64 = 1_000_000;

/// The arrays of a call, in memory of the process's.
pub struct Arrays {
    pub submissions: Memory,
    pub completions: Memory,
}

/// What a call answered: submitted, completed, and the two errnos.
pub type Answer = (u32, u32, i32, i32);

impl Arrays {
    pub fn new(sys: &mut dyn Sys) -> Self {
        Arrays {
            submissions: Memory::new(sys, 4096),
            completions: Memory::new(sys, 4096),
        }
    }

    /// Sets the submissions: addresses of CCBs, and their tags.
    pub fn submit(&mut self, what: &[(usize, u64)]) {
        let at = self.submissions.bytes_mut().as_mut_ptr();
        for (i, (ccb, tag)) in what.iter().enumerate() {
            let submission = sys::qpass_submission {
                ccb: *ccb as u64,
                tag: *tag,
                reserved: 0,
            };
            // SAFETY: the page has room for 170 of them.
            unsafe { at.cast::<sys::qpass_submission>().add(i).write(submission) };
        }
    }

    pub fn done(&self, n: u32) -> Vec<sys::qpass_completion> {
        let at = self.completions.bytes().as_ptr();
        (0..n as usize)
            // SAFETY: the page has room for 128 of them; integers.
            .map(|i| unsafe { at.cast::<sys::qpass_completion>().add(i).read() })
            .collect()
    }

    pub fn tags(&self, n: u32) -> Vec<u64> {
        let mut tags: Vec<_> = self.done(n).iter().map(|c| c.tag).collect();
        tags.sort_unstable();
        tags
    }

    pub fn call(&self, to_submit: usize, to_complete: u32, min_complete: u32) -> sys::qpass_enter {
        sys::qpass_enter {
            submissions: self.submissions.address() as u64,
            completions: self.completions.address() as u64,
            to_submit: to_submit as u32,
            to_complete,
            min_complete,
            flags: 0,
            timeout: FOREVER,
            submitted: 77,
            completed: 77,
            submit_error: 77,
            complete_error: 77,
            reserved: [0; 2],
        }
    }
}

pub fn enter(sys: &mut dyn Sys, fd: i32, call: sys::qpass_enter) -> Result<Answer, i32> {
    control::call(sys, fd, sys::QPC_QPIOC_ENTER, call)
        .map(|c| (c.submitted, c.completed, c.submit_error, c.complete_error))
}

/// Reads of a block each, of LBA 0 and on; the disk has them numbered.
pub fn reads(sys: &mut dyn Sys, n: u32) -> Vec<Command> {
    let read = |lba| {
        let mut command = Command::new(sys, 512);
        command.rw10(false, lba, 1);
        command
    };
    (0..n).map(read).collect()
}

pub fn with_tags(commands: &[Command]) -> Vec<(usize, u64)> {
    let tagged = |(i, c): (usize, &Command)| (c.ccb.address(), 1000 + i as u64);
    commands.iter().enumerate().map(tagged).collect()
}

fn many_are_submitted_and_reaped_in_one_call() {
    let (mut machine, module) = boot(BUSY);
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut arrays = Arrays::new(&mut machine);
    let commands = reads(&mut machine, 40);
    arrays.submit(&with_tags(&commands));
    let answer = enter(&mut machine, fd, arrays.call(40, 60, 40));
    assert_eq!(answer, Ok((40, 40, 0, 0)));
    assert_eq!(arrays.tags(40), (1000..1040).collect::<Vec<_>>());
    for done in arrays.done(40) {
        let command = &commands[done.tag as usize - 1000];
        assert_eq!(done.ccb, command.ccb.address() as u64);
        assert_eq!(done.status & sys::CAM_STATUS_MASK, sys::CAM_REQ_CMP);
        assert_eq!((done.resid, done.scsi_status, done.sense_len), (0, 0, 0));
        assert_eq!(u32::from(done.flags), sys::QPASS_COMPLETION_CCB);
        assert_eq!(done.reserved, 0);
        assert_eq!(command.ended().status, sys::CAM_REQ_CMP);
    }
    // Nothing is left, and nothing to wait for is no wait.
    assert_eq!(
        enter(&mut machine, fd, arrays.call(0, 60, 0)),
        Ok((0, 0, 0, 0))
    );
    machine.close(fd);
    machine.unload(module);
}

fn the_short_form_writes_only_what_failed() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut arrays = Arrays::new(&mut machine);
    let mut commands = reads(&mut machine, 3);
    machine.disk().fill(7);
    commands[1].rw10(false, u32::MAX, 1);
    arrays.submit(&with_tags(&commands));
    let mut call = arrays.call(3, 3, 3);
    call.flags = sys::QPASS_ENTER_SHORT;
    assert_eq!(enter(&mut machine, fd, call), Ok((3, 3, 0, 0)));
    for done in arrays.done(3) {
        let command = &commands[done.tag as usize - 1000];
        let failed = done.tag == 1001;
        let written = u32::from(done.flags) & sys::QPASS_COMPLETION_CCB != 0;
        assert_eq!(written, failed);
        if failed {
            assert_eq!(
                done.status & sys::CAM_STATUS_MASK,
                sys::CAM_SCSI_STATUS_ERROR
            );
            assert_eq!(done.scsi_status, sys::SCSI_STATUS_CHECK_COND as u8);
            assert_eq!((done.sense_len, done.resid), (18, 512));
            // LOGICAL BLOCK ADDRESS OUT OF RANGE
            assert_eq!(command.ended().sense, (5, 0x21, 0));
        } else {
            assert_eq!(done.status & sys::CAM_STATUS_MASK, sys::CAM_REQ_CMP);
            assert_eq!(command.ended().status, sys::CAM_REQ_INPROG, "as it was");
            assert!(
                command.data.bytes()[..512].iter().all(|b| *b == 7),
                "its data"
            );
        }
    }
    machine.close(fd);
    machine.unload(module);
}

fn a_bad_submission_stops_and_the_others_are_taken() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut arrays = Arrays::new(&mut machine);
    let mut commands = reads(&mut machine, 30);
    // In the second batch; in the first entry of it; in the first of all.
    for bad in [20, 16, 0] {
        let was = commands[bad].csio().cdb_len;
        commands[bad].csio().cdb_len = 17;
        arrays.submit(&with_tags(&commands));
        let start = Instant::now();
        let mut call = arrays.call(30, 40, 35);
        call.timeout = 60_000 * MS;
        let (submitted, mut reaped, stopped, wait) = enter(&mut machine, fd, call).expect("enter");
        assert_eq!((submitted, stopped, wait), (bad as u32, EINVAL, 0));
        assert!(start.elapsed() < Duration::from_secs(30), "no wait");
        while reaped < submitted {
            let rest = submitted - reaped;
            let (_, n, _, error) = enter(&mut machine, fd, arrays.call(0, rest, 1)).expect("enter");
            assert_eq!(error, 0);
            reaped += n;
        }
        commands[bad].csio().cdb_len = was;
    }
    // A bad pointer is another errno, and a reserved field too.
    let good = commands[0].ccb.address();
    arrays.submit(&[(good, 1), (16, 2)]);
    let answer = enter(&mut machine, fd, arrays.call(2, 9, 1));
    let (submitted, _, stopped, _) = answer.expect("enter");
    assert_eq!((submitted, stopped), (1, EFAULT));
    arrays.submissions.bytes_mut()[16] = 1;
    let answer = enter(&mut machine, fd, arrays.call(1, 0, 0));
    assert_eq!(answer, Ok((0, 0, EINVAL, 0)));
    machine.close(fd);
    machine.unload(module);
}

fn an_unreadable_array_stops_at_the_last_readable_entry() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut arrays = Arrays::new(&mut machine);
    let command = &reads(&mut machine, 1)[0];
    let entry = size_of::<sys::qpass_submission>();
    let room = 4096 / entry;
    arrays.submit(&vec![(command.ccb.address(), 5); room]);
    // Five entries before the end of the page.
    let mut call = arrays.call(8, 20, 0);
    call.submissions += ((room - 5) * entry) as u64;
    let (submitted, mut reaped, stopped, _) = enter(&mut machine, fd, call).expect("enter");
    assert_eq!((submitted, stopped), (5, EFAULT));
    while reaped < 5 {
        reaped += enter(&mut machine, fd, arrays.call(0, 5, 1))
            .expect("enter")
            .1;
    }
    machine.close(fd);
    machine.unload(module);
}

fn an_unwritable_completion_loses_nothing() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut arrays = Arrays::new(&mut machine);
    let commands = reads(&mut machine, 20);
    arrays.submit(&with_tags(&commands));
    let mut call = arrays.call(20, 20, 20);
    call.completions = 16;
    assert_eq!(enter(&mut machine, fd, call), Ok((20, 0, 0, EFAULT)));
    // The first batch fits, the second does not.
    let mut call = arrays.call(0, 20, 20);
    call.completions += 4096 - 16 * size_of::<sys::qpass_completion>() as u64;
    let (_, reaped, _, error) = enter(&mut machine, fd, call).expect("enter");
    assert!(reaped <= 16 && (reaped > 0 || error == EFAULT));
    assert_eq!(error, EFAULT);
    let rest = 20 - reaped;
    let answer = enter(&mut machine, fd, arrays.call(0, 20, rest));
    assert_eq!(answer, Ok((0, rest, 0, 0)));
    machine.close(fd);
    machine.unload(module);
}

/// A program that was not told may use its buffers for something else.
fn an_unwritable_completion_is_found_before_its_data_is_copied() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut arrays = Arrays::new(&mut machine);
    let mut commands = reads(&mut machine, 3);
    machine.disk().fill(7);
    for command in &mut commands {
        command.data.bytes_mut().fill(0x55);
    }
    arrays.submit(&with_tags(&commands));
    let mut call = arrays.call(3, 3, 3);
    call.completions = 16;
    for _ in 0..3 {
        assert_eq!(
            enter(&mut machine, fd, call),
            Ok((call.to_submit, 0, 0, EFAULT))
        );
        call.to_submit = 0;
        for command in &commands {
            assert_eq!(command.ended().status, sys::CAM_REQ_INPROG, "as it was");
            assert!(command.data.bytes().iter().all(|b| *b == 0x55));
        }
    }
    let copied = sysctl::value("0.copied_bytes");
    assert_eq!(copied, Some(0), "nothing was copied in vain");
    assert_eq!(
        enter(&mut machine, fd, arrays.call(0, 3, 3)),
        Ok((0, 3, 0, 0))
    );
    assert_eq!(arrays.tags(3), [1000, 1001, 1002]);
    for command in &commands {
        assert!(command.data.bytes()[..512].iter().all(|b| *b == 7));
    }
    machine.close(fd);
    machine.unload(module);
}

/// The array ends in a page that is not there.
fn records_that_fit_are_handed_over() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut arrays = Arrays::new(&mut machine);
    let commands = reads(&mut machine, 9);
    arrays.submit(&with_tags(&commands));
    assert_eq!(
        enter(&mut machine, fd, arrays.call(9, 0, 0)),
        Ok((9, 0, 0, 0))
    );
    wait_until("all are done", || sysctl::value("0.outstanding") == Some(0));
    machine.device().wait_returned();
    let mut call = arrays.call(0, 9, 9);
    call.completions += 4096 - 5 * size_of::<sys::qpass_completion>() as u64;
    assert_eq!(enter(&mut machine, fd, call), Ok((0, 5, 0, EFAULT)));
    assert_eq!(
        enter(&mut machine, fd, arrays.call(0, 9, 4)),
        Ok((0, 4, 0, 0))
    );
    machine.close(fd);
    machine.unload(module);
}

fn an_unwritable_buffer_lets_the_others_through() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut arrays = Arrays::new(&mut machine);
    let mut commands = reads(&mut machine, 6);
    let good = commands[2].csio().data_ptr;
    commands[2].csio().data_ptr = 16 as *mut u8;
    arrays.submit(&with_tags(&commands));
    assert_eq!(
        enter(&mut machine, fd, arrays.call(6, 0, 0)),
        Ok((6, 0, 0, 0))
    );
    wait_until("all are done", || sysctl::value("0.outstanding") == Some(0));
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (_, n, _, error) = enter(&mut machine, fd, arrays.call(0, 9, 0)).expect("enter");
        assert_eq!(error, EFAULT, "that one is there still");
        seen.extend(arrays.done(n).iter().map(|c| c.tag));
    }
    seen.sort_unstable();
    assert_eq!(seen, [1000, 1001, 1003, 1004, 1005]);
    // It goes where its CCB was, for the private copy has that address.
    let cancelled = control::cancel(&mut machine, fd, commands[2].ccb.address());
    assert_eq!(cancelled, Ok([0, 0, 0, 1]), "it is outstanding");
    let _ = good;
    machine.close(fd);
    machine.unload(module);
}

fn each_copy_that_fails_in_a_batch_is_told_and_loses_nothing() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut arrays = Arrays::new(&mut machine);
    let commands = reads(&mut machine, 5);
    arrays.submit(&with_tags(&commands));
    // ioctl(2)'s own copies are the first in and the last out.
    for (point, copies) in [(&fault::COPYIN, 7), (&fault::COPYOUT, 12)] {
        for n in 1..=copies {
            point.arm(n);
            let answer = enter(&mut machine, fd, arrays.call(5, 5, 5));
            let fired = point.fired();
            point.arm(0);
            assert!(fired, "copy {n}");
            let mut seen = match answer {
                // The numbers did not come out, or the call did not go in.
                Err(errno) => {
                    assert_eq!((errno, n == 1 || n == copies), (EFAULT, true), "copy {n}");
                    if n == 1 { 5 } else { 0 }
                }
                Ok((submitted, reaped, stopped, error)) => {
                    assert_eq!(submitted == 5, stopped == 0, "copy {n}");
                    // Of an array that cannot be copied at once, each entry can.
                    let told = stopped == EFAULT || error == EFAULT;
                    assert!(told || (submitted, reaped) == (5, 5), "copy {n}");
                    5 - submitted + reaped
                }
            };
            let (requests, _) = control::outstanding(&mut machine, fd);
            if answer.is_ok() {
                assert_eq!(requests, 5 - seen, "copy {n}");
            }
            while control::outstanding(&mut machine, fd).0 != 0 {
                seen += enter(&mut machine, fd, arrays.call(0, 5, 1))
                    .expect("enter")
                    .1;
            }
            if answer.is_ok() {
                assert_eq!(seen, 5, "copy {n}");
            }
        }
    }
    machine.close(fd);
    machine.unload(module);
}

fn over_a_limit_it_stops_or_reaps_on() {
    let (mut machine, module) = boot(BUSY);
    let fd = machine.open(NODE, RDWR).expect("open");
    control::limit(&mut machine, fd, 5, 0).expect("limit");
    let mut arrays = Arrays::new(&mut machine);
    let commands = reads(&mut machine, 40);
    arrays.submit(&with_tags(&commands));
    let (submitted, mut reaped, stopped, _) =
        enter(&mut machine, fd, arrays.call(40, 0, 0)).expect("enter");
    assert_eq!((submitted, reaped, stopped), (5, 0, EAGAIN));
    while reaped < 5 {
        reaped += enter(&mut machine, fd, arrays.call(0, 5, 1))
            .expect("enter")
            .1;
    }
    let mut call = arrays.call(40, 40, 40);
    call.flags = sys::QPASS_ENTER_WAIT_ROOM;
    assert_eq!(enter(&mut machine, fd, call), Ok((40, 40, 0, 0)));
    assert_eq!(arrays.tags(40), (1000..1040).collect::<Vec<_>>());
    // With room for ten completions, no more than fifteen can be taken.
    let mut call = arrays.call(40, 10, 10);
    call.flags = sys::QPASS_ENTER_WAIT_ROOM;
    call.timeout = 100 * MS;
    assert_eq!(enter(&mut machine, fd, call), Ok((15, 10, EAGAIN, 0)));
    machine.close(fd);
    machine.unload(module);
}

/// A device without room: the open that has it all, `held` requests that are
/// done, and the command they came with; and a call that wants to submit one more
/// on another open, which sleeps when `what` is done. Says what it answered.
fn without_room(held: usize, what: impl FnOnce(&Machine, i32, &Command)) -> Result<Answer, i32> {
    let (machine, module) = boot(Config::default());
    sysctl::set("device_max_requests", held as u64);
    let process = machine.process();
    let [hog, fd] = [(); 2].map(|()| process.open(NODE, RDWR).expect("open"));
    let mut sys = Shared(&machine);
    let command = &reads(&mut sys, 1)[0];
    for _ in 0..held {
        command.queue(&mut sys, hog).expect("queue");
    }
    wait_until("all are done", || sysctl::value("0.outstanding") == Some(0));
    let mut arrays = Arrays::new(&mut sys);
    arrays.submit(&with_tags(&reads(&mut sys, 1)));
    let mut call = arrays.call(1, 1, 1);
    call.flags = sys::QPASS_ENTER_WAIT_ROOM;
    let answer = std::thread::scope(|scope| {
        let machine = &machine;
        let waiting = scope.spawn(move || enter(&mut Shared(machine), fd, call));
        wait_until("it sleeps", || lock::catching() == 1);
        what(machine, hog, command);
        waiting.join().expect("woken")
    });
    assert_eq!(lock::catching(), 0);
    process.close(hog);
    process.close(fd);
    machine.unload(module);
    answer
}

fn it_waits_for_room_that_another_open_makes() {
    let answer = without_room(3, |machine, hog, command| {
        command.get(&mut Shared(machine), hog).expect("get");
    });
    assert_eq!(answer, Ok((1, 1, 0, 0)));
}

fn a_timeout_ends_the_wait() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let arrays = Arrays::new(&mut machine);
    let mut call = arrays.call(0, 1, 1);
    call.timeout = 0;
    assert_eq!(enter(&mut machine, fd, call), Ok((0, 0, 0, ETIMEDOUT)));
    let start = Instant::now();
    call.timeout = 60 * MS;
    assert_eq!(enter(&mut machine, fd, call), Ok((0, 0, 0, ETIMEDOUT)));
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(59), "{took:?}");
    // The same as a point in time, and one that has passed.
    let start = Instant::now();
    call.flags = sys::QPASS_ENTER_ABSTIME;
    call.timeout = (lock::uptime().as_nanos() as u64) + 60 * MS;
    assert_eq!(enter(&mut machine, fd, call), Ok((0, 0, 0, ETIMEDOUT)));
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(59), "{took:?}");
    call.timeout = 1;
    assert_eq!(enter(&mut machine, fd, call), Ok((0, 0, 0, ETIMEDOUT)));
    machine.close(fd);
    machine.unload(module);
}

/// Starts a call on a stuck disk that wants four completions and has one, an
/// immediate one; does something; and says what the call answered.
fn ended_by(what: impl FnOnce(&Machine, i32)) -> (Answer, u64) {
    let (machine, module) = boot(Config::default());
    let fd = machine.process().open(NODE, RDWR).expect("open");
    machine.disk().stuck.store(true, Ordering::SeqCst);
    let mut sys = Shared(&machine);
    let mut commands = reads(&mut sys, 4);
    commands[0].immediate(sys::XPT_PATH_INQ);
    let mut arrays = Arrays::new(&mut sys);
    arrays.submit(&with_tags(&commands));
    let call = arrays.call(4, 4, 4);
    let answer = std::thread::scope(|scope| {
        let machine = &machine;
        let waiting = scope.spawn(move || enter(&mut Shared(machine), fd, call));
        wait_until("it sleeps", || lock::catching() == 1);
        what(machine, fd);
        waiting.join().expect("it returns").expect("enter")
    });
    let first = arrays.done(1)[0].tag;
    machine.process().close(fd);
    if devfs::exists(NODEV) {
        machine.disk().unstick();
    }
    machine.unload(module);
    (answer, first)
}

fn a_signal_ends_the_wait_with_counts() {
    let answer = ended_by(|_, _| lock::signal());
    assert_eq!(answer, ((4, 1, 0, EINTR), 1000));
}

fn a_cancel_ends_the_wait() {
    let answer = ended_by(|machine, fd| {
        let cancelled = control::cancel(&mut Shared(machine), fd, 0);
        assert_eq!(cancelled, Ok([0, 3, 0, 0]));
    });
    assert_eq!(answer, ((4, 4, 0, 0), 1000));
}

fn a_departure_ends_the_wait() {
    let ((submitted, reaped, stopped, error), first) = ended_by(|machine, _| {
        cam::detach(machine.device());
    });
    // What was sent comes back with an error, before or after the node goes.
    assert_eq!((submitted, stopped, first), (4, 0, 1000));
    assert!(
        (reaped, error) == (4, 0) || (reaped < 4 && error == ENXIO),
        "{reaped} {error}"
    );
}

/// No completion comes to wake it.
fn a_departure_ends_a_wait_for_nothing() {
    let (machine, module) = boot(Config::default());
    let fd = machine.process().open(NODE, RDWR).expect("open");
    let call = Arrays::new(&mut Shared(&machine)).call(0, 1, 1);
    std::thread::scope(|scope| {
        let machine = &machine;
        let waiting = scope.spawn(move || enter(&mut Shared(machine), fd, call));
        wait_until("it sleeps", || lock::catching() == 1);
        cam::detach(machine.device());
        let answer = waiting.join().expect("woken");
        assert_eq!(answer, Ok((0, 0, 0, ENXIO)));
    });
    machine.process().close(fd);
    machine.unload(module);
}

fn a_departure_ends_the_wait_for_room() {
    let answer = without_room(1, |machine, _, _| cam::detach(machine.device()));
    assert_eq!(answer, Ok((0, 0, ENXIO, 0)));
}

fn it_sleeps_until_enough_is_done() {
    let (mut machine, module) = boot(BUSY);
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut arrays = Arrays::new(&mut machine);
    let commands = reads(&mut machine, 32);
    arrays.submit(&with_tags(&commands));
    let sleeps = lock::sleeps();
    assert_eq!(
        enter(&mut machine, fd, arrays.call(32, 32, 32)),
        Ok((32, 32, 0, 0))
    );
    assert!(lock::sleeps() - sleeps <= 1, "not once a completion");
    machine.close(fd);
    machine.unload(module);
}

fn immediate_ccbs_stay_in_order() {
    let (mut machine, module) = boot(Config {
        openings: 1,
        ..Config::default()
    });
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut arrays = Arrays::new(&mut machine);
    let mut commands = reads(&mut machine, 9);
    for i in [2, 3, 7] {
        commands[i].immediate(sys::XPT_NOOP);
    }
    arrays.submit(&with_tags(&commands));
    assert_eq!(
        enter(&mut machine, fd, arrays.call(9, 9, 9)),
        Ok((9, 9, 0, 0))
    );
    let order: Vec<_> = arrays.done(9).iter().map(|c| c.tag).collect();
    let to_device: Vec<_> = order
        .iter()
        .filter(|tag| ![1002, 1003, 1007].contains(*tag))
        .collect();
    assert!(to_device.is_sorted(), "{order:?}");
    // What is immediate is done when it is taken.
    assert!(order.iter().position(|t| *t == 1002) < order.iter().position(|t| *t == 1004));
    machine.close(fd);
    machine.unload(module);
}

fn bad_arguments_are_einval_and_change_nothing() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut arrays = Arrays::new(&mut machine);
    arrays.submit(&with_tags(&reads(&mut machine, 1)));
    let good = arrays.call(1, 1, 1);
    let spoilt: [fn(&mut sys::qpass_enter); 7] = [
        |c| c.flags = 8,
        |c| c.reserved[0] = 1,
        |c| c.reserved[1] = 1,
        |c| c.min_complete = 2,
        |c| c.to_submit = sys::QPASS_ENTER_MAX + 1,
        |c| c.to_complete = sys::QPASS_ENTER_MAX + 1,
        |c| c.timeout = u64::MAX - 1,
    ];
    for (i, spoil) in spoilt.into_iter().enumerate() {
        let mut call = good;
        spoil(&mut call);
        assert_eq!(enter(&mut machine, fd, call), Err(EINVAL), "{i}");
    }
    assert_eq!(sysctl::value("0.submitted"), Some(0));
    thread::current().set_32bit(true);
    assert_eq!(enter(&mut machine, fd, good), Err(sys::ENOTTY as i32));
    thread::current().set_32bit(false);
    assert_eq!(enter(&mut machine, fd, good), Ok((1, 1, 0, 0)));
    machine.close(fd);
    machine.unload(module);
}

fn both_interfaces_see_one_queue() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut arrays = Arrays::new(&mut machine);
    let commands = reads(&mut machine, 2);
    commands[0].queue(&mut machine, fd).expect("queue");
    assert_eq!(
        enter(&mut machine, fd, arrays.call(0, 1, 1)),
        Ok((0, 1, 0, 0))
    );
    let done = arrays.done(1)[0];
    assert_eq!((done.tag, done.ccb), (0, commands[0].ccb.address() as u64));
    arrays.submit(&with_tags(&commands[1..]));
    assert_eq!(
        enter(&mut machine, fd, arrays.call(1, 0, 0)),
        Ok((1, 0, 0, 0))
    );
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    assert_eq!(commands[1].get(&mut machine, fd), Ok(()));
    machine.close(fd);
    machine.unload(module);
}

/// Level-triggered: the first completion wakes, those that come before the
/// program has looked do not. Edge-triggered: each does.
fn a_reader_that_is_awake_is_not_woken_again() {
    for (flags, wakes) in [(sys::EV_ADD, 1), (sys::EV_ADD | sys::EV_CLEAR, 5)] {
        let (mut machine, module) = boot(Config::default());
        let fd = machine.open(NODE, RDWR).expect("open");
        let kq = machine.kqueue().expect("kqueue");
        watch(&mut machine, kq, fd, flags);
        let before = kqueue::WAKEUPS.load(Ordering::SeqCst);
        let mut command = Command::new(&mut machine, 0);
        for _ in 0..5 {
            command.immediate(sys::XPT_NOOP);
            command.queue(&mut machine, fd).expect("queue");
        }
        assert_eq!(kqueue::WAKEUPS.load(Ordering::SeqCst) - before, wakes);
        assert_eq!(next(&mut machine, kq), Some(5));
        for _ in 0..5 {
            command.get(&mut machine, fd).expect("get");
        }
        // And again from empty.
        command.immediate(sys::XPT_NOOP);
        command.queue(&mut machine, fd).expect("queue");
        assert_eq!(next(&mut machine, kq), Some(1));
        machine.close(kq);
        machine.close(fd);
        machine.unload(module);
    }
}
