//! Conversion through the binary: its manifest, its comparison, other layouts, and runs that are killed.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use flm_checkpoint::Checkpoint;
use flm_checkpoint::Dtype;
use flm_checkpoint::TeleFlmConfig;
use flm_checkpoint::TensorSpec;
use flm_checkpoint::Writer;
use flm_checkpoint::preset;
use flm_tests::pytorch_writer::write_pytorch_checkpoint;
use flm_tests::{binary, fixture, flm, flm_json};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON")
}

/// nano-52b with some keys of its config changed.
fn config(changes: &[(&str, Value)]) -> TeleFlmConfig {
    let mut json = Value::Object(preset("nano-52b").unwrap().raw().clone());
    for (key, value) in changes {
        json[*key] = value.clone();
    }
    TeleFlmConfig::from_json(&json.to_string()).unwrap()
}

fn specs(config: &TeleFlmConfig, dtype: Dtype) -> Vec<TensorSpec> {
    config.tensors().map(|t| TensorSpec { name: t.name, dtype, shape: t.shape }).collect()
}

/// Weights of a plausible size, from a counter.
fn weights(dtype: Dtype, shape: &[usize], seed: &mut u64) -> Vec<u8> {
    let gain = shape.len() == 1;
    let mut next = || {
        *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let unit = (*seed >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        if gain { 1.0 + unit * 0.2 } else { unit * 0.3 }
    };
    let count = shape.iter().product();
    let values = (0..count).map(|_| next());
    match dtype {
        Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
        // the upper half of an f32
        _ => values.flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect(),
    }
}

fn pytorch(dir: &Path, config: &TeleFlmConfig, max_shard_size: u64) {
    let mut seed = 1;
    let tensors: Vec<_> = config.tensors().map(|t| (t.name, t.shape)).collect();
    write_pytorch_checkpoint(dir, &config.to_json(), &tensors, max_shard_size, |shape, bytes| {
        bytes.extend(weights(Dtype::BF16, shape, &mut seed));
    })
    .unwrap();
}

fn safetensors(dir: &Path, config: &TeleFlmConfig, dtype: Dtype) {
    let specs = specs(config, dtype);
    let writer = Writer::create(dir, &specs, u64::MAX).unwrap();
    let mut seed = 1;
    for spec in &specs {
        writer.write_at(&spec.name, 0, &weights(spec.dtype, &spec.shape, &mut seed)).unwrap();
    }
    writer.finish(config).unwrap();
}

fn tensors(dir: &Path) -> BTreeMap<String, (Dtype, Vec<u8>)> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    checkpoint.check().unwrap();
    checkpoint.entries().map(|e| (e.name.clone(), (e.dtype, checkpoint.read(e).unwrap()))).collect()
}

/// Flips a bit in the middle of a tensor.
fn damage(dir: &Path, tensor: &str) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let entry = checkpoint.entry(tensor).unwrap();
    let path = &checkpoint.files()[entry.file].path;
    let mut bytes = std::fs::read(path).unwrap();
    bytes[(entry.offset + entry.nbytes / 2) as usize] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn an_output_is_compared_with_its_source_and_with_its_digests() {
    let dir = tempfile::tempdir().unwrap();
    let source = fixture("models/teleflm-gqa-bf16-shbin");
    for dtype in [None, Some("f32")] {
        let out = dir.path().join(dtype.unwrap_or("same"));
        flm_json(
            ["convert", text(&source), text(&out)]
                .into_iter()
                .chain(dtype.iter().flat_map(|d| ["--dtype", d])),
        );
        let same = flm_json(["convert", "--verify", text(&source), text(&out)]);
        assert_eq!((&same["passed"], &same["tensors"]), (&true.into(), &39.into()));
        assert_eq!(flm_json(["verify", text(&out)])["passed"], true);
        let name = "model.layers.2.mlp.gate_proj.weight";
        damage(&out, name);
        let compared = flm(["convert", "--verify", text(&source), text(&out), "--json"]);
        assert_eq!(compared.status.code(), Some(1));
        let report: Value = serde_json::from_slice(&compared.stdout).unwrap();
        assert_eq!(report["differences"][0]["name"], name, "{report:#}");
        assert_eq!(report["differences"].as_array().map(Vec::len), Some(1));
        let checked = flm(["verify", text(&out)]);
        assert_eq!(checked.status.code(), Some(1));
        assert!(String::from_utf8(checked.stdout).unwrap().contains(&format!("tensor {name} is damaged")));
    }
    let out = flm(["convert", "--verify", "--dtype", "f32", text(&source), text(dir.path())]);
    assert_eq!(out.status.code(), Some(2));
}

