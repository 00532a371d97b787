//! Copies tell the truth: whatever ends them, what they leave is what they say, and
//! a copy that ends well is the same byte by byte.

#![cfg(target_os = "linux")]

mod common;

use common::*;
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const SLOW: &str = ",latency=4ms,openings=1";

/// A read of a slow disk that is interrupted when its part has some bytes.
fn half_read(dir: &TempDir, machine: &str, more: &[&str]) -> Ran {
    let out = path(dir, "o");
    let args = [
        "read",
        "da0",
        &out,
        "--size",
        "4K",
        "--checkpoint",
        "64K",
        "--quiet",
    ];
    let part = path(dir, "o.part");
    let begun = || fs::metadata(&part).is_ok_and(|m| m.len() > 256 << 10);
    interrupted(start(machine, &[&args[..], more].concat()), "-INT", begun)
}

fn fast(machine: &str) -> String {
    machine.replace(SLOW, "")
}

#[test]
fn a_note_is_never_another_runs() {
    let (dir, machine, data) = full_disk(SLOW);
    let out = path(&dir, "o");
    assert_eq!(half_read(&dir, &machine, &["--resume"]).code, 130);
    let kept = fs::read(path(&dir, "o.part")).expect("kept");
    assert!(kept[..256 << 10] == data[..256 << 10]);
    // Without --resume what was kept is not overwritten.
    let args = ["read", "da0", &out, "--size", "64K", "--quiet"];
    run(&machine, &args).failed(3, &["o.part: has ", "--resume goes on", "remove it"]);
    assert!(fs::read(path(&dir, "o.part")).expect("kept") == kept);
    run(&fast(&machine), &[&args[..], &["--resume"]].concat()).good();
    assert!(fs::read(&out).expect("the file") == data);
    assert_eq!(names(dir.path()), ["disk", "o"]);
}

#[test]
fn one_that_was_killed_leaves_nothing_that_is_believed() {
    let (dir, machine, data) = full_disk(SLOW);
    let out = path(&dir, "o");
    let args = ["read", "da0", &out, "--size", "4K", "--quiet"];
    let part = path(&dir, "o.part");
    let begun = || fs::metadata(&part).is_ok_and(|m| m.len() > 64 << 10);
    assert_eq!(
        interrupted(start(&machine, &args), "-KILL", begun).code,
        137
    );
    assert_eq!(names(dir.path()), ["disk", "o.part", "o.part.json"]);
    // The next one finds that there is nothing to go on from.
    let again = [&args[..5], &["--resume", "--json"]].concat();
    let again = run(&fast(&machine), &again).good().json();
    assert_eq!(again["resumed"], 0);
    assert!(fs::read(&out).expect("the file") == data);
    // And so does one without --resume.
    fs::remove_file(&out).expect("removed");
    assert_eq!(
        interrupted(start(&machine, &args), "-KILL", begun).code,
        137
    );
    run(&fast(&machine), &args).good();
    assert!(fs::read(&out).expect("the file") == data);
    assert_eq!(names(dir.path()), ["disk", "o"]);
}

#[test]
fn killed_again_and_again_it_is_the_same_in_the_end() {
    let (dir, machine, data) = full_disk(",latency=1ms,openings=2,jitter=1ms");
    let out = path(&dir, "o");
    let read = [
        "read",
        "da0",
        &out,
        "--size",
        "8K",
        "--checkpoint",
        "96K",
        "--quiet",
        "--resume",
    ];
    let (second, target) = disk(",latency=1ms,openings=2,jitter=1ms");
    let write = [
        "write",
        &out,
        "da0",
        "--size",
        "8K",
        "--checkpoint",
        "96K",
        "--quiet",
        "--resume",
    ];
    let mut kills = 0;
    for (machine, args, done) in [(&machine, &read, &out), (&target, &write, &out)] {
        let mut wait = 130;
        loop {
            let mut child = start(machine, args).spawn().expect("it runs");
            let end = Instant::now() + Duration::from_millis(wait);
            let mut is_over = false;
            while Instant::now() < end && !is_over {
                is_over = child.try_wait().expect("a child").is_some();
                std::thread::sleep(Duration::from_millis(3));
            }
            if !is_over {
                kill(&child, ["-KILL", "-INT", "-KILL", "-TERM"][kills % 4]);
                kills += 1;
                wait += 37;
            }
            let ran = ended(child);
            if ran.code == 0 {
                break;
            }
            assert!([130, 137, 143].contains(&ran.code), "{}", ran.err);
        }
        assert!(Path::new(done).exists());
    }
    assert!(kills >= 4, "{kills}");
    assert!(fs::read(&out).expect("the file") == data, "what was read");
    assert!(
        fs::read(path(&second, "disk")).expect("the disk") == data,
        "what was written"
    );
    assert_eq!(names(dir.path()), ["disk", "o"]);
}

