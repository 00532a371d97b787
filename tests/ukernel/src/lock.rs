//! mutex(9) and sleep(9), with what witness(4) checks: a lock is taken by who
//! does not have it, let go by who has, in one order, and nobody sleeps with
//! one.

use crate::{
    count, sys,
    thread::{broken, current},
};
use std::{
    collections::{HashMap, HashSet},
    ffi::{CStr, c_char, c_int, c_void},
    sync::{
        Condvar, LazyLock, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

static BOOT: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Time since boot. Never zero: the kernel has been up for a second when
/// devices come.
pub fn uptime() -> Duration {
    BOOT.elapsed() + Duration::from_secs(1)
}

/// Where a thread waits for a mutex, by the mutex's address.
struct Lot {
    lock: Mutex<()>,
    free: Condvar,
}
static LOTS: LazyLock<Vec<Lot>> = LazyLock::new(|| {
    (0..64)
        .map(|_| Lot {
            lock: Mutex::new(()),
            free: Condvar::new(),
        })
        .collect()
});

fn lot(mtx: *mut sys::mtx) -> &'static Lot {
    &LOTS[(mtx as usize >> 5) % LOTS.len()]
}

/// Orders seen: "while holding the first, the second was taken".
static ORDER: LazyLock<Mutex<HashSet<(String, String)>>> = LazyLock::new(Default::default);

/// The lock orders seen so far, for the record.
pub fn orders() -> Vec<(String, String)> {
    let mut orders: Vec<_> = ORDER.lock().unwrap().iter().cloned().collect();
    orders.sort();
    orders
}

fn name(mtx: *mut sys::mtx) -> String {
    // SAFETY: an initialised mutex has a name that outlives it.
    unsafe {
        let name = (*mtx).lock_object.lo_name;
        if name.is_null() {
            "(not initialised)".into()
        } else {
            CStr::from_ptr(name).to_string_lossy().into_owned()
        }
    }
}

/// The names of the locks that this thread holds.
pub fn held_names() -> String {
    match current().held.try_borrow() {
        Ok(held) if held.is_empty() => "no lock".into(),
        Ok(held) => held
            .iter()
            .map(|m| name(*m as *mut sys::mtx))
            .collect::<Vec<_>>()
            .join(", "),
        Err(_) => "?".into(),
    }
}

fn word<'a>(mtx: *mut sys::mtx) -> &'a AtomicUsize {
    // SAFETY: the owner word of a live mutex, only touched in here.
    unsafe { AtomicUsize::from_ptr(&raw mut (*mtx).mtx_lock) }
}

fn me() -> usize {
    current().as_ptr() as usize
}

/// A new mutex for a kernel-internal lock.
pub fn new_mutex(name: &'static CStr) -> *mut sys::mtx {
    // SAFETY: plain data.
    let mtx = Box::into_raw(Box::new(unsafe { core::mem::zeroed::<sys::mtx>() }));
    init(mtx, name.as_ptr());
    mtx
}

pub(crate) fn init(mtx: *mut sys::mtx, name: *const c_char) {
    // SAFETY: memory of the caller's.
    unsafe {
        if !(*mtx).lock_object.lo_name.is_null() {
            broken("mtx_init of a mutex that is initialised");
        }
        (*mtx).lock_object.lo_name = name;
        (*mtx).mtx_lock = 0;
    }
}

fn witness(mtx: *mut sys::mtx, at: &str) {
    let held = current().held.borrow();
    if held.is_empty() {
        return;
    }
    let new = name(mtx);
    let mut order = ORDER.lock().unwrap();
    for other in held.iter() {
        let old = name(*other as *mut sys::mtx);
        if old == new {
            broken(&format!("{new} taken at {at} while another one is held"));
        }
        if order.contains(&(old.clone(), new.clone())) {
            continue;
        }
        if leads_to(&order, &new, &old) {
            drop(order);
            broken(&format!(
                "lock order reversal: {new} taken at {at} with {old} held; elsewhere {old} comes after {new}"
            ));
        }
        order.insert((old, new.clone()));
    }
}

fn leads_to(order: &HashSet<(String, String)>, from: &str, to: &str) -> bool {
    let mut seen = HashSet::new();
    let mut next = vec![from.to_string()];
    while let Some(here) = next.pop() {
        if here == to {
            return true;
        }
        if seen.insert(here.clone()) {
            next.extend(
                order
                    .iter()
                    .filter(|(a, _)| *a == here)
                    .map(|(_, b)| b.clone()),
            );
        }
    }
    false
}

/// mtx_lock(9).
pub fn mtx_lock(mtx: *mut sys::mtx, at: &str) {
    if name(mtx) == "(not initialised)" {
        broken(&format!(
            "mtx_lock of a mutex that is not initialised, at {at}"
        ));
    }
    if word(mtx).load(Ordering::Relaxed) == me() {
        broken(&format!("{} is locked twice, at {at}", name(mtx)));
    }
    witness(mtx, at);
    let take = || {
        word(mtx)
            .compare_exchange(0, me(), Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    };
    if !take() {
        let lot = lot(mtx);
        let mut guard = lot.lock.lock().unwrap();
        while !take() {
            guard = lot.free.wait(guard).unwrap();
        }
    }
    count::locked(|| name(mtx));
    current().held.borrow_mut().push(mtx as usize);
}

/// mtx_unlock(9).
pub fn mtx_unlock(mtx: *mut sys::mtx, at: &str) {
    mtx_assert_owned(mtx, at);
    current().held.borrow_mut().retain(|m| *m != mtx as usize);
    let lot = lot(mtx);
    let guard = lot.lock.lock().unwrap();
    word(mtx).store(0, Ordering::Release);
    drop(guard);
    lot.free.notify_all();
    if LETS_IN.load(Ordering::Relaxed) == mtx as usize {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A mutex after whose release the thread pauses, so that others have it first.
static LETS_IN: AtomicUsize = AtomicUsize::new(0);

/// Makes `mtx` that mutex.
pub(crate) fn let_others_in(mtx: *mut sys::mtx) {
    LETS_IN.store(mtx as usize, Ordering::Relaxed);
}

/// mtx_assert(9), MA_OWNED.
pub fn mtx_assert_owned(mtx: *mut sys::mtx, at: &str) {
    if word(mtx).load(Ordering::Relaxed) != me() {
        broken(&format!(
            "{} is not held by this thread, at {at}",
            name(mtx)
        ));
    }
}

/// What wakes others, or frees, is not for a thread that holds a lock, but for
/// `own`.
pub fn holds_none_but(own: *mut sys::mtx, what: &str) {
    let only = |held: &Vec<usize>| held.iter().all(|m| *m == own as usize);
    if !only(&current().held.borrow()) {
        broken(&format!("{what} with {} held", held_names()));
    }
}

/// The calling thread may sleep, or the rule is broken.
pub fn may_sleep(what: &str) {
    if !current().held.borrow().is_empty() {
        broken(&format!("{what} with a mutex held"));
    }
}

/// Runs `f` with a kernel-internal mutex held.
pub fn with<R>(mtx: *mut sys::mtx, what: &str, f: impl FnOnce() -> R) -> R {
    mtx_lock(mtx, what);
    let result = f();
    mtx_unlock(mtx, what);
    result
}

fn containing(word: *mut usize) -> *mut sys::mtx {
    word.wrapping_byte_sub(core::mem::offset_of!(sys::mtx, mtx_lock))
        .cast()
}

fn place(file: *const c_char, line: c_int) -> String {
    // SAFETY: the module passes a NUL-ended file name.
    let file = unsafe { CStr::from_ptr(file) }.to_string_lossy();
    format!("{file}:{line}")
}

pub(crate) unsafe extern "C" fn _mtx_init(
    c: *mut usize,
    name: *const c_char,
    _class: *const c_char,
    _opts: c_int,
) {
    init(containing(c), name);
}

pub(crate) unsafe extern "C" fn _mtx_destroy(c: *mut usize) {
    let mtx = containing(c);
    if word(mtx).load(Ordering::Relaxed) != 0 {
        broken(&format!("{} is destroyed while it is held", name(mtx)));
    }
    // SAFETY: the module's mutex, which nobody holds.
    unsafe { (*mtx).lock_object.lo_name = core::ptr::null() };
}

pub(crate) unsafe extern "C" fn __mtx_lock_flags(
    c: *mut usize,
    _opts: c_int,
    file: *const c_char,
    line: c_int,
) {
    mtx_lock(containing(c), &place(file, line));
}

pub(crate) unsafe extern "C" fn __mtx_unlock_flags(
    c: *mut usize,
    _opts: c_int,
    file: *const c_char,
    line: c_int,
) {
    mtx_unlock(containing(c), &place(file, line));
}

/// Wake-ups so far, by channel.
#[derive(Default)]
struct Channels {
    wakeups: HashMap<usize, u64>,
    sleepers: HashMap<usize, usize>,
    /// Signals sent so far, to every process.
    signals: u64,
    /// A signal was sent while nobody slept, and nobody has handled it.
    is_pending: bool,
    /// Threads that a signal would wake.
    catching: usize,
    /// Sleeps so far that a signal would have ended.
    sleeps: u64,
}
static CHANNELS: LazyLock<(Mutex<Channels>, Condvar)> = LazyLock::new(Default::default);

/// How a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slept {
    /// By a wake-up.
    Woken,
    /// The time is over.
    TimedOut,
    /// By a signal.
    Interrupted,
}

/// A signal to every process: who sleeps with PCATCH wakes.
pub fn signal() {
    let (lock, woken) = &*CHANNELS;
    lock.lock().unwrap().signals += 1;
    woken.notify_all();
}

/// Leaves a signal pending, or has it handled: threads that would sleep with
/// PCATCH do not while it is, as sleepqueue(9) has it, and sig_intr(9) tells.
pub fn pend(on: bool) {
    let (lock, woken) = &*CHANNELS;
    lock.lock().unwrap().is_pending = on;
    woken.notify_all();
}

/// sig_intr(9).
pub(crate) unsafe extern "C" fn sig_intr() -> c_int {
    if CHANNELS.0.lock().unwrap().is_pending {
        sys::EINTR as c_int
    } else {
        0
    }
}

/// Threads that sleep where a signal would wake them.
pub fn catching() -> usize {
    CHANNELS.0.lock().unwrap().catching
}

/// msleep(9): lets `mtx` go, sleeps on `chan` for at most `timeout`, and takes
/// `mtx` again. `false`: the time is over.
pub fn msleep(chan: usize, mtx: *mut sys::mtx, timeout: Option<Duration>, what: &str) -> bool {
    sleep(chan, mtx, timeout, false, what) == Slept::Woken
}

/// Sleeps with PCATCH so far.
pub fn sleeps() -> u64 {
    CHANNELS.0.lock().unwrap().sleeps
}

fn sleep(
    chan: usize,
    mtx: *mut sys::mtx,
    timeout: Option<Duration>,
    catch: bool,
    what: &str,
) -> Slept {
    let (lock, woken) = &*CHANNELS;
    let mut channels = lock.lock().unwrap();
    let before = channels.wakeups.get(&chan).copied().unwrap_or(0);
    *channels.sleepers.entry(chan).or_default() += 1;
    let signals = channels.signals;
    channels.catching += usize::from(catch);
    channels.sleeps += u64::from(catch);
    if !mtx.is_null() {
        mtx_unlock(mtx, what);
    }
    may_sleep(what);
    let deadline = timeout.map(|t| Instant::now() + t);
    let mut slept = Slept::Woken;
    while channels.wakeups.get(&chan).copied().unwrap_or(0) == before {
        if catch && (channels.signals != signals || channels.is_pending) {
            slept = Slept::Interrupted;
            break;
        }
        channels = match deadline {
            None => woken.wait(channels).unwrap(),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    slept = Slept::TimedOut;
                    break;
                }
                woken.wait_timeout(channels, left).unwrap().0
            }
        };
    }
    forget_sleeper(&mut channels, chan);
    channels.catching -= usize::from(catch);
    drop(channels);
    if !mtx.is_null() {
        mtx_lock(mtx, what);
    }
    slept
}

fn forget_sleeper(channels: &mut MutexGuard<'_, Channels>, chan: usize) {
    let left = channels
        .sleepers
        .get_mut(&chan)
        .expect("a sleeper is counted");
    *left -= 1;
    if *left == 0 {
        channels.sleepers.remove(&chan);
        channels.wakeups.remove(&chan);
    }
}

/// wakeup(9).
pub fn wake(chan: usize) {
    let (lock, woken) = &*CHANNELS;
    let mut channels = lock.lock().unwrap();
    if channels.sleepers.contains_key(&chan) {
        *channels.wakeups.entry(chan).or_default() += 1;
        woken.notify_all();
    }
}

pub(crate) unsafe extern "C" fn wakeup(chan: *const c_void) {
    wake(chan as usize);
}

/// sbintime_t: seconds in 32.32 fixed point.
fn sbt(time: i64) -> Option<Duration> {
    (time > 0).then(|| Duration::from_nanos(((time as u128 * 1_000_000_000) >> 32) as u64))
}

pub(crate) unsafe extern "C" fn _sleep(
    chan: *const c_void,
    lock: *mut sys::lock_object,
    pri: c_int,
    _wmesg: *const c_char,
    time: i64,
    _precision: i64,
    flags: c_int,
) -> c_int {
    let mut timeout = sbt(time);
    if flags as u32 & sys::C_ABSOLUTE != 0 {
        timeout = timeout.map(|at| at.saturating_sub(uptime()));
    }
    let catch = pri as u32 & sys::PCATCH != 0;
    // lock_object is the first field of a mtx.
    match sleep(chan as usize, lock.cast(), timeout, catch, "_sleep") {
        Slept::Woken => 0,
        Slept::TimedOut => sys::EWOULDBLOCK as c_int,
        // What the process's handler says of restarting.
        Slept::Interrupted => sys::ERESTART,
    }
}

/// kern_synch.c, pause_sbt(): with C_CATCH a signal ends it, and one that is
/// pending does at once.
pub(crate) unsafe extern "C" fn pause_sbt(
    _wmesg: *const c_char,
    time: i64,
    _precision: i64,
    flags: c_int,
) -> c_int {
    may_sleep("pause_sbt");
    let time = sbt(time).unwrap_or_default();
    if flags as u32 & sys::C_CATCH == 0 {
        std::thread::sleep(time);
        return sys::EWOULDBLOCK as c_int;
    }
    // A channel that nobody wakes.
    let channel = &raw const time as usize;
    match sleep(
        channel,
        core::ptr::null_mut(),
        Some(time),
        true,
        "pause_sbt",
    ) {
        Slept::Interrupted => sys::ERESTART,
        _ => sys::EWOULDBLOCK as c_int,
    }
}
