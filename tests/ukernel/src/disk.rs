//! A SIM with a RAM disk behind it: it answers on threads of its own, after a
//! while and out of order if it is told to, and it can be pulled out.

use crate::{
    cam::{self, PathInq, Sim},
    scsi::{self, Data, Disk},
    sys,
};
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{
        Arc, Condvar, Mutex,
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
        }
    }
}

struct Job {
    due: Instant,
    order: u64,
    ccb: usize,
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
    blocks: Mutex<Vec<u8>>,
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
    /// Commands carried out.
    pub commands: AtomicU64,
}

impl RamDisk {
    /// Makes a disk, and the threads that serve it.
    pub fn new(serial: &str, config: Config) -> Arc<Self> {
        let threads = config.threads;
        let disk = Arc::new(RamDisk {
            blocks: Mutex::new(vec![0; config.size]),
            config,
            serial: serial.into(),
            jobs: Mutex::default(),
            work: Condvar::new(),
            order: AtomicU64::new(0),
            pulled: AtomicBool::new(false),
            unit_attentions: AtomicU32::new(0),
            lies_about_residual: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            commands: AtomicU64::new(0),
        });
        for i in 0..threads {
            let disk = disk.clone();
            std::thread::Builder::new()
                .name(format!("sim {serial} {i}"))
                .spawn(move || disk.serve())
                .expect("a thread");
        }
        disk
    }

    /// Lets a stuck disk answer again.
    pub fn unstick(&self) {
        self.stuck.store(false, Ordering::SeqCst);
        let _jobs = self.jobs.lock().unwrap();
        self.work.notify_all();
    }

    fn serve(&self) {
        let mut jobs = self.jobs.lock().unwrap();
        loop {
            let pulled = self.pulled.load(Ordering::SeqCst);
            let now = Instant::now();
            let due = match jobs.peek() {
                None if pulled => return,
                _ if self.stuck.load(Ordering::SeqCst) && !pulled => None,
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
                    self.answer(job.ccb as *mut sys::ccb, pulled);
                    self.jobs.lock().unwrap()
                }
            };
        }
    }

    fn answer(&self, ccb: *mut sys::ccb, pulled: bool) {
        // SAFETY: the CCB is the SIM's until it is done.
        let csio = unsafe { &mut (*ccb).csio };
        self.commands.fetch_add(1, Ordering::Relaxed);
        if pulled {
            csio.ccb_h.status = sys::CAM_DEV_NOT_THERE;
            cam::done(ccb, true);
            return;
        }
        let len = csio.dxfer_len as usize;
        let answer = if self.takes_unit_attention() {
            // POWER ON, RESET, OR BUS DEVICE RESET OCCURRED
            Err((6, 0x29, 0))
        } else {
            self.execute(csio, len)
        };
        match answer {
            Ok(moved) => {
                csio.ccb_h.status = sys::CAM_REQ_CMP;
                csio.scsi_status = sys::SCSI_STATUS_OK as u8;
                csio.resid = (len - moved) as u32;
                if self.lies_about_residual.load(Ordering::Relaxed) {
                    csio.resid = 0;
                }
                cam::done(ccb, false);
            }
            Err(sense) => {
                let sense = scsi::fixed_sense(sense);
                let room = usize::from(csio.sense_len).min(sense.len());
                // SAFETY: sense_data is larger than any sense_len used here.
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
                cam::done(ccb, true);
            }
        }
    }

    fn takes_unit_attention(&self) -> bool {
        self.unit_attentions
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            .is_ok()
    }

    fn execute(&self, csio: &sys::ccb_scsiio, len: usize) -> scsi::Answer {
        // SAFETY: the union is plain data; a CDB elsewhere stays valid until
        // the CCB is done, and the data is kernel memory of that length.
        unsafe {
            let cdb = if csio.ccb_h.flags & sys::CAM_CDB_POINTER != 0 {
                core::slice::from_raw_parts(csio.cdb_io.cdb_ptr, usize::from(csio.cdb_len))
            } else {
                &csio.cdb_io.cdb_bytes[..usize::from(csio.cdb_len).min(16)]
            };
            let data = match csio.ccb_h.flags & sys::CAM_DIR_MASK {
                _ if len == 0 || csio.data_ptr.is_null() => Data::None,
                sys::CAM_DIR_IN => Data::In(core::slice::from_raw_parts_mut(csio.data_ptr, len)),
                sys::CAM_DIR_OUT => Data::Out(core::slice::from_raw_parts(csio.data_ptr, len)),
                _ => Data::None,
            };
            Disk {
                blocks: &mut self.blocks.lock().unwrap(),
                serial: &self.serial,
            }
            .execute(cdb, data)
        }
    }
}

impl Sim for RamDisk {
    fn start(&self, ccb: *mut sys::ccb) {
        let order = self.order.fetch_add(1, Ordering::Relaxed);
        // Multiplied to look random, and the same in every run.
        let share = (order.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32;
        let jitter = (self.config.jitter.as_nanos() as u64 * u64::from(share)) >> 24;
        self.jobs.lock().unwrap().push(Reverse(Job {
            due: Instant::now() + self.config.latency + Duration::from_nanos(jitter),
            order,
            ccb: ccb as usize,
        }));
        self.work.notify_one();
        // The threads of a pulled disk leave when it has nothing to answer.
        while self.pulled.load(Ordering::SeqCst) {
            let Some(Reverse(job)) = self.jobs.lock().unwrap().pop() else {
                break;
            };
            self.answer(job.ccb as *mut sys::ccb, true);
        }
    }

    fn path_inq(&self) -> PathInq {
        PathInq {
            maxio: self.config.maxio,
            hba_misc: 0,
        }
    }

    fn openings(&self) -> usize {
        self.config.openings
    }

    fn inquiry(&self) -> [u8; 36] {
        scsi::standard_inquiry()
    }

    fn pull(&self) {
        self.pulled.store(true, Ordering::SeqCst);
        let _jobs = self.jobs.lock().unwrap();
        self.work.notify_all();
    }
}
