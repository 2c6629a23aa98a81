//! What reading weights tells: extremes, values that are no numbers, padding rows.

use flm_candle::{
    checkpoint::{Checkpoint, ValueStatistics},
    config::{EMBED_TOKENS, LM_HEAD},
};
use serde::Serialize;

use super::report::{Report, Values, part_of};
use crate::output::{Output, count};

/// Statistics of values; `min` to `std` are of the finite ones, absent where there is none.
#[derive(Debug, Serialize)]
pub(super) struct Statistics {
    pub(super) count: u64,
    pub(super) nan: u64,
    pub(super) infinite: u64,
    pub(super) zero: u64,
    pub(super) min: Option<f64>,
    pub(super) max: Option<f64>,
    pub(super) mean: Option<f64>,
    pub(super) std: Option<f64>,
}

impl From<ValueStatistics> for Statistics {
    fn from(v: ValueStatistics) -> Self {
        let some = |x: f64| (v.finite() > 0).then_some(x);
        Self {
            count: v.count,
            nan: v.nan,
            infinite: v.infinite,
            zero: v.zero,
            min: some(v.min),
            max: some(v.max),
            mean: some(v.mean),
            std: some(v.std()),
        }
    }
}

/// Rows of a matrix that no token has.
#[derive(Debug, Serialize)]
pub(super) struct Padding {
    pub(super) tensor: &'static str,
    pub(super) rows: u64,
    /// Rows that are zero throughout.
    pub(super) zero: u64,
    /// Whether all of them are the same.
    pub(super) equal: bool,
}

/// Reads weights, `sample` bytes of each tensor or all, and adds what they tell to `report`.
pub(super) fn add(
    report: &mut Report,
    checkpoint: &Checkpoint,
    sample: Option<u64>,
    output: &Output,
) -> anyhow::Result<()> {
    let bytes = checkpoint.entries().map(|e| sample.map_or(e.nbytes, |s| s.min(e.nbytes))).sum();
    let bar = output.bytes("reading", bytes);
    let found = checkpoint.value_statistics(sample, &|bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    let mut all = ValueStatistics::default();
    let mut parts = vec![ValueStatistics::default(); report.parts.len()];
    for (index, (entry, values)) in checkpoint.entries().zip(&found).enumerate() {
        all = all.merge(values);
        let part = &mut parts[part_of(&entry.name)];
        *part = part.merge(values);
        if values.nan + values.infinite > 0 {
            let (nan, infinite) = (count(values.nan), count(values.infinite));
            let of = count(values.count);
            report.problems.push(format!("{}: {nan} NaN and {infinite} infinite of {of} values", entry.name));
        }
        if let Some(row) = report.tensor_list.as_mut().and_then(|rows| rows.get_mut(index)) {
            row.values = Some((*values).into());
        }
    }
    for (part, values) in report.parts.iter_mut().zip(parts) {
        part.values = (values.count > 0).then(|| values.into());
    }
    let first = report.tokenizer_size.map_or(u64::MAX, |n| n as u64);
    let mut padding = Vec::new();
    for tensor in [EMBED_TOKENS, LM_HEAD] {
        let Ok(entry) = checkpoint.entry(tensor) else { continue };
        if entry.shape.first().is_some_and(|&rows| rows as u64 > first) {
            let found = checkpoint.padding_rows(entry, first)?;
            padding.push(Padding { tensor, rows: found.rows, zero: found.zero, equal: found.equal });
        }
    }
    report.values = Some(Values { sample: sample.is_some(), all: all.into(), padding });
    Ok(())
}
