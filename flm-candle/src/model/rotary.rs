//! Tables of the rotary position embedding.

use candle_core::{DType, Device, Result, Tensor};

use flm_checkpoint::TeleFlmConfig;

/// Rotary position embedding, half-split: dimension `i` turns with dimension `i + head_dim / 2`.
///
/// Angles are `position · theta^(−2i / head_dim)`, computed in f32 as the released models' code does
/// (f64 when the model computes in f64); their cosines and sines are then rounded to the compute dtype. Su et al., arXiv 2104.09864.
#[derive(Debug, Clone)]
pub struct Rotary {
    /// `theta^(−2i / head_dim)` for `i` in `0..head_dim / 2`, scaled.
    inverse_frequencies: Vec<f64>,
    /// What cosines and sines are multiplied by.
    factor: f64,
}

impl Rotary {
    /// The frequencies of heads of width `head_dim`.
    pub fn new(head_dim: usize, theta: f64) -> Self {
        let frequency = |i: usize| theta.powf(-2.0 * i as f64 / head_dim as f64);
        Self { inverse_frequencies: (0..head_dim / 2).map(frequency).collect(), factor: 1.0 }
    }

    /// The frequencies of a model, scaled as its config says.
    pub fn of(config: &TeleFlmConfig) -> Self {
        let (head_dim, theta, scaling) = (config.head_dim, config.rope_theta, config.rope_scaling);
        let mut rotary = Self::new(head_dim, theta);
        for (i, frequency) in rotary.inverse_frequencies.iter_mut().enumerate() {
            *frequency /= scaling.divisor(i, head_dim, theta);
        }
        Self { factor: scaling.attention_factor(), ..rotary }
    }

    /// Cosines and sines of positions `0..t`, row by row.
    pub fn table(&self, t: usize, dtype: DType) -> (Vec<f64>, Vec<f64>) {
        let angle = |p: usize, f: f64| match dtype {
            DType::F64 => p as f64 * f,
            _ => f64::from(p as f32 * f as f32),
        };
        let angles = (0..t).flat_map(|p| self.inverse_frequencies.iter().map(move |&f| angle(p, f)));
        angles.map(|angle| (angle.cos() * self.factor, angle.sin() * self.factor)).unzip()
    }

    /// Cosines and sines, `[t, head_dim / 2]`, or `[rows, t, head_dim / 2]` where positions differ by row.
    pub fn tables(
        &self,
        positions: &[usize],
        rows: Option<usize>,
        dtype: DType,
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
        let half = self.inverse_frequencies.len();
        let angles = positions.iter().flat_map(|&p| {
            self.inverse_frequencies.iter().map(move |&f| match dtype {
                DType::F64 => p as f64 * f,
                _ => (p as f32 * f as f32) as f64,
            })
        });
        let table = |function: fn(f64) -> f64| {
            let values: Vec<f64> = angles.clone().map(|angle| function(angle) * self.factor).collect();
            let tensor = match rows {
                Some(b) => Tensor::from_vec(values, (b, positions.len() / b, half), device)?,
                None => Tensor::from_vec(values, (positions.len(), half), device)?,
            };
            tensor.to_dtype(dtype)
        };
        Ok((table(f64::cos)?, table(f64::sin)?))
    }
}
