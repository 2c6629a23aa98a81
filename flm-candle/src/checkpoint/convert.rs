//! Any checkpoint to safetensors, in bounded memory.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use candle_core::DType;

use super::cast::cast;
use super::error::Result;
use super::source::Source;
use super::writer::Writer;
use super::zip::ZipEntry;
use super::{Checkpoint, CheckpointError, TensorEntry, TensorSpec, copy_side_files, dtype};
use crate::config::LM_HEAD;

/// How to convert.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// dtype of all tensors; that of the source where `None`.
    pub dtype: Option<DType>,
    /// Most bytes of tensors in a file; a larger tensor has its own.
    pub max_shard_size: u64,
}

impl Default for ConvertOptions {
    /// No conversion, shards of 5 GB, the size that the Hub recommends.
    fn default() -> Self {
        Self { dtype: None, max_shard_size: 5_000_000_000 }
    }
}

/// What [`convert`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvertReport {
    /// Tensors written.
    pub tensors: usize,
    /// Bytes read from the weight files, headers excepted.
    pub bytes_read: u64,
    /// Bytes of tensors written.
    pub bytes_written: u64,
    /// Weight files written.
    pub files: usize,
    /// Finite elements that became infinite, because the new dtype ends before them.
    pub overflowed: u64,
}

/// Bytes read at a time; small enough that what was read is in the cache when it is written.
const CHUNK: u64 = 2 << 20;
/// More threads only contend for the page cache.
const MAX_THREADS: usize = 4;

