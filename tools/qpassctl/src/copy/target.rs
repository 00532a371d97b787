//! Files that are there whole or not at all.

use crate::{fail::Fail, output};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A file that is there under its name once it is whole.
pub fn temporary(path: &Path) -> Result<tempfile::NamedTempFile, Fail> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    tempfile::Builder::new()
        .prefix(".qpassctl")
        .tempfile_in(folder)
        .map_err(|e| Fail::file(path, "create", &e))
}

/// Where a small answer goes: a file that appears when it is whole, or stdout.
pub enum Target {
    /// As it is.
    Stdout,
    /// A device or a pipe.
    Stream(PathBuf, File),
    /// A file.
    File(PathBuf, tempfile::NamedTempFile),
}

impl Target {
    /// Before there is anything to put there.
    pub fn open(path: &Path) -> Result<Self, Fail> {
        if path == Path::new("-") {
            return Ok(Target::Stdout);
        }
        if is_special(path) {
            let file = File::options()
                .write(true)
                .open(path)
                .map_err(|e| Fail::file(path, "open", &e))?;
            return Ok(Target::Stream(path.into(), file));
        }
        Ok(Target::File(path.into(), temporary(path)?))
    }

    /// All of it.
    pub fn finish(self, data: &[u8]) -> Result<(), Fail> {
        match self {
            Target::Stdout => output::bytes(data),
            Target::Stream(path, mut file) => file
                .write_all(data)
                .map_err(|e| Fail::file(&path, "write", &e)),
            Target::File(path, mut file) => {
                let fail = |e: io::Error| Fail::file(&path, "write", &e);
                file.write_all(data).map_err(fail)?;
                readable(file.as_file()).map_err(fail)?;
                file.persist(&path).map_err(|e| fail(e.error))?;
                Ok(())
            }
        }
    }
}

/// A temporary file is its owner's; what it becomes is as any other.
fn readable(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

/// A device, a pipe, and the like.
pub fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| !m.is_file())
}
