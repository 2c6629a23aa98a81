//! Named shapes: the released models, the unreleased stage between them, and nano sizes for tests.

use serde_json::json;

use crate::config::TeleFlmConfig;

/// Names that [`preset`] knows.
///
/// The `nano` family keeps, from stage to stage, the ratios of the real models in layers
/// (16 : 20 : 35), heads and width (4 : 5 : 10), feed-forward width per hidden width
/// (2.66, 2.66, 4.8), multipliers and padded vocabulary rows, at a size for tests.
pub const PRESETS: [&str; 6] =
    ["tele-flm-52b", "tele-flm-102b", "tele-flm-1t", "nano-52b", "nano-102b", "nano-1t"];

/// A named configuration; `None` for a name that is not in [`PRESETS`].
///
/// The 52B and 1T rows are the released `config.json` files. The 102B stage was never released:
/// its row reproduces the published 102.3 B parameters, its multipliers keep the 52B's logit scale.
pub fn preset(name: &str) -> Option<TeleFlmConfig> {
    struct Row {
        layers: usize,
        heads: usize,
        hidden: usize,
        ffn: usize,
        vocab: usize,
        context: usize,
        output_mult: f64,
        mup_scale_factor: f64,
    }
    let row = |layers, heads, hidden, ffn, vocab, context, output_mult, mup_scale_factor| Row {
        layers,
        heads,
        hidden,
        ffn,
        vocab,
        context,
        output_mult,
        mup_scale_factor,
    };
    let r = match name {
        "tele-flm-52b" => row(64, 64, 8192, 21824, 80384, 4096, 0.5, 16.0),
        "tele-flm-102b" => row(80, 80, 10240, 27264, 80384, 4096, 1.25, 40.0),
        "tele-flm-1t" => row(140, 160, 20480, 98304, 81920, 4096, 2.0, 80.0),
        "nano-52b" => row(16, 4, 96, 256, 4032, 512, 0.5, 16.0),
        "nano-102b" => row(20, 5, 120, 320, 4032, 512, 1.25, 40.0),
        "nano-1t" => row(35, 10, 240, 1152, 4096, 512, 2.0, 80.0),
        _ => return None,
    };
    let json = json!({
        "architectures": ["TeleFLMForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": r.hidden,
        "initializer_range": 0.02,
        "input_mult": 1.0,
        "intermediate_size": r.ffn,
        "max_position_embeddings": r.context,
        "model_type": "TeleFLM",
        "mup_scale_factor": r.mup_scale_factor,
        "num_attention_heads": r.heads,
        "num_hidden_layers": r.layers,
        "num_key_value_heads": r.heads,
        "output_mult": r.output_mult,
        "rms_norm_eps": 1e-5,
        "rope_scaling": null,
        "rope_theta": 10000,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "use_cache": true,
        "use_mup": true,
        "vocab_size": r.vocab,
    });
    TeleFlmConfig::from_json(&json.to_string()).ok()
}
