//! A tokenizer.json, encoded and decoded by the `tokenizers` crate.

use std::sync::OnceLock;

use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::tokenizer::added::AddedToken;
use crate::tokenizer::error::TokenizerError;

/// A loaded tokenizer.json.
///
/// Truncation and padding that the file asks for are switched off: they are for training batches,
/// and a prompt must never be cut silently.
#[derive(Debug)]
pub(crate) struct JsonTokenizer {
    /// Special tokens named in the text are parsed.
    parsing: Tokenizer,
    /// The same with special tokens as ordinary text; made when first needed.
    literal: OnceLock<Tokenizer>,
    len: usize,
    byte_fallback: bool,
}

impl JsonTokenizer {
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, TokenizerError> {
        let json = |e: tokenizers::Error| TokenizerError::Json(e.to_string());
        let mut parsing = Tokenizer::from_bytes(bytes).map_err(json)?;
        parsing.with_truncation(None).map_err(json)?;
        parsing.with_padding(None);
        parsing.set_encode_special_tokens(false);
        check_added_tokens(bytes, &parsing)?;
        let len = length(&parsing)?;
        let decoder = parsing.get_decoder().map(|d| format!("{d:?}")).unwrap_or_default();
        let byte_fallback = decoder.contains("ByteFallback");
        Ok(Self { parsing, literal: OnceLock::new(), len, byte_fallback })
    }

    /// Takes over tokens that tokenizer_config.json or added_tokens.json declare.
    ///
    /// # Errors
    /// Where the crate, which numbers tokens itself, cannot give one its id.
    pub(crate) fn add_tokens(&mut self, tokens: &[AddedToken]) -> Result<(), TokenizerError> {
        let mut tokens: Vec<_> = tokens.iter().collect();
        tokens.sort_by_key(|token| token.id);
        let wrong = |token: &AddedToken, why| TokenizerError::AddedToken {
            token: token.text.clone(),
            id: token.id,
            why,
        };
        for token in &tokens {
            if let Some(known) = self.parsing.id_to_token(token.id).filter(|known| *known != token.text) {
                return Err(wrong(token, format!("tokenizer.json has {known:?} there")));
            }
        }
        self.parsing.add_tokens(tokens.iter().map(|token| token.for_crate())).map_err(backend)?;
        for token in tokens {
            match self.parsing.token_to_id(&token.text) {
                Some(id) if id == token.id => {}
                Some(id) => {
                    return Err(wrong(token, format!("after tokenizer.json's own tokens it has {id}")));
                }
                None => return Err(wrong(token, "it has no text".into())),
            }
        }
        self.literal = OnceLock::new();
        self.len = length(&self.parsing)?;
        Ok(())
    }

    /// Makes these texts special tokens; those that are no tokens yet get the ids after the last.
    pub(crate) fn add_special<'t>(
        &mut self,
        texts: impl Iterator<Item = &'t str>,
    ) -> Result<(), TokenizerError> {
        let known = self.parsing.get_added_vocabulary();
        let new = texts.filter(|text| !text.is_empty() && !known.get_vocab().contains_key(*text));
        let new: Vec<_> = new.map(|text| tokenizers::AddedToken::from(text, true)).collect();
        if new.is_empty() {
            return Ok(());
        }
        self.parsing.add_special_tokens(new).map_err(backend)?;
        self.literal = OnceLock::new();
        self.len = length(&self.parsing)?;
        Ok(())
    }

    pub(crate) fn tokens_with_flags(&self) -> Vec<String> {
        let tokens = self.parsing.get_added_tokens_decoder();
        let flagged = tokens.values().filter(|t| t.lstrip || t.rstrip || t.single_word);
        let mut texts: Vec<String> = flagged.map(|t| t.content.clone()).collect();
        texts.sort();
        texts
    }

    /// Whether an id is a special token.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        let token = self.parsing.id_to_token(id);
        token.is_some_and(|token| self.parsing.get_added_vocabulary().is_special_token(&token))
    }

    pub(crate) fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let tokenizer = if parse_special { &self.parsing } else { self.literal() };
        let encoding = tokenizer.encode_fast(text, false).map_err(backend)?;
        Ok(encoding.get_ids().to_vec())
    }

    fn literal(&self) -> &Tokenizer {
        self.literal.get_or_init(|| {
            let mut tokenizer = self.parsing.clone();
            tokenizer.set_encode_special_tokens(true);
            tokenizer
        })
    }

    pub(crate) fn decode(&self, ids: &[u32], with_special: bool) -> Result<String, TokenizerError> {
        for &id in ids {
            self.known(id)?;
        }
        self.parsing.decode(ids, !with_special).map_err(backend)
    }

    fn known(&self, id: u32) -> Result<String, TokenizerError> {
        self.parsing.id_to_token(id).ok_or(TokenizerError::UnknownId { id, len: self.len })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn token_to_id(&self, token: &str) -> Option<u32> {
        self.parsing.token_to_id(token)
    }

    pub(crate) fn id_to_token(&self, id: u32) -> Option<String> {
        self.parsing.id_to_token(id)
    }

    pub(crate) fn to_json(&self) -> Result<String, TokenizerError> {
        self.parsing.to_string(false).map_err(|e| TokenizerError::Json(e.to_string()))
    }
}

