//! Growth through the binary: masks, folds, stages, recipes, distances, and runs that are killed.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flm_tests::{binary, flm, flm_json};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

/// The demo's nano-52b as safetensors, with what the demo grew of it beside.
fn nano(dir: &Path) -> PathBuf {
    flm_json(["demo", "--dir", text(&dir.join("demo")), "--until", "verify"]);
    dir.join("demo/nano-52b")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON")
}

fn stderr_of_failure(arguments: &[&str]) -> String {
    let out = flm(arguments);
    assert_eq!(out.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(out.stderr).expect("UTF-8")
}

#[test]
fn masked_growth_is_exact_and_folds_at_every_mask() {
    let dir = tempfile::tempdir().unwrap();
    let source = nano(dir.path());
    let grown = dir.path().join("grown");
    // msg is the default
    let report = flm_json(["grow", text(&source), text(&grown), "--to", "nano-102b"]);
    assert_eq!(report["preservation"], "exact");
    let masks = &json(&grown.join("config.json"))["growth"];
    assert_eq!((masks["hidden"]["from"].as_u64(), masks["heads"]["kv_from"].as_u64()), (Some(96), Some(4)));
    assert_eq!(masks["layers"]["new"], report["new_layers"]);
    for dtype in ["f32", "bf16", "f64"] {
        let same = flm_json(["verify", text(&source), text(&grown), "--dtype", dtype]);
        assert_eq!(
            (same["passed"].as_bool(), same["max_abs"].as_f64()),
            (Some(true), Some(0.0)),
            "{dtype}: {same:#}"
        );
    }
    let again = stderr_of_failure(&["grow", text(&grown), text(&dir.path().join("x")), "--to", "nano-1t"]);
    assert!(again.contains("flm fold"), "{again}");
    assert!(
        stderr_of_failure(&["fold", text(&source), text(&dir.path().join("x"))])
            .contains("plain one already")
    );

    let path = grown.join("config.json");
    for mask in [0.0, 0.1, 0.5, 0.9, 1.0] {
        let mut config = json(&path);
        for part in ["hidden", "heads", "ffn", "layers"] {
            config["growth"][part]["mask"] = mask.into();
        }
        std::fs::write(&path, config.to_string()).unwrap();
        let folded = dir.path().join(format!("folded-{mask}"));
        // the masks were edited
        flm_json(["fold", text(&grown), text(&folded), "--dtype", "f32", "--no-source-digests"]);
        let same = flm_json(["verify", text(&grown), text(&folded)]);
        assert!(same["rel_l2"].as_f64().unwrap() <= 1e-5, "{mask}: {same:#}");
        assert_eq!(json(&folded.join("config.json")).get("growth"), None);
    }
}

#[test]
fn clones_with_noise_are_the_same_function() {
    let dir = tempfile::tempdir().unwrap();
    let source = nano(dir.path());
    let sizes = ["--hidden", "192", "--heads", "8", "--ffn", "512", "--noise", "0.1"];
    let grown = dir.path().join("grown");
    let grow = ["grow", text(&source), text(&grown), "--operator", "clone"];
    let report = flm_json(grow.into_iter().chain(sizes));
    assert_eq!(report["preservation"], "exact");
    let same = flm_json(["verify", text(&source), text(&grown)]);
    assert_eq!(same["passed"], true, "{same:#}");
    let recipe = dir.path().join("recipe.toml");
    let sizes = "operator = \"clone\"\nnoise = 0.1\nhidden = 192\nheads = 8\nffn = 512\n";
    std::fs::write(&recipe, format!("[[stage]]\n{sizes}")).unwrap();
    let again = dir.path().join("again");
    flm_json(["grow", text(&source), text(&again), "--recipe", text(&recipe)]);
    let tensors = |dir: &Path| json(&dir.join("checksums.json"))["tensors"].clone();
    assert_eq!(tensors(&again), tensors(&grown));
    let quiet = dir.path().join("quiet");
    flm_json(["grow", text(&source), text(&quiet), "--recipe", text(&recipe), "noise=0.0"]);
    assert_ne!(tensors(&quiet), tensors(&grown));
    let refused =
        ["grow", text(&source), "--dry-run", "--to", "nano-102b", "--operator", "zero", "--noise", "0.1"];
    assert!(stderr_of_failure(&refused).contains("noise is for `clone`"));
}

#[test]
fn layers_are_placed_by_measured_distances() {
    let dir = tempfile::tempdir().unwrap();
    let source = nano(dir.path());
    let (file, picture) = (dir.path().join("distance.json"), dir.path().join("distance.svg"));
    let distances = flm_json(["distance", text(&source), "--stream", "--picture", text(&picture)]);
    assert_eq!(
        (distances["layers"].as_array().map(Vec::len), distances["tokens"].as_u64()),
        (Some(16), Some(256))
    );
    assert!(std::fs::read_to_string(&picture).unwrap().contains("<polyline"));
    std::fs::write(&file, distances.to_string()).unwrap();
    let mut nearest: Vec<(f64, u64)> =
        (1..15).map(|i| (distances["layers"][i]["angular"].as_f64().unwrap(), i as u64)).collect();
    nearest.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut expected: Vec<u64> = nearest[..4].iter().map(|(_, layer)| *layer).collect();
    expected.sort_unstable();
    let list: Vec<String> = expected.iter().map(u64::to_string).collect();
    for place in ["distance".to_owned(), format!("distance:{}", text(&file))] {
        let plan = flm_json(["grow", text(&source), "--to", "nano-102b", "--place", &place, "--dry-run"]);
        assert_eq!(plan["placement"], format!("after:{}", list.join(",")), "{place}");
    }
}

#[test]
fn recipes_and_stages_end_in_the_same_function() {
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
    let dir = tempfile::tempdir().unwrap();
    let source = nano(dir.path());
    let recipe = recipes.join("nano-52b-to-1t.toml");
    let grown = dir.path().join("grown");
    let report = flm_json(["grow", text(&source), text(&grown), "seed=3", "--recipe", text(&recipe)]);
    assert_eq!(report["earlier_stages"][0]["to"]["num_hidden_layers"], 20);
    let config = json(&grown.join("config.json"));
    assert_eq!((&config["output_mult"], &config["mup_scale_factor"]), (&2.0.into(), &80.0.into()));
    let page = dir.path().join("report.html");
    let same = flm_json(["verify", text(&source), text(&grown), "--report", text(&page)]);
    assert_eq!(same["passed"], true, "{same:#}");
    let page = std::fs::read_to_string(&page).unwrap();
    for part in ["→ grown", "20 → ", "<svg", "<polyline", "plan_blake3", "The same function"] {
        assert!(page.contains(part), "{part}");
    }
    for outside in ["<script", "<link", "src=", "href="] {
        assert!(!page.contains(outside), "{outside}");
    }
    let copy = std::fs::read_to_string(grown.join("recipe.toml")).unwrap();
    assert!(copy.starts_with(&std::fs::read_to_string(&recipe).unwrap()) && copy.contains("#   seed=3"));
    assert_eq!(json(&grown.join("provenance.json"))["growth"]["seed"], 3);
    // nothing of the stages between is left
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");
    let flags = dir.path().join("flags");
    flm_json([
        "grow",
        text(&source),
        text(&flags),
        "--to",
        "nano-102b",
        "--to",
        "nano-1t",
        "--operator",
        "zero",
        "--mup",
        "2.0/80",
    ]);
    assert_eq!(flm_json(["verify", text(&source), text(&flags)])["passed"], true);

    for (name, parameters) in [
        ("52b-to-102b", 102_206_351_360u64),
        ("102b-to-1t", 1_083_813_908_480),
        ("nano-52b-to-102b", 4_428_600),
        ("nano-102b-to-1t", 39_077_520),
    ] {
        let recipe = recipes.join(format!("{name}.toml"));
        let plan = flm_json(["grow", "--recipe", text(&recipe), "--dry-run"]);
        assert_eq!(plan["summary"]["target_parameters"].as_u64(), Some(parameters), "{name}");
    }
}

#[test]
fn damage_is_found_by_checksums() {
    let dir = tempfile::tempdir().unwrap();
    let source = nano(dir.path());
    let grown = dir.path().join("grown");
    flm_json(["grow", text(&source), text(&grown), "--to", "nano-102b"]);
    assert_eq!(flm_json(["verify", text(&grown)])["passed"], true);
    let path = grown.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&path, bytes).unwrap();
    let out = flm(["verify", text(&grown), "--json"]);
    assert_eq!(out.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(report["problems"][0].as_str().unwrap().starts_with("tensor model."), "{report:#}");
    std::fs::remove_file(source.join("checksums.json")).unwrap();
    assert!(stderr_of_failure(&["verify", text(&source)]).contains("no checksums.json"));
}

#[test]
fn digests_that_cover_no_weights_certify_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let source = nano(dir.path());
    let path = source.join("checksums.json");
    let whole = json(&path);
    let made = dir.path().join("made");
    let with = |change: &dyn Fn(&mut Value)| {
        let mut changed = whole.clone();
        change(&mut changed);
        std::fs::write(&path, changed.to_string()).unwrap();
        let out = flm(["verify", text(&source)]);
        assert_eq!(out.status.code(), Some(1));
        let converted = stderr_of_failure(&["convert", text(&source), text(&made)]);
        assert!(!made.exists());
        let said = [out.stdout, out.stderr].concat();
        (String::from_utf8(said).unwrap(), converted)
    };
    let (said, converted) = with(&|sums| {
        for key in ["files", "weights", "tensors"] {
            sums[key] = serde_json::json!({});
        }
    });
    assert!(said.contains("holds no digests") && converted.contains("holds no digests"), "{said}{converted}");
    let (said, converted) = with(&|sums| sums["version"] = 9.into());
    assert!(said.contains("version 9") && converted.contains("version 9"), "{said}{converted}");
    let shard = "model-00002-of-00003.safetensors";
    let (said, converted) = with(&|sums| {
        sums["weights"].as_object_mut().unwrap().remove(shard).unwrap();
    });
    let unlisted = format!("{shard} holds weights and has no digest");
    assert!(said.contains(&unlisted) && converted.contains(&unlisted), "{said}{converted}");
    // what holds no weights is told, and no weights that no reader opens stand in the way of a conversion
    std::fs::write(&path, whole.to_string()).unwrap();
    std::fs::write(source.join("notes.txt"), "mine").unwrap();
    let report = flm_json(["verify", text(&source)]);
    assert_eq!((&report["passed"], &report["unlisted"]), (&true.into(), &serde_json::json!(["notes.txt"])));
    std::fs::write(source.join("pytorch_model.bin"), "x").unwrap();
    let said = String::from_utf8(flm(["verify", text(&source)]).stdout).unwrap();
    assert!(said.contains("pytorch_model.bin holds weights and has no digest"), "{said}");
    flm_json(["convert", text(&source), text(&made)]);
}

