//! Compiles the functions that only C can define: those with "..." arguments.
fn main() {
    println!("cargo::rerun-if-changed=src/varargs.c");
    cc::Build::new()
        .file("src/varargs.c")
        .warnings_into_errors(true)
        .compile("varargs");
}
