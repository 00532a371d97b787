//! XPT_DEV_MATCH in steps, as another process makes them on /dev/xpt0 with a
//! small buffer (cam_xpt.c, xptedtmatch() and xptperiphtraverse()).

use super::{Device, release_locked, xpt_lock_buses, xpt_unlock_buses};
use crate::{lock, sys};
use std::{
    ffi::CStr,
    sync::{Arc, Mutex},
    time::Duration,
};

/// A walk over the periphs of a device, and where it is.
pub struct Walk {
    device: Arc<Device>,
    /// A periph, without a reference, and the list's generation.
    position: Option<(usize, u32)>,
}

/// What a step found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A periph, by name and unit.
    Periph(String, u32),
    /// CAM_DEV_MATCH_LIST_CHANGED: the program begins again.
    Changed,
    /// There are no more.
    End,
}

impl Walk {
    /// The first step: the buffer is full with the device itself, and its first
    /// periph is where the next one begins.
    pub fn new(device: &Arc<Device>) -> Self {
        let mut walk = Walk {
            device: device.clone(),
            position: None,
        };
        walk.device.lock("xptedtdevicefunc");
        let first = walk.acquire_from(0);
        walk.save(first);
        walk.device.unlock("xptedtdevicefunc");
        walk
    }

    /// One more: the saved periph is taken as it is, if the list's generation is
    /// what it was, whether it is being freed or not.
    pub fn step(&mut self) -> Step {
        let Some((periph, generation)) = self.position.take() else {
            return Step::End;
        };
        self.device.lock("xptedtdevicefunc");
        let step = self.step_locked(periph, generation);
        self.device.unlock("xptedtdevicefunc");
        step
    }

    fn step_locked(&mut self, periph: usize, generation: u32) -> Step {
        let at = {
            let state = self.device.state.lock().unwrap();
            if state.generation != generation {
                return Step::Changed;
            }
            state.periphs.iter().position(|p| *p == periph)
        };
        let at = at.expect("the list is the same");
        let periph = periph as *mut sys::cam_periph;
        // SAFETY: a periph of the list, the topology lock held for the count.
        let found = unsafe {
            xpt_lock_buses();
            (*periph).refcount += 1;
            xpt_unlock_buses();
            let name = CStr::from_ptr((*periph).periph_name);
            Step::Periph(name.to_string_lossy().into(), (*periph).unit_number)
        };
        let next = self.acquire_from(at + 1);
        // SAFETY: the reference of above, the device lock held.
        unsafe { release_locked(periph) };
        self.save(next);
        found
    }

    /// A reference to the first periph from there on that is not being freed.
    fn acquire_from(&self, at: usize) -> Option<usize> {
        let periphs = self.device.state.lock().unwrap().periphs.clone();
        // SAFETY: periphs of the list, the topology lock held for flags and
        // count.
        unsafe {
            xpt_lock_buses();
            let found = periphs.into_iter().skip(at).find(|p| {
                let periph = *p as *mut sys::cam_periph;
                (*periph).flags & sys::CAM_PERIPH_FREE == 0
            });
            if let Some(periph) = found {
                (*(periph as *mut sys::cam_periph)).refcount += 1;
            }
            xpt_unlock_buses();
            found
        }
    }

    /// Keeps a periph as the position and lets the reference go.
    fn save(&mut self, periph: Option<usize>) {
        let generation = self.device.state.lock().unwrap().generation;
        self.position = periph.map(|periph| (periph, generation));
        if let Some(periph) = periph {
            // SAFETY: the reference of acquire_from(), the device lock held.
            unsafe { release_locked(periph as *mut sys::cam_periph) };
        }
    }
}

static IN_DESTRUCTOR: Mutex<Option<Walk>> = Mutex::new(None);
static STEPPED: Mutex<Vec<Step>> = Mutex::new(Vec::new());

/// Makes the walk go on when the periph of its position is being destroyed, as
/// soon as the device lock can be had.
pub fn step_in_destructor(walk: Walk) {
    *IN_DESTRUCTOR.lock().unwrap() = Some(walk);
}

/// What that step found.
pub fn stepped() -> Vec<Step> {
    STEPPED.lock().unwrap().clone()
}

/// camperiphfree() calls the destructor.
pub(super) fn destructor_begins(periph: *mut sys::cam_periph) {
    let mut waiting = IN_DESTRUCTOR.lock().unwrap();
    let here = |walk: &Walk| walk.position.is_some_and(|p| p.0 == periph as usize);
    if !waiting.as_ref().is_some_and(here) {
        return;
    }
    let mut walk = waiting.take().expect("it was looked at");
    drop(waiting);
    // A destructor that drops the device lock is overtaken by who wants it.
    lock::let_others_in(walk.device.mtx);
    std::thread::Builder::new()
        .name("XPT_DEV_MATCH".into())
        .spawn(move || {
            let step = walk.step();
            STEPPED.lock().unwrap().push(step);
        })
        .expect("a thread");
    std::thread::sleep(Duration::from_millis(5));
}