#[test]
fn a_part_that_does_not_fit_its_note_is_refused() {
    let (dir, machine, data) = full_disk(SLOW);
    let out = path(&dir, "o");
    let part = path(&dir, "o.part");
    let quick = fast(&machine);
    let resume = ["read", "da0", &out, "--size", "4K", "--quiet", "--resume"];
    assert_eq!(half_read(&dir, &machine, &["--resume"]).code, 130);
    let kept = fs::read(&part).expect("kept");
    // Shorter than it is said to be.
    fs::write(&part, &kept[..4096]).expect("cut");
    run(&quick, &resume).failed(2, &["o.part: has 4096 bytes", "remove it"]);
    // A sector of it is another.
    let mut rotten = kept.clone();
    rotten[65536..66048].fill(0);
    fs::write(&part, &rotten).expect("rotten");
    for more in [&["--verify"][..], &[]] {
        run(&quick, &[&resume[..], more].concat()).failed(4, &["o.part: is not what", "remove it"]);
    }
    assert!(
        !Path::new(&out).exists(),
        "what is bad never becomes the file"
    );
    // A note that is none, and one that was made up.
    let note = path(&dir, "o.part.json");
    let said = fs::read(&note).expect("the note");
    fs::write(&part, &kept).expect("as it was");
    fs::write(&note, "{\"done\":99999999999999}").expect("a note");
    run(&quick, &resume).failed(2, &["o.part.json: is not a note"]);
    let text = String::from_utf8(said.clone()).expect("text");
    fs::write(&note, text.replace("\"done\":", "\"done\":9")).expect("a note");
    run(&quick, &resume).failed(2, &["o.part.json: is not a note"]);
    // As it was, it goes on.
    fs::write(&note, &said).expect("the note");
    let went_on = run(&quick, &[&resume[..], &["--json"]].concat())
        .good()
        .json();
    assert!(went_on["resumed"].as_u64().expect("bytes") >= 128 << 10);
    assert!(fs::read(&out).expect("the file") == data);
}

#[test]
fn a_part_is_not_gone_on_with_from_a_disk_with_other_bytes() {
    let (dir, machine, data) = full_disk(SLOW);
    let out = path(&dir, "o");
    assert_eq!(half_read(&dir, &machine, &["--resume"]).code, 130);
    // The same vendor, product and serial number.
    fs::write(path(&dir, "disk"), noise_of(data.len(), 77)).expect("another disk");
    run(
        &fast(&machine),
        &["read", "da0", &out, "--size", "4K", "--resume"],
    )
    .failed(4, &[" is not what", "o.part", "another device's"]);
    assert!(!Path::new(&out).exists());
}

