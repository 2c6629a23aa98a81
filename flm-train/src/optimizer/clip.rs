//! Limits on the norm of gradients.

use serde::{Deserialize, Serialize};

/// What the norm of gradients is limited over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clip {
    /// The gradient of all parameters.
    #[default]
    Global,
    /// Each block by itself; the embedding is one, the final norm with the head another.
    Block,
}

impl Clip {
    /// What each unit's gradient is multiplied by so that norms are at most `max_norm`: `whole` is the norm of
    /// the whole gradient, `units` those of its units.
    pub fn coefficients(self, whole: f64, units: &[f64], max_norm: Option<f64>) -> Vec<f64> {
        let norm = |&unit: &f64| match self {
            Self::Global => whole,
            Self::Block => unit,
        };
        units.iter().map(|unit| clip_coefficient(norm(unit), max_norm)).collect()
    }
}

/// What gradients are multiplied by so that their norm is at most `max_norm`.
pub fn clip_coefficient(norm: f64, max_norm: Option<f64>) -> f64 {
    max_norm.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_coefficient_for_all_or_one_for_each_unit() {
        let units = [3.0, 4.0, 0.5];
        let whole = (9.0f64 + 16.0 + 0.25).sqrt();
        let global = Clip::Global.coefficients(whole, &units, Some(1.0));
        assert_eq!(global, [1.0 / (25.25f64.sqrt() + 1e-6); 3]);
        assert_eq!(Clip::Block.coefficients(whole, &units, Some(1.0)), [1.0 / 3.000001, 1.0 / 4.000001, 1.0]);
        assert_eq!(Clip::Block.coefficients(whole, &units, None), [1.0; 3]);
    }
}
