//! union ccb: private copies of a user's, and those that CAM hands out.

use super::{
    alloc::KVec,
    devstat::DevStat,
    errno::Result,
    fields::{Direction, Field, Fields, NvmeCommand, Transfer, transferred},
    mutex::check_signals,
    pages::HeldPages,
    periph::Held,
    segment::Segment,
    user::UserPtr,
};
use core::{
    ffi::{c_int, c_void},
    mem::MaybeUninit,
    ptr::NonNull,
};
use sys_bindings as sys;

/// A CCB of our own: plain bytes until CAM gets it. Its pointers are numbers
/// that a user may have chosen; only this module's callers that replaced one
/// know what it means.
#[repr(transparent)]
pub struct Ccb(sys::ccb);

// SAFETY: the pointers in it are not followed by us.
unsafe impl Send for Ccb {}
// SAFETY: as above.
unsafe impl Sync for Ccb {}

impl Ccb {
    /// All bytes zero.
    pub fn zeroed() -> Self {
        // SAFETY: every member of the union is plain C data.
        Ccb(unsafe { core::mem::zeroed() })
    }

    /// Copies a CCB in from a process, once, and initialises it so.
    ///
    /// # Errors
    /// `EFAULT`; it is not to be looked at then.
    ///
    /// # Safety
    /// `to` is memory of a CCB's size and alignment, of the caller's own.
    pub(super) unsafe fn copyin_raw(to: *mut Ccb, from: UserPtr) -> Result {
        // SAFETY: the caller's promise; copyin(9) writes all of it or fails.
        super::errno::check(unsafe {
            sys::copyin(from.address() as *const c_void, to.cast(), size_of::<Ccb>())
        })
    }

    /// Every byte, padding included: what copyout(9) takes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: zeroed() and copyin() initialise every byte.
        unsafe { core::slice::from_raw_parts((&raw const self.0).cast(), size_of::<sys::ccb>()) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: any bytes make a CCB of plain C data.
        unsafe { core::slice::from_raw_parts_mut((&raw mut self.0).cast(), size_of::<sys::ccb>()) }
    }

    /// The header that every CCB starts with.
    pub fn hdr(&self) -> &sys::ccb_hdr {
        // SAFETY: common to all members; plain data.
        unsafe { &self.0.ccb_h }
    }

    /// The header, to change.
    pub fn hdr_mut(&mut self) -> &mut sys::ccb_hdr {
        // SAFETY: as hdr().
        unsafe { &mut self.0.ccb_h }
    }

    /// The CCB as an XPT_SCSI_IO one.
    pub fn csio(&self) -> &sys::ccb_scsiio {
        // SAFETY: plain data, whichever member was written.
        unsafe { &self.0.csio }
    }

    /// The CCB as an XPT_SCSI_IO one, to change.
    pub fn csio_mut(&mut self) -> &mut sys::ccb_scsiio {
        // SAFETY: as csio().
        unsafe { &mut self.0.csio }
    }

    /// The CCB as an XPT_MMC_IO one, to change.
    pub(super) fn mmcio_mut(&mut self) -> &mut sys::ccb_mmcio {
        // SAFETY: as csio().
        unsafe { &mut self.0.mmcio }
    }

    /// The bytes of an inline CDB.
    pub fn cdb_bytes_mut(&mut self) -> &mut [u8; sys::IOCDBLEN as usize] {
        // SAFETY: both members of cdb_t are plain data.
        unsafe { &mut self.csio_mut().cdb_io.cdb_bytes }
    }

    /// The user's address of a CDB that CAM_CDB_POINTER says is elsewhere.
    pub fn cdb_pointer(&self) -> UserPtr {
        // SAFETY: both members of cdb_t are plain data.
        UserPtr::new(unsafe { self.csio().cdb_io.cdb_ptr } as usize)
    }

    /// Has the CDB read from `bytes`, which must live until the CCB is done.
    pub fn set_cdb_pointer(&mut self, bytes: &mut [u8]) {
        self.csio_mut().cdb_io.cdb_ptr = bytes.as_mut_ptr();
        self.hdr_mut().flags |= sys::CAM_CDB_POINTER;
    }

    /// Whether the opcode's CCB has that pointer.
    pub fn has(&self, field: Field) -> bool {
        Field::of(self.hdr().func_code).contains(&field)
    }

