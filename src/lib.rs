//! qpass: FreeBSD's CAM pass-through driver with queued, asynchronous requests.
//!
//! A program opens `/dev/qpassN`, queues CCBs, goes on working, and reaps the
//! completed ones when kqueue(2) or poll(2) tells it to.
//!
//! The rooms, in the order in which a request meets them:
//!
//! - [`node`]: what a program calls;
//! - [`ioctl`]: the ABI, parsed once into Rust types;
//! - [`limits`] and [`room`]: what an open and a device may have outstanding;
//! - [`nvme`]: what an NVMe command may say;
//! - [`sg`]: which bytes of a transfer are where;
//! - [`request`]: a CCB of a user's on its way through the kernel;
//! - [`buffer`]: the kernel memory that its data passes through;
//! - [`command`]: the synchronous call;
//! - [`enter`]: many requests and completions in one call;
//! - [`cancel`]: taking requests back;
//! - [`outstanding`]: what is on its way;
//! - [`info`]: what there is, and an open's own ceilings;
//! - [`mod@unit`]: the periph of one device, its life and its lock;
//! - [`queue`]: the completions of one open;
//! - [`notify`]: kqueue(2) and poll(2);
//! - [`stats`]: the counters of one device;
//! - [`module`]: load and unload.
//!
//! Below them, [`kpi`] wraps the kernel; above it there is no `unsafe` but
//! where the kernel calls in.
//!
//! # Locks
//!
//! In their order: a lock is taken under those above it only.
//!
//! | lock | one for each | guards | taken for |
//! | --- | --- | --- | --- |
//! | CAM device | device | what waits for an opening, which CCB is under way, the node, the opens, submitted and completed | every call into CAM |
//! | XPT topology | kernel | CAM's lists of drivers and their units, and CAM's references to these | load, unload, the end of a unit |
//! | `qpass room` | device | the knotes of EVFILT_WRITE, who waits for room in QPIOC_ENTER | a freed request, where somebody waits for room; a completion, where a call waits for it or for room; departure |
//! | `qpass queue` | open | the completions, the list of what is outstanding, the knotes of EVFILT_READ, who waits for completions in QPIOC_ENTER | submit, complete, reap, kevent |
//! | CAM queue (`send_mtx`) | SIM | CAM's queues of what waits for a device | the cancel of a request in there |
//!
//! The topology lock is held together with another of these only when a unit's
//! last reference is given back to CAM. What is taken under the last
//! three is the kernel's own, of kqueue(2) and select(2).
//!
//! Counters, limits and marks that need no more are atomics: an open's and a
//! device's account and the total, who watches for room, the list of rooms in which
//! somebody was refused, [`stats::Stats`], the module's uses.
//!
//! No lock is held over a copy from or to a process, or over an allocation
//! that may sleep, or when a request is freed; and none of a device or the
//! kernel over a wake-up of kqueue(2) or poll(2). A completion that somebody
//! waits for so drops the device lock, wakes, and takes it again; where nobody
//! waits, or somebody was woken and has not looked yet, it is not dropped. A call
//! that sleeps in QPIOC_ENTER is woken by wakeup(9), which takes no such lock.
//!
//! There is one way to wait, [`kpi::mutex`]'s `Guard::wait`: for completions on the
//! queue's lock, for room, or for whichever of both comes first, on the room's. A
//! freed request tells the room; a completion tells the queue, and the room if a
//! call there waits for it.
//!
//! Two opens of a device share its device lock, around calls into CAM, and no
//! other until one asks for room: docs/cost.md counts them. The user-mode kernel
//! stops at the first breach of any of this.
#![no_std]

pub mod ioctl;
pub mod limits;
pub mod nvme;
pub mod sg;
pub mod stats;

pub mod buffer;
pub mod cancel;
pub mod command;
pub mod enter;
pub mod info;
pub mod module;
pub mod node;
pub mod notify;
pub mod outstanding;
pub mod queue;
pub mod request;
pub mod room;
pub mod tunable;
pub mod unit;
