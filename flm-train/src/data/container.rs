//! What a data file is wrapped in: gzip and zstd are unpacked, told by their first bytes; Parquet is rows.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use parquet::file::reader::SerializedFileReader;
use serde_json::Value;

use crate::error::TrainError;
use flm_checkpoint::LFS_POINTER;

/// A data file that is open.
pub(super) enum DataFile {
    /// Text: JSON lines, a JSON array or, with `plain`, nothing but text.
    Text {
        /// Its bytes, decompressed.
        reader: Box<dyn BufRead>,
        /// Whether its name says `.txt`.
        plain: bool,
    },
    /// A table, whose rows are objects.
    Parquet(SerializedFileReader<File>),
}

/// Opens a file for what it is.
///
/// # Errors
/// Formats that are not read, by name.
pub(super) fn open(path: &Path) -> Result<DataFile, TrainError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let inner =
        ["gz", "zst", "zstd"].iter().find_map(|end| name.strip_suffix(&format!(".{end}"))).unwrap_or(&name);
    let plain = inner.ends_with(".txt");
    let read = |source| TrainError::file("read", path)(source);
    let mut reader = BufReader::new(File::open(path).map_err(TrainError::file("open", path))?);
    let head = reader.fill_buf().map_err(read)?;
    if head.starts_with(b"PAR1") {
        let file = File::open(path).map_err(TrainError::file("open", path))?;
        let table = SerializedFileReader::new(file)
            .map_err(|e| TrainError::Data(format!("{}: not a whole Parquet file: {e}", path.display())))?;
        return Ok(DataFile::Parquet(table));
    }
    for (magic, what) in [(&b"PK\x03\x04"[..], "a ZIP archive"), (b"ARROW1", "an Arrow file")] {
        if head.starts_with(magic) && !plain {
            return Err(TrainError::Data(format!(
                "{}: {what}; expected JSON lines, a JSON array, Parquet or .txt (also .gz and .zst): \
                 pandas or DuckDB write JSON lines from it",
                path.display()
            )));
        }
    }
    if head.starts_with(LFS_POINTER) {
        return Err(TrainError::Data(format!(
            "{}: a Git LFS pointer, not the data itself: run `git lfs pull`, or download the file",
            path.display()
        )));
    }
    if ["csv", "tsv"].iter().any(|end| inner.ends_with(&format!(".{end}"))) {
        return Err(TrainError::Data(format!(
            "{}: a table of separated values; expected JSON lines, a JSON array, Parquet or .txt: pandas or \
             DuckDB write JSON lines from it",
            path.display()
        )));
    }
    let reader: Box<dyn BufRead> = if head.starts_with(b"\x1f\x8b") {
        Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(reader)))
    } else if head.starts_with(b"\x28\xb5\x2f\xfd") {
        Box::new(BufReader::new(zstd::stream::read::Decoder::with_buffer(reader).map_err(read)?))
    } else {
        Box::new(reader)
    };
    Ok(DataFile::Text { reader, plain })
}

/// The rows of a table as JSON objects, counted from 1 by the caller; bytes that are no text become base64.
pub(super) fn rows(
    path: &Path,
    table: SerializedFileReader<File>,
) -> impl Iterator<Item = Result<Value, TrainError>> + use<> {
    let path = path.to_path_buf();
    table.into_iter().enumerate().map(move |(index, row)| match row {
        Ok(row) => Ok(row.to_json_value()),
        Err(e) => Err(TrainError::Line { path: path.clone(), line: index + 1, message: e.to_string() }),
    })
}
