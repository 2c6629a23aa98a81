//! Final norm, head and loss with a backward of their own.

use crate::store::host_slice;

use candle_core::{D, DType, Device, Tensor, Var};
use rayon::prelude::*;

use crate::backprop::backward_from::backward_from;
use crate::data::batch::{IGNORED, MicroBatch};
use crate::error::TrainError;
use crate::sums;
use flm_candle::NormMask;
use flm_candle::Path;
use flm_candle::RmsNorm;
use flm_candle::{Matrix, Output, multiply};

/// Bytes of logits that exist at once.
const LOGITS_BYTES: usize = 64 << 20;

/// Final norm, head and loss, with a backward of their own: logits exist for a few positions at a time,
/// and only for positions that are learned.
#[derive(Debug)]
pub(super) struct Head<'a> {
    /// The norm's gain.
    pub gain: &'a Var,
    /// Added to the norm's mean square.
    pub eps: f64,
    /// Weights the norm's statistics.
    pub mask: Option<NormMask>,
    /// `[vocab_size, hidden_size]`.
    pub matrix: &'a Tensor,
    /// Multiplies the logits.
    pub logit_scale: f64,
}

/// Where the head's gradients are added up, on the host.
#[derive(Debug)]
pub(super) struct HeadGradients<'a> {
    pub gain: &'a mut [f32],
    pub matrix: &'a mut [f32],
    /// Multiplies the loss: 1 / number of targets of the step.
    pub weight: f64,
}

