//! Random numbers that depend on nothing but what they are asked for, so that an order or a rounding
//! never changes with a library, the number of threads, or where parameters are kept.

/// SplitMix64's increment: 2⁶⁴ divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's output function (Steele, Lea and Flood, 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A sequence of numbers, any of which can be had first.
#[derive(Debug, Clone, Copy)]
pub struct Stream(u64);

impl Stream {
    /// The outputs of SplitMix64 for a seed.
    pub fn splitmix64(seed: u64) -> Self {
        Self(seed)
    }

    /// The sequence `stream` of a seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self(mix(mix(seed.wrapping_add(GOLDEN)) ^ stream.wrapping_add(1).wrapping_mul(GOLDEN)))
    }

    /// The sequence of its own that `name` has in this one.
    pub fn named(self, name: &str) -> Self {
        Self(name.bytes().fold(self.0, |key, byte| mix(key ^ u64::from(byte)).wrapping_add(GOLDEN)))
    }

    /// Number `counter`.
    pub fn at(self, counter: u64) -> u64 {
        mix(self.0.wrapping_add(counter.wrapping_add(1).wrapping_mul(GOLDEN)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_splitmix64() {
        // the first outputs for seed 1234567, as the reference implementation prints them
        let first: Vec<u64> = (0..3).map(|i| Stream::splitmix64(1_234_567).at(i)).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
        let other = [Stream::new(0, 0), Stream::new(0, 1), Stream::new(1, 0), Stream::new(0, 0).named("a")];
        let mut heads: Vec<u64> = other.iter().map(|s| s.at(0)).collect();
        heads.sort_unstable();
        heads.dedup();
        assert_eq!(heads.len(), 4);
    }
}
