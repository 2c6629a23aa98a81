//! Checkpoints on disk: one way to open them, one way to write them.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use crate::config::{ConfigError, TeleFlmConfig};

/// What can be wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Its config.json is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// candle refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

type Result<T> = std::result::Result<T, CheckpointError>;

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
#[derive(Debug)]
pub struct Checkpoint {}

#[allow(unused_variables, clippy::unimplemented, missing_docs)]
impl Checkpoint {
    /// Opens the directory `dir` and reads config.json and every header.
    pub fn open(dir: &Path) -> Result<Self> {
        unimplemented!()
    }
    pub fn dir(&self) -> &Path {
        unimplemented!()
    }
    pub fn format(&self) -> Format {
        unimplemented!()
    }
    pub fn config(&self) -> &TeleFlmConfig {
        unimplemented!()
    }
    pub fn files(&self) -> &[WeightFile] {
        unimplemented!()
    }
    /// All tensors, sorted by name.
    pub fn entries(&self) -> impl Iterator<Item = &TensorEntry> + '_ {
        [].iter()
    }
    /// The tensor `name`; an error that names it if there is none.
    pub fn entry(&self, name: &str) -> Result<&TensorEntry> {
        unimplemented!()
    }
    pub fn contains(&self, name: &str) -> bool {
        unimplemented!()
    }
    /// Names, shapes and dtypes against the config: the first problem as an error.
    pub fn check(&self) -> Result<()> {
        unimplemented!()
    }
    /// Fills `buf` from byte `offset` of the tensor, by a positioned read; safe from many threads.
    pub fn read_at(&self, entry: &TensorEntry, offset: u64, buf: &mut [u8]) -> Result<()> {
        unimplemented!()
    }
    /// All bytes of a tensor.
    pub fn read(&self, entry: &TensorEntry) -> Result<Vec<u8>> {
        unimplemented!()
    }
    /// A tensor on `device`, in its stored dtype.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        unimplemented!()
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

/// Streaming writer of a (sharded) safetensors checkpoint directory that appears whole or not at all.
#[derive(Debug)]
pub struct Writer {}

#[allow(unused_variables, clippy::unimplemented)]
impl Writer {
    /// Lays out the shards of `specs` (in this order, a new shard when `max_shard_size` bytes would be
    /// exceeded), writes their headers and sets their lengths, in a staging directory beside `dst`.
    pub fn create(dst: &Path, specs: &[TensorSpec], max_shard_size: u64) -> Result<Self> {
        unimplemented!()
    }
    /// Writes `bytes` at byte `offset` of tensor `name`; safe from many threads; unwritten bytes are zero
    /// (holes) if [`Writer::skip`] declared them.
    pub fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        unimplemented!()
    }
    /// Declares `len` bytes from `offset` of tensor `name` to be zero: they stay a hole of the file.
    pub fn skip(&self, name: &str, offset: u64, len: u64) -> Result<()> {
        unimplemented!()
    }
    /// Where other files of the checkpoint can be put (tokenizer, provenance) before [`Writer::finish`].
    pub fn staging_dir(&self) -> &Path {
        unimplemented!()
    }
    /// Checks that every byte of every tensor was written or skipped, then fsyncs, writes the index and
    /// `config`, and renames the staging directory to its final name.
    pub fn finish(self, config: &TeleFlmConfig) -> Result<()> {
        unimplemented!()
    }
}

/// Copies tokenizer, chat template, generation config and licence files from `src` to `dst`, where present.
#[allow(unused_variables, clippy::unimplemented)]
pub fn copy_side_files(src: &Path, dst: &Path) -> Result<Vec<String>> {
    unimplemented!()
}