    /// The pointer that names the data of a field, and the count of segments
    /// where there is one.
    fn pointer_mut(&mut self, field: Field) -> (&mut *mut u8, Option<&mut u16>) {
        // SAFETY: plain data, whichever member was written.
        unsafe {
            match field {
                Field::Scsi => {
                    let io = &mut self.0.csio;
                    (&mut io.data_ptr, Some(&mut io.sglist_cnt))
                }
                Field::Ata => (&mut self.0.ataio.data_ptr, None),
                Field::Nvme => {
                    let io = &mut self.0.nvmeio;
                    (&mut io.data_ptr, Some(&mut io.sglist_cnt))
                }
                Field::SmpRequest => (&mut self.0.smpio.smp_request, None),
                Field::SmpResponse => (&mut self.0.smpio.smp_response, None),
                Field::AdvInfo => (&mut self.0.cdai.buf, None),
                // Two pointers away: see the mmc module.
                Field::Mmc => unreachable!(),
            }
        }
    }

    /// Which way the data goes, if there is any.
    pub fn direction(&self) -> Option<Direction> {
        Direction::of(self.hdr().flags)
    }

    /// Has the data read from, or written to, kernel memory at `buffer`.
    pub fn set_data(&mut self, field: Field, buffer: *mut u8) {
        *self.pointer_mut(field).0 = buffer;
        self.set_format(sys::CAM_DATA_VADDR);
    }

    /// Names the process's own memory, for [`Mapped::map`] to replace.
    pub fn set_user_data(&mut self, field: Field, at: UserPtr) {
        *self.pointer_mut(field).0 = at.address() as *mut u8;
        self.set_format(sys::CAM_DATA_VADDR);
    }

    /// Has the data at the addresses of a list in kernel memory; `format` says what its addresses
    /// are.
    pub fn set_list(&mut self, field: Field, list: &KVec<Segment>, format: u32) {
        let (pointer, segments) = self.pointer_mut(field);
        *pointer = list.as_ptr().cast();
        if let Some(segments) = segments {
            *segments = list.len() as u16;
        }
        self.set_format(format);
    }

    /// Has the data moved from, or to, the pages of a process.
    pub fn set_pages(&mut self, field: Field, pages: &HeldPages) {
        *self.pointer_mut(field).0 = pages.bio().cast();
        self.set_format(sys::CAM_DATA_BIO);
    }

    /// Has the data moved at a physical address that a user may name.
    pub fn set_physical(&mut self, field: Field, at: UserPtr) {
        *self.pointer_mut(field).0 = at.address() as *mut u8;
        self.set_format(sys::CAM_DATA_PADDR);
    }

    /// XPT_ABORT: the user's address of the CCB to abort.
    pub fn abort_target(&self) -> UserPtr {
        // SAFETY: plain data.
        UserPtr::new(unsafe { self.0.cab.abort_ccb } as usize)
    }

    /// Sets the outcome.
    pub fn set_status(&mut self, status: sys::cam_status) {
        self.hdr_mut().status = status;
    }

    /// Whether the outcome is CAM_REQ_CMP.
    pub fn is_good(&self) -> bool {
        self.hdr().status & sys::CAM_STATUS_MASK == sys::CAM_REQ_CMP
    }

    /// Nothing of a transfer of `len` bytes was moved.
    pub fn set_not_moved(&mut self, len: u32) {
        match self.hdr().func_code {
            sys::XPT_SCSI_IO => self.csio_mut().resid = len,
            sys::XPT_ATA_IO => self.0.ataio.resid = len,
            _ => {}
        }
    }

    /// Makes it a command that CAM has refused, and that has moved nothing.
    pub fn refuse(&mut self) {
        self.set_status(sys::CAM_REQ_INVALID);
        let len = self.csio().dxfer_len;
        self.set_not_moved(len);
    }

    fn set_format(&mut self, format: u32) {
        let flags = &mut self.hdr_mut().flags;
        *flags = *flags & !sys::CAM_DATA_MASK | format;
    }

    /// The user's address of a field's data.
    pub fn data(&mut self, field: Field) -> UserPtr {
        UserPtr::new(*self.pointer_mut(field).0 as usize)
    }

    /// The address fields of an NVMe command, MPTR and DPTR: bytes 16 to 39
    /// of a submission queue entry (NVM Express Base Specification 2.0,
    /// figure 87). They are physical.
    fn nvme_addresses(&mut self) -> &mut [u8; 24] {
        // SAFETY: 64 bytes of plain data, of which these are a part.
        unsafe { &mut *(&raw mut self.0.nvmeio.cmd).cast::<[u8; 24]>().byte_add(16) }
    }

