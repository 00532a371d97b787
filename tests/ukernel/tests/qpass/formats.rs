//! Data that is neither one user buffer nor a list of them.

use super::*;
use ukernel::disk::PHYSICAL;

tests! {
    the_header_of_a_users_ccb_does_not_reach_cam;
    an_mmc_command_goes_through;
    an_mmc_command_with_bad_data_is_refused;
    a_physical_address_needs_every_permission;
    a_physical_address_reaches_the_device_untouched;
    a_physical_list_reaches_the_device_untouched;
    a_user_supplied_ccb_goes_through;
    data_goes_both_ways_in_one_command;
    target_mode_and_the_adapters_settings_are_refused;
    timeout_and_retries_reach_the_sim;
    whatever_has_no_data_is_answered_at_once;
    anothers_freeze_is_not_released;
}

const EPERM: i32 = sys::EPERM as i32;

/// Sets up an XPT_MMC_IO with its struct mmc_data at the start of the buffer
/// and its data at 4096.
pub fn mmc(command: &mut Command, opcode: u32, flags: u32, len: usize) {
    let base = command.data.address();
    // SAFETY: plain data.
    unsafe {
        *command.ccb.ccb_mut() = core::mem::zeroed();
        let io = &mut command.ccb.ccb_mut().mmcio;
        io.ccb_h.func_code = sys::XPT_MMC_IO;
        io.ccb_h.flags = flags | sys::CAM_DEV_QFRZDIS;
        io.ccb_h.timeout = 10_000;
        io.cmd.opcode = opcode;
        io.cmd.arg = 7;
        io.cmd.data = base as *mut sys::mmc_data;
        io.cmd.mrq = 0x1111 as *mut sys::mmc_request;
        io.stop.mrq = 0x2222 as *mut sys::mmc_request;
        io.stop.data = 0x3333 as *mut sys::mmc_data;
        let mut data: sys::mmc_data = core::mem::zeroed();
        data.len = len;
        data.data = (base + 4096) as *mut core::ffi::c_void;
        data.mrq = 0x4444 as *mut sys::mmc_request;
        let bytes = core::slice::from_raw_parts((&raw const data).cast::<u8>(), size_of_val(&data));
        command.data.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
    }
}

fn mmc_data(command: &Command) -> sys::mmc_data {
    // SAFETY: plain data, put there by mmc().
    unsafe { core::ptr::read_unaligned(command.data.bytes().as_ptr().cast::<sys::mmc_data>()) }
}

fn an_mmc_command_goes_through() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 4096 + 8192);
    for (opcode, direction) in [(25, sys::CAM_DIR_OUT), (18, sys::CAM_DIR_IN)] {
        let fill = if opcode == 25 { 0x42 } else { 0 };
        command.data.bytes_mut()[4096..].fill(fill);
        mmc(&mut command, opcode, direction, 8192);
        command.send(&mut machine, fd).expect("send");
        assert!(command.data.bytes()[4096..].iter().all(|b| *b == 0x42));
        let base = command.data.address();
        // SAFETY: plain data.
        let io = unsafe { &command.ccb.ccb().mmcio };
        assert_eq!(io.ccb_h.status & sys::CAM_STATUS_MASK, sys::CAM_REQ_CMP);
        assert_eq!(io.cmd.resp[0], 0x900);
        assert_eq!(
            (io.cmd.data as usize, io.cmd.mrq as usize),
            (base, 0x1111),
            "the user's own pointers come back"
        );
        assert_eq!(
            (io.stop.data as usize, io.stop.mrq as usize),
            (0x3333, 0x2222)
        );
        let data = mmc_data(&command);
        assert_eq!(data.xfer_len, 8192, "what the SIM has written comes back");
        assert_eq!(
            (data.data as usize, data.mrq as usize),
            (base + 4096, 0x4444)
        );
    }
    // Without data.
    mmc(&mut command, 13, sys::CAM_DIR_NONE, 0);
    command.send(&mut machine, fd).expect("send");
    // SAFETY: plain data.
    assert_eq!(unsafe { command.ccb.ccb().mmcio.cmd.resp[0] }, 0x900);
    machine.close(fd);
    machine.unload(module);
}

