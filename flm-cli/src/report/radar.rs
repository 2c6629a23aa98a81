//! The radar: categories around, 0 to 10 outwards, one outline for each series.

use std::{f64::consts::TAU, fmt::Write};

use flm_eval::{Report, gloss};

use crate::report::html::escape;

const RADIUS: f64 = 150.0;

/// Dash patterns tell outlines apart without colour.
const DASHES: [&str; 4] = ["none", "7 4", "2 4", "10 3 2 3"];

/// The radar as SVG; `None` with fewer than three categories.
pub(crate) fn radar(report: &Report) -> Option<String> {
    let categories = report.categories();
    if categories.len() < 3 {
        return None;
    }
    let at = |index: usize, value: f64| {
        let angle = TAU * index as f64 / categories.len() as f64;
        let r = RADIUS * value / 10.0;
        (r * angle.sin(), -r * angle.cos())
    };
    let outline = |value: &dyn Fn(usize) -> f64| -> String {
        let points = (0..categories.len()).map(|i| at(i, value(i)));
        points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
    };
    let mut svg = String::from(
        r#"<svg class="radar" viewBox="-235 -190 470 385" role="img" aria-label="Strict score by category; the same numbers stand in the table below">"#,
    );
    for ring in [2.0, 4.0, 6.0, 8.0, 10.0] {
        // the reference answers' level
        let class = if ring == 8.0 { "ring reference" } else { "ring" };
        let _ = write!(svg, r#"<polygon class="{class}" points="{}"/>"#, outline(&|_| ring));
        let (x, y) = at(0, ring);
        let _ = write!(svg, r#"<text class="tick" x="{:.1}" y="{:.1}">{ring}</text>"#, x + 3.0, y + 10.0);
    }
    for (index, name) in categories.iter().enumerate() {
        let ((x, y), (tx, ty)) = (at(index, 10.0), at(index, 10.9));
        let anchor = if tx.abs() < 10.0 {
            "middle"
        } else if tx > 0.0 {
            "start"
        } else {
            "end"
        };
        let _ = write!(
            svg,
            r#"<line class="axis" x2="{x:.1}" y2="{y:.1}"/><text class="label" text-anchor="{anchor}" x="{tx:.1}" y="{:.1}">{}</text>"#,
            ty + if ty > 20.0 {
                10.0
            } else if ty < -20.0 {
                -4.0
            } else {
                4.0
            },
            escape(name)
        );
        let gloss = gloss(name);
        if !gloss.is_empty() {
            let _ = write!(svg, "<title>{gloss}</title>");
        }
    }
    for (s, series) in report.series.iter().enumerate() {
        let value = |i: usize| series.scores.strict.category(categories[i]).unwrap_or(0.0).clamp(0.0, 10.0);
        let dash = DASHES[s % DASHES.len()];
        let _ = write!(
            svg,
            r#"<polygon class="series s{}" stroke-dasharray="{dash}" points="{}"><title>{}</title></polygon>"#,
            s % 6,
            outline(&value),
            escape(&series.label)
        );
    }
    svg.push_str("</svg>");
    Some(svg)
}
