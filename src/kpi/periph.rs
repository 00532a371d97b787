//! CAM peripheral drivers: references, the device lock, registration.

use super::{
    alloc::KBox,
    ccb::{Ccb, StartCcb, error_routine},
    cdev::Ioctl,
    driver::{Driver, pause_ms},
    errno::{ENXIO, Errno, Result, check},
    mutex::{mtx_lock, mtx_unlock},
    shared::Shared,
};
use core::{
    any::TypeId,
    cell::UnsafeCell,
    ffi::{CStr, c_void},
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::Deref,
    ptr::{self, NonNull},
};
use sys_bindings as sys;

/// A `struct cam_periph` that someone holds a reference to.
#[repr(transparent)]
pub struct Periph(UnsafeCell<sys::cam_periph>);

// SAFETY: what we read is constant while a reference is held; the rest is
// changed by CAM under its own locks.
unsafe impl Sync for Periph {}
// SAFETY: as above.
unsafe impl Send for Periph {}

impl Periph {
    /// The periph of a callback.
    ///
    /// # Safety
    /// CAM keeps the periph alive for `'a`.
    pub unsafe fn from_raw<'a>(periph: *mut sys::cam_periph) -> &'a Self {
        // SAFETY: transparent; the caller's promise.
        unsafe { &*periph.cast() }
    }

    /// The N of the unit's name.
    pub fn unit_number(&self) -> u32 {
        // SAFETY: written once, before the driver sees the periph.
        unsafe { (*self.0.get()).unit_number }
    }

    pub(super) fn as_ptr(&self) -> *mut sys::cam_periph {
        self.0.get()
    }

    pub(super) fn path(&self) -> *mut sys::cam_path {
        // SAFETY: written once, before the driver sees the periph.
        unsafe { (*self.0.get()).path }
    }

    /// Whether the device is going; the device lock says that it stays so.
    pub fn is_invalid(&self, _held: &Held<'_>) -> bool {
        // SAFETY: the flag is set under the device lock.
        unsafe { (*self.0.get()).flags & sys::CAM_PERIPH_INVALID != 0 }
    }

    /// The driver's own data, if it is a `T`.
    pub fn softc<T: Sync + 'static>(&self) -> Option<&T> {
        // SAFETY: attach_softc() put it there, before anything else could ask,
        // and it stays until no lease is left and no callback can come.
        let softc = unsafe { (*self.0.get()).softc.cast::<Softc<T>>().as_ref()? };
        (softc.kind == TypeId::of::<T>()).then_some(&softc.value)
    }

    /// Makes `value` the driver's own data.
    ///
    /// # Errors
    /// `ENOMEM`, and the value comes back, for dropping it may sleep.
    pub fn attach_softc<T: Send + Sync + 'static>(
        &self,
        value: T,
        _held: &mut Held<'_>,
    ) -> core::result::Result<(), (Errno, T)> {
        let softc = KBox::try_new_or_back(Softc {
            kind: TypeId::of::<T>(),
            free: free_softc::<T>,
            value,
        })
        .map_err(|(errno, softc)| (errno, softc.value))?;
        // SAFETY: the field is the driver's, and nobody looks yet.
        unsafe { (*self.0.get()).softc = softc.into_raw() };
        Ok(())
    }

    /// Takes the device lock.
    #[track_caller]
    pub fn lock(&self) -> Held<'_> {
        // SAFETY: the path, and the device with its mutex, live as long as the
        // periph.
        let mtx = unsafe { sys::xpt_path_mtx(self.path()) };
        // SAFETY: CAM initialised it.
        unsafe { mtx_lock(mtx) };
        Held {
            periph: self,
            unlock: Some(mtx),
            not_send: PhantomData,
        }
    }

    /// The device lock in a callback that CAM makes with it held.
    ///
    /// # Safety
    /// The calling thread holds the device lock until the value is gone, and
    /// has no other [`Held`] in use.
    pub unsafe fn locked(&self) -> Held<'_> {
        Held {
            periph: self,
            unlock: None,
            not_send: PhantomData,
        }
    }
}

