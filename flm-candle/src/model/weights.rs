//! From a checkpoint's tensors to the model's parts, in the dtype that they compute in.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use crate::model::block::{Block, offset_gain};
use crate::model::error::ModelError;
use crate::model::masks::BlockMasks;
use crate::model::rms_norm::RmsNorm;
use flm_checkpoint::{Checkpoint, Dtype, Part, TensorEntry, TensorId};

/// candle's name for a dtype of weights.
pub fn candle_dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::BF16 => DType::BF16,
        Dtype::F16 => DType::F16,
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
    }
}

/// A tensor of a checkpoint on `device`, in its stored dtype; memory is the tensor and one small buffer.
///
/// # Errors
/// Where there is no such tensor, or it cannot be read whole.
pub fn read_tensor(checkpoint: &Checkpoint, name: &str, device: &Device) -> Result<Tensor, ModelError> {
    let entry = checkpoint.entry(name)?;
    let shape = entry.shape.as_slice();
    Ok(match entry.dtype {
        Dtype::BF16 => Tensor::from_vec(elements(checkpoint, entry, bf16::from_le_bytes)?, shape, device)?,
        Dtype::F16 => Tensor::from_vec(elements(checkpoint, entry, f16::from_le_bytes)?, shape, device)?,
        Dtype::F32 => Tensor::from_vec(elements(checkpoint, entry, f32::from_le_bytes)?, shape, device)?,
        Dtype::F64 => Tensor::from_vec(elements(checkpoint, entry, f64::from_le_bytes)?, shape, device)?,
    })
}

fn elements<const N: usize, T>(
    checkpoint: &Checkpoint,
    entry: &TensorEntry,
    from: fn([u8; N]) -> T,
) -> Result<Vec<T>, ModelError> {
    let mut elements = Vec::with_capacity(entry.nbytes as usize / N);
    checkpoint.read_in_pieces(entry, |bytes| {
        elements.extend(bytes.as_chunks::<N>().0.iter().map(|&bytes| from(bytes)));
    })?;
    Ok(elements)
}

/// Reads the model's parts from a checkpoint to a device, in the dtype that they compute in.
#[derive(Debug, Clone)]
pub(super) struct WeightLoader {
    checkpoint: Arc<Checkpoint>,
    device: Device,
    compute: DType,
}

impl WeightLoader {
    /// Weights on `device` for computing in `compute`: f32, bf16 or f64.
    ///
    /// # Errors
    /// [`ModelError::ComputeDtype`] for any other dtype.
    pub(super) fn new(
        checkpoint: Arc<Checkpoint>,
        device: &Device,
        compute: DType,
    ) -> Result<Self, ModelError> {
        match compute {
            DType::F32 | DType::BF16 | DType::F64 => Ok(Self { checkpoint, device: device.clone(), compute }),
            other => Err(ModelError::ComputeDtype(other)),
        }
    }

    /// The checkpoint that weights are read from.
    pub(super) fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Where weights go.
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// A matrix. On a CPU, bf16 stays bf16 where the arithmetic is f32.
    pub(super) fn matrix(&self, name: &str) -> Result<Tensor, ModelError> {
        let stored = read_tensor(&self.checkpoint, name, &self.device)?;
        let keep = stored.dtype() == DType::BF16 && self.compute == DType::F32 && self.device.is_cpu();
        Ok(if keep { stored } else { stored.to_dtype(self.compute)? })
    }

    /// A norm; its gain has the compute dtype, except that a gain stored in f32 stays f32 in bf16.
    pub(super) fn norm(&self, name: &str, eps: f64) -> Result<RmsNorm, ModelError> {
        Ok(RmsNorm::new(offset_gain(self.gain(name)?, self.checkpoint.config().gain_offset())?, eps))
    }

    fn gain(&self, name: &str) -> Result<Tensor, ModelError> {
        let stored = read_tensor(&self.checkpoint, name, &self.device)?;
        let wide = matches!(stored.dtype(), DType::F32 | DType::F64);
        let dtype = if self.compute == DType::BF16 && wide { DType::F32 } else { self.compute };
        Ok(stored.to_dtype(dtype)?)
    }

    /// Block `layer`.
    pub(super) fn block(&self, layer: usize) -> Result<Block, ModelError> {
        let config = self.checkpoint.config();
        let name = |part| TensorId::Block(layer, part).name();
        let matrix = |part: Part| self.matrix(&name(part));
        let vector = |part: Part| match part.is_bias() {
            true => Ok(read_tensor(&self.checkpoint, &name(part), &self.device)?.to_dtype(self.compute)?),
            false => self.gain(&name(part)),
        };
        let masks =
            config.growth.as_ref().map(|g| BlockMasks::new(g, config, layer, self.compute, &self.device));
        Ok(Block::assemble(config, layer, matrix, vector)?.with_masks(masks.transpose()?))
    }
}
