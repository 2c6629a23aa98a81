use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::{
    AdamWOptions, Decay, Multipliers, TrainError,
    data::{DataOptions, Truncation},
};

/// Everything that a training run is told; see `recipes/tele-flm-sft.toml` for each setting's meaning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Checkpoint directory to start from.
    pub model: PathBuf,
    /// Directory for checkpoints, metrics and the trained model.
    pub output: PathBuf,
    /// Data.
    pub data: DataSettings,
    /// Length and batches.
    #[serde(default)]
    pub train: TrainSettings,
    /// AdamW and its schedule.
    #[serde(default)]
    pub optimizer: OptimizerSettings,
    /// Where things are kept.
    #[serde(default)]
    pub memory: MemorySettings,
    /// Checkpoints.
    #[serde(default)]
    pub save: SaveSettings,
}

/// What is trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataSettings {
    /// JSONL or .txt files.
    pub files: Vec<PathBuf>,
    /// Files to validate on.
    #[serde(default)]
    pub validation_files: Vec<PathBuf>,
    /// Share of the documents to validate on, where there are no files for it.
    #[serde(default)]
    pub validation: f64,
    /// Tokens of a row; the model's own context where it is not given.
    #[serde(default)]
    pub context_length: Option<usize>,
    /// Several documents a row.
    #[serde(default = "yes")]
    pub packing: bool,
    /// What happens to longer samples.
    #[serde(default)]
    pub truncation: Truncation,
    /// Whether an assistant turn ends in the end-of-text token.
    #[serde(default = "yes")]
    pub close_turns: bool,
    /// A file with a chat template, instead of the tokenizer's own.
    #[serde(default)]
    pub chat_template: Option<PathBuf>,
}

fn yes() -> bool {
    true
}

/// How long and in which batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainSettings {
    /// Passes over the data.
    pub epochs: u64,
    /// Stop after this many steps.
    pub max_steps: Option<u64>,
    /// Rows of a step.
    pub batch_size: usize,
    /// Rows that run together.
    pub micro_batch_size: usize,
    /// Seed of the data's order.
    pub seed: u64,
    /// Validate every so many steps (0: only with checkpoints and at the end).
    pub validate_every: u64,
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self { epochs: 4, max_steps: None, batch_size: 32, micro_batch_size: 1, seed: 0, validate_every: 0 }
    }
}

/// The update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OptimizerSettings {
    /// The highest learning rate.
    pub learning_rate: f64,
    /// The last step's.
    pub final_learning_rate: f64,
    /// `linear`, `cosine` or `constant`.
    pub schedule: Decay,
    /// Steps of rising rate.
    pub warmup_steps: u64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled, on matrices only.
    pub weight_decay: f64,
    /// Largest norm of the whole gradient; 0 is no limit.
    pub clip_norm: f64,
    /// Factors on the learning rate.
    pub multipliers: Multipliers,
}

impl Default for OptimizerSettings {
    fn default() -> Self {
        let adamw = AdamWOptions::default();
        Self {
            learning_rate: 2.7e-5,
            final_learning_rate: 1e-9,
            schedule: Decay::Linear,
            warmup_steps: 0,
            beta1: adamw.beta1,
            beta2: adamw.beta2,
            eps: adamw.eps,
            weight_decay: 0.0,
            clip_norm: 1.0,
            multipliers: Multipliers::default(),
        }
    }
}

/// Where parameters, gradients and optimizer state are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// The fastest that fits the budget.
    #[default]
    Auto,
    /// In memory, weights also on the device.
    Resident,
    /// In host memory; weights go to the device for each use.
    Host,
    /// In files.
    Disk,
}

/// Whether block inputs or whole graphs are kept for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Graphs where they fit the budget.
    #[default]
    Auto,
    /// Block inputs: each block runs again in the backward pass.
    Always,
    /// Graphs: more memory, a quarter less arithmetic.
    Never,
}

/// Where things are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemorySettings {
    /// Where parameters, gradients and optimizer state are.
    pub placement: Placement,
    /// Host memory to stay within, for example "16GB"; 0 is what the machine has free.
    pub budget: String,
    /// Whether blocks run again in the backward pass.
    pub recompute: Recompute,
    /// Folder for the files of `placement = "disk"`; in the output directory where it is empty.
    pub work_dir: PathBuf,
}

impl Default for MemorySettings {
    fn default() -> Self {
        Self {
            placement: Placement::Auto,
            budget: "0".into(),
            recompute: Recompute::Auto,
            work_dir: PathBuf::new(),
        }
    }
}

/// Checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SaveSettings {
    /// Save every so many steps; 0 is only at the end.
    pub every_steps: u64,
    /// Training checkpoints to keep.
    pub keep: usize,
    /// Keep the one with the lowest validation loss as well.
    pub keep_best: bool,
    /// Dtype of the trained model: f32, bf16 or f16.
    pub dtype: String,
}

impl Default for SaveSettings {
    fn default() -> Self {
        Self { every_steps: 0, keep: 2, keep_best: true, dtype: "bf16".into() }
    }
}

