//! Having a disk put on its medium what it was given.

use super::{
    engine::TRIES,
    verdict::{self, Verdict},
};
use crate::{
    disk::Disk,
    fail::{Code, Fail},
};
use qpass_client::{Command, Completion, Failure, Protocol, Queue};
use std::time::{Duration, Instant};

/// How a flush ended.
pub enum Flushed {
    /// All that had ended well before is on the medium.
    Yes,
    /// The device was reset: what it had in its cache may be lost.
    Reset(Failure),
}

/// One command, with nothing else under way: it, or the caller's word to give up.
fn once(
    queue: &mut Queue,
    command: Command,
    give_up: &dyn Fn() -> bool,
) -> Result<Completion, Fail> {
    let taken = queue.submit(command, 0);
    assert!(taken.is_ok(), "an empty queue takes a command");
    loop {
        let mut reaped = queue.reap(1, Duration::from_millis(100))?;
        if let Some(done) = reaped.pop() {
            return Ok(done);
        }
        if give_up() {
            return Err(Fail::interrupted());
        }
    }
}

/// Flushes the disk's cache, with nothing of the queue's under way.
///
/// # Errors
/// It was not flushed: the device says so, has lost an earlier write, or has a cache
/// and knows no command to flush it.
pub fn flush(disk: &Disk, queue: &mut Queue, give_up: impl Fn() -> bool) -> Result<Flushed, Fail> {
    let device = disk.device.name();
    let mut refused = None;
    for command in commands(disk) {
        let mut tries = 0;
        loop {
            let done = once(queue, command(disk), &give_up)?;
            let failure = match done.result {
                Ok(_) => return Ok(Flushed::Yes),
                Err(failure) => failure,
            };
            tries += 1;
            match verdict::of(&failure) {
                Verdict::Good => return Ok(Flushed::Yes),
                Verdict::Reset => return Ok(Flushed::Reset(failure)),
                Verdict::Again(after) if tries < TRIES => {
                    let end = Instant::now() + after;
                    while Instant::now() < end && !give_up() {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                }
                Verdict::Lost => {
                    let why = "an earlier write is lost: nothing since the last flush counts as \
                               written";
                    return Err(Fail::queued(device, "flush", &failure).and(why));
                }
                _ if is_unknown(&failure) => {
                    refused = Some(failure);
                    break;
                }
                _ => return Err(Fail::queued(device, "flush", &failure)),
            }
        }
    }
    let Some(failure) = refused else {
        return Ok(Flushed::Yes);
    };
    match has_cache(disk, queue, &give_up)? {
        // What is written through is on the medium.
        false => Ok(Flushed::Yes),
        true => Err(Fail::new(
            Code::Command,
            format!(
                "{device}: flush: {failure}; its write cache is on (MODE SENSE, caching page), \
                 and what is in there does not count as written"
            ),
        )),
    }
}

/// What a disk may know for it, in the order in which they are tried.
fn commands(disk: &Disk) -> &'static [fn(&Disk) -> Command] {
    const ZONED: u8 = 0x14;
    match disk.identity.protocol {
        // A zoned disk need not have the short forms (ZBC).
        Protocol::Scsi if disk.identity.device_type == ZONED => &[|_| synchronize_cache_16()],
        Protocol::Scsi => &[|_| Command::synchronize_cache(), |_| synchronize_cache_16()],
        Protocol::Ata => &[|_| Command::ata_flush()],
        _ => &[|disk| Command::nvme_flush(disk.identity.lun as u32)],
    }
}

fn synchronize_cache_16() -> Command {
    let mut cdb = [0; 16];
    cdb[0] = 0x91;
    Command::cdb(&cdb).timeout(Duration::from_secs(120))
}

/// The device does not know the command.
fn is_unknown(failure: &Failure) -> bool {
    match failure {
        Failure::Failed(error) => error
            .sense()
            .is_some_and(|s| (s.key, s.asc) == (5, 0x20) || (s.key, s.asc) == (5, 0x24)),
        _ => false,
    }
}

/// Whether a SCSI disk that knows no flush says that its write cache is on: WCE of
/// the caching page (SBC-4, 6.5.6). One without the page has none to speak of.
fn has_cache(disk: &Disk, queue: &mut Queue, give_up: &dyn Fn() -> bool) -> Result<bool, Fail> {
    if disk.identity.protocol != Protocol::Scsi {
        return Ok(false);
    }
    const PAGE: u8 = 0x08;
    let command = Command::mode_sense(PAGE, 0, disk.device.buffer(64)?).recover(3);
    let done = once(queue, command, give_up)?;
    let Ok(moved) = done.result else {
        return Ok(false);
    };
    let data = done.command.into_buffer();
    let data = data.as_ref().map_or(&[][..], |b| &b[..moved.min(b.len())]);
    // Behind the header of 8 bytes and the block descriptors.
    let Some(descriptors) = data.get(6..8) else {
        return Ok(false);
    };
    let at = 8 + usize::from(u16::from_be_bytes([descriptors[0], descriptors[1]]));
    let page = data.get(at..at + 3);
    Ok(page.is_some_and(|page| page[0] & 0x3f == PAGE && page[2] & 0x04 != 0))
}
