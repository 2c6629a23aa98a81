//! Keys and values of the tokens seen so far, per block.

use candle_core::{Result, Tensor, bail};

/// By how many tokens a full cache grows: what it holds is copied once for so many.
const GROWTH: usize = 256;

/// Keys and values of the tokens seen so far, per block, `[b, kv_heads, t, head_dim]`.
///
/// Grows as needed; the first allocation holds `capacity` tokens.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<Option<(Tensor, Tensor)>>,
    capacity: usize,
    padding: Vec<usize>,
    len: usize,
}

impl KvCache {
    /// An empty cache for `padding.len()` rows, row `i` of which starts with `padding[i]` padding tokens.
    pub fn new(num_layers: usize, capacity: usize, padding: Vec<usize>) -> Self {
        Self { layers: vec![None; num_layers], capacity, padding, len: 0 }
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

    /// Forgets all tokens but the first `len`; the memory stays.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Adds keys and values of block `layer`; returns all that it now holds.
    ///
    /// They count once [`KvCache::advance`] is called: a pass that ends before is overwritten.
    pub fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let blocks = self.layers.len();
        let Some(held) = self.layers.get_mut(layer) else {
            bail!("there is no block {layer}: the cache is of {blocks}");
        };
        let total = self.len + k.dim(2)?;
        let (keys, values) = match held.take() {
            Some((keys, values)) if keys.dim(2)? >= total => (keys, values),
            old => {
                let capacity =
                    if total <= self.capacity { self.capacity } else { total.next_multiple_of(GROWTH) };
                let (old_keys, old_values) = old.map_or((None, None), |(k, v)| (Some(k), Some(v)));
                (self.larger(old_keys, k, capacity)?, self.larger(old_values, v, capacity)?)
            }
        };
        keys.slice_set(&k.contiguous()?, 2, self.len)?;
        values.slice_set(&v.contiguous()?, 2, self.len)?;
        let held = (keys.narrow(2, 0, total)?, values.narrow(2, 0, total)?);
        self.layers[layer] = Some((keys, values));
        Ok(held)
    }

    /// Room for `capacity` tokens that begins with what `old` holds; `new` has the other dimensions.
    fn larger(&self, old: Option<Tensor>, new: &Tensor, capacity: usize) -> Result<Tensor> {
        let (b, heads, _, dim) = new.dims4()?;
        let room = Tensor::zeros((b, heads, capacity, dim), new.dtype(), new.device())?;
        if let Some(old) = old.filter(|_| self.len > 0) {
            room.slice_set(&old.narrow(2, 0, self.len)?.contiguous()?, 2, 0)?;
        }
        Ok(room)
    }

    /// Called once all blocks have appended `tokens` tokens.
    pub fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}
