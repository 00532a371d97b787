//! The counters and the limits.

use super::{Watch, open_all};
use crate::{
    args,
    fail::{Code, Fail},
    output::{self, human, table},
};
use qpass_client::{Counters, Errno, Kernel};
use serde::Serialize;
use std::{sync::Arc, time::Instant};

#[derive(Serialize)]
struct Stats {
    device: String,
    seconds: Option<f64>,
    submitted: u64,
    completed: u64,
    outstanding: u64,
    errors: u64,
    cancelled: u64,
    copied_bytes: u64,
    zerocopy_bytes: u64,
    bounce_bytes: u64,
}

fn stat(device: &str, now: Counters, before: Option<(Counters, f64)>) -> Stats {
    let (old, seconds) = before.map_or((Counters::default(), None), |(c, s)| (c, Some(s)));
    let since = |now: u64, old: u64| now.saturating_sub(old);
    Stats {
        device: device.into(),
        seconds,
        submitted: since(now.submitted, old.submitted),
        completed: since(now.completed, old.completed),
        outstanding: now.outstanding,
        errors: since(now.errors, old.errors),
        cancelled: since(now.cancelled, old.cancelled),
        copied_bytes: since(now.copied_bytes, old.copied_bytes),
        zerocopy_bytes: since(now.zerocopy_bytes, old.zerocopy_bytes),
        bounce_bytes: now.bounce_bytes,
    }
}

pub fn stats(kernel: &Arc<dyn Kernel>, devices: &[String], watch: &Watch) -> Result<(), Fail> {
    let opened = open_all(kernel, devices)?;
    let mut before: Vec<Option<(Counters, Instant)>> = vec![None; opened.len()];
    watch.run(|| {
        let mut all = Vec::new();
        for (device, before) in opened.iter().zip(&mut before) {
            let (now, at) = (device.info()?.counters, Instant::now());
            let since = before.map(|(old, then)| (old, (at - then).as_secs_f64()));
            all.push(stat(device.name(), now, since));
            *before = Some((now, at)).filter(|_| watch.args.every.is_some());
        }
        if watch.json {
            return watch.print_json(&all);
        }
        let rows: Vec<Vec<String>> = all
            .iter()
            .map(|s| {
                let seconds = s.seconds.unwrap_or(1.0);
                let rate = |n: u64| match s.seconds {
                    Some(_) => format!("{:.0}", n as f64 / seconds),
                    None => n.to_string(),
                };
                let bytes = |n: u64| match s.seconds {
                    Some(_) => format!("{}/s", human((n as f64 / seconds) as u64)),
                    None => human(n),
                };
                vec![
                    s.device.clone(),
                    rate(s.submitted),
                    rate(s.completed),
                    s.outstanding.to_string(),
                    rate(s.errors),
                    rate(s.cancelled),
                    bytes(s.copied_bytes),
                    bytes(s.zerocopy_bytes),
                    human(s.bounce_bytes),
                ]
            })
            .collect();
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

const LIMITS: [(&str, &str); 6] = [
    ("max_requests", "requests that an open may have outstanding"),
    ("max_bytes", "bytes of memory in them"),
    ("device_max_requests", "requests of all opens of a device"),
    ("device_max_bytes", "bytes of memory in them"),
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
        let bad = || {
            Fail::usage(format!(
                "{word}: NAME=VALUE is wanted, such as max_bytes=128M"
            ))
        };
        let (name, value) = word.split_once('=').ok_or_else(bad)?;
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
        let value = match value {
            "0" => 0,
            value => args::size(value).map_err(|_| bad())? as u64,
        };
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
    for (name, value) in changes {
        sysctl(name, Some(value))?;
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
