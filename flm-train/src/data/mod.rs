//! Training data: files of conversations or text become packed rows of token ids.

pub(crate) mod batch;
pub(crate) mod encode;
pub(crate) mod format;
pub(crate) mod pack;
mod shuffle;

use std::path::PathBuf;

use crate::data::encode::{Encoder, Truncation};
use crate::data::format::{Content, read_samples};
use crate::data::pack::{Row, pack};
use crate::data::shuffle::{permutation, shuffled};

use crate::data::batch::Packed;
use crate::error::TrainError;

/// A tokenised sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Whether each token is learned, as the target of the token before it.
    pub target: Vec<bool>,
    /// Where it comes from: index of the file, and line counted from 1.
    pub source: (usize, usize),
}

impl Document {
    /// Number of tokens that are learned: the first has no token before it.
    pub fn targets(&self) -> usize {
        self.target.iter().skip(1).filter(|&&t| t).count()
    }
}

/// What became of the samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct DataStatistics {
    /// Samples in the files.
    pub samples: usize,
    /// Samples of which the end was cut off.
    pub truncated: usize,
    /// Samples that were left out: too long, or nothing to learn after truncation.
    pub dropped: usize,
    /// Documents that are trained on (a long text becomes several).
    pub documents: usize,
    /// Tokens of those.
    pub tokens: usize,
    /// Tokens that are learned.
    pub targets: usize,
    /// The longest document.
    pub longest: usize,
}

/// How data becomes rows.
#[derive(Debug, Clone, PartialEq)]
pub struct DataOptions {
    /// Files to train on.
    pub files: Vec<PathBuf>,
    /// Files to validate on.
    pub validation_files: Vec<PathBuf>,
    /// Share of the documents that is split off for validation, where there are no files for it.
    pub validation: f64,
    /// Tokens of a row.
    pub context: usize,
    /// What happens to longer samples.
    pub truncation: Truncation,
    /// Whether several documents share a row.
    pub packing: bool,
    /// Seed of the order.
    pub seed: u64,
}

/// Rows to train and to validate on.
#[derive(Debug, Clone, Default)]
pub struct Dataset {
    /// Rows to train on, in their order of the first epoch before it is shuffled.
    pub rows: Vec<Row>,
    /// Rows to validate on.
    pub validation: Vec<Row>,
    /// Training files' samples.
    pub statistics: DataStatistics,
    /// Changes when tokens, targets or their order change.
    pub digest: u32,
    /// The same of the rows to validate on alone.
    pub validation_digest: u32,
    files: Vec<PathBuf>,
}

/// The stream of the shuffle's random numbers that splits and packs.
const PACKING: u64 = 0;
/// The stream of the first epoch.
const FIRST_EPOCH: u64 = 1;

impl Dataset {
    /// Reads, encodes, splits, shuffles and packs.
    ///
    /// # Errors
    /// Anything wrong in a file, with its line; nothing to learn.
    pub fn load(options: &DataOptions, encoder: &Encoder<'_>) -> Result<Self, TrainError> {
        let mut statistics = DataStatistics::default();
        let mut documents = encode_files(&options.files, 0, options, encoder, &mut statistics)?;
        if statistics.samples == 0 {
            return Err(TrainError::Data("the data files hold no samples".into()));
        }
        if statistics.targets == 0 {
            return Err(TrainError::Data(
                "no sample has a token to learn: check the roles, the context length and the truncation"
                    .into(),
            ));
        }
        documents = shuffled(documents, options.seed, PACKING);
        let validation = if options.validation_files.is_empty() {
            let count = (documents.len() as f64 * options.validation).round() as usize;
            documents.split_off(documents.len() - count.min(documents.len().saturating_sub(1)))
        } else {
            let first = options.files.len();
            encode_files(&options.validation_files, first, options, encoder, &mut DataStatistics::default())?
        };
        let rows = pack(documents, options.context, options.packing);
        let validation = pack(validation, options.context, options.packing);
        let digest_of = |rows: &mut dyn Iterator<Item = &Row>| {
            let mut hasher = crc32fast::Hasher::new();
            for row in rows {
                row.packed.ids.iter().for_each(|id| hasher.update(&id.to_le_bytes()));
                row.packed.labels.iter().for_each(|label| hasher.update(&label.to_le_bytes()));
            }
            hasher.finalize()
        };
        let digest = digest_of(&mut rows.iter().chain(&validation));
        let validation_digest = digest_of(&mut validation.iter());
        let files = options.files.iter().chain(&options.validation_files).cloned().collect();
        Ok(Self { rows, validation, statistics, digest, validation_digest, files })
    }

    /// Rows of the training set, each with its packed tokens, in the order of `epoch`.
    pub fn order(&self, seed: u64, epoch: u64) -> Vec<usize> {
        permutation(self.rows.len(), seed, FIRST_EPOCH + epoch)
    }

    /// The part of all positions that hold a token, if rows are `context` long.
    pub fn packing_efficiency(&self, context: usize) -> f64 {
        let tokens: usize = self.rows.iter().map(|row| row.packed.len()).sum();
        tokens as f64 / (self.rows.len() * context).max(1) as f64
    }

    /// Where the documents of rows come from, for messages.
    pub fn describe(&self, rows: &[usize]) -> String {
        let sources = rows.iter().flat_map(|&row| &self.rows[row].sources);
        let mut text: Vec<String> =
            sources.map(|&(file, line)| format!("{}:{line}", self.files[file].display())).collect();
        text.dedup();
        let more = text.len().saturating_sub(8);
        text.truncate(8);
        if more > 0 { format!("{} and {more} more", text.join(", ")) } else { text.join(", ") }
    }
}

fn encode_files(
    files: &[PathBuf],
    first: usize,
    options: &DataOptions,
    encoder: &Encoder<'_>,
    statistics: &mut DataStatistics,
) -> Result<Vec<Document>, TrainError> {
    let mut documents = Vec::new();
    for (index, path) in files.iter().enumerate() {
        for sample in read_samples(path)? {
            statistics.samples += 1;
            let line = sample.line;
            let at_line = |message: String| TrainError::Line { path: path.clone(), line, message };
            let document = encoder.encode(&sample.content, (first + index, line)).map_err(at_line)?;
            let whole = matches!(sample.content, Content::Text(_));
            let parts =
                options.truncation.apply(document, options.context, whole, statistics).map_err(at_line)?;
            documents.extend(parts);
        }
    }
    statistics.documents = documents.len();
    statistics.tokens = documents.iter().map(|d| d.ids.len()).sum();
    statistics.targets = documents.iter().map(Document::targets).sum();
    statistics.longest = documents.iter().map(|d| d.ids.len()).max().unwrap_or(0);
    Ok(documents)
}

/// A row with one document.
impl From<Document> for Row {
    fn from(document: Document) -> Self {
        let mut packed = Packed::default();
        packed.push(&document.ids, &document.target);
        Self { packed, sources: vec![document.source] }
    }
}