/// A driver's own data, and what it is: a softc is a `void *` to CAM.
#[repr(C)]
struct Softc<T> {
    kind: TypeId,
    /// Frees the whole, for who does not know what it is.
    free: unsafe fn(*mut c_void),
    value: T,
}

/// # Safety
/// `softc` is attach_softc()'s box of a `T`, and nobody looks at it any more.
unsafe fn free_softc<T>(softc: *mut c_void) {
    // SAFETY: the caller's promise.
    drop(unsafe { KBox::<Softc<T>>::from_raw(softc) });
}

/// A counted lease on a periph: while one is held, it and the driver's own
/// data stay.
///
/// CAM knows one reference for all leases of a periph. The last lease may go
/// anywhere, with any lock held; what it leaves is torn down on
/// `taskqueue_thread`, and only then CAM's reference goes, see `Leased`.
pub struct PeriphRef {
    periph: NonNull<sys::cam_periph>,
    lease: Shared<Leased>,
}

// SAFETY: CAM counts references under its own lock; leases are counted.
unsafe impl Send for PeriphRef {}
// SAFETY: as above.
unsafe impl Sync for PeriphRef {}

impl PeriphRef {
    /// The first lease on a periph, in its constructor. Sleeps, with the lock
    /// dropped.
    ///
    /// # Errors
    /// `ENXIO`: the device is going.
    pub fn first(periph: &Periph, driver: &'static Driver, held: &mut Held<'_>) -> Result<Self> {
        // SAFETY: alive now, and for as long as the reference is held.
        check(unsafe { sys::cam_periph_acquire(periph.0.get()) }).map_err(|_| ENXIO)?;
        // SAFETY: not null.
        let periph = unsafe { NonNull::new_unchecked(periph.0.get()) };
        let leased = Leased { periph, driver };
        let lease = held.unlocked(|| Shared::new(leased));
        Ok(PeriphRef { periph, lease })
    }

    /// Gives the lease away, for the kernel to keep.
    pub fn into_raw(self) -> *mut c_void {
        self.lease.into_raw()
    }

    /// Takes the lease back.
    ///
    /// # Safety
    /// `raw` came from [`into_raw`](Self::into_raw) and was not taken back
    /// since.
    pub unsafe fn from_raw(raw: *mut c_void) -> Self {
        // SAFETY: the caller's promise.
        let lease = unsafe { Shared::<Leased>::from_raw(raw) };
        PeriphRef {
            periph: lease.periph,
            lease,
        }
    }

    /// Looks at a lease that the kernel keeps.
    ///
    /// # Safety
    /// `raw` came from [`into_raw`](Self::into_raw) and is not taken back while
    /// the value is there.
    pub unsafe fn peek(raw: *mut c_void) -> ManuallyDrop<Self> {
        // SAFETY: the caller's promise; what is not dropped takes nothing.
        ManuallyDrop::new(unsafe { Self::from_raw(raw) })
    }
}

impl Clone for PeriphRef {
    fn clone(&self) -> Self {
        PeriphRef {
            periph: self.periph,
            lease: self.lease.clone(),
        }
    }
}

impl Deref for PeriphRef {
    type Target = Periph;
    fn deref(&self) -> &Periph {
        // SAFETY: the lease keeps it alive.
        unsafe { Periph::from_raw(self.periph.as_ptr()) }
    }
}

/// CAM's reference for all leases of a periph. It is dropped when no lease is
/// left, on `taskqueue_thread`.
///
/// It must be the last reference, and nobody may find the periph while it goes.
/// camperiphfree() lets the topology lock go between its decision and the
/// removal of the periph from the lists, and XPT_DEV_MATCH, which goes on from
/// a position that it has saved, takes the periph of that position under that
/// lock if the list has not changed, whatever its count: it would take one that
/// is being freed. So, under the device lock and the topology lock,
///
/// - the periph is marked as one that is being freed: a walk that comes by does
///   not take it any more;
/// - the list is said to have changed: positions that were saved are void, and a
///   program that asks for the same one again and again does not keep the periph;
/// - if a walk has it still, which may save its position once more, the reference
///   stays, and all this is done again a little later;
/// - if nobody has it, the last reference goes before the lock does.
///
/// The walk by devices is kept out by the device lock. There is no destructor
/// that would let that go.
struct Leased {
    periph: NonNull<sys::cam_periph>,
    driver: &'static Driver,
}

