//! Positioned reads from files and, for tests and fuzzing, from bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::CheckpointError;
use super::error::{Result, io};

/// Something of known length that can be read at any position.
pub(super) trait Source {
    /// Length in bytes.
    fn size(&self) -> u64;
    /// Fills `buf` from byte `offset`; `UnexpectedEof` where that reaches past the end.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Whether every read is a round trip: then only what is needed to know the tensors is read.
    fn is_distant(&self) -> bool {
        false
    }

    /// `len` bytes from `offset`; checked against the length before anything is allocated.
    fn bytes_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        if offset.checked_add(len as u64).is_none_or(|end| end > self.size()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut buf = vec![0; len];
        self.read_exact_at(&mut buf, offset)?;
        Ok(buf)
    }
}

impl Source for &[u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let bytes = start.and_then(|start| self.get(start..start.checked_add(buf.len())?));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A regular file and its length when it was opened.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) file: File,
    pub(super) size: u64,
}

impl OpenFile {
    /// Opens `path`, which may be a symbolic link, if it is a regular file.
    ///
    /// The kind is looked at before opening: opening a FIFO would wait for a writer.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let regular = |meta: std::fs::Metadata| {
            let not = || CheckpointError::NotARegularFile { path: path.into() };
            if meta.is_file() { Ok(meta.len()) } else { Err(not()) }
        };
        regular(std::fs::metadata(path).map_err(io("open", path))?)?;
        let file = File::open(path).map_err(io("open", path))?;
        let size = regular(file.metadata().map_err(io("open", path))?)?;
        Ok(Self { file, size })
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

/// The largest JSON file that is read; the 1T's index has 110 kB.
pub(super) const MAX_JSON: u64 = 64 << 20;

/// The bytes of a JSON file, if it is a regular file of sensible size.
pub(super) fn read_json_file(path: &Path) -> Result<Vec<u8>> {
    let source = OpenFile::open(path)?;
    if source.size > MAX_JSON {
        return Err(CheckpointError::TooLarge { path: path.into(), size: source.size, limit: MAX_JSON });
    }
    source.bytes_at(0, source.size as usize).map_err(io("read", path))
}
