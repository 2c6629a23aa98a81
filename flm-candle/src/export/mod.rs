//! Checkpoints in the formats of other runtimes.
//!
//! [`GgufPlan`] turns a checkpoint into one GGUF file of the architecture `llama`, which llama.cpp and
//! what is built on it run. Such a runtime knows no multipliers, so they are folded into the weights:
//! the embedding takes `input_mult`, the final norm's gain, which GGUF holds in f32, takes the factor of
//! the logits (and, where the head is tied to the embedding, takes back what that took).
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod container;
mod error;
mod plan;
#[cfg(test)]
mod tests;
mod vocabulary;
mod write;

pub use error::ExportError;
pub use plan::{Folding, GgufOptions, GgufPlan, GgufTensor, Rounding};
pub use vocabulary::vocabulary_of;
pub use write::GgufReport;

/// What export functions return.
type Result<T> = std::result::Result<T, ExportError>;
