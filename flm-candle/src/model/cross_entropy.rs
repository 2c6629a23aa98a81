//! Negative log-likelihood of given tokens, in chunks of positions so that logits stay few.

use candle_core::DType;
use rayon::prelude::*;

use crate::model::causal_lm::{CausalLm, Positions};
use crate::model::error::ModelError;

/// Positions whose logits are held at once.
const POSITIONS: usize = 64;

impl CausalLm {
    /// Negative log-likelihood, in nats, of every token of a text after its first: `ids.len() − 1` values.
    ///
    /// Only the first `vocabulary` rows count: a model's padding rows have no probability. Logits of
    /// the whole text never exist at once.
    ///
    /// # Errors
    /// [`ModelError::TokenId`] for an id ≥ `vocabulary`.
    pub fn negative_log_likelihood(&self, ids: &[u32], vocabulary: usize) -> Result<Vec<f64>, ModelError> {
        let rows = vocabulary.min(self.config().vocab_size);
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= rows) {
            return Err(ModelError::TokenId { id, rows });
        }
        let ids_tensor = self.tokens(&[ids])?;
        let mut last = None;
        self.forward(&ids_tensor, None, Positions::Last, |layer, x| {
            if layer == self.num_layers() {
                last = Some(x.clone());
            }
            Ok(())
        })?;
        let x = last.ok_or(ModelError::Empty)?;
        let mut nll = Vec::with_capacity(ids.len().saturating_sub(1));
        for start in (0..ids.len() - 1).step_by(POSITIONS) {
            let len = POSITIONS.min(ids.len() - 1 - start);
            let logits =
                self.head(&x.narrow(1, start, len)?.contiguous()?)?.squeeze(0)?.narrow(1, 0, rows)?;
            let logits = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            let targets = &ids[start + 1..start + 1 + len];
            nll.par_extend(logits.par_chunks(rows).zip(targets).map(|(row, &id)| surprise(row, id)));
        }
        Ok(nll)
    }
}

/// −log softmax(row)[id]; the sum is in f64, since tens of thousands of terms in f32 are biased by
/// some 1e-5 nats.
fn surprise(row: &[f32], id: u32) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&x| f64::from((x - max).exp())).sum();
    sum.ln() + f64::from(max) - f64::from(row[id as usize])
}
