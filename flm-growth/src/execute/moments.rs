//! Optimizer state goes where the weights go, in a growth and in a fold.
//!
//! It is what the trainer writes beside the weights: a checkpoint `optimizer/` with Adam's moments
//! `exp_avg.NAME` and `exp_avg_sq.NAME`, and `training_state.json` with the step. A weight that is stored
//! as w' = c·w has the gradient ∂L/∂w' = 1/c · ∂L/∂w, and each of n copies has the n-th part of it (where
//! noise tells copies apart, nearly); so the first moment takes 1/(c·n), the second its square. What is
//! new, and what is stored as 0, starts with 0. The step is kept.

use flm_checkpoint::Checkpoint;
use flm_checkpoint::Writer;

use crate::error::{GrowthError, Result};
use crate::execute::disk::disk_need;
use crate::execute::record::Provenance;
use crate::execute::{ExecuteOptions, Transfer};
use crate::tensor_plan::{Fill, SourceTensor, TailScale, TensorPlan};
use flm_checkpoint::Dtype;

/// Folder of the optimizer's state in a training checkpoint.
pub(crate) const OPTIMIZER: &str = "optimizer";
/// File of the step, beside the weights.
pub(crate) const STATE: &str = "training_state.json";

/// The moments' names and the power of 1/c that each takes.
const MOMENTS: [(&str, i32); 2] = [("exp_avg.", 1), ("exp_avg_sq.", 2)];

/// Optimizer state to grow.
pub(crate) struct OptimizerGrowth {
    source: Checkpoint,
    tensors: Vec<TensorPlan>,
    state: Option<Vec<u8>>,
}

impl OptimizerGrowth {
    /// The state beside the weights of `source`, to be grown as `weights` are.
    pub(crate) fn new(source: &Checkpoint, weights: &[TensorPlan]) -> Result<Self> {
        let dir = source.dir().join(OPTIMIZER);
        if !dir.is_dir() {
            return Err(GrowthError::NoOptimizerState(source.dir().display().to_string()));
        }
        let state = std::fs::read(source.dir().join(STATE)).ok();
        let source = Checkpoint::open(&dir)?;
        let mut tensors = Vec::new();
        for (prefix, power) in MOMENTS {
            for weight in weights {
                let history = history(&source, weight, prefix)?;
                tensors.push(moments(weight, prefix, power, history));
            }
        }
        Ok(Self { source, tensors, state })
    }

    /// Refuses where the disk cannot hold it.
    pub(crate) fn check_disk(&self, writer: &Writer) -> Result<()> {
        disk_need(&self.tensors, &writer.staging_dir().join(OPTIMIZER))?.check()
    }

    /// Writes the state into the staging directory of the weights.
    pub(crate) fn run(
        &self,
        config: &flm_checkpoint::TeleFlmConfig,
        digest: &str,
        writer: &Writer,
        options: &ExecuteOptions,
    ) -> Result<()> {
        let dst = writer.staging_dir().join(OPTIMIZER);
        if let Some(state) = &self.state {
            flm_checkpoint::atomic::write(&writer.staging_dir().join(STATE), state)?;
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

/// The moments of the weights that `weight` is made of; `None` where it has no history.
fn history(source: &Checkpoint, weight: &TensorPlan, prefix: &str) -> Result<Option<SourceTensor>> {
    // a new layer's copy has none of its own
    let Some(copied) = weight.source.as_ref().filter(|s| !weight.new_layer || s.name == weight.name) else {
        return Ok(None);
    };
    let entry = source.entry(&format!("{prefix}{}", copied.name))?;
    if entry.shape != copied.shape {
        return Err(GrowthError::TensorShape {
            name: entry.name.clone(),
            got: entry.shape.clone(),
            expected: copied.shape.clone(),
        });
    }
    let dtype = entry.dtype;
    Ok(Some(SourceTensor { name: entry.name.clone(), dtype, shape: entry.shape.clone() }))
}

/// The moments of one tensor, where the gradient's `power`-th power is averaged.
pub(crate) fn moments(
    weight: &TensorPlan,
    prefix: &str,
    power: i32,
    history: Option<SourceTensor>,
) -> TensorPlan {
    let inverse = |factor: f64| if factor == 0.0 { 0.0 } else { factor.powi(-power) };
    let tail = |t: TailScale| TailScale { scale: inverse(t.scale), ..t };
    // copies have their share of the history; everything else that is new has none
    let fill = |fill: Option<Fill>| match fill? {
        Fill::Tile if history.is_some() => Some(Fill::Tile),
        _ => Some(Fill::Zero),
    };
    let rows = fill(weight.new_rows);
    TensorPlan {
        name: format!("{prefix}{}", weight.name),
        dtype: history.as_ref().map_or(Dtype::F32, |s| s.dtype),
        shape: weight.shape.clone(),
        new_layer: weight.new_layer,
        scale: inverse(weight.scale * weight.copies() as f64),
        offset: 0.0,
        row_scale: weight.row_scale.map(tail),
        col_scale: weight.col_scale.map(tail),
        splits: false,
        noise: None,
        new_cols: fill(weight.new_cols),
        new_rows: rows,
        new_corner: match weight.new_corner {
            // without a source all is the corner
            _ if history.is_none() => Some(Fill::Zero),
            Some(Fill::Tile) if rows != Some(Fill::Tile) => Some(Fill::Zero),
            corner => fill(corner),
        },
        source: history,
    }
}
