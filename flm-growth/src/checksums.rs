//! Digests of a checkpoint's files and tensors, and the check of a directory against them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use flm_candle::checkpoint::Checkpoint;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{GrowthError, Result};

/// Name of the file in a checkpoint that holds its digests.
pub const CHECKSUMS_FILE: &str = "checksums.json";

/// BLAKE3 digests of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksums {
    /// Version of this format: 1.
    pub version: u32,
    /// Every file but this one, by name.
    pub files: BTreeMap<String, FileDigest>,
    /// Every tensor's bytes, by name, in hexadecimal.
    pub tensors: BTreeMap<String, String>,
}

impl Default for Checksums {
    fn default() -> Self {
        Self { version: 1, files: BTreeMap::new(), tensors: BTreeMap::new() }
    }
}

/// Length and BLAKE3 of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// Length in bytes.
    pub bytes: u64,
    /// The digest in hexadecimal, as `b3sum` prints it.
    pub blake3: String,
}

impl FileDigest {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, blake3: blake3::hash(bytes).to_hex().to_string() }
    }
}

/// What a check of a directory found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChecksumReport {
    /// Files compared.
    pub files: usize,
    /// Bytes read.
    pub bytes: u64,
    /// What is wrong, in words.
    pub problems: Vec<String>,
    /// Whether nothing is.
    pub passed: bool,
}

impl Checksums {
    /// As JSON text.
    pub fn to_json(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        Ok(text)
    }

    /// Reads the digests of the checkpoint in `dir`.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(CHECKSUMS_FILE);
        let text = std::fs::read_to_string(&path)
            .map_err(|source| GrowthError::Read { path: path.display().to_string(), source })?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Bytes of all files.
    pub fn total_bytes(&self) -> u64 {
        self.files.values().map(|f| f.bytes).sum()
    }

    /// Compares every file in `dir` with its digest; of a damaged weight file the damaged tensors are
    /// named. `progress` is called, from several threads, with the bytes read since its last call.
    ///
    /// # Errors
    /// Only where a file that is there cannot be read.
    pub fn check(&self, dir: &Path, progress: &(dyn Fn(u64) + Sync)) -> Result<ChecksumReport> {
        let files: Vec<_> = self.files.iter().collect();
        let found: Vec<(u64, Option<(&str, String)>)> = files
            .par_iter()
            .map(|(name, expected)| {
                let path = dir.join(name);
                if !path.is_file() {
                    return Ok((0, Some((name.as_str(), format!("{name} is missing")))));
                }
                let digest = file_digest(&path, progress)?;
                let problem = if digest == **expected {
                    None
                } else if digest.bytes != expected.bytes {
                    Some(format!("{name} has {} bytes, expected {}", digest.bytes, expected.bytes))
                } else {
                    Some(format!(
                        "{name} has other contents: BLAKE3 {}, expected {}",
                        digest.blake3, expected.blake3
                    ))
                };
                Ok((digest.bytes, problem.map(|p| (name.as_str(), p))))
            })
            .collect::<Result<_>>()?;
        let mut problems = Vec::new();
        for (name, problem) in found.iter().filter_map(|(_, problem)| problem.as_ref()) {
            problems.push(problem.clone());
            problems.extend(self.damaged_tensors(dir, name));
        }
        let bytes = found.iter().map(|(bytes, _)| bytes).sum();
        Ok(ChecksumReport { files: files.len(), bytes, passed: problems.is_empty(), problems })
    }

    /// The damaged tensors of a file, in so far as the checkpoint can still be opened.
    fn damaged_tensors(&self, dir: &Path, file: &str) -> Vec<String> {
        let Ok(checkpoint) = Checkpoint::open(dir) else { return Vec::new() };
        let inside = checkpoint.entries().filter(|e| checkpoint.files()[e.file].path.ends_with(file));
        let damaged = inside.filter(|entry| {
            let mut hasher = blake3::Hasher::new();
            let mut buffer = vec![0; BUFFER];
            for start in (0..entry.nbytes).step_by(BUFFER) {
                let part = &mut buffer[..BUFFER.min((entry.nbytes - start) as usize)];
                if checkpoint.read_at(entry, start, part).is_err() {
                    return true;
                }
                hasher.update(part);
            }
            self.tensors.get(&entry.name).is_some_and(|d| *d != hasher.finalize().to_hex().as_str())
        });
        damaged.map(|entry| format!("tensor {} is damaged", entry.name)).collect()
    }
}

/// Bytes read at a time.
const BUFFER: usize = 1 << 20;

/// Length and digest of a file; `progress` hears of every part read.
pub(crate) fn file_digest(path: &Path, progress: &(dyn Fn(u64) + Sync)) -> Result<FileDigest> {
    let failed = |source| GrowthError::Read { path: path.display().to_string(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = file.read(&mut buffer).map_err(failed)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        progress(read as u64);
    }
    Ok(FileDigest { bytes: hasher.count(), blake3: hasher.finalize().to_hex().to_string() })
}
