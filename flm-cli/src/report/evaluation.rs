//! Scores, answers and judgments as one HTML page that loads nothing.

use anyhow::Context;
use minijinja::{AutoEscape, Environment, Value, value::Serde};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use crate::output_file::Page;
use crate::report::radar::radar;
use flm_eval::JudgedRow;
use flm_eval::published;
use flm_eval::{OVERALL, Verdict};
use flm_eval::{Report, gloss};

const TEMPLATE: &str = include_str!("evaluation.html");
const STYLE: &str = include_str!("evaluation.css");
const SCRIPT: &str = include_str!("evaluation.js");

/// The report as one HTML page that loads nothing.
///
/// The template engine escapes every value. Should something slip through, the page's own policy lets no
/// script run but its one, which it names by its hash, and no request go out.
pub(crate) fn page(report: &Report) -> anyhow::Result<String> {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| AutoEscape::Html);
    env.add_template("page", TEMPLATE)?;
    let variables = json!({
        "mark": Page::Evaluation.mark(),
        "title": title(report),
        "verdicts": verdicts(report),
        "flm": report.flm,
        "style": STYLE,
        "script": SCRIPT,
        "script_hash": base64(&Sha256::digest(SCRIPT)),
        "series": report.series.iter().enumerate().map(|(i, s)| series(i, s)).collect::<Vec<_>>(),
        "all_rule": report.series.iter().all(|s| s.identity.judge_label().starts_with("rule")),
        "baseline": report.baseline,
        "differences": report.differences,
        "radar": radar(report),
        "categories": categories(report),
        "dimensions": dimensions(report),
        "questions": questions(report),
        "published": report.published,
        "published_judge": published::JUDGE,
        "published_caveat": published::CAVEAT,
        "published_categories": published::CATEGORIES.map(|name| json!({"name": name, "gloss": gloss(name)})),
    });
    let page = env.get_template("page").and_then(|page| page.render(Value::from(Serde(&variables))));
    page.context("the report page")
}

fn title(report: &Report) -> String {
    let labels: Vec<&str> = report.series.iter().map(|series| series.label.as_str()).collect();
    match &report.baseline {
        Some(baseline) if labels.len() > 1 => format!("{} against {baseline}", labels[1..].join(" · ")),
        _ => labels.join(" · "),
    }
}

/// What a reader wants to know first of a comparison with a baseline.
fn verdicts(report: &Report) -> Vec<String> {
    let Some(baseline) = &report.baseline else { return Vec::new() };
    let verdict = |series: &flm_eval::Series| {
        let comparison = series.comparison.as_ref()?;
        let mut text = format!("{} against {baseline}: {}", series.label, comparison.verdict());
        for (count, label) in [(comparison.only_here, &series.label), (comparison.only_baseline, baseline)] {
            if count > 0 {
                text += &format!("; {count} more of {label} alone");
            }
        }
        Some(text + ".")
    };
    report.series.iter().filter_map(verdict).collect()
}

fn series(index: usize, series: &flm_eval::Series) -> Json {
    let (s, identity) = (&series.scores, &series.identity);
    let judge = identity.judge_label();
    json!({
        "class": format!("s{}", index % 6),
        "label": series.label,
        "judge": judge,
        "rule": judge.starts_with("rule"),
        "overall": fixed(s.strict.overall),
        "interval": s.intervals.strict.overall.map(|[a, b]| format!("{a:.2} – {b:.2}")),
        "reasoning": fixed(s.strict.reasoning),
        "language": fixed(s.strict.language),
        "released": fixed(s.released.overall),
        "few_alone": s.intervals.strict.needed_alone,
        "few": (!s.intervals.strict.too_few.is_empty()).then_some(s.intervals.strict.needed),
        "ratio": series.ratio.as_ref().and_then(|r| r.overall).map(|r| format!("{:.1} %", 100.0 * r)),
        "ledger": s.ledger,
        "clean": s.ledger.is_clean(),
        "identity": [
            ("judge", identity.judge.as_deref()),
            ("judge's endpoint", identity.judge_url.as_deref()),
            ("judge's snapshot, as reported", identity.judge_reported.as_deref()),
            ("judge's prompt, SHA-256", identity.prompt_sha256.as_deref()),
            ("questions, SHA-256", identity.data_sha256.as_deref()),
            ("model, digest", identity.model_digest.as_deref()),
            ("answering settings, digest", identity.settings_digest.as_deref()),
            ("judged by", identity.flm.as_deref()),
        ],
    })
}

