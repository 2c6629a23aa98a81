//! Plans of the published stages come to their published sizes.

use crate::Preservation;
use crate::tensor_plan::Fill;
use flm_checkpoint::Dtype;
use flm_checkpoint::preset;

use super::*;

fn plan(from: &str, to: &str, options: &GrowthOptions) -> GrowthPlan {
    let source = SourceModel::from_config(&preset(from).unwrap(), Dtype::BF16).unwrap();
    GrowthPlan::new(&source, &Shape::of(&preset(to).unwrap()), options).unwrap()
}

#[test]
fn the_published_stages_come_to_their_published_sizes() {
    let options = GrowthOptions { tokenizer_size: Some(80_000), ..Default::default() };
    let first = plan("tele-flm-52b", "tele-flm-102b", &options);
    let summary = first.summary();
    assert_eq!(summary.source_parameters, 52_824_121_344);
    assert_eq!(summary.target_parameters, 102_206_351_360);
    assert_eq!((summary.tensors, summary.new_layers), (80 * 9 + 3, 16));
    // bf16, but norm gains in f32: 161 vectors of 10240 with two more bytes each
    assert_eq!(summary.output_bytes, 2 * summary.target_parameters + 2 * 161 * 10240);
    let config = first.target_config(&preset("tele-flm-52b").unwrap()).unwrap();
    assert_eq!((config.output_mult, config.mup_scale_factor), (0.625, 20.0));
    assert_eq!(config.logit_scale(), 0.03125);
    assert!((config.rms_norm_eps / 8e-6 - 1.0).abs() < 1e-15, "{}", config.rms_norm_eps);

    let second = plan("tele-flm-102b", "tele-flm-1t", &options);
    assert_eq!(second.summary().target_parameters, 1_083_813_908_480);
    assert_eq!(second.summary().new_layers, 60);
}

#[test]
fn the_parts_of_the_output_add_up() {
    for operator in [Operator::Zero, Operator::Clone] {
        let target = Shape {
            num_hidden_layers: 18,
            hidden_size: 192,
            num_attention_heads: 8,
            num_key_value_heads: 8,
            intermediate_size: 512,
            vocab_size: 4096,
            ..Shape::of(&preset("nano-52b").unwrap())
        };
        let source = SourceModel::from_config(&preset("nano-52b").unwrap(), Dtype::BF16).unwrap();
        let options = GrowthOptions { operator, tokenizer_size: Some(4000), ..Default::default() };
        let s = GrowthPlan::new(&source, &target, &options).unwrap().summary();
        let parts = s.copied_bytes
            + s.scaled_bytes
            + s.repeated_bytes
            + s.zero_bytes
            + s.drawn_bytes
            + s.constant_bytes;
        assert_eq!(parts, s.output_bytes, "{operator}");
        assert!(s.repeated_bytes > 0 && s.zero_bytes > 0);
    }
}

#[test]
fn the_released_pair_of_the_1t_multiplies_the_logits_by_a_quarter_more() {
    let multipliers = Multipliers { output_pair: Some((2.0, 80.0)), ..Default::default() };
    let options = GrowthOptions { multipliers, ..Default::default() };
    let plan = plan("tele-flm-52b", "tele-flm-1t", &options);
    // 1.25 would round the head in bf16; the final norm's gain is f32 and takes it
    let scale = |name| plan.tensor(name).unwrap().scale;
    assert_eq!(scale("lm_head.weight"), 1.0);
    assert_eq!(scale("model.norm.weight"), 1.25 * scale("model.layers.0.input_layernorm.weight"));
    assert_eq!(plan.preservation(), Preservation::Rounded { tensors: 281, relative: 2f64.powi(-24) });
    // a power of two moves only exponents, and an f32 head is not rounded more than f32 is
    let head = |pair, dtype| {
        let multipliers = Multipliers { output_pair: Some(pair), ..Default::default() };
        let options = GrowthOptions { multipliers, ..Default::default() };
        let source = SourceModel::from_config(&preset("tele-flm-52b").unwrap(), dtype).unwrap();
        let target = Shape::of(&preset("tele-flm-1t").unwrap());
        GrowthPlan::new(&source, &target, &options).unwrap().tensor("lm_head.weight").unwrap().scale
    };
    assert_eq!(head((0.5, 32.0), Dtype::BF16), 2.0);
    assert_eq!(head((2.0, 80.0), Dtype::F32), 1.25);
    // the same scale written another way moves nothing
    let multipliers = Multipliers { output_pair: Some((1.0, 32.0)), ..Default::default() };
    let same = crate::plan::tests::plan(
        "tele-flm-52b",
        "tele-flm-1t",
        &GrowthOptions { multipliers, ..Default::default() },
    );
    assert_eq!(same.tensor("lm_head.weight").unwrap().scale, 1.0);
}

