//! `flm eval …`

mod perplexity;
mod score;

use clap::Subcommand;

use crate::output::Output;

/// Evaluate a model.
#[derive(Debug, Subcommand)]
pub(crate) enum Eval {
    Perplexity(perplexity::Perplexity),
    Score(score::Score),
}

impl Eval {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        match self {
            Self::Perplexity(command) => command.run(output),
            Self::Score(command) => command.run(output),
        }
    }
}
