//! A SIM with a RAM disk behind it: it answers on threads of its own, after a
//! while and out of order if it is told to, and it can be pulled out.

use crate::{
    busdma::{Loaded, Map, Run},
    cam::{self, PathInq, Sim},
    model::{self, Aborts, Io, Lists, Model},
    nvme,
    scsi::{self, Data, Disk},
    sys,
    thread::broken,
    vm,
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
        (self.due, self.order).cmp(&(other.due, other.order))
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
    /// What it says was not moved by a command that ended well.
    pub residual: Mutex<Option<u32>>,
    own: Weak<RamDisk>,
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
            residual: Mutex::default(),
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

    /// A part of its contents, in bytes.
    pub fn contents(&self, at: usize, len: usize) -> Vec<u8> {
        self.blocks.lock().unwrap()[at..at + len].to_vec()
    }

    /// Sets a part of its contents.
    pub fn put(&self, at: usize, bytes: &[u8]) {
        self.blocks.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
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
            sys::XPT_SMP_IO => unsafe { answer_smp(&mut (*ccb).smpio) },
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
        let runs = runs(self.config.unmapped, io.flags, io.data, io.segments, io.len);
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

    fn gather(
        &self,
        map: Option<&Map>,
        flags: u32,
        data: *mut u8,
        segments: u16,
        len: usize,
    ) -> Gathered {
        if let Some(map) = map {
            return Gathered::of(map.parts(), len);
        }
        let mut parts = Vec::new();
        if flags & sys::CAM_DIR_MASK != sys::CAM_DIR_NONE && len != 0 && !data.is_null() {
            for run in runs(self.config.unmapped, flags, data, segments, len) {
                parts.extend(run.parts);
            }
        }
        Gathered::of(parts, len)
    }

    /// What is said to be left of a transfer of which that much is.
    fn resid(&self, left: usize) -> u32 {
        if self.lies_about_residual.load(Ordering::Relaxed) {
            return 0;
        }
        self.residual.lock().unwrap().unwrap_or(left as u32)
    }

    /// READ DMA EXT, WRITE DMA EXT, READ and WRITE FPDMA QUEUED, IDENTIFY DEVICE,
    /// CHECK POWER MODE (ACS-4); all else is aborted.
    fn answer_ata(&self, io: &mut sys::ccb_ataio, map: Option<&Map>) -> bool {
        let len = io.dxfer_len as usize;
        let lba = usize::from(io.cmd.lba_low)
            | usize::from(io.cmd.lba_mid) << 8
            | usize::from(io.cmd.lba_high) << 16;
        let at = lba * scsi::BLOCK;
        let mut copy = self.gather(map, io.ccb_h.flags, io.data_ptr, 0, len);
        let data = copy.bytes.as_mut_ptr();
        let is_ncq = matches!(io.cmd.command, 0x60 | 0x61);
        let sectors = if is_ncq {
            usize::from(io.cmd.features) | usize::from(io.cmd.features_exp) << 8
        } else {
            usize::from(io.cmd.sector_count) | usize::from(io.cmd.sector_count_exp) << 8
        };
        let moved = match io.cmd.command {
            command @ (0x25 | 0x35 | 0x60 | 0x61) => {
                let mut blocks = self.blocks.lock().unwrap();
                // No count stands for the most there can be.
                let len = match sectors {
                    0 => len,
                    n => len.min(n * scsi::BLOCK),
                };
                move_block(&mut blocks, at, data, len, matches!(command, 0x35 | 0x61))
            }
            0xec => {
                let mut page = vec![0; 512];
                // Words 27 to 46: the model number, bytes of a word swapped.
                for (i, byte) in b"QPASS RAM DISK".iter().enumerate() {
                    page[54 + (i ^ 1)] = *byte;
                }
                move_block(&mut page, 0, data, len.min(512), false)
            }
            0xe5 => Some(0),
            _ => None,
        };
        if io.ccb_h.flags & sys::CAM_DIR_MASK == sys::CAM_DIR_IN {
            copy.give_back();
        }
        match moved {
            Some(moved) => {
                io.resid = self.resid(len - moved);
                io.res.status = 0x50;
                io.ccb_h.status = sys::CAM_REQ_CMP;
                true
            }
            None => {
                io.resid = len as u32;
                io.res.status = 0x51;
                io.res.error = 0x04;
                io.ccb_h.status = sys::CAM_ATA_STATUS_ERROR;
                false
            }
        }
    }

    /// Read, Write and Flush; Identify Controller (NVM Express 2.0).
    fn answer_nvme(&self, io: &mut sys::ccb_nvmeio, what: Option<&Io>, map: Option<&Map>) -> bool {
        // SAFETY: 64 bytes of plain data: a submission queue entry.
        let entry: &[u8; 64] = unsafe { &*(&raw const io.cmd).cast() };
        self.nvme_addresses_seen
            .store(entry[16..40].iter().any(|b| *b != 0), Ordering::SeqCst);
        let lba = u64::from_le_bytes(entry[40..48].try_into().expect("8 bytes")) as usize;
        if let Some(what) = what
            && self.config.model.is_nvme
        {
            let answer = nvme::execute(what, map, &mut self.blocks.lock().unwrap());
            io.ccb_h.status = match answer {
                Ok(()) => sys::CAM_REQ_CMP,
                Err(_) => sys::CAM_NVME_STATUS_ERROR,
            };
            *self.nvme_status.lock().unwrap() = answer.err();
            return answer.is_ok();
        }
        let len = io.dxfer_len as usize;
        let mut copy = self.gather(None, io.ccb_h.flags, io.data_ptr, io.sglist_cnt, len);
        let admin = io.ccb_h.func_code == sys::XPT_NVME_ADMIN;
        let moved = match (admin, entry[0]) {
            (false, 0) => Some(0),
            (false, opcode @ (1 | 2)) => {
                let mut blocks = self.blocks.lock().unwrap();
                let at = lba * scsi::BLOCK;
                move_block(&mut blocks, at, copy.bytes.as_mut_ptr(), len, opcode == 1)
            }
            (true, 6) => {
                let mut page = vec![0; 4096];
                page[24..38].copy_from_slice(b"QPASS RAM DISK");
                move_block(&mut page, 0, copy.bytes.as_mut_ptr(), len.min(4096), false)
            }
            _ => None,
        };
        copy.give_back();
        io.ccb_h.status = match moved {
            Some(_) => sys::CAM_REQ_CMP,
            None => sys::CAM_NVME_STATUS_ERROR,
        };
        moved.is_some()
    }

    /// READ_MULTIPLE_BLOCK and WRITE_MULTIPLE_BLOCK by block address, and
    /// SEND_STATUS (SD Physical Layer Simplified Specification, 4.7.4).
    fn answer_mmc(&self, io: &mut sys::ccb_mmcio) -> bool {
        if !io.cmd.mrq.is_null() || !io.stop.mrq.is_null() || !io.stop.data.is_null() {
            broken("an MMC command comes with a user's pointers");
        }
        let at = io.cmd.arg as usize * scsi::BLOCK;
        let moved = match io.cmd.opcode {
            13 => Some(0),
            opcode @ (18 | 25) if !io.cmd.data.is_null() => {
                // SAFETY: kernel memory, as long as the CCB is under way.
                let data = unsafe { &mut *io.cmd.data };
                let mut blocks = self.blocks.lock().unwrap();
                let moved = move_block(&mut blocks, at, data.data.cast(), data.len, opcode == 25);
                data.xfer_len = moved.unwrap_or(0);
                moved
            }
            _ => None,
        };
        // R1: ready, in the transfer state.
        io.cmd.resp[0] = 0x900;
        io.ccb_h.status = match moved {
            Some(_) => sys::CAM_REQ_CMP,
            None => sys::CAM_REQ_CMP_ERR,
        };
        moved.is_some()
    }

    fn answer_scsi(&self, csio: &mut sys::ccb_scsiio, map: Option<&Map>) -> bool {
        let len = csio.dxfer_len as usize;
        if self.config.model.lists == Lists::Refused
            && csio.ccb_h.flags & sys::CAM_DATA_SG != 0
            && csio.ccb_h.flags & sys::CAM_DIR_MASK != sys::CAM_DIR_NONE
        {
            csio.ccb_h.status = sys::CAM_REQ_INVALID;
            return false;
        }
        let answer = if self.takes_unit_attention() {
            // POWER ON, RESET, OR BUS DEVICE RESET OCCURRED
            Err((6, 0x29, 0))
        } else {
            self.execute(csio, len, map)
        };
        match answer {
            Ok(moved) => {
                csio.ccb_h.status = sys::CAM_REQ_CMP;
                csio.scsi_status = sys::SCSI_STATUS_OK as u8;
                csio.resid = self.resid(len - moved);
                true
            }
            Err(sense) => {
                let sense = scsi::fixed_sense(sense);
                let room = usize::from(csio.sense_len).min(sense.len());
                // SAFETY: sense_data is larger than fixed sense.
                unsafe {
                    core::ptr::copy_nonoverlapping(
                        sense.as_ptr(),
                        (&raw mut csio.sense_data).cast::<u8>(),
                        room,
                    );
                }
                csio.sense_resid = csio.sense_len - room as u8;
                csio.ccb_h.status = sys::CAM_SCSI_STATUS_ERROR | sys::CAM_AUTOSNS_VALID;
                csio.scsi_status = sys::SCSI_STATUS_CHECK_COND as u8;
                csio.resid = len as u32;
                false
            }
        }
    }

    fn takes_unit_attention(&self) -> bool {
        self.unit_attentions
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            .is_ok()
    }

    fn execute(&self, csio: &sys::ccb_scsiio, len: usize, map: Option<&Map>) -> scsi::Answer {
        let flags = csio.ccb_h.flags;
        let mut copy = self.gather(map, flags, csio.data_ptr, csio.sglist_cnt, len);
        // SAFETY: the union is plain data; a CDB elsewhere stays valid until
        // the CCB is done.
        let cdb = unsafe {
            if flags & sys::CAM_CDB_POINTER != 0 {
                core::slice::from_raw_parts(csio.cdb_io.cdb_ptr, usize::from(csio.cdb_len))
            } else {
                &csio.cdb_io.cdb_bytes[..usize::from(csio.cdb_len).min(16)]
            }
        };
        if cdb.first() == Some(&0x53) && flags & sys::CAM_DIR_MASK == sys::CAM_DIR_BOTH {
            return self.write_and_read(cdb, &mut copy);
        }
        if self.rots.load(Ordering::Relaxed) && flags & sys::CAM_DIR_MASK == sys::CAM_DIR_OUT {
            copy.bytes.iter_mut().take(1).for_each(|byte| *byte ^= 1);
        }
        let data = match flags & sys::CAM_DIR_MASK {
            _ if copy.bytes.is_empty() => Data::None,
            sys::CAM_DIR_IN => Data::In(&mut copy.bytes),
            sys::CAM_DIR_OUT => Data::Out(&copy.bytes),
            _ => Data::None,
        };
        let answer = Disk {
            blocks: &mut self.blocks.lock().unwrap(),
            serial: &self.serial,
        }
        .execute(cdb, data);
        if flags & sys::CAM_DIR_MASK == sys::CAM_DIR_IN {
            copy.give_back();
        }
        answer
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
                model::read_on(ccb);
            }
        };
        let name = "vtscsi".into();
        std::thread::Builder::new()
            .name(name)
            .spawn(answer)
            .expect("a thread");
    }

    /// XDWRITEREAD(10) (SBC-3): writes the data, and answers what it and the old
    /// data are, XORed.
    fn write_and_read(&self, cdb: &[u8], copy: &mut Gathered) -> scsi::Answer {
        let lba = u32::from_be_bytes([cdb[2], cdb[3], cdb[4], cdb[5]]) as usize;
        let at = lba * scsi::BLOCK;
        let mut blocks = self.blocks.lock().unwrap();
        let Some(range) = blocks.get_mut(at..at + copy.bytes.len()) else {
            return Err((5, 0x21, 0));
        };
        for (old, new) in range.iter_mut().zip(&mut copy.bytes) {
            let xor = *old ^ *new;
            *old = *new;
            *new = xor;
        }
        copy.give_back();
        Ok(copy.bytes.len())
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

/// Moves `len` bytes between the disk and kernel memory, if they are there.
fn move_block(disk: &mut [u8], at: usize, data: *mut u8, len: usize, write: bool) -> Option<usize> {
    let range = disk.get_mut(at..at.checked_add(len)?)?;
    if len != 0 && data.is_null() {
        return None;
    }
    // SAFETY: the CCB's data is kernel memory of that length.
    unsafe {
        if write {
            core::ptr::copy_nonoverlapping(data, range.as_mut_ptr(), len);
        } else {
            core::ptr::copy_nonoverlapping(range.as_ptr(), data, len);
        }
    }
    Some(len)
}

/// REPORT GENERAL in form: the function is answered as accepted (SPL-4).
fn answer_smp(io: &mut sys::ccb_smpio) -> bool {
    io.ccb_h.status = sys::CAM_REQ_CMP;
    if io.smp_request_len < 4 || io.smp_response_len < 4 {
        io.ccb_h.status = sys::CAM_SMP_STATUS_ERROR;
        return false;
    }
    // SAFETY: both buffers are kernel memory of their lengths.
    unsafe {
        let function = *io.smp_request.add(1);
        let answer = [0x41, function, 0, 0];
        core::ptr::copy_nonoverlapping(answer.as_ptr(), io.smp_response, answer.len());
    }
    true
}

/// The memory of a CCB that has data, as its format says.
fn runs(unmapped: bool, flags: u32, data: *mut u8, segments: u16, len: usize) -> Vec<Run> {
    let format = flags & sys::CAM_DATA_MASK;
    if format == sys::CAM_DATA_BIO {
        if !unmapped {
            broken("a SIM that takes no unmapped I/O is given some");
        }
        // SAFETY: the CCB names a bio, which stays until it is done.
        let bio = unsafe { &*data.cast::<sys::bio>() };
        let device_writes = flags & sys::CAM_DIR_MASK != sys::CAM_DIR_OUT;
        UNMAPPED.fetch_add(1, Ordering::Relaxed);
        return vec![Run {
            parts: vm::pieces(bio, len, device_writes),
            unmapped: true,
        }];
    }
    // A physical address is the address itself here.
    if format & sys::CAM_DATA_ISPHYS != 0 {
        PHYSICAL.fetch_add(1, Ordering::Relaxed);
    }
    if format != sys::CAM_DATA_SG && format != sys::CAM_DATA_SG_PADDR {
        return vec![Run::mapped(data, len)];
    }
    let segment = |i| {
        // SAFETY: the CCB's list has so many segments.
        let segment = unsafe { *data.cast::<sys::bus_dma_segment_t>().add(i) };
        Run::mapped(segment.ds_addr as *mut u8, segment.ds_len as usize)
    };
    (0..usize::from(segments)).map(segment).collect()
}

/// The data of a CCB in one piece, from kernel memory by address or by list.
struct Gathered {
    bytes: Vec<u8>,
    parts: Vec<(*mut u8, usize)>,
}

impl Gathered {
    fn of(parts: Vec<(*mut u8, usize)>, len: usize) -> Self {
        let mut bytes = Vec::new();
        for (at, part) in &parts {
            // SAFETY: kernel memory of that length.
            bytes.extend_from_slice(unsafe { core::slice::from_raw_parts(*at, *part) });
        }
        if !parts.is_empty() && bytes.len() != len {
            broken("a CCB's list is not as long as its transfer");
        }
        Gathered { bytes, parts }
    }

    fn give_back(&self) {
        let mut at = 0;
        for (to, len) in &self.parts {
            // SAFETY: as in take().
            unsafe { core::ptr::copy_nonoverlapping(self.bytes[at..].as_ptr(), *to, *len) };
            at += len;
        }
    }
}

/// Commands that came with pages.
pub static UNMAPPED: AtomicU64 = AtomicU64::new(0);
/// Commands that came with physical addresses.
pub static PHYSICAL: AtomicU64 = AtomicU64::new(0);

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
        std::thread::sleep(self.config.model.slow_start);
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

    fn openings(&self) -> usize {
        self.config.openings
    }

    fn namespace(&self) -> Option<Vec<u8>> {
        let blocks = self.config.size / scsi::BLOCK;
        self.config.model.is_nvme.then(|| nvme::namespace(blocks))
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
