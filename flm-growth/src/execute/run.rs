//! What fills the tensors of a growth: rows that are composed of the source's and of new ones.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use flm_checkpoint::{Checkpoint, Fill};

use crate::error::{GrowthError, Result};
use crate::execute::compose::Composer;
use crate::execute::source::Source;

/// A tensor of the target.
pub(super) struct Grown<'a> {
    tensor: &'a Source<'a>,
    source: &'a Checkpoint,
    seed: u64,
    /// Bytes of a chunk, in whole rows.
    chunk_bytes: usize,
    /// There while chunks are filled: its tables are large.
    composer: Mutex<Option<Arc<Composer<'a>>>>,
    overflowed: AtomicU64,
    inexact: AtomicU64,
}

impl<'a> Grown<'a> {
    pub(super) fn new(tensor: &'a Source<'a>, source: &'a Checkpoint, seed: u64, chunk_bytes: usize) -> Self {
        let (overflowed, inexact) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { tensor, source, seed, chunk_bytes, composer: Mutex::default(), overflowed, inexact }
    }

    /// Finite values that became infinite.
    pub(super) fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }

    /// Weights whose copies do not add up to them exactly.
    pub(super) fn inexact(&self) -> u64 {
        self.inexact.load(Ordering::Relaxed)
    }

    fn row_bytes(&self) -> u64 {
        let plan = &self.tensor.plan;
        (plan.size().1 * plan.dtype.size_in_bytes()).max(1) as u64
    }

    fn rows(&self, range: &Range<u64>) -> Range<usize> {
        (range.start / self.row_bytes()) as usize..(range.end / self.row_bytes()) as usize
    }

    fn composer(&self) -> Result<Arc<Composer<'a>>> {
        let mut slot = self.composer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(composer) = &*slot {
            return Ok(Arc::clone(composer));
        }
        let composer = Composer::new(&self.tensor.plan, self.seed)?.with_mean(self.tensor.mean.as_deref());
        Ok(Arc::clone(slot.insert(Arc::new(composer))))
    }
}

impl Fill for Grown<'_> {
    type Error = GrowthError;

    fn name(&self) -> &str {
        &self.tensor.plan.name
    }

    fn nbytes(&self) -> u64 {
        self.tensor.plan.nbytes()
    }

    /// Whole rows, all copied or all new.
    fn cut(&self, start: u64) -> u64 {
        let (row, row_bytes) = ((start / self.row_bytes()) as usize, self.row_bytes());
        let step = (self.chunk_bytes / row_bytes as usize).max(1);
        let bands = self.tensor.plan.bands().into_iter();
        let end = bands.map(|(_, end)| end).find(|&end| end > row).unwrap_or(row);
        end.min(row + step) as u64 * row_bytes
    }

    fn is_zero(&self, range: &Range<u64>) -> bool {
        let rows = self.rows(range);
        self.tensor.plan.rows_are_zero(rows.start, rows.end)
    }

    fn fill(&self, range: Range<u64>, scratch: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<()> {
        let rows = self.rows(&range);
        out.resize((range.end - range.start) as usize, 0);
        let read = |offset: u64, out: &mut [u8]| match self.tensor.entry {
            Some(entry) => Ok(self.source.read_at(entry, offset, out)?),
            None => Ok(()),
        };
        let composer = self.composer()?;
        composer.rows(rows.start, rows.end, &read, scratch, out)?;
        self.overflowed.fetch_add(composer.take_overflowed(), Ordering::Relaxed);
        self.inexact.fetch_add(composer.take_inexact(), Ordering::Relaxed);
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        *self.composer.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }
}
