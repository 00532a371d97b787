//! Taking requests back: QPIOC_CANCEL, XPT_ABORT, and the last close.
//!
//! What was not sent yet is taken off the unit's list; what CAM has is CAM's to
//! abort. Either way it is reaped once, unless its open is closed.

use crate::{
    kpi::{
        ccb::{Ccb, OwnCcb},
        errno::{EINVAL, ENOENT, ENXIO, Result},
        fifo::Fifo,
        periph::Held,
        shared::Shared,
        user::UserPtr,
        zone::ZoneBox,
    },
    queue::{Open, Queue},
    request::{Request, Ticket},
    stats::Outcome,
    unit::Unit,
};
use sys_bindings as sys;

/// QPIOC_CANCEL. Sleeps.
///
/// # Errors
/// `EINVAL`: a flag or a reserved field is set; `ENOENT`: no request of the
/// open came with that CCB; `ENXIO`: the device is gone.
pub fn cancel(open: &Shared<Open>, what: &mut sys::qpass_cancel) -> Result {
    if what.flags != 0 || what.reserved0 != 0 || what.reserved != [0; 2] {
        return Err(EINVAL);
    }
    let all = what.ccb == 0;
    let target = UserPtr::new(what.ccb as usize);
    let wanted = |ticket: &Ticket| all || ticket.user_ccb == target;
    let unit = open.unit()?;
    let mut own = OwnCcb::alloc();
    let mut held = open.periph().lock();
    if unit.state.get(&mut held).gone {
        // The CCB is freed with no lock held.
        drop::<Held>(held);
        return Err(ENXIO);
    }
    let known = open.queue.find(|ticket| wanted(ticket).then_some(()));
    let mut dequeued = unit.take_queued(&mut held, open, wanted);
    drop::<Held>(held);
    what.dequeued = dequeued.len() as u32;
    what.done = open.queue.count_done(wanted);
    while let Some(mut request) = dequeued.pop() {
        request.ccb_mut().set_status(sys::CAM_REQ_ABORTED);
        drop(Queue::complete(&open.queue, request));
    }
    (what.aborted, what.unable) = unit.abort_sent(open, &mut own, wanted);
    // It may have been reaped, or another call may have taken it, since.
    if !all && known.is_none() {
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
        self.take_queued(held, open, |_| true)
    }

    /// The same, of those that `wanted` picks.
    fn take_queued(
        &self,
        held: &mut Held<'_>,
        open: &Shared<Open>,
        wanted: impl Fn(&Ticket) -> bool,
    ) -> Fifo<ZoneBox<Request>> {
        let taken = self
            .state
            .get(held)
            .queued
            .take_if(|request| Shared::ptr_eq(request.open(), open) && wanted(request.known()));
        for _ in 0..taken.len() {
            self.room.stats.complete(Outcome::Cancelled);
        }
        taken
    }

    /// Aborts what CAM has of `open` and `wanted` picks, each once: how many
    /// CAM aborts, and how many it cannot. The device lock is let go between
    /// two.
    fn abort_sent(
        &self,
        open: &Shared<Open>,
        own: &mut OwnCcb,
        wanted: impl Fn(&Ticket) -> bool,
    ) -> (u32, u32) {
        let (mut aborted, mut unable) = (0, 0);
        let round = open.queue.next_round();
        loop {
            let ccb = own.ccb_mut();
            let mut held = open.periph().lock();
            ccb.hdr_mut().func_code = sys::XPT_ABORT;
            ccb.setup(sys::QPC_CAM_PRIORITY_NORMAL, &mut held);
            let under_way = open.queue.find(|ticket| {
                let under_way = ticket.sent.get(&held)?;
                (wanted(ticket) && ticket.is_first_in(round)).then_some(under_way)
            });
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
            self.abort_sent(open, &mut OwnCcb::alloc(), |ticket| ticket.waits);
        }
    }
}
