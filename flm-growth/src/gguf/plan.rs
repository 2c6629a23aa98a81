//! What a GGUF file will hold: tensors, their dtypes and factors, metadata; made from headers alone.

use crate::gguf::tensor::GgufTensor;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use flm_checkpoint::{Dtype, is_power_of_two};
use serde::Serialize;

use crate::gguf::container;
use crate::gguf::container::{ALIGNMENT, Metadata};
use crate::gguf::error::ExportError;
use crate::gguf::{Result, vocabulary};
use flm_candle::Vocabulary;
use flm_checkpoint::{Checkpoint, TensorEntry};
use flm_checkpoint::{EMBED_TOKENS, LM_HEAD};
use flm_checkpoint::{LayerKind, LayerRope, ModelType, Part, RopeScaling, TeleFlmConfig, TensorId};

/// Bytes of the three keys of a file among several, and of its padding.
const SPLIT_BYTES: u64 = 160;

/// How to export.
#[derive(Debug, Clone, Default)]
pub struct GgufOptions {
    /// dtype of the matrices, of [`GgufPlan::parse_dtype`]; each tensor's own where `None`.
    pub dtype: Option<GgmlDType>,
    /// `general.name`.
    pub name: Option<String>,
    /// `tokenizer.ggml.pre`, where it is not to be found out.
    pub pre: Option<String>,
    /// Most bytes of a file; a larger tensor has its own. Without it there is one file.
    pub max_file_size: Option<u64>,
}

/// A GGUF file that has yet to be written.
#[derive(Debug)]
pub struct GgufPlan {
    /// In the order of the file, which is that of the forward pass.
    pub tensors: Vec<GgufTensor>,
    /// Keys and values in the order of the file.
    pub metadata: Vec<(String, Value)>,
    /// Where the multipliers go.
    pub foldings: Vec<Folding>,
    /// What someone should know who runs the file.
    pub notes: Vec<String>,
    /// Length of all files in bytes.
    pub bytes: u64,
    /// The files: one, or what llama.cpp's `gguf-split` would make of it.
    pub files: Vec<GgufFile>,
}

/// A file of an export.
#[derive(Debug)]
pub struct GgufFile {
    /// Which of [`GgufPlan::tensors`] it holds.
    pub tensors: Range<usize>,
    /// Everything before the tensors' data: metadata and the table of tensors.
    pub header: Vec<u8>,
    /// Length in bytes.
    pub bytes: u64,
}

/// A multiplier and the tensor that took it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Folding {
    /// The tensor in the file.
    pub tensor: String,
    /// What it is multiplied by.
    pub factor: f64,
    /// What that costs.
    pub rounding: Rounding,
}

/// What is lost when a tensor is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rounding {
    /// Nothing: a power of two moves the exponent.
    Exact,
    /// The products are rounded to f32.
    F32,
    /// The products are rounded to a dtype that the source is rounded to anyway.
    Dtype,
}

