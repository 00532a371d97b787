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
use qpass_client::{Device, Errno, Kernel, own_nodes, users};
use serde::Serialize;
use std::{
    io::IsTerminal,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
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
        let mut next = Instant::now();
        for n in 0u32.. {
            if self.args.times.is_some_and(|times| n >= times) {
                break;
            }
            show()?;
            next += interval;
            while Instant::now() < next && self.args.times.is_none_or(|times| n + 1 < times) {
                if stopped() {
                    // That is how a live table is left.
                    return Ok(());
                }
                let left = next.saturating_duration_since(Instant::now());
                std::thread::sleep(left.min(Duration::from_millis(100)));
            }
        }
        Ok(())
    }

    /// In the place of what was shown before, on a terminal that can.
    fn print(&self, what: &str) -> Result<(), Fail> {
        let is_live = self.args.every.is_some() && std::io::stdout().is_terminal();
        let clear = match is_live && !output::is_dumb() {
            true => "\x1b[H\x1b[2J",
            false => "",
        };
        output::text(&format!("{clear}{what}"))
    }

    /// Once as it is read best, again and again a line each, with the time.
    fn print_json(&self, name: &'static str, what: &[impl Serialize]) -> Result<(), Fail> {
        match self.args.every {
            Some(_) => {
                let time = serde_json::to_value(now().as_secs_f64());
                let what = serde_json::to_value(what);
                let mut line = serde_json::Map::new();
                line.insert("time".into(), time.expect("a number"));
                line.insert(name.into(), what.expect("plain data"));
                output::json_line(&line)
            }
            None => output::json(&what),
        }
    }

    /// While something is watched, one device that goes takes no other with it.
    fn outlives(&self, errno: Errno) -> bool {
        errno == Errno::ENXIO && self.args.every.is_some()
    }
}

/// Since 1970.
fn now() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default()
}

/// The time of day, of UTC.
fn clock() -> String {
    let s = now().as_secs() % 86_400;
    format!("{:02}:{:02}:{:02}Z", s / 3600, s / 60 % 60, s % 60)
}

/// All that was watched has gone.
fn all_gone(names: &[String]) -> Fail {
    Fail::new(
        Code::System,
        format!("{}: the device has gone", names.join(", ")),
    )
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
