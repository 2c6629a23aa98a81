//! From a source, a target shape and options to a plan.

use flm_checkpoint::{EMBED_TOKENS, LM_HEAD};
use flm_checkpoint::{NormPlacement, QkNorm, TeleFlmConfig};

use crate::error::{GrowthError, Result};
use crate::fill::check_std;
use crate::mup::{Folding, ratio};
use crate::operator::{Context, Operator, Role, Rule};
use crate::placement::{LayerSource, Placement};
use crate::plan::source::SourceModel;
use crate::plan::{ConfigChange, GrowthOptions, GrowthPlan};
use crate::shape::Shape;
use crate::tensor_plan::Std;
use crate::tensor_plan::{Fill, SourceTensor, TensorPlan, matrix};

/// Most layers of a target: a plan has some 30 kB for each.
const MAX_LAYERS: usize = 10_000;

pub(super) fn build(source: &SourceModel, target: &Shape, options: &GrowthOptions) -> Result<GrowthPlan> {
    let config = source.config();
    let from = Shape::of(config);
    // sizes within bounds before anything is as large as they say
    if target.num_hidden_layers > MAX_LAYERS {
        return Err(GrowthError::TooManyLayers { layers: target.num_hidden_layers, limit: MAX_LAYERS });
    }
    if config.growth.is_some() {
        return Err(GrowthError::Masked);
    }
    from.check_growth_to(target)?;
    options.operator.check(&from, target)?;
    check_noise(options)?;
    // zeros among the queries change the mean square by a share that depends on the others
    if config.qk_norm == QkNorm::Whole
        && target.num_attention_heads > from.num_attention_heads
        && options.operator != Operator::Clone
    {
        return Err(GrowthError::Operator {
            operator: options.operator.name(),
            problem: format!(
                "cannot add heads to a {}, whose queries are normalised over all heads: keep \
                 num_attention_heads {}, or use `clone` with a multiple of it",
                config.model_type.as_str(),
                from.num_attention_heads
            ),
        });
    }
    let placement = match options.operator {
        Operator::Stack => Placement::Stack,
        _ => options.placement.clone(),
    };
    let layers = placement.layer_map(from.num_hidden_layers, target.num_hidden_layers)?;
    let stream_grows = stream_grows(source, target, options)?;
    let mut change = config_change(config, target, options)?;
    if stream_grows {
        change.rms_norm_eps = config.rms_norm_eps;
    }
    let context = context(source, &from, target, &change, options, stream_grows)?;
    let mut plan = GrowthPlan {
        version: 1,
        operator: options.operator,
        placement,
        seed: options.seed,
        source: from,
        target: *target,
        config: change,
        masks: options.operator.masks(&from, target, &layers, options.mask_steps),
        layers,
        tensors: Vec::new(),
    };
    let shapes = plan.target_config(config)?;
    for tensor in shapes.tensors() {
        let role = Role::of(tensor.id, config);
        let layer = tensor.id.layer().and_then(|l| plan.layers.get(l)).copied();
        let stored = source.tensor(&source_name(&tensor.name, layer, config.tie_word_embeddings))?;
        let new_layer = layer.is_some_and(|l| l.new);
        let rule = options.operator.rule(role, new_layer, stored.dtype, &context);
        let offset = if role.is_gain() { config.gain_offset() } else { 0.0 };
        let tensor = tensor_plan(tensor.name, tensor.shape, stored, rule.with_offset(offset), offset);
        for fill in [tensor.new_cols, tensor.new_rows, tensor.new_corner].into_iter().flatten() {
            if let Fill::Normal(Std::Value(std)) | Fill::Mean { std: Some(Std::Value(std)), .. } = fill {
                check_std(std, tensor.dtype)?;
            }
        }
        plan.tensors.push(TensorPlan { new_layer, ..tensor });
    }
    Ok(plan)
}

/// Whether the embedding keeps its bits although its factor, the root of the width, grows; see `operator::zero`.
fn stream_grows(source: &SourceModel, target: &Shape, options: &GrowthOptions) -> Result<bool> {
    let config = source.config();
    let ratio = config.hidden_size as f64 / target.hidden_size as f64;
    let exact = source.tensor(EMBED_TOKENS)?.dtype.holds_scaled(ratio.sqrt());
    let around = config.norms == NormPlacement::Around && config.scales_embedding_by_width();
    Ok(options.operator == Operator::Zero && around && !exact)
}

