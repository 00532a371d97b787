//! kqueue(2) and knlist(9); selrecord(9) and what poll(2) does with it.

use crate::{
    devfs::File,
    lock::{self, may_sleep, mtx_assert_owned, mtx_lock, mtx_unlock},
    sys,
    thread::{broken, current},
};
use std::{
    collections::HashMap,
    ffi::{c_int, c_long},
    sync::{
        Arc, Condvar, LazyLock, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A kqueue.
pub struct Kqueue {
    /// Held over a whole change or scan, never while a thread waits.
    turn: Mutex<()>,
    notes: Mutex<Vec<NotePtr>>,
    changed: Condvar,
}

/// A registered event: the `struct knote` that the module sees comes first.
#[repr(C)]
struct Note {
    kn: sys::knote,
    kq: *const Kqueue,
    fd: i32,
    file: Arc<File>,
    active: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct NotePtr(*mut Note);
// SAFETY: notes are freed under the kqueue's `turn` only.
unsafe impl Send for NotePtr {}

/// Wake-ups by knote(9) and selwakeup(9), and those with somebody waiting.
pub static WAKEUPS: AtomicU64 = AtomicU64::new(0);

impl Default for Kqueue {
    fn default() -> Self {
        Self::new()
    }
}

impl Kqueue {
    /// kqueue(2).
    pub fn new() -> Self {
        Kqueue {
            turn: Mutex::new(()),
            notes: Mutex::new(Vec::new()),
            changed: Condvar::new(),
        }
    }

    /// One change of kevent(2), on a descriptor that is `file`.
    ///
    /// # Errors
    /// The errno.
    pub fn change(self: &Arc<Self>, event: &sys::kevent, file: &Arc<File>) -> Result<(), i32> {
        let _turn = self.turn.lock().unwrap();
        let flags = u32::from(event.flags);
        let found = self.find(event.ident as i32, event.filter);
        if flags & sys::EV_DELETE != 0 {
            self.remove(found.ok_or(sys::ENOENT as i32)?);
            return Ok(());
        }
        let note = match found {
            Some(note) => note,
            None if flags & sys::EV_ADD == 0 => return Err(sys::ENOENT as i32),
            None => self.add(event, file)?,
        };
        // SAFETY: notes are freed under `turn` only.
        unsafe {
            let kept = flags & (sys::EV_CLEAR | sys::EV_ONESHOT);
            (*note.0).kn.kn_kevent.flags |= kept as u16;
            (*note.0).kn.kn_kevent.udata = event.udata;
        }
        self.ask(note);
        Ok(())
    }

    fn find(&self, fd: i32, filter: i16) -> Option<NotePtr> {
        let notes = self.notes.lock().unwrap();
        notes
            .iter()
            // SAFETY: notes are freed under `turn` only.
            .find(|n| unsafe { (*n.0).fd == fd && (*n.0).kn.kn_kevent.filter == filter })
            .copied()
    }

    fn add(self: &Arc<Self>, event: &sys::kevent, file: &Arc<File>) -> Result<NotePtr, i32> {
        // SAFETY: plain data.
        let mut kn: sys::knote = unsafe { core::mem::zeroed() };
        kn.kn_kevent = *event;
        let note = NotePtr(Box::into_raw(Box::new(Note {
            kn,
            kq: Arc::as_ptr(self),
            fd: event.ident as i32,
            file: file.clone(),
            active: false,
        })));
        let error = file.kqfilter(note.0.cast());
        if error != 0 {
            // SAFETY: the device did not take it.
            drop(unsafe { Box::from_raw(note.0) });
            return Err(error);
        }
        self.notes.lock().unwrap().push(note);
        Ok(note)
    }

    /// Asks the filter again, as kqueue does after a change and in a scan.
    fn ask(&self, note: NotePtr) -> bool {
        // SAFETY: an attached note; the list's lock is taken as kqueue does.
        unsafe {
            let list = (*note.0).kn.kn_knlist;
            if !list.is_null() {
                lock_of(list, true);
            }
            let event = (*(*note.0).kn.kn_fop).f_event.expect("f_event");
            let active = event(note.0.cast(), 0) != 0;
            {
                let _notes = self.notes.lock().unwrap();
                (*note.0).active = active;
            }
            if !list.is_null() {
                lock_of(list, false);
            }
            active
        }
    }

    fn remove(&self, note: NotePtr) {
        // SAFETY: attached, freed here once, under `turn`.
        unsafe {
            let detach = (*(*note.0).kn.kn_fop).f_detach.expect("f_detach");
            detach(note.0.cast());
            if !(*note.0).kn.kn_knlist.is_null() {
                broken("f_detach left the knote on its list");
            }
            self.notes.lock().unwrap().retain(|n| *n != note);
            drop(Box::from_raw(note.0));
        }
    }

    /// A descriptor is closed: its events go.
    pub fn fd_closed(&self, fd: i32) {
        let _turn = self.turn.lock().unwrap();
        let mine: Vec<_> = {
            let notes = self.notes.lock().unwrap();
            // SAFETY: notes are freed under `turn` only.
            notes
                .iter()
                .filter(|n| unsafe { (*n.0).fd == fd })
                .copied()
                .collect()
        };
        for note in mine {
            self.remove(note);
        }
    }

    /// Collects events without waiting.
    fn scan(&self, out: &mut [sys::kevent]) -> usize {
        let _turn = self.turn.lock().unwrap();
        let active: Vec<_> = {
            let notes = self.notes.lock().unwrap();
            // SAFETY: notes are freed under `turn` only.
            notes
                .iter()
                .filter(|n| unsafe { (*n.0).active })
                .copied()
                .collect()
        };
        let mut count = 0;
        for note in active {
            if count == out.len() {
                break;
            }
            if !self.ask(note) {
                continue;
            }
            // SAFETY: as above.
            unsafe {
                out[count] = (*note.0).kn.kn_kevent;
                count += 1;
                let flags = u32::from((*note.0).kn.kn_kevent.flags);
                if flags & sys::EV_ONESHOT != 0 {
                    self.remove(note);
                } else if flags & sys::EV_CLEAR != 0 {
                    let _notes = self.notes.lock().unwrap();
                    (*note.0).active = false;
                }
            }
        }
        count
    }

    /// Waits for events.
    pub fn wait(&self, out: &mut [sys::kevent], timeout: Option<Duration>) -> usize {
        may_sleep("kevent");
        let deadline = timeout.map(|t| Instant::now() + t);
        if out.is_empty() {
            return 0;
        }
        loop {
            let count = self.scan(out);
            if count != 0 {
                return count;
            }
            let notes = self.notes.lock().unwrap();
            // SAFETY: looked at under the lock that activates them.
            if notes.iter().any(|n| unsafe { (*n.0).active }) {
                continue;
            }
            match deadline {
                None => drop(self.changed.wait(notes).unwrap()),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return 0;
                    }
                    drop(self.changed.wait_timeout(notes, left).unwrap());
                }
            }
        }
    }
}

impl Drop for Kqueue {
    fn drop(&mut self) {
        let notes = self.notes.lock().unwrap().clone();
        for note in notes {
            self.remove(note);
        }
    }
}

/// Takes or lets go of a list's lock.
unsafe fn lock_of(list: *mut sys::knlist, take: bool) {
    // SAFETY: knlist_init_mtx() put the mutex there.
    let mtx = unsafe { (*list).kl_lockarg.cast::<sys::mtx>() };
    if take {
        mtx_lock(mtx, "kqueue");
    } else {
        mtx_unlock(mtx, "kqueue");
    }
}

pub(crate) unsafe extern "C" fn knlist_init_mtx(list: *mut sys::knlist, mtx: *mut sys::mtx) {
    // SAFETY: the module's list.
    unsafe {
        *list = core::mem::zeroed();
        (*list).kl_lockarg = mtx.cast();
    }
}

pub(crate) unsafe extern "C" fn knlist_destroy(list: *mut sys::knlist) {
    // SAFETY: the module's list.
    unsafe {
        if !(*list).kl_list.slh_first.is_null() {
            broken("knlist_destroy of a list with knotes on it");
        }
        if (*list).kl_lockarg.is_null() {
            broken("knlist_destroy of a list that is not initialised");
        }
        (*list).kl_lockarg = core::ptr::null_mut();
    }
}

pub(crate) unsafe extern "C" fn knlist_add(
    list: *mut sys::knlist,
    kn: *mut sys::knote,
    locked: c_int,
) {
    // SAFETY: the module's list, and the note that it was given.
    unsafe {
        if locked == 0 {
            lock_of(list, true);
        }
        if !(*kn).kn_knlist.is_null() {
            broken("knlist_add of a knote that is on a list");
        }
        (*kn).kn_selnext.sle_next = (*list).kl_list.slh_first;
        (*list).kl_list.slh_first = kn;
        (*kn).kn_knlist = list;
        if locked == 0 {
            lock_of(list, false);
        }
    }
}

pub(crate) unsafe extern "C" fn knlist_remove(
    list: *mut sys::knlist,
    kn: *mut sys::knote,
    locked: c_int,
) {
    // SAFETY: the module's list, and a note that is on it.
    unsafe {
        if locked == 0 {
            lock_of(list, true);
        }
        if (*kn).kn_knlist != list {
            broken("knlist_remove of a knote that is not on the list");
        }
        let mut at = &raw mut (*list).kl_list.slh_first;
        while *at != kn {
            if (*at).is_null() {
                broken("knlist_remove: the list does not have the knote");
            }
            at = &raw mut (**at).kn_selnext.sle_next;
        }
        *at = (*kn).kn_selnext.sle_next;
        (*kn).kn_knlist = core::ptr::null_mut();
        if locked == 0 {
            lock_of(list, false);
        }
    }
}

pub(crate) unsafe extern "C" fn knote(list: *mut sys::knlist, hint: c_long, flags: c_int) {
    // SAFETY: the module's list; notes on it live while its lock is held.
    unsafe {
        let mtx = (*list).kl_lockarg.cast::<sys::mtx>();
        let locked = flags & sys::KNF_LISTLOCKED as c_int != 0;
        if locked {
            mtx_assert_owned(mtx, "knote");
        } else {
            mtx_lock(mtx, "knote");
        }
        lock::holds_none_but(mtx, "knote");
        let mut kn = (*list).kl_list.slh_first;
        while !kn.is_null() {
            let note = kn.cast::<Note>();
            let kq = &*(*note).kq;
            let notes = kq.notes.lock().unwrap();
            let event = (*(*kn).kn_fop).f_event.expect("f_event");
            if event(kn, hint) != 0 {
                (*note).active = true;
                WAKEUPS.fetch_add(1, Ordering::Relaxed);
                kq.changed.notify_all();
            }
            drop(notes);
            kn = (*kn).kn_selnext.sle_next;
        }
        if !locked {
            mtx_unlock(mtx, "knote");
        }
    }
}

/// A thread in poll(2).
#[derive(Default)]
pub struct PollWaiter {
    woken: Mutex<bool>,
    changed: Condvar,
}

/// Who recorded, by the selinfo's address.
static SELECTORS: LazyLock<Mutex<HashMap<usize, Vec<Arc<PollWaiter>>>>> =
    LazyLock::new(Default::default);

/// Threads recorded anywhere.
pub fn selectors() -> usize {
    SELECTORS.lock().unwrap().values().map(Vec::len).sum()
}

/// poll(2) on one object, whose readiness `once` tells.
pub fn poll(once: impl Fn() -> i16, timeout: Option<Duration>) -> i16 {
    may_sleep("poll");
    let waiter = Arc::new(PollWaiter::default());
    let deadline = timeout.map(|t| Instant::now() + t);
    let revents = loop {
        *waiter.woken.lock().unwrap() = false;
        current().poll.replace(Some(waiter.clone()));
        let revents = once();
        current().poll.replace(None);
        if revents != 0 {
            break revents;
        }
        let mut woken = waiter.woken.lock().unwrap();
        while !*woken {
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            if left.is_some_and(|l| l.is_zero()) {
                break;
            }
            woken = match left {
                None => waiter.changed.wait(woken).unwrap(),
                Some(left) => waiter.changed.wait_timeout(woken, left).unwrap().0,
            };
        }
        if !*woken {
            break 0;
        }
    };
    // seltdclear(): the thread waits nowhere any more.
    SELECTORS.lock().unwrap().retain(|_, waiters| {
        waiters.retain(|w| !Arc::ptr_eq(w, &waiter));
        !waiters.is_empty()
    });
    revents
}

pub(crate) unsafe extern "C" fn selrecord(td: *mut sys::thread, sip: *mut sys::selinfo) {
    if td != current().as_ptr() {
        broken("selrecord of another thread");
    }
    if let Some(waiter) = &*current().poll.borrow() {
        let mut selectors = SELECTORS.lock().unwrap();
        let waiters = selectors.entry(sip as usize).or_default();
        if !waiters.iter().any(|w| Arc::ptr_eq(w, waiter)) {
            waiters.push(waiter.clone());
        }
    }
}

fn wake(sip: *mut sys::selinfo) {
    let waiters = SELECTORS.lock().unwrap().remove(&(sip as usize));
    for waiter in waiters.into_iter().flatten() {
        WAKEUPS.fetch_add(1, Ordering::Relaxed);
        *waiter.woken.lock().unwrap() = true;
        waiter.changed.notify_all();
    }
}

pub(crate) unsafe extern "C" fn selwakeuppri(sip: *mut sys::selinfo, _pri: c_int) {
    lock::holds_none_but(core::ptr::null_mut(), "selwakeup");
    wake(sip);
}

pub(crate) unsafe extern "C" fn seldrain(sip: *mut sys::selinfo) {
    wake(sip);
}
