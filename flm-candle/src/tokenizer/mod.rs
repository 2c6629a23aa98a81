//! Text to ids and back, chat templates, text out of generated ids.
//!
//! Tele-FLM ships a SentencePiece `tokenizer.model`; other checkpoints of the Llama family ship a
//! `tokenizer.json`. Both become one [`Tokenizer`]. SentencePiece models are encoded and decoded by
//! this module, id for id as the `sentencepiece` library does; a tokenizer.json is run by the
//! `tokenizers` crate.
//!
//! - [`Tokenizer::encode`] is for text that is data: special tokens in it stay text.
//! - [`Tokenizer::encode_special`] is for rendered chat templates: special tokens become their ids.
//! - [`TextStream`] decodes ids as they come.
//! - [`ChatTemplate`] renders a conversation.
//! - [`Vocabulary`] is what a tokenizer is made of, for other programs' formats.

pub(crate) mod chat_template;
mod config;
pub(crate) mod error;
pub(crate) mod fast_files;
mod json;
mod sentencepiece;
pub(crate) mod stream;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod vocabulary;

use std::path::Path;

use crate::tokenizer::chat_template::ChatTemplate;
use crate::tokenizer::config::TokenizerConfig;
use crate::tokenizer::error::TokenizerError;
use crate::tokenizer::json::JsonTokenizer;
use crate::tokenizer::sentencepiece::SentencePiece;
use crate::tokenizer::stream::TextStream;

/// A tokenizer with the settings of its folder.
#[derive(Debug)]
pub struct Tokenizer {
    backend: Backend,
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    chat_template: Option<ChatTemplate>,
}

#[derive(Debug)]
pub(crate) enum Backend {
    SentencePiece(Box<SentencePiece>),
    Json(Box<JsonTokenizer>),
}

impl Tokenizer {
    /// Opens a checkpoint's folder: tokenizer.json if there is one, else tokenizer.model; then
    /// tokenizer_config.json and chat_template.jinja (which has precedence over the template in
    /// tokenizer_config.json) if there are such files.
    ///
    /// # Errors
    /// Every error names its file.
    pub fn from_dir(dir: &Path) -> Result<Self, TokenizerError> {
        let json = dir.join("tokenizer.json");
        let model = dir.join("tokenizer.model");
        let mut tokenizer = if let Some(bytes) = read(&json)? {
            Self::from_json(&bytes).map_err(|e| e.in_file(&json))?
        } else if let Some(bytes) = read(&model)? {
            Self::from_sentencepiece(&bytes).map_err(|e| e.in_file(&model))?
        } else {
            return Err(TokenizerError::NotFound { dir: dir.display().to_string() });
        };
        let path = dir.join("tokenizer_config.json");
        let mut config = TokenizerConfig::default();
        if let Some(bytes) = read(&path)? {
            config = utf8(&bytes)
                .and_then(TokenizerConfig::from_json)
                .and_then(|config| tokenizer.configure(&config).map(|()| config))
                .map_err(|e| e.in_file(&path))?;
        }
        let jinja = dir.join("chat_template.jinja");
        let template = match read(&jinja)? {
            Some(bytes) => Some((utf8(&bytes).map_err(|e| e.in_file(&jinja))?.to_owned(), jinja)),
            None => config.chat_template.clone().map(|source| (source, path)),
        };
        if let Some((source, path)) = template {
            let tokens = config.tokens.iter().map(|(name, token)| (*name, token.as_str()));
            let template = ChatTemplate::with_tokens(&source, tokens).map_err(|e| e.in_file(&path))?;
            tokenizer.chat_template = Some(template);
        }
        Ok(tokenizer)
    }

    /// Reads a SentencePiece model; BOS and EOS are the control pieces that it names.
    pub fn from_sentencepiece(bytes: &[u8]) -> Result<Self, TokenizerError> {
        let model = SentencePiece::from_bytes(bytes)?;
        let (bos, eos) = (model.bos(), model.eos());
        Ok(Self::new(Backend::SentencePiece(Box::new(model)), bos, eos))
    }

    /// Reads a tokenizer.json. Such a file does not say which tokens are BOS and EOS.
    pub fn from_json(bytes: &[u8]) -> Result<Self, TokenizerError> {
        Ok(Self::new(Backend::Json(Box::new(JsonTokenizer::from_bytes(bytes)?)), None, None))
    }

    fn new(backend: Backend, bos: Option<u32>, eos: Option<u32>) -> Self {
        let (unknown, padding) = (None, None);
        Self { backend, bos, eos, unknown, padding, add_bos: false, add_eos: false, chat_template: None }
    }

