//! `flm completions`.

use clap::Args;
use clap_complete::Shell;

use crate::output::Output;

/// Print a completion script for a shell.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flm completions bash > /etc/bash_completion.d/flm")]
pub(crate) struct Completions {
    /// Shell to print the script for.
    shell: Shell,
}

impl Completions {
    /// Prints the script for `command`, the definition of the whole command line.
    pub(crate) fn run(&self, mut command: clap::Command, output: &Output) -> anyhow::Result<bool> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "flm", &mut script);
        output.line(&String::from_utf8_lossy(&script))?;
        Ok(true)
    }
}
