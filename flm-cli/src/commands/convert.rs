//! `flm convert`, and `--verify`.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use flm_checkpoint::Checkpoint;
use flm_growth::{CompareReport, compare};
use flm_growth::{ConvertOptions, FoldedTensor, TargetLayout, convert, plan_conversion};
use serde::Serialize;

use crate::arguments::part::{PartArgs, state};
use crate::arguments::{checkpoint_dir, dtypes, open, parse_size, tell_of_code};
use crate::output::{Output, count, size};
use crate::recipe::grow::parse_pair;
use flm_checkpoint::{Dtype, JobPart};

/// Turn a checkpoint of any form into safetensors; bytes are moved, not decoded, unless --dtype or --layout
/// asks.
///
/// The output directory appears when it is complete, never before, with checksums.json, which ties every
/// tensor to where it came from. Interrupted anywhere, the same command goes on. With --verify an output is
/// compared with its source, bit for bit; the exit status is 1 where they differ.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    flm convert ./Tele-FLM ./Tele-FLM-safetensors --max-shard-size 10GB\n  \
    flm convert --verify ./Tele-FLM ./Tele-FLM-safetensors\n  \
    flm convert ./Tele-FLM ./Tele-FLM-llama --layout llama")]
pub(crate) struct Convert {
    /// Checkpoint directory to read.
    #[arg(value_parser = checkpoint_dir())]
    src: PathBuf,
    /// Directory to make; with --verify, to compare.
    dst: PathBuf,
    /// Change the dtype of the weights [default: leave each tensor's].
    #[arg(long, value_parser = dtypes(), value_name = "DTYPE")]
    dtype: Option<Dtype>,
    /// Write another architecture of the same function: llama folds the multipliers into the weights,
    /// tele-flm takes them out again.
    #[arg(long, value_name = "LAYOUT")]
    layout: Option<Layout>,
    /// With --layout tele-flm: output_mult/mup_scale_factor, which the head is divided by [default: 1/1].
    #[arg(long, value_parser = parse_pair, value_name = "OUT/SCALE", requires = "layout")]
    mup: Option<(f64, f64)>,
    /// With --layout tele-flm: input_mult, which the embedding is divided by [default: 1].
    #[arg(long, value_name = "X", requires = "layout")]
    input_mult: Option<f64>,
    /// Maximum file size, for example 5GB or 500MiB.
    #[arg(long, default_value = "5GB", value_parser = parse_size, value_name = "SIZE")]
    max_shard_size: u64,
    /// Discard the output of an interrupted run.
    #[arg(long)]
    restart: bool,
    /// Do not compare a safetensors source with its own checksums.json, which reads it once more.
    #[arg(long)]
    no_source_digests: bool,
    /// Accept tensors that are entirely zero; by default they are treated as an incomplete download.
    #[arg(long)]
    allow_zero: bool,
    #[command(flatten)]
    part: PartArgs,
    /// Compare DST with the conversion of SRC without writing anything.
    #[arg(long, conflicts_with_all = ["dtype", "layout", "dry_run", "restart", "max_shard_size", "part", "finish"])]
    verify: bool,
    /// Show what would be written without writing it.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Layout {
    Llama,
    TeleFlm,
}

#[derive(Debug, Serialize)]
struct Summary {
    dst: PathBuf,
    tensors: usize,
    files: usize,
    bytes_read: u64,
    bytes_written: u64,
    /// Zeros that are holes of the files.
    hole_bytes: u64,
    /// What an interrupted run had finished.
    resumed_bytes: u64,
    /// Finite values that became infinite in a narrower dtype.
    overflowed: u64,
    /// Tensors that took a multiplier over, or gave one up.
    folded: Vec<FoldedTensor>,
    #[serde(skip)]
    part: Option<JobPart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_for: Option<Vec<String>>,
    seconds: f64,
    peak_memory_bytes: Option<u64>,
    dry_run: bool,
}

