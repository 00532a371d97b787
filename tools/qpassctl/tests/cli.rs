//! Every command of qpassctl, as a user gives it, on qpass.ko in the user-mode
//! kernel. Each run unloads the module at its end, and a leak ends it with 70.

#![cfg(target_os = "linux")]

mod common;

use common::*;
use serde_json::Value;
use std::{fs, path::Path};

#[test]
fn list_shows_devices_and_who_uses_them() {
    let machine = "disk,unmapped,mounted=/mnt;disk,maxio=128K";
    let text = run(machine, &["list"]).good();
    let lines: Vec<_> = text.text().lines().collect();
    assert_eq!(lines.len(), 4);
    assert!(lines[0].starts_with("DEVICE"));
    let driver = "qpass(4), interface 1: cancel, limit, enter, list, zerocopy, cancel-device";
    assert_eq!(lines[3], driver);
    for word in [
        "qpass0",
        "0:0:0",
        "QPASS RAM DISK",
        "QP0000",
        "1 MiB",
        "da0",
        "zero-copy",
        "/mnt",
    ] {
        assert!(lines[1].contains(word), "{word}: {}", lines[1]);
    }
    assert!(lines[2].contains("128 KiB") && lines[2].contains("copies"));
    let json = run(machine, &["list", "--json"]).good().json();
    assert_eq!(json[0]["used"][0], "/mnt");
    assert_eq!(json[1]["maxio"], 128 << 10);
    assert_eq!(json[1]["peripherals"][1], "da1");
    assert!(
        json[0]["features"]
            .as_array()
            .expect("names")
            .contains(&"unmapped".into())
    );
}

#[test]
fn inquiry_shows_the_data_and_the_pages() {
    let text = run("disk", &["inquiry", "da0"]).good();
    assert!(text.text().contains("product    RAM DISK\n"));
    let pages = run("disk", &["inquiry", "qpass0", "--page", "0"]).good();
    assert_eq!(pages.text(), "0x00\n0x80\n0x83\n");
    let serial = run("disk", &["--json", "inquiry", "qpass0", "--page", "0x80"]).good();
    assert_eq!(serial.json()["serial"], "QP0000");
    run("disk", &["inquiry", "qpass0", "--page", "0x99"])
        .failed(1, &["qpass0: INQUIRY page 0x99", "invalid field in CDB"]);
}

#[test]
fn tur_tells_ready_from_not() {
    assert_eq!(
        run("disk", &["tur", "qpass0"]).good().text(),
        "qpass0: ready\n"
    );
    run("disk,attention=1", &["tur", "qpass0"])
        .failed(1, &["qpass0: not ready", "UNIT ATTENTION", "power on"]);
    let json = run("disk,attention=1", &["tur", "qpass0", "--json"]);
    assert_eq!((json.code, &json.json()["ready"]), (1, &Value::Bool(false)));
}

#[test]
fn readcap_shows_the_size_past_a_unit_attention() {
    let text = run("disk,size=1G,attention=1", &["readcap", "/dev/qpass0"]).good();
    assert_eq!(text.text(), "qpass0: 2097152 blocks of 512 bytes, 1 GiB\n");
    let json = run("disk", &["readcap", "da0", "--json"]).good().json();
    assert_eq!(
        (json["blocks"].as_u64(), json["block"].as_u64()),
        (Some(131_072), Some(512))
    );
}

