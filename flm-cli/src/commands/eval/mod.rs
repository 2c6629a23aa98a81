//! `flm eval …`

mod alignbench;
mod judge;
mod perplexity;
mod report;
mod score;

use clap::Subcommand;

use crate::output::Output;

/// Evaluate a model.
#[derive(Debug, Subcommand)]
pub(crate) enum Eval {
    #[command(name = "alignbench")]
    AlignBench(Box<alignbench::AlignBench>),
    Judge(Box<judge::JudgeAnswers>),
    Perplexity(perplexity::Perplexity),
    Score(score::Score),
    Report(report::MakeReport),
}

impl Eval {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        match self {
            Self::AlignBench(command) => command.run(output),
            Self::Judge(command) => command.run(output),
            Self::Perplexity(command) => command.run(output),
            Self::Score(command) => command.run(output),
            Self::Report(command) => command.run(output),
        }
    }
}