#[test]
fn checksums_name_files_of_their_directory_only_and_headers_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let source = nano(dir.path());
    let path = source.join("checksums.json");
    let whole = json(&path);
    let outside = dir.path().join("secret");
    std::fs::write(&outside, "secret").unwrap();
    for name in ["../secret", "a/../../secret", "..", text(&outside)] {
        let mut named = whole.clone();
        let some = named["files"]["config.json"].clone();
        named["files"].as_object_mut().unwrap().insert(name.into(), some);
        std::fs::write(&path, named.to_string()).unwrap();
        let said = stderr_of_failure(&["verify", text(&source)]);
        assert!(said.contains("is not a file of its directory"), "{name}: {said}");
    }
    std::fs::write(&path, whole.to_string()).unwrap();
    // a header of a terabyte, in a file with as long a hole
    let weights = source.join("model-00001-of-00003.safetensors");
    std::fs::write(&weights, (1_u64 << 40).to_le_bytes()).unwrap();
    std::fs::File::options().write(true).open(&weights).unwrap().set_len((1 << 40) + 100).unwrap();
    let out = flm(["verify", text(&source)]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stdout).contains("a header of 1099511627776 bytes"));
}

#[test]
fn a_checkpoint_that_is_drawn_has_digests_and_a_pipe_is_no_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("made");
    flm_json(["init", "nano-52b", text(&made)]);
    assert_eq!(flm_json(["verify", text(&made)])["passed"], true);
    assert!(made.join("provenance.json").is_file());
    assert!(Command::new("mkfifo").arg(made.join("tokenizer.model")).status().unwrap().success());
    assert!(stderr_of_failure(&["tokenize", text(&made), "a"]).contains("not a regular file"));
}

