//! kqueue(2) and poll(2) on an open's completions.
//!
//! Every completion counts, an immediate CCB's too. EVFILT_READ's `data` is
//! how many are ready; EV_EOF says that the device has gone.

use crate::{
    kpi::{
        cdev::Thread,
        errno::{EINVAL, Result},
        knlist::{KnList, Knote, Readiness, Watched},
        mutex::{Guard, Mutex},
        shared::Shared,
    },
    queue::{Queue, State},
};
use core::ffi::c_int;
use sys_bindings as sys;

impl Watched for Queue {
    type State = State;
    fn state(&self) -> &Mutex<State> {
        &self.state
    }
    fn knotes(&self) -> &KnList {
        &self.knotes
    }
    fn readable(state: &State) -> Readiness {
        Readiness {
            data: state.done.len() as i64,
            eof: state.closed,
        }
    }
}

/// Tells who waits that the queue has changed.
pub fn wake(queue: &Queue, state: Guard<'_, State>) {
    queue.knotes.notify(&state);
    drop(state);
    queue.select.wakeup();
}

/// poll(2): POLLIN when a completion is ready; POLLOUT always, as pass(4).
pub fn poll(queue: &Queue, events: c_int, thread: Thread<'_>) -> c_int {
    const READ: c_int = (sys::POLLIN | sys::POLLRDNORM) as c_int;
    const WRITE: c_int = (sys::POLLOUT | sys::POLLWRNORM) as c_int;
    let mut ready = events & WRITE;
    if events & READ != 0 {
        // Recorded first: a completion between the look and the record would
        // wake nobody.
        queue.select.record(thread);
        if !queue.state.lock().done.is_empty() {
            ready |= events & READ;
        }
    }
    ready
}

/// kevent(2): EVFILT_READ.
///
/// # Errors
/// `EINVAL`: another filter.
pub fn kqfilter(queue: &Shared<Queue>, knote: Knote<'_>) -> Result {
    if knote.filter() != sys::EVFILT_READ {
        return Err(EINVAL);
    }
    knote.attach_read(queue.clone());
    Ok(())
}
