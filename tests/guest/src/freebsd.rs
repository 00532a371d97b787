//! The [`Sys`] of a real FreeBSD kernel: its system calls.

use conform::{
    Line,
    sys::{Access, Errno, Fd, Memory, Sys, call},
};
use core::{
    arch::asm,
    fmt::Write,
    sync::atomic::{AtomicBool, Ordering},
};
use sys_bindings as sys;

/// A system call; an error is told by the carry flag.
///
/// # Safety
/// The arguments are those of the call.
unsafe fn syscall(number: u32, args: [usize; 6]) -> Result<usize, Errno> {
    let result: usize;
    let failed: u8;
    // SAFETY: the caller's promise; the kernel keeps all registers but these.
    unsafe {
        asm!(
            "syscall",
            "setc {failed}",
            failed = out(reg_byte) failed,
            inlateout("rax") number as usize => result,
            in("rdi") args[0],
            in("rsi") args[1],
            inlateout("rdx") args[2] => _,
            inlateout("r10") args[3] => _,
            inlateout("r8") args[4] => _,
            inlateout("r9") args[5] => _,
            out("rcx") _,
            out("r11") _,
        );
    }
    if failed == 0 {
        Ok(result)
    } else {
        Err(result as Errno)
    }
}

/// What a child exits with that could not execute its program.
const NOT_THERE: i32 = 127;
/// What a child exits with that has panicked.
pub const PANICKED: i32 = 101;

/// System calls that sys-bindings does not have.
mod numbers {
    pub const ACCESS: u32 = 33;
    pub const SETUID: u32 = 23;
    pub const KILL: u32 = 37;
    pub const SETPGID: u32 = 82;
    pub const NMOUNT: u32 = 378;
    pub const THR_NEW: u32 = 455;
    pub const SYSCTL: u32 = 202;
    pub const CHMOD: u32 = 15;
    pub const MADVISE: u32 = 75;
    pub const SETGROUPS: u32 = 80;
    pub const SETGID: u32 = 181;
    pub const JAIL_SET: u32 = 507;
    pub const CAP_ENTER: u32 = 516;
    pub const CAP_RIGHTS_LIMIT: u32 = 533;
    pub const CAP_IOCTLS_LIMIT: u32 = 534;
    pub const MUNLOCK: u32 = 204;
    pub const MINHERIT: u32 = 250;
    pub const PWRITE: u32 = 476;
}

const WNOHANG: usize = 1;
pub const SIGKILL: u32 = 9;
pub const SIGTERM: u32 = 15;

/// The argument that makes this program [wait a moment](FreeBsd::become_idle) and end.
pub const IDLE: &str = "idle";

/// Whether the sets attack pass(4) in place of this driver.
static ON_PASS: AtomicBool = AtomicBool::new(false);

/// Whether this process is one that [`FreeBsd::fork`] made.
static IS_CHILD: AtomicBool = AtomicBool::new(false);

/// Whether a panic ends this process alone, and not the machine.
#[cfg(target_os = "none")]
pub fn is_child() -> bool {
    IS_CHILD.load(Ordering::Relaxed)
}

/// A NUL-ended copy of a short string.
struct CPath([u8; 128]);

impl CPath {
    fn new(path: &str) -> Self {
        let mut bytes = [0; 128];
        bytes[..path.len()].copy_from_slice(path.as_bytes());
        CPath(bytes)
    }
    fn address(&self) -> usize {
        self.0.as_ptr() as usize
    }
}

/// What a device is.
pub struct Kind {
    /// `PROTO_SCSI` and so on.
    pub protocol: u32,
    /// The peripheral device type of a SCSI device.
    pub device_type: u8,
    /// Its bus and its target.
    pub place: (u32, u32),
    /// Its LUN, which of an NVMe device is the namespace.
    pub lun: u64,
}

impl Kind {
    /// The disk that can be pulled is one.
    fn is_scsi_disk(&self) -> bool {
        self.protocol == sys::PROTO_SCSI && self.device_type == 0
    }
}

const UNITS: [[&str; 8]; 2] = [
    [
        "/dev/qpass0",
        "/dev/qpass1",
        "/dev/qpass2",
        "/dev/qpass3",
        "/dev/qpass4",
        "/dev/qpass5",
        "/dev/qpass6",
        "/dev/qpass7",
    ],
    [
        "/dev/pass0",
        "/dev/pass1",
        "/dev/pass2",
        "/dev/pass3",
        "/dev/pass4",
        "/dev/pass5",
        "/dev/pass6",
        "/dev/pass7",
    ],
];

/// This kernel.
pub struct FreeBsd {
    held: Option<(Memory, usize)>,
    has_monitor: bool,
    replaces: bool,
}

impl FreeBsd {
    /// The calling process.
    pub const fn new() -> Self {
        FreeBsd {
            held: None,
            has_monitor: false,
            replaces: false,
        }
    }

    /// Keeps what is printed until [`flush`](Self::flush): the kernel prints
    /// on the same console.
    pub fn hold(&mut self) {
        self.held = Some((Memory::new(self, 1 << 16), 0));
    }

