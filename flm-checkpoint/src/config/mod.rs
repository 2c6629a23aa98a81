//! The model's shape and multipliers: the Hub's `config.json`, read and written without loss.

mod architecture;
mod family;
mod known;
pub(crate) mod masks;
pub(crate) mod preset;
pub(crate) mod rope;
#[cfg(test)]
pub(crate) mod tests;

use crate::config::rope::RopeScaling;
use crate::tensor_id::{Axis, Part, TensorId, TensorShape};

use std::path::Path;

use serde_json::{Map, Value};

use crate::config::masks::GrowthMasks;

/// What can be wrong with a `config.json`.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Path of config.json.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not a JSON object.
    #[error("config.json is not a JSON object: {0}")]
    NotAnObject(String),
    /// A key that has no default is absent.
    #[error("config.json has no `{0}`")]
    Missing(&'static str),
    /// A key holds something of the wrong kind or out of range.
    #[error("config.json: `{key}` is {got}, expected {expected}")]
    Invalid {
        /// Key of config.json.
        key: &'static str,
        /// What it holds.
        got: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// `model_type` names an architecture that is not implemented.
    #[error("config.json: model_type is {0:?}; supported are {families}", families = family::names())]
    ModelType(String),
    /// A feature that changes the function and is not implemented.
    #[error("config.json: {0} is not supported")]
    Unsupported(String),
    /// Two keys contradict each other.
    #[error("config.json: {0}")]
    Inconsistent(String),
}

/// The families of models that are one decoder with different parts, by config.json's `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelType {
    /// Tele-FLM: Llama with µP multipliers on the embedding and the logits.
    TeleFlm,
    /// Llama 1 to 3, and what is Llama by name; opened as Tele-FLM with `use_mup = false`.
    Llama,
    /// Mistral without a sliding window: Llama under another name.
    Mistral,
    /// Qwen 2 and 2.5: Llama with biases on queries, keys and values.
    Qwen2,
    /// Qwen 3, dense: Llama with RMSNorm on every query and key head.
    Qwen3,
}

/// Shape, parts, multipliers and constants of a decoder.
///
/// Fields are the Hub's names. Keys of `config.json` that have no field are kept and written
/// back by [`TeleFlmConfig::to_json`], in their order.
///
/// ```
/// let config = flm_checkpoint::preset("tele-flm-52b").unwrap();
/// assert_eq!(config.parameter_count(), 52_824_121_344);
/// assert_eq!(config.logit_scale(), 0.03125);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TeleFlmConfig {
    /// Architecture.
    pub model_type: ModelType,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of decoder blocks.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key/value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head; `hidden_size / num_attention_heads` where the file does not say.
    pub head_dim: usize,
    /// Rows of the embedding, padding rows included.
    pub vocab_size: usize,
    /// Longest context the model was trained for, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched for longer contexts.
    pub rope_scaling: RopeScaling,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the output projection of attention has a bias.
    pub attention_output_bias: bool,
    /// Whether the three matrices of the feed-forward layer have biases.
    pub mlp_bias: bool,
    /// Whether each query and key head is normalised, with one gain for all heads.
    pub qk_norm: bool,
    /// Whether `lm_head` is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether the three multipliers apply.
    pub use_mup: bool,
    /// Multiplies the embedding's output.
    pub input_mult: f64,
    /// Multiplies the logits.
    pub output_mult: f64,
    /// Divides the logits.
    pub mup_scale_factor: f64,
    /// Token that starts a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text; the file has one id or a list.
    pub eos_token_ids: Vec<u32>,
    /// Masks of a model that is still growing.
    pub growth: Option<GrowthMasks>,
    /// Everything that the file says, fields above included.
    raw: Map<String, Value>,
}

/// The largest size that a dimension may have; far above any model, far below overflow.
const MAX_DIMENSION: u64 = 1 << 32;

