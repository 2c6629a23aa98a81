//! The plan of a growth: what fills every part of every target tensor.
//!
//! A plan is made from shapes alone, serialises to JSON, and is the same for the same input: dry run,
//! execution, verification and provenance all read it.

mod build;
pub(crate) mod source;
pub(crate) mod summary;
#[cfg(test)]
pub(crate) mod tests;

use flm_checkpoint::GrowthMasks;
use flm_checkpoint::TeleFlmConfig;
use serde::{Deserialize, Serialize};

use crate::plan::source::SourceModel;
use crate::tensor_plan::{Std, TensorPlan};

use crate::error::Result;
use crate::operator::{NewRows, Operator};
use crate::placement::{LayerSource, Placement};
use crate::shape::Shape;

/// What to grow by, besides the target's shape.
#[derive(Debug, Clone, PartialEq)]
pub struct GrowthOptions {
    /// The rules for new weights.
    pub operator: Operator,
    /// Where new layers go; the operator `stack` always stacks.
    pub placement: Placement,
    /// Seed of the new weights.
    pub seed: u64,
    /// Standard deviation of the new weights.
    pub std: Std,
    /// Noise between the copies that `clone` makes, in standard deviations of the copied weights; it
    /// cancels, so that the function stays the same. `None` leaves the copies equal: their gradients
    /// are, too, and training never tells them apart.
    pub noise: Option<f64>,
    /// Multipliers of the target.
    pub multipliers: Multipliers,
    /// What new vocabulary rows are.
    pub new_rows: NewRows,
    /// Number of tokens of the tokenizer, where known. If the source's vocabulary has more rows, those
    /// are padding, and no part of what new rows are the mean of.
    pub tokenizer_size: Option<usize>,
    /// Writes the head as a tensor of its own where the source ties it to the embedding.
    pub untie: bool,
    /// Optimizer steps in which training raises the masks of `msg` to 1.
    pub mask_steps: u64,
}

impl Default for GrowthOptions {
    fn default() -> Self {
        Self {
            operator: Operator::Zero,
            placement: Placement::Interpolate,
            seed: 0,
            std: Std::Match,
            noise: None,
            multipliers: Multipliers::default(),
            new_rows: NewRows::default(),
            tokenizer_size: None,
            untie: false,
            mask_steps: 5000,
        }
    }
}

/// The multipliers that the target's config.json shall have.
///
/// Where the logit scale `output_mult / mup_scale_factor` or `input_mult` differs from the source's, the
/// head or the embedding is multiplied by the inverse.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Multipliers {
    /// `input_mult`; `None` keeps the source's.
    pub input_mult: Option<f64>,
    /// `(output_mult, mup_scale_factor)`; `None` multiplies both by the growth of `hidden_size`, which
    /// keeps their ratio.
    pub output_pair: Option<(f64, f64)>,
}

/// What of config.json a growth sets besides the shape.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ConfigChange {
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Multiplies the embedding's output.
    pub input_mult: f64,
    /// Multiplies the logits.
    pub output_mult: f64,
    /// Divides the logits.
    pub mup_scale_factor: f64,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
}

/// What fills every part of every target tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GrowthPlan {
    /// Version of this format: 1.
    pub version: u32,
    /// The rules that the plan was made by.
    pub operator: Operator,
    /// Where new layers were placed.
    pub placement: Placement,
    /// Seed of the new weights.
    pub seed: u64,
    /// The source's shape.
    pub source: Shape,
    /// The target's shape.
    pub target: Shape,
    /// What of config.json changes besides the shape.
    pub config: ConfigChange,
    /// The masks of the target.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub masks: Option<GrowthMasks>,
    /// The source of every target layer.
    pub layers: Vec<LayerSource>,
    /// Every tensor of the target, in the order of the forward pass.
    pub tensors: Vec<TensorPlan>,
}

impl GrowthPlan {
    /// Plans the growth of `source` to `target`.
    pub fn new(source: &SourceModel, target: &Shape, options: &GrowthOptions) -> Result<Self> {
        crate::plan::build::build(source, target, options)
    }

    /// The target's config: the source's with the new sizes, eps and multipliers, every other key kept.
    pub fn target_config(&self, source: &TeleFlmConfig) -> Result<TeleFlmConfig> {
        let mut config = self.target.apply_to(source)?;
        config.rms_norm_eps = self.config.rms_norm_eps;
        config.input_mult = self.config.input_mult;
        config.output_mult = self.config.output_mult;
        config.mup_scale_factor = self.config.mup_scale_factor;
        config.tie_word_embeddings = self.config.tie_word_embeddings;
        config.growth = self.masks.clone();
        config.layers = source.layers.rearranged(self.layers.iter().map(|layer| layer.source));
        config.validate()?;
        Ok(config)
    }

    /// The plan as JSON text.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// BLAKE3 of the plan, in hexadecimal: the same for the same source shape, target and options.
    pub fn digest(&self) -> Result<String> {
        Ok(blake3::hash(&serde_json::to_vec(self)?).to_hex().to_string())
    }

    /// For every source layer, in order: (source layer, the target layer that it became).
    pub fn originals(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.layers.iter().enumerate().filter(|(_, l)| !l.new).map(|(target, l)| (l.source, target))
    }

    /// The tensor `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorPlan> {
        self.tensors.iter().find(|t| t.name == name)
    }
}
