//! The dtypes that weights have: their names, and one value at a time between them and f64.

use std::{fmt, str::FromStr};

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use cast::round_to_odd;
pub use cast::{Scaled, cast, scale};

mod cast;

/// A floating-point dtype that weights can be stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bfloat16: 8 bits of precision.
    BF16,
    /// IEEE half: 11 bits of precision.
    F16,
    /// IEEE single: 24 bits of precision.
    F32,
    /// IEEE double: 53 bits of precision.
    F64,
}

impl Dtype {
    /// All of them, widest first.
    pub const ALL: [Self; 4] = [Self::F64, Self::F32, Self::F16, Self::BF16];

    /// Bytes of one value.
    pub fn size_in_bytes(self) -> usize {
        match self {
            Self::BF16 | Self::F16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// Bytes of a tensor; `None` where they are more than a file can have.
    pub fn byte_count(self, shape: &[usize]) -> Option<u64> {
        shape
            .iter()
            .try_fold(1u64, |n, &d| n.checked_mul(d as u64))?
            .checked_mul(self.size_in_bytes() as u64)
            .filter(|&n| n <= i64::MAX as u64)
    }

    /// Its name in messages, options and recipes, such as `bf16`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BF16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }

    /// Its name in config.json, such as `bfloat16`.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::BF16 => "bfloat16",
            Self::F16 => "float16",
            Self::F32 => "float32",
            Self::F64 => "float64",
        }
    }

    /// The dtype that `torch_dtype` names, with or without `torch.` before it.
    pub fn from_torch_name(name: &str) -> Option<Self> {
        let name = name.trim_start_matches("torch.");
        Self::ALL.into_iter().find(|dtype| dtype.torch_name() == name)
    }

    /// The largest relative error of rounding a normal value.
    pub fn unit_roundoff(self) -> f64 {
        match self {
            Self::BF16 => 2f64.powi(-8),
            Self::F16 => 2f64.powi(-11),
            Self::F32 => 2f64.powi(-24),
            Self::F64 => 2f64.powi(-53),
        }
    }

    /// Whether values times `factor` are stored with no rounding, or with one that f32 has anyway.
    ///
    /// f16 has so few exponents that weights are among its subnormals already: it holds no product.
    pub fn holds_scaled(self, factor: f64) -> bool {
        match self {
            Self::F32 | Self::F64 => true,
            Self::BF16 => is_power_of_two(factor.abs()),
            Self::F16 => factor.abs() == 1.0,
        }
    }

