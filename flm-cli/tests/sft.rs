//! `flm sft` from outside: exit status, messages, and runs that are killed.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use flm_checkpoint::Checkpoint;
use flm_checkpoint::TeleFlmConfig;
use flm_checkpoint::TensorSpec;
use flm_checkpoint::Writer;
use flm_checkpoint::preset;

/// A small model, samples and a recipe.
fn prepare(dir: &Path) {
    prepare_with(dir, |config| config.num_hidden_layers = 2);
}

fn prepare_with(dir: &Path, change: impl Fn(&mut TeleFlmConfig)) {
    let mut config = preset("nano-52b").unwrap();
    config.vocab_size = 2048;
    config.max_position_embeddings = 64;
    change(&mut config);
    config.set_raw("torch_dtype", "float32".into());
    let specs: Vec<TensorSpec> = config
        .tensors()
        .map(|t| TensorSpec { name: t.name, dtype: flm_checkpoint::Dtype::F32, shape: t.shape })
        .collect();
    let writer = Writer::create(&dir.join("model"), &specs, u64::MAX).unwrap();
    for (index, spec) in specs.iter().enumerate() {
        let len: usize = spec.shape.iter().product();
        let value = |i: usize| {
            let wave = ((i * 7919 + index * 104_729) as f32 * 0.37).sin();
            if spec.shape.len() == 1 { 1.0 + 0.1 * wave } else { 0.1 * wave }
        };
        let bytes: Vec<u8> = (0..len).flat_map(|i| value(i).to_le_bytes()).collect();
        writer.write_at(&spec.name, 0, &bytes).unwrap();
    }
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/spm/tokenizer.model");
    fs::copy(fixture, writer.staging_dir().join("tokenizer.model")).unwrap();
    writer.finish(&config).unwrap();
    let line = |i: usize| {
        format!(
            "{{\"instruction\":\"count to {i}\",\"output\":\"{}\"}}\n",
            "一二三四五六七".repeat(1 + i % 3)
        )
    };
    fs::write(dir.join("data.jsonl"), (0..24).map(line).collect::<String>()).unwrap();
    let recipe = "model = \"model\"\noutput = \"out\"\n[data]\nfiles = [\"data.jsonl\"]\nvalidation = 0.1\n\
                  [train]\nbatch_size = 4\nepochs = 6\n[optimizer]\nlearning_rate = 1e-3\n[save]\n\
                  every_steps = 3\ndtype = \"f32\"\n";
    fs::write(dir.join("recipe.toml"), recipe).unwrap();
}

