//! RMSNorm as a module: gain, eps, and the mask of a model that is still growing.

use candle_core::{D, DType, Result, Tensor};

use crate::model::kernels::rms_norm::rms_norm;
use crate::model::kernels::{Path, supports};
use crate::model::masks::NormMask;

/// `x / √(mean(x²) + eps) · gain`, with statistics in f32 (f64 for f64 inputs).
///
/// Zhang and Sennrich, arXiv 1910.07467.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// `[hidden_size]`.
    gain: Tensor,
    eps: f64,
    mask: Option<NormMask>,
}

impl RmsNorm {
    /// `gain` is `[hidden_size]` in the compute dtype, or in f32 in a model that computes in bf16.
    pub fn new(gain: Tensor, eps: f64) -> Self {
        Self { gain, eps, mask: None }
    }

    /// Gives the statistics these weights, or none: `Σ x²·h / Σ h` (Masked Structural Growth,
    /// arXiv 2305.02869, carried from LayerNorm to RMSNorm).
    pub fn set_mask(&mut self, mask: Option<NormMask>) {
        // weights of 1 are none
        self.mask = mask.filter(|m| m.mask < 1.0 && self.gain.elem_count() > m.from);
    }

    /// The norm with weighted statistics.
    pub fn with_mask(mut self, mask: Option<NormMask>) -> Self {
        self.set_mask(mask);
        self
    }

    /// Normalises the last dimension; the result has the dtype of `x`.
    ///
    /// A bf16 gain multiplies values already rounded to bf16, as in transformers' Llama; an f32 gain
    /// (a grown model's, see the `zero` operator) multiplies before the only rounding.
    pub fn forward(&self, x: &Tensor, path: Path) -> Result<Tensor> {
        if path == Path::Differentiable && supports(x) && x.dtype() == self.gain.dtype() {
            return rms_norm(x, &self.gain, self.eps, self.mask);
        }
        if let Some(mask) = self.mask {
            return self.masked(x, mask, path);
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

    /// Old and new entries are summed apart, so that at mask 0 the result is the unmasked norm's of the
    /// old entries, bit for bit.
    fn masked(&self, x: &Tensor, mask: NormMask, path: Path) -> Result<Tensor> {
        let (from, size) = (mask.from, x.dim(D::Minus1)?);
        let old = x.narrow(D::Minus1, 0, from)?.contiguous()?;
        if mask.mask == 0.0 {
            // new entries of the residual stream are 0 and weigh nothing
            let norm = Self { gain: self.gain.narrow(0, 0, from)?, eps: self.eps, mask: None };
            return norm.forward(&old, path)?.pad_with_zeros(D::Minus1, 0, size - from);
        }
        let statistics = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let new = x.narrow(D::Minus1, from, size - from)?.contiguous()?;
        let squares = |part: &Tensor| part.to_dtype(statistics)?.sqr()?.sum_keepdim(D::Minus1);
        let weights = from as f64 + mask.mask * (size - from) as f64;
        let mean_square = ((squares(&old)? + (squares(&new)? * mask.mask)?)? * (1.0 / weights))?;
        let normed = x.to_dtype(statistics)?.broadcast_div(&(mean_square + self.eps)?.sqrt()?)?;
        normed.to_dtype(self.gain.dtype())?.broadcast_mul(&self.gain)?.to_dtype(x.dtype())
    }
}
