//! Reads and writes by every call, some at a time, each verified, beside the attackers.

use super::{Dice, Shared, trial};
use crate::{
    freebsd::FreeBsd,
    sets::{Batch, faults::trial::tag_of},
};
use conform::{
    Line,
    command::Command,
    sys::{Memory, Sys},
};
use core::{fmt::Write, sync::atomic::Ordering::Relaxed};
use sys_bindings as sys;
use trial::{Disk, NUMBERED, Node, SCRATCH, Trial, enter, entered};

const CANARY: u8 = 0xee;
const ROOM: usize = 160 << 10;
/// Transfers at a time, and what each may write.
const SLOTS: usize = 4;
const OWN: u32 = 4096;

/// One transfer: what it is, and where its bytes are.
struct Slot {
    command: Command,
    memory: Memory,
    list: Memory,
    /// Offset and length of each of its pieces; one without a list.
    pieces: [(usize, usize); 6],
    count: usize,
    lba: u32,
    len: usize,
    salt: u8,
    writes: bool,
}

impl Slot {
    fn new(sys: &mut FreeBsd) -> Self {
        Slot {
            command: Command::new(sys, 1),
            memory: Memory::new(sys, ROOM),
            list: Memory::new(sys, 4096),
            pieces: [(0, 0); 6],
            count: 1,
            lba: 0,
            len: 0,
            salt: 0,
            writes: false,
        }
    }

    /// Makes it another one. A write is of blocks of its own.
    fn draw(&mut self, dice: &mut Dice, disk: Disk, own: u32) {
        self.len = match dice.below(4) {
            0 => 512,
            1 => 512 * (1 + dice.below(16)),
            _ => 512 * (1 + dice.below(200)),
        };
        self.writes = dice.one_in(3);
        self.salt = if self.writes {
            0x80 | dice.next() as u8
        } else {
            0
        };
        let blocks = self.len as u32 / 512;
        self.lba = if self.writes {
            SCRATCH + own * OWN + dice.below((OWN - blocks) as usize) as u32
        } else {
            dice.below((NUMBERED - blocks) as usize) as u32
        };
        // ATA's CCB has no place for a list.
        self.count = if disk == Disk::Ata || dice.one_in(2) {
            1
        } else {
            1 + dice.below(6)
        };
        let mut at = 4096 + dice.of(&[0, 0, 512, 1024, 1, 4, 514]);
        let mut left = self.len;
        for i in 0..self.count {
            let part = if i + 1 == self.count {
                left
            } else {
                dice.below(left + 1)
            };
            let part = if dice.one_in(2) && i + 1 != self.count {
                part & !511
            } else {
                part
            };
            self.pieces[i] = (at, part);
            at += part + dice.of(&[0, 0, 1, 512, 4096]);
            left -= part;
        }
    }

    /// The bytes of the pieces, one after the other.
    fn each(&mut self, mut what: impl FnMut(&mut u8, usize)) {
        let mut i = 0;
        for (at, len) in &self.pieces[..self.count] {
            for byte in &mut self.memory.bytes_mut()[*at..*at + *len] {
                what(byte, i);
                i += 1;
            }
        }
    }

    fn aim(&mut self, node: &Node, writes: bool) {
        let base = self.memory.address();
        node.transfer(
            &mut self.command,
            writes,
            self.lba,
            base + self.pieces[0].0,
            self.len,
        );
        if self.count == 1 {
            return;
        }
        for (i, (at, len)) in self.pieces[..self.count].iter().enumerate() {
            for (j, word) in [base + at, *len].into_iter().enumerate() {
                let to = i * 16 + j * 8;
                self.list.bytes_mut()[to..to + 8].copy_from_slice(&(word as u64).to_ne_bytes());
            }
        }
        let (at, count) = (self.list.address(), self.count as u16);
        let ccb = self.command.ccb.ccb_mut();
        // SAFETY: plain data.
        unsafe {
            ccb.ccb_h.flags |= sys::CAM_DATA_SG;
            match node.disk {
                Disk::Nvme => {
                    (ccb.nvmeio.data_ptr, ccb.nvmeio.sglist_cnt) = (at as *mut u8, count);
                }
                _ => (ccb.csio.data_ptr, ccb.csio.sglist_cnt) = (at as *mut u8, count),
            }
        }
    }

    /// What is wrong with the bytes, and with those around.
    fn fault(&mut self) -> Option<usize> {
        let (lba, salt) = (self.lba, self.salt);
        let mut bad = None;
        self.each(|byte, i| {
            if *byte != trial::byte(lba, i, salt) {
                bad = bad.or(Some(i));
            }
            *byte = CANARY;
        });
        let around = self.memory.bytes().iter().position(|b| *b != CANARY);
        bad.or(around.map(|at| at + (1 << 20)))
    }
}

