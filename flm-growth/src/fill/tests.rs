//! The drawn numbers: moments, quantiles, correlations.

use super::*;

/// Elements `first..first + n` of a tensor, as f64.
fn draw(seed: u64, name: &str, first: u64, n: usize) -> Vec<f64> {
    let fill = NormalFill::new(seed, name, Dtype::F64, 1.0).unwrap();
    let mut bytes = vec![0; n * 8];
    fill.write(first, &mut bytes);
    bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
}

fn correlation(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>() / a.len().min(b.len()) as f64
}

const N: usize = 1 << 20;
/// Five standard errors of a mean of N independent values of variance 1.
const FIVE_SIGMA: f64 = 5.0 / 1024.0;
const TENSOR: &str = "model.layers.3.self_attn.q_proj.weight";

#[test]
fn moments_are_those_of_the_normal_distribution() {
    for (seed, name) in [(0, TENSOR), (1, TENSOR), (u64::MAX, "lm_head.weight")] {
        let x = draw(seed, name, 0, N);
        let mean = |power: i32| x.iter().map(|v| v.powi(power)).sum::<f64>() / N as f64;
        // variances of the sample moments of a normal: 1, 2, 15, 96
        assert!(mean(1).abs() < FIVE_SIGMA, "mean {}", mean(1));
        assert!((mean(2) - 1.0).abs() < FIVE_SIGMA * 2f64.sqrt(), "variance {}", mean(2));
        assert!(mean(3).abs() < FIVE_SIGMA * 15f64.sqrt(), "third moment {}", mean(3));
        assert!((mean(4) - 3.0).abs() < FIVE_SIGMA * 96f64.sqrt() + 3e-3, "kurtosis {}", mean(4));
        assert!(x.iter().all(|v| v.abs() < 4.34));
    }
}

#[test]
fn every_quantile_is_as_likely_as_the_next() {
    // chi-square over 4096 classes in each of the four lanes: mean 4095, standard deviation 90.5
    for seed in 0..3 {
        let mixer = Mixer::new(seed, TENSOR);
        for lane in 0..4 {
            let mut counts = vec![0f64; 4096];
            for counter in 0..N as u64 {
                counts[(mixer.mix(counter) >> (16 * lane + 4)) as usize & 4095] += 1.0;
            }
            let expected = N as f64 / 4096.0;
            let chi: f64 = counts.iter().map(|c| (c - expected) * (c - expected) / expected).sum();
            assert!((4095.0 - chi).abs() < 5.0 * 90.5, "lane {lane}: {chi}");
        }
    }
}

#[test]
fn pairs_of_neighbours_fill_the_plane_evenly() {
    // (uᵢ, uᵢ₊₁) in 64 × 64 classes, for each pair of lanes: finds dependence that correlation misses
    let mixer = Mixer::new(5, TENSOR);
    for lane in 0..4u32 {
        let mut counts = vec![0f64; 4096];
        for counter in 0..N as u64 {
            let (a, b) = (mixer.mix(counter), mixer.mix(counter + u64::from(lane == 3)));
            let (u, v) = ((a >> (16 * lane + 10)) & 63, (b >> (16 * ((lane + 1) % 4) + 10)) & 63);
            counts[(u * 64 + v) as usize] += 1.0;
        }
        let expected = N as f64 / 4096.0;
        let chi: f64 = counts.iter().map(|c| (c - expected) * (c - expected) / expected).sum();
        assert!((4095.0 - chi).abs() < 5.0 * 90.5, "lane {lane}: {chi}");
    }
}

#[test]
fn neighbours_rows_and_squares_are_uncorrelated() {
    let x = draw(11, TENSOR, 0, N);
    let squares: Vec<f64> = x.iter().map(|v| (v * v - 1.0) / 2f64.sqrt()).collect();
    for lag in [1, 2, 3, 4, 5, 8, 16, 120, 4096, 8192, 10240, 65536] {
        let r = correlation(&x[..N - lag], &x[lag..]);
        assert!(r.abs() < FIVE_SIGMA * 1.05, "lag {lag}: {r}");
        let r = correlation(&squares[..N - lag], &squares[lag..]);
        assert!(r.abs() < FIVE_SIGMA * 1.05, "squares, lag {lag}: {r}");
    }
}

#[test]
fn tensors_and_seeds_are_uncorrelated() {
    let x = draw(7, TENSOR, 0, N);
    for (seed, name) in [
        (7, "model.layers.3.self_attn.k_proj.weight"),
        (7, "model.layers.4.self_attn.q_proj.weight"),
        (7, "model.layers.13.self_attn.q_proj.weight"),
        (8, TENSOR),
        (6, TENSOR),
        (7 + (1 << 32), TENSOR),
        (7 | 1 << 63, TENSOR),
    ] {
        let y = draw(seed, name, 0, N);
        for (a, b) in [(&x[..], &y[..]), (&x[1..], &y[..]), (&x[..], &y[4..])] {
            let r = correlation(a, b);
            assert!(r.abs() < FIVE_SIGMA, "{seed} {name}: {r}");
        }
    }
}

#[test]
fn overlapping_counters_of_two_tensors_do_not_repeat() {
    let (a, b) = (Mixer { start: 9, key: 1 << 40 | 77 }, Mixer { start: 9, key: 0x1234_5678_9abc_def0 });
    let table = normal_quantiles();
    let value = |m: Mixer, i: u64, lane: u32| table[(m.mix(i) >> (16 * lane)) as u16 as usize];
    for lane in 0..4 {
        let r = (0..N as u64).map(|i| value(a, i, lane) * value(b, i, lane)).sum::<f64>() / N as f64;
        assert!(r.abs() < FIVE_SIGMA, "lane {lane}: {r}");
    }
}

