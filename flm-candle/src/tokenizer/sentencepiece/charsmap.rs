//! SentencePiece's `precompiled_charsmap`: rules "this string becomes that string", stored as a
//! double-array trie.
//!
//! Layout: `u32` byte length of the trie, the trie, then the replacements, each closed by a null
//! byte; all little-endian (`Normalizer::DecodePrecompiledCharsMap` of google/sentencepiece). The
//! trie's units are those of darts-clone: 8 bits label, 1 bit "has a value", 22 bits offset to the
//! children, or 31 bits value.

use crate::tokenizer::error::TokenizerError;

/// The rules of one model.
#[derive(Debug)]
pub(super) struct Charsmap {
    units: Vec<Unit>,
    replacements: String,
}

/// One unit of a darts-clone double array.
#[derive(Debug, Clone, Copy)]
struct Unit(u32);

impl Unit {
    /// A label in the low byte; a unit that holds a value has the top bit set and so equals no label.
    fn label(self) -> u32 {
        self.0 & 0x8000_00ff
    }

    fn has_value(self) -> bool {
        self.0 & 0x100 != 0
    }

    fn value(self) -> usize {
        (self.0 & 0x7fff_ffff) as usize
    }

    /// Ten low bits are flags; bit 9 says that the offset is in units of 256.
    fn offset(self) -> usize {
        ((self.0 >> 10) << ((self.0 & 0x200) >> 6)) as usize
    }
}

impl Charsmap {
    /// Reads and checks the table: every rule that can be reached must have a replacement.
    pub(super) fn new(blob: &[u8]) -> Result<Self, TokenizerError> {
        let bad = |message: &str| TokenizerError::Charsmap(message.to_owned());
        let (head, rest) = blob.split_first_chunk::<4>().ok_or_else(|| bad("shorter than its header"))?;
        let trie_len = u32::from_le_bytes(*head) as usize;
        if trie_len == 0 || !trie_len.is_multiple_of(4) {
            return Err(bad(&format!("a trie of {trie_len} bytes is not a list of 32-bit units")));
        }
        if trie_len > rest.len() {
            return Err(bad(&format!("a trie of {trie_len} bytes does not fit {} bytes", rest.len())));
        }
        let (trie, replacements) = rest.split_at(trie_len);
        let units =
            trie.chunks_exact(4).map(|c| Unit(u32::from_le_bytes([c[0], c[1], c[2], c[3]]))).collect();
        let replacements = std::str::from_utf8(replacements)
            .map_err(|e| bad(&format!("replacements are not UTF-8: {e}")))?
            .to_owned();
        if !replacements.is_empty() && !replacements.ends_with('\0') {
            return Err(bad("the last replacement is not closed by a null byte"));
        }
        let map = Self { units, replacements };
        map.check()?;
        Ok(map)
    }

    /// The longest rule that `text` starts with: its replacement and its length in bytes.
    pub(super) fn longest_match(&self, text: &str) -> Option<(&str, usize)> {
        let mut longest = None;
        let mut node = self.units.first()?.offset();
        for (i, byte) in text.bytes().enumerate() {
            node ^= usize::from(byte);
            let Some(unit) = self.units.get(node).filter(|u| u.label() == u32::from(byte)) else {
                break;
            };
            node ^= unit.offset();
            if unit.has_value()
                && text.is_char_boundary(i + 1)
                && let Some(replacement) = self.units.get(node).and_then(|u| self.replacement(u.value()))
            {
                longest = Some((replacement, i + 1));
            }
        }
        longest
    }

    fn replacement(&self, start: usize) -> Option<&str> {
        let rest = self.replacements.get(start..)?;
        rest.split_once('\0').map(|(text, _)| text)
    }

    /// Walks the trie once. Tails are shared, so a node may be met again.
    fn check(&self) -> Result<(), TokenizerError> {
        let bad = |message: String| Err(TokenizerError::Charsmap(message));
        let mut seen = vec![false; self.units.len()];
        let mut todo = vec![self.units[0].offset()];
        while let Some(base) = todo.pop() {
            for byte in 0..=255u8 {
                let node = base ^ usize::from(byte);
                let Some(unit) = self.units.get(node).filter(|u| u.label() == u32::from(byte)) else {
                    continue;
                };
                if std::mem::replace(&mut seen[node], true) {
                    continue;
                }
                let children = node ^ unit.offset();
                if unit.has_value() {
                    let value = self.units.get(children).map(|u| u.value());
                    if value.and_then(|v| self.replacement(v)).is_none() {
                        return bad(format!("unit {node} has no replacement"));
                    }
                }
                todo.push(children);
            }
        }
        if seen.contains(&true) { Ok(()) } else { bad("the trie holds no rule".into()) }
    }
}
