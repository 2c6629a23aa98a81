//! Rounding to bf16 that is right on average.

use flm_candle::Stream;

/// Rounds f32 to the two neighbouring values of bf16, each as probable as it is near, so that the mean of
/// many roundings is the value itself and updates smaller than half a step of bf16 are not lost.
///
/// Which of the two depends on seed, step, tensor name and index only. Gupta et al., arXiv 1502.02551;
/// for bf16 weights: Zamirai et al., arXiv 2010.06192.
#[derive(Debug, Clone, Copy)]
pub struct StochasticRounding {
    stream: Stream,
}

impl StochasticRounding {
    /// The roundings of step `step`.
    pub fn new(seed: u64, step: u64) -> Self {
        Self { stream: Stream::new(seed, step) }
    }

    /// The roundings of tensor `name`.
    pub fn of_tensor(self, name: &str) -> TensorRounding {
        TensorRounding { stream: self.stream.named(name) }
    }
}

/// The roundings of one tensor at one step.
#[derive(Debug, Clone, Copy)]
pub struct TensorRounding {
    stream: Stream,
}

impl TensorRounding {
    /// Rounds values `first`, `first` + 1, … of the tensor; any partition of it gives the same values.
    pub fn round(&self, first: usize, values: &mut [f32]) {
        // four values share a number: 16 bits each, as many as bf16 drops
        let mut bits = 0;
        for (i, value) in (first..).zip(values) {
            if i == first || i % 4 == 0 {
                bits = self.stream.at(i as u64 / 4);
            }
            *value = round(*value, (bits >> (i % 4 * 16)) as u16);
        }
    }
}

/// `value` cut off to bf16, after `random` was added to the bits that go.
fn round(value: f32, random: u16) -> f32 {
    const KEPT: u32 = 0xffff_0000;
    if !value.is_finite() {
        return half::bf16::from_f32(value).to_f32();
    }
    let bits = value.to_bits();
    let rounded = f32::from_bits((bits + u32::from(random)) & KEPT);
    if rounded.is_finite() { rounded } else { f32::from_bits(bits & KEPT) }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn the_mean_of_many_roundings_is_the_value() {
        let n = 1 << 16;
        for value in [1.001_f32, -0.337, 3.0e-5, 1.0e-39, 258.5] {
            let mut values = vec![value; n];
            StochasticRounding::new(3, 1).of_tensor("w").round(0, &mut values);
            let (low, high) = (
                bf16::from_bits((value.to_bits() >> 16) as u16).to_f32(),
                bf16::from_bits((value.to_bits() >> 16) as u16 + 1).to_f32(),
            );
            assert!(values.iter().all(|&v| v == low || v == high), "{value}");
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
            // five standard deviations of a mean of n values that are a step apart
            let bound = 2.5 * f64::from((high - low).abs()) / (n as f64).sqrt();
            assert!((mean - f64::from(value)).abs() < bound, "{value}: {mean}");
        }
    }

    #[test]
    fn what_bf16_holds_stays_and_what_it_cannot_hold_becomes_no_infinity() {
        for value in [0.0, -0.0, 1.5, f32::INFINITY, f32::NEG_INFINITY, bf16::MAX.to_f32()] {
            for random in [0, 1, 0x8000, 0xffff] {
                assert_eq!(round(value, random).to_bits(), value.to_bits());
            }
        }
        assert_eq!(round(f32::MAX, 0xffff), bf16::MAX.to_f32());
        assert!(round(f32::from_bits(0x7f80_0001), 7).is_nan());
        // all bits that go, and the number that just carries
        let value = f32::from_bits(0x3f80_4000);
        assert_eq!((round(value, 0xbfff), round(value, 0xc000)), (1.0, 1.007_812_5));
    }

    #[test]
    fn any_partition_gives_the_same_and_step_seed_and_name_others() {
        let values = |rounding: TensorRounding, part: usize| {
            let mut values = vec![1.003_f32; 1000];
            for (i, chunk) in values.chunks_mut(part).enumerate() {
                rounding.round(i * part, chunk);
            }
            values
        };
        let whole = values(StochasticRounding::new(0, 5).of_tensor("a"), 1000);
        for part in [1, 3, 4, 7, 64] {
            assert_eq!(values(StochasticRounding::new(0, 5).of_tensor("a"), part), whole);
        }
        for (seed, step, name) in [(1, 5, "a"), (0, 6, "a"), (0, 5, "b")] {
            assert_ne!(values(StochasticRounding::new(seed, step).of_tensor(name), 1000), whole);
        }
    }
}