/// Writes `src` as safetensors to the new directory `dst`, with its side files.
///
/// Memory is a few MiB a thread, whatever the size. Bytes are moved as they are where the dtype stays;
/// else elements are rounded to nearest, ties to even. The CRC-32 of every storage of a PyTorch file is
/// checked. `torch_dtype` in config.json becomes what the weights are. `progress` is called with the
/// number of tensor bytes of the source done since its last call, from several threads.
///
/// # Errors
/// Tensors that are not those of the config, [`CheckpointError::Checksum`], and whatever reading and
/// writing raise; `dst` does not exist then.
pub fn convert(
    src: &Checkpoint,
    dst: &Path,
    options: &ConvertOptions,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<ConvertReport> {
    if let Some(problem) = src.shape_problems().into_iter().next() {
        return Err(problem);
    }
    let specs = output_specs(src, options.dtype);
    let writer = Writer::create(dst, &specs, options.max_shard_size)?;
    let mut jobs = Vec::new();
    for name in writer.disk_order() {
        let to = options.dtype;
        let entry = src.entry(name)?;
        jobs.push(Job::tensor(src, entry, to.unwrap_or(entry.dtype)));
    }
    let covered: HashSet<(usize, u64)> =
        jobs.iter().filter_map(|j| Some((j.file, j.storage?.offset))).collect();
    for (file, storages) in src.storages.iter().enumerate() {
        let rest = storages.iter().filter(|s| s.size > 0 && !covered.contains(&(file, s.offset)));
        jobs.extend(rest.map(|storage| Job::storage(src, file, storage)));
    }
    let run = Run { src, writer: &writer, progress, read: AtomicU64::new(0), overflowed: AtomicU64::new(0) };
    run.all(&jobs)?;
    let (bytes_read, overflowed) = (run.read.into_inner(), run.overflowed.into_inner());

    copy_side_files(src.dir(), writer.staging_dir())?;
    let mut config = src.config().clone();
    let written = options.dtype.or_else(|| src.stored_dtype_if_undeclared());
    if let Some(written) = written.filter(|&d| config.declared_dtype() != Some(d)) {
        let newer = config.raw().contains_key("dtype") && !config.raw().contains_key("torch_dtype");
        let key = if newer { "dtype" } else { "torch_dtype" };
        config.set_raw(key, dtype::torch_name(written).into());
    }
    let report = ConvertReport {
        tensors: specs.len(),
        bytes_read,
        bytes_written: specs.iter().filter_map(|s| dtype::byte_count(&s.shape, s.dtype)).sum(),
        files: writer.file_names().count(),
        overflowed,
    };
    writer.finish(&config)?;
    Ok(report)
}

/// All tensors in the order of the forward pass, so that a shard holds neighbours.
fn output_specs(src: &Checkpoint, to: Option<DType>) -> Vec<TensorSpec> {
    let config = src.config();
    let tied_head = config.tie_word_embeddings.then(|| LM_HEAD.to_string());
    let names = config.tensors().map(|t| t.name).chain(tied_head);
    let entries = names.filter_map(|name| src.find(&name));
    entries
        .map(|e| TensorSpec { name: e.name.clone(), dtype: to.unwrap_or(e.dtype), shape: e.shape.clone() })
        .collect()
}

impl Checkpoint {
    /// The matrices' dtype, where config.json declares another.
    fn stored_dtype_if_undeclared(&self) -> Option<DType> {
        match self.dtype_problem()? {
            CheckpointError::DTypeMismatch { got, .. } => Some(got),
            _ => None,
        }
    }
}

/// A run of bytes of one file: a tensor to write, or a storage whose checksum no tensor covers.
struct Job<'a> {
    file: usize,
    offset: u64,
    nbytes: u64,
    /// What to write, and as what.
    tensor: Option<(&'a TensorEntry, DType)>,
    /// The storage that these bytes are, all of it.
    storage: Option<&'a ZipEntry>,
    /// For errors: a tensor in these bytes.
    name: &'a str,
    /// CRC-32 of each chunk, and how many are to come.
    checksums: Mutex<(Vec<u32>, u64)>,
}

impl<'a> Job<'a> {
    fn tensor(src: &'a Checkpoint, entry: &'a TensorEntry, to: DType) -> Self {
        let storages = &src.storages[entry.file];
        let at = storages.partition_point(|s| s.offset < entry.offset);
        let same = |s: &&ZipEntry| (s.offset, s.size) == (entry.offset, entry.nbytes);
        let storage = storages[at..].iter().take_while(|s| s.offset == entry.offset).find(same);
        Self::new(entry.file, entry.offset, entry.nbytes, storage, &entry.name, Some((entry, to)))
    }

    fn storage(src: &'a Checkpoint, file: usize, storage: &'a ZipEntry) -> Self {
        let inside = |e: &&TensorEntry| {
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
        tensor: Option<(&'a TensorEntry, DType)>,
    ) -> Self {
        let chunks = nbytes.div_ceil(CHUNK);
        let checksums = storage.map_or(Vec::new(), |_| vec![0; chunks as usize]);
        Self { file, offset, nbytes, tensor, storage, name, checksums: Mutex::new((checksums, chunks)) }
    }
}

/// What the threads of a conversion share.
struct Run<'a> {
    src: &'a Checkpoint,
    writer: &'a Writer,
    progress: &'a (dyn Fn(u64) + Sync),
    read: AtomicU64,
    overflowed: AtomicU64,
}

impl Run<'_> {
    /// Does all jobs, chunk by chunk in their order; the first error stops the others.
    fn all(&self, jobs: &[Job<'_>]) -> Result<()> {
        let mut starts = Vec::with_capacity(jobs.len());
        let mut count = 0usize;
        for job in jobs {
            starts.push(count);
            count += job.nbytes.div_ceil(CHUNK) as usize;
        }
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let worker = || {
            let (mut buf, mut converted) = (vec![0; CHUNK.min(self.largest(jobs)) as usize], Vec::new());
            while !stop.load(Ordering::Relaxed) {
                let chunk = next.fetch_add(1, Ordering::Relaxed);
                if chunk >= count {
                    break;
                }
                // The last job that starts here or before: empty ones start where the next does.
                let job = starts.partition_point(|&start| start <= chunk) - 1;
                let done = self.chunk(&jobs[job], (chunk - starts[job]) as u64, &mut buf, &mut converted);
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

    fn largest(&self, jobs: &[Job<'_>]) -> u64 {
        jobs.iter().map(|j| j.nbytes).max().unwrap_or(0)
    }

    fn chunk(&self, job: &Job<'_>, index: u64, buf: &mut [u8], converted: &mut Vec<u8>) -> Result<()> {
        let start = index * CHUNK;
        let buf = &mut buf[..CHUNK.min(job.nbytes - start) as usize];
        let read = self.src.handles[job.file].read_exact_at(buf, job.offset + start);
        read.map_err(|source| CheckpointError::Read {
            tensor: job.name.into(),
            path: self.src.files[job.file].path.clone(),
            source,
        })?;
        self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.checksum(job, index, buf)?;
        let Some((entry, to)) = job.tensor else { return Ok(()) };
        if to == entry.dtype {
            self.writer.write_at(&entry.name, start, buf)?;
        } else {
            let overflowed = cast(entry.dtype, to, buf, converted);
            self.overflowed.fetch_add(overflowed, Ordering::Relaxed);
            let (from_width, to_width) = (entry.dtype.size_in_bytes() as u64, to.size_in_bytes() as u64);
            self.writer.write_at(&entry.name, start / from_width * to_width, converted)?;
        }
        (self.progress)(buf.len() as u64);
        Ok(())
    }

    /// Takes a chunk into its storage's checksum; compares when all chunks are in.
    fn checksum(&self, job: &Job<'_>, index: u64, bytes: &[u8]) -> Result<()> {
        let Some(storage) = job.storage else { return Ok(()) };
        let crc = crc32fast::hash(bytes);
        let mut guard = job.checksums.lock().unwrap_or_else(PoisonError::into_inner);
        let (chunks, missing) = &mut *guard;
        chunks[index as usize] = crc;
        *missing -= 1;
        if *missing > 0 {
            return Ok(());
        }
        let mut whole = crc32fast::Hasher::new();
        for (i, &crc) in chunks.iter().enumerate() {
            let len = CHUNK.min(job.nbytes - i as u64 * CHUNK);
            whole.combine(&crc32fast::Hasher::new_with_initial_len(crc, len));
        }
        let got = whole.finalize();
        if got == storage.crc32 {
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
}

#[cfg(test)]
mod tests;