#[test]
fn two_copies_into_one_file_exclude_each_other() {
    let (dir, machine, data) = full_disk(SLOW);
    let out = path(&dir, "o");
    let other = full_disk("");
    let args = ["read", "da0", &out, "--size", "16K", "--quiet"];
    for more in [&[][..], &["--resume"]] {
        let first = start(&machine, &[&args[..], more].concat())
            .spawn()
            .expect("it runs");
        let part = path(&dir, "o.part");
        until("it has begun", || {
            fs::metadata(&part).is_ok_and(|m| m.len() != 0)
        });
        for more in [&[][..], &["--resume"]] {
            run(&other.1, &[&args[..], more].concat()).failed(5, &["o.part: another qpassctl"]);
        }
        ended(first).good();
        assert!(fs::read(&out).expect("the file") == data);
        assert_eq!(names(dir.path()), ["disk", "o"]);
    }
}

/// On one kernel, as on FreeBSD.
#[test]
fn two_writes_to_one_device_exclude_each_other() {
    let (dir, machine) = disk(SLOW);
    let (input, socket) = (path(&dir, "in"), path(&dir, "kernel"));
    let data = noise(2 << 20);
    fs::write(&input, &data).expect("a file");
    let args = ["write", &input, "da0", "--size", "4K", "--quiet"];
    let child = start(&format!("{machine};shared={socket}"), &args)
        .spawn()
        .expect("it runs");
    let begun = || fs::read(path(&dir, "disk")).is_ok_and(|d| d.first().is_some_and(|b| *b != 0));
    until("it has begun", begun);
    let other = format!("shared={socket}");
    run(&other, &args).failed(5, &["qpass0: another qpassctl writes it"]);
    run_with(&other, &["write", "-", "da0"], &data[..512]).failed(5, &["another qpassctl"]);
    let bench = ["bench", "da0", "--writes=9", "--destroy", "--time=10ms"];
    run(&other, &bench).failed(5, &["another qpassctl"]);
    // Reading is nobody's loss.
    run(&other, &["read", "da0", "/dev/null", "--count", "8"]).good();
    ended(child).good();
    assert!(fs::read(path(&dir, "disk")).expect("the disk")[..data.len()] == data);
}

#[test]
fn two_resumed_writes_of_one_file_exclude_each_other() {
    let (dir, machine) = disk(SLOW);
    let input = path(&dir, "in");
    fs::write(&input, noise(2 << 20)).expect("a file");
    let args = [
        "write",
        &input,
        "da0",
        "--size",
        "4K",
        "--checkpoint",
        "64K",
        "--resume",
        "--quiet",
    ];
    let child = start(&machine, &args).spawn().expect("it runs");
    let note = path(&dir, "in.qpass0.write.json");
    until("it has begun", || Path::new(&note).exists());
    let other = disk("");
    run(&other.1, &args).failed(5, &["write.json: another qpassctl"]);
    ended(child).good();
}

#[test]
fn a_file_that_fails_verification_never_becomes_the_file() {
    // What is read the second time is something else.
    let (dir, machine, data) = full_disk(",latency=1ms,openings=1");
    let out = path(&dir, "o");
    let args = [
        "read", "da0", &out, "--size", "64K", "--depth", "2", "--verify", "--quiet",
    ];
    let disk = path(&dir, "disk");
    let part = path(&dir, "o.part");
    for resume in [false, true] {
        fs::write(&disk, &data).expect("the disk");
        let mut more: Vec<&str> = args.to_vec();
        if resume {
            more.push("--resume");
        }
        let child = start(&machine, &more).spawn().expect("it runs");
        until("all is read", || {
            fs::metadata(&part).is_ok_and(|m| m.len() == data.len() as u64)
        });
        // The last block, which is compared last.
        use std::os::unix::fs::FileExt;
        let file = fs::File::options()
            .write(true)
            .open(&disk)
            .expect("the disk");
        file.write_all_at(&[0; 512], data.len() as u64 - 512)
            .expect("written");
        let ran = ended(child);
        let last = format!("block {}", data.len() / 512 - 1);
        ran.failed(4, &[&last, "o.part"]);
        assert!(!Path::new(&out).exists());
        if !resume {
            assert_eq!(names(dir.path()), ["disk"]);
            continue;
        }
        assert!(ran.err.contains("--resume reads"), "{}", ran.err);
        // It reads again from there, and that is what the disk has now.
        let again = run(
            &machine,
            &[&args[..5], &["--resume", "--verify", "--json"]].concat(),
        );
        let again = again.good().json();
        assert!(again["resumed"].as_u64().expect("bytes") < data.len() as u64);
        assert!(again["verify_seconds"].as_f64().is_some_and(|s| s > 0.0));
        assert!(fs::read(&out).expect("the file") == fs::read(&disk).expect("the disk"));
    }
}

