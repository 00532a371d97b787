//! The kernel memory that a request's data passes through.
//!
//! The module has one set of zones for all devices, in size classes, so that a
//! small read does not pin a large chunk. They are made when the first request
//! is queued and stay until the module is unloaded: a program that opens a
//! device, sends one command and closes it pays for no zone but the first time.

use crate::{
    queue::Open,
    request::Request,
    sg::{self, Pieces},
};
use core::ffi::CStr;
use kpi::{
    alloc::KVec,
    ccb::Ccb,
    errno::Result,
    fields::Transfer,
    once::Once,
    pages::HeldPages,
    segment::Segment,
    shared::Shared,
    user::UserPtr,
    zone::{self, Chunk, Zone},
};
use sys_bindings as sys;

/// The size classes in bytes, and what vmstat -z calls their zones.
const CLASSES: [(usize, &CStr); 7] = [
    (4 << 10, c"qpass_4k"),
    (16 << 10, c"qpass_16k"),
    (64 << 10, c"qpass_64k"),
    (128 << 10, c"qpass_128k"),
    (256 << 10, c"qpass_256k"),
    (512 << 10, c"qpass_512k"),
    (1 << 20, c"qpass_1m"),
];

/// The largest run of data that a zone has chunks for, in bytes.
pub const MAX_CHUNK: u32 = CLASSES[CLASSES.len() - 1].0 as u32;

/// Bytes of kernel memory that a transfer of `len` bytes takes.
pub fn footprint(len: u32) -> u64 {
    if len > MAX_CHUNK {
        // malloc(9) rounds up to pages.
        return u64::from(len).next_multiple_of(u64::from(sys::PAGE_SIZE));
    }
    CLASSES[class_of(len as usize)].0 as u64
}

/// The smallest class that holds `len` bytes, which is not more than
/// [`MAX_CHUNK`].
fn class_of(len: usize) -> usize {
    let class = CLASSES.iter().position(|(size, _)| *size >= len);
    class.unwrap_or(CLASSES.len() - 1)
}

/// The module's zones.
pub static ZONES: Once<Zones> = Once::new();

/// A zone of requests, and one of chunks for each size class.
pub struct Zones {
    requests: Zone,
    classes: [Zone; CLASSES.len()],
}

impl Zones {
    /// Creates them, all or none; sleeps.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn create() -> Result<Self> {
        let class = |i: usize| Zone::create(CLASSES[i].1, CLASSES[i].0);
        Ok(Zones {
            requests: Zone::create(c"qpass_request", zone::item_size::<Request>())?,
            classes: [
                class(0)?,
                class(1)?,
                class(2)?,
                class(3)?,
                class(4)?,
                class(5)?,
                class(6)?,
            ],
        })
    }
}

impl AsRef<Zone> for Zones {
    fn as_ref(&self) -> &Zone {
        &self.requests
    }
}

/// The kernel memory of one transfer, in one piece: not every SIM has code for a
/// list of several.
enum Memory {
    /// Of a zone.
    Chunk(Chunk<Shared<Open>>),
    /// Longer than any zone's.
    Large(KVec<u64>),
}

/// What keeps the data of one transfer where the device finds it.
pub enum Buffer {
    /// A copy.
    Bounce(Bounce),
    /// Nothing: the device moves the process's own pages.
    Pages(HeldPages),
    /// Nothing: a privileged process gave the address.
    Physical,
    /// A copy of a privileged process's list of addresses.
    PhysicalList(KVec<Segment>),
}

/// A copy, in the kernel, of the data of one transfer.
pub struct Bounce {
    open: Shared<Open>,
    transfer: Transfer,
    /// Where the user has it.
    segments: Segments,
    memory: Memory,
}

/// Where the user has the data of one transfer.
pub enum Segments {
    /// In one run.
    One([Segment; 1]),
    /// In a list that was copied in.
    List(KVec<Segment>),
}

impl Segments {
    /// One run of `len` bytes.
    pub fn one(at: UserPtr, len: u32) -> Self {
        Segments::One([Segment {
            address: at.address() as u64,
            len: u64::from(len),
        }])
    }

