//! The scripts' answers to what makes no sense: a sentence, and the right status.

use std::{fs, path::Path, process::Command};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Runs a script of this tree: its exit status, and what it said on stderr.
fn run(script: &str, args: &[&str]) -> (i32, String) {
    let out = Command::new(root().join("scripts").join(script))
        .args(args)
        .output()
        .expect("the script runs");
    let said = String::from_utf8(out.stderr).expect("text");
    (out.status.code().unwrap_or(-1), said)
}

fn refuses(script: &str, args: &[&str], words: &str) {
    let (code, said) = run(script, args);
    assert_eq!(code, 2, "{script} {args:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{script} {args:?}: {said}");
    assert!(said.contains(words), "{script} {args:?}: {said}");
}

#[test]
fn vm_says_what_it_does_not_understand() {
    let dir = root().join("target/artifact-test");
    fs::create_dir_all(&dir).expect("a folder");
    let (empty, image) = (dir.join("empty"), dir.join("image"));
    fs::write(&empty, "").expect("a file");
    fs::write(&image, "no kernel").expect("a file");
    let (empty, image) = (empty.display().to_string(), image.display().to_string());
    for (args, words) in [
        (&[][..], "the path of a kernel or a disk image"),
        (&["-q"], "-q: no such option"),
        (&["-s"], "-s wants a value"),
        (&["-s", "nonsense", &image], "nonsense: no such set"),
        (&["-t", "soon", &image], "soon: not a number"),
        (&["/no/such/kernel"], "/no/such/kernel: cannot read it"),
        (&[&empty], "empty: it is empty"),
        (&["-e", "a=b", &image], "a disk image sets its own tunables"),
        (&["-a", "magic", &image], "magic: not an accelerator"),
        (&["one", "two"], "the path of a kernel"),
    ] {
        refuses("vm", args, words);
    }
    let help = Command::new(root().join("scripts/vm"))
        .arg("--help")
        .output()
        .expect("the script runs");
    let text = String::from_utf8(help.stdout).expect("text");
    assert!(help.status.success() && text.contains("Exit status"));
    // Every set that the guest has is one that can be asked for.
    let guest = fs::read_to_string(root().join("tests/guest/src/lib.rs")).expect("the guest");
    for set in [
        "conform", "sims", "unplug", "unload", "notify", "faults", "hostile", "targets", "replace",
        "pair", "tools",
    ] {
        assert!(
            guest.contains(&format!("\"{set}\"")) && text.contains(set),
            "{set}"
        );
    }
}

#[test]
fn the_others_do_too() {
    refuses("bench", &[], "usage: scripts/bench");
    let (code, said) = run("build.sh", &["13"]);
    assert!(
        code == 1 && said == "build: no headers of FreeBSD 13: run scripts/setup.sh\n",
        "{said}"
    );
    let (code, said) = run("build-tools.sh", &["check", "13"]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("no headers of FreeBSD 13: run scripts/setup.sh"),
        "{said}"
    );
    let (code, said) = run("build-tools.sh", &["nonsense"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("usage: scripts/build-tools.sh"), "{said}");
}

/// What a package has is what the Makefiles install.
#[test]
fn the_port_lists_what_is_installed() {
    let read = |file: &str| fs::read_to_string(root().join(file)).expect(file);
    let plist = read("packaging/port/sysutils/qpass-kmod/pkg-plist");
    let makefiles = read("kmod/Makefile") + &read("tools/Makefile");
    for line in plist.lines() {
        let path = line.trim_end_matches(".gz");
        let name = Path::new(path)
            .file_name()
            .expect("a name")
            .to_str()
            .expect("text");
        let is_module = name == "qpass.ko";
        assert!(is_module || makefiles.contains(name), "{line}");
    }
    for page in fs::read_dir(root().join("man")).expect("the pages") {
        let name = page
            .expect("a page")
            .file_name()
            .into_string()
            .expect("text");
        assert!(plist.contains(&format!("{name}.gz")), "{name}");
    }
    let version = read("Cargo.toml");
    let port = read("packaging/port/sysutils/qpass-kmod/Makefile");
    let number = version
        .split("version = \"")
        .nth(1)
        .and_then(|v| v.split('"').next());
    assert!(port.contains(&format!("DISTVERSION=\t{}", number.expect("a version"))));
}
