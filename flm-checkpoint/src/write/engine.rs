//! Writes the tensors of a checkpoint: threads fill chunks, hash them and write them, and a journal says what is
//! finished. Conversion, growth, folding and the growth of moments differ in what fills a chunk.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use crate::atomic::Staging;
use crate::checksums::digest_of;
use crate::config::TeleFlmConfig;
use crate::error::CheckpointError;
use crate::identity::RunKey;
use crate::part::JobPart;
use crate::tensor_id::TensorSpec;
use crate::write::digest_tree::DigestTree;
use crate::write::journal::Journal;
use crate::write::part::Finisher;
use crate::write::writer::Writer;

/// A tensor to write. Its bytes depend on nothing but the source and the settings that are in the run's key.
pub trait Fill: Sync {
    /// What can go wrong.
    type Error: From<CheckpointError> + Send;

    /// Its name in the output.
    fn name(&self) -> &str;

    /// Its length in bytes.
    fn nbytes(&self) -> u64;

    /// The end of the chunk that begins at byte `start`: what one thread fills at a time, some MiB at most.
    fn cut(&self, start: u64) -> u64;

    /// Appends the bytes `range`, which is a chunk, to `out`, which is empty; `scratch` is the thread's, kept
    /// between chunks.
    ///
    /// # Errors
    /// Whatever the source raises.
    fn fill(&self, range: Range<u64>, scratch: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), Self::Error>;

    /// Whether all of the chunk `range` is zero, where that is known without filling it.
    fn is_zero(&self, _range: &Range<u64>) -> bool {
        false
    }

    /// Called once all chunks are written, before the tensor counts as finished.
    ///
    /// # Errors
    /// What only the whole tensor shows, such as a wrong checksum of its source.
    fn finish(&self) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// A checkpoint that is being written, by this run or by one before it that died.
#[derive(Debug)]
pub struct Engine {
    /// Where the tensors go.
    pub writer: Writer,
    journal: Mutex<Journal>,
    key: RunKey,
    /// Which of several processes this is.
    part: Option<JobPart>,
    finisher: Mutex<Option<Finisher>>,
    /// Whether the staging directory may hold bytes of an earlier run.
    resumed: bool,
}

/// Whether a checkpoint has all of its tensors, where several processes write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion {
    /// It has, and this process is to finish it.
    Whole,
    /// These parts are not finished.
    Waiting(Vec<JobPart>),
    /// Another process has finished it meanwhile.
    Elsewhere,
}

/// What [`Engine::write`] did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Written {
    /// BLAKE3 of each tensor's bytes, in hexadecimal.
    pub digests: BTreeMap<String, String>,
    /// Bytes that were zero and stay holes of the files.
    pub hole_bytes: u64,
    /// Tensors that an earlier run had finished.
    pub resumed: BTreeSet<String>,
}

impl Written {
    /// Bytes of the tensors that an earlier run had finished.
    pub fn resumed_bytes<F: Fill>(&self, tensors: &[F]) -> u64 {
        tensors.iter().filter(|t| self.resumed.contains(t.name())).map(Fill::nbytes).sum()
    }
}

impl Engine {
    /// Begins the checkpoint `dst` of these tensors, or goes on with one that a run of the same key has begun; with
    /// `restart` it begins anew. A `part` of several processes does so beside the others.
    ///
    /// # Errors
    /// Those of [`Writer::create`], and [`CheckpointError::ResumeMismatch`] where a run of another key has begun.
    pub fn open(
        dst: &Path,
        config: &TeleFlmConfig,
        specs: &[TensorSpec],
        max_shard_size: u64,
        key: &RunKey,
        restart: bool,
        part: Option<JobPart>,
    ) -> Result<Self, CheckpointError> {
        let staging = Writer::staging_path(dst)?;
        // parts cannot tell whether they are the first
        let resumed = part.is_some() || !restart && Journal::is_begun(&staging, key)?;
        let mut writer = if let Some(part) = part {
            let prepare = |dir: &Path, alone| Journal::prepare(dir, key, part, restart, alone);
            let staging = Staging::join(dst, &part.lock_name(), prepare)?;
            Writer::join_model(staging, config, specs, max_shard_size)?
        } else {
            let open = if resumed { Writer::resume_model } else { Writer::restart_model };
            open(dst, config, specs, max_shard_size)?
        };
        writer.keep_staging();
        let journal = Mutex::new(Journal::open(&staging, key, part)?);
        Ok(Self { writer, journal, key: key.clone(), part, finisher: Mutex::default(), resumed })
    }

