//! CAM peripheral drivers: registration, and the events that tell of devices.

use super::{
    errno::{EINTR, Result, check},
    mutex::{mtx_lock, mtx_unlock},
    periph::{PeriphRef, cam_status},
};
use core::{
    cell::UnsafeCell,
    ffi::{CStr, c_int, c_void},
    sync::atomic::{AtomicU64, Ordering},
};
use sys_bindings as sys;

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
        topology(|| unsafe {
            let mut at = sys::periph_drivers;
            let mut found = false;
            while !(*at).is_null() {
                found |= CStr::from_ptr((**at).driver_name) == name;
                at = at.add(1);
            }
            found
        })
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
        topology(|| unsafe {
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
        });
    }

    /// Whether the driver has no unit left.
    pub fn is_empty(&'static self) -> bool {
        // SAFETY: the topology lock guards the list of units.
        topology(|| unsafe { (*self.0.get()).units.tqh_first.is_null() })
    }

    /// A reference to some unit that is not going yet.
    pub fn first(&'static self) -> Option<PeriphRef> {
        // SAFETY: the topology lock guards the list and the counts; a unit on
        // the list without CAM_PERIPH_INVALID has a count of one at least.
        topology(|| unsafe {
            let mut periph = (*self.0.get()).units.tqh_first;
            while !periph.is_null() && (*periph).flags & sys::CAM_PERIPH_INVALID != 0 {
                periph = (*periph).unit_links.tqe_next;
            }
            if periph.is_null() {
                return None;
            }
            (*periph).refcount += 1;
            Some(PeriphRef::from_raw(periph.cast()))
        })
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

/// Runs `f` with CAM's topology lock, which guards the lists of drivers and of
/// their units, and the references to them.
fn topology<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: taken and let go in pairs; no caller holds it.
    unsafe {
        sys::xpt_lock_buses();
        let result = f();
        sys::xpt_unlock_buses();
        result
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

/// pause(9) for some milliseconds, or until a signal comes.
///
/// # Errors
/// `EINTR`: a signal came, or had come already.
pub fn pause_ms_or_signal(ms: u64) -> Result {
    // SAFETY: sleeps; called where that is allowed.
    let error = unsafe {
        sys::pause_sbt(
            c"qpass".as_ptr(),
            (ms * sys::QPC_SBT_1MS) as i64,
            0,
            sys::C_CATCH as c_int,
        )
    };
    match error {
        // The time is over.
        0 | EWOULDBLOCK => Ok(()),
        _ => Err(EINTR),
    }
}

const EWOULDBLOCK: c_int = sys::EWOULDBLOCK as c_int;

/// pause(9) for some milliseconds.
pub fn pause_ms(ms: u64) {
    // SAFETY: sleeps; called where that is allowed.
    unsafe {
        sys::pause_sbt(c"qpass".as_ptr(), (ms * sys::QPC_SBT_1MS) as i64, 0, 0);
    }
}
