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
        "conform", "sims", "unplug", "unload", "notify", "faults", "hostile", "targets",
        "contexts", "replace", "pair", "tools",
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
    // What set-up would not help against.
    assert!(
        code == 1 && said == "build: FreeBSD 13 is not known here: 14 or 15\n",
        "{said}"
    );
    let (code, said) = run("build-tools.sh", &["check", "13"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("FreeBSD 13 is not known here"), "{said}");
    let (code, said) = run("build-tools.sh", &["nonsense"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("usage: scripts/build-tools.sh"), "{said}");
}

#[test]
fn each_tells_what_it_does() {
    for script in ["demo", "test", "bench", "build.sh", "build-tools.sh", "vm"] {
        let out = Command::new(root().join("scripts").join(script))
            .arg("--help")
            .output()
            .expect("the script runs");
        let text = String::from_utf8(out.stdout).expect("text");
        assert!(out.status.success() && out.stderr.is_empty(), "{script}");
        // Its own words, and none of its commands.
        assert!(
            text.lines().count() >= 2 && !text.contains("set -eu"),
            "{script}: {text}"
        );
    }
    refuses("demo", &["--fast"], "usage: scripts/demo");
    refuses("test", &["qpass"], "usage: scripts/test");
}

/// Six links of one module at once, in a folder with a blank in its name.
#[test]
fn links_at_once_do_not_meet() {
    let dir = root().join("target/artifact-test/at once");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("a folder");
    let (lib, out) = (dir.join("libqpass.a"), dir.join("qpass.ko"));
    fs::copy(root().join("target/kmod/freebsd-14/libqpass.a"), &lib)
        .expect("run scripts/build.sh 14");
    let links: Vec<_> = (0..6)
        .map(|_| {
            Command::new(root().join("scripts/link.sh"))
                .args(["", "-19"])
                .args([&out, &lib])
                .spawn()
                .expect("the script runs")
        })
        .collect();
    for mut link in links {
        assert!(link.wait().expect("it ends").success());
    }
    let made = fs::read(root().join("target/kmod/freebsd-14/qpass.ko")).expect("the module");
    assert!(fs::read(&out).expect("it is there") == made);
    let left: Vec<_> = fs::read_dir(&dir).expect("a folder").collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

/// A cargo that says that it built, and where.
#[test]
fn what_is_installed_is_what_cargo_built() {
    use std::os::unix::fs::PermissionsExt;
    let dir = root().join("target/artifact-test/else where");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("a folder");
    let tool = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
        path
    };
    let program = tool("qpassctl", "#!/bin/sh\necho completions\n");
    let said = format!(
        "{{\"reason\":\"compiler-artifact\",\"executable\":null}}\n\
         {{\"reason\":\"compiler-artifact\",\"executable\":\"{}\",\"fresh\":true}}\n",
        program.display()
    );
    tool("cargo", &format!("#!/bin/sh\ncat <<'END'\n{said}END\n"));
    let stage = dir.join("stage");
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").expect("PATH"));
    let make = |target: &str| {
        let out = Command::new("make")
            .current_dir(root().join("tools"))
            .args([target, "STRIP=", &format!("DESTDIR={}", stage.display())])
            .env("PATH", &path)
            .env("CARGO_TARGET_DIR", &dir)
            .output()
            .expect("make runs");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{said}");
    };
    make("install");
    let installed = stage.join("usr/local/sbin/qpassctl");
    assert_eq!(
        fs::read(&installed).expect("it is there"),
        fs::read(&program).expect("ours")
    );
    let share = stage.join("usr/local/share");
    for file in [
        "qpass/qpassctl.schema.json",
        "man/man8/qpassctl.8",
        "zsh/site-functions/_qpassctl",
    ] {
        assert!(share.join(file).exists(), "{file}");
    }
    make("deinstall");
    for gone in [
        installed,
        share.join("qpass"),
        share.join("man/man8/qpassctl.8"),
    ] {
        assert!(!gone.exists(), "{}", gone.display());
    }
}

#[test]
fn the_modules_makefile_says_what_builds_it_here() {
    let out = Command::new("make")
        .arg("-C")
        .arg(root().join("kmod"))
        .output()
        .expect("make runs");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        !out.status.success() && said.contains("scripts/build.sh"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}

/// What a package has is what the Makefiles install.
#[test]
fn the_port_lists_what_is_installed() {
    let read = |file: &str| fs::read_to_string(root().join(file)).expect(file);
    let plist = read("packaging/port/sysutils/qpass-kmod/pkg-plist");
    let makefiles = read("kmod/Makefile") + &read("tools/Makefile");
    for line in plist.lines() {
        let path = line.trim_end_matches(".gz");
        let path = path.replace("%%PORTEXAMPLES%%%%EXAMPLESDIR%%", "share/examples/qpass");
        let path = path.as_str();
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
    // portlint: descriptions of 80 columns, and no prefix written out.
    let folder = "packaging/port/sysutils/qpass-kmod";
    let about = read(&format!("{folder}/pkg-descr"));
    assert!(about.lines().all(|line| line.len() <= 80));
    let message = read(&format!("{folder}/files/pkg-message.in"));
    assert!(message.contains("%%EXAMPLESDIR%%") && !message.contains("/usr/local"));
    for word in [
        "WWW=",
        "USE_GITHUB=",
        "USES=\t\tcargo kmod llvm:build",
        "STRIP=${STRIP}",
    ] {
        assert!(read(&format!("{folder}/Makefile")).contains(word), "{word}");
    }
    let version = read("Cargo.toml");
    let port = read("packaging/port/sysutils/qpass-kmod/Makefile");
    let number = version
        .split("version = \"")
        .nth(1)
        .and_then(|v| v.split('"').next());
    assert!(port.contains(&format!("DISTVERSION=\t{}", number.expect("a version"))));
}

fn program(path: &std::path::Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).expect("a file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a mode");
}

/// Runs scripts/vm with a QEMU that does `what`, and a kernel that is none.
fn vm_with(what: &str) -> (Option<i32>, String) {
    let dir = root().join("target/artifact-test/vm");
    fs::create_dir_all(&dir).expect("a folder");
    program(&dir.join("makefs"), "#!/bin/sh\nexit 0\n");
    program(
        &dir.join("qemu-system-x86_64"),
        &format!("#!/bin/sh\necho 'guest: set conform'\n{what}\n"),
    );
    let kernel = dir.join("kernel");
    fs::write(&kernel, b"\x7fELF, it says").expect("a file");
    let path = std::env::var("PATH").expect("PATH");
    let run = Command::new(root().join("scripts/vm"))
        .env("PATH", format!("{}:{path}", dir.display()))
        .args(["-a", "tcg", "-t", "60"])
        .arg("-o")
        .arg(dir.join("console.txt"))
        .arg(&kernel)
        .output()
        .expect("the script runs");
    (
        run.status.code(),
        String::from_utf8_lossy(&run.stderr).into_owned(),
    )
}

#[test]
fn vm_tells_a_dead_emulator_from_a_dead_guest() {
    let (status, said) = vm_with("kill -SEGV $$");
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("the emulator died of signal 11"), "{said}");
    let (status, said) = vm_with("echo 'panic: page fault'; sleep 30");
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("the guest's kernel panicked"), "{said}");
    let (status, said) = vm_with("exit 0");
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("no verdict"), "{said}");
    let (status, said) = vm_with("echo '3 passed, 0 failed, 0 skipped'");
    assert_eq!(status, Some(0), "{said}");
    // What a sound driver does not cause.
    for line in [
        "Warning: memory type qpass leaked memory on destroy (1 allocations, 16 bytes leaked).",
        "Freed UMA keg (qpass_request) was not empty (1 items).  Lost 1 pages of memory.",
        "panic: ASan: Invalid access, 8-byte read at 0xfffffe0051d294c8",
    ] {
        let (status, said) = vm_with(&format!(
            "echo '{line}'; echo '3 passed, 0 failed, 0 skipped'"
        ));
        assert_eq!(status, Some(1), "{line}: {said}");
    }
}

