//! Copying to and from disks, many commands at a time.

use crate::{
    args::{Read, Transfer, Write},
    disk::Disk,
    fail::{Code, Fail},
    output, show, stopped,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use qpass_client::{Buffer, Command, Device, Method, Queue};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A run of blocks that one command moves.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    /// Which one it is, from 0.
    index: u64,
    lba: u64,
    blocks: usize,
    /// Bytes before it.
    offset: u64,
}

/// Blocks of a disk, in chunks.
struct Plan<'a> {
    disk: &'a Disk,
    lba: u64,
    blocks: u64,
    per: usize,
}

impl Plan<'_> {
    fn count(&self) -> u64 {
        self.blocks.div_ceil(self.per as u64)
    }

    fn chunk(&self, index: u64) -> Chunk {
        let before = index * self.per as u64;
        Chunk {
            index,
            lba: self.lba + before,
            blocks: (self.blocks - before).min(self.per as u64) as usize,
            offset: before * self.disk.block as u64,
        }
    }

    fn bytes(&self, chunk: Chunk) -> usize {
        chunk.blocks * self.disk.block
    }
}

/// What is done up to where, though chunks end in any order.
struct Watermark {
    next: u64,
    ahead: std::collections::BTreeSet<u64>,
}

impl Watermark {
    fn at(next: u64) -> Self {
        Watermark {
            next,
            ahead: Default::default(),
        }
    }

    fn done(&mut self, index: u64) {
        self.ahead.insert(index);
        while self.ahead.remove(&self.next) {
            self.next += 1;
        }
    }
}

/// What a copy does with its chunks.
trait Work {
    /// The command of a chunk; `None` when there is no more.
    fn command(&mut self, chunk: Chunk, buffer: Buffer) -> Result<Option<Command>, Fail>;
    /// It has ended well.
    fn done(&mut self, chunk: Chunk, data: &[u8]) -> Result<(), Fail>;
}

/// Runs all chunks from `first` on, `depth` at a time.
fn run(
    plan: &Plan<'_>,
    first: u64,
    depth: usize,
    verb: &str,
    bar: &ProgressBar,
    work: &mut dyn Work,
) -> Result<(), Fail> {
    let device = &plan.disk.device;
    let method = if device.is_qpass() {
        Method::Enter
    } else {
        Method::Queue
    };
    let mut queue: Queue = device.queue(depth, method)?;
    let mut spare: Vec<Buffer> = Vec::new();
    let (mut next, end) = (first, plan.count());
    let mut more = true;
    loop {
        while more && next < end && queue.has_room() {
            let buffer = match spare.pop() {
                Some(buffer) => buffer,
                None => device.buffer(plan.per * plan.disk.block)?,
            };
            let Some(command) = work.command(plan.chunk(next), buffer)? else {
                more = false;
                break;
            };
            if queue.submit(command.recover(4), next).is_err() {
                break;
            }
            next += 1;
        }
        if queue.in_flight() == 0 {
            return Ok(());
        }
        for done in queue.reap(1, Duration::from_millis(200))? {
            let chunk = plan.chunk(done.tag);
            let len = plan.bytes(chunk);
            let what = || format!("{verb} {} blocks at {}", chunk.blocks, chunk.lba);
            match done.result {
                Ok(moved) if moved == len => {}
                Ok(moved) => {
                    return Err(Fail::new(
                        Code::Command,
                        format!(
                            "{}: {}: moved {moved} of {len} bytes",
                            device.name(),
                            what()
                        ),
                    ));
                }
                Err(failure) => return Err(Fail::queued(device.name(), what(), &failure)),
            }
            if let Some(buffer) = done.command.buffer {
                work.done(chunk, &buffer[..len])?;
                spare.push(buffer);
            }
            bar.inc(len as u64);
        }
        if stopped() {
            return Err(Fail::interrupted());
        }
    }
}

fn progress(bytes: u64, quiet: bool, what: &str) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
    if quiet {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template(
        "{prefix:9} {bar:30} {percent:>3}% {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
    );
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.set_prefix(what.to_owned());
    bar
}

// ---- files ----

/// How far a copy is that may go on later.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Journal {
    product: String,
    serial: String,
    lba: u64,
    blocks: u64,
    block: usize,
    /// Size and time of change of what is written.
    source: Option<(u64, u128)>,
    /// Bytes that are done.
    done: u64,
}

