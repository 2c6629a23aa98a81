//! What a run will do and need, from its options and the checkpoint's headers, before anything is trained.

mod calibration;
pub(crate) mod choose;
pub(crate) mod estimate;
pub(crate) mod flops;
pub(crate) mod machine;
pub(crate) mod shape;

use std::sync::Arc;

use candle_core::{DType, Device};
use serde_json::{Value, json};

use crate::data::encode::Encoder;
use crate::data::{DataStatistics, Dataset};
use crate::error::TrainError;
use crate::mask_ramp::MaskRise;
use crate::optimizer::schedule::Schedule;
use crate::options::{Options, Placement, WeightDtype};
use crate::params::Layout;
use crate::plan::choose::{Considered, Wanted, consider, refusal};
use crate::plan::estimate::{Choice, StepShape};
use crate::plan::flops::model_operations;
use crate::plan::machine::Machine;
use flm_candle::Tokenizer;
use flm_candle::{ChatPolicy, TokenizerError};
use flm_checkpoint::{Checkpoint, Dtype};

/// A run that is about to start: data read, placement chosen, nothing written.
#[derive(Debug)]
pub struct Plan {
    /// What was asked for.
    pub options: Options,
    /// The model to start from.
    pub checkpoint: Arc<Checkpoint>,
    /// Its parameters.
    pub layout: Layout,
    /// How the masks of a model that is still growing rise.
    pub masks: MaskRise,
    /// What it is trained on.
    pub dataset: Dataset,
    /// Tokens of a row.
    pub context: usize,
    /// Updates of the whole run.
    pub steps: u64,
    /// How steps are carried out. It changes no result: a run may go on under another.
    pub choice: Choice,
    /// Every kind of plan that was considered.
    pub considered: Vec<Considered>,
    /// What it was planned for.
    pub machine: Machine,
    /// The source's bytes: see [`flm_checkpoint::content_digest`].
    pub(crate) model_digest: String,
    /// The chat template that the model is trained with, where it is not the source's.
    pub(crate) chat_template: Option<String>,
}

/// What `--dry-run` tells.
#[derive(Debug, serde::Serialize)]
pub struct PlanReport {
    /// Parameters that are trained.
    pub parameters: u64,
    /// Samples, documents, tokens.
    pub data: DataStatistics,
    /// Rows to train on, and to validate on.
    pub rows: usize,
    /// Rows to validate on.
    pub validation_rows: usize,
    /// Bytes of host memory that the rows of both take during the whole run.
    pub data_memory: u64,
    /// The part of all positions that hold a token.
    pub packing_efficiency: f64,
    /// Tokens of a row.
    pub context: usize,
    /// Updates of one pass over the data, and of the run.
    pub steps_per_epoch: u64,
    /// Updates of the run.
    pub steps: u64,
    /// Tokens of the run.
    pub tokens: u64,
    /// Floating-point operations of the run; see [`super::model_operations`].
    pub operations: f64,
    /// Time of the run's arithmetic, where it was measured or its rate given.
    pub seconds: Option<f64>,
    /// The host memory to stay within.
    pub budget: u64,
    /// The machine that was planned for.
    pub machine: Machine,
    /// Where parameters are kept.
    pub placement: Placement,
    /// Whether blocks run again in the backward pass.
    pub recompute: bool,
    /// Rows of a sweep.
    pub sweep_rows: usize,
    /// What bounds a step.
    pub bound: &'static str,
    /// Every kind of plan, with what is missing where it does not fit.
    pub plans: Vec<Considered>,
    /// Space that checkpoints take at most.
    pub checkpoint_disk: u64,
}

impl Plan {
    /// Reads the model's headers, the tokenizer and the data, and plans for this machine's CPU.
    ///
    /// # Errors
    /// [`TrainError::DoesNotFit`] where no plan is within the budget.
    pub fn new(options: Options) -> Result<Self, TrainError> {
        Self::for_device(options, &Device::Cpu, DType::F32)
    }

