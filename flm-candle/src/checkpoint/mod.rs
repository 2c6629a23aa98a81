//! Checkpoints on disk: one way to open them, one way to write them.
//!
//! [`Checkpoint`] opens safetensors and PyTorch files, single or sharded, reads their headers and
//! checks everything that can be checked without reading weights; reading is by position. Nothing in
//! a file is executed. [`Writer`] streams a safetensors checkpoint that appears whole or not at all,
//! [`convert`] joins the two in bounded memory, [`compare`] checks what it made against its source, and
//! [`Checksums`] against digests where the source is gone.

mod cast;
mod check;
mod checksums;
mod convert;
mod dtype;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod journal;
mod layout;
mod open;
mod pickle;
mod pytorch;
mod pytorch_writer;
mod ranges;
mod read;
mod remote;
mod safetensors_header;
mod shard;
mod side_files;
mod source;
mod staging;
mod values;
mod weight_map;
mod writer;
mod zip;

use std::path::{Path, PathBuf};

use candle_core::DType;

use self::source::OpenFile;
use self::zip::ZipEntry;
use crate::config::TeleFlmConfig;

pub(crate) use self::cast::cast;
pub use self::checksums::{
    CHECKSUMS_FILE, ChecksumReport, Checksums, FileDigest, TensorSource, WeightFileDigest,
};
pub use self::convert::{
    CompareReport, ConvertOptions, ConvertReport, Difference, FoldedTensor, TargetLayout, compare, convert,
    plan_conversion,
};
pub use self::error::CheckpointError;
pub use self::journal::{Journal, RunKey};
pub use self::pickle::PickleError;
pub use self::pytorch_writer::write_pytorch_checkpoint;
pub use self::remote::RemoteFiles;
pub use self::safetensors_header::HeaderError;
pub use self::shard::{ShardTensor, convert_shard, index_text, parse_index};
pub use self::side_files::copy_side_files;
pub use self::values::{PaddingRows, ValueStatistics};
pub use self::weight_map::IndexError;
pub use self::writer::Writer;
pub use self::zip::ZipError;

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

/// Where a tensor's bytes are: row-major, little-endian, contiguous.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Name in the checkpoint.
    pub name: String,
    /// BF16, F16, F32 or F64.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
    /// Index into [`Checkpoint::files`].
    pub file: usize,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub nbytes: u64,
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
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    format: Format,
    config: TeleFlmConfig,
    files: Vec<WeightFile>,
    /// One for each of `files`; none where only headers were read.
    handles: Vec<OpenFile>,
    /// Sorted by name.
    entries: Vec<TensorEntry>,
    /// For each of `files` the archive's entries in the order of the file; empty for safetensors.
    storages: Vec<Vec<ZipEntry>>,
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

    fn find(&self, name: &str) -> Option<&TensorEntry> {
        self.entries.binary_search_by(|e| e.name.as_str().cmp(name)).ok().map(|i| &self.entries[i])
    }
}

/// A tensor that a [`Writer`] will write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name.
    pub name: String,
    /// BF16, F16, F32 or F64.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
}

/// A tensor of one file, before files are put together.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RawTensor {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    /// First byte, counted from the start of the file.
    offset: u64,
    nbytes: u64,
}

/// Buffers that old versions of transformers saved although they follow from the config.
fn is_skipped(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
}

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;