impl Journal {
    fn new(plan: &Plan<'_>, source: Option<(u64, u128)>) -> Self {
        let identity = &plan.disk.identity;
        Journal {
            product: format!("{} {}", identity.vendor, identity.product),
            serial: identity.serial.clone(),
            lba: plan.lba,
            blocks: plan.blocks,
            block: plan.disk.block,
            source,
            done: 0,
        }
    }

    /// Where to go on: chunks that are done, if the note is of this copy.
    fn resume(&mut self, plan: &Plan<'_>, path: &Path) -> Result<u64, Fail> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(Fail::file(path, "read", &error)),
        };
        let found = serde_json::from_slice::<Journal>(&text).map_err(|_| {
            Fail::usage(format!(
                "{}: not a note of qpassctl's; remove it",
                path.display()
            ))
        })?;
        self.done = found.done;
        if found != *self {
            return Err(Fail::usage(format!(
                "{}: is the note of another copy; remove it to begin anew",
                path.display()
            )));
        }
        let per = (plan.per * plan.disk.block) as u64;
        Ok((self.done / per).min(plan.count()))
    }

    /// Notes how far it is, so that the note is there whole or not at all.
    fn save(&mut self, path: &Path, done: u64) -> Result<(), Fail> {
        self.done = done;
        let fail = |e: io::Error| Fail::file(path, "write", &e);
        let mut file = temporary(path)?;
        let text = serde_json::to_vec(self).expect("plain data");
        file.write_all(&text).map_err(fail)?;
        file.as_file().sync_all().map_err(fail)?;
        file.persist(path).map_err(|e| fail(e.error))?;
        Ok(())
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn temporary(path: &Path) -> Result<tempfile::NamedTempFile, Fail> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    tempfile::Builder::new()
        .prefix(".qpassctl")
        .tempfile_in(folder)
        .map_err(|e| Fail::file(path, "create", &e))
}

/// Where a small answer goes: a file that appears when it is whole, or stdout.
pub enum Target {
    Stdout,
    /// A device or a pipe.
    Stream(PathBuf, File),
    File(PathBuf, tempfile::NamedTempFile),
}

impl Target {
    pub fn open(path: &Path) -> Result<Self, Fail> {
        if path == Path::new("-") {
            return Ok(Target::Stdout);
        }
        if is_special(path) {
            let file = File::options()
                .write(true)
                .open(path)
                .map_err(|e| Fail::file(path, "open", &e))?;
            return Ok(Target::Stream(path.into(), file));
        }
        Ok(Target::File(path.into(), temporary(path)?))
    }

    pub fn finish(self, data: &[u8]) -> Result<(), Fail> {
        match self {
            Target::Stdout => output::bytes(data),
            Target::Stream(path, mut file) => file
                .write_all(data)
                .map_err(|e| Fail::file(&path, "write", &e)),
            Target::File(path, mut file) => {
                let fail = |e: io::Error| Fail::file(&path, "write", &e);
                file.write_all(data).map_err(fail)?;
                readable(file.as_file()).map_err(fail)?;
                file.persist(&path).map_err(|e| fail(e.error))?;
                Ok(())
            }
        }
    }
}

/// A temporary file is its owner's; what it becomes is as any other.
fn readable(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| !m.is_file())
}

// ---- read ----

/// Into a file, each chunk at its place.
struct ToFile<'a> {
    disk: &'a Disk,
    path: &'a Path,
    file: File,
    watermark: Watermark,
    notes: Option<Notes<'a>>,
    per: u64,
}

struct Notes<'a> {
    journal: Journal,
    path: &'a Path,
    every: u64,
    last: u64,
}

impl Notes<'_> {
    /// Whether it is time for one, at so many bytes.
    fn is_due(&self, done: u64) -> bool {
        done - self.last >= self.every
    }

    fn note(&mut self, done: u64) -> Result<(), Fail> {
        self.last = done;
        self.journal.save(self.path, done)
    }
}

