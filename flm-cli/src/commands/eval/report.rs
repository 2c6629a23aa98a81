//! `flm eval report`.

use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;

use crate::output::{Output, size};
use crate::output_file::{self, Kind, Page};
use crate::report::evaluation::page;
use crate::report::markdown::markdown;
use flm_eval::{Report, find};

/// Show saved judgments as one HTML page for the browser, which loads nothing.
///
/// With several results, or a baseline, they stand side by side. The page has the scores, what they are
/// made of, and every question with its reference, answers and judgments.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  flm eval report results\n  \
        flm eval report after --baseline before/judgments.jsonl --out report.html")]
pub(crate) struct MakeReport {
    /// Results: directories with judgments.jsonl, or files of judgments.
    #[arg(required = true)]
    results: Vec<PathBuf>,
    /// The page [default: report.html in the first results directory].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Judgments of the baseline.
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Print the tables as Markdown.
    #[arg(long)]
    markdown: bool,
    /// Compare results that differ in judge, prompt or data.
    #[arg(long)]
    allow_different: bool,
    /// Overwrite a file that is not an earlier result of this command.
    #[arg(long)]
    force: bool,
}

impl MakeReport {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        let files = self.results.iter().map(|path| find(path)).collect::<anyhow::Result<Vec<_>>>()?.concat();
        let baseline = self.baseline.as_deref().map(find).transpose()?.unwrap_or_default();
        ensure!(baseline.len() <= 1, "--baseline holds {} results: name one of them", baseline.len());
        let report = Report::read(&files, baseline.first().map(PathBuf::as_path), self.allow_different)?;
        let first = &self.results[0];
        let out = self.out.clone().unwrap_or_else(|| {
            if first.is_dir() { first.join("report.html") } else { first.with_extension("html") }
        });
        let html = page(&report)?;
        output_file::write(&out, Kind::Page(Page::Evaluation), html.as_bytes(), self.force)?;
        output.result(&report, |report| {
            if self.markdown {
                markdown(report)
            } else {
                format!("{} ({})", out.display(), size(html.len() as u64))
            }
        })?;
        Ok(true)
    }
}
