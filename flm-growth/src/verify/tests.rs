//! Verification: what preserves the function passes, each mutation fails.

use super::*;
use crate::execute::{ExecuteOptions, execute};
use crate::fill::NormalFill;
use crate::operator::Operator;
use crate::placement::Placement;
use crate::plan::Multipliers;
use crate::plan::{GrowthOptions, GrowthPlan};
use crate::reference::{Model, SMALL, config};
use crate::tensor_plan::Std;
use flm_checkpoint::Dtype;

/// Sizes that every kernel takes: grouped queries, widths of whole SIMD registers.
pub(crate) const SOURCE: Shape = Shape {
    num_hidden_layers: 3,
    hidden_size: 64,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    head_dim: 16,
    intermediate_size: 160,
    vocab_size: 100,
};
pub(crate) const TARGET: Shape = Shape {
    num_hidden_layers: 5,
    hidden_size: 96,
    num_attention_heads: 6,
    num_key_value_heads: 3,
    head_dim: 16,
    intermediate_size: 224,
    vocab_size: 128,
};

pub(crate) struct Pair {
    _dir: tempfile::TempDir,
    model: Model,
    pub source: Arc<Checkpoint>,
    pub target: Arc<Checkpoint>,
}

/// A random model and what a plan, changed by `mutate`, makes of it.
pub(crate) fn pair(
    precision: Dtype,
    options: &GrowthOptions,
    to: Shape,
    mutate: impl Fn(&mut GrowthPlan),
) -> Pair {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::random(config(SOURCE, false, true), precision, 3);
    let source = model.save(&dir.path().join("source"), 1 << 30);
    let mut plan = model.plan(&to, options).unwrap();
    mutate(&mut plan);
    let grown = dir.path().join("grown");
    execute(&plan, &source, &grown, &ExecuteOptions::default(), &|_| ()).unwrap();
    let target = Arc::new(Checkpoint::open(&grown).unwrap());
    Pair { _dir: dir, model, source: Arc::new(source), target }
}

pub(crate) fn texts() -> Vec<Vec<u32>> {
    let text = |n: u32, step: u32| (0..n).map(|i| (i * i * step + 3) % 97).collect();
    vec![text(30, 7), text(30, 5), text(11, 1), vec![]]
}

pub(crate) fn run(pair: &Pair, change: impl Fn(&mut VerifyOptions)) -> VerifyReport {
    let mut options = VerifyOptions::new(texts());
    change(&mut options);
    let mut last = (0, 0);
    let report =
        verify(&pair.source, &pair.target, &options, &mut |done, total| last = (done, total)).unwrap();
    assert_eq!(last.0, last.1);
    report
}

pub(crate) fn loud() -> GrowthOptions {
    GrowthOptions { std: Std::Value(0.3), placement: Placement::After(vec![0, 0]), ..Default::default() }
}

#[test]
fn zero_growth_passes_in_every_dtype_streamed_and_resident() {
    let stored = pair(Dtype::BF16, &loud(), TARGET, |_| ());
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        for residency in [Residency::Streamed, Residency::Resident] {
            let report = run(&stored, |o| (o.dtype, o.residency) = (dtype, residency));
            assert!(report.passed, "{dtype:?}: {report:#?}");
            assert_eq!((report.texts, report.positions, report.vocab), (3, 71, 100));
            let floor = report.noise_floor.unwrap();
            assert!((1e-4..0.2).contains(&floor), "{floor}");
            let layers: Vec<(usize, usize)> = report.layers.iter().map(|l| (l.source, l.target)).collect();
            assert_eq!(layers, [(0, 0), (1, 3), (2, 4)]);
            let bound = if dtype == DType::BF16 { 0.05 } else { 1e-5 };
            assert!(report.layers.iter().all(|l| l.relative_l2 < bound), "{:?}", report.layers);
        }
    }
}

#[test]
fn a_double_precision_checkpoint_agrees_to_double_precision() {
    let multipliers = Multipliers { input_mult: Some(0.7), output_pair: Some((2.0, 80.0)) };
    let stored = pair(Dtype::F64, &GrowthOptions { multipliers, ..loud() }, TARGET, |_| ());
    let report = run(&stored, |o| o.dtype = DType::F64);
    assert!(report.relative_l2 < 1e-13 && report.kl_max < 1e-13 && report.max_abs > 0.0, "{report:#?}");
}

#[test]
fn the_sources_numbers_are_those_of_the_reference_forward_pass() {
    let stored = pair(Dtype::F64, &loud(), TARGET, |_| ());
    let report = run(&stored, |o| o.dtype = DType::F64);
    let (mut nll, mut count) = (0.0f64, 0.0);
    for text in texts() {
        let tokens: Vec<usize> = text.iter().map(|&t| t as usize).collect();
        for (logits, &next) in stored.model.logits(&tokens).iter().zip(tokens.iter().skip(1)) {
            nll += logits.iter().map(|v| v.exp()).sum::<f64>().ln() - logits[next];
            count += 1.0;
        }
    }
    let (expected, got) = ((nll / count).exp(), report.source_perplexity.unwrap());
    assert!((got / expected - 1.0).abs() < 1e-12, "{got} {expected}");
    assert!((report.target_perplexity.unwrap() / expected - 1.0).abs() < 1e-12);
}

#[test]
fn a_wrong_eps_is_found_where_it_acts() {
    let stored = pair(Dtype::F32, &loud(), TARGET, |plan| plan.config.rms_norm_eps = 1e-5);
    let report = run(&stored, |_| ());
    assert!(!report.passed && report.failures[0].contains("relative L2"), "{report:#?}");
    assert!(report.layers[0].relative_l2 > 1e-4, "{:?}", report.layers);
}

