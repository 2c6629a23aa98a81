//! Regular files, opened once and read by position; JSON files of bounded size.

use crate::error::CheckpointError;
use crate::error::Result;
use crate::error::io;
use crate::format::{LFS_POINTER, Source};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A regular file and its length when it was opened.
#[derive(Debug)]
pub struct OpenFile {
    pub file: File,
    pub size: u64,
}

impl OpenFile {
    /// Opens `path`, which may be a symbolic link, if it is a regular file.
    ///
    /// The kind is looked at before opening: opening a FIFO would wait for a writer.
    pub fn open(path: &Path) -> Result<Self> {
        let regular = |meta: std::fs::Metadata| {
            let not = || CheckpointError::NotARegularFile { path: path.into() };
            if meta.is_file() { Ok(meta.len()) } else { Err(not()) }
        };
        regular(std::fs::metadata(path).map_err(io("open", path))?)?;
        let file = File::open(path).map_err(io("open", path))?;
        let size = regular(file.metadata().map_err(io("open", path))?)?;
        let file = Self { file, size };
        if file.is_pointer() {
            return Err(CheckpointError::LfsPointer { path: path.into() });
        }
        Ok(file)
    }

    fn is_pointer(&self) -> bool {
        let mut head = [0u8; LFS_POINTER.len()];
        self.size < 1024 && self.read_exact_at(&mut head, 0).is_ok() && head == LFS_POINTER
    }
}

impl Source for OpenFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
}

/// All bytes of a file, a device or a pipe that has at most `limit`; what has no end is refused, not read for ever.
///
/// # Errors
/// [`CheckpointError::TooLarge`], and where it cannot be read.
pub fn read_at_most(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes));
    let size = read.map_err(io("read", path))? as u64;
    if size > limit {
        return Err(CheckpointError::TooLarge { path: path.into(), size, limit });
    }
    Ok(bytes)
}

/// The names in a directory that are UTF-8.
pub(crate) fn names_in(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io("list", dir))? {
        names.extend(entry.map_err(io("list", dir))?.file_name().into_string());
    }
    Ok(names)
}

/// The largest JSON file that is read; the 1T's index has 110 kB.
pub(crate) const MAX_JSON: u64 = 64 << 20;

/// The bytes of a JSON file, if it is a regular file of sensible size.
///
/// # Errors
/// [`CheckpointError::NotARegularFile`], [`CheckpointError::TooLarge`], and where it cannot be read.
pub fn read_json_file(path: &Path) -> Result<Vec<u8>> {
    let source = OpenFile::open(path)?;
    if source.size > MAX_JSON {
        return Err(CheckpointError::TooLarge { path: path.into(), size: source.size, limit: MAX_JSON });
    }
    source.bytes_at(0, source.size as usize).map_err(io("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_end_is_refused() {
        let endless = read_at_most(Path::new("/dev/zero"), 1000);
        assert!(matches!(endless, Err(CheckpointError::TooLarge { limit: 1000, .. })));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "four").unwrap();
        assert_eq!(read_at_most(file.path(), 4).unwrap(), b"four");
        assert!(read_at_most(file.path(), 3).is_err());
    }
}
