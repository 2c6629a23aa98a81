//! Whether two checkpoints are the same bytes, and whether a run may go on where another stopped.

use crate::checksums::{CHECKSUMS_FILE, Checksums, file_name, tensor_digest};
use crate::error::io;
use crate::error::{CheckpointError, Result};
use crate::hex::hex;
use crate::read::Checkpoint;
use crate::read::file::read_json_file;
use rayon::prelude::*;
use serde::Deserialize;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::os::unix::fs::MetadataExt;

/// What two runs must have in common for one to go on where the other stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunKey {
    /// Command and version, as in `flm convert 0.1.0`.
    pub tool: String,
    /// Name and value of everything that decides what is written.
    pub options: Vec<(String, String)>,
    /// The files that are read, with size and modification time.
    pub source: Vec<SourceFile>,
}

/// A file of the source: nothing of it is read to tell whether it changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourceFile {
    pub name: String,
    pub bytes: u64,
    /// Of the last change of its contents: seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Of the last change of anything, and which file it is; journals of earlier versions do not tell.
    #[serde(default)]
    pub changed: Option<(i64, i64, u64)>,
}

impl PartialEq for SourceFile {
    fn eq(&self, other: &Self) -> bool {
        let known = self.changed.is_none() || other.changed.is_none() || self.changed == other.changed;
        (&self.name, self.bytes, self.modified) == (&other.name, other.bytes, other.modified) && known
    }
}

impl Eq for SourceFile {}

impl RunKey {
    /// The key of a run of `tool` (name and version) on `source`; `options` are named for people.
    pub fn new(tool: &str, options: &[(&str, &dyn Display)], source: &Checkpoint) -> Result<Self> {
        Ok(Self {
            tool: tool.into(),
            options: options.iter().map(|(name, value)| ((*name).into(), value.to_string())).collect(),
            source: stamps(source)?,
        })
    }

    /// Fails where a file of the source is not what it was when the key was made: what was read since may
    /// be a mixture of two checkpoints.
    ///
    /// # Errors
    /// [`CheckpointError::SourceChanged`].
    pub fn require_unchanged(&self, source: &Checkpoint) -> Result<()> {
        let now = stamps(source)?;
        let gone = self.source.iter().find(|file| !now.contains(file));
        match gone.or_else(|| now.iter().find(|file| !self.source.contains(file))) {
            Some(file) => Err(CheckpointError::SourceChanged { path: source.dir().join(&file.name) }),
            None => Ok(()),
        }
    }

    /// What differs, in words.
    pub fn difference(&self, begun: &Self) -> Option<String> {
        if self.tool != begun.tool {
            return Some(format!("another program or version ({}, now {})", begun.tool, self.tool));
        }
        if let Some(((name, is), (_, was))) =
            self.options.iter().zip(&begun.options).find(|(is, was)| is != was)
        {
            return Some(format!("another {name} ({was}, now {is})"));
        }
        if self.source != begun.source {
            let file = self.source.iter().find(|f| !begun.source.contains(f));
            let name = file.or(begun.source.first()).map_or("", |f| f.name.as_str());
            return Some(format!("another source ({name} has changed since)"));
        }
        None
    }
}

fn stamps(source: &Checkpoint) -> Result<Vec<SourceFile>> {
    // the tokenizer goes with the weights: it must be theirs
    let beside = FILES.iter().chain(&FURTHER_FILES).map(|name| source.dir().join(name));
    let beside =
        beside.filter(|path| path.file_name().is_some_and(|name| name == "config.json") || path.exists());
    let paths = source.files().iter().map(|f| f.path.clone()).chain(beside);
    let stamp = |path: std::path::PathBuf| {
        let meta = fs::metadata(&path).map_err(io("look at", &path))?;
        let modified = (meta.mtime(), meta.mtime_nsec());
        let changed = Some((meta.ctime(), meta.ctime_nsec(), meta.ino()));
        Ok(SourceFile { name: file_name(&path), bytes: meta.len(), modified, changed })
    };
    paths.map(stamp).collect()
}

/// Files besides the weights that decide what a model computes and how it is prompted.
const FILES: [&str; 5] =
    ["config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja"];
/// The same, in folders that have them.
const FURTHER_FILES: [&str; 3] = ["added_tokens.json", "special_tokens_map.json", "generation_config.json"];
/// Bytes of a piece of a tensor.
const PIECE: u64 = 4096;
/// Pieces of a tensor.
const PIECES: u64 = 16;

/// A digest of a checkpoint: its configuration and tokenizer, and of every tensor name, dtype, shape and
/// up to sixteen pieces spread over it, so that two terabytes take seconds. Two trainings of one model
/// differ in every piece; it is no checksum against damage.
///
/// # Errors
/// When a file cannot be read.
pub fn fingerprint(checkpoint: &Checkpoint) -> Result<String> {
    let mut sha = Sha256::new();
    for name in FILES.iter().chain(&FURTHER_FILES) {
        let path = checkpoint.dir().join(name);
        if fs::exists(&path).map_err(io("look at", &path))? {
            sha.update(Sha256::digest(read_json_file(&path)?));
        } else if FILES.contains(name) {
            sha.update(name);
        }
    }
    let mut piece = vec![0; PIECE as usize];
    for entry in checkpoint.entries() {
        sha.update(format!("{} {} {:?}\n", entry.name, entry.dtype.as_str(), entry.shape));
        let step = (entry.nbytes / PIECES).max(PIECE);
        for offset in (0..entry.nbytes).step_by(step as usize) {
            let part = &mut piece[..PIECE.min(entry.nbytes - offset) as usize];
            checkpoint.read_at(entry, offset, part)?;
            sha.update(&part);
        }
    }
    Ok(hex(sha.finalize()))
}

/// A digest of all bytes of a checkpoint that decide what it computes: its [`fingerprint`], and the
/// digest of every tensor, from checksums.json where it has one, else by reading them all.
///
/// # Errors
/// When a file cannot be read.
pub fn content_digest(checkpoint: &Checkpoint) -> Result<String> {
    let recorded = match fs::exists(checkpoint.dir().join(CHECKSUMS_FILE)) {
        Ok(true) => Checksums::read(checkpoint.dir())?.tensors,
        _ => BTreeMap::new(),
    };
    let entries: Vec<_> = checkpoint.entries().collect();
    let digests: Vec<String> = entries
        .par_iter()
        .map(|entry| match recorded.get(&entry.name) {
            Some(digest) => Ok(digest.clone()),
            None => tensor_digest(checkpoint, entry, &|_| ()),
        })
        .collect::<Result<_>>()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(fingerprint(checkpoint)?.as_bytes());
    for (entry, digest) in entries.iter().zip(&digests) {
        hasher.update(entry.name.as_bytes()).update(b"\n").update(digest.as_bytes()).update(b"\n");
    }
    Ok(hasher.finalize().to_hex().to_string())
}