    /// The tensors that this process writes, in the order in which they lie on disk.
    fn own(&self) -> Vec<&str> {
        let mut order = self.writer.disk_order();
        if let Some(part) = self.part {
            let sizes: Vec<u64> = order.iter().map(|name| self.writer.nbytes(name)).collect();
            order = order.drain(part.share(&sizes)).collect();
        }
        order
    }

    /// Whether all tensors are there, to be called once after [`Engine::write`]: for a part, whether the others are
    /// finished too. Then `written` gets their digests, and no other process finishes the checkpoint until this one
    /// has, or is gone.
    ///
    /// # Errors
    /// Where what was written cannot be brought to the disk, or a journal cannot be read.
    pub fn complete(&self, written: &mut Written) -> Result<Completion, CheckpointError> {
        let Some(part) = self.part else { return Ok(Completion::Whole) };
        if part.index().is_some() {
            self.writer.sync()?;
            lock(&self.journal).complete()?;
        }
        let staging = self.writer.staging_dir();
        let Some(finisher) = Finisher::wait(staging)? else { return Ok(Completion::Elsewhere) };
        let mut waiting = Vec::new();
        for other in part.all() {
            match Journal::of_complete_part(staging, &self.key, other)? {
                Some(digests) => written.digests.extend(digests),
                None => waiting.push(other),
            }
        }
        if !waiting.is_empty() {
            return Ok(Completion::Waiting(waiting));
        }
        for name in self.writer.disk_order() {
            if written.digests.contains_key(name) {
                self.writer.skip(name, 0, self.writer.nbytes(name))?;
            }
        }
        *lock(&self.finisher) = Some(finisher);
        Ok(Completion::Whole)
    }

    /// Writes `tensors`, a part those of them that are its own, in the order in which they lie on disk, with `threads` threads; `progress` hears, from all of
    /// them, the bytes that were finished since the last call. Memory is a chunk and its scratch for each thread.
    ///
    /// What an earlier run has finished is read back, and written anew where it is not as it was.
    ///
    /// # Errors
    /// The first that a tensor raises; what is finished stays, for the next run.
    pub fn write<F: Fill>(
        &self,
        tensors: &[F],
        threads: usize,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Written, F::Error> {
        let own = self.own();
        let finished = self.still_there(tensors, &own, progress)?;
        let resumed = finished.keys().cloned().collect();
        let by_name: HashMap<&str, &F> = tensors.iter().map(|t| (t.name(), t)).collect();
        let order = own.into_iter().filter_map(|name| by_name.get(name).copied());
        let left: Vec<&F> = order.filter(|t| !finished.contains_key(t.name())).collect();
        let run = Run {
            engine: self,
            queue: Mutex::new(Queue { left, tensor: 0, at: 0, open: HashMap::new() }),
            digests: Mutex::new(finished),
            holes: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            progress,
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(|| run.worker())).collect();
            let mut result = run.worker();
            for other in others {
                result = match other.join() {
                    Ok(theirs) => result.and(theirs),
                    Err(panic) => std::panic::resume_unwind(panic),
                };
            }
            result
        })?;
        let digests = run.digests.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Written { digests, hole_bytes: run.holes.into_inner(), resumed })
    }

    /// Reads back what the journal says is finished.
    fn still_there<F: Fill>(
        &self,
        tensors: &[F],
        own: &[&str],
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<BTreeMap<String, String>, CheckpointError> {
        let mut journal = lock(&self.journal).finished.clone();
        let own: HashSet<&str> = own.iter().copied().collect();
        journal.retain(|name, _| own.contains(name.as_str()));
        let check = |tensor: &F| -> Option<Result<(String, String), CheckpointError>> {
            let (name, nbytes) = (tensor.name(), tensor.nbytes());
            let expected = journal.get(name)?;
            let read = |offset, part: &mut [u8]| self.writer.read_at(name, offset, part);
            if digest_of(nbytes, &|_| (), read).ok().as_ref() != Some(expected) {
                return None;
            }
            progress(nbytes);
            Some(self.writer.skip(name, 0, nbytes).map(|()| (name.to_owned(), expected.clone())))
        };
        tensors.par_iter().filter_map(check).collect()
    }
}

/// What the threads of a run share.
struct Run<'a, F> {
    engine: &'a Engine,
    queue: Mutex<Queue<'a, F>>,
    digests: Mutex<BTreeMap<String, String>>,
    holes: AtomicU64,
    /// Set by the first that fails.
    stop: AtomicBool,
    progress: &'a (dyn Fn(u64) + Sync),
}

