//! mutex(9), `MTX_DEF`: data that only the holder of its lock can reach.

use super::{
    alloc::KBox,
    errno::{EINTR, ERESTART, ETIMEDOUT, Result, check},
    time::Deadline,
};
use core::{
    cell::UnsafeCell,
    ffi::{CStr, c_int},
    marker::PhantomData,
    ops::{Deref, DerefMut},
    panic::Location,
};
use sys_bindings as sys;

/// What _sleep(9) says when the time is over.
const EWOULDBLOCK: c_int = sys::EWOULDBLOCK as c_int;

/// A `struct mtx` and the data that it guards.
///
/// The `struct mtx` has memory of its own, because the kernel keeps its
/// address (knlist(9), WITNESS) and a Rust value moves.
pub struct Mutex<T> {
    raw: KBox<UnsafeCell<sys::mtx>>,
    data: UnsafeCell<T>,
}

// SAFETY: the mtx hands the data to one thread at a time.
unsafe impl<T: Send> Sync for Mutex<T> {}
// SAFETY: a mutex that nobody holds can move between threads.
unsafe impl<T: Send> Send for Mutex<T> {}

impl<T> Mutex<T> {
    /// Makes a mutex; `name` is what witness(4) calls it. May sleep.
    pub fn new(name: &'static CStr, data: T) -> Self {
        // SAFETY: all zero is what mtx_init(9) expects to find.
        let raw = KBox::new(UnsafeCell::new(unsafe { core::mem::zeroed::<sys::mtx>() }));
        // SAFETY: the memory is ours, at its final address; the name is static.
        unsafe {
            sys::_mtx_init(
                (&raw mut (*raw.get()).mtx_lock).cast(),
                name.as_ptr(),
                core::ptr::null(),
                sys::MTX_DEF as i32,
            );
        }
        Mutex {
            raw,
            data: UnsafeCell::new(data),
        }
    }

    /// Waits for the lock. Sleeping is not allowed until the guard is gone.
    #[track_caller]
    pub fn lock(&self) -> Guard<'_, T> {
        // SAFETY: initialised in new(); the kernel panics on recursion.
        unsafe { mtx_lock(self.raw.get()) };
        Guard {
            mutex: self,
            not_send: PhantomData,
        }
    }

    /// wakeup(9): everybody who sleeps in [`Guard::wait`].
    pub fn wakeup(&self) {
        // SAFETY: the address is a name only.
        unsafe { sys::wakeup(self.raw.get().cast()) };
    }

    /// The `struct mtx`, for a kernel function that locks it itself.
    pub(super) fn as_mtx(&self) -> *mut sys::mtx {
        self.raw.get()
    }

    /// The data, in a callback that the kernel makes with the lock held.
    ///
    /// # Safety
    /// The calling thread holds this mutex and no guard's reference is live.
    pub(super) unsafe fn data_locked(&self) -> &T {
        // SAFETY: the lock is held, so nobody writes.
        unsafe { &*self.data.get() }
    }
}

impl<T> Drop for Mutex<T> {
    fn drop(&mut self) {
        // SAFETY: nobody else can reach the mutex, so nobody holds it.
        unsafe { sys::_mtx_destroy((&raw mut (*self.raw.get()).mtx_lock).cast()) };
    }
}

/// sig_intr(9): whether a signal waits to be handled that would end a sleep; for
/// a loop whose turns do not all sleep.
///
/// # Errors
/// `EINTR`: one does.
pub fn check_signals() -> Result {
    // SAFETY: looks at the calling thread; it takes the process's own locks.
    match unsafe { sys::sig_intr() } {
        ERESTART => Err(EINTR),
        error => check(error),
    }
}

/// Holds the lock.
pub struct Guard<'a, T> {
    mutex: &'a Mutex<T>,
    // A mutex is owned by a thread; its guard stays there.
    not_send: PhantomData<*mut ()>,
}

impl<T> Guard<'_, T> {
    /// Sleeps until `look` has an answer: the one way in which a thread waits
    /// for a condition. `look` is asked with the lock held, before the first
    /// sleep and after each, however that ended; every turn without an answer
    /// sleeps, so there is no busy loop. What `look` looks at changes with the
    /// lock held, and then comes a [`Mutex::wakeup`], so no change is missed.
    ///
    /// # Errors
    /// That of the answer; else, where `look` has none: `ETIMEDOUT`: the
    /// deadline has passed; `EINTR`: a signal is pending, also one that came
    /// before the call.
    pub fn wait<R>(
        &mut self,
        deadline: Deadline,
        mut look: impl FnMut(&mut T) -> Option<Result<R>>,
    ) -> Result<R> {
        let mut slept = Ok(());
        loop {
            if let Some(answer) = look(self) {
                return answer;
            }
            slept?;
            slept = self.sleep(deadline);
        }
    }

    /// msleep_sbt(9): lets the lock go, sleeps until [`Mutex::wakeup`], and
    /// takes it again. What it guards may have changed, and may be as it was.
    /// No other lock may be held.
    ///
    /// # Errors
    /// `ETIMEDOUT`: the deadline has passed; `EINTR`: a signal came, or had
    /// come (sleepqueue(9) looks before it sleeps).
    fn sleep(&mut self, deadline: Deadline) -> Result {
        let mtx = self.as_mtx();
        // SAFETY: the lock is held; nobody can use this guard meanwhile.
        let error = unsafe {
            sys::_sleep(
                mtx.cast(),
                &raw mut (*mtx).lock_object,
                (sys::PRIBIO | sys::PCATCH) as c_int,
                crate::name(),
                deadline.sbintime(),
                0,
                sys::C_ABSOLUTE as c_int,
            )
        };
        match error {
            EWOULDBLOCK => Err(ETIMEDOUT),
            ERESTART => Err(EINTR),
            error => check(error),
        }
    }

    pub(super) fn as_mtx(&self) -> *mut sys::mtx {
        self.mutex.raw.get()
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the lock is held.
        unsafe { &*self.mutex.data.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held, and the guard is borrowed exclusively.
        unsafe { &mut *self.mutex.data.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[track_caller]
    fn drop(&mut self) {
        // SAFETY: the guard's existence says that this thread holds the lock.
        unsafe { mtx_unlock(self.mutex.raw.get()) };
    }
}

/// mtx_lock(9), with the Rust caller's file and line for WITNESS.
///
/// # Safety
/// `mtx` is initialised and stays so until it is unlocked.
#[track_caller]
pub(super) unsafe fn mtx_lock(mtx: *mut sys::mtx) {
    let at = Location::caller();
    // SAFETY: the caller's promise; the file name is static and NUL-ended.
    unsafe {
        sys::__mtx_lock_flags(
            (&raw mut (*mtx).mtx_lock).cast(),
            0,
            at.file_as_c_str().as_ptr(),
            at.line() as i32,
        );
    }
}

/// mtx_unlock(9), with the Rust caller's file and line for WITNESS.
///
/// # Safety
/// The calling thread holds `mtx`.
#[track_caller]
pub(super) unsafe fn mtx_unlock(mtx: *mut sys::mtx) {
    let at = Location::caller();
    // SAFETY: the caller's promise; the file name is static and NUL-ended.
    unsafe {
        sys::__mtx_unlock_flags(
            (&raw mut (*mtx).mtx_lock).cast(),
            0,
            at.file_as_c_str().as_ptr(),
            at.line() as i32,
        );
    }
}
