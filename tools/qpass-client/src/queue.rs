//! Many commands at once.
//!
//! A [`Queue`] owns the CCBs, and every command with its buffer from
//! [`submit`](Queue::submit) until [`reap`](Queue::reap) gives it back. What
//! the kernel may still write to is never freed: a queue that is dropped takes
//! its commands back, waits a while for those that were sent, and leaks what
//! has not come back by then.

use crate::{
    command::Command,
    device::Device,
    errno::Errno,
    error::{Error, Failure},
    kernel::Memory,
    outcome::Outcome,
    outstanding::{Cancel, Cancelled},
};
use core::time::Duration;
use std::{
    collections::VecDeque,
    hash::{BuildHasher, Hasher, RandomState},
    sync::atomic::Ordering,
    time::Instant,
};
use sys_bindings as sys;

/// How commands get to the driver and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// QPIOC_ENTER: batches in one system call.
    Enter,
    /// CAMIOQUEUE and CAMIOGET, as pass(4) has them too.
    Queue,
}

/// A command that came back, each once.
#[derive(Debug)]
pub struct Completion {
    /// The tag that it was submitted with.
    pub tag: u64,
    /// The command, with its data.
    pub command: Command,
    /// What was moved, and what the device said; or why it failed.
    pub result: Result<Outcome, Failure>,
}

enum Slot {
    Free,
    /// To be handed to the driver.
    Staged(Command, u64),
    /// The kernel has it.
    Sent(Command, u64),
}

/// How many submissions are tried at a time, once one met a limit: those that were
/// reaped since have made room, and a few more.
#[derive(Clone, Copy)]
struct Budget {
    room: usize,
    more: usize,
}

/// See the module's page.
pub struct Queue {
    device: Device,
    /// What all its keys have in common.
    own: u64,
    method: Method,
    slots: Vec<Slot>,
    free: Vec<usize>,
    staged: VecDeque<usize>,
    sent: usize,
    /// Those that are staged again at a time, after an error.
    later: Vec<(Instant, usize)>,
    /// Of those staged and sent, how many want their CCB back.
    wants_ccb: usize,
    /// Some were staged again since they were handed over last.
    is_sent_again: bool,
    /// A limit was met.
    budget: Option<Budget>,
    /// Refused ones, which wait to be reaped.
    refused: Vec<Completion>,
    memory: Option<Memory>,
    layout: Layout,
}

/// Where the memory has what.
#[derive(Clone, Copy)]
struct Layout {
    submissions: usize,
    completions: usize,
    ccbs: usize,
    stride: usize,
}

/// The bits of a key that say which slot it is.
const SLOTS: u64 = 0x1fff;
/// How long a queue that is dropped waits for what the device has.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a wait is at most, so that a program can look at other things.
const POLL: Duration = Duration::from_millis(200);

impl Queue {
    pub(crate) fn new(device: Device, depth: usize, method: Method) -> Result<Self, Error> {
        let limit = sys::QPASS_ENTER_MAX as usize;
        if depth == 0 || depth > limit {
            return Err(device.open.error("queue depth", Errno::EINVAL));
        }
        if method == Method::Enter && !device.is_qpass() {
            return Err(device.open.error("QPIOC_ENTER", Errno::ENOTTY));
        }
        let stride = size_of::<sys::ccb>().next_multiple_of(16);
        let submissions = 256;
        let completions = submissions + depth * size_of::<sys::qpass_submission>();
        let ccbs = (completions + depth * size_of::<sys::qpass_completion>()).next_multiple_of(16);
        // One CCB more, into which CAMIOGET's go.
        let memory = Memory::new(device.kernel(), ccbs + (depth + 1) * stride)
            .map_err(|errno| device.open.error("queue", errno))?;
        // Another's completions would be taken for this one's.
        if device.open.has_queue.swap(true, Ordering::SeqCst) {
            return Err(device.open.error("queue", Errno::EBUSY));
        }
        // pass(4) gives an open those of others too: they are to be told apart.
        let own = RandomState::new().build_hasher().finish() & !SLOTS;
        Ok(Queue {
            device,
            own,
            method,
            slots: (0..depth).map(|_| Slot::Free).collect(),
            free: (0..depth).rev().collect(),
            staged: VecDeque::new(),
            sent: 0,
            later: Vec::new(),
            wants_ccb: 0,
            is_sent_again: false,
            budget: None,
            refused: Vec::new(),
            memory: Some(memory),
            layout: Layout {
                submissions,
                completions,
                ccbs,
                stride,
            },
        })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How many commands it takes at a time.
    pub fn depth(&self) -> usize {
        self.slots.len()
    }

    /// Commands that were submitted and not reaped.
    pub fn in_flight(&self) -> usize {
        self.staged.len() + self.later.len() + self.sent + self.refused.len()
    }

    /// Whether another command can be submitted.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    fn memory(&self) -> &Memory {
        self.memory.as_ref().expect("memory until it is dropped")
    }

