//! What is told about a checkpoint.

use flm_checkpoint::ValueStatistics;
use flm_checkpoint::{LayerRope, NormPlacement, QkNorm, RopeScaling};

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use flm_checkpoint::GrowthMasks;
use flm_checkpoint::TeleFlmConfig;
use flm_checkpoint::{Checkpoint, Format, TensorEntry};
use flm_checkpoint::{EMBED_TOKENS, LM_HEAD};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) dir: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) transferred: Option<Transferred>,
    pub(crate) format: &'static str,
    pub(crate) model_type: &'static str,
    pub(crate) parameters: u64,
    pub(crate) bytes: u64,
    pub(crate) files: usize,
    pub(crate) tensors: usize,
    /// Bytes by dtype.
    pub(crate) dtypes: BTreeMap<String, u64>,
    pub(crate) parts: Vec<Part>,
    pub(crate) config: Shape,
    /// Masks of a model that is still growing, as config.json has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) growth: Option<GrowthMasks>,
    /// What stands before every tensor's name in the files and is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prefix: Option<String>,
    /// What puts such a prefix there, as far as it is known.
    #[serde(skip)]
    pub(crate) wrappers: Vec<&'static str>,
    /// Buffers in the files that follow from the config and are not read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ignored: Vec<String>,
    /// Other forms of weights in the directory, which are not read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) unread: Vec<&'static str>,
    /// Keys of config.json that flm neither computes nor knows to change nothing.
    pub(crate) unknown_keys: Vec<String>,
    pub(crate) tokenizer_size: Option<usize>,
    pub(crate) padding_rows: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) values: Option<Values>,
    pub(crate) problems: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tensor_list: Option<Vec<TensorRow>>,
}

/// What came through the network to know this much.
#[derive(Debug, Serialize)]
pub(crate) struct Transferred {
    pub(crate) repository: String,
    pub(crate) revision: String,
    pub(crate) commit: String,
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Shape {
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) ffn: usize,
    pub(crate) vocab: usize,
    pub(crate) context: usize,
    pub(crate) rms_norm_eps: f64,
    pub(crate) rope_theta: f64,
    /// How rotary frequencies are stretched; absent where they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rope_scaling: Option<RopeScaling>,
    /// Which projections have biases.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) biases: Vec<&'static str>,
    /// Where a block's norms are.
    pub(crate) norms: NormPlacement,
    /// In what attention differs from Llama's, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) attention: Vec<String>,
    /// How queries and keys are normalised.
    pub(crate) qk_norm: QkNorm,
    pub(crate) tied: bool,
    pub(crate) input_scale: f64,
    pub(crate) logit_scale: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) parameters: u64,
    /// Tensors by dtype, as they are stored.
    pub(crate) dtypes: BTreeMap<&'static str, usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) values: Option<Statistics>,
}

/// What reading weights has told.
#[derive(Debug, Serialize)]
pub(crate) struct Values {
    /// Whether only some values of each tensor were read.
    pub(crate) sample: bool,
    pub(crate) all: Statistics,
    pub(crate) padding: Vec<Padding>,
    /// Tokens whose row of the embedding is zero, where all values were read and there are such.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) zero_tokens: Option<ZeroTokens>,
}

/// Tokens whose row of the embedding is zero throughout.
#[derive(Debug, Serialize)]
pub(crate) struct ZeroTokens {
    pub(crate) count: usize,
    /// The first ids.
    pub(crate) first: Vec<u64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct TensorRow {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) file: String,
    pub(crate) bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) values: Option<Statistics>,
}

/// The parts of a model, in the order in which they are shown.
const PARTS: [&str; 5] = ["embedding", "attention", "feed-forward", "norms", "head"];

/// Which of [`PARTS`] a tensor belongs to.
pub(crate) fn part_of(name: &str) -> usize {
    match name {
        EMBED_TOKENS => 0,
        LM_HEAD => 4,
        _ if name.contains(".self_attn.") => 1,
        _ if name.contains(".mlp.") => 2,
        _ => 3,
    }
}

