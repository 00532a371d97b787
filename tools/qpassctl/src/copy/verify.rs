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
    /// Chunks before it are as they should be.
    good: u64,
}

/// A file's bytes at a place, and zeroes behind its end.
pub fn read_padded(file: &File, at: u64, len: u64, to: &mut [u8]) -> io::Result<()> {
    let there = len.saturating_sub(at).min(to.len() as u64) as usize;
    file.read_exact_at(&mut to[..there], at)?;
    to[there..].fill(0);
    Ok(())
}

impl Work for Compare<'_> {
    fn command(&mut self, chunk: Chunk, buffer: Buffer) -> Result<Option<(Command, usize)>, Fail> {
        let command = self.disk.read(chunk.lba, chunk.blocks, buffer);
        Ok(Some((command, chunk.blocks)))
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

    fn all_done(&mut self, next: u64) -> Result<(), Fail> {
        self.good = next;
        Ok(())
    }
}

/// Reads all of a plan's blocks, and compares them with `len` bytes of a file: with
/// a failure, how many bytes were the same before it.
pub fn verify(
    plan: &Plan<'_>,
    verb: Verb,
    file: &File,
    path: &Path,
    len: u64,
) -> Result<(), (Fail, u64)> {
    let mut work = Compare {
        disk: plan.disk,
        file,
        path,
        len,
        scratch: Vec::new(),
        good: 0,
    };
    let result = run(plan, 0, verb, &mut work);
    result.map_err(|fail| (fail, plan.bytes_before(work.good)))
}

/// How many places of a copy that goes on are looked at, and how much at each.
const SAMPLES: u64 = 64;
const SAMPLE: usize = 64 << 10;

/// Compares samples of what a note says is done, its beginning and its end among
/// them: all of it, if that is little.
pub fn compare_samples(
    plan: &Plan<'_>,
    done: u64,
    file: &File,
    path: &Path,
    len: u64,
) -> Result<(), Fail> {
    let block = plan.disk.block;
    let blocks = done / block as u64;
    if blocks == 0 {
        return Ok(());
    }
    let per = (SAMPLE / block).clamp(1, plan.per);
    let stride = blocks.div_ceil(SAMPLES).max(per as u64);
    let samples = Plan {
        blocks,
        per,
        stride,
        quiet: true,
        ..*plan
    };
    verify(&samples, Verb::Compare, file, path, len).map_err(|(fail, _)| fail)
}
