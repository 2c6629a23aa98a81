//! Any checkpoint to safetensors, in bounded memory.
//!
//! Work is cut into chunks of a tensor. A thread reads one, takes it into the source's CRC-32 and the
//! output's BLAKE3 and writes it, while it is in the cache. What that costs, beside the disk: two copies
//! between page cache and buffer, which `cp` has too, and some 0.15 ns a byte for both sums, which the
//! other threads hide, since writes to one file take turns. `copy_file_range` would save one copy, but the
//! sums need the bytes anyway, and file systems share extents only where both files have them at
//! multiples of a block: PyTorch aligns storages to 64 bytes, safetensors to 8. The files are synced
//! while later ones are written; what is left is what the disk takes.
//!
//! Every finished tensor goes into a journal with its digest. A run that died is taken up where it
//! stopped by the same call; what the journal says is finished is read back and compared.

pub(crate) mod compare;
mod plan;
mod run;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use flm_checkpoint::Dtype;
use serde::Serialize;

use crate::convert::plan::{Plan, Planned};
use crate::convert::run::{Moved, check_uncovered};
use crate::execute::waiting_for;
use flm_candle::write_llama_files;
use flm_checkpoint::Checkpoint;
use flm_checkpoint::CheckpointError;
use flm_checkpoint::Format;
use flm_checkpoint::Layout;
use flm_checkpoint::ModelType;
use flm_checkpoint::Result;
use flm_checkpoint::RunKey;
use flm_checkpoint::TensorSpec;
use flm_checkpoint::{Card, copy_side_files};
use flm_checkpoint::{Checksums, Completion, Engine, Fill, JobPart, TensorSource};

/// How to convert.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// dtype of all tensors; where `None` that of the source, or f32 where a folded multiplier needs it.
    pub dtype: Option<Dtype>,
    /// Most bytes of tensors in a file; a larger tensor has its own.
    pub max_shard_size: u64,
    /// The architecture of the output; that of the source where `None`.
    pub layout: Option<TargetLayout>,
    /// Throws an unfinished run away instead of taking it up.
    pub restart: bool,
    /// Whether to compare a safetensors source with its own digests first, which reads it once more. CRC-32
    /// of PyTorch archives are compared in any case, as they are read.
    pub source_digests: bool,
    /// Whether tensors that are zero throughout are taken as they are.
    pub allow_zero: bool,
    /// Which of several processes that write the checkpoint together this one is.
    pub part: Option<JobPart>,
}

impl Default for ConvertOptions {
    /// No conversion, shards of 5 GB, the size that the Hub recommends.
    fn default() -> Self {
        Self {
            dtype: None,
            max_shard_size: 5_000_000_000,
            layout: None,
            restart: false,
            source_digests: true,
            allow_zero: false,
            part: None,
        }
    }
}

/// An architecture that a checkpoint can be written as; the function stays the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TargetLayout {
    /// `LlamaForCausalLM`: embedding and head, or the final norm, take the multipliers over.
    Llama,
    /// `TeleFLMForCausalLM` with these multipliers, which are taken out of the weights.
    TeleFlm {
        /// Multiplies the embedding's output.
        input_mult: f64,
        /// Multiplies the logits.
        output_mult: f64,
        /// Divides the logits.
        mup_scale_factor: f64,
    },
}

impl fmt::Display for TargetLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Llama => f.write_str("llama"),
            Self::TeleFlm { input_mult, output_mult, mup_scale_factor } => {
                write!(f, "tele-flm with {input_mult} and {output_mult}/{mup_scale_factor}")
            }
        }
    }
}

/// What [`convert`] did.
#[derive(Debug, Clone, PartialEq)]
pub struct ConvertReport {
    /// Tensors written.
    pub tensors: usize,
    /// Bytes read from the weight files, headers excepted.
    pub bytes_read: u64,
    /// Bytes of tensors written, holes included.
    pub bytes_written: u64,
    /// Bytes that were zero and stay holes of the files.
    pub hole_bytes: u64,
    /// Bytes of tensors that an earlier run had finished.
    pub resumed_bytes: u64,
    /// Weight files written.
    pub files: usize,
    /// Finite elements that became infinite, because the new dtype ends before them.
    pub overflowed: u64,
    /// Tensors that took a multiplier over, or gave one up.
    pub folded: Vec<FoldedTensor>,
    /// Of a part: those that were not finished, empty where another gave the checkpoint its name. `None` where this
    /// process did.
    pub waiting_for: Option<Vec<String>>,
}

