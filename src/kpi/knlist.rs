//! knlist(9): kevent(2) filters on an object that a mutex guards.

use super::{
    alloc::KBox,
    mutex::{Guard, Mutex},
    shared::Shared,
};
use core::{
    cell::UnsafeCell,
    ffi::{c_int, c_long, c_void},
};
use sys_bindings as sys;

/// What a filter reports.
pub struct Readiness {
    /// The event's `data`; the event is active when it is not zero.
    pub data: i64,
    /// `EV_EOF`: nothing will come any more; the event is active.
    pub eof: bool,
}

/// A filter on an object that knotes can be attached to.
pub trait Filter: 'static {
    /// The object.
    type Object: Send + Sync + 'static;
    /// What the lock of the filter's list guards.
    type State: Send;
    /// The list of the filter's knotes, and the mutex that it was made with.
    fn knotes(object: &Self::Object) -> (&KnList, &Mutex<Self::State>);
    /// What it reports, with that lock held.
    fn ready(object: &Self::Object, state: &Self::State) -> Readiness;
}

/// A `struct knlist` that uses its object's mutex.
pub struct KnList(KBox<UnsafeCell<sys::knlist>>);

// SAFETY: guarded by the mutex that it was made with.
unsafe impl Sync for KnList {}
// SAFETY: the memory does not move.
unsafe impl Send for KnList {}

impl KnList {
    /// An empty list, locked by `mutex`, which must outlive it. May sleep.
    pub fn new<T>(mutex: &Mutex<T>) -> Self {
        // SAFETY: knlist_init_mtx(9) fills it in.
        let list = KBox::new(UnsafeCell::new(unsafe {
            core::mem::zeroed::<sys::knlist>()
        }));
        // SAFETY: the mutex has stable memory of its own.
        unsafe { sys::knlist_init_mtx(list.get(), mutex.as_mtx()) };
        KnList(list)
    }

    fn assert_locked<T>(&self, guard: &Guard<'_, T>) {
        // SAFETY: the list is initialised.
        let lock = unsafe { (*self.0.get()).kl_lockarg };
        assert!(
            core::ptr::eq(lock, guard.as_mtx().cast()),
            "lock of another list"
        );
    }

    /// KNLIST_EMPTY(9): whether no knote is attached.
    pub fn is_empty<T>(&self, guard: &Guard<'_, T>) -> bool {
        self.assert_locked(guard);
        // SAFETY: the list's lock is held.
        unsafe { (*self.0.get()).kl_list.slh_first.is_null() }
    }

    /// KNOTE_LOCKED(9): asks every filter again.
    pub fn notify<T>(&self, guard: &Guard<'_, T>) {
        self.assert_locked(guard);
        // SAFETY: the list's lock is held, as KNF_LISTLOCKED says.
        unsafe { sys::knote(self.0.get(), 0, sys::KNF_LISTLOCKED as c_int) };
    }
}

impl Drop for KnList {
    fn drop(&mut self) {
        // SAFETY: every knote holds a reference to the object, so none is left.
        unsafe { sys::knlist_destroy(self.0.get()) };
    }
}

/// A knote that a process asks a device to take.
pub struct Knote<'a>(&'a mut sys::knote);

impl Knote<'_> {
    /// The knote of a d_kqfilter call.
    ///
    /// # Safety
    /// `kn` is that call's argument.
    pub(super) unsafe fn from_raw<'a>(kn: *mut sys::knote) -> Knote<'a> {
        // SAFETY: the kernel's own, for the length of the call.
        Knote(unsafe { &mut *kn })
    }

    /// Which EVFILT_ is asked for.
    pub fn filter(&self) -> i32 {
        i32::from(self.0.kn_kevent.filter)
    }

    /// `EV_CLEAR`: an event is reported once, until it comes anew.
    pub fn is_cleared(&self) -> bool {
        u32::from(self.0.kn_kevent.flags) & sys::EV_CLEAR != 0
    }

    /// Attaches to `object`; the knote holds the reference until it is dropped
    /// by close(2), EV_DELETE or EV_ONESHOT, even when the device is long gone.
    pub fn attach<F: Filter>(self, object: Shared<F::Object>) {
        let list = F::knotes(&object).0.0.get();
        self.0.kn_fop = const { &filterops::<F>() };
        self.0.kn_hook = object.into_raw();
        // SAFETY: the list lives as long as the object; its lock is not held.
        unsafe { sys::knlist_add(list, self.0, 0) };
    }
}

const fn filterops<F: Filter>() -> sys::filterops {
    // SAFETY: plain data; what is left out is zero in C as well.
    let mut ops: sys::filterops = unsafe { core::mem::zeroed() };
    ops.f_isfd = 1;
    ops.f_detach = Some(detach::<F>);
    ops.f_event = Some(event::<F>);
    ops
}

unsafe extern "C" fn detach<F: Filter>(kn: *mut sys::knote) {
    // SAFETY: called once for a knote that attach() took, without the
    // list's lock; the hook is the reference it put there.
    unsafe {
        let object = Shared::<F::Object>::from_raw((*kn).kn_hook);
        sys::knlist_remove(F::knotes(&object).0.0.get(), kn, 0);
        (*kn).kn_hook = core::ptr::null_mut::<c_void>();
    }
}

unsafe extern "C" fn event<F: Filter>(kn: *mut sys::knote, _hint: c_long) -> c_int {
    // SAFETY: kqueue(9) calls with the list's lock held and the knote attached.
    let readiness = unsafe {
        let object = Shared::<F::Object>::peek((*kn).kn_hook);
        F::ready(object, F::knotes(object).1.data_locked())
    };
    // SAFETY: kn_data and kn_flags are the filter's to write here.
    unsafe {
        (*kn).kn_kevent.data = readiness.data;
        if readiness.eof {
            (*kn).kn_kevent.flags |= sys::EV_EOF as u16;
        }
    }
    c_int::from(readiness.eof || readiness.data != 0)
}
