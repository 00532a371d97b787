//! uma(9): zones of equal-sized items, and boxes that go back to their zone.

use super::{
    errno::{ENOMEM, Result},
    fifo::{Entry, Link},
    list::{Node, Owner},
};
use core::{
    ffi::{CStr, c_int},
    mem::ManuallyDrop,
    ops::{Deref, DerefMut},
    ptr::NonNull,
};
use sys_bindings as sys;

/// A UMA zone. Destroying it sleeps, and every item must be back.
pub struct Zone {
    raw: sys::uma_zone_t,
    size: usize,
}

// SAFETY: uma(9) locks its zones itself.
unsafe impl Send for Zone {}
// SAFETY: as above.
unsafe impl Sync for Zone {}

impl Zone {
    /// Creates a zone of items of `size` bytes, aligned for any type; `name`
    /// is what vmstat -z shows. Sleeps.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn create(name: &'static CStr, size: usize) -> Result<Self> {
        // SAFETY: uma_zcreate(9) keeps the name, which is static; there are no
        // constructors. The last argument is UMA_ALIGN_PTR's mask.
        let raw = unsafe {
            sys::uma_zcreate(
                name.as_ptr(),
                size,
                None,
                None,
                None,
                None,
                align_of::<*const ()>() as c_int - 1,
                0,
            )
        };
        if raw.is_null() {
            return Err(ENOMEM);
        }
        Ok(Zone { raw, size })
    }

    /// Bytes an item has.
    pub fn item_size(&self) -> usize {
        self.size
    }

    fn alloc(&self, zero: bool) -> NonNull<u8> {
        let flags = sys::M_WAITOK | if zero { sys::M_ZERO } else { 0 };
        // SAFETY: the zone lives as long as self.
        let item = unsafe { sys::uma_zalloc_arg(self.raw, core::ptr::null_mut(), flags as c_int) };
        // uma(9): an M_WAITOK allocation does not return NULL.
        NonNull::new(item.cast()).expect("M_WAITOK item")
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        // SAFETY: every box keeps its zone alive, so every item is back.
        unsafe { sys::uma_zdestroy(self.raw) };
    }
}

/// A value in a zone's item.
pub trait ZoneItem {
    /// What keeps the zone alive.
    type Keeper: Deref<Target: AsRef<Zone>>;
    /// A reference to it, of its own.
    fn keeper(&self) -> Self::Keeper;
    /// The link that a [`Fifo`](super::fifo::Fifo) uses.
    fn link(&mut self) -> &mut Link<Self>
    where
        Self: Sized;
    /// What others may know of it while it has an owner.
    type Known: Node + Sync;
    /// It is about to go: takes what is known of it off its list.
    fn leave(item: &ZoneBox<Self>)
    where
        Self: Sized;
}

/// What an item holds. The value is its owner's alone; what is known of it is
/// shared from the start.
#[repr(C)]
struct Item<T: ZoneItem> {
    value: T,
    known: T::Known,
}

/// Bytes that a zone of such items needs for each.
pub const fn item_size<T: ZoneItem>() -> usize {
    size_of::<Item<T>>()
}

/// Owns one item of a zone.
pub struct ZoneBox<T: ZoneItem>(NonNull<T>);

// SAFETY: owns its T as Box does.
unsafe impl<T: ZoneItem + Send> Send for ZoneBox<T> {}

impl<T: ZoneItem> ZoneBox<T> {
    /// Puts `value` into an item of the zone that its keeper names. May sleep.
    pub fn new(value: T, known: T::Known) -> Self {
        let keeper = value.keeper();
        let zone = keeper.as_ref();
        assert!(item_size::<T>() <= zone.size && align_of::<Item<T>>() <= align_of::<*const ()>());
        let item = zone.alloc(false).cast::<Item<T>>();
        // SAFETY: a fresh item, large and aligned enough.
        unsafe { item.write(Item { value, known }) };
        ZoneBox(item.cast())
    }

