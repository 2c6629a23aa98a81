//! Where a block's weights come from: resident on the device, or streamed from the checkpoint.

pub(crate) mod resident;
pub(crate) mod streamed;

use std::sync::Arc;

use crate::model::block::Block;
use crate::model::error::ModelError;

/// Hands out blocks by their index.
///
/// A model asks for blocks in order, one at a time, and drops each before it asks for the next.
pub(super) trait BlockSource: Send + Sync + std::fmt::Debug {
    /// Block `layer`, counted from 0.
    fn block(&self, layer: usize) -> Result<Arc<Block>, ModelError>;

    /// Number of blocks.
    fn num_blocks(&self) -> usize;
}
