//! uma(9): zones of equal-sized items, and boxes that go back to their zone.

use super::{
    ccb::{Ccb, DoneFn, Saved},
    errno::{ENOMEM, Result},
    fifo::{Entry, Link},
    list::{Node, Owner},
    periph::Held,
    user::UserPtr,
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

/// A value in a zone's item, beside a CCB.
pub trait ZoneItem: Sized {
    /// What keeps the zone alive.
    type Keeper: Deref<Target: AsRef<Zone>>;
    /// A reference to it, of its own.
    fn keeper(&self) -> Self::Keeper;
    /// What others may know of it while it has an owner.
    type Known: Node + Sync;
    /// It is about to go: takes what is known of it off its list.
    fn leave(item: &ZoneBox<Self>);
}

/// What an item holds. The value and the CCB are the owner's alone, or the CCB
/// is CAM's; what is known of it is shared from the start.
#[repr(C)]
pub struct Item<T: ZoneItem> {
    /// First: CAM's address of it is the item's.
    ccb: Ccb,
    /// What the user must find unchanged in it.
    saved: Saved,
    value: T,
    link: Link<Item<T>>,
    known: T::Known,
}

/// Bytes that a zone of such items needs for each.
pub const fn item_size<T: ZoneItem>() -> usize {
    size_of::<Item<T>>()
}

/// An item that has a CCB, and no value yet.
pub struct Draft<T: ZoneItem> {
    item: NonNull<Item<T>>,
    keeper: T::Keeper,
}

impl<T: ZoneItem> Draft<T> {
    /// Takes an item of the zone that `keeper` keeps, and copies a user's CCB
    /// right into it. May sleep.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn copyin(keeper: T::Keeper, from: UserPtr) -> Result<Self> {
        let zone = keeper.as_ref();
        assert!(item_size::<T>() <= zone.size && align_of::<Item<T>>() <= align_of::<*const ()>());
        let draft = Draft {
            item: zone.alloc(false).cast(),
            keeper,
        };
        // SAFETY: a fresh item, large and aligned enough; two fields of it.
        unsafe {
            Ccb::copyin_raw(draft.ccb_ptr(), from)?;
            let saved = &raw mut (*draft.item.as_ptr()).saved;
            (*draft.ccb_ptr()).save(saved);
        }
        Ok(draft)
    }

    fn ccb_ptr(&self) -> *mut Ccb {
        // SAFETY: inside the item.
        unsafe { &raw mut (*self.item.as_ptr()).ccb }
    }

    /// The CCB.
    pub fn ccb(&mut self) -> &mut Ccb {
        // SAFETY: copyin() has initialised every byte of it.
        unsafe { &mut *self.ccb_ptr() }
    }

    /// Adds what was missing.
    pub fn finish(self, value: T, known: T::Known) -> ZoneBox<T> {
        let mut this = ManuallyDrop::new(self);
        let item = this.item.as_ptr();
        // SAFETY: a fresh item; the keeper is dropped once, and the value has
        // another.
        unsafe {
            (&raw mut (*item).value).write(value);
            (&raw mut (*item).link).write(Link::new());
            (&raw mut (*item).known).write(known);
            core::ptr::drop_in_place(&raw mut this.keeper);
        }
        ZoneBox(this.item)
    }
}

impl<T: ZoneItem> Drop for Draft<T> {
    fn drop(&mut self) {
        // SAFETY: the item came from this zone, and holds plain bytes.
        unsafe { free(self.keeper.as_ref(), self.item) };
    }
}

/// Gives an item back.
///
/// # Safety
/// It came from this zone, and nothing in it is used any more.
unsafe fn free<T>(zone: &Zone, item: NonNull<T>) {
    // SAFETY: the caller's promise.
    unsafe { sys::uma_zfree_arg(zone.raw, item.as_ptr().cast(), core::ptr::null_mut()) };
}

/// Owns one item of a zone.
pub struct ZoneBox<T: ZoneItem>(NonNull<Item<T>>);