    /// What the list's copy takes, in bytes.
    pub fn list_bytes(&self) -> u64 {
        match self {
            Segments::One(_) => 0,
            Segments::List(list) => size_of_val::<[Segment]>(list) as u64,
        }
    }

    /// As a list.
    pub fn as_slice(&self) -> &[Segment] {
        match self {
            Segments::One(one) => one,
            Segments::List(list) => list,
        }
    }
}

/// Copies a list of `count` segments in. Sleeps.
///
/// # Errors
/// `EFAULT`: the list is not readable; `EINVAL`: it is shorter than `len`
/// bytes.
pub fn copyin_list(at: UserPtr, count: u16, len: u32) -> Result<KVec<Segment>> {
    let mut list = KVec::with_capacity(usize::from(count));
    for _ in 0..count {
        list.push(Segment::default());
    }
    at.copyin_array(&mut list)?;
    sg::check(&list, len)?;
    Ok(list)
}

impl Bounce {
    /// Takes chunks and fills them with what the user writes. They start all
    /// zero: whatever the device leaves out, no byte of somebody else's is in
    /// them. Sleeps.
    ///
    /// # Errors
    /// `EFAULT`: the user's memory is not readable; `ENOMEM`: see
    /// [`Open::zones`].
    pub fn new(open: &Shared<Open>, transfer: Transfer, segments: Segments) -> Result<Self> {
        let memory = Memory::take(open, transfer.len as usize)?;
        let stats = &open.queue.room.stats;
        stats.bounce_bytes.add(footprint(transfer.len));
        let mut bounce = Bounce {
            open: open.clone(),
            transfer,
            segments,
            memory,
        };
        if transfer.direction.copies_in() {
            bounce.copyin()?;
        }
        Ok(bounce)
    }

    /// Has the CCB point at the kernel's copy.
    pub fn attach(&self, ccb: &mut Ccb) {
        ccb.set_data(self.transfer.field, self.as_ptr());
    }

    fn copyin(&mut self) -> Result {
        let len = self.transfer.len as usize;
        for piece in Pieces::new(self.segments.as_slice(), len) {
            let to = &mut self.memory.bytes_mut()[piece.offset..piece.offset + piece.len];
            UserPtr::new(piece.address as usize).copyin(to)?;
        }
        self.open.queue.room.stats.copied(len);
        Ok(())
    }

    /// Copies the first `moved` bytes that the device wrote to the user.
    /// Sleeps.
    ///
    /// # Errors
    /// `EFAULT`: the user's memory is not writable.
    pub fn copyout(&self, moved: u32) -> Result {
        if !self.transfer.direction.copies_out() {
            return Ok(());
        }
        let len = self.transfer.len.min(moved) as usize;
        for piece in Pieces::new(self.segments.as_slice(), len) {
            let from = &self.memory.bytes()[piece.offset..piece.offset + piece.len];
            UserPtr::new(piece.address as usize).copyout(from)?;
        }
        self.open.queue.room.stats.copied(len);
        Ok(())
    }

    /// The kernel's copy.
    pub fn as_ptr(&self) -> *mut u8 {
        match &self.memory {
            Memory::Chunk(chunk) => chunk.as_ptr(),
            Memory::Large(words) => words.as_ptr().cast(),
        }
    }

    /// What the transfer was to move.
    pub fn transfer(&self) -> Transfer {
        self.transfer
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        let bytes = &self.open.queue.room.stats.bounce_bytes;
        bytes.sub(footprint(self.transfer.len));
    }
}

impl Memory {
    fn take(open: &Shared<Open>, len: usize) -> Result<Self> {
        if len > MAX_CHUNK as usize {
            return Ok(Memory::Large(KVec::zeroed(len.div_ceil(size_of::<u64>()))));
        }
        let zone = &open.zones()?.classes[class_of(len)];
        Ok(Memory::Chunk(Chunk::zeroed(zone, len, open.clone())))
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Memory::Chunk(chunk) => chunk.bytes(),
            Memory::Large(words) => words.bytes(),
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Memory::Chunk(chunk) => chunk.bytes_mut(),
            Memory::Large(words) => words.bytes_mut(),
        }
    }
}
