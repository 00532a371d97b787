//! A unit: the periph that the driver has on one device, from AC_FOUND_DEVICE
//! to its last reference.

use crate::{
    buffer::{MAX_CHUNK, Zones},
    ioctl::{self, Field, Longest, Operation},
    kpi::{
        ccb::{self, Ccb, Mapped, OwnCcb, Recovery, StartCcb},
        cdev::{DevSw, Device, Ioctl, Node, Thread},
        devstat::DevStat,
        driver::{self, Driver, Routines},
        errno::{EINVAL, ENOENT, ENOTTY, ENXIO, EPERM, Result},
        fifo::Fifo,
        knlist::Knote,
        periph::{DeviceCell, Held, PHYSPATH, Periph, PeriphRef},
        print,
        shared::Shared,
        task::{OnTaskqueueThread, run_later},
        zone::ZoneBox,
    },
    module, notify,
    queue::Open,
    request::Request,
};
use core::{
    ffi::{CStr, c_int, c_void},
    ptr::NonNull,
};
use sys_bindings as sys;

/// The driver's name, and its nodes'.
pub const NAME: &CStr = c"qpass";
/// The same, where it stands in for pass(4).
pub const REPLACED: &CStr = c"pass";

/// CAM's record of the driver.
pub static DRIVER: Driver = Driver::new(NAME, init_entry, deinit_entry);
/// devfs(5)'s record of the driver.
pub static DEVSW: DevSw = DevSw::new::<Qpass>();

static ROUTINES: Routines = Routines {
    ctor: ctor_entry,
    oninvalidate: oninvalidate_entry,
    dtor: dtor_entry,
    start: start_entry,
    async_event: async_entry,
};

/// What the driver keeps of a device.
pub struct Unit {
    maxio: u32,
    devstat: DevStat,
    state: DeviceCell<State>,
}

struct State {
    /// Requests that wait for CAM to have a CCB, of all opens.
    queued: Fifo<ZoneBox<Request>>,
    node: Option<Node>,
    gone: bool,
    opens: u32,
    zones: Option<Shared<Zones>>,
}

impl Unit {
    /// Attaches to a device. The lock is dropped and taken again.
    fn attach(periph: &Periph, held: &mut Held<'_>) -> Result {
        // The node's, and until there is one, what keeps the periph here if
        // the device leaves while the lock is dropped.
        let node_ref = periph.acquire()?;
        let made = match Self::set_up(periph, held) {
            // make_dev_s(9) sleeps.
            Ok(()) => held.unlocked(|| Node::make(&DEVSW, DRIVER.name(), node_ref)),
            Err(errno) => Err((errno, node_ref)),
        };
        match made {
            Ok(node) => {
                let unit = periph.softc::<Unit>().ok_or(ENXIO)?;
                let state = unit.state.get(held);
                if state.gone {
                    // It left while the node was made: nobody else knew it.
                    node.destroy();
                    // Cannot fail: nothing is allocated to deregister.
                    let _ = held.register_async(0, async_entry);
                } else {
                    state.node = Some(node);
                    Self::alias_later(periph, held);
                }
                Ok(())
            }
            Err((errno, node_ref)) => {
                // A failed constructor's periph is freed by its caller, with
                // whatever references it has; giving one back would free it
                // under the caller's feet.
                core::mem::forget(node_ref);
                // Cannot fail: nothing is allocated to deregister.
                let _ = held.register_async(0, async_entry);
                Err(errno)
            }
        }
    }

    fn set_up(periph: &Periph, held: &mut Held<'_>) -> Result {
        // From here on the device may leave at any time.
        held.register_async(sys::AC_LOST_DEVICE | sys::AC_ADVINFO_CHANGED, async_entry)?;
        let inq = held.path_inq();
        let maxio = match inq.maxio {
            0 => sys::DFLTPHYS,
            maxio => maxio,
        };
        // devstat_new_entry(9) sleeps.
        let devstat =
            held.unlocked(|| DevStat::new(DRIVER.name(), periph.unit_number(), inq.devstat_type));
        let state = State {
            queued: Fifo::new(),
            node: None,
            gone: periph.is_invalid(held),
            opens: 0,
            zones: None,
        };
        periph.attach_softc(
            Unit {
                maxio,
                devstat,
                state: DeviceCell::new(periph, state),
            },
            held,
        )
    }

    /// The device is going: no new call gets in.
    fn invalidate(&self, held: &mut Held<'_>) {
        // Cannot fail: nothing is allocated to deregister.
        let _ = held.register_async(0, async_entry);
        let state = self.state.get(held);
        state.gone = true;
        if let Some(node) = state.node.take() {
            node.destroy();
        }
    }

