//! A run: steps, validation, checkpoints, and going on from them.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backprop::{Backprop, InputPlace};
use crate::data::batch::{MicroBatch, Packed};
use crate::data::pack::Row;
use crate::error::TrainError;
use crate::optimizer::adamw::AdamW;
use crate::optimizer::stochastic_rounding::StochasticRounding;
use crate::options::{Moments, OptimizerSettings, Placement};
use crate::plan::Plan;
use crate::plan::flops::model_operations;
use crate::state;
use crate::state::{Origin, TrainingState};
use crate::store::disk::DiskStore;
use crate::store::memory::MemoryStore;
use crate::store::{Array, ParameterStore, Place, load_weights};
use flm_checkpoint::{Checkpoint, DirectoryLock, EMBED_TOKENS, peak_memory};

/// A line of `metrics.jsonl`.
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
    /// where that rate is known; see [`super::model_operations`].
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

/// Something that happened while training.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A step was made.
    Step(StepMetrics),
    /// The model was validated after `step` updates.
    Validation {
        /// Updates made.
        step: u64,
        /// Mean negative log-likelihood of the validation targets.
        loss: f64,
    },
    /// A checkpoint was written.
    Saved(PathBuf),
}

/// Hears what happens in a run; an error that it returns ends the run.
pub type Listener<'l> = dyn FnMut(&Event) -> Result<(), TrainError> + 'l;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Updates made, those before a resume included.
    pub step: u64,
    /// Updates of the whole run.
    pub steps: u64,
    /// Whether it was stopped before the last.
    pub stopped: bool,
    /// The last step's loss.
    pub loss: Option<f64>,
    /// The last validation.
    pub validation_loss: Option<f64>,
    /// The trained model, or the checkpoint to go on from.
    pub model: PathBuf,
}

/// A run: parameters, data, and where it stands.
#[derive(Debug)]
pub struct Trainer {
    plan: Plan,
    store: Box<dyn ParameterStore>,
    backprop: Backprop,
    state: TrainingState,
    resumed: Option<u64>,
    metrics: PathBuf,
    /// Nobody else works in the output directory meanwhile.
    _lock: DirectoryLock,
}

impl Trainer {
    /// Brings the parameters in: those of the newest training checkpoint in the output directory, or the
    /// model's.
    ///
    /// # Errors
    /// [`TrainError::State`] where the output directory holds another run (another model, other data or
    /// settings) or files of no run, or where the newest checkpoint is damaged; nothing is changed then.
    pub fn new(plan: Plan, device: &Device, dtype: DType) -> Result<Self, TrainError> {
        if device.is_cpu() && dtype != DType::F32 {
            return Err(TrainError::Setting("training on a CPU computes in f32".into()));
        }
        let output = plan.options.output.clone();
        let lock = DirectoryLock::take(&output, LOCK)?;
        let (identity, metrics) = (plan.identity(), output.join("metrics.jsonl"));
        let newest = state::newest(&output)?;
        claim(&output, newest.is_some(), &identity)?;
        if let Some(step) = newest {
            let dir = state::step_dir(&output, step);
            same_run(&dir, &state::read_state(&dir)?.identity, &identity)?;
        }
        let layout = &plan.layout;
        let parent = &plan.options.memory.work_dir;
        let parent = if parent.as_os_str().is_empty() { &output } else { parent };
        if plan.choice.sweeps.inputs == InputPlace::Disk {
            fs::create_dir_all(parent).map_err(TrainError::file("create", parent))?;
        }
        let mut store: Box<dyn ParameterStore> = match plan.choice.placement {
            Placement::Disk => {
                // whoever made the folders that name this output had its lock, and is gone
                DiskStore::sweep(parent, &output)?;
                Box::new(DiskStore::new(layout, parent, device, dtype)?.owned_by(&output)?)
            }
            placement => Box::new(MemoryStore::new(layout, device, dtype, placement != Placement::Host)?),
        };
        let (state, resumed) = match newest {
            Some(step) => (state::load(store.as_mut(), &state::step_dir(&output, step))?, Some(step)),
            None => {
                load_weights(store.as_mut(), &plan.checkpoint)?;
                let earlier_steps = match plan.options.optimizer.moments {
                    Moments::Zero => 0,
                    Moments::Kept => state::kept_moments(store.as_mut(), &plan.options.model)?,
                };
                (TrainingState { step: 0, best: None, earlier_steps, identity }, None)
            }
        };
        cut_metrics(&metrics, state.step)?;
        let sweeps = plan.choice.sweeps;
        let mut backprop = Backprop::new(layout, device, dtype, sweeps.recompute).with_sweeps(sweeps, parent);
        backprop.set_masks(plan.masks.after(state.step));
        Ok(Self { plan, store, backprop, state, resumed, metrics, _lock: lock })
    }

