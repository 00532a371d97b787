//! The kernel that a program talks to: FreeBSD's, or the user-mode one.

use crate::errno::Errno;
use core::{ptr::NonNull, time::Duration};
use std::{fmt, sync::Arc};

/// A descriptor's number.
pub type Fd = i32;

/// A file system that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What: `/dev/da0p2`, or a pool's data set.
    pub from: String,
    /// Where.
    pub on: String,
}

/// The system calls that the library makes. Object-safe, so that a program is
/// the same on each kernel.
pub trait Kernel: Send + Sync {
    /// open(2), with O_RDWR.
    ///
    /// # Errors
    /// open(2)'s.
    fn open(&self, path: &str) -> Result<Fd, Errno>;

    /// close(2).
    fn close(&self, fd: Fd);

    /// ioctl(2).
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Safety
    /// `arg` is what the request wants: the address of its structure, or, for
    /// CAMIOQUEUE and CAMIOGET, of a CCB, in memory from [`map`](Self::map);
    /// and the data that a CCB names stays until it is reaped.
    unsafe fn ioctl(&self, fd: Fd, request: u64, arg: usize) -> Result<(), Errno>;

    /// Waits for a completion: whether there is one, or the device has gone.
    ///
    /// # Errors
    /// kevent(2)'s.
    fn wait(&self, fd: Fd, timeout: Duration) -> Result<bool, Errno>;

    /// mmap(2), anonymous: `len` bytes of zeroes.
    ///
    /// # Errors
    /// ENOMEM.
    fn map(&self, len: usize) -> Result<NonNull<u8>, Errno>;

    /// munmap(2).
    ///
    /// # Safety
    /// It is a mapping of [`map`](Self::map), of that length, that nobody uses.
    unsafe fn unmap(&self, at: NonNull<u8>, len: usize);

    /// The names in `/dev`.
    ///
    /// # Errors
    /// Of reading the folder.
    fn nodes(&self) -> Result<Vec<String>, Errno>;

    /// sysctl(3) of a number, which is set if `new` says what to: what it was.
    ///
    /// # Errors
    /// ENOENT: there is none of that name; EPERM.
    fn sysctl(&self, name: &str, new: Option<u64>) -> Result<u64, Errno>;

    /// `kern.geom.confxml`: who has which disk open.
    ///
    /// # Errors
    /// sysctl(3)'s.
    fn geom(&self) -> Result<String, Errno>;

    /// getfsstat(2).
    ///
    /// # Errors
    /// getfsstat(2)'s.
    fn mounts(&self) -> Result<Vec<Mount>, Errno>;
}

/// Mapped memory, unmapped when it is dropped.
pub(crate) struct Memory {
    kernel: Arc<dyn Kernel>,
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: memory is not of a thread.
unsafe impl Send for Memory {}
// SAFETY: it is changed through `&mut` alone, or by who has a raw pointer and
// says why nobody else does.
unsafe impl Sync for Memory {}

impl Memory {
    /// # Errors
    /// ENOMEM.
    pub fn new(kernel: &Arc<dyn Kernel>, len: usize) -> Result<Self, Errno> {
        let len = len.max(1);
        Ok(Memory {
            at: kernel.map(len)?,
            kernel: kernel.clone(),
            len,
        })
    }

    pub fn address(&self) -> usize {
        self.at.as_ptr() as usize
    }

    /// A `T` at an offset.
    ///
    /// # Panics
    /// When it is not all inside, or not aligned.
    pub fn at<T>(&self, offset: usize) -> *mut T {
        assert!(offset + size_of::<T>() <= self.len);
        assert_eq!(offset % align_of::<T>(), 0);
        // SAFETY: inside the mapping.
        unsafe { self.at.as_ptr().add(offset).cast() }
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped, and initialised as all mapped memory is.
        unsafe { core::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { core::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: of new(), once.
        unsafe { self.kernel.unmap(self.at, self.len) };
    }
}

/// A data buffer: whole pages of its own, so that the driver need not copy
/// what goes through it (qpass(4), DATA).
pub struct Buffer(Memory);

impl Buffer {
    /// `len` bytes of zeroes.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new(kernel: &Arc<dyn Kernel>, len: usize) -> Result<Self, Errno> {
        Memory::new(kernel, len).map(Buffer)
    }

    pub(crate) fn address(&self) -> usize {
        self.0.address()
    }
}

impl core::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl core::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.0.len)
    }
}