#[test]
fn gains_of_a_doubled_width_are_f32_as_the_root_of_two_is_no_power_of_two() {
    let plan = plan("tele-flm-102b", "tele-flm-1t", &GrowthOptions::default());
    assert_eq!(plan.tensor("model.norm.weight").unwrap().dtype, Dtype::F32);
    assert_eq!(plan.preservation(), Preservation::Rounded { tensors: 281, relative: 2f64.powi(-24) });
}

#[test]
fn new_layers_are_copies_that_write_nothing() {
    let plan = plan("nano-52b", "nano-102b", &GrowthOptions::default());
    for (index, layer) in plan.layers.iter().enumerate() {
        for part in ["self_attn.o_proj", "mlp.down_proj", "mlp.up_proj", "input_layernorm"] {
            let tensor = plan.tensor(&format!("model.layers.{index}.{part}.weight")).unwrap();
            let silent = layer.new && (part.ends_with("o_proj") || part.ends_with("down_proj"));
            let source = (!silent).then(|| format!("model.layers.{}.{part}.weight", layer.source));
            assert_eq!(tensor.source.as_ref().map(|s| s.name.clone()), source, "{}", tensor.name);
            assert!(!silent || tensor.new_corner == Some(Fill::Zero));
        }
    }
    let originals: Vec<usize> = plan.originals().map(|(source, _)| source).collect();
    assert_eq!(originals, (0..16).collect::<Vec<_>>());
}

#[test]
fn a_plan_is_the_same_each_time_and_survives_json() {
    let options = GrowthOptions { seed: u64::MAX, std: Std::Value(0.02), ..Default::default() };
    let first = plan("nano-102b", "nano-1t", &options);
    assert_eq!(first.digest().unwrap(), plan("nano-102b", "nano-1t", &options).digest().unwrap());
    let again: GrowthPlan = serde_json::from_str(&first.to_json().unwrap()).unwrap();
    assert_eq!(again, first);
    let other = plan("nano-102b", "nano-1t", &GrowthOptions { seed: 1, ..options });
    assert_ne!(other.digest().unwrap(), first.digest().unwrap());
}

#[test]
fn multipliers_of_a_model_without_them_are_refused() {
    let mut config = preset("nano-52b").unwrap();
    config.use_mup = false;
    let source = SourceModel::from_config(&config, Dtype::BF16).unwrap();
    let target = Shape::of(&preset("nano-102b").unwrap());
    let multipliers = Multipliers { input_mult: Some(2.0), ..Default::default() };
    let error = GrowthPlan::new(&source, &target, &GrowthOptions { multipliers, ..Default::default() });
    assert!(error.unwrap_err().to_string().contains("input_mult was set, but the model has no multipliers"));
    let multipliers = Multipliers { output_pair: Some((1.0, 0.0)), ..Default::default() };
    let source = SourceModel::from_config(&preset("nano-52b").unwrap(), Dtype::BF16).unwrap();
    let error = GrowthPlan::new(&source, &target, &GrowthOptions { multipliers, ..Default::default() });
    assert!(error.unwrap_err().to_string().contains("mup_scale_factor is 0"));
}
