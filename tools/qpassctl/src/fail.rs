//! How qpassctl ends when it did not do what it was asked for.

use qpass_client::{CommandError, Error, Failure};
use std::{fmt, io, path::Path};

/// Exit statuses, as qpassctl(8) lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// A command was sent, and the device or CAM ended it with an error.
    Command = 1,
    /// The arguments make no sense.
    Usage = 2,
    /// A system call failed: no such device, no permission, a file; or there is
    /// more or less of it than can be copied.
    System = 3,
    /// What was read back is not what was written.
    Verify = 4,
    /// The device is in use, or a file by another qpassctl.
    InUse = 5,
    /// Interrupted.
    Interrupted = 130,
}

impl Code {
    /// What it is called in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Code::Command => "command",
            Code::Usage => "usage",
            Code::System => "system",
            Code::Verify => "verify",
            Code::InUse => "in_use",
            Code::Interrupted => "interrupted",
        }
    }
}

/// One clear sentence, and the exit status.
#[derive(Debug)]
pub struct Fail {
    pub code: Code,
    pub message: String,
}

impl Fail {
    pub fn new(code: Code, message: impl fmt::Display) -> Self {
        Fail {
            code,
            message: message.to_string(),
        }
    }

    pub fn usage(message: impl fmt::Display) -> Self {
        Fail::new(Code::Usage, message)
    }

    /// A file could not be read or written.
    pub fn file(path: &Path, doing: &str, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::Interrupted {
            return Fail::interrupted();
        }
        let name = match (path == Path::new("-"), doing) {
            (false, _) => path.display().to_string(),
            (true, "write") => "standard output".into(),
            (true, _) => "standard input".into(),
        };
        Fail::new(Code::System, format!("{name}: {doing}: {}", words(error)))
    }

    /// The same failure, with more to say.
    pub fn and(self, more: impl fmt::Display) -> Self {
        Fail::new(self.code, format!("{}; {more}", self.message))
    }

    /// A device ended a command with an error.
    pub fn command(device: &str, what: impl fmt::Display, error: &CommandError) -> Self {
        let code = match has_gone(error) {
            true => Code::System,
            false => Code::Command,
        };
        Fail::new(code, format!("{device}: {what}: {error}"))
    }

    /// The same, of a queue.
    pub fn queued(device: &str, what: impl fmt::Display, failure: &Failure) -> Self {
        let code = match failure {
            Failure::Failed(error) if !has_gone(error) => Code::Command,
            Failure::Failed(_) => Code::System,
            Failure::Refused(_) | Failure::Lost => Code::System,
        };
        Fail::new(code, format!("{device}: {what}: {failure}"))
    }

    pub fn interrupted() -> Self {
        Fail::new(Code::Interrupted, "interrupted")
    }
}

/// A device that goes ends what it has in one of several ways, by chance.
fn has_gone(error: &CommandError) -> bool {
    error.cam.name() == "CAM_DEV_NOT_THERE"
}

/// The system's words without its number.
pub fn words(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return "it has become shorter meanwhile".into();
    }
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_lowercase(),
        None => text,
    }
}

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for Fail {
    fn from(error: Error) -> Self {
        Fail::new(Code::System, error)
    }
}
