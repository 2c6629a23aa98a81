//! Grown models against their sources, in f64.

use flm_checkpoint::{NormPlacement, QkNorm};
use proptest::prelude::*;

use crate::operator::{NewRows, Operator};
use crate::placement::Placement;
use crate::plan::GrowthOptions;
use crate::plan::summary::Preservation;
use crate::plan::{GrowthPlan, Multipliers};
use crate::reference::{Model, SMALL, config, families};
use crate::shape::Shape;
use crate::shape::ShapeOverrides;
use crate::tensor_plan::{Fill, Std};
use flm_checkpoint::Dtype;

const TOKENS: [usize; 7] = [3, 17, 3, 0, 22, 9, 11];

/// Relative L2 difference of the first `vocab` logits of all positions.
fn relative(a: &Model, b: &Model, vocab: usize) -> f64 {
    let tokens: Vec<usize> = TOKENS.iter().map(|t| t % vocab).collect();
    let (mut difference, mut norm) = (0.0, 0.0);
    for (a, b) in a.logits(&tokens).iter().zip(b.logits(&tokens)) {
        for (a, b) in a[..vocab].iter().zip(&b[..vocab]) {
            difference += (a - b) * (a - b);
            norm += a * a;
        }
    }
    (difference / norm).sqrt()
}

/// Relative error of growing a random model.
fn error(model: &Model, target: &Shape, options: &GrowthOptions) -> f64 {
    let plan = model.plan(target, options).unwrap();
    relative(model, &model.grow(&plan, 4), model.config.vocab_size)
}

fn f64_model() -> Model {
    Model::random(config(SMALL, false, true), Dtype::F64, 1)
}

/// Sizes that divide nothing, all at once.
pub(super) const LARGER: Shape = Shape {
    num_hidden_layers: 5,
    hidden_size: 17,
    num_attention_heads: 6,
    num_key_value_heads: 3,
    head_dim: 6,
    intermediate_size: 30,
    vocab_size: 31,
};

/// New weights large enough that one in a wrong place shows.
pub(super) fn loud() -> GrowthOptions {
    GrowthOptions { operator: Operator::Zero, std: Std::Value(0.5), seed: 9, ..Default::default() }
}

