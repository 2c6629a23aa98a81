//! What the machine has: memory and disk that are free, memory that this process took.

use std::io;
use std::path::{Path, PathBuf};

/// Memory that the machine has free, if it says so.
pub fn available_memory() -> Option<u64> {
    kilobytes("/proc/meminfo", "MemAvailable:")
}

/// The most memory that this process has held, if the system says so.
pub fn peak_memory() -> Option<u64> {
    kilobytes("/proc/self/status", "VmHWM:")
}

/// Bytes that are free where `path` is or will be: on the file system of its nearest directory that exists.
///
/// # Errors
/// The system's, with the directory that was looked at.
pub fn free_disk(path: &Path) -> Result<u64, (PathBuf, io::Error)> {
    let absolute = std::path::absolute(path).map_err(|e| (path.into(), e))?;
    let existing = absolute.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing).map_err(|e| (existing.into(), e.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

pub(crate) fn kilobytes(path: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kb| kb << 10)
}
