//! The modules that scripts/build.sh made pass the artifact check, and the
//! check finds what it is there to find.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn exports() -> String {
    std::fs::read_to_string(root().join("kmod/kernel-exports.txt")).expect("the list of exports")
}

fn check(file: &[u8]) -> Vec<String> {
    let exports = exports();
    let names: Vec<_> = exports.lines().filter(|l| !l.starts_with('#')).collect();
    artifact::check(file, &names).expect("an ELF file")
}

fn module(release: &str) -> Vec<u8> {
    let path = root().join(format!("target/kmod/freebsd-{release}/qpass.ko"));
    std::fs::read(&path)
        .unwrap_or_else(|e| panic!("{}: {e}: run scripts/build.sh {release}", path.display()))
}

#[test]
fn the_module_for_14_is_fit_for_a_kernel() {
    assert_eq!(check(&module("14")), Vec::<String>::new());
}

#[test]
fn the_module_for_15_is_fit_for_a_kernel() {
    assert_eq!(check(&module("15")), Vec::<String>::new());
}

/// Compiles a function with the given flags and returns what is found wrong.
fn found(name: &str, source: &str, flags: &[&str]) -> String {
    let dir = root().join("target/artifact-test");
    std::fs::create_dir_all(&dir).expect("a folder");
    let (c, o) = (dir.join(format!("{name}.c")), dir.join(format!("{name}.o")));
    std::fs::write(&c, source).expect("the source");
    let clang = std::env::var("QPASS_CLANG").unwrap_or_else(|_| "clang-19".into());
    let status = Command::new(clang)
        .args(["--target=x86_64-unknown-freebsd14", "-ffreestanding", "-c"])
        .args(flags)
        .arg("-o")
        .args([&o, &c])
        .status()
        .expect("clang runs");
    assert!(status.success());
    check(&std::fs::read(o).expect("the object")).join("\n")
}

const KERNEL: &[&str] = &["-O1", "-mcmodel=kernel", "-mno-red-zone", "-mno-sse"];

#[test]
fn an_import_that_no_kernel_exports_is_found() {
    let found = found(
        "import",
        "int nowhere(int); int f(int x) { return nowhere(x) + 1; }",
        KERNEL,
    );
    assert!(found.contains("imports nowhere"), "{found}");
}

#[test]
fn a_got_relocation_is_found() {
    let source = "extern int maxphys; int f(void) { return maxphys; }";
    let found = found("got", source, &["-O1", "-fPIC", "-mno-red-zone"]);
    assert!(found.contains("relocation type"), "{found}");
}

#[test]
fn sse_and_x87_are_found() {
    let source = "double f(double a, double b) { return a * b; }";
    let sse = found("sse", source, &["-O1", "-mno-red-zone"]);
    assert!(sse.contains("SSE or x87"), "{sse}");
    let source = "long double f(long double a) { return a + 1; }";
    let x87 = found("x87", source, &["-O1", "-mno-red-zone"]);
    assert!(x87.contains("SSE or x87"), "{x87}");
}

#[test]
fn use_of_the_red_zone_is_found() {
    let source = "int f(int x) { volatile int a[4]; a[x & 3] = x; return a[0]; }";
    for frame in ["-fomit-frame-pointer", "-fno-omit-frame-pointer"] {
        let with = found("red", source, &["-O1", "-mno-sse", frame]);
        assert!(with.contains("red zone"), "{frame}: {with}");
        let without = found(
            "nored",
            source,
            &["-O1", "-mno-sse", "-mno-red-zone", frame],
        );
        assert!(!without.contains("red zone"), "{frame}: {without}");
    }
}

#[test]
fn a_file_without_module_metadata_is_found() {
    let found = found("nometa", "int f(void) { return 1; }", KERNEL);
    assert!(found.contains("has no set_modmetadata_set"), "{found}");
}
