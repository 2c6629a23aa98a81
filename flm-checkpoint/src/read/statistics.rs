//! What values tensors hold: extremes, mean, deviation, and whether any is not a number.

use crate::dtype::Dtype;
use rayon::prelude::*;

use crate::dtype::cast;
use crate::error::Result;
use crate::read::{Checkpoint, TensorEntry};

/// Bytes that are read at a time.
const CHUNK: u64 = 1 << 20;
/// Bytes that tell nearly always that a tensor is not zero.
const FIRST: u64 = 4096;
/// Places at which a sample is taken.
const PLACES: u64 = 16;

/// Statistics of values; `min` to `std` are of the finite ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ValueStatistics {
    /// How many were looked at.
    pub count: u64,
    /// How many are not a number.
    pub nan: u64,
    /// How many are infinite.
    pub infinite: u64,
    /// How many are zero.
    pub zero: u64,
    /// The smallest; +∞ where there is none.
    pub min: f64,
    /// The largest; -∞ where there is none.
    pub max: f64,
    /// The mean; 0 where there is none.
    pub mean: f64,
    /// Sum of the squared distances from the mean.
    squares: f64,
}

impl Default for ValueStatistics {
    /// Of no values.
    fn default() -> Self {
        let (min, max) = (f64::INFINITY, f64::NEG_INFINITY);
        Self { count: 0, nan: 0, infinite: 0, zero: 0, min, max, mean: 0.0, squares: 0.0 }
    }
}

impl ValueStatistics {
    /// The standard deviation of the finite values.
    pub fn std(&self) -> f64 {
        if self.finite() == 0 { 0.0 } else { (self.squares / self.finite() as f64).sqrt() }
    }

    /// How many are finite.
    pub fn finite(&self) -> u64 {
        self.count - self.nan - self.infinite
    }

    /// The statistics of these values and others together.
    pub fn merge(&self, other: &Self) -> Self {
        let (a, b) = (self.finite() as f64, other.finite() as f64);
        // Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm", 1979.
        let (share, delta) = (if a + b > 0.0 { b / (a + b) } else { 0.0 }, other.mean - self.mean);
        Self {
            count: self.count + other.count,
            nan: self.nan + other.nan,
            infinite: self.infinite + other.infinite,
            zero: self.zero + other.zero,
            min: self.min.min(other.min),
            max: self.max.max(other.max),
            mean: self.mean + delta * share,
            squares: self.squares + other.squares + delta * delta * a * share,
        }
    }

    fn of(values: &[f64]) -> Self {
        let mut found = Self { count: values.len() as u64, ..Self::default() };
        let mut sum = 0.0;
        for &x in values {
            if x.is_finite() {
                found.min = found.min.min(x);
                found.max = found.max.max(x);
                found.zero += u64::from(x == 0.0);
                sum += x;
            } else {
                found.nan += u64::from(x.is_nan());
                found.infinite += u64::from(x.is_infinite());
            }
        }
        if found.finite() > 0 {
            found.mean = sum / found.finite() as f64;
            found.squares = values.iter().filter(|x| x.is_finite()).map(|x| (x - found.mean).powi(2)).sum();
        }
        found
    }
}

/// What stands in the rows of a matrix that no token has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaddingRows {
    /// How many there are.
    pub rows: u64,
    /// How many of them are zero throughout.
    pub zero: u64,
    /// Whether all of them are the same.
    pub equal: bool,
}

impl Checkpoint {
    /// Matrices and gains that are zero throughout, in the order of [`Checkpoint::entries`]: what a file that
    /// was made in full length and never filled has. A layer whose `o_proj` and `down_proj` alone are zero is
    /// none of them: it adds nothing, as growth and LLaMA Pro begin new layers.
    ///
    /// Of tensors that begin with something else little is read.
    ///
    /// # Errors
    /// Where weights cannot be read.
    pub fn zero_tensors(&self) -> Result<Vec<&str>> {
        let zero: Vec<bool> =
            self.entries.par_iter().map(|entry| self.is_zero(entry)).collect::<Result<_>>()?;
        let names: Vec<&str> =
            self.entries.iter().zip(zero).filter(|(_, zero)| *zero).map(|(e, _)| e.name.as_str()).collect();
        const BRANCHES: [&str; 2] = ["self_attn.o_proj.weight", "mlp.down_proj.weight"];
        let of_layer = |name: &str| {
            let layer = name.split_inclusive('.').take(3).collect::<String>();
            names.iter().filter(|other| other.starts_with(&layer)).count()
        };
        let new_layer = |name: &str| {
            BRANCHES.iter().any(|branch| name.ends_with(branch)) && {
                let other =
                    BRANCHES.map(|branch| name.split_inclusive('.').take(3).collect::<String>() + branch);
                other.iter().all(|branch| names.contains(&branch.as_str()))
                    && of_layer(name) == BRANCHES.len()
            }
        };
        Ok(names.iter().copied().filter(|name| !new_layer(name)).collect())
    }

