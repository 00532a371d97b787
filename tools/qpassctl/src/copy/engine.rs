//! Many commands at a time, over a range of a disk.

use crate::{
    disk::Disk,
    fail::{Code, Fail},
    stopped,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use qpass_client::{Buffer, Command, Method, Queue};
use std::time::Duration;

/// A run of blocks that one command moves.
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    /// Which one it is, from 0.
    pub index: u64,
    /// Its first block.
    pub lba: u64,
    /// Its blocks.
    pub blocks: usize,
    /// Bytes before it.
    pub offset: u64,
}

/// Blocks of a disk, in chunks.
pub struct Plan<'a> {
    /// The disk.
    pub disk: &'a Disk,
    /// The first block.
    pub lba: u64,
    /// All blocks.
    pub blocks: u64,
    /// Blocks of a chunk.
    pub per: usize,
    /// Commands at a time.
    pub depth: usize,
    /// Nothing but errors is shown.
    pub quiet: bool,
}

impl Plan<'_> {
    /// How many chunks there are.
    pub fn count(&self) -> u64 {
        self.blocks.div_ceil(self.per as u64)
    }

    fn chunk(&self, index: u64) -> Chunk {
        let before = index * self.per as u64;
        Chunk {
            index,
            lba: self.lba + before,
            blocks: (self.blocks - before).min(self.per as u64) as usize,
            offset: before * self.disk.block as u64,
        }
    }

    /// Bytes before a chunk.
    pub fn chunk_at(&self, index: u64) -> u64 {
        index.saturating_mul(self.per as u64).min(self.blocks) * self.disk.block as u64
    }

    /// A bar on stderr, if that is a terminal.
    fn bar(&self, verb: Verb) -> ProgressBar {
        let bar = ProgressBar::new(self.blocks * self.disk.block as u64);
        if self.quiet {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let style = ProgressStyle::with_template(
            // No longer than a line of 80 columns.
            "{prefix:9} {bar:18} {percent:>3}% {binary_bytes}/{binary_total_bytes} \
             {binary_bytes_per_sec} {eta} left",
        );
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_prefix(verb.of_bar());
        bar
    }

    fn bytes(&self, chunk: Chunk) -> usize {
        chunk.blocks * self.disk.block
    }
}

/// What is done up to where, though chunks end in any order.
struct Watermark {
    /// The first chunk that is not done.
    next: u64,
    ahead: std::collections::BTreeSet<u64>,
}

impl Watermark {
    /// So many are done.
    fn at(next: u64) -> Self {
        Watermark {
            next,
            ahead: Default::default(),
        }
    }

    /// One more is.
    fn done(&mut self, index: u64) {
        self.ahead.insert(index);
        while self.ahead.remove(&self.next) {
            self.next += 1;
        }
    }
}

/// What a copy does with its chunks.
pub trait Work {
    /// The command of a chunk; `None` when there is no more.
    fn command(&mut self, chunk: Chunk, buffer: Buffer) -> Result<Option<Command>, Fail>;
    /// It has ended well.
    fn done(&mut self, chunk: Chunk, data: &[u8]) -> Result<(), Fail>;
    /// All chunks before `next` have.
    fn all_done(&mut self, _next: u64) -> Result<(), Fail> {
        Ok(())
    }
}

/// What a run is called.
#[derive(Clone, Copy)]
pub enum Verb {
    Read,
    Write,
    Verify,
}

impl Verb {
    fn of_command(self) -> &'static str {
        match self {
            Verb::Read | Verb::Verify => "read",
            Verb::Write => "write",
        }
    }

    fn of_bar(self) -> &'static str {
        match self {
            Verb::Read => "reading",
            Verb::Write => "writing",
            Verb::Verify => "verifying",
        }
    }
}

/// Runs all chunks from `first` on, `depth` at a time.
pub fn run(plan: &Plan<'_>, first: u64, verb: Verb, work: &mut dyn Work) -> Result<(), Fail> {
    let bar = plan.bar(verb);
    bar.set_position(plan.chunk_at(first));
    let result = run_with(plan, first, verb, &bar, work);
    bar.finish_and_clear();
    result
}

fn run_with(
    plan: &Plan<'_>,
    first: u64,
    verb: Verb,
    bar: &ProgressBar,
    work: &mut dyn Work,
) -> Result<(), Fail> {
    let device = &plan.disk.device;
    let method = if device.is_qpass() {
        Method::Enter
    } else {
        Method::Queue
    };
    let mut queue: Queue = device.queue(plan.depth, method)?;
    let mut spare: Vec<Buffer> = Vec::new();
    let mut ended = Watermark::at(first);
    let (mut next, mut end) = (first, plan.count());
    // One that takes long does not let the others run away from it: who puts
    // them in order keeps them meanwhile.
    let ahead = 4 * plan.depth as u64;
    loop {
        while next < end.min(ended.next + ahead) && queue.has_room() {
            let buffer = match spare.pop() {
                Some(buffer) => buffer,
                None => device.buffer(plan.per * plan.disk.block)?,
            };
            let Some(command) = work.command(plan.chunk(next), buffer)? else {
                end = next;
                break;
            };
            if queue.submit(command.recover(RETRIES), next).is_err() {
                break;
            }
            next += 1;
        }
        if queue.in_flight() == 0 {
            return Ok(());
        }
        for done in queue.reap(1, LOOK)? {
            let chunk = plan.chunk(done.tag);
            let len = plan.bytes(chunk);
            let what = || {
                format!(
                    "{} {} blocks at {}",
                    verb.of_command(),
                    chunk.blocks,
                    chunk.lba
                )
            };
            match done.result {
                Ok(outcome) if outcome.moved == len => {}
                Ok(outcome) => {
                    return Err(Fail::new(
                        Code::Command,
                        format!(
                            "{}: {}: moved {} of {len} bytes",
                            device.name(),
                            what(),
                            outcome.moved
                        ),
                    ));
                }
                Err(failure) => return Err(Fail::queued(device.name(), what(), &failure)),
            }
            if let Some(buffer) = done.command.into_buffer() {
                work.done(chunk, &buffer[..len])?;
                spare.push(buffer);
            }
            ended.done(chunk.index);
            work.all_done(ended.next)?;
            bar.inc(len as u64);
        }
        if stopped() {
            return Err(Fail::interrupted());
        }
    }
}

/// As da(4) has them.
pub const RETRIES: u32 = 4;
/// How long it does not look whether it is to stop.
const LOOK: Duration = Duration::from_millis(200);
