//! CAM's transport layer and periph library, as far as a periph driver sees
//! them: devices and their locks, CCBs and their slots, references, events.
//!
//! The order of calls and the locks held in them are those of FreeBSD 14.2,
//! its periph driver list that ends one entry too late included.
//!
//! | file | part of CAM |
//! | --- | --- |
//! | `mod` | devices, paths, events, xpt_action(9), periphs, ioctls |
//! | `queue` | the send queues: freezes, openings, high power |
//! | `error` | cam_periph_error(9) and its recovery |
//! | `dev_match` | XPT_DEV_MATCH in steps, by another process |
//! | `neighbour` | a periph like da(4) on every device |
//! | `noise` | what others print because of the module |
//! | `script` | a SIM that ends commands as a test says |

mod dev_match;
mod error;
mod neighbour;
mod noise;
mod queue;
mod script;

pub use dev_match::{Step, Walk, step_in_destructor, stepped};
pub(crate) use error::{cam_periph_error, cam_release_devq};
pub use neighbour::{all_neighbours_read, neighbour_reads};
pub use noise::{Noise, take_noise};
pub use queue::{
    Counts, counts, follow_sim_priv, freeze, freeze_simq, had_words, hold_door, last_sent,
    limit_sim, open_door, overtake_abort, overtaken_waits, release_simq, say_nothing, unfreeze,
    wait_at_door,
};
pub(crate) use queue::{camq_insert, camq_remove, xpt_freeze_devq, xpt_release_devq};
pub use script::{Ending, Scripted};

use crate::{
    count,
    devfs::wait_until,
    fault,
    lock::{self, mtx_assert_owned, mtx_lock, mtx_unlock},
    memory, sys,
    thread::broken,
    user,
    worker::Worker,
};
use std::{
    collections::HashSet,
    ffi::{CStr, c_char, c_int, c_void},
    sync::{
        Arc, LazyLock, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering},
    },
};

/// A host adapter with one device behind it.
pub trait Sim: Send + Sync {
    /// Takes a command; it is completed later, from another thread.
    fn start(&self, ccb: *mut sys::ccb);
    /// Gives a command back that was not carried out yet, if it still can.
    fn abort(&self, ccb: *mut sys::ccb) -> bool;
    /// Answers an XPT_ABORT whose outcome is `status` in its own way, or never;
    /// without one it is answered a little later.
    fn answers_abort(&self, _ccb: *mut sys::ccb, _status: sys::cam_status) -> bool {
        false
    }
    /// Identify Namespace data, of an NVMe device.
    fn namespace(&self) -> Option<Vec<u8>> {
        None
    }
    /// Identify Controller data, of an NVMe device.
    fn controller(&self) -> Option<Vec<u8>> {
        None
    }
    /// IDENTIFY DEVICE data, of an ATA disk.
    fn identify(&self) -> Option<Vec<u8>> {
        None
    }
    /// What the SIM says of itself.
    fn path_inq(&self) -> PathInq;
    /// Commands that it takes at a time.
    fn openings(&self) -> usize;
    /// The device's standard INQUIRY data.
    fn inquiry(&self) -> [u8; 36];
    /// On a bus of ATA's, word 0 of its IDENTIFY (PACKET) DEVICE data: a disk's.
    fn config(&self) -> u16 {
        0x0040
    }
    /// Its driver's name.
    fn name(&self) -> &str {
        "ram"
    }
    /// Its serial number.
    fn serial(&self) -> &str {
        ""
    }
    /// The device is pulled out: every command fails from now on.
    fn pull(&self);
    /// Commands that it has slots for, of one device: cam_sim_alloc(9).
    fn slots(&self) -> usize {
        256
    }
    /// As many as this at a time, of all its devices.
    fn sim_openings(&self) -> usize {
        1 << 16
    }
    /// Whether it answers a read of its first block as a disk does.
    fn is_ordinary(&self) -> bool {
        true
    }
    /// Makes the CCB, which is zeroes and a header, a read of the device's
    /// first block into `block`.
    fn build_read(&self, ccb: &mut sys::ccb, block: &mut [u8; 512]) {
        if self.path_inq().is_ata() && longest_packet(self.config()) == 0 {
            neighbour::read_dma(ccb, block);
        } else {
            neighbour::read_10(ccb, block);
        }
    }
}

/// What a path inquiry tells.
pub struct PathInq {
    /// The largest transfer in bytes, 0 for none said.
    pub maxio: u32,
    /// `PIM_` flags.
    pub hba_misc: u32,
    /// `XPORT_`.
    pub transport: u32,
}

impl PathInq {
    /// The bus is ATA's.
    fn is_ata(&self) -> bool {
        [sys::XPORT_ATA, sys::XPORT_SATA].contains(&self.transport)
    }
}

type AsyncFn = unsafe extern "C" fn(*mut c_void, u32, *mut sys::cam_path, *mut c_void);
type DoneFn = unsafe extern "C" fn(*mut sys::cam_periph, *mut sys::ccb);

#[derive(Clone, Copy)]
struct Listener {
    callback: AsyncFn,
    arg: usize,
    events: u32,
}

impl Listener {
    /// CAM tells listeners apart by callback and argument.
    fn same(&self, other: &Self) -> bool {
        std::ptr::fn_addr_eq(self.callback, other.callback) && self.arg == other.arg
    }
}

/// A device of the EDT.
pub struct Device {
    /// Bus, target and LUN.
    pub id: (u32, u32, u64),
    mtx: *mut sys::mtx,
    sim: Option<Arc<dyn Sim>>,
    /// The SIM's queue, which its other devices have too.
    devq: Arc<queue::Devq>,
    ccbq: Mutex<queue::Ccbq>,
    structs: OnceLock<queue::Structs>,
    door: queue::Door,
    /// Paths that refer to it.
    paths: AtomicU32,
    state: Mutex<State>,
    /// Of periphs, that are running.
    callbacks: AtomicU32,
}

// SAFETY: the raw mutex is made for sharing.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

#[derive(Default)]
struct State {
    configured: bool,
    listeners: Vec<Listener>,
    periphs: Vec<usize>,
    /// Of `periphs`: how often it has changed.
    generation: u32,
    /// Periphs of drivers that this kernel has by name only, as `("da", 0)`.
    named: Vec<(String, u32)>,
    physpath: Vec<u8>,
    /// XPT_IMMEDIATE_NOTIFY CCBs, which wait for an initiator that never comes.
    notifies: Vec<usize>,
    /// Probes that were asked for and have not ended (scsi_xpt.c, `request_ccbs`): the
    /// first is under way.
    probes: u32,
}

/// What a `struct cam_path *` points at here.
#[repr(C)]
struct Path {
    /// What C code follows.
    cam: sys::cam_path,
    device: Arc<Device>,
    periph: *mut sys::cam_periph,
}

struct Edt {
    /// xpt_lock_buses().
    topology: *mut sys::mtx,
    /// The XPT's own device, which every wildcard path names.
    xpt: Arc<Device>,
    devices: Mutex<Vec<Arc<Device>>>,
    drivers: Mutex<Drivers>,
}
// SAFETY: the raw mutex is made for sharing.
unsafe impl Send for Edt {}
// SAFETY: as above.
unsafe impl Sync for Edt {}

/// `periph_drivers`: the array, and how many of it count.
#[derive(Default)]
struct Drivers {
    array: Vec<usize>,
    count: usize,
}

static EDT: LazyLock<Edt> = LazyLock::new(|| Edt {
    topology: lock::new_mutex(c"XPT topology lock"),
    xpt: Arc::new(Device {
        id: (
            sys::QPC_CAM_XPT_PATH_ID,
            sys::QPC_CAM_TARGET_WILDCARD,
            sys::QPC_CAM_LUN_WILDCARD,
        ),
        mtx: lock::new_mutex(c"XPT device lock"),
        sim: None,
        devq: Arc::default(),
        ccbq: Mutex::default(),
        structs: OnceLock::new(),
        door: queue::Door::default(),
        paths: AtomicU32::new(0),
        state: Mutex::default(),
        callbacks: AtomicU32::new(0),
    }),
    devices: Mutex::default(),
    drivers: Mutex::default(),
});

/// The variable `periph_drivers`, in memory that the module reaches.
pub static PERIPH_DRIVERS: AtomicPtr<*mut *mut sys::periph_driver> =
    AtomicPtr::new(core::ptr::null_mut());

/// Gives the variable its place, and its value.
pub(crate) fn place_periph_drivers(variable: usize) {
    PERIPH_DRIVERS.store(variable as *mut _, Ordering::SeqCst);
    let mut drivers = EDT.drivers.lock().unwrap();
    begin(&mut drivers);
    publish(&mut drivers);
}

/// cam_xpt.c and scsi_xpt.c: drivers that every kernel has.
fn begin(drivers: &mut Drivers) {
    if !drivers.array.is_empty() {
        return;
    }
    for name in [c"xpt", c"probe"] {
        // SAFETY: plain data, of a driver without routines.
        let mut driver: sys::periph_driver = unsafe { core::mem::zeroed() };
        driver.driver_name = name.as_ptr().cast_mut();
        let driver: *mut _ = Box::leak(Box::new(driver));
        drivers.array.push(driver as usize);
    }
    drivers.count = drivers.array.len();
    drivers.array.push(0);
}

fn publish(drivers: &mut Drivers) {
    let variable = PERIPH_DRIVERS.load(Ordering::SeqCst);
    if variable.is_null() {
        broken("periph_drivers has no place");
    }
    // SAFETY: the loader made the variable; the array lives in a static.
    unsafe { *variable = drivers.array.as_mut_ptr().cast() };
}

/// Drivers on CAM's list, walked as CAM walks it: until NULL.
pub fn listed_drivers() -> Vec<usize> {
    let drivers = EDT.drivers.lock().unwrap();
    drivers
        .array
        .iter()
        .copied()
        .take_while(|d| *d != 0)
        .collect()
}

impl Device {
    fn lock(&self, what: &str) {
        mtx_lock(self.mtx, what);
    }
    fn unlock(&self, what: &str) {
        mtx_unlock(self.mtx, what);
    }

    fn listen(&self, listener: Listener) {
        let mut state = self.state.lock().unwrap();
        state.listeners.retain(|l| !l.same(&listener));
        if listener.events != 0 {
            state.listeners.push(listener);
        }
    }

    /// Whether any callback is registered.
    fn has_listeners(&self) -> bool {
        !self.state.lock().unwrap().listeners.is_empty()
    }

    /// CAM's own structs, as far as the module reads them.
    fn structs(self: &Arc<Self>) -> &queue::Structs {
        self.structs.get_or_init(|| {
            let slots = self.sim.as_ref().map_or(0, |sim| sim.slots());
            queue::Structs::new(self, slots)
        })
    }

    /// Of a device on a bus of ATA's.
    fn ata_config(&self) -> Option<u16> {
        let sim = self.sim.as_ref()?;
        sim.path_inq().is_ata().then(|| sim.config())
    }

