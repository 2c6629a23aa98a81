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

mod added;
pub(crate) mod chat_policy;
pub(crate) mod chat_template;
mod config;
pub(crate) mod error;
pub(crate) mod fast_files;
pub(crate) mod folder;
pub(crate) mod generation_config;
mod jinja;
mod json;
mod sentencepiece;
pub(crate) mod stream;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod unrendered;
pub(crate) mod vocabulary;

#[cfg(doc)]
use crate::tokenizer::chat_policy::ChatPolicy;
use crate::tokenizer::chat_template::ChatTemplate;
use crate::tokenizer::config::TokenizerConfig;
use crate::tokenizer::error::TokenizerError;
use crate::tokenizer::generation_config::GenerationDefaults;
use crate::tokenizer::json::JsonTokenizer;
use crate::tokenizer::sentencepiece::SentencePiece;
use crate::tokenizer::stream::TextStream;

/// A tokenizer with the settings of its folder.
///
/// ```
/// let tokenizer = flm_candle::Tokenizer::from_dir("../flm-cli/assets/nano-52b".as_ref())?;
/// let ids = tokenizer.encode("白日依山尽")?;
/// assert_eq!(tokenizer.decode(&ids)?, "白日依山尽");
/// # Ok::<(), flm_candle::TokenizerError>(())
/// ```
#[derive(Debug)]
pub struct Tokenizer {
    backend: Backend,
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    /// Special tokens named in raw text are meant.
    parse_special: bool,
    origins: TokenOrigins,
    /// What a tokenizer.json's post-processor puts before and after a text.
    around: (Vec<u32>, Vec<u32>),
    /// What the folder's generation_config.json says.
    generation: GenerationDefaults,
    chat_template: Option<ChatTemplate>,
    /// The folder's chat templates.
    templates: Vec<folder::Source>,
    /// Special tokens by the names that templates know them by: `bos_token` and the like.
    variables: Vec<(String, String)>,
}

/// Which file says what BOS and EOS are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenOrigins {
    /// Where the token that begins a text is named.
    pub bos: &'static str,
    /// Where the token that ends a text is named.
    pub eos: &'static str,
    /// What says whether raw text begins with BOS.
    pub add_bos: &'static str,
}

impl Default for TokenOrigins {
    fn default() -> Self {
        Self { bos: "tokenizer.model", eos: "tokenizer.model", add_bos: "nothing asks for it" }
    }
}

#[derive(Debug)]
pub(crate) enum Backend {
    SentencePiece(Box<SentencePiece>),
    Json(Box<JsonTokenizer>),
}

