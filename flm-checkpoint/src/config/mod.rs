//! The model's shape and multipliers: the Hub's `config.json`, read and written without loss.

mod architecture;
mod family;
mod keys;
mod known;
pub(crate) mod layers;
pub(crate) mod masks;
pub(crate) mod preset;
mod refused;
pub(crate) mod rope;
#[cfg(test)]
pub(crate) mod tests;

use crate::config::keys::{Keys, MAX_DIMENSION, invalid, short};
use crate::config::layers::LayerKinds;
use crate::config::rope::{RopeScaling, model_table, model_table_mut};
use crate::dtype::Dtype;
use crate::tensor_id::{Axis, FUSED, Fused, Part, TensorId, TensorShape};

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
    /// Mistral: Llama, with or without a sliding window.
    Mistral,
    /// Ministral: Mistral with a window in some layers.
    Ministral,
    /// Qwen 2 and 2.5: Llama with biases on queries, keys and values.
    Qwen2,
    /// Qwen 3, dense: Llama with RMSNorm on every query and key head.
    Qwen3,
    /// Granite 3 and 4, dense: Llama with four scalars.
    Granite,
    /// SmolLM3: Llama without positions in every fourth layer.
    SmolLm3,
    /// OLMo 2: norms after attention and feed-forward layer, and of all queries and keys together.
    Olmo2,
    /// OLMo 3: OLMo 2 with a window in three of four layers.
    Olmo3,
    /// EXAONE 4: norms after the sub-layers and of each head, windows, no positions where there is none.
    Exaone4,
    /// Phi 3 and 4: Llama with fused matrices, part of each head turned, and two sets of frequencies.
    Phi3,
    /// Gemma: Llama with GeGLU, gains stored less 1 and an embedding multiplied by the root of the width.
    Gemma,
    /// Gemma 2: norms around the sub-layers, GeGLU, soft caps, a window in every second layer.
    Gemma2,
    /// Gemma 3, text: Gemma 2 with norms of heads, without soft caps, with two rotary bases.
    Gemma3,
}

/// Where a block's norms are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NormPlacement {
    /// Of what attention and the feed-forward layer read.
    Before,
    /// Of what they write.
    After,
    /// Both.
    Around,
}

/// How queries and keys are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum QkNorm {
    /// Not at all.
    None,
    /// Each head, with one gain for all heads.
    Heads,
    /// All heads together, with a gain for each entry.
    Whole,
}

