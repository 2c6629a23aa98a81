//! What reading weights tells: extremes, values that are no numbers, padding rows.

use flm_candle::Tokenizer;
use flm_checkpoint::Checkpoint;
use flm_checkpoint::ValueStatistics;
use flm_checkpoint::{EMBED_TOKENS, LM_HEAD};

use crate::commands::inspect::report::{Padding, Report, Values, ZeroTokens, part_of};
use crate::output::{Output, count};

/// Ids of tokens that are told.
const TOLD: usize = 8;

/// Reads weights, `sample` bytes of each tensor or all, and adds what they tell to `report`.
pub(crate) fn add(
    report: &mut Report,
    checkpoint: &Checkpoint,
    tokenizer: Option<&Tokenizer>,
    sample: Option<u64>,
    output: &Output,
) -> anyhow::Result<()> {
    // whoever reads all of it compares it with its digests
    if sample.is_none()
        && let Err(error) = checkpoint.verify_digests(None)
    {
        report.problems.push(error.to_string());
    }
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
    let zero_tokens = match (tokenizer, checkpoint.find(EMBED_TOKENS)) {
        (Some(tokenizer), Some(entry)) if sample.is_none() => {
            let unused = tokenizer.unused_ids();
            let mut zero = checkpoint.zero_rows(entry, first)?;
            zero.retain(|&id| u32::try_from(id).is_ok_and(|id| unused.binary_search(&id).is_err()));
            Some(ZeroTokens { count: zero.len(), first: zero.into_iter().take(TOLD).collect() })
        }
        _ => None,
    };
    let zero_tokens = zero_tokens.filter(|tokens| tokens.count > 0);
    report.values = Some(Values { sample: sample.is_some(), all: all.into(), padding, zero_tokens });
    Ok(())
}
