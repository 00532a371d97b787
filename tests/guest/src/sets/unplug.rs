//! A disk that is pulled out under load.

use super::{Batch, RDWR, Sheet};
use conform::{command::Command, sys::Sys};
use sys_bindings as sys;

/// Reads under way while the disk is pulled: each comes back once or goes with
/// its open; and the disk works when it is back.
pub fn unplug(sheet: &mut Sheet<'_>) {
    const N: usize = 64;
    if !sheet.sys.can_depart() {
        sheet.skip("unplug", "there is no monitor to pull the disk");
        return;
    }
    for round in ["1", "2", "3", "4", "5"] {
        let Some(node) = sheet.sys.wait_disk() else {
            sheet.check("the disk is there", round, false);
            return;
        };
        let Ok(fd) = sheet.sys.open(node, RDWR) else {
            sheet.check("open", node, false);
            return;
        };
        let mut batch = Batch::new(sheet.sys, N);
        let mut command = Command::new(sheet.sys, 65536);
        command.rw10(false, 0, 128);
        for i in 0..N {
            batch.set(i, command.ccb.address(), i as u64);
        }
        let first = batch.enter(sheet.sys, fd, N, 0);
        sheet.check("64 reads are queued", node, first == Ok((N, 0, 0, 0)));
        sheet.sys.ask_to_pull();
        // Goes on until the device has gone.
        let (mut submitted, mut reaped, mut gone) = (N, 0, false);
        for _ in 0..4_000_000u32 {
            match batch.enter(sheet.sys, fd, N / 2, N / 2) {
                Ok((s, r, se, re)) => {
                    submitted += s;
                    reaped += r;
                    gone = [se, re].contains(&(sys::ENXIO as i32));
                }
                Err(errno) => gone = errno == sys::ENXIO as i32,
            }
            if gone {
                break;
            }
        }
        sheet.check("the call ends with ENXIO", node, gone);
        sheet.check("more were reaped than were at first", node, reaped > N);
        sheet.check("none came twice", node, reaped <= submitted);
        sheet.sys.close(fd);
        sheet.sys.arrive();
        let back = sheet.sys.wait_disk();
        let works = back.is_some_and(|node| {
            let Ok(fd) = sheet.sys.open(node, RDWR) else {
                return false;
            };
            let sent = command.send(sheet.sys, fd);
            let good = sent == Ok(()) && command.ended().status == sys::CAM_REQ_CMP;
            sheet.sys.close(fd);
            good
        });
        sheet.check("a new disk works, round", round, works);
        command.free(sheet.sys);
        batch.memory.unmap(sheet.sys);
    }
}
