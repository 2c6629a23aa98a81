//! A tensor of a GGUF file, and the dtypes that it can have.

use candle_core::quantized::GgmlDType;

/// The dtypes that matrices can be written in.
pub(crate) const NAMES: [&str; 11] =
    ["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0"];

/// A tensor of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufTensor {
    /// Its name in the file.
    pub name: String,
    /// Its name in the checkpoint; empty where `values` is given.
    pub source: String,
    /// Names of those whose rows follow, where llama.cpp has several as one.
    pub more_sources: Vec<String>,
    /// What it holds where that is no tensor of the checkpoint.
    pub values: Option<Vec<f32>>,
    /// Rows first.
    pub shape: Vec<usize>,
    /// What it is stored as.
    pub dtype: GgmlDType,
    /// What is added to its elements.
    pub added: f64,
    /// What they are then multiplied by.
    pub factor: f64,
    /// Width of the heads whose rows go from halves to pairs, for queries and keys.
    pub head_dim: Option<usize>,
    /// First byte, counted from the start of its file's data section.
    pub offset: u64,
    /// Length in bytes.
    pub nbytes: u64,
}

impl GgufTensor {
    /// Names of the checkpoint's tensors whose rows it has, in their order.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        let first = (!self.source.is_empty()).then_some(self.source.as_str());
        first.into_iter().chain(self.more_sources.iter().map(String::as_str))
    }
}
