//! XPT_ABORT: what CAM has of a CCB, and the CCB that aborts it.
//!
//! CAM takes the opcode for an immediate one, but a SIM that sends a task
//! management function for it (virtio_scsi(4)) writes the status when that is
//! answered, and tells nobody; iscsi(4) never writes it. Until it is written the
//! CCB may be the SIM's: it is never freed before.

use super::{
    alloc::KBox,
    ccb::{Ccb, DoneFn, OwnCcb},
    periph::{Frozen, Held, PeriphRef},
    shared::Shared,
    task::Repeated,
};
use core::{
    marker::PhantomData,
    ptr::NonNull,
    sync::atomic::{AtomicPtr, AtomicU32, Ordering},
};
use sys_bindings as sys;

/// The CCB with which a request is under way. It changes, and means
/// something, with the device lock held only.
pub struct Sent(AtomicPtr<sys::ccb>);

impl Sent {
    /// Not under way.
    pub const fn none() -> Self {
        Sent(AtomicPtr::new(core::ptr::null_mut()))
    }

    /// `ccb` is about to be sent.
    pub fn set(&self, ccb: &Ccb, _held: &mut Held<'_>) {
        let ccb = (&raw const *ccb).cast_mut().cast();
        self.0.store(ccb, Ordering::Relaxed);
    }

    /// The CCB has come back for good.
    pub fn clear(&self, _held: &mut Held<'_>) {
        self.0.store(core::ptr::null_mut(), Ordering::Relaxed);
    }

    /// The CCB, if it is under way, for as long as the lock stays held.
    pub fn get<'h>(&self, _held: &'h Held<'_>) -> Option<UnderWay<'h>> {
        let ccb = NonNull::new(self.0.load(Ordering::Relaxed))?;
        Some(UnderWay(ccb, PhantomData))
    }
}

/// A CCB that CAM has.
pub struct UnderWay<'h>(NonNull<sys::ccb>, PhantomData<&'h ()>);

/// Where a CCB is that CAM has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In CAM's queue, which [`UnderWay::dequeue`] takes it off, or the SIM has it,
    /// which XPT_ABORT reaches.
    Reachable,
    /// The SIM has it or is about to, and it is no command but a task of the SIM's own,
    /// such as a reset: a SIM looks for a command, and CTL's (`camsim`) answers the
    /// XPT_ABORT twice.
    Task,
    /// CAM has taken it off its queue, and the SIM has not said that it has it:
    /// it would look for its own record of it and follow what is no pointer.
    Between,
    /// CAM uses it for a command of its own (TEST UNIT READY, START STOP UNIT), by
    /// which it tries to recover from the command's error; it means to send the
    /// command again after that.
    Recovering,
}

/// A CCB that CAM has no longer, and that has not come back.
pub struct Dequeued(NonNull<sys::ccb>);

impl Dequeued {
    /// The CCB comes back as CAM would have it come back that has aborted it: the
    /// callback that it was sent with is called, which may drop the device lock for
    /// a while.
    pub fn come_back(self, held: &mut Held<'_>) {
        // SAFETY: the CCB was sent with a callback, and came off CAM's queue once: the
        // callback is called once for it, with the device lock held, as CAM calls it.
        unsafe {
            let hdr = &raw mut (*self.0.as_ptr()).ccb_h;
            (*hdr).status = sys::CAM_REQ_ABORTED;
            let done = (*hdr).cbfcnp.expect("a CCB that was sent");
            done(held.periph().as_ptr(), self.0.as_ptr());
        }
    }
}

unsafe extern "C" {
    /// kmod/shim.c.
    fn kpi_ccb_dequeue(ccb: *mut sys::ccb) -> core::ffi::c_int;
}