    /// Hands a CCB to the SIM, which marks it as its own and has words of its own
    /// in it from then on.
    fn send_to_sim(&self, ccb: *mut sys::ccb) {
        let Some(sim) = &self.sim else {
            broken("a command is sent to a device without a SIM");
        };
        let number = self.door.passed.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the CCB is CAM's until the SIM has it.
        unsafe {
            let hdr = &raw mut (*ccb).ccb_h;
            if (*hdr).func_code == sys::XPT_SCSI_IO {
                // cam_xpt.c, xpt_run_devq(): the device takes tags.
                if (*ccb).csio.tag_action != 0 {
                    (*hdr).flags |= sys::CAM_TAG_ACTION_VALID;
                } else {
                    (*hdr).flags &= !sys::CAM_TAG_ACTION_VALID;
                }
            }
            self.door.flags.store((*hdr).flags, Ordering::SeqCst);
            if !self.door.is_silent.load(Ordering::SeqCst) {
                (*hdr).status |= sys::CAM_SIM_QUEUED;
            }
            if (*hdr).sim_priv.bytes != [0; 16] {
                self.door.had_words.store(true, Ordering::SeqCst);
            }
            (*hdr).sim_priv.entries[0].ptr = (SIM_WORDS | number) as *mut c_void;
        }
        sim.start(ccb);
    }

    /// Waits until whoever is in a callback of the device has returned.
    pub fn wait_returned(&self) {
        let is_over = || self.callbacks.load(Ordering::Acquire) == 0;
        wait_until("every callback has returned", is_over);
    }

    /// Waits until the device has nothing under way, and checks that nothing
    /// of a driver's is left on it.
    pub fn check_idle(&self) {
        queue::check_idle(self);
    }
}

/// What a SIM keeps in its private words looks like an address of the kernel's.
const SIM_WORDS: u64 = 0xffff_fe00_0000_0000;

// ---- paths ----

fn new_path(device: &Arc<Device>, periph: *mut sys::cam_periph) -> *mut sys::cam_path {
    let path = memory::alloc(size_of::<Path>(), "CAM path", sys::M_NOWAIT).cast::<Path>();
    if path.is_null() {
        return core::ptr::null_mut();
    }
    device.paths.fetch_add(1, Ordering::SeqCst);
    // SAFETY: fresh memory of that size.
    unsafe {
        let mut cam: sys::cam_path = core::mem::zeroed();
        (cam.periph, cam.device) = (periph, device.structs().ed);
        path.write(Path {
            cam,
            device: device.clone(),
            periph,
        });
    }
    path.cast()
}

fn free_path(path: *mut sys::cam_path) {
    of(path).device.paths.fetch_sub(1, Ordering::SeqCst);
    // SAFETY: from new_path(), once.
    unsafe { path.cast::<Path>().drop_in_place() };
    memory::dealloc(path.cast(), "CAM path");
}

fn of<'a>(path: *mut sys::cam_path) -> &'a Path {
    // SAFETY: the caller's path is alive.
    unsafe { &*path.cast::<Path>() }
}

fn device_of(ccb: *mut sys::ccb) -> Arc<Device> {
    // SAFETY: a CCB that was set up.
    of(unsafe { (*ccb).ccb_h.path }).device.clone()
}

pub(crate) unsafe extern "C" fn xpt_create_path(
    out: *mut *mut sys::cam_path,
    periph: *mut sys::cam_periph,
    bus: u32,
    target: u32,
    lun: u64,
) -> sys::cam_status {
    let id = (bus, target, lun);
    let device = if id == EDT.xpt.id {
        Some(EDT.xpt.clone())
    } else {
        find_device(id)
    };
    let path = device.map_or(core::ptr::null_mut(), |d| new_path(&d, periph));
    if path.is_null() {
        return sys::CAM_RESRC_UNAVAIL;
    }
    // SAFETY: the caller's place for the result.
    unsafe { *out = path };
    sys::CAM_REQ_CMP
}

pub(crate) unsafe extern "C" fn xpt_free_path(path: *mut sys::cam_path) {
    free_path(path);
}

pub(crate) unsafe extern "C" fn xpt_path_mtx(path: *mut sys::cam_path) -> *mut sys::mtx {
    of(path).device.mtx
}

fn lock_topology() {
    mtx_lock(EDT.topology, "xpt_lock_buses");
}

fn unlock_topology() {
    mtx_unlock(EDT.topology, "xpt_unlock_buses");
}

/// The struct that a driver reads how many commands a SIM takes from.
pub(crate) unsafe extern "C" fn xpt_path_sim(path: *mut sys::cam_path) -> *mut sys::cam_sim {
    of(path).device.structs().sim
}

pub(crate) unsafe extern "C" fn xpt_lock_buses() {
    lock_topology();
}

pub(crate) unsafe extern "C" fn xpt_unlock_buses() {
    unlock_topology();
}

// ---- events ----

struct Event {
    code: u32,
    device: Arc<Device>,
    data: Vec<u64>,
    /// What the argument is, where there is no data.
    value: usize,
    /// What the thread does instead: an XPT_ASYNC CCB of a driver's own.
    work: Option<Box<dyn FnOnce() + Send>>,
}

static EVENTS: Worker<Event> = Worker::new("xpt_async", handle);

fn put_work(work: impl FnOnce() + Send + 'static) {
    EVENTS.put(Event {
        code: 0,
        device: EDT.xpt.clone(),
        data: Vec::new(),
        value: 0,
        work: Some(Box::new(work)),
    });
}

/// Has the event thread do that, as another driver's callback does.
pub fn occupy_event_thread(work: impl FnOnce() + Send + 'static) {
    put_work(work);
}

/// An XPT_ASYNC CCB has come to its turn. It is not touched again once its
/// callback has begun; without CAM_UNLOCKED its path's lock is held.
fn give_back(ccb: usize) {
    let ccb = ccb as *mut sys::ccb;
    let device = device_of(ccb);
    device.lock("xpt_done_process");
    // SAFETY: the driver's CCB, and its path until the callback has run.
    unsafe {
        let done: DoneFn = (*ccb).ccb_h.cbfcnp.expect("cbfcnp");
        done(of((*ccb).ccb_h.path).periph, ccb);
    }
    device.unlock("xpt_done_process");
}

/// Waits until every event has been handled.
pub fn settle() {
    EVENTS.settle();
}

fn handle(mut event: Event) {
    if let Some(work) = event.work.take() {
        return work();
    }
    match event.code {
        sys::AC_CONTRACT => noise::hear_contract(&event.data),
        // scsi_xpt.c, scsi_dev_async(): the device is unconfigured.
        sys::AC_LOST_DEVICE => forget(&event.device),
        _ => {}
    }
    let path = new_path_now(&event.device);
    let data = if event.data.is_empty() {
        event.value as *mut c_void
    } else {
        event.data.as_mut_ptr().cast::<c_void>()
    };
    // The listeners of the device, then those of all devices, each under the
    // lock of the device that the event is of.
    let mut lists = vec![event.device.clone()];
    if !Arc::ptr_eq(&event.device, &EDT.xpt) {
        lists.push(EDT.xpt.clone());
    }
    event.device.lock("xpt_async");
    for list in lists {
        let listeners = list.state.lock().unwrap().listeners.clone();
        for listener in listeners {
            let registered = list
                .state
                .lock()
                .unwrap()
                .listeners
                .iter()
                .any(|l| l.same(&listener));
            if registered && listener.events & event.code != 0 {
                // SAFETY: a registered callback, called as CAM does.
                unsafe {
                    (listener.callback)(listener.arg as *mut c_void, event.code, path, data);
                }
            }
        }
    }
    event.device.unlock("xpt_async");
    free_path(path);
}

fn new_path_now(device: &Arc<Device>) -> *mut sys::cam_path {
    loop {
        // An injected failure is for the module's calls, not for this one.
        let path = new_path(device, core::ptr::null_mut());
        if !path.is_null() {
            return path;
        }
    }
}

/// A `struct ccb_getdev` of a device, as AC_FOUND_DEVICE carries it.
fn getdev(device: &Device) -> Vec<u64> {
    let mut words = vec![0u64; size_of::<sys::ccb_getdev>().div_ceil(8)];
    // SAFETY: plain data of that size.
    fill_getdev(device, unsafe { &mut *words.as_mut_ptr().cast() });
    words
}

/// ata_xpt.c, ata_action(): the longest CDB that gets through.
fn longest_packet(config: u16) -> u8 {
    match u32::from(config) & sys::ATA_PROTO_MASK {
        _ if u32::from(config) == sys::ATA_PROTO_CFA => 0,
        sys::ATA_PROTO_ATAPI_12 => 12,
        sys::ATA_PROTO_ATAPI_16 => 16,
        _ => 0,
    }
}

/// What a device behind a SIM speaks.
fn protocol(sim: &dyn Sim) -> sys::cam_proto {
    match (sim.namespace(), sim.identify()) {
        (Some(_), _) => sys::PROTO_NVME,
        (_, Some(_)) => sys::PROTO_ATA,
        _ => sys::PROTO_SCSI,
    }
}

fn fill_getdev(device: &Device, cgd: &mut sys::ccb_getdev) {
    cgd.ccb_h.status = sys::CAM_REQ_CMP;
    cgd.protocol = device
        .sim
        .as_ref()
        .map_or(sys::PROTO_SCSI, |s| protocol(s.as_ref()));
    if let Some(config) = device.ata_config() {
        cgd.ident_data.config = config;
        if longest_packet(config) == 0 {
            cgd.protocol = sys::PROTO_ATA;
        }
    }
    let inquiry = device.sim.as_ref().map_or([0; 36], |s| s.inquiry());
    // SAFETY: the standard data is shorter than the struct.
    unsafe {
        core::ptr::copy_nonoverlapping(
            inquiry.as_ptr(),
            (&raw mut cgd.inq_data).cast::<u8>(),
            inquiry.len(),
        );
    }
    if let Some(mut identify) = device.sim.as_ref().and_then(|sim| sim.identify()) {
        // ata_param_fixup(): the strings in the order of their letters.
        for text in [20..40, 46..54, 54..94] {
            identify[text]
                .chunks_mut(2)
                .for_each(|word| word.swap(0, 1));
        }
        let room = size_of_val(&cgd.ident_data).min(identify.len());
        // SAFETY: plain data of that size.
        unsafe {
            let to = (&raw mut cgd.ident_data).cast::<u8>();
            core::ptr::copy_nonoverlapping(identify.as_ptr(), to, room);
        }
    }
    let serial = device.sim.as_ref().map_or("", |s| s.serial()).as_bytes();
    cgd.serial_num[..serial.len()].copy_from_slice(serial);
    cgd.serial_num_len = serial.len() as u8;
}

