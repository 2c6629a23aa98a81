//! The standard deviation of a stored tensor, from a fixed sample, and the mean of its rows.

use crate::error::{GrowthError, Result};
use flm_checkpoint::Dtype;

/// The most elements of a tensor that [`sample_std`] looks at.
pub(crate) const SAMPLE_SIZE: u64 = 1 << 20;
/// Elements that are read in one piece.
const BLOCK: u64 = 4096;

/// Standard deviation of a tensor of `elements` values: of all of them up to [`SAMPLE_SIZE`], else of
/// 256 blocks of 4096 at even distances from the first element to the last.
///
/// `read` fills a buffer from a byte offset of the tensor. The sample and the order of summation are
/// fixed, so the result is the same everywhere.
///
/// # Errors
/// [`GrowthError::NotFinite`] if the sample holds NaN or infinities, and whatever `read` returns.
pub(crate) fn sample_std(
    name: &str,
    precision: Dtype,
    elements: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<()>,
) -> Result<f64> {
    let size = precision.size_in_bytes() as u64;
    let blocks: Vec<(u64, u64)> = if elements <= SAMPLE_SIZE {
        (0..elements).step_by(BLOCK as usize).map(|first| (first, BLOCK.min(elements - first))).collect()
    } else {
        let n = SAMPLE_SIZE / BLOCK;
        let last = u128::from(elements - BLOCK);
        (0..n).map(|i| ((last * u128::from(i) / u128::from(n - 1)) as u64, BLOCK)).collect()
    };
    let mut bytes = vec![0; (BLOCK * size) as usize];
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for (first, length) in blocks {
        let bytes = &mut bytes[..(length * size) as usize];
        read(first * size, bytes)?;
        for value in bytes.chunks_exact(size as usize).map(|b| precision.decode(b)) {
            sum += value;
            squares += value * value;
        }
        count += length as f64;
    }
    if !(sum.is_finite() && squares.is_finite()) {
        return Err(GrowthError::NotFinite(name.into()));
    }
    if count == 0.0 {
        return Ok(0.0);
    }
    let mean: f64 = sum / count;
    Ok((squares / count - mean * mean).max(0.0).sqrt())
}

/// The mean of a tensor's first `rows` rows of `cols` values, added up in their order.
///
/// # Errors
/// [`GrowthError::NotFinite`] if one holds NaN or infinities, and whatever `read` returns.
pub(crate) fn mean_row(
    name: &str,
    precision: Dtype,
    cols: usize,
    rows: usize,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<()>,
) -> Result<Vec<f64>> {
    let row = cols * precision.size_in_bytes();
    let mut bytes = vec![0; row * (BLOCK as usize / cols.max(1)).clamp(1, rows.max(1))];
    let mut sum = vec![0.0; cols];
    let length = (rows * row) as u64;
    let mut at = 0;
    while at < length {
        let now = (length - at).min(bytes.len() as u64) as usize;
        read(at, &mut bytes[..now])?;
        for row in bytes[..now].chunks_exact(row) {
            for (sum, value) in sum.iter_mut().zip(row.chunks_exact(precision.size_in_bytes())) {
                *sum += precision.decode(value);
            }
        }
        at += now as u64;
    }
    if !sum.iter().all(|s| s.is_finite()) {
        return Err(GrowthError::NotFinite(name.into()));
    }
    Ok(sum.into_iter().map(|s| s / rows as f64).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tensor in memory, and the highest element that was read.
    fn sampled(values: &[f64]) -> Result<(f64, u64)> {
        let mut bytes = vec![0; values.len() * 4];
        for (slot, &value) in bytes.chunks_exact_mut(4).zip(values) {
            Dtype::F32.encode(value, slot);
        }
        let mut end = 0;
        let std = sample_std("t", Dtype::F32, values.len() as u64, |offset, out| {
            let offset = offset as usize;
            out.copy_from_slice(&bytes[offset..offset + out.len()]);
            end = end.max((offset + out.len()) as u64 / 4);
            Ok(())
        })?;
        Ok((std, end))
    }

    #[test]
    fn small_tensors_are_measured_whole() {
        assert_eq!(sampled(&[1.0, 3.0, 1.0, 3.0]).unwrap(), (1.0, 4));
        let values: Vec<f64> = (0..10_001).map(|i| f64::from(i % 2)).collect();
        let (std, end) = sampled(&values).unwrap();
        assert!((std - 0.5).abs() < 1e-6, "{std}");
        assert_eq!(end, 10_001);
    }

    #[test]
    fn large_tensors_are_sampled_from_end_to_end() {
        // a different scale in each quarter: a sample of the beginning alone would be far off
        let n = 3 << 20;
        let values: Vec<f64> =
            (0..n).map(|i| [1.0, 2.0, 3.0, 4.0][i * 4 / n] * if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let (std, end) = sampled(&values).unwrap();
        assert!((std - 7.5f64.sqrt()).abs() < 0.02, "{std}");
        assert_eq!(end, n as u64);
    }

    #[test]
    fn values_that_are_not_finite_are_an_error_with_the_tensor() {
        assert!(sampled(&[1.0, f64::NAN]).unwrap_err().to_string().contains("tensor t of the source"));
        assert!(sampled(&[f64::INFINITY]).is_err());
    }
}
