//! The header of a safetensors file, checked more strictly than the format's own crate does:
//! a name that stands twice is an error.
//!
//! Format: <https://github.com/huggingface/safetensors#format>.

#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashMap;
use std::fmt;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::format::Source;
use crate::format::pickle::MAX_NAME;
use crate::format::{Contents, RawTensor, is_skipped};

/// Most dimensions of a tensor.
const MAX_RANK: usize = 8;
/// Most bytes that a header may have, by the format.
pub(crate) const MAX_HEADER: u64 = 100_000_000;

/// What can be wrong with a safetensors file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// It could not be read.
    #[error("cannot read the header: {0}")]
    Read(#[from] std::io::Error),
    /// It is shorter than its own header.
    #[error("not a safetensors file: {size} bytes, the header alone needs {needed}")]
    Truncated {
        /// Length of the file.
        size: u64,
        /// Length of the header with its eight bytes of length.
        needed: u64,
    },
    /// Its header is longer than the format allows.
    #[error("not a safetensors file: a header of {0} bytes; the format allows {MAX_HEADER}")]
    TooLong(u64),
    /// Its header is not JSON of the expected form.
    #[error("the header is malformed: {0}")]
    Json(#[from] serde_json::Error),
    /// A name stands twice.
    #[error("tensor {0} stands twice in the header")]
    Duplicate(String),
    /// A name that no tensor has.
    #[error("a tensor's name is {0:?}: it has control characters or more than {MAX_NAME} bytes")]
    Name(String),
    /// More dimensions than tensors have.
    #[error("tensor {tensor} has {rank} dimensions: weights have at most {MAX_RANK}")]
    Rank {
        /// Name in the header.
        tensor: String,
        /// How many.
        rank: usize,
    },
    /// A dtype that weights do not have.
    #[error("tensor {tensor} has dtype {dtype:?}; supported are BF16, F16, F32 and F64")]
    DType {
        /// Name in the header.
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
    },
    /// A shape whose size overflows.
    #[error("tensor {tensor} has shape {shape:?}, which is more bytes than a file can have")]
    Overflow {
        /// Name in the header.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Offsets that do not follow from the tensor before, or do not fit the shape.
    #[error(
        "tensor {tensor} lies at {got:?}, expected {expected:?}: overlapping, with a hole, or of the wrong length"
    )]
    Offsets {
        /// Name in the header.
        tensor: String,
        /// First byte and end by its dtype and shape, after the tensor before it.
        expected: (u64, u64),
        /// First byte and end in the header.
        got: (u64, u64),
    },
    /// The file is shorter or longer than the header says.
    #[error("the file has {got} bytes, its header says {expected}: {}", if got < expected { "download it again" } else { "something was appended" })]
    FileLength {
        /// By the header.
        expected: u64,
        /// Bytes of the file.
        got: u64,
    },
}

/// Reads and checks the header; the result is in the order of the file, offsets count from its start.
pub(crate) fn read(source: &impl Source) -> Result<Contents, HeaderError> {
    let size = source.size();
    if size < 8 {
        return Err(HeaderError::Truncated { size, needed: 8 });
    }
    let mut length = [0; 8];
    source.read_exact_at(&mut length, 0)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(HeaderError::TooLong(length));
    }
    if length + 8 > size {
        return Err(HeaderError::Truncated { size, needed: length + 8 });
    }
    let Header(mut tensors) = serde_json::from_slice(&source.bytes_at(8, length as usize)?)?;
    reject_duplicates(&tensors)?;
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let start = 8 + length;
    let mut end = 0;
    let mut found = Contents::default();
    for (name, info) in tensors {
        if name.len() > MAX_NAME || name.contains(char::is_control) {
            return Err(HeaderError::Name(name.chars().take(80).collect()));
        }
        if info.shape.len() > MAX_RANK {
            return Err(HeaderError::Rank { tensor: name, rank: info.shape.len() });
        }
        let Some(nbytes) = byte_count(&info).filter(|n| n.checked_add(end + start).is_some()) else {
            return Err(HeaderError::Overflow { tensor: name, shape: info.shape });
        };
        let got = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let expected = (end, end + nbytes);
        if got != expected {
            return Err(HeaderError::Offsets { tensor: name, expected, got });
        }
        let offset = start + end;
        end += nbytes;
        if is_skipped(&name) {
            found.ignored.push(name);
            continue;
        }
        match crate::dtype::Dtype::from_safetensors(info.dtype) {
            Some(dtype) => found.tensors.push(RawTensor { name, dtype, shape: info.shape, offset, nbytes }),
            None => return Err(HeaderError::DType { tensor: name, dtype: info.dtype }),
        }
    }
    if start + end != size {
        return Err(HeaderError::FileLength { expected: start + end, got: size });
    }
    Ok(found)
}

/// Bytes by dtype and shape; `None` on overflow or where sub-byte elements do not fill bytes.
fn byte_count(info: &TensorInfo) -> Option<u64> {
    let elements = info.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64))?;
    let bits = elements.checked_mul(info.dtype.bitsize() as u64)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

fn reject_duplicates(tensors: &[(String, TensorInfo)]) -> Result<(), HeaderError> {
    let mut names: Vec<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(HeaderError::Duplicate(pair[0].into())),
        None => Ok(()),
    }
}

/// Name and info of each tensor, as they stand.
struct Header(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut tensors = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    if key == "__metadata__" {
                        // some writers put null there, and the safetensors crate takes it
                        map.next_value::<Option<HashMap<String, String>>>()?;
                    } else {
                        tensors.push((key, map.next_value()?));
                    }
                }
                Ok(Header(tensors))
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}
