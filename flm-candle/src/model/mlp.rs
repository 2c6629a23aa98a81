use candle_core::{Result, Tensor};

use super::{
    Linear,
    differentiable::{supports, swiglu},
};

/// SwiGLU: `down(silu(gate(x)) · up(x))`. Shazeer, arXiv 2002.05202.
#[derive(Debug, Clone)]
pub struct Mlp {
    /// `[intermediate_size, hidden_size]`.
    pub gate_proj: Linear,
    /// `[intermediate_size, hidden_size]`.
    pub up_proj: Linear,
    /// `[hidden_size, intermediate_size]`.
    pub down_proj: Linear,
}

impl Mlp {
    /// `x` is `[b, t, hidden_size]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (gate, up) = (self.gate_proj.forward(x)?, self.up_proj.forward(x)?);
        let activation = if supports(&gate) { swiglu(&gate, &up)? } else { (gate.silu()? * up)? };
        self.down_proj.forward(&activation)
    }
}
