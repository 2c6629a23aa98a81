//! `flm demo`; the steps are in `crate::demo`.

use std::path::PathBuf;

use clap::Args;

use crate::demo;
use crate::demo::Kind;
use crate::output::{Output, table};

/// Take the built-in model through every step, and show what each proved.
///
/// It is a Tele-FLM in miniature: the 52B's ratios and multipliers, PyTorch shards as the released models
/// have, pre-trained by `flm sft` on Chinese classics. No network. What it makes stays in --dir, and every
/// other command takes it from there.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  flm demo\n  flm demo --dir ./nano --until convert")]
pub(crate) struct Demo {
    /// Output directory; that of an earlier demo is replaced.
    #[arg(long, value_name = "DIR", default_value = "flm-demo")]
    dir: PathBuf,
    /// Last step to run.
    #[arg(long, value_name = "STEP", default_value = "report")]
    until: Kind,
}

impl Demo {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        let _lock = demo::prepare(&self.dir)?;
        let report = demo::run_steps(&self.dir, self.until, output)?;
        output.result(&report, |report| {
            let row = |s: &demo::Step| {
                let verdict = if s.passed { "ok" } else { "FAILED" };
                let seconds = format!("{:.1} s", s.seconds);
                vec![s.kind.to_string(), s.did.clone(), s.proved.clone(), seconds, verdict.into()]
            };
            let mut text = table(
                &["step", "what it did", "what it proved", "took", ""],
                report.steps.iter().map(row),
                false,
            );
            text += &format!("\n{:.0} s; everything is in {}", report.seconds, report.dir.display());
            if let Some(page) = &report.page {
                text += &format!(
                    "\nreport page  {}\ntalk to it   flm chat {}",
                    page.display(),
                    report.dir.join("nano-102b-sft/final").display()
                );
            }
            text
        })?;
        Ok(report.passed)
    }
}