impl ToFile<'_> {
    fn note(&mut self) -> Result<(), Fail> {
        let done = self.watermark.next * self.per;
        if let Some(notes) = &mut self.notes {
            self.file
                .sync_data()
                .map_err(|e| Fail::file(self.path, "write", &e))?;
            notes.note(done)?;
        }
        Ok(())
    }
}

impl Work for ToFile<'_> {
    fn command(&mut self, chunk: Chunk, buffer: Buffer) -> Result<Option<Command>, Fail> {
        Ok(Some(self.disk.read(chunk.lba, chunk.blocks, buffer)))
    }

    fn done(&mut self, chunk: Chunk, data: &[u8]) -> Result<(), Fail> {
        self.file
            .write_all_at(data, chunk.offset)
            .map_err(|e| Fail::file(self.path, "write", &e))?;
        self.watermark.done(chunk.index);
        let done = self.watermark.next * self.per;
        if self.notes.as_ref().is_some_and(|n| n.is_due(done)) {
            self.note()?;
        }
        Ok(())
    }
}

/// To stdout or a pipe, in order.
struct ToStream<'a> {
    disk: &'a Disk,
    path: &'a Path,
    out: Box<dyn io::Write>,
    next: u64,
    early: BTreeMap<u64, Vec<u8>>,
}

