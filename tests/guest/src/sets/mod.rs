//! The named test sets, beside the conformance suite: what wants a real kernel,
//! its SIMs, its processes and its other pass-through driver.

mod contexts;
mod faults;
mod hostile;
mod notify;
mod pair;
mod sims;
mod targets;
mod tools;
mod unload;
mod unplug;

pub use contexts::contexts;
pub use faults::faults;
pub use hostile::hostile;
pub use notify::notify;
pub use pair::{pair, replace};
pub use sims::sims;
pub use targets::targets;
pub use tools::tools;
pub use unload::unload;
pub use unplug::unplug;

use crate::freebsd::FreeBsd;
use conform::{
    Line, Score,
    sys::{Fd, Memory, Sys, call},
};
use core::fmt::Write;
use sys_bindings as sys;

const RDWR: i32 = sys::O_RDWR as i32;
const POLLIN: i16 = sys::POLLIN as i16;

/// Counts what is found, and prints it.
pub struct Sheet<'a> {
    /// Where it is looked for.
    pub sys: &'a mut FreeBsd,
    /// So far.
    pub score: Score,
}

impl Sheet<'_> {
    /// What a finding that is not good was.
    pub fn note(&mut self, what: core::fmt::Arguments<'_>) {
        let mut line = Line::new();
        let _ = line.write_fmt(what);
        self.sys.print(line.as_str());
    }

    /// One finding, with the node that it is of.
    pub fn check(&mut self, what: &str, of: &str, good: bool) {
        let mut line = Line::new();
        let word = if good { "ok  " } else { "FAIL" };
        let _ = write!(line, "{word} {what} {of}");
        self.sys.print(line.as_str());
        if good {
            self.score.passed += 1;
        } else {
            self.score.failed += 1;
        }
    }

    /// Unloads the module, which is the last finding of a set.
    pub fn check_unload(&mut self) {
        let unloaded = match self.sys.kldfind("qpass.ko") {
            Some(id) => crate::unload(self.sys, id),
            None => Err("it is not loaded"),
        };
        let word = unloaded.err().unwrap_or("yes");
        self.check("it unloads afterwards:", word, unloaded.is_ok());
    }

    pub fn skip(&mut self, what: &str, why: &str) {
        let mut line = Line::new();
        let _ = write!(line, "skip {what}: {why}");
        self.sys.print(line.as_str());
        self.score.skipped += 1;
    }
}

/// A batch of submissions and completions, and a call.
pub struct Batch {
    pub memory: Memory,
    room: usize,
}

const SUBMISSIONS: usize = 128;

impl Batch {
    pub fn new(sys: &mut FreeBsd, room: usize) -> Self {
        let bytes =
            room * (size_of::<sys::qpass_submission>() + size_of::<sys::qpass_completion>());
        Batch {
            memory: Memory::new(sys, SUBMISSIONS + bytes),
            room,
        }
    }

    pub fn completions(&self) -> usize {
        SUBMISSIONS + self.room * size_of::<sys::qpass_submission>()
    }

    pub fn set(&mut self, i: usize, ccb: usize, tag: u64) {
        let at = SUBMISSIONS + i * size_of::<sys::qpass_submission>();
        let words = [ccb as u64, tag, 0];
        for (j, word) in words.iter().enumerate() {
            let to = at + j * 8;
            self.memory.bytes_mut()[to..to + 8].copy_from_slice(&word.to_ne_bytes());
        }
    }

    /// QPIOC_ENTER: how many were submitted and reaped, and the two errnos.
    pub fn enter(
        &mut self,
        sys: &mut FreeBsd,
        fd: Fd,
        submit: usize,
        reap: usize,
    ) -> Result<(usize, usize, i32, i32), i32> {
        // SAFETY: integers.
        let mut what: sys::qpass_enter = unsafe { core::mem::zeroed() };
        what.submissions = (self.memory.address() + SUBMISSIONS) as u64;
        what.completions = (self.memory.address() + self.completions()) as u64;
        (what.to_submit, what.to_complete) = (submit as u32, reap as u32);
        what.min_complete = reap as u32;
        what.timeout = 20_000_000_000;
        let done = call(sys, fd, sys::QPC_QPIOC_ENTER, what)?;
        Ok((
            done.submitted as usize,
            done.completed as usize,
            done.submit_error,
            done.complete_error,
        ))
    }

    /// The CAM status of a completion.
    pub fn status(&self, i: usize) -> u32 {
        let at = self.completions() + i * size_of::<sys::qpass_completion>() + 16;
        let bytes = &self.memory.bytes()[at..at + 4];
        bytes.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b)) & sys::CAM_STATUS_MASK
    }
}

pub fn info(sys: &mut FreeBsd, fd: Fd) -> Option<sys::qpass_info> {
    // SAFETY: integers.
    let zero: sys::qpass_info = unsafe { core::mem::zeroed() };
    call(sys, fd, sys::QPC_QPIOC_INFO, zero).ok()
}

pub fn pattern(to: &mut Memory, seed: usize) {
    for (i, byte) in to.bytes_mut().iter_mut().enumerate() {
        *byte = (i / 512 * 13 + i * 7 + seed * 31) as u8;
    }
}