fn an_mmc_command_with_bad_data_is_refused() {
    let (mut machine, module) = boot(Config {
        maxio: 65536,
        ..Config::default()
    });
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 4096 + 8192);
    mmc(&mut command, 18, sys::CAM_DIR_IN, 8192);
    assert_eq!(
        command.queue(&mut machine, fd),
        Err(sys::EINVAL as i32),
        "synchronous only, as in pass(4)"
    );
    let mut sent = |spoil: fn(&mut sys::ccb, &mut sys::mmc_data)| {
        mmc(&mut command, 18, sys::CAM_DIR_IN, 8192);
        let at = command
            .data
            .bytes_mut()
            .as_mut_ptr()
            .cast::<sys::mmc_data>();
        // SAFETY: put there by mmc(), page aligned.
        spoil(command.ccb.ccb_mut(), unsafe { &mut *at });
        command.send(&mut machine, fd)
    };
    assert_eq!(
        sent(|ccb, _| ccb.mmcio.cmd.data = 0x1000 as *mut sys::mmc_data),
        Err(EFAULT)
    );
    assert_eq!(
        sent(|_, data| data.data = 0x1000 as *mut core::ffi::c_void),
        Err(EFAULT)
    );
    for len in [65537, usize::MAX, 1 << 32] {
        mmc(&mut command, 18, sys::CAM_DIR_IN, len);
        assert_eq!(command.send(&mut machine, fd), Err(sys::E2BIG as i32));
    }
    let mut sent = |blocks: (usize, usize)| {
        mmc(&mut command, 18, sys::CAM_DIR_IN, 8192);
        let at = command
            .data
            .bytes_mut()
            .as_mut_ptr()
            .cast::<sys::mmc_data>();
        // SAFETY: put there by mmc(), page aligned.
        let data = unsafe { &mut *at };
        data.flags = sys::MMC_DATA_BLOCK_SIZE;
        (data.block_size, data.block_count) = blocks;
        command.send(&mut machine, fd)
    };
    assert_eq!(sent((512, 17)), Err(sys::EINVAL as i32));
    assert_eq!(sent((usize::MAX, 2)), Err(sys::EINVAL as i32));
    assert_eq!(sent((512, 16)), Ok(()));
    machine.close(fd);
    machine.unload(module);
}

fn physical(command: &mut Command, at: usize) {
    command.rw10(true, 0, 8);
    command.hdr().flags |= sys::CAM_DATA_PADDR;
    command.csio().data_ptr = at as *mut u8;
}

fn a_physical_address_needs_every_permission() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let memory = memory::alloc(4096, "physical", sys::M_WAITOK | sys::M_ZERO);
    let mut command = Command::new(&mut machine, 0);
    let mut refused = |machine: &mut Machine, why: &str| {
        physical(&mut command, memory as usize);
        assert_eq!(command.queue(machine, fd), Err(EPERM), "{why}");
        assert_eq!(command.send(machine, fd), Err(EPERM), "{why}, synchronous");
    };
    refused(&mut machine, "allow_paddr is 0");
    sysctl::set("allow_paddr", 1);
    thread::PRIVILEGED.store(false, Ordering::SeqCst);
    refused(&mut machine, "no privilege");
    thread::PRIVILEGED.store(true, Ordering::SeqCst);
    thread::SECURELEVEL.store(1, Ordering::SeqCst);
    refused(&mut machine, "securelevel 1");
    assert_eq!(PHYSICAL.load(Ordering::SeqCst), 0);
    thread::SECURELEVEL.store(0, Ordering::SeqCst);
    physical(&mut command, memory as usize);
    command.send(&mut machine, fd).expect("send");
    assert_eq!(PHYSICAL.load(Ordering::SeqCst), 1);
    memory::dealloc(memory, "physical");
    machine.close(fd);
    machine.unload(module);
}

fn a_physical_address_reaches_the_device_untouched() {
    let (mut machine, module) = boot(Config::default());
    sysctl::set("allow_paddr", 1);
    let fd = machine.open(NODE, RDWR).expect("open");
    let flags = sys::M_WAITOK | sys::M_ZERO;
    let memory = memory::alloc(4096, "physical", flags).cast::<u8>();
    // SAFETY: just allocated.
    unsafe { core::ptr::write_bytes(memory, 0x77, 4096) };
    let mut command = Command::new(&mut machine, 4096);
    both_ways(
        &mut machine,
        fd,
        &mut command,
        |c| physical(c, memory as usize),
        |c| {
            assert_eq!(c.ended().status, sys::CAM_REQ_CMP);
            assert_eq!(c.csio().data_ptr, memory);
            assert_ne!(c.hdr().flags & sys::CAM_DATA_PADDR, 0);
        },
    );
    assert_eq!(PHYSICAL.load(Ordering::SeqCst), 2);
    assert_eq!(sysctl::value("0.copied_bytes"), Some(0));
    command.rw10(false, 0, 8);
    queue_and_get(&mut machine, fd, &command);
    assert!(command.data.bytes()[..4096].iter().all(|b| *b == 0x77));
    memory::dealloc(memory.cast(), "physical");
    machine.close(fd);
    machine.unload(module);
}