/// `flm grow` to a nano 1T of wide layers: some 400 MB.
fn grow_large(source: &Path, dst: &Path, seed: &str) -> Command {
    let mut command = Command::new(binary());
    command
        .args(["grow", text(source), text(dst), "--to", "nano-1t", "--ffn", "8000", "--seed", seed])
        .args(["--operator", "zero", "--max-shard-size", "50MB", "--quiet"])
        .env("RAYON_NUM_THREADS", "2")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Digests of everything but the provenance, which names the command.
fn digests(dir: &Path) -> Value {
    let mut checksums = json(&dir.join("checksums.json"));
    checksums["files"].as_object_mut().expect("files").remove("provenance.json");
    checksums
}

#[test]
fn killed_runs_go_on_and_end_in_the_same_bytes() {
    let rounds = std::env::var("FLM_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(12u32);
    let dir = tempfile::tempdir().unwrap();
    let source = nano(dir.path());
    let whole = dir.path().join("whole");
    let start = Instant::now();
    assert!(grow_large(&source, &whole, "1").status().unwrap().success());
    let duration = start.elapsed();
    let expected = digests(&whole);
    std::fs::remove_dir_all(&whole).unwrap();
    let mut resumed = 0;
    for round in 0..rounds {
        let dst = dir.path().join("grown");
        let mut child = grow_large(&source, &dst, "1").spawn().unwrap();
        // spread over the run, at odd places
        let part = f64::from((round * 37 + 11) % 97) / 97.0;
        std::thread::sleep(Duration::from_secs_f64(duration.as_secs_f64() * part));
        child.kill().unwrap();
        child.wait().unwrap();
        let staging = dir.path().join(".grown.partial");
        if round == 0 && staging.join(".journal.jsonl").is_file() {
            let out = flm([
                "grow",
                text(&source),
                text(&dst),
                "--to",
                "nano-1t",
                "--ffn",
                "8000",
                "--operator",
                "zero",
                "--seed",
                "2",
                "--max-shard-size",
                "50MB",
            ]);
            let error = String::from_utf8(out.stderr).unwrap();
            assert!(error.contains("another seed (1, now 2)"), "{error}");
        }
        if !dst.exists() {
            resumed += u32::from(staging.join(".journal.jsonl").is_file());
            assert!(grow_large(&source, &dst, "1").status().unwrap().success(), "round {round}");
        }
        assert_eq!(digests(&dst), expected, "round {round}");
        assert!(!staging.exists());
        std::fs::remove_dir_all(&dst).unwrap();
    }
    assert!(resumed > rounds / 3, "{resumed} of {rounds} were killed while they wrote");
}

#[test]
fn what_a_narrow_dtype_cannot_hold_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (source, grown) = (nano(dir.path()), dir.path().join("grown"));
    flm_json(["grow", text(&source), text(&grown), "--ffn", "320"]);
    let weights = grown.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len();
    // a billion in bf16
    bytes[end - 2..].copy_from_slice(&[0x6e, 0x4e]);
    std::fs::write(&weights, bytes).unwrap();
    std::fs::remove_file(grown.join("checksums.json")).unwrap();
    let out = flm(["fold", text(&grown), text(&dir.path().join("folded")), "--dtype", "f16"]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.contains("1 finite values became infinite"), "{said}");
}

#[test]
fn a_stage_of_other_bytes_is_never_taken_up() {
    let dir = tempfile::tempdir().unwrap();
    let source = nano(dir.path());
    let (dst, stage) = (dir.path().join("grown"), dir.path().join(".grown.stage-1"));
    let to = |more: &[&str]| {
        let arguments = ["grow", text(&source), text(&dst), "--to", "nano-102b", "--to", "nano-1t"];
        flm(arguments.iter().chain(more))
    };
    // what a run that died in its second stage leaves
    flm_json(["grow", text(&source), text(&stage), "--to", "nano-102b", "--operator", "zero"]);
    // the source is another since: of the same sizes
    let weights = source.join("model-00001-of-00003.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    std::fs::remove_file(source.join("checksums.json")).unwrap();
    let out = to(&[]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("was grown from other bytes") && said.contains("--restart"), "{said}");
    assert!(!dst.exists() && stage.exists());
    assert!(to(&["--restart"]).status.success());
    assert!(flm(["verify", text(&source), text(&dst)]).status.success());
    // a folder of the user's that has the name is left alone, --restart or not
    let other = dir.path().join(".other.stage-1");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("notes"), "mine").unwrap();
    for more in [&[][..], &["--restart"]] {
        let dst = dir.path().join("other");
        let arguments = ["grow", text(&source), text(&dst), "--to", "nano-102b", "--to", "nano-1t"];
        assert_eq!(flm(arguments.iter().chain(more)).status.code(), Some(1));
        assert!(other.join("notes").exists());
    }
}

#[test]
fn settings_that_would_be_ignored_or_cannot_be_are_refused_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    let source = nano(dir.path());
    let dst = dir.path().join("x");
    let grow = |more: &[&str]| {
        let out = flm(["grow", text(&source), text(&dst)].iter().chain(more));
        assert!(!out.status.success(), "{more:?}");
        assert!(!dst.exists() && !dir.path().join(".x.partial").exists(), "{more:?}");
        String::from_utf8(out.stderr).unwrap()
    };
    for setting in ["seed=7", "nope=1", "=", "operator=zero"] {
        let said = grow(&["--ffn", "320", setting]);
        assert!(said.contains("--recipe"), "{said}");
    }
    for std in ["nan", "inf", "-1"] {
        assert!(grow(&["--layers", "17", &format!("--std={std}")]).contains("finite"), "{std}");
    }
    // as the checkpoint stores weights: before any of them is drawn, and in a plan too
    for more in [&[][..], &["--dry-run"]] {
        let said = grow(&[&["--layers", "17", "--ffn", "320", "--std", "1e39"][..], more].concat());
        assert!(said.contains("standard deviation 1e39") && said.contains("4.33"), "{said}");
    }
    for mup in ["1e308/1e-308", "1e-40/1", "nan/1"] {
        assert!(grow(&["--ffn", "320", "--mup", mup]).contains("output_mult/mup_scale_factor"), "{mup}");
    }
    let recipe = dir.path().join("many.toml");
    std::fs::write(&recipe, "[[stage]]\nffn = 320\n".repeat(65)).unwrap();
    assert!(grow(&["--recipe", text(&recipe)]).contains("at most 64"));
    for threads in ["0", "100000"] {
        assert!(grow(&["--ffn", "320", "--threads", threads]).contains("--threads"), "{threads}");
    }
    for (setting, says) in [
        (&["--new-rows", "zero"][..], "--new-rows is about new rows of the vocabulary"),
        (&["--place", "uniform"], "--place is about new layers"),
        (&["--untie"], "--untie writes out a head that is tied"),
    ] {
        let said = grow(&[&["--ffn", "320"][..], setting].concat());
        assert!(said.contains(says) && said.contains("drop it"), "{said}");
    }
    for layers in ["20000", "1000000", "1000000000000"] {
        assert!(grow(&["--layers", layers]).contains("num_hidden_layers"), "{layers}");
    }
}

