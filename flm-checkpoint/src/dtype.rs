//! The four dtypes that weights have, under the names of candle, safetensors and PyTorch.

use candle_core::DType;
use safetensors::Dtype;

/// candle's dtype for a safetensors dtype, where weights can have it.
pub fn from_safetensors(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F16 => Some(DType::F16),
        Dtype::F32 => Some(DType::F32),
        Dtype::F64 => Some(DType::F64),
        _ => None,
    }
}

/// The safetensors dtype for one of BF16, F16, F32, F64.
pub fn to_safetensors(dtype: DType) -> Option<Dtype> {
    match dtype {
        DType::BF16 => Some(Dtype::BF16),
        DType::F16 => Some(Dtype::F16),
        DType::F32 => Some(Dtype::F32),
        DType::F64 => Some(Dtype::F64),
        _ => None,
    }
}

/// The name in `torch_dtype` of config.json.
pub fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        DType::F64 => "float64",
        _ => "float32",
    }
}

/// Bytes of a tensor; `None` where the product overflows.
pub fn byte_count(shape: &[usize], dtype: DType) -> Option<u64> {
    shape
        .iter()
        .try_fold(1u64, |n, &d| n.checked_mul(d as u64))?
        .checked_mul(dtype.size_in_bytes() as u64)
        .filter(|&n| n <= i64::MAX as u64)
}
