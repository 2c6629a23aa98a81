//! `flm pull` against a Hub on the loopback: every fault and what comes of it.

// clippy's exception for tests does not reach their helper functions
#![allow(clippy::unwrap_used)]

mod conversion;
mod faults;
mod inspect;
mod keeps;
mod kills;
mod large;
mod protocol;
mod run;
mod secrets;

use std::path::Path;

/// Bytes that no two positions or files share a run of.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

const MIB: usize = 1 << 20;

/// A small repository: two texts, two shards.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("config.json", b"{}".to_vec()),
        ("tokenizer.model", noise(1, 12_345)),
        ("pytorch_model-00001-of-00002.bin", noise(2, 5 * MIB + 123)),
        ("pytorch_model-00002-of-00002.bin", noise(3, 3 * MIB)),
    ]
}

const SHARD: &str = "pytorch_model-00001-of-00002.bin";

/// All files are there under their names with the right bytes, and nothing half-done is.
fn complete(dir: &Path, files: &[(&str, Vec<u8>)]) {
    for (name, bytes) in files {
        assert!(std::fs::read(dir.join(name)).unwrap() == *bytes, "{name}");
    }
    nothing_wrong(dir, files);
    let left: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|n| !n.contains(".part")), "{left:?}");
}

/// Whatever stands under a final name has the right bytes.
fn nothing_wrong(dir: &Path, files: &[(&str, Vec<u8>)]) {
    for (name, bytes) in files {
        if let Ok(found) = std::fs::read(dir.join(name)) {
            assert!(found == *bytes, "{name} is wrong under its final name");
        }
    }
}
