//! Names of codes.

pub(crate) mod asc;
pub(crate) mod ata;
pub(crate) mod nvme;
pub(crate) mod opcodes;
