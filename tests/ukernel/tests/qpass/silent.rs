//! XPT_ABORT, by SIMs that answer it never, late, or while they still read it.

use super::{
    control::cancel,
    sims::{boot_open, end},
    *,
};
use ukernel::model::Model;

tests! {
    a_cancel_returns_when_the_sim_never_answers;
    an_abort_returns_when_the_sim_never_answers;
    a_cancel_returns_when_nothing_ends_before_the_session;
    a_close_returns_when_the_sim_never_answers;
    an_abort_ccb_is_kept_while_the_sim_reads_it;
    an_abort_ccb_is_kept_until_the_sim_has_answered;
    a_sim_that_follows_its_own_word_in_an_aborted_ccb_finds_it;
}

/// What a call that waits for a SIM may take.
const BOUND: Duration = Duration::from_secs(20);

/// Runs what must return within [`BOUND`]; the process ends if it does not.
fn bounded<T>(what: &str, run: impl FnOnce() -> T) -> T {
    let over = Arc::new(AtomicBool::new(false));
    let (seen, name) = (over.clone(), what.to_string());
    std::thread::spawn(move || {
        std::thread::sleep(BOUND);
        if !seen.load(Ordering::SeqCst) {
            thread::broken(&format!("{name} does not return"));
        }
    });
    let result = run();
    over.store(true, Ordering::SeqCst);
    result
}

/// Reads that the disk has and does not end.
fn stuck_reads(config: Config, count: usize) -> (Machine, Module, i32, Vec<Command>) {
    let (mut machine, module, fd) = boot_open(config);
    machine.disk().stuck.store(true, Ordering::SeqCst);
    let mut reads = Vec::new();
    for i in 0..count {
        let mut command = Command::new(&mut machine, 8192);
        command.rw10(false, i as u32 * 16, 16);
        command.queue(&mut machine, fd).expect("queue");
        reads.push(command);
    }
    (machine, module, fd, reads)
}

fn reap(machine: &mut Machine, fd: i32, count: usize) {
    let mut into = Command::new(machine, 0);
    for _ in 0..count {
        assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
        into.get(machine, fd).expect("get");
        let status = into.hdr().status & sys::CAM_STATUS_MASK;
        assert_eq!(status, sys::CAM_REQ_ABORTED);
    }
}

/// H2: iscsi(4) ends what is aborted, and never answers who asked for it.
fn a_cancel_returns_when_the_sim_never_answers() {
    let (mut machine, module, fd, _reads) = stuck_reads(Config::of(Model::ISCSI), 4);
    let told = bounded("QPIOC_CANCEL", || cancel(&mut machine, fd, 0));
    let told = told.expect("cancel");
    assert_eq!(told.iter().sum::<u32>(), 4, "{told:?}");
    bounded("reaping", || reap(&mut machine, fd, 4));
    machine.disk().unstick();
    bounded("close and unload", || end(machine, module, fd));
}

/// H2: the same by XPT_ABORT, queued and not.
fn an_abort_returns_when_the_sim_never_answers() {
    let (mut machine, module, fd, reads) = stuck_reads(Config::of(Model::ISCSI), 2);
    let mut abort = Command::new(&mut machine, 0);
    for (i, read) in reads.iter().enumerate() {
        abort.immediate(sys::XPT_ABORT);
        abort.ccb.ccb_mut().cab.abort_ccb = read.ccb.address() as *mut sys::ccb;
        bounded("XPT_ABORT", || match i {
            0 => abort.send(&mut machine, fd).expect("send"),
            _ => abort.queue(&mut machine, fd).expect("queue"),
        });
    }
    // The reads, and the second XPT_ABORT.
    for _ in 0..3 {
        let got = bounded("poll", || machine.poll(fd, POLLIN, 20_000));
        assert_eq!(got, Ok(POLLIN));
        abort.get(&mut machine, fd).expect("get");
    }
    machine.disk().unstick();
    bounded("close and unload", || end(machine, module, fd));
}