#[test]
fn cdb_sends_what_it_is_given() {
    let (dir, machine) = disk("");
    let data = noise(1024);
    let (input, output) = (path(&dir, "in"), path(&dir, "out"));
    fs::write(&input, &data).expect("a file");
    let write = "2a 00 00 00 00 05 00 00 02 00";
    run(
        &machine,
        &["cdb", "qpass0", write, "--out", "--file", &input],
    )
    .good();
    let read = [
        "cdb",
        "qpass0",
        "28 00 00 00 00 05 00 00 02 00",
        "--in",
        "1024",
    ];
    run(&machine, &[&read[..], &["--file", &output]].concat()).good();
    assert_eq!(fs::read(&output).expect("it is there"), data);
    let stdout = run(&machine, &[&read[..], &["--file", "-"]].concat()).good();
    assert_eq!(stdout.out, data);
    let dump = run(&machine, &read).good();
    assert!(
        dump.text()
            .starts_with(&format!("0000  {:02x} {:02x} ", data[0], data[1]))
    );
    let json = run(&machine, &[&read[..], &["--json"]].concat())
        .good()
        .json();
    assert_eq!(
        (&json["ok"], json["moved"].as_u64()),
        (&Value::Bool(true), Some(1024))
    );
    // Through stdin, and back.
    let other = noise(512);
    run_with(
        &machine,
        &[
            "cdb",
            "qpass0",
            "2a000000000000000100",
            "--out",
            "--file",
            "-",
        ],
        &other,
    )
    .good();
    let back = [
        "cdb",
        "qpass0",
        "28000000000000000100",
        "--in",
        "512",
        "--file",
        "-",
    ];
    assert_eq!(run(&machine, &back).good().out, other);
}

#[test]
fn a_cdb_that_fails_leaves_no_file() {
    let (dir, machine) = disk("");
    let output = path(&dir, "out");
    run(
        &machine,
        &["cdb", "qpass0", "ff", "--in", "512", "--file", &output],
    )
    .failed(1, &["qpass0: command ff", "invalid command operation code"]);
    assert_eq!(names(dir.path()), ["disk"]);
    let json = run(&machine, &["cdb", "qpass0", "ff", "--json"]);
    assert_eq!(
        (json.code, json.json()["error"]["asc"].as_u64()),
        (1, Some(0x20))
    );
    for (args, words) in [
        (&["cdb", "qpass0", "zz"][..], "two hexadecimal digits"),
        (
            &["cdb", "qpass0", "00000000000000000000000000000000ff"],
            "1 to 16 bytes",
        ),
        (
            &["cdb", "qpass0", "00", "--in", "64M"],
            "more than its controller takes",
        ),
        (&["cdb", "qpass0", "00", "--file", "x"], "wants --in"),
    ] {
        run(&machine, args).failed(2, &[words]);
    }
    run(
        &machine,
        &[
            "cdb",
            "qpass0",
            "00",
            "--in",
            "8",
            "--file",
            "/no/such/place",
        ],
    )
    .failed(3, &["/no/such/place", "no such file"]);
}

#[test]
fn write_and_read_move_every_byte() {
    let (dir, machine) = disk(",unmapped,jitter=200us,attention=2");
    let (input, output) = (path(&dir, "in"), path(&dir, "out"));
    let data = noise(1_000_000);
    fs::write(&input, &data).expect("a file");
    let wrote = run(
        &machine,
        &["write", &input, "da0", "--pad", "--seek", "77", "--verify"],
    )
    .good();
    assert!(
        wrote.err.contains("wrote") && wrote.err.contains("verified"),
        "{}",
        wrote.err
    );
    let args = [
        "read", "da0", &output, "--skip", "77", "--count", "1954", "--size", "20K",
    ];
    let read = run(
        &machine,
        &[&args[..], &["--depth", "7", "--verify", "--json"]].concat(),
    )
    .good();
    assert_eq!(read.json()["bytes"].as_u64(), Some(1954 * 512));
    let found = fs::read(&output).expect("it is there");
    assert_eq!(found[..data.len()], data);
    assert!(
        found[data.len()..].iter().all(|b| *b == 0),
        "padded with zeroes"
    );
    assert_eq!(names(dir.path()), ["disk", "in", "out"]);
    // The whole disk is what the disk's file is.
    run(&machine, &["read", "qpass0", &output, "--quiet"]).good();
    let whole = fs::read(path(&dir, "disk")).expect("the disk");
    assert!(fs::read(&output).expect("it is there") == whole);
}

