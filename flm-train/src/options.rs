//! Everything that a training run is told, typed: sections, defaults, and what the types alone do not refuse.
//!
//! Names are those of a recipe's keys (`options.train.batch_size`), and so are they in messages; where they come
//! from, a file or a command line, is not this crate's business.

use std::collections::BTreeMap;
use std::path::PathBuf;

use flm_checkpoint::Dtype;
use serde::{Deserialize, Serialize};

use crate::data::DataOptions;
use crate::data::encode::{OnUnrendered, Truncation};
use crate::error::TrainError;
use crate::optimizer::adamw::AdamWOptions;
use crate::optimizer::clip::Clip;
use crate::optimizer::schedule::Decay;
use crate::params::Multipliers;

/// Everything that a training run is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Checkpoint directory to start from.
    pub model: PathBuf,
    /// Directory for checkpoints, metrics and the trained model.
    pub output: PathBuf,
    /// Data.
    pub data: DataSettings,
    /// Length and batches.
    #[serde(default)]
    pub train: TrainSettings,
    /// AdamW and its schedule.
    #[serde(default)]
    pub optimizer: OptimizerSettings,
    /// Where things are kept.
    #[serde(default)]
    pub memory: MemorySettings,
    /// Checkpoints.
    #[serde(default)]
    pub save: SaveSettings,
    /// Do not compare the model with its own digests first; a matter of the call, not of the run.
    #[serde(skip)]
    pub no_source_digests: bool,
}

/// What is trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataSettings {
    /// JSONL or .txt files.
    pub files: Vec<PathBuf>,
    /// Files to validate on.
    #[serde(default)]
    pub validation_files: Vec<PathBuf>,
    /// Share of the documents to validate on, where there are no files for it.
    #[serde(default)]
    pub validation: f64,
    /// Tokens of a row; the model's own context where it is not given.
    #[serde(default)]
    pub context_length: Option<usize>,
    /// Several documents a row.
    #[serde(default = "yes")]
    pub packing: bool,
    /// What happens to longer samples.
    #[serde(default)]
    pub truncation: Truncation,
    /// What happens to samples of which the chat template does not render a part, such as tool calls.
    #[serde(default)]
    pub unrendered: OnUnrendered,
    /// Under which key of the files a known key stands: `prompt = "q"`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, String>,
    /// Whether an assistant turn ends in the end-of-text token.
    #[serde(default = "yes")]
    pub close_turns: bool,
    /// A file with a chat template, instead of the tokenizer's own.
    #[serde(default)]
    pub chat_template: Option<PathBuf>,
    /// Whether names of special tokens in plain texts (`<|im_end|>`) are those tokens, as in transformers.
    #[serde(default = "yes")]
    pub parse_special: bool,
}

fn yes() -> bool {
    true
}

/// How long and in which batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainSettings {
    /// Passes over the data.
    pub epochs: u64,
    /// Stop after this many steps.
    pub max_steps: Option<u64>,
    /// Rows of a step.
    pub batch_size: usize,
    /// Rows that run together.
    pub micro_batch_size: usize,
    /// Seed of the data's order.
    pub seed: u64,
    /// Validate every so many steps (0: only with checkpoints and at the end).
    pub validate_every: u64,
    /// The device's peak rate in floating-point operations a second, where it is known.
    pub peak_flops: Option<f64>,
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            epochs: 4,
            max_steps: None,
            batch_size: 32,
            micro_batch_size: 1,
            seed: 0,
            validate_every: 0,
            peak_flops: None,
        }
    }
}

/// Settings of AdamW and of the learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OptimizerSettings {
    /// The highest learning rate.
    pub learning_rate: f64,
    /// The last step's.
    pub final_learning_rate: f64,
    /// `linear`, `cosine` or `constant`.
    pub schedule: Decay,
    /// Steps of rising rate.
    pub warmup_steps: u64,
    /// The step of the schedule at which the run begins.
    pub rewind_step: u64,
    /// The moments that the run begins with.
    pub moments: Moments,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled, on matrices only.
    pub weight_decay: f64,
    /// Largest norm of the gradient; 0 is no limit.
    pub clip_norm: f64,
    /// What that norm is taken over.
    pub clip: Clip,
    /// What matrices are stored in.
    pub weights: WeightDtype,
    /// Factors on the learning rate.
    pub multipliers: Multipliers,
}

