//! Evaluation on AlignBench-style questions: answers, judgments, scores, reports.
//!
//! ```text
//! questions ── answer ──> answers.jsonl ── judge ──> judgments.jsonl ── score ──> tables, intervals
//!                                                                    └─ report ─> one HTML page
//! ```
//! Both files are append-only journals (`journal`): a run that was killed goes on where it stopped.
//! Every row carries what it was made with (`identity`), and rows that do not belong together are
//! not compared. `perplexity` stands apart: it measures a model on `texts`.

pub mod answer;
pub mod benchmark;
pub mod journal;
pub mod judge;
pub mod model;
pub mod perplexity;
pub mod provenance;
pub mod published;
pub mod report;
pub mod rubric;
pub mod score;
