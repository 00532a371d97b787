//! QPIOC_ENTER: many requests and many completions in one call.
//!
//! What goes to the device is handed over in batches: one hold of the device
//! lock, and one of the queue's, for `BATCH` requests; and as many
//! completions are taken in one hold of the queue's lock.

use crate::{
    ioctl::Route,
    queue::{Open, Queue, Taken},
    request::{Item, Name, Request},
};
use kpi::{
    ccb::Ccb,
    cdev::Thread,
    errno::{EAGAIN, EINVAL, ETIMEDOUT, Errno, Result},
    fields::Field,
    fifo::Fifo,
    mutex::check_signals,
    shared::Shared,
    time::{Deadline, uptime, uptime_of_last_tick},
    user::{UserPtr, zeroed},
    zone::ZoneBox,
};
use sys_bindings as sys;

bitflags::bitflags! {
    /// `qpass_enter.flags`.
    #[derive(Clone, Copy)]
    struct Flags: u32 {
        /// CCBs of good completions are not written.
        const SHORT = sys::QPASS_ENTER_SHORT;
        /// The timeout is a point in time.
        const ABSTIME = sys::QPASS_ENTER_ABSTIME;
        /// A limit is waited out.
        const WAIT_ROOM = sys::QPASS_ENTER_WAIT_ROOM;
    }
}

/// No timeout; bindgen reads all bits set as -1.
const FOREVER: u64 = sys::QPASS_ENTER_FOREVER as i64 as u64;

/// Entries that are handled at a time.
const BATCH: usize = 16;

/// QPIOC_ENTER. Sleeps.
///
/// # Errors
/// `EINVAL`: see `kmod/qpass_ioctl.h`. All else is told in the struct.
pub fn enter(open: &Shared<Open>, call: &mut sys::qpass_enter, thread: Thread<'_>) -> Result {
    let flags = Flags::from_bits(call.flags).ok_or(EINVAL)?;
    if call.reserved != [0; 2]
        || call.to_submit.max(call.to_complete) > sys::QPASS_ENTER_MAX
        || call.min_complete > call.to_complete
    {
        return Err(EINVAL);
    }
    let deadline = deadline(call.timeout, flags)?;
    let mut reaper = Reaper {
        open,
        to: UserPtr::new(call.completions as usize),
        room: call.to_complete,
        reaped: 0,
        short: flags.contains(Flags::SHORT),
        failed: Ok(()),
    };
    let mut submitter = Submitter {
        open,
        thread,
        from: UserPtr::new(call.submissions as usize),
        left: call.to_submit,
        taken: 0,
        batch: Fifo::new(),
    };
    let submitted = submitter.run(|bytes| {
        if flags.contains(Flags::WAIT_ROOM) {
            reaper.make_room(bytes, deadline)
        } else {
            Err(EAGAIN)
        }
    });
    call.submitted = submitter.taken;
    // Who was stopped wants to know, not to wait.
    let wanted = match submitted {
        Ok(()) => call.min_complete,
        Err(_) => 0,
    };
    let completed = reaper.run(wanted, deadline);
    call.completed = reaper.reaped;
    let number = |result: Result| result.err().map_or(0, Errno::get);
    (call.submit_error, call.complete_error) = (number(submitted), number(completed));
    Ok(())
}

/// When waiting ends.
///
/// # Errors
/// `EINVAL`: further away than can be said.
fn deadline(timeout: u64, flags: Flags) -> Result<Deadline> {
    if timeout == FOREVER {
        return Ok(Deadline::NEVER);
    }
    let start = if flags.contains(Flags::ABSTIME) {
        0
    } else if timeout >= LONG {
        // As kevent(2) does: the clock of the last tick is cheap to read. What
        // is added is more than a tick, so that it is late and not early.
        uptime_of_last_tick().saturating_add(timeout / 64)
    } else {
        uptime()
    };
    let end = start.checked_add(timeout).ok_or(EINVAL)?;
    Deadline::at(end).ok_or(EINVAL)
}

