//! A device as a disk: how large it is, and the commands that read, write and flush
//! it, by what the device says of itself and not by its protocol alone.

use crate::{
    command::Command,
    decode::{
        ata::Identify,
        be,
        capacity::{Capacity, Zones},
        inquiry::{absence, type_name},
        nvme::Format,
    },
    device::{Device, Ended},
    error::Error,
    identity::{Identity, Protocol},
    kernel::Buffer,
    outcome::CommandError,
};
use core::{fmt, time::Duration};

/// Which commands a disk takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Commands {
    /// READ(10) and so on; the (16) forms where an address wants them.
    Scsi,
    /// The (16) forms alone: those that a host-managed disk has to have (ZBC-2, table 1).
    Scsi16,
    /// Of 28 bits: the disk takes no others.
    Ata28,
    /// Of 48 bits.
    Ata48,
    /// NVMe.
    Nvme,
}

/// A disk.
#[derive(Clone)]
pub struct Disk {
    /// The device.
    pub device: Device,
    /// What CAM knows of it.
    pub identity: Identity,
    /// Bytes of a logical block.
    pub block: usize,
    /// How many there are.
    pub blocks: u64,
    /// Bytes of a physical block, the same if the disk does not tell.
    pub physical: u64,
    /// A host-managed disk (ZBC-2): its writes go one at a time, in order, and none
    /// across a multiple of so many blocks, where a zone begins; 0: at any block.
    pub zone: Option<u64>,
    commands: Commands,
    /// ATA: FLUSH CACHE EXT is taken.
    flush_ext: bool,
    /// The device says that it has no volatile cache, and nothing to flush.
    no_cache: bool,
}

/// Why a device is no disk, or could not be asked.
#[derive(Clone, Debug)]
pub enum DiskError {
    /// It is of another kind.
    NotADisk {
        /// Its node.
        device: String,
        /// What it is.
        kind: &'static str,
    },
    /// A system call failed.
    System(Error),
    /// A command failed.
    Command {
        /// The device's node.
        device: String,
        /// The command.
        what: String,
        /// How it ended.
        error: CommandError,
    },
    /// It has told in answer to a flush that it was powered on or reset: what was
    /// in a volatile cache before that is lost, though the flush itself was done.
    LostPower {
        /// The device's node.
        device: String,
    },
    /// What it answered makes no disk: why.
    Answer {
        /// The device's node.
        device: String,
        /// In words.
        why: String,
    },
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DiskError::NotADisk { device, kind } => write!(f, "{device}: not a disk but {kind}"),
            DiskError::System(error) => error.fmt(f),
            DiskError::Command {
                device,
                what,
                error,
            } => write!(f, "{device}: {what}: {error}"),
            DiskError::LostPower { device } => write!(
                f,
                "{device}: flush: it was powered on or reset: what was in its cache may be lost"
            ),
            DiskError::Answer { device, why } => write!(f, "{device}: {why}"),
        }
    }
}

impl std::error::Error for DiskError {}

impl From<Error> for DiskError {
    fn from(error: Error) -> Self {
        DiskError::System(error)
    }
}

/// What became of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// The device has put on its medium what it was given.
    Done,
    /// It knows no command for that, and says of no cache that it has one.
    NoCache,
}

/// How long a READ or WRITE may take, as da(4) has it.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How often a question is asked again.
const RETRIES: u32 = 3;

/// Asks, as [`Disk::probe_with`] is told to.
struct Asker<'a> {
    device: &'a Device,
    run: &'a dyn Fn(Command) -> Result<(Command, Ended), Error>,
}

