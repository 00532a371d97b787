//! Taking requests back: QPIOC_CANCEL, XPT_ABORT, and the last close.
//!
//! What was not sent yet is taken off the unit's list; what CAM has is CAM's to
//! abort. Either way it is reaped once, unless its open is closed.

use crate::{
    queue::{Open, Queue},
    request::{Request, Ticket},
    stats::Outcome,
    unit::{DONE, Unit},
};
use core::{cell::Cell, sync::atomic::Ordering::Relaxed};
use kpi::{
    abort::{self, AbortCcb, Dequeued, Place, UnderWay},
    ccb::OwnCcb,
    cdev::Thread,
    driver::pause_ms_or_signal,
    errno::{EINVAL, ENOENT, ENXIO, Result},
    fifo::Fifo,
    periph::{Held, PeriphRef},
    shared::Shared,
    time::uptime,
    user::UserPtr,
    zone::ZoneBox,
};
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

/// QPIOC_CANCEL. Sleeps, some seconds at most.
///
/// # Errors
/// `EINVAL`: a flag that there is not, a reserved field, or fields that do not
/// go together; `EPERM`: others' requests without PRIV_DRIVER; `ENOENT`: nothing
/// outstanding is what was named; `EINTR`: a signal came, and some may be cancelled
/// that are not counted; `ENXIO`: the device is gone.
pub fn cancel(open: &Shared<Open>, what: &mut sys::qpass_cancel, thread: Thread<'_>) -> Result {
    let which = Which::parse(&open.queue, what, thread)?;
    let unit = open.unit()?;
    let mut held = open.periph().lock();
    if unit.state.get(&mut held).gone {
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
    let mut aborter = Aborter::new(unit, open.lease());
    (what.aborted, what.unable) = aborter.abort(which, usize::MAX)?;
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

    /// XPT_ABORT of the request that came with the CCB at `target`, and how that
    /// ended: a request that was not sent yet is completed; one that CAM has is
    /// CAM's to abort; none of the two is CAM_UA_ABORT, and so is one of which a
    /// signal or the time kept the call from learning more. Sleeps.
    pub fn abort(&self, open: &Shared<Open>, target: UserPtr) -> sys::cam_status {
        let mut held = open.periph().lock();
        let cancelled = self.cancel_one(&mut held, open, target);
        drop::<Held>(held);
        let status = if cancelled.is_some() {
            sys::CAM_REQ_CMP
        } else {
            let which = Which {
                ccb: Some(target),
                ..Which::of(open)
            };
            match Aborter::new(self, open.lease()).abort(which, 1) {
                Ok((1, _)) => sys::CAM_REQ_CMP,
                _ => sys::CAM_UA_ABORT,
            }
        };
        // In this order: the abort is not done before what it has done.
        if let Some(cancelled) = cancelled {
            drop(Queue::complete(&open.queue, cancelled));
        }
        let _held = open.periph().lock();
        let good = status == sys::CAM_REQ_CMP;
        self.room.stats.complete(Outcome::of(good));
        status
    }

    /// Has nothing of a closed open sent again that CAM is about to: what fails from
    /// now on is not.
    pub fn give_up_recoveries(&self, open: &Shared<Open>) {
        let held = open.periph().lock();
        open.queue.find(|ticket| {
            let under_way = ticket.sent.get(&held)?;
            if under_way.place(DONE) == Place::Recovering {
                ticket.replace(&held);
                under_way.defuse(DONE);
            }
            None::<()>
        });
    }
}

/// Nanoseconds that a call waits for all of its aborts together.
const PATIENCE: u64 = 5_000_000_000;
/// Nanoseconds that it waits for the answer to one whose command has come back.
const GRACE: u64 = 200_000_000;
/// Nanoseconds after which a SIM that was given a command is taken for one that
/// never says that it has it.
const SILENT: u64 = 1_000_000_000;

/// Aborts that are under way at a time.
const FLIGHT: usize = 16;
/// Abort CCBs that one device's SIM may owe an answer for: past it none is sent, so
/// that a program that cancels in a loop cannot have the kernel's memory.
const MOST_KEPT: u32 = 64;

/// Which request is meant, for as long as it is outstanding: the numbers of its
/// open and of its own.
type Target = (u64, u64);

/// An abort that was sent.
struct Out {
    ccb: AbortCcb,
    target: Target,
    /// When its target was first seen to be back.
    back_since: Option<u64>,
}

/// What became of the search for the next request to abort.
enum Next {
    /// It was sent for.
    Sent(Target),
    /// It needed no abort, or can have none: how that ended.
    Ended(sys::cam_status),
    /// It is not the SIM's yet, and not CAM's any more.
    Later,
    /// There is none.
    None,
}

/// A request that a round of aborts has found, and what becomes of it.
enum Found<'h> {
    /// Nothing.
    Declined,
    /// CAM means to send it again, and sends another command in its place.
    Replaced,
    /// It is off CAM's queue.
    Dequeued(Dequeued),
    /// The SIM has it, or has not said so for long: with its number.
    AtSim(UnderWay<'h>, u64),
}

/// Aborts requests that CAM has, each once, some at a time. It waits for the SIM
/// with no lock held: each until the SIM answers or the command is back, and all
/// until a signal comes or the time is over.
struct Aborter<'a> {
    unit: &'a Unit,
    periph: &'a PeriphRef,
    out: [Option<Out>; FLIGHT],
    spare: Option<AbortCcb>,
    /// For the SIM's lock.
    own: OwnCcb,
    since: u64,
    aborted: u32,
    unable: u32,
}