/// A timeout of which the 64th part, in nanoseconds, is more than a clock tick.
const LONG: u64 = 1_000_000_000;

/// Takes submissions, in their order.
struct Submitter<'a> {
    open: &'a Shared<Open>,
    thread: Thread<'a>,
    /// The next submission.
    from: UserPtr,
    left: u32,
    taken: u32,
    /// Requests that go to the device together.
    batch: Fifo<ZoneBox<Request>>,
}

impl Submitter<'_> {
    /// Takes all of them; `wait` says when to try again what was over a limit,
    /// with so many bytes.
    ///
    /// # Errors
    /// That of the first submission that is not taken.
    fn run(&mut self, mut wait: impl FnMut(u64) -> Result) -> Result {
        let mut entries = [zeroed::<sys::qpass_submission>(); BATCH];
        while self.left != 0 {
            let n = self.copyin(&mut entries)?;
            for submission in &entries[..n] {
                while let Err(refusal) = self.take(submission) {
                    self.flush()?;
                    wait(refusal.over_limit.ok_or(refusal.errno)?)?;
                }
            }
            self.flush()?;
        }
        Ok(())
    }

    /// Copies the next submissions in, and says how many: a batch, or where
    /// that is not all readable, one.
    ///
    /// # Errors
    /// `EFAULT`: not even one is.
    fn copyin(&mut self, entries: &mut [sys::qpass_submission; BATCH]) -> Result<usize> {
        let mut n = BATCH.min(self.left as usize);
        if self.from.copyin_array(&mut entries[..n]).is_err() {
            n = 1;
            self.from.copyin_array(&mut entries[..n])?;
        }
        self.from = self.from.offset(n * size_of::<sys::qpass_submission>());
        self.left -= n as u32;
        Ok(n)
    }

    fn take(&mut self, submission: &sys::qpass_submission) -> Taken {
        if submission.reserved != 0 {
            return Err(EINVAL.into());
        }
        let name = Name {
            user_ccb: UserPtr::new(submission.ccb as usize),
            tag: submission.tag,
        };
        let request = Request::from_user(self.open, name, self.thread)?;
        if request.route() == Route::Device {
            self.batch.push(request);
            return Ok(());
        }
        // What does not wait for a CCB stays behind what was before it.
        self.flush()?;
        self.open.unit()?.submit(request)?;
        self.taken += 1;
        Ok(())
    }

    /// Hands the batch over.
    ///
    /// # Errors
    /// `ENXIO`: the device is gone, and none of the batch was taken.
    fn flush(&mut self) -> Result {
        if self.batch.is_empty() {
            return Ok(());
        }
        let n = self.batch.len() as u32;
        self.open.unit()?.submit_all(self.open, self.batch.take())?;
        self.taken += n;
        Ok(())
    }
}

/// Hands completions over.
struct Reaper<'a> {
    open: &'a Shared<Open>,
    /// Where the next one goes.
    to: UserPtr,
    /// How many more there is room for.
    room: u32,
    reaped: u32,
    short: bool,
    /// What stopped it while submissions were taken.
    failed: Result,
}

