//! A user-mode FreeBSD kernel: it loads **the same qpass.ko** that a FreeBSD
//! host loads into a Linux process, gives it the kernel functions that it
//! imports, and a CAM with disks behind it.
//!
//! It is small, and strict where a real kernel is fast. As it runs it checks
//! lock ownership and order, sleeping with a lock held, use of memory after it
//! was freed, writes over the end, unbalanced references, and, when the module
//! is unloaded, that nothing is left. What it finds ends the process with a
//! report. Faults can be had at the n-th allocation or copy.
//!
//! Every struct that the module sees has the layout of the FreeBSD headers
//! (sys-bindings). A symbol that the module imports and this kernel does not
//! have stops the load by name.
//!
//! | file | kernel facility |
//! | --- | --- |
//! | [`loader`] | kldload(2): relocation, linker sets, sysinits |
//! | [`exports`] | the symbol table |
//! | [`thread`] | curthread, panic, the report |
//! | [`lock`] | mutex(9), sleep(9), witness(4) |
//! | [`memory`] | malloc(9), uma(9) |
//! | [`user`] | the process's memory: copy(9) |
//! | [`task`] | taskqueue(9) |
//! | [`devfs`] | devfs(5): cdevs, opens, cdevpriv(9), ioctl(2), poll(2) |
//! | [`devstat`] | devstat(9) |
//! | [`kqueue`] | kqueue(2), knlist(9) |
//! | [`cam`] | CAM's transport layer and periph library |
//! | [`disk`] | a SIM with a RAM disk behind it |
//! | [`model`] | what sets one SIM apart from another |
//! | [`busdma`] | bus_dma(9): alignment, bounce pages |
//! | [`nvme`] | an NVMe controller: PRPs |
//! | [`scsi`] | what the RAM disk makes of a CDB |
//! | [`process`] | the system calls, as [`conform::sys::Sys`] |

pub mod busdma;
pub mod cam;
pub mod count;
pub mod devfs;
pub mod devstat;
pub mod disk;
pub mod exports;
pub mod fault;
pub mod kqueue;
pub mod loader;
pub mod lock;
pub mod memory;
pub mod model;
pub mod nvme;
pub mod process;
pub mod scsi;
pub mod sysctl;
pub mod task;
pub mod thread;
pub mod user;
pub mod vm;
mod worker;

pub use sys_bindings as sys;
