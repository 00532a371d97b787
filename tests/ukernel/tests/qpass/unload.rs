//! How units and the module go: whoever else looks at a unit meanwhile, and
//! whatever is stuck.

use super::*;

tests! {
    zones_are_made_once_for_all_devices;
    zones_stay_until_the_module_goes;
}

/// A second disk beside the machine's.
fn second_disk() -> Arc<cam::Device> {
    let disk = ukernel::disk::RamDisk::new("SECOND", Config::default());
    let device = cam::attach((0, 1, 0), disk);
    wait_until("/dev/qpass1 is there", || devfs::exists("qpass1"));
    device
}

/// A command goes through, on an open of its own.
fn works(machine: &mut Machine) {
    let fd = machine.open(NODE, RDWR).expect("open");
    let mut command = Command::new(machine, 4096);
    command.rw10(false, 0, 8);
    queue_and_get(machine, fd, &command);
    machine.close(fd);
    command.free(machine);
}

fn zones_are_made_once_for_all_devices() {
    let (mut machine, module) = boot(Config::default());
    let second = second_disk();
    assert!(memory::zones().is_empty(), "none before the first request");
    let mut command = Command::new(&mut machine, 4096);
    command.rw10(false, 0, 8);
    let fds = [NODE, "/dev/qpass1"].map(|node| {
        let fd = machine.open(node, RDWR).expect("open");
        queue_and_get(&mut machine, fd, &command);
        assert_eq!(memory::zones().len(), 8, "one set, whatever the device");
        fd
    });
    for fd in fds {
        machine.close(fd);
    }
    cam::detach(&second);
    cam::wait_free(&second);
    machine.unload(module);
    assert!(memory::zones().is_empty());
}

fn zones_stay_until_the_module_goes() {
    let (mut machine, module) = boot(Config::default());
    for _ in 0..20 {
        works(&mut machine);
        cam::settle();
    }
    wait_until("all memory is back", all_is_back);
    assert_eq!(memory::zones().len(), 8);
    assert_eq!(fault::ZCREATE.passed(), 8, "made with the first request");
    // The device's departure is not theirs.
    machine.depart();
    assert_eq!(memory::zones().len(), 8);
    machine.arrive();
    works(&mut machine);
    assert_eq!(fault::ZCREATE.passed(), 8);
    machine.unload(module);
    assert_eq!(memory::destroyed_zones().len(), 8, "each once");
}