fn convert_command(source: &Path, dst: &Path) -> Command {
    let mut command = Command::new(binary());
    command
        .args(["convert", text(source), text(dst), "--max-shard-size", "30MB", "--quiet"])
        .env("RAYON_NUM_THREADS", "2")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// All files; lock and journal, which go last, can outlive a kill just before.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    let named = files.map(|e| (e.file_name().into_string().unwrap(), e.path()));
    let shown = named.filter(|(name, _)| !name.starts_with('.'));
    shown.map(|(name, path)| (name, std::fs::read(path).unwrap())).collect()
}

#[test]
fn killed_runs_go_on_and_end_in_the_same_bytes() {
    let rounds = std::env::var("FLM_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(12u32);
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    pytorch(&source, &config(&[("intermediate_size", 22_000.into())]), 60_000_000);
    let whole = dir.path().join("whole");
    let start = Instant::now();
    assert!(convert_command(&source, &whole).status().unwrap().success());
    let duration = start.elapsed();
    let expected = contents(&whole);
    assert!(expected.len() > 5 && expected.values().map(Vec::len).sum::<usize>() > 150_000_000);
    let (mut resumed, mut kept) = (0, 0);
    for round in 0..rounds {
        let dst = dir.path().join("out");
        let staging = dir.path().join(".out.partial");
        let mut child = convert_command(&source, &dst).spawn().unwrap();
        // spread over the run, at odd places, every second time counted from when it writes
        let mut part = f64::from((round * 37 + 11) % 97) / 97.0;
        if round % 2 == 1 {
            part /= 2.0;
            while !staging.join(".journal.jsonl").is_file() && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        std::thread::sleep(Duration::from_secs_f64(duration.as_secs_f64() * part));
        child.kill().unwrap();
        child.wait().unwrap();
        if !dst.exists() {
            let begun = staging.join(".journal.jsonl").is_file();
            resumed += u32::from(begun);
            if begun && round % 4 == 0 {
                let out = flm(["convert", text(&source), text(&dst), "--dtype", "f32"]);
                let error = String::from_utf8(out.stderr).unwrap();
                assert!(error.contains("another dtype (as stored, now float32)"), "{error}");
            }
            let report = flm_json(["convert", text(&source), text(&dst), "--max-shard-size", "30MB"]);
            kept += u32::from(report["resumed_bytes"].as_u64().unwrap() > 0);
        }
        assert!(contents(&dst) == expected, "round {round}");
        assert!(!staging.exists());
        std::fs::remove_dir_all(&dst).unwrap();
    }
    println!("{rounds} kills, {resumed} while it wrote, {kept} with finished tensors");
    assert!(resumed > rounds / 4 && kept > 0, "{resumed} and {kept} of {rounds}");
}

/// Reading FLM_SPARSE_GB of holes, 4 by default, takes little memory and no disk.
#[test]
fn memory_and_disk_do_not_follow_the_size() {
    use std::os::unix::fs::MetadataExt;
    let gigabytes = std::env::var("FLM_SPARSE_GB").ok().and_then(|n| n.parse().ok()).unwrap_or(4u64);
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (dir.path().join("source"), dir.path().join("out"));
    let layers = gigabytes * 1_000_000_000 / (2 * (4 * 8192 * 8192 + 3 * 8192 * 21824)) + 1;
    let shape = [
        ("hidden_size", 8192.into()),
        ("intermediate_size", 21824.into()),
        ("num_hidden_layers", layers.into()),
    ];
    let config = config(&shape);
    let specs = specs(&config, Dtype::BF16);
    let writer = Writer::create(&source, &specs, 12_000_000_000).unwrap();
    let bytes = |s: &TensorSpec| s.shape.iter().product::<usize>() as u64 * 2;
    for spec in &specs {
        writer.skip(&spec.name, 0, bytes(spec)).unwrap();
    }
    writer.finish(&config).unwrap();
    let total: u64 = specs.iter().map(bytes).sum();
    let report = flm_json(["convert", text(&source), text(&out), "--allow-zero"]);
    let peak = report["peak_memory_bytes"].as_u64().unwrap();
    println!("{total} bytes: {peak} bytes of memory, {} s", report["seconds"]);
    assert_eq!((&report["hole_bytes"], &report["bytes_written"]), (&total.into(), &total.into()));
    assert!(total >= gigabytes * 1_000_000_000 && peak <= 300 << 20, "{peak}");
    let taken: u64 =
        std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().metadata().unwrap().blocks() * 512).sum();
    assert!(taken < 16 << 20, "{taken}");
}

fn logits(dir: &Path, ids: &str) -> Tensor {
    let out = dir.with_extension("logits");
    flm_json(["logits", text(dir), "--ids", ids, "--dtype", "f32", "--out", text(&out)]);
    candle_core::safetensors::load(&out, &Device::Cpu).unwrap().remove("logits").unwrap()
}

/// Largest difference against the largest value.
fn relative(a: &Tensor, b: &Tensor) -> f32 {
    let largest = |t: &Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    largest(&(a - b).unwrap()) / largest(b)
}

/// `input_mult` 2 and a logit scale of 3/4 in f32 and bf16, 1 and 0.05 in bf16 with grouped queries.
const FIXTURES: [(&str, &str); 4] = [
    ("teleflm-f32-st", "teleflm-f32"),
    ("teleflm-bf16-shbin", "teleflm-bf16"),
    ("teleflm-gqa-bf16-shbin", "teleflm-gqa-bf16"),
    ("teleflm-hd32-bf16-shbin", "teleflm-hd32-bf16"),
];

#[test]
fn llama_is_the_same_function_and_has_no_multipliers() {
    let dir = tempfile::tempdir().unwrap();
    for (checkpoint, golden) in FIXTURES {
        let (source, out) = (fixture("models").join(checkpoint), dir.path().join(checkpoint));
        let report = flm_json(["convert", text(&source), text(&out), "--layout", "llama"]);
        assert!(!report["folded"].as_array().unwrap().is_empty());
        let config = json(&out.join("config.json"));
        assert_eq!(
            (&config["model_type"], &config["architectures"][0]),
            (&"llama".into(), &"LlamaForCausalLM".into())
        );
        for key in ["use_mup", "input_mult", "output_mult", "mup_scale_factor", "auto_map"] {
            assert_eq!(config.get(key), None, "{key}");
        }
        let same = flm_json(["convert", "--verify", text(&source), text(&out)]);
        assert_eq!(same["passed"], true, "{checkpoint}: {same:#}");
        let copy = dir.path().join(format!("{checkpoint}-tele"));
        flm_json(["convert", text(&source), text(&copy)]);
        let before = logits(&copy, "1,5,17,300,42");
        let after = logits(&out, "1,5,17,300,42");
        assert!(relative(&after, &before) <= 1e-5, "{checkpoint}: {}", relative(&after, &before));
        // what transformers' LlamaForCausalLM computes from this conversion
        let path = fixture("models").join(format!("{golden}.llama.golden.safetensors"));
        let peer = candle_core::safetensors::load(path, &Device::Cpu).unwrap().remove("logits").unwrap();
        assert!(relative(&after, &peer) <= 1e-5, "{checkpoint}: {}", relative(&after, &peer));
    }
}

/// Keys of config.json and their values.
type Changes = Vec<(&'static str, Value)>;
/// Tensor, factor, dtype.
type Folded<'a> = (&'a str, f64, &'a str);

#[test]
fn factors_go_where_they_cost_least() {
    let dir = tempfile::tempdir().unwrap();
    let tied = ("tie_word_embeddings", Value::from(true));
    let (embed, norm, head) = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight");
    let pair = |input: f64, out: f64, scale: f64| {
        [("input_mult", input.into()), ("output_mult", out.into()), ("mup_scale_factor", scale.into())]
    };
    // tensor, factor, dtype; exact
    let cases: [(Changes, Vec<Folded<'_>>, bool); 5] = [
        (pair(1.0, 0.5, 16.0).into(), vec![(head, 1.0 / 32.0, "bfloat16")], true),
        (pair(4.0, 1.0, 8.0).into(), vec![(embed, 4.0, "bfloat16"), (head, 0.125, "bfloat16")], true),
        (pair(10.0, 3.0, 16.0).into(), vec![(embed, 10.0, "float32"), (norm, 3.0 / 16.0, "float32")], true),
        (
            [pair(2.0, 0.5, 16.0).to_vec(), vec![tied.clone()]].concat(),
            vec![(embed, 2.0, "bfloat16"), (norm, 1.0 / 64.0, "bfloat16")],
            true,
        ),
        (
            [pair(0.3, 0.5, 16.0).to_vec(), vec![tied]].concat(),
            vec![(embed, 0.3, "float32"), (norm, 1.0 / 32.0 / 0.3, "float32")],
            false,
        ),
    ];
    for (number, (changes, folded, exact)) in cases.into_iter().enumerate() {
        let source = dir.path().join(format!("{number}"));
        safetensors(&source, &config(&changes), Dtype::BF16);
        let llama = dir.path().join(format!("{number}-llama"));
        let report = flm_json(["convert", text(&source), text(&llama), "--layout", "llama"]);
        let got: Vec<Folded<'_>> = report["folded"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| {
                (f["tensor"].as_str().unwrap(), f["factor"].as_f64().unwrap(), f["dtype"].as_str().unwrap())
            })
            .collect();
        assert_eq!(got, folded, "{number}");
        let rounded: u64 =
            report["folded"].as_array().unwrap().iter().map(|f| f["rounded"].as_u64().unwrap()).sum();
        assert_eq!(rounded == 0, exact, "{number}: {report:#}");
        let same = flm_json(["verify", text(&source), text(&llama)]);
        assert!(same["passed"] == true && same["rel_l2"].as_f64().unwrap() <= 1e-5, "{number}: {same:#}");
        assert_eq!(flm_json(["convert", "--verify", text(&source), text(&llama)])["passed"], true);

        // and back: the same bits, in the source's dtype
        let raw = json(&source.join("config.json"));
        let mup = format!("{}/{}", raw["output_mult"], raw["mup_scale_factor"]);
        let input = raw["input_mult"].to_string();
        let back = dir.path().join(format!("{number}-back"));
        let layout = ["--layout", "tele-flm", "--mup", &mup, "--input-mult", &input, "--dtype", "bf16"];
        flm_json(["convert", text(&llama), text(&back)].into_iter().chain(layout));
        assert!(tensors(&back) == tensors(&source), "{number}");
        let (a, b) = (json(&back.join("config.json")), raw);
        for key in ["model_type", "use_mup", "input_mult", "output_mult", "mup_scale_factor", "rms_norm_eps"]
        {
            assert_eq!(a[key], b[key], "{key}");
        }
    }
}

#[test]
fn a_llama_becomes_a_neutral_tele_flm_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let llama = config(&[
        ("model_type", "llama".into()),
        ("use_mup", false.into()),
        ("torch_dtype", "float32".into()),
    ]);
    safetensors(&source, &llama, Dtype::F32);
    let out = dir.path().join("tele");
    flm_json(["convert", text(&source), text(&out), "--layout", "tele-flm"]);
    assert!(tensors(&out) == tensors(&source));
    let config = json(&out.join("config.json"));
    assert_eq!((&config["model_type"], &config["use_mup"]), (&"TeleFLM".into(), &true.into()));
    assert_eq!(flm_json(["verify", text(&source), text(&out)])["max_abs"], 0.0);
}

