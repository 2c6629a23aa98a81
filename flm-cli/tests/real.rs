//! SmolLM2-135M-Instruct through every command: `scripts/test-real.sh` fetches it and runs this.

#![allow(clippy::unwrap_used)]
#![cfg(feature = "real-weights")]

use std::path::{Path, PathBuf};

use flm_tests::flm_json;
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

fn weights() -> PathBuf {
    let dir = std::env::var_os("FLM_REAL_WEIGHTS").expect("FLM_REAL_WEIGHTS is set by scripts/test-real.sh");
    PathBuf::from(dir).join("smollm2")
}

fn real(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/real").join(name)
}

/// Numbers of Hugging Face transformers for the same weights.
fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(real("smollm2.golden.json")).unwrap()).unwrap()
}

fn assert_close(got: &Value, expected: &Value, relative: f64, what: &str) {
    let (got, expected) = (got.as_f64().unwrap(), expected.as_f64().unwrap());
    assert!((got / expected - 1.0).abs() <= relative, "{what}: {got}, expected {expected}");
}

fn assert_perplexity(dir: &Path, what: &str) {
    let table = golden();
    let (_, expected) = table["perplexity"]
        .as_object()
        .unwrap()
        .iter()
        .find(|(key, _)| key.contains("first 16384 bytes"))
        .expect("the golden of the first 16384 bytes");
    let score = flm_json([
        "eval",
        "perplexity",
        text(dir),
        "--text",
        text(&real("english.txt")),
        "--max-bytes",
        "16384",
        "--context",
        "512",
    ]);
    for key in ["tokens", "scored"] {
        assert_eq!(score[key], expected[key], "{what}: {key}");
    }
    // the golden divides by all bytes; here, those of the eight windows' first tokens are left out
    let (bytes, all) = (score["bytes"].as_f64().unwrap(), expected["bytes"].as_f64().unwrap());
    assert!((all - 8.0 * 16.0..=all - 8.0).contains(&bytes), "{what}: {bytes} bytes");
    let bits = score["bits_per_byte"].as_f64().unwrap() * bytes / all;
    assert_close(&score["perplexity"], &expected["perplexity"], 1e-4, what);
    assert_close(&bits.into(), &expected["bits_per_byte"], 1e-4, what);
    assert_close(&score["nll"], &expected["nll_sum"], 1e-4, what);
}

fn assert_chats(dir: &Path, what: &str) {
    let golden = &golden()["chat_greedy"];
    let prompt = golden["user"].as_str().unwrap();
    let answer = flm_json(["generate", text(dir), "--chat", "--prompt", prompt, "--max-new-tokens", "64"]);
    assert_eq!(answer["prompt_tokens"], golden["prompt_tokens"], "{what}");
    assert_eq!(answer["ids"], golden["answer_ids"], "{what}");
    let expected = golden["answer"].as_str().unwrap().trim_end_matches("<|im_end|>");
    assert_eq!(answer["text"].as_str(), Some(expected), "{what}");
}

#[test]
fn real_weights_are_inspected_converted_grown_verified_and_chat() {
    let (source, dir) = (weights(), tempfile::tempdir().unwrap());
    let seen = flm_json(["inspect", text(&source)]);
    assert_eq!((&seen["parameters"], &seen["config"]["tied"]), (&134_515_008.into(), &true.into()));
    assert_eq!((&seen["tokenizer_size"], &seen["padding_rows"]), (&49_152.into(), &0.into()));

    let converted = dir.path().join("converted");
    flm_json(["convert", text(&source), text(&converted), "--max-shard-size", "100MB"]);
    assert_perplexity(&converted, "converted");
    assert_chats(&converted, "converted");

    let grown = dir.path().join("grown");
    let mut arguments = vec!["grow", text(&converted), text(&grown)];
    arguments.extend([
        "--hidden",
        "768",
        "--heads",
        "12",
        "--kv-heads",
        "4",
        "--ffn",
        "2048",
        "--layers",
        "36",
    ]);
    let report = flm_json(&arguments);
    assert_eq!(report["summary"]["target_parameters"].as_u64(), Some(264_297_216), "{report:#}");
    let same = flm_json([
        "verify",
        text(&converted),
        text(&grown),
        "--text",
        text(&real("english.txt")),
        "--no-noise-floor",
    ]);
    assert_eq!(same["passed"], true, "{same:#}");
    assert!(same["rel_l2"].as_f64().unwrap() <= 1e-5, "{same:#}");
    assert_eq!(same["argmax_agreement"].as_f64(), Some(1.0));
    assert_perplexity(&grown, "grown");
    assert_chats(&grown, "grown");
}
