//! docs/qpassctl.schema.json is what qpassctl prints: each key, each time.

#![cfg(target_os = "linux")]

mod common;

use common::*;
use serde_json::{Value, json};
use std::fs;

/// A part of the schema, by its name.
fn part(name: &str) -> jsonschema::Validator {
    let text = include_str!("../../../docs/qpassctl.schema.json");
    let all: Value = serde_json::from_str(text).expect("JSON");
    let schema = json!({ "$ref": format!("#/$defs/{name}"), "$defs": all["$defs"] });
    jsonschema::validator_for(&schema).expect("a schema")
}

#[track_caller]
fn is(name: &str, value: &Value) {
    let errors: Vec<_> = part(name)
        .iter_errors(value)
        .map(|e| format!("{}: {e}", e.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{name}: {errors:?} in {value:#}");
}

#[test]
fn every_command_prints_what_the_schema_says() {
    let (dir, machine, data) = full_disk("");
    let (input, out) = (path(&dir, "in"), path(&dir, "o"));
    fs::write(&input, &data[..1 << 20]).expect("a file");
    let attention = "disk,attention=9";
    let ata = "disk,ata";
    let bench = [
        "bench",
        "da0",
        "--time=20ms",
        "--rounds=1",
        "--depth=1",
        "--size=4K",
    ];
    for (name, machine, args) in [
        ("list", machine.as_str(), &["list"][..]),
        (
            "list",
            "disk,mounted=/mnt;disk,nvme;disk,ata;disk,tape",
            &["list"],
        ),
        ("inquiry", &machine, &["inquiry", "da0"]),
        ("page", &machine, &["inquiry", "da0", "--page", "0"]),
        ("page", &machine, &["inquiry", "da0", "--page", "0x80"]),
        ("failure", &machine, &["inquiry", "da0", "--page", "0x99"]),
        ("tur", &machine, &["tur", "da0"]),
        ("tur", attention, &["tur", "da0"]),
        ("readcap", &machine, &["readcap", "da0"]),
        ("readcap", "disk,zoned=1M", &["readcap", "da0"]),
        (
            "cdb",
            &machine,
            &["cdb", "da0", "12 00 00 00 24 00", "--in", "36"],
        ),
        (
            "cdb",
            &machine,
            &["cdb", "da0", "03 00 00 00 fc 00", "--in", "252"],
        ),
        ("cdb", &machine, &["cdb", "da0", "ff"]),
        ("cdb", attention, &["cdb", "da0", "00"]),
        ("copy", &machine, &["write", &input, "da0", "--verify"]),
        ("copy", &machine, &["read", "da0", &out]),
        ("failure", &machine, &["read", "da7", &out]),
        ("failure", &machine, &["read", "da0"]),
        ("bench", &machine, &bench),
        (
            "bench",
            ata,
            &["bench", "qpass0", "--time=20ms", "--rounds=1", "--depth=1"],
        ),
        ("outstanding", &machine, &["outstanding"]),
        ("outstanding", "disk,busy=3", &["outstanding"]),
        ("cancel", "disk,busy=3", &["cancel", "da0", "--all"]),
        ("stats", &machine, &["stats"]),
        ("limits", &machine, &["limits", "max_requests=64"]),
        ("failure", &machine, &["limits", "nonsense=1"]),
    ] {
        let ran = run(machine, &[args, &["--json"]].concat());
        let value: Value = serde_json::from_slice(&ran.out)
            .unwrap_or_else(|e| panic!("{args:?}: {e}: {} {}", ran.text(), ran.err));
        is(name, &value);
        assert_eq!(
            value["error"].is_object() && value["ok"] == false,
            ran.code != 0,
            "{args:?}"
        );
    }
    for command in ["stats", "outstanding"] {
        let args = [command, "--watch=20ms", "--times", "2", "--json"];
        for line in run("disk,busy=1", &args).good().text().lines() {
            is(command, &serde_json::from_str(line).expect("JSON"));
        }
    }
}

/// Each object says all that it may have, and has all of it.
#[test]
fn the_schema_leaves_nothing_open() {
    let text = include_str!("../../../docs/qpassctl.schema.json");
    let all: Value = serde_json::from_str(text).expect("JSON");
    jsonschema::validator_for(&all).expect("a schema");
    for (name, part) in all["$defs"].as_object().expect("parts") {
        if part["type"] == "object" {
            assert_eq!(part["additionalProperties"], false, "{name}");
            let properties = part["properties"].as_object().expect("properties");
            assert_eq!(
                part["required"].as_array().map(Vec::len),
                Some(properties.len())
            );
        }
    }
    is(
        "failure",
        &json!({ "ok": false, "error": {
        "exit_status": 2, "kind": "usage", "message": "x", "text": null, "cam_status": null,
        "key": null, "asc": null, "ascq": null } }),
    );
    assert!(!part("failure").is_valid(&json!({ "ok": false, "error": {} })));
}
