//! Taking requests back: QPIOC_CANCEL, XPT_ABORT, and the last close.
//!
//! What was not sent yet is taken off the unit's list; what CAM has is CAM's to
//! abort. Either way it is reaped once, unless its open is closed.

use crate::{
    kpi::{
        abort::{self, AbortCcb, Place},
        ccb::OwnCcb,
        cdev::Thread,
        driver::{pause_ms, pause_ms_or_signal},
        errno::{EINVAL, ENOENT, ENXIO, Result},
        fifo::Fifo,
        periph::{Held, PeriphRef},
        shared::Shared,
        time::uptime,
        user::UserPtr,
        zone::ZoneBox,
    },
    queue::{Open, Queue},
    request::{Aborted, Request, Ticket},
    stats::Outcome,
    unit::{DONE, Unit},
};
use core::{cell::Cell, sync::atomic::Ordering::Relaxed};
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
    let mut aborter = Aborter::new(unit, open.lease(), true);
    (what.aborted, what.unable) = aborter.abort_all(which, |_| true)?;
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
            let mut aborter = Aborter::new(self, open.lease(), true);
            aborter.abort_one(which).unwrap_or(sys::CAM_UA_ABORT)
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

    /// Aborts what waits for others and not for the device, as its open is
    /// closed. Sleeps.
    pub fn abort_waiting(&self, open: &Shared<Open>) {
        if open
            .queue
            .find(|ticket| ticket.waits.then_some(()))
            .is_some()
        {
            // Whoever closes cannot be told of a signal.
            let mut aborter = Aborter::new(self, open.lease(), false);
            let _ = aborter.abort_all(Which::of(open), |ticket| ticket.waits);
        }
    }
}

/// Nanoseconds that a call waits for all of its aborts together.
const PATIENCE: u64 = 5_000_000_000;
/// Nanoseconds that it waits for the answer to one whose command has come back.
const GRACE: u64 = 200_000_000;
/// Nanoseconds after which a SIM that was given a command is taken for one that
/// never says that it has it.
const SILENT: u64 = 1_000_000_000;

/// How an abort ended.
enum Answer {
    /// The SIM answered with that status.
    Status(sys::cam_status),
    /// It did not, but the command came back.
    CameBack,
    /// It did not, and the command is still under way.
    None,
}

/// Which request is meant, for as long as it is outstanding: the numbers of its
/// open and of its own.
type Target = (u64, u64);

/// Aborts requests that CAM has, one by one, each once. It waits for the SIM with
/// no lock held, until the SIM answers, the command is back, a signal comes or its
/// time is over, whichever is first.
struct Aborter<'a> {
    unit: &'a Unit,
    periph: &'a PeriphRef,
    ccb: AbortCcb,
    /// For the SIM's lock.
    own: OwnCcb,
    since: u64,
    signals: bool,
}

impl<'a> Aborter<'a> {
    /// Sleeps. Signals end the waiting where `signals` says so.
    fn new(unit: &'a Unit, periph: &'a PeriphRef, signals: bool) -> Self {
        abort::sweep();
        Aborter {
            unit,
            periph,
            ccb: AbortCcb::alloc(),
            own: OwnCcb::alloc(),
            since: uptime(),
            signals,
        }
    }

    fn waited(&self) -> u64 {
        uptime().saturating_sub(self.since)
    }

    /// Aborts those of `which` that are also `wanted`: how many CAM aborts, and how
    /// many it cannot, or has not said.
    ///
    /// # Errors
    /// `EINTR`.
    fn abort_all(
        &mut self,
        which: Which<'_>,
        wanted: impl Fn(&Ticket) -> bool,
    ) -> Result<(u32, u32)> {
        let (mut aborted, mut unable) = (0, 0);
        let round = self.unit.room().next_round();
        while let Some(status) = self.abort_next(which, round, &wanted)? {
            if status == sys::CAM_REQ_CMP {
                aborted += 1;
            } else {
                unable += 1;
            }
        }
        Ok((aborted, unable))
    }

    /// Aborts the first of `which`, and says how that ended.
    ///
    /// # Errors
    /// `EINTR`.
    fn abort_one(&mut self, which: Which<'_>) -> Result<sys::cam_status> {
        let round = self.unit.room().next_round();
        let status = self.abort_next(which, round, &|_| true)?;
        Ok(status.unwrap_or(sys::CAM_UA_ABORT))
    }

