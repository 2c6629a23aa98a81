//! What fills the tensors of a conversion: bytes of the source, checked, and changed where asked.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use flm_checkpoint::{Checkpoint, CheckpointError, Fill, Result, Source, TensorEntry, ZipEntry};
use flm_checkpoint::{cast, scale};
use rayon::prelude::*;

use crate::convert::plan::Planned;

/// Bytes read at a time; small enough that what was read is in the cache when it is hashed and written.
pub(super) const CHUNK: u64 = 2 << 20;
/// More threads only contend for the page cache.
pub(super) const MAX_THREADS: usize = 4;

/// A tensor of the source on its way to the output.
pub(super) struct Moved<'a> {
    src: &'a Checkpoint,
    planned: Planned<'a>,
    /// The storage that its bytes are, all of it, and the CRC-32 of each chunk.
    storage: Option<&'a ZipEntry>,
    crcs: Mutex<Vec<u32>>,
    /// Elements whose product with the factor was rounded, and finite ones that became infinite.
    rounded: AtomicU64,
    overflowed: AtomicU64,
}

impl<'a> Moved<'a> {
    pub(super) fn new(src: &'a Checkpoint, planned: Planned<'a>) -> Self {
        let entry = planned.entry;
        let storage = src.storage_of(entry);
        let crcs = storage.map_or(0, |_| entry.nbytes.div_ceil(CHUNK));
        Self {
            src,
            planned,
            storage,
            crcs: Mutex::new(vec![0; crcs as usize]),
            rounded: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
        }
    }

    /// How many of its products with a factor were rounded.
    pub(super) fn rounded(&self) -> u64 {
        self.rounded.load(Ordering::Relaxed)
    }

    /// How many finite elements became infinite.
    pub(super) fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }

    /// Bytes of the source for so many of the output.
    pub(super) fn source_bytes(&self, bytes: u64) -> u64 {
        let (from, to) = self.widths();
        bytes / to * from
    }

    /// Reads a chunk of the source and takes it into the storage's checksum.
    fn read(&self, range: Range<u64>, bytes: &mut Vec<u8>) -> Result<()> {
        bytes.resize((range.end - range.start) as usize, 0);
        self.src.read_at(self.planned.entry, range.start, bytes)?;
        if self.storage.is_some() {
            let crc = crc32fast::hash(bytes);
            let mut crcs = self.crcs.lock().unwrap_or_else(PoisonError::into_inner);
            crcs[(range.start / CHUNK) as usize] = crc;
        }
        Ok(())
    }

    fn widths(&self) -> (u64, u64) {
        (self.planned.entry.dtype.size_in_bytes() as u64, self.planned.to.size_in_bytes() as u64)
    }
}

impl Fill for Moved<'_> {
    type Error = CheckpointError;

    fn name(&self) -> &str {
        &self.planned.entry.name
    }

    fn nbytes(&self) -> u64 {
        self.planned.nbytes()
    }

    fn cut(&self, start: u64) -> u64 {
        let (from, to) = self.widths();
        start + CHUNK / from * to
    }

    fn fill(&self, range: Range<u64>, scratch: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<()> {
        let Planned { entry, to, factor } = self.planned;
        let source = self.source_bytes(range.start)..self.source_bytes(range.end);
        if self.planned.is_verbatim() {
            return self.read(source, out);
        }
        self.read(source, scratch)?;
        let overflowed = if factor == 1.0 {
            cast(entry.dtype, to, scratch, out)
        } else {
            let scaled = scale(entry.dtype, to, factor, scratch, out);
            self.rounded.fetch_add(scaled.rounded, Ordering::Relaxed);
            scaled.overflowed
        };
        self.overflowed.fetch_add(overflowed, Ordering::Relaxed);
        Ok(())
    }

    /// Compares the storage's CRC-32.
    fn finish(&self) -> Result<()> {
        let Some(storage) = self.storage else { return Ok(()) };
        let crcs = std::mem::take(&mut *self.crcs.lock().unwrap_or_else(PoisonError::into_inner));
        let mut whole = crc32fast::Hasher::new();
        for (i, crc) in crcs.into_iter().enumerate() {
            let length = CHUNK.min(self.planned.entry.nbytes - i as u64 * CHUNK);
            whole.combine(&crc32fast::Hasher::new_with_initial_len(crc, length));
        }
        self.src.compare_storage(self.planned.entry.file, storage, self.name(), whole.finalize())
    }
}

/// Compares the CRC-32 of the storages of which no tensor is all; returns the bytes that were read for it.
pub(super) fn check_uncovered(src: &Checkpoint, tensors: &[Moved<'_>]) -> Result<u64> {
    let covered: HashSet<(usize, u64)> =
        tensors.iter().filter_map(|t| Some((t.planned.entry.file, t.storage?.offset))).collect();
    let all = src.storages.iter().enumerate().flat_map(|(file, s)| s.iter().map(move |s| (file, s)));
    let open: Vec<_> =
        all.filter(|(file, s)| s.crc32 != 0 && s.size > 0 && !covered.contains(&(*file, s.offset))).collect();
    open.par_iter().map(|(file, storage)| check_storage(src, *file, storage)).sum()
}

fn check_storage(src: &Checkpoint, file: usize, storage: &ZipEntry) -> Result<u64> {
    let inside = |e: &&TensorEntry| {
        e.file == file && (storage.offset..storage.offset + storage.size).contains(&e.offset)
    };
    let name = src.entries().find(inside).map_or("none", |e| e.name.as_str());
    let mut crc = crc32fast::Hasher::new();
    let mut buffer = vec![0; CHUNK.min(storage.size) as usize];
    for start in (0..storage.size).step_by(CHUNK as usize) {
        let bytes = &mut buffer[..CHUNK.min(storage.size - start) as usize];
        src.handles[file].read_exact_at(bytes, storage.offset + start).map_err(|source| {
            CheckpointError::Read { tensor: name.into(), path: src.files[file].path.clone(), source }
        })?;
        crc.update(bytes);
    }
    src.compare_storage(file, storage, name, crc.finalize())?;
    Ok(storage.size)
}