impl Head<'_> {
    /// The sum of the negative log-likelihoods of the targets, and, where gradients are wanted, the
    /// gradient by `x`, `[b, t, hidden_size]`.
    pub(super) fn run(
        &self,
        x: &Tensor,
        batch: &MicroBatch,
        mut gradients: Option<&mut HeadGradients<'_>>,
    ) -> Result<(f64, Option<Tensor>), TrainError> {
        let (b, t, d) = x.dims3()?;
        let learned = batch.labels.iter().enumerate().filter(|(_, label)| **label != IGNORED);
        let (positions, labels): (Vec<u32>, Vec<u32>) =
            learned.map(|(i, &label)| (i as u32, label as u32)).unzip();
        if positions.is_empty() {
            let none = gradients.is_some().then(|| x.zeros_like()).transpose()?;
            return Ok((0.0, none));
        }
        let n = positions.len();
        let positions = Tensor::from_vec(positions, n, x.device())?;
        let hidden = Var::from_tensor(&x.reshape((b * t, d))?.index_select(&positions, 0)?)?;
        let norm = RmsNorm::new(self.gain.as_tensor().clone(), self.eps).with_mask(self.mask);
        let z = norm.forward(hidden.as_tensor(), Path::Differentiable)?;
        let scores = z.detach().contiguous()?;
        let (sum, dz) = if x.device().is_cpu() && x.dtype() == DType::F32 {
            self.on_cpu(&scores, &labels, gradients.as_deref_mut())?
        } else {
            self.on_device(&scores, &labels, gradients.as_deref_mut())?
        };
        let (Some(dz), Some(gradients)) = (dz, gradients) else { return Ok((sum, None)) };
        let mut store = backward_from(&z, &dz)?;
        let lost = || TrainError::MissingGradient(flm_checkpoint::FINAL_NORM.into());
        add_tensor(gradients.gain, &store.remove(self.gain).ok_or_else(lost)?)?;
        let dh = store.remove(hidden.as_tensor()).ok_or_else(lost)?;
        let dx = Tensor::zeros((b * t, d), x.dtype(), x.device())?.index_add(&positions, &dh, 0)?;
        Ok((sum, Some(dx.reshape((b, t, d))?)))
    }

    fn on_cpu(
        &self,
        z: &Tensor,
        labels: &[u32],
        mut gradients: Option<&mut HeadGradients<'_>>,
    ) -> Result<(f64, Option<Tensor>), TrainError> {
        let ((n, d), vocabulary) = (z.dims2()?, self.matrix.dim(0)?);
        let (z_storage, _) = z.storage_and_layout();
        let (w_storage, w_layout) = self.matrix.storage_and_layout();
        let (z, w) = (host_slice(&z_storage)?, host_slice(&w_storage)?);
        let w = &w[w_layout.start_offset()..];
        let matrix = Matrix::new(w, vocabulary, d, d);
        let threads = rayon::current_num_threads();
        let rows = (LOGITS_BYTES / 4 / vocabulary).clamp(1, n);
        let mut logits = vec![0f32; rows * vocabulary];
        let mut dz = gradients.is_some().then(|| vec![0f32; n * d]);
        let mut sum = 0.0;
        for start in (0..n).step_by(rows) {
            let count = rows.min(n - start);
            let z = Matrix::new(&z[start * d..(start + count) * d], count, d, d);
            let logits = &mut logits[..count * vocabulary];
            multiply(logits, vocabulary, z, matrix.t(), Output::Replace, threads);
            let weight = gradients.as_deref().map(|g| g.weight);
            let losses = logits.par_chunks_mut(vocabulary).zip(&labels[start..start + count]);
            let losses: Vec<f64> = losses
                .map(|(row, &label)| cross_entropy(row, label as usize, self.logit_scale, weight))
                .collect();
            sum += losses.into_iter().sum::<f64>();
            if let (Some(gradients), Some(dz)) = (gradients.as_deref_mut(), &mut dz) {
                let dlogits = Matrix::new(logits, count, vocabulary, vocabulary);
                multiply(&mut dz[start * d..], d, dlogits, matrix, Output::Replace, threads);
                multiply(gradients.matrix, d, dlogits.t(), z, Output::Add, threads);
            }
        }
        let dz = dz.map(|dz| Tensor::from_vec(dz, (n, d), &Device::Cpu)).transpose()?;
        Ok((sum, dz))
    }

    fn on_device(
        &self,
        z: &Tensor,
        labels: &[u32],
        mut gradients: Option<&mut HeadGradients<'_>>,
    ) -> Result<(f64, Option<Tensor>), TrainError> {
        let ((n, _), vocabulary) = (z.dims2()?, self.matrix.dim(0)?);
        let statistics = if z.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let rows = (LOGITS_BYTES / statistics.size_in_bytes() / vocabulary).clamp(1, n);
        let (mut sum, mut dz, mut dw) = (0.0, Vec::new(), None::<Tensor>);
        for start in (0..n).step_by(rows) {
            let count = rows.min(n - start);
            let z = z.narrow(0, start, count)?;
            let targets = Tensor::from_slice(&labels[start..start + count], (count, 1), z.device())?;
            let logits = (z.matmul(&self.matrix.t()?)?.to_dtype(statistics)? * self.logit_scale)?;
            let log_sum = logits.log_sum_exp(D::Minus1)?.unsqueeze(1)?;
            let losses = (&log_sum - logits.gather(&targets, 1)?)?.to_dtype(DType::F64)?;
            sum += losses.sum_all()?.to_scalar::<f64>()?;
            let Some(gradients) = gradients.as_deref_mut() else { continue };
            let probabilities = logits.broadcast_sub(&log_sum)?.exp()?;
            let minus_one = Tensor::full(-1f32, (count, 1), z.device())?.to_dtype(statistics)?;
            let dlogits = probabilities.scatter_add(&targets, &minus_one, 1)?;
            let dlogits = (dlogits * (self.logit_scale * gradients.weight))?.to_dtype(z.dtype())?;
            dz.push(dlogits.matmul(self.matrix)?);
            let part = dlogits.t()?.matmul(&z)?.to_dtype(statistics)?;
            dw = Some(match dw {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        if let (Some(gradients), Some(dw)) = (gradients, dw) {
            add_tensor(gradients.matrix, &dw)?;
            return Ok((sum, Some(Tensor::cat(&dz, 0)?)));
        }
        Ok((sum, None))
    }
}

/// The negative log-likelihood of `label`; with a weight, the row becomes the gradient by the unscaled
/// logits: `(softmax − onehot) · scale · weight`.
fn cross_entropy(row: &mut [f32], label: usize, scale: f64, weight: Option<f64>) -> f64 {
    let scale32 = scale as f32;
    let chosen = f64::from(row[label] * scale32);
    let mut max = f32::NEG_INFINITY;
    for x in row.iter_mut() {
        *x *= scale32;
        max = max.max(*x);
    }
    let mut sum = 0f64;
    for chunk in row.chunks_mut(64) {
        let mut part = 0f32;
        for x in chunk.iter_mut() {
            *x = flm_candle::Real::exponential(*x - max);
            part += *x;
        }
        sum += f64::from(part);
    }
    if let Some(weight) = weight {
        let factor = (scale * weight / sum) as f32;
        for x in row.iter_mut() {
            *x *= factor;
        }
        row[label] -= (scale * weight) as f32;
    }
    f64::from(max) + sum.ln() - chosen
}

/// `target += tensor`, wherever the tensor is.
pub(super) fn add_tensor(target: &mut [f32], tensor: &Tensor) -> Result<(), TrainError> {
    let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let values = host_slice(&storage)?;
    let start = layout.start_offset();
    sums::add(target, &values[start..start + target.len()]);
    Ok(())
}
