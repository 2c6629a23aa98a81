//! Rows of a target tensor, from the source's rows and the plan.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{GrowthError, Result};
use crate::fill::NormalFill;
use crate::tensor_plan::{Fill, Std, TailScale, TensorPlan};
use flm_checkpoint::Dtype;

/// One target tensor, ready to be written row by row.
#[derive(Debug)]
pub(crate) struct Composer<'a> {
    plan: &'a TensorPlan,
    cols: usize,
    copied_rows: usize,
    copied_cols: usize,
    /// One generator for each standard deviation that the plan names; in practice one.
    normal: Vec<(f64, NormalFill)>,
    /// The noise that cancels between repeated columns, in f64.
    noise: Option<NormalFill>,
    /// What new rows are the mean of, and what is added to it, in f64.
    mean: Option<&'a [f64]>,
    around_mean: Option<NormalFill>,
    /// Finite values that became infinite.
    overflowed: AtomicU64,
    /// Weights whose copies do not add up to them exactly.
    inexact: AtomicU64,
}

/// How often noise is halved before it is left out.
const HALVINGS: usize = 8;

/// Fills a buffer from a byte offset of the source's tensor.
pub(crate) type Read<'a> = dyn Fn(u64, &mut [u8]) -> Result<()> + 'a;

impl<'a> Composer<'a> {
    /// `plan` names every standard deviation by its number.
    pub(crate) fn new(plan: &'a TensorPlan, seed: u64) -> Result<Self> {
        let ((rows, cols), (copied_rows, copied_cols)) = (plan.size(), plan.copied());
        if copied_rows > rows || copied_cols > cols {
            return Err(invalid(plan, "its source is larger than itself"));
        }
        let mut normal: Vec<(f64, NormalFill)> = Vec::new();
        let mut around_mean = None;
        for fill in [plan.new_cols, plan.new_rows, plan.new_corner].into_iter().flatten() {
            match fill {
                Fill::Normal(Std::Match | Std::Times(_))
                | Fill::Mean { std: Some(Std::Match | Std::Times(_)), .. } => {
                    return Err(GrowthError::StdWithoutSource(plan.name.clone()));
                }
                Fill::Normal(Std::Value(std)) if normal.iter().all(|(s, _)| *s != std) => {
                    normal.push((std, NormalFill::new(seed, &plan.name, plan.dtype, std)?));
                }
                Fill::Mean { std: Some(Std::Value(std)), .. } => {
                    around_mean = Some(NormalFill::new(seed, &plan.name, Dtype::F64, std)?);
                }
                _ => {}
            }
        }
        let noise = match plan.noise {
            Some(Std::Value(std)) => Some(NormalFill::new(seed, &plan.name, Dtype::F64, std)?),
            Some(_) => return Err(GrowthError::StdWithoutSource(plan.name.clone())),
            None => None,
        };
        let (overflowed, inexact) = (AtomicU64::new(0), AtomicU64::new(0));
        let mean = None;
        Ok(Self {
            plan,
            cols,
            copied_rows,
            copied_cols,
            normal,
            noise,
            mean,
            around_mean,
            overflowed,
            inexact,
        })
    }

    /// With the mean that new rows are, where the plan asks for one.
    pub(crate) fn with_mean(self, mean: Option<&'a [f64]>) -> Self {
        Self { mean, ..self }
    }

    /// How many finite values became infinite since the last call.
    pub(crate) fn take_overflowed(&self) -> u64 {
        self.overflowed.swap(0, Ordering::Relaxed)
    }

    /// How many weights have copies that do not add up to them exactly, since the last call.
    pub(crate) fn take_inexact(&self) -> u64 {
        self.inexact.swap(0, Ordering::Relaxed)
    }

    /// Bytes of one row of the target.
    pub(crate) fn row_bytes(&self) -> usize {
        self.cols * self.plan.dtype.size_in_bytes()
    }

