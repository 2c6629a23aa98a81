//! Evaluation on AlignBench-style questions: answers, judgments, scores, reports.
//!
//! ```text
//! questions ── answer ──> answers.jsonl ── judge ──> judgments.jsonl ── score ──> tables, intervals
//!                                                                    └─ report ─> one HTML page
//! ```
//! Both files are append-only journals (`journal`): a run that was killed goes on where it stopped.
//! Every row carries what it was made with (`identity`), and rows that do not belong together are
//! not compared. `perplexity` stands apart: it measures a model on `texts`.

pub(crate) mod answer;
pub(crate) mod identity;
pub(crate) mod journal;
pub(crate) mod judge;
pub(crate) mod local_model;
pub(crate) mod perplexity;
pub(crate) mod questions;
pub(crate) mod report;
pub(crate) mod rubric;
pub(crate) mod score;
pub(crate) mod texts;
