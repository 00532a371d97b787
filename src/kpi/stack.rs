//! A list of shared values to which any thread adds without a lock, and which
//! is taken whole: each value is on it once at most, however often it is added.

use super::shared::Shared;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use core::{ffi::c_void, ptr::null_mut};

/// The field through which a [`Stack`] chains a value.
///
/// # Invariants
/// While `is_on` is set, `next` belongs to the stack; it is null or a reference
/// that the stack owns.
pub struct Hook {
    next: AtomicPtr<c_void>,
    is_on: AtomicBool,
}

impl Hook {
    /// On no stack.
    pub const fn new() -> Self {
        Hook {
            next: AtomicPtr::new(null_mut()),
            is_on: AtomicBool::new(false),
        }
    }

    /// Whether it is on the stack.
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::SeqCst)
    }
}

impl Default for Hook {
    fn default() -> Self {
        Self::new()
    }
}

/// A value that can be on a [`Stack`], of which there is one for its type.
pub trait Hooked: Send + Sync + Sized + 'static {
    /// The hook, which nothing but the stack touches.
    fn hook(&self) -> &Hook;
    /// The stack.
    fn stack() -> &'static Stack;
}

/// The values that are on it: references in raw form, the last added first.
pub struct Stack(AtomicPtr<c_void>);

impl Stack {
    /// Nothing is on it.
    pub const fn new() -> Self {
        Stack(AtomicPtr::new(null_mut()))
    }

    /// Puts a value on its stack, unless it is there.
    pub fn add<T: Hooked>(value: &Shared<T>) {
        let hook = value.hook();
        if hook.is_on.swap(true, Ordering::SeqCst) {
            return;
        }
        let head = &T::stack().0;
        let raw = value.clone().into_raw();
        let mut first = head.load(Ordering::Relaxed);
        loop {
            hook.next.store(first, Ordering::Relaxed);
            match head.compare_exchange_weak(first, raw, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => first = now,
            }
        }
    }

    /// Takes off what is on it now, and shows each to `look`. A value that is
    /// added again from then on is on the stack again.
    pub fn take<T: Hooked>(mut look: impl FnMut(Shared<T>)) {
        let mut raw = T::stack().0.swap(null_mut(), Ordering::SeqCst);
        while !raw.is_null() {
            // SAFETY: add() of this type made it, for there is one stack for
            // a type, and nobody has taken it but this call.
            let value = unsafe { Shared::<T>::from_raw(raw) };
            raw = value.hook().next.load(Ordering::Relaxed);
            // Not before `next` is read: it is the next add()'s from here on.
            value.hook().is_on.store(false, Ordering::SeqCst);
            look(value);
        }
    }
}

impl Default for Stack {
    fn default() -> Self {
        Self::new()
    }
}
