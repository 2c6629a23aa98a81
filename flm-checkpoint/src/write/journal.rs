//! What a run has finished, on disk from one moment to the next.

use crate::identity::RunKey;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::CheckpointError;
use crate::error::{Result, io};

const JOURNAL_FILE: &str = ".journal.jsonl";

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
        let path = staging.join(JOURNAL_FILE);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            read => read.map_err(io("read", &path))?,
        };
        // A run that died before its first line was whole has finished nothing.
        let Some((first, _)) = text.split_once('\n') else { return Ok(true) };
        let difference = match serde_json::from_str::<RunKey>(first) {
            Ok(begun) => key.difference(&begun),
            Err(_) => Some("a journal that cannot be read".into()),
        };
        match difference {
            None => Ok(true),
            Some(difference) => Err(CheckpointError::ResumeMismatch { path: staging.into(), difference }),
        }
    }

    /// # Errors
    /// [`CheckpointError::Unfinished`] where any run was begun in `staging`.
    pub(crate) fn require_none(staging: &Path) -> Result<()> {
        match staging.join(JOURNAL_FILE).symlink_metadata() {
            Ok(_) => Err(CheckpointError::Unfinished { path: staging.into() }),
            Err(_) => Ok(()),
        }
    }

    /// Begins the journal, or goes on with one of the same key.
    pub(crate) fn open(staging: &Path, key: &RunKey) -> Result<Self> {
        let path = staging.join(JOURNAL_FILE);
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

    /// Removes the journal of a staging directory, where there is one, as the last step before the directory
    /// gets its name: whenever a run dies, the output has no journal in it.
    pub(crate) fn remove(staging: &Path) -> Result<()> {
        let path = staging.join(JOURNAL_FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("remove", &path)(error)),
            _ => Ok(()),
        }
    }
}

fn json_line(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string(value).unwrap_or_default();
    text.push('\n');
    text
}
