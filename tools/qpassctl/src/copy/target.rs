//! Files that are there whole or not at all.

use crate::{
    fail::{Code, Fail},
    output,
    stream::{Writer, is_standard},
};
use std::{
    fs::{self, File, Metadata, Permissions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Where a file is to appear: behind all symbolic links, and what is there now.
pub struct Place {
    /// Its path.
    pub path: PathBuf,
    old: Option<Metadata>,
}

/// As many links as the kernel follows.
const LINKS: usize = 32;

impl Place {
    /// # Errors
    /// What is there is not to be replaced, or cannot be.
    pub fn of(path: &Path) -> Result<Self, Fail> {
        let mut at = path.to_owned();
        for _ in 0..LINKS {
            if at.file_name().is_none() || at.as_os_str().as_encoded_bytes().ends_with(b"/") {
                let why = format!("{}: is not a file's name", path.display());
                return Err(Fail::usage(why));
            }
            match fs::symlink_metadata(&at) {
                Ok(found) if found.is_symlink() => {
                    let to = fs::read_link(&at).map_err(|e| Fail::file(path, "open", &e))?;
                    at = at.parent().unwrap_or(Path::new("")).join(to);
                }
                Ok(found) if found.permissions().mode() & 0o222 == 0 => {
                    let why = format!(
                        "{}: is read-only (mode {:04o}) and is not replaced",
                        path.display(),
                        found.permissions().mode() & 0o7777
                    );
                    return Err(Fail::new(Code::System, why));
                }
                Ok(found) => {
                    return Ok(Place {
                        path: at,
                        old: Some(found),
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Place {
                        path: at,
                        old: None,
                    });
                }
                Err(error) => return Err(Fail::file(path, "create", &error)),
            }
        }
        let why = format!("{}: too many symbolic links", path.display());
        Err(Fail::new(Code::System, why))
    }

    /// The folder that it is in.
    fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        }
    }

    /// What takes the place of a file has its owner and mode.
    pub fn adopt(&self, file: &File) -> io::Result<()> {
        let Some(old) = &self.old else {
            return Ok(());
        };
        // Who is not root keeps what he may.
        let _ = std::os::unix::fs::fchown(file, Some(old.uid()), Some(old.gid()));
        file.set_permissions(Permissions::from_mode(old.mode() & 0o7777))
    }

    /// Has the file's new name outlast a power failure.
    pub fn sync_folder(&self) {
        // Not every file system can.
        let _ = File::open(self.folder()).and_then(|folder| folder.sync_all());
    }
}

/// Where a small answer goes: a file that appears when it is whole, or stdout.
pub enum Target {
    /// As it is.
    Stdout,
    /// A device or a pipe.
    Stream(PathBuf, Writer),
    /// A file.
    File(Place, tempfile::NamedTempFile),
}

impl Target {
    /// Before there is anything to put there.
    pub fn open(path: &Path) -> Result<Self, Fail> {
        if is_standard(path) {
            return Ok(Target::Stdout);
        }
        let create = |e: io::Error| Fail::file(path, "create", &e);
        if is_special(path) {
            let writer = Writer::new(path).map_err(create)?;
            return Ok(Target::Stream(path.into(), writer));
        }
        let place = Place::of(path)?;
        // As any other file: what the umask leaves of it.
        let file = tempfile::Builder::new()
            .prefix(".qpassctl")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(place.folder())
            .map_err(create)?;
        Ok(Target::File(place, file))
    }

    /// All of it.
    pub fn finish(self, data: &[u8]) -> Result<(), Fail> {
        match self {
            Target::Stdout => output::raw(data),
            Target::Stream(path, mut writer) => {
                let wrote = writer.write(data.to_vec()).and_then(|()| writer.sync());
                wrote.map_err(|e| Fail::file(&path, "write", &e))
            }
            Target::File(place, mut file) => {
                let fail = |e: io::Error| Fail::file(&place.path, "write", &e);
                file.write_all(data).map_err(fail)?;
                place.adopt(file.as_file()).map_err(fail)?;
                file.persist(&place.path).map_err(|e| fail(e.error))?;
                Ok(())
            }
        }
    }
}

/// A device, a pipe, and the like.
pub fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| !m.is_file())
}
