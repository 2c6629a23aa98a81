//! What commands write where a user says, and how much of an input they read.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Output;

use flm_tests::{flm, flm_json};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

fn nano(dir: &Path) -> PathBuf {
    flm_json(["demo", "--dir", text(&dir.join("demo")), "--until", "convert"]);
    dir.join("demo/nano-52b")
}

/// What a command that must fail says.
fn refused(out: &Output) -> String {
    assert_eq!(out.status.code(), Some(1));
    String::from_utf8(out.stderr.clone()).unwrap()
}

#[test]
fn results_replace_no_input_no_device_and_no_file_of_the_users() {
    let dir = tempfile::tempdir().unwrap();
    let model = nano(dir.path());
    let m = text(&model);
    let weights = fs::read_dir(&model)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .unwrap();
    let commands: [(&[&str], &str, PathBuf); 3] = [
        (&["logits", m, "--ids", "1,2"], "--out", weights),
        (&["distance", m, "--windows", "1", "--context", "8"], "--picture", model.join("config.json")),
        (&["verify", m, m, "--windows", "1", "--context", "8"], "--report", model.join("tokenizer.model")),
    ];
    let (notes, link) = (dir.path().join("notes"), dir.path().join("link"));
    fs::write(&notes, "mine").unwrap();
    symlink(&notes, &link).unwrap();
    for (command, option, input) in &commands {
        for (target, force, says) in [
            (input, "--quiet", "a checkpoint's file"),
            (input, "--force", "a checkpoint's file"),
            (&notes, "--quiet", "--force"),
        ] {
            let before = fs::read(target).unwrap();
            let said = refused(&flm(command.iter().chain(&[*option, text(target), force])));
            assert!(said.contains(says), "{said}");
            assert_eq!(fs::read(target).unwrap(), before, "{}", target.display());
        }
        // the name alone: a reader would take it for the weights
        let absent = model.join("pytorch_model.bin");
        let said = refused(&flm(command.iter().chain(&[*option, text(&absent), "--force"])));
        assert!(said.contains("a checkpoint's file") && !absent.exists(), "{said}");
        for target in [&link, Path::new("/dev/full")] {
            let said = refused(&flm(command.iter().chain(&[*option, text(target), "--force"])));
            assert!(said.contains("not a regular file"), "{said}");
        }
        // a result of its own is replaced, another file on request
        let own = dir.path().join(format!("own{option}"));
        for _ in 0..2 {
            assert!(flm(command.iter().chain(&[*option, text(&own)])).status.success());
        }
        let copy = dir.path().join("copy");
        fs::copy(&notes, &copy).unwrap();
        assert!(flm(command.iter().chain(&[*option, text(&copy), "--force"])).status.success());
        assert_eq!(fs::metadata(&copy).unwrap().len(), fs::metadata(&own).unwrap().len());
    }
    // pages of two commands are two kinds
    let (verification, evaluation) = (dir.path().join("own--report"), dir.path().join("evaluation.html"));
    let judgments = dir.path().join("judgments.jsonl");
    let row = r#"{"question_id":1,"category":"c","model":"m","judge":"j","judgment":"综合得分：8"}"#;
    fs::write(&judgments, format!("{row}\n")).unwrap();
    let page = |out: &Path| flm(["eval", "report", text(&judgments), "--out", text(out)]);
    assert!(page(&evaluation).status.success() && page(&evaluation).status.success());
    let before = fs::read(&verification).unwrap();
    assert!(refused(&page(&verification)).contains("no earlier result of this command"));
    assert_eq!(fs::read(&verification).unwrap(), before);
    let (command, option, _) = &commands[2];
    let said = refused(&flm(command.iter().chain(&[*option, text(&evaluation)])));
    assert!(said.contains("no earlier result of this command"), "{said}");
    assert_eq!(fs::read_to_string(&notes).unwrap(), "mine");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
}

#[test]
fn inputs_are_read_no_further_than_they_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let model = nano(dir.path());
    let m = text(&model);
    // an endless file
    let zero = "/dev/zero";
    let said = refused(&flm(["generate", m, "--prompt-file", zero, "--max-new-tokens", "1"]));
    assert!(said.contains("context of 512 tokens"), "{said}");
    for command in ["verify", "distance"] {
        let with = |more: &[&str]| {
            let pair = if command == "verify" { vec![command, m, m] } else { vec![command, m] };
            flm(pair.iter().chain(more))
        };
        assert!(with(&["--text", zero, "--windows", "1", "--context", "8"]).status.success(), "{command}");
        for context in ["513", "1000000000000"] {
            assert!(refused(&with(&["--context", context])).contains("context is 512 tokens"), "{command}");
        }
        assert!(refused(&with(&["--windows", "1000000000"])).contains("at most 4194304"), "{command}");
    }
    let ids = vec!["1"; 513].join(",");
    let out = dir.path().join("l.safetensors");
    let said = refused(&flm(["logits", m, "--ids", &ids, "--out", text(&out)]));
    assert!(said.contains("513 tokens: the model's context is 512"), "{said}");
    assert!(!out.exists());
}
