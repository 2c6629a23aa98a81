//! Every operator in every dimension and in all at once, through files and the real forward pass.

use super::*;
use crate::fold::FoldPlan;
use crate::operator::Operator;
use crate::placement::Placement;
use crate::plan::GrowthOptions;
use crate::plan::source::SourceModel;
use crate::shape::ShapeOverrides;
use crate::tensor_plan::Std;
use crate::verify::tests::{SOURCE, TARGET, loud, pair, run, texts};
use flm_checkpoint::Dtype;

/// Whole-number ratios, so that `clone` takes part.
fn targets() -> Vec<(&'static str, Shape)> {
    let none = ShapeOverrides::default();
    let one = |overrides: ShapeOverrides| SOURCE.with(&overrides);
    vec![
        ("layers", one(ShapeOverrides { num_hidden_layers: Some(5), ..none })),
        ("hidden", one(ShapeOverrides { hidden_size: Some(128), ..none })),
        ("heads", one(ShapeOverrides { num_attention_heads: Some(8), ..none })),
        ("ffn", one(ShapeOverrides { intermediate_size: Some(320), ..none })),
        ("vocab", one(ShapeOverrides { vocab_size: Some(128), ..none })),
        (
            "all",
            Shape {
                num_hidden_layers: 5,
                hidden_size: 128,
                num_attention_heads: 8,
                num_key_value_heads: 4,
                intermediate_size: 320,
                vocab_size: 128,
                ..SOURCE
            },
        ),
    ]
}

fn options(operator: Operator) -> GrowthOptions {
    GrowthOptions {
        operator,
        placement: Placement::Interpolate,
        std: Std::Value(0.3),
        ..GrowthOptions::default()
    }
}

#[test]
fn every_operator_keeps_the_function_in_every_dimension_and_dtype() {
    for (name, to) in targets() {
        for operator in [Operator::Msg, Operator::Zero, Operator::Clone] {
            for (stored, dtype, bound) in [
                (Dtype::F64, DType::F64, 1e-12),
                (Dtype::F32, DType::F32, 1e-5),
                (Dtype::BF16, DType::F32, 1e-5),
                (Dtype::BF16, DType::BF16, f64::INFINITY),
            ] {
                let stored_pair = pair(stored, &options(operator), to, |_| ());
                let report = run(&stored_pair, |o| o.dtype = dtype);
                let what = format!("{operator} {name} {stored} in {dtype:?}: {report:#?}");
                assert!(report.passed && report.relative_l2 <= bound, "{what}");
                // masks of 0 over trailing entries change no sum; only where bf16 weights are widened on
                // the fly does the order of a sum depend on its length
                if operator == Operator::Msg && (stored, dtype) == (Dtype::BF16, DType::F32) {
                    assert!(report.relative_l2 <= 1e-6, "{what}");
                } else if operator == Operator::Msg {
                    assert_eq!(report.max_abs, 0.0, "{what}");
                }
                if dtype != DType::BF16 {
                    assert_eq!(report.argmax_agreement, 1.0, "{what}");
                }
            }
        }
    }
}

#[test]
fn masked_growth_of_sizes_that_divide_nothing_is_equal_bit_for_bit_or_to_the_last() {
    for (stored, dtype) in [(Dtype::BF16, DType::BF16), (Dtype::F32, DType::F32), (Dtype::F64, DType::F64)] {
        let stored = pair(stored, &GrowthOptions { operator: Operator::Msg, ..loud() }, TARGET, |_| ());
        let report = run(&stored, |o| o.dtype = dtype);
        assert_eq!((report.max_abs, report.passed), (0.0, true), "{report:#?}");
        assert!(report.layers.iter().all(|l| l.relative_l2 == 0.0));
    }
}

