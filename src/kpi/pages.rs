//! vm_fault_quick_hold_pages(9): a process's pages that stay where they are
//! while a device moves data to or from them, and the unmapped struct bio that
//! names them to a SIM.

use super::{
    alloc::KVec,
    cdev::Thread,
    driver::pause_ms,
    errno::{EFAULT, Result},
    segment::{self, Segment},
    user::UserPtr,
};
use core::ffi::c_int;
use sys_bindings as sys;

/// What the device does with the pages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It only reads them.
    Read,
    /// It writes them, and may read them.
    Write,
}

/// Pages that are held, as one run of data. Dropping it lets go what
/// [`let_go`](HeldPages::let_go) has not; it may sleep then.
///
/// # Invariants
/// `memory` has a bio in its first `BIO` words and a page's address in each
/// that follows; the first `held` of these are pages that this holds once each,
/// and the bio names just these.
pub struct HeldPages {
    memory: KVec<u64>,
    held: usize,
    access: Access,
    /// The device has written to those that are held still.
    is_written: bool,
}

/// Words of a struct bio.
const BIO: usize = size_of::<sys::bio>().div_ceil(size_of::<u64>());
const _: () = assert!(align_of::<sys::bio>() <= align_of::<u64>());

// SAFETY: the pages are held, whoever looks; the bio is only read once made.
unsafe impl Send for HeldPages {}
// SAFETY: as above.
unsafe impl Sync for HeldPages {}

impl HeldPages {
    /// Kernel memory that holding `pages` pages takes, in bytes.
    pub fn overhead(pages: usize) -> u64 {
        ((BIO + pages) * size_of::<u64>()) as u64
    }

    /// Holds the pages of the first `len` bytes of `segments`, which follow one
    /// another page by page, `pages` of them. Faults
    /// them in; sleeps.
    ///
    /// # Errors
    /// `EFAULT`: some of it is not the process's memory, or not to be accessed
    /// so.
    pub fn hold(
        thread: Thread<'_>,
        segments: &[Segment],
        len: u32,
        pages: usize,
        access: Access,
    ) -> Result<Self> {
        let mut this = HeldPages {
            memory: KVec::zeroed(BIO + pages),
            held: 0,
            access,
            is_written: false,
        };
        let protection = match access {
            Access::Read => sys::QPC_VM_PROT_READ,
            Access::Write => sys::QPC_VM_PROT_READ | sys::QPC_VM_PROT_WRITE,
        } as sys::vm_prot_t;
        let mut first = None;
        for run in segment::runs(segments, len) {
            first.get_or_insert(run.address);
            let at = UserPtr::new(run.address as usize);
            this.hold_run(thread, at, run.len as usize, protection)?;
        }
        assert!(this.held == pages, "pages are miscounted");
        this.name(first.unwrap_or(0), len, access);
        Ok(this)
    }

    fn hold_run(
        &mut self,
        thread: Thread<'_>,
        at: UserPtr,
        len: usize,
        protection: sys::vm_prot_t,
    ) -> Result {
        let room = self.memory.len() - BIO - self.held;
        // SAFETY: the calling thread's process keeps its vmspace, which starts
        // with its vm_map (asserted in sys-bindings/layout.c); the list has
        // room for so many pages; an address that is not the process's is
        // refused.
        let n = unsafe {
            let map = (*(*thread.as_ptr()).td_proc)
                .p_vmspace
                .cast::<sys::vm_map>();
            sys::vm_fault_quick_hold_pages(
                map,
                at.address() as sys::vm_offset_t,
                len as sys::vm_size_t,
                protection,
                self.list().add(self.held),
                room as c_int,
            )
        };
        self.held += usize::try_from(n).map_err(|_| EFAULT)?;
        Ok(())
    }

