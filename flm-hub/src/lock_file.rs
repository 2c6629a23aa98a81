//! flm.lock: what a directory was downloaded from, so that later pulls fetch the same.

use crate::names::NAME;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, is_digest};
use crate::error::{HubError, Result, io};
use crate::names as file_name;
use crate::names::is_repository;
use flm_checkpoint::atomic;

/// The content of flm.lock.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LockFile {
    version: u32,
    pub repository: String,
    /// What was asked for when the lock was made.
    pub revision: String,
    pub commit: String,
    #[serde(rename = "file", default)]
    pub files: Vec<LockedFile>,
}

/// A file with what it is held to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LockedFile {
    pub name: String,
    pub bytes: u64,
    #[serde(flatten)]
    pub digest: Digest,
}

impl LockFile {
    pub(crate) fn new(repository: &str, revision: &str, commit: &str) -> Self {
        let owned = str::to_owned;
        let (repository, revision, commit) = (owned(repository), owned(revision), owned(commit));
        Self { version: 1, repository, revision, commit, files: Vec::new() }
    }

    /// The lock of a directory, if it has one.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(NAME);
        if path.metadata().is_ok_and(|meta| !meta.is_file()) {
            let (path, reason) = (path.display().to_string(), "it is no regular file: remove it".into());
            return Err(HubError::Malformed { path, reason });
        }
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(io("read", &path))?,
        };
        let fail = |reason: String| HubError::Malformed { path: path.display().to_string(), reason };
        let lock: Self = toml::from_str(&text).map_err(|e| fail(e.to_string()))?;
        if lock.version != 1 || !is_repository(&lock.repository) || !is_digest(&lock.commit, 40) {
            return Err(fail("not a lock file of this flm".into()));
        }
        let mut names = std::collections::HashSet::new();
        for file in &lock.files {
            file_name::check(&file.name).map_err(|e| fail(e.to_string()))?;
            let digits = if matches!(file.digest, Digest::Sha256(_)) { 64 } else { 40 };
            if !is_digest(file.digest.hex(), digits) || !names.insert(&file.name) {
                return Err(fail(format!("{:?} has no proper digest, or stands twice", file.name)));
            }
        }
        Ok(Some(lock))
    }

    /// Writes the lock; nothing where it stands so already.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(NAME);
        let text = toml::to_string(self)
            .map_err(|e| HubError::Malformed { path: path.display().to_string(), reason: e.to_string() })?;
        let text =
            format!("# Written by flm pull: later pulls into this directory fetch exactly this.\n{text}");
        if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        Ok(atomic::replace(&path, text.as_bytes())?)
    }

    /// What a file is held to.
    pub(crate) fn find(&self, name: &str) -> Option<&LockedFile> {
        self.files.iter().find(|f| f.name == name)
    }

    /// Takes files up that the lock did not have.
    pub(crate) fn add(&mut self, file: LockedFile) {
        if self.find(&file.name).is_none() {
            self.files.push(file);
            self.files.sort_by(|a, b| a.name.cmp(&b.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert!(LockFile::read(dir.path()).unwrap().is_none());
        let mut lock = LockFile::new("o/r", "main", &"c".repeat(40));
        let file = |name: &str, digest| LockedFile { name: name.into(), bytes: 7, digest };
        lock.add(file("b.bin", Digest::Sha256("1".repeat(64))));
        lock.add(file("a.json", Digest::GitSha1("2".repeat(40))));
        lock.add(file("a.json", Digest::GitSha1("3".repeat(40))));
        lock.write(dir.path()).unwrap();
        let read = LockFile::read(dir.path()).unwrap().unwrap();
        assert_eq!(read.files, lock.files);
        assert_eq!(read.files[0], file("a.json", Digest::GitSha1("2".repeat(40))));

        for (from, to) in
            [("a.json", "../a"), ("22222222", "zz222222"), ("o/r", "o"), ("version = 1", "version = 2")]
        {
            let path = dir.path().join(NAME);
            let good = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, good.replace(from, to)).unwrap();
            assert!(matches!(LockFile::read(dir.path()), Err(HubError::Malformed { .. })), "{from}");
            std::fs::write(&path, good).unwrap();
        }
    }
}
