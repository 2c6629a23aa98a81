//! A streaming writer of safetensors checkpoints.

#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rayon::prelude::*;

use crate::atomic::{self, Staging};
use crate::checksums::{CHECKSUMS_FILE, Checksums, FileDigest, WeightFileDigest, file_name};
use crate::config::TeleFlmConfig;
use crate::error::CheckpointError;
use crate::error::{Result, io};
use crate::ranges::{Pieces, Ranges};
use crate::tensor_id::TensorSpec;
use crate::write::journal::Journal;
use crate::write::shard_plan::Layout;
use crate::write::sidecar::named_templates;

/// Streaming writer of a (sharded) safetensors checkpoint directory that appears whole or not at all.
///
/// It works in `.NAME.partial` beside `NAME`, which it holds locked; dropped unfinished, it removes it.
/// A single file has the bytes that `safetensors::serialize` makes of the same tensors with the
/// metadata `format: pt`.
///
/// ```
/// use flm_checkpoint::{Checkpoint, Dtype, TensorSpec, Writer, preset};
///
/// let dst = std::env::temp_dir().join(format!("flm-doc-{}", std::process::id()));
/// let spec = TensorSpec { name: "model.norm.weight".into(), dtype: Dtype::F32, shape: vec![2] };
/// let writer = Writer::create(&dst, &[spec], 5_000_000_000)?;
/// writer.write_at("model.norm.weight", 0, &[0; 8])?; // from any thread, in any order
/// writer.finish(&preset("nano-52b").unwrap())?; // now `dst` exists
/// assert_eq!(Checkpoint::open(&dst)?.entries().count(), 1);
/// # std::fs::remove_dir_all(dst).unwrap();
/// # Ok::<(), flm_checkpoint::CheckpointError>(())
/// ```
#[derive(Debug)]
pub struct Writer {
    shards: Vec<OpenShard>,
    slots: HashMap<String, Slot>,
    index: Option<String>,
    staging: Staging,
}

#[derive(Debug)]
struct OpenShard {
    path: PathBuf,
    digest: WeightFileDigest,
    /// Open from the first write until the shard is complete: a checkpoint can have more shards than a
    /// process may have files.
    file: Mutex<Option<Arc<File>>>,
    /// Bytes not yet written or skipped.
    missing: AtomicU64,
    /// Bytes written since the last early fsync began.
    unsynced: AtomicU64,
    /// The early fsyncs; at most the last still runs.
    syncs: Mutex<Vec<JoinHandle<std::io::Result<()>>>>,
}

/// A tensor's place and what of it is accounted for.
#[derive(Debug)]
struct Slot {
    shard: usize,
    offset: u64,
    nbytes: u64,
    pieces: Pieces,
    done: Mutex<Ranges>,
}

impl Writer {
    /// Lays out the shards of `specs` (in this order, a new shard when `max_shard_size` bytes would be
    /// exceeded), writes their headers and sets their lengths, in a staging directory beside `dst`.
    ///
    /// # Errors
    /// [`CheckpointError::DestinationExists`] unless `dst` is free or an empty directory,
    /// [`CheckpointError::InUse`] where another process is writing it, [`CheckpointError::Unfinished`] where one that
    /// can be resumed has begun it; and specs that cannot be written.
    pub fn create(dst: &Path, specs: &[TensorSpec], max_shard_size: u64) -> Result<Self> {
        let layout = Layout::new(specs, max_shard_size)?;
        Journal::require_none(&Staging::path(dst)?)?;
        Self::open(layout, Staging::create(dst)?)
    }

    /// [`Writer::create`] for tensors of a model of `config`, whose family may store some of them as one: they
    /// are written and read under their own names.
    pub fn create_model(
        dst: &Path,
        config: &TeleFlmConfig,
        specs: &[TensorSpec],
        max_shard_size: u64,
    ) -> Result<Self> {
        Journal::require_none(&Staging::path(dst)?)?;
        Self::restart_model(dst, config, specs, max_shard_size)
    }

    /// [`Writer::create_model`] that throws away what another run has begun.
    pub(crate) fn restart_model(
        dst: &Path,
        config: &TeleFlmConfig,
        specs: &[TensorSpec],
        max_shard_size: u64,
    ) -> Result<Self> {
        let groups = config.num_key_value_heads;
        let layout = Layout::named(specs, config.names(), groups, max_shard_size)?;
        Self::open(layout, Staging::create(dst)?)
    }