    /// Prints what was kept.
    pub fn flush(&mut self) {
        if let Some((held, len)) = self.held.take() {
            self.sleep_ms(500);
            self.write(&held.bytes()[..len]);
            held.unmap(self);
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        // SAFETY: the bytes live for the call.
        let _ = unsafe {
            syscall(
                sys::SYS_write,
                [1, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0],
            )
        };
    }

    /// The nodes of a driver that are there: of `qpass`, or of `pass`.
    pub fn nodes(&mut self, driver: &str) -> impl Iterator<Item = &'static str> + use<> {
        let names = UNITS[usize::from(driver == "pass")];
        let there = names.map(|name| self.opens(name, sys::O_RDWR));
        let all = names.into_iter().zip(there);
        all.filter_map(|(name, is_there)| is_there.then_some(name))
    }

    /// Whether a device is there, without opening it: an open may wait for it.
    pub fn is_there(&mut self, path: &str) -> bool {
        let path = CPath::new(path);
        // SAFETY: the path lives for the call.
        unsafe { syscall(numbers::ACCESS, [path.address(), 0, 0, 0, 0, 0]) }.is_ok()
    }

    /// Whether a file is there.
    pub fn has(&mut self, path: &str) -> bool {
        self.opens(path, sys::O_RDONLY)
    }

    fn opens(&mut self, path: &str, flags: u32) -> bool {
        match self.open(path, flags as i32) {
            Ok(fd) => {
                self.close(fd);
                true
            }
            Err(_) => false,
        }
    }

