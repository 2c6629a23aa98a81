//! `flm grow`: options or a recipe to stages, a plan for each, and its execution.

pub(crate) mod report;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use flm_checkpoint::Checkpoint;
use flm_checkpoint::TeleFlmConfig;
use flm_checkpoint::{Dtype, JobPart};
use flm_growth::Placement;
use flm_growth::Provenance;
use flm_growth::SourceModel;
use flm_growth::Std;
use flm_growth::{Distances, Metric};
use flm_growth::{ExecuteOptions, execute};
use flm_growth::{GrowthOptions, GrowthPlan, Multipliers};
use flm_growth::{NewRows, Operator};
use flm_growth::{Shape, ShapeOverrides};

use crate::arguments::part::{PartArgs, command_line};
use crate::arguments::{
    RECIPE_BYTES, TextArgs, WriteArgs, checkpoint_dir, config, has_tokenizer, open, read_text, tell_of_code,
    tokenizer,
};
use crate::commands::distance::{MetricName, measure};
use crate::commands::grow::report::{Report, Reports};
use crate::output::Output;
use crate::recipe::grow::parse_pair;
use crate::recipe::grow::{DEFAULT_OPERATOR, Place, Recipe, Stage, parse_std};

/// Grow a checkpoint to a larger shape that computes the same function.
///
/// The larger shape is a preset or a config.json (--to), sizes (--hidden, --heads, --ffn, --layers: what is
/// not given stays), or a recipe. `flm verify SRC DST` shows afterwards that both compute the same.
/// Memory does not depend on the model; the output directory appears when it is complete. A run that
/// was cut off is taken up by the same command.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    flm grow ./Tele-FLM ./Tele-FLM-102B --to tele-flm-102b\n  \
    flm grow ./SmolLM2 ./SmolLM2-wide --operator zero \\\n    \
    \x20 --hidden 768 --heads 12 --ffn 2048 --layers 36\n  \
    flm grow ./Tele-FLM ./Tele-FLM-1T --to tele-flm-102b \\\n    \
    \x20 --to tele-flm-1t --mup 2.0/80\n  \
    flm grow ./Tele-FLM ./Tele-FLM-102B --recipe recipes/52b-to-102b.toml seed=7\n  \
    flm grow --from-config tele-flm-102b --to tele-flm-1t --dry-run")]
