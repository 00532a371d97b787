//! taskqueue(9): work for `taskqueue_thread`, where sleeping is allowed.

use super::{alloc::KBox, errno::Errno};
use core::{
    cell::UnsafeCell,
    ffi::{c_int, c_void},
};
use sys_bindings as sys;

/// Says that this is `taskqueue_thread`, the only one of its queue: what else
/// it has to do waits meanwhile.
pub struct OnTaskqueueThread(());

struct Job<T> {
    task: UnsafeCell<sys::task>,
    run: fn(T, OnTaskqueueThread),
    value: T,
}

/// Has `run` called with `value` on `taskqueue_thread`. Does not sleep.
///
/// # Errors
/// `ENOMEM`: `run` is not called, and `value` comes back.
pub fn run_later<T: Send + 'static>(
    value: T,
    run: fn(T, OnTaskqueueThread),
) -> Result<(), (Errno, T)> {
    let job = KBox::try_new_or_back(Job {
        // SAFETY: a task is plain data; the rest is filled in just below.
        task: UnsafeCell::new(unsafe { core::mem::zeroed() }),
        run,
        value,
    })
    .map_err(|(errno, job)| (errno, job.value))?;
    let task = job.task.get();
    // SAFETY: this is TASK_INIT(9); the job is the task's from here on, and
    // taskqueue(9) does not touch a task again once it runs it.
    unsafe {
        (*task).ta_func = Some(run_job::<T>);
        (*task).ta_context = job.into_raw();
        sys::taskqueue_enqueue(sys::taskqueue_thread, task);
    }
    Ok(())
}

unsafe extern "C" fn run_job<T>(context: *mut c_void, _pending: c_int) {
    // SAFETY: the context is the job that run_later() gave away, once.
    let job = unsafe { KBox::<Job<T>>::from_raw(context) }.into_inner();
    (job.run)(job.value, OnTaskqueueThread(()));
}