    /// What an NVMe command asks for.
    pub fn nvme_command(&self) -> NvmeCommand {
        // SAFETY: plain data, whichever member was written.
        let cmd = unsafe { &self.0.nvmeio.cmd };
        NvmeCommand {
            admin: self.hdr().func_code == sys::XPT_NVME_ADMIN,
            opcode: cmd.opc,
            fuse: cmd.fuse,
            nsid: u32::from_le(cmd.nsid),
            dwords: [
                cmd.cdw10, cmd.cdw11, cmd.cdw12, cmd.cdw13, cmd.cdw14, cmd.cdw15,
            ]
            .map(u32::from_le),
        }
    }

    /// Makes what the user handed in the CCB that CAM and a SIM get: opcode by
    /// opcode, whatever they look at is written here, from `flags` and the lengths of
    /// its data, or is a number that means something to the device only. There is no
    /// data yet: [`set_data`](Self::set_data) and its like say where it is.
    ///
    /// What an opcode does not have is left as it is.
    #[inline(always)]
    pub fn build(&mut self, flags: u32, transfers: &[Option<Transfer>; 2]) {
        self.build_header(flags);
        let len = |i: usize| transfers[i].map_or(0, |transfer| transfer.len);
        let null: *mut u8 = core::ptr::null_mut();
        // SAFETY: plain data, whichever member was written; func_code says which
        // it is.
        unsafe {
            match self.hdr().func_code {
                sys::XPT_SCSI_IO => {
                    let io = &mut self.0.csio;
                    (io.next_ccb, io.req_map, io.data_ptr) = (null.cast(), null, null);
                    io.dxfer_len = len(0);
                    io.sense_len = io.sense_len.min(SENSE);
                    io.sglist_cnt = 0;
                    (io.scsi_status, io.sense_resid, io.resid) = (0, 0, 0);
                    (io.msg_ptr, io.msg_len) = (null, 0);
                    *self.behind_csio() = 0;
                }
                sys::XPT_ATA_IO => {
                    let io = &mut self.0.ataio;
                    (io.next_ccb, io.data_ptr) = (null.cast(), null);
                    (io.dxfer_len, io.resid) = (len(0), 0);
                    io.cmd.flags &= ATA_COMMAND;
                    io.ata_flags &= ATA_FLAGS;
                }
                sys::XPT_NVME_IO | sys::XPT_NVME_ADMIN => {
                    *self.nvme_addresses() = [0; 24];
                    let io = &mut self.0.nvmeio;
                    (io.next_ccb, io.data_ptr) = (null.cast(), null);
                    (io.dxfer_len, io.sglist_cnt) = (len(0), 0);
                    // nvme(4) numbers commands itself.
                    io.cmd.cid = 0;
                }
                sys::XPT_SMP_IO => {
                    let io = &mut self.0.smpio;
                    (io.smp_request, io.smp_response) = (null, null);
                    (io.smp_request_len, io.smp_response_len) = (len(0) as c_int, len(1) as c_int);
                    (io.smp_request_sglist_cnt, io.smp_response_sglist_cnt) = (0, 0);
                    io.flags = sys::SMP_FLAG_NONE;
                }
                sys::XPT_DEV_ADVINFO => {
                    let io = &mut self.0.cdai;
                    io.buf = null;
                    io.flags &= sys::CDAI_FLAG_STORE;
                    (io.bufsiz, io.provsiz) = (len(0) as _, 0);
                }
                // Freezes are on nobody's account.
                sys::XPT_REL_SIMQ => {
                    let io = &mut self.0.crs;
                    io.release_flags &= sys::RELSIM_ADJUST_OPENINGS;
                    (io.release_timeout, io.qfrozen_cnt) = (0, 0);
                }
                _ => {}
            }
        }
    }

    /// Makes an Identify command of it, for a namespace's data, that goes to `page`,
    /// which must live until the CCB is done (NVM Express Base Specification 2.0, CNS
    /// 00h).
    pub fn build_identify(&mut self, namespace: u32, page: &mut KVec<u64>) {
        const IDENTIFY: u8 = 0x06;
        const TIMEOUT_MS: u32 = 10_000;
        *self = Ccb::zeroed();
        let hdr = self.hdr_mut();
        hdr.func_code = sys::XPT_NVME_ADMIN;
        hdr.flags = sys::CAM_DIR_IN | sys::CAM_DEV_QFRZDIS;
        hdr.timeout = TIMEOUT_MS;
        // SAFETY: plain data, whichever member was written.
        let io = unsafe { &mut self.0.nvmeio };
        io.cmd.opc = IDENTIFY;
        io.cmd.nsid = namespace.to_le();
        io.data_ptr = page.as_ptr().cast();
        io.dxfer_len = page.bytes().len() as u32;
    }

