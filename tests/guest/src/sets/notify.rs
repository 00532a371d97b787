//! kqueue(2) and poll(2).

use super::{POLLIN, RDWR, Sheet};
use conform::{
    cases::event,
    command::Command,
    sys::{Fd, Sys, call},
};
use sys_bindings as sys;

/// kqueue(2) and poll(2): every completion of four opens in one queue is told,
/// whichever way it is asked for.
pub fn notify(sheet: &mut Sheet<'_>) {
    const OPENS: usize = 4;
    const ROUNDS: usize = 500;
    let Some(node) = sheet.sys.wait_disk() else {
        sheet.check("the disk is there", "", false);
        return;
    };
    let Ok(kq) = sheet.sys.kqueue() else {
        sheet.check("kqueue", "", false);
        return;
    };
    let mut command = Command::new(sheet.sys, 4096);
    command.rw10(false, 0, 8);
    let mut fds = [0; OPENS];
    for fd in &mut fds {
        *fd = sheet.sys.open(node, RDWR).unwrap_or(-1);
        let change = event(*fd, sys::EVFILT_READ, sys::EV_ADD | sys::EV_CLEAR);
        let added = sheet.sys.kevent(kq, &[change], &mut [], 0);
        sheet.check("EV_ADD", node, added == Ok(0));
    }
    let (mut queued, mut told, mut reaped, mut late) = (0, 0, 0, 0);
    let mut events = [event(0, 0, 0); OPENS];
    for round in 0..ROUNDS {
        for fd in &fds[..=round % OPENS] {
            queued += usize::from(command.queue(sheet.sys, *fd).is_ok());
        }
        while reaped < queued {
            let Ok(n @ 1..) = sheet.sys.kevent(kq, &[], &mut events, 20_000) else {
                late += 1;
                break;
            };
            told += n;
            for event in &events[..n] {
                while command.get(sheet.sys, event.ident as Fd).is_ok() {
                    reaped += 1;
                }
            }
        }
    }
    sheet.check(
        "kqueue tells of every completion",
        node,
        late == 0 && reaped == queued,
    );
    sheet.check(
        "and not more often than there are any",
        node,
        told <= queued,
    );
    // Nothing is ready: neither says that there is.
    let quiet = sheet.sys.kevent(kq, &[], &mut events, 100);
    sheet.check("kqueue is quiet then", node, quiet == Ok(0));
    let quiet = sheet.sys.poll(fds[0], POLLIN, 100);
    sheet.check("poll is quiet then", node, quiet == Ok(0));
    let mut missed = 0;
    for round in 0..ROUNDS {
        let fd = fds[round % OPENS];
        let queued = command.queue(sheet.sys, fd);
        let polled = sheet.sys.poll(fd, POLLIN, 20_000);
        let got = command.get(sheet.sys, fd);
        missed += usize::from((queued, polled, got) != (Ok(()), Ok(POLLIN), Ok(())));
    }
    sheet.check("poll tells of every completion", node, missed == 0);
    // Room, where there is a limit.
    // SAFETY: integers.
    let mut limit: sys::qpass_limit = unsafe { core::mem::zeroed() };
    limit.requests = 2;
    let _ = call(sheet.sys, fds[0], sys::QPC_QPIOC_LIMIT, limit);
    let change = event(fds[0], sys::EVFILT_WRITE, sys::EV_ADD);
    let _ = sheet.sys.kevent(kq, &[change], &mut [], 0);
    let two = [(); 2].map(|()| command.queue(sheet.sys, fds[0]));
    let third = command.queue(sheet.sys, fds[0]);
    let is_full = two == [Ok(()); 2] && third == Err(sys::EAGAIN as i32);
    sheet.check("a third of two is EAGAIN", node, is_full);
    let _ = sheet.sys.poll(fds[0], POLLIN, 20_000);
    let _ = command.get(sheet.sys, fds[0]);
    let mut room = 0;
    for _ in 0..4 {
        if let Ok(n) = sheet.sys.kevent(kq, &[], &mut events, 20_000) {
            let is_room = |e: &&sys::kevent| e.filter == sys::EVFILT_WRITE as i16;
            room += events[..n].iter().filter(is_room).count();
        }
        if room != 0 {
            break;
        }
    }
    sheet.check("EVFILT_WRITE tells of room", node, room != 0);
    for fd in fds {
        sheet.sys.close(fd);
    }
    sheet.sys.close(kq);
    command.free(sheet.sys);
}