#[test]
fn a_write_that_goes_on_looks_at_what_is_there() {
    let (dir, machine) = disk(SLOW);
    let (input, zeroes) = (path(&dir, "in"), path(&dir, "zeroes"));
    let data = noise(2 << 20);
    fs::write(&input, &data).expect("a file");
    fs::write(&zeroes, vec![0; 2 << 20]).expect("a file");
    let args = [
        "write",
        &input,
        "da0",
        "--size",
        "4K",
        "--checkpoint",
        "64K",
        "--resume",
    ];
    let contents = || fs::read(path(&dir, "disk")).expect("the disk");
    let begun =
        || fs::read(path(&dir, "disk")).is_ok_and(|d| d.get(300 << 10).is_some_and(|b| *b != 0));
    let ran = interrupted(
        start(&machine, &[&args[..], &["--quiet"]].concat()),
        "-INT",
        begun,
    );
    assert_eq!(ran.code, 130);
    assert!(
        ran.err
            .contains("bytes are on the medium, --resume goes on there"),
        "{}",
        ran.err
    );
    let quick = fast(&machine);
    run(&quick, &["write", &zeroes, "da0"]).good();
    let again = run(&quick, &[&args[..], &["--json"]].concat()).good();
    assert_eq!(again.json()["resumed"], 0);
    assert!(contents()[..data.len()] == data);
    assert_eq!(names(dir.path()), ["disk", "in", "zeroes"]);
}

#[test]
fn a_write_without_resume_takes_the_note_away_before_the_data() {
    let (dir, machine) = disk(SLOW);
    let input = path(&dir, "in");
    fs::write(&input, noise(2 << 20)).expect("a file");
    let args = [
        "write",
        &input,
        "da0",
        "--size",
        "4K",
        "--checkpoint",
        "64K",
        "--quiet",
    ];
    let note = path(&dir, "in.qpass0.write.json");
    let has = |dir: &TempDir| {
        fs::read(path(dir, "disk")).is_ok_and(|d| d.get(200 << 10).is_some_and(|b| *b != 0))
    };
    let resume = [&args[..], &["--resume"]].concat();
    assert_eq!(
        interrupted(start(&machine, &resume), "-INT", || has(&dir)).code,
        130
    );
    assert!(Path::new(&note).exists());
    let begun = || !Path::new(&note).exists();
    assert_eq!(
        interrupted(start(&machine, &args), "-KILL", begun).code,
        137
    );
    assert!(!Path::new(&note).exists());
}

#[test]
fn a_note_that_cannot_be_written_is_said_at_once() {
    let (dir, machine) = disk("");
    let input = path(&dir, "in");
    fs::write(&input, noise(4096)).expect("a file");
    // A folder in its place, since root may write everywhere.
    fs::create_dir(path(&dir, "in.qpass0.write.json")).expect("a folder");
    run(&machine, &["write", &input, "da0", "--resume"]).failed(3, &["in.qpass0.write.json"]);
    let disk = fs::read(path(&dir, "disk")).expect("the disk");
    assert!(disk.iter().all(|b| *b == 0), "nothing was written");
}

