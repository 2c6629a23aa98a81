//! One decoder block, with the masks of a model that is still growing.

use candle_core::{DType, Tensor};

use crate::model::attention::Attention;
use crate::model::forward_context::Pass;
use crate::model::kv_cache::KvCache;
use crate::model::linear::Linear;
use crate::model::masks::BlockMasks;
use crate::model::mlp::Mlp;
use crate::model::rms_norm::RmsNorm;
use flm_checkpoint::{Part, TeleFlmConfig};

/// One decoder block: `x + attention(norm(x))`, then `x + mlp(norm(x))`; in some families the norm is of what a
/// sub-layer writes, `x + norm(attention(x))`, or there are both.
#[derive(Debug, Clone)]
pub struct Block {
    /// Of what attention reads.
    pub attention_input_norm: Option<RmsNorm>,
    /// Attention.
    pub self_attn: Attention,
    /// Of what attention writes.
    pub attention_output_norm: Option<RmsNorm>,
    /// Of what the feed-forward layer reads.
    pub mlp_input_norm: Option<RmsNorm>,
    /// Feed-forward layer.
    pub mlp: Mlp,
    /// Of what the feed-forward layer writes.
    pub mlp_output_norm: Option<RmsNorm>,
    /// What both sub-layers' outputs are multiplied by.
    pub residual_multiplier: f64,
    /// Masks of a model that is still growing, besides those of the parts above.
    pub masks: Option<BlockMasks>,
}

impl Block {
    /// Puts block `layer` together of the parts that the family of `config` has: `matrix` gives projections,
    /// `vector` gains and biases. It has no masks.
    ///
    /// # Errors
    /// The first that `matrix` or `vector` fails with.
    pub fn assemble<E: From<candle_core::Error>>(
        config: &TeleFlmConfig,
        layer: usize,
        mut matrix: impl FnMut(Part) -> Result<Tensor, E>,
        mut vector: impl FnMut(Part) -> Result<Tensor, E>,
    ) -> Result<Self, E> {
        let parts: Vec<Part> = config.block_parts().collect();
        let mut optional = |part| parts.contains(&part).then(|| vector(part)).transpose();
        let mut linear = |part, bias| Ok::<_, E>(Linear::new(matrix(part)?).with_bias(optional(bias)?));
        let (q_proj, k_proj) = (linear(Part::QProj, Part::QBias)?, linear(Part::KProj, Part::KBias)?);
        let (v_proj, o_proj) = (linear(Part::VProj, Part::VBias)?, linear(Part::OProj, Part::OBias)?);
        let mlp = Mlp {
            gate_proj: linear(Part::GateProj, Part::GateBias)?,
            up_proj: linear(Part::UpProj, Part::UpBias)?,
            down_proj: linear(Part::DownProj, Part::DownBias)?,
            activation: config.activation,
            mask: None,
        };
        let mut norm = |part| match optional(part)? {
            Some(stored) => Ok::<_, E>(Some(RmsNorm::new(
                offset_gain(stored, config.gain_offset())?,
                config.rms_norm_eps,
            ))),
            None => Ok(None),
        };
        let (each_q, all_q) = (norm(Part::QNorm)?, norm(Part::QNormWhole)?);
        let (each_k, all_k) = (norm(Part::KNorm)?, norm(Part::KNormWhole)?);
        let post_attention = norm(Part::PostAttentionLayernorm)?;
        let (attention_output_norm, mlp_input_norm) =
            match config.is_output_norm(Part::PostAttentionLayernorm) {
                true => (post_attention, norm(Part::PreFeedforwardLayernorm)?),
                false => (None, post_attention),
            };
        Ok(Self {
            attention_input_norm: norm(Part::InputLayernorm)?,
            self_attn: Attention {
                q_proj,
                k_proj,
                v_proj,
                o_proj,
                whole_norms: all_q.is_some(),
                q_norm: each_q.or(all_q),
                k_norm: each_k.or(all_k),
                heads: config.num_attention_heads,
                kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
                scale: config.score_scale(),
                softcap: config.attention_softcap,
                kind: config.layers.index(layer),
                mask: None,
            },
            attention_output_norm,
            mlp_input_norm,
            mlp,
            mlp_output_norm: norm(Part::PostFeedforwardLayernorm)?,
            residual_multiplier: config.residual_multiplier,
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
        let norms = [
            &mut self.attention_input_norm,
            &mut self.attention_output_norm,
            &mut self.mlp_input_norm,
            &mut self.mlp_output_norm,
        ];
        norms.into_iter().flatten().for_each(|of| of.set_mask(norm));
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
        let normed = |norm: &Option<RmsNorm>, y: &Tensor| match norm {
            Some(norm) => norm.forward(y, pass.path),
            None => Ok(y.clone()),
        };
        let y = self.self_attn.forward(&normed(&self.attention_input_norm, x)?, pass, cache)?;
        let x = (x + self.written(normed(&self.attention_output_norm, &y)?)?)?;
        let y = self.mlp.forward(&normed(&self.mlp_input_norm, &x)?)?;
        x + self.written(normed(&self.mlp_output_norm, &y)?)?
    }

    /// A sub-layer's output as it is added to the residual stream.
    fn written(&self, y: Tensor) -> candle_core::Result<Tensor> {
        let y = match self.residual_multiplier {
            1.0 => y,
            // rounded once, like torch's product with a number
            multiplier if matches!(y.dtype(), DType::BF16 | DType::F16) => {
                (y.to_dtype(DType::F32)? * multiplier)?.to_dtype(y.dtype())?
            }
            multiplier => (y * multiplier)?,
        };
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

/// The gain that a stored one stands for. What is added in a 16-bit dtype would be rounded away: the sum is f32
/// then, as in Gemma's own code.
pub fn offset_gain(stored: Tensor, offset: f64) -> candle_core::Result<Tensor> {
    match offset {
        0.0 => Ok(stored),
        _ => {
            let narrow = matches!(stored.dtype(), DType::BF16 | DType::F16);
            (if narrow { stored.to_dtype(DType::F32)? } else { stored }) + offset
        }
    }
}
