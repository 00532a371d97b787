//! The commands that show something.

mod ask;
mod list;
mod outstanding;
mod stats;

pub use ask::{inquiry, readcap, tur};
pub use list::list;
pub use outstanding::{cancel, outstanding};
pub use stats::{limits, stats};

use crate::{
    args,
    disk::Disk,
    fail::{Code, Fail},
    output, stopped,
};
use qpass_client::{Device, Kernel, own_nodes, users};
use serde::Serialize;
use std::{
    io::IsTerminal,
    sync::Arc,
    time::{Duration, Instant},
};

/// The nodes of the driver; that there is none is an error that says why.
fn all_nodes(kernel: &Arc<dyn Kernel>) -> Result<Vec<String>, Fail> {
    let found = own_nodes(kernel)?;
    if found.is_empty() {
        return Err(Fail::new(
            Code::System,
            "/dev has no node of qpass(4): load the driver with kldload qpass",
        ));
    }
    Ok(found)
}

/// The devices that are named, or all.
fn open_all(kernel: &Arc<dyn Kernel>, devices: &[String]) -> Result<Vec<Device>, Fail> {
    let names = if devices.is_empty() {
        all_nodes(kernel)?
    } else {
        devices.to_vec()
    };
    names.iter().map(|n| crate::open(kernel, n)).collect()
}

/// Shows something once, or every so often, and how.
pub struct Watch {
    /// How often.
    pub args: args::Watch,
    /// As JSON.
    pub json: bool,
}

impl Watch {
    fn run(&self, mut show: impl FnMut() -> Result<(), Fail>) -> Result<(), Fail> {
        let Some(interval) = self.args.every else {
            return show();
        };
        // None: later than there is a time for.
        let mut next = Some(Instant::now());
        for n in 0u32.. {
            if self.args.times.is_some_and(|times| n >= times) {
                break;
            }
            show()?;
            next = next.and_then(|at| at.checked_add(interval));
            while self.args.times.is_none_or(|times| n + 1 < times) {
                if stopped() {
                    // That is how a live table is left.
                    return Ok(());
                }
                const LOOK: Duration = Duration::from_millis(100);
                let left = next.map_or(LOOK, |at| at.saturating_duration_since(Instant::now()));
                if left.is_zero() {
                    break;
                }
                std::thread::sleep(left.min(LOOK));
            }
        }
        Ok(())
    }

    /// In the place of what was shown before.
    fn print(&self, what: &str) -> Result<(), Fail> {
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let is_live = self.args.every.is_some() && std::io::stdout().is_terminal() && !is_dumb;
        let clear = if is_live { "\x1b[H\x1b[2J" } else { "" };
        output::text(&format!("{clear}{what}"))
    }

    /// Once as it is read best, again and again a line each.
    fn print_json(&self, what: &impl Serialize) -> Result<(), Fail> {
        match self.args.every {
            Some(_) => output::json_line(what),
            None => output::json(what),
        }
    }
}

/// Seconds since 1970, for a line that is one of many.
fn now() -> f64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = since.unwrap_or_default().as_secs_f64();
    (seconds * 1000.0).round() / 1000.0
}

/// For who is asked to write: why not.
pub fn check_unused(disk: &Disk) -> Result<(), Fail> {
    let name = disk.device.name();
    let in_use = |why: String| {
        Err(Fail::new(
            Code::InUse,
            format!("{name}: {why}; --force writes all the same"),
        ))
    };
    match users(&disk.device) {
        // Who cannot tell does not write.
        Err(error) => in_use(format!(
            "whether it is in use is not known: {}",
            error.errno
        )),
        Ok(found) => match found.first() {
            None => Ok(()),
            Some(u) if !u.mounted.is_empty() => in_use(format!(
                "in use: {} is mounted on {}",
                u.disk,
                u.mounted.join(", ")
            )),
            Some(u) if u.by.is_empty() => {
                in_use(format!("in use: {} is open ({})", u.disk, u.mode))
            }
            Some(u) => in_use(format!("in use: {} is open by {}", u.disk, u.by.join(", "))),
        },
    }
}