    /// Makes an XPT_DEV_ADVINFO of it, for the Identify data of an NVMe namespace as CAM
    /// has it, that goes to `page`, which must live until the CCB is done.
    pub fn build_nvme_advinfo(&mut self, page: &mut KVec<u64>) {
        *self = Ccb::zeroed();
        let hdr = self.hdr_mut();
        (hdr.func_code, hdr.flags) = (sys::XPT_DEV_ADVINFO, sys::CAM_DIR_IN);
        // SAFETY: plain data, whichever member was written.
        let io = unsafe { &mut self.0.cdai };
        (io.flags, io.buftype) = (sys::CDAI_FLAG_NONE, sys::CDAI_TYPE_NVME_NS);
        io.bufsiz = page.bytes().len() as _;
        io.buf = page.as_ptr().cast();
    }

    /// Leaves of a user's header what the user has a say in: the opcode, the
    /// timeout and the retries. The rest is CAM's and the SIM's, who find it as in
    /// a CCB that CAM has allocated.
    fn build_header(&mut self, flags: u32) {
        let hdr = self.hdr_mut();
        let (func_code, timeout, retry_count) = (hdr.func_code, hdr.timeout, hdr.retry_count);
        let priority = hdr.pinfo.priority;
        // SAFETY: plain data. In place: a header that is made elsewhere is copied.
        unsafe { (&raw mut *hdr).write_bytes(0, 1) };
        (hdr.func_code, hdr.timeout, hdr.retry_count) = (func_code, timeout, retry_count);
        hdr.flags = flags;
        // Until setup() says what becomes of it.
        hdr.pinfo.priority = priority;
    }

    /// Where a kernel with BUF_TRACKING has a `struct bio *` in an XPT_SCSI_IO,
    /// and follows it: behind the struct that other kernels have.
    fn behind_csio(&mut self) -> &mut u64 {
        const { assert!(size_of::<sys::ccb_scsiio>() + 8 <= size_of::<sys::ccb>()) };
        const { assert!(size_of::<sys::ccb_scsiio>().is_multiple_of(8)) };
        // SAFETY: inside the union, and aligned.
        unsafe { &mut *(&raw mut self.0.csio).add(1).cast::<u64>() }
    }

    /// The fields that decide what becomes of the CCB.
    #[inline(always)]
    pub fn fields(&self) -> Fields {
        let hdr = self.hdr();
        let (mut lens, mut segments) = ([0; 2], 0);
        let (mut stores, mut block_size) = (false, 0);
        let (mut openings, mut tag_action, mut buftype) = (None, 0, 0);
        // SAFETY: plain data, whichever member was written.
        unsafe {
            match hdr.func_code {
                sys::XPT_SCSI_IO => {
                    lens[0] = u64::from(self.0.csio.dxfer_len);
                    segments = self.0.csio.sglist_cnt;
                    tag_action = self.0.csio.tag_action;
                }
                sys::XPT_ATA_IO => lens[0] = u64::from(self.0.ataio.dxfer_len),
                sys::XPT_NVME_IO | sys::XPT_NVME_ADMIN => {
                    lens[0] = u64::from(self.0.nvmeio.dxfer_len);
                    segments = self.0.nvmeio.sglist_cnt;
                }
                sys::XPT_SMP_IO => {
                    let smp = &self.0.smpio;
                    // Negative ones become too long.
                    lens = [smp.smp_request_len as u64, smp.smp_response_len as u64];
                }
                sys::XPT_DEV_ADVINFO => {
                    lens[0] = self.0.cdai.bufsiz as u64;
                    stores = self.0.cdai.flags & sys::CDAI_FLAG_STORE != 0;
                    buftype = self.0.cdai.buftype;
                }
                sys::XPT_CALC_GEOMETRY => block_size = self.0.ccg.block_size,
                sys::XPT_REL_SIMQ => {
                    let adjusts = self.0.crs.release_flags & sys::RELSIM_ADJUST_OPENINGS != 0;
                    openings = adjusts.then_some(self.0.crs.openings);
                }
                _ => {}
            }
        }
        Fields {
            func_code: hdr.func_code,
            flags: hdr.flags,
            lens,
            segments,
            stores,
            buftype,
            block_size,
            openings,
            tag_action,
        }
    }

    /// devstat(9)'s kind of tag of a command.
    pub fn tag_type(&self) -> u32 {
        match self.hdr().func_code {
            sys::XPT_SCSI_IO => u32::from(self.csio().tag_action) & 3,
            sys::XPT_ATA_IO => sys::DEVSTAT_TAG_SIMPLE,
            _ => sys::DEVSTAT_TAG_NONE,
        }
    }

