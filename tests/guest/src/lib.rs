//! The first process of a FreeBSD guest: loads qpass.ko, runs the conformance
//! suite on `/dev/qpass0`, unloads, says how it went, and powers off.
//!
//! With the tunable `qpass.bench` it measures instead: see `bench`.
//!
//! It is `/sbin/init` on a small read-only root, with no libc: `scripts/vm`
//! builds it, boots a kernel that the user names, and reads its last line.
#![no_std]

mod bench;
mod freebsd;

use conform::{Line, Score, sys::Sys};
use core::fmt::Write;
use freebsd::FreeBsd;

macro_rules! say {
    ($sys:expr, $($arg:tt)*) => {{
        let mut line = Line::new();
        let _ = write!(line, $($arg)*);
        $sys.print(line.as_str());
    }};
}

/// How often the module is loaded, used and unloaded.
const ROUNDS: u32 = 3;

fn main(sys: &mut FreeBsd) -> Result<Score, &'static str> {
    let mut total = Score::default();
    for round in 1..=ROUNDS {
        let id = sys.kldload("/qpass.ko").map_err(|errno| {
            say!(sys, "guest: kldload: errno {errno}");
            "kldload failed"
        })?;
        say!(sys, "guest: round {round}: qpass.ko loaded, file id {id}");
        let node = wait_for(sys, NODES)?;
        sys.look_around();
        say!(sys, "guest: testing {node}");
        let score = conform::run(sys, node);
        total.passed += score.passed;
        total.failed += score.failed;
        total.skipped += score.skipped;

        let busy = sys
            .open(node, sys_bindings::O_RDWR as i32)
            .map_err(|_| "open failed")?;
        let refused = sys.kldunload(id);
        say!(sys, "guest: kldunload with the device open: {refused:?}");
        if refused != Err(sys_bindings::EBUSY as i32) {
            return Err("unload with the device open was not refused with EBUSY");
        }
        sys.close(busy);
        unload(sys, id)?;
        if sys.open(node, sys_bindings::O_RDWR as i32).is_ok() {
            return Err("the node is still there after unload");
        }
        say!(sys, "guest: round {round}: unloaded");
    }
    // What the kernel's own pass-through answers, where it has one.
    if let Ok(fd) = sys.open("/dev/pass0", sys_bindings::O_RDWR as i32) {
        sys.close(fd);
        sys.hold();
        say!(sys, "guest: parity of /dev/pass0");
        conform::run_parity(sys, "/dev/pass0");
        say!(sys, "guest: end of parity");
        sys.flush();
    }
    Ok(total)
}

/// The module's first node, and what it is called where it stands in for
/// pass(4).
const NODES: [&str; 2] = ["/dev/qpass0", "/dev/pass0"];

/// Devices are probed after init starts.
fn wait_for(sys: &mut FreeBsd, paths: [&'static str; 2]) -> Result<&'static str, &'static str> {
    for _ in 0..100 {
        for path in paths {
            if let Ok(fd) = sys.open(path, sys_bindings::O_RDWR as i32) {
                sys.close(fd);
                return Ok(path);
            }
            // The first is waited for a while where both may come.
            sys.sleep_ms(100);
        }
    }
    Err("the device did not come")
}

/// What was queued and closed may be on its way for a moment still.
fn unload(sys: &mut FreeBsd, id: usize) -> Result<(), &'static str> {
    for _ in 0..100 {
        match sys.kldunload(id) {
            Ok(()) => return Ok(()),
            Err(errno) if errno == sys_bindings::EBUSY as i32 => sys.sleep_ms(100),
            Err(_) => return Err("kldunload failed"),
        }
    }
    Err("kldunload stays EBUSY")
}

/// Called by the entry point, with a stack and nothing else.
#[unsafe(no_mangle)]
pub extern "C" fn guest_main() -> ! {
    let mut sys = FreeBsd::new();
    sys.open_console();
    let score = match sys.tunable("qpass.bench") {
        Some(rounds) => bench::run(&mut sys, rounds),
        None => main(&mut sys),
    };
    match score {
        Ok(score) => say!(
            sys,
            "{} passed, {} failed, {} skipped",
            score.passed,
            score.failed,
            score.skipped
        ),
        Err(what) => say!(sys, "guest: {what}\n0 passed, 1 failed"),
    }
    sys.power_off()
}

#[cfg(target_os = "none")]
mod entry {
    // The kernel enters with the stack misaligned for a call.
    core::arch::global_asm!(
        ".globl _start",
        "_start:",
        "xor %ebp, %ebp",
        "and $-16, %rsp",
        "call guest_main",
        options(att_syntax)
    );

    #[panic_handler]
    fn panic_handler(info: &core::panic::PanicInfo<'_>) -> ! {
        use conform::sys::Sys;
        use core::fmt::Write;
        let mut line = conform::Line::new();
        let _ = write!(line, "guest: {info}\n0 passed, 1 failed");
        let mut sys = super::FreeBsd::new();
        sys.print(line.as_str());
        sys.power_off()
    }
}
