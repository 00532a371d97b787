//! One open of a device: what it may, and commands one at a time.

use crate::{
    command::Command,
    errno::Errno,
    error::{Error, Failure},
    kernel::{Buffer, Kernel},
    open::Open,
    outcome::{CommandError, Outcome},
    queue::{Method, Queue},
};
use core::time::Duration;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};
use sys_bindings as sys;

bitflags::bitflags! {
    /// What a driver and a device can do: `qpass_info.features`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u32 {
        /// QPIOC_CANCEL.
        const CANCEL = sys::QPASS_FEATURE_CANCEL;
        /// QPIOC_LIMIT.
        const LIMIT = sys::QPASS_FEATURE_LIMIT;
        /// QPIOC_ENTER.
        const ENTER = sys::QPASS_FEATURE_ENTER;
        /// QPIOC_LIST.
        const LIST = sys::QPASS_FEATURE_LIST;
        /// Long transfers are not copied.
        const ZEROCOPY = sys::QPASS_FEATURE_ZEROCOPY;
        /// QPASS_CANCEL_DEVICE.
        const CANCEL_DEVICE = sys::QPASS_FEATURE_CANCEL_DEVICE;
        /// The SIM takes unmapped I/O.
        const UNMAPPED = sys::QPASS_FEATURE_UNMAPPED;
        const _ = !0;
    }
}

/// QPIOC_INFO: all of one moment.
#[derive(Clone, Copy, Debug)]
pub struct Info {
    /// Of the interface.
    pub version: u32,
    /// What driver and device can do.
    pub features: Features,
    /// The longest transfer, in bytes.
    pub maxio: u32,
    /// Requests that this open has outstanding.
    pub requests: u32,
    /// Bytes of kernel memory and held pages in them.
    pub bytes: u64,
    /// The device's counters.
    pub counters: Counters,
}

/// A device's counters since it arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Commands taken.
    pub submitted: u64,
    /// Commands that have an outcome.
    pub completed: u64,
    /// Commands that have none yet.
    pub outstanding: u64,
    /// Commands that ended other than with CAM_REQ_CMP.
    pub errors: u64,
    /// Of these, those that were taken back before they were sent.
    pub cancelled: u64,
    /// Bytes copied between processes and bounce buffers.
    pub copied_bytes: u64,
    /// Bytes of bounce buffers in use.
    pub bounce_bytes: u64,
    /// Bytes moved from and to processes' own pages.
    pub zerocopy_bytes: u64,
}

/// An open's ceilings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests queued and not reaped.
    pub requests: u32,
    /// Bytes of kernel memory and held pages.
    pub bytes: u64,
}

/// An open of a device: `/dev/qpassN`, or `/dev/passN` for what that can do.
#[derive(Clone)]
pub struct Device {
    pub(crate) open: Arc<Open>,
    is_qpass: bool,
}

impl Device {
    /// Opens a device: its node's name, or its path.
    ///
    /// # Errors
    /// open(2)'s, which for qpass(4) are EPERM (the securelevel), EACCES (the
    /// node's mode), ENXIO, ENOENT; ENOTTY: the node is of another driver.
    pub fn open(kernel: &Arc<dyn Kernel>, name: &str) -> Result<Self, Error> {
        let short = name.strip_prefix("/dev/").unwrap_or(name);
        let path = if name.starts_with('/') {
            name.to_owned()
        } else {
            format!("/dev/{name}")
        };
        let error = |errno| Error {
            what: short.to_owned(),
            doing: "open",
            errno,
        };
        let open = Open::new(kernel, &path, short).map_err(error)?;
        let mut device = Device {
            open: Arc::new(open),
            is_qpass: false,
        };
        match device.info() {
            Ok(_) => device.is_qpass = true,
            Err(error) if error.errno == Errno::ENOTTY => {
                // Not qpass(4); pass(4) answers this.
                device.path_inquiry()?;
            }
            Err(error) => return Err(error),
        }
        Ok(device)
    }

    /// Its node's name.
    pub fn name(&self) -> &str {
        &self.open.name
    }

    /// The kernel that it is of.
    pub fn kernel(&self) -> &Arc<dyn Kernel> {
        &self.open.kernel
    }

    /// Whether the driver is qpass(4), and not pass(4).
    pub fn is_qpass(&self) -> bool {
        self.is_qpass
    }

