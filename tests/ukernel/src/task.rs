//! taskqueue(9): `taskqueue_thread`, one thread that may sleep.

use crate::{lock::may_sleep, sys, worker::Worker};
use std::{
    ffi::{c_int, c_void},
    sync::Mutex,
};

enum Job {
    /// A `struct task` of the module's.
    Task(usize),
    /// Work of the kernel's own.
    Work(Box<dyn FnOnce() + Send>),
}

static QUEUE: Worker<Job> = Worker::new("taskqueue_thread", run);
/// Guards `ta_pending` of every task, and says which one is running.
static RUNNING: Mutex<usize> = Mutex::new(0);

/// Runs `work` on `taskqueue_thread`.
pub fn enqueue(work: impl FnOnce() + Send + 'static) {
    QUEUE.put(Job::Work(Box::new(work)));
}

fn run(job: Job) {
    match job {
        Job::Work(work) => work(),
        Job::Task(task) => {
            let task = task as *mut sys::task;
            // SAFETY: a queued task stays valid until it runs; then it is not
            // touched again, for it may free itself.
            unsafe {
                let (func, context) = ((*task).ta_func, (*task).ta_context);
                let pending = {
                    let mut running = RUNNING.lock().unwrap();
                    *running = task as usize;
                    std::mem::take(&mut (*task).ta_pending)
                };
                let Some(func) = func else {
                    crate::thread::broken("a task without a function");
                };
                func(context, c_int::from(pending));
                *RUNNING.lock().unwrap() = 0;
            }
        }
    }
    may_sleep("end of a task");
}

/// Waits until what is queued now has run.
pub fn drain() {
    may_sleep("taskqueue_drain_all");
    QUEUE.drain();
}

pub(crate) unsafe extern "C" fn taskqueue_enqueue(
    _queue: *mut c_void,
    task: *mut sys::task,
) -> c_int {
    {
        let _running = RUNNING.lock().unwrap();
        // SAFETY: the module's task, valid until it has run.
        unsafe {
            (*task).ta_pending += 1;
            if (*task).ta_pending > 1 {
                return 0;
            }
        }
    }
    QUEUE.put(Job::Task(task as usize));
    0
}

/// taskqueue_drain(9): waits until the task is neither queued nor running.
pub(crate) unsafe extern "C" fn taskqueue_drain(_queue: *mut c_void, task: *mut sys::task) {
    may_sleep("taskqueue_drain");
    crate::devfs::wait_until("a task has run", || {
        let running = RUNNING.lock().unwrap();
        // SAFETY: the module's task, valid until it has run.
        let pending = unsafe { (*task).ta_pending };
        pending == 0 && *running != task as usize
    });
}

pub(crate) unsafe extern "C" fn taskqueue_drain_all(_queue: *mut c_void) {
    drain();
}
