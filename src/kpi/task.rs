//! taskqueue(9): work for `taskqueue_thread`, where sleeping is allowed.

use super::{
    alloc::KBox,
    errno::{self, Errno},
    patience::Patience,
};
use core::{
    cell::UnsafeCell,
    ffi::{c_int, c_void},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
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

/// The task by which [`pass`] learns that its turn has come.
struct Passage {
    task: UnsafeCell<sys::task>,
    /// How often it was queued, and how often it has run.
    queued: AtomicU64,
    passed: AtomicU64,
}

// SAFETY: taskqueue(9) guards a queued task with its own lock; the counts are
// atomic.
unsafe impl Sync for Passage {}

static PASSAGE: Passage = Passage {
    // SAFETY: a task is plain data; pass() fills in the rest.
    task: UnsafeCell::new(unsafe { core::mem::zeroed() }),
    queued: AtomicU64::new(0),
    passed: AtomicU64::new(0),
};

/// Waits until every task that is queued now has run, the last instruction of
/// it included. For one thread at a time: the module's load and unload. Sleeps.
///
/// taskqueue_drain_all(9) does as much, and never returns when some other
/// driver's task is stuck.
///
/// # Errors
/// `EBUSY`: they have not run in time. The task of this call is still queued:
/// the module must stay until a later call has succeeded.
pub fn pass(patience: &Patience) -> errno::Result {
    let has_passed =
        || PASSAGE.passed.load(Ordering::SeqCst) == PASSAGE.queued.load(Ordering::SeqCst);
    // One that an earlier call gave up is in the queue, before what was queued
    // since.
    patience.wait(has_passed)?;
    let task = PASSAGE.task.get();
    // SAFETY: it is not queued, so nobody looks at it; this is TASK_INIT(9)
    // with the lowest priority, so that it comes after all that are queued.
    unsafe {
        (*task).ta_func = Some(passed);
        PASSAGE.queued.fetch_add(1, Ordering::SeqCst);
        sys::taskqueue_enqueue(sys::taskqueue_thread, task);
    }
    patience.wait(has_passed)?;
    // SAFETY: the task has said all it had to: what is left of it is waited
    // for, a few instructions.
    unsafe { sys::taskqueue_drain(sys::taskqueue_thread, task) };
    Ok(())
}

unsafe extern "C" fn passed(_context: *mut c_void, _pending: c_int) {
    PASSAGE.passed.fetch_add(1, Ordering::SeqCst);
}

/// Work that `taskqueue_thread` does after a while, and again when it is asked.
/// Asked for more than once, it is done once.
pub struct Repeated {
    task: UnsafeCell<sys::timeout_task>,
    run: fn(),
    /// It was asked for, and is not being done yet.
    is_asked: AtomicBool,
    /// It was ever asked for.
    is_set_up: AtomicBool,
}

// SAFETY: taskqueue(9) guards a queued task with its own lock; is_asked is set by
// one thread at a time, which alone writes the task.
unsafe impl Sync for Repeated {}

impl Repeated {
    /// `run`, which may sleep.
    pub const fn new(run: fn()) -> Self {
        Repeated {
            // SAFETY: plain data; run_in_ms() fills it in.
            task: UnsafeCell::new(unsafe { core::mem::zeroed() }),
            run,
            is_asked: AtomicBool::new(false),
            is_set_up: AtomicBool::new(false),
        }
    }

    /// Has it done in so many milliseconds. Does not sleep.
    pub fn run_in_ms(&'static self, ms: u64) {
        if self.is_asked.swap(true, Ordering::SeqCst) {
            return;
        }
        let task = self.task.get();
        // SAFETY: static; it was not asked for, so neither queue nor timer has it,
        // or it is running, which is after taskqueue(9) has let it go.
        unsafe {
            if !self.is_set_up.swap(true, Ordering::SeqCst) {
                sys::_timeout_task_init(
                    sys::taskqueue_thread,
                    task,
                    0,
                    Some(run_repeated),
                    (&raw const *self).cast_mut().cast(),
                );
            }
            sys::taskqueue_enqueue_timeout_sbt(
                sys::taskqueue_thread,
                task,
                (ms * sys::QPC_SBT_1MS) as i64,
                0,
                0,
            );
        }
    }

    /// Waits until it is neither asked for nor being done; nobody asks any more.
    /// Sleeps.
    pub fn drain(&'static self) {
        if self.is_set_up.load(Ordering::SeqCst) {
            // SAFETY: static, and set up.
            unsafe { sys::taskqueue_drain_timeout(sys::taskqueue_thread, self.task.get()) };
            // A timer that was pending is gone with it.
            self.is_asked.store(false, Ordering::SeqCst);
        }
    }
}

unsafe extern "C" fn run_repeated(context: *mut c_void, _pending: c_int) {
    // SAFETY: the context is a static's, see run_in_ms().
    let this = unsafe { &*context.cast::<Repeated>() };
    this.is_asked.store(false, Ordering::SeqCst);
    (this.run)();
}
