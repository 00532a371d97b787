//! The counters and the limits.

use super::{Watch, all_gone, clock, open_all};
use crate::{
    args,
    fail::{Code, Fail},
    output::{self, human, table},
};
use qpass_client::{Counters, Device, Errno, Kernel};
use serde::Serialize;
use std::{sync::Arc, time::Instant};

#[derive(Serialize)]
struct Stats {
    device: String,
    submitted: u64,
    completed: u64,
    outstanding: u64,
    errors: u64,
    cancelled: u64,
    copied_bytes: u64,
    zerocopy_bytes: u64,
    bounce_bytes: u64,
    /// What was added since the last time, and how long ago that was.
    seconds: Option<f64>,
    submitted_per_second: Option<f64>,
    completed_per_second: Option<f64>,
    errors_per_second: Option<f64>,
    cancelled_per_second: Option<f64>,
    copied_bytes_per_second: Option<f64>,
    zerocopy_bytes_per_second: Option<f64>,
}

fn stat(device: &str, now: Counters, before: Option<(Counters, f64)>) -> Stats {
    let rate = |of: fn(&Counters) -> u64| {
        before.map(|(old, seconds)| of(&now).saturating_sub(of(&old)) as f64 / seconds.max(1e-9))
    };
    Stats {
        device: device.into(),
        submitted: now.submitted,
        completed: now.completed,
        outstanding: now.outstanding,
        errors: now.errors,
        cancelled: now.cancelled,
        copied_bytes: now.copied_bytes,
        zerocopy_bytes: now.zerocopy_bytes,
        bounce_bytes: now.bounce_bytes,
        seconds: before.map(|(_, seconds)| seconds),
        submitted_per_second: rate(|c| c.submitted),
        completed_per_second: rate(|c| c.completed),
        errors_per_second: rate(|c| c.errors),
        cancelled_per_second: rate(|c| c.cancelled),
        copied_bytes_per_second: rate(|c| c.copied_bytes),
        zerocopy_bytes_per_second: rate(|c| c.zerocopy_bytes),
    }
}

/// A device that is watched, with its counters of the last time.
struct Watched {
    device: Device,
    before: Option<(Counters, Instant)>,
}

