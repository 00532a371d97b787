//! CAM peripheral drivers: references, the device lock, registration.

use super::{
    alloc::KBox,
    ccb::{Ccb, StartCcb, error_routine},
    cdev::Ioctl,
    errno::{ENXIO, Errno, Result, check},
    mutex::{mtx_lock, mtx_unlock},
};
use core::{
    any::TypeId,
    cell::UnsafeCell,
    ffi::{CStr, c_void},
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::Deref,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
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
    /// `ENOMEM`.
    pub fn attach_softc<T: Send + Sync + 'static>(&self, value: T, _held: &mut Held<'_>) -> Result {
        let softc = KBox::try_new(Softc {
            kind: TypeId::of::<T>(),
            value,
        })?;
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

    /// xpt_schedule(9): asks CAM for a CCB; the start routine gets it, perhaps
    /// before this returns.
    pub fn schedule(&mut self, priority: u32) {
        // SAFETY: the device lock is held.
        unsafe { sys::xpt_schedule(self.periph.0.get(), priority) };
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
        })
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
    pub fn register_async(&mut self, events: u32, callback: AsyncFn) -> Result {
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

    /// The data, for as long as the lock stays held.
    pub fn get<'h>(&'h self, held: &'h mut Held<'_>) -> &'h mut T {
        assert!(
            core::ptr::eq(self.periph, held.periph),
            "lock of another device"
        );
        // SAFETY: the lock is held, and `held` is borrowed exclusively.
        unsafe { &mut *self.data.get() }
    }
}

/// The driver's callback for asynchronous events.
pub type AsyncFn = unsafe extern "C" fn(*mut c_void, u32, *mut sys::cam_path, *mut c_void);

/// The four routines of a periph, and its asynchronous callback.
pub struct Routines {
    /// Constructor, in cam_periph_alloc(9).
    pub ctor: unsafe extern "C" fn(*mut sys::cam_periph, *mut c_void) -> sys::cam_status,
    /// The device is going.
    pub oninvalidate: unsafe extern "C" fn(*mut sys::cam_periph),
    /// The last reference went.
    pub dtor: unsafe extern "C" fn(*mut sys::cam_periph),
    /// CAM has a CCB for a scheduled periph.
    pub start: unsafe extern "C" fn(*mut sys::cam_periph, *mut sys::ccb),
    /// Devices come and go.
    pub async_event: AsyncFn,
}

/// A `struct periph_driver`, registered by [`register`](Self::register).
pub struct Driver(UnsafeCell<sys::periph_driver>);

// SAFETY: CAM changes it under its topology lock.
unsafe impl Sync for Driver {}

impl Driver {
    /// A driver whose units are called `name`N.
    pub const fn new(
        name: &'static CStr,
        init: unsafe extern "C" fn(),
        deinit: unsafe extern "C" fn() -> core::ffi::c_int,
    ) -> Self {
        // SAFETY: plain data; what is left out is zero in C as well.
        let mut driver: sys::periph_driver = unsafe { core::mem::zeroed() };
        driver.init = Some(init);
        driver.deinit = Some(deinit);
        driver.driver_name = name.as_ptr().cast_mut();
        Driver(UnsafeCell::new(driver))
    }

    /// Whether CAM has a driver of that name already.
    pub fn exists(name: &CStr) -> bool {
        // SAFETY: the topology lock guards the list, which NULL ends; names
        // are NUL-ended.
        unsafe {
            sys::xpt_lock_buses();
            let mut at = sys::periph_drivers;
            let mut found = false;
            while !(*at).is_null() {
                found |= CStr::from_ptr((**at).driver_name) == name;
                at = at.add(1);
            }
            sys::xpt_unlock_buses();
            found
        }
    }

    /// Changes the name that units and nodes get; before
    /// [`register`](Self::register) only.
    pub fn set_name(&'static self, name: &'static CStr) {
        // SAFETY: nobody knows the driver yet: the module is being loaded.
        unsafe { (*self.0.get()).driver_name = name.as_ptr().cast_mut() };
    }