/// Verifies one disk until it is killed.
pub fn run(sys: &mut FreeBsd, disk: Disk, seed: u64, shared: &'static Shared) -> ! {
    let mut dice = Dice::new(seed);
    let mut slots: [Slot; SLOTS] = core::array::from_fn(|_| Slot::new(sys));
    let mut batch = Batch::new(sys, SLOTS);
    let mut trial = Trial::new(sys, 10);
    let t = &mut trial;
    loop {
        let Some(node) = t.open(disk) else {
            t.sys.sleep_ms(50);
            continue;
        };
        while verify(t, &node, &mut slots, &mut batch, &mut dice, shared) {}
        t.sys.close(node.fd);
        // It may be gone for a while, with those of its commands that were sent.
        t.sys.sleep_ms(50);
    }
}

/// Some transfers at a time: writes first, and then what was written, or numbered, is
/// read. Whether the open is still good.
fn verify(
    t: &mut Trial<'_>,
    node: &Node,
    slots: &mut [Slot; SLOTS],
    batch: &mut Batch,
    dice: &mut Dice,
    shared: &Shared,
) -> bool {
    let mut is_good = [true; SLOTS];
    for (own, slot) in slots.iter_mut().enumerate() {
        slot.draw(dice, node.disk, own as u32);
        if slot.writes {
            let (lba, salt) = (slot.lba, slot.salt);
            slot.each(|byte, i| *byte = trial::byte(lba, i, salt));
            slot.aim(node, true);
        }
    }
    let writes = slots.each_ref().map(|slot| slot.writes);
    if !carry_out(t, node, slots, batch, dice, &writes, &mut is_good) {
        return false;
    }
    for slot in slots.iter_mut() {
        slot.memory.bytes_mut().fill(CANARY);
        slot.aim(node, false);
    }
    let reads = is_good;
    if !carry_out(t, node, slots, batch, dice, &reads, &mut is_good) {
        return false;
    }
    for (slot, is_good) in slots.iter_mut().zip(is_good) {
        if !is_good {
            continue;
        }
        shared.verified.fetch_add(1, Relaxed);
        if let Some(bad) = slot.fault() {
            shared.differed.fetch_add(1, Relaxed);
            let mut line = Line::new();
            let _ = write!(
                line,
                "guest: WRONG {} lba {} len {} wrote {} at {bad}: {:?}",
                node.disk.name(),
                slot.lba,
                slot.len,
                slot.writes,
                &slot.pieces[..slot.count],
            );
            t.sys.print(line.as_str());
        }
    }
    true
}

/// Carries out those that are `wanted`, by some call, and says which ended well;
/// `false`: the open is of no use any more, and some may still be under way.
fn carry_out(
    t: &mut Trial<'_>,
    node: &Node,
    slots: &[Slot; SLOTS],
    batch: &mut Batch,
    dice: &mut Dice,
    wanted: &[bool; SLOTS],
    is_good: &mut [bool; SLOTS],
) -> bool {
    let which: [bool; SLOTS] = core::array::from_fn(|i| wanted[i]);
    match dice.below(3) {
        0 => {
            for i in (0..SLOTS).filter(|i| which[*i]) {
                let answer = t.command(node, &slots[i].command);
                is_good[i] &= answer == Ok(sys::CAM_REQ_CMP);
                if is_gone(&answer) {
                    return false;
                }
            }
        }
        1 => {
            for i in (0..SLOTS).filter(|i| which[*i]) {
                let answer = t.queue(node, &slots[i].command);
                is_good[i] &= answer == Ok(sys::CAM_REQ_CMP);
                if answer.is_err() {
                    return answer == Err(trial::EINVAL);
                }
            }
        }
        _ => {
            let mut count = 0;
            for i in (0..SLOTS).filter(|i| which[*i]) {
                batch.set(count, slots[i].command.ccb.address(), i as u64);
                count += 1;
            }
            let mut what = entered(batch, count, count, count);
            what.timeout = 60_000_000_000;
            let answer = enter(t.sys, node.fd, what);
            let Ok((submitted, completed, _, _)) = answer else {
                return false;
            };
            let mut seen = [false; SLOTS];
            for i in 0..completed as usize {
                let slot = tag_of(batch, i) as usize;
                seen[slot] = batch.status(i) == sys::CAM_REQ_CMP;
            }
            for i in (0..SLOTS).filter(|i| which[*i]) {
                is_good[i] &= seen[i];
            }
            return submitted == completed;
        }
    }
    true
}

fn is_gone(answer: &trial::Sent) -> bool {
    [Err(trial::ENXIO), Err(trial::ENOTTY)].contains(answer)
}
