//! qpass: FreeBSD's CAM pass-through driver with queued, asynchronous requests.
//!
//! A program opens `/dev/qpassN`, queues CCBs, goes on working, and reaps the
//! completed ones when kqueue(2) or poll(2) tells it to.
//!
//! The rooms, in the order in which a request meets them:
//!
//! - [`ioctl`]: the ABI, parsed once into Rust types;
//! - [`limits`]: what an open may have outstanding;
//! - [`sg`]: which bytes of a transfer are where;
//! - [`request`]: a CCB of a user's on its way through the kernel;
//! - [`buffer`]: the kernel memory that its data passes through;
//! - [`mod@unit`]: the periph of one device, its life and its lock;
//! - [`queue`]: the completions of one open;
//! - [`notify`]: kqueue(2) and poll(2);
//! - [`module`]: load and unload.
//!
//! Below them, [`kpi`] wraps the kernel; above it there is no `unsafe` but
//! where the kernel calls in.
//!
//! # Locks
//!
//! | lock | guards | taken under |
//! | --- | --- | --- |
//! | CAM device lock | a unit's requests that wait for a CCB, its node and zones | nothing |
//! | `qpass queue` | an open's completions, its knotes | the CAM device lock, or nothing |
//!
//! Neither is held over a copy from or to a process, or an allocation that may
//! sleep.
#![no_std]

pub mod ioctl;
pub mod kpi;
pub mod limits;
pub mod sg;

#[cfg(not(test))]
pub mod buffer;
#[cfg(not(test))]
pub mod module;
#[cfg(not(test))]
pub mod notify;
#[cfg(not(test))]
pub mod queue;
#[cfg(not(test))]
pub mod request;
#[cfg(not(test))]
pub mod unit;
