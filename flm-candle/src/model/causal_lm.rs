//! The whole model: embedding, blocks, final norm, head. Read this after `forward_context` and `block`.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use candle_core::{DType, Device, Tensor};

use crate::model::block_source::BlockSource;
use crate::model::block_source::resident::Resident;
use crate::model::block_source::streamed::Streamed;
use crate::model::error::ModelError;
use crate::model::forward_context::{AttentionKinds, Pass, PassShape};
use crate::model::kernels::Path;
use crate::model::kv_cache::KvCache;
use crate::model::linear::Linear;
use crate::model::masks;
use crate::model::rms_norm::RmsNorm;
use crate::model::weights::WeightLoader;
use flm_checkpoint::Checkpoint;
use flm_checkpoint::TeleFlmConfig;
use flm_checkpoint::{EMBED_TOKENS, FINAL_NORM, LM_HEAD};

/// Where the blocks of a model are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// In the device's memory.
    Resident,
    /// On disk; one block in memory and one on its way.
    Streamed,
}

/// The positions whose logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// Every one: `[b, t, vocab_size]`.
    All,
    /// The last one: `[b, 1, vocab_size]`.
    Last,
}

/// Logits with the residual stream that led to them.
#[derive(Debug)]
pub struct Trace {
    /// `[num_hidden_layers + 1, t, hidden_size]`: after the embedding, then after each block.
    pub hidden: Tensor,
    /// `[t, vocab_size]`.
    pub logits: Tensor,
}

/// Tele-FLM: embedding, blocks, final norm, head.
///
/// It runs layer by layer and asks a `BlockSource` for each block, so that resident and streamed
/// models are the same code.
///
/// ```
/// use candle_core::{DType, Device};
/// use flm_candle::{CausalLm, Residency};
///
/// let dir = "../tests/fixtures/models/teleflm-gqa-bf16-shbin".as_ref();
/// let checkpoint = std::sync::Arc::new(flm_checkpoint::Checkpoint::open(dir)?);
/// let model = CausalLm::load(&checkpoint, &Device::Cpu, DType::F32, Residency::Streamed)?;
/// assert_eq!(model.logits(&[1, 5, 17])?.dims(), [3, 384]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct CausalLm {
    config: TeleFlmConfig,
    path: Path,
    device: Device,
    dtype: DType,
    embed_tokens: Tensor,
    /// Of a model that is still growing: what the embedding's output is multiplied by.
    hidden_mask: Option<Tensor>,
    blocks: Box<dyn BlockSource>,
    norm: RmsNorm,
    lm_head: Linear,
    attention: AttentionKinds,
    passes: AtomicUsize,
}

impl CausalLm {
    /// Loads a checkpoint on `device`, to compute in `dtype`: f32, bf16 or f64.
    ///
    /// # Errors
    /// When the checkpoint does not hold what its config says; see [`Checkpoint::check`].
    pub fn load(
        checkpoint: &Arc<Checkpoint>,
        device: &Device,
        dtype: DType,
        residency: Residency,
    ) -> Result<Self, ModelError> {
        checkpoint.check()?;
        let config = checkpoint.config().clone();
        let loader = WeightLoader::new(Arc::clone(checkpoint), device, dtype)?;
        let embed_tokens = loader.matrix(EMBED_TOKENS)?;
        let lm_head =
            if config.tie_word_embeddings { embed_tokens.clone() } else { loader.matrix(LM_HEAD)? };
        let (norm_mask, hidden_mask) = match &config.growth {
            Some(growth) => (masks::norm_mask(growth), masks::hidden_mask(growth, &config, dtype, device)?),
            None => (None, None),
        };
        let norm = loader.norm(FINAL_NORM, config.rms_norm_eps)?.with_mask(norm_mask);
        let blocks: Box<dyn BlockSource> = match residency {
            Residency::Resident => Box::new(Resident::load(&loader)?),
            Residency::Streamed => Box::new(Streamed::new(loader)),
        };
        Ok(Self {
            path: if dtype == DType::F64 { Path::Differentiable } else { Path::Fused },
            attention: AttentionKinds::of(&config),
            device: device.clone(),
            lm_head: Linear::new(lm_head),
            config,
            dtype,
            embed_tokens,
            hidden_mask,
            blocks,
            norm,
            passes: AtomicUsize::new(0),
        })
    }

    /// The same model on another path; f64 has no fused operations and stays differentiable.
    pub fn with_path(mut self, path: Path) -> Self {
        self.path = if self.dtype == DType::F64 { Path::Differentiable } else { path };
        self
    }

    /// Shape and multipliers.
    pub fn config(&self) -> &TeleFlmConfig {
        &self.config
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The dtype of its activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The dtype of its logits: f32, or f64 for a model that computes in f64.
    pub fn logits_dtype(&self) -> DType {
        if self.dtype == DType::F64 { DType::F64 } else { DType::F32 }
    }

    /// Number of blocks.
    pub fn num_layers(&self) -> usize {
        self.blocks.num_blocks()
    }

    /// How many passes over the weights [`CausalLm::forward`] has begun.
    pub fn passes(&self) -> usize {
        self.passes.load(Ordering::Relaxed)
    }

    /// Token ids as a tensor `[b, t]`; all rows must have the same length.
    ///
    /// # Errors
    /// [`ModelError::TokenId`] for an id that has no row in the embedding, [`ModelError::Empty`].
    pub fn tokens(&self, rows: &[&[u32]]) -> Result<Tensor, ModelError> {
        let len = rows.first().map_or(0, |row| row.len());
        if len == 0 {
            return Err(ModelError::Empty);
        }
        let ids = rows.concat();
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.config.vocab_size) {
            return Err(ModelError::TokenId { id, rows: self.config.vocab_size });
        }
        Ok(Tensor::from_vec(ids, (rows.len(), len), &self.device)?)
    }

