use std::{collections::BTreeMap, path::PathBuf};

use clap::Args;
use flm_candle::checkpoint::{Checkpoint, Format};
use serde::Serialize;

use crate::{
    arguments::{has_tokenizer, open, tokenizer},
    output::{Output, count, size, table},
};

/// Show a checkpoint's shape, dtypes, files and problems, without reading its weights.
///
/// The exit status is 1 when there are problems.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flm inspect ./Tele-FLM")]
pub(crate) struct Inspect {
    /// Checkpoint directory.
    dir: PathBuf,
    /// List every tensor.
    #[arg(long)]
    tensors: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    dir: PathBuf,
    format: &'static str,
    model_type: &'static str,
    parameters: u64,
    bytes: u64,
    files: usize,
    tensors: usize,
    dtypes: BTreeMap<String, u64>,
    parts: Vec<Part>,
    config: Shape,
    tokenizer_size: Option<usize>,
    padding_rows: Option<usize>,
    problems: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensor_list: Option<Vec<TensorRow>>,
}

#[derive(Debug, Serialize)]
struct Shape {
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    vocab: usize,
    context: usize,
    rms_norm_eps: f64,
    rope_theta: f64,
    tied: bool,
    input_scale: f64,
    logit_scale: f64,
}

#[derive(Debug, Serialize)]
struct Part {
    name: &'static str,
    parameters: u64,
}

#[derive(Debug, Serialize)]
struct TensorRow {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    file: String,
    bytes: u64,
}

impl Inspect {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        let checkpoint = open(&self.dir)?;
        let report = self.report(&checkpoint);
        output.result(&report, human)?;
        Ok(report.problems.is_empty())
    }

    fn report(&self, checkpoint: &Checkpoint) -> Report {
        let c = checkpoint.config();
        let mut dtypes = BTreeMap::new();
        for entry in checkpoint.entries() {
            *dtypes.entry(entry.dtype.as_str().to_owned()).or_insert(0) += entry.nbytes;
        }
        let mut problems: Vec<String> = checkpoint.problems().iter().map(ToString::to_string).collect();
        let tokenizer_size = if has_tokenizer(&self.dir) {
            match tokenizer(&self.dir) {
                Ok(tokenizer) => Some(tokenizer.len()),
                Err(error) => {
                    problems.push(format!("{error:#}"));
                    None
                }
            }
        } else {
            None
        };
        if let Some(size) = tokenizer_size.filter(|&size| size > c.vocab_size) {
            problems
                .push(format!("the tokenizer has {size} tokens, the embedding only {} rows", c.vocab_size));
        }
        let (d, f, l, v) = (
            c.hidden_size as u64,
            c.intermediate_size as u64,
            c.num_hidden_layers as u64,
            c.vocab_size as u64,
        );
        let attention = 2 * d * (c.query_width() + c.key_value_width()) as u64;
        let part = |name, parameters| Part { name, parameters };
        let parts = vec![
            part("embedding", v * d),
            part("attention", l * attention),
            part("feed-forward", l * 3 * d * f),
            part("norms", (2 * l + 1) * d),
            part("head", if c.tie_word_embeddings { 0 } else { v * d }),
        ];
        let file_name = |file: usize| {
            checkpoint.files()[file]
                .path
                .file_name()
                .map_or_else(String::new, |n| n.to_string_lossy().into_owned())
        };
        let tensor_list = self.tensors.then(|| {
            let row = |e: &flm_candle::checkpoint::TensorEntry| TensorRow {
                name: e.name.clone(),
                dtype: e.dtype.as_str().into(),
                shape: e.shape.clone(),
                file: file_name(e.file),
                bytes: e.nbytes,
            };
            checkpoint.entries().map(row).collect()
        });
        Report {
            dir: self.dir.clone(),
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
            config: Shape {
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
            },
            tokenizer_size,
            padding_rows: tokenizer_size.map(|size| c.vocab_size.saturating_sub(size)),
            problems,
            tensor_list,
        }
    }
}

fn human(r: &Report) -> String {
    let c = &r.config;
    let mut rows = vec![
        (
            "checkpoint",
            format!("{} ({}, {} files, {} tensors)", r.dir.display(), r.format, r.files, r.tensors),
        ),
        ("model", format!("{}, {} parameters, {}", r.model_type, count(r.parameters), size(r.bytes))),
        ("layers", c.layers.to_string()),
        ("hidden", c.hidden.to_string()),
        ("heads", format!("{} query, {} key/value, of {}", c.heads, c.kv_heads, c.head_dim)),
        ("ffn", c.ffn.to_string()),
    ];
    let vocabulary = match (r.tokenizer_size, r.padding_rows) {
        (Some(tokens), Some(padding)) => format!("{} rows: {tokens} tokens, {padding} padding", c.vocab),
        _ => format!("{} rows (no tokenizer here)", c.vocab),
    };
    rows.extend([
        ("vocabulary", vocabulary),
        ("context", c.context.to_string()),
        ("norm eps, rope", format!("{:e}, theta {}", c.rms_norm_eps, c.rope_theta)),
        ("scales", format!("embedding × {}, logits × {}", c.input_scale, c.logit_scale)),
        ("head", if c.tied { "tied to the embedding".into() } else { "its own".into() }),
        (
            "dtypes",
            r.dtypes
                .iter()
                .map(|(dtype, bytes)| format!("{dtype} {}", size(*bytes)))
                .collect::<Vec<_>>()
                .join(", "),
        ),
    ]);
    for part in &r.parts {
        let share = 100.0 * part.parameters as f64 / r.parameters as f64;
        rows.push((part.name, format!("{} parameters, {share:.1} %", count(part.parameters))));
    }
    let mut text = table(&[], rows.into_iter().map(|(k, v)| vec![k.into(), v]), false);
    if let Some(tensors) = &r.tensor_list {
        let cells =
            |t: &TensorRow| vec![t.name.clone(), t.dtype.clone(), format!("{:?}", t.shape), t.file.clone()];
        text +=
            &format!("\n{}", table(&["tensor", "dtype", "shape", "file"], tensors.iter().map(cells), false));
    }
    match r.problems.as_slice() {
        [] => text += "no problems found",
        problems => text += &format!("\n{} problems:\n  {}", problems.len(), problems.join("\n  ")),
    }
    text
}
