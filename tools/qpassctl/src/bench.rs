//! Depths and sizes against each other, and drivers.

use crate::{
    args::{Bench, Method as MethodArg, Op},
    copy::{Target, lock},
    disk::Disk,
    fail::{Code, Fail},
    output, show, stopped,
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
    /// Bytes that each command has moved.
    size: usize,
    depth: u32,
    /// How many of 100 were to be writes, and how many were.
    writes_percent: u32,
    writes: u64,
    first_block: u64,
    blocks: u64,
    align: usize,
    seed: u64,
    rate_cap: Option<u32>,
    ramp_seconds: f64,
    commands: u64,
    seconds: f64,
    iops: f64,
    bytes_per_second: f64,
    p50_us: f64,
    p90_us: Option<f64>,
    p99_us: Option<f64>,
    p999_us: Option<f64>,
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
    writes: u64,
}

fn op_name(op: Op) -> &'static str {
    match op {
        Op::Random => "random",
        Op::Sequential => "sequential",
        Op::Tur => "tur",
    }
}

/// Where commands go and what they do; the same for all combinations.
struct Load {
    op: Op,
    first: u64,
    blocks: u64,
    align: Option<usize>,
    writes: u32,
    seed: u64,
    rate: Option<u32>,
    ramp: Duration,
    time: Duration,
}

impl Load {
    /// # Errors
    /// What was asked for cannot be measured as it was asked for.
    fn of(disk: &Disk, args: &Bench) -> Result<Self, Fail> {
        let name = disk.device.name();
        let block = disk.block;
        let left = disk.blocks.saturating_sub(args.skip);
        let blocks = args.count.unwrap_or(left);
        if blocks == 0 || blocks > left {
            return Err(Fail::usage(format!(
                "{name}: has {} blocks, which do not hold {blocks} from {} on",
                disk.blocks, args.skip
            )));
        }
        if args.writes != 0 && args.op == Op::Tur {
            return Err(Fail::usage("--writes: TEST UNIT READY writes nothing"));
        }
        if args.writes != 0 && !args.destroy {
            return Err(Fail::usage(format!(
                "{name}: --writes destroys what is on it; --destroy says that it may"
            )));
        }
        if args.writes != 0 && disk.writes_in_order() {
            return Err(Fail::usage(format!(
                "{name}: its zones are written in order only, which --writes does not"
            )));
        }
        if args.align.is_some_and(|align| !align.is_multiple_of(block)) {
            let why = format!("{name}: --align is no multiple of a block of {block} bytes");
            return Err(Fail::usage(why));
        }
        for size in args.size.iter().filter(|_| args.op != Op::Tur) {
            let most = disk.per_command(usize::MAX)? * block;
            if !size.is_multiple_of(block) {
                let why = format!("{name}: {size} bytes are no multiple of a block of {block}");
                return Err(Fail::usage(why));
            }
            if *size > most {
                return Err(Fail::usage(format!(
                    "{name}: {size} bytes are more than one command moves there, {most}"
                )));
            }
            if (size / block) as u64 > blocks {
                return Err(Fail::usage(format!(
                    "{name}: {blocks} blocks of {block} bytes do not hold a command of {size}"
                )));
            }
        }
        Ok(Load {
            op: args.op,
            first: args.skip,
            blocks,
            align: args.align,
            writes: args.writes,
            seed: args.seed.unwrap_or_else(|| fastrand::u64(..)),
            rate: args.rate,
            ramp: args.ramp,
            time: args.time,
        })
    }

    fn align(&self, size: usize, block: usize) -> usize {
        self.align.unwrap_or(size).max(block)
    }
}

/// The next command of an endless row of them.
struct Source<'a> {
    disk: &'a Disk,
    load: &'a Load,
    blocks: usize,
    /// Blocks from one place to the next, the first place, and how many there are.
    stride: u64,
    first: u64,
    slots: u64,
    next: u64,
    random: fastrand::Rng,
    spare: Vec<Buffer>,
}

impl<'a> Source<'a> {
    fn new(disk: &'a Disk, load: &'a Load, size: usize) -> Result<Self, Fail> {
        let blocks = (size / disk.block).max(1);
        let stride = (load.align(size, disk.block) / disk.block) as u64;
        let first = load.first.next_multiple_of(stride);
        let end = load.first + load.blocks;
        let slots = match (end.saturating_sub(first)).checked_sub(blocks as u64) {
            Some(behind) => behind / stride + 1,
            None => {
                return Err(Fail::usage(format!(
                    "{}: no place for {size} bytes at a multiple of {} among these blocks",
                    disk.device.name(),
                    stride * disk.block as u64
                )));
            }
        };
        Ok(Source {
            disk,
            load,
            blocks,
            stride,
            first,
            slots,
            next: 0,
            random: fastrand::Rng::with_seed(load.seed),
            spare: Vec::new(),
        })
    }

