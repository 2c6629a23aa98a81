//! What the blocks of one forward pass share: positions, masks, documents, chunks of queries, by kind of block.

use crate::model::kernels::Documents;
use crate::model::kernels::Path;

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use flm_checkpoint::TeleFlmConfig;

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
    /// What the blocks of each kind share, in the order of the config's kinds.
    pub kinds: Vec<KindPass>,
}

/// What the blocks of one kind share.
#[derive(Debug)]
pub struct KindPass {
    /// Rotary angles; `None` where queries and keys stay as they are.
    pub angles: Option<Angles>,
    /// Queries that attend together, in order.
    pub chunks: Vec<QueryChunk>,
    /// For each position of each row the first key that it sees; training only.
    pub documents: Option<Documents>,
}

/// Rotary angles of a pass.
#[derive(Debug)]
pub struct Angles {
    /// Cosines, `[t, width / 2]`, or `[b, t, width / 2]` where positions differ by row.
    pub cos: Tensor,
    /// Sines, of the shape of `cos`.
    pub sin: Tensor,
    /// Whether neighbours are turned together, not the halves of a head.
    pub pairs: bool,
}

/// Consecutive queries that attend together: queries `start..start + len` see keys from `first_key` to `keys`.
#[derive(Debug)]
pub struct QueryChunk {
    pub start: usize,
    pub len: usize,
    pub first_key: usize,
    pub keys: usize,
    /// 0 or −∞, `[b or 1, 1, 1, len, keys − first_key]`; `None` where every key is seen.
    pub mask: Option<Tensor>,
}

/// How the blocks of a model attend, by kind.
#[derive(Debug, Clone)]
pub struct AttentionKinds {
    kinds: Vec<(Option<Rotary>, Option<usize>)>,
    heads: usize,
}

impl AttentionKinds {
    /// Those of a model.
    pub fn of(config: &TeleFlmConfig) -> Self {
        let windows = config.layers.kinds().iter().map(|kind| kind.window);
        Self {
            kinds: Rotary::of(config).into_iter().zip(windows).collect(),
            heads: config.num_attention_heads,
        }
    }

    /// All blocks alike, `heads` query heads, without a window.
    pub fn alike(rotary: Rotary, heads: usize) -> Self {
        Self { kinds: vec![(Some(rotary), None)], heads }
    }
}

/// What a [`Pass`] is made for.
#[derive(Debug, Clone, Copy)]
pub struct PassShape<'a> {
    pub padding: &'a [usize],
    pub past: usize,
    pub len: usize,
}

impl Pass {
    /// The context of a pass of this shape.
    pub fn new(
        path: Path,
        attention: &AttentionKinds,
        shape: PassShape<'_>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let PassShape { padding, past, len } = shape;
        let rows = padding.len();
        let padded = padding.iter().any(|&p| p > 0);
        let positions: Vec<usize> = if padded {
            let of_row = |&pad: &usize| (past..past + len).map(move |i| i.saturating_sub(pad));
            padding.iter().flat_map(of_row).collect()
        } else {
            (past..past + len).collect()
        };
        let step = (max_scores(device) / (rows * attention.heads * (past + len))).clamp(1, len);
        let kinds = attention.kinds.iter().map(|(rotary, window)| {
            let of_rows = if padded { Some(rows) } else { None };
            let chunks = (0..len).step_by(step).map(|start| {
                let count = step.min(len - start);
                let (first, keys) = (past + start, past + start + count);
                let seen = SeenKeys { window: *window, first_key: first_seen(first, *window), keys };
                let mask = mask(padding, first, count, seen, dtype, device)?;
                Ok(QueryChunk { start, len: count, first_key: seen.first_key, keys, mask })
            });
            Ok(KindPass {
                angles: angles(rotary.as_ref(), &positions, of_rows, dtype, device)?,
                chunks: chunks.collect::<Result<_>>()?,
                documents: None,
            })
        });
        Ok(Self { path, kinds: kinds.collect::<Result<_>>()? })
    }