/// The keys that a recipe may have, sections as `section.key`.
const KEYS: &[&str] = &[
    "model",
    "output",
    "data.files",
    "data.validation_files",
    "data.validation",
    "data.context_length",
    "data.packing",
    "data.truncation",
    "data.close_turns",
    "data.chat_template",
    "train.epochs",
    "train.max_steps",
    "train.batch_size",
    "train.micro_batch_size",
    "train.seed",
    "train.validate_every",
    "optimizer.learning_rate",
    "optimizer.final_learning_rate",
    "optimizer.schedule",
    "optimizer.warmup_steps",
    "optimizer.beta1",
    "optimizer.beta2",
    "optimizer.eps",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "optimizer.multipliers.embedding",
    "optimizer.multipliers.matrix",
    "optimizer.multipliers.norm",
    "optimizer.multipliers.head",
    "memory.placement",
    "memory.budget",
    "memory.recompute",
    "memory.work_dir",
    "save.every_steps",
    "save.keep",
    "save.keep_best",
    "save.dtype",
];

impl Recipe {
    /// Reads a recipe file; `overrides` are `key=value`, as `optimizer.learning_rate=1e-5`. Paths in the
    /// file are relative to it, paths in overrides to the working directory.
    ///
    /// # Errors
    /// [`TrainError::Recipe`] for anything wrong; an unknown key with the nearest known one.
    pub fn from_file(path: &Path, overrides: &[String]) -> Result<Self, TrainError> {
        let text = std::fs::read_to_string(path).map_err(TrainError::file("read", path))?;
        let mut table: Table =
            text.parse().map_err(|e| TrainError::Recipe(format!("{}: {e}", path.display())))?;
        let dir = path.parent().unwrap_or(Path::new("."));
        for key in PATHS {
            if let Some(value) = find(&mut table, key) {
                relative_to(value, dir);
            }
        }
        for change in overrides {
            set(&mut table, change)?;
        }
        check_keys(&table, "")?;
        let recipe: Self = Value::Table(table)
            .try_into()
            .map_err(|e: toml::de::Error| TrainError::Recipe(e.to_string().trim().replace('\n', " ")))?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// Checks what the types do not.
    pub fn validate(&self) -> Result<(), TrainError> {
        let wrong = |text: String| Err(TrainError::Recipe(text));
        let positive = |key: &str, value: f64, zero: bool| {
            let ok = value.is_finite() && (value > 0.0 || zero && value == 0.0);
            let least = if zero { "≥ 0" } else { "> 0" };
            if ok {
                Ok(())
            } else {
                Err(TrainError::Recipe(format!("{key} is {value}, expected a number {least}")))
            }
        };
        let o = &self.optimizer;
        positive("optimizer.learning_rate", o.learning_rate, false)?;
        positive("optimizer.final_learning_rate", o.final_learning_rate, true)?;
        positive("optimizer.eps", o.eps, false)?;
        positive("optimizer.weight_decay", o.weight_decay, true)?;
        positive("optimizer.clip_norm", o.clip_norm, true)?;
        for (key, beta) in [("beta1", o.beta1), ("beta2", o.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return wrong(format!("optimizer.{key} is {beta}, expected a number in [0, 1)"));
            }
        }
        if self.data.files.is_empty() {
            return wrong("data.files is empty: name at least one file".into());
        }
        if !(0.0..1.0).contains(&self.data.validation) {
            return wrong(format!("data.validation is {}, expected a share in [0, 1)", self.data.validation));
        }
        if self.data.context_length.is_some_and(|n| n < 2) {
            return wrong("data.context_length must be at least 2".into());
        }
        let t = &self.train;
        for (key, n) in [("batch_size", t.batch_size), ("micro_batch_size", t.micro_batch_size)] {
            if n == 0 {
                return wrong(format!("train.{key} must be at least 1"));
            }
        }
        if t.epochs == 0 || t.max_steps == Some(0) {
            return wrong("train.epochs and train.max_steps must be at least 1".into());
        }
        self.budget()?;
        self.save_dtype().map(drop)
    }

    /// The memory budget in bytes; `None` is what the machine has.
    pub fn budget(&self) -> Result<Option<u64>, TrainError> {
        let text = self.memory.budget.trim();
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "tb" => 1e12,
            "kib" => 1024.0,
            "mib" => 1048576.0,
            "gib" => 1073741824.0,
            "tib" => 1099511627776.0,
            _ => f64::NAN,
        };
        match digits.trim().parse::<f64>().map(|n| n * unit) {
            Ok(0.0) => Ok(None),
            Ok(bytes) if bytes >= 1.0 && bytes.is_finite() => Ok(Some(bytes as u64)),
            _ => Err(TrainError::Recipe(format!(
                "memory.budget is {text:?}, expected a size such as \"16GB\""
            ))),
        }
    }