#[test]
fn what_is_beside_a_file_is_not_followed_or_taken() {
    let (dir, machine, _) = full_disk("");
    let (out, part, victim) = (path(&dir, "o"), path(&dir, "o.part"), path(&dir, "victim"));
    let args = ["read", "da0", &out, "--count", "8", "--quiet"];
    fs::write(&victim, "victim").expect("a file");
    symlink(&victim, &part).expect("a link");
    for more in [&[][..], &["--resume"]] {
        run(&machine, &[&args[..], more].concat()).failed(3, &["o.part: is a symbolic link"]);
    }
    fs::remove_file(&part).expect("removed");
    fs::hard_link(&victim, &part).expect("a link");
    run(&machine, &args).failed(3, &["o.part: is there already"]);
    fs::remove_file(&part).expect("removed");
    fs::write(&part, "precious").expect("a file");
    for more in [&[][..], &["--resume"]] {
        run(&machine, &[&args[..], more].concat()).failed(3, &["o.part: is there already"]);
    }
    assert_eq!(fs::read_to_string(&part).expect("it is there"), "precious");
    assert_eq!(fs::read_to_string(&victim).expect("it is there"), "victim");
    assert_eq!(names(dir.path()), ["disk", "o.part", "victim"]);
}

#[test]
fn a_file_keeps_its_mode_its_link_and_its_protection() {
    let (dir, machine, data) = full_disk("");
    let (out, link) = (path(&dir, "o"), path(&dir, "link"));
    let args = |file: &str| -> Vec<String> {
        ["read", "da0", file, "--count", "8", "--quiet"]
            .map(String::from)
            .to_vec()
    };
    let read = |file: &str| {
        let args = args(file);
        run(
            &machine,
            &args.iter().map(String::as_str).collect::<Vec<_>>(),
        )
    };
    let mode = |file: &str| fs::metadata(file).expect("it is there").mode() & 0o7777;
    fs::write(&out, "old").expect("a file");
    fs::set_permissions(&out, fs::Permissions::from_mode(0o600)).expect("its mode");
    read(&out).good();
    assert_eq!(mode(&out), 0o600);
    // A link is followed, as dd(1) does, and one to nothing makes what it names.
    symlink("o", &link).expect("a link");
    read(&link).good();
    assert!(
        fs::symlink_metadata(&link)
            .expect("it is there")
            .is_symlink()
    );
    fs::remove_file(&out).expect("removed");
    read(&link).good();
    assert!(
        fs::symlink_metadata(&link)
            .expect("it is there")
            .is_symlink()
    );
    assert!(fs::read(&out).expect("it is there") == data[..4096]);
    fs::set_permissions(&out, fs::Permissions::from_mode(0o444)).expect("its mode");
    read(&out).failed(3, &["o: is read-only (mode 0444)"]);
    read(&path(&dir, "")).failed(2, &["folder"]);
    read(&path(&dir, "new/")).failed(2, &["not a file's name"]);
    assert_eq!(names(dir.path()), ["disk", "link", "o"]);
}

/// What is on the disk would be some of the old and some of the new.
#[test]
fn a_source_that_changes_meanwhile_is_no_copy() {
    let (dir, machine) = disk(SLOW);
    let input = path(&dir, "in");
    fs::write(&input, noise(1 << 20)).expect("a file");
    for more in [&[][..], &["--resume"]] {
        let _ = fs::remove_file(path(&dir, "disk"));
        let args = ["write", &input, "da0", "--size", "4K", "--quiet"];
        let child = start(&machine, &[&args[..], more].concat())
            .spawn()
            .expect("it runs");
        let begun = || {
            let disk = fs::read(path(&dir, "disk"));
            disk.is_ok_and(|d| d.first().is_some_and(|b| *b != 0))
        };
        until("it has begun", begun);
        use std::os::unix::fs::FileExt;
        let file = fs::File::options().write(true).open(&input);
        let file = file.expect("the file");
        file.write_all_at(b"changed", 900_000).expect("written");
        ended(child).failed(3, &["in: it was changed while it was copied"]);
        assert!(!Path::new(&path(&dir, "in.qpass0.write.json")).exists());
    }
}

