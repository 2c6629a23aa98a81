//! What was finished in a target directory: an append-only file of JSON lines, fsynced line by line.

use std::{
    collections::HashMap,
    fs::{File, Metadata},
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use flm_checkpoint::ShardTensor;
use serde::{Deserialize, Serialize};

use crate::error::{Result, io};

const NAME: &str = ".flm-pull.journal";

/// Something that is done and need not be done again.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "done")]
pub(crate) enum Entry {
    /// The file has the digest; the stamp tells whether it was touched since.
    Verified { file: String, digest: String, stamp: Stamp },
    /// An output is begun: what will stand under this name is flm's own.
    Begun { output: String },
    /// A shard's tensors are safe in another file.
    Converted { file: String, digest: String, output: String, tensors: Vec<ShardTensor>, stamp: Stamp },
}

/// What changes when a file is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    bytes: u64,
    mtime: i64,
    mtime_nsec: i64,
}

impl From<&Metadata> for Stamp {
    fn from(meta: &Metadata) -> Self {
        Self { bytes: meta.len(), mtime: meta.mtime(), mtime_nsec: meta.mtime_nsec() }
    }
}

/// A shard whose tensors are safe.
#[derive(Debug, Clone)]
pub(crate) struct Converted {
    pub output: String,
    pub tensors: Vec<ShardTensor>,
}

/// The journal of a target directory.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    log: Option<File>,
    verified: HashMap<String, (String, Stamp)>,
    converted: HashMap<String, (String, Converted, Stamp)>,
    /// Outputs, with the stamp of those that are finished.
    outputs: HashMap<String, Option<Stamp>>,
}

impl Journal {
    /// Reads the journal of a directory, which need not have one; lines that a crash tore are passed over.
    pub(crate) fn read(dir: &Path) -> Self {
        let mut state = State::default();
        let path = dir.join(NAME);
        // not a pipe, which would be waited for
        let text = path.is_file().then(|| std::fs::read_to_string(&path).unwrap_or_default());
        for line in text.unwrap_or_default().lines() {
            if let Ok(entry) = serde_json::from_str(line) {
                state.take(entry);
            }
        }
        Self { dir: dir.into(), state: Mutex::new(state) }
    }

    /// Whether the file is there, as it was when it had that digest.
    pub(crate) fn is_verified(&self, file: &str, digest: &str) -> bool {
        let state = self.state();
        let known = state.verified.get(file).filter(|(known, _)| known == digest);
        known.is_some_and(|(_, stamp)| stamp_of(&self.dir.join(file)) == Some(*stamp))
    }

    /// Whether the file was verified once, whatever it is to be now, and was not touched since.
    pub(crate) fn is_untouched(&self, file: &str) -> bool {
        let state = self.state();
        state.verified.get(file).is_some_and(|(_, stamp)| stamp_of(&self.dir.join(file)) == Some(*stamp))
    }

    /// Whether what stands under an output's name was made here and not touched since.
    pub(crate) fn is_own_output(&self, output: &str) -> bool {
        let state = self.state();
        match state.outputs.get(output) {
            Some(None) => true,
            Some(stamp) => stamp_of(&self.dir.join(output)) == *stamp,
            // an index or list of digests from before outputs were recorded when they are begun
            None => output.ends_with(".json") && !state.converted.is_empty(),
        }
    }

    pub(crate) fn begin_output(&self, output: &str) -> Result<()> {
        self.append(Entry::Begun { output: output.into() })
    }

    /// Where the tensors of a shard with that digest are safe, if they are.
    pub(crate) fn converted(&self, file: &str, digest: &str) -> Option<Converted> {
        let state = self.state();
        let (_, converted, stamp) = state.converted.get(file).filter(|(known, ..)| known == digest)?;
        (stamp_of(&self.dir.join(&converted.output)) == Some(*stamp)).then(|| converted.clone())
    }

    pub(crate) fn verified(&self, file: &str, digest: &str) -> Result<()> {
        let stamp = self.stamp(file)?;
        self.append(Entry::Verified { file: file.into(), digest: digest.into(), stamp })
    }

    pub(crate) fn add_converted(
        &self,
        file: &str,
        digest: &str,
        output: &str,
        tensors: Vec<ShardTensor>,
    ) -> Result<()> {
        let stamp = self.stamp(output)?;
        let (file, digest, output) = (file.into(), digest.into(), output.into());
        self.append(Entry::Converted { file, digest, output, tensors, stamp })
    }

    fn stamp(&self, file: &str) -> Result<Stamp> {
        let path = self.dir.join(file);
        Ok(Stamp::from(&path.metadata().map_err(io("look at", &path))?))
    }

    fn append(&self, entry: Entry) -> Result<()> {
        let path = self.dir.join(NAME);
        let mut state = self.state();
        if state.log.is_none() {
            let log = flm_checkpoint::atomic::open_own(&path, File::options().create(true).append(true))?;
            flm_checkpoint::atomic::sync(&self.dir)?;
            state.log = Some(log);
        }
        // the newline first: it ends a line that a crash tore
        let line = format!("\n{}\n", serde_json::to_string(&entry).unwrap_or_default());
        if let Some(log) = &mut state.log {
            log.write_all(line.as_bytes()).and_then(|()| log.sync_data()).map_err(io("write", &path))?;
        }
        state.take(entry);
        Ok(())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, entry: Entry) {
        match entry {
            Entry::Verified { file, digest, stamp } => {
                self.verified.insert(file, (digest, stamp));
            }
            Entry::Begun { output } => {
                self.outputs.insert(output, None);
            }
            Entry::Converted { file, digest, output, tensors, stamp } => {
                self.outputs.insert(output.clone(), Some(stamp));
                self.converted.insert(file, (digest, Converted { output, tensors }, stamp));
            }
        }
    }
}

fn stamp_of(path: &Path) -> Option<Stamp> {
    let meta = path.metadata().ok().filter(Metadata::is_file)?;
    Some(Stamp::from(&meta))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_touched_is_not_verified() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "1").unwrap();
        Journal::read(dir.path()).verified("a", "d").unwrap();
        // a line that a crash tore
        let mut log = File::options().append(true).open(dir.path().join(NAME)).unwrap();
        log.write_all(b"{\"done\":\"veri").unwrap();
        let journal = Journal::read(dir.path());
        assert!(
            journal.is_verified("a", "d") && !journal.is_verified("a", "e") && !journal.is_verified("b", "d")
        );
        let tensor: ShardTensor = serde_json::from_value(serde_json::json!({
            "name": "t", "blake3": "00",
            "source": {"file": "x.bin", "entry": "x/data/0", "offset": 64, "bytes": 4, "dtype": "float32", "shape": [1]},
        }))
        .unwrap();
        journal.add_converted("x.bin", "d", "a", vec![tensor.clone()]).unwrap();
        let journal = Journal::read(dir.path());
        assert_eq!(journal.converted("x.bin", "d").unwrap().tensors, [tensor]);
        std::fs::write(&path, "12").unwrap();
        assert!(!journal.is_verified("a", "d") && journal.converted("x.bin", "d").is_none());
    }
}