    fn ccb(&self, slot: usize) -> *mut sys::ccb {
        self.memory()
            .at(self.layout.ccbs + slot * self.layout.stride)
    }

    /// What a slot's CCB and submission are found again by.
    fn key(&self, slot: usize) -> u64 {
        self.own | slot as u64
    }

    fn slot(&self, key: u64) -> Option<usize> {
        let slot = (key & SLOTS) as usize;
        (key & !SLOTS == self.own && slot < self.slots.len()).then_some(slot)
    }

    /// Takes a command, which goes to the driver with the next
    /// [`flush`](Self::flush) or [`reap`](Self::reap).
    ///
    /// # Errors
    /// The command, when there is no room.
    #[allow(clippy::result_large_err)]
    pub fn submit(&mut self, command: Command, tag: u64) -> Result<(), Command> {
        let Some(slot) = self.free.pop() else {
            return Err(command);
        };
        self.wants_ccb += usize::from(command.wants_ccb());
        self.stage(slot, command, tag);
        self.staged.push_back(slot);
        Ok(())
    }

    /// Writes its CCB.
    fn stage(&mut self, slot: usize, command: Command, tag: u64) {
        // SAFETY: the CCB of a slot that the kernel has not is nobody else's.
        command.fill(unsafe { &mut *self.ccb(slot) }, self.key(slot));
        self.slots[slot] = Slot::Staged(command, tag);
    }

    /// Stages those whose time has come; when the next one's comes.
    fn stage_later(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let staged = &mut self.staged;
        self.later.retain(|(due, slot)| {
            let is_due = *due <= now;
            if is_due {
                staged.push_back(*slot);
            }
            !is_due
        });
        self.due()
    }

    /// Hands what was submitted to the driver, as far as it takes it now.
    ///
    /// # Errors
    /// ENXIO: the device has gone.
    pub fn flush(&mut self) -> Result<(), Error> {
        match self.method {
            Method::Enter => self.enter(0, 0, Duration::ZERO).map(drop),
            Method::Queue => {
                self.queue_all();
                Ok(())
            }
        }
    }

    /// Hands over what was submitted, waits until `min` commands can be reaped
    /// or the time is over, and reaps all that can.
    ///
    /// # Errors
    /// ENXIO, once everything has come back: the device has gone. EINTR and
    /// the time are no errors: fewer come.
    pub fn reap(&mut self, min: usize, timeout: Duration) -> Result<Vec<Completion>, Error> {
        let mut found = Vec::new();
        self.reap_into(&mut found, min, timeout)?;
        Ok(found)
    }

    /// As [`reap`](Self::reap), behind what is in `to` already: how many there were.
    ///
    /// # Errors
    /// Those of [`reap`](Self::reap).
    pub fn reap_into(
        &mut self,
        to: &mut Vec<Completion>,
        min: usize,
        timeout: Duration,
    ) -> Result<usize, Error> {
        let before = to.len();
        let min = min.min(self.in_flight());
        let deadline = Instant::now().checked_add(timeout);
        to.append(&mut self.refused);
        loop {
            let next = self.stage_later();
            let now = Instant::now();
            let mut left =
                deadline.map_or(POLL, |end| end.saturating_duration_since(now).min(POLL));
            if let Some(due) = next {
                left = left.min(due.saturating_duration_since(now));
            }
            let missing = min.saturating_sub(to.len() - before);
            if self.staged.is_empty() && self.sent == 0 && missing != 0 && !self.later.is_empty() {
                std::thread::sleep(left);
            }
            let step = match self.method {
                Method::Enter => self.enter(missing, self.sent + self.staged.len(), left),
                Method::Queue => self.get_all(missing, left),
            };
            match step {
                Ok(step) => to.extend(step),
                Err(error) if to.len() == before => return Err(error),
                Err(_) => return Ok(to.len() - before),
            }
            to.append(&mut self.refused);
            let count = to.len() - before;
            let is_over = deadline.is_some_and(|end| Instant::now() >= end);
            if count >= min || is_over || self.in_flight() == 0 {
                // Those that are sent again are nothing that the program knows to
                // hand over; if the device has gone, the next call says so.
                if std::mem::take(&mut self.is_sent_again) {
                    let _ = self.flush();
                }
                return Ok(count);
            }
        }
    }

