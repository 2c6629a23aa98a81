//! Streams a source checkpoint through a plan into a new checkpoint.
//!
//! Work is cut into row chunks of a tensor. Each is read by positioned reads, composed and written at
//! its final place, by as many threads as the rayon pool has; a thread holds one chunk of output and at
//! most as much of input, so memory does not depend on the model. Zeros are not written: they stay
//! holes of the file.

pub(crate) mod compose;
mod provenance;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use flm_candle::checkpoint::{Checkpoint, TensorEntry, TensorSpec, Writer, copy_side_files};
use rayon::prelude::*;
use serde::Serialize;

use crate::error::{GrowthError, Result};
use crate::fill::sample_std;
use crate::plan::{Fill, GrowthPlan, Std, TensorPlan};
use crate::precision::Precision;
pub(crate) use compose::Composer;
pub use provenance::{PROVENANCE_FILE, Provenance};

/// How to write.
#[derive(Debug, Clone)]
pub struct ExecuteOptions {
    /// Bytes of output that are composed at a time, by each thread.
    pub chunk_bytes: usize,
    /// Largest shard file.
    pub max_shard_bytes: u64,
    /// The command line, for provenance.json.
    pub command: Vec<String>,
}

impl Default for ExecuteOptions {
    fn default() -> Self {
        Self { chunk_bytes: 64 << 20, max_shard_bytes: 10_000_000_000, command: Vec::new() }
    }
}

/// What an execution did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExecuteReport {
    /// Bytes of all tensors, holes included.
    pub output_bytes: u64,
    /// Bytes that were left as holes.
    pub hole_bytes: u64,
    /// Wall time, fsync included.
    pub seconds: f64,
    /// Files copied beside the weights.
    pub side_files: Vec<String>,
}

/// Grows `source` by `plan` into the new directory `dst`, which appears complete or not at all.
///
/// `progress` is called, from several threads, with the bytes finished since the last call; they add
/// up to [`crate::plan::PlanSummary::output_bytes`].
///
/// # Errors
/// If the source is not the one that the plan was made for, and whatever reading and writing return.
pub fn execute(
    plan: &GrowthPlan,
    source: &Checkpoint,
    dst: &Path,
    options: &ExecuteOptions,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<ExecuteReport> {
    let started = Instant::now();
    let config = plan.target_config(source.config())?;
    let mut tensors: Vec<Source<'_>> =
        plan.tensors.par_iter().map(|t| Source::new(t, source)).collect::<Result<_>>()?;
    let specs: Vec<TensorSpec> = plan
        .tensors
        .iter()
        .map(|t| TensorSpec { name: t.name.clone(), dtype: t.dtype.into(), shape: t.shape.clone() })
        .collect();
    let writer = Writer::create(dst, &specs, options.max_shard_bytes)?;
    let order: HashMap<&str, usize> =
        writer.disk_order().into_iter().enumerate().map(|(place, name)| (name, place)).collect();
    tensors.sort_by_key(|t| order.get(t.plan.name.as_str()).copied());
    let run = Run { plan, source, writer: &writer, progress, holes: AtomicU64::new(0) };
    run.all(&tensors, options.chunk_bytes)?;
    let hole_bytes = run.holes.into_inner();
    let side_files = copy_side_files(source.dir(), writer.staging_dir())?;
    Provenance::new(plan, source, options)?.write(writer.staging_dir())?;
    writer.finish(&config)?;
    Ok(ExecuteReport {
        output_bytes: plan.tensors.iter().map(TensorPlan::nbytes).sum(),
        hole_bytes,
        seconds: started.elapsed().as_secs_f64(),
        side_files,
    })
}

/// A target tensor with its source found and its standard deviation measured.
struct Source<'a> {
    plan: TensorPlan,
    entry: Option<&'a TensorEntry>,
}

