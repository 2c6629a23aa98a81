//! Whole runs: data, checkpoints, resuming, what can be wrong.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use candle_core::DType;
use flm_candle::{ChatMessage, Tokenizer};
use flm_checkpoint::Checkpoint;
use flm_checkpoint::Dtype;
use flm_checkpoint::TeleFlmConfig;
use flm_checkpoint::TensorSpec;
use flm_checkpoint::Writer;
use flm_checkpoint::preset;
use flm_tests::device::device;
use flm_train::Options;
use flm_train::Plan;
use flm_train::TrainError;
use flm_train::{Event, Outcome, Trainer};

mod data;
mod folders;
mod resume;
mod steps;

fn config() -> TeleFlmConfig {
    let mut config = preset("nano-52b").unwrap();
    config.num_hidden_layers = 2;
    config.num_attention_heads = 2;
    config.num_key_value_heads = 2;
    config.hidden_size = 16;
    config.head_dim = 8;
    config.intermediate_size = 24;
    config.vocab_size = 2048;
    config.max_position_embeddings = 64;
    config.mup_scale_factor = 0.5;
    config.set_raw("torch_dtype", "float32".into());
    config
}

/// A small model with Tele-FLM's kind of tokenizer.
fn model(dir: &Path) -> PathBuf {
    let (config, path) = (config(), dir.join("model"));
    let specs: Vec<TensorSpec> = config
        .tensors()
        .map(|t| TensorSpec { name: t.name, dtype: flm_checkpoint::Dtype::F32, shape: t.shape })
        .collect();
    let writer = Writer::create(&path, &specs, u64::MAX).unwrap();
    for (index, spec) in specs.iter().enumerate() {
        let len: usize = spec.shape.iter().product();
        let value = |i: usize| {
            let wave = ((i * 7919 + index * 104_729) as f32 * 0.37).sin();
            if spec.shape.len() == 1 { 1.0 + 0.1 * wave } else { 0.2 * wave }
        };
        let bytes: Vec<u8> = (0..len).flat_map(|i| value(i).to_le_bytes()).collect();
        writer.write_at(&spec.name, 0, &bytes).unwrap();
    }
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/spm/tokenizer.model");
    fs::copy(fixture, writer.staging_dir().join("tokenizer.model")).unwrap();
    writer.finish(&config).unwrap();
    path
}

const LINES: [&str; 6] = [
    r#"{"messages":[{"role":"user","content":"白日依山尽"},{"role":"assistant","content":"黄河入海流"}]}"#,
    r#"{"instruction":"床前明月光","output":"疑是地上霜"}"#,
    r#"{"conversations":[{"from":"human","value":"春眠不觉晓"},{"from":"gpt","value":"处处闻啼鸟"},{"from":"human","value":"夜来风雨声"},{"from":"gpt","value":"花落知多少"}]}"#,
    r#"{"messages":[{"role":"user","content":"hello"},{"role":"assistant","content":"good morning to you"}]}"#,
    r#"{"instruction":"count","input":"to three","output":"one two three"}"#,
    r#"{"messages":[{"role":"user","content":"红豆生南国"},{"role":"assistant","content":"春来发几枝"}]}"#,
];

/// A run over a model and a file of samples in `dir`, with settings changed by `section.key=value`.
fn recipe(dir: &Path, lines: &[&str], changes: &[&str]) -> Result<Options, TrainError> {
    let data: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(dir.join("data.jsonl"), data).unwrap();
    if !dir.join("model").exists() {
        model(dir);
    }
    let (model, output, data) = (dir.join("model"), dir.join("out"), dir.join("data.jsonl"));
    let text = format!(
        "model = {model:?}\noutput = {output:?}\n[data]\nfiles = [{data:?}]\ncontext_length = 48\n\
         [train]\nbatch_size = 2\nepochs = 3\n[optimizer]\nlearning_rate = 1e-2\n\
         [save]\ndtype = \"f32\"\nkeep = 100\n[memory]\n"
    );
    let mut table: toml::Table = text.parse().unwrap();
    for change in changes {
        let (key, word) = change.split_once('=').unwrap();
        let value =
            format!("value = {word}").parse::<toml::Table>().map(|mut table| table.remove("value").unwrap());
        let mut at = &mut table;
        let (sections, key) = key.rsplit_once('.').unwrap_or(("", key));
        for section in sections.split('.').filter(|section| !section.is_empty()) {
            at = at[section].as_table_mut().unwrap();
        }
        at.insert(key.into(), value.unwrap_or_else(|_| word.into()));
    }
    table.try_into().map_err(|e: toml::de::Error| TrainError::Setting(e.to_string()))
}

fn start(dir: &Path, lines: &[&str], changes: &[&str]) -> Result<Trainer, TrainError> {
    let plan = Plan::for_device(recipe(dir, lines, changes)?, &device(), DType::F32)?;
    Trainer::new(plan, &device(), DType::F32)
}

/// Runs until done, or stops after `steps` steps of this call.
fn run(trainer: &mut Trainer, steps: Option<u64>) -> (Result<Outcome, TrainError>, Vec<Event>) {
    let (stop, mut events, mut made) = (AtomicBool::new(false), Vec::new(), 0);
    let outcome = trainer.run(&stop, &mut |event| {
        made += u64::from(matches!(event, Event::Step(_)));
        // the stop is seen after the step that is being reported
        stop.store(steps == Some(made), Ordering::Relaxed);
        events.push(event.clone());
        Ok(())
    });
    (outcome, events)
}

fn weights(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    checkpoint.check().unwrap();
    checkpoint.entries().map(|e| (e.name.clone(), checkpoint.read(e).unwrap())).collect()
}

/// Names of everything in a folder, sorted.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// What `start` says, for a run that must not start.
fn refusal(dir: &Path, lines: &[&str], changes: &[&str]) -> String {
    start(dir, lines, changes).map(drop).unwrap_err().to_string()
}

fn strs(changes: &[String]) -> Vec<&str> {
    changes.iter().map(String::as_str).collect()
}

fn weights_of_optimizer(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let checkpoint = Checkpoint::open(&dir.join("optimizer")).unwrap();
    checkpoint.entries().map(|e| (e.name.clone(), checkpoint.read(e).unwrap())).collect()
}