impl Reaper<'_> {
    /// Waits for `wanted` completions in all, and reaps those and what else is
    /// done.
    ///
    /// # Errors
    /// `EFAULT`: one cannot be handed over; else see [`Queue::wait`].
    fn run(&mut self, wanted: u32, deadline: Deadline) -> Result {
        self.failed?;
        let mut waited = Ok(());
        // After a wait that was over: how many were reaped before it.
        let mut before = None;
        loop {
            while self.reap()? != 0 {}
            let missing = wanted.saturating_sub(self.reaped);
            if missing == 0 {
                return Ok(());
            }
            // Some may have come all the same: these were reaped first.
            waited?;
            if before == Some(self.reaped) {
                // Another thread was faster, and it may be so again.
                check_signals()?;
                deadline.check()?;
            }
            before = Some(self.reaped);
            waited = self.open.queue.wait(missing as usize, deadline);
        }
    }

    /// Frees room for a request of so many bytes: reaps, or waits until another
    /// thread does.
    ///
    /// # Errors
    /// `EAGAIN`: the time is over, or a completion cannot be handed over; else
    /// see [`Queue::wait_for_room`].
    fn make_room(&mut self, bytes: u64, deadline: Deadline) -> Result {
        match self.reap() {
            Ok(0) => {}
            Ok(_) => return Ok(()),
            Err(errno) => {
                self.failed = Err(errno);
                return Err(EAGAIN);
            }
        }
        let queue = &self.open.queue;
        queue
            .wait_for_room(bytes, self.room != 0, deadline)
            .map_err(|errno| if errno == ETIMEDOUT { EAGAIN } else { errno })
    }

    /// Hands a batch of what is done over, and says how many.
    ///
    /// The records go out before what they tell of: where they cannot, nothing
    /// was copied that would be copied again. A record whose completion is not
    /// handed over is behind those that count, where the next one goes.
    ///
    /// # Errors
    /// `EFAULT`: the first that could not be handed over is behind the others
    /// now, and those after it are where they were; or there is no place for its
    /// record, and all are where they were.
    fn reap(&mut self) -> Result<usize> {
        if self.room == 0 {
            return Ok(0);
        }
        let queue = &self.open.queue;
        let mut todo = queue.take_some(BATCH.min(self.room as usize));
        if todo.is_empty() {
            return Ok(0);
        }
        let mut records = [zeroed::<sys::qpass_completion>(); BATCH];
        let mut n = 0;
        todo.for_each(|request| {
            records[n] = self.record(request);
            n += 1;
        });
        if self.to.copyout_array(&records[..n]).is_err() {
            // All of them have no place; the first may have.
            n = 1;
            if let Err(errno) = self.to.copyout_array(&records[..n]) {
                queue.put_back(todo);
                return Err(errno);
            }
        }
        let mut done = 0;
        for record in &records[..n] {
            let Some(mut request) = todo.pop() else {
                break;
            };
            let with_ccb = u32::from(record.flags) & sys::QPASS_COMPLETION_CCB != 0;
            let to = with_ccb.then_some(request.known().user_ccb);
            if let Err(errno) = request.reap(to) {
                queue.put_back(todo);
                drop(Queue::complete(queue, request));
                self.count(done);
                return Err(errno);
            }
            done += 1;
        }
        queue.put_back(todo);
        self.count(done);
        Ok(done)
    }

    /// So many were handed over.
    fn count(&mut self, n: usize) {
        self.to = self.to.offset(n * size_of::<sys::qpass_completion>());
        self.room -= n as u32;
        self.reaped += n as u32;
    }

    /// What is told of one, and whether its CCB is written back.
    fn record(&self, request: &ZoneBox<Request>) -> sys::qpass_completion {
        let flags = if self.short && request.ccb().is_good() {
            0
        } else {
            sys::QPASS_COMPLETION_CCB
        };
        sys::qpass_completion {
            tag: request.known().tag,
            ccb: request.known().user_ccb.address() as u64,
            flags: flags as u16,
            ..outcome(request.ccb())
        }
    }
}

/// How a CCB ended, for a program that does not want all of it.
fn outcome(ccb: &Ccb) -> sys::qpass_completion {
    let mut done: sys::qpass_completion = zeroed();
    done.status = ccb.hdr().status;
    done.resid = ccb.resid();
    if ccb.has(Field::Scsi) {
        let csio = ccb.csio();
        done.scsi_status = csio.scsi_status;
        if done.status & sys::CAM_AUTOSNS_VALID != 0 {
            done.sense_len = csio.sense_len.saturating_sub(csio.sense_resid);
        }
    }
    done
}
