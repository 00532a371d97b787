//! How far a copy is, so that it can go on later.

use super::{engine::Plan, target::temporary};
use crate::fail::Fail;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

/// How far a copy is that may go on later.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
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
    /// Of a copy that begins.
    pub fn new(plan: &Plan<'_>, source: Option<(u64, u128)>) -> Self {
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
    pub fn resume(&mut self, plan: &Plan<'_>, path: &Path) -> Result<u64, Fail> {
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

/// A file beside another.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// What is done so far, and where that is noted, if it is.
pub struct Done<'a> {
    /// The first chunk that is not.
    next: u64,
    /// Bytes of a chunk.
    per: u64,
    notes: Option<Notes<'a>>,
}

struct Notes<'a> {
    journal: Journal,
    path: &'a Path,
    every: u64,
    last: u64,
}

impl<'a> Done<'a> {
    /// `first` chunks of `plan` are done already.
    pub fn new(plan: &Plan<'_>, first: u64) -> Self {
        Done {
            next: first,
            per: (plan.per * plan.disk.block) as u64,
            notes: None,
        }
    }

    /// Notes it in `path`, every so many bytes.
    pub fn note_in(&mut self, journal: Journal, path: &'a Path, every: u64) {
        let last = self.bytes();
        self.notes = Some(Notes {
            journal,
            path,
            every,
            last,
        });
    }

    /// Bytes that are done.
    pub fn bytes(&self) -> u64 {
        self.next * self.per
    }

    /// All chunks before `next` are done; when it is time for a note, `settle`
    /// sees to it that what it says is so.
    pub fn up_to(
        &mut self,
        next: u64,
        settle: impl FnOnce() -> Result<(), Fail>,
    ) -> Result<(), Fail> {
        self.next = next;
        let bytes = self.bytes();
        let is_due = |n: &Notes<'_>| bytes - n.last >= n.every;
        if self.notes.as_ref().is_some_and(is_due) {
            self.note(settle)?;
        }
        Ok(())
    }

    /// Notes how far it is now.
    pub fn note(&mut self, settle: impl FnOnce() -> Result<(), Fail>) -> Result<(), Fail> {
        let bytes = self.bytes();
        let Some(notes) = &mut self.notes else {
            return Ok(());
        };
        settle()?;
        notes.last = bytes;
        notes.journal.save(notes.path, bytes)
    }
}