#[test]
fn what_a_target_has_besides_sizes_is_told_to_stay() {
    let dir = tempfile::tempdir().unwrap();
    let from = nano(dir.path()).join("config.json");
    let mut to = json(&from);
    let path = dir.path().join("to.json");
    let plan = |to: &Value| {
        std::fs::write(&path, to.to_string()).unwrap();
        let out = flm(["grow", "--from-config", text(&from), "--to", text(&path), "--dry-run"]);
        assert!(out.status.success());
        String::from_utf8(out.stderr).unwrap()
    };
    to["intermediate_size"] = 320.into();
    assert!(!plan(&to).contains("only the sizes"), "{}", plan(&to));
    let theta = to["rope_theta"].as_f64().unwrap_or(10_000.0);
    to["rope_theta"] = (theta * 2.0).into();
    to["rms_norm_eps"] = 0.125.into();
    let said = plan(&to);
    let theirs = format!("rope_theta stays {theta} ({} there)", theta * 2.0);
    assert!(said.contains(&theirs) && said.contains("rms_norm_eps stays"), "{said}");
    let presets = ["grow", "--from-config", "tele-flm-52b", "--to", "tele-flm-102b", "--dry-run"];
    assert!(!String::from_utf8(flm(presets).stderr).unwrap().contains("only the sizes"));
}

