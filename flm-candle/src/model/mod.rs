//! The decoder: embedding, blocks of attention and SwiGLU, final norm, head.
//!
//! Every operation has two paths that tests hold equal: a fused one for inference and a
//! differentiable one (candle's fused operations cut the gradient in silence). See [`Path`].

mod attention;
mod block;
mod causal_lm;
mod differentiable;
mod kv_cache;
mod linear;
mod loader;
mod masks;
mod matmul;
mod mlp;
mod nll;
mod pass;
mod rms_norm;
mod rotary;
mod widening;

use crate::checkpoint::CheckpointError;

pub use attention::Attention;
pub use block::Block;
pub use causal_lm::{CausalLm, Positions, Residency, Trace};
pub use kv_cache::KvCache;
pub use linear::Linear;
pub use loader::WeightLoader;
pub use masks::{BlockMasks, NormMask};
pub(crate) use masks::{hidden_mask, norm_mask};
pub(crate) use matmul::{Matrix, Output, Real, multiply};
pub use mlp::Mlp;
pub use pass::{Pass, Path};
pub use rms_norm::RmsNorm;
pub use rotary::Rotary;

/// What can go wrong while a model is loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The checkpoint could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A token id has no row in the embedding.
    #[error("token id {id} is out of range: the embedding has {rows} rows")]
    TokenId {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        rows: usize,
    },
    /// There is nothing to run.
    #[error("the input holds no tokens")]
    Empty,
    /// The compute dtype is not one that the model runs in.
    #[error("cannot compute in {0:?}: use f32, bf16 or f64")]
    ComputeDtype(candle_core::DType),
    /// Whoever watches the pass asked for its end.
    #[error("the pass over the weights was cancelled")]
    Cancelled,
    /// The thread that reads blocks ahead died.
    #[error("the thread that reads block {0} ahead stopped without an answer")]
    Prefetch(usize),
}
