//! One qpassctl at a time writes a device: GEOM does not see who does.

use super::journal::open_own;
use crate::{
    disk::Disk,
    fail::{Code, Fail},
};
use std::{
    fs::File,
    path::{Path, PathBuf},
};

/// Where the locks of a machine are: of the user-mode kernel that several processes
/// use, beside its socket. Where each has a kernel of its own, its disks' files are
/// locked.
fn folder() -> Option<PathBuf> {
    if cfg!(target_os = "freebsd") {
        return Some("/var/run/qpassctl".into());
    }
    let machine = std::env::var("QPASS_UKERNEL").ok()?;
    let mut parts = machine.split(';').map(str::trim);
    parts.find_map(|part| part.strip_prefix("shared=").map(PathBuf::from))
}

/// Locks a device, as long as the file lives.
///
/// # Errors
/// Another qpassctl writes it.
pub fn lock(disk: &Disk) -> Result<Option<File>, Fail> {
    let Some(mut path) = folder() else {
        return Ok(None);
    };
    // The same device, by whichever driver's node.
    let id = &disk.identity;
    let name = format!(".{}.{}.{}.lock", id.bus, id.target, id.lun);
    path.as_mut_os_string().push(name);
    match open_own(Path::new(&path)) {
        Ok((file, _)) => Ok(Some(file)),
        Err(fail) if fail.code == Code::InUse => Err(Fail::new(
            Code::InUse,
            format!("{}: another qpassctl writes it", disk.device.name()),
        )),
        // Who may write the device need not be able to write there.
        Err(_) => Ok(None),
    }
}
