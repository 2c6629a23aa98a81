//! Reading files of training data: JSON lines, JSON arrays, tables and plain text. What a file is wrapped in is in
//! `container`, the forms of rows in `rows`, trees of messages in `trees`, forms of single data sets in `forms`.

use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use std::path::Path;

use serde_json::Value;

use crate::data::container::{self, DataFile};
use crate::data::rows::Rows;
use crate::data::samples::{Content, Sample, Samples};
use crate::data::trees::Forest;
use crate::error::TrainError;

/// Reads a file without renaming its columns; see [`read_data`].
///
/// # Errors
/// Those of [`read_data`].
pub fn read_samples(path: &Path) -> Result<Vec<Sample>, TrainError> {
    read_data(path, &BTreeMap::new()).map(|data| data.samples)
}

/// Reads a file: `.txt` is one text; anything else holds JSON objects, one a line or all in one array, or is a
/// Parquet table. What gzip or zstd has compressed is decompressed.
///
/// A row is a conversation (`messages`, `conversations`, `conversation`, `dialog` or `data`), a question and
/// its answer (`instruction`/`output` as in Alpaca and Dolly, `prompt`/`completion`, `question`/`answer`,
/// `query`/`response`, Firefly's `input`/`target`), preference data of which `chosen` is taken, or a `text`
/// that stands alone, a tree of messages or a message of one (OpenAssistant), or a row of MOSS or COIG; which of
/// them is told by all its keys. `columns` says under which key of the file
/// a key of these stands.
///
/// # Errors
/// What is wrong, with file and line; rows of which a part would be passed over, by the name of the key.
pub fn read_data(path: &Path, columns: &BTreeMap<String, String>) -> Result<Samples, TrainError> {
    let mut rows = Rows { columns, found: Samples::default(), forest: Forest::default() };
    let mut reader = match container::open(path)? {
        DataFile::Parquet(table) => {
            for (index, row) in container::rows(path, table).enumerate() {
                let line = index + 1;
                let wrong = |message: String| TrainError::Line { path: path.into(), line, message };
                rows.take(row?, line).map_err(wrong)?;
            }
            return Ok(rows.finish());
        }
        DataFile::Text { reader, plain: true } => return plain_text(path, reader),
        DataFile::Text { reader, .. } => reader,
    };
    let head = reader.fill_buf().map_err(TrainError::file("read", path))?;
    let start = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let array = start.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    if array {
        let skip = head.len() - start.len();
        reader.consume(skip);
        let mut json = serde_json::Deserializer::from_reader(reader);
        let mut visitor = Elements { rows: &mut rows, failed: None, next: 1 };
        let done =
            serde::de::Deserializer::deserialize_seq(&mut json, &mut visitor).and_then(|()| json.end());
        let Elements { failed, next, .. } = visitor;
        let wrong = |message| TrainError::Line { path: path.into(), line: next, message };
        if let Some(message) = failed {
            return Err(wrong(format!("element {next} of the array: {message}")));
        }
        done.map_err(|e| wrong(format!("element {next} of the array: not JSON: {e}")))?;
        return Ok(rows.finish());
    }
    for (index, line) in reader.split(b'\n').enumerate() {
        let bytes = line.map_err(TrainError::file("read", path))?;
        let line = index + 1;
        let wrong = |message: String| TrainError::Line { path: path.into(), line, message };
        let text = std::str::from_utf8(&bytes).map_err(|_| wrong("not UTF-8 text".into()))?;
        let text = if index == 0 { text.trim_start_matches('\u{feff}') } else { text };
        if text.trim().is_empty() {
            continue;
        }
        let value: Value = serde_json::from_str(text).map_err(|e| wrong(format!("not JSON: {e}")))?;
        rows.take(value, line).map_err(wrong)?;
    }
    Ok(rows.finish())
}

fn plain_text(path: &Path, mut reader: impl Read) -> Result<Samples, TrainError> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map_err(TrainError::file("read", path))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count();
        TrainError::Line { path: path.into(), line, message: "not UTF-8 text".into() }
    })?;
    let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
    let samples = vec![Sample { line: 1, content: Content::Text(text) }];
    Ok(Samples { samples, ..Samples::default() })
}

/// Takes the elements of an array one by one, so that the whole is never in memory as JSON.
struct Elements<'r, 'c> {
    rows: &'r mut Rows<'c>,
    failed: Option<String>,
    next: usize,
}

impl<'de> serde::de::Visitor<'de> for &mut Elements<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while let Some(value) = elements.next_element::<Value>()? {
            if let Err(message) = self.rows.take(value, self.next) {
                self.failed = Some(message);
                return Err(serde::de::Error::custom("a wrong element"));
            }
            self.next += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