/// The chunks that nobody has taken.
struct Queue<'a, F> {
    left: Vec<&'a F>,
    /// The next chunk's tensor, and where it begins there.
    tensor: usize,
    at: u64,
    /// Digests of tensors that are begun.
    open: HashMap<usize, Arc<DigestTree>>,
}

/// Bytes that one thread is to write.
struct Chunk<'a, F> {
    tensor: &'a F,
    /// The tensor's number in the queue.
    number: usize,
    range: Range<u64>,
    tree: Arc<DigestTree>,
}

impl<'a, F: Fill> Queue<'a, F> {
    fn next(&mut self) -> Option<Chunk<'a, F>> {
        let (number, tensor) = (self.tensor, *self.left.get(self.tensor)?);
        let end = tensor.cut(self.at).clamp(self.at, tensor.nbytes());
        let range = self.at..end;
        let tree = self.open.entry(number).or_insert_with(|| Arc::new(DigestTree::new(tensor.nbytes())));
        let tree = Arc::clone(tree);
        if end == tensor.nbytes() {
            (self.tensor, self.at) = (number + 1, 0);
        } else {
            self.at = end;
        }
        Some(Chunk { tensor, number, range, tree })
    }
}

/// Sends the other threads home when one fails or panics: what is left may be hours of work.
struct StopOthers<'a> {
    stop: &'a AtomicBool,
    failed: bool,
}

impl Drop for StopOthers<'_> {
    fn drop(&mut self) {
        if self.failed {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

impl<F: Fill> Run<'_, F> {
    fn worker(&self) -> Result<(), F::Error> {
        let (mut scratch, mut out) = (Vec::new(), Vec::new());
        let mut failing = StopOthers { stop: &self.stop, failed: true };
        while !self.stop.load(Ordering::Relaxed) {
            let Some(chunk) = lock(&self.queue).next() else { break };
            self.chunk(&chunk, &mut scratch, &mut out)?;
        }
        failing.failed = false;
        Ok(())
    }

    /// Fills, writes and hashes a chunk, and finishes its tensor where it is the last to come.
    fn chunk(&self, chunk: &Chunk<'_, F>, scratch: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), F::Error> {
        let Chunk { tensor, number, range, tree } = chunk;
        let length = range.end - range.start;
        out.clear();
        if tensor.is_zero(range) {
            out.resize(length as usize, 0);
        } else {
            tensor.fill(range.clone(), scratch, out)?;
        }
        debug_assert_eq!(out.len() as u64, length, "{}", tensor.name());
        self.put(tensor.name(), range.start, out, scratch)?;
        (self.progress)(length);
        if !tree.add(range.start, out) {
            return Ok(());
        }
        lock(&self.queue).open.remove(number);
        tensor.finish()?;
        let digest = tree.digest().to_hex().to_string();
        lock(&self.engine.journal).finish(tensor.name(), &digest)?;
        lock(&self.digests).insert(tensor.name().to_owned(), digest);
        Ok(())
    }

    /// Writes bytes of a tensor; zeros stay a hole of the file.
    fn put(
        &self,
        tensor: &str,
        offset: u64,
        bytes: &[u8],
        back: &mut Vec<u8>,
    ) -> Result<(), CheckpointError> {
        let writer = &self.engine.writer;
        if !is_zero(bytes) {
            return writer.write_at(tensor, offset, bytes);
        }
        if self.engine.resumed {
            // a crash of the machine may have left anything
            back.resize(bytes.len(), 0);
            writer.read_at(tensor, offset, back)?;
            if !is_zero(back) {
                return writer.write_at(tensor, offset, bytes);
            }
        }
        self.holes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        writer.skip(tensor, offset, bytes.len() as u64)
    }
}

/// Whether all bytes are zero; told by the first block for nearly all weights.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(4096).all(|block| block.iter().fold(0, |any, &byte| any | byte) == 0)
}

