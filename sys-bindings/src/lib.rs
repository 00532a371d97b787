//! FreeBSD kernel types, constants and functions, as bindgen reads them from
//! the headers that the set-up script found: nothing here is written by hand.
//!
//! Everything is as unsafe and as untyped as C has it. The safe wrappers, each
//! with the kernel rule it relies on, are in the qpass crate's `kpi` module.
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
