//! What reaches a SIM is what an in-tree peripheral would have sent.

use super::super::{Batch, RDWR};
use super::trial::{
    Disk, EAGAIN, EINVAL, EPERM, Ended, MS, Node, Sent, Trial, cancel, enter, entered, holds,
    tag_of,
};
use conform::{
    Outcome,
    command::Command,
    sys::{Memory, Sys},
};
use sys_bindings as sys;

/// The ways in which a CCB is sent.
const WAYS: [&str; 3] = ["CAMIOQUEUE", "QPIOC_ENTER", "CAMIOCOMMAND"];

fn send(t: &mut Trial<'_>, node: &Node, command: &Command, way: &str) -> Sent {
    match way {
        "CAMIOQUEUE" => t.queue(node, command),
        "QPIOC_ENTER" => t.enter_one(node, command),
        _ => t.command(node, command),
    }
}

/// XPT_REL_SIMQ's flag that sets a device's openings.
const ADJUST_OPENINGS: u32 = 1;

/// A CCB without data keeps its data format: the NVMe SIM follows a null pointer.
pub fn n1(t: &mut Trial<'_>) -> Outcome {
    let mut command = Command::new(t.sys, 4096);
    for disk in Disk::ALL {
        let Some(node) = t.open(disk) else { continue };
        for format in [
            sys::CAM_DATA_BIO,
            sys::CAM_DATA_SG,
            sys::CAM_DATA_SG_PADDR,
            sys::CAM_DATA_PADDR,
        ] {
            for way in WAYS {
                node.without_data(&mut command);
                command.hdr().flags |= format;
                let what = (disk.name(), way, format);
                let answer = send(t, &node, &command, way);
                // A physical address that is none may be refused as one.
                if answer != Err(EPERM) {
                    holds!(what, answer, Ok(sys::CAM_REQ_CMP));
                }
                // A direction, and no length.
                node.without_data(&mut command);
                command.hdr().flags = sys::CAM_DIR_IN | sys::CAM_DEV_QFRZDIS | format;
                let answer = send(t, &node, &command, way);
                let good = matches!(answer, Ok(sys::CAM_REQ_CMP) | Err(EINVAL | EPERM));
                holds!((what, "CAM_DIR_IN", answer), good, true);
            }
        }
        if disk == Disk::Nvme {
            // The very command: a READ.
            for format in [sys::CAM_DATA_BIO, sys::CAM_DATA_SG] {
                node.without_data(&mut command);
                command.ccb.ccb_mut().nvmeio.cmd.opc = 2;
                command.hdr().flags |= format;
                let answer = t.queue(&node, &command);
                t.see(format_args!("READ without data {answer:x?}"));
            }
        }
        t.sys.close(node.fd);
    }
    t.skipped = None;
    Ok(())
}

/// A freeze that a CCB asks for stays when the open has gone.
pub fn n2(t: &mut Trial<'_>) -> Outcome {
    let mut command = Command::new(t.sys, 4096);
    for disk in Disk::ALL {
        for way in WAYS {
            for flags in [0, sys::CAM_DEV_QFRZDIS] {
                let Some(node) = t.open(disk) else { continue };
                node.without_data(&mut command);
                command.hdr().flags = sys::CAM_DIR_NONE | sys::CAM_DEV_QFREEZE | flags;
                let answer = send(t, &node, &command, way);
                t.sys.close(node.fd);
                let what = (disk.name(), way, flags);
                holds!(what, answer, Ok(sys::CAM_REQ_CMP));
                holds!((what, "then it reads"), t.answers(disk, 4000), true);
            }
        }
        // The sender dies.
        let Some(node) = t.open(disk) else { continue };
        node.without_data(&mut command);
        command.hdr().flags = sys::CAM_DIR_NONE | sys::CAM_DEV_QFREEZE;
        t.sys.close(node.fd);
        let sender = |sys: &mut crate::freebsd::FreeBsd| {
            let fd = sys.open(node.path, RDWR).unwrap_or(-1);
            i32::from(command.queue(sys, fd).is_err())
        };
        holds!(
            (disk.name(), "a child"),
            t.within(5000, sender),
            Ended::With(0)
        );
        holds!((disk.name(), "of a child"), t.answers(disk, 4000), true);
        // An error freezes too, where the CCB does not say that it shall not.
        if disk == Disk::Ata {
            continue;
        }
        for reaped in [true, false] {
            let Some(node) = t.open(disk) else { continue };
            node.without_data(&mut command);
            let ccb = command.ccb.ccb_mut();
            if disk == Disk::Nvme {
                // Without data, by its lower bits.
                ccb.nvmeio.cmd.opc = 0x7c;
            } else {
                command.scsi(&[0xff, 0, 0, 0, 0, 0], sys::CAM_DIR_NONE, 0);
            }
            command.hdr().flags = sys::CAM_DIR_NONE;
            let queued = command.queue(t.sys, node.fd);
            holds!((disk.name(), "nonsense"), queued, Ok(()));
            if reaped {
                let _ = t.reap(&node, &command, 5000);
            }
            t.sys.close(node.fd);
            let what = (disk.name(), "after an error", reaped);
            holds!(what, t.answers(disk, 4000), true);
        }
    }
    t.skipped = None;
    Ok(())
}

