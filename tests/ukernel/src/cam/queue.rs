//! CAM's send queues: `struct cam_ccbq` of a device and `struct cam_devq` of a
//! SIM, with their freeze counts and openings (FreeBSD 14.2's cam_xpt.c and
//! cam_queue.c).
//!
//! A SIM's mutex guards its queue and those of its devices, as `send_mtx` does.

use super::{Device, Noise, device_of, find_device, noise, of, on_xpt_taskq};
use crate::{lock, sys, thread::broken};
use std::{
    collections::VecDeque,
    ffi::c_int,
    mem::zeroed,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

/// CAM's delays are this many times as long as those here.
const HASTE: u32 = 100;

/// The queue of a SIM.
#[derive(Default)]
pub(super) struct Devq {
    send: Mutex<SendQueue>,
}

#[derive(Default)]
struct SendQueue {
    frozen: u32,
    openings: i32,
    active: i32,
    /// Devices with a CCB to send: priority, order, device.
    run: Vec<(u32, u32, Arc<Device>)>,
    generation: u32,
}

/// The queue of a device.
#[derive(Default)]
pub(super) struct Ccbq {
    /// CCBs that wait: priority, order, address.
    waiting: Vec<(u32, u32, usize)>,
    generation: u32,
    frozen: u32,
    openings: i32,
    active: i32,
    /// CAM_DEV_REL_ON_COMPLETE.
    on_complete: bool,
    /// CAM_DEV_REL_ON_QUEUE_EMPTY.
    on_empty: bool,
    /// CAM_DEV_REL_TIMEOUT_PENDING.
    on_timeout: bool,
    /// Counts the settings and stops of the device's callout.
    callout: u64,
}

/// What a device's queue holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Freezes.
    pub frozen: u32,
    /// `dev_openings`.
    pub openings: i32,
    /// `dev_active`.
    pub active: i32,
    /// CCBs that wait.
    pub waiting: usize,
}

impl Devq {
    /// cam_simq_alloc(9).
    pub(super) fn new(openings: usize) -> Self {
        let devq = Devq::default();
        devq.send.lock().unwrap().openings = openings.try_into().unwrap_or(i32::MAX);
        devq
    }

    /// cam_xpt.c, xpt_run_devq(): while one thread is in here no other sends.
    fn run(&self) {
        let mut send = self.send.lock().unwrap();
        send.frozen += 1;
        while send.openings > 0 && send.frozen <= 1 {
            let first = (0..send.run.len()).min_by_key(|i| (send.run[*i].0, send.run[*i].1));
            let Some(first) = first else { break };
            let (_, _, device) = send.run.swap_remove(first);
            let mut ccbq = device.ccbq.lock().unwrap();
            let Some(head) = ccbq.head() else { continue };
            let ccb = ccbq.waiting[head].2 as *mut sys::ccb;
            // SAFETY: a CCB that waits is CAM's.
            let hdr = unsafe { &raw mut (*ccb).ccb_h };
            // SAFETY: as above.
            let flags = unsafe { (*hdr).flags };
            if flags & sys::CAM_HIGH_POWER != 0 && !high_power::take(&device) {
                ccbq.frozen += 1;
                continue;
            }
            ccbq.remove(head);
            ccbq.active += 1;
            ccbq.openings = ccbq.openings.wrapping_sub(1);
            // SAFETY: as above.
            unsafe { (*hdr).pinfo.index = sys::CAM_ACTIVE_INDEX };
            drop(ccbq);
            device.door.approach(ccb);
            send.openings -= 1;
            send.active += 1;
            schedule(&mut send, &device);
            drop(send);
            if flags & sys::CAM_DEV_QFREEZE != 0 {
                freeze(&device);
            }
            device.door.pass(ccb);
            device.send_to_sim(ccb);
            send = self.send.lock().unwrap();
        }
        send.frozen -= 1;
    }
}

impl Ccbq {
    pub(super) fn new(openings: usize) -> Self {
        Ccbq {
            openings: openings.try_into().unwrap_or(i32::MAX),
            ..Ccbq::default()
        }
    }

