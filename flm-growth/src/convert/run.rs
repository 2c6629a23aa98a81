//! The threads that move bytes: read, check, hash, change where asked, write.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use blake3::hazmat::ChainingValue;

use crate::convert::plan::Planned;
use crate::convert::tree;
use flm_checkpoint::Checkpoint;
use flm_checkpoint::CheckpointError;
use flm_checkpoint::Journal;
use flm_checkpoint::Result;
use flm_checkpoint::Source;
use flm_checkpoint::Writer;
use flm_checkpoint::ZipEntry;
use flm_checkpoint::{cast, scale};

/// Bytes read at a time; small enough that what was read is in the cache when it is hashed and written,
/// and a power of two, as the digests' tree needs it.
pub(super) const CHUNK: u64 = 2 << 20;
/// More threads only contend for the page cache.
const MAX_THREADS: usize = 4;

/// A run of bytes of one file: a tensor to write, or a storage whose checksum no tensor covers.
pub(super) struct Job<'a> {
    file: usize,
    offset: u64,
    nbytes: u64,
    /// What to write, and as what.
    tensor: Option<Planned<'a>>,
    /// The storage that these bytes are, all of it.
    storage: Option<&'a ZipEntry>,
    /// For errors: a tensor in these bytes.
    name: &'a str,
    chunks: Mutex<Chunks>,
    /// Elements whose product with the factor was rounded.
    rounded: AtomicU64,
}

/// What is known of a job's chunks.
struct Chunks {
    /// CRC-32 of each, where there is a storage to compare with.
    crcs: Vec<u32>,
    /// Subtree of the output's digest.
    values: Vec<ChainingValue>,
    /// How many are to come.
    missing: u64,
}

impl<'a> Job<'a> {
    pub(super) fn tensor(src: &'a Checkpoint, planned: Planned<'a>) -> Self {
        let entry = planned.entry;
        let storages = &src.storages[entry.file];
        let at = storages.partition_point(|s| s.offset < entry.offset);
        let same = |s: &&ZipEntry| (s.offset, s.size) == (entry.offset, entry.nbytes);
        let storage = storages[at..].iter().take_while(|s| s.offset == entry.offset).find(same);
        Self::new(entry.file, entry.offset, entry.nbytes, storage, &entry.name, Some(planned))
    }

    fn storage(src: &'a Checkpoint, file: usize, storage: &'a ZipEntry) -> Self {
        let inside = |e: &&flm_checkpoint::TensorEntry| {
            e.file == file && (storage.offset..storage.offset + storage.size).contains(&e.offset)
        };
        let name = src.entries().find(inside).map_or("none", |e| e.name.as_str());
        Self::new(file, storage.offset, storage.size, Some(storage), name, None)
    }

    fn new(
        file: usize,
        offset: u64,
        nbytes: u64,
        storage: Option<&'a ZipEntry>,
        name: &'a str,
        tensor: Option<Planned<'a>>,
    ) -> Self {
        let missing = nbytes.div_ceil(CHUNK);
        let crcs = storage.map_or(Vec::new(), |_| vec![0; missing as usize]);
        let values = tensor.map_or(Vec::new(), |_| vec![[0; 32]; missing as usize]);
        let chunks = Mutex::new(Chunks { crcs, values, missing });
        Self { file, offset, nbytes, tensor, storage, name, chunks, rounded: AtomicU64::new(0) }
    }

    /// Storages that none of `jobs` reads whole.
    pub(super) fn uncovered_storages(src: &'a Checkpoint, jobs: &[Self]) -> Vec<Self> {
        let covered: HashSet<(usize, u64)> =
            jobs.iter().filter_map(|j| Some((j.file, j.storage?.offset))).collect();
        let mut rest = Vec::new();
        for (file, storages) in src.storages.iter().enumerate() {
            let open = storages.iter().filter(|s| s.size > 0 && !covered.contains(&(file, s.offset)));
            rest.extend(open.map(|storage| Self::storage(src, file, storage)));
        }
        rest
    }