/// XPT_REL_SIMQ with a number of openings that turns negative in CAM.
pub fn f3(t: &mut Trial<'_>) -> Outcome {
    let mut command = Command::new(t.sys, 4096);
    for disk in Disk::ALL {
        let Some(node) = t.open(disk) else { continue };
        for way in WAYS {
            for openings in [0, 65536, 0x8000_0000, 0x8000_0001, u32::MAX] {
                command.immediate(sys::XPT_REL_SIMQ);
                let ccb = command.ccb.ccb_mut();
                ccb.crs.release_flags = ADJUST_OPENINGS;
                ccb.crs.openings = openings;
                let answer = send(t, &node, &command, way);
                // None at all changes nothing, and may pass for that.
                if !(openings == 0 && answer == Ok(sys::CAM_REQ_CMP)) {
                    holds!((disk.name(), way, openings), answer, Err(EINVAL));
                }
            }
        }
        // One that a disk can have.
        command.immediate(sys::XPT_REL_SIMQ);
        let ccb = command.ccb.ccb_mut();
        ccb.crs.release_flags = ADJUST_OPENINGS;
        ccb.crs.openings = 16;
        let answer = t.command(&node, &command);
        holds!((disk.name(), 16), answer, Ok(sys::CAM_REQ_CMP));
        holds!(
            (disk.name(), "with 16 it reads"),
            t.answers(disk, 4000),
            true
        );
        t.sys.close(node.fd);
        holds!(
            (disk.name(), "closed, it reads"),
            t.answers(disk, 4000),
            true
        );
    }
    t.skipped = None;
    Ok(())
}

/// CAM_HIGH_POWER: a disk waits on CAM's list for another disk's commands, and
/// is freed while it is on it.
pub fn f2(t: &mut Trial<'_>) -> Outcome {
    const N: usize = 6;
    if !t.has_monitor() {
        return Ok(());
    }
    let (Some(slow), Some(other)) = (t.open(Disk::Nvme), t.open(Disk::Scsi)) else {
        return Ok(());
    };
    holds!(
        "the NVMe disk is slow",
        t.throttle_bytes(Disk::Nvme, 1024),
        true
    );
    let mut commands: [Command; N] = core::array::from_fn(|_| Command::new(t.sys, 4096));
    for (i, command) in commands.iter_mut().enumerate() {
        let to = command.data.address();
        slow.transfer(command, false, i as u32 * 8, to, 4096);
        command.hdr().flags |= sys::CAM_HIGH_POWER;
        holds!(("queue", i), command.queue(t.sys, slow.fd), Ok(()));
    }
    let mut one = Command::new(t.sys, 4096);
    let to = one.data.address();
    other.transfer(&mut one, false, 0, to, 4096);
    one.hdr().flags |= sys::CAM_HIGH_POWER;
    holds!("queue to the other", one.queue(t.sys, other.fd), Ok(()));
    // A slow kernel's disk is not that slow: some 8 s would pass otherwise.
    let polled = t.sys.poll(other.fd, sys::POLLIN as i16, 1500);
    let quick = match polled {
        Ok(0) => Err(EAGAIN),
        _ => t.reap(&other, &one, 0),
    };
    let answers = t.answers(Disk::Scsi, 1500);
    // Whatever came of that: the rest of what led to a freed device on the list.
    if quick.is_err() {
        let told = cancel(t.sys, other.fd, one.ccb.address());
        t.see(format_args!("cancel {told:?}"));
        let _ = t.reap(&other, &one, 2000);
    }
    let mut release = Command::new(t.sys, 1);
    for _ in 0..4 {
        release.immediate(sys::XPT_REL_SIMQ);
        let _ = release.send(t.sys, other.fd);
    }
    t.sys.close(other.fd);
    let pulled = t.sys.pull();
    t.sys.sleep_ms(1000);
    t.let_go();
    let mut ended = [Err(EAGAIN); N];
    for (command, ended) in commands.iter().zip(&mut ended) {
        *ended = t.reap(&slow, command, 10_000);
    }
    t.sys.close(slow.fd);
    t.sys.arrive();
    holds!("the other's command", quick, Ok(sys::CAM_REQ_CMP));
    holds!("the other's own driver reads", answers, true);
    holds!("the disk goes", pulled, true);
    holds!("the slow disk's", ended, [Ok(sys::CAM_REQ_CMP); N]);
    Ok(())
}