    /// cam_queue.c, camq_remove(), of the entry at `at`; the last one moves there.
    fn remove(&mut self, at: usize) {
        let (_, _, ccb) = self.waiting.swap_remove(at);
        let set_index = |ccb: usize, index: i32| {
            // SAFETY: a CCB that waits is CAM's, and its index is CAM's word.
            unsafe { (*(ccb as *mut sys::ccb)).ccb_h.pinfo.index = index };
        };
        set_index(ccb, sys::CAM_UNQUEUED_INDEX);
        if let Some((_, _, moved)) = self.waiting.get(at) {
            set_index(*moved, 1 + at as i32);
        }
    }

    fn head(&self) -> Option<usize> {
        (0..self.waiting.len()).min_by_key(|i| self.waiting[*i])
    }
}

/// The members of CAM's own structs that the module's C code reads: a device with its
/// queue, and its SIM with the lock of that.
pub(super) struct Structs {
    pub ed: *mut sys::cam_ed,
    pub sim: *mut sys::cam_sim,
}
// SAFETY: what they point at stays for ever; the mutex is made for sharing.
unsafe impl Send for Structs {}
// SAFETY: as above.
unsafe impl Sync for Structs {}

/// Whose queue a `struct camq` is, by its address.
static QUEUES: Mutex<Vec<(usize, Weak<Device>)>> = Mutex::new(Vec::new());

impl Structs {
    pub(super) fn new(device: &Arc<Device>, slots: usize) -> Self {
        // SAFETY: plain data.
        let (mut devq, mut sim, mut ed): (Box<sys::cam_devq>, Box<sys::cam_sim>, Box<sys::cam_ed>) =
            unsafe { (Box::new(zeroed()), Box::new(zeroed()), Box::new(zeroed())) };
        lock::init(mtx_of(&mut devq), c"CAM queue lock".as_ptr());
        sim.devq = Box::into_raw(devq);
        sim.max_tagged_dev_openings = c_int::try_from(slots).unwrap_or(c_int::MAX);
        let sim = Box::into_raw(sim);
        ed.sim = sim;
        let ed = Box::into_raw(ed);
        // SAFETY: just made.
        unsafe {
            let extra = &raw mut (*ed).ccbq.queue_extra_head;
            (*extra).tqh_last = &raw mut (*extra).tqh_first;
        }
        // SAFETY: an address in there.
        let at = unsafe { &raw const (*ed).ccbq.queue } as usize;
        QUEUES.lock().unwrap().push((at, Arc::downgrade(device)));
        Structs { ed, sim }
    }
}

fn mtx_of(devq: &mut sys::cam_devq) -> *mut sys::mtx {
    (&raw mut devq.send_mtx).cast()
}

/// cam_queue.c, of a device's queue.
pub(crate) unsafe extern "C" fn camq_remove(
    queue: *mut sys::camq,
    index: c_int,
) -> *mut sys::cam_pinfo {
    let queues = QUEUES.lock().unwrap();
    let found = queues.iter().find(|(at, _)| *at == queue as usize);
    let Some((_, device)) = found else {
        broken("camq_remove() of a queue that is no device's");
    };
    let device = device.upgrade().expect("the device of a queue");
    drop(queues);
    // SAFETY: they stay for ever.
    let send_mtx = unsafe { mtx_of(&mut *(*device.structs().sim).devq) };
    lock::mtx_assert_owned(send_mtx, "camq_remove");
    let (_send, mut ccbq) = locked(&device);
    let at = usize::try_from(index).unwrap_or(0).wrapping_sub(1);
    let Some((_, _, ccb)) = ccbq.waiting.get(at).copied() else {
        broken("camq_remove() of an index that is out of bounds");
    };
    ccbq.remove(at);
    // SAFETY: the CCB that waited.
    unsafe { &raw mut (*(ccb as *mut sys::ccb)).ccb_h.pinfo }
}

/// Only of CCBs that did not fit the queue, and none is there.
pub(crate) unsafe extern "C" fn camq_insert(_: *mut sys::camq, _: *mut sys::cam_pinfo) {
    broken("camq_insert()");
}

