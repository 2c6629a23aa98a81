//! The parsers of untrusted bytes, for the targets in `fuzz/`. Not part of the API.

/// The header of a safetensors file.
pub fn safetensors(bytes: &[u8]) {
    let _ = super::safetensors_header::read(&bytes);
}

/// A PyTorch file.
pub fn pytorch(bytes: &[u8]) {
    let _ = super::pytorch::read(&bytes);
}

/// The pickle inside a PyTorch file.
pub fn pickle(bytes: &[u8]) {
    let _ = super::pickle::read(bytes);
}

/// An index.
pub fn index(bytes: &[u8]) {
    let _ = super::weight_map::parse(bytes);
}
