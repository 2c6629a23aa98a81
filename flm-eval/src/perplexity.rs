//! How well a model predicts texts: negative log-likelihoods, in windows.
//!
//! Nats and bytes are of the same tokens: what has no token before it has no score, and its bytes count for
//! nothing. With a beginning-of-text token every token has a score.

use std::ops::Range;

use flm_candle::{CausalLm, Tokenizer, VocabularyModel};
use serde::Serialize;

/// How texts are cut.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// Tokens in a window.
    pub context: usize,
    /// Tokens from one window's start to the next.
    pub stride: usize,
    /// Put before every window.
    pub bos: Option<u32>,
}

/// Scored tokens and bytes of one or more texts.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    /// Nats, summed over the scored tokens.
    pub nll: f64,
    /// Tokens of the texts.
    pub tokens: usize,
    /// Tokens that have a probability: those with a token before them.
    pub scored: usize,
    /// Bytes of the scored tokens, in UTF-8.
    pub bytes: usize,
}

impl Sums {
    /// Adds the sums of another text.
    pub fn add(&mut self, other: Self) {
        self.nll += other.nll;
        self.tokens += other.tokens;
        self.scored += other.scored;
        self.bytes += other.bytes;
    }
}

/// The measures of some texts.
#[derive(Debug, Clone, Serialize)]
pub struct Measures {
    /// e to the mean negative log-likelihood of a scored token.
    pub perplexity: f64,
    /// Negative log-likelihood in bits, divided by the bytes of the scored tokens.
    pub bits_per_byte: f64,
    /// Nats, summed over the scored tokens.
    pub nll: f64,
    /// Tokens of the texts.
    pub tokens: usize,
    /// Tokens that have a probability: those with a token before them.
    pub scored: usize,
    /// Bytes of the scored tokens, in UTF-8.
    pub bytes: usize,
    /// Tokens of a window.
    pub context: usize,
    /// Tokens from one window's beginning to the next one's.
    pub stride: usize,
}

impl Measures {
    /// The measures of texts that were cut into windows by `cut`.
    pub fn new(sums: Sums, cut: Cut) -> Self {
        let Sums { nll, tokens, scored, bytes } = sums;
        Self {
            perplexity: (nll / scored as f64).exp(),
            bits_per_byte: nll / std::f64::consts::LN_2 / bytes as f64,
            nll,
            tokens,
            scored,
            bytes,
            context: cut.context,
            stride: cut.stride,
        }
    }
}

/// A text in tokens, ready to be scored.
#[derive(Debug)]
pub struct Tokenised {
    ids: Vec<u32>,
    bytes: usize,
    windows: Vec<Window>,
}

impl Tokenised {
    /// Tokenises a text as a whole; `None` where no token of it can be scored.
    pub fn new(text: &str, tokenizer: &Tokenizer, pieces: &Pieces, cut: Cut) -> anyhow::Result<Option<Self>> {
        let ids = tokenizer.encode_raw(text)?;
        let (windows, unscored) = windows(ids.len(), cut);
        let without: usize = unscored.iter().map(|&at| pieces.bytes(tokenizer, ids[at], at == 0)).sum();
        let bytes = text.len().saturating_sub(without);
        Ok((!windows.is_empty()).then_some(Self { ids, bytes, windows }))
    }

    /// How many windows will be run.
    pub fn windows(&self) -> usize {
        self.windows.len()
    }

    /// Runs every window; `done` is called after each.
    pub fn score(
        &self,
        model: &CausalLm,
        vocabulary: usize,
        cut: Cut,
        mut done: impl FnMut(),
    ) -> anyhow::Result<Sums> {
        let (mut nll, mut scored) = (0.0, 0);
        for window in &self.windows {
            let ids = &self.ids[window.tokens.clone()];
            let tokens: Vec<u32> = cut.bos.into_iter().chain(ids.iter().copied()).collect();
            let values = model.negative_log_likelihood(&tokens, vocabulary)?;
            let first = window.unscored + usize::from(cut.bos.is_some());
            let first = if cut.bos.is_some() && window.unscored == 0 { 0 } else { first.max(1) - 1 };
            nll += values[first..].iter().sum::<f64>();
            scored += values.len() - first;
            done();
        }
        Ok(Sums { nll, tokens: self.ids.len(), scored, bytes: self.bytes })
    }
}