impl Asker<'_> {
    fn answer(&self, why: impl fmt::Display) -> DiskError {
        DiskError::Answer {
            device: self.device.name().into(),
            why: why.to_string(),
        }
    }

    fn failed(&self, what: &str, error: CommandError) -> DiskError {
        DiskError::Command {
            device: self.device.name().into(),
            what: what.into(),
            error,
        }
    }

    /// The bytes that were moved.
    fn ask(&self, what: &str, command: Command) -> Result<Vec<u8>, DiskError> {
        let (command, ended) = (self.run)(command.recover(RETRIES))?;
        let outcome = ended.map_err(|error| self.failed(what, error))?;
        let buffer = command.into_buffer();
        Ok(buffer.map_or_else(Vec::new, |b| b[..outcome.moved].to_vec()))
    }

    fn short(&self, what: &str, came: usize) -> DiskError {
        self.answer(format!(
            "{what}: the device gave {came} bytes, which are not all"
        ))
    }

    fn buffer(&self, len: usize) -> Result<Buffer, DiskError> {
        Ok(self.device.buffer(len)?)
    }

    fn capacity_16(&self) -> Result<Capacity, DiskError> {
        let what = "READ CAPACITY(16)";
        let data = self.ask(what, Command::read_capacity_16(self.buffer(32)?))?;
        Capacity::of_16(&data).map_err(|n| self.short(what, n))
    }

    /// READ CAPACITY(10), and (16) where that says so, or is all there is.
    fn capacity(&self) -> Result<Capacity, DiskError> {
        let what = "READ CAPACITY(10)";
        match self.ask(what, Command::read_capacity_10(self.buffer(8)?)) {
            Ok(data) => match Capacity::of_10(&data).map_err(|n| self.short(what, n))? {
                Some(capacity) => Ok(capacity),
                None => self.capacity_16(),
            },
            Err(DiskError::Command { error, .. }) if is_unknown(&error) => self.capacity_16(),
            Err(error) => Err(error),
        }
    }

    /// What a host-managed disk says: the capacity, and blocks of a zone, 0 if it
    /// does not tell.
    fn zoned(&self) -> Result<(Capacity, u64), DiskError> {
        let mut capacity = self.capacity_16()?;
        let what = "REPORT ZONES";
        let data = match self.ask(what, Command::report_zones(0, self.buffer(4096)?)) {
            Ok(data) => data,
            // The capacity is of the whole disk all the same.
            Err(DiskError::Command { error, .. }) if is_unknown(&error) => {
                return Ok((capacity, 0));
            }
            Err(error) => return Err(error),
        };
        let zones = Zones::parse(&data).map_err(|n| self.short(what, n))?;
        // The capacity is that of the conventional zones (ZBC-2, 5.4).
        if capacity.basis == 0 {
            capacity.blocks = zones.last.checked_add(1).unwrap_or(0);
        }
        let zone = zones.first.map_or(0, |(blocks, _)| blocks);
        Ok((capacity, zone))
    }
}

/// ILLEGAL REQUEST, INVALID COMMAND OPERATION CODE.
fn is_unknown(error: &CommandError) -> bool {
    let sense = error.sense();
    sense.is_some_and(|s| !s.deferred && (s.key, s.asc, s.ascq) == (5, 0x20, 0))
}

/// CAM's LUN of an NVMe device is its namespace.
fn nsid(identity: &Identity) -> u32 {
    identity.lun as u32
}

/// What kind of device it is, in words.
pub(crate) fn kind(identity: &Identity) -> &'static str {
    match identity.protocol {
        Protocol::Ata => "ATA disk",
        Protocol::Nvme => "NVMe namespace",
        Protocol::Other(_) => "other",
        Protocol::Scsi => {
            absence(identity.qualifier).unwrap_or_else(|| type_name(identity.device_type))
        }
    }
}

impl Disk {
    /// Asks a device how large it is, and which commands it takes.
    ///
    /// # Errors
    /// It is no disk, it could not be asked, or what it says is not to be used: of
    /// NVMe, a format with metadata, which would be moved beyond the data.
    pub fn probe(device: Device) -> Result<Self, DiskError> {
        let runner = device.clone();
        Disk::probe_with(device, &|command| runner.run(command))
    }

    /// The same, each command sent by `run`: such as
    /// [`Device::run_until`], which can be stopped.
    ///
    /// # Errors
    /// Those of [`probe`](Self::probe).
    pub fn probe_with(
        device: Device,
        run: &dyn Fn(Command) -> Result<(Command, Ended), Error>,
    ) -> Result<Self, DiskError> {
        let identity = device.identity()?;
        let is_disk = match identity.protocol {
            // Direct access, write-once, CD, optical, simplified, zoned.
            Protocol::Scsi => {
                identity.qualifier == 0 && matches!(identity.device_type, 0 | 4 | 5 | 7 | 14 | 20)
            }
            Protocol::Ata | Protocol::Nvme => true,
            Protocol::Other(_) => false,
        };
        if !is_disk {
            return Err(DiskError::NotADisk {
                device: device.name().into(),
                kind: kind(&identity),
            });
        }
        let asker = Asker {
            device: &device,
            run,
        };
        let mut disk = Disk {
            block: 0,
            blocks: 0,
            physical: 0,
            zone: None,
            commands: Commands::Scsi,
            flush_ext: false,
            no_cache: false,
            device: device.clone(),
            identity,
        };
        let block = match disk.identity.protocol {
            Protocol::Scsi => disk.probe_scsi(&asker)?,
            Protocol::Ata => disk.probe_ata(&asker)?,
            _ => disk.probe_nvme(&asker)?,
        };
        let blocks = disk.blocks;
        let is_sane = (256..=1 << 20).contains(&block) && blocks != 0;
        if !is_sane || blocks.checked_mul(block).is_none() {
            let why = format!("says that it has {blocks} blocks of {block} bytes");
            return Err(asker.answer(why));
        }
        disk.block = block as usize;
        disk.physical = disk.physical.max(block);
        Ok(disk)
    }