#[test]
fn pipes_are_read_and_written_in_order() {
    let (_dir, machine) = disk(",jitter=300us");
    let data = noise(700 * 512);
    run_with(
        &machine,
        &["write", "-", "qpass0", "--seek", "9", "--size", "3K"],
        &data,
    )
    .good();
    let args = [
        "read", "qpass0", "-", "--skip", "9", "--count", "700", "--size", "2K",
    ];
    assert!(run(&machine, &args).good().out == data);
    // As much as fits, and not more.
    let large = noise((8 << 20) + 512);
    run_with(&machine, &["write", "-", "qpass0"], &large).failed(3, &["qpass0: is full"]);
    run_with(&machine, &["write", "-", "qpass0"], &data[..100]).failed(2, &["--pad"]);
    run_with(&machine, &["write", "-", "qpass0", "--pad"], &data[..100]).good();
}

#[test]
fn a_device_in_use_is_not_written_to() {
    let (dir, machine) = disk(",mounted=/home");
    let input = path(&dir, "in");
    fs::write(&input, noise(512)).expect("a file");
    run(&machine, &["write", &input, "qpass0"])
        .failed(5, &["qpass0: in use: da0 is mounted on /home", "--force"]);
    run_with(&machine, &["write", "-", "da0"], &[0; 512]).failed(5, &["/home"]);
    let before = fs::read(path(&dir, "disk")).expect("the disk");
    assert!(before.iter().all(|b| *b == 0), "nothing was written");
    run(&machine, &["write", &input, "qpass0", "--force"]).good();
    run(&machine, &["read", "qpass0", &path(&dir, "out")]).good();
}

#[test]
fn verification_finds_what_is_not_so() {
    let (dir, machine) = disk(",rots");
    let input = path(&dir, "in");
    fs::write(&input, noise(64 << 10)).expect("a file");
    let args = ["write", &input, "qpass0", "--size", "4K", "--seek", "100"];
    run(&machine, &args).good();
    run(
        &machine,
        &[&args[..], &["--verify", "--depth", "1"]].concat(),
    )
    .failed(4, &["qpass0: block 100 is not what", "in has at byte 0"]);
}

#[test]
fn a_read_that_fails_leaves_nothing_and_one_that_resumes_goes_on() {
    let (dir, machine) = disk(",latency=4ms,openings=1");
    let output = path(&dir, "out");
    let data = noise(4 << 20);
    fs::write(path(&dir, "disk"), [&data[..], &vec![0; 4 << 20]].concat()).expect("the disk");
    let stopped = |extra: &[&str]| {
        let args = [
            "read",
            "qpass0",
            &output,
            "--size",
            "4K",
            "--checkpoint",
            "64K",
        ];
        let part = path(&dir, "out.part");
        let begun = || fs::metadata(&part).is_ok_and(|m| m.len() > 256 << 10);
        let command = start(&machine, &[&args[..], extra].concat());
        interrupted(command, "-INT", begun)
    };
    assert_eq!(stopped(&[]).code, 130);
    assert_eq!(names(dir.path()), ["disk"], "nothing half-written");
    assert_eq!(stopped(&["--resume"]).code, 130);
    assert_eq!(names(dir.path()), ["disk", "out.part", "out.part.json"]);
    // Another copy's note is not this one's.
    let args = ["read", "qpass0", &output, "--size", "4K", "--resume"];
    run(&machine, &[&args[..], &["--skip", "1"]].concat()).failed(2, &["another copy"]);
    let again = run(
        &machine.replace("4ms", "0us"),
        &[&args[..], &["--json"]].concat(),
    )
    .good();
    let resumed = again.json()["resumed"].as_u64().expect("bytes");
    assert!(resumed >= 64 << 10, "{resumed}");
    assert!(fs::read(&output).expect("it is there")[..data.len()] == data);
    assert_eq!(names(dir.path()), ["disk", "out"]);
}

