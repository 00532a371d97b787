//! What people type is understood, what is wrong with it is said in one line, and
//! what is printed is the same for scripts each time.

#![cfg(target_os = "linux")]

mod common;

use common::*;
use serde_json::Value;
use std::fs;

/// E1 and E6, and what is near.
#[test]
fn a_device_is_found_by_each_of_its_names() {
    for name in ["qpass0", "/dev/qpass0", "da0", "/dev/da0"] {
        run("disk", &["tur", name]).good();
        run(
            "disk",
            &["bench", name, "--time=10ms", "--rounds=1", "--depth=1"],
        )
        .good();
    }
    // I6: list says of any kind what it is.
    let one = run("disk;disk,nvme;disk,ata", &["list", "qpass1", "--json"])
        .good()
        .json();
    assert_eq!(
        (one[0]["device"].as_str(), one.as_array().map(Vec::len)),
        (Some("qpass1"), Some(1))
    );
    run("disk", &["list", "da3"]).failed(3, &["da3"]);
    run("disk", &["tur", ""]).failed(2, &["an empty name"]);
    run("disk", &["tur", "da0p1"]).failed(3, &["da0p1: ", "a partition", "its disk is da0"]);
    run("disk", &["tur", "/dev/da7"]).failed(3, &["/dev/da7: no device", "qpassctl list"]);
    run("disk", &["stats", "--watch", "1"]).failed(3, &["1: no device", "--watch="]);
    run("disk", &["tur", "/dev/no/such"]).failed(3, &["no/such: open: ", "ENOENT"]);
}

/// E10.
#[test]
fn sizes_are_taken_as_they_are_printed() {
    let (dir, machine, data) = full_disk("");
    let out = path(&dir, "o");
    for size in ["4096", "0x1000", "4K", "4k", "4KB", "4KiB", "4kib"] {
        let args = [
            "read", "da0", &out, "--size", size, "--count", "0x10", "--skip", "0x1",
        ];
        run(&machine, &args).good();
        assert!(
            fs::read(&out).expect("the file") == data[512..17 * 512],
            "{size}"
        );
    }
    run(&machine, &["read", "da0", &out, "--size", "1MB"]).good();
    run(&machine, &["read", "da0", &out, "--size", "4KX"])
        .failed(2, &["'4KX'", "--size <SIZE>", "such as 4096"]);
    run(&machine, &["read", "da0", &out, "--size", "513"]).failed(2, &["no multiple of a block"]);
}

/// E3 and E5: one line, with the tool's name, for whatever is wrong.
#[test]
fn what_is_wrong_is_one_line() {
    for (args, words) in [
        (&[][..], &["a command is wanted: list, inquiry"][..]),
        (&["nonsense"], &["unrecognized subcommand 'nonsense'"]),
        (&["tur"], &["<DEVICE>"]),
        (&["read", "da0"], &["<FILE>"]),
        (
            &["read", "da0", "x", "--dept", "1"],
            &["'--dept'", "; ", "'--depth'"],
        ),
        (
            &["bench", "da0", "--depth", "0"],
            &["--depth <DEPTH>", "1..=1024"],
        ),
        (
            &["bench", "da0", "--op", "rnd"],
            &["'rnd'", "random, sequential, tur"],
        ),
        (&["inquiry", "da0", "--page", "0x100"], &["0x00 to 0xff"]),
        (&["cancel", "da0"], &["--open N", "--all"]),
        (&["cancel", "--request", "1", "da0"], &["--open"]),
        (
            &["cancel", "--all", "--open", "1", "da0"],
            &["cannot be used with"],
        ),
        (
            &["stats", "--watch=1d"],
            &["'1d'", "--watch", "such as 30s"],
        ),
        (&["stats", "--times", "3"], &["--watch"]),
        (
            &["cdb", "da0", "00", "--timeout", "soon"],
            &["'soon'", "such as 30s"],
        ),
        (&["completions", "csh"], &["'csh'", "bash"]),
    ] {
        let ran = run("disk", args);
        ran.failed(2, words);
        assert!(
            ran.out.is_empty() && ran.err.len() < 300,
            "{args:?}: {}",
            ran.err
        );
        // And as JSON, before or behind.
        let json = run("disk", &[&["--json"], args].concat());
        assert_eq!((json.code, &json.err), (2, &ran.err), "{args:?}");
        let said = json.json()["error"]["message"]
            .as_str()
            .expect("text")
            .to_owned();
        assert_eq!(format!("qpassctl: {said}\n"), ran.err);
    }
}

