//! Every place that parameters can be in, and every split of a step, gives the same training.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use flm_candle::{
    checkpoint::Checkpoint,
    train::{
        AdamW, AdamWOptions, Backprop, IGNORED, Layout, MicroBatch, Packed, clip_coefficient,
        store::{Array, DiskStore, MemoryStore, ParameterStore, Place, load_weights},
    },
};

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
    let backprop = Backprop::new(store.layout(), &Device::Cpu, DType::F32, recompute);
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
    MemoryStore::new(&Layout::new(checkpoint().config()), &Device::Cpu, DType::F32, true).unwrap()
}

fn disk(dir: &Path) -> DiskStore {
    DiskStore::new(&Layout::new(checkpoint().config()), dir, &Device::Cpu, DType::F32).unwrap()
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
    assert!(!work.exists(), "the files go with the store");
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
        let backprop = Backprop::new(store.layout(), &Device::Cpu, DType::F32, true);
        backprop.run(&mut store, &[MicroBatch::new(rows)]).unwrap()
    };
    let (one, two) = (loss(&rows[..1]), loss(&[rows[0].clone(), masked]));
    assert_eq!(one.targets, two.targets);
    assert!((one.loss / two.loss - 1.0).abs() < 1e-6);
    assert!((one.gradient_norm / two.gradient_norm - 1.0).abs() < 1e-5);
}
