use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use candle_core::DType;
use clap::{Args, ValueEnum};
use flm_candle::config::{PRESETS, TeleFlmConfig, preset};
use flm_growth::{
    ExecuteOptions, GrowthOptions, GrowthPlan, Multipliers, Operator, Placement, Shape, SourceModel, execute,
    plan::{Block, Preservation, Std, TensorPlan},
    shape::ShapeOverrides,
};
use serde::Serialize;

use crate::{
    arguments::{has_tokenizer, open, parse_size, tokenizer},
    output::{Output, count, size, table},
};

/// Grow a checkpoint to a larger shape that computes the same function.
///
/// Memory does not depend on the model; the output directory appears when it is complete.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    flm grow ./Tele-FLM ./Tele-FLM-102B --to tele-flm-102b\n  \
    flm grow ./SmolLM2 ./SmolLM2-wide --hidden 768 --heads 12 --ffn 2048 --layers 36\n  \
    flm grow --from-config tele-flm-102b --to tele-flm-1t --dry-run")]
pub(crate) struct Grow {
    /// Checkpoint directory to read.
    #[arg(required_unless_present = "from_config")]
    src: Option<PathBuf>,
    /// Directory to make.
    #[arg(required_unless_present = "dry_run")]
    dst: Option<PathBuf>,
    /// Plan from a preset's name or a config.json, without weights; needs --dry-run.
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "src", requires = "dry_run")]
    from_config: Option<String>,
    /// Take the target's sizes from a preset; see `flm models`.
    #[arg(long, value_name = "NAME")]
    to: Option<String>,
    /// Width of the residual stream.
    #[arg(long, value_name = "N")]
    hidden: Option<usize>,
    /// Query heads.
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Key/value heads [default: in the source's ratio to --heads].
    #[arg(long, value_name = "N")]
    kv_heads: Option<usize>,
    /// Width of the feed-forward layer.
    #[arg(long, value_name = "N")]
    ffn: Option<usize>,
    /// Decoder blocks.
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Rows of the embedding.
    #[arg(long, value_name = "N")]
    vocab: Option<usize>,
    /// Rules for new weights.
    #[arg(long, value_enum, default_value_t = OperatorName::Zero)]
    operator: OperatorName,
    /// Where new layers go: interpolate, uniform or after:3,7,….
    #[arg(long, default_value = "interpolate", value_name = "RULE")]
    place: Placement,
    /// Seed of the new weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Standard deviation of new weights: match (each tensor's own) or a number.
    #[arg(long, default_value = "match", value_parser = parse_std, value_name = "STD")]
    std: Std,
    /// Multipliers of the target, as output_mult/mup_scale_factor; lm_head is rescaled where their
    /// ratio differs [default: both grow with the width, which keeps their ratio].
    #[arg(long, value_parser = parse_pair, value_name = "OUT/SCALE")]
    mup: Option<(f64, f64)>,
    /// input_mult of the target; the embedding is rescaled [default: the source's].
    #[arg(long, value_name = "X")]
    input_mult: Option<f64>,
    /// Write lm_head out where the source ties it to the embedding.
    #[arg(long)]
    untie: bool,
    /// Largest file.
    #[arg(long, default_value = "5GB", value_parser = parse_size, value_name = "SIZE")]
    max_shard_size: u64,
    /// Print the plan, tensor by tensor, and stop.
    #[arg(long)]
    dry_run: bool,
}

/// Names of operators on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OperatorName {
    /// Zeros where new weights write: a plain checkpoint that any Llama runtime runs.
    Zero,
    /// Duplicated features, whole-number ratios (HyperCloning).
    Clone,
    /// The stack of layers repeated; does NOT keep the function: a baseline.
    Stack,
}

impl From<OperatorName> for Operator {
    fn from(name: OperatorName) -> Self {
        match name {
            OperatorName::Zero => Self::Zero,
            OperatorName::Clone => Self::Clone,
            OperatorName::Stack => Self::Stack,
        }
    }
}

fn parse_std(text: &str) -> Result<Std, String> {
    match text {
        "match" => Ok(Std::Match),
        number => {
            number.parse().map(Std::Value).map_err(|_| format!("{number:?} is neither match nor a number"))
        }
    }
}

fn parse_pair(text: &str) -> Result<(f64, f64), String> {
    let pair = text.split_once('/').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    pair.ok_or_else(|| format!("{text:?}: write output_mult/mup_scale_factor, for example 2.0/80"))
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    dst: Option<&'a Path>,
    operator: &'static str,
    placement: String,
    from: Shape,
    to: Shape,
    new_layers: Vec<usize>,
    rms_norm_eps: f64,
    output_mult: f64,
    mup_scale_factor: f64,
    preservation: Preservation,
    summary: flm_growth::plan::PlanSummary,
    peak_memory_bytes: u64,
    dry_run: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<&'a [TensorPlan]>,
}

