//! Masked checkpoints as plain ones, exactly, at any mask value.
//!
//! With hidden mask h (1 for old entries, m for new), S = Σh, D the width and rᵢ = √hᵢ, a plain model
//! whose residual stream is the masked one's times r computes the same function:
//!
//! ```text
//! Σ xᵢ²·hᵢ / S + eps = D/S · (Σ (xᵢ·rᵢ)²/D + eps·S/D)
//! ```
//!
//! so that gains take √(S/D)/rᵢ, eps takes S/D, whatever writes the stream takes hᵢ·rᵢ, and the masks of
//! heads, units and layers go into the columns and the whole of the writers. Where a norm stands between a
//! writer and the stream, the writer takes rᵢ, so that the norm is that of the other norms, and its gain takes
//! √(S/D)·hᵢ and the layer's mask; where none stands between the stream and a reader, the reader's columns
//! take 1/rᵢ. Where h is 0 the stream is
//! 0 and the gain's factor is arbitrary; this is then the `zero` operator's checkpoint.
//!
//! The norm's statistics leave no choice of the factors: √mask it has to be, which rounds the scaled weights
//! once. In f32 that is far below what the arithmetic itself rounds. SmolLM2-135M grown to 264 million
//! parameters of which half are noise amplifies rounding; relative L2 errors of its logits, 48 positions:
//!
//! ```text
//! mask   masked, f32 against f64   folded against masked, both in f64   the same, both in f32
//! 0.1    5.7e-6                    2.9e-7                               6.1e-6
//! 0.5    3.5e-5                    2.0e-6                               5.2e-5
//! 0.9    2.3e-5                    1.6e-6                               3.4e-5
//! 1      3.7e-5                    0                                    1.4e-5
//! ```

use std::path::Path;

use flm_checkpoint::Checkpoint;
use flm_checkpoint::GrowthMasks;
use flm_checkpoint::{NormPlacement, QkNorm, TeleFlmConfig};
use serde::{Deserialize, Serialize};

use crate::error::{GrowthError, Result};
use crate::execute::record::Provenance;
use crate::execute::{ExecuteOptions, ExecuteReport, Transfer};
use crate::operator::{Role, normed_head_scale};
use crate::plan::source::SourceModel;
use crate::tensor_plan::{SourceTensor, TailScale, TensorPlan};
use flm_checkpoint::Dtype;

/// What becomes of every tensor, and of config.json, when masks are folded into the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FoldPlan {
    /// Version of this format: 1.
    pub version: u32,
    /// The masks that are folded.
    pub masks: GrowthMasks,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// What the weights are stored as, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dtype: Option<Dtype>,
    /// Every tensor, in the order of the forward pass.
    pub tensors: Vec<TensorPlan>,
}

/// The factors that a mask asks for.
struct Factors {
    /// Of what writes the residual stream: h·r of new entries.
    stream: Option<TailScale>,
    /// Of what writes to a norm that writes the residual stream: r of new entries.
    before_norm: Option<TailScale>,
    /// Of that norm's gain, besides: h of new entries.
    output_tail: Option<TailScale>,
    /// Of gains: √(S/D) for all, and 1/r besides for new entries.
    gain: f64,
    gain_tail: Option<TailScale>,
    /// Of the final norm's gain for new entries, where the head is tied to the embedding: it takes
    /// back what the embedding took.
    tied_tail: Option<TailScale>,
    eps: f64,
}

impl Factors {
    fn new(masks: &GrowthMasks, width: usize) -> Self {
        let Some(hidden) = masks.hidden else {
            return Self {
                stream: None,
                before_norm: None,
                output_tail: None,
                gain: 1.0,
                gain_tail: None,
                tied_tail: None,
                eps: 1.0,
            };
        };
        let (from, mask, root) = (hidden.from, hidden.mask, hidden.mask.sqrt());
        let share = (from as f64 + mask * (width - from) as f64) / width as f64;
        let tail = |scale: f64| Some(TailScale { from, scale });
        let inverse = |power: f64| if power > 0.0 { 1.0 / power } else { 1.0 };
        Self {
            stream: tail(mask * root),
            before_norm: tail(root),
            output_tail: tail(mask),
            gain: share.sqrt(),
            gain_tail: tail(inverse(root)),
            tied_tail: tail(inverse(root * mask * root)),
            eps: share,
        }
    }
}

