//! What a training run is told on the command line: a recipe, settings that replace its own, or a few alone.

use std::path::PathBuf;

use clap::Args;

use crate::recipe::train::{Recipe, is_assignment};

/// Settings that most runs give. Each is a key of the recipe; with the first three none is needed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Settings, instead of a recipe or beside it")]
pub(super) struct SettingArgs {
    /// Checkpoint to start from: model.
    #[arg(long, value_name = "DIR", conflicts_with = "from_config")]
    model: Option<String>,
    /// Training data, one file or more: data.files.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "from_config")]
    data: Vec<String>,
    /// Directory for checkpoints, metrics and the trained model: output.
    #[arg(long, value_name = "DIR", conflicts_with = "from_config")]
    output: Option<String>,
    /// Peak learning rate: optimizer.learning_rate.
    #[arg(long, value_name = "RATE", conflicts_with = "from_config")]
    lr: Option<f64>,
    /// Epochs: train.epochs.
    #[arg(long, value_name = "N", conflicts_with = "from_config")]
    epochs: Option<u64>,
    /// Batch size in rows: train.batch_size.
    #[arg(long, value_name = "N", conflicts_with = "from_config")]
    batch_size: Option<usize>,
    /// Sequence length in tokens: data.context_length [default: the model's context; 2048 with --from-config].
    #[arg(long, value_name = "N")]
    pub(super) context: Option<usize>,
    /// Host memory budget, for example 16GB: memory.budget.
    #[arg(long, value_parser = crate::arguments::parse_size, value_name = "SIZE")]
    memory_budget: Option<u64>,
    /// The device's peak rate in floating-point operations a second, for example 989T: train.peak_flops.
    #[arg(long, value_name = "RATE")]
    pub(super) peak_flops: Option<String>,
}

impl SettingArgs {
    /// The recipe that `file`, the words after it (`key=value`) and these settings make together.
    pub(super) fn recipe(&self, file: Option<&PathBuf>, words: &[String]) -> anyhow::Result<Recipe> {
        // where no recipe is given, the first word is a setting as well; and --data takes all that follow it
        let first = file.and_then(|path| path.to_str()).filter(|word| is_assignment(word));
        let (more, data): (Vec<&String>, Vec<&String>) =
            self.data.iter().partition(|word| is_assignment(word));
        let words: Vec<&str> =
            first.into_iter().chain(words.iter().chain(more).map(String::as_str)).collect();
        Recipe::read(file.filter(|_| first.is_none()).map(PathBuf::as_path))?
            .overridden(&words)?
            .with("model", self.model.as_ref())?
            .with_data(&data)?
            .with("output", self.output.as_ref())?
            .with("optimizer.learning_rate", self.lr)?
            .with("train.epochs", self.epochs)?
            .with("train.batch_size", self.batch_size)?
            .with("data.context_length", self.context)?
            .with("memory.budget", self.memory_budget)?
            .with("train.peak_flops", self.peak_flops.as_ref())
    }
}
