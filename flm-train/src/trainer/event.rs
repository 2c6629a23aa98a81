//! What a run tells while it goes on, and how it ended.

use std::path::PathBuf;

use serde::Serialize;

use crate::error::TrainError;
use crate::trainer::metrics::StepMetrics;

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
