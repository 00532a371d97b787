//! A counted reference whose value is destroyed on `taskqueue_thread`.
//!
//! The last reference may go where sleeping is not allowed (a completion, with
//! the CAM device lock held); what it stands for needs to sleep to be torn
//! down. So the last one out only queues a task(9), and that does the rest.

use super::{
    alloc::KBox,
    list::{Node, Owner},
};
use core::{
    cell::UnsafeCell,
    ffi::{c_int, c_void},
    ops::Deref,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence},
};
use sys_bindings as sys;

/// Values that are not destroyed yet, over all types: unload waits for zero.
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// How many values are alive.
pub fn live() -> usize {
    LIVE.load(Ordering::SeqCst)
}

struct Inner<T> {
    refs: AtomicU32,
    task: UnsafeCell<sys::task>,
    value: T,
}

/// A counted reference to a `T`.
pub struct Shared<T: Send + Sync + 'static>(NonNull<Inner<T>>);

// SAFETY: the count is atomic and T may be used from any thread.
unsafe impl<T: Send + Sync> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}

impl<T: Send + Sync> Shared<T> {
    /// Allocates; may sleep.
    pub fn new(value: T) -> Self {
        let inner = KBox::new(Inner {
            refs: AtomicU32::new(1),
            // SAFETY: a task is plain data; the rest is filled in just below.
            task: UnsafeCell::new(unsafe { core::mem::zeroed() }),
            value,
        });
        // SAFETY: nobody else has the task yet; this is TASK_INIT(9).
        unsafe {
            let task = inner.task.get();
            (*task).ta_func = Some(destroy::<T>);
            (*task).ta_context = inner.as_ptr().cast();
        }
        LIVE.fetch_add(1, Ordering::SeqCst);
        // SAFETY: a KBox is not null.
        Shared(unsafe { NonNull::new_unchecked(inner.into_raw().cast()) })
    }

    /// Gives the reference away as a pointer, for the kernel to keep.
    pub fn into_raw(self) -> *mut c_void {
        let raw = self.0.as_ptr().cast();
        core::mem::forget(self);
        raw
    }

    /// Takes the reference back.
    ///
    /// # Safety
    /// `raw` came from [`into_raw`](Self::into_raw) of this type and was not
    /// taken back since.
    pub unsafe fn from_raw(raw: *mut c_void) -> Self {
        // SAFETY: into_raw gave a non-null pointer.
        Shared(unsafe { NonNull::new_unchecked(raw.cast()) })
    }

    /// The value behind a reference that the kernel keeps.
    ///
    /// # Safety
    /// `raw` came from [`into_raw`](Self::into_raw) of this type and is not
    /// taken back while `'a` lasts.
    pub unsafe fn peek<'a>(raw: *mut c_void) -> &'a T {
        // SAFETY: the kernel's reference keeps the value alive.
        unsafe { &(*raw.cast::<Inner<T>>()).value }
    }

    /// Whether both refer to the same value.
    pub fn ptr_eq(a: &Self, b: &Self) -> bool {
        a.0 == b.0
    }
}

impl<T: Send + Sync> Clone for Shared<T> {
    fn clone(&self) -> Self {
        // SAFETY: alive, because self is.
        let before = unsafe { self.0.as_ref() }
            .refs
            .fetch_add(1, Ordering::Relaxed);
        assert!(before < u32::MAX / 2, "reference count runs away");
        Shared(self.0)
    }
}

impl<T: Send + Sync> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: alive, because self is.
        unsafe { &self.0.as_ref().value }
    }
}

impl<T: Send + Sync> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: alive until the task below has run.
        let inner = unsafe { self.0.as_ref() };
        if inner.refs.fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::Acquire);
            // SAFETY: the task is initialised and queued once, by the one who
            // brought the count to zero.
            unsafe { sys::taskqueue_enqueue(sys::taskqueue_thread, inner.task.get()) };
        }
    }
}

// SAFETY: the value does not move, and is only ever shared.
unsafe impl<T: Node + Send + Sync> Owner for Shared<T> {
    type Node = T;
    fn node(&self) -> NonNull<T> {
        // SAFETY: alive, because self is.
        NonNull::from(unsafe { &self.0.as_ref().value })
    }
}

/// The task: the value is nobody's any more.
unsafe extern "C" fn destroy<T>(context: *mut c_void, _pending: c_int) {
    // SAFETY: the context is the Inner<T> that new() made, with no reference
    // left; taskqueue(9) does not touch a task again once it runs it.
    drop(unsafe { KBox::<Inner<T>>::from_raw(context) });
    LIVE.fetch_sub(1, Ordering::SeqCst);
}