impl GgufPlan {
    /// Plans the export of `src`, with its tokenizer where one is given.
    ///
    /// Norm gains are stored in f32. Where `options` ask for less than 8 bits, embedding and head get
    /// q8_0; where rows are no multiple of a block, the tensor gets q8_0 or stays as it is, and a note says so.
    ///
    /// # Errors
    /// [`ExportError::Masked`]; tensors that are not those of the config; a tokenizer with more tokens
    /// than there are rows, or with a pre-tokenizer that is not known.
    pub fn new(src: &Checkpoint, vocabulary: Option<&Vocabulary>, options: &GgufOptions) -> Result<Self> {
        let config = src.config();
        if config.growth.is_some() {
            return Err(ExportError::Masked);
        }
        if let Some(problem) = src.shape_problems().into_iter().next() {
            return Err(problem.into());
        }
        let architecture = Architecture::of(config)?;
        let (input, output) = match architecture.scales {
            true => (1.0, 1.0),
            false => (config.input_scale(), config.logit_scale()),
        };
        let tied = config.tie_word_embeddings;
        if tied && input == 0.0 {
            return Err(ExportError::NoInput);
        }
        let gain = if tied { output / input } else { output };
        let mut plan = Self {
            tensors: Vec::new(),
            metadata: Vec::new(),
            foldings: Vec::new(),
            notes: Vec::new(),
            bytes: 0,
            files: Vec::new(),
        };
        let mut fallbacks = BTreeMap::new();
        for tensor in config.tensors() {
            let entry = src.entry(&tensor.name)?;
            let factor = match tensor.id {
                TensorId::Embedding => input,
                TensorId::FinalNorm => gain,
                TensorId::Head | TensorId::Block(..) => 1.0,
            };
            let (dtype, fallback) = stored(entry, options.dtype, factor);
            if let Some(wanted) = fallback {
                let columns = entry.shape.last().copied().unwrap_or(0);
                *fallbacks.entry((columns, name(wanted), name(dtype))).or_insert(0) += 1;
            }
            if let (true, Some(whole)) = (architecture.fused, follows(tensor.id))
                && let Some(before) =
                    plan.tensors.iter_mut().rev().find(|before| before.name.ends_with(whole))
            {
                before.shape[0] += entry.shape[0];
                before.nbytes += bytes_of(entry, dtype);
                before.more_sources.push(tensor.name);
                continue;
            }
            let name = gguf_name(tensor.id, config, architecture.fused);
            if factor != 1.0 {
                let rounding = rounding(entry.dtype, dtype, factor);
                plan.foldings.push(Folding { tensor: name.clone(), factor, rounding });
            }
            let nbytes = bytes_of(entry, dtype);
            let rotary = architecture.pairs
                && matches!(
                    tensor.id,
                    TensorId::Block(_, Part::QProj | Part::QBias | Part::KProj | Part::KBias)
                );
            plan.tensors.push(GgufTensor {
                name,
                source: tensor.name,
                more_sources: Vec::new(),
                values: None,
                shape: entry.shape.clone(),
                dtype,
                added: if is_gain(tensor.id) { config.gain_offset() } else { 0.0 },
                factor,
                head_dim: rotary.then_some(config.head_dim),
                offset: 0,
                nbytes,
            });
        }
        plan.tensors.extend(rope_factors(config));
        for ((columns, wanted, got), count) in fallbacks {
            plan.notes.push(format!(
                "{count} tensors are stored as {got}, not {wanted}: their rows of {columns} are no whole blocks"
            ));
        }
        plan.metadata = metadata(config, architecture, &plan.tensors, options)?;
        plan.notes.extend(rope_notes(config));
        plan.notes.extend(window_notes(config));
        let (tokenizer, notes) = match vocabulary {
            Some(vocabulary) => vocabulary::metadata(vocabulary, config, options.pre.as_deref())?,
            None => (
                vec![("tokenizer.ggml.model".to_owned(), Value::String("no_vocab".into()))],
                vec!["without a tokenizer the file runs on token ids only".to_owned()],
            ),
        };
        plan.metadata.extend(tokenizer);
        plan.notes.extend(notes);
        plan.lay_out(options.max_file_size)?;
        Ok(plan)
    }

    /// Places the tensors in files, in their order.
    fn lay_out(&mut self, max_file_size: Option<u64>) -> Result<()> {
        let metadata = container::header(&self.metadata, &[]).len() as u64;
        let mut ends = Vec::new();
        let mut size = metadata;
        for (index, tensor) in self.tensors.iter().enumerate() {
            let bytes = container::table_bytes(tensor) + tensor.nbytes.next_multiple_of(ALIGNMENT);
            let first = ends.last().copied().unwrap_or(0);
            if index > first && max_file_size.is_some_and(|most| size + bytes + SPLIT_BYTES > most) {
                ends.push(index);
                size = 0;
            }
            size += bytes;
        }
        ends.push(self.tensors.len());
        let count = u16::try_from(ends.len()).map_err(|_| ExportError::TooManyFiles { files: ends.len() })?;
        let mut first = 0;
        for (number, end) in ends.into_iter().enumerate() {
            let tensors = first..end;
            let mut offset = 0;
            for tensor in &mut self.tensors[tensors.clone()] {
                tensor.offset = offset;
                offset += tensor.nbytes.next_multiple_of(ALIGNMENT);
            }
            // the first file has what is known of the model, all have their place among the files
            let mut metadata = if number == 0 { self.metadata.clone() } else { Vec::new() };
            if count > 1 {
                metadata.extend([
                    ("split.no".to_owned(), Value::U16(number as u16)),
                    ("split.count".to_owned(), Value::U16(count)),
                    ("split.tensors.count".to_owned(), Value::I32(self.tensors.len() as i32)),
                ]);
            }
            let header = container::header(&metadata, &self.tensors[tensors.clone()]);
            let bytes = header.len() as u64 + offset;
            self.bytes += bytes;
            self.files.push(GgufFile { tensors, header, bytes });
            first = end;
        }
        Ok(())
    }

