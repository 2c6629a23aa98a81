//! Keys of a config.json that change the function and are not computed.

use serde_json::{Map, Value};

use crate::config::family::Family;
use crate::config::keys::short;
use crate::config::layers::{Positions, Windows};
use crate::config::{ConfigError, ModelType};

/// The only kind of attention that every family has.
const FULL_ATTENTION: &str = "full_attention";

/// What a family of several forms has where config.json tells by other keys that it is not the one that is computed.
fn form(raw: &Map<String, Value>, family: &Family) -> Option<&'static str> {
    let named = |name: &str| {
        let names = raw.get("architectures").and_then(Value::as_array);
        names.is_some_and(|names| names.iter().any(|given| given == name))
    };
    match family.model_type() {
        // 13B's class has `model_max_length` alone
        ModelType::Baichuan if !raw.contains_key("max_position_embeddings") => {
            Some("a baichuan without `max_position_embeddings`, which is 13B with ALiBi,")
        }
        ModelType::Baichuan
            if named("BaichuanForCausalLM")
                || raw.contains_key("z_loss_weight")
                || raw.get("vocab_size").is_some_and(|size| size == 125_696) =>
        {
            Some(
                "the head of normalised rows that Baichuan 2 has, by `architectures`, `z_loss_weight` or size,",
            )
        }
        // the class's default is true
        ModelType::InternLm2 if !raw.contains_key("bias") => {
            Some("an internlm2 without `bias`, which is then true,")
        }
        _ => None,
    }
}

/// Fails at the first key that would change the function and is not computed.
pub(crate) fn check(raw: &Map<String, Value>, family: &Family) -> Result<(), ConfigError> {
    let off = |value: &Value| {
        value.is_null()
            || value == false
            || value.as_f64() == Some(0.0)
            || value.as_array().is_some_and(Vec::is_empty)
    };
    let one = |value: &Value| value.is_null() || value.as_f64() == Some(1.0);
    let windows = family.windows != Windows::None;
    let neutral = |key: &str, value: &Value| match key {
        // what the family reads is no longer asked here
        "layer_types" if windows => true,
        "use_sliding_window" if matches!(family.windows, Windows::From | Windows::WithoutPositions) => true,
        "no_rope_layers" | "no_rope_layer_interval" if family.positions == Positions::NoRopeLayers => true,
        "attn_logit_softcapping" | "final_logit_softcapping" if family.softcaps.is_some() => true,
        "embedding_multiplier" | "attention_multiplier" | "residual_multiplier" | "logits_scaling"
            if family.scalars =>
        {
            true
        }
        "partial_rotary_factor" if family.partial_rotary => true,
        "use_bidirectional_attention" => off(value),
        "is_causal" => value.is_null() || value == true,
        "quantization_config" => value.is_null(),
        "layer_types" => {
            value.is_null()
                || value.as_array().is_some_and(|types| types.iter().all(|kind| kind == FULL_ATTENTION))
        }
        "use_sliding_window"
        | "rope_interleaved"
        | "interleaved_rope"
        | "qk_norm"
        | "use_qk_norm"
        | "use_qkv_bias"
        | "qkv_bias"
        | "bias"
        | "parallel_attn"
        | "use_parallel_residual"
        | "alibi"
        | "apply_residual_connection_post_layernorm"
        | "embed_layernorm"
        | "logn"
        | "attn_logit_softcapping"
        | "final_logit_softcapping"
        | "clip_qkv"
        | "no_rope_layers"
        | "no_rope_layer_interval" => off(value),
        "partial_rotary_factor"
        | "rotary_pct"
        | "embedding_multiplier"
        | "attention_multiplier"
        | "residual_multiplier"
        | "logits_scaling"
        | "scale_emb"
        | "scale_depth"
        | "lm_head_multiplier" => one(value),
        "num_local_experts" | "num_experts" | "n_routed_experts" => one(value) || off(value),
        _ => true,
    };
    if let Some(what) = form(raw, family) {
        return Err(ConfigError::Unsupported(what.into()));
    }
    match raw.iter().find(|(key, value)| !neutral(key, value)) {
        Some((key, value)) => Err(ConfigError::Unsupported(format!("`{key}` = {}", short(value)))),
        None if windows => Ok(()),
        None => check_window(raw, family),
    }
}

/// Fails where a family without windows has one that its context outgrows: another family under its name.
fn check_window(raw: &Map<String, Value>, family: &Family) -> Result<(), ConfigError> {
    let number = |key: &str| raw.get(key).and_then(Value::as_u64);
    let context = number("max_position_embeddings").unwrap_or(family.max_position_embeddings as u64);
    let off = raw.get("use_sliding_window") == Some(&Value::Bool(false));
    match number("sliding_window").filter(|&window| window > 0 && window < context && !off) {
        Some(window) => Err(ConfigError::Inconsistent(format!(
            "`sliding_window` is {window}, less than the context of {context}, and a {} has no window: set \
             model_type to the model's own (mistral), or remove the key to compute without one, as transformers \
             does",
            family.name
        ))),
        None => Ok(()),
    }
}
