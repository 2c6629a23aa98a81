//! Self-attention: projections, rotary positions, the KV cache, and the choice of an algorithm.

use candle_nn::rotary_emb;

use candle_core::{D, DType, Result, Tensor};

use crate::model::forward_context::{Angles, KindPass, Pass};
use crate::model::kernels::attention::{Heads, Scores, attention};
use crate::model::kernels::{Path, supports};
use crate::model::kv_cache::KvCache;
use crate::model::linear::Linear;
use crate::model::rms_norm::RmsNorm;

/// Causal self-attention with rotary positions; several query heads may share a key/value head.
///
/// Vaswani et al., arXiv 1706.03762; grouped queries: Ainslie et al., arXiv 2305.13245.
#[derive(Debug, Clone)]
pub struct Attention {
    /// `[heads · head_dim, hidden_size]`.
    pub q_proj: Linear,
    /// `[kv_heads · head_dim, hidden_size]`.
    pub k_proj: Linear,
    /// `[kv_heads · head_dim, hidden_size]`.
    pub v_proj: Linear,
    /// `[hidden_size, heads · head_dim]`.
    pub o_proj: Linear,
    /// Of each query head, `[head_dim]`, or of all together, `[heads · head_dim]`, where the family has it.
    pub q_norm: Option<RmsNorm>,
    /// Of each key head, `[head_dim]`, or of all together, `[kv_heads · head_dim]`, where the family has it.
    pub k_norm: Option<RmsNorm>,
    /// Whether the norms are of all heads together.
    pub whole_norms: bool,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key/value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// What scores are multiplied by.
    pub scale: f64,
    /// What bounds them, `c · tanh(x / c)`.
    pub softcap: Option<f64>,
    /// Which of the pass's kinds of blocks it is of.
    pub kind: usize,
    /// Of a model that is still growing: what each head's output is multiplied by,
    /// `[heads · head_dim]`.
    pub mask: Option<Tensor>,
}