impl TeleFlmConfig {
    /// Reads and checks a `config.json`.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.display().to_string(), source })?;
        Self::from_json(&text)
    }

    /// Reads and checks the text of a `config.json`.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let value: Value = serde_json::from_str(text.trim_start_matches('\u{feff}'))
            .map_err(|e| ConfigError::NotAnObject(e.to_string()))?;
        match value {
            Value::Object(raw) => Self::from_map(raw),
            other => Err(ConfigError::NotAnObject(short(&other))),
        }
    }

    fn from_map(raw: Map<String, Value>) -> Result<Self, ConfigError> {
        let keys = Keys(&raw);
        let model_type = match raw.get("model_type").and_then(Value::as_str) {
            Some(name) => {
                ModelType::of(name).ok_or_else(|| ConfigError::ModelType(name.chars().take(80).collect()))?
            }
            None => return Err(ConfigError::Missing("model_type")),
        };
        let family = model_type.family();
        let attention_bias = family.attention_bias_key && keys.boolean("attention_bias")?.unwrap_or(false);
        let mlp_bias = family.mlp_bias_key && keys.boolean("mlp_bias")?.unwrap_or(false);
        for (key, read) in [("attention_bias", attention_bias), ("mlp_bias", mlp_bias)] {
            if !read && keys.boolean(key)?.unwrap_or(false) {
                return Err(ConfigError::Unsupported(format!("`{key}` = true of a {}", family.name)));
            }
        }
        if let Some(act) =
            raw.get("hidden_act").filter(|v| !matches!(v.as_str(), Some("silu" | "swish")) && !v.is_null())
        {
            return Err(ConfigError::Unsupported(format!("`hidden_act` = {}", short(act))));
        }
        unsupported(&raw)?;
        let num_attention_heads = keys.size("num_attention_heads")?;
        let hidden_size = keys.size("hidden_size")?;
        let head_dim = match keys.optional_size("head_dim")? {
            Some(d) => d,
            None if family.head_dim.is_some() => family.head_dim.unwrap_or_default(),
            None if hidden_size % num_attention_heads == 0 => hidden_size / num_attention_heads,
            None => {
                return Err(ConfigError::Inconsistent(format!(
                    "hidden_size {hidden_size} is not a multiple of num_attention_heads {num_attention_heads} and there is no head_dim"
                )));
            }
        };
        let use_mup = model_type == ModelType::TeleFlm && keys.boolean("use_mup")?.unwrap_or(false);
        let multiplier = |key| match keys.number(key)? {
            Some(value) => Ok(value),
            None if use_mup => Err(ConfigError::Missing(key)),
            None => Ok(1.0),
        };
        // transformers 5 takes the inner one where both are given
        let inner = |key: &str| match raw.get(key).and_then(Value::as_object) {
            Some(object) => Keys(object).number("rope_theta"),
            None => Ok(None),
        };
        let rope_theta = match (inner("rope_parameters")?, inner("rope_scaling")?, keys.number("rope_theta")?)
        {
            (Some(theta), ..) | (None, Some(theta), _) | (None, None, Some(theta)) => theta,
            (None, None, None) => 10_000.0,
        };
        // LlamaConfig's defaults; the first Llama's files said max_sequence_length
        let max_position_embeddings = match keys.optional_size("max_position_embeddings")? {
            Some(length) => length,
            None => keys.optional_size("max_sequence_length")?.unwrap_or(family.max_position_embeddings),
        };
        let window = match family.sliding_window {
            absent @ Some(_) if !raw.contains_key("sliding_window") => absent,
            Some(_) => keys.optional_size("sliding_window")?,
            None => None,
        };
        if let Some(window) = window.filter(|&window| window < max_position_embeddings) {
            return Err(ConfigError::Unsupported(format!(
                "`sliding_window` = {window}, below max_position_embeddings = {max_position_embeddings},"
            )));
        }
        let config = Self {
            model_type,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            num_hidden_layers: keys.size("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: keys
                .optional_size("num_key_value_heads")?
                .unwrap_or(family.num_key_value_heads.unwrap_or(num_attention_heads)),
            head_dim,
            vocab_size: keys.size("vocab_size")?,
            max_position_embeddings,
            rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling: RopeScaling::read(&raw, max_position_embeddings)?,
            qkv_bias: family.qkv_bias || attention_bias,
            attention_output_bias: attention_bias,
            mlp_bias,
            qk_norm: family.qk_norm,
            tie_word_embeddings: keys.boolean("tie_word_embeddings")?.unwrap_or(false),
            use_mup,
            input_mult: multiplier("input_mult")?,
            output_mult: multiplier("output_mult")?,
            mup_scale_factor: multiplier("mup_scale_factor")?,
            bos_token_id: keys.token("bos_token_id")?,
            eos_token_ids: keys.tokens("eos_token_id")?,
            growth: keys.get("growth").map(GrowthMasks::from_value).transpose()?,
            raw,
        };
        config.validate()?;
        Ok(config)
    }

    /// Checks that the sizes fit each other; every constructor and writer calls it.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (h, kv) = (self.num_attention_heads, self.num_key_value_heads);
        for (key, size) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", h),
            ("num_key_value_heads", kv),
            ("head_dim", self.head_dim),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if size == 0 || size as u64 > MAX_DIMENSION {
                return Err(invalid(key, size, "a positive size"));
            }
        }
        if !h.is_multiple_of(kv) {
            return Err(ConfigError::Inconsistent(format!(
                "num_attention_heads {h} is not a multiple of num_key_value_heads {kv}"
            )));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(ConfigError::Inconsistent(format!(
                "head_dim {} is odd: rotary needs pairs",
                self.head_dim
            )));
        }
        for (key, value) in [
            ("rms_norm_eps", self.rms_norm_eps),
            ("rope_theta", self.rope_theta),
            ("input_mult", self.input_mult),
            ("output_mult", self.output_mult),
            ("mup_scale_factor", self.mup_scale_factor),
        ] {
            if !value.is_finite() {
                return Err(invalid(key, value, "a finite number"));
            }
        }
        if self.rms_norm_eps < 0.0 {
            return Err(invalid("rms_norm_eps", self.rms_norm_eps, "a number ≥ 0"));
        }
        if self.rope_theta <= 0.0 {
            return Err(invalid("rope_theta", self.rope_theta, "a number > 0"));
        }
        if self.mup_scale_factor == 0.0 {
            return Err(invalid("mup_scale_factor", 0.0, "a number other than 0 (it divides the logits)"));
        }
        if let Some(growth) = &self.growth {
            growth.validate(self)?;
        }
        self.checked_parameter_count().map(drop)
    }

    /// What the embedding's output is multiplied by: `input_mult`, or 1 without µP.
    pub fn input_scale(&self) -> f64 {
        if self.use_mup { self.input_mult } else { 1.0 }
    }

    /// What the logits are multiplied by: `output_mult / mup_scale_factor`, or 1 without µP.
    pub fn logit_scale(&self) -> f64 {
        if self.use_mup { self.output_mult / self.mup_scale_factor } else { 1.0 }
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn key_value_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// The size of a dimension.
    pub fn size(&self, axis: Axis) -> usize {
        match axis {
            Axis::Hidden => self.hidden_size,
            Axis::Query => self.query_width(),
            Axis::KeyValue => self.key_value_width(),
            Axis::HeadDim => self.head_dim,
            Axis::Ffn => self.intermediate_size,
            Axis::Vocab => self.vocab_size,
        }
    }

    /// The parts of a block, in the order of the forward pass.
    pub fn block_parts(&self) -> impl Iterator<Item = Part> {
        let (attention, output, mlp, norms) =
            (self.qkv_bias, self.attention_output_bias, self.mlp_bias, self.qk_norm);
        Part::ALL.into_iter().filter(move |part| match part {
            Part::QBias | Part::KBias | Part::VBias => attention,
            Part::OBias => output,
            Part::GateBias | Part::UpBias | Part::DownBias => mlp,
            Part::QNorm | Part::KNorm => norms,
            Part::InputLayernorm
            | Part::QProj
            | Part::KProj
            | Part::VProj
            | Part::OProj
            | Part::PostAttentionLayernorm
            | Part::GateProj
            | Part::UpProj
            | Part::DownProj => true,
        })
    }

    /// The tensors of block `layer`, in the order of [`TeleFlmConfig::block_parts`].
    pub fn block_tensors(&self, layer: usize) -> Vec<TensorShape> {
        self.block_parts().map(|part| self.tensor(TensorId::Block(layer, part))).collect()
    }

    /// Name and shape of the tensor at this place.
    pub(crate) fn tensor(&self, id: TensorId) -> TensorShape {
        TensorShape { id, name: id.name(), shape: id.axes().iter().map(|&axis| self.size(axis)).collect() }
    }

    /// Every tensor that a checkpoint of this config holds: embedding, blocks, final norm, head.
    ///
    /// A tied head is not listed. The order is that of the forward pass.
    pub fn tensors(&self) -> impl Iterator<Item = TensorShape> + '_ {
        std::iter::once(self.tensor(TensorId::Embedding))
            .chain((0..self.num_hidden_layers).flat_map(|i| self.block_tensors(i)))
            .chain(std::iter::once(self.tensor(TensorId::FinalNorm)))
            .chain((!self.tie_word_embeddings).then(|| self.tensor(TensorId::Head)))
    }

    /// Number of parameters of one block.
    pub fn block_parameter_count(&self) -> u64 {
        self.block_tensors(0).iter().map(|t| t.shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }

    /// Number of parameters, a tied head counted once.
    pub fn parameter_count(&self) -> u64 {
        self.checked_parameter_count().unwrap_or(u64::MAX)
    }

    fn checked_parameter_count(&self) -> Result<u64, ConfigError> {
        let count = || {
            self.num_attention_heads.checked_mul(self.head_dim)?;
            let product = |id: TensorId| {
                id.axes().iter().try_fold(1u64, |n, &axis| n.checked_mul(self.size(axis) as u64))
            };
            let mut total = self
                .block_parts()
                .try_fold(0u64, |n, part| n.checked_add(product(TensorId::Block(0, part))?))?
                .checked_mul(self.num_hidden_layers as u64)?;
            for id in [TensorId::Embedding, TensorId::FinalNorm] {
                total = total.checked_add(product(id)?)?;
            }
            if !self.tie_word_embeddings {
                total = total.checked_add(product(TensorId::Head)?)?;
            }
            // eight bytes a parameter, the widest dtype, must be a file size that systems can express
            (total < (i64::MAX / 8) as u64).then_some(total)
        };
        count().ok_or_else(|| {
            ConfigError::Inconsistent("the sizes multiply to more parameters than can exist".into())
        })
    }

    /// The file's keys as they were read; fields changed since are not in it.
    pub fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    /// The dtype that `torch_dtype` (or `dtype`) names, where it is one that weights can have.
    pub fn declared_dtype(&self) -> Option<candle_core::DType> {
        // transformers 5 reads `dtype` first
        let text = |key: &str| self.raw.get(key).and_then(Value::as_str);
        let name = text("dtype").or_else(|| text("torch_dtype"))?;
        match name.trim_start_matches("torch.") {
            "bfloat16" => Some(candle_core::DType::BF16),
            "float16" => Some(candle_core::DType::F16),
            "float32" => Some(candle_core::DType::F32),
            "float64" => Some(candle_core::DType::F64),
            _ => None,
        }
    }

    /// Declares the dtype of the weights, under each of `torch_dtype` and `dtype` that the file has, or the
    /// former where it has none.
    pub fn set_dtype(&mut self, dtype: candle_core::DType) {
        let name = crate::dtype::torch_name(dtype);
        let newer = self.raw.contains_key("dtype");
        if newer {
            self.raw.insert("dtype".into(), name.into());
        }
        if !newer || self.raw.contains_key("torch_dtype") {
            self.raw.insert("torch_dtype".into(), name.into());
        }
    }

    /// Sets a key that has no field.
    pub fn set_raw(&mut self, key: &str, value: Value) {
        self.raw.insert(key.into(), value);
    }

    /// [`Self::to_json`] for a directory that holds no code: `auto_map` names only classes that stand in a
    /// repository of their own.
    pub fn to_json_without_code(&self) -> String {
        let mut config = self.clone();
        if let Some(Value::Object(map)) = config.raw.get_mut("auto_map") {
            map.retain(|_, class| class.as_str().is_some_and(|class| class.contains("--")));
            if map.is_empty() {
                config.raw.shift_remove("auto_map");
            }
        }
        config.to_json()
    }

    /// The text of a `config.json`: the keys that were read, with every field's present value.
    ///
    /// A key is written where it was present before or where its value is not what a reader would
    /// assume without it, so reading and writing an unchanged config gives the same keys and values.
    pub fn to_json(&self) -> String {
        let mut out = self.raw.clone();
        // the base of rotary is where readers of both generations look for it, with one value
        let mut nested = false;
        for key in ["rope_parameters", "rope_scaling"] {
            let inner = out.get_mut(key).and_then(Value::as_object_mut);
            if let Some(theta) = inner.and_then(|object| object.get_mut("rope_theta")) {
                nested = true;
                if !same_value(theta, &self.rope_theta.into()) {
                    *theta = self.rope_theta.into();
                }
            }
        }
        let mut put = |key: &str, value: Value, implied: bool| {
            let write = match out.get(key) {
                Some(old) => !same_value(old, &value),
                None => !implied,
            };
            if write {
                out.insert(key.into(), value);
            }
        };
        put("model_type", self.model_type.as_str().into(), false);
        for (key, size) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            put(key, size.into(), false);
        }
        let same_heads = self.num_key_value_heads
            == self.model_type.family().num_key_value_heads.unwrap_or(self.num_attention_heads);
        put("num_key_value_heads", self.num_key_value_heads.into(), same_heads);
        let family = self.model_type.family();
        let implied = match family.head_dim {
            Some(implied) => self.head_dim == implied,
            None => self.head_dim * self.num_attention_heads == self.hidden_size,
        };
        put("head_dim", self.head_dim.into(), implied);
        put("rms_norm_eps", self.rms_norm_eps.into(), false);
        // Tele-FLM's own code is of transformers 4, which knows no inner one
        let implied =
            if nested { self.model_type != ModelType::TeleFlm } else { self.rope_theta == 10_000.0 };
        put("rope_theta", self.rope_theta.into(), implied);
        put("tie_word_embeddings", self.tie_word_embeddings.into(), !self.tie_word_embeddings);
        put("use_mup", self.use_mup.into(), !self.use_mup);
        for (key, value) in [
            ("input_mult", self.input_mult),
            ("output_mult", self.output_mult),
            ("mup_scale_factor", self.mup_scale_factor),
        ] {
            put(key, value.into(), !self.use_mup);
        }
        match self.bos_token_id {
            Some(id) => put("bos_token_id", id.into(), false),
            None => put("bos_token_id", Value::Null, true),
        }
        // one entry a layer, all of them what is computed here
        if let Some(Value::Array(types)) = out.get_mut("layer_types") {
            types.resize(self.num_hidden_layers, FULL_ATTENTION.into());
        }
        match self.eos_token_ids.as_slice() {
            [] if out.get("eos_token_id").is_some() => {
                out.insert("eos_token_id".into(), Value::Null);
            }
            [] => {}
            [id] if !out.get("eos_token_id").is_some_and(Value::is_array) => {
                out.insert("eos_token_id".into(), (*id).into());
            }
            ids => {
                out.insert("eos_token_id".into(), ids.into());
            }
        }
        match &self.growth {
            Some(growth) => {
                out.insert("growth".into(), serde_json::to_value(growth).unwrap_or_default());
            }
            None => {
                out.shift_remove("growth");
            }
        }
        let mut text = serde_json::to_string_pretty(&Value::Object(out)).unwrap_or_default();
        text.push('\n');
        text
    }
}

