//! The model's shape and multipliers: the Hub's `config.json`, read and written without loss.

mod architecture;
mod family;
mod json;
mod keys;
mod known;
pub(crate) mod layers;
pub(crate) mod masks;
pub(crate) mod preset;
mod refused;
pub(crate) mod rope;
#[cfg(test)]
pub(crate) mod tests;
mod validate;

use serde_json::{Map, Value};

use crate::config::layers::LayerKinds;
use crate::config::masks::GrowthMasks;
use crate::config::rope::RopeScaling;
use crate::dtype::Dtype;
use crate::tensor_id::{Axis, Names, Part, TensorId, TensorShape};

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
    /// Helium: Llama whose heads are turned by neighbours, with a square output projection.
    Helium,
    /// ERNIE 4.5, dense: Llama whose heads are turned by neighbours, in f32.
    Ernie45,
    /// Baichuan 7B, the first: Llama with queries, keys and values of one matrix.
    Baichuan,
    /// InternLM2: Llama with other names, and queries, keys and values of one matrix, head by head.
    InternLm2,
    /// TeleChat and TeleChat 2: Llama with other names, keys and values of one matrix, head by head, biases on what
    /// is written back, and a rotary base that grows with the text.
    TeleChat,
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
    /// Whether its output has one.
    pub mlp_output_bias: bool,
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
        let (attention, output) = (self.qkv_bias, self.attention_output_bias);
        let (mlp, mlp_output) = (self.mlp_bias, self.mlp_output_bias);
        let (norms, qk_norm) = (self.norms, self.qk_norm);
        Part::ALL.into_iter().filter(move |part| match part {
            Part::QBias | Part::KBias | Part::VBias => attention,
            Part::OBias => output,
            Part::GateBias | Part::UpBias => mlp,
            Part::DownBias => mlp_output,
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

    /// What the family calls tensors, and which it stores as one.
    pub(crate) fn names(&self) -> &'static Names {
        &self.model_type.family().names
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
}