    /// The module: on the root, or on the CD that is mounted on an image's.
    pub fn module(&mut self) -> &'static str {
        const PLACES: [&str; 2] = ["/qpass.ko", "/mnt/qpass.ko"];
        PLACES[usize::from(!self.has(PLACES[0]))]
    }

    /// kldload(2): the file's id.
    ///
    /// # Errors
    /// The errno.
    pub fn kldload(&mut self, path: &str) -> Result<usize, Errno> {
        let path = CPath::new(path);
        // SAFETY: the path lives for the call.
        unsafe { syscall(sys::SYS_kldload, [path.address(), 0, 0, 0, 0, 0]) }
    }

    /// kldunload(2).
    ///
    /// # Errors
    /// The errno.
    pub fn kldunload(&mut self, id: usize) -> Result<(), Errno> {
        // SAFETY: a number.
        unsafe { syscall(sys::SYS_kldunload, [id, 0, 0, 0, 0, 0]) }.map(|_| ())
    }

    /// fork(2): 0 in the child.
    ///
    /// # Errors
    /// The errno.
    pub fn fork(&mut self) -> Result<usize, Errno> {
        let me = self.pid();
        // SAFETY: no arguments. The child returns with its parent's registers,
        // but for those that the kernel sets.
        let pid = unsafe { syscall(sys::SYS_fork, [0; 6]) }?;
        if self.pid() == me {
            return Ok(pid);
        }
        IS_CHILD.store(true, Ordering::Relaxed);
        Ok(0)
    }

    fn pid(&self) -> usize {
        // SAFETY: no arguments.
        unsafe { syscall(sys::SYS_getpid, [0; 6]) }.unwrap_or(0)
    }

    /// exit(2).
    pub fn exit(&mut self, status: i32) -> ! {
        loop {
            // SAFETY: a number.
            let _ = unsafe { syscall(sys::QPC_SYS_EXIT, [status as usize, 0, 0, 0, 0, 0]) };
        }
    }

    /// wait4(2): the exit status of a child, -1 if it did not exit.
    pub fn wait(&mut self, pid: usize) -> i32 {
        let mut status = 0u32;
        let at = &raw mut status as usize;
        // SAFETY: the status lives for the call.
        match unsafe { syscall(sys::SYS_wait4, [pid, at, 0, 0, 0, 0]) } {
            Ok(_) if status & 0x7f == 0 => (status >> 8 & 0xff) as i32,
            _ => -1,
        }
    }

    /// wait4(2) without waiting long: the exit status of a child, -1 if a signal
    /// ended it; `None` if it is still there after `ms`.
    pub fn wait_ms(&mut self, pid: usize, ms: u64) -> Option<i32> {
        let end = self.now() + ms * 1_000_000;
        loop {
            let mut status = 0u32;
            let at = &raw mut status as usize;
            // SAFETY: the status lives for the call.
            let ended = unsafe { syscall(sys::SYS_wait4, [pid, at, WNOHANG, 0, 0, 0]) };
            match ended {
                Ok(0) if self.now() < end => self.sleep_ms(10),
                Ok(0) => return None,
                Ok(_) if status & 0x7f == 0 => return Some((status >> 8 & 0xff) as i32),
                _ => return Some(-1),
            }
        }
    }

    /// setpgid(2): makes a process, 0 for this one, the leader of a group.
    pub fn lead_group(&mut self, pid: usize) {
        // SAFETY: numbers.
        let _ = unsafe { syscall(numbers::SETPGID, [pid, pid, 0, 0, 0, 0]) };
    }

    /// setgid(2), and setgroups(2) of that group alone.
    pub fn set_group(&mut self, group: u32) {
        let at = &raw const group as usize;
        // SAFETY: a list of one group, which lives for the call.
        let _ = unsafe { syscall(numbers::SETGROUPS, [1, at, 0, 0, 0, 0]) };
        // SAFETY: a number.
        let _ = unsafe { syscall(numbers::SETGID, [group as usize, 0, 0, 0, 0, 0]) };
    }

    /// chmod(2): whether it was done.
    pub fn set_mode(&mut self, path: &str, mode: usize) -> bool {
        let path = CPath::new(path);
        // SAFETY: the path lives for the call.
        unsafe { syscall(numbers::CHMOD, [path.address(), mode, 0, 0, 0, 0]) }.is_ok()
    }

    /// jail_set(2): puts this process into a new jail of the whole file system, with a
    /// securelevel of its own.
    ///
    /// # Errors
    /// The errno.
    pub fn enter_jail(&mut self, securelevel: i32) -> Result<(), Errno> {
        const CREATE_AND_ATTACH: usize = 1 | 4;
        let texts = ["path", "/", "securelevel"].map(|text| (CPath::new(text), text.len() + 1));
        let [path, root, level] = &texts;
        let vector = [
            [path.0.address(), path.1],
            [root.0.address(), root.1],
            [level.0.address(), level.1],
            [&raw const securelevel as usize, size_of::<i32>()],
        ];
        let args = [
            vector.as_ptr() as usize,
            vector.len(),
            CREATE_AND_ATTACH,
            0,
            0,
            0,
        ];
        // SAFETY: iovecs of NUL-ended strings and a number, which live for the call.
        unsafe { syscall(numbers::JAIL_SET, args) }.map(|_| ())
    }

    /// cap_enter(2).
    ///
    /// # Errors
    /// The errno: a kernel without CAPABILITY_MODE.
    pub fn enter_capability_mode(&mut self) -> Result<(), Errno> {
        // SAFETY: no arguments.
        unsafe { syscall(numbers::CAP_ENTER, [0; 6]) }.map(|_| ())
    }

    /// cap_rights_limit(2), and with a list of requests cap_ioctls_limit(2).
    ///
    /// # Errors
    /// The errno.
    pub fn limit_rights(
        &mut self,
        fd: Fd,
        rights: [u64; 2],
        requests: Option<&[u64]>,
    ) -> Result<(), Errno> {
        let args = [fd as usize, rights.as_ptr() as usize, 0, 0, 0, 0];
        // SAFETY: a cap_rights_t is two such words.
        unsafe { syscall(numbers::CAP_RIGHTS_LIMIT, args) }?;
        let Some(requests) = requests else {
            return Ok(());
        };
        let args = [
            fd as usize,
            requests.as_ptr() as usize,
            requests.len(),
            0,
            0,
            0,
        ];
        // SAFETY: the list lives for the call.
        unsafe { syscall(numbers::CAP_IOCTLS_LIMIT, args) }.map(|_| ())
    }

    /// setuid(2).
    pub fn set_user(&mut self, user: usize) {
        // SAFETY: a number.
        let _ = unsafe { syscall(numbers::SETUID, [user, 0, 0, 0, 0, 0]) };
    }

    /// thr_new(2): a thread that begins with the address of its stack's memory.
    ///
    /// # Safety
    /// The memory is the thread's own for ever; what it begins with is at its start.
    pub unsafe fn start_thread(
        &mut self,
        run: extern "C" fn(usize) -> !,
        stack: usize,
        len: usize,
    ) {
        // A struct thr_param: what to run, with what, on which stack; no TLS.
        let param = [run as usize, stack, stack, len, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let args = [param.as_ptr() as usize, size_of_val(&param), 0, 0, 0, 0];
        // SAFETY: the caller's promise.
        let _ = unsafe { syscall(numbers::THR_NEW, args) };
    }

    /// mmap(2) of zeroed memory at an address, in place of what is there; shared with
    /// children, or not.
    pub fn map_at(&mut self, at: usize, len: usize, shared: bool) {
        let prot = (sys::PROT_READ | sys::PROT_WRITE) as usize;
        let sharing = if shared {
            sys::MAP_SHARED
        } else {
            sys::MAP_PRIVATE
        };
        // MAP_FIXED is not among the bindings.
        let flags = (sys::MAP_ANON | sharing) as usize | 0x10;
        // SAFETY: what was there is not used as memory.
        let _ = unsafe { syscall(sys::SYS_mmap, [at, len, prot, flags, usize::MAX, 0]) };
    }

    /// madvise(2).
    pub fn advise(&mut self, at: usize, len: usize, what: usize) {
        // SAFETY: memory that no code here reads.
        let _ = unsafe { syscall(numbers::MADVISE, [at, len, what, 0, 0, 0]) };
    }

    /// munlock(2).
    pub fn unwire(&mut self, at: usize, len: usize) {
        // SAFETY: only what is wired is told of it.
        let _ = unsafe { syscall(numbers::MUNLOCK, [at, len, 0, 0, 0, 0]) };
    }

    /// minherit(2).
    pub fn inherit(&mut self, at: usize, len: usize, what: usize) {
        // SAFETY: of what children get of memory that no code here reads.
        let _ = unsafe { syscall(numbers::MINHERIT, [at, len, what, 0, 0, 0]) };
    }

    /// wait4(2) for all children that have ended.
    pub fn reap_children(&mut self) {
        let args = [usize::MAX, 0, WNOHANG, 0, 0, 0];
        // SAFETY: numbers.
        while let Ok(1..) = unsafe { syscall(sys::SYS_wait4, args) } {}
    }

    /// execve(2) of this very program, which waits a moment then, with all that is
    /// open, and ends.
    pub fn become_idle(&mut self) -> ! {
        let program = ["/sbin/qpass-init", "/mnt/guest-init"];
        let at = usize::from(!self.is_there(program[0]));
        self.execute(program[at], &[IDLE])
    }

    /// kill(2).
    pub fn kill(&mut self, pid: usize, signal: u32) {
        // SAFETY: numbers.
        let _ = unsafe { syscall(numbers::KILL, [pid, signal as usize, 0, 0, 0, 0]) };
    }

    /// Whether there is a process of that number.
    pub fn is_alive(&mut self, pid: usize) -> bool {
        // SAFETY: numbers; signal 0 asks whether there is one.
        unsafe { syscall(numbers::KILL, [pid, 0, 0, 0, 0, 0]) }.is_ok()
    }

    /// Kills a group of processes: whether all have ended within `ms`. This
    /// process is init, and so the parent of those whose own has ended.
    pub fn end_group(&mut self, leader: usize, ms: u64) -> bool {
        let group = leader.wrapping_neg();
        let end = self.now() + ms * 1_000_000;
        loop {
            self.kill(group, SIGKILL);
            let args = [group, 0, WNOHANG, 0, 0, 0];
            // SAFETY: numbers.
            while let Ok(1..) = unsafe { syscall(sys::SYS_wait4, args) } {}
            // SAFETY: numbers; signal 0 asks whether there is one.
            if unsafe { syscall(numbers::KILL, [group, 0, 0, 0, 0, 0]) }.is_err() {
                return true;
            }
            if self.now() >= end {
                return false;
            }
            self.sleep_ms(20);
        }
    }

    /// sysctl(3) by numbers: how many bytes came.
    fn sysctl_of(&mut self, mib: &[i32], to: &mut [u8]) -> usize {
        let mut len = to.len();
        let (at, to) = (mib.as_ptr() as usize, to.as_mut_ptr() as usize);
        let args = [at, mib.len(), to, &raw mut len as usize, 0, 0];
        // SAFETY: everything lives for the call.
        unsafe { syscall(numbers::SYSCTL, args) }.map_or(0, |_| len)
    }

    /// Prints where in the kernel each thread of a group of processes is, by the
    /// sysctls kern.proc.pgrp and kern.proc.kstack (a kernel with `options STACK`).
    pub fn print_stacks(&mut self, leader: usize) {
        const CTL_KERN: i32 = 1;
        const KERN_PROC: i32 = 14;
        const KERN_PROC_PGRP: i32 = 2;
        const KERN_PROC_KSTACK: i32 = 15;
        // Of struct kinfo_proc, and struct kinfo_kstack: sys/user.h.
        const SIZE: usize = 1088;
        const PID: usize = 72;
        const STACK: usize = 8 + 1024 + 64;
        let mut room = Memory::new(self, 1 << 16);
        let mut stacks = Memory::new(self, 1 << 15);
        let mib = [CTL_KERN, KERN_PROC, KERN_PROC_PGRP, leader as i32];
        let len = self.sysctl_of(&mib, room.bytes_mut());
        for process in room.bytes()[..len].chunks_exact(SIZE) {
            let pid: [u8; 4] = process[PID..PID + 4].try_into().unwrap_or_default();
            let pid = i32::from_ne_bytes(pid);
            let mib = [CTL_KERN, KERN_PROC, KERN_PROC_KSTACK, pid];
            let len = self.sysctl_of(&mib, stacks.bytes_mut());
            for stack in stacks.bytes()[..len].chunks_exact(STACK) {
                let text = &stack[8..8 + 1024];
                let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
                let text = core::str::from_utf8(&text[..end]).unwrap_or("?");
                for (i, frame) in text.split('\n').enumerate() {
                    let mut line = Line::new();
                    let _ = write!(line, "guest: stack of {pid}: {i} {frame}");
                    self.print(line.as_str());
                }
            }
        }
        stacks.unmap(self);
        room.unmap(self);
    }

    /// kldfind(2): the file's id.
    pub fn kldfind(&mut self, name: &str) -> Option<usize> {
        let name = CPath::new(name);
        // SAFETY: the name lives for the call.
        unsafe { syscall(sys::SYS_kldfind, [name.address(), 0, 0, 0, 0, 0]) }.ok()
    }

    /// nmount(2) of a file system that needs no device.
    ///
    /// # Errors
    /// The errno.
    pub fn mount(&mut self, kind: &str, at: &str) -> Result<(), Errno> {
        let texts = ["fstype", kind, "fspath", at].map(|text| (CPath::new(text), text.len() + 1));
        let vector = [0, 1, 2, 3].map(|i: usize| [texts[i].0.address(), texts[i].1]);
        let args = [vector.as_ptr() as usize, vector.len(), 0, 0, 0, 0];
        // SAFETY: iovecs of NUL-ended strings, which live for the call.
        unsafe { syscall(numbers::NMOUNT, args) }.map(|_| ())
    }

    /// mmap(2) of a file, shared, to read and write.
    ///
    /// # Errors
    /// The errno.
    pub fn map_shared_file(&mut self, fd: Fd, len: usize) -> Result<*mut u8, Errno> {
        let prot = (sys::PROT_READ | sys::PROT_WRITE) as usize;
        let args = [0, len, prot, sys::MAP_SHARED as usize, fd as usize, 0];
        // SAFETY: fresh memory.
        unsafe { syscall(sys::SYS_mmap, args) }.map(|at| at as *mut u8)
    }

    /// Starts a program: its process.
    ///
    /// # Errors
    /// The errno of fork(2).
    pub fn start(&mut self, path: &str, args: &[&str]) -> Result<usize, Errno> {
        let pid = self.fork()?;
        if pid == 0 {
            self.execute(path, args);
        }
        Ok(pid)
    }

    /// execve(2), or exit(2) with [`NOT_THERE`].
    fn execute(&mut self, path: &str, args: &[&str]) -> ! {
        let path = CPath::new(path);
        let mut copies = [const { CPath([0; 128]) }; 16];
        let mut pointers = [0usize; 18];
        pointers[0] = path.address();
        for (i, arg) in args.iter().enumerate().take(16) {
            copies[i] = CPath::new(arg);
            pointers[i + 1] = copies[i].address();
        }
        let none = [0usize; 1];
        let (argv, envp) = (pointers.as_ptr() as usize, none.as_ptr() as usize);
        // SAFETY: NUL-ended strings, and lists of them that end with 0.
        let _ = unsafe { syscall(sys::SYS_execve, [path.address(), argv, envp, 0, 0, 0]) };
        self.exit(NOT_THERE)
    }

    /// Starts a program whose output goes to a file.
    ///
    /// # Errors
    /// The errno of fork(2).
    pub fn start_into(&mut self, file: &str, path: &str, args: &[&str]) -> Result<usize, Errno> {
        let pid = self.fork()?;
        if pid == 0 {
            self.close(1);
            self.close(2);
            // open(2) and dup(2) return the lowest number that is free.
            let _ = self.open(file, (sys::O_WRONLY | sys::O_CREAT | sys::O_TRUNC) as i32);
            let _ = self.dup(1);
            self.execute(path, args);
        }
        Ok(pid)
    }

    /// The start of a file, as text: how long it is.
    pub fn read_text(&mut self, path: &str, to: &mut [u8]) -> usize {
        let Ok(fd) = self.open(path, sys::O_RDONLY as i32) else {
            return 0;
        };
        let args = [fd as usize, to.as_mut_ptr() as usize, to.len(), 0, 0, 0];
        // SAFETY: the bytes live for the call.
        let read = unsafe { syscall(sys::SYS_pread, args) };
        self.close(fd);
        read.unwrap_or(0)
    }

    /// Runs a program and waits for it: its exit status.
    ///
    /// # Errors
    /// The errno of fork(2); ENOENT: it could not be executed.
    pub fn run(&mut self, path: &str, args: &[&str]) -> Result<i32, Errno> {
        let pid = self.start(path, args)?;
        match self.wait(pid) {
            NOT_THERE => Err(sys::ENOENT as Errno),
            status => Ok(status),
        }
    }

    /// mmap(2) of memory that children share.
    pub fn map_shared(&mut self, len: usize) -> *mut u8 {
        let (prot, flags) = (
            (sys::PROT_READ | sys::PROT_WRITE) as usize,
            (sys::MAP_ANON | sys::MAP_SHARED) as usize,
        );
        // SAFETY: fresh memory.
        let at = unsafe { syscall(sys::SYS_mmap, [0, len, prot, flags, usize::MAX, 0]) };
        at.expect("mmap") as *mut u8
    }

    /// The driver that the sets faults and hostile attack: `qpass`, or with the tunable
    /// `qpass.on=pass` pass(4).
    pub fn attacked(&self) -> &'static str {
        if ON_PASS.load(Ordering::Relaxed) {
            "pass"
        } else {
            "qpass"
        }
    }

    /// The node of a unit of that driver's.
    pub fn unit(&self, number: usize) -> &'static str {
        UNITS[usize::from(ON_PASS.load(Ordering::Relaxed))][number % 8]
    }

    /// What a node's device is.
    pub fn kind(&mut self, node: &str) -> Option<Kind> {
        let fd = self.open(node, sys::O_RDWR as i32).ok()?;
        let kind = self.kind_of(fd);
        self.close(fd);
        kind
    }

    /// What the device of an open node is.
    pub fn kind_of(&mut self, fd: Fd) -> Option<Kind> {
        // SAFETY: plain data.
        let mut ccb: sys::ccb = unsafe { core::mem::zeroed() };
        ccb.ccb_h.func_code = sys::XPT_GDEV_TYPE;
        let ccb = call(self, fd, sys::QPC_CAMIOCOMMAND, ccb).ok()?;
        // SAFETY: what the opcode says; the inquiry data is plain bytes.
        unsafe {
            let inquiry: &[u8; 36] = &*(&raw const ccb.cgd.inq_data).cast();
            Some(Kind {
                protocol: ccb.cgd.protocol,
                device_type: inquiry[0] & 0x1f,
                place: (ccb.ccb_h.path_id, ccb.ccb_h.target_id),
                lun: ccb.ccb_h.target_lun,
            })
        }
    }

    /// The node of the SCSI disk, of a driver.
    pub fn disk_of(&mut self, driver: &str) -> Option<&'static str> {
        let mut nodes = self.nodes(driver);
        let is_it = |node: &&'static str| self.kind(node).is_some_and(|kind| kind.is_scsi_disk());
        nodes.find(is_it)
    }

    /// The node that another driver has for a device.
    pub fn node_at(&mut self, driver: &str, kind: &Kind) -> Option<&'static str> {
        let mut nodes = self.nodes(driver);
        let is_it = |node: &&'static str| {
            let other = self.kind(node);
            other.is_some_and(|k| (k.place, k.lun) == (kind.place, kind.lun))
        };
        nodes.find(is_it)
    }

    /// The node of the SCSI disk, waited for.
    pub fn wait_disk(&mut self) -> Option<&'static str> {
        self.wait_disk_of(&["qpass"])
    }

    /// The same, of one of some drivers. The first is waited for a while where
    /// all may come.
    pub fn wait_disk_of(&mut self, drivers: &[&str]) -> Option<&'static str> {
        for _ in 0..100 {
            for driver in drivers {
                if let Some(node) = self.disk_of(driver) {
                    return Some(node);
                }
                self.sleep_ms(100);
            }
        }
        None
    }

    /// nanosleep(2).
    pub fn sleep_ms(&mut self, ms: u64) {
        let time = [ms / 1000, ms % 1000 * 1_000_000];
        // SAFETY: a timespec is two 64-bit words here.
        let _ = unsafe { syscall(sys::SYS_nanosleep, [time.as_ptr() as usize, 0, 0, 0, 0, 0]) };
    }

    /// reboot(2), powering off.
    pub fn power_off(&mut self) -> ! {
        // What was printed is on its way still.
        self.sleep_ms(1000);
        let how = (sys::RB_POWEROFF | sys::RB_NOSYNC) as usize;
        // SAFETY: does not return when it works; init may not return either.
        let _ = unsafe { syscall(sys::SYS_reboot, [how, 0, 0, 0, 0, 0]) };
        loop {
            self.sleep_ms(1000);
        }
    }

    /// pread(2): whether it was all read.
    pub fn pread(&mut self, fd: Fd, to: &mut Memory, len: usize, at: usize) -> bool {
        let to = to.bytes_mut().as_mut_ptr() as usize;
        // SAFETY: memory of this process's, as long as that.
        let read = unsafe { syscall(sys::SYS_pread, [fd as usize, to, len, at, 0, 0]) };
        read == Ok(len)
    }

    /// pwrite(2): whether it was all written.
    pub fn pwrite(&mut self, fd: Fd, from: &[u8], at: usize) -> bool {
        let args = [fd as usize, from.as_ptr() as usize, from.len(), at, 0, 0];
        // SAFETY: the bytes live for the call.
        let written = unsafe { syscall(numbers::PWRITE, args) };
        written == Ok(from.len())
    }

    /// clock_gettime(2), CLOCK_MONOTONIC, in nanoseconds.
    pub fn now(&mut self) -> u64 {
        const CLOCK_MONOTONIC: usize = 4;
        let mut time = [0u64; 2];
        // SAFETY: a timespec is two 64-bit words here.
        let _ = unsafe {
            syscall(
                sys::SYS_clock_gettime,
                [CLOCK_MONOTONIC, time.as_mut_ptr() as usize, 0, 0, 0, 0],
            )
        };
        time[0] * 1_000_000_000 + time[1]
    }

    /// getrusage(2): what this process has used of a CPU so far, in the kernel
    /// and outside, in microseconds.
    pub fn cpu_us(&mut self) -> u64 {
        // SAFETY: plain data.
        let mut usage: sys::rusage = unsafe { core::mem::zeroed() };
        let at = &raw mut usage as usize;
        // SAFETY: a struct rusage, which lives for the call; 0 is RUSAGE_SELF.
        let _ = unsafe { syscall(sys::SYS_getrusage, [0, at, 0, 0, 0, 0]) };
        let us = |t: &sys::timeval| t.tv_sec as u64 * 1_000_000 + t.tv_usec as u64;
        us(&usage.ru_utime) + us(&usage.ru_stime)
    }

    /// sysctl(3) by name: how many bytes of the old value came.
    pub fn sysctl(&mut self, name: &str, old: &mut [u64], new: Option<u64>) -> usize {
        let mut len = size_of_val(old);
        let new = new.as_ref();
        // SAFETY: everything lives for the call; the new value is as long as a
        // u_int or u_long, little end first.
        let done = unsafe {
            syscall(
                sys::SYS___sysctlbyname,
                [
                    name.as_ptr() as usize,
                    name.len(),
                    // With no room to put it in there is no new value either.
                    if len == 0 {
                        0
                    } else {
                        old.as_mut_ptr() as usize
                    },
                    &raw mut len as usize,
                    new.map_or(0, |n| core::ptr::from_ref(n) as usize),
                    if new.is_some() { 4 } else { 0 },
                ],
            )
        };
        done.map_or(0, |_| len)
    }

    /// sysctl(3) by name: a number of 4 or 8 bytes.
    pub fn sysctl_number(&mut self, name: &str) -> Option<u64> {
        let mut value = [0u64];
        (self.sysctl(name, &mut value, None) != 0).then_some(value[0])
    }

    /// sysctl(3) by name: sets a number of as many bytes as it has; whether it
    /// is that now.
    pub fn set_sysctl(&mut self, name: &str, new: u64) -> bool {
        let mut old = [0u64];
        let len = self.sysctl(name, &mut old, None);
        let (text, at) = (name.as_ptr() as usize, &raw const new as usize);
        // SAFETY: the name and the number live for the call.
        let _ = unsafe { syscall(sys::SYS___sysctlbyname, [text, name.len(), 0, 0, at, len]) };
        self.sysctl_number(name) == Some(new)
    }

    /// Ticks of all CPUs so far that were not idle.
    pub fn busy_ticks(&mut self) -> u64 {
        // user, nice, sys, intr, idle
        let mut times = [0; 5];
        self.sysctl("kern.cp_time", &mut times, None);
        times[..4].iter().sum()
    }

    /// Makes the console this process's output.
    pub fn open_console(&mut self) {
        for _ in 0..3 {
            let _ = self.open("/dev/console", sys::O_RDWR as i32);
        }
    }
}

