//! What bench measures is what it says.

#![cfg(target_os = "linux")]

mod common;

use common::*;
use serde_json::Value;
use std::fs;

const QUICK: [&str; 4] = ["bench", "da0", "--time=50ms", "--rounds=1"];

fn bench(machine: &str, more: &[&str]) -> Ran {
    run(machine, &[&QUICK[..], more].concat())
}

fn rows(ran: Ran) -> Vec<Value> {
    ran.good().json().as_array().expect("rows").clone()
}

/// B1: a size that no command moves is no row.
#[test]
fn a_size_is_what_is_moved_or_refused() {
    for (size, words) in [
        (
            "4M",
            "4194304 bytes are more than one command moves there, 1048576",
        ),
        ("1T", "more than one command moves"),
        ("1000", "1000 bytes are no multiple of a block of 512"),
        ("513", "no multiple"),
        ("4K,513", "513 bytes are no multiple"),
    ] {
        let ran = bench("disk,size=64M", &["--size", size]);
        ran.failed(2, &[words]);
        assert!(ran.out.is_empty());
    }
    bench("disk,size=64K", &["--size", "128K"]).failed(2, &["do not hold a command of 131072"]);
    let rows = rows(bench("disk", &["--size", "1M", "--depth", "4", "--json"]));
    let number = |name: &str| rows[0][name].as_f64().expect("a number");
    let rate = number("commands") * number("size") / number("seconds");
    assert!((rate / number("bytes_per_second") - 1.0).abs() < 1e-6);
    assert_eq!(rows[0]["size"], 1 << 20);
}

/// B2: what would not be of the depth that is asked for is refused.
#[test]
fn a_depth_that_limits_do_not_let_is_refused() {
    bench("disk", &["--size", "1M", "--depth", "65"])
        .failed(2, &["67108864 bytes outstanding", "depth of 65"]);
    bench(
        "disk;kern.cam.qpass.device_max_requests=16",
        &["--depth", "8,33"],
    )
    .failed(2, &["16 requests", "depth of 33"]);
    bench("disk", &["--size", "1M", "--depth", "64", "--json"]).good();
}

#[test]
fn nothing_is_written_but_where_it_may_be() {
    let (dir, machine, data) = full_disk("");
    let contents = || fs::read(path(&dir, "disk")).expect("the disk");
    let small = ["--size", "4K", "--depth", "4", "--json"];
    bench(&machine, &["--writes", "50"]).failed(2, &["--writes destroys", "--destroy"]);
    bench(&machine, &["--destroy", "--op", "tur", "--writes", "1"]).failed(2, &["writes nothing"]);
    rows(bench(&machine, &small));
    assert!(contents() == data, "reads write nothing");
    let mounted = machine.replace(",size", ",mounted=/home,size");
    let writes = [
        "--writes",
        "50",
        "--destroy",
        "--skip",
        "0x100",
        "--count",
        "512",
    ];
    bench(&mounted, &writes).failed(5, &["/home"]);
    assert!(contents() == data);
    let row = &rows(bench(&machine, &[&small[..], &writes].concat()))[0];
    let number = |name: &str| row[name].as_f64().expect("a number");
    let share = number("writes") / number("commands");
    assert!((0.3..0.7).contains(&share), "{row}");
    let now = contents();
    let (from, to) = (256 * 512, 768 * 512);
    assert!(now[from..to] != data[from..to], "the range is written");
    assert!(
        now[..from] == data[..from] && now[to..] == data[to..],
        "and nothing else"
    );
    assert_eq!((number("first_block"), number("blocks")), (256.0, 512.0));
    let all = ["--writes", "100", "--destroy", "--op", "sequential"];
    let row = &rows(bench(&machine, &[&small[..], &all].concat()))[0];
    assert_eq!(row["writes"], row["commands"]);
}

#[test]
fn a_rate_is_a_cap_and_a_ramp_is_not_measured() {
    let args = [
        "--size=4K",
        "--depth=8",
        "--rate=400",
        "--time=500ms",
        "--json",
    ];
    let row = &rows(run(
        "disk",
        &[&["bench", "da0", "--rounds=1"], &args[..]].concat(),
    ))[0];
    let iops = row["iops"].as_f64().expect("a rate");
    assert!((300.0..440.0).contains(&iops), "{row}");
    let begin = std::time::Instant::now();
    let args = [
        "--size=4K",
        "--depth=1",
        "--ramp=400ms",
        "--seed=7",
        "--align=64K",
        "--json",
    ];
    let row = &rows(bench("disk", &args))[0];
    assert!(begin.elapsed().as_millis() > 400);
    assert!(row["seconds"].as_f64().is_some_and(|s| s < 0.3), "{row}");
    assert_eq!(
        (&row["seed"], &row["align"]),
        (&Value::from(7), &Value::from(65536))
    );
    bench("disk", &["--align", "100"]).failed(2, &["--align is no multiple"]);
}

/// B6: whatever the chance, the status is one, and what was measured is told.
#[test]
fn a_disk_that_goes_takes_no_rounds_with_it() {
    let machine = "disk,size=64M,latency=5ms,openings=1,vanish=900ms";
    let args = [
        "bench",
        "da0",
        "--time=100ms",
        "--rounds=100",
        "--size=4K",
        "--depth=1,2",
    ];
    let ran = run(machine, &[&args[..], &["--json"]].concat());
    ran.failed(3, &["qpass0: bench: "]);
    let rows = ran.json();
    let done = |row: &Value| row["commands"].as_u64().expect("a number");
    assert!(
        rows.as_array()
            .expect("rows")
            .iter()
            .all(|row| done(row) > 5),
        "{rows}"
    );
}

/// B7 and B8.
#[test]
fn what_is_compared_is_another_driver() {
    bench("disk", &["--compare", "da0"]).failed(2, &["--compare da0: not a node", "pass0"]);
    bench("disk", &["--compare", "da"]).failed(2, &["--compare da: not a node"]);
    for same in ["qpass", "qpass0", "/dev/qpass0"] {
        bench("disk", &["--compare", same]).failed(2, &["the device itself"]);
    }
    let twice = rows(bench(
        "disk",
        &["--depth", "1,1", "--size", "4K,4K", "--json"],
    ));
    assert_eq!(twice.len(), 1);
    let tur = bench("disk", &["--op", "tur", "--depth", "1"]).good();
    assert!(!tur.text().contains("0 B"), "{}", tur.text());
    // Of 13 commands none is the slowest of a thousand.
    let slow = "disk,latency=4ms,openings=1";
    let few = &rows(bench(slow, &["--depth", "1", "--size", "4K", "--json"]))[0];
    assert!(few["p999_us"].is_null() && few["p99_us"].is_null(), "{few}");
}
