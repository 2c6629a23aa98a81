//! The one place where a block under training is put together.

use candle_core::{DType, Device, Result, Tensor};

use flm_candle::Attention;
use flm_candle::Block;
use flm_candle::BlockMasks;
use flm_candle::Linear;
use flm_candle::Mlp;
use flm_candle::RmsNorm;
use flm_checkpoint::GrowthMasks;
use flm_checkpoint::TeleFlmConfig;

/// Block `layer` of the given tensors, in the order of [`TeleFlmConfig::block_tensors`], under the masks
/// of a model that is still growing. It computes in `dtype` on `device`.
///
/// The one place where a block under training is put together.
pub(super) fn block(
    config: &TeleFlmConfig,
    growth: Option<&GrowthMasks>,
    layer: usize,
    tensors: &[Tensor; 9],
    (dtype, device): (DType, &Device),
) -> Result<Block> {
    let [input, q, k, v, o, post, gate, up, down] = tensors.clone();
    let norm = |gain| RmsNorm::new(gain, config.rms_norm_eps);
    let block = Block {
        input_layernorm: norm(input),
        self_attn: Attention {
            q_proj: Linear::new(q),
            k_proj: Linear::new(k),
            v_proj: Linear::new(v),
            o_proj: Linear::new(o),
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            mask: None,
        },
        post_attention_layernorm: norm(post),
        mlp: Mlp {
            gate_proj: Linear::new(gate),
            up_proj: Linear::new(up),
            down_proj: Linear::new(down),
            mask: None,
        },
        masks: None,
    };
    let masks = growth.map(|growth| BlockMasks::new(growth, config, layer, dtype, device)).transpose()?;
    Ok(block.with_masks(masks))
}
