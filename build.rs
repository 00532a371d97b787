//! Compiles kmod/shim.c into the crate, for the kernel only: with the headers,
//! the flags and the compiler that the bindings were made with.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=kmod/shim.c");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let mut shim = cc::Build::new();
    shim.compiler(env::var("DEP_FREEBSD_KERNEL_CLANG").expect("sys-bindings gives the compiler"))
        .no_default_flags(true)
        .flag("-c")
        .flag("-O2")
        .flag("-fno-omit-frame-pointer")
        .flag("-fno-common");
    let flags = env::var("DEP_FREEBSD_KERNEL_CFLAGS").expect("sys-bindings gives the flags");
    // One a field: a path may have blanks.
    for flag in flags.split('\x1f').filter(|f| *f != "-Wno-everything") {
        shim.flag(flag);
    }
    shim.flag("-Wall")
        .flag("-Werror")
        .cargo_metadata(false)
        .file("kmod/shim.c")
        .compile("qpass_shim");
    // Bundled, and whole: nothing in Rust refers to the linker sets.
    println!(
        "cargo::rustc-link-search=native={}",
        env::var("OUT_DIR").expect("OUT_DIR")
    );
    println!("cargo::rustc-link-lib=static:+bundle=qpass_shim");
}
