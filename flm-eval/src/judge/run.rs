//! A run of a judge over answers: what is done stays done, failures are kept apart.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use flm_checkpoint::read_at_most;
use regex::Regex;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::journal::Journal;
use crate::judge::{Case, Judge};
use crate::model::Progress;
use crate::provenance::{sha256, version};
use crate::rubric::Rubric;
use crate::score::parse::parse;
use crate::score::rows::{MAX_ROWS, QuestionId, lines, parse_line};
use crate::score::score_pattern;
use crate::score::verdict::{Verdict, conclude};

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
    /// Answers that the judge, or a filter before it, refuses to judge, in this run and earlier ones.
    pub refused: usize,
    /// Judgments without a verdict that can be read, in this run and earlier ones.
    pub unreadable: usize,
    /// Answers judged by this run without a reference.
    pub without_reference: usize,
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
    let bytes = read_at_most(path, MAX_ROWS)?;
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
                question_id: serde_json::from_value(id.clone())?,
                dimensions: rubric.dimensions(&kind)?,
                kind,
                category,
                subcategory,
                question: required("question")?,
                reference: text("reference").unwrap_or_default(),
                answer: without_thinking(&answer).to_owned(),
            },
            fields,
        })
    }
}

/// An answer without the thinking before it, as models that reason write it; what never ends is all there is.
fn without_thinking(answer: &str) -> &str {
    match answer.split_once("</think>") {
        // a template may have opened the block
        Some((thinking, said))
            if thinking.trim_start().starts_with("<think>") || !thinking.contains("<think>") =>
        {
            said.trim_start()
        }
        _ => answer,
    }
}

/// What is judged again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Again {
    /// Answers whose judgment has no verdict that can be read.
    pub unreadable: bool,
    /// Answers that the judge refused.
    pub refused: bool,
}

/// How answers are judged.
#[derive(Debug, Clone, Default)]
pub struct JudgeOptions {
    /// What has a row and is judged all the same; the new row replaces the old one in every score.
    pub again: Again,
    /// A pattern whose first group is the score, kept in every row.
    pub pattern: Option<String>,
}