/// Reads of a program's, of two kinds in turn, so that the SIM freezes its queue
/// at every change, outrank the disk's own driver.
pub fn f7(t: &mut Trial<'_>) -> Outcome {
    const N: usize = 30;
    const LIMIT_MS: u64 = 5000;
    if !t.has_monitor() {
        return Ok(());
    }
    let Some(node) = t.open(Disk::Ata) else {
        return Ok(());
    };
    holds!("the ATA disk is slow", t.throttle(Disk::Ata, 60), true);
    let load = t.start(|sys| {
        let mut commands: [Command; N] = core::array::from_fn(|_| Command::new(sys, 4096));
        let mut batch = Batch::new(sys, N);
        let prepare = |commands: &mut [Command; N], i: usize| {
            let to = commands[i].data.address();
            node.transfer(&mut commands[i], false, i as u32 * 8, to, 4096);
            if i.is_multiple_of(2) {
                // READ FPDMA QUEUED: the count is in the features, and the SIM
                // writes the tag.
                let ccb = commands[i].ccb.ccb_mut();
                ccb.ataio.cmd.flags = sys::CAM_ATAIO_FPDMA as u8;
                ccb.ataio.cmd.command = 0x60;
                ccb.ataio.cmd.features = 8;
                ccb.ataio.cmd.sector_count = 0;
            }
            commands[i].hdr().pinfo.priority = 0;
        };
        for i in 0..N {
            prepare(&mut commands, i);
            batch.set(i, commands[i].ccb.address(), i as u64);
        }
        let mut submit = N;
        loop {
            let mut what = entered(&batch, submit, N, 1);
            what.timeout = 10_000 * MS;
            match enter(sys, node.fd, what) {
                Ok((_, reaped @ 1.., 0, 0)) => {
                    submit = reaped as usize;
                    for j in 0..submit {
                        let i = tag_of(&batch, j) as usize % N;
                        prepare(&mut commands, i);
                        batch.set(j, commands[i].ccb.address(), i as u64);
                    }
                }
                _ => return 2,
            }
        }
    });
    t.sys.sleep_ms(1500);
    let mut worst = 0;
    for _ in 0..4 {
        let start = t.sys.now();
        let answers = t.answers(Disk::Ata, LIMIT_MS);
        worst = worst.max((t.sys.now() - start) / MS);
        if !answers {
            break;
        }
    }
    let ended = load.and_then(|load| {
        let ended = t.sys.wait_ms(load, 0);
        t.sys.kill(load, crate::freebsd::SIGKILL);
        t.sys.wait_ms(load, 10_000);
        ended
    });
    t.let_go();
    t.see(format_args!("longest wait {worst} ms"));
    holds!("the load went on", ended, None);
    holds!(
        ("the longest wait, in ms", worst),
        worst < LIMIT_MS * t.slow,
        true
    );
    Ok(())
}

