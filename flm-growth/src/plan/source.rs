//! What a plan needs to know of its source.

use std::collections::BTreeMap;

use candle_core::DType;
use flm_checkpoint::Checkpoint;
use flm_checkpoint::LM_HEAD;
use flm_checkpoint::TeleFlmConfig;
use flm_checkpoint::is_skipped;

use crate::error::{GrowthError, Result};
use crate::precision::Precision;
use crate::tensor_plan::SourceTensor;

/// What a plan needs to know of the source: its config and how its tensors are stored.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceModel {
    config: TeleFlmConfig,
    tensors: BTreeMap<String, SourceTensor>,
}

impl SourceModel {
    /// From an open checkpoint.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape than config.json says, is of a dtype that cannot be
    /// grown, or is none of the model's. Rotary tables and a head beside tied embeddings are passed
    /// over: the model does not read them.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        let stored = checkpoint.entries().map(|e| (e.name.as_str(), e.dtype, e.shape.as_slice()));
        Self::from_tensors(checkpoint.config(), stored)
    }

    /// From a config alone, as if every tensor were stored as `dtype`: enough for a dry run.
    pub fn from_config(config: &TeleFlmConfig, dtype: DType) -> Result<Self> {
        let shapes: Vec<_> = config.tensors().collect();
        Self::from_tensors(config, shapes.iter().map(|t| (t.name.as_str(), dtype, t.shape.as_slice())))
    }

    fn from_tensors<'a>(
        config: &TeleFlmConfig,
        stored: impl Iterator<Item = (&'a str, DType, &'a [usize])>,
    ) -> Result<Self> {
        let mut stored: BTreeMap<&str, (DType, &[usize])> =
            stored.map(|(name, dtype, shape)| (name, (dtype, shape))).collect();
        let mut tensors = BTreeMap::new();
        for expected in config.tensors() {
            let (dtype, shape) = stored
                .remove(expected.name.as_str())
                .ok_or_else(|| GrowthError::MissingTensor(expected.name.clone()))?;
            if shape != expected.shape {
                return Err(GrowthError::TensorShape {
                    name: expected.name,
                    got: shape.to_vec(),
                    expected: expected.shape,
                });
            }
            let tensor = SourceTensor {
                name: expected.name.clone(),
                dtype: Precision::try_from(dtype)?,
                shape: expected.shape,
            };
            tensors.insert(expected.name, tensor);
        }
        // a tied head that is stored as well must be the embedding's size
        let head = stored.get(LM_HEAD).filter(|_| config.tie_word_embeddings);
        let expected = [config.vocab_size, config.hidden_size];
        if let Some((_, shape)) = head.filter(|(_, shape)| *shape != expected) {
            return Err(GrowthError::TensorShape {
                name: LM_HEAD.into(),
                got: shape.to_vec(),
                expected: expected.to_vec(),
            });
        }
        let unread = |name: &str| is_skipped(name) || (config.tie_word_embeddings && name == LM_HEAD);
        match stored.keys().find(|name| !unread(name)) {
            Some(unknown) => Err(GrowthError::UnknownTensor((*unknown).into())),
            None => Ok(Self { config: config.clone(), tensors }),
        }
    }

    /// The source's config.
    pub fn config(&self) -> &TeleFlmConfig {
        &self.config
    }

    /// The tensor `name`.
    pub fn tensor(&self, name: &str) -> Result<&SourceTensor> {
        self.tensors.get(name).ok_or_else(|| GrowthError::MissingTensor(name.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flm_checkpoint::preset;

    fn with(extra: &str, shape: &[usize], dtype: DType, remove: &str) -> Result<SourceModel> {
        let config = preset("nano-52b").unwrap();
        let shapes: Vec<_> = config.tensors().collect();
        let stored = shapes
            .iter()
            .map(|t| (t.name.as_str(), DType::BF16, t.shape.as_slice()))
            .filter(|(name, ..)| *name != remove && *name != extra)
            .chain(std::iter::once((extra, dtype, shape)));
        SourceModel::from_tensors(&config, stored)
    }

    #[test]
    fn what_is_wrong_with_a_source_is_named() {
        let says = |r: Result<SourceModel>| r.expect_err("must be refused").to_string();
        let norm = "model.norm.weight";
        assert!(with(norm, &[96], DType::F32, "").is_ok());
        assert!(with("model.layers.2.self_attn.rotary_emb.inv_freq", &[12], DType::F32, "").is_ok());
        assert!(with("rotary_emb.inv_freq", &[12], DType::F32, "").is_ok());
        assert!(
            says(with("model.layers.16.mlp.up_proj.weight", &[256, 96], DType::BF16, ""))
                .contains("layers.16")
        );
        assert!(says(with(norm, &[95], DType::BF16, "")).contains("shape [95], expected [96]"));
        let mut tied = preset("nano-52b").unwrap();
        tied.tie_word_embeddings = true;
        let shapes: Vec<_> = tied.tensors().collect();
        let rows = [tied.vocab_size + 1, tied.hidden_size];
        let stored = shapes.iter().map(|t| (t.name.as_str(), DType::BF16, t.shape.as_slice()));
        let stored = stored.chain(std::iter::once((LM_HEAD, DType::BF16, rows.as_slice())));
        assert!(says(SourceModel::from_tensors(&tied, stored)).contains("lm_head.weight"));
        assert!(says(with(norm, &[96], DType::U8, "")).contains("dtype u8"));
        assert!(says(with(norm, &[96], DType::F32, "lm_head.weight")).contains("lacks lm_head.weight"));
    }
}