    /// The name that units and nodes get.
    pub fn name(&'static self) -> &'static CStr {
        // SAFETY: the name is static, and not changed after registration.
        unsafe { CStr::from_ptr((*self.0.get()).driver_name) }
    }

    /// periphdriver_register(9): calls the driver's init routine if CAM is up.
    pub fn register(&'static self) {
        // SAFETY: static, and not registered: the module event handler is
        // called once for a load. This is TAILQ_INIT.
        unsafe {
            let units = &raw mut (*self.0.get()).units;
            (*units).tqh_first = core::ptr::null_mut();
            (*units).tqh_last = &raw mut (*units).tqh_first;
            sys::periphdriver_register(self.0.get().cast());
        }
    }

    /// periphdriver_unregister(9): calls the driver's deinit routine first.
    ///
    /// # Errors
    /// What deinit said; the driver stays registered.
    pub fn unregister(&'static self) -> Result {
        // SAFETY: registered.
        check(unsafe { sys::periphdriver_unregister(self.0.get().cast()) })?;
        self.forget();
        Ok(())
    }

    /// Takes this driver out of CAM's list for good.
    ///
    /// periphdriver_unregister() of 14.2 ends its list one entry too late: the
    /// last driver is still found at the end, or found twice. When it is ours,
    /// the next walk would read unmapped memory. A list that ends where it
    /// should is left as it is.
    fn forget(&'static self) {
        // SAFETY: the topology lock guards the list, which NULL ends.
        unsafe {
            sys::xpt_lock_buses();
            let mut end = sys::periph_drivers;
            while !(*end).is_null() {
                end = end.add(1);
            }
            if end != sys::periph_drivers {
                let last = end.sub(1);
                let doubled = last != sys::periph_drivers && *last.sub(1) == *last;
                if *last == self.0.get() || doubled {
                    *last = core::ptr::null_mut();
                }
            }
            sys::xpt_unlock_buses();
        }
    }

    /// Whether the driver has no unit left.
    pub fn is_empty(&'static self) -> bool {
        // SAFETY: the topology lock guards the list of units.
        unsafe {
            sys::xpt_lock_buses();
            let empty = (*self.0.get()).units.tqh_first.is_null();
            sys::xpt_unlock_buses();
            empty
        }
    }

    /// A reference to some unit that is not going yet.
    pub fn first(&'static self) -> Option<PeriphRef> {
        // SAFETY: the topology lock guards the list and the counts; a unit on
        // the list without CAM_PERIPH_INVALID has a count of one at least.
        unsafe {
            sys::xpt_lock_buses();
            let mut periph = (*self.0.get()).units.tqh_first;
            while !periph.is_null() && (*periph).flags & sys::CAM_PERIPH_INVALID != 0 {
                periph = (*periph).unit_links.tqe_next;
            }
            if !periph.is_null() {
                (*periph).refcount += 1;
            }
            sys::xpt_unlock_buses();
            NonNull::new(periph).map(PeriphRef)
        }
    }

    /// cam_periph_alloc(9), in the driver's AC_FOUND_DEVICE callback.
    ///
    /// # Errors
    /// The CAM status; CAM_REQ_INPROG (the old unit is still going, and CAM
    /// calls again) is none.
    ///
    /// # Safety
    /// `path` and `arg` are those of the callback.
    pub unsafe fn attach(
        &'static self,
        routines: &Routines,
        path: *mut sys::cam_path,
        arg: *mut c_void,
    ) -> core::result::Result<(), sys::cam_status> {
        // SAFETY: the callback holds the lock of the path's device.
        let status = unsafe {
            sys::cam_periph_alloc(
                Some(routines.ctor),
                Some(routines.oninvalidate),
                Some(routines.dtor),
                Some(routines.start),
                (*self.0.get()).driver_name,
                sys::CAM_PERIPH_BIO,
                path,
                Some(routines.async_event),
                sys::AC_FOUND_DEVICE,
                arg,
            )
        };
        match status {
            sys::CAM_REQ_CMP | sys::CAM_REQ_INPROG => Ok(()),
            other => Err(other),
        }
    }
}

/// Registers for AC_FOUND_DEVICE: `callback` is told of the devices there are,
/// and of every one that comes. With `events` 0, no longer.
///
/// # Errors
/// `ENXIO`: CAM could not.
pub fn register_global_async(events: u32, callback: AsyncFn) -> Result {
    // SAFETY: no periph, no path: xpt_register_async(9) uses the XPT's own.
    cam_status(unsafe {
        sys::xpt_register_async(
            events as i32,
            Some(callback),
            core::ptr::null_mut(),
            core::ptr::null_mut(),
        )
    })
}

fn cam_status(status: sys::cam_status) -> core::result::Result<(), Errno> {
    if status == sys::CAM_REQ_CMP {
        Ok(())
    } else {
        Err(ENXIO)
    }
}

/// The barrier's mark on its event, and how many it has seen.
const CONTRACT: u64 = u64::from_be_bytes(*b"qpassbar");
static BARRIERS: AtomicU64 = AtomicU64::new(0);

/// Waits until CAM's event thread has finished what it had begun.
///
/// A callback that was deregistered may be running still. Events are handled
/// one by one: when one that is sent now has come through, the others have
/// left. The last instruction of the barrier's own callback is waited for by
/// taking the lock that it is called under. Sleeps.
///
/// # Errors
/// `ENXIO`: CAM could not make a path.
pub fn async_barrier() -> Result {
    let mut path = core::ptr::null_mut();
    // SAFETY: xpt_create_path(9) fills in the path on success; it, its mutex
    // and the static callback are used while both are valid, and the callback
    // is deregistered before the path goes.
    unsafe {
        cam_status(sys::xpt_create_path(
            &mut path,
            core::ptr::null_mut(),
            sys::QPC_CAM_XPT_PATH_ID,
            sys::QPC_CAM_TARGET_WILDCARD,
            sys::QPC_CAM_LUN_WILDCARD,
        ))?;
        let mtx = sys::xpt_path_mtx(path);
        mtx_lock(mtx);
        let registered = cam_status(sys::xpt_register_async(
            sys::AC_CONTRACT as i32,
            Some(barrier_event),
            core::ptr::null_mut(),
            path,
        ));
        mtx_unlock(mtx);
        if registered.is_ok() {
            let before = BARRIERS.load(Ordering::SeqCst);
            let mut contract: sys::ac_contract = core::mem::zeroed();
            contract.contract_number = CONTRACT;
            loop {
                // xpt_async() does without memory by doing nothing: ask again.
                sys::xpt_async(sys::AC_CONTRACT, path, (&raw mut contract).cast());
                mtx_lock(mtx);
                if BARRIERS.load(Ordering::SeqCst) == before {
                    sys::_sleep(
                        (&raw const BARRIERS).cast(),
                        &raw mut (*mtx).lock_object,
                        0,
                        c"qpbarr".as_ptr(),
                        sys::QPC_SBT_1S as i64,
                        0,
                        0,
                    );
                }
                let passed = BARRIERS.load(Ordering::SeqCst) != before;
                mtx_unlock(mtx);
                if passed {
                    break;
                }
            }
            mtx_lock(mtx);
            // Deregistering cannot fail: it allocates nothing.
            sys::xpt_register_async(0, Some(barrier_event), core::ptr::null_mut(), path);
            mtx_unlock(mtx);
        }
        sys::xpt_free_path(path);
        registered
    }
}

unsafe extern "C" fn barrier_event(
    _arg: *mut c_void,
    _code: u32,
    _path: *mut sys::cam_path,
    data: *mut c_void,
) {
    // SAFETY: an AC_CONTRACT event carries a struct ac_contract.
    let number = unsafe { data.cast::<sys::ac_contract>().as_ref() }.map(|c| c.contract_number);
    if number == Some(CONTRACT) {
        BARRIERS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: only an address to wake sleepers on.
        unsafe { sys::wakeup((&raw const BARRIERS).cast()) };
    }
}

/// Hands an event that is not the driver's own to cam_periph_async(9), which
/// invalidates the periph on AC_LOST_DEVICE.
///
/// # Safety
/// The arguments are those of the callback, registered with a periph.
pub unsafe fn default_async(
    arg: *mut c_void,
    code: u32,
    path: *mut sys::cam_path,
    data: *mut c_void,
) {
    // SAFETY: CAM calls with the device lock held and the periph alive.
    unsafe { sys::cam_periph_async(arg.cast(), code, path, data) };
}

/// pause(9) for some milliseconds.
pub fn pause_ms(ms: u64) {
    // SAFETY: sleeps; called where that is allowed.
    unsafe {
        sys::pause_sbt(c"qpass".as_ptr(), (ms * sys::QPC_SBT_1MS) as i64, 0, 0);
    }
}
