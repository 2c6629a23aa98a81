//! The directory that is downloaded into: held by one process at a time, with so much room.

use std::{
    fs::{File, TryLockError},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
};

use crate::error::{HubError, Result, io};

const NAME: &str = ".flm-pull.lock";

/// A directory that no other process pulls into while this lives.
#[derive(Debug)]
pub(crate) struct Target {
    _lock: File,
}

impl Target {
    /// Makes the directory where needed and takes its lock; an error names the process that holds it.
    pub(crate) fn hold(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(io("create", dir))?;
        let path = dir.join(NAME);
        let mut file = open_own(&path, File::options().read(true).write(true).create(true).truncate(false))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let holder = holder.trim().to_owned();
                let holder = if holder.is_empty() { "(number unknown)".into() } else { holder };
                return Err(HubError::InUse { path: dir.into(), holder });
            }
            // a file system without locks
            Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(e)) => return Err(io("lock", &path)(e)),
        }
        let pid = format!("{}\n", std::process::id());
        let written =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(pid.as_bytes()));
        written.map_err(io("write", &path))?;
        Ok(Self { _lock: file })
    }
}

/// Opens a file of flm's own; not through a link, which may lead to a file of somebody, and no pipe.
pub(crate) fn open_own(path: &Path, options: &mut std::fs::OpenOptions) -> Result<File> {
    use rustix::fs::OFlags;
    use std::os::unix::fs::OpenOptionsExt;
    if path.symlink_metadata().is_ok_and(|meta| !meta.is_file()) {
        let reason =
            "it is a link, a pipe or a directory where flm keeps a file of its own: remove it".into();
        return Err(HubError::Io { action: "open", path: path.into(), reason });
    }
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    options.custom_flags(flags).open(path).map_err(io("open", path))
}

/// Bytes that a user may write to the file system of `dir`, or of its nearest parent that exists.
pub(crate) fn free_disk(dir: &Path) -> Result<u64> {
    let absolute = std::path::absolute(dir).map_err(io("look at", dir))?;
    let existing: PathBuf = absolute.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/")).into();
    let stat = rustix::fs::statvfs(&existing).map_err(|e| io("look at", &existing)(e.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_under_the_name_of_the_lock_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        std::fs::write(&precious, "mine").unwrap();
        std::os::unix::fs::symlink(&precious, dir.path().join(NAME)).unwrap();
        let error = Target::hold(dir.path()).unwrap_err().to_string();
        assert!(error.contains(NAME) && error.contains("remove it"), "{error}");
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "mine");
    }

    #[test]
    fn a_second_holder_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let held = Target::hold(dir.path()).unwrap();
        let error = Target::hold(dir.path()).unwrap_err();
        assert!(
            matches!(&error, HubError::InUse { holder, .. } if *holder == std::process::id().to_string()),
            "{error}"
        );
        drop(held);
        assert!(Target::hold(dir.path()).is_ok());
        assert!(free_disk(&dir.path().join("not/yet")).unwrap() > 0);
    }
}
