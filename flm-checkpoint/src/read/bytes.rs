//! Reading weights by position.

use crate::error::CheckpointError;
use crate::error::Result;
use crate::format::Source;
use crate::format::zip::ZipEntry;
use crate::read::{Checkpoint, TensorEntry};

impl Checkpoint {
    /// Fills `buf` from byte `offset` of the tensor, by a positioned read; safe from many threads.
    ///
    /// # Errors
    /// [`CheckpointError::OutOfRange`] past the tensor's end; [`CheckpointError::Read`] where the
    /// system refuses or the file was cut after it was opened.
    pub fn read_at(&self, entry: &TensorEntry, offset: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > entry.nbytes) {
            let (tensor, nbytes) = (entry.name.clone(), entry.nbytes);
            return Err(CheckpointError::OutOfRange { tensor, offset, len, nbytes });
        }
        let done = match self.handles.get(entry.file) {
            Some(handle) => {
                let mut runs = entry.pieces.runs(offset, len);
                runs.try_for_each(|(at, run)| handle.read_exact_at(&mut buf[run], entry.offset + at))
            }
            None => Err(std::io::Error::other("only its headers were fetched; download it first")),
        };
        done.map_err(|source| CheckpointError::Read {
            tensor: entry.name.clone(),
            path: self.files[entry.file].path.clone(),
            source,
        })
    }

    /// All bytes of a tensor.
    ///
    /// # Errors
    /// Those of [`Checkpoint::read_in_pieces`].
    pub fn read(&self, entry: &TensorEntry) -> Result<Vec<u8>> {
        let mut bytes = vec![0; entry.nbytes as usize];
        self.read_at(entry, 0, &mut bytes)?;
        self.check_storage(entry, || crc32fast::hash(&bytes))?;
        Ok(bytes)
    }

    /// Gives all bytes of a tensor to `take`, in order, in pieces of at most 1 MiB that hold whole elements.
    ///
    /// # Errors
    /// Those of [`Checkpoint::read_at`], and [`CheckpointError::Checksum`] at the end where the bytes are a whole
    /// entry of a PyTorch archive and not what was saved.
    pub fn read_in_pieces(&self, entry: &TensorEntry, mut take: impl FnMut(&[u8])) -> Result<()> {
        let mut buf = vec![0; PIECE.min(entry.nbytes) as usize];
        // only PyTorch's archives have something to compare with
        let mut crc = Crc::new(self.storage_of(entry).is_some());
        for start in (0..entry.nbytes).step_by(PIECE as usize) {
            let buf = &mut buf[..PIECE.min(entry.nbytes - start) as usize];
            self.read_at(entry, start, buf)?;
            crc.update(buf);
            take(buf);
        }
        self.check_storage(entry, || crc.finish())
    }

    /// The archive's entry that is this tensor and nothing else, if it was saved with a checksum.
    pub fn storage_of(&self, entry: &TensorEntry) -> Option<&ZipEntry> {
        let storages = self.storages.get(entry.file)?;
        let at = storages.partition_point(|s| s.offset < entry.offset);
        let same = |s: &&ZipEntry| (s.offset, s.size) == (entry.offset, entry.nbytes) && s.crc32 != 0;
        storages[at..].iter().take_while(|s| s.offset == entry.offset).find(same)
    }

    fn check_storage(&self, entry: &TensorEntry, crc: impl FnOnce() -> u32) -> Result<()> {
        match self.storage_of(entry) {
            Some(storage) => self.compare_storage(entry.file, storage, &entry.name, crc()),
            None => Ok(()),
        }
    }

    /// Compares the CRC-32 of a storage of weight file `file` with what was saved, if that was; `tensor` is one of
    /// its tensors, for the message.
    ///
    /// # Errors
    /// [`CheckpointError::Checksum`].
    pub fn compare_storage(&self, file: usize, storage: &ZipEntry, tensor: &str, got: u32) -> Result<()> {
        // 0: saved without checksums
        if storage.crc32 == 0 || got == storage.crc32 {
            return Ok(());
        }
        Err(CheckpointError::Checksum {
            path: self.files[file].path.clone(),
            entry: storage.name.clone(),
            tensor: tensor.into(),
            expected: storage.crc32,
            got,
        })
    }
}

/// A CRC-32, where one is wanted.
struct Crc(Option<crc32fast::Hasher>);

impl Crc {
    fn new(wanted: bool) -> Self {
        Self(wanted.then(crc32fast::Hasher::new))
    }

    fn update(&mut self, bytes: &[u8]) {
        if let Some(hasher) = &mut self.0 {
            hasher.update(bytes);
        }
    }

    fn finish(self) -> u32 {
        self.0.map_or(0, crc32fast::Hasher::finalize)
    }
}

/// Bytes read at a time; a multiple of every element's width.
const PIECE: u64 = 1 << 20;