/// The first id after the last token. Ids may have holes.
fn length(tokenizer: &Tokenizer) -> Result<usize, TokenizerError> {
    let vocabulary = tokenizer.get_vocab(true);
    let len = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
    if len == 0 {
        return Err(TokenizerError::Json("the vocabulary is empty".into()));
    }
    if len > vocabulary.len() + MAX_HOLES {
        let tokens = vocabulary.len();
        return Err(TokenizerError::Json(format!(
            "{tokens} tokens have ids up to {}: it is damaged",
            len - 1
        )));
    }
    Ok(len)
}

/// The most ids without a token: lists as long as the largest id are made.
const MAX_HOLES: usize = 1 << 20;

/// The crate numbers added tokens itself, one after another, whatever ids the file gives them.
fn check_added_tokens(bytes: &[u8], tokenizer: &Tokenizer) -> Result<(), TokenizerError> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    #[derive(Deserialize)]
    struct Added {
        id: u32,
        content: String,
    }
    let file: File = serde_json::from_slice(bytes).map_err(|e| TokenizerError::Json(e.to_string()))?;
    for Added { id, content } in file.added_tokens {
        let got = tokenizer.token_to_id(&content);
        if got != Some(id) {
            let got = got.map_or("none".into(), |got| got.to_string());
            return Err(TokenizerError::Json(format!(
                "the added token {content:?} has the id {id}, but the `tokenizers` crate gives it {got}"
            )));
        }
    }
    Ok(())
}

fn backend(e: tokenizers::Error) -> TokenizerError {
    TokenizerError::Backend(e.to_string())
}

/// Decoding one id at a time: the text of a short window of ids with and without the newest ones.
///
/// A window is needed because decoders of tokenizer.json look at their neighbours (a leading space
/// is stripped only at the start). Text is held back while a character may be incomplete: as long as
/// it ends in U+FFFD, and, where bytes fall back to `<0xHH>` tokens, until another token follows,
/// since one bad byte turns the whole run into U+FFFD.
#[derive(Debug, Clone, Default)]
pub(crate) struct JsonDecodeState {
    /// Ids whose text was given out, kept as context, then ids whose text was not.
    window: Vec<u32>,
    /// How many of them are context.
    context: usize,
    /// The text of the context alone.
    context_text: String,
}

impl JsonTokenizer {
    /// Decodes one more id; new text goes to `out`.
    pub(crate) fn decode_step(
        &self,
        state: &mut JsonDecodeState,
        id: u32,
        with_special: bool,
        out: &mut String,
    ) -> Result<(), TokenizerError> {
        let token = self.known(id)?;
        if !with_special && self.parsing.get_added_vocabulary().is_special_token(&token) {
            return Ok(());
        }
        state.window.push(id);
        if self.byte_fallback && is_byte(&token) {
            return Ok(());
        }
        let text = self.parsing.decode(&state.window, !with_special).map_err(backend)?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(());
        }
        let new = after(&state.context_text, &text);
        if !new.is_empty() {
            out.push_str(new);
            state.window.drain(..state.context);
            state.context = state.window.len();
            state.context_text = self.parsing.decode(&state.window, !with_special).map_err(backend)?;
        }
        Ok(())
    }

    /// Makes all that was decoded context: a text that goes on after it.
    pub(crate) fn settle(&self, state: &mut JsonDecodeState) -> Result<(), TokenizerError> {
        state.context = state.window.len();
        state.context_text = self.parsing.decode(&state.window, true).map_err(backend)?;
        Ok(())
    }

    /// Gives out what decoding held back.
    pub(crate) fn decode_rest(
        &self,
        state: &mut JsonDecodeState,
        with_special: bool,
        out: &mut String,
    ) -> Result<(), TokenizerError> {
        let text = self.parsing.decode(&state.window, !with_special).map_err(backend)?;
        out.push_str(after(&state.context_text, &text));
        state.window.clear();
        state.context = 0;
        state.context_text.clear();
        Ok(())
    }
}

/// What `text` adds to `context`. Decoders that clean up (WordPiece) may change the context's end:
/// then it is what follows the part that both share.
fn after<'t>(context: &str, text: &'t str) -> &'t str {
    let shared = context.chars().zip(text.chars()).take_while(|(a, b)| a == b);
    &text[shared.map(|(_, c)| c.len_utf8()).sum()..]
}

/// What the crate's ByteFallback decoder takes for a byte.
fn is_byte(token: &str) -> bool {
    token.len() == 6
        && token.ends_with('>')
        && token
            .strip_prefix("<0x")
            .and_then(|rest| rest.get(..2))
            .is_some_and(|hex| u8::from_str_radix(hex, 16).is_ok())
}