// SAFETY: CAM counts references under its own lock.
unsafe impl Send for Leased {}
// SAFETY: as above.
unsafe impl Sync for Leased {}

impl Drop for Leased {
    fn drop(&mut self) {
        // SAFETY: no lease is left, so the driver's own calls are over, and
        // the periph is invalid, so no new ones come; the reference keeps it.
        let periph = unsafe { Periph::from_raw(self.periph.as_ptr()) };
        let held = periph.lock();
        // SAFETY: the field is the driver's; callbacks of CAM's that look at
        // it do so under the device lock.
        let softc = unsafe { core::mem::replace(&mut (*periph.0.get()).softc, ptr::null_mut()) };
        drop(held);
        if !softc.is_null() {
            // SAFETY: attach_softc()'s box, whose two first fields are there
            // for every type. Sleeps, until nobody reads a sysctl.
            unsafe { ((*softc.cast::<Softc<()>>()).free)(softc) };
        }
        // SAFETY: the reference is ours, once.
        if !unsafe { self.release_if_last() } {
            // Other tasks of this thread go before the next attempt.
            pause_ms(1);
            drop(Shared::new(Leased {
                periph: self.periph,
                driver: self.driver,
            }));
        }
    }
}

impl Leased {
    /// Gives CAM's reference back if there is no other; says whether it did.
    ///
    /// # Safety
    /// The reference is ours, and gone if the answer is yes.
    unsafe fn release_if_last(&self) -> bool {
        let periph = self.periph.as_ptr();
        // SAFETY: alive until the release, which CAM wants under both locks.
        // CAM destroys the mutex of a device that goes with its last periph
        // only when it is free.
        unsafe {
            let mtx = sys::xpt_path_mtx((*periph).path);
            mtx_lock(mtx);
            sys::xpt_lock_buses();
            assert!(
                (*periph).flags & sys::CAM_PERIPH_INVALID != 0,
                "the last lease of a periph that is not going"
            );
            (*periph).flags |= sys::CAM_PERIPH_FREE;
            self.driver.list_changed();
            let is_last = (*periph).refcount == 1;
            if is_last {
                sys::cam_periph_release_locked_buses(periph);
            }
            sys::xpt_unlock_buses();
            mtx_unlock(mtx);
            is_last
        }
    }
}

/// Proof that this thread holds the CAM device lock of a periph.
pub struct Held<'a> {
    periph: &'a Periph,
    unlock: Option<*mut sys::mtx>,
    not_send: PhantomData<*mut ()>,
}

