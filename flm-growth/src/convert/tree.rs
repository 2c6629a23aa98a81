//! BLAKE3 of bytes whose chunks come in any order, from several threads.
//!
//! BLAKE3 is a tree over 1 KiB blocks: a chunk of 2ⁿ KiB at a multiple of its length is one of its
//! subtrees and is hashed for itself (BLAKE3 paper, section 2.1; `blake3::hazmat`).

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use blake3::{Hash, Hasher};

/// The value of chunk `index` of `count`, all but the last `size` bytes long; `size` is 2ⁿ KiB.
pub(super) fn chunk_value(index: u64, count: u64, size: u64, bytes: &[u8]) -> ChainingValue {
    if count == 1 {
        return *blake3::hash(bytes).as_bytes();
    }
    Hasher::new().set_input_offset(index * size).update(bytes).finalize_non_root()
}

/// The digest of all bytes by the values of their chunks.
pub(super) fn digest(values: &[ChainingValue]) -> Hash {
    match values {
        [] => blake3::hash(&[]),
        [whole] => Hash::from_bytes(*whole),
        _ => {
            let (left, right) = halves(values);
            merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash)
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

    #[test]
    fn chunks_give_the_digest_of_the_whole() {
        let bytes: Vec<u8> = (0..40_000u32).map(|i| ((i * i) >> 7) as u8).collect();
        for size in [1024, 2048, 16384] {
            for len in [0, 1, 1023, 1024, 1025, 2048, 3000, 4096, 16384, 16385, 32768, 39_999, 40_000] {
                let chunks: Vec<&[u8]> = bytes[..len].chunks(size).collect();
                let value =
                    |(i, c): (usize, &&[u8])| chunk_value(i as u64, chunks.len() as u64, size as u64, c);
                let values: Vec<_> = chunks.iter().enumerate().map(value).collect();
                assert_eq!(digest(&values), blake3::hash(&bytes[..len]), "{len} in chunks of {size}");
            }
        }
    }
}
