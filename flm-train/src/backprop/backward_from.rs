//! candle's backward, started from a given gradient.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor, backprop::GradStore, bail,
};

/// Gradients of `y`'s ancestors where the gradient of `y` is `dy`.
///
/// candle's `backward` starts from a scalar with gradient 1: `Σ y · dy` is one whose gradient by `y` is
/// `dy`. That sum is not computed, only its gradient.
pub(super) fn backward_from(y: &Tensor, dy: &Tensor) -> Result<GradStore> {
    y.apply_op1(Seed(dy.detach()))?.backward()
}

struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let zero = match storage {
            CpuStorage::F64(_) => CpuStorage::F64(vec![0.0]),
            CpuStorage::F32(_) => CpuStorage::F32(vec![0.0]),
            _ => bail!("training on a CPU computes in f32 or f64"),
        };
        Ok((zero, Shape::from(())))
    }

    fn cuda_fwd(&self, storage: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let scalar = Shape::from(());
        Ok((storage.device().zeros_impl(&scalar, storage.dtype())?, scalar))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}