/// Judges the answers that `out` has no judgment of yet, and appends each judgment as it comes.
///
/// # Errors
/// A file with judgments of other answers, or by another judge; a judge that cannot judge at all.
pub fn run(
    answers: &[Answer],
    judge: &dyn Judge,
    options: &JudgeOptions,
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
    let pattern = options.pattern.as_deref().map(score_pattern).transpose()?;
    let details = judge.details();
    let mut reported: Option<String> = None;
    // the state of each question is that of its last row
    let mut done: HashMap<String, State> = HashMap::new();
    for (index, row) in rows.iter().enumerate() {
        let id = row.get("question_id").and_then(|id| serde_json::from_value::<QuestionId>(id.clone()).ok());
        let id = id.map(|id| id.to_string());
        let url = of(row, "judge_url");
        let differs = match id.as_ref().and_then(|id| wanted.get(id)) {
            None => Some("a question that is not among the answers"),
            Some(answer) if of(row, "answer_sha256") != answer.sha256 => Some("another answer"),
            Some(_) if of(row, "judge") != judge.id() => Some("another judge"),
            Some(_) if of(row, "prompt_sha256") != prompt_sha256.clone().unwrap_or_default() => {
                Some("another prompt")
            }
            Some(_)
                if !url.is_empty() && details.get("judge_url").is_some_and(|now| *now != url.as_str()) =>
            {
                Some("a judge at another address")
            }
            // rows of earlier versions do not say how they were asked for
            Some(_)
                if row.contains_key("judge_temperature")
                    && ["judge_temperature", "judge_fields"]
                        .iter()
                        .any(|key| row.get(*key) != details.get(*key)) =>
            {
                Some("a judge that was asked with another temperature or other fields")
            }
            Some(_) if of(row, "score_pattern") != options.pattern.clone().unwrap_or_default() => {
                Some("a judge whose score was read by another pattern")
            }
            Some(answer) if row.get("data_sha256") != answer.fields.get("data_sha256") => {
                Some("other questions")
            }
            Some(_) => None,
        };
        if let Some(what) = differs {
            bail!("{}, line {}: a judgment of {what}; give another --out", out.display(), index + 1);
        }
        reported = row.get("judge_reported").and_then(Value::as_str).map(ToOwned::to_owned).or(reported);
        let state = if row.get("refused").is_some_and(Value::is_string) {
            State::Refused
        } else {
            State::of(&of(row, "judgment"), pattern.as_ref())
        };
        done.extend(id.map(|id| (id, state)));
    }
    // the rows are ours
    journal.repair()?;
    let is_again = |state: State| match state {
        State::Refused => options.again.refused,
        State::Unreadable => options.again.unreadable,
        State::Read => false,
    };
    let before = done.clone();
    done.retain(|_, state| !is_again(*state));
    let todo: Vec<&Answer> =
        answers.iter().filter(|a| !done.contains_key(&a.case.question_id.to_string())).collect();
    let count = |state| done.values().filter(|kept| **kept == state).count();
    let (mut refused, mut unreadable) = (count(State::Refused), count(State::Unreadable));
    let without_reference = todo.iter().filter(|answer| answer.case.reference.trim().is_empty()).count();
    let cases: Vec<Case> = todo.iter().map(|answer| answer.case.clone()).collect();
    progress(Progress::Begun { done: done.len(), total: answers.len() });
    let (mut judged, mut failed) = (0, Vec::new());
    let common = Map::from_iter([
        ("judge".to_owned(), judge.id().into()),
        ("prompt_sha256".to_owned(), prompt_sha256.clone().into()),
        ("flm".to_owned(), version().into()),
    ]);
    judge.judge(&cases, !before.is_empty(), &mut |index, verdict| {
        progress(Progress::One);
        let (answer, verdict) = match verdict {
            Ok(verdict) => (todo[index], verdict),
            Err(why) => {
                failed.push(Failure { question_id: todo[index].case.question_id.clone(), why });
                return Ok(());
            }
        };
        if let (Some(before), Some(now)) = (&reported, &verdict.reported_model) {
            ensure!(
                before == now,
                "{}: the judge says that it is {now}, its earlier judgments are by {before}; give another --out",
                out.display()
            );
        }
        reported = verdict.reported_model.clone().or(reported.take());
        let parsed = parse(&verdict.judgment);
        let names: Vec<&str> = answer.case.dimensions.iter().map(|d| d.name.as_str()).collect();
        let mut row = answer.fields.clone();
        row.insert("answer_sha256".into(), answer.sha256.clone().into());
        row.insert("kind".into(), answer.case.kind.clone().into());
        row.insert("dimensions".into(), names.into());
        let judgment = verdict.judgment;
        row.insert("judgment".into(), judgment.clone().into());
        row.insert("rating".into(), parsed.rating.into());
        row.insert("score".into(), serde_json::to_value(parsed.score)?);
        row.extend(common.clone());
        row.extend(details.clone());
        let optional = [
            ("judge_reported", verdict.reported_model.map(Value::from)),
            ("judge_finish", verdict.finish_reason.map(Value::from)),
            ("usage", verdict.usage),
            ("score_pattern", options.pattern.clone().map(Value::from)),
            ("judged_again", before.contains_key(&answer.case.question_id.to_string()).then_some(true.into())),
        ];
        row.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        if let Some(why) = verdict.refused {
            refused += 1;
            row.insert("refused".into(), why.into());
        } else if State::of(&judgment, pattern.as_ref()) == State::Unreadable {
            unreadable += 1;
        }
        journal.append(&row)?;
        judged += 1;
        Ok(())
    })?;
    journal.sync()?;
    failed.sort_by(|a, b| a.question_id.cmp(&b.question_id));
    Ok(Judged {
        out: out.to_owned(),
        judge: judge.id(),
        prompt_sha256,
        judged,
        already: done.len(),
        refused,
        unreadable,
        without_reference,
        failed,
    })
}

/// What became of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Read,
    Unreadable,
    Refused,
}

impl State {
    fn of(judgment: &str, pattern: Option<&Regex>) -> Self {
        match conclude(judgment, pattern).verdict {
            Verdict::Scored(_) => Self::Read,
            _ => Self::Unreadable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::without_thinking;

    #[test]
    fn thinking_is_no_part_of_an_answer() {
        for (answer, said) in [
            ("<think>\n9?\n</think>\n\n答案是 7", "答案是 7"),
            ("9?</think>7", "7"),
            ("<think></think>7", "7"),
            ("7", "7"),
            ("<think>9", "<think>9"),
            ("7: <think> opens a block that </think> ends", "7: <think> opens a block that </think> ends"),
        ] {
            assert_eq!(without_thinking(answer), said, "{answer}");
        }
    }
}
