//! The kernel's symbol table: what a module can import, and where it is.

use crate::{cam, count, devfs, devstat, kqueue, lock, memory, sysctl, task, thread, user, vm};
use std::ffi::{c_char, c_int, c_void};

unsafe extern "C" {
    fn uk_printf(fmt: *const c_char, ...) -> c_int;
    fn uk_panicf(fmt: *const c_char, ...);
    fn uk_make_dev_s(args: *mut c_void, dev: *mut *mut c_void, fmt: *const c_char, ...) -> c_int;
    fn strlen(text: *const c_char) -> usize;
    fn memcmp(a: *const c_void, b: *const c_void, len: usize) -> c_int;
}

macro_rules! table {
    ($($(#[$_m:meta])* $module:ident :: { $($name:ident),* $(,)? })*) => {
        &[$($((stringify!($name), $module::$name as *const c_void),)*)*]
    };
}

/// A function that a module can import.
pub type Export = (&'static str, *const c_void);

/// The functions.
pub fn functions() -> Vec<Export> {
    let mut all: Vec<Export> = table! {
        lock::{ __mtx_lock_flags, __mtx_unlock_flags, _mtx_init, _mtx_destroy, _sleep, wakeup, pause_sbt, sig_intr }
        memory::{ malloc, free, malloc_init, malloc_uninit, uma_zcreate, uma_zdestroy, uma_zalloc_arg, uma_zfree_arg }
        user::{ copyin, copyout }
        vm::{ vm_fault_quick_hold_pages, vm_page_unhold_pages, vm_page_dirty_KBI, vm_page_tryxbusy, vm_page_xunbusy_hard, vm_page_is_valid }
        task::{ taskqueue_enqueue, taskqueue_drain, taskqueue_drain_all, _timeout_task_init, taskqueue_enqueue_timeout_sbt, taskqueue_drain_timeout }
        thread::{ eventratecheck, securelevel_gt, priv_check }
        devstat::{ devstat_new_entry, devstat_remove_entry, devstat_start_transaction, devstat_end_transaction, binuptime, getbinuptime }
        devfs::{ make_dev_physpath_alias, destroy_dev_sched_cb, destroy_dev_drain, devfs_set_cdevpriv, devfs_get_cdevpriv }
        kqueue::{ knlist_init_mtx, knlist_destroy, knlist_add, knlist_remove, knote, selrecord, selwakeuppri, seldrain }
        sysctl::{ sysctl_handle_int, sysctl_handle_long, sysctl_handle_64, sysctl_ctx_init, sysctl_add_oid, sysctl_ctx_free }
        cam::{
            xpt_create_path, xpt_free_path, xpt_path_mtx, xpt_path_sim, camq_remove, camq_insert, xpt_lock_buses, xpt_unlock_buses,
            xpt_register_async, xpt_async, xpt_alloc_ccb, xpt_free_ccb, xpt_setup_ccb_flags,
            xpt_merge_ccb, xpt_action, xpt_release_ccb, xpt_freeze_devq, xpt_release_devq,
            periphdriver_register, periphdriver_unregister,
            cam_periph_alloc, cam_periph_find, cam_periph_acquire, cam_periph_release, cam_periph_release_locked, cam_periph_release_locked_buses, cam_periph_invalidate,
            cam_periph_async, cam_periph_getccb, cam_periph_runccb, cam_periph_error,
            cam_periph_mapmem, cam_periph_unmapmem, cam_release_devq,
            cam_periph_ioctl, cam_compat_ioctl, xpt_getattr,
        }
    }
    .to_vec();
    all.extend([
        ("printf", uk_printf as *const c_void),
        ("panic", uk_panicf as *const c_void),
        ("make_dev_s", uk_make_dev_s as *const c_void),
        ("memcpy", count::counted_memcpy as *const c_void),
        ("memmove", count::counted_memmove as *const c_void),
        ("memset", count::counted_memset as *const c_void),
        ("memcmp", memcmp as *const c_void),
        ("strlen", strlen as *const c_void),
    ]);
    all
}

/// Variables that a module can import, and their sizes in bytes. They live in
/// the low 2 GiB, where the kernel's code model reaches them.
pub const VARIABLES: &[(&str, usize)] = &[
    ("periph_drivers", size_of::<usize>()),
    ("physmem", size_of::<usize>()),
    ("taskqueue_thread", size_of::<usize>()),
    ("unmapped_buf", size_of::<usize>()),
    ("panicstr", size_of::<usize>()),
    ("sysctl___hw", size_of::<crate::sys::sysctl_oid>()),
    ("sysctl___kern_cam", size_of::<crate::sys::sysctl_oid>()),
];

/// Functions that the loader calls itself, by comparing addresses.
pub const REGISTER_MODULE: &str = "module_register_init";
