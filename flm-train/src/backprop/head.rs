//! Final norm, head and loss with a backward of their own.

use crate::store::host_slice;

use candle_core::{D, DType, Device, Tensor, Var};
use rayon::prelude::*;

use crate::backprop::backward_from::backward_from;
use crate::backprop::gradient::Gradient;
use crate::data::batch::{IGNORED, MicroBatch};
use crate::error::TrainError;
use flm_candle::NormMask;
use flm_candle::Path;
use flm_candle::{Matrix, Output, multiply};
use flm_candle::{RmsNorm, offset_gain};

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
    /// What then bounds them, `c · tanh(x / c)`.
    pub softcap: Option<f64>,
    /// What is added to the stored gain.
    pub gain_offset: f64,
}

/// The gradient by the head's matrix, where it was computed.
#[derive(Debug)]
pub(super) enum MatrixGradient {
    Host(Vec<f32>),
    Device(Tensor),
}

/// The sum of the losses; where they are wanted, the gradients by the normed positions and the matrix.
type Scores = (f64, Option<(Tensor, MatrixGradient)>);

/// The positions of a micro-batch that are learned.
struct Learned {
    positions: Tensor,
    labels: Vec<u32>,
    /// `[positions, hidden_size]`.
    hidden: Var,
}

impl Learned {
    /// `None` where there are none.
    fn new(batch: &MicroBatch, x: &Tensor) -> Result<Option<Self>, TrainError> {
        let (b, t, d) = x.dims3()?;
        let learned = batch.labels.iter().enumerate().filter(|(_, label)| **label != IGNORED);
        let (positions, labels): (Vec<u32>, Vec<u32>) =
            learned.map(|(i, &label)| (i as u32, label as u32)).unzip();
        if positions.is_empty() {
            return Ok(None);
        }
        let n = positions.len();
        let positions = Tensor::from_vec(positions, n, x.device())?;
        let hidden = Var::from_tensor(&x.reshape((b * t, d))?.index_select(&positions, 0)?)?;
        Ok(Some(Self { positions, labels, hidden }))
    }
}

