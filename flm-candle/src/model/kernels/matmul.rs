//! Products of strided matrices on a CPU, behind an interface that checks its bounds.

use rayon::prelude::*;

/// A matrix in a slice: element `(i, j)` is at `i · row_stride + j · column_stride`.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A matrix whose rows lie `row_stride` apart.
    pub fn new(data: &'a [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        let matrix = Self { data, rows, columns, row_stride, column_stride: 1 };
        assert!(rows == 0 || columns == 0 || (rows - 1) * row_stride + columns <= data.len());
        matrix
    }

    /// Row `i`, of a matrix that is not transposed.
    pub fn row(&self, i: usize) -> &'a [T] {
        assert_eq!(self.column_stride, 1, "a row of a transposed matrix is not a slice");
        &self.data[i * self.row_stride..][..self.columns]
    }

    /// `len` rows from row `start` on.
    pub fn rows(self, start: usize, len: usize) -> Self {
        Self::new(&self.data[start * self.row_stride..], len, self.columns, self.row_stride)
    }

    /// The same values, read as the transpose.
    pub fn t(self) -> Self {
        let (rows, columns) = (self.columns, self.rows);
        Self { rows, columns, row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }
}

/// What to do with the elements that a product replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Forget them.
    Replace,
    /// Add the product to them.
    Add,
}

/// f32 and f64.
pub trait Real: candle_core::WithDType + std::ops::Neg<Output = Self> {
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// −∞.
    const NEG_INFINITY: Self;
    /// The nearest value of the type.
    fn of(value: f64) -> Self;
    /// eˣ, in a form that vectorises.
    fn exponential(self) -> Self;
    /// Whether it is NaN.
    fn is_not_a_number(self) -> bool;
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = Self::NEG_INFINITY;
    fn of(value: f64) -> Self {
        value as Self
    }
    #[inline(always)]
    fn exponential(self) -> Self {
        // 2^n · e^r with |r| ≤ ln 2 / 2; the polynomial of Cephes' expf, within 2 units in the last place
        let x = self.clamp(-87.3, 88.0);
        let n = (x * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
        let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
        let p = 1.987_569_1e-4;
        let p = p * r + 1.398_199_9e-3;
        let p = p * r + 8.333_452e-3;
        let p = p * r + 4.166_579_6e-2;
        let p = p * r + 1.666_666_5e-1;
        let p = p * r + 0.5;
        let y = p * (r * r) + r + 1.0;
        let scale = Self::from_bits((((n as i32) + 127) << 23) as u32);
        // below the clamp the result is 0 and NaN stays NaN
        if self < -87.3 {
            0.0
        } else if self <= 88.0 {
            y * scale
        } else {
            self * Self::INFINITY
        }
    }
    fn is_not_a_number(self) -> bool {
        self.is_nan()
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = Self::NEG_INFINITY;
    fn of(value: f64) -> Self {
        value
    }
    fn exponential(self) -> Self {
        self.exp()
    }
    fn is_not_a_number(self) -> bool {
        self.is_nan()
    }
}

/// `target ← lhs · rhs`, or `target += lhs · rhs`; rows of the target lie `row_stride` apart.
///
/// `threads` is the number of threads to share the work among; 1 stays on the calling thread.
pub fn multiply<T: Real>(
    target: &mut [T],
    row_stride: usize,
    lhs: Matrix<'_, T>,
    rhs: Matrix<'_, T>,
    output: Output,
    threads: usize,
) {
    let (m, k, n) = (lhs.rows, lhs.columns, rhs.columns);
    assert_eq!(k, rhs.rows, "the inner dimensions of a product");
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * row_stride + n <= target.len(), "the target of a product is too short");
    if k == 0 {
        if output == Output::Replace {
            target.par_chunks_mut(row_stride.max(n)).for_each(|row| row[..n].fill(T::ZERO));
        }
        return;
    }
    let read = output == Output::Add;
    let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    // SAFETY: `Matrix::new` and the assertions above keep every element of the three matrices inside
    // its slice; `target` is borrowed mutably, so it overlaps neither operand.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            target.as_mut_ptr(),
            1,
            row_stride as isize,
            read,
            lhs.data.as_ptr(),
            lhs.column_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.column_stride as isize,
            rhs.row_stride as isize,
            if read { T::ONE } else { T::ZERO },
            T::ONE,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_products_replace_and_add() {
        let a: Vec<f64> = (0..12).map(f64::from).collect(); // 3 × 4
        let b: Vec<f64> = (0..10).map(|i| f64::from(i) - 4.0).collect(); // 2 × 4 in rows of 5
        let (lhs, rhs) = (Matrix::new(&a, 3, 4, 4), Matrix::new(&b, 2, 4, 5).t());
        let mut target = vec![1.0; 3 * 3];
        multiply(&mut target, 3, lhs, rhs, Output::Replace, 1);
        let expected = |i: usize, j: usize| (0..4).map(|k| a[i * 4 + k] * b[j * 5 + k]).sum::<f64>();
        for i in 0..3 {
            assert_eq!(target[i * 3..i * 3 + 3], [expected(i, 0), expected(i, 1), 1.0]);
        }
        multiply(&mut target, 3, lhs, rhs, Output::Add, 2);
        assert_eq!(target[3..6], [2.0 * expected(1, 0), 2.0 * expected(1, 1), 1.0]);
    }

    #[test]
    fn the_exponential_is_exact_to_rounding() {
        for i in -9000..9000 {
            let x = i as f32 * 0.01;
            let (got, expected) = (f64::from(x.exponential()), f64::from(x).exp());
            if (-87.3..88.0).contains(&x) {
                assert!((got / expected - 1.0).abs() < 2e-7, "{x}: {got} {expected}");
            }
        }
        assert_eq!(f32::NEG_INFINITY.exponential(), 0.0);
        assert!(f32::NAN.exponential().is_nan());
        assert_eq!(0f32.exponential(), 1.0);
    }
}