pub(crate) struct Grow {
    /// Checkpoint directory to read.
    #[arg(required_unless_present_any = ["from_config", "recipe"], value_parser = checkpoint_dir())]
    src: Option<PathBuf>,
    /// Directory to make.
    #[arg(required_unless_present = "dry_run")]
    dst: Option<PathBuf>,
    /// What to change in the recipe: seed=7, operator=zero (all stages), stage.2.layers=40.
    #[arg(value_name = "KEY=VALUE", requires = "recipe")]
    overrides: Vec<String>,
    /// Take stages and settings from a recipe; a copy goes into the output.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["to", "hidden", "heads", "kv_heads", "ffn", "layers",
        "vocab", "operator", "place", "metric", "keep_ends", "seed", "std", "noise", "mup", "input_mult", "untie", "mask_steps", "new_rows"])]
    recipe: Option<PathBuf>,
    /// Plan from a preset's name or a config.json, without weights; needs --dry-run.
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "src", requires = "dry_run")]
    from_config: Option<String>,
    /// Take the target's sizes from a preset (see `flm models`) or a config.json; given again, grow
    /// from each to the next, with the other flags for the last.
    #[arg(long, value_name = "NAME|FILE")]
    to: Vec<String>,
    /// Width of the residual stream.
    #[arg(long, value_name = "N")]
    hidden: Option<usize>,
    /// Number of query heads.
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Number of key/value heads [default: the source's ratio to --heads].
    #[arg(long, value_name = "N")]
    kv_heads: Option<usize>,
    /// Width of the feed-forward layer.
    #[arg(long, value_name = "N")]
    ffn: Option<usize>,
    /// Number of decoder layers.
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Vocabulary size, in rows of the embedding. The logits of the old tokens are preserved and, with --new-rows
    /// mean, the most likely token; the new rows take a share of the probability, which `flm verify` reports.
    #[arg(long, value_name = "N")]
    vocab: Option<usize>,
    /// Initialisation of the rows of new tokens in the embedding and the head; padding rows beyond the source's
    /// tokenizer do not count as old ones [default: mean].
    #[arg(long, value_enum)]
    new_rows: Option<NewRowsName>,
    /// Initialisation of the new weights. In a growth of several stages msg applies to the last; the earlier ones
    /// use zero, which is msg folded at masks of 0.
    #[arg(long, value_enum, default_value_t = DEFAULT_OPERATOR.into())]
    operator: OperatorName,
    /// Where new layers go: interpolate, uniform, after:3,7,…, distance (after the layers that do
    /// least, measured on --text) or distance:FILE (of `flm distance --json`) [default: interpolate].
    #[arg(long, value_name = "RULE")]
    place: Option<Place>,
    /// Distance that --place distance ranks layers by.
    #[arg(long, value_enum, default_value_t = MetricName::Angular)]
    metric: MetricName,
    /// With --place distance: copy neither the first layer nor the last (--keep-ends false: any).
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
        default_missing_value = "true", value_name = "BOOL")]
    keep_ends: bool,
    /// Random seed of the new weights.
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Standard deviation of new weights: match (each tensor's own) or a number.
    #[arg(long, default_value = "match", value_parser = parse_std, value_name = "STD")]
    std: Std,
    /// With --operator clone: noise that tells the copies apart and cancels between them, in standard
    /// deviations of the copied weights, for example 0.1 [default: equal copies].
    #[arg(long, value_name = "X")]
    noise: Option<f64>,
    /// Multipliers of the target's logits (µP), as output_mult/mup_scale_factor; lm_head is rescaled where
    /// their ratio differs, so that the function stays [default: both grow with the width, which keeps their
    /// ratio].
    #[arg(long, value_parser = parse_pair, value_name = "OUT/SCALE")]
    mup: Option<(f64, f64)>,
    /// input_mult of the target; the embedding is rescaled [default: the source's].
    #[arg(long, value_name = "X")]
    input_mult: Option<f64>,
    /// Write lm_head out where the source ties it to the embedding.
    #[arg(long)]
    untie: bool,
    /// Optimizer steps in which training raises the masks of the operator msg to 1.
    #[arg(long, default_value_t = 5000, value_name = "N")]
    mask_steps: u64,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    part: PartArgs,
    /// Do not compare the source with its own digests, and do not hash its files for provenance.json.
    #[arg(long)]
    no_source_digests: bool,
    /// Print the plan tensor by tensor without executing it.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten, next_help_heading = "Input tokens, with --place distance")]
    texts: TextArgs,
}

/// Names of new rows on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NewRowsName {
    /// The mean of the old rows: a new token is never more likely than the most likely old one.
    Mean,
    /// The mean and noise (--std) in the embedding; the mean in a head that is not tied to it.
    Draw,
    /// Zeros: a new token is the most likely where all logits are negative, and training on a text that begins
    /// with one can end in NaN.
    Zero,
}

impl From<NewRowsName> for NewRows {
    fn from(name: NewRowsName) -> Self {
        match name {
            NewRowsName::Mean => Self::Mean,
            NewRowsName::Draw => Self::Draw,
            NewRowsName::Zero => Self::Zero,
        }
    }
}

/// Names of operators on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OperatorName {
    /// Noise behind masks of 0 that training raises to 1 (Masked Structural Growth); for other programs,
    /// `flm fold` first.
    Msg,
    /// Zeros where new weights write: a plain checkpoint that any Llama runtime runs.
    Zero,
    /// Duplicated features, whole-number ratios (HyperCloning).
    Clone,
    /// The stack of layers repeated; does NOT keep the function: a baseline.
    Stack,
}

impl From<Operator> for OperatorName {
    fn from(operator: Operator) -> Self {
        match operator {
            Operator::Msg => Self::Msg,
            Operator::Zero => Self::Zero,
            Operator::Clone => Self::Clone,
            Operator::Stack => Self::Stack,
        }
    }
}

impl From<OperatorName> for Operator {
    fn from(name: OperatorName) -> Self {
        match name {
            OperatorName::Msg => Self::Msg,
            OperatorName::Zero => Self::Zero,
            OperatorName::Clone => Self::Clone,
            OperatorName::Stack => Self::Stack,
        }
    }
}

