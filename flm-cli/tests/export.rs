//! `flm export gguf`: what it prints, writes and refuses; the tensors are tested in flm-candle.

#![allow(clippy::unwrap_used)]

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use candle_core::quantized::gguf_file::Content;
use flm_checkpoint::TeleFlmConfig;
use flm_checkpoint::TensorSpec;
use flm_checkpoint::Writer;
use flm_checkpoint::preset;
use flm_tests::{fixture, flm, flm_json};
use serde_json::{Value, json};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

fn read(path: &Path) -> Content {
    Content::read(&mut File::open(path).unwrap()).unwrap()
}

/// A checkpoint of zeros with the released multipliers and these keys changed.
fn zeros(dir: &Path, keys: &Value) -> PathBuf {
    let mut raw = preset("nano-52b").unwrap().raw().clone();
    raw.extend(keys.as_object().unwrap().clone());
    let config = TeleFlmConfig::from_json(&Value::Object(raw).to_string()).unwrap();
    let specs: Vec<TensorSpec> = config
        .tensors()
        .map(|t| TensorSpec { name: t.name, dtype: flm_checkpoint::Dtype::BF16, shape: t.shape })
        .collect();
    let writer = Writer::create(dir, &specs, u64::MAX).unwrap();
    for spec in &specs {
        writer.skip(&spec.name, 0, spec.shape.iter().product::<usize>() as u64 * 2).unwrap();
    }
    writer.finish(&config).unwrap();
    dir.into()
}

fn error(arguments: &[&str]) -> String {
    let out = flm(arguments);
    assert_eq!(out.status.code(), Some(1), "{arguments:?}: {}", String::from_utf8_lossy(&out.stdout));
    String::from_utf8(out.stderr).unwrap()
}

#[test]
fn a_dry_run_says_what_the_run_does() {
    let dir = tempfile::tempdir().unwrap();
    let (src, dst) = (fixture("models/teleflm-gqa-bf16-shbin"), dir.path().join("new/tele-flm.gguf"));
    let arguments = ["export", "gguf", text(&src), text(&dst), "--no-tokenizer", "--dtype", "q8_0"];
    let mut planned = flm_json([&arguments[..], &["--dry-run"]].concat());
    assert!(!dst.parent().unwrap().exists());
    let mut done = flm_json(arguments);
    assert_eq!(std::fs::metadata(&dst).unwrap().len(), done["bytes"].as_u64().unwrap());
    assert_eq!((&planned["dry_run"], &done["dry_run"]), (&true.into(), &false.into()));
    for key in ["dry_run", "seconds", "peak_memory_bytes"] {
        for summary in [&mut planned, &mut done] {
            summary.as_object_mut().unwrap().remove(key).unwrap();
        }
    }
    assert_eq!(planned, done);
    assert_eq!(done["tensors"], 39);
    assert_eq!(
        done["foldings"],
        json!([{ "tensor": "output_norm.weight", "factor": 0.05, "rounding": "f32" }])
    );
    let dtypes: Vec<&String> = done["dtypes"].as_object().unwrap().keys().collect();
    assert_eq!(dtypes, ["bf16", "f32", "q8_0"]);
    let content = read(&dst);
    assert_eq!(content.tensor_infos.len(), 39);
    assert_eq!(content.metadata["general.name"].to_string().unwrap(), "teleflm-gqa-bf16-shbin");

    let again = error(&arguments);
    assert!(again.contains("exists: remove it or choose another name"), "{again}");
    let again = error(&[&arguments[..], &["--dry-run"]].concat());
    assert!(again.contains("exists"), "{again}");
    let left: Vec<_> = std::fs::read_dir(dst.parent().unwrap()).unwrap().collect();
    assert_eq!(left.len(), 1);
    let shown = String::from_utf8(
        flm([&arguments[..3], &[text(&dir.path().join("b")), "--no-tokenizer"]].concat()).stdout,
    )
    .unwrap();
    assert!(shown.contains("output_norm.weight takes × 0.05, rounded to f32"), "{shown}");
}

#[test]
fn the_tokenizer_is_asked_for_and_has_to_fit() {
    let dir = tempfile::tempdir().unwrap();
    let src = zeros(&dir.path().join("src"), &json!({}));
    let dst = dir.path().join("x.gguf");
    let missing = error(&["export", "gguf", text(&src), text(&dst)]);
    assert!(missing.contains("--no-tokenizer") && missing.contains("no tokenizer in"), "{missing}");

    std::fs::copy(fixture("spm/tokenizer_llama.model"), src.join("tokenizer.model")).unwrap();
    let config = json!({ "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true });
    std::fs::write(src.join("tokenizer_config.json"), config.to_string()).unwrap();
    std::fs::write(src.join("chat_template.jinja"), "{{ messages }}").unwrap();
    let done = flm_json(["export", "gguf", text(&src), text(&dst)]);
    let tokens = done["tokenizer"]["tokens"].as_u64().unwrap() as usize;
    assert_eq!(
        (&done["tokenizer"]["model"], &done["tokenizer"]["chat_template"]),
        (&"llama".into(), &true.into())
    );
    let note = format!("{} rows of the vocabulary are padding", 4032 - tokens);
    assert!(
        done["notes"].as_array().unwrap().iter().any(|n| n.as_str().unwrap().starts_with(&note)),
        "{done:#}"
    );
    let content = read(&dst);
    assert_eq!(content.metadata["tokenizer.ggml.tokens"].to_vec().unwrap().len(), 4032);
    assert_eq!(content.metadata["tokenizer.chat_template"].to_string().unwrap(), "{{ messages }}");

    let small = zeros(&dir.path().join("small"), &json!({ "vocab_size": tokens - 1 }));
    std::fs::copy(fixture("spm/tokenizer_llama.model"), small.join("tokenizer.model")).unwrap();
    let wrong = error(&["export", "gguf", text(&small), text(&dir.path().join("y.gguf"))]);
    assert!(wrong.contains(&format!("{tokens} tokens")) && wrong.contains("different models"), "{wrong}");
}

#[test]
fn no_model_is_drawn_into_the_folder_that_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let src = zeros(&dir.path().join("src"), &json!({}));
    let files = || std::fs::read_dir(&src).unwrap().count();
    let before = files();
    let made = src.join("made");
    for init in [
        &["init", text(&src), text(&made)][..],
        &["init", "nano-52b", text(&made), "--tokenizer", text(&src)],
    ] {
        let said = error(init);
        assert!(said.contains("made is or lies inside the source"), "{said}");
    }
    assert_eq!(files(), before);
}

#[test]
fn what_cannot_be_expressed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let masks =
        json!({ "growth": { "version": 1, "operator": "msg", "hidden": { "from": 80, "mask": 0.5 } } });
    let src = zeros(&dir.path().join("growing"), &masks);
    let dst = dir.path().join("x.gguf");
    let refused = error(&["export", "gguf", text(&src), text(&dst), "--no-tokenizer", "--dry-run"]);
    assert!(refused.contains("flm fold"), "{refused}");
    let usage = flm(["export", "gguf", text(&src), text(&dst), "--dtype", "q9"]);
    assert_eq!(usage.status.code(), Some(2));
    assert!(String::from_utf8(usage.stderr).unwrap().contains("q8_0"));
    assert!(!dst.exists());
}
