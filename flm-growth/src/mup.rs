//! Folding of multipliers: what tensors take over from multipliers that go, and give up to multipliers that come.
//!
//! logits = head · (gain ⊙ x̂) · logit_scale is linear in head and gain, and so is the residual stream's first value in
//! the embedding: a factor can move between a multiplier and a tensor.

use flm_checkpoint::{Dtype, TensorId};

/// What the elements of tensors outside the blocks are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Folding {
    pub embedding: f64,
    pub final_norm: f64,
    pub head: f64,
}

impl Folding {
    /// For a model whose embedding's output is to be multiplied by `embedding` and whose logits by `logits`.
    ///
    /// A `tied` head has the embedding's factor already. A head that is `stored` in a dtype that does not hold the
    /// products leaves them to the final norm's gain, which is a vector and may be stored wider; so does every head
    /// where `stored` is `None`.
    pub(crate) fn new(embedding: f64, logits: f64, tied: bool, stored: Option<Dtype>) -> Self {
        let (final_norm, head) = match stored {
            _ if tied => (ratio(logits, embedding), embedding),
            Some(dtype) if dtype.holds_scaled(logits) => (1.0, logits),
            _ => (logits, 1.0),
        };
        Self { embedding, final_norm, head }
    }

    /// That of a tensor.
    pub(crate) fn of(&self, id: TensorId) -> f64 {
        match id {
            TensorId::Embedding => self.embedding,
            TensorId::FinalNorm => self.final_norm,
            TensorId::Head => self.head,
            TensorId::Block(..) => 1.0,
        }
    }
}

/// `old / new`; exactly 1 where they differ by the rounding of the multipliers' products only.
pub(crate) fn ratio(old: f64, new: f64) -> f64 {
    let ratio = old / new;
    if (ratio - 1.0).abs() < 8.0 * f64::EPSILON { 1.0 } else { ratio }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The logits of a model of one unit: head · gain · embedding.
    #[test]
    fn factors_multiply_to_the_multipliers() {
        for (embedding, logits) in [(1.0, 1.0), (3.0, 0.25), (0.5, 7.0 / 3.0), (0.1, 0.1)] {
            for stored in [None, Some(Dtype::F32), Some(Dtype::BF16), Some(Dtype::F16)] {
                for tied in [false, true] {
                    let f = Folding::new(embedding, logits, tied, stored);
                    let head = if tied { f.embedding } else { f.head };
                    let product = head * f.final_norm;
                    assert!(
                        (product - logits).abs() < 1e-15,
                        "{embedding} {logits} {stored:?} {tied}: {f:?}"
                    );
                    assert_eq!(f.of(TensorId::Embedding), embedding);
                }
            }
        }
        // a head of 16 bits is rounded by other factors than powers of two, and f16 has few of those
        assert_eq!(Folding::new(1.0, 0.25, false, Some(Dtype::BF16)).head, 0.25);
        assert_eq!(Folding::new(1.0, 0.3, false, Some(Dtype::BF16)).final_norm, 0.3);
        assert_eq!(Folding::new(1.0, 0.25, false, Some(Dtype::F16)).final_norm, 0.25);
    }
}
