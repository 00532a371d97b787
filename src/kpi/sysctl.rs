//! sysctl(9): a tree of oids that comes and goes with what it shows.

use super::{alloc::KBox, shared::Shared};
use core::{
    cell::UnsafeCell,
    ffi::{CStr, c_int, c_void},
    ops::Deref,
    sync::atomic::AtomicU64,
};
use sys_bindings as sys;

unsafe extern "C" {
    /// The parent of all nodes: the shim's.
    static kpi_sysctl_parent: *mut sys::sysctl_oid_list;
}

/// A number in decimal, as a C string.
pub struct Number([u8; 11]);

impl Number {
    /// Writes it.
    pub fn new(mut n: u32) -> Self {
        let mut digits = [0; 11];
        let len = n.checked_ilog10().map_or(1, |log| log as usize + 1);
        for digit in digits[..len].iter_mut().rev() {
            *digit = b'0' + (n % 10) as u8;
            n /= 10;
        }
        Number(digits)
    }
}

impl Deref for Number {
    type Target = CStr;
    fn deref(&self) -> &CStr {
        // 2^32 has ten digits, so there is always a NUL.
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }
}

/// Oids that show fields of a `T`.
pub struct Tree<T: Send + Sync + 'static> {
    context: KBox<UnsafeCell<sys::sysctl_ctx_list>>,
    node: *mut sys::sysctl_oid,
    /// What the oids point into.
    shown: Shared<T>,
}

// SAFETY: sysctl(9) locks its tree itself; the context is used by one owner.
unsafe impl<T: Send + Sync> Send for Tree<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Tree<T> {}

impl<T: Send + Sync> Tree<T> {
    /// A node of that name, with nothing in it yet. Sleeps.
    pub fn new(name: &CStr, description: &'static CStr, shown: Shared<T>) -> Self {
        // SAFETY: plain data, filled in by sysctl_ctx_init(9).
        let context = KBox::new(UnsafeCell::new(unsafe {
            core::mem::zeroed::<sys::sysctl_ctx_list>()
        }));
        // SAFETY: the context's memory is stable; the parent is the shim's and
        // outlives every unit.
        let node = unsafe {
            sys::sysctl_ctx_init(context.get());
            add(
                context.get(),
                kpi_sysctl_parent,
                name,
                description,
                sys::CTLTYPE_NODE,
                core::ptr::null_mut(),
            )
        };
        Tree {
            context,
            node,
            shown,
        }
    }

    /// Adds a number that can be read. Sleeps.
    #[must_use]
    pub fn with(
        self,
        name: &'static CStr,
        description: &'static CStr,
        field: fn(&T) -> &AtomicU64,
    ) -> Self {
        // No node, no leaf: sysctl(9) has said why.
        if !self.node.is_null() {
            let value = field(&self.shown).as_ptr();
            // SAFETY: what is shown outlives its oid, see drop().
            unsafe {
                add(
                    self.context.get(),
                    &raw mut (*self.node).oid_children,
                    name,
                    description,
                    sys::CTLTYPE_U64,
                    value.cast(),
                );
            }
        }
        self
    }
}

/// sysctl_add_oid(9): a node, or a number of 64 bits at `value`.
///
/// # Safety
/// The context is initialised, the parent's oid stays as long as it, and so
/// does the value.
unsafe fn add(
    context: *mut sys::sysctl_ctx_list,
    parent: *mut sys::sysctl_oid_list,
    name: &CStr,
    description: &'static CStr,
    kind: u32,
    value: *mut c_void,
) -> *mut sys::sysctl_oid {
    let leaf = !value.is_null();
    // SAFETY: the caller's promise; the name and the description are copied or
    // static.
    unsafe {
        sys::sysctl_add_oid(
            context,
            parent,
            sys::OID_AUTO,
            name.as_ptr(),
            (kind | sys::CTLFLAG_RD | sys::CTLFLAG_MPSAFE) as c_int,
            value,
            0,
            if leaf {
                Some(sys::sysctl_handle_64)
            } else {
                None
            },
            if leaf { c"QU" } else { c"N" }.as_ptr(),
            description.as_ptr(),
            core::ptr::null(),
        )
    }
}

impl<T: Send + Sync> Drop for Tree<T> {
    /// Waits until nobody reads. Sleeps.
    fn drop(&mut self) {
        // SAFETY: the context of new(), once.
        unsafe { sys::sysctl_ctx_free(self.context.get()) };
    }
}