pub(crate) unsafe extern "C" fn xpt_register_async(
    events: c_int,
    callback: Option<AsyncFn>,
    arg: *mut c_void,
    path: *mut sys::cam_path,
) -> sys::cam_status {
    let events = events as u32;
    if events != 0 && fault::REGISTER_ASYNC.fails()
        || path.is_null() && fault::NO_PATHS.load(Ordering::SeqCst)
    {
        return sys::CAM_RESRC_UNAVAIL;
    }
    let listener = Listener {
        callback: callback.expect("a callback"),
        arg: arg as usize,
        events,
    };
    if path.is_null() {
        EDT.xpt.lock("xpt_register_async");
        EDT.xpt.listen(listener);
        EDT.xpt.unlock("xpt_register_async");
    } else {
        mtx_assert_owned(of(path).device.mtx, "xpt_register_async");
        of(path).device.listen(listener);
    }
    if events & sys::AC_FOUND_DEVICE != 0 {
        let devices = EDT.devices.lock().unwrap().clone();
        for device in devices {
            if !device.state.lock().unwrap().configured {
                continue;
            }
            let mut cgd = getdev(&device);
            let path = new_path_now(&device);
            device.lock("xpt_for_all_devices");
            // SAFETY: the callback that was just registered.
            unsafe {
                (listener.callback)(arg, sys::AC_FOUND_DEVICE, path, cgd.as_mut_ptr().cast());
            }
            device.unlock("xpt_for_all_devices");
            free_path(path);
        }
    }
    sys::CAM_REQ_CMP
}

pub(crate) unsafe extern "C" fn xpt_async(code: u32, path: *mut sys::cam_path, arg: *mut c_void) {
    let mut data = Vec::new();
    if code == sys::AC_CONTRACT && !arg.is_null() {
        data = vec![0u64; size_of::<sys::ac_contract>() / 8];
        // SAFETY: the caller's struct ac_contract.
        unsafe { core::ptr::copy_nonoverlapping(arg.cast(), data.as_mut_ptr(), data.len()) };
    }
    put_event(&of(path).device, code, data);
}

// ---- devices ----

fn find_device(id: (u32, u32, u64)) -> Option<Arc<Device>> {
    EDT.devices
        .lock()
        .unwrap()
        .iter()
        .find(|d| d.id == id)
        .cloned()
}

/// Another driver has a periph on the device, of which there is the name.
pub fn name_periph(device: &Device, driver: &str, unit: u32) {
    let mut state = device.state.lock().unwrap();
    state.named.push((driver.into(), unit));
}

/// Puts a device in: its drivers hear of it.
pub fn attach(id: (u32, u32, u64), sim: Arc<dyn Sim>) -> Arc<Device> {
    let shared = EDT.devices.lock().unwrap().iter().find_map(|other| {
        let theirs = other.sim.as_ref()?;
        Arc::ptr_eq(theirs, &sim).then(|| other.devq.clone())
    });
    let device = Arc::new(Device {
        id,
        mtx: lock::new_mutex(c"CAM device lock"),
        devq: shared.unwrap_or_else(|| Arc::new(queue::Devq::new(sim.sim_openings()))),
        ccbq: Mutex::new(queue::Ccbq::new(sim.openings())),
        structs: OnceLock::new(),
        door: queue::Door::default(),
        paths: AtomicU32::new(0),
        sim: Some(sim),
        state: Mutex::new(State {
            configured: true,
            ..State::default()
        }),
        callbacks: AtomicU32::new(0),
    });
    EDT.devices.lock().unwrap().push(device.clone());
    EVENTS.put(Event {
        code: sys::AC_FOUND_DEVICE,
        data: getdev(&device),
        device: device.clone(),
        value: 0,
        work: None,
    });
    device
}

/// Pulls a device out: its commands fail, its drivers hear of it.
pub fn detach(device: &Arc<Device>) {
    forget(device);
    if let Some(sim) = &device.sim {
        sim.pull();
    }
    give_notifies_back(device);
    EVENTS.put(Event {
        code: sys::AC_LOST_DEVICE,
        device: device.clone(),
        data: Vec::new(),
        value: 0,
        work: None,
    });
}

/// The device is not on its bus any more.
fn forget(device: &Arc<Device>) {
    device.state.lock().unwrap().configured = false;
    let mut devices = EDT.devices.lock().unwrap();
    devices.retain(|d| !Arc::ptr_eq(d, device));
}

fn put_event(device: &Arc<Device>, code: u32, data: Vec<u64>) {
    EVENTS.put(Event {
        code,
        device: device.clone(),
        data,
        value: 0,
        work: None,
    });
}

/// The drivers hear that a device has left, which answers still.
pub fn lose(device: &Arc<Device>) {
    put_event(device, sys::AC_LOST_DEVICE, Vec::new());
}

/// The drivers hear of a device as of a new one.
pub fn find(device: &Arc<Device>) {
    // The event that it has left may still be on its way.
    EVENTS.settle();
    device.state.lock().unwrap().configured = true;
    EDT.devices.lock().unwrap().push(device.clone());
    put_event(device, sys::AC_FOUND_DEVICE, getdev(device));
}

/// The SIM gives its XPT_IMMEDIATE_NOTIFY CCBs back.
pub fn give_notifies_back(device: &Device) {
    let notifies = core::mem::take(&mut device.state.lock().unwrap().notifies);
    for ccb in notifies {
        done_with(ccb as *mut sys::ccb, sys::CAM_REQ_ABORTED, false);
    }
}

/// Waits until no periph is on the device.
pub fn wait_free(device: &Device) {
    wait_until("the device has no periph", || {
        device.state.lock().unwrap().periphs.is_empty()
    });
}

// ---- CCBs ----

const CCB: &str = "CAM CCB";

pub(crate) unsafe extern "C" fn xpt_alloc_ccb() -> *mut sys::ccb {
    memory::alloc(size_of::<sys::ccb>(), CCB, sys::M_WAITOK | sys::M_ZERO).cast()
}

pub(crate) unsafe extern "C" fn xpt_free_ccb(ccb: *mut sys::ccb) {
    memory::dealloc(ccb.cast(), CCB);
}

pub(crate) unsafe extern "C" fn xpt_setup_ccb_flags(
    hdr: *mut sys::ccb_hdr,
    path: *mut sys::cam_path,
    priority: u32,
    flags: u32,
) {
    let device = &of(path).device;
    // SAFETY: the caller's CCB.
    unsafe {
        (*hdr).pinfo.priority = priority;
        (*hdr).pinfo.index = sys::CAM_UNQUEUED_INDEX;
        (*hdr).path = path;
        ((*hdr).path_id, (*hdr).target_id, (*hdr).target_lun) = device.id;
        (*hdr).flags = flags;
        (*hdr).xflags = 0;
    }
}

pub(crate) unsafe extern "C" fn xpt_merge_ccb(dst: *mut sys::ccb, src: *mut sys::ccb) {
    let at = size_of::<sys::ccb_hdr>();
    // SAFETY: two whole CCBs.
    unsafe {
        let (d, s) = (&mut (*dst).ccb_h, &(*src).ccb_h);
        d.retry_count = s.retry_count;
        d.func_code = s.func_code;
        d.timeout = s.timeout;
        d.flags = s.flags;
        core::ptr::copy_nonoverlapping(
            src.cast::<u8>().add(at),
            dst.cast::<u8>().add(at),
            size_of::<sys::ccb>() - at,
        );
    }
}

pub(crate) unsafe extern "C" fn xpt_action(ccb: *mut sys::ccb) {
    // SAFETY: the caller's CCB.
    unsafe {
        // The SIM's own words are as in a CCB that CAM has allocated.
        if (*ccb).ccb_h.sim_priv.bytes != [0; 16] || !(*ccb).ccb_h.periph_links.le.le_next.is_null()
        {
            broken("a CCB comes to CAM with a user's words in its header");
        }
        if (*ccb).ccb_h.func_code == sys::XPT_SCSI_IO && bio_word(ccb) != 0 {
            broken("a kernel with BUF_TRACKING would follow a user's word as a struct bio");
        }
        check_payload(ccb);
        action(ccb);
    }
}

/// The word behind `init_id`, which is `csio.bio` in a kernel with BUF_TRACKING:
/// cam_xpt.c, xpt_done(), gives it to biotrack(9).
unsafe fn bio_word(ccb: *mut sys::ccb) -> u64 {
    let at = (core::mem::offset_of!(sys::ccb_scsiio, init_id) + 4).next_multiple_of(8);
    // SAFETY: inside of the union, which is longer than a ccb_scsiio.
    unsafe { ccb.cast::<u8>().add(at).cast::<u64>().read() }
}

/// Ends the process if a payload has what no periph sends: pointers and counts
/// beside those of its data, flags that there are not, lengths beyond the CCB.
///
/// pms(4) follows `smp_request` as a list where the counts say so (agtiapi.c,
/// agtiapi_PrepareSMPSGList()), smartpqi(4) clears `sense_len` bytes from
/// `sense_data` on (smartpqi_cam.c), isp(4) writes through `msg_ptr`
/// (isp_freebsd.c), and `next_ccb` and `req_map` are addresses.
unsafe fn check_payload(ccb: *mut sys::ccb) {
    // SAFETY: the caller's CCB is what its opcode says.
    let spoilt = unsafe {
        match (*ccb).ccb_h.func_code {
            sys::XPT_SCSI_IO | sys::XPT_CONT_TARGET_IO => {
                let io = &(*ccb).csio;
                !io.next_ccb.is_null()
                    || !io.req_map.is_null()
                    || !io.msg_ptr.is_null()
                    || io.msg_len != 0
                    || usize::from(io.sense_len) > size_of::<sys::scsi_sense_data>()
            }
            sys::XPT_ATA_IO => {
                let io = &(*ccb).ataio;
                let known = sys::CAM_ATAIO_48BIT
                    | sys::CAM_ATAIO_FPDMA
                    | sys::CAM_ATAIO_CONTROL
                    | sys::CAM_ATAIO_NEEDRESULT
                    | sys::CAM_ATAIO_DMA;
                !io.next_ccb.is_null()
                    || u32::from(io.cmd.flags) & !known != 0
                    || u32::from(io.ata_flags) & !(sys::ATA_FLAG_AUX | sys::ATA_FLAG_ICC) != 0
            }
            sys::XPT_NVME_IO | sys::XPT_NVME_ADMIN => {
                let io = &(*ccb).nvmeio;
                let entry: &[u8; 64] = &*(&raw const io.cmd).cast();
                // MPTR and DPTR, which nvme(4) fills in.
                !io.next_ccb.is_null() || io.cmd.cid != 0 || entry[16..40] != [0; 24]
            }
            sys::XPT_SMP_IO => {
                let io = &(*ccb).smpio;
                let counts = (io.smp_request_sglist_cnt, io.smp_response_sglist_cnt);
                counts != (0, 0) || io.flags != sys::SMP_FLAG_NONE
            }
            sys::XPT_DEV_ADVINFO => (*ccb).cdai.flags & !sys::CDAI_FLAG_STORE != 0,
            sys::XPT_EN_LUN => broken("target mode is switched, and nobody switches it back"),
            _ => false,
        }
    };
    if spoilt {
        broken("a CCB comes to CAM with what no periph sends in its payload");
    }
}

