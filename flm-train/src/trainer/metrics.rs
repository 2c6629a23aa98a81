//! `metrics.jsonl`: a line a step, a line a validation, in their order.
//!
//! A run only appends. When it goes on from a state, the lines of later steps, which will be made again, move to
//! a file beside it; what a crash of the machine took of the earlier ones comes back from the state's own copy.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use flm_checkpoint::atomic;
use serde::Serialize;
use serde_json::Value;

use crate::error::TrainError;

/// A step of training, as a line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepMetrics {
    /// Updates made.
    pub step: u64,
    /// Passes over the data, begun ones included.
    pub epoch: u64,
    /// Mean negative log-likelihood of the targets, in nats.
    pub loss: f64,
    /// The step's learning rate.
    pub learning_rate: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Tokens, padding included.
    pub tokens: usize,
    /// Targets.
    pub targets: usize,
    /// Model FLOP utilisation: the part of the device's peak rate that the step's arithmetic took,
    /// where that rate is known; see [`crate::model_operations`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub utilisation: Option<f64>,
    /// What new parts of a model that is still growing were multiplied by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<f64>,
    /// Time of the step.
    pub seconds: f64,
    /// Most memory held so far, where the system says.
    pub peak_memory: Option<u64>,
}

/// Name of the file, in an output directory and in a state.
const METRICS: &str = "metrics.jsonl";
/// Where lines of steps go that are made again.
const UNDONE: &str = "metrics-undone.jsonl";

/// The metrics of a run.
#[derive(Debug)]
pub(super) struct Metrics {
    path: PathBuf,
    /// Lines of steps that are made again.
    pub(super) undone: usize,
}

impl Metrics {
    /// The metrics in `output`, to go on after `step`; `state` is where the run goes on from.
    pub(super) fn go_on(output: &Path, step: u64, state: Option<&Path>) -> Result<Self, TrainError> {
        let path = output.join(METRICS);
        let (ours, saved) = (read(&path)?, state.map_or(Ok(String::new()), |dir| read(&dir.join(METRICS)))?);
        // a run from the start validates and makes step 1 again
        let made = |line: &&str| step > 0 && step_of(line).is_some_and(|of| of <= step);
        let mut kept = lines(ours.lines().filter(made));
        if !kept.starts_with(&saved) {
            kept = saved;
        }
        let undone: Vec<&str> =
            ours.lines().filter(|line| step_of(line).is_some_and(|of| of > step || step == 0)).collect();
        if !undone.is_empty() {
            append(&output.join(UNDONE), &lines(undone.iter().copied()))?;
        }
        if kept != ours {
            atomic::replace(&path, kept.as_bytes())?;
        }
        Ok(Self { path, undone: undone.len() })
    }

    /// The metrics of a run in `output` that has no step left to make.
    pub(super) fn whole(output: &Path) -> Self {
        Self { path: output.join(METRICS), undone: 0 }
    }

    /// Where they are written.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a line.
    pub(super) fn add(&self, line: &impl Serialize) -> Result<(), TrainError> {
        let text = serde_json::to_string(line).unwrap_or_default();
        append(&self.path, &format!("{text}\n"))
    }
}

fn read(path: &Path) -> Result<String, TrainError> {
    match fs::read(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(String::new()),
        // what a crash left of a line need not be text
        read => Ok(String::from_utf8_lossy(&read.map_err(TrainError::file("read", path))?).into_owned()),
    }
}

fn append(path: &Path, text: &str) -> Result<(), TrainError> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(TrainError::file("write", path))
}

/// The step that a line is about; `None` for what is no line of ours.
fn step_of(line: &str) -> Option<u64> {
    let value: Value = serde_json::from_str(line).ok()?;
    value.get("step")?.as_u64()
}

fn lines<'l>(lines: impl Iterator<Item = &'l str>) -> String {
    lines.map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: &str = "{\"step\":0,\"validation_loss\":9}\n{\"step\":1}\n{\"step\":2}\n";

    /// metrics.jsonl, metrics-undone.jsonl and the number of lines undone, after going on at `step`.
    fn go_on(ours: &str, saved: &str, step: u64) -> (String, String, usize) {
        let dir = tempfile::tempdir().unwrap();
        let (output, state) = (dir.path().join("out"), dir.path().join("out/state"));
        fs::create_dir_all(&state).unwrap();
        fs::write(output.join(METRICS), ours).unwrap();
        fs::write(state.join(METRICS), saved).unwrap();
        let metrics = Metrics::go_on(&output, step, (step > 0).then_some(&state)).unwrap();
        metrics.add(&serde_json::json!({ "step": step + 1 })).unwrap();
        (read(metrics.path()).unwrap(), read(&output.join(UNDONE)).unwrap(), metrics.undone)
    }

    #[test]
    fn lines_are_neither_twice_there_nor_lost() {
        let (three, four) = ("{\"step\":3}\n", "{\"step\":4,\"seconds\":1.5}\n");
        let ours = format!("{STEPS}{three}{four}");
        // killed after step 4, going on from the state of step 2
        assert_eq!(go_on(&ours, STEPS, 2), (format!("{STEPS}{three}"), format!("{three}{four}"), 2));
        // nothing to undo; the state saved no copy
        assert_eq!(go_on(STEPS, STEPS, 2), (format!("{STEPS}{three}"), String::new(), 0));
        assert_eq!(go_on(STEPS, "", 2), (format!("{STEPS}{three}"), String::new(), 0));
        // no state yet: from the start
        assert_eq!(go_on(STEPS, "", 0), ("{\"step\":1}\n".into(), STEPS.into(), 3));
    }

    #[test]
    fn what_a_crash_took_comes_back_from_the_state() {
        for left in ["", &STEPS[..STEPS.len() - 4], "{\"step\":0,\"validation_loss\":9}\n", "\u{0}\u{0}"] {
            assert_eq!(
                go_on(left, STEPS, 2),
                (format!("{STEPS}{{\"step\":3}}\n"), String::new(), 0),
                "{left:?}"
            );
        }
    }
}