    /// Writes rows `start..end` into `out`, which is theirs exactly. `scratch` is kept between calls.
    pub(crate) fn rows(
        &self,
        start: usize,
        end: usize,
        read: &Read<'_>,
        scratch: &mut Vec<u8>,
        out: &mut [u8],
    ) -> Result<()> {
        let middle = end.min(self.copied_rows.max(start));
        let (old, new) = out.split_at_mut((middle - start) * self.row_bytes());
        if !old.is_empty() {
            self.copied_rows(start, start, middle, self.plan.new_cols, read, scratch, old)?;
        }
        if new.is_empty() {
            return Ok(());
        }
        match self.plan.new_rows {
            Some(Fill::Mean { .. }) => self.mean_rows(middle, new),
            Some(Fill::Tile) if self.copied_rows > 0 => self.tiled_rows(middle, end, read, scratch, new),
            fill => self.new_rows(middle, end, fill, new),
        }
    }

    /// Target rows from `target` on, made of source rows `start..end` and a fill of the new columns.
    #[allow(clippy::too_many_arguments)]
    fn copied_rows(
        &self,
        target: usize,
        start: usize,
        end: usize,
        new_cols: Option<Fill>,
        read: &Read<'_>,
        scratch: &mut Vec<u8>,
        out: &mut [u8],
    ) -> Result<()> {
        let Some(source) = &self.plan.source else { return Ok(()) };
        let source_row = self.copied_cols * source.dtype.size_in_bytes();
        let offset = start as u64 * source_row as u64;
        if self.copied_cols == self.cols && self.plan.is_verbatim() {
            return read(offset, out);
        }
        let bytes = (end - start) * source_row;
        if scratch.len() < bytes {
            scratch.resize(bytes, 0);
        }
        let scratch = &mut scratch[..bytes];
        read(offset, scratch)?;
        let rows = scratch.chunks_exact(source_row).zip(out.chunks_exact_mut(self.row_bytes()));
        for (index, (from, to)) in rows.enumerate() {
            self.row(start + index, source.dtype, from, target + index, new_cols, to)?;
        }
        Ok(())
    }

    /// Target row `target`, made of `from`, which has the factors of the source's row `row`, and a fill of
    /// the new columns.
    fn row(
        &self,
        row: usize,
        dtype: Dtype,
        from: &[u8],
        target: usize,
        new_cols: Option<Fill>,
        to: &mut [u8],
    ) -> Result<()> {
        let (left, right) = to.split_at_mut(self.copied_cols * self.plan.dtype.size_in_bytes());
        if self.plan.is_verbatim() && dtype == self.plan.dtype {
            left.copy_from_slice(from);
        } else {
            self.scaled_row(row, dtype, from, left);
        }
        if right.is_empty() {
            return Ok(());
        }
        if new_cols != Some(Fill::Tile) {
            let element = target as u64 * self.cols as u64 + self.copied_cols as u64;
            return self.fill(new_cols, element, right);
        }
        for tile in right.chunks_mut(left.len()) {
            let length = tile.len();
            tile.copy_from_slice(&left[..length]);
        }
        if self.plan.splits {
            self.complete_sum(row, dtype, from, to);
        }
        if let Some(noise) = &self.noise {
            self.disturb(noise, target, to);
        }
        Ok(())
    }

    /// New rows from `start` on that are the mean of the source's, each with noise of its own where the
    /// plan asks for it.
    fn mean_rows(&self, start: usize, out: &mut [u8]) -> Result<()> {
        let mean = self.mean.filter(|m| m.len() == self.copied_cols);
        let mean = mean.ok_or_else(|| invalid(self.plan, "new rows are a mean that is not known"))?;
        let (mut from, mut drawn) = (vec![0; mean.len() * 8], vec![0; mean.len() * 8]);
        // the noise is that of the stored values, which the row's factors make
        let unscaled = if self.plan.scale == 0.0 { 0.0 } else { 1.0 / self.plan.scale };
        for (target, to) in (start..).zip(out.chunks_exact_mut(self.row_bytes())) {
            if let Some(noise) = &self.around_mean {
                noise.write(target as u64 * self.cols as u64, &mut drawn);
            }
            let slots = from.chunks_exact_mut(8).zip(drawn.chunks_exact(8));
            for ((slot, drawn), mean) in slots.zip(mean) {
                Dtype::F64.encode(mean + Dtype::F64.decode(drawn) * unscaled, slot);
            }
            self.row(0, Dtype::F64, &from, target, self.plan.new_corner, to)?;
        }
        Ok(())
    }

