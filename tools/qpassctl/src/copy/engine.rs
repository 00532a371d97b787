//! Many commands at a time, over a range of a disk.
//!
//! A write that has ended well is in the disk's cache. It is written once a flush
//! behind it has ended well too: until then it counts as not written, whatever
//! becomes of it.

use super::{
    flush,
    progress::Progress,
    verdict::{self, Verdict},
};
use crate::{
    disk::Disk,
    fail::{Code, Fail},
    stopped,
};
use qpass_client::{Buffer, Command, Completion, Failure, Method, Queue};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

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
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// The disk.
    pub disk: &'a Disk,
    /// The first block.
    pub lba: u64,
    /// All blocks.
    pub blocks: u64,
    /// Blocks of a chunk.
    pub per: usize,
    /// Blocks from one chunk's beginning to the next one's: more than a chunk has,
    /// where samples are taken.
    pub stride: u64,
    /// Commands at a time.
    pub depth: usize,
    /// Bytes after which the disk's cache is flushed.
    pub checkpoint: u64,
    /// How long the device may take for a command.
    pub timeout: Duration,
    /// Nothing but errors is shown.
    pub quiet: bool,
}

impl Plan<'_> {
    /// How many chunks there are.
    pub fn count(&self) -> u64 {
        self.blocks.div_ceil(self.stride)
    }

    fn chunk(&self, index: u64) -> Chunk {
        let mut before = index * self.stride;
        // The last sample is of the end.
        if self.stride > self.per as u64 && index + 1 == self.count() {
            before = self.blocks.saturating_sub(self.per as u64);
        }
        Chunk {
            index,
            lba: self.lba + before,
            blocks: (self.blocks - before).min(self.per as u64) as usize,
            offset: before * self.disk.block as u64,
        }
    }

    /// Bytes before a chunk.
    pub fn bytes_before(&self, index: u64) -> u64 {
        index.saturating_mul(self.stride).min(self.blocks) * self.disk.block as u64
    }

    /// All bytes.
    pub fn bytes(&self) -> u64 {
        self.blocks * self.disk.block as u64
    }
}

/// What is done up to where, though chunks end in any order.
struct Watermark {
    /// The first chunk that is not done.
    next: u64,
    ahead: BTreeSet<u64>,
}

impl Watermark {
    /// So many are done.
    fn at(next: u64) -> Self {
        Watermark {
            next,
            ahead: BTreeSet::new(),
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
    /// The command of a chunk, and how many of its blocks it moves; `None` when
    /// there is no more.
    fn command(&mut self, chunk: Chunk, buffer: Buffer) -> Result<Option<(Command, usize)>, Fail>;
    /// It has ended well.
    fn done(&mut self, _chunk: Chunk, _data: &[u8]) -> Result<(), Fail> {
        Ok(())
    }
    /// All chunks before `next` have.
    fn all_done(&mut self, _next: u64) -> Result<(), Fail> {
        Ok(())
    }
    /// All chunks before `next` are on the medium.
    fn flushed(&mut self, _next: u64) -> Result<(), Fail> {
        Ok(())
    }
    /// Chunks can be asked for again, from any of them on.
    fn can_go_back(&self) -> bool {
        true
    }
}

/// What a run is called.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Read,
    Write,
    Verify,
    Compare,
}

impl Verb {
    fn of_command(self) -> &'static str {
        match self {
            Verb::Write => "write",
            _ => "read",
        }
    }

    fn of_progress(self) -> &'static str {
        match self {
            Verb::Read => "reading",
            Verb::Write => "writing",
            Verb::Verify => "verifying",
            Verb::Compare => "comparing",
        }
    }
}

/// How often one chunk is sent, at most; as da(4) does it.
pub const TRIES: u32 = 5;
/// How often a run goes back to what was flushed last.
const GOES_BACK: u32 = 3;
/// How long it does not look whether it is to stop.
const LOOK: Duration = Duration::from_millis(100);
/// How long commands have to come back by themselves when it is to stop.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the driver may take no command at all.
const NO_ROOM: Duration = Duration::from_secs(10);

