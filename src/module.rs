//! Load and unload.
//!
//! Unloading is refused with `EBUSY` while anybody has a device open, or a
//! command of a closed open is still on its way, or a kqueue still holds an
//! event of one. Otherwise every unit is let go, and the module waits until
//! nothing of it can run any more.

use crate::{
    kpi::{
        driver::{self, AsyncFn, Driver, pause_ms},
        errno::{EBUSY, ENXIO, Result},
        print, shared, tunable,
    },
    unit::{DEVSW, DRIVER, REPLACED},
};
use core::sync::atomic::{AtomicU32, Ordering};
use sys_bindings as sys;

/// In [`STATE`]: no new use may begin.
const UNLOADING: u32 = 1 << 31;
/// In [`STATE`]: CAM has the driver on its list.
const REGISTERED: u32 = 1 << 30;
/// In [`STATE`]: CAM did not take the driver's callback.
const FAILED: u32 = 1 << 29;
const FLAGS: u32 = UNLOADING | REGISTERED | FAILED;
/// Flags, and below them the uses: a single word, so that "nobody uses it" and
/// "nobody may begin" are one step.
static STATE: AtomicU32 = AtomicU32::new(0);

/// How long unload waits for the units to go, in milliseconds.
const PATIENCE_MS: u64 = 30_000;
/// How often it looks.
const LOOK_MS: u64 = 5;

/// Somebody uses the module: it cannot be unloaded.
pub struct Use(());

/// # Errors
/// `ENXIO`: the module is being unloaded.
pub fn begin_use() -> Result<Use> {
    STATE
        .try_update(Ordering::SeqCst, Ordering::SeqCst, |state| {
            (state & UNLOADING == 0).then_some(state + 1)
        })
        .map_or(Err(ENXIO), |_| Ok(Use(())))
}

impl Drop for Use {
    fn drop(&mut self) {
        STATE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether no new unit may be attached.
pub fn is_unloading() -> bool {
    STATE.load(Ordering::SeqCst) & UNLOADING != 0
}

/// CAM was asked to tell of devices, with that outcome.
pub fn started(outcome: Result) {
    match outcome {
        Ok(()) => STATE.fetch_and(!FAILED, Ordering::SeqCst),
        Err(_) => STATE.fetch_or(FAILED, Ordering::SeqCst),
    };
}

/// MOD_LOAD. CAM calls the driver's init routine now, or, at boot, when it is
/// up itself.
///
/// # Errors
/// `ENXIO`: CAM did not take the driver.
pub fn load() -> Result {
    tunable::settle_limits();
    STATE.fetch_or(REGISTERED, Ordering::SeqCst);
    if tunable::replace() {
        if Driver::exists(REPLACED) {
            print::note(c"this kernel has pass(4): hw.qpass.replace is refused");
        } else {
            DRIVER.set_name(REPLACED);
        }
    }
    DRIVER.register();
    if STATE.load(Ordering::SeqCst) & FAILED != 0 {
        return Err(ENXIO);
    }
    Ok(())
}

/// MOD_QUIESCE: may the module go?
///
/// # Errors
/// `EBUSY`.
pub fn quiesce() -> Result {
    // A close may have left its last work to the task queue.
    shared::drain();
    match STATE.load(Ordering::SeqCst) & !FLAGS {
        0 => Ok(()),
        _ => Err(EBUSY),
    }
}

/// MOD_UNLOAD, also after a load that failed.
///
/// # Errors
/// `EBUSY`.
pub fn unload() -> Result {
    if STATE.load(Ordering::SeqCst) & REGISTERED != 0 {
        DRIVER.unregister()?;
        STATE.fetch_and(!REGISTERED, Ordering::SeqCst);
    }
    Ok(())
}

/// Lets every unit go and waits until they have gone; called by CAM when the
/// driver is unregistered.
///
/// # Errors
/// `EBUSY`: somebody uses a unit, or still does after half a minute; the
/// driver goes on, with the units that are there.
pub fn detach_all(callback: AsyncFn) -> Result {
    shared::drain();
    let closed = STATE.try_update(Ordering::SeqCst, Ordering::SeqCst, |state| {
        (state & !FLAGS == 0).then_some(state | UNLOADING)
    });
    if closed.is_err() {
        return Err(EBUSY);
    }
    let result = driver::register_global_async(0, callback)
        .and_then(|()| driver::async_barrier())
        .and_then(|()| wait_for_units());
    if result.is_err() {
        STATE.fetch_and(!UNLOADING, Ordering::SeqCst);
        // The units that have gone come back.
        started(driver::register_global_async(
            sys::AC_FOUND_DEVICE,
            callback,
        ));
    }
    result
}

fn wait_for_units() -> Result {
    while let Some(periph) = DRIVER.first() {
        periph.lock().invalidate();
    }
    for _ in 0..PATIENCE_MS / LOOK_MS {
        // The nodes' last calls, the opens' and the zones' ends.
        shared::drain();
        if DRIVER.is_empty() && shared::live() == 0 {
            DEVSW.drain();
            // Whoever said so may have an instruction or two to go.
            shared::drain();
            return Ok(());
        }
        pause_ms(LOOK_MS);
    }
    Err(EBUSY)
}