    /// Has the node's alias by physical path made, or made anew.
    fn alias_later(periph: &Periph, held: &mut Held<'_>) {
        let Ok(periph) = periph.acquire() else {
            return;
        };
        if let Err((errno, periph)) = run_later(periph, Self::alias) {
            let unit = periph.unit_number();
            print::warn(unit, c"no alias by physical path, errno", errno.get());
            periph.release_locked(held);
        }
    }

    /// On `taskqueue_thread`.
    fn alias(periph: PeriphRef, here: OnTaskqueueThread) {
        let mut buffer = [0; PHYSPATH];
        let mut held = periph.lock();
        let Some(unit) = periph.softc::<Unit>() else {
            return;
        };
        let Some(path) = held.physpath(&mut buffer) else {
            return;
        };
        let Some(node) = &unit.state.get(&mut held).node else {
            return;
        };
        let alias = node.alias();
        let made = held.unlocked(|| alias.make(path, &here));
        if let Some(node) = &mut unit.state.get(&mut held).node {
            node.set_alias(made);
        }
    }

    /// The longest runs of data that the device and this driver take.
    pub fn longest(&self) -> Longest {
        Longest {
            device: self.maxio,
            chunk: MAX_CHUNK,
        }
    }

    /// Counts an open.
    ///
    /// # Errors
    /// `ENXIO`: the device is gone.
    pub fn opened(&self, held: &mut Held<'_>) -> Result {
        let state = self.state.get(held);
        if state.gone {
            return Err(ENXIO);
        }
        state.opens += 1;
        Ok(())
    }

    /// Takes an open off; the last one takes the zones along.
    pub fn closed(&self, held: &mut Held<'_>) {
        let state = self.state.get(held);
        state.opens -= 1;
        if state.opens == 0 {
            state.zones = None;
        }
    }

    /// The device's zones, made now if there are none. Sleeps.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn zones(&self, periph: &Periph) -> Result<Shared<Zones>> {
        if let Some(zones) = &self.state.get(&mut periph.lock()).zones {
            return Ok(zones.clone());
        }
        // Two first requests may both get here; one set is thrown away.
        let fresh = Shared::new(Zones::create()?);
        let mut held = periph.lock();
        Ok(self.state.get(&mut held).zones.get_or_insert(fresh).clone())
    }

    /// Takes back the requests of `open` that were not sent yet.
    pub fn cancel_queued(
        &self,
        held: &mut Held<'_>,
        open: &Shared<Open>,
    ) -> Fifo<ZoneBox<Request>> {
        self.state
            .get(held)
            .queued
            .take_if(|request| Shared::ptr_eq(request.open(), open))
    }

    /// Queues a request, or answers it at once.
    ///
    /// # Errors
    /// `ENXIO`: the device is gone.
    fn submit(&self, mut request: ZoneBox<Request>) -> Result {
        let open = request.open().clone();
        let mut held = open.periph().lock();
        if self.state.get(&mut held).gone {
            drop(held);
            return Err(ENXIO);
        }
        if request.is_immediate() {
            let priority = request.priority();
            request.ccb.setup(priority, &mut held);
            held.action(&mut request.ccb);
            drop(held);
            open.queue.complete(request);
        } else {
            let priority = request.priority();
            self.state.get(&mut held).queued.push(request);
            held.schedule(priority);
        }
        Ok(())
    }

    /// CAM has a CCB: sends the request that waited longest.
    fn start(&self, held: &mut Held<'_>, mut start: StartCcb) {
        let Some(mut request) = self.state.get(held).queued.pop() else {
            held.release_ccb(start);
            return;
        };
        request.started = Some(self.devstat.start());
        start.merge(&request.ccb);
        start.set_done(request.into_raw().cast(), done_entry);
        start.send(held);
        if !self.state.get(held).queued.is_empty() {
            held.schedule(sys::QPC_CAM_PRIORITY_NORMAL);
        }
    }

    /// A sent CCB has completed: the request is done, or on its way again.
    fn done(&self, held: &mut Held<'_>, mut start: StartCcb, mut request: ZoneBox<Request>) {
        let status = start.ccb().hdr().status;
        if status & sys::CAM_STATUS_MASK != sys::CAM_REQ_CMP {
            if request.open().queue.is_closed() {
                start.release_frozen(held);
            } else if let Recovery::Resent = start.recover(held) {
                // The CCB carries the request's address still.
                let _ = request.into_raw();
                return;
            }
        }
        request.ccb.take_result(start.ccb());
        held.release_ccb(start);
        if let Some(started) = &request.started {
            let tag = request.ccb.tag_type();
            self.devstat.end(started, request.moved(), tag);
        }
        let queue = request.open().queue.clone();
        queue.complete(request);
    }

    /// CAMIOCOMMAND. Sleeps until the command is done.
    ///
    /// # Errors
    /// `EACCES`: the data is not the process's memory; `EFAULT`: nor is the
    /// CDB, or not any more; `EINVAL`, `ENODEV`: see [`Operation::parse`];
    /// `E2BIG`: the transfer is longer than the device takes; `ENXIO`: the
    /// device is gone.
    fn command(&self, periph: &Periph, ccb: &mut Ccb) -> Result {
        let operation = Operation::parse(&ccb.fields())?;
        self.longest().check_synchronous(&operation)?;
        let saved = ccb.save();
        let priority = ioctl::priority(ccb.hdr().pinfo.priority);
        let mut cdb = [0; u8::MAX as usize];
        if ccb.has(Field::Scsi) {
            Self::copyin_cdb(ccb, &mut cdb)?;
        }
        ccb.clear_physical();
        let mapped = if operation.has_data() {
            Some(Mapped::map(ccb, self.maxio)?)
        } else {
            ccb.clear_virtual();
            None
        };
        let ran = self.run(periph, ccb, operation, priority);
        let unmapped = mapped.map_or(Ok(()), |mapped| mapped.unmap(ccb));
        ccb.restore(&saved);
        ran.and(unmapped)
    }

    fn run(&self, periph: &Periph, ccb: &mut Ccb, operation: Operation, priority: u32) -> Result {
        let mut own = operation.is_immediate().then(OwnCcb::alloc);
        let mut held = periph.lock();
        if self.state.get(&mut held).gone {
            return Err(ENXIO);
        }
        match &mut own {
            None => {
                let mut start = held.getccb(priority);
                start.merge(ccb);
                ccb::run(start.ccb_mut(), &self.devstat, &mut held);
                ccb.take_result(start.ccb());
                held.release_ccb(start);
            }
            Some(own) => {
                let own = own.ccb_mut();
                own.take_request(ccb);
                own.setup(priority, &mut held);
                held.action(own);
                ccb.take_result(own);
            }
        }
        Ok(())
    }

    /// The synchronous call takes a CDB of any length by pointer.
    fn copyin_cdb(ccb: &mut Ccb, cdb: &mut [u8; u8::MAX as usize]) -> Result {
        let len = usize::from(ccb.csio().cdb_len);
        if ccb.hdr().flags & sys::CAM_CDB_POINTER != 0 {
            ccb.cdb_pointer().copyin(&mut cdb[..len])?;
            ccb.set_cdb_pointer(cdb);
        } else if len > sys::IOCDBLEN as usize {
            return Err(EINVAL);
        }
        Ok(())
    }
}

