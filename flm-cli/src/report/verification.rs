//! A verification as one self-contained HTML page.

use std::fmt::Write;

use flm_growth::{Provenance, Shape, VerifyReport};

use crate::output_file::Page;
use crate::report::html::escape;
use crate::report::layers::{Scale, layer_chart};

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}\
table{border-collapse:collapse;margin:.6rem 0}td,th{padding:.25rem .9rem .25rem 0;text-align:left;border-bottom:1px solid #ddd}\
td.n{text-align:right;font-variant-numeric:tabular-nums}pre{background:#f6f6f6;padding:.8rem;overflow:auto;font-size:12px}\
.ok{color:#17692b}.bad{color:#b3261e}svg{max-width:100%;height:auto}";

/// One page with the plan, the error table, a picture of per-layer differences and the provenance.
///
/// `source` and `target` are names to show; `provenance` is the target's, where it has one.
pub(crate) fn page(
    report: &VerifyReport,
    source: &str,
    target: &str,
    provenance: Option<&Provenance>,
) -> anyhow::Result<String> {
    let mut page = String::new();
    let title = format!("{source} → {target}");
    let verdict = if report.passed {
        format!("<p class=\"ok\"><b>The same function{}, within the bounds.</b></p>", among(report))
    } else {
        let failures: String = report.failures.iter().map(|f| format!("<li>{}</li>", escape(f))).collect();
        format!("<p class=\"bad\"><b>NOT the same function:</b></p><ul class=\"bad\">{failures}</ul>")
    };
    // writing to a String does not fail
    let _ = write!(
        page,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">{1}<title>{0}</title><style>{STYLE}</style></head><body><h1>{0}</h1>{verdict}",
        escape(&title),
        Page::Verification.mark()
    );
    if let Some(growth) = provenance.and_then(|p| p.growth.as_ref()) {
        page += "<h2>Plan</h2>";
        page += &table(&shape_rows(&growth.from, &growth.to));
        let new: Vec<String> =
            growth.layers.iter().enumerate().filter(|(_, l)| l.new).map(|(i, _)| i.to_string()).collect();
        page += &table(&[
            ["operator".into(), growth.operator.to_string()],
            ["placement".into(), growth.placement.to_string()],
            ["new layers".into(), if new.is_empty() { "none".into() } else { new.join(", ") }],
            ["seed".into(), growth.seed.to_string()],
            ["norm eps".into(), format!("{:e}", growth.config.rms_norm_eps as f32)],
            [
                "logit scale".into(),
                format!("{} / {}", growth.config.output_mult, growth.config.mup_scale_factor),
            ],
        ]);
    }
    page += "<h2>Differences</h2>";
    page += &table(&rows(report));
    if !report.layers.is_empty() {
        page += "<h2>Residual stream at matching layers</h2>";
        let points = report.layers.iter().map(|l| (l.source as f64, l.relative_l2)).collect();
        let mut series = vec![("source against target", points)];
        if let Some(floor) = report.noise_floor {
            series.push((
                "noise floor of the logits",
                report.layers.iter().map(|l| (l.source as f64, floor)).collect(),
            ));
        }
        page += &layer_chart(
            "Relative L2 difference after each layer",
            "relative L2",
            Scale::Logarithmic,
            &series,
        )?;
    }
    if let Some(provenance) = provenance {
        let text = serde_json::to_string_pretty(provenance)?;
        let _ = write!(page, "<h2>Provenance</h2><pre>{}</pre>", escape(&text));
    }
    page += "</body></html>\n";
    Ok(page)
}

/// What the verdict is about.
pub(crate) fn among(report: &VerifyReport) -> &'static str {
    if report.new_rows.is_some() { " among the old vocabulary rows" } else { "" }
}

fn rows(report: &VerifyReport) -> Vec<[String; 2]> {
    let number = |value: Option<f64>| value.map_or_else(|| "–".into(), |v| format!("{v:.6}"));
    let small = |value: f64| format!("{value:.3e}");
    let new = report.new_rows.map_or_else(
        || "none".into(),
        |n| {
            format!(
                "{}, with {} of the probability, most likely at {:.3} %",
                n.rows,
                small(n.probability),
                100.0 * n.likeliest
            )
        },
    );
    [
        ("arithmetic", report.dtype.clone()),
        (
            "positions",
            format!("{} in {} texts, {} vocabulary rows", report.positions, report.texts, report.vocab),
        ),
        ("logits, relative L2", small(report.relative_l2)),
        ("logits, largest difference", small(report.max_abs)),
        ("logits, mean difference", small(report.mean_abs)),
        ("KL divergence, mean", small(report.kl_mean)),
        ("KL divergence, largest", small(report.kl_max)),
        ("same most likely token", format!("{:.3} %", 100.0 * report.argmax_agreement)),
        ("perplexity, source", number(report.source_perplexity)),
        ("perplexity, target", number(report.target_perplexity)),
        ("new vocabulary rows", new),
        (
            "noise floor: bf16 against f32, source",
            report.noise_floor.map_or_else(|| "not measured".into(), small),
        ),
    ]
    .map(|(name, value)| [name.to_owned(), value])
    .into()
}

fn shape_rows(from: &Shape, to: &Shape) -> Vec<[String; 2]> {
    from.beside(to).map(|(name, a, b)| [name.to_owned(), format!("{a} → {b}")]).into()
}

fn table(rows: &[[String; 2]]) -> String {
    let row = |[name, value]: &[String; 2]| {
        format!("<tr><td>{}</td><td class=\"n\">{}</td></tr>", escape(name), escape(value))
    };
    format!("<table>{}</table>", rows.iter().map(row).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_failures_are_text_on_the_page() {
        let measured = serde_json::json!({
            "dtype": "f32", "texts": 1, "positions": 4, "vocab": 9, "max_abs": 0.0, "mean_abs": 0.0, "rel_l2": 0.0,
            "kl_mean": 0.0, "kl_max": 0.0, "argmax_agreement": 1.0, "source_perplexity": null,
            "target_perplexity": null, "not_finite": 0, "noise_floor": 1e-3,
            "layers": [{ "source": 0, "target": 0, "rel_l2": 0.0 }, { "source": 1, "target": 2, "rel_l2": 1e-7 }],
            "bounds": { "relative_l2": 1e-5, "noise_floors": null, "argmax_agreement": 1.0 },
            "failures": [], "passed": true,
        });
        let report: VerifyReport = serde_json::from_value(measured).unwrap();
        let same = page(&report, "small <a>", "large", None).unwrap();
        for part in ["small &lt;a&gt; → large", "The same function, within", "<svg", "<polyline"] {
            assert!(same.contains(part), "{part}");
        }
        assert!(!same.contains("among"));
        let new =
            serde_json::json!({ "rows": 3, "probability": 0.1, "likeliest": 0.0, "target_perplexity": null });
        let wider = VerifyReport { new_rows: serde_json::from_value(new).unwrap(), ..report.clone() };
        assert!(
            page(&wider, "a", "b", None).unwrap().contains("function among the old vocabulary rows, within")
        );
        let failed = VerifyReport { passed: false, failures: vec!["a & b".into()], ..report };
        assert!(page(&failed, "a", "b", None).unwrap().contains("<li>a &amp; b</li>"));
    }
}
