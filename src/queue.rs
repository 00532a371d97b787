//! One open of a device: its own limits, and its own completions.
//!
//! [`Open`] is the lease on the device: the file and every request hold it,
//! and while one does, the periph cannot go. [`Queue`] is what the file leaves
//! behind in a kqueue: knotes hold it even after the device has gone.

use crate::{
    buffer::{ZONES, Zones},
    limits::{Account, Limits, OwnLimits},
    module::Use,
    notify,
    request::{Item, Request, Ticket},
    room::{self, Room, TOTAL},
    tunable,
    unit::Unit,
};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use kpi::{
    errno::{EAGAIN, ENXIO, Errno, Result},
    fifo::Fifo,
    knlist::KnList,
    list::{Links, List, Node},
    mutex::{Mutex, check_signals},
    periph::{Held, Periph, PeriphRef},
    selinfo::SelInfo,
    shared::Shared,
    time::Deadline,
    zone::{self, Zone, ZoneBox},
};

/// What the queue's lock guards.
pub struct State {
    /// Completed, in order, and not reaped yet.
    pub done: Fifo<ZoneBox<Request>>,
    /// Every request of the open that has been taken and not reaped, wherever
    /// it is.
    outstanding: List<Ticket>,
    /// The number of the last of these.
    last_number: u64,
    /// The file is closed, or the device has gone: nobody reaps any more.
    pub closed: bool,
    /// The device has gone: no call waits any more.
    gone: bool,
    /// Calls that sleep until completions come, on the queue's lock and on the
    /// room's; and how many completions the least of them asks for.
    sleepers: [u32; 2],
    wake_at: usize,
    /// Somebody asks to be told of every completion, not of the first.
    every: bool,
}

/// On which lock a call sleeps that completions wake.
#[derive(Clone, Copy)]
enum Sleeper {
    /// The queue's: it waits for completions alone.
    ForCompletions,
    /// The room's: it waits for room too.
    ForRoom,
}

impl State {
    /// A call begins to wait.
    fn expect(&mut self, who: Sleeper) {
        self.sleepers[who as usize] += 1;
    }

    /// It ends.
    fn no_longer_expect(&mut self, who: Sleeper) {
        self.sleepers[who as usize] -= 1;
    }

    /// Whether `n` completions can be reaped; if not, the waiting call hears
    /// when they can.
    fn has(&mut self, n: usize) -> bool {
        let enough = self.done.len() >= n;
        if !enough {
            self.wake_at = self.wake_at.min(n);
        }
        enough
    }

    fn make_known(&mut self, request: &ZoneBox<Request>) {
        self.last_number += 1;
        let number = &request.known().number;
        number.store(self.last_number, Ordering::Relaxed);
        self.outstanding.insert(request);
    }

    /// The requests of the open, those first that came first.
    pub fn outstanding(&self) -> impl Iterator<Item = &Ticket> {
        self.outstanding.iter()
    }
}

/// The completions of one open, and who waits for them.
pub struct Queue {
    // Before the lock: a knlist goes before the mutex that it uses.
    pub(crate) readers: KnList,
    pub(crate) select: SelInfo,
    pub(crate) state: Mutex<State>,
    /// `closed`, for who does not have the lock.
    is_closed: AtomicBool,
    account: Account,
    own_limits: OwnLimits,
    /// Bytes of the request that was refused last, 0 if one was taken since.
    refused: AtomicU64,
    /// Among the opens of its device.
    links: Links<Queue>,
    /// Which of them it is.
    pub number: AtomicU64,
    /// What the device has room for.
    pub room: Shared<Room>,
    _use: Use,
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.room.leave();
    }
}

impl Node for Queue {
    fn links(&self) -> &Links<Self> {
        &self.links
    }
}

/// What a completion leaves to do when no lock is held: dropping it does it.
#[must_use]
pub struct Afterwards {
    wake: Option<Shared<Queue>>,
    /// Nobody reaps it any more.
    _refused: Option<ZoneBox<Request>>,
}

impl Afterwards {
    /// Whether there is something to do.
    pub fn is_something(&self) -> bool {
        self.wake.is_some() || self._refused.is_some()
    }
}

impl Drop for Afterwards {
    fn drop(&mut self) {
        if let Some(queue) = &self.wake {
            notify::wake(queue);
        }
    }
}

