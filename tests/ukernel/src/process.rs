//! A process of the user-mode kernel: descriptors and system calls, as the
//! conformance suite and the programs here make them.

use crate::{
    cam::{self, Device},
    devfs::{self, File, wait_until},
    disk::{Config, RamDisk},
    kqueue::Kqueue,
    loader::Module,
    sys, sysctl, user,
};
use conform::sys::{Access, Errno, Fd, Sys};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

enum Descriptor {
    File(Arc<File>),
    Kqueue(Arc<Kqueue>),
}

/// The open descriptors, shared by the threads of the process.
#[derive(Default)]
pub struct Process {
    table: Mutex<BTreeMap<Fd, Descriptor>>,
}

const EBADF: Errno = sys::EBADF as Errno;

impl Process {
    fn add(&self, descriptor: Descriptor) -> Fd {
        let mut table = self.table.lock().unwrap();
        let fd = (3..).find(|fd| !table.contains_key(fd)).expect("a number");
        table.insert(fd, descriptor);
        fd
    }

    fn file(&self, fd: Fd) -> Result<Arc<File>, Errno> {
        match self.table.lock().unwrap().get(&fd) {
            Some(Descriptor::File(file)) => Ok(file.clone()),
            _ => Err(EBADF),
        }
    }

    fn queue(&self, fd: Fd) -> Result<Arc<Kqueue>, Errno> {
        match self.table.lock().unwrap().get(&fd) {
            Some(Descriptor::Kqueue(kq)) => Ok(kq.clone()),
            _ => Err(EBADF),
        }
    }

    /// open(2).
    ///
    /// # Errors
    /// The errno.
    pub fn open(&self, path: &str, flags: i32) -> Result<Fd, Errno> {
        Ok(self.add(Descriptor::File(devfs::open(path, flags)?)))
    }

    /// close(2): the events on the descriptor go first.
    pub fn close(&self, fd: Fd) {
        let (gone, queues) = {
            let mut table = self.table.lock().unwrap();
            let gone = table.remove(&fd);
            let queues: Vec<_> = table
                .values()
                .filter_map(|d| match d {
                    Descriptor::Kqueue(kq) => Some(kq.clone()),
                    Descriptor::File(_) => None,
                })
                .collect();
            (gone, queues)
        };
        for kq in queues {
            kq.fd_closed(fd);
        }
        drop(gone);
    }

    /// dup(2).
    ///
    /// # Errors
    /// The errno.
    pub fn dup(&self, fd: Fd) -> Result<Fd, Errno> {
        let file = self.file(fd)?;
        Ok(self.add(Descriptor::File(file)))
    }

    /// fork(2): the child has the files, under their numbers, and no kqueue.
    pub fn fork(&self) -> Process {
        let table = self.table.lock().unwrap();
        let files = table
            .iter()
            .filter_map(|(fd, descriptor)| match descriptor {
                Descriptor::File(file) => Some((*fd, Descriptor::File(file.clone()))),
                Descriptor::Kqueue(_) => None,
            });
        Process {
            table: Mutex::new(files.collect()),
        }
    }

    /// exit(2), or a signal: every descriptor is closed.
    pub fn exit(&self) {
        let fds: Vec<_> = self.table.lock().unwrap().keys().copied().collect();
        for fd in fds {
            self.close(fd);
        }
    }

    /// ioctl(2).
    ///
    /// # Errors
    /// The errno.
    pub fn ioctl(&self, fd: Fd, request: u64, arg: usize) -> Result<(), Errno> {
        self.file(fd)?.ioctl(request, arg)
    }

    /// kqueue(2).
    pub fn kqueue(&self) -> Fd {
        self.add(Descriptor::Kqueue(Arc::new(Kqueue::new())))
    }

    /// kevent(2).
    ///
    /// # Errors
    /// The errno.
    pub fn kevent(
        &self,
        kq: Fd,
        changes: &[sys::kevent],
        events: &mut [sys::kevent],
        timeout: Option<Duration>,
    ) -> Result<usize, Errno> {
        let kq = self.queue(kq)?;
        for change in changes {
            let file = self.file(change.ident as Fd)?;
            kq.change(change, &file)?;
        }
        Ok(kq.wait(events, timeout))
    }

    /// poll(2) on one descriptor.
    ///
    /// # Errors
    /// The errno.
    pub fn poll(&self, fd: Fd, events: i16, timeout: Option<Duration>) -> Result<i16, Errno> {
        Ok(self.file(fd)?.poll(events, timeout))
    }
}

/// The machine: a process, and a disk that can be pulled out.
pub struct Machine {
    process: Process,
    config: Config,
    disk: Option<(Arc<Device>, Arc<RamDisk>)>,
    pulled: u32,
    /// What was printed.
    pub transcript: Vec<String>,
}

/// The counters of units that have gone say that everything came back.
///
/// # Panics
/// When they do not.
pub fn check_counters() {
    for last in sysctl::take_last() {
        let number = |leaf: &str| {
            let (_, n) = last
                .iter()
                .find(|(name, _)| name.rsplit('.').next() == Some(leaf))
                .unwrap_or_else(|| panic!("no counter {leaf}"));
            *n
        };
        assert_eq!(number("submitted"), number("completed"), "{last:?}");
        assert_eq!(number("outstanding"), 0, "{last:?}");
        assert_eq!(number("bounce_bytes"), 0, "{last:?}");
        assert!(number("errors") <= number("completed"), "{last:?}");
        assert!(number("cancelled") <= number("errors"), "{last:?}");
    }
}

/// Where the disk sits: bus 0, target 0, LUN 0.
const SLOT: (u32, u32, u64) = (0, 0, 0);