impl Sys for FreeBsd {
    fn open(&mut self, path: &str, flags: i32) -> Result<Fd, Errno> {
        let path = CPath::new(path);
        // SAFETY: the path lives for the call.
        unsafe { syscall(sys::SYS_open, [path.address(), flags as usize, 0, 0, 0, 0]) }
            .map(|fd| fd as Fd)
    }

    fn close(&mut self, fd: Fd) {
        // SAFETY: a number.
        let _ = unsafe { syscall(sys::SYS_close, [fd as usize, 0, 0, 0, 0, 0]) };
    }

    fn dup(&mut self, fd: Fd) -> Result<Fd, Errno> {
        // SAFETY: a number.
        unsafe { syscall(sys::SYS_dup, [fd as usize, 0, 0, 0, 0, 0]) }.map(|fd| fd as Fd)
    }

    fn close_all(&mut self) {
        // SAFETY: numbers: 0 to 2 are the console.
        let _ = unsafe { syscall(sys::SYS_close_range, [3, u32::MAX as usize, 0, 0, 0, 0]) };
    }

    fn ioctl(&mut self, fd: Fd, request: u64, arg: usize) -> Result<(), Errno> {
        // SAFETY: the cases give addresses of memory that they own, or wild
        // ones, which the kernel refuses.
        unsafe {
            syscall(
                sys::SYS_ioctl,
                [fd as usize, request as usize, arg, 0, 0, 0],
            )
        }
        .map(|_| ())
    }

