//! A process for each disk, which reads from it by its own driver all the while.

use super::{
    Dice, Shared,
    trial::{self, Disk},
};
use crate::freebsd::FreeBsd;
use conform::{
    Line,
    sys::{Memory, Sys},
};
use core::{fmt::Write, sync::atomic::Ordering::Relaxed};

/// Reads a block every 50 ms, for ever. A disk may go and come.
pub fn run(sys: &mut FreeBsd, disk: Disk, shared: &Shared) -> ! {
    let at = disk as usize;
    let mut memory = Memory::new(sys, 4096);
    let mut dice = Dice::new(at as u64);
    loop {
        let node = disk.block_device(sys);
        let fd = node.and_then(|node| sys.open(node, sys_bindings::O_RDONLY as i32).ok());
        let Some(fd) = fd else {
            sys.sleep_ms(20);
            continue;
        };
        loop {
            let lba = dice.below(trial::NUMBERED as usize / 8) * 8;
            let start = sys.now();
            shared.began[at].store(start, Relaxed);
            let is_read = sys.pread(fd, &mut memory, 4096, lba * 512);
            let us = (sys.now() - start) / 1000;
            shared.began[at].store(0, Relaxed);
            if !is_read {
                shared.errors[at].fetch_add(1, Relaxed);
                break;
            }
            shared.longest[at].fetch_max(us, Relaxed);
            shared.reads[at].fetch_add(1, Relaxed);
            if trial::differs(memory.bytes(), lba as u32, 0).is_some() {
                shared.wrong[at].fetch_add(1, Relaxed);
            }
            sys.sleep_ms(50);
        }
        sys.close(fd);
        sys.sleep_ms(20);
    }
}

/// How the disks' own drivers have fared since it was last asked: in words, and what
/// was wrong, if anything. `comes_and_goes`: a disk that is not there is no error.
///
/// An error of the disk on AHCI is told, and is none: QEMU's AHCI does not say which
/// command has failed, and ahci(4) then fails that of a neighbour (docs/upstream.md).
pub fn fare(
    sys: &mut FreeBsd,
    shared: &Shared,
    patience_ms: u64,
    comes_and_goes: bool,
) -> (Line, Option<&'static str>) {
    let now = sys.now();
    let mut words = Line::new();
    let mut fault = None;
    for disk in Disk::ALL {
        let at = disk as usize;
        let began = shared.began[at].load(Relaxed);
        let waits = match began {
            0 => 0,
            began => now.saturating_sub(began) / 1_000_000,
        };
        let longest = (shared.longest[at].swap(0, Relaxed) / 1000).max(waits);
        let (errors, wrong) = (
            shared.errors[at].swap(0, Relaxed),
            shared.wrong[at].swap(0, Relaxed),
        );
        let reads = shared.reads[at].swap(0, Relaxed);
        let _ = write!(words, " {} {reads} in {longest} ms", disk.name());
        if errors != 0 {
            let _ = write!(words, " {errors} errors");
        }
        if wrong != 0 {
            fault = Some("a disk's own driver has read what is not there");
        } else if longest > patience_ms {
            fault = Some("a disk's own driver has waited too long");
        } else if errors != 0 && !comes_and_goes && disk != Disk::Ata {
            fault = Some("a disk's own driver has failed");
        }
    }
    (words, fault)
}
