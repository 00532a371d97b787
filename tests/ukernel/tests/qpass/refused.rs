//! Each input that is refused: its errno, by every call, and nothing else. The
//! tables of qpass(4)'s ERRORS and of docs/correctness.md name the tests.

use super::{
    control::{call, cancel, info},
    enter::{Arrays, enter},
    sims::{TAKEN, boot_open, by_each_call, end},
    transfers::{Protocol, build, entry, nvme, nvme_data},
    *,
};
use cam::{PathInq, Sim};
use ukernel::{disk::RamDisk, model::Model};

tests! {
    flags_that_name_kernel_memory_are_einval;
    opcodes_that_no_program_may_send_are_refused;
    an_unknown_kind_of_tag_is_einval;
    a_list_for_a_command_that_has_none_is_einval;
    an_smp_command_is_copied_and_short;
    a_length_that_no_command_has_is_refused;
    what_only_one_of_the_calls_takes_is_refused_by_the_other;
    an_nvme_command_that_deletes_a_queue_is_eperm;
    an_nvme_command_of_another_namespace_is_einval;
    blocks_with_metadata_elsewhere_are_einval;
    a_submission_with_a_reserved_field_is_einval;
    a_signal_ends_a_cancel;
    sense_data_fits_what_a_ccb_has_room_for;
}

const EINVAL: i32 = sys::EINVAL as i32;
const EPERM: i32 = sys::EPERM as i32;
const E2BIG: i32 = sys::E2BIG as i32;

/// The same answer from CAMIOQUEUE, CAMIOCOMMAND and QPIOC_ENTER.
const fn all(errno: i32) -> [Result<(), i32>; 3] {
    [Err(errno); 3]
}

/// Sends a CCB by every call, and sees that nobody has heard of it.
fn refused(
    machine: &mut Machine,
    fd: i32,
    command: &mut Command,
    wanted: [Result<(), i32>; 3],
    what: &str,
) {
    let device = machine.device().clone();
    let sent = cam::last_sent(&device).1;
    let before = info(machine, fd).expect("info");
    assert_eq!(by_each_call(machine, fd, command), wanted, "{what}");
    let after = info(machine, fd).expect("info");
    assert_eq!(after.submitted, before.submitted, "{what}");
    assert_eq!(after.requests, before.requests, "{what}");
    assert_eq!(cam::last_sent(&device).1, sent, "{what} is not sent");
}

fn flags_that_name_kernel_memory_are_einval() {
    let (mut machine, module, fd) = boot_open(Config::default());
    let mut command = Command::new(&mut machine, 512);
    for flag in [
        sys::CAM_UNLOCKED,
        sys::CAM_CDB_PHYS,
        sys::CAM_SENSE_PTR,
        sys::CAM_SENSE_PHYS,
    ] {
        command.rw10(false, 0, 1);
        command.hdr().flags |= flag;
        let what = format!("XPT_SCSI_IO with {flag:#x}");
        refused(&mut machine, fd, &mut command, all(EINVAL), &what);
        command.immediate(sys::XPT_NOOP);
        command.hdr().flags |= flag;
        let what = format!("XPT_NOOP with {flag:#x}");
        refused(&mut machine, fd, &mut command, all(EINVAL), &what);
    }
    end(machine, module, fd);
}

fn opcodes_that_no_program_may_send_are_refused() {
    let (mut machine, module, fd) = boot_open(Config::default());
    let mut command = Command::new(&mut machine, 0);
    let enodev = sys::ENODEV as i32;
    for (func_code, errno) in [
        // Target mode would outlive the open.
        (sys::XPT_EN_LUN, EINVAL),
        // They carry addresses of kernel functions, or of another's CCB.
        (sys::XPT_SASYNC_CB, EINVAL),
        (sys::XPT_TERM_IO, EINVAL),
        // It prints.
        (sys::XPT_DEBUG, EINVAL),
        (0x9ee, EINVAL),
        (sys::XPT_SCAN_BUS, enodev),
        (sys::XPT_DEV_MATCH, enodev),
        (sys::XPT_RESET_BUS, enodev),
    ] {
        command.immediate(func_code);
        let what = format!("{func_code:#x}");
        refused(&mut machine, fd, &mut command, all(errno), &what);
    }
    end(machine, module, fd);
}

