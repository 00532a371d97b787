//! A SIM with a RAM disk behind it: it answers on threads of its own, after a
//! while and out of order if it is told to, and it can be pulled out.

mod answer;
mod ata;
mod data;
mod odd;
pub mod script;
mod scripted;
mod tape;
mod zones;

pub use data::{PHYSICAL, UNMAPPED};
pub use odd::{Kind, Odd};

use crate::{
    busdma::{Loaded, Map},
    cam::{self, PathInq, Sim},
    disk::{tape::Tape, zones::Zones},
    model::{self, Aborts, Io, Model},
    nvme, scsi, sys,
    thread::broken,
};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
    fs::{File, TryLockError},
    io,
    ops::{Deref, DerefMut},
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// What kind of disk it is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bytes of storage.
    pub size: usize,
    /// The largest transfer that the SIM says it takes; 0 says nothing.
    pub maxio: u32,
    /// Commands that it takes at a time.
    pub openings: usize,
    /// How long a command takes at least.
    pub latency: Duration,
    /// How much longer it may take; commands overtake each other.
    pub jitter: Duration,
    /// Threads that carry out commands.
    pub threads: usize,
    /// Takes unmapped I/O.
    pub unmapped: bool,
    /// Is on a SATA bus.
    pub sata: bool,
    /// There, takes CDBs of 12 bytes.
    pub atapi: bool,
    /// Where its contents are kept from one machine to the next; else they
    /// begin as zeroes and go with it.
    pub file: Option<PathBuf>,
    /// What kind of SIM it is behind.
    pub model: Model,
    /// What is odd about it.
    pub odd: Odd,
}

impl Config {
    /// A disk behind a SIM of a kind, which takes unmapped I/O.
    pub fn of(model: Model) -> Self {
        Config {
            model,
            unmapped: true,
            ..Config::default()
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            size: 64 << 20,
            maxio: 1 << 20,
            openings: 32,
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            threads: 2,
            unmapped: false,
            sata: false,
            atapi: false,
            file: None,
            model: Model::PLAIN,
            odd: Odd::NONE,
        }
    }
}

/// The contents.
enum Blocks {
    Memory(memmap2::MmapMut),
    /// Mapped; the file stays open, as its lock goes with it.
    File(memmap2::MmapMut, #[allow(dead_code)] File),
}

impl Blocks {
    /// # Errors
    /// Of the file: it is made if it is not there, has at least as many bytes as the
    /// disk, is changed by nothing but writes to the disk, and is no other process's.
    fn new(config: &Config) -> io::Result<Self> {
        let Some(path) = &config.file else {
            // What is not written takes no memory: it may be larger than the machine's.
            let mut options = memmap2::MmapOptions::new();
            options.len(config.size).no_reserve_swap();
            return Ok(Blocks::Memory(options.map_anon()?));
        };
        let is_new = !path.exists();
        let file = File::options()
            .read(true)
            .write(!config.odd.readonly)
            .create(!config.odd.readonly)
            .truncate(false)
            .open(path)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::other("another process has it as its disk"),
            TryLockError::Error(error) => error,
        })?;
        let len = file.metadata()?.len();
        if is_new {
            file.set_len(config.size as u64)?;
        } else if len < config.size as u64 {
            return Err(io::Error::other(format!(
                "has {len} bytes, and the disk is to have {}",
                config.size
            )));
        }
        let mut options = memmap2::MmapOptions::new();
        options.len(config.size);
        // SAFETY: the file is locked, and its length changes only if others do that.
        let map = unsafe {
            match config.odd.readonly {
                true => options.map_copy(&file),
                false => options.map_mut(&file),
            }
        };
        Ok(Blocks::File(map?, file))
    }
}

impl Deref for Blocks {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Blocks::Memory(bytes) => bytes,
            Blocks::File(bytes, _) => bytes,
        }
    }
}

impl DerefMut for Blocks {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Blocks::Memory(bytes) => bytes,
            Blocks::File(bytes, _) => bytes,
        }
    }
}

struct Job {
    due: Instant,
    order: u64,
    ccb: usize,
    load: Load,
    /// It ends as aborted.
    aborted: bool,
    /// The script's rule for it.
    rule: Option<usize>,
    /// When its time is over, where the disk keeps it.
    expires: Option<Instant>,
}

/// What a SIM has made of a command's memory before the device gets it.
enum Load {
    /// The device gets the memory as it is.
    Direct,
    /// It gets these segments.
    Mapped(Map),
    /// It waits for bounce pages.
    Waits,
    /// It failed: the device gets nothing.
    Failed(sys::cam_status),
}

