//! Benchmarks in AlignBench's format: a file of questions, or a checkout with its configuration.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use flm_checkpoint::read_at_most;
use serde::{Deserialize, de::DeserializeOwned};

use crate::provenance::sha256;
use crate::rubric::{MAX_SETTINGS, Rubric};
use crate::score::Expected;
use crate::score::rows::{MAX_ROWS, QuestionId, lines, parse_line};

/// One question.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Question {
    pub question_id: QuestionId,
    pub category: String,
    #[serde(default, deserialize_with = "text_or_null")]
    pub subcategory: String,
    pub question: String,
    #[serde(default, deserialize_with = "text_or_null")]
    pub reference: String,
}

/// Text, empty where there is `null`.
fn text_or_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

/// A benchmark: its questions, how to answer and how to judge them.
#[derive(Debug, Clone)]
pub struct Questions {
    /// In the order of the file.
    pub list: Vec<Question>,
    /// How the answers are judged.
    pub rubric: Rubric,
    temperatures: BTreeMap<String, f64>,
    categories: BTreeSet<String>,
    sha256: String,
}

impl Questions {
    /// Opens a JSONL file, or a directory: its `data/*.jsonl` (or `*.jsonl`), and what is there of
    /// AlignBench's `config/*.json`.
    ///
    /// # Errors
    /// They name the file and the line.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        if !path.is_dir() {
            return Self::read(path, Rubric::built_in(), BTreeMap::new());
        }
        let data = only_jsonl(&path.join("data"))?.map_or_else(|| only_jsonl(path), |file| Ok(Some(file)))?;
        let data = data.with_context(|| format!("{} holds no data/*.jsonl", path.display()))?;
        let find = |names: &[&str]| {
            let folders = [path.join("config"), path.to_owned()];
            folders.iter().flat_map(|folder| names.iter().map(|name| folder.join(name))).find(|f| f.is_file())
        };
        let rubric = Rubric::built_in().with(
            json(find(&["dimension_definition.json", "dimension_def.json"]))?,
            json(find(&["dimension_set.json"]))?,
            json(find(&["subcategory_question_mapping.json", "subcategory_mapping.json"]))?,
        )?;
        let temperatures = json(find(&["temperature.json"]))?.unwrap_or_default();
        Self::read(&data, rubric, temperatures)
    }

    /// A benchmark's text, with AlignBench's rules.
    #[cfg(test)]
    pub fn from_text(text: &str) -> anyhow::Result<Self> {
        Self::parse(text.as_bytes(), Rubric::built_in(), BTreeMap::new())
    }

    fn read(path: &Path, rubric: Rubric, temperatures: BTreeMap<String, f64>) -> anyhow::Result<Self> {
        let bytes = read_at_most(path, MAX_ROWS)?;
        Self::parse(&bytes, rubric, temperatures).with_context(|| path.display().to_string())
    }

    fn parse(bytes: &[u8], rubric: Rubric, temperatures: BTreeMap<String, f64>) -> anyhow::Result<Self> {
        let (mut list, mut ids) = (Vec::new(), HashSet::new());
        for (index, line) in lines(bytes) {
            let question: Question =
                parse_line(line).with_context(|| format!("line {}: not a question", index + 1))?;
            ensure!(!question.question.trim().is_empty(), "line {}: the question is empty", index + 1);
            ensure!(
                ids.insert(question.question_id.clone()),
                "line {}: there is another question {}",
                index + 1,
                question.question_id
            );
            list.push(question);
        }
        ensure!(!list.is_empty(), "no questions in it");
        for (category, &temperature) in &temperatures {
            ensure!(
                temperature.is_finite() && temperature >= 0.0,
                "the temperature of {category} is {temperature}"
            );
        }
        let categories = list.iter().map(|question| question.category.clone()).collect();
        Ok(Self { list, rubric, temperatures, categories, sha256: sha256(bytes) })
    }

    /// SHA-256 of the question file.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Identifiers of the questions, in the order of the file.
    pub fn ids(&self) -> Vec<QuestionId> {
        self.list.iter().map(|question| question.question_id.clone()).collect()
    }

    /// What scores are counted against.
    pub fn expected(&self) -> Expected {
        let categories = self.list.iter().map(|q| (q.question_id.clone(), q.category.clone()));
        Expected { ids: self.ids(), categories: categories.collect(), from: "the questions" }
    }

    /// The temperature to answer a category with: the configuration's, else AlignBench's.
    pub fn temperature(&self, category: &str) -> f64 {
        self.temperatures.get(category).copied().unwrap_or(match category {
            "角色扮演" | "文本写作" | "综合问答" => 0.7,
            _ => 0.1,
        })
    }

    /// The temperatures of all categories of the file, those that a limit left out included.
    pub(crate) fn temperatures(&self) -> BTreeMap<&str, f64> {
        self.categories.iter().map(|name| (name.as_str(), self.temperature(name))).collect()
    }

    /// Keeps the first `count` questions of every category, in proportion to the category's size.
    pub fn limit(&mut self, count: usize) {
        let total = self.list.len();
        if count >= total {
            return;
        }
        let mut taken: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for question in &self.list {
            taken.entry(question.category.clone()).or_default().0 += 1;
        }
        // cumulative rounding: the shares add up to `count`
        let (mut before, mut given) = (0, 0);
        for (size, share) in taken.values_mut() {
            before += *size;
            let until = before * count / total;
            (*share, given) = (until - given, until);
        }
        self.list.retain(|question| {
            let share = taken.get_mut(&question.category).map(|(_, share)| share);
            share.is_some_and(|share| {
                let keep = *share > 0;
                *share = share.saturating_sub(1);
                keep
            })
        });
    }
}

