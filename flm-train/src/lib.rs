//! Full-parameter training: supervised fine-tuning and pre-training.
//!
//! A step runs layer by layer: the forward pass keeps only each block's input, the backward pass runs
//! one block again at a time and moves its gradients out. Over micro-batches the order is layer-major
//! too: a block's weights are brought in once per pass and serve every micro-batch.
//!
//! - [`Layout`]: the units of parameters that are brought in, used and written back together
//! - `store`: where parameters, gradients and optimizer state live; every tier gives the same numbers
//! - [`Packed`]: rows of token ids, labels and document boundaries
//! - [`Backprop`]: loss and gradients of a step
//! - [`AdamW`], [`Schedule`]: the update
//! - `data`: files of conversations or text, encoded and packed
//! - [`Options`], [`Plan`], [`Trainer`]: a whole run, with checkpoints that it resumes from
//!
//! Knows nothing about the network, growth or the command.
//!
//! ```no_run
//! use candle_core::{DType, Device};
//! use flm_train::{Event, Options, Plan, Trainer};
//!
//! let mut options = Options::new("model", "tuned", vec!["data.jsonl".into()]);
//! options.optimizer.learning_rate = 1e-5;
//! let mut trainer = Trainer::new(Plan::new(options)?, &Device::Cpu, DType::F32)?;
//! trainer.run(&false.into(), &mut |event| {
//!     if let Event::Step(step) = event {
//!         println!("{} {}", step.step, step.loss);
//!     }
//!     Ok(())
//! })?;
//! # Ok::<(), flm_train::TrainError>(())
//! ```

mod backprop;
mod data;
mod error;
mod mask_ramp;
mod optimizer;
mod options;
mod params;
mod plan;
mod state;
mod store;
mod sums;
mod trainer;

pub use crate::backprop::{Backprop, InputPlace, StepLoss, StepUsage, SweepOptions};
pub use crate::data::batch::{IGNORED, MicroBatch, Packed};
pub use crate::data::encode::{OnUnrendered, Truncation};
pub use crate::data::format::{read_data, read_samples};
pub use crate::data::samples::{Content, Conversation, Sample, Samples};
pub use crate::error::TrainError;
pub use crate::optimizer::adamw::{AdamW, AdamWOptions};
pub use crate::optimizer::clip::{Clip, clip_coefficient};
pub use crate::optimizer::schedule::{Decay, Schedule};
pub use crate::optimizer::stochastic_rounding::{StochasticRounding, TensorRounding};
pub use crate::options::{
    DataSettings, Inputs, MemorySettings, Moments, OptimizerSettings, Options, Placement, Recompute,
    SaveDtype, SaveSettings, TrainSettings, WeightDtype,
};
pub use crate::params::{Layout, Multipliers, Parameter, ParameterGroup, Slices, Unit};
pub use crate::plan::choose::{Considered, Missing};
pub use crate::plan::estimate::{Choice, Estimate, MemoryUse, Seconds, StepShape, Traffic};
pub use crate::plan::flops::model_operations;
pub use crate::plan::machine::Machine;
pub use crate::plan::shape::ShapePlan;
pub use crate::plan::{Plan, PlanReport};
pub use crate::state::TrainingState;
pub use crate::store::disk::DiskStore;
pub use crate::store::memory::MemoryStore;
pub use crate::store::{Array, ParameterStore, Place, load_weights};
pub use crate::trainer::{Due, Event, Listener, Outcome, StepMetrics, Trainer};
