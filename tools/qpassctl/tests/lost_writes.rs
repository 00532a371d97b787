//! What a disk has lost is not said to be there: deferred errors, resets, refused
//! flushes, disks with rules for the order of writes.

#![cfg(target_os = "linux")]

mod common;

use common::*;
use std::{fs, path::Path};
use tempfile::TempDir;

/// A disk that answers as a script says.
fn scripted(script: &str, options: &str) -> (TempDir, String) {
    let (dir, machine) = disk("");
    let file = path(&dir, "script");
    fs::write(&file, script).expect("a script");
    (dir, format!("{machine},script={file}{options}"))
}

/// The disk without its script.
fn plain(machine: &str) -> &str {
    machine.split(",script=").next().expect("words")
}

fn contents(dir: &TempDir) -> Vec<u8> {
    fs::read(path(dir, "disk")).expect("the disk")
}

/// A write to block 0 that ends well and is not stored, and the write fault that the
/// command at block 128 carries for it.
const LOST: &str = "
on scsi 2a .. 00 00 00 00
  times 1
on scsi 2a .. 00 00 00 80
  times TIMES
  sense f1 00 03 00 00 00 00 0a 00 00 00 00 0c 00
";

fn lost(times: u32) -> (TempDir, String, String) {
    let (dir, machine) = scripted(&LOST.replace("TIMES", &times.to_string()), "");
    let input = path(&dir, "in");
    fs::write(&input, noise(512 << 10)).expect("a file");
    (dir, machine, input)
}

/// Row 12: the error of a write that had ended well is not the one's that carries it.
#[test]
fn a_deferred_error_is_the_end_of_all_since_the_last_flush() {
    for (times, more) in [
        (1, &[][..]),
        (5, &[]),
        (1, &["--resume"]),
        (5, &["--resume"]),
    ] {
        let (dir, machine, input) = lost(times);
        let args = [
            "write", &input, "da0", "--depth", "1", "--size", "64K", "--quiet",
        ];
        let ran = run(&machine, &[&args[..], more].concat());
        ran.failed(
            1,
            &[
                "write 128 blocks at 128",
                "write error",
                "an earlier write is lost",
                "0 of 524288",
            ],
        );
        assert!(
            contents(&dir)[..65536].iter().all(|b| *b == 0),
            "it is lost"
        );
        assert!(!ran.err.contains("goes on there"), "{}", ran.err);
        // And so the next run begins before what is lost.
        run(plain(&machine), &[&args[..], &["--resume"]].concat()).good();
        assert!(contents(&dir)[..512 << 10] == fs::read(&input).expect("the file"));
    }
}

/// Row 13, with what had been flushed before.
#[test]
fn a_note_is_of_what_was_flushed_and_of_nothing_behind_it() {
    let script = "
on scsi 2a .. 00 00 02 00
  times 1
on scsi 2a .. 00 00 02 80
  times 9
  sense 73 03 0c 00 00 00 00 00
";
    let (dir, machine) = scripted(script, "");
    let input = path(&dir, "in");
    let data = noise(1 << 20);
    fs::write(&input, &data).expect("a file");
    let args = [
        "write",
        &input,
        "da0",
        "--depth",
        "1",
        "--size",
        "64K",
        "--checkpoint",
        "128K",
        "--resume",
        "--quiet",
    ];
    run(&machine, &args).failed(
        1,
        &["an earlier write is lost", "262144 of 1048576", "goes on"],
    );
    let went_on = run(plain(&machine), &[&args[..10], &["--json"]].concat())
        .good()
        .json();
    assert_eq!(went_on["resumed"], 262_144);
    assert!(contents(&dir)[..1 << 20] == data);
}

