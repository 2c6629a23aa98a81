//! A plan from a model's shape and a step's alone: no weights, no data, another machine.

use serde::Serialize;

use crate::error::TrainError;
use crate::options::WeightDtype;
use crate::params::Layout;
use crate::plan::choose::{Considered, Wanted, consider, refusal};
use crate::plan::estimate::{StepShape, operations};
use crate::plan::machine::Machine;
use flm_checkpoint::TeleFlmConfig;

/// What a run of `steps` steps would be, from shapes alone.
///
/// Rows count as full and every token as learned, and the data takes no memory; see [`crate::Estimate`] for the arithmetic.
#[derive(Debug, Serialize)]
pub struct ShapePlan {
    /// Parameters that are trained.
    pub parameters: u64,
    /// Rows, micro-batches and tokens of a step.
    pub shape: StepShape,
    /// Updates of the run.
    pub steps: u64,
    /// The machine that was planned for.
    pub machine: Machine,
    /// Operations of a step, those of blocks that run again not counted.
    pub operations: f64,
    /// Every kind of plan, the one that is taken marked.
    pub plans: Vec<Considered>,
    /// The one that is taken.
    pub chosen: Considered,
    /// What bounds a step.
    pub bound: &'static str,
    /// Predicted time of the run, without checkpoints.
    pub seconds: f64,
    /// Model FLOP utilisation of the peak rate, where that is known.
    pub utilisation: Option<f64>,
}

impl ShapePlan {
    /// Plans for a model of this shape.
    ///
    /// # Errors
    /// [`TrainError::DoesNotFit`] where no plan fits `machine`.
    pub fn new(
        config: &TeleFlmConfig,
        weights: WeightDtype,
        shape: StepShape,
        steps: u64,
        machine: Machine,
        peak_flops: Option<f64>,
    ) -> Result<Self, TrainError> {
        let layout = match weights {
            WeightDtype::F32 => Layout::new(config),
            WeightDtype::Bf16 => Layout::new(config).with_bf16_weights(),
        };
        let plans = consider(&layout, &machine, shape, 0, Wanted::default());
        let Some(chosen) = plans.iter().find(|plan| plan.chosen).copied() else {
            return Err(TrainError::DoesNotFit { table: refusal(&plans) });
        };
        let operations = operations(&layout, shape, false);
        let step = chosen.estimate.seconds;
        Ok(Self {
            parameters: layout.len() as u64,
            shape,
            steps,
            machine,
            operations,
            plans,
            chosen,
            bound: step.bound(),
            seconds: step.step * steps as f64,
            utilisation: peak_flops.map(|peak| operations / step.step / peak),
        })
    }
}
