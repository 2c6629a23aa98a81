//! One file a command: parse, call, print.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod convert;
pub(crate) mod demo;
pub(crate) mod distance;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod fold;
pub(crate) mod generate;
pub(crate) mod grow;
pub(crate) mod init;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod models;
pub(crate) mod pull;
pub(crate) mod sft;
pub(crate) mod tokenize;
pub(crate) mod verify;

use clap::Subcommand;

use crate::output::Output;

/// What `flm` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(crate::commands::demo::Demo),
    Models(crate::commands::models::Models),
    Pull(Box<crate::commands::pull::Pull>),
    Inspect(crate::commands::inspect::Inspect),
    Convert(crate::commands::convert::Convert),
    #[command(subcommand)]
    Export(crate::commands::export::Export),
    Init(crate::commands::init::Init),
    Grow(Box<crate::commands::grow::Grow>),
    Fold(crate::commands::fold::Fold),
    Distance(crate::commands::distance::Distance),
    Verify(crate::commands::verify::Verify),
    Tokenize(crate::commands::tokenize::Tokenize),
    Logits(crate::commands::logits::Logits),
    Generate(crate::commands::generate::Generate),
    Chat(crate::commands::chat::Chat),
    #[command(subcommand)]
    Eval(crate::commands::eval::Eval),
    Sft(crate::commands::sft::Sft),
    Completions(crate::commands::completions::Completions),
}

impl Command {
    /// Runs the command; false where a check that it makes has failed. `whole` defines the command line.
    pub(crate) fn run(&self, whole: fn() -> clap::Command, output: &Output) -> anyhow::Result<bool> {
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
            Self::Tokenize(command) => command.run(output),
            Self::Logits(command) => command.run(output),
            Self::Generate(command) => command.run(output),
            Self::Chat(command) => command.run(output),
            Self::Eval(command) => command.run(output),
            Self::Sft(command) => command.run(output),
            Self::Models(command) => command.run(output),
            Self::Pull(command) => command.run(output),
            Self::Completions(command) => command.run(whole(), output),
        }
    }
}
