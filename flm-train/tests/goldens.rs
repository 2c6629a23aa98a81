//! Training against losses, gradients and AdamW steps made by PyTorch's autograd
//! (`tests/fixtures/train/train_golden.py`).

#![allow(clippy::unwrap_used)]

use std::{collections::HashMap, path::PathBuf};

use candle_core::{DType, Device, Tensor};
use flm_checkpoint::Checkpoint;
use flm_tests::device::{device, on_cpu};
use flm_train::Layout;
use flm_train::MemoryStore;
use flm_train::clip_coefficient;
use flm_train::{AdamW, AdamWOptions};
use flm_train::{Array, ParameterStore, Place, load_weights};
use flm_train::{Backprop, StepLoss};
use flm_train::{Decay, Schedule};
use flm_train::{IGNORED, MicroBatch, Packed};

/// Starting checkpoints with the goldens made from them: multi-head and grouped-query.
const CASES: [(&str, &str); 2] =
    [("teleflm-f32-st", "teleflm-f32-st"), ("teleflm-gqa-f32-shst", "teleflm-gqa-f32-st")];

const STEPS: u64 = 10;

type Goldens = HashMap<String, Tensor>;

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(path)
}

fn goldens(name: &str) -> Goldens {
    candle_core::safetensors::load(fixture(&format!("train/{name}.safetensors")), &Device::Cpu).expect(name)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn integers(tensor: &Tensor) -> Vec<i64> {
    tensor.to_vec1().unwrap()
}

/// The rows of a golden step.
fn rows(goldens: &Goldens, step: u64) -> Vec<Packed> {
    let part = |row: usize, what: &str| integers(&goldens[&format!("step{step}.row{row}.{what}")]);
    (0..2)
        .map(|row| {
            let positions = part(row, "positions");
            Packed {
                ids: part(row, "ids").into_iter().map(|id| id as u32).collect(),
                labels: part(row, "labels").into_iter().map(|label| label as i32).collect(),
                starts: positions.iter().enumerate().map(|(i, p)| (i as i64 - p) as u32).collect(),
            }
        })
        .collect()
}

/// Each document of a packed row as a row of its own.
fn unpacked(rows: &[Packed]) -> Vec<Packed> {
    let mut documents: Vec<Packed> = Vec::new();
    for row in rows {
        for i in 0..row.len() {
            if row.starts[i] as usize == i {
                documents.push(Packed::default());
            }
            let document = documents.last_mut().unwrap();
            document.ids.push(row.ids[i]);
            document.labels.push(row.labels[i]);
            document.starts.push(0);
        }
    }
    documents
}

fn store(name: &str) -> MemoryStore {
    let checkpoint = Checkpoint::open(&fixture(&format!("models/{name}"))).expect(name);
    let layout = Layout::new(checkpoint.config());
    let mut store = MemoryStore::new(&layout, &device(), DType::F32, true).unwrap();
    load_weights(&mut store, &checkpoint).unwrap();
    store
}

fn backprop(store: &dyn ParameterStore) -> Backprop {
    Backprop::new(store.layout(), &device(), DType::F32, true)
}

fn array(store: &dyn ParameterStore, name: &str, array: Array) -> Vec<f32> {
    let (unit, parameter, len) = store
        .layout()
        .parameters()
        .find_map(|(unit, index, p)| (p.name == name).then(|| (unit, index, p.len())))
        .expect(name);
    let mut values = vec![0.0; len];
    store.read(Place { unit, parameter, array }, 0, &mut values).unwrap();
    values
}

/// ‖a − b‖ / ‖b‖.
fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let sum = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = sum(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / sum(&mut b.iter().map(|b| f64::from(*b))).max(1e-30)
}

fn gradients(store: &mut dyn ParameterStore) -> HashMap<String, Vec<f32>> {
    let layout = store.layout().clone();
    let mut gradients = HashMap::new();
    for (unit, parameters) in layout.units().iter().enumerate() {
        let values = store.take_gradient(unit, 0).unwrap();
        gradients.extend(parameters.parameters.iter().map(|p| p.name.clone()).zip(values));
    }
    gradients
}

#[test]
fn loss_and_every_gradient_equal_the_goldens_packed_and_unpacked() {
    for (start, golden) in CASES {
        let golden = goldens(golden);
        let (loss, norm) = (values(&golden["losses"])[0], values(&golden["grad_norms"])[0]);
        let packed = rows(&golden, 0);
        let single =
            |rows: &[Packed]| rows.iter().map(|r| MicroBatch::new(std::slice::from_ref(r))).collect();
        let forms: [(&str, Vec<MicroBatch>); 4] = [
            ("one micro-batch", vec![MicroBatch::new(&packed)]),
            ("a micro-batch a row", single(&packed)),
            ("unpacked, padded", vec![MicroBatch::new(&unpacked(&packed))]),
            ("a micro-batch a document", single(&unpacked(&packed))),
        ];
        for (form, batches) in forms {
            for recompute in [true, false] {
                let mut store = store(start);
                let backprop = Backprop::new(store.layout(), &device(), DType::F32, recompute);
                let got = backprop.run(&mut store, &batches).unwrap();
                assert!((got.loss / f64::from(loss) - 1.0).abs() < 1e-6, "{start} {form}: {}", got.loss);
                assert!((got.gradient_norm / f64::from(norm) - 1.0).abs() < 1e-5, "{start} {form}");
                let gradients = gradients(&mut store);
                let names = golden.keys().filter_map(|key| key.strip_prefix("grad."));
                assert_eq!(names.clone().count(), gradients.len());
                for name in names {
                    let error = relative(&gradients[name], &values(&golden[&format!("grad.{name}")]));
                    assert!(error < 1e-5, "{start} {form} {name}: {error:e}");
                }
            }
        }
    }
}

/// Trains as the goldens did.
fn train(store: &mut dyn ParameterStore, golden: &Goldens, dtype: DType) -> Vec<StepLoss> {
    let backprop = Backprop::new(store.layout(), &device(), dtype, true);
    let schedule = Schedule { peak: 1e-3, last: 1e-5, warmup: 0, steps: STEPS, decay: Decay::Linear };
    let options = AdamWOptions { weight_decay: 0.1, ..AdamWOptions::default() };
    (0..STEPS)
        .map(|step| {
            let got = backprop.run(store, &[MicroBatch::new(&rows(golden, step))]).unwrap();
            let scale = clip_coefficient(got.gradient_norm, Some(1.0));
            let adamw = AdamW::new(options, step + 1, schedule.rate(step), scale);
            store.update(&mut |parameter, slices| adamw.apply(parameter, slices)).unwrap();
            got
        })
        .collect()
}

/// The largest relative difference of each array after ten steps, and the parameter that has it.
fn worst(store: &dyn ParameterStore, golden: &Goldens) -> [(f64, String); 3] {
    let arrays = [(Array::Weights, "final"), (Array::ExpAvg, "exp_avg"), (Array::ExpAvgSq, "exp_avg_sq")];
    arrays.map(|(which, prefix)| {
        let names = store.layout().parameters().map(|(_, _, p)| p.name.clone());
        let error = |name: String| {
            let expected = values(&golden[&format!("{prefix}.{name}")]);
            (relative(&array(store, &name, which), &expected), format!("{prefix}.{name}"))
        };
        names.map(error).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
    })
}

#[test]
fn ten_steps_of_adamw_equal_the_goldens() {
    for (start, name) in CASES {
        let golden = goldens(name);
        let mut store = store(start);
        let losses = train(&mut store, &golden, DType::F32);
        for (step, expected) in values(&golden["losses"]).into_iter().enumerate() {
            let error = (losses[step].loss / f64::from(expected) - 1.0).abs();
            assert!(error < 1e-5, "{start} step {step}: {error:e}");
        }
        // the goldens' own moments are up to 1.2e-5 from those of f64 arithmetic: two such errors add up; a GPU
        // sums one after the other what the CPU's products sum in lanes, and rounds more
        let bounds = if on_cpu() { [1e-5, 2e-5, 2e-5] } else { [2e-5, 5e-5, 5e-5] };
        for ((error, name), bound) in worst(&store, &golden).into_iter().zip(bounds) {
            assert!(error < bound, "{start} {name}: {error:e}");
        }
    }
}

#[test]
fn ten_steps_in_f64_equal_goldens_in_f64() {
    for (start, name) in CASES {
        let checkpoint = Checkpoint::open(&fixture(&format!("models/{start}"))).expect(start);
        let layout = Layout::new(checkpoint.config());
        let mut store = MemoryStore::new(&layout, &device(), DType::F64, true).unwrap();
        load_weights(&mut store, &checkpoint).unwrap();
        train(&mut store, &goldens(name), DType::F64);
        for (error, name) in worst(&store, &goldens(&format!("{name}.f64"))) {
            assert!(error < 1e-5, "{start} {name}: {error:e}");
        }
    }
}

#[test]
fn a_step_without_targets_has_no_loss_and_no_gradient() {
    let mut store = store("teleflm-f32-st");
    let row = Packed { ids: vec![1, 2, 3], labels: vec![IGNORED; 3], starts: vec![0; 3] };
    let got = backprop(&store).run(&mut store, &[MicroBatch::new(&[row])]).unwrap();
    assert_eq!((got.loss, got.targets, got.gradient_norm), (0.0, 0, 0.0));
}
