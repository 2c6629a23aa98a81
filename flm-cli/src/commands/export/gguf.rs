//! `flm export gguf`.

use std::{collections::BTreeMap, path::PathBuf, time::Instant};

use anyhow::Context;
use candle_core::quantized::{GgmlDType, gguf_file::Value};
use clap::Args;
use flm_candle::TokenizerError;
use flm_growth::ExportError;
use flm_growth::vocabulary_of;
use flm_growth::{DamagedTensor, Folding, GgufOptions, GgufPlan, Rounding};
use serde::Serialize;

use crate::arguments::{checkpoint_dir, open, parse_size};
use crate::output::{Output, count, size};

/// Write one GGUF file that llama.cpp and what is built on it run, with tokenizer and chat template.
///
/// Tele-FLM's multipliers are folded into embedding and final norm. Norms stay in f32; below 8 bits,
/// embedding and head get q8_0. The file appears when it is complete; memory does not depend on the model.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  flm export gguf ./Tele-FLM ./tele-flm.gguf --dtype q8_0\n  \
                        flm export gguf ./Tele-FLM ./tele-flm.gguf --dry-run")]
pub(crate) struct Gguf {
    /// Checkpoint directory to read.
    #[arg(value_parser = checkpoint_dir())]
    src: PathBuf,
    /// File to make.
    dst: PathBuf,
    /// Dtype of the matrices: f32, f16, bf16, q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1 or q4_0
    /// [default: each tensor's own].
    #[arg(long, value_name = "DTYPE", value_parser = GgufPlan::parse_dtype)]
    dtype: Option<GgmlDType>,
    /// Name of the model in the file [default: that of the checkpoint's directory].
    #[arg(long)]
    name: Option<String>,
    /// llama.cpp's name for the rules that cut text into words [default: found from tokenizer.json].
    #[arg(long, value_name = "NAME")]
    pre: Option<String>,
    /// Write several files of at most this size, which llama.cpp opens by the first: NAME-00001-of-00003.gguf.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_file_size: Option<u64>,
    /// Omit the tokenizer; the file then works on token ids only.
    #[arg(long)]
    no_tokenizer: bool,
    /// Do not compare the source with its own digests first, which reads it once more.
    #[arg(long)]
    no_source_digests: bool,
    /// Show what would be written without writing it.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Summary {
    dst: PathBuf,
    /// The files, where they are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<PathBuf>,
    tensors: usize,
    bytes: u64,
    /// Bytes of tensors by dtype.
    dtypes: BTreeMap<&'static str, u64>,
    /// Where the multipliers went.
    foldings: Vec<Folding>,
    tokenizer: Option<TokenizerSummary>,
    notes: Vec<String>,
    /// Finite values that became infinite in a narrower dtype.
    overflowed: u64,
    /// Tensors with values that are no numbers, or that lost more than rounding explains.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    damaged: Vec<DamagedTensor>,
    seconds: f64,
    peak_memory_bytes: Option<u64>,
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct TokenizerSummary {
    model: String,
    pre: String,
    tokens: usize,
    chat_template: bool,
}

impl Gguf {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        let src = open(&self.src)?;
        if !self.dry_run && !self.no_source_digests {
            src.verify_digests(None)?;
        }
        let vocabulary = if self.no_tokenizer {
            None
        } else {
            Some(vocabulary_of(src.dir()).map_err(|error| match error {
                TokenizerError::NotFound { .. } => anyhow::Error::new(error).context(
                    "GGUF holds the tokenizer too; put it beside the weights, or add --no-tokenizer",
                ),
                other => other.into(),
            })?)
        };
        let name = self.name.clone().or_else(|| {
            let path = self.src.canonicalize().ok()?;
            Some(path.file_name()?.to_string_lossy().into_owned())
        });
        let options =
            GgufOptions { dtype: self.dtype, name, pre: self.pre.clone(), max_file_size: self.max_file_size };
        let plan = GgufPlan::new(&src, vocabulary.as_ref(), &options)
            .with_context(|| format!("cannot export {}", self.src.display()))?;
        let text = |key: &str| match plan.value(key) {
            Some(Value::String(text)) => text.clone(),
            _ => String::new(),
        };
        let paths = plan.paths(&self.dst);
        let mut summary = Summary {
            dst: paths[0].clone(),
            files: if paths.len() > 1 { paths.clone() } else { Vec::new() },
            tensors: plan.tensors.len(),
            bytes: plan.bytes,
            dtypes: plan.dtypes(),
            foldings: plan.foldings.clone(),
            tokenizer: vocabulary.as_ref().map(|v| TokenizerSummary {
                model: text("tokenizer.ggml.model"),
                pre: text("tokenizer.ggml.pre"),
                tokens: v.tokens.len(),
                chat_template: v.chat_template.is_some(),
            }),
            notes: plan.notes.clone(),
            overflowed: 0,
            damaged: Vec::new(),
            seconds: 0.0,
            peak_memory_bytes: None,
            dry_run: self.dry_run,
        };
        if self.dry_run {
            if let Some(path) = paths.iter().find(|path| path.symlink_metadata().is_ok()) {
                return Err(ExportError::DestinationExists { path: path.clone() }.into());
            }
        } else {
            let start = Instant::now();
            let bar = output.bytes("exporting", plan.tensors.iter().map(|t| source_bytes(&src, t)).sum());
            let report = plan
                .write(&src, &self.dst, &|bytes| bar.inc(bytes))
                .with_context(|| format!("cannot export {}", self.src.display()))?;
            bar.finish_and_clear();
            summary.overflowed = report.overflowed;
            summary.damaged = report.damaged;
            summary.seconds = start.elapsed().as_secs_f64();
            summary.peak_memory_bytes = flm_checkpoint::peak_memory();
        }
        output.warn_of_overflow(summary.overflowed);
        for d in &summary.damaged {
            let mut what = Vec::new();
            if d.not_finite > 0 {
                what.push(format!("{} values of the source are not finite", count(d.not_finite)));
            }
            if d.overflowed_blocks > 0 {
                what.push(format!("{} blocks became infinite", count(d.overflowed_blocks)));
            }
            output.warn(&format!("{}: {}", d.tensor, what.join(", ")));
        }
        output.result(&summary, human)?;
        Ok(true)
    }
}

