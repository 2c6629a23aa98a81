//! `flm sft` on a model that `flm grow --operator msg` made: masks rise, states carry them, runs go on.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use flm_tests::{binary, fixture, flm, flm_json};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

/// The bytes of the weights.
fn files(dir: &Path) -> Vec<u8> {
    fs::read(dir.join("model.safetensors")).unwrap()
}

/// A grown model with masks of 0 over six steps, samples, and a recipe of ten steps in `dir`.
fn prepare(dir: &Path) {
    let small = dir.join("small");
    fs::create_dir(&small).unwrap();
    for entry in fs::read_dir(fixture("models/teleflm-gqa-f32-shst")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, small.join(path.file_name().unwrap())).unwrap();
    }
    fs::copy(fixture("spm/tokenizer.model"), small.join("tokenizer.model")).unwrap();
    let shape = json(&small.join("config.json"));
    let size = |key: &str, factor: u64| (shape[key].as_u64().unwrap() * factor / 2).to_string();
    let report = flm_json([
        "grow",
        text(&small),
        text(&dir.join("grown")),
        "--operator=msg",
        "--mask-steps=6",
        &format!("--hidden={}", size("hidden_size", 3)),
        &format!("--heads={}", size("num_attention_heads", 4)),
        &format!("--ffn={}", size("intermediate_size", 3)),
        &format!("--layers={}", size("num_hidden_layers", 3)),
        "--vocab=2048",
    ]);
    assert_eq!(report["preservation"], "exact", "{report:#}");
    let line = |i: usize| {
        let answer = "一二三四五六七".repeat(1 + i % 2);
        format!("{{\"instruction\":\"count to {i}\",\"output\":\"{answer}\"}}\n")
    };
    fs::write(dir.join("data.jsonl"), (0..8).map(line).collect::<String>()).unwrap();
    let recipe = "model = \"grown\"\noutput = \"out\"\n[data]\nfiles = [\"data.jsonl\"]\npacking = false\n\
                  context_length = 40\n[train]\nbatch_size = 8\nepochs = 10\n[optimizer]\nlearning_rate = 1e-2\n\
                  final_learning_rate = 1e-3\nschedule = \"cosine\"\nwarmup_steps = 3\nrewind_step = 3\n\
                  [save]\nevery_steps = 1\nkeep = 100\ndtype = \"f32\"\n";
    fs::write(dir.join("recipe.toml"), recipe).unwrap();
}

