//! NVMe commands: a controller believes what a command says of its data, and
//! PRPs have no length (NVM Express Base Specification 2.0, 4.1.1).

use super::{
    sims::{TAKEN, boot_open, by_each_call, end},
    transfers::{Protocol, build, entry, nvme, nvme_data},
    *,
};
use ukernel::model::Model;

tests! {
    an_nvme_command_moves_what_its_ccb_has_room_for;
    every_nvme_command_moves_what_its_ccb_has_room_for;
    an_nvme_command_names_its_data_by_prps;
    an_nvme_admin_command_names_no_physical_memory;
    an_nvme_command_has_no_physical_data;
    blocks_and_a_change_of_their_format_exclude_each_other;
}

const EINVAL: i32 = sys::EINVAL as i32;
const EPERM: i32 = sys::EPERM as i32;
const REFUSED: [Result<(), i32>; 3] = [Err(EINVAL); 3];
const DENIED: [Result<(), i32>; 3] = [Err(EPERM); 3];

/// M6 (b): the controller moves as many blocks as the command names.
fn an_nvme_command_moves_what_its_ccb_has_room_for() {
    let (mut machine, module, fd) = boot_open(Config::of(Model::NVME));
    let mut command = Command::new(&mut machine, 64 << 10);
    for opcode in [1, 2, 5] {
        let write = opcode != 2;
        for (len, blocks, wanted) in [
            (512, 1, TAKEN),
            (4096, 8, TAKEN),
            (8192, 16, TAKEN),
            (512, 2, REFUSED),
            (4096, 9, REFUSED),
            (4096, 65_536, REFUSED),
            (8192, 17, REFUSED),
            (8192, 15, REFUSED),
            (32 << 10, 65, REFUSED),
            (1024, 1, REFUSED),
            (1000, 2, REFUSED),
        ] {
            let at = command.data.address();
            build(&mut command, Protocol::Nvme, write, at, 512);
            entry(&mut command)[0] = opcode;
            entry(&mut command)[48..50].copy_from_slice(&((blocks - 1) as u16).to_le_bytes());
            nvme_data(&mut command, at, len);
            let answers = by_each_call(&mut machine, fd, &mut command);
            assert_eq!(
                answers, wanted,
                "opcode {opcode}: {len} bytes, {blocks} blocks"
            );
        }
        // None at all, where there is to be some.
        nvme(&mut command, false, opcode, sys::CAM_DIR_NONE);
        let answers = by_each_call(&mut machine, fd, &mut command);
        assert_eq!(answers, REFUSED, "opcode {opcode} without data");
    }
    end(machine, module, fd);
}

/// Beside M6 (b): what other commands move is in their dwords as well, and the
/// controller runs over the end of kernel memory that is shorter.
fn every_nvme_command_moves_what_its_ccb_has_room_for() {
    let (mut machine, module, fd) = boot_open(Config::of(Model::NVME));
    let mut command = Command::new(&mut machine, 8192);
    let at = command.data.address();
    // IDENTIFY: always 4096 bytes. GET LOG PAGE: a number of dwords less one.
    // DATASET MANAGEMENT: of ranges of 16 bytes less one.
    for (admin, opcode, dword_10, len) in [
        (true, 0x06, 1_u32, 512),
        (true, 0x06, 1, 4092),
        (true, 0x02, 0x03ff_0002, 512),
        (true, 0x02, 0x0080_0002, 512),
        (false, 0x09, 255, 16),
        (false, 0x09, 1, 16),
    ] {
        let direction = match admin {
            true => sys::CAM_DIR_IN,
            false => sys::CAM_DIR_OUT,
        };
        nvme(&mut command, admin, opcode, direction);
        entry(&mut command)[40..44].copy_from_slice(&dword_10.to_le_bytes());
        nvme_data(&mut command, at, len);
        let answers = by_each_call(&mut machine, fd, &mut command);
        assert_eq!(answers, REFUSED, "{opcode:#x}, {len} bytes");
    }
    for (admin, opcode, dword_10, len) in [
        (true, 0x06, 1_u32, 4096),
        (true, 0x02, 0x007f_0002, 512),
        (true, 0x02, 0x03ff_0002, 4096),
        (false, 0x09, 255, 4096),
        (false, 0x09, 0, 16),
    ] {
        let direction = match admin {
            true => sys::CAM_DIR_IN,
            false => sys::CAM_DIR_OUT,
        };
        nvme(&mut command, admin, opcode, direction);
        entry(&mut command)[40..44].copy_from_slice(&dword_10.to_le_bytes());
        nvme_data(&mut command, at, len);
        let answers = by_each_call(&mut machine, fd, &mut command);
        assert_eq!(answers, TAKEN, "{opcode:#x}, {len} bytes");
    }
    end(machine, module, fd);
}

/// M6 (a): PSDT makes the controller take PRP1 for an SGL; FUSE is half of a
/// command.
fn an_nvme_command_names_its_data_by_prps() {
    let (mut machine, module, fd) = boot_open(Config::of(Model::NVME));
    let mut command = Command::new(&mut machine, 8192);
    for bits in [0x01, 0x02, 0x03, 0x40, 0x80, 0xc0] {
        let at = command.data.address();
        build(&mut command, Protocol::Nvme, false, at, 4096);
        entry(&mut command)[1] = bits;
        let answers = by_each_call(&mut machine, fd, &mut command);
        assert_eq!(answers, REFUSED, "{bits:#x}");
        nvme(&mut command, true, 6, sys::CAM_DIR_IN);
        entry(&mut command)[1] = bits;
        nvme_data(&mut command, at, 4096);
        let answers = by_each_call(&mut machine, fd, &mut command);
        assert_eq!(answers, REFUSED, "IDENTIFY, {bits:#x}");
        nvme(&mut command, false, 0, sys::CAM_DIR_NONE);
        entry(&mut command)[1] = bits;
        let answers = by_each_call(&mut machine, fd, &mut command);
        assert_eq!(answers, REFUSED, "FLUSH, {bits:#x}");
    }
    end(machine, module, fd);
}