impl Grow {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        if let (None, Some(setting)) = (&self.recipe, self.overrides.first()) {
            bail!("{setting}: KEY=VALUE changes a recipe; give --recipe FILE, or a flag such as --seed 7");
        }
        let recipe = match &self.recipe {
            Some(path) => {
                let recipe = Recipe::parse(&read_text(path, RECIPE_BYTES)?, &self.overrides);
                Some(recipe.with_context(|| format!("cannot use {}", path.display()))?)
            }
            None => None,
        };
        let stages = recipe.as_ref().map_or_else(|| self.stages(), Recipe::stages);
        let shard = recipe.as_ref().and_then(Recipe::max_shard_bytes);
        self.part.require_alone(self.write.optimizer_state, "--optimizer-state")?;
        self.part.require_alone(stages.len() > 1, "a growth in several stages")?;
        let part = match self.dst.as_deref().filter(|_| !self.dry_run) {
            Some(dst) => self.part.of(dst)?,
            None => None,
        };
        let execution = ExecuteOptions {
            max_shard_bytes: shard.unwrap_or(self.write.max_shard_size),
            part,
            command: command_line(std::env::args()),
            recipe: recipe.as_ref().map(|r| r.text.clone()),
            source_digests: !self.no_source_digests,
            optimizer_state: self.write.optimizer_state,
            file_digests: self.write.file_digests,
            restart: self.write.restart,
            ..ExecuteOptions::default()
        };
        let count = stages.len();
        let mut source = self.source(recipe.as_ref().and_then(Recipe::from))?;
        refuse_without_effect(&stages, source.config())?;
        if let Source::Checkpoint(checkpoint) = &source {
            tell_of_code(checkpoint.config(), checkpoint.dir(), output);
        }
        let mut reports = Vec::with_capacity(count);
        let mut between = Vec::new();
        for (number, stage) in (1..).zip(&stages) {
            let stage = Stage { operator: Some(operator(stage, number < count, output)), ..stage.clone() };
            let plan = self.plan(&source, &stage, output)?;
            let dst = match (&self.dst, number == count) {
                (Some(dst), true) => Some(dst.clone()),
                (Some(dst), false) => Some(between_path(dst, number)?),
                (None, _) => None,
            };
            let mut report = Report::new(&plan, dst.as_deref(), &execution, self.dry_run)?;
            match (&source, &dst, self.dry_run) {
                (Source::Checkpoint(checkpoint), Some(dst), false) => {
                    if number < count && is_done(dst, &plan, checkpoint, self.write.restart)? {
                        output.log(&format!("stage {number} was finished before"));
                    } else {
                        let total = report.summary.output_bytes / part.map_or(1, JobPart::count) as u64;
                        let bar = output.bytes("growing", total);
                        let done = execute(&plan, checkpoint, dst, &execution, &|bytes| bar.inc(bytes))
                            .with_context(|| format!("cannot grow into {}", dst.display()))?;
                        bar.finish_and_clear();
                        output.warn_of_overflow(done.overflowed);
                        if done.inexact > 0 {
                            output.warn(&format!(
                                "{} weights have copies that do not add up to them exactly in {}",
                                done.inexact,
                                dst.display()
                            ));
                        }
                        report.done(&done, part);
                    }
                    if number < count {
                        source = Source::Checkpoint(open(dst)?);
                        between.push(dst.clone());
                    }
                }
                (source_now, ..) => {
                    let config = plan.target_config(source_now.config())?;
                    source = Source::Config(Box::new(config));
                }
            }
            reports.push((report, plan));
        }
        for dir in between {
            std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        Reports::new(reports).context("there is no stage")?.print(output)?;
        Ok(true)
    }

    /// The stages that flags ask for: one for each --to, the other flags for the last.
    pub(crate) fn stages(&self) -> Vec<Stage> {
        let common = Stage {
            operator: Some(self.operator.into()),
            place: self.place.clone(),
            metric: Some(self.metric.into()),
            keep_ends: Some(self.keep_ends),
            std: Some(self.std),
            noise: self.noise,
            mask_steps: Some(self.mask_steps),
            seed: Some(self.seed),
            new_rows: self.new_rows.map(NewRows::from),
            ..Stage::default()
        };
        let last = Stage {
            to: self.to.last().cloned(),
            layers: self.layers,
            hidden: self.hidden,
            heads: self.heads,
            kv_heads: self.kv_heads,
            ffn: self.ffn,
            vocab: self.vocab,
            mup: self.mup,
            input_mult: self.input_mult,
            untie: Some(self.untie),
            ..common.clone()
        };
        let earlier = self.to.iter().rev().skip(1).rev();
        earlier.map(|to| Stage { to: Some(to.clone()), ..common.clone() }).chain([last]).collect()
    }

