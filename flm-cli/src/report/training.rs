//! What a training run shows people while it goes on: curves for TensorBoard, and `report.html`, pictures in one
//! file without scripts or links.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use flm_checkpoint::atomic;
use flm_train::{Event, StepMetrics, TrainError};
use serde_json::Value;

use crate::report::html::escape;
use crate::report::tensorboard::EventFile;

/// Draws a run from its events, into its output directory.
#[derive(Debug)]
pub(crate) struct Pictures {
    output: PathBuf,
    settings: String,
    events: Option<EventFile>,
}

impl Pictures {
    /// Of a run into `output`; the page shows its `settings`.
    pub(crate) fn new(output: &Path, settings: String) -> Self {
        Self { output: output.into(), settings, events: None }
    }

    /// Draws what happened: a point a step, a page a checkpoint.
    ///
    /// # Errors
    /// Where a file cannot be written.
    pub(crate) fn draw(&mut self, event: &Event) -> Result<(), TrainError> {
        match event {
            Event::Step(step) => self.step(step),
            Event::Validation { step, loss } => self.curves()?.scalar("validation/loss", *step, *loss),
            Event::Saved(_) => {
                let metrics = self.output.join("metrics.jsonl");
                write(&metrics, &self.settings, &self.output.join("report.html"))
            }
        }
    }

    fn step(&mut self, step: &StepMetrics) -> Result<(), TrainError> {
        let curves = self.curves()?;
        for (tag, value) in [
            ("train/loss", step.loss),
            ("train/learning_rate", step.learning_rate),
            ("train/gradient_norm", step.gradient_norm),
            ("train/tokens_per_second", step.tokens as f64 / step.seconds),
        ] {
            curves.scalar(tag, step.step, value)?;
        }
        for (tag, value) in [("train/utilisation", step.utilisation), ("train/mask", step.mask)] {
            if let Some(value) = value {
                curves.scalar(tag, step.step, value)?;
            }
        }
        Ok(())
    }

    /// TensorBoard's file, made at its first use.
    fn curves(&mut self) -> Result<&mut EventFile, TrainError> {
        Ok(match &mut self.events {
            Some(events) => events,
            none => none.insert(EventFile::create(&self.output.join("tensorboard"))?),
        })
    }
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 72.0;
const BOTTOM: f64 = 28.0;

/// A picture: title, and curves of (step, value).
type Picture<'a> = (&'a str, Vec<(&'a str, Vec<(f64, f64)>)>);

/// Writes pictures of the run that `metrics` (a `metrics.jsonl`) tells of.
fn write(metrics: &Path, settings: &str, path: &Path) -> Result<(), TrainError> {
    let text = fs::read_to_string(metrics).map_err(TrainError::file("read", metrics))?;
    let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let curve = |value: &dyn Fn(&Value) -> Option<f64>| -> Vec<(f64, f64)> {
        lines.iter().filter_map(|line| Some((line["step"].as_f64()?, value(line)?))).collect()
    };
    let key = |key: &'static str| curve(&move |line| line[key].as_f64());
    let speed = curve(&|line| Some(line["tokens"].as_f64()? / line["seconds"].as_f64()?));
    let memory = curve(&|line| Some(line["peak_memory"].as_f64()? / 1e9));
    let percent = curve(&|line| Some(line["utilisation"].as_f64()? * 100.0));
    let pictures: [Picture<'_>; 7] = [
        ("Loss, nats a token", vec![("training", key("loss")), ("validation", key("validation_loss"))]),
        ("Learning rate", vec![("", key("learning_rate"))]),
        ("Gradient norm", vec![("", key("gradient_norm"))]),
        ("Tokens per second", vec![("", speed)]),
        ("Peak memory, GB", vec![("", memory)]),
        ("Model FLOP utilisation, %", vec![("", percent)]),
        ("Growth mask", vec![("", key("mask"))]),
    ];
    let mut html = String::from(
        "<!doctype html><meta charset=\"utf-8\"><title>flm sft</title><style>body{font:14px sans-serif;\
         max-width:700px;margin:2em auto}svg{display:block}pre{background:#f4f4f4;padding:1em;overflow:auto}\
         text{font-size:11px;fill:#555}</style><h1>Training run</h1>",
    );
    for (title, curves) in &pictures {
        html.push_str(&picture(title, curves));
    }
    // writing to a string cannot fail
    let _ = writeln!(html, "<h2>Recipe</h2><pre>{}</pre>", escape(settings));
    Ok(atomic::replace(path, html.as_bytes())?)
}

fn picture(title: &str, curves: &[(&str, Vec<(f64, f64)>)]) -> String {
    let points = || curves.iter().flat_map(|(_, points)| points).filter(|(_, y)| y.is_finite());
    let range = |value: fn(&(f64, f64)) -> f64| {
        let fold = |(low, high): (f64, f64), x: f64| (low.min(x), high.max(x));
        points().map(value).fold((f64::INFINITY, f64::NEG_INFINITY), fold)
    };
    let ((x0, x1), (y0, y1)) = (range(|p| p.0), range(|p| p.1));
    if points().next().is_none() {
        return String::new();
    }
    let place = |x: f64, low: f64, high: f64| if high > low { (x - low) / (high - low) } else { 0.5 };
    let x_of = |x: f64| LEFT + place(x, x0, x1) * (WIDTH - LEFT - 10.0);
    let y_of = |y: f64| 10.0 + (1.0 - place(y, y0, y1)) * (HEIGHT - BOTTOM - 10.0);
    let mut svg = format!("<h2>{title}</h2><svg width=\"{WIDTH}\" height=\"{HEIGHT}\">");
    for i in 0..=4 {
        let value = y0 + (y1 - y0) * f64::from(i) / 4.0;
        let (y, label) = (y_of(value), number(value));
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            LEFT - 6.0,
            y + 4.0
        );
        if y1 <= y0 {
            break;
        }
    }
    for (x, anchor) in [(x0, "start"), (x1, "end")] {
        let _ =
            write!(svg, "<text x=\"{:.0}\" y=\"{HEIGHT}\" text-anchor=\"{anchor}\">step {x}</text>", x_of(x));
    }
    for ((name, points), colour) in curves.iter().zip(["#3366aa", "#cc5500"]) {
        let path: Vec<String> = points
            .iter()
            .filter(|(_, y)| y.is_finite())
            .map(|&(x, y)| format!("{:.1},{:.1}", x_of(x), y_of(y)))
            .collect();
        let Some(last) = path.last().and_then(|last| last.split_once(',')) else { continue };
        let _ = write!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>\
             <circle cx=\"{}\" cy=\"{}\" r=\"2.5\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\" dy=\"-6\" style=\"fill:{colour}\">{name}</text>",
            path.join(" "),
            last.0,
            last.1,
            last.0,
            last.1
        );
    }
    svg + "</svg>"
}

fn number(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e5).contains(&size) { format!("{value:.1e}") } else { format!("{value:.4}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_has_a_point_for_every_finite_value() {
        let svg = picture("t", &[("a", vec![(1.0, 2.0), (2.0, f64::NAN), (3.0, 4.0)]), ("b", Vec::new())]);
        assert_eq!(svg.matches("<polyline").count(), 1);
        assert!(svg.contains("points=\"72.0,212.0 630.0,10.0\""), "{svg}");
        assert_eq!(picture("t", &[("a", Vec::new())]), "");
        assert!(picture("t", &[("a", vec![(1.0, 5.0)])]).contains("5.0000"));
    }
}
