//! Full-parameter training: supervised fine-tuning and pre-training.
//!
//! A step runs layer by layer: the forward pass keeps only each block's input, the backward pass runs
//! one block again at a time and moves its gradients out. Over micro-batches the order is layer-major
//! too: a block's weights are brought in once per pass and serve every micro-batch.
//!
//! - [`Layout`]: the units of parameters that are brought in, used and written back together
//! - [`store`]: where parameters, gradients and optimizer state live; every tier gives the same numbers
//! - [`Packed`]: rows of token ids, labels and document boundaries
//! - [`Backprop`]: loss and gradients of a step
//! - [`AdamW`], [`Schedule`]: the update
//! - [`data`]: files of conversations or text, encoded and packed
//! - [`Recipe`], [`Plan`], [`Trainer`]: a whole run, with checkpoints that it resumes from

mod adamw;
mod backprop;
mod batch;
mod block;
mod calibration;
mod clip;
pub mod data;
mod error;
mod estimate;
mod events;
mod flops;
mod head;
mod layout;
mod masks;
mod plan;
mod recipe;
mod report;
mod rounding;
mod schedule;
mod seed;
mod state;
pub mod store;
mod sums;
mod trainer;

pub use adamw::{AdamW, AdamWOptions, Slices};
pub use backprop::{Backprop, StepLoss};
pub use batch::{IGNORED, MicroBatch, Packed};
pub use clip::{Clip, clip_coefficient};
pub use error::TrainError;
pub use estimate::{Estimate, StepShape, available_memory, peak_memory};
pub use flops::model_operations;
pub use layout::{Layout, Multipliers, Parameter, ParameterGroup, Unit};
pub use plan::{Plan, PlanReport, Tier};
pub use recipe::{
    DataSettings, MemorySettings, Moments, OptimizerSettings, Placement, Recipe, Recompute, SaveSettings,
    TrainSettings, WeightDtype,
};
pub use rounding::{StochasticRounding, TensorRounding};
pub use schedule::{Decay, Schedule};
pub use state::TrainingState;
pub use trainer::{Event, Outcome, StepMetrics, Trainer};
