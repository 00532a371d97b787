//! From a disk into a file.

use super::{
    Copied, Took,
    engine::{Chunk, Plan, Verb, Work, run},
    journal::{Journal, Subject, beside, number, open_own},
    plan, range,
    target::{Place, is_special},
    verify::{compare_samples, verify},
};
use crate::{
    args::Read,
    disk::Disk,
    fail::{Code, Fail},
    output, stopped,
    stream::{Writer, is_standard},
};
use crc32fast::Hasher;
use qpass_client::{Buffer, Command, Device};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, IsTerminal},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Instant,
};

/// Into a file, each chunk at its place.
struct ToFile<'a> {
    disk: &'a Disk,
    path: &'a Path,
    file: &'a File,
    notes: Option<Notes<'a>>,
}

/// What is noted of how far it is: with the CRC of all that is done, so that no
/// other bytes are ever taken for it.
struct Notes<'a> {
    journal: &'a mut Journal,
    crc: Hasher,
    /// Of chunks that are done, but not all before them.
    ahead: BTreeMap<u64, Hasher>,
    next: u64,
    bytes_before: Box<dyn Fn(u64) -> u64 + 'a>,
    every: u64,
}

impl Notes<'_> {
    fn add(&mut self, index: u64, data: &[u8]) {
        let mut crc = Hasher::new();
        crc.update(data);
        self.ahead.insert(index, crc);
    }

    fn up_to(&mut self, next: u64) {
        while self.next < next {
            if let Some(crc) = self.ahead.remove(&self.next) {
                self.crc.combine(&crc);
            }
            self.next += 1;
        }
    }

    /// What it says is on the file's medium first.
    fn save(&mut self, file: &File, path: &Path) -> Result<(), Fail> {
        let done = (self.bytes_before)(self.next);
        if done == self.journal.done() {
            return Ok(());
        }
        file.sync_data()
            .map_err(|e| Fail::file(path, "write", &e))?;
        self.journal.save(done, self.crc.clone().finalize())
    }
}

impl Work for ToFile<'_> {
    fn command(&mut self, chunk: Chunk, buffer: Buffer) -> Result<Option<(Command, usize)>, Fail> {
        let command = self.disk.read(chunk.lba, chunk.blocks, buffer);
        Ok(Some((command, chunk.blocks)))
    }

    fn done(&mut self, chunk: Chunk, data: &[u8]) -> Result<(), Fail> {
        self.file
            .write_all_at(data, chunk.offset)
            .map_err(|e| Fail::file(self.path, "write", &e))?;
        if let Some(notes) = &mut self.notes {
            notes.add(chunk.index, data);
        }
        Ok(())
    }

    fn all_done(&mut self, next: u64) -> Result<(), Fail> {
        let Some(notes) = &mut self.notes else {
            return Ok(());
        };
        notes.up_to(next);
        if (notes.bytes_before)(next) - notes.journal.done() >= notes.every {
            notes.save(self.file, self.path)?;
        }
        Ok(())
    }
}

/// To stdout or a pipe, in order.
struct ToStream<'a> {
    disk: &'a Disk,
    path: &'a Path,
    out: Writer,
    next: u64,
    early: BTreeMap<u64, Vec<u8>>,
}

impl ToStream<'_> {
    fn fail(&self, error: &io::Error) -> Fail {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Fail::new(Code::System, ""),
            _ => Fail::file(self.path, "write", error),
        }
    }
}

impl Work for ToStream<'_> {
    fn command(&mut self, chunk: Chunk, buffer: Buffer) -> Result<Option<(Command, usize)>, Fail> {
        let command = self.disk.read(chunk.lba, chunk.blocks, buffer);
        Ok(Some((command, chunk.blocks)))
    }

    fn done(&mut self, chunk: Chunk, data: &[u8]) -> Result<(), Fail> {
        self.early.insert(chunk.index, data.to_vec());
        while let Some(data) = self.early.remove(&self.next) {
            self.next += 1;
            let wrote = self.out.write(data);
            wrote.map_err(|e| self.fail(&e))?;
        }
        Ok(())
    }
}

pub fn read(device: Device, args: &Read, json: bool) -> Result<(), Fail> {
    let disk = Disk::probe(device)?;
    let blocks = range(&disk, args.skip, args.count)?;
    let plan = plan(&disk, args.skip, blocks, &args.transfer, json)?;
    let (resumed, took) = if is_standard(&args.file) || is_special(&args.file) {
        (0, to_stream(&plan, args)?)
    } else {
        to_file(&plan, args)?
    };
    Copied::new(&disk, &args.file, plan.bytes(), resumed, took).print(json, "read", plan.quiet)
}