/// The queue of a device, with its SIM's lock held.
fn locked(device: &Device) -> (MutexGuard<'_, SendQueue>, MutexGuard<'_, Ccbq>) {
    (
        device.devq.send.lock().unwrap(),
        device.ccbq.lock().unwrap(),
    )
}

/// cam_xpt.c, xpt_schedule_devq(): the device comes into the SIM's queue, or
/// moves up there. Whether it came in.
fn schedule(send: &mut SendQueue, device: &Arc<Device>) -> bool {
    let ccbq = device.ccbq.lock().unwrap();
    let Some(head) = ccbq.head() else {
        return false;
    };
    if ccbq.openings <= 0 || ccbq.frozen != 0 {
        return false;
    }
    let priority = ccbq.waiting[head].0;
    if let Some(entry) = send.run.iter_mut().find(|r| Arc::ptr_eq(&r.2, device)) {
        entry.0 = entry.0.min(priority);
        return false;
    }
    send.generation += 1;
    let generation = send.generation;
    send.run.push((priority, generation, device.clone()));
    true
}

/// cam_xpt.c, xpt_action_default(), of a command.
pub(super) fn insert(device: &Arc<Device>, ccb: *mut sys::ccb) {
    let (mut send, mut ccbq) = locked(device);
    ccbq.generation += 1;
    // SAFETY: the caller's CCB, which is CAM's from here on.
    unsafe {
        let pinfo = &raw mut (*ccb).ccb_h.pinfo;
        let entry = ((*pinfo).priority, ccbq.generation, ccb as usize);
        (*pinfo).generation = ccbq.generation;
        (*pinfo).index = 1 + ccbq.waiting.len() as i32;
        ccbq.waiting.push(entry);
    }
    drop(ccbq);
    let comes_in = schedule(&mut send, device);
    drop(send);
    if comes_in {
        device.devq.run();
    }
}

/// cam_xpt.c, XPT_ABORT of a CCB that waits: it comes back with a freeze. CAM
/// takes it off the counts as if it had been sent. A device that waits for a
/// high power slot with it stays on that list.
pub(super) fn take_back(device: &Device, ccb: *mut sys::ccb) -> bool {
    let (mut send, mut ccbq) = locked(device);
    let Some(at) = ccbq.waiting.iter().position(|w| w.2 == ccb as usize) else {
        return false;
    };
    ccbq.remove(at);
    ccbq.frozen += 1;
    send.run.retain(|r| !core::ptr::eq(&*r.2, device));
    true
}

/// cam_xpt.c, xpt_freeze_devq().
pub fn freeze(device: &Device) {
    let (mut send, mut ccbq) = locked(device);
    ccbq.frozen += 1;
    send.run.retain(|r| !core::ptr::eq(&*r.2, device));
}

/// xpt_freeze_devq(9), for a periph driver.
pub(crate) unsafe extern "C" fn xpt_freeze_devq(path: *mut sys::cam_path, count: u32) -> u32 {
    let device = &of(path).device;
    (0..count).for_each(|_| freeze(device));
    counts(device).frozen
}

/// xpt_release_devq(9), for a periph driver.
pub(crate) unsafe extern "C" fn xpt_release_devq(
    path: *mut sys::cam_path,
    count: u32,
    run_queue: c_int,
) {
    let device = &of(path).device;
    let runs = (0..count).fold(false, |runs, _| release(device) | runs);
    if runs && run_queue != 0 {
        device.devq.run();
    }
}

/// cam_xpt.c, xpt_release_devq(), of one freeze.
pub fn unfreeze(device: &Arc<Device>) {
    if release(device) {
        device.devq.run();
    }
}

/// cam_xpt.c, xpt_release_devq_device(): whether the SIM's queue is to run.
fn release(device: &Arc<Device>) -> bool {
    let (mut send, mut ccbq) = locked(device);
    if ccbq.frozen == 0 {
        let (asked, present) = (1, 0);
        noise::record(Noise::DeviceReleased { asked, present });
    } else {
        ccbq.frozen -= 1;
    }
    if ccbq.frozen != 0 {
        return false;
    }
    ccbq.on_complete = false;
    if ccbq.on_timeout {
        ccbq.on_timeout = false;
        ccbq.callout += 1;
    }
    drop(ccbq);
    schedule(&mut send, device);
    true
}

