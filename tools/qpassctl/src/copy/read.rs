//! From a disk into a file.

use super::{
    Copied,
    engine::{Chunk, Plan, Verb, Work, run},
    journal::{Done, Journal, beside},
    range,
    target::is_special,
    verify::verify,
};
use crate::{
    args::Read,
    disk::Disk,
    fail::{Code, Fail},
};
use qpass_client::{Buffer, Command, Device};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
    time::Instant,
};

/// Into a file, each chunk at its place.
struct ToFile<'a> {
    disk: &'a Disk,
    path: &'a Path,
    file: File,
    done: Done<'a>,
}

/// What is noted is on the medium.
fn settle(file: &File, path: &Path) -> Result<(), Fail> {
    file.sync_data().map_err(|e| Fail::file(path, "write", &e))
}

impl Work for ToFile<'_> {
    fn command(&mut self, chunk: Chunk, buffer: Buffer) -> Result<Option<Command>, Fail> {
        Ok(Some(self.disk.read(chunk.lba, chunk.blocks, buffer)))
    }

    fn done(&mut self, chunk: Chunk, data: &[u8]) -> Result<(), Fail> {
        self.file
            .write_all_at(data, chunk.offset)
            .map_err(|e| Fail::file(self.path, "write", &e))
    }

    fn all_done(&mut self, next: u64) -> Result<(), Fail> {
        self.done.up_to(next, || settle(&self.file, self.path))
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

pub fn read(device: Device, args: &Read, json: bool) -> Result<(), Fail> {
    let disk = Disk::probe(device)?;
    let plan = Plan {
        disk: &disk,
        lba: args.skip,
        blocks: range(&disk, args.skip, args.count)?,
        per: disk.per_command(args.transfer.size)?,
        depth: args.transfer.depth as usize,
        quiet: args.transfer.quiet || json,
    };
    let begin = Instant::now();
    let is_stdout = args.file == Path::new("-");
    let resumed = if is_stdout || is_special(&args.file) {
        to_stream(&plan, args)?;
        0
    } else {
        to_file(&plan, args)?
    };
    Copied {
        device: disk.device.name().into(),
        file: args.file.display().to_string(),
        bytes: plan.blocks * disk.block as u64,
        resumed,
        seconds: begin.elapsed().as_secs_f64(),
        verified: args.transfer.verify,
    }
    .print(json && !is_stdout, "read", plan.quiet)
}

fn to_stream(plan: &Plan<'_>, args: &Read) -> Result<(), Fail> {
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
        disk: plan.disk,
        path: &args.file,
        out,
        next: 0,
        early: BTreeMap::new(),
    };
    run(plan, 0, Verb::Read, &mut work)?;
    work.out
        .flush()
        .map_err(|e| Fail::file(&args.file, "write", &e))
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

/// Bytes that an earlier run has copied.
fn to_file(plan: &Plan<'_>, args: &Read) -> Result<u64, Fail> {
    let part = beside(&args.file, ".part");
    let note = beside(&args.file, ".part.json");
    let bytes = plan.blocks * plan.disk.block as u64;
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
    let mut done = Done::new(plan, first);
    if args.transfer.resume {
        done.note_in(journal, &note, args.transfer.checkpoint as u64);
    }
    let mut work = ToFile {
        disk: plan.disk,
        path: &part,
        file,
        done,
    };
    if let Err(fail) = run(plan, first, Verb::Read, &mut work) {
        // What there is so far is worth something to who asked to go on.
        work.done.note(|| settle(&work.file, work.path))?;
        return Err(fail);
    }
    let fail = |e: io::Error| Fail::file(&part, "write", &e);
    work.file.set_len(bytes).map_err(fail)?;
    work.file.sync_all().map_err(fail)?;
    if args.transfer.verify {
        verify(plan, &work.file, &args.file, bytes)?;
    }
    fs::rename(&part, &args.file).map_err(|e| Fail::file(&args.file, "create", &e))?;
    partial.keep = true;
    let _ = fs::remove_file(&note);
    Ok(plan.chunk_at(first))
}
