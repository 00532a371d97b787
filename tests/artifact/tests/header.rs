//! kmod/qpass_ioctl.h, as a program's compiler sees it.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

/// Compiles a program against FreeBSD's headers, with every warning an error.
fn compiles(language: &str, standard: &str, program: &str) {
    compiles_with(&["-Wpadded"], language, standard, program);
}

fn compiles_with(warnings: &[&str], language: &str, standard: &str, program: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for release in [14, 15] {
        let headers = root.join(format!(".deps/freebsd-{release}"));
        let mut clang = Command::new("clang-19")
            .args(["-fsyntax-only", "-nostdinc", "-Werror", "-Wall", "-Wextra"])
            .args(["-Wpedantic", "-x", language, standard])
            .args(warnings)
            .arg(format!("--target=x86_64-unknown-freebsd{release}"))
            .arg(format!("-I{}", root.join("kmod").display()))
            .arg(format!("-isystem{}", headers.join("arch").display()))
            .arg(format!("-isystem{}", headers.join("generic").display()))
            .arg("-")
            .stdin(Stdio::piped())
            .spawn()
            .expect("clang-19");
        let mut input = clang.stdin.take().expect("a pipe");
        input.write_all(program.as_bytes()).expect("the program");
        drop(input);
        assert!(clang.wait().expect("clang-19").success());
    }
}

const PROGRAM: &str = "
#include <qpass_ioctl.h>
unsigned long calls[5] = { QPIOC_INFO, QPIOC_LIMIT, QPIOC_CANCEL, QPIOC_ENTER,
    QPIOC_LIST };
uint64_t never = QPASS_ENTER_FOREVER;
int dequeued(const struct qpass_cancel *what);
int dequeued(const struct qpass_cancel *what)
{
	return (what->flags == 0 && what->dequeued != 0);
}
";

#[test]
fn it_is_c_without_warnings() {
    compiles("c", "-std=c99", PROGRAM);
}

#[test]
fn it_is_cpp_without_warnings() {
    compiles("c++", "-std=c++17", PROGRAM);
}

#[test]
fn a_layout_is_the_same_for_32_bit_programs() {
    let program = "
#include <qpass_ioctl.h>
_Static_assert(sizeof(struct qpass_info) == 144, \"qpass_info\");
_Static_assert(sizeof(struct qpass_limit) == 32, \"qpass_limit\");
_Static_assert(sizeof(struct qpass_cancel) == 48, \"qpass_cancel\");
_Static_assert(sizeof(struct qpass_submission) == 24, \"qpass_submission\");
_Static_assert(sizeof(struct qpass_completion) == 32, \"qpass_completion\");
_Static_assert(sizeof(struct qpass_enter) == 72, \"qpass_enter\");
_Static_assert(sizeof(struct qpass_outstanding) == 72, \"qpass_outstanding\");
_Static_assert(sizeof(struct qpass_list) == 56, \"qpass_list\");
int nothing;
";
    compiles("c", "-std=c11", program);
    compiles(
        "c",
        "-m32",
        &program.replace("_Static_assert", "__extension__ _Static_assert"),
    );
}

/// The program of docs/example.c, as its reader would compile it. (The system's
/// own headers are padded.)
#[test]
fn the_example_compiles_without_warnings() {
    let program = include_str!("../../../docs/example.c");
    compiles_with(&["-Wno-padded"], "c", "-std=c11", program);
}

/// The README's twenty lines.
#[test]
fn the_readme_compiles_without_warnings() {
    let readme = include_str!("../../../README.md");
    let (_, rest) = readme.split_once("```c\n").expect("an example");
    let (example, _) = rest.split_once("```").expect("its end");
    assert!(example.lines().count() <= 26, "it is short");
    let program = format!(
        "#include <sys/types.h>
#include <sys/ioctl.h>
#include <stdio.h>
#include <cam/cam.h>
#include <cam/cam_ccb.h>
#include <errno.h>
#include <string.h>
#include <qpass_ioctl.h>
{example}
int use(int fd, union ccb *ccbs, struct qpass_completion *done);
int use(int fd, union ccb *ccbs, struct qpass_completion *done)
{{
	return (run_16(fd, ccbs, done));
}}
"
    );
    compiles_with(&["-Wno-padded"], "c", "-std=c11", &program);
}
