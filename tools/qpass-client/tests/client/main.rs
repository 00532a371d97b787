//! The library's cases, where there is a user-mode kernel.

#[cfg(target_os = "linux")]
mod cases;
#[cfg(target_os = "linux")]
mod field;

fn main() {
    #[cfg(target_os = "linux")]
    cases::main();
}