impl Work for ToStream<'_> {
    fn command(&mut self, chunk: Chunk, buffer: Buffer) -> Result<Option<Command>, Fail> {
        Ok(Some(self.disk.read(chunk.lba, chunk.blocks, buffer)))
    }

    fn done(&mut self, chunk: Chunk, data: &[u8]) -> Result<(), Fail> {
        self.early.insert(chunk.index, data.to_vec());
        while let Some(data) = self.early.remove(&self.next) {
            self.next += 1;
            self.out.write_all(&data).map_err(|e| match e.kind() {
                io::ErrorKind::BrokenPipe => Fail::new(Code::System, ""),
                _ => Fail::file(self.path, "write", &e),
            })?;
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Copied {
    device: String,
    file: String,
    bytes: u64,
    /// Of these, those that an earlier run has copied.
    resumed: u64,
    seconds: f64,
    verified: bool,
}

impl Copied {
    fn print(&self, json: bool, verb: &str, quiet: bool) -> Result<(), Fail> {
        if json {
            return output::json(self);
        }
        if quiet {
            return Ok(());
        }
        let now = self.bytes - self.resumed;
        let rate = now as f64 / self.seconds.max(1e-9);
        let verified = if self.verified { ", verified" } else { "" };
        // stdout may be the data.
        eprintln!(
            "{}: {verb} {} in {:.2} s, {}/s{verified}",
            self.device,
            output::human(now),
            self.seconds,
            output::human(rate as u64)
        );
        Ok(())
    }
}

fn range(disk: &Disk, first: u64, count: Option<u64>) -> Result<u64, Fail> {
    let left = disk.blocks.saturating_sub(first);
    let count = count.unwrap_or(left);
    if count > left || left == 0 {
        return Err(Fail::usage(format!(
            "{}: has {} blocks, which do not hold {count} from {first} on",
            disk.device.name(),
            disk.blocks
        )));
    }
    Ok(count)
}

pub fn read(device: Device, args: &Read, json: bool) -> Result<(), Fail> {
    let disk = Disk::probe(device)?;
    let blocks = range(&disk, args.skip, args.count)?;
    let plan = Plan {
        disk: &disk,
        lba: args.skip,
        blocks,
        per: disk.per_command(args.transfer.size)?,
    };
    let quiet = args.transfer.quiet || json;
    let bytes = blocks * disk.block as u64;
    let begin = Instant::now();
    let is_stream = args.file == Path::new("-") || is_special(&args.file);
    let mut resumed = 0;
    if is_stream {
        if args.transfer.resume || args.transfer.verify {
            return Err(Fail::usage(
                "--resume and --verify want a file of their own",
            ));
        }
        let out: Box<dyn io::Write> = if args.file == Path::new("-") {
            Box::new(io::stdout().lock())
        } else {
            let file = File::options().write(true).open(&args.file);
            Box::new(file.map_err(|e| Fail::file(&args.file, "open", &e))?)
        };
        let mut work = ToStream {
            disk: &disk,
            path: &args.file,
            out,
            next: 0,
            early: BTreeMap::new(),
        };
        let bar = progress(bytes, quiet, "reading");
        run(
            &plan,
            0,
            args.transfer.depth as usize,
            "read",
            &bar,
            &mut work,
        )?;
        work.out
            .flush()
            .map_err(|e| Fail::file(&args.file, "write", &e))?;
        bar.finish_and_clear();
    } else {
        resumed = read_to_file(&plan, args, bytes, quiet)?;
    }
    let json = json && args.file != Path::new("-");
    Copied {
        device: disk.device.name().into(),
        file: args.file.display().to_string(),
        bytes,
        resumed,
        seconds: begin.elapsed().as_secs_f64(),
        verified: args.transfer.verify,
    }
    .print(json, "read", quiet)
}

/// Removes what is half done, unless it is told not to.
struct Partial<'a> {
    paths: [&'a Path; 2],
    keep: bool,
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        if !self.keep {
            for path in self.paths {
                let _ = fs::remove_file(path);
            }
        }
    }
}

fn read_to_file(plan: &Plan<'_>, args: &Read, bytes: u64, quiet: bool) -> Result<u64, Fail> {
    let (part, note) = (
        beside(&args.file, ".part"),
        beside(&args.file, ".part.json"),
    );
    let per = (plan.per * plan.disk.block) as u64;
    let mut journal = Journal::new(plan, None);
    let mut first = 0;
    if args.transfer.resume && part.exists() {
        first = journal.resume(plan, &note)?;
    }
    let open = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(first == 0)
        .open(&part);
    let file = open.map_err(|e| Fail::file(&part, "create", &e))?;
    let mut partial = Partial {
        paths: [&part, &note],
        keep: args.transfer.resume,
    };
    let resumed = (first * per).min(bytes);
    let mut work = ToFile {
        disk: plan.disk,
        path: &part,
        file,
        watermark: Watermark::at(first),
        notes: args.transfer.resume.then(|| Notes {
            journal,
            path: &note,
            every: args.transfer.checkpoint as u64,
            last: resumed,
        }),
        per,
    };
    let bar = progress(bytes, quiet, "reading");
    bar.set_position(resumed);
    let depth = args.transfer.depth as usize;
    let copied = run(plan, first, depth, "read", &bar, &mut work);
    bar.finish_and_clear();
    if let Err(fail) = copied {
        // What there is so far is worth something to who asked to go on.
        work.note()?;
        return Err(fail);
    }
    let fail = |e: io::Error| Fail::file(&part, "write", &e);
    work.file.set_len(bytes).map_err(fail)?;
    work.file.sync_all().map_err(fail)?;
    if args.transfer.verify {
        verify(plan, &work.file, &args.file, bytes, &args.transfer, quiet)?;
    }
    fs::rename(&part, &args.file).map_err(|e| Fail::file(&args.file, "create", &e))?;
    partial.keep = true;
    let _ = fs::remove_file(&note);
    Ok(resumed)
}

// ---- verify ----

struct Compare<'a> {
    disk: &'a Disk,
    file: &'a File,
    path: &'a Path,
    /// Bytes of the file; zeroes follow.
    len: u64,
    scratch: Vec<u8>,
}

/// A file's bytes at a place, and zeroes behind its end.
fn read_padded(file: &File, at: u64, len: u64, to: &mut [u8]) -> io::Result<()> {
    let there = len.saturating_sub(at).min(to.len() as u64) as usize;
    file.read_exact_at(&mut to[..there], at)?;
    to[there..].fill(0);
    Ok(())
}

impl Work for Compare<'_> {
    fn command(&mut self, chunk: Chunk, buffer: Buffer) -> Result<Option<Command>, Fail> {
        Ok(Some(self.disk.read(chunk.lba, chunk.blocks, buffer)))
    }

    fn done(&mut self, chunk: Chunk, data: &[u8]) -> Result<(), Fail> {
        self.scratch.resize(data.len(), 0);
        read_padded(self.file, chunk.offset, self.len, &mut self.scratch)
            .map_err(|e| Fail::file(self.path, "read", &e))?;
        let differs = data.iter().zip(&self.scratch).position(|(a, b)| a != b);
        match differs {
            None => Ok(()),
            Some(at) => Err(Fail::new(
                Code::Verify,
                format!(
                    "{}: block {} is not what {} has at byte {}",
                    self.disk.device.name(),
                    chunk.lba + (at / self.disk.block) as u64,
                    self.path.display(),
                    chunk.offset + at as u64
                ),
            )),
        }
    }
}

