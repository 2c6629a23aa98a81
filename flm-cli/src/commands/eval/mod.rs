//! `flm eval …`

mod alignbench;
mod judge;
mod perplexity;
mod report;
mod score;

use clap::Subcommand;

use crate::eval::local_model::{Decoding, Progress};
use crate::output::{Output, size};

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

/// A bar for what a run of questions tells.
fn bar<'a>(output: &'a Output, what: &str) -> impl FnMut(Progress) + 'a {
    let bar = output.steps(what, 0);
    move |progress| match progress {
        Progress::Begun { done, total } => {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        }
        Progress::One => bar.inc(1),
        Progress::Cost { questions, cost, decoding } => output.note(&describe(&cost, questions, &decoding)),
    }
}

fn describe(cost: &crate::eval::local_model::Cost, questions: usize, decoding: &Decoding) -> String {
    let hours = cost.seconds / 3600.0;
    let total = if hours >= 1.0 { format!("{hours:.1} h") } else { format!("{:.0} s", cost.seconds) };
    format!(
        "{questions} questions in batches of {}: {:.2} s a pass over the weights, at most {} passes, {total}; \
         keys and values take up to {}",
        decoding.batch,
        cost.seconds_per_pass,
        cost.passes,
        size(cost.kv_cache_bytes)
    )
}