#[test]
fn a_write_goes_on_where_it_was() {
    let (dir, machine) = disk(",latency=4ms,openings=1");
    let input = path(&dir, "in");
    let data = noise(3 << 20);
    fs::write(&input, &data).expect("a file");
    let args = [
        "write",
        &input,
        "qpass0",
        "--size",
        "4K",
        "--checkpoint",
        "64K",
        "--resume",
    ];
    let note = path(&dir, "in.qpass0.write.json");
    let ended = interrupted(start(&machine, &args), "-TERM", || {
        Path::new(&note).exists()
    });
    assert_eq!(ended.code, 143);
    let fast = machine.replace("4ms", "0us");
    let again = run(&fast, &[&args[..], &["--json", "--verify"]].concat()).good();
    let json = again.json();
    assert!(json["resumed"].as_u64().expect("bytes") >= 64 << 10);
    assert_eq!(json["verified"], true);
    assert!(fs::read(path(&dir, "disk")).expect("the disk")[..data.len()] == data);
    assert_eq!(names(dir.path()), ["disk", "in"]);
}

#[test]
fn copies_that_make_no_sense_are_refused() {
    let (dir, machine) = disk("");
    let (empty, odd) = (path(&dir, "empty"), path(&dir, "odd"));
    fs::write(&empty, "").expect("a file");
    fs::write(&odd, "1").expect("a file");
    let out = path(&dir, "out");
    for (args, code, words) in [
        (
            &["write", &empty, "qpass0"][..],
            2,
            "empty: it is empty: nothing to copy",
        ),
        (&["write", &odd, "qpass0"], 2, "--pad"),
        (
            &["write", "/no/such", "qpass0"],
            3,
            "/no/such: open: no such file",
        ),
        (
            &["write", &odd, "qpass0", "--pad", "--seek", "99999999"],
            2,
            "blocks",
        ),
        (
            &["read", "qpass0", &out, "--skip", "16384"],
            2,
            "16384 blocks",
        ),
        (
            &["read", "qpass0", &out, "--count", "20000"],
            2,
            "do not hold 20000",
        ),
        (
            &["read", "qpass0", "/no/such/out"],
            3,
            "create: no such file",
        ),
        (
            &["read", "qpass0", &out, "--size", "100"],
            2,
            "no multiple of a block",
        ),
        (
            &["read", "qpass0", "-", "--verify"],
            2,
            "a file of their own",
        ),
        (
            &["read", "qpass7", &out],
            3,
            "qpass7: open: no such device or file (ENOENT)",
        ),
        (&["read", "da7", &out], 3, "da7: no device"),
    ] {
        let ran = run(&machine, args);
        ran.failed(code, &[words]);
        assert!(ran.out.is_empty());
    }
    assert_eq!(names(dir.path()), ["disk", "empty", "odd"]);
}

#[test]
fn bench_compares_methods_and_writes_tables() {
    let (dir, machine) = disk(",unmapped");
    let table = path(&dir, "bench.csv");
    let args = [
        "bench", "da0", "--time", "30ms", "--rounds", "2", "--depth", "1,4",
    ];
    let more = ["--size", "4K", "--method", "enter,queue", "--csv", &table];
    let text = run(&machine, &[&args[..], &more].concat()).good();
    // Charts are for terminals.
    assert!(text.text().contains("RATIO") && text.text().is_ascii());
    let rows: Vec<csv::StringRecord> = csv::Reader::from_path(&table)
        .expect("a table")
        .records()
        .map(|r| r.expect("a row"))
        .collect();
    assert_eq!(rows.len(), 4);
    let json = run(
        &machine,
        &[&args[..], &more[..4], &["--json", "--op", "tur"]].concat(),
    )
    .good();
    let json = json.json();
    for row in json.as_array().expect("rows") {
        let number = |name: &str| row[name].as_f64().expect("a number");
        assert!(number("commands") > 0.0 && number("iops") > 0.0, "{row}");
        assert!(number("p50_us") <= number("p90_us") && number("p90_us") <= number("max_us"));
        // It is the rate that the count and the time make.
        let rate = number("commands") / number("seconds");
        assert!((rate / number("iops") - 1.0).abs() < 1e-6);
    }
    assert_eq!(json[0]["ratio"], 1.0);
    run(&machine, &["bench", "da0", "--compare", "pass"]).failed(3, &["no pass(4)"]);
    let few = "disk;kern.cam.qpass.max_requests=4";
    run(few, &["bench", "da0", "--depth", "1,8"])
        .failed(2, &["qpass0: an open", "4 requests", "depth of 8"]);
    let other = format!("{machine};disk");
    run(&other, &["bench", "da0", "--compare", "qpass1"]).failed(2, &["not the same device"]);
}