/// NVMe commands that make the controller take an address from where there is
/// none of the driver's.
pub fn m6(t: &mut Trial<'_>) -> Outcome {
    let Some(node) = t.open(Disk::Nvme) else {
        return Ok(());
    };
    let mut command = Command::new(t.sys, 65536);
    let to = command.data.address();
    let admin = |command: &mut Command, opc: u8, cdw10: u32| {
        node.without_data(command);
        let ccb = command.ccb.ccb_mut();
        ccb.ccb_h.func_code = sys::XPT_NVME_ADMIN;
        ccb.nvmeio.cmd.opc = opc;
        ccb.nvmeio.cmd.nsid = 0;
        ccb.nvmeio.cmd.cdw10 = cdw10;
    };
    for way in WAYS {
        // Fewer blocks than bytes, and more, and a whole number of neither.
        for (write, blocks, len) in [
            (false, 4u32, 4096usize),
            (true, 4, 4096),
            (false, 16, 4096),
            (true, 16, 4096),
            (false, 8, 4095),
            (false, 8, 512),
        ] {
            node.transfer(&mut command, write, super::trial::SCRATCH, to, len);
            command.ccb.ccb_mut().nvmeio.cmd.cdw12 = blocks - 1;
            let answer = send(t, &node, &command, way);
            let what = (way, "blocks and bytes", write, blocks, len);
            holds!(what, answer, Err(EINVAL));
        }
        // COMPARE too.
        node.transfer(&mut command, true, 0, to, 4096);
        let ccb = command.ccb.ccb_mut();
        (ccb.nvmeio.cmd.opc, ccb.nvmeio.cmd.cdw12) = (5, 15);
        let answer = send(t, &node, &command, way);
        holds!((way, "compare"), answer, Err(EINVAL));
        // FUSE in the low bits, PSDT in the high ones.
        for fuse in [0x01, 0x02, 0x40, 0x80, 0xc0] {
            node.transfer(&mut command, false, 0, to, 4096);
            command.ccb.ccb_mut().nvmeio.cmd.fuse = fuse;
            let answer = send(t, &node, &command, way);
            holds!((way, "fuse byte", fuse), answer, Err(EINVAL));
        }
        // CREATE I/O SUBMISSION QUEUE, COMPLETION QUEUE, DOORBELL BUFFER CONFIG,
        // and SET FEATURES, Host Memory Buffer.
        for (opc, cdw10) in [(0x01, 0), (0x05, 0), (0x7c, 0), (0x09, 0x0d)] {
            admin(&mut command, opc, cdw10);
            let answer = send(t, &node, &command, way);
            holds!((way, "admin", opc, cdw10), answer, Err(EPERM));
        }
        // What is harmless goes on working: GET FEATURES, Number of Queues.
        admin(&mut command, 0x0a, 7);
        let answer = send(t, &node, &command, way);
        holds!((way, "get features"), answer, Ok(sys::CAM_REQ_CMP));
    }
    t.sys.close(node.fd);
    Ok(())
}

/// A physical address in an NVMe CCB, which the SIM takes for a kernel address.
pub fn l8(t: &mut Trial<'_>) -> Outcome {
    const ALLOW: &str = "kern.cam.qpass.allow_paddr";
    let Some(node) = t.open(Disk::Nvme) else {
        return Ok(());
    };
    let mut command = Command::new(t.sys, 4096);
    let paddr = |command: &mut Command| {
        node.transfer(command, false, 0, 0x10_0000, 4096);
        command.hdr().flags |= sys::CAM_DATA_PADDR;
    };
    for way in WAYS {
        paddr(&mut command);
        let answer = send(t, &node, &command, way);
        let refused = matches!(answer, Err(EPERM | EINVAL));
        holds!((way, "not allowed", answer), refused, true);
    }
    if !t.sys.set_sysctl(ALLOW, 1) {
        t.see(format_args!("{ALLOW} cannot be set"));
        return Ok(());
    }
    for way in WAYS {
        paddr(&mut command);
        let answer = send(t, &node, &command, way);
        if answer != Err(EINVAL) {
            t.sys.set_sysctl(ALLOW, 0);
        }
        holds!((way, "allowed"), answer, Err(EINVAL));
    }
    t.sys.set_sysctl(ALLOW, 0);
    t.sys.close(node.fd);
    Ok(())
}

/// XPT_MMC_IO that names data, and no direction.
pub fn l12(t: &mut Trial<'_>) -> Outcome {
    let Some(node) = t.open(Disk::Scsi) else {
        return Ok(());
    };
    let mut command = Command::new(t.sys, 4096);
    let mut named = Memory::new(t.sys, 4096);
    for way in WAYS {
        command.data.bytes_mut().fill(0xa5);
        named.bytes_mut().fill(0);
        // SAFETY: plain data, in a page of its own.
        let data = unsafe { &mut *(named.address() as *mut sys::mmc_data) };
        data.len = 512;
        data.data = (command.data.address() as *mut u8).cast();
        data.flags = sys::MMC_DATA_READ;
        command.immediate(sys::XPT_MMC_IO);
        let ccb = command.ccb.ccb_mut();
        ccb.ccb_h.flags = sys::CAM_DIR_NONE | sys::CAM_DEV_QFRZDIS;
        ccb.ccb_h.timeout = 5000;
        ccb.mmcio.cmd.opcode = 17;
        ccb.mmcio.cmd.data = data;
        let answer = send(t, &node, &command, way);
        t.see(format_args!("{way} {answer:x?}"));
        let is_whole = command.data.bytes().iter().all(|b| *b == 0xa5);
        holds!((way, "the data is as it was"), is_whole, true);
        // SAFETY: plain data.
        let back = unsafe { command.ccb.ccb().mmcio.cmd.data } as usize;
        holds!((way, "the pointer comes back"), back, named.address());
    }
    t.sys.close(node.fd);
    Ok(())
}
