//! `flm inspect` on directories: values, padding rows, masks, problems.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use flm_candle::read_tensor;
use flm_checkpoint::Checkpoint;
use flm_checkpoint::Dtype;
use flm_checkpoint::TeleFlmConfig;
use flm_checkpoint::Writer;
use flm_checkpoint::{EMBED_TOKENS, LM_HEAD, TensorSpec};
use flm_tests::{fixture, flm, flm_json};
use serde_json::{Value, json};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

/// The f32 fixture with these keys set and these tensors changed.
fn altered(dir: &Path, keys: &Value, change: impl Fn(&str, &mut Vec<f32>) -> Dtype) -> PathBuf {
    let src = Checkpoint::open(&fixture("models/teleflm-f32-st")).unwrap();
    let mut raw = src.config().raw().clone();
    raw.extend(keys.as_object().unwrap().clone());
    let config = TeleFlmConfig::from_json(&Value::Object(raw).to_string()).unwrap();
    let mut specs = Vec::new();
    let mut contents = Vec::new();
    for entry in src.entries() {
        let tensor = read_tensor(&src, &entry.name, &Device::Cpu).unwrap();
        let mut values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let dtype = change(&entry.name, &mut values);
        contents.push(match dtype {
            Dtype::BF16 => values.iter().flat_map(|&x| half(x)).collect::<Vec<u8>>(),
            _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        });
        specs.push(TensorSpec { name: entry.name.clone(), dtype, shape: entry.shape.clone() });
    }
    let writer = Writer::create(dir, &specs, u64::MAX).unwrap();
    for (spec, bytes) in specs.iter().zip(&contents) {
        writer.write_at(&spec.name, 0, bytes).unwrap();
    }
    writer.finish(&config).unwrap();
    dir.into()
}

/// The upper half of an f32: a bf16, rounded down.
fn half(x: f32) -> [u8; 2] {
    let [_, _, a, b] = x.to_le_bytes();
    [a, b]
}

fn f32s(_: &str, _: &mut Vec<f32>) -> Dtype {
    Dtype::F32
}

fn part<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["parts"].as_array().unwrap().iter().find(|p| p["name"] == name).unwrap()
}

#[test]
fn values_are_read_where_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let broken = altered(&dir.path().join("m"), &json!({}), |name, values| {
        if name == "model.layers.2.mlp.up_proj.weight" {
            let middle = values.len() / 2 + 7;
            values[middle] = f32::NAN;
            values[0] = f32::INFINITY;
        }
        Dtype::F32
    });
    let seen = flm_json(["inspect", text(&broken)]);
    assert!(seen.get("values").is_none());
    let out = flm(["inspect", text(&broken), "--values=all", "--tensors", "--json"]);
    assert_eq!(out.status.code(), Some(1));
    let seen: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(
        seen["problems"],
        json!(["model.layers.2.mlp.up_proj.weight: 1 NaN and 1 infinite of 11,008 values"])
    );
    let all = &seen["values"]["all"];
    assert_eq!((&all["count"], &all["nan"], &all["infinite"]), (&seen["parameters"], &1.into(), &1.into()));
    assert_eq!(seen["values"]["sample"], false);
    // Gains are 1 plus or minus a tenth.
    let norms = &part(&seen, "norms")["values"];
    assert!((norms["mean"].as_f64().unwrap() - 1.0).abs() < 0.02, "{norms}");
    assert!((norms["std"].as_f64().unwrap() - 0.1).abs() < 0.02, "{norms}");
    let src = Checkpoint::open(&broken).unwrap();
    for row in seen["tensor_list"].as_array().unwrap() {
        let tensor = read_tensor(&src, row["name"].as_str().unwrap(), &Device::Cpu).unwrap();
        if row["name"] != "model.layers.2.mlp.up_proj.weight" {
            let max = tensor.flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
            assert_eq!(row["values"]["max"].as_f64(), Some(f64::from(max)), "{row}");
        }
    }
    // A sample reads less: tensors here have up to 98 kB.
    let out = flm(["inspect", text(&broken), "--values", "--json"]);
    let seen: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(seen["values"]["all"]["count"].as_u64() < seen["parameters"].as_u64(), "{seen}");
    let shown = String::from_utf8(flm(["inspect", text(&broken), "--values=all"]).stdout).unwrap();
    assert!(shown.contains("1 NaN, 1 infinite"), "{shown}");
}

