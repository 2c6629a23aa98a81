//! `flm eval perplexity`.

use anyhow::{bail, ensure};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

use crate::arguments::{RawTextArgs, RunArgs, checkpoint_dir, open, tokenizer};
use crate::commands::eval::texts::TextFile;
use crate::output::{Output, count, table};
use flm_eval::{Cut, Measures, Pieces, Sums, Tokenised};

/// Measure how well a model predicts texts: perplexity and bits per byte, by domain.
///
/// A text is tokenised as a whole and cut into windows of --context tokens that start every --stride
/// tokens; a token is scored once, in the first window that has it after its first position. Padding
/// rows of the vocabulary get no probability. Without BOS, a window's first token has nothing before it:
/// where no earlier window has it, it is not scored and its bytes do not count. With BOS (--bos, or a
/// tokenizer that begins texts with it) every token is scored, over all bytes: bits per byte can then be
/// compared between models with different tokenizers; perplexities cannot.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    flm eval perplexity ./Tele-FLM --text book.txt --context 512 --json\n  \
    flm eval perplexity ./Tele-FLM --text 新闻=news.jsonl --text code=src.txt\n  \
    flm eval perplexity ./Tele-FLM --text ./domains")]
pub(crate) struct Perplexity {
    /// Checkpoint directory.
    #[arg(value_parser = checkpoint_dir())]
    dir: PathBuf,
    /// A text: a UTF-8 file (- is standard input), a .jsonl file with a text in every line, or a directory
    /// of .txt and .jsonl files. Given again, or for a directory, a table has a row for each file, named
    /// by the file or by NAME=.
    #[arg(long, value_name = "[NAME=]PATH", required = true)]
    text: Vec<String>,
    /// Tokens per window.
    #[arg(long, default_value_t = 512, value_name = "N")]
    context: usize,
    /// Tokens from one window's start to the next [default: --context, no overlap].
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Use the first N bytes of each file's texts.
    #[arg(long, value_name = "N")]
    max_bytes: Option<usize>,
    /// Put the beginning-of-text token before every window (end-of-text, where there is none): all is scored.
    /// This is so by itself where the tokenizer begins texts with BOS.
    #[arg(long, conflicts_with = "no_bos")]
    bos: bool,
    #[command(flatten)]
    raw: RawTextArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// What is printed: the measures over all files, then those of each.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    total: Measures,
    files: Vec<FileReport>,
}

#[derive(Debug, Serialize)]
struct FileReport {
    name: String,
    path: PathBuf,
    /// How many were scored.
    texts: usize,
    /// Texts of which nothing can be scored: of fewer than two tokens, with --bos of none.
    too_short: usize,
    #[serde(flatten)]
    measures: Measures,
}

impl Perplexity {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        let files = TextFile::find(&self.text)?;
        let checkpoint = open(&self.dir)?;
        let tokenizer = self.raw.apply(tokenizer(&self.dir)?);
        let stride = self.stride.unwrap_or(self.context);
        ensure!(self.context >= 2, "--context must be at least 2");
        ensure!((1..=self.context).contains(&stride), "--stride must be between 1 and --context");
        // a model without a beginning-of-text token has seen texts begin after the end of others
        let bos = match (self.bos || tokenizer.add_bos(), tokenizer.bos_id().or(tokenizer.eos_id())) {
            (false, _) => None,
            (true, Some(id)) => Some(id),
            (true, None) => {
                bail!("--bos: the tokenizer has neither a beginning-of-text nor an end-of-text token")
            }
        };
        let longest = checkpoint.config().context_length();
        ensure!(
            self.context + usize::from(bos.is_some()) <= longest,
            "the model's context is {longest} tokens{}: lower --context",
            if bos.is_some() { ", BOS included" } else { "" }
        );
        let cut = Cut { context: self.context, stride, bos };
        let pieces = Pieces::new(&tokenizer);
        // every file is read before the model is loaded: what is wrong with one shows at once
        let tokenised = files
            .into_iter()
            .map(|file| {
                let texts = file.texts(self.max_bytes)?;
                let all = texts.len();
                let texts = texts.iter().map(|text| Tokenised::new(text, &tokenizer, &pieces, cut));
                let texts = texts.filter_map(Result::transpose).collect::<anyhow::Result<Vec<_>>>()?;
                ensure!(
                    !texts.is_empty(),
                    "{}: no text of two tokens or more: nothing to score without --bos",
                    file.path.display()
                );
                Ok((file, all - texts.len(), texts))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let model = self.run.load(&checkpoint)?;
        let windows = tokenised.iter().flat_map(|(_, _, texts)| texts).map(Tokenised::windows).sum::<usize>();
        let bar = output.steps("windows", windows as u64);
        let mut total = Sums::default();
        let mut files = Vec::new();
        for (file, too_short, texts) in tokenised {
            let mut sums = Sums::default();
            for text in &texts {
                sums.add(text.score(&model, tokenizer.len(), cut, || bar.inc(1))?);
            }
            total.add(sums);
            let measures = Measures::new(sums, cut);
            let (name, path) = (file.name, file.path);
            files.push(FileReport { name, path, texts: texts.len(), too_short, measures });
        }
        bar.finish_and_clear();
        output.result(&Report { total: Measures::new(total, cut), files }, |report| {
            if report.files.len() == 1 { one(&report.total) } else { by_domain(report) }
        })?;
        Ok(true)
    }
}

fn one(s: &Measures) -> String {
    format!(
        "perplexity     {:.4}\nbits per byte  {:.4}\nscored         {} of {} tokens, {} bytes, windows of {}",
        s.perplexity,
        s.bits_per_byte,
        count(s.scored as u64),
        count(s.tokens as u64),
        count(s.bytes as u64),
        s.context
    )
}

fn by_domain(report: &Report) -> String {
    let row = |name: &str, s: &Measures| {
        let (scored, bytes) = (count(s.scored as u64), count(s.bytes as u64));
        vec![name.into(), format!("{:.4}", s.bits_per_byte), format!("{:.4}", s.perplexity), scored, bytes]
    };
    let mut rows: Vec<_> = report.files.iter().map(|file| row(&file.name, &file.measures)).collect();
    rows.push(row("total", &report.total));
    table(&["", "bits per byte", "perplexity", "tokens scored", "bytes"], rows, true)
}
