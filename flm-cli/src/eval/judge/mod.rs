//! Judges: an OpenAI-compatible endpoint, a local checkpoint, a rule.

mod backoff;
mod endpoint;
mod local;
mod prompt;
mod rule;
mod run;

pub(crate) use endpoint::{Endpoint, EndpointOptions};
pub(crate) use local::LocalJudge;
pub(crate) use prompt::Prompt;
pub(crate) use rule::RuleJudge;
pub(crate) use run::{Judged, read_answers, run};

use super::{rubric::Dimension, score::QuestionId};

/// An answer to be judged.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) question_id: QuestionId,
    pub(crate) category: String,
    pub(crate) subcategory: String,
    /// The kind of answer that the question asks for.
    pub(crate) kind: String,
    pub(crate) dimensions: Vec<Dimension>,
    pub(crate) question: String,
    pub(crate) reference: String,
    pub(crate) answer: String,
}

/// What a judge said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Its text, as it came.
    pub(crate) judgment: String,
    /// The model that an endpoint says it ran.
    pub(crate) reported_model: Option<String>,
}

/// Takes verdicts as they come; the number is the case's index.
pub(crate) type Sink<'a> = dyn FnMut(usize, Result<Verdict, String>) -> anyhow::Result<()> + 'a;

/// Someone who judges answers.
pub(crate) trait Judge {
    /// What its scores are labelled with, everywhere.
    fn id(&self) -> String;

    /// The prompt that it reads, where it reads one.
    fn prompt(&self) -> Option<&Prompt>;

    /// Judges every case once, in any order. A case that cannot be judged is handed over as an error;
    /// an error of the whole stops the run.
    fn judge(&self, cases: &[Case], sink: &mut Sink<'_>) -> anyhow::Result<()>;

    /// More of what it is, for every row.
    fn details(&self) -> serde_json::Map<String, serde_json::Value> {
        serde_json::Map::new()
    }
}
