//! Names and shapes of tensors.

use candle_core::DType;

/// A tensor that a [`Writer`](crate::Writer) will write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name.
    pub name: String,
    /// BF16, F16, F32 or F64.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
}

/// Name and shape of a tensor that a checkpoint of some config must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorShape {
    /// Name in the checkpoint.
    pub name: String,
    /// Rows first: `[out_features, in_features]`, or `[hidden_size]` for norm gains.
    pub shape: Vec<usize>,
}

/// Name of the embedding, `[vocab_size, hidden_size]`.
pub const EMBED_TOKENS: &str = "model.embed_tokens.weight";

/// Name of the final norm's gain, `[hidden_size]`.
pub const FINAL_NORM: &str = "model.norm.weight";

/// Name of the head, `[vocab_size, hidden_size]`; absent where it is tied to the embedding.
pub const LM_HEAD: &str = "lm_head.weight";
