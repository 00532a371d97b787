//! curthread, the console, and the end of the process when a rule is broken.

use crate::{devfs::File, kqueue::PollWaiter, lock, sys};
use std::{
    cell::{Cell, RefCell},
    ffi::{CStr, c_char},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
};

/// The exit status of a process that broke a rule.
pub const BROKEN: i32 = 70;

/// Where its vmspace is, of which only the address counts.
pub(crate) fn vmspace() -> *mut std::ffi::c_void {
    static VMSPACE: u64 = 0;
    (&raw const VMSPACE).cast_mut().cast()
}

/// The number of the one process.
pub const PID: i32 = 4711;

/// That of threads which begin from now on; [`PID`] unless it was set.
pub static OWN_PID: AtomicI32 = AtomicI32::new(PID);

/// Whether the console is also printed, not only kept.
pub static CONSOLE_ECHO: AtomicBool = AtomicBool::new(false);
static CONSOLE: Mutex<String> = Mutex::new(String::new());
/// `kern.securelevel`.
pub static SECURELEVEL: AtomicI32 = AtomicI32::new(-1);

/// One thread as the kernel sees it.
pub struct Thread {
    kernel: Box<sys::thread>,
    _pcpu: Box<sys::pcpu>,
    /// The file of the call that the thread is in (`td_fpop`).
    pub(crate) fpop: RefCell<Option<Arc<File>>>,
    /// What wakes the thread in poll(2).
    pub(crate) poll: RefCell<Option<Arc<PollWaiter>>>,
    /// Mutexes held, by address, in the order taken.
    pub(crate) held: RefCell<Vec<usize>>,
    compat32: Cell<bool>,
}

thread_local! {
    static CURRENT: &'static Thread = Thread::enter();
}

/// The calling thread.
pub fn current() -> &'static Thread {
    CURRENT.with(|t| *t)
}

impl Thread {
    fn enter() -> &'static Thread {
        // SAFETY: plain C data throughout.
        let (mut kernel, mut process, vector, mut pcpu) = unsafe {
            (
                Box::<sys::thread>::new(core::mem::zeroed()),
                Box::<sys::proc_>::new(core::mem::zeroed()),
                Box::<sys::sysentvec>::new(core::mem::zeroed()),
                Box::<sys::pcpu>::new(core::mem::zeroed()),
            )
        };
        process.p_sysent = Box::into_raw(vector);
        process.p_pid = OWN_PID.load(Ordering::Relaxed);
        process.p_vmspace = vmspace().cast();
        kernel.td_proc = Box::into_raw(process);
        pcpu.pc_curthread = &mut *kernel;
        // amd64's curthread is the first word at the GS base.
        const ARCH_SET_GS: libc::c_int = 0x1001;
        // SAFETY: Linux leaves GS to the program; the pcpu is never freed.
        let set = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, &raw const *pcpu) };
        assert_eq!(set, 0, "arch_prctl(ARCH_SET_GS)");
        Box::leak(Box::new(Thread {
            kernel,
            _pcpu: pcpu,
            fpop: RefCell::new(None),
            poll: RefCell::new(None),
            held: RefCell::new(Vec::new()),
            compat32: Cell::new(false),
        }))
    }

    /// The `struct thread`.
    pub fn as_ptr(&self) -> *mut sys::thread {
        (&raw const *self.kernel).cast_mut()
    }

    /// Makes it a thread of the process of that number.
    pub fn set_pid(&self, pid: i32) {
        // SAFETY: enter() made it, and only this thread uses it.
        unsafe { (*self.kernel.td_proc).p_pid = pid };
    }

    /// Makes the thread's process a 32-bit one, or not.
    pub fn set_32bit(&self, on: bool) {
        self.compat32.set(on);
        let flags = if on { sys::SV_ILP32 } else { 0 };
        // SAFETY: enter() made both, and only this thread uses them.
        unsafe { (*(*self.kernel.td_proc).p_sysent).sv_flags = flags };
    }
}

/// A rule was broken: reports and ends the process.
pub fn broken(rule: &str) -> ! {
    eprintln!("ukernel: {rule}");
    let name = std::thread::current()
        .name()
        .unwrap_or("(unnamed)")
        .to_string();
    eprintln!("ukernel: thread {name}, holding {}", lock::held_names());
    let console = CONSOLE.try_lock().map(|c| c.clone()).unwrap_or_default();
    if !console.is_empty() {
        eprintln!("ukernel: console:\n{console}");
    }
    eprintln!("{}", std::backtrace::Backtrace::force_capture());
    std::process::exit(BROKEN);
}

/// What the console has shown so far.
pub fn console() -> String {
    CONSOLE.lock().unwrap().clone()
}

/// printf(9), formatted.
#[unsafe(no_mangle)]
extern "C" fn uk_console(text: *const c_char) {
    // SAFETY: varargs.c passes a NUL-ended buffer.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    CONSOLE.lock().unwrap().push_str(&text);
    if CONSOLE_ECHO.load(Ordering::Relaxed) {
        print!("{text}");
    }
}

/// panic(9), formatted.
#[unsafe(no_mangle)]
extern "C" fn uk_panic(text: *const c_char) -> ! {
    // SAFETY: varargs.c passes a NUL-ended buffer.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    broken(&format!("panic: {text}"));
}

/// eventratecheck(9): `limit` a second.
pub(crate) unsafe extern "C" fn eventratecheck(
    last: *mut sys::timeval,
    count: *mut i32,
    limit: i32,
) -> i32 {
    let now = crate::lock::uptime().as_secs() as i64;
    // SAFETY: the module's own counters.
    unsafe {
        if (*last).tv_sec != now {
            (*last).tv_sec = now;
            *count = 0;
        }
        *count += 1;
        i32::from(*count <= limit)
    }
}

/// securelevel_gt(9).
pub(crate) unsafe extern "C" fn securelevel_gt(_cred: *mut sys::ucred, level: i32) -> i32 {
    if SECURELEVEL.load(Ordering::Relaxed) > level {
        sys::EPERM as i32
    } else {
        0
    }
}

/// Whether threads are root's: they have every privilege.
pub static PRIVILEGED: AtomicBool = AtomicBool::new(true);

/// priv_check(9).
pub(crate) unsafe extern "C" fn priv_check(_td: *mut sys::thread, _privilege: i32) -> i32 {
    if PRIVILEGED.load(Ordering::Relaxed) {
        0
    } else {
        sys::EPERM as i32
    }
}