impl Queue {
    fn new(module_use: Use, room: Shared<Room>) -> Self {
        let state = Mutex::new(
            c"qpass queue",
            State {
                done: Fifo::new(),
                outstanding: List::new(),
                last_number: 0,
                closed: false,
                gone: false,
                sleepers: [0; 2],
                wake_at: usize::MAX,
                every: false,
            },
        );
        Queue {
            readers: KnList::new(&state),
            select: SelInfo::empty(),
            state,
            is_closed: AtomicBool::new(false),
            account: Account::default(),
            own_limits: OwnLimits::none(),
            refused: AtomicU64::new(0),
            links: Links::new(),
            number: AtomicU64::new(0),
            room,
            _use: module_use,
        }
    }

    /// Makes a request known, before it is on its way.
    pub fn admit_one(&self, request: &ZoneBox<Request>) {
        self.state.lock().make_known(request);
    }

    /// Makes requests known, before they are on their way.
    pub fn admit(&self, requests: &mut Fifo<ZoneBox<Request>>) {
        let mut state = self.state.lock();
        requests.for_each(|request| state.make_known(request));
    }

    /// Takes a completed request. Nobody waits after close: it is freed.
    ///
    /// One that could not be handed over comes back the same way, behind the
    /// others: a buffer that is gone for good does not block them.
    pub fn complete(this: &Shared<Self>, request: ZoneBox<Request>) -> Afterwards {
        let mut state = this.state.lock();
        if state.closed {
            state.outstanding.remove(&request);
            return Afterwards {
                wake: None,
                _refused: Some(request),
            };
        }
        if !request.is_known() {
            state.make_known(&request);
        }
        request.known().is_done.store(true, Ordering::Relaxed);
        // Whom the first one woke looks at those after it by itself.
        let is_news = state.done.is_empty() || state.every;
        state.done.push(request);
        let wake = (state.done.len() >= state.wake_at).then(|| {
            state.wake_at = usize::MAX;
            state.sleepers
        });
        let watched = is_news && !this.readers.is_empty(&state) || this.select.is_recorded();
        drop(state);
        if let Some(sleepers) = wake {
            this.wake_calls(sleepers);
        }
        Afterwards {
            wake: watched.then(|| this.clone()),
            _refused: None,
        }
    }

    /// The oldest completion.
    pub fn take(&self) -> Option<ZoneBox<Request>> {
        self.take_some(1).pop()
    }

