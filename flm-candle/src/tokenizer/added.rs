//! Tokens that a folder declares beside its model's own: `added_tokens_decoder` of tokenizer_config.json and
//! added_tokens.json.
//!
//! They are found in a text before the model sees it: leftmost first, the longest of those that begin alike,
//! as transformers finds them.

use std::collections::{BTreeMap, HashMap};

use crate::tokenizer::error::TokenizerError;

/// How far above the model's own ids an added token's id may lie: beyond that it is a damaged file, and
/// lists as long as the largest id would fill the memory.
const MAX_ABOVE: u32 = 1 << 20;

/// One added token; the flags are those of the `tokenizers` crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AddedToken {
    pub id: u32,
    pub text: String,
    /// Left out of decoded text, and found only in text whose special tokens are meant.
    pub special: bool,
    /// Takes the white space before it.
    pub lstrip: bool,
    /// Takes the white space after it.
    pub rstrip: bool,
    /// Only where no letter, digit or underscore stands beside it.
    pub single_word: bool,
    /// Looked for in the normalised text (by the `tokenizers` crate alone).
    pub normalized: bool,
}

impl AddedToken {
    /// A token without flags.
    pub(crate) fn new(id: u32, text: impl Into<String>, special: bool) -> Self {
        let (lstrip, rstrip, single_word) = (false, false, false);
        Self { id, text: text.into(), special, lstrip, rstrip, single_word, normalized: !special }
    }

    /// The same for the `tokenizers` crate.
    pub(crate) fn for_crate(&self) -> tokenizers::AddedToken {
        tokenizers::AddedToken::from(self.text.as_str(), self.special)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .single_word(self.single_word)
            .normalized(self.normalized)
    }
}

/// A stretch of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part<'t> {
    Text(&'t str),
    Token(u32),
}

/// Added tokens by id and by text.
#[derive(Debug, Default)]
pub(crate) struct AddedTokens {
    by_id: BTreeMap<u32, AddedToken>,
    ids: HashMap<String, u32>,
    /// All of them.
    every: Matcher,
    /// Those that are not special.
    plain: Matcher,
}

impl AddedTokens {
    /// Adds tokens; one with the id and text of an earlier one replaces it. `model_len` ids are the model's.
    ///
    /// # Errors
    /// [`TokenizerError::AddedToken`] where two tokens share an id or a text, or an id is far beyond the model's.
    pub(crate) fn add(
        &mut self,
        tokens: impl IntoIterator<Item = AddedToken>,
        model_len: usize,
    ) -> Result<(), TokenizerError> {
        let limit = u32::try_from(model_len).unwrap_or(u32::MAX).saturating_add(MAX_ABOVE);
        for token in tokens {
            let bad = |why: String| {
                Err(TokenizerError::AddedToken { token: token.text.clone(), id: token.id, why })
            };
            if token.text.is_empty() {
                return bad("it has no text".into());
            }
            if token.id >= limit {
                return bad(format!("the model has {model_len} tokens"));
            }
            if let Some(id) = self.ids.get(&token.text).filter(|&&id| id != token.id) {
                return bad(format!("the same text has the id {id}"));
            }
            if let Some(other) = self.by_id.get(&token.id).filter(|other| other.text != token.text) {
                return bad(format!("that id is {:?}", other.text));
            }
            self.ids.insert(token.text.clone(), token.id);
            self.by_id.insert(token.id, token);
        }
        let texts =
            |plain: bool| self.by_id.values().filter(move |t| !plain || !t.special).map(|t| t.text.as_str());
        (self.every, self.plain) = (Matcher::new(texts(false)), Matcher::new(texts(true)));
        Ok(())
    }

    pub(crate) fn get(&self, id: u32) -> Option<&AddedToken> {
        self.by_id.get(&id)
    }

