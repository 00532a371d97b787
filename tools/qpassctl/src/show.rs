//! The commands that show something.

use crate::{
    args,
    disk::{self, Disk, ask, kind},
    fail::{Code, Fail},
    opcode,
    output::{self, dump, hex, human, table},
    stopped,
};
use qpass_client::{
    Cancel, Command, Counters, Device, Errno, Features, Kernel, Outstanding, State, own_nodes,
    users,
};
use serde::Serialize;
use std::{
    io::IsTerminal,
    sync::Arc,
    time::{Duration, Instant},
};

// ---- list ----

#[derive(Serialize)]
struct Listed {
    device: String,
    bus: u32,
    target: u32,
    lun: u64,
    kind: &'static str,
    vendor: String,
    product: String,
    revision: String,
    serial: String,
    peripherals: Vec<String>,
    controller: String,
    maxio: u32,
    interface: u32,
    features: Vec<String>,
    used: Vec<String>,
}

/// The names of features, in small letters.
fn features(of: Features) -> Vec<String> {
    let known = of & (Features::all() - Features::from_bits_retain(!0x13f));
    known
        .iter_names()
        .map(|(name, _)| name.to_lowercase().replace('_', "-"))
        .collect()
}

fn used(device: &Device) -> Vec<String> {
    let found = users(device).unwrap_or_default();
    let words = |u: &qpass_client::Use| match u.mounted.is_empty() {
        false => u.mounted.clone(),
        true if u.by.is_empty() => vec![format!("open {}", u.mode)],
        true => u.by.clone(),
    };
    found.iter().flat_map(words).collect()
}

fn listed(kernel: &Arc<dyn Kernel>, node: &str) -> Result<Listed, Fail> {
    let device = Device::open(kernel, node)?;
    let identity = device.identity()?;
    let info = device.info()?;
    Ok(Listed {
        device: node.into(),
        bus: identity.bus,
        target: identity.target,
        lun: identity.lun,
        kind: kind(&identity),
        vendor: identity.vendor,
        product: identity.product,
        revision: identity.revision,
        serial: identity.serial,
        peripherals: identity.peripherals,
        controller: identity.controller,
        maxio: info.maxio,
        interface: info.version,
        features: features(info.features),
        used: used(&device),
    })
}

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

pub fn list(kernel: &Arc<dyn Kernel>, json: bool) -> Result<(), Fail> {
    let mut all = Vec::new();
    let mut failed = None;
    for node in all_nodes(kernel)? {
        match listed(kernel, &node) {
            Ok(entry) => all.push(entry),
            // One that has gone, or may not be opened, hides no other.
            Err(fail) => failed = Some(fail),
        }
    }
    if json {
        output::json(&all)?;
    } else if !all.is_empty() {
        let rows: Vec<Vec<String>> = all
            .iter()
            .map(|d| {
                let others = d.peripherals.iter().filter(|p| **p != d.device);
                vec![
                    d.device.clone(),
                    format!("{}:{}:{}", d.bus, d.target, d.lun),
                    d.kind.into(),
                    format!("{} {}", d.vendor, d.product).trim().into(),
                    d.revision.clone(),
                    d.serial.clone(),
                    human(d.maxio.into()),
                    others.cloned().collect::<Vec<_>>().join(","),
                    if d.features.iter().any(|f| f == "unmapped") {
                        "zero-copy".into()
                    } else {
                        "copies".into()
                    },
                    d.used.join(","),
                ]
            })
            .collect();
        output::text(&table(
            &[
                "DEVICE", "B:T:L", "KIND", "PRODUCT", "REV", "SERIAL", ">MAXIO", "ALSO", "DATA",
                "USED",
            ],
            &rows,
        ))?;
    }
    failed.map_or(Ok(()), Err)
}

// ---- questions ----

