//! The counters and the limits.

use super::{Watch, open_all};
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
    /// Seconds since 1970.
    time: f64,
    #[serde(flatten)]
    totals: Totals,
    /// With --watch, from the second time on.
    rates: Option<Rates>,
}

/// Since the driver attached to the device, but for what is of this moment.
#[derive(Serialize)]
struct Totals {
    submitted: u64,
    completed: u64,
    outstanding: u64,
    errors: u64,
    cancelled: u64,
    copied_bytes: u64,
    zerocopy_bytes: u64,
    bounce_bytes: u64,
}

/// A second, since it was looked at last.
#[derive(Serialize)]
struct Rates {
    /// How long ago that is.
    seconds: f64,
    submitted: f64,
    completed: f64,
    errors: f64,
    cancelled: f64,
    copied_bytes: f64,
    zerocopy_bytes: f64,
}

fn stat(device: &str, now: Counters, before: Option<(Counters, f64)>) -> Stats {
    let rates = before.map(|(old, seconds)| {
        let rate =
            |now: u64, old: u64| now.saturating_sub(old) as f64 / seconds.max(f64::MIN_POSITIVE);
        Rates {
            seconds,
            submitted: rate(now.submitted, old.submitted),
            completed: rate(now.completed, old.completed),
            errors: rate(now.errors, old.errors),
            cancelled: rate(now.cancelled, old.cancelled),
            copied_bytes: rate(now.copied_bytes, old.copied_bytes),
            zerocopy_bytes: rate(now.zerocopy_bytes, old.zerocopy_bytes),
        }
    });
    Stats {
        device: device.into(),
        time: super::now(),
        totals: Totals {
            submitted: now.submitted,
            completed: now.completed,
            outstanding: now.outstanding,
            errors: now.errors,
            cancelled: now.cancelled,
            copied_bytes: now.copied_bytes,
            zerocopy_bytes: now.zerocopy_bytes,
            bounce_bytes: now.bounce_bytes,
        },
        rates,
    }
}

/// A line of the table: totals, or what there was a second.
fn row(s: &Stats) -> Vec<String> {
    let count = |total: u64, rate: Option<f64>| match rate {
        Some(rate) => format!("{rate:.0}/s"),
        None => total.to_string(),
    };
    let bytes = |total: u64, rate: Option<f64>| match rate {
        Some(rate) => format!("{}/s", human(rate as u64)),
        None => human(total),
    };
    let (t, r) = (&s.totals, s.rates.as_ref());
    vec![
        s.device.clone(),
        count(t.submitted, r.map(|r| r.submitted)),
        count(t.completed, r.map(|r| r.completed)),
        t.outstanding.to_string(),
        count(t.errors, r.map(|r| r.errors)),
        count(t.cancelled, r.map(|r| r.cancelled)),
        bytes(t.copied_bytes, r.map(|r| r.copied_bytes)),
        bytes(t.zerocopy_bytes, r.map(|r| r.zerocopy_bytes)),
        human(t.bounce_bytes),
    ]
}

pub fn stats(kernel: &Arc<dyn Kernel>, devices: &[String], watch: &Watch) -> Result<(), Fail> {
    let mut opened: Vec<(Device, Option<(Counters, Instant)>)> = open_all(kernel, devices)?
        .into_iter()
        .map(|device| (device, None))
        .collect();
    watch.run(|| {
        let mut all = Vec::new();
        let mut gone = None;
        opened.retain(|(device, _)| match device.info() {
            Err(error) if error.errno == Errno::ENXIO && watch.args.every.is_some() => {
                gone = Some(error);
                false
            }
            _ => true,
        });
        if let (true, Some(error)) = (opened.is_empty(), gone) {
            return Err(error.into());
        }
        for (device, before) in &mut opened {
            let (now, at) = (device.info()?.counters, Instant::now());
            let since = before.map(|(old, then)| (old, (at - then).as_secs_f64()));
            all.push(stat(device.name(), now, since));
            *before = Some((now, at)).filter(|_| watch.args.every.is_some());
        }
        if watch.json {
            return watch.print_json(&all);
        }
        let rows: Vec<Vec<String>> = all.iter().map(row).collect();
        let columns = [
            "DEVICE",
            ">SUBMITTED",
            ">COMPLETED",
            ">OUTSTANDING",
            ">ERRORS",
            ">CANCELLED",
            ">COPIED",
            ">ZEROCOPY",
            ">BOUNCE",
        ];
        watch.print(&table(&columns, &rows))
    })
}

/// Name, meaning, and the least and the most that makes sense.
const LIMITS: [(&str, &str, u64, u64); 7] = [
    (
        "max_requests",
        "requests that an open may have outstanding",
        1,
        u64::MAX,
    ),
    ("max_bytes", "bytes of memory in them", 1, u64::MAX),
    (
        "device_max_requests",
        "requests of all opens of a device",
        1,
        u64::MAX,
    ),
    ("device_max_bytes", "bytes of memory in them", 1, u64::MAX),
    (
        "total_max_bytes",
        "bytes of memory of all devices' requests",
        1,
        u64::MAX,
    ),
    (
        "zerocopy_min",
        "bytes from which on data is not copied",
        0,
        u64::MAX,
    ),
    (
        "allow_paddr",
        "1: physical addresses are taken from root",
        0,
        1,
    ),
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
        let bad = || {
            Fail::usage(format!(
                "{word}: NAME=VALUE is wanted, such as max_bytes=128M"
            ))
        };
        let (name, value) = word.split_once('=').ok_or_else(bad)?;
        let (name, _, least, most) = LIMITS
            .iter()
            .find(|(known, ..)| *known == name)
            .ok_or_else(|| {
                let known: Vec<_> = LIMITS.iter().map(|(known, ..)| *known).collect();
                Fail::usage(format!(
                    "{name}: not a limit; these are: {}",
                    known.join(", ")
                ))
            })?;
        let value = match value {
            "0" => 0,
            value => args::size(value).map_err(|_| {
                Fail::usage(format!(
                    "{word}: {value} is not a number, such as 4096 or 128M"
                ))
            })? as u64,
        };
        if value < *least {
            return Err(Fail::usage(format!(
                "{word}: {least} is the least: with {value} nothing could be sent"
            )));
        }
        if value > *most {
            return Err(Fail::usage(format!("{word}: {most} is the most")));
        }
        changes.push((*name, value));
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
    let mut done: Vec<String> = Vec::new();
    for (name, value) in changes {
        sysctl(name, Some(value)).map_err(|fail| match done.is_empty() {
            true => fail,
            false => Fail::new(
                fail.code,
                format!("{}; {} was set before", fail.message, done.join(", ")),
            ),
        })?;
        done.push(format!("{name}={value}"));
    }
    let mut all = Vec::new();
    for (name, meaning, ..) in LIMITS {
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