/// `/dev/qpassN`.
pub struct Qpass;

/// What an open file holds: dropping it closes the open.
pub struct File(Shared<Open>);

impl Drop for File {
    fn drop(&mut self) {
        Open::close(&self.0);
    }
}

impl Device for Qpass {
    const NAME: &'static CStr = NAME;
    type Open = File;

    /// # Errors
    /// `ENXIO`: the device or the driver is going; `EPERM`: the securelevel is
    /// above 1, or not both FREAD and FWRITE; `EINVAL`: O_NONBLOCK.
    fn open(periph: &Periph, flags: c_int, thread: Thread<'_>) -> Result<File> {
        const BOTH: c_int = (sys::FREAD | sys::FWRITE) as c_int;
        let module_use = module::begin_use()?;
        let periph = periph.acquire()?;
        thread.securelevel_gt(1)?;
        if flags & BOTH != BOTH {
            return Err(EPERM);
        }
        if flags & sys::O_NONBLOCK as c_int != 0 {
            return Err(EINVAL);
        }
        Ok(File(Open::new(periph, module_use)?))
    }

    /// # Errors
    /// `ENOTTY`: not an ioctl of this driver, or a queued one from a 32-bit
    /// process; `ENOENT`: CAMIOGET with nothing done; else see
    /// [`Request::from_user`], [`Request::reap`], and, for CAMIOCOMMAND, `EACCES`,
    /// `E2BIG` and `EINVAL` as pass(4).
    fn ioctl(file: &File, mut call: Ioctl<'_>, thread: Thread<'_>) -> Result {
        let open = &file.0;
        match ioctl::Request::parse(call.cmd()) {
            ioctl::Request::Command => {
                let ccb = call.ccb().ok_or(ENOTTY)?;
                open.unit()?.command(open.periph(), ccb)
            }
            ioctl::Request::Other => open.periph().lock().ioctl(call),
            _ if thread.is_32bit() => Err(ENOTTY),
            ioctl::Request::Queue => {
                let request = Request::from_user(open, call.pointer().ok_or(ENOTTY)?)?;
                open.unit()?.submit(request)
            }
            ioctl::Request::Get => {
                let to = call.pointer().ok_or(ENOTTY)?;
                let mut request = open.queue.take().ok_or(ENOENT)?;
                request
                    .reap(to)
                    .inspect_err(|_| open.queue.complete(request))
            }
        }
    }