    /// A command, and whether it writes.
    fn command(&mut self) -> Result<(Command, bool), Fail> {
        if self.load.op == Op::Tur {
            return Ok((Command::test_unit_ready(), false));
        }
        let buffer = match self.spare.pop() {
            Some(buffer) => buffer,
            None => {
                let mut buffer = self.disk.device.buffer(self.blocks * self.disk.block)?;
                if self.load.writes != 0 {
                    // Nothing that a disk could make less of.
                    self.random.fill(&mut buffer);
                }
                buffer
            }
        };
        let slot = match self.load.op {
            Op::Random => self.random.u64(..self.slots),
            _ => self.next % self.slots,
        };
        let writes = self.load.writes != 0 && self.random.u32(..100) < self.load.writes;
        self.next += 1;
        let lba = self.first + slot * self.stride;
        let command = match writes {
            true => self.disk.write(lba, self.blocks, buffer),
            false => self.disk.read(lba, self.blocks, buffer),
        };
        Ok((command.recover(4), writes))
    }
}

/// One that is under way.
#[derive(Clone, Copy)]
struct Started {
    at: Instant,
    writes: bool,
}

/// One turn: keeps `depth` commands on their way for a while.
fn turn(runner: &Runner, load: &Load, each: &mut Combination) -> Result<(), Fail> {
    let disk = &runner.disk;
    let device = &disk.device;
    let mut queue: Queue = device.queue(each.depth as usize, runner.method)?;
    let mut source = Source::new(disk, load, each.size)?;
    let begin = Instant::now();
    // Before it nothing counts.
    let measured = begin + load.ramp;
    let end = measured + load.time;
    let nothing = Started {
        at: begin,
        writes: false,
    };
    let mut started = vec![nothing; each.depth as usize];
    let mut free: Vec<u64> = (0..u64::from(each.depth)).collect();
    let mut last = measured;
    let mut sent = 0u64;
    loop {
        let now = Instant::now();
        let is_on = now < end && !stopped();
        let mut wait = LOOK;
        while is_on && !free.is_empty() {
            if let Some(rate) = load.rate {
                // When the next one's time has come.
                let due = begin + Duration::from_secs_f64(sent as f64 / f64::from(rate));
                let left = due.saturating_duration_since(Instant::now());
                if !left.is_zero() {
                    wait = wait.min(left);
                    break;
                }
            }
            let tag = free.pop().expect("a free one");
            let (command, writes) = source.command()?;
            started[tag as usize] = Started {
                at: Instant::now(),
                writes,
            };
            if queue.submit(command, tag).is_err() {
                free.push(tag);
                break;
            }
            sent += 1;
        }
        if queue.in_flight() == 0 {
            if !is_on {
                break;
            }
            std::thread::sleep(wait);
            continue;
        }
        if stopped() {
            // What is under way is taken back; it may never come by itself.
            break;
        }
        for done in queue.reap(1, wait)? {
            let now = Instant::now();
            done.result
                .map_err(|failure| Fail::queued(device.name(), "bench", &failure))?;
            free.push(done.tag);
            source.spare.extend(done.command.into_buffer());
            if now < measured {
                continue;
            }
            last = now;
            let Started { at, writes } = started[done.tag as usize];
            // Longer than a minute counts as a minute.
            each.histogram
                .saturating_record((now - at).as_nanos() as u64);
            each.commands += 1;
            each.writes += u64::from(writes);
        }
    }
    each.time += last - measured;
    if stopped() {
        return Err(Fail::interrupted());
    }
    Ok(())
}

/// How long it does not look whether it is to stop.
const LOOK: Duration = Duration::from_millis(100);

