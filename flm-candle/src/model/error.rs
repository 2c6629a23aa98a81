//! What can go wrong while a model is loaded or run.

use crate::device::is_out_of_memory;
use flm_checkpoint::CheckpointError;

/// What can go wrong while a model is loaded or run.
#[allow(missing_docs, reason = "the message says what each field is")]
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The checkpoint could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(candle_core::Error),
    /// The GPU's memory is full.
    #[error(
        "the GPU's memory is full: stream the blocks (--stream), take fewer rows or a shorter text at a time, or \
         compute in bf16 (--dtype bf16)"
    )]
    DeviceMemory,
    /// A token id has no row in the embedding.
    #[error("token id {id} is out of range: the embedding has {rows} rows")]
    TokenId {
        id: u32,
        /// Rows of the embedding.
        rows: usize,
    },
    /// There is nothing to run.
    #[error("the input holds no tokens")]
    Empty,
    /// There is no such block.
    #[error("there is no block {layer}: the model has {blocks}")]
    NoSuchBlock { layer: usize, blocks: usize },
    /// A cache was made for another batch, or for another model.
    #[error("the cache is of {cached} rows, the input has {rows}")]
    CacheRows { cached: usize, rows: usize },
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

impl From<candle_core::Error> for ModelError {
    fn from(error: candle_core::Error) -> Self {
        if is_out_of_memory(&error) { Self::DeviceMemory } else { Self::Candle(error) }
    }
}