fn fixed(value: Option<f64>) -> Option<String> {
    value.map(|value| format!("{value:.2}"))
}

fn categories(report: &Report) -> Vec<Json> {
    let bar = |series: &flm_eval::Series, name: &str| {
        let mean = series.scores.strict.category(name);
        let interval = series.scores.intervals.strict.categories.get(name);
        let count = series.rows.iter().filter(|row| row.category == name).count();
        let bounds: Option<[f64; 2]> = interval.and_then(|i| serde_json::from_value(i.clone()).ok());
        json!({
            "mean": fixed(mean),
            "width": mean.map(|mean| format!("{:.1}", 10.0 * mean.clamp(0.0, 10.0))),
            "low": bounds.map(|b| format!("{:.1}", 10.0 * b[0])),
            "span": bounds.map(|b| format!("{:.1}", 10.0 * (b[1] - b[0]))),
            "interval": bounds.map(|[a, b]| format!("{a:.2} – {b:.2}")),
            "released": fixed(series.scores.released.category(name)),
            "count": count,
        })
    };
    let names = report.categories();
    names
        .iter()
        .map(|name| {
            let bars: Vec<Json> = report.series.iter().map(|series| bar(series, name)).collect();
            json!({"name": name, "gloss": gloss(name), "bars": bars})
        })
        .collect()
}

fn dimensions(report: &Report) -> Vec<Json> {
    let mut names: Vec<&String> =
        report.series.iter().flat_map(|s| s.scores.strict.dimensions.keys()).collect();
    names.sort();
    names.dedup();
    // the overall score alone is no dimension
    if names.iter().all(|name| name.as_str() == OVERALL) {
        return Vec::new();
    }
    names
        .into_iter()
        .map(|name| {
            let cell = |series: &flm_eval::Series| {
                series.scores.strict.dimensions.get(name).map(|(mean, count)| {
                    json!({"mean": format!("{mean:.2}"), "count": count})
                })
            };
            json!({"name": name, "gloss": gloss(name), "cells": report.series.iter().map(cell).collect::<Vec<_>>()})
        })
        .collect()
}

fn questions(report: &Report) -> Vec<Json> {
    let mut views = Vec::new();
    for (id, slots) in report.questions() {
        let answer = |(s, slot): (usize, &Option<usize>)| {
            let series = &report.series[s];
            slot.map(|r| answer(series.label.as_str(), s, &series.rows[r], series.scores.rows[r].verdict))
        };
        let answers: Vec<Json> = slots.iter().enumerate().filter_map(answer).collect();
        let Some(row) = slots.iter().zip(&report.series).find_map(|(slot, s)| Some(&s.rows[(*slot)?])) else {
            continue;
        };
        let scores: Vec<f64> = answers.iter().filter_map(|a| a["number"].as_f64()).collect();
        let (low, high) = scores.iter().fold((f64::MAX, f64::MIN), |(l, h), &s| (l.min(s), h.max(s)));
        views.push(json!({
            "id": id,
            "category": row.category,
            "subcategory": row.text("subcategory"),
            "question": row.text("question"),
            "reference": row.text("reference"),
            "low": (!scores.is_empty()).then_some(low),
            "spread": if scores.is_empty() { 0.0 } else { high - low },
            "unread": answers.iter().any(|a| a["number"].is_null()),
            "answers": answers,
        }));
    }
    views
}

fn answer(label: &str, index: usize, row: &JudgedRow, verdict: Verdict) -> Json {
    let refused = row.is_refused().then(|| format!("the judge refused: {}", row.text("refused")));
    let how = refused.unwrap_or_else(|| match verdict {
        Verdict::Scored(_) => String::new(),
        Verdict::OutOfRange(score) => format!("the score {score} is not between 1 and 10"),
        Verdict::Ambiguous => "the judgment has different scores".into(),
        Verdict::Missing => "no score in the judgment".into(),
    });
    let number = verdict.score();
    json!({
        "label": label,
        "class": format!("s{}", index % 6),
        "text": row.text("answer"),
        "finish": row.text("finish"),
        "judgment": row.judgment,
        "number": number,
        "shown": number.map_or_else(|| "–".to_owned(), |n| n.to_string()),
        "how": how,
    })
}

/// Base64 with padding (RFC 4648), for the content security policy.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let three =
            chunk.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let six = (three >> (18 - 6 * place)) as usize & 63;
            out.push(if place > chunk.len() { '=' } else { char::from(ALPHABET[six]) });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        // RFC 4648, section 10
        for (text, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }
}
