//! One open of a device: questions about it, and commands one at a time.

use crate::{
    command::Command,
    errno::Errno,
    error::{CommandError, Error},
    kernel::{Buffer, Fd, Kernel, Memory},
    queue::{Method, Queue},
};
use core::time::Duration;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool};
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

/// What a device speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// SCSI, and ATAPI.
    Scsi,
    /// ATA.
    Ata,
    /// NVMe.
    Nvme,
    /// Another: `ccb_getdev.protocol`.
    Other(u32),
}

/// What a device is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Bus, as CAM numbers them.
    pub bus: u32,
    /// Target.
    pub target: u32,
    /// LUN.
    pub lun: u64,
    /// What it speaks.
    pub protocol: Protocol,
    /// Peripheral device type (SPC-5): 0 a disk, 1 a tape, 5 a CD, 8 a changer,
    /// 13 an enclosure.
    pub device_type: u8,
    /// Vendor; of an ATA or an NVMe device, empty.
    pub vendor: String,
    /// Product, or model.
    pub product: String,
    /// Revision of the firmware.
    pub revision: String,
    /// Serial number, empty if CAM does not know it.
    pub serial: String,
    /// The peripherals on it: `da0`, `pass0`, `qpass0`.
    pub peripherals: Vec<String>,
    /// The controller, such as `ahcich0`.
    pub controller: String,
    /// The longest transfer of the controller, in bytes.
    pub maxio: u32,
}

/// What QPIOC_CANCEL did: how many requests ...
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cancelled {
    /// were not sent yet, and are done now,
    pub dequeued: u32,
    /// were sent, and CAM aborts them,
    pub aborted: u32,
    /// were sent, and CAM cannot abort them,
    pub unable: u32,
    /// were done already.
    pub done: u32,
}

/// Which requests to cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// All of this open.
    Own,
    /// All of the device, of every open. Wants PRIV_DRIVER, as the next two.
    All,
    /// Of one open, by its number in [`Outstanding`].
    Open(u64),
    /// One request: its open, and its number.
    Request(u64, u64),
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Waits to be sent.
    Queued,
    /// CAM or the device has it.
    Sent,
    /// Completed, and not reaped.
    Done,
}

/// A request that was taken and not reaped yet.
#[derive(Clone, Debug)]
pub struct Outstanding {
    /// Number of its open, of the device.
    pub open: u64,
    /// Its own number, of its open.
    pub number: u64,
    /// Process that submitted it.
    pub pid: i32,
    /// Where it is.
    pub state: State,
    /// Since it was submitted.
    pub age: Duration,
    /// `ccb_h.func_code`.
    pub func_code: u32,
    /// The CDB's first bytes, or those of an ATA or NVMe command.
    pub command: Vec<u8>,
    /// Bytes of data.
    pub length: u32,
    /// Its data come from the device.
    pub reads: bool,
    /// Its data go to the device.
    pub writes: bool,
    /// The program's tag.
    pub tag: u64,
}

/// An open's ceilings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests queued and not reaped.
    pub requests: u32,
    /// Bytes of kernel memory and held pages.
    pub bytes: u64,
}

pub(crate) struct Open {
    pub kernel: Arc<dyn Kernel>,
    pub fd: Fd,
    pub name: String,
    /// For calls with a structure: it, and behind [`ENTRIES`] an array. One for
    /// each call that is under way.
    scratch: Mutex<Vec<Memory>>,
    /// There is a queue on it, or what one has left behind.
    pub has_queue: AtomicBool,
}

const ENTRIES: usize = 4096;
/// The structure, and as many entries as QPIOC_LIST gives.
const SCRATCH: usize = ENTRIES + sys::QPASS_LIST_MAX as usize * size_of::<sys::qpass_outstanding>();

/// Memory for a call, given back when it has ended.
struct Scratch<'a> {
    open: &'a Open,
    memory: Option<Memory>,
}