    /// The paths of the files that [`GgufPlan::write`] makes for `dst`: itself, or `NAME-00001-of-00003.gguf`
    /// and so on, as llama.cpp looks for them.
    pub fn paths(&self, dst: &Path) -> Vec<PathBuf> {
        let count = self.files.len();
        if count == 1 {
            return vec![dst.into()];
        }
        let name = dst.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let stem = name.strip_suffix(".gguf").unwrap_or(&name);
        (1..=count)
            .map(|number| dst.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf")))
            .collect()
    }

    /// The dtype of a name such as `q8_0`.
    ///
    /// # Errors
    /// [`ExportError::DType`], which lists the names.
    pub fn parse_dtype(text: &str) -> Result<GgmlDType> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "f32" => GgmlDType::F32,
            "f16" => GgmlDType::F16,
            "bf16" => GgmlDType::BF16,
            "q8_0" => GgmlDType::Q8_0,
            "q6_k" => GgmlDType::Q6K,
            "q5_k" => GgmlDType::Q5K,
            "q5_1" => GgmlDType::Q5_1,
            "q5_0" => GgmlDType::Q5_0,
            "q4_k" => GgmlDType::Q4K,
            "q4_1" => GgmlDType::Q4_1,
            "q4_0" => GgmlDType::Q4_0,
            other => return Err(ExportError::DType(other.into())),
        })
    }

    /// Bytes of tensors in each dtype, by its name.
    pub fn dtypes(&self) -> BTreeMap<&'static str, u64> {
        let mut bytes = BTreeMap::new();
        for tensor in &self.tensors {
            *bytes.entry(name(tensor.dtype)).or_insert(0) += tensor.nbytes;
        }
        bytes
    }

    /// The value of a metadata key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, value)| value)
    }
}

/// Name, and `llama_ftype` of a file whose matrices are of this dtype.
fn name_and_file_type(dtype: GgmlDType) -> (&'static str, u32) {
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

fn name(dtype: GgmlDType) -> &'static str {
    name_and_file_type(dtype).0
}

/// Bytes of the file that a tensor of the source becomes.
fn bytes_of(entry: &TensorEntry, dtype: GgmlDType) -> u64 {
    let elements = entry.shape.iter().map(|&n| n as u64).product::<u64>();
    elements / dtype.block_size() as u64 * dtype.type_size() as u64
}

/// Whether it is a norm's gain.
fn is_gain(id: TensorId) -> bool {
    match id {
        TensorId::FinalNorm => true,
        TensorId::Block(_, part) => part.axes().len() == 1 && !part.is_bias(),
        TensorId::Embedding | TensorId::Head => false,
    }
}

/// The end of the name of the tensor whose rows this one's follow, where llama.cpp has one for several.
fn follows(id: TensorId) -> Option<&'static str> {
    match id {
        TensorId::Block(_, Part::KProj | Part::VProj) => Some("attn_qkv.weight"),
        TensorId::Block(_, Part::UpProj) => Some("ffn_up.weight"),
        _ => None,
    }
}

/// The dtype that holds the source's values.
fn own(dtype: Dtype) -> GgmlDType {
    match dtype {
        Dtype::BF16 => GgmlDType::BF16,
        Dtype::F16 => GgmlDType::F16,
        _ => GgmlDType::F32,
    }
}

/// What a tensor is stored as, and what it should have been where its rows are no whole blocks.
fn stored(entry: &TensorEntry, wanted: Option<GgmlDType>, factor: f64) -> (GgmlDType, Option<GgmlDType>) {
    let [_, columns] = entry.shape[..] else { return (GgmlDType::F32, None) };
    let own = own(entry.dtype);
    let mut dtype = wanted.unwrap_or(own);
    let outer = entry.name == EMBED_TOKENS || entry.name == LM_HEAD;
    if outer && dtype.block_size() > 1 {
        dtype = GgmlDType::Q8_0;
    }
    let whole = |dtype: GgmlDType| columns.is_multiple_of(dtype.block_size());
    if !whole(dtype) {
        let fallback = if whole(GgmlDType::Q8_0) { GgmlDType::Q8_0 } else { own };
        return (widened(own, fallback, factor), Some(dtype));
    }
    (widened(own, dtype, factor), None)
}

/// f32 where the product would be rounded although the factor alone is to blame.
fn widened(own: GgmlDType, dtype: GgmlDType, factor: f64) -> GgmlDType {
    // f16 has subnormals among common values: even a power of two rounds them.
    let holds = factor == 1.0 || (dtype == GgmlDType::BF16 && is_power_of_two(factor));
    if dtype == own && !holds { GgmlDType::F32 } else { dtype }
}

fn rounding(from: Dtype, to: GgmlDType, factor: f64) -> Rounding {
    match to {
        GgmlDType::F32 if is_power_of_two(factor) && from != Dtype::F64 => Rounding::Exact,
        GgmlDType::F32 => Rounding::F32,
        GgmlDType::BF16 if from == Dtype::BF16 => Rounding::Exact,
        _ => Rounding::Dtype,
    }
}