    /// The step that the run goes on from, if it is not a new one.
    pub fn resumed(&self) -> Option<u64> {
        self.resumed
    }

    /// The plan that the run follows.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Trains to the end, or until `stop` is set: then the state is saved after the step in work.
    /// `on_event` hears what happens, after it is in `metrics.jsonl` and the states.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] before the update that would have used such a gradient; the training
    /// checkpoints stay. [`TrainError::DiskFull`] where one could not be written: those before it stay.
    pub fn run(&mut self, stop: &AtomicBool, on_event: &mut Listener<'_>) -> Result<Outcome, TrainError> {
        self.train(stop, on_event).map_err(|error| {
            if error.is_device_memory() {
                return TrainError::DeviceMemory { source: Box::new(error) };
            }
            if !error.is_disk_full() {
                return error;
            }
            let kept = match state::steps(&self.plan.options.output).ok().and_then(|mut steps| steps.pop()) {
                Some(step) => format!("the checkpoint of step {step} is whole"),
                None => "no checkpoint was made yet".into(),
            };
            TrainError::DiskFull { kept, source: Box::new(error) }
        })
    }

    fn train(&mut self, stop: &AtomicBool, on_event: &mut Listener<'_>) -> Result<Outcome, TrainError> {
        let (steps, save) = (self.plan.steps, self.plan.options.save.clone());
        let every = |n: u64, step: u64| n > 0 && step.is_multiple_of(n);
        let model = self.plan.options.output.join("final");
        if model.exists() {
            require_dtype(&model, self.plan.save_dtype())?;
        }
        if self.resumed.is_none() && model.exists() {
            // the marker said that this very run made it; its checkpoints are gone, their work is not
            state::check(&model)?;
            let (loss, validation_loss) = (None, None);
            return Ok(Outcome { step: steps, steps, stopped: false, loss, validation_loss, model });
        }
        let (mut loss, mut validation) = (None, None);
        if self.state.step == 0 && steps > 0 && !self.plan.dataset.validation.is_empty() {
            validation = Some(self.validated(on_event)?);
        }
        while self.state.step < steps {
            let metrics = self.step()?;
            loss = Some(metrics.loss);
            self.log(&metrics)?;
            on_event(&Event::Step(metrics))?;
            let step = self.state.step;
            let stopped = stop.load(Ordering::Relaxed);
            let saving = stopped || step == steps || every(save.every_steps, step);
            let validating = !stopped && saving || every(self.plan.options.train.validate_every, step);
            if validating && !self.plan.dataset.validation.is_empty() {
                let value = self.validated(on_event)?;
                validation = Some(value);
                if saving && value.is_finite() && self.state.best.is_none_or(|(_, best)| value < best) {
                    self.state.best = Some((step, value));
                }
            }
            if saving {
                on_event(&Event::Saved(self.save()?))?;
            }
            if stopped && step < steps {
                let model = state::step_dir(&self.plan.options.output, step);
                return Ok(Outcome { step, steps, stopped, loss, validation_loss: validation, model });
            }
        }
        if !model.exists() {
            let dtype = self.plan.save_dtype();
            let masks = self.plan.masks.after(self.state.step);
            state::save(self.store.as_ref(), &self.origin(), &model, Some(dtype), masks, None)?;
            on_event(&Event::Saved(model.clone()))?;
        }
        let step = self.state.step;
        Ok(Outcome { step, steps, stopped: false, loss, validation_loss: validation, model })
    }