impl<'a> Aborter<'a> {
    /// Sleeps.
    fn new(unit: &'a Unit, periph: &'a PeriphRef) -> Self {
        abort::sweep();
        Aborter {
            unit,
            periph,
            out: [const { None }; FLIGHT],
            spare: None,
            own: OwnCcb::alloc(),
            since: uptime(),
            aborted: 0,
            unable: 0,
        }
    }

    fn waited(&self) -> u64 {
        uptime().saturating_sub(self.since)
    }

    /// Whether nothing more is waited for, or sent.
    fn is_late(&self) -> bool {
        self.waited() >= PATIENCE || self.unit.kept.load(Relaxed) >= MOST_KEPT
    }

    /// Aborts those of `which`, `most` of them: how many CAM aborts, and how many it
    /// cannot, or has not said.
    ///
    /// # Errors
    /// `EINTR`.
    fn abort(&mut self, which: Which<'_>, most: usize) -> Result<(u32, u32)> {
        let round = self.unit.room().next_round();
        let mut left = most;
        loop {
            let mut is_later = false;
            while left != 0
                && let Some(slot) = self.out.iter().position(Option::is_none)
            {
                match self.next(which, round, slot) {
                    Next::Sent(_) => left -= 1,
                    Next::Ended(status) => {
                        left -= 1;
                        self.count(status);
                    }
                    Next::Later => {
                        is_later = true;
                        break;
                    }
                    Next::None => left = 0,
                }
            }
            let has_settled = self.look();
            if left == 0 && self.out.iter().all(Option::is_none) {
                return Ok((self.aborted, self.unable));
            }
            if is_later || !has_settled {
                pause_ms_or_signal(1)?;
            }
        }
    }

    fn count(&mut self, status: sys::cam_status) {
        if status == sys::CAM_REQ_CMP {
            self.aborted += 1;
        } else {
            self.unable += 1;
        }
    }