impl Default for OptimizerSettings {
    fn default() -> Self {
        let adamw = AdamWOptions::default();
        Self {
            learning_rate: 2.7e-5,
            final_learning_rate: 1e-9,
            schedule: Decay::Linear,
            warmup_steps: 0,
            rewind_step: 0,
            moments: Moments::Zero,
            beta1: adamw.beta1,
            beta2: adamw.beta2,
            eps: adamw.eps,
            weight_decay: 0.0,
            clip_norm: 1.0,
            clip: Clip::Global,
            weights: WeightDtype::F32,
            multipliers: Multipliers::default(),
        }
    }
}

/// What the weights of matrices are stored in from step to step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightDtype {
    /// f32 master weights.
    #[default]
    F32,
    /// bf16, rounded stochastically; two bytes a parameter less.
    Bf16,
}

/// The moments that a run begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Moments {
    /// 0.
    #[default]
    Zero,
    /// Those beside the model, in `optimizer/`; the count of updates goes on as well.
    Kept,
}

/// Where parameters, gradients and optimizer state are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// The fastest that fits the budget.
    #[default]
    Auto,
    /// In memory, weights also on the device.
    Resident,
    /// In host memory; weights go to the device for each use.
    Host,
    /// In files.
    Disk,
}

/// Whether block inputs or whole graphs are kept for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Graphs where they fit the budget.
    #[default]
    Auto,
    /// Block inputs: each block runs again in the backward pass.
    Always,
    /// Graphs: more memory, a quarter less arithmetic.
    Never,
}

/// Where block inputs wait for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Inputs {
    /// As the plan finds best.
    #[default]
    Auto,
    /// On the device that computes.
    Device,
    /// In host memory.
    Host,
    /// In a file.
    Disk,
}

/// Where things are kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemorySettings {
    /// Where parameters, gradients and optimizer state are.
    pub placement: Placement,
    /// Bytes of host memory to stay within [default: what the machine has free].
    pub budget: Option<u64>,
    /// The same of the GPU's memory.
    pub device_budget: Option<u64>,
    /// Whether blocks run again in the backward pass.
    pub recompute: Recompute,
    /// Rows that go over the layers together; 0 is as the plan finds best.
    pub sweep_rows: usize,
    /// Where block inputs wait for the backward pass.
    pub inputs: Inputs,
    /// Folder for the files of `placement = "disk"`; in the output directory where it is empty.
    pub work_dir: PathBuf,
}

/// Checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SaveSettings {
    /// Save every so many steps; 0 is only at the end.
    pub every_steps: u64,
    /// Training checkpoints to keep.
    pub keep: usize,
    /// Keep the one with the lowest validation loss as well.
    pub keep_best: bool,
    /// Dtype of the trained model.
    pub dtype: SaveDtype,
}

impl Default for SaveSettings {
    fn default() -> Self {
        Self { every_steps: 0, keep: 2, keep_best: true, dtype: SaveDtype::Source }
    }
}

/// What the trained model is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SaveDtype {
    /// The source's dtype.
    #[default]
    Source,
    /// f32.
    F32,
    /// bf16.
    Bf16,
    /// f16.
    F16,
}

impl SaveDtype {
    /// The dtype, `None` for the source's.
    pub(crate) fn fixed(self) -> Option<Dtype> {
        match self {
            Self::Source => None,
            Self::F32 => Some(Dtype::F32),
            Self::Bf16 => Some(Dtype::BF16),
            Self::F16 => Some(Dtype::F16),
        }
    }
}

