//! `flm eval score`, and the tables of scores.

use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::output::{Output, table};
use flm_eval::Identity;
use flm_eval::Questions;
use flm_eval::read_rows;
use flm_eval::{Comparison, Ledger, Ratios, Totals};
use flm_eval::{Expected, Reader, Scores, score, score_pattern};

/// Turn saved judgments into scores: by category, by dimension, overall, with intervals.
///
/// `released` is the table of AlignBench's own scripts with all their quirks (a judgment that they cannot
/// read counts −1). `strict` reads the verdict: what the judge says after thinking, in the dict or JSON that
/// stands by itself, or after 综合得分, or as [[n]]; two different scores are ambiguous and count for nothing,
/// as do scores that are not between 1 and 10. The ledger says how many those are. The rows need question_id,
/// category and judgment; files of the released
/// scripts will do.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flm eval score judgments.jsonl --questions AlignBench --json")]
pub(crate) struct Score {
    /// Judgments, one JSON object a line.
    judgments: PathBuf,
    /// The questions, to count missing rows against: a JSONL file or a checkout of AlignBench.
    #[arg(long, value_name = "PATH")]
    questions: Option<PathBuf>,
    /// Judgments of another model to compare with, over the questions that both have.
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Read the score by this regular expression: the first group of its last match.
    #[arg(long, value_name = "REGEX")]
    pattern: Option<String>,
    /// Combine rows that differ in judge, prompt, data or model.
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
    /// Over the questions that both have.
    strict: Totals,
    /// Strict totals divided by the baseline's, over the questions that both have.
    ratio: Ratios,
    ledger: Ledger,
    comparison: Comparison,
}

impl Score {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        let questions = self.questions.as_deref().map(Questions::open).transpose()?;
        let expected = match &questions {
            Some(questions) => Some(questions.expected()),
            None => Expected::beside(&self.judgments)?,
        };
        let pattern = self.pattern.as_deref().map(score_pattern).transpose()?;
        let reader = Reader { expected: expected.as_ref(), pattern: pattern.as_ref() };
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
        let scores = score(&rows, reader)?;
        let baseline = match &self.baseline {
            None => None,
            Some(path) => {
                let other_rows = read_rows(path)?;
                let other = Identity::of(&other_rows, self.allow_different)?;
                if !self.allow_different {
                    identity.check_comparable(&other)?;
                }
                let theirs = score(&other_rows, reader)?;
                let comparison = Comparison::new(&rows, &scores, &theirs);
                ensure!(
                    comparison.questions > 0,
                    "{} and {} have no scored question in common: nothing to compare",
                    self.judgments.display(),
                    path.display()
                );
                let (alone, other_alone) = (comparison.only_here, comparison.only_baseline);
                if alone + other_alone > 0 {
                    output.warn(&format!(
                        "compared over the {} questions that both have a score of; {alone} are only in {}, \
                         {other_alone} only in {}",
                        comparison.questions,
                        self.judgments.display(),
                        path.display()
                    ));
                }
                Some(Baseline {
                    identity: other,
                    strict: comparison.baseline.clone(),
                    ratio: comparison.ratio.clone(),
                    ledger: theirs.ledger,
                    comparison,
                })
            }
        };
        let readable = scores.ledger.strict.scored > 0;
        if let Some(warning) = unreadable(&scores.ledger) {
            output.warn(&warning);
        }
        output.result(&Report { scores, identity, baseline }, |report| {
            let baseline = report.baseline.as_ref();
            let mut text = tables(&report.scores, &report.identity, baseline.map(|b| &b.ratio));
            if let Some(baseline) = baseline {
                text += &format!("\nagainst the baseline: {}", baseline.comparison.verdict());
                text += &format!("\nbaseline: {}", ledger(&baseline.ledger));
            }
            text
        })?;
        Ok(readable)
    }
}

/// A warning where more than one row in a hundred has no verdict.
pub(crate) fn unreadable(ledger: &Ledger) -> Option<String> {
    let without = ledger.strict.missing + ledger.strict.ambiguous;
    (100 * without > ledger.rows).then(|| {
        format!(
            "{without} of {} judgments have no verdict that can be read: judge them again \
             (flm eval judge --again unreadable), or give the form of the score with --pattern",
            ledger.rows
        )
    })
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
    let judge = match &identity.judge_reported {
        Some(reported) => format!("{} ({reported})", identity.judge_label()),
        None => identity.judge_label().to_owned(),
    };
    let mut text = format!(
        "judge: {judge}\n\n{}\n{}\n{}",
        table(&header, rows, true),
        table(&["dimension", "mean", "rows"], dimensions, true),
        ledger(l),
    );
    if !intervals.too_few.is_empty() {
        let few = intervals.too_few.iter().map(|(name, rows)| format!("{name} {rows}"));
        text += &format!(
            "\nno interval with fewer than {} rows a category, nor of a category alone with fewer than {}: {}",
            intervals.needed,
            intervals.needed_alone,
            few.collect::<Vec<_>>().join(", ")
        );
    }
    for (what, ids) in [("duplicate", &l.duplicates), ("missing", &l.missing), ("unknown", &l.unknown)] {
        if !ids.is_empty() {
            let first: Vec<_> = ids.iter().take(10).map(ToString::to_string).collect();
            let more = if ids.len() > first.len() { ", …" } else { "" };
            text += &format!("\n{} {what}: {}{more}", ids.len(), first.join(", "));
        }
    }
    for (what, names) in
        [("no row in", l.missing_categories.join(", ")), ("not AlignBench's:", l.other_categories.join(", "))]
    {
        if !names.is_empty() {
            text += &format!("\n{what} {names}");
        }
    }
    text
}

/// What scores are made of, in a line.
fn ledger(l: &Ledger) -> String {
    let mut text = format!(
        "{} rows: {} parsed, {} by fallback, {} failed, {} out of range (released); \
         {} scored, {} ambiguous, {} out of range, {} without a score (strict)",
        l.rows,
        l.parsed,
        l.fallback,
        l.failed,
        l.out_of_range,
        l.strict.scored,
        l.strict.ambiguous,
        l.strict.out_of_range,
        l.strict.missing
    );
    for (count, what) in [
        (l.refused, "refused by the judge"),
        (l.replaced, "replaced by a later judgment"),
        (l.without_reference, "judged without a reference"),
    ] {
        if count > 0 {
            text += &format!("; {count} {what}");
        }
    }
    text
}