/// Whenever a source is written to, the output is that of what it was before, or there is none.
#[test]
fn a_source_that_changes_at_any_moment_is_noticed() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    flm_json(["demo", "--dir", dir.path().join("demo").to_str().unwrap(), "--until", "convert"]);
    let whole = dir.path().join("demo/nano-52b");
    let grow = |source: &Path, target: &Path| {
        let mut command = std::process::Command::new(flm_tests::binary());
        command.arg("grow").arg(source).arg(target).args(["--ffn", "320", "--hidden", "192", "--heads", "8"]);
        command
            .env("RAYON_NUM_THREADS", "1")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        command
    };
    let reference = dir.path().join("reference");
    let start = std::time::Instant::now();
    assert!(grow(&whole, &reference).status().unwrap().success());
    let time = start.elapsed();
    let weights = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
    let expected = weights(&reference);
    let mut refused = 0;
    for moment in 0..16u32 {
        let (source, target) = (dir.path().join(format!("s{moment}")), dir.path().join(format!("t{moment}")));
        std::fs::create_dir(&source).unwrap();
        for entry in std::fs::read_dir(&whole).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, source.join(path.file_name().unwrap())).unwrap();
        }
        let last = source.join("model-00003-of-00003.safetensors");
        let file = std::fs::File::options().write(true).open(&last).unwrap();
        let middle = file.metadata().unwrap().len() / 2;
        let mut run = grow(&source, &target).spawn().unwrap();
        std::thread::sleep(time * moment / 16);
        (0..400).for_each(|i| file.write_all_at(b"\x55", middle + i * 7).unwrap());
        if run.wait().unwrap().success() {
            assert_eq!(weights(&target), expected, "moment {moment}: neither the old source's nor refused");
        } else {
            assert!(!target.exists());
            refused += 1;
        }
    }
    assert!(refused > 0, "no moment was within the run");
}
