//! `flm eval …`

pub(crate) mod alignbench;
pub(crate) mod judge;
pub(crate) mod perplexity;
pub(crate) mod report;
pub(crate) mod score;
pub(crate) mod texts;

use clap::Subcommand;

use crate::output::{Output, size};
use flm_eval::{Decoding, Progress};

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
    AlignBench(Box<crate::commands::eval::alignbench::AlignBench>),
    Judge(Box<crate::commands::eval::judge::JudgeAnswers>),
    Perplexity(crate::commands::eval::perplexity::Perplexity),
    Score(crate::commands::eval::score::Score),
    Report(crate::commands::eval::report::MakeReport),
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
pub(crate) fn bar<'a>(output: &'a Output, what: &str) -> impl FnMut(Progress) + 'a {
    let bar = output.steps(what, 0);
    move |progress| match progress {
        Progress::Begun { done, total } => {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        }
        Progress::One => bar.inc(1),
        Progress::Cost { questions, cost, decoding } => output.log(&describe(&cost, questions, &decoding)),
    }
}

fn describe(cost: &flm_eval::Cost, questions: usize, decoding: &Decoding) -> String {
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
