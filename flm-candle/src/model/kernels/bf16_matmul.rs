//! f32 × bf16ᵀ on a CPU, reading each weight once in its two bytes.
//!
//! candle widens the whole bf16 operand to f32 at every call; decoding is bound by memory bandwidth,
//! so reading two bytes a weight instead of four is worth a factor of two there. Widening is exact:
//! the result is that of an f32 product.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, bail};
use half::bf16;
use rayon::prelude::*;

/// `[m, k]` f32 times the transpose of `[n, k]` bf16, to `[m, n]` f32; both contiguous.
pub(crate) struct WideningMatmul;

impl CustomOp2 for WideningMatmul {
    fn name(&self) -> &'static str {
        "widening-matmul"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xl: &Layout,
        ws: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(xs), CpuStorage::BF16(ws)) = (xs, ws) else {
            bail!("widening-matmul takes f32 inputs and bf16 weights")
        };
        let (Some((x0, x1)), Some((w0, w1))) = (xl.contiguous_offsets(), wl.contiguous_offsets()) else {
            bail!("widening-matmul takes contiguous operands")
        };
        let ((m, k), (n, wk)) = (xl.shape().dims2()?, wl.shape().dims2()?);
        if k != wk || k == 0 {
            bail!("widening-matmul: {k} input features against {wk}")
        }
        let (x, w) = (&xs[x0..x1], &ws[w0..w1]);
        let mut out = vec![0f32; m * n];
        if m == 1 {
            row_times_matrix(x, w, &mut out);
        } else {
            panels(x, w, &mut out, Sizes { m, n, k });
        }
        Ok((CpuStorage::F32(out), (m, n).into()))
    }
}

/// Weights below which a second thread costs more than it brings.
const PARALLEL_WEIGHTS: usize = 1 << 15;

/// One input row: a dot product per weight row, bound by memory bandwidth.
fn row_times_matrix(x: &[f32], w: &[bf16], out: &mut [f32]) {
    let k = x.len();
    let rows = (PARALLEL_WEIGHTS / k).max(1);
    out.par_chunks_mut(rows).zip(w.par_chunks(rows * k)).with_min_len(2).for_each(|(out, w)| {
        for (y, row) in out.iter_mut().zip(w.chunks_exact(k)) {
            *y = dot(x, row);
        }
    });
}

fn dot(x: &[f32], w: &[bf16]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the processor has both features.
        #[allow(unsafe_code)]
        return unsafe { dot_avx2(x, w) };
    }
    dot_lanes(x, w, |sum, a, b| sum + a * b)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dot_avx2(x: &[f32], w: &[bf16]) -> f32 {
    dot_lanes(x, w, |sum, a, b| a.mul_add(b, sum))
}

/// 32 partial sums, which the compiler keeps in vector registers.
#[inline(always)]
fn dot_lanes(x: &[f32], w: &[bf16], multiply_add: impl Fn(f32, f32, f32) -> f32) -> f32 {
    const LANES: usize = 32;
    let mut sums = [0f32; LANES];
    let (xs, ws) = (x.chunks_exact(LANES), w.chunks_exact(LANES));
    let tail: f32 = xs.remainder().iter().zip(ws.remainder()).map(|(a, b)| a * widen(*b)).sum();
    for (a, b) in xs.zip(ws) {
        for i in 0..LANES {
            sums[i] = multiply_add(sums[i], a[i], widen(b[i]));
        }
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            sums[i] += sums[i + width];
        }
    }
    sums[0] + tail
}

#[inline(always)]
fn widen(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

#[derive(Clone, Copy)]
struct Sizes {
    m: usize,
    n: usize,
    k: usize,
}

/// Weights widened at once per thread: small enough to stay in a core's cache.
const PANEL_WEIGHTS: usize = 1 << 17;

/// Several input rows: widen a panel of weight rows in cache, multiply it, go on.
fn panels(x: &[f32], w: &[bf16], out: &mut [f32], sizes: Sizes) {
    let Sizes { m, n, k } = sizes;
    let share = n.div_ceil(rayon::current_num_threads()).next_multiple_of(8);
    let rows = (PANEL_WEIGHTS / k).next_multiple_of(8).clamp(8, share.max(8));
    let target = Target(out.as_mut_ptr());
    w.par_chunks(rows * k).enumerate().for_each_init(
        || vec![0f32; rows * k],
        |panel, (index, w)| {
            let count = w.len() / k;
            for (wide, narrow) in panel.iter_mut().zip(w) {
                *wide = widen(*narrow);
            }
            let target = &target;
            // SAFETY: `x` holds m·k values and `panel` count·k. This call writes columns
            // index·rows .. index·rows + count of the [m, n] output, count ≤ n − index·rows because
            // `w` ends at n·k; no other call writes them, and `out` outlives the parallel loop.
            #[allow(unsafe_code)]
            unsafe {
                gemm::gemm(
                    m,
                    count,
                    k,
                    target.0.add(index * rows),
                    1,
                    n as isize,
                    false,
                    x.as_ptr(),
                    1,
                    k as isize,
                    panel.as_ptr(),
                    k as isize,
                    1,
                    0f32,
                    1f32,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
        },
    );
}

/// The output's address, for threads that write separate columns of it.
struct Target(*mut f32);

// SAFETY: the threads write disjoint elements; see the call.
#[allow(unsafe_code)]
unsafe impl Sync for Target {}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;

    #[test]
    fn equals_the_f32_product_for_every_shape_of_tail() {
        let device = Device::Cpu;
        for (m, k, n) in
            [(1, 1, 1), (1, 31, 7), (1, 576, 192), (1, 100, 3000), (2, 33, 9), (5, 64, 1), (17, 300, 523)]
        {
            let x = Tensor::randn(0f32, 1.0, (m, k), &device).unwrap();
            let w = Tensor::randn(0f32, 1.0, (n, k), &device).unwrap().to_dtype(DType::BF16).unwrap();
            let expected = x.to_dtype(DType::F64).unwrap();
            let expected = expected.matmul(&w.to_dtype(DType::F64).unwrap().t().unwrap()).unwrap();
            let got = x.apply_op2_no_bwd(&w, &WideningMatmul).unwrap().to_dtype(DType::F64).unwrap();
            let error =
                (got - &expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(error < 1e-5 * (k as f64).sqrt(), "{m}x{k}x{n}: {error}");
        }
    }

    #[test]
    fn reads_an_offset_view() {
        let w = Tensor::arange(0f32, 12.0, &Device::Cpu).unwrap().reshape((4, 3)).unwrap();
        let w = w.to_dtype(DType::BF16).unwrap().narrow(0, 1, 2).unwrap();
        let x = Tensor::new(&[[1f32, 0.0, 0.0]], &Device::Cpu).unwrap();
        let y = x.apply_op2_no_bwd(&w, &WideningMatmul).unwrap();
        assert_eq!(y.to_vec2::<f32>().unwrap(), [[3.0, 6.0]]);
    }
}