    /// The same on what a process that died left in the staging directory: files that the layout asks
    /// for keep their bytes.
    ///
    /// Nothing counts as written: what is known to be whole is declared by [`Writer::skip`].
    pub(crate) fn resume_model(
        dst: &Path,
        config: &TeleFlmConfig,
        specs: &[TensorSpec],
        max_shard_size: u64,
    ) -> Result<Self> {
        let groups = config.num_key_value_heads;
        let layout = Layout::named(specs, config.names(), groups, max_shard_size)?;
        Self::open(layout, Staging::take_over(dst)?)
    }

    /// The same beside other parts, in a staging directory that all of them share.
    pub(crate) fn join_model(
        staging: Staging,
        config: &TeleFlmConfig,
        specs: &[TensorSpec],
        max_shard_size: u64,
    ) -> Result<Self> {
        let groups = config.num_key_value_heads;
        Self::open(Layout::named(specs, config.names(), groups, max_shard_size)?, staging)
    }

    /// Waits until what was written is on the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        for shard in &self.shards {
            shard.wait()?;
            if shard.unsynced.load(Ordering::Relaxed) > 0 {
                atomic::sync(&shard.path)?;
            }
        }
        Ok(())
    }

    /// The directory in which a checkpoint `dst` is made.
    pub fn staging_path(dst: &Path) -> Result<PathBuf> {
        Staging::path(dst)
    }

    fn open(layout: Layout, staging: Staging) -> Result<Self> {
        let index = layout.index();
        let mut writer = Self { shards: Vec::new(), slots: HashMap::new(), index, staging };
        for (number, shard) in layout.shards.into_iter().enumerate() {
            let path = writer.staging.dir().join(&shard.file_name);
            if !begins_with(&path, &shard.header, shard.size) {
                // other parts may write there: nothing of theirs is cut
                let mut options = File::options();
                let file = options.write(true).create(true).truncate(false).open(&path);
                let file = file.map_err(io("create", &path))?;
                file.set_len(shard.size).map_err(io("set the length of", &path))?;
                file.write_all_at(&shard.header, 0).map_err(io("write", &path))?;
            }
            let missing = AtomicU64::new(shard.size - shard.header.len() as u64);
            writer.shards.push(OpenShard {
                path,
                digest: WeightFileDigest::new(shard.size, &shard.header),
                file: Mutex::default(),
                missing,
                unsynced: AtomicU64::new(0),
                syncs: Mutex::default(),
            });
            for tensor in shard.tensors {
                let (offset, nbytes, pieces) = (tensor.offset, tensor.nbytes, tensor.pieces);
                let slot = Slot { shard: number, offset, nbytes, pieces, done: Mutex::default() };
                writer.slots.insert(tensor.spec.name, slot);
            }
        }
        Ok(writer)
    }

    /// Writes `bytes` at byte `offset` of tensor `name`; safe from many threads; unwritten bytes are zero
    /// (holes) if [`Writer::skip`] declared them.
    ///
    /// Bytes may be written again; the last write counts.
    pub fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        let slot = self.slot(name, offset, bytes.len() as u64)?;
        let shard = &self.shards[slot.shard];
        let file = shard.open()?;
        for (at, run) in slot.pieces.runs(offset, bytes.len() as u64) {
            file.write_all_at(&bytes[run], slot.offset + at).map_err(io("write", &shard.path))?;
        }
        self.account(slot, offset, bytes.len() as u64);
        Ok(())
    }

    /// Declares `len` bytes from `offset` of tensor `name` to be zero: they stay a hole of the file.
    ///
    /// Bytes that were written there before stay as they are.
    pub fn skip(&self, name: &str, offset: u64, len: u64) -> Result<()> {
        let slot = self.slot(name, offset, len)?;
        self.account(slot, offset, len);
        Ok(())
    }

    /// Where other files of the checkpoint can be put (tokenizer, provenance) before [`Writer::finish`].
    pub fn staging_dir(&self) -> &Path {
        self.staging.dir()
    }

    /// Leaves the staging directory when the writer is dropped unfinished, for whoever resumes.
    pub fn keep_staging(&mut self) {
        self.staging.keep = true;
    }

    /// Takes [`Writer::keep_staging`] back: dropped unfinished, the writer removes the directory.
    pub fn discard_staging(&mut self) {
        self.staging.keep = false;
    }

    /// Reads back bytes of tensor `name` from the staging directory.
    pub fn read_at(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        let slot = self.slot(name, offset, out.len() as u64)?;
        let path = &self.shards[slot.shard].path;
        let file = File::open(path).map_err(io("open", path))?;
        let mut runs = slot.pieces.runs(offset, out.len() as u64);
        runs.try_for_each(|(at, run)| file.read_exact_at(&mut out[run], slot.offset + at))
            .map_err(io("read", path))
    }

    /// The index into [`Writer::file_names`] and the first byte of tensor `name`.
    ///
    /// # Errors
    /// [`CheckpointError::NotInOutput`].
    pub fn place(&self, name: &str) -> Result<(usize, u64)> {
        let slot = self.slot(name, 0, 0)?;
        Ok((slot.shard, slot.offset))
    }

    /// The text of `model.safetensors.index.json`; `None` where there is one file.
    pub fn index(&self) -> Option<&str> {
        self.index.as_deref()
    }

    /// Names of the weight files, in their order.
    pub fn file_names(&self) -> impl Iterator<Item = &str> + '_ {
        self.shards.iter().filter_map(|s| s.path.file_name()?.to_str())
    }

    /// Names of the weight files with their lengths and the digests of their headers.
    pub fn digests(&self) -> impl Iterator<Item = (&str, &WeightFileDigest)> + '_ {
        self.file_names().zip(self.shards.iter().map(|s| &s.digest))
    }

    /// Length of tensor `name` in bytes; 0 where it is none of the checkpoint's.
    pub(crate) fn nbytes(&self, name: &str) -> u64 {
        self.slots.get(name).map_or(0, |slot| slot.nbytes)
    }

    /// The tensors' names in the order in which they lie on disk, shard by shard; writing in this order
    /// is sequential.
    pub fn disk_order(&self) -> Vec<&str> {
        let mut order: Vec<(&String, &Slot)> = self.slots.iter().collect();
        // The name for tensors without elements, which share an offset.
        order.sort_by_key(|(name, slot)| (slot.shard, slot.offset, *name));
        order.into_iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Checks that every byte of every tensor was written or skipped, then fsyncs, writes the index and
    /// `config`, and renames the staging directory to its final name.
    ///
    /// # Errors
    /// [`CheckpointError::Unwritten`] names the first tensor with bytes missing; the staging directory
    /// is removed then, as on every error.
    pub fn finish(self, config: &TeleFlmConfig) -> Result<()> {
        config.validate()?;
        self.require_complete()?;
        for shard in &self.shards {
            shard.wait()?;
        }
        if let Some(index) = &self.index {
            atomic::write(&self.staging.dir().join(INDEX_FILE), index.as_bytes())?;
        }
        atomic::write(&self.staging.dir().join("config.json"), config.to_json_without_code().as_bytes())?;
        // what may take long comes before the journal goes: a run that dies there is taken up
        self.staging.sync()?;
        Journal::remove(self.staging.dir())?;
        self.staging.publish()
    }

    /// [`Writer::finish`] with checksums.json: `checksums` has the digests of the tensors, and of whole weight files
    /// where they were made; what else is in the staging directory is read back. Folders in it have their own.
    ///
    /// # Errors
    /// Those of [`Writer::finish`], and where a file cannot be read back.
    pub fn finish_with_checksums(self, config: &TeleFlmConfig, mut checksums: Checksums) -> Result<()> {
        let dir = self.staging.dir().to_path_buf();
        for (name, digest) in self.digests() {
            checksums.weights.entry(name.to_owned()).or_insert_with(|| digest.clone());
        }
        let (weights, files) = (&checksums.weights, &mut checksums.files);
        files.insert("config.json".into(), FileDigest::of(config.to_json_without_code().as_bytes()));
        if let Some(index) = &self.index {
            files.insert(INDEX_FILE.into(), FileDigest::of(index.as_bytes()));
        }
        for entry in std::fs::read_dir(&dir).map_err(io("list", &dir))? {
            let entry = entry.map_err(io("list", &dir))?;
            let name = file_name(&entry.path());
            let is_file = entry.file_type().map_err(io("look at", &entry.path()))?.is_file();
            // checksums.json itself may be there, from a run that died
            let known = weights.contains_key(&name) || files.contains_key(&name) || name == CHECKSUMS_FILE;
            if is_file && !name.starts_with('.') && !known {
                files.insert(name, FileDigest::of_file(&entry.path(), &|_| ())?);
            }
        }
        for name in named_templates(&dir)? {
            let digest = FileDigest::of_file(&dir.join(&name), &|_| ())?;
            files.insert(name, digest);
        }
        atomic::write(&dir.join(CHECKSUMS_FILE), checksums.to_json().as_bytes())?;
        self.finish(config)
    }

    /// Digests of whole weight files, which are read back.
    ///
    /// # Errors
    /// Where one cannot be read.
    pub fn hash_files(&self) -> Result<BTreeMap<String, WeightFileDigest>> {
        let hashed = |(name, digest): (&str, &WeightFileDigest)| {
            let file = FileDigest::of_file(&self.staging.dir().join(name), &|_| ())?;
            Ok((name.to_owned(), WeightFileDigest { blake3: Some(file.blake3), ..digest.clone() }))
        };
        let files: Vec<_> = self.digests().collect();
        files.into_par_iter().map(hashed).collect()
    }

    fn require_complete(&self) -> Result<()> {
        for name in self.disk_order() {
            let slot = &self.slots[name];
            let done = unpoisoned(&slot.done).len();
            if done != slot.nbytes {
                let (missing, nbytes) = (slot.nbytes - done, slot.nbytes);
                return Err(CheckpointError::Unwritten { tensor: name.into(), missing, nbytes });
            }
        }
        Ok(())
    }

    fn slot(&self, name: &str, offset: u64, len: u64) -> Result<&Slot> {
        let slot = self.slots.get(name).ok_or_else(|| CheckpointError::NotInOutput(name.into()))?;
        if offset.checked_add(len).is_none_or(|end| end > slot.nbytes) {
            let (tensor, nbytes) = (name.into(), slot.nbytes);
            return Err(CheckpointError::OutOfRange { tensor, offset, len, nbytes });
        }
        Ok(slot)
    }

    /// Counts bytes as done, and closes a file that is complete.
    fn account(&self, slot: &Slot, offset: u64, len: u64) {
        let new = unpoisoned(&slot.done).insert(offset..offset + len);
        let shard = &self.shards[slot.shard];
        let complete = new > 0 && shard.missing.fetch_sub(new, Ordering::Relaxed) == new;
        if shard.unsynced.fetch_add(len, Ordering::Relaxed) + len >= WRITE_BACK || complete {
            shard.write_back();
        }
        if complete {
            unpoisoned(&shard.file).take();
        }
    }
}

