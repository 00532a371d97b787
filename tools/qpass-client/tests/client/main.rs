//! The library's cases, where there is a user-mode kernel.

#[cfg(target_os = "linux")]
mod cases;

fn main() {
    #[cfg(target_os = "linux")]
    cases::main();
}