impl PartialEq for Job {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Job {}
impl PartialOrd for Job {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Job {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // What is aborted first: a stuck disk gives back nothing else.
        (!self.aborted, self.due, self.order).cmp(&(!other.aborted, other.due, other.order))
    }
}

/// The disk.
pub struct RamDisk {
    config: Config,
    serial: String,
    blocks: Mutex<Blocks>,
    jobs: Mutex<BinaryHeap<Reverse<Job>>>,
    work: Condvar,
    order: AtomicU64,
    pulled: AtomicBool,
    /// How many of the next commands answer UNIT ATTENTION.
    pub unit_attentions: AtomicU32,
    /// Claims that everything was moved, whatever was.
    pub lies_about_residual: AtomicBool,
    /// Keeps commands without answering them.
    pub stuck: AtomicBool,
    /// Stores another first byte than it is given.
    pub rots: AtomicBool,
    /// Cannot give a command back.
    pub cannot_abort: AtomicBool,
    /// The last NVMe command came with MPTR or DPTR set.
    pub nvme_addresses_seen: AtomicBool,
    /// Commands carried out.
    pub commands: AtomicU64,
    /// The last command's `timeout`, in milliseconds, and `retry_count`.
    pub last_patience: Mutex<(u32, u16)>,
    /// The data of the last command that had an opcode with data.
    pub last_io: Mutex<Option<Io>>,
    /// The last status that a controller answered, but for success.
    pub nvme_status: Mutex<Option<u16>>,
    /// Identify Namespace data, where it is not as usual.
    pub identify: Mutex<Option<Vec<u8>>>,
    /// What it says was not moved by a command that ended well.
    pub residual: Mutex<Option<u32>>,
    own: Weak<RamDisk>,
    /// Blocks that cannot be read.
    bad: Mutex<Vec<(u64, u64)>>,
    tape: Mutex<Tape>,
    zones: Mutex<Option<Zones>>,
    /// Commands that it answers until it sticks.
    answers_left: AtomicU64,
    /// XPT_ABORTs that it answers when it is told, and what.
    unanswered: Mutex<Vec<(usize, sys::cam_status)>>,
    /// The SIM's own lock.
    lock: Mutex<()>,
    /// Control blocks of the commands that it has.
    blocks_of_control: Mutex<HashSet<usize>>,
}

impl RamDisk {
    /// Makes a disk, and the threads that serve it.
    ///
    /// # Panics
    /// When its file cannot be had; see [`open`](Self::open).
    pub fn new(serial: &str, config: Config) -> Arc<Self> {
        RamDisk::open(serial, config).expect("the disk's file")
    }

    /// The same, if its file can be had.
    ///
    /// # Errors
    /// That of the file.
    pub fn open(serial: &str, config: Config) -> io::Result<Arc<Self>> {
        let threads = config.threads;
        let blocks = Blocks::new(&config)?;
        let odd = &config.odd;
        let zones = match odd.kind {
            Kind::Zoned(len, conventional) => {
                let written = match config.file {
                    Some(_) => &blocks[..],
                    None => &[],
                };
                Some(Zones::of(
                    written,
                    config.size,
                    odd.block,
                    len,
                    conventional,
                ))
            }
            _ => None,
        };
        let tape = match odd.kind {
            Kind::Tape if config.file.is_some() => Tape::of(&blocks, odd.block),
            _ => Tape::default(),
        };
        let disk = Arc::new_cyclic(|own| RamDisk {
            own: own.clone(),
            blocks: Mutex::new(blocks),
            bad: Mutex::new(config.odd.bad.clone()),
            tape: Mutex::new(tape),
            zones: Mutex::new(zones),
            answers_left: AtomicU64::new(config.odd.sticks.unwrap_or(u64::MAX)),
            config,
            serial: serial.into(),
            jobs: Mutex::default(),
            work: Condvar::new(),
            order: AtomicU64::new(0),
            pulled: AtomicBool::new(false),
            unit_attentions: AtomicU32::new(0),
            lies_about_residual: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            rots: AtomicBool::new(false),
            cannot_abort: AtomicBool::new(false),
            nvme_addresses_seen: AtomicBool::new(false),
            commands: AtomicU64::new(0),
            last_patience: Mutex::default(),
            last_io: Mutex::default(),
            nvme_status: Mutex::default(),
            identify: Mutex::default(),
            residual: Mutex::default(),
            unanswered: Mutex::default(),
            lock: Mutex::default(),
            blocks_of_control: Mutex::default(),
        });
        for i in 0..threads {
            let disk = disk.clone();
            std::thread::Builder::new()
                .name(format!("sim {serial} {i}"))
                .spawn(move || disk.serve())
                .expect("a thread");
        }
        if disk.config.odd.keeps_time {
            let disk = disk.clone();
            let watch = std::thread::Builder::new().name(format!("sim {serial} time"));
            watch.spawn(move || disk.keep_time()).expect("a thread");
        }
        Ok(disk)
    }

