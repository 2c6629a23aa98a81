//! Differences of hidden states and logits, added up over positions.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use crate::error::Result;

/// Sums for a relative L2 difference.
#[derive(Debug, Clone, Copy, Default)]
pub struct Difference {
    squared_difference: f64,
    squared_norm: f64,
}

impl Difference {
    /// Adds the difference of `b` from `a`.
    pub fn add(&mut self, a: &[f64], b: &[f64]) {
        for (a, b) in a.iter().zip(b) {
            self.squared_difference += (a - b) * (a - b);
            self.squared_norm += a * a;
        }
    }

    /// Adds the difference of residual streams: `a`'s entries and as many of the wider `b`.
    pub fn add_streams(&mut self, a: &Tensor, b: &Tensor) -> Result<()> {
        let width = a.dim(2)?;
        let a = a.to_dtype(DType::F64)?;
        let b = b.narrow(2, 0, width)?.to_dtype(DType::F64)?;
        self.squared_difference += (&a - b)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
        self.squared_norm += a.sqr()?.sum_all()?.to_scalar::<f64>()?;
        Ok(())
    }

    /// ‖a − b‖ / ‖a‖; 0 where both are 0.
    pub fn relative(&self) -> f64 {
        if self.squared_difference == 0.0 {
            0.0
        } else {
            (self.squared_difference / self.squared_norm).sqrt()
        }
    }
}

/// What is compared of the logits.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogitMetrics {
    pub difference: Difference,
    pub max_abs: f64,
    pub sum_abs: f64,
    pub values: u64,
    /// Values of either model that are NaN or infinite.
    pub not_finite: u64,
    pub sum_kl: f64,
    pub max_kl: f64,
    pub positions: u64,
    pub same_argmax: u64,
    /// Negative log-likelihoods of the next tokens, for each model.
    pub nll: [f64; 2],
    pub predicted: u64,
    /// Of the target's rows that the source lacks: the sum of their probability over positions, the
    /// positions at which one of them is the likeliest token, and what they add to the target's `nll`.
    pub new_mass: f64,
    pub new_wins: u64,
    pub new_nll: f64,
}

impl LogitMetrics {
    /// Adds positions of `vocab` logits each; `next(i)` is the token that follows position i.
    pub fn add(&mut self, a: &[f64], b: &[f64], vocab: usize, next: impl Fn(usize) -> Option<u32> + Sync) {
        let positions: Vec<Self> = (a.par_chunks_exact(vocab).zip(b.par_chunks_exact(vocab)).enumerate())
            .map(|(i, (a, b))| Self::of_position(a, b, next(i)))
            .collect();
        // in order: the sums are the same for any number of threads
        positions.iter().for_each(|p| self.merge(p));
    }

    /// Adds what `rows` new rows have in the same positions: `b` as in [`Self::add`], and theirs.
    pub fn add_new_rows(
        &mut self,
        b: &[f64],
        vocab: usize,
        new: &[f64],
        rows: usize,
        next: impl Fn(usize) -> Option<u32>,
    ) {
        for (i, (b, new)) in b.chunks_exact(vocab).zip(new.chunks_exact(rows)).enumerate() {
            let (old, added) = (log_total(b), log_total(new));
            let all = log_total(&[old, added]);
            self.not_finite += new.iter().filter(|v| !v.is_finite()).count() as u64;
            self.new_mass += (added - all).exp();
            self.new_wins += u64::from(new[argmax(new)] > b[argmax(b)]);
            if next(i).is_some_and(|n| (n as usize) < vocab) {
                self.new_nll += all - old;
            }
        }
    }

