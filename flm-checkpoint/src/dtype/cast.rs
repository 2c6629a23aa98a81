//! Conversion among BF16, F16, F32 and F64, rounding to nearest, ties to even.

use super::Dtype;
use half::{bf16, f16};

/// Converts the little-endian elements of `src` and puts them into `out`, which is overwritten.
///
/// Returns how many finite elements became infinite. Both dtypes are among BF16, F16, F32, F64.
pub fn cast(from: Dtype, to: Dtype, src: &[u8], out: &mut Vec<u8>) -> u64 {
    use Dtype::{BF16, F16, F32};
    let bf = |b| bf16::from_le_bytes(b).to_f32();
    let h = |b| f16::from_le_bytes(b).to_f32();
    let f = f32::from_le_bytes;
    let d = f64::from_le_bytes;
    match (from, to) {
        (BF16, BF16) | (F16, F16) => each(src, out, |b: [u8; 2]| (b, false)),
        (F32, F32) => each(src, out, |b: [u8; 4]| (b, false)),
        (BF16, F16) => each(src, out, |b| to_f16(bf(b))),
        (BF16, F32) => each(src, out, |b| (bf(b).to_le_bytes(), false)),
        (BF16, _) => each(src, out, |b| (f64::from(bf(b)).to_le_bytes(), false)),
        (F16, BF16) => each(src, out, |b| to_bf16(h(b))),
        (F16, F32) => each(src, out, |b| (h(b).to_le_bytes(), false)),
        (F16, _) => each(src, out, |b| (f64::from(h(b)).to_le_bytes(), false)),
        (F32, BF16) => each(src, out, |b| to_bf16(f(b))),
        (F32, F16) => each(src, out, |b| to_f16(f(b))),
        (F32, _) => each(src, out, |b| (f64::from(f(b)).to_le_bytes(), false)),
        (_, BF16) => each(src, out, |b| to_bf16(round_to_odd(d(b)))),
        (_, F16) => each(src, out, |b| to_f16(round_to_odd(d(b)))),
        (_, F32) => each(src, out, |b| {
            let (wide, narrow) = (d(b), d(b) as f32);
            (narrow.to_le_bytes(), wide.is_finite() & narrow.is_infinite())
        }),
        _ => each(src, out, |b: [u8; 8]| (b, false)),
    }
}

/// What became of elements that were multiplied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scaled {
    /// Finite elements that became infinite.
    pub overflowed: u64,
    /// Elements that are not exactly their product.
    pub rounded: u64,
}

/// [`cast`] of the elements times `factor`; products are made in f64 and rounded once.
pub fn scale(from: Dtype, to: Dtype, factor: f64, src: &[u8], out: &mut Vec<u8>) -> Scaled {
    /// Elements at a time: as f64 they stay in the cache.
    const BLOCK: usize = 4096;
    out.clear();
    let (mut wide, mut narrow, mut back) = (Vec::new(), Vec::new(), Vec::new());
    let mut done = Scaled::default();
    for block in src.chunks(BLOCK * from.size_in_bytes()) {
        cast(from, Dtype::F64, block, &mut wide);
        for slot in wide.as_chunks_mut::<8>().0 {
            *slot = (f64::from_le_bytes(*slot) * factor).to_le_bytes();
        }
        done.overflowed += cast(Dtype::F64, to, &wide, &mut narrow);
        cast(to, Dtype::F64, &narrow, &mut back);
        let pairs = wide.as_chunks::<8>().0.iter().zip(back.as_chunks::<8>().0);
        done.rounded += pairs.filter(|(a, b)| a != b).count() as u64;
        out.extend_from_slice(&narrow);
    }
    done
}

fn each<const N: usize, const M: usize>(
    src: &[u8],
    out: &mut Vec<u8>,
    convert: impl Fn([u8; N]) -> ([u8; M], bool),
) -> u64 {
    let (elements, _) = src.as_chunks::<N>();
    out.resize(elements.len() * M, 0);
    let mut overflowed = 0;
    for (target, &element) in out.as_chunks_mut::<M>().0.iter_mut().zip(elements) {
        let (bytes, overflow) = convert(element);
        *target = bytes;
        overflowed += u64::from(overflow);
    }
    overflowed
}

fn to_bf16(x: f32) -> ([u8; 2], bool) {
    let y = bf16::from_f32(x);
    (y.to_le_bytes(), x.is_finite() & y.is_infinite())
}

fn to_f16(x: f32) -> ([u8; 2], bool) {
    let y = f16::from_f32(x);
    (y.to_le_bytes(), x.is_finite() & y.is_infinite())
}

