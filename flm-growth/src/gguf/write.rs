//! Writing a GGUF file: a chunk of a tensor at a time, under another name until it is complete.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::f16;
use rayon::prelude::*;
use serde::Serialize;

use crate::gguf::Result;
use crate::gguf::container::ALIGNMENT;
use crate::gguf::error::ExportError;
use crate::gguf::error::io;
use crate::gguf::plan::GgufPlan;
use crate::gguf::tensor::GgufTensor;
use flm_checkpoint::atomic::Staging;
use flm_checkpoint::{Checkpoint, TensorEntry};
use flm_checkpoint::{Dtype, cast, is_place_of_checkpoint};

/// Bytes of the source that are read at a time, where a head or a row is not larger.
const CHUNK: usize = 4 << 20;

/// What [`GgufPlan::write`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufReport {
    /// Length of all files in bytes.
    pub bytes: u64,
    /// Finite elements that became infinite, because the new dtype ends before them.
    pub overflowed: u64,
    /// Tensors with values that are no numbers, or whose blocks do not hold what the source has.
    pub damaged: Vec<DamagedTensor>,
}

/// A tensor with values that are no numbers, or that lost more than quantisation explains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DamagedTensor {
    /// Its name in the file.
    pub tensor: String,
    /// Values of the source that are not finite; blocks hold none.
    pub not_finite: u64,
    /// Blocks of finite values whose scale became infinite, and with it all that they hold.
    pub overflowed_blocks: u64,
}

impl GgufPlan {
    /// Writes the file `dst`, or those of [`GgufPlan::paths`], from `src`, which the plan was made of.
    ///
    /// They are written in the directory `.NAME.partial` beside `dst`, fsynced and, once all are whole, renamed, the
    /// first last. Memory is some tens of MiB. `progress` is told the bytes of the source that are done.
    ///
    /// # Errors
    /// [`ExportError::DestinationExists`], and whatever reading and writing raise;
    /// `dst` does not exist then.
    pub fn write(&self, src: &Checkpoint, dst: &Path, progress: &dyn Fn(u64)) -> Result<GgufReport> {
        let mut encoder = Encoder::default();
        let mut damaged = Vec::new();
        let paths = self.paths(dst);
        for path in paths.iter().chain([&dst.to_owned()]) {
            require_free(path)?;
        }
        let staging = Staging::create(dst)?;
        let mut written = Vec::new();
        for (i, file) in self.files.iter().enumerate() {
            let mut staged = OpenFile::create(staging.dir().join(format!("{i}.gguf")))?;
            staged.put(&file.header)?;
            for tensor in &self.tensors[file.tensors.clone()] {
                if let Some(values) = &tensor.values {
                    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                    staged.put(&bytes)?;
                } else {
                    for source in tensor.sources() {
                        encoder.tensor(src, src.entry(source)?, tensor, |bytes, read| {
                            staged.put(bytes)?;
                            progress(read);
                            Ok(())
                        })?;
                    }
                    damaged.extend(encoder.take_damage(&tensor.name));
                }
                let padding = tensor.nbytes.next_multiple_of(ALIGNMENT) - tensor.nbytes;
                staged.put(&[0; ALIGNMENT as usize][..padding as usize])?;
            }
            written.push(staged.finish()?);
        }
        // readers begin with the first
        let names: Vec<_> = written.into_iter().zip(paths).rev().collect();
        staging.publish_files(&names)?;
        Ok(GgufReport { bytes: self.bytes, overflowed: encoder.overflowed, damaged })
    }
}

/// Turns stored tensors into those of the file; its buffers are used again.
#[derive(Default)]
struct Encoder {
    source: Vec<u8>,
    paired: Vec<u8>,
    wide: Vec<u8>,
    out: Vec<u8>,
    overflowed: u64,
    not_finite: u64,
    overflowed_blocks: u64,
}

impl Encoder {
    /// Gives `put` the tensor's bytes in order, with the number of the source's bytes that they are.
    fn tensor(
        &mut self,
        src: &Checkpoint,
        entry: &TensorEntry,
        tensor: &GgufTensor,
        mut put: impl FnMut(&[u8], u64) -> Result<()>,
    ) -> Result<()> {
        let columns = tensor.shape.last().copied().unwrap_or(1);
        // the rows of a bias are its values
        let row_values = if tensor.shape.len() > 1 { columns } else { 1 };
        let row = row_values * entry.dtype.size_in_bytes();
        let unit = row * tensor.head_dim.unwrap_or(1);
        let step = (CHUNK / unit.max(1)).max(1) * unit;
        let mut at = 0;
        while at < entry.nbytes {
            let n = (step as u64).min(entry.nbytes - at);
            self.source.resize(n as usize, 0);
            src.read_at(entry, at, &mut self.source)?;
            if let Some(head_dim) = tensor.head_dim {
                pair_rows(&mut self.source, &mut self.paired, row, head_dim);
            }
            self.encode(entry.dtype, tensor, columns)?;
            put(&self.out, n)?;
            at += n;
        }
        Ok(())
    }

    /// What was lost since the last call.
    fn take_damage(&mut self, tensor: &str) -> Option<DamagedTensor> {
        let (not_finite, overflowed_blocks) =
            (std::mem::take(&mut self.not_finite), std::mem::take(&mut self.overflowed_blocks));
        let tensor = tensor.to_owned();
        (not_finite + overflowed_blocks > 0).then_some(DamagedTensor {
            tensor,
            not_finite,
            overflowed_blocks,
        })
    }