/// xpt_action(9), also of what CAM sends again, with the words that the SIM has
/// left in it.
unsafe fn action(ccb: *mut sys::ccb) {
    let device = device_of(ccb);
    mtx_assert_owned(device.mtx, "xpt_action");
    // SAFETY: the caller's CCB.
    unsafe {
        (*ccb).ccb_h.status = sys::CAM_REQ_INPROG;
        match (*ccb).ccb_h.func_code {
            sys::XPT_SCSI_IO | sys::XPT_CONT_TARGET_IO => {
                let csio = &mut (*ccb).csio;
                (csio.scsi_status, csio.sense_resid, csio.resid) = (0, 0, 0);
            }
            sys::XPT_ATA_IO => (*ccb).ataio.resid = 0,
            _ => {}
        }
        if (*ccb).ccb_h.func_code == sys::XPT_SCSI_IO
            && let Some(config) = device.ata_config()
            && (*ccb).csio.cdb_len > longest_packet(config)
        {
            // It was not queued, and counts as given back all the same.
            done_with(ccb, sys::CAM_REQ_INVALID, false);
            return;
        }
        match (*ccb).ccb_h.func_code {
            sys::XPT_SCSI_IO
            | sys::XPT_ATA_IO
            | sys::XPT_NVME_IO
            | sys::XPT_NVME_ADMIN
            | sys::XPT_SMP_IO
            | sys::XPT_MMC_IO
            | sys::XPT_MMC_GET_TRAN_SETTINGS
            | sys::XPT_MMC_SET_TRAN_SETTINGS
            | sys::XPT_RESET_DEV
            | sys::XPT_CONT_TARGET_IO => {
                queue::insert(&device, ccb);
            }
            sys::XPT_ASYNC => {
                (*ccb).ccb_h.status = sys::CAM_REQ_CMP;
                let ccb = ccb as usize;
                put_work(move || give_back(ccb));
            }
            sys::XPT_PATH_INQ => {
                let cpi = &mut (*ccb).cpi;
                if let Some(sim) = &device.sim {
                    let inq = sim.path_inq();
                    cpi.version_num = 1;
                    cpi.maxio = inq.maxio;
                    cpi.hba_misc = inq.hba_misc;
                    cpi.transport = inq.transport;
                    cpi.protocol = protocol(sim.as_ref());
                    cpi.dev_name = [0; sys::DEV_IDLEN as usize];
                    for (to, from) in cpi.dev_name.iter_mut().zip(sim.name().bytes()) {
                        *to = from as c_char;
                    }
                    cpi.unit_number = device.id.0;
                }
                cpi.ccb_h.status = sys::CAM_REQ_CMP;
            }
            sys::XPT_GDEV_TYPE => {
                fill_getdev(&device, &mut (*ccb).cgd);
            }
            sys::XPT_NOOP => {
                if (*ccb).ccb_h.flags & sys::CAM_DEV_QFREEZE != 0 {
                    freeze(&device);
                }
                (*ccb).ccb_h.status = sys::CAM_REQ_CMP;
            }
            sys::XPT_SET_TRAN_SETTINGS => {
                (*ccb).ccb_h.status = sys::CAM_REQ_CMP;
            }
            sys::XPT_GDEVLIST => {
                let state = device.state.lock().unwrap();
                let list = &mut (*ccb).cgdl;
                list.periph_name = [0; 16];
                list.status = sys::CAM_GDEVLIST_LAST_DEVICE;
                let index = list.index as usize;
                if let Some(periph) = state.periphs.get(index) {
                    let periph = *periph as *mut sys::cam_periph;
                    let name = CStr::from_ptr((*periph).periph_name).to_bytes();
                    for (to, from) in list.periph_name.iter_mut().zip(name) {
                        *to = *from as c_char;
                    }
                    list.unit_number = (*periph).unit_number;
                } else if let Some((name, unit)) = state.named.get(index - state.periphs.len()) {
                    for (to, from) in list.periph_name.iter_mut().zip(name.bytes()) {
                        *to = from as c_char;
                    }
                    list.unit_number = *unit;
                }
                if index < state.periphs.len() + state.named.len() {
                    list.index += 1;
                }
                if index + 1 < state.periphs.len() + state.named.len() {
                    list.status = sys::CAM_GDEVLIST_MORE_DEVS;
                }
                list.ccb_h.status = sys::CAM_REQ_CMP;
            }
            sys::XPT_GDEV_STATS => {
                let (counts, cgds) = (counts(&device), &mut (*ccb).cgds);
                cgds.dev_openings = counts.openings;
                cgds.dev_active = counts.active;
                cgds.allocated = 0;
                cgds.queued = counts.waiting as i32;
                cgds.held = cgds.allocated - counts.active - cgds.queued;
                // scsi_xpt.c: the default quirk entry.
                (cgds.mintags, cgds.maxtags) = (2, 255);
                (*ccb).ccb_h.status = sys::CAM_REQ_CMP;
            }
            sys::XPT_GET_TRAN_SETTINGS => {
                (*ccb).cts.protocol = sys::PROTO_SCSI;
                (*ccb).ccb_h.status = sys::CAM_REQ_CMP;
            }
            sys::XPT_REL_SIMQ => {
                let crs = &mut (*ccb).crs;
                let keep = crs.ccb_h.flags & sys::CAM_DEV_QFREEZE != 0;
                let (flags, openings) = (crs.release_flags, crs.openings);
                crs.qfrozen_cnt =
                    queue::rel_simq(&device, flags, openings, crs.release_timeout, keep);
                crs.ccb_h.status = sys::CAM_REQ_CMP;
            }
            sys::XPT_DEV_ADVINFO => advinfo(&device, &mut (*ccb).cdai),
            sys::XPT_ABORT => {
                let (status, at_once) = abort(&device, (*ccb).cab.abort_ccb);
                if at_once {
                    (*ccb).ccb_h.status = status;
                } else {
                    answer_later(ccb, status);
                }
            }
            sys::XPT_IMMEDIATE_NOTIFY => {
                let mut state = device.state.lock().unwrap();
                if state.configured {
                    state.notifies.push(ccb as usize);
                } else {
                    drop(state);
                    done_with(ccb, sys::CAM_DEV_NOT_THERE, false);
                }
            }
            sys::XPT_REPROBE_LUN => {
                probe_later(device_of(ccb));
                done_with(ccb, sys::CAM_REQ_CMP, false);
            }
            sys::XPT_ACCEPT_TARGET_IO | sys::XPT_IMMED_NOTIFY | sys::XPT_NOTIFY_ACKNOWLEDGE => {
                // As an error does: who sent it lets the queue go again.
                done_with(ccb, sys::CAM_FUNC_NOTAVAIL, true);
            }
            sys::XPT_PATH_STATS => (*ccb).ccb_h.status = sys::CAM_REQ_CMP,
            sys::XPT_CALC_GEOMETRY => {
                // Heads and sectors as most SIMs give them for large disks.
                let geometry = &mut (*ccb).ccg;
                geometry.heads = 255;
                geometry.secs_per_track = 63;
                geometry.cylinders = (geometry.volume_size / (255 * 63)) as u32;
                geometry.ccb_h.status = sys::CAM_REQ_CMP;
            }
            // The SIM's to answer, and this one does not know them.
            sys::XPT_EN_LUN
            | sys::XPT_NOTIFY_ACK
            | sys::XPT_GET_SIM_KNOB
            | sys::XPT_SET_SIM_KNOB => (*ccb).ccb_h.status = sys::CAM_REQ_INVALID,
            opcode => broken(&format!(
                "CAM prints that it does not know opcode {opcode:#x}"
            )),
        }
    }
}

/// XPT_ABORT: a CCB that waits comes back at once, one that the SIM has is the
/// SIM's to give back (cam_xpt.c, xpt_action_default()).
fn abort(device: &Arc<Device>, target: *mut sys::ccb) -> (sys::cam_status, bool) {
    if !memory::is_live(target.cast(), CCB) && !memory::is_item(target.cast()) {
        broken("XPT_ABORT of what is no CCB");
    }
    const DEV_QUEUED: u32 = sys::XPT_FC_DEV_QUEUED;
    // SAFETY: a live CCB, of which the device lock keeps the owner away.
    let hdr = unsafe { &raw mut (*target).ccb_h };
    // SAFETY: as above.
    let opcode = unsafe { (*hdr).func_code };
    // SAFETY: as above; CAM's own words, which its other threads write.
    let words = || unsafe {
        let index = (&raw const (*hdr).pinfo.index).read_volatile();
        (index, (&raw const (*hdr).status).read_volatile())
    };
    if opcode & DEV_QUEUED == DEV_QUEUED {
        queue::abort_begins(device);
        if queue::take_back(device, target) {
            let status = sys::CAM_REQ_ABORTED | sys::CAM_DEV_QFRZN;
            done_with(target, status, false);
            return (sys::CAM_REQ_CMP, true);
        }
        let (index, status) = words();
        if index == sys::CAM_UNQUEUED_INDEX && status & sys::CAM_SIM_QUEUED == 0 {
            // Taken for one on its way to the SIM.
            // SAFETY: as above.
            unsafe { (*hdr).status = sys::CAM_REQ_ABORTED | sys::CAM_DEV_QFRZN };
            freeze(device);
            return (sys::CAM_REQ_CMP, true);
        }
    }
    if opcode & sys::XPT_FC_QUEUED != 0 && words().0 == sys::CAM_DONEQ_INDEX {
        return (sys::CAM_UA_ABORT, true);
    }
    let notify = {
        let mut state = device.state.lock().unwrap();
        let before = state.notifies.len();
        state.notifies.retain(|ccb| *ccb != target as usize);
        state.notifies.len() != before
    };
    if notify {
        done_with(target, sys::CAM_REQ_ABORTED, false);
        return (sys::CAM_REQ_CMP, true);
    }
    if device.door.follows.load(Ordering::SeqCst) && device.door.has(target) {
        broken("the SIM follows its private pointer in a CCB that it has not got yet");
    }
    if opcode == sys::XPT_RESET_DEV {
        broken("a SIM is asked to abort a reset: camsim answers that twice");
    }
    match &device.sim {
        Some(sim) if sim.abort(target) => (sys::CAM_REQ_CMP, false),
        _ => (sys::CAM_UA_ABORT, false),
    }
}

/// As virtio_scsi(4) does: an abort is a task management function, and its CCB
/// is the SIM's until the device has answered, of which nobody is told.
fn answer_later(ccb: *mut sys::ccb, status: sys::cam_status) {
    let sim = device_of(ccb).sim.clone();
    if sim.is_some_and(|sim| sim.answers_abort(ccb, status)) {
        return;
    }
    let ccb = ccb as usize;
    on_xpt_taskq(move || {
        std::thread::sleep(std::time::Duration::from_micros(300));
        let ccb = ccb as *mut sys::ccb;
        // SAFETY: the SIM's until now; if it was freed, the poison tells.
        unsafe { AtomicU32::from_ptr(&raw mut (*ccb).ccb_h.status) }
            .store(status, Ordering::Release);
    });
}

/// AC_ADVINFO_CHANGED carries the kind of information in the pointer itself.
fn tell_physpath(device: &Arc<Device>) {
    EVENTS.put(Event {
        code: sys::AC_ADVINFO_CHANGED,
        device: device.clone(),
        data: Vec::new(),
        value: sys::CDAI_TYPE_PHYS_PATH as usize,
        work: None,
    });
}

/// Gives a device a physical path, as an enclosure's driver does.
pub fn set_physpath(device: &Arc<Device>, path: &str) {
    device.state.lock().unwrap().physpath = path.into();
    tell_physpath(device);
}