/// A SIM makes a message of it, or an index.
fn an_unknown_kind_of_tag_is_einval() {
    let (mut machine, module, fd) = boot_open(Config::default());
    let mut command = Command::new(&mut machine, 0);
    let kinds = [0, 0x20, 0x21, 0x22, 0x24];
    for tag in 0..=u8::MAX {
        command.test_unit_ready();
        command.csio().tag_action = tag;
        command.hdr().flags |= sys::CAM_TAG_ACTION_VALID;
        if kinds.contains(&tag) {
            assert_eq!(
                by_each_call(&mut machine, fd, &mut command),
                TAKEN,
                "{tag:#x}"
            );
            continue;
        }
        let what = format!("tag {tag:#x}");
        refused(&mut machine, fd, &mut command, all(EINVAL), &what);
    }
    end(machine, module, fd);
}

/// An XPT_ATA_IO has no count of segments, and no peripheral sends one so.
fn a_list_for_a_command_that_has_none_is_einval() {
    let (mut machine, module, fd) = boot_open(Config::of(Model::AHCI));
    sysctl::set("allow_paddr", 1);
    let mut command = Command::new(&mut machine, 4096);
    for format in [
        sys::CAM_DATA_SG,
        sys::CAM_DATA_SG_PADDR,
        sys::CAM_DATA_BIO,
        sys::CAM_DATA_MASK,
    ] {
        let at = command.data.address();
        build(&mut command, Protocol::Ata, false, at, 4096);
        command.hdr().flags |= format;
        let what = format!("XPT_ATA_IO with {format:#x}");
        refused(&mut machine, fd, &mut command, all(EINVAL), &what);
    }
    sysctl::set("allow_paddr", 0);
    end(machine, module, fd);
}

fn smp(command: &mut Command, request: i32, response: i32) {
    let data = command.data.address();
    command.immediate(sys::XPT_SMP_IO);
    // SAFETY: plain data.
    let io = unsafe { &mut command.ccb.ccb_mut().smpio };
    (io.smp_request, io.smp_request_len) = (data as *mut u8, request);
    (io.smp_response, io.smp_response_len) = ((data + 4096) as *mut u8, response);
}

/// CAM looks at no format of an XPT_SMP_IO's, and a SIM follows one.
fn an_smp_command_is_copied_and_short() {
    let (mut machine, module, fd) = boot_open(Config {
        maxio: 16 << 20,
        ..Config::default()
    });
    let mut command = Command::new(&mut machine, 8192);
    for format in [
        sys::CAM_DATA_SG,
        sys::CAM_DATA_PADDR,
        sys::CAM_DATA_SG_PADDR,
        sys::CAM_DATA_BIO,
    ] {
        smp(&mut command, 8, 60);
        command.hdr().flags |= format;
        let what = format!("XPT_SMP_IO with {format:#x}");
        refused(&mut machine, fd, &mut command, all(EINVAL), &what);
    }
    for (request, response) in [(-1, 60), (8, -1), (i32::MIN, i32::MIN)] {
        smp(&mut command, request, response);
        let what = format!("{request} and {response} bytes");
        refused(&mut machine, fd, &mut command, all(EINVAL), &what);
    }
    // Longer than 1 MiB: E2BIG by CAMIOCOMMAND, as from pass(4).
    let too_long = [Err(EINVAL), Err(E2BIG), Err(EINVAL)];
    for (request, response) in [((1 << 20) + 1, 60), (8, (1 << 20) + 1)] {
        smp(&mut command, request, response);
        let what = format!("{request} and {response} bytes");
        refused(&mut machine, fd, &mut command, too_long, &what);
    }
    end(machine, module, fd);
}

fn a_length_that_no_command_has_is_refused() {
    let (mut machine, module, fd) = boot_open(Config {
        maxio: 131_072,
        ..Config::default()
    });
    let mut command = Command::new(&mut machine, 4096);
    let at = command.data.address();
    let too_long = [Err(EINVAL), Err(E2BIG), Err(EINVAL)];
    for len in [131_073, 1 << 30, u32::MAX] {
        command.rw10(false, 0, 1);
        command.csio().dxfer_len = len;
        let what = format!("{len} bytes, SCSI");
        refused(&mut machine, fd, &mut command, too_long, &what);
        build(&mut command, Protocol::Ata, false, at, 4096);
        command.ccb.ccb_mut().ataio.dxfer_len = len;
        let what = format!("{len} bytes, ATA");
        refused(&mut machine, fd, &mut command, too_long, &what);
        build(&mut command, Protocol::Nvme, false, at, 4096);
        nvme_data(&mut command, at, len as usize);
        let what = format!("{len} bytes, NVMe");
        refused(&mut machine, fd, &mut command, too_long, &what);
    }
    for (len, answers) in [
        ((1 << 20) + 1, too_long),
        (u32::MAX as i64, too_long),
        (1 << 32, all(EINVAL)),
        (-1, all(EINVAL)),
    ] {
        command.immediate(sys::XPT_DEV_ADVINFO);
        // SAFETY: plain data.
        let io = unsafe { &mut command.ccb.ccb_mut().cdai };
        (io.buftype, io.buf, io.bufsiz) = (sys::CDAI_TYPE_SERIAL_NUM, at as *mut u8, len);
        let what = format!("{len} bytes, XPT_DEV_ADVINFO");
        refused(&mut machine, fd, &mut command, answers, &what);
    }
    // A CDB: 16 bytes in the CCB, and by pointer as many for a queued one.
    for len in [17, 32, 255] {
        command.test_unit_ready();
        command.csio().cdb_len = len;
        let what = format!("a CDB of {len} bytes");
        refused(&mut machine, fd, &mut command, all(EINVAL), &what);
    }
    end(machine, module, fd);
}

