//! Cases of public bug reports on trainers: the first step's loss and number of targets, against stored values
//! of transformers, sentencepiece and tokenizers (`tests/fixtures/sft_cases/make_cases.py`).

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use candle_core::DType;
use flm_tests::device::device;
use flm_train::{Event, Options, Plan, Trainer};
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/sft_cases")
}

/// The model of a case in `dir`, with the files that the case changes.
fn model(dir: &Path, name: &str, files: &Value) {
    fs::create_dir(dir).unwrap();
    for entry in fs::read_dir(fixtures().join(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
    }
    let (tokenizer, file) = match name {
        "llama" => ("../../../flm-cli/assets/nano-52b/tokenizer.model", "tokenizer.model"),
        "dummy" => ("dummy.model", "tokenizer.model"),
        _ => ("l3.tokenizer.json", "tokenizer.json"),
    };
    fs::copy(fixtures().join(tokenizer), dir.join(file)).unwrap();
    if let Some(processor) = files.get("post_processor") {
        let text = fs::read_to_string(dir.join(file)).unwrap();
        let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
        tokenizer["post_processor"] = processor.clone();
        fs::write(dir.join(file), tokenizer.to_string()).unwrap();
    }
    match files.get("tokenizer_config.json") {
        None => {}
        Some(Value::Null) => fs::remove_file(dir.join("tokenizer_config.json")).unwrap(),
        Some(config) => fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap(),
    }
}

/// Loss and targets of the first step.
fn first_step(case: &Value) -> (f64, u64) {
    let dir = tempfile::tempdir().unwrap();
    let text = |key: &str| case[key].as_str().map(str::to_owned);
    model(&dir.path().join("model"), &text("model").unwrap(), &case["files"]);
    let rows: String = case["rows"].as_array().unwrap().iter().map(|row| format!("{row}\n")).collect();
    fs::write(dir.path().join("data.jsonl"), rows).unwrap();
    let path = |name: &str| dir.path().join(name);
    let settings = format!(
        "model = {:?}\noutput = {:?}\n[data]\nfiles = [{:?}]\n[train]\nbatch_size = 4096\nmax_steps = 1\n\
         [optimizer]\nclip_norm = 0.0\n[save]\ndtype = \"f32\"\n",
        path("model"),
        path("out"),
        path("data.jsonl")
    );
    let mut options: Options = toml::from_str(&settings).unwrap();
    if let Some(template) = text("template") {
        fs::write(path("template.jinja"), template).unwrap();
        options.data.chat_template = Some(path("template.jinja"));
    }
    for change in case["overrides"].as_array().unwrap() {
        let length = change.as_str().and_then(|change| change.strip_prefix("data.context_length="));
        options.data.context_length = Some(length.unwrap().parse().unwrap());
    }
    let plan = Plan::for_device(options, &device(), DType::F32).unwrap();
    let mut trainer = Trainer::new(plan, &device(), DType::F32).unwrap();
    let mut step = None;
    trainer
        .run(&AtomicBool::new(false), &mut |event| {
            if let Event::Step(report) = event {
                step = Some((report.loss, report.targets as u64));
            }
            Ok(())
        })
        .unwrap();
    step.unwrap()
}

#[test]
fn what_is_learned_is_what_the_peers_learn() {
    let text = fs::read_to_string(fixtures().join("cases.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() >= 18);
    for case in &cases {
        let (loss, targets) = first_step(case);
        let right = |loss_key: &str, targets_key: &str| {
            case[targets_key].as_u64() == Some(targets)
                && case[loss_key].as_f64().is_some_and(|right| (loss - right).abs() < 2e-5)
        };
        assert!(
            right("loss", "targets") || right("or_loss", "or_targets"),
            "{}: {loss} over {targets}, right {} over {}",
            case["name"],
            case["loss"],
            case["targets"]
        );
    }
}

/// AdamW with decay, clipping and a warm-up, over the same rows packed or not, whole or in micro-batches.
#[test]
fn steps_are_pytorchs_however_rows_are_packed_and_split() {
    let text = fs::read_to_string(fixtures().join("steps.json")).unwrap();
    let right: Value = serde_json::from_str(&text).unwrap();
    let numbers = |key: &str| -> Vec<f64> {
        right[key].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
    };
    let rows: String = right["rows"].as_array().unwrap().iter().map(|row| format!("{row}\n")).collect();
    for (packing, micro) in [true, false].into_iter().flat_map(|packing| [1, 3, 64].map(|n| (packing, n))) {
        let dir = tempfile::tempdir().unwrap();
        model(&dir.path().join("model"), "llama", &Value::Null);
        fs::write(dir.path().join("data.jsonl"), &rows).unwrap();
        let path = |name: &str| dir.path().join(name);
        let (source, output, data) = (path("model"), path("out"), path("data.jsonl"));
        let settings = format!(
            "model = {source:?}\noutput = {output:?}\n[data]\nfiles = [{data:?}]\npacking = {packing}\n\
             context_length = 120\n[train]\nbatch_size = 99\nmicro_batch_size = {micro}\nepochs = 4\n\
             [optimizer]\nlearning_rate = 1e-3\nfinal_learning_rate = 1e-4\nwarmup_steps = 1\n\
             weight_decay = 0.1\nclip_norm = 0.7\n[save]\ndtype = \"f32\"\n"
        );
        let plan =
            Plan::for_device(toml::from_str::<Options>(&settings).unwrap(), &device(), DType::F32).unwrap();
        let mut steps = Vec::new();
        let mut trainer = Trainer::new(plan, &device(), DType::F32).unwrap();
        trainer
            .run(&AtomicBool::new(false), &mut |event| {
                if let Event::Step(report) = event {
                    assert_eq!(Some(report.targets as u64), right["targets"].as_u64());
                    steps.push((report.loss, report.gradient_norm));
                }
                Ok(())
            })
            .unwrap();
        assert_eq!(steps.len(), 4);
        let expected = numbers("losses").into_iter().zip(numbers("gradient_norms"));
        for (step, ((loss, norm), (right_loss, right_norm))) in steps.into_iter().zip(expected).enumerate() {
            let close = (loss - right_loss).abs() < 1e-5 && (norm / right_norm - 1.0).abs() < 1e-4;
            assert!(close, "packing {packing}, micro-batches of {micro}, step {step}: {loss}, {norm}");
        }
    }
}
