//! What a training step asks of a GPU, counted by the software device (`scripts/test-cuda.sh`), and training there
//! against the CPU in every dtype and place.
//!
//! Numbers are upper bounds: what was counted when they were written. Who needs more must say why here.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device};
use flm_candle::open_gpu;
use flm_checkpoint::Checkpoint;
use flm_tests::device::{CALLS, counted, counts};
use flm_train::{
    AdamW, AdamWOptions, Backprop, DiskStore, InputPlace, Layout, MemoryStore, MicroBatch, Packed,
    ParameterStore, StochasticRounding, SweepOptions, load_weights,
};

/// Counts are of the whole process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Four blocks of width 64, two key/value heads, 384 tokens.
fn checkpoint() -> Checkpoint {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models/teleflm-gqa-f32-shst");
    Checkpoint::open(&path).unwrap()
}

/// Micro-batches of one row of two documents.
fn batches(rows: usize) -> Vec<MicroBatch> {
    let row = |row: usize| {
        let mut packed = Packed::default();
        for document in 0..2 {
            let ids: Vec<u32> = (0..10 + row + 3 * document)
                .map(|i| ((i * 37 + row * 101 + document * 17) % 380) as u32)
                .collect();
            packed.push(&ids, &vec![true; ids.len()]);
        }
        MicroBatch::new(&[packed])
    };
    (0..rows).map(row).collect()
}

/// Where parameters are.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Resident,
    Host,
    Disk,
}

fn store(
    layout: &Layout,
    place: Place,
    device: &Device,
    dtype: DType,
    dir: &Path,
) -> Box<dyn ParameterStore> {
    let mut store: Box<dyn ParameterStore> = match place {
        Place::Disk => Box::new(DiskStore::new(layout, dir, device, dtype).unwrap()),
        place => Box::new(MemoryStore::new(layout, device, dtype, place == Place::Resident).unwrap()),
    };
    load_weights(store.as_mut(), &checkpoint()).unwrap();
    store
}

/// Loss and gradients of a step, and the loss after its update.
fn step(store: &mut dyn ParameterStore, backprop: &Backprop, rows: usize) -> (f64, Vec<Vec<f32>>, f64) {
    let loss = backprop.run(store, &batches(rows)).unwrap().loss;
    let mut gradients = Vec::new();
    for unit in 0..store.layout().units().len() {
        let part = store.take_gradient(unit, 0).unwrap();
        gradients.extend(part.clone());
        store.put_gradient(unit, 0, part).unwrap();
    }
    let adamw =
        AdamW::new(AdamWOptions::default(), 1, 1e-3, 1.0).with_rounding(StochasticRounding::new(0, 0));
    store.update(&mut |parameter, slices| adamw.apply(parameter, slices)).unwrap();
    let after = backprop.loss(store, &batches(rows)).unwrap();
    (loss, gradients, after)
}

/// ‖a − b‖ / ‖b‖.
fn relative(a: &[f32], b: &[f32]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)))
        / norm(&mut b.iter().map(|b| f64::from(*b))).max(1e-30)
}

#[test]
fn a_step_equals_the_cpus_in_every_dtype_place_and_plan() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let plain = Layout::new(checkpoint().config());
    let bf16 = plain.clone().with_bf16_weights();
    let sweeps =
        |micro_batches, summed, recompute, inputs| SweepOptions { micro_batches, summed, recompute, inputs };
    let whole = SweepOptions::whole_step(true);
    let mut on_cpu = store(&plain, Place::Resident, &Device::Cpu, DType::F32, dir.path());
    let on_cpu = step(on_cpu.as_mut(), &Backprop::new(&plain, &Device::Cpu, DType::F32, true), 5);
    let gpu = open_gpu(0).unwrap();
    for (layout, dtype, bound, bound_after) in [
        (&plain, DType::F32, 1e-5, 1e-6),
        (&plain, DType::BF16, 6e-2, 2e-4),
        (&bf16, DType::BF16, 6e-2, 2e-4),
    ] {
        let mut first = None;
        for (place, options) in [
            (Place::Resident, whole),
            (Place::Resident, sweeps(2, 2, false, InputPlace::Device)),
            (Place::Host, sweeps(2, 1, true, InputPlace::Host)),
            (Place::Disk, sweeps(4, 2, true, InputPlace::Disk)),
        ] {
            let mut store = store(layout, place, &gpu, dtype, &dir.path().join("work"));
            let backprop = Backprop::new(layout, &gpu, dtype, true).with_sweeps(options, dir.path());
            let got = step(store.as_mut(), &backprop, 5);
            let worst = got.1.iter().zip(&on_cpu.1).map(|(a, b)| relative(a, b)).fold(0.0, f64::max);
            let what = format!("{dtype:?}, {place:?}, {options:?}");
            assert!((got.0 / on_cpu.0 - 1.0).abs() < bound / 10.0, "{what}: {} {}", got.0, on_cpu.0);
            assert!(worst < bound, "{what}: {worst:e}");
            assert!((got.2 / on_cpu.2 - 1.0).abs() < bound_after, "{what}: {} {}", got.2, on_cpu.2);
            // plans change no bit, on this device neither
            let first = first.get_or_insert(got.clone());
            assert!(got == *first, "{what} and the first plan");
        }
    }
}

