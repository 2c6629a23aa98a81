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
//! - [`ChatTemplate`] renders a conversation; [`ChatPolicy`] adds the tokens that end an answer.
//! - [`Vocabulary`] is what a tokenizer is made of, for other programs' formats.

pub(crate) mod chat_policy;
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

use serde_json::Value;

#[cfg(doc)]
use crate::tokenizer::chat_policy::ChatPolicy;
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
    /// generation_config.json's end-of-text tokens.
    generation_eos: Vec<u32>,
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
        // what the file itself puts around a text, unless tokenizer_config.json says otherwise
        let around = read(&json)?.map(|bytes| post_processor(&bytes)).unwrap_or_default();
        let special = dir.join("special_tokens_map.json");
        let named = match read(&special)? {
            Some(bytes) => {
                utf8(&bytes).and_then(TokenizerConfig::from_json).map_err(|e| e.in_file(&special))?.tokens
            }
            None => Vec::new(),
        };
        tokenizer.generation_eos = generation_eos(dir)?;
        let path = dir.join("tokenizer_config.json");
        let mut config = TokenizerConfig { tokens: named.clone(), ..TokenizerConfig::default() };
        (tokenizer.add_bos, tokenizer.add_eos) = around;
        if let Some(bytes) = read(&path)? {
            config = utf8(&bytes)
                .and_then(TokenizerConfig::from_json)
                .map(|config| config.with_tokens(named))
                .and_then(|config| tokenizer.configure(&config, around).map(|()| config))
                .map_err(|e| e.in_file(&path))?;
        } else if !config.tokens.is_empty() {
            tokenizer.configure(&config, around).map_err(|e| e.in_file(&special))?;
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
        Self {
            backend,
            bos,
            eos,
            unknown,
            padding,
            add_bos: false,
            add_eos: false,
            generation_eos: Vec::new(),
            chat_template: None,
        }
    }

    /// Takes over what tokenizer_config.json says about tokens.
    fn configure(&mut self, config: &TokenizerConfig, around: (bool, bool)) -> Result<(), TokenizerError> {
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
        // LlamaTokenizer of transformers adds BOS unless told otherwise
        let llama = matches!(&self.backend, Backend::SentencePiece(_)) && config.is_llama;
        self.add_bos = config.add_bos_token.unwrap_or(around.0 || llama);
        self.add_eos = config.add_eos_token.unwrap_or(around.1);
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

    /// The ids of a plain text as the tokenizer's own folder has it encoded: with BOS and EOS where
    /// tokenizer_config.json or the tokenizer.json's post-processor adds them.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids: Vec<u32> = self.bos.filter(|_| self.add_bos).into_iter().collect();
        ids.extend(self.encode(text)?);
        ids.extend(self.eos.filter(|_| self.add_eos));
        Ok(ids)
    }

    /// The ids of a text that is to be continued: [`Self::encode_text`] without EOS.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids: Vec<u32> = self.bos.filter(|_| self.add_bos).into_iter().collect();
        ids.extend(self.encode(text)?);
        Ok(ids)
    }

    /// The tokens that end a text: those of generation_config.json, of config.json (`eos`), and the
    /// tokenizer's own. Sorted.
    pub fn stop_tokens(&self, eos: &[u32]) -> Vec<u32> {
        let mut stop: Vec<u32> = self.generation_eos.iter().chain(eos).copied().chain(self.eos).collect();
        stop.sort_unstable();
        stop.dedup();
        stop
    }

    /// Whether an id is a special token, which gives no text.
    pub fn is_special(&self, id: u32) -> bool {
        let empty = |text: Result<String, TokenizerError>| text.is_ok_and(|text| text.is_empty());
        empty(self.decode(&[id])) && !empty(self.decode_with_special(&[id]))
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

    /// Whether texts begin with BOS: by tokenizer_config.json, else by the tokenizer.json's post-processor,
    /// else by the tokenizer's class. [`Self::encode`] adds none.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether texts end with EOS, told likewise; [`Self::encode`] adds none.
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

/// Whether a tokenizer.json's post-processor puts a special token before and after a single text.
fn post_processor(bytes: &[u8]) -> (bool, bool) {
    fn around(processor: &Value) -> (bool, bool) {
        match processor["type"].as_str() {
            Some("TemplateProcessing") => {
                let single = processor["single"].as_array().map_or(&[][..], Vec::as_slice);
                let special = |item: Option<&Value>| item.is_some_and(|i| i.get("SpecialToken").is_some());
                (special(single.first()), single.len() > 1 && special(single.last()))
            }
            Some("BertProcessing" | "RobertaProcessing") => (true, true),
            Some("Sequence") => {
                let inner = processor["processors"].as_array().map_or(&[][..], Vec::as_slice);
                inner.iter().map(around).fold((false, false), |a, b| (a.0 || b.0, a.1 || b.1))
            }
            _ => (false, false),
        }
    }
    serde_json::from_slice::<Value>(bytes).map_or((false, false), |file| around(&file["post_processor"]))
}

/// The end-of-text tokens of generation_config.json in `dir`; none where there is no such file.
///
/// # Errors
/// [`TokenizerError`] of a file that cannot be read, or where `eos_token_id` is no id and no list of ids.
pub fn generation_eos(dir: &Path) -> Result<Vec<u32>, TokenizerError> {
    let path = dir.join("generation_config.json");
    match read(&path)? {
        Some(bytes) => eos_tokens(&bytes).map_err(|e| e.in_file(&path)),
        None => Ok(Vec::new()),
    }
}

/// `eos_token_id` of generation_config.json: a number or a list.
fn eos_tokens(bytes: &[u8]) -> Result<Vec<u32>, TokenizerError> {
    let file: Value = serde_json::from_slice(bytes).map_err(|e| TokenizerError::Config(e.to_string()))?;
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = match &file["eos_token_id"] {
        Value::Null => Some(Vec::new()),
        Value::Array(list) => list.iter().map(id).collect(),
        value => id(value).map(|id| vec![id]),
    };
    ids.ok_or_else(|| TokenizerError::Config("`eos_token_id` is neither an id nor a list of ids".into()))
}

/// The largest file of a tokenizer that is read, in bytes; Gemma's tokenizer.json has 33 MB.
const MAX_FILE: u64 = 256 << 20;

pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    let failed = |reason: &str| TokenizerError::Read {
        path: path.display().to_string(),
        source: std::io::Error::other(reason.to_owned()),
    };
    match path.metadata() {
        Ok(meta) if !meta.is_file() => return Err(failed("not a regular file")),
        Ok(meta) if meta.len() > MAX_FILE => return Err(failed("far larger than a tokenizer's files are")),
        _ => {}
    }
    match std::fs::read(path) {
        Ok(bytes) if bytes.starts_with(flm_checkpoint::LFS_POINTER) => {
            Err(failed("a Git LFS pointer, not the file itself: run `git lfs pull`"))
        }
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Read { path: path.display().to_string(), source }),
    }
}

pub(crate) fn utf8(bytes: &[u8]) -> Result<&str, TokenizerError> {
    std::str::from_utf8(bytes).map_err(|e| TokenizerError::Config(format!("not UTF-8: {e}")))
}