/// Every dimension that can grow, alone.
fn dimensions() -> [(&'static str, ShapeOverrides); 5] {
    let none = ShapeOverrides::default();
    [
        ("layers", ShapeOverrides { num_hidden_layers: Some(8), ..none }),
        ("hidden", ShapeOverrides { hidden_size: Some(20), ..none }),
        ("heads", ShapeOverrides { num_attention_heads: Some(10), ..none }),
        ("ffn", ShapeOverrides { intermediate_size: Some(20), ..none }),
        ("vocab", ShapeOverrides { vocab_size: Some(64), ..none }),
    ]
}

#[test]
fn each_dimension_alone_keeps_the_logits() {
    for (name, overrides) in [("nothing", ShapeOverrides::default())].into_iter().chain(dimensions()) {
        let model = f64_model();
        let error = error(&model, &SMALL.with(&overrides), &loud());
        assert!(error < 1e-12, "{name}: {error:e}");
    }
}

#[test]
fn all_dimensions_keep_the_logits_tied_and_untied_in_every_placement() {
    for tied in [false, true] {
        for use_mup in [false, true] {
            for untie in [false, true] {
                for placement in [
                    Placement::Interpolate,
                    Placement::Uniform,
                    Placement::Stack,
                    Placement::After(vec![1, 1]),
                ] {
                    let model = Model::random(config(SMALL, tied, use_mup), Dtype::F64, 2);
                    let options = GrowthOptions { placement, untie, ..loud() };
                    let error = error(&model, &LARGER, &options);
                    assert!(error < 1e-12, "{tied} {use_mup} {options:?}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn every_family_keeps_its_logits_under_every_operator_and_folded() {
    let twice = ShapeOverrides {
        hidden_size: Some(24),
        num_attention_heads: Some(8),
        intermediate_size: Some(38),
        num_hidden_layers: Some(5),
        ..ShapeOverrides::default()
    };
    for tied in [false, true] {
        for config in families(SMALL, tied) {
            let family = format!("{:?} {tied}", config.raw().get("model_type"));
            let model = Model::random(config, Dtype::F64, 5);
            // where all heads are normalised together, none can be added but by repeating all
            let larger = match model.config.qk_norm {
                QkNorm::Whole => {
                    let refused = model.plan(&LARGER, &loud()).unwrap_err().to_string();
                    assert!(refused.contains("normalised over all heads"), "{refused}");
                    let (heads, kv) = (SMALL.num_attention_heads, SMALL.num_key_value_heads);
                    Shape { num_attention_heads: heads, num_key_value_heads: kv, ..LARGER }
                }
                _ => LARGER,
            };
            for placement in [Placement::Interpolate, Placement::Stack, Placement::After(vec![1, 1])] {
                let options = GrowthOptions { placement, ..loud() };
                let error = error(&model, &larger, &options);
                assert!(error < 1e-12, "{family} {options:?}: {error:e}");
            }
            let options = GrowthOptions { operator: Operator::Clone, ..loud() };
            let error = error(&model, &SMALL.with(&twice), &options);
            assert!(error < 1e-12, "{family} clone: {error:e}");
            let options = GrowthOptions { operator: Operator::Msg, ..loud() };
            let plan = model.plan(&larger, &options).unwrap();
            let mut grown = model.grow(&plan, 4);
            let error = relative(&model, &grown, SMALL.vocab_size);
            assert!(error < 1e-12, "{family} msg: {error:e}");
            for mask in [0.0, 0.3, 1.0] {
                grown.config.growth = grown.config.growth.map(|masks| masks.with_mask(mask));
                let folded = grown.folded(&grown.fold(None), 4);
                let error = relative(&grown, &folded, LARGER.vocab_size);
                assert!(error < 1e-12, "{family} folded at {mask}: {error:e}");
            }
        }
    }
}

/// The embedding is multiplied by the root of the width: in bf16 it keeps its bits, and the stream grows.
#[test]
fn gemma_grows_in_bf16_with_nothing_rounded_but_gains_to_f32() {
    for config in families(SMALL, true) {
        if !config.scales_embedding_by_width() || config.norms != NormPlacement::Around {
            continue;
        }
        let model = Model::random(config, Dtype::BF16, 5);
        let plan = model.plan(&LARGER, &loud()).unwrap();
        let Preservation::Rounded { relative: rounding, .. } = plan.preservation() else {
            panic!("{:?}", plan.preservation())
        };
        assert!(rounding < 1e-7, "{rounding}");
        assert_eq!(plan.config.rms_norm_eps, model.config.rms_norm_eps);
        // eps alone is off, in the norms of what sub-layers write
        let error = error(&model, &LARGER, &loud());
        assert!(error < 1e-3, "{error:e}");
        let mut without = model.clone();
        without.config.rms_norm_eps = 1e-14;
        let error = self::error(&without, &LARGER, &loud());
        assert!(error < 1e-6, "{error:e}");
    }
}

#[test]
fn other_multipliers_are_made_up_for() {
    let multipliers = Multipliers { input_mult: Some(0.7), output_pair: Some((2.0, 80.0)) };
    let model = f64_model();
    assert!(error(&model, &LARGER, &GrowthOptions { multipliers, ..loud() }) < 1e-12);
    // tied: the head cannot be multiplied by another factor than the embedding, the final norm's gain can
    for untie in [false, true] {
        let model = Model::random(config(SMALL, true, true), Dtype::F64, 1);
        assert!(error(&model, &LARGER, &GrowthOptions { multipliers, untie, ..loud() }) < 1e-12);
    }
    // bf16: no weight of the head is rounded
    let model = Model::random(config(SMALL, false, true), Dtype::BF16, 1);
    let multipliers = Multipliers { input_mult: None, ..multipliers };
    assert!(error(&model, &LARGER, &GrowthOptions { multipliers, ..loud() }) < 1e-6);
}

#[test]
fn stored_dtypes_keep_what_they_can() {
    for (precision, bound) in [(Dtype::F32, 1e-6), (Dtype::F16, 1e-6), (Dtype::BF16, 1e-6)] {
        let model = Model::random(config(SMALL, false, true), precision, 3);
        let plan = model.plan(&LARGER, &loud()).unwrap();
        let grown = model.grow(&plan, 5);
        let error = relative(&model, &grown, 23);
        assert!(error < bound, "{precision}: {error:e}");
        assert_eq!(grown.tensors["model.norm.weight"].0, Dtype::F32);
        assert!(matches!(plan.preservation(), Preservation::Rounded { tensors: 11, .. }), "{precision}");
    }
    // a factor of ½ moves only exponents: bf16 gains stay bf16, nothing is rounded
    let model = Model::random(config(SMALL, false, true), Dtype::BF16, 3);
    let plan = model.plan(&Shape { hidden_size: 48, ..LARGER }, &loud()).unwrap();
    assert_eq!(plan.preservation(), Preservation::Exact);
    assert!(plan.tensors.iter().all(|t| t.dtype == Dtype::BF16));
    assert!(relative(&model, &model.grow(&plan, 5), 23) < 1e-14);
}

#[test]
fn clones_keep_the_logits_at_whole_ratios() {
    for (hidden, heads, ffn, seed) in [(24, 8, 38, 1), (36, 4, 19, 2), (12, 12, 57, 3)] {
        let overrides = ShapeOverrides {
            hidden_size: Some(hidden),
            num_attention_heads: Some(heads),
            intermediate_size: Some(ffn),
            num_hidden_layers: Some(4),
            vocab_size: Some(29),
            ..Default::default()
        };
        let model = Model::random(config(SMALL, false, true), Dtype::F64, seed);
        let options = GrowthOptions { operator: Operator::Clone, tokenizer_size: Some(20), ..loud() };
        let error = error(&model, &SMALL.with(&overrides), &options);
        assert!(error < 1e-12, "{hidden} {heads} {ffn}: {error:e}");
    }
    let says = |target: Shape| {
        let options = GrowthOptions { operator: Operator::Clone, ..loud() };
        f64_model().plan(&target, &options).unwrap_err().to_string()
    };
    assert!(says(LARGER).contains("hidden_size to be a multiple of 12; 17 is not"));
}

fn clone_options() -> GrowthOptions {
    GrowthOptions { operator: Operator::Clone, tokenizer_size: Some(20), ..loud() }
}

/// Twice the width, three times the heads, twice the units.
fn cloned() -> Shape {
    SMALL.with(&ShapeOverrides {
        hidden_size: Some(24),
        num_attention_heads: Some(12),
        intermediate_size: Some(38),
        num_hidden_layers: Some(4),
        vocab_size: Some(29),
        ..Default::default()
    })
}

#[test]
fn noise_between_clones_tells_them_apart_and_cancels_exactly() {
    let options = GrowthOptions { noise: Some(0.3), ..clone_options() };
    let up = "model.layers.0.mlp.up_proj.weight";
    let twice = Shape { num_attention_heads: 8, num_key_value_heads: 4, ..cloned() };
    for precision in [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16] {
        let model = Model::random(config(SMALL, false, true), precision, 5);
        let plan = model.plan(&twice, &options).unwrap();
        assert_eq!(plan.preservation(), Preservation::Exact);
        let grown = model.grow(&plan, 4);
        let error = relative(&model, &grown, 23);
        assert!(error < 1e-12, "{precision}: {error:e}");
        // rows of a reader: two copies of 12 columns, one plus and one minus
        let (old, new) = (model.values(up), grown.values(up));
        let std = |v: &[f64]| (v.iter().map(|v| v * v).sum::<f64>() / v.len() as f64).sqrt();
        let noise: Vec<f64> =
            new.chunks(24).flat_map(|r| (0..12).map(|c| (r[c] - r[c + 12]) / 2.0)).collect();
        let share = std(&noise) / std(&old);
        assert!((0.11..0.16).contains(&share), "{precision}: {share}");
    }
    // three copies of heads: the last has none
    let model = f64_model();
    let grown = model.grow(&model.plan(&cloned(), &options).unwrap(), 4);
    let o = "model.layers.0.self_attn.o_proj.weight";
    for (old, new) in model.values(o).chunks(24).zip(grown.values(o).chunks(72)) {
        assert!((0..24).all(|c| (new[c + 48] - old[c] / 3.0).abs() < 1e-12));
        assert!((0..24).filter(|&c| new[c] == new[c + 48]).count() < 4);
    }
    let says = |noise: f64, operator: Operator| {
        let options = GrowthOptions { noise: Some(noise), operator, ..clone_options() };
        f64_model().plan(&cloned(), &options).unwrap_err().to_string()
    };
    assert!(says(0.1, Operator::Zero).contains("noise is for `clone`"));
    assert!(says(-0.1, Operator::Clone).contains("finite number"));
}

/// The error of a clone, with noise, whose plan was changed by `mutate`.
fn mutated_clone(mutate: impl Fn(&mut GrowthPlan)) -> f64 {
    let model = f64_model();
    let options = GrowthOptions { noise: Some(0.3), ..clone_options() };
    let mut plan = model.plan(&cloned(), &options).unwrap();
    mutate(&mut plan);
    relative(&model, &model.grow(&plan, 4), 23)
}

#[test]
fn clones_that_are_read_whole_break_it() {
    assert!(mutated_clone(|_| ()) < 1e-12);
    for part in ["q_proj.weight", "o_proj.weight", "gate_proj.weight", "down_proj.weight", "lm_head.weight"] {
        let error = mutated_clone(|plan| each(plan, part, |t| t.scale = 1.0));
        assert!(error > 1e-4, "{part}: {error:e}");
    }
}

#[test]
fn noise_on_what_is_copied_instead_of_read_breaks_it() {
    for part in ["embed_tokens.weight", "input_layernorm.weight", "model.norm.weight"] {
        let error = mutated_clone(|plan| each(plan, part, |t| t.noise = Some(Std::Value(0.01))));
        assert!(error > 1e-4, "{part}: {error:e}");
    }
}

#[test]
fn zeros_or_noise_in_the_columns_of_clones_break_it() {
    for fill in [Some(Fill::Zero), NOISE] {
        for part in ["q_proj.weight", "o_proj.weight", "up_proj.weight", "lm_head.weight"] {
            let error = mutated_clone(|plan| each(plan, part, |t| t.new_cols = fill));
            assert!(error > 1e-4, "{part} {fill:?}: {error:e}");
        }
    }
}

#[test]
fn a_scaled_eps_or_gain_breaks_clones() {
    assert!(mutated_clone(|plan| plan.config.rms_norm_eps *= 0.5) > 1e-4);
    assert!(mutated_clone(|plan| each(plan, "norm.weight", |t| t.scale = 0.5f64.sqrt())) > 1e-4);
}

#[test]
fn stacking_changes_the_function_and_says_so() {
    let model = f64_model();
    let target = Shape { num_hidden_layers: 6, ..SMALL };
    let options = GrowthOptions { operator: Operator::Stack, ..loud() };
    assert!(error(&model, &target, &options) > 0.01);
    assert_eq!(model.plan(&target, &options).unwrap().preservation(), Preservation::No);
    assert!(model.plan(&LARGER, &options).unwrap_err().to_string().contains("only the number of layers"));
}

#[test]
fn new_vocabulary_rows_are_the_mean_of_the_rows_that_tokens_have() {
    for operator in [Operator::Zero, Operator::Msg, Operator::Clone] {
        for (tokenizer_size, rows) in [(Some(20), 20), (Some(23), 23), (Some(40), 23), (None, 23)] {
            let model = f64_model();
            let target = if operator == Operator::Clone { Shape { vocab_size: 30, ..SMALL } } else { LARGER };
            let options = GrowthOptions { operator, tokenizer_size, ..loud() };
            let grown = model.grow(&model.plan(&target, &options).unwrap(), 3);
            for name in ["model.embed_tokens.weight", "lm_head.weight"] {
                let (old, new) = (model.values(name), grown.values(name));
                let mean = |c: usize| (0..rows).map(|r| old[r * 12 + c]).sum::<f64>() / rows as f64;
                for row in new.chunks(target.hidden_size).skip(23) {
                    for (c, value) in row[..12].iter().enumerate() {
                        assert!((value - mean(c)).abs() < 1e-15, "{operator} {name} {tokenizer_size:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn drawn_vocabulary_rows_differ_and_those_of_a_head_of_its_own_do_not() {
    let model = f64_model();
    let options = |new_rows| GrowthOptions { new_rows, ..loud() };
    let rows = |new_rows, name| {
        let grown = model.grow(&model.plan(&LARGER, &options(new_rows)).unwrap(), 3);
        let values = grown.values(name);
        values.chunks(17).skip(23).map(|r| r[..12].to_vec()).collect::<Vec<_>>()
    };
    let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let drawn = rows(NewRows::Draw, embedding);
    assert!(drawn.windows(2).all(|w| w[0] != w[1]));
    assert_eq!(rows(NewRows::Draw, head), rows(NewRows::Mean, head));
    assert!(rows(NewRows::Zero, embedding).concat().iter().all(|&v| v == 0.0));
}

/// The error after the plan or the grown config was changed by `mutate`.
fn mutated(options: &GrowthOptions, mutate: impl Fn(&mut GrowthPlan)) -> f64 {
    let model = f64_model();
    let mut plan = model.plan(&LARGER, options).unwrap();
    assert!(relative(&model, &model.grow(&plan, 4), 23) < 1e-12);
    mutate(&mut plan);
    relative(&model, &model.grow(&plan, 4), 23)
}

/// Applies `change` to every tensor whose name ends in `part`.
fn each(plan: &mut GrowthPlan, part: &str, change: impl Fn(&mut crate::tensor_plan::TensorPlan)) {
    let found = plan.tensors.iter_mut().filter(|t| t.name.ends_with(part)).map(change).count();
    assert!(found > 0, "{part}");
}

const NOISE: Option<Fill> = Some(Fill::Normal(Std::Value(0.5)));

#[test]
fn unscaled_eps_breaks_it() {
    let error = mutated(&loud(), |plan| plan.config.rms_norm_eps = 1e-5);
    assert!(error > 1e-4, "{error:e}");
}

#[test]
fn unscaled_gains_break_it() {
    for part in ["input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight"] {
        let error = mutated(&loud(), |plan| each(plan, part, |t| t.scale = 1.0));
        assert!(error > 1e-4, "{part}: {error:e}");
    }
}

#[test]
fn gains_scaled_by_the_ratio_instead_of_its_root_break_it() {
    let error = mutated(&loud(), |plan| each(plan, "norm.weight", |t| t.scale *= t.scale));
    assert!(error > 1e-4, "{error:e}");
}

#[test]
fn noise_in_new_columns_of_writers_breaks_it() {
    for part in ["self_attn.o_proj.weight", "mlp.down_proj.weight"] {
        let error = mutated(&loud(), |plan| each(plan, part, |t| t.new_cols = t.new_cols.and(NOISE)));
        assert!(error > 1e-4, "{part}: {error:e}");
    }
}

#[test]
fn noise_in_new_rows_of_writers_breaks_it() {
    for part in ["self_attn.o_proj.weight", "mlp.down_proj.weight"] {
        let error = mutated(&loud(), |plan| each(plan, part, |t| t.new_rows = t.new_rows.and(NOISE)));
        assert!(error > 1e-4, "{part}: {error:e}");
    }
}

#[test]
fn noise_in_new_columns_of_the_embedding_breaks_it() {
    let error = mutated(&loud(), |plan| each(plan, "embed_tokens.weight", |t| t.new_cols = NOISE));
    assert!(error > 1e-4, "{error:e}");
}

#[test]
fn new_layers_that_write_break_it() {
    for part in ["self_attn.o_proj.weight", "mlp.down_proj.weight"] {
        let error = mutated(&loud(), |plan| {
            each(plan, part, |t| {
                if t.source.is_none() {
                    t.new_corner = NOISE;
                }
            });
        });
        assert!(error > 1e-4, "{part}: {error:e}");
    }
}

#[test]
fn an_unscaled_head_or_embedding_breaks_other_multipliers() {
    let multipliers = Multipliers { input_mult: Some(0.7), output_pair: Some((2.0, 80.0)) };
    for part in ["lm_head.weight", "embed_tokens.weight"] {
        let options = GrowthOptions { multipliers, ..loud() };
        let error = mutated(&options, |plan| each(plan, part, |t| t.scale = 1.0));
        assert!(error > 1e-4, "{part}: {error:e}");
    }
}

prop_compose! {
    fn shapes()(
        kv in 1usize..4, group in 1usize..4, half_head in 1usize..4,
        (layers, hidden, ffn, vocab) in (1usize..4, 1usize..20, 1usize..20, 2usize..20),
        (more_kv, more_layers, more_hidden, more_ffn, more_vocab) in
            (0usize..3, 0usize..5, 0usize..20, 0usize..20, 0usize..20),
    ) -> (Shape, Shape) {
        let from = Shape {
            num_hidden_layers: layers, hidden_size: hidden, num_attention_heads: kv * group,
            num_key_value_heads: kv, head_dim: 2 * half_head, intermediate_size: ffn, vocab_size: vocab,
        };
        let to = Shape {
            num_hidden_layers: layers + more_layers, hidden_size: hidden + more_hidden,
            num_attention_heads: (kv + more_kv) * group, num_key_value_heads: kv + more_kv,
            head_dim: 2 * half_head, intermediate_size: ffn + more_ffn, vocab_size: vocab + more_vocab,
        };
        (from, to)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..Default::default() })]

    #[test]
    fn any_growth_keeps_the_logits((from, to) in shapes(), tied: bool, untie: bool, seed: u64, rows in 1usize..9) {
        let model = Model::random(config(from, tied, true), Dtype::F64, seed);
        let options = GrowthOptions { untie, seed, tokenizer_size: Some(from.vocab_size - 1), ..loud() };
        let plan = model.plan(&to, &options).unwrap();
        let grown = model.grow(&plan, rows);
        let error = relative(&model, &grown, from.vocab_size);
        prop_assert!(error < 1e-12, "{error:e}");
        // every size is the target's
        prop_assert_eq!(Shape::of(&grown.config), to);
        for tensor in grown.config.tensors() {
            let (precision, bytes) = &grown.tensors[&tensor.name];
            prop_assert_eq!(bytes.len(), tensor.shape.iter().product::<usize>() * precision.size_in_bytes());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..Default::default() })]

    #[test]
    fn any_clone_keeps_the_logits(
        (from, to) in shapes(), (hidden, heads, ffn) in (1usize..4, 1usize..4, 1usize..4),
        tied: bool, untie: bool, seed: u64, noise in proptest::option::of(0.0f64..0.5), rows in 1usize..9,
    ) {
        let to = Shape {
            hidden_size: from.hidden_size * hidden,
            num_attention_heads: from.num_attention_heads * heads,
            num_key_value_heads: from.num_key_value_heads * heads,
            intermediate_size: from.intermediate_size * ffn,
            ..to
        };
        let model = Model::random(config(from, tied, true), Dtype::F64, seed);
        let options =
            GrowthOptions { untie, seed, noise, tokenizer_size: Some(from.vocab_size - 1), ..clone_options() };
        let plan = model.plan(&to, &options).unwrap();
        let error = relative(&model, &model.grow(&plan, rows), from.vocab_size);
        prop_assert!(error < 1e-11, "{error:e}");
    }
}

fn msg() -> GrowthOptions {
    GrowthOptions { operator: Operator::Msg, ..loud() }
}

/// A model grown by `msg`, tied or not, with its masks at `mask`.
pub(super) fn masked(precision: Dtype, tied: bool, mask: f64) -> (Model, Model) {
    let model = Model::random(config(SMALL, tied, true), precision, 6);
    let plan = model.plan(&LARGER, &msg()).unwrap();
    let mut grown = model.grow(&plan, 4);
    grown.config.growth = grown.config.growth.map(|g| g.with_mask(mask));
    (model, grown)
}

#[test]
fn masked_growth_keeps_the_logits_in_each_dimension_and_all() {
    for (name, overrides) in dimensions() {
        let model = f64_model();
        let error = error(&model, &SMALL.with(&overrides), &msg());
        assert!(error < 1e-12, "{name}: {error:e}");
    }
    for (tied, precision) in [(false, Dtype::F64), (true, Dtype::F64), (false, Dtype::BF16)] {
        let (model, grown) = masked(precision, tied, 0.0);
        let error = relative(&model, &grown, 23);
        assert!(error < 1e-12, "{tied} {precision}: {error:e}");
        // nothing but noise is new: at mask 1 it is another function
        assert!(relative(&model, &masked(precision, tied, 1.0).1, 23) > 0.01);
    }
    let plan = f64_model().plan(&LARGER, &msg()).unwrap();
    assert_eq!(plan.preservation(), Preservation::Exact);
    assert_eq!(plan.config.rms_norm_eps, 1e-5);
}

#[test]
fn a_masked_model_is_not_grown_again_before_it_is_folded() {
    let (_, grown) = masked(Dtype::F64, false, 0.5);
    let error = grown.plan(&LARGER, &loud()).unwrap_err().to_string();
    assert!(error.contains("flm fold"), "{error}");
}

#[test]
fn folding_is_exact_at_any_mask() {
    for tied in [false, true] {
        for mask in [0.0, 0.1, 0.37, 0.5, 0.9, 1.0] {
            for (precision, bound) in [(Dtype::F64, 1e-12), (Dtype::F32, 1e-5)] {
                let (source, model) = masked(precision, tied, mask);
                let plan = model.fold(None);
                let folded = model.folded(&plan, 3);
                let error = relative(&model, &folded, 31);
                assert!(error < bound, "{tied} {mask} {precision}: {error:e}");
                assert!(folded.config.growth.is_none());
                if mask == 0.0 {
                    assert!(relative(&source, &folded, 23) < bound);
                }
            }
        }
        let (_, model) = masked(Dtype::BF16, tied, 0.37);
        let folded = model.folded(&model.fold(Some(Dtype::F64)), 3);
        assert!(relative(&model, &folded, 31) < 1e-12);
    }
}

#[test]
fn a_fold_with_one_factor_wrong_is_another_function() {
    let (_, model) = masked(Dtype::F64, false, 0.37);
    let plan = model.fold(None);
    let broken = |change: &dyn Fn(&mut crate::fold::FoldPlan)| {
        let mut plan = plan.clone();
        change(&mut plan);
        relative(&model, &model.folded(&plan, 3), 31)
    };
    assert!(broken(&|_| ()) < 1e-12);
    assert!(broken(&|p| p.rms_norm_eps = 1e-5) > 1e-6);
    for (part, gain) in [("input_layernorm", true), ("self_attn.o_proj", false), ("mlp.down_proj", false)] {
        let each = |p: &mut crate::fold::FoldPlan, change: &dyn Fn(&mut crate::tensor_plan::TensorPlan)| {
            p.tensors.iter_mut().filter(|t| t.name.contains(part)).for_each(change);
        };
        assert!(broken(&|p| each(p, &|t| t.col_scale = None)) > 1e-4, "{part}");
        if !gain {
            assert!(broken(&|p| each(p, &|t| t.row_scale = None)) > 1e-4, "{part}");
        }
        assert!(broken(&|p| each(p, &|t| t.scale = 0.9)) > 1e-4, "{part}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..Default::default() })]

    #[test]
    fn any_masked_growth_keeps_the_logits_and_folds(
        (from, to) in shapes(), tied: bool, seed: u64, mask in 0.0f64..=1.0,
    ) {
        let model = Model::random(config(from, tied, true), Dtype::F64, seed);
        let plan = model.plan(&to, &GrowthOptions { seed, ..msg() }).unwrap();
        let mut grown = model.grow(&plan, 5);
        let error = relative(&model, &grown, from.vocab_size);
        prop_assert!(error < 1e-12, "{error:e}");
        if let Some(masks) = grown.config.growth.take() {
            grown.config.growth = Some(masks.with_mask(mask));
            let error = relative(&grown, &grown.folded(&grown.fold(None), 4), to.vocab_size);
            prop_assert!(error < 1e-11, "fold: {error:e}");
        }
    }
}

#[test]
fn every_mask_is_needed_and_where_it_begins() {
    use flm_checkpoint::GrowthMasks;
    let (source, grown) = masked(Dtype::F64, false, 0.0);
    let broken = |change: &dyn Fn(&mut GrowthMasks)| {
        let mut model = grown.clone();
        model.config.growth.iter_mut().for_each(change);
        relative(&source, &model, 23)
    };
    assert!(broken(&|_| ()) < 1e-12);
    let check = |name: &str, change: &dyn Fn(&mut GrowthMasks)| {
        let error = broken(change);
        assert!(error > 1e-4, "{name}: {error:e}");
    };
    check("no hidden mask", &|m| m.hidden = None);
    check("no head mask", &|m| m.heads = None);
    check("no unit mask", &|m| m.ffn = None);
    check("no layer mask", &|m| m.layers = None);
    check("hidden mask a place late", &|m| m.hidden.iter_mut().for_each(|h| h.from += 1));
    check("unit mask a place early", &|m| m.ffn.iter_mut().for_each(|f| f.from -= 1));
    check("a mask of 0.01", &|m| *m = m.with_mask(0.01));
}
