//! What is told about a checkpoint.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use flm_candle::{
    checkpoint::{Checkpoint, Format, TensorEntry},
    config::{EMBED_TOKENS, GrowthMasks, LM_HEAD, TeleFlmConfig},
};
use serde::Serialize;

use super::values::{Padding, Statistics};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) dir: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) transferred: Option<Transferred>,
    pub(super) format: &'static str,
    pub(super) model_type: &'static str,
    pub(super) parameters: u64,
    pub(super) bytes: u64,
    pub(super) files: usize,
    pub(super) tensors: usize,
    /// Bytes by dtype.
    pub(super) dtypes: BTreeMap<String, u64>,
    pub(super) parts: Vec<Part>,
    pub(super) config: Shape,
    /// Masks of a model that is still growing, as config.json has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) growth: Option<GrowthMasks>,
    pub(super) tokenizer_size: Option<usize>,
    pub(super) padding_rows: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) values: Option<Values>,
    pub(super) problems: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tensor_list: Option<Vec<TensorRow>>,
}

/// What came through the network to know this much.
#[derive(Debug, Serialize)]
pub(super) struct Transferred {
    pub(super) repository: String,
    pub(super) revision: String,
    pub(super) commit: String,
    pub(super) requests: u64,
    pub(super) bytes: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Shape {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) ffn: usize,
    pub(super) vocab: usize,
    pub(super) context: usize,
    pub(super) rms_norm_eps: f64,
    pub(super) rope_theta: f64,
    pub(super) tied: bool,
    pub(super) input_scale: f64,
    pub(super) logit_scale: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) parameters: u64,
    /// Tensors by dtype, as they are stored.
    pub(super) dtypes: BTreeMap<&'static str, usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) values: Option<Statistics>,
}

/// What reading weights has told.
#[derive(Debug, Serialize)]
pub(super) struct Values {
    /// Whether only some values of each tensor were read.
    pub(super) sample: bool,
    pub(super) all: Statistics,
    pub(super) padding: Vec<Padding>,
}

#[derive(Debug, Serialize)]
pub(super) struct TensorRow {
    pub(super) name: String,
    pub(super) dtype: String,
    pub(super) shape: Vec<usize>,
    pub(super) file: String,
    pub(super) bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) values: Option<Statistics>,
}

/// The parts of a model, in the order in which they are shown.
const PARTS: [&str; 5] = ["embedding", "attention", "feed-forward", "norms", "head"];

/// Which of [`PARTS`] a tensor belongs to.
pub(super) fn part_of(name: &str) -> usize {
    match name {
        EMBED_TOKENS => 0,
        LM_HEAD => 4,
        _ if name.contains(".self_attn.") => 1,
        _ if name.contains(".mlp.") => 2,
        _ => 3,
    }
}

impl Report {
    pub(super) fn new(dir: &Path, checkpoint: &Checkpoint, list: bool) -> Self {
        let c = checkpoint.config();
        let mut dtypes = BTreeMap::new();
        let mut parts = parts(c);
        for entry in checkpoint.entries() {
            *dtypes.entry(entry.dtype.as_str().to_owned()).or_insert(0) += entry.nbytes;
            *parts[part_of(&entry.name)].dtypes.entry(entry.dtype.as_str()).or_insert(0) += 1;
        }
        let file_name = |file: usize| {
            let name = checkpoint.files()[file].path.file_name();
            name.map_or_else(String::new, |n| n.to_string_lossy().into_owned())
        };
        let row = |e: &TensorEntry| TensorRow {
            name: e.name.clone(),
            dtype: e.dtype.as_str().into(),
            shape: e.shape.clone(),
            file: file_name(e.file),
            bytes: e.nbytes,
            values: None,
        };
        Self {
            dir: dir.into(),
            transferred: None,
            format: match checkpoint.format() {
                Format::Safetensors => "safetensors",
                Format::ShardedSafetensors => "sharded safetensors",
                Format::PyTorch => "pytorch",
                Format::ShardedPyTorch => "sharded pytorch",
            },
            model_type: c.model_type.as_str(),
            parameters: c.parameter_count(),
            bytes: checkpoint.entries().map(|e| e.nbytes).sum(),
            files: checkpoint.files().len(),
            tensors: checkpoint.entries().count(),
            dtypes,
            parts,
            config: Shape::of(c),
            growth: c.growth.clone(),
            tokenizer_size: None,
            padding_rows: None,
            values: None,
            problems: checkpoint.problems().iter().map(ToString::to_string).collect(),
            tensor_list: list.then(|| checkpoint.entries().map(row).collect()),
        }
    }

    /// Compares the rows of the vocabulary with the tokens.
    pub(super) fn add_tokenizer(&mut self, tokens: usize) {
        let rows = self.config.vocab;
        if tokens > rows {
            self.problems.push(format!("the tokenizer has {tokens} tokens, the embedding only {rows} rows"));
        }
        self.tokenizer_size = Some(tokens);
        self.padding_rows = Some(rows.saturating_sub(tokens));
    }
}

impl Shape {
    fn of(c: &TeleFlmConfig) -> Self {
        Self {
            layers: c.num_hidden_layers,
            hidden: c.hidden_size,
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
            ffn: c.intermediate_size,
            vocab: c.vocab_size,
            context: c.max_position_embeddings,
            rms_norm_eps: c.rms_norm_eps,
            rope_theta: c.rope_theta,
            tied: c.tie_word_embeddings,
            input_scale: c.input_scale(),
            logit_scale: c.logit_scale(),
        }
    }
}

/// Parameters by the config.
fn parts(c: &TeleFlmConfig) -> Vec<Part> {
    let (d, f, l, v) =
        (c.hidden_size as u64, c.intermediate_size as u64, c.num_hidden_layers as u64, c.vocab_size as u64);
    let attention = 2 * d * (c.query_width() + c.key_value_width()) as u64;
    let head = if c.tie_word_embeddings { 0 } else { v * d };
    let parameters = [v * d, l * attention, l * 3 * d * f, (2 * l + 1) * d, head];
    let part = |(name, parameters)| Part { name, parameters, dtypes: BTreeMap::new(), values: None };
    PARTS.into_iter().zip(parameters).map(part).collect()
}