/// The only kind of attention that is computed.
const FULL_ATTENTION: &str = "full_attention";

/// Fails at the first key that would change the function and is not computed.
fn unsupported(raw: &Map<String, Value>) -> Result<(), ConfigError> {
    let off = |value: &Value| {
        value.is_null()
            || value == false
            || value.as_f64() == Some(0.0)
            || value.as_array().is_some_and(Vec::is_empty)
    };
    let one = |value: &Value| value.is_null() || value.as_f64() == Some(1.0);
    let neutral = |key: &str, value: &Value| match key {
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
    match raw.iter().find(|(key, value)| !neutral(key, value)) {
        Some((key, value)) => Err(ConfigError::Unsupported(format!("`{key}` = {}", short(value)))),
        None => Ok(()),
    }
}

/// Equal as JSON, where 4 and 4.0 are the same number.
fn same_value(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(x), Some(y)) => x == y,
        _ => a == b,
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 80 { text.chars().take(80).chain("…".chars()).collect() } else { text }
}

fn invalid(key: &'static str, got: impl std::fmt::Display, expected: &'static str) -> ConfigError {
    ConfigError::Invalid { key, got: got.to_string(), expected }
}

/// Typed access to a JSON object; `null` counts as absent.
struct Keys<'a>(&'a Map<String, Value>);

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    fn optional_size(&self, key: &'static str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if n > 0 && n <= MAX_DIMENSION => Ok(Some(n as usize)),
            _ => Err(invalid(key, short(value), "a positive size")),
        }
    }

    fn size(&self, key: &'static str) -> Result<usize, ConfigError> {
        self.optional_size(key)?.ok_or(ConfigError::Missing(key))
    }

    fn number(&self, key: &'static str) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| invalid(key, short(value), "a number"))
    }

    fn boolean(&self, key: &'static str) -> Result<Option<bool>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| invalid(key, short(value), "true or false"))
    }

    fn token(&self, key: &'static str) -> Result<Option<u32>, ConfigError> {
        Ok(self.tokens(key)?.first().copied())
    }

    fn tokens(&self, key: &'static str) -> Result<Vec<u32>, ConfigError> {
        let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let ids = match value {
            Value::Array(list) => list.iter().map(one).collect::<Option<Vec<_>>>(),
            single => one(single).map(|id| vec![id]),
        };
        ids.ok_or_else(|| invalid(key, short(value), "a token id or a list of them"))
    }
}
