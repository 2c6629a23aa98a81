//! README.md shows what the command line is.

use std::path::{Path, PathBuf};

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")
}

fn readme() -> String {
    std::fs::read_to_string(path()).expect("README.md")
}

/// A row for every command: `| flm NAME | its first sentence |`.
fn rows(command: &clap::Command, prefix: &str) -> Vec<String> {
    let mut rows = Vec::new();
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let name = format!("{prefix} {}", sub.get_name());
        if sub.has_subcommands() {
            rows.extend(crate::rows(sub, &name));
        } else {
            let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
            rows.push(format!("| `{name}` | {} |", about.trim_end_matches('.')));
        }
    }
    rows
}

const START: &str = "<!-- commands: written by `FLM_UPDATE=1 cargo test --workspace --test readme` -->\n";
const END: &str = "<!-- end of commands -->";

#[test]
fn the_table_of_commands_is_the_command_lines() {
    let rows = rows(&flm_cli::command(), "flm");
    let table = format!("| command | does |\n|---|---|\n{}\n", rows.join("\n"));
    let text = readme();
    let (before, rest) = text.split_once(START).expect("the mark before the table");
    let (shown, after) = rest.split_once(END).expect("the mark after the table");
    if std::env::var_os("FLM_UPDATE").is_some() {
        std::fs::write(path(), [before, START, &table, END, after].concat()).expect("README.md is written");
    } else {
        assert_eq!(shown, table, "the table in README.md is stale: FLM_UPDATE=1 writes it");
    }
}