impl Grow {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        let checkpoint = self.src.as_deref().map(open).transpose()?;
        let source = match (&checkpoint, &self.from_config) {
            (Some(checkpoint), _) => SourceModel::from_checkpoint(checkpoint)?,
            (None, Some(name)) => {
                let config = config(name)?;
                SourceModel::from_config(&config, config.declared_dtype().unwrap_or(DType::BF16))?
            }
            (None, None) => bail!("no source: give a checkpoint directory or --from-config"),
        };
        let tokenizer_size = match self.src.as_deref().filter(|dir| has_tokenizer(dir)) {
            Some(dir) => Some(tokenizer(dir)?.len()),
            None => None,
        };
        let options = GrowthOptions {
            operator: self.operator.into(),
            placement: self.place.clone(),
            seed: self.seed,
            std: self.std,
            multipliers: Multipliers { input_mult: self.input_mult, output_pair: self.mup },
            tokenizer_size,
            untie: self.untie,
        };
        let plan = GrowthPlan::new(&source, &self.target(source.config())?, &options)?;
        let execution = ExecuteOptions {
            max_shard_bytes: self.max_shard_size,
            command: std::env::args().collect(),
            ..ExecuteOptions::default()
        };
        let summary = plan.summary();
        let threads = rayon::current_num_threads() as u64;
        let mut report = Report {
            dst: self.dst.as_deref(),
            operator: plan.operator.name(),
            placement: plan.placement.to_string(),
            from: plan.source,
            to: plan.target,
            new_layers: (0..plan.layers.len()).filter(|&i| plan.layers[i].new).collect(),
            rms_norm_eps: plan.config.rms_norm_eps,
            output_mult: plan.config.output_mult,
            mup_scale_factor: plan.config.mup_scale_factor,
            preservation: plan.preservation(),
            summary,
            peak_memory_bytes: threads * 3 * execution.chunk_bytes as u64 + (200 << 20),
            dry_run: self.dry_run,
            seconds: None,
            plan: self.dry_run.then_some(&plan.tensors),
        };
        if let (Some(checkpoint), Some(dst), false) = (&checkpoint, &self.dst, self.dry_run) {
            let bar = output.bytes("growing", summary.output_bytes);
            let done = execute(&plan, checkpoint, dst, &execution, &|bytes| bar.inc(bytes))
                .with_context(|| format!("cannot grow into {}", dst.display()))?;
            bar.finish_and_clear();
            report.seconds = Some(done.seconds);
        }
        output.result(&report, |report| human(report, &plan))?;
        Ok(true)
    }

    fn target(&self, source: &TeleFlmConfig) -> anyhow::Result<Shape> {
        let base = match &self.to {
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
            None => Shape::of(source),
        };
        Ok(base.with(&ShapeOverrides {
            num_hidden_layers: self.layers,
            hidden_size: self.hidden,
            num_attention_heads: self.heads,
            num_key_value_heads: self.kv_heads,
            intermediate_size: self.ffn,
            vocab_size: self.vocab,
        }))
    }
}

/// A preset's config, or that of a file or checkpoint directory.
fn config(name: &str) -> anyhow::Result<TeleFlmConfig> {
    if let Some(config) = preset(name) {
        return Ok(config);
    }
    let path = Path::new(name);
    let path = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    ensure!(path.is_file(), "{name} is neither a preset ({}) nor a config.json", PRESETS.join(", "));
    Ok(TeleFlmConfig::from_file(&path)?)
}

fn human(report: &Report<'_>, plan: &GrowthPlan) -> String {
    let (from, to, s) = (&report.from, &report.to, &report.summary);
    let dimensions = [
        ("layers", from.num_hidden_layers, to.num_hidden_layers),
        ("hidden", from.hidden_size, to.hidden_size),
        ("heads", from.num_attention_heads, to.num_attention_heads),
        ("key/value heads", from.num_key_value_heads, to.num_key_value_heads),
        ("ffn", from.intermediate_size, to.intermediate_size),
        ("vocabulary rows", from.vocab_size, to.vocab_size),
    ];
    let mut rows: Vec<Vec<String>> =
        dimensions.map(|(name, a, b)| vec![name.into(), count(a as u64), count(b as u64)]).into();
    rows.push(vec!["parameters".into(), count(s.source_parameters), count(s.target_parameters)]);
    let mut text = table(&["", "from", "to"], rows, true);
    let preservation = match report.preservation {
        Preservation::Exact => "exact in exact arithmetic, no weight rounded".into(),
        Preservation::Rounded { tensors, relative } => {
            format!("{tensors} tensors rescaled and rounded, by at most {relative:.1e} of a weight")
        }
        Preservation::No => "NOT kept: this operator is a baseline".into(),
    };
    let mut facts = vec![
        ("operator", report.operator.to_owned()),
        ("new layers", format!("{:?} ({})", report.new_layers, report.placement)),
        ("norm eps", format!("{:e}", report.rms_norm_eps)),
        ("logit scale", format!("{} / {}", report.output_mult, report.mup_scale_factor)),
        ("function", preservation),
        ("output", format!("{} in {} tensors", size(s.output_bytes), s.tensors)),
        ("copied", size(s.copied_bytes)),
        ("scaled", size(s.scaled_bytes)),
        ("repeated", size(s.repeated_bytes)),
        ("zero", format!("{} (holes)", size(s.zero_bytes))),
        ("drawn", size(s.drawn_bytes)),
        ("memory", format!("at most {}", size(report.peak_memory_bytes))),
    ];
    if let Some(seconds) = report.seconds {
        let rate = size((s.output_bytes as f64 / seconds) as u64);
        facts.push(("written", format!("{:.1} s ({rate}/s)", seconds)));
    }
    text += "\n";
    text += &table(&[], facts.into_iter().map(|(k, v)| vec![k.into(), v]), false);
    if report.dry_run {
        text += "\n";
        text += &table(
            &["tensor", "shape", "dtype", "source", "scale", "new columns", "new rows", "corner"],
            plan.tensors.iter().map(row),
            false,
        );
    }
    text
}

fn row(t: &TensorPlan) -> Vec<String> {
    let fill = |block| t.fill(block).map_or_else(|| "–".into(), |fill| format!("{fill:?}").to_lowercase());
    vec![
        t.name.clone(),
        format!("{:?}", t.shape),
        format!("{:?}", t.dtype).to_lowercase(),
        t.source.as_ref().map_or_else(|| "–".into(), |s| s.name.clone()),
        t.scale.to_string(),
        fill(Block::NewCols),
        fill(Block::NewRows),
        fill(Block::NewCorner),
    ]
}