    fn probe_scsi(&mut self, asker: &Asker<'_>) -> Result<u64, DiskError> {
        let capacity = match self.identity.device_type {
            20 => {
                let (capacity, zone) = asker.zoned()?;
                self.commands = Commands::Scsi16;
                self.zone = Some(zone);
                capacity
            }
            _ => asker.capacity()?,
        };
        self.blocks = capacity.blocks;
        self.physical = capacity.physical();
        Ok(capacity.block)
    }

    fn probe_ata(&mut self, asker: &Asker<'_>) -> Result<u64, DiskError> {
        let what = "IDENTIFY DEVICE";
        let data = asker.ask(what, Command::ata_identify(asker.buffer(512)?))?;
        let identify = Identify::parse(&data).ok_or_else(|| asker.short(what, data.len()))?;
        self.commands = match identify.has_48bit {
            true => Commands::Ata48,
            false => Commands::Ata28,
        };
        // One that says of neither that it takes it is asked all the same.
        let (_, has_ext) = identify.flushes;
        self.flush_ext = identify.has_48bit && (has_ext || identify.flushes == (false, false));
        self.no_cache = identify.flushes == (false, false) && identify.write_cache != Some(true);
        (self.blocks, self.physical) = (identify.blocks, identify.physical);
        Ok(identify.block)
    }

    fn probe_nvme(&mut self, asker: &Asker<'_>) -> Result<u64, DiskError> {
        self.commands = Commands::Nvme;
        let what = "Identify Namespace";
        let nsid = nsid(&self.identity);
        let data = asker.ask(what, Command::nvme_identify(0, nsid, asker.buffer(4096)?))?;
        let format = Format::parse(&data).map_err(|why| asker.answer(why))?;
        if format.metadata != 0 {
            let (bytes, place) = match format.is_extended {
                true => (format.metadata, "in each block's data"),
                false => (format.metadata, "apart from the data"),
            };
            return Err(asker.answer(format!(
                "its format {} has {bytes} bytes of metadata {place}: a controller would move \
                 more than the data",
                format.index
            )));
        }
        self.blocks = format.blocks;
        Ok(format.block)
    }

