//! Getting checkpoints from the Hugging Face Hub: resumed at the byte, verified while they are written.
//!
//! A [`Plan`] is made from the [`Manifest`], the target's flm.lock, the Hub's listing and the disk. A
//! [`Pull`] holds to it: workers (`fetch`) bring ranges into `NAME.part` (`part`), a thread for each
//! file (`verify`) hashes the prefix that is complete; only a file with the right digest gets its name.
//! Shards are then turned into safetensors (`shards`). `headers` looks at a checkpoint without its weights. Everything that is needed to go on after a crash is
//! on disk at any time.

mod client;
mod digest;
pub(crate) mod durable;
mod error;
mod fetch;
mod file_name;
mod headers;
mod journal;
mod lock_file;
mod manifest;
mod part;
mod plan;
mod progress;
mod pull;
mod ranges;
mod retry;
mod shards;
mod target;
mod transport;
mod verify;

pub(crate) use self::{
    client::{Access, Hub},
    error::HubError,
    headers::{HubCheckpoint, repository_of},
    manifest::{Manifest, ManifestFile, Model, Shape},
    plan::{Plan, Request, State, default_dir},
    progress::{Event, get},
    pull::{FileProgress, Held, OnDisk, Options, Pull, on_disk},
};

/// Bytes that are written, recorded and hashed at a time; what a killed worker can lose.
const PIECE: usize = 1 << 20;
