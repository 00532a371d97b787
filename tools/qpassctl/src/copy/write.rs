//! From a file onto a disk.

use super::{
    Copied, Took,
    engine::{Chunk, Plan, Verb, Work, run},
    journal::{Journal, Subject, beside},
    lock::lock,
    name, plan, range, stopped_short,
    target::is_special,
    verify::{compare_samples, read_padded, verify},
};
use crate::{
    args::Write,
    disk::Disk,
    fail::{Code, Fail},
    show,
    stream::{Reader, is_standard},
};
use qpass_client::{Buffer, Command, Device};
use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::Instant,
};

struct FromFile<'a> {
    disk: &'a Disk,
    file: &'a File,
    path: &'a Path,
    len: u64,
    journal: Option<&'a mut Journal>,
    bytes_before: Box<dyn Fn(u64) -> u64 + 'a>,
    /// Bytes that are on the medium.
    flushed: u64,
}

impl Work for FromFile<'_> {
    fn command(
        &mut self,
        chunk: Chunk,
        mut buffer: Buffer,
    ) -> Result<Option<(Command, usize)>, Fail> {
        let len = chunk.blocks * self.disk.block;
        read_padded(self.file, chunk.offset, self.len, &mut buffer[..len])
            .map_err(|e| Fail::file(self.path, "read", &e))?;
        let command = self.disk.write(chunk.lba, chunk.blocks, buffer);
        Ok(Some((command, chunk.blocks)))
    }

    fn flushed(&mut self, next: u64) -> Result<(), Fail> {
        self.flushed = (self.bytes_before)(next);
        match &mut self.journal {
            Some(journal) => journal.save(self.flushed, 0),
            None => Ok(()),
        }
    }

    fn can_go_back(&self) -> bool {
        !self.disk.writes_in_order()
    }
}

/// From stdin, which ends where it ends.
struct FromStream<'a> {
    disk: &'a Disk,
    input: Reader,
    path: &'a Path,
    pad: bool,
    ended: bool,
    /// Bytes that came.
    bytes: u64,
    /// Bytes of whole chunks that are on the medium.
    flushed: u64,
    bytes_before: Box<dyn Fn(u64) -> u64 + 'a>,
    unaligned: bool,
}

impl Work for FromStream<'_> {
    fn command(
        &mut self,
        chunk: Chunk,
        mut buffer: Buffer,
    ) -> Result<Option<(Command, usize)>, Fail> {
        if self.ended {
            return Ok(None);
        }
        let piece = self
            .input
            .piece()
            .map_err(|e| Fail::file(self.path, "read", &e))?;
        let Some(piece) = piece else {
            self.ended = true;
            return Ok(None);
        };
        let block = self.disk.block;
        // The last chunk of the disk may have fewer blocks than a piece has.
        let most = chunk.blocks * block;
        let have = piece.len().min(most);
        self.ended = piece.len() < chunk.blocks * block;
        let over = piece.len() - have;
        self.bytes += have as u64;
        if over != 0 {
            self.bytes += over as u64;
            self.ended = true;
        }
        if have % block != 0 && !self.pad {
            // What is whole of it is written, as all before it was.
            self.unaligned = true;
        }
        let blocks = match self.pad {
            true => have.div_ceil(block),
            false => have / block,
        };
        if blocks == 0 {
            return Ok(None);
        }
        let whole = have.min(blocks * block);
        buffer[..whole].copy_from_slice(&piece[..whole]);
        buffer[whole..blocks * block].fill(0);
        Ok(Some((self.disk.write(chunk.lba, blocks, buffer), blocks)))
    }

    fn flushed(&mut self, next: u64) -> Result<(), Fail> {
        let block = self.disk.block as u64;
        let whole = match self.unaligned {
            true => self.bytes / block * block,
            false => self.bytes,
        };
        self.flushed = (self.bytes_before)(next).min(whole);
        Ok(())
    }

    fn can_go_back(&self) -> bool {
        false
    }
}

fn unaligned(disk: &Disk, name: &str) -> String {
    format!(
        "{name}: does not end at the end of a block of {} bytes; --pad fills it with zeroes",
        disk.block
    )
}