    fn kqueue(&mut self) -> Result<Fd, Errno> {
        // SAFETY: no arguments.
        unsafe { syscall(sys::SYS_kqueue, [0; 6]) }.map(|fd| fd as Fd)
    }

    fn kevent(
        &mut self,
        kq: Fd,
        changes: &[sys::kevent],
        events: &mut [sys::kevent],
        timeout_ms: u32,
    ) -> Result<usize, Errno> {
        let ms = u64::from(timeout_ms);
        let time = [ms / 1000, ms % 1000 * 1_000_000];
        // SAFETY: both slices and the timespec live for the call.
        unsafe {
            syscall(
                sys::SYS_kevent,
                [
                    kq as usize,
                    changes.as_ptr() as usize,
                    changes.len(),
                    events.as_mut_ptr() as usize,
                    events.len(),
                    time.as_ptr() as usize,
                ],
            )
        }
    }

    fn poll(&mut self, fd: Fd, events: i16, timeout_ms: i32) -> Result<i16, Errno> {
        // SAFETY: plain data.
        let mut pollfd: sys::pollfd = unsafe { core::mem::zeroed() };
        pollfd.fd = fd;
        pollfd.events = events;
        // SAFETY: one pollfd, which lives for the call.
        unsafe {
            syscall(
                sys::SYS_poll,
                [&raw mut pollfd as usize, 1, timeout_ms as usize, 0, 0, 0],
            )
        }?;
        Ok(pollfd.revents)
    }

