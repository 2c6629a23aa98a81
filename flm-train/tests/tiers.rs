//! Every place that parameters can be in, and every split of a step, gives the same training.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use candle_core::DType;
use flm_checkpoint::Checkpoint;
use flm_tests::device::device;
use flm_train::Backprop;
use flm_train::DiskStore;
use flm_train::Layout;
use flm_train::MemoryStore;
use flm_train::StochasticRounding;
use flm_train::clip_coefficient;
use flm_train::{AdamW, AdamWOptions};
use flm_train::{Array, ParameterStore, Place, load_weights};
use flm_train::{IGNORED, MicroBatch, Packed};

const STEPS: u64 = 20;

fn checkpoint() -> Checkpoint {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models/teleflm-gqa-f32-shst");
    Checkpoint::open(&path).expect("the fixture")
}

/// Four rows of two documents each, of different lengths.
fn rows(step: u64) -> Vec<Packed> {
    (0..4u64)
        .map(|row| {
            let mut packed = Packed::default();
            for document in 0..2u64 {
                let len = 9 + (row * 5 + document * 3 + step) % 14;
                let id = |i: u64| ((i * 37 + row * 101 + document * 17 + step * 53) % 380) as u32;
                let ids: Vec<u32> = (0..len).map(id).collect();
                let target: Vec<bool> = (0..len).map(|i| i > 3).collect();
                packed.push(&ids, &target);
            }
            packed
        })
        .collect()
}

/// Losses, and weights and moments at the end.
fn train(store: &mut dyn ParameterStore, recompute: bool, micro_rows: usize) -> (Vec<f64>, Vec<Vec<f32>>) {
    load_weights(store, &checkpoint()).unwrap();
    let backprop = Backprop::new(store.layout(), &device(), DType::F32, recompute);
    let options = AdamWOptions { weight_decay: 0.1, ..AdamWOptions::default() };
    let losses = (0..STEPS).map(|step| {
        let batches: Vec<MicroBatch> = rows(step).chunks(micro_rows).map(MicroBatch::new).collect();
        let got = backprop.run(store, &batches).unwrap();
        let adamw = AdamW::new(options, step + 1, 1e-3, clip_coefficient(got.gradient_norm, Some(1.0)));
        store.update(&mut |parameter, slices| adamw.apply(parameter, slices)).unwrap();
        got.loss
    });
    let losses = losses.collect();
    let layout = store.layout().clone();
    let mut arrays = Vec::new();
    for array in [Array::Weights, Array::ExpAvg, Array::ExpAvgSq] {
        for (unit, parameter, p) in layout.parameters() {
            let mut values = vec![0.0; p.len()];
            store.read(Place { unit, parameter, array }, 0, &mut values).unwrap();
            arrays.push(values);
        }
    }
    (losses, arrays)
}

fn memory() -> MemoryStore {
    MemoryStore::new(&Layout::new(checkpoint().config()), &device(), DType::F32, true).unwrap()
}

fn disk(dir: &Path) -> DiskStore {
    DiskStore::new(&Layout::new(checkpoint().config()), dir, &device(), DType::F32).unwrap()
}

/// ‖a − b‖ / ‖b‖.
fn relative(a: &[f32], b: &[f32]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)))
        / norm(&mut b.iter().map(|b| f64::from(*b))).max(1e-30)
}

#[test]
fn disk_and_recompute_are_bit_equal_to_resident() {
    let dir = tempfile::tempdir().unwrap();
    let work = dir.path().join("work");
    let resident = train(&mut memory(), true, 2);
    assert!(resident.0[19] < resident.0[0], "{:?}", resident.0);
    assert_eq!(train(&mut memory(), false, 2), resident, "graphs kept");
    let mut store = disk(&work);
    assert_eq!(train(&mut store, true, 2), resident, "on disk");
    drop(store);
    assert_eq!(std::fs::read_dir(&work).unwrap().count(), 0, "the files go with the store");
}

/// The checkpoint's weights, those of matrices rounded to bf16 whatever they are stored in.
fn load_bf16(store: &mut dyn ParameterStore) {
    load_weights(store, &checkpoint()).unwrap();
    let layout = store.layout().clone();
    for (unit, parameter, p) in layout.parameters().filter(|(_, _, p)| p.decays()) {
        let (place, mut values) = (Place { unit, parameter, array: Array::Weights }, vec![0.0; p.len()]);
        store.read(place, 0, &mut values).unwrap();
        values.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
        store.write(place, 0, &values).unwrap();
    }
}

