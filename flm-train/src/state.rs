//! Checkpoints of a run: the model, the optimizer's state, and where the run stands.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use flm_checkpoint::{Dtype, atomic, cast};
use half::f16;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::TempDir;

use crate::error::TrainError;
use crate::params::{Layout, Parameter};
use crate::store::{Array, ParameterStore, Place};
use flm_checkpoint::Checkpoint;
use flm_checkpoint::GrowthMasks;
use flm_checkpoint::TensorSpec;
use flm_checkpoint::Writer;
use flm_checkpoint::{CHECKSUMS_FILE, Checksums};
use flm_checkpoint::{Card, copy_side_files};

/// Where a run stands; `training_state.json` in a training checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingState {
    /// Version of the format: of the files of a training checkpoint and their names.
    #[serde(default = "first")]
    pub version: u32,
    /// Updates made; the data's order follows from it and the seed.
    pub step: u64,
    /// Step and validation loss of the best checkpoint so far.
    pub best: Option<(u64, f64)>,
    /// Updates that the optimizer's moments had seen before this run.
    #[serde(default)]
    pub earlier_steps: u64,
    /// What must be the same for the run to go on: settings and a digest of the data.
    pub identity: Value,
}

impl TrainingState {
    /// The version that is written, the newest that is read.
    pub(crate) const VERSION: u32 = 1;
}

/// What wrote no version wrote the first.
fn first() -> u32 {
    1
}

/// Folder of the optimizer's state in a training checkpoint.
const OPTIMIZER: &str = "optimizer";
/// File of [`TrainingState`].
const STATE: &str = "training_state.json";
/// Where a checkpoint comes from.
const PROVENANCE: &str = "provenance.json";
/// Values converted at once.
const PART: usize = 1 << 20;
/// Largest file of a checkpoint.
const MAX_SHARD: u64 = 5_000_000_000;

const MOMENTS: [(Array, &str); 2] = [(Array::ExpAvg, "exp_avg."), (Array::ExpAvgSq, "exp_avg_sq.")];

/// Writes a checkpoint that every command opens; with a state also what the run needs to go on:
/// `optimizer/` with `exp_avg.NAME` and `exp_avg_sq.NAME`, the state, the metrics so far. It appears
/// whole or not at all, with checksums.json and provenance.json. `growth` are the masks that the weights
/// belong to. Without a `dtype` weights are written as they are stored.
///
/// # Errors
/// [`TrainError::State`] where a weight is not finite or overflows `dtype`: nothing is written then.
pub(crate) fn save(
    store: &dyn ParameterStore,
    origin: &Origin<'_>,
    dst: &Path,
    dtype: Option<Dtype>,
    growth: Option<GrowthMasks>,
    state: Option<(&TrainingState, &Path)>,
) -> Result<(), TrainError> {
    let layout = store.layout();
    let mut config = layout.config().clone();
    config.growth = growth;
    config.set_dtype(dtype.or(layout.parameters().map(|(_, _, p)| p.dtype).next()).unwrap_or(Dtype::F32));
    let writer = Writer::create_model(dst, &config, &specs(layout, "", dtype), MAX_SHARD)?;
    let digests = write(store, &writer, Array::Weights, "", |p| dtype.unwrap_or(p.dtype))?;
    copy_side_files(origin.source.dir.path(), writer.staging_dir(), Card::Leave)?;
    let path = writer.staging_dir().join("README.md");
    atomic::write(&path, origin.card().as_bytes())?;
    if let Some(template) = origin.chat_template {
        let path = writer.staging_dir().join("chat_template.jinja");
        atomic::write(&path, template.as_bytes())?;
    }
    let path = writer.staging_dir().join(PROVENANCE);
    atomic::write(&path, origin.provenance()?.as_bytes())?;
    if let Some((state, metrics)) = state {
        let moments: Vec<TensorSpec> =
            MOMENTS.iter().flat_map(|(_, prefix)| specs(layout, prefix, Some(Dtype::F32))).collect();
        let optimizer = Writer::create(&writer.staging_dir().join(OPTIMIZER), &moments, MAX_SHARD)?;
        let mut digests = BTreeMap::new();
        for (array, prefix) in MOMENTS {
            digests.append(&mut write(store, &optimizer, array, prefix, |_| Dtype::F32)?);
        }
        optimizer.finish_with_checksums(&config, Checksums { tensors: digests, ..Checksums::default() })?;
        let path = writer.staging_dir().join(STATE);
        let text = serde_json::to_string_pretty(state).unwrap_or_default();
        atomic::write(&path, text.as_bytes())?;
        if metrics.exists() {
            let path = writer.staging_dir().join("metrics.jsonl");
            fs::copy(metrics, &path).map_err(TrainError::file("write", &path))?;
        }
    }
    Ok(writer.finish_with_checksums(&config, Checksums { tensors: digests, ..Checksums::default() })?)
}

