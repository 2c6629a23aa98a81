//! Attention with its own backward, in tiles of queries, so that no matrix of all scores exists.

use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, WithDType, bail};
use rayon::prelude::*;

use crate::model::forward_context::first_seen;
use crate::model::kernels::Documents;
use crate::model::kernels::matmul::Real;
use crate::model::kernels::matmul::{Matrix, Output, multiply};
use crate::model::kernels::{values, with_values};
use crate::model::rotary::Rotary;

/// Queries whose scores are computed together.
const TILE: usize = 64;

/// Numbers of heads and their width.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub query: usize,
    pub key_value: usize,
    pub dim: usize,
}

/// What becomes of products of queries and keys before the softmax.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scores {
    /// What they are multiplied by.
    pub scale: f64,
    /// What then bounds them, `c · tanh(x / c)`.
    pub softcap: Option<f64>,
}

/// Rotary, causal attention inside documents, and the sum over values, of projections
/// `[b, t, heads · dim]`; the result is `[b, t, query heads · dim]`.
///
/// Scores exist for [`TILE`] queries of one head at a time, and only for keys of the tile's documents.
/// Backward computes them again: `dV = Pᵀ dO`, `dP = dO Vᵀ`, `dS = P (dP − Σ dP P)`, `dQ = dS K`,
/// `dK = dSᵀ Q`, and turns `dQ` and `dK` back.
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    documents: &Documents,
    heads: Heads,
    scores: Scores,
) -> Result<Tensor> {
    let (b, t, _) = q.dims3()?;
    if b * t != documents.starts.len() || !heads.query.is_multiple_of(heads.key_value) {
        bail!("attention over {b} × {t} tokens does not fit the pass or the heads");
    }
    let positions = documents.starts.iter().enumerate().map(|(i, &start)| i % t - start as usize);
    let rotary = documents.rotary.as_ref();
    let half = rotary.map_or(0, |rotary| rotary.width() / 2);
    let pairs = rotary.is_some_and(Rotary::pairs);
    let tables = rotary.map(|rotary| rotary.table(t, documents.length, q.dtype())).unwrap_or_default();
    let seen = documents.starts.iter().enumerate();
    let seen = seen.map(|(i, &start)| start.max(first_seen(i % t, documents.window) as u32));
    let op = Attention {
        heads,
        scores,
        t,
        half,
        pairs,
        seen: seen.collect(),
        positions: positions.collect(),
        tables,
    };
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)
}

struct Attention {
    heads: Heads,
    scores: Scores,
    t: usize,
    /// Pairs of a head that are turned; what is behind them stays.
    half: usize,
    /// Whether they are neighbours, not entries of the halves of what is turned.
    pairs: bool,
    /// For each position of each row the first key that it sees; never less than that of the one before.
    seen: Vec<u32>,
    positions: Vec<usize>,
    /// Cosine and sine of every position, `[t, half]` each.
    tables: (Vec<f64>, Vec<f64>),
}

/// What one task works on: the query heads of one key/value head of one row.
struct Group<'a, T> {
    op: &'a Attention,
    row: usize,
    seen: &'a [u32],
    /// `[t, dim]`, turned.
    k: Vec<T>,
    v: Matrix<'a, T>,
}

impl Attention {
    fn scale<T: Real>(&self) -> T {
        T::of(self.scores.scale)
    }

