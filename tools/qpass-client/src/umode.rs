//! The user-mode kernel: qpass.ko, the same bits that FreeBSD loads, in this
//! process, with RAM disks behind it.
//!
//! `QPASS_KO` names the module; else it is what `scripts/build.sh` has made in
//! this source tree. `QPASS_UKERNEL` describes the machine, its parts separated
//! by `;`:
//!
//! - `disk` or `disk=FILE`, a RAM disk of 64 MiB, or one that has its contents in a
//!   file; the words behind it, separated by `,`, are below;
//! - `kern.cam.qpass.max_requests=4` and the like, sysctls that are set, and
//!   `hw.qpass.replace=1`, a tunable;
//! - `unprivileged`: the program is not root's;
//! - `shared=SOCKET`: other processes may use this kernel while this one runs; one whose
//!   description has that and no disk is such another process.
//!
//! Without it there is one disk of 64 MiB. When the program ends the module is
//! unloaded, and a leak ends it with status 70.
//!
//! A disk's file is as large as it is: the disk is all of it, or the first `size=`
//! bytes; it is never cut or made longer, only made if it is not there, and has to be a
//! whole number of blocks. While it is a disk, it is locked (flock(2)): a second process
//! that wants it as its disk is refused.
//!
//! A disk's words; bytes may have K, M, G or T behind them, times want us, ms or s:
//!
//! - `size=64M`; `block=512`, bytes of a block, such as 4096 or 520; `maxio=1M`, the
//!   longest transfer; `openings=32`, commands at a time; `unmapped`: takes unmapped
//!   I/O, which zero copy wants;
//! - `latency=100us` and `jitter=50us` of a command;
//! - `ata`, an ATA disk, and with `lba28` one without commands of 48 bits; `nvme`, an
//!   NVMe namespace; `tape`, a tape of blocks of any length, which begins with the
//!   file's bytes in blocks of `block=`, and is not written back; `zoned` or
//!   `zoned=4M`, a host-managed disk with zones of so many bytes, of which the first
//!   `conventional=1` are written in any order (of a file, a zone is written up to its
//!   last byte that is not 0); `type=5`, a peripheral device type;
//! - `readonly`: is write protected, and its file is not written; `bad=100` or
//!   `bad=100-107`: blocks that cannot be read until they are written, as often as
//!   there are;
//! - `attention=1`: so many commands answer UNIT ATTENTION first; `rots`: stores
//!   something else than it is given; `lies`: says that it has written and has not;
//!   `dead`: does not answer; `sticks=100`: answers so many commands and then no more;
//!   `vanish=100ms`: is pulled out so long after the boot. A command ends with
//!   CAM_CMD_TIMEOUT when its time is over;
//! - `script=FILE`: answers as the file has them, see [`ukernel::disk::script`];
//! - `mounted=/mnt`: it is in use; `busy=8`: another program has so many reads
//!   outstanding that do not end.

use crate::{
    command::{Command, read_write_cdb},
    errno::Errno,
    kernel::{Fd, Kernel, Mount},
    shared::{self, Hub},
};
use core::{ptr::NonNull, time::Duration};
use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};
use sys_bindings as sys;
use ukernel::{
    cam::{self, Device as CamDevice},
    devfs::{self, wait_until},
    disk::{
        Config, Kind, RamDisk,
        script::{Script, duration},
    },
    loader::Module,
    model::Model,
    process::{self, Process},
    sysctl, thread, user,
};

struct Umode {
    process: Process,
    disks: Vec<(Arc<CamDevice>, Arc<RamDisk>)>,
    module: Mutex<Option<Module>>,
    facts: Facts,
    hub: Option<Arc<Hub>>,
}

/// What a process sees of the machine beside its descriptors.
#[derive(Clone, Default)]
pub(crate) struct Facts {
    /// The names of the disks' own drivers, in their order.
    names: Vec<String>,
    mounted: Vec<(usize, String)>,
}

/// A disk as it is described.
#[derive(Debug, Default)]
struct Disk {
    config: Config,
    /// If it is said.
    size: Option<u64>,
    /// Bytes of a zone.
    zone: Option<u64>,
    conventional: u64,
    script: Option<PathBuf>,
    mounted: Option<String>,
    busy: usize,
    attentions: u32,
    rots: bool,
    dead: bool,
    vanish: Option<Duration>,
}

#[derive(Debug, Default)]
struct Description {
    disks: Vec<Disk>,
    unprivileged: bool,
    sysctls: Vec<(String, u64)>,
    replaces: bool,
    shared: Option<PathBuf>,
}