pub fn write(device: Device, args: &Write, json: bool) -> Result<(), Fail> {
    let disk = Disk::probe(device)?;
    let is_stream = is_standard(&args.file) || is_special(&args.file);
    if is_stream && (args.transfer.verify || args.transfer.resume) {
        return Err(Fail::usage("--verify and --resume want a file"));
    }
    let all = range(&disk, args.seek, None)?;
    let mut plan = plan(&disk, args.seek, all, &args.transfer, json)?;
    if let Some(zone) = disk.zone {
        in_order(&mut plan, zone);
    }
    let (bytes, resumed, took) = if is_stream {
        let (bytes, took) = from_stream(&plan, args)?;
        (bytes, 0, took)
    } else {
        from_file(&mut plan, args)?
    };
    Copied::new(&disk, &args.file, bytes, resumed, took).print(json, "wrote", plan.quiet)
}

/// For a disk whose zones are written in order: one command at a time, and none
/// across a zone's beginning, which is at multiples of so many blocks, or anywhere.
fn in_order(plan: &mut Plan<'_>, zone: u64) {
    plan.depth = 1;
    let mut fits = zone;
    let mut rest = plan.lba;
    // What divides the zones and the place of the first block.
    while rest != 0 {
        (fits, rest) = (rest, fits % rest);
    }
    let most = match zone {
        0 => 1,
        _ => plan.per as u64,
    };
    let divides = |per: &u64| fits.is_multiple_of(*per);
    let per = (1..=most.min(fits.max(1))).rev().find(divides).unwrap_or(1);
    (plan.per, plan.stride) = (per as usize, per);
}

/// Unless it is told not to care: the device is nobody's.
fn check_unused(disk: &Disk, args: &Write) -> Result<(), Fail> {
    match args.force {
        true => Ok(()),
        false => show::check_unused(disk),
    }
}

/// The bytes that there were.
fn from_stream(plan: &Plan<'_>, args: &Write) -> Result<(u64, Took), Fail> {
    let disk = plan.disk;
    let source = name(&args.file, "standard input");
    if args.file.is_dir() {
        return Err(Fail::usage(format!("{source}: is a folder")));
    }
    check_unused(disk, args)?;
    let _lock = lock(disk)?;
    let begin = Instant::now();
    let input = Reader::new(&args.file, plan.per * disk.block)
        .map_err(|e| Fail::file(&args.file, "open", &e))?;
    let mut work = FromStream {
        disk,
        input,
        path: &args.file,
        pad: args.pad,
        ended: false,
        bytes: 0,
        flushed: 0,
        bytes_before: Box::new(|index| plan.bytes_before(index)),
        unaligned: false,
    };
    // How much there will be is not known: nothing can be said of how far it is.
    let silent = Plan {
        quiet: true,
        ..*plan
    };
    let result = run(&silent, 0, Verb::Write, &mut work);
    let on_medium = |flushed: u64| format!("{flushed} bytes are on the medium");
    if let Err(fail) = result {
        return Err(fail.and(on_medium(work.flushed)));
    }
    if work.bytes == 0 {
        return Err(stopped_short(format!(
            "{source}: nothing came: nothing was written"
        )));
    }
    if work.unaligned {
        let why = unaligned(disk, &source);
        return Err(match work.flushed {
            0 => Fail::usage(why),
            flushed => stopped_short(why).and(on_medium(flushed)),
        });
    }
    let has_more = work.bytes > plan.bytes() || {
        let next = match work.ended {
            true => Ok(None),
            false => work.input.piece(),
        };
        next.map_err(|e| Fail::file(&args.file, "read", &e).and(on_medium(work.flushed)))?
            .is_some()
    };
    if has_more {
        let device = disk.device.name();
        let why = format!("{device}: is full, and {source} goes on");
        return Err(stopped_short(why).and(on_medium(work.flushed)));
    }
    let took = Took {
        copy: begin.elapsed(),
        verify: None,
    };
    Ok((work.bytes, took))
}

/// Size, time of change and number of a file.
fn source_of(meta: &Metadata) -> (u64, u128, u64) {
    let changed = meta.modified().ok().and_then(|at| {
        let since = at.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(since.as_nanos())
    });
    (meta.len(), changed.unwrap_or(0), meta.ino())
}

