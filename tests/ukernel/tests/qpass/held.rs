//! Pages that a device has: when they are let go, and what their file learns.

use super::{
    control::cancel,
    sims::{boot_open, end, end_one_of_many},
    *,
};
use ukernel::{model::Model, vm};

tests! {
    pages_are_let_go_when_the_device_is_through;
    pages_that_the_device_wrote_are_dirty_afterwards;
    a_page_that_is_being_cleaned_meanwhile_is_dirty_afterwards;
    pages_that_the_device_read_stay_clean;
}

/// A stuck disk with a read, or a write, of 64 KiB into `command`.
fn stuck_with(write: bool) -> (Machine, Module, i32, Command) {
    let (mut machine, module, fd) = boot_open(Config::of(Model::STRICT));
    let mut command = Command::new(&mut machine, 64 << 10);
    machine.disk().stuck.store(true, Ordering::SeqCst);
    command.rw10(write, 0, 128);
    command.queue(&mut machine, fd).expect("queue");
    assert_eq!(vm::holds(), 16);
    (machine, module, fd, command)
}

/// M9: not when they are reaped.
fn pages_are_let_go_when_the_device_is_through() {
    for write in [false, true] {
        let (mut machine, module, fd, command) = stuck_with(write);
        machine.disk().unstick();
        assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
        wait_until("the pages are let go", || vm::holds() == 0);
        command.get(&mut machine, fd).expect("get");
        // What fails and what is cancelled lets them go as well.
        machine.disk().stuck.store(true, Ordering::SeqCst);
        command.queue(&mut machine, fd).expect("queue");
        assert_eq!(cancel(&mut machine, fd, 0), Ok([0, 1, 0, 0]));
        assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
        wait_until("the pages are let go", || vm::holds() == 0);
        machine.disk().unstick();
        end_one_of_many(machine, module, fd);
    }
}

/// M10: a file's page that was written to the file while the device had it.
fn pages_that_the_device_wrote_are_dirty_afterwards() {
    let (mut machine, module, fd, command) = stuck_with(false);
    let at = command.data.address();
    vm::msync(at, 64 << 10);
    assert!(!vm::is_dirty(at), "the file has what there was");
    machine.disk().unstick();
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    command.get(&mut machine, fd).expect("get");
    let clean = (0..16).filter(|i| !vm::is_dirty(at + i * 4096)).count();
    assert_eq!(clean, 0, "pages that the file never sees again");
    end(machine, module, fd);
}

/// M10: the syncer writes a page to its file in the moment in which the device is
/// through with it, and marks it as clean after that.
fn a_page_that_is_being_cleaned_meanwhile_is_dirty_afterwards() {
    let (mut machine, module, fd, command) = stuck_with(false);
    let at = command.data.address();
    vm::msync(at, 64 << 10);
    vm::begin_cleaning(at + 3 * 4096);
    machine.disk().unstick();
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    wait_until("the others are let go", || vm::holds() == 1);
    vm::end_cleaning();
    command.get(&mut machine, fd).expect("get");
    assert_eq!(vm::holds(), 0);
    let clean = (0..16).filter(|i| !vm::is_dirty(at + i * 4096)).count();
    assert_eq!(clean, 0, "pages that the file never sees again");
    end(machine, module, fd);
}

/// The other way round nothing is to be written.
fn pages_that_the_device_read_stay_clean() {
    let (mut machine, module, fd, command) = stuck_with(true);
    let at = command.data.address();
    machine.disk().unstick();
    assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
    command.get(&mut machine, fd).expect("get");
    assert!((0..16).all(|i| !vm::is_dirty(at + i * 4096)));
    end(machine, module, fd);
}