fn a_physical_list_reaches_the_device_untouched() {
    let (mut machine, module) = boot(Config::default());
    sysctl::set("allow_paddr", 1);
    let fd = machine.open(NODE, RDWR).expect("open");
    let memory = memory::alloc(4096, "physical", sys::M_WAITOK | sys::M_ZERO);
    let mut command = Command::new(&mut machine, 4096);
    let mut list = conform::sys::Memory::new(&mut machine, 4096);
    for (i, (at, len)) in [(0, 1000), (1000, 3096)].into_iter().enumerate() {
        let segment = [memory as u64 + at, len];
        for (j, word) in segment.iter().enumerate() {
            list.bytes_mut()[i * 16 + j * 8..][..8].copy_from_slice(&word.to_ne_bytes());
        }
    }
    let build = |command: &mut Command, count: u16| {
        command.rw10(true, 0, 8);
        command.hdr().flags |= sys::CAM_DATA_SG_PADDR;
        command.csio().data_ptr = list.address() as *mut u8;
        command.csio().sglist_cnt = count;
    };
    both_ways(
        &mut machine,
        fd,
        &mut command,
        |c| build(c, 2),
        |c| {
            assert_eq!(c.ended().status, sys::CAM_REQ_CMP);
            assert_eq!(c.csio().data_ptr as usize, list.address());
            assert_eq!(c.csio().sglist_cnt, 2);
        },
    );
    // One segment is not enough for the transfer.
    build(&mut command, 1);
    let einval = Err(sys::EINVAL as i32);
    assert_eq!(command.send(&mut machine, fd), einval);
    assert_eq!(command.queue(&mut machine, fd), einval);
    assert_eq!(PHYSICAL.load(Ordering::SeqCst), 2);
    memory::dealloc(memory, "physical");
    machine.close(fd);
    machine.unload(module);
}

fn a_user_supplied_ccb_goes_through() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 0);
    both_ways(
        &mut machine,
        fd,
        &mut command,
        |c| {
            until_it_is_let_be();
            c.immediate(sys::XPT_REPROBE_LUN);
            c.set_private(0, 0xabcd);
        },
        |c| {
            let status = c.hdr().status & sys::CAM_STATUS_MASK;
            assert_eq!(status, sys::CAM_REQ_CMP);
            assert_eq!(c.private(0), 0xabcd);
        },
    );
    machine.close(fd);
    machine.unload(module);
}

fn data_goes_both_ways_in_one_command() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 65536);
    let mut old = 0;
    for (new, len) in [(0x55, 65536), (0x0f, 4096), (0xf0, 65536)] {
        let mut round = 0;
        both_ways(
            &mut machine,
            fd,
            &mut command,
            |c| {
                let [hi, lo] = ((len / 512) as u16).to_be_bytes();
                let cdb = [0x53, 0, 0, 0, 0, 0, 0, hi, lo, 0];
                c.scsi(&cdb, sys::CAM_DIR_BOTH, len);
                c.data.bytes_mut()[..len].fill(new);
            },
            |c| {
                assert_eq!(c.ended().status, sys::CAM_REQ_CMP);
                let before = if round == 0 { old } else { new };
                assert!(c.data.bytes()[..4096].iter().all(|b| *b == before ^ new));
                round += 1;
            },
        );
        old = new;
    }
    machine.close(fd);
    machine.unload(module);
}

/// mpt(4) takes them for what they are not; nobody could have turned target mode on.
fn target_mode_and_the_adapters_settings_are_refused() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 512);
    let einval = Err(sys::EINVAL as i32);
    for func_code in [
        sys::XPT_EN_LUN,
        sys::XPT_ACCEPT_TARGET_IO,
        sys::XPT_CONT_TARGET_IO,
        sys::XPT_IMMED_NOTIFY,
        sys::XPT_IMMEDIATE_NOTIFY,
        sys::XPT_NOTIFY_ACK,
        sys::XPT_NOTIFY_ACKNOWLEDGE,
        sys::XPT_SET_SIM_KNOB,
    ] {
        command.immediate(func_code);
        assert_eq!(command.send(&mut machine, fd), einval, "{func_code:#x}");
        assert_eq!(command.queue(&mut machine, fd), einval, "{func_code:#x}");
    }
    machine.close(fd);
    machine.unload(module);
}

