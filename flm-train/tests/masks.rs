//! Training under the masks of a model that is still growing: the loss against the model's own forward
//! pass, every gradient against central differences, and at mask 0 against the smaller model's.

#![allow(clippy::unwrap_used)]

use std::{collections::HashMap, path::Path, sync::Arc};

use candle_core::DType;
use flm_candle::{CausalLm, Residency};
use flm_checkpoint::Checkpoint;
use flm_checkpoint::TeleFlmConfig;
use flm_checkpoint::TensorSpec;
use flm_checkpoint::Writer;
use flm_checkpoint::preset;
use flm_checkpoint::{GrowthMasks, HeadMask, LayerMask, Mask};
use flm_tests::device::{device, on_cpu};
use flm_train::Backprop;
use flm_train::Layout;
use flm_train::MemoryStore;
use flm_train::{Array, ParameterStore, Place, load_weights};
use flm_train::{MicroBatch, Packed};

/// The model before its growth: two layers, grouped queries.
fn small(tied: bool) -> TeleFlmConfig {
    let mut config = preset("nano-52b").unwrap();
    (config.num_hidden_layers, config.hidden_size, config.intermediate_size) = (2, 8, 7);
    (config.num_attention_heads, config.num_key_value_heads, config.head_dim) = (2, 1, 4);
    (config.vocab_size, config.max_position_embeddings) = (24, 16);
    (config.input_mult, config.output_mult, config.mup_scale_factor) = (1.5, 3.0, 2.0);
    config.tie_word_embeddings = tied;
    config.set_raw("torch_dtype", "float32".into());
    config
}

/// Grown: wider, more heads and units, a third layer between the two.
fn grown(tied: bool, growth: GrowthMasks) -> TeleFlmConfig {
    let mut config = small(tied);
    (config.num_hidden_layers, config.hidden_size, config.intermediate_size) = (3, 12, 10);
    (config.num_attention_heads, config.num_key_value_heads) = (4, 2);
    config.growth = Some(growth);
    config
}

/// Masks that all differ, so that no one can stand for another.
fn masks([hidden, heads, ffn, layers]: [f64; 4]) -> GrowthMasks {
    GrowthMasks {
        version: 1,
        operator: "msg".into(),
        hidden: Some(Mask { from: 8, mask: hidden }),
        heads: Some(HeadMask { from: 2, kv_from: 1, mask: heads }),
        ffn: Some(Mask { from: 7, mask: ffn }),
        layers: Some(LayerMask { new: vec![1], mask: layers }),
        schedule: None,
    }
}

type Weights = HashMap<String, Vec<f32>>;

/// Weights that look random and do not repeat.
fn weights(config: &TeleFlmConfig) -> Weights {
    let tensors = config.tensors().enumerate().map(|(index, tensor)| {
        let value = |i: usize| {
            let wave = ((i * 7919 + index * 104_729) as f32 * 0.37).sin();
            if tensor.shape.len() == 1 { 1.0 + 0.2 * wave } else { 0.5 * wave }
        };
        let len = tensor.shape.iter().product();
        (tensor.name, (0..len).map(value).collect())
    });
    tensors.collect()
}

fn save(dir: &Path, config: &TeleFlmConfig, weights: &Weights) -> Checkpoint {
    let specs: Vec<TensorSpec> = config
        .tensors()
        .map(|t| TensorSpec { name: t.name, dtype: flm_checkpoint::Dtype::F32, shape: t.shape })
        .collect();
    let writer = Writer::create(dir, &specs, u64::MAX).unwrap();
    for spec in &specs {
        let bytes: Vec<u8> = weights[&spec.name].iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.write_at(&spec.name, 0, &bytes).unwrap();
    }
    writer.finish(config).unwrap();
    Checkpoint::open(dir).unwrap()
}

/// Rows with one document each.
fn rows() -> Vec<Packed> {
    (0..2u32)
        .map(|row| {
            let mut packed = Packed::default();
            let ids: Vec<u32> = (0..7 + row).map(|i| (i * 11 + row * 5 + 3) % 24).collect();
            packed.push(&ids, &vec![true; ids.len()]);
            packed
        })
        .collect()
}

/// Loss and gradients by name, computed in f64.
fn step(checkpoint: &Checkpoint, recompute: bool) -> (f64, Weights, MemoryStore, Backprop) {
    let layout = Layout::new(checkpoint.config());
    let mut store = MemoryStore::new(&layout, &device(), DType::F64, false).unwrap();
    load_weights(&mut store, checkpoint).unwrap();
    let backprop = Backprop::new(&layout, &device(), DType::F64, recompute);
    let got = backprop.run(&mut store, &[MicroBatch::new(&rows())]).unwrap();
    let mut gradients = Weights::new();
    for (unit, parameters) in layout.units().iter().enumerate() {
        let values = store.take_gradient(unit, 0).unwrap();
        gradients.extend(parameters.parameters.iter().map(|p| p.name.clone()).zip(values));
    }
    (got.loss, gradients, store, backprop)
}

