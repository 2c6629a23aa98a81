use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;

use crate::{
    demo,
    output::{Output, table},
};

/// Take a small checkpoint through every step, and show what each proved.
///
/// It has random weights, the 52B's ratios and multipliers, and PyTorch shards as the released models
/// have. No network, no files left behind unless --dir names a place for them.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flm demo --dir ./demo")]
pub(crate) struct Demo {
    /// Keep the checkpoints in this new directory.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Demo {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        let temporary = tempfile::tempdir()?;
        let dir = match &self.dir {
            Some(dir) => {
                ensure!(!dir.exists(), "{} exists: name a new directory", dir.display());
                std::fs::create_dir_all(dir)?;
                dir.clone()
            }
            None => temporary.path().to_owned(),
        };
        let bar = output.steps("demo", demo::STEPS as u64);
        let report = demo::run(&dir, |step| {
            bar.set_message(step.to_owned());
            bar.inc(1);
        })?;
        bar.finish_and_clear();
        output.result(&report, |report| {
            let row = |s: &demo::Step| {
                let verdict = if s.passed { "ok" } else { "FAILED" };
                vec![
                    s.name.into(),
                    s.did.clone(),
                    s.proved.clone(),
                    format!("{:.2} s", s.seconds),
                    verdict.into(),
                ]
            };
            let mut text = table(
                &["step", "what it did", "what it proved", "took", ""],
                report.steps.iter().map(row),
                false,
            );
            text += &match &self.dir {
                Some(dir) => format!("\nThe checkpoints are in {}.", dir.display()),
                None => "\nRun `flm demo --dir DIR` to keep the checkpoints.".into(),
            };
            text
        })?;
        Ok(report.passed)
    }
}