impl Convert {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        let src = open(&self.src)?;
        if self.verify {
            return verify(&src, &self.dst, output);
        }
        let part = self.part.of(&self.dst)?;
        let options = ConvertOptions {
            part,
            dtype: self.dtype,
            max_shard_size: self.max_shard_size,
            layout: self.layout()?,
            restart: self.restart,
            source_digests: !self.no_source_digests,
            allow_zero: self.allow_zero,
        };
        let context = || format!("cannot convert {}", self.src.display());
        let planned = plan_conversion(&src, &options).with_context(context)?;
        // a Llama needs no code of its own
        if self.layout != Some(Layout::Llama) {
            tell_of_code(src.config(), &self.src, output);
        }
        let bar = output.bytes("converting", planned.bytes_written / part.map_or(1, JobPart::count) as u64);
        let start = Instant::now();
        let report = if self.dry_run {
            planned
        } else {
            convert(&src, &self.dst, &options, &|bytes| bar.inc(bytes)).with_context(context)?
        };
        bar.finish_and_clear();
        let summary = Summary {
            dst: self.dst.clone(),
            tensors: report.tensors,
            files: report.files,
            bytes_read: report.bytes_read,
            bytes_written: report.bytes_written,
            hole_bytes: report.hole_bytes,
            resumed_bytes: report.resumed_bytes,
            overflowed: report.overflowed,
            folded: report.folded,
            part,
            waiting_for: report.waiting_for,
            seconds: if self.dry_run { 0.0 } else { start.elapsed().as_secs_f64() },
            peak_memory_bytes: flm_checkpoint::peak_memory().filter(|_| !self.dry_run),
            dry_run: self.dry_run,
        };
        output.warn_of_overflow(summary.overflowed);
        output.result(&summary, human)?;
        Ok(true)
    }

    fn layout(&self) -> anyhow::Result<Option<TargetLayout>> {
        let multipliers = self.mup.is_some() || self.input_mult.is_some();
        ensure!(
            !multipliers || self.layout == Some(Layout::TeleFlm),
            "--mup and --input-mult are for --layout tele-flm; a Llama has no multipliers"
        );
        let (output_mult, mup_scale_factor) = self.mup.unwrap_or((1.0, 1.0));
        let input_mult = self.input_mult.unwrap_or(1.0);
        Ok(self.layout.map(|layout| match layout {
            Layout::Llama => TargetLayout::Llama,
            Layout::TeleFlm => TargetLayout::TeleFlm { input_mult, output_mult, mup_scale_factor },
        }))
    }
}

fn human(s: &Summary) -> String {
    let what = format!("{} tensors, {}", s.tensors, size(s.bytes_written));
    let mut text = if let Some(waiting_for) = &s.waiting_for {
        state(s.part, waiting_for, &s.dst)
    } else if s.dry_run {
        format!("would write {what}, in {} files, to {}", s.files, s.dst.display())
    } else {
        let rate = size((s.bytes_written as f64 / s.seconds) as u64);
        format!("{}: {what} in {} files, {:.1} s ({rate}/s)", s.dst.display(), s.files, s.seconds)
    };
    if s.resumed_bytes > 0 {
        text += &format!("\n{} were finished by an interrupted run", size(s.resumed_bytes));
    }
    for folded in &s.folded {
        let exact = match (s.dry_run, folded.rounded) {
            (true, _) => String::new(),
            (_, 0) => ": exact".into(),
            (_, n) => format!(": {} products rounded", count(n)),
        };
        text += &format!("\n{} × {} in {}{exact}", folded.tensor, folded.factor, folded.dtype);
    }
    text
}

/// Compares a converted checkpoint with its source.
fn verify(src: &Checkpoint, path: &Path, output: &Output) -> anyhow::Result<bool> {
    let dst = open(path)?;
    let bar = output.bytes("comparing", dst.entries().map(|e| e.nbytes).sum());
    let report = compare(src, &dst, &|bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    output.result(&report, |r: &CompareReport| {
        let what = format!("{} tensors, {}", count(r.tensors as u64), size(r.bytes));
        let lines: Vec<String> =
            r.differences.iter().map(|d| format!("\n  {} {}", d.name, d.problem)).collect();
        match lines.as_slice() {
            [] => format!("{what}: every bit as a conversion gives it"),
            _ => format!("{what}: NOT what a conversion gives{}", lines.concat()),
        }
    })?;
    Ok(report.passed)
}
