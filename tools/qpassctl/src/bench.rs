//! Depths and sizes against each other, and drivers.

use crate::{
    args::{Bench, Method as MethodArg, Op},
    copy::Target,
    disk::Disk,
    fail::{Code, Fail},
    output, stopped,
};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use qpass_client::{Buffer, Command, Device, Kernel, Method, Queue};
use serde::Serialize;
use std::{
    io::IsTerminal,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use textplots::{Chart, Plot, Shape};

/// One line of the result.
#[derive(Serialize)]
struct Row {
    device: String,
    method: &'static str,
    op: &'static str,
    size: usize,
    depth: u32,
    commands: u64,
    seconds: f64,
    iops: f64,
    bytes_per_second: f64,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
    /// Of its rate to that of the first method, same size and depth.
    ratio: f64,
}

/// A driver and a way to use it.
struct Runner {
    disk: Disk,
    method: Method,
}

impl Runner {
    fn label(&self) -> &'static str {
        match self.method {
            Method::Enter => "enter",
            Method::Queue => "queue",
        }
    }
}

struct Combination {
    size: usize,
    depth: u32,
    runner: usize,
    histogram: Histogram<u64>,
    time: Duration,
    commands: u64,
}

fn op_name(op: Op) -> &'static str {
    match op {
        Op::Random => "random",
        Op::Sequential => "sequential",
        Op::Tur => "tur",
    }
}

/// The next command of an endless row of them.
struct Source<'a> {
    disk: &'a Disk,
    op: Op,
    blocks: usize,
    slots: u64,
    next: u64,
    spare: Vec<Buffer>,
}

impl Source<'_> {
    fn command(&mut self) -> Result<Command, Fail> {
        if self.op == Op::Tur {
            return Ok(Command::test_unit_ready());
        }
        let buffer = match self.spare.pop() {
            Some(buffer) => buffer,
            None => self.disk.device.buffer(self.blocks * self.disk.block)?,
        };
        let slot = match self.op {
            Op::Random => fastrand::u64(..self.slots),
            _ => self.next % self.slots,
        };
        self.next += 1;
        let lba = slot * self.blocks as u64;
        Ok(self.disk.read(lba, self.blocks, buffer).recover(4))
    }
}

/// One turn: keeps `depth` commands on their way for a while.
fn turn(runner: &Runner, op: Op, each: &mut Combination, time: Duration) -> Result<(), Fail> {
    let disk = &runner.disk;
    let device = &disk.device;
    let mut queue: Queue = device.queue(each.depth as usize, runner.method)?;
    let blocks = match op {
        Op::Tur => 1,
        _ => disk.per_command(each.size)?,
    };
    let slots = disk.blocks / blocks as u64;
    if slots == 0 {
        return Err(Fail::usage(format!(
            "{}: is smaller than one transfer of {} bytes",
            device.name(),
            each.size
        )));
    }
    let mut source = Source {
        disk,
        op,
        blocks,
        slots,
        next: 0,
        spare: Vec::new(),
    };
    let begin = Instant::now();
    let mut started = vec![begin; each.depth as usize];
    let mut free: Vec<u64> = (0..u64::from(each.depth)).collect();
    let mut last = begin;
    loop {
        let now = Instant::now();
        if now - begin < time && !stopped() {
            while let Some(tag) = free.pop() {
                started[tag as usize] = now;
                if queue.submit(source.command()?, tag).is_err() {
                    free.push(tag);
                    break;
                }
            }
        }
        if queue.in_flight() == 0 {
            break;
        }
        let reaped = queue.reap(1, Duration::from_millis(200))?;
        last = Instant::now();
        for done in reaped {
            done.result
                .map_err(|failure| Fail::queued(device.name(), op_name(op), &failure))?;
            let took = last - started[done.tag as usize];
            // Longer than a minute counts as a minute.
            each.histogram.saturating_record(took.as_nanos() as u64);
            each.commands += 1;
            free.push(done.tag);
            source.spare.extend(done.command.into_buffer());
        }
    }
    each.time += last - begin;
    if stopped() {
        return Err(Fail::interrupted());
    }
    Ok(())
}

