//! How well a model predicts texts: negative log-likelihoods, in windows.

use std::ops::Range;

use flm_candle::CausalLm;
use flm_candle::Tokenizer;
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
    /// Bytes of the texts in UTF-8.
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
    /// Negative log-likelihood in bits, divided by the bytes of the texts.
    pub bits_per_byte: f64,
    /// Nats, summed over the scored tokens.
    pub nll: f64,
    /// Tokens of the texts.
    pub tokens: usize,
    /// Tokens that have a probability: those with a token before them.
    pub scored: usize,
    /// Bytes of the texts in UTF-8.
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
    /// Tokenises a text as a whole; `None` where it has fewer than two tokens, of which none is scored.
    pub fn new(text: &str, tokenizer: &Tokenizer, cut: Cut) -> anyhow::Result<Option<Self>> {
        let ids = tokenizer.encode(text)?;
        let windows = windows(ids.len(), cut.context, cut.stride);
        Ok((ids.len() > 1).then_some(Self { ids, bytes: text.len(), windows }))
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

fn windows(len: usize, context: usize, stride: usize) -> Vec<Window> {
    let mut windows = Vec::new();
    let (mut start, mut done) = (0, 0);
    while done < len {
        let end = (start + context).min(len);
        // a window of one token scores nothing
        if end - start > 1 {
            windows.push(Window { tokens: start..end, unscored: done - start });
        }
        (start, done) = (start + stride, end);
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_belongs_to_one_window_and_overlaps_are_not_scored_twice() {
        let cut = |len, context, stride| -> Vec<_> {
            windows(len, context, stride).into_iter().map(|w| (w.tokens, w.unscored)).collect()
        };
        assert_eq!(cut(10, 4, 4), [(0..4, 0), (4..8, 0), (8..10, 0)]);
        assert_eq!(cut(9, 4, 4), [(0..4, 0), (4..8, 0)]);
        assert_eq!(cut(10, 4, 2), [(0..4, 0), (2..6, 2), (4..8, 2), (6..10, 2)]);
        assert_eq!(cut(3, 8, 1), [(0..3, 0)]);
    }
}
