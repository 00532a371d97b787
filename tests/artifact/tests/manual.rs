//! The manual pages: they are clean mdoc(7), and they name what there is. So does
//! the page that says what is promised.

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
    for page in ["qpass.4", "qpass_ioctl.4", "qpassctl.8"] {
        let lint = Command::new("mandoc")
            .args(["-T", "lint", "-W", "style"])
            .arg(root().join("man").join(page))
            .output()
            .expect("mandoc");
        let found = String::from_utf8(lint.stdout).expect("text");
        let found: Vec<_> = found
            .lines()
            .filter(|line| !line.contains("referenced manual not found"))
            .collect();
        assert!(found.is_empty(), "{found:#?}");
    }
}

/// Words that are in a row of blanks, as one text.
fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_structures_of_the_header_are_those_of_its_page() {
    let (header, page) = (read("kmod/qpass_ioctl.h"), read("man/qpass_ioctl.4"));
    let structures = |text: &str| -> Vec<(String, Vec<String>)> {
        let mut found = Vec::new();
        for part in text.split("struct qpass_").skip(1) {
            let Some((name, rest)) = part.split_once(" {") else {
                continue;
            };
            let Some((body, _)) = rest.split_once("};") else {
                continue;
            };
            if name.contains(|c: char| !c.is_alphanumeric() && c != '_') {
                continue;
            }
            let mut code = String::new();
            for (i, piece) in body.split("/*").enumerate() {
                code.push_str(if i == 0 {
                    piece
                } else {
                    piece.split_once("*/").expect("a comment ends").1
                });
            }
            let fields = code.split(';').map(squeezed).filter(|f| !f.is_empty());
            found.push((name.to_owned(), fields.collect()));
        }
        found.sort();
        found
    };
    let wanted = structures(&header);
    assert_eq!(wanted.len(), 8);
    assert_eq!(structures(&page), wanted);
    for name in words(&header, "#define\tQPASS_") {
        let is_guard = name == "VERSION";
        assert!(
            is_guard || page.contains(&format!("QPASS_{name}")),
            "QPASS_{name}"
        );
    }
}

/// What `qpassctl --help` has, its page has.
#[test]
fn every_command_and_option_of_qpassctl_is_named() {
    let (args, page) = (read("tools/qpassctl/src/args.rs"), read("man/qpassctl.8"));
    let body = &args[args.find("pub enum Command {").expect("the commands")..];
    let body = &body[..body.find("\n}\n").expect("their end")];
    let is_command =
        |line: &&str| line.starts_with("    ") && line.trim_start().starts_with(char::is_uppercase);
    let commands: Vec<_> = body
        .lines()
        .filter(|line| line.len() - line.trim_start().len() == 4)
        .filter(is_command)
        .map(|line| {
            words(&format!(" {}", line.trim_start()), " ")
                .next()
                .expect("a word")
                .to_lowercase()
        })
        .collect();
    assert_eq!(commands.len(), 13, "{commands:?}");
    for command in commands {
        assert!(page.contains(&format!(".Cm {command}\n")), "{command}");
        assert!(page.contains(&format!(".It Cm {command}\n")), "{command}");
    }
    let mut options = 0;
    let mut lines = args.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.trim_start().starts_with("#[arg(long") {
            continue;
        }
        let name = match line.split_once("long = \"") {
            Some((_, rest)) => rest.split('"').next().expect("a name").to_owned(),
            None => {
                let field = lines
                    .clone()
                    .find(|l| l.contains(": "))
                    .expect("a field follows");
                let field = field.trim_start().trim_start_matches("pub ");
                field.split(':').next().expect("a name").replace('_', "-")
            }
        };
        options += 1;
        assert!(page.contains(&format!("Fl -{name}")), "--{name}");
    }
    assert!(options > 20, "{options}");
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
    let own: Vec<_> = [
        "(_kern_cam_qpass, OID_AUTO, ",
        "QPASS_LIMIT_REQUESTS(",
        "QPASS_LIMIT_BYTES(",
    ]
    .into_iter()
    .flat_map(|before| words(&shim, before))
    // The macros' own parameter.
    .filter(|name| *name != "name")
    .collect();
    assert_eq!(own.len(), 7);
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
    let inside = ["EBUSY", "EIO", "EOPNOTSUPP"];
    for errno in list.split_whitespace().filter(|e| !inside.contains(e)) {
        assert!(page.contains(&format!("Er {errno}")), "{errno}");
    }
}

/// The tests that docs/correctness.md names, and the entries of the set `faults`.
#[test]
fn every_test_that_a_promise_names_is_there() {
    let page = read("docs/correctness.md");
    let has = |file: &str, name: &str| read(file).contains(&format!("fn {name}("));
    let mut tests = 0;
    for name in page.split('`').skip(1).step_by(2) {
        let is_there = match name.split_once("::") {
            Some(("conform", name)) => has("tests/conform/src/cases.rs", name),
            Some((file, _)) if file.starts_with(char::is_uppercase) => continue,
            Some((file, name)) => has(&format!("tests/ukernel/tests/qpass/{file}.rs"), name),
            None if name.starts_with("src/") || name.starts_with("tests/") => {
                assert!(root().join(name).exists(), "{name}");
                continue;
            }
            // Those of the first file have no other name.
            None if name.matches('_').count() > 2 => has("tests/ukernel/tests/qpass/main.rs", name),
            None => continue,
        };
        assert!(is_there, "{name}");
        tests += 1;
    }
    assert!(tests > 100, "{tests}");
    let faults = read("tests/guest/src/sets/faults.rs");
    let is_entry = |word: &&str| {
        let digits = word.trim_start_matches(['F', 'H', 'L', 'M', 'N']);
        digits.len() + 1 == word.len() && digits.starts_with(|c: char| c.is_ascii_digit())
    };
    let entries: Vec<_> = page
        .split(|c: char| !c.is_alphanumeric())
        .filter(is_entry)
        .collect();
    assert!(entries.len() > 20, "{entries:?}");
    for entry in entries {
        assert!(faults.contains(&format!("\"{entry}\",")), "{entry}");
    }
}
