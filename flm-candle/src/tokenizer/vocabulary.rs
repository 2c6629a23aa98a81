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
    /// Further tokens that end a text, from generation_config.json.
    pub stop: Vec<u32>,
    /// Added tokens that take white space beside them or stand only between words, which a plain list of
    /// tokens cannot say.
    pub with_flags: Vec<String>,
    /// The text of the chat template.
    pub chat_template: Option<String>,
    /// Chat templates by name; the one above is named "default".
    pub named_templates: Vec<(String, String)>,
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
    /// [`TokenizerError::NoVocabulary`] for a tokenizer.json that is BPE neither of bytes nor, with bytes for
    /// what has no token, of characters as SentencePiece has it.
    pub fn vocabulary(&self) -> Result<Vocabulary, TokenizerError> {
        let (model, tokens, unknown) = match &self.backend {
            Backend::SentencePiece(model) => {
                let (model, tokens, unknown) = model.vocabulary();
                (model, tokens, self.unknown.or(Some(unknown)))
            }
            Backend::Json(model) => {
                let file: Value = serde_json::from_str(&model.to_json()?)
                    .map_err(|e| TokenizerError::Json(e.to_string()))?;
                let kind = &file["model"];
                if kind["type"] != "BPE" {
                    return Err(refused(&format!("is of the type {}", kind["type"])));
                }
                let bpe = if kind["byte_fallback"] == true { sentencepiece_bpe } else { byte_level_bpe };
                let (model, tokens) = bpe(&file, model.len())?;
                let unknown = tokens.iter().position(|token| token.kind == TokenKind::Unknown);
                (model, tokens, self.unknown.or(unknown.and_then(|id| u32::try_from(id).ok())))
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
            stop: self.generation.eos_token_ids.clone(),
            with_flags: self.tokens_with_flags(),
            chat_template: self.chat_template.as_ref().map(|t| t.source().to_owned()),
            named_templates: self.templates.iter().map(|t| (t.name.clone(), t.text.clone())).collect(),
        })
    }
}

fn refused(what: &str) -> TokenizerError {
    TokenizerError::NoVocabulary(format!("this tokenizer.json {what}"))
}

/// Model and tokens of a tokenizer.json that was made from a SentencePiece model: the rank of the first merge
/// that makes a token stands for its score, which gives the same order of merges.
fn sentencepiece_bpe(
    file: &Value,
    len: usize,
) -> Result<(VocabularyModel, Vec<VocabularyToken>), TokenizerError> {
    let model = &file["model"];
    let (mut tokens, merges) = tokens_and_merges(file, len)?;
    let mut ranks = std::collections::HashMap::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    let unknown = model["unk_token"].as_str();
    for token in &mut tokens {
        match token.kind {
            // what no merge makes comes last: a single character is never looked up
            TokenKind::Normal => {
                token.score = -(ranks.get(&token.text).copied().unwrap_or(merges.len()) as f32);
                if token.text.len() == 6 && token.text.starts_with("<0x") && token.text.ends_with('>') {
                    (token.kind, token.score) = (TokenKind::Byte, 0.0);
                }
            }
            TokenKind::Control if unknown == Some(&token.text) => token.kind = TokenKind::Unknown,
            _ => {}
        }
    }
    let mut rules = SpaceRules::default();
    rules.read(&file["normalizer"]);
    rules.read(&file["pre_tokenizer"]);
    let SpaceRules { add_dummy_prefix, escape_whitespaces, normalizes } = rules;
    let byte_fallback = true;
    let model =
        VocabularyModel::SentencePiece { add_dummy_prefix, normalizes, escape_whitespaces, byte_fallback };
    Ok((model, tokens))
}

/// What normalizers and pre-tokenizers do with spaces.
#[derive(Debug, Default)]
struct SpaceRules {
    add_dummy_prefix: bool,
    escape_whitespaces: bool,
    /// Something else is done to the text.
    normalizes: bool,
}

impl SpaceRules {
    fn read(&mut self, step: &Value) {
        let escaped = "\u{2581}";
        match step["type"].as_str() {
            None => {}
            Some("Sequence") => {
                for inner in
                    ["normalizers", "pretokenizers"].iter().filter_map(|key| step[key].as_array()).flatten()
                {
                    self.read(inner);
                }
            }
            Some("Prepend") if step["prepend"] == escaped => self.add_dummy_prefix = true,
            Some("Replace") if step["pattern"]["String"] == " " && step["content"] == escaped => {
                self.escape_whitespaces = true;
            }
            Some("Metaspace") => {
                self.escape_whitespaces = true;
                let never = step["prepend_scheme"] == "never" || step["add_prefix_space"] == false;
                self.add_dummy_prefix |= !never;
            }
            // splits between words change nothing where no token spans them
            Some("Split") => {}
            Some(_) => self.normalizes = true,
        }
    }
}

/// Model and tokens of the object in a tokenizer.json, for ids below `len`.
fn byte_level_bpe(
    file: &Value,
    len: usize,
) -> Result<(VocabularyModel, Vec<VocabularyToken>), TokenizerError> {
    let model = &file["model"];
    if !contains_type(&file["pre_tokenizer"], "ByteLevel") {
        return Err(refused("has no ByteLevel pre-tokenizer"));
    }
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if model[key].as_str().is_some_and(|text| !text.is_empty()) {
            return Err(refused(&format!("has a {key}")));
        }
    }
    let (tokens, merges) = tokens_and_merges(file, len)?;
    let merges = merges.into_iter().map(|(left, right)| format!("{left} {right}")).collect();
    let (pre_tokenizer, normalizer) = (file["pre_tokenizer"].clone(), file["normalizer"].clone());
    let ignore_merges = model["ignore_merges"] == true;
    Ok((VocabularyModel::ByteLevelBpe { merges, pre_tokenizer, normalizer, ignore_merges }, tokens))
}

/// A pair of tokens that become one.
type Merge = (String, String);

/// Tokens by id, and merges, the first first.
fn tokens_and_merges(file: &Value, len: usize) -> Result<(Vec<VocabularyToken>, Vec<Merge>), TokenizerError> {
    let model = &file["model"];
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
    Ok((tokens, merges))
}

/// A pair, or the text of one; tokens hold no spaces.
fn merge(value: &Value) -> Option<Merge> {
    match value.as_array().map(Vec::as_slice) {
        None => value.as_str()?.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())),
        Some([left, right]) => Some((left.as_str()?.to_owned(), right.as_str()?.to_owned())),
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
