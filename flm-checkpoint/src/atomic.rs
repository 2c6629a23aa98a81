//! A directory that is filled beside its destination and takes its name when it is complete.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::CheckpointError;
use crate::error::{Result, io};

/// Held locked while a process writes; the lock goes with the process.
const LOCK: &str = ".lock";

/// The directory `.NAME.partial` beside `NAME`.
#[derive(Debug)]
pub(crate) struct Staging {
    dst: PathBuf,
    dir: PathBuf,
    /// Keeps the lock.
    _lock: File,
    /// Whether to leave the directory when dropped.
    pub keep: bool,
}

impl Staging {
    /// Makes the staging directory of `dst`, empty; one that a dead process left is taken over.
    pub(crate) fn create(dst: &Path) -> Result<Self> {
        let staging = Self::take_over(dst)?;
        staging.clear()?;
        Ok(staging)
    }

    /// The staging directory of `dst` with whatever a dead process left in it.
    pub(crate) fn take_over(dst: &Path) -> Result<Self> {
        let dir = Self::path(dst)?;
        require_free(dst)?;
        require_ours(&dir)?;
        let parent = parent(dst);
        fs::create_dir_all(parent).map_err(io("create", parent))?;
        let lock = lock(&dir, LOCK)?;
        Ok(Self { dst: dst.into(), dir, _lock: lock, keep: false })
    }

    /// Where the staging directory of `dst` is.
    pub(crate) fn path(dst: &Path) -> Result<PathBuf> {
        let name = dst.file_name().ok_or_else(|| CheckpointError::BadDestination { path: dst.into() })?;
        let mut staging_name = OsString::from(".");
        staging_name.push(name);
        staging_name.push(".partial");
        Ok(dst.with_file_name(staging_name))
    }

    /// The staging directory, beside the destination.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn clear(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir).map_err(io("list", &self.dir))? {
            let entry = entry.map_err(io("list", &self.dir))?;
            if entry.file_name() == LOCK {
                continue;
            }
            let path = entry.path();
            let is_dir = entry.file_type().map_err(io("look at", &path))?.is_dir();
            let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(io("remove", &path))?;
        }
        Ok(())
    }

    /// Makes the staging directory `dst`: fsyncs its files and itself, renames it, fsyncs the parent.
    pub(crate) fn publish(mut self) -> Result<()> {
        sync_tree(&self.dir)?;
        require_free(&self.dst)?;
        fs::rename(&self.dir, &self.dst).map_err(|e| match e.kind() {
            ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists => {
                CheckpointError::DestinationExists { path: self.dst.clone() }
            }
            _ => io("rename the finished checkpoint to", &self.dst)(e),
        })?;
        self.keep = true;
        // Only now: without its lock the directory must not be found under the staging name.
        let lock = self.dst.join(LOCK);
        fs::remove_file(&lock).map_err(io("remove", &lock))?;
        sync(&self.dst)?;
        sync(parent(&self.dst))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.keep {
            // Nothing to do about a failure here: the next writer clears what is left. The lock goes last:
            // what still has it can be told from a folder of somebody else's.
            let _ = self.clear().map(|()| fs::remove_dir_all(&self.dir));
        }
    }
}

/// A directory that this process alone works in, for as long as the value lives.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Creates `dir` where needed and locks its file `name`, which stays there.
    ///
    /// # Errors
    /// [`CheckpointError::InUse`] where another process holds it.
    pub fn take(dir: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(dir).map_err(io("create", dir))?;
        Ok(Self { _file: lock(dir, name)? })
    }
}

/// Writes a whole file and fsyncs it.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(io("create", path))?;
    file.write_all(bytes).map_err(io("write", path))?;
    file.sync_all().map_err(io("sync", path))
}

/// Fsyncs the directory that holds `path`.
pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    sync(parent(path))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Fails unless `dst` does not exist or is an empty directory.
fn require_free(dst: &Path) -> Result<()> {
    let exists = || Err(CheckpointError::DestinationExists { path: dst.into() });
    match fs::symlink_metadata(dst) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(io("look at", dst)(e)),
        Ok(meta) if !meta.is_dir() => exists(),
        Ok(_) => match fs::read_dir(dst).map_err(io("list", dst))?.next() {
            None => Ok(()),
            Some(_) => exists(),
        },
    }
}

/// Fails where something stands under the name of a staging directory that no writer left there: a file, a
/// link, a directory with files and without the lock that every writer makes first.
fn require_ours(dir: &Path) -> Result<()> {
    let directory = fs::symlink_metadata(dir).is_ok_and(|meta| meta.is_dir());
    if directory && fs::symlink_metadata(dir.join(LOCK)).is_ok_and(|meta| meta.is_file()) {
        return Ok(());
    }
    require_free(dir)
}

/// Creates `dir` where needed and takes its lock.
fn lock(dir: &Path, name: &str) -> Result<File> {
    let path = dir.join(name);
    // Another process may finish or clear the directory between the steps: then they start again.
    for _ in 0..100 {
        match fs::create_dir(dir) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(io("create", dir)(e)),
            _ => {}
        }
        let file = match File::options().create(true).write(true).truncate(false).open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            opened => opened.map_err(io("create", &path))?,
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(CheckpointError::InUse { path: dir.into() }),
            // A file system without locks: nothing can be held, and nothing told apart.
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {}
            Err(TryLockError::Error(e)) => return Err(io("lock", &path)(e)),
        }
        let ours = file.metadata().map_err(io("look at", &path))?;
        if fs::metadata(&path).is_ok_and(|m| (m.dev(), m.ino()) == (ours.dev(), ours.ino())) {
            return Ok(file);
        }
    }
    Err(CheckpointError::InUse { path: dir.into() })
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(io("sync", path))
}

/// Fsyncs all files below `dir`, then their directories.
fn sync_tree(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(io("list", dir))? {
        let entry = entry.map_err(io("list", dir))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(io("look at", &path))?;
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            sync(&path)?;
        }
    }
    sync(dir)
}
