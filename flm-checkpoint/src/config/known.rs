//! Keys of config.json that change nothing of what is computed: what is neither here nor read is unknown.

use crate::config::TeleFlmConfig;

/// Keys that are read, or refused where they would change the function.
const READ: &[&str] = &[
    "alibi",
    "apply_residual_connection_post_layernorm",
    "attention_bias",
    "attention_multiplier",
    "attn_logit_softcapping",
    "base_seqlen",
    "bias",
    "bos_token_id",
    "clip_qkv",
    "dtype",
    "embed_layernorm",
    "embedding_multiplier",
    "eos_token_id",
    "final_logit_softcapping",
    "growth",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "hidden_size",
    "input_mult",
    "interleaved_rope",
    "intermediate_size",
    "is_causal",
    "layer_types",
    "lm_head_multiplier",
    "logits_scaling",
    "logn",
    "max_position_embeddings",
    "max_sequence_length",
    "max_window_layers",
    "mlp_bias",
    "model_type",
    "mup_scale_factor",
    "n_routed_experts",
    "no_rope_layer_interval",
    "no_rope_layers",
    "num_attention_heads",
    "num_experts",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_local_experts",
    "original_max_position_embeddings",
    "output_mult",
    "parallel_attn",
    "partial_rotary_factor",
    "qk_norm",
    "qkv_bias",
    "quantization_config",
    "query_pre_attn_scalar",
    "residual_multiplier",
    "rms_norm_eps",
    "rope_interleaved",
    "rope_local_base_freq",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "rotary_pct",
    "scale_depth",
    "scale_emb",
    "sliding_window",
    "sliding_window_pattern",
    "tie_word_embeddings",
    "torch_dtype",
    "use_bias",
    "use_bidirectional_attention",
    "use_mup",
    "use_parallel_residual",
    "use_qk_norm",
    "use_qkv_bias",
    "use_sliding_window",
    "vocab_size",
    "z_loss_weight",
];

/// Keys that change nothing of a forward pass: training, generation, bookkeeping.
const NEUTRAL: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_flash_attn_2_enabled",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "begin_suppress_tokens",
    "cache_implementation",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "embd_pdrop",
    "finetuning_task",
    "flash_attn",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "max_length",
    "mlp_dropout",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "pruned_heads",
    "resid_pdrop",
    "return_dict",
    "sep_token_id",
    "seq_length",
    "task_specific_params",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_flash_attention_2",
    "use_flash_attn",
];

impl TeleFlmConfig {
    /// Keys of the file that are neither read nor known to change nothing; they are carried along.
    pub fn unknown_keys(&self) -> impl Iterator<Item = &str> {
        let known = |key: &str| READ.binary_search(&key).is_ok() || NEUTRAL.binary_search(&key).is_ok();
        self.raw().keys().map(String::as_str).filter(move |key| !known(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::preset::{PRESETS, preset};

    #[test]
    fn the_lists_are_sorted_and_know_what_flm_writes() {
        assert!(READ.is_sorted() && NEUTRAL.is_sorted());
        for name in PRESETS {
            let unknown: Vec<String> = preset(name).unwrap().unknown_keys().map(str::to_owned).collect();
            assert_eq!(unknown, [""; 0], "{name}");
        }
    }

    /// Every key that the code reads by name is in the list, or inspect would call it unknown.
    #[test]
    fn what_is_read_is_known() {
        let sources = [
            include_str!("family.rs"),
            include_str!("json.rs"),
            include_str!("layers.rs"),
            include_str!("refused.rs"),
            include_str!("rope.rs"),
        ];
        // inside `rope_scaling` and `rope_parameters`, not at the top
        let inner = [
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "factor",
            "full_attention",
            "high_freq_factor",
            "low_freq_factor",
            "mscale",
            "mscale_all_dim",
            "rope_type",
            "sliding_attention",
            "truncate",
            "type",
        ];
        let readers =
            ["number", "size", "optional_size", "boolean", "token", "tokens", "get", "contains_key"];
        let mut found = 0;
        for source in sources {
            let code = source.split("#[cfg(test)]").next().unwrap_or_default();
            for reader in readers {
                for rest in code.split(&format!("{reader}(\"")).skip(1) {
                    let key = rest.split('"').next().unwrap_or_default();
                    found += 1;
                    let known = READ.contains(&key) || NEUTRAL.contains(&key) || inner.contains(&key);
                    assert!(known, "{key} is read and not in READ");
                }
            }
        }
        assert!(found > 30, "{found}");
    }

    #[test]
    fn what_nobody_knows_is_named() {
        let mut raw = preset("nano-52b").unwrap().raw().clone();
        raw.insert("smear_gate".into(), 0.3.into());
        raw.insert("use_cache".into(), true.into());
        let config = TeleFlmConfig::from_json(&serde_json::Value::Object(raw).to_string()).unwrap();
        assert_eq!(config.unknown_keys().collect::<Vec<_>>(), ["smear_gate"]);
    }
}
