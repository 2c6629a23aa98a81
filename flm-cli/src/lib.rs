//! The `flm` command: parse, call the libraries, print.

pub(crate) mod arguments;
pub(crate) mod chat;
pub(crate) mod commands;
pub(crate) mod demo;
pub(crate) mod exit;
pub(crate) mod output;
pub(crate) mod output_file;
pub(crate) mod recipe;
pub(crate) mod report;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, error::ErrorKind};

use crate::commands::Command;
use crate::output::Output;

/// Where the help of every command lists the options that all have.
const EVERYWHERE: &str = "Global options";

/// Tele-FLM (FLM-2) checkpoints: pull, open, convert, grow, verify, fine-tune, run, evaluate.
#[derive(Debug, Parser)]
#[command(
    name = "flm",
    version,
    after_help = "Start with `flm demo`: it makes a small checkpoint and takes it through every step.\n\
                  Every command has `--help` with an example. Results go to stdout, progress to stderr.\n\
                  Exit status: 0 success, 1 a check failed or the work could not be done, 2 wrong usage, \
                  130 interrupted."
)]
struct Cli {
    /// Print the result as JSON, with a stable schema.
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    json: bool,
    /// Suppress progress output.
    #[arg(short, long, global = true, help_heading = EVERYWHERE)]
    quiet: bool,
    /// Number of threads [default: all cores, or RAYON_NUM_THREADS].
    #[arg(long, global = true, value_name = "N", help_heading = EVERYWHERE, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    #[command(subcommand)]
    command: Command,
}

/// The definition of the command line, for completions and generated documentation.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command that the process's arguments name.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let usage = !matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            // a closed pipe is no reason to fail
            let _ = error.print();
            return ExitCode::from(if usage { 2 } else { 0 });
        }
    };
    let output = Output::new(cli.json, cli.quiet);
    settle_threads(cli.threads);
    match cli.command.run(command, &output) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            output.error(&error);
            let interrupted = matches!(error.downcast_ref(), Some(flm_hub::HubError::Interrupted));
            ExitCode::from(if interrupted { crate::exit::STATUS } else { 1 })
        }
    }
}

/// Tells rayon, gemm and candle how many threads to use; all of them read the environment.
///
/// candle's own pool, which does element-wise operations, waits for its threads by spinning: where other
/// work has one of the cores, every operation takes a time slice of the scheduler, and training is seven
/// times slower. Without that pool a quiet machine is not slower either: `CANDLE_NUM_THREADS=2
/// scripts/bench.py tokens DIR` compares, 902 tokens/s of a prompt with it and 980 without.
fn settle_threads(threads: Option<u16>) {
    let set = |name: &str, value: usize| {
        // SAFETY: `main` calls `run`, and until here that has parsed arguments: no other thread runs yet.
        #[allow(unsafe_code)]
        unsafe {
            std::env::set_var(name, value.to_string());
        }
    };
    if let Some(threads) = threads {
        set("RAYON_NUM_THREADS", threads.into());
    }
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        set("CANDLE_NUM_THREADS", 1);
    }
}