    /// Row `row` of the source times its factors.
    fn scaled_row(&self, row: usize, dtype: Dtype, from: &[u8], to: &mut [u8]) {
        let overflowed = self.factors(row, dtype, from, 1.0, self.plan.dtype, to);
        self.overflowed.fetch_add(overflowed, Ordering::Relaxed);
    }

    /// Row `row` of the source times its factors and `times`, as `stored`; returns how many finite values
    /// became infinite.
    fn factors(
        &self,
        row: usize,
        dtype: Dtype,
        from: &[u8],
        times: f64,
        stored: Dtype,
        to: &mut [u8],
    ) -> u64 {
        let factor = times * self.plan.scale * TailScale::at(self.plan.row_scale, row);
        let tail = self.plan.col_scale.filter(|t| t.scale != 1.0);
        let split = tail.map_or(self.copied_cols, |t| t.from.min(self.copied_cols));
        let (from_head, from_tail) = from.split_at(split * dtype.size_in_bytes());
        let (to_head, to_tail) = to.split_at_mut(split * stored.size_in_bytes());
        let offset = self.plan.offset;
        scale(dtype, from_head, (factor, offset), stored, to_head)
            + scale(dtype, from_tail, (factor * tail.map_or(1.0, |t| t.scale), offset), stored, to_tail)
    }

    /// Makes the last copy of each weight what is left of it after the others, so that the copies' sum is
    /// the weight, which n roundings of w/n seldom give.
    fn complete_sum(&self, row: usize, dtype: Dtype, from: &[u8], out: &mut [u8]) {
        let (to, size) = (self.plan.dtype, self.plan.dtype.size_in_bytes());
        let copies = (self.cols / self.copied_cols) as f64;
        let mut whole = vec![0; self.copied_cols * 8];
        self.factors(row, dtype, from, copies, Dtype::F64, &mut whole);
        let (first, last) = out.split_at_mut(out.len() - self.copied_cols * size);
        let pieces = first.chunks_exact(size).zip(last.chunks_exact_mut(size));
        let mut inexact = 0;
        for ((piece, rest), whole) in pieces.zip(whole.chunks_exact(8)) {
            let others = to.decode(piece) * (copies - 1.0);
            let left = Dtype::F64.decode(whole) - others;
            to.encode(left, rest);
            inexact += u64::from(to.decode(rest) != left);
        }
        self.inexact.fetch_add(inexact, Ordering::Relaxed);
    }

    /// Adds noise to every other one of a row's copies and takes it from the next: as much as leaves their
    /// sum what it was to the last bit, which where a weight is smaller than its noise is less.
    fn disturb(&self, noise: &NormalFill, row: usize, out: &mut [u8]) {
        let (dtype, size) = (self.plan.dtype, self.plan.dtype.size_in_bytes());
        let mut drawn = vec![0; self.copied_cols * 8];
        // the copy that completes the sum is no copy
        let paired = out.len() / (self.copied_cols * size) - usize::from(self.plan.splits);
        let out = &mut out[..paired * self.copied_cols * size];
        for (pair, copies) in out.chunks_exact_mut(2 * self.copied_cols * size).enumerate() {
            noise.write(row as u64 * self.cols as u64 + (2 * pair * self.copied_cols) as u64, &mut drawn);
            let (plus, minus) = copies.split_at_mut(self.copied_cols * size);
            let slots = plus.chunks_exact_mut(size).zip(minus.chunks_exact_mut(size));
            for ((plus, minus), drawn) in slots.zip(drawn.chunks_exact(8)) {
                let weight = dtype.decode(plus);
                let mut drawn = Dtype::F64.decode(drawn);
                for halvings in 0..=HALVINGS {
                    drawn = if halvings < HALVINGS { drawn } else { 0.0 };
                    dtype.encode(weight + drawn, plus);
                    dtype.encode(2.0 * weight - dtype.decode(plus), minus);
                    if dtype.decode(plus) + dtype.decode(minus) == 2.0 * weight {
                        break;
                    }
                    drawn *= 0.5;
                }
            }
        }
    }