    /// Dtype of the trained model.
    pub fn save_dtype(&self) -> Result<candle_core::DType, TrainError> {
        match self.save.dtype.as_str() {
            "f32" => Ok(candle_core::DType::F32),
            "bf16" => Ok(candle_core::DType::BF16),
            "f16" => Ok(candle_core::DType::F16),
            other => Err(TrainError::Recipe(format!("save.dtype is {other:?}, expected f32, bf16 or f16"))),
        }
    }

    /// How data becomes rows of at most `context` tokens.
    pub fn data_options(&self, context: usize) -> DataOptions {
        DataOptions {
            files: self.data.files.clone(),
            validation_files: self.data.validation_files.clone(),
            validation: self.data.validation,
            context: self.data.context_length.unwrap_or(context),
            truncation: self.data.truncation,
            packing: self.data.packing,
            seed: self.train.seed,
        }
    }

    /// The constants of the update.
    pub fn adamw(&self) -> AdamWOptions {
        let o = &self.optimizer;
        AdamWOptions {
            beta1: o.beta1,
            beta2: o.beta2,
            eps: o.eps,
            weight_decay: o.weight_decay,
            multipliers: o.multipliers,
        }
    }
}

/// Keys that hold paths.
const PATHS: [&str; 6] =
    ["model", "output", "data.files", "data.validation_files", "data.chat_template", "memory.work_dir"];

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
fn set(table: &mut Table, change: &str) -> Result<(), TrainError> {
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

fn check_keys(table: &Table, prefix: &str) -> Result<(), TrainError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, overrides: &[&str]) -> Result<Recipe, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recipe.toml");
        std::fs::write(&path, text).unwrap();
        let overrides: Vec<String> = overrides.iter().map(|&s| s.to_owned()).collect();
        Recipe::from_file(&path, &overrides).map_err(|e| e.to_string())
    }

    const MINIMAL: &str = "model = \"m\"\noutput = \"/o\"\n[data]\nfiles = [\"a.jsonl\"]\n";

    #[test]
    fn every_known_key_can_be_set_and_no_other_exists() {
        let recipe = read(MINIMAL, &[]).unwrap();
        assert!(recipe.model.ends_with("m") && recipe.model.is_absolute());
        assert_eq!((recipe.output.to_str(), recipe.train.epochs), (Some("/o"), 4));
        let mut full = recipe;
        (full.data.context_length, full.train.max_steps) = (Some(8), Some(3));
        full.data.chat_template = Some("t".into());
        let mut keys = Vec::new();
        fn walk(value: &Value, path: &str, keys: &mut Vec<String>) {
            match value {
                Value::Table(t) => {
                    t.iter().for_each(|(k, v)| walk(v, format!("{path}.{k}").trim_start_matches('.'), keys));
                }
                _ => keys.push(path.to_owned()),
            }
        }
        walk(&Value::try_from(&full).unwrap(), "", &mut keys);
        keys.sort();
        let mut known = KEYS.to_vec();
        known.sort_unstable();
        assert_eq!(keys, known);
    }

    #[test]
    fn overrides_are_toml_values_or_words() {
        let recipe = read(
            MINIMAL,
            &[
                "optimizer.learning_rate=1e-4",
                "memory.placement=disk",
                "data.packing=false",
                "memory.budget=2GiB",
                "optimizer.multipliers.norm=0.5",
            ],
        )
        .unwrap();
        assert_eq!((recipe.optimizer.learning_rate, recipe.memory.placement), (1e-4, Placement::Disk));
        assert_eq!((recipe.data.packing, recipe.budget().unwrap()), (false, Some(2 << 30)));
        assert_eq!(recipe.optimizer.multipliers, Multipliers { norm: 0.5, ..Multipliers::default() });
    }

    #[test]
    fn unknown_keys_suggest_the_nearest_and_wrong_values_are_named() {
        for (text, change, says) in [
            (
                "[train]\nbach_size = 3\n",
                None,
                "unknown key `train.bach_size`; did you mean `train.batch_size`?",
            ),
            ("learning_rate = 3\n", None, "did you mean `optimizer.learning_rate`?"),
            ("[optimiser]\nbeta1 = 0.9\n", None, "did you mean `optimizer"),
            ("", Some("train.epoch=2"), "did you mean `train.epochs`?"),
            ("", Some("train.epochs"), "not of the form key=value"),
            ("", Some("train.batch_size=0"), "train.batch_size must be at least 1"),
            ("", Some("optimizer.beta2=1.5"), "optimizer.beta2"),
            ("", Some("optimizer.learning_rate=-1"), "optimizer.learning_rate"),
            ("", Some("data.validation=2"), "data.validation"),
            ("", Some("memory.budget=8X"), "memory.budget"),
            ("", Some("memory.placement=gpu"), "unknown variant"),
            ("", Some("save.dtype=int8"), "save.dtype"),
            ("", Some("data.files=[]"), "data.files"),
        ] {
            // keys of the top level stand before the sections
            let text =
                if text.starts_with('[') { format!("{MINIMAL}{text}") } else { format!("{text}{MINIMAL}") };
            let error = read(&text, &change.into_iter().collect::<Vec<_>>()).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