    /// The oldest completions, `n` at most.
    pub fn take_some(&self, n: usize) -> Fifo<ZoneBox<Request>> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let mut taken = Fifo::new();
        if state.done.len() <= n {
            taken = state.done.take();
        } else {
            while taken.len() < n
                && let Some(request) = state.done.pop()
            {
                taken.push(request);
            }
        }
        taken.for_each(|request| state.outstanding.remove(request));
        taken
    }

    /// Gives completions back that were taken and not handed over.
    pub fn put_back(&self, mut requests: Fifo<ZoneBox<Request>>) {
        if requests.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        if state.closed {
            // What is dropped is freed with no lock held.
            drop(state);
            return;
        }
        requests.for_each(|request| state.make_known(request));
        state.done.prepend(requests);
        let sleepers = state.sleepers;
        drop(state);
        notify::wake(self);
        self.wake_calls(sleepers);
    }

    /// Wakes calls that wait for completions. The queue's lock may not be held;
    /// what wakeup(9) takes is the scheduler's.
    fn wake_calls(&self, sleepers: [u32; 2]) {
        if sleepers[Sleeper::ForCompletions as usize] != 0 {
            self.state.wakeup();
        }
        if sleepers[Sleeper::ForRoom as usize] != 0 {
            self.room.wake_waiting();
        }
    }

    /// Sleeps until `n` completions can be reaped.
    ///
    /// # Errors
    /// `ETIMEDOUT`: the deadline has passed; `EINTR`: a signal came; `ENXIO`:
    /// the device has gone.
    pub fn wait(&self, n: usize, deadline: Deadline) -> Result {
        let mut state = self.state.lock();
        state.expect(Sleeper::ForCompletions);
        let answer = state.wait(deadline, |state| {
            if state.has(n) {
                return Some(Ok(()));
            }
            state.gone.then_some(Err(ENXIO))
        });
        state.no_longer_expect(Sleeper::ForCompletions);
        answer
    }

    /// The device has gone: nobody waits in a call any more.
    pub fn depart(&self) {
        self.state.lock().gone = true;
        self.state.wakeup();
    }

    /// From now on, somebody wants to be told of every completion.
    pub fn tell_every(&self) {
        self.state.lock().every = true;
    }

    /// Takes what is known of a request off the list.
    pub fn forget(&self, request: &ZoneBox<Request>) {
        self.state.lock().outstanding.remove(request);
    }

    /// What the first request of the open that `look` has an answer for
    /// answers.
    pub fn find<R>(&self, look: impl Fn(&Ticket) -> Option<R>) -> Option<R> {
        self.state.lock().outstanding.iter().find_map(look)
    }

    /// Whether nobody reaps any more.
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        self.is_closed.store(true, Ordering::SeqCst);
        let done = state.done.take();
        drop(state);
        notify::wake(self);
        self.room.tell_all();
        drop(done);
    }

    /// Requests that may be queued before a limit is reached; 0 where no byte is
    /// left, or where the request that the open was refused last would be again.
    /// A
    /// watcher that gets 0 is told when that changes.
    pub fn free_requests(&self) -> u32 {
        let wanted = self.refused.load(Ordering::SeqCst).max(1);
        if !self.has_room(wanted) {
            return 0;
        }
        let own = self.account.free_requests(self.limits());
        own.min(self.room.account().free_requests(Room::limits()))
    }

    /// What speaks against a request of so many bytes now.
    fn refusal(&self, bytes: u64) -> Option<Full> {
        let (own, device) = (self.account.now(), self.room.account().now());
        let is_alone = device.requests() == 0;
        if !own.lets_through(bytes, self.limits()) || !device.lets_through(bytes, Room::limits()) {
            Some(Full::Device)
        } else if !TOTAL.lets_through(memory_of(bytes), is_alone, tunable::total_max_bytes()) {
            Some(Full::Total)
        } else {
            None
        }
    }

    /// Whether a request of so many bytes would be let through. If not, it is
    /// noted first, so that what is freed from then on is told.
    fn has_room(&self, bytes: u64) -> bool {
        let mut noted = None;
        loop {
            let refusal = self.refusal(bytes);
            match refusal {
                None => return true,
                // The last look was behind the note that it needs.
                Some(_) if refusal == noted || noted == Some(Full::Total) => return false,
                Some(Full::Device) => {}
                Some(Full::Total) => room::note_total_is_short(),
            }
            Room::note_refusal(&self.room);
            noted = refusal;
        }
    }

    /// Sleeps until a request of `bytes` would be let through, or, if
    /// `or_completion`, until one can be reaped. A signal, the deadline and the
    /// device's departure are looked at first, so that a caller who comes back
    /// because another thread was faster is not here for ever.
    ///
    /// # Errors
    /// `ETIMEDOUT`: the deadline has passed; `EINTR`: a signal came; `ENXIO`:
    /// the device has gone.
    pub fn wait_for_room(&self, bytes: u64, or_completion: bool, deadline: Deadline) -> Result {
        check_signals()?;
        deadline.check()?;
        let room = &self.room;
        let mut state = room.lock.lock();
        state.waiting += 1;
        if or_completion {
            self.state.lock().expect(Sleeper::ForRoom);
        }
        let answer = state.wait(deadline, |state| {
            if state.gone {
                return Some(Err(ENXIO));
            }
            let comes = || self.state.lock().has(1);
            (or_completion && comes() || self.has_room(bytes)).then_some(Ok(()))
        });
        if or_completion {
            self.state.lock().no_longer_expect(Sleeper::ForRoom);
        }
        state.waiting -= 1;
        answer
    }

    /// The ceilings that apply to the open.
    pub fn limits(&self) -> Limits {
        self.own_limits.effective(Queue::system_limits())
    }

    /// Sets the open's own ceilings, but those that are 0.
    ///
    /// # Errors
    /// `EINVAL`: above the system's.
    pub fn set_limits(&self, wanted: Limits) -> Result {
        let before = self.limits();
        self.own_limits.set(wanted, Queue::system_limits())?;
        let now = self.limits();
        if now.requests > before.requests || now.bytes > before.bytes {
            self.room.tell(|| true);
        }
        Ok(())
    }

    /// What the open has outstanding: requests, and bytes.
    pub fn outstanding(&self) -> (u32, u64) {
        let now = self.account.now();
        (now.requests(), now.bytes())
    }

    /// How many requests that `wanted` picks are done and not reaped.
    pub fn count_done(&self, wanted: impl Fn(&Ticket) -> bool) -> u32 {
        let state = self.state.lock();
        let is_one = |ticket: &&Ticket| ticket.is_done.load(Ordering::Relaxed) && wanted(ticket);
        state.outstanding.iter().filter(is_one).count() as u32
    }

    fn system_limits() -> Limits {
        Limits {
            requests: tunable::max_requests(),
            bytes: tunable::max_bytes(),
        }
    }
}

