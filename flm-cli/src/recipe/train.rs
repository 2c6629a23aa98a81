//! The recipe of a training run: its keys, and the options that it says.

use std::path::Path;

use anyhow::{Context, anyhow, ensure};
use flm_train::{Options, TrainError};

use crate::arguments::{RECIPE_BYTES, read_text};
use crate::recipe::keys::{Key, Kind, Settings, assignment, parse};

/// Every setting, under the names that people type for it.
const KEYS: &[Key] = &[
    Key::new("model").of(Kind::Path),
    Key::new("output").of(Kind::Path),
    Key::new("data.files").of(Kind::Paths).also(&["files"]),
    Key::new("data.validation_files").of(Kind::Paths).also(&["validation_files"]),
    Key::new("data.validation").also(&["validation"]),
    Key::new("data.context_length").also(&["context_length", "context", "data.context"]),
    Key::new("data.packing").also(&["packing"]),
    Key::new("data.truncation").also(&["truncation"]),
    Key::new("data.unrendered"),
    Key::new("data.columns").also(&["columns"]),
    Key::new("data.close_turns"),
    Key::new("data.chat_template").of(Kind::Path).also(&["chat_template"]),
    Key::new("data.parse_special"),
    Key::new("train.epochs").also(&["epochs", "num_train_epochs"]),
    Key::new("train.max_steps").also(&["max_steps"]),
    Key::new("train.batch_size").also(&["batch_size"]),
    Key::new("train.micro_batch_size").also(&["micro_batch_size"]),
    Key::new("train.seed").also(&["seed"]),
    Key::new("train.validate_every"),
    Key::new("train.peak_flops").of(Kind::Flops).also(&["peak_flops"]),
    Key::new("optimizer.learning_rate").also(&[
        "learning_rate",
        "lr",
        "train.lr",
        "optimizer.lr",
        "train.learning_rate",
    ]),
    Key::new("optimizer.final_learning_rate").also(&["min_lr"]),
    Key::new("optimizer.schedule"),
    Key::new("optimizer.warmup_steps").also(&["warmup_steps", "train.warmup_steps"]),
    Key::new("optimizer.rewind_step"),
    Key::new("optimizer.moments"),
    Key::new("optimizer.beta1"),
    Key::new("optimizer.beta2"),
    Key::new("optimizer.eps"),
    Key::new("optimizer.weight_decay").also(&["weight_decay", "train.weight_decay"]),
    Key::new("optimizer.clip_norm").also(&["max_grad_norm", "train.max_grad_norm"]),
    Key::new("optimizer.clip"),
    Key::new("optimizer.weights"),
    Key::new("optimizer.multipliers.embedding"),
    Key::new("optimizer.multipliers.matrix"),
    Key::new("optimizer.multipliers.norm"),
    Key::new("optimizer.multipliers.head"),
    Key::new("memory.placement"),
    Key::new("memory.budget").of(Kind::Size),
    Key::new("memory.device_budget").of(Kind::Size),
    Key::new("memory.recompute"),
    Key::new("memory.sweep_rows"),
    Key::new("memory.inputs"),
    Key::new("memory.work_dir").of(Kind::Path),
    Key::new("save.every_steps"),
    Key::new("save.keep"),
    Key::new("save.keep_best"),
    Key::new("save.dtype"),
];

/// The whole recipe as one that is told nothing has it, with a word about every key.
const FULL: &str = include_str!("full.toml");

/// A recipe with what was overridden.
#[derive(Debug, Clone)]
pub(crate) struct Recipe(Settings);

