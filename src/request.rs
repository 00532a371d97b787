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
    buffer::{Bounce, Segments, Zones},
    ioctl::{self, Direction, Field, Format, Operation, Transfer},
    kpi::{
        ccb::{Ccb, Saved},
        devstat::{Moved, Started},
        errno::{EINVAL, Result},
        fifo::Link,
        shared::Shared,
        user::UserPtr,
        zone::{ZoneBox, ZoneItem},
    },
    queue::{Charge, Open},
    sg::Segment,
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
    buffers: [Option<Bounce>; 2],
    charge: Charge,
    /// When it was sent.
    pub started: Option<Started>,
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

impl Request {
    /// Copies a user's CCB and its data in. Sleeps.
    ///
    /// # Errors
    /// `EAGAIN`: the open is at its limits; `EFAULT`: a bad pointer; `EINVAL`,
    /// `ENODEV`: see [`Operation::parse`]; `EINVAL`: the CDB or the transfer
    /// is too long; `ENXIO`: the device is gone.
    pub fn from_user(open: &Shared<Open>, user_ccb: UserPtr) -> Result<ZoneBox<Self>> {
        let charge = Charge::new(&open.queue)?;
        let mut ccb = Ccb::zeroed();
        ccb.copyin(user_ccb)?;
        let operation = Operation::parse(&ccb.fields())?;
        let saved = ccb.save();
        if ccb.has(Field::Scsi) {
            Self::copyin_cdb(&mut ccb)?;
        }
        open.unit()?.longest().check_queued(&operation)?;
        let mut request = ZoneBox::new(Request {
            next: Link::new(),
            open: open.clone(),
            zones: open.zones()?,
            operation,
            ccb,
            saved,
            buffers: [None, None],
            charge,
            started: None,
        });
        request.set_up_data()?;
        Ok(request)
    }

    fn set_up_data(&mut self) -> Result {
        let transfers = self.operation.transfers;
        let addresses = transfers.map(|t| t.map(|t| self.ccb.data(t.field)));
        self.ccb.clear_virtual();
        self.ccb.clear_physical();
        for (i, (transfer, at)) in transfers.into_iter().zip(addresses).enumerate() {
            if let (Some(transfer), Some(at)) = (transfer, at) {
                self.buffers[i] = Some(self.bounce(transfer, at)?);
            }
        }
        Ok(())
    }

    /// Takes kernel memory for a transfer, and has the CCB point at it.
    fn bounce(&mut self, transfer: Transfer, at: UserPtr) -> Result<Bounce> {
        self.charge.add_bytes(u64::from(transfer.len))?;
        let segments = match self.operation.format {
            Format::Address => Segments::one(at, transfer.len),
            Format::List(count) => {
                // The list is kernel memory too.
                self.charge
                    .add_bytes(u64::from(count) * size_of::<Segment>() as u64)?;
                Segments::copyin(at, count, transfer.len)?
            }
        };
        let bounce = Bounce::new(&self.zones, transfer, segments)?;
        bounce.attach(&mut self.ccb);
        Ok(bounce)
    }

    /// Brings a CDB that is elsewhere into the CCB.
    fn copyin_cdb(ccb: &mut Ccb) -> Result {
        let len = usize::from(ccb.csio().cdb_len);
        if len > sys::IOCDBLEN as usize {
            return Err(EINVAL);
        }
        if ccb.hdr().flags & sys::CAM_CDB_POINTER == 0 {
            return Ok(());
        }
        let from = ccb.cdb_pointer();
        let cdb = ccb.cdb_bytes_mut();
        *cdb = [0; sys::IOCDBLEN as usize];
        from.copyin(&mut cdb[..len])?;
        ccb.hdr_mut().flags &= !sys::CAM_CDB_POINTER;
        Ok(())
    }

    /// Whether CAM answers without the device.
    pub fn is_immediate(&self) -> bool {
        self.operation.is_immediate()
    }

    /// The priority that it is scheduled with.
    pub fn priority(&self) -> u32 {
        ioctl::priority(self.ccb.hdr().pinfo.priority)
    }

    /// The open that queued it.
    pub fn open(&self) -> &Shared<Open> {
        &self.open
    }

    /// What it moved, for devstat(9).
    pub fn moved(&self) -> Moved {
        match self.operation.transfers {
            [None, _] => Moved::NoData,
            // An SMP request and its response count as one read, as pass(4)
            // counts them.
            [Some(request), Some(response)] => Moved::Read(request.len + response.len),
            [Some(transfer), None] => {
                let bytes = self.ccb.moved(transfer);
                match transfer.direction {
                    Direction::Out => Moved::Written(bytes),
                    _ => Moved::Read(bytes),
                }
            }
        }
    }

    /// Hands the data to the process that reaps, and the CCB to its address
    /// `to`. What fails can be tried again: the request is as it was. Sleeps.
    ///
    /// # Errors
    /// `EFAULT`: the user's buffer or CCB is not writable.
    pub fn reap(&mut self, to: UserPtr) -> Result {
        for buffer in self.buffers.iter().flatten() {
            buffer.copyout(self.ccb.moved(buffer.transfer()))?;
        }
        // A second try restores what is restored already.
        self.ccb.restore(&self.saved);
        to.copyout(self.ccb.bytes())
    }
}
