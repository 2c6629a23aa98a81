//! What a plan needs to know of its source.

use std::collections::BTreeMap;

use flm_checkpoint::{Checkpoint, Dtype, TeleFlmConfig, TensorShape};

use crate::error::{GrowthError, Result};
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
    /// If a tensor is missing, has another shape than config.json says, or is none of the model's. A head
    /// beside tied embeddings is passed over: the model does not read it.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        if let Some(problem) = checkpoint.shape_problems().into_iter().next() {
            return Err(problem.into());
        }
        let dtype = |t: &TensorShape| checkpoint.entry(&t.name).map(|entry| entry.dtype);
        Self::new(checkpoint.config(), |t| Ok(dtype(t)?))
    }

    /// From a config alone, as if every tensor were stored as `dtype`: enough for a dry run.
    pub fn from_config(config: &TeleFlmConfig, dtype: Dtype) -> Result<Self> {
        Self::new(config, |_| Ok(dtype))
    }

    fn new(config: &TeleFlmConfig, dtype: impl Fn(&TensorShape) -> Result<Dtype>) -> Result<Self> {
        let tensor = |t: TensorShape| -> Result<_> {
            let dtype = dtype(&t)?;
            Ok((t.name.clone(), SourceTensor { name: t.name, dtype, shape: t.shape }))
        };
        let tensors = config.tensors().map(tensor).collect::<Result<_>>()?;
        Ok(Self { config: config.clone(), tensors })
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
