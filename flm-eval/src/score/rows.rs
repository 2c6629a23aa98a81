//! Saved judgments, flm's own or the released scripts'.

use std::{fmt, path::Path};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The id of a question: a number in AlignBench, text in other benchmarks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum QuestionId {
    Number(u64),
    Text(String),
}

impl QuestionId {
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(_) => None,
        }
    }
}

impl From<u64> for QuestionId {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl fmt::Display for QuestionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// A saved judgment: flm's own or the released scripts'.
#[derive(Debug, Clone)]
pub struct JudgedRow {
    /// Which question.
    pub question_id: QuestionId,
    /// Its category.
    pub category: String,
    /// The judge's whole text.
    pub judgment: String,
    /// Every field of the row, the three above included.
    pub fields: Map<String, Value>,
}

impl JudgedRow {
    /// A text field, empty where the row has none.
    pub fn text(&self, name: &str) -> &str {
        self.fields.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    fn from_fields(mut fields: Map<String, Value>) -> anyhow::Result<Self> {
        let id = fields.get("question_id").context("there is no question_id")?;
        let question_id = serde_json::from_value(id.clone())
            .ok()
            .with_context(|| format!("question_id {id} is neither a number nor text"))?;
        // a judge that gave nothing is a judgment that cannot be read, not a broken file
        if fields.get("judgment").is_some_and(Value::is_null) {
            fields.insert("judgment".into(), "".into());
        }
        let text = |name: &str| match fields.get(name) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => bail!("{name} is {other}, not text"),
            None => bail!("there is no {name}"),
        };
        Ok(Self { question_id, category: text("category")?, judgment: text("judgment")?, fields })
    }

    #[cfg(test)]
    pub(crate) fn plain(question_id: QuestionId, category: &str, judgment: &str) -> Self {
        let fields = Map::from_iter([("category".to_owned(), Value::from(category))]);
        Self { question_id, category: category.into(), judgment: judgment.into(), fields }
    }
}

/// Reads a file of judgments, one JSON object a line; empty lines are skipped.
///
/// # Errors
/// They name the file and the line.
pub fn read_rows(path: &Path) -> anyhow::Result<Vec<JudgedRow>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut rows = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let fields = serde_json::from_slice(line).context("not a JSON object");
        let row = fields.and_then(JudgedRow::from_fields);
        rows.push(row.with_context(|| format!("{}, line {}", path.display(), index + 1))?);
    }
    ensure!(!rows.is_empty(), "{} holds no judgments", path.display());
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<JudgedRow>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read_rows(file.path()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_broken_line_is_named() {
        let good = r#"{"question_id": 1, "category": "x", "judgment": "y"}"#;
        assert_eq!(read(&format!("{good}\n\n{good}\r\n")).unwrap().len(), 2);
        for (bad, why) in [
            ("{", "not a JSON object"),
            ("[]", "not a JSON object"),
            ("\u{0}\u{0}", "not a JSON object"),
            (r#"{"category": "x", "judgment": "y"}"#, "there is no question_id"),
            (r#"{"question_id": 1.5, "category": "x", "judgment": "y"}"#, "neither a number nor text"),
            (r#"{"question_id": 1, "judgment": "y"}"#, "there is no category"),
            (r#"{"question_id": 1, "category": "x"}"#, "there is no judgment"),
            (r#"{"question_id": 1, "category": "x", "judgment": 7}"#, "judgment is 7, not text"),
        ] {
            let error = read(&format!("{good}\n{bad}\n")).unwrap_err();
            assert!(error.contains("line 2") && error.contains(why), "{bad}: {error}");
        }
        assert!(read("\n").unwrap_err().contains("holds no judgments"));
    }

    #[test]
    fn a_null_judgment_is_an_empty_one() {
        let rows = read(r#"{"question_id": "a", "category": "x", "judgment": null}"#).unwrap();
        assert_eq!(rows[0].judgment, "");
        assert_eq!(rows[0].question_id, QuestionId::Text("a".into()));
    }
}
