//! The command on a GPU that is missing, too small or just large enough: the software device
//! (`scripts/test-cuda.sh`) is told to be so.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use flm_tests::{binary, fixture};

fn flm(arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut command = Command::new(binary());
    command.args(arguments).env("RAYON_NUM_THREADS", "2").envs(settings.iter().copied());
    command.output().unwrap()
}

fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// What a command says that fails.
fn refused(arguments: &[&str], settings: &[(&str, &str)]) -> String {
    let out = flm(arguments, settings);
    assert_eq!(out.status.code(), Some(1), "{arguments:?}: {}", stderr(&out));
    stderr(&out)
}

const MODEL: &str = "models/teleflm-f32-st";

fn generate<'a>(dir: &'a str, device: &'a str) -> [&'a str; 9] {
    ["generate", dir, "--ids", "1,5,17,300", "--max-new-tokens", "4", "--device", device, "--json"]
}

#[test]
fn a_gpu_that_is_not_there_is_said_to_be_so() {
    let dir = fixture(MODEL);
    let dir = dir.to_str().unwrap();
    let said = refused(&generate(dir, "cuda"), &[("SOFTCUDA_DEVICES", "0")]);
    assert!(said.contains("--device cuda: the driver knows no GPU"), "{said}");
    let said = refused(&generate(dir, "cuda:3"), &[]);
    assert!(said.contains("there is no GPU 3: the driver knows 1"), "{said}");
    let said = refused(&generate(dir, "cuda"), &[("SOFTCUDA_DRIVER", "none")]);
    assert!(said.contains("NVIDIA's driver does not answer"), "{said}");
    let said = refused(&generate(dir, "cuda"), &[("SOFTCUDA_KERNELS", "none")]);
    assert!(said.contains("build with CUDA_COMPUTE_CAP"), "{said}");
}

#[test]
fn a_full_gpu_is_a_sentence_and_streaming_fits_where_resident_does_not() {
    let dir = fixture(MODEL);
    let dir = dir.to_str().unwrap();
    // in f32 the model is 0.9 MB, without its blocks 0.2 MB
    let small = [("SOFTCUDA_MEMORY", "700K")];
    let arguments = [&generate(dir, "cuda")[..], &["--dtype", "f32"]].concat();
    let said = refused(&arguments, &small);
    assert!(said.contains("the GPU's memory is full") && said.contains("--stream"), "{said}");
    assert!(!said.contains("CUDA_ERROR"), "{said}");
    let streamed = flm(&[&arguments[..], &["--stream"]].concat(), &small);
    assert!(streamed.status.success(), "{}", stderr(&streamed));
    let resident = flm(&arguments, &[]);
    let ids = |out: &Output| serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap()["ids"].clone();
    assert_eq!(ids(&streamed), ids(&resident));
}

/// A recipe over the smallest model with a tokenizer.
fn recipe(dir: &Path) -> String {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/nano-52b");
    let line = |i: usize| {
        format!("{{\"instruction\":\"count to {i}\",\"output\":\"{}\"}}\n", "一二三四".repeat(1 + i % 3))
    };
    fs::write(dir.join("data.jsonl"), (0..8).map(line).collect::<String>()).unwrap();
    let text = format!(
        "model = {model:?}\noutput = \"out\"\n[data]\nfiles = [\"data.jsonl\"]\ncontext_length = 64\n\
         [train]\nbatch_size = 4\nmax_steps = 2\nmicro_batch_size = 1\n[save]\ndtype = \"f32\"\n"
    );
    fs::write(dir.join("recipe.toml"), text).unwrap();
    dir.join("recipe.toml").to_str().unwrap().to_owned()
}

#[test]
fn training_is_planned_by_the_memory_that_the_gpu_has() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path());
    let sft = ["sft", &recipe, "--device", "cuda", "--dtype", "f32", "--dry-run"];
    let said = refused(&sft, &[("SOFTCUDA_MEMORY", "500M")]);
    assert!(said.contains("no plan fits") && said.contains("of GPU memory"), "{said}");
}
