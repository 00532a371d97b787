//! A device as a disk, and questions to devices, which a signal ends.

use crate::{
    fail::{Code, Fail},
    stopped,
};
use core::ops::Deref;
use qpass_client::{Command, Device, DiskError, Ended, Error, Identity, Protocol, decode::inquiry};

/// A disk.
#[derive(Clone)]
pub struct Disk(qpass_client::Disk);

impl Deref for Disk {
    type Target = qpass_client::Disk;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// Sends a command; a signal takes it back.
pub fn run(device: &Device, command: Command) -> Result<(Command, Ended), Error> {
    device.run_until(command, &stopped)
}

/// A SCSI question, asked again on a UNIT ATTENTION: the bytes that were moved.
pub fn ask(device: &Device, what: &str, command: Command) -> Result<Vec<u8>, Fail> {
    let sent = run(device, command.recover(3));
    if stopped() {
        return Err(Fail::interrupted());
    }
    let (command, ended) = sent?;
    let outcome = ended.map_err(|error| Fail::command(device.name(), what, &error))?;
    let buffer = command.into_buffer();
    Ok(buffer.map_or_else(Vec::new, |b| b[..outcome.moved].to_vec()))
}

/// Why a disk could not be asked, or flushed.
pub fn fail(error: DiskError) -> Fail {
    if stopped() {
        return Fail::interrupted();
    }
    match error {
        DiskError::System(error) => error.into(),
        DiskError::Command {
            device,
            what,
            error,
        } => Fail::command(&device, what, &error),
        error @ DiskError::NotADisk { .. } => Fail::usage(error),
        error @ (DiskError::Answer { .. } | DiskError::LostPower { .. }) => {
            Fail::new(Code::Command, error)
        }
    }
}

impl Disk {
    /// Asks a device how large it is.
    pub fn probe(device: Device) -> Result<Self, Fail> {
        let asked = device.clone();
        qpass_client::Disk::probe_with(device, &|command| run(&asked, command))
            .map(Disk)
            .map_err(fail)
    }

    /// How many blocks one command moves that is to move `size` bytes.
    pub fn per_command(&self, size: usize) -> Result<usize, Fail> {
        match (size / self.block).min(self.most_blocks()) {
            0 => Err(Fail::usage(format!(
                "{}: {size} bytes are not a block, which has {}",
                self.device.name(),
                self.block
            ))),
            blocks => Ok(blocks),
        }
    }
}

/// What kind of device it is (SPC-6, table 151).
pub fn kind(identity: &Identity) -> &'static str {
    match identity.protocol {
        Protocol::Ata => "ATA disk",
        Protocol::Nvme => "NVMe namespace",
        Protocol::Other(_) => "other",
        Protocol::Scsi => inquiry::absence(identity.qualifier)
            .unwrap_or_else(|| inquiry::type_name(identity.device_type)),
    }
}
