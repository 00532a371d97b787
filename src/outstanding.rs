//! QPIOC_LIST: what is on its way, of one moment.

use crate::{
    queue::{Open, Queue},
    request::Ticket,
};
use core::sync::atomic::Ordering::Relaxed;
use kpi::{
    alloc::KVec,
    cdev::Thread,
    errno::{EINVAL, ENXIO, Result},
    periph::Held,
    shared::Shared,
    time::uptime,
    user::UserPtr,
};
use sys_bindings as sys;

/// QPIOC_LIST. Sleeps.
///
/// # Errors
/// `EINVAL`: a flag or a reserved field is set; `EPERM`: another open's
/// requests without PRIV_DRIVER; `EFAULT`; `ENXIO`: the device is gone.
pub fn list(open: &Shared<Open>, call: &mut sys::qpass_list, thread: Thread<'_>) -> Result {
    // What came out says that there is more; the same call goes on.
    call.flags &= !sys::QPASS_LIST_MORE;
    let of_device = call.flags == sys::QPASS_LIST_DEVICE;
    if call.flags & !sys::QPASS_LIST_DEVICE != 0 || call.reserved0 != 0 || call.reserved != [0; 2] {
        return Err(EINVAL);
    }
    if of_device {
        thread.priv_check(sys::PRIV_DRIVER)?;
    }
    let room = call.room.min(sys::QPASS_LIST_MAX) as usize;
    let mut found = Found {
        entries: KVec::with_capacity(room.max(1)),
        room,
        after: call.cursor,
        now: uptime(),
        more: false,
    };
    let unit = open.unit()?;
    // Everything stays where it is while both locks are held.
    let held = open.periph().lock();
    let state = unit.state.look(&held);
    if state.gone {
        // The entries are freed with no lock held.
        drop::<Held>(held);
        return Err(ENXIO);
    }
    if of_device {
        for queue in state.opens.iter() {
            found.look_at(queue, &held);
        }
    } else {
        found.look_at(&open.queue, &held);
    }
    drop::<Held>(held);
    UserPtr::new(call.entries as usize).copyout_array(&found.entries)?;
    call.count = found.entries.len() as u32;
    call.cursor = [0; 2];
    if found.more {
        call.flags |= sys::QPASS_LIST_MORE;
        if let Some(last) = found.entries.last() {
            call.cursor = [last.open, last.number];
        }
    }
    Ok(())
}

/// The entries of one call.
struct Found {
    entries: KVec<sys::qpass_outstanding>,
    room: usize,
    /// The last entry of the call before: its open and its number.
    after: [u64; 2],
    now: u64,
    more: bool,
}

impl Found {
    fn look_at(&mut self, queue: &Queue, held: &Held<'_>) {
        let open = queue.number.load(Relaxed);
        if self.more || open < self.after[0] {
            return;
        }
        let state = queue.state.lock();
        for ticket in state.outstanding() {
            let number = ticket.number.load(Relaxed);
            if [open, number] <= self.after {
                continue;
            }
            if self.entries.len() == self.room {
                self.more = true;
                return;
            }
            self.entries.push(self.entry(open, number, ticket, held));
        }
    }

    fn entry(
        &self,
        open: u64,
        number: u64,
        ticket: &Ticket,
        held: &Held<'_>,
    ) -> sys::qpass_outstanding {
        let asked = &ticket.asked;
        let state = if ticket.is_done.load(Relaxed) {
            sys::QPASS_STATE_DONE
        } else if ticket.sent.get(held).is_some() {
            sys::QPASS_STATE_SENT
        } else {
            sys::QPASS_STATE_QUEUED
        };
        sys::qpass_outstanding {
            ccb: ticket.user_ccb.address() as u64,
            tag: ticket.tag,
            age: self.now.saturating_sub(asked.since),
            open,
            number,
            func_code: asked.func_code,
            length: asked.len,
            pid: asked.pid,
            state: state as u8,
            direction: asked.direction,
            cdb_len: asked.cdb_len,
            reserved: 0,
            cdb: asked.cdb,
        }
    }
}
