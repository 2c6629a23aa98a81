//! Judges: an OpenAI-compatible endpoint, a local checkpoint, a rule.

mod backoff;
pub(crate) mod endpoint;
pub(crate) mod local;
pub(crate) mod prompt;
mod reply;
pub(crate) mod rule;
pub(crate) mod run;

use crate::judge::prompt::Prompt;

use crate::rubric::Dimension;
use crate::score::rows::QuestionId;

/// An answer to be judged.
#[derive(Debug, Clone)]
pub struct Case {
    pub question_id: QuestionId,
    pub category: String,
    pub subcategory: String,
    /// The kind of answer that the question asks for.
    pub kind: String,
    pub dimensions: Vec<Dimension>,
    pub question: String,
    pub reference: String,
    pub answer: String,
}

/// What a judge said.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Its text, as it came.
    pub judgment: String,
    /// The model that an endpoint says it ran.
    pub reported_model: Option<String>,
    /// Why it ended, as an endpoint says.
    pub finish_reason: Option<String>,
    /// Tokens, as an endpoint counts them.
    pub usage: Option<serde_json::Value>,
    /// Why there is no judgment: the judge, or a filter before it, refuses this answer.
    pub refused: Option<String>,
}

impl Verdict {
    /// A judgment of which nothing else is known.
    pub(crate) fn plain(judgment: String) -> Self {
        Self { judgment, reported_model: None, finish_reason: None, usage: None, refused: None }
    }

    fn refused(why: String) -> Self {
        Self { refused: Some(why), ..Self::plain(String::new()) }
    }
}

/// Takes verdicts as they come; the number is the case's index.
pub(crate) type Sink<'a> = dyn FnMut(usize, Result<Verdict, String>) -> anyhow::Result<()> + 'a;

/// Someone who judges answers.
pub trait Judge {
    /// What its scores are labelled with, everywhere.
    fn id(&self) -> String;

    /// The prompt that it reads, where it reads one.
    fn prompt(&self) -> Option<&Prompt>;

    /// Judges every case once, in any order. A case that cannot be judged is handed over as an error;
    /// an error of the whole stops the run. `proved` says that an earlier run has judgments of this judge:
    /// what it cannot judge is then no sign that it judges nothing.
    fn judge(&self, cases: &[Case], proved: bool, sink: &mut Sink<'_>) -> anyhow::Result<()>;

    /// More of what it is, for every row.
    fn details(&self) -> serde_json::Map<String, serde_json::Value> {
        serde_json::Map::new()
    }
}
