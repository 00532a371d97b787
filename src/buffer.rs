//! The kernel memory that a request's data passes through.
//!
//! Every device has zones of its own, in size classes, so that a small read
//! does not pin a large chunk. They are made when the first request is queued
//! and go with the last open.

use crate::{
    ioctl::Transfer,
    kpi::{
        errno::{EINVAL, Result},
        shared::Shared,
        user::UserPtr,
        zone::{Chunk, Zone},
    },
    request::Request,
};
use core::ffi::CStr;

/// The size classes in bytes, and what vmstat -z calls their zones.
const CLASSES: [(usize, &CStr); 5] = [
    (4 << 10, c"qpass_4k"),
    (16 << 10, c"qpass_16k"),
    (64 << 10, c"qpass_64k"),
    (256 << 10, c"qpass_256k"),
    (1 << 20, c"qpass_1m"),
];

/// The largest transfer that one chunk holds, in bytes.
pub const MAX_CHUNK: u32 = CLASSES[CLASSES.len() - 1].0 as u32;

/// A device's zones.
pub struct Zones {
    requests: Zone,
    classes: [Zone; CLASSES.len()],
}

impl Zones {
    /// Creates them; sleeps.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn create() -> Result<Self> {
        let class = |i: usize| Zone::create(CLASSES[i].1, CLASSES[i].0);
        Ok(Zones {
            requests: Zone::create(c"qpass_request", size_of::<Request>())?,
            classes: [class(0)?, class(1)?, class(2)?, class(3)?, class(4)?],
        })
    }
}

impl AsRef<Zone> for Zones {
    fn as_ref(&self) -> &Zone {
        &self.requests
    }
}

/// A copy, in the kernel, of the data of one request.
pub struct Bounce {
    chunk: Chunk<Shared<Zones>>,
    transfer: Transfer,
}

impl Bounce {
    /// Takes a chunk and fills it with what the user writes. It starts all
    /// zero: whatever the device leaves out, no byte of somebody else's is in
    /// it. Sleeps.
    ///
    /// # Errors
    /// `EFAULT`: the user's buffer is not readable; `EINVAL`: longer than the
    /// largest chunk.
    pub fn new(zones: &Shared<Zones>, transfer: Transfer, user: UserPtr) -> Result<Self> {
        let len = transfer.len as usize;
        let zone = zones
            .classes
            .iter()
            .find(|zone| zone.item_size() >= len)
            .ok_or(EINVAL)?;
        let mut chunk = Chunk::zeroed(zone, len, zones.clone());
        if transfer.direction.copies_in() {
            user.copyin(chunk.bytes_mut())?;
        }
        Ok(Bounce { chunk, transfer })
    }

    /// The address for the CCB.
    pub fn as_ptr(&self) -> *mut u8 {
        self.chunk.as_ptr()
    }

    /// Copies the first `moved` bytes that the device wrote to the user.
    /// Sleeps.
    ///
    /// # Errors
    /// `EFAULT`: the user's buffer is not writable.
    pub fn copyout(&self, user: UserPtr, moved: u32) -> Result {
        if !self.transfer.direction.copies_out() {
            return Ok(());
        }
        let bytes = self.chunk.bytes();
        user.copyout(&bytes[..bytes.len().min(moved as usize)])
    }
}