impl Summary {
    fn place(&self) -> String {
        match self.files.len() {
            0 => self.dst.display().to_string(),
            n => format!("{} and {} more files", self.dst.display(), n - 1),
        }
    }
}

fn source_bytes(src: &flm_checkpoint::Checkpoint, tensor: &flm_growth::GgufTensor) -> u64 {
    tensor.sources().map(|source| src.entry(source).map_or(0, |entry| entry.nbytes)).sum()
}

fn human(s: &Summary) -> String {
    let dtypes: Vec<String> =
        s.dtypes.iter().map(|(name, bytes)| format!("{name} {}", size(*bytes))).collect();
    let what = format!("{} tensors, {} ({})", s.tensors, size(s.bytes), dtypes.join(", "));
    let mut lines = vec![if s.dry_run {
        format!("would write {what} to {}", s.place())
    } else {
        let rate = size((s.bytes as f64 / s.seconds) as u64);
        format!("{}: {what}, {:.1} s ({rate}/s)", s.place(), s.seconds)
    }];
    for folding in &s.foldings {
        let rounding = match folding.rounding {
            Rounding::Exact => "exactly",
            Rounding::F32 => "rounded to f32",
            Rounding::Dtype => "rounded with the dtype",
        };
        lines.push(format!("{} takes × {}, {rounding}", folding.tensor, folding.factor));
    }
    if let Some(t) = &s.tokenizer {
        let template = if t.chat_template { "with" } else { "without" };
        lines.push(format!(
            "tokenizer: {} ({}), {} tokens, {template} a chat template",
            t.model, t.pre, t.tokens
        ));
    }
    lines.extend(s.notes.iter().map(|note| format!("note: {note}")));
    lines.join("\n")
}
