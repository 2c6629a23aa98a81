//! The mechanism of all recipes: which keys there are, under which names, and how their values may be written.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, bail, ensure};
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::arguments::{parse_flops, parse_size};

/// A setting of a recipe.
#[derive(Debug)]
pub(crate) struct Key {
    /// Its name, with its section: `train.epochs`.
    pub(crate) path: &'static str,
    kind: Kind,
    /// Other names that people type.
    also: &'static [&'static str],
}

/// How a value may be written, beside the way that its type has in TOML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// In no other.
    Plain,
    /// A path, relative to the recipe's folder.
    Path,
    /// Such paths; one may stand alone.
    Paths,
    /// Bytes: `16GB`, `300000000`; 0 is no size.
    Size,
    /// Operations a second: `989T`, `989e12`; 0 is no rate.
    Flops,
}

impl Key {
    pub(crate) const fn new(path: &'static str) -> Self {
        Self { path, kind: Kind::Plain, also: &[] }
    }

    pub(crate) const fn of(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    pub(crate) const fn also(self, also: &'static [&'static str]) -> Self {
        Self { also, ..self }
    }

    fn is(&self, name: &str) -> bool {
        self.path == name || self.also.contains(&name)
    }

    /// The value in the form that the options have; `None` where it says that there is none.
    fn value(&self, value: Value) -> anyhow::Result<Option<Value>> {
        Ok(Some(match (self.kind, value) {
            (Kind::Paths, Value::String(path)) => Value::Array(vec![Value::String(path)]),
            (Kind::Size, value) => {
                let text = text(&value);
                if is_zero(&text) {
                    return Ok(None);
                }
                match parse_size(text.trim()).ok().and_then(|bytes| i64::try_from(bytes).ok()) {
                    Some(bytes) => Value::Integer(bytes),
                    None => bail!("{} is {text:?}, expected a size such as \"16GB\"", self.path),
                }
            }
            (Kind::Flops, value) => {
                let text = text(&value);
                match parse_flops(&text) {
                    Some(0.0) => return Ok(None),
                    Some(rate) => Value::Float(rate),
                    None => bail!(
                        "{} is {text:?}, expected operations a second such as \"989T\" or \"989e12\"",
                        self.path
                    ),
                }
            }
            (_, value) => value,
        }))
    }