impl UnderWay<'_> {
    /// Takes the CCB off CAM's queue, if it waits there. It is what it was sent as:
    /// [`Place::Reachable`] only.
    pub fn dequeue(&self, _frozen: &Frozen<'_>) -> Option<Dequeued> {
        // SAFETY: the CCB under way is not freed before Sent::clear(), in the same
        // hold of the device lock; its path is the periph's.
        let waited = unsafe { kpi_ccb_dequeue(self.0.as_ptr()) } != 0;
        waited.then_some(Dequeued(self.0))
    }

    /// Where it is. `done` is what it was sent with.
    pub fn place(&self, done: DoneFn) -> Place {
        // SAFETY: the CCB under way is not freed before Sent::clear(), in the same
        // hold of the device lock, and that is held. CAM and the SIM write these
        // words whole.
        let (code, back, index, status) = unsafe {
            let hdr = &raw mut (*self.0.as_ptr()).ccb_h;
            (
                (&raw const (*hdr).func_code).read_volatile(),
                (&raw const (*hdr).cbfcnp).read_volatile(),
                (&raw const (*hdr).pinfo.index).read_volatile(),
                AtomicU32::from_ptr(&raw mut (*hdr).status).load(Ordering::Acquire),
            )
        };
        if back.is_some_and(|back| !core::ptr::fn_addr_eq(back, done)) {
            Place::Recovering
        } else if index == sys::CAM_ACTIVE_INDEX && !is_command(code) {
            Place::Task
        } else if index == sys::CAM_ACTIVE_INDEX && status & sys::CAM_SIM_QUEUED == 0 {
            Place::Between
        } else {
            Place::Reachable
        }
    }

    /// Has what CAM means to send again be a TEST UNIT READY, which changes and
    /// moves nothing: it is how the command ends. [`Place::Recovering`] only.
    ///
    /// cam_periph_error() has copied the CCB and left the copy's address in
    /// `ppriv_ptr0`; camperiphdone() copies it back and sends it (cam_periph.c, the
    /// same in 14.2 and 15.0). Each error of a recovery may have begun another.
    pub fn defuse(&self, done: DoneFn) {
        let is_own = |back: Option<DoneFn>| back.is_none_or(|b| core::ptr::fn_addr_eq(b, done));
        let mut ccb = self.0.as_ptr();
        // SAFETY: as in place(); the device lock, under which CAM makes and frees
        // copies, is held, and every copy that is not the last has the next one's
        // address.
        unsafe {
            while !is_own((*ccb).ccb_h.cbfcnp) {
                let copy = (*ccb).ccb_h.periph_priv.entries[0].ptr.cast::<sys::ccb>();
                if copy.is_null() {
                    return;
                }
                ccb = copy;
            }
            if ccb == self.0.as_ptr() || (*ccb).ccb_h.func_code != sys::XPT_SCSI_IO {
                return;
            }
            let io = &mut (*ccb).csio;
            let flags = &mut io.ccb_h.flags;
            *flags = *flags & !(sys::CAM_DIR_MASK | sys::CAM_DATA_MASK) | sys::CAM_DIR_NONE;
            (io.data_ptr, io.dxfer_len, io.sglist_cnt) = (core::ptr::null_mut(), 0, 0);
            io.cdb_io.cdb_bytes = [0; sys::IOCDBLEN as usize];
            io.cdb_len = 6;
            io.ccb_h.retry_count = 0;
        }
    }
}

/// Whether an opcode is of a command that a device carries out.
fn is_command(code: sys::xpt_opcode) -> bool {
    matches!(
        code,
        sys::XPT_SCSI_IO
            | sys::XPT_ATA_IO
            | sys::XPT_NVME_IO
            | sys::XPT_NVME_ADMIN
            | sys::XPT_SMP_IO
            | sys::XPT_MMC_IO
    )
}

/// A CCB for XPT_ABORT.
///
/// # Invariants
/// The CCB is this value's alone, or it was sent and is unanswered: then only its
/// status is read, and it is not freed.
pub struct AbortCcb {
    ccb: NonNull<sys::ccb>,
    /// It was sent, and its answer was not seen.
    is_out: bool,
}

// SAFETY: owns its CCB, or only reads a word of it that the SIM writes whole.
unsafe impl Send for AbortCcb {}

impl AbortCcb {
    /// Allocates; sleeps.
    pub fn alloc() -> Self {
        // SAFETY: allocates with M_WAITOK and zeroes.
        let ccb = unsafe { sys::xpt_alloc_ccb() };
        AbortCcb {
            ccb: NonNull::new(ccb).expect("M_WAITOK CCB"),
            is_out: false,
        }
    }

