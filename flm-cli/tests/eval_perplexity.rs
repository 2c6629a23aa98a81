//! `flm eval perplexity`: a row for every file is what the file alone gives, and the total is their sum.

#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use flm_tests::on_device;
use flm_tests::word_model::word_model;
use serde_json::{Value, json};

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flm"));
    command.args(["eval", "perplexity"]).args(on_device(&["eval", "perplexity"]));
    command
}

fn perplexity(model: &Path, texts: &[&str], more: &[&str]) -> Output {
    let mut command = command();
    command.arg(model).args(["--context", "16", "--stride", "11"]).args(more);
    command.args(texts.iter().flat_map(|text| ["--text", text])).output().unwrap()
}

fn json_of(out: &Output) -> Value {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn words(first: usize, count: usize) -> String {
    (0..count).map(|i| format!("w{} ", 5 + (first + i * i * 7) % 370)).collect()
}

const MEASURES: [&str; 8] =
    ["perplexity", "bits_per_byte", "nll", "tokens", "scored", "bytes", "context", "stride"];

#[test]
fn rows_are_what_the_files_alone_give_and_the_total_is_their_sum() {
    let dir = tempfile::tempdir().unwrap();
    let model = word_model(dir.path());
    let domains = dir.path().join("domains");
    std::fs::create_dir(&domains).unwrap();
    let write = |name: &str, text: &str| -> PathBuf {
        let path = domains.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (first, second, third) = (words(1, 100), words(50, 37), words(99, 5));
    write("book.txt", &first);
    // two texts, and one of which nothing can be scored
    write("lines.jsonl", &[&second, &third, "w9"].map(|text| json!({"text": text}).to_string()).join("\n"));
    write("notes.md", "not a text");
    let alone = |text: &str| {
        let path = dir.path().join("alone.txt");
        std::fs::write(&path, text).unwrap();
        json_of(&perplexity(&model, &[path.to_str().unwrap()], &["--json"]))
    };
    let (first, second, third) = (alone(&first), alone(&second), alone(&third));
    assert_eq!((&first["tokens"], &first["scored"], &third["scored"]), (&json!(100), &json!(99), &json!(4)));

    let report = json_of(&perplexity(&model, &[domains.to_str().unwrap()], &["--json"]));
    let files = report["files"].as_array().unwrap();
    let names: Vec<&Value> = files.iter().map(|file| &file["name"]).collect();
    assert_eq!(names, ["book", "lines"]);
    for key in MEASURES {
        assert_eq!(files[0][key], first[key], "{key}: to the bit");
    }
    assert_eq!((&files[1]["texts"], &files[1]["too_short"]), (&json!(2), &json!(1)));
    let sum = |key: &str, parts: &[&Value]| parts.iter().map(|part| part[key].as_f64().unwrap()).sum::<f64>();
    for (got, parts) in [(&files[1], &[&second, &third][..]), (&report, &[&first, &second, &third])] {
        for key in ["tokens", "scored", "bytes"] {
            assert_eq!(got[key].as_f64().unwrap(), sum(key, parts), "{key}");
        }
        let close = |key: &str, expected: f64| {
            let value = got[key].as_f64().unwrap();
            assert!((value / expected - 1.0).abs() < 1e-12, "{key}: {value}, expected {expected}");
        };
        // a sum of sums: the order of additions differs, by an ulp
        close("nll", sum("nll", parts));
        close("perplexity", (sum("nll", parts) / sum("scored", parts)).exp());
        close("bits_per_byte", sum("nll", parts) / 2f64.ln() / sum("bytes", parts));
    }

    let named = format!("古文={}", domains.join("book.txt").display());
    let lines = domains.join("lines.jsonl");
    let out = perplexity(&model, &[&named, lines.to_str().unwrap()], &[]);
    let table = String::from_utf8(out.stdout).unwrap();
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        rows.iter().map(|row| row[0]).collect::<Vec<_>>(),
        ["bits", "古文", "lines", "total"],
        "{table}"
    );
    assert_eq!(rows[1][1], format!("{:.4}", first["bits_per_byte"].as_f64().unwrap()), "{table}");
    assert_eq!(rows[3][2], format!("{:.4}", report["perplexity"].as_f64().unwrap()), "{table}");
}

#[test]
fn bytes_are_those_of_the_scored_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let model = word_model(dir.path());
    std::fs::write(model.join("tokenizer_config.json"), json!({"bos_token": "<s>"}).to_string()).unwrap();
    let path = dir.path().join("text.txt");
    // 33 words of 4 bytes, every one a token, and a space after each but the last
    let words: Vec<String> = (0..33).map(|i| format!("w{}", 100 + i)).collect();
    std::fs::write(&path, words.join(" ")).unwrap();
    let run = |text: &Path, more: &[&str]| {
        let mut command = command();
        command.arg("--json").arg(&model).arg("--text").arg(text).args(more);
        json_of(&command.output().unwrap())
    };
    let all = 33 * 4 + 32;
    // windows of 8: five windows, of which the last is one token; each one's first token has no score
    for (more, scored, bytes) in [
        (&["--context", "8"][..], 28, all - 5 * 4),
        (&["--context", "8", "--stride", "4"], 32, all - 4),
        (&["--context", "8", "--bos"], 33, all),
        (&["--context", "64"], 32, all - 4),
    ] {
        let report = run(&path, more);
        assert_eq!((&report["scored"], &report["bytes"]), (&json!(scored), &json!(bytes)), "{more:?}");
        let bits = report["nll"].as_f64().unwrap() / 2f64.ln() / f64::from(bytes);
        assert!((report["bits_per_byte"].as_f64().unwrap() - bits).abs() < 1e-12, "{more:?}");
    }
    // names of special tokens are those tokens, as in transformers, or text on request
    let special = dir.path().join("special.txt");
    std::fs::write(&special, "w100 <_user> w101").unwrap();
    assert_eq!(run(&special, &[])["tokens"], 3);
    assert_ne!(run(&special, &["--no-parse-special"])["tokens"], 3);
    // a text of one token
    let one = dir.path().join("one.txt");
    std::fs::write(&one, "w100").unwrap();
    let report = run(&one, &["--bos", "--context", "8"]);
    assert_eq!(
        (&report["scored"], &report["bytes"], &report["files"][0]["too_short"]),
        (&json!(1), &json!(4), &json!(0))
    );
}

