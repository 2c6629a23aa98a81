//! A matrix, with a bias where the family has one; bf16 weights also serve f32 activations.

use candle_core::{DType, Result, Tensor};

use crate::model::kernels::bf16_matmul::WideningMatmul;
use crate::model::kernels::linear::linear;

/// A matrix: `y = x · Wᵀ`, plus a bias where there is one.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out_features, in_features]`.
    weight: Tensor,
    /// `[out_features]`.
    bias: Option<Tensor>,
}

impl Linear {
    /// `weight` is `[out_features, in_features]` in the compute dtype; on a CPU it may also be bf16
    /// while inputs are f32 (its values are then widened on the fly, which loses nothing).
    pub fn new(weight: Tensor) -> Self {
        Self { weight, bias: None }
    }

    /// The matrix with a bias, `[out_features]` in the dtype of the activations, or without.
    pub fn with_bias(self, bias: Option<Tensor>) -> Self {
        Self { bias, ..self }
    }

    /// The matrix, `[out_features, in_features]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `x` is `[…, in_features]`; the result is `[…, out_features]` in the dtype of `x`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (out_features, in_features) = self.weight.dims2()?;
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = out_features;
        }
        let rows = x.reshape(((), in_features))?;
        let y = if self.weight.dtype() == DType::BF16 && x.device().is_cpu() {
            let wide = rows.to_dtype(DType::F32)?.contiguous()?;
            let y = wide.apply_op2_no_bwd(&self.weight, &WideningMatmul)?;
            // rounded once, after the sum
            let y = match &self.bias {
                Some(bias) => y.broadcast_add(&bias.to_dtype(DType::F32)?)?,
                None => y,
            };
            return y.to_dtype(x.dtype())?.reshape(shape);
        } else if self.weight.is_variable() {
            linear(&rows, &self.weight)?
        } else {
            rows.matmul(&self.weight.t()?)?
        };
        match &self.bias {
            Some(bias) => y.broadcast_add(bias)?.reshape(shape),
            None => y.reshape(shape),
        }
    }
}
