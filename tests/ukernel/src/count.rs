//! What the module costs: instructions of its own, locks that it takes, and
//! bytes that it has moved or zeroed. Repeatable, on whatever machine.
//!
//! A thread that enters the module while counting is on runs in single steps
//! (the trap flag of x86-64): the processor stops after every instruction, and
//! those that stop inside the module are counted. What the module calls runs at
//! full speed: the address that it returns to is replaced by `resume`'s, which
//! goes on stepping. Nothing of this says how long anything takes.

use std::{
    arch::asm,
    cell::RefCell,
    collections::BTreeMap,
    ffi::{c_int, c_void},
    sync::{
        Mutex, Once, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

static COUNTING: AtomicBool = AtomicBool::new(false);
static INSTRUCTIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);
static EXPORTS: OnceLock<Vec<usize>> = OnceLock::new();
static LOCKS: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());
static START: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);

/// What was counted.
#[derive(Clone, Debug, Default)]
pub struct Cost {
    /// Instructions of the module's.
    pub instructions: u64,
    /// Bytes that it had copied or set: memcpy, memmove, memset, copyin,
    /// copyout, and allocations that are zeroed.
    pub bytes: u64,
    /// Locks taken while it ran or for it, by name.
    pub locks: BTreeMap<String, u64>,
}

/// Where the module is.
pub(crate) fn set_module(text: std::ops::Range<usize>) {
    START.store(text.start, Relaxed);
    END.store(text.end, Relaxed);
}

/// Counts what the module does in `f`, on any thread.
pub fn count<R>(f: impl FnOnce() -> R) -> (R, Cost) {
    static HANDLER: Once = Once::new();
    // SAFETY: the handler touches atomics only.
    HANDLER.call_once(|| unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = on_step as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        assert_eq!(
            libc::sigaction(libc::SIGTRAP, &action, core::ptr::null_mut()),
            0
        );
    });
    EXPORTS.get_or_init(|| {
        let mut all: Vec<_> = crate::exports::functions()
            .into_iter()
            .map(|(_, at)| at as usize)
            .collect();
        all.sort_unstable();
        all
    });
    LOCKS.lock().unwrap().clear();
    INSTRUCTIONS.store(0, Relaxed);
    BYTES.store(0, Relaxed);
    COUNTING.store(true, Relaxed);
    let result = f();
    COUNTING.store(false, Relaxed);
    let cost = Cost {
        instructions: INSTRUCTIONS.load(Relaxed),
        bytes: BYTES.load(Relaxed),
        locks: LOCKS.lock().unwrap().clone(),
    };
    (result, cost)
}

extern "C" fn on_step(_signal: c_int, _info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the context of a signal with SA_SIGINFO.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let module = START.load(Relaxed)..END.load(Relaxed);
    let at = registers[libc::REG_RIP as usize] as usize;
    if module.contains(&at) {
        INSTRUCTIONS.fetch_add(1, Relaxed);
        return;
    }
    // SAFETY: the top of the interrupted thread's stack.
    let top = unsafe { &mut *(registers[libc::REG_RSP as usize] as *mut usize) };
    let is_export = EXPORTS
        .get()
        .is_some_and(|all| all.binary_search(&at).is_ok());
    if is_export && module.contains(top) {
        // A call out of the module: go on when it returns.
        RETURNS.with_borrow_mut(|returns| returns.push(*top));
        *top = resume as *const () as usize;
        registers[libc::REG_EFL as usize] &= !TRAP_FLAG;
    }
}

thread_local! {
    /// Where the calls that are under way return to in the module.
    static RETURNS: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

extern "C" fn next_return() -> usize {
    let next = RETURNS.with_borrow_mut(Vec::pop);
    next.unwrap_or_else(|| std::process::abort())
}

unsafe extern "C" {
    fn resume();
}

// What the call returned stays in its registers; the stack is aligned for a
// call once ten words are on it.
std::arch::global_asm!(
    "resume:",
    "sub rsp, 8",
    "push rax",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "call {next}",
    "mov [rsp + 72], rax",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "pushfq",
    "or qword ptr [rsp], 0x100",
    "popfq",
    "ret",
    next = sym next_return,
);

const TRAP_FLAG: i64 = 0x100;

/// A call into the module.
pub(crate) fn stepping<R>(call: impl FnOnce() -> R) -> R {
    if !COUNTING.load(Relaxed) {
        return call();
    }
    // SAFETY: sets the trap flag, for which there is a handler.
    unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq") };
    let result = call();
    // SAFETY: clears it.
    unsafe { asm!("pushfq", "and qword ptr [rsp], -0x101", "popfq") };
    result
}

/// Memory is copied or set for the module.
pub(crate) fn moved(bytes: usize) {
    if COUNTING.load(Relaxed) {
        BYTES.fetch_add(bytes as u64, Relaxed);
    }
}

/// A lock is taken.
pub(crate) fn locked(name: impl FnOnce() -> String) {
    if COUNTING.load(Relaxed) {
        *LOCKS.lock().unwrap().entry(name()).or_default() += 1;
    }
}

unsafe extern "C" {
    fn memcpy(to: *mut c_void, from: *const c_void, len: usize) -> *mut c_void;
    fn memmove(to: *mut c_void, from: *const c_void, len: usize) -> *mut c_void;
    fn memset(to: *mut c_void, byte: c_int, len: usize) -> *mut c_void;
}

pub(crate) unsafe extern "C" fn counted_memcpy(
    to: *mut c_void,
    from: *const c_void,
    len: usize,
) -> *mut c_void {
    moved(len);
    // SAFETY: the module's own arguments.
    unsafe { memcpy(to, from, len) }
}

pub(crate) unsafe extern "C" fn counted_memmove(
    to: *mut c_void,
    from: *const c_void,
    len: usize,
) -> *mut c_void {
    moved(len);
    // SAFETY: as above.
    unsafe { memmove(to, from, len) }
}

pub(crate) unsafe extern "C" fn counted_memset(
    to: *mut c_void,
    byte: c_int,
    len: usize,
) -> *mut c_void {
    moved(len);
    // SAFETY: as above.
    unsafe { memset(to, byte, len) }
}