#[derive(Serialize)]
struct Inquiry {
    device: String,
    kind: &'static str,
    vendor: String,
    product: String,
    revision: String,
    removable: bool,
    version: u8,
    queueing: bool,
    raw: String,
}

#[derive(Serialize)]
struct Page {
    device: String,
    page: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    pages: Option<Vec<u8>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    raw: String,
}

fn printable(data: &[u8]) -> String {
    let text: String = data
        .iter()
        .map(|b| match b {
            0x20..=0x7e => char::from(*b),
            _ => ' ',
        })
        .collect();
    text.trim().into()
}

/// What version of the SCSI primary commands it follows (SPC-5, table 151).
fn version(byte: u8) -> &'static str {
    match byte {
        0 => "no standard",
        2 => "SCSI-2",
        3 => "SPC",
        4 => "SPC-2",
        5 => "SPC-3",
        6 => "SPC-4",
        7 => "SPC-5",
        _ => "unknown",
    }
}

pub fn inquiry(device: &Device, page: Option<u8>, json: bool) -> Result<(), Fail> {
    let name = device.name();
    let identity = device.identity()?;
    if identity.protocol != qpass_client::Protocol::Scsi {
        return Err(Fail::usage(format!(
            "{name}: not a SCSI device but {}; qpassctl list says what it is",
            kind(&identity)
        )));
    }
    if let Some(page) = page {
        let command = Command::inquiry(Some(page), device.buffer(4096)?);
        let data = ask(device, &format!("INQUIRY page {page:#04x}"), command)?;
        let len = 4 + usize::from(u16::from_be_bytes([data[2], data[3]]));
        let data = &data[..len.min(data.len())];
        let body = &data[4..];
        if json {
            return output::json(&Page {
                device: name.into(),
                page,
                pages: (page == 0).then(|| body.to_vec()),
                serial: (page == 0x80).then(|| printable(body)),
                raw: hex(data),
            });
        }
        return match page {
            0 => {
                let pages: Vec<_> = body.iter().map(|p| format!("{p:#04x}")).collect();
                output::text(&pages.join("\n"))
            }
            0x80 => output::text(&printable(body)),
            _ => output::text(&dump(data)),
        };
    }
    let data = ask(
        device,
        "INQUIRY",
        Command::inquiry(None, device.buffer(255)?),
    )?;
    let len = 5 + usize::from(data[4]);
    let data = &data[..len.clamp(36, data.len())];
    let answer = Inquiry {
        device: name.into(),
        kind: kind(&identity),
        vendor: printable(&data[8..16]),
        product: printable(&data[16..32]),
        revision: printable(&data[32..36]),
        removable: data[1] & 0x80 != 0,
        version: data[2],
        queueing: data[7] & 2 != 0,
        raw: hex(data),
    };
    if json {
        return output::json(&answer);
    }
    let yes = |b: bool| if b { "yes" } else { "no" };
    output::text(&format!(
        "device     {name}\nkind       {}\nvendor     {}\nproduct    {}\nrevision   {}\n\
         standard   {}\nremovable  {}\nqueueing   {}",
        answer.kind,
        answer.vendor,
        answer.product,
        answer.revision,
        version(answer.version),
        yes(answer.removable),
        yes(answer.queueing),
    ))
}

