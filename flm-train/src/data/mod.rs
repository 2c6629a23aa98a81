//! Training data: files of conversations or text become packed rows of token ids.

pub(crate) mod batch;
mod container;
pub(crate) mod encode;
pub(crate) mod format;
mod forms;
pub(crate) mod pack;
mod rows;
pub(crate) mod samples;
mod shuffle;
mod trees;
mod turns;

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::data::encode::{Encoder, OnUnrendered, Truncation};
use crate::data::format::each_sample;
use crate::data::pack::{Row, pack};
use crate::data::samples::{Content, Sample};
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
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct DataStatistics {
    /// Samples in the files.
    pub samples: usize,
    /// Samples of which the end was cut off.
    pub truncated: usize,
    /// Samples that were left out.
    pub dropped: usize,
    /// Why samples were left out, and how many.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<String, usize>,
    /// Keys that nothing was taken from, and how often they stand in the files.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unread: BTreeMap<String, usize>,
    /// Samples of which something was chosen, by what.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub chosen: BTreeMap<String, usize>,
    /// Documents that are trained on (a long text becomes several).
    pub documents: usize,
    /// Tokens of those.
    pub tokens: usize,
    /// Tokens that are learned.
    pub targets: usize,
    /// The longest document.
    pub longest: usize,
}

impl DataStatistics {
    fn leave_out(&mut self, why: &str, count: usize) {
        self.dropped += count;
        *self.left_out.entry(why.to_owned()).or_default() += count;
    }

    /// What a person should know of the files, a line each: what was cut off, left out, chosen and not
    /// read.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.truncated > 0 {
            notes
                .push(format!("{} of {} samples cut off at the context's end", self.truncated, self.samples));
        }
        for (why, count) in &self.left_out {
            notes.push(format!("{count} of {} samples left out: {why}", self.samples));
        }
        for (what, count) in &self.chosen {
            notes.push(format!("{count} samples: {what} is learned"));
        }
        if !self.unread.is_empty() {
            let keys: Vec<String> =
                self.unread.iter().map(|(key, count)| format!("{key} ({count})")).collect();
            notes.push(format!("keys that are not read: {}", keys.join(", ")));
        }
        notes
    }
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
    /// What happens to samples that the template does not render whole.
    pub unrendered: OnUnrendered,
    /// Under which key of the files a known key stands.
    pub columns: BTreeMap<String, String>,
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
    /// Validation files' samples; none where they are split off.
    pub validation_statistics: DataStatistics,
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
        let mut validation_statistics = DataStatistics::default();
        documents = shuffled(documents, options.seed, PACKING);
        let validation = if options.validation_files.is_empty() {
            let count = (documents.len() as f64 * options.validation).round() as usize;
            documents.split_off(documents.len() - count.min(documents.len().saturating_sub(1)))
        } else {
            let first = options.files.len();
            encode_files(&options.validation_files, first, options, encoder, &mut validation_statistics)?
        };
        let rows = pack(documents, options.context, options.packing);
        let validation = pack(validation, options.context, options.packing);
        let digest_of = |rows: &mut dyn Iterator<Item = &Row>| {
            let mut hasher = crc32fast::Hasher::new();
            for row in rows {
                row.packed.ids.iter().for_each(|id| hasher.update(&id.to_le_bytes()));
                // as i64, which states of earlier versions have hashed
                row.packed.labels.iter().for_each(|label| hasher.update(&i64::from(*label).to_le_bytes()));
            }
            hasher.finalize()
        };
        let digest = digest_of(&mut rows.iter().chain(&validation));
        let validation_digest = digest_of(&mut validation.iter());
        let files = options.files.iter().chain(&options.validation_files).cloned().collect();
        Ok(Self { rows, validation, statistics, validation_statistics, digest, validation_digest, files })
    }

    /// Bytes that the rows take in memory for as long as the dataset lives: 12 a token, and where each document
    /// comes from.
    pub fn memory(&self) -> u64 {
        let rows = self.rows.iter().chain(&self.validation);
        let bytes = rows.map(|row| {
            let Packed { ids, labels, starts } = &row.packed;
            size_of::<Row>()
                + size_of_val(&ids[..])
                + size_of_val(&labels[..])
                + size_of_val(&starts[..])
                + size_of_val(&row.sources[..])
        });
        bytes.map(|bytes| bytes as u64).sum()
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

/// Encodes the samples of files as they are read: their text is not kept.
fn encode_files(
    files: &[PathBuf],
    first: usize,
    options: &DataOptions,
    encoder: &Encoder<'_>,
    statistics: &mut DataStatistics,
) -> Result<Vec<Document>, TrainError> {
    let mut documents = Vec::new();
    for (index, path) in files.iter().enumerate() {
        let mut take = |sample: Sample| {
            statistics.samples += 1;
            let source = (first + index, sample.line);
            let line = |message| TrainError::Line { path: path.clone(), line: source.1, message };
            if is_rendered(&sample.content, options.unrendered, encoder, statistics).map_err(line)? {
                let document = encoder.encode(&sample.content, source).map_err(line)?;
                let whole = matches!(sample.content, Content::Text(_));
                let parts = options.truncation.apply(document, options.context, whole, statistics);
                documents.extend(parts.map_err(line)?);
            }
            Ok(())
        };
        let found = each_sample(path, &options.columns, &mut take)?;
        statistics.samples += found.left_out.values().sum::<usize>();
        found.left_out.iter().for_each(|(why, count)| statistics.leave_out(why, *count));
        for (key, count) in found.unread {
            *statistics.unread.entry(key).or_default() += count;
        }
        for (what, count) in found.chosen {
            *statistics.chosen.entry(what).or_default() += count;
        }
    }
    statistics.documents = documents.len();
    statistics.tokens = documents.iter().map(|d| d.ids.len()).sum();
    statistics.targets = documents.iter().map(Document::targets).sum();
    statistics.longest = documents.iter().map(|d| d.ids.len()).max().unwrap_or(0);
    Ok(documents)
}

/// Whether the template renders a sample, or what it does not may be passed over; that is counted.
fn is_rendered(
    content: &Content,
    unrendered: OnUnrendered,
    encoder: &Encoder<'_>,
    statistics: &mut DataStatistics,
) -> Result<bool, String> {
    let found = encoder.unrendered(content)?;
    for key in found.others {
        *statistics.unread.entry(key).or_default() += 1;
    }
    let Some(first) = found.matters.first() else { return Ok(true) };
    let last = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
    match unrendered {
        OnUnrendered::Error => Err(format!(
            "the chat template does not render `{first}`: what is learned would be another \
             conversation. Give a template that does (data.chat_template), or set \
             data.unrendered to \"drop\" to leave such samples out or \"ignore\" to learn the rest"
        )),
        OnUnrendered::Drop => {
            statistics.leave_out(&format!("`{}` is not rendered by the chat template", last(first)), 1);
            Ok(false)
        }
        OnUnrendered::Ignore => {
            for key in &found.matters {
                *statistics.unread.entry(last(key)).or_default() += 1;
            }
            Ok(true)
        }
    }
}

/// A row with one document.
impl From<Document> for Row {
    fn from(document: Document) -> Self {
        let mut packed = Packed::default();
        packed.push(&document.ids, &document.target);
        Self { packed, sources: vec![document.source] }
    }
}