impl Attention {
    /// `x` is `[b, t, hidden_size]`; `cache` is the cache and the index of this block in it.
    pub fn forward(&self, x: &Tensor, pass: &Pass, cache: Option<(&mut KvCache, usize)>) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        let heads = |projection: &Linear, norm: Option<&RmsNorm>, heads| {
            self.head_norm(norm, projection.forward(x)?, heads, pass.path)
        };
        let q = heads(&self.q_proj, self.q_norm.as_ref(), self.heads)?;
        let k = heads(&self.k_proj, self.k_norm.as_ref(), self.kv_heads)?;
        let v = heads(&self.v_proj, None, self.kv_heads)?;
        let kind = &pass.kinds[self.kind];
        if let (Some(documents), None, true) = (&kind.documents, &cache, supports(x)) {
            let heads = Heads { query: self.heads, key_value: self.kv_heads, dim: self.head_dim };
            let scores = Scores { scale: self.scale, softcap: self.softcap };
            let flat = |y: Tensor| y.flatten_from(2);
            return self.project(attention(&flat(q)?, &flat(k)?, &flat(v)?, documents, heads, scores)?);
        }
        // [b, t, heads, d] -> [b, heads, t, d]
        let q = self.rotate(&q.transpose(1, 2)?, kind, pass.path)?;
        let k = self.rotate(&k.transpose(1, 2)?, kind, pass.path)?;
        let v = v.transpose(1, 2)?;
        let (k, v) = match cache {
            Some((cache, layer)) => cache.append(layer, &k, &v)?,
            None => (k.contiguous()?, v.contiguous()?),
        };
        let chunks = kind.chunks.iter().map(|chunk| {
            let keys = |y: &Tensor| y.narrow(2, chunk.first_key, chunk.keys - chunk.first_key);
            self.attend(
                &q.narrow(2, chunk.start, chunk.len)?,
                &keys(&k)?,
                &keys(&v)?,
                chunk.mask.as_ref(),
                pass.path,
            )
        });
        let mut chunks = chunks.collect::<Result<Vec<_>>>()?;
        // each [b, heads, len, d] -> [b, t, heads · d]
        let y = if chunks.len() == 1 { chunks.remove(0) } else { Tensor::cat(&chunks, 2)? };
        self.project(y.transpose(1, 2)?.reshape((b, t, self.heads * self.head_dim))?)
    }

    /// The heads of a projection `[b, t, heads · d]`, as `[b, t, heads, d]`, normalised where `norm` is given.
    fn head_norm(&self, norm: Option<&RmsNorm>, y: Tensor, heads: usize, path: Path) -> Result<Tensor> {
        let (b, t, _) = y.dims3()?;
        let shape = (b, t, heads, self.head_dim);
        match norm {
            Some(norm) if self.whole_norms => norm.forward(&y, path)?.reshape(shape),
            Some(norm) => norm.forward(&y.reshape(shape)?, path),
            None => y.reshape(shape),
        }
    }

    /// Turns heads, `[b, heads, t, head_dim]`, to the positions of the pass.
    fn rotate(&self, x: &Tensor, kind: &KindPass, path: Path) -> Result<Tensor> {
        let Some(angles) = &kind.angles else { return x.contiguous() };
        let turned = 2 * angles.cos.dim(D::Minus1)?;
        if turned == self.head_dim {
            return rotate(x, angles, path);
        }
        let kept = x.narrow(3, turned, self.head_dim - turned)?;
        Tensor::cat(&[rotate(&x.narrow(3, 0, turned)?, angles, path)?, kept], 3)
    }

    /// The output projection of all heads' results, `[b, t, heads · d]`.
    fn project(&self, y: Tensor) -> Result<Tensor> {
        match &self.mask {
            Some(mask) => self.o_proj.forward(&y.broadcast_mul(mask)?),
            None => self.o_proj.forward(&y),
        }
    }

    /// `q` is `[b, heads, t, d]`; `k` and `v` are `[b, kv_heads, keys, d]`.
    fn attend(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        mask: Option<&Tensor>,
        path: Path,
    ) -> Result<Tensor> {
        let (b, heads, t, d) = q.dims4()?;
        let (groups, keys) = (heads / self.kv_heads, k.dim(2)?);
        let statistics = if q.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        // the query heads of a group are rows of one product with their shared keys
        let grouped = q.contiguous()?.reshape((b, self.kv_heads, groups * t, d))?;
        let scores = (grouped.matmul(&k.transpose(2, 3)?)? * self.scale)?;
        let scores = match self.softcap {
            Some(cap) => ((scores / cap)?.tanh()? * cap)?,
            None => scores,
        };
        let scores = scores.to_dtype(statistics)?;
        let scores = match mask {
            // [b, kv_heads, groups, t, keys] + [b or 1, 1, 1, t, keys]
            Some(mask) => scores.reshape((b, self.kv_heads, groups, t, keys))?.broadcast_add(mask)?,
            None => scores,
        };
        let weights = match path {
            Path::Fused => candle_nn::ops::softmax_last_dim(&scores)?,
            Path::Differentiable => candle_nn::ops::softmax(&scores, D::Minus1)?,
        };
        let weights = weights.to_dtype(v.dtype())?.reshape((b, self.kv_heads, groups * t, keys))?;
        // a GPU's product takes the cache's view as it is; copying it would cost as much as reading the cache
        let v = if v.device().is_cpu() { v.contiguous()? } else { v.clone() };
        weights.matmul(&v)?.reshape((b, heads, t, d))
    }
}

/// Turns `x`, `[b, heads, t, width]`, in the dtype of the angles; the result has that of `x`.
pub(crate) fn rotate(x: &Tensor, angles: &Angles, path: Path) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(angles.cos.dtype())?.contiguous()?;
    let turned = match path {
        Path::Fused if angles.pairs => rotary_emb::rope_i(&x, &angles.cos, &angles.sin),
        Path::Fused => rotary_emb::rope(&x, &angles.cos, &angles.sin),
        Path::Differentiable => {
            let (batch, heads, t, width) = x.dims4()?;
            let half = width / 2;
            // [t, half] or [b, t, half] -> broadcast over heads
            let over_heads =
                |table: &Tensor| if table.rank() == 3 { table.unsqueeze(1) } else { Ok(table.clone()) };
            let (cos, sin) = (over_heads(&angles.cos)?, over_heads(&angles.sin)?);
            let (a, b) = if angles.pairs {
                let x = x.reshape((batch, heads, t, half, 2))?;
                (x.narrow(4, 0, 1)?.squeeze(4)?, x.narrow(4, 1, 1)?.squeeze(4)?)
            } else {
                (x.narrow(3, 0, half)?, x.narrow(3, half, half)?)
            };
            let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
            let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
            if angles.pairs {
                Tensor::stack(&[first, second], 4)?.reshape((batch, heads, t, width))
            } else {
                Tensor::cat(&[first, second], 3)
            }
        }
    };
    turned?.to_dtype(dtype)
}
