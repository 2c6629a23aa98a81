//! A run of a judge over answers: what is done stays done, failures are kept apart.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::journal::Journal;
use crate::judge::{Case, Judge};
use crate::model::Progress;
use crate::provenance::{sha256, version};
use crate::rubric::Rubric;
use crate::score::parse::parse;
use crate::score::rows::{QuestionId, lines, parse_line};

/// An answer as its file has it.
#[derive(Debug, Clone)]
pub struct Answer {
    case: Case,
    fields: Map<String, Value>,
    sha256: String,
}

/// What a run of a judge did.
#[derive(Debug, Clone, Serialize)]
pub struct Judged {
    /// The file of judgments.
    pub out: PathBuf,
    /// Name of the judge.
    pub judge: String,
    /// SHA-256 of the judge's prompt, in hexadecimal; absent where the judge has none.
    pub prompt_sha256: Option<String>,
    /// Judged by this run.
    pub judged: usize,
    /// Judged by an earlier run.
    pub already: usize,
    /// Not judged: run the command again.
    pub failed: Vec<Failure>,
}

/// An answer that could not be judged.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    pub question_id: QuestionId,
    pub why: String,
}

/// Reads answers: flm's own or those of the released scripts, one JSON object a line.
pub fn read_answers(path: &Path, rubric: &Rubric) -> anyhow::Result<Vec<Answer>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (mut answers, mut ids) = (Vec::<Answer>::new(), HashSet::new());
    for (index, line) in lines(&bytes) {
        let answer = parse_line(line).and_then(|fields| {
            let answer = Answer::new(fields, rubric)?;
            let id = &answer.case.question_id;
            ensure!(ids.insert(id.clone()), "question {id} is answered twice");
            for name in ["data_sha256", "model_digest", "settings_digest"] {
                let same =
                    answers.first().is_none_or(|first| first.fields.get(name) == answer.fields.get(name));
                ensure!(same, "{name} differs from the first row's: judge the runs apart");
            }
            Ok(answer)
        });
        answers.push(answer.with_context(|| format!("{}, line {}", path.display(), index + 1))?);
    }
    ensure!(!answers.is_empty(), "{} holds no answers", path.display());
    Ok(answers)
}

impl Answer {
    fn new(fields: Map<String, Value>, rubric: &Rubric) -> anyhow::Result<Self> {
        let text = |name: &str| fields.get(name).and_then(Value::as_str).map(ToOwned::to_owned);
        let required = |name: &str| text(name).with_context(|| format!("there is no text {name:?}"));
        let id = fields.get("question_id").context("there is no question_id")?;
        let (category, subcategory) = (required("category")?, text("subcategory").unwrap_or_default());
        let kind = rubric.kind(&category, &subcategory).to_owned();
        let answer = required("answer")?;
        Ok(Self {
            sha256: sha256(&answer),
            case: Case {
                question_id: serde_json::from_value(id.clone()).ok().context("question_id is no id")?,
                dimensions: rubric.dimensions(&kind)?,
                kind,
                category,
                subcategory,
                question: required("question")?,
                reference: text("reference").unwrap_or_default(),
                answer,
            },
            fields,
        })
    }
}

/// Judges the answers that `out` has no judgment of yet, and appends each judgment as it comes.
pub fn run(
    answers: &[Answer],
    judge: &dyn Judge,
    out: &Path,
    progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<Judged> {
    let (mut journal, rows) = Journal::open(out)?;
    let prompt_sha256 = judge.prompt().map(|prompt| prompt.sha256().to_owned());
    let of = |fields: &Map<String, Value>, name: &str| {
        fields.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let wanted: HashMap<String, &Answer> =
        answers.iter().map(|answer| (answer.case.question_id.to_string(), answer)).collect();
    let mut done = HashSet::new();
    for (index, row) in rows.iter().enumerate() {
        let id =
            row.get("question_id").map(|id| id.as_str().map_or_else(|| id.to_string(), ToOwned::to_owned));
        let differs = match id.as_ref().and_then(|id| wanted.get(id)) {
            None => Some("a question that is not among the answers"),
            Some(answer) if of(row, "answer_sha256") != answer.sha256 => Some("another answer"),
            Some(_) if of(row, "judge") != judge.id() => Some("another judge"),
            Some(_) if of(row, "prompt_sha256") != prompt_sha256.clone().unwrap_or_default() => {
                Some("another prompt")
            }
            Some(answer) if row.get("data_sha256") != answer.fields.get("data_sha256") => {
                Some("other questions")
            }
            Some(_) => None,
        };
        if let Some(what) = differs {
            bail!("{}, line {}: a judgment of {what}; give another --out", out.display(), index + 1);
        }
        done.extend(id);
    }
    let todo: Vec<&Answer> =
        answers.iter().filter(|a| !done.contains(&a.case.question_id.to_string())).collect();
    let cases: Vec<Case> = todo.iter().map(|answer| answer.case.clone()).collect();
    progress(Progress::Begun { done: done.len(), total: answers.len() });
    let (mut judged, mut failed) = (0, Vec::new());
    let common = Map::from_iter([
        ("judge".to_owned(), judge.id().into()),
        ("prompt_sha256".to_owned(), prompt_sha256.clone().into()),
        ("flm".to_owned(), version().into()),
    ]);
    let details = judge.details();
    judge.judge(&cases, &mut |index, verdict| {
        progress(Progress::One);
        let (answer, verdict) = match verdict {
            Ok(verdict) => (todo[index], verdict),
            Err(why) => {
                failed.push(Failure { question_id: todo[index].case.question_id.clone(), why });
                return Ok(());
            }
        };
        let parsed = parse(&verdict.judgment);
        let names: Vec<&str> = answer.case.dimensions.iter().map(|d| d.name.as_str()).collect();
        let mut row = answer.fields.clone();
        row.insert("answer_sha256".into(), answer.sha256.clone().into());
        row.insert("kind".into(), answer.case.kind.clone().into());
        row.insert("dimensions".into(), names.into());
        row.insert("judgment".into(), verdict.judgment.into());
        row.insert("rating".into(), parsed.rating.into());
        row.insert("score".into(), serde_json::to_value(parsed.score)?);
        row.extend(common.clone());
        row.extend(details.clone());
        if let Some(model) = verdict.reported_model {
            row.insert("judge_reported".into(), model.into());
        }
        journal.append(&row)?;
        judged += 1;
        Ok(())
    })?;
    journal.sync()?;
    failed.sort_by(|a, b| a.question_id.cmp(&b.question_id));
    Ok(Judged { out: out.to_owned(), judge: judge.id(), prompt_sha256, judged, already: done.len(), failed })
}
