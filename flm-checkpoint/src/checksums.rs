//! `checksums.json`: digests of a checkpoint's files and tensors, where converted tensors came from, and
//! the check of a directory against them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::CheckpointError;
use crate::error::{Result, io};
use crate::format::RawTensor;
use crate::format::Source;
use crate::format::index::{is_own_file_name, is_weight_name};

use crate::format::safetensors::{HeaderError, MAX_HEADER};
use crate::format::zip::ZipEntry;
use crate::part::JobPart;
use crate::read::file::{OpenFile, names_in, read_json_file};
use crate::read::{Checkpoint, TensorEntry};

/// Name of the file in a checkpoint that holds its digests.
pub const CHECKSUMS_FILE: &str = "checksums.json";

/// BLAKE3 digests of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksums {
    /// Version of this format: 2. In version 1 all weight files were among `files`.
    pub version: u32,
    /// Files by name, all but this one and those in `weights`.
    pub files: BTreeMap<String, FileDigest>,
    /// Weight files whose header has a digest: the rest of them is in `tensors`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, WeightFileDigest>,
    /// Every tensor's bytes, by name, in hexadecimal.
    pub tensors: BTreeMap<String, String>,
    /// Where the tensors of a converted checkpoint came from.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, TensorSource>,
}

impl Default for Checksums {
    fn default() -> Self {
        Self {
            version: 2,
            files: BTreeMap::new(),
            weights: BTreeMap::new(),
            tensors: BTreeMap::new(),
            sources: BTreeMap::new(),
        }
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

/// A safetensors file, whose tensors have digests of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightFileDigest {
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of all bytes before the first tensor.
    pub header_blake3: String,
    /// BLAKE3 of the whole file, as `b3sum` prints it, where it was asked for: it hashes every byte once
    /// more, and finds nothing that header and tensors do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
}

/// The bytes that a tensor was made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorSource {
    /// File name.
    pub file: String,
    /// The archive's entry that holds them; none in safetensors files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// dtype as PyTorch names it.
    pub dtype: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// What the elements were multiplied by, where they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
}

// A factor is finite, so equality is reflexive.
impl Eq for TensorSource {}

impl TensorSource {
    /// Where `entry` lies in `checkpoint`.
    pub fn of(checkpoint: &Checkpoint, entry: &TensorEntry) -> Self {
        let storages = &checkpoint.storages[entry.file];
        let holds = |s: &&crate::format::zip::ZipEntry| {
            (s.offset..=s.offset + s.size).contains(&entry.offset)
                && entry.offset + entry.nbytes <= s.offset + s.size
        };
        // Sorted and disjoint: it is among those that begin last at or before the tensor.
        let begun = storages.partition_point(|s| s.offset <= entry.offset);
        let storage = storages[..begun].iter().rev().find(holds);
        let file = file_name(&checkpoint.files[entry.file].path);
        let TensorEntry { name, dtype, shape, offset, nbytes, .. } = entry.clone();
        let tensor = RawTensor { name, dtype, shape, offset, nbytes };
        Self::of_raw(file, storage.map(|s| s.name.clone()), &tensor)
    }

    pub(crate) fn of_raw(file: String, entry: Option<String>, tensor: &RawTensor) -> Self {
        let (offset, bytes, shape) = (tensor.offset, tensor.nbytes, tensor.shape.clone());
        let dtype = tensor.dtype.torch_name().into();
        Self { file, entry, offset, bytes, dtype, shape, factor: None }
    }
}

fn no_digest(name: &str) -> String {
    format!("{name} holds weights and has no digest in {CHECKSUMS_FILE}")
}

/// The last part of a path.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

impl FileDigest {
    /// Length and BLAKE3 of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, blake3: blake3::hash(bytes).to_hex().to_string() }
    }

    /// Of a file; `progress` hears of every part read.
    pub fn of_file(path: &Path, progress: &(dyn Fn(u64) + Sync)) -> Result<Self> {
        let mut file = File::open(path).map_err(io("open", path))?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = file.read(&mut buffer).map_err(io("read", path))?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            progress(read as u64);
        }
        Ok(Self { bytes: hasher.count(), blake3: hasher.finalize().to_hex().to_string() })
    }
}

impl WeightFileDigest {
    /// A file of `bytes` bytes that begins with `header`; its weights are covered by their tensors' digests.
    pub fn new(bytes: u64, header: &[u8]) -> Self {
        Self { bytes, header_blake3: blake3::hash(header).to_hex().to_string(), blake3: None }
    }