    /// An empty cache for rows that start with `padding[i]` padding tokens.
    pub fn cache(&self, padding: Vec<usize>, capacity: usize) -> KvCache {
        KvCache::new(self.num_layers(), capacity, padding)
    }

    /// Whether what `cache` holds must be run again when `len` tokens follow: some models turn all positions by
    /// other angles once a text is longer than it was in their pre-training.
    pub fn outdates(&self, cache: &KvCache, len: usize) -> bool {
        let padding = cache.padding().iter().min().copied().unwrap_or(0);
        let before = cache.len().saturating_sub(padding);
        !cache.is_empty() && self.config.rope_scaling.switches(before, before + len)
    }

    /// What the blocks share when `len` tokens a row follow `past` earlier ones.
    ///
    /// # Errors
    /// [`ModelError::Empty`] without rows or tokens.
    pub fn pass(&self, padding: &[usize], past: usize, len: usize) -> Result<Pass, ModelError> {
        if padding.is_empty() || len == 0 {
            return Err(ModelError::Empty);
        }
        let shape = PassShape { padding, past, len };
        Ok(Pass::new(self.path, &self.attention, shape, self.dtype, &self.device)?)
    }

    /// The embedding's output, `[b, t, hidden_size]`, of ids `[b, t]`.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor, ModelError> {
        let (b, t) = ids.dims2()?;
        let rows = self.embed_tokens.index_select(&ids.flatten_all()?, 0)?.to_dtype(self.dtype)?;
        // candle rounds the factor to the dtype, as Gemma's own code does
        let rows = match self.config.input_scale() {
            1.0 => rows,
            scale => (rows * scale)?,
        };
        let rows = match &self.hidden_mask {
            Some(mask) => rows.broadcast_mul(mask)?,
            None => rows,
        };
        Ok(rows.reshape((b, t, self.config.hidden_size))?)
    }

    /// The residual stream after block `layer`, `[b, t, hidden_size]`.
    pub fn forward_block(
        &self,
        layer: usize,
        x: &Tensor,
        pass: &Pass,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor, ModelError> {
        Ok(self.blocks.block(layer)?.forward(x, pass, cache.map(|c| (c, layer)))?)
    }

    /// Logits `[b, t, vocab_size]` in f32 (f64) of the residual stream after the last block.
    pub fn head(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let x = self.norm.forward(x, self.path)?;
        let logits = self.lm_head.forward(&x)?.to_dtype(self.logits_dtype())?;
        let logits = match self.config.logit_scale() {
            1.0 => logits,
            scale => (logits * scale)?,
        };
        Ok(match self.config.logit_softcap {
            Some(cap) => ((logits / cap)?.tanh()? * cap)?,
            None => logits,
        })
    }

    /// Runs ids `[b, t]`; `visit` sees the residual stream after the embedding (0) and after each
    /// block (its index + 1). Without a cache, rows must not be padded. Where `visit` fails, the pass
    /// ends and the cache holds what it held before.
    ///
    /// # Errors
    /// [`ModelError::Empty`] without rows or tokens, [`ModelError::CacheRows`] with the cache of another batch.
    pub fn forward(
        &self,
        ids: &Tensor,
        mut cache: Option<&mut KvCache>,
        positions: Positions,
        mut visit: impl FnMut(usize, &Tensor) -> Result<(), ModelError>,
    ) -> Result<Tensor, ModelError> {
        let (b, t) = ids.dims2()?;
        if let Some(cached) = cache.as_ref().map(|cache| cache.padding().len()).filter(|&cached| cached != b)
        {
            return Err(ModelError::CacheRows { cached, rows: b });
        }
        if b == 0 || t == 0 {
            return Err(ModelError::Empty);
        }
        self.passes.fetch_add(1, Ordering::Relaxed);
        let pass = match &cache {
            Some(cache) => self.pass(cache.padding(), cache.len(), t)?,
            None => self.pass(&vec![0; b], 0, t)?,
        };
        let mut x = self.embed(ids)?;
        visit(0, &x)?;
        for layer in 0..self.num_layers() {
            x = self.forward_block(layer, &x, &pass, cache.as_deref_mut())?;
            visit(layer + 1, &x)?;
        }
        if let Some(cache) = cache {
            cache.advance(t);
        }
        match positions {
            Positions::All => self.head(&x),
            Positions::Last => self.head(&x.narrow(1, t - 1, 1)?.contiguous()?),
        }
    }

    /// Logits of every position of one text, `[t, vocab_size]`.
    pub fn logits(&self, ids: &[u32]) -> Result<Tensor, ModelError> {
        Ok(self.forward(&self.tokens(&[ids])?, None, Positions::All, |_, _| Ok(()))?.squeeze(0)?)
    }

    /// Logits and residual stream of every position of one text.
    pub fn trace(&self, ids: &[u32]) -> Result<Trace, ModelError> {
        let mut hidden = Vec::with_capacity(self.num_layers() + 1);
        let logits = self.forward(&self.tokens(&[ids])?, None, Positions::All, |_, x| {
            hidden.push(x.squeeze(0)?);
            Ok(())
        })?;
        Ok(Trace { hidden: Tensor::stack(&hidden, 0)?, logits: logits.squeeze(0)? })
    }
}