    /// Takes over what tokenizer_config.json says about tokens.
    fn configure(&mut self, config: &TokenizerConfig) -> Result<(), TokenizerError> {
        let find = |key: &str| match config.token(key) {
            None => Ok(None),
            Some(token) => self.token_to_id(token).map(Some).ok_or_else(|| TokenizerError::UnknownToken {
                key: key.to_owned(),
                token: token.to_owned(),
                at: String::new(),
            }),
        };
        let (bos, eos) = (find("bos_token")?, find("eos_token")?);
        for (id, token) in &config.added_tokens {
            if self.id_to_token(*id).as_deref() != Some(token) {
                return Err(TokenizerError::UnknownToken {
                    key: "added_tokens_decoder".into(),
                    token: token.clone(),
                    at: format!(" at id {id}"),
                });
            }
        }
        let id = |key: &str| self.token_to_id(config.token(key)?);
        (self.unknown, self.padding) = (id("unk_token"), id("pad_token"));
        (self.bos, self.eos) = (bos.or(self.bos), eos.or(self.eos));
        (self.add_bos, self.add_eos) = (config.add_bos_token, config.add_eos_token);
        Ok(())
    }

    /// The ids of a text. Nothing is added, and special tokens named in the text stay text, so this
    /// is safe for text from outside. User-defined pieces (SentencePiece) and added tokens that are
    /// not special (tokenizer.json) are one id each.
    ///
    /// For a SentencePiece model this equals the library's `encode`.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        match &self.backend {
            Backend::SentencePiece(model) => Ok(model.encode(text)),
            Backend::Json(model) => model.encode(text, false),
        }
    }

    /// The ids of a text in which special tokens are meant by their names (`</s>`, `<|im_start|>`).
    /// Nothing else is added.
    ///
    /// For a tokenizer.json this is the crate's own `encode` without special tokens added; for a
    /// SentencePiece model the text between special tokens is encoded part by part.
    ///
    /// Message contents that a template has put into the text are parsed too: whoever may write
    /// `<|im_end|>` in a message can end it. The reference implementations behave alike.
    pub fn encode_special(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        match &self.backend {
            Backend::SentencePiece(model) => Ok(model.encode_special(text)),
            Backend::Json(model) => model.encode(text, true),
        }
    }

    /// The text of ids; special tokens give no text.
    ///
    /// For a SentencePiece model this equals the library's `decode`.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownId`] for an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        match &self.backend {
            Backend::SentencePiece(model) => model.decode(ids, false),
            Backend::Json(model) => model.decode(ids, false),
        }
    }

    /// The text of ids with special tokens written as their names.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownId`] for an id outside the vocabulary.
    pub fn decode_with_special(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        match &self.backend {
            Backend::SentencePiece(model) => model.decode(ids, true),
            Backend::Json(model) => model.decode(ids, true),
        }
    }

    /// A decoder for ids that come one at a time.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream::new(self)
    }

    /// The size of the vocabulary: ids from here on are padding rows of the model and are never
    /// to be sampled.
    pub fn len(&self) -> usize {
        match &self.backend {
            Backend::SentencePiece(model) => model.len(),
            Backend::Json(model) => model.len(),
        }
    }

    /// Never true: a tokenizer without pieces does not load.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The id of a token, special or not.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        match &self.backend {
            Backend::SentencePiece(model) => model.token_to_id(token),
            Backend::Json(model) => model.token_to_id(token),
        }
    }

    /// The token of an id as it stands in the vocabulary (`▁the`, `<0x0A>`).
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        match &self.backend {
            Backend::SentencePiece(model) => model.id_to_token(id),
            Backend::Json(model) => model.id_to_token(id),
        }
    }

    /// The token that begins a text: tokenizer_config.json's, else the SentencePiece model's.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text: tokenizer_config.json's, else the SentencePiece model's.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// Whether tokenizer_config.json asks for BOS in front of every text; [`Self::encode`] adds none.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether tokenizer_config.json asks for EOS after every text; [`Self::encode`] adds none.
    pub fn add_eos(&self) -> bool {
        self.add_eos
    }

    /// The folder's chat template.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// The text of a tokenizer.json that encodes and decodes alike, as far as the `tokenizers`
    /// crate can express a SentencePiece model.
    ///
    /// It differs in texts with user-defined pieces if the model adds a dummy prefix or collapses
    /// spaces, and in rare cases of normalisation and of overlapping merges; the module
    /// `sentencepiece::export` lists them. Decoding differs for bytes that are not UTF-8.
    pub fn save_json(&self) -> Result<String, TokenizerError> {
        match &self.backend {
            Backend::SentencePiece(model) => model.to_json(),
            Backend::Json(model) => model.to_json(),
        }
    }
}

pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Read { path: path.display().to_string(), source }),
    }
}

pub(crate) fn utf8(bytes: &[u8]) -> Result<&str, TokenizerError> {
    std::str::from_utf8(bytes).map_err(|e| TokenizerError::Config(format!("not UTF-8: {e}")))
}
