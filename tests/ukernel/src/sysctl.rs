//! sysctl(9): the module's own oids, by the last part of their names.

use crate::{
    lock, memory, sys,
    thread::{self, broken},
};
use std::{
    collections::HashMap,
    ffi::{CStr, c_int, c_void},
    sync::{Mutex, atomic::Ordering},
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

fn find(name: &str) -> Option<usize> {
    let table = OIDS.lock().unwrap();
    table.as_ref()?.get(name).copied()
}

/// Sets a number, through the oid's handler.
pub fn set(name: &str, value: u64) {
    let Some(oid) = find(name) else {
        broken(&format!("no sysctl {name}"));
    };
    store_number(name, oid, value);
}

fn store_number(name: &str, oid: usize, value: u64) {
    let stored = ask_handler(oid, None, Some(&value));
    assert_eq!(stored, Ok(()), "sysctl {name}");
}

/// Reads a number, sets it, or both.
fn ask_handler(oid: usize, old: Option<&mut u64>, new: Option<&u64>) -> Result<(), i32> {
    let oid = oid as *mut sys::sysctl_oid;
    // SAFETY: a registered oid of the loaded module; little-endian, so a
    // narrower variable takes and gives the low bytes.
    unsafe {
        let mut req: sys::sysctl_req = core::mem::zeroed();
        if let Some(old) = old {
            req.oldptr = core::ptr::from_mut(old).cast();
            req.oldlen = size_of::<u64>();
        }
        if let Some(new) = new {
            req.newptr = core::ptr::from_ref(new).cast();
            req.newlen = size_of::<u64>();
        }
        let handler = (*oid).oid_handler.expect("a handler");
        match handler(oid, (*oid).oid_arg1, (*oid).oid_arg2, &mut req) {
            0 => Ok(()),
            error => Err(error),
        }
    }
}

/// sysctl(3) of a module's own number, such as `max_requests`: reads it, and
/// sets it if `new` says what to.
///
/// # Errors
/// `ENOENT`: there is none; `EPERM`: set by who may not; `EINVAL`: does not fit.
pub fn number(name: &str, new: Option<u64>) -> Result<u64, i32> {
    let oid = find(name).ok_or(sys::ENOENT as i32)?;
    if new.is_some() && !thread::PRIVILEGED.load(Ordering::SeqCst) {
        return Err(sys::EPERM as i32);
    }
    // SAFETY: a registered oid of the loaded module.
    let kind = unsafe { (*(oid as *mut sys::sysctl_oid)).oid_kind } & sys::CTLTYPE;
    let is_int = [sys::CTLTYPE_UINT, sys::CTLTYPE_INT].contains(&kind);
    if is_int && new.is_some_and(|new| u32::try_from(new).is_err()) {
        return Err(sys::EINVAL as i32);
    }
    let mut old = 0;
    ask_handler(oid, Some(&mut old), new.as_ref())?;
    Ok(old)
}

unsafe fn store(arg1: *mut c_void, req: *mut sys::sysctl_req, len: usize) -> c_int {
    // SAFETY: the caller's request and the oid's variable of that length.
    unsafe {
        let old = (*req).oldptr;
        if !old.is_null() {
            core::ptr::copy_nonoverlapping(arg1.cast::<u8>(), old.cast::<u8>(), len);
            if (*req).newptr.is_null() {
                return 0;
            }
        }
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

/// sysctl_handle_64(9), for oids that the module adds as it runs; [`value`]
/// reads their variables.
pub(crate) unsafe extern "C" fn sysctl_handle_64(
    _oid: *mut sys::sysctl_oid,
    arg1: *mut c_void,
    _arg2: i64,
    req: *mut sys::sysctl_req,
) -> c_int {
    // SAFETY: the oid's variable has 64 bits.
    unsafe { store(arg1, req, 8) }
}

/// Oids that came with a context, by the context: names, and variables.
type Added = HashMap<usize, Vec<(String, usize, usize)>>;
static ADDED: Mutex<Option<Added>> = Mutex::new(None);
/// What the oids of freed contexts said in the end.
static LAST: Mutex<Vec<HashMap<String, u64>>> = Mutex::new(Vec::new());

const OID: &str = "sysctloid";

pub(crate) unsafe extern "C" fn sysctl_ctx_init(context: *mut sys::sysctl_ctx_list) -> c_int {
    let mut added = ADDED.lock().unwrap();
    added
        .get_or_insert_default()
        .insert(context as usize, Vec::new());
    0
}

#[allow(clippy::too_many_arguments)]
pub(crate) unsafe extern "C" fn sysctl_add_oid(
    context: *mut sys::sysctl_ctx_list,
    parent: *mut sys::sysctl_oid_list,
    _number: c_int,
    name: *const core::ffi::c_char,
    kind: c_int,
    arg1: *mut c_void,
    _arg2: i64,
    _handler: *const c_void,
    _fmt: *const core::ffi::c_char,
    _descr: *const core::ffi::c_char,
    _label: *const core::ffi::c_char,
) -> *mut sys::sysctl_oid {
    lock::may_sleep("sysctl_add_oid");
    // SAFETY: the caller's NUL-ended name.
    let name = unsafe { CStr::from_ptr(name) }
        .to_string_lossy()
        .into_owned();
    let flags = sys::M_WAITOK | sys::M_ZERO;
    let oid = memory::alloc(size_of::<sys::sysctl_oid>(), OID, flags).cast::<sys::sysctl_oid>();
    let mut guard = ADDED.lock().unwrap();
    let added = guard.get_or_insert_default();
    // A node's children are a field of its own.
    let path = added
        .values()
        .flatten()
        .find(|(_, oid, _)| {
            let oid = *oid as *mut sys::sysctl_oid;
            // SAFETY: a live oid; only an address is taken.
            core::ptr::eq(parent, unsafe { &raw mut (*oid).oid_children })
        })
        .map_or(name.clone(), |(parent, ..)| format!("{parent}.{name}"));
    if added.values().flatten().any(|(other, ..)| *other == path) {
        drop(guard);
        broken(&format!("sysctl {path} is there already"));
    }
    let is_number = kind as u32 & sys::CTLTYPE == sys::CTLTYPE_U64;
    let variable = if is_number { arg1 as usize } else { 0 };
    let Some(of_context) = added.get_mut(&(context as usize)) else {
        drop(guard);
        broken("sysctl_add_oid with a context that is not initialised");
    };
    of_context.push((path, oid as usize, variable));
    oid
}

fn read(variable: usize) -> u64 {
    // SAFETY: the variable of an oid that is there.
    unsafe { (*(variable as *const std::sync::atomic::AtomicU64)).load(Ordering::SeqCst) }
}

pub(crate) unsafe extern "C" fn sysctl_ctx_free(context: *mut sys::sysctl_ctx_list) -> c_int {
    lock::may_sleep("sysctl_ctx_free");
    let oids = ADDED
        .lock()
        .unwrap()
        .as_mut()
        .and_then(|added| added.remove(&(context as usize)));
    let Some(oids) = oids else {
        broken("sysctl_ctx_free of a context that is not initialised");
    };
    let numbers = oids.iter().filter(|(.., variable)| *variable != 0);
    let last = numbers
        .map(|(name, _, variable)| (name.clone(), read(*variable)))
        .collect();
    LAST.lock().unwrap().push(last);
    for (_, oid, _) in oids {
        memory::dealloc(oid as *mut c_void, OID);
    }
    0
}

/// The value of a number that the module has added, such as `0.submitted`.
pub fn value(name: &str) -> Option<u64> {
    let guard = ADDED.lock().unwrap();
    let mut oids = guard.as_ref()?.values().flatten();
    let (.., variable) = oids.find(|(other, _, variable)| other == name && *variable != 0)?;
    Some(read(*variable))
}

/// What the numbers of units that have gone said in the end, told once.
pub fn take_last() -> Vec<HashMap<String, u64>> {
    std::mem::take(&mut LAST.lock().unwrap())
}
