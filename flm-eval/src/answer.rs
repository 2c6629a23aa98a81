//! Answers of a checkpoint to a benchmark's questions.

use std::{collections::HashSet, path::Path};

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::benchmark::{Question, Questions};
use crate::journal::Journal;
use crate::model::{Completion, Cost, Decoding, Job, LocalModel, Progress};
use crate::provenance::{sha256, version};
use crate::score::rows::QuestionId;

/// Times that an empty answer is asked for again, as the released scripts do.
const ROUNDS: u64 = 3;

/// How to answer.
#[derive(Debug, Clone, Copy)]
pub struct AnswerOptions {
    /// How each answer is generated.
    pub decoding: Decoding,
    /// Seed of the sampling.
    pub seed: u64,
    /// Only say what it would take.
    pub dry_run: bool,
}

/// What a run did.
#[derive(Debug, Clone, Serialize)]
pub struct Answered {
    /// Name of the model, as in the rows that are written.
    pub model: String,
    /// Digest of the checkpoint's files.
    pub model_digest: String,
    /// SHA-256 of the question file, in hexadecimal.
    pub data_sha256: String,
    /// Digest of everything else that decides an answer.
    pub settings_digest: String,
    /// Answered by this run.
    pub answered: usize,
    /// Answered by an earlier run.
    pub already: usize,
    /// Empty after every round.
    pub empty: usize,
    /// Cut by `max_new_tokens`, in this run and earlier ones.
    pub cut: usize,
    /// Questions that do not fit in the model's context.
    pub too_long: usize,
    /// Over the weights.
    pub passes: usize,
    /// What it was said to take; streamed models only.
    pub cost: Option<Cost>,
}