/// Row 14: so it is with the flush itself, however often it is asked.
#[test]
fn a_deferred_error_of_a_flush_fails_the_copy() {
    for times in [1, 5] {
        let script = format!(
            "on scsi 2a\n times 1\non scsi 35\n times {times}\n sense f1 00 03 00 00 00 00 0a 00 \
             00 00 00 0c 00\n"
        );
        let (dir, machine) = scripted(&script, "");
        let data = noise(64 << 10);
        let input = path(&dir, "in");
        fs::write(&input, &data).expect("a file");
        run(&machine, &["write", &input, "da0", "--resume"])
            .failed(1, &["flush", "an earlier write is lost", "0 of 65536"]);
        assert!(!Path::new(&path(&dir, "in.qpass0.write.json")).exists());
        let (_dir, machine) = scripted(&script, "");
        run_with(&machine, &["write", "-", "da0"], &data).failed(
            1,
            &[
                "flush",
                "an earlier write is lost",
                "0 bytes are on the medium",
            ],
        );
    }
}

/// And with what reads the device again to verify it.
#[test]
fn a_deferred_error_of_a_read_that_verifies_fails_the_copy() {
    let script = "on scsi 28 .. 00 00 00 80\n times 1\n sense 71 00 03 00 00 00 00 0a 00 00 00 00 \
                  0c 00\n";
    let (dir, machine) = scripted(script, "");
    let input = path(&dir, "in");
    fs::write(&input, noise(256 << 10)).expect("a file");
    let args = [
        "write", &input, "da0", "--size", "64K", "--verify", "--resume",
    ];
    run(&machine, &args).failed(1, &["read 128 blocks at 128", "an earlier write is lost"]);
    assert!(!Path::new(&path(&dir, "in.qpass0.write.json")).exists());
    // What goes away is read again.
    for sign in [
        "cam CAM_SCSI_BUS_RESET",
        "sense 70 00 03 00 00 00 00 0a 00 00 00 00 11 00",
    ] {
        let script = format!("on scsi 28 .. 00 00 00 80\n times 2\n {sign}\n");
        let (dir, machine) = scripted(&script, "");
        let input = path(&dir, "in");
        fs::write(&input, noise(256 << 10)).expect("a file");
        run(
            &machine,
            &["write", &input, "da0", "--size", "64K", "--verify"],
        )
        .good();
    }
}

/// A cache that has vanished in a reset is written again, or is said to be lost.
#[test]
fn a_reset_takes_back_what_was_not_flushed() {
    for sign in [
        "sense 70 00 06 00 00 00 00 0a 00 00 00 00 29 01",
        "cam CAM_SCSI_BUS_RESET",
        "cam CAM_CMD_TIMEOUT",
    ] {
        for carrier in ["2a .. 00 00 02 00", "35"] {
            // Block 0 ends well and is lost.
            let script = format!(
                "on scsi 2a .. 00 00 00 00\n times 1\non scsi {carrier}\n times 1\n {sign}\n"
            );
            let (dir, machine) = scripted(&script, "");
            let data = noise(1 << 20);
            let input = path(&dir, "in");
            fs::write(&input, &data).expect("a file");
            let args = ["write", &input, "da0", "--depth", "4", "--size", "64K"];
            run(&machine, &args).good();
            assert!(contents(&dir)[..1 << 20] == data, "{sign}, {carrier}");
            // What came from a pipe cannot be had again.
            let (_dir, machine) = scripted(&script, "");
            let args = ["write", "-", "da0", "--depth", "1", "--size", "64K"];
            run_with(&machine, &args, &data).failed(
                1,
                &[
                    "may be lost",
                    "cannot be written again",
                    "0 bytes are on the medium",
                ],
            );
        }
    }
    // Before anything has ended well it is but a delay.
    let script = "on scsi 2a\n times 1\n sense 70 00 06 00 00 00 00 0a 00 00 00 00 29 00\n";
    let (dir, machine) = scripted(script, "");
    let data = noise(64 << 10);
    run_with(&machine, &["write", "-", "da0", "--depth", "1"], &data).good();
    assert!(contents(&dir)[..64 << 10] == data);
}