/// M6 (c): CREATE I/O SUBMISSION QUEUE and COMPLETION QUEUE, DOORBELL BUFFER
/// CONFIG, and SET FEATURES of the host memory buffer.
fn an_nvme_admin_command_names_no_physical_memory() {
    let (mut machine, module, fd) = boot_open(Config::of(Model::NVME));
    let mut command = Command::new(&mut machine, 0);
    let mut answers = |machine: &mut Machine, opcode, feature: u32| {
        nvme(&mut command, true, opcode, sys::CAM_DIR_NONE);
        entry(&mut command)[40..44].copy_from_slice(&feature.to_le_bytes());
        by_each_call(machine, fd, &mut command)
    };
    let commands = [
        (0x01, 0x0001_0005),
        (0x05, 0x0001_0005),
        (0x7c, 0),
        (0x09, 0x0d),
        // With SV, to be saved.
        (0x09, 0x8000_000d),
    ];
    for (opcode, feature) in commands {
        assert_eq!(
            answers(&mut machine, opcode, feature),
            DENIED,
            "{opcode:#x}"
        );
    }
    sysctl::set("allow_paddr", 1);
    thread::PRIVILEGED.store(false, Ordering::SeqCst);
    for (opcode, feature) in commands {
        assert_eq!(
            answers(&mut machine, opcode, feature),
            DENIED,
            "{opcode:#x}"
        );
    }
    thread::PRIVILEGED.store(true, Ordering::SeqCst);
    ukernel::nvme::ALLOW_PHYSICAL.store(true, Ordering::SeqCst);
    for (opcode, feature) in commands {
        assert_eq!(answers(&mut machine, opcode, feature), TAKEN, "{opcode:#x}");
    }
    ukernel::nvme::ALLOW_PHYSICAL.store(false, Ordering::SeqCst);
    sysctl::set("allow_paddr", 0);
    // Other features, and the I/O commands of the same numbers, are none of it.
    assert_eq!(answers(&mut machine, 0x09, 0x02), TAKEN, "power management");
    end(machine, module, fd);
}

/// L8: nvme(4) takes a physical address for a kernel's.
fn an_nvme_command_has_no_physical_data() {
    let (mut machine, module, fd) = boot_open(Config::of(Model::NVME));
    let memory = memory::alloc(4096, "physical", sys::M_WAITOK | sys::M_ZERO);
    let mut command = Command::new(&mut machine, 4096);
    for allowed in [0, 1] {
        sysctl::set("allow_paddr", allowed);
        build(&mut command, Protocol::Nvme, false, memory as usize, 4096);
        command.hdr().flags |= sys::CAM_DATA_PADDR;
        for answer in by_each_call(&mut machine, fd, &mut command) {
            match allowed {
                0 => assert!(matches!(answer, Err(EINVAL | EPERM)), "{answer:?}"),
                _ => assert_eq!(answer, Err(EINVAL)),
            }
        }
    }
    memory::dealloc(memory, "physical");
    end(machine, module, fd);
}

/// A read that was checked with the old size of a block would move another number
/// of bytes after FORMAT NVM; CAM's own record is not read again.
fn blocks_and_a_change_of_their_format_exclude_each_other() {
    const EBUSY: i32 = sys::EBUSY as i32;
    let (mut machine, module, fd) = boot_open(Config::of(Model::NVME));
    let mut read = Command::new(&mut machine, 4096);
    let mut format = Command::new(&mut machine, 0);
    let at = read.data.address();
    build(&mut read, Protocol::Nvme, false, at, 4096);
    nvme(&mut format, true, 0x80, sys::CAM_DIR_NONE);
    machine.disk().stuck.store(true, Ordering::SeqCst);
    read.queue(&mut machine, fd).expect("queue");
    assert_eq!(format.queue(&mut machine, fd), Err(EBUSY));
    assert_eq!(format.send(&mut machine, fd), Err(EBUSY));
    machine.disk().unstick();
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    read.get(&mut machine, fd).expect("get");
    machine.disk().stuck.store(true, Ordering::SeqCst);
    format.queue(&mut machine, fd).expect("queue");
    // What moves no blocks goes on.
    let mut other = Command::new(&mut machine, 4096);
    nvme(&mut other, true, 0x06, sys::CAM_DIR_IN);
    let to = other.data.address();
    nvme_data(&mut other, to, 4096);
    other.queue(&mut machine, fd).expect("queue");
    build(&mut read, Protocol::Nvme, false, at, 4096);
    assert_eq!(read.queue(&mut machine, fd), Err(EBUSY));
    machine.disk().unstick();
    for _ in 0..2 {
        assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
        format.get(&mut machine, fd).expect("get");
    }
    // The controller is asked once how blocks are now.
    let commands = machine.disk().commands.load(Ordering::SeqCst);
    for asked in [1, 0] {
        let before = machine.disk().commands.load(Ordering::SeqCst);
        build(&mut read, Protocol::Nvme, false, at, 4096);
        queue_and_get(&mut machine, fd, &read);
        let after = machine.disk().commands.load(Ordering::SeqCst);
        assert_eq!(after - before, 1 + asked);
    }
    assert_eq!(machine.disk().commands.load(Ordering::SeqCst) - commands, 3);
    end(machine, module, fd);
}
