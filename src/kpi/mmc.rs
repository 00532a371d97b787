//! struct mmc_data: where an XPT_MMC_IO has its data, two pointers away.
//!
//! pass(4) follows the user's own pointer to the length; here the struct is
//! copied in, once.

use super::{ccb::Ccb, errno::Result, user::UserPtr};
use sys_bindings as sys;

/// A private copy of a process's `struct mmc_data`.
pub struct MmcData {
    raw: sys::mmc_data,
    user: UserPtr,
    user_data: *mut core::ffi::c_void,
    user_mrq: *mut sys::mmc_request,
}

impl MmcData {
    /// Copies it in.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn copyin(user: UserPtr) -> Result<Self> {
        // SAFETY: plain data.
        let mut raw: sys::mmc_data = unsafe { core::mem::zeroed() };
        // SAFETY: any bytes make one, and all of its bytes are initialised.
        user.copyin(unsafe {
            core::slice::from_raw_parts_mut((&raw mut raw).cast(), size_of_val(&raw))
        })?;
        Ok(MmcData {
            user_data: raw.data,
            user_mrq: core::mem::replace(&mut raw.mrq, core::ptr::null_mut()),
            raw,
            user,
        })
    }

    /// Bytes of data, and bytes that its blocks come to, where it counts them.
    pub fn len(&self) -> (usize, Option<usize>) {
        let by_blocks = self.raw.flags & sys::MMC_DATA_BLOCK_SIZE != 0;
        let blocks = self.raw.block_size.saturating_mul(self.raw.block_count);
        (self.raw.len, by_blocks.then_some(blocks))
    }

    /// Where the process has the data.
    pub fn user_data(&self) -> UserPtr {
        UserPtr::new(self.user_data as usize)
    }

    /// Has the data moved to or from kernel memory at `buffer`.
    pub fn set_data(&mut self, buffer: *mut u8) {
        self.raw.data = buffer.cast();
    }

    /// Gives the process its struct back, with what the SIM has written in it
    /// and its own pointers.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn copyout(&mut self) -> Result {
        self.raw.data = self.user_data;
        self.raw.mrq = self.user_mrq;
        // SAFETY: every byte was copied in.
        self.user.copyout(unsafe {
            core::slice::from_raw_parts((&raw const self.raw).cast(), size_of_val(&self.raw))
        })
    }
}

/// The pointers that an XPT_MMC_IO came with.
pub struct Pointers {
    data: [*mut sys::mmc_data; 2],
    mrq: [*mut sys::mmc_request; 2],
}

/// Takes the pointers out of an XPT_MMC_IO, and has it point at `data`.
pub fn take_pointers(ccb: &mut Ccb, data: Option<&mut MmcData>) -> Pointers {
    let null = core::ptr::null_mut();
    let io = ccb.mmcio_mut();
    let pointers = Pointers {
        data: [io.cmd.data, io.stop.data],
        mrq: [io.cmd.mrq, io.stop.mrq],
    };
    io.cmd.data = data.map_or(null, |data| &raw mut data.raw);
    io.stop.data = null;
    io.cmd.mrq = core::ptr::null_mut();
    io.stop.mrq = core::ptr::null_mut();
    pointers
}

/// Puts the pointers back.
pub fn give_pointers(ccb: &mut Ccb, pointers: &Pointers) {
    let io = ccb.mmcio_mut();
    [io.cmd.data, io.stop.data] = pointers.data;
    [io.cmd.mrq, io.stop.mrq] = pointers.mrq;
}

/// The user's address of the struct, where the CCB has data.
pub fn data_of(ccb: &mut Ccb) -> Option<UserPtr> {
    let none = ccb.hdr().flags & sys::CAM_DIR_MASK == sys::CAM_DIR_NONE;
    let at = ccb.mmcio_mut().cmd.data as usize;
    (!none && at != 0).then(|| UserPtr::new(at))
}
