//! `flm distance`.

use std::{path::PathBuf, sync::Arc};

use candle_core::{DType, Device};
use clap::{Args, ValueEnum};
use flm_candle::Residency;
use flm_checkpoint::Checkpoint;
use flm_growth::{DistanceOptions, Distances, Metric};

use crate::arguments::{RunArgs, TextArgs, checkpoint_dir, open};
use crate::output::{Output, count, table};
use crate::output_file::{self, Kind, PICTURE};
use crate::report::layers;

/// Measure how much each layer changes the residual stream; `grow --place distance` copies those that
/// change it least.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    flm distance ./Tele-FLM --text sample.txt --stream --picture distance.svg\n  \
    flm distance ./Tele-FLM --text sample.txt --json > distance.json")]
pub(crate) struct Distance {
    /// Checkpoint directory.
    #[arg(value_parser = checkpoint_dir())]
    dir: PathBuf,
    /// Draw the distances over depth into this SVG file.
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    /// Distance that the table is sorted by.
    #[arg(long, value_enum, default_value_t = MetricName::Angular)]
    metric: MetricName,
    #[command(flatten, next_help_heading = "Input tokens")]
    texts: TextArgs,
    #[command(flatten)]
    run: RunArgs,
    /// Do not compare the weights with the checkpoint's own digests first, which reads them once more.
    #[arg(long)]
    no_source_digests: bool,
    /// Overwrite a file that is not an earlier result of this command.
    #[arg(long)]
    force: bool,
}

/// Names of metrics on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MetricName {
    /// The angle between a layer's input and output, in half turns.
    Angular,
    /// One minus its cosine.
    Cosine,
    /// The length of the change, relative to the input's.
    Relative,
}

impl From<MetricName> for Metric {
    fn from(name: MetricName) -> Self {
        match name {
            MetricName::Angular => Self::Angular,
            MetricName::Cosine => Self::Cosine,
            MetricName::Relative => Self::Relative,
        }
    }
}

impl Distance {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        if let Some(path) = &self.picture {
            output_file::check(path, Kind::Picture, self.force)?;
        }
        let checkpoint = open(&self.dir)?;
        if !self.no_source_digests {
            checkpoint.verify_digests(None)?;
        }
        let distances = measure(&checkpoint, &self.texts, Some(&self.run), output)?;
        if let Some(path) = &self.picture {
            let picture = format!("{PICTURE}{}", layers::distances(&distances)?);
            output_file::write(path, Kind::Picture, picture.as_bytes(), self.force)?;
        }
        let metric = self.metric.into();
        output.result(&distances, |d| human(d, metric))?;
        Ok(true)
    }
}

/// The distances of a checkpoint's layers, in f32 and streamed from disk unless `run` says otherwise.
pub(crate) fn measure(
    checkpoint: &Arc<Checkpoint>,
    texts: &TextArgs,
    run: Option<&RunArgs>,
    output: &Output,
) -> anyhow::Result<Distances> {
    let vocabulary = checkpoint.config().vocab_size;
    let device = run.map_or(Ok(Device::Cpu), RunArgs::device)?;
    let options = DistanceOptions {
        tokens: texts.tokens(checkpoint.dir(), vocabulary, checkpoint.config().context_length())?.tokens,
        dtype: run.map_or(DType::F32, |run| run.dtype(&device)),
        device,
        residency: run.map_or(Residency::Streamed, RunArgs::residency),
    };
    let bar = output.steps("distances", 0);
    let distances = flm_growth::measure(checkpoint, &options, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    Ok(distances)
}

fn human(d: &Distances, metric: Metric) -> String {
    let mut order: Vec<usize> = (0..d.layers.len()).collect();
    order.sort_by(|&a, &b| d.layers[a].by(metric).total_cmp(&d.layers[b].by(metric)));
    let mut rank = vec![0; order.len()];
    for (place, &layer) in order.iter().enumerate() {
        rank[layer] = place + 1;
    }
    let rows = d.layers.iter().map(|l| {
        let mut row = vec![l.layer.to_string()];
        row.extend([l.angular, l.cosine, l.relative].map(|v| format!("{v:.5}")));
        row.push(rank[l.layer].to_string());
        row
    });
    let mut text = table(&["layer", "angular", "1 − cosine", "relative", "order"], rows, true);
    text += &format!(
        "averages over {} tokens, {}; the first in order are copied first",
        count(d.tokens),
        d.dtype
    );
    text
}
