use std::{ops::Range, path::PathBuf};

use anyhow::{bail, ensure};
use clap::Args;
use serde::Serialize;

use crate::{
    arguments::{RunArgs, open, read_text, tokenizer},
    output::{Output, count},
};

/// Perplexity and bits per byte of a text file.
///
/// The text is tokenised as a whole and cut into windows of --context tokens that start every --stride
/// tokens; a token is scored once, in the first window that has it after its first position. Padding
/// rows of the vocabulary get no probability.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flm eval perplexity ./Tele-FLM --text book.txt --context 512 --json")]
pub(crate) struct Perplexity {
    /// Checkpoint directory.
    dir: PathBuf,
    /// UTF-8 text file (- is standard input).
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens in a window.
    #[arg(long, default_value_t = 512, value_name = "N")]
    context: usize,
    /// Tokens from one window's start to the next [default: --context, no overlap].
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Use the first N bytes of the text.
    #[arg(long, value_name = "N")]
    max_bytes: Option<usize>,
    /// Put the beginning-of-text token before every window.
    #[arg(long)]
    bos: bool,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Serialize)]
struct Score {
    perplexity: f64,
    bits_per_byte: f64,
    /// Nats, summed over the scored tokens.
    nll: f64,
    tokens: usize,
    scored: usize,
    bytes: usize,
    context: usize,
    stride: usize,
}

impl Perplexity {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        let checkpoint = open(&self.dir)?;
        let tokenizer = tokenizer(&self.dir)?;
        let mut text = read_text(&self.text)?;
        if let Some(max) = self.max_bytes {
            let end = (0..=max.min(text.len())).rev().find(|&i| text.is_char_boundary(i));
            text.truncate(end.unwrap_or(0));
        }
        let stride = self.stride.unwrap_or(self.context);
        ensure!(self.context >= 2, "--context must be at least 2");
        ensure!((1..=self.context).contains(&stride), "--stride must be between 1 and --context");
        let longest = checkpoint.config().max_position_embeddings;
        ensure!(
            self.context + usize::from(self.bos) <= longest,
            "the model's context is {longest} tokens: lower --context"
        );
        let ids = tokenizer.encode(&text)?;
        ensure!(ids.len() >= 2, "the text has {} tokens: nothing to score", ids.len());
        let bos = match (self.bos, tokenizer.bos_id()) {
            (false, _) => None,
            (true, Some(id)) => Some(id),
            (true, None) => bail!("--bos: the tokenizer has no beginning-of-text token"),
        };
        let model = self.run.load(&checkpoint)?;
        let windows = windows(ids.len(), self.context, stride);
        let bar = output.steps("windows", windows.len() as u64);
        let (mut nll, mut scored) = (0.0, 0);
        for window in windows {
            let tokens: Vec<u32> =
                bos.into_iter().chain(ids[window.tokens.clone()].iter().copied()).collect();
            let values = model.negative_log_likelihood(&tokens, tokenizer.len())?;
            let first = window.unscored + usize::from(bos.is_some());
            let first = if bos.is_some() && window.unscored == 0 { 0 } else { first.max(1) - 1 };
            nll += values[first..].iter().sum::<f64>();
            scored += values.len() - first;
            bar.inc(1);
        }
        bar.finish_and_clear();
        let score = Score {
            perplexity: (nll / scored as f64).exp(),
            bits_per_byte: nll / std::f64::consts::LN_2 / text.len() as f64,
            nll,
            tokens: ids.len(),
            scored,
            bytes: text.len(),
            context: self.context,
            stride,
        };
        output.result(&score, |s| {
            format!(
                "perplexity     {:.4}\nbits per byte  {:.4}\nscored         {} of {} tokens, {} bytes, windows of {}",
                s.perplexity,
                s.bits_per_byte,
                count(s.scored as u64),
                count(s.tokens as u64),
                count(s.bytes as u64),
                s.context
            )
        })?;
        Ok(true)
    }
}

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