/// The value of a mutex whose holders only do single steps, so that a panic leaves it whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::preset::preset;
    use crate::dtype::Dtype;
    use crate::read::Checkpoint;

    /// Bytes by position, in chunks of `chunk` bytes; the first half is zero.
    struct Counted {
        spec: TensorSpec,
        chunk: u64,
        fails: bool,
        panics: bool,
        filled: AtomicU64,
    }

    impl Counted {
        fn byte(&self, at: u64) -> u8 {
            if at < self.nbytes() / 2 { 0 } else { (at * 7 + self.spec.name.len() as u64) as u8 }
        }
    }

    impl Fill for Counted {
        type Error = CheckpointError;

        fn name(&self) -> &str {
            &self.spec.name
        }

        fn nbytes(&self) -> u64 {
            self.spec.shape.iter().product::<usize>() as u64 * 4
        }

        fn cut(&self, start: u64) -> u64 {
            start + self.chunk
        }

        fn fill(&self, range: Range<u64>, _: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), CheckpointError> {
            if self.fails && range.end == self.nbytes() {
                return Err(CheckpointError::NotInOutput("fails".into()));
            }
            assert!(!self.panics, "as it was told");
            self.filled.fetch_add(range.end - range.start, Ordering::Relaxed);
            out.extend(range.map(|at| self.byte(at)));
            Ok(())
        }
    }

    #[test]
    fn a_panic_ends_the_run_and_not_only_its_thread() {
        let dir = tempfile::tempdir().unwrap();
        let config = preset("nano-52b").unwrap();
        let source = dir.path().join("source");
        Writer::create(&source, &[], u64::MAX).unwrap().finish(&config).unwrap();
        let key = RunKey::new("test", &[], &Checkpoint::open(&source).unwrap()).unwrap();
        let tensor = |i: usize| Counted {
            spec: TensorSpec { name: format!("t{i:03}"), dtype: Dtype::F32, shape: vec![4096] },
            chunk: 1024,
            fails: false,
            panics: i == 0,
            filled: AtomicU64::new(0),
        };
        let tensors: Vec<Counted> = (0..200).map(tensor).collect();
        let specs: Vec<TensorSpec> = tensors.iter().map(|t| t.spec.clone()).collect();
        let engine =
            Engine::open(&dir.path().join("out"), &config, &specs, u64::MAX, &key, false, None).unwrap();
        let slowly = |_| std::thread::sleep(std::time::Duration::from_millis(1));
        let run = std::panic::AssertUnwindSafe(|| engine.write(&tensors, 2, &slowly));
        assert!(std::panic::catch_unwind(run).is_err());
        let filled: u64 = tensors.iter().map(|t| t.filled.load(Ordering::Relaxed)).sum();
        assert!(filled < 200 * 4 * 4096 / 2, "{filled}");
    }

    #[test]
    fn a_run_that_fails_is_taken_up_and_gives_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let config = preset("nano-52b").unwrap();
        let source = dir.path().join("source");
        let specs: Vec<TensorSpec> = config
            .tensors()
            .take(7)
            .map(|t| TensorSpec { name: t.name, dtype: Dtype::F32, shape: t.shape })
            .collect();
        Writer::create(&source, &[], u64::MAX).unwrap().finish(&config).unwrap();
        let key = RunKey::new("test", &[], &Checkpoint::open(&source).unwrap()).unwrap();
        let tensors = |fails: bool| -> Vec<Counted> {
            let counted = |(i, spec): (usize, &TensorSpec)| Counted {
                spec: spec.clone(),
                chunk: [5000, 65536, 1 << 20, 70_001, 999][i % 5],
                fails: fails && i == 6,
                panics: false,
                filled: AtomicU64::new(0),
            };
            specs.iter().enumerate().map(counted).collect()
        };
        for threads in [1, 3] {
            let dst = dir.path().join(format!("out-{threads}"));
            let open = || Engine::open(&dst, &config, &specs, 100_000, &key, false, None).unwrap();
            assert!(open().write(&tensors(true), threads, &|_| ()).is_err());
            let (engine, again) = (open(), tensors(false));
            let told = AtomicU64::new(0);
            let progress = |n| {
                told.fetch_add(n, Ordering::Relaxed);
            };
            let written = engine.write(&again, threads, &progress).unwrap();
            let (mut all, mut fresh) = (0, 0);
            for tensor in &again {
                let nbytes = tensor.nbytes();
                let bytes: Vec<u8> = (0..nbytes).map(|at| tensor.byte(at)).collect();
                assert_eq!(written.digests[tensor.name()], blake3::hash(&bytes).to_hex().as_str());
                let mut back = vec![0; bytes.len()];
                engine.writer.read_at(tensor.name(), 0, &mut back).unwrap();
                assert!(back == bytes, "{}", tensor.name());
                all += nbytes;
                fresh += tensor.filled.load(Ordering::Relaxed);
            }
            assert!(fresh < all && written.resumed_bytes(&again) == all - fresh, "{fresh} of {all}");
            assert_eq!(told.into_inner(), all);
            assert!(written.hole_bytes > 0);
            let checksums = crate::Checksums { tensors: written.digests, ..Default::default() };
            engine.writer.finish_with_checksums(&config, checksums).unwrap();
        }
    }
}