#[derive(Serialize)]
struct Ready {
    device: String,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub fn tur(device: &Device, json: bool) -> Result<(), Fail> {
    let (_, outcome) = device.run(Command::test_unit_ready())?;
    if json {
        output::json(&Ready {
            device: device.name().into(),
            ready: outcome.is_ok(),
            error: outcome.as_ref().err().map(ToString::to_string),
        })?;
    } else if outcome.is_ok() {
        output::text(&format!("{}: ready", device.name()))?;
    }
    match outcome {
        Ok(_) => Ok(()),
        Err(error) => Err(Fail::command(device.name(), "not ready", &error)),
    }
}

#[derive(Serialize)]
struct Capacity {
    device: String,
    blocks: u64,
    block: usize,
    bytes: u64,
}

pub fn readcap(device: Device, json: bool) -> Result<(), Fail> {
    let disk = Disk::probe(device)?;
    let name = disk.device.name();
    if json {
        return output::json(&Capacity {
            device: name.into(),
            blocks: disk.blocks,
            block: disk.block,
            bytes: disk.bytes(),
        });
    }
    output::text(&format!(
        "{name}: {} blocks of {} bytes, {}",
        disk.blocks,
        disk.block,
        human(disk.bytes())
    ))
}

// ---- again and again ----

/// Shows something once, or every so often.
fn again(
    watch: Option<Duration>,
    times: Option<u32>,
    mut show: impl FnMut() -> Result<(), Fail>,
) -> Result<(), Fail> {
    let Some(interval) = watch else {
        return show();
    };
    let mut next = Instant::now();
    for n in 0u32.. {
        if times.is_some_and(|times| n >= times) {
            break;
        }
        show()?;
        next += interval;
        while Instant::now() < next && times.is_none_or(|times| n + 1 < times) {
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

/// Puts what is shown again in the place of what was.
fn clear_screen(watch: Option<Duration>) -> &'static str {
    if watch.is_some() && std::io::stdout().is_terminal() {
        "\x1b[H\x1b[2J"
    } else {
        ""
    }
}

// ---- outstanding ----

#[derive(Serialize)]
struct Request {
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

fn request(device: &str, r: &Outstanding) -> Request {
    Request {
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
        command: opcode::name(r),
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

fn open_all(kernel: &Arc<dyn Kernel>, devices: &[String]) -> Result<Vec<Device>, Fail> {
    let names = if devices.is_empty() {
        all_nodes(kernel)?
    } else {
        devices.to_vec()
    };
    let all: Result<Vec<_>, _> = names.iter().map(|n| crate::open(kernel, n)).collect();
    all
}

pub fn outstanding(
    kernel: &Arc<dyn Kernel>,
    devices: &[String],
    watch: Option<Duration>,
    times: Option<u32>,
    json: bool,
) -> Result<(), Fail> {
    let mut opened = open_all(kernel, devices)?;
    again(watch, times, || {
        let mut all = Vec::new();
        let mut gone = Vec::new();
        for device in &opened {
            match device.outstanding(true) {
                Ok(found) => all.extend(found.iter().map(|r| request(device.name(), r))),
                Err(error) if error.errno == Errno::ENXIO && watch.is_some() => {
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
        opened.retain(|d| !gone.iter().any(|name| name == d.name()));
        if json {
            return match watch {
                Some(_) => output::json_line(&all),
                None => output::json(&all),
            };
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
        output::text(&format!("{}{what}", clear_screen(watch)))
    })
}

// ---- cancel ----

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

// ---- stats ----

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

pub fn stats(
    kernel: &Arc<dyn Kernel>,
    devices: &[String],
    watch: Option<Duration>,
    times: Option<u32>,
    json: bool,
) -> Result<(), Fail> {
    let opened = open_all(kernel, devices)?;
    let mut before: Vec<Option<(Counters, Instant)>> = vec![None; opened.len()];
    again(watch, times, || {
        let mut all = Vec::new();
        for (device, before) in opened.iter().zip(&mut before) {
            let (now, at) = (device.info()?.counters, Instant::now());
            let since = before.map(|(old, then)| (old, (at - then).as_secs_f64()));
            all.push(stat(device.name(), now, since));
            *before = Some((now, at)).filter(|_| watch.is_some());
        }
        if json {
            return match watch {
                Some(_) => output::json_line(&all),
                None => output::json(&all),
            };
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
        output::text(&format!(
            "{}{}",
            clear_screen(watch),
            table(&columns, &rows)
        ))
    })
}

// ---- limits ----

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

/// For who is asked to write: why not.
pub fn check_unused(disk: &disk::Disk) -> Result<(), Fail> {
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
