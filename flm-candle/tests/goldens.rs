//! The model against logits, hidden states and greedy text made by an independent program
//! (`tests/fixtures/models/teleflm_ref.py`, checked there against Hugging Face transformers and vLLM).

#![allow(clippy::unwrap_used)]

use std::{
    collections::HashMap,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device, Tensor};
use flm_candle::Path;
use flm_candle::{CausalLm, Residency};
use flm_candle::{Finish, GenerateOptions, generate};
use flm_checkpoint::Checkpoint;
use flm_tests::device::{device, to_cpu};

const PROMPTS: [&str; 5] = ["short", "single", "repeat", "rand64", "rand300"];

/// Checkpoint folders of `tests/fixtures/models` with the name of their goldens.
const CHECKPOINTS: [(&str, &str); 6] = [
    ("teleflm-f32-st", "teleflm-f32"),
    ("teleflm-bf16-shbin", "teleflm-bf16"),
    ("teleflm-gqa-f32-shst", "teleflm-gqa-f32"),
    ("teleflm-gqa-bf16-st", "teleflm-gqa-bf16"),
    ("teleflm-gqa-bf16-shbin", "teleflm-gqa-bf16"),
    ("teleflm-hd32-bf16-shbin", "teleflm-hd32-bf16"),
];

fn fixtures() -> PathBuf {
    FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models")
}

fn open(name: &str) -> Arc<Checkpoint> {
    Arc::new(Checkpoint::open(&fixtures().join(name)).expect(name))
}

fn goldens(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixtures().join(format!("{name}.golden.safetensors")), &Device::Cpu)
        .expect(name)
}

fn ids(tensor: &Tensor) -> Vec<u32> {
    tensor.to_dtype(DType::U32).unwrap().to_vec1().unwrap()
}

fn load(name: &str, dtype: DType, residency: Residency) -> CausalLm {
    CausalLm::load(&open(name), &device(), dtype, residency).expect(name)
}

/// Largest difference, as a fraction of the largest expected value.
fn relative(got: &Tensor, expected: &Tensor) -> f64 {
    let wide = |t: &Tensor| to_cpu(t).to_dtype(DType::F64).unwrap();
    let max = |t: Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
    max((wide(got) - wide(expected)).unwrap()) / max(wide(expected))
}

fn l2(a: &Tensor, b: &Tensor) -> f64 {
    let wide = |t: &Tensor| to_cpu(t).to_dtype(DType::F64).unwrap();
    let d = (wide(a) - wide(b)).unwrap();
    d.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
}

#[test]
fn f32_logits_and_hidden_states_equal_the_goldens() {
    for (name, golden) in CHECKPOINTS {
        let (model, golden) = (load(name, DType::F32, Residency::Resident), goldens(golden));
        for prompt in PROMPTS {
            let logits = model.logits(&ids(&golden[&format!("{prompt}.ids")])).unwrap();
            let error = relative(&logits, &golden[&format!("{prompt}.logits.f32")]);
            assert!(error < 1e-4, "{name} {prompt}: {error:e}");
        }
        let trace = model.trace(&ids(&golden["short.ids"])).unwrap();
        let error = relative(&trace.hidden, &golden["short.hidden.f32"]);
        assert!(error < 1e-4, "{name} hidden states: {error:e}");
    }
}

#[test]
fn bf16_logits_lie_within_bf16s_own_error_of_the_goldens() {
    for (name, golden) in CHECKPOINTS.into_iter().filter(|(_, golden)| golden.ends_with("bf16")) {
        let (model, golden) = (load(name, DType::BF16, Residency::Resident), goldens(golden));
        for prompt in PROMPTS {
            let logits = model.logits(&ids(&golden[&format!("{prompt}.ids")])).unwrap();
            let (exact, rounded) =
                (&golden[&format!("{prompt}.logits.f32")], &golden[&format!("{prompt}.logits.bf16")]);
            let own = l2(rounded, exact);
            let (to_bf16, to_f32) = (l2(&logits, rounded) / own, l2(&logits, exact) / own);
            assert!(to_bf16 < 1.0, "{name} {prompt}: {to_bf16} of bf16's own distance from the bf16 logits");
            assert!((0.9..1.1).contains(&to_f32), "{name} {prompt}: {to_f32} of it from the f32 logits");
        }
    }
}

#[test]
fn f64_logits_are_closer_than_f32s_rounding() {
    for (name, golden) in [("teleflm-f32-st", "teleflm-f32"), ("teleflm-gqa-bf16-st", "teleflm-gqa-bf16")] {
        let (model, golden) = (load(name, DType::F64, Residency::Resident), goldens(golden));
        let logits = model.logits(&ids(&golden["rand64.ids"])).unwrap();
        assert_eq!(logits.dtype(), DType::F64);
        let error = relative(&logits, &golden["rand64.logits.f32"]);
        assert!(error < 1e-5, "{name}: {error:e}");
    }
}

#[test]
fn greedy_text_equals_the_goldens() {
    for (name, golden) in CHECKPOINTS {
        let (model, golden) = (load(name, DType::F32, Residency::Resident), goldens(golden));
        let (prompt, expected) = (ids(&golden["short.ids"]), ids(&golden["short.greedy.f32"]));
        let options = GenerateOptions::greedy(expected.len() - prompt.len(), 384);
        let answers = generate(&model, std::slice::from_ref(&prompt), &options, |_, _| true).unwrap();
        assert_eq!([prompt, answers[0].ids.clone()].concat(), expected, "{name}");
        assert_eq!(answers[0].finish, Finish::Length);
    }
}