    fn is_zero(&self, entry: &TensorEntry) -> Result<bool> {
        let mut bytes = vec![0u8; FIRST.min(entry.nbytes) as usize];
        let mut at = 0;
        while at < entry.nbytes {
            bytes.resize(bytes.len().min((entry.nbytes - at) as usize), 0);
            self.read_at(entry, at, &mut bytes)?;
            if bytes.iter().any(|&byte| byte != 0) {
                return Ok(false);
            }
            at += bytes.len() as u64;
            bytes.resize(CHUNK as usize, 0);
        }
        Ok(entry.nbytes > 0)
    }

    /// Statistics of every tensor's values, in the order of [`Checkpoint::entries`].
    ///
    /// With `sample`, of about so many bytes of each tensor, at places spread over it. `progress` is told
    /// the bytes that were read, from several threads.
    pub fn value_statistics(
        &self,
        sample: Option<u64>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Vec<ValueStatistics>> {
        self.entries.par_iter().map(|entry| self.statistics_of(entry, sample, progress)).collect()
    }

    fn statistics_of(
        &self,
        entry: &TensorEntry,
        sample: Option<u64>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<ValueStatistics> {
        let width = entry.dtype.size_in_bytes() as u64;
        // Starts of pieces, and their length: whole elements.
        let (step, len) = match sample.filter(|&bytes| bytes < entry.nbytes) {
            Some(bytes) => {
                let step = (entry.nbytes / PLACES).next_multiple_of(width).max(width);
                (step, (bytes / PLACES).next_multiple_of(width).clamp(width, step))
            }
            None => (CHUNK, CHUNK),
        };
        let mut found = ValueStatistics::default();
        let mut at = 0;
        while at < entry.nbytes {
            let bytes = len.min(entry.nbytes - at);
            found = found.merge(&ValueStatistics::of(&self.values(entry, at, bytes)?));
            progress(bytes);
            at += step;
        }
        Ok(found)
    }

    /// The elements in `len` bytes from byte `at`.
    fn values(&self, entry: &TensorEntry, at: u64, len: u64) -> Result<Vec<f64>> {
        let (mut bytes, mut wide) = (vec![0; len as usize], Vec::new());
        self.read_at(entry, at, &mut bytes)?;
        cast(entry.dtype, Dtype::F64, &bytes, &mut wide);
        Ok(wide.as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b)).collect())
    }

