//! What can be wrong with an export.

use std::path::{Path, PathBuf};

use flm_candle::TokenizerError;
use flm_checkpoint::CheckpointError;

/// What can be wrong with an export.
#[allow(missing_docs, reason = "the message says what each field is")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The checkpoint is malformed or could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The tokenizer is malformed or of a kind that the format cannot hold.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// candle refused to quantise.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// llama.cpp's architecture of this name lacks something that the model has.
    #[error("llama.cpp computes no {family} with {what}")]
    NoArchitecture {
        /// Value of `model_type` in config.json.
        family: &'static str,
        /// What it lacks.
        what: &'static str,
    },
    /// The checkpoint is still growing.
    #[error("config.json has masks (key `growth`), which GGUF cannot express: run `flm fold` first")]
    Masked,
    /// A multiplier with which no other runtime can compute the same.
    #[error(
        "input_mult is 0 and the head is tied to the embedding: the logits cannot be expressed without it"
    )]
    NoInput,
    /// A number of the config that GGUF's 32 bits do not hold.
    #[error("config.json: `{key}` is {value}, more than GGUF can express")]
    TooLarge {
        key: &'static str,
        /// Its value.
        value: usize,
    },
    /// The tokenizer has tokens that the embedding has no row for.
    #[error(
        "the tokenizer has {tokens} tokens, the embedding only {rows} rows: they are of different models"
    )]
    Vocabulary {
        /// Tokens.
        tokens: usize,
        /// Rows.
        rows: usize,
    },
    /// llama.cpp knows pre-tokenizers by name, and this one is none that is known here.
    #[error(
        "llama.cpp cuts text into words by rules that it knows by name; which has those of this tokenizer.json is \
         not known ({found}): say it with --pre, for example --pre llama-bpe"
    )]
    PreTokenizer {
        /// The component of tokenizer.json.
        found: String,
    },
    /// A dtype that is not written.
    #[error("{0} is not written to GGUF: use one of {list}", list = crate::gguf::tensor::NAMES.join(", "))]
    DType(String),
    /// More files than the format can number.
    #[error("{files} files are more than GGUF can number: allow larger ones")]
    TooManyFiles { files: usize },
    /// The output exists.
    #[error("{} exists: remove it or choose another name", path.display())]
    DestinationExists { path: PathBuf },
    /// The output's name is one that the source's readers look for.
    #[error("{} is the place of a checkpoint's file: choose another name", path.display())]
    PlaceOfCheckpoint { path: PathBuf },
    /// The system refused to write or move a file.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

/// Turns a system's error into an [`ExportError::Io`].
pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ExportError {
    let path = path.to_path_buf();
    move |source| ExportError::Io { action, path, source }
}
