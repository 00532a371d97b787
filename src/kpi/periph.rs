//! CAM peripheral drivers: references, the device lock, registration.

use super::{
    alloc::KBox,
    ccb::{Ccb, StartCcb, error_routine},
    cdev::Ioctl,
    errno::{ENXIO, Errno, Result, check},
    mutex::{mtx_lock, mtx_unlock},
};
use crate::nvme;
use core::{
    any::TypeId,
    cell::UnsafeCell,
    ffi::{CStr, c_void},
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::Deref,
    ptr::NonNull,
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

    /// The N of qpassN.
    pub fn unit_number(&self) -> u32 {
        // SAFETY: written once, before the driver sees the periph.
        unsafe { (*self.0.get()).unit_number }
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
        // and it stays until the destructor, when no reference is left.
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
            value,
        })
        .map_err(|(errno, softc)| (errno, softc.value))?;
        // SAFETY: the field is the driver's, and nobody looks yet.
        unsafe { (*self.0.get()).softc = softc.into_raw() };
        Ok(())
    }

    /// Takes the driver's own data out.
    ///
    /// # Safety
    /// It is a `T`, and no reference from [`softc`](Self::softc) is in use:
    /// the periph's destructor, or a constructor that fails.
    pub unsafe fn take_softc<T>(&self) -> Option<KBox<Softc<T>>> {
        // SAFETY: the field is the driver's; the box is attach_softc()'s.
        unsafe {
            let softc = core::mem::replace(&mut (*self.0.get()).softc, core::ptr::null_mut());
            (!softc.is_null()).then(|| KBox::from_raw(softc))
        }
    }

    /// cam_periph_acquire(9).
    ///
    /// # Errors
    /// `ENXIO`: the device is going.
    pub fn acquire(&self) -> Result<PeriphRef> {
        // SAFETY: alive now, and for as long as the new reference is held.
        check(unsafe { sys::cam_periph_acquire(self.0.get()) }).map_err(|_| ENXIO)?;
        // SAFETY: not null.
        Ok(PeriphRef(unsafe { NonNull::new_unchecked(self.0.get()) }))
    }

    /// cam_periph_doacquire(9): one more reference, also where the device is going,
    /// besides the one that the caller's borrow comes with.
    pub fn reference(&self) -> PeriphRef {
        // SAFETY: alive, for the caller has a reference.
        unsafe {
            sys::cam_periph_doacquire(self.0.get());
            PeriphRef(NonNull::new_unchecked(self.0.get()))
        }
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
pub struct Softc<T> {
    kind: TypeId,
    value: T,
}

/// A reference to a periph. It must go where the device lock is not held.
pub struct PeriphRef(NonNull<sys::cam_periph>);

// SAFETY: CAM counts references under its own lock.
unsafe impl Send for PeriphRef {}
// SAFETY: as above.
unsafe impl Sync for PeriphRef {}

impl PeriphRef {
    /// Gives the reference away, for the kernel to keep.
    pub fn into_raw(self) -> *mut c_void {
        ManuallyDrop::new(self).0.as_ptr().cast()
    }

    /// Takes the reference back.
    ///
    /// # Safety
    /// `raw` came from [`into_raw`](Self::into_raw), once.
    pub unsafe fn from_raw(raw: *mut c_void) -> Self {
        // SAFETY: into_raw gave a non-null pointer.
        PeriphRef(unsafe { NonNull::new_unchecked(raw.cast()) })
    }
}

impl PeriphRef {
    /// Gives the reference back where the device lock is held. It is not the
    /// last one: the caller relies on another.
    pub fn release_locked(self, _held: &mut Held<'_>) {
        // SAFETY: the reference is ours, once; the device lock is held.
        unsafe { sys::cam_periph_release_locked(ManuallyDrop::new(self).0.as_ptr()) };
    }
}

impl Deref for PeriphRef {
    type Target = Periph;
    fn deref(&self) -> &Periph {
        // SAFETY: the reference keeps it alive.
        unsafe { Periph::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for PeriphRef {
    fn drop(&mut self) {
        // SAFETY: the reference is ours, once; takes the device lock itself.
        unsafe { sys::cam_periph_release(self.0.as_ptr()) };
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

    /// cam_periph_getccb(9): sleeps, with the lock dropped, until CAM has a CCB.
    pub fn getccb(&mut self, priority: u32) -> StartCcb {
        // SAFETY: the device lock is held; it does not return NULL.
        unsafe { StartCcb::from_raw(sys::cam_periph_getccb(self.periph.0.get(), priority)) }
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
        // SAFETY: the lock is held, and the caller's borrow of the periph
        // comes with a reference besides the one that this drops.
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

    /// XPT_DEV_ADVINFO of the namespace's Identify data, as nvme(4) read it last,
    /// with a CCB kept for that. `false`: the device has none.
    pub fn nvme_identify(&mut self, ccb: &mut Ccb, to: &mut [u8; nvme::IDENTIFY]) -> bool {
        ccb.hdr_mut().func_code = sys::XPT_DEV_ADVINFO;
        ccb.setup(sys::QPC_CAM_PRIORITY_NORMAL, self);
        // SAFETY: plain data; the buffer is as long as is said, and CAM fills it
        // before it returns.
        let (status, given) = unsafe {
            let cdai = &raw mut (*ccb.as_ptr()).cdai;
            (*cdai).ccb_h.flags = sys::CAM_DIR_IN;
            (*cdai).flags = sys::CDAI_FLAG_NONE;
            (*cdai).buftype = sys::CDAI_TYPE_NVME_NS;
            (*cdai).bufsiz = to.len() as _;
            (*cdai).provsiz = 0;
            (*cdai).buf = to.as_mut_ptr();
            sys::xpt_action(ccb.as_ptr());
            (*cdai).buf = core::ptr::null_mut();
            ((*cdai).ccb_h.status, (*cdai).provsiz)
        };
        status & sys::CAM_STATUS_MASK == sys::CAM_REQ_CMP && given as usize >= to.len()
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
            forgets_aborts: cpi.dev_name.map(|c| c as u8).starts_with(b"iscsi\0"),
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

/// Bytes that a physical path has room in: devfs(5) takes no longer name.
pub const PHYSPATH: usize = 256;

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
