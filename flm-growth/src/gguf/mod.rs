//! Checkpoints in the formats of other runtimes.
//!
//! [`GgufPlan`] turns a checkpoint into one GGUF file of the architecture `llama`, which llama.cpp and
//! what is built on it run. Such a runtime knows no multipliers, so they are folded into the weights:
//! the embedding takes `input_mult`, the final norm's gain, which GGUF holds in f32, takes the factor of
//! the logits (and, where the head is tied to the embedding, takes back what that took).
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

pub(crate) mod architecture;
mod container;
pub(crate) mod error;
mod metadata;
pub(crate) mod plan;
pub(crate) mod tensor;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod vocabulary;
pub(crate) mod write;

use crate::gguf::error::ExportError;

/// What export functions return.
pub(crate) type Result<T> = std::result::Result<T, ExportError>;
