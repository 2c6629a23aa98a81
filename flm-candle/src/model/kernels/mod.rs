//! Operations of a block with a backward of their own, on a CPU in f32 and f64.
//!
//! candle's fused operations cut the gradient in silence, and compositions of its differentiable ones
//! copy and widen at every step. Each operation here has a forward and an analytic backward that
//! finite differences check.

pub(crate) mod attention;
pub(crate) mod bf16_matmul;
pub(crate) mod linear;
pub(crate) mod matmul;
pub(crate) mod rms_norm;
pub(crate) mod swiglu;
#[cfg(test)]
pub(crate) mod tests;

use crate::model::rotary::Rotary;
use std::sync::Arc;

use candle_core::{CpuStorage, DType, Layout, Result, Tensor, bail};

use crate::model::kernels::matmul::Real;

/// Whether these operations take a tensor: others go through candle's compositions.
pub(crate) fn supports(x: &Tensor) -> bool {
    x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64)
}

/// Values that one task takes: fixed, so that results do not depend on the number of threads.
pub(crate) const TASK: usize = 1 << 14;

/// The values of a contiguous operand.
pub(crate) fn values<'a, T: Real>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("the operand is not contiguous") };
    Ok(&storage.as_slice::<T>()?[start..end])
}

/// Calls `run` with the values of contiguous CPU tensors.
pub(crate) fn with_values<T: Real, R, const N: usize>(
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

/// Which implementation of each operation runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Path {
    /// candle's fused operations: fast, no gradient.
    #[default]
    Fused,
    /// Compositions of operations that all have a gradient.
    Differentiable,
}

/// Where the documents of packed rows start.
#[derive(Debug, Clone)]
pub struct Documents {
    /// Row by row, for each position that of its document's first token.
    pub starts: Arc<Vec<u32>>,
    /// The rotary frequencies; `None` where queries and keys stay as they are.
    pub rotary: Option<Rotary>,
    /// Tokens of the longest document: what some frequencies depend on.
    pub length: usize,
    /// Number of keys that a query sees, its own included; `None` for all of its document.
    pub window: Option<usize>,
}
