//! `flm init`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use flm_checkpoint::require_outside;
use flm_growth::init;
use serde::Serialize;

use crate::arguments::{config, dtypes, parse_size, tell_of_code};
use crate::output::{Output, count, size};
use flm_checkpoint::Dtype;

/// Make a checkpoint with random weights, to pre-train with `flm sft`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flm init nano-52b ./nano-init --tokenizer ./tokenizer --seed 1")]
pub(crate) struct Init {
    /// The model's shape: a preset (see `flm models`), a config.json or a checkpoint directory.
    #[arg(value_name = "NAME|FILE")]
    config: String,
    /// Directory to make.
    dst: PathBuf,
    /// Directory whose tokenizer, chat template and licence files go into the checkpoint.
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Random seed of the weights.
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Dtype of the weights.
    #[arg(long, default_value = "f32", value_parser = dtypes(), value_name = "DTYPE")]
    dtype: Dtype,
    /// Maximum file size.
    #[arg(long, default_value = "5GB", value_parser = parse_size, value_name = "SIZE")]
    max_shard_size: u64,
}

#[derive(Debug, Serialize)]
struct Summary {
    dst: PathBuf,
    parameters: u64,
    bytes: u64,
}

impl Init {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        let config = config(&self.config)?;
        let shape = Path::new(&self.config);
        if shape.is_dir() {
            require_outside(shape, &self.dst)?;
        }
        tell_of_code(&config, shape, output);
        let parameters = config.parameter_count();
        let bytes = parameters * self.dtype.size_in_bytes() as u64;
        let bar = output.bytes("drawing", bytes);
        let side_files = self.tokenizer.as_deref();
        init(&config, &self.dst, side_files, self.seed, self.dtype, self.max_shard_size, &|n| bar.inc(n))
            .with_context(|| format!("cannot make {}", self.dst.display()))?;
        bar.finish_and_clear();
        let summary = Summary { dst: self.dst.clone(), parameters, bytes };
        output.result(&summary, |s| {
            format!("{} random parameters, {}, in {}", count(s.parameters), size(s.bytes), s.dst.display())
        })?;
        Ok(true)
    }
}
