//! A run, from its plan to the trained model:
//!
//! 1. The output directory is this run's, and nobody else works there: `trainer/claim.rs`.
//! 2. Parameters and moments come in, of the newest state or of the model: `state.rs`, `store`.
//! 3. Metrics go on where that state ends: `trainer/metrics.rs`.
//! 4. A step: its rows (`plan`), loss and gradients (`backprop`), limits, rate and update (`optimizer`).
//! 5. Between steps what is due, a validation, a state: `trainer/due.rs`, `state.rs`. Back to 4, until all are made.
//! 6. The trained model is written: `state.rs`.
//!
//! 1 to 3 are [`Trainer::new`], 4 to 6 [`Trainer::run`].

mod claim;
mod due;
mod event;
mod metrics;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use candle_core::{DType, Device};

use crate::backprop::{Backprop, InputPlace};
use crate::data::batch::{MicroBatch, Packed};
use crate::data::pack::Row;
use crate::error::TrainError;
use crate::optimizer::adamw::AdamW;
use crate::optimizer::stochastic_rounding::StochasticRounding;
use crate::options::{Moments, Placement};
use crate::plan::Plan;
use crate::plan::flops::model_operations;
use crate::state;
use crate::state::{Origin, SourceFiles, TrainingState};
use crate::store::disk::DiskStore;
use crate::store::memory::MemoryStore;
use crate::store::{Array, ParameterStore, Place, load_weights};
use crate::trainer::claim::{LOCK, claim, require_dtype, same_run};
use crate::trainer::metrics::Metrics;
use flm_checkpoint::{DirectoryLock, EMBED_TOKENS, peak_memory};

pub use crate::trainer::due::Due;
pub use crate::trainer::event::{Event, Listener, Outcome};
pub use crate::trainer::metrics::StepMetrics;