impl Machine {
    /// A machine with one disk.
    pub fn new(config: Config) -> Self {
        let mut machine = Machine {
            process: Process::default(),
            config,
            disk: None,
            pulled: 0,
            transcript: Vec::new(),
        };
        machine.plug();
        machine
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The disk that is in now.
    ///
    /// # Panics
    /// When none is.
    pub fn disk(&self) -> &Arc<RamDisk> {
        &self.disk.as_ref().expect("a disk is in").1
    }

    /// The CAM device of the disk.
    ///
    /// # Panics
    /// When none is in.
    pub fn device(&self) -> &Arc<Device> {
        &self.disk.as_ref().expect("a disk is in").0
    }

    fn plug(&mut self) {
        let disk = RamDisk::new(&format!("QP{:04}", self.pulled), self.config.clone());
        // A namespace's LUN is its number, of which the first is 1.
        let (bus, target, lun) = SLOT;
        let slot = (bus, target, lun + u64::from(disk.is_nvme()));
        self.disk = Some((cam::attach(slot, disk.clone()), disk));
        cam::settle();
    }

    /// Puts a disk in and does not wait for its node.
    pub fn arrive_unseen(&mut self) {
        self.plug();
    }

    /// The disk was replaced by somebody else.
    pub fn replaced(&mut self, device: Arc<Device>, disk: Arc<RamDisk>) {
        self.disk = Some((device, disk));
    }

    /// Pulls the disk and does not wait.
    ///
    /// # Panics
    /// When none is in.
    pub fn pull(&mut self) -> Arc<Device> {
        let (device, _) = self.disk.take().expect("a disk is in");
        self.pulled += 1;
        cam::detach(&device);
        device
    }

    /// Loads the module and waits for `/dev/qpass0`.
    ///
    /// # Errors
    /// See [`Module::load`].
    pub fn load(&self, file: &[u8]) -> Result<Module, String> {
        let module = Module::load(file)?;
        Ok(module)
    }

    /// Unloads the module: see [`unload`].
    pub fn unload(&self, module: Module) {
        unload(module);
    }
}

/// Unloads the module, waiting while commands of closed opens are under way.
/// Before that, the other drivers of every device have their turn.
///
/// # Panics
/// When it is not unloaded within some seconds.
pub fn unload(module: Module) {
    cam::all_neighbours_read();
    unload_of_stuck(module);
}

/// Unloads the module while a device answers nobody.
///
/// # Panics
/// As [`unload`].
pub fn unload_of_stuck(module: Module) {
    let mut module = Some(module);
    for _ in 0..2000 {
        match module.take().expect("one module").unload() {
            Ok(()) => return check_counters(),
            Err((errno, still)) => {
                assert_eq!(errno, sys::EBUSY as i32, "unload");
                module = Some(still);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    panic!("unload stays EBUSY");
}

/// The next machine finds the slot empty, and not the disk of this one, which
/// its own driver can still read.
impl Drop for Machine {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            cam::all_neighbours_read();
        }
        if let Some((device, _)) = self.disk.take() {
            cam::detach(&device);
        }
    }
}

impl Sys for Machine {
    fn open(&mut self, path: &str, flags: i32) -> Result<Fd, Errno> {
        self.process.open(path, flags)
    }

    fn close(&mut self, fd: Fd) {
        self.process.close(fd);
    }

    fn dup(&mut self, fd: Fd) -> Result<Fd, Errno> {
        self.process.dup(fd)
    }

    fn close_all(&mut self) {
        self.process.exit();
    }

    fn ioctl(&mut self, fd: Fd, request: u64, arg: usize) -> Result<(), Errno> {
        self.process.ioctl(fd, request, arg)
    }

    fn kqueue(&mut self) -> Result<Fd, Errno> {
        Ok(self.process.kqueue())
    }

    fn kevent(
        &mut self,
        kq: Fd,
        changes: &[sys::kevent],
        events: &mut [sys::kevent],
        timeout_ms: u32,
    ) -> Result<usize, Errno> {
        let timeout = Duration::from_millis(u64::from(timeout_ms));
        self.process.kevent(kq, changes, events, Some(timeout))
    }

    fn poll(&mut self, fd: Fd, events: i16, timeout_ms: i32) -> Result<i16, Errno> {
        let timeout = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
        self.process.poll(fd, events, timeout)
    }

    fn map(&mut self, len: usize) -> *mut u8 {
        user::map(len)
    }

    fn map_file(&mut self, len: usize) -> *mut u8 {
        let at = user::map(len);
        for i in 0..len {
            // SAFETY: fresh memory of that length.
            unsafe { at.add(i).write((i / 7) as u8) };
        }
        at
    }

    fn wire(&mut self, _at: *mut u8, _len: usize) -> Result<(), Errno> {
        // Nothing is paged out here.
        Ok(())
    }

    unsafe fn unmap(&mut self, at: *mut u8, len: usize) {
        // SAFETY: the caller's promise.
        unsafe { user::unmap(at, len) };
    }

    fn protect(&mut self, at: *mut u8, len: usize, access: Access) {
        user::protect(at, len, access);
    }

    fn print(&mut self, line: &str) {
        println!("{line}");
        self.transcript.push(line.into());
    }

    fn can_depart(&self) -> bool {
        true
    }

    fn depart(&mut self) {
        let device = self.pull();
        cam::settle();
        cam::wait_free(&device);
    }

    fn arrive(&mut self) {
        self.plug();
        wait_until("/dev/qpass0 is there", || devfs::exists("qpass0"));
    }
}
