//! vm_fault_quick_hold_pages(9): pages of a process that stay while a device
//! may touch them, whatever the process does meanwhile.

use crate::{fault, lock::may_sleep, sys, thread::broken, user};
use std::{
    collections::{HashMap, HashSet},
    ffi::c_int,
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

const PAGE: usize = sys::PAGE_SIZE as usize;

/// A `struct vm_page`, of which the module reads which blocks are dirty, and
/// what stands behind it.
#[repr(C)]
struct Page {
    raw: [u8; sys::QPC_VM_PAGE_SIZE as usize],
    address: usize,
    writable: bool,
    holds: usize,
    busy: usize,
    is_valid: bool,
}

impl Page {
    fn set_dirty(&mut self, dirty: bool) {
        // It is of some object.
        self.raw[sys::QPC_VM_PAGE_OBJECT as usize] = 1;
        self.raw[sys::QPC_VM_PAGE_DIRTY as usize] = if dirty { u8::MAX } else { 0 };
    }
}

#[derive(Default)]
struct Pages {
    /// By the address of the `struct vm_page`.
    held: HashMap<usize, Box<Page>>,
    /// Where that is, by the page's own address.
    by_address: HashMap<usize, usize>,
    /// What was unmapped while some of it was held: start and length.
    unmapped: Vec<(usize, usize)>,
    /// Pages, by address, whose contents their file does not have yet.
    dirty: HashSet<usize>,
}

static PAGES: LazyLock<Mutex<Pages>> = LazyLock::new(Mutex::default);
/// Pages held and let go so far.
pub static HOLDS: AtomicU64 = AtomicU64::new(0);

/// Holds there are now.
pub fn holds() -> usize {
    let pages = PAGES.lock().unwrap();
    pages.held.values().map(|page| page.holds).sum()
}

/// Whether a page is dirty: msync(2) and the syncer write it to its file.
pub fn is_dirty(at: usize) -> bool {
    PAGES.lock().unwrap().dirty.contains(&(at / PAGE * PAGE))
}

/// vm_object_page_clean(), as msync(2) and the syncer call it: what is dirty is
/// written and is clean then, held pages too, whatever a device does to them
/// afterwards.
pub fn msync(at: usize, len: usize) {
    let mut pages = PAGES.lock().unwrap();
    let range = at / PAGE * PAGE..at + len;
    pages.dirty.retain(|page| !range.contains(page));
    for page in pages.held.values_mut() {
        if range.contains(&page.address) {
            page.set_dirty(false);
        }
    }
}

pub(crate) unsafe extern "C" fn vm_fault_quick_hold_pages(
    map: *mut sys::vm_map,
    at: u64,
    len: u64,
    protection: u8,
    list: *mut sys::vm_page_t,
    room: c_int,
) -> c_int {
    may_sleep("vm_fault_quick_hold_pages");
    if map.cast() != crate::thread::vmspace() {
        broken("vm_fault_quick_hold_pages: not the map of the process");
    }
    let (at, len) = (at as usize, len as usize);
    if len == 0 {
        return 0;
    }
    let Some(end) = at.checked_add(len).filter(|end| *end < 1 << 47) else {
        return -1;
    };
    let (first, last) = (at / PAGE, end.div_ceil(PAGE));
    let count = last - first;
    if count > room as usize {
        broken("vm_fault_quick_hold_pages: more pages than there is room for");
    }
    let writable = u32::from(protection) & sys::QPC_VM_PROT_WRITE != 0;
    // The kernel asks for reading in any case.
    let allows = |write| user::allows(first * PAGE, count * PAGE, write);
    if fault::HOLD.fails() || !allows(false) || writable && !allows(true) {
        return -1;
    }
    let mut pages = PAGES.lock().unwrap();
    for (i, number) in (first..last).enumerate() {
        let address = number * PAGE;
        let known = pages.by_address.get(&address).copied();
        let was_dirty = pages.dirty.contains(&address);
        let id = known.unwrap_or_else(|| {
            let page = Box::new(Page {
                raw: [0; sys::QPC_VM_PAGE_SIZE as usize],
                address,
                writable: false,
                holds: 0,
                busy: 0,
                is_valid: true,
            });
            let id = &raw const *page as usize;
            pages.held.insert(id, page);
            pages.by_address.insert(address, id);
            id
        });
        let page = pages.held.get_mut(&id).expect("just found");
        page.holds += 1;
        page.writable |= writable;
        page.set_dirty(was_dirty || writable);
        if writable {
            // Now, as the hardware will not do it when the device writes.
            pages.dirty.insert(address);
        }
        HOLDS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's list has room for them.
        unsafe { *list.add(i) = id as sys::vm_page_t };
    }
    count as c_int
}

pub(crate) unsafe extern "C" fn vm_page_unhold_pages(list: *mut sys::vm_page_t, count: c_int) {
    // vm_page_unwire() takes page queue mutexes at most: any mutex may be held.
    let mut pages = PAGES.lock().unwrap();
    for i in 0..count as usize {
        // SAFETY: the caller's list is that long.
        let id = unsafe { *list.add(i) } as usize;
        let Some(page) = pages.held.get_mut(&id) else {
            drop(pages);
            broken("vm_page_unhold_pages of a page that is not held");
        };
        page.holds -= 1;
        if page.holds == 0 {
            if page.busy != 0 {
                drop(pages);
                broken("vm_page_unhold_pages of a page that is busy");
            }
            let address = page.address;
            pages.held.remove(&id);
            pages.by_address.remove(&address);
        }
    }
    let pages = &mut *pages;
    let ready: Vec<_> = pages
        .unmapped
        .extract_if(.., |(at, len)| !any_held(&pages.by_address, *at, *len))
        .collect();
    for (at, len) in ready {
        user::give_back(at, len);
    }
}

/// What vm_page_dirty() is for a module (vm/vm_page.h): the page must be held,
/// or it may be another's by now.
#[expect(non_snake_case, reason = "the name that the kernel exports")]
pub(crate) unsafe extern "C" fn vm_page_dirty_KBI(page: sys::vm_page_t) {
    let mut pages = PAGES.lock().unwrap();
    let Some(page) = pages.held.get_mut(&(page as usize)) else {
        drop(pages);
        broken("vm_page_dirty of a page that is not held");
    };
    if !page.is_valid {
        drop(pages);
        broken("panic: vm_page_dirty: page is invalid (vm/vm_page.c)");
    }
    page.set_dirty(true);
    let address = page.address;
    pages.dirty.insert(address);
}

/// vm_page_tryxbusy(): a page that somebody is at, the module or who writes it to
/// its file, cannot be had.
pub(crate) unsafe extern "C" fn vm_page_tryxbusy(page: sys::vm_page_t) -> c_int {
    let mut pages = PAGES.lock().unwrap();
    let cleaning = CLEANING.load(Ordering::SeqCst);
    let Some(page) = pages.held.get_mut(&(page as usize)) else {
        drop(pages);
        broken("vm_page_tryxbusy of a page that is not held");
    };
    if page.busy != 0 || cleaning == page.address {
        return 0;
    }
    page.busy = 1;
    1
}

/// vm_page_xunbusy().
pub(crate) unsafe extern "C" fn vm_page_xunbusy_hard(page: sys::vm_page_t) {
    let mut pages = PAGES.lock().unwrap();
    match pages.held.get_mut(&(page as usize)) {
        Some(page) if page.busy != 0 => page.busy = 0,
        _ => {
            drop(pages);
            broken("vm_page_xunbusy of a page that is not busy");
        }
    }
}

/// The page that is being written to its file, 0 for none.
static CLEANING: AtomicUsize = AtomicUsize::new(0);

/// vm_pageout_flush(): the page is shared busy while it is written, and marked as
/// clean when it was, by vnode_pager_undirty_pages().
pub fn begin_cleaning(at: usize) {
    CLEANING.store(at / PAGE * PAGE, Ordering::SeqCst);
}

/// Its end.
pub fn end_cleaning() {
    let at = CLEANING.swap(0, Ordering::SeqCst);
    msync(at, 1);
}

/// vm_page_is_valid(): a process's page is, until its file is cut short.
pub(crate) unsafe extern "C" fn vm_page_is_valid(
    page: sys::vm_page_t,
    _base: c_int,
    _size: c_int,
) -> c_int {
    let pages = PAGES.lock().unwrap();
    let page = pages.held.get(&(page as usize));
    c_int::from(page.is_some_and(|page| page.is_valid))
}

/// ftruncate(2) of a file that is mapped there: its pages that are held have no
/// contents any more (vm_object_page_remove(), of a page that is wired).
pub fn cut_short(at: usize, len: usize) {
    for page in PAGES.lock().unwrap().held.values_mut() {
        if (at..at + len).contains(&page.address) {
            page.is_valid = false;
            page.set_dirty(false);
        }
    }
}

fn any_held(by_address: &HashMap<usize, usize>, at: usize, len: usize) -> bool {
    (at..at + len)
        .step_by(PAGE)
        .any(|address| by_address.contains_key(&address))
}

/// Whether memory that a process unmaps must stay for now; it is given back
/// with its last held page.
pub(crate) fn keeps(at: usize, len: usize) -> bool {
    let mut pages = PAGES.lock().unwrap();
    let kept = any_held(&pages.by_address, at, len);
    if kept {
        pages.unmapped.push((at, len));
    }
    kept
}

/// The memory that an unmapped bio names, for a SIM, in pieces: that of pages
/// which are held, and held for writing if the device writes.
pub(crate) fn pieces(bio: &sys::bio, len: usize, device_writes: bool) -> Vec<(*mut u8, usize)> {
    let wanted = if device_writes {
        sys::BIO_READ
    } else {
        sys::BIO_WRITE
    };
    if u32::from(bio.bio_flags) & sys::BIO_UNMAPPED == 0
        || u32::from(bio.bio_cmd) != wanted
        || bio.bio_bcount != len as i64
        || bio.bio_length != len as i64
    {
        broken("a bio is not what the CCB says");
    }
    let mut pieces = Vec::new();
    let (mut offset, mut left) = (bio.bio_ma_offset as usize, len);
    let pages = PAGES.lock().unwrap();
    for i in 0..bio.bio_ma_n as usize {
        // SAFETY: the bio's list is that long.
        let id = unsafe { *bio.bio_ma.add(i) } as usize;
        let Some(page) = pages.held.get(&id) else {
            drop(pages);
            broken("a SIM is given a page that is not held");
        };
        if device_writes && !page.writable {
            drop(pages);
            broken("a SIM is to write a page that is held for reading");
        }
        let part = left.min(PAGE - offset);
        pieces.push(((page.address + offset) as *mut u8, part));
        (offset, left) = (0, left - part);
    }
    drop(pages);
    if left != 0 || pieces.iter().any(|(_, part)| *part == 0) {
        broken("a bio has not the pages of its data");
    }
    pieces
}

/// What must hold when the module has gone.
pub(crate) fn check_clean() {
    let left = holds();
    if left != 0 {
        broken(&format!("{left} pages are held at unload"));
    }
}
