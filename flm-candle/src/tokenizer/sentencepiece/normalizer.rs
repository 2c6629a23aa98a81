//! What SentencePiece does to a text before cutting it: `Normalizer::Normalize`.
//!
//! Rules of the charsmap are applied left to right, the longest first; user-defined pieces pass
//! unchanged; spaces are collapsed, escaped as U+2581 and one is put in front, as the model says.

use crate::tokenizer::added::Matcher;
use crate::tokenizer::error::TokenizerError;
use crate::tokenizer::sentencepiece::charsmap::Charsmap;
use crate::tokenizer::sentencepiece::proto::NormalizerSpec;

/// SentencePiece's escaped space.
pub(super) const SPACE: &str = "\u{2581}";

/// A model's normalisation rules.
#[derive(Debug)]
pub(crate) struct Normalizer {
    charsmap: Option<Charsmap>,
    /// Puts a space in front of a text that is not empty.
    pub add_dummy_prefix: bool,
    /// Drops spaces at both ends and makes one of several.
    pub remove_extra_whitespaces: bool,
    /// Writes spaces as U+2581.
    pub escape_whitespaces: bool,
}

impl Normalizer {
    pub(crate) fn new(spec: &NormalizerSpec) -> Result<Self, TokenizerError> {
        let charsmap = match spec.precompiled_charsmap() {
            [] => None,
            blob => Some(Charsmap::new(blob)?),
        };
        Ok(Self {
            charsmap,
            add_dummy_prefix: spec.add_dummy_prefix(),
            remove_extra_whitespaces: spec.remove_extra_whitespaces(),
            escape_whitespaces: spec.escape_whitespaces(),
        })
    }

    /// The text as the merges see it. The `continued` part of a longer text has no prefix and keeps the space
    /// that it begins with.
    pub(crate) fn normalize(&self, user_defined: &Matcher, text: &str, continued: bool) -> String {
        let mut rest = text;
        if self.remove_extra_whitespaces && !continued {
            while let Some((" ", len)) = self.step(user_defined, rest) {
                rest = &rest[len..];
            }
        }
        if rest.is_empty() {
            return String::new();
        }
        let space = if self.escape_whitespaces { SPACE } else { " " };
        let mut out = String::with_capacity(rest.len() + rest.len() / 2);
        if self.add_dummy_prefix && !continued {
            out.push_str(space);
        }
        let mut after_space = self.remove_extra_whitespaces && !continued;
        while let Some((mut piece, len)) = self.step(user_defined, rest) {
            rest = &rest[len..];
            if after_space {
                piece = piece.trim_start_matches(' ');
            }
            if !piece.is_empty() {
                let mut parts = piece.split(' ');
                out.push_str(parts.next().unwrap_or_default());
                for part in parts {
                    out.push_str(space);
                    out.push_str(part);
                }
                after_space = self.remove_extra_whitespaces && piece.ends_with(' ');
            }
        }
        if self.remove_extra_whitespaces {
            out.truncate(out.trim_end_matches(space).len());
        }
        out
    }

    /// The normalised form of the start of `text` and how many bytes of `text` it stands for.
    fn step<'a>(&'a self, user_defined: &Matcher, text: &'a str) -> Option<(&'a str, usize)> {
        if let Some(word) = user_defined.at_start(text) {
            return Some((&text[..word.len()], word.len()));
        }
        if let Some(found) = self.charsmap.as_ref().and_then(|map| map.longest_match(text)) {
            return Some(found);
        }
        let len = text.chars().next()?.len_utf8();
        Some((&text[..len], len))
    }
}