    /// The first bytes of the command, and how long a CDB is: of what a device
    /// gets as it is.
    pub fn command(&self) -> ([u8; 16], u8) {
        let mut bytes = [0; 16];
        let mut take = |from: *const u8, len: usize| {
            let len = len.min(bytes.len());
            // SAFETY: plain data inside the CCB, of at least that length.
            bytes[..len].copy_from_slice(unsafe { core::slice::from_raw_parts(from, len) });
        };
        match self.hdr().func_code {
            sys::XPT_SCSI_IO => {
                let csio = self.csio();
                let len = csio.cdb_len;
                // SAFETY: plain data, 16 bytes of it; what is behind the CDB is not
                // of it.
                let all = u128::from_le_bytes(unsafe { csio.cdb_io.cdb_bytes });
                let first = |n: u8| (1u64 << (8 * n)) - 1;
                let (low, high) = (all as u64, (all >> 64) as u64);
                let (low, high) = match len {
                    0..=7 => (low & first(len), 0),
                    8..=15 => (low, high & first(len - 8)),
                    _ => (low, high),
                };
                let all = u128::from(low) | u128::from(high) << 64;
                return (all.to_le_bytes(), len);
            }
            sys::XPT_ATA_IO => {
                // SAFETY: plain data.
                let io = unsafe { &self.0.ataio };
                take((&raw const io.cmd).cast(), size_of_val(&io.cmd));
            }
            sys::XPT_NVME_IO | sys::XPT_NVME_ADMIN => {
                // SAFETY: plain data.
                let io = unsafe { &self.0.nvmeio };
                take((&raw const io.cmd).cast(), size_of_val(&io.cmd));
            }
            _ => {}
        }
        (bytes, 0)
    }

    /// Bytes that were not moved, where an opcode's CCB says so.
    pub fn resid(&self) -> u32 {
        // SAFETY: plain data.
        unsafe {
            match self.hdr().func_code {
                sys::XPT_SCSI_IO => self.0.csio.resid,
                sys::XPT_ATA_IO => self.0.ataio.resid,
                // The others have no residual.
                _ => 0,
            }
        }
    }

    /// Bytes of a transfer that the device moved, as its CCB says.
    pub fn moved(&self, transfer: Transfer) -> u32 {
        transferred(transfer.len, self.resid())
    }

    /// Keeps what the user must find unchanged when the CCB comes back.
    ///
    /// # Safety
    /// `to` is memory of a [`Saved`]'s size and alignment; it is initialised.
    pub(super) unsafe fn save(&mut self, to: *mut Saved) {
        // SAFETY: the caller's promise. The header, which is most of it, is
        // copied once.
        unsafe {
            (&raw mut (*to).hdr).copy_from_nonoverlapping(self.hdr(), 1);
            let kept = (&raw mut (*to).kept).cast::<u8>();
            let ccb = (&raw const self.0).cast::<u8>();
            each_input(self.hdr().func_code, |at, from, len| {
                kept.add(at).copy_from_nonoverlapping(ccb.add(from), len);
            });
        }
    }

    /// The same, for a CCB that is not in a zone's item.
    pub fn saved(&mut self) -> Saved {
        let mut saved = MaybeUninit::uninit();
        // SAFETY: memory of its size, which is initialised so.
        unsafe {
            self.save(saved.as_mut_ptr());
            saved.assume_init()
        }
    }

    /// Makes a completed CCB fit for the user: the header is the one that came
    /// in but for the outcome and the device's address, and so is what the payload
    /// asked for: no field that was the user's pointer carries one of the kernel's.
    pub fn restore(&mut self, saved: &Saved) {
        let done = *self.hdr();
        *self.hdr_mut() = saved.hdr;
        self.take_outcome(&done);
        let ccb = (&raw mut self.0).cast::<u8>();
        let kept = (&raw const saved.kept).cast::<u8>();
        each_input(saved.hdr.func_code, |at, to, len| {
            // SAFETY: save() has kept these, of a CCB of this opcode; both are
            // inside.
            unsafe { ccb.add(to).copy_from_nonoverlapping(kept.add(at), len) };
        });
    }

    /// Takes the result of `from`: the payload, the status and the device's
    /// address.
    pub fn take_result(&mut self, from: &Ccb) {
        self.take_payload(from);
        self.take_outcome(from.hdr());
    }

