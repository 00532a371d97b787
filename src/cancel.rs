//! Taking requests back: QPIOC_CANCEL, XPT_ABORT, and the last close.
//!
//! What was not sent yet is taken off the unit's list; what CAM has is CAM's to
//! abort. Either way it is reaped once, unless its open is closed.

use crate::{
    kpi::{
        ccb::{Ccb, OwnCcb},
        cdev::Thread,
        errno::{EINVAL, ENOENT, ENXIO, Result},
        fifo::Fifo,
        periph::{Held, Periph},
        shared::Shared,
        user::UserPtr,
        zone::ZoneBox,
    },
    queue::{Open, Queue},
    request::{Request, Ticket},
    stats::Outcome,
    unit::Unit,
};
use core::sync::atomic::Ordering::Relaxed;
use sys_bindings as sys;

/// Which requests a call takes back.
#[derive(Clone, Copy)]
struct Which<'a> {
    /// Of this open; else of any.
    own: Option<&'a Queue>,
    /// That came with this CCB.
    ccb: Option<UserPtr>,
    /// Of the open of this number.
    open: Option<u64>,
    /// Of this number of its open.
    number: Option<u64>,
}

impl<'a> Which<'a> {
    /// # Errors
    /// `EINVAL`: a flag that there is not, a reserved field, or fields that do
    /// not go together; `EPERM`: others' requests without PRIV_DRIVER.
    fn parse(queue: &'a Queue, what: &sys::qpass_cancel, thread: Thread<'_>) -> Result<Self> {
        let of_device = what.flags == sys::QPASS_CANCEL_DEVICE;
        let named = |field: u64| (field != 0).then_some(field);
        let which = Which {
            own: (!of_device).then_some(queue),
            ccb: named(what.ccb).map(|at| UserPtr::new(at as usize)),
            open: named(what.open),
            number: named(what.number),
        };
        let is_known = what.flags & !sys::QPASS_CANCEL_DEVICE == 0 && what.reserved0 == 0;
        let fits = if of_device {
            which.ccb.is_none() && (which.number.is_none() || which.open.is_some())
        } else {
            which.open.is_none() && which.number.is_none()
        };
        if !is_known || !fits {
            return Err(EINVAL);
        }
        if of_device {
            thread.priv_check(sys::PRIV_DRIVER)?;
        }
        Ok(which)
    }

    /// Those of an open.
    fn of(open: &'a Open) -> Self {
        Which {
            own: Some(&open.queue),
            ccb: None,
            open: None,
            number: None,
        }
    }

    /// Whether one is named, or the requests of one other open.
    fn is_particular(&self) -> bool {
        self.ccb.is_some() || self.open.is_some()
    }

    fn is_of(&self, queue: &Queue) -> bool {
        self.own.is_none_or(|own| core::ptr::eq(own, queue))
            && self
                .open
                .is_none_or(|number| number == queue.number.load(Relaxed))
    }

    fn has(&self, ticket: &Ticket) -> bool {
        self.ccb.is_none_or(|ccb| ccb == ticket.user_ccb)
            && self
                .number
                .is_none_or(|number| number == ticket.number.load(Relaxed))
    }
}

/// QPIOC_CANCEL. Sleeps.
///
/// # Errors
/// `EINVAL`: a flag that there is not, a reserved field, or fields that do not
/// go together; `EPERM`: others' requests without PRIV_DRIVER; `ENOENT`: nothing
/// outstanding is what was named; `ENXIO`: the device is gone.
pub fn cancel(open: &Shared<Open>, what: &mut sys::qpass_cancel, thread: Thread<'_>) -> Result {
    let which = Which::parse(&open.queue, what, thread)?;
    let unit = open.unit()?;
    let mut own = OwnCcb::alloc();
    let mut held = open.periph().lock();
    if unit.state.get(&mut held).gone {
        // The CCB is freed with no lock held.
        drop::<Held>(held);
        return Err(ENXIO);
    }
    let (mut known, mut done) = (false, 0);
    for queue in unit.state.look(&held).opens.iter() {
        if which.is_of(queue) {
            let wanted = |ticket: &Ticket| which.has(ticket);
            known |= queue.find(|ticket| wanted(ticket).then_some(())).is_some();
            done += queue.count_done(wanted);
        }
    }
    what.done = done;
    let mut dequeued = unit.take_queued(&mut held, which);
    drop::<Held>(held);
    what.dequeued = dequeued.len() as u32;
    while let Some(mut request) = dequeued.pop() {
        request.ccb_mut().set_status(sys::CAM_REQ_ABORTED);
        let open = request.open().clone();
        drop(Queue::complete(&open.queue, request));
    }
    let any = |_: &Ticket| true;
    (what.aborted, what.unable) = unit.abort_sent(open.periph(), which, &mut own, any);
    // It may have been reaped, or another call may have taken it, since.
    if which.is_particular() && !known {
        return Err(ENOENT);
    }
    Ok(())
}

