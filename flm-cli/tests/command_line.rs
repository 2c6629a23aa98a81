//! Usage errors and help of the built binary.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn flm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flm")).args(arguments).output().expect("flm runs")
}

/// Every command that does something, with its words: `["flm", "eval", "judge"]`.
fn commands() -> Vec<(Vec<String>, clap::Command)> {
    fn below(command: &clap::Command, words: &[String], found: &mut Vec<(Vec<String>, clap::Command)>) {
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let words = [words, &[sub.get_name().to_owned()]].concat();
            below(sub, &words, found);
            if !sub.has_subcommands() {
                found.push((words, sub.clone()));
            }
        }
    }
    let mut found = Vec::new();
    let mut all = flm_cli::command();
    all.build();
    below(&all, &["flm".to_owned()], &mut found);
    assert!(found.len() > 15);
    found
}

/// The examples at the end of a help, each on one line.
fn examples(help: &str) -> Vec<String> {
    let joined = help.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim).filter(|line| line.split(' ').any(|word| word == "flm"));
    lines.filter(|line| !line.contains('`')).map(str::to_owned).collect()
}

/// The words of a command in a shell, up to a redirection, a pipe or a comment.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(q), _) if c == q => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ' ') => words.extend(word.take()),
            // what is piped into it
            (None, '|') if word.is_none() && !words.iter().any(|word| word == "flm") => words.clear(),
            (None, '>' | '|' | '#' | ';') if word.is_none() => break,
            _ => word.get_or_insert_default().push(c),
        }
    }
    assert_eq!(quote, None, "an open quote: {line}");
    words.extend(word);
    let start = words.iter().position(|word| word == "flm").unwrap();
    let mut words = words.split_off(start);
    // cargo run --bin flm -- demo
    words.retain(|word| word != "--");
    words
}

#[track_caller]
fn parses(line: &str) {
    if let Err(error) = flm_cli::command().try_get_matches_from(words(line)) {
        panic!("{line}\n{error}");
    }
}

#[test]
fn help_goes_to_stdout_and_succeeds() {
    let out = flm(&["--help"]);
    assert_eq!(out.status.code(), Some(0));
    let help = String::from_utf8(out.stdout).unwrap();
    for command in flm_cli::command().get_subcommands() {
        assert!(help.contains(command.get_name()), "{}", command.get_name());
    }
}

#[test]
fn every_command_shows_examples_that_parse_and_fit_a_terminal() {
    for (name, mut command) in commands() {
        let help = command.render_long_help().to_string();
        let shown = help.split_once("\nExample").map(|(_, shown)| shown).unwrap_or_default();
        let examples = examples(shown);
        for example in &examples {
            parses(example);
        }
        assert!(examples.iter().any(|example| words(example).starts_with(&name)), "{name:?}: {examples:?}");
        for line in shown.lines() {
            let columns: usize = line.chars().map(|c| if c < '\u{2e80}' { 1 } else { 2 }).sum();
            assert!(columns <= 78, "{columns} columns: {line}");
        }
    }
}

/// Commands in the fenced blocks of a text.
fn fenced(text: &str) -> Vec<String> {
    let blocks = text.split("```").skip(1).step_by(2);
    let shell = blocks.filter_map(|block| block.strip_prefix("sh\n"));
    let inline = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    let whole = inline.filter(|code| code.starts_with("flm ") && code.contains(" ./")).map(str::to_owned);
    shell
        .map(|block| block.replace("target/release/flm ", "flm "))
        .flat_map(|block| examples(&block))
        .chain(whole)
        .collect()
}

#[test]
fn commands_in_the_readme_parse() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let commands = fenced(&std::fs::read_to_string(path).unwrap());
    assert!(!commands.is_empty());
    for command in &commands {
        parses(command);
    }
}

/// Every option says what it is and what it takes, and means the same wherever it stands.
#[test]
fn options_are_told_and_mean_one_thing() {
    let mut takes: std::collections::BTreeMap<String, (String, Vec<String>)> = Default::default();
    let mut problems = Vec::new();
    for (name, command) in commands() {
        for argument in command.get_arguments() {
            let place = format!("{} {}", name.join(" "), argument.get_id());
            if argument.get_help().or(argument.get_long_help()).is_none() {
                problems.push(format!("{place} has no help"));
            }
            // the same: where something is
            let place_of = |name: &clap::builder::Str| match name.as_str() {
                "DIR" | "FILE" | "[NAME=]PATH" => "PATH".to_owned(),
                other => other.to_owned(),
            };
            let value = match argument.get_action().takes_values() {
                true => argument
                    .get_value_names()
                    .unwrap_or_default()
                    .iter()
                    .map(place_of)
                    .collect::<Vec<_>>()
                    .join(" "),
                false => "nothing".into(),
            };
            if argument.get_action().takes_values() && !value.contains(|c: char| c.is_ascii_uppercase()) {
                problems.push(format!("{place} takes {value}, which is no name of a value"));
            }
            // a conversation: the prompt is one, or a file has one
            let Some(long) = argument.get_long().filter(|&long| long != "chat") else { continue };
            let (first, places) = takes.entry(long.to_owned()).or_insert_with(|| (value.clone(), Vec::new()));
            places.push(place.clone());
            if *first != value {
                problems.push(format!("--{long} takes {value} at {place} and {first} at {}", places[0]));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
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