/// H2: neither the abort nor its target ends before the device goes.
fn a_cancel_returns_when_nothing_ends_before_the_session() {
    let (mut machine, module, fd, _reads) = stuck_reads(Config::of(Model::ISCSI_SILENT), 4);
    let told = bounded("QPIOC_CANCEL", || cancel(&mut machine, fd, 0));
    let told = told.expect("cancel");
    assert_eq!(told[..2], [0, 0], "nothing was taken back: {told:?}");
    bounded("departure", || machine.depart());
    bounded("close and unload", || end(machine, module, fd));
}

/// H2: what a process leaves behind is the device's until it ends it.
fn a_close_returns_when_the_sim_never_answers() {
    let (mut machine, module, fd, _reads) = stuck_reads(Config::of(Model::ISCSI), 4);
    bounded("close", || machine.close(fd));
    machine.disk().unstick();
    bounded("unload", || machine.unload(module));
}

/// M3: virtio_scsi(4) writes the status, and reads the CCB once more.
fn an_abort_ccb_is_kept_while_the_sim_reads_it() {
    let (mut machine, module, fd, reads) = stuck_reads(Config::of(Model::VIRTIO), 6);
    let mut abort = Command::new(&mut machine, 0);
    for (i, read) in reads[..2].iter().enumerate() {
        abort.immediate(sys::XPT_ABORT);
        abort.ccb.ccb_mut().cab.abort_ccb = read.ccb.address() as *mut sys::ccb;
        match i {
            0 => abort.send(&mut machine, fd).expect("send"),
            _ => abort.queue(&mut machine, fd).expect("queue"),
        }
    }
    let told = bounded("QPIOC_CANCEL", || cancel(&mut machine, fd, 0));
    assert_eq!(told.map(|told| told[1]), Ok(4));
    for _ in 0..7 {
        assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
        abort.get(&mut machine, fd).expect("get");
    }
    machine.disk().unstick();
    std::thread::sleep(Duration::from_millis(50));
    end(machine, module, fd);
}

/// A bound ends the wait and not the SIM's use of the CCB.
fn an_abort_ccb_is_kept_until_the_sim_has_answered() {
    let (mut machine, module, fd, reads) = stuck_reads(Config::of(Model::VIRTIO_SLOW), 2);
    let mut abort = Command::new(&mut machine, 0);
    abort.immediate(sys::XPT_ABORT);
    abort.ccb.ccb_mut().cab.abort_ccb = reads[0].ccb.address() as *mut sys::ccb;
    bounded("XPT_ABORT", || abort.send(&mut machine, fd)).expect("send");
    bounded("QPIOC_CANCEL", || cancel(&mut machine, fd, 0)).expect("cancel");
    machine.disk().unstick();
    for _ in 0..2 {
        assert_eq!(machine.poll(fd, POLLIN, 20_000), Ok(POLLIN));
        abort.get(&mut machine, fd).expect("get");
    }
    // The program goes on, and memory of the driver's is used again and again.
    let mut command = Command::new(&mut machine, 512);
    for lba in 0..100 {
        command.rw10(false, lba, 1);
        queue_and_get(&mut machine, fd, &command);
    }
    assert_ne!(machine.disk().answer_aborts(), 0);
    bounded("close and unload", || end(machine, module, fd));
}

/// pvscsi(4) finds its control block by a word in the target's header.
fn a_sim_that_follows_its_own_word_in_an_aborted_ccb_finds_it() {
    let config = Config {
        openings: 2,
        ..Config::of(Model::PVSCSI)
    };
    let (mut machine, module, fd, _reads) = stuck_reads(config, 4);
    assert_eq!(cancel(&mut machine, fd, 0), Ok([2, 2, 0, 0]));
    reap(&mut machine, fd, 4);
    machine.disk().unstick();
    end(machine, module, fd);
}