impl Unit {
    /// Takes back the requests of `open` that were not sent yet.
    pub fn cancel_queued(
        &self,
        held: &mut Held<'_>,
        open: &Shared<Open>,
    ) -> Fifo<ZoneBox<Request>> {
        self.take_queued(held, Which::of(open))
    }

    /// Takes back what was not sent yet.
    fn take_queued(&self, held: &mut Held<'_>, which: Which<'_>) -> Fifo<ZoneBox<Request>> {
        let taken =
            self.state.get(held).queued.take_if(|request| {
                which.is_of(&request.open().queue) && which.has(request.known())
            });
        for _ in 0..taken.len() {
            self.room.stats.complete(Outcome::Cancelled);
        }
        taken
    }

    /// Aborts what CAM has of those that are also `wanted`, each once: how many
    /// CAM aborts, and how many it cannot. The device lock is let go between
    /// two.
    fn abort_sent(
        &self,
        periph: &Periph,
        which: Which<'_>,
        own: &mut OwnCcb,
        wanted: impl Fn(&Ticket) -> bool,
    ) -> (u32, u32) {
        let (mut aborted, mut unable) = (0, 0);
        let round = self.room().next_round();
        loop {
            let ccb = own.ccb_mut();
            let mut held = periph.lock();
            ccb.hdr_mut().func_code = sys::XPT_ABORT;
            ccb.setup(sys::QPC_CAM_PRIORITY_NORMAL, &mut held);
            let is_next = |ticket: &Ticket| {
                let under_way = ticket.sent.get(&held)?;
                (which.has(ticket) && wanted(ticket) && ticket.is_first_in(round))
                    .then_some(under_way)
            };
            let opens = &self.state.look(&held).opens;
            let under_way = opens
                .iter()
                .filter(|queue| which.is_of(queue))
                .find_map(|queue| queue.find(is_next));
            let Some(under_way) = under_way else {
                return (aborted, unable);
            };
            under_way.abort(ccb);
            drop::<Held>(held);
            ccb.wait_answered();
            if ccb.is_good() {
                aborted += 1;
            } else {
                unable += 1;
            }
        }
    }

    /// Takes back the first request of `open` that came with the CCB at
    /// `user_ccb`, if it was not sent yet.
    fn cancel_one(
        &self,
        held: &mut Held<'_>,
        open: &Shared<Open>,
        user_ccb: UserPtr,
    ) -> Option<ZoneBox<Request>> {
        let mut request = self.state.get(held).queued.take_first(|request| {
            Shared::ptr_eq(request.open(), open) && request.known().user_ccb == user_ccb
        })?;
        request.ccb_mut().set_status(sys::CAM_REQ_ABORTED);
        self.room.stats.complete(Outcome::Cancelled);
        Some(request)
    }

    /// XPT_ABORT, with `ccb`, which is set up and whose status tells what came
    /// of it: a request that was not sent yet is completed; one that CAM has is
    /// CAM's to abort; none of the two is CAM_UA_ABORT. Sleeps, with the lock
    /// given back.
    pub fn abort(&self, open: &Shared<Open>, mut held: Held<'_>, ccb: &mut Ccb) {
        let target = ccb.abort_target();
        let cancelled = self.cancel_one(&mut held, open, target);
        if cancelled.is_some() {
            ccb.set_status(sys::CAM_REQ_CMP);
        } else {
            let under_way = open.queue.find(|ticket| {
                let is_it = ticket.user_ccb == target;
                is_it.then(|| ticket.sent.get(&held)).flatten()
            });
            match under_way {
                Some(under_way) => under_way.abort(ccb),
                None => ccb.set_status(sys::CAM_UA_ABORT),
            }
        }
        drop::<Held>(held);
        ccb.wait_answered();
        ccb.set_abort_target(target);
        // In this order: the abort is not done before what it has done.
        if let Some(cancelled) = cancelled {
            drop(Queue::complete(&open.queue, cancelled));
        }
        let _held = open.periph().lock();
        self.room.stats.complete(Outcome::of(ccb.is_good()));
    }

    /// Aborts what waits for others and not for the device, as its open is
    /// closed. Sleeps.
    pub fn abort_waiting(&self, open: &Shared<Open>) {
        if open
            .queue
            .find(|ticket| ticket.waits.then_some(()))
            .is_some()
        {
            let (which, mut own) = (Which::of(open), OwnCcb::alloc());
            self.abort_sent(open.periph(), which, &mut own, |ticket| ticket.waits);
        }
    }
}
