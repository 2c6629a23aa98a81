//! A step in sweeps: every plan gives the same bytes, and holds and moves what it says.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use flm_checkpoint::{Checkpoint, TeleFlmConfig};
use flm_tests::device::device;
use flm_train::{
    AdamW, AdamWOptions, Array, Backprop, Choice, DiskStore, Estimate, InputPlace, Layout, Machine,
    MemoryStore, MicroBatch, Packed, ParameterStore, Place, Placement, StepShape, StepUsage, SweepOptions,
    clip_coefficient, load_weights,
};

const STEPS: u64 = 2;

fn checkpoint() -> Checkpoint {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models/teleflm-gqa-f32-shst");
    Checkpoint::open(&path).expect("the fixture")
}

/// `rows` micro-batches of one row each.
fn batches(rows: u64, step: u64) -> Vec<MicroBatch> {
    let row = |row: u64| {
        let mut packed = Packed::default();
        let len = 7 + (row * 5 + step) % 6;
        let ids: Vec<u32> =
            (0..len).map(|i| ((i * 37 + row * 101 + step * 53 + row * row * 7) % 380) as u32).collect();
        // one micro-batch has nothing to learn
        packed.push(&ids, &vec![row != 3; len as usize]);
        MicroBatch::new(&[packed])
    };
    (0..rows).map(row).collect()
}

/// Everything that training changes, and what the last step held and moved.
#[derive(Debug, PartialEq)]
struct Trained {
    losses: Vec<f64>,
    validation: f64,
    norms: Vec<Vec<f64>>,
    arrays: Vec<Vec<u32>>,
}

fn train(
    store: &mut dyn ParameterStore,
    options: SweepOptions,
    rows: u64,
    scratch: &Path,
) -> (Trained, StepUsage) {
    let layout = store.layout().clone();
    fill(store);
    let backprop = Backprop::new(&layout, &device(), DType::F32, true).with_sweeps(options, scratch);
    let (mut losses, mut norms, mut usage) = (Vec::new(), Vec::new(), StepUsage::default());
    for step in 0..STEPS {
        let got = backprop.run(store, &batches(rows, step)).unwrap();
        let adamw = AdamW::new(
            AdamWOptions::default(),
            step + 1,
            1e-2,
            clip_coefficient(got.gradient_norm, Some(1.0)),
        );
        store.update(&mut |parameter, slices| adamw.apply(parameter, slices)).unwrap();
        losses.push(got.loss);
        norms.push(got.unit_norms);
        usage = got.usage;
    }
    let validation = backprop.loss(store, &batches(rows, 9)).unwrap();
    let mut arrays = Vec::new();
    for array in [Array::Weights, Array::ExpAvg, Array::ExpAvgSq] {
        for (unit, parameter, p) in layout.parameters() {
            let mut values = vec![0.0; p.len()];
            store.read(Place { unit, parameter, array }, 0, &mut values).unwrap();
            arrays.push(values.into_iter().map(f32::to_bits).collect());
        }
    }
    (Trained { losses, validation, norms, arrays }, usage)
}

