//! A descriptor, and its calls.

use crate::{
    errno::Errno,
    error::Error,
    kernel::{Buffer, Fd, Kernel, Memory},
};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering::Relaxed},
};
use sys_bindings as sys;

pub(crate) struct Open {
    pub kernel: Arc<dyn Kernel>,
    pub fd: Fd,
    pub name: String,
    /// For calls with a structure: it, and behind [`ENTRIES`] an array. One for
    /// each call that is under way.
    scratch: Mutex<Vec<Memory>>,
    /// There is a queue on it, or what one has left behind.
    pub has_queue: AtomicBool,
    /// It has answered one of pass(4)'s calls, and one of qpass(4)'s own.
    answered: AtomicBool,
    answered_own: AtomicBool,
}

/// Where an array is that a call has.
pub(crate) const ENTRIES: usize = 4096;
/// The structure, and as many entries as QPIOC_LIST gives.
const SCRATCH: usize = ENTRIES + sys::QPASS_LIST_MAX as usize * size_of::<sys::qpass_outstanding>();

/// Memory for a call, given back when it has ended.
pub(crate) struct Scratch<'a> {
    open: &'a Open,
    memory: Option<Memory>,
}

impl Scratch<'_> {
    /// A `T` at an offset.
    pub fn at<T>(&self, offset: usize) -> *mut T {
        self.memory.as_ref().expect("memory").at(offset)
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        self.open.spare().extend(self.memory.take());
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.kernel.close(self.fd);
    }
}

impl Open {
    /// # Errors
    /// open(2)'s.
    pub fn new(kernel: &Arc<dyn Kernel>, path: &str, name: &str) -> Result<Self, Errno> {
        Ok(Open {
            fd: kernel.open(path)?,
            kernel: kernel.clone(),
            name: name.to_owned(),
            scratch: Mutex::default(),
            has_queue: AtomicBool::new(false),
            answered: AtomicBool::new(false),
            answered_own: AtomicBool::new(false),
        })
    }

    /// ioctl(2) of this open.
    ///
    /// # Errors
    /// The driver's. ENXIO: the device has gone; so also where the kernel says
    /// ENOTTY to a call that this open has answered before, see
    /// [`Errno::ENOTTY`].
    ///
    /// # Safety
    /// That of [`Kernel::ioctl`].
    pub unsafe fn ioctl(&self, request: u64, arg: usize) -> Result<(), Errno> {
        let is_pass = matches!(
            request,
            sys::QPC_CAMIOCOMMAND | sys::QPC_CAMIOQUEUE | sys::QPC_CAMIOGET
        );
        // SAFETY: the caller's promise.
        let answer = unsafe { self.kernel.ioctl(self.fd, request, arg) };
        if answer != Err(Errno::ENOTTY) {
            let answered = if is_pass {
                &self.answered
            } else {
                &self.answered_own
            };
            answered.store(true, Relaxed);
            return answer;
        }
        // pass(4) never answers the calls of qpass(4), which has all of them.
        if self.answered_own.load(Relaxed) || is_pass && self.answered.load(Relaxed) {
            return Err(Errno::ENXIO);
        }
        answer
    }

    pub fn error(&self, doing: &'static str, errno: Errno) -> Error {
        Error {
            what: self.name.clone(),
            doing,
            errno,
        }
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Memory>> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For one call.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn scratch(&self) -> Result<Scratch<'_>, Errno> {
        let spare = self.spare().pop();
        let memory = match spare {
            Some(memory) => memory,
            None => Memory::new(&self.kernel, SCRATCH)?,
        };
        Ok(Scratch {
            open: self,
            memory: Some(memory),
        })
    }

    /// A call with a structure, which comes back.
    pub fn call<T: Copy>(&self, request: u64, value: T) -> Result<T, Errno> {
        let scratch = self.scratch()?;
        let at = scratch.at::<T>(0);
        // SAFETY: plain data, in memory of its own meanwhile.
        unsafe {
            at.write(value);
            self.ioctl(request, at as usize)?;
            Ok(at.read())
        }
    }

    /// The same, with an error that says which call it was.
    pub fn ask<T: Copy>(&self, name: &'static str, request: u64, value: T) -> Result<T, Error> {
        self.call(request, value)
            .map_err(|errno| self.error(name, errno))
    }

    /// An immediate CCB, as `fill` makes it of zeroes; `buffer`, if it has one,
    /// stays where it is meanwhile.
    pub fn immediate(
        &self,
        func_code: sys::xpt_opcode,
        _buffer: Option<&mut Buffer>,
        fill: impl FnOnce(&mut sys::ccb),
    ) -> Result<sys::ccb, Errno> {
        // SAFETY: plain data.
        let mut ccb: sys::ccb = unsafe { core::mem::zeroed() };
        ccb.ccb_h.func_code = func_code;
        fill(&mut ccb);
        self.call(sys::QPC_CAMIOCOMMAND, ccb)
    }
}