    /// A head's columns of a projection, `[t, dim]` in rows of `heads · dim`.
    fn head<'a, T: Real>(&self, x: &'a [T], heads: usize, row: usize, head: usize) -> Matrix<'a, T> {
        let width = heads * self.heads.dim;
        Matrix::new(&x[row * self.t * width + head * self.heads.dim..], self.t, self.heads.dim, width)
    }

    /// `[t, dim]`, turned to its positions (back for −1).
    fn turned<T: Real>(&self, x: Matrix<'_, T>, row: usize, direction: f64, scale: T) -> Vec<T> {
        let dim = self.heads.dim;
        let (step, apart) = if self.pairs { (2, 1) } else { (1, self.half) };
        let mut out = vec![T::ZERO; self.t * dim];
        for (i, y) in out.chunks_exact_mut(dim).enumerate() {
            let at = self.positions[row * self.t + i] * self.half;
            let x = x.row(i);
            for j in 0..self.half {
                let (cos, sin) = (T::of(self.tables.0[at + j]), T::of(self.tables.1[at + j] * direction));
                let (first, second) = (step * j, step * j + apart);
                let (a, b) = (x[first], x[second]);
                y[first] = (a * cos - b * sin) * scale;
                y[second] = (b * cos + a * sin) * scale;
            }
            for (y, &x) in y.iter_mut().zip(x).skip(2 * self.half) {
                *y = x * scale;
            }
        }
        out
    }

    fn group<'a, T: Real>(&'a self, index: usize, k: &'a [T], v: &'a [T]) -> Group<'a, T> {
        let kv = self.heads.key_value;
        let (row, head) = (index / kv, index % kv);
        let k = self.turned(self.head(k, kv, row, head), row, 1.0, T::ONE);
        let seen = &self.seen[row * self.t..(row + 1) * self.t];
        Group { op: self, row, seen, k, v: self.head(v, kv, row, head) }
    }

    /// `[b · kv_heads]` groups of `[query heads per group][t, dim]`.
    fn forward<T: Real>(&self, q: &[T], k: &[T], v: &[T]) -> Vec<T> {
        let (groups, dim) = (self.heads.query / self.heads.key_value, self.heads.dim);
        let rows = self.seen.len() / self.t;
        let heads = (0..rows * self.heads.key_value).into_par_iter().map(|index| {
            let group = self.group(index, k, v);
            let first = index % self.heads.key_value * groups;
            let mut out = vec![T::ZERO; groups * self.t * dim];
            let mut scores = vec![T::ZERO; TILE * self.t];
            for (head, out) in out.chunks_exact_mut(self.t * dim).enumerate() {
                let q = self.head(q, self.heads.query, group.row, first + head);
                let q = self.turned(q, group.row, 1.0, self.scale());
                for tile in tiles(group.seen) {
                    group.probabilities(&q, &tile, &mut scores, &mut []);
                    let p = Matrix::new(&scores, tile.len, tile.keys, tile.keys);
                    let v = group.v.rows(tile.first_key, tile.keys);
                    multiply(&mut out[tile.start * dim..], dim, p, v, Output::Replace, 1);
                }
            }
            out
        });
        let heads: Vec<Vec<T>> = heads.collect();
        self.interleave(&heads, self.heads.query)
    }

    fn backward<T: Real>(&self, q: &[T], k: &[T], v: &[T], dy: &[T]) -> [Vec<T>; 3] {
        let (groups, dim) = (self.heads.query / self.heads.key_value, self.heads.dim);
        let rows = self.seen.len() / self.t;
        let heads = (0..rows * self.heads.key_value).into_par_iter().map(|index| {
            let group = self.group(index, k, v);
            let first = index % self.heads.key_value * groups;
            let mut dqs = vec![T::ZERO; groups * self.t * dim];
            let (mut dk, mut dv) = (vec![T::ZERO; self.t * dim], vec![T::ZERO; self.t * dim]);
            let (mut p, mut dp) = (vec![T::ZERO; TILE * self.t], vec![T::ZERO; TILE * self.t]);
            let bounded = self.scores.softcap.is_some();
            let mut slopes = vec![T::ZERO; if bounded { TILE * self.t } else { 0 }];
            for (head, out) in dqs.chunks_exact_mut(self.t * dim).enumerate() {
                let q = self.head(q, self.heads.query, group.row, first + head);
                let q = self.turned(q, group.row, 1.0, self.scale());
                let dy = self.head(dy, self.heads.query, group.row, first + head);
                let mut dq = vec![T::ZERO; self.t * dim];
                for tile in tiles(group.seen) {
                    group.probabilities(&q, &tile, &mut p, &mut slopes);
                    let (keys, len) = (tile.keys, tile.len);
                    let (key_values, queries) = (tile.first_key * dim, tile.start * dim);
                    let dy = dy.rows(tile.start, len);
                    let probabilities = Matrix::new(&p, len, keys, keys);
                    multiply(&mut dv[key_values..], dim, probabilities.t(), dy, Output::Add, 1);
                    multiply(&mut dp, keys, dy, group.v.rows(tile.first_key, keys).t(), Output::Replace, 1);
                    for (dp, p) in dp.chunks_exact_mut(keys).zip(p.chunks_exact(keys)).take(len) {
                        let mut sum = T::ZERO;
                        for (&dp, &p) in dp.iter().zip(p) {
                            sum += dp * p;
                        }
                        for (dp, &p) in dp.iter_mut().zip(p) {
                            *dp = p * (*dp - sum);
                        }
                    }
                    for (dp, &slope) in dp.iter_mut().zip(&slopes).take(if bounded { len * keys } else { 0 })
                    {
                        *dp *= slope;
                    }
                    let ds = Matrix::new(&dp, len, keys, keys);
                    let k = Matrix::new(&group.k[key_values..], keys, dim, dim);
                    multiply(&mut dq[queries..], dim, ds, k, Output::Replace, 1);
                    let q = Matrix::new(&q[queries..], len, dim, dim);
                    multiply(&mut dk[key_values..], dim, ds.t(), q, Output::Add, 1);
                }
                let dq = Matrix::new(&dq, self.t, dim, dim);
                out.copy_from_slice(&self.turned(dq, group.row, -1.0, self.scale()));
            }
            let dk = self.turned(Matrix::new(&dk, self.t, dim, dim), group.row, -1.0, T::ONE);
            (dqs, dk, dv)
        });
        let parts: Vec<_> = heads.collect();
        let (mut dq, mut dk, mut dv) = (Vec::new(), Vec::new(), Vec::new());
        for (q, k, v) in parts {
            dq.push(q);
            dk.push(k);
            dv.push(v);
        }
        let kv = self.heads.key_value;
        [self.interleave(&dq, self.heads.query), self.interleave(&dk, kv), self.interleave(&dv, kv)]
    }

    /// Heads, each `[t, dim]` and all heads of a row after each other, to `[b, t, heads · dim]`.
    fn interleave<T: Real>(&self, parts: &[Vec<T>], heads: usize) -> Vec<T> {
        let (dim, t) = (self.heads.dim, self.t);
        let per_part = parts.first().map_or(1, |part| part.len() / (t * dim));
        let mut out = vec![T::ZERO; parts.len() * per_part * t * dim];
        out.par_chunks_mut(heads * dim).enumerate().for_each(|(token, out)| {
            let (row, i) = (token / t, token % t);
            for (head, out) in out.chunks_exact_mut(dim).enumerate() {
                let index = row * heads + head;
                let part = &parts[index / per_part];
                out.copy_from_slice(&part[(index % per_part * t + i) * dim..][..dim]);
            }
        });
        out
    }
}

