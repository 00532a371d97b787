//! Safe wrappers over the kernel's programming interface: one file a kernel
//! facility, each with the rule it relies on, no driver policy.
//!
//! Everything that can only be right by a kernel rule is in here, so that the
//! driver above needs `unsafe` only where the kernel calls in. C names are kept
//! where a C reader looks for them.

#![no_std]

use core::ffi::c_char;

pub mod errno;
pub mod fields;
pub mod fifo;
pub mod list;
pub mod segment;
pub mod shim;
pub mod time;

pub mod abort;
pub mod alloc;
pub mod ccb;
pub mod cdev;
pub mod devstat;
pub mod driver;
pub mod knlist;
pub mod memory;
pub mod mmc;
pub mod module;
pub mod mutex;
pub mod once;
pub mod pages;
pub mod panic;
pub mod patience;
pub mod periph;
pub mod print;
pub mod selinfo;
pub mod shared;
pub mod stack;
pub mod sysctl;
pub mod task;
pub mod user;
pub mod zone;

/// The driver's name, NUL-ended, for what takes a C string.
fn name() -> *const c_char {
    unsafe extern "C" {
        static kpi_name: c_char;
    }
    &raw const kpi_name
}
