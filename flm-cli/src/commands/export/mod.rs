//! `flm export …`

pub(crate) mod gguf;

use clap::Subcommand;

use crate::output::Output;

/// Write a checkpoint in another runtime's format.
#[derive(Debug, Subcommand)]
pub(crate) enum Export {
    Gguf(crate::commands::export::gguf::Gguf),
}

impl Export {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        match self {
            Self::Gguf(command) => command.run(output),
        }
    }
}