/// An architecture of llama.cpp.
#[derive(Debug, Clone, Copy)]
struct Architecture {
    name: &'static str,
    /// Whether neighbours are rotated together, not the halves of a head.
    pairs: bool,
    /// Whether it multiplies embedding and logits itself.
    scales: bool,
    /// Whether queries, keys and values are one tensor, and gates and units.
    fused: bool,
}

/// llama.cpp's name of a family's architecture, and what of the family it does not compute, in words.
pub fn gguf_architecture(family: ModelType) -> (&'static str, &'static str) {
    match family {
        ModelType::TeleFlm | ModelType::Llama => ("llama", ""),
        ModelType::Mistral => ("llama", "without the window"),
        ModelType::Ministral => ("llama", "if there is no window"),
        ModelType::Granite => ("granite", ""),
        ModelType::SmolLm3 => ("smollm3", "if there is no window"),
        ModelType::Qwen2 => ("qwen2", "if there is no window"),
        ModelType::Qwen3 => ("qwen3", "if there are no windows and biases"),
        ModelType::Olmo2 => ("olmo2", "if there are no biases"),
        ModelType::Olmo3 => ("olmo2", "if the context is within the window"),
        ModelType::Exaone4 => ("exaone4", "if there is no window"),
        ModelType::Phi3 => ("phi3", "without the window"),
        ModelType::Gemma => ("gemma", ""),
        ModelType::Gemma2 => ("gemma2", "if query_pre_attn_scalar is head_dim"),
        ModelType::Gemma3 => ("gemma3", "if query_pre_attn_scalar is head_dim"),
    }
}

impl Architecture {
    /// The architecture that computes what the model does. Much of it is not said in the file but built into
    /// llama.cpp: a model that differs there is refused.
    fn of(config: &TeleFlmConfig) -> Result<Self> {
        let kinds = config.layers.kinds();
        let context = config.max_position_embeddings;
        let window = kinds.iter().filter_map(|kind| kind.window).find(|&window| window < context);
        let every = |period: usize, has: fn(&LayerKind) -> bool| {
            let expected = |layer: usize| !(layer + 1).is_multiple_of(period);
            (0..config.num_hidden_layers).all(|layer| has(config.layers.of(layer)) == expected(layer))
        };
        let windows = |kind: &LayerKind| kind.window.is_some();
        let heads_scale = config.score_scale() * (config.head_dim as f64).sqrt();
        let own_scale = (heads_scale - 1.0).abs() > 1e-9;
        let biased = config.qkv_bias || config.attention_output_bias || config.mlp_bias;
        let longrope = matches!(config.rope_scaling, RopeScaling::LongRope { .. });
        let problem = match config.model_type {
            _ if matches!(config.rope_scaling, RopeScaling::Dynamic { .. }) => {
                Some("rotary scaling of this type")
            }
            ModelType::Phi3 if biased => Some("biases"),
            ModelType::Phi3 => None,
            _ if longrope => Some("rotary scaling of this type"),
            ModelType::TeleFlm | ModelType::Llama | ModelType::Granite => None,
            // a window of all layers is left out, with a note
            ModelType::Mistral => None,
            ModelType::Ministral if window.is_some() => Some("a sliding window"),
            ModelType::Ministral => None,
            ModelType::Qwen2 if window.is_some() => Some("a sliding window"),
            ModelType::Qwen2 => None,
            _ if biased => Some("biases"),
            ModelType::Gemma2 | ModelType::Gemma3 if own_scale => {
                Some("query_pre_attn_scalar other than head_dim")
            }
            ModelType::Gemma | ModelType::Gemma2 | ModelType::Gemma3 if !config.tie_word_embeddings => {
                Some("a head of its own")
            }
            ModelType::Gemma => None,
            ModelType::Gemma2 if config.attention_softcap.is_none() || config.logit_softcap.is_none() => {
                Some("unbounded scores or logits")
            }
            ModelType::Gemma2 if !every(2, windows) => Some("windows in other layers than every second"),
            ModelType::Gemma2 => None,
            ModelType::Gemma3 if config.attention_softcap.or(config.logit_softcap).is_some() => {
                Some("bounded scores or logits")
            }
            ModelType::Gemma3 if !every(6, windows) => Some("windows in other layers than five of six"),
            ModelType::Gemma3 if !kinds.iter().all(built_in_theta) => {
                Some("rope_local_base_freq other than 10000")
            }
            ModelType::Gemma3 => None,
            _ if window.is_some() => Some("a sliding window"),
            // llama.cpp has one base and one scaling for all layers
            ModelType::Olmo3 if !kinds.iter().all(|kind| same_positions(kind, config)) => {
                Some("two kinds of rotary positions")
            }
            ModelType::SmolLm3 if !every(4, |kind| kind.rope != LayerRope::None) => {
                Some("other layers without positions than every fourth")
            }
            ModelType::SmolLm3 | ModelType::Qwen3 | ModelType::Olmo2 | ModelType::Olmo3 => None,
            ModelType::Exaone4 if kinds.iter().any(|kind| kind.rope == LayerRope::None) => {
                Some("layers without positions")
            }
            ModelType::Exaone4 => None,
        };
        if let Some(what) = problem {
            return Err(ExportError::NoArchitecture { family: config.model_type.as_str(), what });
        }
        let (name, _) = gguf_architecture(config.model_type);
        Ok(Self {
            name,
            pairs: ["llama", "granite", "smollm3"].contains(&name),
            scales: ["granite", "gemma", "gemma2", "gemma3"].contains(&name),
            fused: name == "phi3",
        })
    }
}