#[test]
fn padding_rows_are_told_apart_from_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = flm_candle::Tokenizer::from_json(&words(300)).unwrap();
    let first = tokenizer.len();
    let padded = altered(&dir.path().join("m"), &json!({}), |name, values| {
        match name {
            EMBED_TOKENS => values[first * 64..].fill(0.0),
            LM_HEAD => values[first * 64..].fill(0.5),
            _ => {}
        }
        Dtype::F32
    });
    std::fs::write(padded.join("tokenizer.json"), words(300)).unwrap();
    let seen = flm_json(["inspect", text(&padded), "--values=all"]);
    assert_eq!(seen["padding_rows"], 384 - first);
    assert_eq!(
        seen["values"]["padding"],
        json!([
            { "tensor": EMBED_TOKENS, "rows": 384 - first, "zero": 384 - first, "equal": true },
            { "tensor": LM_HEAD, "rows": 384 - first, "zero": 0, "equal": true },
        ])
    );
    let shown = String::from_utf8(flm(["inspect", text(&padded), "--values"]).stdout).unwrap();
    assert!(shown.contains("all zero") && shown.contains("all the same, not zero"), "{shown}");
}

#[test]
fn tokens_whose_rows_are_zero_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = altered(&dir.path().join("m"), &json!({}), |name, values| {
        if name == EMBED_TOKENS {
            // 64 wide: tokens 5 and 20 to 29, and padding
            for row in [5..6, 20..30, 310..384] {
                values[row.start * 64..row.end * 64].fill(0.0);
            }
        }
        Dtype::F32
    });
    std::fs::write(model.join("tokenizer.json"), words(300)).unwrap();
    let seen = flm_json(["inspect", text(&model), "--values=all"]);
    let first = [5, 20, 21, 22, 23, 24, 25, 26];
    assert_eq!(seen["values"]["zero_tokens"], json!({ "count": 11, "first": first }));
    let shown = String::from_utf8(flm(["inspect", text(&model), "--values=all"]).stdout).unwrap();
    assert!(shown.contains("11 tokens have rows of zeros") && shown.contains("ids 5, 20, 21"), "{shown}");
    // a sample does not look
    assert!(flm_json(["inspect", text(&model), "--values"])["values"].get("zero_tokens").is_none());
}

/// A tokenizer.json of so many words.
fn words(count: usize) -> Vec<u8> {
    let vocab: serde_json::Map<String, Value> = (0..count).map(|i| (format!("w{i}"), i.into())).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "w0" }
    })
    .to_string()
    .into_bytes()
}

#[test]
fn dtypes_are_told_by_part_and_masks_as_they_stand() {
    let dir = tempfile::tempdir().unwrap();
    let growth = json!({
        "version": 1, "operator": "msg", "ffn": { "from": 100, "mask": 0.25 },
        "layers": { "new": [1, 3], "mask": 0.25 },
        "schedule": { "kind": "linear", "steps": 4000, "step": 1000 }
    });
    let mixed = altered(&dir.path().join("m"), &json!({ "growth": growth.clone() }), |name, _| {
        if name.contains(".mlp.") { Dtype::BF16 } else { Dtype::F32 }
    });
    let seen = flm_json(["inspect", text(&mixed)]);
    assert_eq!(part(&seen, "feed-forward")["dtypes"], json!({ "bf16": 12 }));
    assert_eq!(part(&seen, "attention")["dtypes"], json!({ "f32": 16 }));
    assert_eq!(part(&seen, "norms")["dtypes"], json!({ "f32": 9 }));
    assert_eq!(seen["growth"], growth);
    let shown = String::from_utf8(flm(["inspect", text(&mixed)]).stdout).unwrap();
    assert!(
        shown.contains("msg, ffn from 100 × 0.25, 2 new layers × 0.25, linear schedule, step 1000 of 4000"),
        "{shown}"
    );
    let plain = altered(&dir.path().join("p"), &json!({}), f32s);
    assert!(flm_json(["inspect", text(&plain)]).get("growth").is_none());
}