    /// Takes what a completed CCB's header tells the user.
    fn take_outcome(&mut self, done: &sys::ccb_hdr) {
        let hdr = self.hdr_mut();
        hdr.status = done.status;
        hdr.path_id = done.path_id;
        hdr.target_id = done.target_id;
        hdr.target_lun = done.target_lun;
    }

    /// Leaves of a CCB of CAM's own what its header tells the user: the opcode, the
    /// status and the device's address.
    pub fn leave_outcome(&mut self) {
        let done = *self.hdr();
        // SAFETY: plain data.
        *self.hdr_mut() = unsafe { core::mem::zeroed() };
        self.hdr_mut().func_code = done.func_code;
        self.take_outcome(&done);
    }

    /// Takes the request of `from`: the opcode, the flags and the payload.
    pub fn take_request(&mut self, from: &Ccb) {
        self.take_payload(from);
        let (hdr, asked) = (self.hdr_mut(), from.hdr());
        hdr.func_code = asked.func_code;
        hdr.flags = asked.flags;
    }

    /// Has CAM call `done` when it gives the CCB back.
    pub fn set_done(&mut self, done: DoneFn) {
        self.hdr_mut().cbfcnp = Some(done);
    }

    /// Leaves of a user's header what the user has a say in: the opcode, the
    /// flags, the timeout and the retries. The rest is CAM's and the SIM's,
    /// who find it as in a CCB that CAM has allocated.
    pub fn clear_header(&mut self) {
        let hdr = self.hdr_mut();
        // SAFETY: plain data.
        let mut clear: sys::ccb_hdr = unsafe { core::mem::zeroed() };
        clear.func_code = hdr.func_code;
        clear.flags = hdr.flags;
        clear.timeout = hdr.timeout;
        clear.retry_count = hdr.retry_count;
        *hdr = clear;
    }

    /// cam_periph_error(9), in the completion of a CCB that failed.
    pub fn recover(&mut self, _held: &mut Held<'_>) -> Recovery {
        let (cam_flags, sense_flags) = recovery_flags(self.hdr().flags);
        // A SIM that is to abort the CCB when it is sent again, and has not got it
        // yet, would follow what it left here the first time.
        // SAFETY: plain data.
        self.hdr_mut().sim_priv = unsafe { core::mem::zeroed() };
        // SAFETY: a completed CCB of this periph, its device lock held.
        let error = unsafe { sys::cam_periph_error(self.as_ptr(), cam_flags, sense_flags) };
        if error == super::errno::ERESTART {
            return Recovery::Resent;
        }
        Recovery::Final
    }

    /// A command that failed may have frozen the device's queue, which stops every
    /// other user of the device too: the driver that sent it lets it go again.
    pub fn release_frozen(&mut self, held: &mut Held<'_>) {
        let hdr = self.hdr_mut();
        if hdr.status & sys::CAM_DEV_QFRZN != 0 {
            hdr.status &= !sys::CAM_DEV_QFRZN;
            held.release_devq();
        }
    }

    /// Takes the payload of `from`, all but the header.
    fn take_payload(&mut self, from: &Ccb) {
        let at = size_of::<sys::ccb_hdr>();
        self.bytes_mut()[at..].copy_from_slice(&from.bytes()[at..]);
    }

    /// xpt_setup_ccb(9): fills in path and priority, keeps the flags.
    pub fn setup(&mut self, priority: u32, held: &mut Held<'_>) {
        let hdr = self.hdr_mut();
        let flags = hdr.flags;
        // SAFETY: the path is the periph's and lives as long as it does; the
        // device lock guards the generation number that it counts up.
        unsafe { sys::xpt_setup_ccb_flags(hdr, held.periph().path(), priority, flags) };
    }

    pub(super) fn as_ptr(&mut self) -> *mut sys::ccb {
        &raw mut self.0
    }
}

/// Bytes of sense data that a CCB has room for.
const SENSE: u8 = size_of::<sys::scsi_sense_data>() as u8;
/// `ata_cmd.flags` that there are.
const ATA_COMMAND: u8 = (sys::CAM_ATAIO_48BIT
    | sys::CAM_ATAIO_FPDMA
    | sys::CAM_ATAIO_CONTROL
    | sys::CAM_ATAIO_NEEDRESULT
    | sys::CAM_ATAIO_DMA) as u8;
/// `ccb_ataio.ata_flags` that there are.
const ATA_FLAGS: u8 = (sys::ATA_FLAG_AUX | sys::ATA_FLAG_ICC) as u8;

/// The parts of a user's CCB that the kernel replaces on its way.
pub struct Saved {
    hdr: sys::ccb_hdr,
    /// What [`each_input`] names, one behind the other.
    kept: MaybeUninit<[u8; KEPT]>,
}