/// The note beside a file, if the copy has one: where to go on, in bytes.
fn noted(
    plan: &Plan<'_>,
    args: &Write,
    file: &File,
    source: (u64, u128, u64),
) -> Result<(Option<Journal>, u64), Fail> {
    let device = plan.disk.device.name();
    let path = beside(&args.file, &format!(".{device}.write.json"));
    if !args.transfer.resume && fs::symlink_metadata(&path).is_err() {
        return Ok((None, 0));
    }
    let mut journal = Journal::open(&path, Subject::of(plan, Some(source)))?;
    if !args.transfer.resume {
        // What it says would not be so any more.
        journal.remove();
        return Ok((None, 0));
    }
    journal.check_subject()?;
    let done = journal.found.as_ref().map_or(0, |note| note.done);
    if done > plan.bytes() {
        return Err(Fail::usage(format!(
            "{}: says that {done} of {} bytes are done; remove it to begin anew",
            path.display(),
            plan.bytes()
        )));
    }
    match compare_samples(plan, done, file, &args.file, source.0) {
        Ok(()) => {
            journal.go_on(None);
            if done == 0 {
                journal.begin(None)?;
            }
            Ok((Some(journal), done))
        }
        Err(fail) if fail.code == Code::Verify => {
            // It was written since by somebody else: no byte of it is believed.
            if !plan.quiet {
                eprintln!("qpassctl: {fail}: it was written since, and the copy begins anew");
            }
            journal.begin(None)?;
            Ok((Some(journal), 0))
        }
        Err(fail) => Err(fail),
    }
}

/// The file's bytes, and those of them that an earlier run has copied.
fn from_file(plan: &mut Plan<'_>, args: &Write) -> Result<(u64, u64, Took), Fail> {
    let disk = plan.disk;
    let fail = |e: io::Error| Fail::file(&args.file, "open", &e);
    let file = File::open(&args.file).map_err(fail)?;
    let meta = file.metadata().map_err(fail)?;
    let len = meta.len();
    if len == 0 {
        let why = format!("{}: it is empty: nothing to copy", args.file.display());
        return Err(Fail::usage(why));
    }
    if len % disk.block as u64 != 0 && !args.pad {
        return Err(Fail::usage(unaligned(
            disk,
            &args.file.display().to_string(),
        )));
    }
    let blocks = len.div_ceil(disk.block as u64);
    plan.blocks = range(disk, args.seek, Some(blocks))?;
    check_unused(disk, args)?;
    let _lock = lock(disk)?;
    let plan = &*plan;
    let (mut journal, done) = noted(plan, args, &file, source_of(&meta))?;
    let per = (plan.per * disk.block) as u64;
    let first = (done / per).min(plan.count());
    let begin = Instant::now();
    let mut work = FromFile {
        disk,
        file: &file,
        path: &args.file,
        len,
        journal: journal.as_mut(),
        bytes_before: Box::new(|index| plan.bytes_before(index)),
        flushed: plan.bytes_before(first),
    };
    let result = run(plan, first, Verb::Write, &mut work);
    let flushed = work.flushed.min(len);
    drop(work);
    if let Err(fail) = result {
        let hint = match &journal {
            Some(journal) if journal.done() != 0 => ", --resume goes on there",
            Some(journal) => {
                journal.remove();
                ""
            }
            None => "",
        };
        let what = format!("{flushed} of {len} bytes are on the medium{hint}");
        return Err(fail.and(what));
    }
    let copy = begin.elapsed();
    let begin = Instant::now();
    // What is on the disk would be some of both.
    if source_of(&file.metadata().map_err(fail)?) != source_of(&meta) {
        if let Some(journal) = &journal {
            journal.remove();
        }
        let why = format!(
            "{}: it was changed while it was copied",
            args.file.display()
        );
        return Err(stopped_short(why).and(format!("{flushed} bytes are on the medium")));
    }
    if args.transfer.verify {
        let verified = verify(plan, Verb::Verify, &file, &args.file, len);
        verified.map_err(|(failure, _)| {
            // Whatever a note says is not so, or is not known to be.
            if matches!(failure.code, Code::Verify | Code::Command)
                && let Some(journal) = &journal
            {
                journal.remove();
            }
            failure
        })?;
    }
    if let Some(journal) = &journal {
        journal.remove();
    }
    let verify = args.transfer.verify.then(|| begin.elapsed());
    let resumed = plan.bytes_before(first).min(len);
    Ok((len, resumed, Took { copy, verify }))
}