#[derive(Debug)]
struct Window {
    tokens: Range<usize>,
    /// How many of its first tokens an earlier window has scored.
    unscored: usize,
}

/// The windows, and the tokens that none of them scores.
fn windows(len: usize, cut: Cut) -> (Vec<Window>, Vec<usize>) {
    let (mut windows, mut unscored) = (Vec::new(), Vec::new());
    let (mut start, mut done) = (0, 0);
    while done < len {
        let end = (start + cut.context).min(len);
        if cut.bos.is_none() && done == start {
            unscored.push(start);
        }
        // without a token before it, a window of one scores nothing
        if end - start > 1 || cut.bos.is_some() {
            windows.push(Window { tokens: start..end, unscored: done - start });
        }
        (start, done) = (start + cut.stride, end);
    }
    (windows, unscored)
}

/// How many bytes of a text a token stands for.
#[derive(Debug, Clone, Copy)]
pub struct Pieces {
    form: Form,
}

#[derive(Debug, Clone, Copy)]
enum Form {
    SentencePiece { dummy_prefix: bool },
    ByteLevel,
    Words,
}

impl Pieces {
    /// The pieces of a tokenizer.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let form = match tokenizer.vocabulary().map(|vocabulary| vocabulary.model) {
            Ok(VocabularyModel::SentencePiece { add_dummy_prefix: dummy_prefix, .. }) => {
                Form::SentencePiece { dummy_prefix }
            }
            Ok(VocabularyModel::ByteLevelBpe { .. }) => Form::ByteLevel,
            // other kinds of tokenizer.json write their tokens as they stand in the text
            Err(_) => Form::Words,
        };
        Self { form }
    }

    fn bytes(self, tokenizer: &Tokenizer, id: u32, first: bool) -> usize {
        let piece = tokenizer.id_to_token(id).unwrap_or_default();
        match self.form {
            _ if piece.len() == 6 && piece.starts_with("<0x") && piece.ends_with('>') => 1,
            // the space that is put in front of a text is no part of it
            Form::SentencePiece { dummy_prefix } => {
                piece.replace('▁', " ").len() - usize::from(dummy_prefix && first && piece.starts_with('▁'))
            }
            // every byte is written as one character
            Form::ByteLevel => piece.chars().count(),
            Form::Words => piece.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_belongs_to_one_window_and_overlaps_are_not_scored_twice() {
        let cut = |len, context, stride| -> Vec<_> {
            let (windows, _) = windows(len, Cut { context, stride, bos: None });
            windows.into_iter().map(|w| (w.tokens, w.unscored)).collect()
        };
        assert_eq!(cut(10, 4, 4), [(0..4, 0), (4..8, 0), (8..10, 0)]);
        assert_eq!(cut(9, 4, 4), [(0..4, 0), (4..8, 0)]);
        assert_eq!(cut(10, 4, 2), [(0..4, 0), (2..6, 2), (4..8, 2), (6..10, 2)]);
        assert_eq!(cut(3, 8, 1), [(0..3, 0)]);
    }

    #[test]
    fn what_has_no_token_before_it_is_not_scored_and_bos_scores_all() {
        let of = |len, context, stride, bos| {
            let (windows, unscored) = windows(len, Cut { context, stride, bos });
            (windows.len(), unscored)
        };
        assert_eq!(of(9, 4, 4, None), (2, vec![0, 4, 8]));
        assert_eq!(of(9, 4, 4, Some(1)), (3, vec![]));
        assert_eq!(of(9, 4, 2, None), (4, vec![0]));
        assert_eq!((of(1, 4, 4, None), of(1, 4, 4, Some(1))), ((0, vec![0]), (1, vec![])));
    }
}
