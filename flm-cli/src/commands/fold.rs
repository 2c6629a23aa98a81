//! `flm fold`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use flm_growth::ExecuteOptions;
use flm_growth::FoldPlan;
use flm_growth::SourceModel;
use serde::Serialize;

use crate::arguments::part::{PartArgs, command_line, state};
use crate::arguments::{WriteArgs, checkpoint_dir, dtypes, open, tell_of_code};
use crate::output::{Output, size};
use flm_checkpoint::{Dtype, JobPart};

/// Turn a checkpoint that is still growing (masks in its config.json) into a plain one.
///
/// The function is the same at any mask value, exactly; memory does not depend on the model.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flm fold ./Tele-FLM-102B ./Tele-FLM-102B-plain")]
pub(crate) struct Fold {
    /// Checkpoint directory with masks.
    #[arg(value_parser = checkpoint_dir())]
    src: PathBuf,
    /// Directory to make.
    dst: PathBuf,
    /// Store the weights in this dtype: scaled bf16 weights are rounded, in f32 they are not
    /// [default: each tensor's own].
    #[arg(long, value_parser = dtypes(), value_name = "DTYPE")]
    dtype: Option<Dtype>,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    part: PartArgs,
    /// Do not compare the source with its own digests, and do not hash its files for provenance.json.
    #[arg(long)]
    no_source_digests: bool,
}

#[derive(Debug, Serialize)]
struct Summary {
    dst: PathBuf,
    rms_norm_eps: f64,
    masks: flm_checkpoint::GrowthMasks,
    output_bytes: u64,
    hole_bytes: u64,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_for: Option<Vec<String>>,
}

impl Fold {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        let source = open(&self.src)?;
        let plan = FoldPlan::new(&SourceModel::from_checkpoint(&source)?, self.dtype)?;
        self.part.require_alone(self.write.optimizer_state, "--optimizer-state")?;
        let part = self.part.of(&self.dst)?;
        tell_of_code(source.config(), &self.src, output);
        let options = ExecuteOptions {
            part,
            max_shard_bytes: self.write.max_shard_size,
            command: command_line(std::env::args()),
            restart: self.write.restart,
            optimizer_state: self.write.optimizer_state,
            file_digests: self.write.file_digests,
            source_digests: !self.no_source_digests,
            ..ExecuteOptions::default()
        };
        let total: u64 = plan.tensors.iter().map(|t| t.nbytes()).sum();
        let bar = output.bytes("folding", total / part.map_or(1, JobPart::count) as u64);
        let done = plan
            .execute(&source, &self.dst, &options, &|bytes| bar.inc(bytes))
            .with_context(|| format!("cannot fold into {}", self.dst.display()))?;
        bar.finish_and_clear();
        output.warn_of_overflow(done.overflowed);
        let summary = Summary {
            dst: self.dst.clone(),
            rms_norm_eps: plan.rms_norm_eps,
            masks: plan.masks,
            output_bytes: done.output_bytes,
            hole_bytes: done.hole_bytes,
            seconds: done.seconds,
            waiting_for: done.waiting_for,
        };
        output.result(&summary, |s| {
            if let Some(waiting_for) = &s.waiting_for {
                return state(part, waiting_for, &s.dst);
            }
            format!(
                "a plain checkpoint of {} in {}, {:.1} s",
                size(s.output_bytes),
                s.dst.display(),
                s.seconds
            )
        })?;
        Ok(true)
    }
}