#[test]
fn a_part_is_as_private_as_its_file() {
    let (dir, machine, _) = full_disk(SLOW);
    let (out, part) = (path(&dir, "o"), path(&dir, "o.part"));
    fs::write(&out, "old").expect("a file");
    fs::set_permissions(&out, fs::Permissions::from_mode(0o600)).expect("its mode");
    let child = start(&machine, &["read", "da0", &out, "--size", "64K", "--quiet"])
        .spawn()
        .expect("it runs");
    until("it has begun", || {
        fs::metadata(&part).is_ok_and(|m| m.len() != 0)
    });
    assert_eq!(fs::metadata(&part).expect("the part").mode() & 0o777, 0o600);
    ended(child).good();
}

#[test]
fn what_is_written_honours_the_umask() {
    let (dir, machine, _) = full_disk("");
    let mode = |file: &str| fs::metadata(file).expect("it is there").mode() & 0o7777;
    for (name, args) in [
        (
            "a",
            ["cdb", "da0", "12 00 00 00 24 00", "--in", "36", "--file"],
        ),
        (
            "b",
            [
                "bench",
                "da0",
                "--time=20ms",
                "--rounds=1",
                "--depth=1",
                "--csv",
            ],
        ),
        ("c", ["read", "da0", "--count", "8", "--quiet", "--"]),
    ] {
        let file = path(&dir, name);
        let args = [&args[..], &[&file]].concat();
        ran(start_after(&machine, "umask 077", &args), None).good();
        assert_eq!(mode(&file), 0o600, "{name}");
        fs::remove_file(&file).expect("removed");
        ran(start_after(&machine, "umask 022", &args), None).good();
        assert_eq!(mode(&file), 0o644, "{name}");
    }
}

#[test]
fn a_file_that_may_not_grow_ends_a_copy_with_what_there_is() {
    let (dir, machine, data) = full_disk("");
    let out = path(&dir, "o");
    let args = ["read", "da0", &out, "--size", "64K", "--quiet"];
    // Blocks of 512 bytes: 2 MiB.
    let limit = "ulimit -f 4096";
    ran(start_after(&machine, limit, &args), None).failed(3, &["o.part: write: file too large"]);
    assert_eq!(names(dir.path()), ["disk"], "nothing is left");
    let resume = [&args[..], &["--resume"]].concat();
    let ran = ran(start_after(&machine, limit, &resume), None);
    ran.failed(
        3,
        &["o.part: write: file too large", "--resume goes on there"],
    );
    let again = run(&machine, &[&resume[..5], &["--resume", "--json"]].concat())
        .good()
        .json();
    assert!(again["resumed"].as_u64().expect("bytes") >= 1 << 20);
    assert!(fs::read(&out).expect("the file") == data);
}

/// D8: whatever a stream does, what is on the disk is said, and 2 is for arguments.
#[test]
fn a_stream_says_how_much_of_it_is_there() {
    let (dir, machine) = disk("");
    let contents = || fs::read(path(&dir, "disk")).expect("the disk");
    let data = noise(700_000);
    let ran = run_with(&machine, &["write", "-", "da0", "--size", "64K"], &data);
    ran.failed(
        3,
        &[
            "standard input: does not end",
            "--pad",
            "699904 bytes are on the medium",
        ],
    );
    assert!(contents()[..699_904] == data[..699_904]);
    run_with(&machine, &["write", "-", "da0"], &data[..100]).failed(2, &["--pad"]);
    let large = noise((8 << 20) + 512);
    run_with(&machine, &["write", "-", "da0"], &large).failed(
        3,
        &[
            "qpass0: is full",
            "standard input goes on",
            "8388608 bytes are on the medium",
        ],
    );
    assert!(contents() == large[..8 << 20]);
    // Just as much as there is room for.
    run_with(
        &machine,
        &["write", "-", "da0", "--seek", "16000"],
        &data[..384 * 512],
    )
    .good();
    // A part of a last block too much.
    run_with(
        &machine,
        &["write", "-", "da0", "--pad"],
        &large[..(8 << 20) + 1],
    )
    .failed(3, &["is full"]);
    let slow = machine.replace(",size", ",latency=20ms,openings=1,vanish=600ms,size");
    let ran = run_with(
        &slow,
        &["write", "-", "da0", "--size", "4K", "--checkpoint", "8K"],
        &data,
    );
    assert_eq!(ran.code, 3, "{}", ran.err);
    let said = ran.err.split("; ").last().expect("words");
    let count = said
        .trim()
        .strip_suffix(" bytes are on the medium")
        .expect(said);
    let count: usize = count.parse().expect("a number");
    assert!(
        count >= 8192 && contents()[..count] == data[..count],
        "{}",
        ran.err
    );
}