fn verify(
    plan: &Plan<'_>,
    file: &File,
    path: &Path,
    len: u64,
    transfer: &Transfer,
    quiet: bool,
) -> Result<(), Fail> {
    let bar = progress(plan.blocks * plan.disk.block as u64, quiet, "verifying");
    let mut work = Compare {
        disk: plan.disk,
        file,
        path,
        len,
        scratch: Vec::new(),
    };
    let result = run(plan, 0, transfer.depth as usize, "read", &bar, &mut work);
    bar.finish_and_clear();
    result
}

// ---- write ----

struct FromFile<'a> {
    disk: &'a Disk,
    file: &'a File,
    path: &'a Path,
    len: u64,
    watermark: Watermark,
    notes: Option<Notes<'a>>,
    per: u64,
}

impl FromFile<'_> {
    /// Notes what the disk has on its medium.
    fn note(&mut self) -> Result<(), Fail> {
        let done = self.watermark.next * self.per;
        if let Some(notes) = &mut self.notes {
            self.disk.flush()?;
            notes.note(done)?;
        }
        Ok(())
    }
}

impl Work for FromFile<'_> {
    fn command(&mut self, chunk: Chunk, mut buffer: Buffer) -> Result<Option<Command>, Fail> {
        let len = chunk.blocks * self.disk.block;
        read_padded(self.file, chunk.offset, self.len, &mut buffer[..len])
            .map_err(|e| Fail::file(self.path, "read", &e))?;
        Ok(Some(self.disk.write(chunk.lba, chunk.blocks, buffer)))
    }

    fn done(&mut self, chunk: Chunk, _data: &[u8]) -> Result<(), Fail> {
        self.watermark.done(chunk.index);
        let done = self.watermark.next * self.per;
        if self.notes.as_ref().is_some_and(|n| n.is_due(done)) {
            self.note()?;
        }
        Ok(())
    }
}

/// From stdin, which ends where it ends.
struct FromStream<'a> {
    disk: &'a Disk,
    input: Box<dyn io::Read>,
    path: &'a Path,
    pad: bool,
    ended: bool,
    bytes: u64,
}

impl Work for FromStream<'_> {
    fn command(&mut self, chunk: Chunk, mut buffer: Buffer) -> Result<Option<Command>, Fail> {
        if self.ended {
            return Ok(None);
        }
        let most = chunk.blocks * self.disk.block;
        let mut have = 0;
        while have < most {
            match self.input.read(&mut buffer[have..most]) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Fail::file(self.path, "read", &e)),
            }
        }
        if have == 0 {
            return Ok(None);
        }
        let blocks = have.div_ceil(self.disk.block);
        if have % self.disk.block != 0 && !self.pad {
            return Err(unaligned(self.disk, self.path));
        }
        buffer[have..blocks * self.disk.block].fill(0);
        self.bytes += have as u64;
        if blocks == chunk.blocks {
            return Ok(Some(self.disk.write(chunk.lba, blocks, buffer)));
        }
        // The last one is shorter than its chunk: by itself, so that the
        // lengths of all others are their chunks'.
        let (_, outcome) = self
            .disk
            .device
            .run(self.disk.write(chunk.lba, blocks, buffer).recover(4))?;
        outcome.map_err(|e| {
            let what = format!("write {blocks} blocks at {}", chunk.lba);
            Fail::command(self.disk.device.name(), what, &e)
        })?;
        Ok(None)
    }

    fn done(&mut self, _chunk: Chunk, _data: &[u8]) -> Result<(), Fail> {
        Ok(())
    }
}

fn unaligned(disk: &Disk, path: &Path) -> Fail {
    Fail::usage(format!(
        "{}: does not end at the end of a block of {} bytes; --pad fills it with zeroes",
        path.display(),
        disk.block
    ))
}

