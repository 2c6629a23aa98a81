use candle_core::{DType, Result, Tensor};

use super::{differentiable::linear, widening::WideningMatmul};

/// A matrix without bias: `y = x · Wᵀ`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out_features, in_features]`.
    weight: Tensor,
}

impl Linear {
    /// `weight` is `[out_features, in_features]` in the compute dtype; on a CPU it may also be bf16
    /// while inputs are f32 (its values are then widened on the fly, which loses nothing).
    pub fn new(weight: Tensor) -> Self {
        Self { weight }
    }

    /// The matrix, `[out_features, in_features]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `x` is `[…, in_features]`; the result is `[…, out_features]` in the dtype of `x`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_to(x, x.dtype())
    }

    /// As [`Linear::forward`], with the result in `dtype`; on a CPU a bf16 model's sums reach f32
    /// without having been rounded to bf16.
    pub fn forward_to(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        let mut shape = x.dims().to_vec();
        let (features, rows) = (self.weight.dim(1)?, x.elem_count() / self.weight.dim(1)?.max(1));
        if let Some(last) = shape.last_mut() {
            *last = self.weight.dim(0)?;
        }
        let x = x.reshape((rows, features))?;
        let y = if self.weight.dtype() == DType::BF16 && x.device().is_cpu() {
            let wide = x.to_dtype(DType::F32)?.contiguous()?;
            wide.apply_op2_no_bwd(&self.weight, &WideningMatmul)?
        } else if self.weight.is_variable() {
            linear(&x, &self.weight)?
        } else {
            x.matmul(&self.weight.t()?)?
        };
        y.to_dtype(dtype)?.reshape(shape)
    }
}
