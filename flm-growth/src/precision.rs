//! The dtypes that growth handles, and one value at a time between them.

use std::fmt;

use candle_core::DType;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::error::{GrowthError, Result};

/// A floating-point dtype that weights can be stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bfloat16: 8 bits of precision.
    Bf16,
    /// IEEE half: 11 bits of precision.
    F16,
    /// IEEE single: 24 bits of precision.
    F32,
    /// IEEE double: 53 bits of precision.
    F64,
}

impl Precision {
    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// Its name in config.json.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
            Self::F32 => "float32",
            Self::F64 => "float64",
        }
    }

    /// The largest relative error of rounding a normal value.
    pub fn unit_roundoff(self) -> f64 {
        match self {
            Self::Bf16 => 2f64.powi(-8),
            Self::F16 => 2f64.powi(-11),
            Self::F32 => 2f64.powi(-24),
            Self::F64 => 2f64.powi(-53),
        }
    }

    /// Whether values times `factor` are stored with no rounding, or with one that f32 has anyway.
    pub fn holds_scaled(self, factor: f64) -> bool {
        matches!(self, Self::F32 | Self::F64) || is_power_of_two(factor.abs())
    }

    /// Whether `value` is finite when it is stored.
    pub fn holds(self, value: f64) -> bool {
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..self.bytes()];
        self.encode(value, bytes);
        self.decode(bytes).is_finite()
    }

    /// Reads one value; `bytes` holds exactly one.
    pub fn decode(self, bytes: &[u8]) -> f64 {
        match self {
            Self::Bf16 => bf16::from_le_bytes(array(bytes)).to_f64(),
            Self::F16 => f16::from_le_bytes(array(bytes)).to_f64(),
            Self::F32 => f64::from(f32::from_le_bytes(array(bytes))),
            Self::F64 => f64::from_le_bytes(array(bytes)),
        }
    }

    /// Writes one value, rounded once, to the nearest; `out` holds exactly one.
    pub fn encode(self, value: f64, out: &mut [u8]) {
        match self {
            Self::Bf16 => out.copy_from_slice(&bf16::from_f32(round_to_odd(value)).to_le_bytes()),
            Self::F16 => out.copy_from_slice(&f16::from_f32(round_to_odd(value)).to_le_bytes()),
            Self::F32 => out.copy_from_slice(&(value as f32).to_le_bytes()),
            Self::F64 => out.copy_from_slice(&value.to_le_bytes()),
        }
    }
}

/// The f32 that rounds to the same 16-bit value as `value` does: the nearest, or where `value` lies
/// between two, the one with an odd last bit (Boldo and Melquiond, "Emulation of FMA and correctly
/// rounded sums", 2008). Rounding to the nearest twice can end one step off.
fn round_to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if value.is_nan() || f64::from(nearest) == value {
        return nearest;
    }
    let away = u32::from(f64::from(nearest).abs() > value.abs());
    f32::from_bits((nearest.to_bits() - away) | 1)
}

/// The first `N` bytes; the callers cut their slices to size.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[..N]);
    out
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(DType::from(*self).as_str())
    }
}

impl From<Precision> for DType {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Bf16 => Self::BF16,
            Precision::F16 => Self::F16,
            Precision::F32 => Self::F32,
            Precision::F64 => Self::F64,
        }
    }
}

impl TryFrom<DType> for Precision {
    type Error = GrowthError;

    fn try_from(dtype: DType) -> Result<Self> {
        match dtype {
            DType::BF16 => Ok(Self::Bf16),
            DType::F16 => Ok(Self::F16),
            DType::F32 => Ok(Self::F32),
            DType::F64 => Ok(Self::F64),
            other => Err(GrowthError::Dtype(other.as_str().into())),
        }
    }
}

/// Whether multiplying by `factor` only moves the exponent.
pub(crate) fn is_power_of_two(factor: f64) -> bool {
    factor.is_normal() && factor.to_bits() & ((1 << 52) - 1) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_where_the_dtype_holds_them() {
        for precision in [Precision::Bf16, Precision::F16, Precision::F32, Precision::F64] {
            assert_eq!(Precision::try_from(DType::from(precision)).unwrap(), precision);
            let mut bytes = vec![0; precision.bytes()];
            for value in [0.0, 1.0, -1.5, 0.0078125, 200.0] {
                precision.encode(value, &mut bytes);
                assert_eq!(precision.decode(&bytes), value, "{precision}");
            }
            precision.encode(1.0 + precision.unit_roundoff() * 1.5, &mut bytes);
            assert_eq!(precision.decode(&bytes), 1.0 + precision.unit_roundoff() * 2.0, "{precision}");
        }
    }

    #[test]
    fn bf16_is_rounded_once() {
        let encoded = |precision: Precision, value: f64| {
            let mut bytes = [0; 2];
            precision.encode(value, &mut bytes);
            precision.decode(&bytes)
        };
        for (precision, bits) in [(Precision::Bf16, 8), (Precision::F16, 11)] {
            let (half, tiny) = (2f64.powi(-bits), 2f64.powi(-40));
            for sign in [1.0, -1.0] {
                // a midpoint goes to the even neighbour, whatever is above it by less than f32 holds not
                assert_eq!(encoded(precision, sign * (1.0 + half)), sign);
                assert_eq!(encoded(precision, sign * (1.0 + half + tiny)), sign * (1.0 + 2.0 * half));
                assert_eq!(encoded(precision, sign * (1.0 + 3.0 * half - tiny)), sign * (1.0 + 2.0 * half));
            }
            assert_eq!(encoded(precision, 1e-60), 0.0);
            assert_eq!(encoded(precision, 1e60), f64::INFINITY);
            assert!(encoded(precision, f64::NAN).is_nan());
        }
    }

    #[test]
    fn powers_of_two_are_told_from_other_factors() {
        for (factor, expected) in [(1.0, true), (0.5, true), (-4.0, true), (1.25, false), (0.0, false)] {
            assert_eq!(is_power_of_two(factor), expected, "{factor}");
        }
    }

    #[test]
    fn other_dtypes_are_refused_by_name() {
        assert!(Precision::try_from(DType::U8).unwrap_err().to_string().contains("dtype u8"));
    }
}
