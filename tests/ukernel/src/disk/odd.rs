//! What sets a disk apart from an ordinary one.

use super::script::Script;
use std::sync::Arc;

/// What kind of device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A disk.
    Disk,
    /// A tape, of blocks of any length.
    Tape,
    /// A host-managed zoned disk: blocks of a zone, and how many zones at its
    /// beginning are conventional.
    Zoned(u64, u64),
}

/// What is odd about a disk.
#[derive(Clone, Debug)]
pub struct Odd {
    /// Bytes of a block.
    pub block: usize,
    /// Disk, tape, or zoned.
    pub kind: Kind,
    /// Peripheral device type, if it is not the kind's.
    pub device_type: Option<u8>,
    /// It is an ATA disk.
    pub ata: bool,
    /// It takes no commands of 48 bits.
    pub lba28: bool,
    /// Nothing is written to it.
    pub readonly: bool,
    /// Blocks that cannot be read until they are written: first and last.
    pub bad: Vec<(u64, u64)>,
    /// It says that it has written, and has not.
    pub lies: bool,
    /// It answers so many commands, and no more.
    pub sticks: Option<u64>,
    /// A command that takes longer than its CCB's timeout ends with CAM_CMD_TIMEOUT.
    pub keeps_time: bool,
    /// Scripted answers.
    pub script: Option<Arc<Script>>,
}

impl Odd {
    /// Nothing is.
    pub const NONE: Odd = Odd {
        block: 512,
        kind: Kind::Disk,
        device_type: None,
        ata: false,
        lba28: false,
        readonly: false,
        bad: Vec::new(),
        lies: false,
        sticks: None,
        keeps_time: false,
        script: None,
    };

    /// Peripheral device type (SPC-6, table 151).
    pub fn device_type(&self) -> u8 {
        self.device_type.unwrap_or(match self.kind {
            Kind::Disk => 0x00,
            Kind::Tape => 0x01,
            Kind::Zoned(..) => 0x14,
        })
    }
}
