//! Load and unload.
//!
//! Unloading is refused with `EBUSY` while anybody has a device open, or a
//! command of a closed open is still on its way, or a kqueue still holds an
//! event of one. Otherwise every unit is let go, and the module waits until
//! nothing of it can run any more.

use crate::tunable;
use crate::unit::{DEVSW, DRIVER, REPLACED};
use core::sync::atomic::{AtomicU32, Ordering};
use kpi::{
    abort,
    driver::{self, AsyncFn, Driver},
    errno::{EBUSY, ENXIO, Result},
    patience::Patience,
    print, shared, task,
};
use sys_bindings as sys;

/// In [`STATE`]: no new use may begin.
const UNLOADING: u32 = 1 << 31;
/// In [`STATE`]: CAM has the driver on its list.
const REGISTERED: u32 = 1 << 30;
/// In [`STATE`]: CAM did not take the driver's callback.
const FAILED: u32 = 1 << 29;
/// In [`STATE`]: CAM has taken it once, and may have called it.
const HEARD: u32 = 1 << 28;
const FLAGS: u32 = UNLOADING | REGISTERED | FAILED | HEARD;
/// Flags, and below them the uses: a single word, so that "nobody uses it" and
/// "nobody may begin" are one step.
static STATE: AtomicU32 = AtomicU32::new(0);

/// How long unload waits, in milliseconds, whatever it waits for: the kernel's
/// lock on loading and unloading is held meanwhile.
const PATIENCE_MS: u64 = 10_000;

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
    let _ = STATE.update(Ordering::SeqCst, Ordering::SeqCst, |state| match outcome {
        Ok(()) => state & !FAILED | HEARD,
        Err(_) => state | FAILED,
    });
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
/// `EBUSY`: somebody uses it, or `taskqueue_thread` is stuck.
pub fn quiesce() -> Result {
    // A close may have left its last work to the task queue.
    task::pass(&Patience::of_ms(PATIENCE_MS))?;
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
/// `EBUSY`: somebody uses a unit, or what is waited for did not come in time;
/// the driver goes on, with the units that are there.
pub fn detach_all(callback: AsyncFn) -> Result {
    if STATE.load(Ordering::SeqCst) & HEARD == 0 {
        // CAM has never called: there is nothing to wait for, and after a load
        // that failed there must be nothing that fails.
        return Ok(());
    }
    let patience = Patience::of_ms(PATIENCE_MS);
    task::pass(&patience)?;
    let closed = STATE.try_update(Ordering::SeqCst, Ordering::SeqCst, |state| {
        (state & !FLAGS == 0).then_some(state | UNLOADING)
    });
    if closed.is_err() {
        return Err(EBUSY);
    }
    let result = let_go(callback, &patience);
    if result.is_err() {
        STATE.fetch_and(!UNLOADING, Ordering::SeqCst);
        // The units that have gone come back; those that are going do when
        // they have gone.
        started(driver::register_global_async(
            sys::AC_FOUND_DEVICE,
            callback,
        ));
    }
    result
}

fn let_go(callback: AsyncFn, patience: &Patience) -> Result {
    // Whoever attaches units, CAM's event thread or, for a device that came
    // while its unit was going, the task queue, has done so or will not.
    driver::register_global_async(0, callback)?;
    driver::async_barrier(patience)?;
    task::pass(patience)?;
    DRIVER.invalidate_all();
    // The nodes' last calls, the opens', and the units' ends: a unit is alive
    // until the last reference to it has gone, and CAM has freed it.
    patience.wait(|| {
        // What a SIM answered since keeps a unit no longer.
        abort::sweep();
        DRIVER.is_empty() && shared::live() == 0
    })?;
    abort::stop();
    // No node is left: this does not wait.
    DEVSW.drain();
    // Whoever said so may have an instruction or two to go.
    task::pass(patience)
}

/// For the kernel linker.
struct Qpass;

impl kpi::module::Module for Qpass {
    fn load() -> Result {
        load()
    }

    fn quiesce() -> Result {
        quiesce()
    }

    fn unload() -> Result {
        unload()
    }
}

kpi::module_events!(qpass_modevent, Qpass);
