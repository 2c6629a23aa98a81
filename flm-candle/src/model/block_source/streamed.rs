//! Blocks that are read from disk when they are needed, one ahead.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use crate::model::block::Block;
use crate::model::block_source::BlockSource;
use crate::model::error::ModelError;
use crate::model::weights::WeightLoader;

/// Reads each block when it is asked for, and the one after it ahead of time.
///
/// Memory: the block in use and the one being read, whatever the number of layers.
#[derive(Debug)]
pub(crate) struct Streamed {
    loader: WeightLoader,
    layers: usize,
    ahead: Mutex<Option<Ahead>>,
}

#[derive(Debug)]
struct Ahead {
    layer: usize,
    read: JoinHandle<Result<Block, ModelError>>,
}

impl Streamed {
    /// Reads nothing yet.
    pub(crate) fn new(loader: WeightLoader) -> Self {
        let layers = loader.checkpoint().config().num_hidden_layers;
        Self { loader, layers, ahead: Mutex::new(None) }
    }

    fn read_ahead(&self, layer: usize) -> Ahead {
        let loader = self.loader.clone();
        let read = move || {
            let block = loader.block(layer)?;
            // on a GPU every thread has a stream of its own, and nothing orders one after another: a tensor
            // crosses threads only when the thread that made it has waited for its stream
            loader.device().synchronize()?;
            Ok(block)
        };
        Ahead { layer, read: std::thread::spawn(read) }
    }
}

/// What is being read ahead is waited for: nothing outlives the model.
impl Drop for Streamed {
    fn drop(&mut self) {
        let ahead = self.ahead.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // its block is not wanted, nor why there is none
        let _ = ahead.map(|ahead| ahead.read.join());
    }
}

impl BlockSource for Streamed {
    fn block(&self, layer: usize) -> Result<Arc<Block>, ModelError> {
        if layer >= self.layers {
            return Err(ModelError::NoSuchBlock { layer, blocks: self.layers });
        }
        let mut slot = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        // a block read ahead for nothing is waited for, so that at most one is ever being read
        let ready = slot.take().map(|ahead| (ahead.layer, ahead.read.join()));
        let block = match ready {
            Some((read, block)) if read == layer => block.map_err(|_| ModelError::Prefetch(layer))??,
            _ => self.loader.block(layer)?,
        };
        // the last block is followed by the first: the next token starts there
        let next = (layer + 1) % self.layers;
        *slot = (next != layer).then(|| self.read_ahead(next));
        Ok(Arc::new(block))
    }

    fn num_blocks(&self) -> usize {
        self.layers
    }
}