struct Run<'a, 'b> {
    plan: &'a Plan<'b>,
    verb: Verb,
    queue: Queue,
    spare: Vec<Buffer>,
    ended: Watermark,
    next: u64,
    end: u64,
    /// What each that is under way moves.
    blocks: BTreeMap<u64, usize>,
    /// Of those that were sent more than once.
    tries: BTreeMap<u64, u32>,
    /// To be sent again.
    again: Vec<(u64, Buffer)>,
    not_before: Option<Instant>,
    /// All chunks before it are on the medium.
    flushed: u64,
    /// Some write has ended well since.
    is_dirty: bool,
    /// It may be lost.
    was_reset: Option<Failure>,
    went_back: u32,
    no_room_since: Option<Instant>,
}

/// Runs all chunks from `first` on, `depth` at a time; writes are on the medium when
/// it has ended well. With a failure, `Work::flushed` has been told what is.
pub fn run(plan: &Plan<'_>, first: u64, verb: Verb, work: &mut dyn Work) -> Result<(), Fail> {
    let device = &plan.disk.device;
    let method = if device.is_qpass() {
        Method::Enter
    } else {
        Method::Queue
    };
    let mut run = Run {
        plan,
        verb,
        queue: device.queue(plan.depth, method)?,
        spare: Vec::new(),
        ended: Watermark::at(first),
        next: first,
        end: plan.count(),
        blocks: BTreeMap::new(),
        tries: BTreeMap::new(),
        again: Vec::new(),
        not_before: None,
        flushed: first,
        is_dirty: false,
        was_reset: None,
        went_back: 0,
        no_room_since: None,
    };
    let mut progress = Progress::new(
        device.name(),
        verb.of_progress(),
        plan.bytes(),
        plan.bytes_before(first),
        plan.quiet,
    );
    let result = run.all(&mut progress, work);
    drop(progress);
    match result {
        Err(fail) if verb == Verb::Write => {
            run.save_what_can_be(&fail, work);
            Err(fail)
        }
        other => other,
    }
}

impl Run<'_, '_> {
    fn all(&mut self, progress: &mut Progress, work: &mut dyn Work) -> Result<(), Fail> {
        // One that takes long does not let the others run away from it: who puts
        // them in order keeps them meanwhile.
        let ahead = 4 * self.plan.depth as u64;
        loop {
            if self.was_reset.is_some() && self.queue.in_flight() == 0 {
                self.go_back(work)?;
            }
            if self.was_reset.is_none() {
                self.send(ahead, work)?;
            }
            if self.queue.in_flight() == 0 && self.again.is_empty() && self.was_reset.is_none() {
                if self.verb == Verb::Write && self.is_dirty {
                    self.flush(work)?;
                    continue;
                }
                if self.next >= self.end {
                    return Ok(());
                }
            }
            self.wait(work)?;
            progress.at(self.plan.bytes_before(self.ended.next));
            if stopped() {
                return Err(Fail::interrupted());
            }
        }
    }

    /// So much has been written that it is time for a flush.
    fn is_checkpoint(&self) -> bool {
        let since = self.plan.bytes_before(self.next) - self.plan.bytes_before(self.flushed);
        self.verb == Verb::Write && since >= self.plan.checkpoint
    }

    /// Submits as many as there is room for.
    fn send(&mut self, ahead: u64, work: &mut dyn Work) -> Result<(), Fail> {
        if self.not_before.is_some_and(|at| Instant::now() < at) {
            return Ok(());
        }
        self.not_before = None;
        while self.queue.has_room()
            && let Some((index, buffer)) = self.again.pop()
        {
            let chunk = self.plan.chunk(index);
            let blocks = self.blocks[&index];
            let command = match self.verb {
                Verb::Write => self.plan.disk.write(chunk.lba, blocks, buffer),
                _ => self.plan.disk.read(chunk.lba, blocks, buffer),
            };
            self.submit(index, command);
        }
        let end = self.end.min(self.ended.next + ahead);
        while self.next < end && self.queue.has_room() && !self.is_checkpoint() {
            let buffer = match self.spare.pop() {
                Some(buffer) => buffer,
                None => {
                    let len = self.plan.per * self.plan.disk.block;
                    self.plan.disk.device.buffer(len)?
                }
            };
            let chunk = self.plan.chunk(self.next);
            let Some((command, blocks)) = work.command(chunk, buffer)? else {
                self.end = self.next;
                break;
            };
            self.blocks.insert(self.next, blocks);
            let index = self.next;
            self.next += 1;
            self.submit(index, command);
        }
        Ok(())
    }