    fn source(&self, of_recipe: Option<&str>) -> anyhow::Result<Source> {
        match (&self.src, self.from_config.as_deref().or(of_recipe.filter(|_| self.dry_run))) {
            (Some(src), _) => Ok(Source::Checkpoint(open(src)?)),
            (None, Some(name)) => Ok(Source::Config(Box::new(config(name)?))),
            (None, None) => bail!("no source: give a checkpoint directory, or --from-config with --dry-run"),
        }
    }

    fn plan(&self, source: &Source, stage: &Stage, output: &Output) -> anyhow::Result<GrowthPlan> {
        let model = match source {
            Source::Checkpoint(checkpoint) => SourceModel::from_checkpoint(checkpoint)?,
            Source::Config(config) => {
                SourceModel::from_config(config, config.declared_dtype().unwrap_or(Dtype::BF16))?
            }
        };
        let tokenizer_size = match self.src.as_deref().filter(|dir| has_tokenizer(dir)) {
            Some(dir) => Some(tokenizer(dir)?.len()),
            None => None,
        };
        let target = target(stage, Shape::of(source.config()))?;
        if let Some(name) = &stage.to {
            let mut other = Shape::not_taken(source.config(), &config(name)?);
            other.retain(|(key, ..)| *key != "tie_word_embeddings" || stage.untie != Some(true));
            let other: Vec<String> = other
                .iter()
                .map(|(key, ours, theirs)| format!("{key} stays {ours} ({theirs} there)"))
                .collect();
            if !other.is_empty() {
                output.warn(&format!("only the sizes of {name} are taken: {}", other.join(", ")));
            }
        }
        let added = target.num_hidden_layers.saturating_sub(source.config().num_hidden_layers);
        let options = GrowthOptions {
            operator: stage.operator.unwrap_or(DEFAULT_OPERATOR),
            placement: self.placement(source, stage, added, output)?,
            seed: stage.seed.unwrap_or(0),
            std: stage.std.unwrap_or(Std::Match),
            noise: stage.noise,
            multipliers: Multipliers { input_mult: stage.input_mult, output_pair: stage.mup },
            new_rows: stage.new_rows.unwrap_or_default(),
            tokenizer_size,
            untie: stage.untie.unwrap_or(false),
            mask_steps: stage.mask_steps.unwrap_or(5000),
        };
        let from = source.config();
        let kept =
            (target.hidden_size, target.num_attention_heads) == (from.hidden_size, from.num_attention_heads);
        if let Some((down, up)) = unusual_width(&target).filter(|_| !kept) {
            let fits =
                if down > from.hidden_size { format!("{down} and {up} do") } else { format!("{up} does") };
            output.warn(&format!(
                "transformers opens only widths that the heads divide: {} is no multiple of {} heads, {fits}",
                target.hidden_size, target.num_attention_heads
            ));
        }
        Ok(GrowthPlan::new(&model, &target, &options)?)
    }

    fn placement(
        &self,
        source: &Source,
        stage: &Stage,
        added: usize,
        output: &Output,
    ) -> anyhow::Result<Placement> {
        let file = match stage.place.clone().unwrap_or(Place::Rule(Placement::Interpolate)) {
            Place::Rule(rule) => return Ok(rule),
            Place::Distance(file) => file,
        };
        let distances = match (file, source) {
            (Some(file), _) => Distances::read(&file)?,
            (None, Source::Checkpoint(_)) if added == 0 => return Ok(Placement::Interpolate),
            (None, Source::Checkpoint(checkpoint)) => measure(checkpoint, &self.texts, None, output)?,
            (None, Source::Config(_)) => {
                output.warn(
                    "distances need weights: this plan places layers by interpolate, its sizes are the same",
                );
                return Ok(Placement::Interpolate);
            }
        };
        let layers = source.config().num_hidden_layers;
        ensure!(
            distances.layers.len() == layers,
            "the distances are of {} layers, the source has {layers}: measure the source",
            distances.layers.len()
        );
        let metric = stage.metric.unwrap_or(Metric::Angular);
        Ok(distances.placement(metric, added, stage.keep_ends.unwrap_or(true))?)
    }
}