fn to_stream(plan: &Plan<'_>, args: &Read) -> Result<Took, Fail> {
    if args.transfer.resume || args.transfer.verify {
        return Err(Fail::usage(
            "--resume and --verify want a file of their own",
        ));
    }
    if is_standard(&args.file) {
        if io::stdout().is_terminal() {
            return Err(output::not_to_a_terminal());
        }
        output::stdout_has_data();
    } else if args.file.is_dir() {
        let why = format!("{}: is a folder", args.file.display());
        return Err(Fail::usage(why));
    }
    let begin = Instant::now();
    let out = Writer::new(&args.file).map_err(|e| Fail::file(&args.file, "open", &e))?;
    let mut work = ToStream {
        disk: plan.disk,
        path: &args.file,
        out,
        next: 0,
        early: BTreeMap::new(),
    };
    run(plan, 0, Verb::Read, &mut work)?;
    let finished = work.out.sync();
    finished.map_err(|e| work.fail(&e))?;
    Ok(Took {
        copy: begin.elapsed(),
        verify: None,
    })
}

/// What has been begun beside a file: its bytes, and the note of them. It goes with
/// a run that fails, unless that has something to keep, or it was not its own.
struct Part {
    path: PathBuf,
    file: File,
    journal: Journal,
    is_own: bool,
    keep: bool,
}

