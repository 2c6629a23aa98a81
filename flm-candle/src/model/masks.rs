//! Masks of a model that is still growing, as the forward pass uses them.

use candle_core::{DType, Device, Result, Tensor};

use flm_checkpoint::GrowthMasks;
use flm_checkpoint::TeleFlmConfig;

/// The masks of one block.
#[derive(Debug, Clone)]
pub struct BlockMasks {
    /// Multiplies each sub-layer's output, `[hidden_size]`.
    pub hidden: Option<Tensor>,
    /// Multiplies the heads' outputs, `[heads · head_dim]`.
    pub heads: Option<Tensor>,
    /// Multiplies the feed-forward units, `[intermediate_size]`.
    pub ffn: Option<Tensor>,
    /// Multiplies both residual branches; 1 for a layer that is not new.
    pub layer: f64,
    /// Weights the norms' statistics.
    pub norm: Option<NormMask>,
}

/// Weights of RMSNorm's mean square: 1 for entries before `from`, `mask` for the others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormMask {
    /// The first new entry.
    pub from: usize,
    /// The weight of new entries, from 0 to 1.
    pub mask: f64,
}

impl BlockMasks {
    /// The masks of block `layer`, for activations of `dtype`.
    pub fn new(
        growth: &GrowthMasks,
        config: &TeleFlmConfig,
        layer: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let one = |size: usize, from: usize, mask: f64| vector(size, from, mask, dtype, device);
        let heads =
            growth.heads.map(|m| one(config.query_width(), m.from * config.head_dim, m.mask)).transpose()?;
        Ok(Self {
            hidden: hidden_mask(growth, config, dtype, device)?,
            heads,
            ffn: growth.ffn.map(|m| one(config.intermediate_size, m.from, m.mask)).transpose()?,
            layer: growth.layer(layer),
            norm: norm_mask(growth),
        })
    }
}

/// What the embedding's output is multiplied by, `[hidden_size]`.
pub fn hidden_mask(
    growth: &GrowthMasks,
    config: &TeleFlmConfig,
    dtype: DType,
    device: &Device,
) -> Result<Option<Tensor>> {
    growth.hidden.map(|m| vector(config.hidden_size, m.from, m.mask, dtype, device)).transpose()
}

/// What weights the statistics of every norm.
pub fn norm_mask(growth: &GrowthMasks) -> Option<NormMask> {
    growth.hidden.map(|m| NormMask { from: m.from, mask: m.mask })
}

/// 1 before `from`, `mask` after.
fn vector(size: usize, from: usize, mask: f64, dtype: DType, device: &Device) -> Result<Tensor> {
    let values: Vec<f64> = (0..size).map(|i| if i < from { 1.0 } else { mask }).collect();
    Tensor::from_vec(values, size, device)?.to_dtype(dtype)
}
