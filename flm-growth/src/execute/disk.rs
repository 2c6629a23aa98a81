//! Whether the disk holds what a plan will write.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flm_checkpoint::{Writer, free_disk};
use serde::Serialize;

use crate::error::{GrowthError, Result};
use crate::tensor_plan::TensorPlan;

/// Room for headers, tokenizer, provenance and what the file system keeps of them.
const BESIDE: u64 = 16 << 20;

/// What a checkpoint needs of the disk that it goes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskNeed {
    /// The directory whose file system was looked at.
    pub path: PathBuf,
    /// Bytes that are yet to be written, holes not counted.
    pub needed: u64,
    /// Bytes that are free.
    pub free: u64,
}

impl DiskNeed {
    /// [`GrowthError::DiskSpace`] where there is too little.
    pub fn check(&self) -> Result<()> {
        if self.needed <= self.free {
            return Ok(());
        }
        let path = self.path.display().to_string();
        Err(GrowthError::DiskSpace { path, needed: self.needed, free: self.free })
    }
}

/// What writing `tensors` to `dst` needs, less what an unfinished run has written.
pub fn disk_need(tensors: &[TensorPlan], dst: &Path) -> Result<DiskNeed> {
    let mut path = std::path::absolute(dst).unwrap_or_else(|_| dst.into());
    while !path.is_dir() && path.pop() {}
    let free = free_disk(&path)
        .map_err(|(path, source)| GrowthError::Read { path: path.display().to_string(), source })?;
    let written: u64 = tensors.iter().map(TensorPlan::written_bytes).sum();
    let begun = Writer::staging_path(dst)?;
    let allocated: u64 = fs::read_dir(begun).map_or(0, |files| {
        files.flatten().filter_map(|f| f.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
    });
    let needed = (written + BESIDE).saturating_sub(allocated);
    Ok(DiskNeed { path, needed, free })
}
