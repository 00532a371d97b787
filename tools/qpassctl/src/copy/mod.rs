//! Copying to and from disks, many commands at a time.

mod engine;
mod flush;
mod journal;
mod lock;
mod progress;
mod read;
mod target;
mod verdict;
mod verify;
mod write;

pub use lock::lock;
pub use read::read;
pub use target::Target;
pub use write::write;

use crate::{
    args::Transfer,
    disk::Disk,
    fail::{Code, Fail},
    output,
    stream::is_standard,
};
use engine::Plan;
use serde::Serialize;
use std::{path::Path, time::Duration};

/// What was done.
#[derive(Serialize)]
struct Copied {
    ok: bool,
    device: String,
    file: String,
    bytes: u64,
    /// Of these, those that an earlier run has copied.
    resumed: u64,
    /// Of copying; verifying has its own.
    seconds: f64,
    bytes_per_second: f64,
    verified: bool,
    verify_seconds: Option<f64>,
}

impl Copied {
    fn new(disk: &Disk, file: &Path, bytes: u64, resumed: u64, took: Took) -> Self {
        let seconds = took.copy.as_secs_f64();
        Copied {
            ok: true,
            device: disk.device.name().into(),
            file: file.display().to_string(),
            bytes,
            resumed,
            seconds,
            bytes_per_second: (bytes - resumed) as f64 / seconds.max(1e-9),
            verified: took.verify.is_some(),
            verify_seconds: took.verify.map(|t| t.as_secs_f64()),
        }
    }

    fn print(&self, json: bool, verb: &str, quiet: bool) -> Result<(), Fail> {
        if json {
            return output::json(self);
        }
        if quiet {
            return Ok(());
        }
        let verified = match self.verify_seconds {
            Some(seconds) => format!(", verified in {seconds:.2} s"),
            None => String::new(),
        };
        // stdout may be the data.
        eprintln!(
            "{}: {verb} {} in {:.2} s, {}/s{verified}",
            self.device,
            output::human(self.bytes - self.resumed),
            self.seconds,
            output::human(self.bytes_per_second as u64)
        );
        Ok(())
    }
}

/// How long what took.
#[derive(Clone, Copy)]
struct Took {
    copy: Duration,
    verify: Option<Duration>,
}

/// How a copy of so many blocks goes.
fn plan<'a>(
    disk: &'a Disk,
    lba: u64,
    blocks: u64,
    transfer: &Transfer,
    json: bool,
) -> Result<Plan<'a>, Fail> {
    let block = disk.block;
    if !transfer.size.is_multiple_of(block) {
        return Err(Fail::usage(format!(
            "{}: --size {} is no multiple of a block, which has {block} bytes",
            disk.device.name(),
            transfer.size
        )));
    }
    let per = disk.per_command(transfer.size)?;
    Ok(Plan {
        disk,
        lba,
        blocks,
        per,
        stride: per as u64,
        depth: transfer.depth as usize,
        checkpoint: transfer.checkpoint as u64,
        timeout: transfer.timeout,
        quiet: transfer.quiet || json,
    })
}

fn range(disk: &Disk, first: u64, count: Option<u64>) -> Result<u64, Fail> {
    let name = disk.device.name();
    let left = disk.blocks.saturating_sub(first);
    let count = count.unwrap_or(left);
    if left == 0 {
        return Err(Fail::usage(format!(
            "{name}: has {} blocks, so there is none at {first}",
            disk.blocks
        )));
    }
    if count == 0 {
        return Err(Fail::usage(format!("{name}: 0 blocks: nothing to copy")));
    }
    if count > left {
        return Err(Fail::usage(format!(
            "{name}: has {} blocks, which do not hold {count} from {first} on",
            disk.blocks
        )));
    }
    Ok(count)
}

/// A file by the name that a user knows it by.
fn name(path: &Path, stands_for: &str) -> String {
    match is_standard(path) {
        true => stands_for.into(),
        false => path.display().to_string(),
    }
}

/// Something that was begun has ended other than it should.
fn stopped_short(why: String) -> Fail {
    Fail::new(Code::System, why)
}
