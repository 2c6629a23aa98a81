//! Checkpoint files: opened by their headers, read by position, written whole or not at all.
//!
//! Knows nothing about models, tokenizers or the network. In the order to read it:
//!
//! - `config`: [`TeleFlmConfig`], the Hub's config.json without loss, presets, masks of a growing model
//! - `format`: parsers of untrusted bytes: safetensors headers, zip directories, pickles, indexes
//! - `read`: [`Checkpoint`], one table of tensors whatever the files are; [`RemoteFiles`] for ranges of a server
//! - `write`: [`Writer`], sharded safetensors in a staging directory; [`Engine`], threads that fill and hash them
//! - `checksums`, `identity`: what was written, and whether this is the same run ([`RunKey`])
//! - `part`: which part of the work is whose, where several processes share it ([`JobPart`])
//! - [`atomic`]: files and directories that appear complete and fsynced, or not at all

pub mod atomic;
mod checksums;
mod config;
mod dtype;
mod error;
mod format;
pub mod fuzzing;
mod hex;
mod identity;
mod machine;
mod part;
mod ranges;
mod read;
mod tensor_id;
mod write;

pub use crate::atomic::DirectoryLock;
pub use crate::checksums::{
    CHECKSUMS_FILE, ChecksumReport, Checksums, FileDigest, TensorSource, WeightFileDigest, digest_of,
};
pub use crate::config::layers::{LayerKind, LayerKinds, LayerRope};
pub use crate::config::masks::{GrowthMasks, HeadMask, LayerMask, Mask, MaskSchedule, ScheduleKind};
pub use crate::config::preset::{PRESETS, preset};
pub use crate::config::rope::RopeScaling;
pub use crate::config::{Activation, ConfigError, ModelType, NormPlacement, QkNorm, TeleFlmConfig};
pub use crate::dtype::{Dtype, Scaled, UnknownDtype, cast, is_power_of_two, scale};
pub use crate::error::{CheckpointError, Result};
pub use crate::format::zip::ZipEntry;
pub use crate::format::{LFS_POINTER, Source, without_bom};
pub use crate::hex::hex;
pub use crate::identity::{RunKey, content_digest, fingerprint};
pub use crate::machine::{available_memory, free_disk, peak_memory};
pub use crate::part::JobPart;
pub use crate::ranges::{Pieces, Ranges};
pub use crate::read::check::require_outside;
pub use crate::read::file::{read_at_most, read_json_file};
pub use crate::read::open::parse_index;
pub use crate::read::place::cached_snapshots;
pub use crate::read::remote::RemoteFiles;
pub use crate::read::statistics::ValueStatistics;
pub use crate::read::{Checkpoint, Format, TensorEntry};
pub use crate::tensor_id::{
    Axis, EMBED_TOKENS, FINAL_NORM, LM_HEAD, Part, TensorId, TensorShape, TensorSpec,
};
pub use crate::write::engine::{Completion, Engine, Fill, Written};
pub use crate::write::pytorch_shard::{ShardTensor, convert_shard};
pub use crate::write::shard_plan::{Layout, index_text};
pub use crate::write::sidecar::{Card, copy_side_files, is_place_of_checkpoint};
pub use crate::write::writer::Writer;
