//! Ids back to text, one id at a time: `SentencePieceProcessor::Decode`.
//!
//! Text that was given out never changes. Only bytes that may still become a character are held
//! back, and they are given out, as U+FFFD each, as soon as a piece that is no byte follows.

use crate::tokenizer::added::AddedTokens;
use crate::tokenizer::sentencepiece::normalizer::{Normalizer, SPACE};
use crate::tokenizer::sentencepiece::pieces::{Kind, Pieces};

/// What decoding has to remember between two ids.
#[derive(Debug, Clone)]
pub(crate) struct DecodeState {
    /// Bytes of a character that is not complete.
    pending: Vec<u8>,
    /// No text was given out yet.
    empty: bool,
    /// A leading space of the next piece would be the dummy prefix.
    at_start: bool,
    /// The last piece began with the dummy prefix.
    prefix_seen: bool,
}

impl Default for DecodeState {
    fn default() -> Self {
        Self { pending: Vec::new(), empty: true, at_start: true, prefix_seen: false }
    }
}

/// What a model's decoder needs to know.
pub(crate) struct Rules<'m> {
    pub pieces: &'m Pieces,
    pub normalizer: &'m Normalizer,
    /// What the unknown piece looks like in text.
    pub unknown_surface: &'m str,
    pub added: &'m AddedTokens,
    /// Text after an added token begins anew.
    pub legacy: bool,
    /// Special tokens are written as their names.
    pub with_special: bool,
}

impl DecodeState {
    /// Adds one id; new text goes to `out`. False if the id is not in the vocabulary.
    pub(crate) fn push(&mut self, rules: &Rules, id: u32, out: &mut String) -> bool {
        let piece = rules.pieces.get(id);
        if let Some(byte) = piece.and_then(|piece| piece.byte) {
            self.pending.push(byte);
            self.drain(false, out);
            return true;
        }
        // control pieces and the unknown piece are what SentencePiece makes of them
        let own = piece.is_some_and(|piece| matches!(piece.kind, Kind::Control | Kind::Unknown));
        if let Some(token) = rules.added.get(id).filter(|_| !own) {
            self.drain(true, out);
            if !token.special || rules.with_special {
                out.push_str(&token.text);
                *self = Self { at_start: rules.legacy, ..Self::default() };
            }
            return true;
        }
        let Some(piece) = piece else { return false };
        self.drain(true, out);
        if self.prefix_seen || !self.empty {
            self.at_start = false;
        }
        self.prefix_seen = false;
        match piece.kind {
            Kind::Control if rules.with_special => {
                out.push_str(&piece.text);
                *self = Self { at_start: rules.legacy, ..Self::default() };
            }
            Kind::Control => {}
            Kind::Unknown if rules.with_special => self.give(&piece.text, out),
            Kind::Unknown => self.give(rules.unknown_surface, out),
            _ => {
                let mut text = piece.text.as_str();
                let Normalizer { add_dummy_prefix, remove_extra_whitespaces, .. } = *rules.normalizer;
                if self.at_start
                    && (add_dummy_prefix || remove_extra_whitespaces)
                    && let Some(rest) = text.strip_prefix(SPACE)
                {
                    text = rest;
                    // Where spaces are collapsed, every piece before the first text loses one.
                    self.prefix_seen = !remove_extra_whitespaces;
                }
                self.give(&text.replace(SPACE, " "), out);
            }
        }
        true
    }

    /// Gives out what was held back.
    pub(crate) fn finish(&mut self, out: &mut String) {
        self.drain(true, out);
    }

    fn give(&mut self, text: &str, out: &mut String) {
        self.empty &= text.is_empty();
        out.push_str(text);
    }

    /// Gives out complete characters; bytes that cannot begin one become U+FFFD each.
    fn drain(&mut self, last: bool, out: &mut String) {
        let mut used = 0;
        while used < self.pending.len() {
            let rest = &self.pending[used..];
            let end = rest.len().min(4);
            let (valid, incomplete) = match std::str::from_utf8(&rest[..end]) {
                Ok(text) => (text, false),
                Err(e) => {
                    let text = std::str::from_utf8(&rest[..e.valid_up_to()]).unwrap_or_default();
                    (text, e.error_len().is_none())
                }
            };
            match valid.chars().next() {
                Some(c) => {
                    out.push(c);
                    used += c.len_utf8();
                }
                None if incomplete && !last && end == rest.len() => break,
                None => {
                    out.push(char::REPLACEMENT_CHARACTER);
                    used += 1;
                }
            }
            self.empty = false;
        }
        self.pending.drain(..used);
    }
}
