//! Safe wrappers over the kernel's programming interface: one file a kernel
//! facility, each with the rule it relies on, no driver policy.
//!
//! Everything that can only be right by a kernel rule is in here, so that the
//! rooms above need `unsafe` only where the kernel calls in. C names are kept
//! where a C reader looks for them. Unit tests on a host link no kernel, so
//! only the files that call none are built for them.

pub mod errno;
pub mod fifo;
pub mod list;
pub mod time;

#[cfg(not(test))]
pub mod abort;
#[cfg(not(test))]
pub mod alloc;
#[cfg(not(test))]
pub mod ccb;
#[cfg(not(test))]
pub mod cdev;
#[cfg(not(test))]
pub mod devstat;
#[cfg(not(test))]
pub mod driver;
#[cfg(not(test))]
pub mod knlist;
#[cfg(not(test))]
pub mod mmc;
#[cfg(not(test))]
pub mod module;
#[cfg(not(test))]
pub mod mutex;
#[cfg(not(test))]
pub mod once;
#[cfg(not(test))]
pub mod pages;
#[cfg(not(test))]
pub mod panic;
#[cfg(not(test))]
pub mod patience;
#[cfg(not(test))]
pub mod periph;
#[cfg(not(test))]
pub mod print;
#[cfg(not(test))]
pub mod selinfo;
#[cfg(not(test))]
pub mod shared;
#[cfg(not(test))]
pub mod stack;
#[cfg(not(test))]
pub mod sysctl;
#[cfg(not(test))]
pub mod task;
#[cfg(not(test))]
pub mod tunable;
#[cfg(not(test))]
pub mod user;
#[cfg(not(test))]
pub mod zone;