fn check_noise(options: &GrowthOptions) -> Result<()> {
    match options.noise {
        Some(noise) if !noise.is_finite() || noise < 0.0 => Err(GrowthError::Std(noise)),
        Some(_) if options.operator != Operator::Clone => Err(GrowthError::Operator {
            operator: options.operator.name(),
            problem: "has no copies for noise to cancel between: noise is for `clone`".into(),
        }),
        _ => Ok(()),
    }
}

/// The source tensor that belongs to a target tensor.
fn source_name(target: &str, layer: Option<LayerSource>, source_tied: bool) -> String {
    match layer {
        // model.layers.N.part
        Some(layer) => {
            let part = target.splitn(4, '.').nth(3).unwrap_or_default();
            format!("model.layers.{}.{part}", layer.source)
        }
        None if target == LM_HEAD && source_tied => EMBED_TOKENS.into(),
        None => target.into(),
    }
}

fn tensor_plan(
    name: String,
    shape: Vec<usize>,
    stored: &SourceTensor,
    rule: Rule,
    offset: f64,
) -> TensorPlan {
    let source = rule.copy.then(|| stored.clone());
    let (rows, cols) = matrix(&shape);
    let (r, c) = source.as_ref().map_or((0, 0), |s| matrix(&s.shape));
    TensorPlan {
        name,
        dtype: rule.dtype,
        shape,
        new_layer: false,
        source,
        scale: rule.scale,
        offset,
        row_scale: None,
        col_scale: None,
        splits: rule.splits && c > 0 && cols > c && cols.is_multiple_of(c) && !(cols / c).is_power_of_two(),
        noise: rule.noise.filter(|_| cols > c && c > 0),
        new_cols: (r > 0 && cols > c).then_some(rule.new_cols),
        new_rows: (c > 0 && rows > r).then_some(rule.new_rows),
        new_corner: (rows > r && cols > c).then_some(rule.new_corner),
    }
}

fn config_change(config: &TeleFlmConfig, target: &Shape, options: &GrowthOptions) -> Result<ConfigChange> {
    let multipliers = options.multipliers;
    let pair = multipliers.output_pair;
    for (name, value) in [
        ("input_mult", multipliers.input_mult),
        ("output_mult", pair.map(|p| p.0)),
        ("mup_scale_factor", pair.map(|p| p.1)),
    ] {
        let Some(value) = value else { continue };
        if !config.use_mup {
            return Err(GrowthError::NoMultipliers(name));
        }
        if !value.is_finite() || value == 0.0 {
            return Err(GrowthError::Multiplier { name, value });
        }
    }
    let wider = target.hidden_size as f64 / config.hidden_size as f64;
    let (output_mult, mup_scale_factor) = match pair {
        Some(pair) => pair,
        None if config.use_mup => (config.output_mult * wider, config.mup_scale_factor * wider),
        None => (config.output_mult, config.mup_scale_factor),
    };
    let from = Shape::of(config);
    Ok(ConfigChange {
        rms_norm_eps: options.operator.rms_norm_eps(config.rms_norm_eps, &from, target),
        input_mult: multipliers.input_mult.unwrap_or(config.input_mult),
        output_mult,
        mup_scale_factor,
        tie_word_embeddings: config.tie_word_embeddings && !options.untie,
    })
}

fn context(
    source: &SourceModel,
    from: &Shape,
    to: &Shape,
    change: &ConfigChange,
    options: &GrowthOptions,
    stream_grows: bool,
) -> Result<Context> {
    let config = source.config();
    let mut target = config.clone();
    // some families scale the embedding by the width
    if !stream_grows {
        target.hidden_size = to.hidden_size;
    }
    target.input_mult = change.input_mult;
    target.output_mult = change.output_mult;
    target.mup_scale_factor = change.mup_scale_factor;
    let token_rows = options.tokenizer_size.map_or(from.vocab_size, |n| n.min(from.vocab_size)).max(1);
    let mut context = Context {
        from: *from,
        to: *to,
        embed_scale: ratio(config.input_scale(), target.input_scale()),
        head_scale: ratio(config.logit_scale(), target.logit_scale()),
        final_norm_scale: 1.0,
        new_rows: options.new_rows,
        token_rows,
        std: options.std,
        noise: options.noise.map(Std::Times),
        normed_heads: config.qk_norm != QkNorm::None,
        stream_grows,
    };
    let head = options.operator.head_scale(&context);
    let stored = source.tensor(if config.tie_word_embeddings { EMBED_TOKENS } else { LM_HEAD })?.dtype;
    let embedding = options.operator.embed_scale(&context);
    context.final_norm_scale =
        Folding::new(embedding, head, change.tie_word_embeddings, Some(stored)).final_norm;
    context.head_scale /= context.final_norm_scale;
    Ok(context)
}
