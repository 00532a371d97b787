//! One user-mode kernel for several processes: that which has booted it answers the
//! system calls of the others, by lines on a socket.
//!
//! A process's memory is shared with the kernel's process, at the same address in both,
//! so that the addresses in its structures mean the same there. A process that ends,
//! however it does, closes its connections, and with the last one its descriptors are
//! closed.

use crate::{
    errno::Errno,
    kernel::{Fd, Kernel, Mount},
    umode::Facts,
};
use core::{ptr::NonNull, time::Duration};
use std::{
    collections::HashMap,
    fs::{self, File},
    hash::{BuildHasher, Hasher, RandomState},
    io::{self, BufRead, BufReader, Write},
    os::unix::{
        fs::{OpenOptionsExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Instant,
};
use sys_bindings as sys;
use ukernel::{devfs, process::Process, thread, user};

const PAGE: usize = sys::PAGE_SIZE as usize;
/// Where shared memory is: far from where Linux puts anything by itself.
const BASE: usize = 0x1000_0000_0000;

/// The kernel's side.
pub(crate) struct Hub {
    facts: Facts,
    path: PathBuf,
    clients: Mutex<HashMap<u64, Arc<Client>>>,
    /// The kernel goes: nothing more is answered.
    closing: AtomicBool,
    /// Calls that are under way.
    calls: AtomicUsize,
    /// The next free address, and number of a file.
    next: AtomicUsize,
    number: AtomicUsize,
}

/// Another process.
struct Client {
    process: Process,
    /// Addresses and lengths.
    maps: Mutex<Vec<(usize, usize)>>,
    connections: AtomicUsize,
}

impl Client {
    /// Its process has ended.
    fn end(&self) {
        self.process.exit();
        let maps = std::mem::take(&mut *lock(&self.maps));
        for (at, len) in maps {
            // SAFETY: of map_shared(), once; what the kernel holds of it stays.
            unsafe { user::unmap(at as *mut u8, len) };
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The file through which memory is shared.
fn memory_file(socket: &Path, number: usize) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

impl Hub {
    /// Answers at a socket from now on.
    ///
    /// # Errors
    /// bind(2)'s: a process answers there already.
    pub fn serve(path: &Path, facts: Facts) -> io::Result<Arc<Self>> {
        // What a process has left that was killed is nobody's.
        if UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
            let _ = fs::remove_file(path);
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let hub = Arc::new(Hub {
            facts,
            path: path.into(),
            clients: Mutex::default(),
            closing: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
            next: AtomicUsize::new(BASE),
            number: AtomicUsize::new(0),
        });
        let accepting = hub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let hub = accepting.clone();
                std::thread::spawn(move || hub.connection(stream));
            }
        });
        Ok(hub)
    }

    /// The kernel goes: every process is ended for it.
    pub fn close(&self) {
        self.closing.store(true, SeqCst);
        let _ = fs::remove_file(&self.path);
        let end = Instant::now() + Duration::from_secs(5);
        while self.calls.load(SeqCst) != 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        for client in std::mem::take(&mut *lock(&self.clients)).into_values() {
            client.end();
        }
    }

    /// Answers a connection until it ends.
    fn connection(&self, stream: UnixStream) {
        let Ok(mut out) = stream.try_clone() else {
            return;
        };
        let mut lines = BufReader::new(stream).lines();
        let hello = lines.next().and_then(Result::ok).unwrap_or_default();
        let mut words = hello.split('\t').skip(1);
        let mut number = || words.next().and_then(|n| n.parse::<u64>().ok());
        let (Some(token), Some(pid)) = (number(), number()) else {
            return;
        };
        thread::current().set_pid(pid as i32);
        let client = {
            let mut clients = lock(&self.clients);
            let new = || {
                Arc::new(Client {
                    process: Process::default(),
                    maps: Mutex::default(),
                    connections: AtomicUsize::new(0),
                })
            };
            let client = clients.entry(token).or_insert_with(new).clone();
            client.connections.fetch_add(1, SeqCst);
            client
        };
        let _ = out.write_all(b"ok\n");
        while let Some(Ok(line)) = lines.next() {
            self.calls.fetch_add(1, SeqCst);
            let answer = match self.closing.load(SeqCst) {
                true => Err(Errno::ENXIO),
                false => self.call(&client, &line),
            };
            self.calls.fetch_sub(1, SeqCst);
            let answer = match answer {
                Ok(value) => format!("ok\t{value}\n"),
                Err(errno) => format!("err\t{}\n", errno.get()),
            };
            if out.write_all(answer.as_bytes()).is_err() {
                break;
            }
        }
        if client.connections.fetch_sub(1, SeqCst) == 1
            && lock(&self.clients).remove(&token).is_some()
        {
            client.end();
        }
    }

    /// One system call.
    fn call(&self, client: &Client, line: &str) -> Result<String, Errno> {
        let words: Vec<&str> = line.split('\t').collect();
        let number = |i: usize| -> Result<u64, Errno> {
            let word = words.get(i).ok_or(Errno::EINVAL)?;
            word.parse().map_err(|_| Errno::EINVAL)
        };
        let process = &client.process;
        match words[0] {
            "open" => {
                let path = words.get(1).ok_or(Errno::EINVAL)?;
                let fd = process.open(path, sys::O_RDWR as i32).map_err(Errno::new)?;
                Ok(fd.to_string())
            }
            "close" => {
                process.close(number(1)? as Fd);
                Ok(String::new())
            }
            "ioctl" => {
                let (fd, request, arg) = (number(1)? as Fd, number(2)?, number(3)? as usize);
                process.ioctl(fd, request, arg).map_err(Errno::new)?;
                Ok(String::new())
            }
            "wait" => {
                let (fd, timeout) = (number(1)? as Fd, Duration::from_nanos(number(2)?));
                let events = process.poll(fd, sys::POLLIN as i16, Some(timeout));
                Ok(u8::from(events.map_err(Errno::new)? != 0).to_string())
            }
            "map" => self.map(client, number(1)? as usize),
            // The other side has it too.
            "mapped" => {
                let _ = fs::remove_file(memory_file(&self.path, number(1)? as usize));
                Ok(String::new())
            }
            "unmap" => {
                let at = number(1)? as usize;
                let mut maps = lock(&client.maps);
                let Some(i) = maps.iter().position(|(start, _)| *start == at) else {
                    return Err(Errno::EINVAL);
                };
                let (at, len) = maps.swap_remove(i);
                drop(maps);
                // SAFETY: of map_shared(), once.
                unsafe { user::unmap(at as *mut u8, len) };
                Ok(String::new())
            }
            "nodes" => Ok(devfs::names().join("\t")),
            "sysctl" => {
                let new = number(2).ok();
                let name = words.get(1).ok_or(Errno::EINVAL)?;
                Ok(self.facts.sysctl(name, new)?.to_string())
            }
            "geom" => Ok(self.facts.geom()),
            "mounts" => {
                let all = self.facts.mounts();
                let words: Vec<_> = all.into_iter().flat_map(|m| [m.from, m.on]).collect();
                Ok(words.join("\t"))
            }
            _ => Err(Errno::ENOSYS),
        }
    }

    /// Memory of both processes.
    fn map(&self, client: &Client, len: usize) -> Result<String, Errno> {
        if len == 0 || len > 1 << 32 {
            return Err(Errno::ENOMEM);
        }
        let len = len.next_multiple_of(PAGE);
        let number = self.number.fetch_add(1, SeqCst);
        let at = self.next.fetch_add(len + 2 * PAGE, SeqCst);
        let path = memory_file(&self.path, number);
        let made = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|file| {
                file.set_len(len as u64)?;
                user::map_shared(&file, at, len)
            });
        if made.is_err() {
            let _ = fs::remove_file(&path);
            return Err(Errno::ENOMEM);
        }
        lock(&client.maps).push((at, len));
        Ok(format!("{at}\t{len}\t{number}"))
    }
}

/// Another process's side.
struct Remote {
    path: PathBuf,
    token: u64,
    /// Connections without a call; each thread that calls has one of its own.
    spare: Mutex<Vec<BufReader<UnixStream>>>,
}

/// Joins the kernel that another process shares at a socket.
///
/// # Errors
/// connect(2)'s: none does.
pub(crate) fn join(path: &Path) -> io::Result<Arc<dyn Kernel>> {
    let remote = Remote {
        path: path.into(),
        token: RandomState::new().build_hasher().finish(),
        spare: Mutex::default(),
    };
    let first = remote.connect()?;
    lock(&remote.spare).push(first);
    Ok(Arc::new(remote))
}

impl Remote {
    fn connect(&self) -> io::Result<BufReader<UnixStream>> {
        let mut stream = BufReader::new(UnixStream::connect(&self.path)?);
        let hello = format!("hello\t{}\t{}\n", self.token, std::process::id());
        stream.get_mut().write_all(hello.as_bytes())?;
        let mut answer = String::new();
        stream.read_line(&mut answer)?;
        Ok(stream)
    }

    /// A call; a kernel that has gone has no devices.
    fn call(&self, line: &str) -> Result<String, Errno> {
        let spare = lock(&self.spare).pop();
        let connected = match spare {
            Some(stream) => Ok(stream),
            None => self.connect(),
        };
        let asked = connected.and_then(|mut stream| {
            stream.get_mut().write_all(format!("{line}\n").as_bytes())?;
            let mut answer = String::new();
            stream.read_line(&mut answer)?;
            Ok((stream, answer))
        });
        let Ok((stream, answer)) = asked else {
            return Err(Errno::ENXIO);
        };
        lock(&self.spare).push(stream);
        match answer.trim_end_matches('\n').split_once('\t') {
            Some(("ok", value)) => Ok(value.to_owned()),
            Some(("err", errno)) => Err(Errno::new(errno.parse().unwrap_or(Errno::EIO.get()))),
            _ => Err(Errno::ENXIO),
        }
    }

    fn words(&self, line: &str) -> Result<Vec<String>, Errno> {
        let all = self.call(line)?;
        let words = all.split('\t').filter(|w| !w.is_empty());
        Ok(words.map(String::from).collect())
    }

    fn number(&self, line: &str) -> Result<u64, Errno> {
        self.call(line)?.parse().map_err(|_| Errno::EIO)
    }
}

impl Kernel for Remote {
    fn open(&self, path: &str) -> Result<Fd, Errno> {
        if path.contains(['\t', '\n']) {
            return Err(Errno::ENOENT);
        }
        self.number(&format!("open\t{path}")).map(|fd| fd as Fd)
    }

    fn close(&self, fd: Fd) {
        let _ = self.call(&format!("close\t{fd}"));
    }

    unsafe fn ioctl(&self, fd: Fd, request: u64, arg: usize) -> Result<(), Errno> {
        self.call(&format!("ioctl\t{fd}\t{request}\t{arg}"))
            .map(drop)
    }

    fn wait(&self, fd: Fd, timeout: Duration) -> Result<bool, Errno> {
        let nanos = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        self.number(&format!("wait\t{fd}\t{nanos}")).map(|n| n != 0)
    }

    fn map(&self, len: usize) -> Result<NonNull<u8>, Errno> {
        let words = self.words(&format!("map\t{len}"))?;
        let numbers: Vec<usize> = words.iter().filter_map(|w| w.parse().ok()).collect();
        let [at, len, number] = numbers[..] else {
            return Err(Errno::EIO);
        };
        let file = File::options()
            .read(true)
            .write(true)
            .open(memory_file(&self.path, number));
        let attached = file.and_then(|file| user::attach(&file, at, len));
        let _ = self.call(&format!("mapped\t{number}"));
        attached.map_err(|_| Errno::ENOMEM)?;
        NonNull::new(at as *mut u8).ok_or(Errno::ENOMEM)
    }

    unsafe fn unmap(&self, at: NonNull<u8>, len: usize) {
        let at = at.as_ptr() as usize;
        // The kernel lets go first.
        let _ = self.call(&format!("unmap\t{at}"));
        // SAFETY: the caller's promise.
        unsafe { user::detach(at, len.next_multiple_of(PAGE)) };
    }

    fn nodes(&self) -> Result<Vec<String>, Errno> {
        self.words("nodes")
    }

    fn sysctl(&self, name: &str, new: Option<u64>) -> Result<u64, Errno> {
        if name.contains(['\t', '\n']) {
            return Err(Errno::ENOENT);
        }
        let new = new.map_or_else(|| "-".into(), |n| n.to_string());
        self.number(&format!("sysctl\t{name}\t{new}"))
    }

    fn geom(&self) -> Result<String, Errno> {
        self.call("geom")
    }

    fn mounts(&self) -> Result<Vec<Mount>, Errno> {
        let words = self.words("mounts")?;
        let mount = |pair: &[String]| Mount {
            from: pair[0].clone(),
            on: pair[1].clone(),
        };
        Ok(words.chunks_exact(2).map(mount).collect())
    }
}
