//! What a GGUF file will hold: tensors, their dtypes and factors, metadata; made from headers alone.

use crate::gguf::tensor::GgufTensor;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use flm_checkpoint::{Dtype, is_power_of_two};
use serde::Serialize;

use crate::gguf::architecture::{Architecture, follows, gguf_name};
use crate::gguf::container::{self, ALIGNMENT};
use crate::gguf::error::ExportError;
use crate::gguf::metadata::{metadata, name_and_file_type, rope_factors, rope_note, window_note};
use crate::gguf::{Result, vocabulary};
use crate::mup;
use flm_candle::Vocabulary;
use flm_checkpoint::{Checkpoint, TensorEntry};
use flm_checkpoint::{EMBED_TOKENS, LM_HEAD};
use flm_checkpoint::{Part, TensorId};

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
        // the head keeps its blocks: the gain takes the factor of the logits
        let folding = mup::Folding::new(input, output, tied, None);
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
            let factor = folding.of(tensor.id);
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
                && !config.rotary_pairs()
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
        plan.notes.extend(rope_note(config));
        plan.notes.extend(window_note(config, architecture));
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
