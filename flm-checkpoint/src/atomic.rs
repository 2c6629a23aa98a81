//! Files and directories that appear complete and fsynced, or not at all; locks. Nothing else in the workspace
//! creates or renames a file that is to stay: `scripts/tidy` looks.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::error::{CheckpointError, Result, io};

pub use lock::DirectoryLock;
pub use staging::Staging;
pub(crate) use staging::clear;

mod lock;
mod staging;

/// Replaces the file `path` by `bytes`, whole or not at all. Who may read and write it stays as it was.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = parent(path);
    let mut file = tempfile::Builder::new()
        .prefix(".flm-new.")
        .permissions(PermissionsExt::from_mode(0o644))
        .tempfile_in(dir)
        .map_err(io("create a file in", dir))?;
    if let Some(old) = path.symlink_metadata().ok().filter(fs::Metadata::is_file) {
        let new = file.as_file().metadata().map_err(io("look at", file.path()))?.permissions();
        // before there is anything to be read in it
        if new != old.permissions() {
            file.as_file().set_permissions(old.permissions()).map_err(io("set the permissions of", path))?;
        }
    }
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(io("write", path))?;
    file.persist(path).map_err(|e| io("rename to", path)(e.error))?;
    sync(dir)
}

/// Writes and fsyncs a file of a directory that nobody reads yet.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(io("create", path))?;
    file.write_all(bytes).map_err(io("write", path))?;
    file.sync_all().map_err(io("sync", path))
}

/// Gives the fsynced file `from` its final name.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(io("rename to", to))?;
    sync(parent(to))
}

/// Removes a file if it is there.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Fsyncs a file, or a directory: the names in it are then on disk.
pub fn sync(path: &Path) -> Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path).and_then(|f| f.sync_all()).map_err(io("sync", path))
}

/// Opens a file that this program keeps for itself in a directory of the user's, never through a link and never
/// waiting on a pipe.
///
/// # Errors
/// [`CheckpointError::NotAFile`] where the name is taken by something else.
pub fn open_own(path: &Path, options: &mut OpenOptions) -> Result<File> {
    if path.symlink_metadata().is_ok_and(|meta| !meta.is_file()) {
        return Err(CheckpointError::NotAFile { path: path.into() });
    }
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    options.custom_flags(flags).open(path).map_err(io("open", path))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_replaced_stays_as_private_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scores.json");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        replace(&path, b"new").unwrap();
        let usual = mode(&path);
        for private in [0o600, 0o640, 0o444] {
            fs::set_permissions(&path, PermissionsExt::from_mode(private)).unwrap();
            replace(&path, b"newer").unwrap();
            assert_eq!((mode(&path), fs::read(&path).unwrap().as_slice()), (private, &b"newer"[..]));
        }
        // a link is replaced by a file of its own, whatever it led to
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        replace(&link, b"x").unwrap();
        assert_eq!(mode(&link), usual);
    }

    #[test]
    fn a_file_of_our_own_is_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let (users, own) = (dir.path().join("users"), dir.path().join(".own"));
        fs::write(&users, "theirs").unwrap();
        std::os::unix::fs::symlink(&users, &own).unwrap();
        let opened = open_own(&own, File::options().write(true).create(true).truncate(false));
        assert!(matches!(opened, Err(CheckpointError::NotAFile { .. })));
        replace(&users, b"new").unwrap();
        assert_eq!(fs::read_to_string(&own).unwrap(), "new");
    }
}
