//! `x · Wᵀ` with its own backward.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, Layout, Result, Shape, Tensor, backend::BackendStorage,
};

/// `x · Wᵀ`, with `x` `[rows, in]` and `W` `[out, in]`.
///
/// Backward: `dx = dy · W`, `dW = dyᵀ · x`; candle's own goes through the transpose of `W` and adds a
/// strided copy of `dW`.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.apply_op2(weight, Linear)
}

struct Linear;

/// Sizes of the product (batches, rows, columns, inner), the transposed weight, the result's shape.
type Product = ((usize, usize, usize, usize), Layout, Shape);

fn transposed(x: &Layout, w: &Layout) -> Result<Product> {
    let ((m, k), (n, _)) = (x.shape().dims2()?, w.shape().dims2()?);
    Ok(((1, m, n, k), w.transpose(0, 1)?, Shape::from((m, n))))
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (sizes, transposed, shape) = transposed(xl, wl)?;
        Ok((x.matmul(w, sizes, xl, &transposed)?, shape))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        w: &CudaStorage,
        wl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (sizes, transposed, shape) = transposed(xl, wl)?;
        Ok((x.matmul(w, sizes, xl, &transposed)?, shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(dy.matmul(&w.detach())?), Some(dy.t()?.matmul(&x.detach())?)))
    }
}