/// xpt_getattr(9) of `GEOM::physpath`.
pub(crate) unsafe extern "C" fn xpt_getattr(
    buffer: *mut c_char,
    len: usize,
    name: *const c_char,
    path: *mut sys::cam_path,
) -> c_int {
    mtx_assert_owned(of(path).device.mtx, "xpt_getattr");
    // SAFETY: the caller's NUL-ended name.
    if unsafe { CStr::from_ptr(name) } != c"GEOM::physpath" {
        return -1;
    }
    let state = of(path).device.state.lock().unwrap();
    let value = &state.physpath;
    if value.is_empty() {
        return -1;
    }
    if value.len() >= len {
        return sys::EFAULT as c_int;
    }
    // SAFETY: the caller's buffer is as long as is said.
    unsafe {
        core::ptr::copy_nonoverlapping(value.as_ptr(), buffer.cast(), value.len());
        *buffer.add(value.len()) = 0;
    }
    0
}

/// XPT_DEV_ADVINFO: the serial number is read, the physical path is read and
/// stored.
fn advinfo(device: &Arc<Device>, cdai: &mut sys::ccb_dev_advinfo) {
    let mut state = device.state.lock().unwrap();
    cdai.ccb_h.status = sys::CAM_REQ_CMP;
    let stores = cdai.flags & sys::CDAI_FLAG_STORE != 0;
    let len = cdai.bufsiz as usize;
    let value = match cdai.buftype {
        sys::CDAI_TYPE_SERIAL_NUM if !stores => b"QPSERIAL".to_vec(),
        // nvme_dev_advinfo()
        sys::CDAI_TYPE_NVME_NS if !stores => {
            match device.sim.as_ref().and_then(|sim| sim.namespace()) {
                Some(namespace) => namespace,
                None => {
                    cdai.ccb_h.status = sys::CAM_REQ_INVALID;
                    return;
                }
            }
        }
        sys::CDAI_TYPE_NVME_CNTRL if !stores => {
            match device.sim.as_ref().and_then(|sim| sim.controller()) {
                Some(controller) => controller,
                None => {
                    cdai.ccb_h.status = sys::CAM_REQ_INVALID;
                    return;
                }
            }
        }
        sys::CDAI_TYPE_PHYS_PATH if stores => {
            // SAFETY: the CCB's buffer is kernel memory of that length.
            state.physpath = unsafe { core::slice::from_raw_parts(cdai.buf, len) }.to_vec();
            drop(state);
            tell_physpath(device);
            return;
        }
        sys::CDAI_TYPE_PHYS_PATH => state.physpath.clone(),
        _ => {
            cdai.ccb_h.status = sys::CAM_REQ_INVALID;
            return;
        }
    };
    cdai.provsiz = value.len() as i64;
    let part = len.min(value.len());
    if part != 0 {
        // SAFETY: as above.
        unsafe { core::ptr::copy_nonoverlapping(value.as_ptr(), cdai.buf, part) };
    }
}

static DONE: Worker<usize> = Worker::new("doneq", complete);

/// xpt_done(9), for a SIM: with `freeze`, the device's queue stops until the
/// periph has seen the error.
pub(crate) fn done(ccb: *mut sys::ccb, freeze: bool) {
    if freeze {
        self::freeze(&device_of(ccb));
    }
    // SAFETY: the CCB is the SIM's until now.
    unsafe {
        let hdr = &raw mut (*ccb).ccb_h;
        if freeze {
            (*hdr).status |= sys::CAM_DEV_QFRZN;
        }
        (*hdr).status |= sys::CAM_QOS_VALID;
        (*hdr).pinfo.index = sys::CAM_DONEQ_INDEX;
    }
    DONE.put(ccb as usize);
}

/// The same, with that status.
pub(crate) fn done_with(ccb: *mut sys::ccb, status: sys::cam_status, freeze: bool) {
    // SAFETY: the CCB is the SIM's until now.
    unsafe { (*ccb).ccb_h.status = status };
    done(ccb, freeze);
}

fn complete(ccb: usize) {
    let ccb = ccb as *mut sys::ccb;
    let device = device_of(ccb);
    queue::before_callback(ccb);
    // SAFETY: a CCB that the SIM has given back; its path lives until the
    // callback has run.
    unsafe {
        let hdr = &mut (*ccb).ccb_h;
        let unlocked = hdr.flags & sys::CAM_UNLOCKED != 0;
        if !unlocked {
            device.lock("xpt_done_process");
        }
        let done: DoneFn = hdr.cbfcnp.expect("cbfcnp");
        device.callbacks.fetch_add(1, Ordering::AcqRel);
        hdr.pinfo.index = sys::CAM_UNQUEUED_INDEX;
        count::stepping(|| done(of(hdr.path).periph, ccb));
        if !unlocked {
            device.unlock("xpt_done_process");
        }
        device.callbacks.fetch_sub(1, Ordering::AcqRel);
    }
}

// ---- periphs ----

pub(crate) unsafe extern "C" fn periphdriver_register(driver: *mut c_void) {
    {
        let mut drivers = EDT.drivers.lock().unwrap();
        let count = drivers.count;
        drivers.array.truncate(count);
        drivers.array.push(driver as usize);
        drivers.array.push(0);
        drivers.count += 1;
        publish(&mut drivers);
    }
    if UP.load(Ordering::SeqCst) {
        // SAFETY: the module's driver; CAM is up, so init is called now.
        unsafe { (*driver.cast::<sys::periph_driver>()).init.expect("init")() };
    }
}

/// Whether CAM is up, or the kernel is still on its way there.
static UP: AtomicBool = AtomicBool::new(true);

/// The kernel is booting: modules come before CAM is up.
pub fn boot() {
    UP.store(false, Ordering::SeqCst);
}

/// CAM comes up: it calls the drivers that are there.
pub fn come_up() {
    UP.store(true, Ordering::SeqCst);
    for driver in listed_drivers() {
        // SAFETY: a listed driver is there.
        if let Some(init) = unsafe { (*(driver as *mut sys::periph_driver)).init } {
            // SAFETY: the driver's own.
            unsafe { init() };
        }
    }
}

pub(crate) unsafe extern "C" fn periphdriver_unregister(driver: *mut c_void) -> c_int {
    // SAFETY: the module's driver.
    let deinit = unsafe { (*driver.cast::<sys::periph_driver>()).deinit };
    let Some(deinit) = deinit else {
        return sys::EOPNOTSUPP as c_int;
    };
    if UP.load(Ordering::SeqCst) {
        // SAFETY: the module's own routine.
        let error = unsafe { deinit() };
        if error != 0 {
            return error;
        }
    }
    lock_topology();
    let mut drivers = EDT.drivers.lock().unwrap();
    let Some(at) = drivers.array.iter().position(|d| *d == driver as usize) else {
        drop(drivers);
        broken("periphdriver_unregister of a driver that is not registered");
    };
    // As 14.2 does: the others move up, and the entry after the last is
    // cleared, which leaves the last one there twice, or this one for good.
    let count = drivers.count;
    drivers.array.copy_within(at + 1..count, at);
    drivers.array[count] = 0;
    drivers.count -= 1;
    publish(&mut drivers);
    drop(drivers);
    unlock_topology();
    0
}

/// The driver called `name`.
fn driver_named(name: *const c_char) -> *mut sys::periph_driver {
    for driver in listed_drivers() {
        let driver = driver as *mut sys::periph_driver;
        // SAFETY: a listed driver; both names are NUL-ended.
        unsafe {
            if CStr::from_ptr((*driver).driver_name) == CStr::from_ptr(name) {
                return driver;
            }
        }
    }
    broken("a periph of a driver that is not registered");
}

/// The driver's unit on the device of a path, going or not; its lock is held.
pub(crate) unsafe extern "C" fn cam_periph_find(
    path: *mut sys::cam_path,
    name: *mut c_char,
) -> *mut sys::cam_periph {
    let device = &of(path).device;
    mtx_assert_owned(device.mtx, "cam_periph_find");
    xpt_find(device, name)
}

/// Milliseconds that a probe takes.
pub static PROBE_MS: AtomicU32 = AtomicU32::new(5);

/// cam_xpt.c, XPT_REPROBE_LUN is the event AC_INQ_CHANGED, which the event thread
/// carries to scsi_xpt.c, scsi_scan_lun(): one after the other, the device frozen for
/// all but the probe from the first to the last (proberegister(), probedone()).
fn probe_later(device: Arc<Device>) {
    put_work(move || {
        let mut state = device.state.lock().unwrap();
        state.probes += 1;
        if state.probes > 1 {
            return;
        }
        drop(state);
        queue::freeze(&device);
        on_xpt_taskq(move || {
            loop {
                let ms = PROBE_MS.load(Ordering::SeqCst);
                std::thread::sleep(std::time::Duration::from_millis(ms.into()));
                if device.state.lock().unwrap().probes == 1 {
                    break;
                }
                device.state.lock().unwrap().probes -= 1;
            }
            queue::unfreeze(&device);
            device.state.lock().unwrap().probes = 0;
        });
    });
}

/// What stands for the periph of a probe.
static PROBE: [u64; 512] = [0; 512];

fn xpt_find(device: &Device, name: *mut c_char) -> *mut sys::cam_periph {
    let state = device.state.lock().unwrap();
    // SAFETY: names are NUL-ended.
    if state.probes > 0 && unsafe { CStr::from_ptr(name) } == c"probe" {
        return (&raw const PROBE).cast_mut().cast();
    }
    // SAFETY: a periph on the device's list is alive; names are NUL-ended.
    let is_named = |periph: &&usize| unsafe {
        let periph = **periph as *mut sys::cam_periph;
        CStr::from_ptr((*periph).periph_name) == CStr::from_ptr(name)
    };
    let found = state.periphs.iter().find(is_named);
    found.map_or(core::ptr::null_mut(), |periph| *periph as *mut _)
}

/// A device was probed anew: nvme_xpt.c, nvme_probe_done(), says so as of a new one.
pub fn probe_again(device: &Arc<Device>) {
    put_event(device, sys::AC_FOUND_DEVICE, getdev(device));
    settle();
}

/// Periphs alive.
pub static PERIPHS: AtomicU32 = AtomicU32::new(0);

