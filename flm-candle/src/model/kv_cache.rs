use candle_core::{Result, Tensor};

/// Keys and values of the tokens seen so far, per block, `[b, kv_heads, t, head_dim]`.
///
/// Grows as needed; the first allocation holds `capacity` tokens.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<candle_nn::kv_cache::KvCache>,
    padding: Vec<usize>,
    len: usize,
}

impl KvCache {
    /// An empty cache for `padding.len()` rows, row `i` of which starts with `padding[i]` padding tokens.
    pub fn new(num_layers: usize, capacity: usize, padding: Vec<usize>) -> Self {
        let one = candle_nn::kv_cache::KvCache::new(2, capacity.max(1));
        Self { layers: vec![one; num_layers], padding, len: 0 }
    }

    /// Tokens held per row, padding included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Padding tokens at the start of each row.
    pub fn padding(&self) -> &[usize] {
        &self.padding
    }

    /// Adds keys and values of block `layer`; returns all that it now holds.
    pub(super) fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        self.layers[layer].append(&k.contiguous()?, &v.contiguous()?)
    }

    /// Called once all blocks have appended `tokens` tokens.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}