    /// New rows `start..end` that repeat the source's from the first.
    fn tiled_rows(
        &self,
        start: usize,
        end: usize,
        read: &Read<'_>,
        scratch: &mut Vec<u8>,
        out: &mut [u8],
    ) -> Result<()> {
        let mut row = start;
        let mut rest = out;
        while row < end {
            let from = row % self.copied_rows;
            let run = (self.copied_rows - from).min(end - row);
            let (now, later) = rest.split_at_mut(run * self.row_bytes());
            self.copied_rows(row, from, from + run, self.plan.new_corner, read, scratch, now)?;
            (row, rest) = (row + run, later);
        }
        Ok(())
    }

    /// New rows `start..end` that hold nothing of the source.
    fn new_rows(&self, start: usize, end: usize, left_fill: Option<Fill>, out: &mut [u8]) -> Result<()> {
        let corner = self.plan.new_corner;
        let first = start as u64 * self.cols as u64;
        // one fill from end to end
        if self.copied_cols == 0 || left_fill == corner {
            return self.fill(corner, first, out);
        }
        if self.copied_cols == self.cols {
            return self.fill(left_fill, first, out);
        }
        for (row, slot) in (start..end).zip(out.chunks_exact_mut(self.row_bytes())) {
            let element = row as u64 * self.cols as u64;
            let (left, right) = slot.split_at_mut(self.copied_cols * self.plan.dtype.size_in_bytes());
            self.fill(left_fill, element, left)?;
            self.fill(corner, element + self.copied_cols as u64, right)?;
        }
        Ok(())
    }

    /// Elements from `element` on, of a fill that needs nothing of the source.
    fn fill(&self, fill: Option<Fill>, element: u64, out: &mut [u8]) -> Result<()> {
        let size = self.plan.dtype.size_in_bytes();
        match fill {
            None | Some(Fill::Zero) => out.fill(0),
            Some(Fill::Constant(value)) => {
                out.chunks_exact_mut(size).for_each(|slot| self.plan.dtype.encode(value, slot));
            }
            Some(Fill::Normal(std)) => match self.normal.iter().find(|(s, _)| Std::Value(*s) == std) {
                Some((_, generator)) => generator.write(element, out),
                None => return Err(GrowthError::StdWithoutSource(self.plan.name.clone())),
            },
            Some(Fill::Mean { .. } | Fill::Tile) => {
                return Err(invalid(self.plan, "a block repeats the source where there is none"));
            }
        }
        Ok(())
    }
}

fn invalid(plan: &TensorPlan, problem: &'static str) -> GrowthError {
    GrowthError::Plan { name: plan.name.clone(), problem }
}

/// `from` times `factor`, in another dtype, where both are less by `offset` than what they stand for; returns how
/// many finite values became infinite.
fn scale(
    from_dtype: Dtype,
    from: &[u8],
    (factor, offset): (f64, f64),
    to_dtype: Dtype,
    to: &mut [u8],
) -> u64 {
    // a table of all 65,536 values would not pay: only heads and gains are scaled
    if factor == 0.0 && offset == 0.0 {
        to.fill(0);
        return 0;
    }
    if factor == 1.0 && from_dtype == to_dtype {
        to.copy_from_slice(from);
        return 0;
    }
    let values =
        from.chunks_exact(from_dtype.size_in_bytes()).zip(to.chunks_exact_mut(to_dtype.size_in_bytes()));
    let mut overflowed = 0;
    for (from, to) in values {
        let value = from_dtype.decode(from);
        to_dtype.encode((value + offset) * factor - offset, to);
        overflowed += u64::from(value.is_finite() && !to_dtype.decode(to).is_finite());
    }
    overflowed
}