    fn map(&mut self, len: usize) -> *mut u8 {
        let (prot, flags) = (
            (sys::PROT_READ | sys::PROT_WRITE) as usize,
            (sys::MAP_ANON | sys::MAP_PRIVATE) as usize,
        );
        // SAFETY: fresh memory.
        let at = unsafe { syscall(sys::SYS_mmap, [0, len, prot, flags, usize::MAX, 0]) };
        at.expect("mmap") as *mut u8
    }

    fn map_file(&mut self, len: usize) -> *mut u8 {
        // The module is the largest file there is.
        let module = self.module();
        let fd = self.open(module, sys::O_RDONLY as i32).expect("open") as usize;
        let (prot, flags) = (
            (sys::PROT_READ | sys::PROT_WRITE) as usize,
            sys::MAP_PRIVATE as usize,
        );
        // SAFETY: fresh memory.
        let at = unsafe { syscall(sys::SYS_mmap, [0, len, prot, flags, fd, 0]) };
        self.close(fd as Fd);
        at.expect("mmap") as *mut u8
    }

    fn wire(&mut self, at: *mut u8, len: usize) -> Result<(), Errno> {
        // SAFETY: memory from map().
        unsafe { syscall(sys::SYS_mlock, [at as usize, len, 0, 0, 0, 0]) }.map(|_| ())
    }

