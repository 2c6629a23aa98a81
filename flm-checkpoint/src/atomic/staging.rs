//! A directory that is filled beside its destination, and takes its name, or gives its files theirs, when it is
//! complete.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::atomic::lock::DirectoryLock;
use crate::atomic::{parent, sync};
use crate::error::{CheckpointError, Result, io};

/// Held locked while a process writes; the lock goes with the process.
const LOCK: &str = ".lock";

/// The directory `.NAME.partial` beside `NAME`.
#[derive(Debug)]
pub struct Staging {
    dst: PathBuf,
    dir: PathBuf,
    /// Keeps the lock, that of the part where there are several, and the one that all of them share.
    _lock: DirectoryLock,
    _shared: Option<DirectoryLock>,
    /// Whether to leave the directory when dropped.
    pub keep: bool,
}

impl Staging {
    /// Makes the staging directory of `dst`, empty; one that a dead process left is taken over.
    pub fn create(dst: &Path) -> Result<Self> {
        let staging = Self::take_over(dst)?;
        staging.clear()?;
        Ok(staging)
    }

    /// The staging directory of `dst` with whatever a dead process left in it.
    pub fn take_over(dst: &Path) -> Result<Self> {
        let dir = Self::path(dst)?;
        require_free(dst)?;
        require_ours(&dir)?;
        let parent = parent(dst);
        fs::create_dir_all(parent).map_err(io("create", parent))?;
        let lock = DirectoryLock::take(&dir, LOCK)?;
        Ok(Self { dst: dst.into(), dir, _lock: lock, _shared: None, keep: false })
    }

    /// The staging directory of `dst`, to work in beside other parts; `lock` is the file that this one holds alone.
    /// `prepare` sees the directory, and whether no other part works there while it looks.
    pub(crate) fn join(
        dst: &Path,
        lock: &str,
        prepare: impl FnOnce(&Path, bool) -> Result<()>,
    ) -> Result<Self> {
        let dir = Self::path(dst)?;
        require_free(dst)?;
        require_ours(&dir)?;
        let shared = DirectoryLock::share(&dir, LOCK, |alone| prepare(&dir, alone))?;
        let lock = DirectoryLock::take(&dir, lock)?;
        Ok(Self { dst: dst.into(), dir, _lock: lock, _shared: Some(shared), keep: true })
    }

    /// Where the staging directory of `dst` is.
    pub fn path(dst: &Path) -> Result<PathBuf> {
        let name = dst.file_name().ok_or_else(|| CheckpointError::BadDestination { path: dst.into() })?;
        let mut staging_name = OsString::from(".");
        staging_name.push(name);
        staging_name.push(".partial");
        Ok(dst.with_file_name(staging_name))
    }

    /// The staging directory, beside the destination.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn clear(&self) -> Result<()> {
        clear(&self.dir)
    }

    /// Gives files of the staging directory, which are fsynced, the names `to`, none of which may exist, in this
    /// order; then the directory goes.
    pub fn publish_files(self, files: &[(PathBuf, PathBuf)]) -> Result<()> {
        for (_, to) in files {
            require_absent(to)?;
        }
        for (from, to) in files {
            fs::rename(from, to).map_err(io("rename the finished file to", to))?;
        }
        sync(parent(&self.dst))
    }

    /// Brings everything in the staging directory to the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        sync_tree(&self.dir)
    }

    /// Makes the staging directory `dst`: fsyncs its files and itself, renames it, fsyncs the parent.
    pub fn publish(mut self) -> Result<()> {
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

/// Empties a staging directory but for its lock.
pub(crate) fn clear(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(io("list", dir))? {
        let entry = entry.map_err(io("list", dir))?;
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

/// Fails where anything has the name `dst`.
fn require_absent(dst: &Path) -> Result<()> {
    match fs::symlink_metadata(dst) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(io("look at", dst)(e)),
        Ok(_) => Err(CheckpointError::FileExists { path: dst.into() }),
    }
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