impl Scratch<'_> {
    fn at<T>(&self, offset: usize) -> *mut T {
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

    fn scratch(&self) -> Result<Scratch<'_>, Errno> {
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
    fn call<T: Copy>(&self, request: u64, value: T) -> Result<T, Errno> {
        let scratch = self.scratch()?;
        let at = scratch.at::<T>(0);
        // SAFETY: plain data, in memory of its own meanwhile.
        unsafe {
            at.write(value);
            self.kernel.ioctl(self.fd, request, at as usize)?;
            Ok(at.read())
        }
    }

    /// An immediate CCB, as `fill` makes it of zeroes; `buffer`, if it has one,
    /// stays where it is meanwhile.
    fn immediate(
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

/// An open of a device: `/dev/qpassN`, or `/dev/passN` for what that can do.
#[derive(Clone)]
pub struct Device {
    pub(crate) open: Arc<Open>,
    is_qpass: bool,
}

/// The program's view of pass(4)'s and qpass(4)'s text fields.
fn text(bytes: &[u8]) -> String {
    let printable = |b: &u8| match *b {
        0x20..=0x7e => char::from(*b),
        _ => ' ',
    };
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    let all: String = bytes[..end].iter().map(printable).collect();
    all.trim().to_owned()
}

fn c_text(name: &[core::ffi::c_char]) -> String {
    text(&name.iter().map(|c| *c as u8).collect::<Vec<u8>>())
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
        let open = Open {
            fd: kernel.open(&path).map_err(error)?,
            kernel: kernel.clone(),
            name: short.to_owned(),
            scratch: Mutex::default(),
            has_queue: AtomicBool::new(false),
        };
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
    /// ENOTTY: not qpass(4); ENXIO.
    pub fn info(&self) -> Result<Info, Error> {
        // SAFETY: plain data.
        let zero: sys::qpass_info = unsafe { core::mem::zeroed() };
        let info = self
            .open
            .call(sys::QPC_QPIOC_INFO, zero)
            .map_err(|errno| self.open.error("QPIOC_INFO", errno))?;
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
    /// EINVAL: above the system's; ENOTTY: not qpass(4).
    pub fn limits(&self, requests: Option<u32>, bytes: Option<u64>) -> Result<Limits, Error> {
        // SAFETY: plain data.
        let mut limit: sys::qpass_limit = unsafe { core::mem::zeroed() };
        limit.requests = requests.unwrap_or(0);
        limit.bytes = bytes.unwrap_or(0);
        let limit = self
            .open
            .call(sys::QPC_QPIOC_LIMIT, limit)
            .map_err(|errno| self.open.error("QPIOC_LIMIT", errno))?;
        Ok(Limits {
            requests: limit.requests,
            bytes: limit.bytes,
        })
    }

    /// Takes requests back. Each is reaped all the same, by its own open.
    ///
    /// # Errors
    /// EPERM: others' without the privilege; ENOENT: what was named is not
    /// outstanding; ENOTTY: not qpass(4).
    pub fn cancel(&self, which: Cancel) -> Result<Cancelled, Error> {
        // SAFETY: plain data.
        let mut call: sys::qpass_cancel = unsafe { core::mem::zeroed() };
        if which != Cancel::Own {
            call.flags = sys::QPASS_CANCEL_DEVICE;
        }
        match which {
            Cancel::Own | Cancel::All => {}
            Cancel::Open(open) => call.open = open,
            Cancel::Request(open, number) => (call.open, call.number) = (open, number),
        }
        let call = self
            .open
            .call(sys::QPC_QPIOC_CANCEL, call)
            .map_err(|errno| self.open.error("QPIOC_CANCEL", errno))?;
        Ok(Cancelled {
            dequeued: call.dequeued,
            aborted: call.aborted,
            unable: call.unable,
            done: call.done,
        })
    }

    /// What is outstanding, by age: of this open, or of the device.
    ///
    /// # Errors
    /// EPERM: of the device without PRIV_DRIVER; ENOTTY: not qpass(4).
    pub fn outstanding(&self, of_device: bool) -> Result<Vec<Outstanding>, Error> {
        let mut found = Vec::new();
        let mut cursor = [0; 2];
        loop {
            let scratch = self.open.scratch();
            let scratch = scratch.map_err(|errno| self.open.error("QPIOC_LIST", errno))?;
            let at = scratch.at::<sys::qpass_list>(0);
            let entries = scratch.at::<sys::qpass_outstanding>(ENTRIES);
            // SAFETY: plain data, in memory of its own meanwhile.
            let call = unsafe {
                let mut call: sys::qpass_list = core::mem::zeroed();
                call.entries = entries as u64;
                call.room = sys::QPASS_LIST_MAX;
                call.cursor = cursor;
                if of_device {
                    call.flags = sys::QPASS_LIST_DEVICE;
                }
                at.write(call);
                self.open
                    .kernel
                    .ioctl(self.open.fd, sys::QPC_QPIOC_LIST, at as usize)
                    .map_err(|errno| self.open.error("QPIOC_LIST", errno))?;
                at.read()
            };
            for i in 0..call.count.min(sys::QPASS_LIST_MAX) as usize {
                // SAFETY: the kernel has written so many entries.
                found.push(outstanding(unsafe { &*entries.add(i) }));
            }
            if call.flags & sys::QPASS_LIST_MORE == 0 {
                return Ok(found);
            }
            cursor = call.cursor;
        }
    }

    /// XPT_PATH_INQ.
    fn path_inquiry(&self) -> Result<sys::ccb_pathinq, Error> {
        let ccb = self
            .open
            .immediate(sys::XPT_PATH_INQ, None, |_| ())
            .map_err(|errno| self.open.error("path inquiry", errno))?;
        // SAFETY: what the opcode says.
        Ok(unsafe { ccb.cpi })
    }

    /// The longest transfer, in bytes.
    ///
    /// # Errors
    /// ENXIO.
    pub fn maxio(&self) -> Result<u32, Error> {
        if self.is_qpass {
            return Ok(self.info()?.maxio);
        }
        match self.path_inquiry()?.maxio {
            0 => Ok(sys::DFLTPHYS),
            some => Ok(some),
        }
    }

    /// What the device is, as CAM knows it: no command is sent to it.
    ///
    /// # Errors
    /// ENXIO.
    pub fn identity(&self) -> Result<Identity, Error> {
        let ccb = self
            .open
            .immediate(sys::XPT_GDEV_TYPE, None, |_| ())
            .map_err(|errno| self.open.error("get device type", errno))?;
        let inquiry = self.path_inquiry()?;
        // SAFETY: what the opcode says.
        let (dev, hdr) = unsafe { (&ccb.cgd, &ccb.ccb_h) };
        let mut identity = Identity {
            bus: hdr.path_id,
            target: hdr.target_id,
            lun: hdr.target_lun,
            protocol: match dev.protocol {
                sys::PROTO_SCSI | sys::PROTO_ATAPI | sys::PROTO_SEMB => Protocol::Scsi,
                sys::PROTO_ATA => Protocol::Ata,
                sys::PROTO_NVME => Protocol::Nvme,
                other => Protocol::Other(other),
            },
            device_type: 0,
            vendor: String::new(),
            product: String::new(),
            revision: String::new(),
            serial: text(&dev.serial_num[..usize::from(dev.serial_num_len)]),
            peripherals: self.peripherals()?,
            controller: format!("{}{}", c_text(&inquiry.dev_name), inquiry.unit_number),
            maxio: self.maxio()?,
        };
        match identity.protocol {
            Protocol::Scsi => {
                // SAFETY: plain bytes, longer than the standard data's strings.
                let data: &[u8; 36] = unsafe { &*(&raw const dev.inq_data).cast() };
                identity.device_type = data[0] & 0x1f;
                identity.vendor = text(&data[8..16]);
                identity.product = text(&data[16..32]);
                identity.revision = text(&data[32..36]);
            }
            Protocol::Ata => {
                // CAM keeps the strings in the order of their bytes, unlike the device.
                // SAFETY: plain bytes, 512 of them.
                let data: &[u8; 512] = unsafe { &*(&raw const dev.ident_data).cast() };
                identity.product = text(&data[54..94]);
                identity.revision = text(&data[46..54]);
                if identity.serial.is_empty() {
                    identity.serial = text(&data[20..40]);
                }
            }
            Protocol::Nvme => {
                if let Ok(data) = self.advanced_info(sys::CDAI_TYPE_NVME_CNTRL, 4096) {
                    identity.serial = text(&data[4..24]);
                    identity.product = text(&data[24..64]);
                    identity.revision = text(&data[64..72]);
                }
            }
            Protocol::Other(_) => {}
        }
        Ok(identity)
    }

    /// XPT_DEV_ADVINFO: what CAM keeps of a device.
    fn advanced_info(&self, kind: u32, len: usize) -> Result<Buffer, Error> {
        let mut buffer = self.buffer(len)?;
        let at = buffer.address() as *mut u8;
        let ccb = self
            .open
            .immediate(sys::XPT_DEV_ADVINFO, Some(&mut buffer), |ccb| {
                // SAFETY: a union of plain data.
                let info = unsafe { &mut ccb.cdai };
                info.ccb_h.flags = sys::CAM_DIR_IN;
                info.buftype = kind;
                (info.bufsiz, info.buf) = (len as i64, at);
            });
        let ccb = ccb.map_err(|errno| self.open.error("device information", errno))?;
        // SAFETY: what the opcode says.
        if unsafe { ccb.ccb_h.status } & sys::CAM_STATUS_MASK == sys::CAM_REQ_CMP {
            Ok(buffer)
        } else {
            Err(self.open.error("device information", Errno::EOPNOTSUPP))
        }
    }

    /// XPT_GDEVLIST: the names of the peripherals on the device.
    ///
    /// # Errors
    /// ENXIO.
    pub fn peripherals(&self) -> Result<Vec<String>, Error> {
        let (mut index, mut generation) = (0, 0);
        let mut names = Vec::new();
        // As many as there may be, should the list change for ever.
        for _ in 0..1000 {
            let ccb = self
                .open
                .immediate(sys::XPT_GDEVLIST, None, |ccb| {
                    ccb.cgdl.index = index;
                    ccb.cgdl.generation = generation;
                })
                .map_err(|errno| self.open.error("list of peripherals", errno))?;
            // SAFETY: what the opcode says.
            let list = unsafe { ccb.cgdl };
            match list.status {
                sys::CAM_GDEVLIST_LIST_CHANGED => {
                    names.clear();
                    (index, generation) = (0, list.generation);
                    continue;
                }
                sys::CAM_GDEVLIST_ERROR => break,
                _ => {}
            }
            let name = c_text(&list.periph_name);
            if !name.is_empty() {
                names.push(format!("{name}{}", list.unit_number));
            }
            if list.status != sys::CAM_GDEVLIST_MORE_DEVS || list.index == index {
                break;
            }
            (index, generation) = (list.index, list.generation);
        }
        Ok(names)
    }

    /// Sends a command and waits for it (CAMIOCOMMAND): the command, with its
    /// data, and the bytes that were moved, or why it failed.
    ///
    /// # Errors
    /// The driver's: E2BIG (longer than it takes), EINVAL, EPERM, ENXIO.
    #[allow(clippy::type_complexity)]
    pub fn run(&self, command: Command) -> Result<(Command, Result<usize, CommandError>), Error> {
        // SAFETY: plain data.
        let mut ccb: sys::ccb = unsafe { core::mem::zeroed() };
        command.fill(&mut ccb, 0);
        let ccb = self
            .open
            .call(sys::QPC_CAMIOCOMMAND, ccb)
            .map_err(|errno| self.open.error("command", errno))?;
        let outcome = command.outcome(&ccb);
        Ok((command, outcome))
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

fn outstanding(entry: &sys::qpass_outstanding) -> Outstanding {
    let len = match entry.func_code {
        sys::XPT_SCSI_IO => usize::from(entry.cdb_len).min(16),
        _ => 16,
    };
    Outstanding {
        open: entry.open,
        number: entry.number,
        pid: entry.pid,
        state: match u32::from(entry.state) {
            sys::QPASS_STATE_QUEUED => State::Queued,
            sys::QPASS_STATE_SENT => State::Sent,
            _ => State::Done,
        },
        age: Duration::from_nanos(entry.age),
        func_code: entry.func_code,
        command: entry.cdb[..len].to_vec(),
        length: entry.length,
        reads: u32::from(entry.direction) & sys::QPASS_DIRECTION_IN != 0,
        writes: u32::from(entry.direction) & sys::QPASS_DIRECTION_OUT != 0,
        tag: entry.tag,
    }
}

/// The nodes of qpass(4): `qpassN`, or, where it stands in for pass(4), those of
/// `passN` that are its.
///
/// # Errors
/// Of reading `/dev`.
pub fn own_nodes(kernel: &Arc<dyn Kernel>) -> Result<Vec<String>, Error> {
    let own = nodes(kernel, "qpass")?;
    if !own.is_empty() {
        return Ok(own);
    }
    let is_own = |name: &String| Device::open(kernel, name).is_ok_and(|d| d.is_qpass());
    let theirs = nodes(kernel, "pass")?;
    Ok(theirs.into_iter().filter(is_own).collect())
}

/// The nodes of a driver, `qpass` or `pass`, in the order of their numbers.
///
/// # Errors
/// Of reading `/dev`.
pub fn nodes(kernel: &Arc<dyn Kernel>, driver: &str) -> Result<Vec<String>, Error> {
    let names = kernel.nodes().map_err(|errno| Error {
        what: "/dev".into(),
        doing: "read",
        errno,
    })?;
    let unit = |name: &String| name.strip_prefix(driver)?.parse::<u32>().ok();
    let mut found: Vec<_> = names
        .into_iter()
        .filter_map(|name| Some((unit(&name)?, name)))
        .collect();
    found.sort();
    Ok(found.into_iter().map(|(_, name)| name).collect())
}