#[test]
fn outstanding_shows_and_cancel_ends_it() {
    let machine = "disk,busy=3,openings=1";
    let text = run(machine, &["outstanding"]).good();
    let lines: Vec<_> = text.text().lines().collect();
    assert_eq!(lines.len(), 4);
    assert!(lines[1].contains("READ(10)") && lines[1].contains("sent"));
    assert!(lines[2].contains("queued") && lines[2].contains("4 KiB"));
    let json = run(machine, &["outstanding", "qpass0", "--json"])
        .good()
        .json();
    assert_eq!(json[2]["number"].as_u64(), Some(3));
    let twice = ["outstanding", "--watch=10ms", "--times", "2", "--json"];
    assert_eq!(run(machine, &twice).good().text().lines().count(), 2);
    assert_eq!(
        run("disk", &["outstanding"]).good().text(),
        "nothing is outstanding\n"
    );
    let all = run(machine, &["cancel", "da0", "--all"]).good();
    assert!(
        all.text()
            .contains("2 taken back before they were sent, 1 aborted")
    );
    let one = [
        "cancel",
        "qpass0",
        "--open",
        "1",
        "--request",
        "2",
        "--json",
    ];
    assert_eq!(
        run(machine, &one).good().json()["dequeued"].as_u64(),
        Some(1)
    );
    run(machine, &["cancel", "qpass0", "--open", "9"])
        .failed(3, &["qpass0: cancel what is not outstanding"]);
    let others = format!("{machine};unprivileged");
    run(&others, &["cancel", "qpass0", "--all"]).failed(3, &["root's", "EPERM"]);
    run(&others, &["outstanding"]).failed(3, &["root's", "EPERM"]);
    assert_eq!(run(machine, &["cancel", "qpass0"]).code, 2);
}

#[test]
fn stats_and_limits_are_the_drivers() {
    let text = run("disk;disk", &["stats"]).good();
    assert_eq!(text.text().lines().count(), 3);
    let json = run("disk,busy=2", &["stats", "qpass0", "--json"])
        .good()
        .json();
    assert_eq!(json[0]["submitted"].as_u64(), Some(2));
    assert_eq!(json[0]["outstanding"].as_u64(), Some(2));
    let watched = ["stats", "--watch=10ms", "--times", "3"];
    assert_eq!(run("disk", &watched).good().text().lines().count(), 6);
    let limits = run(
        "disk",
        &["limits", "max_requests=2048", "zerocopy_min=0", "--json"],
    )
    .good();
    let json = limits.json();
    let value = |name: &str| {
        let all = json.as_array().expect("limits");
        let limit = all.iter().find(|l| l["name"] == name).expect("it is there");
        limit["value"].as_u64()
    };
    assert_eq!(value("max_requests"), Some(2048));
    assert_eq!(value("zerocopy_min"), Some(0));
    assert_eq!(value("max_bytes"), Some(64 << 20));
    run("disk", &["limits", "max_requests=8", "nonsense=1"]).failed(2, &["nonsense", "max_bytes"]);
    run("disk", &["limits", "max_requests"]).failed(2, &["NAME=VALUE"]);
    run("disk", &["limits", "max_requests=8G"]).failed(3, &["EINVAL"]);
    run("disk;unprivileged", &["limits", "max_bytes=1M"]).failed(3, &["max_bytes", "EPERM"]);
}