impl FoldPlan {
    /// Plans the fold of `source`; weights are stored as `dtype`, or as they are.
    ///
    /// Gains that a factor moves off a 16-bit grid are stored as f32.
    ///
    /// # Errors
    /// [`GrowthError::NotMasked`] where there is nothing to fold.
    pub fn new(source: &SourceModel, dtype: Option<Dtype>) -> Result<Self> {
        let config = source.config();
        let masks = config.growth.clone().ok_or(GrowthError::NotMasked)?;
        let factors = Factors::new(&masks, config.hidden_size);
        let tensors = config.tensors().map(|t| {
            let role = Role::of(t.id, config);
            let stored = source.tensor(&t.name)?;
            let layer = t.id.layer().map_or(1.0, |l| masks.layer(l));
            Ok(tensor_plan(config, &masks, &factors, role, layer, stored, dtype))
        });
        Ok(Self {
            version: 1,
            rms_norm_eps: config.rms_norm_eps * factors.eps,
            dtype,
            tensors: tensors.collect::<Result<_>>()?,
            masks,
        })
    }

    /// The plain checkpoint's config.
    pub fn target_config(&self, source: &TeleFlmConfig) -> Result<TeleFlmConfig> {
        let mut config = source.clone();
        config.growth = None;
        config.rms_norm_eps = self.rms_norm_eps;
        if let Some(dtype) = self.dtype {
            config.set_dtype(dtype);
        }
        config.validate()?;
        Ok(config)
    }

    /// Writes the plain checkpoint; see [`crate::execute()`].
    pub fn execute(
        &self,
        source: &Checkpoint,
        dst: &Path,
        options: &ExecuteOptions,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<ExecuteReport> {
        let digest = blake3::hash(&serde_json::to_vec(self)?).to_hex().to_string();
        let of_source = Provenance::read(source.dir())?;
        let (growth, earlier) = of_source.map(|p| (p.growth, p.earlier)).unwrap_or_default();
        let fold = Some(self.masks.clone());
        let provenance = Provenance { growth, earlier, fold, ..Provenance::new(source, options) };
        let config = self.target_config(source.config())?;
        Transfer { tensors: &self.tensors, seed: 0, config, digest, provenance }
            .run(source, dst, options, progress)
    }
}

fn tensor_plan(
    config: &TeleFlmConfig,
    masks: &GrowthMasks,
    factors: &Factors,
    role: Role,
    layer: f64,
    stored: &SourceTensor,
    dtype: Option<Dtype>,
) -> TensorPlan {
    let heads = masks.heads.map(|h| TailScale { from: h.from * config.head_dim, scale: h.mask });
    let units = masks.ffn.map(|f| TailScale { from: f.from, scale: f.mask });
    let written = match config.norms {
        NormPlacement::Before => (layer, factors.stream),
        NormPlacement::After | NormPlacement::Around => (1.0, factors.before_norm),
    };
    // without a norm before it a sub-layer reads the stream itself
    let read = factors.gain_tail.filter(|_| config.norms == NormPlacement::After);
    let mut to = dtype.unwrap_or(stored.dtype);
    let heads_scale = normed_head_scale(config.qk_norm != QkNorm::None, factors.gain, to);
    let (scale, row_scale, col_scale) = match role {
        Role::HeadReader => (heads_scale, None, read),
        Role::HeadReaderBias => (heads_scale, None, None),
        Role::Reader => (1.0, None, read),
        Role::Embedding => (1.0, None, factors.stream),
        Role::Norm => (factors.gain, None, factors.gain_tail),
        Role::OutputNorm => (factors.gain * layer, None, factors.output_tail),
        Role::FinalNorm if config.tie_word_embeddings => (factors.gain, None, factors.tied_tail),
        Role::FinalNorm => (factors.gain, None, factors.gain_tail),
        Role::ReaderBias | Role::HeadNorm | Role::HeadsNorm | Role::Head => (1.0, None, None),
        Role::WriterBias => (written.0, None, written.1),
        Role::AttentionWriter => (written.0, written.1, heads),
        Role::FeedForwardWriter => (written.0, written.1, units),
    };
    let offset = if role.is_gain() { config.gain_offset() } else { 0.0 };
    if matches!(role, Role::Norm | Role::OutputNorm | Role::FinalNorm) {
        let kept = |factor: f64| if offset == 0.0 { to.holds_scaled(factor) } else { factor == 1.0 };
        let kept = kept(scale) && col_scale.is_none_or(|t| kept(t.scale));
        to = if kept || to == Dtype::F64 { to } else { Dtype::F32 };
    }
    TensorPlan {
        name: stored.name.clone(),
        dtype: to,
        shape: stored.shape.clone(),
        new_layer: false,
        source: Some(stored.clone()),
        scale,
        offset,
        row_scale,
        col_scale,
        splits: false,
        noise: None,
        new_cols: None,
        new_rows: None,
        new_corner: None,
    }
}
