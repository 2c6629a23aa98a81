//! Random orders by seed and stream.

use flm_candle::Stream;

/// The numbers `0..len` in random order.
pub(super) fn permutation(len: usize, seed: u64, stream: u64) -> Vec<usize> {
    let (mut order, numbers): (Vec<usize>, _) = ((0..len).collect(), Stream::new(seed, stream));
    // Fisher and Yates; the product's upper half is uniform to 2⁻⁶⁴ · len
    for i in (1..len).rev() {
        let j = (u128::from(numbers.at(i as u64)) * (i as u128 + 1)) >> 64;
        order.swap(i, j as usize);
    }
    order
}

/// The items in random order.
pub(super) fn shuffled<T>(items: Vec<T>, seed: u64, stream: u64) -> Vec<T> {
    let order = permutation(items.len(), seed, stream);
    let mut items: Vec<Option<T>> = items.into_iter().map(Some).collect();
    order.into_iter().filter_map(|i| items[i].take()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_is_a_permutation_and_depends_on_seed_and_stream() {
        let orders: Vec<Vec<usize>> =
            [(0, 0), (0, 1), (1, 0), (1, 1)].into_iter().map(|(s, t)| permutation(1000, s, t)).collect();
        for (i, order) in orders.iter().enumerate() {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..1000));
            assert!(orders[..i].iter().all(|other| other != order));
        }
        assert_eq!(orders[3], permutation(1000, 1, 1));
        assert!(permutation(0, 1, 1).is_empty());
    }

    #[test]
    fn all_orders_of_three_are_equally_likely() {
        let mut counts = std::collections::HashMap::new();
        (0..6000).for_each(|seed| *counts.entry(permutation(3, seed, 5)).or_insert(0) += 1);
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|&count| (850..1150).contains(&count)), "{counts:?}");
    }
}
