//! Checkpoints that are somewhere else: their headers are read by ranges, their weights are not.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::path::Path;

use crate::error::CheckpointError;
use crate::error::{Result, io as io_error};
use crate::format::Source;
use crate::read::file::MAX_JSON;
use crate::read::open::{Files, Headers, read_headers};
use crate::read::{Checkpoint, Format};

/// Files that can be read in ranges, for instance by HTTP.
pub trait RemoteFiles {
    /// The length of the file `name` in bytes; `None` where there is no such file.
    fn size(&self, name: &str) -> Option<u64>;

    /// The bytes of `range`, which lies inside the file `name`.
    fn read(&self, name: &str, range: Range<u64>) -> io::Result<Vec<u8>>;
}

impl Checkpoint {
    /// Opens a checkpoint among `files` by config.json, the index and the headers of its weight files;
    /// `location` is what it is called in errors.
    ///
    /// All that [`Checkpoint::problems`] looks at is known then. Weights cannot be read, and of a PyTorch
    /// archive only the directory and the pickle were checked, not the header in front of every storage.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], and whatever `files` raise.
    pub fn open_remote(location: &Path, files: &dyn RemoteFiles) -> Result<Self> {
        Self::open_in(location, &Remote { location, files })
    }
}

struct Remote<'a> {
    location: &'a Path,
    files: &'a dyn RemoteFiles,
}

impl Remote<'_> {
    /// A path below `location` as the file's name there.
    fn name<'p>(&self, path: &'p Path) -> &'p str {
        path.strip_prefix(self.location).ok().and_then(Path::to_str).unwrap_or_default()
    }

    fn file<'p>(&'p self, path: &'p Path) -> Result<RemoteFile<'p>> {
        let name = self.name(path);
        let missing = || io_error("find", path)(io::ErrorKind::NotFound.into());
        let size = self.files.size(name).ok_or_else(missing)?;
        Ok(RemoteFile { files: self.files, name, size, spans: RefCell::default() })
    }
}

impl Files for Remote<'_> {
    fn has(&self, path: &Path) -> bool {
        self.files.size(self.name(path)).is_some()
    }

    fn names(&self, _: &Path) -> Vec<String> {
        Vec::new()
    }

    fn json(&self, path: &Path) -> Result<Vec<u8>> {
        let RemoteFile { name, size, .. } = self.file(path)?;
        if size > MAX_JSON {
            return Err(CheckpointError::TooLarge { path: path.into(), size, limit: MAX_JSON });
        }
        self.files.read(name, 0..size).map_err(io_error("read", path))
    }

    fn headers(&self, format: Format, path: &Path) -> Result<Headers> {
        let file = self.file(path)?;
        let contents = read_headers(format, path, &file)?;
        Ok(Headers { size: file.size, contents, handle: None })
    }
}

/// What is asked for at least, where the file has as much: headers are read in small steps.
const SPAN: u64 = 32 << 10;

/// A file of which a few spans are fetched and kept.
struct RemoteFile<'a> {
    files: &'a dyn RemoteFiles,
    name: &'a str,
    size: u64,
    /// First byte and bytes.
    spans: RefCell<Vec<(u64, Vec<u8>)>>,
}

impl Source for RemoteFile<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= self.size);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut spans = self.spans.borrow_mut();
        let held = |(start, bytes): &(u64, Vec<u8>)| *start <= offset && end <= start + bytes.len() as u64;
        let at = match spans.iter().position(held) {
            Some(at) => at,
            None => {
                let wanted = offset..end.max(offset.saturating_add(SPAN)).min(self.size);
                let bytes = self.files.read(self.name, wanted.clone())?;
                if bytes.len() as u64 != wanted.end - wanted.start {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                spans.push((offset, bytes));
                spans.len() - 1
            }
        };
        let (start, bytes) = &spans[at];
        buf.copy_from_slice(&bytes[(offset - start) as usize..(end - start) as usize]);
        Ok(())
    }

    fn is_distant(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use flm_tests::files::fixture;

    /// Files in memory that count what is read of them.
    struct Counted {
        files: HashMap<String, Vec<u8>>,
        reads: RefCell<Vec<(String, u64)>>,
    }

    impl Counted {
        fn of(name: &str) -> Self {
            let entries = std::fs::read_dir(fixture("models").join(name)).unwrap().map(|e| e.unwrap());
            let files = entries
                .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
                .collect();
            Self { files, reads: RefCell::default() }
        }
    }

    impl RemoteFiles for Counted {
        fn size(&self, name: &str) -> Option<u64> {
            self.files.get(name).map(|bytes| bytes.len() as u64)
        }

        fn read(&self, name: &str, range: Range<u64>) -> io::Result<Vec<u8>> {
            self.reads.borrow_mut().push((name.into(), range.end - range.start));
            Ok(self.files[name][range.start as usize..range.end as usize].to_vec())
        }
    }

    #[test]
    fn the_tensors_are_those_of_the_opened_directory() {
        for name in
            ["teleflm-f32-st", "teleflm-gqa-f32-shst", "teleflm-bf16-shbin", "teleflm-hd32-bf16-shbin"]
        {
            let files = Counted::of(name);
            let local = Checkpoint::open(&fixture("models").join(name)).unwrap();
            let remote = Checkpoint::open_remote(Path::new("owner/name"), &files).unwrap();
            assert_eq!((remote.format(), remote.config()), (local.format(), local.config()));
            let what = |c: &Checkpoint| -> Vec<_> {
                c.entries().map(|e| (e.name.clone(), e.dtype, e.shape.clone(), e.file, e.nbytes)).collect()
            };
            assert_eq!(what(&remote), what(&local), "{name}");
            assert!(remote.problems().is_empty());
            assert!(remote.files()[0].path.starts_with("owner/name"));
            // A header is one read, an archive two: its first and its last bytes.
            let reads = files.reads.borrow();
            for file in remote.files() {
                let file = file.path.file_name().unwrap().to_str().unwrap();
                let count = reads.iter().filter(|(name, _)| name == file).count();
                assert!(count <= 2, "{file}: {reads:?}");
            }
            let entry = remote.entries().next().unwrap();
            let error = remote.read(entry).unwrap_err().to_string();
            assert!(error.contains("download it first"), "{error}");
        }
    }

    #[test]
    fn storages_that_overlap_by_the_directory_are_refused() {
        let mut files = Counted::of("teleflm-bf16-shbin");
        let name = "pytorch_model-00001-of-00004.bin";
        let bytes = files.files.get_mut(name).unwrap();
        // The size in the directory's record of the first storage, and in its copy.
        let at = bytes.windows(6).rposition(|w| w == b"data/0").unwrap();
        let record = bytes[..at].windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
        for field in [record + 20, record + 24] {
            bytes[field..field + 4].copy_from_slice(&0x00ff_ffffu32.to_le_bytes());
        }
        let error = Checkpoint::open_remote(Path::new("o/n"), &files).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("overlaps"), "{error}");
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        let mut files = Counted::of("teleflm-bf16-shbin");
        files.files.remove("pytorch_model-00003-of-00004.bin");
        let error = Checkpoint::open_remote(Path::new("o/n"), &files).unwrap_err();
        assert!(matches!(error, CheckpointError::MissingFile { .. }), "{error}");
        files.files.remove("config.json");
        let error = Checkpoint::open_remote(Path::new("o/n"), &files).unwrap_err().to_string();
        assert!(error.contains("o/n/config.json"), "{error}");
    }
}
