//! Faults on order: the n-th chance to fail, fails.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

/// A kind of operation that can be made to fail.
pub struct Point {
    left: AtomicI64,
    passed: AtomicU64,
}

/// malloc(9) with M_NOWAIT.
pub static MALLOC: Point = Point::new();
/// uma_zcreate(9).
pub static ZCREATE: Point = Point::new();
/// copyin(9).
pub static COPYIN: Point = Point::new();
/// copyout(9).
pub static COPYOUT: Point = Point::new();
/// vm_fault_quick_hold_pages(9).
pub static HOLD: Point = Point::new();
/// make_dev_s(9).
pub static MAKE_DEV: Point = Point::new();
/// CAM's allocation of a CCB for a scheduled periph.
pub static GET_CCB: Point = Point::new();
/// xpt_register_async(9).
pub static REGISTER_ASYNC: Point = Point::new();

/// CAM has no memory for a path of a caller that names none.
pub static NO_PATHS: AtomicBool = AtomicBool::new(false);

impl Point {
    const fn new() -> Self {
        Point {
            left: AtomicI64::new(0),
            passed: AtomicU64::new(0),
        }
    }

    /// Makes the `n`-th operation from now fail; 0 makes none fail.
    pub fn arm(&self, n: u32) {
        self.left.store(i64::from(n), Ordering::SeqCst);
    }

    /// Whether the armed failure has happened.
    pub fn fired(&self) -> bool {
        self.left.load(Ordering::SeqCst) <= 0
    }

    /// How often the operation was reached.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::SeqCst)
    }

    /// Called by the operation: whether it must fail now.
    pub(crate) fn fails(&self) -> bool {
        self.passed.fetch_add(1, Ordering::SeqCst);
        self.left.load(Ordering::SeqCst) > 0 && self.left.fetch_sub(1, Ordering::SeqCst) == 1
    }
}