/// cam_xpt.c, xpt_freeze_simq(): nothing is sent to any device of the SIM.
pub fn freeze_simq(device: &Device) {
    device.devq.send.lock().unwrap().frozen += 1;
}

/// cam_xpt.c, xpt_release_simq().
pub fn release_simq(device: &Device) {
    release_sim(device);
    device.devq.run();
}

fn release_sim(device: &Device) {
    let mut send = device.devq.send.lock().unwrap();
    if send.frozen == 0 {
        noise::record(Noise::SimReleased);
    } else {
        send.frozen -= 1;
    }
}

/// Changes how many commands the SIM takes of all its devices together.
pub fn limit_sim(device: &Device, openings: i32) {
    let mut send = device.devq.send.lock().unwrap();
    send.openings = openings - send.active;
}

/// The device's queue now.
pub fn counts(device: &Device) -> Counts {
    let (_send, ccbq) = locked(device);
    Counts {
        frozen: ccbq.frozen,
        openings: ccbq.openings,
        active: ccbq.active,
        waiting: ccbq.waiting.len(),
    }
}

/// cam_queue.c, cam_ccbq_resize(): the difference goes into the openings, and
/// a number that is none of an `int` makes them negative.
fn resize(device: &Device, openings: u32) {
    let (_send, mut ccbq) = locked(device);
    let all = ccbq.active.wrapping_add(ccbq.openings);
    let delta = (openings as i32).wrapping_sub(all);
    ccbq.openings = ccbq.openings.wrapping_add(delta);
}

/// cam_xpt.c, XPT_REL_SIMQ. `keep`: CAM_DEV_QFREEZE of the CCB, with which
/// nothing is released. The freezes that are left.
pub(super) fn rel_simq(
    device: &Arc<Device>,
    flags: u32,
    openings: u32,
    timeout_ms: u32,
    mut keep: bool,
) -> u32 {
    if flags & sys::RELSIM_ADJUST_OPENINGS != 0 && openings > 0 {
        resize(device, openings);
    }
    {
        let (_send, mut ccbq) = locked(device);
        if flags & sys::RELSIM_RELEASE_AFTER_TIMEOUT != 0 {
            // An older one is put off, and this freeze is let go now.
            keep = !ccbq.on_timeout;
            ccbq.on_timeout = true;
            ccbq.callout += 1;
            release_after(device, ccbq.callout, timeout_ms);
        }
        if flags & sys::RELSIM_RELEASE_AFTER_CMDCMPLT != 0 {
            keep = !ccbq.on_complete;
            ccbq.on_complete = true;
        }
        if flags & sys::RELSIM_RELEASE_AFTER_QEMPTY != 0 {
            keep = !(ccbq.on_empty || ccbq.active == 0);
            ccbq.on_empty |= keep;
        }
    }
    if !keep {
        unfreeze(device);
    }
    counts(device).frozen
}

/// cam_xpt.c, xpt_release_devq_timeout(), in a hundredth of the time.
fn release_after(device: &Arc<Device>, setting: u64, ms: u32) {
    let device = Arc::downgrade(device);
    on_xpt_taskq(move || {
        std::thread::sleep(Duration::from_millis(u64::from(ms.div_ceil(HASTE))));
        if let Some(device) = device.upgrade() {
            let is_set = device.ccbq.lock().unwrap().callout == setting;
            if is_set {
                unfreeze(&device);
            }
        }
    });
}