/// The node of the other driver on the same device.
fn other(kernel: &Arc<dyn Kernel>, device: &Device, name: &str) -> Result<Device, Fail> {
    let short = name.strip_prefix("/dev/").unwrap_or(name);
    let driver = short.trim_end_matches(|c: char| c.is_ascii_digit());
    if !matches!(driver, "pass" | "qpass") && !short.contains('/') {
        return Err(Fail::usage(format!(
            "--compare {name}: not a node of a pass-through driver, such as pass0; pass finds it \
             by itself"
        )));
    }
    let unit = |p: &&String| {
        let unit = p.strip_prefix(name);
        unit.is_some_and(|unit| unit.parse::<u32>().is_ok())
    };
    let peripherals = device.peripherals()?;
    let node = match peripherals.iter().find(unit) {
        Some(node) => node.clone(),
        None if short == driver => {
            return Err(Fail::new(
                Code::System,
                format!("{}: no {name}(4) is on that device", device.name()),
            ));
        }
        None => name.to_owned(),
    };
    if node.strip_prefix("/dev/").unwrap_or(&node) == device.name() {
        return Err(Fail::usage(format!(
            "--compare {name}: is {node}, the device itself"
        )));
    }
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

/// Each once, in the order in which they were given.
fn once<T: PartialEq + Copy>(all: &[T]) -> Vec<T> {
    let mut seen = Vec::new();
    for one in all {
        if !seen.contains(one) {
            seen.push(*one);
        }
    }
    seen
}

pub fn bench(kernel: &Arc<dyn Kernel>, args: &Bench, json: bool) -> Result<(), Fail> {
    let device = crate::open(kernel, &args.device)?;
    let disk = Disk::probe(device.clone())?;
    let load = Load::of(&disk, args)?;
    let sizes = match args.op {
        Op::Tur => vec![0],
        _ => once(&args.size),
    };
    let depths = once(&args.depth);
    check_room(&device, &depths, &sizes)?;
    if load.writes != 0 && !args.force {
        show::check_unused(&disk)?;
    }
    let _lock = match load.writes {
        0 => None,
        _ => lock(&disk)?,
    };
    let table = match &args.csv {
        Some(path) => Some(Target::open(path)?),
        None => None,
    };
    let methods = once(&args.method);
    let methods: Result<Vec<_>, _> = methods.iter().map(|m| method(&device, *m)).collect();
    let runner = |method| Runner {
        disk: disk.clone(),
        method,
    };
    let mut runners: Vec<_> = methods?.into_iter().map(runner).collect();
    if let Some(name) = &args.compare {
        let disk = Disk::probe(other(kernel, &device, name)?)?;
        runners.push(Runner {
            disk,
            method: Method::Queue,
        });
    }
    let mut all = Vec::new();
    for size in &sizes {
        for depth in &depths {
            for runner in 0..runners.len() {
                let histogram = Histogram::new_with_bounds(1, 60_000_000_000, 3);
                all.push(Combination {
                    size: *size,
                    depth: *depth,
                    runner,
                    histogram: histogram.map_err(|_| Fail::usage("histogram"))?,
                    time: Duration::ZERO,
                    commands: 0,
                    writes: 0,
                });
            }
        }
    }
    let bar = ProgressBar::new(u64::from(args.rounds) * all.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} turn {pos} of {len}, {eta} left") {
        bar.set_style(style);
    }
    let mut result = Ok(());
    'rounds: for _ in 0..args.rounds {
        for each in &mut all {
            result = turn(&runners[each.runner], &load, each);
            if result.is_err() {
                break 'rounds;
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    // What was measured before something went wrong was measured.
    all.retain(|each| each.commands != 0);
    if all.is_empty() && result.is_err() {
        return result;
    }
    print(args, table, &rows(&all, &runners, &load), json)?;
    result
}

fn print(args: &Bench, table: Option<Target>, rows: &[Row], json: bool) -> Result<(), Fail> {
    if let Some(target) = table {
        target.finish(&csv(rows)?)?;
    }
    if args.csv.as_deref() == Some(Path::new("-")) {
        return Ok(());
    }
    if json {
        return output::json(&rows);
    }
    output::text(&text(rows))?;
    let is_shown = std::io::stdout().is_terminal() && output::shows_unicode() && !args.no_chart;
    if is_shown && once(&args.depth).len() > 1 {
        output::text(&charts(rows))?;
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
fn check_room(device: &Device, depths: &[u32], sizes: &[usize]) -> Result<(), Fail> {
    if !device.is_qpass() {
        return Ok(());
    }
    let name = device.name();
    let limits = device.limits(None, None)?;
    // Those of all opens of the device, where they can be seen.
    let sysctl = |of: &str| {
        let value = device
            .kernel()
            .sysctl(&format!("kern.cam.qpass.{of}"), None);
        value.unwrap_or(u64::MAX)
    };
    let requests = u64::from(limits.requests).min(sysctl("device_max_requests"));
    let bytes = limits.bytes.min(sysctl("device_max_bytes"));
    for depth in depths {
        if u64::from(*depth) > requests {
            return Err(Fail::usage(format!(
                "{name}: an open may have {requests} requests outstanding, which is less than a \
                 depth of {depth}; see qpassctl limits"
            )));
        }
        let most = sizes.iter().max().copied().unwrap_or(0) as u64;
        if u64::from(*depth) * most > bytes {
            return Err(Fail::usage(format!(
                "{name}: an open may have {bytes} bytes outstanding, which is less than a depth of \
                 {depth} with {most} bytes each; see qpassctl limits"
            )));
        }
    }
    Ok(())
}

fn rows(all: &[Combination], runners: &[Runner], load: &Load) -> Vec<Row> {
    let rate = |c: &Combination| c.commands as f64 / c.time.as_secs_f64().max(1e-9);
    all.iter()
        .map(|c| {
            let is_same = |o: &&Combination| (o.size, o.depth, o.runner) == (c.size, c.depth, 0);
            let first = all.iter().find(is_same).map_or(1.0, rate);
            let us = |q: f64| c.histogram.value_at_quantile(q) as f64 / 1e3;
            // One of a hundred wants a hundred.
            let of = |many: u64, q: f64| (c.commands >= many).then(|| us(q));
            let iops = rate(c);
            let runner = &runners[c.runner];
            let align = match load.op {
                Op::Tur => 0,
                _ => load.align(c.size, runner.disk.block),
            };
            Row {
                device: runner.disk.device.name().into(),
                method: runner.label(),
                op: op_name(load.op),
                size: c.size,
                depth: c.depth,
                writes_percent: load.writes,
                writes: c.writes,
                first_block: load.first,
                blocks: load.blocks,
                align,
                seed: load.seed,
                rate_cap: load.rate,
                ramp_seconds: load.ramp.as_secs_f64(),
                commands: c.commands,
                seconds: c.time.as_secs_f64(),
                iops,
                bytes_per_second: iops * c.size as f64,
                p50_us: us(0.5),
                p90_us: of(10, 0.9),
                p99_us: of(100, 0.99),
                p999_us: of(1000, 0.999),
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
    let us = |us: Option<f64>| us.map_or("-".into(), |us| format!("{us:.0}"));
    let is_tur = rows.iter().all(|r| r.size == 0);
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|r| {
            let op = match r.writes_percent {
                0 => r.op.into(),
                percent => format!("{} {percent}% writes", r.op),
            };
            let of_data = |text: String| if is_tur { "-".into() } else { text };
            vec![
                r.device.clone(),
                r.method.into(),
                op,
                of_data(output::human(r.size as u64)),
                r.depth.to_string(),
                format!("{:.0}", r.iops),
                of_data(format!("{}/s", output::human(r.bytes_per_second as u64))),
                us(Some(r.p50_us)),
                us(r.p90_us),
                us(r.p99_us),
                us(r.p999_us),
                us(Some(r.max_us)),
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

/// Commands a second over the depth, which doubles from step to step: for each size
/// a chart a method, all of one height.
fn charts(rows: &[Row]) -> String {
    let (_, columns) = console::Term::stdout().size();
    // Two points a column, and figures behind them.
    let width = (u32::from(columns).saturating_sub(14) * 2).clamp(32, 160);
    let depths = rows.iter().map(|r| (r.depth as f32).log2());
    let (low, high) = depths.fold((f32::MAX, 0f32), |(l, h), d| (l.min(d), h.max(d)));
    let sizes = once(&rows.iter().map(|r| r.size).collect::<Vec<_>>());
    let mut all = String::new();
    for size in sizes {
        let of_size: Vec<_> = rows.iter().filter(|r| r.size == size).collect();
        let top = of_size.iter().fold(1f32, |top, r| top.max(r.iops as f32));
        let names: Vec<_> = of_size
            .iter()
            .map(|r| (r.device.as_str(), r.method))
            .collect();
        for (device, method) in once(&names) {
            let points: Vec<_> = of_size
                .iter()
                .filter(|r| (r.device.as_str(), r.method) == (device, method))
                .map(|r| ((r.depth as f32).log2(), r.iops as f32))
                .collect();
            let shape = Shape::Lines(&points);
            let mut chart = Chart::new_with_y_range(width, 24, low, high, 0.0, top);
            let drawn = chart.lineplot(&shape);
            drawn.axis();
            drawn.figures();
            let title = match size {
                0 => format!("\n{device} {method}: commands/s over depth"),
                size => format!(
                    "\n{device} {method}, {}: commands/s over depth",
                    output::human(size as u64)
                ),
            };
            // The figures are powers of two: what they stand for is said.
            let depths: Vec<_> = points
                .iter()
                .map(|(x, _)| format!("{:.0}", x.exp2()))
                .collect();
            all.push_str(&format!("{title} (log2: {})\n{drawn}", depths.join(", ")));
        }
    }
    all
}
