//! The conformance suite: what a pass-through device promises, as cases that
//! run unchanged on the user-mode kernel and on a real one.
//!
//! A case talks to a kernel through [`Sys`] only, and says what it saw in one
//! transcript line: errnos, statuses, residuals, sense, events. [`run`] runs
//! every case and counts.
#![no_std]
#![expect(
    clippy::result_large_err,
    reason = "a failure carries its line by value: there is no heap"
)]

pub mod cases;
pub mod command;
pub mod sys;

use core::fmt::{self, Write};
use sys::Sys;

/// A line of text of bounded length; what does not fit is cut off.
pub struct Line {
    bytes: [u8; 400],
    len: usize,
}

impl Line {
    /// Empty.
    pub const fn new() -> Self {
        Line {
            bytes: [0; 400],
            len: 0,
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("(not text)")
    }
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.bytes() {
            if self.len < self.bytes.len() {
                self.bytes[self.len] = if c.is_ascii() { c } else { b'?' };
                self.len += 1;
            }
        }
        Ok(())
    }
}

/// What went wrong in a case: where, and what was found instead.
pub struct Failure {
    /// The expectation that did not hold.
    pub what: Line,
}

/// What a case returns.
pub type Outcome = Result<(), Failure>;

/// Fails the case unless the two are equal.
#[macro_export]
macro_rules! expect {
    ($what:expr, $found:expr, $wanted:expr) => {{
        let (found, wanted) = (&$found, &$wanted);
        if found != wanted {
            let mut what = $crate::Line::new();
            let _ = core::fmt::Write::write_fmt(
                &mut what,
                format_args!(
                    "{}:{}: {}: found {:?}, wanted {:?}",
                    file!(),
                    line!(),
                    $what,
                    found,
                    wanted
                ),
            );
            return Err($crate::Failure { what });
        }
    }};
}

/// One case at work.
pub struct Ctx<'a> {
    /// The kernel.
    pub sys: &'a mut dyn Sys,
    /// The device under test, such as `/dev/qpass0`.
    pub device: &'a str,
    /// What the case has seen so far.
    pub seen: Line,
}

impl Ctx<'_> {
    /// Adds to the transcript line.
    pub fn see(&mut self, what: fmt::Arguments<'_>) {
        let _ = self.seen.write_str(" ");
        let _ = self.seen.write_fmt(what);
    }
}

/// A promise, and how it is tested.
pub struct Case {
    /// The promise.
    pub name: &'static str,
    /// The test.
    pub run: fn(&mut Ctx<'_>) -> Outcome,
    /// Whether it needs [`Sys::depart`].
    pub departs: bool,
    /// Not to be tried on pass(4), which would hand a user's number to the
    /// device as a physical address, or panic (14.2 follows a null pointer
    /// when it cannot copy a list in), or leave the device frozen for good.
    pub spares_pass: bool,
}

/// How many cases came out how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// As promised.
    pub passed: u32,
    /// Not as promised.
    pub failed: u32,
    /// Not possible on this kernel.
    pub skipped: u32,
}

/// Runs one case and prints its transcript line.
pub fn run_one(case: &Case, sys: &mut dyn Sys, device: &str) -> Outcome {
    let mut ctx = Ctx {
        sys,
        device,
        seen: Line::new(),
    };
    let outcome = (case.run)(&mut ctx);
    let mut line = Line::new();
    let _ = match &outcome {
        Ok(()) => write!(line, "ok   {}:{}", case.name, ctx.seen.as_str()),
        Err(failure) => write!(line, "FAIL {}: {}", case.name, failure.what.as_str()),
    };
    sys.print(line.as_str());
    outcome
}

/// Runs every case on a node of pass(4), each with no descriptor left open by
/// the one before: its opens share one queue. The transcript is the outcome.
pub fn run_parity(sys: &mut dyn Sys, device: &str) {
    for case in cases::ALL.iter().filter(|c| !c.departs && !c.spares_pass) {
        let _ = run_one(case, sys, device);
        sys.close_all();
    }
}

/// Runs every case on `device`.
pub fn run(sys: &mut dyn Sys, device: &str) -> Score {
    let mut score = Score::default();
    for case in cases::ALL {
        if case.departs && !sys.can_depart() {
            score.skipped += 1;
            continue;
        }
        match run_one(case, sys, device) {
            Ok(()) => score.passed += 1,
            Err(_) => score.failed += 1,
        }
    }
    score
}