#[test]
fn streamed_logits_are_bit_equal_to_resident_ones() {
    for (name, dtype) in [
        ("teleflm-gqa-f32-shst", DType::F32),
        ("teleflm-bf16-shbin", DType::F32),
        ("teleflm-bf16-shbin", DType::BF16),
    ] {
        let (resident, streamed) =
            (load(name, dtype, Residency::Resident), load(name, dtype, Residency::Streamed));
        let tokens = [1, 5, 17, 300, 42, 7, 7, 9];
        let bits = |model: &CausalLm| model.logits(&tokens).unwrap().to_vec2::<f32>().unwrap();
        let expected = bits(&resident);
        assert_eq!(bits(&streamed), expected, "{name}");
        assert_eq!(bits(&streamed), expected, "{name}, second pass");
    }
}

#[test]
fn the_differentiable_path_equals_the_fused_one() {
    for (name, golden) in [("teleflm-f32-st", "teleflm-f32"), ("teleflm-gqa-f32-shst", "teleflm-gqa-f32")] {
        let tokens = ids(&goldens(golden)["rand64.ids"]);
        let fused = load(name, DType::F32, Residency::Resident).logits(&tokens).unwrap();
        let slow = load(name, DType::F32, Residency::Resident)
            .with_path(Path::Differentiable)
            .logits(&tokens)
            .unwrap();
        let error = relative(&slow, &fused);
        assert!(error < 1e-5, "{name}: {error:e}");
    }
}

#[test]
fn a_row_of_a_batch_does_not_depend_on_the_others() {
    for (name, vocabulary) in [("teleflm-gqa-f32-shst", 384), ("teleflm-f32-st", 300)] {
        let model = load(name, DType::F32, Residency::Resident);
        let prompts = vec![vec![1, 5, 17, 300, 42], vec![1], vec![1, 7, 7, 7, 7, 7, 7, 7, 7, 9, 11]];
        let options = GenerateOptions {
            temperature: 0.8,
            top_k: Some(50),
            top_p: Some(0.95),
            repetition_penalty: 1.1,
            ..GenerateOptions::greedy(12, vocabulary)
        };
        let together = generate(&model, &prompts, &options, |_, _| true).unwrap();
        for (i, prompt) in prompts.iter().enumerate() {
            let alone = GenerateOptions { seed: i as u64, ..options.clone() };
            let answer = generate(&model, std::slice::from_ref(prompt), &alone, |_, _| true).unwrap();
            assert_eq!(answer[0].ids, together[i].ids, "{name} row {i}");
            assert!(answer[0].ids.iter().all(|&id| (id as usize) < vocabulary));
        }
    }
}

#[test]
fn stopping_and_limits() {
    let model = load("teleflm-f32-st", DType::F32, Residency::Resident);
    let prompt = vec![vec![1, 5, 17, 300, 42]];
    let free =
        generate(&model, &prompt, &GenerateOptions::greedy(8, 384), |_, _| true).unwrap().remove(0).ids;
    let stop = GenerateOptions { stop_tokens: vec![free[2]], ..GenerateOptions::greedy(8, 384) };
    let stopped = generate(&model, &prompt, &stop, |_, _| true).unwrap().remove(0);
    let first = free.iter().position(|id| *id == free[2]).unwrap();
    assert_eq!((stopped.ids.as_slice(), stopped.finish), (&free[..=first], Finish::Stop));
    let cancelled =
        generate(&model, &prompt, &GenerateOptions::greedy(8, 384), |_, _| false).unwrap().remove(0);
    assert_eq!((cancelled.ids.len(), cancelled.finish), (1, Finish::Cancelled));
    let long = vec![vec![3; 510]];
    let context = generate(&model, &long, &GenerateOptions::greedy(8, 384), |_, _| true).unwrap().remove(0);
    assert_eq!((context.ids.len(), context.finish), (2, Finish::Context));
    let too_long = generate(&model, &[vec![3; 512]], &GenerateOptions::greedy(8, 384), |_, _| true);
    assert!(too_long.unwrap_err().to_string().contains("512 tokens"));
    for (options, says) in [
        (GenerateOptions { temperature: -1.0, ..GenerateOptions::greedy(1, 384) }, "temperature"),
        (GenerateOptions { top_p: Some(0.0), ..GenerateOptions::greedy(1, 384) }, "top-p"),
        (GenerateOptions { min_p: Some(1.5), ..GenerateOptions::greedy(1, 384) }, "min-p"),
        (GenerateOptions { repetition_penalty: 0.0, ..GenerateOptions::greedy(1, 384) }, "repetition"),
        (GenerateOptions::greedy(0, 384), "room"),
    ] {
        let error = generate(&model, &prompt, &options, |_, _| true).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    assert!(model.logits(&[384]).unwrap_err().to_string().contains("token id 384"));
    assert!(model.logits(&[]).is_err());
}

#[test]
fn negative_log_likelihood_is_that_of_the_golden_logits() {
    let (model, golden) = (load("teleflm-f32-st", DType::F32, Residency::Resident), goldens("teleflm-f32"));
    let tokens: Vec<u32> = ids(&golden["rand300.ids"]).into_iter().map(|id| id % 320).collect();
    let logits = model.logits(&tokens).unwrap().to_vec2::<f32>().unwrap();
    let nll = model.negative_log_likelihood(&tokens, 320).unwrap();
    assert_eq!(nll.len(), tokens.len() - 1);
    for (i, got) in nll.iter().enumerate() {
        let row: Vec<f64> = logits[i][..320].iter().map(|&x| f64::from(x)).collect();
        let expected = row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[tokens[i + 1] as usize];
        assert!((got - expected).abs() < 1e-4, "{i}: {got} {expected}");
    }
    assert!(model.negative_log_likelihood(&[1, 350], 320).is_err());
}