#[test]
fn a_step_moves_weights_twice_and_a_gradient_once() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(checkpoint().config()).with_bf16_weights();
    let gpu = open_gpu(0).unwrap();
    let rows = batches(4);
    let before = counted(c"bytes live");
    for place in [Place::Resident, Place::Host] {
        let mut store = store(&layout, place, &gpu, DType::BF16, dir.path());
        let backprop = Backprop::new(&layout, &gpu, DType::BF16, true);
        let what = [c"bytes up", c"bytes down", c"bytes inside"];
        let [up, down, inside] = counts(what, || {
            backprop.run(store.as_mut(), &rows).unwrap();
        });
        let config = layout.config();
        let (mut once, mut twice, mut values) = (0, 0, 0);
        for unit in layout.units() {
            let bytes: i64 = unit.parameters.iter().map(|p| p.weight_bytes() as i64).sum();
            values += unit.len() as i64;
            if unit.parameters[0].name.contains(".layers.") { twice += bytes } else { once += bytes }
        }
        let weights = if place == Place::Resident { once + twice } else { once + 2 * twice };
        let embedding = (config.vocab_size * config.hidden_size) as i64;
        let gradients = (values - embedding) * 4;
        // ids, masks, angles, and dimensions and strides of operations on views
        assert!(up <= weights + 160_000, "{place:?}: {up} for {weights}");
        assert!(inside <= 230_000, "{place:?}: {inside}");
        // losses, and the residual stream's gradient for the rows of the embedding
        assert!(down <= gradients + 14_000, "{place:?}: {down} for {gradients}");
    }
    assert_eq!(counted(c"bytes live"), before);
}

#[test]
fn a_block_asks_for_this_much() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(checkpoint().config()).with_bf16_weights();
    let gpu = open_gpu(0).unwrap();
    let mut store = store(&layout, Place::Resident, &gpu, DType::BF16, dir.path());
    let backprop = Backprop::new(&layout, &gpu, DType::BF16, true);
    // the weights are there from the second step on
    backprop.run(store.as_mut(), &batches(1)).unwrap();
    let mut count = |rows| {
        counts(CALLS, || {
            backprop.run(store.as_mut(), &batches(rows)).unwrap();
        })
    };
    let (one, four) = (count(1), count(4));
    let blocks = 4;
    let more = std::array::from_fn::<_, 8, _>(|i| (four[i] - one[i]) / 3 / blocks);
    let bounds = [350, 36, 599, 95, 0, 0, 0, 123];
    assert!(more.iter().zip(bounds).all(|(got, bound)| *got <= bound), "{more:?}");
    // a copy a parameter for the step, and for a row its loss and its gradient by the embedding's rows
    let parameters = layout.parameters().count() as i64 - 1;
    assert!(one[4] <= parameters + 2 && four[4] - one[4] <= 3 * 2, "{one:?} {four:?}");
}

#[test]
fn nothing_of_a_step_in_f64_is_computed_in_less() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(checkpoint().config());
    let run = |device: &Device| {
        let mut store = store(&layout, Place::Resident, device, DType::F64, dir.path());
        step(store.as_mut(), &Backprop::new(&layout, device, DType::F64, true), 3)
    };
    let (cpu, gpu) = (run(&Device::Cpu), run(&open_gpu(0).unwrap()));
    assert!((gpu.0 / cpu.0 - 1.0).abs() < 1e-13, "{} {}", gpu.0, cpu.0);
    let names: Vec<String> = layout.parameters().map(|(_, _, p)| p.name.clone()).collect();
    for ((gpu, cpu), name) in gpu.1.iter().zip(&cpu.1).zip(&names) {
        // gradients leave the device in f32
        let error = relative(gpu, cpu);
        assert!(error < 1e-8, "{name}: {error:e}");
    }
}
