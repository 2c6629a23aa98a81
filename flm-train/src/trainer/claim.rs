//! Whose an output directory is: locked while a run works there, marked with what the run is.

use std::{fs, path::Path};

use flm_checkpoint::{Checkpoint, Dtype, atomic};
use serde::Deserialize;
use serde_json::Value;

use crate::error::TrainError;
use crate::options::OptimizerSettings;

/// Held locked in the output directory while a run works there.
pub(super) const LOCK: &str = ".flm-sft.lock";
/// Says which run an output directory belongs to.
const MARKER: &str = "run.json";
/// What a run and who draws it write into its output directory besides checkpoints.
const OUTPUTS: [&str; 3] = ["final", "metrics.jsonl", "report.html"];

/// Makes the output directory this run's, or fails where it is another's.
///
/// Runs of versions without a marker are told by their checkpoints, `begun`.
pub(super) fn claim(output: &Path, begun: bool, identity: &Value) -> Result<(), TrainError> {
    let path = output.join(MARKER);
    match fs::read(&path) {
        Ok(bytes) => {
            let marker: Value = serde_json::from_slice(&bytes)
                .map_err(|e| TrainError::State { path: path.clone(), message: e.to_string() })?;
            return same_run(output, &marker["identity"], identity);
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(TrainError::file("read", &path)(e)),
    }
    if let Some(name) = OUTPUTS.iter().find(|name| !begun && output.join(name).exists()) {
        let message = format!(
            "there is a {name} of another run or program: choose another output directory, or move it away"
        );
        return Err(TrainError::State { path: output.into(), message });
    }
    let marker = serde_json::json!({ "version": 1, "identity": identity });
    Ok(atomic::replace(&path, format!("{marker:#}\n").as_bytes())?)
}

/// Fails where the trained model that is there holds another dtype than is asked for.
pub(super) fn require_dtype(model: &Path, asked: Dtype) -> Result<(), TrainError> {
    let other = Checkpoint::open(model)?.entries().map(|entry| entry.dtype).find(|&dtype| dtype != asked);
    let Some(dtype) = other else { return Ok(()) };
    let (dtype, asked) = (dtype.as_str(), asked.as_str());
    let message = format!(
        "its weights are {dtype}, save.dtype asks for {asked}: `flm convert --dtype {asked}` makes such a \
         copy, or move it away to have it written again"
    );
    Err(TrainError::State { path: model.into(), message })
}

/// Fails where two runs differ, and says in what.
pub(super) fn same_run(dir: &Path, saved: &Value, ours: &Value) -> Result<(), TrainError> {
    let Some(ours) = ours.as_object() else { return Ok(()) };
    // a setting that a state does not tell of had its default
    let settings = |value: &Value| OptimizerSettings::deserialize(value).ok();
    let same = |key: &str, value: &Value| match key {
        // states of earlier versions do not tell
        "model" | "chat_template" | "validation" if saved.get(key).is_none() => true,
        "optimizer" => settings(&saved[key]) == settings(value),
        _ => saved[key] == *value,
    };
    let different: Vec<&str> =
        ours.iter().filter(|(key, value)| !same(key, value)).map(|(key, _)| key.as_str()).collect();
    if different.is_empty() {
        return Ok(());
    }
    let message = format!(
        "it belongs to a run that differs in {}: choose another output directory, or remove this one",
        different.join(", ")
    );
    Err(TrainError::State { path: dir.into(), message })
}
