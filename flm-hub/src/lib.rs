//! Getting checkpoints from the Hugging Face Hub: resumed at the byte, verified while they are written.
//!
//! A [`Plan`] is made from the [`Manifest`], the target's flm.lock, the Hub's listing and the disk. A
//! [`Pull`] holds to it: workers (`fetch`) bring ranges into `NAME.part` (`part`), a thread for each
//! file (`verify`) hashes the prefix that is complete; only a file with the right digest gets its name.
//! Shards are then turned into safetensors (`shards`). `headers` looks at a checkpoint without its weights. Everything that is needed to go on after a crash is
//! on disk at any time.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let manifest = flm_hub::Manifest::load(None)?;
//! for model in &manifest.models {
//!     println!("{} {:?}", model.name, model.repository);
//! }
//! # Ok(())
//! # }
//! ```

mod client;
mod credentials;
mod damage;
mod digest;
mod error;
mod fetch;
mod journal;
mod lock_file;
mod manifest;
mod names;
mod part;
mod plan;
mod progress;
mod pull;
mod remote_checkpoint;
mod retry;
mod selection;
mod shards;
mod transport;
mod url;
mod verify;

pub use crate::client::{Access, Hub};
pub use crate::error::HubError;
pub use crate::manifest::{Manifest, ManifestFile, Model, Shape};
pub use crate::plan::{Plan, Request, State, default_dir};
pub use crate::progress::{Event, get};
pub use crate::pull::{FileProgress, Held, OnDisk, Options, Pull, on_disk};
pub use crate::remote_checkpoint::{HubCheckpoint, repository_of};
pub use crate::selection::LeftOut;
