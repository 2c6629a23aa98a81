//! Sums over long slices: parallel, and the same whatever the number of threads.

use rayon::prelude::*;

/// Values that one task takes; fixed, so that sums do not depend on the number of threads.
pub(crate) const CHUNK: usize = 1 << 16;

/// Σ x², in f64.
pub(crate) fn sum_of_squares(values: &[f32]) -> f64 {
    let squares = |chunk: &[f32]| {
        let mut lanes = [0f64; 8];
        let (chunks, tail) = chunk.as_chunks::<8>();
        for eight in chunks {
            for (lane, &x) in lanes.iter_mut().zip(eight) {
                *lane += f64::from(x) * f64::from(x);
            }
        }
        lanes.iter().sum::<f64>() + tail.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
    };
    // collected first: the order of a parallel sum is not fixed
    values.par_chunks(CHUNK).map(squares).collect::<Vec<_>>().into_iter().sum()
}

/// `target += values`.
pub(crate) fn add(target: &mut [f32], values: &[f32]) {
    target.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(target, values)| {
        for (t, v) in target.iter_mut().zip(values) {
            *t += v;
        }
    });
}
