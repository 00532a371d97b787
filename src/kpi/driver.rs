//! CAM peripheral drivers: registration, and the events that tell of devices.

use super::{
    alloc::KBox,
    ccb::Ccb,
    errno::{EINTR, Result, check},
    mutex::{mtx_lock, mtx_unlock},
    patience::Patience,
    periph::{Periph, cam_status},
};
use core::{
    cell::UnsafeCell,
    ffi::{CStr, c_int, c_void},
    ptr::{NonNull, null_mut},
    sync::atomic::{AtomicBool, AtomicPtr, Ordering},
};
use sys_bindings as sys;

/// The driver's callback for asynchronous events.
pub type AsyncFn = unsafe extern "C" fn(*mut c_void, u32, *mut sys::cam_path, *mut c_void);

/// The routines of a periph, and its asynchronous callback. There is no
/// destructor: what there is to tear down is torn down before CAM's last
/// reference goes, see [`PeriphRef`](super::periph::PeriphRef).
pub struct Routines {
    /// Constructor, in cam_periph_alloc(9).
    pub ctor: unsafe extern "C" fn(*mut sys::cam_periph, *mut c_void) -> sys::cam_status,
    /// The device is going.
    pub oninvalidate: unsafe extern "C" fn(*mut sys::cam_periph),
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
            while !at.is_null() && !(*at).is_null() {
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
    /// periphdriver_unregister() of 14.2 and 15.0 ends its list one entry too
    /// late: the last driver is still found at the end, or found twice. When it
    /// is ours, the next walk would read unmapped memory. A list that ends where
    /// it should is left as it is.
    ///
    /// The entry is not cleared but names a driver of CAM's own once more. A walk
    /// by drivers finds that an entry is not NULL, and then follows it twice, each
    /// time under the topology lock and without another look: one that waits for
    /// that lock now would follow NULL. The next registration copies the list
    /// without the entry.
    fn forget(&'static self) {
        // SAFETY: the topology lock guards the list, which NULL ends; names
        // are NUL-ended.
        topology(|| unsafe {
            let mut end = sys::periph_drivers;
            let mut standing_in: *mut sys::periph_driver = null_mut();
            while !end.is_null() && !(*end).is_null() {
                let name = CStr::from_ptr((**end).driver_name);
                // That of the probes has units for moments only, and that of
                // the XPT is there in every kernel.
                if name == c"probe" || name == c"xpt" && standing_in.is_null() {
                    standing_in = *end;
                }
                end = end.add(1);
            }
            if end != sys::periph_drivers {
                let last = end.sub(1);
                let doubled = last != sys::periph_drivers && *last.sub(1) == *last;
                if *last == self.0.get() || doubled {
                    *last = standing_in;
                }
            }
        });
    }

    /// Whether the driver has no unit left.
    pub fn is_empty(&'static self) -> bool {
        // SAFETY: the topology lock guards the list of units.
        topology(|| unsafe { (*self.0.get()).units.tqh_first.is_null() })
    }

    /// cam_periph_invalidate(9) for every unit.
    ///
    /// No unit is being attached, nor will be.
    pub fn invalidate_all(&'static self) {
        while let Some(unit) = self.first() {
            // SAFETY: first() gave a reference, which goes here. It is not the
            // last one: every attached unit is leased until it has gone.
            unsafe {
                Periph::from_raw(unit.as_ptr()).lock().invalidate();
                sys::cam_periph_release(unit.as_ptr());
            }
        }
    }

    /// A unit that is not going yet, with a reference to it.
    fn first(&'static self) -> Option<NonNull<sys::cam_periph>> {
        // SAFETY: the topology lock guards the list and the counts; a unit on
        // the list without CAM_PERIPH_INVALID has a count of one at least.
        topology(|| unsafe {
            let mut periph = (*self.0.get()).units.tqh_first;
            while !periph.is_null() && (*periph).flags & sys::CAM_PERIPH_INVALID != 0 {
                periph = (*periph).unit_links.tqe_next;
            }
            let periph = NonNull::new(periph)?;
            (*periph.as_ptr()).refcount += 1;
            Some(periph)
        })
    }

    /// Makes void what XPT_DEV_MATCH has saved of its walks over the units.
    ///
    /// # Safety
    /// The topology lock is held.
    pub(super) unsafe fn list_changed(&'static self) {
        // SAFETY: the topology lock guards the generation.
        unsafe {
            let generation = &raw mut (*self.0.get()).generation;
            *generation = (*generation).wrapping_add(1);
        }
    }

    /// cam_periph_find(9): the driver's unit on the device of a path, if it has one that
    /// is not going.
    ///
    /// # Safety
    /// The path's device lock is held as long as the answer is used.
    pub unsafe fn periph_of<'a>(&'static self, path: *mut sys::cam_path) -> Option<&'a Periph> {
        // SAFETY: the path is the caller's; a unit that is not going has a reference
        // of CAM's, which the device lock keeps there.
        let periph = unsafe { sys::cam_periph_find(path, (*self.0.get()).driver_name) };
        if periph.is_null() {
            return None;
        }
        // SAFETY: as above.
        unsafe {
            let is_going = (*periph).flags & sys::CAM_PERIPH_INVALID != 0;
            let periph: &'a Periph = Periph::from_raw(periph);
            (!is_going).then_some(periph)
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
                None,
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

/// A CCB on its way through CAM's event thread.
struct Probe {
    ccb: Ccb,
    path: *mut sys::cam_path,
    passed: AtomicBool,
}

/// The one that is under way: [`async_barrier`]'s, or one that it gave up.
static PROBE: AtomicPtr<Probe> = AtomicPtr::new(null_mut());

/// Waits until CAM's event thread has finished what it had begun. For one
/// thread at a time: the module's unload. Sleeps.
///
/// A callback that was deregistered may be running still. The event thread
/// handles the XPT_ASYNC CCBs that it is given one by one: when one that is
/// sent now has come through, the callbacks of those before it have returned.
/// It carries no event and calls nobody but the driver's own routine.
///
/// # Errors
/// `EBUSY`: it has not come through in time, and is still on its way: the
/// module must stay until a later call has succeeded. `ENXIO`: CAM could not
/// make a path.
pub fn async_barrier(patience: &Patience) -> Result {
    wait_for_probe(patience)?;
    let mut path = null_mut();
    // SAFETY: xpt_create_path(9) fills in the path on success.
    cam_status(unsafe {
        sys::xpt_create_path(
            &mut path,
            null_mut(),
            sys::QPC_CAM_XPT_PATH_ID,
            sys::QPC_CAM_TARGET_WILDCARD,
            sys::QPC_CAM_LUN_WILDCARD,
        )
    })?;
    let probe = KBox::new(Probe {
        ccb: Ccb::zeroed(),
        path,
        passed: AtomicBool::new(false),
    })
    .into_raw()
    .cast::<Probe>();
    PROBE.store(probe, Ordering::SeqCst);
    // SAFETY: the probe and its path stay until wait_for_probe() has seen that
    // CAM is through with both.
    unsafe {
        let ccb = (*probe).ccb.as_ptr();
        let mtx = sys::xpt_path_mtx(path);
        sys::xpt_setup_ccb_flags(&raw mut (*ccb).ccb_h, path, sys::QPC_CAM_PRIORITY_NORMAL, 0);
        (*ccb).ccb_h.func_code = sys::XPT_ASYNC;
        (*ccb).ccb_h.cbfcnp = Some(probe_done);
        mtx_lock(mtx);
        sys::xpt_action(ccb);
        mtx_unlock(mtx);
    }
    wait_for_probe(patience)
}

/// Waits for the probe that is under way, if there is one, and frees it.
fn wait_for_probe(patience: &Patience) -> Result {
    let probe = PROBE.load(Ordering::SeqCst);
    if probe.is_null() {
        return Ok(());
    }
    // SAFETY: async_barrier() made it, and it stays until it is freed below.
    unsafe {
        patience.wait(|| (*probe).passed.load(Ordering::SeqCst))?;
        // Without CAM_UNLOCKED, the callback runs under the path's mutex: with
        // that taken once, its last instruction is over.
        let mtx = sys::xpt_path_mtx((*probe).path);
        mtx_lock(mtx);
        mtx_unlock(mtx);
        PROBE.store(null_mut(), Ordering::SeqCst);
        let probe = KBox::<Probe>::from_raw(probe.cast());
        sys::xpt_free_path(probe.path);
    }
    Ok(())
}

unsafe extern "C" fn probe_done(_periph: *mut sys::cam_periph, _ccb: *mut sys::ccb) {
    // SAFETY: the one that is under way is this one: another is sent only when
    // it has been freed, and that waits for this callback.
    unsafe {
        (*PROBE.load(Ordering::SeqCst))
            .passed
            .store(true, Ordering::SeqCst)
    };
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
            crate::name(),
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
        sys::pause_sbt(crate::name(), (ms * sys::QPC_SBT_1MS) as i64, 0, 0);
    }
}

/// Whether the kernel has panicked: the other CPUs were stopped wherever they were,
/// with whatever they had half changed, and this one writes a dump.
pub fn has_panicked() -> bool {
    // SAFETY: a pointer of the kernel's, set once, that is only looked at.
    !unsafe { (&raw const sys::panicstr).read_volatile() }.is_null()
}