    /// A differentiable pass over rows of `len` tokens that are packed with documents: `starts` has, row
    /// by row, for each position the position at which its document starts.
    ///
    /// # Errors
    /// When `starts` is no multiple of `len` values, or a document starts after its token.
    pub fn packed(
        attention: &AttentionKinds,
        starts: &[u32],
        len: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let misplaced =
            |row: &[u32], (i, &start): (usize, &u32)| start as usize > i || row[start as usize] != start;
        let wrong = |row: &[u32]| !row.is_sorted() || row.iter().enumerate().any(|at| misplaced(row, at));
        if len == 0 || starts.is_empty() || !starts.len().is_multiple_of(len) || starts.chunks(len).any(wrong)
        {
            bail!("the documents of a packed row must follow each other and start before their tokens");
        }
        let rows = starts.len() / len;
        let positions: Vec<usize> =
            starts.iter().enumerate().map(|(i, &start)| i % len - start as usize).collect();
        let starts = Arc::new(starts.to_vec());
        let length = positions.iter().max().map_or(0, |last| last + 1);
        // the CPU's own attention asks the documents, not a mask
        let fused = device.is_cpu() && matches!(dtype, DType::F32 | DType::F64);
        let step = (max_scores(device) / (rows * attention.heads.max(1) * len)).clamp(1, len);
        let kinds = attention.kinds.iter().map(|(rotary, window)| {
            let documents =
                Documents { starts: Arc::clone(&starts), rotary: rotary.clone(), length, window: *window };
            let chunks = (0..len).step_by(if fused { len } else { step }).map(|start| {
                let count = step.min(len - start);
                let (first_key, keys) = (0, start + count);
                let mask = || document_mask(&documents, len, start, count, dtype, device);
                let mask = if fused { None } else { Some(mask()?) };
                Ok(QueryChunk { start, len: count, first_key, keys, mask })
            });
            Ok(KindPass {
                angles: angles(rotary.as_ref(), &positions, Some(rows), dtype, device)?,
                chunks: chunks.collect::<Result<_>>()?,
                documents: Some(documents),
            })
        });
        Ok(Self { path: Path::Differentiable, kinds: kinds.collect::<Result<_>>()? })
    }
}

fn angles(
    rotary: Option<&Rotary>,
    positions: &[usize],
    rows: Option<usize>,
    dtype: DType,
    device: &Device,
) -> Result<Option<Angles>> {
    let of = |rotary: &Rotary| {
        let (cos, sin) = rotary.tables(positions, rows, dtype, device)?;
        Ok(Angles { cos, sin, pairs: rotary.pairs() })
    };
    rotary.map(of).transpose()
}

/// The first key that the query at `position` sees.
pub(crate) fn first_seen(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// 0 where query `first + i` of a row sees a key of its document, −∞ elsewhere.
fn document_mask(
    documents: &Documents,
    len: usize,
    first: usize,
    count: usize,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let starts = &documents.starts;
    let (rows, keys) = (starts.len() / len, first + count);
    let mut values = Vec::with_capacity(rows * count * keys);
    for row in starts.chunks_exact(len) {
        for (query, &start) in row.iter().enumerate().skip(first).take(count) {
            let from = first_seen(query, documents.window).max(start as usize);
            let seen = |key| (from..=query).contains(&key);
            values.extend((0..keys).map(|key| if seen(key) { 0f32 } else { f32::NEG_INFINITY }));
        }
    }
    let statistics = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    Tensor::from_vec(values, (rows, 1, 1, count, keys), device)?.to_dtype(statistics)
}

/// The keys of a chunk of queries.
#[derive(Debug, Clone, Copy)]
struct SeenKeys {
    window: Option<usize>,
    first_key: usize,
    keys: usize,
}

/// 0 where query `first + i` of a row may see a key, −∞ where the key is later, padding, or before the window.
fn mask(
    padding: &[usize],
    first: usize,
    count: usize,
    seen: SeenKeys,
    dtype: DType,
    device: &Device,
) -> Result<Option<Tensor>> {
    let padded = padding.iter().any(|&p| p > 0);
    if count == 1 && !padded {
        return Ok(None);
    }
    let rows = if padded { padding } else { &padding[..1] };
    let width = seen.keys - seen.first_key;
    let mut values = Vec::with_capacity(rows.len() * count * width);
    for &pad in rows {
        for query in first..first + count {
            let from = first_seen(query, seen.window).max(pad);
            // a padding query sees itself, so that its softmax is defined
            values.extend((seen.first_key..seen.keys).map(|key| {
                let seen = key <= query && (key >= from || key == query);
                if seen { 0f32 } else { f32::NEG_INFINITY }
            }));
        }
    }
    let statistics = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    Tensor::from_vec(values, (rows.len(), 1, 1, count, width), device)?.to_dtype(statistics).map(Some)
}
