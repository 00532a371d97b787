//! The cases, each named after the promise that it tests.

use crate::{
    Case, Ctx, Outcome,
    command::{BLOCK, Command, Ended},
    expect,
    sys::{Access, Errno, Fd, Memory, Sys, call},
};
use sys_bindings as sys;

const RDWR: i32 = sys::O_RDWR as i32;
const POLLIN: i16 = sys::POLLIN as i16;
/// Time for anything that must happen, in milliseconds.
const SOON: u32 = 20_000;
/// Time in which something that must not happen would have, in milliseconds.
const A_WHILE: u32 = 50;

const GOOD: Ended = Ended {
    status: sys::CAM_REQ_CMP,
    scsi_status: 0,
    resid: 0,
    sense: (0, 0, 0),
};

macro_rules! errno {
    ($name:ident) => {
        Err(sys::$name as Errno)
    };
}

macro_rules! cases {
    ($($name:ident $(($kind:ident))?;)*) => {
        /// Every case, in the order in which they run.
        pub const ALL: &[Case] = &[$(Case {
            name: stringify!($name),
            run: $name,
            departs: cases!(@departs $($kind)?),
            spares_pass: cases!(@spares_pass $($kind)?),
        }),*];
    };
    (@departs departs) => { true };
    (@spares_pass spares_pass) => { true };
    (@$question:ident $($kind:ident)?) => { false };
}

cases! {
    open_wants_reading_and_writing;
    open_refuses_nonblocking;
    sync_inquiry_names_the_device;
    sync_test_unit_ready;
    sync_path_inquiry;
    sync_errors_come_with_sense;
    sync_bad_data_pointer_is_eacces;
    sync_too_long_is_e2big;
    get_with_nothing_done_is_enoent;
    queued_completion_wakes_kevent;
    queued_immediate_wakes_kevent;
    queued_immediate_wakes_poll;
    poll_is_quiet_when_nothing_is_done;
    what_is_written_is_read_back;
    completions_of_a_deep_queue_all_come;
    a_list_is_written_and_read_back;
    a_list_of_thousands_is_taken;
    a_list_ccb_can_be_queued_again_as_it_came;
    a_list_longer_than_the_transfer_is_taken;
    a_list_shorter_than_the_transfer_is_einval;
    a_list_without_segments_or_length_is_einval;
    a_wild_list_or_segment_is_efault (spares_pass);
    a_short_read_into_a_list_leaves_no_stale_byte;
    a_list_is_einval_when_synchronous;
    questions_are_answered_at_once;
    libcam_can_open_it;
    a_queued_error_comes_with_sense (spares_pass);
    a_short_read_leaves_no_stale_byte;
    the_ccb_comes_back_with_its_own_pointers;
    no_kernel_pointer_comes_back;
    a_cdb_by_pointer_is_read;
    questions_to_the_sim_are_answered;
    a_lun_is_reprobed;
    a_lun_is_reprobed_when_queued (spares_pass);
    any_priority_is_taken;
    an_abort_of_no_request_is_unable (spares_pass);
    a_geometry_of_no_blocks_a_megabyte_is_einval (spares_pass);
    programs_of_older_cam_versions_are_understood;
    a_dupd_descriptor_is_the_same_open;
    info_adds_up (spares_pass);
    an_open_has_limits_of_its_own (spares_pass);
    a_cancelled_request_is_reaped_once (spares_pass);
    another_opens_requests_are_cancelled_by_number (spares_pass);
    a_batch_is_submitted_and_reaped_in_one_call (spares_pass);
    a_batch_call_waits_no_longer_than_it_may (spares_pass);
    what_is_outstanding_is_listed (spares_pass);
    a_large_transfer_moves_its_own_bytes_only;
    a_large_list_of_pages_moves_its_own_bytes_only;
    a_large_buffer_may_be_wired;
    a_large_buffer_may_be_write_only;
    a_private_file_mapping_is_written_from_and_read_into;
    a_large_write_from_a_read_only_buffer_goes_through;
    a_large_read_into_a_read_only_buffer_is_efault;
    a_large_write_across_a_guard_page_is_efault (spares_pass);
    a_buffer_may_be_unmapped_meanwhile (spares_pass);
    a_cdb_too_long_is_einval;
    a_null_ccb_is_efault;
    a_wild_ccb_is_efault;
    a_wild_write_buffer_is_efault;
    a_wild_cdb_is_efault;
    a_failed_copyout_loses_no_completion;
    too_long_is_einval;
    an_xpt_only_opcode_is_enodev;
    an_unknown_opcode_is_einval;
    unlocked_is_einval;
    physical_addresses_are_refused (spares_pass);
    a_bio_is_einval;
    an_unknown_ioctl_is_enotty;
    an_unknown_filter_is_einval;
    opens_do_not_see_each_others_completions;
    close_with_requests_leaves_nothing_behind;
    a_departed_device_ends_its_opens (departs);
    requests_outlive_a_departure (departs);
}

fn open(ctx: &mut Ctx<'_>) -> Result<Fd, crate::Failure> {
    let opened = ctx.sys.open(ctx.device, RDWR);
    expect!("open", opened.map(|_| ()), Ok(()));
    Ok(opened.unwrap_or(-1))
}

/// A change to a kqueue.
pub fn event(ident: Fd, filter: i32, flags: u32) -> sys::kevent {
    // SAFETY: plain data.
    let mut event: sys::kevent = unsafe { core::mem::zeroed() };
    event.ident = ident as u64;
    event.filter = filter as i16;
    event.flags = flags as u16;
    event
}

/// Waits for completions: the event's `data`, and whether EV_EOF is set.
fn wait(ctx: &mut Ctx<'_>, kq: Fd, ms: u32) -> Result<Option<(i64, bool)>, Errno> {
    let mut events = [event(0, 0, 0)];
    let n = ctx.sys.kevent(kq, &[], &mut events, ms)?;
    Ok((n == 1).then(|| {
        (
            events[0].data,
            u32::from(events[0].flags) & sys::EV_EOF != 0,
        )
    }))
}

fn watch(ctx: &mut Ctx<'_>, fd: Fd) -> Result<Fd, crate::Failure> {
    let kq = ctx.sys.kqueue().unwrap_or(-1);
    let change = event(fd, sys::EVFILT_READ, sys::EV_ADD);
    expect!("EV_ADD", ctx.sys.kevent(kq, &[change], &mut [], 0), Ok(0));
    Ok(kq)
}

/// CAMIOQUEUE, wait, CAMIOGET.
fn queue_and_reap(ctx: &mut Ctx<'_>, fd: Fd, command: &Command) -> Result<Ended, crate::Failure> {
    expect!("CAMIOQUEUE", command.queue(ctx.sys, fd), Ok(()));
    let revents = ctx.sys.poll(fd, POLLIN, SOON as i32);
    expect!("poll", revents, Ok(POLLIN));
    expect!("CAMIOGET", command.get(ctx.sys, fd), Ok(()));
    Ok(command.ended())
}

fn open_wants_reading_and_writing(ctx: &mut Ctx<'_>) -> Outcome {
    for flags in [sys::O_RDONLY, sys::O_WRONLY] {
        let opened = ctx.sys.open(ctx.device, flags as i32);
        ctx.see(format_args!("{opened:?}"));
        expect!("open", opened, errno!(EPERM));
    }
    Ok(())
}

fn open_refuses_nonblocking(ctx: &mut Ctx<'_>) -> Outcome {
    let opened = ctx.sys.open(ctx.device, RDWR | sys::O_NONBLOCK as i32);
    ctx.see(format_args!("{opened:?}"));
    expect!("open", opened, errno!(EINVAL));
    Ok(())
}

fn sync_inquiry_names_the_device(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, 256);
    command.inquiry(36);
    expect!("CAMIOCOMMAND", command.send(ctx.sys, fd), Ok(()));
    expect!("ended", command.ended(), GOOD);
    let data = command.data.bytes();
    expect!("device type", data[0] & 0x1f, 0);
    let vendor = core::str::from_utf8(&data[8..16]).unwrap_or("?");
    ctx.see(format_args!("{:?} vendor {vendor:?}", command.ended()));
    expect!("vendor", vendor.trim().is_empty(), false);
    expect!("beyond", data[36..].iter().all(|b| *b == 0), true);
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn sync_test_unit_ready(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, 0);
    command.test_unit_ready();
    expect!("CAMIOCOMMAND", command.send(ctx.sys, fd), Ok(()));
    ctx.see(format_args!("{:?}", command.ended()));
    expect!("ended", command.ended(), GOOD);
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn sync_path_inquiry(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, 0);
    command.immediate(sys::XPT_PATH_INQ);
    expect!("CAMIOCOMMAND", command.send(ctx.sys, fd), Ok(()));
    let status = command.hdr().status & sys::CAM_STATUS_MASK;
    expect!("status", status, sys::CAM_REQ_CMP);
    // SAFETY: plain data.
    let version = unsafe { command.ccb.ccb().cpi.version_num };
    ctx.see(format_args!("status {status} version {version}"));
    expect!("version", version, 1);
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