/// What is applied to the gates of the feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// The approximation of GELU by tanh.
    GeluTanh,
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
    /// How queries and keys are normalised.
    pub qk_norm: QkNorm,
    /// Where a block's norms are.
    pub norms: NormPlacement,
    /// What is applied to the gates of the feed-forward layer.
    pub activation: Activation,
    /// Which blocks attend how.
    pub layers: LayerKinds,
    /// The part of a head that is turned by its position, its first entries.
    pub partial_rotary_factor: f64,
    /// What scores are multiplied by; `None` for `1/√head_dim`.
    pub attention_multiplier: Option<f64>,
    /// What each sub-layer's output is multiplied by.
    pub residual_multiplier: f64,
    /// Multiplies the embedding's output, besides `input_mult`.
    pub embedding_multiplier: f64,
    /// Divides the logits, besides `mup_scale_factor`.
    pub logits_scaling: f64,
    /// What bounds the scores, `c · tanh(x / c)`.
    pub attention_softcap: Option<f64>,
    /// What bounds the logits, `c · tanh(x / c)`.
    pub logit_softcap: Option<f64>,
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
        let (key, default) = family.activation;
        let activation = match keys.get(key).map(|name| (name, name.as_str())) {
            None => default,
            Some((_, Some("silu" | "swish"))) => Activation::Silu,
            Some((_, Some("gelu_pytorch_tanh" | "gelu_new"))) => Activation::GeluTanh,
            // what Gemma's files say and never meant
            Some((_, Some("gelu"))) if model_type == ModelType::Gemma => Activation::GeluTanh,
            Some((name, _)) => return Err(ConfigError::Unsupported(format!("`{key}` = {}", short(name)))),
        };
        refused::check(&raw, family)?;
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
        let outer = keys.number("rope_theta")?.unwrap_or(family.rope_theta);
        let inner = |key: &str| -> Result<Option<f64>, ConfigError> {
            match model_table(&raw, key).filter(|object| !object.is_empty()) {
                Some(object) => Ok(Some(Keys(object).number("rope_theta")?.unwrap_or(outer))),
                None => Ok(None),
            }
        };
        let rope_theta = match (inner("rope_scaling")?, inner("rope_parameters")?) {
            (Some(one), Some(other)) if one != other => {
                return Err(ConfigError::Unsupported(format!(
                    "`rope_theta` of `rope_scaling` = {one} beside that of `rope_parameters` = {other}"
                )));
            }
            (Some(theta), _) | (None, Some(theta)) => theta,
            (None, None) => outer,
        };
        // LlamaConfig's defaults; the first Llama's files said max_sequence_length
        let max_position_embeddings = match keys.optional_size("max_position_embeddings")? {
            Some(length) => length,
            None => keys.optional_size("max_sequence_length")?.unwrap_or(family.max_position_embeddings),
        };
        let num_hidden_layers = keys.size("num_hidden_layers")?;
        let partial = |object: &Map<String, Value>| Keys(object).number("partial_rotary_factor");
        let mut turned = if family.partial_rotary { partial(&raw)? } else { None };
        for key in ["rope_scaling", "rope_parameters"] {
            if let Some(factor) = model_table(&raw, key).map(partial).transpose()?.flatten() {
                turned = Some(factor);
            }
        }
        let turned = turned.unwrap_or(1.0);
        if turned != 1.0 && !family.partial_rotary || !(0.0..=1.0).contains(&turned) {
            return Err(ConfigError::Unsupported(format!("`partial_rotary_factor` = {turned}")));
        }
        let scalar = |key| if family.scalars { keys.number(key) } else { Ok(None) };
        // absent in transformers' GraniteConfig: 1, not the root
        let attention_multiplier = match (family.scalars, family.query_scalar) {
            (true, _) => Some(scalar("attention_multiplier")?.unwrap_or(1.0)),
            (false, Some(default)) => {
                Some(keys.number("query_pre_attn_scalar")?.unwrap_or(default).powf(-0.5))
            }
            (false, None) => None,
        };
        // null is none; only an absent key has the family's default
        let softcap = |key: &'static str, index: usize| match family.softcaps {
            Some(defaults) if !raw.contains_key(key) => Ok(defaults[index]),
            Some(_) => keys.number(key),
            None => Ok(None),
        };
        let config = Self {
            model_type,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: keys
                .optional_size("num_key_value_heads")?
                .unwrap_or(family.num_key_value_heads.unwrap_or(num_attention_heads)),
            head_dim,
            vocab_size: keys.size("vocab_size")?,
            max_position_embeddings,
            rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(family.rms_norm_eps),
            rope_theta,
            rope_scaling: RopeScaling::read(&raw, max_position_embeddings)?,
            qkv_bias: family.qkv_bias || attention_bias,
            attention_output_bias: attention_bias,
            mlp_bias,
            qk_norm: family.qk_norm,
            norms: family.norms,
            activation,
            layers: LayerKinds::read(&raw, family, num_hidden_layers)?,
            partial_rotary_factor: turned,
            attention_multiplier,
            residual_multiplier: scalar("residual_multiplier")?.unwrap_or(1.0),
            embedding_multiplier: scalar("embedding_multiplier")?.unwrap_or(1.0),
            logits_scaling: scalar("logits_scaling")?.unwrap_or(1.0),
            attention_softcap: softcap("attn_logit_softcapping", 0)?,
            logit_softcap: softcap("final_logit_softcapping", 1)?,
            tie_word_embeddings: keys.boolean("tie_word_embeddings")?.unwrap_or(family.tie_word_embeddings),
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
        let turned = self.rotary_dim();
        if !self.head_dim.is_multiple_of(2) {
            return Err(ConfigError::Inconsistent(format!(
                "head_dim {} is odd: rotary needs pairs",
                self.head_dim
            )));
        }
        if turned == 0 || !turned.is_multiple_of(2) || turned > self.head_dim {
            return Err(ConfigError::Inconsistent(format!(
                "`partial_rotary_factor` turns {turned} of {} entries of a head: rotary needs pairs",
                self.head_dim
            )));
        }
        if !self.rope_scaling.fits(turned / 2) {
            return Err(ConfigError::Inconsistent(format!(
                "`rope_scaling` must list {} factors, one for each frequency",
                turned / 2
            )));
        }
        for (key, value) in [
            ("rms_norm_eps", self.rms_norm_eps),
            ("rope_theta", self.rope_theta),
            ("input_mult", self.input_mult),
            ("output_mult", self.output_mult),
            ("mup_scale_factor", self.mup_scale_factor),
            ("attention_multiplier", self.attention_multiplier.unwrap_or(1.0)),
            ("residual_multiplier", self.residual_multiplier),
            ("embedding_multiplier", self.embedding_multiplier),
            ("logits_scaling", self.logits_scaling),
            ("attention_factor", self.rope_scaling.attention_factor()),
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
        if self.logits_scaling == 0.0 {
            return Err(invalid("logits_scaling", 0.0, "a number other than 0 (it divides the logits)"));
        }
        for (key, cap) in [
            ("attn_logit_softcapping", self.attention_softcap),
            ("final_logit_softcapping", self.logit_softcap),
        ] {
            if let Some(cap) = cap.filter(|cap| !cap.is_finite() || *cap <= 0.0) {
                return Err(invalid(key, cap, "a number > 0, or null"));
            }
        }
        if matches!(self.rope_scaling, RopeScaling::Yarn { .. }) && self.rope_theta == 1.0 {
            return Err(invalid(
                "rope_theta",
                1.0,
                "a base other than 1 with yarn, which takes its logarithm",
            ));
        }
        if let Some(growth) = &self.growth {
            growth.validate(self)?;
        }
        self.checked_parameter_count().map(drop)
    }

    /// What the embedding's output is multiplied by: `input_mult` under µP, and what the family has besides.
    pub fn input_scale(&self) -> f64 {
        let width = if self.scales_embedding_by_width() { (self.hidden_size as f64).sqrt() } else { 1.0 };
        let mup = if self.use_mup { self.input_mult } else { 1.0 };
        mup * width * self.embedding_multiplier
    }

    /// Whether the embedding's output is multiplied by the root of the width.
    pub fn scales_embedding_by_width(&self) -> bool {
        self.model_type.family().embedding_by_width
    }

    /// What the logits are multiplied by: `output_mult / mup_scale_factor` under µP, and what the family has
    /// besides.
    pub fn logit_scale(&self) -> f64 {
        let mup = if self.use_mup { self.output_mult / self.mup_scale_factor } else { 1.0 };
        mup / self.logits_scaling
    }

    /// The longest text that the model is run on, in tokens: what it was trained for, or what its rotary
    /// scaling stretches that to.
    pub fn context_length(&self) -> usize {
        match self.rope_scaling {
            RopeScaling::Dynamic { factor, .. } => {
                (self.max_position_embeddings as f64 * factor.max(1.0)) as usize
            }
            _ => self.max_position_embeddings,
        }
    }

    /// What the scores of attention are multiplied by.
    pub fn score_scale(&self) -> f64 {
        self.attention_multiplier.unwrap_or(1.0 / (self.head_dim as f64).sqrt())
    }

    /// What is added to the stored gains of norms.
    pub fn gain_offset(&self) -> f64 {
        self.model_type.family().gain_offset
    }

    /// How many of a head's entries are turned by their position, the first ones.
    pub fn rotary_dim(&self) -> usize {
        (self.head_dim as f64 * self.partial_rotary_factor) as usize
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
        let (attention, output, mlp) = (self.qkv_bias, self.attention_output_bias, self.mlp_bias);
        let (norms, qk_norm) = (self.norms, self.qk_norm);
        Part::ALL.into_iter().filter(move |part| match part {
            Part::QBias | Part::KBias | Part::VBias => attention,
            Part::OBias => output,
            Part::GateBias | Part::UpBias | Part::DownBias => mlp,
            Part::QNorm | Part::KNorm => qk_norm == QkNorm::Heads,
            Part::QNormWhole | Part::KNormWhole => qk_norm == QkNorm::Whole,
            Part::InputLayernorm => norms != NormPlacement::After,
            Part::PreFeedforwardLayernorm => norms == NormPlacement::Around,
            Part::PostFeedforwardLayernorm => norms != NormPlacement::Before,
            Part::QProj
            | Part::KProj
            | Part::VProj
            | Part::OProj
            | Part::PostAttentionLayernorm
            | Part::GateProj
            | Part::UpProj
            | Part::DownProj => true,
        })
    }

    /// What the family stores as one tensor.
    pub(crate) fn fused(&self) -> &'static [Fused] {
        if self.model_type.family().fused { &FUSED } else { &[] }
    }

    /// Whether this norm is of what a sub-layer writes; others are of what one reads.
    pub fn is_output_norm(&self, part: Part) -> bool {
        match part {
            Part::PostAttentionLayernorm => self.norms != NormPlacement::Before,
            other => other == Part::PostFeedforwardLayernorm,
        }
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
    pub fn declared_dtype(&self) -> Option<Dtype> {
        // transformers 5 reads `dtype` first
        let text = |key: &str| self.raw.get(key).and_then(Value::as_str);
        let name = text("dtype").or_else(|| text("torch_dtype"))?;
        Dtype::from_torch_name(name)
    }

    /// Declares the dtype of the weights, under each of `torch_dtype` and `dtype` that the file has, or the
    /// former where it has none.
    pub fn set_dtype(&mut self, dtype: Dtype) {
        let name = dtype.torch_name();
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
            let inner = model_table_mut(&mut out, key);
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
            if nested { self.model_type != ModelType::TeleFlm } else { self.rope_theta == family.rope_theta };
        put("rope_theta", self.rope_theta.into(), implied);
        put(
            "tie_word_embeddings",
            self.tie_word_embeddings.into(),
            self.tie_word_embeddings == family.tie_word_embeddings,
        );
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
        self.layers.write(&mut out, family, self.num_hidden_layers);
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

/// Equal as JSON, where 4 and 4.0 are the same number.
fn same_value(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(x), Some(y)) => x == y,
        _ => a == b,
    }
}