/// The node of the other driver on the same device.
fn other(kernel: &Arc<dyn Kernel>, device: &Device, name: &str) -> Result<Device, Fail> {
    let unit = |p: &&String| {
        let unit = p.strip_prefix(name);
        unit.is_some_and(|unit| unit.parse::<u32>().is_ok())
    };
    let peripherals = device.peripherals()?;
    let node = match peripherals.iter().find(unit) {
        Some(node) => node.clone(),
        None if name.chars().all(|c| c.is_ascii_alphabetic()) => {
            return Err(Fail::new(
                Code::System,
                format!("{}: no {name}(4) is on that device", device.name()),
            ));
        }
        None => name.to_owned(),
    };
    let other = Device::open(kernel, &node)?;
    // Two disks would be compared, and not two drivers.
    let place = |d: &Device| d.identity().map(|i| (i.bus, i.target, i.lun));
    if place(&other)? != place(device)? {
        return Err(Fail::usage(format!(
            "{node}: is not the same device as {}",
            device.name()
        )));
    }
    Ok(other)
}

pub fn bench(kernel: &Arc<dyn Kernel>, args: &Bench, json: bool) -> Result<(), Fail> {
    let device = crate::open(kernel, &args.device)?;
    check_depth(&device, &args.depth)?;
    let table = match &args.csv {
        Some(path) => Some(Target::open(path)?),
        None => None,
    };
    let methods: Result<Vec<_>, _> = args.method.iter().map(|m| method(&device, *m)).collect();
    let methods = methods?;
    let disk = Disk::probe(device.clone())?;
    let runner = |method| Runner {
        disk: disk.clone(),
        method,
    };
    let mut runners: Vec<_> = methods.into_iter().map(runner).collect();
    if let Some(name) = &args.compare {
        let disk = Disk::probe(other(kernel, &device, name)?)?;
        runners.push(Runner {
            disk,
            method: Method::Queue,
        });
    }
    let sizes: &[usize] = match args.op {
        Op::Tur => &[0],
        _ => &args.size,
    };
    let mut all = Vec::new();
    for size in sizes {
        for depth in &args.depth {
            for runner in 0..runners.len() {
                let histogram = Histogram::new_with_bounds(1, 60_000_000_000, 3);
                all.push(Combination {
                    size: *size,
                    depth: *depth,
                    runner,
                    histogram: histogram.map_err(|_| Fail::usage("histogram"))?,
                    time: Duration::ZERO,
                    commands: 0,
                });
            }
        }
    }
    let bar = ProgressBar::new(u64::from(args.rounds) * all.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} turn {pos} of {len}, {eta} left") {
        bar.set_style(style);
    }
    for _ in 0..args.rounds {
        for each in &mut all {
            turn(&runners[each.runner], args.op, each, args.time)?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let rows = rows(&all, &runners, args.op);
    if let Some(target) = table {
        target.finish(&csv(&rows)?)?;
    }
    if args.csv.as_deref() == Some(Path::new("-")) {
        return Ok(());
    }
    if json {
        return output::json(&rows);
    }
    output::text(&text(&rows))?;
    if args.depth.len() > 1 {
        output::text(&charts(&rows, sizes, &runners))?;
    }
    Ok(())
}

fn method(device: &Device, wanted: MethodArg) -> Result<Method, Fail> {
    match wanted {
        MethodArg::Enter if !device.is_qpass() => Err(Fail::usage(format!(
            "{}: pass(4) has no QPIOC_ENTER; --method queue",
            device.name()
        ))),
        MethodArg::Enter => Ok(Method::Enter),
        MethodArg::Queue => Ok(Method::Queue),
    }
}

/// A queue that is never full would not be of the depth that is asked for.
fn check_depth(device: &Device, depths: &[u32]) -> Result<(), Fail> {
    if !device.is_qpass() {
        return Ok(());
    }
    let most = device.limits(None, None)?.requests;
    match depths.iter().find(|depth| **depth > most) {
        None => Ok(()),
        Some(depth) => Err(Fail::usage(format!(
            "{}: an open may have {most} requests outstanding, which is less than a depth of \
             {depth}; see qpassctl limits",
            device.name()
        ))),
    }
}

fn rows(all: &[Combination], runners: &[Runner], op: Op) -> Vec<Row> {
    let rate = |c: &Combination| c.commands as f64 / c.time.as_secs_f64().max(1e-9);
    all.iter()
        .map(|c| {
            let is_same = |o: &&Combination| (o.size, o.depth, o.runner) == (c.size, c.depth, 0);
            let first = all.iter().find(is_same).map_or(1.0, rate);
            let us = |q: f64| c.histogram.value_at_quantile(q) as f64 / 1e3;
            let iops = rate(c);
            let runner = &runners[c.runner];
            Row {
                device: runner.disk.device.name().into(),
                method: runner.label(),
                op: op_name(op),
                size: c.size,
                depth: c.depth,
                commands: c.commands,
                seconds: c.time.as_secs_f64(),
                iops,
                bytes_per_second: iops * c.size as f64,
                p50_us: us(0.5),
                p90_us: us(0.9),
                p99_us: us(0.99),
                p999_us: us(0.999),
                max_us: c.histogram.max() as f64 / 1e3,
                ratio: iops / first.max(1e-9),
            }
        })
        .collect()
}

fn csv(rows: &[Row]) -> Result<Vec<u8>, Fail> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer
            .serialize(row)
            .map_err(|e| Fail::new(Code::System, format!("CSV: {e}")))?;
    }
    writer
        .into_inner()
        .map_err(|e| Fail::new(Code::System, format!("CSV: {e}")))
}