#[test]
fn help_teaches_and_completions_complete() {
    let help = run("disk", &["--help"]).good();
    for word in [
        "EXAMPLES",
        "EXIT STATUS",
        "outstanding",
        "bench",
        "QPASS_UKERNEL",
    ] {
        assert!(help.text().contains(word), "{word}");
    }
    for command in [
        "list",
        "inquiry",
        "tur",
        "readcap",
        "cdb",
        "read",
        "write",
        "bench",
        "outstanding",
        "cancel",
        "stats",
        "limits",
        "completions",
    ] {
        assert!(
            run("disk", &[command, "--help"])
                .good()
                .text()
                .contains("Usage:"),
            "{command}"
        );
    }
    for shell in ["bash", "zsh", "fish"] {
        let text = run("disk", &["completions", shell]).good();
        assert!(text.text().contains("qpassctl") && text.text().contains("readcap"));
    }
    for bad in [
        &["nonsense"][..],
        &["tur"],
        &["read", "qpass0"],
        &["bench", "da0", "--depth", "0"],
    ] {
        let ran = run("disk", bad);
        assert!(
            ran.code == 2 && ran.out.is_empty() && !ran.err.is_empty(),
            "{bad:?}"
        );
    }
}

#[test]
fn a_pipe_that_closes_is_no_failure_to_shout_about() {
    let mut child = start("disk,size=8M", &["read", "qpass0", "-"])
        .spawn()
        .expect("runs");
    drop(child.stdout.take());
    let out = child.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&out.stderr), "");
    assert_eq!(out.status.code(), Some(3));
}

#[test]
fn a_machine_that_makes_no_sense_is_refused() {
    run("tape", &["list"]).failed(3, &["QPASS_UKERNEL", "tape"]);
    let mut command = start("disk", &["list"]);
    command.env("QPASS_KO", "/no/such.ko");
    ran(command, None).failed(3, &["/no/such.ko", "scripts/build.sh"]);
    let mut command = start("disk", &["list"]);
    command.env("QPASS_KO", "/dev/null");
    ran(command, None).failed(3, &["/dev/null"]);
    run("disk=/no/such/disk", &["list"]).failed(3, &["/no/such/disk"]);
}

#[test]
fn where_it_stands_in_for_pass_its_nodes_are_found() {
    let machine = "disk;hw.qpass.replace=1";
    let text = run(machine, &["list"]).good();
    assert!(text.text().contains("pass0") && !text.text().contains("qpass0"));
    run(machine, &["tur", "da0"]).good();
    run(machine, &["stats", "pass0"]).good();
    run(machine, &["tur", "qpass0"]).failed(3, &["qpass0: open", "ENOENT"]);
}

#[test]
fn a_device_that_goes_ends_a_copy_with_a_word() {
    let dir = tempfile::tempdir().expect("a folder");
    let output = path(&dir, "out");
    let machine = "disk,size=64M,latency=2ms,openings=1,vanish=700ms";
    for args in [
        &["read", "qpass0", &output, "--size", "4K"][..],
        &["read", "qpass0", "-", "--size", "4K"],
        &["bench", "qpass0", "--time", "20s"],
    ] {
        let ran = run(machine, args);
        assert_eq!(ran.code, 3, "{args:?}: {}", ran.err);
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
        let is_said = ["has gone", "is not there", "no such device"]
            .iter()
            .any(|w| ran.err.contains(w));
        assert!(
            ran.err.starts_with("qpassctl: qpass0: ") && is_said,
            "{}",
            ran.err
        );
        assert_eq!(names(dir.path()), [""; 0]);
    }
}
