//! Scores as Markdown.

use std::fmt::Write;

use flm_eval::published;
use flm_eval::{Report, gloss};

/// The report as Markdown, without the answers.
pub(crate) fn markdown(report: &Report) -> String {
    let mut text = format!("# Evaluation\n\nMade by {}.\n", report.flm);
    for difference in &report.differences {
        let _ = write!(text, "\n**Not comparable:** {}\n", cell(difference));
    }
    let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
    text += "\n| model | judge | overall | 95 % | reasoning | language | released overall | of baseline |\n|---|---|---|---|---|---|---|---|\n";
    for series in &report.series {
        let (strict, interval) = (&series.scores.strict, series.scores.intervals.strict.overall);
        let ratio = series.ratio.as_ref().and_then(|r| r.overall);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            cell(&series.label),
            cell(series.identity.judge_label()),
            number(strict.overall),
            interval.map_or_else(String::new, |[a, b]| format!("{a:.2} – {b:.2}")),
            number(strict.reasoning),
            number(strict.language),
            number(series.scores.released.overall),
            ratio.map_or_else(String::new, |r| format!("{:.1} %", 100.0 * r)),
        );
    }
    text += "\nThe reference answers count as 8.\n\n## By category (strict)\n\n| category |";
    let labels: Vec<String> = report.series.iter().map(|series| cell(&series.label)).collect();
    let _ = writeln!(text, " {} |\n|---|{}", labels.join(" | "), "---|".repeat(labels.len()));
    for name in report.categories() {
        let means = report.series.iter().map(|series| number(series.scores.strict.category(name)));
        let _ =
            writeln!(text, "| {} {} | {} |", cell(name), gloss(name), means.collect::<Vec<_>>().join(" | "));
    }
    text += "\n## Ledger\n\n| model | rows | parsed | fallback | failed | out of range | duplicate | missing |\n|---|---|---|---|---|---|---|---|\n";
    for series in &report.series {
        let l = &series.scores.ledger;
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            cell(&series.label),
            l.rows,
            l.parsed,
            l.fallback,
            l.failed,
            l.out_of_range,
            l.duplicates.len(),
            l.missing.len()
        );
    }
    let _ = write!(
        text,
        "\n## Published, for orientation only\n\nJudge: {}.\n\n| model | overall |",
        published::JUDGE
    );
    let _ = writeln!(text, " {} |\n|---|---|{}", published::CATEGORIES.join(" | "), "---|".repeat(8));
    for row in report.published {
        let means: Vec<String> = row.categories.iter().map(|mean| format!("{mean:.2}")).collect();
        let _ = writeln!(text, "| {} | {:.2} | {} |", row.model, row.overall, means.join(" | "));
    }
    let _ = writeln!(text, "\n{}", published::CAVEAT);
    text
}

/// Text inside a table: nothing in it ends the cell or the row, or is markup.
fn cell(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\n' | '\r' => out.push(' '),
            '<' => out.push_str("&lt;"),
            '|' | '`' | '*' | '_' | '[' | ']' | '\\' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}
