//! What can go wrong with a tokenizer: its files, its model, its chat template, the ids given to it.

use std::path::Path;

/// What can be wrong with a tokenizer's files or with what it is asked to do.
#[allow(missing_docs, reason = "the message says what each field is")]
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The folder holds no tokenizer in a known format.
    #[error("no tokenizer in {dir}: looked for tokenizer.json and tokenizer.model")]
    NotFound { dir: String },
    /// A file of the tokenizer's folder is wrong; the source says how.
    #[error("{path}: {source}")]
    File {
        path: String,
        /// What is wrong with it.
        source: Box<Self>,
    },
    /// A SentencePiece model is not the protobuf message that it should be.
    #[error("not a SentencePiece model: {0}")]
    Protobuf(String),
    /// A SentencePiece model uses a feature that is not implemented.
    #[error("SentencePiece feature not supported: {0}")]
    Unsupported(String),
    /// A SentencePiece model's list of pieces contradicts itself.
    #[error("malformed SentencePiece model: {0}")]
    Pieces(String),
    /// A SentencePiece model's table of normalisation rules is damaged.
    #[error("malformed SentencePiece model: precompiled_charsmap: {0}")]
    Charsmap(String),
    /// A tokenizer.json that the `tokenizers` crate rejects.
    #[error("not a valid tokenizer.json: {0}")]
    Json(String),
    /// A tokenizer_config.json that is not the JSON object that it should be.
    #[error("not a valid tokenizer_config.json: {0}")]
    Config(String),
    /// A generation_config.json with values of another kind than they are.
    #[error("not a valid generation_config.json: {0}")]
    GenerationConfig(String),
    /// tokenizer_config.json or special_tokens_map.json names a token that the tokenizer does not have.
    #[error("`{key}` names the token {token:?}, which the tokenizer does not have")]
    UnknownToken {
        /// The key of the file.
        key: String,
        token: String,
    },
    /// A token that the folder adds contradicts the tokenizer's own or another one.
    #[error("the added token {token:?} cannot have the id {id}: {why}")]
    AddedToken { token: String, id: u32, why: String },
    /// An id is not in the vocabulary: a padding row of the model, or another tokenizer's id.
    #[error("token id {id} is outside the vocabulary of {len} pieces")]
    UnknownId {
        id: u32,
        /// The size of the vocabulary.
        len: usize,
    },
    /// A base model: no chat template, and none of the tokens of Tele-FLM's.
    #[error(
        "no chat template, and the tokenizer has no {tokens} as Tele-FLM's has: put the model's \
         chat_template.jinja beside its tokenizer, or run a base model without one"
    )]
    NoTemplate { tokens: String },
    /// Several templates and none named "default", or no template of the name that was asked for.
    #[error("no chat template named {name:?}; there are: {known} (choose one with --chat-template NAME)")]
    NamedTemplate {
        name: String,
        /// The names that there are.
        known: String,
    },
    /// The `tokenizers` crate failed on a text or on ids.
    #[error("tokenizer.json: {0}")]
    Backend(String),
    /// The tokenizer is of a kind that [`super::Tokenizer::vocabulary`] cannot take apart.
    #[error("only SentencePiece models and byte-level BPE have a plain list of tokens: {0}")]
    NoVocabulary(String),
    /// A chat template has wrong syntax, raised an exception or ran out of fuel.
    #[error("chat template: {0}")]
    Template(String),
}

impl TokenizerError {
    /// Names the file in which the error was found.
    pub fn in_file(self, path: &Path) -> Self {
        Self::File { path: path.display().to_string(), source: Box::new(self) }
    }
}
