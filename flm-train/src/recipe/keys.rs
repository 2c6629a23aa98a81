//! Names of settings: which there are, setting one from the command line, telling a wrong one.

use std::path::Path;

use toml::{Table, Value};

use crate::error::TrainError;

/// The keys that a recipe may have, sections as `section.key`.
pub(super) const KEYS: &[&str] = &[
    "model",
    "output",
    "data.files",
    "data.validation_files",
    "data.validation",
    "data.context_length",
    "data.packing",
    "data.truncation",
    "data.unrendered",
    "data.columns",
    "data.close_turns",
    "data.chat_template",
    "data.parse_special",
    "train.epochs",
    "train.max_steps",
    "train.batch_size",
    "train.micro_batch_size",
    "train.seed",
    "train.validate_every",
    "train.peak_flops",
    "optimizer.learning_rate",
    "optimizer.final_learning_rate",
    "optimizer.schedule",
    "optimizer.warmup_steps",
    "optimizer.rewind_step",
    "optimizer.moments",
    "optimizer.beta1",
    "optimizer.beta2",
    "optimizer.eps",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "optimizer.clip",
    "optimizer.weights",
    "optimizer.multipliers.embedding",
    "optimizer.multipliers.matrix",
    "optimizer.multipliers.norm",
    "optimizer.multipliers.head",
    "memory.placement",
    "memory.budget",
    "memory.device_budget",
    "memory.recompute",
    "memory.sweep_rows",
    "memory.inputs",
    "memory.work_dir",
    "save.every_steps",
    "save.keep",
    "save.keep_best",
    "save.dtype",
];

/// Keys that hold paths.
const PATHS: [&str; 6] =
    ["model", "output", "data.files", "data.validation_files", "data.chat_template", "memory.work_dir"];

/// Takes the paths of a recipe as relative to `dir`.
pub(super) fn make_absolute(table: &mut Table, dir: &Path) {
    for key in PATHS {
        if let Some(value) = find(table, key) {
            relative_to(value, dir);
        }
    }
}

fn find<'t>(table: &'t mut Table, key: &str) -> Option<&'t mut Value> {
    match key.split_once('.') {
        None => table.get_mut(key),
        Some((section, rest)) => find(table.get_mut(section)?.as_table_mut()?, rest),
    }
}

fn relative_to(value: &mut Value, dir: &Path) {
    match value {
        Value::String(path) if !path.is_empty() => *path = dir.join(&*path).display().to_string(),
        Value::Array(paths) => paths.iter_mut().for_each(|path| relative_to(path, dir)),
        _ => {}
    }
}

/// Sets `section.key=value`; a value that is no TOML is a string.
pub(super) fn set(table: &mut Table, change: &str) -> Result<(), TrainError> {
    let Some((key, text)) = change.split_once('=') else {
        return Err(TrainError::Recipe(format!("{change:?} is not of the form key=value")));
    };
    let (key, text) = (key.trim(), text.trim());
    if !KEYS.contains(&key) {
        return Err(unknown(key));
    }
    let parsed: Result<Table, _> = format!("value = {text}").parse();
    let value = parsed.ok().and_then(|mut t| t.remove("value")).unwrap_or_else(|| Value::String(text.into()));
    let mut parts: Vec<&str> = key.split('.').collect();
    let last = parts.pop().unwrap_or(key);
    let mut at = table;
    for part in parts {
        let section = at.entry(part).or_insert_with(|| Value::Table(Table::new()));
        at = section.as_table_mut().ok_or_else(|| TrainError::Recipe(format!("{part} is not a section")))?;
    }
    at.insert(last.into(), value);
    Ok(())
}

/// Fails at the first key that no recipe has.
pub(super) fn check_keys(table: &Table, prefix: &str) -> Result<(), TrainError> {
    for (key, value) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        let section = KEYS.iter().any(|known| known.starts_with(&format!("{path}.")));
        match value {
            Value::Table(inner) if section => check_keys(inner, &path)?,
            _ if KEYS.contains(&path.as_str()) || section => {}
            _ => return Err(unknown(&path)),
        }
    }
    Ok(())
}

fn unknown(key: &str) -> TrainError {
    let own = |known: &str| known.rsplit('.').next().unwrap_or(known).to_owned();
    let nearest =
        KEYS.iter().min_by_key(|known| distance(key, known).min(distance(&own(key), &own(known)) + 1));
    let hint = nearest.map_or_else(String::new, |known| format!("; did you mean `{known}`?"));
    TrainError::Recipe(format!("unknown key `{key}`{hint}"))
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
