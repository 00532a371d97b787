//! One open of a device: its own limits, and its own completions.
//!
//! [`Open`] is the lease on the device: the file and every request hold it,
//! and while one does, the periph cannot go. [`Queue`] is what the file leaves
//! behind in a kqueue: knotes hold it even after the device has gone.

use crate::{
    buffer::Zones,
    kpi::{
        errno::{ENXIO, Result},
        fifo::Fifo,
        knlist::KnList,
        list::List,
        mutex::Mutex,
        periph::{Held, Periph, PeriphRef},
        selinfo::SelInfo,
        shared::Shared,
        tunable,
        zone::ZoneBox,
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
    /// The file is closed, or the device has gone: nobody reaps any more.
    pub closed: bool,
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
    rounds: AtomicU64,
    /// What the device has room for.
    pub room: Shared<Room>,
    _use: Use,
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
                closed: false,
            },
        );
        Queue {
            readers: KnList::new(&state),
            select: SelInfo::empty(),
            state,
            is_closed: AtomicBool::new(false),
            account: Account::default(),
            own_limits: OwnLimits::none(),
            rounds: AtomicU64::new(0),
            room,
            _use: module_use,
        }
    }

    /// Makes a request known, before it is on its way.
    pub fn admit(&self, request: &ZoneBox<Request>) {
        self.state.lock().outstanding.insert(request);
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
            state.outstanding.insert(&request);
        }
        request.known().is_done.store(true, Ordering::Relaxed);
        state.done.push(request);
        let watched = !this.readers.is_empty(&state) || this.select.is_recorded();
        Afterwards {
            wake: watched.then(|| this.clone()),
            _refused: None,
        }
    }

    /// The oldest completion.
    pub fn take(&self) -> Option<ZoneBox<Request>> {
        let mut state = self.state.lock();
        let request = state.done.pop()?;
        state.outstanding.remove(&request);
        Some(request)
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

    /// Numbers a round in which each request is aborted once; never 0.
    pub fn next_round(&self) -> u64 {
        self.rounds.fetch_add(1, Ordering::Relaxed) + 1
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
        unit.opened(&mut periph.lock())?;
        let room = unit.room().clone();
        Ok(Shared::new(Open {
            periph,
            queue: Shared::new(Queue::new(module_use, room)),
        }))
    }

    /// The device's periph.
    pub fn periph(&self) -> &Periph {
        &self.periph
    }

    /// The driver's data on it.
    ///
    /// # Errors
    /// `ENXIO`.
    pub fn unit(&self) -> Result<&Unit> {
        self.periph.softc::<Unit>().ok_or(ENXIO)
    }

    /// The device's zones, made now if this is the first request. Sleeps.
    ///
    /// # Errors
    /// `ENOMEM`, `ENXIO`.
    pub fn zones(&self) -> Result<Shared<Zones>> {
        self.unit()?.zones(&self.periph)
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

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(unit) = self.periph.softc::<Unit>() {
            unit.closed(&mut self.periph.lock());
        }
    }
}
