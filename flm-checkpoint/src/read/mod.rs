//! Checkpoints on disk: one way to open them, one way to write them.
//!
//! [`Checkpoint`] opens safetensors and PyTorch files, single or sharded, reads their headers and
//! checks everything that can be checked without reading weights; reading is by position. Nothing in
//! a file is executed. [`Writer`] streams a safetensors checkpoint that appears whole or not at all,
//! [`convert`] joins the two in bounded memory, [`compare`] checks what it made against its source, and
//! [`Checksums`] against digests where the source is gone.

mod bytes;
pub(crate) mod check;
pub(crate) mod file;
mod names;
pub(crate) mod open;
pub(crate) mod place;
pub(crate) mod remote;
pub(crate) mod statistics;

use std::path::{Path, PathBuf};

use crate::dtype::Dtype;

use crate::config::TeleFlmConfig;
use crate::format::zip::ZipEntry;
use crate::ranges::Pieces;
use crate::read::file::OpenFile;

use crate::error::CheckpointError;

/// How the weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `model.safetensors`.
    Safetensors,
    /// `model.safetensors.index.json` and the files that it names.
    ShardedSafetensors,
    /// `pytorch_model.bin`.
    PyTorch,
    /// `pytorch_model.bin.index.json` and the files that it names.
    ShardedPyTorch,
}

/// Where a tensor's bytes are: row-major, little-endian, contiguous but for `pieces`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Name in the checkpoint.
    pub name: String,
    /// BF16, F16, F32 or F64.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// Index into [`Checkpoint::files`].
    pub file: usize,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub nbytes: u64,
    /// How they lie: rows of tensors that a family stores as one may be in pieces.
    pub pieces: Pieces,
}

/// A file that holds weights.
#[derive(Debug)]
pub struct WeightFile {
    /// Path.
    pub path: PathBuf,
    /// Length in bytes.
    pub size: u64,
}

/// An open checkpoint; holds names and offsets, no weights.
///
/// Its files stay open, so that a checkpoint that is replaced meanwhile is read as it was.
///
/// ```
/// let checkpoint = flm_checkpoint::Checkpoint::open("../tests/fixtures/models/teleflm-gqa-bf16-shbin".as_ref())?;
/// checkpoint.check()?; // every tensor that config.json asks for is there, in its shape
/// let gain = checkpoint.entry("model.norm.weight")?;
/// assert_eq!((gain.dtype.as_str(), checkpoint.read(gain)?.len()), ("bf16", 2 * gain.shape[0]));
/// # Ok::<(), flm_checkpoint::CheckpointError>(())
/// ```
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    format: Format,
    /// config.json as it was read.
    pub config: TeleFlmConfig,
    /// The weight files, in the order of their names.
    pub files: Vec<WeightFile>,
    /// One for each of `files`; none where only headers were read.
    pub handles: Vec<OpenFile>,
    /// Sorted by name.
    pub entries: Vec<TensorEntry>,
    /// For each of `files` the archive's entries in the order of the file; empty for safetensors.
    pub storages: Vec<Vec<ZipEntry>>,
    /// What stands before every name in the files.
    prefix: Option<String>,
    ignored: Vec<String>,
    unread: Vec<&'static str>,
}

impl Checkpoint {
    /// The directory that was opened.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How the weights are stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// What config.json says.
    pub fn config(&self) -> &TeleFlmConfig {
        &self.config
    }

    /// The files that hold weights, in the order of their names.
    pub fn files(&self) -> &[WeightFile] {
        &self.files
    }

    /// Names of buffers in the files that follow from the config and are not read, sorted.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// Other forms of weights in the directory, by the name of their file or index, that are not read.
    pub fn unread(&self) -> &[&'static str] {
        &self.unread
    }

    /// All tensors, sorted by name.
    pub fn entries(&self) -> impl Iterator<Item = &TensorEntry> + '_ {
        self.entries.iter()
    }

    /// The tensor `name`; an error that names it if there is none.
    pub fn entry(&self, name: &str) -> Result<&TensorEntry, CheckpointError> {
        self.find(name)
            .ok_or_else(|| CheckpointError::NoSuchTensor { dir: self.dir.clone(), tensor: name.into() })
    }

    /// Whether there is a tensor `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The tensor of this name.
    pub fn find(&self, name: &str) -> Option<&TensorEntry> {
        self.entries.binary_search_by(|e| e.name.as_str().cmp(name)).ok().map(|i| &self.entries[i])
    }
}
