//! From a file onto a disk.

use super::{
    Copied,
    engine::{Chunk, Plan, RETRIES, Verb, Work, run},
    journal::{Done, Journal, beside},
    range,
    target::is_special,
    verify::{read_padded, verify},
};
use crate::{args::Write, disk::Disk, fail::Fail, show};
use qpass_client::{Buffer, Command, Device};
use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
    time::Instant,
};

struct FromFile<'a> {
    disk: &'a Disk,
    file: &'a File,
    path: &'a Path,
    len: u64,
    done: Done<'a>,
}

impl Work for FromFile<'_> {
    fn command(&mut self, chunk: Chunk, mut buffer: Buffer) -> Result<Option<Command>, Fail> {
        let len = chunk.blocks * self.disk.block;
        read_padded(self.file, chunk.offset, self.len, &mut buffer[..len])
            .map_err(|e| Fail::file(self.path, "read", &e))?;
        Ok(Some(self.disk.write(chunk.lba, chunk.blocks, buffer)))
    }

    fn done(&mut self, _chunk: Chunk, _data: &[u8]) -> Result<(), Fail> {
        Ok(())
    }

    fn all_done(&mut self, next: u64) -> Result<(), Fail> {
        // What is noted is on the medium.
        self.done.up_to(next, || self.disk.flush().map(drop))
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
            .run(self.disk.write(chunk.lba, blocks, buffer).recover(RETRIES))?;
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
    let is_stream = args.file == Path::new("-") || is_special(&args.file);
    if is_stream && (args.transfer.verify || args.transfer.resume) {
        return Err(Fail::usage("--verify and --resume want a file"));
    }
    let mut plan = Plan {
        disk: &disk,
        lba: args.seek,
        blocks: range(&disk, args.seek, None)?,
        per: disk.per_command(args.transfer.size)?,
        depth: args.transfer.depth as usize,
        quiet: args.transfer.quiet || json,
    };
    let begin = Instant::now();
    let (bytes, resumed) = if is_stream {
        (from_stream(&plan, args)?, 0)
    } else {
        from_file(&mut plan, args)?
    };
    Copied {
        device: disk.device.name().into(),
        file: args.file.display().to_string(),
        bytes,
        resumed,
        seconds: begin.elapsed().as_secs_f64(),
        verified: args.transfer.verify,
    }
    .print(json, "wrote", plan.quiet)
}

/// Unless it is told not to care: the device is nobody's.
fn check_unused(disk: &Disk, args: &Write) -> Result<(), Fail> {
    match args.force {
        true => Ok(()),
        false => show::check_unused(disk),
    }
}

/// The bytes that there were.
fn from_stream(plan: &Plan<'_>, args: &Write) -> Result<u64, Fail> {
    let disk = plan.disk;
    check_unused(disk, args)?;
    let input: Box<dyn io::Read> = if args.file == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        let file = File::open(&args.file);
        Box::new(file.map_err(|e| Fail::file(&args.file, "open", &e))?)
    };
    let mut work = FromStream {
        disk,
        input,
        path: &args.file,
        pad: args.pad,
        ended: false,
        bytes: 0,
    };
    // How much there will be is not known: a bar would say nothing.
    let silent = Plan {
        quiet: true,
        ..*plan
    };
    run(&silent, 0, Verb::Write, &mut work)?;
    let has_more = !work.ended && work.input.read(&mut [0]).is_ok_and(|n| n != 0);
    disk.flush()?;
    if has_more {
        return Err(Fail::usage(format!(
            "{}: is full, and {} goes on",
            disk.device.name(),
            args.file.display()
        )));
    }
    Ok(work.bytes)
}

/// The file's bytes, and those of them that an earlier run has copied.
fn from_file(plan: &mut Plan<'_>, args: &Write) -> Result<(u64, u64), Fail> {
    let disk = plan.disk;
    let fail = |e: io::Error| Fail::file(&args.file, "open", &e);
    let file = File::open(&args.file).map_err(fail)?;
    let meta = file.metadata().map_err(fail)?;
    let len = meta.len();
    if len == 0 {
        return Err(Fail::usage(format!("{}: it is empty", args.file.display())));
    }
    if len % disk.block as u64 != 0 && !args.pad {
        return Err(unaligned(disk, &args.file));
    }
    let blocks = len.div_ceil(disk.block as u64);
    plan.blocks = range(disk, args.seek, Some(blocks))?;
    check_unused(disk, args)?;
    let changed = meta.modified().ok().and_then(|at| {
        let since = at.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(since.as_nanos())
    });
    let mut journal = Journal::new(plan, Some((len, changed.unwrap_or(0))));
    let note = beside(&args.file, &format!(".{}.write.json", disk.device.name()));
    let mut first = 0;
    if args.transfer.resume {
        first = journal.resume(plan, &note)?;
    }
    let mut done = Done::new(plan, first);
    if args.transfer.resume {
        done.note_in(journal, &note, args.transfer.checkpoint as u64);
    }
    let mut work = FromFile {
        disk,
        file: &file,
        path: &args.file,
        len,
        done,
    };
    if let Err(fail) = run(plan, first, Verb::Write, &mut work) {
        let done = work.done.bytes().min(len);
        // The note is a help; that the copy failed is the news.
        let noted = work.done.note(|| disk.flush().map(drop)).is_ok() && args.transfer.resume;
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
        verify(plan, &file, &args.file, len)?;
    }
    let _ = fs::remove_file(&note);
    Ok((len, plan.chunk_at(first).min(len)))
}
