//! Operations of a block with a backward of their own, on a CPU in f32 and f64.
//!
//! candle's fused operations cut the gradient in silence, and compositions of its differentiable ones
//! copy and widen at every step. Each operation here has a forward and an analytic backward that
//! finite differences check.

mod attention;
mod linear;
mod rms_norm;
mod swiglu;

use candle_core::{CpuStorage, DType, Layout, Result, Tensor, bail};

use super::{NormMask, Real};

pub(super) use attention::{Heads, attention};
pub(super) use linear::linear;
pub(super) use rms_norm::rms_norm;
pub(super) use swiglu::swiglu;

/// Whether these operations take a tensor: others go through candle's compositions.
pub(super) fn supports(x: &Tensor) -> bool {
    x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64)
}

/// Values that one task takes: fixed, so that results do not depend on the number of threads.
const TASK: usize = 1 << 14;

/// The values of a contiguous operand.
fn values<'a, T: Real>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("the operand is not contiguous") };
    Ok(&storage.as_slice::<T>()?[start..end])
}

/// Calls `run` with the values of contiguous CPU tensors.
fn with_values<T: Real, R, const N: usize>(
    tensors: [&Tensor; N],
    run: impl FnOnce([&[T]; N]) -> Result<R>,
) -> Result<R> {
    let guards = tensors.map(Tensor::storage_and_layout);
    let mut slices = [&[][..]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        let candle_core::Storage::Cpu(storage) = &**storage else { bail!("not in host memory") };
        *slice = values(storage, layout)?;
    }
    run(slices)
}

#[cfg(test)]
mod tests;
