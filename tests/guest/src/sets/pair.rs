//! Beside pass(4), and in its place.

use super::{POLLIN, RDWR, Sheet, pattern};
use conform::{
    command::Command,
    sys::{Memory, Sys},
};
use sys_bindings as sys;

/// Both drivers on one disk at once: neither sees what the other has queued,
/// each reads what the other wrote, and pass(4) stays when qpass(4) goes.
pub fn pair(sheet: &mut Sheet<'_>, id: usize) {
    const ROUNDS: usize = 100;
    let ours = sheet.sys.wait_disk();
    let theirs = sheet.sys.disk_of("pass");
    let (Some(ours), Some(theirs)) = (ours, theirs) else {
        sheet.skip("pair", "the kernel has no pass(4)");
        return;
    };
    let open = |sheet: &mut Sheet<'_>, node| sheet.sys.open(node, RDWR).unwrap_or(-1);
    let (a, b) = (open(sheet, ours), open(sheet, theirs));
    let mut one = Command::new(sheet.sys, 8192);
    let mut two = Command::new(sheet.sys, 8192);
    let (mut bad, mut differs, mut lost) = (0, 0, 0);
    for round in 0..ROUNDS {
        let lba = round as u32 * 64;
        // Each writes, both at once; then each reads what the other wrote.
        pattern(&mut one.data, round);
        pattern(&mut two.data, round + 1000);
        one.rw10(true, lba, 16);
        two.rw10(true, lba + 16, 16);
        for step in 0..2 {
            if step == 1 {
                one.rw10(false, lba + 16, 16);
                two.rw10(false, lba, 16);
            }
            let queued = [one.queue(sheet.sys, a), two.queue(sheet.sys, b)];
            for (fd, command, queued) in [(a, &one, queued[0]), (b, &two, queued[1])] {
                let is_theirs = fd == b;
                let limit = if is_theirs { 2000 } else { 20_000 };
                let mut polled = sheet.sys.poll(fd, POLLIN, limit);
                let got = command.get(sheet.sys, fd);
                let status = command.ended().status;
                if is_theirs && polled == Ok(0) && got == Ok(()) {
                    // It is done, and poll(2) was not told.
                    lost += 1;
                    polled = Ok(POLLIN);
                }
                let all = (queued, polled, got, status);
                if all != (Ok(()), Ok(POLLIN), Ok(()), sys::CAM_REQ_CMP) {
                    bad += 1;
                    let by = if fd == a { ours } else { theirs };
                    sheet.note(format_args!("guest: {by} {round} {step}: {all:x?}"));
                }
            }
        }
        let mut expected = Memory::new(sheet.sys, 8192);
        pattern(&mut expected, round + 1000);
        differs += usize::from(one.data.bytes()[..8192] != expected.bytes()[..8192]);
        pattern(&mut expected, round);
        differs += usize::from(two.data.bytes()[..8192] != expected.bytes()[..8192]);
        expected.unmap(sheet.sys);
    }
    if lost != 0 {
        sheet.note(format_args!(
            "guest: {theirs}: poll(2) of pass(4) missed {lost} of {} completions",
            2 * ROUNDS
        ));
    }
    sheet.check("both work at once", ours, bad == 0);
    sheet.check("each reads what the other wrote", theirs, differs == 0);
    // pass(4) has one queue of a device for all; what is qpass's is not in it.
    let _ = one.queue(sheet.sys, a);
    let _ = sheet.sys.poll(a, POLLIN, 20_000);
    let crossed = two.get(sheet.sys, b).is_ok();
    sheet.check("no completion crosses over", theirs, !crossed);
    let _ = one.get(sheet.sys, a);
    sheet.sys.close(a);
    let unloaded = crate::unload(sheet.sys, id);
    sheet.check(
        "qpass unloads under pass(4)'s open",
        ours,
        unloaded == Ok(()),
    );
    two.rw10(false, 0, 16);
    let sent = two.send(sheet.sys, b);
    let works = sent == Ok(()) && two.ended().status == sys::CAM_REQ_CMP;
    sheet.check("pass(4) works on", theirs, works);
    sheet.sys.close(b);
    one.free(sheet.sys);
    two.free(sheet.sys);
}

/// The driver under pass(4)'s name, on a kernel without that.
pub fn replace(sheet: &mut Sheet<'_>) {
    let node = sheet.sys.disk_of("pass");
    let none = sheet.sys.nodes("qpass").next().is_none();
    sheet.check("the nodes are /dev/passN", "", node.is_some());
    sheet.check("and not /dev/qpassN", "", none);
    let Some(node) = node else { return };
    let score = conform::run(sheet.sys, node);
    sheet.score.passed += score.passed;
    sheet.score.failed += score.failed;
    sheet.score.skipped += score.skipped;
}
