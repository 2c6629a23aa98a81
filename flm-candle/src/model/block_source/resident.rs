//! Blocks that stay in the device's memory.

use std::sync::Arc;

use crate::model::block::Block;
use crate::model::block_source::BlockSource;
use crate::model::error::ModelError;
use crate::model::weights::WeightLoader;

/// All blocks in the device's memory.
#[derive(Debug)]
pub(crate) struct Resident(Vec<Arc<Block>>);

impl Resident {
    /// Loads every block.
    pub(crate) fn load(loader: &WeightLoader) -> Result<Self, ModelError> {
        let layers = loader.checkpoint().config().num_hidden_layers;
        (0..layers).map(|layer| loader.block(layer).map(Arc::new)).collect::<Result<_, _>>().map(Self)
    }
}

impl BlockSource for Resident {
    fn block(&self, layer: usize) -> Result<Arc<Block>, ModelError> {
        let blocks = self.0.len();
        self.0.get(layer).map(Arc::clone).ok_or(ModelError::NoSuchBlock { layer, blocks })
    }

    fn num_blocks(&self) -> usize {
        self.0.len()
    }
}
