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

/// Timeout tasks whose time has not come.
static TIMERS: Mutex<Vec<usize>> = Mutex::new(Vec::new());

pub(crate) unsafe extern "C" fn _timeout_task_init(
    queue: *mut c_void,
    task: *mut sys::timeout_task,
    priority: c_int,
    func: sys::task_fn_t,
    context: *mut c_void,
) {
    // SAFETY: the module's, which nobody has yet.
    unsafe {
        (*task).q = queue.cast();
        (*task).t.ta_priority = priority as _;
        (*task).t.ta_func = func;
        (*task).t.ta_context = context;
    }
}

/// The time is real: some hundredths of it would do for a test, and it is short.
pub(crate) unsafe extern "C" fn taskqueue_enqueue_timeout_sbt(
    queue: *mut c_void,
    task: *mut sys::timeout_task,
    after: i64,
    _precision: i64,
    _flags: c_int,
) -> c_int {
    // SAFETY: the module's task, which was set up.
    if unsafe { (*task).t.ta_func.is_none() } {
        crate::thread::broken("a timeout task that was not set up");
    }
    let mut timers = TIMERS.lock().unwrap();
    if timers.contains(&(task as usize)) {
        return 0;
    }
    timers.push(task as usize);
    let (task, queue) = (task as usize, queue as usize);
    let ms = (after >> 22) as u64;
    std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(ms));
        let mut timers = TIMERS.lock().unwrap();
        // SAFETY: drained before the module goes.
        unsafe {
            let task = task as *mut sys::timeout_task;
            taskqueue_enqueue(queue as *mut c_void, &raw mut (*task).t);
        }
        timers.retain(|t| *t != task);
    });
    0
}

/// taskqueue_drain_timeout(9): it waits for the timer too.
pub(crate) unsafe extern "C" fn taskqueue_drain_timeout(
    queue: *mut c_void,
    task: *mut sys::timeout_task,
) {
    may_sleep("taskqueue_drain_timeout");
    crate::devfs::wait_until("a timeout task's time has come", || {
        !TIMERS.lock().unwrap().contains(&(task as usize))
    });
    // SAFETY: the module's.
    unsafe { taskqueue_drain(queue, &raw mut (*task).t) };
}