fn number(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = &text[digits.len()..];
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    digits.parse::<u64>().ok()?.checked_mul(*factor)
}

fn bytes(text: &str) -> Option<u64> {
    let units = [
        ("", 1),
        ("K", 1 << 10),
        ("M", 1 << 20),
        ("G", 1 << 30),
        ("T", 1 << 40),
    ];
    number(text, &units)
}

fn parse(text: &str) -> Result<Description, String> {
    let mut all = Description::default();
    for part in text.split(';').map(str::trim).filter(|p| !p.is_empty()) {
        let mut words = part.split(',');
        let first = words.next().unwrap_or_default();
        match first.split_once('=').unwrap_or((first, "")) {
            ("disk", file) => {
                let mut disk = Disk {
                    conventional: 1,
                    ..Disk::default()
                };
                disk.config.odd.keeps_time = true;
                disk.config.file = (!file.is_empty()).then(|| PathBuf::from(file));
                for word in words {
                    option(&mut disk, word)
                        .ok_or_else(|| format!("QPASS_UKERNEL: bad option {word:?}; {OPTIONS}"))?;
                }
                all.disks.push(disk);
            }
            ("shared", path) if !path.is_empty() => all.shared = Some(PathBuf::from(path)),
            ("unprivileged", "") => all.unprivileged = true,
            ("hw.qpass.replace", "1") => all.replaces = true,
            (name, value) if name.starts_with("kern.cam.qpass.") => {
                let value =
                    bytes(value).ok_or_else(|| format!("QPASS_UKERNEL: bad part {part:?}"))?;
                all.sysctls.push((name.into(), value));
            }
            _ => return Err(format!("QPASS_UKERNEL: bad part {part:?}; {PARTS}")),
        }
    }
    if all.disks.is_empty() && all.shared.is_none() {
        all.disks.push(Disk::default());
    }
    Ok(all)
}

/// What there is, for who gets it wrong.
const PARTS: &str = "there are disk, disk=FILE, shared=SOCKET, unprivileged, hw.qpass.replace=1, \
                     kern.cam.qpass.NAME=VALUE";
const OPTIONS: &str = "there are size= block= maxio= openings= unmapped latency= jitter= ata lba28 \
                       nvme tape zoned= conventional= type= readonly bad= attention= rots lies \
                       dead sticks= vanish= script= mounted= busy=";