/// The next smaller and the next larger width that the number of heads divides, where this one is not.
fn unusual_width(shape: &Shape) -> Option<(usize, usize)> {
    let (hidden, heads) = (shape.hidden_size, shape.num_attention_heads);
    let rest = hidden.checked_rem(heads).filter(|&r| r > 0)?;
    Some((hidden - rest, (hidden - rest).checked_add(heads)?))
}

/// What a stage grows.
enum Source {
    Checkpoint(std::sync::Arc<Checkpoint>),
    Config(Box<TeleFlmConfig>),
}

impl Source {
    fn config(&self) -> &TeleFlmConfig {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.config(),
            Self::Config(config) => config,
        }
    }
}

/// A stage's operator. Masks at 0 that are folded before the next stage are the operator `zero`.
fn operator(stage: &Stage, followed: bool, output: &Output) -> Operator {
    match stage.operator.unwrap_or(DEFAULT_OPERATOR) {
        Operator::Msg if followed => {
            output.note(
                "masks are for the last stage: this one is grown with `zero`, which is msg folded at 0",
            );
            Operator::Zero
        }
        operator => operator,
    }
}

/// Where the output of a stage that is followed by another lies until the last is done.
fn between_path(dst: &Path, stage: usize) -> anyhow::Result<PathBuf> {
    let name = dst.file_name().with_context(|| format!("{} names no directory", dst.display()))?;
    Ok(dst.with_file_name(format!(".{}.stage-{stage}", name.to_string_lossy())))
}

/// Whether an earlier run has finished this stage: by this plan, from these very bytes. With `restart`
/// what flm made there goes.
fn is_done(dst: &Path, plan: &GrowthPlan, source: &Checkpoint, restart: bool) -> anyhow::Result<bool> {
    if !dst.is_dir() {
        return Ok(false);
    }
    let made = Provenance::read(dst)?;
    let growth = made.as_ref().and_then(|p| p.growth.as_ref());
    if restart && growth.is_some() {
        std::fs::remove_dir_all(dst).with_context(|| format!("cannot remove {}", dst.display()))?;
        return Ok(false);
    }
    ensure!(
        growth.map(|g| g.plan_blake3.clone()) == Some(plan.digest()?),
        "{} is left of another growth: remove it, or start over with --restart",
        dst.display()
    );
    ensure!(
        made.map_or(Ok(false), |p| p.is_of(source))?,
        "{} was grown from other bytes than {} has now: start over with --restart",
        dst.display(),
        source.dir().display()
    );
    Ok(true)
}

/// Refuses settings that would do nothing in any of the stages, as flags or keys of a recipe.
fn refuse_without_effect(stages: &[Stage], source: &TeleFlmConfig) -> anyhow::Result<()> {
    let mut from = Shape::of(source);
    let (mut rows, mut layers) = (false, false);
    for stage in stages {
        let to = target(stage, from)?;
        rows |= to.vocab_size != from.vocab_size;
        layers |= to.num_hidden_layers != from.num_hidden_layers;
        from = to;
    }
    ensure!(
        rows || stages.iter().all(|stage| stage.new_rows.is_none()),
        "--new-rows is about new rows of the vocabulary, and there are none here: give --vocab, or drop it"
    );
    ensure!(
        layers || stages.iter().all(|stage| stage.place.is_none()),
        "--place is about new layers, and there are none here: give --layers, or drop it"
    );
    ensure!(
        source.tie_word_embeddings || stages.iter().all(|stage| stage.untie != Some(true)),
        "--untie writes out a head that is tied to the embedding, and this model's is not: drop it"
    );
    Ok(())
}

fn target(stage: &Stage, source: Shape) -> anyhow::Result<Shape> {
    let base = match &stage.to {
        Some(name) => {
            let to = Shape::of(&config(name)?);
            // a plain Llama's heads stay as wide as they are: the preset's must be the same
            ensure!(
                to.head_dim == source.head_dim,
                "{name} has heads of {}, the source of {}: heads do not change their width; give the sizes one by one",
                to.head_dim,
                source.head_dim
            );
            to
        }
        None => source,
    };
    Ok(base.with(&ShapeOverrides {
        num_hidden_layers: stage.layers,
        hidden_size: stage.hidden,
        num_attention_heads: stage.heads,
        num_key_value_heads: stage.kv_heads,
        intermediate_size: stage.ffn,
        vocab_size: stage.vocab,
    }))
}
