//! `flm inspect`, of a directory or of a repository on the Hub.

pub(crate) mod human;
pub(crate) mod report;
pub(crate) mod values;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use flm_checkpoint::Checkpoint;

use crate::arguments::{checkpoint_dir, has_tokenizer, open, tokenizer};
use crate::commands::inspect::report::{Report, Transferred};
use crate::output::Output;
use flm_hub::Manifest;
use flm_hub::{Access, Hub};
use flm_hub::{HubCheckpoint, repository_of};

/// Show a checkpoint's shape, dtypes, files and problems, without reading more than the beginnings of its weights.
///
/// Of a repository on the Hub, config.json, the index and the headers of the weight files are fetched; a
/// directory of that name has precedence. The exit status is 1 when there are problems.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  flm inspect ./Tele-FLM\n  flm inspect ./Tele-FLM --values=all\n  \
                        flm inspect CofeAI/FLM-2-52B-Instruct-2407")]
pub(crate) struct Inspect {
    /// Checkpoint directory, a repository OWNER/NAME, or a name that `flm models` lists.
    #[arg(value_parser = checkpoint_dir())]
    checkpoint: PathBuf,
    /// Commit, branch or tag of the repository [default: the manifest's, else main].
    #[arg(long)]
    revision: Option<String>,
    /// List every tensor.
    #[arg(long)]
    tensors: bool,
    /// Read weights, a sample or all: their extremes, NaN and infinities, and the vocabulary's padding rows.
    #[arg(
        long,
        value_enum,
        value_name = "HOW",
        num_args = 0..=1,
        default_missing_value = "sample",
        require_equals = true
    )]
    values: Option<Values>,
}

/// How much of the weights is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Values {
    /// About 64 KiB of each tensor, at 16 places.
    Sample,
    /// Everything.
    All,
}

impl Inspect {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        let report = match self.repository()? {
            Some((repository, pinned)) => self.remote(&repository, pinned, output)?,
            None => self.local(output)?,
        };
        output.result(&report, crate::commands::inspect::human::text)?;
        Ok(report.problems.is_empty())
    }

    /// The repository to ask, unless there is a directory of that name.
    fn repository(&self) -> anyhow::Result<Option<(String, Option<String>)>> {
        let found = match self.checkpoint.to_str() {
            Some(name) if !self.checkpoint.exists() => repository_of(&Manifest::load(None)?, name)?,
            _ => None,
        };
        ensure!(
            found.is_some() || self.revision.is_none(),
            "--revision is for a repository on the Hub, {} is none",
            self.checkpoint.display()
        );
        Ok(found)
    }

    fn local(&self, output: &Output) -> anyhow::Result<Report> {
        let checkpoint = open(&self.checkpoint)?;
        let mut report = self.report(&checkpoint);
        let mut own = None;
        if has_tokenizer(&self.checkpoint) {
            match tokenizer(&self.checkpoint) {
                Ok(tokenizer) => {
                    report.add_tokenizer(tokenizer.len());
                    own = Some(tokenizer);
                }
                Err(error) => report.problems.push(format!("{error:#}")),
            }
        }
        report.add_zero(&checkpoint.zero_tensors()?);
        if let Some(how) = self.values {
            let sample = (how == Values::Sample).then_some(SAMPLE);
            crate::commands::inspect::values::add(&mut report, &checkpoint, own.as_ref(), sample, output)?;
        }
        Ok(report)
    }

    fn remote(&self, repository: &str, pinned: Option<String>, output: &Output) -> anyhow::Result<Report> {
        ensure!(
            self.values.is_none(),
            "--values reads weights, and {repository} is not on this machine: `flm pull {repository}` first"
        );
        let revision = self.revision.clone().or(pinned).unwrap_or_else(|| "main".into());
        let interrupted = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&interrupted);
        ctrlc::set_handler(move || {
            if seen.swap(true, Ordering::Relaxed) {
                std::process::exit(130)
            }
        })
        .context("cannot handle Ctrl-C")?;
        let bar = output.requests("headers");
        let (waits, shown) = (bar.clone(), *output);
        let tell = move |event: &_| {
            if let Some(text) = crate::commands::pull::told(event) {
                waits.suspend(|| shown.note(&text));
            }
        };
        let (timeout, tell) = (Duration::from_secs(30), Arc::new(tell));
        let hub = Hub::from_env(Access { timeout, retries: 5, interrupted, tell })?;
        let step = || bar.inc(1);
        let files = HubCheckpoint::list(&hub, repository, &revision, &step)
            .with_context(|| format!("there is no directory {repository}, and on the Hub"))?;
        let checkpoint = files.open().with_context(|| format!("cannot inspect {repository}"))?;
        bar.finish_and_clear();
        let mut report = self.report(&checkpoint);
        report.transferred = Some(Transferred {
            repository: repository.into(),
            revision,
            commit: files.commit().into(),
            requests: files.requests(),
            bytes: files.received(),
        });
        Ok(report)
    }

    fn report(&self, checkpoint: &Checkpoint) -> Report {
        Report::new(Path::new(&self.checkpoint), checkpoint, self.tensors)
    }
}

/// Bytes of each tensor in a sample.
const SAMPLE: u64 = 64 << 10;
