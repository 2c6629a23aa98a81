//! `flm eval score`, and the tables of scores.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::output::{Output, table};
use flm_eval::Identity;
use flm_eval::Questions;
use flm_eval::read_rows;
use flm_eval::{Ratios, Totals};
use flm_eval::{Scores, score};

/// Turn saved judgments into scores: by category, by dimension, overall, with intervals.
///
/// `released` is the table of AlignBench's own scripts with all their quirks (a judgment that they cannot
/// read counts −1), `strict` leaves out what cannot be read or is not between 1 and 10, and the ledger
/// says how many those are. The rows need question_id, category and judgment; files of the released
/// scripts will do.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flm eval score judgments.jsonl --questions AlignBench --json")]
pub(crate) struct Score {
    /// Judgments, one JSON object a line.
    judgments: PathBuf,
    /// The questions, to count missing rows against: a JSONL file or a checkout of AlignBench.
    #[arg(long, value_name = "PATH")]
    questions: Option<PathBuf>,
    /// Judgments of another model to divide by.
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Take together what differs in its judge, prompt, data or model.
    #[arg(long)]
    allow_different: bool,
}

/// The result of `flm eval score`.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    scores: Scores,
    identity: Identity,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<Baseline>,
}

#[derive(Debug, Serialize)]
struct Baseline {
    identity: Identity,
    strict: Totals,
    /// Strict totals divided by the baseline's.
    ratio: Ratios,
}

impl Score {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        let questions = self.questions.as_deref().map(Questions::open).transpose()?;
        let ids = questions.as_ref().map(Questions::ids);
        let rows = read_rows(&self.judgments)?;
        let identity = Identity::of(&rows, self.allow_different)?;
        if let (Some(questions), Some(sha256)) = (&questions, &identity.data_sha256)
            && questions.sha256() != sha256
            && !self.allow_different
        {
            anyhow::bail!(
                "{} were judged on other questions: their SHA-256 is {sha256}, that of --questions {}; \
                 --allow-different goes on",
                self.judgments.display(),
                questions.sha256()
            );
        }
        let scores = score(&rows, ids.as_deref());
        let baseline = match &self.baseline {
            None => None,
            Some(path) => {
                let rows = read_rows(path)?;
                let other = Identity::of(&rows, self.allow_different)?;
                if !self.allow_different {
                    identity.check_comparable(&other)?;
                }
                let strict = score(&rows, ids.as_deref()).strict;
                Some(Baseline { identity: other, ratio: scores.strict.ratios(&strict), strict })
            }
        };
        output.result(&Report { scores, identity, baseline }, |report| {
            tables(&report.scores, &report.identity, report.baseline.as_ref().map(|b| &b.ratio))
        })?;
        Ok(true)
    }
}

/// Scores for people; `ratio` is to a baseline.
pub(crate) fn tables(s: &Scores, identity: &Identity, ratio: Option<&Ratios>) -> String {
    let number = |value: Option<f64>| value.map_or_else(|| "–".into(), |value| format!("{value:.2}"));
    let range = |value: Option<[f64; 2]>| value.map_or_else(String::new, |[a, b]| format!("{a:.2} – {b:.2}"));
    let interval = |value: Option<&Value>| range(value.and_then(|v| serde_json::from_value(v.clone()).ok()));
    let percent = |value: Option<f64>| value.map_or_else(String::new, |r| format!("{:.1} %", 100.0 * r));
    let mut rows: Vec<Vec<String>> = Vec::new();
    let intervals = &s.intervals.strict;
    for name in s.released.categories.keys() {
        let mut row = vec![name.clone(), number(s.released.category(name)), number(s.strict.category(name))];
        row.push(interval(intervals.categories.get(name)));
        row.extend(ratio.map(|r| percent(r.categories.get(name).and_then(Value::as_f64))));
        rows.push(row);
    }
    let means = [
        (
            "中文推理 reasoning",
            s.released.reasoning,
            s.strict.reasoning,
            intervals.reasoning,
            ratio.map(|r| r.reasoning),
        ),
        (
            "中文语言 language",
            s.released.language,
            s.strict.language,
            intervals.language,
            ratio.map(|r| r.language),
        ),
        ("总分 overall", s.released.overall, s.strict.overall, intervals.overall, ratio.map(|r| r.overall)),
    ];
    for (name, released, strict, interval, ratio) in means {
        let mut row = vec![name.into(), number(released), number(strict), range(interval)];
        row.extend(ratio.map(percent));
        rows.push(row);
    }
    let mut header = vec!["", "released", "strict", "95 % (strict)"];
    header.extend(ratio.map(|_| "of baseline"));
    let dimensions = s
        .strict
        .dimensions
        .iter()
        .map(|(name, (mean, count))| vec![name.clone(), format!("{mean:.2}"), count.to_string()]);
    let l = &s.ledger;
    let mut text = format!(
        "judge: {}\n\n{}\n{}\n{} rows: {} parsed, {} by fallback, {} failed, {} out of range",
        identity.judge_label(),
        table(&header, rows, true),
        table(&["dimension", "mean", "rows"], dimensions, true),
        l.rows,
        l.parsed,
        l.fallback,
        l.failed,
        l.out_of_range
    );
    for (what, ids) in [("duplicate", &l.duplicates), ("missing", &l.missing), ("unknown", &l.unknown)] {
        if !ids.is_empty() {
            let first: Vec<_> = ids.iter().take(10).map(ToString::to_string).collect();
            let more = if ids.len() > first.len() { ", …" } else { "" };
            text += &format!("\n{} {what}: {}{more}", ids.len(), first.join(", "));
        }
    }
    for (what, names) in [
        ("no row in", l.missing_categories.join(", ")),
        ("not AlignBench's, outside the overall score:", l.other_categories.join(", ")),
    ] {
        if !names.is_empty() {
            text += &format!("\n{what} {names}");
        }
    }
    text
}
