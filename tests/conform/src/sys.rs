//! The kernel as a case sees it: the system calls that it needs.

use sys_bindings as sys;

/// An errno(2) value.
pub type Errno = i32;
/// A file descriptor.
pub type Fd = i32;

/// What [`Sys::protect`] allows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing: every access faults.
    None,
    /// Reading.
    Read,
    /// Writing, and what the hardware allows with it.
    WriteOnly,
    /// Reading and writing.
    Write,
}

/// A kernel.
pub trait Sys {
    /// open(2).
    ///
    /// # Errors
    /// The errno.
    fn open(&mut self, path: &str, flags: i32) -> Result<Fd, Errno>;
    /// close(2).
    fn close(&mut self, fd: Fd);
    /// dup(2).
    ///
    /// # Errors
    /// The errno.
    fn dup(&mut self, fd: Fd) -> Result<Fd, Errno>;
    /// Closes every descriptor that a case may have left.
    fn close_all(&mut self);
    /// ioctl(2).
    ///
    /// # Errors
    /// The errno.
    fn ioctl(&mut self, fd: Fd, request: u64, arg: usize) -> Result<(), Errno>;
    /// kqueue(2).
    ///
    /// # Errors
    /// The errno.
    fn kqueue(&mut self) -> Result<Fd, Errno>;
    /// kevent(2), with the timeout in milliseconds; how many events came.
    ///
    /// # Errors
    /// The errno.
    fn kevent(
        &mut self,
        kq: Fd,
        changes: &[sys::kevent],
        events: &mut [sys::kevent],
        timeout_ms: u32,
    ) -> Result<usize, Errno>;
    /// poll(2) on one descriptor, with the timeout in milliseconds; `revents`.
    ///
    /// # Errors
    /// The errno.
    fn poll(&mut self, fd: Fd, events: i16, timeout_ms: i32) -> Result<i16, Errno>;
    /// mmap(2): zeroed anonymous memory.
    fn map(&mut self, len: usize) -> *mut u8;
    /// mmap(2): a private mapping of a file that is longer than `len` bytes and
    /// not all zero, to read and write.
    fn map_file(&mut self, len: usize) -> *mut u8;
    /// mlock(2).
    ///
    /// # Errors
    /// The errno.
    fn wire(&mut self, at: *mut u8, len: usize) -> Result<(), Errno>;
    /// munmap(2).
    ///
    /// # Safety
    /// The memory came from [`map`](Self::map) and is not used any more.
    unsafe fn unmap(&mut self, at: *mut u8, len: usize);
    /// mprotect(2).
    fn protect(&mut self, at: *mut u8, len: usize, access: Access);
    /// Prints a line.
    fn print(&mut self, line: &str);
    /// Whether [`depart`](Self::depart) is possible.
    fn can_depart(&self) -> bool;
    /// Pulls the device out, waits until the kernel has let it go, and puts a
    /// fresh one back by the next [`arrive`](Self::arrive).
    fn depart(&mut self);
    /// Puts a device in, and waits until its node is there.
    fn arrive(&mut self);
}

/// ioctl(2) with a struct of integers of the program's own: what it is after.
///
/// # Errors
/// The errno.
pub fn call<T: Copy>(sys: &mut dyn Sys, fd: Fd, request: u64, what: T) -> Result<T, Errno> {
    let mut memory = Memory::new(sys, size_of::<T>());
    let at = memory.bytes_mut().as_mut_ptr().cast::<T>();
    // SAFETY: memory of the process's, large and aligned enough.
    unsafe { at.write(what) };
    let called = sys.ioctl(fd, request, at as usize);
    // SAFETY: as above; integers.
    let answer = unsafe { at.read() };
    memory.unmap(sys);
    called.map(|()| answer)
}

/// Memory of the process that a case uses, given back when it is dropped.
pub struct Memory {
    at: *mut u8,
    len: usize,
}

// SAFETY: owns its mapping, as a Box owns its memory.
unsafe impl Send for Memory {}

impl Memory {
    /// Maps zeroed memory; `len` is rounded up to pages.
    pub fn new(sys: &mut dyn Sys, len: usize) -> Self {
        let len = len.next_multiple_of(4096);
        Memory {
            at: sys.map(len),
            len,
        }
    }

    /// Maps a file privately; `len` is rounded up to pages.
    pub fn of_file(sys: &mut dyn Sys, len: usize) -> Self {
        let len = len.next_multiple_of(4096);
        Memory {
            at: sys.map_file(len),
            len,
        }
    }

    /// The address that the kernel is told.
    pub fn address(&self) -> usize {
        self.at as usize
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The contents.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped and ours; the kernel writes it only inside calls.
        unsafe { core::slice::from_raw_parts(self.at, self.len) }
    }

    /// The contents, to change.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as bytes(), and borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.at, self.len) }
    }

    /// The start of it as a CCB.
    pub fn ccb(&self) -> &sys::ccb {
        // SAFETY: page-aligned, large enough (see Command), plain data.
        unsafe { &*self.at.cast() }
    }

    /// The start of it as a CCB, to change.
    pub fn ccb_mut(&mut self) -> &mut sys::ccb {
        // SAFETY: as ccb(), and borrowed exclusively.
        unsafe { &mut *self.at.cast() }
    }

    /// Unmaps it.
    pub fn unmap(self, sys: &mut dyn Sys) {
        // SAFETY: ours, and gone with self.
        unsafe { sys.unmap(self.at, self.len) };
    }
}