/// cam_xpt.c, xpt_done_process(), up to the periph's callback.
pub(super) fn before_callback(ccb: *mut sys::ccb) {
    let device = &device_of(ccb);
    // SAFETY: a CCB that the SIM has given back.
    let hdr = unsafe { &mut (*ccb).ccb_h };
    if hdr.flags & sys::CAM_HIGH_POWER != 0
        && let Some(next) = high_power::give_back()
    {
        release(&next);
    }
    if hdr.status & sys::CAM_RELEASE_SIMQ != 0 {
        release_sim(device);
        hdr.status &= !sys::CAM_RELEASE_SIMQ;
    }
    if hdr.flags & sys::CAM_DEV_QFRZDIS != 0 && hdr.status & sys::CAM_DEV_QFRZN != 0 {
        unfreeze(device);
        hdr.status &= !sys::CAM_DEV_QFRZN;
    }
    if hdr.func_code & sys::XPT_FC_USER_CCB != 0 {
        return;
    }
    let (mut send, mut ccbq) = locked(device);
    send.active -= 1;
    send.openings += 1;
    ccbq.active -= 1;
    ccbq.openings = ccbq.openings.wrapping_add(1);
    let empty = ccbq.on_empty && ccbq.active == 0;
    ccbq.on_empty &= !empty;
    let requeued = hdr.status & sys::CAM_STATUS_MASK == sys::CAM_REQUEUE_REQ;
    let complete = ccbq.on_complete && !requeued;
    drop((send, ccbq));
    if empty {
        release(device);
    }
    if complete && core::mem::take(&mut device.ccbq.lock().unwrap().on_complete) {
        release(device);
    }
    send = device.devq.send.lock().unwrap();
    schedule(&mut send, device);
    drop(send);
    device.devq.run();
}

/// Stops the process unless the device has nothing frozen and nothing under
/// way.
pub(super) fn check_idle(device: &Device) {
    let ccbq = device.ccbq.lock().unwrap();
    let (frozen, waiting, active) = (ccbq.frozen, ccbq.waiting.len(), ccbq.active);
    drop(ccbq);
    if frozen != 0 {
        broken("a device queue is left frozen");
    }
    if waiting != 0 || active != 0 {
        broken("a device has commands at rest, or counts some that it never had");
    }
}

/// The way from CAM's queue into the SIM: between the two, a CCB is in neither
/// and the thread that carries it holds no lock of CAM's (cam_xpt.c,
/// xpt_run_devq(), before sim_action()).
#[derive(Default)]
pub(super) struct Door {
    /// Whether it is held, and the CCBs in front of it.
    state: Mutex<(bool, Vec<usize>)>,
    changed: Condvar,
    /// The SIM follows its private pointer on XPT_ABORT.
    pub(super) follows: AtomicBool,
    /// The next XPT_ABORT finds the queue let go.
    overtaken: AtomicBool,
    /// The SIM never says that it has a CCB.
    pub(super) is_silent: AtomicBool,
    /// A CCB came with words of a SIM's in it.
    pub(super) had_words: AtomicBool,
    /// Flags of the last CCB that went through.
    pub(super) flags: AtomicU32,
    /// CCBs that went through.
    pub(super) passed: AtomicU64,
}

impl Door {
    fn approach(&self, ccb: *mut sys::ccb) {
        self.state.lock().unwrap().1.push(ccb as usize);
    }

    fn pass(&self, ccb: *mut sys::ccb) {
        let mut state = self.state.lock().unwrap();
        self.changed.notify_all();
        while state.0 {
            state = self.changed.wait(state).unwrap();
        }
        state.1.retain(|c| *c != ccb as usize);
    }

    /// Whether the CCB is in front of it: CAM has sent it, and the SIM has not
    /// got it.
    pub(super) fn has(&self, ccb: *mut sys::ccb) -> bool {
        self.state.lock().unwrap().1.contains(&(ccb as usize))
    }
}

/// Holds the SIM's door: what CAM sends from now on waits in front of it.
pub fn hold_door(device: &Device) {
    device.door.state.lock().unwrap().0 = true;
}

/// Opens it again.
pub fn open_door(device: &Device) {
    device.door.state.lock().unwrap().0 = false;
    device.door.changed.notify_all();
}

/// Waits until a CCB is in front of the SIM's door.
pub fn wait_at_door(device: &Device) {
    let mut state = device.door.state.lock().unwrap();
    while state.1.is_empty() {
        state = device.door.changed.wait(state).unwrap();
    }
}

/// When the next XPT_ABORT has begun, and before CAM looks at its target, another
/// thread lets the queue go: what was first in it is in front of the SIM's door
/// then. The driver holds the device lock, of which that thread has no need.
pub fn overtake_abort(device: &Device) {
    device.door.overtaken.store(true, Ordering::SeqCst);
}

