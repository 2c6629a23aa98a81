//! One file a command: parse, call, print.

mod chat;
mod completions;
mod convert;
mod demo;
mod distance;
mod eval;
mod export;
mod fold;
mod generate;
mod grow;
mod init;
mod inspect;
mod logits;
mod models;
mod pull;
mod sft;
mod verify;

use clap::Subcommand;

use crate::output::Output;

/// What `flm` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(demo::Demo),
    Models(models::Models),
    Pull(Box<pull::Pull>),
    Inspect(inspect::Inspect),
    Convert(convert::Convert),
    #[command(subcommand)]
    Export(export::Export),
    Init(init::Init),
    Grow(Box<grow::Grow>),
    Fold(fold::Fold),
    Distance(distance::Distance),
    Verify(verify::Verify),
    Logits(logits::Logits),
    Generate(generate::Generate),
    Chat(chat::Chat),
    #[command(subcommand)]
    Eval(eval::Eval),
    Sft(sft::Sft),
    Completions(completions::Completions),
}

impl Command {
    /// Runs the command; false where a check that it makes has failed.
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        match self {
            Self::Demo(command) => command.run(output),
            Self::Inspect(command) => command.run(output),
            Self::Convert(command) => command.run(output),
            Self::Export(command) => command.run(output),
            Self::Init(command) => command.run(output),
            Self::Grow(command) => command.run(output),
            Self::Fold(command) => command.run(output),
            Self::Distance(command) => command.run(output),
            Self::Verify(command) => command.run(output),
            Self::Logits(command) => command.run(output),
            Self::Generate(command) => command.run(output),
            Self::Chat(command) => command.run(output),
            Self::Eval(command) => command.run(output),
            Self::Sft(command) => command.run(output),
            Self::Models(command) => command.run(output),
            Self::Pull(command) => command.run(output),
            Self::Completions(command) => command.run(output),
        }
    }
}