impl Head<'_> {
    /// The sum of the negative log-likelihoods of the targets.
    pub(super) fn loss(&self, x: &Tensor, batch: &MicroBatch) -> Result<f64, TrainError> {
        let (Some(learned), norm) = (Learned::new(batch, x)?, self.norm()?) else { return Ok(0.0) };
        let z = norm.forward(learned.hidden.as_tensor(), Path::Differentiable)?.detach().contiguous()?;
        Ok(self.scores(&z, &learned.labels, None)?.0)
    }

    /// That sum, the gradient of the loss by `x`, `[b, t, hidden_size]`, and those by gain and matrix; the
    /// loss is the sum times `weight`, 1 / number of targets of the step.
    pub(super) fn run(
        &self,
        x: &Tensor,
        batch: &MicroBatch,
        weight: f64,
    ) -> Result<(f64, Tensor, Gradient), TrainError> {
        let (b, t, d) = x.dims3()?;
        let Some(learned) = Learned::new(batch, x)? else {
            let nothing = |like: &Tensor| like.detach().zeros_like();
            let gradient = Gradient::new(vec![nothing(self.gain)?, nothing(self.matrix)?])?;
            return Ok((0.0, x.zeros_like()?, gradient));
        };
        let z = self.norm()?.forward(learned.hidden.as_tensor(), Path::Differentiable)?;
        let (sum, gradients) = self.scores(&z.detach().contiguous()?, &learned.labels, Some(weight))?;
        let lost = || TrainError::MissingGradient(flm_checkpoint::FINAL_NORM.into());
        let (dz, dmatrix) = gradients.ok_or_else(lost)?;
        let mut store = backward_from(&z, &dz)?;
        let dgain = store.remove(self.gain).ok_or_else(lost)?;
        let dh = store.remove(learned.hidden.as_tensor()).ok_or_else(lost)?;
        let dx = Tensor::zeros((b * t, d), x.dtype(), x.device())?.index_add(&learned.positions, &dh, 0)?;
        Ok((sum, dx.reshape((b, t, d))?, Gradient::of_head(dgain, dmatrix)?))
    }

    fn norm(&self) -> candle_core::Result<RmsNorm> {
        let gain = offset_gain(self.gain.as_tensor().clone(), self.gain_offset)?;
        Ok(RmsNorm::new(gain, self.eps).with_mask(self.mask))
    }

    /// The sum of the losses of normed positions `z`; with a weight also the gradients by `z` and the matrix.
    fn scores(&self, z: &Tensor, labels: &[u32], weight: Option<f64>) -> Result<Scores, TrainError> {
        if z.device().is_cpu() && z.dtype() == DType::F32 {
            self.on_cpu(z, labels, weight)
        } else {
            self.on_device(z, labels, weight)
        }
    }

    fn on_cpu(&self, z: &Tensor, labels: &[u32], weight: Option<f64>) -> Result<Scores, TrainError> {
        let ((n, d), vocabulary) = (z.dims2()?, self.matrix.dim(0)?);
        let (z_storage, _) = z.storage_and_layout();
        let (w_storage, w_layout) = self.matrix.storage_and_layout();
        let (z, w) = (host_slice(&z_storage)?, host_slice(&w_storage)?);
        let w = &w[w_layout.start_offset()..];
        let matrix = Matrix::new(w, vocabulary, d, d);
        let threads = rayon::current_num_threads();
        let rows = (LOGITS_BYTES / 4 / vocabulary).clamp(1, n);
        let mut logits = vec![0f32; rows * vocabulary];
        let mut gradients = weight.map(|_| (vec![0f32; n * d], vec![0f32; vocabulary * d]));
        let mut sum = 0.0;
        for start in (0..n).step_by(rows) {
            let count = rows.min(n - start);
            let z = Matrix::new(&z[start * d..(start + count) * d], count, d, d);
            let logits = &mut logits[..count * vocabulary];
            multiply(logits, vocabulary, z, matrix.t(), Output::Replace, threads);
            let losses = logits.par_chunks_mut(vocabulary).zip(&labels[start..start + count]);
            let losses: Vec<f64> =
                losses.map(|(row, &label)| self.cross_entropy(row, label as usize, weight)).collect();
            sum += losses.into_iter().sum::<f64>();
            if let Some((dz, dmatrix)) = &mut gradients {
                let dlogits = Matrix::new(logits, count, vocabulary, vocabulary);
                multiply(&mut dz[start * d..], d, dlogits, matrix, Output::Replace, threads);
                multiply(dmatrix, d, dlogits.t(), z, Output::Add, threads);
            }
        }
        let Some((dz, dmatrix)) = gradients else { return Ok((sum, None)) };
        Ok((sum, Some((Tensor::from_vec(dz, (n, d), &Device::Cpu)?, MatrixGradient::Host(dmatrix)))))
    }

    fn on_device(&self, z: &Tensor, labels: &[u32], weight: Option<f64>) -> Result<Scores, TrainError> {
        let ((n, _), vocabulary) = (z.dims2()?, self.matrix.dim(0)?);
        let statistics = if z.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let rows = (LOGITS_BYTES / statistics.size_in_bytes() / vocabulary).clamp(1, n);
        let (mut sum, mut dz, mut dw) = (0.0, Vec::new(), None::<Tensor>);
        for start in (0..n).step_by(rows) {
            let count = rows.min(n - start);
            let z = z.narrow(0, start, count)?;
            let targets = Tensor::from_slice(&labels[start..start + count], (count, 1), z.device())?;
            let logits = (z.matmul(&self.matrix.t()?)?.to_dtype(statistics)? * self.logit_scale)?;
            let bounded = self.softcap.map(|cap| (&logits / cap)?.tanh()).transpose()?;
            let logits = match (&bounded, self.softcap) {
                (Some(bounded), Some(cap)) => (bounded * cap)?,
                _ => logits,
            };
            let log_sum = logits.log_sum_exp(D::Minus1)?.unsqueeze(1)?;
            let losses = (&log_sum - logits.gather(&targets, 1)?)?.to_dtype(DType::F64)?;
            sum += losses.sum_all()?.to_scalar::<f64>()?;
            let Some(weight) = weight else { continue };
            let probabilities = logits.broadcast_sub(&log_sum)?.exp()?;
            let minus_one = Tensor::full(-1f32, (count, 1), z.device())?.to_dtype(statistics)?;
            let dlogits = probabilities.scatter_add(&targets, &minus_one, 1)?;
            let dlogits = match bounded {
                Some(bounded) => (dlogits * bounded.sqr()?.affine(-1.0, 1.0)?)?,
                None => dlogits,
            };
            let dlogits = (dlogits * (self.logit_scale * weight))?.to_dtype(z.dtype())?;
            dz.push(dlogits.matmul(self.matrix)?);
            let part = dlogits.t()?.matmul(&z)?.to_dtype(statistics)?;
            dw = Some(match dw {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        let Some(dw) = dw else { return Ok((sum, None)) };
        Ok((sum, Some((Tensor::cat(&dz, 0)?, MatrixGradient::Device(dw)))))
    }

    /// The negative log-likelihood of `label`; with a weight, the row becomes the gradient by the products of
    /// positions and matrix: `(softmax − onehot) · scale · weight`, times the derivative of the bound.
    fn cross_entropy(&self, row: &mut [f32], label: usize, weight: Option<f64>) -> f64 {
        let scale = self.logit_scale;
        row.iter_mut().for_each(|x| *x *= scale as f32);
        let mut slopes = Vec::new();
        if let Some(cap) = self.softcap.map(|cap| cap as f32) {
            for x in row.iter_mut() {
                let bounded = (*x / cap).tanh();
                *x = cap * bounded;
                if weight.is_some() {
                    slopes.push(1.0 - bounded * bounded);
                }
            }
        }
        let chosen = f64::from(row[label]);
        let max = row.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(x));
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
            row.iter_mut().zip(slopes).for_each(|(x, slope)| *x *= slope);
        }
        f64::from(max) + sum.ln() - chosen
    }
}