    /// A buffer of `len` bytes.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn buffer(&self, len: usize) -> Result<Buffer, Error> {
        let buffer = Buffer::new(&self.open.kernel, len);
        buffer.map_err(|errno| self.open.error("buffer", errno))
    }

    /// QPIOC_INFO.
    ///
    /// # Errors
    /// ENOTTY: not qpass(4); ENXIO: the device has gone.
    pub fn info(&self) -> Result<Info, Error> {
        // SAFETY: plain data.
        let zero: sys::qpass_info = unsafe { core::mem::zeroed() };
        let info = self.open.ask("QPIOC_INFO", sys::QPC_QPIOC_INFO, zero)?;
        Ok(Info {
            version: info.version,
            features: Features::from_bits_retain(info.features),
            maxio: info.maxio,
            requests: info.requests,
            bytes: info.bytes,
            counters: Counters {
                submitted: info.submitted,
                completed: info.completed,
                outstanding: info.outstanding,
                errors: info.errors,
                cancelled: info.cancelled,
                copied_bytes: info.copied_bytes,
                bounce_bytes: info.bounce_bytes,
                zerocopy_bytes: info.zerocopy_bytes,
            },
        })
    }

    /// This open's ceilings: those that are `Some` are set first.
    ///
    /// # Errors
    /// EINVAL: above the system's; ENOTTY: not qpass(4); ENXIO: the device has
    /// gone.
    pub fn limits(&self, requests: Option<u32>, bytes: Option<u64>) -> Result<Limits, Error> {
        // SAFETY: plain data.
        let mut limit: sys::qpass_limit = unsafe { core::mem::zeroed() };
        limit.requests = requests.unwrap_or(0);
        limit.bytes = bytes.unwrap_or(0);
        let limit = self.open.ask("QPIOC_LIMIT", sys::QPC_QPIOC_LIMIT, limit)?;
        Ok(Limits {
            requests: limit.requests,
            bytes: limit.bytes,
        })
    }

    /// Sends a command and waits for it (CAMIOCOMMAND): the command, with its
    /// data, and how it ended.
    ///
    /// # Errors
    /// The driver's: E2BIG (longer than it takes), EINVAL, EPERM, ENXIO (the device
    /// has gone).
    pub fn run(&self, mut command: Command) -> Result<(Command, Ended), Error> {
        loop {
            // SAFETY: plain data.
            let mut ccb: sys::ccb = unsafe { core::mem::zeroed() };
            command.fill(&mut ccb, 0);
            let ccb = self.open.ask("command", sys::QPC_CAMIOCOMMAND, ccb)?;
            let ended = command.outcome(&ccb);
            match ended.as_ref().err().and_then(|error| command.again(error)) {
                Some(wait) => std::thread::sleep(wait),
                None => return Ok((command, ended)),
            }
        }
    }

    /// As [`run`](Self::run), until `stop` says that it is to end: it is asked every
    /// 200 ms, and whenever a signal comes; then the command is taken back from the
    /// device, and ends as aborted where the controller can. It goes through a queue
    /// of its own, unless this open has one; then it is run, and `stop` not asked.
    ///
    /// # Errors
    /// The driver's, as of [`queue`](Self::queue); ECANCELED: `stop` said so before the
    /// driver had room for it; EINTR: `stop` said so, and the controller does not give
    /// it back; EAGAIN: a limit left no room for it in ten seconds, or the time that
    /// it may take.
    pub fn run_until(
        &self,
        command: Command,
        stop: &dyn Fn() -> bool,
    ) -> Result<(Command, Ended), Error> {
        if self.open.has_queue.load(Ordering::SeqCst) {
            return self.run(command);
        }
        let method = if self.is_qpass {
            Method::Enter
        } else {
            Method::Queue
        };
        let mut queue = self.queue(1, method)?;
        let room_by = Instant::now() + command.patience().min(NO_ROOM);
        // It has room for one.
        let _ = queue.submit(command, 0);
        let mut tries = 0;
        loop {
            if let Some(done) = queue.reap(1, Duration::from_millis(200))?.pop() {
                let ended = match done.result {
                    Ok(outcome) => Ok(outcome),
                    Err(Failure::Failed(error)) => Err(error),
                    Err(Failure::Refused(errno)) => return Err(self.open.error("command", errno)),
                    Err(Failure::Lost) => return Err(self.open.error("command", Errno::ENXIO)),
                };
                return Ok((done.command, ended));
            }
            if !stop() {
                if Instant::now() >= room_by && queue.take_staged().is_some() {
                    return Err(self.open.error("command", Errno::EAGAIN));
                }
                continue;
            }
            // pass(4) cannot; a controller may not.
            if queue.cancel().is_err() || tries == 5 {
                return Err(self.open.error("command", Errno::EINTR));
            }
            tries += 1;
        }
    }

    /// The queue of this open, of `depth` commands.
    ///
    /// # Errors
    /// EBUSY: there is one already; another open has another. EINVAL: more than
    /// 4096 commands, or none; ENOMEM; ENOTTY: that method is not the driver's.
    pub fn queue(&self, depth: usize, method: Method) -> Result<Queue, Error> {
        Queue::new(self.clone(), depth, method)
    }
}

