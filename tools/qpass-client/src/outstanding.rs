//! What is outstanding, and taking it back.

use crate::{device::Device, error::Error, open::ENTRIES};
use core::time::Duration;
use sys_bindings as sys;

/// What QPIOC_CANCEL did: how many requests ...
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cancelled {
    /// were not sent yet, and are done now,
    pub dequeued: u32,
    /// were sent, and CAM aborts them,
    pub aborted: u32,
    /// were sent, and CAM cannot abort them,
    pub unable: u32,
    /// were done already.
    pub done: u32,
}

/// Which requests to cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// All of this open.
    Own,
    /// All of the device, of every open. Wants PRIV_DRIVER, as the next two.
    All,
    /// Of one open, by its number in [`Outstanding`].
    Open(u64),
    /// One request: its open, and its number.
    Request(u64, u64),
    /// One of this open, by its CCB's address.
    Ccb(u64),
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Waits to be sent.
    Queued,
    /// CAM or the device has it.
    Sent,
    /// Completed, and not reaped.
    Done,
}

/// A request that was taken and not reaped yet.
#[derive(Clone, Debug)]
pub struct Outstanding {
    /// Number of its open, of the device.
    pub open: u64,
    /// Its own number, of its open.
    pub number: u64,
    /// Process that submitted it.
    pub pid: i32,
    /// Where it is.
    pub state: State,
    /// Since it was submitted.
    pub age: Duration,
    /// `ccb_h.func_code`.
    pub func_code: u32,
    /// The CDB's first bytes, or those of an ATA or NVMe command.
    pub command: Vec<u8>,
    /// Bytes of data.
    pub length: u32,
    /// Its data come from the device.
    pub reads: bool,
    /// Its data go to the device.
    pub writes: bool,
    /// The program's tag.
    pub tag: u64,
}

impl Device {
    /// Takes requests back. Each is reaped all the same, by its own open.
    ///
    /// # Errors
    /// EPERM: others' without the privilege; ENOENT: what was named is not
    /// outstanding; ENOTTY: not qpass(4).
    pub fn cancel(&self, which: Cancel) -> Result<Cancelled, Error> {
        // SAFETY: plain data.
        let mut call: sys::qpass_cancel = unsafe { core::mem::zeroed() };
        if !matches!(which, Cancel::Own | Cancel::Ccb(_)) {
            call.flags = sys::QPASS_CANCEL_DEVICE;
        }
        match which {
            Cancel::Own | Cancel::All => {}
            Cancel::Open(open) => call.open = open,
            Cancel::Request(open, number) => (call.open, call.number) = (open, number),
            Cancel::Ccb(ccb) => call.ccb = ccb,
        }
        let call = self.open.ask("QPIOC_CANCEL", sys::QPC_QPIOC_CANCEL, call)?;
        Ok(Cancelled {
            dequeued: call.dequeued,
            aborted: call.aborted,
            unable: call.unable,
            done: call.done,
        })
    }

    /// What is outstanding, by age: of this open, or of the device.
    ///
    /// # Errors
    /// EPERM: of the device without PRIV_DRIVER; ENOTTY: not qpass(4).
    pub fn outstanding(&self, of_device: bool) -> Result<Vec<Outstanding>, Error> {
        let mut found = Vec::new();
        let mut cursor = [0; 2];
        loop {
            let scratch = self.open.scratch();
            let scratch = scratch.map_err(|errno| self.open.error("QPIOC_LIST", errno))?;
            let at = scratch.at::<sys::qpass_list>(0);
            let entries = scratch.at::<sys::qpass_outstanding>(ENTRIES);
            // SAFETY: plain data, in memory of its own meanwhile.
            let call = unsafe {
                let mut call: sys::qpass_list = core::mem::zeroed();
                call.entries = entries as u64;
                call.room = sys::QPASS_LIST_MAX;
                call.cursor = cursor;
                if of_device {
                    call.flags = sys::QPASS_LIST_DEVICE;
                }
                at.write(call);
                self.open
                    .ioctl(sys::QPC_QPIOC_LIST, at as usize)
                    .map_err(|errno| self.open.error("QPIOC_LIST", errno))?;
                at.read()
            };
            for i in 0..call.count.min(sys::QPASS_LIST_MAX) as usize {
                // SAFETY: the kernel has written so many entries.
                found.push(outstanding(unsafe { &*entries.add(i) }));
            }
            if call.flags & sys::QPASS_LIST_MORE == 0 {
                return Ok(found);
            }
            cursor = call.cursor;
        }
    }
}

fn outstanding(entry: &sys::qpass_outstanding) -> Outstanding {
    let len = match entry.func_code {
        sys::XPT_SCSI_IO => usize::from(entry.cdb_len).min(16),
        _ => 16,
    };
    Outstanding {
        open: entry.open,
        number: entry.number,
        pid: entry.pid,
        state: match u32::from(entry.state) {
            sys::QPASS_STATE_QUEUED => State::Queued,
            sys::QPASS_STATE_SENT => State::Sent,
            _ => State::Done,
        },
        age: Duration::from_nanos(entry.age),
        func_code: entry.func_code,
        command: entry.cdb[..len].to_vec(),
        length: entry.length,
        reads: u32::from(entry.direction) & sys::QPASS_DIRECTION_IN != 0,
        writes: u32::from(entry.direction) & sys::QPASS_DIRECTION_OUT != 0,
        tag: entry.tag,
    }
}
