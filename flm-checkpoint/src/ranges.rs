//! Bytes of a file: sets of them, as ranges, and tensors that lie in pieces.

use std::{collections::BTreeMap, ops::Range};

/// Disjoint ranges that do not touch: start → end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// The bytes 0..len.
    pub fn all(len: u64) -> Self {
        let mut ranges = Self::default();
        ranges.insert(0..len);
        ranges
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of bytes.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// Adds the bytes of `range`; returns how many are new.
    pub fn insert(&mut self, range: Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let (mut start, mut end) = (range.start, range.end);
        let mut known = 0;
        let touching: Vec<u64> =
            self.0.range(..=end).rev().take_while(|(_, e)| **e >= start).map(|(s, _)| *s).collect();
        for old in touching {
            if let Some(old_end) = self.0.remove(&old) {
                known += old_end.min(range.end).saturating_sub(old.max(range.start));
                start = start.min(old);
                end = end.max(old_end);
            }
        }
        self.0.insert(start, end);
        range.end - range.start - known
    }

    /// Takes out the bytes of `range`.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let overlapping: Vec<u64> =
            self.0.range(..range.end).rev().take_while(|(_, e)| **e > range.start).map(|(s, _)| *s).collect();
        for start in overlapping {
            if let Some(end) = self.0.remove(&start) {
                self.insert(start..range.start.min(end));
                self.insert(range.end.max(start)..end);
            }
        }
    }

    /// Takes out the first range, of at most `most` bytes.
    pub fn take_first(&mut self, most: u64) -> Option<Range<u64>> {
        let (&start, &end) = self.0.iter().next()?;
        let taken = start..end.min(start + most);
        self.remove(taken.clone());
        Some(taken)
    }

    /// The parts of `range` that are in the set, in order.
    pub fn within(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut found: Vec<_> = self
            .0
            .range(..range.end)
            .rev()
            .take_while(|(_, end)| **end > range.start)
            .map(|(start, end)| (*start).max(range.start)..(*end).min(range.end))
            .collect();
        found.reverse();
        found
    }
}

/// How the bytes of a tensor lie in a file: in pieces of one length that begin at equal distances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pieces {
    /// Bytes of a piece.
    pub len: u64,
    /// Bytes from the start of one to that of the next.
    pub every: u64,
}

impl Pieces {
    /// One piece, whatever its length.
    pub const ONE: Self = Self { len: u64::MAX, every: u64::MAX };

    /// A share of each of `groups` that are `bytes` long together; the shares have `nbytes`.
    pub fn of_groups(groups: u64, nbytes: u64, bytes: u64) -> Self {
        if groups > 1 { Self { len: nbytes / groups, every: bytes / groups } } else { Self::ONE }
    }

    /// The bytes `offset..offset + len` of the tensor, in runs that follow each other in the file: where each begins
    /// there, counted from the first piece, and which of the `len` bytes it is.
    pub fn runs(self, offset: u64, len: u64) -> impl Iterator<Item = (u64, Range<usize>)> {
        let (piece, end) = (self.len.max(1), offset + len);
        let mut at = offset;
        std::iter::from_fn(move || {
            let (before, within) = (at / piece, at % piece);
            let n = (piece - within).min(end - at);
            let start = (at - offset) as usize;
            at += n;
            (n > 0).then(|| (before * self.every + within, start..start + n as usize))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_the_bytes_of_their_pieces() {
        let pieces = Pieces::of_groups(4, 12, 32);
        assert_eq!(pieces, Pieces { len: 3, every: 8 });
        let bytes: Vec<u64> = (0..4).flat_map(|piece| (0..3).map(move |i| piece * 8 + i)).collect();
        for start in 0..=12 {
            for end in start..=12 {
                let mut found = Vec::new();
                for (at, range) in pieces.runs(start, end - start) {
                    assert_eq!(range.start, found.len());
                    found.extend(range.enumerate().map(|(i, _)| at + i as u64));
                }
                assert_eq!(found, bytes[start as usize..end as usize]);
            }
        }
        assert_eq!(Pieces::ONE.runs(5, 7).collect::<Vec<_>>(), [(5, 0..7)]);
        assert_eq!(Pieces { len: 0, every: 8 }.runs(0, 0).count(), 0);
    }

    /// Against a set of single bytes.
    #[test]
    fn ranges_are_a_set_of_bytes() {
        let mut ranges = Ranges::all(40);
        let mut model = [true; 40];
        let mut seed = 12345u32;
        let mut random = |n: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) % n
        };
        for _ in 0..2000 {
            let start = u64::from(random(40));
            let end = (start + u64::from(random(12))).min(40);
            let put = random(2) == 0;
            if put {
                let new = model[start as usize..end as usize].iter().filter(|b| !**b).count();
                assert_eq!(ranges.insert(start..end), new as u64);
            } else {
                ranges.remove(start..end);
            }
            model[start as usize..end as usize].fill(put);
            assert_eq!(ranges.len(), model.iter().filter(|b| **b).count() as u64);
            let mut again = [false; 40];
            for r in ranges.within(0..40) {
                again[r.start as usize..r.end as usize].fill(true);
            }
            assert_eq!(again, model);
        }
        let mut ranges = Ranges::all(10);
        ranges.remove(4..6);
        assert_eq!(ranges.within(3..8), [3..4, 6..8]);
        assert_eq!(
            [ranges.take_first(3), ranges.take_first(9), ranges.take_first(9), ranges.take_first(9)],
            [Some(0..3), Some(3..4), Some(6..10), None]
        );
    }
}