    /// The same, for arithmetic in `dtype` on `device`.
    pub fn for_device(options: Options, device: &Device, dtype: DType) -> Result<Self, TrainError> {
        options.check()?;
        let machine = Machine::of(&options, device, dtype)?;
        let checkpoint = Arc::new(Checkpoint::open(&options.model)?);
        checkpoint.require_outside(&options.output)?;
        // a run of days begins with weights that are what they were
        if !options.no_source_digests {
            checkpoint.verify_digests(None)?;
        }
        let masks = MaskRise::new(&checkpoint)?;
        checkpoint.check()?;
        let mut tokenizer = Tokenizer::from_dir(&options.model)?;
        // otherwise as the folder says
        if !options.data.parse_special {
            tokenizer.set_parse_special(false);
        }
        let config = checkpoint.config();
        let mut chat_template = None;
        let mut template = None;
        if let Some(path) = &options.data.chat_template {
            let source = std::fs::read_to_string(path).map_err(TrainError::file("read", path))?;
            template = Some(tokenizer.compile_template(&source)?);
            chat_template = Some(source);
        }
        let policy = match ChatPolicy::new(&tokenizer, template, &config.eos_token_ids) {
            Ok(policy) => Some(policy),
            // a base model learns texts
            Err(TokenizerError::NoTemplate { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let eos = tokenizer.eos_id().or(config.eos_token_ids.first().copied());
        let close = eos.filter(|_| options.data.close_turns);
        let policy = match (policy, close) {
            (Some(policy), Some(eos)) => {
                let own = policy.template().source().to_owned();
                let closed = policy.with_closed_answers(&tokenizer, eos)?;
                if closed.template().source() != own {
                    // what the model is prompted with later
                    chat_template = Some(closed.template().source().to_owned());
                }
                Some(closed)
            }
            (policy, _) => policy,
        };
        let encoder = Encoder::new(&tokenizer, policy, close);
        let data = options.data_options(config.context_length());
        if data.context > config.context_length() {
            return Err(TrainError::Setting(format!(
                "data.context_length is {}, the model's context is {}",
                data.context,
                config.context_length()
            )));
        }
        let dataset = Dataset::load(&data, &encoder)?;
        let layout = match options.optimizer.weights {
            WeightDtype::F32 => Layout::new(config),
            WeightDtype::Bf16 => Layout::new(config).with_bf16_weights(),
        };
        if let Some(id) = dataset
            .rows
            .iter()
            .chain(&dataset.validation)
            .flat_map(|row| &row.packed.ids)
            .find(|&&id| id as usize >= config.vocab_size)
        {
            return Err(flm_candle::ModelError::TokenId { id: *id, rows: config.vocab_size }.into());
        }
        let shape = StepShape {
            rows: options.train.batch_size.min(dataset.rows.len()),
            micro_rows: options.train.micro_batch_size,
            context: data.context.min(dataset.rows.iter().map(|r| r.packed.len()).max().unwrap_or(0)),
        };
        let wanted = Wanted::of(&options)?;
        let considered = consider(&layout, &machine, shape, dataset.memory(), wanted);
        let Some(choice) = considered.iter().find(|plan| plan.chosen).map(|plan| plan.choice) else {
            return Err(TrainError::DoesNotFit { table: refusal(&considered) });
        };
        let per_epoch = dataset.rows.len().div_ceil(options.train.batch_size) as u64;
        let steps = (per_epoch * options.train.epochs).min(options.train.max_steps.unwrap_or(u64::MAX));
        let context = shape.context;
        let model_digest = flm_checkpoint::content_digest(&checkpoint)?;
        Ok(Self {
            options,
            checkpoint,
            layout,
            masks,
            dataset,
            context,
            steps,
            choice,
            considered,
            machine,
            model_digest,
            chat_template,
        })
    }

    /// Dtype of the trained model: the source's, unless another is asked for.
    pub fn save_dtype(&self) -> Dtype {
        let source =
            self.layout.parameters().next().and_then(|(_, _, p)| self.checkpoint.entry(&p.name).ok());
        self.options.save.dtype.fixed().or(source.map(|e| e.dtype)).unwrap_or(Dtype::F32)
    }

    /// Updates of one pass over the data.
    pub fn steps_per_epoch(&self) -> u64 {
        self.dataset.rows.len().div_ceil(self.options.train.batch_size) as u64
    }

    /// The learning rate of step `step` of the run, counted from 0.
    pub fn learning_rate(&self, step: u64) -> f64 {
        let o = &self.options.optimizer;
        let schedule = Schedule {
            peak: o.learning_rate,
            last: o.final_learning_rate,
            warmup: o.warmup_steps,
            steps: self.steps + o.rewind_step,
            decay: o.schedule,
        };
        schedule.rate(step + o.rewind_step)
    }

    /// The rows of a step, counted from 0, the longest first.
    pub fn rows_of_step(&self, step: u64) -> Vec<usize> {
        let (epoch, index) = (step / self.steps_per_epoch(), (step % self.steps_per_epoch()) as usize);
        let order = self.dataset.order(self.options.train.seed, epoch);
        let size = self.options.train.batch_size;
        let mut rows = order[index * size..((index + 1) * size).min(order.len())].to_vec();
        // rows of like length share a micro-batch
        rows.sort_by_key(|&row| std::cmp::Reverse(self.dataset.rows[row].packed.len()));
        rows
    }

    /// What must be the same for a run to go on where another stopped.
    pub fn identity(&self) -> Value {
        let (t, o) = (&self.options.train, &self.options.optimizer);
        json!({
            "data_digest": self.dataset.digest,
            "batch_size": t.batch_size,
            "micro_batch_size": t.micro_batch_size,
            "seed": t.seed,
            "steps": self.steps,
            "optimizer": o,
            "parameters": self.layout.len(),
            "growth": self.checkpoint.config().growth,
            "model": self.model_digest,
            "chat_template": self.chat_template.as_deref().map(|text| blake3::hash(text.as_bytes()).to_hex().to_string()),
            "validation": self.dataset.validation_digest,
        })
    }

    /// Floating-point operations of a pass over the data; see [`model_operations`].
    pub fn operations_per_epoch(&self) -> f64 {
        model_operations(self.layout.config(), self.dataset.rows.iter().map(|row| &row.packed))
    }

    /// What a person should know before the run, a line each: what of the data is not learned, and
    /// which of two limits ends it.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.dataset.statistics.notes();
        let validation = self.dataset.validation_statistics.notes();
        notes.extend(validation.into_iter().map(|note| format!("validation: {note}")));
        let train = &self.options.train;
        let all = self.steps_per_epoch() * train.epochs;
        if let Some(max) = train.max_steps.filter(|&max| max > all) {
            notes.push(format!(
                "train.epochs = {} ends the run at step {all}, before train.max_steps = {max}",
                train.epochs
            ));
        }
        notes
    }

    /// What the run will be, for `--dry-run`.
    pub fn report(&self) -> PlanReport {
        let chosen = self.considered.iter().find(|plan| plan.chosen);
        let parameters = self.layout.len() as u64;
        let row_tokens: u64 = self.dataset.rows.iter().map(|row| row.packed.len() as u64).sum();
        let tokens = row_tokens * self.steps / self.steps_per_epoch().max(1);
        let epochs = self.steps as f64 / self.steps_per_epoch().max(1) as f64;
        let save = &self.options.save;
        let checkpoints = save.keep.max(1) as u64 + 1 + u64::from(save.keep_best);
        PlanReport {
            parameters,
            data: self.dataset.statistics.clone(),
            rows: self.dataset.rows.len(),
            validation_rows: self.dataset.validation.len(),
            data_memory: self.dataset.memory(),
            packing_efficiency: self.dataset.packing_efficiency(self.context),
            context: self.context,
            steps_per_epoch: self.steps_per_epoch(),
            steps: self.steps,
            tokens,
            operations: self.operations_per_epoch() * epochs,
            seconds: None,
            budget: self.machine.memory,
            machine: self.machine,
            placement: self.choice.placement,
            recompute: self.choice.sweeps.recompute,
            sweep_rows: chosen.map_or(0, |plan| plan.sweep_rows),
            bound: chosen.map_or("arithmetic", |plan| plan.estimate.seconds.bound()),
            plans: self.considered.clone(),
            checkpoint_disk: checkpoints * (self.layout.weight_bytes() + parameters * 8) + parameters * 4,
        }
    }
}
