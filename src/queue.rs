//! One open of a device: its own limits, and its own completions.
//!
//! [`Open`] is the lease on the device: the file and every request hold it,
//! and while one does, the periph cannot go. [`Queue`] is what the file leaves
//! behind in a kqueue: knotes hold it even after the device has gone.

use crate::{
    buffer::{ZONES, Zones},
    kpi::{
        errno::{ENXIO, Result},
        fifo::Fifo,
        knlist::KnList,
        list::{Links, List, Node},
        mutex::Mutex,
        periph::{Held, Periph, PeriphRef},
        selinfo::SelInfo,
        shared::Shared,
        time::Deadline,
        tunable,
        zone::{Zone, ZoneBox},
    },
    limits::{Account, Limits, OwnLimits},
    module::Use,
    notify,
    request::{Request, Ticket},
    room::Room,
    unit::Unit,
};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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
    /// Calls that sleep until completions come, and how many the least of them
    /// asks for.
    sleepers: u32,
    wake_at: usize,
    /// Somebody asks to be told of every completion, not of the first.
    every: bool,
}

impl State {
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
    /// Among the opens of its device.
    links: Links<Queue>,
    /// Which of them it is.
    pub number: AtomicU64,
    /// What the device has room for.
    pub room: Shared<Room>,
    _use: Use,
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
                sleepers: 0,
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
        let enough = state.sleepers != 0 && state.done.len() >= state.wake_at;
        if enough {
            state.wake_at = usize::MAX;
        }
        let watched = is_news && !this.readers.is_empty(&state) || this.select.is_recorded();
        drop(state);
        if enough {
            // Takes no lock that is not the scheduler's.
            this.state.wakeup();
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
        let mut taken = Fifo::new();
        let mut state = self.state.lock();
        while taken.len() < n {
            let Some(request) = state.done.pop() else {
                break;
            };
            state.outstanding.remove(&request);
            taken.push(request);
        }
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
        drop(state);
        notify::wake(self);
        self.state.wakeup();
    }

    /// Sleeps until `n` completions can be reaped.
    ///
    /// # Errors
    /// `ETIMEDOUT`: the deadline has passed; `EINTR`: a signal came; `ENXIO`:
    /// the device has gone.
    pub fn wait(&self, n: usize, deadline: Deadline) -> Result {
        let mut state = self.state.lock();
        loop {
            if state.done.len() >= n {
                return Ok(());
            }
            if state.gone {
                return Err(ENXIO);
            }
            state.wake_at = state.wake_at.min(n);
            state.sleepers += 1;
            let slept = state.sleep(deadline);
            state.sleepers -= 1;
            if state.done.len() < n {
                slept?;
            }
        }
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

    /// Requests that may be queued before a limit is reached.
    pub fn free_requests(&self) -> u32 {
        let own = self.account.free_requests(self.limits());
        own.min(self.room.account().free_requests(Room::limits()))
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
        self.own_limits.set(wanted, Queue::system_limits())?;
        // Higher ones make room.
        self.room.tell();
        Ok(())
    }

    /// What the open has outstanding: requests, and bytes.
    pub fn outstanding(&self) -> (u32, u64) {
        self.account.now()
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

/// A request's place in its open's limits and its device's, given back when it
/// is dropped, with no lock held.
pub struct Charge {
    queue: Shared<Queue>,
    bytes: u64,
}

impl Charge {
    /// # Errors
    /// `EAGAIN`.
    pub fn new(queue: &Shared<Queue>) -> Result<Self> {
        queue.account.add_request(queue.limits())?;
        if let Err(errno) = queue.room.account().add_request(Room::limits()) {
            queue.account.release(0);
            return Err(errno);
        }
        Ok(Charge {
            queue: queue.clone(),
            bytes: 0,
        })
    }

    /// # Errors
    /// `EAGAIN`.
    pub fn add_bytes(&mut self, bytes: u64) -> Result {
        self.queue.account.add_bytes(bytes, self.queue.limits())?;
        let room = self.queue.room.account();
        if let Err(errno) = room.add_bytes(bytes, Room::limits()) {
            self.queue.account.release_bytes(bytes);
            return Err(errno);
        }
        self.bytes += bytes;
        Ok(())
    }
}

impl Charge {
    /// Takes bytes off again that nothing was allocated for.
    pub fn give_back(&mut self, bytes: u64) {
        self.bytes -= bytes;
        self.queue.account.release_bytes(bytes);
        self.queue.room.account().release_bytes(bytes);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.queue.account.release(self.bytes);
        self.queue.room.account().release(self.bytes);
        self.queue.room.tell();
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
            unit.abort_waiting(this);
            let mut held = this.periph.lock();
            let cancelled = unit.cancel_queued(&mut held, this);
            // Freed with no lock held.
            drop::<Held>(held);
            drop(cancelled);
        }
        this.queue.close();
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