/// A tensor whose elements were multiplied.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FoldedTensor {
    /// Its name.
    pub tensor: String,
    /// By what.
    pub factor: f64,
    /// dtype of the output, as PyTorch names it.
    pub dtype: &'static str,
    /// Elements whose product was rounded; what an earlier run wrote is not counted.
    pub rounded: u64,
}

/// The program that converts, for journals.
const TOOL: &str = concat!("flm convert ", env!("CARGO_PKG_VERSION"));

/// Writes `src` as safetensors to the new directory `dst`, with its side files and `checksums.json`.
///
/// Memory is a few MiB a thread, whatever the size. Bytes are moved as they are where the dtype stays;
/// else elements are rounded to nearest, ties to even. The CRC-32 of every storage of a PyTorch file is
/// checked. `torch_dtype` in config.json becomes what the weights are. `progress` is called with the
/// number of tensor bytes of the output done since its last call, from several threads.
///
/// `dst` appears complete or not at all. What a run that was killed has finished is kept for the next, if
/// that is of the same source and options.
///
/// # Errors
/// Tensors that are not those of the config or, unless they are allowed, [`CheckpointError::ZeroTensors`];
/// [`CheckpointError::Checksum`],
/// [`CheckpointError::ResumeMismatch`] where another run's remains are in the way, and whatever reading
/// and writing raise.
pub fn convert(
    src: &Checkpoint,
    dst: &Path,
    options: &ConvertOptions,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<ConvertReport> {
    let plan = Plan::new(src, options)?;
    src.require_outside(dst)?;
    // before any weights are read: what changes from here on is noticed at the end
    let dtype = options.dtype.map_or("as stored", Dtype::torch_name);
    let layout = options.layout.map_or("as it is".into(), |l| l.to_string());
    let key = RunKey::new(
        TOOL,
        &[("dtype", &dtype), ("layout", &layout), ("largest file size", &options.max_shard_size)],
        src,
    )?;
    // PyTorch's CRC are compared as the archives are read
    let safetensors = matches!(src.format(), Format::Safetensors | Format::ShardedSafetensors);
    if options.source_digests && safetensors {
        src.verify_digests(options.part)?;
    }
    if !options.allow_zero {
        let zero = src.zero_tensors()?;
        if let Some(first) = zero.first() {
            let (dir, first) = (src.dir().into(), (*first).to_owned());
            return Err(CheckpointError::ZeroTensors { dir, count: zero.len(), first });
        }
    }
    let specs: Vec<TensorSpec> = plan.tensors.iter().map(Planned::spec).collect();
    let (size, part) = (options.max_shard_size, options.part);
    let mut engine = Engine::open(dst, &plan.config, &specs, size, &key, options.restart, part)?;
    let done = write(src, &plan, &engine, progress);
    // what the system refused may be granted later; what is wrong with the source stays wrong
    if let Err(error) = &done
        && part.is_none()
        && !matches!(error, CheckpointError::Io { .. } | CheckpointError::Read { .. })
    {
        engine.writer.discard_staging();
    }
    let (report, checksums) = done?;
    key.require_unchanged(src)?;
    if let Some(checksums) = checksums {
        engine.writer.finish_with_checksums(&plan.config, checksums)?;
    }
    Ok(report)
}

/// What [`convert`] would do; nothing of the weights is read.
///
/// # Errors
/// Those of [`convert`] that can be told before.
pub fn plan_conversion(src: &Checkpoint, options: &ConvertOptions) -> Result<ConvertReport> {
    let plan = Plan::new(src, options)?;
    let specs: Vec<TensorSpec> = plan.tensors.iter().map(Planned::spec).collect();
    let files = Layout::new(&specs, options.max_shard_size)?.shards.len();
    let (read, wrote) =
        (plan.tensors.iter().map(|t| t.entry.nbytes).sum(), plan.tensors.iter().map(Planned::nbytes).sum());
    let done = Done { read, wrote, ..Done::default() };
    Ok(plan.report(files, done, |_| 0))
}

/// Everything but the config and the final name.
fn write(
    src: &Checkpoint,
    plan: &Plan<'_>,
    engine: &Engine,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(ConvertReport, Option<Checksums>)> {
    let tensors: Vec<Moved<'_>> = plan.tensors.iter().map(|planned| Moved::new(src, *planned)).collect();
    let threads = rayon::current_num_threads().clamp(1, run::MAX_THREADS);
    let mut written = engine.write(&tensors, threads, progress)?;
    let own = |t: &&Moved<'_>| written.digests.contains_key(t.name());
    let moved = tensors.iter().filter(own).filter(|t| !written.resumed.contains(t.name()));
    let read: u64 = moved.map(|t| t.source_bytes(t.nbytes())).sum();
    let wrote = tensors.iter().filter(own).map(Fill::nbytes).sum();
    let resumed = written.resumed_bytes(&tensors);
    let completion = engine.complete(&mut written)?;
    let whole = completion == Completion::Whole;
    let done = Done {
        read: read + if whole { check_uncovered(src, &tensors)? } else { 0 },
        wrote,
        holes: written.hole_bytes,
        resumed,
        overflowed: tensors.iter().map(Moved::overflowed).sum(),
    };
    let rounded: BTreeMap<&str, u64> = tensors.iter().map(|t| (t.name(), t.rounded())).collect();
    let writer = &engine.writer;
    let files = writer.file_names().count();
    let mut report = plan.report(files, done, |tensor| rounded.get(tensor).copied().unwrap_or(0));
    report.waiting_for = waiting_for(&completion);
    if !whole {
        return Ok((report, None));
    }

    let dir = writer.staging_dir();
    // an earlier run's, which would be taken for the source's
    let _ = std::fs::remove_file(dir.join("tokenizer.json"));
    copy_side_files(src.dir(), dir, Card::Keep)?;
    if plan.config.model_type == ModelType::Llama && src.config().model_type == ModelType::TeleFlm {
        write_llama_files(dir).map_err(|e| CheckpointError::Sidecar(e.to_string()))?;
    }
    let source = |planned: &Planned<'_>| {
        let factor = (planned.factor != 1.0).then_some(planned.factor);
        (planned.entry.name.clone(), TensorSource { factor, ..TensorSource::of(src, planned.entry) })
    };
    let sources = plan.tensors.iter().map(source).collect();
    Ok((report, Some(Checksums { tensors: written.digests, sources, ..Checksums::default() })))
}

/// What the threads counted.
#[derive(Default)]
struct Done {
    read: u64,
    wrote: u64,
    holes: u64,
    resumed: u64,
    overflowed: u64,
}

impl Plan<'_> {
    fn report(&self, files: usize, done: Done, rounded: impl Fn(&str) -> u64) -> ConvertReport {
        let folded = self.tensors.iter().filter(|t| t.factor != 1.0).map(|t| FoldedTensor {
            tensor: t.entry.name.clone(),
            factor: t.factor,
            dtype: t.to.torch_name(),
            rounded: rounded(&t.entry.name),
        });
        ConvertReport {
            tensors: self.tensors.len(),
            bytes_read: done.read,
            bytes_written: done.wrote,
            hole_bytes: done.holes,
            resumed_bytes: done.resumed,
            files,
            overflowed: done.overflowed,
            folded: folded.collect(),
            waiting_for: None,
        }
    }
}

/// The matrices' dtype, where config.json declares another.
pub(crate) fn stored_dtype_if_undeclared(src: &Checkpoint) -> Option<Dtype> {
    match src.dtype_problem()? {
        CheckpointError::DTypeMismatch { got, .. } => Some(got),
        _ => None,
    }
}
