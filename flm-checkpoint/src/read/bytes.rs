//! Reading weights by position.

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use crate::error::CheckpointError;
use crate::error::Result;
use crate::format::Source;
use crate::read::{Checkpoint, TensorEntry};

impl Checkpoint {
    /// Fills `buf` from byte `offset` of the tensor, by a positioned read; safe from many threads.
    ///
    /// # Errors
    /// [`CheckpointError::OutOfRange`] past the tensor's end; [`CheckpointError::Read`] where the
    /// system refuses or the file was cut after it was opened.
    pub fn read_at(&self, entry: &TensorEntry, offset: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > entry.nbytes) {
            let (tensor, nbytes) = (entry.name.clone(), entry.nbytes);
            return Err(CheckpointError::OutOfRange { tensor, offset, len, nbytes });
        }
        let done = match self.handles.get(entry.file) {
            Some(handle) => handle.read_exact_at(buf, entry.offset + offset),
            None => Err(std::io::Error::other("only its headers were fetched; download it first")),
        };
        done.map_err(|source| CheckpointError::Read {
            tensor: entry.name.clone(),
            path: self.files[entry.file].path.clone(),
            source,
        })
    }

    /// All bytes of a tensor.
    pub fn read(&self, entry: &TensorEntry) -> Result<Vec<u8>> {
        let mut bytes = vec![0; entry.nbytes as usize];
        self.read_at(entry, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// A tensor on `device`, in its stored dtype; memory is the tensor and one small buffer.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        let entry = self.entry(name)?;
        let shape = entry.shape.as_slice();
        let tensor = match entry.dtype {
            DType::BF16 => Tensor::from_vec(self.elements(entry, bf16::from_le_bytes)?, shape, device),
            DType::F16 => Tensor::from_vec(self.elements(entry, f16::from_le_bytes)?, shape, device),
            DType::F32 => Tensor::from_vec(self.elements(entry, f32::from_le_bytes)?, shape, device),
            _ => Tensor::from_vec(self.elements(entry, f64::from_le_bytes)?, shape, device),
        };
        Ok(tensor?)
    }

    fn elements<const N: usize, T>(&self, entry: &TensorEntry, from: fn([u8; N]) -> T) -> Result<Vec<T>> {
        let mut elements = Vec::with_capacity(entry.nbytes as usize / N);
        let mut buf = vec![0; BUFFER.min(entry.nbytes) as usize];
        for start in (0..entry.nbytes).step_by(BUFFER as usize) {
            let buf = &mut buf[..BUFFER.min(entry.nbytes - start) as usize];
            self.read_at(entry, start, buf)?;
            elements.extend(buf.as_chunks::<N>().0.iter().map(|&bytes| from(bytes)));
        }
        Ok(elements)
    }
}

/// Bytes decoded at a time; a multiple of every element's width.
const BUFFER: u64 = 1 << 20;
