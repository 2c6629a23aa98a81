//! Saved judgments, flm's own or the released scripts'.

use std::{fmt, path::Path};

use anyhow::{Context, bail, ensure};
use flm_checkpoint::read_at_most;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The most bytes of questions, answers or judgments in one file.
pub(crate) const MAX_ROWS: u64 = 1 << 30;

/// The id of a question: a number in AlignBench, text in other benchmarks.
///
/// `7`, `7.0` (as pandas writes a column with a gap) and `"7"` are one id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
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

impl<'de> Deserialize<'de> for QuestionId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let id = match &value {
            Value::Number(number) => {
                let whole = number.as_f64().filter(|n| n.fract() == 0.0 && (0.0..9e15).contains(n));
                number.as_u64().or(whole.map(|n| n as u64)).map(Self::Number)
            }
            Value::String(text) => Some(match text.parse() {
                // 007 and +7 are texts of their own
                Ok(number) if u64::to_string(&number) == *text => Self::Number(number),
                _ => Self::Text(text.clone()),
            }),
            _ => None,
        };
        id.ok_or_else(|| {
            serde::de::Error::custom(format!("question_id {value} is neither a number nor text"))
        })
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

    /// Whether the judge refused to judge the answer; the reason is in the row's `refused`.
    pub fn is_refused(&self) -> bool {
        self.fields.get("refused").is_some_and(Value::is_string)
    }

    /// Whether the row replaces an earlier one of its question, on request.
    pub(crate) fn is_again(&self) -> bool {
        self.fields.get("judged_again").and_then(Value::as_bool) == Some(true)
    }

    /// Whether the row says that there was no reference answer.
    pub(crate) fn lacks_reference(&self) -> bool {
        self.fields
            .get("reference")
            .is_some_and(|r| r.is_null() || r.as_str().is_some_and(|r| r.trim().is_empty()))
    }

    fn from_fields(mut fields: Map<String, Value>) -> anyhow::Result<Self> {
        let id = fields.get("question_id").context("there is no question_id")?;
        let question_id = serde_json::from_value(id.clone())?;
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
    let rows = read_with(path, |line| JudgedRow::from_fields(parse_line(line)?))?;
    ensure!(!rows.is_empty(), "{} holds no judgments", path.display());
    Ok(rows)
}

/// Reads a file of rows, one JSON object a line.
///
/// # Errors
/// They name the file and the line.
pub(crate) fn read_rows_of<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<Vec<T>> {
    read_with(path, parse_line)
}

fn read_with<T>(path: &Path, parse: impl Fn(&[u8]) -> anyhow::Result<T>) -> anyhow::Result<Vec<T>> {
    let bytes = read_at_most(path, MAX_ROWS)?;
    let row = |(index, line)| parse(line).with_context(|| format!("{}, line {}", path.display(), index + 1));
    lines(&bytes).map(row).collect()
}

/// The lines that are not empty, with their numbers from 0; a byte order mark at the beginning is no part.
pub(crate) fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let lines = bytes.split(|&byte| byte == b'\n').enumerate();
    lines.filter(|(_, line)| !line.trim_ascii().is_empty())
}

/// Reads a line as programs write them: Python's `NaN` and `Infinity` are `null`, half of a surrogate pair is
/// the replacement character.
///
/// # Errors
/// When the line is no JSON object, or not the one that is asked for.
pub(crate) fn parse_line<T: serde::de::DeserializeOwned>(line: &[u8]) -> anyhow::Result<T> {
    match serde_json::from_slice(line) {
        Ok(row) => Ok(row),
        Err(error) => match serde_json::from_slice(&repaired(line)) {
            Ok(row) => Ok(row),
            Err(_) => Err(error).context("not a JSON object of the form that is expected"),
        },
    }
}

/// The line with what JSON does not know replaced.
fn repaired(line: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(line.len());
    let (mut index, mut inside) = (0, false);
    while index < line.len() {
        let rest = &line[index..];
        let bare = [&b"-Infinity"[..], b"Infinity", b"NaN"];
        if !inside && let Some(word) = bare.iter().find(|word| rest.starts_with(word)) {
            out.extend(b"null");
            index += word.len();
        } else if inside && rest[0] == b'\\' {
            let (text, taken) = escape(rest);
            out.extend(text);
            index += taken;
        } else {
            inside ^= rest[0] == b'"';
            out.push(rest[0]);
            index += 1;
        }
    }
    out
}

/// An escape as JSON may have it, and the bytes that it stands for in the line.
fn escape(rest: &[u8]) -> (&[u8], usize) {
    let unit = |at: usize| {
        let digits = rest.get(at..at + 6).filter(|unit| unit.starts_with(b"\\u"))?;
        u16::from_str_radix(std::str::from_utf8(&digits[2..]).ok()?, 16).ok()
    };
    match (unit(0), unit(6)) {
        (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => (&rest[..12], 12),
        (Some(0xD800..=0xDFFF), _) => (b"\\uFFFD", 6),
        (Some(_), _) => (&rest[..6], 6),
        (None, _) => (&rest[..rest.len().min(2)], rest.len().min(2)),
    }
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
    fn files_are_read_as_programs_write_them() {
        let row = |id: &str, text: &str| {
            format!(r#"{{"question_id": {id}, "category": "x", "judgment": "{text}", "p": NaN}}"#)
        };
        let text = format!(
            "\u{FEFF}{}\n{}\n{}\n",
            row("1.0", "y"),
            row("\"2\"", "NaN"),
            row("\"a\"", r"\ud83d \ud83d\ude00 \\ud83d")
        );
        let rows = read(&text).unwrap();
        let ids: Vec<_> = rows.iter().map(|row| row.question_id.clone()).collect();
        assert_eq!(ids, [1.into(), 2.into(), QuestionId::Text("a".into())]);
        let texts: Vec<_> = rows.iter().map(|row| row.judgment.as_str()).collect();
        assert_eq!(texts, ["y", "NaN", "\u{FFFD} 😀 \\ud83d"]);
        assert!(rows[0].fields["p"].is_null());
    }

    #[test]
    fn a_null_judgment_is_an_empty_one() {
        let rows = read(r#"{"question_id": "a", "category": "x", "judgment": null}"#).unwrap();
        assert_eq!(rows[0].judgment, "");
        assert_eq!(rows[0].question_id, QuestionId::Text("a".into()));
    }
}