/// D9: what was not done is not 0.
#[test]
fn nothing_to_copy_is_no_success() {
    let (dir, machine, data) = full_disk("");
    let (empty, out) = (path(&dir, "empty"), path(&dir, "o"));
    fs::write(&empty, "").expect("a file");
    fs::write(&out, "old").expect("a file");
    run(&machine, &["write", &empty, "da0"]).failed(2, &["nothing to copy"]);
    run(&machine, &["write", "-", "da0"]).failed(3, &["standard input: nothing came"]);
    run(&machine, &["write", "/dev/null", "da0"]).failed(3, &["/dev/null: nothing came"]);
    run(&machine, &["read", "da0", &out, "--count", "0"]).failed(2, &["nothing to copy"]);
    run(&machine, &["read", "da0", &out, "--skip", "16384"]).failed(2, &["there is none at 16384"]);
    assert_eq!(fs::read_to_string(&out).expect("it is there"), "old");
    assert!(fs::read(path(&dir, "disk")).expect("the disk") == data);
}

#[test]
fn a_disk_that_goes_leaves_what_can_be_gone_on_with() {
    let gone = ",latency=4ms,openings=1,vanish=900ms";
    let (dir, machine, data) = full_disk(gone);
    let out = path(&dir, "o");
    let args = [
        "read",
        "da0",
        &out,
        "--size",
        "8K",
        "--checkpoint",
        "64K",
        "--quiet",
        "--resume",
    ];
    let ran = run(&machine, &args);
    assert_eq!(ran.code, 3, "{}", ran.err);
    assert!(ran.err.contains("--resume goes on there"), "{}", ran.err);
    let again = run(&machine.replace(gone, ""), &args).good();
    assert!(again.err.is_empty() && fs::read(&out).expect("the file") == data);
    let (target, machine) = disk(gone);
    let args = [
        "write",
        &out,
        "da0",
        "--size",
        "8K",
        "--checkpoint",
        "64K",
        "--quiet",
        "--resume",
    ];
    let ran = run(&machine, &args);
    assert_eq!(ran.code, 3, "{}", ran.err);
    assert!(ran.err.contains("--resume goes on there"), "{}", ran.err);
    run(&machine.replace(gone, ""), &args).good();
    assert!(fs::read(path(&target, "disk")).expect("the disk") == data);
}

fn fifo(dir: &TempDir, name: &str) -> String {
    let path = path(dir, name);
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.expect("mkfifo").success());
    path
}

/// C1: whatever it waits for.
#[test]
fn a_signal_ends_every_wait() {
    let (dir, machine, _) = full_disk("");
    let (unread, stalled) = (fifo(&dir, "unread"), fifo(&dir, "stalled"));
    // Somebody has it open, and does not read.
    let _reader = fs::File::options()
        .read(true)
        .write(true)
        .open(&stalled)
        .expect("open");
    for (args, signal, code) in [
        (&["write", "-", "da0"][..], "-INT", 130),
        (&["write", "-", "da0"], "-TERM", 143),
        (
            &[
                "cdb",
                "da0",
                "2a 00 00 00 00 00 00 00 01 00",
                "--out",
                "--file",
                "-",
            ],
            "-INT",
            130,
        ),
        (&["write", &unread, "da0"], "-INT", 130),
        (&["read", "da0", &unread], "-HUP", 129),
        (&["read", "da0", &stalled], "-INT", 130),
        (&["read", "da0", &stalled], "-TERM", 143),
        (&["read", "da0", "-"], "-INT", 130),
        (
            &[
                "cdb",
                "da0",
                "12 00 00 00 24 00",
                "--in",
                "36",
                "--file",
                &unread,
            ],
            "-INT",
            130,
        ),
    ] {
        let mut command = start(&machine, args);
        command.stdin(std::process::Stdio::piped());
        let mut child = command.spawn().expect("it runs");
        let _open = child.stdin.take();
        std::thread::sleep(Duration::from_millis(600));
        let begin = Instant::now();
        kill(&child, signal);
        let ran = ended(child);
        assert_eq!(ran.code, code, "{args:?}: {}", ran.err);
        assert!(
            begin.elapsed() < Duration::from_secs(3),
            "{args:?}: {:?}",
            begin.elapsed()
        );
        assert!(
            ran.err.starts_with("qpassctl: interrupted"),
            "{args:?}: {}",
            ran.err
        );
    }
}

