//! What becomes of gradients, by finite differences of the forward pass here.

use crate::execute::moments::moments;
use crate::operator::Operator;
use crate::plan::GrowthOptions;
use crate::plan::Multipliers;
use crate::reference::preservation::{LARGER, loud, masked};
use crate::reference::{Model, SMALL, config};
use crate::shape::ShapeOverrides;
use crate::tensor_plan::{Fill, SourceTensor, TensorPlan};
use flm_checkpoint::Dtype;

/// Some function of the first `vocab` logits.
fn loss(model: &Model, vocab: usize) -> f64 {
    let logits = model.logits(&[3, 17, 3, 0, 22, 9, 11]);
    let weight = |position: usize, token: usize| ((position * 31 + token * 17) % 13) as f64 - 5.5;
    let each = logits
        .iter()
        .enumerate()
        .flat_map(|(p, l)| l[..vocab].iter().enumerate().map(move |(t, v)| (p, t, v)));
    each.map(|(p, t, v)| weight(p, t) * v).sum()
}

/// ∂loss/∂w of one element, by central differences.
fn gradient(model: &Model, vocab: usize, name: &str, element: usize) -> f64 {
    let step = 2e-6;
    let at = |change: f64| {
        let mut model = model.clone();
        let (precision, bytes) = model.tensors.get_mut(name).unwrap();
        let slot = &mut bytes[element * precision.size_in_bytes()..][..precision.size_in_bytes()];
        precision.encode(precision.decode(slot) + change, slot);
        loss(&model, vocab)
    };
    (at(step) - at(-step)) / (2.0 * step)
}

/// The largest error of moments against powers of the target's gradients, in the largest of a tensor, where
/// `power_of_moments` gives the moments of the gradient's power.
fn error(
    (source, target): (&Model, &Model),
    plans: &[TensorPlan],
    power_of_moments: impl Fn(i32) -> i32,
) -> f64 {
    let vocab = source.config.vocab_size;
    let mut worst = 0f64;
    for plan in plans {
        let Some(stored) = plan.source.clone().filter(|_| !plan.new_layer) else { continue };
        let ((rows, cols), (r0, c0)) = (plan.size(), plan.copied());
        let n = rows * cols;
        // from the first element to the last
        let elements = (0..12).map(|i| i * (n - 1) / 11).map(|e| (e, e / cols, e % cols));
        let historic = |r: usize, c: usize| {
            (r < r0 || plan.new_rows == Some(Fill::Tile)) && (c < c0 || plan.new_cols == Some(Fill::Tile))
        };
        let elements: Vec<_> = elements.filter(|&(_, r, c)| historic(r, c)).collect();
        let mut of_source = vec![0.0; r0 * c0];
        for &(_, r, c) in &elements {
            let from = r % r0 * c0 + c % c0;
            of_source[from] = gradient(source, vocab, &stored.name, from);
        }
        for power in [1, 2] {
            let bytes = of_source.iter().flat_map(|g| g.powi(power).to_le_bytes()).collect();
            let history = SourceTensor { dtype: Dtype::F64, ..stored.clone() };
            let tensors = [(stored.name.clone(), (Dtype::F64, bytes))].into();
            let moments = moments(plan, "", power_of_moments(power), Some(history));
            let gradients = Model { config: source.config.clone(), tensors };
            let carried = Model { tensors: gradients.carried_out(&[moments], 0, 3), ..gradients };
            let moments = carried.values(&plan.name);
            let expected = elements.iter().map(|&(e, ..)| gradient(target, vocab, &plan.name, e).powi(power));
            let expected: Vec<f64> = expected.collect();
            let largest = expected.iter().fold(1e-3, |a: f64, b| a.max(b.abs()));
            for (&(e, ..), expected) in elements.iter().zip(&expected) {
                worst = worst.max((moments[e] - expected).abs() / largest);
            }
        }
    }
    worst
}

const TOLERANCE: f64 = 1e-4;

fn grown(operator: Operator) -> (Model, Model, Vec<TensorPlan>) {
    // multipliers that scale embedding and head
    let multipliers = Multipliers { input_mult: Some(0.7), output_pair: Some((2.0, 80.0)) };
    let target = match operator {
        Operator::Clone => SMALL.with(&ShapeOverrides {
            hidden_size: Some(24),
            num_attention_heads: Some(12),
            intermediate_size: Some(38),
            vocab_size: Some(29),
            ..ShapeOverrides::default()
        }),
        _ => LARGER,
    };
    let model = Model::random(config(SMALL, false, true), Dtype::F64, 8);
    let options = GrowthOptions { operator, multipliers, tokenizer_size: Some(20), ..loud() };
    let plan = model.plan(&target, &options).unwrap();
    let grown = model.grow(&plan, 4);
    (model, grown, plan.tensors)
}

#[test]
fn moments_of_grown_weights_are_those_of_their_gradients() {
    for operator in [Operator::Msg, Operator::Zero, Operator::Clone] {
        let (source, target, plans) = grown(operator);
        let got = error((&source, &target), &plans, |power| power);
        assert!(got < TOLERANCE, "{operator}: {got:e}");
    }
}

#[test]
fn moments_of_folded_weights_are_those_of_their_gradients() {
    for tied in [false, true] {
        let (_, model) = masked(Dtype::F64, tied, 0.37);
        let plan = model.fold(None);
        let got = error((&model, &model.folded(&plan, 3)), &plan.tensors, |power| power);
        assert!(got < TOLERANCE, "tied {tied}: {got:e}");
    }
}

#[test]
fn moments_scaled_like_weights_or_not_at_all_are_wrong() {
    let (_, model) = masked(Dtype::F64, false, 0.37);
    let fold = model.fold(None);
    let folded = model.folded(&fold, 3);
    let (source, target, plans) = grown(Operator::Clone);
    let wrong: [fn(i32) -> i32; 2] = [|power| -power, |_| 0];
    for wrong in wrong {
        assert!(error((&model, &folded), &fold.tensors, wrong) > 0.1);
        assert!(error((&source, &target), &plans, wrong) > 0.1);
    }
}