/// Answers the questions that `out` has no answer to yet, and appends each answer when it ends.
pub fn answer(
    questions: &Questions,
    model: &LocalModel,
    options: &AnswerOptions,
    out: &Path,
    progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<Answered> {
    // a dry run makes nothing
    let (mut journal, rows) = if options.dry_run {
        (None, Journal::rows(out)?)
    } else {
        let (journal, rows) = Journal::open(out)?;
        (Some(journal), rows)
    };
    let maker = RowMaker::new(questions, model, options);
    let mut done = HashSet::new();
    for (index, row) in rows.iter().enumerate() {
        for (name, expected) in &maker.keys {
            if row.get(*name).and_then(Value::as_str) != Some(expected) {
                bail!(
                    "{}, line {}: an answer with another {name}; give another --out",
                    out.display(),
                    index + 1
                );
            }
        }
        if let Some(name) = row.get("model").and_then(Value::as_str).filter(|name| *name != model.name) {
            bail!(
                "{}, line {}: an answer under the name {name:?}, not {:?}: give --name {name:?}, or another --out",
                out.display(),
                index + 1,
                model.name
            );
        }
        let id = row.get("question_id").map(|id| serde_json::from_value::<QuestionId>(id.clone()));
        done.extend(id.transpose().with_context(|| format!("{}, line {}", out.display(), index + 1))?);
    }
    // the rows are ours
    journal.as_mut().map_or(Ok(()), Journal::repair)?;
    let mut todo: Vec<&Question> = questions.list.iter().filter(|q| !done.contains(&q.question_id)).collect();
    let mut answered = Answered {
        model: model.name.clone(),
        model_digest: model.digest.clone(),
        data_sha256: questions.sha256().to_owned(),
        settings_digest: maker.settings_digest.clone(),
        answered: 0,
        already: questions.list.len() - todo.len(),
        empty: 0,
        cut: rows.iter().filter(|row| row.get("finish").and_then(Value::as_str) == Some("length")).count(),
        too_long: 0,
        passes: 0,
        cost: None,
    };
    progress(Progress::Begun { done: answered.already, total: questions.list.len() });
    for round in 0..=ROUNDS {
        if todo.is_empty() || options.dry_run && round > 0 {
            break;
        }
        let job = |question: &&Question| -> anyhow::Result<Job> {
            Ok(Job {
                prompt: model.prompt(&question.question)?,
                temperature: questions.temperature(&question.category),
                seed: seed(options.seed, question, round),
            })
        };
        let jobs: Vec<Job> = todo.iter().map(job).collect::<Result<_, _>>()?;
        if (model.streamed || options.dry_run) && round == 0 {
            let cost = model.cost(&jobs, &options.decoding)?;
            progress(Progress::Cost { questions: jobs.len(), cost, decoding: options.decoding });
            answered.cost = Some(cost);
            if options.dry_run {
                return Ok(answered);
            }
        }
        let mut again = Vec::new();
        answered.passes += model.complete(&jobs, &options.decoding, &mut |index, completion| {
            let retry = completion.text.is_empty() && completion.finish != "prompt-too-long";
            if retry && round < ROUNDS {
                again.push(index);
                return Ok(());
            }
            answered.empty += usize::from(retry);
            answered.cut += usize::from(completion.finish == "length");
            answered.too_long += usize::from(completion.finish == "prompt-too-long");
            if let Some(journal) = &mut journal {
                journal.append(&maker.row(questions, todo[index], completion, round))?;
            }
            answered.answered += 1;
            progress(Progress::One);
            Ok(())
        })?;
        again.sort_unstable();
        todo = again.into_iter().map(|index| todo[index]).collect();
    }
    journal.map_or(Ok(()), |journal| journal.sync())?;
    Ok(answered)
}

/// A question's own seed: its answer does not depend on which others are asked, or in what order.
fn seed(base: u64, question: &Question, round: u64) -> u64 {
    let digest = sha256(format!("{base} {round} {}", question.question_id));
    u64::from_str_radix(&digest[..16], 16).unwrap_or(base)
}

/// What all rows share.
struct RowMaker {
    keys: Vec<(&'static str, String)>,
    common: Map<String, Value>,
    settings_digest: String,
    model: String,
}

impl RowMaker {
    fn new(questions: &Questions, model: &LocalModel, options: &AnswerOptions) -> Self {
        // of all categories, asked or not: a raised --limit asks more, and nothing else changes
        let temperatures = questions.temperatures();
        let mut settings = json!({
            "max_new_tokens": options.decoding.max_new_tokens,
            "temperatures": temperatures,
            "top_p": options.decoding.top_p,
            "repetition_penalty": options.decoding.repetition_penalty,
            "seed": options.seed,
            "empty_rounds": ROUNDS,
            "chat_template_sha256": model.template().map(sha256),
            "dtype": model.dtype(),
        });
        if let Some(raw_text) = model.raw_text() {
            settings["raw_text"] = raw_text;
        }
        let settings_digest = sha256(settings.to_string());
        let keys = vec![
            ("model_digest", model.digest.clone()),
            ("settings_digest", settings_digest.clone()),
            ("data_sha256", questions.sha256().to_owned()),
        ];
        let mut common = Map::from_iter([
            ("model".to_owned(), model.name.clone().into()),
            ("settings".to_owned(), settings),
            ("answered_by".to_owned(), version().into()),
        ]);
        common.extend(keys.iter().map(|(name, value)| ((*name).to_owned(), value.clone().into())));
        Self { keys, common, settings_digest, model: model.name.clone() }
    }

    fn row(&self, questions: &Questions, q: &Question, c: Completion, round: u64) -> Map<String, Value> {
        let row = json!({
            "question_id": q.question_id,
            "category": q.category,
            "subcategory": q.subcategory,
            "question": q.question,
            "reference": q.reference,
            "answer_id": format!("{}_{}", q.question_id, self.model),
            "answer": c.text,
            "tokens": c.tokens,
            "finish": c.finish,
            "temperature": questions.temperature(&q.category),
            "round": round,
        });
        let mut row = if let Value::Object(row) = row { row } else { Map::new() };
        row.extend(self.common.clone());
        row
    }
}
