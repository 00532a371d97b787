//! Copying to and from disks, many commands at a time.

mod engine;
mod journal;
mod read;
mod target;
mod verify;
mod write;

pub use read::read;
pub use target::Target;
pub use write::write;

use crate::{disk::Disk, fail::Fail, output};
use serde::Serialize;

/// What was done.
#[derive(Serialize)]
struct Copied {
    device: String,
    file: String,
    bytes: u64,
    /// Of these, those that an earlier run has copied.
    resumed: u64,
    seconds: f64,
    verified: bool,
}

impl Copied {
    fn print(&self, json: bool, verb: &str, quiet: bool) -> Result<(), Fail> {
        if json {
            return output::json(self);
        }
        if quiet {
            return Ok(());
        }
        let now = self.bytes - self.resumed;
        let rate = now as f64 / self.seconds.max(1e-9);
        let verified = if self.verified { ", verified" } else { "" };
        // stdout may be the data.
        eprintln!(
            "{}: {verb} {} in {:.2} s, {}/s{verified}",
            self.device,
            output::human(now),
            self.seconds,
            output::human(rate as u64)
        );
        Ok(())
    }
}

fn range(disk: &Disk, first: u64, count: Option<u64>) -> Result<u64, Fail> {
    let left = disk.blocks.saturating_sub(first);
    let count = count.unwrap_or(left);
    if count > left || left == 0 {
        return Err(Fail::usage(format!(
            "{}: has {} blocks, which do not hold {count} from {first} on",
            disk.device.name(),
            disk.blocks
        )));
    }
    Ok(count)
}
