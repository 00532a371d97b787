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
//!         let outcome = done.result?;
//!         println!("{}: {} bytes", done.tag, outcome.moved);
//!         if let Some(remark) = outcome.remark() {
//!             println!("{remark}");
//!         }
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A command ends with an [`Outcome`], which has all that the device said: bytes
//! moved, sense data decoded and raw, an ATA device's registers, an NVMe
//! completion's dword 0. A [`CommandError`] is an outcome too. Data behind the bytes
//! that were moved are nobody's.
//!
//! A [`Disk`] is a device whose blocks can be read and written, with the commands
//! that it takes; [`decode`] has the decoders, which do no I/O.
//!
//! A [`Queue`] owns its CCBs and, while the kernel has them, its commands'
//! buffers: nothing can be freed or seen that a device may still write to. On
//! FreeBSD it is `AsFd`: readable when something can be reaped, as mio, polling
//! and the like want it; on every kernel there is [`Queue::wait`].
//!
//! On Linux [`kernel`] is the user-mode FreeBSD kernel with qpass.ko loaded into
//! it; see [`umode`].

mod command;
pub mod decode;
mod device;
mod disk;
mod errno;
mod error;
mod identity;
mod kernel;
#[cfg(target_os = "freebsd")]
mod native;
mod open;
mod outcome;
mod outstanding;
mod queue;
#[cfg(target_os = "linux")]
mod shared;
#[cfg(target_os = "linux")]
pub mod umode;
mod usage;

pub use command::{Attribute, Command, Direction, NvmeEntry, Registers};
pub use decode::sense::{Sense, Specific};
pub use device::{Counters, Device, Ended, Features, Info, Limits};
pub use disk::{Disk, DiskError, Flushed};
pub use errno::Errno;
pub use error::{CamStatus, Error, Failure, NoKernel};
pub use identity::{Identity, Protocol, nodes, own_nodes};
pub use kernel::{Buffer, Fd, Kernel, Mount};
pub use outcome::{CommandError, DeviceStatus, Outcome, Remark, scsi_status};
pub use outstanding::{Cancel, Cancelled, Outstanding, State};
pub use queue::{Completion, Method, Queue};
pub use usage::{Use, users};

use std::sync::Arc;

/// The kernel that the program runs on; on Linux, the user-mode kernel that the
/// environment describes.
///
/// # Errors
/// Why there is none.
pub fn kernel() -> Result<Arc<dyn Kernel>, NoKernel> {
    #[cfg(target_os = "freebsd")]
    return Ok(native::kernel());
    #[cfg(target_os = "linux")]
    return umode::from_environment().map_err(NoKernel);
}
