//! What an execution has finished, on disk from one moment to the next.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flm_candle::checkpoint::Checkpoint;
use serde::{Deserialize, Serialize};

use super::ExecuteOptions;
use crate::error::{GrowthError, Result};

const JOURNAL_FILE: &str = ".journal.jsonl";

/// What two runs must have in common for one to go on where the other stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct JournalKey {
    version: u32,
    tool: String,
    seed: u64,
    plan: String,
    max_shard_bytes: u64,
    source: Vec<SourceFile>,
}

/// A file of the source: nothing of it is read to tell whether it changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SourceFile {
    name: String,
    bytes: u64,
    /// Of the last change: seconds and nanoseconds.
    modified: (i64, i64),
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    tensor: String,
    blake3: String,
}

impl JournalKey {
    pub(super) fn new(seed: u64, plan: &str, source: &Checkpoint, options: &ExecuteOptions) -> Result<Self> {
        let config = source.dir().join("config.json");
        let paths = source.files().iter().map(|f| f.path.clone()).chain([config]);
        let source = paths.map(|path| {
            let meta = fs::metadata(&path).map_err(read(&path))?;
            let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
            Ok(SourceFile { name, bytes: meta.len(), modified: (meta.mtime(), meta.mtime_nsec()) })
        });
        Ok(Self {
            version: 1,
            tool: super::provenance::TOOL.into(),
            seed,
            plan: plan.into(),
            max_shard_bytes: options.max_shard_bytes,
            source: source.collect::<Result<_>>()?,
        })
    }

    /// What differs, in words.
    fn difference(&self, other: &Self) -> Option<String> {
        let changed = |what: &str, is: &dyn std::fmt::Display, was: &dyn std::fmt::Display| {
            Some(format!("another {what} ({was}, now {is})"))
        };
        if (self.version, &self.tool) != (other.version, &other.tool) {
            return changed("version of this program", &self.tool, &other.tool);
        }
        if self.seed != other.seed {
            return changed("seed", &self.seed, &other.seed);
        }
        if self.plan != other.plan {
            return Some("another plan (target, operator, placement or another option)".into());
        }
        if self.max_shard_bytes != other.max_shard_bytes {
            return changed("largest file size", &self.max_shard_bytes, &other.max_shard_bytes);
        }
        if self.source != other.source {
            let file = self.source.iter().find(|f| !other.source.contains(f));
            let name = file.or(other.source.first()).map_or("", |f| f.name.as_str());
            return Some(format!("another source ({name} has changed since)"));
        }
        None
    }
}

/// The journal of a staging directory: its key, then a line for each finished tensor.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    key: String,
    /// Digests of the tensors that an earlier run has finished.
    pub(super) finished: BTreeMap<String, String>,
}

impl Journal {
    /// Whether a run was begun in `staging`.
    pub(super) fn exists(staging: &Path) -> bool {
        staging.join(JOURNAL_FILE).is_file()
    }

    /// Refuses a run of another key.
    pub(super) fn check(staging: &Path, key: &JournalKey) -> Result<()> {
        let path = staging.join(JOURNAL_FILE);
        let text = fs::read_to_string(&path).map_err(read(&path))?;
        // a run that died before its first line was whole has finished nothing
        let Some((first, _)) = text.split_once('\n') else { return Ok(()) };
        let mismatch = |difference: String| {
            let path = staging.display().to_string();
            Err(GrowthError::ResumeMismatch { path, difference })
        };
        match serde_json::from_str::<JournalKey>(first) {
            Ok(begun) => key.difference(&begun).map_or(Ok(()), mismatch),
            Err(_) => mismatch("a journal that cannot be read".into()),
        }
    }

    /// Begins the journal, or goes on with one of the same key.
    pub(super) fn open(staging: &Path, key: &JournalKey) -> Result<Self> {
        let path = staging.join(JOURNAL_FILE);
        let mut key = serde_json::to_string(key)?;
        key.push('\n');
        let text = fs::read_to_string(&path).unwrap_or_default();
        // the last line may be torn
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        let finished = match whole.strip_prefix(key.as_str()) {
            Some(lines) => lines
                .lines()
                .map_while(|line| serde_json::from_str::<Line>(line).ok())
                .map(|line| (line.tensor, line.blake3))
                .collect(),
            None => BTreeMap::new(),
        };
        let mut file = File::create(&path).map_err(write(&path))?;
        let mut start = key.clone();
        for (tensor, blake3) in &finished {
            start += &line(tensor, blake3)?;
        }
        file.write_all(start.as_bytes()).map_err(write(&path))?;
        Ok(Self { path, file, key, finished })
    }

    /// Adds a tensor.
    pub(super) fn finish(&mut self, tensor: &str, blake3: &str) -> Result<()> {
        self.file.write_all(line(tensor, blake3)?.as_bytes()).map_err(write(&self.path))
    }

    /// Takes all tensors out.
    pub(super) fn forget(self) -> Result<()> {
        fs::write(&self.path, &self.key).map_err(write(&self.path))
    }

    /// Removes the journal from the finished checkpoint.
    pub(super) fn remove(dst: &Path) -> Result<()> {
        let path = dst.join(JOURNAL_FILE);
        fs::remove_file(&path).map_err(write(&path))
    }
}

fn line(tensor: &str, blake3: &str) -> Result<String> {
    let mut text = serde_json::to_string(&Line { tensor: tensor.into(), blake3: blake3.into() })?;
    text.push('\n');
    Ok(text)
}

fn read(path: &Path) -> impl FnOnce(std::io::Error) -> GrowthError {
    let path = path.display().to_string();
    |source| GrowthError::Read { path, source }
}

fn write(path: &Path) -> impl FnOnce(std::io::Error) -> GrowthError {
    let path = path.display().to_string();
    |source| GrowthError::Write { path, source }
}