#[test]
fn what_goes_away_by_itself_is_tried_again() {
    for sign in [
        "status 08",
        "status 28",
        "cam CAM_REQUEUE_REQ",
        "sense 70 00 06 00 00 00 00 0a 00 00 00 00 2a 01",
        "sense 70 00 0b 00 00 00 00 0a 00 00 00 00 47 03",
        "sense 71 00 01 00 00 00 00 0a 00 00 00 00 0c 01",
        "sense 70 00 02 00 00 00 00 0a 00 00 00 00 04 01",
    ] {
        let (dir, machine) = scripted(&format!("on scsi 2a\n skip 2\n times 2\n {sign}\n"), "");
        let data = noise(512 << 10);
        run_with(&machine, &["write", "-", "da0", "--size", "64K"], &data).good();
        assert!(contents(&dir)[..512 << 10] == data, "{sign}");
        let (dir, machine) = scripted(&format!("on scsi 35\n times 2\n {sign}\n"), "");
        run_with(&machine, &["write", "-", "da0"], &data).good();
        assert!(contents(&dir)[..512 << 10] == data, "{sign}");
    }
    // But not for ever, and no more than that of it is said to be there.
    let script = "on scsi 2a .. 00 00 01 00\n sense 70 00 0b 00 00 00 00 0a 00 00 00 00 47 03\n";
    let (dir, machine) = scripted(script, "");
    let data = noise(512 << 10);
    let ran = run_with(
        &machine,
        &["write", "-", "da0", "--size", "64K", "--depth", "1"],
        &data,
    );
    ran.failed(
        1,
        &[
            "write 128 blocks at 256",
            "ABORTED COMMAND",
            "131072 bytes are on the medium",
        ],
    );
    assert!(contents(&dir)[..131_072] == data[..131_072]);
}

/// A recovered error is a success with a remark (row 11).
#[test]
fn a_recovered_error_ends_no_copy() {
    let sign = "do\n sense f0 00 01 00 00 00 05 0a 00 00 00 00 17 01";
    let script = format!("on scsi 28\n {sign}\non scsi 2a\n {sign}\non scsi 35\n {sign}\n");
    let (dir, machine) = scripted(&script, "");
    let (input, out) = (path(&dir, "in"), path(&dir, "o"));
    let data = noise(256 << 10);
    fs::write(&input, &data).expect("a file");
    run(&machine, &["write", &input, "da0", "--verify"]).good();
    run(
        &machine,
        &["read", "da0", &out, "--count", "512", "--verify"],
    )
    .good();
    assert!(fs::read(&out).expect("the file") == data);
}

/// Row 28 and 37: what a refused flush says depends on the cache.
#[test]
fn a_refused_flush_is_none() {
    let refused = "sense 70 00 05 00 00 00 00 0a 00 00 00 00 20 00";
    let cache =
        |wce: &str| format!("on scsi 5a 00 08\n data 00 16 00 00 00 00 00 00 08 0a {wce} 00*9\n");
    let both = format!("on scsi 35\n {refused}\non scsi 91\n {refused}\n");
    let data = noise(64 << 10);
    for (script, is_good) in [
        // The long form is known.
        (format!("on scsi 35\n {refused}\n"), true),
        // Neither, and no cache, and no word of one.
        (both.clone() + &cache("00"), true),
        (both.clone() + &format!("on scsi 5a\n {refused}\n"), true),
        // Neither, and a cache that is on.
        (both.clone() + &cache("04"), false),
    ] {
        let (dir, machine) = scripted(&script, "");
        let ran = run_with(&machine, &["write", "-", "da0"], &data);
        match is_good {
            true => assert!(contents(&dir)[..64 << 10] == data[..]),
            false => ran.failed(1, &["flush", "0 bytes are on the medium"]),
        }
        assert_eq!(ran.code == 0, is_good, "{script}: {}", ran.err);
    }
}