pub(crate) unsafe extern "C" fn cam_periph_alloc(
    ctor: sys::periph_ctor_t,
    oninvalidate: sys::periph_oninv_t,
    dtor: sys::periph_dtor_t,
    start: sys::periph_start_t,
    name: *mut c_char,
    kind: sys::cam_periph_type,
    path: *mut sys::cam_path,
    callback: sys::ac_callback_t,
    code: sys::ac_code,
    arg: *mut c_void,
) -> sys::cam_status {
    let device = of(path).device.clone();
    mtx_assert_owned(device.mtx, "cam_periph_alloc");
    let driver = driver_named(name);
    let ms = REFUSE_DELAY_MS.load(Ordering::SeqCst);
    if ms != 0 {
        IS_REFUSING.store(true, Ordering::SeqCst);
        std::thread::sleep(std::time::Duration::from_millis(ms.into()));
        return sys::CAM_RESRC_UNAVAIL;
    }
    // SAFETY: the kernel's own periphs and the module's driver, under the
    // locks that CAM has for them.
    unsafe {
        for other in device.state.lock().unwrap().periphs.iter() {
            let other = *other as *mut sys::cam_periph;
            if (*other).periph_name != name {
                continue;
            }
            if (*other).flags & sys::CAM_PERIPH_INVALID != 0
                && (*other).flags & sys::CAM_PERIPH_NEW_DEV_FOUND == 0
            {
                (*other).flags |= sys::CAM_PERIPH_NEW_DEV_FOUND;
                (*other).deferred_callback = callback;
                (*other).deferred_ac = code;
                return sys::CAM_REQ_INPROG;
            }
            return sys::CAM_REQ_INVALID;
        }
        let periph = memory::alloc(
            size_of::<sys::cam_periph>(),
            "CAM periph",
            sys::M_NOWAIT | sys::M_ZERO,
        )
        .cast::<sys::cam_periph>();
        if periph.is_null() {
            return sys::CAM_RESRC_UNAVAIL;
        }
        let own_path = new_path(&device, periph);
        if own_path.is_null() {
            memory::dealloc(periph.cast(), "CAM periph");
            return sys::CAM_RESRC_UNAVAIL;
        }
        (*periph).periph_start = start;
        (*periph).periph_dtor = dtor;
        (*periph).periph_oninval = oninvalidate;
        (*periph).type_ = kind;
        (*periph).periph_name = name;
        (*periph).path = own_path;
        (*periph).scheduled_priority = sys::QPC_CAM_PRIORITY_NONE;
        (*periph).immediate_priority = sys::QPC_CAM_PRIORITY_NONE;
        (*periph).refcount = 1;
        PERIPHS.fetch_add(1, Ordering::SeqCst);

        xpt_lock_buses();
        insert_unit(driver, periph);
        xpt_unlock_buses();
        list(&device, periph, true);

        let status = ctor.expect("a constructor")(periph, arg);
        mtx_assert_owned(device.mtx, "return from a periph constructor");
        if status != sys::CAM_REQ_CMP {
            list(&device, periph, false);
            xpt_lock_buses();
            remove_unit(driver, periph);
            xpt_unlock_buses();
            free_periph(periph);
        }
        status
    }
}

/// Puts a periph on its device's list or takes it off, which changes the list's
/// generation.
fn list(device: &Device, periph: *mut sys::cam_periph, is_on: bool) {
    let mut state = device.state.lock().unwrap();
    state.generation += 1;
    state.periphs.retain(|p| *p != periph as usize);
    if is_on {
        state.periphs.push(periph as usize);
    }
}

/// Gives the periph the lowest free number and puts it in order.
unsafe fn insert_unit(driver: *mut sys::periph_driver, periph: *mut sys::cam_periph) {
    // SAFETY: the topology lock guards the list.
    unsafe {
        let units = &raw mut (*driver).units;
        let mut at = &raw mut (*units).tqh_first;
        let mut number = 0;
        while !(*at).is_null() && (**at).unit_number == number {
            number += 1;
            at = &raw mut (**at).unit_links.tqe_next;
        }
        (*periph).unit_number = number;
        let next = *at;
        (*periph).unit_links.tqe_next = next;
        (*periph).unit_links.tqe_prev = at;
        if next.is_null() {
            (*units).tqh_last = &raw mut (*periph).unit_links.tqe_next;
            // CAM counts up here only, not where it inserts before another.
            (*driver).generation += 1;
        } else {
            (*next).unit_links.tqe_prev = &raw mut (*periph).unit_links.tqe_next;
        }
        *at = periph;
    }
}

unsafe fn remove_unit(driver: *mut sys::periph_driver, periph: *mut sys::cam_periph) {
    // SAFETY: the topology lock guards the list, which has the periph.
    unsafe {
        let links = (*periph).unit_links;
        if links.tqe_next.is_null() {
            (*driver).units.tqh_last = links.tqe_prev;
        } else {
            (*links.tqe_next).unit_links.tqe_prev = links.tqe_prev;
        }
        *links.tqe_prev = links.tqe_next;
    }
}

fn free_periph(periph: *mut sys::cam_periph) {
    DYING.lock().unwrap().remove(&(periph as usize));
    // SAFETY: nobody has a reference.
    unsafe {
        if (*periph).periph_allocated != 0 {
            broken("a periph is freed with CCBs of its own out");
        }
        free_path((*periph).path);
    }
    memory::dealloc(periph.cast(), "CAM periph");
    PERIPHS.fetch_sub(1, Ordering::SeqCst);
}

fn mtx_of(periph: *mut sys::cam_periph) -> *mut sys::mtx {
    // SAFETY: the caller's periph is alive.
    of(unsafe { (*periph).path }).device.mtx
}

pub(crate) unsafe extern "C" fn cam_periph_acquire(periph: *mut sys::cam_periph) -> c_int {
    // SAFETY: the caller's periph is alive; the topology lock guards the count.
    unsafe {
        xpt_lock_buses();
        let valid = (*periph).flags & sys::CAM_PERIPH_INVALID == 0;
        if valid {
            (*periph).refcount += 1;
        }
        xpt_unlock_buses();
        if valid { 0 } else { sys::ENOENT as c_int }
    }
}

unsafe fn doacquire(periph: *mut sys::cam_periph) {
    // SAFETY: as above.
    unsafe {
        xpt_lock_buses();
        if (*periph).refcount == 0 {
            broken("a periph without references is acquired");
        }
        (*periph).refcount += 1;
        xpt_unlock_buses();
    }
}

unsafe fn release_locked(periph: *mut sys::cam_periph) {
    // SAFETY: the caller's reference.
    unsafe {
        xpt_lock_buses();
        cam_periph_release_locked_buses(periph);
        xpt_unlock_buses();
    }
}

pub(crate) unsafe extern "C" fn cam_periph_release_locked_buses(periph: *mut sys::cam_periph) {
    mtx_assert_owned(mtx_of(periph), "cam_periph_release_locked_buses");
    mtx_assert_owned(EDT.topology, "cam_periph_release_locked_buses");
    // SAFETY: the caller's reference.
    unsafe {
        if (*periph).refcount == 0 {
            broken("a periph without references is released");
        }
        (*periph).refcount -= 1;
        if (*periph).refcount == 0 {
            destroy_periph(periph);
        }
    }
}

/// Milliseconds after which cam_periph_alloc(9) has no memory, 0 for never.
pub static REFUSE_DELAY_MS: AtomicU32 = AtomicU32::new(0);
static IS_REFUSING: AtomicBool = AtomicBool::new(false);

/// Whether a driver was kept waiting so.
pub fn is_refusing() -> bool {
    IS_REFUSING.load(Ordering::SeqCst)
}

/// Milliseconds that the thread which frees a periph is held up where it has
/// let the topology lock go: before it takes the periph off the lists, and
/// before it calls back for the device that came meanwhile.
pub static FREE_DELAY_MS: AtomicU32 = AtomicU32::new(0);

fn hold_up() {
    let ms = FREE_DELAY_MS.load(Ordering::SeqCst);
    if ms != 0 {
        std::thread::sleep(std::time::Duration::from_millis(ms.into()));
    }
}

/// Periphs whose destructor has begun.
static DYING: LazyLock<Mutex<HashSet<usize>>> = LazyLock::new(Mutex::default);

/// camperiphfree(): the last reference has gone; the device lock and the
/// topology lock are held. The latter is let go and taken again.
unsafe fn destroy_periph(periph: *mut sys::cam_periph) {
    // SAFETY: no reference is left; the order is CAM's.
    unsafe {
        if (*periph).flags & sys::CAM_PERIPH_INVALID == 0 {
            broken("the last reference to a valid periph is released");
        }
        // CAM_PERIPH_FREE may be the driver's own, which keeps walks away.
        if !DYING.lock().unwrap().insert(periph as usize) {
            broken("a periph is freed twice: its destructor lets others at it");
        }
        let driver = driver_named((*periph).periph_name);
        let device = of((*periph).path).device.clone();
        (*periph).flags |= sys::CAM_PERIPH_FREE;
        xpt_unlock_buses();
        dev_match::destructor_begins(periph);
        hold_up();
        if let Some(dtor) = (*periph).periph_dtor {
            dtor(periph);
        }
        mtx_assert_owned(device.mtx, "return from a periph destructor");
        if device
            .state
            .lock()
            .unwrap()
            .listeners
            .iter()
            .any(|l| l.arg == periph as usize)
        {
            broken("a periph is freed with a callback registered");
        }
        xpt_lock_buses();
        if (*periph).refcount != 0 {
            broken("a periph is freed that a walk has taken again");
        }
        remove_unit(driver, periph);
        (*driver).generation += 1;
        xpt_unlock_buses();
        list(&device, periph, false);
        if (*periph).flags & sys::CAM_PERIPH_NEW_DEV_FOUND != 0 {
            hold_up();
            let mut cgd = getdev(&device);
            (*periph).deferred_callback.expect("a callback")(
                core::ptr::null_mut(),
                (*periph).deferred_ac,
                (*periph).path,
                cgd.as_mut_ptr().cast(),
            );
        }
        free_periph(periph);
        xpt_lock_buses();
    }
}

/// Where an XPT_DEV_MATCH over a driver's units goes on.
#[derive(Clone, Copy)]
pub struct Position {
    periph: usize,
    generation: u32,
}

/// What one call of such a walk came to.
pub enum UnitsStep {
    /// There is more: CAM_DEV_MATCH_MORE.
    More(Position),
    /// CAM_DEV_MATCH_LAST.
    Last,
    /// CAM_DEV_MATCH_LIST_CHANGED.
    ListChanged,
}

/// XPT_DEV_MATCH for the units of the driver called `name`, with room for one
/// result: from the first, or from the position that the last call has saved.
/// As xptplistpdrvfunc() and xptpdperiphtraverse() do it; `visit` is called with
/// each unit's lock held, and its number.
pub fn step_units(name: &str, from: Option<Position>, visit: &dyn Fn(u32)) -> UnitsStep {
    // SAFETY: the lists under the topology lock, a periph by its reference, and
    // a driver by its units.
    unsafe {
        xpt_lock_buses();
        let mut listed = listed_drivers().into_iter().map(|driver| driver as *mut _);
        let driver = listed.find(|driver: &*mut sys::periph_driver| {
            CStr::from_ptr((**driver).driver_name).to_bytes() == name.as_bytes()
        });
        let Some(driver) = driver else {
            xpt_unlock_buses();
            return UnitsStep::Last;
        };
        let mut periph = match from {
            Some(from) if from.generation != (*driver).generation => {
                xpt_unlock_buses();
                return UnitsStep::ListChanged;
            }
            // The saved one, whatever became of it.
            Some(from) => from.periph as *mut sys::cam_periph,
            None => unfreed((*driver).units.tqh_first),
        };
        if !periph.is_null() {
            (*periph).refcount += 1;
        }
        xpt_unlock_buses();
        let mut has_room = true;
        while !periph.is_null() {
            let mtx = mtx_of(periph);
            mtx_lock(mtx, "xptpdperiphtraverse");
            visit((*periph).unit_number);
            let saved = Position {
                periph: periph as usize,
                generation: (*driver).generation,
            };
            mtx_unlock(mtx, "xptpdperiphtraverse");
            if !std::mem::take(&mut has_room) {
                cam_periph_release(periph);
                return UnitsStep::More(saved);
            }
            xpt_lock_buses();
            let next = unfreed((*periph).unit_links.tqe_next);
            if !next.is_null() {
                (*next).refcount += 1;
            }
            xpt_unlock_buses();
            cam_periph_release(periph);
            periph = next;
        }
    }
    UnitsStep::Last
}