fn flm(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flm"));
    command.arg("sft").arg(dir.join("recipe.toml")).args(arguments).args(flm_tests::on_device(&["sft"]));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(dir: &Path, arguments: &[&str]) -> Output {
    flm(dir, arguments).output().unwrap()
}

fn weights(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    checkpoint.entries().map(|e| (e.name.clone(), checkpoint.read(e).unwrap())).collect()
}

fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < Duration::from_secs(120), "{} did not appear", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// How often the run is killed: FLM_KILLS, or 6 times.
fn kills() -> u64 {
    std::env::var("FLM_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(6)
}

/// The last step in metrics.jsonl.
fn last_step(dir: &Path) -> u64 {
    let text = fs::read_to_string(dir.join("out/metrics.jsonl")).unwrap_or_default();
    let step = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["step"].as_u64();
    text.lines().filter_map(step).next_back().unwrap_or(0)
}

#[test]
fn a_run_killed_at_random_moments_ends_in_the_same_weights() {
    let (whole, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    prepare(whole.path());
    prepare(killed.path());
    let kills = kills();
    let arguments = ["--json", &format!("train.epochs={}", 2 * kills.max(6))];
    let finish = |dir: &Path| -> serde_json::Value {
        let out = run(dir, &arguments);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let start = Instant::now();
    let steps = finish(whole.path())["steps"].as_u64().unwrap();
    let step_time = start.elapsed() / steps as u32;
    // moments spread over the run: within a step, while a checkpoint is written, before the first one
    for kill in 0..kills {
        let mut child = flm(killed.path(), &arguments).spawn().unwrap();
        let (started, target) = (Instant::now(), steps * kill / (kills + 1));
        while last_step(killed.path()) < target {
            assert!(started.elapsed() < Duration::from_secs(120), "step {target} did not come");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(step_time * (kill as u32 * 7 % 11) / 11);
        assert!(child.try_wait().unwrap().is_none(), "kill {kill}: the run had ended");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let summary = finish(killed.path());
    // a checkpoint comes every three steps: what was trained before the last kill is not trained again
    let resumed = summary["resumed_from"].as_u64().unwrap();
    assert!(resumed + 3 >= steps * (kills - 1) / (kills + 1), "{summary:#}");
    assert_eq!(weights(&whole.path().join("out/final")), weights(&killed.path().join("out/final")));
    let lines = |dir: &Path| {
        let text = fs::read_to_string(dir.join("out/metrics.jsonl")).unwrap();
        let loss = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].clone();
        text.lines().map(loss).collect::<Vec<_>>()
    };
    assert_eq!(lines(whole.path()), lines(killed.path()));
}

#[test]
fn an_interrupt_saves_and_exits_with_130() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let child = flm(dir.path(), &["train.epochs=100000"]).spawn().unwrap();
    wait_for(&dir.path().join("out/metrics.jsonl"));
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let out = child.wait_with_output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.status.code(), Some(130), "{stderr}");
    assert!(stdout.starts_with("stopped at step"), "{stdout}");
    let saved = PathBuf::from(stdout.lines().last().unwrap());
    assert!(saved.join("optimizer/model.safetensors").exists(), "{stdout}");
}

#[test]
fn a_run_is_drawn_on_a_page_and_for_tensorboard() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let out = run(dir.path(), &["train.max_steps=4", "train.peak_flops=1G"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let page = fs::read_to_string(dir.path().join("out/report.html")).unwrap();
    // loss twice, with its validation; rate, norm, tokens a second, memory, utilisation; no mask
    assert_eq!(page.matches("<polyline").count(), 7);
    for part in ["Model FLOP utilisation", "learning_rate = 0.001", "step 4"] {
        assert!(page.contains(part), "{part}");
    }
    let curves: Vec<_> = fs::read_dir(dir.path().join("out/tensorboard")).unwrap().collect();
    assert_eq!(curves.len(), 1);
    let curves = fs::read(curves[0].as_ref().unwrap().path()).unwrap();
    for tag in ["train/loss", "train/utilisation", "validation/loss"] {
        assert!(curves.windows(tag.len()).any(|part| part == tag.as_bytes()), "{tag}");
    }
}

#[test]
fn a_dry_run_writes_nothing_and_wrong_recipes_fail_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let out = run(dir.path(), &["--dry-run", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["data"]["samples"], 24);
    let plans = report["plans"].as_array().unwrap();
    assert_eq!(plans.iter().filter(|plan| plan["chosen"] == true).count(), 1);
    assert_eq!(plans.len(), 5, "graphs, block inputs in memory and on disk; parameters on disk with both");
    assert!(report["seconds"].as_f64().unwrap() > 0.0 && report["operations"].as_f64().unwrap() > 0.0);
    assert!(report["packing_efficiency"].as_f64().unwrap() > 0.5, "{report:#}");
    assert!(!dir.path().join("out").exists());
    let told = run(dir.path(), &["--dry-run", "--tokens-per-second", "10"]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains(", 10 tokens/s") && told.contains("% filled"), "{told}");
    assert!(told.contains("data in memory") && report["data_memory"].as_u64() > Some(0), "{told}");
    // what does not fit is never chosen, and how much it lacks is told
    for arguments in [&["--dry-run", "--memory-budget", "1MB"][..], &["--memory-budget", "1MB"]] {
        let small = run(dir.path(), arguments);
        let text = String::from_utf8_lossy(&small.stderr).into_owned();
        assert_eq!(small.status.code(), Some(1), "{text}");
        assert!(text.starts_with("error: no plan fits the memory that there is"), "{text}");
        assert_eq!(text.matches(" of host memory").count(), 5, "{text}");
    }
    assert!(!dir.path().join("out").exists());
    let wrong = run(dir.path(), &["train.epoch=1"]);
    assert_eq!(wrong.status.code(), Some(1));
    let text = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(text, "error: recipe: unknown key `train.epoch`; did you mean `train.epochs`?\n");
}

/// `flm sft --dry-run --from-config` of the 52B's recipe for a machine.
fn plan_52b(machine: &str) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flm"));
    command.args([
        "sft",
        "--dry-run",
        "--from-config",
        "tele-flm-52b",
        "--rows",
        "1024",
        "--context",
        "2048",
    ]);
    command.args(["--pcie", "50GB/s", "--disk", "6GB/s", "--peak-flops", "989T"]);
    command.args(machine.split(' ')).output().unwrap()
}

#[test]
fn the_52b_is_planned_without_weights_or_data_for_a_machine_that_is_not_here() {
    for (device, memory) in [("141GB", "1.5TB"), ("24GB", "256GB")] {
        let out = plan_52b(&format!("--device-memory {device} --memory {memory} --json"));
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let plan: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        let estimate = &plan["chosen"]["estimate"];
        let used = |tier: &str| estimate[tier]["total"].as_u64().unwrap();
        assert!(used("device") < plan["machine"]["device_memory"].as_u64().unwrap(), "{plan:#}");
        assert!(used("host") < plan["machine"]["memory"].as_u64().unwrap(), "{plan:#}");
        assert_eq!(plan["parameters"], 52_824_121_344u64);
        assert!(plan["seconds"].as_f64().unwrap() > estimate["seconds"]["step"].as_f64().unwrap());
        let text = plan_52b(&format!("--device-memory {device} --memory {memory}"));
        let text = String::from_utf8_lossy(&text.stdout).into_owned();
        for part in ["PCIe a step", "bound by", "GPU memory", "tokens/s", "chosen", "lacks", "of GPU memory"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    let out = plan_52b("--device-memory 8GB --memory 16GB");
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1));
    assert!(text.contains("no plan fits") && text.contains("of GPU memory"), "{text}");
    let wrong = plan_52b("--memory 16GB --disk-space 1TB/s");
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn a_model_four_times_the_budget_trains_from_disk_within_it() {
    let dir = tempfile::tempdir().unwrap();
    prepare_with(dir.path(), |config| {
        (config.hidden_size, config.intermediate_size, config.num_hidden_layers) = (384, 1024, 16);
        (config.num_attention_heads, config.num_key_value_heads, config.head_dim) = (6, 6, 64);
    });
    let arguments = ["--memory-budget", "115MB", "train.max_steps=2", "data.context_length=32", "--json"];
    let dry = run(dir.path(), &[&arguments[..], &["--dry-run"]].concat());
    let report: serde_json::Value = serde_json::from_slice(&dry.stdout).unwrap();
    assert!(report["parameters"].as_u64().unwrap() * 16 > 4 * 115_000_000);
    assert_eq!(report["placement"], "disk");
    let out = run(dir.path(), &arguments);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let result: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let peak = result["peak_memory"].as_u64().unwrap();
    assert!(peak < 115_000_000, "{peak}");
}

#[test]
fn every_plan_stays_within_the_memory_that_it_says_and_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    prepare_with(dir.path(), |config| {
        (config.hidden_size, config.intermediate_size, config.num_hidden_layers) = (128, 384, 24);
        (config.num_attention_heads, config.num_key_value_heads, config.head_dim) = (4, 4, 32);
        config.max_position_embeddings = 256;
    });
    let text: String = (0..800).map(|i| format!("{} ", i * i % 9973)).collect();
    fs::write(dir.path().join("data.jsonl"), format!("{{\"text\":\"{text}\"}}\n")).unwrap();
    let common = ["train.batch_size=8", "train.max_steps=1", "data.validation=0", "--json"];
    let dry = run(dir.path(), &[&common[..], &["--dry-run", "--tokens-per-second", "1"]].concat());
    let report: serde_json::Value = serde_json::from_slice(&dry.stdout).unwrap();
    let plans = report["plans"].as_array().unwrap();
    assert_eq!(plans.len(), 5);
    let mut finals = Vec::new();
    for (index, plan) in plans.iter().enumerate() {
        let predicted = plan["estimate"]["host"]["total"].as_u64().unwrap();
        let recompute = if plan["sweeps"]["recompute"] == true { "always" } else { "never" };
        let word = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let settings = [
            format!("output={}", dir.path().join(format!("out-{index}")).display()),
            format!("memory.placement={}", word(&plan["placement"])),
            format!("memory.inputs={}", word(&plan["sweeps"]["inputs"])),
            format!("memory.sweep_rows={}", plan["sweep_rows"]),
            format!("memory.recompute={recompute}"),
            format!("memory.budget={predicted}B"),
        ];
        let settings: Vec<&str> = settings.iter().map(String::as_str).chain(common).collect();
        let out = run(dir.path(), &settings);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let result: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        let peak = result["peak_memory"].as_u64().unwrap();
        assert!(peak <= predicted, "{peak}, predicted {predicted}: {settings:?}");
        finals.push(weights(&dir.path().join(format!("out-{index}/final"))));
    }
    assert!(finals.iter().all(|other| *other == finals[0]));
}

/// What `flm sft ARGUMENTS --print-recipe` prints.
fn printed(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flm"));
    let out = command.arg("sft").args(arguments).arg("--print-recipe").output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn the_recipe_in_the_repository_is_one() {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/tele-flm-sft.toml");
    let full = printed(&[recipe.to_str().unwrap()]);
    for line in ["learning_rate = 0.000027", "final_learning_rate = 0.000000001", "context_length = 2048"] {
        let (key, value) = line.split_once(" = ").unwrap();
        let shown = full.lines().find_map(|line| line.strip_prefix(&format!("{key} = "))).unwrap();
        assert_eq!(shown.parse::<f64>().unwrap(), value.parse::<f64>().unwrap(), "{key}");
    }
}

#[test]
fn a_model_a_file_and_a_place_for_the_result_are_enough() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (model, data, more) = (path("model"), path("data.jsonl"), path("more.jsonl"));
    fs::copy(&data, &more).unwrap();
    let out = |name: &str| path(name);
    let sft = |arguments: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_flm")).arg("sft").args(arguments).output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
    };
    let (a, b) = (out("a"), out("b"));
    let flags = ["--model", &model, "--output", &a, "--lr", "1e-3", "--epochs", "1", "--batch-size", "8"];
    let settings = ["--context", "32", "save.dtype=f32", "--data", &data, &more, "train.seed=3"];
    let (code, said) = sft(&[&flags[..], &settings].concat());
    assert_eq!(code, Some(0), "{said}");
    // the same as a recipe
    let recipe = printed(&[&flags[..], &settings].concat());
    for line in
        ["learning_rate = 0.001", "batch_size = 8", "seed = 3", "context_length = 32", "dtype = \"f32\""]
    {
        assert!(recipe.lines().any(|shown| shown == line), "{line}: {recipe}");
    }
    assert!(
        recipe.lines().any(|line| line.starts_with("files = [") && line.contains("more.jsonl")),
        "{recipe}"
    );
    fs::write(dir.path().join("printed.toml"), &recipe).unwrap();
    let (code, said) = sft(&[&path("printed.toml"), &format!("output={b}")]);
    assert_eq!(code, Some(0), "{said}");
    let (a, b) = (Path::new(&a).join("final"), Path::new(&b).join("final"));
    assert_eq!(weights(&a), weights(&b));
    // what is missing is named, and what has no place is refused
    let (code, said) = sft(&["--model", &model, "--data", &data]);
    assert_eq!(
        (code, said.as_str()),
        (Some(1), "error: recipe: there is no output: set it there, or give --output DIR\n")
    );
    assert_eq!(sft(&["lr=1"]).0, Some(1));
    assert_eq!(sft(&[]).0, Some(2));
    assert_eq!(sft(&["--dry-run", "--from-config", "nano-52b", "--memory", "1GB", "--lr", "1"]).0, Some(2));
}

#[test]
fn a_budget_is_a_number_of_bytes_or_a_size() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    for budget in ["300000000", "300000000B", "\"300MB\"", "3e8"] {
        let out = run(
            dir.path(),
            &["--dry-run", "--json", "--tokens-per-second", "1", &format!("memory.budget={budget}")],
        );
        let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(report["budget"], 300_000_000, "{budget}");
    }
}

#[test]
fn a_trained_model_has_a_card_of_its_own_under_the_terms_of_its_source() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let own = "---\nlicense: other\nlicense_name: example\ntags: [best]\n---\n# The best base model\n";
    fs::write(dir.path().join("model/README.md"), own).unwrap();
    fs::write(dir.path().join("model/NOTICE"), "terms").unwrap();
    let out = run(dir.path(), &["train.epochs=1"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let done = dir.path().join("out/final");
    let card = fs::read_to_string(done.join("README.md")).unwrap();
    assert!(
        card.starts_with("---\nlicense: other\nlicense_name: example\n") && !card.contains("best"),
        "{card}"
    );
    assert!(card.contains("# Trained from model\n") && card.contains(" updates with flm"), "{card}");
    assert_eq!(fs::read_to_string(done.join("NOTICE")).unwrap(), "terms");
    let verified = Command::new(env!("CARGO_BIN_EXE_flm")).arg("verify").arg(&done).output().unwrap();
    assert!(verified.status.success());
}

/// What earlier versions wrote is opened by this one, and what they began ends in the bytes that they end in.
#[test]
fn formats_of_earlier_versions_are_read() {
    let versions =
        std::fs::read_dir(flm_tests::files::fixture("formats")).unwrap().map(|entry| entry.unwrap().path());
    let versions: Vec<_> = versions.filter(|path| path.is_dir()).collect();
    assert!(!versions.is_empty());
    for version in versions {
        let dir = tempfile::tempdir().unwrap();
        let copied =
            std::process::Command::new("cp").arg("-r").arg(version.join(".")).arg(dir.path()).status();
        assert!(copied.unwrap().success());
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        for model in ["model", "masked", "run/step-00000002"] {
            assert_eq!(flm_tests::flm_json(["verify", &at(model)])["passed"], true, "{version:?} {model}");
        }
        // by its provenance, layer by layer
        let same = flm_tests::flm_json(["verify", &at("model"), &at("masked"), "--context", "16"]);
        assert!(same["passed"] == true && !same["layers"].as_array().unwrap().is_empty(), "{same:#}");
        flm_tests::flm_json(["fold", &at("masked"), &at("folded")]);
        flm_tests::flm_json([
            "sft",
            "--model",
            &at("model"),
            "--data",
            &at("data.jsonl"),
            "--output",
            &at("run"),
            "--batch-size",
            "2",
            "--context",
            "16",
            "--epochs",
            "2",
            "--lr",
            "1e-2",
            "train.max_steps=4",
            "save.every_steps=2",
            "save.keep=9",
            "save.dtype=f32",
        ]);
        // to the rounding of sums, whose order is the processor's
        let load = |name: &str| candle_core::safetensors::load(at(name), &candle_core::Device::Cpu).unwrap();
        let (ended, expected) = (load("run/final/model.safetensors"), load("final.safetensors"));
        assert_eq!(ended.len(), expected.len());
        for (name, tensor) in &expected {
            let off = (&ended[name] - tensor).unwrap().abs().unwrap().max_all().unwrap();
            assert!(off.to_scalar::<f32>().unwrap() < 1e-6, "{version:?} {name}: {off}");
        }

        // a state of a version that is not known yet
        let state = at("run/step-00000004/training_state.json");
        let newer = std::fs::read_to_string(&state).unwrap().replace("\"version\": 1", "\"version\": 2");
        std::fs::write(&state, newer).unwrap();
        std::fs::remove_dir_all(at("run/final")).unwrap();
        let out = flm_tests::flm([
            "sft",
            "--model",
            &at("model"),
            "--data",
            &at("data.jsonl"),
            "--output",
            &at("run"),
        ]);
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(told.contains("a newer flm wrote"), "{told}");
    }
}
