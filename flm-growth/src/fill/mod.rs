//! Reproducible normal weights: a value depends only on the seed, the tensor's name and the element's
//! index, so the result is the same for any number of threads, chunk size, order and machine.
//!
//! Elements 4b to 4b + 3 of a tensor are the four 16-bit slices of a 64-bit mix of the counter b, each
//! an index into a table of 65,536 equally likely quantiles. The table is scaled by the standard
//! deviation and rounded to the tensor's dtype once, so that drawing is a look-up.
//!
//! The distribution is the normal one in steps of 1/65536 of probability: values are within ±4.325
//! standard deviations, and a tensor of any dtype holds at most 65,536 different ones.

mod quantile;
pub(crate) mod sample;
#[cfg(test)]
pub(crate) mod tests;

use crate::error::{GrowthError, Result};
use crate::fill::quantile::{QUANTILES, normal_quantiles};
use flm_checkpoint::Dtype;

/// Draws the elements of one tensor, any range at a time.
///
/// ```
/// use flm_checkpoint::Dtype;
/// use flm_growth::NormalFill;
///
/// let fill = NormalFill::new(7, "lm_head.weight", Dtype::BF16, 0.02)?;
/// let (mut whole, mut tail) = (vec![0; 2000], vec![0; 500]);
/// fill.write(0, &mut whole);
/// fill.write(750, &mut tail); // elements 750 to 1000
/// assert_eq!(tail, whole[1500..]);
/// # Ok::<(), flm_growth::GrowthError>(())
/// ```
pub struct NormalFill {
    mixer: Mixer,
    table: Table,
}

impl std::fmt::Debug for NormalFill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NormalFill").field("mixer", &self.mixer).finish_non_exhaustive()
    }
}

/// The quantiles as bit patterns of the tensor's dtype.
enum Table {
    Two(Box<[u16; QUANTILES]>),
    Four(Box<[u32; QUANTILES]>),
    Eight(Box<[u64; QUANTILES]>),
}

impl NormalFill {
    /// The generator of tensor `name` under `seed`, with mean 0 and standard deviation `std`.
    pub fn new(seed: u64, name: &str, precision: Dtype, std: f64) -> Result<Self> {
        check_std(std, precision)?;
        let quantiles = normal_quantiles();
        let bits = |i: usize| {
            let mut bytes = [0; 8];
            precision.encode(quantiles[i] * std, &mut bytes[..precision.size_in_bytes()]);
            u64::from_le_bytes(bytes)
        };
        let table = match precision.size_in_bytes() {
            2 => Table::Two(boxed(|i| bits(i) as u16)),
            4 => Table::Four(boxed(|i| bits(i) as u32)),
            _ => Table::Eight(boxed(bits)),
        };
        Ok(Self { mixer: Mixer::new(seed, name), table })
    }

    /// Writes elements `first`, `first` + 1, … as many as fit `out`.
    ///
    /// # Panics
    /// If the length of `out` is not a multiple of the dtype's size.
    pub fn write(&self, first: u64, out: &mut [u8]) {
        match &self.table {
            Table::Two(table) => write::<2, 8, u16>(&self.mixer, table, first, out, u16::to_le_bytes),
            Table::Four(table) => write::<4, 16, u32>(&self.mixer, table, first, out, u32::to_le_bytes),
            Table::Eight(table) => write::<8, 32, u64>(&self.mixer, table, first, out, u64::to_le_bytes),
        }
    }
}

/// Standard deviations that no drawn value is beyond.
const REACH: f64 = 4.33;

/// Fails where values drawn with this standard deviation are none, or infinite in the dtype.
pub(crate) fn check_std(std: f64, precision: Dtype) -> Result<()> {
    if !std.is_finite() || std < 0.0 {
        return Err(GrowthError::Std(std));
    }
    if !precision.holds(REACH * std) {
        return Err(GrowthError::StdTooLarge { std, dtype: precision.to_string() });
    }
    Ok(())
}

fn boxed<T: Copy + Default>(entry: impl Fn(usize) -> T) -> Box<[T; QUANTILES]> {
    let mut table = Box::new([T::default(); QUANTILES]);
    for (i, slot) in table.iter_mut().enumerate() {
        *slot = entry(i);
    }
    table
}

/// `N` bytes an element, `G` = 4·`N` bytes a group of four.
#[inline(always)]
fn write<const N: usize, const G: usize, T: Copy>(
    mixer: &Mixer,
    table: &[T; QUANTILES],
    first: u64,
    out: &mut [u8],
    to_bytes: impl Fn(T) -> [u8; N],
) {
    assert!(out.len().is_multiple_of(N), "{} bytes do not hold whole elements of {N}", out.len());
    let group = |counter: u64| {
        let mix = mixer.mix(counter);
        let mut bytes = [0; G];
        for (slice, slot) in bytes.chunks_exact_mut(N).enumerate() {
            slot.copy_from_slice(&to_bytes(table[(mix >> (16 * slice)) as u16 as usize]));
        }
        bytes
    };
    let mut counter = first / 4;
    // a first group that begins before `first`
    let before = (first % 4) as usize * N;
    let head = if before == 0 { 0 } else { (G - before).min(out.len()) };
    let (start, rest) = out.split_at_mut(head);
    if head > 0 {
        start.copy_from_slice(&group(counter)[before..before + head]);
        counter += 1;
    }
    let mut groups = rest.chunks_exact_mut(G);
    for slot in &mut groups {
        slot.copy_from_slice(&group(counter));
        counter += 1;
    }
    let end = groups.into_remainder();
    if !end.is_empty() {
        let last = group(counter);
        end.copy_from_slice(&last[..end.len()]);
    }
}

/// Turns a counter into 64 well-mixed bits, differently for each seed and tensor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mixer {
    start: u64,
    key: u64,
}

impl Mixer {
    fn new(seed: u64, name: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("flm-growth 2024 normal fill v1");
        hasher.update(&seed.to_le_bytes());
        hasher.update(name.as_bytes());
        let mut words = [0; 16];
        hasher.finalize_xof().fill(&mut words);
        let both = u128::from_le_bytes(words);
        Self { start: both as u64, key: (both >> 64) as u64 }
    }

    /// The finaliser of SplitMix64 (Steele, Lea, Flood 2014) over a Weyl sequence. The second key goes
    /// in half-way, so that two tensors whose counters happen to overlap do not repeat each other.
    #[inline(always)]
    fn mix(&self, counter: u64) -> u64 {
        let mut z = self.start.wrapping_add(counter.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^= self.key;
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