/// How long a single command waits for room in the driver.
const NO_ROOM: Duration = Duration::from_secs(10);

/// How a command ended: carried out, or not; both have all that there is to know.
pub type Ended = Result<Outcome, CommandError>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Fd, Mount};
    use core::{ptr::NonNull, time::Duration};
    use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};

    /// A kernel with one node, which answers every call with one errno; calls of
    /// qpass(4)'s own are unknown to the pass(4) that it may be.
    #[derive(Default)]
    struct Node {
        is_pass: AtomicBool,
        errno: AtomicI32,
    }

    impl Kernel for Node {
        fn open(&self, _path: &str) -> Result<Fd, Errno> {
            Ok(3)
        }
        fn close(&self, _fd: Fd) {}
        unsafe fn ioctl(&self, _fd: Fd, request: u64, _arg: usize) -> Result<(), Errno> {
            if self.is_pass.load(SeqCst) && request != sys::QPC_CAMIOCOMMAND {
                return Err(Errno::ENOTTY);
            }
            match self.errno.load(SeqCst) {
                0 => Ok(()),
                errno => Err(Errno::new(errno)),
            }
        }
        fn wait(&self, _fd: Fd, _timeout: Duration) -> Result<bool, Errno> {
            Ok(true)
        }
        fn map(&self, len: usize) -> Result<NonNull<u8>, Errno> {
            let zeroes: Box<[u64]> = vec![0; len.div_ceil(8)].into();
            Ok(NonNull::from(Box::leak(zeroes)).cast())
        }
        unsafe fn unmap(&self, at: NonNull<u8>, len: usize) {
            let words = NonNull::slice_from_raw_parts(at.cast::<u64>(), len.div_ceil(8));
            // SAFETY: map()'s, once.
            drop(unsafe { Box::from_raw(words.as_ptr()) });
        }
        fn nodes(&self) -> Result<Vec<String>, Errno> {
            Ok(Vec::new())
        }
        fn sysctl(&self, _name: &str, _new: Option<u64>) -> Result<u64, Errno> {
            Err(Errno::ENOENT)
        }
        fn geom(&self) -> Result<String, Errno> {
            Err(Errno::ENOENT)
        }
        fn mounts(&self) -> Result<Vec<Mount>, Errno> {
            Ok(Vec::new())
        }
    }

    fn errno<T>(answer: Result<T, Error>) -> Option<Errno> {
        answer.err().map(|error| error.errno)
    }

    /// F6: devfs(5) lets the node go with the next look into /dev.
    #[test]
    fn enotty_from_an_open_that_has_answered_is_a_device_that_has_gone() {
        let node = Arc::new(Node::default());
        let kernel: Arc<dyn Kernel> = node.clone();
        let device = Device::open(&kernel, "qpass0").expect("open");
        for gone in [Errno::ENXIO, Errno::ENOTTY] {
            node.errno.store(gone.get(), SeqCst);
            assert_eq!(errno(device.info()), Some(Errno::ENXIO));
            assert_eq!(errno(device.limits(None, None)), Some(Errno::ENXIO));
            let sent = device.run(Command::test_unit_ready());
            assert_eq!(errno(sent), Some(Errno::ENXIO));
            assert_eq!(errno(device.outstanding(false)), Some(Errno::ENXIO));
            let mut queue = device.queue(2, Method::Enter).expect("queue");
            queue.submit(Command::test_unit_ready(), 1).expect("room");
            let found = queue.reap(1, Duration::ZERO).expect("what was not sent");
            assert_eq!(found[0].result, Err(crate::error::Failure::Lost));
            assert_eq!(errno(queue.reap(1, Duration::ZERO)), Some(Errno::ENXIO));
        }
    }

    #[test]
    fn enotty_from_pass_is_a_call_that_it_has_not() {
        let node = Arc::new(Node::default());
        node.is_pass.store(true, SeqCst);
        let kernel: Arc<dyn Kernel> = node.clone();
        let device = Device::open(&kernel, "pass0").expect("open");
        assert!(!device.is_qpass());
        assert_eq!(errno(device.limits(None, None)), Some(Errno::ENOTTY));
        assert_eq!(errno(device.run(Command::test_unit_ready())), None);
        node.errno.store(Errno::ENOTTY.get(), SeqCst);
        let sent = device.run(Command::test_unit_ready());
        assert_eq!(errno(sent), Some(Errno::ENXIO));
        assert_eq!(errno(device.limits(None, None)), Some(Errno::ENOTTY));
        // Never anything else: another driver's.
        assert_eq!(errno(Device::open(&kernel, "null")), Some(Errno::ENOTTY));
    }
}