    /// Of a safetensors file.
    pub fn of_file(path: &Path) -> Result<Self> {
        let file = OpenFile::open(path)?;
        let header = file
            .bytes_at(0, 8)
            .and_then(|length| {
                let length = length.try_into().map_or(u64::MAX, u64::from_le_bytes);
                if length > MAX_HEADER {
                    return Err(std::io::Error::other(HeaderError::TooLong(length)));
                }
                file.bytes_at(0, length as usize + 8)
            })
            .map_err(io("read the header of", path))?;
        Ok(Self::new(file.size, &header))
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
    /// Files without a digest that hold no weights of the checkpoint.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unlisted: Vec<String>,
    /// Whether nothing is.
    pub passed: bool,
}

impl Checksums {
    /// As JSON text.
    pub fn to_json(&self) -> String {
        // Maps of strings and numbers have no value that JSON lacks.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Reads the digests of the checkpoint in `dir`.
    ///
    /// # Errors
    /// Where there are none, or of a version that is not known.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(CHECKSUMS_FILE);
        let found: Self = serde_json::from_slice(&read_json_file(&path)?)
            .map_err(|source| CheckpointError::Json { path: path.clone(), source })?;
        if !(1..=2).contains(&found.version) {
            return Err(CheckpointError::ChecksumsVersion { path, version: found.version });
        }
        if found.files.is_empty() && found.weights.is_empty() {
            return Err(CheckpointError::NoDigests { path });
        }
        match found.files.keys().chain(found.weights.keys()).find(|name| !is_own_file_name(name)) {
            Some(name) => Err(CheckpointError::ForeignFile { path, name: name.clone() }),
            None => Ok(found),
        }
    }

    /// Bytes of all files.
    pub fn total_bytes(&self) -> u64 {
        let files = self.files.values().map(|f| f.bytes);
        files.chain(self.weights.values().map(|f| f.bytes)).sum()
    }