#[test]
fn both_paths_agree_on_masked_models() {
    let stored = pair(Dtype::F32, &GrowthOptions { operator: Operator::Msg, ..loud() }, TARGET, |_| ());
    for mask in [0.0, 0.3, 1.0] {
        let target = with_mask(&stored.target, mask);
        let logits = |path| {
            let model =
                flm_candle::CausalLm::load(&target, &Device::Cpu, DType::F32, Residency::Resident).unwrap();
            let logits = model.with_path(path).logits(&texts()[0]).unwrap();
            logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let (fused, plain) = (logits(flm_candle::Path::Fused), logits(flm_candle::Path::Differentiable));
        let norm: f32 = fused.iter().map(|v| v * v).sum::<f32>().sqrt();
        let difference: f32 = fused.iter().zip(&plain).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
        assert!(difference / norm < 1e-5, "{mask}: {}", difference / norm);
    }
}

/// The checkpoint with its masks at another value.
fn with_mask(checkpoint: &Checkpoint, mask: f64) -> Arc<Checkpoint> {
    let mut config = checkpoint.config().clone();
    config.growth = config.growth.map(|g| g.with_mask(mask));
    std::fs::write(checkpoint.dir().join("config.json"), config.to_json()).unwrap();
    Arc::new(Checkpoint::open(checkpoint.dir()).unwrap())
}

#[test]
fn folded_checkpoints_are_the_masked_ones_at_any_mask() {
    for (stored, dtype, fold_dtype, bound) in [
        (Dtype::F64, DType::F64, None, 1e-12),
        (Dtype::F32, DType::F32, None, 1e-5),
        (Dtype::BF16, DType::F32, Some(Dtype::F32), 1e-5),
        (Dtype::BF16, DType::BF16, None, f64::INFINITY),
    ] {
        let mut stored = pair(stored, &GrowthOptions { operator: Operator::Msg, ..loud() }, TARGET, |_| ());
        let grown = Arc::clone(&stored.target);
        for mask in [0.0, 0.1, 0.5, 0.9, 1.0] {
            let masked = with_mask(&grown, mask);
            let plan = FoldPlan::new(&SourceModel::from_checkpoint(&masked).unwrap(), fold_dtype).unwrap();
            let dst = grown.dir().with_file_name(format!("folded-{mask}"));
            // the masks were edited
            let options = crate::execute::ExecuteOptions { source_digests: false, ..Default::default() };
            plan.execute(&masked, &dst, &options, &|_| ()).unwrap();
            let folded = Arc::new(Checkpoint::open(&dst).unwrap());
            assert!(folded.config().growth.is_none() && folded.problems().is_empty());
            let before = std::mem::replace(&mut stored.source, masked);
            stored.target = folded;
            let report = run(&stored, |o| o.dtype = dtype);
            assert!(report.passed && report.relative_l2 <= bound, "{mask} {dtype:?}: {report:#?}");
            stored.source = before;
        }
    }
}

#[test]
fn two_stages_end_in_the_sources_logits() {
    // the ratios of 52B → 102B → 1T
    let stage = |layers, hidden, heads, ffn, vocab| Shape {
        num_hidden_layers: layers,
        hidden_size: hidden,
        num_attention_heads: heads,
        num_key_value_heads: heads / 2,
        head_dim: 16,
        intermediate_size: ffn,
        vocab_size: vocab,
    };
    let (middle, last) = (stage(5, 80, 6, 200, 100), stage(8, 160, 12, 720, 128));
    for (first, second) in
        [(Operator::Zero, Operator::Msg), (Operator::Zero, Operator::Zero), (Operator::Msg, Operator::Msg)]
    {
        let mut stored =
            pair(Dtype::F32, &GrowthOptions { operator: first, ..options(first) }, middle, |_| ());
        let mut grown = Arc::clone(&stored.target);
        let dir = grown.dir().to_path_buf();
        if first == Operator::Msg {
            let plan = FoldPlan::new(&SourceModel::from_checkpoint(&grown).unwrap(), None).unwrap();
            let dst = dir.with_file_name("folded");
            plan.execute(&grown, &dst, &crate::execute::ExecuteOptions::default(), &|_| ()).unwrap();
            grown = Arc::new(Checkpoint::open(&dst).unwrap());
        }
        let multipliers = crate::plan::Multipliers { input_mult: None, output_pair: Some((2.0, 20.0)) };
        let growth = GrowthOptions { multipliers, ..options(second) };
        let plan =
            crate::plan::GrowthPlan::new(&SourceModel::from_checkpoint(&grown).unwrap(), &last, &growth)
                .unwrap();
        let dst = dir.with_file_name("last");
        crate::execute::execute(&plan, &grown, &dst, &crate::execute::ExecuteOptions::default(), &|_| ())
            .unwrap();
        stored.target = Arc::new(Checkpoint::open(&dst).unwrap());
        let report = run(&stored, |_| ());
        assert!(report.passed, "{first} {second}: {report:#?}");
        // provenance goes back to the first source
        let layers: Vec<usize> = report.layers.iter().map(|l| l.target).collect();
        assert!(layers.len() == 3 && layers.windows(2).all(|w| w[0] < w[1]), "{layers:?}");
        assert!(report.layers.iter().all(|l| l.relative_l2 < 1e-5), "{report:#?}");
        let config = stored.target.config();
        assert_eq!((config.output_mult, config.mup_scale_factor), (2.0, 20.0));
    }
}