    /// Ends what takes too long, as a controller does.
    fn keep_time(&self) {
        while !self.pulled.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
            let now = Instant::now();
            let mut over = Vec::new();
            self.jobs.lock().unwrap().retain(|Reverse(job)| {
                let is_over = job.expires.is_some_and(|end| end <= now);
                if is_over {
                    over.push(job.ccb);
                }
                !is_over
            });
            for ccb in over {
                let ccb = ccb as *mut sys::ccb;
                self.forget(ccb);
                cam::done_with(ccb, sys::CAM_CMD_TIMEOUT, true);
            }
        }
    }

    /// Answers the XPT_ABORTs that wait for this; how many there were.
    pub fn answer_aborts(&self) -> usize {
        let _lock = self.lock.lock().unwrap();
        let unanswered = core::mem::take(&mut *self.unanswered.lock().unwrap());
        for (ccb, status) in &unanswered {
            let ccb = *ccb as *mut sys::ccb;
            model::check_abort(ccb);
            set_status(ccb, *status);
        }
        unanswered.len()
    }

    /// A part of its contents, in bytes.
    pub fn contents(&self, at: usize, len: usize) -> Vec<u8> {
        self.blocks.lock().unwrap()[at..at + len].to_vec()
    }

    /// Sets a part of its contents.
    pub fn put(&self, at: usize, bytes: &[u8]) {
        self.blocks.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Whether it is an NVMe namespace.
    pub fn is_nvme(&self) -> bool {
        self.config.model.is_nvme
    }

    /// Sets every byte of it.
    pub fn fill(&self, byte: u8) {
        self.blocks.lock().unwrap().fill(byte);
    }

    /// Lets a stuck disk answer again.
    pub fn unstick(&self) {
        self.stuck.store(false, Ordering::SeqCst);
        self.answers_left.store(u64::MAX, Ordering::SeqCst);
        let mut jobs = self.jobs.lock().unwrap();
        // What a script leaves without an answer gets one.
        let mut all = core::mem::take(&mut *jobs).into_vec();
        for Reverse(job) in &mut all {
            job.due = job.due.min(Instant::now());
        }
        *jobs = all.into();
        self.work.notify_all();
    }

    /// Whether it answers nothing: a stuck disk still gives back what a silent
    /// abort has ended.
    fn is_stuck(&self, jobs: &BinaryHeap<Reverse<Job>>) -> bool {
        let stuck =
            self.stuck.load(Ordering::SeqCst) || self.answers_left.load(Ordering::SeqCst) == 0;
        stuck && jobs.peek().is_none_or(|Reverse(job)| !job.aborted)
    }

    fn serve(&self) {
        let mut jobs = self.jobs.lock().unwrap();
        loop {
            let pulled = self.pulled.load(Ordering::SeqCst);
            let now = Instant::now();
            let due = match jobs.peek() {
                None if pulled => return,
                _ if self.is_stuck(&jobs) && !pulled => None,
                None => None,
                Some(Reverse(job)) => Some(job.due),
            };
            jobs = match due {
                None => self.work.wait(jobs).unwrap(),
                Some(due) if due > now && !pulled => {
                    self.work.wait_timeout(jobs, due - now).unwrap().0
                }
                Some(_) => {
                    let Reverse(job) = jobs.pop().expect("peeked");
                    let left = |n: u64| (n != u64::MAX).then(|| n.saturating_sub(1));
                    let all = Ordering::SeqCst;
                    let _ = self.answers_left.fetch_update(all, all, left);
                    drop(jobs);
                    self.answer(job, pulled);
                    self.jobs.lock().unwrap()
                }
            };
        }
    }

    fn answer(&self, job: Job, pulled: bool) {
        let ccb = job.ccb as *mut sys::ccb;
        self.commands.fetch_add(1, Ordering::Relaxed);
        self.forget(ccb);
        // SAFETY: the CCB is the SIM's until it is done.
        let hdr = unsafe { &mut (*ccb).ccb_h };
        *self.last_patience.lock().unwrap() = (hdr.timeout, hdr.retry_count);
        if pulled || job.aborted {
            hdr.status = match pulled {
                true => sys::CAM_DEV_NOT_THERE,
                false => sys::CAM_REQ_ABORTED,
            };
            drop(job.load);
            cam::done(ccb, true);
            return;
        }
        let io = Io::of(ccb);
        let mut map = match (job.load, &io) {
            (Load::Failed(status), _) => {
                hdr.status = status;
                cam::done(ccb, true);
                return;
            }
            (Load::Mapped(map), _) => Some(map),
            (Load::Waits, Some(io)) => match self.load(io, true) {
                Load::Mapped(map) => Some(map),
                _ => broken("a load that waits for bounce pages ends without"),
            },
            _ => None,
        };
        let good = match hdr.func_code {
            _ if job.rule.is_some() => {
                self.answer_scripted(ccb, job.rule, io.as_ref(), map.as_ref())
            }
            // SAFETY: the CCB is what its opcode says.
            sys::XPT_SCSI_IO | sys::XPT_CONT_TARGET_IO => unsafe {
                self.answer_scsi(&mut (*ccb).csio, map.as_ref())
            },
            // SAFETY: as above.
            sys::XPT_ATA_IO => unsafe { self.answer_ata(&mut (*ccb).ataio, map.as_ref()) },
            // SAFETY: as above.
            sys::XPT_NVME_IO | sys::XPT_NVME_ADMIN => unsafe {
                self.answer_nvme(&mut (*ccb).nvmeio, io.as_ref(), map.as_ref())
            },
            // SAFETY: as above.
            sys::XPT_SMP_IO => unsafe { answer::answer_smp(&mut (*ccb).smpio) },
            // SAFETY: as above.
            sys::XPT_MMC_IO => unsafe { self.answer_mmc(&mut (*ccb).mmcio) },
            sys::XPT_RESET_DEV => {
                hdr.status = sys::CAM_REQ_CMP;
                true
            }
            _ => {
                hdr.status = sys::CAM_REQ_INVALID;
                false
            }
        };
        if let Some(map) = &mut map
            && hdr.flags & sys::CAM_DIR_MASK != sys::CAM_DIR_OUT
        {
            map.postread();
        }
        drop(map);
        if let Some(io) = &io
            && good
        {
            self.config.model.patch(io);
        }
        cam::done(ccb, !good);
    }

    /// The command's control block goes, and the pointer to it.
    fn forget(&self, ccb: *mut sys::ccb) {
        if self.config.model.aborts == Aborts::FollowsPrivate {
            self.blocks_of_control
                .lock()
                .unwrap()
                .remove(&(ccb as usize));
            set_private(ccb, 0);
        }
    }

    /// Loads a command's memory as the SIM's tag says.
    fn load(&self, io: &Io, waits: bool) -> Load {
        let Some(tag) = &self.config.model.tag else {
            return Load::Direct;
        };
        if !io.has_data() || io.data.is_null() {
            return Load::Direct;
        }
        let runs = data::runs(self.config.unmapped, io.flags, io.data, io.segments, io.len);
        let writes = io.flags & sys::CAM_DIR_MASK != sys::CAM_DIR_IN;
        match Map::load(tag, &runs, writes, waits) {
            Loaded::Now(map) => Load::Mapped(map),
            Loaded::Deferred if tag.lockfunc => Load::Waits,
            // nvme(4) takes EINPROGRESS for an error, and fails the tracker.
            Loaded::Deferred if self.config.model.is_nvme => {
                Load::Failed(sys::CAM_NVME_STATUS_ERROR)
            }
            Loaded::Deferred => Load::Failed(sys::CAM_REQ_CMP_ERR),
        }
    }
}

/// Longer than anybody waits.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);

impl RamDisk {
    /// Its standard INQUIRY data.
    fn standard(&self) -> Vec<u8> {
        let odd = &self.config.odd;
        if let Some(data) = odd.script.as_ref().and_then(|script| script.inquiry()) {
            return data.to_vec();
        }
        let mut data = scsi::standard_inquiry().to_vec();
        data[0] = odd.device_type();
        if odd.kind == Kind::Tape {
            data[1] = 0x80;
            data[16..32].copy_from_slice(b"RAM TAPE        ");
        }
        data
    }

