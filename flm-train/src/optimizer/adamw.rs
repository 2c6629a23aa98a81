//! AdamW's update.

use crate::params::Slices;

use flm_checkpoint::Dtype;
use rayon::prelude::*;

use crate::optimizer::stochastic_rounding::StochasticRounding;
use crate::params::{Multipliers, Parameter};
use crate::sums::CHUNK;

/// Constants of AdamW that do not change from step to step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay of matrices, times the learning rate.
    pub weight_decay: f64,
    /// Factors on the learning rate.
    pub multipliers: Multipliers,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0, multipliers: Multipliers::default() }
    }
}

/// One update of AdamW in f32. Loshchilov and Hutter, arXiv 1711.05101; Kingma and Ba, arXiv 1412.6980.
///
/// `w ← w · (1 − rate · weight_decay)` for matrices, `m ← β₁m + (1−β₁)g`, `v ← β₂v + (1−β₂)g²`,
/// `w ← w − rate · m̂ / (√v̂ + eps)` with `m̂ = m / (1−β₁ᵗ)`, `v̂ = v / (1−β₂ᵗ)`.
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    options: AdamWOptions,
    rate: f64,
    scale: f64,
    correction1: f64,
    correction2: f64,
    rounding: Option<StochasticRounding>,
}

impl AdamW {
    /// The update of step `step`, counted from 1, at learning rate `rate`; gradients are multiplied by
    /// `scale` first.
    pub fn new(options: AdamWOptions, step: u64, rate: f64, scale: f64) -> Self {
        let power = |beta: f64| beta.powi(i32::try_from(step).unwrap_or(i32::MAX));
        let (correction1, correction2) = (1.0 - power(options.beta1), 1.0 - power(options.beta2));
        Self { options, rate, scale, correction1, correction2, rounding: None }
    }

    /// The same update of gradients that are multiplied by `scale` first.
    pub fn with_scale(self, scale: f64) -> Self {
        Self { scale, ..self }
    }

    /// The same update, with new weights that are stored in bf16 rounded by `rounding`.
    pub fn with_rounding(self, rounding: StochasticRounding) -> Self {
        Self { rounding: Some(rounding), ..self }
    }

    /// Updates a part of `parameter`; any partition of it gives the same values.
    pub fn apply(&self, parameter: &Parameter, slices: Slices<'_>) {
        let o = &self.options;
        let rate = self.rate * o.multipliers.of(parameter.group);
        let keep = if parameter.decays() { (1.0 - rate * o.weight_decay) as f32 } else { 1.0 };
        let (b1, b2) = (o.beta1 as f32, o.beta2 as f32);
        let (c1, c2) = ((1.0 - o.beta1) as f32, (1.0 - o.beta2) as f32);
        let size = (rate / self.correction1) as f32;
        let (root, eps, scale) = (self.correction2.sqrt() as f32, o.eps as f32, self.scale as f32);
        let Slices { offset, weights, gradient, exp_avg, exp_avg_sq, .. } = slices;
        let rounding = self.rounding.filter(|_| parameter.dtype == Dtype::BF16);
        let rounding = rounding.map(|rounding| rounding.of_tensor(&parameter.name));
        let moments = exp_avg.par_chunks_mut(CHUNK).zip(exp_avg_sq.par_chunks_mut(CHUNK));
        let chunks = weights.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK)).zip(moments);
        chunks.enumerate().for_each(|(index, ((w, g), (m, v)))| {
            for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                let g = *g * scale;
                *m = *m * b1 + c1 * g;
                *v = *v * b2 + c2 * g * g;
                *w = *w * keep - size * (*m / (v.sqrt() / root + eps));
            }
            if let Some(rounding) = rounding {
                rounding.round(offset + index * CHUNK, w);
            }
        });
    }
}
