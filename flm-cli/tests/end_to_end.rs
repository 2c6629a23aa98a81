//! The binary on small checkpoints: what each command prints, writes and returns.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use flm_tests::{fixture, flm, flm_json};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

fn golden(name: &str, key: &str) -> Tensor {
    let path = fixture("models").join(format!("{name}.golden.safetensors"));
    candle_core::safetensors::load(path, &Device::Cpu).expect(name).remove(key).expect(key)
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn demo_passes_every_step() {
    let dir = tempfile::tempdir().unwrap();
    let demo = dir.path().join("demo");
    // other tests have the other core
    let report = flm_json(["demo", "--dir", text(&demo), "--threads", "1"]);
    assert_eq!(report["passed"], true, "{report:#}");
    let steps: Vec<&str> =
        report["steps"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    let kinds = "unpack inspect convert distance grow verify grow verify eval sft eval report";
    assert_eq!(steps.join(" "), kinds);
    // what it leaves behind can be used by every command
    let seen = flm_json(["inspect", text(&demo.join("nano-1t"))]);
    assert_eq!(seen["parameters"], 39_077_520);
    let config = std::fs::read(demo.join("nano-1t/config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!((&config["output_mult"], &config["mup_scale_factor"]), (&2.0.into(), &80.0.into()));
    // tuning made the answers better, question by question
    let judgments = |run: &str| demo.join("results").join(run).join("judgments.jsonl");
    let (before, after) = (judgments("before"), judgments("after"));
    let questions = demo.join("questions.jsonl");
    let after = flm_json([
        "eval",
        "score",
        text(&after),
        "--questions",
        text(&questions),
        "--baseline",
        text(&before),
    ]);
    assert_eq!((&after["ledger"]["rows"], &after["ledger"]["parsed"]), (&60.into(), &60.into()));
    let comparison = &after["baseline"]["comparison"];
    assert_eq!(comparison["questions"], 60);
    assert!(comparison["intervals"]["overall"][0].as_f64().unwrap() > 0.0, "{comparison:#}");
    let page = std::fs::read_to_string(demo.join("report.html")).unwrap();
    assert!(page.contains("nano-102b after SFT") && page.contains("nano-102b before SFT"));
    // a second demo in its place leaves nothing of the first
    let listed = |dir: &Path| {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect::<std::collections::BTreeSet<_>>()
    };
    let fresh = dir.path().join("fresh");
    for dir in [&demo, &fresh] {
        flm_json(["demo", "--dir", text(dir), "--until", "inspect"]);
    }
    assert_eq!(listed(&demo), listed(&fresh));
}

#[test]
fn demo_replaces_a_demo_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let demo = dir.path().join("demo");
    for _ in 0..2 {
        let report = flm_json(["demo", "--dir", text(&demo), "--until", "inspect"]);
        assert_eq!(report["steps"].as_array().unwrap().len(), 2);
        assert!(!demo.join("nano-52b/stray").exists());
        std::fs::create_dir_all(demo.join("nano-52b")).unwrap();
        std::fs::write(demo.join("nano-52b/stray"), "").unwrap();
        std::fs::write(demo.join("mine"), "").unwrap();
    }
    assert!(demo.join("mine").exists(), "what no demo has made stays");
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("kept"), "").unwrap();
    let refused = flm(["demo", "--dir", text(&other), "--until", "inspect"]);
    assert_eq!(refused.status.code(), Some(1), "another directory is left alone");
    assert!(other.join("kept").exists());
    // two demos do not share a directory
    let lock = std::fs::File::open(demo.join(".flm-demo.lock")).unwrap();
    lock.try_lock().unwrap();
    let second = flm(["demo", "--dir", text(&demo), "--until", "inspect"]);
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(second.status.code() == Some(1) && said.contains("in use"), "{said}");
    assert!(demo.join("nano-52b-pytorch/config.json").exists(), "nothing is cleared meanwhile");
    drop(lock);
    // a demo that ended before it had made anything is no obstacle
    let begun = dir.path().join("begun");
    std::fs::create_dir(&begun).unwrap();
    std::fs::write(begun.join(".flm-demo.lock"), "").unwrap();
    assert!(flm(["demo", "--dir", text(&begun), "--until", "unpack"]).status.success());
    // what is asked is not what was taught
    let lines = |name: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(demo.join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let taught: Vec<Value> =
        lines("instructions.jsonl").into_iter().map(|s| s["messages"][0]["content"].clone()).collect();
    let asked = lines("questions.jsonl");
    assert_eq!((taught.len(), asked.len()), (200, 60));
    assert!(asked.iter().all(|q| !taught.contains(&q["question"])));
    let categories: std::collections::HashSet<&str> =
        asked.iter().filter_map(|q| q["category"].as_str()).collect();
    assert_eq!(categories.len(), 8);
}

#[test]
fn inspect_shows_shape_and_problems() {
    let seen = flm_json(["inspect", text(&fixture("models/teleflm-gqa-bf16-shbin"))]);
    assert_eq!(seen["format"], "sharded pytorch");
    assert_eq!((&seen["parameters"], &seen["files"]), (&230_976.into(), &4.into()));
    assert_eq!(seen["config"]["kv_heads"], 2);
    assert_eq!(seen["problems"].as_array().map(Vec::len), Some(0));

    let dir = tempfile::tempdir().unwrap();
    for file in ["model.safetensors", "config.json"] {
        std::fs::copy(fixture("models/teleflm-f32-st").join(file), dir.path().join(file)).unwrap();
    }
    let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    std::fs::write(
        dir.path().join("config.json"),
        config.replace("\"intermediate_size\": 172", "\"intermediate_size\": 176"),
    )
    .unwrap();
    let out = flm(["inspect", text(dir.path())]);
    assert_eq!(out.status.code(), Some(1));
    let shown = String::from_utf8(out.stdout).unwrap();
    assert!(
        shown.contains("problems:") && shown.contains("[172, 64]") && shown.contains("[176, 64]"),
        "{shown}"
    );
}

#[test]
fn logits_of_every_storage_form_are_the_goldens() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("logits.safetensors");
    for (checkpoint, name, stream) in [
        ("teleflm-f32-st", "teleflm-f32", false),
        ("teleflm-gqa-f32-shst", "teleflm-gqa-f32", true),
        ("teleflm-bf16-shbin", "teleflm-bf16", false),
        ("teleflm-gqa-bf16-shbin", "teleflm-gqa-bf16", true),
    ] {
        let source = fixture("models").join(checkpoint);
        let mut arguments = vec![
            "logits",
            text(&source),
            "--ids",
            "1,5,17,300,42",
            "--dtype",
            "f32",
            "--hidden",
            "--out",
            text(&out),
        ];
        arguments.extend(stream.then_some("--stream"));
        let summary = flm_json(&arguments);
        assert_eq!((&summary["tokens"], &summary["vocab"]), (&5.into(), &384.into()));
        let tensors = candle_core::safetensors::load(&out, &Device::Cpu).unwrap();
        let expected = golden(name, "short.logits.f32");
        let scale = expected.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(largest_difference(&tensors["logits"], &expected) < 1e-4 * scale, "{checkpoint}");
        assert!(
            largest_difference(&tensors["hidden"], &golden(name, "short.hidden.f32")) < 1e-3,
            "{checkpoint}"
        );
    }
}

#[test]
fn a_dry_run_of_convert_refuses_what_convert_refuses() {
    let (source, dir) = (fixture("models/teleflm-f32-st"), tempfile::tempdir().unwrap());
    std::fs::copy(source.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let config = std::fs::read_to_string(source.join("config.json")).unwrap();
    // another declared dtype is what convert mends; another shape is not
    for (from, to, accepted) in [
        ("\"float32\"", "\"bfloat16\"", true),
        ("\"intermediate_size\": 172", "\"intermediate_size\": 176", false),
    ] {
        assert!(config.contains(from));
        std::fs::write(dir.path().join("config.json"), config.replace(from, to)).unwrap();
        let out = dir.path().with_extension(if accepted { "good" } else { "bad" });
        for arguments in [vec!["--dry-run"], vec![]] {
            let run = flm(["convert", text(dir.path()), text(&out)].into_iter().chain(arguments));
            assert_eq!(run.status.success(), accepted, "{to}: {}", String::from_utf8_lossy(&run.stderr));
        }
        assert_eq!(out.exists(), accepted);
        if accepted {
            assert!(std::fs::read_to_string(out.join("config.json")).unwrap().contains("float32"));
            std::fs::remove_dir_all(&out).unwrap();
        }
    }
}

#[test]
fn convert_keeps_bits_and_changes_dtype_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let source = fixture("models/teleflm-gqa-bf16-shbin");
    let (plain, wide) = (dir.path().join("plain"), dir.path().join("wide"));
    let planned = flm_json(["convert", text(&source), text(&plain), "--dry-run"]);
    assert_eq!((&planned["dry_run"], planned["bytes_written"].as_u64()), (&true.into(), Some(461_952)));
    assert!(!plain.exists(), "a dry run writes nothing");
    let done = flm_json(["convert", text(&source), text(&plain), "--max-shard-size", "100KB"]);
    assert!(done["files"].as_u64() > Some(3), "{done}");
    flm_json(["convert", text(&plain), text(&wide), "--dtype", "f32"]);
    let seen = flm_json(["inspect", text(&wide)]);
    assert_eq!(seen["dtypes"]["f32"].as_u64(), Some(2 * 461_952));
    let same = flm_json(["verify", text(&source), text(&wide), "--ids", "1,2,3,4", "--no-noise-floor"]);
    assert_eq!((same["passed"].as_bool(), same["max_abs"].as_f64()), (Some(true), Some(0.0)), "{same}");
    let again = flm(["convert", text(&source), text(&plain)]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("exists"));
}

/// A nano checkpoint as PyTorch shards.
fn nano(dir: &Path) -> PathBuf {
    flm_json(["demo", "--dir", text(&dir.join("demo")), "--until", "unpack"]);
    dir.join("demo/nano-52b-pytorch")
}

#[test]
fn grow_keeps_the_function_with_multipliers_changed_and_verify_sees_damage() {
    let dir = tempfile::tempdir().unwrap();
    let source = nano(dir.path());
    let grown = dir.path().join("grown");
    let sizes = ["--hidden", "128", "--heads", "6", "--ffn", "320", "--layers", "19", "--vocab", "4096"];
    let mut arguments =
        vec!["grow", text(&source), text(&grown), "--mup", "1.5/64", "--input-mult", "2", "--seed", "7"];
    arguments.extend(sizes);
    let report = flm_json(&arguments);
    assert_eq!(report["to"]["hidden_size"], 128);
    let same = flm_json(["verify", text(&source), text(&grown)]);
    assert_eq!(same["passed"], true, "{same:#}");
    assert!(same["rel_l2"].as_f64().unwrap() <= 1e-5 && same["argmax_agreement"].as_f64() == Some(1.0));
    assert!(same["kl_mean"].as_f64().unwrap() < 1e-9);

    // the eps rule undone: the function is another
    let path = grown.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["rms_norm_eps"] = 1e-3.into();
    std::fs::write(&path, config.to_string()).unwrap();
    let out = flm(["verify", text(&source), text(&grown), "--json"]);
    assert_eq!(out.status.code(), Some(1));
    let different: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(different["passed"], false);
    assert!(different["rel_l2"].as_f64().unwrap() > 1e-4, "{different:#}");
}

/// A block, embedding and head of `config.json` in `dir`, in bytes of bf16.
fn part_bytes(dir: &Path) -> (u64, u64) {
    let seen = flm_json(["inspect", text(dir)]);
    let of = |name: &str| {
        let parts = seen["parts"].as_array().unwrap();
        2 * parts.iter().find(|p| p["name"] == name).unwrap()["parameters"].as_u64().unwrap()
    };
    let layers = seen["config"]["layers"].as_u64().unwrap();
    ((of("attention") + of("feed-forward")) / layers, of("embedding") + of("head"))
}

#[test]
#[cfg(target_os = "linux")]
fn a_streamed_model_holds_two_blocks_and_gives_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let (source, large) = (nano(dir.path()), dir.path().join("large"));
    let sizes = ["--hidden", "1024", "--heads", "8", "--ffn", "3072", "--layers", "20"];
    flm_json(["grow", text(&source), text(&large)].into_iter().chain(sizes));
    let run = |checkpoint: &Path, stream: bool| {
        let out = dir.path().join(if stream { "streamed" } else { "resident" });
        let mut arguments = vec!["logits", text(checkpoint), "--ids", "1,5,17,300,42", "--out", text(&out)];
        arguments.extend(stream.then_some("--stream"));
        let summary = flm_json(&arguments);
        (std::fs::read(&out).unwrap(), summary["peak_memory_bytes"].as_u64().unwrap())
    };
    // what the program takes for itself, measured on a model of almost nothing
    let (_, base) = run(&fixture("models/teleflm-f32-st"), true);
    let ((resident, all), (streamed, peak)) = (run(&large, false), run(&large, true));
    assert_eq!(streamed, resident, "streamed and resident logits");
    let (block, ends) = part_bytes(&large);
    assert!(all > base + 20 * block + ends, "a resident model holds all blocks: {all}");
    let bound = base + 2 * block + ends;
    // working memory, less than another block
    let slack = 16 << 20;
    assert!(
        slack < block && peak < bound + slack,
        "streamed: {peak}, two blocks, embedding and head: {bound}"
    );
}

#[test]
fn grow_plans_the_terabyte_step_from_configs_alone() {
    let report = flm_json(["grow", "--from-config", "tele-flm-102b", "--to", "tele-flm-1t", "--dry-run"]);
    assert_eq!(report["summary"]["target_parameters"].as_u64(), Some(1_083_813_908_480));
    assert_eq!(report["new_layers"].as_array().map(Vec::len), Some(60));
    let refused = flm(["grow", "--from-config", "tele-flm-1t", "--to", "tele-flm-52b", "--dry-run"]);
    assert_eq!(refused.status.code(), Some(1));
}

#[test]
fn generate_prints_ids_and_text_commands_ask_for_a_tokenizer() {
    let source = fixture("models/teleflm-f32-st");
    let answer = flm_json([
        "generate",
        text(&source),
        "--ids",
        "1,5,17,300,42",
        "--max-new-tokens",
        "24",
        "--ignore-eos",
    ]);
    let expected = golden("teleflm-f32", "short.greedy.f32").to_vec1::<i64>().unwrap();
    let ids: Vec<i64> = answer["ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
    assert_eq!(ids, expected[5..]);
    let out = flm(["generate", text(&source), "--prompt", "hello"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("tokenizer.model"));
}