    /// The rows before `end` of the matrix `entry` that are zero throughout.
    pub fn zero_rows(&self, entry: &TensorEntry, end: u64) -> Result<Vec<u64>> {
        let rows = entry.shape.first().map_or(0, |&n| n as u64);
        let row = entry.nbytes / rows.max(1);
        let zero = |&index: &u64| -> Result<Option<u64>> {
            let values = self.values(entry, index * row, row)?;
            Ok(values.iter().all(|&x| x == 0.0).then_some(index))
        };
        let all: Vec<u64> = (0..rows.min(end)).collect();
        let found: Vec<Option<u64>> = all.par_iter().map(zero).collect::<Result<_>>()?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Looks at the rows from `first` on of the matrix `entry`, all of them.
    pub fn padding_rows(&self, entry: &TensorEntry, first: u64) -> Result<PaddingRows> {
        let rows = entry.shape.first().map_or(0, |&n| n as u64);
        let row = entry.nbytes / rows.max(1);
        let mut found = PaddingRows { rows: rows.saturating_sub(first), zero: 0, equal: true };
        let mut model: Option<Vec<f64>> = None;
        for index in first..rows {
            let values = self.values(entry, index * row, row)?;
            found.zero += u64::from(values.iter().all(|&x| x == 0.0));
            found.equal &= *model.get_or_insert_with(|| values.clone()) == values;
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::tensor_id::TensorSpec;
    use crate::write::writer::Writer;
    use flm_tests::files::fixture;

    /// A checkpoint of the shape of a fixture, whose embedding and norm hold these values.
    fn checkpoint(dir: &Path, embedding: &[f32], norm: &[f64]) -> Checkpoint {
        let src = Checkpoint::open(&fixture("models/teleflm-f32-st")).unwrap();
        let spec =
            |name: &str, dtype, shape: &[usize]| TensorSpec { name: name.into(), dtype, shape: shape.into() };
        let specs = [
            spec("embedding", Dtype::F32, &[embedding.len() / 4, 4]),
            spec("norm", Dtype::F64, &[norm.len()]),
        ];
        let writer = Writer::create(dir, &specs, u64::MAX).unwrap();
        let bytes: Vec<u8> = embedding.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.write_at("embedding", 0, &bytes).unwrap();
        let bytes: Vec<u8> = norm.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.write_at("norm", 0, &bytes).unwrap();
        writer.finish(src.config()).unwrap();
        Checkpoint::open(dir).unwrap()
    }

    #[test]
    fn statistics_are_those_of_the_values() {
        let dir = tempfile::tempdir().unwrap();
        let count = 3 << 18; // three chunks of f32
        let mut values: Vec<f32> = (0..count).map(|i| (i % 1000) as f32 + 1e6).collect();
        values[5] = f32::NAN;
        values[count - 1] = f32::INFINITY;
        values[count / 2] = f32::NEG_INFINITY;
        values[77] = 0.0;
        let c = checkpoint(&dir.path().join("c"), &values, &[1.0, 2.0, 4.5]);
        let read = AtomicU64::new(0);
        let add = |n| {
            read.fetch_add(n, Ordering::Relaxed);
        };
        let found = c.value_statistics(None, &add).unwrap();
        assert_eq!(read.load(Ordering::Relaxed), (count * 4 + 24) as u64);
        let e = found[0];
        assert_eq!((e.count, e.nan, e.infinite, e.zero), (count as u64, 1, 2, 1));
        assert_eq!((e.min, e.max), (0.0, 1_000_999.0));
        let finite: Vec<f64> = values.iter().filter(|x| x.is_finite()).map(|&x| f64::from(x)).collect();
        let mean = finite.iter().sum::<f64>() / finite.len() as f64;
        let std = (finite.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / finite.len() as f64).sqrt();
        assert!((e.mean / mean - 1.0).abs() < 1e-12, "{} {mean}", e.mean);
        assert!((e.std() / std - 1.0).abs() < 1e-9, "{} {std}", e.std());
        let n = found[1];
        assert_eq!((n.count, n.min, n.max, n.mean), (3, 1.0, 4.5, 2.5));
        assert!((n.std() - (13f64 / 6.0).sqrt()).abs() < 1e-15);
        // Of nothing, and of nothing finite.
        let none = ValueStatistics::of(&[f64::NAN]).merge(&ValueStatistics::default());
        assert_eq!((none.count, none.nan, none.mean, none.std()), (1, 1, 0.0, 0.0));
    }

    #[test]
    fn a_sample_is_spread_over_the_tensor() {
        let dir = tempfile::tempdir().unwrap();
        let values: Vec<f32> = (0..1 << 16).map(|i| i as f32).collect();
        let c = checkpoint(&dir.path().join("c"), &values, &[1.0]);
        let read = AtomicU64::new(0);
        let add = |n| {
            read.fetch_add(n, Ordering::Relaxed);
        };
        let found = c.value_statistics(Some(4096), &add).unwrap();
        assert_eq!((found[0].count, read.into_inner()), (1024, 4096 + 8));
        assert_eq!((found[0].min, found[0].max), (0.0, f64::from((15 << 12) + 63)));
        // A tensor that is smaller than the sample is read whole.
        assert_eq!(found[1].count, 1);
    }

    #[test]
    fn padding_rows_are_zero_or_equal_or_neither() {
        let dir = tempfile::tempdir().unwrap();
        let cases: [(&str, [f32; 8], u64, bool); 3] = [
            ("zero", [0.0, -0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 2, true),
            ("equal", [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0], 0, true),
            ("neither", [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0], 1, false),
        ];
        for (name, tail, zero, equal) in cases {
            let values: Vec<f32> = [9.0; 12].into_iter().chain(tail).collect();
            let c = checkpoint(&dir.path().join(name), &values, &[1.0]);
            let found = c.padding_rows(c.entry("embedding").unwrap(), 3).unwrap();
            assert_eq!(found, PaddingRows { rows: 2, zero, equal }, "{name}");
            let end = |end| c.zero_rows(c.entry("embedding").unwrap(), end).unwrap();
            assert_eq!((end(u64::MAX).len() as u64, end(3).len()), (zero, 0), "{name}");
        }
    }
}
