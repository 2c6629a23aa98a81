//! The feed-forward layer.

use candle_core::{DType, Result, Tensor};

use crate::model::kernels::supports;
use crate::model::kernels::swiglu::swiglu;
use crate::model::linear::Linear;
use flm_checkpoint::Activation;

/// A gated layer: `down(activation(gate(x)) · up(x))`; SwiGLU with SiLU, GeGLU with GELU. Shazeer,
/// arXiv 2002.05202.
#[derive(Debug, Clone)]
pub struct Mlp {
    /// `[intermediate_size, hidden_size]`.
    pub gate_proj: Linear,
    /// `[intermediate_size, hidden_size]`.
    pub up_proj: Linear,
    /// `[hidden_size, intermediate_size]`.
    pub down_proj: Linear,
    /// What is applied to the gates.
    pub activation: Activation,
    /// Of a model that is still growing: what each unit is multiplied by, `[intermediate_size]`.
    pub mask: Option<Tensor>,
}

impl Mlp {
    /// `x` is `[b, t, hidden_size]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (gate, up) = (self.gate_proj.forward(x)?, self.up_proj.forward(x)?);
        let statistics = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let units = match self.activation {
            Activation::Silu if supports(x) => swiglu(&gate, &up)?,
            Activation::Silu => (gate.to_dtype(statistics)?.silu()?.to_dtype(x.dtype())? * up)?,
            Activation::GeluTanh => (gate.to_dtype(statistics)?.gelu()?.to_dtype(x.dtype())? * up)?,
        };
        match &self.mask {
            Some(mask) => self.down_proj.forward(&units.broadcast_mul(mask)?),
            None => self.down_proj.forward(&units),
        }
    }
}