    /// Its Identify Namespace data.
    fn namespace_data(&self) -> Vec<u8> {
        let block = self.config.odd.block;
        let usual = || nvme::namespace_of(self.config.size / block, block);
        let other = self.identify.lock().unwrap().clone();
        let mut data = other.unwrap_or_else(usual);
        if let Some(script) = &self.config.odd.script {
            script.change_namespace(&mut data);
        }
        data
    }

    /// The script's rule for a command.
    fn rule(&self, io: &Io) -> Option<usize> {
        let script = self.config.odd.script.as_ref()?;
        let kind = match io.func_code {
            sys::XPT_SCSI_IO => script::Kind::Scsi,
            sys::XPT_ATA_IO => script::Kind::Ata,
            sys::XPT_NVME_IO => script::Kind::Nvme,
            sys::XPT_NVME_ADMIN => script::Kind::Admin,
            _ => return None,
        };
        let mut command = io.command;
        if kind == script::Kind::Ata {
            // Without CAM's flags: command, features, LBA 7:0, 15:8, 23:16, device, count.
            let [_, command_register, features, low, mid, high, device, ..] = io.command;
            let count = io.command[11];
            let registers = [command_register, features, low, mid, high, device, count];
            command = [0; 64];
            command[..7].copy_from_slice(&registers);
        }
        script.rule(kind, &command)
    }

