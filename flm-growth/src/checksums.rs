//! Digests of a checkpoint's files and tensors, and the check of a directory against them.

pub use flm_candle::checkpoint::{CHECKSUMS_FILE, ChecksumReport, Checksums, FileDigest, WeightFileDigest};