/// The f32 next to `x` whose last bit is set where `x` is not itself an f32.
///
/// Rounding twice to nearest can be off by one; rounding to odd first, then to nearest in a format that
/// is at least two bits narrower, gives the nearest: Boldo and Melquiond, "When double rounding is odd".
pub(super) fn round_to_odd(x: f64) -> f32 {
    let near = x as f32;
    if x.is_nan() || f64::from(near) == x {
        return near;
    }
    let away = f64::from(near).abs() > x.abs();
    f32::from_bits((near.to_bits() - u32::from(away)) | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one<const N: usize, const M: usize>(from: Dtype, to: Dtype, bytes: [u8; N]) -> ([u8; M], u64) {
        let mut out = Vec::new();
        let overflowed = cast(from, to, &bytes, &mut out);
        (out.try_into().unwrap(), overflowed)
    }

    #[test]
    fn ties_go_to_even() {
        // 1 + 2⁻⁸ lies between the bf16 1 and 1 + 2⁻⁷, 1 + 3·2⁻⁸ between 1 + 2⁻⁷ and 1 + 2⁻⁶.
        for (x, bits) in [(1.0 + 2f32.powi(-8), 0x3f80u16), (1.0 + 3.0 * 2f32.powi(-8), 0x3f82)] {
            assert_eq!(one(Dtype::F32, Dtype::BF16, x.to_le_bytes()), (bits.to_le_bytes(), 0));
        }
        // 1 + 2⁻¹¹ between the f16 1 and 1 + 2⁻¹⁰.
        for (x, bits) in [(1.0 + 2f32.powi(-11), 0x3c00u16), (1.0 + 3.0 * 2f32.powi(-11), 0x3c02)] {
            assert_eq!(one(Dtype::F32, Dtype::F16, x.to_le_bytes()), (bits.to_le_bytes(), 0));
        }
    }

    #[test]
    fn f64_is_rounded_once() {
        // Just above the tie 1 + 2⁻⁸: the nearest f32 is the tie itself, which would go down.
        let x = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        assert_eq!(one(Dtype::F64, Dtype::BF16, x.to_le_bytes()), (0x3f81u16.to_le_bytes(), 0));
        let below = 1.0 + 3.0 * 2f64.powi(-8) - 2f64.powi(-40);
        assert_eq!(one(Dtype::F64, Dtype::BF16, (-below).to_le_bytes()), (0xbf81u16.to_le_bytes(), 0));
        let half = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
        assert_eq!(one(Dtype::F64, Dtype::F16, half.to_le_bytes()), (0x3c01u16.to_le_bytes(), 0));
    }

    #[test]
    fn overflow_is_counted_and_infinity_is_not() {
        let inf16 = f16::INFINITY.to_le_bytes();
        assert_eq!(one(Dtype::F32, Dtype::F16, 65520f32.to_le_bytes()), (inf16, 1));
        assert_eq!(one(Dtype::F32, Dtype::F16, 65519f32.to_le_bytes()), (f16::MAX.to_le_bytes(), 0));
        assert_eq!(one(Dtype::F32, Dtype::F16, f32::INFINITY.to_le_bytes()), (inf16, 0));
        assert_eq!(one(Dtype::BF16, Dtype::F16, bf16::MAX.to_le_bytes()), (inf16, 1));
        let inf = bf16::INFINITY.to_le_bytes();
        assert_eq!(one(Dtype::F32, Dtype::BF16, f32::MAX.to_le_bytes()), (inf, 1));
        assert_eq!(one(Dtype::F64, Dtype::BF16, 1e300f64.to_le_bytes()), (inf, 1));
        assert_eq!(
            one(Dtype::F64, Dtype::F32, (-1e300f64).to_le_bytes()),
            (f32::NEG_INFINITY.to_le_bytes(), 1)
        );
    }

    #[test]
    fn products_are_rounded_once_and_counted() {
        let run = |from, to, factor, src: &[u8]| {
            let mut out = Vec::new();
            let done = scale(from, to, factor, src, &mut out);
            (out, done)
        };
        let bf = |values: &[f32]| -> Vec<u8> {
            values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect()
        };
        let exact = Scaled::default();
        let source = bf(&[1.0, -3.0, 0.0, 1.5e-3]);
        assert_eq!(run(Dtype::BF16, Dtype::BF16, 0.25, &source), (bf(&[0.25, -0.75, 0.0, 3.75e-4]), exact));
        // 1 + 2⁻⁷ times 3/4 has one bit too many for bf16, none for f32
        let odd = bf(&[1.0 + 2f32.powi(-7)]);
        assert_eq!(run(Dtype::BF16, Dtype::BF16, 0.75, &odd).1, Scaled { rounded: 1, ..exact });
        let wide = 0.75f32 * (1.0 + 2f32.powi(-7));
        assert_eq!(run(Dtype::BF16, Dtype::F32, 0.75, &odd), (wide.to_le_bytes().to_vec(), exact));
        // a subnormal of bf16 loses its last bit, f16 ends at 65504
        let small = bf16::from_bits(1).to_le_bytes();
        assert_eq!(run(Dtype::BF16, Dtype::BF16, 0.5, &small).1, Scaled { rounded: 1, ..exact });
        let over = Scaled { overflowed: 1, rounded: 1 };
        assert_eq!(run(Dtype::F16, Dtype::F16, 2.0, &f16::MAX.to_le_bytes()).1, over);
        let many: Vec<u8> = (0..5000).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let doubled: Vec<u8> = (0..5000).flat_map(|i| (2.0 * i as f32).to_le_bytes()).collect();
        assert_eq!(run(Dtype::F32, Dtype::F32, 2.0, &many), (doubled, exact));
    }

    #[test]
    fn every_half_survives_widening_and_back() {
        let bits: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for from in [Dtype::BF16, Dtype::F16] {
            let nan = |b: [u8; 2]| match from {
                Dtype::F16 => f16::from_le_bytes(b).is_nan(),
                _ => bf16::from_le_bytes(b).is_nan(),
            };
            for via in [Dtype::F32, Dtype::F64] {
                let (mut wide, mut back) = (Vec::new(), Vec::new());
                assert_eq!(cast(from, via, &bits, &mut wide), 0);
                assert_eq!(cast(via, from, &wide, &mut back), 0);
                for (a, b) in bits.as_chunks::<2>().0.iter().zip(back.as_chunks::<2>().0) {
                    assert!(a == b || (nan(*a) && nan(*b)), "{a:?} {b:?}");
                }
            }
        }
    }
}
