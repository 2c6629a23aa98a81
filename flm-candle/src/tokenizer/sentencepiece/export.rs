//! A SentencePiece model as the text of a tokenizer.json, for programs that read only that.
//!
//! The outline is that of transformers' `SpmConverter`/`LlamaConverter`; unlike those it honours
//! `add_dummy_prefix` and `remove_extra_whitespaces`. The `tokenizers` crate cannot express all of
//! SentencePiece. Ids may differ from this module's for:
//! - texts with user-defined pieces, where a dummy prefix is added or spaces are collapsed: an added
//!   token splits the text, and both steps then see each part alone;
//! - texts that begin with a literal U+2581, where spaces are collapsed;
//! - normalisation rules for several characters: the crate looks rules up by grapheme cluster and
//!   takes the shortest, SentencePiece takes the longest at each character;
//! - texts in which two different ways to spell one piece overlap: the crate ranks pairs,
//!   SentencePiece goes left to right;
//! - pieces made of characters that are no pieces, and unused pieces, which are left out of the
//!   merges.
//!
//! Bytes that are not UTF-8 decode to U+FFFD for the whole run of byte pieces, here only for the
//! bytes concerned.

use serde_json::{Map, Value, json};

use crate::tokenizer::added::AddedToken;
use crate::tokenizer::error::TokenizerError;
use crate::tokenizer::sentencepiece::SentencePiece;
use crate::tokenizer::sentencepiece::normalizer::SPACE;
use crate::tokenizer::sentencepiece::pieces::{Kind, Pieces};

impl SentencePiece {
    /// The text of a tokenizer.json.
    pub(crate) fn to_json(&self) -> Result<String, TokenizerError> {
        let unknown = self.pieces.get(self.pieces.unknown()).map(|piece| piece.text.as_str());
        let mut vocab: Map<String, Value> =
            self.pieces.iter().map(|(id, piece)| (piece.text.clone(), id.into())).collect();
        // the crate numbers added tokens one after another unless the model has them
        let beside = self.added.iter().filter(|token| token.id as usize >= self.pieces.len());
        if beside.clone().count() != self.len() - self.pieces.len() {
            vocab.extend(beside.map(|token| (token.text.clone(), token.id.into())));
        }
        let collapses = self.normalizer.remove_extra_whitespaces;
        let first = self.normalizer.add_dummy_prefix && (collapses || !self.legacy);
        let pre_tokenizer = first.then(
            || json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": false}),
        );
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if self.normalizer.add_dummy_prefix || collapses {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let file = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added_tokens(),
            "normalizer": self.normalizers()?,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": unknown,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": true,
                "byte_fallback": self.pieces.bytes().is_some(),
                "ignore_merges": false,
                "vocab": vocab,
                "merges": merges(&self.pieces),
            },
        });
        serde_json::to_string(&file).map_err(|e| TokenizerError::Json(e.to_string()))
    }

    /// Control pieces and the unknown piece as special tokens, user-defined pieces and what the folder adds
    /// as added tokens.
    fn added_tokens(&self) -> Vec<Value> {
        let user_defined = self.pieces.iter().filter(|(_, piece)| piece.kind == Kind::UserDefined);
        let user_defined = user_defined.map(|(id, piece)| AddedToken::new(id, piece.text.as_str(), false));
        let mut tokens: Vec<AddedToken> =
            user_defined.filter(|token| self.added.get(token.id).is_none()).collect();
        tokens.extend(self.added.iter().cloned());
        tokens.sort_by_key(|token| token.id);
        tokens
            .iter()
            .map(|token| {
                json!({
                    "id": token.id,
                    "content": token.text,
                    "single_word": token.single_word,
                    "lstrip": token.lstrip,
                    "rstrip": token.rstrip,
                    "normalized": false,
                    "special": token.special,
                })
            })
            .collect()
    }

    fn normalizers(&self) -> Result<Value, TokenizerError> {
        let mut steps = Vec::new();
        if !self.charsmap.is_empty() {
            let charsmap = tokenizers::normalizers::Precompiled::from(&self.charsmap)
                .map_err(|e| TokenizerError::Charsmap(e.to_string()))?;
            steps.push(serde_json::to_value(charsmap).map_err(|e| TokenizerError::Charsmap(e.to_string()))?);
        }
        let regex = |pattern: &str, content: &str| json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": content});
        let rules = &self.normalizer;
        if rules.remove_extra_whitespaces {
            // The spaces in front go with the prefix: Metaspace puts one only where there is none.
            steps.push(regex(if rules.add_dummy_prefix { " +$" } else { "^ +| +$" }, ""));
            steps.push(regex(" {2,}", " "));
        } else if rules.add_dummy_prefix && self.legacy {
            let space = if rules.escape_whitespaces { SPACE } else { " " };
            steps.push(json!({"type": "Prepend", "prepend": space}));
        }
        if rules.escape_whitespaces {
            steps.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE}));
        }
        Ok(if steps.is_empty() { Value::Null } else { json!({"type": "Sequence", "normalizers": steps}) })
    }
}

/// Every way to put a piece together from two pieces, the best-scored piece first.
fn merges(pieces: &Pieces) -> Vec<[&str; 2]> {
    let normal = |text: &str| pieces.textual(text).is_some_and(|(_, piece)| piece.kind == Kind::Normal);
    let mut wanted: Vec<_> = pieces.iter().filter(|(_, piece)| piece.kind == Kind::Normal).collect();
    wanted.sort_by(|(_, a), (_, b)| b.score.total_cmp(&a.score));
    let mut merges = Vec::new();
    for (_, piece) in wanted {
        for (cut, _) in piece.text.char_indices().skip(1) {
            let (left, right) = piece.text.split_at(cut);
            if normal(left) && normal(right) {
                merges.push([left, right]);
            }
        }
    }
    merges
}
