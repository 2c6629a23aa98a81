//! What a tokenizer is made of: its tokens, merges and rules, for formats that store them as lists.

use serde_json::Value;

use crate::tokenizer::error::TokenizerError;
use crate::tokenizer::{Backend, Tokenizer};

/// A tokenizer's tokens and the rules by which text becomes them.
#[derive(Debug, Clone, PartialEq)]
pub struct Vocabulary {
    /// The tokens in the order of their ids; an id without a token is [`TokenKind::Unused`] and empty.
    pub tokens: Vec<VocabularyToken>,
    /// How text is cut into tokens.
    pub model: VocabularyModel,
    /// The token that begins a text.
    pub bos: Option<u32>,
    /// The token that ends a text.
    pub eos: Option<u32>,
    /// The token of what has no token.
    pub unknown: Option<u32>,
    /// The token that fills batches.
    pub padding: Option<u32>,
    /// Whether texts begin with BOS.
    pub add_bos: bool,
    /// Whether texts end with EOS.
    pub add_eos: bool,
    /// The text of the chat template.
    pub chat_template: Option<String>,
}

/// One token.
#[derive(Debug, Clone, PartialEq)]
pub struct VocabularyToken {
    /// As it stands in the vocabulary: `▁the`, `Ġthe`, `<0x0A>`.
    pub text: String,
    /// SentencePiece's score; 0 in other models.
    pub score: f32,
    /// What it is for.
    pub kind: TokenKind,
}

/// What a token is for: SentencePiece's types, which GGUF has as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    Normal,
    /// Stands for what has no token.
    Unknown,
    /// Never found in text.
    Control,
    /// Always one token where it stands in the text.
    UserDefined,
    /// Never made, or taken apart again.
    Unused,
    /// One byte.
    Byte,
}

/// How text becomes tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum VocabularyModel {
    /// SentencePiece BPE: neighbours are merged by the scores of what they become.
    SentencePiece {
        /// A space is put in front of the text.
        add_dummy_prefix: bool,
        /// The text is changed first: by a table of rules, or by dropping spaces at its ends and doubled ones.
        normalizes: bool,
        /// Spaces become U+2581.
        escape_whitespaces: bool,
        /// Characters without a piece become bytes.
        byte_fallback: bool,
    },
    /// Byte-level BPE as in GPT-2: bytes are written as characters and merged by a list of pairs.
    ByteLevelBpe {
        /// Pairs, the first merged first, their parts separated by a space.
        merges: Vec<String>,
        /// The `pre_tokenizer` of tokenizer.json.
        pre_tokenizer: Value,
        /// The `normalizer` of tokenizer.json.
        normalizer: Value,
        /// Whether a word that is a token is taken whole.
        ignore_merges: bool,
    },
}

impl Tokenizer {
    /// Takes the tokenizer apart.
    ///
    /// # Errors
    /// [`TokenizerError::NoVocabulary`] for a tokenizer.json that is not byte-level BPE.
    pub fn vocabulary(&self) -> Result<Vocabulary, TokenizerError> {
        let (model, tokens, unknown) = match &self.backend {
            Backend::SentencePiece(model) => {
                let (model, tokens, unknown) = model.vocabulary();
                (model, tokens, self.unknown.or(Some(unknown)))
            }
            Backend::Json(model) => {
                let file = serde_json::from_str(&model.to_json()?)
                    .map_err(|e| TokenizerError::Json(e.to_string()))?;
                let (model, tokens) = byte_level_bpe(&file, model.len())?;
                (model, tokens, self.unknown)
            }
        };
        Ok(Vocabulary {
            tokens,
            model,
            bos: self.bos,
            eos: self.eos,
            unknown,
            padding: self.padding,
            add_bos: self.add_bos,
            add_eos: self.add_eos,
            chat_template: self.chat_template.as_ref().map(|t| t.source().to_owned()),
        })
    }
}

/// Model and tokens of the object in a tokenizer.json, for ids below `len`.
fn byte_level_bpe(
    file: &Value,
    len: usize,
) -> Result<(VocabularyModel, Vec<VocabularyToken>), TokenizerError> {
    let refused = |what: &str| TokenizerError::NoVocabulary(format!("this tokenizer.json {what}"));
    let model = &file["model"];
    if model["type"] != "BPE" {
        return Err(refused(&format!("is of the type {}", model["type"])));
    }
    if model["byte_fallback"] == true {
        return Err(refused("has byte fallback; put the tokenizer.model that it was made from beside it"));
    }
    if !contains_type(&file["pre_tokenizer"], "ByteLevel") {
        return Err(refused("has no ByteLevel pre-tokenizer"));
    }
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if model[key].as_str().is_some_and(|text| !text.is_empty()) {
            return Err(refused(&format!("has a {key}")));
        }
    }
    let unused = VocabularyToken { text: String::new(), score: 0.0, kind: TokenKind::Unused };
    let mut tokens = vec![unused; len];
    let mut put = |id: &Value, text: &str, kind| {
        let id = id.as_u64().and_then(|id| usize::try_from(id).ok());
        match id.and_then(|id| tokens.get_mut(id)) {
            Some(token) => *token = VocabularyToken { text: text.into(), score: 0.0, kind },
            None => return Err(refused(&format!("gives {text:?} an id outside the vocabulary"))),
        }
        Ok(())
    };
    for (text, id) in model["vocab"].as_object().into_iter().flatten() {
        put(id, text, TokenKind::Normal)?;
    }
    for token in file["added_tokens"].as_array().into_iter().flatten() {
        let kind = if token["special"] == true { TokenKind::Control } else { TokenKind::UserDefined };
        put(&token["id"], token["content"].as_str().unwrap_or_default(), kind)?;
    }
    let merges = model["merges"].as_array().into_iter().flatten().map(merge).collect::<Option<_>>();
    let merges = merges.ok_or_else(|| refused("has a merge that is no pair"))?;
    let (pre_tokenizer, normalizer) = (file["pre_tokenizer"].clone(), file["normalizer"].clone());
    let ignore_merges = model["ignore_merges"] == true;
    Ok((VocabularyModel::ByteLevelBpe { merges, pre_tokenizer, normalizer, ignore_merges }, tokens))
}

/// A pair, or the text of one; parts of byte-level BPE hold no spaces.
fn merge(value: &Value) -> Option<String> {
    match value.as_array().map(Vec::as_slice) {
        None => value.as_str().map(str::to_owned),
        Some([left, right]) => Some(format!("{} {}", left.as_str()?, right.as_str()?)),
        Some(_) => None,
    }
}

/// Whether a component or one inside it is of this type.
fn contains_type(component: &Value, name: &str) -> bool {
    component["type"] == name
        || component["pretokenizers"]
            .as_array()
            .is_some_and(|list| list.iter().any(|c| contains_type(c, name)))
}
