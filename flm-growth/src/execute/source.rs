//! Rows of the source that a target tensor is filled with.

use flm_checkpoint::{Checkpoint, TensorEntry};

use crate::error::{GrowthError, Result};
use crate::fill::sample::{mean_row, sample_std};
use crate::tensor_plan::{Fill, TensorPlan, matrix as tensor_size};

/// A target tensor with its source found and its standard deviation measured.
pub(super) struct Source<'a> {
    pub plan: TensorPlan,
    pub entry: Option<&'a TensorEntry>,
    /// What new rows are, where they are a mean.
    pub mean: Option<Vec<f64>>,
}

impl<'a> Source<'a> {
    pub(super) fn new(plan: &TensorPlan, source: &'a Checkpoint) -> Result<Self> {
        let mut plan = plan.clone();
        let needs_std = plan.needs_std();
        let Some(tensor) = &plan.source else { return Ok(Self { plan, entry: None, mean: None }) };
        let entry = source.entry(&tensor.name)?;
        if entry.shape != tensor.shape {
            return Err(GrowthError::TensorShape {
                name: tensor.name.clone(),
                got: entry.shape.clone(),
                expected: tensor.shape.clone(),
            });
        }
        if entry.dtype != tensor.dtype {
            return Err(GrowthError::TensorDtype {
                name: tensor.name.clone(),
                got: entry.dtype.as_str().into(),
                expected: tensor.dtype.to_string(),
            });
        }
        if needs_std {
            let elements = entry.shape.iter().map(|&n| n as u64).product();
            let std = sample_std(&entry.name, tensor.dtype, elements, |offset, out| {
                Ok(source.read_at(entry, offset, out)?)
            })?;
            plan.set_std(std * plan.scale.abs());
        }
        let mean = match (plan.new_rows, tensor_size(&entry.shape)) {
            (Some(Fill::Mean { rows, .. }), (all, cols)) => {
                Some(mean_row(&entry.name, entry.dtype, cols, rows.min(all), |at, out| {
                    Ok(source.read_at(entry, at, out)?)
                })?)
            }
            _ => None,
        };
        Ok(Self { plan, entry: Some(entry), mean })
    }
}
