//! Rows of token ids, labels and document boundaries, and rows that run together.

/// The label of a position that is not learned.
pub const IGNORED: i32 = -100;

/// A row of tokens, packed with one or more documents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packed {
    /// Token ids.
    pub ids: Vec<u32>,
    /// For each position the token that follows, or [`IGNORED`].
    pub labels: Vec<i32>,
    /// For each position that of its document's first token.
    pub starts: Vec<u32>,
}

impl Packed {
    /// Adds a document: its tokens, and for each of them whether it is a target of the token before it.
    pub fn push(&mut self, ids: &[u32], target: &[bool]) {
        let start = self.ids.len() as u32;
        self.ids.extend_from_slice(ids);
        self.starts.extend(std::iter::repeat_n(start, ids.len()));
        let label = |i: usize| match (ids.get(i), target.get(i)) {
            (Some(&id), Some(true)) => id as i32,
            _ => IGNORED,
        };
        self.labels.extend((1..=ids.len()).map(label));
    }

    /// Gives back the memory that was kept for more documents.
    pub fn shrink_to_fit(&mut self) {
        self.ids.shrink_to_fit();
        self.labels.shrink_to_fit();
        self.starts.shrink_to_fit();
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Number of positions that are learned.
    pub fn targets(&self) -> usize {
        self.labels.iter().filter(|&&label| label != IGNORED).count()
    }
}

/// Rows that run together, padded on the right to the longest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MicroBatch {
    /// Number of rows.
    pub rows: usize,
    /// Tokens of a row, padding included.
    pub len: usize,
    /// Token ids, `[rows, len]`.
    pub ids: Vec<u32>,
    /// Targets, `[rows, len]`; [`IGNORED`] where nothing is learned.
    pub labels: Vec<i32>,
    /// First position of the document that each position belongs to, `[rows, len]`.
    pub starts: Vec<u32>,
}

impl MicroBatch {
    /// Pads rows to the longest; padding is a document of its own and is not learned.
    pub fn new(rows: &[Packed]) -> Self {
        let len = rows.iter().map(Packed::len).max().unwrap_or(0);
        let mut batch =
            Self { rows: rows.len(), len, ids: Vec::new(), labels: Vec::new(), starts: Vec::new() };
        for row in rows {
            let padding = len - row.len();
            batch.ids.extend(row.ids.iter().copied().chain(std::iter::repeat_n(0, padding)));
            batch.labels.extend(row.labels.iter().copied().chain(std::iter::repeat_n(IGNORED, padding)));
            let start = row.len() as u32;
            batch.starts.extend(row.starts.iter().copied().chain(std::iter::repeat_n(start, padding)));
        }
        batch
    }

    /// Number of tokens, padding included.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of positions that are learned.
    pub fn targets(&self) -> usize {
        self.labels.iter().filter(|&&label| label != IGNORED).count()
    }
}