impl Held<'_> {
    pub(super) fn periph(&self) -> &Periph {
        self.periph
    }

    /// cam_periph_getccb(9): sleeps, with the lock dropped, until CAM has a CCB. What
    /// it is sent with is set up afterwards.
    ///
    /// All callers ask with one priority, CAM's own for cam_periph_ioctl(9): a caller
    /// takes the first CCB of the periph's list only if it has the caller's priority.
    /// With two priorities, one CCB may hide another from the thread that waits for it,
    /// and when no opening is left all threads wait for ever.
    pub fn getccb(&mut self) -> StartCcb {
        const ASKED: u32 = sys::QPC_CAM_PRIORITY_NORMAL;
        // SAFETY: the device lock is held; it does not return NULL.
        unsafe { StartCcb::from_raw(sys::cam_periph_getccb(self.periph.0.get(), ASKED)) }
    }

    /// cam_periph_ioctl(9): the requests that every periph answers, which is
    /// CAMGETPASSTHRU. Sleeps, with the lock dropped.
    ///
    /// # Errors
    /// `ENOTTY`: another request.
    pub fn ioctl(&mut self, mut call: Ioctl<'_>) -> Result {
        // SAFETY: the buffer is as large as the request's number says; the
        // device lock is held.
        check(unsafe {
            sys::cam_periph_ioctl(
                self.periph.0.get(),
                call.cmd(),
                call.data(),
                Some(error_routine),
            )
        })?;
        // What comes back is a copy of a CCB of CAM's own, addresses and all.
        if let Some(ccb) = call.ccb() {
            ccb.leave_outcome();
        }
        Ok(())
    }

    /// xpt_release_ccb(9); may call the start routine with the freed slot.
    pub fn release_ccb(&mut self, mut ccb: StartCcb) {
        // SAFETY: the CCB is this periph's and completed; the lock is held.
        unsafe { sys::xpt_release_ccb(ccb.as_ptr()) };
    }

    /// xpt_action(9) for an immediate CCB: it is done on return.
    pub fn action(&mut self, ccb: &mut Ccb) {
        // SAFETY: set up for this periph's path; the lock is held.
        unsafe { sys::xpt_action(ccb.as_ptr()) };
    }

    /// cam_periph_invalidate(9).
    pub fn invalidate(&mut self) {
        // SAFETY: the lock is held, and besides the reference that this drops
        // there is that of the leases.
        unsafe { sys::cam_periph_invalidate(self.periph.0.get()) };
    }

    /// XPT_GDEV_STATS: how many commands the device takes at a time, with a CCB
    /// kept for that.
    pub fn openings(&mut self, question: &mut Ccb) -> u32 {
        question.hdr_mut().func_code = sys::XPT_GDEV_STATS;
        question.setup(sys::QPC_CAM_PRIORITY_NORMAL, self);
        self.action(question);
        // SAFETY: plain data that XPT_GDEV_STATS filled in.
        let stats = unsafe { &(*question.as_ptr()).cgds };
        u32::try_from(stats.dev_openings.saturating_add(stats.dev_active)).unwrap_or(0)
    }

    /// Waits until a SIM that was in a function of its own under its lock has left
    /// it: XPT_PATH_INQ takes that lock, and gives it back. With a CCB kept for
    /// that.
    pub fn sim_barrier(&mut self, ccb: &mut Ccb) {
        ccb.hdr_mut().func_code = sys::XPT_PATH_INQ;
        ccb.setup(sys::QPC_CAM_PRIORITY_NORMAL, self);
        self.action(ccb);
    }

    /// The most commands that the SIM takes for one device at a time (cam_sim_alloc(9)):
    /// more than that it has no slots for, ahci(4) say, and looks for them all the same.
    pub fn sim_openings(&self) -> u32 {
        // SAFETY: the path's bus keeps its SIM; constant since it was allocated.
        let most = unsafe {
            let sim = sys::xpt_path_sim(self.periph.path());
            (*sim).max_tagged_dev_openings.max((*sim).max_dev_openings)
        };
        u32::try_from(most).unwrap_or(0)
    }

    /// Whether the device is being probed: cam_periph_find(9) of the periph that CAM
    /// has on it meanwhile.
    pub fn is_probed(&self) -> bool {
        PROBES.iter().any(|name| {
            // SAFETY: the device lock is held; the name is only read.
            let probe =
                unsafe { sys::cam_periph_find(self.periph.path(), name.as_ptr().cast_mut()) };
            !probe.is_null()
        })
    }

    /// The path inquiry: the SIM's `maxio` and capabilities.
    pub fn path_inq(&mut self) -> PathInq {
        let mut ccb = Ccb::zeroed();
        ccb.setup(sys::QPC_CAM_PRIORITY_NORMAL, self);
        ccb.hdr_mut().func_code = sys::XPT_PATH_INQ;
        self.action(&mut ccb);
        // SAFETY: plain data that XPT_PATH_INQ filled in.
        let cpi = unsafe { &(*ccb.as_ptr()).cpi };
        PathInq {
            devstat_type: match cpi.transport {
                sys::XPORT_ATA | sys::XPORT_SATA => sys::DEVSTAT_TYPE_IF_IDE,
                sys::XPORT_SPI
                | sys::XPORT_FC
                | sys::XPORT_SAS
                | sys::XPORT_ISCSI
                | sys::XPORT_SRP
                | sys::XPORT_PPB
                | sys::XPORT_SSA
                | sys::XPORT_USB => sys::DEVSTAT_TYPE_IF_SCSI,
                _ => sys::DEVSTAT_TYPE_IF_OTHER,
            },
            maxio: cpi.maxio,
            unmapped: cpi.hba_misc & sys::PIM_UNMAPPED != 0,
            ata: matches!(cpi.transport, sys::XPORT_ATA | sys::XPORT_SATA),
            nvme: cpi.protocol == sys::PROTO_NVME,
            lun: cpi.ccb_h.target_lun,
            // iscsi(4) answers no XPT_ABORT, and keeps none (iscsi_action_abort(),
            // the same in 14.2 and 15.0).
            longest_cdb: if LONG_CDBS.iter().any(|name| is_named(&cpi.dev_name, name)) {
                32
            } else {
                sys::IOCDBLEN as u8
            },
            forgets_aborts: is_named(&cpi.dev_name, c"iscsi"),
        }
    }

    /// Bytes of the longest CDB that CAM lets through to a device on a bus of ATA's, by
    /// XPT_GDEV_TYPE: 12 or 16 to an ATAPI device, as it says of itself, and 0 to a disk.
    /// ata_xpt.c, ata_action(), the same in 14.2 and 15.0.
    pub fn longest_packet(&mut self, ccb: &mut Ccb) -> u8 {
        ccb.hdr_mut().func_code = sys::XPT_GDEV_TYPE;
        ccb.setup(sys::QPC_CAM_PRIORITY_NORMAL, self);
        self.action(ccb);
        // SAFETY: plain data that XPT_GDEV_TYPE filled in.
        let cgd = unsafe { &(*ccb.as_ptr()).cgd };
        let config = u32::from(cgd.ident_data.config);
        if cgd.protocol != sys::PROTO_SCSI || config == sys::ATA_PROTO_CFA {
            return 0;
        }
        match config & sys::ATA_PROTO_MASK {
            sys::ATA_PROTO_ATAPI_12 => 12,
            sys::ATA_PROTO_ATAPI_16 => 16,
            _ => 0,
        }
    }

    /// The device's physical path, if it has one.
    pub fn physpath<'b>(&mut self, buffer: &'b mut [u8; PHYSPATH]) -> Option<&'b CStr> {
        // SAFETY: the buffer is as long as is said; the device lock is held.
        let error = unsafe {
            sys::xpt_getattr(
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                c"GEOM::physpath".as_ptr(),
                self.periph.path(),
            )
        };
        let path = CStr::from_bytes_until_nul(buffer).ok()?;
        (error == 0 && !path.is_empty()).then_some(path)
    }

    /// Registers for events of this device, or (`events` 0) no longer.
    ///
    /// # Errors
    /// `ENXIO`: CAM could not.
    pub fn register_async(&mut self, events: u32, callback: super::driver::AsyncFn) -> Result {
        // SAFETY: the periph is the argument the callback gets back; it is
        // deregistered before the periph goes.
        let status = unsafe {
            sys::xpt_register_async(
                events as i32,
                Some(callback),
                self.periph.0.get().cast(),
                self.periph.path(),
            )
        };
        cam_status(status)
    }

    /// Drops the lock while `f` runs.
    pub fn unlocked<R>(&mut self, f: impl FnOnce() -> R) -> R {
        // SAFETY: the lock is held, and nobody can use this guard meanwhile.
        unsafe {
            let mtx = sys::xpt_path_mtx(self.periph.path());
            mtx_unlock(mtx);
            let result = f();
            mtx_lock(mtx);
            result
        }
    }

    /// xpt_freeze_devq(9), until it is dropped: what CAM has in its queue stays
    /// there. CAM sends from it with no device lock.
    pub fn freeze(&self) -> Frozen<'_> {
        // SAFETY: the lock is held, and the path lives.
        unsafe { sys::xpt_freeze_devq(self.periph.path(), 1) };
        Frozen(self.periph)
    }

    pub(super) fn release_devq(&mut self) {
        // SAFETY: the lock is held; releases one freeze.
        unsafe { sys::cam_release_devq(self.periph.path(), 0, 0, 0, 0) };
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(mtx) = self.unlock {
            // SAFETY: taken in lock(), by this thread. The mutex is the
            // device's and outlives the periph's path.
            unsafe { mtx_unlock(mtx) };
        }
    }
}