/// The most bytes that an opcode's inputs have: an NVMe command's.
const KEPT: usize = 88;

/// Names the parts of an opcode's payload that are the user's to say and that
/// [`Ccb::build`] or CAM may change: where each is kept, where it is in the CCB,
/// and its bytes. The lengths are constants, so that each is a move or two.
#[inline(always)]
fn each_input(func_code: sys::xpt_opcode, mut each: impl FnMut(usize, usize, usize)) {
    macro_rules! inputs {
        ($ccb:ident: $($from:ident .. $to:expr),*) => {{
            let mut _at = 0;
            $(
                let (from, to) = const { (core::mem::offset_of!(sys::$ccb, $from), $to) };
                each(_at, from, to - from);
                _at += to - from;
            )*
            const {
                assert!(0 $(+ $to - core::mem::offset_of!(sys::$ccb, $from))* <= KEPT);
            }
        }};
    }
    use core::mem::offset_of;
    match func_code {
        sys::XPT_SCSI_IO => inputs!(ccb_scsiio:
            next_ccb .. offset_of!(sys::ccb_scsiio, sense_data),
            sglist_cnt .. offset_of!(sys::ccb_scsiio, scsi_status),
            cdb_io .. offset_of!(sys::ccb_scsiio, tag_action)),
        sys::XPT_ATA_IO => inputs!(ccb_ataio:
            next_ccb .. offset_of!(sys::ccb_ataio, res),
            data_ptr .. offset_of!(sys::ccb_ataio, resid),
            ata_flags .. offset_of!(sys::ccb_ataio, icc)),
        sys::XPT_NVME_IO | sys::XPT_NVME_ADMIN => inputs!(ccb_nvmeio:
            next_ccb .. offset_of!(sys::ccb_nvmeio, cpl),
            data_ptr .. offset_of!(sys::ccb_nvmeio, unused)),
        sys::XPT_SMP_IO => inputs!(ccb_smpio:
            smp_request .. size_of::<sys::ccb_smpio>()),
        sys::XPT_DEV_ADVINFO => inputs!(ccb_dev_advinfo:
            flags .. offset_of!(sys::ccb_dev_advinfo, provsiz),
            buf .. size_of::<sys::ccb_dev_advinfo>()),
        sys::XPT_REL_SIMQ => inputs!(ccb_relsim:
            release_flags .. offset_of!(sys::ccb_relsim, qfrozen_cnt)),
        sys::XPT_ABORT => inputs!(ccb_abort:
            abort_ccb .. size_of::<sys::ccb_abort>()),
        _ => {}
    }
}

impl Saved {
    /// The user's `pinfo.priority`.
    pub fn priority(&self) -> u32 {
        self.hdr.pinfo.priority
    }
}

// SAFETY: the pointers are the user's numbers; nobody follows them here.
unsafe impl Send for Saved {}
// SAFETY: as above.
unsafe impl Sync for Saved {}

/// A CCB that CAM allocated for this periph. It is given back with the device
/// lock held, by [`Held::release_ccb`], on every path.
#[must_use = "a CCB from CAM is given back with Held::release_ccb"]
pub struct StartCcb(NonNull<Ccb>);

/// What a completion does when cam_periph_error() was asked.
pub enum Recovery {
    /// The CCB is on its way again; the completion will come once more.
    Resent,
    /// Nothing more is tried.
    Final,
}

impl StartCcb {
    /// The CCB of a callback.
    ///
    /// # Safety
    /// CAM gave `ccb` to this driver and nobody else uses it.
    pub unsafe fn from_raw(ccb: *mut sys::ccb) -> Self {
        // SAFETY: CAM gives no null CCB; Ccb is transparent over it.
        StartCcb(unsafe { NonNull::new_unchecked(ccb.cast()) })
    }

    pub(super) fn as_ptr(&mut self) -> *mut sys::ccb {
        self.0.as_ptr().cast()
    }

    /// The contents.
    pub fn ccb(&self) -> &Ccb {
        // SAFETY: ours, see from_raw; xpt_get_ccb() zeroes what it allocates.
        unsafe { self.0.as_ref() }
    }

    /// The contents, to change.
    pub fn ccb_mut(&mut self) -> &mut Ccb {
        // SAFETY: as ccb(), and borrowed exclusively.
        unsafe { self.0.as_mut() }
    }

    /// xpt_merge_ccb(9): the opcode, flags, timeout, retries and payload of
    /// `from`.
    pub fn merge(&mut self, from: &Ccb) {
        // SAFETY: both are whole CCBs; the source is only read.
        unsafe { sys::xpt_merge_ccb(self.as_ptr(), (&raw const from.0).cast_mut()) };
    }
}

