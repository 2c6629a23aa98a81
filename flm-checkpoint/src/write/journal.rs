//! What a run has finished, on disk from one moment to the next.

use crate::identity::RunKey;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::atomic;
use crate::error::CheckpointError;
use crate::error::{Result, io};
use crate::part::JobPart;
use crate::write::part::{self, Finisher};

const JOURNAL_FILE: &str = ".journal.jsonl";
/// The last line of a part's journal: all of its tensors are there and on the disk.
const COMPLETE: &str = "{\"complete\":true}\n";

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    tensor: String,
    blake3: String,
}

/// The journal of a staging directory: its key, then a line for each finished tensor.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// Digests of the tensors that an earlier run has finished.
    pub(crate) finished: BTreeMap<String, String>,
}

impl Journal {
    /// Whether a run of the same key was begun in `staging`.
    ///
    /// # Errors
    /// [`CheckpointError::ResumeMismatch`] where one of another key was.
    pub(crate) fn is_begun(staging: &Path, key: &RunKey) -> Result<bool> {
        let mismatch = |difference| CheckpointError::ResumeMismatch { path: staging.into(), difference };
        if let Some(part) = part::begun(staging)?.first() {
            return Err(mismatch(format!("--part, of {}", part.count())));
        }
        match Self::difference(&staging.join(JOURNAL_FILE), key)? {
            None => Ok(false),
            Some(None) => Ok(true),
            Some(Some(difference)) => Err(mismatch(difference)),
        }
    }

    /// What differs between the run of a journal, where there is one, and that of `key`.
    fn difference(path: &Path, key: &RunKey) -> Result<Option<Option<String>>> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(io("read", path))?,
        };
        // A run that died before its first line was whole has finished nothing.
        let Some((first, _)) = text.split_once('\n') else { return Ok(Some(None)) };
        Ok(Some(match serde_json::from_str::<RunKey>(first) {
            Ok(begun) => key.difference(&begun),
            Err(_) => Some("a journal that cannot be read".into()),
        }))
    }

    /// Makes a staging directory ready for a part of a run of `key`: what is there must be of that run, and of as many
    /// parts; with `restart`, and where no other part works there, what is of another goes.
    ///
    /// # Errors
    /// [`CheckpointError::ResumeMismatch`].
    pub(crate) fn prepare(
        staging: &Path,
        key: &RunKey,
        part: JobPart,
        restart: bool,
        alone: bool,
    ) -> Result<()> {
        let mut differences = Vec::new();
        if staging.join(JOURNAL_FILE).exists() {
            differences.push("all tensors in one process".into());
        }
        for begun in part::begun(staging)? {
            if begun.count() != part.count() {
                differences.push(format!(
                    "another number of parts ({}, now {})",
                    begun.count(),
                    part.count()
                ));
            } else if let Some(Some(difference)) = Self::difference(&staging.join(begun.journal_name()), key)?
            {
                differences.push(difference);
            }
        }
        match differences.into_iter().next() {
            Some(_) if restart && alone => atomic::clear(staging),
            Some(difference) => Err(CheckpointError::ResumeMismatch { path: staging.into(), difference }),
            None if restart => atomic::remove(&staging.join(part.journal_name())),
            None => Ok(()),
        }
    }

    /// The digests of all tensors of a part, once they are all there.
    pub(crate) fn of_complete_part(
        staging: &Path,
        key: &RunKey,
        part: JobPart,
    ) -> Result<Option<BTreeMap<String, String>>> {
        let path = staging.join(part.journal_name());
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(io("read", &path))?,
        };
        let Some(lines) =
            text.strip_suffix(COMPLETE).and_then(|text| text.strip_prefix(json_line(key).as_str()))
        else {
            return Ok(None);
        };
        let lines = lines.lines().map(serde_json::from_str::<Line>);
        Ok(lines
            .map(|line| line.map(|line| (line.tensor, line.blake3)))
            .collect::<std::result::Result<_, _>>()
            .ok())
    }

    /// # Errors
    /// [`CheckpointError::Unfinished`] where any run was begun in `staging`.
    pub(crate) fn require_none(staging: &Path) -> Result<()> {
        let begun =
            staging.join(JOURNAL_FILE).symlink_metadata().is_ok() || !part::begun(staging)?.is_empty();
        if begun { Err(CheckpointError::Unfinished { path: staging.into() }) } else { Ok(()) }
    }

    /// Begins the journal, that of a part where there are several, or goes on with one of the same key.
    pub(crate) fn open(staging: &Path, key: &RunKey, part: Option<JobPart>) -> Result<Self> {
        let path = staging.join(part.map_or(JOURNAL_FILE.into(), JobPart::journal_name));
        let key = json_line(key);
        let text = fs::read_to_string(&path).unwrap_or_default();
        // The last line may be torn.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        let lines = whole.strip_prefix(key.as_str()).unwrap_or_default().lines();
        let lines = lines.map_while(|line| serde_json::from_str::<Line>(line).ok());
        let finished: BTreeMap<_, _> = lines.map(|line| (line.tensor, line.blake3)).collect();
        let mut start = key;
        for (tensor, blake3) in &finished {
            start += &json_line(&Line { tensor: tensor.clone(), blake3: blake3.clone() });
        }
        let mut file = File::create(&path).map_err(io("create", &path))?;
        file.write_all(start.as_bytes()).map_err(io("write", &path))?;
        Ok(Self { path, file, finished })
    }

    /// Adds a tensor.
    pub(crate) fn finish(&mut self, tensor: &str, blake3: &str) -> Result<()> {
        let line = json_line(&Line { tensor: tensor.into(), blake3: blake3.into() });
        self.file.write_all(line.as_bytes()).map_err(io("write", &self.path))
    }

    /// Says that all tensors of the part are on the disk.
    pub(crate) fn complete(&mut self) -> Result<()> {
        let written = self.file.write_all(COMPLETE.as_bytes()).and_then(|()| self.file.sync_all());
        written.map_err(io("write", &self.path))
    }

    /// Removes the journals of a staging directory, and what its parts held locked, as the last step before the
    /// directory gets its name: whenever a run dies, the output has no journal in it.
    pub(crate) fn remove(staging: &Path) -> Result<()> {
        atomic::remove(&staging.join(JOURNAL_FILE))?;
        let begun = part::begun(staging)?;
        for name in begun.iter().flat_map(|part| [part.journal_name(), part.lock_name()]) {
            atomic::remove(&staging.join(name))?;
        }
        if let Some(part) = begun.first() {
            let nobody = part.nobody();
            atomic::remove(&staging.join(nobody.journal_name()))?;
            atomic::remove(&staging.join(nobody.lock_name()))?;
            atomic::remove(&staging.join(Finisher::NAME))?;
        }
        Ok(())
    }
}

fn json_line(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string(value).unwrap_or_default();
    text.push('\n');
    text
}