/// A run: parameters, data, and where it stands.
#[derive(Debug)]
pub struct Trainer {
    plan: Plan,
    store: Box<dyn ParameterStore>,
    backprop: Backprop,
    state: TrainingState,
    resumed: Option<u64>,
    metrics: Metrics,
    source: SourceFiles,
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
        let identity = plan.identity();
        let newest = state::newest(&output)?;
        state::require_room(&output, newest, plan.steps)?;
        let newest = newest.map(|step| (step, state::step_dir(&output, step)));
        claim(&output, newest.is_some(), &identity)?;
        if let Some((_, dir)) = &newest {
            same_run(dir, &state::read_state(dir)?.identity, &identity)?;
        }
        let scratch = &plan.options.memory.work_dir;
        let scratch = if scratch.as_os_str().is_empty() { &output } else { scratch };
        let mut store = store_of(&plan, scratch, device, dtype)?;
        let state = match &newest {
            Some((_, dir)) => state::load(store.as_mut(), dir)?,
            None => {
                load_weights(store.as_mut(), &plan.checkpoint)?;
                let earlier_steps = match plan.options.optimizer.moments {
                    Moments::Zero => 0,
                    Moments::Kept => state::kept_moments(store.as_mut(), &plan.options.model)?,
                };
                TrainingState {
                    version: TrainingState::VERSION,
                    step: 0,
                    best: None,
                    earlier_steps,
                    identity,
                }
            }
        };
        let metrics = match &newest {
            // its states are gone, its work is not
            None if output.join(FINAL).exists() => Metrics::whole(&output),
            newest => Metrics::go_on(&output, state.step, newest.as_ref().map(|(_, dir)| dir.as_path()))?,
        };
        let sweeps = plan.choice.sweeps;
        let mut backprop =
            Backprop::new(&plan.layout, device, dtype, sweeps.recompute).with_sweeps(sweeps, scratch);
        backprop.set_masks(plan.masks.after(state.step));
        let resumed = newest.map(|(step, _)| step);
        let source = SourceFiles::keep(&plan.options.model)?;
        Ok(Self { plan, store, backprop, state, resumed, metrics, source, _lock: lock })
    }

    /// The step that the run goes on from, if it is not a new one.
    pub fn resumed(&self) -> Option<u64> {
        self.resumed
    }

    /// Lines of `metrics.jsonl` that were set aside, in `metrics-undone.jsonl`: of steps after the state that the
    /// run goes on from, which are made again.
    pub fn undone(&self) -> usize {
        self.metrics.undone
    }

    /// What happens after which step.
    pub fn due(&self) -> Due {
        let o = &self.plan.options;
        Due { steps: self.plan.steps, save_every: o.save.every_steps, validate_every: o.train.validate_every }
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
        self.train(stop, on_event).map_err(|error| self.explained(error))
    }

    fn train(&mut self, stop: &AtomicBool, on_event: &mut Listener<'_>) -> Result<Outcome, TrainError> {
        let model = self.plan.options.output.join(FINAL);
        if model.exists() {
            require_dtype(&model, self.plan.save_dtype())?;
            if self.resumed.is_none() {
                // the marker said that this very run made it
                state::check(&model)?;
                let outcome = self.outcome(Losses::default(), model);
                return Ok(Outcome { step: outcome.steps, stopped: false, ..outcome });
            }
        }
        let mut last = Losses::default();
        if self.state.step == 0 && self.plan.steps > 0 {
            last.validation = self.validated(on_event)?;
        }
        while self.state.step < self.plan.steps {
            let metrics = self.step()?;
            last.training = Some(metrics.loss);
            self.metrics.add(&metrics)?;
            on_event(&Event::Step(metrics))?;
            let stopped = stop.load(Ordering::Relaxed);
            self.do_what_is_due(stopped, &mut last, on_event)?;
            if stopped && self.state.step < self.plan.steps {
                return Ok(self.outcome(last, state::step_dir(&self.plan.options.output, self.state.step)));
            }
        }
        if !model.exists() {
            self.export(&model)?;
            on_event(&Event::Saved(model.clone()))?;
        }
        Ok(self.outcome(last, model))
    }

    /// Validates and saves, where it is time for it.
    fn do_what_is_due(
        &mut self,
        stopped: bool,
        last: &mut Losses,
        on_event: &mut Listener<'_>,
    ) -> Result<(), TrainError> {
        let step = self.state.step;
        let due = self.due().after(step, stopped);
        let loss = if due.validate { self.validated(on_event)? } else { None };
        if let Some(loss) = loss {
            last.validation = Some(loss);
            // only what is saved can be the best that is kept
            if due.save && loss.is_finite() && self.state.best.is_none_or(|(_, best)| loss < best) {
                self.state.best = Some((step, loss));
            }
        }
        if due.save {
            on_event(&Event::Saved(self.save()?))?;
        }
        Ok(())
    }

    fn outcome(&self, last: Losses, model: PathBuf) -> Outcome {
        let (step, steps) = (self.state.step, self.plan.steps);
        let Losses { training: loss, validation: validation_loss } = last;
        Outcome { step, steps, stopped: step < steps, loss, validation_loss, model }
    }

    /// The error with what it leaves, and what can be done.
    fn explained(&self, error: TrainError) -> TrainError {
        if error.is_device_memory() {
            return TrainError::DeviceMemory { driver: Box::new(error) };
        }
        if !error.is_disk_full() {
            return error;
        }
        let kept = match state::steps(&self.plan.options.output).ok().and_then(|mut steps| steps.pop()) {
            Some(step) => format!("the checkpoint of step {step} is whole"),
            None => "no checkpoint was made yet".into(),
        };
        TrainError::DiskFull { kept, source: Box::new(error) }
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

    /// Validates, where there are rows for it, and tells everyone.
    fn validated(&mut self, on_event: &mut Listener<'_>) -> Result<Option<f64>, TrainError> {
        if self.plan.dataset.validation.is_empty() {
            return Ok(None);
        }
        let (step, loss) = (self.state.step, self.validate()?);
        self.metrics.add(&serde_json::json!({ "step": step, "validation_loss": loss }))?;
        on_event(&Event::Validation { step, loss })?;
        Ok(Some(loss))
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
            source: &self.source,
            chat_template: self.plan.chat_template.as_deref(),
            identity: &self.state.identity,
            step: self.state.step,
        }
    }

    /// Writes a training checkpoint and removes old ones.
    fn save(&mut self) -> Result<PathBuf, TrainError> {
        let output = self.plan.options.output.clone();
        let dir = state::step_dir(&output, self.state.step);
        let with = Some((&self.state, self.metrics.path()));
        let masks = self.plan.masks.after(self.state.step);
        state::save(self.store.as_ref(), &self.origin(), &dir, None, masks, with)?;
        let save = &self.plan.options.save;
        let best = self.state.best.map(|(step, _)| step).filter(|_| save.keep_best);
        state::prune(&output, save.keep, best)?;
        Ok(dir)
    }

    /// Writes the trained model.
    fn export(&self, model: &Path) -> Result<(), TrainError> {
        let (dtype, masks) = (self.plan.save_dtype(), self.plan.masks.after(self.state.step));
        state::save(self.store.as_ref(), &self.origin(), model, Some(dtype), masks, None)
    }
}

/// The last losses of a call.
#[derive(Debug, Clone, Copy, Default)]
struct Losses {
    training: Option<f64>,
    validation: Option<f64>,
}

/// An empty store, where the plan has it; its files and those of block inputs are in `scratch`.
fn store_of(
    plan: &Plan,
    scratch: &Path,
    device: &Device,
    dtype: DType,
) -> Result<Box<dyn ParameterStore>, TrainError> {
    if plan.choice.sweeps.inputs == InputPlace::Disk {
        fs::create_dir_all(scratch).map_err(TrainError::file("create", scratch))?;
    }
    let store: Box<dyn ParameterStore> = match plan.choice.placement {
        Placement::Disk => {
            let output = &plan.options.output;
            // whoever made the folders that name this output had its lock, and is gone
            DiskStore::sweep(scratch, output)?;
            Box::new(DiskStore::new(&plan.layout, scratch, device, dtype)?.owned_by(output)?)
        }
        placement => Box::new(MemoryStore::new(&plan.layout, device, dtype, placement != Placement::Host)?),
    };
    Ok(store)
}

/// Name of the trained model in the output directory.
const FINAL: &str = "final";

fn micro_batches<'r>(rows: impl Iterator<Item = &'r Row>, size: usize) -> Vec<MicroBatch> {
    let rows: Vec<Packed> = rows.map(|row| row.packed.clone()).collect();
    rows.chunks(size).map(MicroBatch::new).collect()
}