/// The first periph from there that is not being freed.
unsafe fn unfreed(mut periph: *mut sys::cam_periph) -> *mut sys::cam_periph {
    // SAFETY: the topology lock guards the list.
    unsafe {
        while !periph.is_null() && (*periph).flags & sys::CAM_PERIPH_FREE != 0 {
            periph = (*periph).unit_links.tqe_next;
        }
    }
    periph
}

pub(crate) unsafe extern "C" fn cam_periph_release_locked(periph: *mut sys::cam_periph) {
    // SAFETY: the caller's reference.
    unsafe { release_locked(periph) };
}

pub(crate) unsafe extern "C" fn cam_periph_release(periph: *mut sys::cam_periph) {
    let mtx = mtx_of(periph);
    mtx_lock(mtx, "cam_periph_release");
    // SAFETY: the caller's reference.
    unsafe { release_locked(periph) };
    mtx_unlock(mtx, "cam_periph_release");
}

pub(crate) unsafe extern "C" fn cam_periph_invalidate(periph: *mut sys::cam_periph) {
    mtx_assert_owned(mtx_of(periph), "cam_periph_invalidate");
    // SAFETY: the caller's periph is alive.
    unsafe {
        if (*periph).flags & sys::CAM_PERIPH_INVALID != 0 {
            return;
        }
        (*periph).flags |= sys::CAM_PERIPH_INVALID;
        (*periph).flags &= !sys::CAM_PERIPH_NEW_DEV_FOUND;
        (*periph).periph_oninval.expect("oninvalidate")(periph);
        release_locked(periph);
    }
}

pub(crate) unsafe extern "C" fn cam_periph_async(
    periph: *mut sys::cam_periph,
    code: u32,
    _path: *mut sys::cam_path,
    _arg: *mut c_void,
) {
    if code == sys::AC_LOST_DEVICE {
        // SAFETY: the caller's periph is alive, its lock held.
        unsafe { cam_periph_invalidate(periph) };
    }
}

/// xpt_run_allocq(): hands CCBs to who waits for them, as slots allow.
unsafe fn run_alloc_queue(periph: *mut sys::cam_periph) {
    // SAFETY: the device lock is held, and a reference for as long.
    unsafe {
        if (*periph).periph_allocating != 0 {
            return;
        }
        doacquire(periph);
        (*periph).periph_allocating = 1;
        let device = of((*periph).path).device.clone();
        let openings = device.sim.as_ref().map_or(1, |s| s.openings());
        loop {
            let priority = (*periph)
                .scheduled_priority
                .min((*periph).immediate_priority);
            if priority == sys::QPC_CAM_PRIORITY_NONE
                || ((*periph).periph_allocated as usize >= openings
                    && priority > sys::QPC_CAM_PRIORITY_OOB)
            {
                break;
            }
            let Some(ccb) = get_ccb(periph) else {
                break;
            };
            xpt_setup_ccb_flags(&raw mut (*ccb).ccb_h, (*periph).path, priority, 0);
            if priority == (*periph).immediate_priority {
                (*periph).immediate_priority = sys::QPC_CAM_PRIORITY_NONE;
                (*ccb).ccb_h.periph_links.sle.sle_next = (*periph).ccb_list.slh_first;
                (*periph).ccb_list.slh_first = ccb.cast();
                lock::wake(&raw const (*periph).ccb_list as usize);
            } else {
                (*periph).scheduled_priority = sys::QPC_CAM_PRIORITY_NONE;
                (*periph).periph_start.expect("start")(periph, ccb);
                mtx_assert_owned(device.mtx, "return from a periph's start");
            }
        }
        (*periph).periph_allocating = 0;
        release_locked(periph);
    }
}

/// Runs work in a thread like CAM's own "xpt_taskq".
fn on_xpt_taskq(work: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new()
        .name("xpt_taskq".into())
        .spawn(work)
        .expect("a thread");
}

/// A zeroed CCB without sleeping; when there is none, CAM tries again later.
unsafe fn get_ccb(periph: *mut sys::cam_periph) -> Option<*mut sys::ccb> {
    let ccb = if fault::GET_CCB.fails() {
        core::ptr::null_mut()
    } else {
        memory::alloc(size_of::<sys::ccb>(), CCB, sys::M_NOWAIT | sys::M_ZERO).cast::<sys::ccb>()
    };
    // SAFETY: the device lock is held.
    unsafe {
        if !ccb.is_null() {
            (*periph).periph_allocated += 1;
            return Some(ccb);
        }
        if (*periph).flags & sys::CAM_PERIPH_RUN_TASK == 0 {
            doacquire(periph);
            (*periph).flags |= sys::CAM_PERIPH_RUN_TASK;
            let periph = periph as usize;
            // CAM has a task queue of its own for this: taskqueue_thread may be
            // waiting for the very call that waits for this CCB.
            on_xpt_taskq(move || {
                let periph = periph as *mut sys::cam_periph;
                let mtx = mtx_of(periph);
                mtx_lock(mtx, "xpt_run_allocq_task");
                (*periph).flags &= !sys::CAM_PERIPH_RUN_TASK;
                run_alloc_queue(periph);
                release_locked(periph);
                mtx_unlock(mtx, "xpt_run_allocq_task");
            });
        }
    }
    None
}

pub(crate) unsafe extern "C" fn xpt_release_ccb(ccb: *mut sys::ccb) {
    mtx_assert_owned(device_of(ccb).mtx, "xpt_release_ccb");
    // SAFETY: a CCB of get_ccb(), completed.
    unsafe {
        let periph = of((*ccb).ccb_h.path).periph;
        memory::dealloc(ccb.cast(), CCB);
        (*periph).periph_allocated -= 1;
        run_alloc_queue(periph);
    }
}

pub(crate) unsafe extern "C" fn cam_periph_getccb(
    periph: *mut sys::cam_periph,
    priority: u32,
) -> *mut sys::ccb {
    let mtx = mtx_of(periph);
    mtx_assert_owned(mtx, "cam_periph_getccb");
    // SAFETY: the caller's periph is alive, its lock held.
    unsafe {
        loop {
            let first = (*periph).ccb_list.slh_first;
            if !first.is_null() && (*first).pinfo.priority == priority {
                (*periph).ccb_list.slh_first = (*first).periph_links.sle.sle_next;
                // CAM leaves it; xpt_action() here wants to see that no user wrote it.
                (*first).periph_links.sle.sle_next = core::ptr::null_mut();
                return first.cast();
            }
            if priority < (*periph).immediate_priority {
                (*periph).immediate_priority = priority;
                run_alloc_queue(periph);
            } else {
                let chan = &raw const (*periph).ccb_list as usize;
                lock::msleep(chan, mtx, None, "cgticb");
            }
        }
    }
}

unsafe extern "C" fn periph_done(_periph: *mut sys::cam_periph, ccb: *mut sys::ccb) {
    // SAFETY: the CCB of cam_periph_runccb(), which waits for this.
    unsafe { (*ccb).ccb_h.cbfcnp = None };
    lock::wake(ccb as usize);
}

type ErrorFn = unsafe extern "C" fn(*mut sys::ccb, sys::cam_flags, u32) -> c_int;

pub(crate) unsafe extern "C" fn cam_periph_runccb(
    ccb: *mut sys::ccb,
    error_routine: Option<ErrorFn>,
    cam_flags: sys::cam_flags,
    sense_flags: u32,
    _devstat: *mut c_void,
) -> c_int {
    let device = device_of(ccb);
    mtx_assert_owned(device.mtx, "cam_periph_runccb");
    // SAFETY: the caller's CCB, the device lock held.
    unsafe {
        let hdr = &raw mut (*ccb).ccb_h;
        (*hdr).cbfcnp = Some(periph_done);
        xpt_action(ccb);
        let error = loop {
            while (*hdr).cbfcnp.is_some() {
                lock::msleep(ccb as usize, device.mtx, None, "cbwait");
            }
            if (*hdr).status & sys::CAM_STATUS_MASK == sys::CAM_REQ_CMP {
                break 0;
            }
            (*hdr).cbfcnp = Some(periph_done);
            let error = error_routine.map_or(0, |f| f(ccb, cam_flags, sense_flags));
            if error != sys::ERESTART {
                break error;
            }
        };
        if (*hdr).status & sys::CAM_DEV_QFRZN != 0 {
            (*hdr).status &= !sys::CAM_DEV_QFRZN;
            unfreeze(&device);
        }
        error
    }
}

/// The data of a CCB as cam_periph_mapmem(9) finds it: where the pointer is,
/// how long the data is, and which way it goes.
unsafe fn mappings(ccb: *mut sys::ccb) -> Result<Vec<(*mut *mut u8, usize, u32)>, c_int> {
    // SAFETY: the caller's CCB is what its opcode says.
    unsafe {
        let flags = (*ccb).ccb_h.flags;
        let direction = flags & sys::CAM_DIR_MASK;
        let io = |pointer, len: u32| {
            if direction == sys::CAM_DIR_NONE {
                return Ok(Vec::new());
            }
            if flags & sys::CAM_DATA_MASK != sys::CAM_DATA_VADDR {
                return Err(sys::EINVAL as c_int);
            }
            Ok(vec![(pointer, len as usize, direction)])
        };
        match (*ccb).ccb_h.func_code {
            sys::XPT_SCSI_IO | sys::XPT_CONT_TARGET_IO => {
                io(&raw mut (*ccb).csio.data_ptr, (*ccb).csio.dxfer_len)
            }
            sys::XPT_ATA_IO => io(&raw mut (*ccb).ataio.data_ptr, (*ccb).ataio.dxfer_len),
            sys::XPT_NVME_IO | sys::XPT_NVME_ADMIN => {
                io(&raw mut (*ccb).nvmeio.data_ptr, (*ccb).nvmeio.dxfer_len)
            }
            sys::XPT_SMP_IO => {
                let smp = &raw mut (*ccb).smpio;
                let (out, back) = ((*smp).smp_request_len, (*smp).smp_response_len);
                Ok(vec![
                    (&raw mut (*smp).smp_request, out as usize, sys::CAM_DIR_OUT),
                    (&raw mut (*smp).smp_response, back as usize, sys::CAM_DIR_IN),
                ])
            }
            sys::XPT_DEV_ADVINFO if (*ccb).cdai.bufsiz == 0 => Ok(Vec::new()),
            sys::XPT_DEV_ADVINFO => {
                let cdai = &raw mut (*ccb).cdai;
                let len = (*cdai).bufsiz as usize;
                Ok(vec![(&raw mut (*cdai).buf, len, sys::CAM_DIR_IN)])
            }
            _ => Err(sys::EINVAL as c_int),
        }
    }
}