/// E4 and B3.
#[test]
fn limits_are_understood_before_they_are_set() {
    run("disk", &["limits", "zerocopy_min=banana"])
        .failed(2, &["zerocopy_min=banana: banana is not a number"]);
    run("disk", &["limits", "max_requests"]).failed(2, &["NAME=VALUE is wanted"]);
    for none in ["max_requests=0", "device_max_requests=0"] {
        run("disk", &["limits", none]).failed(2, &[none, "1 is the least"]);
    }
    run("disk", &["limits", "allow_paddr=2"]).failed(2, &["1 is the most"]);
    run("disk", &["limits", "zerocopy_min=8192", "max_requests=8G"]).failed(
        3,
        &[
            "max_requests: ",
            "EINVAL",
            "zerocopy_min=8192 was set before",
        ],
    );
    let set = run(
        "disk",
        &["limits", "zerocopy_min=0x2000", "max_bytes=1GiB", "--json"],
    )
    .good();
    let value = |name: &str| {
        let all = set.json();
        let found = all
            .as_array()
            .expect("limits")
            .iter()
            .find(|l| l["name"] == name)
            .cloned();
        found.expect("it is there")["value"].as_u64()
    };
    assert_eq!(
        (value("zerocopy_min"), value("max_bytes")),
        (Some(8192), Some(1 << 30))
    );
    assert!(value("total_max_bytes").is_some());
}

/// B3: a copy through a driver that takes nothing says so.
#[test]
fn a_driver_without_room_keeps_no_copy_for_ever() {
    let machine = "disk,size=16M;kern.cam.qpass.max_requests=0";
    run(machine, &["read", "da0", "/dev/null"]).failed(3, &["EAGAIN", "qpassctl limits"]);
}

/// E7 and E8: what is of a second says so, and what has gone is no silence.
#[test]
fn what_is_watched_has_a_time_and_an_end() {
    let ran = run("disk", &["stats", "--watch=30ms", "--times", "2"]).good();
    let lines: Vec<_> = ran.text().lines().collect();
    assert_eq!(lines.len(), 4);
    assert!(!lines[1].contains("/s"), "{}", lines[1]);
    assert_eq!(lines[3].matches("/s").count(), 6, "{}", lines[3]);
    assert!(!ran.text().contains('\u{1b}'));
    let ran = run("disk", &["stats", "--watch=30ms", "--times", "2", "--json"]).good();
    let lines: Vec<Value> = ran
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert!(lines[0][0]["rates"].is_null());
    assert!(lines[1][0]["rates"]["submitted"].is_number());
    let time = |i: usize| lines[i][0]["time"].as_f64().expect("a time");
    assert!(time(1) > time(0) && time(0) > 1.7e9);
    for command in ["stats", "outstanding"] {
        let ran = run("disk,vanish=300ms", &[command, "--watch=50ms"]);
        ran.failed(3, &["qpass0: ", "gone"]);
        let json = run("disk,vanish=300ms", &[command, "--watch=50ms", "--json"]);
        let last: Value = serde_json::from_str(json.text().lines().last().expect("a line"))
            .expect("each line is JSON");
        assert_eq!(last["error"]["exit_status"], 3);
        // The other one is still there.
        let two = "disk;disk,vanish=200ms";
        run(two, &[command, "--watch=100ms", "--times", "5"]).good();
    }
}

