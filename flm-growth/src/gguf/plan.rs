//! What a GGUF file will hold: tensors, their dtypes and factors, metadata; made from headers alone.

use crate::gguf::tensor::GgufTensor;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use serde::Serialize;

use crate::gguf::container;
use crate::gguf::container::{ALIGNMENT, Metadata};
use crate::gguf::error::ExportError;
use crate::gguf::{Result, vocabulary};
use flm_candle::Vocabulary;
use flm_checkpoint::TeleFlmConfig;
use flm_checkpoint::{Checkpoint, TensorEntry};
use flm_checkpoint::{EMBED_TOKENS, FINAL_NORM, LM_HEAD};

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
        let (input, output) = (config.input_scale(), config.logit_scale());
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
            let factor = match tensor.name.as_str() {
                EMBED_TOKENS => input,
                FINAL_NORM => gain,
                _ => 1.0,
            };
            let (dtype, fallback) = stored(entry, options.dtype, factor);
            if let Some(wanted) = fallback {
                let columns = entry.shape.last().copied().unwrap_or(0);
                *fallbacks.entry((columns, name(wanted), name(dtype))).or_insert(0) += 1;
            }
            let name = gguf_name(&tensor.name);
            if factor != 1.0 {
                let rounding = rounding(entry.dtype, dtype, factor);
                plan.foldings.push(Folding { tensor: name.clone(), factor, rounding });
            }
            let elements = entry.shape.iter().map(|&n| n as u64).product::<u64>();
            let nbytes = elements / dtype.block_size() as u64 * dtype.type_size() as u64;
            let rotary = [".q_proj.weight", ".k_proj.weight"].iter().any(|end| tensor.name.ends_with(end));
            plan.tensors.push(GgufTensor {
                name,
                source: tensor.name,
                shape: entry.shape.clone(),
                dtype,
                factor,
                head_dim: rotary.then_some(config.head_dim),
                offset: 0,
                nbytes,
            });
        }
        for ((columns, wanted, got), count) in fallbacks {
            plan.notes.push(format!(
                "{count} tensors are stored as {got}, not {wanted}: their rows of {columns} are no whole blocks"
            ));
        }
        plan.metadata = metadata(config, &plan.tensors, options)?;
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

/// The dtype that holds the source's values.
fn own(dtype: DType) -> GgmlDType {
    match dtype {
        DType::BF16 => GgmlDType::BF16,
        DType::F16 => GgmlDType::F16,
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

fn rounding(from: DType, to: GgmlDType, factor: f64) -> Rounding {
    match to {
        GgmlDType::F32 if is_power_of_two(factor) && from != DType::F64 => Rounding::Exact,
        GgmlDType::F32 => Rounding::F32,
        GgmlDType::BF16 if from == DType::BF16 => Rounding::Exact,
        _ => Rounding::Dtype,
    }
}

fn is_power_of_two(factor: f64) -> bool {
    factor.is_normal() && factor.to_bits().trailing_zeros() >= 52
}

/// The name that llama.cpp has for a tensor.
fn gguf_name(name: &str) -> String {
    let fixed = match name {
        EMBED_TOKENS => Some("token_embd.weight"),
        FINAL_NORM => Some("output_norm.weight"),
        LM_HEAD => Some("output.weight"),
        _ => None,
    };
    if let Some(fixed) = fixed {
        return fixed.into();
    }
    let rest = name.trim_start_matches("model.layers.");
    let (layer, part) = rest.split_once('.').unwrap_or((rest, ""));
    let part = match part {
        "input_layernorm.weight" => "attn_norm",
        "self_attn.q_proj.weight" => "attn_q",
        "self_attn.k_proj.weight" => "attn_k",
        "self_attn.v_proj.weight" => "attn_v",
        "self_attn.o_proj.weight" => "attn_output",
        "post_attention_layernorm.weight" => "ffn_norm",
        "mlp.gate_proj.weight" => "ffn_gate",
        "mlp.up_proj.weight" => "ffn_up",
        "mlp.down_proj.weight" => "ffn_down",
        other => unreachable!("a tensor of the config without a name in GGUF: {other}"),
    };
    format!("blk.{layer}.{part}.weight")
}

/// `general.*` and `llama.*`.
fn metadata(config: &TeleFlmConfig, tensors: &[GgufTensor], options: &GgufOptions) -> Result<Metadata> {
    let mut sizes: BTreeMap<u32, u64> = BTreeMap::new();
    for tensor in tensors.iter().filter(|t| t.source.starts_with("model.layers.") && t.shape.len() == 2) {
        *sizes.entry(name_and_file_type(tensor.dtype).1).or_default() += tensor.nbytes;
    }
    let file_type = sizes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or(0, |(file_type, _)| file_type);
    let mut out = Vec::new();
    let mut put = |key: &str, value| out.push((key.to_owned(), value));
    put("general.architecture", Value::String("llama".into()));
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
        ("rope.dimension_count", "head_dim", config.head_dim),
    ] {
        let number = u32::try_from(value).map_err(|_| ExportError::TooLarge { key: of, value })?;
        put(&format!("llama.{key}"), Value::U32(number));
    }
    put("llama.attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps as f32));
    put("llama.rope.freq_base", Value::F32(config.rope_theta as f32));
    Ok(out)
}