    /// Answers an XPT_ABORT as virtio_scsi(4) does, with the SIM's lock held
    /// until it is through with the CCB.
    fn read_on(self: &RamDisk, ccb: usize, status: sys::cam_status, long: Duration) {
        let Some(this) = self.own.upgrade() else {
            return;
        };
        let answer = move || {
            let _lock = this.lock.lock().unwrap();
            std::thread::sleep(Duration::from_micros(300));
            let ccb = ccb as *mut sys::ccb;
            set_status(ccb, status);
            let end = Instant::now() + long;
            while Instant::now() < end {
                std::thread::sleep(Duration::from_micros(100));
                model::check_abort(ccb);
            }
        };
        let name = "vtscsi".into();
        std::thread::Builder::new()
            .name(name)
            .spawn(answer)
            .expect("a thread");
    }
}

/// The word of a CCB's header that is the SIM's, where it has its control block.
fn private(ccb: *mut sys::ccb) -> usize {
    // SAFETY: a CCB that CAM has given to the SIM, or is about to.
    unsafe { (*ccb).ccb_h.sim_priv.entries[0].field as usize }
}

/// A CCB's timeout, in milliseconds.
fn timeout_of(ccb: *mut sys::ccb) -> u32 {
    // SAFETY: the CCB is the SIM's until it is done.
    unsafe { (*ccb).ccb_h.timeout }
}

fn set_private(ccb: *mut sys::ccb, block: usize) {
    // SAFETY: the CCB is the SIM's until it is done.
    unsafe { (*ccb).ccb_h.sim_priv.entries[0].field = block as u64 };
}

/// Answers an XPT_ABORT.
fn set_status(ccb: *mut sys::ccb, status: sys::cam_status) {
    // SAFETY: the CCB is the SIM's until now; if it was freed, the poison tells.
    unsafe { AtomicU32::from_ptr(&raw mut (*ccb).ccb_h.status) }.store(status, Ordering::Release);
}

impl Sim for RamDisk {
    fn abort(&self, ccb: *mut sys::ccb) -> bool {
        let _lock = self.lock.lock().unwrap();
        if self.config.model.aborts == Aborts::FollowsPrivate {
            let block = private(ccb);
            let is_there = self.blocks_of_control.lock().unwrap().contains(&block);
            if block == 0 || !is_there {
                broken("a SIM follows a null or stale pointer in the CCB that is to be aborted");
            }
        }
        if self.cannot_abort.load(Ordering::SeqCst) {
            return false;
        }
        let mut jobs = self.jobs.lock().unwrap();
        if let Aborts::NeverAnswers(after) = self.config.model.aborts {
            let Some(after) = after else { return false };
            let mut all = core::mem::take(&mut *jobs).into_vec();
            for Reverse(job) in &mut all {
                if job.ccb == ccb as usize {
                    job.aborted = true;
                    job.due = Instant::now() + after;
                }
            }
            *jobs = all.into();
            self.work.notify_all();
            return true;
        }
        let before = jobs.len();
        jobs.retain(|Reverse(job)| job.ccb != ccb as usize);
        if jobs.len() == before {
            return false;
        }
        drop(jobs);
        self.blocks_of_control
            .lock()
            .unwrap()
            .remove(&(ccb as usize));
        cam::done_with(ccb, sys::CAM_REQ_ABORTED, true);
        true
    }

