//! `flm eval …`

mod alignbench;
mod judge;
mod perplexity;
mod report;
mod score;

use clap::Subcommand;

use crate::output::Output;

/// Evaluate a model: answer questions, have the answers judged, score them, report; or measure perplexity.
///
/// `alignbench` makes answers.jsonl, `judge` makes judgments.jsonl of it, `score` a table and `report` a
/// page. With a judge, `alignbench` does all but the page.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example, with no judge but a rule:\n  \
    flm eval alignbench ./Tele-FLM --questions questions.jsonl --out results --judge rule\n  \
    flm eval report results")]
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
