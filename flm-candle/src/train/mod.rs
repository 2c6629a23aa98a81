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

mod adamw;
mod backprop;
mod batch;
mod block;
mod error;
mod head;
mod layout;
mod schedule;
mod seed;
pub mod store;
mod sums;

pub use adamw::{AdamW, AdamWOptions, Slices, clip_coefficient};
pub use backprop::{Backprop, StepLoss};
pub use batch::{IGNORED, MicroBatch, Packed};
pub use error::TrainError;
pub use layout::{Layout, Multipliers, Parameter, ParameterGroup, Unit};
pub use schedule::{Decay, Schedule};
