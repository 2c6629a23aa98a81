//! One decoder block, with the masks of a model that is still growing.

use candle_core::Tensor;

use crate::model::attention::Attention;
use crate::model::forward_context::Pass;
use crate::model::kv_cache::KvCache;
use crate::model::linear::Linear;
use crate::model::masks::BlockMasks;
use crate::model::mlp::Mlp;
use crate::model::rms_norm::RmsNorm;
use flm_checkpoint::{Part, TeleFlmConfig};

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
    /// Masks of a model that is still growing, besides those of the parts above.
    pub masks: Option<BlockMasks>,
}

impl Block {
    /// Puts a block together of the parts that the family of `config` has: `matrix` gives projections,
    /// `vector` gains and biases. It has no masks.
    ///
    /// # Errors
    /// The first that `matrix` or `vector` fails with.
    pub fn assemble<E>(
        config: &TeleFlmConfig,
        mut matrix: impl FnMut(Part) -> Result<Tensor, E>,
        mut vector: impl FnMut(Part) -> Result<Tensor, E>,
    ) -> Result<Self, E> {
        let parts: Vec<Part> = config.block_parts().collect();
        let mut optional = |part| parts.contains(&part).then(|| vector(part)).transpose();
        let mut linear = |part, bias| Ok(Linear::new(matrix(part)?).with_bias(optional(bias)?));
        let (q_proj, k_proj) = (linear(Part::QProj, Part::QBias)?, linear(Part::KProj, Part::KBias)?);
        let (v_proj, o_proj) = (linear(Part::VProj, Part::VBias)?, linear(Part::OProj, Part::OBias)?);
        let mlp = Mlp {
            gate_proj: linear(Part::GateProj, Part::GateBias)?,
            up_proj: linear(Part::UpProj, Part::UpBias)?,
            down_proj: linear(Part::DownProj, Part::DownBias)?,
            mask: None,
        };
        let norm = |gain| RmsNorm::new(gain, config.rms_norm_eps);
        let (q_norm, k_norm) = (optional(Part::QNorm)?.map(norm), optional(Part::KNorm)?.map(norm));
        Ok(Self {
            input_layernorm: norm(vector(Part::InputLayernorm)?),
            self_attn: Attention {
                q_proj,
                k_proj,
                v_proj,
                o_proj,
                q_norm,
                k_norm,
                heads: config.num_attention_heads,
                kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
                mask: None,
            },
            post_attention_layernorm: norm(vector(Part::PostAttentionLayernorm)?),
            mlp,
            masks: None,
        })
    }

    /// The same block with these masks, or with none.
    pub fn with_masks(mut self, masks: Option<BlockMasks>) -> Self {
        self.set_masks(masks);
        self
    }

    /// Gives the block and its parts these masks, or none.
    pub fn set_masks(&mut self, masks: Option<BlockMasks>) {
        let norm = masks.as_ref().and_then(|m| m.norm);
        self.input_layernorm.set_mask(norm);
        self.post_attention_layernorm.set_mask(norm);
        self.self_attn.mask = masks.as_ref().and_then(|m| m.heads.clone());
        self.mlp.mask = masks.as_ref().and_then(|m| m.ffn.clone());
        self.masks = masks;
    }

    /// `x` is the residual stream, `[b, t, hidden_size]`.
    pub fn forward(
        &self,
        x: &Tensor,
        pass: &Pass,
        cache: Option<(&mut KvCache, usize)>,
    ) -> candle_core::Result<Tensor> {
        let y = self.self_attn.forward(&self.input_layernorm.forward(x, pass.path)?, pass, cache)?;
        let x = (x + self.masked(y)?)?;
        let y = self.mlp.forward(&self.post_attention_layernorm.forward(&x, pass.path)?)?;
        x + self.masked(y)?
    }

    /// A sub-layer's output as it is added to the residual stream.
    fn masked(&self, y: Tensor) -> candle_core::Result<Tensor> {
        let Some(masks) = &self.masks else { return Ok(y) };
        let y = match &masks.hidden {
            Some(mask) => y.broadcast_mul(mask)?,
            None => y,
        };
        match masks.layer {
            1.0 => Ok(y),
            // candle takes a product with the number 0 for a constant: its factors would get no gradient
            0.0 => y.broadcast_mul(&Tensor::zeros((), y.dtype(), y.device())?),
            mask => y * mask,
        }
    }
}