    /// Asks the SIM to abort a CCB that it [has](Place::Reachable).
    pub fn send(&mut self, target: &UnderWay<'_>, held: &Held<'_>) {
        assert!(!self.is_out, "an abort CCB that is under way");
        self.is_out = true;
        // SAFETY: ours until it is sent; set up for this periph, the device lock
        // held; the target stays until the lock is given back, and after that only
        // the SIM, which knows its own commands, looks for it.
        unsafe {
            let ccb = self.ccb.as_ptr();
            (*ccb).ccb_h.func_code = sys::XPT_ABORT;
            sys::xpt_setup_ccb_flags(
                &raw mut (*ccb).ccb_h,
                held.periph().path(),
                sys::QPC_CAM_PRIORITY_NORMAL,
                0,
            );
            (*ccb).cab.abort_ccb = target.0.as_ptr();
            sys::xpt_action(ccb);
        }
    }

    /// The answer, if there is one. The SIM may still be about to leave the
    /// function that wrote it: see [`Held::sim_barrier`].
    pub fn answer(&self) -> Option<sys::cam_status> {
        // SAFETY: the status of a CCB that is alive; the SIM writes it whole.
        let status = unsafe { AtomicU32::from_ptr(&raw mut (*self.ccb.as_ptr()).ccb_h.status) };
        let status = status.load(Ordering::Acquire) & sys::CAM_STATUS_MASK;
        (status != sys::CAM_REQ_INPROG).then_some(status)
    }

    /// It is this value's again: answered, and the SIM has left it; or the SIM is
    /// known not to keep it.
    pub fn take_back(&mut self) {
        self.is_out = false;
    }

    /// Whether the SIM may still have it.
    pub fn is_out(&self) -> bool {
        self.is_out
    }
}

impl Drop for AbortCcb {
    fn drop(&mut self) {
        // What the SIM may still write is not freed: Kept keeps it, and what comes
        // here all the same is lost.
        if !self.is_out {
            // SAFETY: ours, from xpt_alloc_ccb().
            unsafe { sys::xpt_free_ccb(self.ccb.as_ptr()) };
        }
    }
}

/// Abort CCBs that SIMs have not answered, each with the periph whose path it
/// names. A stack; it needs no lock and no set-up.
static KEPT: AtomicPtr<Keep> = AtomicPtr::new(core::ptr::null_mut());

struct Keep {
    ccb: AbortCcb,
    periph: PeriphRef,
    /// How many of its device are kept.
    count: Shared<AtomicU32>,
    next: *mut Keep,
}

/// Keeps an unanswered CCB, and the periph, until it is answered, of which nobody
/// tells: it is looked at from time to time. It counts in `count` meanwhile. Sleeps.
pub fn keep(ccb: AbortCcb, periph: PeriphRef, count: Shared<AtomicU32>) {
    count.fetch_add(1, Ordering::Relaxed);
    let keep = KBox::new(Keep {
        ccb,
        periph,
        count,
        next: core::ptr::null_mut(),
    });
    push(keep.into_raw().cast());
    look_later();
}

/// The task that looks.
static LOOK: Repeated = Repeated::new(look_again);
/// How often it does.
const LOOK_MS: u64 = 200;

fn look_later() {
    LOOK.run_in_ms(LOOK_MS);
}

fn look_again() {
    sweep();
    if !KEPT.load(Ordering::Relaxed).is_null() {
        look_later();
    }
}

/// The module is going, and nothing is kept: waits until nobody looks. Sleeps.
pub fn stop() {
    LOOK.drain();
}

fn push(keep: *mut Keep) {
    let mut head = KEPT.load(Ordering::Relaxed);
    loop {
        // SAFETY: ours until the exchange succeeds.
        unsafe { (*keep).next = head };
        match KEPT.compare_exchange_weak(head, keep, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => head = now,
        }
    }
}

/// Frees what has been answered since. Sleeps.
pub fn sweep() {
    if KEPT.load(Ordering::Relaxed).is_null() {
        return;
    }
    let mut own = OwnCcb::alloc();
    let mut at = KEPT.swap(core::ptr::null_mut(), Ordering::AcqRel);
    while !at.is_null() {
        // SAFETY: the whole stack was taken: each is ours, once.
        let keep = unsafe { KBox::<Keep>::from_raw(at.cast()) };
        at = keep.next;
        if keep.ccb.answer().is_none() {
            push(keep.into_raw().cast());
            continue;
        }
        let Keep {
            mut ccb,
            periph,
            count,
            ..
        } = keep.into_inner();
        periph.lock().sim_barrier(own.ccb_mut());
        ccb.take_back();
        count.fetch_sub(1, Ordering::Relaxed);
        drop(ccb);
        drop(periph);
    }
}