fn only_jsonl(dir: &Path) -> anyhow::Result<Option<PathBuf>> {
    if !dir.is_dir() {
        return Ok(None);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "jsonl") && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        several => {
            let names: Vec<_> = several.iter().map(|path| path.display().to_string()).collect();
            bail!("several question files: give one of {}", names.join(", "))
        }
    }
}

fn json<T: DeserializeOwned>(path: Option<PathBuf>) -> anyhow::Result<Option<T>> {
    let Some(path) = path else { return Ok(None) };
    let bytes = read_at_most(&path, MAX_SETTINGS)?;
    serde_json::from_slice(&bytes).map(Some).with_context(|| format!("{} is not understood", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: usize, category: &str) -> String {
        format!(r#"{{"question_id": {id}, "category": "{category}", "question": "q{id}", "evidences": []}}"#)
    }

    #[test]
    fn a_checkout_brings_its_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("data/questions.jsonl", &format!("{}\n\n{}\n", row(1, "角色扮演"), row(2, "其他")));
        write("data/model_answer/x.jsonl", "no question");
        write("config/temperature.json", r#"{"角色扮演": 0.3}"#);
        write("config/dimension_set.json", r#"{"短": ["切题"]}"#);
        write("config/subcategory_question_mapping.json", r#"{"": "短"}"#);
        write("config/dimension_definition.json", r#"{"切题": "是否切题"}"#);
        let questions = Questions::open(dir.path()).unwrap();
        assert_eq!(questions.list.len(), 2);
        assert_eq!((questions.temperature("角色扮演"), questions.temperature("文本写作")), (0.3, 0.7));
        let kind = questions.rubric.kind("角色扮演", "");
        assert_eq!(questions.rubric.dimensions(kind).unwrap()[0].definition, "是否切题");
        let file = Questions::open(&dir.path().join("data/questions.jsonl")).unwrap();
        assert_eq!(file.sha256(), questions.sha256());
        assert_eq!((file.temperature("角色扮演"), file.temperature("数学计算")), (0.7, 0.1));
        write("data/more.jsonl", "");
        assert!(Questions::open(dir.path()).unwrap_err().to_string().contains("several question files"));
    }

    #[test]
    fn a_broken_question_is_named() {
        for (second, why) in [
            ("{", "line 2: not a question"),
            (&row(1, "x"), "line 2: there is another question 1"),
            (r#"{"question_id": 2, "category": "x", "question": " "}"#, "line 2: the question is empty"),
            (r#"{"question_id": 2, "question": "y"}"#, "line 2: not a question"),
        ] {
            let error = Questions::from_text(&format!("{}\n{second}", row(1, "x"))).unwrap_err();
            assert!(format!("{error:#}").contains(why), "{second}: {error:#}");
        }
        assert!(Questions::from_text("\n").is_err());
    }

    #[test]
    fn a_limit_keeps_the_categories_in_proportion() {
        let rows: Vec<String> = (0..100).map(|i| row(i, if i < 60 { "a" } else { "b" })).collect();
        let mut questions = Questions::from_text(&rows.join("\n")).unwrap();
        questions.limit(10);
        let of = |name: &str| questions.list.iter().filter(|q| q.category == name).count();
        assert_eq!((of("a"), of("b")), (6, 4));
    }
}
