//! One file a command: parse, call, print.

mod completions;
mod convert;
mod eval;
mod generate;
mod inspect;
mod logits;
mod models;
mod sft;

use clap::Subcommand;

use crate::output::Output;

/// What `flm` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Inspect(inspect::Inspect),
    Convert(convert::Convert),
    Logits(logits::Logits),
    Generate(generate::Generate),
    #[command(subcommand)]
    Eval(eval::Eval),
    Sft(sft::Sft),
    Models(models::Models),
    Completions(completions::Completions),
}

impl Command {
    /// Runs the command; false where a check that it makes has failed.
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        match self {
            Self::Inspect(command) => command.run(output),
            Self::Convert(command) => command.run(output),
            Self::Logits(command) => command.run(output),
            Self::Generate(command) => command.run(output),
            Self::Eval(command) => command.run(output),
            Self::Sft(command) => command.run(output),
            Self::Models(command) => command.run(output),
            Self::Completions(command) => command.run(output),
        }
    }
}