    /// What kind of device it is, in words.
    pub fn kind(&self) -> &'static str {
        kind(&self.identity)
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.blocks * self.block as u64
    }

    /// How many blocks one command may move: by the controller, and by the command's
    /// own count. 0: the controller does not take one block.
    pub fn most_blocks(&self) -> usize {
        let most = match self.commands {
            Commands::Scsi | Commands::Scsi16 => u32::MAX as usize,
            Commands::Ata28 => 256,
            Commands::Ata48 => 65535,
            Commands::Nvme => 65536,
        };
        (self.identity.maxio as usize / self.block).min(most)
    }

    /// Whether writes have to be in order, one at a time, and none across the
    /// boundary of a zone: see [`zone`](Self::zone).
    pub fn writes_in_order(&self) -> bool {
        self.zone.is_some()
    }

    /// Reads `blocks` blocks into the beginning of `buffer`. It may take a minute.
    ///
    /// # Panics
    /// When the buffer is shorter, or the blocks are more than
    /// [`most_blocks`](Self::most_blocks).
    pub fn read(&self, lba: u64, blocks: usize, buffer: Buffer) -> Command {
        let (count, len) = self.count(blocks);
        let command = match self.commands {
            Commands::Scsi => Command::read(lba, count, buffer, len),
            Commands::Scsi16 => Command::read_16(lba, count, buffer, len),
            Commands::Ata28 => Command::ata_read_28(lba, count as u16, buffer, len),
            Commands::Ata48 => Command::ata_read(lba, count as u16, buffer, len),
            Commands::Nvme => Command::nvme_read(nsid(&self.identity), lba, count, buffer, len),
        };
        command.timeout(TIMEOUT)
    }

    /// Writes `blocks` blocks from the beginning of `buffer`. It may take a minute.
    ///
    /// # Panics
    /// As [`read`](Self::read).
    pub fn write(&self, lba: u64, blocks: usize, buffer: Buffer) -> Command {
        let (count, len) = self.count(blocks);
        let command = match self.commands {
            Commands::Scsi => Command::write(lba, count, buffer, len),
            Commands::Scsi16 => Command::write_16(lba, count, buffer, len),
            Commands::Ata28 => Command::ata_write_28(lba, count as u16, buffer, len),
            Commands::Ata48 => Command::ata_write(lba, count as u16, buffer, len),
            Commands::Nvme => Command::nvme_write(nsid(&self.identity), lba, count, buffer, len),
        };
        command.timeout(TIMEOUT)
    }

    fn count(&self, blocks: usize) -> (u32, usize) {
        assert!(
            (1..=self.most_blocks()).contains(&blocks),
            "{blocks} blocks are not what one command moves"
        );
        (blocks as u32, blocks * self.block)
    }

    /// Has the disk put on its medium what it was given.
    ///
    /// That a command is refused does not say that there is no cache: each command
    /// for it that the disk may know is tried, and the caching mode page asked.
    ///
    /// # Errors
    /// It could not; an earlier write is lost, see
    /// [`Outcome::is_deferred`](crate::Outcome::is_deferred); or it may be, see
    /// [`DiskError::LostPower`].
    pub fn flush(&self) -> Result<Flushed, DiskError> {
        self.flush_with(&|command| self.device.run(command))
    }

    /// The same, each command sent by `run`.
    ///
    /// # Errors
    /// Those of [`flush`](Self::flush).
    pub fn flush_with(
        &self,
        run: &dyn Fn(Command) -> Result<(Command, Ended), Error>,
    ) -> Result<Flushed, DiskError> {
        let asker = Asker {
            device: &self.device,
            run,
        };
        let try_one = |command: Command| -> Result<Result<Flushed, CommandError>, DiskError> {
            let (_, ended) = (asker.run)(command.recover(RETRIES))?;
            match ended {
                Ok(outcome) if outcome.lost_power() => Err(DiskError::LostPower {
                    device: self.device.name().into(),
                }),
                Ok(_) => Ok(Ok(Flushed::Done)),
                Err(error) => Ok(Err(error)),
            }
        };
        let failed = |error| asker.failed("flush", error);
        match self.commands {
            Commands::Scsi => match try_one(Command::synchronize_cache())? {
                Err(error) if is_unknown(&error) => {}
                ended => return ended.map_err(failed),
            },
            // It has to have that one, and no other.
            Commands::Scsi16 => {
                return try_one(Command::synchronize_cache_16())?.map_err(failed);
            }
            Commands::Nvme => {
                return try_one(Command::nvme_flush(nsid(&self.identity)))?.map_err(failed);
            }
            Commands::Ata28 | Commands::Ata48 => {
                let command = match self.flush_ext {
                    true => Command::ata_flush(),
                    false => Command::ata_flush_28(),
                };
                return match try_one(command)? {
                    // Aborted: it does not know it, and never said it would.
                    Err(error)
                        if self.no_cache && error.registers().is_some_and(|r| r.error == 4) =>
                    {
                        Ok(Flushed::NoCache)
                    }
                    ended => ended.map_err(failed),
                };
            }
        }
        let refused = match try_one(Command::synchronize_cache_16())? {
            Err(error) if is_unknown(&error) => error,
            ended => return ended.map_err(failed),
        };
        match caches_writes(&asker)? {
            true => Err(failed(refused)),
            false => Ok(Flushed::NoCache),
        }
    }
}

/// WCE of the caching mode page (SBC-4, 6.5.6): whether there is a write cache, and
/// it is on. A disk without the page has said nothing of one.
fn caches_writes(asker: &Asker<'_>) -> Result<bool, DiskError> {
    let data = match asker.ask("MODE SENSE", Command::mode_sense(8, 0, asker.buffer(64)?)) {
        Ok(data) => data,
        Err(DiskError::Command { .. }) => return Ok(false),
        Err(error) => return Err(error),
    };
    let Some(descriptors) = data.get(6..8).map(|b| be(b) as usize) else {
        return Ok(false);
    };
    let page = data.get(8 + descriptors..).unwrap_or_default();
    Ok(matches!(*page, [head, _, flags, ..] if head & 0x3f == 8 && flags & 4 != 0))
}