/// C3: a shell's loop ends with it.
#[test]
fn interrupted_it_dies_of_the_signal() {
    use std::os::unix::process::ExitStatusExt;
    let (dir, machine) = disk(SLOW);
    let part = path(&dir, "o.part");
    let mut child = start(&machine, &["read", "da0", &path(&dir, "o"), "--size", "4K"])
        .spawn()
        .expect("it runs");
    until("it has begun", || Path::new(&part).exists());
    kill(&child, "-INT");
    let status = child.wait().expect("it ends");
    assert_eq!((status.code(), status.signal()), (None, Some(2)));
    // Who is started with SIGHUP ignored goes on.
    let small = [
        "read",
        "da0",
        "/dev/null",
        "--size",
        "4K",
        "--count",
        "1200",
    ];
    let child = start_after(&machine, "trap '' HUP", &small)
        .spawn()
        .expect("it runs");
    std::thread::sleep(Duration::from_millis(400));
    kill(&child, "-HUP");
    ended(child).good();
}

#[test]
fn without_a_terminal_each_tenth_is_a_line() {
    let (dir, machine, _) = full_disk(",latency=25ms,openings=1");
    let out = path(&dir, "o");
    let args = ["read", "da0", &out, "--size", "64K"];
    let ran = run(&machine, &args).good();
    let lines: Vec<_> = ran.err.lines().collect();
    let tenths: Vec<_> = lines.iter().filter(|l| l.contains(" %, ")).collect();
    // Of more than three seconds, but for the first.
    assert!((5..10).contains(&tenths.len()), "{}", ran.err);
    let last = tenths.last().expect("lines");
    assert!(last.starts_with("qpass0: reading 90 %, 7"), "{}", ran.err);
    let is_whole = |l: &&str| l.contains("/s, ") && l.ends_with(" left");
    assert!(tenths.iter().all(|l| is_whole(l)), "{}", ran.err);
    assert!(!ran.err.contains('\u{1b}') && !ran.err.contains('\r'));
    let quiet = run(
        &machine,
        &[&args[..], &["--quiet", "--count", "8"]].concat(),
    );
    assert_eq!(quiet.good().err, "");
}

/// B4: the rate of a copy is of copying.
#[test]
fn verifying_has_a_time_of_its_own() {
    let (dir, machine) = disk(",latency=2ms,openings=1");
    let input = path(&dir, "in");
    fs::write(&input, noise(1 << 20)).expect("a file");
    let args = ["write", &input, "da0", "--size", "16K", "--json"];
    let plain = run(&machine, &args).good().json();
    assert!(plain["verify_seconds"].is_null() && plain["verified"] == false);
    let verified = run(&machine, &[&args[..], &["--verify"]].concat())
        .good()
        .json();
    let second = |name: &str| verified[name].as_f64().expect("seconds");
    assert!(second("verify_seconds") > 0.1);
    let rate = second("bytes_per_second");
    assert!((rate * second("seconds") / f64::from(1 << 20) - 1.0).abs() < 1e-6);
}