impl Recipe {
    /// The recipe of a file, or one that says nothing yet. Paths in the file are relative to it, other paths
    /// to the working directory.
    pub(crate) fn read(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self(Settings::none(KEYS))) };
        let text = read_text(path, RECIPE_BYTES)?;
        let table = parse(&text).with_context(|| path.display().to_string()).context("recipe")?;
        let mut settings = Settings::read(KEYS, table).context("recipe")?;
        settings.relative_to(path.parent().unwrap_or(Path::new(".")));
        Ok(Self(settings))
    }

    /// Overrides by `key=value`, as `optimizer.learning_rate=1e-5`.
    pub(crate) fn overridden<S: AsRef<str>>(mut self, changes: &[S]) -> anyhow::Result<Self> {
        for change in changes {
            let set = assignment(change.as_ref()).and_then(|(key, word)| self.0.set(key, word));
            set.context("recipe")?;
        }
        Ok(self)
    }

    /// Overrides a key, if there is a value for it.
    pub(crate) fn with(mut self, key: &str, value: Option<impl ToString>) -> anyhow::Result<Self> {
        if let Some(value) = value {
            self.0.set(key, &value.to_string()).context("recipe")?;
        }
        Ok(self)
    }

    /// Overrides the data files, if there are any.
    pub(crate) fn with_data(mut self, files: &[&String]) -> anyhow::Result<Self> {
        if !files.is_empty() {
            self.0.set_list("data.files", files.iter().map(|file| (*file).clone()))?;
        }
        Ok(self)
    }

    /// What the run is told.
    ///
    /// # Errors
    /// Where a value is not possible, or there is no model, no data or no place for the result.
    pub(crate) fn options(&self) -> anyhow::Result<Options> {
        for (key, what) in
            [("model", "--model DIR"), ("output", "--output DIR"), ("data.files", "--data FILE")]
        {
            ensure!(self.0.get(key).is_some(), "recipe: there is no {key}: set it there, or give {what}");
        }
        let options: Options = self.0.options().context("recipe")?;
        options.check().map_err(blamed)?;
        Ok(options)
    }

    /// The whole recipe as a file: what is set, defaults for the rest, and a word about every key.
    pub(crate) fn text(&self) -> String {
        let mut section = String::new();
        let line = |line: &str| -> String {
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
                section = format!("{name}.");
            }
            let key = line.trim_start_matches("# ").split(" = ").next().unwrap_or_default();
            match self.0.get(&format!("{section}{key}")) {
                Some(value) => format!("{key} = {value}\n"),
                None => format!("{line}\n"),
            }
        };
        FULL.lines().map(line).collect()
    }
}

/// All settings of a run as TOML.
pub(crate) fn settings(options: &Options) -> String {
    toml::to_string_pretty(options).unwrap_or_default()
}

/// Whether a word of a command line sets a key, rather than naming a file.
pub(crate) fn is_assignment(word: &str) -> bool {
    let key = word.split_once('=').map(|(key, _)| key.trim());
    key.is_some_and(|key| Settings::none(KEYS).knows(key))
}

