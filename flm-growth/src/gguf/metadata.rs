//! The keys of a GGUF file that say what the model is, and what llama.cpp computes otherwise.

use std::collections::BTreeMap;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use flm_checkpoint::{ModelType, RopeScaling, TeleFlmConfig};

use crate::gguf::Result;
use crate::gguf::architecture::Architecture;
use crate::gguf::container::{ALIGNMENT, Metadata};
use crate::gguf::error::ExportError;
use crate::gguf::plan::GgufOptions;
use crate::gguf::tensor::GgufTensor;

/// Name, and `llama_ftype` of a file whose matrices are of this dtype.
pub(super) fn name_and_file_type(dtype: GgmlDType) -> (&'static str, u32) {
    match dtype {
        GgmlDType::F32 => ("f32", 0),
        GgmlDType::F16 => ("f16", 1),
        GgmlDType::BF16 => ("bf16", 32),
        GgmlDType::Q4_0 => ("q4_0", 2),
        GgmlDType::Q4_1 => ("q4_1", 3),
        GgmlDType::Q5_0 => ("q5_0", 8),
        GgmlDType::Q5_1 => ("q5_1", 9),
        GgmlDType::Q8_0 | GgmlDType::Q8_1 | GgmlDType::Q8K => ("q8_0", 7),
        GgmlDType::Q2K => ("q2_k", 10),
        GgmlDType::Q3K => ("q3_k", 11),
        GgmlDType::Q4K => ("q4_k", 14),
        GgmlDType::Q5K => ("q5_k", 16),
        GgmlDType::Q6K => ("q6_k", 18),
    }
}

/// The base of rotary within the context: TeleChat's is a larger one, where llama.cpp has no scaling of its kind.
fn rope_base(config: &TeleFlmConfig) -> f64 {
    let (width, theta) = (config.rotary_dim(), config.rope_theta);
    match config.rope_scaling {
        // the frequency of pair width / 2 is 1 / base
        RopeScaling::Ntk { .. } => theta * config.rope_scaling.divisor(width / 2, width, theta, 0),
        _ => theta,
    }
}

/// What rotary frequencies are divided by where llama.cpp takes that as tensors: Llama 3.1's, and LongRoPE's.
pub(super) fn rope_factors(config: &TeleFlmConfig) -> Vec<GgufTensor> {
    let tensor = |name: &str, values: Vec<f32>| GgufTensor {
        name: name.into(),
        source: String::new(),
        more_sources: Vec::new(),
        shape: vec![values.len()],
        dtype: GgmlDType::F32,
        added: 0.0,
        factor: 1.0,
        head_dim: None,
        offset: 0,
        nbytes: 4 * values.len() as u64,
        values: Some(values),
    };
    let narrow = |values: &[f64]| values.iter().map(|&value| value as f32).collect();
    match &config.rope_scaling {
        RopeScaling::Llama3 { .. } => {
            let (width, theta) = (config.rotary_dim(), config.rope_theta);
            let divisor = |i| config.rope_scaling.divisor(i, width, theta, 0) as f32;
            vec![tensor("rope_freqs.weight", (0..width / 2).map(divisor).collect())]
        }
        RopeScaling::LongRope { short_factor, long_factor, .. } => vec![
            tensor("rope_factors_long.weight", narrow(long_factor)),
            tensor("rope_factors_short.weight", narrow(short_factor)),
        ],
        _ => Vec::new(),
    }
}

/// What of attention llama.cpp computes by its own rule.
pub(super) fn window_note(config: &TeleFlmConfig, architecture: Architecture) -> Option<String> {
    let windows = config.layers.kinds().iter().filter_map(|kind| kind.window);
    let window = windows.min().filter(|_| architecture.drops_window)?;
    (window < config.max_position_embeddings).then(|| {
        format!(
            "llama.cpp leaves the sliding window of {window} tokens out: it differs from the model in longer texts"
        )
    })
}

/// What of the rotary scaling llama.cpp computes by its own rule.
pub(super) fn rope_note(config: &TeleFlmConfig) -> Option<String> {
    if let RopeScaling::LongRope { original, .. } = config.rope_scaling {
        return Some(format!(
            "llama.cpp takes the frequencies for long texts where its context (--ctx-size) is above {original}, \
             the model where the text is"
        ));
    }
    let RopeScaling::Yarn { truncate, beta_fast, beta_slow, .. } = config.rope_scaling else { return None };
    if (beta_fast, beta_slow) != (32.0, 1.0) {
        return Some(format!(
            "some releases of llama.cpp take 32 and 1 for YaRN's betas whatever the file says; the model has \
             {beta_fast} and {beta_slow}"
        ));
    }
    (!truncate)
        .then(|| "llama.cpp begins and ends YaRN's ramp at whole dimensions; the model does not".to_owned())
}

