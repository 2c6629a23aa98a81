use std::{path::PathBuf, time::Instant};

use anyhow::Context;
use candle_core::DType;
use clap::Args;
use flm_candle::checkpoint::{ConvertOptions, convert};
use serde::Serialize;

use crate::{
    arguments::{Dtype, open, parse_size},
    output::{Output, peak_memory, size},
};

/// Turn a checkpoint of any form into safetensors; bytes are moved, not decoded, unless --dtype asks.
///
/// The output directory appears when it is complete, never before.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flm convert ./Tele-FLM ./Tele-FLM-safetensors --max-shard-size 10GB")]
pub(crate) struct Convert {
    /// Checkpoint directory to read.
    src: PathBuf,
    /// Directory to make.
    dst: PathBuf,
    /// Change the dtype of the weights [default: leave each tensor's].
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<Dtype>,
    /// Largest file, for example 5GB or 500MiB.
    #[arg(long, default_value = "5GB", value_parser = parse_size, value_name = "SIZE")]
    max_shard_size: u64,
    /// Say what would be written, and stop.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Summary {
    dst: PathBuf,
    tensors: usize,
    files: usize,
    bytes_read: u64,
    bytes_written: u64,
    /// Finite values that became infinite in a narrower dtype.
    overflowed: u64,
    seconds: f64,
    peak_memory_bytes: Option<u64>,
    dry_run: bool,
}

impl Convert {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        let src = open(&self.src)?;
        let bytes_read: u64 = src.entries().map(|e| e.nbytes).sum();
        let summary = if self.dry_run {
            if let Some(problem) = src.shape_problems().into_iter().next() {
                return Err(problem.into());
            }
            let dtype = self.dtype.map(DType::from);
            let bytes_written = src
                .entries()
                .map(|e| {
                    e.nbytes / e.dtype.size_in_bytes() as u64
                        * dtype.unwrap_or(e.dtype).size_in_bytes() as u64
                })
                .sum::<u64>();
            Summary {
                dst: self.dst.clone(),
                tensors: src.entries().count(),
                files: bytes_written.div_ceil(self.max_shard_size) as usize,
                bytes_read,
                bytes_written,
                overflowed: 0,
                seconds: 0.0,
                peak_memory_bytes: None,
                dry_run: true,
            }
        } else {
            let bar = output.bytes("converting", bytes_read);
            let start = Instant::now();
            let options =
                ConvertOptions { dtype: self.dtype.map(DType::from), max_shard_size: self.max_shard_size };
            let report = convert(&src, &self.dst, &options, &|bytes| bar.inc(bytes))
                .with_context(|| format!("cannot convert {}", self.src.display()))?;
            bar.finish_and_clear();
            Summary {
                dst: self.dst.clone(),
                tensors: report.tensors,
                files: report.files,
                bytes_read: report.bytes_read,
                bytes_written: report.bytes_written,
                overflowed: report.overflowed,
                seconds: start.elapsed().as_secs_f64(),
                peak_memory_bytes: peak_memory(),
                dry_run: false,
            }
        };
        if summary.overflowed > 0 {
            output.warn(&format!(
                "{} finite values became infinite: the dtype is too narrow",
                summary.overflowed
            ));
        }
        output.result(&summary, |s| {
            let what = format!("{} tensors, {}", s.tensors, size(s.bytes_written));
            if s.dry_run {
                return format!("would write {what}, in about {} files, to {}", s.files, s.dst.display());
            }
            let rate = size((s.bytes_written as f64 / s.seconds) as u64);
            format!("{}: {what} in {} files, {:.1} s ({rate}/s)", s.dst.display(), s.files, s.seconds)
        })?;
        Ok(true)
    }
}
