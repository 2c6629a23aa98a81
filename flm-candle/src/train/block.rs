use candle_core::Tensor;

use crate::{
    config::TeleFlmConfig,
    model::{Attention, Block, Linear, Mlp, RmsNorm},
};

/// A block of the given tensors, in the order of [`TeleFlmConfig::block_tensors`].
///
/// The one place where a block under training is put together: what else a block carries (growth
/// masks) joins here.
pub(super) fn block(config: &TeleFlmConfig, tensors: &[Tensor; 9]) -> Block {
    let [input, q, k, v, o, post, gate, up, down] = tensors.clone();
    let norm = |gain| RmsNorm::new(gain, config.rms_norm_eps);
    Block {
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
    }
}
