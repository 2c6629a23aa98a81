//! Whether a grown checkpoint computes its source's function: both run on the same tokens, layer by
//! layer in lockstep, and their logits and residual streams are compared.
//!
//! Streamed, no model is ever whole in memory. The noise floor, the difference between the source in
//! bf16 and the source in f32, tells how large a difference means nothing.

#[cfg(test)]
pub(crate) mod exactness;
mod metrics;
pub(crate) mod report;
mod runner;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use flm_candle::Residency;
use flm_checkpoint::Checkpoint;

use crate::verify::report::{Bounds, LayerDifference, VerifyReport};

use crate::error::{GrowthError, Result};
use crate::execute::record::Provenance;
use crate::shape::Shape;
use crate::verify::metrics::{Difference, LogitMetrics};
use crate::verify::runner::Runner;

/// How to verify.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// Texts as token ids; texts of the same length run as one batch.
    pub tokens: Vec<Vec<u32>>,
    /// What to compute in: f32, bf16 or f64.
    pub dtype: DType,
    /// Where to compute.
    pub device: Device,
    /// Whether blocks stay in memory or are read as they are needed.
    pub residency: Residency,
    /// Number of tokens of the tokenizer: only their logits are compared. `None` compares all rows
    /// of the source's vocabulary.
    pub tokenizer_size: Option<usize>,
    /// For each source layer the target layer after which the residual streams must agree. `None`
    /// takes it from the target's provenance, or pairs equal numbers of layers in order.
    pub layer_map: Option<Vec<usize>>,
    /// What counts as the same function; `None` takes the bounds of the dtype.
    pub bounds: Option<Bounds>,
    /// Whether to measure the noise floor, for one or two more runs of the source. It is measured in
    /// any case where the bounds need it.
    pub noise_floor: bool,
}

impl VerifyOptions {
    /// f32 on the CPU, streamed, with the default bounds and the noise floor.
    pub fn new(tokens: Vec<Vec<u32>>) -> Self {
        Self {
            tokens,
            dtype: DType::F32,
            device: Device::Cpu,
            residency: Residency::Streamed,
            tokenizer_size: None,
            layer_map: None,
            bounds: None,
            noise_floor: true,
        }
    }
}

