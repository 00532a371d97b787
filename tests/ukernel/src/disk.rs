//! A SIM with a RAM disk behind it: it answers on threads of its own, after a
//! while and out of order if it is told to, and it can be pulled out.

mod answer;
mod data;

pub use data::{PHYSICAL, UNMAPPED};

use crate::{
    busdma::{Loaded, Map},
    cam::{self, PathInq, Sim},
    model::{self, Aborts, Io, Model},
    nvme, scsi, sys,
    thread::broken,
};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
    fs::File,
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
        }
    }
}

/// The contents.
enum Blocks {
    Memory(Vec<u8>),
    File(memmap2::MmapMut),
}

impl Blocks {
    /// # Errors
    /// Of the file: it is made, or is as long as the disk.
    fn new(config: &Config) -> io::Result<Self> {
        let Some(path) = &config.file else {
            return Ok(Blocks::Memory(vec![0; config.size]));
        };
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        file.set_len(config.size as u64)?;
        // SAFETY: a disk's file is its own; nobody else is told of it.
        Ok(Blocks::File(unsafe { memmap2::MmapMut::map_mut(&file)? }))
    }
}

impl Deref for Blocks {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Blocks::Memory(bytes) => bytes,
            Blocks::File(bytes) => bytes,
        }
    }
}

impl DerefMut for Blocks {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Blocks::Memory(bytes) => bytes,
            Blocks::File(bytes) => bytes,
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
        let blocks = Mutex::new(Blocks::new(&config)?);
        let disk = Arc::new_cyclic(|own| RamDisk {
            own: own.clone(),
            blocks,
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
        Ok(disk)
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
        let _jobs = self.jobs.lock().unwrap();
        self.work.notify_all();
    }

    /// Whether it answers nothing: a stuck disk still gives back what a silent
    /// abort has ended.
    fn is_stuck(&self, jobs: &BinaryHeap<Reverse<Job>>) -> bool {
        self.stuck.load(Ordering::SeqCst) && jobs.peek().is_none_or(|Reverse(job)| !job.aborted)
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

impl RamDisk {
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
        if let Some(io) = Io::of(ccb) {
            self.config.model.check(&io);
            *self.last_io.lock().unwrap() = Some(io);
            load = self.load(&io, false);
        }
        let lock = self.lock.lock().unwrap();
        if self.config.model.aborts == Aborts::FollowsPrivate {
            self.blocks_of_control.lock().unwrap().insert(ccb as usize);
            set_private(ccb, ccb as usize);
        }
        self.jobs.lock().unwrap().push(Reverse(Job {
            due: Instant::now() + self.config.latency + Duration::from_nanos(jitter),
            order,
            ccb: ccb as usize,
            load,
            aborted: false,
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
            transport: if self.config.sata {
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
        let blocks = self.config.size / scsi::BLOCK;
        let usual = || nvme::namespace(blocks);
        let other = self.identify.lock().unwrap().clone();
        let is_nvme = self.config.model.is_nvme;
        is_nvme.then(|| other.unwrap_or_else(usual))
    }

    fn inquiry(&self) -> [u8; 36] {
        scsi::standard_inquiry()
    }

    fn serial(&self) -> &str {
        &self.serial
    }

    fn pull(&self) {
        self.pulled.store(true, Ordering::SeqCst);
        let _jobs = self.jobs.lock().unwrap();
        self.work.notify_all();
    }
}