#[test]
fn a_wrong_layer_is_found_at_that_layer() {
    let noise = Some(crate::tensor_plan::Fill::Normal(Std::Value(0.3)));
    let stored = pair(Dtype::F32, &loud(), TARGET, |plan| {
        let name = "model.layers.3.mlp.down_proj.weight";
        plan.tensors.iter_mut().filter(|t| t.name == name).for_each(|t| t.new_cols = noise);
    });
    let report = run(&stored, |_| ());
    assert!(!report.passed);
    assert!(
        report.layers[0].relative_l2 < 1e-5 && report.layers[1].relative_l2 > 1e-3,
        "{:?}",
        report.layers
    );
}

#[test]
fn bf16_is_judged_by_the_noise_floor() {
    let stored = pair(Dtype::BF16, &loud(), TARGET, |plan| plan.config.rms_norm_eps = 1e-4);
    let report = run(&stored, |o| o.dtype = DType::BF16);
    assert!(!report.passed && report.failures[0].contains("times the noise floor"), "{report:#?}");
}

#[test]
fn stacking_is_reported_as_another_function() {
    let to = Shape { num_hidden_layers: 6, ..SOURCE };
    let stored = pair(Dtype::F32, &GrowthOptions { operator: Operator::Stack, ..loud() }, to, |_| ());
    let report = run(&stored, |_| ());
    assert!(!report.passed && report.relative_l2 > 0.01, "{report:#?}");
    // up to the first copy it is the source
    assert!(
        report.layers.iter().all(|l| l.relative_l2 == 0.0 && l.source == l.target),
        "{:?}",
        report.layers
    );
}

#[test]
fn rows_past_the_tokenizer_are_not_compared() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::random(config(SMALL, false, true), Dtype::F32, 3);
    let mut other = model.clone();
    let (_, bytes) = other.tensors.get_mut("lm_head.weight").unwrap();
    NormalFill::new(9, "x", Dtype::F32, 0.3).unwrap().write(0, &mut bytes[20 * 12 * 4..]);
    let pair = Pair {
        source: Arc::new(model.save(&dir.path().join("a"), 1 << 30)),
        target: Arc::new(other.save(&dir.path().join("b"), 1 << 30)),
        _dir: dir,
        model,
    };
    let short = |o: &mut VerifyOptions| o.tokens = vec![vec![1, 5, 7, 2, 9]];
    assert!(!run(&pair, short).passed);
    let report = run(&pair, |o| {
        short(o);
        o.tokenizer_size = Some(20);
    });
    assert!(report.passed && report.max_abs == 0.0 && report.vocab == 20, "{report:#?}");
}

#[test]
fn new_vocabulary_rows_are_looked_at() {
    let stored = pair(Dtype::F64, &loud(), TARGET, |_| ());
    let report = run(&stored, |o| o.dtype = DType::F64);
    let new = report.new_rows.unwrap();
    assert!(report.passed, "{report:#?}");
    assert_eq!((new.rows, new.likeliest), (28, 0.0));
    // by the reference's forward pass: every new row's logit is the mean of the old ones
    let (mut probability, mut positions, mut nll, mut count) = (0.0, 0.0, 0.0, 0.0);
    for text in texts() {
        let tokens: Vec<usize> = text.iter().map(|&t| t as usize).collect();
        for (i, logits) in stored.model.logits(&tokens).iter().enumerate() {
            let old: f64 = logits.iter().map(|v| v.exp()).sum();
            let added = 28.0 * (logits.iter().sum::<f64>() / 100.0).exp();
            (probability, positions) = (probability + added / (old + added), positions + 1.0);
            if let Some(&next) = tokens.get(i + 1) {
                (nll, count) = (nll + (old + added).ln() - logits[next], count + 1.0);
            }
        }
    }
    assert!((new.probability / (probability / positions) - 1.0).abs() < 1e-9, "{new:?}");
    assert!((new.target_perplexity.unwrap() / (nll / count).exp() - 1.0).abs() < 1e-9, "{new:?}");

    // rows that win are another function, however well the old ones agree
    let louder = pair(Dtype::F64, &loud(), TARGET, |plan| {
        let head = plan.tensors.iter_mut().filter(|t| t.name == "lm_head.weight");
        head.for_each(|t| t.new_rows = Some(crate::tensor_plan::Fill::Normal(Std::Value(3.0))));
    });
    let report = run(&louder, |o| o.dtype = DType::F64);
    assert!(report.argmax_agreement == 1.0 && report.relative_l2 < 1e-12 && !report.passed, "{report:#?}");
    assert!(report.failures[0].contains("new vocabulary rows"), "{:?}", report.failures);
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let stored = pair(Dtype::F32, &loud(), TARGET, |_| ());
    let fails = |change: &dyn Fn(&mut VerifyOptions)| {
        let mut options = VerifyOptions::new(texts());
        change(&mut options);
        verify(&stored.source, &stored.target, &options, &mut |_, _| ()).expect_err("refused").to_string()
    };
    assert!(fails(&|o| o.tokens = vec![vec![]]).contains("no tokens"));
    assert!(fails(&|o| o.tokens = vec![vec![100]]).contains("token id 100 is out of range"));
    assert!(fails(&|o| o.layer_map = Some(vec![0, 4, 3])).contains("[0, 4, 3]"));
    assert!(fails(&|o| o.layer_map = Some(vec![0, 1])).contains("3 layers of the source"));
    assert!(fails(&|o| o.layer_map = Some(vec![0, 1, 5])).contains("5 layers"));
    assert!(fails(&|o| o.dtype = DType::F16).contains("cannot compute in"));
    let back = verify(&stored.target, &stored.source, &VerifyOptions::new(texts()), &mut |_, _| ());
    assert!(back.unwrap_err().to_string().contains("vocab_size would shrink from 128 to 100"));
}
