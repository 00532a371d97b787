//! A device as a disk: its blocks, whatever it speaks.

use crate::fail::{Code, Fail};
use qpass_client::{Buffer, Command, Device, Identity, Protocol};

/// A disk.
#[derive(Clone)]
pub struct Disk {
    pub device: Device,
    pub identity: Identity,
    /// Bytes of a block.
    pub block: usize,
    /// How many there are.
    pub blocks: u64,
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

fn le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// A SCSI question, asked again on a UNIT ATTENTION: its answer.
pub fn ask(device: &Device, what: &str, command: Command) -> Result<Buffer, Fail> {
    let (command, outcome) = device.run(command.recover(3))?;
    outcome.map_err(|error| Fail::command(device.name(), what, &error))?;
    Ok(command.into_buffer().expect("a question has a buffer"))
}

impl Disk {
    /// Asks a device how large it is.
    pub fn probe(device: Device) -> Result<Self, Fail> {
        let identity = device.identity()?;
        let is_disk = match identity.protocol {
            // Direct access, write-once, CD, optical, simplified, zoned.
            Protocol::Scsi => matches!(identity.device_type, 0 | 4 | 5 | 7 | 14 | 20),
            Protocol::Ata | Protocol::Nvme => true,
            Protocol::Other(_) => false,
        };
        if !is_disk {
            return Err(Fail::usage(format!(
                "{}: not a disk but {}",
                device.name(),
                kind(&identity)
            )));
        }
        let (block, blocks) = match identity.protocol {
            Protocol::Scsi => scsi_capacity(&device)?,
            Protocol::Ata => {
                let page = ask(
                    &device,
                    "IDENTIFY DEVICE",
                    Command::ata_identify(device.buffer(512)?),
                )?;
                let word = |i: usize| le(&page[i * 2..i * 2 + 2]);
                // Word 106: the logical sector is not of 256 words.
                let block = match word(106) & 0xd000 {
                    0x5000 => le(&page[234..238]) * 2,
                    _ => 512,
                };
                let has_48bit = word(83) & 0xc400 == 0x4400;
                let blocks = match le(&page[200..208]) {
                    n if has_48bit && n != 0 => n,
                    _ => le(&page[120..124]),
                };
                (block, blocks)
            }
            _ => {
                let page = ask(
                    &device,
                    "Identify Namespace",
                    Command::nvme_identify(0, nsid(&identity), device.buffer(4096)?),
                )?;
                let format = 128 + 4 * usize::from(page[26] & 0xf);
                let shift = page[format + 2];
                (1u64.checked_shl(shift.into()).unwrap_or(0), le(&page[..8]))
            }
        };
        let is_sane = (256..=1 << 20).contains(&block) && blocks != 0;
        if !is_sane || blocks.checked_mul(block).is_none() {
            return Err(Fail::new(
                Code::Command,
                format!(
                    "{}: says that it has {blocks} blocks of {block} bytes",
                    device.name()
                ),
            ));
        }
        Ok(Disk {
            device,
            identity,
            block: block as usize,
            blocks,
        })
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.blocks * self.block as u64
    }

    /// How many blocks one command moves that is to move `size` bytes.
    pub fn per_command(&self, size: usize) -> Result<usize, Fail> {
        let maxio = self.identity.maxio as usize;
        let most = match self.identity.protocol {
            Protocol::Scsi => usize::MAX,
            _ => 65535,
        };
        match (size.min(maxio) / self.block).min(most) {
            0 => Err(Fail::usage(format!(
                "{}: {size} bytes are not a block, which has {}",
                self.device.name(),
                self.block
            ))),
            blocks => Ok(blocks),
        }
    }

    /// Reads `blocks` blocks into the beginning of `buffer`.
    pub fn read(&self, lba: u64, blocks: usize, buffer: Buffer) -> Command {
        let len = blocks * self.block;
        match self.identity.protocol {
            Protocol::Scsi => Command::read(lba, blocks as u32, buffer, len),
            Protocol::Ata => Command::ata_read(lba, blocks as u16, buffer, len),
            _ => Command::nvme_read(nsid(&self.identity), lba, blocks as u32, buffer, len),
        }
    }

    /// Writes `blocks` blocks from the beginning of `buffer`.
    pub fn write(&self, lba: u64, blocks: usize, buffer: Buffer) -> Command {
        let len = blocks * self.block;
        match self.identity.protocol {
            Protocol::Scsi => Command::write(lba, blocks as u32, buffer, len),
            Protocol::Ata => Command::ata_write(lba, blocks as u16, buffer, len),
            _ => Command::nvme_write(nsid(&self.identity), lba, blocks as u32, buffer, len),
        }
    }
}

/// CAM's LUN of an NVMe device is its namespace.
fn nsid(identity: &Identity) -> u32 {
    identity.lun as u32
}

fn scsi_capacity(device: &Device) -> Result<(u64, u64), Fail> {
    let short = ask(
        device,
        "READ CAPACITY(10)",
        Command::read_capacity_10(device.buffer(8)?),
    )?;
    if short[..4] != [0xff; 4] {
        return Ok((be(&short[4..8]), be(&short[..4]) + 1));
    }
    let long = ask(
        device,
        "READ CAPACITY(16)",
        Command::read_capacity_16(device.buffer(32)?),
    )?;
    let last = be(&long[..8]);
    let blocks = last.checked_add(1).unwrap_or(0);
    Ok((be(&long[8..12]), blocks))
}

/// What kind of device it is (SPC-5, table 150).
pub fn kind(identity: &Identity) -> &'static str {
    match identity.protocol {
        Protocol::Ata => "ATA disk",
        Protocol::Nvme => "NVMe namespace",
        Protocol::Other(_) => "other",
        Protocol::Scsi => match identity.device_type {
            0 => "disk",
            1 => "tape",
            3 => "processor",
            4 => "write-once disk",
            5 => "CD",
            7 => "optical disk",
            8 => "changer",
            12 => "array controller",
            13 => "enclosure",
            14 => "simplified disk",
            17 => "object store",
            20 => "zoned disk",
            30 => "well-known unit",
            _ => "other",
        },
    }
}