impl Drop for Part {
    fn drop(&mut self) {
        // The note first: none is left without its bytes.
        if !self.keep && self.journal.is_own {
            self.journal.remove();
        }
        if !self.keep && self.is_own {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The CRCs of a file's first bytes, at two places.
fn crcs(file: &File, path: &Path, first: u64, all: u64) -> Result<(Hasher, Hasher), Fail> {
    let mut crc = Hasher::new();
    let mut at_first = Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < all {
        if stopped() {
            return Err(Fail::interrupted());
        }
        let end = if at < first { first } else { all };
        let len = (end - at).min(buffer.len() as u64) as usize;
        file.read_exact_at(&mut buffer[..len], at)
            .map_err(|e| Fail::file(path, "read", &e))?;
        crc.update(&buffer[..len]);
        at += len as u64;
        if at == first {
            at_first = crc.clone();
        }
    }
    Ok((at_first, crc))
}

impl Part {
    /// Opens what there is, or begins it: nobody else has it then.
    fn open(place: &Place, of: Subject) -> Result<Self, Fail> {
        let path = beside(&place.path, ".part");
        let (file, is_new) = open_own(&path)?;
        let journal = match Journal::open(&beside(&place.path, ".part.json"), of) {
            Ok(journal) => journal,
            Err(fail) => {
                if is_new {
                    let _ = fs::remove_file(&path);
                }
                return Err(fail);
            }
        };
        Ok(Part {
            path,
            file,
            journal,
            is_own: is_new,
            keep: false,
        })
    }

    /// Where to go on: the first chunk that is to be read, and the CRC of those
    /// before it.
    fn first(&mut self, plan: &Plan<'_>, resume: bool) -> Result<(u64, Hasher), Fail> {
        let path = self.path.display();
        let fail = |e: io::Error| Fail::file(&self.path, "open", &e);
        let len = self.file.metadata().map_err(fail)?.len();
        let own = number(&self.file).map_err(fail)?;
        let found = self.journal.found.clone();
        let Some(found) = found.filter(|_| !self.is_own) else {
            // New, or nobody's who could be asked what it is.
            if !self.is_own && len != 0 {
                return Err(stopped_by(format!(
                    "{path}: is there already, and no note says that it is a part of a copy; \
                     remove it, or name another file"
                )));
            }
            self.anew(own)?;
            return Ok((0, Hasher::new()));
        };
        if found.done == 0 && (found.part == Some(own) || len == 0) {
            // One that was killed before it came to anything.
            self.anew(own)?;
            return Ok((0, Hasher::new()));
        }
        if !resume || found.done == 0 {
            return Err(stopped_by(format!(
                "{path}: has {} bytes of an earlier copy: --resume goes on there; remove it to \
                 begin anew",
                found.done
            )));
        }
        self.journal.check_subject()?;
        if found.done > plan.bytes() || len < found.done {
            return Err(Fail::usage(format!(
                "{path}: has {len} bytes, and its note says that {} of {} are done; remove it to \
                 begin anew",
                found.done,
                plan.bytes()
            )));
        }
        let per = (plan.per * plan.disk.block) as u64;
        let first = (found.done / per).min(plan.count());
        let before = plan.bytes_before(first).min(found.done);
        let (at_first, crc) = crcs(&self.file, &self.path, before, found.done)?;
        if crc.finalize() != found.crc {
            return Err(Fail::new(
                Code::Verify,
                format!(
                    "{path}: is not what was written there, by its note's CRC; remove it to begin \
                     anew"
                ),
            ));
        }
        compare_samples(plan, found.done, &self.file, &self.path, found.done).map_err(|fail| {
            match fail.code {
                Code::Verify => fail.and(
                    "it is another device's, or the device has changed since; remove it to begin \
                     anew",
                ),
                _ => fail,
            }
        })?;
        self.is_own = true;
        self.keep = true;
        self.journal.go_on(Some(own));
        // What is kept from now on is no more than what is known to be good.
        self.journal.save(before, at_first.clone().finalize())?;
        Ok((first, at_first))
    }

    /// The note says that there is nothing before there is nothing.
    fn anew(&mut self, own: (u64, u64)) -> Result<(), Fail> {
        self.is_own = true;
        self.journal.begin(Some(own))?;
        self.file
            .set_len(0)
            .map_err(|e| Fail::file(&self.path, "write", &e))
    }
}

fn stopped_by(why: String) -> Fail {
    Fail::new(Code::System, why)
}

/// Bytes that an earlier run has copied.
fn to_file(plan: &Plan<'_>, args: &Read) -> Result<(u64, Took), Fail> {
    let place = Place::of(&args.file)?;
    let bytes = plan.bytes();
    let mut part = Part::open(&place, Subject::of(plan, None))?;
    let (first, crc) = part.first(plan, args.transfer.resume)?;
    let begin = Instant::now();
    let (path, file) = (part.path.clone(), clone(&part)?);
    let fail = |e: io::Error| Fail::file(&path, "write", &e);
    // Nobody reads the part who may not read the file.
    place.adopt(&file).map_err(fail)?;
    let mut work = ToFile {
        disk: plan.disk,
        path: &path,
        file: &file,
        notes: args.transfer.resume.then(|| Notes {
            journal: &mut part.journal,
            crc,
            ahead: BTreeMap::new(),
            next: first,
            bytes_before: Box::new(|index| plan.bytes_before(index)),
            every: args.transfer.checkpoint as u64,
        }),
    };
    let result = run(plan, first, Verb::Read, &mut work);
    // What there is so far is worth something to who asked to go on.
    let noted = work.notes.as_mut().map(|notes| notes.save(&file, &path));
    drop(work);
    if let Err(failure) = result {
        let done = part.journal.done();
        part.keep = args.transfer.resume && done != 0;
        return Err(match noted {
            // That the copy failed is the news.
            Some(Ok(())) if part.keep => failure.and(format!(
                "{done} of {bytes} bytes are in {}, --resume goes on there",
                path.display()
            )),
            Some(Err(_)) if part.keep => failure.and(format!(
                "{done} of {bytes} bytes in {} are noted, --resume goes on there",
                path.display()
            )),
            _ => failure,
        });
    }
    part.keep = args.transfer.resume;
    noted.unwrap_or(Ok(()))?;
    file.set_len(bytes).map_err(fail)?;
    file.sync_all().map_err(fail)?;
    let copy = begin.elapsed();
    let begin = Instant::now();
    if args.transfer.verify {
        verify(plan, Verb::Verify, &file, &path, bytes)
            .map_err(|(failure, good)| part.is_bad(failure, good, args.transfer.resume))?;
    }
    let verify = args.transfer.verify.then(|| begin.elapsed());
    place.adopt(&file).map_err(fail)?;
    fs::rename(&path, &place.path).map_err(|e| Fail::file(&args.file, "create", &e))?;
    part.keep = true;
    part.journal.remove();
    place.sync_folder();
    Ok((plan.bytes_before(first), Took { copy, verify }))
}

fn clone(part: &Part) -> Result<File, Fail> {
    part.file
        .try_clone()
        .map_err(|e| Fail::file(&part.path, "open", &e))
}

impl Part {
    /// Verification has failed: what is behind the last good byte is read again.
    fn is_bad(&mut self, failure: Fail, good: u64, resume: bool) -> Fail {
        if failure.code != Code::Verify || !resume {
            return failure;
        }
        let path = self.path.display().to_string();
        let noted = crcs(&self.file, &self.path, good, good)
            .and_then(|(crc, _)| self.journal.save(good, crc.finalize()));
        match noted {
            Ok(()) => failure.and(format!("--resume reads {path} again from byte {good} on")),
            Err(_) => {
                self.keep = false;
                failure.and(format!("{path} was removed"))
            }
        }
    }
}
