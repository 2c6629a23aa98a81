//! BLAKE3 of bytes that come in any order, from several threads.
//!
//! BLAKE3 is a tree over 1 KiB blocks: 2ⁿ KiB at a multiple of their length are one of its subtrees and are hashed
//! for themselves (BLAKE3 paper, section 2.1; `blake3::hazmat`). What comes is cut into groups of 64 KiB: whole ones
//! are hashed by the thread that brings them, a group that two pieces share waits until all of it is there.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use blake3::{Hash, Hasher};

/// Bytes of a group.
const GROUP: u64 = 64 << 10;

/// The digest of `length` bytes.
#[derive(Debug)]
pub(crate) struct DigestTree {
    length: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Of each group.
    values: Vec<ChainingValue>,
    /// Groups of which a part is there, with how many of their bytes.
    begun: BTreeMap<u64, (Vec<u8>, u64)>,
    /// Bytes that have come.
    added: u64,
}

impl DigestTree {
    pub(crate) fn new(length: u64) -> Self {
        let values = vec![[0; 32]; length.div_ceil(GROUP) as usize];
        Self { length, state: Mutex::new(State { values, begun: BTreeMap::new(), added: 0 }) }
    }

    /// Takes the bytes from `offset` on, each once; tells whether they were the last that were missing.
    pub(crate) fn add(&self, offset: u64, bytes: &[u8]) -> bool {
        let end = offset + bytes.len() as u64;
        let part = |range: Range<u64>| &bytes[(range.start - offset) as usize..(range.end - offset) as usize];
        // whole groups are hashed without the lock
        let (first, last) =
            (offset.div_ceil(GROUP), if end == self.length { end.div_ceil(GROUP) } else { end / GROUP });
        let whole: Vec<ChainingValue> =
            (first..last).map(|group| self.value(group, part(self.range(group)))).collect();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if first < last {
            state.values[first as usize..last as usize].copy_from_slice(&whole);
        }
        let edges =
            if first > last { [offset..end, end..end] } else { [offset..first * GROUP, last * GROUP..end] };
        for edge in edges.into_iter().filter(|edge| edge.start < edge.end.min(end)) {
            self.add_edge(&mut state, edge.start, part(edge.start..edge.end.min(end)));
        }
        state.added += bytes.len() as u64;
        state.added == self.length
    }

    /// Bytes of a group that is not all there.
    fn add_edge(&self, state: &mut State, offset: u64, bytes: &[u8]) {
        let group = offset / GROUP;
        let range = self.range(group);
        let size = range.end - range.start;
        let (begun, filled) = state.begun.entry(group).or_insert_with(|| (vec![0; size as usize], 0));
        begun[(offset - range.start) as usize..][..bytes.len()].copy_from_slice(bytes);
        *filled += bytes.len() as u64;
        if *filled == size {
            state.values[group as usize] = self.value(group, begun);
            state.begun.remove(&group);
        }
    }

    fn range(&self, group: u64) -> Range<u64> {
        group * GROUP..self.length.min((group + 1) * GROUP)
    }

    fn value(&self, group: u64, bytes: &[u8]) -> ChainingValue {
        if self.length <= GROUP {
            return *blake3::hash(bytes).as_bytes();
        }
        Hasher::new().set_input_offset(group * GROUP).update(bytes).finalize_non_root()
    }

    /// The digest, once all bytes have come.
    pub(crate) fn digest(&self) -> Hash {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.values.as_slice() {
            [] => blake3::hash(&[]),
            [whole] => Hash::from_bytes(*whole),
            values => {
                let (left, right) = halves(values);
                merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash)
            }
        }
    }
}

fn subtree(values: &[ChainingValue]) -> ChainingValue {
    if let [one] = values {
        return *one;
    }
    let (left, right) = halves(values);
    merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
}

/// The left half is the largest power of two that leaves something to the right.
fn halves(values: &[ChainingValue]) -> (&[ChainingValue], &[ChainingValue]) {
    values.split_at(values.len().next_power_of_two() / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(length: usize) -> Vec<u8> {
        (0..length as u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect()
    }

    #[test]
    fn lengths_around_groups_give_the_digest_of_the_whole() {
        let group = GROUP as usize;
        for length in [0, 1, 1023, 1025, group - 1, group, group + 1, 2 * group, 5 * group + 7] {
            let bytes = bytes(length);
            let tree = DigestTree::new(length as u64);
            let complete = tree.add(0, &bytes);
            assert_eq!((complete, tree.digest()), (true, blake3::hash(&bytes)), "{length}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 60, ..ProptestConfig::default() })]

        #[test]
        fn pieces_in_any_order_give_the_digest_of_the_whole(
            length in 1usize..400_000, cuts in prop::collection::vec(0usize..400_000, 0..12), seed in any::<u64>(),
        ) {
            let bytes = bytes(length);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c % length).chain([0, length]).collect();
            cuts.sort_unstable();
            let mut pieces: Vec<_> = cuts.windows(2).map(|w| w[0]..w[1]).filter(|r| !r.is_empty()).collect();
            pieces.sort_by_key(|r| (r.start as u64).wrapping_mul(seed | 1));
            let tree = DigestTree::new(length as u64);
            for (i, piece) in pieces.iter().enumerate() {
                let complete = tree.add(piece.start as u64, &bytes[piece.clone()]);
                prop_assert_eq!(complete, i + 1 == pieces.len());
            }
            prop_assert_eq!(tree.digest(), blake3::hash(&bytes));
        }
    }
}