fn text(rows: &[Row]) -> String {
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|r| {
            vec![
                r.device.clone(),
                r.method.into(),
                r.op.into(),
                output::human(r.size as u64),
                r.depth.to_string(),
                format!("{:.0}", r.iops),
                format!("{}/s", output::human(r.bytes_per_second as u64)),
                format!("{:.0}", r.p50_us),
                format!("{:.0}", r.p90_us),
                format!("{:.0}", r.p99_us),
                format!("{:.0}", r.p999_us),
                format!("{:.0}", r.max_us),
                format!("{:.2}", r.ratio),
            ]
        })
        .collect();
    output::table(
        &[
            "DEVICE", "METHOD", "OP", ">SIZE", ">DEPTH", ">IOPS", ">RATE", ">P50us", ">P90us",
            ">P99us", ">P99.9us", ">MAXus", ">RATIO",
        ],
        &lines,
    )
}

/// Commands a second over the depth: for each size a chart a method, all of
/// one height.
fn charts(rows: &[Row], sizes: &[usize], runners: &[Runner]) -> String {
    let width = if std::io::stdout().is_terminal() {
        100
    } else {
        80
    };
    let depths = rows.iter().map(|r| r.depth as f32);
    let (low, high) = depths.fold((f32::MAX, 0f32), |(l, h), d| (l.min(d), h.max(d)));
    let mut all = String::new();
    for size in sizes {
        let of_size: Vec<_> = rows.iter().filter(|r| r.size == *size).collect();
        let top = of_size.iter().fold(1f32, |top, r| top.max(r.iops as f32));
        for runner in runners {
            let name = runner.disk.device.name();
            let is_its = |r: &&&Row| (r.device.as_str(), r.method) == (name, runner.label());
            let points: Vec<_> = of_size
                .iter()
                .filter(is_its)
                .map(|r| (r.depth as f32, r.iops as f32))
                .collect();
            let shape = Shape::Lines(&points);
            let mut chart = Chart::new_with_y_range(width, 24, low, high, 0.0, top);
            let drawn = chart.lineplot(&shape);
            drawn.axis();
            drawn.figures();
            all.push_str(&format!(
                "\n{name} {}, {}: commands/s over depth\n{drawn}",
                runner.label(),
                output::human(*size as u64)
            ));
        }
    }
    all
}
