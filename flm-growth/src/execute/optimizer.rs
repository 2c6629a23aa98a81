//! Optimizer state grows with the weights.
//!
//! It is what the trainer writes beside the weights: a checkpoint `optimizer/` with Adam's moments
//! `exp_avg.NAME` and `exp_avg_sq.NAME`, and `training_state.json` with the step. Moments go into the
//! corner; where weights are multiplied by c, their gradients are by 1/c, and so the moments are
//! multiplied by 1/c and 1/c². New entries and new layers start with 0. The step is kept.

use flm_candle::checkpoint::{Checkpoint, Writer};

use super::{ExecuteOptions, Provenance, Transfer, disk_need};
use crate::error::{GrowthError, Result};
use crate::plan::{Fill, SourceTensor, TensorPlan};
use crate::precision::Precision;

/// Folder of the optimizer's state in a training checkpoint.
pub(super) const OPTIMIZER: &str = "optimizer";
/// File of the step, beside the weights.
pub(super) const STATE: &str = "training_state.json";

/// The moments' names and the power of 1/c that each takes.
const MOMENTS: [(&str, i32); 2] = [("exp_avg.", 1), ("exp_avg_sq.", 2)];

/// Optimizer state to grow.
pub(super) struct OptimizerGrowth {
    source: Checkpoint,
    tensors: Vec<TensorPlan>,
    state: Option<Vec<u8>>,
}

impl OptimizerGrowth {
    /// The state beside the weights of `source`, to be grown as `weights` are.
    pub(super) fn new(source: &Checkpoint, weights: &[TensorPlan]) -> Result<Self> {
        let dir = source.dir().join(OPTIMIZER);
        if !dir.is_dir() {
            return Err(GrowthError::NoOptimizerState(source.dir().display().to_string()));
        }
        let state = std::fs::read(source.dir().join(STATE)).ok();
        let source = Checkpoint::open(&dir)?;
        let mut tensors = Vec::new();
        for (prefix, power) in MOMENTS {
            for weight in weights {
                tensors.push(moments(&source, weight, prefix, power)?);
            }
        }
        Ok(Self { source, tensors, state })
    }

    /// Refuses where the disk cannot hold it.
    pub(super) fn check_disk(&self, writer: &Writer) -> Result<()> {
        disk_need(&self.tensors, &writer.staging_dir().join(OPTIMIZER))?.check()
    }

    /// Writes the state into the staging directory of the weights.
    pub(super) fn run(
        &self,
        config: &flm_candle::config::TeleFlmConfig,
        digest: &str,
        writer: &Writer,
        options: &ExecuteOptions,
    ) -> Result<()> {
        let dst = writer.staging_dir().join(OPTIMIZER);
        if let Some(state) = &self.state {
            super::write(&writer.staging_dir().join(STATE), state)?;
        }
        // a run that died later has left it finished
        if dst.is_dir() {
            return Ok(());
        }
        let options =
            ExecuteOptions { recipe: None, optimizer_state: false, restart: false, ..options.clone() };
        let provenance = Provenance::new(&self.source, &options);
        let digest = format!("{digest} optimizer");
        Transfer { tensors: &self.tensors, seed: 0, config: config.clone(), digest, provenance }
            .run(&self.source, &dst, &options, &|_| ())
            .map(drop)
    }
}

fn moments(source: &Checkpoint, weight: &TensorPlan, prefix: &str, power: i32) -> Result<TensorPlan> {
    // a new layer's copy has no history of its own
    let copied = weight.source.as_ref().filter(|s| !weight.new_layer || s.name == weight.name);
    let stored = match copied {
        Some(copied) => {
            let entry = source.entry(&format!("{prefix}{}", copied.name))?;
            if entry.shape != copied.shape {
                return Err(GrowthError::TensorShape {
                    name: entry.name.clone(),
                    got: entry.shape.clone(),
                    expected: copied.shape.clone(),
                });
            }
            let dtype = Precision::try_from(entry.dtype)?;
            Some(SourceTensor { name: entry.name.clone(), dtype, shape: entry.shape.clone() })
        }
        None => None,
    };
    let zero = |fill: Option<Fill>| fill.map(|_| Fill::Zero);
    Ok(TensorPlan {
        name: format!("{prefix}{}", weight.name),
        dtype: stored.as_ref().map_or(Precision::F32, |s| s.dtype),
        shape: weight.shape.clone(),
        scale: weight.scale.powi(-power),
        new_cols: zero(weight.new_cols),
        new_rows: zero(weight.new_rows),
        new_corner: if stored.is_none() { Some(Fill::Zero) } else { zero(weight.new_corner) },
        source: stored,
        ..weight.clone()
    })
}
