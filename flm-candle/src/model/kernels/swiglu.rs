//! `silu(gate) · up` with its own backward.

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Result, Shape, Tensor, WithDType};
use rayon::prelude::*;

use crate::model::kernels::matmul::Real;
use crate::model::kernels::{TASK, values, with_values};

/// `silu(gate) · up`, of tensors of equal shape.
///
/// Backward: with `s = 1 / (1 + e^(−gate))`: `d gate = dy · up · s · (1 + gate · (1 − s))`,
/// `d up = dy · gate · s`.
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.contiguous()?.apply_op2(&up.contiguous()?, SwiGlu)
}

struct SwiGlu;

fn forward<T: Real>(gate: &[T], up: &[T]) -> Vec<T> {
    let mut out = vec![T::ZERO; gate.len()];
    out.par_chunks_mut(TASK).zip(gate.par_chunks(TASK).zip(up.par_chunks(TASK))).for_each(
        |(out, (gate, up))| {
            for ((y, &g), &u) in out.iter_mut().zip(gate).zip(up) {
                *y = g / (T::ONE + (-g).exponential()) * u;
            }
        },
    );
    out
}

fn backward<T: Real>(gate: &[T], up: &[T], dy: &[T]) -> (Vec<T>, Vec<T>) {
    let (mut dgate, mut dup) = (vec![T::ZERO; gate.len()], vec![T::ZERO; gate.len()]);
    let outputs = dgate.par_chunks_mut(TASK).zip(dup.par_chunks_mut(TASK));
    let inputs = gate.par_chunks(TASK).zip(up.par_chunks(TASK)).zip(dy.par_chunks(TASK));
    outputs.zip(inputs).for_each(|((dgate, dup), ((gate, up), dy))| {
        for ((((dg, du), &g), &u), &dy) in dgate.iter_mut().zip(dup).zip(gate).zip(up).zip(dy) {
            let s = T::ONE / (T::ONE + (-g).exponential());
            *du = dy * g * s;
            *dg = dy * u * s * (T::ONE + g * (T::ONE - s));
        }
    });
    (dgate, dup)
}

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gl: &Layout,
        up: &CpuStorage,
        ul: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = if matches!(gate, CpuStorage::F64(_)) {
            f64::to_cpu_storage_owned(forward::<f64>(values(gate, gl)?, values(up, ul)?))
        } else {
            f32::to_cpu_storage_owned(forward::<f32>(values(gate, gl)?, values(up, ul)?))
        };
        Ok((out, gl.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        fn run<T: Real>(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
            let shape = gate.shape();
            let (dgate, dup) = with_values([gate, up, dy], |[g, u, d]: [&[T]; 3]| Ok(backward(g, u, d)))?;
            let tensor = |values| Tensor::from_vec(values, shape, &Device::Cpu).map(Some);
            Ok((tensor(dgate)?, tensor(dup)?))
        }
        let dy = dy.contiguous()?;
        if gate.dtype() == DType::F64 { run::<f64>(gate, up, &dy) } else { run::<f32>(gate, up, &dy) }
    }
}