    /// One update.
    fn step(&mut self) -> Result<StepMetrics, TrainError> {
        let (start, index) = (Instant::now(), self.state.step);
        let rows = self.plan.rows_of_step(index);
        let mask = self.plan.masks.value(index);
        let batches = micro_batches(
            rows.iter().map(|&row| &self.plan.dataset.rows[row]),
            self.plan.options.train.micro_batch_size,
        );
        let got = self.backprop.run(self.store.as_mut(), &batches)?;
        if got.targets == 0 {
            return Err(TrainError::NoTargets(index + 1));
        }
        for (what, value) in [("loss", got.loss), ("gradient norm", got.gradient_norm)] {
            if !value.is_finite() {
                let batch = self.plan.dataset.describe(&rows);
                let zero_tokens = self.zero_tokens(&rows)?;
                return Err(TrainError::NotFinite { what, step: index + 1, value, batch, zero_tokens });
            }
        }
        let learning_rate = self.plan.learning_rate(index);
        let clip = Some(self.plan.options.optimizer.clip_norm).filter(|&norm| norm > 0.0);
        let scales = self.plan.options.optimizer.clip.coefficients(got.gradient_norm, &got.unit_norms, clip);
        let update = self.state.earlier_steps + index + 1;
        let rounding = StochasticRounding::new(self.plan.options.train.seed, index);
        let adamw = AdamW::new(self.plan.options.adamw(), update, learning_rate, 1.0).with_rounding(rounding);
        self.store.update(&mut |parameter, slices| {
            adamw.with_scale(scales[slices.unit]).apply(parameter, slices);
        })?;
        self.state.step = index + 1;
        self.backprop.set_masks(self.plan.masks.after(self.state.step));
        let seconds = start.elapsed().as_secs_f64();
        let packed = rows.iter().map(|&row| &self.plan.dataset.rows[row].packed);
        let rate = model_operations(self.plan.layout.config(), packed) / seconds;
        Ok(StepMetrics {
            step: index + 1,
            epoch: index / self.plan.steps_per_epoch() + 1,
            loss: got.loss,
            learning_rate,
            gradient_norm: got.gradient_norm,
            tokens: got.tokens,
            targets: got.targets,
            utilisation: self.plan.options.train.peak_flops.map(|peak| rate / peak),
            mask,
            seconds,
            peak_memory: peak_memory(),
        })
    }

    /// Tokens of these rows whose row of the embedding is zero.
    fn zero_tokens(&self, rows: &[usize]) -> Result<Vec<u32>, TrainError> {
        let layout = self.store.layout();
        let Some((unit, parameter, embedding)) = layout.parameters().find(|(.., p)| p.name == EMBED_TOKENS)
        else {
            return Ok(Vec::new());
        };
        let place = Place { unit, parameter, array: Array::Weights };
        let ids: BTreeSet<u32> =
            rows.iter().flat_map(|&row| self.plan.dataset.rows[row].packed.ids.iter().copied()).collect();
        let mut values = vec![0f32; embedding.shape.last().copied().unwrap_or(0)];
        let mut zero = Vec::new();
        for id in ids {
            self.store.read(place, id as usize * values.len(), &mut values)?;
            if values.iter().all(|&value| value == 0.0) {
                zero.push(id);
            }
        }
        Ok(zero)
    }

    /// Validates, and tells everyone.
    fn validated(&mut self, on_event: &mut Listener<'_>) -> Result<f64, TrainError> {
        let (step, loss) = (self.state.step, self.validate()?);
        self.log(&serde_json::json!({ "step": step, "validation_loss": loss }))?;
        on_event(&Event::Validation { step, loss })?;
        Ok(loss)
    }