    fn answers_abort(&self, ccb: *mut sys::ccb, status: sys::cam_status) -> bool {
        match self.config.model.aborts {
            Aborts::Answers => false,
            Aborts::NeverAnswers(_) => true,
            Aborts::AnswersWhenTold => {
                self.unanswered.lock().unwrap().push((ccb as usize, status));
                true
            }
            Aborts::FollowsPrivate => {
                set_status(ccb, status);
                true
            }
            Aborts::ReadsOn(long) => {
                self.read_on(ccb as usize, status, long);
                true
            }
        }
    }

    fn start(&self, ccb: *mut sys::ccb) {
        let order = self.order.fetch_add(1, Ordering::Relaxed);
        // Multiplied to look random, and the same in every run.
        let share = (order.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32;
        let jitter = (self.config.jitter.as_nanos() as u64 * u64::from(share)) >> 24;
        let mut load = Load::Direct;
        let mut due = Instant::now() + self.config.latency + Duration::from_nanos(jitter);
        let mut rule = None;
        if let Some(io) = Io::of(ccb) {
            self.config.model.check(&io);
            *self.last_io.lock().unwrap() = Some(io);
            load = self.load(&io, false);
            rule = self.rule(&io);
        }
        if let Some(rule) = rule.and_then(|rule| Some(self.config.odd.script.as_ref()?.at(rule))) {
            due += rule.after.unwrap_or(Duration::ZERO);
            if rule.hangs {
                due += FOR_EVER;
            }
        }
        let timeout = timeout_of(ccb);
        let has_time = self.config.odd.keeps_time
            && !matches!(timeout, sys::CAM_TIME_DEFAULT | sys::CAM_TIME_INFINITY);
        let expires = has_time.then(|| Instant::now() + Duration::from_millis(timeout.into()));
        let lock = self.lock.lock().unwrap();
        if self.config.model.aborts == Aborts::FollowsPrivate {
            self.blocks_of_control.lock().unwrap().insert(ccb as usize);
            set_private(ccb, ccb as usize);
        }
        self.jobs.lock().unwrap().push(Reverse(Job {
            due,
            order,
            ccb: ccb as usize,
            load,
            aborted: false,
            rule,
            expires,
        }));
        drop(lock);
        self.work.notify_one();
        // The threads of a pulled disk leave when it has nothing to answer.
        while self.pulled.load(Ordering::SeqCst) {
            let Some(Reverse(job)) = self.jobs.lock().unwrap().pop() else {
                break;
            };
            self.answer(job, true);
        }
    }

    fn path_inq(&self) -> PathInq {
        let _lock = self.lock.lock().unwrap();
        PathInq {
            maxio: self.config.maxio,
            hba_misc: if self.config.unmapped {
                sys::PIM_UNMAPPED
            } else {
                0
            },
            transport: if self.config.sata || self.config.odd.ata {
                sys::XPORT_SATA
            } else if self.config.model.is_nvme {
                sys::XPORT_NVME
            } else {
                sys::XPORT_UNKNOWN
            },
        }
    }

    fn name(&self) -> &str {
        self.config.model.name
    }

    fn config(&self) -> u16 {
        if self.config.atapi { 0x8580 } else { 0x0040 }
    }

    fn openings(&self) -> usize {
        self.config.openings
    }

    fn namespace(&self) -> Option<Vec<u8>> {
        let is_nvme = self.config.model.is_nvme;
        is_nvme.then(|| self.namespace_data())
    }

    fn controller(&self) -> Option<Vec<u8>> {
        let is_nvme = self.config.model.is_nvme;
        is_nvme.then(|| nvme::controller(&self.serial))
    }

    fn identify(&self) -> Option<Vec<u8>> {
        self.config.odd.ata.then(|| self.identify_data())
    }

    fn inquiry(&self) -> [u8; 36] {
        let data = self.standard();
        std::array::from_fn(|i| data.get(i).copied().unwrap_or(0))
    }

    fn serial(&self) -> &str {
        &self.serial
    }

    fn is_ordinary(&self) -> bool {
        let odd = &self.config.odd;
        let is_disk = odd.kind == Kind::Disk && odd.block == scsi::BLOCK && odd.bad.is_empty();
        is_disk && odd.script.is_none()
    }

    fn pull(&self) {
        self.pulled.store(true, Ordering::SeqCst);
        let _jobs = self.jobs.lock().unwrap();
        self.work.notify_all();
    }
}
