//! Lines from a terminal, with editing and history, or from a pipe.

use std::{
    io::{BufRead, IsTerminal, StdinLock},
    path::{Path, PathBuf},
};

use anyhow::Context;
use rustyline::{Behavior, Config, DefaultEditor, error::ReadlineError};

use crate::output_file;

/// Where the lines come from: a terminal, with editing and history, or a pipe or a file.
pub(crate) enum Input {
    Terminal { editor: Box<DefaultEditor>, history: Option<PathBuf> },
    Pipe { lines: StdinLock<'static>, number: usize },
}

/// The first line of a file of the editor's.
const HISTORY: &str = "#V2";

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Text(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D, or the end of the file.
    End,
}

impl Input {
    /// Standard input; on a terminal, lines of earlier conversations come from the file `history`, where
    /// one is given.
    pub(crate) fn open(history: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(path) = history {
            // anything else would be cut to the lines that the editor keeps
            output_file::check_appended(path, |first| first == HISTORY)?;
        }
        if !std::io::stdin().is_terminal() {
            return Ok(Self::Pipe { lines: std::io::stdin().lock(), number: 0 });
        }
        // where the answers go to a file, the prompt must not
        let stdout = std::io::stdout().is_terminal();
        let behavior = if stdout { Behavior::Stdio } else { Behavior::PreferTerm };
        let config = Config::builder().auto_add_history(true).behavior(behavior).build();
        let mut editor = Box::new(DefaultEditor::with_config(config)?);
        if let Some(path) = history.filter(|path| path.exists()) {
            editor.load_history(path).with_context(|| format!("cannot read {}", path.display()))?;
        }
        Ok(Self::Terminal { editor, history: history.map(Path::to_owned) })
    }

    /// Whether a person is at the other end.
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// The next line; a backslash at its end goes on in the one after it.
    pub(crate) fn read(&mut self) -> anyhow::Result<Line> {
        let mut text = String::new();
        loop {
            match self.read_one(if text.is_empty() { "> " } else { "… " })? {
                Line::Text(line) => match line.strip_suffix('\\') {
                    Some(part) => {
                        text.push_str(part);
                        text.push('\n');
                    }
                    None => return Ok(Line::Text(text + &line)),
                },
                Line::End if !text.is_empty() => return Ok(Line::Text(text)),
                other => return Ok(other),
            }
        }
    }

    fn read_one(&mut self, prompt: &str) -> anyhow::Result<Line> {
        match self {
            Self::Terminal { editor, history } => match editor.readline(prompt) {
                Ok(line) => {
                    if let Some(path) = history {
                        editor
                            .append_history(path)
                            .with_context(|| format!("cannot write {}", path.display()))?;
                    }
                    Ok(Line::Text(line))
                }
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(error) => Err(error).context("cannot read from the terminal"),
            },
            Self::Pipe { lines, number } => {
                *number += 1;
                let mut bytes = Vec::new();
                if lines.read_until(b'\n', &mut bytes).context("cannot read standard input")? == 0 {
                    return Ok(Line::End);
                }
                let line = String::from_utf8(bytes)
                    .ok()
                    .with_context(|| format!("line {number} of standard input is not UTF-8 text"))?;
                Ok(Line::Text(line.trim_end_matches(['\n', '\r']).to_owned()))
            }
        }
    }
}