/// Consecutive queries and the keys that they see between them.
struct Tile {
    start: usize,
    len: usize,
    first_key: usize,
    keys: usize,
}

fn tiles(seen: &[u32]) -> impl Iterator<Item = Tile> + '_ {
    (0..seen.len()).step_by(TILE).map(|start| {
        let len = TILE.min(seen.len() - start);
        let first_key = seen[start] as usize;
        Tile { start, len, first_key, keys: start + len - first_key }
    })
}

impl<T: Real> Group<'_, T> {
    /// Softmax of the scores of a tile, `[len, keys]`, 0 where a key is not seen. Where scores are bounded,
    /// `slopes` gets the bound's derivative at each, `1 − tanh²`.
    fn probabilities(&self, q: &[T], tile: &Tile, scores: &mut [T], slopes: &mut [T]) {
        let dim = self.op.heads.dim;
        let queries = Matrix::new(&q[tile.start * dim..], tile.len, dim, dim);
        let keys = Matrix::new(&self.k[tile.first_key * dim..], tile.keys, dim, dim);
        multiply(scores, tile.keys, queries, keys.t(), Output::Replace, 1);
        for (i, row) in scores.chunks_exact_mut(tile.keys).take(tile.len).enumerate() {
            let query = tile.start + i;
            let seen = self.seen[query] as usize - tile.first_key..query + 1 - tile.first_key;
            row[..seen.start].fill(T::ZERO);
            row[seen.end..].fill(T::ZERO);
            if let Some(cap) = self.op.scores.softcap {
                for (j, x) in row[seen.clone()].iter_mut().enumerate() {
                    let bounded = (x.to_f64() / cap).tanh();
                    *x = T::of(bounded * cap);
                    if let Some(slope) = slopes.get_mut(i * tile.keys + seen.start + j) {
                        *slope = T::of(1.0 - bounded * bounded);
                    }
                }
            }
            softmax(&mut row[seen]);
        }
    }
}

fn softmax<T: Real>(row: &mut [T]) {
    let mut max = T::NEG_INFINITY;
    for &x in row.iter() {
        // a NaN is kept
        max = if x > max || x.is_not_a_number() { x } else { max };
    }
    let mut sum = 0f64;
    for chunk in row.chunks_mut(32) {
        let mut part = T::ZERO;
        for x in chunk.iter_mut() {
            *x = (*x - max).exponential();
            part += *x;
        }
        sum += part.to_f64();
    }
    let factor = T::of(1.0 / sum);
    for x in row {
        *x *= factor;
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = if matches!(q, CpuStorage::F64(_)) {
            f64::to_cpu_storage_owned(self.forward::<f64>(values(q, ql)?, values(k, kl)?, values(v, vl)?))
        } else {
            f32::to_cpu_storage_owned(self.forward::<f32>(values(q, ql)?, values(k, kl)?, values(v, vl)?))
        };
        Ok((out, ql.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let (dq, dk, dv) = if q.dtype() == DType::F64 {
            let [dq, dk, dv] =
                with_values([q, k, v, &dy], |[q, k, v, dy]: [&[f64]; 4]| Ok(self.backward(q, k, v, dy)))?;
            (
                Tensor::from_vec(dq, q.shape(), &Device::Cpu)?,
                Tensor::from_vec(dk, k.shape(), &Device::Cpu)?,
                Tensor::from_vec(dv, v.shape(), &Device::Cpu)?,
            )
        } else {
            let [dq, dk, dv] =
                with_values([q, k, v, &dy], |[q, k, v, dy]: [&[f32]; 4]| Ok(self.backward(q, k, v, dy)))?;
            (
                Tensor::from_vec(dq, q.shape(), &Device::Cpu)?,
                Tensor::from_vec(dk, k.shape(), &Device::Cpu)?,
                Tensor::from_vec(dv, v.shape(), &Device::Cpu)?,
            )
        };
        Ok((Some(dq), Some(dk), Some(dv)))
    }
}