#[test]
fn the_loss_is_the_models_and_every_gradient_is_that_of_central_differences() {
    for (tied, growth) in
        [(false, masks([0.3, 0.6, 0.2, 0.7])), (true, masks([0.3, 0.6, 0.2, 0.7])), (false, masks([0.0; 4]))]
    {
        let dir = tempfile::tempdir().unwrap();
        let config = grown(tied, growth);
        let checkpoint = Arc::new(save(&dir.path().join("model"), &config, &weights(&config)));
        let (loss, gradients, mut store, backprop) = step(&checkpoint, true);
        assert_eq!(step(&checkpoint, false).1, gradients, "graphs kept");

        let model = CausalLm::load(&checkpoint, &device(), DType::F64, Residency::Resident).unwrap();
        let (mut expected, mut targets) = (0.0, 0.0);
        for row in rows() {
            let logits = model.logits(&row.ids).unwrap().to_vec2::<f64>().unwrap();
            for (logits, &label) in logits.iter().zip(&row.labels).filter(|(_, label)| **label >= 0) {
                expected += logits.iter().map(|x| x.exp()).sum::<f64>().ln() - logits[label as usize];
                targets += 1.0;
            }
        }
        assert!((loss * targets / expected - 1.0).abs() < 1e-12, "{loss} {}", expected / targets);

        let layout = store.layout().clone();
        for (unit, parameter, p) in layout.parameters() {
            let place = Place { unit, parameter, array: Array::Weights };
            // two passes an entry: on a device some of them, where all are compared with the CPU's in softcuda.rs
            let every = if on_cpu() { 1 } else { 23 };
            for (i, &got) in gradients[&p.name].iter().enumerate().step_by(every) {
                let mut value = [0.0];
                store.read(place, i, &mut value).unwrap();
                // a power of two: the moved weights are what they are meant to be, in f32 as well
                let delta = 2f32.powi(-15);
                let mut at = |x: f32| {
                    store.write(place, i, &[x]).unwrap();
                    backprop.loss(&mut store, &[MicroBatch::new(&rows())]).unwrap() / targets
                };
                let (high, low) = (value[0] + delta, value[0] - delta);
                let expected = (at(high) - at(low)) / (f64::from(high) - f64::from(low));
                at(value[0]);
                let error = (f64::from(got) - expected).abs();
                assert!(error < 1e-6 * expected.abs().max(0.05), "{} {i}: {got} against {expected}", p.name);
            }
        }
    }
}

/// Where entry `i` of a grown tensor comes from, if it is not new.
fn source(name: &str, shape: &[usize], of: &[usize], i: usize) -> Option<(String, usize)> {
    let layer = |new: &str| match new {
        "0" => Some("0"),
        "2" => Some("1"),
        _ => None,
    };
    let name = match name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
        Some((index, part)) => format!("model.layers.{}.{part}", layer(index)?),
        None => name.to_owned(),
    };
    let (row, column) = if shape.len() == 1 { (0, i) } else { (i / shape[1], i % shape[1]) };
    let columns = of[of.len() - 1];
    let inside = column < columns && (of.len() == 1 || row < of[0]);
    inside.then_some((name, row * columns + column))
}

#[test]
fn at_mask_0_old_entries_have_the_smaller_models_gradient_and_new_ones_none() {
    for tied in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (before, after) = (small(tied), grown(tied, masks([0.0; 4])));
        let old = weights(&before);
        let mut new = weights(&after);
        let shapes: HashMap<String, Vec<usize>> = before.tensors().map(|t| (t.name, t.shape)).collect();
        let shape_of = |name: &str| shapes.get(&name.replace("layers.2", "layers.1")).cloned();
        for tensor in after.tensors() {
            let values = new.get_mut(&tensor.name).unwrap();
            let of = shape_of(&tensor.name).unwrap();
            for (i, value) in values.iter_mut().enumerate() {
                if let Some((name, j)) = source(&tensor.name, &tensor.shape, &of, i) {
                    *value = old[&name][j];
                }
            }
        }
        let (loss, expected, ..) = step(&save(&dir.path().join("small"), &before, &old), true);
        let (masked_loss, gradients, ..) = step(&save(&dir.path().join("grown"), &after, &new), true);
        assert!((masked_loss / loss - 1.0).abs() < 1e-14);
        for tensor in after.tensors() {
            let of = shape_of(&tensor.name).unwrap();
            for (i, &got) in gradients[&tensor.name].iter().enumerate() {
                let from = source(&tensor.name, &tensor.shape, &of, i);
                let expected = from.map_or(0.0, |(name, j)| expected[&name][j]);
                let close = (got - expected).abs() <= 1e-6 * expected.abs().max(1e-6);
                assert!(close, "{} {i}: {got} against {expected}", tensor.name);
            }
        }
    }
}

#[test]
fn masks_of_1_train_as_no_masks_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let masked = grown(false, masks([1.0; 4]));
    let mut plain = masked.clone();
    plain.growth = None;
    let (a, b) = (save(&dir.path().join("a"), &masked, &weights(&plain)), weights(&plain));
    let b = save(&dir.path().join("b"), &plain, &b);
    let ((loss, gradients, ..), (expected, unmasked, ..)) = (step(&a, true), step(&b, true));
    assert_eq!(loss.to_bits(), expected.to_bits());
    assert_eq!(gradients, unmasked);
}