/// The fixture's weights where the model has them, so that a tied model is filled too.
fn fill(store: &mut dyn ParameterStore) {
    if !store.layout().config().tie_word_embeddings {
        return load_weights(store, &checkpoint()).unwrap();
    }
    let source = checkpoint();
    for (unit, parameter, p) in store.layout().clone().parameters() {
        let tensor =
            flm_candle::read_tensor(&source, &p.name, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        store.write(Place { unit, parameter, array: Array::Weights }, 0, &values).unwrap();
    }
}

fn config(tied: bool) -> TeleFlmConfig {
    let mut config = checkpoint().config().clone();
    config.tie_word_embeddings = tied;
    config
}

fn options(micro_batches: usize, recompute: bool, inputs: InputPlace) -> SweepOptions {
    SweepOptions { micro_batches, summed: 2, recompute, inputs }
}

#[test]
fn sweep_size_store_recompute_and_where_inputs_wait_change_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    // 7 and 11 are no powers of two: the last sweep is shorter
    for (tied, rows) in [(false, 11), (true, 7)] {
        let layout = Layout::new(&config(tied));
        let memory = || MemoryStore::new(&layout, &device(), DType::F32, true).unwrap();
        let whole = SweepOptions::whole_step(true);
        let (expected, _) = train(&mut memory(), whole, rows, dir.path());
        assert!(expected.losses[1] < expected.losses[0], "{:?}", expected.losses);
        for micro_batches in [1, 2, 4, 8] {
            for (recompute, inputs) in [
                (false, InputPlace::Device),
                (true, InputPlace::Device),
                (true, InputPlace::Host),
                (true, InputPlace::Disk),
            ] {
                let options = options(micro_batches, recompute, inputs);
                let (got, usage) = train(&mut memory(), options, rows, dir.path());
                assert!(got == expected, "{options:?}, {rows} rows, tied: {tied}");
                assert_eq!(usage.sweeps, (rows as usize).div_ceil(micro_batches));
            }
            let options = options(micro_batches, true, InputPlace::Disk);
            let mut disk = DiskStore::new(&layout, &dir.path().join("work"), &device(), DType::F32).unwrap();
            let (got, _) = train(&mut disk, options, rows, dir.path());
            assert!(got == expected, "on disk: {options:?}, {rows} rows, tied: {tied}");
        }
    }
    assert_eq!(std::fs::read_dir(dir.path().join("work")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "files of block inputs have no name");
}

#[test]
fn gradients_of_a_sweep_are_held_as_the_binary_counter_says() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(&config(false));
    for (micro_batches, most) in [(1, 1), (2, 2), (4, 3), (8, 4), (16, 4)] {
        let mut store = MemoryStore::new(&layout, &device(), DType::F32, true).unwrap();
        let options = SweepOptions { summed: 1, ..options(micro_batches, true, InputPlace::Device) };
        let (_, usage) = train(&mut store, options, 15, dir.path());
        assert_eq!(usage.partial_sums, most, "{micro_batches}");
    }
}

#[test]
fn a_step_holds_and_moves_what_the_plan_says() {
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<MicroBatch> = (0..11u32)
        .map(|row| {
            let mut packed = Packed::default();
            packed.push(&(0..8).map(|i| (i * 37 + row * 101) % 380).collect::<Vec<_>>(), &[true; 8]);
            MicroBatch::new(&[packed])
        })
        .collect();
    let shape = StepShape { rows: 11, micro_rows: 1, context: 8 };
    for tied in [false, true] {
        let layout = Layout::new(&config(tied));
        for micro_batches in [1, 2, 4, 8, 16] {
            for (recompute, inputs) in [(false, InputPlace::Device), (true, InputPlace::Disk)] {
                let sweeps = SweepOptions { micro_batches, summed: 2.min(micro_batches), recompute, inputs };
                let mut store = MemoryStore::new(&layout, &device(), DType::F32, true).unwrap();
                fill(&mut store);
                let backprop =
                    Backprop::new(&layout, &device(), DType::F32, true).with_sweeps(sweeps, dir.path());
                let usage = backprop.run(&mut store, &rows).unwrap().usage;
                let choice = Choice { placement: Placement::Resident, sweeps };
                let plan = Estimate::new(&layout, &Machine::cpu(u64::MAX), choice, shape);
                assert_eq!(usage.kept_inputs, plan.kept_inputs, "{sweeps:?}");
                assert_eq!(usage.weights_in, plan.weights_in, "{sweeps:?}");
                assert_eq!(usage.gradients_out, plan.gradients_out, "{sweeps:?}");
                let tokens = 11 * 8 * layout.config().hidden_size as u64 * 4;
                let moved = if recompute { tokens * layout.config().num_hidden_layers as u64 } else { 0 };
                assert_eq!(usage.moved_inputs, 2 * moved, "{sweeps:?}");
                assert_eq!(plan.traffic.disk_read + plan.traffic.disk_written, 2 * moved, "{sweeps:?}");
            }
        }
    }
}
