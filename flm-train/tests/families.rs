//! Loss and gradients of every family against transformers' (`tests/fixtures/families/make_families.py`).

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use flm_checkpoint::Checkpoint;
use flm_tests::device::device;
use flm_train::{Backprop, IGNORED, Layout, MemoryStore, MicroBatch, Packed, ParameterStore, load_weights};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/families").join(name)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The norm of a − b, and that of b.
fn norms(a: &[f32], b: &[f32]) -> (f64, f64) {
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (difference, norm(&mut b.iter().map(|b| f64::from(*b))))
}

#[test]
fn loss_and_every_gradient_equal_transformers() {
    let folders = std::fs::read_dir(fixture("")).unwrap().map(|entry| entry.unwrap());
    let folders = folders.filter(|entry| entry.path().is_dir());
    let names: Vec<String> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert_eq!(names.len(), 31);
    for name in &names {
        let golden: HashMap<String, Tensor> =
            candle_core::safetensors::load(fixture(name).join("golden.safetensors"), &Device::Cpu).unwrap();
        let ids: Vec<i64> = golden["ids"].to_vec1().unwrap();
        let labels = ids[1..].iter().map(|&id| id as i32).chain([IGNORED]).collect();
        let row =
            Packed { ids: ids.iter().map(|&id| id as u32).collect(), labels, starts: vec![0; ids.len()] };
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        let layout = Layout::new(checkpoint.config());
        for recompute in [true, false] {
            let mut store = MemoryStore::new(&layout, &device(), DType::F32, true).unwrap();
            load_weights(&mut store, &checkpoint).unwrap();
            let backprop = Backprop::new(&layout, &device(), DType::F32, recompute);
            let got = backprop.run(&mut store, &[MicroBatch::new(std::slice::from_ref(&row))]).unwrap();
            let loss = f64::from(values(&golden["loss"])[0]);
            assert!((got.loss / loss - 1.0).abs() < 1e-6, "{name}: {} for {loss}", got.loss);
            let mut compared = 0;
            for (unit, parameters) in layout.units().iter().enumerate() {
                let gradients = store.take_gradient(unit, 0).unwrap();
                for (parameter, gradient) in parameters.parameters.iter().zip(gradients) {
                    let expected = values(&golden[&format!("grad.{}", parameter.name)]);
                    let (difference, norm) = norms(&gradient, &expected);
                    // a bias of the keys moves all scores of a query alike: its gradient is rounding alone
                    // where positions do not turn it
                    assert!(difference < 1e-5 * norm.max(0.05), "{name} {}: {difference:e}", parameter.name);
                    compared += 1;
                }
            }
            assert_eq!(compared, golden.keys().filter(|key| key.starts_with("grad.")).count(), "{name}");
        }
    }
}