#[test]
fn what_cannot_be_written_as_another_layout_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |arguments: &[&str], expected: &str| {
        let out = flm(arguments);
        let error = String::from_utf8(out.stderr).unwrap();
        assert!(!out.status.success() && error.contains(expected), "{error}");
    };
    flm_json(["demo", "--dir", text(&dir.path().join("demo")), "--until", "convert"]);
    let (masked, x) = (dir.path().join("masked"), dir.path().join("x"));
    flm_json([
        "grow",
        text(&dir.path().join("demo/nano-52b")),
        text(&masked),
        "--to",
        "nano-102b",
        "--operator",
        "msg",
    ]);
    for dry in [true, false] {
        let mut arguments = vec!["convert", text(&masked), text(&x), "--layout", "llama"];
        arguments.extend(dry.then_some("--dry-run"));
        refused(&arguments, "run `flm fold` first");
    }
    let zero = dir.path().join("zero");
    safetensors(&zero, &config(&[("output_mult", 0.0.into())]), Dtype::BF16);
    refused(
        &["convert", text(&zero), text(&x), "--layout", "llama"],
        "output_mult / mup_scale_factor cannot go",
    );
    let llama: PathBuf = fixture("models/teleflm-f32-st");
    refused(&["convert", text(&llama), text(&x), "--layout", "llama", "--mup", "1/2"], "no multipliers");
    assert!(!x.exists());
}

#[test]
fn code_that_is_left_behind_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let map = serde_json::json!({"AutoConfig": "configuration_x.C", "AutoModelForCausalLM": "modeling_x.M"});
    let config = config(&[("auto_map", map)]);
    flm_growth::init(&config, &source, None, 1, Dtype::BF16, u64::MAX, &|_| ()).unwrap();
    // init writes no code either
    let mut raw = json(&source.join("config.json"));
    assert_eq!(raw.get("auto_map"), None);
    raw["auto_map"] = config.raw()["auto_map"].clone();
    std::fs::write(source.join("config.json"), raw.to_string()).unwrap();
    std::fs::remove_file(source.join("checksums.json")).unwrap();
    for (command, more) in [("convert", &[][..]), ("grow", &["--operator", "zero", "--ffn", "300"])] {
        let out = dir.path().join(command);
        let done = flm([&[command, text(&source), text(&out)], more].concat());
        let said = String::from_utf8(done.stderr).unwrap();
        assert!(done.status.success(), "{said}");
        assert_eq!(said.matches("auto_map").count(), 1, "{said}");
        assert!(said.contains("configuration_x.py, modeling_x.py"), "{said}");
        assert_eq!(json(&out.join("config.json")).get("auto_map"), None);
    }
}