/// The error as a user of recipes reads it: a setting stands in the recipe.
pub(crate) fn blamed(error: TrainError) -> anyhow::Error {
    match error {
        TrainError::Setting(_) => anyhow!(error).context("recipe"),
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use flm_train::{Multipliers, Placement};
    use toml::Value;

    use super::*;

    fn read(text: &str, changes: &[&str]) -> Result<Options, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recipe.toml");
        std::fs::write(&path, text).unwrap();
        let recipe = Recipe::read(Some(&path)).and_then(|recipe| recipe.overridden(changes));
        recipe.and_then(|recipe| recipe.options()).map_err(|e| format!("{e:#}"))
    }

    const MINIMAL: &str = "model = \"m\"\noutput = \"/o\"\n[data]\nfiles = [\"a.jsonl\"]\n";

    #[test]
    fn every_known_key_can_be_set_and_no_other_exists() {
        let options = read(MINIMAL, &[]).unwrap();
        assert!(options.model.ends_with("m") && options.model.is_absolute());
        assert_eq!((options.output.to_str(), options.train.epochs), (Some("/o"), 4));
        let mut full = options;
        (full.data.context_length, full.train.max_steps) = (Some(8), Some(3));
        (full.memory.budget, full.memory.device_budget) = (Some(1), Some(1));
        full.train.peak_flops = Some(1.0);
        full.data.chat_template = Some("t".into());
        full.data.columns.insert("prompt".into(), "q".into());
        let mut keys = Vec::new();
        let known = |path: &str| KEYS.iter().any(|key| key.path == path);
        fn walk(value: &Value, path: &str, known: &dyn Fn(&str) -> bool, keys: &mut Vec<String>) {
            match value {
                Value::Table(t) if !known(path) => t
                    .iter()
                    .for_each(|(k, v)| walk(v, format!("{path}.{k}").trim_start_matches('.'), known, keys)),
                _ => keys.push(path.to_owned()),
            }
        }
        walk(&Value::try_from(&full).unwrap(), "", &known, &mut keys);
        keys.sort();
        let mut known: Vec<&str> = KEYS.iter().map(|key| key.path).collect();
        known.sort_unstable();
        assert_eq!(keys, known);
    }

    #[test]
    fn overrides_are_toml_values_or_words() {
        let options = read(
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
        assert_eq!((options.optimizer.learning_rate, options.memory.placement), (1e-4, Placement::Disk));
        assert_eq!((options.data.packing, options.memory.budget), (false, Some(2 << 30)));
        assert_eq!(options.optimizer.multipliers, Multipliers { norm: 0.5, ..Multipliers::default() });
        assert_eq!(options.train.peak_flops, None);
        assert_eq!(read(MINIMAL, &["train.peak_flops=989T"]).unwrap().train.peak_flops, Some(989e12));
    }

    #[test]
    fn names_that_people_type_are_known_in_the_recipe_and_beside_it() {
        let text = format!("lr = 1e-4\nepochs = 2\nbatch_size = 3\n{MINIMAL}[memory]\nbudget = 300000000\n");
        let in_file = read(&text, &[]).unwrap();
        let beside =
            read(MINIMAL, &["train.lr=1e-4", "epochs=2", "batch_size=3", "memory.budget=300000000"]).unwrap();
        for options in [in_file, beside] {
            assert_eq!((options.train.epochs, options.train.batch_size), (2, 3));
            assert_eq!((options.optimizer.learning_rate, options.memory.budget), (1e-4, Some(300_000_000)));
        }
        let twice = read(&format!("{text}[train]\nepochs = 3\n"), &[]).unwrap_err();
        assert!(twice.contains("`train.epochs` is set twice"), "{twice}");
        assert!(is_assignment("lr=1e-4") && is_assignment("train.epochs=1") && !is_assignment("a=b.toml"));
    }

    #[test]
    fn unknown_keys_suggest_the_nearest_and_wrong_values_are_named() {
        for (text, change, says) in [
            (
                "[train]\nbach_size = 3\n",
                None,
                "unknown key `train.bach_size`; did you mean `train.batch_size`?",
            ),
            ("learning_rat = 3\n", None, "did you mean `optimizer.learning_rate`?"),
            ("[optimiser]\nbeta1 = 0.9\n", None, "did you mean `optimizer"),
            ("", Some("train.epoch=2"), "did you mean `train.epochs`?"),
            ("", Some("train.epochs"), "not of the form key=value"),
            ("", Some("train.batch_size=0"), "train.batch_size must be at least 1"),
            ("", Some("optimizer.beta2=1.5"), "optimizer.beta2"),
            ("", Some("optimizer.learning_rate=-1"), "optimizer.learning_rate"),
            ("", Some("optimizer.multipliers.head=nan"), "optimizer.multipliers.head is NaN"),
            ("", Some("optimizer.multipliers.norm=inf"), "optimizer.multipliers.norm is inf"),
            ("", Some("data.validation=2"), "data.validation"),
            ("", Some("memory.budget=8X"), "memory.budget"),
            ("", Some("memory.placement=gpu"), "unknown variant"),
            ("", Some("save.dtype=int8"), "save.dtype"),
            ("", Some("train.peak_flops=fast"), "train.peak_flops"),
            ("", Some("optimizer.clip=layer"), "unknown variant"),
            ("", Some("optimizer.weights=f16"), "unknown variant"),
            ("", Some("data.files=[]"), "data.files"),
        ] {
            // keys of the top level stand before the sections
            let text =
                if text.starts_with('[') { format!("{MINIMAL}{text}") } else { format!("{text}{MINIMAL}") };
            let error = read(&text, &change.into_iter().collect::<Vec<_>>()).unwrap_err();
            assert!(error.starts_with("recipe: ") && error.contains(says), "{error}");
        }
        let missing = read("[data]\nfiles = [\"a\"]\n", &["output=o"]).unwrap_err();
        assert_eq!(missing, "recipe: there is no model: set it there, or give --model DIR");
    }

    #[test]
    fn columns_are_a_table_of_any_names() {
        let text = format!("{MINIMAL}columns = {{ prompt = \"q\", response = \"a\" }}\n");
        assert_eq!(read(&text, &[]).unwrap().data.columns["prompt"], "q");
        let changed = read(MINIMAL, &["data.columns={ prompt = \"z\" }"]).unwrap();
        assert_eq!(changed.data.columns["prompt"], "z");
    }

    #[test]
    fn the_printed_recipe_has_every_key_and_is_the_run_that_it_was_printed_for() {
        let full = Recipe::read(None).unwrap().text();
        for key in KEYS {
            let own = key.path.rsplit('.').next().unwrap();
            let lines =
                full.lines().filter(|line| line.trim_start_matches("# ").starts_with(&format!("{own} = ")));
            assert!(lines.count() >= 1, "{own}");
        }
        // what it shows are the defaults
        let defaults = read(&full, &["model=m", "output=o", "data.files=a"]).unwrap();
        let changes = ["model=m", "output=o", "data.files=a"];
        assert_eq!(defaults, Recipe::read(None).unwrap().overridden(&changes).unwrap().options().unwrap());
        // and what is set stands there
        let changes = [
            "model=/m",
            "output=/o",
            "files=[\"/a\", \"/b\"]",
            "lr=0.5",
            "max_steps=9",
            "memory.budget=2GB",
            "context=128",
            "peak_flops=1T",
            "chat_template=/t",
            "columns={ prompt = \"z\" }",
            "validation=0.5",
            "optimizer.multipliers.head=4.0",
            "save.dtype=bf16",
            "memory.work_dir=/w",
        ];
        let recipe = Recipe::read(None).unwrap().overridden(&changes).unwrap();
        assert_eq!(read(&recipe.text(), &[]).unwrap(), recipe.options().unwrap());
    }
}
