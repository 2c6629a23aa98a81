//! Evaluation on AlignBench-style questions: answers, judgments, scores, reports.
//!
//! ```text
//! questions ── answer ──> answers.jsonl ── judge ──> judgments.jsonl ── score ──> tables, intervals
//!                                                                    └─ report ─> one HTML page
//! ```
//! Both files are append-only journals (`journal`): a run that was killed goes on where it stopped.
//! Every row carries what it was made with (`identity`), and rows that do not belong together are
//! not compared. `perplexity` stands apart: it measures a model on `texts`.

mod answer;
mod benchmark;
mod journal;
mod judge;
mod model;
mod perplexity;
mod provenance;
pub mod published;
mod report;
mod rubric;
mod score;

pub use crate::answer::{AnswerOptions, Answered, answer};
pub use crate::benchmark::Questions;
pub use crate::journal::write_whole;
pub use crate::judge::Judge;
pub use crate::judge::endpoint::{Endpoint, EndpointOptions, shown_url};
pub use crate::judge::local::LocalJudge;
pub use crate::judge::prompt::Prompt;
pub use crate::judge::rule::RuleJudge;
pub use crate::judge::run::{Again, JudgeOptions, Judged, read_answers, run};
pub use crate::model::{Cost, Decoding, LocalModel, Progress};
pub use crate::perplexity::{Cut, Measures, Pieces, Sums, Tokenised};
pub use crate::provenance::Identity;
pub use crate::report::{Report, Series, find, gloss};
pub use crate::rubric::Rubric;
pub use crate::score::aggregate::{Ratios, Totals};
pub use crate::score::compare::Comparison;
pub use crate::score::ledger::Ledger;
pub use crate::score::parse::{OVERALL, Score};
pub use crate::score::rows::{JudgedRow, read_rows};
pub use crate::score::verdict::Verdict;
pub use crate::score::{Expected, Reader, Scores, score, score_pattern};
