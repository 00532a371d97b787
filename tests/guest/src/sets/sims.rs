//! Every SIM that there is.

use super::{Batch, POLLIN, RDWR, Sheet, info, pattern};
use crate::freebsd::{FreeBsd, Kind};
use conform::{
    command::{BLOCK, Command},
    sys::{Fd, Memory, Sys},
};
use sys_bindings as sys;

/// Makes a read or a write of `blocks` blocks of whatever the device speaks.
pub(super) fn transfer(
    command: &mut Command,
    kind: &Kind,
    write: bool,
    lba: u32,
    blocks: u16,
    len: usize,
) {
    let direction = if write {
        sys::CAM_DIR_OUT
    } else {
        sys::CAM_DIR_IN
    };
    command.rw10(write, lba, blocks);
    // SAFETY: a CCB of plain data.
    unsafe {
        let data = command.csio().data_ptr;
        let ccb = command.ccb.ccb_mut();
        match kind.protocol {
            sys::PROTO_ATA => {
                *ccb = core::mem::zeroed();
                let io = &mut ccb.ataio;
                io.ccb_h.func_code = sys::XPT_ATA_IO;
                io.cmd.flags = (sys::CAM_ATAIO_48BIT | sys::CAM_ATAIO_DMA) as u8;
                io.cmd.command = if write { 0x35 } else { 0x25 };
                io.cmd.device = 0x40;
                let [low, mid, high, rest] = lba.to_le_bytes();
                (io.cmd.lba_low, io.cmd.lba_mid, io.cmd.lba_high) = (low, mid, high);
                io.cmd.lba_low_exp = rest;
                let [low, high] = blocks.to_le_bytes();
                (io.cmd.sector_count, io.cmd.sector_count_exp) = (low, high);
                (io.data_ptr, io.dxfer_len) = (data, len as u32);
            }
            sys::PROTO_NVME => {
                *ccb = core::mem::zeroed();
                let io = &mut ccb.nvmeio;
                io.ccb_h.func_code = sys::XPT_NVME_IO;
                io.cmd.opc = if write { 1 } else { 2 };
                io.cmd.nsid = kind.lun as u32;
                io.cmd.cdw10 = lba;
                io.cmd.cdw12 = u32::from(blocks) - 1;
                (io.data_ptr, io.dxfer_len) = (data, len as u32);
            }
            _ => command.csio().dxfer_len = len as u32,
        }
        let hdr = command.hdr();
        hdr.flags = direction | sys::CAM_DEV_QFRZDIS;
        hdr.retry_count = 1;
        hdr.timeout = 30_000;
    }
}

/// A command that the device does not know.
fn nonsense(command: &mut Command, kind: &Kind) {
    transfer(command, kind, false, 0, 8, 4096);
    match kind.protocol {
        sys::PROTO_ATA => command.ccb.ccb_mut().ataio.cmd.command = 0xff,
        sys::PROTO_NVME => command.ccb.ccb_mut().nvmeio.cmd.opc = 0x7c,
        _ => command.scsi(&[0xff, 0, 0, 0, 0, 0], sys::CAM_DIR_NONE, 0),
    }
}

/// The status of an unknown command.
fn error_of(sys: &mut FreeBsd, fd: Fd, command: &mut Command, kind: &Kind) -> Option<u32> {
    nonsense(command, kind);
    command.queue(sys, fd).ok()?;
    let _ = sys.poll(fd, POLLIN, 20_000);
    command.get(sys, fd).ok()?;
    Some(command.ended().status)
}

/// Every SIM that there is: data arrives, long transfers too, errors are told,
/// and counters add up.
pub fn sims(sheet: &mut Sheet<'_>) {
    let mut seen = [false; 4];
    for node in sheet.sys.nodes("qpass") {
        let Some(kind) = sheet.sys.kind(node) else {
            continue;
        };
        let at = match (kind.protocol, kind.device_type) {
            (sys::PROTO_SCSI, 0) => 0,
            (sys::PROTO_ATA, _) => 1,
            (sys::PROTO_NVME, _) => 2,
            (sys::PROTO_SCSI | sys::PROTO_ATAPI, 5) => 3,
            _ => continue,
        };
        seen[at] = true;
        one_sim(sheet, node, &kind, at);
    }
    for (i, name) in ["SCSI disk", "ATA disk", "NVMe disk", "CD"]
        .iter()
        .enumerate()
    {
        if !seen[i] {
            sheet.skip(name, "there is none, or the kernel has no driver for it");
        }
    }
}