/// The completion routine of a CCB.
pub type DoneFn = unsafe extern "C" fn(*mut sys::cam_periph, *mut sys::ccb);

/// pass(4)'s rule: with CAM_PASS_ERR_RECOVER the kernel recovers as for its
/// own commands, without it the user sees every error at once.
fn recovery_flags(ccb_flags: u32) -> (sys::cam_flags, u32) {
    if ccb_flags & sys::CAM_PASS_ERR_RECOVER != 0 {
        (sys::CAM_RETRY_SELTO, (sys::SF_RETRY_UA | sys::SF_NO_PRINT))
    } else {
        (
            sys::CAM_FLAG_NONE,
            (sys::SF_NO_RETRY | sys::SF_NO_RECOVERY | sys::SF_NO_PRINT),
        )
    }
}

/// User buffers that cam_periph_mapmem() made reachable for a CCB.
pub struct Mapped {
    info: sys::cam_periph_map_info,
}

impl Mapped {
    /// Maps or copies in what the CCB's data pointers name. Sleeps.
    ///
    /// # Errors
    /// `EACCES`: not the process's memory; `EINVAL`: a data format that the
    /// synchronous call does not take.
    pub fn map(ccb: &mut Ccb, maxio: u32) -> Result<Self> {
        // SAFETY: plain data, which mapmem clears itself.
        let mut info: sys::cam_periph_map_info = unsafe { core::mem::zeroed() };
        // SAFETY: called by the process that owns the buffers, no lock held.
        super::errno::check(unsafe { sys::cam_periph_mapmem(ccb.as_ptr(), &mut info, maxio) })?;
        Ok(Mapped { info })
    }

    /// Copies out what was read, and gives the CCB its user pointers back.
    /// Sleeps.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn unmap(mut self, ccb: &mut Ccb) -> Result {
        // SAFETY: the CCB and the info of map(), once, no lock held.
        super::errno::check(unsafe { sys::cam_periph_unmapmem(ccb.as_ptr(), &mut self.info) })
    }
}

/// A CCB for an immediate call, from xpt_alloc_ccb(9).
pub struct OwnCcb(NonNull<Ccb>);

impl OwnCcb {
    /// Allocates; sleeps.
    pub fn alloc() -> Self {
        // SAFETY: allocates with M_WAITOK and zeroes.
        let ccb = unsafe { sys::xpt_alloc_ccb() };
        OwnCcb(NonNull::new(ccb.cast()).expect("M_WAITOK CCB"))
    }

    /// The contents.
    pub fn ccb_mut(&mut self) -> &mut Ccb {
        // SAFETY: ours since alloc().
        unsafe { self.0.as_mut() }
    }
}

impl Drop for OwnCcb {
    fn drop(&mut self) {
        // SAFETY: ours, from xpt_alloc_ccb().
        unsafe { sys::xpt_free_ccb(self.0.as_ptr().cast()) };
    }
}

/// Runs a CCB and waits for it: cam_periph_runccb(9) with pass(4)'s recovery.
///
/// The device lock is held on entry and exit and dropped while it waits. The
/// CCB's status tells how it went.
pub fn run(ccb: &mut Ccb, devstat: &DevStat, _held: &mut Held<'_>) {
    let (cam_flags, sense_flags) = recovery_flags(ccb.hdr().flags);
    // SAFETY: set up for this periph; the lock is held. The return value only
    // repeats the status that the user gets.
    unsafe {
        sys::cam_periph_runccb(
            ccb.as_ptr(),
            Some(error_routine),
            cam_flags,
            sense_flags,
            devstat.as_ptr(),
        );
    }
}

/// What CAM asks about a command that failed.
///
/// # Safety
/// For CAM: a CCB of its own, the device lock held.
pub(super) unsafe extern "C" fn error_routine(
    ccb: *mut sys::ccb,
    cam_flags: sys::cam_flags,
    sense_flags: u32,
) -> c_int {
    // A thread that is to handle a signal, and be it to die, waits for what is under
    // way and for no retry of it.
    let sense_flags = match check_signals() {
        Ok(()) => sense_flags,
        Err(_) => sense_flags | sys::SF_NO_RETRY | sys::SF_NO_RECOVERY,
    };
    // SAFETY: cam_periph_runccb() calls with its own CCB, in the thread that waits for
    // it, and the lock held.
    unsafe { sys::cam_periph_error(ccb, cam_flags, sense_flags) }
}
