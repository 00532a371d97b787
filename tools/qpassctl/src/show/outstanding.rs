//! What programs have outstanding, and an end to it.

use super::{Watch, open_all};
use crate::{
    args,
    fail::{Code, Fail},
    output::{self, hex, human, table},
};
use qpass_client::{Cancel, Device, Errno, Kernel, Outstanding, State, decode::opcode};
use serde::Serialize;
use std::sync::Arc;

#[derive(Serialize)]
struct Request {
    /// Seconds since 1970, when it was looked at.
    time: f64,
    device: String,
    open: u64,
    number: u64,
    pid: i32,
    state: &'static str,
    age_ns: u64,
    command: String,
    bytes: u32,
    direction: &'static str,
    cdb: String,
    tag: u64,
}

fn request(device: &str, device_type: u8, r: &Outstanding) -> Request {
    Request {
        time: super::now(),
        device: device.into(),
        open: r.open,
        number: r.number,
        pid: r.pid,
        state: match r.state {
            State::Queued => "queued",
            State::Sent => "sent",
            State::Done => "done",
        },
        age_ns: u64::try_from(r.age.as_nanos()).unwrap_or(u64::MAX),
        command: opcode::request(r.func_code, &r.command, device_type),
        bytes: r.length,
        direction: match (r.reads, r.writes) {
            (true, false) => "in",
            (false, true) => "out",
            (true, true) => "both",
            (false, false) => "none",
        },
        cdb: hex(&r.command),
        tag: r.tag,
    }
}

fn age(ns: u64) -> String {
    let s = ns as f64 / 1e9;
    match ns {
        0..1_000_000 => format!("{:.0} us", s * 1e6),
        1_000_000..1_000_000_000 => format!("{:.1} ms", s * 1e3),
        _ => format!("{s:.1} s"),
    }
}

pub fn outstanding(
    kernel: &Arc<dyn Kernel>,
    devices: &[String],
    watch: &Watch,
) -> Result<(), Fail> {
    let typed = |device: Device| {
        let device_type = device.identity().map_or(0, |i| i.device_type);
        (device, device_type)
    };
    let mut opened: Vec<_> = open_all(kernel, devices)?.into_iter().map(typed).collect();
    watch.run(|| {
        let mut all = Vec::new();
        let mut gone = Vec::new();
        for (device, device_type) in &opened {
            match device.outstanding(true) {
                Ok(found) => {
                    let each = |r| request(device.name(), *device_type, r);
                    all.extend(found.iter().map(each));
                }
                Err(error) if error.errno == Errno::ENXIO && watch.args.every.is_some() => {
                    gone.push(device.name().to_owned());
                }
                Err(mut error) => {
                    if error.errno == Errno::EPERM {
                        error.doing = "list what other programs have outstanding, which is root's";
                    }
                    return Err(error.into());
                }
            }
        }
        opened.retain(|(d, _)| !gone.iter().any(|name| name == d.name()));
        if opened.is_empty() && !gone.is_empty() {
            return Err(Fail::new(
                Code::System,
                format!("{}: the device has gone", gone.join(", ")),
            ));
        }
        if watch.json {
            return watch.print_json(&all);
        }
        let rows: Vec<Vec<String>> = all
            .iter()
            .map(|r| {
                vec![
                    r.device.clone(),
                    r.open.to_string(),
                    r.number.to_string(),
                    r.pid.to_string(),
                    r.state.into(),
                    age(r.age_ns),
                    r.command.clone(),
                    r.direction.into(),
                    human(r.bytes.into()),
                    r.cdb.clone(),
                ]
            })
            .collect();
        let what = if rows.is_empty() {
            "nothing is outstanding".into()
        } else {
            table(
                &[
                    "DEVICE", ">OPEN", ">NUMBER", ">PID", "STATE", ">AGE", "COMMAND", "DIR",
                    ">DATA", "CDB",
                ],
                &rows,
            )
        };
        watch.print(&what)
    })
}

#[derive(Serialize)]
struct CancelAnswer {
    device: String,
    dequeued: u32,
    aborted: u32,
    unable: u32,
    done: u32,
}

pub fn cancel(device: &Device, args: &args::Cancel, json: bool) -> Result<(), Fail> {
    let which = match (args.open, args.request) {
        (Some(open), Some(number)) => Cancel::Request(open, number),
        (Some(open), None) => Cancel::Open(open),
        _ => Cancel::All,
    };
    let answer = device.cancel(which).map_err(|mut error| {
        error.doing = match error.errno {
            Errno::EPERM => "cancel other programs' requests, which is root's",
            Errno::ENOENT => "cancel what is not outstanding",
            _ => "cancel",
        };
        Fail::from(error)
    })?;
    if json {
        return output::json(&CancelAnswer {
            device: device.name().into(),
            dequeued: answer.dequeued,
            aborted: answer.aborted,
            unable: answer.unable,
            done: answer.done,
        });
    }
    output::text(&format!(
        "{}: {} taken back before they were sent, {} aborted, {} that cannot be, {} done already",
        device.name(),
        answer.dequeued,
        answer.aborted,
        answer.unable,
        answer.done
    ))
}
