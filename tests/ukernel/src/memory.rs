//! malloc(9) and uma(9): every byte is accounted, guarded and poisoned.

use crate::{
    count, fault,
    lock::{self, may_sleep},
    sys,
    thread::broken,
};
use std::{
    alloc::Layout,
    collections::{HashMap, VecDeque},
    ffi::{CStr, c_char, c_int, c_void},
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// The machine's memory in bytes, for modules that are loaded from now on.
pub static MEMORY: AtomicU64 = AtomicU64::new(4 << 30);

/// `physmem`, in pages.
pub(crate) fn physmem() -> u64 {
    MEMORY.load(Ordering::Relaxed) / u64::from(sys::PAGE_SIZE)
}

/// What lies before and after memory that is in use.
const GUARD: u8 = 0xa5;
const GUARD_LEN: usize = 64;
const PAGE: usize = sys::PAGE_SIZE as usize;
/// What fresh memory holds, so that nobody relies on zeroes.
const FRESH: u8 = 0x5c;
/// What freed memory holds.
const FREED: u8 = 0xde;
/// Freed malloc(9) memory is kept this long, in bytes, to see late writes.
const QUARANTINE: usize = 8 << 20;

/// Memory with a guard on either side.
struct Block {
    start: *mut u8,
    len: usize,
}

// SAFETY: a block is owned by the tables below.
unsafe impl Send for Block {}

impl Block {
    /// What is a page long or more begins at a page, as malloc(9) and uma(9)
    /// have it: the guard before it is at the end of one.
    fn before(len: usize) -> usize {
        match len {
            PAGE.. => PAGE,
            _ => GUARD_LEN,
        }
    }

    fn layout(len: usize) -> Layout {
        let before = Self::before(len);
        Layout::from_size_align(before + len + GUARD_LEN, before).expect("a size that fits")
    }

    fn new(len: usize) -> Self {
        // SAFETY: the size is not zero; the guards are inside.
        unsafe {
            let whole = std::alloc::alloc(Self::layout(len));
            assert!(!whole.is_null(), "out of memory");
            let start = whole.add(Self::before(len));
            start.sub(GUARD_LEN).write_bytes(GUARD, GUARD_LEN);
            start.add(len).write_bytes(GUARD, GUARD_LEN);
            Block { start, len }
        }
    }

    fn fill(&self, byte: u8) {
        // SAFETY: the block is ours.
        unsafe { self.start.write_bytes(byte, self.len) };
    }

    fn check_guards(&self, what: &str) {
        // SAFETY: the guards belong to the block.
        let (before, after) = unsafe {
            (
                core::slice::from_raw_parts(self.start.sub(GUARD_LEN), GUARD_LEN),
                core::slice::from_raw_parts(self.start.add(self.len), GUARD_LEN),
            )
        };
        if before.iter().chain(after).any(|b| *b != GUARD) {
            broken(&format!("{what}: written outside its {} bytes", self.len));
        }
    }

    fn check_poison(&self, what: &str) {
        // SAFETY: freed memory that is kept.
        let bytes = unsafe { core::slice::from_raw_parts(self.start, self.len) };
        if let Some(at) = bytes.iter().position(|b| *b != FREED) {
            broken(&format!(
                "{what}: written at offset {at} after it was freed"
            ));
        }
    }

    fn release(self) {
        // SAFETY: allocated with the same layout in new().
        unsafe {
            let whole = self.start.sub(Self::before(self.len));
            std::alloc::dealloc(whole, Self::layout(self.len));
        }
    }
}

fn text(name: *const c_char) -> String {
    // SAFETY: kernel names are NUL-ended and static.
    unsafe { CStr::from_ptr(name) }
        .to_string_lossy()
        .into_owned()
}

#[derive(Default)]
struct Malloc {
    live: HashMap<usize, (Block, String)>,
    freed: VecDeque<(Block, String)>,
    freed_bytes: usize,
}
static MALLOC: LazyLock<Mutex<Malloc>> = LazyLock::new(Default::default);

/// Allocations of malloc type `name` that are live.
pub fn malloc_live(name: &str) -> usize {
    let malloc = MALLOC.lock().unwrap();
    malloc.live.values().filter(|(_, n)| n == name).count()
}

/// Whether `at` is a live allocation of malloc type `name`.
pub fn is_live(at: *mut c_void, name: &str) -> bool {
    let malloc = MALLOC.lock().unwrap();
    let block = malloc.live.get(&(at as usize));
    block.is_some_and(|(_, of)| of == name)
}

/// malloc(9) for the kernel itself.
pub fn alloc(len: usize, name: &str, flags: u32) -> *mut c_void {
    if flags & sys::M_WAITOK != 0 {
        may_sleep("malloc(M_WAITOK)");
    } else if fault::MALLOC.fails() {
        return core::ptr::null_mut();
    }
    let block = Block::new(len);
    block.fill(filling(flags, len));
    let start = block.start;
    MALLOC
        .lock()
        .unwrap()
        .live
        .insert(start as usize, (block, name.into()));
    start.cast()
}

/// What fresh memory holds.
fn filling(flags: u32, len: usize) -> u8 {
    if flags & sys::M_ZERO == 0 {
        return FRESH;
    }
    count::moved(len);
    0
}

/// free(9) for the kernel itself.
pub fn dealloc(at: *mut c_void, name: &str) {
    if at.is_null() {
        return;
    }
    let mut malloc = MALLOC.lock().unwrap();
    let Some((block, of)) = malloc.live.remove(&(at as usize)) else {
        drop(malloc);
        broken(&format!(
            "free of {at:p}, type {name}: not allocated, or freed before"
        ));
    };
    if of != name {
        broken(&format!("free with type {name} of memory of type {of}"));
    }
    block.check_guards(&of);
    block.fill(FREED);
    malloc.freed_bytes += block.len;
    malloc.freed.push_back((block, of));
    while malloc.freed_bytes > QUARANTINE {
        let (block, of) = malloc.freed.pop_front().expect("bytes are counted");
        malloc.freed_bytes -= block.len;
        block.check_poison(&of);
        block.release();
    }
}

/// Looks at all memory that is kept for late writes.
pub fn check_freed() {
    for (block, of) in &MALLOC.lock().unwrap().freed {
        block.check_poison(of);
    }
}

pub(crate) unsafe extern "C" fn malloc(
    size: usize,
    kind: *mut sys::malloc_type,
    flags: c_int,
) -> *mut c_void {
    // SAFETY: the module's malloc type.
    alloc(size, &text(unsafe { (*kind).ks_shortdesc }), flags as u32)
}

pub(crate) unsafe extern "C" fn free(at: *mut c_void, kind: *mut sys::malloc_type) {
    // SAFETY: the module's malloc type.
    dealloc(at, &text(unsafe { (*kind).ks_shortdesc }));
}

pub(crate) unsafe extern "C" fn malloc_init(_kind: *mut c_void) {}

/// MALLOC_DEFINE(9)'s sysuninit: nothing of the type may be left.
pub(crate) unsafe extern "C" fn malloc_uninit(kind: *mut c_void) {
    // SAFETY: the module's malloc type.
    let name = text(unsafe { (*kind.cast::<sys::malloc_type>()).ks_shortdesc });
    check_freed();
    let left = malloc_live(&name);
    if left != 0 {
        broken(&format!(
            "{left} allocations of malloc type {name} are left at unload"
        ));
    }
}

/// A uma(9) zone.
struct Zone {
    name: String,
    size: usize,
    state: Mutex<ZoneState>,
}

#[derive(Default)]
struct ZoneState {
    live: HashMap<usize, Block>,
    free: Vec<Block>,
    high_water: usize,
    allocs: u64,
}

/// A zone's figures, as vmstat -z shows them.
#[derive(Clone, Debug)]
pub struct ZoneStats {
    /// The zone's name.
    pub name: String,
    /// Bytes an item has.
    pub size: usize,
    /// Items in use.
    pub used: usize,
    /// The most items in use at a time.
    pub high_water: usize,
    /// Allocations so far.
    pub allocs: u64,
}

static ZONES: Mutex<Vec<&'static Zone>> = Mutex::new(Vec::new());
static DESTROYED: Mutex<Vec<ZoneStats>> = Mutex::new(Vec::new());

impl Zone {
    fn stats(&self) -> ZoneStats {
        let state = self.state.lock().unwrap();
        ZoneStats {
            name: self.name.clone(),
            size: self.size,
            used: state.live.len(),
            high_water: state.high_water,
            allocs: state.allocs,
        }
    }
}

/// Whether an item of some zone that is in use starts there.
pub fn is_item(at: *mut c_void) -> bool {
    let zones = ZONES.lock().unwrap();
    let has = |zone: &&&Zone| zone.state.lock().unwrap().live.contains_key(&(at as usize));
    zones.iter().any(|zone| has(&zone))
}

/// The zones there are.
pub fn zones() -> Vec<ZoneStats> {
    ZONES.lock().unwrap().iter().map(|z| z.stats()).collect()
}

/// Bytes that a module has: of its malloc type, and of the zones that are
/// called after it.
pub fn in_use(module: &str) -> usize {
    let malloc = MALLOC.lock().unwrap();
    let allocated = malloc.live.values().filter(|(_, of)| of == module);
    let allocated: usize = allocated.map(|(block, _)| block.len).sum();
    drop(malloc);
    let of_zones = zones().into_iter().filter(|z| z.name.starts_with(module));
    allocated + of_zones.map(|z| z.size * z.used).sum::<usize>()
}

/// The zones that were destroyed, as they were at their end.
pub fn destroyed_zones() -> Vec<ZoneStats> {
    DESTROYED.lock().unwrap().clone()
}

pub(crate) unsafe extern "C" fn uma_zcreate(
    name: *const c_char,
    size: usize,
    _ctor: *const c_void,
    _dtor: *const c_void,
    _init: *const c_void,
    _fini: *const c_void,
    align: c_int,
    _flags: u32,
) -> *mut c_void {
    may_sleep("uma_zcreate");
    if align > 63 {
        broken("uma_zcreate: alignment above 64");
    }
    if fault::ZCREATE.fails() {
        return core::ptr::null_mut();
    }
    let zone: &'static Zone = Box::leak(Box::new(Zone {
        name: text(name),
        size,
        state: Mutex::default(),
    }));
    ZONES.lock().unwrap().push(zone);
    (&raw const *zone).cast_mut().cast()
}

