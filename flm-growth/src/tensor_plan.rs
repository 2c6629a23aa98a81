//! What fills one target tensor: the blocks of a matrix, copied, scaled, drawn or zero. Everything else
//! reads this.

use serde::{Deserialize, Serialize};

use flm_checkpoint::{Dtype, is_power_of_two};

/// How new weights' standard deviation is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Std {
    /// That of the block that is copied into the same tensor, from a fixed sample of the source.
    Match,
    /// This many times [`Std::Match`].
    Times(f64),
    /// This standard deviation.
    Value(f64),
}

/// What fills a block of a tensor that is not copied from the source's tensor as it is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fill {
    /// Zeros; a hole of the file where possible.
    Zero,
    /// One number.
    Constant(f64),
    /// Normal, mean 0; see [`crate::fill`].
    Normal(Std),
    /// Every row is the mean of the source's first `rows` rows, times the copy's scale.
    Mean {
        /// How many rows the mean is of.
        rows: usize,
        /// Standard deviation of what is added, drawn for each element of the copied columns.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        std: Option<Std>,
    },
    /// Over and over: a new row r is the source's row r mod rows, times the copy's scale; new columns
    /// repeat the columns to their left.
    Tile,
}

/// A factor of the copied rows (or columns) from one on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TailScale {
    /// The first row (column) that it applies to.
    pub from: usize,
    /// Factor of the rows or columns from there on.
    pub scale: f64,
}

impl TailScale {
    /// The factor of index `i`.
    pub fn at(tail: Option<Self>, i: usize) -> f64 {
        tail.filter(|t| i >= t.from).map_or(1.0, |t| t.scale)
    }
}

/// A tensor of the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceTensor {
    /// Name in the checkpoint.
    pub name: String,
    /// How it is stored.
    pub dtype: Dtype,
    /// Shape, rows first.
    pub shape: Vec<usize>,
}

/// What fills one target tensor, seen as a matrix of `[out, in]`; a vector is a matrix of one row.
///
/// ```text
///                 copied columns   new columns
/// copied rows   [ source · scale | new_cols    ]
/// new rows      [ new_rows       | new_corner  ]
/// ```
/// Without a source the whole tensor is the corner. A block that does not exist has no fill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorPlan {
    /// Name in the checkpoint.
    pub name: String,
    /// How it is stored.
    pub dtype: Dtype,
    /// Shape, rows first.
    pub shape: Vec<usize>,
    /// Whether it belongs to a layer that is added.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub new_layer: bool,
    /// The tensor that fills the leading corner.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source: Option<SourceTensor>,
    /// What the source's values are multiplied by.
    pub scale: f64,
    /// What is added to stored values to give those that are meant, which factors multiply: 1 for the gains
    /// of Gemma.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub offset: f64,
    /// What the source's last rows are multiplied by besides.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub row_scale: Option<TailScale>,
    /// What the source's last columns are multiplied by besides.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub col_scale: Option<TailScale>,
    /// Whether the copies of a column are parts of it, so that their sum must be the column: the last is
    /// what the others leave. Where they are halves, quarters and so on, all are equal and exact.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub splits: bool,
    /// Noise on columns that are repeated: added to one copy, taken from the next, so that a row's product
    /// with a vector whose entries are repeated likewise stays what it is. Of an odd number of copies
    /// the last has none, and a weight has only as much as leaves the sum of its copies exact.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub noise: Option<Std>,
    /// Fill of the copied rows' new columns.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub new_cols: Option<Fill>,
    /// Fill of the new rows' copied columns.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub new_rows: Option<Fill>,
    /// Fill of the new rows' new columns.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub new_corner: Option<Fill>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// Rows and columns of a shape; a vector is one row.
pub(crate) fn matrix(shape: &[usize]) -> (usize, usize) {
    match shape {
        [] => (1, 1),
        [cols] => (1, *cols),
        [rows, inner @ ..] => (*rows, inner.iter().product()),
    }
}

/// One of the four blocks of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// The source's tensor.
    Copied,
    /// Copied rows, new columns.
    NewCols,
    /// New rows, copied columns.
    NewRows,
    /// New rows, new columns.
    NewCorner,
}

/// A tensor's four blocks with their numbers of elements.
pub(crate) type Blocks = [(Block, u64); 4];

impl TensorPlan {
    /// Rows and columns of the target tensor.
    pub fn size(&self) -> (usize, usize) {
        matrix(&self.shape)
    }

    /// Rows and columns that are copied.
    pub fn copied(&self) -> (usize, usize) {
        self.source.as_ref().map_or((0, 0), |s| matrix(&s.shape))
    }

    /// How often every element of the source is in the target.
    pub fn copies(&self) -> usize {
        let ((rows, cols), (r, c)) = (self.size(), self.copied());
        let times = |fill: Option<Fill>, of: usize, n: usize| {
            if fill == Some(Fill::Tile) && n > 0 { of / n } else { 1 }
        };
        times(self.new_rows, rows, r) * times(self.new_cols, cols, c)
    }