/// Whether no XPT_ABORT came, and none is waited for any more.
pub fn overtaken_waits(device: &Device) -> bool {
    device.door.overtaken.swap(false, Ordering::SeqCst)
}

/// XPT_ABORT has begun.
pub(super) fn abort_begins(device: &Arc<Device>) {
    if !device.door.overtaken.swap(false, Ordering::SeqCst) {
        return;
    }
    hold_door(device);
    let other = device.clone();
    on_xpt_taskq(move || unfreeze(&other));
    let state = device.door.state.lock().unwrap();
    let nobody = |state: &mut (bool, Vec<usize>)| state.1.is_empty();
    let moment = Duration::from_millis(100);
    let arrived = device
        .door
        .changed
        .wait_timeout_while(state, moment, nobody);
    drop(arrived.unwrap());
    let device = device.clone();
    on_xpt_taskq(move || {
        std::thread::sleep(Duration::from_millis(50));
        open_door(&device);
    });
}

/// Makes the SIM one that follows `sim_priv` when it is asked to abort, as
/// pvscsi(4) does (pvscsi.c, pvscsi_action(), XPT_ABORT).
pub fn follow_sim_priv(device: &Device) {
    device.door.follows.store(true, Ordering::SeqCst);
}

/// Makes the SIM one that does not set CAM_SIM_QUEUED, as many do not.
pub fn say_nothing(device: &Device) {
    device.door.is_silent.store(true, Ordering::SeqCst);
}

/// Whether a SIM was given a CCB with the words in it that it, or another, had
/// left there: virtio_scsi(4) takes them for those of a request that is under way
/// when it is asked to abort the CCB before it has it (virtio_scsi.c,
/// vtscsi_abort_timedout_scsi_cmd() and vtscsi_execute_abort_task_cmd()).
pub fn had_words(device: &Device) -> bool {
    device.door.had_words.load(Ordering::SeqCst)
}

/// The flags of the last CCB that the SIM was given, and how many it was.
pub fn last_sent(device: &Device) -> (u32, u64) {
    (
        device.door.flags.load(Ordering::SeqCst),
        device.door.passed.load(Ordering::SeqCst),
    )
}

/// The slots for commands that need much power, and the devices that wait for
/// one (cam_xpt.c, xpt_run_devq() and xpt_done_process()). The list has no
/// reference to its devices.
mod high_power {
    use super::*;

    struct Slots {
        free: i32,
        waiting: VecDeque<Arc<Device>>,
    }
    /// CAM_MAX_HIGHPOWER.
    const ALL: i32 = 4;
    static SLOTS: Mutex<Slots> = Mutex::new(Slots {
        free: ALL,
        waiting: VecDeque::new(),
    });

    /// Takes a slot, or puts the device on the list.
    pub(super) fn take(device: &Arc<Device>) -> bool {
        let mut slots = SLOTS.lock().unwrap();
        if slots.free > 0 {
            slots.free -= 1;
            return true;
        }
        if slots.waiting.iter().any(|d| Arc::ptr_eq(d, device)) {
            broken("a device is put on the high power list twice");
        }
        slots.waiting.push_back(device.clone());
        false
    }

    /// Gives a slot back; the device that waited longest is let go.
    pub(super) fn give_back() -> Option<Arc<Device>> {
        let mut slots = SLOTS.lock().unwrap();
        slots.free += 1;
        // CAM looks at the flag of whatever is done, and counts on.
        if slots.free > ALL {
            broken("a CCB that took no high power slot gives one back");
        }
        let device = slots.waiting.pop_front();
        drop(slots);
        if let Some(device) = &device
            && device.is_freed()
        {
            broken("the high power list has a device that was freed");
        }
        device
    }
}

impl Device {
    /// Whether nothing in CAM refers to it: no path, and not the EDT.
    fn is_freed(&self) -> bool {
        let known = find_device(self.id).is_some_and(|d| core::ptr::eq(&*d, self));
        !known && self.paths.load(Ordering::SeqCst) == 0
    }
}
