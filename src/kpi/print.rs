//! printf(9), rate-limited: the console is not the user's to fill.

use core::{
    cell::UnsafeCell,
    ffi::{CStr, c_int},
};
use sys_bindings as sys;

/// Lines a second, over the whole module.
const LINES_PER_SECOND: c_int = 5;

struct Limit(UnsafeCell<(sys::timeval, c_int)>);

// SAFETY: eventratecheck(9) is called by every CPU on shared counters without
// a lock throughout the kernel; a torn count costs or saves one line.
unsafe impl Sync for Limit {}

static LIMIT: Limit = Limit(UnsafeCell::new((
    sys::timeval {
        tv_sec: 0,
        tv_usec: 0,
    },
    0,
)));

/// Prints `<driver>: <what>`, once a load.
pub fn note(what: &CStr) {
    // SAFETY: the format names two strings and gets two.
    unsafe { sys::printf(c"%s: %s\n".as_ptr(), crate::name(), what.as_ptr()) };
}

/// Prints `<driver><unit>: <what> (<number>)`, at most a few lines a second.
pub fn warn(unit: u32, what: &CStr, number: c_int) {
    let limit = LIMIT.0.get();
    // SAFETY: the counters live for ever; see Limit. The format names four
    // arguments and gets four.
    unsafe {
        if sys::eventratecheck(&raw mut (*limit).0, &raw mut (*limit).1, LINES_PER_SECOND) != 0 {
            let format = c"%s%u: %s (%d)\n".as_ptr();
            sys::printf(format, crate::name(), unit, what.as_ptr(), number);
        }
    }
}