    unsafe fn unmap(&mut self, at: *mut u8, len: usize) {
        // SAFETY: the caller's promise.
        let _ = unsafe { syscall(sys::SYS_munmap, [at as usize, len, 0, 0, 0, 0]) };
    }

    fn protect(&mut self, at: *mut u8, len: usize, access: Access) {
        let prot = match access {
            Access::None => 0,
            Access::Read => sys::PROT_READ as usize,
            Access::WriteOnly => sys::PROT_WRITE as usize,
            Access::Write => (sys::PROT_READ | sys::PROT_WRITE) as usize,
        };
        // SAFETY: memory from map().
        unsafe { syscall(sys::SYS_mprotect, [at as usize, len, prot, 0, 0, 0]) }.expect("mprotect");
    }

    fn print(&mut self, line: &str) {
        match &mut self.held {
            Some((held, len)) if *len + line.len() < held.len() => {
                held.bytes_mut()[*len..*len + line.len()].copy_from_slice(line.as_bytes());
                *len += line.len();
                held.bytes_mut()[*len] = b'\n';
                *len += 1;
            }
            _ => {
                self.write(line.as_bytes());
                self.write(b"\n");
            }
        }
    }

    fn can_depart(&self) -> bool {
        self.has_monitor
    }

    fn depart(&mut self) {
        assert!(
            self.ask_monitor("pull", |sys| sys.node().is_none()),
            "the monitor does not pull"
        );
    }

