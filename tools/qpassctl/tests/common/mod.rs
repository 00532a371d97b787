//! Running qpassctl as a user does, on qpass.ko in the user-mode kernel.
#![allow(dead_code)]

use serde_json::Value;
use std::{
    fs,
    io::Write,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

pub struct Ran {
    pub code: i32,
    pub out: Vec<u8>,
    pub err: String,
}

/// As a shell has it: 128 and the signal's number, if one ended it.
pub fn shell_status(status: ExitStatus) -> i32 {
    let signal = status.signal().map(|signal| 128 + signal);
    status.code().or(signal).expect("it has ended")
}

impl Ran {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.out).expect("text")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// It failed with that status and said one sentence with these words.
    #[track_caller]
    pub fn failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{}", self.err);
        assert_eq!(self.err.lines().count(), 1, "{}", self.err);
        assert!(self.err.starts_with("qpassctl: "), "{}", self.err);
        for word in words {
            assert!(self.err.contains(word), "{word:?} in {}", self.err);
        }
    }

    #[track_caller]
    pub fn good(self) -> Self {
        assert_eq!(self.code, 0, "{}", self.err);
        self
    }
}

pub fn start(machine: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qpassctl"));
    command
        .env("QPASS_UKERNEL", machine)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The same, from a shell that does something first.
pub fn start_after(machine: &str, first: &str, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command
        .env("QPASS_UKERNEL", machine)
        .args(["-c", &format!("{first}; exec \"$0\" \"$@\"")])
        .arg(env!("CARGO_BIN_EXE_qpassctl"))
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

pub fn ended(child: Child) -> Ran {
    // One that hangs is a failure, and not the end of all others.
    let (over, is_over) = std::sync::mpsc::channel::<()>();
    let pid = child.id().to_string();
    std::thread::spawn(move || {
        use std::sync::mpsc::RecvTimeoutError::Timeout;
        if is_over.recv_timeout(Duration::from_secs(40)) == Err(Timeout) {
            let _ = Command::new("kill").args(["-KILL", &pid]).status();
        }
    });
    let out = child.wait_with_output().expect("it ends");
    drop(over);
    Ran {
        code: shell_status(out.status),
        out: out.stdout,
        err: String::from_utf8(out.stderr).expect("text"),
    }
}

pub fn ran(mut command: Command, input: Option<&[u8]>) -> Ran {
    if input.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn().expect("qpassctl runs");
    if let Some(input) = input {
        // Who refuses does not read.
        let _ = child.stdin.take().expect("stdin").write_all(input);
    }
    ended(child)
}

pub fn run(machine: &str, args: &[&str]) -> Ran {
    ran(start(machine, args), None)
}

pub fn run_with(machine: &str, args: &[&str], input: &[u8]) -> Ran {
    ran(start(machine, args), Some(input))
}

/// Waits until something is so.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn kill(child: &Child, signal: &str) {
    let sent = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status();
    assert!(sent.expect("kill").success());
}

/// Runs until a condition holds, and is sent a signal then.
#[track_caller]
pub fn interrupted(mut command: Command, signal: &str, begun: impl Fn() -> bool) -> Ran {
    let child = command.spawn().expect("qpassctl runs");
    until("it has begun", begun);
    kill(&child, signal);
    ended(child)
}

pub fn noise(len: usize) -> Vec<u8> {
    noise_of(len, 0x9e37_79b9_7f4a_7c15)
}

pub fn noise_of(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed;
    let byte = |_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    (0..len).map(byte).collect()
}

/// A folder with a disk of 8 MiB that keeps its contents, and what describes it.
pub fn disk(options: &str) -> (TempDir, String) {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("disk");
    let machine = format!("disk={},size=8M{options}", file.display());
    (dir, machine)
}

/// The same, with contents.
pub fn full_disk(options: &str) -> (TempDir, String, Vec<u8>) {
    let (dir, machine) = disk(options);
    let data = noise(8 << 20);
    fs::write(dir.path().join("disk"), &data).expect("the disk");
    (dir, machine, data)
}

pub fn path(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).display().to_string()
}

/// What there is in a folder.
pub fn names(dir: &Path) -> Vec<String> {
    let mut all: Vec<_> = fs::read_dir(dir)
        .expect("a folder")
        .map(|e| {
            let name = e.expect("an entry").file_name();
            name.into_string().expect("text")
        })
        .collect();
    all.sort();
    all
}
