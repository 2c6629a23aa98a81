//! Tables of the rotary position embedding.

use candle_core::{DType, Device, Result, Tensor};

use flm_checkpoint::{LayerRope, RopeScaling, TeleFlmConfig};

/// Rotary position embedding: dimension `i` turns with dimension `i + width / 2`, or `2i` with `2i + 1`.
///
/// Angles are `position · theta^(−2i / width)`, computed in f32 as the released models' code does
/// (f64 when the model computes in f64); their cosines and sines are then rounded to the compute dtype, but where the
/// released code turns in f32. Su et al., arXiv 2104.09864.
#[derive(Debug, Clone)]
pub struct Rotary {
    /// How many of a head's entries are turned, the first ones.
    width: usize,
    theta: f64,
    scaling: RopeScaling,
    pairs: bool,
    in_f32: bool,
}

impl Rotary {
    /// Heads of which `width` entries are turned, without scaling.
    pub fn new(width: usize, theta: f64) -> Self {
        Self { width, theta, scaling: RopeScaling::Default, pairs: false, in_f32: false }
    }

    /// The same, where neighbours are turned together.
    pub fn with_pairs(self, pairs: bool) -> Self {
        Self { pairs, ..self }
    }

    /// The rotary positions of each kind of a model's blocks; `None` for blocks without.
    pub fn of(config: &TeleFlmConfig) -> Vec<Option<Self>> {
        let plain = |theta: f64| Self {
            pairs: config.rotary_pairs(),
            in_f32: config.rotary_in_f32(),
            ..Self::new(config.rotary_dim(), theta)
        };
        let rotary = |rope: LayerRope| match rope {
            LayerRope::Model => {
                Some(Self { scaling: config.rope_scaling.clone(), ..plain(config.rope_theta) })
            }
            LayerRope::Local { theta } => Some(plain(theta)),
            LayerRope::None => None,
        };
        config.layers.kinds().iter().map(|kind| rotary(kind.rope)).collect()
    }

    /// How many of a head's entries are turned, the first ones.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether entries `2i` and `2i + 1` are turned together, not `i` and `i + width / 2`.
    pub fn pairs(&self) -> bool {
        self.pairs
    }

    /// Cosines and sines of positions `0..t`, row by row, in texts of `length` tokens.
    pub fn table(&self, t: usize, length: usize, dtype: DType) -> (Vec<f64>, Vec<f64>) {
        let positions: Vec<usize> = (0..t).collect();
        let turned = |function: fn(f64) -> f64| self.values(&positions, length, dtype, function);
        (turned(f64::cos), turned(f64::sin))
    }

    fn values(&self, positions: &[usize], length: usize, dtype: DType, function: fn(f64) -> f64) -> Vec<f64> {
        let frequency = |i: usize| {
            let plain = self.theta.powf(-2.0 * i as f64 / self.width as f64);
            plain / self.scaling.divisor(i, self.width, self.theta, length)
        };
        let frequencies: Vec<f64> = (0..self.width / 2).map(frequency).collect();
        let angle = |p: usize, f: f64| match dtype {
            DType::F64 => p as f64 * f,
            _ => f64::from(p as f32 * f as f32),
        };
        let factor = self.scaling.attention_factor(length);
        let angles = positions.iter().flat_map(|&p| frequencies.iter().map(move |&f| angle(p, f)));
        angles.map(|angle| function(angle) * factor).collect()
    }

    /// Cosines and sines, `[t, width / 2]`, or `[rows, t, width / 2]` where positions differ by row, in the dtype in
    /// which heads are turned.
    pub fn tables(
        &self,
        positions: &[usize],
        rows: Option<usize>,
        dtype: DType,
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
        let half = self.width / 2;
        let length = positions.iter().max().map_or(0, |last| last + 1);
        let table = |function: fn(f64) -> f64| {
            let values = self.values(positions, length, dtype, function);
            let tensor = match rows {
                Some(b) => Tensor::from_vec(values, (b, positions.len() / b, half), device)?,
                None => Tensor::from_vec(values, (positions.len(), half), device)?,
            };
            tensor.to_dtype(if self.in_f32 && dtype != DType::F64 { DType::F32 } else { dtype })
        };
        Ok((table(f64::cos)?, table(f64::sin)?))
    }
}