    /// The value that stands on a command line: TOML, or a word.
    fn word(&self, text: &str) -> Value {
        let parsed = format!("value = {text}").parse::<Table>().ok().and_then(|mut t| t.remove("value"));
        let word = || Value::String(text.to_owned());
        match (self.kind, parsed) {
            (Kind::Path, Some(Value::String(path))) => Value::String(path),
            (Kind::Paths, Some(value @ (Value::String(_) | Value::Array(_)))) => value,
            // a folder may have a number for a name
            (Kind::Path | Kind::Paths, _) => word(),
            (_, parsed) => parsed.unwrap_or_else(word),
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn is_zero(size: &str) -> bool {
    size.trim().trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim().parse() == Ok(0.0)
}

/// What is set, by the keys' own names.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    keys: &'static [Key],
    values: BTreeMap<&'static str, Value>,
}

impl Settings {
    /// Nothing, of these keys.
    pub(crate) fn none(keys: &'static [Key]) -> Self {
        Self { keys, values: BTreeMap::new() }
    }

    /// The settings of a table.
    ///
    /// # Errors
    /// Where a key is unknown, or set under two names.
    pub(crate) fn read(keys: &'static [Key], table: Table) -> anyhow::Result<Self> {
        let mut settings = Self::none(keys);
        settings.take(table, "")?;
        Ok(settings)
    }

    fn take(&mut self, table: Table, section: &str) -> anyhow::Result<()> {
        for (name, value) in table {
            let name = if section.is_empty() { name } else { format!("{section}.{name}") };
            let begins = |path: &&str| path.strip_prefix(&name).is_some_and(|rest| rest.starts_with('.'));
            let Some(key) = self.keys.iter().find(|key| key.is(&name)) else {
                match value {
                    Value::Table(inner) if self.names().any(|path| begins(&path)) => {
                        self.take(inner, &name)?
                    }
                    _ => return Err(self.unknown(&name)),
                }
                continue;
            };
            let twice = self.values.contains_key(key.path);
            ensure!(!twice, "`{}` is set twice, under two of its names: leave one", key.path);
            if let Some(value) = key.value(value)? {
                self.values.insert(key.path, value);
            }
        }
        Ok(())
    }

    /// Takes paths as relative to `dir`.
    pub(crate) fn relative_to(&mut self, dir: &Path) {
        let join = |value: &mut Value| match value {
            Value::String(path) if !path.is_empty() => *path = dir.join(&*path).display().to_string(),
            _ => {}
        };
        for key in self.keys {
            match self.values.get_mut(key.path) {
                Some(value) if key.kind == Kind::Path => join(value),
                Some(Value::Array(paths)) if key.kind == Kind::Paths => paths.iter_mut().for_each(join),
                _ => {}
            }
        }
    }

    /// Sets a key to what stands for it on a command line.
    ///
    /// # Errors
    /// Where there is no such key, or it has no such value.
    pub(crate) fn set(&mut self, name: &str, word: &str) -> anyhow::Result<()> {
        let key = self.keys.iter().find(|key| key.is(name)).ok_or_else(|| self.unknown(name))?;
        self.put(key, key.word(word))
    }

    /// Sets a key, by its own name, to a list.
    pub(crate) fn set_list(&mut self, path: &str, items: impl Iterator<Item = String>) -> anyhow::Result<()> {
        let key = self.keys.iter().find(|key| key.path == path).ok_or_else(|| self.unknown(path))?;
        self.put(key, Value::Array(items.map(Value::String).collect()))
    }

    fn put(&mut self, key: &'static Key, value: Value) -> anyhow::Result<()> {
        match key.value(value)? {
            Some(value) => self.values.insert(key.path, value),
            None => self.values.remove(key.path),
        };
        Ok(())
    }

    /// Whether a key has this name.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.keys.iter().any(|key| key.is(name))
    }

    /// The value of a key, by its own name.
    pub(crate) fn get(&self, path: &str) -> Option<&Value> {
        self.values.get(path)
    }

    /// The options that these settings are.
    ///
    /// # Errors
    /// Where a value is not of its key's type, or one is missing that has no default.
    pub(crate) fn options<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        let mut table = Table::new();
        for (path, value) in &self.values {
            let mut at = &mut table;
            let mut parts: Vec<&str> = path.split('.').collect();
            let last = parts.pop().unwrap_or(path);
            for part in parts {
                let section = at.entry(part).or_insert_with(|| Value::Table(Table::new()));
                at = section.as_table_mut().with_context(|| format!("{part} is not a section"))?;
            }
            at.insert(last.into(), value.clone());
        }
        let options = Value::Table(table).try_into();
        options.map_err(|e: toml::de::Error| anyhow::anyhow!(e.to_string().trim().replace('\n', " ")))
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        self.keys.iter().flat_map(|key| std::iter::once(key.path).chain(key.also.iter().copied()))
    }

    fn unknown(&self, name: &str) -> anyhow::Error {
        let own = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
        let far = |path: &&str| distance(name, path).min(distance(&own(name), &own(path)) + 1);
        let nearest = self.keys.iter().map(|key| key.path).min_by_key(far);
        let hint = nearest.map_or_else(String::new, |path| format!("; did you mean `{path}`?"));
        anyhow::anyhow!("unknown key `{name}`{hint}")
    }
}

/// A recipe's text as a table.
pub(crate) fn parse(text: &str) -> anyhow::Result<Table> {
    text.parse().context("it is no TOML")
}