#[test]
fn masks_rise_with_the_steps_and_go() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let recipe = dir.path().join("recipe.toml");
    let sft = |output: &str, changes: &[&str]| {
        let output = format!("output={}", text(&dir.path().join(output)));
        flm_json(["sft", text(&recipe), &output].into_iter().chain(changes.iter().copied()))
    };
    let done = sft("memory", &["memory.placement=resident"]);
    assert_eq!(done["step"], 10);
    let state = |name: &str, step: u64| dir.path().join(name).join(format!("step-{step:08}"));
    for step in 1..=10u64 {
        let growth = json(&state("memory", step).join("config.json"))["growth"].clone();
        if step >= 6 {
            assert_eq!(growth, Value::Null, "step {step}");
            continue;
        }
        for part in ["hidden", "heads", "ffn", "layers"] {
            assert_eq!(growth[part]["mask"].as_f64(), Some(step as f64 / 6.0), "{part} of step {step}");
        }
        assert_eq!(growth["schedule"]["step"], step);
    }
    assert_eq!(json(&dir.path().join("memory/final/config.json")).get("growth"), None);
    // the run began at the highest rate, as after a warm-up
    let metrics = fs::read_to_string(dir.path().join("memory/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let column = |key: &str| lines.iter().map(|l| l[key].as_f64().unwrap()).collect::<Vec<_>>();
    let (losses, rates) = (column("loss"), column("learning_rate"));
    assert!((rates[0] - 1e-2).abs() < 1e-12, "{rates:?}");
    assert!((rates[9] - 1e-3).abs() < 1e-12 && rates.windows(2).all(|w| w[0] > w[1]), "{rates:?}");
    assert!(losses[9] < 0.9 * losses[0], "{losses:?}");

    // a state is the model that was trained: its first loss under its own masks is the run's next
    let half = state("memory", 3);
    let model = format!("model={}", text(&half));
    let again = sft("from-3", &[&model, "train.max_steps=1", "train.epochs=1"]);
    let next = again["loss"].as_f64().unwrap();
    assert!((next / losses[3] - 1.0).abs() < 1e-6, "{next} beside {losses:?}");
    assert_eq!(json(&dir.path().join("from-3/final/config.json"))["growth"]["schedule"]["step"], 4);

    sft("disk", &["memory.placement=disk"]);
    assert_eq!(files(&dir.path().join("disk/final")), files(&dir.path().join("memory/final")));

    // killed three times
    for kill in 1..=3u64 {
        let output = format!("output={}", text(&dir.path().join("killed")));
        let mut child = Command::new(binary());
        child.args(["sft", text(&recipe), &output]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = child.env("RAYON_NUM_THREADS", "2").spawn().unwrap();
        while !state("killed", kill * 2).exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    sft("killed", &[]);
    for step in [5, 10] {
        assert_eq!(files(&state("killed", step)), files(&state("memory", step)), "step {step}");
        let config = |name| fs::read(state(name, step).join("config.json")).unwrap();
        assert_eq!(config("killed"), config("memory"));
    }
    assert_eq!(files(&dir.path().join("killed/final")), files(&dir.path().join("memory/final")));
}

#[test]
fn masks_off_their_schedule_are_refused_and_moments_are_kept_where_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let recipe = dir.path().join("recipe.toml");
    let failure = |changes: &[&str]| {
        let out = flm(["sft", text(&recipe)].into_iter().chain(changes.iter().copied()));
        assert_eq!(out.status.code(), Some(1));
        String::from_utf8(out.stderr).unwrap()
    };
    let error = failure(&["optimizer.moments=kept"]);
    assert!(error.contains("no optimizer/") && error.contains("--optimizer-state"), "{error}");
    let path = dir.path().join("grown/config.json");
    let mut config = json(&path);
    config["growth"]["ffn"]["mask"] = 0.5.into();
    fs::write(&path, config.to_string()).unwrap();
    let error = failure(&["--no-source-digests"]);
    assert!(error.contains("step 0 of 6") && error.contains("flm fold"), "{error}");

    // small → two steps → grown with its moments → one step: Adam's bias correction goes on from there
    let one = ["train.max_steps=2", "train.epochs=2"];
    let small = format!("model={}", text(&dir.path().join("vocab")));
    flm_json(["grow", text(&dir.path().join("small")), text(&dir.path().join("vocab")), "--vocab=2048"]);
    let out = format!("output={}", text(&dir.path().join("small-out")));
    flm_json(["sft", text(&recipe), &small, &out, one[0], one[1]]);
    let (state, wide) = (dir.path().join("small-out/step-00000002"), dir.path().join("wide"));
    let hidden = json(&state.join("config.json"))["hidden_size"].as_u64().unwrap() * 2;
    flm_json([
        "grow",
        text(&state),
        text(&wide),
        "--operator=msg",
        "--optimizer-state",
        &format!("--hidden={hidden}"),
    ]);
    let (model, out) = (format!("model={}", text(&wide)), dir.path().join("wide-out"));
    let output = format!("output={}", text(&out));
    flm_json(["sft", text(&recipe), &model, &output, "optimizer.moments=kept", one[0], one[1]]);
    let state = json(&out.join("step-00000002/training_state.json"));
    assert_eq!((&state["step"], &state["earlier_steps"]), (&2.into(), &2.into()));
    let error = failure(&[&model, &output, "optimizer.moments=zero", one[0], one[1]]);
    assert!(error.contains("differs in optimizer"), "{error}");
}