    /// Elements of each block.
    pub fn blocks(&self) -> Blocks {
        let ((rows, cols), (r, c)) = (self.size(), self.copied());
        let area = |rows: usize, cols: usize| rows as u64 * cols as u64;
        [
            (Block::Copied, area(r, c)),
            (Block::NewCols, area(r, cols - c)),
            (Block::NewRows, area(rows - r, c)),
            (Block::NewCorner, area(rows - r, cols - c)),
        ]
    }

    /// What fills a block; `None` for the copied one and for those that do not exist.
    pub fn fill(&self, block: Block) -> Option<Fill> {
        match block {
            Block::Copied => None,
            Block::NewCols => self.new_cols,
            Block::NewRows => self.new_rows,
            Block::NewCorner => self.new_corner,
        }
    }

    /// Whether all of rows `start..end` is zero.
    pub fn rows_are_zero(&self, start: usize, end: usize) -> bool {
        let zero = |fill: Option<Fill>| fill.is_none_or(|f| f == Fill::Zero);
        let ((_, cols), (copied_rows, copied_cols)) = (self.size(), self.copied());
        let factor = self.scale * TailScale::at(self.row_scale, start);
        let silent = self.offset == 0.0 && factor == 0.0;
        let hidden = silent && (copied_cols == cols || zero(self.new_cols));
        let copied = start < copied_rows && copied_cols > 0 && !hidden;
        let new = end > copied_rows;
        !copied && (!new || (zero(self.new_rows) && zero(self.new_corner)))
    }

    /// Rows at which what fills them changes: copied ones, those with a factor of their own, new ones.
    pub fn bands(&self) -> Vec<(usize, usize)> {
        let (rows, copied) = (self.size().0, self.copied().0);
        let tail = self.row_scale.map_or(copied, |t| t.from.min(copied));
        [(0, tail), (tail, copied), (copied, rows)].into_iter().filter(|(a, b)| a < b).collect()
    }

    /// Bytes that are written: those of rows that are not all zero.
    pub fn written_bytes(&self) -> u64 {
        let row = self.nbytes() / (self.size().0.max(1) as u64);
        let bands = self.bands().into_iter().filter(|&(start, end)| !self.rows_are_zero(start, end));
        bands.map(|(start, end)| (end - start) as u64 * row).sum()
    }

    /// The standard deviations of everything that is drawn.
    fn stds(&mut self) -> impl Iterator<Item = &mut Std> {
        let fills = [&mut self.new_cols, &mut self.new_rows, &mut self.new_corner].into_iter().flatten();
        let drawn = fills.filter_map(|fill| match fill {
            Fill::Normal(std) | Fill::Mean { std: Some(std), .. } => Some(std),
            _ => None,
        });
        drawn.chain(&mut self.noise)
    }

    /// Whether a standard deviation is that of the source.
    pub fn needs_std(&mut self) -> bool {
        self.stds().any(|std| !matches!(std, Std::Value(_)))
    }

    /// Gives [`Std::Match`] and [`Std::Times`] their values, where the copied block has this one.
    pub fn set_std(&mut self, matched: f64) {
        for std in self.stds() {
            *std = match *std {
                Std::Match => Std::Value(matched),
                Std::Times(factor) => Std::Value(factor * matched),
                Std::Value(value) => Std::Value(value),
            };
        }
    }

    /// Length of the target tensor in bytes.
    pub fn nbytes(&self) -> u64 {
        let (rows, cols) = self.size();
        rows as u64 * cols as u64 * self.dtype.size_in_bytes() as u64
    }

    /// Whether copied values keep their bits.
    pub fn is_verbatim(&self) -> bool {
        let one = |tail: Option<TailScale>| tail.is_none_or(|t| t.scale == 1.0);
        let unscaled = self.scale == 1.0 && one(self.row_scale) && one(self.col_scale);
        unscaled && self.source.as_ref().is_none_or(|s| s.dtype == self.dtype)
    }

    /// The relative error with which copied values are stored; `None` where they are exact.
    pub fn rounding(&self) -> Option<f64> {
        let source = self.source.as_ref()?;
        let widens = source.dtype == self.dtype || matches!(self.dtype, Dtype::F32 | Dtype::F64);
        let narrows = !widens || (source.dtype == Dtype::F64 && self.dtype == Dtype::F32);
        let keeps = |factor: f64| factor == 0.0 || is_power_of_two(factor.abs());
        let tails = [self.row_scale, self.col_scale];
        let shifted = self.offset != 0.0 && !self.is_verbatim();
        let exact =
            !shifted && keeps(self.scale) && tails.iter().flatten().all(|t| keeps(t.scale)) && !narrows;
        (!exact).then(|| self.dtype.unit_roundoff())
    }
}