/// The two sides of `key=value`.
pub(crate) fn assignment(text: &str) -> anyhow::Result<(&str, &str)> {
    let (key, word) =
        text.split_once('=').with_context(|| format!("{text:?} is not of the form key=value"))?;
    Ok((key.trim(), word.trim()))
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

    const KEYS: &[Key] = &[
        Key::new("size").of(Kind::Size),
        Key::new("work.rate").of(Kind::Flops).also(&["rate", "rates.work"]),
        Key::new("data.files").of(Kind::Paths),
        Key::new("data.dir").of(Kind::Path),
        Key::new("data.columns"),
    ];

    fn read(text: &str) -> Result<Settings, String> {
        Settings::read(KEYS, parse(text).unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn sizes_and_rates_are_words_or_numbers_in_a_file_and_on_the_command_line() {
        for (size, bytes) in [
            ("300000000", Some(300_000_000)),
            ("\"300000000\"", Some(300_000_000)),
            ("3e8", Some(300_000_000)),
            ("\"300 MB\"", Some(300_000_000)),
            ("\"2GiB\"", Some(2 << 30)),
            ("0", None),
            ("\"0\"", None),
            ("\"0GB\"", None),
        ] {
            let in_file = read(&format!("size = {size}\n")).unwrap();
            let mut on_line = Settings::none(KEYS);
            on_line.set("size", size).unwrap();
            on_line.set("size", size.trim_matches('"')).unwrap();
            for settings in [in_file, on_line] {
                assert_eq!(settings.get("size").and_then(Value::as_integer), bytes, "{size}");
            }
        }
        for (rate, number) in [
            ("989T", Some(989e12)),
            ("989 TFLOPS", Some(989e12)),
            ("1.5e12", Some(1.5e12)),
            ("40gflop/s", Some(4e10)),
            ("989000000000000", Some(989e12)),
            ("0", None),
        ] {
            let mut settings = Settings::none(KEYS);
            settings.set("rate", rate).unwrap();
            assert_eq!(settings.get("work.rate").and_then(Value::as_float), number, "{rate}");
        }
        for (key, word, says) in [
            ("size", "8X", "size is \"8X\", expected a size"),
            ("size", "-1", "size is \"-1\""),
            ("rate", "fast", "work.rate is \"fast\""),
        ] {
            let error = Settings::none(KEYS).set(key, word).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn paths_are_words_and_relative_to_the_files_folder() {
        let mut settings = read("[data]\nfiles = \"a.jsonl\"\ndir = \"\"\n").unwrap();
        settings.relative_to(Path::new("/r"));
        assert_eq!(settings.get("data.files").unwrap().to_string(), "[\"/r/a.jsonl\"]");
        assert_eq!(settings.get("data.dir").unwrap().as_str(), Some(""));
        settings.set("data.dir", "2026").unwrap();
        settings.set("data.files", "['b', \"c\"]").unwrap();
        assert_eq!(settings.get("data.dir").unwrap().as_str(), Some("2026"));
        assert_eq!(settings.get("data.files").unwrap().as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn other_names_are_the_same_key_once_and_unknown_ones_are_told_the_nearest() {
        for text in ["rate = 1.0\n", "[rates]\nwork = 1\n", "[work]\nrate = \"1\"\n"] {
            assert_eq!(read(text).unwrap().get("work.rate").and_then(Value::as_float), Some(1.0));
        }
        for (text, says) in [
            ("rate = 1\n[work]\nrate = 2\n", "`work.rate` is set twice"),
            ("sise = 1\n", "unknown key `sise`; did you mean `size`?"),
            ("[work]\nrade = 1\n", "unknown key `work.rade`; did you mean `work.rate`?"),
            ("[data.files.x]\ny = 1\n", "expected"),
            ("data = 3\n", "unknown key `data`"),
        ] {
            let error = read(text).and_then(|s| {
                let made: anyhow::Result<BTreeMap<String, BTreeMap<String, Vec<String>>>> = s.options();
                made.map(drop).map_err(|e| e.to_string())
            });
            assert!(error.as_ref().is_err_and(|e| e.contains(says)), "{error:?}");
        }
        assert!(read("[data]\ncolumns = { any = \"b\" }\n").unwrap().get("data.columns").is_some());
    }
}
