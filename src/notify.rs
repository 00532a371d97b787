//! kqueue(2) and poll(2) on an open's completions.
//!
//! Every completion counts, an immediate CCB's too. EVFILT_READ's `data` is
//! how many are ready, EVFILT_WRITE's how many requests more may be queued, and 0
//! while no byte is left or the request that was refused last would be again;
//! EV_EOF says that the device has gone.

use crate::{
    queue::{Queue, State},
    room,
};
use core::ffi::c_int;
use kpi::{
    cdev::Thread,
    errno::{EINVAL, Result},
    knlist::{Filter, KnList, Knote, Readiness},
    mutex::Mutex,
    shared::Shared,
};
use sys_bindings as sys;

/// EVFILT_READ.
struct Readable;

impl Filter for Readable {
    type Object = Queue;
    type State = State;
    fn knotes(queue: &Queue) -> (&KnList, &Mutex<State>) {
        (&queue.readers, &queue.state)
    }
    fn ready(_queue: &Queue, state: &State) -> Readiness {
        Readiness {
            data: state.done.len() as i64,
            eof: state.closed,
        }
    }
}

/// EVFILT_WRITE.
struct Writable;

impl Filter for Writable {
    type Object = Queue;
    type State = room::State;
    fn knotes(queue: &Queue) -> (&KnList, &Mutex<room::State>) {
        (&queue.room.writers, &queue.room.lock)
    }
    fn ready(queue: &Queue, _state: &room::State) -> Readiness {
        Readiness {
            data: i64::from(queue.free_requests()),
            eof: queue.is_closed(),
        }
    }
}

/// Tells who waits that an open has a completion, or is closed. No lock may be
/// held.
pub fn wake(queue: &Queue) {
    let state = queue.state.lock();
    queue.readers.notify(&state);
    drop(state);
    queue.select.wakeup();
}

/// poll(2): POLLIN when a completion is ready, POLLOUT when there is room for
/// a request.
pub fn poll(queue: &Queue, events: c_int, thread: Thread<'_>) -> c_int {
    const READ: c_int = (sys::POLLIN | sys::POLLRDNORM) as c_int;
    const WRITE: c_int = (sys::POLLOUT | sys::POLLWRNORM) as c_int;
    // Recorded first: a change between the look and the record would wake
    // nobody.
    queue.select.record(thread);
    let mut ready = 0;
    if events & WRITE != 0 {
        queue.room.select.record(thread);
        queue.room.watch();
        if queue.free_requests() != 0 {
            ready |= events & WRITE;
        }
    }
    if events & READ != 0 && !queue.state.lock().done.is_empty() {
        ready |= events & READ;
    }
    ready
}

/// kevent(2): EVFILT_READ and EVFILT_WRITE.
///
/// # Errors
/// `EINVAL`: another filter.
pub fn kqfilter(queue: &Shared<Queue>, knote: Knote<'_>) -> Result {
    match knote.filter() {
        sys::EVFILT_READ => {
            // What is cleared when it is read is set by every completion.
            if knote.is_cleared() {
                queue.tell_every();
            }
            knote.attach::<Readable>(queue.clone());
        }
        sys::EVFILT_WRITE => {
            knote.attach::<Writable>(queue.clone());
            // Behind it: who finds no knote stops to watch.
            queue.room.watch();
        }
        _ => return Err(EINVAL),
    }
    Ok(())
}
