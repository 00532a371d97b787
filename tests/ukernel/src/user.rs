//! A process's memory, and copy(9) to and from it: an address counts only if
//! it was mapped, and as it was protected.

use crate::{count, fault, lock::may_sleep, sys, vm};
use conform::sys::Access;
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{c_int, c_void},
    fs::File,
    io,
    os::fd::AsRawFd,
    sync::RwLock,
};

/// The pages behind mappings.
static GUARDS: RwLock<BTreeSet<usize>> = RwLock::new(BTreeSet::new());
/// Start, length and protection of what is mapped.
static MAPPED: RwLock<BTreeMap<usize, (usize, Access)>> = RwLock::new(BTreeMap::new());

const PAGE: usize = 4096;

/// mmap(2), anonymous. Behind it is a page that nothing else gets, so that what
/// runs over its end finds no other mapping there by chance.
pub fn map(len: usize) -> *mut u8 {
    let len = len.next_multiple_of(PAGE);
    // SAFETY: fresh memory.
    let at = unsafe {
        libc::mmap(
            core::ptr::null_mut(),
            len + PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(at, libc::MAP_FAILED, "mmap");
    GUARDS.write().unwrap().insert(at as usize + len);
    MAPPED
        .write()
        .unwrap()
        .insert(at as usize, (len, Access::Write));
    at.cast()
}

/// A file's bytes at an address that is free, shared with who maps it too; with a
/// page behind it that nothing else gets.
///
/// # Errors
/// mmap(2)'s: such as that there is something already.
pub fn attach(file: &File, at: usize, len: usize) -> io::Result<()> {
    let parts = [
        (
            at,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
        ),
        (
            at + len,
            PAGE,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
        ),
    ];
    for (at, len, protection, flags, fd) in parts {
        let flags = flags | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: nothing that is there is replaced.
        let got = unsafe { libc::mmap(at as *mut c_void, len, protection, flags, fd, 0) };
        if got == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        if got as usize != at {
            // A kernel that does not know the flag.
            // SAFETY: just mapped.
            unsafe { libc::munmap(got, len) };
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
    }
    Ok(())
}

/// Lets go of what [`attach`] has mapped in a process that is no kernel.
///
/// # Safety
/// The memory came from it, with that length, and is not used any more.
pub unsafe fn detach(at: usize, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { libc::munmap(at as *mut c_void, len + PAGE) };
}

/// The same memory as another process's, which the kernel may use for it.
///
/// # Errors
/// Those of [`attach`].
pub fn map_shared(file: &File, at: usize, len: usize) -> io::Result<()> {
    attach(file, at, len)?;
    GUARDS.write().unwrap().insert(at + len);
    MAPPED.write().unwrap().insert(at, (len, Access::Write));
    Ok(())
}

/// munmap(2).
///
/// # Safety
/// The memory came from [`map`] or [`map_shared`] and is not used any more.
pub unsafe fn unmap(at: *mut u8, len: usize) {
    let gone = at as usize..at as usize + len;
    MAPPED
        .write()
        .unwrap()
        .retain(|start, _| !gone.contains(start));
    if !vm::keeps(at as usize, len) {
        give_back(at as usize, len);
    }
}

/// The kernel needs it no more either.
pub(crate) fn give_back(at: usize, len: usize) {
    // The end of a mapping goes with the page behind it.
    let end = (at + len).next_multiple_of(PAGE);
    let guard = if GUARDS.write().unwrap().remove(&end) {
        PAGE
    } else {
        0
    };
    // SAFETY: from map(), and no page of it is held.
    unsafe { libc::munmap(at as *mut c_void, end - at + guard) };
}

/// mprotect(2) of a mapping, or a part of it.
pub fn protect(at: *mut u8, len: usize, access: Access) {
    let at = at as usize;
    let mut mapped = MAPPED.write().unwrap();
    let Some((start, (size, old))) = mapped.range(..=at).next_back() else {
        return;
    };
    let (start, end, old) = (*start, start + size, *old);
    let last = (at + len).min(end);
    for (from, to, access) in [(start, at, old), (at, last, access), (last, end, old)] {
        if from < to {
            mapped.insert(from, (to - from, access));
        }
    }
}

pub(crate) fn allows(at: usize, len: usize, write: bool) -> bool {
    let Some(end) = at.checked_add(len) else {
        return false;
    };
    let mapped = MAPPED.read().unwrap();
    let mut here = at;
    // A range may span mappings that happen to touch.
    while here < end {
        let Some((start, (size, access))) = mapped.range(..=here).next_back() else {
            return false;
        };
        let good = match access {
            Access::None => false,
            Access::Read => !write,
            Access::WriteOnly => write,
            Access::Write => true,
        };
        if !good || start + size <= here {
            return false;
        }
        here = start + size;
    }
    true
}

/// copyin(9).
pub fn read(from: usize, to: &mut [u8]) -> Result<(), i32> {
    may_sleep("copyin");
    count::moved(to.len());
    if fault::COPYIN.fails() || !allows(from, to.len(), false) {
        return Err(sys::EFAULT as i32);
    }
    // SAFETY: mapped, and a test does not unmap memory that it has a call on.
    unsafe { core::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
    Ok(())
}

/// copyout(9).
pub fn write(from: &[u8], to: usize) -> Result<(), i32> {
    may_sleep("copyout");
    count::moved(from.len());
    if fault::COPYOUT.fails() || !allows(to, from.len(), true) {
        return Err(sys::EFAULT as i32);
    }
    // SAFETY: as in read().
    unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
    Ok(())
}

pub(crate) unsafe extern "C" fn copyin(from: *const c_void, to: *mut c_void, len: usize) -> c_int {
    // SAFETY: kernel memory of the module's.
    let to = unsafe { core::slice::from_raw_parts_mut(to.cast::<u8>(), len) };
    read(from as usize, to).err().unwrap_or(0)
}

pub(crate) unsafe extern "C" fn copyout(from: *const c_void, to: *mut c_void, len: usize) -> c_int {
    // SAFETY: kernel memory of the module's.
    let from = unsafe { core::slice::from_raw_parts(from.cast::<u8>(), len) };
    write(from, to as usize).err().unwrap_or(0)
}