    /// Mean loss over the validation rows.
    pub fn validate(&mut self) -> Result<f64, TrainError> {
        let train = &self.plan.options.train;
        let (mut sum, mut targets) = (0.0, 0);
        for rows in self.plan.dataset.validation.chunks(train.batch_size.max(1)) {
            let batches = micro_batches(rows.iter(), train.micro_batch_size);
            sum += self.backprop.loss(self.store.as_mut(), &batches)?;
            targets += batches.iter().map(MicroBatch::targets).sum::<usize>();
        }
        Ok(sum / targets.max(1) as f64)
    }

    /// What the provenance of a checkpoint tells.
    fn origin(&self) -> Origin<'_> {
        Origin {
            source: &self.plan.options.model,
            chat_template: self.plan.chat_template.as_deref(),
            identity: &self.state.identity,
            step: self.state.step,
        }
    }

    /// Writes a training checkpoint and removes old ones.
    fn save(&mut self) -> Result<PathBuf, TrainError> {
        let output = self.plan.options.output.clone();
        let dir = state::step_dir(&output, self.state.step);
        let with = Some((&self.state, self.metrics.as_path()));
        let masks = self.plan.masks.after(self.state.step);
        state::save(self.store.as_ref(), &self.origin(), &dir, None, masks, with)?;
        let save = &self.plan.options.save;
        let best = self.state.best.map(|(step, _)| step).filter(|_| save.keep_best);
        state::prune(&output, save.keep, best)?;
        Ok(dir)
    }

    fn log(&self, line: &impl Serialize) -> Result<(), TrainError> {
        let text = serde_json::to_string(line).unwrap_or_default();
        let file = OpenOptions::new().create(true).append(true).open(&self.metrics);
        let written = file.and_then(|mut file| file.write_all(format!("{text}\n").as_bytes()));
        written.map_err(TrainError::file("write", &self.metrics))
    }
}

fn micro_batches<'r>(rows: impl Iterator<Item = &'r Row>, size: usize) -> Vec<MicroBatch> {
    let rows: Vec<Packed> = rows.map(|row| row.packed.clone()).collect();
    rows.chunks(size).map(MicroBatch::new).collect()
}

/// Held locked in the output directory while a run works there.
const LOCK: &str = ".flm-sft.lock";
/// Says which run an output directory belongs to.
const MARKER: &str = "run.json";
/// What a run and who draws it write into its output directory besides checkpoints.
const OUTPUTS: [&str; 3] = ["final", "metrics.jsonl", "report.html"];

/// Makes the output directory this run's, or fails where it is another's.
///
/// Runs of versions without a marker are told by their checkpoints, `begun`.
fn claim(output: &Path, begun: bool, identity: &Value) -> Result<(), TrainError> {
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
    Ok(flm_checkpoint::atomic::replace(&path, format!("{marker:#}\n").as_bytes())?)
}

/// Fails where the trained model that is there holds another dtype than is asked for.
fn require_dtype(model: &Path, asked: flm_checkpoint::Dtype) -> Result<(), TrainError> {
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
fn same_run(dir: &Path, saved: &Value, ours: &Value) -> Result<(), TrainError> {
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

/// Removes the lines of steps that a resumed run will make again.
fn cut_metrics(path: &Path, step: u64) -> Result<(), TrainError> {
    let text = match fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        text => text.map_err(TrainError::file("read", path))?,
    };
    let of_line = |line: &str| {
        let value: Option<Value> = serde_json::from_str(line).ok();
        value.and_then(|v| v.get("step")?.as_u64())
    };
    let kept = text.lines().filter(|line| of_line(line).is_some_and(|s| s <= step && step > 0));
    let kept: String = kept.map(|line| format!("{line}\n")).collect();
    if kept == text {
        return Ok(());
    }
    Ok(flm_checkpoint::atomic::replace(path, kept.as_bytes())?)
}
