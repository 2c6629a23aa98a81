//! A model that runs one layer at a time beside another.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use flm_candle::Pass;
use flm_candle::{CausalLm, Residency};
use flm_checkpoint::Checkpoint;

use crate::error::{GrowthError, Result};
use crate::verify::values;

/// A model that stops after any layer.
pub(super) struct Runner {
    model: CausalLm,
    run: Option<Run>,
}

/// One batch on its way through the layers.
struct Run {
    pass: Pass,
    /// `[b, t, hidden_size]`.
    stream: Tensor,
    /// Layers done.
    layer: usize,
}

impl Runner {
    pub(super) fn load(
        checkpoint: &Arc<Checkpoint>,
        device: &Device,
        dtype: DType,
        residency: Residency,
    ) -> Result<Self> {
        Ok(Self { model: CausalLm::load(checkpoint, device, dtype, residency)?, run: None })
    }

    pub(super) fn layers(&self) -> usize {
        self.model.num_layers()
    }

    pub(super) fn dtype(&self) -> DType {
        self.model.dtype()
    }

    /// Embeds texts of one length.
    pub(super) fn start(&mut self, texts: &[&[u32]]) -> Result<()> {
        let ids = self.model.tokens(texts)?;
        let (rows, len) = ids.dims2()?;
        let pass = self.model.pass(&vec![0; rows], 0, len)?;
        self.run = Some(Run { pass, stream: self.model.embed(&ids)?, layer: 0 });
        Ok(())
    }

    /// Runs up to `layer` layers in all; returns how many were run now.
    pub(super) fn run_to(&mut self, layer: usize) -> Result<usize> {
        let run = self.run.as_mut().ok_or(GrowthError::NothingToVerify)?;
        let first = run.layer;
        while run.layer < layer {
            run.stream = self.model.forward_block(run.layer, &run.stream, &run.pass, None)?;
            run.layer += 1;
        }
        Ok(run.layer - first)
    }

    /// The residual stream, `[b, t, hidden_size]`.
    pub(super) fn stream(&self) -> Result<&Tensor> {
        Ok(&self.run.as_ref().ok_or(GrowthError::NothingToVerify)?.stream)
    }

    /// The first `vocab` logits of positions `start..end` of text `row`.
    pub(super) fn logits(&self, row: usize, start: usize, end: usize, vocab: usize) -> Result<Vec<f64>> {
        values(&self.all_logits(row, start, end)?.narrow(2, 0, vocab)?)
    }

    /// Of the same logits the first `vocab`, and those of the rows from `first` on.
    pub(super) fn logits_and_from(
        &self,
        row: usize,
        (start, end): (usize, usize),
        vocab: usize,
        first: usize,
    ) -> Result<(Vec<f64>, Vec<f64>)> {
        let all = self.all_logits(row, start, end)?;
        let rest = all.dim(2)?.saturating_sub(first);
        Ok((values(&all.narrow(2, 0, vocab)?)?, values(&all.narrow(2, first.min(all.dim(2)?), rest)?)?))
    }

    fn all_logits(&self, row: usize, start: usize, end: usize) -> Result<Tensor> {
        let stream = self.stream()?.narrow(0, row, 1)?.narrow(1, start, end - start)?.contiguous()?;
        Ok(self.model.head(&stream)?)
    }
}