fn zone(raw: *mut c_void, what: &str) -> &'static Zone {
    let zones = ZONES.lock().unwrap();
    match zones.iter().find(|z| core::ptr::eq(**z, raw.cast())) {
        Some(zone) => zone,
        None => {
            drop(zones);
            broken(&format!("{what}: no such zone, or destroyed"))
        }
    }
}

pub(crate) unsafe extern "C" fn uma_zdestroy(raw: *mut c_void) {
    may_sleep("uma_zdestroy");
    let zone = zone(raw, "uma_zdestroy");
    let mut state = zone.state.lock().unwrap();
    if !state.live.is_empty() {
        broken(&format!(
            "zone {} is destroyed with {} items in use",
            zone.name,
            state.live.len()
        ));
    }
    for block in state.free.drain(..) {
        block.check_poison(&zone.name);
        block.release();
    }
    drop(state);
    DESTROYED.lock().unwrap().push(zone.stats());
    ZONES.lock().unwrap().retain(|z| !core::ptr::eq(*z, zone));
}

pub(crate) unsafe extern "C" fn uma_zalloc_arg(
    raw: *mut c_void,
    _arg: *mut c_void,
    flags: c_int,
) -> *mut c_void {
    let flags = flags as u32;
    if flags & sys::M_WAITOK != 0 {
        may_sleep("uma_zalloc(M_WAITOK)");
    } else if fault::MALLOC.fails() {
        return core::ptr::null_mut();
    }
    let zone = zone(raw, "uma_zalloc");
    let mut state = zone.state.lock().unwrap();
    let block = match state.free.pop() {
        Some(block) => {
            block.check_poison(&zone.name);
            block
        }
        None => Block::new(zone.size),
    };
    block.fill(filling(flags, zone.size));
    let start = block.start;
    state.live.insert(start as usize, block);
    state.allocs += 1;
    state.high_water = state.high_water.max(state.live.len());
    start.cast()
}

pub(crate) unsafe extern "C" fn uma_zfree_arg(
    raw: *mut c_void,
    item: *mut c_void,
    _arg: *mut c_void,
) {
    if item.is_null() {
        return;
    }
    lock::holds_none_but(core::ptr::null_mut(), "uma_zfree");
    let zone = zone(raw, "uma_zfree");
    let mut state = zone.state.lock().unwrap();
    let Some(block) = state.live.remove(&(item as usize)) else {
        broken(&format!("{}: freed twice, or not an item", zone.name));
    };
    block.check_guards(&zone.name);
    block.fill(FREED);
    state.free.push(block);
}
