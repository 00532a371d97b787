//! sysctl(9): the module's own oids, by the last part of their names.

use crate::{sys, thread::broken};
use std::{
    collections::HashMap,
    ffi::{CStr, c_int, c_void},
    sync::Mutex,
};

static OIDS: Mutex<Option<HashMap<String, usize>>> = Mutex::new(None);

/// The kernel environment: what the loader would have set.
static TUNABLES: Mutex<Vec<(String, u64)>> = Mutex::new(Vec::new());

/// Sets a tunable, for modules loaded from now on.
pub fn set_tunable(name: &str, value: u64) {
    TUNABLES.lock().unwrap().push((name.into(), value));
}

/// Takes the oids of a module's linker set.
pub(crate) fn register(oids: &[usize]) {
    let mut table = OIDS.lock().unwrap();
    let table = table.get_or_insert_default();
    for oid in oids {
        // SAFETY: the linker set holds pointers to struct sysctl_oid.
        let name = unsafe { CStr::from_ptr((*(*oid as *mut sys::sysctl_oid)).oid_name) };
        table.insert(name.to_string_lossy().into_owned(), *oid);
    }
    for (name, value) in &*TUNABLES.lock().unwrap() {
        if let Some(oid) = table.get(name) {
            store_number(name, *oid, *value);
        }
    }
}

/// The module goes: so do its oids.
pub(crate) fn unregister_all() {
    *OIDS.lock().unwrap() = None;
}

/// Sets a number, through the oid's handler.
pub fn set(name: &str, value: u64) {
    let oid = OIDS
        .lock()
        .unwrap()
        .as_ref()
        .and_then(|table| table.get(name).copied());
    let Some(oid) = oid else {
        broken(&format!("no sysctl {name}"));
    };
    store_number(name, oid, value);
}

fn store_number(name: &str, oid: usize, value: u64) {
    let oid = oid as *mut sys::sysctl_oid;
    // SAFETY: a registered oid of the loaded module; little-endian, so a
    // narrower variable takes the low bytes.
    unsafe {
        let mut req: sys::sysctl_req = core::mem::zeroed();
        req.newptr = (&raw const value).cast();
        req.newlen = size_of::<u64>();
        let handler = (*oid).oid_handler.expect("a handler");
        let error = handler(oid, (*oid).oid_arg1, (*oid).oid_arg2, &mut req);
        assert_eq!(error, 0, "sysctl {name}");
    }
}

unsafe fn store(arg1: *mut c_void, req: *mut sys::sysctl_req, len: usize) -> c_int {
    // SAFETY: the caller's request and the oid's variable of that length.
    unsafe {
        if (*req).newptr.is_null() {
            return sys::EINVAL as c_int;
        }
        core::ptr::copy_nonoverlapping((*req).newptr.cast::<u8>(), arg1.cast::<u8>(), len);
    }
    0
}

pub(crate) unsafe extern "C" fn sysctl_handle_int(
    _oid: *mut sys::sysctl_oid,
    arg1: *mut c_void,
    _arg2: i64,
    req: *mut sys::sysctl_req,
) -> c_int {
    // SAFETY: SYSCTL_UINT's variable is an int.
    unsafe { store(arg1, req, 4) }
}

pub(crate) unsafe extern "C" fn sysctl_handle_long(
    _oid: *mut sys::sysctl_oid,
    arg1: *mut c_void,
    _arg2: i64,
    req: *mut sys::sysctl_req,
) -> c_int {
    // SAFETY: SYSCTL_ULONG's variable is a long.
    unsafe { store(arg1, req, 8) }
}
