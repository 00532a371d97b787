//! taskqueue(9): `taskqueue_thread`, one thread that may sleep.

use crate::{lock::may_sleep, sys};
use std::{
    collections::VecDeque,
    ffi::{c_int, c_void},
    sync::{Condvar, LazyLock, Mutex},
};

enum Job {
    /// A `struct task` of the module's.
    Task(usize),
    /// Work of the kernel's own.
    Work(Box<dyn FnOnce() + Send>),
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    started: bool,
    queued: u64,
    finished: u64,
}

static QUEUE: LazyLock<(Mutex<Queue>, Condvar)> = LazyLock::new(Default::default);

fn put(job: Job) {
    let (lock, changed) = &*QUEUE;
    let mut queue = lock.lock().unwrap();
    if !queue.started {
        queue.started = true;
        std::thread::Builder::new()
            .name("taskqueue_thread".into())
            .spawn(run)
            .expect("a thread");
    }
    queue.jobs.push_back(job);
    queue.queued += 1;
    changed.notify_all();
}

/// Runs `work` on `taskqueue_thread`.
pub fn enqueue(work: impl FnOnce() + Send + 'static) {
    put(Job::Work(Box::new(work)));
}

fn run() {
    let (lock, changed) = &*QUEUE;
    let mut queue = lock.lock().unwrap();
    loop {
        let Some(job) = queue.jobs.pop_front() else {
            queue = changed.wait(queue).unwrap();
            continue;
        };
        let call = match &job {
            Job::Task(task) => {
                let task = *task as *mut sys::task;
                // SAFETY: queued tasks stay valid until they run; pending is
                // guarded by the queue's lock.
                unsafe {
                    let pending = (*task).ta_pending;
                    (*task).ta_pending = 0;
                    Some(((*task).ta_func, (*task).ta_context, pending))
                }
            }
            Job::Work(_) => None,
        };
        drop(queue);
        match (job, call) {
            (Job::Work(work), _) => work(),
            (_, Some((Some(func), context, pending))) => {
                // SAFETY: the task's own function and context; the task is not
                // touched again, it may free itself.
                unsafe { func(context, c_int::from(pending)) };
            }
            _ => crate::thread::broken("a task without a function"),
        }
        may_sleep("end of a task");
        queue = lock.lock().unwrap();
        queue.finished += 1;
        changed.notify_all();
    }
}

/// Waits until what is queued now has run.
pub fn drain() {
    may_sleep("taskqueue_drain_all");
    let (lock, changed) = &*QUEUE;
    let mut queue = lock.lock().unwrap();
    let until = queue.queued;
    while queue.finished < until {
        queue = changed.wait(queue).unwrap();
    }
}

pub(crate) unsafe extern "C" fn taskqueue_enqueue(
    _queue: *mut c_void,
    task: *mut sys::task,
) -> c_int {
    {
        let _queue = QUEUE.0.lock().unwrap();
        // SAFETY: the module's task, valid until it has run.
        unsafe {
            (*task).ta_pending += 1;
            if (*task).ta_pending > 1 {
                return 0;
            }
        }
    }
    put(Job::Task(task as usize));
    0
}

pub(crate) unsafe extern "C" fn taskqueue_drain_all(_queue: *mut c_void) {
    drain();
}
