//! Digests of a checkpoint's files and tensors, and the check of a directory against them.
//!
//! A weight file is its header followed by its tensors, so the digests of these cover every byte of it,
//! name the tensor that is damaged, and are the same however tensors are cut into files. A digest of the
//! whole file besides would hash every byte once more: it is there where it was asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

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
    /// Every file but the weights and this one, by name.
    pub files: BTreeMap<String, FileDigest>,
    /// The weight files, by name.
    pub weights: BTreeMap<String, WeightFile>,
    /// Every tensor's bytes, by name, in hexadecimal.
    pub tensors: BTreeMap<String, String>,
}

impl Default for Checksums {
    fn default() -> Self {
        Self { version: 1, files: BTreeMap::new(), weights: BTreeMap::new(), tensors: BTreeMap::new() }
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

/// A safetensors file, whose tensors have digests of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightFile {
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of all bytes before the first tensor.
    pub header_blake3: String,
    /// BLAKE3 of the whole file, as `b3sum` prints it, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
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
        self.files.values().map(|f| f.bytes).chain(self.weights.values().map(|f| f.bytes)).sum()
    }

    /// Compares every file in `dir` with its digests; of weights, the damaged tensors are named.
    /// `progress` is called, from several threads, with the bytes read since its last call.
    ///
    /// # Errors
    /// Only where a file that is there cannot be read.
    pub fn check(&self, dir: &Path, progress: &(dyn Fn(u64) + Sync)) -> Result<ChecksumReport> {
        let read = AtomicU64::new(0);
        let progress = |bytes: u64| {
            read.fetch_add(bytes, Ordering::Relaxed);
            progress(bytes);
        };
        let names = self.files.keys().chain(self.weights.keys());
        let missing = names.clone().filter(|name| !dir.join(name).is_file());
        let mut problems: Vec<String> = missing.map(|name| format!("{name} is missing")).collect();
        let files: Vec<_> = self.files.iter().filter(|(name, _)| dir.join(name).is_file()).collect();
        let compared = files.par_iter().map(|(name, expected)| {
            let found = file_digest(&dir.join(name), &progress)?;
            Ok(differs(name, (found.bytes, &found.blake3), (expected.bytes, &expected.blake3)))
        });
        problems.extend(compared.collect::<Result<Vec<_>>>()?.into_iter().flatten());
        for (name, expected) in self.weights.iter().filter(|(name, _)| dir.join(name).is_file()) {
            let path = dir.join(name);
            let found = header_digest(&path)
                .map_err(|source| GrowthError::Read { path: path.display().to_string(), source })?;
            let expected = (expected.bytes, &expected.header_blake3);
            problems.extend(differs(name, (found.bytes, &found.header_blake3), expected));
        }
        problems.extend(self.damaged_tensors(dir, &progress));
        let (files, bytes) = (names.count(), read.into_inner());
        Ok(ChecksumReport { files, bytes, passed: problems.is_empty(), problems })
    }

    /// The damaged tensors, in so far as the checkpoint can still be opened: where it cannot, a file's
    /// length or header is wrong, which has been said.
    fn damaged_tensors(&self, dir: &Path, progress: &(dyn Fn(u64) + Sync)) -> Vec<String> {
        let Ok(checkpoint) = Checkpoint::open(dir) else { return Vec::new() };
        let entries: Vec<_> = checkpoint.entries().collect();
        let damaged = entries.par_iter().filter(|entry| {
            let mut hasher = blake3::Hasher::new();
            let mut buffer = vec![0; BUFFER];
            for start in (0..entry.nbytes).step_by(BUFFER) {
                let part = &mut buffer[..BUFFER.min((entry.nbytes - start) as usize)];
                if checkpoint.read_at(entry, start, part).is_err() {
                    return true;
                }
                hasher.update(part);
                progress(part.len() as u64);
            }
            self.tensors.get(&entry.name).is_none_or(|d| *d != hasher.finalize().to_hex().as_str())
        });
        damaged.map(|entry| format!("tensor {} is damaged", entry.name)).collect()
    }
}

/// What is wrong with a file of this (length, digest), in words.
fn differs(name: &str, found: (u64, &String), expected: (u64, &String)) -> Option<String> {
    if found.0 != expected.0 {
        return Some(format!("{name} has {} bytes, expected {}", found.0, expected.0));
    }
    (found.1 != expected.1)
        .then(|| format!("{name} has other contents: BLAKE3 {}, expected {}", found.1, expected.1))
}

/// The format's limit.
const LONGEST_HEADER: u64 = 100_000_000;

/// Length of a safetensors file and digest of its header, or of what there is of one.
pub(crate) fn header_digest(path: &Path) -> std::io::Result<WeightFile> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut length = [0; 8];
    let read = file.read(&mut length)?;
    let mut header = length[..read].to_vec();
    file.take(u64::from_le_bytes(length).min(LONGEST_HEADER)).read_to_end(&mut header)?;
    let header_blake3 = blake3::hash(&header).to_hex().to_string();
    Ok(WeightFile { bytes, header_blake3, blake3: None })
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