pub fn write(device: Device, args: &Write, json: bool) -> Result<(), Fail> {
    let disk = Disk::probe(device)?;
    let is_stdin = args.file == Path::new("-") || is_special(&args.file);
    if is_stdin && (args.transfer.verify || args.transfer.resume) {
        return Err(Fail::usage("--verify and --resume want a file"));
    }
    let quiet = args.transfer.quiet || json;
    let per = disk.per_command(args.transfer.size)?;
    let begin = Instant::now();
    let (mut resumed, bytes);
    if is_stdin {
        let left = range(&disk, args.seek, None)?;
        if !args.force {
            show::check_unused(&disk)?;
        }
        let input: Box<dyn io::Read> = if args.file == Path::new("-") {
            Box::new(io::stdin().lock())
        } else {
            let file = File::open(&args.file);
            Box::new(file.map_err(|e| Fail::file(&args.file, "open", &e))?)
        };
        let mut work = FromStream {
            disk: &disk,
            input,
            path: &args.file,
            pad: args.pad,
            ended: false,
            bytes: 0,
        };
        let plan = Plan {
            disk: &disk,
            lba: args.seek,
            blocks: left,
            per,
        };
        let bar = progress(left * disk.block as u64, true, "writing");
        run(
            &plan,
            0,
            args.transfer.depth as usize,
            "write",
            &bar,
            &mut work,
        )?;
        let has_more = !work.ended && work.input.read(&mut [0]).is_ok_and(|n| n != 0);
        disk.flush()?;
        if has_more {
            return Err(Fail::usage(format!(
                "{}: is full, and {} goes on",
                disk.device.name(),
                args.file.display()
            )));
        }
        (resumed, bytes) = (0, work.bytes);
    } else {
        let fail = |e: io::Error| Fail::file(&args.file, "open", &e);
        let file = File::open(&args.file).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        let len = meta.len();
        if len == 0 {
            return Err(Fail::usage(format!("{}: it is empty", args.file.display())));
        }
        if len % disk.block as u64 != 0 && !args.pad {
            return Err(unaligned(&disk, &args.file));
        }
        let blocks = range(&disk, args.seek, Some(len.div_ceil(disk.block as u64)))?;
        if !args.force {
            show::check_unused(&disk)?;
        }
        let plan = Plan {
            disk: &disk,
            lba: args.seek,
            blocks,
            per,
        };
        let changed = meta.modified().ok().and_then(|at| {
            let since = at.duration_since(std::time::UNIX_EPOCH).ok()?;
            Some(since.as_nanos())
        });
        let mut journal = Journal::new(&plan, Some((len, changed.unwrap_or(0))));
        let note = beside(&args.file, &format!(".{}.write.json", disk.device.name()));
        let mut first = 0;
        if args.transfer.resume {
            first = journal.resume(&plan, &note)?;
        }
        let per_bytes = (per * disk.block) as u64;
        resumed = (first * per_bytes).min(len);
        let mut work = FromFile {
            disk: &disk,
            file: &file,
            path: &args.file,
            len,
            watermark: Watermark::at(first),
            notes: args.transfer.resume.then(|| Notes {
                journal,
                path: &note,
                every: args.transfer.checkpoint as u64,
                last: resumed,
            }),
            per: per_bytes,
        };
        let bar = progress(len, quiet, "writing");
        bar.set_position(resumed);
        let depth = args.transfer.depth as usize;
        let copied = run(&plan, first, depth, "write", &bar, &mut work);
        bar.finish_and_clear();
        if let Err(fail) = copied {
            let done = (work.watermark.next * per_bytes).min(len);
            // The note is a help; that the copy failed is the news.
            let noted = work.note().is_ok() && args.transfer.resume;
            let hint = if noted {
                ", --resume goes on there"
            } else {
                ""
            };
            return Err(Fail::new(
                fail.code,
                format!("{fail}; {done} of {len} bytes were written{hint}"),
            ));
        }
        disk.flush()?;
        if args.transfer.verify {
            verify(&plan, &file, &args.file, len, &args.transfer, quiet)?;
        }
        let _ = fs::remove_file(&note);
        bytes = len;
    }
    resumed = resumed.min(bytes);
    Copied {
        device: disk.device.name().into(),
        file: args.file.display().to_string(),
        bytes,
        resumed,
        seconds: begin.elapsed().as_secs_f64(),
        verified: args.transfer.verify,
    }
    .print(json, "wrote", quiet)
}