    /// What it sends may tell of writes that are lost.
    fn is_of_writes(&self) -> bool {
        matches!(self.verb, Verb::Write | Verb::Verify)
    }

    fn submit(&mut self, index: u64, command: Command) {
        let mut command = command.timeout(self.plan.timeout);
        // CAM's own recovery would forget a deferred error, which is of a write.
        if !self.is_of_writes() {
            command = command.recover(TRIES - 1);
        }
        let taken = self.queue.submit(command, index);
        assert!(taken.is_ok(), "a queue with room takes a command");
    }

    /// Waits for what ends next, a while at most.
    fn wait(&mut self, work: &mut dyn Work) -> Result<(), Fail> {
        if self.queue.in_flight() == 0 {
            if let Some(at) = self.not_before {
                let left = at.saturating_duration_since(Instant::now());
                std::thread::sleep(left.min(LOOK));
            }
            return Ok(());
        }
        let reaped = self.queue.reap(1, LOOK)?;
        if reaped.is_empty() {
            self.check_room()?;
        } else {
            self.no_room_since = None;
        }
        for done in reaped {
            self.completed(done, work)?;
        }
        Ok(())
    }

    /// Where limits of others or of nobody leave no room, it does not wait for ever.
    fn check_room(&mut self) -> Result<(), Fail> {
        let device = &self.plan.disk.device;
        if !device.is_qpass() || device.info().is_ok_and(|info| info.requests != 0) {
            self.no_room_since = None;
            return Ok(());
        }
        let since = *self.no_room_since.get_or_insert_with(Instant::now);
        if since.elapsed() < NO_ROOM {
            return Ok(());
        }
        Err(Fail::new(
            Code::System,
            format!(
                "{}: the driver has taken no command for {} s: a limit is reached (EAGAIN); see \
                 qpassctl limits",
                device.name(),
                NO_ROOM.as_secs()
            ),
        ))
    }

    fn what(&self, index: u64, blocks: usize) -> String {
        let lba = self.plan.chunk(index).lba;
        format!("{} {blocks} blocks at {lba}", self.verb.of_command())
    }

    fn completed(&mut self, done: Completion, work: &mut dyn Work) -> Result<(), Fail> {
        let (index, device) = (done.tag, self.plan.disk.device.name());
        let blocks = self.blocks[&index];
        let len = blocks * self.plan.disk.block;
        let failure = match done.result {
            Ok(outcome) if outcome.moved == len => None,
            Ok(outcome) => {
                let (what, moved) = (self.what(index, blocks), outcome.moved);
                let why = format!("{device}: {what}: moved {moved} of {len} bytes");
                return Err(Fail::new(Code::Command, why));
            }
            Err(failure) => Some(failure),
        };
        let verdict = match &failure {
            None => Verdict::Good,
            Some(_) if !self.is_of_writes() => Verdict::Failed,
            Some(failure) => match verdict::of(failure) {
                // What is verified was flushed before: it is read again, that is all.
                Verdict::Reset | Verdict::Failed if self.verb == Verb::Verify => {
                    Verdict::Again(Duration::ZERO)
                }
                verdict => verdict,
            },
        };
        match (verdict, failure) {
            (Verdict::Good, _) => {
                self.tries.remove(&index);
                self.is_dirty |= self.verb == Verb::Write;
                let chunk = Chunk {
                    blocks,
                    ..self.plan.chunk(index)
                };
                if let Some(buffer) = done.command.into_buffer() {
                    work.done(chunk, &buffer[..len])?;
                    self.spare.push(buffer);
                }
                self.blocks.remove(&index);
                self.ended.done(index);
                work.all_done(self.ended.next)
            }
            (Verdict::Lost, Some(failure)) => {
                self.is_dirty = false;
                Err(self.lost(index, blocks, &failure))
            }
            (Verdict::Again(after), Some(failure)) => {
                self.once_more(index, blocks, &failure)?;
                let at = Instant::now() + after;
                self.not_before = Some(self.not_before.map_or(at, |b| b.max(at)));
                self.again
                    .extend(done.command.into_buffer().map(|b| (index, b)));
                Ok(())
            }
            (Verdict::Reset, Some(failure)) => {
                if let Err(fail) = self.once_more(index, blocks, &failure) {
                    self.is_dirty = false;
                    return Err(fail);
                }
                self.again
                    .extend(done.command.into_buffer().map(|b| (index, b)));
                self.was_reset.get_or_insert(failure);
                Ok(())
            }
            (_, Some(failure)) => {
                let what = self.what(index, blocks);
                Err(Fail::queued(device, what, &failure))
            }
            (_, None) => Ok(()),
        }
    }