    /// Aborts the next one that the round has not seen; `None` when there is none.
    fn abort_next(
        &mut self,
        which: Which<'_>,
        round: u64,
        wanted: &impl Fn(&Ticket) -> bool,
    ) -> Result<Option<sys::cam_status>> {
        loop {
            let held = self.periph.lock();
            // What is found in CAM's queue is there until the abort finds it.
            let frozen = held.freeze();
            let state = self.unit.state.look(&held);
            let late = self.waited() >= PATIENCE || state.gone || abort::is_kept_full();
            let insists = self.waited() >= SILENT;
            let is_between = Cell::new(false);
            let look = |ticket: &Ticket| {
                let under_way = ticket.sent.get(&held)?;
                if ticket.is_seen_in(round) || !which.has(ticket) || !wanted(ticket) {
                    return None;
                }
                let place = under_way.place(DONE);
                if place == Place::Between && !insists && !late {
                    is_between.set(true);
                    return None;
                }
                let _ = ticket.is_first_in(round);
                if !late {
                    let how = match place {
                        Place::Recovering => Aborted::Replaced,
                        _ => Aborted::Asked,
                    };
                    ticket.set_aborted(how, &held);
                }
                Some((under_way, place, ticket.number.load(Relaxed)))
            };
            let found = state
                .opens
                .iter()
                .filter(|queue| which.is_of(queue))
                .find_map(|queue| Some((queue.number.load(Relaxed), queue.find(look)?)));
            match found {
                // Nothing more is sent, but it is known what was not.
                Some(_) if late => return Ok(Some(sys::CAM_UA_ABORT)),
                Some((_, (under_way, Place::Recovering, _))) => {
                    under_way.defuse(DONE);
                    return Ok(Some(sys::CAM_REQ_CMP));
                }
                Some((open, (under_way, _, number))) => {
                    self.ccb.send(&under_way, &held);
                    drop(frozen);
                    drop::<Held>(held);
                    return self.outcome((open, number)).map(Some);
                }
                None if is_between.get() => {
                    drop(frozen);
                    drop::<Held>(held);
                    self.pause()?;
                }
                None => return Ok(None),
            }
        }
    }

    fn pause(&self) -> Result {
        if self.signals {
            return pause_ms_or_signal(1);
        }
        pause_ms(1);
        Ok(())
    }

    /// How the abort that was sent for `target` ended.
    ///
    /// # Errors
    /// `EINTR`.
    fn outcome(&mut self, target: Target) -> Result<sys::cam_status> {
        let answer = self.wait(target);
        if self.ccb.is_out() {
            if self.unit.forgets_aborts {
                self.ccb.take_back();
            } else {
                // The SIM may still write it.
                let unanswered = core::mem::replace(&mut self.ccb, AbortCcb::alloc());
                abort::keep(unanswered, self.periph.clone());
            }
        }
        Ok(match answer? {
            Answer::Status(status) => status,
            Answer::CameBack => sys::CAM_REQ_CMP,
            Answer::None => sys::CAM_UA_ABORT,
        })
    }

    fn wait(&mut self, target: Target) -> Result<Answer> {
        let mut back_since = None;
        loop {
            if let Some(status) = self.ccb.answer() {
                // The SIM may have an instruction or two to go with it.
                self.periph.lock().sim_barrier(self.own.ccb_mut());
                self.ccb.take_back();
                return Ok(Answer::Status(status));
            }
            let now = uptime();
            let held = self.periph.lock();
            if !self.is_under_way(target, &held) {
                let since: u64 = *back_since.get_or_insert(now);
                if self.unit.forgets_aborts || now.saturating_sub(since) >= GRACE {
                    return Ok(Answer::CameBack);
                }
            }
            drop::<Held>(held);
            // A device that goes leaves a SIM that answers for it.
            if self.waited() >= PATIENCE {
                return Ok(Answer::None);
            }
            self.pause()?;
        }
    }

    fn is_under_way(&self, (open, number): Target, held: &Held<'_>) -> bool {
        let is_it = |ticket: &Ticket| {
            (ticket.number.load(Relaxed) == number && ticket.sent.get(held).is_some()).then_some(())
        };
        let opens = &self.unit.state.look(held).opens;
        opens
            .iter()
            .any(|queue| queue.number.load(Relaxed) == open && queue.find(is_it).is_some())
    }
}
