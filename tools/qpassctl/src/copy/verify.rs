//! What is on a disk against what is in a file.

use super::engine::{Chunk, Plan, Verb, Work, run};
use crate::{
    disk::Disk,
    fail::{Code, Fail},
};
use qpass_client::{Buffer, Command};
use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

struct Compare<'a> {
    disk: &'a Disk,
    file: &'a File,
    path: &'a Path,
    /// Bytes of the file; zeroes follow.
    len: u64,
    scratch: Vec<u8>,
}

/// A file's bytes at a place, and zeroes behind its end.
pub fn read_padded(file: &File, at: u64, len: u64, to: &mut [u8]) -> io::Result<()> {
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

/// Reads all of a plan's blocks, and compares them with `len` bytes of a file.
pub fn verify(plan: &Plan<'_>, file: &File, path: &Path, len: u64) -> Result<(), Fail> {
    let mut work = Compare {
        disk: plan.disk,
        file,
        path,
        len,
        scratch: Vec::new(),
    };
    run(plan, 0, Verb::Verify, &mut work)
}
