//! Nothing to generate for this crate: kmod/shim.c is compiled by the script
//! (or bsd.kmod.mk) that links the module.
fn main() {}