/// A freeze of a device's queue, that is given back.
pub struct Frozen<'h>(&'h Periph);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // SAFETY: one freeze, ours; the path lives as long as the periph.
        unsafe { sys::xpt_release_devq(self.0.path(), 1, 1) };
    }
}

/// Bytes that a physical path has room in: devfs(5) takes no longer name.
pub const PHYSPATH: usize = 256;

/// The periph drivers that probe: scsi_xpt.c, ata_xpt.c, nvme_xpt.c, mmc_xpt.c, the
/// same in 14.2 and 15.0.
const PROBES: [&CStr; 4] = [c"probe", c"aprobe", c"nvme_probe", c"mmcprobe"];

/// SIMs that have room for a CDB of 32 bytes. No peripheral of CAM's sends one of more
/// than 16, and others copy what there is: past the end of their own request, or
/// (iscsi(4)) into an assertion. virtio_scsi(4) looks, the others have a CDB32 there
/// (mps_sas.c, mpr_sas.c, mpi3mr_cam.c, the same in 14.2 and 15.0).
const LONG_CDBS: [&CStr; 4] = [c"vtscsi", c"mps", c"mpr", c"mpi3mr"];

/// Whether a SIM's driver is called so.
fn is_named(dev_name: &[core::ffi::c_char], name: &CStr) -> bool {
    let name = name.to_bytes_with_nul().iter();
    dev_name.len() >= name.len() && name.zip(dev_name).all(|(a, b)| *a == *b as u8)
}

