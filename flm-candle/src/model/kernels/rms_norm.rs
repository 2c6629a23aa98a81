//! RMSNorm, masked or not, with its own backward.

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Result, Shape, Tensor, WithDType};
use rayon::prelude::*;

use crate::model::kernels::matmul::Real;
use crate::model::kernels::{TASK, values, with_values};
use crate::model::masks::NormMask;

/// `x · r · gain` over the last dimension, with `r = 1 / √(Σ x²·h / Σ h + eps)`; the weights `h` are 1
/// without a mask.
///
/// Backward, with `a = dy · gain`: `dx = r · (a − h · x · r² · Σ (a · x) / Σ h)`, `d gain = Σ dy · x · r`.
pub(crate) fn rms_norm(x: &Tensor, gain: &Tensor, eps: f64, mask: Option<NormMask>) -> Result<Tensor> {
    let d = gain.elem_count();
    let mask = mask.unwrap_or(NormMask { from: d, mask: 1.0 });
    let weights = mask.from as f64 + mask.mask * (d - mask.from) as f64;
    x.contiguous()?.apply_op2(&gain.contiguous()?, RmsNorm { eps, mask, weights })
}

#[derive(Clone, Copy)]
struct RmsNorm {
    eps: f64,
    mask: NormMask,
    /// Σ h.
    weights: f64,
}

impl RmsNorm {
    /// `r²` of a row. Old and new entries are summed apart, so that at mask 0 the result is that of the
    /// old entries alone, bit for bit.
    fn inverse_mean_square<T: Real>(&self, x: &[T]) -> f64 {
        let (old, new) = x.split_at(self.mask.from);
        let sum = dot(old, old) + self.mask.mask * dot(new, new);
        1.0 / (sum / self.weights + self.eps)
    }
}

/// Σ a · b, in f64 by lanes.
fn dot<T: Real>(a: &[T], b: &[T]) -> f64 {
    let mut lanes = [0f64; 8];
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..8 {
            lanes[i] += a[i].to_f64() * b[i].to_f64();
        }
    }
    let tail: f64 = a_tail.iter().zip(b_tail).map(|(a, b)| a.to_f64() * b.to_f64()).sum();
    lanes.iter().sum::<f64>() + tail
}

fn forward<T: Real>(x: &[T], gain: &[T], norm: RmsNorm) -> Vec<T> {
    let d = gain.len();
    let mut out = vec![T::ZERO; x.len()];
    let rows = (TASK / d).max(1) * d;
    out.par_chunks_mut(rows).zip(x.par_chunks(rows)).for_each(|(out, x)| {
        for (y, x) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
            let r = T::of(norm.inverse_mean_square(x).sqrt());
            for ((y, &x), &gain) in y.iter_mut().zip(x).zip(gain) {
                *y = x * r * gain;
            }
        }
    });
    out
}

fn backward<T: Real>(x: &[T], gain: &[T], dy: &[T], norm: RmsNorm) -> (Vec<T>, Vec<T>) {
    let d = gain.len();
    let mut dx = vec![T::ZERO; x.len()];
    let rows = (TASK / d).max(1) * d;
    let tasks = dx.par_chunks_mut(rows).zip(x.par_chunks(rows)).zip(dy.par_chunks(rows));
    let parts = tasks.map(|((dx, x), dy)| {
        let (mut dgain, mut a) = (vec![0f64; d], vec![T::ZERO; d]);
        for ((dx, x), dy) in dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(dy.chunks_exact(d)) {
            let r2 = norm.inverse_mean_square(x);
            let r = T::of(r2.sqrt());
            for (((a, &dy), &gain), (sum, &x)) in a.iter_mut().zip(dy).zip(gain).zip(dgain.iter_mut().zip(x))
            {
                *a = dy * gain;
                *sum += (dy * x * r).to_f64();
            }
            let mean = dot(&a, x) / norm.weights * r2;
            let (old, new) = (T::of(mean), T::of(norm.mask.mask * mean));
            let factors = std::iter::repeat_n(old, norm.mask.from).chain(std::iter::repeat(new));
            for (((dx, &a), &x), mean) in dx.iter_mut().zip(&a).zip(x).zip(factors) {
                *dx = r * (a - x * mean);
            }
        }
        dgain
    });
    let mut dgain = vec![0f64; d];
    for part in parts.collect::<Vec<_>>() {
        dgain.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
    (dx, dgain.into_iter().map(T::of).collect())
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        gain: &CpuStorage,
        gl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = if matches!(x, CpuStorage::F64(_)) {
            f64::to_cpu_storage_owned(forward::<f64>(values(x, xl)?, values(gain, gl)?, *self))
        } else {
            f32::to_cpu_storage_owned(forward::<f32>(values(x, xl)?, values(gain, gl)?, *self))
        };
        Ok((out, xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        fn run<T: Real>(
            x: &Tensor,
            gain: &Tensor,
            dy: &Tensor,
            norm: RmsNorm,
        ) -> Result<(Option<Tensor>, Option<Tensor>)> {
            let (dx, dgain) = with_values([x, gain, dy], |[x, g, d]: [&[T]; 3]| Ok(backward(x, g, d, norm)))?;
            let dx = Tensor::from_vec(dx, x.shape(), &Device::Cpu)?;
            Ok((Some(dx), Some(Tensor::from_vec(dgain, gain.shape(), &Device::Cpu)?)))
        }
        let dy = dy.contiguous()?;
        if x.dtype() == DType::F64 {
            run::<f64>(x, gain, &dy, *self)
        } else {
            run::<f32>(x, gain, &dy, *self)
        }
    }
}