    pub(crate) fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// In the order of their ids.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &AddedToken> + Clone {
        self.by_id.values()
    }

    /// The first id after the last token.
    pub(crate) fn end(&self) -> usize {
        self.by_id.last_key_value().map_or(0, |(&id, _)| id as usize + 1)
    }

    /// The text cut at its added tokens: at all of them, or at those alone that are not special.
    pub(crate) fn split<'t>(&self, text: &'t str, special: bool) -> Vec<Part<'t>> {
        let matcher = if special { &self.every } else { &self.plain };
        let mut parts = Vec::new();
        let push_text = |parts: &mut Vec<Part<'t>>, text: &'t str| {
            if !text.is_empty() {
                parts.push(Part::Text(text));
            }
        };
        let (mut start, mut at) = (0, 0);
        while let Some(c) = text[at..].chars().next() {
            let found = matcher.at_start(&text[at..]).and_then(|name| self.get(self.id(name)?));
            let Some(token) = found else {
                at += c.len_utf8();
                continue;
            };
            let (before, after) = (&text[start..at], &text[at + token.text.len()..]);
            let beside = [text[..at].chars().next_back(), after.chars().next()];
            if token.single_word && beside.into_iter().flatten().any(|c| c.is_alphanumeric() || c == '_') {
                at += token.text.len();
                continue;
            }
            push_text(&mut parts, if token.lstrip { before.trim_end() } else { before });
            parts.push(Part::Token(token.id));
            let rest = if token.rstrip { after.trim_start() } else { after };
            at = text.len() - rest.len();
            start = at;
        }
        push_text(&mut parts, &text[start..]);
        parts
    }
}

/// Finds the longest of a set of strings at the start of a text.
#[derive(Debug, Default)]
pub(crate) struct Matcher {
    /// By first byte, the longest first.
    by_first: HashMap<u8, Vec<String>>,
}

impl Matcher {
    /// A matcher for these strings; empty ones are left out.
    pub(crate) fn new<'s>(words: impl Iterator<Item = &'s str>) -> Self {
        let mut by_first: HashMap<u8, Vec<String>> = HashMap::new();
        for word in words {
            if let Some(&first) = word.as_bytes().first() {
                by_first.entry(first).or_default().push(word.to_owned());
            }
        }
        for words in by_first.values_mut() {
            words.sort_by_key(|word| std::cmp::Reverse(word.len()));
        }
        Self { by_first }
    }

    /// The longest string that `text` starts with.
    pub(crate) fn at_start(&self, text: &str) -> Option<&str> {
        let words = self.by_first.get(text.as_bytes().first()?)?;
        words.iter().map(String::as_str).find(|word| text.starts_with(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(list: impl IntoIterator<Item = AddedToken>) -> AddedTokens {
        let mut tokens = AddedTokens::default();
        tokens.add(list, 10).unwrap();
        tokens
    }

    #[test]
    fn the_leftmost_longest_token_is_taken_with_the_white_space_it_asks_for() {
        use Part::{Text, Token};
        let added = tokens([
            AddedToken { lstrip: true, ..AddedToken::new(10, "<|end|>", true) },
            AddedToken { rstrip: true, ..AddedToken::new(11, "<|end|>!", true) },
            AddedToken { single_word: true, ..AddedToken::new(12, "new", false) },
        ]);
        assert_eq!(added.split("a  <|end|> b", true), [Text("a"), Token(10), Text(" b")]);
        assert_eq!(added.split("a  <|end|>! \nb", true), [Text("a  "), Token(11), Text("b")]);
        assert_eq!(added.split("a<|end|>b", false), [Text("a<|end|>b")]);
        assert_eq!(added.split("a new one", false), [Text("a "), Token(12), Text(" one")]);
        assert_eq!(added.split("renew news 新new _new", false), [Text("renew news 新new _new")]);
        assert_eq!(added.split("", true), []);
    }

    #[test]
    fn tokens_that_contradict_each_other_are_errors() {
        let error = |list: Vec<AddedToken>| AddedTokens::default().add(list, 10).unwrap_err().to_string();
        let two = |a: (u32, &str), b: (u32, &str)| {
            error([a, b].into_iter().map(|(id, text)| AddedToken::new(id, text, true)).collect())
        };
        assert!(two((10, "a"), (11, "a")).contains("the same text has the id 10"));
        assert!(two((10, "a"), (10, "b")).contains("that id is \"a\""));
        assert!(two((10, "a"), (u32::MAX, "b")).contains("the model has 10 tokens"));
        assert!(two((10, "a"), (11, "")).contains("no text"));
    }
}
