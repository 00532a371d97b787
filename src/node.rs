//! `/dev/qpassN`: what a program calls.

use crate::{
    cancel, enter, info,
    ioctl::Request as Call,
    module, notify, outstanding,
    queue::{Open, Queue},
    request::{Item, Name, Request},
    unit::NAME,
};
use core::ffi::{CStr, c_int};
use kpi::{
    cdev::{Device, Ioctl, Thread},
    errno::{EINVAL, ENOENT, ENOTTY, EPERM, Result},
    knlist::Knote,
    periph::PeriphRef,
    shared::Shared,
};
use sys_bindings as sys;

/// `/dev/qpassN`.
pub struct Qpass;

/// What an open file holds: dropping it closes the open.
pub struct File(Shared<Open>);

impl Drop for File {
    fn drop(&mut self) {
        Open::close(&self.0);
    }
}

impl Device for Qpass {
    const NAME: &'static CStr = NAME;
    type Open = File;

    /// # Errors
    /// `ENXIO`: the device or the driver is going; `EPERM`: the securelevel is
    /// above 1, or not both FREAD and FWRITE; `EINVAL`: O_NONBLOCK.
    fn open(periph: &PeriphRef, flags: c_int, thread: Thread<'_>) -> Result<File> {
        const BOTH: c_int = (sys::FREAD | sys::FWRITE) as c_int;
        let module_use = module::begin_use()?;
        thread.securelevel_gt(1)?;
        if flags & BOTH != BOTH {
            return Err(EPERM);
        }
        if flags & sys::O_NONBLOCK as c_int != 0 {
            return Err(EINVAL);
        }
        Ok(File(Open::new(periph.clone(), module_use)?))
    }

    /// # Errors
    /// `ENOTTY`: not an ioctl of this driver, or a queued one from a 32-bit
    /// process; `ENOENT`: CAMIOGET with nothing done; else see
    /// [`Request::from_user`], `reap` there, [`Unit::command`],
    /// [`cancel::cancel`], [`enter::enter`], [`outstanding::list`],
    /// [`info::info`] and [`info::limit`].
    ///
    /// [`Unit::command`]: crate::unit::Unit::command
    fn ioctl(file: &File, mut call: Ioctl<'_>, thread: Thread<'_>) -> Result {
        let open = &file.0;
        match Call::parse(call.cmd()) {
            Call::Command => {
                let ccb = call.ccb().ok_or(ENOTTY)?;
                open.unit()?.command(open, ccb, thread)
            }
            Call::Info => info::info(open, call.own().ok_or(ENOTTY)?),
            Call::Limit => info::limit(open, call.own().ok_or(ENOTTY)?),
            Call::Cancel => cancel::cancel(open, call.own().ok_or(ENOTTY)?, thread),
            Call::List => outstanding::list(open, call.own().ok_or(ENOTTY)?, thread),
            Call::Other => open.periph().lock().ioctl(call),
            _ if thread.is_32bit() => Err(ENOTTY),
            Call::Enter => enter::enter(open, call.own().ok_or(ENOTTY)?, thread),
            Call::Queue => {
                let name = Name {
                    user_ccb: call.pointer().ok_or(ENOTTY)?,
                    tag: 0,
                };
                let request = Request::from_user(open, name, thread)?;
                open.unit()?.submit(request)
            }
            Call::Get => {
                let to = call.pointer().ok_or(ENOTTY)?;
                let mut request = open.queue.take().ok_or(ENOENT)?;
                request
                    .reap(Some(to))
                    .inspect_err(|_| drop(Queue::complete(&open.queue, request)))
            }
        }
    }

    fn poll(file: &File, events: c_int, thread: Thread<'_>) -> c_int {
        notify::poll(&file.0.queue, events, thread)
    }

    fn kqfilter(file: &File, knote: Knote<'_>) -> Result {
        notify::kqfilter(&file.0.queue, knote)
    }
}
