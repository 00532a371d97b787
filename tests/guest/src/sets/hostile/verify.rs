//! Reads and writes by every call, each verified, beside the attackers.

use super::{Dice, Shared, trial};
use crate::freebsd::FreeBsd;
use conform::{
    command::Command,
    sys::{Memory, Sys},
};
use core::sync::atomic::Ordering::Relaxed;
use sys_bindings as sys;
use trial::{Disk, NUMBERED, SCRATCH, Trial};

const CANARY: u8 = 0xee;
const ROOM: usize = 256 << 10;

/// Verifies one disk until it is killed.
pub fn run(sys: &mut FreeBsd, disk: Disk, seed: u64, shared: &'static Shared) -> ! {
    let mut dice = Dice::new(seed);
    let mut trial = Trial::new(sys, 10);
    let t = &mut trial;
    let Some(node) = t.open(disk) else {
        t.sys.exit(0);
    };
    let mut memory = Memory::new(t.sys, ROOM);
    let mut command = Command::new(t.sys, 1);
    loop {
        let len = match dice.below(4) {
            0 => 512,
            1 => 512 * (1 + dice.below(16)),
            _ => 512 * (1 + dice.below(200)),
        };
        let at = 4096 + dice.of(&[0, 0, 512, 1024, 1, 4, 514]);
        let writes = dice.one_in(3);
        let salt = 0x80 | dice.next() as u8;
        let blocks = len as u32 / 512;
        let lba = if writes {
            SCRATCH + dice.below(8192) as u32
        } else {
            dice.below((NUMBERED - blocks) as usize) as u32
        };
        let to = memory.address() + at;
        if writes {
            trial::number(&mut memory.bytes_mut()[at..at + len], lba, salt);
            node.transfer(&mut command, true, lba, to, len);
            if send(t, &node, &command, &mut dice) != Some(sys::CAM_REQ_CMP) {
                continue;
            }
        }
        memory.bytes_mut().fill(CANARY);
        node.transfer(&mut command, false, lba, to, len);
        if send(t, &node, &command, &mut dice) != Some(sys::CAM_REQ_CMP) {
            continue;
        }
        let salt = if writes { salt } else { 0 };
        let bytes = memory.bytes();
        let bad = trial::differs(&bytes[at..at + len], lba, salt);
        let whole = |bytes: &[u8]| bytes.iter().all(|b| *b == CANARY);
        shared.verified.fetch_add(1, Relaxed);
        if bad.is_some() || !whole(&bytes[..at]) || !whole(&bytes[at + len..]) {
            shared.differed.fetch_add(1, Relaxed);
            let mut line = conform::Line::new();
            use core::fmt::Write;
            let _ = write!(
                line,
                "guest: WRONG {} lba {lba} len {len} at {at} wrote {writes}: {bad:?}",
                disk.name()
            );
            t.sys.print(line.as_str());
        }
    }
}

fn send(t: &mut Trial<'_>, node: &trial::Node, command: &Command, dice: &mut Dice) -> Option<u32> {
    match dice.below(3) {
        0 => t.command(node, command).ok(),
        1 => t.queue(node, command).ok(),
        _ => t.enter_one(node, command).ok(),
    }
}