/// What is in the way of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Full {
    /// The open's or the device's account: a freed request of the device's
    /// changes it.
    Device,
    /// [`TOTAL`]: that of any device may.
    Total,
}

/// Kernel memory of a request that has so many bytes besides.
fn memory_of(bytes: u64) -> u64 {
    bytes.wrapping_add(zone::item_size::<Request>() as u64)
}

/// Why a request was not taken.
#[derive(Clone, Copy)]
pub struct Refusal {
    /// What the caller is told.
    pub errno: Errno,
    /// It is over a limit: how many bytes it would have been charged.
    pub over_limit: Option<u64>,
}

/// What a function answers that may refuse a request.
pub type Taken<T = ()> = core::result::Result<T, Refusal>;

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Refusal {
            errno,
            over_limit: None,
        }
    }
}

impl From<Refusal> for Errno {
    fn from(refusal: Refusal) -> Self {
        refusal.errno
    }
}

/// A request's place in the limits of its open, its device and all devices,
/// given back when it is dropped, with no lock held.
pub struct Charge {
    queue: Shared<Queue>,
    bytes: u64,
}

impl Charge {
    /// Charges a request that will take so many bytes besides its item of the
    /// zone, all of it or nothing. What is refused leaves no trace in any
    /// account, so no other thread is refused because of it, and wakes nobody.
    ///
    /// # Errors
    /// `EAGAIN`: it would be over a limit.
    #[inline(always)]
    pub fn take(queue: &Shared<Queue>, bytes: u64) -> Taken<Self> {
        if queue.charge(bytes) || queue.charge_after_refusal(bytes) {
            return Ok(Charge {
                queue: queue.clone(),
                bytes,
            });
        }
        Err(Refusal {
            errno: EAGAIN,
            over_limit: Some(bytes),
        })
    }

    /// Charges so many bytes instead, for the same request.
    ///
    /// # Errors
    /// `EAGAIN`: it would be over a limit; the charge is as it was.
    pub fn exchange(&mut self, bytes: u64) -> Taken {
        if bytes < self.bytes {
            self.queue.shrink(self.bytes - bytes);
        } else if bytes > self.bytes && !self.queue.grow(bytes - self.bytes) {
            self.queue.note_refused(bytes);
            return Err(Refusal {
                errno: EAGAIN,
                over_limit: Some(bytes),
            });
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.queue.release(self.bytes);
    }
}

impl Queue {
    /// Charges a request, with a look at all accounts before the first changes:
    /// where the limits stay reached, nothing changes.
    #[inline(always)]
    fn charge(&self, bytes: u64) -> bool {
        let device = self.room.account();
        let (limits, device_limits) = (self.limits(), Room::limits());
        let memory = memory_of(bytes);
        let (seen, device_seen) = (self.account.now(), device.now());
        let is_alone = device_seen.requests() == 0;
        if !seen.lets_through(bytes, limits)
            || !device_seen.lets_through(bytes, device_limits)
            || !TOTAL.lets_through(memory, is_alone, tunable::total_max_bytes())
            || !self.account.charge(seen, bytes, limits)
        {
            return false;
        }
        if !device.charge(device_seen, bytes, device_limits) {
            // Another thread was faster after the look.
            self.undo(bytes);
            return false;
        }
        TOTAL.charge(memory);
        if self.refused.load(Ordering::Relaxed) != 0 {
            self.forget_refusal();
        }
        true
    }

