use candle_core::{Result, Tensor};

use super::{Attention, KvCache, Mlp, Pass, RmsNorm};

/// One decoder block: `x + attention(norm(x))`, then `x + mlp(norm(x))`.
#[derive(Debug, Clone)]
pub struct Block {
    /// Before attention.
    pub input_layernorm: RmsNorm,
    /// Attention.
    pub self_attn: Attention,
    /// Before the feed-forward layer.
    pub post_attention_layernorm: RmsNorm,
    /// Feed-forward layer.
    pub mlp: Mlp,
}

impl Block {
    /// `x` is the residual stream, `[b, t, hidden_size]`.
    pub fn forward(&self, x: &Tensor, pass: &Pass, cache: Option<(&mut KvCache, usize)>) -> Result<Tensor> {
        let y = self.self_attn.forward(&self.input_layernorm.forward(x, pass.path)?, pass, cache)?;
        let x = (x + y)?;
        let y = self.mlp.forward(&self.post_attention_layernorm.forward(&x, pass.path)?)?;
        x + y
    }
}