    /// When [`reap`](Self::reap) has something to send again that waits for a busy
    /// device: a program with a loop of its own calls it then, as nothing else wakes it.
    pub fn due(&self) -> Option<Instant> {
        self.later.iter().map(|(due, _)| *due).min()
    }

    /// Waits until something can be reaped, or the time is over: whether there is.
    /// What is staged is not handed over; see [`flush`](Self::flush). Works on every
    /// kernel, for a program with a loop of its own.
    ///
    /// # Errors
    /// EINTR is none: the wait may be short.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool, Error> {
        if !self.refused.is_empty() {
            return Ok(true);
        }
        // What is due is sent by reap().
        let due = self
            .due()
            .map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = due.map_or(timeout, |due| due.min(timeout));
        let open = &self.device.open;
        match open.kernel.wait(open.fd, timeout) {
            Ok(ready) => Ok(ready),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(open.error("wait", errno)),
        }
    }

    /// Takes back the command of a tag that was submitted and not reaped: it is
    /// reaped all the same, as aborted unless it was done before. With several of
    /// one tag, all of them.
    ///
    /// # Errors
    /// ENOENT: none has that tag; ENXIO; ENOTTY: pass(4) cannot.
    pub fn cancel_one(&mut self, tag: u64) -> Result<Cancelled, Error> {
        let mut all = Cancelled::default();
        let mut found = false;
        for slot in 0..self.slots.len() {
            match &self.slots[slot] {
                Slot::Staged(_, t) if *t == tag => {
                    self.staged.retain(|s| *s != slot);
                    self.later.retain(|(_, s)| *s != slot);
                    self.refuse(slot, Failure::Refused(Errno::ECANCELED));
                    all.dequeued += 1;
                    found = true;
                }
                Slot::Sent(_, t) if *t == tag => {
                    found = true;
                    if let Slot::Sent(command, _) = &mut self.slots[slot] {
                        command.give_up();
                    }
                    match self.device.cancel(Cancel::Ccb(self.ccb(slot) as u64)) {
                        Ok(one) => {
                            all.dequeued += one.dequeued;
                            all.aborted += one.aborted;
                            all.unable += one.unable;
                            all.done += one.done;
                        }
                        // It is being reaped.
                        Err(error) if error.errno == Errno::ENOENT => all.done += 1,
                        Err(error) => return Err(error),
                    }
                }
                _ => {}
            }
        }
        match found {
            true => Ok(all),
            false => Err(self.device.open.error("cancel", Errno::ENOENT)),
        }
    }

    /// Takes all of this open back that was not sent yet, and aborts the rest;
    /// each is reaped all the same.
    ///
    /// # Errors
    /// ENXIO; ENOTTY: pass(4) cannot.
    pub fn cancel(&mut self) -> Result<(), Error> {
        self.unstage_later();
        while let Some(slot) = self.staged.pop_front() {
            self.refuse(slot, Failure::Refused(Errno::ECANCELED));
        }
        for slot in &mut self.slots {
            if let Slot::Sent(command, _) = slot {
                command.give_up();
            }
        }
        if self.sent != 0 {
            self.device.cancel(Cancel::Own)?;
        }
        Ok(())
    }

    /// What would be sent again is not.
    fn unstage_later(&mut self) {
        let later = std::mem::take(&mut self.later);
        self.staged.extend(later.into_iter().map(|(_, slot)| slot));
    }

    /// A command that the driver has not taken, back.
    pub(crate) fn take_staged(&mut self) -> Option<Command> {
        let slot = self.staged.pop_front()?;
        let Slot::Staged(command, _) = std::mem::replace(&mut self.slots[slot], Slot::Free) else {
            return None;
        };
        self.free.push(slot);
        self.wants_ccb -= usize::from(command.wants_ccb());
        Some(command)
    }

    /// Ends a command that the driver has not.
    fn refuse(&mut self, slot: usize, why: Failure) {
        if let Slot::Staged(command, tag) | Slot::Sent(command, tag) =
            std::mem::replace(&mut self.slots[slot], Slot::Free)
        {
            self.free.push(slot);
            self.wants_ccb -= usize::from(command.wants_ccb());
            self.refused.push(Completion {
                tag,
                command,
                result: Err(why),
            });
        }
    }

    /// The driver has it.
    fn was_taken(&mut self) {
        if let Some(slot) = self.staged.pop_front() {
            let staged = std::mem::replace(&mut self.slots[slot], Slot::Free);
            if let Slot::Staged(command, tag) = staged {
                self.slots[slot] = Slot::Sent(command, tag);
            }
            self.sent += 1;
        }
    }

    /// A command's CCB has come back, to `ccb`; or it was good, and the record of
    /// its residual and SCSI status says all. None: it is sent again.
    fn completed(
        &mut self,
        slot: usize,
        good: Option<(u32, u8)>,
        ccb: *const sys::ccb,
    ) -> Option<Completion> {
        let sent = std::mem::replace(&mut self.slots[slot], Slot::Free);
        let Slot::Sent(mut command, tag) = sent else {
            self.slots[slot] = sent;
            return None;
        };
        self.sent -= 1;
        let result = match good {
            Some((resid, status)) => Ok(command.good(resid, status)),
            // SAFETY: the kernel has written it and has it no more.
            None => command.outcome(unsafe { &*ccb }),
        };
        if let Err(error) = &result
            && let Some(wait) = command.again(error)
        {
            self.stage(slot, command, tag);
            self.is_sent_again = true;
            if wait.is_zero() {
                self.staged.push_back(slot);
            } else {
                self.later.push((Instant::now() + wait, slot));
            }
            return None;
        }
        self.free.push(slot);
        self.wants_ccb -= usize::from(command.wants_ccb());
        Some(Completion {
            tag,
            command,
            result: result.map_err(Failure::Failed),
        })
    }

    /// What became of a submission that was not taken: whether the next may be
    /// tried.
    fn not_taken(&mut self, errno: Errno) -> bool {
        match errno {
            // A limit; waiting for room has ended.
            Errno::EAGAIN | Errno::ETIMEDOUT | Errno::EINTR => false,
            Errno::ENXIO => {
                self.device_gone();
                false
            }
            errno => {
                if let Some(slot) = self.staged.pop_front() {
                    self.refuse(slot, Failure::Refused(errno));
                }
                true
            }
        }
    }

    /// What was not sent will not be.
    fn device_gone(&mut self) {
        self.unstage_later();
        while let Some(slot) = self.staged.pop_front() {
            self.refuse(slot, Failure::Lost);
        }
    }

    /// QPIOC_ENTER, again after each submission that is refused for good.
    fn enter(
        &mut self,
        min: usize,
        room: usize,
        timeout: Duration,
    ) -> Result<Vec<Completion>, Error> {
        let mut found = Vec::new();
        let end = Instant::now() + timeout;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            // Of those that are reaped, some may be staged again.
            let room = room.min(self.sent + self.staged.len());
            let wanted = min.saturating_sub(found.len()).min(room);
            let tried = self.tried();
            let call = match self.call(tried, wanted, room, left) {
                Ok(call) => call,
                Err(Errno::ENXIO) => {
                    self.device_gone();
                    return self.after_departure(found);
                }
                Err(errno) => return Err(self.device.open.error("QPIOC_ENTER", errno)),
            };
            for _ in 0..call.submitted {
                self.was_taken();
            }
            self.take_records(call.completed as usize, &mut found);
            self.note_room(tried, call.completed as usize, call.submit_error);
            match Errno::new(call.complete_error) {
                Errno::ENXIO => {
                    self.device_gone();
                    return self.after_departure(found);
                }
                // It comes again; what came before it is here.
                Errno::EFAULT if found.is_empty() => {
                    return Err(self.device.open.error("reap", Errno::EFAULT));
                }
                errno if errno.get() != 0 => return Ok(found),
                _ => {}
            }
            if call.submit_error == 0 {
                return Ok(found);
            }
            if !self.not_taken(Errno::new(call.submit_error)) {
                // That call did not wait, and the next one submits nothing, and does;
                // or it waited for room, and there is none.
                let is_full = Errno::new(call.submit_error) == Errno::EAGAIN;
                let has_waited = call.flags & sys::QPASS_ENTER_WAIT_ROOM != 0;
                let is_over = Instant::now() >= end;
                if found.len() >= min || !is_full || has_waited || is_over {
                    return Ok(found);
                }
            }
        }
    }

    /// How many of what is staged the next call submits.
    fn tried(&self) -> usize {
        let all = self.staged.len();
        let Some(budget) = self.budget else {
            return all;
        };
        // Where nothing of this queue's will come back, others have the room.
        let least = usize::from(self.sent == 0);
        all.min(budget.room.max(least))
    }

    /// What a call has shown of the limits. Once one was met, as many are tried as
    /// have come back, so that the call waits in the kernel, and now and then more.
    fn note_room(&mut self, tried: usize, completed: usize, submit_error: i32) {
        let errno = Errno::new(submit_error);
        self.budget = match (errno, self.budget) {
            (Errno::EAGAIN, _) => Some(Budget {
                room: completed,
                more: 0,
            }),
            (_, Some(budget)) if tried == 0 => Some(Budget {
                room: budget.room + completed,
                ..budget
            }),
            // All that was tried was taken: more may be.
            (_, Some(budget)) => (!self.staged.is_empty()).then(|| {
                let more = budget.more + 1;
                Budget {
                    room: budget.room.saturating_sub(tried)
                        + completed
                        + usize::from(more % 64 == 0) * more,
                    more,
                }
            }),
            (_, None) => None,
        };
    }

    /// One QPIOC_ENTER, of the first `count` that are staged. Where others have the
    /// room, it waits for that in the kernel.
    fn call(
        &self,
        count: usize,
        min: usize,
        room: usize,
        timeout: Duration,
    ) -> Result<sys::qpass_enter, Errno> {
        let is_full = self.budget.is_some_and(|budget| budget.room == 0);
        let waits_room = is_full && self.sent == 0 && count != 0 && min != 0;
        for (i, slot) in self.staged.iter().take(count).enumerate() {
            let entry = sys::qpass_submission {
                ccb: self.ccb(*slot) as u64,
                tag: self.key(*slot),
                reserved: 0,
            };
            let at = self.layout.submissions + i * size_of::<sys::qpass_submission>();
            // SAFETY: inside the array, of which nobody else knows.
            unsafe { self.memory().at::<sys::qpass_submission>(at).write(entry) };
        }
        // SAFETY: plain data.
        let mut call: sys::qpass_enter = unsafe { core::mem::zeroed() };
        call.submissions = self.memory().at::<u64>(self.layout.submissions) as u64;
        call.completions = self.memory().at::<u64>(self.layout.completions) as u64;
        call.to_submit = count as u32;
        call.to_complete = room.min(self.slots.len()) as u32;
        call.min_complete = min as u32;
        if self.wants_ccb == 0 {
            call.flags |= sys::QPASS_ENTER_SHORT;
        }
        if waits_room {
            call.flags |= sys::QPASS_ENTER_WAIT_ROOM;
        }
        call.timeout = timeout.as_nanos().min(u128::from(u64::MAX >> 2)) as u64;
        let at = self.memory().at::<sys::qpass_enter>(0);
        let open = &self.device.open;
        // SAFETY: structures and CCBs in memory of the queue's; the buffers that
        // the CCBs name belong to it until they are reaped.
        unsafe {
            at.write(call);
            open.ioctl(sys::QPC_QPIOC_ENTER, at as usize)?;
            Ok(at.read())
        }
    }

    /// The first `count` completions of the array.
    fn take_records(&mut self, count: usize, found: &mut Vec<Completion>) {
        for i in 0..count {
            let at = self.layout.completions + i * size_of::<sys::qpass_completion>();
            // SAFETY: the kernel has written so many.
            let record = unsafe { self.memory().at::<sys::qpass_completion>(at).read() };
            let Some(slot) = self.slot(record.tag) else {
                continue;
            };
            let is_short = u32::from(record.flags) & sys::QPASS_COMPLETION_CCB == 0;
            let good = is_short.then_some((record.resid, record.scsi_status));
            found.extend(self.completed(slot, good, self.ccb(slot)));
        }
    }

    /// Reaps what can still be reaped once the device has gone; what cannot is
    /// lost, and its memory with it.
    fn after_departure(&mut self, mut found: Vec<Completion>) -> Result<Vec<Completion>, Error> {
        found.append(&mut self.refused);
        if found.is_empty() && self.sent == 0 {
            return Err(self.device.open.error("reap", Errno::ENXIO));
        }
        // Once the node has gone, so have its completions.
        while let Ok(Some(completion)) = self.get() {
            found.extend(completion);
        }
        self.device_gone();
        for slot in 0..self.slots.len() {
            if let Slot::Sent(command, _) = &mut self.slots[slot] {
                // Its pages may be the device's for ever.
                std::mem::forget(command.buffer.take());
                self.sent -= 1;
                self.refuse(slot, Failure::Lost);
            }
        }
        found.append(&mut self.refused);
        Ok(found)
    }

    /// CAMIOQUEUE of what is staged.
    fn queue_all(&mut self) {
        while let Some(slot) = self.staged.front().copied() {
            let ccb = self.ccb(slot) as usize;
            // SAFETY: a CCB of the queue's, with a buffer that stays.
            let queued = unsafe {
                let open = &self.device.open;
                open.ioctl(sys::QPC_CAMIOQUEUE, ccb)
            };
            match queued {
                Ok(()) => self.was_taken(),
                Err(errno) => {
                    if !self.not_taken(errno) {
                        break;
                    }
                }
            }
        }
    }

    /// CAMIOGET: one completion, if there is one; none inside if it is not to be told.
    fn get(&mut self) -> Result<Option<Option<Completion>>, Errno> {
        let ccb = self.ccb(self.slots.len());
        let open = &self.device.open;
        // SAFETY: the CCB that is nobody's. Its data goes to the buffer of the
        // command, which is still the queue's.
        match unsafe { open.ioctl(sys::QPC_CAMIOGET, ccb as usize) } {
            Ok(()) => {}
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        }
        // SAFETY: a whole CCB, and the word that fill() set.
        let key = unsafe { (*ccb).ccb_h.periph_priv.entries[0].field };
        Ok(Some(
            self.slot(key)
                .and_then(|slot| self.completed(slot, None, ccb)),
        ))
    }

    fn get_all(&mut self, min: usize, timeout: Duration) -> Result<Vec<Completion>, Error> {
        self.queue_all();
        let deadline = Instant::now() + timeout;
        let mut found = Vec::new();
        loop {
            match self.get() {
                Ok(Some(completion)) => {
                    found.extend(completion);
                    continue;
                }
                Ok(None) if !self.staged.is_empty() => {
                    // Some are to be sent again, or there is room now.
                    let before = self.staged.len();
                    self.queue_all();
                    if self.staged.len() != before {
                        continue;
                    }
                }
                Ok(None) => {}
                Err(Errno::ENXIO) => {
                    self.device_gone();
                    return self.after_departure(found);
                }
                Err(errno) => return Err(self.device.open.error("CAMIOGET", errno)),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if found.len() >= min || left.is_zero() || self.sent == 0 {
                // Others have the room, and CAMIOQUEUE does not wait for it.
                if !self.staged.is_empty() && found.len() < min {
                    std::thread::sleep(left.min(Duration::from_millis(10)));
                }
                return Ok(found);
            }
            let open = &self.device.open;
            match open.kernel.wait(open.fd, left) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(open.error("wait", errno)),
            }
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let _ = self.cancel();
        let deadline = Instant::now() + PATIENCE;
        while self.sent != 0 && Instant::now() < deadline {
            if self.reap(1, POLL).is_err() {
                break;
            }
        }
        if self.sent == 0 {
            self.device.open.has_queue.store(false, Ordering::SeqCst);
        } else {
            // The kernel may still write there, and completions may still come.
            std::mem::forget(std::mem::take(&mut self.slots));
            std::mem::forget(self.memory.take());
        }
    }
}

#[cfg(target_os = "freebsd")]
mod reactor {
    use super::Queue;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

    /// Readable when a completion can be reaped.
    impl AsFd for Queue {
        fn as_fd(&self) -> BorrowedFd<'_> {
            // SAFETY: open as long as the queue is.
            unsafe { BorrowedFd::borrow_raw(self.as_raw_fd()) }
        }
    }

    impl AsRawFd for Queue {
        fn as_raw_fd(&self) -> RawFd {
            self.device.open.fd
        }
    }
}
