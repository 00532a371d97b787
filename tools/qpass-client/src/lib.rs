//! Queued, asynchronous CAM pass-through for programs: qpass(4), and as far as
//! it can, pass(4).
//!
//! ```
//! use qpass_client::{Command, Device, Method, kernel};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let kernel = kernel()?;
//! let device = Device::open(&kernel, "qpass0")?;
//! let mut queue = device.queue(32, Method::Enter)?;
//! for i in 0..32 {
//!     let buffer = device.buffer(16384)?;
//!     let command = Command::read(i * 32, 32, buffer, 16384);
//!     queue.submit(command, i).expect("there is room for 32");
//! }
//! while queue.in_flight() != 0 {
//!     for done in queue.reap(1, Duration::from_secs(1))? {
//!         println!("{}: {:?} bytes", done.tag, done.result?);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A [`Queue`] owns its CCBs and, while the kernel has them, its commands'
//! buffers: nothing can be freed or seen that a device may still write to. On
//! FreeBSD it is `AsFd`: readable when something can be reaped, as mio, polling
//! and the like want it.
//!
//! On Linux [`kernel`] is the user-mode FreeBSD kernel with qpass.ko loaded into
//! it; see [`umode`].

mod command;
mod device;
mod errno;
mod error;
mod identity;
mod kernel;
#[cfg(target_os = "freebsd")]
mod native;
mod open;
mod outstanding;
mod queue;
mod sense;
#[cfg(target_os = "linux")]
pub mod umode;
mod usage;

pub use command::{Command, Direction, NvmeEntry, Registers};
pub use device::{Counters, Device, Features, Info, Limits};
pub use errno::Errno;
pub use error::{CamStatus, CommandError, DeviceStatus, Error, Failure};
pub use identity::{Identity, Protocol, nodes, own_nodes};
pub use kernel::{Buffer, Fd, Kernel, Mount};
pub use outstanding::{Cancel, Cancelled, Outstanding, State};
pub use queue::{Completion, Method, Queue};
pub use sense::Sense;
pub use usage::{Use, users};

use std::sync::Arc;

/// The kernel that the program runs on; on Linux, the user-mode kernel that the
/// environment describes.
///
/// # Errors
/// In words: why there is none.
pub fn kernel() -> Result<Arc<dyn Kernel>, String> {
    #[cfg(target_os = "freebsd")]
    return Ok(native::kernel());
    #[cfg(target_os = "linux")]
    return umode::from_environment();
}