    /// The tensor's name and how many of its products with a factor were rounded.
    pub(super) fn rounded(&self) -> Option<(&'a str, u64)> {
        Some((&self.tensor?.entry.name, self.rounded.load(Ordering::Relaxed)))
    }

    fn is_finished(&self, finished: &BTreeMap<String, String>) -> bool {
        self.tensor.is_some_and(|t| finished.contains_key(&t.entry.name))
    }
}

/// What the threads of a conversion share.
pub(super) struct Run<'a> {
    pub src: &'a Checkpoint,
    pub writer: &'a Writer,
    pub progress: &'a (dyn Fn(u64) + Sync),
    /// Whether the staging directory may hold bytes of an earlier run.
    pub resumed: bool,
    pub journal: Mutex<Journal>,
    /// Digests of finished tensors.
    pub digests: Mutex<BTreeMap<String, String>>,
    pub read: AtomicU64,
    pub holes: AtomicU64,
    pub overflowed: AtomicU64,
}

/// Buffers of one thread.
struct Buffers {
    read: Vec<u8>,
    changed: Vec<u8>,
    back: Vec<u8>,
}

impl Run<'_> {
    /// Does all jobs but those of tensors that are finished, chunk by chunk in their order; the first
    /// error stops the others.
    pub(super) fn all(&self, jobs: &[Job<'_>]) -> Result<()> {
        let finished = lock(&self.digests).clone();
        let jobs: Vec<&Job<'_>> = jobs.iter().filter(|job| !job.is_finished(&finished)).collect();
        let mut starts = Vec::with_capacity(jobs.len());
        let mut count = 0usize;
        for job in &jobs {
            starts.push(count);
            count += job.nbytes.div_ceil(CHUNK) as usize;
            if job.nbytes == 0 {
                self.finish(job, &[])?;
            }
        }
        let largest = jobs.iter().map(|j| j.nbytes).max().unwrap_or(0);
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let worker = || {
            let read = vec![0; CHUNK.min(largest) as usize];
            let mut buffers = Buffers { read, changed: Vec::new(), back: Vec::new() };
            while !stop.load(Ordering::Relaxed) {
                let chunk = next.fetch_add(1, Ordering::Relaxed);
                if chunk >= count {
                    break;
                }
                // The last job that starts here or before: empty ones start where the next does.
                let job = starts.partition_point(|&start| start <= chunk) - 1;
                let done = self.chunk(jobs[job], (chunk - starts[job]) as u64, &mut buffers);
                if done.is_err() {
                    stop.store(true, Ordering::Relaxed);
                    return done;
                }
            }
            Ok(())
        };
        let threads = rayon::current_num_threads().clamp(1, MAX_THREADS);
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(worker)).collect();
            let mut result = worker();
            for other in others {
                result = match other.join() {
                    Ok(theirs) => result.and(theirs),
                    Err(panic) => std::panic::resume_unwind(panic),
                };
            }
            result
        })
    }

    fn chunk(&self, job: &Job<'_>, index: u64, buffers: &mut Buffers) -> Result<()> {
        let start = index * CHUNK;
        let bytes = &mut buffers.read[..CHUNK.min(job.nbytes - start) as usize];
        let read = self.src.handles[job.file].read_exact_at(bytes, job.offset + start);
        read.map_err(|source| CheckpointError::Read {
            tensor: job.name.into(),
            path: self.src.files[job.file].path.clone(),
            source,
        })?;
        let (bytes, length) = (&*bytes, bytes.len() as u64);
        self.read.fetch_add(length, Ordering::Relaxed);
        let crc = job.storage.map(|_| crc32fast::hash(bytes));
        let mut value = None;
        if let Some(planned) = job.tensor {
            let out = if planned.is_verbatim() {
                bytes
            } else {
                change(&planned, bytes, &mut buffers.changed, job, &self.overflowed);
                &buffers.changed
            };
            let (from, to) = (planned.entry.dtype.size_in_bytes() as u64, planned.to.size_in_bytes() as u64);
            self.write(job.name, start / from * to, out, &mut buffers.back)?;
            let count = job.nbytes.div_ceil(CHUNK);
            value = Some(tree::chunk_value(index, count, CHUNK / from * to, out));
            (self.progress)(length);
        }
        let mut chunks = lock(&job.chunks);
        if let (Some(crc), Some(slot)) = (crc, chunks.crcs.get_mut(index as usize)) {
            *slot = crc;
        }
        if let (Some(value), Some(slot)) = (value, chunks.values.get_mut(index as usize)) {
            *slot = value;
        }
        chunks.missing -= 1;
        if chunks.missing > 0 {
            return Ok(());
        }
        let (crcs, values) = (std::mem::take(&mut chunks.crcs), std::mem::take(&mut chunks.values));
        drop(chunks);
        self.check(job, &crcs)?;
        self.finish(job, &values)
    }

    /// Writes bytes of a tensor; zeros stay a hole of the file.
    fn write(&self, tensor: &str, offset: u64, bytes: &[u8], back: &mut Vec<u8>) -> Result<()> {
        if !is_zero(bytes) {
            return self.writer.write_at(tensor, offset, bytes);
        }
        if self.resumed {
            // a crash of the machine may have left anything
            back.resize(bytes.len(), 0);
            self.writer.read_at(tensor, offset, back)?;
            if !is_zero(back) {
                return self.writer.write_at(tensor, offset, bytes);
            }
        }
        self.holes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.writer.skip(tensor, offset, bytes.len() as u64)
    }

    /// Compares a storage's CRC-32, all of whose chunks are in.
    fn check(&self, job: &Job<'_>, crcs: &[u32]) -> Result<()> {
        let Some(storage) = job.storage else { return Ok(()) };
        let mut whole = crc32fast::Hasher::new();
        for (i, &crc) in crcs.iter().enumerate() {
            let len = CHUNK.min(job.nbytes - i as u64 * CHUNK);
            whole.combine(&crc32fast::Hasher::new_with_initial_len(crc, len));
        }
        let got = whole.finalize();
        // 0: saved without checksums
        if got == storage.crc32 || storage.crc32 == 0 {
            return Ok(());
        }
        Err(CheckpointError::Checksum {
            path: self.src.files[job.file].path.clone(),
            entry: storage.name.clone(),
            tensor: job.name.into(),
            expected: storage.crc32,
            got,
        })
    }

    /// Puts a tensor that is written and right into the journal.
    fn finish(&self, job: &Job<'_>, values: &[ChainingValue]) -> Result<()> {
        if job.tensor.is_none() {
            return Ok(());
        }
        let digest = tree::digest(values).to_hex().to_string();
        lock(&self.journal).finish(job.name, &digest)?;
        lock(&self.digests).insert(job.name.into(), digest);
        Ok(())
    }
}

/// The bytes of a chunk in the output's dtype, times the factor.
fn change(planned: &Planned<'_>, bytes: &[u8], out: &mut Vec<u8>, job: &Job<'_>, overflowed: &AtomicU64) {
    let lost = if planned.factor == 1.0 {
        cast(planned.entry.dtype, planned.to, bytes, out)
    } else {
        let scaled = scale(planned.entry.dtype, planned.to, planned.factor, bytes, out);
        job.rounded.fetch_add(scaled.rounded, Ordering::Relaxed);
        scaled.overflowed
    };
    overflowed.fetch_add(lost, Ordering::Relaxed);
}

/// Whether all bytes are zero; told by the first block for nearly all weights.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(4096).all(|block| block.iter().fold(0, |any, &byte| any | byte) == 0)
}

/// The value of a mutex whose holders only do single steps, so that a panic leaves it whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