/// What a path inquiry tells this driver.
pub struct PathInq {
    /// devstat(9)'s kind of interface.
    pub devstat_type: u32,
    /// The SIM's largest transfer in bytes, 0 where it does not say.
    pub maxio: u32,
    /// The SIM takes unmapped I/O.
    pub unmapped: bool,
    /// The bus is ATA's, or SATA.
    pub ata: bool,
    /// The device is an NVMe namespace.
    pub nvme: bool,
    /// The device's LUN, which is an NVMe device's namespace.
    pub lun: u64,
    /// Bytes of the longest CDB that the SIM has room for.
    pub longest_cdb: u8,
    /// The SIM does not answer XPT_ABORT, and has let the CCB go when it returns.
    pub forgets_aborts: bool,
}

/// Data guarded by the CAM device lock of one periph.
pub struct DeviceCell<T> {
    periph: *const Periph,
    data: UnsafeCell<T>,
}

// SAFETY: reached with the device lock held only.
unsafe impl<T: Send> Sync for DeviceCell<T> {}
// SAFETY: the pointer is only compared.
unsafe impl<T: Send> Send for DeviceCell<T> {}

impl<T> DeviceCell<T> {
    /// Data that belongs to `periph`.
    pub fn new(periph: &Periph, data: T) -> Self {
        DeviceCell {
            periph,
            data: UnsafeCell::new(data),
        }
    }

    fn assert_locked(&self, held: &Held<'_>) {
        assert!(
            core::ptr::eq(self.periph, held.periph),
            "lock of another device"
        );
    }

    /// The data, to look at only.
    pub fn look<'h>(&'h self, held: &'h Held<'_>) -> &'h T {
        self.assert_locked(held);
        // SAFETY: the lock is held, and while `held` is borrowed nobody has
        // the data exclusively.
        unsafe { &*self.data.get() }
    }

    /// The data, for as long as the lock stays held.
    pub fn get<'h>(&'h self, held: &'h mut Held<'_>) -> &'h mut T {
        self.assert_locked(held);
        // SAFETY: the lock is held, and `held` is borrowed exclusively.
        unsafe { &mut *self.data.get() }
    }
}

/// A CAM call's status as a result.
pub(super) fn cam_status(status: sys::cam_status) -> core::result::Result<(), Errno> {
    if status == sys::CAM_REQ_CMP {
        Ok(())
    } else {
        Err(ENXIO)
    }
}
