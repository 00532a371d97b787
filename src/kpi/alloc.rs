//! malloc(9): boxes of the driver's own malloc type, which its shim declares.

use super::errno::{ENOMEM, Errno, Result};
use core::{
    ffi::{c_int, c_void},
    mem::{ManuallyDrop, MaybeUninit},
    ops::{Deref, DerefMut},
    ptr::NonNull,
};
use sys_bindings as sys;

unsafe extern "C" {
    /// `MALLOC_DEFINE` in kmod/shim.c.
    static mut M_KPI: [sys::malloc_type; 1];
}

/// Memory from malloc(9) that holds one `T`; its address does not change.
pub struct KBox<T>(NonNull<T>);

// SAFETY: a KBox owns its T as Box does.
unsafe impl<T: Send> Send for KBox<T> {}
// SAFETY: sharing a KBox shares its T.
unsafe impl<T: Sync> Sync for KBox<T> {}

impl<T> KBox<T> {
    /// Allocates with `M_WAITOK`: may sleep, so no mutex may be held.
    pub fn new(value: T) -> Self {
        match Self::allocate(value, sys::M_WAITOK as c_int) {
            Ok(this) => this,
            // malloc(9): an M_WAITOK allocation does not return NULL.
            Err(_) => unreachable!(),
        }
    }

    /// Allocates with `M_NOWAIT`: does not sleep.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn try_new(value: T) -> Result<Self> {
        Self::allocate(value, sys::M_NOWAIT as c_int)
    }

    /// The same, and the value comes back when there is no memory.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn try_new_or_back(value: T) -> core::result::Result<Self, (Errno, T)> {
        match KBox::<MaybeUninit<T>>::try_new(MaybeUninit::uninit()) {
            Ok(memory) => {
                let memory = ManuallyDrop::new(memory).0.cast::<T>();
                // SAFETY: fresh memory of T's size and alignment.
                unsafe { memory.write(value) };
                Ok(KBox(memory))
            }
            Err(errno) => Err((errno, value)),
        }
    }

    fn allocate(value: T, flags: c_int) -> Result<Self> {
        // malloc(9) aligns to at least 16 for any size that a T of alignment
        // 16 has.
        const { assert!(align_of::<T>() <= 16 && size_of::<T>() > 0) };
        // SAFETY: malloc(9) takes any size; M_KPI is defined by the shim and
        // initialised by its SYSINIT before any of our code runs.
        let memory = unsafe { sys::malloc(size_of::<T>(), (&raw mut M_KPI).cast(), flags) };
        let memory = NonNull::new(memory.cast::<T>()).ok_or(ENOMEM)?;
        // SAFETY: fresh memory of T's size and alignment.
        unsafe { memory.write(value) };
        Ok(KBox(memory))
    }

    /// Gives up ownership.
    pub fn into_raw(self) -> *mut c_void {
        let raw = self.0.as_ptr().cast();
        core::mem::forget(self);
        raw
    }

    /// Takes ownership back.
    ///
    /// # Safety
    /// `raw` came from [`into_raw`](Self::into_raw) of a `KBox<T>` and nothing
    /// else owns it.
    pub unsafe fn from_raw(raw: *mut c_void) -> Self {
        // SAFETY: into_raw gave a non-null pointer.
        KBox(unsafe { NonNull::new_unchecked(raw.cast()) })
    }

    /// Takes the value out.
    pub fn into_inner(self) -> T {
        let memory = ManuallyDrop::new(self);
        // SAFETY: owned and initialised; the value is moved out, and its
        // memory given back without dropping it.
        unsafe {
            let value = memory.0.read();
            sys::free(memory.0.as_ptr().cast(), (&raw mut M_KPI).cast());
            value
        }
    }

    /// The address, for a kernel function that keeps it.
    pub fn as_ptr(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> Deref for KBox<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: owned and initialised.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for KBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: owned and initialised.
        unsafe { self.0.as_mut() }
    }
}

impl<T> Drop for KBox<T> {
    fn drop(&mut self) {
        // SAFETY: owned, and this is the last use; free(9) does not sleep.
        unsafe {
            self.0.drop_in_place();
            sys::free(self.0.as_ptr().cast(), (&raw mut M_KPI).cast());
        }
    }
}

/// A vector of fixed capacity in memory from malloc(9).
pub struct KVec<T> {
    memory: NonNull<T>,
    len: usize,
    capacity: usize,
}

// SAFETY: owns its Ts as Vec does.
unsafe impl<T: Send> Send for KVec<T> {}
// SAFETY: sharing it shares its Ts.
unsafe impl<T: Sync> Sync for KVec<T> {}

impl<T> KVec<T> {
    /// Room for `capacity` values, which is not zero. Sleeps.
    pub fn with_capacity(capacity: usize) -> Self {
        const { assert!(align_of::<T>() <= 16 && size_of::<T>() > 0) };
        let bytes = capacity
            .checked_mul(size_of::<T>())
            .filter(|bytes| *bytes > 0)
            .expect("a size that fits");
        // SAFETY: as in KBox; an M_WAITOK allocation does not return NULL.
        let memory = unsafe { sys::malloc(bytes, (&raw mut M_KPI).cast(), sys::M_WAITOK as c_int) };
        KVec {
            memory: NonNull::new(memory.cast()).expect("M_WAITOK memory"),
            len: 0,
            capacity,
        }
    }

    /// Appends a value; there is room, or the kernel panics.
    pub fn push(&mut self, value: T) {
        assert!(self.len < self.capacity, "KVec is full");
        // SAFETY: inside the allocation.
        unsafe { self.memory.add(self.len).write(value) };
        self.len += 1;
    }

    /// The address, for a CCB that carries it.
    pub fn as_ptr(&self) -> *mut T {
        self.memory.as_ptr()
    }
}

impl KVec<u64> {
    /// So many zeroes, not none. Sleeps.
    pub fn zeroed(len: usize) -> Self {
        let bytes = len.checked_mul(size_of::<u64>()).expect("a size that fits");
        let flags = (sys::M_WAITOK | sys::M_ZERO) as c_int;
        // SAFETY: as in with_capacity(); M_ZERO initialises all of it.
        let memory = unsafe { sys::malloc(bytes, (&raw mut M_KPI).cast(), flags) };
        KVec {
            memory: NonNull::new(memory.cast()).expect("M_WAITOK memory"),
            len,
            capacity: len,
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: so many words are initialised.
        unsafe { core::slice::from_raw_parts(self.as_ptr().cast(), self.len * size_of::<u64>()) }
    }

    /// Its bytes, to change.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.len * size_of::<u64>();
        // SAFETY: as bytes(), and borrowed exclusively; any bytes make a u64.
        unsafe { core::slice::from_raw_parts_mut(self.as_ptr().cast(), len) }
    }
}

impl<T> Deref for KVec<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: so many are initialised.
        unsafe { core::slice::from_raw_parts(self.memory.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for KVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as deref(), and borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len) }
    }
}

impl<T> Drop for KVec<T> {
    fn drop(&mut self) {
        // SAFETY: owned, and this is the last use.
        unsafe {
            core::ptr::drop_in_place(&raw mut **self);
            sys::free(self.memory.as_ptr().cast(), (&raw mut M_KPI).cast());
        }
    }
}