/// A machine that fails when attackers 4 and 17 call by kind 3, from the 17th call to the
/// 23rd, and at every second try only.
const FAILS: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
	case $1 in
	-e) eval "${2#qpass.}" && shift ;;
	esac
	shift
done
echo run >>"$(dirname "$0")/runs"
[ $(($(wc -l <"$(dirname "$0")/runs") % 2)) = 0 ] || exit 0
[ "$seed" = 7 ] && [ "$round" = 12 ] || exit 0
[ $((actors >> 4 & actors >> 17 & kinds >> 3 & 1)) = 1 ] || exit 0
[ "$first" -le 17 ] && [ "$last" -ge 23 ] || exit 0
echo "panic: here it is"
echo "guest: 4: 17 Enter"
exit 1
"#;

#[test]
fn halve_finds_the_smallest_round_that_fails() {
    let dir = root().join("target/artifact-test/halve");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(dir.join("scripts")).expect("a folder");
    fs::copy(root().join("scripts/halve"), dir.join("scripts/halve")).expect("a copy");
    program(&dir.join("scripts/vm"), FAILS);
    let halve = |words: &str| {
        let run = Command::new(dir.join("scripts/halve"))
            .args(["--console", words, "7", "12", "kernel"])
            .output()
            .expect("the script runs");
        (
            run.status.code(),
            String::from_utf8(run.stdout).expect("text"),
        )
    };
    let (status, said) = halve("panic: here");
    assert_eq!(status, Some(0), "{said}");
    let smallest = [
        format!("qpass.actors={}", 1 << 4 | 1 << 17),
        format!("qpass.kinds={}", 1 << 3),
        "qpass.first=17".into(),
        "qpass.last=23".into(),
        "qpass.round=12".into(),
        "guest: 4: 17 Enter".into(),
    ];
    for words in &smallest {
        assert!(said.contains(words), "{words}: {said}");
    }
    let (status, said) = halve("another panic");
    assert_eq!(status, Some(1), "{said}");
}
