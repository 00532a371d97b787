//! man/qpass.4: it is clean mdoc(7), and it names what there is.

use std::{fs, path::Path, process::Command};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// Of style, that of the base system's own manuals is left out: this system may
/// not have the pages that are referred to.
#[test]
fn mandoc_has_nothing_to_say() {
    let lint = Command::new("mandoc")
        .args(["-T", "lint", "-W", "style"])
        .arg(root().join("man/qpass.4"))
        .output()
        .expect("mandoc");
    let found = String::from_utf8(lint.stdout).expect("text");
    let found: Vec<_> = found
        .lines()
        .filter(|line| !line.contains("referenced manual not found"))
        .collect();
    assert!(found.is_empty(), "{found:#?}");
}

/// The words behind `before`, up to what cannot be in one.
fn words<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(before).skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
        &rest[..end.unwrap_or(rest.len())]
    })
}

#[test]
fn every_call_and_flag_of_it_is_named() {
    let (header, page) = (read("kmod/qpass_ioctl.h"), read("man/qpass.4"));
    let calls: Vec<_> = words(&header, "#define\tQPIOC_").collect();
    assert_eq!(calls.len(), 5);
    for call in calls {
        assert!(page.contains(&format!("QPIOC_{call} ")), "QPIOC_{call}");
    }
    for flag in words(&header, "#define\tQPASS_ENTER_") {
        if !["MAX"].contains(&flag) {
            assert!(page.contains(&format!("QPASS_ENTER_{flag}")), "{flag}");
        }
    }
}

#[test]
fn every_sysctl_and_tunable_is_named() {
    let (shim, page) = (read("kmod/shim.c"), read("man/qpass.4"));
    let own: Vec<_> = words(&shim, "(_kern_cam_qpass, OID_AUTO, ").collect();
    assert_eq!(own.len(), 6);
    for name in own {
        assert!(page.contains(&format!("kern.cam.qpass.{name}")), "{name}");
    }
    for name in words(&shim, "(_hw_qpass, OID_AUTO, ") {
        assert!(page.contains(&format!("hw.qpass.{name}")), "{name}");
    }
    let unit = read("src/unit.rs");
    let from = unit.find("fn sysctls").expect("the unit's sysctls");
    let text = &unit[from..from
        + unit[from..]
            .find("/// What the device has")
            .expect("its end")];
    let counters: Vec<_> = text
        .split(".with(")
        .skip(1)
        .map(|with| words(with, "c\"").next().expect("a name"))
        .collect();
    assert_eq!(counters.len(), 10);
    for name in counters {
        let named = |end| page.contains(&format!("{name}{end}"));
        assert!(named(" ,") || named("\n"), "{name}");
    }
}

#[test]
fn every_errno_of_the_driver_is_explained() {
    let (errnos, page) = (read("src/kpi/errno.rs"), read("man/qpass.4"));
    let from = errnos.find("errnos! {").expect("the list") + "errnos! {".len();
    let list = &errnos[from..from + errnos[from..].find('}').expect("its end")];
    // These do not leave the driver but at load and unload.
    let inside = ["EBUSY", "EIO", "ENOMEM", "EOPNOTSUPP"];
    for errno in list.split_whitespace().filter(|e| !inside.contains(e)) {
        assert!(page.contains(&format!("Er {errno}")), "{errno}");
    }
}