// SAFETY: owns its T as Box does.
unsafe impl<T: ZoneItem + Send> Send for ZoneBox<T> {}

impl<T: ZoneItem> ZoneBox<T> {
    /// What others may know of it.
    pub fn known(&self) -> &T::Known {
        // SAFETY: owned and initialised, and never borrowed exclusively.
        unsafe { self.node().as_ref() }
    }

    /// The CCB.
    pub fn ccb(&self) -> &Ccb {
        // SAFETY: owned and initialised.
        unsafe { &(*self.0.as_ptr()).ccb }
    }

    /// The user's `pinfo.priority`.
    pub fn asked_priority(&self) -> u32 {
        // SAFETY: owned and initialised.
        unsafe { (*self.0.as_ptr()).saved.priority() }
    }

    /// [`Ccb::restore`], to what it was when it was copied in.
    pub fn restore(&mut self) {
        // SAFETY: owned and initialised; two fields.
        unsafe { (*self.0.as_ptr()).ccb.restore(&(*self.0.as_ptr()).saved) };
    }

    /// The CCB, to change.
    pub fn ccb_mut(&mut self) -> &mut Ccb {
        self.parts().1
    }

    /// The value and the CCB, to change.
    pub fn parts(&mut self) -> (&mut T, &mut Ccb) {
        // SAFETY: owned and initialised; two fields.
        unsafe { (&mut (*self.0.as_ptr()).value, &mut (*self.0.as_ptr()).ccb) }
    }

    /// xpt_action(9): from here on the item is CAM's, until `done` is called
    /// with its CCB. It is set up for the periph.
    pub fn send(mut self, done: DoneFn, _held: &mut Held<'_>) {
        self.ccb_mut().set_done(done);
        let item = ManuallyDrop::new(self).0;
        // SAFETY: set up by the caller; the device lock is held, and the item
        // stays until CAM gives the CCB back.
        unsafe { sys::xpt_action(item.as_ptr().cast()) };
    }

    /// Takes ownership back in the completion of the CCB.
    ///
    /// # Safety
    /// `ccb` is that of a box of this type which was sent, and CAM has given it
    /// back once since.
    pub unsafe fn from_ccb(ccb: *mut sys::ccb) -> Self {
        // SAFETY: the item starts with its CCB, and is not null.
        ZoneBox(unsafe { NonNull::new_unchecked(ccb.cast()) })
    }

    /// Leaves it to CAM again, which has sent the CCB anew.
    pub fn leave_sent(self) {
        let _ = ManuallyDrop::new(self);
    }
}

impl<T: ZoneItem> Deref for ZoneBox<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: owned and initialised.
        unsafe { &(*self.0.as_ptr()).value }
    }
}

impl<T: ZoneItem> DerefMut for ZoneBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.parts().0
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
            self.0.drop_in_place();
            free(keeper.as_ref(), self.0);
        }
    }
}

// SAFETY: an item does not move and into_raw gives it up whole; the link is
// reached through the queue alone.
unsafe impl<T: ZoneItem> Entry for ZoneBox<T> {
    type Node = Item<T>;
    fn into_raw(self) -> NonNull<Item<T>> {
        ManuallyDrop::new(self).0
    }
    unsafe fn from_raw(node: NonNull<Item<T>>) -> Self {
        ZoneBox(node)
    }
    unsafe fn link(node: NonNull<Item<T>>) -> *mut Link<Item<T>> {
        // SAFETY: the queue owns the node.
        unsafe { &raw mut (*node.as_ptr()).link }
    }
}

// SAFETY: an item does not move, and nobody but the value is borrowed
// exclusively.
unsafe impl<T: ZoneItem> Owner for ZoneBox<T> {
    type Node = T::Known;
    fn node(&self) -> NonNull<T::Known> {
        // SAFETY: inside the item.
        unsafe { NonNull::new_unchecked(&raw mut (*self.0.as_ptr()).known) }
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
