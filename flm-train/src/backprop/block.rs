//! The one place where a block under training is put together.

use candle_core::{DType, Device, Result, Tensor};

use flm_candle::Block;
use flm_candle::BlockMasks;
use flm_checkpoint::GrowthMasks;
use flm_checkpoint::{Part, TeleFlmConfig};

/// Block `layer` of the given tensors, in the order of [`TeleFlmConfig::block_parts`], under the masks
/// of a model that is still growing. It computes in `dtype` on `device`.
pub(super) fn block(
    config: &TeleFlmConfig,
    growth: Option<&GrowthMasks>,
    layer: usize,
    tensors: &[Tensor],
    (dtype, device): (DType, &Device),
) -> Result<Block> {
    let find = |wanted: Part| {
        let mut parts = config.block_parts().zip(tensors);
        let found = parts.find(|(part, _)| *part == wanted).map(|(_, tensor)| tensor.clone());
        found.ok_or_else(|| candle_core::Error::Msg(format!("a block lacks its {}", wanted.suffix())))
    };
    let masks = growth.map(|growth| BlockMasks::new(growth, config, layer, dtype, device)).transpose()?;
    Ok(Block::assemble(config, layer, find, find)?.with_masks(masks))
}
