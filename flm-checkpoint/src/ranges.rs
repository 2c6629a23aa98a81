//! Which bytes of a tensor are accounted for: disjoint, merged ranges.

use std::collections::BTreeMap;

/// A set of bytes as disjoint ranges that do not touch.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Ranges {
    /// Start → end.
    map: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Adds `start..end`; returns how many of its bytes were new.
    pub(crate) fn insert(&mut self, start: u64, end: u64) -> u64 {
        if start >= end {
            return 0;
        }
        let (mut merged_start, mut merged_end) = (start, end);
        let mut known = 0;
        // Ranges that touch or overlap begin at or before `end`; they are disjoint, so walk back.
        while let Some((&s, &e)) = self.map.range(..=merged_end).next_back() {
            if e < merged_start {
                break;
            }
            known += e.min(end).saturating_sub(s.max(start));
            merged_start = merged_start.min(s);
            merged_end = merged_end.max(e);
            self.map.remove(&s);
        }
        self.map.insert(merged_start, merged_end);
        end - start - known
    }

    /// Number of bytes in the set.
    pub(crate) fn len(&self) -> u64 {
        self.map.iter().map(|(start, end)| end - start).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::ranges::Ranges;

    proptest! {
        #[test]
        fn equals_a_set_of_bytes(inserts in prop::collection::vec((0u64..60, 0u64..20), 0..40)) {
            let mut ranges = Ranges::default();
            let mut bytes = std::collections::BTreeSet::new();
            for (start, len) in inserts {
                let new = (start..start + len).filter(|b| bytes.insert(*b)).count() as u64;
                prop_assert_eq!(ranges.insert(start, start + len), new);
                prop_assert_eq!(ranges.len(), bytes.len() as u64);
            }
        }
    }

    #[test]
    fn touching_ranges_are_one() {
        let mut ranges = Ranges::default();
        for start in [0, 20, 10] {
            ranges.insert(start, start + 10);
        }
        assert_eq!(ranges.map.into_iter().collect::<Vec<_>>(), [(0, 30)]);
    }
}