fn what_only_one_of_the_calls_takes_is_refused_by_the_other() {
    let (mut machine, module, fd) = boot_open(Config::default());
    let mut command = Command::new(&mut machine, 4096);
    let at = command.data.address();
    // cam_periph_mapmem(9) would store zeroes.
    command.immediate(sys::XPT_DEV_ADVINFO);
    // SAFETY: plain data.
    let io = unsafe { &mut command.ccb.ccb_mut().cdai };
    (io.buftype, io.flags) = (sys::CDAI_TYPE_PHYS_PATH, sys::CDAI_FLAG_STORE);
    (io.buf, io.bufsiz) = (at as *mut u8, 8);
    assert_eq!(command.send(&mut machine, fd), Err(EINVAL));
    let mut list = conform::sys::Memory::new(&mut machine, 4096);
    command.rw10(false, 0, 1);
    command.list(&mut list, 0, 0, &[512]);
    assert_eq!(command.send(&mut machine, fd), Err(EINVAL));
    assert_eq!(cam::last_sent(&machine.device().clone()).1, 0);
    // An XPT_MMC_IO is synchronous: formats::an_mmc_command_with_bad_data_is_refused.
    formats::mmc(&mut command, 13, sys::CAM_DIR_NONE, 0);
    assert_eq!(command.queue(&mut machine, fd), Err(EINVAL));
    end(machine, module, fd);
}

/// What nvme(4) has set up is not a program's: see also
/// prps::an_nvme_admin_command_names_no_physical_memory.
fn an_nvme_command_that_deletes_a_queue_is_eperm() {
    let (mut machine, module, fd) = boot_open(Config::of(Model::NVME));
    let mut command = Command::new(&mut machine, 0);
    for opcode in [0x00, 0x01, 0x04, 0x05, 0x7c] {
        nvme(&mut command, true, opcode, sys::CAM_DIR_NONE);
        let what = format!("admin {opcode:#x}");
        refused(&mut machine, fd, &mut command, all(EPERM), &what);
    }
    // Of the I/O commands, 00h is FLUSH.
    nvme(&mut command, false, 0x00, sys::CAM_DIR_NONE);
    assert_eq!(by_each_call(&mut machine, fd, &mut command), TAKEN);
    end(machine, module, fd);
}

fn an_nvme_command_of_another_namespace_is_einval() {
    let (mut machine, module, fd) = boot_open(Config::of(Model::NVME));
    let mut command = Command::new(&mut machine, 4096);
    let at = command.data.address();
    for opcode in [1, 2, 5] {
        for namespace in [0, 2, 0xff] {
            build(&mut command, Protocol::Nvme, opcode != 2, at, 4096);
            entry(&mut command)[0] = opcode;
            entry(&mut command)[4] = namespace;
            let what = format!("{opcode:#x} of namespace {namespace}");
            refused(&mut machine, fd, &mut command, all(EINVAL), &what);
        }
    }
    end(machine, module, fd);
}

/// An NVMe disk that says otherwise how it is formatted.
struct Formatted(Arc<RamDisk>, Vec<u8>);

impl Sim for Formatted {
    fn start(&self, ccb: *mut sys::ccb) {
        self.0.start(ccb);
    }
    fn abort(&self, ccb: *mut sys::ccb) -> bool {
        self.0.abort(ccb)
    }
    fn namespace(&self) -> Option<Vec<u8>> {
        Some(self.1.clone())
    }
    fn path_inq(&self) -> PathInq {
        self.0.path_inq()
    }
    fn openings(&self) -> usize {
        self.0.openings()
    }
    fn inquiry(&self) -> [u8; 36] {
        self.0.inquiry()
    }
    fn name(&self) -> &str {
        "nvme"
    }
    fn pull(&self) {
        self.0.pull();
    }
    fn build_read(&self, ccb: &mut sys::ccb, block: &mut [u8; 512]) {
        self.0.build_read(ccb, block);
    }
}