#[test]
fn flipping_a_counter_bit_flips_half_of_the_bits() {
    let mixer = Mixer::new(3, TENSOR);
    for bit in 0..40 {
        let flips: u32 =
            (0..4096).map(|i| (mixer.mix(i * 977) ^ mixer.mix((i * 977) ^ (1 << bit))).count_ones()).sum();
        let mean = f64::from(flips) / 4096.0;
        assert!((mean - 32.0).abs() < 0.5, "bit {bit}: {mean}");
    }
}

#[test]
fn any_range_is_a_part_of_the_whole() {
    for precision in [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F64] {
        let fill = NormalFill::new(1, "t", precision, 0.02).unwrap();
        let size = precision.size_in_bytes();
        let mut whole = vec![0; 100 * size];
        fill.write(0, &mut whole);
        for first in 0..100 {
            for end in first..=100 {
                let mut part = vec![0; (end - first) * size];
                fill.write(first as u64, &mut part);
                assert_eq!(part, whole[first * size..end * size], "{precision} {first}..{end}");
            }
        }
    }
}

#[test]
fn the_std_scales_before_rounding_and_is_reached_in_every_dtype() {
    for precision in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        let fill = NormalFill::new(1, "t", precision, 0.02).unwrap();
        let size = precision.size_in_bytes();
        let mut bytes = vec![0; N * size];
        fill.write(0, &mut bytes);
        let wide = draw(1, "t", 0, N);
        let mut squares = 0.0;
        for (got, wide) in bytes.chunks_exact(size).zip(wide) {
            let got = precision.decode(got);
            assert!((got - wide * 0.02).abs() <= (wide * 0.02).abs() * precision.unit_roundoff() + 1e-7);
            squares += got * got;
        }
        let std = (squares / N as f64).sqrt();
        assert!((std / 0.02 - 1.0).abs() < 0.005, "{precision}: {std}");
    }
    assert!(draw(1, "t", 0, 4).iter().all(|v| v.is_finite()));
    let mut zeros = vec![1; 8];
    NormalFill::new(1, "t", Dtype::F32, 0.0).unwrap().write(0, &mut zeros);
    assert!(zeros.chunks(4).all(|b| Dtype::F32.decode(b) == 0.0));
}

#[test]
fn a_std_that_is_no_number_is_refused() {
    for std in [f64::NAN, -1.0, f64::INFINITY] {
        assert!(matches!(NormalFill::new(0, "t", Dtype::F32, std), Err(GrowthError::Std(_))));
    }
}

#[test]
fn a_std_whose_values_become_infinite_is_refused_by_dtype() {
    for (precision, most) in [(Dtype::F16, 1.5e4), (Dtype::BF16, 7e37), (Dtype::F32, 7e37)] {
        let mut bytes = vec![0; 1 << 16];
        NormalFill::new(1, "t", precision, most).unwrap().write(0, &mut bytes);
        assert!(
            bytes.chunks(precision.size_in_bytes()).all(|b| precision.decode(b).is_finite()),
            "{precision}"
        );
        let error = NormalFill::new(1, "t", precision, most * 1.2).unwrap_err().to_string();
        assert!(error.contains(&precision.to_string()) && error.contains("4.33"), "{error}");
    }
    assert!(NormalFill::new(1, "t", Dtype::F64, 1e39).is_ok());
    assert!(NormalFill::new(1, "t", Dtype::F64, 1e308).is_err());
}

#[test]
fn known_answers_of_an_independent_implementation() {
    // SplitMix64's published first output for seed 0
    assert_eq!(Mixer { start: 0, key: 0 }.mix(1), 0xe220_a839_7b1d_cdaf);
    // Python: blake3 1.0 for the keys, whole-number arithmetic for the mix, statistics.NormalDist
    // for the quantiles
    let mixer = Mixer::new(7, "lm_head.weight");
    assert_eq!((mixer.start, mixer.key), (0x0948_84ae_6924_5e5c, 0xb3f0_ee81_0027_a4bd));
    for (index, expected) in [
        (0, -0.44977245867977683),
        (1, 0.32381776599889545),
        (2, 0.4454600327055398),
        (3, -0.5651498998655232),
        (4, -2.252744044178133),
        (1_000_003, -0.5899598810802851),
        (2_000_000_000_002, -1.8606950674274736),
    ] {
        let got = draw(7, "lm_head.weight", index, 1)[0];
        assert!((got - expected).abs() < 1e-13, "{index}: {got}");
    }
}

#[test]
fn bits_are_the_same_on_every_machine() {
    // recorded once; a difference means that checkpoints can no longer be reproduced
    for (precision, digest) in [
        (Dtype::BF16, "b30e7f069cecb98d"),
        (Dtype::F32, "baccb8bd5e81255d"),
        (Dtype::F64, "7a041bc5c5917d21"),
    ] {
        let mut bytes = vec![0; 1_000_000 * precision.size_in_bytes()];
        NormalFill::new(1, TENSOR, precision, 0.02).unwrap().write(12345, &mut bytes);
        assert_eq!(blake3::hash(&bytes).to_hex()[..16], *digest, "{precision}");
    }
}
