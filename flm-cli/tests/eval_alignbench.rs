//! `flm eval alignbench`: answers are the same streamed or resident, cut or whole, in any batch.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// A checkpoint with a tokenizer, and questions of different lengths in two categories.
fn checkpoint_and_questions(dir: &Path) -> (PathBuf, PathBuf) {
    let model = dir.join("model");
    std::fs::create_dir_all(&model).unwrap();
    copy(&fixtures().join("models/teleflm-f32-st"), &model);
    // as many words as the model's embedding has rows
    let word = |id: usize| match id {
        0 => "<unk>".to_owned(),
        1 => "abc".to_owned(),
        // what Tele-FLM's chat template needs
        2 => "<_user>".to_owned(),
        3 => "<_bot>".to_owned(),
        id => format!("w{id}"),
    };
    let vocabulary: serde_json::Map<String, Value> = (0..384).map(|id| (word(id), id.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    });
    std::fs::write(model.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let row = |id: usize| {
        let category = if id.is_multiple_of(2) { "角色扮演" } else { "数学计算" };
        let row = json!({
            "question_id": id, "category": category, "subcategory": "", "question": "abc ".repeat(id),
            "reference": "abc", "evidences": [],
        });
        format!("{row}\n")
    };
    let questions = dir.join("questions.jsonl");
    std::fs::write(&questions, (1..=7).map(row).collect::<String>()).unwrap();
    (model, questions)
}

fn alignbench(model: &Path, questions: &Path, out: &Path, more: &[&str]) -> (bool, Value, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flm"));
    command.args(["eval", "alignbench", "--json", "--max-new-tokens", "12"]).arg(model);
    command.arg("--questions").arg(questions).arg("--out").arg(out).args(more);
    let output = command.output().unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.success(), json, String::from_utf8(output.stderr).unwrap())
}

fn rows(out: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join("answers.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn answers(out: &Path) -> BTreeMap<u64, (String, Value)> {
    rows(out)
        .into_iter()
        .map(|row| {
            let answer = row["answer"].as_str().unwrap().to_owned();
            (row["question_id"].as_u64().unwrap(), (answer, row["temperature"].clone()))
        })
        .collect()
}

#[test]
fn streamed_resident_and_resumed_answers_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (model, questions) = checkpoint_and_questions(dir.path());
    let out = |name: &str| dir.path().join(name);
    let (ok, resident, error) = alignbench(&model, &questions, &out("resident"), &["--judge", "rule"]);
    assert!(ok, "{error}");
    let (ok, streamed, error) = alignbench(&model, &questions, &out("streamed"), &["--stream"]);
    assert!(ok, "{error}");
    let (ok, small, error) = alignbench(&model, &questions, &out("small"), &["--batch", "2"]);
    assert!(ok, "{error}");
    let expected = answers(&out("resident"));
    assert_eq!(expected.len(), 7);
    assert_eq!((&expected[&1].1, &expected[&2].1), (&json!(0.1), &json!(0.7)));
    assert!(expected.values().map(|(answer, _)| answer).collect::<std::collections::BTreeSet<_>>().len() > 3);
    assert_eq!(answers(&out("streamed")), expected);
    assert_eq!(answers(&out("small")), expected);
    // one pass over the weights advances every answer: as many as the longest has tokens, a prompt being
    // read in one pass that also makes the first of them
    let longest = rows(&out("streamed")).iter().map(|row| row["tokens"].as_u64().unwrap()).max().unwrap();
    assert!(rows(&out("streamed")).iter().all(|row| row["round"] == 0));
    assert_eq!((&streamed["answers"]["passes"], longest), (&json!(longest), 12));
    assert_eq!(resident["answers"]["passes"], streamed["answers"]["passes"]);
    // seven questions two by two
    assert_eq!(small["answers"]["passes"], json!(4 * longest));
    assert!(streamed["answers"]["cost"]["seconds_per_pass"].as_f64().unwrap() > 0.0);
    assert_eq!(resident["scores"]["ledger"]["rows"], json!(7));
    assert_eq!(resident["identity"]["data_sha256"].as_str().unwrap().len(), 64);

    // cut in the middle of a row, as a kill leaves it
    let path = out("resident").join("answers.jsonl");
    let text = std::fs::read(&path).unwrap();
    std::fs::write(&path, &text[..text.len() * 2 / 3]).unwrap();
    std::fs::remove_file(out("resident").join("judgments.jsonl")).unwrap();
    let (ok, resumed, error) = alignbench(&model, &questions, &out("resident"), &[]);
    assert!(ok, "{error}");
    assert!((1..7).contains(&resumed["answers"]["already"].as_u64().unwrap()));
    assert_eq!(answers(&out("resident")), expected);
    // other settings do not go into the same file
    let (ok, _, error) = alignbench(&model, &questions, &out("resident"), &["--seed", "1"]);
    assert!(!ok && error.contains("another settings_digest; give another --out"), "{error}");
}