impl Options {
    /// A run of all defaults: 4 epochs of 32 rows a step, as long as the model's context.
    pub fn new(model: impl Into<PathBuf>, output: impl Into<PathBuf>, files: Vec<PathBuf>) -> Self {
        let data = DataSettings {
            files,
            validation_files: Vec::new(),
            validation: 0.0,
            context_length: None,
            packing: true,
            truncation: Truncation::default(),
            unrendered: OnUnrendered::default(),
            columns: BTreeMap::new(),
            close_turns: true,
            chat_template: None,
            parse_special: true,
        };
        Self {
            model: model.into(),
            output: output.into(),
            data,
            train: TrainSettings::default(),
            optimizer: OptimizerSettings::default(),
            memory: MemorySettings::default(),
            save: SaveSettings::default(),
            no_source_digests: false,
        }
    }

    /// Refuses what the types do not.
    ///
    /// # Errors
    /// [`TrainError::Setting`], with the key and what is expected.
    pub fn check(&self) -> Result<(), TrainError> {
        let wrong = |text: String| Err(TrainError::Setting(text));
        let positive = |key: &str, value: f64, zero: bool| {
            let least = if zero { "≥ 0" } else { "> 0" };
            match value.is_finite() && (value > 0.0 || zero && value == 0.0) {
                true => Ok(()),
                false => Err(TrainError::Setting(format!("{key} is {value}, expected a number {least}"))),
            }
        };
        let o = &self.optimizer;
        positive("optimizer.learning_rate", o.learning_rate, false)?;
        positive("optimizer.final_learning_rate", o.final_learning_rate, true)?;
        positive("optimizer.eps", o.eps, false)?;
        positive("optimizer.weight_decay", o.weight_decay, true)?;
        positive("optimizer.clip_norm", o.clip_norm, true)?;
        for (key, factor) in [
            ("embedding", o.multipliers.embedding),
            ("matrix", o.multipliers.matrix),
            ("norm", o.multipliers.norm),
            ("head", o.multipliers.head),
        ] {
            positive(&format!("optimizer.multipliers.{key}"), factor, true)?;
        }
        for (key, beta) in [("beta1", o.beta1), ("beta2", o.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return wrong(format!("optimizer.{key} is {beta}, expected a number in [0, 1)"));
            }
        }
        if self.data.files.is_empty() {
            return wrong("data.files is empty: name at least one file".into());
        }
        if !(0.0..1.0).contains(&self.data.validation) {
            return wrong(format!("data.validation is {}, expected a share in [0, 1)", self.data.validation));
        }
        if self.data.context_length.is_some_and(|n| n < 2) {
            return wrong("data.context_length must be at least 2".into());
        }
        let t = &self.train;
        for (key, n) in [("batch_size", t.batch_size), ("micro_batch_size", t.micro_batch_size)] {
            if n == 0 {
                return wrong(format!("train.{key} must be at least 1"));
            }
        }
        if t.epochs == 0 || t.max_steps == Some(0) {
            return wrong("train.epochs and train.max_steps must be at least 1".into());
        }
        self.train.peak_flops.map_or(Ok(()), |rate| positive("train.peak_flops", rate, false))
    }

    /// How data becomes rows of at most `context` tokens.
    pub fn data_options(&self, context: usize) -> DataOptions {
        DataOptions {
            files: self.data.files.clone(),
            validation_files: self.data.validation_files.clone(),
            validation: self.data.validation,
            context: self.data.context_length.unwrap_or(context),
            truncation: self.data.truncation,
            unrendered: self.data.unrendered,
            columns: self.data.columns.clone(),
            packing: self.data.packing,
            seed: self.train.seed,
        }
    }

    /// The constants of the update.
    pub fn adamw(&self) -> AdamWOptions {
        let o = &self.optimizer;
        AdamWOptions {
            beta1: o.beta1,
            beta2: o.beta2,
            eps: o.eps,
            weight_decay: o.weight_decay,
            multipliers: o.multipliers,
        }
    }
}