/// Rows 28 and 30: a disk that takes writes in order takes them all, whatever the depth.
#[test]
fn zones_are_written_in_order() {
    let (dir, _) = disk("");
    let zoned = format!("disk={},size=8M,zoned=1M,jitter=500us", path(&dir, "disk"));
    let input = path(&dir, "in");
    let data = noise(3 << 20);
    fs::write(&input, &data).expect("a file");
    // From where a zone begins, and with sizes that do not divide one.
    for size in ["256K", "96K", "1M"] {
        let _ = fs::remove_file(path(&dir, "disk"));
        let args = [
            "write", &input, "da0", "--seek", "4096", "--size", size, "--verify",
        ];
        run(&zoned, &args).good();
        assert!(contents(&dir)[2 << 20..5 << 20] == data);
    }
    run(
        &zoned,
        &["bench", "da0", "--writes", "10", "--destroy", "--time=50ms"],
    )
    .failed(2, &["zones are written in order"]);
}

/// Row 24: metadata would be moved beyond the buffer.
#[test]
fn a_namespace_with_metadata_is_refused() {
    let (dir, machine) = scripted("namespace 25=01 26=11 132=08 133=00 134=09\n", ",nvme");
    let out = path(&dir, "o");
    run(&machine, &["read", "qpass0", &out]).failed(1, &["metadata"]);
    run_with(&machine, &["write", "-", "qpass0"], &[0; 512]).failed(1, &["metadata"]);
    assert!(!Path::new(&out).exists());
}

/// Row 27, and disks of other blocks: copied whole, and the same.
#[test]
fn every_kind_of_disk_is_copied() {
    for kind in [
        ",ata",
        ",ata,lba28",
        ",nvme",
        ",block=4096",
        ",block=520",
        ",zoned=1M",
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let block = if kind.contains("520") { 520 } else { 4096 };
        let data = noise(block * 512);
        let machine = format!("disk={},size={}{kind}", path(&dir, "disk"), data.len());
        let (input, out) = (path(&dir, "in"), path(&dir, "o"));
        fs::write(&input, &data).expect("a file");
        let size = (block * 16).to_string();
        run(
            &machine,
            &["write", &input, "qpass0", "--size", &size, "--verify"],
        )
        .good();
        assert!(contents(&dir) == data, "{kind}");
        run(
            &machine,
            &["read", "qpass0", &out, "--size", &size, "--verify"],
        )
        .good();
        assert!(fs::read(&out).expect("the file") == data, "{kind}");
    }
}

/// C2: a disk that does not answer keeps nobody.
#[test]
fn a_signal_ends_the_wait_for_a_disk() {
    let dir = tempfile::tempdir().expect("a folder");
    let input = path(&dir, "in");
    fs::write(&input, noise(64 << 10)).expect("a file");
    let out = path(&dir, "o");
    for (machine, args) in [
        ("disk,size=16M,dead", &["tur", "da0"][..]),
        ("disk,size=16M,dead", &["cdb", "da0", "00"]),
        ("disk,size=16M,dead", &["readcap", "da0"]),
        ("disk,size=16M,dead", &["read", "da0", &out]),
        (
            "disk,size=16M,sticks=6",
            &["read", "da0", &out, "--size", "4K"],
        ),
        (
            "disk,size=16M,sticks=3",
            &["write", &input, "da0", "--size", "4K"],
        ),
        ("disk,size=16M,sticks=6", &["bench", "da0", "--time=60s"]),
    ] {
        let child = start(machine, args).spawn().expect("it runs");
        std::thread::sleep(std::time::Duration::from_millis(700));
        let begin = std::time::Instant::now();
        kill(&child, "-INT");
        let ran = ended(child);
        assert_eq!(ran.code, 130, "{machine} {args:?}: {}", ran.err);
        let took = begin.elapsed();
        assert!(
            took < std::time::Duration::from_secs(9),
            "{machine} {args:?}: {took:?}"
        );
        assert_eq!(names(dir.path()), ["in"]);
    }
}

/// A write that the disk says it has done and has not is found by looking.
#[test]
fn what_was_not_stored_is_found_by_verifying() {
    let (dir, machine) = disk(",lies");
    let input = path(&dir, "in");
    fs::write(&input, noise(64 << 10)).expect("a file");
    run(&machine, &["write", &input, "da0", "--verify", "--resume"]).failed(4, &["is not what"]);
    assert_eq!(
        names(dir.path()),
        ["disk", "in"],
        "and no note says otherwise"
    );
}