/// Trains from weights in bf16; returns losses and weights.
fn train_bf16(
    store: &mut dyn ParameterStore,
    rate: f64,
    stochastic: bool,
    recompute: bool,
) -> (Vec<f64>, Vec<Vec<f32>>) {
    load_bf16(store);
    let backprop = Backprop::new(store.layout(), &device(), DType::F32, recompute);
    let losses = (0..STEPS).map(|step| {
        let got = backprop.run(store, &[MicroBatch::new(&rows(step % 4))]).unwrap();
        let mut adamw = AdamW::new(AdamWOptions::default(), step + 1, rate, 1.0);
        if stochastic {
            adamw = adamw.with_rounding(StochasticRounding::new(7, step));
        }
        store.update(&mut |parameter, slices| adamw.apply(parameter, slices)).unwrap();
        got.loss
    });
    let losses = losses.collect();
    let layout = store.layout().clone();
    let weights = layout.parameters().map(|(unit, parameter, p)| {
        let mut values = vec![0.0; p.len()];
        store.read(Place { unit, parameter, array: Array::Weights }, 0, &mut values).unwrap();
        values
    });
    (losses, weights.collect())
}

#[test]
fn small_updates_of_bf16_weights_add_up_with_stochastic_rounding_alone() {
    let layout = Layout::new(checkpoint().config()).with_bf16_weights();
    let memory = || MemoryStore::new(&layout, &device(), DType::F32, true).unwrap();
    let mut start = memory();
    load_bf16(&mut start);
    // a step of 1e-5 is a small part of the distance of most neighbouring weights
    let (losses, stochastic) = train_bf16(&mut memory(), 1e-5, true, true);
    let (_, nearest) = train_bf16(&mut memory(), 1e-5, false, true);
    let mut exact =
        MemoryStore::new(&Layout::new(checkpoint().config()), &device(), DType::F32, true).unwrap();
    let (expected, exact) = train_bf16(&mut exact, 1e-5, false, true);
    assert!((losses[19] / expected[19] - 1.0).abs() < 1e-2, "{} {}", losses[19], expected[19]);
    // how far weights have come in the direction in which those in f32 went
    let progress = |weights: &[Vec<f32>]| {
        let (mut along, mut length) = (0.0, 0.0);
        for (index, (unit, parameter, p)) in layout.parameters().enumerate().filter(|(_, p)| p.2.decays()) {
            let mut from = vec![0.0; p.len()];
            start.read(Place { unit, parameter, array: Array::Weights }, 0, &mut from).unwrap();
            for (i, from) in from.into_iter().enumerate() {
                let right = f64::from(exact[index][i] - from);
                along += right * f64::from(weights[index][i] - from);
                length += right * right;
            }
        }
        along / length
    };
    let (moved, stuck) = (progress(&stochastic), progress(&nearest));
    assert!((0.8..1.2).contains(&moved), "stochastic: {moved}");
    assert!(stuck < 0.5, "to nearest: {stuck}");
    // matrices hold what bf16 can, gains more
    for ((_, _, p), values) in layout.parameters().zip(&stochastic) {
        let bf16 = values.iter().all(|v| v.to_bits() & 0xffff == 0);
        assert_eq!(bf16, p.decays(), "{}", p.name);
    }

    let dir = tempfile::tempdir().unwrap();
    let mut disk = DiskStore::new(&layout, &dir.path().join("work"), &device(), DType::F32).unwrap();
    assert_eq!(train_bf16(&mut disk, 1e-5, true, true), (losses.clone(), stochastic.clone()), "on disk");
    let graphs = train_bf16(&mut memory(), 1e-5, true, false);
    assert_eq!(graphs, (losses.clone(), stochastic.clone()), "graphs kept");
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let single = one.unwrap().install(|| train_bf16(&mut memory(), 1e-5, true, true));
    assert_eq!(single, (losses, stochastic), "in one thread");
}

#[test]
fn every_split_into_micro_batches_gives_the_same_training() {
    let (losses, whole) = train(&mut memory(), true, 4);
    for micro_rows in [1, 2, 3] {
        let (other, split) = train(&mut memory(), true, micro_rows);
        for (a, b) in losses.iter().zip(&other) {
            assert!((a / b - 1.0).abs() < 1e-6, "{micro_rows}: {a} {b}");
        }
        let weights = whole.len() / 3;
        for (index, (a, b)) in split.iter().zip(&whole).enumerate() {
            // the moments of single steps carry their gradients' rounding; weights average over it
            let bound = if index < weights { 1e-6 } else { 1e-5 };
            let error = relative(a, b);
            assert!(error < bound, "{micro_rows} rows, array {index}: {error:e}");
        }
    }
}

#[test]
fn padding_and_masked_rows_do_not_count() {
    let rows = rows(0);
    let mut masked = rows[1].clone();
    masked.labels.fill(IGNORED);
    let loss = |rows: &[Packed]| {
        let mut store = memory();
        load_weights(&mut store, &checkpoint()).unwrap();
        let backprop = Backprop::new(store.layout(), &device(), DType::F32, true);
        backprop.run(&mut store, &[MicroBatch::new(rows)]).unwrap()
    };
    let (one, two) = (loss(&rows[..1]), loss(&[rows[0].clone(), masked]));
    assert_eq!(one.targets, two.targets);
    assert!((one.loss / two.loss - 1.0).abs() < 1e-6);
    assert!((one.gradient_norm / two.gradient_norm - 1.0).abs() < 1e-5);
}
