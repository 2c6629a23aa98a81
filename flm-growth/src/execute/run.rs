//! The threads that compose and write.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use flm_checkpoint::Checkpoint;
use flm_checkpoint::Writer;

use crate::error::{GrowthError, Result};
use crate::execute::compose::Composer;
use crate::execute::digests::{Bytes, Digests};
use crate::execute::source::Source;
use flm_checkpoint::Checksums;

/// Buffers of one thread.
#[derive(Default)]
struct Buffers {
    out: Vec<u8>,
    scratch: Vec<u8>,
}

pub(super) struct Run<'a> {
    seed: u64,
    source: &'a Checkpoint,
    writer: &'a Writer,
    progress: &'a (dyn Fn(u64) + Sync),
    digests: Digests<'a>,
    holes: AtomicU64,
    resumed: AtomicU64,
    overflowed: AtomicU64,
    inexact: AtomicU64,
}

/// What a run leaves besides the files.
pub(super) struct Done {
    pub checksums: Checksums,
    pub hole_bytes: u64,
    pub resumed_bytes: u64,
    /// Finite values that became infinite, in tensors that this run wrote.
    pub overflowed: u64,
    /// Weights whose copies do not add up to them exactly.
    pub inexact: u64,
}

/// Rows `start..end` of a tensor.
struct Chunk {
    tensor: usize,
    start: usize,
    end: usize,
    /// Whether it is the tensor's last.
    last: bool,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        seed: u64,
        source: &'a Checkpoint,
        writer: &'a Writer,
        digests: Digests<'a>,
        progress: &'a (dyn Fn(u64) + Sync),
    ) -> Self {
        Self {
            seed,
            source,
            writer,
            progress,
            digests,
            holes: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
            inexact: AtomicU64::new(0),
        }
    }

    /// Every chunk, in the order of the file so that disks see mostly sequential access.
    pub(super) fn all(self, tensors: &[Source<'_>], chunk_bytes: usize) -> Result<Done> {
        let chunks = chunks(tensors, chunk_bytes);
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        // threads of their own: a worker waits for its turn, and a thread of rayon's that waits could have
        // stolen the work it waits for
        std::thread::scope(|scope| {
            for _ in 0..rayon::current_num_threads() {
                scope.spawn(|| {
                    let _stop = StopOnPanic(&self.digests);
                    if let Err(error) = self.worker(tensors, &chunks, &next) {
                        self.digests.stop();
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                });
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(GrowthError::Damaged(tensor)) => {
                self.digests.forget()?;
                Err(GrowthError::Damaged(tensor))
            }
            Some(error) => Err(error),
            None => Ok(Done {
                checksums: self.digests.finish()?,
                hole_bytes: self.holes.into_inner(),
                resumed_bytes: self.resumed.into_inner(),
                overflowed: self.overflowed.into_inner(),
                inexact: self.inexact.into_inner(),
            }),
        }
    }

    fn worker(&self, tensors: &[Source<'_>], chunks: &[Chunk], next: &AtomicUsize) -> Result<()> {
        let mut current: Option<(usize, Composer<'_>)> = None;
        let mut buffers = Buffers::default();
        while !self.digests.stopped() {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(chunk) = chunks.get(index) else { break };
            let tensor = &tensors[chunk.tensor];
            let composer = match current.take() {
                Some((index, composer)) if index == chunk.tensor => composer,
                _ => Composer::new(&tensor.plan, self.seed)?.with_mean(tensor.mean.as_deref()),
            };
            self.chunk(index, chunk, tensor, &composer, &mut buffers)?;
            current = Some((chunk.tensor, composer));
        }
        Ok(())
    }

    fn chunk(
        &self,
        index: usize,
        chunk: &Chunk,
        tensor: &Source<'_>,
        composer: &Composer<'_>,
        buffers: &mut Buffers,
    ) -> Result<()> {
        let name = &tensor.plan.name;
        let row = composer.row_bytes();
        let (offset, length) = (chunk.start as u64 * row as u64, (chunk.end - chunk.start) * row);
        let zero = composer.is_zero(chunk.start, chunk.end);
        let finished = self.digests.finished(name);
        let bytes = if zero && !finished {
            self.writer.skip(name, offset, length as u64)?;
            self.holes.fetch_add(length as u64, Ordering::Relaxed);
            Bytes::Zeros(length)
        } else {
            buffers.out.resize(length.max(buffers.out.len()), 0);
            let out = &mut buffers.out[..length];
            if finished {
                self.writer.read_at(name, offset, out)?;
                self.writer.skip(name, offset, length as u64)?;
                self.resumed.fetch_add(length as u64, Ordering::Relaxed);
                self.holes.fetch_add(if zero { length as u64 } else { 0 }, Ordering::Relaxed);
            } else {
                let read = |offset: u64, out: &mut [u8]| match tensor.entry {
                    Some(entry) => Ok(self.source.read_at(entry, offset, out)?),
                    None => Ok(()),
                };
                composer.rows(chunk.start, chunk.end, &read, &mut buffers.scratch, out)?;
                self.overflowed.fetch_add(composer.take_overflowed(), Ordering::Relaxed);
                self.inexact.fetch_add(composer.take_inexact(), Ordering::Relaxed);
                self.writer.write_at(name, offset, out)?;
            }
            Bytes::These(&*out)
        };
        self.digests.add(index, name, bytes, chunk.start == 0, chunk.last)?;
        (self.progress)(length as u64);
        Ok(())
    }
}

/// Sends the other threads home when one panics; they would wait for its turn.
struct StopOnPanic<'a, 'b>(&'a Digests<'b>);

impl Drop for StopOnPanic<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

/// Cuts every tensor into chunks of whole rows, each all copied or all new.
fn chunks(tensors: &[Source<'_>], chunk_bytes: usize) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for (tensor, source) in tensors.iter().enumerate() {
        let (rows, cols) = source.plan.size();
        let step = (chunk_bytes / (cols * source.plan.dtype.size_in_bytes()).max(1)).max(1);
        for (first, band_end) in source.plan.bands() {
            chunks.extend((first..band_end).step_by(step).map(|start| {
                let end = band_end.min(start + step);
                Chunk { tensor, start, end, last: end == rows }
            }));
        }
    }
    chunks
}
