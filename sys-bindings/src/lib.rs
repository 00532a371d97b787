//! FreeBSD kernel types, constants and functions, as bindgen reads them from
//! the headers that the set-up script found; by hand there is only what these structs
//! are allowed to be made of ([`Plain`]).
//!
//! Everything is as unsafe and as untyped as C has it. The safe wrappers, each
//! with the kernel rule it relies on, are in the crate `kpi`.
#![no_std]
#![allow(missing_docs)]
#![allow(
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    rustdoc::all
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

/// The `__FreeBSD_version` of the headers that the bindings were made from.
pub const OSVERSION: &str = env!("QPASS_OSVERSION");

/// What bindgen computed, held against what the C compiler computed.
mod layout {
    use super::*;
    use static_assertions::const_assert_eq;

    include!(concat!(env!("OUT_DIR"), "/layout.rs"));
}

/// Any bytes make one. Here, because the structs below are.
///
/// # Safety
/// A `repr(C)` struct of integers without padding.
pub unsafe trait Plain {}

// SAFETY: fixed-size integers, in order of size, in kmod/qpass_ioctl.h.
unsafe impl Plain for qpass_info {}
// SAFETY: as above.
unsafe impl Plain for qpass_limit {}
// SAFETY: as above.
unsafe impl Plain for qpass_cancel {}
// SAFETY: as above.
unsafe impl Plain for qpass_enter {}
// SAFETY: as above.
unsafe impl Plain for qpass_submission {}
// SAFETY: as above.
unsafe impl Plain for qpass_completion {}
// SAFETY: as above.
unsafe impl Plain for qpass_list {}
// SAFETY: as above.
unsafe impl Plain for qpass_outstanding {}
