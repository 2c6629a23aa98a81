use candle_core::{DType, Tensor};

use super::{CausalLm, ModelError, Positions};

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
            let targets = Tensor::from_slice(&ids[start + 1..start + 1 + len], (len, 1), self.device())?;
            let chosen = logits.contiguous()?.gather(&targets, 1)?.squeeze(1)?;
            let values = (logits.log_sum_exp(1)? - chosen)?.to_dtype(DType::F64)?;
            nll.extend(values.to_vec1::<f64>()?);
        }
        Ok(nll)
    }
}
