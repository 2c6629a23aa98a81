//! What the blocks of one forward pass share: positions, masks, documents, chunks of queries.

use crate::model::kernels::Documents;
use crate::model::kernels::Path;

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::model::rotary::Rotary;

/// The largest number of attention scores held at once: on a CPU what its caches hold, 4 MiB in f32.
fn max_scores(device: &Device) -> usize {
    if device.is_cpu() { 1 << 20 } else { 16 << 20 }
}

/// What all blocks of one forward pass share: positions, masks, the path.
///
/// Rows of a batch may have different lengths: shorter ones are padded on the left, and
/// `padding[row]` says by how much. Positions count from a row's first real token.
///
/// In training a row is packed with several documents ([`Pass::packed`]): attention stays inside each
/// and its positions start at 0.
#[derive(Debug)]
pub struct Pass {
    /// Fused or differentiable operations.
    pub path: Path,
    /// Cosines of the rotary angles, `[t, head_dim / 2]`, or `[b, t, head_dim / 2]` where positions differ by row.
    pub cos: Tensor,
    /// Sines of the rotary angles, of the shape of `cos`.
    pub sin: Tensor,
    /// Queries that attend together, in order.
    pub chunks: Vec<QueryChunk>,
    /// For each position of each row the first key that it sees; training only.
    pub documents: Option<Documents>,
}

/// Consecutive queries that attend together: queries `start..start + len` see keys `0..keys`.
#[derive(Debug)]
pub struct QueryChunk {
    pub start: usize,
    pub len: usize,
    pub keys: usize,
    /// 0 or −∞, `[b or 1, 1, 1, len, keys]`; `None` where every key is seen.
    pub mask: Option<Tensor>,
}

/// What a [`Pass`] is made for.
#[derive(Debug, Clone, Copy)]
pub struct PassShape<'a> {
    pub padding: &'a [usize],
    pub past: usize,
    pub len: usize,
    pub heads: usize,
}

impl Pass {
    /// The context of a pass of this shape.
    pub fn new(
        path: Path,
        rotary: &Rotary,
        shape: PassShape<'_>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let PassShape { padding, past, len, heads } = shape;
        let rows = padding.len();
        let padded = padding.iter().any(|&p| p > 0);
        let positions: Vec<usize> = if padded {
            let of_row = |&pad: &usize| (past..past + len).map(move |i| i.saturating_sub(pad));
            padding.iter().flat_map(of_row).collect()
        } else {
            (past..past + len).collect()
        };
        let (cos, sin) = rotary.tables(&positions, if padded { Some(rows) } else { None }, dtype, device)?;
        let step = (max_scores(device) / (rows * heads * (past + len))).clamp(1, len);
        let chunks = (0..len)
            .step_by(step)
            .map(|start| {
                let count = step.min(len - start);
                let keys = past + start + count;
                let mask = mask(padding, past + start, count, keys, dtype, device)?;
                Ok(QueryChunk { start, len: count, keys, mask })
            })
            .collect::<Result<_>>()?;
        Ok(Self { path, cos, sin, chunks, documents: None })
    }

    /// A differentiable pass over rows of `len` tokens that are packed with documents: `starts` has, row
    /// by row, for each position the position at which its document starts.
    ///
    /// # Errors
    /// When `starts` is no multiple of `len` values, or a document starts after its token.
    pub fn packed(
        rotary: &Rotary,
        starts: &[u32],
        len: usize,
        heads: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let misplaced =
            |row: &[u32], (i, &start): (usize, &u32)| start as usize > i || row[start as usize] != start;
        let wrong = |row: &[u32]| !row.is_sorted() || row.iter().enumerate().any(|at| misplaced(row, at));
        if len == 0
            || heads == 0
            || starts.is_empty()
            || !starts.len().is_multiple_of(len)
            || starts.chunks(len).any(wrong)
        {
            bail!("the documents of a packed row must follow each other and start before their tokens");
        }
        let rows = starts.len() / len;
        let positions: Vec<usize> =
            starts.iter().enumerate().map(|(i, &start)| i % len - start as usize).collect();
        let (cos, sin) = rotary.tables(&positions, Some(rows), dtype, device)?;
        let documents = Documents { starts: Arc::new(starts.to_vec()), rotary: rotary.clone() };
        // the CPU's own attention asks the documents, not a mask
        let fused = device.is_cpu() && matches!(dtype, DType::F32 | DType::F64);
        let step = (max_scores(device) / (rows * heads * len)).clamp(1, len);
        let chunks = (0..len).step_by(if fused { len } else { step }).map(|start| {
            let count = step.min(len - start);
            let keys = start + count;
            let mask =
                if fused { None } else { Some(document_mask(starts, len, start, count, dtype, device)?) };
            Ok(QueryChunk { start, len: count, keys, mask })
        });
        let chunks = chunks.collect::<Result<_>>()?;
        Ok(Self { path: Path::Differentiable, cos, sin, chunks, documents: Some(documents) })
    }
}

/// 0 where query `first + i` of a row sees a key of its document, −∞ elsewhere.
fn document_mask(
    starts: &[u32],
    len: usize,
    first: usize,
    count: usize,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let (rows, keys) = (starts.len() / len, first + count);
    let mut values = Vec::with_capacity(rows * count * keys);
    for row in starts.chunks_exact(len) {
        for (query, &start) in row.iter().enumerate().skip(first).take(count) {
            let seen = |key| (start as usize..=query).contains(&key);
            values.extend((0..keys).map(|key| if seen(key) { 0f32 } else { f32::NEG_INFINITY }));
        }
    }
    let statistics = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    Tensor::from_vec(values, (rows, 1, 1, count, keys), device)?.to_dtype(statistics)
}

/// 0 where query `first + i` of a row may see a key, −∞ where the key is later or padding.
fn mask(
    padding: &[usize],
    first: usize,
    count: usize,
    keys: usize,
    dtype: DType,
    device: &Device,
) -> Result<Option<Tensor>> {
    let padded = padding.iter().any(|&p| p > 0);
    if count == 1 && !padded {
        return Ok(None);
    }
    let rows = if padded { padding } else { &padding[..1] };
    let mut values = Vec::with_capacity(rows.len() * count * keys);
    for &pad in rows {
        for query in first..first + count {
            // a padding query sees itself, so that its softmax is defined
            values.extend((0..keys).map(|key| {
                let seen = key <= query && (key >= pad || key == query);
                if seen { 0f32 } else { f32::NEG_INFINITY }
            }));
        }
    }
    let statistics = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    Tensor::from_vec(values, (rows.len(), 1, 1, count, keys), device)?.to_dtype(statistics).map(Some)
}
