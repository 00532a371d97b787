//! What devices answer, decoded: bytes in, values out, and no I/O.
//!
//! A decoder is given the bytes that were moved, and no others; it never panics,
//! and never looks behind the length that the data itself gives.

pub mod ata;
pub mod capacity;
pub mod inquiry;
pub mod nvme;
pub mod opcode;
pub mod sense;
mod tables;

/// Big-endian bytes, at most eight, as a number.
pub(crate) fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Little-endian bytes, at most eight, as a number.
pub(crate) fn le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Bytes of a text field: up to a NUL, with a blank in the place of what cannot
/// be printed, and none at either end. Every text that a device gives of itself
/// is read by this one function.
pub fn text(bytes: &[u8]) -> String {
    let printable = |b: &u8| match *b {
        0x20..=0x7e => char::from(*b),
        _ => ' ',
    };
    // Some fill the field with NULs from its beginning on.
    let begin = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len());
    let rest = &bytes[begin..];
    let end = rest.iter().position(|b| *b == 0).unwrap_or(rest.len());
    let all: String = rest[..end].iter().map(printable).collect();
    all.trim().to_owned()
}
