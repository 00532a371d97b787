//! FreeBSD's own system calls.

use crate::{
    errno::Errno,
    kernel::{Fd, Kernel, Mount},
};
use core::{ptr::NonNull, time::Duration};
use std::{
    ffi::{CStr, CString},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::Arc,
};

struct FreeBsd;

/// The kernel that the program runs on.
pub fn kernel() -> Arc<dyn Kernel> {
    Arc::new(FreeBsd)
}

fn last() -> Errno {
    Errno::new(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

fn check(result: i32) -> Result<i32, Errno> {
    if result == -1 {
        Err(last())
    } else {
        Ok(result)
    }
}

fn c_string(text: &str) -> Result<CString, Errno> {
    CString::new(text).map_err(|_| Errno::EINVAL)
}

thread_local! {
    /// What a thread waits in.
    static KQUEUE: Result<Kqueue, Errno> = Kqueue::new();
}

struct Kqueue(OwnedFd);

impl Kqueue {
    fn new() -> Result<Self, Errno> {
        // SAFETY: a new descriptor, which is owned here.
        unsafe { Ok(Kqueue(OwnedFd::from_raw_fd(check(libc::kqueue())?))) }
    }

    /// Waits for one event of one descriptor.
    fn wait(&self, fd: Fd, timeout: Duration) -> Result<bool, Errno> {
        // SAFETY: plain data.
        let mut event: libc::kevent = unsafe { core::mem::zeroed() };
        event.ident = fd as usize;
        event.filter = libc::EVFILT_READ;
        event.flags = libc::EV_ADD | libc::EV_ONESHOT;
        let time = libc::timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let mut found = event;
        let kq = self.0.as_raw_fd();
        // SAFETY: one event each way, and a time.
        let n = check(unsafe { libc::kevent(kq, &event, 1, &mut found, 1, &time) });
        if n == Ok(1) {
            return match found.flags & libc::EV_ERROR {
                0 => Ok(true),
                _ => Err(Errno::new(found.data as i32)),
            };
        }
        // It is not to come to who waits for something else.
        event.flags = libc::EV_DELETE;
        let none = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: one change. That it is gone already is no matter.
        unsafe { libc::kevent(kq, &event, 1, core::ptr::null_mut(), 0, &none) };
        n.map(|_| false)
    }
}

impl Kernel for FreeBsd {
    fn open(&self, path: &str) -> Result<Fd, Errno> {
        let path = c_string(path)?;
        // SAFETY: a NUL-ended string.
        check(unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) })
    }

    fn close(&self, fd: Fd) {
        // SAFETY: of a descriptor that open() gave.
        unsafe { libc::close(fd) };
    }

    unsafe fn ioctl(&self, fd: Fd, request: u64, arg: usize) -> Result<(), Errno> {
        // SAFETY: the caller's word.
        check(unsafe { libc::ioctl(fd, request, arg) }).map(|_| ())
    }

    fn wait(&self, fd: Fd, timeout: Duration) -> Result<bool, Errno> {
        // pass(4) does not tell poll(2) of every completion, but kqueue(2).
        KQUEUE.with(|kq| match kq {
            Ok(kq) => kq.wait(fd, timeout),
            Err(errno) => Err(*errno),
        })
    }

    fn map(&self, len: usize) -> Result<NonNull<u8>, Errno> {
        // SAFETY: fresh memory.
        let at = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANON,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(last());
        }
        NonNull::new(at.cast()).ok_or(Errno::ENOMEM)
    }

    unsafe fn unmap(&self, at: NonNull<u8>, len: usize) {
        // SAFETY: the caller's word.
        unsafe { libc::munmap(at.as_ptr().cast(), len) };
    }

    fn nodes(&self) -> Result<Vec<String>, Errno> {
        let number = |e: std::io::Error| Errno::new(e.raw_os_error().unwrap_or(0));
        let entries = std::fs::read_dir("/dev").map_err(number)?;
        let names = entries.map(|entry| {
            let name = entry.map_err(number)?.file_name();
            Ok(name.to_string_lossy().into_owned())
        });
        names.collect()
    }

    fn sysctl(&self, name: &str, new: Option<u64>) -> Result<u64, Errno> {
        let name = c_string(name)?;
        let (mut old, mut len) = (0u64, size_of::<u64>());
        let at = (&raw mut old).cast();
        // SAFETY: room for 64 bits; little-endian, so that a narrower number
        // is the low bytes.
        check(unsafe { libc::sysctlbyname(name.as_ptr(), at, &mut len, core::ptr::null(), 0) })?;
        if let Some(new) = new {
            if len < size_of::<u64>() && new >> (8 * len) != 0 {
                return Err(Errno::EINVAL);
            }
            // SAFETY: as many bytes as the number has.
            check(unsafe {
                libc::sysctlbyname(
                    name.as_ptr(),
                    core::ptr::null_mut(),
                    core::ptr::null_mut(),
                    (&raw const new).cast(),
                    len,
                )
            })?;
        }
        Ok(old)
    }

    fn geom(&self) -> Result<String, Errno> {
        const NAME: &CStr = c"kern.geom.confxml";
        let mut len = 0;
        let null = core::ptr::null_mut;
        // SAFETY: asks how long it is.
        check(unsafe {
            libc::sysctlbyname(NAME.as_ptr(), null(), &mut len, core::ptr::null(), 0)
        })?;
        // It may grow meanwhile.
        let mut text = vec![0u8; len + 65536];
        len = text.len();
        // SAFETY: a buffer of that length.
        check(unsafe {
            libc::sysctlbyname(
                NAME.as_ptr(),
                text.as_mut_ptr().cast(),
                &mut len,
                core::ptr::null(),
                0,
            )
        })?;
        text.truncate(len);
        let end = text.iter().position(|b| *b == 0).unwrap_or(len);
        Ok(String::from_utf8_lossy(&text[..end]).into_owned())
    }

    fn mounts(&self) -> Result<Vec<Mount>, Errno> {
        // SAFETY: asks how many there are.
        let n = check(unsafe { libc::getfsstat(core::ptr::null_mut(), 0, libc::MNT_NOWAIT) })?;
        let room = n as usize + 16;
        let mut all: Vec<libc::statfs> = Vec::with_capacity(room);
        let bytes = (room * size_of::<libc::statfs>()) as libc::c_long;
        // SAFETY: a buffer of that length, of which so many entries are written.
        unsafe {
            let n = check(libc::getfsstat(all.as_mut_ptr(), bytes, libc::MNT_NOWAIT))?;
            all.set_len((n as usize).min(room));
        }
        let text = |name: &[libc::c_char]| {
            let bytes: Vec<u8> = name.iter().map(|c| *c as u8).collect();
            let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        };
        let mount = |fs: &libc::statfs| Mount {
            from: text(&fs.f_mntfromname),
            on: text(&fs.f_mntonname),
        };
        Ok(all.iter().map(mount).collect())
    }
}
