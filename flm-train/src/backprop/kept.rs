//! What the forward pass of a sweep keeps of each block's input: where, and how much at most.

use std::{fs::File, os::unix::fs::FileExt, path::PathBuf};

use candle_core::{CpuStorage, DType, Device, Shape, Storage, Tensor};
use half::{bf16, slice::HalfFloatSliceExt};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;

/// Where block inputs wait for the backward pass; they keep their dtype, so that it changes no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputPlace {
    /// On the device that computes.
    #[default]
    Device,
    /// In host memory.
    Host,
    /// In a file.
    Disk,
}

/// The block inputs of a sweep.
#[derive(Debug)]
pub(super) struct BlockInputs {
    place: InputPlace,
    device: Device,
    /// Folder for the file, which has no name there.
    scratch: PathBuf,
    file: Option<File>,
    /// Bytes in the file.
    end: u64,
    bytes: u64,
    most: u64,
    moved: u64,
}

/// A block's input for one micro-batch.
#[derive(Debug)]
pub(super) enum BlockInput {
    Memory(Tensor),
    File { offset: u64, shape: Shape, dtype: DType },
}

fn bytes_of(shape: &Shape, dtype: DType) -> u64 {
    (shape.elem_count() * dtype.size_in_bytes()) as u64
}

impl BlockInputs {
    pub(super) fn new(place: InputPlace, device: &Device, scratch: PathBuf) -> Self {
        Self { place, device: device.clone(), scratch, file: None, end: 0, bytes: 0, most: 0, moved: 0 }
    }

    /// The most bytes that were kept at a time, and all bytes that went to the host or a file and back.
    pub(super) fn usage(&self) -> (u64, u64) {
        (self.most, self.moved)
    }

    /// The residual stream or its gradient between two blocks: on the device only where block inputs are too,
    /// so that a sweep's other micro-batches take no room there.
    pub(super) fn between(&self, stream: Tensor) -> Result<Tensor, TrainError> {
        match self.place {
            InputPlace::Device => Ok(stream),
            InputPlace::Host | InputPlace::Disk => Ok(stream.to_device(&Device::Cpu)?),
        }
    }

    /// Keeps `input`.
    pub(super) fn keep(&mut self, input: &Tensor) -> Result<BlockInput, TrainError> {
        let size = bytes_of(input.shape(), input.dtype());
        self.bytes += size;
        self.most = self.most.max(self.bytes);
        if self.place == InputPlace::Device {
            return Ok(BlockInput::Memory(input.clone()));
        }
        self.moved += size;
        let input = input.to_device(&Device::Cpu)?.contiguous()?;
        if self.place == InputPlace::Host {
            return Ok(BlockInput::Memory(input));
        }
        let (offset, path) = (self.end, self.scratch.clone());
        let file = match &mut self.file {
            Some(file) => file,
            none => none
                .insert(tempfile::tempfile_in(&path).map_err(TrainError::file("create a file in", &path))?),
        };
        let (storage, layout) = input.storage_and_layout();
        let (start, len) = (layout.start_offset(), input.elem_count());
        let bytes: &[u8] = match &*storage {
            Storage::Cpu(CpuStorage::F32(x)) => bytemuck::cast_slice(&x[start..start + len]),
            Storage::Cpu(CpuStorage::F64(x)) => bytemuck::cast_slice(&x[start..start + len]),
            Storage::Cpu(CpuStorage::BF16(x)) => {
                bytemuck::cast_slice(x[start..start + len].reinterpret_cast())
            }
            _ => return Err(unsupported(input.dtype())),
        };
        file.write_all_at(bytes, offset).map_err(TrainError::file("write block inputs in", &path))?;
        self.end += size;
        Ok(BlockInput::File { offset, shape: input.shape().clone(), dtype: input.dtype() })
    }

    /// Gives one back, on the device.
    pub(super) fn take(&mut self, input: BlockInput) -> Result<Tensor, TrainError> {
        let tensor = match input {
            BlockInput::Memory(tensor) => tensor,
            BlockInput::File { offset, shape, dtype } => self.read(offset, shape, dtype)?,
        };
        let size = bytes_of(tensor.shape(), tensor.dtype());
        self.bytes -= size;
        if self.bytes == 0 {
            // the next sweep writes over them
            self.end = 0;
        }
        if self.place != InputPlace::Device {
            self.moved += size;
        }
        Ok(tensor.to_device(&self.device)?)
    }

    fn read(&self, offset: u64, shape: Shape, dtype: DType) -> Result<Tensor, TrainError> {
        let read = |bytes: &mut [u8]| {
            let file = self.file.as_ref().ok_or(TrainError::Worker)?;
            let read = file.read_exact_at(bytes, offset);
            read.map_err(TrainError::file("read block inputs in", &self.scratch))
        };
        let len = shape.elem_count();
        Ok(match dtype {
            DType::F32 => {
                let mut values = vec![0f32; len];
                read(bytemuck::cast_slice_mut(&mut values))?;
                Tensor::from_vec(values, shape, &Device::Cpu)?
            }
            DType::F64 => {
                let mut values = vec![0f64; len];
                read(bytemuck::cast_slice_mut(&mut values))?;
                Tensor::from_vec(values, shape, &Device::Cpu)?
            }
            DType::BF16 => {
                let mut values = vec![bf16::ZERO; len];
                read(bytemuck::cast_slice_mut(values.reinterpret_cast_mut()))?;
                Tensor::from_vec(values, shape, &Device::Cpu)?
            }
            other => return Err(unsupported(other)),
        })
    }
}

fn unsupported(dtype: DType) -> TrainError {
    candle_core::Error::Msg(format!("training computes in f32, f64 or bf16, not in {}", dtype.as_str()))
        .into()
}
