//! How qpassctl ends when it did not do what it was asked for.

use qpass_client::{CommandError, Errno, Error, Failure};
use serde::Serialize;
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
    /// Of a command that a device ended with an error: that error.
    cause: Option<Box<CommandError>>,
}

/// Why it failed, as JSON: the same keys for every command of qpassctl.
#[derive(Serialize)]
pub struct Reason {
    exit_status: u8,
    kind: &'static str,
    message: String,
    /// What CAM and the device say.
    text: Option<String>,
    cam_status: Option<&'static str>,
    key: Option<u8>,
    asc: Option<u8>,
    ascq: Option<u8>,
}

impl Reason {
    /// Of a failure.
    pub fn of(fail: &Fail) -> Self {
        let sense = fail.cause.as_ref().and_then(|error| error.sense());
        Reason {
            exit_status: fail.code as u8,
            kind: fail.code.name(),
            message: fail.message.clone(),
            text: fail.cause.as_ref().map(|error| error.to_string()),
            cam_status: fail.cause.as_ref().map(|error| error.cam.name()),
            key: sense.map(|s| s.key),
            asc: sense.map(|s| s.asc),
            ascq: sense.map(|s| s.ascq),
        }
    }
}

impl Fail {
    pub fn new(code: Code, message: impl fmt::Display) -> Self {
        Fail {
            code,
            message: message.to_string(),
            cause: None,
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
        Fail {
            message: format!("{}; {more}", self.message),
            ..self
        }
    }

    /// A device ended a command with an error.
    pub fn command(device: &str, what: impl fmt::Display, error: &CommandError) -> Self {
        let code = match has_gone(error) {
            true => Code::System,
            false => Code::Command,
        };
        Fail {
            cause: Some(Box::new(error.clone())),
            ..Fail::new(code, format!("{device}: {what}: {error}"))
        }
    }

    /// The same, of a queue.
    pub fn queued(device: &str, what: impl fmt::Display, failure: &Failure) -> Self {
        match failure {
            Failure::Failed(error) => Fail::command(device, what, error),
            Failure::Refused(_) | Failure::Lost => {
                Fail::new(Code::System, format!("{device}: {what}: {failure}"))
            }
        }
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
        let is_limit = error.errno == Errno::EAGAIN;
        let fail = Fail::new(Code::System, error);
        match is_limit {
            true => fail.and("see qpassctl limits"),
            false => fail,
        }
    }
}