impl Tokenizer {
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
            parse_special: true,
            origins: TokenOrigins::default(),
            around: (Vec::new(), Vec::new()),
            generation: GenerationDefaults::default(),
            chat_template: None,
            templates: Vec::new(),
            variables: Vec::new(),
        }
    }

    /// Takes over what tokenizer_config.json says about tokens.
    fn configure(
        &mut self,
        config: &TokenizerConfig,
        around: (Vec<u32>, Vec<u32>),
    ) -> Result<(), TokenizerError> {
        const PROCESSOR: &str = "the post-processor of tokenizer.json";
        let find = |key: &str| match config.token(key) {
            None => Ok(None),
            Some(token) => self
                .token_to_id(token)
                .map(Some)
                .ok_or_else(|| TokenizerError::UnknownToken { key: key.to_owned(), token: token.to_owned() }),
        };
        let (bos, eos) = (find("bos_token")?, find("eos_token")?);
        let id = |key: &str| self.token_to_id(config.token(key)?);
        (self.unknown, self.padding) = (id("unk_token"), id("pad_token"));
        // where no file names them they are those that the post-processor puts there
        let (first, last) = (around.0.first().copied(), around.1.last().copied());
        let named = (bos.or(self.bos), eos.or(self.eos));
        (self.bos, self.eos) = (named.0.or(first), named.1.or(last));
        // LlamaTokenizer of transformers adds BOS unless told otherwise
        let llama = matches!(&self.backend, Backend::SentencePiece(_)) && config.is_llama;
        self.add_bos = config.add_bos_token.unwrap_or(first.is_some() || llama);
        let or_processor = |origin, named: Option<u32>, processor: Option<u32>| match (named, processor) {
            (None, Some(_)) => PROCESSOR,
            _ => origin,
        };
        self.origins = TokenOrigins {
            bos: config.origin("bos_token").unwrap_or(or_processor(self.origins.bos, named.0, first)),
            eos: config.origin("eos_token").unwrap_or(or_processor(self.origins.eos, named.1, last)),
            add_bos: match config.add_bos_token {
                Some(_) => "add_bos_token of tokenizer_config.json",
                None if first.is_some() => PROCESSOR,
                None if llama => "tokenizer_class of tokenizer_config.json",
                None => self.origins.add_bos,
            },
        };
        self.add_eos = config.add_eos_token.unwrap_or(last.is_some());
        self.around = around;
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
    /// tokenizer_config.json or the tokenizer.json's post-processor adds them. Special tokens in the text are
    /// meant by their names, as in transformers, unless [`Self::set_parse_special`] says otherwise.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.encode_prompt(text)?;
        match &self.around.1[..] {
            _ if !self.add_eos => {}
            [] => ids.extend(self.eos),
            after => ids.extend(after),
        }
        Ok(ids)
    }

    /// The ids of a text that is to be continued: [`Self::encode_text`] without EOS.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids: Vec<u32> = match &self.around.0[..] {
            _ if !self.add_bos => Vec::new(),
            [] => self.bos.into_iter().collect(),
            before => before.to_vec(),
        };
        ids.extend(self.encode_raw(text)?);
        Ok(ids)
    }

    /// The ids of a raw text without anything around it.
    pub fn encode_raw(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        if self.parse_special { self.encode_special(text) } else { self.encode(text) }
    }

    /// Whether special tokens named in raw text are meant (the default) or are text.
    pub fn set_parse_special(&mut self, parse_special: bool) {
        self.parse_special = parse_special;
    }

    /// Whether special tokens named in raw text are meant.
    pub fn parse_special(&self) -> bool {
        self.parse_special
    }

    /// Whether raw texts begin with BOS, whatever the folder says.
    pub fn set_add_bos(&mut self, add_bos: bool) {
        (self.add_bos, self.origins.add_bos) = (add_bos, "the caller");
    }

    /// The tokens that end a text: those of generation_config.json, of config.json (`eos`), and the
    /// tokenizer's own. Sorted.
    pub fn stop_tokens(&self, eos: &[u32]) -> Vec<u32> {
        let said = self.generation.eos_token_ids.iter();
        let mut stop: Vec<u32> = said.chain(eos).copied().chain(self.eos).collect();
        stop.sort_unstable();
        stop.dedup();
        stop
    }

    /// What the folder's generation_config.json says.
    pub fn generation(&self) -> &GenerationDefaults {
        &self.generation
    }

    /// Whether an id is a special token, which gives no text.
    pub fn is_special(&self, id: u32) -> bool {
        match &self.backend {
            Backend::SentencePiece(model) => model.is_special(id),
            Backend::Json(model) => model.is_special(id),
        }
    }

    /// Texts of the added tokens that take white space beside them or stand only between words.
    fn tokens_with_flags(&self) -> Vec<String> {
        match &self.backend {
            Backend::SentencePiece(model) => model.tokens_with_flags(),
            Backend::Json(model) => model.tokens_with_flags(),
        }
    }

    /// The ids below [`Self::len`] that no token has: never to be sampled.
    pub fn unused_ids(&self) -> Vec<u32> {
        let len = u32::try_from(self.len()).unwrap_or(u32::MAX);
        (0..len).filter(|&id| self.id_to_token(id).is_none()).collect()
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

    /// Which files say what BOS and EOS are.
    pub fn origins(&self) -> TokenOrigins {
        self.origins
    }

    /// Whether texts end with EOS, told likewise; [`Self::encode`] adds none.
    pub fn add_eos(&self) -> bool {
        self.add_eos
    }

    /// Takes another chat template than the folder's.
    pub fn set_chat_template(&mut self, template: ChatTemplate) {
        self.chat_template = Some(template);
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
