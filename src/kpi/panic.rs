//! A Rust panic is a kernel panic(9), with the Rust file and line.

use core::{fmt, fmt::Write as _};

/// Text of bounded length, NUL-ended, cut off rather than overflowing.
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
struct Text {
    bytes: [u8; 256],
    len: usize,
}

impl fmt::Write for Text {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let room = self.bytes.len() - 1 - self.len;
        let part = &s.as_bytes()[..s.len().min(room)];
        self.bytes[self.len..self.len + part.len()].copy_from_slice(part);
        self.len += part.len();
        Ok(())
    }
}

/// Stops the machine with the message of a Rust panic.
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
fn stop(info: &core::panic::PanicInfo<'_>) -> ! {
    let mut text = Text {
        bytes: [0; 256],
        len: 0,
    };
    // Text never fails to take what fits.
    let _ = write!(text, "{info}");
    // SAFETY: the text is NUL-ended: its last byte is never written.
    unsafe { sys_bindings::panic(c"%s: %s".as_ptr(), crate::name(), text.bytes.as_ptr()) }
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic_handler(info: &core::panic::PanicInfo<'_>) -> ! {
    stop(info)
}