#[test]
fn a_dry_run_says_what_it_would_take_and_a_checkpoint_can_judge() {
    let dir = tempfile::tempdir().unwrap();
    let (model, questions) = checkpoint_and_questions(dir.path());
    let out = dir.path().join("out");
    let (ok, report, _) = alignbench(&model, &questions, &out, &["--dry-run", "--batch", "4"]);
    assert!(!out.exists(), "a dry run makes nothing");
    assert!(ok);
    assert_eq!(report["answers"]["cost"]["passes"], json!(24));
    assert_eq!(report["answers"]["answered"], json!(0));
    let template = dir.path().join("short.jinja");
    std::fs::write(&template, "{{ question }}").unwrap();
    let (judge, template) = (model.to_str().unwrap(), template.to_str().unwrap());
    let more = ["--judge-dir", judge, "--judge-template", template, "--judge-max-new-tokens", "4"];
    let (ok, report, error) = alignbench(&model, &questions, &out, &more);
    // what it says is noise without an end, which is no judgment
    assert!(!ok, "{error}");
    assert_eq!((&report["judgments"]["judged"], &report["scores"]), (&json!(0), &Value::Null));
    let failed = report["judgments"]["failed"].as_array().unwrap();
    assert_eq!(failed.len(), 7);
    assert!(failed[0]["why"].as_str().unwrap().contains("--judge-max-new-tokens"), "{}", failed[0]);
}

#[test]
fn a_raised_limit_asks_only_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let (model, questions) = checkpoint_and_questions(dir.path());
    let out = dir.path().join("out");
    let run = |limit: &str| alignbench(&model, &questions, &out, &["--limit", limit, "--name", "my model"]);
    let (ok, report, error) = run("2");
    assert!(ok && report["answers"]["answered"] == json!(2), "{error}");
    // more categories than before: the settings are the same
    let (ok, report, error) = run("7");
    assert!(ok, "{error}");
    assert_eq!((&report["answers"]["answered"], &report["answers"]["already"]), (&json!(5), &json!(2)));
    assert_eq!(report["answers"]["model"], "my model");
    assert!(report["answers"]["cut"].as_u64() <= Some(7) && report["answers"]["cut"].is_u64());
    // one file has the answers of one name
    let before = std::fs::read(out.join("answers.jsonl")).unwrap();
    let (ok, _, error) = alignbench(&model, &questions, &out, &["--limit", "7", "--name", "other"]);
    assert!(!ok && error.contains("under the name \"my model\"") && error.contains("--out"), "{error}");
    assert_eq!(std::fs::read(out.join("answers.jsonl")).unwrap(), before);
}

#[test]
fn scores_replace_earlier_scores_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (model, questions) = checkpoint_and_questions(dir.path());
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let scores = out.join("scores.json");
    std::fs::write(&scores, "{\"mine\": 1}").unwrap();
    let run = |more: &[&str]| {
        let judge = ["--judge", "rule", "--limit", "2"];
        alignbench(&model, &questions, &out, &[&judge[..], more].concat())
    };
    let (ok, _, error) = run(&[]);
    assert!(!ok && error.contains("scores.json exists and is no earlier result"), "{error}");
    assert_eq!(std::fs::read_to_string(&scores).unwrap(), "{\"mine\": 1}");
    assert!(!out.join("answers.jsonl").exists(), "refused before any work");
    for more in [&["--force"][..], &[]] {
        let (ok, _, error) = run(more);
        assert!(ok, "{error}");
        let written: Value = serde_json::from_slice(&std::fs::read(&scores).unwrap()).unwrap();
        assert_eq!(written["scores"]["ledger"]["rows"], json!(2));
    }
}
