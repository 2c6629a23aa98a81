//! Every family against logits and greedy tokens made by transformers (`tests/fixtures/families/make_families.py`).

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use flm_candle::{CausalLm, GenerateOptions, Path as ModelPath, Residency, Session, generate};
use flm_checkpoint::Checkpoint;
use flm_tests::device::{device, to_cpu};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/families").join(name)
}

/// Every folder of the fixtures.
fn families() -> Vec<String> {
    let entries = std::fs::read_dir(fixture("")).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.path().is_dir());
    let names: Vec<String> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert_eq!(names.len(), 31);
    names
}

fn goldens(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture(name).join("golden.safetensors"), &Device::Cpu).expect(name)
}

fn ids(tensor: &Tensor) -> Vec<u32> {
    tensor.to_dtype(DType::U32).unwrap().to_vec1().unwrap()
}

fn load(dir: &Path, dtype: DType, residency: Residency) -> CausalLm {
    let checkpoint = Arc::new(Checkpoint::open(dir).unwrap());
    CausalLm::load(&checkpoint, &device(), dtype, residency).unwrap()
}

/// Largest difference, as a fraction of the largest expected value.
fn relative(got: &Tensor, expected: &Tensor) -> f64 {
    let wide = |t: &Tensor| to_cpu(t).to_dtype(DType::F64).unwrap();
    let max = |t: Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
    max((wide(got) - wide(expected)).unwrap()) / max(wide(expected))
}

fn rms(a: &Tensor, b: &Tensor) -> f64 {
    let wide = |t: &Tensor| to_cpu(t).to_dtype(DType::F64).unwrap();
    let d = (wide(a) - wide(b)).unwrap();
    d.sqr().unwrap().mean_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
}

/// The checkpoint with the config.json that transformers 4 writes.
fn older(name: &str, dir: &Path) -> PathBuf {
    let copy = dir.join(name);
    std::fs::create_dir(&copy).unwrap();
    std::fs::copy(fixture(name).join("model.safetensors"), copy.join("model.safetensors")).unwrap();
    std::fs::copy(fixture(name).join("config-4.json"), copy.join("config.json")).unwrap();
    copy
}

#[test]
fn logits_equal_transformers_on_every_path_streamed_and_resident_from_both_forms_of_config() {
    let dir = tempfile::tempdir().unwrap();
    for name in &families() {
        let golden = goldens(name);
        let (ids, expected) = (ids(&golden["ids"]), &golden["logits"]);
        let model = load(&fixture(name), DType::F32, Residency::Resident);
        let logits = model.logits(&ids).unwrap();
        let error = relative(&logits, expected);
        assert!(error < 1e-5, "{name}: {error:e}");
        let equal = |other: CausalLm, what: &str| {
            let other = other.logits(&ids).unwrap();
            assert_eq!(other.to_vec2::<f32>().unwrap(), logits.to_vec2::<f32>().unwrap(), "{name} {what}");
        };
        equal(load(&fixture(name), DType::F32, Residency::Streamed), "streamed");
        equal(
            load(&older(name, dir.path()), DType::F32, Residency::Resident),
            "transformers 4's config.json",
        );
        let differentiable = model.with_path(ModelPath::Differentiable).logits(&ids).unwrap();
        assert!(relative(&differentiable, expected) < 1e-5, "{name} differentiable");
        let exact = load(&fixture(name), DType::F64, Residency::Resident).logits(&ids).unwrap();
        assert!(relative(&exact, expected) < 1e-5, "{name} in f64");
    }
}

#[test]
fn bf16_rounds_about_as_much_as_transformers() {
    for name in &families() {
        let golden = goldens(name);
        let logits =
            load(&fixture(name), DType::BF16, Residency::Resident).logits(&ids(&golden["ids"])).unwrap();
        let own = rms(&golden["logits_bf16"], &golden["logits"]);
        let ours = rms(&logits, &golden["logits"]);
        assert!(ours < 1.25 * own, "{name}: {ours:e}, transformers {own:e}");
    }
}

/// The rotary angles of all positions change where a text outgrows the original context, 32 tokens.
#[test]
fn a_text_that_grows_past_the_original_context_is_run_again() {
    let name = "phi3-longrope";
    let model = load(&fixture(name), DType::F32, Residency::Resident);
    let ids = ids(&goldens(name)["ids"]);
    let prompts = [ids[..29].to_vec(), ids[30..52].to_vec()];
    let greedy = |prompt: &[u32]| {
        let mut text = prompt.to_vec();
        for _ in 0..12 {
            let logits = model.logits(&text).unwrap();
            let last = logits.get(text.len() - 1).unwrap();
            text.push(last.argmax(0).unwrap().to_scalar::<u32>().unwrap());
        }
        text.split_off(prompt.len())
    };
    let options = GenerateOptions::greedy(12, 48);
    for prompt in &prompts {
        let answers = generate(&model, std::slice::from_ref(prompt), &options, |_, _| true).unwrap();
        assert_eq!(answers[0].ids, greedy(prompt));
    }
    let mut session = Session::new(&model);
    for prompt in &prompts {
        let answer = session.generate(prompt, &options, || false, |_| true).unwrap();
        assert_eq!(answer.ids, greedy(prompt));
    }
}

#[test]
fn greedy_tokens_equal_transformers() {
    for name in &families() {
        let golden = goldens(name);
        let model = load(&fixture(name), DType::F32, Residency::Resident);
        let prompt = ids(&golden["ids"])[..9].to_vec();
        let expected = ids(&golden["greedy"]);
        let options = GenerateOptions::greedy(expected.len(), 48);
        let answers = generate(&model, &[prompt], &options, |_, _| true).unwrap();
        assert_eq!(answers[0].ids, expected, "{name}");
    }
}