/// cam_periph_ioctl(9): CAMGETPASSTHRU names the device's pass-through.
pub(crate) unsafe extern "C" fn cam_periph_ioctl(
    periph: *mut sys::cam_periph,
    cmd: u64,
    data: *mut c_char,
    _error_routine: Option<ErrorFn>,
) -> c_int {
    mtx_assert_owned(mtx_of(periph), "cam_periph_ioctl");
    if cmd != sys::QPC_CAMGETPASSTHRU {
        return sys::ENOTTY as c_int;
    }
    // SAFETY: the caller's periph is alive, its lock held, and the buffer is a
    // CCB.
    unsafe {
        let ccb = cam_periph_getccb(periph, sys::QPC_CAM_PRIORITY_NORMAL);
        (*ccb).ccb_h.func_code = sys::XPT_GDEVLIST;
        (*ccb).ccb_h.status = sys::CAM_REQ_CMP;
        let device = device_of(ccb);
        for other in device.state.lock().unwrap().periphs.iter() {
            let other = *other as *mut sys::cam_periph;
            let name = CStr::from_ptr((*other).periph_name).to_bytes();
            if name.starts_with(b"pass") {
                for (to, from) in (*ccb).cgdl.periph_name.iter_mut().zip(name) {
                    *to = *from as c_char;
                }
                (*ccb).cgdl.unit_number = (*other).unit_number;
            }
        }
        // The whole CCB goes out, with the words of CAM and of the SIM in it
        // (cam_periph.c, cam_periph_ioctl()).
        let hdr = &raw mut (*ccb).ccb_h;
        let word = (SIM_WORDS | 0x1000) as *mut c_void;
        (*hdr).cbfcnp = Some(periph_done);
        (*hdr).xpt_links.sle.sle_next = word.cast();
        (*hdr).sim_links.sle.sle_next = word.cast();
        (*hdr).periph_links.sle.sle_next = word.cast();
        for i in 0..2 {
            (*hdr).periph_priv.entries[i].ptr = word;
            (*hdr).sim_priv.entries[i].ptr = word;
        }
        core::ptr::copy_nonoverlapping(ccb.cast::<u8>(), data.cast(), size_of::<sys::ccb>());
        xpt_release_ccb(ccb);
    }
    0
}

type IoctlFn =
    unsafe extern "C" fn(*mut sys::cdev, u64, *mut c_char, c_int, *mut sys::thread) -> c_int;

/// Copies the fields that an older header has between it and today's.
macro_rules! header_fields {
    ($to:expr, $from:expr) => {
        header_fields!($to, $from, pinfo xpt_links sim_links periph_links cbfcnp
            func_code status path path_id target_id flags periph_priv sim_priv timeout)
    };
    ($to:expr, $from:expr, $($field:ident)*) => {
        $((*$to).$field = (*$from).$field;)*
    };
}

/// The same layout of `H` and today's CCB, one after the other: what the
/// module sees is today's.
macro_rules! with_older_header {
    ($header:ty, $data_len:expr, $dev:expr, $data:expr, $flag:expr, $td:expr, $back:expr) => {{
        let old = $data.cast::<$header>();
        let ccb = xpt_alloc_ccb();
        let hdr = &raw mut (*ccb).ccb_h;
        let payloads = (hdr.add(1).cast::<u8>(), old.add(1).cast::<u8>());
        header_fields!(hdr, old);
        (*hdr).target_lun = u64::from((*old).target_lun);
        (*hdr).retry_count = (*old).retry_count as u16;
        core::ptr::copy_nonoverlapping(payloads.1, payloads.0, $data_len as usize);
        let error = $back($dev, sys::QPC_CAMIOCOMMAND, ccb.cast(), $flag, $td);
        header_fields!(old, hdr);
        (*old).target_lun = (*hdr).target_lun as u32;
        (*old).retry_count = u32::from((*hdr).retry_count);
        core::ptr::copy_nonoverlapping(payloads.0, payloads.1, $data_len as usize);
        xpt_free_ccb(ccb);
        error
    }};
}

/// cam_compat_ioctl(): versions 0x17 and 0x18 have another header, 0x19 other
/// numbers.
pub(crate) unsafe extern "C" fn cam_compat_ioctl(
    dev: *mut sys::cdev,
    cmd: u64,
    data: *mut c_char,
    flag: c_int,
    td: *mut sys::thread,
    back: Option<IoctlFn>,
) -> c_int {
    let back = back.expect("a callback");
    // SAFETY: the buffer is as long as the request's number says; the module's
    // own callback, with today's number for the same call.
    unsafe {
        match cmd {
            sys::QPC_CAMIOCOMMAND_0x17 => with_older_header!(
                sys::ccb_hdr_0x17,
                sys::QPC_CAM_0X17_DATA_LEN,
                dev,
                data,
                flag,
                td,
                back
            ),
            sys::QPC_CAMIOCOMMAND_0x18 => with_older_header!(
                sys::ccb_hdr_0x18,
                sys::QPC_CAM_0X18_DATA_LEN,
                dev,
                data,
                flag,
                td,
                back
            ),
            sys::QPC_CAMIOCOMMAND_0x19 => back(dev, sys::QPC_CAMIOCOMMAND, data, flag, td),
            sys::QPC_CAMIOQUEUE_0x19 => back(dev, sys::QPC_CAMIOQUEUE, data, flag, td),
            sys::QPC_CAMIOGET_0x19 => back(dev, sys::QPC_CAMIOGET, data, flag, td),
            _ => sys::ENOTTY as c_int,
        }
    }
}

/// Registers a driver of the kernel's own, with no unit.
pub fn register_empty_driver(name: &'static CStr) {
    // SAFETY: plain data.
    let mut driver: sys::periph_driver = unsafe { core::mem::zeroed() };
    driver.driver_name = name.as_ptr().cast_mut();
    let mut drivers = EDT.drivers.lock().unwrap();
    begin(&mut drivers);
    let count = drivers.count;
    drivers.array.truncate(count);
    drivers.array.push(Box::into_raw(Box::new(driver)) as usize);
    drivers.array.push(0);
    drivers.count += 1;
}

const MAPPED: &str = "CAM periph map";

/// `kern.cam.mapmem_thresh`: what is longer is mapped where it is.
const MAPMEM_THRESH: usize = 65536;

/// A buffer of cam_periph_mapmem(9): the allocation, and where its bytes begin.
///
/// What is not long is copied. What is longer vmapbuf(9) maps, at an address that
/// is as far into its page as the process's; here it is a copy at such an address,
/// which begins with what the process has there (cam_periph.c,
/// cam_periph_mapmem(); kern/vfs_bio.c, vmapbuf()).
unsafe fn map_buffer(user: usize, len: usize, direction: u32) -> Result<(*mut u8, *mut u8), c_int> {
    const PAGE: usize = sys::PAGE_SIZE as usize;
    let is_mapped = len > MAPMEM_THRESH;
    let room = if is_mapped { len + 2 * PAGE } else { len };
    let base = memory::alloc(room, MAPPED, sys::M_WAITOK | sys::M_ZERO).cast::<u8>();
    let at = if is_mapped {
        let in_page = (base as usize).next_multiple_of(PAGE) - base as usize;
        base.wrapping_add(in_page + user % PAGE)
    } else {
        base
    };
    // SAFETY: inside of the allocation, which is zeroed.
    let bytes = unsafe { core::slice::from_raw_parts_mut(at, len) };
    let reads = is_mapped || direction != sys::CAM_DIR_IN;
    // What the device is to write must be writable, and the pages are faulted in.
    let writes = is_mapped && direction != sys::CAM_DIR_OUT;
    if reads && user::read(user, bytes).is_err() || writes && user::write(bytes, user).is_err() {
        memory::dealloc(base.cast(), MAPPED);
        return Err(sys::EACCES as c_int);
    }
    Ok((base, at))
}

/// cam_periph_mapmem(9).
pub(crate) unsafe extern "C" fn cam_periph_mapmem(
    ccb: *mut sys::ccb,
    info: *mut sys::cam_periph_map_info,
    maxmap: u32,
) -> c_int {
    lock::may_sleep("cam_periph_mapmem");
    // SAFETY: the caller's CCB and place for the result.
    unsafe {
        *info = core::mem::zeroed();
        let buffers = match mappings(ccb) {
            Ok(buffers) => buffers,
            Err(error) => return error,
        };
        let longest = maxmap.min(1 << 20) as usize;
        if buffers.iter().any(|(_, len, _)| *len > longest) {
            return sys::E2BIG as c_int;
        }
        for (i, (pointer, len, direction)) in buffers.iter().enumerate() {
            let user = **pointer;
            let (base, at) = match map_buffer(user as usize, *len, *direction) {
                Ok(mapped) => mapped,
                Err(errno) => {
                    for (j, (pointer, ..)) in buffers.iter().take(i).enumerate() {
                        memory::dealloc((*info).bp[j].cast(), MAPPED);
                        **pointer = (*info).orig[j].cast();
                    }
                    return errno;
                }
            };
            // Nobody but unmapmem looks: the allocation, not a struct buf.
            (*info).bp[i] = base.cast();
            (*info).orig[i] = user.cast();
            **pointer = at;
        }
        (*info).num_bufs_used = buffers.len() as c_int;
    }
    0
}

pub(crate) unsafe extern "C" fn cam_periph_unmapmem(
    ccb: *mut sys::ccb,
    info: *mut sys::cam_periph_map_info,
) -> c_int {
    lock::may_sleep("cam_periph_unmapmem");
    // SAFETY: the CCB and info of cam_periph_mapmem().
    unsafe {
        let mut error = 0;
        let count = (*info).num_bufs_used as usize;
        let buffers = mappings(ccb).unwrap_or_default();
        for (i, (pointer, len, direction)) in buffers.into_iter().take(count).enumerate() {
            if direction != sys::CAM_DIR_OUT {
                let bytes = core::slice::from_raw_parts(*pointer, len);
                if let Err(errno) = user::write(bytes, (*info).orig[i] as usize) {
                    error = errno;
                }
            }
            memory::dealloc((*info).bp[i].cast(), MAPPED);
            *pointer = (*info).orig[i].cast();
        }
        (*info).num_bufs_used = 0;
        error
    }
}

/// What must hold when the module has gone: no periph, no CCB, no path, no
/// callback, no frozen queue, nothing that others print, and a driver list
/// without it.
pub fn check_clean(module: std::ops::Range<usize>) {
    settle();
    for (what, live) in [
        ("periphs", PERIPHS.load(Ordering::SeqCst) as usize),
        ("CCBs", memory::malloc_live(CCB)),
        ("paths", memory::malloc_live("CAM path")),
        ("mapped buffers", memory::malloc_live(MAPPED)),
    ] {
        if live != 0 {
            broken(&format!("{live} {what} are left at unload"));
        }
    }
    let noise = take_noise();
    if !noise.is_empty() {
        broken(&format!("others print because of the module: {noise:?}"));
    }
    if listed_drivers().iter().any(|d| module.contains(d)) {
        broken("CAM's list of periph drivers still has the unloaded one");
    }
    let devices = EDT.devices.lock().unwrap().clone();
    for device in devices.iter().chain([&EDT.xpt]) {
        while device.state.lock().unwrap().probes > 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        if device.has_listeners() {
            broken("an event callback of the unloaded module is registered");
        }
        device.check_idle();
    }
}
