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
        mutex::Mutex,
        periph::{Periph, PeriphRef},
        selinfo::SelInfo,
        shared::Shared,
        tunable,
        zone::ZoneBox,
    },
    limits::{Account, Limits},
    module::Use,
    notify,
    request::Request,
    unit::Unit,
};
use core::sync::atomic::{AtomicBool, Ordering};

/// What the queue's lock guards.
pub struct State {
    /// Completed, in order, and not reaped yet.
    pub done: Fifo<ZoneBox<Request>>,
    /// The file is closed, or the device has gone: nobody reaps any more.
    pub closed: bool,
}

/// The completions of one open, and who waits for them.
pub struct Queue {
    // Before the lock: a knlist goes before the mutex that it uses.
    pub(crate) readers: KnList,
    pub(crate) writers: KnList,
    pub(crate) select: SelInfo,
    pub(crate) state: Mutex<State>,
    account: Account,
    /// Somebody has asked for room to queue: freed requests are told.
    room_is_watched: AtomicBool,
    _use: Use,
}

impl Queue {
    fn new(module_use: Use) -> Self {
        let state = Mutex::new(
            c"qpass queue",
            State {
                done: Fifo::new(),
                closed: false,
            },
        );
        Queue {
            readers: KnList::new(&state),
            writers: KnList::new(&state),
            room_is_watched: AtomicBool::new(false),
            select: SelInfo::empty(),
            state,
            account: Account::default(),
            _use: module_use,
        }
    }

    /// Takes a completed request, and tells who waits. Nobody waits after
    /// close: the request is freed.
    ///
    /// One that could not be handed over comes back the same way, behind the
    /// others: a buffer that is gone for good does not block them.
    pub fn complete(&self, request: ZoneBox<Request>) {
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            drop(request);
            return;
        }
        state.done.push(request);
        notify::wake(self, state);
    }

    /// The oldest completion.
    pub fn take(&self) -> Option<ZoneBox<Request>> {
        self.state.lock().done.pop()
    }

    /// Whether nobody reaps any more.
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let done = state.done.take();
        notify::wake(self, state);
        drop(done);
    }

    /// Requests that may be queued before the limit is reached.
    pub fn free_requests(&self) -> u32 {
        tunable::max_requests().saturating_sub(self.account.requests())
    }

    /// From now on, room is told when there is some.
    pub fn watch_room(&self) {
        self.room_is_watched.store(true, Ordering::SeqCst);
    }

    fn limits() -> Limits {
        Limits {
            requests: tunable::max_requests(),
            bytes: tunable::max_bytes(),
        }
    }
}

/// A request's place in its open's limits, given back when it is dropped.
pub struct Charge {
    queue: Shared<Queue>,
    bytes: u64,
}

impl Charge {
    /// # Errors
    /// `EAGAIN`.
    pub fn new(queue: &Shared<Queue>) -> Result<Self> {
        queue.account.add_request(Queue::limits())?;
        Ok(Charge {
            queue: queue.clone(),
            bytes: 0,
        })
    }

    /// # Errors
    /// `EAGAIN`.
    pub fn add_bytes(&mut self, bytes: u64) -> Result {
        self.queue.account.add_bytes(bytes, Queue::limits())?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.queue.account.release(self.bytes);
        if self.queue.room_is_watched.load(Ordering::SeqCst) {
            notify::wake_writers(&self.queue);
        }
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
        Ok(Shared::new(Open {
            periph,
            queue: Shared::new(Queue::new(module_use)),
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
            drop(unit.cancel_queued(&mut this.periph.lock(), this));
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