    /// Compares every file in `dir` with its digest; of a damaged weight file the damaged tensors are
    /// named, and weight files that have no digest are. A part compares its share: all of them together compare
    /// everything. `progress` is called, from several threads, with the
    /// bytes read since its last call.
    ///
    /// # Errors
    /// Only where a file that is there cannot be read.
    pub fn check(
        &self,
        dir: &Path,
        part: Option<JobPart>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<ChecksumReport> {
        let mut report = self.compare(dir, part, progress)?;
        for name in names_in(dir)? {
            let hidden = name == CHECKSUMS_FILE || name.starts_with('.');
            if hidden || self.lists(&name) || !dir.join(&name).is_file() {
                continue;
            }
            // what a pull has converted may lie beside its conversion
            let converted = self.sources.values().any(|source| source.file == name);
            if is_weight_name(&name) && !converted {
                report.problems.push(no_digest(&name));
            } else {
                report.unlisted.push(name);
            }
        }
        report.unlisted.sort();
        report.passed = report.problems.is_empty();
        Ok(report)
    }

    /// Whether there is a digest of the file `name`.
    fn lists(&self, name: &str) -> bool {
        self.files.contains_key(name) || self.weights.contains_key(name)
    }

    /// [`Checksums::check`] of what is listed, or of a part's share of it.
    fn compare(
        &self,
        dir: &Path,
        part: Option<JobPart>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<ChecksumReport> {
        let mut files: Vec<_> = self.files.iter().collect();
        keep_share(part, &mut files, |(_, digest)| digest.bytes);
        let found: Vec<(u64, Option<(&str, String)>)> = files
            .par_iter()
            .map(|(name, expected)| {
                let path = dir.join(name);
                if !path.is_file() {
                    return Ok((0, Some((name.as_str(), format!("{name} is missing")))));
                }
                let digest = FileDigest::of_file(&path, progress)?;
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
        let mut bytes = found.iter().map(|(bytes, _)| bytes).sum();
        if !self.weights.is_empty() {
            bytes += self.check_weight_files(dir, part, progress, &mut problems);
        }
        let files = files.len() + self.weights.len();
        let unlisted = Vec::new();
        Ok(ChecksumReport { files, bytes, passed: problems.is_empty(), problems, unlisted })
    }

    /// The damaged tensors of a file, in so far as the checkpoint can still be opened.
    fn damaged_tensors(&self, dir: &Path, file: &str) -> Vec<String> {
        let Ok(checkpoint) = Checkpoint::open(dir) else { return Vec::new() };
        let inside = checkpoint.entries().filter(|e| checkpoint.files()[e.file].path.ends_with(file));
        inside.filter_map(|entry| self.damage(&checkpoint, entry, &|_| ())).collect()
    }

    /// What is wrong with a tensor, if anything is.
    fn damage(
        &self,
        checkpoint: &Checkpoint,
        entry: &TensorEntry,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Option<String> {
        let name = &entry.name;
        let Some(expected) = self.tensors.get(name) else {
            return Some(format!("tensor {name} has no digest in {CHECKSUMS_FILE}"));
        };
        match tensor_digest(checkpoint, entry, progress) {
            Ok(digest) if digest == *expected => None,
            Ok(_) => Some(format!("tensor {name} is damaged")),
            Err(error) => Some(format!("tensor {name} is damaged: {error}")),
        }
    }

    /// Headers, then tensor by tensor; a safetensors file has nothing else.
    fn check_weight_files(
        &self,
        dir: &Path,
        part: Option<JobPart>,
        progress: &(dyn Fn(u64) + Sync),
        problems: &mut Vec<String>,
    ) -> u64 {
        let mut bytes = 0;
        for (name, expected) in &self.weights {
            match WeightFileDigest::of_file(&dir.join(name)) {
                Ok(found)
                    if (found.bytes, &found.header_blake3) == (expected.bytes, &expected.header_blake3) =>
                {
                    bytes += found.bytes;
                }
                Ok(found) if found.bytes != expected.bytes => {
                    problems.push(format!("{name} has {} bytes, expected {}", found.bytes, expected.bytes))
                }
                Ok(_) => problems.push(format!("{name} has another header")),
                Err(error) => problems.push(error.to_string()),
            }
        }
        let checkpoint = match Checkpoint::open(dir) {
            Ok(checkpoint) => checkpoint,
            Err(error) => {
                problems.push(error.to_string());
                return bytes;
            }
        };
        let mut entries: Vec<&TensorEntry> = checkpoint.entries().collect();
        keep_share(part, &mut entries, |entry| entry.nbytes);
        if part.is_some() {
            bytes = entries.iter().map(|entry| entry.nbytes).sum();
        }
        let damaged: Vec<Option<String>> =
            entries.par_iter().map(|entry| self.damage(&checkpoint, entry, progress)).collect();
        problems.extend(damaged.into_iter().flatten());
        let missing = self.tensors.keys().filter(|name| !checkpoint.contains(name));
        problems.extend(missing.map(|name| format!("tensor {name} is missing")));
        bytes
    }
}

/// Leaves what is the part's, where there is one.
fn keep_share<T>(part: Option<JobPart>, things: &mut Vec<T>, size: impl Fn(&T) -> u64) {
    if let Some(part) = part {
        let sizes: Vec<u64> = things.iter().map(size).collect();
        let share = part.share(&sizes);
        things.truncate(share.end);
        things.drain(..share.start);
    }
}

impl Checkpoint {
    /// Reads all files and compares them with the digests that the checkpoint has: checksums.json, or
    /// the CRC-32 of a PyTorch archive's entries (0 where the archive was saved without).
    ///
    /// Returns whether there was anything to compare with. A part compares its share: all of them together compare
    /// everything.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] names the first tensor or file that differs.
    pub fn verify_digests(&self, part: Option<JobPart>) -> Result<bool> {
        let damaged = |problem: String| CheckpointError::Damaged { dir: self.dir().into(), problem };
        if self.dir().join(CHECKSUMS_FILE).is_file() {
            let mut checksums = Checksums::read(self.dir())?;
            // what is not there is not passed on; weights must be there
            let names: Vec<String> = self.files.iter().map(|f| file_name(&f.path)).collect();
            if let Some(name) = names.iter().find(|name| !checksums.lists(name)) {
                return Err(damaged(no_digest(name)));
            }
            checksums.files.retain(|name, _| names.contains(name) || self.dir().join(name).exists());
            let report = checksums.compare(self.dir(), part, &|_| ())?;
            return report.problems.into_iter().next().map_or(Ok(true), |problem| Err(damaged(problem)));
        }
        let mut entries: Vec<(usize, &ZipEntry)> = self
            .storages
            .iter()
            .enumerate()
            .flat_map(|(file, storages)| storages.iter().map(move |storage| (file, storage)))
            .filter(|(_, storage)| storage.crc32 != 0)
            .collect();
        keep_share(part, &mut entries, |(_, storage)| storage.size);
        entries.par_iter().try_for_each(|&(file, storage)| {
            let mut crc = crc32fast::Hasher::new();
            let mut buffer = vec![0; (1 << 20).min(storage.size as usize)];
            for start in (0..storage.size).step_by(1 << 20) {
                let part = &mut buffer[..(1 << 20).min((storage.size - start) as usize)];
                let read = self.handles[file].read_exact_at(part, storage.offset + start);
                read.map_err(io("read", &self.files[file].path))?;
                crc.update(part);
            }
            let (got, name) = (crc.finalize(), file_name(&self.files[file].path));
            if got == storage.crc32 {
                return Ok(());
            }
            let problem = format!(
                "{name}: entry {} has CRC-32 {got:08x}, the archive says {:08x}",
                storage.name, storage.crc32
            );
            Err(damaged(problem))
        })?;
        Ok(!entries.is_empty())
    }
}

/// BLAKE3 of a tensor's bytes, in hexadecimal.
pub(crate) fn tensor_digest(
    checkpoint: &Checkpoint,
    entry: &TensorEntry,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<String> {
    let read = |offset, part: &mut [u8]| checkpoint.read_at(entry, offset, part);
    digest_of(entry.nbytes, progress, read)
}

/// BLAKE3 of so many bytes that `read` gives, in hexadecimal.
pub fn digest_of(
    nbytes: u64,
    progress: &(dyn Fn(u64) + Sync),
    read: impl Fn(u64, &mut [u8]) -> Result<()>,
) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER.min(nbytes as usize)];
    for start in (0..nbytes).step_by(BUFFER) {
        let part = &mut buffer[..BUFFER.min((nbytes - start) as usize)];
        read(start, part)?;
        hasher.update(part);
        progress(part.len() as u64);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Bytes read at a time.
const BUFFER: usize = 1 << 20;