/// E9: every command says as JSON why it failed, and with the same keys.
#[test]
fn failures_are_json_too() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = path(&dir, "o");
    for (args, code, kind) in [
        (&["inquiry", "da7"][..], 3, "system"),
        (&["readcap", "da7"], 3, "system"),
        (&["read", "da0", &out, "--count", "0"], 2, "usage"),
        (&["write", "/no/such", "da0"], 3, "system"),
        (&["bench", "da0", "--size", "3"], 2, "usage"),
        (&["outstanding", "da7"], 3, "system"),
        (&["cancel", "da0", "--open", "99"], 3, "system"),
        (&["stats", "da7"], 3, "system"),
        (&["limits", "max_requests=8G"], 3, "system"),
        (&["inquiry", "da0", "--page", "0x99"], 1, "command"),
    ] {
        let ran = run("disk", &[args, &["--json"]].concat());
        ran.failed(code, &[]);
        let json = ran.json();
        assert_eq!(json["ok"], false, "{args:?}");
        let error = json["error"].as_object().expect("an error");
        assert_eq!(error["exit_status"].as_i64(), Some(code.into()), "{args:?}");
        assert_eq!(error["kind"], kind, "{args:?}");
        let keys: Vec<_> = error.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                "asc",
                "ascq",
                "cam_status",
                "exit_status",
                "key",
                "kind",
                "message",
                "text"
            ]
        );
    }
    // And so of a command that answers all the same.
    for args in [&["tur", "da0"][..], &["cdb", "da0", "00"]] {
        let ran = run("disk,attention=1", &[args, &["--json"]].concat());
        let error = &ran.json()["error"];
        let said = format!("qpassctl: {}\n", error["message"].as_str().expect("text"));
        assert_eq!((&ran.err, error["exit_status"].as_i64()), (&said, Some(1)));
        assert_eq!(
            (&error["key"], &error["asc"]),
            (&Value::from(6), &Value::from(0x29))
        );
    }
    // With data on standard output, it is on standard error.
    let ran = run("disk,size=1M", &["read", "da0", "-", "--json"]).good();
    assert_eq!(ran.out.len(), 1 << 20);
    let json: Value = serde_json::from_str(&ran.err).expect("JSON");
    assert_eq!(json["bytes"], 1 << 20);
    let ran = run(
        "disk,size=16M,latency=5ms,openings=1,vanish=400ms",
        &["read", "da0", "-", "--json", "--size", "4K"],
    );
    assert_eq!(ran.code, 3);
    let json: Value = serde_json::from_str(ran.err.lines().last().expect("a line")).expect("JSON");
    assert_eq!(json["error"]["exit_status"], 3);
}

/// Runs on a terminal of util-linux's script(1), if that is there.
fn on_a_terminal(machine: &str, variables: &str, args: &str) -> Option<String> {
    let tool = env!("CARGO_BIN_EXE_qpassctl");
    let out = std::process::Command::new("script")
        .args(["-qec", &format!("{variables} {tool} {args}"), "/dev/null"])
        .env("QPASS_UKERNEL", machine)
        .stdin(std::process::Stdio::null())
        .output()
        .ok()?;
    Some(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// E11 and B8.
#[test]
fn a_terminal_is_shown_what_it_can_show() {
    let Some(said) = on_a_terminal("disk", "TERM=xterm", "read da0 -") else {
        return;
    };
    assert_eq!(
        said.trim(),
        "qpassctl: standard output is a terminal: data are not written there"
    );
    let cdb = "cdb da0 28000000000000000100 --in 512 --file -";
    let said = on_a_terminal("disk", "TERM=xterm", cdb).expect("script(1)");
    assert!(said.contains("is a terminal"), "{said:?}");
    let watch = "stats --watch=20ms --times 2";
    let clear = "\u{1b}[2J";
    let said = on_a_terminal("disk", "TERM=xterm", watch).expect("script(1)");
    assert!(said.contains(clear), "{said:?}");
    let said = on_a_terminal("disk", "TERM=dumb", watch).expect("script(1)");
    assert!(!said.contains('\u{1b}'), "{said:?}");
    let bench = "bench da0 --time=20ms --rounds=1 --size 4K --depth 1,2,4";
    let with = |variables: &str, more: &str| {
        let said = on_a_terminal("disk", variables, &format!("{bench} {more}"));
        said.expect("script(1)").contains("over depth")
    };
    assert!(with("TERM=xterm LC_ALL=C.UTF-8", ""));
    assert!(!with("TERM=xterm LC_ALL=C.UTF-8", "--no-chart"));
    assert!(!with("TERM=xterm LC_ALL=C", ""));
    assert!(!with("TERM=dumb LC_ALL=C.UTF-8", ""));
}

/// E2: less than a millisecond would be CAM's own time.
#[test]
fn a_short_timeout_is_a_millisecond() {
    let ran = run(
        "disk,latency=300ms",
        &["cdb", "da0", "00", "--timeout", "1us"],
    );
    ran.failed(1, &["timed out"]);
}