    fn once_more(&mut self, index: u64, blocks: usize, failure: &Failure) -> Result<(), Fail> {
        let tries = self.tries.entry(index).or_insert(1);
        *tries += 1;
        if *tries > TRIES {
            let what = self.what(index, blocks);
            return Err(Fail::queued(self.plan.disk.device.name(), what, failure));
        }
        Ok(())
    }

    /// An earlier write is lost, and which is not known.
    fn lost(&self, index: u64, blocks: usize, failure: &Failure) -> Fail {
        let what = self.what(index, blocks);
        Fail::queued(self.plan.disk.device.name(), what, failure)
            .and("an earlier write is lost: nothing since the last flush counts as written")
    }

    /// After a reset, with nothing under way: what was not flushed is written again.
    fn go_back(&mut self, work: &mut dyn Work) -> Result<(), Fail> {
        let Some(failure) = self.was_reset.take() else {
            return Ok(());
        };
        if !self.is_dirty {
            // What is to be sent again is all that there was.
            return Ok(());
        }
        self.is_dirty = false;
        self.went_back += 1;
        if !work.can_go_back() || self.went_back > GOES_BACK {
            let device = self.plan.disk.device.name();
            let why =
                "what was written since the last flush may be lost, and cannot be written again";
            return Err(Fail::queued(device, "reset while it was written", &failure).and(why));
        }
        for (_, buffer) in self.again.drain(..) {
            self.spare.push(buffer);
        }
        self.blocks.clear();
        self.ended = Watermark::at(self.flushed);
        self.next = self.flushed;
        Ok(())
    }

    /// With nothing under way: what was written is on the medium then.
    fn flush(&mut self, work: &mut dyn Work) -> Result<(), Fail> {
        // If it fails, one that is good afterwards says nothing of what is lost.
        self.is_dirty = false;
        match flush::flush(self.plan.disk, &mut self.queue, &stopped)? {
            flush::Flushed::Yes => {
                self.flushed = self.ended.next;
                work.flushed(self.flushed)
            }
            flush::Flushed::Reset(failure) => {
                self.is_dirty = true;
                self.was_reset = Some(failure);
                Ok(())
            }
        }
    }

    /// After a failure: what is under way comes back, and what can be put on the
    /// medium is; nothing is believed of a device that has lost something.
    fn save_what_can_be(&mut self, fail: &Fail, work: &mut dyn Work) {
        let is_worth_it = self.is_dirty && self.was_reset.is_none();
        let end = Instant::now() + PATIENCE;
        let mut is_clean = true;
        while self.queue.in_flight() != 0 && Instant::now() < end {
            let Ok(reaped) = self.queue.reap(1, LOOK) else {
                return;
            };
            for done in reaped {
                let blocks = self.blocks.get(&done.tag).copied().unwrap_or(0);
                match &done.result {
                    Ok(outcome) if outcome.moved == blocks * self.plan.disk.block => {
                        self.ended.done(done.tag);
                    }
                    Ok(_) => {}
                    Err(failure) => match verdict::of(failure) {
                        Verdict::Good => self.ended.done(done.tag),
                        Verdict::Lost | Verdict::Reset => is_clean = false,
                        _ => {}
                    },
                }
            }
        }
        let has_all = self.queue.in_flight() == 0;
        let is_asked = matches!(fail.code, Code::Interrupted | Code::Command | Code::System);
        if !(is_worth_it && is_clean && has_all && is_asked) {
            return;
        }
        let since = Instant::now();
        let too_long = move || since.elapsed() > PATIENCE;
        if let Ok(flush::Flushed::Yes) = flush::flush(self.plan.disk, &mut self.queue, &too_long) {
            self.flushed = self.ended.next;
            let _ = work.flushed(self.flushed);
        }
    }
}