impl Report {
    pub(crate) fn new(dir: &Path, checkpoint: &Checkpoint, list: bool) -> Self {
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
        let prefix = checkpoint.prefix();
        Self {
            dir: dir.into(),
            transferred: None,
            prefix: prefix.as_ref().map(|(prefix, _)| (*prefix).to_owned()),
            wrappers: prefix.map_or_else(Vec::new, |(_, wrappers)| wrappers),
            ignored: checkpoint.ignored().to_vec(),
            unread: checkpoint.unread().to_vec(),
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
            unknown_keys: c.unknown_keys().map(str::to_owned).collect(),
            tokenizer_size: None,
            padding_rows: None,
            values: None,
            problems: checkpoint.problems().iter().map(ToString::to_string).collect(),
            tensor_list: list.then(|| checkpoint.entries().map(row).collect()),
        }
    }

    /// The form of weights that is read, by the name of its file or index.
    pub(crate) fn first(&self) -> &'static str {
        match self.format {
            "safetensors" => "model.safetensors",
            "sharded safetensors" => "model.safetensors.index.json",
            _ => "pytorch_model.bin",
        }
    }

    /// Names tensors that are zero throughout.
    pub(crate) fn add_zero(&mut self, names: &[&str]) {
        if let [first, rest @ ..] = names {
            let others = match rest.last() {
                Some(last) => format!(" and {} others, the last {last}", rest.len()),
                None => String::new(),
            };
            self.problems.push(format!("{first}{others}: zero throughout; a file that was never filled?"));
        }
    }

    /// Compares the rows of the vocabulary with the tokens.
    pub(crate) fn add_tokenizer(&mut self, tokens: usize) {
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
            rope_scaling: Some(c.rope_scaling.clone()).filter(|scaling| *scaling != RopeScaling::Default),
            biases: [
                ("query, key, value", c.qkv_bias),
                ("attention output", c.attention_output_bias),
                ("feed-forward", c.mlp_bias),
                ("feed-forward output", c.mlp_output_bias && !c.mlp_bias),
            ]
            .into_iter()
            .filter_map(|(name, has)| has.then_some(name))
            .collect(),
            norms: c.norms,
            attention: attention(c),
            qk_norm: c.qk_norm,
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

/// Statistics of values; `min` to `std` are of the finite ones, absent where there is none.
#[derive(Debug, Serialize)]
pub(crate) struct Statistics {
    pub(crate) count: u64,
    pub(crate) nan: u64,
    pub(crate) infinite: u64,
    pub(crate) zero: u64,
    pub(crate) min: Option<f64>,
    pub(crate) max: Option<f64>,
    pub(crate) mean: Option<f64>,
    pub(crate) std: Option<f64>,
}

impl From<ValueStatistics> for Statistics {
    fn from(v: ValueStatistics) -> Self {
        let some = |x: f64| (v.finite() > 0).then_some(x);
        Self {
            count: v.count,
            nan: v.nan,
            infinite: v.infinite,
            zero: v.zero,
            min: some(v.min),
            max: some(v.max),
            mean: some(v.mean),
            std: some(v.std()),
        }
    }
}

/// Rows of a matrix that no token has.
#[derive(Debug, Serialize)]
pub(crate) struct Padding {
    pub(crate) tensor: &'static str,
    pub(crate) rows: u64,
    /// Rows that are zero throughout.
    pub(crate) zero: u64,
    /// Whether all of them are the same.
    pub(crate) equal: bool,
}

/// In what attention differs from Llama's, a line for each kind of layer and each constant.
fn attention(config: &TeleFlmConfig) -> Vec<String> {
    let mut lines = Vec::new();
    let layers = config.num_hidden_layers;
    for kind in config.layers.kinds() {
        let window = kind.window.map(|window| format!("a window of {window} tokens"));
        let positions = match kind.rope {
            LayerRope::Model => None,
            LayerRope::Local { theta } => Some(format!("theta {theta}")),
            LayerRope::None => Some("no positions".to_owned()),
        };
        let what: Vec<String> = window.into_iter().chain(positions).collect();
        if !what.is_empty() {
            let of_kind = (0..layers).filter(|&layer| config.layers.of(layer) == kind).count();
            lines.push(format!("{} in {of_kind} of {layers} layers", what.join(", ")));
        }
    }
    if config.rotary_dim() != config.head_dim {
        lines.push(format!("{} of {} entries of a head are turned", config.rotary_dim(), config.head_dim));
    }
    if config.rotary_pairs() {
        lines.push("neighbours of a head are turned together".to_owned());
    }
    if let Some(multiplier) = config.attention_multiplier {
        lines.push(format!("scores × {multiplier}"));
    }
    if let Some(cap) = config.attention_softcap {
        lines.push(format!("scores bounded by {cap}"));
    }
    lines
}