fn specs(layout: &Layout, prefix: &str, dtype: Option<Dtype>) -> Vec<TensorSpec> {
    let spec = |(_, _, p): (_, _, &Parameter)| TensorSpec {
        name: format!("{prefix}{}", p.name),
        dtype: dtype.unwrap_or(p.dtype),
        shape: p.shape.clone(),
    };
    layout.parameters().map(spec).collect()
}

fn write(
    store: &dyn ParameterStore,
    writer: &Writer,
    array: Array,
    prefix: &str,
    dtype: impl Fn(&Parameter) -> Dtype,
) -> Result<BTreeMap<String, String>, TrainError> {
    let mut digests = BTreeMap::new();
    for (unit, index, parameter) in store.layout().parameters() {
        let dtype = dtype(parameter);
        let name = format!("{prefix}{}", parameter.name);
        let place = Place { unit, parameter: index, array };
        let mut values = vec![0f32; PART.min(parameter.len())];
        let (mut hasher, mut bytes) = (blake3::Hasher::new(), Vec::new());
        for offset in (0..parameter.len()).step_by(PART) {
            let values = &mut values[..PART.min(parameter.len() - offset)];
            store.read(place, offset, values)?;
            let largest = if dtype == Dtype::F16 { f16::MAX.to_f32() } else { f32::MAX };
            if let Some(value) = values.iter().find(|v| v.is_nan() || v.abs() > largest) {
                let message = match value.is_finite() {
                    true => format!(
                        "{name} has the value {value}, beyond f16: set save.dtype to \"bf16\" or \"f32\""
                    ),
                    false => format!("{name} has a value that is not finite: the state was not saved"),
                };
                return Err(TrainError::State { path: writer.staging_dir().into(), message });
            }
            let wide: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            cast(Dtype::F32, dtype, &wide, &mut bytes);
            writer.write_at(&name, (offset * dtype.size_in_bytes()) as u64, &bytes)?;
            hasher.update(&bytes);
        }
        digests.insert(name, hasher.finalize().to_hex().to_string());
    }
    Ok(digests)
}

/// What a run trains, and how, for the provenance of what it writes.
pub(crate) struct Origin<'a> {
    /// Tokenizer and side files come from it.
    pub source: &'a SourceFiles,
    /// The template that the run was trained with, where it is not the source's own.
    pub chat_template: Option<&'a str>,
    /// What the run is: model, data, settings.
    pub identity: &'a Value,
    /// Updates made.
    pub step: u64,
}

impl Origin<'_> {
    /// README.md: what was trained, and that the source's own card is not this model's. Its terms stay.
    fn card(&self) -> String {
        let source = &self.source.name;
        let own = fs::read_to_string(self.source.dir.path().join("README.md")).unwrap_or_default();
        let header = own.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---")).map_or("", |h| h.0);
        let terms: String = header
            .lines()
            .filter(|line| line.starts_with("license"))
            .map(|line| format!("{line}\n"))
            .collect();
        format!(
            "---\n{terms}library_name: transformers\n---\n\n# Trained from {source}\n\n\
             All parameters of {source} were trained for {} updates with flm. `provenance.json` tells of model, \
             data and settings.\n\nScores and descriptions in the card of {source} are not of this model.\n",
            self.step
        )
    }

    /// provenance.json: the run, and the growths that the source's own provenance tells of.
    fn provenance(&self) -> Result<String, TrainError> {
        let path = self.source.dir.path().join(PROVENANCE);
        let earlier = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Value::Null,
            read => {
                let bytes = read.map_err(TrainError::file("read", &path))?;
                serde_json::from_slice(&bytes)
                    .map_err(|e| TrainError::State { path: path.clone(), message: e.to_string() })?
            }
        };
        let mut growths = earlier["earlier"].as_array().cloned().unwrap_or_default();
        growths.extend(earlier.get("growth").filter(|g| !g.is_null()).cloned());
        let value = serde_json::json!({
            "tool": concat!("flm-train ", env!("CARGO_PKG_VERSION")),
            "source": self.source.name,
            "earlier": growths,
            "training": { "step": self.step, "run": self.identity, "earlier": earlier.get("training") },
        });
        Ok(format!("{value:#}\n"))
    }
}

