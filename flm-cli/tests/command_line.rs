//! Usage errors and help of the built binary.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn flm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flm")).args(arguments).output().expect("flm runs")
}

#[test]
fn help_goes_to_stdout_and_succeeds() {
    let out = flm(&["--help"]);
    assert_eq!(out.status.code(), Some(0));
    let help = String::from_utf8(out.stdout).unwrap();
    for command in [
        "demo", "inspect", "convert", "grow", "verify", "logits", "generate", "chat", "eval", "models",
        "pull", "sft", "export", "init",
    ] {
        assert!(help.contains(command), "{command}");
    }
}

#[test]
fn every_command_shows_an_example() {
    let mut commands: Vec<Vec<&str>> =
        ["perplexity", "alignbench", "judge", "score", "report"].map(|name| vec!["eval", name]).into();
    let names = [
        "inspect",
        "convert",
        "grow",
        "verify",
        "logits",
        "generate",
        "chat",
        "eval",
        "models",
        "pull",
        "sft",
        "demo",
        "completions",
    ];
    commands.push(vec!["export", "gguf"]);
    commands.extend(["fold", "distance"].map(|name| vec![name]));
    commands.extend(names.map(|name| vec![name]));
    for mut command in commands {
        command.push("--help");
        let out = flm(&command);
        let help = String::from_utf8(out.stdout).unwrap();
        assert!(out.status.success() && help.contains("Example"), "{command:?}: {help}");
    }
}

#[test]
fn wrong_usage_exits_with_2_and_failed_work_with_1() {
    assert_eq!(flm(&["no-such-command"]).status.code(), Some(2));
    assert_eq!(flm(&["logits", "x", "--ids", "1,a", "--out", "y"]).status.code(), Some(2));
    let out = flm(&["inspect", "no-such-directory"]);
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8(out.stderr).unwrap();
    assert!(text.starts_with("error: cannot open no-such-directory"), "{text}");
    assert!(out.stdout.is_empty());
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let out = flm(&["completions", shell]);
        assert!(out.status.success());
        assert!(String::from_utf8(out.stdout).unwrap().contains("perplexity"), "{shell}");
    }
}
