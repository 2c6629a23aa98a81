use candle_core::{D, DType, Result, Tensor};

use super::{
    Path,
    differentiable::{rms_norm, supports},
};

/// `x / √(mean(x²) + eps) · gain`, with statistics in f32 (f64 for f64 inputs).
///
/// Zhang and Sennrich, arXiv 1910.07467.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// `[hidden_size]`.
    gain: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// `gain` is `[hidden_size]` in the compute dtype, or in f32 in a model that computes in bf16.
    pub fn new(gain: Tensor, eps: f64) -> Self {
        Self { gain, eps }
    }

    /// Normalises the last dimension; the result has the dtype of `x`.
    ///
    /// A bf16 gain multiplies values already rounded to bf16, as in transformers' Llama; an f32 gain
    /// (a grown model's, see the `zero` operator) multiplies before the only rounding.
    pub fn forward(&self, x: &Tensor, path: Path) -> Result<Tensor> {
        if path == Path::Differentiable && supports(x) && x.dtype() == self.gain.dtype() {
            return rms_norm(x, &self.gain, self.eps);
        }
        if path == Path::Fused && x.dtype() == DType::F32 && self.gain.dtype() == DType::F32 {
            return candle_nn::ops::rms_norm(&x.contiguous()?, &self.gain, self.eps as f32);
        }
        let statistics = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let wide = x.to_dtype(statistics)?;
        let mean_square = wide.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = wide.broadcast_div(&(mean_square + self.eps)?.sqrt()?)?;
        normed.to_dtype(self.gain.dtype())?.broadcast_mul(&self.gain)?.to_dtype(x.dtype())
    }
}