#[test]
fn what_cannot_be_scored_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = word_model(dir.path());
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = write("good.txt", "w5 w6 w7");
    for (bad, says) in [
        (write("short.txt", "w5"), "short.txt: no text of two tokens or more"),
        (
            write("chat.jsonl", r#"{"messages": [{"role": "assistant", "content": "w5"}]}"#),
            "chat.jsonl:1: a conv",
        ),
        (dir.path().join("none.txt").to_str().unwrap().to_owned(), "none.txt"),
    ] {
        let out = perplexity(&model, &[&good, &bad], &[]);
        let error = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.code() == Some(1) && error.contains(says), "{bad}: {error}");
    }
}

/// A model of pairs: after a character of [`CYCLE`] the next one is nearly sure, after the beginning of a text
/// nothing is.
fn model_of_pairs(dir: &Path) -> PathBuf {
    use flm_checkpoint::{TeleFlmConfig, TensorSpec, Writer};
    let path = dir.join("pairs");
    let tokenizer =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/sft_cases/l3.tokenizer.json");
    let ids: Value = serde_json::from_slice(&std::fs::read(&tokenizer).unwrap()).unwrap();
    let id = |c: char| ids["model"]["vocab"][c.to_string()].as_u64().unwrap() as usize;
    let width = 600;
    let config = json!({
        "model_type": "llama", "hidden_size": width, "intermediate_size": 2, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": width, "max_position_embeddings": 512, "rms_norm_eps": 1e-12,
        "torch_dtype": "float32", "bos_token_id": 0, "eos_token_id": 1,
    });
    let config = TeleFlmConfig::from_json(&config.to_string()).unwrap();
    let specs: Vec<TensorSpec> = config
        .tensors()
        .map(|t| TensorSpec { name: t.name, dtype: flm_checkpoint::Dtype::F32, shape: t.shape })
        .collect();
    let writer = Writer::create(&path, &specs, u64::MAX).unwrap();
    for spec in &specs {
        let mut values = vec![0f32; spec.shape.iter().product()];
        match spec.name.as_str() {
            "model.embed_tokens.weight" => (0..width).for_each(|i| values[i * width + i] = 1.0),
            "lm_head.weight" => {
                let cycle: Vec<usize> = CYCLE.chars().map(id).collect();
                for (at, &before) in cycle.iter().enumerate() {
                    values[cycle[(at + 1) % cycle.len()] * width + before] = 9.0 / (width as f32).sqrt();
                }
            }
            name if name.ends_with("norm.weight") => values.fill(1.0),
            _ => {}
        }
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.write_at(&spec.name, 0, &bytes).unwrap();
    }
    std::fs::copy(&tokenizer, writer.staging_dir().join("tokenizer.json")).unwrap();
    let names = json!({"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"});
    std::fs::write(writer.staging_dir().join("tokenizer_config.json"), names.to_string()).unwrap();
    writer.finish(&config).unwrap();
    path
}

/// Characters that are a token each, whatever stands beside them.
const CYCLE: &str = "@~^#`|";

#[test]
fn less_context_never_gives_fewer_bits_per_byte() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_of_pairs(dir.path());
    let text = dir.path().join("text.txt");
    std::fs::write(&text, CYCLE.repeat(40)).unwrap();
    let bits = |context: &str, more: &[&str]| {
        let mut command = command();
        command.arg("--json").arg(&model).arg("--text").arg(&text);
        let report = json_of(&command.args(["--context", context]).args(more).output().unwrap());
        assert_eq!(report["tokens"], 240, "a token is a byte");
        report["bits_per_byte"].as_f64().unwrap()
    };
    let sure = (1.0 + 599.0 * (-9f64).exp()).log2();
    let (mut with, mut without) = (0.0, 0.0);
    for context in ["240", "64", "16", "8", "4", "2"] {
        // every scored token has a token before it, which is all that this model looks at
        let now = bits(context, &["--no-bos"]);
        assert!((now - sure).abs() < 1e-6 && now >= without - 1e-9, "context {context}: {now}, right {sure}");
        without = now;
        // with a beginning of text, the first token of each window costs log2 600 bits
        let starts = 240usize.div_ceil(context.parse().unwrap()) as f64;
        let right = (starts * 600f64.log2() + (240.0 - starts) * sure) / 240.0;
        let now = bits(context, &["--bos"]);
        assert!((now - right).abs() < 1e-5 && now > with, "context {context}: {now}, right {right}");
        with = now;
    }
}