/// Metadata in a buffer of its own needs MPTR, a physical address.
fn blocks_with_metadata_elsewhere_are_einval() {
    let (mut machine, module) = boot(Config::of(Model::NVME));
    // Metadata bytes of a block, and whether they follow it in the buffer.
    for (metadata, extended, wanted) in [
        (0_u16, false, TAKEN),
        (8, false, all(EINVAL)),
        (8, true, all(EINVAL)),
    ] {
        let disk = RamDisk::new("SECOND", Config::of(Model::NVME));
        let mut namespace = disk.namespace().expect("a namespace");
        namespace[26] = if extended { 0x10 } else { 0 };
        namespace[128..130].copy_from_slice(&metadata.to_le_bytes());
        namespace[130] = 9;
        let device = cam::attach((0, 1, 1), Arc::new(Formatted(disk, namespace)));
        cam::settle();
        wait_until("/dev/qpass1 is there", || devfs::exists("qpass1"));
        let fd = machine.open("/dev/qpass1", RDWR).expect("open");
        let mut command = Command::new(&mut machine, 4160);
        let at = command.data.address();
        build(&mut command, Protocol::Nvme, false, at, 4096);
        let answers = by_each_call(&mut machine, fd, &mut command);
        assert_eq!(answers, wanted, "{metadata} bytes, extended: {extended}");
        machine.close(fd);
        cam::detach(&device);
        cam::settle();
        wait_until("it has gone", || !devfs::exists("qpass1"));
    }
    machine.unload(module);
}

fn a_submission_with_a_reserved_field_is_einval() {
    let (mut machine, module, fd) = boot_open(Config::default());
    let commands = super::enter::reads(&mut machine, 2);
    let mut arrays = Arrays::new(&mut machine);
    arrays.submit(&super::enter::with_tags(&commands));
    let at =
        size_of::<sys::qpass_submission>() + core::mem::offset_of!(sys::qpass_submission, reserved);
    arrays.submissions.bytes_mut()[at] = 1;
    let answer = enter(&mut machine, fd, arrays.call(2, 2, 2));
    assert_eq!(
        answer.map(|(taken, _, why, _)| (taken, why)),
        Ok((1, EINVAL))
    );
    assert_eq!(info(&mut machine, fd).map(|i| i.submitted), Ok(1));
    end(machine, module, fd);
}

/// The SIM has five seconds, unless a signal comes.
fn a_signal_ends_a_cancel() {
    let (mut machine, module, fd) = boot_open(Config::of(Model::ISCSI_SILENT));
    machine.disk().stuck.store(true, Ordering::SeqCst);
    let mut command = Command::new(&mut machine, 512);
    command.rw10(false, 0, 1);
    command.queue(&mut machine, fd).expect("queue");
    lock::pend(true);
    let since = std::time::Instant::now();
    let answer = cancel(&mut machine, fd, 0);
    lock::pend(false);
    assert!(since.elapsed() < Duration::from_secs(3));
    assert_eq!(answer, Err(sys::EINTR as i32));
    // A name that is nobody's is that, at once.
    assert_eq!(cancel(&mut machine, fd, 0x1234), Err(sys::ENOENT as i32));
    // SAFETY: integers.
    let mut device: sys::qpass_cancel = unsafe { core::mem::zeroed() };
    device.flags = sys::QPASS_CANCEL_DEVICE;
    thread::PRIVILEGED.store(false, Ordering::SeqCst);
    let answer = call(&mut machine, fd, sys::QPC_QPIOC_CANCEL, device);
    assert_eq!(answer.err(), Some(EPERM));
    thread::PRIVILEGED.store(true, Ordering::SeqCst);
    machine.depart();
    end(machine, module, fd);
}

/// `sense_len` is a byte, and a CCB has 252 of them.
fn sense_data_fits_what_a_ccb_has_room_for() {
    let (mut machine, module, fd) = boot_open(Config::default());
    let mut command = Command::new(&mut machine, 512);
    let room = size_of::<sys::scsi_sense_data>() as u8;
    for (asked, given) in [(0, 0), (10, 10), (18, 18), (room, 18), (255, 18)] {
        // A read behind the end: CHECK CONDITION.
        command.rw10(false, u32::MAX, 1);
        command.csio().sense_len = asked;
        queue_and_get(&mut machine, fd, &command);
        assert_eq!(command.ended().status, sys::CAM_SCSI_STATUS_ERROR);
        let csio = command.csio();
        assert_eq!(csio.sense_len, asked.min(room), "what there was room for");
        assert_eq!(csio.sense_len - csio.sense_resid, given);
    }
    end(machine, module, fd);
}
