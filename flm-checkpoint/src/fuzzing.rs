//! The parsers of untrusted bytes, for the targets in `fuzz/`. Not part of the API.

/// The header of a safetensors file.
pub fn safetensors(bytes: &[u8]) {
    let _ = crate::format::safetensors::read(&bytes);
}

/// A PyTorch file.
pub fn pytorch(bytes: &[u8]) {
    let _ = crate::format::pytorch::read(&bytes);
}

/// The pickle inside a PyTorch file.
pub fn pickle(bytes: &[u8]) {
    let _ = crate::format::pickle::read(bytes);
}

/// Parses `bytes` as model.safetensors.index.json.
pub fn index(bytes: &[u8]) {
    let _ = crate::format::index::parse(bytes);
}
