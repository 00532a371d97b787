//! SIGINT, SIGTERM and SIGHUP: the first ends what is under way, the second the
//! process; and the process ends as the signal would have had it end, so that a
//! shell's loop ends too.

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ},
    flag, low_level,
};
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

struct State {
    stop: Arc<AtomicBool>,
    which: Arc<AtomicUsize>,
}

static STATE: OnceLock<State> = OnceLock::new();

/// A signal that who started this program has it ignore, as nohup(1) does.
fn is_ignored(signal: i32) -> bool {
    // SAFETY: all zeroes is a sigaction, into which the kernel writes.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a question only; `old` is a sigaction of ours.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut old) };
    asked == 0 && old.sa_sigaction == libc::SIG_IGN
}

/// Has them noted from now on.
pub fn catch() {
    let state = STATE.get_or_init(|| State {
        stop: Arc::default(),
        which: Arc::default(),
    });
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        if is_ignored(signal) {
            continue;
        }
        // In this order: the second finds what the first has set.
        let _ = flag::register_conditional_default(signal, state.stop.clone());
        let _ = flag::register(signal, state.stop.clone());
        let _ = flag::register_usize(signal, state.which.clone(), signal as usize);
    }
    // A file that may not grow is write(2)'s EFBIG.
    let _ = flag::register(SIGXFSZ, Arc::default());
}

/// Whether it was told to end.
pub fn stopped() -> bool {
    STATE
        .get()
        .is_some_and(|state| state.stop.load(Ordering::SeqCst))
}

/// Ends the process as the signal that came does.
pub fn end_by_it() {
    let which = STATE
        .get()
        .map_or(0, |state| state.which.load(Ordering::SeqCst));
    if which != 0 {
        let _ = low_level::emulate_default_handler(which as i32);
    }
}