pub fn stats(kernel: &Arc<dyn Kernel>, devices: &[String], watch: &Watch) -> Result<(), Fail> {
    let watched = |device| Watched {
        device,
        before: None,
    };
    let opened = open_all(kernel, devices)?;
    let mut opened: Vec<_> = opened.into_iter().map(watched).collect();
    let mut gone: Vec<String> = Vec::new();
    watch.run(|| {
        let mut all = Vec::new();
        for Watched { device, before } in &mut opened {
            let info = match device.info() {
                Ok(info) => info,
                Err(error) if watch.outlives(error.errno) => {
                    gone.push(device.name().into());
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let (now, at) = (info.counters, Instant::now());
            let since = before.map(|(old, then)| (old, (at - then).as_secs_f64()));
            all.push(stat(device.name(), now, since));
            *before = Some((now, at));
        }
        opened.retain(|w| !gone.iter().any(|name| name == w.device.name()));
        if opened.is_empty() {
            return Err(all_gone(&gone));
        }
        if watch.json {
            return watch.print_json("devices", &all);
        }
        watch.print(&text(&all, watch.args.every.is_some()))
    })
}

/// Totals, and once there is a last time, what was added in each second since.
fn text(all: &[Stats], is_watched: bool) -> String {
    let is_rate = all.iter().all(|s| s.seconds.is_some());
    let count = |total: u64, rate: Option<f64>| match rate.filter(|_| is_rate) {
        Some(rate) => format!("{rate:.0}"),
        None => total.to_string(),
    };
    let bytes = |total: u64, rate: Option<f64>| match rate.filter(|_| is_rate) {
        Some(rate) => format!("{}/s", human(rate as u64)),
        None => human(total),
    };
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|s| {
            let mut row = vec![
                s.device.clone(),
                count(s.submitted, s.submitted_per_second),
                count(s.completed, s.completed_per_second),
                s.outstanding.to_string(),
                count(s.errors, s.errors_per_second),
                count(s.cancelled, s.cancelled_per_second),
                bytes(s.copied_bytes, s.copied_bytes_per_second),
                bytes(s.zerocopy_bytes, s.zerocopy_bytes_per_second),
                human(s.bounce_bytes),
            ];
            if is_watched {
                row.insert(0, clock());
            }
            row
        })
        .collect();
    // What is of a second says so.
    let (submitted, completed, errors, cancelled) = match is_rate {
        true => (">SUBMITTED/s", ">COMPLETED/s", ">ERRORS/s", ">CANCELLED/s"),
        false => (">SUBMITTED", ">COMPLETED", ">ERRORS", ">CANCELLED"),
    };
    let mut columns = vec![
        "DEVICE",
        submitted,
        completed,
        ">OUTSTANDING",
        errors,
        cancelled,
        ">COPIED",
        ">ZEROCOPY",
        ">BOUNCE",
    ];
    if is_watched {
        columns.insert(0, "TIME");
    }
    table(&columns, &rows)
}

const LIMITS: [(&str, &str); 7] = [
    ("max_requests", "requests that an open may have outstanding"),
    ("max_bytes", "bytes of memory in them"),
    ("device_max_requests", "requests of all opens of a device"),
    ("device_max_bytes", "bytes of memory in them"),
    ("total_max_bytes", "bytes of memory of all devices"),
    ("zerocopy_min", "bytes from which on data is not copied"),
    ("allow_paddr", "1: physical addresses are taken from root"),
];

#[derive(Serialize)]
struct Limit {
    name: &'static str,
    value: u64,
    meaning: &'static str,
}

pub fn limits(kernel: &Arc<dyn Kernel>, set: &[String], json: bool) -> Result<(), Fail> {
    // All of it is understood before any of it is done.
    let mut changes = Vec::new();
    for word in set {
        let (name, value) = word.split_once('=').ok_or_else(|| {
            Fail::usage(format!(
                "{word}: NAME=VALUE is wanted, such as max_bytes=128M"
            ))
        })?;
        let (name, _) = LIMITS
            .iter()
            .find(|(known, _)| *known == name)
            .ok_or_else(|| {
                let known: Vec<_> = LIMITS.iter().map(|(known, _)| *known).collect();
                Fail::usage(format!(
                    "{name}: not a limit; these are: {}",
                    known.join(", ")
                ))
            })?;
        let bad = |wanted: &str| Fail::usage(format!("{word}: {wanted} is wanted"));
        let value = match value {
            "0" => 0,
            value => args::size(value).map_err(|_| bad("a number, such as 4096 or 128M"))? as u64,
        };
        match (*name, value) {
            // Nobody's commands would be taken any more, and each would wait for ever.
            ("max_requests" | "device_max_requests", 0) => return Err(bad("at least 1")),
            ("allow_paddr", 2..) => return Err(bad("0 or 1")),
            _ => changes.push((*name, value)),
        }
    }
    let sysctl = |name: &str, new: Option<u64>| {
        let full = format!("kern.cam.qpass.{name}");
        kernel.sysctl(&full, new).map_err(|errno| {
            let why = match errno {
                Errno::ENOENT => ": load the driver with kldload qpass",
                _ => "",
            };
            Fail::new(Code::System, format!("{full}: {errno}{why}"))
        })
    };
    // One that cannot be set takes those before it back.
    let mut before: Vec<(&str, u64)> = Vec::new();
    for (name, value) in changes {
        let set = sysctl(name, None).and_then(|old| sysctl(name, Some(value)).map(|_| old));
        match set {
            Ok(old) => before.push((name, old)),
            Err(fail) => {
                let restored = before
                    .iter()
                    .rev()
                    .all(|(name, old)| sysctl(name, Some(*old)).is_ok());
                return Err(match (before.is_empty(), restored) {
                    (true, _) => fail,
                    (false, true) => fail.and("nothing was changed"),
                    (false, false) => fail.and("those before it are set"),
                });
            }
        }
    }
    let mut all = Vec::new();
    for (name, meaning) in LIMITS {
        all.push(Limit {
            name,
            value: sysctl(name, None)?,
            meaning,
        });
    }
    if json {
        return output::json(&all);
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|l| vec![l.name.into(), l.value.to_string(), l.meaning.into()])
        .collect();
    output::text(&table(&["LIMIT", ">VALUE", "MEANING"], &rows))
}
