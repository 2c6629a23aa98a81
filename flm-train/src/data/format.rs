//! Reading files of training data: JSON lines, JSON arrays, tables and plain text. What a file is wrapped in is in
//! `container`, the forms of rows in `rows`, trees of messages in `trees`, forms of single data sets in `forms`.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use std::path::Path;

use serde_json::Value;

use crate::data::container::{self, DataFile};
use crate::data::rows::Rows;
use crate::data::samples::{Content, Sample, Samples, Take};
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
    let mut samples = Vec::new();
    let found = each_sample(path, columns, &mut |sample| {
        samples.push(sample);
        Ok(())
    })?;
    Ok(Samples { samples, ..found })
}

/// [`read_data`] that gives the samples to `take` as they come, and returns what else is to be told of the file. Only
/// trees of messages are in memory until the end.
///
/// # Errors
/// Those of [`read_data`] and of `take`.
pub(super) fn each_sample(
    path: &Path,
    columns: &BTreeMap<String, String>,
    take: &mut Take<'_>,
) -> Result<Samples, TrainError> {
    let mut rows = Rows { columns, found: Samples::default(), forest: Forest::default() };
    let mut reader = match container::open(path)? {
        DataFile::Parquet(table) => {
            for (index, row) in container::rows(path, table).enumerate() {
                let line = index + 1;
                let wrong = |message: String| TrainError::Line { path: path.into(), line, message };
                rows.take(row?, line).map_err(wrong)?;
                rows.give(take)?;
            }
            return rows.finish(take);
        }
        DataFile::Text { reader, plain: true } => {
            take(plain_text(path, reader)?)?;
            return Ok(Samples::default());
        }
        DataFile::Text { reader, .. } => reader,
    };
    let head = reader.fill_buf().map_err(TrainError::file("read", path))?;
    let start = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let array = start.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    if array {
        let skip = head.len() - start.len();
        reader.consume(skip);
        let left = Cell::new(MAX_LINE);
        let mut json = serde_json::Deserializer::from_reader(Bounded { reader, left: &left });
        let mut visitor = Elements { rows: &mut rows, take: &mut *take, left: &left, failed: None, next: 1 };
        let done =
            serde::de::Deserializer::deserialize_seq(&mut json, &mut visitor).and_then(|()| json.end());
        let Elements { failed, next, .. } = visitor;
        let wrong = |message: String| {
            let message = format!("element {next} of the array: {message}");
            TrainError::Line { path: path.into(), line: next, message }
        };
        match failed {
            Some(Failed::Element(message)) => return Err(wrong(message)),
            Some(Failed::Taking(error)) => return Err(error),
            None => done.map_err(|e| {
                let what = if e.is_io() { "cannot be read" } else { "not JSON" };
                wrong(format!("{what}: {e}"))
            })?,
        }
        return rows.finish(take);
    }
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let wrong = |message: String| TrainError::Line { path: path.into(), line, message };
        let read = reader.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut bytes);
        if read.map_err(TrainError::file("read", path))? == 0 {
            break;
        }
        if bytes.len() as u64 > MAX_LINE {
            return Err(wrong(format!(
                "more than {MAX_LINE} bytes in one line: this is no file of JSON lines"
            )));
        }
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let text = std::str::from_utf8(bytes).map_err(|_| wrong(no_utf8(bytes).into()))?;
        let text = if line == 1 { text.trim_start_matches('\u{feff}') } else { text };
        if text.trim().is_empty() {
            continue;
        }
        let value: Value = serde_json::from_str(text).map_err(|e| wrong(format!("not JSON: {e}")))?;
        rows.take(value, line).map_err(wrong)?;
        rows.give(take)?;
    }
    rows.finish(take)
}

/// The most bytes of a row, and of a text: what has no end is refused, and a text is in memory whole.
const MAX_LINE: u64 = if cfg!(test) { 1 << 20 } else { 256 << 20 };
const MAX_TEXT: u64 = 4 << 30;

/// What bytes are that are not UTF-8.
fn no_utf8(bytes: &[u8]) -> &'static str {
    match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "UTF-16 text: make it UTF-8 (`iconv -f UTF-16 -t UTF-8`)",
        _ => "not UTF-8 text",
    }
}

fn plain_text(path: &Path, reader: impl Read) -> Result<Sample, TrainError> {
    let mut bytes = Vec::new();
    reader.take(MAX_TEXT + 1).read_to_end(&mut bytes).map_err(TrainError::file("read", path))?;
    if bytes.len() as u64 > MAX_TEXT {
        let message = format!("more than {MAX_TEXT} bytes: split the text into several files");
        return Err(TrainError::Line { path: path.into(), line: 1, message });
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count();
        TrainError::Line { path: path.into(), line, message: no_utf8(e.as_bytes()).into() }
    })?;
    if let Some(at) = text.find('\0') {
        let line = 1 + text[..at].matches('\n').count();
        let message = "a NUL character: UTF-16 without a byte order mark, or no text".into();
        return Err(TrainError::Line { path: path.into(), line, message });
    }
    let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
    Ok(Sample { line: 1, content: Content::Text(text) })
}

/// Fails once more is read than is left, so that no element is read without end.
struct Bounded<'l, R> {
    reader: R,
    left: &'l Cell<u64>,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.reader.read(buffer)?;
        let left = self.left.get().checked_sub(read as u64).ok_or_else(|| {
            std::io::Error::other(format!(
                "more than {MAX_LINE} bytes in one element: this is no row of data"
            ))
        })?;
        self.left.set(left);
        Ok(read)
    }
}

/// Takes the elements of an array one by one, so that the whole is never in memory as JSON.
struct Elements<'r, 'c, 't> {
    rows: &'r mut Rows<'c>,
    take: &'r mut Take<'t>,
    /// Bytes that the next element may have.
    left: &'r Cell<u64>,
    failed: Option<Failed>,
    next: usize,
}

/// Why an array was not read to its end.
enum Failed {
    Element(String),
    Taking(TrainError),
}

impl<'de> serde::de::Visitor<'de> for &mut Elements<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while let Some(value) = elements.next_element::<Value>()? {
            let taken = self.rows.take(value, self.next).map_err(Failed::Element);
            let taken = taken.and_then(|()| self.rows.give(self.take).map_err(Failed::Taking));
            if let Err(failed) = taken {
                self.failed = Some(failed);
                return Err(serde::de::Error::custom("a wrong element"));
            }
            self.next += 1;
            self.left.set(MAX_LINE);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