    fn poll(file: &File, events: c_int, thread: Thread<'_>) -> c_int {
        notify::poll(&file.0.queue, events, thread)
    }

    fn kqfilter(file: &File, knote: Knote<'_>) -> Result {
        notify::kqfilter(&file.0.queue, knote)
    }
}

/// CAM is up: hear of every device there is, and of every one that comes.
unsafe extern "C" fn init_entry() {
    module::started(driver::register_global_async(
        sys::AC_FOUND_DEVICE,
        async_entry,
    ));
}

/// periphdriver_unregister(9): the module lets every unit go.
unsafe extern "C" fn deinit_entry() -> c_int {
    crate::kpi::errno::to_c(module::detach_all(async_entry))
}

/// AC_FOUND_DEVICE without a periph, AC_LOST_DEVICE with one.
unsafe extern "C" fn async_entry(
    arg: *mut c_void,
    code: u32,
    path: *mut sys::cam_path,
    data: *mut c_void,
) {
    if code == sys::AC_ADVINFO_CHANGED {
        if data as usize == sys::CDAI_TYPE_PHYS_PATH as usize {
            // SAFETY: registered with the periph as argument; CAM calls with
            // the device lock held.
            let (periph, mut held) = unsafe {
                let periph = Periph::from_raw(arg.cast());
                (periph, periph.locked())
            };
            Unit::alias_later(periph, &mut held);
        }
        return;
    }
    if code != sys::AC_FOUND_DEVICE {
        // SAFETY: registered with the periph as argument.
        unsafe { driver::default_async(arg, code, path, data) };
        return;
    }
    if data.is_null() || module::is_unloading() {
        return;
    }
    // SAFETY: the callback's own arguments.
    if let Err(status) = unsafe { DRIVER.attach(&ROUTINES, path, data) } {
        print::warn(
            0,
            c"cannot attach to a new device, CAM status",
            status as c_int,
        );
    }
}

/// cam_periph_alloc(9) has made a periph; the device lock is held.
unsafe extern "C" fn ctor_entry(
    periph: *mut sys::cam_periph,
    _arg: *mut c_void,
) -> sys::cam_status {
    // SAFETY: CAM's own arguments, the lock held throughout.
    let (periph, mut held) = unsafe {
        let periph = Periph::from_raw(periph);
        (periph, periph.locked())
    };
    match Unit::attach(periph, &mut held) {
        Ok(()) => sys::CAM_REQ_CMP,
        Err(errno) => {
            print::warn(periph.unit_number(), c"cannot attach, errno", errno.get());
            // SAFETY: nobody was told of the unit, or not any more.
            drop(unsafe { periph.take_softc::<Unit>() });
            sys::CAM_REQ_CMP_ERR
        }
    }
}

/// The device lock is held.
unsafe extern "C" fn oninvalidate_entry(periph: *mut sys::cam_periph) {
    // SAFETY: CAM's own argument, the lock held throughout.
    let (periph, mut held) = unsafe {
        let periph = Periph::from_raw(periph);
        (periph, periph.locked())
    };
    if let Some(unit) = periph.softc::<Unit>() {
        unit.invalidate(&mut held);
    }
}

/// The last reference has gone; the device lock is held.
unsafe extern "C" fn dtor_entry(periph: *mut sys::cam_periph) {
    // SAFETY: with no reference to the periph left, no call and no request can
    // have one to the unit.
    drop(unsafe { Periph::from_raw(periph).take_softc::<Unit>() });
}

/// CAM has a CCB for this periph; the device lock is held.
unsafe extern "C" fn start_entry(periph: *mut sys::cam_periph, ccb: *mut sys::ccb) {
    // SAFETY: CAM's own arguments, the lock held throughout.
    let (periph, mut held, start) = unsafe {
        let periph = Periph::from_raw(periph);
        (periph, periph.locked(), StartCcb::from_raw(ccb))
    };
    match periph.softc::<Unit>() {
        Some(unit) => unit.start(&mut held, start),
        None => held.release_ccb(start),
    }
}

/// A CCB that [`Unit::start`] sent has completed; the device lock is held.
unsafe extern "C" fn done_entry(periph: *mut sys::cam_periph, ccb: *mut sys::ccb) {
    // SAFETY: CAM's own arguments, the lock held throughout; the owner is the
    // request that start() gave to the CCB, back once for every completion.
    let (periph, mut held, start, request) = unsafe {
        let periph = Periph::from_raw(periph);
        let start = StartCcb::from_raw(ccb);
        let request = ZoneBox::from_raw(NonNull::new_unchecked(start.owner().cast::<Request>()));
        (periph, periph.locked(), start, request)
    };
    match periph.softc::<Unit>() {
        Some(unit) => unit.done(&mut held, start, request),
        // A request holds its open, and that the periph and its unit.
        None => unreachable!(),
    }
}
