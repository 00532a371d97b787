//! Having a disk put on its medium what it was given.

use super::{
    engine::TRIES,
    verdict::{self, Verdict},
};
use crate::{
    disk::{self, Disk},
    fail::Fail,
};
use qpass_client::{Command, Completion, Ended, Errno, Error, Failure, Queue};
use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

/// How a flush ended.
pub enum Flushed {
    /// All that had ended well before is on the medium.
    Yes,
    /// The device was reset: what it had in its cache may be lost.
    Reset(Failure),
}

/// A queue with nothing under way, for one command at a time.
struct Alone<'a> {
    queue: &'a mut Queue,
    give_up: &'a dyn Fn() -> bool,
    /// What was lost meanwhile, and how that was said.
    lost: Option<(Verdict, Failure)>,
}

impl Alone<'_> {
    fn error(&self, errno: Errno) -> Error {
        Error {
            what: self.queue.device().name().into(),
            doing: "flush",
            errno,
        }
    }

    fn once(&mut self, command: Command) -> Result<Completion, Error> {
        let taken = self.queue.submit(command, 0);
        assert!(taken.is_ok(), "an empty queue takes a command");
        loop {
            if let Some(done) = self.queue.reap(1, LOOK)?.pop() {
                return Ok(done);
            }
            if (self.give_up)() {
                return Err(self.error(Errno::EINTR));
            }
        }
    }

    /// Sends a command until it has been carried out, or has failed for good: never
    /// again once something is lost, since the next one would end well.
    fn run(&mut self, command: Command) -> Result<(Command, Ended), Error> {
        let mut command = command.recover(0);
        for tries in 1.. {
            let done = self.once(command)?;
            let error = match done.result {
                Ok(outcome) => return Ok((done.command, Ok(outcome))),
                Err(Failure::Failed(error)) => error,
                Err(Failure::Refused(errno)) => return Err(self.error(errno)),
                Err(Failure::Lost) => return Err(self.error(Errno::ENXIO)),
            };
            match verdict::of_error(&error) {
                Verdict::Again(after) if tries < TRIES => {
                    command = done.command;
                    let end = Instant::now() + after;
                    while Instant::now() < end && !(self.give_up)() {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    continue;
                }
                verdict @ (Verdict::Lost | Verdict::Reset) => {
                    self.lost = Some((verdict, Failure::Failed(error.clone())));
                }
                _ => {}
            }
            return Ok((done.command, Err(error)));
        }
        unreachable!("it has ended")
    }
}

/// How long it does not look whether it is to give up.
const LOOK: Duration = Duration::from_millis(100);

/// What is said where an earlier write is lost.
pub const LOST: &str = "an earlier write is lost: nothing since the last flush counts as written";

/// Flushes the disk's cache, with nothing of the queue's under way.
///
/// # Errors
/// It was not flushed: the device says so, has lost an earlier write, or has a cache
/// and knows no command to flush it.
pub fn flush(disk: &Disk, queue: &mut Queue, give_up: &dyn Fn() -> bool) -> Result<Flushed, Fail> {
    let alone = RefCell::new(Alone {
        queue,
        give_up,
        lost: None,
    });
    let flushed = disk.flush_with(&|command| alone.borrow_mut().run(command));
    match (flushed, alone.into_inner().lost) {
        (_, Some((Verdict::Reset, failure))) => Ok(Flushed::Reset(failure)),
        (Err(error), Some(_)) => Err(disk::fail(error).and(LOST)),
        (Err(error), None) => Err(disk::fail(error)),
        (Ok(_), _) => Ok(Flushed::Yes),
    }
}