    /// Whether `value` is finite when it is stored.
    pub fn holds(self, value: f64) -> bool {
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..self.size_in_bytes()];
        self.encode(value, bytes);
        self.decode(bytes).is_finite()
    }

    /// Reads one value; `bytes` holds exactly one, little-endian.
    pub fn decode(self, bytes: &[u8]) -> f64 {
        match self {
            Self::BF16 => bf16::from_le_bytes(array(bytes)).to_f64(),
            Self::F16 => f16::from_le_bytes(array(bytes)).to_f64(),
            Self::F32 => f64::from(f32::from_le_bytes(array(bytes))),
            Self::F64 => f64::from_le_bytes(array(bytes)),
        }
    }

    /// Writes one value, rounded once, to the nearest; `out` holds exactly one.
    pub fn encode(self, value: f64, out: &mut [u8]) {
        match self {
            Self::BF16 => out.copy_from_slice(&bf16::from_f32(round_to_odd(value)).to_le_bytes()),
            Self::F16 => out.copy_from_slice(&f16::from_f32(round_to_odd(value)).to_le_bytes()),
            Self::F32 => out.copy_from_slice(&(value as f32).to_le_bytes()),
            Self::F64 => out.copy_from_slice(&value.to_le_bytes()),
        }
    }

    pub(crate) fn from_safetensors(dtype: safetensors::Dtype) -> Option<Self> {
        match dtype {
            safetensors::Dtype::BF16 => Some(Self::BF16),
            safetensors::Dtype::F16 => Some(Self::F16),
            safetensors::Dtype::F32 => Some(Self::F32),
            safetensors::Dtype::F64 => Some(Self::F64),
            _ => None,
        }
    }

    pub(crate) fn to_safetensors(self) -> safetensors::Dtype {
        match self {
            Self::BF16 => safetensors::Dtype::BF16,
            Self::F16 => safetensors::Dtype::F16,
            Self::F32 => safetensors::Dtype::F32,
            Self::F64 => safetensors::Dtype::F64,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Dtype {
    type Err = UnknownDtype;

    fn from_str(name: &str) -> Result<Self, UnknownDtype> {
        let found = Self::ALL.into_iter().find(|dtype| dtype.as_str() == name);
        found.ok_or_else(|| UnknownDtype(name.into()))
    }
}

/// A name that no dtype of weights has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no dtype of weights: f64, f32, f16 or bf16")]
pub struct UnknownDtype(String);

/// The first `N` bytes; the callers cut their slices to size.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[..N]);
    out
}

/// Whether multiplying by `factor` only moves the exponent.
pub fn is_power_of_two(factor: f64) -> bool {
    factor.is_normal() && factor.to_bits() & ((1 << 52) - 1) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back() {
        for dtype in Dtype::ALL {
            assert_eq!(dtype.as_str().parse(), Ok(dtype));
            assert_eq!(Dtype::from_torch_name(dtype.torch_name()), Some(dtype));
            assert_eq!(Dtype::from_safetensors(dtype.to_safetensors()), Some(dtype));
            assert_eq!(serde_json::to_value(dtype).unwrap(), dtype.as_str());
        }
        assert_eq!(Dtype::from_torch_name("torch.bfloat16"), Some(Dtype::BF16));
        assert_eq!(Dtype::from_torch_name("int8"), None);
        assert!("bfloat16".parse::<Dtype>().is_err());
    }

    #[test]
    fn values_survive_where_the_dtype_holds_them() {
        for dtype in Dtype::ALL {
            let mut bytes = vec![0; dtype.size_in_bytes()];
            for value in [0.0, 1.0, -1.5, 0.0078125, 200.0] {
                dtype.encode(value, &mut bytes);
                assert_eq!(dtype.decode(&bytes), value, "{dtype}");
            }
            dtype.encode(1.0 + dtype.unit_roundoff() * 1.5, &mut bytes);
            assert_eq!(dtype.decode(&bytes), 1.0 + dtype.unit_roundoff() * 2.0, "{dtype}");
        }
    }

    #[test]
    fn bf16_is_rounded_once() {
        let encoded = |dtype: Dtype, value: f64| {
            let mut bytes = [0; 2];
            dtype.encode(value, &mut bytes);
            dtype.decode(&bytes)
        };
        for (dtype, bits) in [(Dtype::BF16, 8), (Dtype::F16, 11)] {
            let (half, tiny) = (2f64.powi(-bits), 2f64.powi(-40));
            for sign in [1.0, -1.0] {
                // a midpoint goes to the even neighbour, whatever is above it by less than f32 holds not
                assert_eq!(encoded(dtype, sign * (1.0 + half)), sign);
                assert_eq!(encoded(dtype, sign * (1.0 + half + tiny)), sign * (1.0 + 2.0 * half));
                assert_eq!(encoded(dtype, sign * (1.0 + 3.0 * half - tiny)), sign * (1.0 + 2.0 * half));
            }
            assert_eq!(encoded(dtype, 1e-60), 0.0);
            assert_eq!(encoded(dtype, 1e60), f64::INFINITY);
            assert!(encoded(dtype, f64::NAN).is_nan());
        }
    }

    #[test]
    fn powers_of_two_are_told_from_other_factors() {
        for (factor, expected) in [(1.0, true), (0.5, true), (-4.0, true), (1.25, false), (0.0, false)] {
            assert_eq!(is_power_of_two(factor), expected, "{factor}");
        }
    }
}
