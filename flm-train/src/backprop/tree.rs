//! Sums whose order does not depend on how a step is carried out.
//!
//! The terms of a step, one a micro-batch, are the leaves of one binary tree: the left part of `n` terms is
//! the largest power of two below `n`, and so on. A sweep is an aligned block of a power of two of
//! micro-batches, so its sum is a subtree, and the tree of the sweeps' sums goes on from there: a device, the
//! host or a file only holds subtrees, and every split gives the same bits.

use crate::error::TrainError;

/// Something that is summed.
pub(super) trait Term {
    /// `self += right`.
    fn add(&mut self, right: Self) -> Result<(), TrainError>;
}

impl Term for f64 {
    fn add(&mut self, right: Self) -> Result<(), TrainError> {
        *self += right;
        Ok(())
    }
}

/// The sum of terms that come one after the other, from left to right.
///
/// A binary counter: subtree `level` is the sum of 2^`level` terms, and a new term carries. At most
/// ⌊log₂ n⌋ + 1 sums of `n` terms exist at a time, the new term included. For a block of the 52B that is
/// 3.2 GB each in f32: 22.5 GB in a sweep of 64 micro-batches.
#[derive(Debug)]
pub(super) struct Tree<T> {
    /// Each at its level, the last terms first.
    sums: Vec<Option<T>>,
    most: usize,
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self { sums: Vec::new(), most: 0 }
    }
}

impl<T: Term> Tree<T> {
    /// Takes the next term.
    pub(super) fn push(&mut self, term: T) -> Result<(), TrainError> {
        self.most = self.most.max(self.sums.iter().flatten().count() + 1);
        let mut sum = term;
        for level in &mut self.sums {
            match level.take() {
                Some(mut left) => {
                    left.add(sum)?;
                    sum = left;
                }
                None => {
                    *level = Some(sum);
                    return Ok(());
                }
            }
        }
        self.sums.push(Some(sum));
        Ok(())
    }

    /// The sum of all terms; `None` of none.
    pub(super) fn finish(self) -> Result<Option<T>, TrainError> {
        let mut total: Option<T> = None;
        for mut left in self.sums.into_iter().flatten() {
            if let Some(right) = total {
                left.add(right)?;
            }
            total = Some(left);
        }
        Ok(total)
    }

    /// The most sums that existed at a time.
    pub(super) fn most(&self) -> usize {
        self.most
    }
}

/// The sum of `terms` by the tree.
pub(super) fn tree_sum(terms: impl IntoIterator<Item = f64>) -> f64 {
    let mut tree = Tree::default();
    // adding numbers does not fail
    let sum = terms.into_iter().try_for_each(|term| tree.push(term)).and_then(|()| tree.finish());
    sum.ok().flatten().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A sum as it is written.
    impl Term for String {
        fn add(&mut self, right: Self) -> Result<(), TrainError> {
            *self = format!("({self}+{right})");
            Ok(())
        }
    }

    /// The tree by its definition.
    fn expected(terms: &[String]) -> String {
        match terms {
            [one] => one.clone(),
            terms => {
                let half = terms.len().next_power_of_two() / 2;
                format!("({}+{})", expected(&terms[..half]), expected(&terms[half..]))
            }
        }
    }

    fn sum(terms: &[String]) -> Tree<String> {
        let mut tree = Tree::default();
        terms.iter().for_each(|term| tree.push(term.clone()).unwrap());
        tree
    }

    proptest! {
        #[test]
        fn aligned_blocks_of_powers_of_two_are_subtrees(n in 1usize..200, block in 0u32..9) {
            let terms: Vec<String> = (0..n).map(|i| i.to_string()).collect();
            let whole = expected(&terms);
            let tree = sum(&terms);
            prop_assert_eq!(tree.most(), n.ilog2() as usize + 1);
            prop_assert_eq!(tree.finish().unwrap().unwrap(), whole.clone());
            let blocks: Vec<String> =
                terms.chunks(1 << block).map(|terms| sum(terms).finish().unwrap().unwrap()).collect();
            prop_assert_eq!(sum(&blocks).finish().unwrap().unwrap(), whole);
        }
    }

    #[test]
    fn a_sum_of_nothing_is_zero() {
        assert_eq!((tree_sum([]), tree_sum([1.5, 2.0, 3.0])), (0.0, 6.5));
    }
}
