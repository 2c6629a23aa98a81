//! One checkpoint written by several processes that share a file system and nothing else.
//!
//! Each writes the tensors that are its part, with a journal of its own, into the staging directory of all. Whoever
//! finds every journal complete gives the checkpoint its name.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use crate::atomic::{Staging, open_own};
use crate::error::{CheckpointError, Result, io};
use crate::part::JobPart;

impl JobPart {
    /// Nobody's share of what the parts of `dst` have written, to finish it.
    ///
    /// # Errors
    /// [`CheckpointError::NoParts`] where none have begun.
    pub fn finishing(dst: &Path) -> Result<Self> {
        let begun = begun(&Staging::path(dst)?)?;
        let part = begun.first().ok_or_else(|| CheckpointError::NoParts { path: dst.into() })?;
        Ok(part.nobody())
    }
}

/// The parts that have a journal in a staging directory.
pub(crate) fn begun(staging: &Path) -> Result<Vec<JobPart>> {
    let entries = match fs::read_dir(staging) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io("list", staging))?,
    };
    let mut parts = Vec::new();
    for entry in entries {
        let name = entry.map_err(io("list", staging))?.file_name();
        let middle =
            name.to_str().and_then(|name| name.strip_prefix(JobPart::JOURNALS)?.strip_suffix(".jsonl"));
        let part = middle.and_then(|middle| middle.replace("-of-", "/").parse::<JobPart>().ok());
        parts.extend(part);
    }
    parts.sort_by_key(|part| (part.count(), part.index()));
    Ok(parts)
}

/// The right to finish a checkpoint, which one process has at a time.
#[derive(Debug)]
pub(crate) struct Finisher {
    _file: File,
}

impl Finisher {
    /// Name of the locked file.
    pub(crate) const NAME: &'static str = ".lock-finish";

    /// Waits for the right; `None` once the staging directory is gone, as somebody else has finished.
    pub(crate) fn wait(staging: &Path) -> Result<Option<Self>> {
        let path = staging.join(Self::NAME);
        let mut options = File::options();
        let file = match open_own(&path, options.read(true).write(true).create(true).truncate(false)) {
            Err(CheckpointError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Ok(None);
            }
            opened => opened?,
        };
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(fs::TryLockError::WouldBlock) if staging.is_dir() => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(fs::TryLockError::WouldBlock) => return Ok(None),
                // a file system without locks
                Err(fs::TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => break,
                Err(fs::TryLockError::Error(e)) => return Err(io("lock", &path)(e)),
            }
        }
        Ok(staging.is_dir().then_some(Self { _file: file }))
    }
}