/// `general.*` and those of the architecture.
pub(super) fn metadata(
    config: &TeleFlmConfig,
    architecture: Architecture,
    tensors: &[GgufTensor],
    options: &GgufOptions,
) -> Result<Metadata> {
    let mut sizes: BTreeMap<u32, u64> = BTreeMap::new();
    for tensor in tensors.iter().filter(|t| t.source.starts_with("model.layers.") && t.shape.len() == 2) {
        *sizes.entry(name_and_file_type(tensor.dtype).1).or_default() += tensor.nbytes;
    }
    let file_type = sizes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or(0, |(file_type, _)| file_type);
    let mut out = Vec::new();
    let mut put = |key: &str, value| out.push((key.to_owned(), value));
    put("general.architecture", Value::String(architecture.name.into()));
    put("general.type", Value::String("model".into()));
    if let Some(name) = &options.name {
        put("general.name", Value::String(name.clone()));
    }
    put("general.file_type", Value::U32(file_type));
    put("general.quantization_version", Value::U32(2));
    put("general.alignment", Value::U32(ALIGNMENT as u32));
    for (key, of, value) in [
        ("vocab_size", "vocab_size", config.vocab_size),
        ("context_length", "max_position_embeddings", config.max_position_embeddings),
        ("embedding_length", "hidden_size", config.hidden_size),
        ("block_count", "num_hidden_layers", config.num_hidden_layers),
        ("feed_forward_length", "intermediate_size", config.intermediate_size),
        ("attention.head_count", "num_attention_heads", config.num_attention_heads),
        ("attention.head_count_kv", "num_key_value_heads", config.num_key_value_heads),
        ("attention.key_length", "head_dim", config.head_dim),
        ("attention.value_length", "head_dim", config.head_dim),
        ("rope.dimension_count", "head_dim", config.rotary_dim()),
    ] {
        let number = u32::try_from(value).map_err(|_| ExportError::TooLarge { key: of, value })?;
        put(&format!("{}.{key}", architecture.name), Value::U32(number));
    }
    let mut put = |key: &str, value| out.push((format!("{}.{key}", architecture.name), value));
    put("attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps as f32));
    put("rope.freq_base", Value::F32(rope_base(config) as f32));
    match config.rope_scaling {
        // Llama 3.1's is a tensor
        RopeScaling::Default | RopeScaling::Ntk { .. } | RopeScaling::Llama3 { .. } => {}
        // refused before
        RopeScaling::Dynamic { .. } => {}
        RopeScaling::LongRope { original, attention_factor, .. } => {
            put("rope.scaling.original_context_length", Value::U32(original as u32));
            put("rope.scaling.attn_factor", Value::F32(attention_factor as f32));
        }
        RopeScaling::Linear { factor } => {
            put("rope.scaling.type", Value::String("linear".into()));
            put("rope.scaling.factor", Value::F32(factor as f32));
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original, attention_factor, .. } => {
            // llama.cpp multiplies its own factor by this one
            let usual = 1.0 + 0.1 * factor.max(1.0).ln();
            if (attention_factor - usual).abs() > 1e-6 {
                put("rope.scaling.attn_factor", Value::F32((attention_factor / usual) as f32));
            }
            put("rope.scaling.type", Value::String("yarn".into()));
            put("rope.scaling.factor", Value::F32(factor as f32));
            put("rope.scaling.original_context_length", Value::U32(original as u32));
            put("rope.scaling.yarn_beta_fast", Value::F32(beta_fast as f32));
            put("rope.scaling.yarn_beta_slow", Value::F32(beta_slow as f32));
        }
    }
    let windows = config.layers.kinds().iter().filter_map(|kind| kind.window);
    if let Some(window) = windows.max() {
        put("attention.sliding_window", Value::U32(u32::try_from(window).unwrap_or(u32::MAX)));
    }
    if config.model_type == ModelType::Granite {
        put("attention.scale", Value::F32(config.score_scale() as f32));
        put("embedding_scale", Value::F32(config.embedding_multiplier as f32));
        put("residual_scale", Value::F32(config.residual_multiplier as f32));
        put("logit_scale", Value::F32(config.logits_scaling as f32));
    }
    for (key, cap) in [
        ("attn_logit_softcapping", config.attention_softcap),
        ("final_logit_softcapping", config.logit_softcap),
    ] {
        if let Some(cap) = cap {
            put(key, Value::F32(cap as f32));
        }
    }
    Ok(out)
}