fn one_sim(sheet: &mut Sheet<'_>, node: &str, kind: &Kind, which: usize) {
    const N: usize = 32;
    let Ok(fd) = sheet.sys.open(node, RDWR) else {
        sheet.check("open", node, false);
        return;
    };
    let is_cd = which == 3;
    let block = if is_cd { 2048 } else { BLOCK };
    let mut commands: [Command; N] = core::array::from_fn(|_| Command::new(sheet.sys, 4096));
    let mut batch = Batch::new(sheet.sys, N);
    let before = info(sheet.sys, fd);
    let rounds: &[bool] = if is_cd { &[false] } else { &[true, false] };
    for write in rounds {
        for (i, command) in commands.iter_mut().enumerate() {
            let blocks = (4096 / block) as u16;
            transfer(
                command,
                kind,
                *write,
                (i as u32) * u32::from(blocks),
                blocks,
                4096,
            );
            if *write {
                pattern(&mut command.data, i);
            } else {
                command.data.bytes_mut().fill(0xee);
            }
            batch.set(i, command.ccb.address(), i as u64);
        }
        let done = batch.enter(sheet.sys, fd, N, N);
        let good = (0..N).all(|i| batch.status(i) == sys::CAM_REQ_CMP);
        let what = if *write { "32 writes" } else { "32 reads" };
        sheet.check(what, node, done == Ok((N, N, 0, 0)) && good);
    }
    if !is_cd {
        let mut expected = Memory::new(sheet.sys, 4096);
        let mut same = true;
        for (i, command) in commands.iter().enumerate() {
            pattern(&mut expected, i);
            same &= command.data.bytes()[..4096] == expected.bytes()[..4096];
        }
        sheet.check("what is read is what was written", node, same);
        expected.unmap(sheet.sys);
    }
    // As long as the SIM takes, and a block more.
    let maxio = info(sheet.sys, fd).map_or(0, |i| i.maxio as usize);
    let most = maxio.min(16 << 20) / block;
    let mut long = Command::new(sheet.sys, (most + 1) * block);
    if let (Ok(blocks), false) = (u16::try_from(most), maxio == 0) {
        transfer(&mut long, kind, false, 0, blocks, most * block);
        let queued = long.queue(sheet.sys, fd);
        let polled = sheet.sys.poll(fd, POLLIN, 20_000);
        let got = long.get(sheet.sys, fd);
        let good = long.ended().status == sys::CAM_REQ_CMP;
        let is_done = (queued, polled, got) == (Ok(()), Ok(POLLIN), Ok(()));
        if !(is_done && good) {
            let status = long.ended().status;
            sheet.note(format_args!(
                "guest: {} blocks: {queued:?} {polled:?} {got:?} status {status:#x}",
                most
            ));
        }
        sheet.check("the longest read", node, is_done && good);
        transfer(&mut long, kind, false, 0, blocks, (most + 1) * block);
        let refused = long.queue(sheet.sys, fd);
        sheet.check(
            "a longer one is EINVAL",
            node,
            refused == Err(sys::EINVAL as i32),
        );
    }
    long.free(sheet.sys);
    // QEMU's AHCI does not tell which command it was, and so the driver hands it
    // back to be sent again, but for those in its first slot.
    let wanted: &[u32] = match which {
        1 => &[sys::CAM_ATA_STATUS_ERROR, sys::CAM_REQUEUE_REQ],
        2 => &[sys::CAM_NVME_STATUS_ERROR],
        _ => &[sys::CAM_SCSI_STATUS_ERROR],
    };
    let told = error_of(sheet.sys, fd, &mut commands[0], kind);
    let is_told = told.is_some_and(|status| wanted.contains(&status));
    sheet.check("an unknown command's error is told", node, is_told);
    if let Some(other) = sheet.sys.node_at("pass", kind) {
        let theirs = sheet.sys.open(other, RDWR).unwrap_or(-1);
        let told = error_of(sheet.sys, theirs, &mut commands[0], kind);
        let is_told = told.is_some_and(|status| wanted.contains(&status));
        sheet.check("by pass(4) too", other, is_told);
        sheet.sys.close(theirs);
    }
    if let (Some(before), Some(after)) = (before, info(sheet.sys, fd)) {
        let adds_up = after.submitted == after.completed + after.outstanding
            && after.submitted > before.submitted;
        sheet.check("the counters add up", node, adds_up);
        let moved = (after.zerocopy_bytes - before.zerocopy_bytes) as usize;
        if after.features & sys::QPASS_FEATURE_UNMAPPED != 0 {
            sheet.check("nothing was copied", node, moved >= N * 4096);
        }
    }
    for command in commands {
        command.free(sheet.sys);
    }
    batch.memory.unmap(sheet.sys);
    sheet.sys.close(fd);
}