    /// `source` as `out`.
    fn encode(&mut self, from: Dtype, tensor: &GgufTensor, columns: usize) -> Result<()> {
        let to = match tensor.dtype {
            GgmlDType::F16 => Dtype::F16,
            GgmlDType::BF16 => Dtype::BF16,
            _ => Dtype::F32,
        };
        let overflowed = if tensor.factor == 1.0 && tensor.added == 0.0 {
            cast(from, to, &self.source, &mut self.out)
        } else {
            cast(from, Dtype::F64, &self.source, &mut self.wide);
            for bytes in self.wide.as_chunks_mut::<8>().0 {
                *bytes = ((f64::from_le_bytes(*bytes) + tensor.added) * tensor.factor).to_le_bytes();
            }
            cast(Dtype::F64, to, &self.wide, &mut self.out)
        };
        self.overflowed += overflowed;
        self.not_finite += not_finite(to, &self.out) - overflowed;
        if tensor.dtype.block_size() > 1 {
            let values: Vec<f32> =
                self.out.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
            self.out = quantised(&values, columns, tensor.dtype)?;
            self.overflowed_blocks += overflowed_blocks(&self.out, &values, tensor.dtype);
        }
        Ok(())
    }
}

/// How many of these values are not finite: all bits of their exponent are set.
fn not_finite(dtype: Dtype, bytes: &[u8]) -> u64 {
    let two = |exponent: u16| {
        let values = bytes.as_chunks::<2>().0.iter();
        values.filter(|&&b| u16::from_le_bytes(b) & exponent == exponent).count()
    };
    let count = match dtype {
        Dtype::F16 => two(0x7c00),
        Dtype::BF16 => two(0x7f80),
        _ => bytes.as_chunks::<4>().0.iter().filter(|&&b| !f32::from_le_bytes(b).is_finite()).count(),
    };
    count as u64
}

/// Rows of `columns` values as blocks.
fn quantised(values: &[f32], columns: usize, dtype: GgmlDType) -> Result<Vec<u8>> {
    // A piece is many blocks, and there are pieces enough for all threads.
    let piece = columns * (1usize << 16).div_ceil(columns);
    let pieces = values.par_chunks(piece).map(|rows| {
        let rows = Tensor::from_slice(rows, (rows.len() / columns, columns), &Device::Cpu)?;
        Ok(QTensor::quantize(&rows, dtype)?.data()?.into_owned())
    });
    Ok(pieces.collect::<candle_core::Result<Vec<_>>>()?.concat())
}

/// Blocks of finite values with a scale, or a least value, that is not finite.
fn overflowed_blocks(blocks: &[u8], values: &[f32], dtype: GgmlDType) -> u64 {
    // where a block has its f16 numbers
    let at: &[usize] = match dtype {
        GgmlDType::Q4_0 | GgmlDType::Q5_0 | GgmlDType::Q8_0 => &[0],
        GgmlDType::Q4_1 | GgmlDType::Q5_1 | GgmlDType::Q4K | GgmlDType::Q5K => &[0, 2],
        GgmlDType::Q6K => &[208],
        _ => &[],
    };
    let broken =
        |block: &[u8]| at.iter().any(|&at| !f16::from_le_bytes([block[at], block[at + 1]]).is_finite());
    let pairs = blocks.chunks_exact(dtype.type_size()).zip(values.chunks_exact(dtype.block_size()));
    pairs.filter(|(block, values)| broken(block) && values.iter().all(|v| v.is_finite())).count() as u64
}

/// Reorders the rows of each head from halves, where row i is rotated with row i + head_dim/2, to pairs,
/// where row 2i is rotated with row 2i + 1: transformers' Llama has the one, llama.cpp's the other.
fn pair_rows(bytes: &mut Vec<u8>, scratch: &mut Vec<u8>, row: usize, head_dim: usize) {
    scratch.clear();
    scratch.reserve(bytes.len());
    for head in bytes.chunks_exact(row * head_dim) {
        let (first, second) = head.split_at(row * head_dim / 2);
        for (a, b) in first.chunks_exact(row).zip(second.chunks_exact(row)) {
            scratch.extend(a);
            scratch.extend(b);
        }
    }
    std::mem::swap(bytes, scratch);
}

/// A file that is being written.
struct OpenFile {
    path: PathBuf,
    out: BufWriter<File>,
}

impl OpenFile {
    fn create(path: PathBuf) -> Result<Self> {
        let file = File::create(&path).map_err(io("create", &path))?;
        Ok(Self { path, out: BufWriter::with_capacity(1 << 20, file) })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(io("write", &self.path))
    }

    /// Waits until the file is on the disk.
    fn finish(mut self) -> Result<PathBuf> {
        self.out.flush().map_err(io("write", &self.path))?;
        self.out.get_ref().sync_all().map_err(io("sync", &self.path))?;
        Ok(self.path)
    }
}

fn require_free(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_ok() {
        return Err(ExportError::DestinationExists { path: path.into() });
    }
    if is_place_of_checkpoint(path) {
        return Err(ExportError::PlaceOfCheckpoint { path: path.into() });
    }
    Ok(())
}