/// Whether a file has this length and these first bytes.
fn begins_with(path: &Path, header: &[u8], size: u64) -> bool {
    let mut found = vec![0; header.len()];
    let read = File::open(path).and_then(|file| {
        file.read_exact_at(&mut found, 0)?;
        file.metadata()
    });
    read.is_ok_and(|meta| meta.len() == size) && found == header
}

/// Name of the index of a checkpoint in several files.
const INDEX_FILE: &str = "model.safetensors.index.json";
/// Bytes after which the disk starts to write while more is computed.
const WRITE_BACK: u64 = 128 << 20;

impl OpenShard {
    fn open(&self) -> Result<Arc<File>> {
        let mut slot = unpoisoned(&self.file);
        if let Some(file) = &*slot {
            return Ok(Arc::clone(file));
        }
        let file = File::options().write(true).open(&self.path).map_err(io("open", &self.path))?;
        Ok(Arc::clone(slot.insert(Arc::new(file))))
    }

    /// Waits for the fsyncs that were begun.
    fn wait(&self) -> Result<()> {
        for sync in unpoisoned(&self.syncs).drain(..) {
            // Its error counts: the system reports a failed write-back once.
            if let Ok(synced) = sync.join() {
                synced.map_err(io("sync", &self.path))?;
            }
        }
        Ok(())
    }

    /// Begins an fsync beside the writes, unless one is under way: `finish` waits less, and memory does
    /// not fill with what the disk has yet to take.
    fn write_back(&self) {
        let mut syncs = unpoisoned(&self.syncs);
        let Some(file) = unpoisoned(&self.file).clone() else { return };
        if syncs.last().is_none_or(JoinHandle::is_finished) {
            self.unsynced.store(0, Ordering::Relaxed);
            syncs.extend(std::thread::Builder::new().spawn(move || file.sync_data()));
        }
    }
}

/// The value of a mutex whose holders only do single steps, so that a panic leaves it whole.
fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