    /// What others may know of it.
    pub fn known(&self) -> &T::Known {
        // SAFETY: owned and initialised, and never borrowed exclusively.
        unsafe { self.node().as_ref() }
    }

    /// Gives up ownership.
    pub fn into_raw(self) -> NonNull<T> {
        ManuallyDrop::new(self).0
    }

    /// Takes ownership back.
    ///
    /// # Safety
    /// `raw` came from [`into_raw`](Self::into_raw) and was not taken back
    /// since.
    pub unsafe fn from_raw(raw: NonNull<T>) -> Self {
        ZoneBox(raw)
    }
}

impl<T: ZoneItem> Deref for ZoneBox<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: owned and initialised.
        unsafe { self.0.as_ref() }
    }
}

impl<T: ZoneItem> DerefMut for ZoneBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: owned and initialised.
        unsafe { self.0.as_mut() }
    }
}

impl<T: ZoneItem> Drop for ZoneBox<T> {
    fn drop(&mut self) {
        T::leave(self);
        // The value may hold the last reference to its own zone: one more is
        // held until the item is back.
        let keeper = self.keeper();
        // SAFETY: owned; the item came from this zone; last use.
        unsafe {
            self.0.cast::<Item<T>>().drop_in_place();
            sys::uma_zfree_arg(
                keeper.as_ref().raw,
                self.0.as_ptr().cast(),
                core::ptr::null_mut(),
            );
        }
    }
}

// SAFETY: an item does not move and into_raw gives it up whole; the link is
// reached through the queue alone.
unsafe impl<T: ZoneItem> Entry for ZoneBox<T> {
    type Node = T;
    fn into_raw(self) -> NonNull<T> {
        self.into_raw()
    }
    unsafe fn from_raw(node: NonNull<T>) -> Self {
        ZoneBox(node)
    }
    unsafe fn link(node: NonNull<T>) -> *mut Link<T> {
        // SAFETY: the queue owns the node.
        unsafe { (*node.as_ptr()).link() }
    }
}

// SAFETY: an item does not move, and nobody but the value is borrowed
// exclusively.
unsafe impl<T: ZoneItem> Owner for ZoneBox<T> {
    type Node = T::Known;
    fn node(&self) -> NonNull<T::Known> {
        // SAFETY: inside the item, which the value starts.
        unsafe {
            let known = &raw const (*self.0.cast::<Item<T>>().as_ptr()).known;
            NonNull::new_unchecked(known.cast_mut())
        }
    }
}

/// Owns one item of a zone as plain bytes.
pub struct Chunk<K> {
    item: NonNull<u8>,
    len: usize,
    zone: sys::uma_zone_t,
    _keeper: K,
}

// SAFETY: owns its bytes.
unsafe impl<K: Send> Send for Chunk<K> {}
// SAFETY: as above.
unsafe impl<K: Sync> Sync for Chunk<K> {}

impl<K> Chunk<K> {
    /// Takes an item of `zone`, which `keeper` keeps alive, all zero, of which
    /// `len` bytes are used. May sleep.
    pub fn zeroed(zone: &Zone, len: usize, keeper: K) -> Self {
        assert!(len <= zone.size);
        Chunk {
            item: zone.alloc(true),
            len,
            zone: zone.raw,
            _keeper: keeper,
        }
    }

    /// The address that a CCB carries to the SIM.
    pub fn as_ptr(&self) -> *mut u8 {
        self.item.as_ptr()
    }

    /// The bytes, while no SIM has them.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: owned and zeroed when taken. A SIM that still writes after it
        // has completed the CCB breaks CAM's rules, not ours.
        unsafe { core::slice::from_raw_parts(self.item.as_ptr(), self.len) }
    }

    /// The bytes to fill.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as bytes(), and borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.item.as_ptr(), self.len) }
    }
}

impl<K> Drop for Chunk<K> {
    fn drop(&mut self) {
        // SAFETY: the item came from this zone, which the keeper keeps alive.
        unsafe {
            sys::uma_zfree_arg(self.zone, self.item.as_ptr().cast(), core::ptr::null_mut());
        }
    }
}
