//! The first process of a FreeBSD guest: loads qpass.ko, runs the conformance
//! suite or another set of tests, unloads, says how it went, and powers off.
//!
//! The tunable `qpass.set` names the set: see `sets`. With `qpass.bench` it
//! measures instead: see `bench`.
//!
//! It is `/sbin/init` on a small read-only root, with no libc: `scripts/vm`
//! builds it, boots a kernel that the user names, and reads its last line.
#![no_std]

mod bench;
mod freebsd;
mod sets;

use conform::{Line, Score, sys::Sys};
use core::fmt::Write;
use freebsd::FreeBsd;
use sets::Sheet;

macro_rules! say {
    ($sys:expr, $($arg:tt)*) => {{
        let mut line = Line::new();
        let _ = write!(line, $($arg)*);
        $sys.print(line.as_str());
    }};
}

/// How often the module is loaded, used and unloaded.
const ROUNDS: u32 = 3;

fn load(sys: &mut FreeBsd) -> Result<usize, &'static str> {
    let module = sys.module();
    sys.kldload(module).map_err(|errno| {
        say!(sys, "guest: kldload: errno {errno}");
        "kldload failed"
    })
}

/// The conformance suite on the SCSI disk, and what pass(4) answers to it.
fn conformance(sys: &mut FreeBsd) -> Result<Score, &'static str> {
    let mut total = Score::default();
    for round in 1..=ROUNDS {
        let id = load(sys)?;
        say!(sys, "guest: round {round}: qpass.ko loaded, file id {id}");
        let node = wait_for(sys)?;
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
    if let Some(node) = sys.disk_of("pass") {
        sys.hold();
        say!(sys, "guest: parity of {node}");
        conform::run_parity(sys, node);
        say!(sys, "guest: end of parity");
        sys.flush();
    }
    Ok(total)
}

/// The set that the tunable `qpass.set` names; the conformance suite without.
fn main(sys: &mut FreeBsd) -> Result<Score, &'static str> {
    let text = sys.tunable_text("qpass.set");
    let name = match &text {
        Some((text, len)) => core::str::from_utf8(&text[..*len]).unwrap_or("?"),
        None => "conform",
    };
    say!(sys, "guest: set {name}");
    if name == "conform" {
        return conformance(sys);
    }
    let mut sheet = Sheet {
        sys,
        score: Score::default(),
    };
    if name == "unload" {
        sets::unload(&mut sheet, |sys| load(sys).ok());
        return Ok(sheet.score);
    }
    if name == "faults" || name == "hostile" || name == "targets" {
        load(sheet.sys)?;
        sheet.sys.sleep_ms(500);
        sheet.sys.look_around();
        match name {
            "faults" => sets::faults(&mut sheet),
            "hostile" => sets::hostile(&mut sheet),
            _ => sets::targets(&mut sheet),
        }
        return Ok(sheet.score);
    }
    if name == "contexts" {
        load(sheet.sys)?;
        sheet.sys.sleep_ms(500);
        sets::contexts(&mut sheet);
        return Ok(sheet.score);
    }
    let id = load(sheet.sys)?;
    // Devices are probed after init starts.
    sheet.sys.sleep_ms(500);
    sheet.sys.look_around();
    match name {
        "sims" => sets::sims(&mut sheet),
        "unplug" => sets::unplug(&mut sheet),
        "notify" => sets::notify(&mut sheet),
        "replace" => sets::replace(&mut sheet),
        "tools" => sets::tools(&mut sheet),
        "shell" => {
            // Whoever sits at the console ends it.
            let ended = sheet.sys.run("/bin/sh", &["-i"]);
            say!(sheet.sys, "guest: the shell has ended: {ended:?}");
        }
        "pair" => {
            sets::pair(&mut sheet, id);
            return Ok(sheet.score);
        }
        _ => return Err("there is no set of that name"),
    }
    let score = sheet.score;
    unload(sys, id)?;
    say!(sys, "guest: unloaded");
    Ok(score)
}

/// The SCSI disk's node, of the module, which may stand in for pass(4).
fn wait_for(sys: &mut FreeBsd) -> Result<&'static str, &'static str> {
    sys.wait_disk_of(&["qpass", "pass"])
        .ok_or("the device did not come")
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

/// Called by the entry point, with a stack and the address of the arguments: their
/// number, and then an address of each.
///
/// # Safety
/// So the kernel has it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn guest_main(args: *const usize) -> ! {
    let mut sys = FreeBsd::new();
    // SAFETY: the caller's promise.
    let is_idle = unsafe {
        let second = if *args > 1 { *args.add(2) } else { 0 };
        second != 0
            && core::ffi::CStr::from_ptr(second as *const core::ffi::c_char).to_bytes()
                == freebsd::IDLE.as_bytes()
    };
    if is_idle {
        sys.sleep_ms(30);
        sys.exit(0);
    }
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
        let mut sys = super::FreeBsd::new();
        if super::freebsd::is_child() {
            let _ = write!(line, "guest: a child: {info}");
            sys.print(line.as_str());
            sys.exit(super::freebsd::PANICKED);
        }
        let _ = write!(line, "guest: {info}\n0 passed, 1 failed");
        sys.print(line.as_str());
        sys.power_off()
    }
}