/// Compares `target` with `source`. `progress` is called with layers run and layers to run.
///
/// # Errors
/// If a model cannot be loaded or run, or the two cannot be compared. That they differ is no error:
/// see [`VerifyReport::passed`].
///
/// ```
/// use flm_growth::{VerifyOptions, verify};
///
/// let open = |name: &str| {
///     let dir = std::path::Path::new("../tests/fixtures/models").join(name);
///     flm_checkpoint::Checkpoint::open(&dir).map(std::sync::Arc::new)
/// };
/// let (pickled, converted) = (open("teleflm-gqa-bf16-shbin")?, open("teleflm-gqa-bf16-st")?);
/// let report = verify(&pickled, &converted, &VerifyOptions::new(vec![vec![1, 5, 17]]), &mut |_, _| ())?;
/// assert!(report.passed && report.max_abs == 0.0);
/// # Ok::<(), flm_growth::GrowthError>(())
/// ```
pub fn verify(
    source: &Arc<Checkpoint>,
    target: &Arc<Checkpoint>,
    options: &VerifyOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<VerifyReport> {
    let (from, to) = (Shape::of(source.config()), Shape::of(target.config()));
    let vocab = options.tokenizer_size.unwrap_or(from.vocab_size).min(from.vocab_size);
    if to.vocab_size < vocab {
        return Err(GrowthError::Shrinks { dimension: "vocab_size", from: vocab, to: to.vocab_size });
    }
    if options.tokens.iter().all(|text| text.is_empty()) {
        return Err(GrowthError::NothingToVerify);
    }
    let layers = layer_map(source, target, options)?;
    let bounds = options.bounds.unwrap_or_else(|| Bounds::of(options.dtype));
    let load = |checkpoint: &Arc<Checkpoint>, dtype: DType| {
        Runner::load(checkpoint, &options.device, dtype, options.residency)
    };
    let (mut a, mut b) = (load(source, options.dtype)?, load(target, options.dtype)?);
    // bf16 and f32; the one that is the compute dtype already runs
    let floor = options.noise_floor || bounds.noise_floors.is_some();
    let mut extra = Vec::new();
    for dtype in [DType::BF16, DType::F32] {
        if floor && dtype != options.dtype {
            extra.push(load(source, dtype)?);
        }
    }
    let groups = groups(&options.tokens);
    let per_group = a.layers() + b.layers() + extra.iter().map(Runner::layers).sum::<usize>();
    let (mut done, total) = (0, per_group * groups.len());
    let mut step = |n: usize| {
        done += n;
        progress(done, total);
    };

    let mut logits = LogitMetrics::default();
    let mut noise = Difference::default();
    let mut residual = vec![Difference::default(); layers.as_ref().map_or(0, Vec::len)];
    for texts in &groups {
        a.start(texts)?;
        b.start(texts)?;
        for runner in &mut extra {
            runner.start(texts)?;
        }
        for layer in 0..a.layers() {
            step(a.run_to(layer + 1)?);
            for runner in &mut extra {
                step(runner.run_to(layer + 1)?);
            }
            if let Some(layers) = &layers {
                step(b.run_to(layers[layer] + 1)?);
                residual[layer].add_streams(a.stream()?, b.stream()?)?;
            }
        }
        step(b.run_to(b.layers())?);
        for (row, text) in texts.iter().enumerate() {
            for start in (0..text.len()).step_by(POSITIONS) {
                let end = text.len().min(start + POSITIONS);
                let next = |position: usize| text.get(position + 1).copied();
                let values = |runner: &Runner| runner.logits(row, start, end, vocab);
                let source = values(&a)?;
                let added = to.vocab_size.saturating_sub(from.vocab_size);
                if added > 0 {
                    let (old, new) = b.logits_and_from(row, (start, end), vocab, from.vocab_size)?;
                    logits.add(&source, &old, vocab, |i| next(start + i));
                    logits.add_new_rows(&old, vocab, &new, added, |i| next(start + i));
                } else {
                    logits.add(&source, &values(&b)?, vocab, |i| next(start + i));
                }
                let wide = |dtype: DType| -> Result<Option<Vec<f64>>> {
                    if dtype == options.dtype {
                        return Ok(Some(source.clone()));
                    }
                    extra.iter().find(|r| r.dtype() == dtype).map(values).transpose()
                };
                if let (true, Some(low), Some(high)) = (floor, wide(DType::BF16)?, wide(DType::F32)?) {
                    noise.add(&high, &low);
                }
            }
        }
    }
    let layers = layers.unwrap_or_default();
    let differences = residual.iter().zip(&layers).enumerate().map(|(source, (difference, &target))| {
        LayerDifference { source, target, relative_l2: difference.relative() }
    });
    let measured = crate::verify::report::Measured {
        logits,
        noise_floor: floor.then(|| noise.relative()),
        layers: differences.collect(),
        texts: options.tokens.iter().filter(|t| !t.is_empty()).count(),
        vocab,
        new_rows: to.vocab_size.saturating_sub(from.vocab_size),
    };
    Ok(VerifyReport::new(measured, options.dtype, bounds))
}

/// Positions whose logits are in memory at once.
const POSITIONS: usize = 128;

/// Texts of the same length together, in the order of their first appearance.
pub(crate) fn groups(texts: &[Vec<u32>]) -> Vec<Vec<&[u32]>> {
    let mut groups: Vec<Vec<&[u32]>> = Vec::new();
    for text in texts.iter().filter(|t| !t.is_empty()) {
        match groups.iter_mut().find(|g| g[0].len() == text.len()) {
            Some(group) => group.push(text),
            None => groups.push(vec![text]),
        }
    }
    groups
}

/// For each source layer the target layer to compare after; `None` where there is nothing to pair.
fn layer_map(
    source: &Checkpoint,
    target: &Checkpoint,
    options: &VerifyOptions,
) -> Result<Option<Vec<usize>>> {
    let (from, to) = (Shape::of(source.config()), Shape::of(target.config()));
    let provenance = Provenance::read(target.dir())?;
    let known = || provenance.as_ref()?.layer_map(&from, &to);
    let same =
        || (from.num_hidden_layers == to.num_hidden_layers).then(|| (0..from.num_hidden_layers).collect());
    let map: Option<Vec<usize>> = options.layer_map.clone().or_else(known).or_else(same);
    let Some(map) = map.filter(|_| to.hidden_size >= from.hidden_size) else { return Ok(None) };
    let increasing = map.windows(2).all(|w| w[0] < w[1]);
    let inside = map.last().is_none_or(|&last| last < to.num_hidden_layers);
    if map.len() != from.num_hidden_layers || !increasing || !inside {
        return Err(GrowthError::LayerMap {
            got: map,
            source_layers: from.num_hidden_layers,
            target_layers: to.num_hidden_layers,
        });
    }
    Ok(Some(map))
}

/// The values of a tensor in row-major order.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}
