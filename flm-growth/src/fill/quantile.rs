//! The normal distribution's quantiles as a table, computed with + − × ÷ only, so that every machine
//! with IEEE arithmetic has the same bits.

use std::sync::OnceLock;

/// Number of equally likely values that a draw can have.
pub(super) const QUANTILES: usize = 1 << 16;

/// The mid-points of 65,536 equally likely slices of the standard normal distribution, scaled to a
/// variance of exactly 1 (the raw mid-points have 0.99998): entry i is c·Φ⁻¹((i + ½)/65536).
///
/// Symmetric around 0; the outermost entries are ±4.325.
pub(super) fn normal_quantiles() -> &'static [f64; QUANTILES] {
    static TABLE: OnceLock<Box<[f64; QUANTILES]>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = Box::new([0.0; QUANTILES]);
        let step = 1.0 / QUANTILES as f64;
        let mut x = 0.0;
        let mut squares = 0.0;
        for i in 0..QUANTILES / 2 {
            // the probability between 0 and x; Newton's method from the neighbouring quantile, which is
            // far in the tail
            let p = (i as f64 + 0.5) * step;
            for _ in 0..10 {
                let density = density(x);
                let change = (half_probability(x, density) - p) / density;
                x -= change;
                if change.abs() < 1e-9 {
                    break;
                }
            }
            table[QUANTILES / 2 + i] = x;
            squares += x * x;
        }
        let scale = 1.0 / (squares / (QUANTILES / 2) as f64).sqrt();
        for i in 0..QUANTILES / 2 {
            let value = table[QUANTILES / 2 + i] * scale;
            table[QUANTILES / 2 + i] = value;
            table[QUANTILES / 2 - 1 - i] = -value;
        }
        table
    })
}

/// The standard normal density at `x`.
fn density(x: f64) -> f64 {
    const INVERSE_SQRT_TAU: f64 = 0.398_942_280_401_432_7;
    // e^−y = 2^−k · e^(k·ln 2 − y) and a Taylor series; not the system's exp, which differs between
    // systems
    let y = 0.5 * x * x;
    let k = (y / std::f64::consts::LN_2).round();
    let r = k * std::f64::consts::LN_2 - y;
    let mut term = 1.0;
    let mut sum = 1.0;
    for n in 1..20 {
        term *= r / f64::from(n);
        sum += term;
    }
    for _ in 0..k as u32 {
        sum *= 0.5;
    }
    INVERSE_SQRT_TAU * sum
}

/// Φ(x) − ½ for x ≥ 0: φ(x)·(x + x³/3 + x⁵/(3·5) + x⁷/(3·5·7) + …), all terms of one sign
/// (Marsaglia, "Evaluating the Normal Distribution", 2004).
fn half_probability(x: f64, density: f64) -> f64 {
    let square = x * x;
    let mut term = x;
    let mut sum = x;
    let mut odd = 3.0;
    while term > sum * 1e-17 {
        term *= square / odd;
        sum += term;
        odd += 2.0;
    }
    density * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_of_the_published_tables() {
        for (x, p) in
            [(1.0, 0.841_344_746_068_543), (1.959_963_984_540_054, 0.975), (3.0, 0.998_650_101_968_37)]
        {
            let got = 0.5 + half_probability(x, density(x));
            assert!((got - p).abs() < 1e-14, "{x}: {got}");
        }
    }

    #[test]
    fn table_is_symmetric_increasing_and_of_unit_variance() {
        let table = normal_quantiles();
        assert!(table.windows(2).all(|w| w[0] < w[1]));
        assert!((0..QUANTILES).all(|i| table[i] == -table[QUANTILES - 1 - i]));
        let variance = table.iter().map(|x| x * x).sum::<f64>() / QUANTILES as f64;
        assert!((variance - 1.0).abs() < 1e-12, "{variance}");
        let kurtosis = table.iter().map(|x| x.powi(4)).sum::<f64>() / QUANTILES as f64;
        assert!((kurtosis - 3.0).abs() < 3e-3, "{kurtosis}");
        // Python's statistics.NormalDist().inv_cdf, divided by the root of the variance
        for (i, expected) in [
            (32768, 1.9124249985274426e-05),
            (40000, 0.2802581763131904),
            (60000, 1.3756638375126389),
            (65000, 2.4012073155901916),
            (65535, 4.3249628990859845),
        ] {
            assert!((table[i] / expected - 1.0).abs() < 1e-11, "{i}: {}", table[i]);
        }
    }
}
