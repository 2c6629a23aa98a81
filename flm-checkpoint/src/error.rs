//! Everything that can be wrong with a checkpoint.

use std::path::{Path, PathBuf};

use crate::dtype::Dtype;

use crate::config::ConfigError;
use crate::format::index::IndexError;
use crate::format::pickle::error::PickleError;
use crate::format::safetensors::HeaderError;
use crate::format::zip::ZipError;
use crate::tensor_id::EMBED_TOKENS;

/// What can be wrong with a checkpoint.
#[allow(missing_docs, reason = "the message says what each field is")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// Its config.json is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file beside the weights could not be made.
    #[error("{0}")]
    Sidecar(String),
    /// The system refused to read, write or move a file.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// checksums.json is of a version that is not known here.
    #[error("{path} is of version {version}, and 1 and 2 are known: its digests cannot be compared")]
    ChecksumsVersion { path: PathBuf, version: u32 },
    /// checksums.json holds no digests.
    #[error(
        "{path} holds no digests, so that nothing can be compared: fetch or make the checkpoint again, or \
         remove that file to use it without"
    )]
    NoDigests { path: PathBuf },
    /// checksums.json names what is not a file of its own directory.
    #[error("{path} names {name:?}, which is not a file of its directory: refused")]
    ForeignFile { path: PathBuf, name: String },
    /// A source that was written to while it was read.
    #[error("{path} changed while it was read: the output would mix two checkpoints; run the command again")]
    SourceChanged { path: PathBuf },
    /// Bytes that are not those that the checkpoint's own digests tell of.
    #[error(
        "{dir} is damaged: {problem}. `flm verify` lists all; fetch or make the file again, or, if you have edited \
         it, pass --no-source-digests to use it as it is"
    )]
    Damaged { dir: PathBuf, problem: String },
    /// Weights that were never filled.
    #[error(
        "{count} tensors in {dir} are zero throughout, the first is {first}: a download that was not filled \
         looks like this. Fetch the files again, or pass --allow-zero if the model is so"
    )]
    ZeroTensors {
        dir: PathBuf,
        /// How many.
        count: usize,
        /// The name of one.
        first: String,
    },
    /// An output that would lie inside its own source.
    #[error("{dst} is or lies inside the source {src}: choose a place beside it")]
    InsideSource { dst: PathBuf, src: PathBuf },
    /// The directory holds no weights in a known form.
    #[error(
        "no weights in {dir}: looked for model.safetensors, model.safetensors.index.json, \
         pytorch_model.bin and pytorch_model.bin.index.json{}",
        there.as_ref().map_or_else(String::new, |there| format!("; {there}"))
    )]
    NoWeights {
        dir: PathBuf,
        /// What lies there instead, and what to do about it.
        there: Option<String>,
    },
    /// The directory holds weights in some form, and no config.json.
    #[error("no config.json in {dir}; {there}")]
    NoConfig {
        dir: PathBuf,
        /// What lies there, and what to do about it.
        there: String,
    },
    /// A file was given for a directory.
    #[error("{path} is {what}")]
    NotADirectory {
        path: PathBuf,
        /// What it is, and what to do.
        what: &'static str,
    },
    /// A repository of the Hub's cache was given for one of its snapshots.
    #[error(
        "{dir} is a repository of the Hub's cache: give one of its snapshots, {}",
        snapshots.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    CachedRepository {
        dir: PathBuf,
        /// That of `main` first.
        snapshots: Vec<PathBuf>,
    },
    /// A path that should be a file is a directory, a FIFO, a socket or a device.
    #[error("{path} is not a regular file")]
    NotARegularFile { path: PathBuf },
    /// Git LFS has not fetched the file.
    #[error("{path} is a Git LFS pointer, not the file itself: run `git lfs pull`, or `flm pull` the model")]
    LfsPointer { path: PathBuf },
    /// A file is far larger than such files are.
    #[error("{path} has {size} bytes or more; at most {limit} are read")]
    TooLarge {
        path: PathBuf,
        /// Its size.
        size: u64,
        limit: u64,
    },
    /// An index (`*.index.json`) is malformed.
    #[error("{path}: {source}")]
    Index { path: PathBuf, source: IndexError },
    /// The index names a file that is not there.
    #[error("{index} places {tensor} in {file}, which is not there: download that file")]
    MissingFile {
        index: PathBuf,
        /// A tensor of the file.
        tensor: String,
        file: String,
    },
    /// The index places a tensor in a file that does not hold it.
    #[error(
        "{file} holds no tensor {tensor}, although {index} says so: index and file are of different checkpoints"
    )]
    NotInFile { index: PathBuf, tensor: String, file: PathBuf },
    /// A file holds a tensor that the index does not place there.
    #[error(
        "{file} holds {tensor}, which {index} does not place there: index and file are of different checkpoints"
    )]
    NotInIndex { index: PathBuf, tensor: String, file: PathBuf },
    /// A file holds a tensor that the index places in another file.
    #[error(
        "tensor {tensor} is in {second} and, by the index, in {first}: one of the files is of another checkpoint"
    )]
    DuplicateTensor {
        tensor: String,
        /// The file that the index names.
        first: PathBuf,
        /// The file that holds it.
        second: PathBuf,
    },
    /// Another kind of file under the name of weights.
    #[error("{path} is {what}")]
    OtherKind {
        path: PathBuf,
        /// What it is, and what to do.
        what: &'static str,
    },
    /// A safetensors header is malformed.
    #[error("{path}: {source}")]
    Header { path: PathBuf, source: HeaderError },
    /// A PyTorch file's archive is malformed.
    #[error("{path}: {source}")]
    Zip { path: PathBuf, source: ZipError },
    /// A PyTorch file's pickle is malformed or holds something else than tensors.
    #[error("{path}: {source}")]
    Pickle { path: PathBuf, source: PickleError },
    /// The config asks for a tensor that no file holds.
    #[error("tensor {tensor} is missing; config.json asks for it with shape {expected:?}")]
    MissingTensor {
        tensor: String,
        /// Its shape by the config.
        expected: Vec<usize>,
    },
    /// A file holds a tensor that the config knows nothing of.
    #[error("{file} holds {tensor} {shape:?}, which a model of this config.json does not have")]
    UnknownTensor {
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        file: PathBuf,
    },
    /// An adapter's tensors stand among the model's.
    #[error(
        "{file} holds {tensor}, a part of a PEFT adapter that is not merged: merge it (merge_and_unload) and \
         save that"
    )]
    Adapter { tensor: String, file: PathBuf },
    /// Some names have a prefix and others do not.
    #[error(
        "{file} calls the embedding {tensor}, which a model of this config.json calls {EMBED_TOKENS}, and not all \
         names begin so: it is one of several models; save it by itself"
    )]
    ForeignNames { tensor: String, file: PathBuf },
    /// A tensor's shape is not what the config says.
    #[error("{file}: {tensor} has shape {got:?}, config.json says {expected:?}")]
    ShapeMismatch {
        tensor: String,
        file: PathBuf,
        /// Shape by the config.
        expected: Vec<usize>,
        /// Shape in the file.
        got: Vec<usize>,
    },
    /// No matrix has the dtype that the config declares.
    #[error(
        "config.json declares torch_dtype {}, but {tensor} in {file} and all other matrices are not: \
         set torch_dtype to {}, or convert the checkpoint",
        declared.torch_name(),
        got.torch_name()
    )]
    DTypeMismatch {
        tensor: String,
        /// Its file.
        file: PathBuf,
        /// What the config declares.
        declared: Dtype,
        /// What the matrix is.
        got: Dtype,
    },
    /// There is no tensor of that name.
    #[error("{dir} has no tensor {tensor}")]
    NoSuchTensor {
        dir: PathBuf,
        /// The name asked for.
        tensor: String,
    },
    /// A read or write reaches outside its tensor.
    #[error("bytes {offset}..{offset}+{len} are outside {tensor}, which has {nbytes}")]
    OutOfRange {
        tensor: String,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// Length of the tensor.
        nbytes: u64,
    },
    /// A file could not be read where a tensor lies.
    #[error("cannot read {tensor} from {path}: {source}")]
    Read {
        tensor: String,
        path: PathBuf,
        /// The system's error; `UnexpectedEof` where the file was cut after it was opened.
        source: std::io::Error,
    },
    /// The bytes of a PyTorch storage are not those that were saved.
    #[error(
        "{path}: entry {entry} (tensor {tensor}) has CRC-32 {got:08x}, the archive says {expected:08x}: download the file again"
    )]
    Checksum {
        path: PathBuf,
        /// The archive's entry.
        entry: String,
        /// A tensor in it.
        tensor: String,
        /// CRC-32 by the archive.
        expected: u32,
        /// CRC-32 of what was read.
        got: u32,
    },
    /// A tensor that was written and fsynced has other bytes when it is read again.
    #[error("{path}: {tensor} is not read back as it was written: check the disk")]
    NotAsWritten { tensor: String, path: PathBuf },
    /// The output exists already.
    #[error("{path} exists and is not an empty directory: remove it or choose another name")]
    DestinationExists { path: PathBuf },
    /// The output has no name, for example `..`.
    #[error("{path} cannot be written: it has no file name")]
    BadDestination { path: PathBuf },
    /// The output file exists already.
    #[error("{path} exists: remove it or choose another name")]
    FileExists { path: PathBuf },
    /// The staging directory holds a run that can be resumed, and this one is none.
    #[error(
        "{path} holds an unfinished run of another command: finish it with that, or remove the directory"
    )]
    Unfinished { path: PathBuf },
    /// Something else has the name of a file of this program's own.
    #[error("{path} is a link, a pipe or a directory where flm keeps a file of its own: remove it")]
    NotAFile { path: PathBuf },
    /// Another process works in the directory.
    #[error("{path} is in use by process {}", holder.map_or("(number unknown)".into(), |n| n.to_string()))]
    InUse {
        path: PathBuf,
        /// Its number, where it has written it.
        holder: Option<u32>,
    },
    /// A JSON file that this program wrote is malformed.
    #[error("{path} cannot be read: {source}")]
    Json { path: PathBuf, source: serde_json::Error },
    /// Nothing to finish.
    #[error("no parts of {path} are there to finish: write them with --part 0/N to --part N-1/N")]
    NoParts { path: PathBuf },
    /// The staging directory holds an unfinished run of something else.
    #[error(
        "{path} holds an unfinished run with {difference}: finish it with its own command, or start over with --restart"
    )]
    ResumeMismatch {
        /// The staging directory.
        path: PathBuf,
        /// What differs.
        difference: String,
    },
    /// A model with masks has no equal in another layout.
    #[error(
        "{dir} has growth masks, which no other layout knows: run `flm fold` first, then convert its output"
    )]
    Masked { dir: PathBuf },
    /// The family has tensors that the layout does not know.
    #[error("a {family} model has no {layout} layout: its biases or norms of heads would be lost")]
    NoLayout {
        /// Value of `model_type` in config.json.
        family: &'static str,
        /// The layout that was asked for.
        layout: &'static str,
    },
    /// A multiplier cannot be folded into weights or taken out of them.
    #[error("{what} cannot go from {from} to {to}: the factor would not be a finite number other than 0")]
    Multiplier {
        /// Which.
        what: &'static str,
        /// What the source has.
        from: f64,
        /// What the output should have.
        to: f64,
    },
    /// Two tensors of an output have the same name.
    #[error("tensor {0} would be written twice")]
    DuplicateSpec(String),
    /// A tensor cannot be stored: its dtype is none of BF16, F16, F32, F64, or its size overflows.
    #[error("tensor {tensor} ({dtype:?} {shape:?}) cannot be written to safetensors: {reason}")]
    BadSpec {
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// Why.
        reason: &'static str,
    },
    /// A name was written that the output was not laid out for.
    #[error("the output has no tensor {0}")]
    NotInOutput(String),
    /// A tensor of the output has bytes that were never written.
    #[error("{missing} of {nbytes} bytes of {tensor} were never written")]
    Unwritten {
        tensor: String,
        /// Bytes that were neither written nor skipped.
        missing: u64,
        /// Length of the tensor.
        nbytes: u64,
    },
    /// The names and shapes are too many for one safetensors header.
    #[error("the header of {file} would have {size} bytes, at most {limit} are allowed: use smaller shards")]
    HeaderTooLarge {
        file: String,
        /// Bytes of the header.
        size: u64,
        /// The format's limit.
        limit: u64,
    },
}

/// What checkpoint functions return.
pub type Result<T> = std::result::Result<T, CheckpointError>;

/// Turns a system's error into a [`CheckpointError::Io`].
pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> CheckpointError {
    let path = path.to_path_buf();
    move |source| CheckpointError::Io { action, path, source }
}