    fn arrive(&mut self) {
        for _ in 0..5 {
            // The old unit's number is free again a moment after its last use;
            // a disk that comes before gets another one, and goes again.
            self.sleep_ms(300);
            if self.ask_monitor("plug", |sys| sys.node().is_some()) {
                return;
            }
            self.ask_monitor("pull", |_| true);
        }
        panic!("the disk does not come back");
    }
}

impl FreeBsd {
    /// The disk under test: its node.
    fn node(&mut self) -> Option<&'static str> {
        let driver = if self.replaces { "pass" } else { "qpass" };
        self.disk_of(driver)
    }

    /// Whether scripts/vm watches the console and has QEMU's monitor, and
    /// whether the nodes are called pass.
    pub fn look_around(&mut self) {
        self.has_monitor = self.has_tunable("qpass.monitor");
        self.replaces = false;
        self.replaces = self.has_tunable("hw.qpass.replace") && self.node().is_none();
        let attacks = self.tunable_text("qpass.on");
        let is_pass = attacks.is_some_and(|(text, len)| &text[..len] == b"pass");
        ON_PASS.store(is_pass, Ordering::Relaxed);
    }

    /// Has the monitor pull the disk, and does not wait.
    pub fn ask_to_pull(&mut self) {
        self.ask_monitor("pull", |_| true);
    }

    /// Has the monitor pull the disk: whether its node has gone some seconds
    /// later.
    pub fn pull(&mut self) -> bool {
        self.ask_monitor("pull", |sys| sys.node().is_none())
    }

    /// Has the monitor pull a device: whether its disk's node has gone some seconds
    /// later. `what` is hd, or disk2.
    pub fn pull_device(&mut self, what: &str, is_gone: impl Fn(&mut Self) -> bool) -> bool {
        let mut line = Line::new();
        let _ = write!(line, "pull {what}");
        self.ask_monitor(line.as_str(), is_gone)
    }

    /// Has the monitor plug it in again: whether its disk's node is there some seconds
    /// later.
    pub fn plug_device(&mut self, what: &str, is_there: impl Fn(&mut Self) -> bool) -> bool {
        let mut line = Line::new();
        let _ = write!(line, "plug {what}");
        self.ask_monitor(line.as_str(), is_there)
    }

    /// Has the monitor let a drive do so many commands and bytes a second, 0 for
    /// any number, and does not wait.
    pub fn ask_to_throttle(&mut self, drive: &str, commands: u32, bytes: u32) {
        let mut what = Line::new();
        let _ = write!(what, "throttle {drive} {commands} {bytes}");
        self.ask_monitor(what.as_str(), |_| true);
    }

    fn has_tunable(&mut self, name: &str) -> bool {
        self.tunable(name).is_some()
    }

    /// kenv(2): a tunable's number, or 0 if it is none.
    pub fn tunable(&mut self, name: &str) -> Option<u32> {
        let (value, _) = self.tunable_text(name)?;
        let digits = value.iter().take_while(|b| b.is_ascii_digit());
        Some(digits.fold(0, |n, digit| n * 10 + u32::from(digit - b'0')))
    }

    /// kenv(2): a tunable's text, and how long it is.
    pub fn tunable_text(&mut self, name: &str) -> Option<([u8; 128], usize)> {
        let name = CPath::new(name);
        let mut value = [0u8; 128];
        let args = [
            sys::KENV_GET as usize,
            name.address(),
            value.as_mut_ptr() as usize,
            value.len(),
            0,
            0,
        ];
        // SAFETY: the name and the buffer live for the call.
        unsafe { syscall(sys::SYS_kenv, args) }.ok()?;
        let len = value.iter().position(|b| *b == 0).unwrap_or(value.len());
        Some((value, len))
    }

    /// Says on the console what scripts/vm shall have the monitor do, and
    /// waits for it: whether it is done within some seconds.
    fn ask_monitor(&mut self, what: &str, done: impl Fn(&mut Self) -> bool) -> bool {
        // In one go, so that as little as can be comes between; the end says
        // that it is the whole request.
        let mut line = Line::new();
        let _ = write!(line, "\nguest: monitor: {what};\n");
        self.write(line.as_str().as_bytes());
        for _ in 0..150 {
            if done(self) {
                return true;
            }
            self.sleep_ms(50);
        }
        false
    }
}