/// A source's files besides the weights, as they were when the run began: what is trained with them is saved with
/// them, whatever becomes of the source meanwhile.
#[derive(Debug)]
pub(crate) struct SourceFiles {
    dir: TempDir,
    /// The last part of the source's path: where it lay on this machine is nobody's business.
    name: String,
}

impl SourceFiles {
    /// Copies them.
    pub(crate) fn keep(source: &Path) -> Result<Self, TrainError> {
        let temp = std::env::temp_dir();
        let dir = tempfile::tempdir().map_err(TrainError::file("create a folder in", &temp))?;
        copy_side_files(source, dir.path(), Card::Keep)?;
        let path = source.join(PROVENANCE);
        match fs::copy(&path, dir.path().join(PROVENANCE)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(TrainError::file("copy", &path)(e));
            }
            _ => {}
        }
        let whole = source.canonicalize();
        let name = whole.as_deref().unwrap_or(source).file_name();
        Ok(Self { dir, name: name.map_or_else(String::new, |n| n.to_string_lossy().into_owned()) })
    }
}

/// Compares a training checkpoint with its digests; one of an earlier version has none.
///
/// # Errors
/// [`TrainError::State`] that names what is damaged.
pub(crate) fn check(dir: &Path) -> Result<(), TrainError> {
    for dir in [dir.to_path_buf(), dir.join(OPTIMIZER)] {
        if !dir.join(CHECKSUMS_FILE).exists() {
            continue;
        }
        let report = Checksums::read(&dir)?.check(&dir, None, &|_| ())?;
        if let Some(problem) = report.problems.first() {
            return Err(TrainError::State { path: dir, message: format!("it is damaged: {problem}") });
        }
    }
    Ok(())
}

/// Fills a store from a training checkpoint: weights and moments, bit for bit.
pub(crate) fn load(store: &mut dyn ParameterStore, dir: &Path) -> Result<TrainingState, TrainError> {
    let state = read_state(dir)?;
    crate::store::load_weights(store, &Checkpoint::open(dir)?)?;
    load_moments(store, dir)?;
    Ok(state)
}

/// Takes the moments beside a model: `optimizer/` of a training checkpoint, or of one that grew with it.
/// Returns the number of updates that they have seen.
pub(crate) fn kept_moments(store: &mut dyn ParameterStore, dir: &Path) -> Result<u64, TrainError> {
    if !dir.join(OPTIMIZER).is_dir() {
        let message = "it has no optimizer/: set optimizer.moments = \"zero\", or grow the model with \
                       --optimizer-state";
        return Err(TrainError::State { path: dir.into(), message: message.into() });
    }
    load_moments(store, dir)?;
    let state = read_state(dir)?;
    Ok(state.earlier_steps + state.step)
}

fn load_moments(store: &mut dyn ParameterStore, dir: &Path) -> Result<(), TrainError> {
    let optimizer = Checkpoint::open(&dir.join(OPTIMIZER))?;
    let layout = store.layout().clone();
    let mut bytes = vec![0u8; PART * 4];
    for (array, prefix) in MOMENTS {
        for (unit, index, parameter) in layout.parameters() {
            let entry = optimizer.entry(&format!("{prefix}{}", parameter.name))?;
            if entry.dtype != Dtype::F32 || entry.shape != parameter.shape {
                let message = format!("{} is {:?} {:?}", entry.name, entry.dtype, entry.shape);
                return Err(TrainError::State { path: dir.into(), message });
            }
            for offset in (0..parameter.len()).step_by(PART) {
                let bytes = &mut bytes[..PART.min(parameter.len() - offset) * 4];
                optimizer.read_at(entry, offset as u64 * 4, bytes)?;
                let values: Vec<f32> =
                    bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
                store.write(Place { unit, parameter: index, array }, offset, &values)?;
            }
        }
    }
    Ok(())
}

/// The state in a training checkpoint.
pub(crate) fn read_state(dir: &Path) -> Result<TrainingState, TrainError> {
    let path = dir.join(STATE);
    let text = fs::read_to_string(&path).map_err(TrainError::file("read", &path))?;
    let state: TrainingState = serde_json::from_str(&text)
        .map_err(|e| TrainError::State { path: path.clone(), message: e.to_string() })?;
    if state.version > TrainingState::VERSION {
        let message = format!("of version {}, which a newer flm wrote", state.version);
        return Err(TrainError::State { path, message });
    }
    Ok(state)
}

