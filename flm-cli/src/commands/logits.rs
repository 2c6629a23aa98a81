//! `flm logits`.

use std::{collections::HashMap, path::PathBuf, time::Instant};

use anyhow::ensure;
use candle_core::DType;
use clap::Args;
use serde::Serialize;

use crate::arguments::{RunArgs, checkpoint_dir, open, parse_ids};
use crate::output::Output;
use crate::output_file::{self, Kind};

/// Write the logits of given tokens, to compare with other runtimes.
///
/// The output is a safetensors file with `logits` [t, vocab] in f32 and, with --hidden-states, `hidden`
/// [layers + 1, t, hidden]: the residual stream after the embedding and after each block.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flm logits ./Tele-FLM --ids 1,5,17 --dtype f32 --out logits.safetensors")]
pub(crate) struct Logits {
    /// Checkpoint directory.
    #[arg(value_parser = checkpoint_dir())]
    dir: PathBuf,
    /// Token ids, separated by commas.
    #[arg(long, value_parser = parse_ids, value_name = "IDS")]
    ids: ::std::vec::Vec<u32>,
    /// Safetensors file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Also write the hidden states.
    #[arg(long, alias = "hidden")]
    hidden_states: bool,
    #[command(flatten)]
    run: RunArgs,
    /// Overwrite a file that is not an earlier result of this command.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Serialize)]
struct Summary {
    out: PathBuf,
    tokens: usize,
    vocab: usize,
    argmax: Vec<u32>,
    seconds: f64,
    peak_memory_bytes: Option<u64>,
}

impl Logits {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        output_file::check(&self.out, Kind::Logits, self.force)?;
        let checkpoint = open(&self.dir)?;
        let longest = checkpoint.config().context_length();
        ensure!(self.ids.len() <= longest, "{} tokens: the model's context is {longest}", self.ids.len());
        let model = self.run.load(&checkpoint)?;
        let start = Instant::now();
        let (logits, hidden) = if self.hidden_states {
            let trace = model.trace(&self.ids)?;
            (trace.logits, Some(trace.hidden))
        } else {
            (model.logits(&self.ids)?, None)
        };
        let argmax = logits.argmax(1)?.to_vec1::<u32>()?;
        let seconds = start.elapsed().as_secs_f64();
        let mut tensors = HashMap::from([("logits", logits.to_dtype(DType::F32)?)]);
        if let Some(hidden) = hidden {
            tensors.insert("hidden", hidden.to_dtype(DType::F32)?);
        }
        let out = self.out.display();
        let bytes = safetensors::serialize(tensors.iter().map(|(name, tensor)| (*name, tensor)), None)?;
        output_file::write(&self.out, Kind::Logits, &bytes, self.force)?;
        let summary = Summary {
            out: self.out.clone(),
            tokens: self.ids.len(),
            vocab: model.config().vocab_size,
            argmax,
            seconds,
            peak_memory_bytes: flm_checkpoint::peak_memory(),
        };
        output.result(&summary, |s| {
            format!(
                "{}: logits [{}, {}], argmax of the last position {}",
                out,
                s.tokens,
                s.vocab,
                s.argmax[s.tokens - 1]
            )
        })?;
        Ok(true)
    }
}