    /// Sends an abort for the next one that the round has not seen.
    fn next(&mut self, which: Which<'_>, round: u64, slot: usize) -> Next {
        let mut ccb = self.spare.take().unwrap_or_else(AbortCcb::alloc);
        let (is_late, insists) = (self.is_late(), self.waited() >= SILENT);
        let mut held = self.periph.lock();
        // What is found in CAM's queue stays there meanwhile.
        let frozen = held.freeze();
        let state = self.unit.state.look(&held);
        let is_late = is_late || state.gone;
        let is_between = Cell::new(false);
        let look = |ticket: &Ticket| {
            let under_way = ticket.sent.get(&held)?;
            if ticket.is_seen_in(round) || !which.has(ticket) {
                return None;
            }
            let place = under_way.place(DONE);
            let is_declined = is_late || ticket.is_cams || place == Place::Task;
            if place == Place::Between && !insists && !is_declined {
                is_between.set(true);
                return None;
            }
            let _ = ticket.is_first_in(round);
            if is_declined {
                return Some(Found::Declined);
            }
            if place == Place::Recovering {
                ticket.replace(&held);
                under_way.defuse(DONE);
                return Some(Found::Replaced);
            }
            if place == Place::Reachable
                && let Some(dequeued) = under_way.dequeue(&frozen)
            {
                ticket.replace(&held);
                return Some(Found::Dequeued(dequeued));
            }
            ticket.ask_abort(&held);
            Some(Found::AtSim(under_way, ticket.number.load(Relaxed)))
        };
        let found = state
            .opens
            .iter()
            .filter(|queue| which.is_of(queue))
            .find_map(|queue| Some((queue.number.load(Relaxed), queue.find(look)?)));
        let mut dequeued = None;
        let next = match found {
            None if is_between.get() => Next::Later,
            None => Next::None,
            Some((_, Found::Declined)) => Next::Ended(sys::CAM_UA_ABORT),
            Some((_, Found::Replaced)) => Next::Ended(sys::CAM_REQ_CMP),
            Some((_, Found::Dequeued(taken))) => {
                dequeued = Some(taken);
                Next::Ended(sys::CAM_REQ_CMP)
            }
            Some((open, Found::AtSim(under_way, number))) => {
                ccb.send(&under_way, &held);
                Next::Sent((open, number))
            }
        };
        drop(frozen);
        if let Some(dequeued) = dequeued {
            dequeued.come_back(&mut held);
        }
        drop::<Held>(held);
        if let Next::Sent(target) = next {
            self.out[slot] = Some(Out {
                ccb,
                target,
                back_since: None,
            });
        } else {
            self.spare = Some(ccb);
        }
        next
    }

    /// Looks at each that was sent once, and says whether one has settled.
    fn look(&mut self) -> bool {
        let (now, is_late) = (uptime(), self.is_late());
        let (mut has_settled, mut has_passed) = (false, false);
        for slot in 0..FLIGHT {
            let Some(out) = &mut self.out[slot] else {
                continue;
            };
            let (target, answer) = (out.target, out.ccb.answer());
            let status = if let Some(status) = answer {
                // The SIM may have an instruction or two to go with it.
                if !has_passed {
                    self.periph.lock().sim_barrier(self.own.ccb_mut());
                    has_passed = true;
                }
                out.ccb.take_back();
                status
            } else if !Self::is_under_way(self.unit, target, &self.periph.lock()) {
                let since = *out.back_since.get_or_insert(now);
                if !self.unit.forgets_aborts && now.saturating_sub(since) < GRACE && !is_late {
                    continue;
                }
                sys::CAM_REQ_CMP
            } else if is_late {
                sys::CAM_UA_ABORT
            } else {
                continue;
            };
            has_settled = true;
            let is_no = answer.is_some_and(|status| status != sys::CAM_REQ_CMP);
            if is_no {
                self.decline(target);
            }
            self.set_aside(slot);
            self.count(status);
        }
        has_settled
    }

    /// Frees an abort CCB, or keeps it where the SIM may still write it.
    fn set_aside(&mut self, slot: usize) {
        let Some(mut out) = self.out[slot].take() else {
            return;
        };
        if out.ccb.is_out() && self.unit.forgets_aborts {
            out.ccb.take_back();
        }
        if out.ccb.is_out() {
            abort::keep(out.ccb, self.periph.clone(), self.unit.kept.clone());
        } else {
            self.spare = Some(out.ccb);
        }
    }

    fn find<R>(
        unit: &Unit,
        (open, number): Target,
        held: &Held<'_>,
        mut found: impl FnMut(&Ticket) -> R,
    ) -> Option<R> {
        let found = core::cell::RefCell::new(&mut found);
        let is_it = |ticket: &Ticket| {
            let is_it = ticket.number.load(Relaxed) == number && ticket.sent.get(held).is_some();
            is_it.then(|| (found.borrow_mut())(ticket))
        };
        let opens = &unit.state.look(held).opens;
        opens
            .iter()
            .filter(|queue| queue.number.load(Relaxed) == open)
            .find_map(|queue| queue.find(is_it))
    }

    fn is_under_way(unit: &Unit, target: Target, held: &Held<'_>) -> bool {
        Self::find(unit, target, held, |_| ()).is_some()
    }

    /// The SIM does not abort it: it goes on as it was.
    fn decline(&self, target: Target) {
        let held = self.periph.lock();
        Self::find(self.unit, target, &held, |ticket| {
            ticket.decline_abort(&held);
        });
    }
}

impl Drop for Aborter<'_> {
    fn drop(&mut self) {
        for slot in 0..FLIGHT {
            self.set_aside(slot);
        }
    }
}