/// READ(10) far beyond the end: ILLEGAL REQUEST, LBA OUT OF RANGE.
fn beyond_the_end(command: &mut Command) {
    command.rw10(false, 0xffff_fff0, 1);
}

const OUT_OF_RANGE: (u32, u8, (u8, u8, u8)) = (sys::CAM_SCSI_STATUS_ERROR, 2, (5, 0x21, 0));

fn sync_errors_come_with_sense(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, BLOCK);
    beyond_the_end(&mut command);
    expect!("CAMIOCOMMAND", command.send(ctx.sys, fd), Ok(()));
    let Ended {
        status,
        scsi_status,
        sense,
        ..
    } = command.ended();
    ctx.see(format_args!("{status:#x} {scsi_status} {sense:x?}"));
    expect!("ended", (status, scsi_status, sense), OUT_OF_RANGE);
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn sync_bad_data_pointer_is_eacces(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, BLOCK);
    command.rw10(true, 0, 1);
    command.csio().data_ptr = 0x10 as *mut u8;
    let sent = command.send(ctx.sys, fd);
    ctx.see(format_args!("{sent:?}"));
    expect!("CAMIOCOMMAND", sent, errno!(EACCES));
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn sync_too_long_is_e2big(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, BLOCK);
    command.rw10(false, 0, 1);
    command.csio().dxfer_len = 1 << 30;
    let sent = command.send(ctx.sys, fd);
    ctx.see(format_args!("{sent:?}"));
    expect!("CAMIOCOMMAND", sent, errno!(E2BIG));
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn get_with_nothing_done_is_enoent(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let command = Command::new(ctx.sys, 0);
    let got = command.get(ctx.sys, fd);
    ctx.see(format_args!("{got:?}"));
    expect!("CAMIOGET", got, errno!(ENOENT));
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn queued_completion_wakes_kevent(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let kq = watch(ctx, fd)?;
    let mut command = Command::new(ctx.sys, 0);
    command.test_unit_ready();
    expect!("quiet before", wait(ctx, kq, A_WHILE), Ok(None));
    expect!("CAMIOQUEUE", command.queue(ctx.sys, fd), Ok(()));
    let woken = wait(ctx, kq, SOON);
    ctx.see(format_args!("{woken:?}"));
    expect!("kevent", woken.map(|w| w.is_some()), Ok(true));
    expect!("CAMIOGET", command.get(ctx.sys, fd), Ok(()));
    expect!("ended", command.ended(), GOOD);
    expect!("quiet after", wait(ctx, kq, A_WHILE), Ok(None));
    command.free(ctx.sys);
    ctx.sys.close(kq);
    ctx.sys.close(fd);
    Ok(())
}

fn queued_immediate_wakes_kevent(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let kq = watch(ctx, fd)?;
    let mut command = Command::new(ctx.sys, 0);
    command.immediate(sys::XPT_PATH_INQ);
    expect!("CAMIOQUEUE", command.queue(ctx.sys, fd), Ok(()));
    let woken = wait(ctx, kq, SOON);
    ctx.see(format_args!("{woken:?}"));
    expect!("kevent", woken, Ok(Some((1, false))));
    expect!("CAMIOGET", command.get(ctx.sys, fd), Ok(()));
    let status = command.hdr().status & sys::CAM_STATUS_MASK;
    expect!("status", status, sys::CAM_REQ_CMP);
    command.free(ctx.sys);
    ctx.sys.close(kq);
    ctx.sys.close(fd);
    Ok(())
}

fn queued_immediate_wakes_poll(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, 0);
    command.immediate(sys::XPT_GDEV_TYPE);
    expect!("CAMIOQUEUE", command.queue(ctx.sys, fd), Ok(()));
    let revents = ctx.sys.poll(fd, POLLIN, SOON as i32);
    ctx.see(format_args!("{revents:?}"));
    expect!("poll", revents, Ok(POLLIN));
    expect!("CAMIOGET", command.get(ctx.sys, fd), Ok(()));
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn poll_is_quiet_when_nothing_is_done(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let revents = ctx.sys.poll(fd, POLLIN, A_WHILE as i32);
    ctx.see(format_args!("{revents:?}"));
    expect!("poll", revents, Ok(0));
    ctx.sys.close(fd);
    Ok(())
}

fn what_is_written_is_read_back(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    for blocks in [1u16, 9, 128] {
        let len = usize::from(blocks) * BLOCK;
        let mut write = Command::new(ctx.sys, len);
        write.rw10(true, 100, blocks);
        for (i, byte) in write.data.bytes_mut()[..len].iter_mut().enumerate() {
            *byte = (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ blocks as u8;
        }
        expect!("write", queue_and_reap(ctx, fd, &write)?, GOOD);
        let mut read = Command::new(ctx.sys, len);
        read.rw10(false, 100, blocks);
        expect!("read", queue_and_reap(ctx, fd, &read)?, GOOD);
        let same = read.data.bytes()[..len] == write.data.bytes()[..len];
        ctx.see(format_args!("{len} bytes same {same}"));
        expect!("data", same, true);
        write.free(ctx.sys);
        read.free(ctx.sys);
    }
    ctx.sys.close(fd);
    Ok(())
}

fn completions_of_a_deep_queue_all_come(ctx: &mut Ctx<'_>) -> Outcome {
    const DEPTH: usize = 64;
    let fd = open(ctx)?;
    let kq = watch(ctx, fd)?;
    let mut command = Command::new(ctx.sys, BLOCK);
    command.rw10(false, 0, 1);
    for tag in 0..DEPTH {
        command.set_private(0, tag as u64);
        expect!("CAMIOQUEUE", command.queue(ctx.sys, fd), Ok(()));
    }
    let mut seen = [false; DEPTH];
    let mut reaped = 0;
    while reaped < DEPTH {
        let woken = wait(ctx, kq, SOON).map(|w| w.is_some());
        expect!("kevent", woken, Ok(true));
        while command.get(ctx.sys, fd) == Ok(()) {
            expect!("ended", command.ended(), GOOD);
            let tag = command.private(0) as usize;
            expect!("tag known", tag < DEPTH && !seen[tag], true);
            seen[tag] = true;
            reaped += 1;
        }
    }
    ctx.see(format_args!("{reaped} of {DEPTH}"));
    expect!("quiet after", wait(ctx, kq, A_WHILE), Ok(None));
    command.free(ctx.sys);
    ctx.sys.close(kq);
    ctx.sys.close(fd);
    Ok(())
}

/// The byte at `i` of a test pattern.
fn pattern(i: usize) -> u8 {
    (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]
}

fn a_list_is_written_and_read_back(ctx: &mut Ctx<'_>) -> Outcome {
    const LEN: usize = 32 * BLOCK;
    let writes: [&[usize]; 2] = [&[LEN], &[1, 3, 0, 4093, 4096, 511, LEN - 8704]];
    let reads: [&[usize]; 2] = [&[7, 8192, 1, LEN - 8200], &[512; 32]];
    let fd = open(ctx)?;
    let mut list = Memory::new(ctx.sys, 4096);
    for (lens, others) in writes.into_iter().zip(reads) {
        let mut write = Command::new(ctx.sys, 2 * LEN);
        write.rw10(true, 64, 32);
        write.list(&mut list, 5, 3, lens);
        let mut n = 0;
        let mut at = 5;
        for len in lens {
            for byte in &mut write.data.bytes_mut()[at..at + len] {
                *byte = pattern(n);
                n += 1;
            }
            at += len + 3;
        }
        expect!("length", n, LEN);
        expect!("write", queue_and_reap(ctx, fd, &write)?, GOOD);
        let mut read = Command::new(ctx.sys, 2 * LEN);
        read.rw10(false, 64, 32);
        read.list(&mut list, 1, 9, others);
        expect!("read", queue_and_reap(ctx, fd, &read)?, GOOD);
        let (mut n, mut at, mut wrong) = (0, 1, 0);
        for len in others {
            for byte in &read.data.bytes()[at..at + len] {
                wrong += usize::from(*byte != pattern(n));
                n += 1;
            }
            at += len;
            // What lies between the segments is not written.
            wrong += usize::from(read.data.bytes()[at..at + 9].iter().any(|b| *b != 0));
            at += 9;
        }
        ctx.see(format_args!(
            "{} to {} segments, {wrong} wrong",
            lens.len(),
            others.len()
        ));
        expect!("wrong bytes", wrong, 0);
        write.free(ctx.sys);
        read.free(ctx.sys);
    }
    list.unmap(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn a_list_of_thousands_is_taken(ctx: &mut Ctx<'_>) -> Outcome {
    static LENS: [usize; 4096] = [16; 4096];
    let fd = open(ctx)?;
    let mut list = Memory::new(ctx.sys, LENS.len() * 16);
    let mut write = Command::new(ctx.sys, 65536);
    write.rw10(true, 0, 128);
    for (i, byte) in write.data.bytes_mut().iter_mut().enumerate() {
        *byte = pattern(i);
    }
    expect!("write", queue_and_reap(ctx, fd, &write)?, GOOD);
    let mut read = Command::new(ctx.sys, 2 * 65536);
    read.rw10(false, 0, 128);
    read.list(&mut list, 0, 16, &LENS);
    expect!("read", queue_and_reap(ctx, fd, &read)?, GOOD);
    let wrong = (0..65536)
        .filter(|i| read.data.bytes()[i / 16 * 32 + i % 16] != pattern(*i))
        .count();
    ctx.see(format_args!("{} segments, {wrong} wrong", LENS.len()));
    expect!("wrong bytes", wrong, 0);
    list.unmap(ctx.sys);
    write.free(ctx.sys);
    read.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn a_list_ccb_can_be_queued_again_as_it_came(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut list = Memory::new(ctx.sys, 4096);
    let mut read = Command::new(ctx.sys, 8192);
    read.rw10(false, 0, 8);
    read.list(&mut list, 0, 0, &[100, 200, 4096 - 300]);
    let before = (read.csio().data_ptr as usize, read.csio().sglist_cnt);
    for _ in 0..2 {
        expect!("read", queue_and_reap(ctx, fd, &read)?, GOOD);
        let after = (read.csio().data_ptr as usize, read.csio().sglist_cnt);
        expect!("data_ptr and sglist_cnt", after, before);
        expect!(
            "format",
            read.hdr().flags & sys::CAM_DATA_MASK,
            sys::CAM_DATA_SG
        );
    }
    ctx.see(format_args!("sglist_cnt {}", before.1));
    list.unmap(ctx.sys);
    read.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn a_list_longer_than_the_transfer_is_taken(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut list = Memory::new(ctx.sys, 4096);
    let mut read = Command::new(ctx.sys, 8192);
    read.data.bytes_mut().fill(0x77);
    read.rw10(false, 0, 1);
    read.list(&mut list, 0, 0, &[500, 4000, 0, 100]);
    expect!("read", queue_and_reap(ctx, fd, &read)?, GOOD);
    let beyond = read.data.bytes()[BLOCK..].iter().all(|b| *b == 0x77);
    ctx.see(format_args!("beyond untouched {beyond}"));
    expect!("beyond the transfer", beyond, true);
    list.unmap(ctx.sys);
    read.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn a_list_shorter_than_the_transfer_is_einval(ctx: &mut Ctx<'_>) -> Outcome {
    let mut list = Memory::new(ctx.sys, 4096);
    refused(ctx, errno!(EINVAL), |command| {
        command.list(&mut list, 0, 0, &[100, 411]);
    })?;
    list.unmap(ctx.sys);
    Ok(())
}

fn a_list_without_segments_or_length_is_einval(ctx: &mut Ctx<'_>) -> Outcome {
    let mut list = Memory::new(ctx.sys, 4096);
    refused(ctx, errno!(EINVAL), |command| {
        command.list(&mut list, 0, 0, &[]);
    })?;
    refused(ctx, errno!(EINVAL), |command| {
        command.list(&mut list, 0, 0, &[512]);
        command.csio().dxfer_len = 0;
    })?;
    list.unmap(ctx.sys);
    Ok(())
}

fn a_wild_list_or_segment_is_efault(ctx: &mut Ctx<'_>) -> Outcome {
    let mut list = Memory::new(ctx.sys, 4096);
    refused(ctx, errno!(EFAULT), |command| {
        command.list(&mut list, 0, 0, &[512]);
        command.csio().data_ptr = 0x10 as *mut u8;
    })?;
    for address in [0x10u64, 0xffff_ffff_8020_0000, u64::MAX - 5] {
        refused(ctx, errno!(EFAULT), |command| {
            command.list(&mut list, 0, 0, &[100, 412]);
            list.bytes_mut()[16..24].copy_from_slice(&address.to_ne_bytes());
        })?;
    }
    list.unmap(ctx.sys);
    Ok(())
}

fn a_short_read_into_a_list_leaves_no_stale_byte(ctx: &mut Ctx<'_>) -> Outcome {
    const LEN: usize = 65536;
    let fd = open(ctx)?;
    let mut list = Memory::new(ctx.sys, 4096);
    let mut write = Command::new(ctx.sys, LEN);
    write.rw10(true, 0, 128);
    write.data.bytes_mut().fill(0xee);
    expect!("write", queue_and_reap(ctx, fd, &write)?, GOOD);
    let mut inquiry = Command::new(ctx.sys, LEN);
    inquiry.inquiry(36);
    inquiry.csio().dxfer_len = LEN as u32;
    inquiry.list(&mut list, 0, 0, &[1000, LEN - 1000]);
    let Ended { status, resid, .. } = queue_and_reap(ctx, fd, &inquiry)?;
    let data = inquiry.data.bytes();
    let stale = data[36..].iter().filter(|b| **b == 0xee).count();
    ctx.see(format_args!(
        "status {status:#x} resid {resid} stale {stale}"
    ));
    expect!("stale bytes", stale, 0);
    list.unmap(ctx.sys);
    write.free(ctx.sys);
    inquiry.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn a_list_is_einval_when_synchronous(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut list = Memory::new(ctx.sys, 4096);
    let mut read = Command::new(ctx.sys, 8192);
    read.rw10(false, 0, 1);
    read.list(&mut list, 0, 0, &[512]);
    let sent = read.send(ctx.sys, fd);
    ctx.see(format_args!("{sent:?}"));
    expect!("CAMIOCOMMAND", sent, errno!(EINVAL));
    list.unmap(ctx.sys);
    read.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn questions_are_answered_at_once(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, 0);
    for func_code in [
        sys::XPT_NOOP,
        sys::XPT_PATH_INQ,
        sys::XPT_GDEV_TYPE,
        sys::XPT_GDEV_STATS,
    ] {
        for queued in [true, false] {
            command.immediate(func_code);
            if queued {
                expect!("CAMIOQUEUE", command.queue(ctx.sys, fd), Ok(()));
                expect!("CAMIOGET", command.get(ctx.sys, fd), Ok(()));
            } else {
                expect!("CAMIOCOMMAND", command.send(ctx.sys, fd), Ok(()));
            }
            let status = command.hdr().status & sys::CAM_STATUS_MASK;
            ctx.see(format_args!("{func_code:#x} {status}"));
            expect!("status", status, sys::CAM_REQ_CMP);
        }
    }
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn questions_to_the_sim_are_answered(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, 0);
    for func_code in [sys::XPT_CALC_GEOMETRY, sys::XPT_PATH_STATS] {
        for queued in [true, false] {
            command.immediate(func_code);
            // SAFETY: plain data.
            let geometry = unsafe { &mut command.ccb.ccb_mut().ccg };
            if func_code == sys::XPT_CALC_GEOMETRY {
                (geometry.block_size, geometry.volume_size) = (512, 0x100_0000);
            }
            if queued {
                expect!("CAMIOQUEUE", command.queue(ctx.sys, fd), Ok(()));
                expect!("CAMIOGET", command.get(ctx.sys, fd), Ok(()));
            } else {
                expect!("CAMIOCOMMAND", command.send(ctx.sys, fd), Ok(()));
            }
            let status = command.hdr().status & sys::CAM_STATUS_MASK;
            expect!("status", status, sys::CAM_REQ_CMP);
            ctx.see(format_args!("{func_code:#x} {status}"));
            if func_code == sys::XPT_CALC_GEOMETRY {
                // SAFETY: as above.
                let geometry = unsafe { &command.ccb.ccb().ccg };
                ctx.see(format_args!(
                    "{}/{}/{}",
                    geometry.cylinders, geometry.heads, geometry.secs_per_track
                ));
            }
        }
    }
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

/// An opcode whose CCB is not one of the device's own.
fn a_lun_is_reprobed(ctx: &mut Ctx<'_>) -> Outcome {
    reprobe(ctx, false)
}

fn a_lun_is_reprobed_when_queued(ctx: &mut Ctx<'_>) -> Outcome {
    reprobe(ctx, true)
}

fn reprobe(ctx: &mut Ctx<'_>, queued: bool) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, 0);
    command.immediate(sys::XPT_REPROBE_LUN);
    command.set_private(1, 0x1234);
    let ask = |sys: &mut dyn Sys| {
        if queued {
            command.queue(sys, fd)
        } else {
            command.send(sys, fd)
        }
    };
    // Another case may just have had it probed.
    let mut asked = ask(ctx.sys);
    for _ in 0..100 {
        if asked != errno!(EBUSY) {
            break;
        }
        expect!("no completion", ctx.sys.poll(fd, POLLIN, 50), Ok(0));
        asked = ask(ctx.sys);
    }
    expect!("XPT_REPROBE_LUN", asked, Ok(()));
    if queued {
        expect!("poll", ctx.sys.poll(fd, POLLIN, SOON as i32), Ok(POLLIN));
        expect!("CAMIOGET", command.get(ctx.sys, fd), Ok(()));
    }
    let status = command.hdr().status & sys::CAM_STATUS_MASK;
    expect!("status", status, sys::CAM_REQ_CMP);
    expect!("periph_priv", command.private(1), 0x1234);
    ctx.see(format_args!("{status}"));
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

/// 0 and others that would rank above error recovery included.
fn any_priority_is_taken(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, 0);
    for priority in [
        0,
        1,
        sys::QPC_CAM_PRIORITY_OOB,
        sys::QPC_CAM_PRIORITY_NORMAL,
        sys::QPC_CAM_PRIORITY_NONE - 1,
    ] {
        command.test_unit_ready();
        command.hdr().pinfo.priority = priority;
        expect!("queued", queue_and_reap(ctx, fd, &command)?, GOOD);
        command.test_unit_ready();
        command.hdr().pinfo.priority = priority;
        expect!("CAMIOCOMMAND", command.send(ctx.sys, fd), Ok(()));
        expect!("sent", command.ended(), GOOD);
        ctx.see(format_args!("{priority:#x}"));
    }
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn an_abort_of_no_request_is_unable(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, 0);
    for target in [0, 0xffff_ffff_8020_0000, command.ccb.address()] {
        command.immediate(sys::XPT_ABORT);
        command.ccb.ccb_mut().cab.abort_ccb = target as *mut sys::ccb;
        expect!("CAMIOCOMMAND", command.send(ctx.sys, fd), Ok(()));
        let status = command.hdr().status & sys::CAM_STATUS_MASK;
        expect!("status", status, sys::CAM_UA_ABORT);
        // SAFETY: plain data.
        let after = unsafe { command.ccb.ccb().cab.abort_ccb } as usize;
        expect!("abort_ccb", after, target);
        ctx.see(format_args!("{status}"));
    }
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn a_geometry_of_no_blocks_a_megabyte_is_einval(ctx: &mut Ctx<'_>) -> Outcome {
    refused(ctx, errno!(EINVAL), |command| {
        command.immediate(sys::XPT_CALC_GEOMETRY);
        // SAFETY: plain data.
        let geometry = unsafe { &mut command.ccb.ccb_mut().ccg };
        (geometry.block_size, geometry.volume_size) = (2 << 20, 100);
    })
}

/// What cam_compat(9) translates: other headers, other numbers.
fn programs_of_older_cam_versions_are_understood(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, 4096);
    command.inquiry(36);
    expect!(
        "0x19",
        ctx.sys
            .ioctl(fd, sys::QPC_CAMIOCOMMAND_0x19, command.ccb.address()),
        Ok(())
    );
    ctx.see(format_args!("0x19 {}", command.ended().status));
    expect!("0x19", command.ended(), GOOD);
    let at = command.ccb.address();
    command.inquiry(36);
    expect!(
        "queue",
        ctx.sys.ioctl(fd, sys::QPC_CAMIOQUEUE_0x19, at),
        Ok(())
    );
    expect!("poll", ctx.sys.poll(fd, POLLIN, SOON as i32), Ok(POLLIN));
    expect!("get", ctx.sys.ioctl(fd, sys::QPC_CAMIOGET_0x19, at), Ok(()));
    expect!("0x19 queued", command.ended(), GOOD);
    let mut old = Memory::new(ctx.sys, 4096);
    for version in [0x17, 0x18] {
        command.inquiry(36);
        command.data.bytes_mut().fill(0);
        let today = *command.hdr();
        let (request, size) = if version == 0x17 {
            let hdr = old.bytes_mut().as_mut_ptr().cast::<sys::ccb_hdr_0x17>();
            // SAFETY: a page of the process's own, zeroed and aligned.
            unsafe {
                (*hdr).func_code = today.func_code;
                (*hdr).flags = today.flags;
                (*hdr).timeout = today.timeout;
            }
            (sys::QPC_CAMIOCOMMAND_0x17, size_of::<sys::ccb_hdr_0x17>())
        } else {
            let hdr = old.bytes_mut().as_mut_ptr().cast::<sys::ccb_hdr_0x18>();
            // SAFETY: as above.
            unsafe {
                (*hdr).func_code = today.func_code;
                (*hdr).flags = today.flags;
                (*hdr).timeout = today.timeout;
            }
            (sys::QPC_CAMIOCOMMAND_0x18, size_of::<sys::ccb_hdr_0x18>())
        };
        let payload = &command.ccb.bytes()[size_of::<sys::ccb_hdr>()..size_of::<sys::ccb_scsiio>()];
        old.bytes_mut()[size..size + payload.len()].copy_from_slice(payload);
        expect!("ioctl", ctx.sys.ioctl(fd, request, old.address()), Ok(()));
        let hdr = old.bytes().as_ptr();
        // SAFETY: as above.
        let status = unsafe {
            if version == 0x17 {
                (*hdr.cast::<sys::ccb_hdr_0x17>()).status
            } else {
                (*hdr.cast::<sys::ccb_hdr_0x18>()).status
            }
        } & sys::CAM_STATUS_MASK;
        let named = command.data.bytes()[8] != 0;
        ctx.see(format_args!("{version:#x} {status} {named}"));
        expect!("status", status, sys::CAM_REQ_CMP);
        expect!("vendor", named, true);
        old.bytes_mut().fill(0);
    }
    old.unmap(ctx.sys);
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn a_dupd_descriptor_is_the_same_open(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let dup = ctx.sys.dup(fd).unwrap_or(-1);
    let kq = watch(ctx, dup)?;
    let mut command = Command::new(ctx.sys, 0);
    command.test_unit_ready();
    expect!("CAMIOQUEUE", command.queue(ctx.sys, fd), Ok(()));
    expect!("kevent", wait(ctx, kq, SOON).map(|e| e.is_some()), Ok(true));
    expect!("CAMIOGET", command.get(ctx.sys, dup), Ok(()));
    expect!("again", command.get(ctx.sys, fd), errno!(ENOENT));
    // The event goes with its descriptor, the open stays.
    ctx.sys.close(dup);
    expect!("queued", queue_and_reap(ctx, fd, &command)?, GOOD);
    expect!("quiet", wait(ctx, kq, 0), Ok(None));
    ctx.see(format_args!("one queue"));
    command.free(ctx.sys);
    ctx.sys.close(kq);
    ctx.sys.close(fd);
    Ok(())
}

fn info(ctx: &mut Ctx<'_>, fd: Fd) -> Result<sys::qpass_info, crate::Failure> {
    // SAFETY: integers.
    let nothing: sys::qpass_info = unsafe { core::mem::zeroed() };
    let info = call(ctx.sys, fd, sys::QPC_QPIOC_INFO, nothing);
    expect!("QPIOC_INFO", info.map(|_| ()), Ok(()));
    Ok(info.unwrap_or(nothing))
}

fn info_adds_up(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, 2048);
    // Half of the smallest chunk, and too short to be moved in place.
    command.rw10(false, 0, 4);
    let before = info(ctx, fd)?;
    for n in 1..=32 {
        expect!("CAMIOQUEUE", command.queue(ctx.sys, fd), Ok(()));
        let now = info(ctx, fd)?;
        expect!("submitted", now.submitted - before.submitted, n);
        expect!("sum", now.completed + now.outstanding, now.submitted);
        expect!("requests", u64::from(now.requests), n);
        expect!("bytes", now.bytes, n * 4096);
    }
    expect!("version", before.version, sys::QPASS_VERSION);
    expect!("maxio", before.maxio != 0, true);
    ctx.see(format_args!("32 of 32"));
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn an_open_has_limits_of_its_own(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let asked = sys::qpass_limit {
        requests: 3,
        reserved0: 0,
        bytes: 0,
        reserved: [0; 2],
    };
    let set = call(ctx.sys, fd, sys::QPC_QPIOC_LIMIT, asked).map(|limit| limit.requests);
    expect!("QPIOC_LIMIT", set, Ok(3));
    let mut command = Command::new(ctx.sys, 0);
    command.test_unit_ready();
    for _ in 0..3 {
        expect!("CAMIOQUEUE", command.queue(ctx.sys, fd), Ok(()));
    }
    let over = command.queue(ctx.sys, fd);
    expect!("over", over, errno!(EAGAIN));
    let limit = set.unwrap_or_default();
    ctx.see(format_args!("{limit} then {over:?}"));
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

/// Whatever the cancel met: not sent, sent or done.
fn a_cancelled_request_is_reaped_once(ctx: &mut Ctx<'_>) -> Outcome {
    const COUNT: u32 = 96;
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, 65536);
    // SAFETY: integers.
    let all: sys::qpass_cancel = unsafe { core::mem::zeroed() };
    let one = sys::qpass_cancel {
        ccb: command.ccb.address() as u64,
        ..all
    };
    for round in 0..4 {
        command.rw10(false, 0, 128);
        for _ in 0..COUNT {
            expect!("CAMIOQUEUE", command.queue(ctx.sys, fd), Ok(()));
        }
        let asked = if round % 2 == 1 { one } else { all };
        let told = call(ctx.sys, fd, sys::QPC_QPIOC_CANCEL, asked);
        expect!("QPIOC_CANCEL", told.map(|_| ()), Ok(()));
        let told = told.unwrap_or(all);
        let sum = told.dequeued + told.aborted + told.unable + told.done;
        // One that completes meanwhile is in none of the four.
        expect!("sum", sum <= COUNT, true);
        let mut aborted = 0;
        for _ in 0..COUNT {
            expect!("poll", ctx.sys.poll(fd, POLLIN, SOON as i32), Ok(POLLIN));
            expect!("CAMIOGET", command.get(ctx.sys, fd), Ok(()));
            let status = command.hdr().status & sys::CAM_STATUS_MASK;
            aborted += u32::from(status == sys::CAM_REQ_ABORTED);
        }
        expect!("aborted", aborted >= told.dequeued, true);
        expect!("again", command.get(ctx.sys, fd), errno!(ENOENT));
    }
    let none = call(ctx.sys, fd, sys::QPC_QPIOC_CANCEL, one).map(|_| ());
    expect!("nothing left", none, errno!(ENOENT));
    ctx.see(format_args!("4 times {COUNT}"));
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

/// QPASS_CANCEL_DEVICE, by the numbers that QPIOC_LIST gives: whatever it met,
/// each request is reaped once, by its own open.
fn another_opens_requests_are_cancelled_by_number(ctx: &mut Ctx<'_>) -> Outcome {
    const COUNT: usize = 64;
    let (fd, other) = (open(ctx)?, open(ctx)?);
    let mut command = Command::new(ctx.sys, 65536);
    let mut entries = Memory::new(ctx.sys, COUNT * size_of::<sys::qpass_outstanding>());
    // SAFETY: integers.
    let none: sys::qpass_cancel = unsafe { core::mem::zeroed() };
    let device = sys::qpass_cancel {
        flags: sys::QPASS_CANCEL_DEVICE,
        ..none
    };
    for bad in [
        sys::qpass_cancel { flags: 2, ..none },
        sys::qpass_cancel { open: 1, ..none },
        sys::qpass_cancel {
            number: 1,
            ..device
        },
        sys::qpass_cancel { ccb: 1, ..device },
    ] {
        let refused = call(ctx.sys, other, sys::QPC_QPIOC_CANCEL, bad).map(|_| ());
        expect!("what makes no sense", refused, errno!(EINVAL));
    }
    command.rw10(false, 0, 128);
    for _ in 0..COUNT {
        expect!("CAMIOQUEUE", command.queue(ctx.sys, fd), Ok(()));
    }
    // SAFETY: integers.
    let mut list: sys::qpass_list = unsafe { core::mem::zeroed() };
    list.entries = entries.address() as u64;
    (list.room, list.flags) = (COUNT as u32, sys::QPASS_LIST_DEVICE);
    let listed = call(ctx.sys, other, sys::QPC_QPIOC_LIST, list);
    expect!("QPIOC_LIST", listed.map(|l| l.count as usize), Ok(COUNT));
    let at = entries
        .bytes_mut()
        .as_mut_ptr()
        .cast::<sys::qpass_outstanding>();
    // The last was queued last.
    // SAFETY: the kernel has written so many entries.
    let last = unsafe { at.add(COUNT - 1).read() };
    let named = sys::qpass_cancel {
        open: last.open,
        number: last.number,
        ..device
    };
    let one = call(ctx.sys, other, sys::QPC_QPIOC_CANCEL, named);
    let sum = |c: sys::qpass_cancel| c.dequeued + c.aborted + c.unable + c.done;
    expect!("one", one.is_ok_and(|c| sum(c) <= 1), true);
    let of_open = sys::qpass_cancel { number: 0, ..named };
    let rest = call(ctx.sys, other, sys::QPC_QPIOC_CANCEL, of_open);
    expect!(
        "the open's",
        rest.is_ok_and(|c| sum(c) <= COUNT as u32),
        true
    );
    expect!(
        "not of its own",
        command.get(ctx.sys, other),
        errno!(ENOENT)
    );
    for _ in 0..COUNT {
        expect!("poll", ctx.sys.poll(fd, POLLIN, SOON as i32), Ok(POLLIN));
        expect!("CAMIOGET", command.get(ctx.sys, fd), Ok(()));
        let status = command.hdr().status & sys::CAM_STATUS_MASK;
        let is_one = [sys::CAM_REQ_CMP, sys::CAM_REQ_ABORTED].contains(&status);
        expect!("status", is_one, true);
    }
    expect!("each once", command.get(ctx.sys, fd), errno!(ENOENT));
    let gone = call(ctx.sys, other, sys::QPC_QPIOC_CANCEL, named).map(|_| ());
    expect!("reaped", gone, errno!(ENOENT));
    ctx.see(format_args!("{COUNT} of another open"));
    entries.unmap(ctx.sys);
    command.free(ctx.sys);
    ctx.sys.close(fd);
    ctx.sys.close(other);
    Ok(())
}

/// What cam_open_device(3) asks of a pass-through, in its order.
fn libcam_can_open_it(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, 0);
    command.immediate(sys::XPT_GDEVLIST);
    let named = ctx
        .sys
        .ioctl(fd, sys::QPC_CAMGETPASSTHRU, command.ccb.address());
    expect!("CAMGETPASSTHRU", named, Ok(()));
    for func_code in [
        sys::XPT_GDEVLIST,
        sys::XPT_PATH_INQ,
        sys::XPT_GDEV_TYPE,
        sys::XPT_GET_TRAN_SETTINGS,
    ] {
        command.immediate(func_code);
        if func_code == sys::XPT_GET_TRAN_SETTINGS {
            command.ccb.ccb_mut().cts.type_ = sys::CTS_TYPE_CURRENT_SETTINGS;
        }
        expect!("CAMIOCOMMAND", command.send(ctx.sys, fd), Ok(()));
        let status = command.hdr().status & sys::CAM_STATUS_MASK;
        ctx.see(format_args!("{func_code:#x} {status}"));
        expect!("status", status, sys::CAM_REQ_CMP);
        if func_code == sys::XPT_GDEVLIST {
            // SAFETY: plain data.
            let first = unsafe { command.ccb.ccb().cgdl.periph_name[0] };
            expect!("a periph is named", first != 0, true);
        }
    }
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn a_queued_error_comes_with_sense(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, BLOCK);
    beyond_the_end(&mut command);
    // Without this flag the failure freezes the device's queue.
    command.hdr().flags &= !sys::CAM_DEV_QFRZDIS;
    let Ended {
        status,
        scsi_status,
        sense,
        ..
    } = queue_and_reap(ctx, fd, &command)?;
    ctx.see(format_args!("{status:#x} {scsi_status} {sense:x?}"));
    expect!("ended", (status, scsi_status, sense), OUT_OF_RANGE);
    command.test_unit_ready();
    expect!("not frozen", queue_and_reap(ctx, fd, &command)?, GOOD);
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn a_short_read_leaves_no_stale_byte(ctx: &mut Ctx<'_>) -> Outcome {
    const LEN: usize = 65536;
    let fd = open(ctx)?;
    let mut write = Command::new(ctx.sys, LEN);
    write.rw10(true, 0, (LEN / BLOCK) as u16);
    write.data.bytes_mut().fill(0xee);
    expect!("write", queue_and_reap(ctx, fd, &write)?, GOOD);
    // 36 bytes are asked of the device, 64 KiB of the kernel.
    let mut inquiry = Command::new(ctx.sys, LEN);
    inquiry.inquiry(36);
    inquiry.csio().dxfer_len = LEN as u32;
    inquiry.data.bytes_mut().fill(0x55);
    let Ended { status, resid, .. } = queue_and_reap(ctx, fd, &inquiry)?;
    let stale = inquiry.data.bytes()[36..]
        .iter()
        .filter(|b| **b == 0xee)
        .count();
    ctx.see(format_args!(
        "status {status:#x} resid {resid} stale {stale}"
    ));
    expect!("stale bytes", stale, 0);
    write.free(ctx.sys);
    inquiry.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn the_ccb_comes_back_with_its_own_pointers(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, BLOCK);
    command.rw10(false, 0, 1);
    command.set_private(0, 0x1122_3344);
    command.set_private(1, 0x5566_7788);
    command.hdr().periph_links.sle.sle_next = 0x99 as *mut _;
    let data = command.data.address();
    expect!("ended", queue_and_reap(ctx, fd, &command)?, GOOD);
    // SAFETY: plain data.
    let found = unsafe {
        (
            command.private(0),
            command.private(1),
            command.hdr().periph_links.sle.sle_next as usize,
            command.csio().data_ptr as usize == data,
        )
    };
    ctx.see(format_args!("{found:x?}"));
    expect!("fields", found, (0x1122_3344, 0x5566_7788, 0x99, true));
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

/// No word of a CCB that came back is an address of the kernel's half.
fn no_kernel_pointer_comes_back(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, BLOCK);
    for queued in [true, false] {
        command.rw10(false, 0, 1);
        if queued {
            expect!("ended", queue_and_reap(ctx, fd, &command)?, GOOD);
        } else {
            expect!("CAMIOCOMMAND", command.send(ctx.sys, fd), Ok(()));
        }
        let kernel = command.ccb.bytes()[..size_of::<sys::ccb>()]
            .chunks_exact(8)
            .map(|word| u64::from_ne_bytes(word.try_into().unwrap_or([0; 8])))
            .filter(|word| *word >= 0xffff_8000_0000_0000 && *word != u64::MAX)
            .count();
        ctx.see(format_args!("queued {queued}: {kernel}"));
        expect!("kernel addresses", kernel, 0);
    }
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn a_cdb_by_pointer_is_read(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, 8192);
    command.data.bytes_mut()[4096..4102].copy_from_slice(&[0x12, 0, 0, 0, 36, 0]);
    for queued in [true, false] {
        command.inquiry(36);
        let cdb = command.data.address() + 4096;
        command.hdr().flags |= sys::CAM_CDB_POINTER;
        command.csio().cdb_io.cdb_ptr = cdb as *mut u8;
        if queued {
            expect!("ended", queue_and_reap(ctx, fd, &command)?, GOOD);
        } else {
            expect!("CAMIOCOMMAND", command.send(ctx.sys, fd), Ok(()));
            expect!("ended", command.ended(), GOOD);
        }
        expect!("type", command.data.bytes()[0] & 0x1f, 0);
        let spc = command.data.bytes()[2];
        ctx.see(format_args!("queued {queued}: version {spc}"));
        expect!("version", spc != 0, true);
    }
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn refused(
    ctx: &mut Ctx<'_>,
    wanted: Result<(), Errno>,
    spoil: impl FnOnce(&mut Command),
) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, BLOCK);
    command.rw10(true, 0, 1);
    spoil(&mut command);
    let queued = command.queue(ctx.sys, fd);
    ctx.see(format_args!("{queued:?}"));
    expect!("CAMIOQUEUE", queued, wanted);
    // Nothing was queued: nothing completes.
    expect!("poll", ctx.sys.poll(fd, POLLIN, 0), Ok(0));
    expect!("CAMIOGET", command.get(ctx.sys, fd), errno!(ENOENT));
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn a_cdb_too_long_is_einval(ctx: &mut Ctx<'_>) -> Outcome {
    refused(ctx, errno!(EINVAL), |command| {
        let cdb = command.data.address();
        command.hdr().flags |= sys::CAM_CDB_POINTER;
        command.csio().cdb_io.cdb_ptr = cdb as *mut u8;
        command.csio().cdb_len = sys::IOCDBLEN as u8 + 1;
    })
}

fn a_null_ccb_is_efault(ctx: &mut Ctx<'_>) -> Outcome {
    wild_ccb(ctx, 0)
}

fn a_wild_ccb_is_efault(ctx: &mut Ctx<'_>) -> Outcome {
    wild_ccb(ctx, 0x7fff_0000_1000)?;
    wild_ccb(ctx, 0xffff_ffff_8020_0000)?;
    wild_ccb(ctx, usize::MAX - 8)
}

fn wild_ccb(ctx: &mut Ctx<'_>, address: usize) -> Outcome {
    let fd = open(ctx)?;
    let queued = ctx.sys.ioctl(fd, sys::QPC_CAMIOQUEUE, address);
    ctx.see(format_args!("{address:#x} {queued:?}"));
    expect!("CAMIOQUEUE", queued, errno!(EFAULT));
    ctx.sys.close(fd);
    Ok(())
}

fn a_wild_write_buffer_is_efault(ctx: &mut Ctx<'_>) -> Outcome {
    for address in [0usize, 0x10, 0xffff_ffff_8020_0000] {
        refused(ctx, errno!(EFAULT), |command| {
            command.csio().data_ptr = address as *mut u8;
        })?;
    }
    Ok(())
}

fn a_wild_cdb_is_efault(ctx: &mut Ctx<'_>) -> Outcome {
    refused(ctx, errno!(EFAULT), |command| {
        command.hdr().flags |= sys::CAM_CDB_POINTER;
        command.csio().cdb_io.cdb_ptr = 0x10 as *mut u8;
    })
}

fn a_failed_copyout_loses_no_completion(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let kq = watch(ctx, fd)?;
    let mut command = Command::new(ctx.sys, BLOCK);
    command.inquiry(36);
    let (data, len) = (command.data.address() as *mut u8, command.data.len());
    ctx.sys.protect(data, len, Access::None);
    expect!("CAMIOQUEUE", command.queue(ctx.sys, fd), Ok(()));
    expect!("kevent", wait(ctx, kq, SOON), Ok(Some((1, false))));
    let data_bad = command.get(ctx.sys, fd);
    expect!("data unmapped", data_bad, errno!(EFAULT));
    ctx.sys.protect(data, len, Access::Read);
    expect!("data read-only", command.get(ctx.sys, fd), errno!(EFAULT));
    ctx.sys.protect(data, len, Access::Write);
    let ccb_bad = ctx.sys.ioctl(fd, sys::QPC_CAMIOGET, 0x10);
    expect!("CCB wild", ccb_bad, errno!(EFAULT));
    expect!("still there", wait(ctx, kq, SOON), Ok(Some((1, false))));
    expect!("CAMIOGET", command.get(ctx.sys, fd), Ok(()));
    expect!("ended", command.ended(), GOOD);
    ctx.see(format_args!(
        "{data_bad:?} {ccb_bad:?} then {:?}",
        command.ended()
    ));
    expect!("once", command.get(ctx.sys, fd), errno!(ENOENT));
    command.free(ctx.sys);
    ctx.sys.close(kq);
    ctx.sys.close(fd);
    Ok(())
}

fn too_long_is_einval(ctx: &mut Ctx<'_>) -> Outcome {
    for len in [1u32 << 30, u32::MAX] {
        refused(ctx, errno!(EINVAL), |command| {
            command.csio().dxfer_len = len;
        })?;
    }
    Ok(())
}

fn an_xpt_only_opcode_is_enodev(ctx: &mut Ctx<'_>) -> Outcome {
    refused(ctx, errno!(ENODEV), |command| {
        command.immediate(sys::XPT_SCAN_BUS);
    })
}

fn an_unknown_opcode_is_einval(ctx: &mut Ctx<'_>) -> Outcome {
    refused(ctx, errno!(EINVAL), |command| command.immediate(0x9ee))
}

fn unlocked_is_einval(ctx: &mut Ctx<'_>) -> Outcome {
    refused(ctx, errno!(EINVAL), |command| {
        command.hdr().flags |= sys::CAM_UNLOCKED;
    })
}

fn physical_addresses_are_refused(ctx: &mut Ctx<'_>) -> Outcome {
    refused(ctx, errno!(EPERM), |command| {
        command.hdr().flags |= sys::CAM_DATA_PADDR;
    })?;
    refused(ctx, errno!(EPERM), |command| {
        command.hdr().flags |= sys::CAM_DATA_SG_PADDR;
        command.csio().sglist_cnt = 1;
    })?;
    refused(ctx, errno!(EINVAL), |command| {
        command.hdr().flags |= sys::CAM_CDB_PHYS;
    })
}

fn a_bio_is_einval(ctx: &mut Ctx<'_>) -> Outcome {
    refused(ctx, errno!(EINVAL), |command| {
        command.hdr().flags |= sys::CAM_DATA_BIO;
    })
}

fn an_unknown_ioctl_is_enotty(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    // _IO('Z', 99).
    let called = ctx.sys.ioctl(fd, 0x2000_5a63, 0);
    ctx.see(format_args!("{called:?}"));
    expect!("ioctl", called, errno!(ENOTTY));
    ctx.sys.close(fd);
    Ok(())
}

fn an_unknown_filter_is_einval(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let kq = ctx.sys.kqueue().unwrap_or(-1);
    let change = event(fd, sys::EVFILT_EMPTY, sys::EV_ADD);
    let added = ctx.sys.kevent(kq, &[change], &mut [], 0);
    ctx.see(format_args!("{added:?}"));
    expect!("EV_ADD", added, errno!(EINVAL));
    ctx.sys.close(kq);
    ctx.sys.close(fd);
    Ok(())
}

fn opens_do_not_see_each_others_completions(ctx: &mut Ctx<'_>) -> Outcome {
    let mine = open(ctx)?;
    let other = open(ctx)?;
    let kq = watch(ctx, other)?;
    let mut command = Command::new(ctx.sys, 0);
    command.test_unit_ready();
    expect!("CAMIOQUEUE", command.queue(ctx.sys, mine), Ok(()));
    expect!("mine", ctx.sys.poll(mine, POLLIN, SOON as i32), Ok(POLLIN));
    expect!("other's kevent", wait(ctx, kq, A_WHILE), Ok(None));
    expect!("other's poll", ctx.sys.poll(other, POLLIN, 0), Ok(0));
    let got = command.get(ctx.sys, other);
    ctx.see(format_args!("other {got:?}"));
    expect!("other's CAMIOGET", got, errno!(ENOENT));
    expect!("my CAMIOGET", command.get(ctx.sys, mine), Ok(()));
    command.free(ctx.sys);
    ctx.sys.close(kq);
    ctx.sys.close(other);
    ctx.sys.close(mine);
    Ok(())
}

fn close_with_requests_leaves_nothing_behind(ctx: &mut Ctx<'_>) -> Outcome {
    let mut command = Command::new(ctx.sys, 4096);
    for _ in 0..4 {
        let fd = open(ctx)?;
        command.rw10(false, 0, 8);
        for _ in 0..32 {
            expect!("CAMIOQUEUE", command.queue(ctx.sys, fd), Ok(()));
        }
        ctx.sys.close(fd);
        let fd = open(ctx)?;
        let got = command.get(ctx.sys, fd);
        expect!("CAMIOGET after reopen", got, errno!(ENOENT));
        command.test_unit_ready();
        expect!("works", queue_and_reap(ctx, fd, &command)?, GOOD);
        ctx.sys.close(fd);
    }
    ctx.see(format_args!("4 times 32"));
    command.free(ctx.sys);
    Ok(())
}

/// ENXIO is devfs(5)'s word on a device that has gone; once its name has too,
/// the descriptor is of no character device any more, and that is ENOTTY.
fn is_gone(called: Result<(), Errno>) -> bool {
    [errno!(ENXIO), errno!(ENOTTY)].contains(&called)
}

fn a_departed_device_ends_its_opens(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let kq = watch(ctx, fd)?;
    let mut command = Command::new(ctx.sys, 0);
    command.test_unit_ready();
    ctx.sys.depart();
    let woken = wait(ctx, kq, SOON);
    expect!("kevent", woken, Ok(Some((0, true))));
    for called in [
        command.queue(ctx.sys, fd),
        command.get(ctx.sys, fd),
        command.send(ctx.sys, fd),
    ] {
        expect!("ioctl of a gone device", is_gone(called), true);
    }
    let revents = ctx.sys.poll(fd, POLLIN, SOON as i32).unwrap_or(0);
    expect!("POLLHUP", revents & sys::POLLHUP as i16 != 0, true);
    // A knote that is touched again must not reach into freed memory.
    let change = event(fd, sys::EVFILT_READ, sys::EV_ADD);
    let again = ctx.sys.kevent(kq, &[change], &mut [], 0);
    expect!("EV_ADD again", again, Ok(0));
    expect!("EV_EOF again", wait(ctx, kq, SOON), Ok(Some((0, true))));
    ctx.see(format_args!("{woken:?} revents {revents:#x}"));
    expect!("gone", ctx.sys.open(ctx.device, RDWR).is_err(), true);
    command.free(ctx.sys);
    ctx.sys.close(kq);
    ctx.sys.close(fd);
    ctx.sys.arrive();
    let fd = open(ctx)?;
    ctx.sys.close(fd);
    Ok(())
}

fn requests_outlive_a_departure(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, 4096);
    command.rw10(false, 0, 8);
    for _ in 0..48 {
        expect!("CAMIOQUEUE", command.queue(ctx.sys, fd), Ok(()));
    }
    ctx.sys.depart();
    ctx.sys.arrive();
    expect!("old open", is_gone(command.get(ctx.sys, fd)), true);
    let new = open(ctx)?;
    command.test_unit_ready();
    expect!("new open", queue_and_reap(ctx, new, &command)?, GOOD);
    ctx.see(format_args!("48 requests, then a new device"));
    command.free(ctx.sys);
    ctx.sys.close(new);
    ctx.sys.close(fd);
    Ok(())
}

/// Bytes of a transfer that no kernel copies for want of length.
const LARGE: usize = 128 << 10;

/// A QPIOC_ENTER that asks for nothing.
fn no_enter() -> sys::qpass_enter {
    // SAFETY: integers.
    unsafe { core::mem::zeroed() }
}

fn a_batch_is_submitted_and_reaped_in_one_call(ctx: &mut Ctx<'_>) -> Outcome {
    const N: usize = 40;
    let fd = open(ctx)?;
    let mut arrays = Memory::new(ctx.sys, 8192);
    let mut command = Command::new(ctx.sys, 4096);
    command.rw10(false, 0, 8);
    let at = arrays.bytes_mut().as_mut_ptr();
    for i in 0..N {
        let submission = sys::qpass_submission {
            ccb: command.ccb.address() as u64,
            tag: 1 << i,
            reserved: 0,
        };
        // SAFETY: the first page has room for them.
        unsafe { at.cast::<sys::qpass_submission>().add(i).write(submission) };
    }
    let asked = sys::qpass_enter {
        submissions: at as u64,
        completions: at as u64 + 4096,
        to_submit: N as u32,
        to_complete: N as u32,
        min_complete: N as u32,
        flags: sys::QPASS_ENTER_SHORT,
        timeout: 20_000_000_000,
        ..no_enter()
    };
    let answer = call(ctx.sys, fd, sys::QPC_QPIOC_ENTER, asked)
        .map(|e| (e.submitted, e.completed, e.submit_error, e.complete_error));
    expect!("QPIOC_ENTER", answer, Ok((N as u32, N as u32, 0, 0)));
    let (mut tags, mut good) = (0, 0);
    for i in 0..N {
        // SAFETY: the kernel has written so many; integers.
        let done = unsafe { at.add(4096).cast::<sys::qpass_completion>().add(i).read() };
        tags |= done.tag;
        good += u32::from(done.status & sys::CAM_STATUS_MASK == sys::CAM_REQ_CMP);
        expect!("flags", done.flags, 0);
    }
    expect!("tags", tags, (1 << N) - 1);
    ctx.see(format_args!("{good} of {N} in one call"));
    expect!("good", good, N as u32);
    arrays.unmap(ctx.sys);
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn a_batch_call_waits_no_longer_than_it_may(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let arrays = Memory::new(ctx.sys, 4096);
    let mut asked = sys::qpass_enter {
        completions: arrays.address() as u64,
        to_complete: 1,
        min_complete: 1,
        timeout: 30_000_000,
        ..no_enter()
    };
    let answer = call(ctx.sys, fd, sys::QPC_QPIOC_ENTER, asked);
    let answer = answer.map(|e| (e.completed, e.complete_error));
    expect!("QPIOC_ENTER", answer, Ok((0, sys::ETIMEDOUT as i32)));
    let (n, error) = answer.unwrap_or_default();
    ctx.see(format_args!("{n} {error}"));
    asked.min_complete = 2;
    let refused = call(ctx.sys, fd, sys::QPC_QPIOC_ENTER, asked).map(|_| ());
    expect!("too many", refused, errno!(EINVAL));
    arrays.unmap(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn what_is_outstanding_is_listed(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let page = Memory::new(ctx.sys, 4096);
    let mut command = Command::new(ctx.sys, 4096);
    command.rw10(false, 7, 8);
    for _ in 0..3 {
        expect!("CAMIOQUEUE", command.queue(ctx.sys, fd), Ok(()));
    }
    let at = page.address();
    let list = |ctx: &mut Ctx<'_>, flags| {
        let asked = sys::qpass_list {
            entries: at as u64,
            room: 9,
            count: 0,
            flags,
            reserved0: 0,
            cursor: [0; 2],
            reserved: [0; 2],
        };
        call(ctx.sys, fd, sys::QPC_QPIOC_LIST, asked).map(|answer| answer.count)
    };
    expect!("QPIOC_LIST", list(ctx, 0), Ok(3));
    // SAFETY: the kernel has written it; integers.
    let entry: sys::qpass_outstanding = unsafe { *page.bytes().as_ptr().cast() };
    expect!("ccb", entry.ccb, command.ccb.address() as u64);
    expect!("cdb", entry.cdb[..6], [0x28, 0, 0, 0, 0, 7]);
    ctx.see(format_args!(
        "3 of {} bytes, {}",
        entry.length, entry.func_code
    ));
    expect!("length", entry.length, 4096);
    expect!("device", list(ctx, sys::QPASS_LIST_DEVICE), Ok(3));
    for _ in 0..3 {
        expect!("poll", ctx.sys.poll(fd, POLLIN, SOON as i32), Ok(POLLIN));
        expect!("CAMIOGET", command.get(ctx.sys, fd), Ok(()));
    }
    expect!("reaped", list(ctx, 0), Ok(0));
    page.unmap(ctx.sys);
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

/// Numbers bytes, so that each shows where it belongs.
fn number(bytes: &mut [u8]) {
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = (i / 512 * 7 + i) as u8;
    }
}

/// Writes `LARGE` numbered bytes from `from` and reads them back to `to`, both
/// offsets into one buffer, as `shape` has them named.
fn there_and_back(
    ctx: &mut Ctx<'_>,
    fd: Fd,
    data: &mut Memory,
    at: usize,
    mut shape: impl FnMut(&mut Command),
) -> Outcome {
    let mut command = Command::new(ctx.sys, 0);
    for write in [true, false] {
        command.rw10(write, 64, (LARGE / BLOCK) as u16);
        command.csio().data_ptr = (data.address() + at) as *mut u8;
        shape(&mut command);
        if write {
            number(data.bytes_mut());
        } else {
            data.bytes_mut().fill(0xaa);
        }
        let ended = queue_and_reap(ctx, fd, &command)?;
        expect!("ended", ended, GOOD);
    }
    command.free(ctx.sys);
    Ok(())
}

/// Bytes that were read, and bytes that were left alone; none is anything else.
fn read_and_left(data: &Memory) -> (usize, usize) {
    let (mut read, mut left) = (0, 0);
    for (i, byte) in data.bytes().iter().enumerate() {
        let wanted = (i / 512 * 7 + i) as u8;
        read += usize::from(*byte == wanted && wanted != 0xaa);
        left += usize::from(*byte == 0xaa && wanted != 0xaa);
    }
    (read, left)
}

/// How many of `LARGE` bytes from `at` on are told apart from 0xaa.
fn telling(at: usize, len: usize) -> usize {
    (at..at + len)
        .filter(|i| (i / 512 * 7 + i) as u8 != 0xaa)
        .count()
}

fn a_large_transfer_moves_its_own_bytes_only(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut data = Memory::new(ctx.sys, LARGE + 3 * 4096);
    for at in [0, 4096, 512, 100] {
        there_and_back(ctx, fd, &mut data, at, |_| ())?;
        let all = telling(0, data.len());
        let own = telling(at, LARGE);
        expect!("bytes", read_and_left(&data), (own, all - own));
    }
    ctx.see(format_args!("at four offsets"));
    data.unmap(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn a_large_list_of_pages_moves_its_own_bytes_only(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut data = Memory::new(ctx.sys, 2 * LARGE);
    let mut list = Memory::new(ctx.sys, 4096);
    // The first begins inside a page; a page is left out before each other.
    let segments = [
        (512, 4096 - 512),
        (8192, 8192),
        (20480, LARGE - 16384),
        (20480 + LARGE - 16384 + 4096, 4096 + 512),
    ];
    let address = data.address();
    for (i, (at, len)) in segments.iter().enumerate() {
        let words = [(address + at) as u64, *len as u64];
        for (j, word) in words.iter().enumerate() {
            let to = i * 16 + j * 8;
            list.bytes_mut()[to..to + 8].copy_from_slice(&word.to_ne_bytes());
        }
    }
    let list_at = list.address();
    there_and_back(ctx, fd, &mut data, 0, |command| {
        let csio = command.csio();
        csio.ccb_h.flags |= sys::CAM_DATA_SG;
        csio.data_ptr = list_at as *mut u8;
        csio.sglist_cnt = segments.len() as u16;
    })?;
    let all = telling(0, data.len());
    let own: usize = segments.iter().map(|(at, len)| telling(*at, *len)).sum();
    expect!("bytes", read_and_left(&data), (own, all - own));
    ctx.see(format_args!("four segments"));
    data.unmap(ctx.sys);
    list.unmap(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn a_large_buffer_may_be_wired(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut data = Memory::new(ctx.sys, LARGE);
    let at = data.bytes_mut().as_mut_ptr();
    expect!("mlock", ctx.sys.wire(at, LARGE), Ok(()));
    there_and_back(ctx, fd, &mut data, 0, |_| ())?;
    let all = telling(0, LARGE);
    expect!("bytes", read_and_left(&data), (all, 0));
    ctx.see(format_args!("wired"));
    data.unmap(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn a_large_buffer_may_be_write_only(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut data = Memory::new(ctx.sys, LARGE);
    let mut command = Command::new(ctx.sys, 0);
    number(data.bytes_mut());
    let at = data.bytes_mut().as_mut_ptr();
    for write in [true, false] {
        if !write {
            data.bytes_mut().fill(0xaa);
            ctx.sys.protect(at, LARGE, Access::WriteOnly);
        }
        command.rw10(write, 64, (LARGE / BLOCK) as u16);
        command.csio().data_ptr = at;
        expect!("ended", queue_and_reap(ctx, fd, &command)?, GOOD);
    }
    ctx.sys.protect(at, LARGE, Access::Write);
    expect!("bytes", read_and_left(&data), (telling(0, LARGE), 0));
    ctx.see(format_args!("read into"));
    data.unmap(ctx.sys);
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

/// What is read goes into the process's own copy of the pages: another mapping
/// of the file shows what it has always shown.
fn a_private_file_mapping_is_written_from_and_read_into(ctx: &mut Ctx<'_>) -> Outcome {
    const LEN: usize = 64 << 10;
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, 0);
    let (mut mapped, mut back) = (Memory::of_file(ctx.sys, LEN), Memory::new(ctx.sys, LEN));
    // Written from pages that nobody has touched yet.
    command.rw10(true, 64, (LEN / BLOCK) as u16);
    command.csio().data_ptr = mapped.address() as *mut u8;
    expect!("write", queue_and_reap(ctx, fd, &command)?, GOOD);
    command.rw10(false, 64, (LEN / BLOCK) as u16);
    command.csio().data_ptr = back.address() as *mut u8;
    expect!("read", queue_and_reap(ctx, fd, &command)?, GOOD);
    expect!("the file's bytes", back.bytes() == mapped.bytes(), true);
    expect!("not all zero", back.bytes().iter().any(|b| *b != 0), true);
    // Read into pages that are the file's still.
    mapped.unmap(ctx.sys);
    mapped = Memory::of_file(ctx.sys, LEN);
    number(back.bytes_mut());
    command.rw10(true, 64, (LEN / BLOCK) as u16);
    command.csio().data_ptr = back.address() as *mut u8;
    expect!("write", queue_and_reap(ctx, fd, &command)?, GOOD);
    command.rw10(false, 64, (LEN / BLOCK) as u16);
    command.csio().data_ptr = mapped.address() as *mut u8;
    expect!("read", queue_and_reap(ctx, fd, &command)?, GOOD);
    expect!("read into the copy", mapped.bytes() == back.bytes(), true);
    let again = Memory::of_file(ctx.sys, LEN);
    expect!("the file is as it was", again.bytes() != back.bytes(), true);
    ctx.see(format_args!("both ways"));
    for memory in [mapped, back, again] {
        memory.unmap(ctx.sys);
    }
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn a_large_write_from_a_read_only_buffer_goes_through(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, LARGE);
    let at = command.data.bytes_mut().as_mut_ptr();
    ctx.sys.protect(at, LARGE, Access::Read);
    command.rw10(true, 64, (LARGE / BLOCK) as u16);
    let ended = queue_and_reap(ctx, fd, &command)?;
    ctx.see(format_args!("{ended:?}"));
    expect!("ended", ended, GOOD);
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn a_large_read_into_a_read_only_buffer_is_efault(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, LARGE);
    let at = command.data.bytes_mut().as_mut_ptr();
    ctx.sys.protect(at, LARGE, Access::Read);
    command.rw10(false, 64, (LARGE / BLOCK) as u16);
    expect!("CAMIOQUEUE", command.queue(ctx.sys, fd), Ok(()));
    expect!("poll", ctx.sys.poll(fd, POLLIN, SOON as i32), Ok(POLLIN));
    let refused = command.get(ctx.sys, fd);
    expect!("read-only", refused, errno!(EFAULT));
    ctx.sys.protect(at, LARGE, Access::Write);
    let again = command.get(ctx.sys, fd);
    ctx.see(format_args!("{refused:?} {again:?}"));
    expect!("again", again, Ok(()));
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

fn a_large_write_across_a_guard_page_is_efault(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    let mut command = Command::new(ctx.sys, LARGE);
    let at = command.data.bytes_mut().as_mut_ptr();
    let guard = at.wrapping_add(LARGE - 4096);
    ctx.sys.protect(guard, 4096, Access::None);
    command.rw10(true, 64, (LARGE / BLOCK) as u16);
    let refused = command.queue(ctx.sys, fd);
    expect!("across", refused, errno!(EFAULT));
    // And up to it.
    command.rw10(true, 64, ((LARGE - 4096) / BLOCK) as u16);
    let ended = queue_and_reap(ctx, fd, &command)?;
    ctx.see(format_args!("{refused:?} then {ended:?}"));
    expect!("ended", ended, GOOD);
    command.free(ctx.sys);
    ctx.sys.close(fd);
    Ok(())
}

/// Its data goes to the pages that were there, or is told by EFAULT. (A mapping
/// that the process makes at the same place may be given the same pages: until
/// it is reaped, a request's memory is the device's.)
fn a_buffer_may_be_unmapped_meanwhile(ctx: &mut Ctx<'_>) -> Outcome {
    let fd = open(ctx)?;
    for _ in 0..20 {
        let mut command = Command::new(ctx.sys, 0);
        let data = Memory::new(ctx.sys, LARGE);
        command.rw10(false, 64, (LARGE / BLOCK) as u16);
        command.csio().data_ptr = data.address() as *mut u8;
        expect!("CAMIOQUEUE", command.queue(ctx.sys, fd), Ok(()));
        data.unmap(ctx.sys);
        expect!("poll", ctx.sys.poll(fd, POLLIN, SOON as i32), Ok(POLLIN));
        let got = command.get(ctx.sys, fd);
        expect!("CAMIOGET", got.is_ok() || got == errno!(EFAULT), true);
        if got.is_err() {
            // It is there still: the open goes, and takes it along.
            break;
        }
        command.free(ctx.sys);
    }
    ctx.see(format_args!("reaped or refused"));
    ctx.sys.close(fd);
    Ok(())
}