#[test]
fn missing_unexpected_and_duplicated_names_are_problems() {
    let dir = tempfile::tempdir().unwrap();
    let deeper = altered(&dir.path().join("m"), &json!({ "num_hidden_layers": 5 }), f32s);
    let out = flm(["inspect", text(&deeper), "--json"]);
    let seen: Value = serde_json::from_slice(&out.stdout).unwrap();
    let problems: Vec<&str> =
        seen["problems"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
    assert_eq!((out.status.code(), problems.len()), (Some(1), 9));
    assert!(
        problems.iter().all(|p| p.contains("model.layers.4.") && p.contains("is missing")),
        "{problems:?}"
    );

    let shallower = altered(&dir.path().join("s"), &json!({ "num_hidden_layers": 3 }), f32s);
    let out = flm(["inspect", text(&shallower)]);
    let shown = String::from_utf8(out.stdout).unwrap();
    assert!(shown.contains("9 problems") && shown.contains("does not have"), "{shown}");

    // The name of one gain becomes that of another of the same length.
    let path = shallower.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let (from, to) = (b"layers.0.input_layernorm", b"layers.1.input_layernorm");
    let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
    std::fs::write(&path, bytes).unwrap();
    let out = flm(["inspect", text(&shallower)]);
    let shown = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(shown.contains("model.layers.1.input_layernorm.weight stands twice"), "{shown}");
}

/// Tensors as candle sees them: the fixture is f32.
#[test]
fn the_fixture_is_what_these_tests_take_it_for() {
    let src = Checkpoint::open(&fixture("models/teleflm-f32-st")).unwrap();
    let embedding: Tensor = read_tensor(&src, EMBED_TOKENS, &Device::Cpu).unwrap();
    assert_eq!((embedding.dtype(), embedding.dims()), (DType::F32, &[384, 64][..]));
}

/// The f32 fixture with `prefix` before every name of its header.
fn wrapped(dir: &Path, prefix: &str) -> PathBuf {
    let src = fixture("models/teleflm-f32-st");
    std::fs::create_dir_all(dir).unwrap();
    std::fs::copy(src.join("config.json"), dir.join("config.json")).unwrap();
    let bytes = std::fs::read(src.join("model.safetensors")).unwrap();
    let (len, rest) = bytes.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(len.try_into().unwrap()) as usize);
    let header: serde_json::Map<String, Value> = serde_json::from_slice(header).unwrap();
    let named = |name: String| if name == "__metadata__" { name } else { format!("{prefix}{name}") };
    let header: serde_json::Map<String, Value> = header.into_iter().map(|(k, v)| (named(k), v)).collect();
    let header = Value::Object(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
    std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
    dir.into()
}

#[test]
fn names_behind_a_prefix_are_read_and_other_forms_of_weights_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, model) = (wrapped(&dir.path().join("plain"), ""), wrapped(&dir.path().join("m"), "module."));
    for name in ["model.safetensors.index.json", "pytorch_model.bin"] {
        std::fs::write(model.join(name), "older").unwrap();
    }
    let seen = flm_json(["inspect", text(&model)]);
    assert_eq!(
        (&seen["prefix"], &seen["tensors"]),
        (&json!("module."), &flm_json(["inspect", text(&plain)])["tensors"])
    );
    assert_eq!(seen["unread"], json!(["model.safetensors.index.json", "pytorch_model.bin"]));
    let shown = String::from_utf8(flm(["inspect", text(&model)]).stdout).unwrap();
    assert!(
        shown.contains("all begin with module., which is left out (so DistributedDataParallel saves"),
        "{shown}"
    );
    assert!(
        shown.contains("pytorch_model.bin: as in transformers, model.safetensors comes first"),
        "{shown}"
    );
    // the same weights, so the same bytes
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    assert!(flm(["convert", text(&plain), text(&a)]).status.success());
    assert!(flm(["convert", text(&model), text(&b)]).status.success());
    let weights = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
    assert!(weights(&a) == weights(&b));
}

#[test]
fn a_tokenizer_that_is_a_link_to_nowhere_is_a_problem() {
    let dir = tempfile::tempdir().unwrap();
    let model = wrapped(&dir.path().join("m"), "");
    std::os::unix::fs::symlink("blobs/gone", model.join("tokenizer.json")).unwrap();
    let out = flm(["inspect", text(&model)]);
    let shown = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.code() == Some(1) && shown.contains("a link to a file that is not there"), "{shown}");
}

#[test]
fn the_only_snapshot_of_a_cached_repository_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("models--o--r");
    wrapped(&root.join("snapshots/1"), "");
    assert!(
        flm_json(["inspect", text(&root)])["dir"].as_str().unwrap().ends_with("models--o--r/snapshots/1")
    );
    wrapped(&root.join("snapshots/2"), "");
    let out = flm(["inspect", text(&root)]);
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(
        out.status.code() == Some(1) && said.contains("snapshots/1, ") && said.contains("snapshots/2"),
        "{said}"
    );
}