/// Name of the training checkpoint of a step.
pub(crate) fn step_dir(output: &Path, step: u64) -> PathBuf {
    output.join(format!("step-{step:08}"))
}

/// The training checkpoints in an output directory, the oldest first.
pub(crate) fn steps(output: &Path) -> Result<Vec<u64>, TrainError> {
    let entries = match fs::read_dir(output) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(TrainError::file("list", output))?,
    };
    let mut steps = Vec::new();
    for entry in entries {
        let name = entry.map_err(TrainError::file("list", output))?.file_name();
        let step = name.to_str().and_then(|n| n.strip_prefix("step-")?.parse::<u64>().ok());
        // a folder of that name without a state is the user's
        steps.extend(step.filter(|&step| step_dir(output, step).join(STATE).is_file()));
    }
    steps.sort_unstable();
    Ok(steps)
}

/// Fails where something stands under the name of a checkpoint that the run is yet to write: told before the
/// work, not after it.
pub(crate) fn require_room(output: &Path, newest: Option<u64>, steps: u64) -> Result<(), TrainError> {
    for entry in fs::read_dir(output).map_err(TrainError::file("list", output))? {
        let path = entry.map_err(TrainError::file("list", output))?.path();
        let step = path.file_name().and_then(|n| n.to_str()?.strip_prefix("step-")?.parse::<u64>().ok());
        let step = step.filter(|&step| step > newest.unwrap_or(0) && step <= steps);
        if step.is_some_and(|step| path == step_dir(output, step)) {
            let message = "it is no checkpoint to go on from, and one would go there: move it away";
            return Err(TrainError::State { path, message: message.into() });
        }
    }
    Ok(())
}

/// The newest training checkpoint, if it is whole.
///
/// # Errors
/// [`TrainError::State`] where it is damaged, with the older one to go on from.
pub(crate) fn newest(output: &Path) -> Result<Option<u64>, TrainError> {
    let mut steps = steps(output)?;
    let Some(newest) = steps.pop() else { return Ok(None) };
    let intact = |step| {
        let dir = step_dir(output, step);
        read_state(&dir)?;
        check(&dir)?;
        Checkpoint::open(&dir)?;
        Ok::<(), TrainError>(Checkpoint::open(&dir.join(OPTIMIZER)).map(drop)?)
    };
    let Err(error) = intact(newest) else { return Ok(Some(newest)) };
    let dir = step_dir(output, newest);
    let advice = match steps.into_iter().rev().find(|&step| intact(step).is_ok()) {
        Some(step) => format!("step-{step:08} is whole: remove {} to go on from it", dir.display()),
        None => "no older checkpoint is whole: choose another output directory".into(),
    };
    Err(TrainError::State { path: dir, message: format!("{error}; {advice}") })
}

/// Removes all training checkpoints but the last `keep` and the best.
pub(crate) fn prune(output: &Path, keep: usize, best: Option<u64>) -> Result<(), TrainError> {
    for entry in fs::read_dir(output).map_err(TrainError::file("list", output))? {
        let path = entry.map_err(TrainError::file("list", output))?.path();
        // left by a process that ended in between; a folder without a state is none of ours
        let step = path.file_name().and_then(|n| n.to_str()?.strip_prefix(".old-")?.parse::<u64>().ok());
        if step.is_some_and(|step| read_state(&path).is_ok_and(|state| state.step == step)) {
            remove_state(&path)?;
        }
    }
    let mut old = steps(output)?;
    old.truncate(old.len().saturating_sub(keep.max(1)));
    for step in old.into_iter().filter(|&step| Some(step) != best) {
        let (dir, doomed) = (step_dir(output, step), output.join(format!(".old-{step:08}")));
        if doomed.exists() {
            // whatever it is, it is not ours
            continue;
        }
        // under its name it is whole until it is gone
        atomic::rename(&dir, &doomed)?;
        remove_state(&doomed)?;
    }
    Ok(())
}

/// Removes a training checkpoint; its state goes last, so that what is left after a crash is still known.
fn remove_state(dir: &Path) -> Result<(), TrainError> {
    for entry in fs::read_dir(dir).map_err(TrainError::file("list", dir))? {
        let entry = entry.map_err(TrainError::file("list", dir))?;
        let path = entry.path();
        if entry.file_name() == STATE {
            continue;
        }
        let is_dir = entry.file_type().map_err(TrainError::file("look at", &path))?.is_dir();
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(TrainError::file("remove", &path))?;
    }
    fs::remove_dir_all(dir).map_err(TrainError::file("remove", dir))
}