fn timeout_and_retries_reach_the_sim() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 0);
    for (timeout, retries) in [(1, 0), (123_456, 7), (sys::CAM_TIME_INFINITY, 3)] {
        both_ways(
            &mut machine,
            fd,
            &mut command,
            |c| {
                c.test_unit_ready();
                c.hdr().timeout = timeout;
                c.hdr().retry_count = retries;
            },
            |c| assert_eq!((c.hdr().timeout, c.hdr().retry_count), (timeout, retries)),
        );
        let seen = *machine.disk().last_patience.lock().expect("a value");
        assert_eq!(seen, (timeout, retries));
    }
    machine.close(fd);
    machine.unload(module);
}

fn whatever_has_no_data_is_answered_at_once() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    // Nothing of this goes to the disk.
    machine.disk().stuck.store(true, Ordering::SeqCst);
    let mut command = Command::new(&mut machine, 0);
    for (func_code, status) in [
        (sys::XPT_NOOP, sys::CAM_REQ_CMP),
        (sys::XPT_GDEV_TYPE, sys::CAM_REQ_CMP),
        (sys::XPT_GDEVLIST, sys::CAM_REQ_CMP),
        (sys::XPT_GDEV_STATS, sys::CAM_REQ_CMP),
        (sys::XPT_PATH_INQ, sys::CAM_REQ_CMP),
        (sys::XPT_PATH_STATS, sys::CAM_REQ_CMP),
        (sys::XPT_GET_TRAN_SETTINGS, sys::CAM_REQ_CMP),
        (sys::XPT_SET_TRAN_SETTINGS, sys::CAM_REQ_CMP),
        (sys::XPT_CALC_GEOMETRY, sys::CAM_REQ_CMP),
        (sys::XPT_REL_SIMQ, sys::CAM_REQ_CMP),
        (sys::XPT_GET_SIM_KNOB, sys::CAM_REQ_INVALID),
    ] {
        for synchronous in [false, true] {
            command.immediate(func_code);
            if synchronous {
                command.send(&mut machine, fd).expect("send");
            } else {
                command.queue(&mut machine, fd).expect("queue");
                command.get(&mut machine, fd).expect("it is there at once");
            }
            let found = command.hdr().status & sys::CAM_STATUS_MASK;
            assert_eq!(found, status, "{func_code:#x}");
        }
    }
    for func_code in [sys::XPT_DEV_MATCH, sys::XPT_SCAN_BUS, sys::XPT_RESET_BUS] {
        command.immediate(func_code);
        let enodev = Err(sys::ENODEV as i32);
        assert_eq!(command.queue(&mut machine, fd), enodev, "{func_code:#x}");
        assert_eq!(command.send(&mut machine, fd), enodev, "{func_code:#x}");
    }
    machine.disk().unstick();
    machine.close(fd);
    machine.unload(module);
}

fn anothers_freeze_is_not_released() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    cam::freeze(machine.device());
    let mut command = Command::new(&mut machine, 0);
    command.test_unit_ready();
    command.queue(&mut machine, fd).expect("queue");
    assert_eq!(machine.poll(fd, POLLIN, 20), Ok(0), "it waits");
    let mut release = Command::new(&mut machine, 0);
    release.immediate(sys::XPT_REL_SIMQ);
    release.send(&mut machine, fd).expect("send");
    assert_eq!(release.ended().status, sys::CAM_REQ_CMP);
    assert_eq!(machine.poll(fd, POLLIN, 20), Ok(0), "it still waits");
    cam::unfreeze(machine.device());
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    command.get(&mut machine, fd).expect("get");
    assert_eq!(command.ended().status, sys::CAM_REQ_CMP);
    machine.close(fd);
    machine.unload(module);
}

/// All that is not the user's say is CAM's, whatever was in it, and is the user's
/// again when the CCB comes back.
fn the_header_of_a_users_ccb_does_not_reach_cam() {
    let (mut machine, module) = boot(Config::default());
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(&mut machine, 512);
    command.rw10(false, 0, 1);
    let hdr = *command.hdr();
    command.ccb.bytes_mut()[..size_of::<sys::ccb_hdr>()].fill(0x6b);
    let spoilt = command.hdr();
    (spoilt.func_code, spoilt.flags) = (hdr.func_code, hdr.flags);
    (spoilt.timeout, spoilt.retry_count) = (hdr.timeout, hdr.retry_count);
    let before = *command.hdr();
    queue_and_get(&mut machine, fd, &command);
    let after = *command.hdr();
    assert_eq!(after.status & sys::CAM_STATUS_MASK, sys::CAM_REQ_CMP);
    // SAFETY: plain data.
    unsafe {
        assert_eq!(after.sim_priv.bytes, before.sim_priv.bytes);
        assert_eq!(after.periph_priv.bytes, before.periph_priv.bytes);
    }
    assert_eq!(after.path, before.path);
    assert_eq!(after.pinfo.priority, before.pinfo.priority);
    machine.close(fd);
    machine.unload(module);
}
