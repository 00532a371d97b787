//! The note of how far a copy is, so that it can go on later.
//!
//! It is a file of two slots that are written in turn: a slot that is torn by a
//! power failure leaves the other, and a file system that is full has no say, since
//! a note never grows. What it says is bound to the device, the range, and the bytes.

use super::engine::Plan;
use crate::fail::{Code, Fail};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, TryLockError},
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

/// What a copy is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    version: u32,
    product: String,
    serial: String,
    device_blocks: u64,
    block: usize,
    lba: u64,
    blocks: u64,
    /// Size, time of change and number of the file that is written.
    source: Option<(u64, u128, u64)>,
}

impl Subject {
    /// Of a plan.
    pub fn of(plan: &Plan<'_>, source: Option<(u64, u128, u64)>) -> Self {
        let identity = &plan.disk.identity;
        Subject {
            version: 2,
            product: format!("{} {}", identity.vendor, identity.product),
            serial: identity.serial.clone(),
            device_blocks: plan.disk.blocks,
            block: plan.disk.block,
            lba: plan.lba,
            blocks: plan.blocks,
            source,
        }
    }
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Of what.
    pub of: Subject,
    /// Device and number of the file that has the bytes.
    pub part: Option<(u64, u64)>,
    /// Bytes that are done: on the medium, or in the file and that on its medium.
    pub done: u64,
    /// CRC-32 of them.
    pub crc: u32,
    turn: u64,
}

#[derive(Serialize, Deserialize)]
struct Slot {
    check: u32,
    note: Note,
}

/// Bytes of a slot.
const SLOT: usize = 2048;

fn check(note: &Note) -> u32 {
    crc32fast::hash(&serde_json::to_vec(note).expect("plain data"))
}

fn parse(slot: &[u8]) -> Option<Note> {
    let slot: Slot = serde_json::from_slice(slot.trim_ascii()).ok()?;
    (slot.check == check(&slot.note)).then_some(slot.note)
}

/// The note's file, open and locked.
pub struct Journal {
    path: PathBuf,
    file: File,
    note: Note,
    /// What was there.
    pub found: Option<Note>,
    /// It was made by this run, or is begun anew.
    pub is_own: bool,
}

/// Opens a file that is no symbolic link, and made if it is not there: whether it was.
pub fn open_own(path: &Path) -> Result<(File, bool), Fail> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mode = Mode::from_raw_mode(0o666);
    let open = |more: OFlags| rustix::fs::open(path, flags | more, mode).map(File::from);
    loop {
        match open(OFlags::CREATE | OFlags::EXCL) {
            Ok(file) => {
                lock(&file, path)?;
                return Ok((file, true));
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(Fail::file(path, "create", &errno.into())),
        }
        let file = match open(OFlags::empty()) {
            Ok(file) => file,
            // It went in between.
            Err(rustix::io::Errno::NOENT) => continue,
            Err(rustix::io::Errno::LOOP | rustix::io::Errno::MLINK) => {
                let why = format!(
                    "{}: is a symbolic link, which is not followed; remove it",
                    path.display()
                );
                return Err(Fail::new(Code::System, why));
            }
            Err(errno) => return Err(Fail::file(path, "open", &errno.into())),
        };
        let fail = |e: io::Error| Fail::file(path, "open", &e);
        let opened = file.metadata().map_err(fail)?;
        if !opened.is_file() || opened.nlink() > 1 {
            let why = format!(
                "{}: is there already, and not a file with this name alone; remove it",
                path.display()
            );
            return Err(Fail::new(Code::System, why));
        }
        lock(&file, path)?;
        // Whoever had it before may have renamed or removed it.
        let named = fs::symlink_metadata(path);
        if named.is_ok_and(|n| (n.dev(), n.ino()) == (opened.dev(), opened.ino())) {
            return Ok((file, false));
        }
    }
}

fn lock(file: &File, path: &Path) -> Result<(), Fail> {
    match file.try_lock() {
        // A file system without locks has none to respect.
        Ok(()) => Ok(()),
        Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
        Err(TryLockError::WouldBlock) => Err(Fail::new(
            Code::InUse,
            format!("{}: another qpassctl is at it", path.display()),
        )),
        Err(TryLockError::Error(e)) => Err(Fail::file(path, "lock", &e)),
    }
}

/// Device and number of a file.
pub fn number(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|m| (m.dev(), m.ino()))
}

impl Journal {
    /// Opens the note at a path, or makes one.
    ///
    /// # Errors
    /// What is there is no note, or another qpassctl has it.
    pub fn open(path: &Path, of: Subject) -> Result<Self, Fail> {
        let (mut file, is_new) = open_own(path)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)
            .map_err(|e| Fail::file(path, "read", &e))?;
        let notes = text.chunks(SLOT).filter_map(parse);
        let found = notes.max_by_key(|note| note.turn);
        if found.is_none() && !text.is_empty() {
            return Err(Fail::usage(format!(
                "{}: is not a note of qpassctl's; remove it",
                path.display()
            )));
        }
        let turn = found.as_ref().map_or(0, |note| note.turn);
        Ok(Journal {
            path: path.into(),
            file,
            note: Note {
                of,
                part: None,
                done: 0,
                crc: 0,
                turn,
            },
            found,
            is_own: is_new,
        })
    }

    /// What was there is of the copy that is to be made now, or an error that
    /// says that it is not.
    pub fn check_subject(&self) -> Result<(), Fail> {
        match &self.found {
            Some(found) if found.of != self.note.of => Err(Fail::usage(format!(
                "{}: is the note of another copy; remove it to begin anew",
                self.path.display()
            ))),
            _ => Ok(()),
        }
    }

    /// Nothing is done: said before what was done is overwritten.
    pub fn begin(&mut self, part: Option<(u64, u64)>) -> Result<(), Fail> {
        self.is_own = true;
        self.note.part = part;
        // Both slots, and so all that it will ever take of the file system.
        self.save(0, 0)?;
        self.save(0, 0)
    }

    /// What was found goes on.
    pub fn go_on(&mut self, part: Option<(u64, u64)>) {
        self.is_own = true;
        self.note.part = part;
        if let Some(found) = &self.found {
            (self.note.done, self.note.crc) = (found.done, found.crc);
        }
    }

    /// Notes how far it is.
    pub fn save(&mut self, done: u64, crc: u32) -> Result<(), Fail> {
        (self.note.done, self.note.crc) = (done, crc);
        self.note.turn += 1;
        let slot = Slot {
            check: check(&self.note),
            note: self.note.clone(),
        };
        let mut text = serde_json::to_vec(&slot).expect("plain data");
        let fail = |e: io::Error| Fail::file(&self.path, "write", &e);
        if text.len() >= SLOT {
            return Err(fail(io::ErrorKind::FileTooLarge.into()));
        }
        text.resize(SLOT - 1, b' ');
        text.push(b'\n');
        let at = (self.note.turn % 2) * SLOT as u64;
        self.file.write_all_at(&text, at).map_err(fail)?;
        self.file.sync_data().map_err(fail)
    }

    /// Bytes that it says are done.
    pub fn done(&self) -> u64 {
        self.note.done
    }

    /// It has served.
    pub fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A file beside another.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
