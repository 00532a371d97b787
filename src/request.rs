//! A request: one user's CCB on its way through the kernel.
//!
//! It is owned by one place at a time, and the place says its state:
//!
//! | owner | state |
//! | --- | --- |
//! | the calling thread, in [`Request::from_user`] | being set up |
//! | [`Unit`](crate::unit::Unit)'s list | queued: waits for CAM to have a CCB |
//! | the CCB that CAM has | sent |
//! | [`Queue`](crate::queue::Queue)'s list | done |
//! | the calling thread, in [`Request::reap`] | being reaped |
//!
//! Dropping it in any state gives back its memory and its place in the limits.

use crate::{
    buffer::{Bounce, Zones},
    ioctl::{self, Fields, Operation},
    kpi::{
        ccb::{Ccb, Saved},
        errno::{EINVAL, Result},
        fifo::Link,
        shared::Shared,
        user::UserPtr,
        zone::{ZoneBox, ZoneItem},
    },
    queue::{Charge, Open},
};
use sys_bindings as sys;

/// See the module's page.
pub struct Request {
    next: Link<Request>,
    open: Shared<Open>,
    zones: Shared<Zones>,
    operation: Operation,
    /// The private copy, and the CCB itself for an immediate operation.
    pub ccb: Ccb,
    saved: Saved,
    buffer: Option<Bounce>,
    _charge: Charge,
}

impl ZoneItem for Request {
    type Keeper = Shared<Zones>;
    fn keeper(&self) -> Shared<Zones> {
        self.zones.clone()
    }
    fn link(&mut self) -> &mut Link<Self> {
        &mut self.next
    }
}

/// The fields of a CCB that decide what becomes of it.
pub fn fields(ccb: &Ccb) -> Fields {
    Fields {
        func_code: ccb.hdr().func_code,
        flags: ccb.hdr().flags,
        dxfer_len: ccb.csio().dxfer_len,
    }
}

impl Request {
    /// Copies a user's CCB and its data in. Sleeps.
    ///
    /// # Errors
    /// `EAGAIN`: the open is at its limits; `EFAULT`: a bad pointer; `EINVAL`,
    /// `ENODEV`: see [`Operation::parse`]; `EINVAL`: the CDB or the transfer
    /// is too long; `ENXIO`: the device is gone.
    pub fn from_user(open: &Shared<Open>, user_ccb: UserPtr) -> Result<ZoneBox<Self>> {
        let charge = Charge::new(&open.queue)?;
        let zones = open.zones()?;
        let ccb = Ccb::zeroed();
        let mut request = ZoneBox::new(Request {
            next: Link::new(),
            open: open.clone(),
            zones,
            operation: Operation::Immediate,
            saved: ccb.save(),
            ccb,
            buffer: None,
            _charge: charge,
        });
        request.set_up(user_ccb)?;
        Ok(request)
    }

    fn set_up(&mut self, user_ccb: UserPtr) -> Result {
        self.ccb.copyin(user_ccb)?;
        self.operation = Operation::parse(fields(&self.ccb))?;
        self.saved = self.ccb.save();
        if let Operation::Scsi(transfer) = self.operation {
            self.copyin_cdb()?;
            let unit = self.open.unit()?;
            ioctl::fits_queued(transfer, unit.max_transfer())?;
            match transfer {
                None => self.ccb.set_data_pointer(core::ptr::null_mut()),
                Some(transfer) => {
                    self._charge.add_bytes(transfer.len)?;
                    let buffer = Bounce::new(&self.zones, transfer, self.saved.data())?;
                    self.ccb.set_data_pointer(buffer.as_ptr());
                    self.buffer = Some(buffer);
                }
            }
        }
        Ok(())
    }

    /// Brings a CDB that is elsewhere into the CCB.
    fn copyin_cdb(&mut self) -> Result {
        if usize::from(self.ccb.csio().cdb_len) > sys::IOCDBLEN as usize {
            return Err(EINVAL);
        }
        if self.ccb.hdr().flags & sys::CAM_CDB_POINTER == 0 {
            return Ok(());
        }
        let (len, from) = (self.ccb.csio().cdb_len, self.ccb.cdb_pointer());
        let cdb = self.ccb.cdb_bytes_mut();
        *cdb = [0; sys::IOCDBLEN as usize];
        from.copyin(&mut cdb[..usize::from(len)])?;
        self.ccb.hdr_mut().flags &= !sys::CAM_CDB_POINTER;
        Ok(())
    }

    /// Whether CAM answers without the device.
    pub fn is_immediate(&self) -> bool {
        self.operation == Operation::Immediate
    }

    /// The priority that it is scheduled with.
    pub fn priority(&self) -> u32 {
        ioctl::priority(self.ccb.hdr().pinfo.priority)
    }

    /// The open that queued it.
    pub fn open(&self) -> &Shared<Open> {
        &self.open
    }

    /// Hands the data to the process that reaps, and the CCB to its address
    /// `to`. What fails can be tried
    /// again: the request is as it was. Sleeps.
    ///
    /// # Errors
    /// `EFAULT`: the user's buffer or CCB is not writable.
    pub fn reap(&mut self, to: UserPtr) -> Result {
        if let Some(buffer) = &self.buffer {
            let csio = self.ccb.csio();
            let moved = ioctl::transferred(csio.dxfer_len, csio.resid);
            buffer.copyout(self.saved.data(), moved)?;
        }
        // A second try restores what is restored already.
        self.ccb.restore(&self.saved);
        to.copyout(self.ccb.bytes())
    }
}
