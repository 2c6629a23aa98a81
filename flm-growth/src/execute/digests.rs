//! Digests of tensors from chunks that threads bring in any order.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use flm_checkpoint::Journal;
use flm_checkpoint::Writer;

use crate::error::{GrowthError, Result};
use flm_checkpoint::{Checksums, WeightFileDigest};

/// A piece of the output.
pub(super) enum Bytes<'a> {
    These(&'a [u8]),
    Zeros(usize),
}

/// Digests of tensors, and of whole files where they are asked for, from chunks that threads bring in any
/// order and that are taken in the order of the file.
pub(super) struct Digests<'a> {
    writer: &'a Writer,
    state: Mutex<State>,
    turn: Condvar,
    stop: AtomicBool,
    /// Whether whole files are hashed, too.
    files: bool,
    /// What an earlier run has finished.
    earlier: std::collections::BTreeMap<String, String>,
}

struct State {
    /// The chunk that is next.
    next: usize,
    journal: Journal,
    tensor: blake3::Hasher,
    file: Option<OpenFile>,
    checksums: Checksums,
}

/// The file that the last chunk was in.
struct OpenFile {
    index: usize,
    name: String,
    /// Of the whole file, where it was asked for.
    hasher: Option<blake3::Hasher>,
}

impl<'a> Digests<'a> {
    pub(super) fn new(writer: &'a Writer, journal: Journal, files: bool) -> Self {
        let earlier = journal.finished.clone();
        let state = State {
            next: 0,
            journal,
            tensor: blake3::Hasher::new(),
            file: None,
            checksums: Checksums::default(),
        };
        let (turn, stop) = (Condvar::new(), AtomicBool::new(false));
        Self { writer, state: Mutex::new(state), turn, stop, files, earlier }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an earlier run has written the tensor.
    pub(super) fn finished(&self, tensor: &str) -> bool {
        self.earlier.contains_key(tensor)
    }

    /// Lets no one wait any longer.
    pub(super) fn stop(&self) {
        // under the lock: no thread is between its look at the flag and its wait
        let _state = self.lock();
        self.stop.store(true, Ordering::Relaxed);
        self.turn.notify_all();
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Adds chunk `index` of all, when it is its turn.
    pub(super) fn add(
        &self,
        index: usize,
        tensor: &str,
        bytes: Bytes<'_>,
        first: bool,
        last: bool,
    ) -> Result<()> {
        let mut state = self.lock();
        while state.next != index {
            if self.stopped() {
                return Ok(());
            }
            state = self.turn.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let state = &mut *state;
        if first {
            self.begin(state, tensor)?;
        }
        state.add(&bytes);
        if last {
            self.end(state, tensor)?;
        }
        state.next += 1;
        self.turn.notify_all();
        Ok(())
    }

    fn begin(&self, state: &mut State, tensor: &str) -> Result<()> {
        state.tensor.reset();
        let (index, offset) = self.writer.place(tensor)?;
        if state.file.as_ref().is_none_or(|f| f.index != index) {
            state.end_file();
            let name = self.writer.file_names().nth(index).unwrap_or_default().to_owned();
            let path = self.writer.staging_dir().join(&name);
            let failed = |source| GrowthError::Read { path: path.display().to_string(), source };
            state.checksums.weights.insert(name.clone(), WeightFileDigest::of_file(&path)?);
            let hasher = if self.files { Some(header_hasher(&path, offset).map_err(failed)?) } else { None };
            state.file = Some(OpenFile { index, name, hasher });
        }
        Ok(())
    }

    fn end(&self, state: &mut State, tensor: &str) -> Result<()> {
        let digest = state.tensor.finalize().to_hex().to_string();
        match self.earlier.get(tensor) {
            Some(earlier) if *earlier != digest => return Err(GrowthError::Damaged(tensor.into())),
            Some(_) => {}
            None => state.journal.finish(tensor, &digest)?,
        }
        state.checksums.tensors.insert(tensor.into(), digest);
        Ok(())
    }

    /// Forgets what the journal says is finished.
    pub(super) fn forget(self) -> Result<()> {
        Ok(self.state.into_inner().unwrap_or_else(PoisonError::into_inner).journal.forget()?)
    }

    /// The digests of everything added.
    pub(super) fn finish(self) -> Result<Checksums> {
        let mut state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        state.end_file();
        Ok(state.checksums)
    }
}

impl State {
    fn add(&mut self, bytes: &Bytes<'_>) {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        let mut both = |bytes: &[u8]| {
            self.tensor.update(bytes);
            if let Some(hasher) = self.file.as_mut().and_then(|f| f.hasher.as_mut()) {
                hasher.update(bytes);
            }
        };
        match bytes {
            Bytes::These(bytes) => both(bytes),
            Bytes::Zeros(length) => {
                let mut left = *length;
                while left > 0 {
                    let now = left.min(ZEROS.len());
                    both(&ZEROS[..now]);
                    left -= now;
                }
            }
        }
    }

    fn end_file(&mut self) {
        let Some(OpenFile { name, hasher: Some(hasher), .. }) = self.file.take() else { return };
        if let Some(file) = self.checksums.weights.get_mut(&name) {
            file.blake3 = Some(hasher.finalize().to_hex().to_string());
        }
    }
}

/// A hasher that has seen a file's first `length` bytes.
fn header_hasher(path: &Path, length: u64) -> std::io::Result<blake3::Hasher> {
    let mut header = vec![0; length as usize];
    File::open(path)?.read_exact(&mut header)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header);
    Ok(hasher)
}