    fn of_position(a: &[f64], b: &[f64], next: Option<u32>) -> Self {
        let mut m = Self { positions: 1, values: a.len() as u64, ..Self::default() };
        m.difference.add(a, b);
        for (a, b) in a.iter().zip(b) {
            let difference = (a - b).abs();
            m.max_abs = m.max_abs.max(difference);
            m.sum_abs += difference;
            m.not_finite += u64::from(!a.is_finite()) + u64::from(!b.is_finite());
        }
        let (log_a, log_b) = (log_total(a), log_total(b));
        // Σ p·(log p − log q); rounding can take a sum of 0 below it
        let kl: f64 = a.iter().zip(b).map(|(a, b)| (a - log_a).exp() * ((a - log_a) - (b - log_b))).sum();
        m.sum_kl = kl.max(0.0);
        m.max_kl = m.sum_kl;
        m.same_argmax = u64::from(argmax(a) == argmax(b));
        if let Some((a, b)) = next.and_then(|n| Some((a.get(n as usize)?, b.get(n as usize)?))) {
            m.nll = [log_a - a, log_b - b];
            m.predicted = 1;
        }
        m
    }

    fn merge(&mut self, other: &Self) {
        self.difference.squared_difference += other.difference.squared_difference;
        self.difference.squared_norm += other.difference.squared_norm;
        self.max_abs = self.max_abs.max(other.max_abs);
        self.sum_abs += other.sum_abs;
        self.values += other.values;
        self.not_finite += other.not_finite;
        self.sum_kl += other.sum_kl;
        self.max_kl = self.max_kl.max(other.max_kl);
        self.positions += other.positions;
        self.same_argmax += other.same_argmax;
        self.nll[0] += other.nll[0];
        self.nll[1] += other.nll[1];
        self.predicted += other.predicted;
        self.new_mass += other.new_mass;
        self.new_wins += other.new_wins;
        self.new_nll += other.new_nll;
    }
}

/// log Σ exp.
fn log_total(logits: &[f64]) -> f64 {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + logits.iter().map(|v| (v - max).exp()).sum::<f64>().ln()
}

/// The first largest.
fn argmax(logits: &[f64]) -> usize {
    let mut best = 0;
    for (i, &value) in logits.iter().enumerate() {
        if value > logits[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_a_case_worked_by_hand() {
        // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4)
        let (a, b) = ([2f64.ln(), 0.0, 0.0], [1.0, 1.0 + 2f64.ln(), 1.0]);
        let mut m = LogitMetrics::default();
        m.add(&a, &b, 3, |_| Some(1));
        assert!((m.sum_kl - (0.5 * 2f64.ln() - 0.25 * 2f64.ln())).abs() < 1e-15, "{}", m.sum_kl);
        assert_eq!((m.same_argmax, m.positions, m.predicted, m.not_finite), (0, 1, 1, 0));
        assert!((m.nll[0] - 4f64.ln()).abs() < 1e-15 && (m.nll[1] - 2f64.ln()).abs() < 1e-15);
        assert!((m.max_abs - (1.0 + 2f64.ln())).abs() < 1e-15);
        let expected = ((1.0 - 2f64.ln()).powi(2) + (1.0 + 2f64.ln()).powi(2) + 1.0).sqrt() / 2f64.ln();
        assert!((m.difference.relative() - expected).abs() < 1e-14);
    }

    #[test]
    fn a_shift_of_all_logits_changes_no_probability() {
        let a: Vec<f64> = (0..40).map(|i| f64::from(i % 7)).collect();
        let b: Vec<f64> = a.iter().map(|v| v + 3.0).collect();
        let mut m = LogitMetrics::default();
        m.add(&a, &b, 20, |i| (i == 0).then_some(5));
        assert!(m.max_kl < 1e-15 && m.same_argmax == 2 && m.predicted == 1);
        assert!((m.nll[0] - m.nll[1]).abs() < 1e-14);
    }

    #[test]
    fn values_that_are_not_finite_are_counted_and_spoil_the_difference() {
        let mut m = LogitMetrics::default();
        m.add(&[0.0, 1.0], &[0.0, f64::NAN], 2, |_| None);
        assert_eq!(m.not_finite, 1);
        assert!(m.difference.relative().is_nan());
    }
}