    /// Fills the bio in, as the pages' one run of data from `first` on.
    fn name(&mut self, first: u64, len: u32, access: Access) {
        let list = self.list();
        // SAFETY: the first words are a bio, all zero so far; nobody else has
        // it yet.
        let bio = unsafe { &mut *self.bio() };
        bio.bio_cmd = match access {
            Access::Read => sys::BIO_WRITE,
            Access::Write => sys::BIO_READ,
        } as _;
        bio.bio_flags = sys::BIO_UNMAPPED as _;
        // SAFETY: set once at boot.
        bio.bio_data = unsafe { sys::unmapped_buf };
        bio.bio_ma = list;
        bio.bio_ma_n = self.held as c_int;
        bio.bio_ma_offset = (first % u64::from(sys::PAGE_SIZE)) as c_int;
        bio.bio_bcount = i64::from(len);
        bio.bio_length = i64::from(len);
    }

    /// The bio, for a CCB; nobody changes it.
    pub fn bio(&self) -> *mut sys::bio {
        self.memory.as_ptr().cast()
    }

    fn list(&self) -> *mut sys::vm_page_t {
        // SAFETY: the list begins behind the bio.
        unsafe { self.memory.as_ptr().add(BIO).cast() }
    }
}

impl HeldPages {
    /// The device is through with them: lets them go. Those that it may have
    /// written are marked as changed; when they were held they were, but the page
    /// may have been written to its file or to swap since, before the device wrote.
    /// One that is being written there in this moment would be marked as clean after
    /// it: it is kept until this is dropped.
    ///
    /// Does not sleep; the device lock may be held. Page locks are taken after it.
    pub fn let_go(&mut self) {
        let mut kept = 0;
        if self.access == Access::Write {
            self.is_written = true;
            kept = self.dirty();
        }
        self.release(kept);
    }

    /// Marks those as changed that can be now. The others, how many there are, come
    /// first.
    fn dirty(&mut self) -> usize {
        let (list, n) = (self.list(), self.held as c_int);
        let mut kept = 0;
        // SAFETY: so many are held.
        unsafe {
            let mut i = kpi_clean_page(list, 0, n);
            while i < n {
                let page = list.add(i as usize);
                if !dirty(*page) {
                    core::ptr::swap(list.add(kept), page);
                    kept += 1;
                }
                i = kpi_clean_page(list, i + 1, n);
            }
        }
        kept
    }

    /// Lets all go but the first `kept`.
    fn release(&mut self, kept: usize) {
        // SAFETY: so many are held, once each, and none of these after this.
        unsafe {
            sys::vm_page_unhold_pages(self.list().add(kept), (self.held - kept) as c_int);
        }
        self.held = kept;
    }
}

unsafe extern "C" {
    /// In kmod/shim.c: the struct's layout is the kernel's.
    fn kpi_clean_page(pages: *mut sys::vm_page_t, i: c_int, n: c_int) -> c_int;
}

/// vm_page_dirty(9), where nobody else is at the page; `false` where somebody is.
///
/// # Safety
/// The page is held.
unsafe fn dirty(page: sys::vm_page_t) -> bool {
    // SAFETY: the caller's promise. While it is exclusively busy, it is not taken
    // from its object, made invalid, or written to its file or to swap.
    unsafe {
        if sys::vm_page_tryxbusy(page) == 0 {
            return false;
        }
        if sys::vm_page_is_valid(page, 0, sys::PAGE_SIZE as c_int) != 0 {
            sys::vm_page_dirty_KBI(page);
        }
        sys::vm_page_xunbusy_hard(page);
    }
    true
}

/// Milliseconds that the end of a request waits for who is at a page.
const PATIENCE_MS: u32 = 1000;

impl Drop for HeldPages {
    fn drop(&mut self) {
        if self.held == 0 {
            return;
        }
        for _ in 0..PATIENCE_MS {
            if !self.is_written {
                break;
            }
            let kept = self.dirty();
            self.release(kept);
            if kept == 0 {
                return;
            }
            pause_ms(1);
        }
        self.release(0);
    }
}
