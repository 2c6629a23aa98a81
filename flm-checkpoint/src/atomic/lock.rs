//! Locks that go with the process that holds them.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::atomic::open_own;
use crate::error::{CheckpointError, Result, io};

/// A directory that this process alone works in, for as long as the value lives.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

/// How long a process waits for another that has just begun.
const PATIENCE: Duration = Duration::from_secs(10);

impl DirectoryLock {
    /// Creates `dir` where needed and locks its file `name`, which stays there and holds the process's number.
    ///
    /// # Errors
    /// [`CheckpointError::InUse`] where another process holds it.
    pub fn take(dir: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(dir).map_err(io("create", dir))?;
        let path = dir.join(name);
        // Another process may finish or clear the directory between the steps: then they start again.
        for _ in 0..100 {
            match fs::create_dir(dir) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(io("create", dir)(e)),
                _ => {}
            }
            let mut options = File::options();
            let mut file = match open_own(&path, options.read(true).write(true).create(true).truncate(false))
            {
                Err(CheckpointError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => continue,
                opened => opened?,
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    let _ = file.take(32).read_to_string(&mut holder);
                    let holder = holder.trim().parse().ok();
                    return Err(CheckpointError::InUse { path: dir.into(), holder });
                }
                // A file system without locks: nothing can be held, and nothing told apart.
                Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {}
                Err(TryLockError::Error(e)) => return Err(io("lock", &path)(e)),
            }
            let ours = file.metadata().map_err(io("look at", &path))?;
            if fs::metadata(&path).is_ok_and(|m| (m.dev(), m.ino()) == (ours.dev(), ours.ino())) {
                let pid = format!("{}\n", std::process::id());
                let written = file
                    .set_len(0)
                    .and_then(|()| file.rewind())
                    .and_then(|()| file.write_all(pid.as_bytes()));
                written.map_err(io("write", &path))?;
                return Ok(Self { _file: file });
            }
        }
        Err(CheckpointError::InUse { path: dir.into(), holder: None })
    }
}

impl DirectoryLock {
    /// Creates `dir` where needed and holds its file `name` together with other processes that share it. `prepare`
    /// is called first, with whether this process has it alone for as long as the call lasts.
    ///
    /// # Errors
    /// [`CheckpointError::InUse`] where a process holds it for itself, and those of `prepare`.
    pub(crate) fn share(dir: &Path, name: &str, prepare: impl FnOnce(bool) -> Result<()>) -> Result<Self> {
        fs::create_dir_all(dir).map_err(io("create", dir))?;
        let path = dir.join(name);
        let mut options = File::options();
        let file = open_own(&path, options.read(true).write(true).create(true).truncate(false))?;
        let locked = |tried: std::result::Result<(), TryLockError>| match tried {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => Ok(true),
            Err(TryLockError::Error(e)) => Err(io("lock", &path)(e)),
        };
        if locked(file.try_lock())? {
            prepare(true)?;
            // nobody waits for long: those who come meanwhile share it as well
            file.lock_shared()
                .or_else(|e| if e.kind() == ErrorKind::Unsupported { Ok(()) } else { Err(e) })
                .map_err(io("lock", &path))?;
            return Ok(Self { _file: file });
        }
        let begun = Instant::now();
        while !locked(file.try_lock_shared())? {
            if begun.elapsed() > PATIENCE {
                return Err(CheckpointError::InUse { path: dir.into(), holder: None });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        prepare(false)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = ".lock";

    #[test]
    fn a_second_holder_is_told_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let held = DirectoryLock::take(dir.path(), NAME).unwrap();
        let second = DirectoryLock::take(dir.path(), NAME);
        let pid = std::process::id();
        assert!(matches!(second, Err(CheckpointError::InUse { holder: Some(n), .. }) if n == pid));
        drop(held);
        assert!(DirectoryLock::take(dir.path(), NAME).is_ok());
    }

    #[test]
    fn nothing_is_locked_or_emptied_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let users = dir.path().join("users");
        fs::write(&users, "theirs").unwrap();
        std::os::unix::fs::symlink(&users, dir.path().join(NAME)).unwrap();
        assert!(DirectoryLock::take(dir.path(), NAME).is_err());
        assert_eq!(fs::read_to_string(&users).unwrap(), "theirs");
    }
}