impl<'a> Source<'a> {
    fn new(plan: &TensorPlan, source: &'a Checkpoint) -> Result<Self> {
        let mut plan = plan.clone();
        let Some(tensor) = &plan.source else { return Ok(Self { plan, entry: None }) };
        let entry = source.entry(&tensor.name)?;
        if entry.shape != tensor.shape {
            return Err(GrowthError::TensorShape {
                name: tensor.name.clone(),
                got: entry.shape.clone(),
                expected: tensor.shape.clone(),
            });
        }
        if Precision::try_from(entry.dtype)? != tensor.dtype {
            return Err(GrowthError::TensorDtype {
                name: tensor.name.clone(),
                got: entry.dtype.as_str().into(),
                expected: tensor.dtype.to_string(),
            });
        }
        if [plan.new_cols, plan.new_rows, plan.new_corner].contains(&Some(Fill::Normal(Std::Match))) {
            let elements = entry.shape.iter().map(|&n| n as u64).product();
            let std = sample_std(&entry.name, tensor.dtype, elements, |offset, out| {
                Ok(source.read_at(entry, offset, out)?)
            })?;
            plan.set_std(std * plan.scale.abs());
        }
        Ok(Self { plan, entry: Some(entry) })
    }
}

/// Buffers of one thread.
#[derive(Default)]
struct Buffers {
    out: Vec<u8>,
    scratch: Vec<u8>,
}

struct Run<'a> {
    plan: &'a GrowthPlan,
    source: &'a Checkpoint,
    writer: &'a Writer,
    progress: &'a (dyn Fn(u64) + Sync),
    holes: AtomicU64,
}

/// Rows `start..end` of a tensor.
struct Chunk {
    tensor: usize,
    start: usize,
    end: usize,
}

impl Run<'_> {
    /// Every chunk, in the order of the file so that disks see mostly sequential access.
    fn all(&self, tensors: &[Source<'_>], chunk_bytes: usize) -> Result<()> {
        let chunks = chunks(tensors, chunk_bytes);
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let failure = Mutex::new(None);
        rayon::scope(|scope| {
            for _ in 0..rayon::current_num_threads() {
                scope.spawn(|_| {
                    if let Err(error) = self.worker(tensors, &chunks, &next, &stop) {
                        stop.store(true, Ordering::Relaxed);
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                });
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn worker(
        &self,
        tensors: &[Source<'_>],
        chunks: &[Chunk],
        next: &AtomicUsize,
        stop: &AtomicBool,
    ) -> Result<()> {
        let mut current: Option<(usize, Composer<'_>)> = None;
        let mut buffers = Buffers::default();
        while !stop.load(Ordering::Relaxed) {
            let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            let tensor = &tensors[chunk.tensor];
            let composer = match current.take() {
                Some((index, composer)) if index == chunk.tensor => composer,
                _ => Composer::new(&tensor.plan, self.plan.seed)?,
            };
            self.chunk(chunk, tensor, &composer, &mut buffers)?;
            current = Some((chunk.tensor, composer));
        }
        Ok(())
    }

    fn chunk(
        &self,
        chunk: &Chunk,
        tensor: &Source<'_>,
        composer: &Composer<'_>,
        buffers: &mut Buffers,
    ) -> Result<()> {
        let name = &tensor.plan.name;
        let row = composer.row_bytes();
        let (offset, length) = (chunk.start as u64 * row as u64, (chunk.end - chunk.start) * row);
        if composer.is_zero(chunk.start, chunk.end) {
            self.writer.skip(name, offset, length as u64)?;
            self.holes.fetch_add(length as u64, Ordering::Relaxed);
        } else {
            buffers.out.resize(length.max(buffers.out.len()), 0);
            let out = &mut buffers.out[..length];
            let read = |offset: u64, out: &mut [u8]| match tensor.entry {
                Some(entry) => Ok(self.source.read_at(entry, offset, out)?),
                None => Ok(()),
            };
            composer.rows(chunk.start, chunk.end, &read, &mut buffers.scratch, out)?;
            self.writer.write_at(name, offset, out)?;
        }
        (self.progress)(length as u64);
        Ok(())
    }
}

/// Cuts every tensor into chunks of whole rows, each all copied or all new.
fn chunks(tensors: &[Source<'_>], chunk_bytes: usize) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for (tensor, source) in tensors.iter().enumerate() {
        let ((rows, cols), (copied, _)) = (source.plan.size(), source.plan.copied());
        let step = (chunk_bytes / (cols * source.plan.dtype.bytes()).max(1)).max(1);
        for (first, end) in [(0, copied), (copied, rows)] {
            chunks.extend((first..end).step_by(step).map(|start| Chunk {
                tensor,
                start,
                end: end.min(start + step),
            }));
        }
    }
    chunks
}

#[cfg(test)]
mod tests;
