//! QPIOC_ENTER: many requests and many completions in one call.
//!
//! What goes to the device is handed over in batches: one hold of the device
//! lock, and one of the queue's, for `BATCH` requests; and as many
//! completions are taken in one hold of the queue's lock.

use crate::{
    ioctl::Route,
    kpi::{
        cdev::Thread,
        errno::{EAGAIN, EINVAL, ETIMEDOUT, Errno, Result},
        fifo::Fifo,
        shared::Shared,
        time::{Deadline, uptime, uptime_of_last_tick},
        user::{UserPtr, zeroed},
        zone::ZoneBox,
    },
    queue::{Open, Queue},
    request::{Name, Request},
    room::Waiting,
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
    let mut waiting = flags
        .contains(Flags::WAIT_ROOM)
        .then(|| open.queue.room.begin_wait());
    let mut submitter = Submitter {
        open,
        thread,
        from: UserPtr::new(call.submissions as usize),
        left: call.to_submit,
        taken: 0,
        batch: Fifo::new(),
    };
    let submitted = submitter.run(|| match &mut waiting {
        Some(waiting) => reaper.make_room(waiting, deadline),
        None => Err(EAGAIN),
    });
    drop(waiting);
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
    /// Takes all of them; `wait` says when to try again what was over a limit.
    ///
    /// # Errors
    /// That of the first submission that is not taken.
    fn run(&mut self, mut wait: impl FnMut() -> Result) -> Result {
        let mut entries = [zeroed::<sys::qpass_submission>(); BATCH];
        while self.left != 0 {
            let n = self.copyin(&mut entries)?;
            for submission in &entries[..n] {
                while let Err(errno) = self.take(submission) {
                    self.flush()?;
                    if errno != EAGAIN {
                        return Err(errno);
                    }
                    wait()?;
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

    fn take(&mut self, submission: &sys::qpass_submission) -> Result {
        if submission.reserved != 0 {
            return Err(EINVAL);
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
        loop {
            while self.reap()? != 0 {}
            let missing = wanted.saturating_sub(self.reaped);
            if missing == 0 {
                return Ok(());
            }
            // Some may have come all the same: these were reaped first.
            waited?;
            waited = self.open.queue.wait(missing as usize, deadline);
        }
    }

    /// Frees room for a request: reaps, or waits until somebody else does.
    ///
    /// # Errors
    /// `EAGAIN`: the time is over, or a completion cannot be handed over; else
    /// see [`Queue::wait`].
    fn make_room(&mut self, waiting: &mut Waiting<'_>, deadline: Deadline) -> Result {
        match self.reap() {
            Ok(0) => {}
            Ok(_) => return Ok(()),
            Err(errno) => {
                self.failed = Err(errno);
                return Err(EAGAIN);
            }
        }
        let queue = &self.open.queue;
        let waited = if self.room != 0 && queue.outstanding().0 != 0 {
            queue.wait(1, deadline)
        } else {
            waiting.wait(deadline)
        };
        waited.map_err(|errno| if errno == ETIMEDOUT { EAGAIN } else { errno })
    }

    /// Hands a batch of what is done over, and says how many.
    ///
    /// # Errors
    /// `EFAULT`: the first that could not be handed over is behind the others
    /// now, and those after it are where they were.
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
        let mut ready = Fifo::new();
        let mut failed = Ok(());
        while let Some(mut request) = todo.pop() {
            match self.hand_over(&mut request) {
                Ok(record) => {
                    records[ready.len()] = record;
                    ready.push(request);
                }
                Err(errno) => {
                    failed = Err(errno);
                    queue.put_back(todo);
                    drop(Queue::complete(queue, request));
                    break;
                }
            }
        }
        let n = ready.len();
        if let Err(errno) = self.to.copyout_array(&records[..n]) {
            queue.put_back(ready);
            return Err(errno);
        }
        self.to = self.to.offset(n * size_of::<sys::qpass_completion>());
        self.room -= n as u32;
        self.reaped += n as u32;
        failed.map(|()| n)
    }

    /// Hands the data of one over, and its CCB where that is wanted.
    fn hand_over(&self, request: &mut ZoneBox<Request>) -> Result<sys::qpass_completion> {
        let (ccb, tag) = (request.known().user_ccb, request.known().tag);
        let with_ccb = !(self.short && request.ccb().is_good());
        request.reap(with_ccb.then_some(ccb))?;
        let flags = if with_ccb {
            sys::QPASS_COMPLETION_CCB
        } else {
            0
        };
        Ok(sys::qpass_completion {
            tag,
            ccb: ccb.address() as u64,
            flags: flags as u16,
            ..request.ccb().completion()
        })
    }
}