/// `100` or `100-107`.
fn range(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

fn option(disk: &mut Disk, word: &str) -> Option<()> {
    let (name, value) = word.split_once('=').unwrap_or((word, ""));
    match name {
        "size" => disk.size = Some(bytes(value).filter(|n| *n != 0)?),
        "block" => {
            let block = bytes(value).filter(|n| (256..=1 << 16).contains(n))?;
            disk.config.odd.block = block as usize;
        }
        "ata" => disk.config.odd.ata = true,
        "lba28" => disk.config.odd.lba28 = true,
        "nvme" => disk.config.model = Model::NVME,
        "tape" => disk.config.odd.kind = Kind::Tape,
        "zoned" if value.is_empty() => disk.zone = Some(4 << 20),
        "zoned" => disk.zone = Some(bytes(value).filter(|n| *n != 0)?),
        "conventional" => disk.conventional = value.parse().ok()?,
        "type" => disk.config.odd.device_type = Some(value.parse().ok().filter(|n| *n < 32)?),
        "readonly" => disk.config.odd.readonly = true,
        "bad" => disk.config.odd.bad.push(range(value)?),
        "lies" => disk.config.odd.lies = true,
        "sticks" => disk.config.odd.sticks = Some(value.parse().ok()?),
        "script" => disk.script = Some(PathBuf::from(value)),
        "maxio" => disk.config.maxio = bytes(value)?.try_into().ok()?,
        "openings" => disk.config.openings = value.parse().ok().filter(|n| *n != 0)?,
        "latency" => disk.config.latency = duration(value)?,
        "jitter" => disk.config.jitter = duration(value)?,
        "unmapped" => disk.config.unmapped = true,
        "mounted" => disk.mounted = Some(value.into()),
        "busy" => disk.busy = value.parse().ok()?,
        "attention" => disk.attentions = value.parse().ok()?,
        "rots" => disk.rots = true,
        "vanish" => disk.vanish = Some(duration(value)?),
        "dead" => disk.dead = true,
        _ => return None,
    }
    Some(())
}

impl Disk {
    /// The driver that has it beside qpass(4).
    fn driver(&self) -> &'static str {
        let odd = &self.config.odd;
        match odd.device_type() {
            _ if odd.ata => "ada",
            _ if self.config.model.is_nvme => "nda",
            0x01 => "sa",
            0x05 => "cd",
            0x08 => "ch",
            0x0d => "ses",
            _ => "da",
        }
    }

    /// What it is when all words are known: its size, and its script.
    fn settle(&mut self) -> Result<(), String> {
        let block = self.config.odd.block as u64;
        let name = match &self.config.file {
            Some(file) => file.display().to_string(),
            None => "disk".into(),
        };
        let odd = &mut self.config.odd;
        if self.config.model.is_nvme && !block.is_power_of_two() {
            return Err(format!("{name}: block={block} is no size of an NVMe block"));
        }
        if self.config.model.is_nvme || odd.ata {
            self.config.unmapped |= self.config.model.is_nvme;
            if odd.kind != Kind::Disk || self.zone.is_some() {
                return Err(format!("{name}: nvme and ata are disks, and not zoned"));
            }
        }
        let there = match &self.config.file {
            Some(file) => match std::fs::metadata(file) {
                Ok(meta) => Some(meta.len()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => return Err(format!("{name}: {error}")),
            },
            None => None,
        };
        let size = match (self.size, there) {
            (Some(size), _) => size,
            (None, Some(len)) => len,
            (None, None) => 64 << 20,
        };
        let is_ours = self.size.is_none() && there.is_none();
        let size = if is_ours { size - size % block } else { size };
        if size == 0 || size % block != 0 {
            return Err(format!(
                "{name}: {size} bytes are no whole number of blocks of {block}"
            ));
        }
        self.config.size = usize::try_from(size).map_err(|_| format!("{name}: too large"))?;
        if let Some(zone) = self.zone {
            if zone % block != 0 {
                return Err(format!("{name}: zones of {zone} bytes are no whole blocks"));
            }
            odd.kind = Kind::Zoned(zone / block, self.conventional);
        }
        if let Some(file) = &self.script {
            odd.script = Some(Arc::new(Script::read(file)?));
        }
        Ok(())
    }
}

/// Boots the kernel that the environment describes, once in a process.
///
/// # Errors
/// In words: a description that is none, a module that does not load.
pub fn from_environment() -> Result<Arc<dyn Kernel>, String> {
    match std::env::var("QPASS_UKERNEL") {
        Ok(description) => boot(&description),
        Err(std::env::VarError::NotPresent) => boot(""),
        Err(error) => Err(format!("QPASS_UKERNEL: {error}")),
    }
}

/// Boots the kernel that is described.
///
/// # Errors
/// As [`from_environment`].
pub fn boot(description: &str) -> Result<Arc<dyn Kernel>, String> {
    static BOOTED: AtomicBool = AtomicBool::new(false);
    let mut description = parse(description)?;
    for disk in &mut description.disks {
        disk.settle().map_err(|e| format!("QPASS_UKERNEL: {e}"))?;
    }
    if let (Some(path), true) = (&description.shared, description.disks.is_empty()) {
        return shared::join(path).map_err(|e| {
            let file = path.display();
            format!("QPASS_UKERNEL: {file}: no process shares its kernel there: {e}")
        });
    }
    if description.shared.is_some() {
        // Whose requests they are is to be told.
        let pid = std::process::id() as i32;
        thread::OWN_PID.store(pid, Ordering::SeqCst);
        thread::current().set_pid(pid);
    }
    let file = std::env::var_os("QPASS_KO").map_or_else(
        || {
            let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
            PathBuf::from(root).join("target/kmod/freebsd-14/qpass.ko")
        },
        PathBuf::from,
    );
    let module = std::fs::read(&file).map_err(|e| {
        format!(
            "{}: {e}: build it with scripts/build.sh, or set QPASS_KO",
            file.display()
        )
    })?;
    if BOOTED.swap(true, Ordering::SeqCst) {
        return Err("the user-mode kernel is up already".into());
    }
    let mut kernel = Umode {
        process: Process::default(),
        disks: Vec::new(),
        module: Mutex::new(None),
        facts: Facts::default(),
        hub: None,
    };
    for (unit, disk) in description.disks.iter().enumerate() {
        let opened = RamDisk::open(&format!("QP{unit:04}"), disk.config.clone());
        let ram = opened.map_err(|e| {
            let file = disk.config.file.as_deref().unwrap_or("disk".as_ref());
            format!("{}: {e}", file.display())
        })?;
        // CAM's LUN of a namespace is its number, from 1 on.
        let lun = u64::from(ram.is_nvme());
        let device = cam::attach((0, unit as u32, lun), ram.clone());
        cam::name_periph(&device, disk.driver(), unit as u32);
        kernel.disks.push((device, ram));
        kernel.facts.names.push(format!("{}{unit}", disk.driver()));
        if let Some(place) = &disk.mounted {
            kernel.facts.mounted.push((unit, place.clone()));
        }
    }
    if description.replaces {
        sysctl::set_tunable("replace", 1);
    }
    cam::settle();
    let loaded = Module::load(&module).map_err(|e| format!("{}: {e}", file.display()))?;
    *kernel.module.lock().expect("the module") = Some(loaded);
    let driver = if description.replaces {
        "pass"
    } else {
        "qpass"
    };
    for unit in 0..kernel.disks.len() {
        let node = format!("{driver}{unit}");
        wait_until("the nodes are there", || devfs::exists(&node));
    }
    if let Some(path) = &description.shared {
        let hub = Hub::serve(path, kernel.facts.clone());
        kernel.hub = Some(hub.map_err(|e| format!("QPASS_UKERNEL: {}: {e}", path.display()))?);
    }
    let kernel = Arc::new(kernel);
    for (name, value) in &description.sysctls {
        let set = kernel.sysctl(name, Some(*value));
        set.map_err(|errno| format!("QPASS_UKERNEL: {name}: {errno}"))?;
    }
    for (unit, disk) in description.disks.iter().enumerate() {
        let ram = &kernel.disks[unit].1;
        if disk.busy != 0 {
            ram.stuck.store(true, Ordering::SeqCst);
            let node = format!("{driver}{unit}");
            keep_busy(&kernel, &node, disk.busy).map_err(|e| format!("{node}: busy: {e}"))?;
        }
        ram.stuck
            .store(disk.dead || disk.busy != 0, Ordering::SeqCst);
        ram.rots.store(disk.rots, Ordering::SeqCst);
        ram.unit_attentions.store(disk.attentions, Ordering::SeqCst);
    }
    for (unit, disk) in description.disks.iter().enumerate() {
        if let Some(after) = disk.vanish {
            let device = kernel.disks[unit].0.clone();
            std::thread::spawn(move || {
                std::thread::sleep(after);
                cam::detach(&device);
            });
        }
    }
    thread::PRIVILEGED.store(!description.unprivileged, Ordering::SeqCst);
    Ok(kernel)
}

/// Reads of somebody else's, queued and not reaped.
fn keep_busy(kernel: &Umode, node: &str, count: usize) -> Result<(), Errno> {
    const LEN: usize = 4096;
    let fd = kernel.open(&format!("/dev/{node}"))?;
    for i in 0..count {
        let ccb = kernel.map(size_of::<sys::ccb>())?.cast::<sys::ccb>();
        let data = kernel.map(LEN)?;
        let blocks = (LEN / 512) as u32;
        let command = Command::cdb(&read_write_cdb(false, i as u64 * 8, blocks));
        // SAFETY: fresh memory for both, which stays as long as the process.
        unsafe {
            command.fill(&mut *ccb.as_ptr(), i as u64);
            let io = &mut (*ccb.as_ptr()).csio;
            io.ccb_h.flags = sys::CAM_DIR_IN | sys::CAM_DEV_QFRZDIS;
            io.ccb_h.timeout = sys::CAM_TIME_INFINITY;
            (io.data_ptr, io.dxfer_len) = (data.as_ptr(), LEN as u32);
            kernel.ioctl(fd, sys::QPC_CAMIOQUEUE, ccb.as_ptr() as usize)?;
        }
    }
    Ok(())
}

fn result(result: Result<(), i32>) -> Result<(), Errno> {
    result.map_err(Errno::new)
}

impl Kernel for Umode {
    fn open(&self, path: &str) -> Result<Fd, Errno> {
        const O_RDWR: i32 = sys::O_RDWR as i32;
        self.process.open(path, O_RDWR).map_err(Errno::new)
    }

    fn close(&self, fd: Fd) {
        self.process.close(fd);
    }

    unsafe fn ioctl(&self, fd: Fd, request: u64, arg: usize) -> Result<(), Errno> {
        result(self.process.ioctl(fd, request, arg))
    }

    fn wait(&self, fd: Fd, timeout: Duration) -> Result<bool, Errno> {
        let events = self.process.poll(fd, sys::POLLIN as i16, Some(timeout));
        events.map(|events| events != 0).map_err(Errno::new)
    }

    fn map(&self, len: usize) -> Result<NonNull<u8>, Errno> {
        NonNull::new(user::map(len)).ok_or(Errno::ENOMEM)
    }

    unsafe fn unmap(&self, at: NonNull<u8>, len: usize) {
        // SAFETY: the caller's word.
        unsafe { user::unmap(at.as_ptr(), len) };
    }

    fn nodes(&self) -> Result<Vec<String>, Errno> {
        Ok(devfs::names())
    }

    fn sysctl(&self, name: &str, new: Option<u64>) -> Result<u64, Errno> {
        self.facts.sysctl(name, new)
    }

    fn geom(&self) -> Result<String, Errno> {
        Ok(self.facts.geom())
    }

    fn mounts(&self) -> Result<Vec<Mount>, Errno> {
        Ok(self.facts.mounts())
    }
}

impl Facts {
    pub(crate) fn sysctl(&self, name: &str, new: Option<u64>) -> Result<u64, Errno> {
        let own = name.strip_prefix("kern.cam.qpass.").ok_or(Errno::ENOENT)?;
        match sysctl::value(own) {
            Some(_) if new.is_some() => Err(Errno::EPERM),
            Some(value) => Ok(value),
            None => sysctl::number(own, new).map_err(Errno::new),
        }
    }

    pub(crate) fn geom(&self) -> String {
        use std::fmt::Write;
        let mut xml = String::from("<mesh><class id=\"0x1\"><name>DISK</name>");
        let mode = |unit: usize| match self.mounted.iter().any(|(u, _)| *u == unit) {
            true => "r1w1e1",
            false => "r0w0e0",
        };
        for (unit, name) in self.names.iter().enumerate() {
            let mode = mode(unit);
            let _ = write!(
                xml,
                "<geom id=\"0x10{unit}\"><class ref=\"0x1\"/><name>{name}</name>\
                 <provider id=\"0x20{unit}\"><geom ref=\"0x10{unit}\"/><mode>{mode}</mode>\
                 <name>{name}</name></provider></geom>"
            );
        }
        xml.push_str("</class><class id=\"0x2\"><name>VFS</name>");
        for (unit, _) in &self.mounted {
            let name = &self.names[*unit];
            let _ = write!(
                xml,
                "<geom id=\"0x30{unit}\"><class ref=\"0x2\"/><name>ffs.{name}</name>\
                 <consumer id=\"0x40{unit}\"><geom ref=\"0x30{unit}\"/>\
                 <provider ref=\"0x20{unit}\"/><mode>r1w1e1</mode></consumer></geom>"
            );
        }
        xml.push_str("</class></mesh>");
        xml
    }

    pub(crate) fn mounts(&self) -> Vec<Mount> {
        let mount = |(unit, on): &(usize, String)| Mount {
            from: format!("/dev/{}", self.names[*unit]),
            on: on.clone(),
        };
        self.mounted.iter().map(mount).collect()
    }
}

impl Drop for Umode {
    fn drop(&mut self) {
        for (_, disk) in &self.disks {
            disk.unstick();
        }
        if let Some(hub) = &self.hub {
            hub.close();
        }
        self.process.exit();
        let module = self.module.get_mut().map(Option::take);
        if let Ok(Some(module)) = module {
            process::unload(module);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_described_in_words() {
        let all = parse("disk=/tmp/a,size=1G,latency=2ms,unmapped;disk,mounted=/mnt; unprivileged")
            .expect("good");
        assert_eq!(all.disks.len(), 2);
        assert!(all.unprivileged && all.disks[0].config.unmapped);
        assert_eq!(all.disks[0].size, Some(1 << 30));
        assert_eq!(all.disks[0].config.latency, Duration::from_millis(2));
        assert_eq!(all.disks[1].mounted.as_deref(), Some("/mnt"));
        assert_eq!(parse("").expect("a default").disks.len(), 1);
        for bad in [
            "tape",
            "disk,bad=7-3",
            "shared=",
            "disk,size=x",
            "disk,openings=0",
            "disk,what",
        ] {
            let error = parse(bad).expect_err(bad);
            assert!(error.starts_with("QPASS_UKERNEL: bad "), "{error}");
        }
    }
}