    /// A request of the open was taken after one that was refused: there is room
    /// for what the program does now, and a knote that said no hears of it.
    #[cold]
    fn forget_refusal(&self) {
        self.refused.store(0, Ordering::SeqCst);
        self.room.tell(|| true);
    }

    /// Takes back what a lost race has charged; a thread that it has kept out
    /// meanwhile is told.
    #[cold]
    fn undo(&self, bytes: u64) {
        self.account.release(bytes);
        self.room.tell(|| true);
    }

    /// Notes that a request of so many bytes was refused, and tries once more:
    /// what was freed before the note was told to nobody.
    #[cold]
    fn charge_after_refusal(&self, bytes: u64) -> bool {
        self.note_refused(bytes);
        // Where nobody watches, nobody is to be told.
        self.room.is_watched() && self.charge(bytes)
    }

    fn note_refused(&self, bytes: u64) {
        // Never 0, which says that none was.
        self.refused.store(bytes.max(1), Ordering::SeqCst);
        if self.room.is_watched() {
            self.has_room(bytes);
        }
    }

    /// Charges so many bytes more for a request that is charged.
    fn grow(&self, bytes: u64) -> bool {
        if !self.account.grow(bytes, self.limits()) {
            return false;
        }
        let device = self.room.account();
        let is_alone = device.now().requests() == 1;
        if !TOTAL.lets_through(bytes, is_alone, tunable::total_max_bytes())
            || !device.grow(bytes, Room::limits())
        {
            self.account.shrink(bytes);
            self.room.tell(|| true);
            return false;
        }
        TOTAL.charge(bytes);
        true
    }

    /// Gives bytes back of a request that stays.
    fn shrink(&self, bytes: u64) {
        TOTAL.release(bytes);
        let own = self.account.shrink(bytes);
        let device = self.room.account().shrink(bytes);
        self.room
            .tell(|| own.is_full(self.limits()) || Room::was_full(device));
    }

    /// Gives a request's charge back.
    fn release(&self, bytes: u64) {
        TOTAL.release(memory_of(bytes));
        let own = self.account.release(bytes);
        let device = self.room.account().release(bytes);
        self.room
            .tell(|| own.is_full(self.limits()) || Room::was_full(device));
    }
}

/// An open's lease on its device.
pub struct Open {
    periph: PeriphRef,
    /// Its completions.
    pub queue: Shared<Queue>,
}

impl Open {
    /// Leases a device. Sleeps.
    ///
    /// # Errors
    /// `ENXIO`: the device is gone.
    pub fn new(periph: PeriphRef, module_use: Use) -> Result<Shared<Self>> {
        let unit = periph.softc::<Unit>().ok_or(ENXIO)?;
        let queue = Shared::new(Queue::new(module_use, unit.room().clone()));
        unit.opened(&mut periph.lock(), &queue)?;
        Ok(Shared::new(Open { periph, queue }))
    }

    /// The device's periph.
    pub fn periph(&self) -> &Periph {
        &self.periph
    }

    /// The same, for who must keep it.
    pub fn lease(&self) -> &PeriphRef {
        &self.periph
    }

    /// The driver's data on it.
    ///
    /// # Errors
    /// `ENXIO`.
    pub fn unit(&self) -> Result<&Unit> {
        self.periph.softc::<Unit>().ok_or(ENXIO)
    }

    /// The module's zones, made now if this is the first request. They stay
    /// while there is an open. Sleeps.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn zones(&self) -> Result<&Zones> {
        ZONES.get_or_make(Zones::create)
    }

    /// The last close, or the device has gone: what is queued is cancelled,
    /// what is done is freed, and what is sent is freed when it completes.
    pub fn close(this: &Shared<Self>) {
        if let Ok(unit) = this.unit() {
            let mut held = this.periph.lock();
            let cancelled = unit.cancel_queued(&mut held, this);
            // Freed with no lock held.
            drop::<Held>(held);
            drop(cancelled);
        }
        this.queue.close();
        if let Ok(unit) = this.unit() {
            unit.give_up_recoveries(this);
        }
    }
}

impl AsRef<Zone> for Open {
    /// The zone of its requests, of which there is one.
    fn as_ref(&self) -> &Zone {
        ZONES.get().expect("zones").as_ref()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(unit) = self.periph.softc::<Unit>() {
            unit.closed(&mut self.periph.lock(), &self.queue);
        }
    }
}