/// Whether a kind of layers turns by the model's own base and scaling, in effect.
fn same_positions(kind: &LayerKind, config: &TeleFlmConfig) -> bool {
    match kind.rope {
        LayerRope::Local { theta } => {
            theta == config.rope_theta && config.rope_scaling == RopeScaling::Default
        }
        LayerRope::Model | LayerRope::None => true,
    }
}

/// Whether llama.cpp has the base of layers with a window built in.
fn built_in_theta(kind: &LayerKind) -> bool {
    match kind.rope {
        LayerRope::Local { theta } => theta == 10_000.0,
        LayerRope::Model | LayerRope::None => true,
    }
}

/// The name that llama.cpp has for a tensor.
fn gguf_name(id: TensorId, config: &TeleFlmConfig, fused: bool) -> String {
    let name = match id {
        TensorId::Block(layer, part) => {
            let output = config.is_output_norm(part);
            let name = match part {
                Part::InputLayernorm => "attn_norm.weight",
                Part::QProj if fused => "attn_qkv.weight",
                Part::GateProj if fused => "ffn_up.weight",
                Part::QProj => "attn_q.weight",
                Part::QBias => "attn_q.bias",
                Part::KProj => "attn_k.weight",
                Part::KBias => "attn_k.bias",
                Part::VProj => "attn_v.weight",
                Part::VBias => "attn_v.bias",
                Part::QNorm | Part::QNormWhole => "attn_q_norm.weight",
                Part::KNorm | Part::KNormWhole => "attn_k_norm.weight",
                Part::OProj => "attn_output.weight",
                Part::OBias => "attn_output.bias",
                Part::PostAttentionLayernorm if output => "post_attention_norm.weight",
                Part::PostAttentionLayernorm | Part::PreFeedforwardLayernorm => "ffn_norm.weight",
                Part::GateProj => "ffn_gate.weight",
                Part::GateBias => "ffn_gate.bias",
                Part::UpProj => "ffn_up.weight",
                Part::UpBias => "ffn_up.bias",
                Part::DownProj => "ffn_down.weight",
                Part::DownBias => "ffn_down.bias",
                Part::PostFeedforwardLayernorm => "post_ffw_norm.weight",
            };
            return format!("blk.{layer}.{name}");
        }
        TensorId::Embedding => "token_embd.weight",
        TensorId::FinalNorm => "output_norm.weight",
        TensorId::Head => "output.weight",
    };
    name.into()
}

/// What rotary frequencies are divided by where llama.cpp takes that as tensors: Llama 3.1's, and LongRoPE's.
fn rope_factors(config: &TeleFlmConfig) -> Vec<GgufTensor> {
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
fn window_notes(config: &TeleFlmConfig) -> Option<String> {
    let leaves_out = matches!(config.model_type, ModelType::Mistral | ModelType::Phi3);
    let window = config.layers.kinds().iter().filter_map(|kind| kind.window).min().filter(|_| leaves_out)?;
    (window < config.max_position_embeddings).then(|| {
        format!(
            "llama.cpp leaves the sliding window of {window} tokens out: it differs from the model in longer texts"
        )
    })
}

/// What of the rotary scaling llama.cpp computes by its own rule.
fn rope_notes(config: &TeleFlmConfig) -> Option<String> {
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
fn metadata(
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
    put("rope.freq_base", Value::F32(config.rope_theta as f32));
    match config.rope_scaling {
        // Llama 3.1's is a tensor
        RopeScaling::Default | RopeScaling::Llama3 { .. } => {}
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
