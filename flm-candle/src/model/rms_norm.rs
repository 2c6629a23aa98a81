use candle_core::{D, DType, Result, Tensor};

use super::{
    Path,
    differentiable::{rms_norm, supports},
};

/// `x / √(mean(x²) + eps) · gain`, statistics and gain in f32 (f64 for f64 inputs).
///
/// Zhang and Sennrich, arXiv 1910.07467.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// `[hidden_size]`, f32 or f64.
    gain: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// `gain` is `[hidden_size]` in f32, or f64 for a model that computes in f64.
    pub fn new(gain: Tensor, eps: f64) -> Self {
        Self { gain, eps }
    }

    /// Normalises the last dimension; the result has the dtype of `x`.
    pub fn forward(&self, x: &Tensor, path: Path) -> Result<Tensor> {
        if path == Path::Differentiable && supports(x) && x.dtype() == self.gain.dtype() {
            return rms_norm(x, &self.gain, self.eps);
        }
        let wide = x.to_dtype(self.gain.dtype())?;
        let normed = if path == Path::Fused && self.gain.dtype() == DType::F32 {
            candle_nn::ops::rms_norm(&wide.contiguous()?, &self.gain, self.eps as f32)?
        } else {
            let mean_square = wide.sqr()?.mean_keepdim(D::Minus1)?;
            wide.broadcast_div(&(mean_square + self.eps)?.sqrt()?)?.broadcast_mul(&self.gain)?
        };
        normed.to_dtype(x.dtype())
    }
}
