//! Append-only JSONL files that survive a kill at any moment.
//!
//! A row is one line, written by one call. Only the last line can be torn; opening the file again drops
//! it. Two runs cannot write the same file at once.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use serde_json::{Map, Value};

use flm_checkpoint::{atomic, is_place_of_checkpoint};

/// What a row begins with.
const ROW: &[u8] = br#"{"question_id":"#;
/// How long rows may wait for the disk.
const SYNC_EVERY: Duration = Duration::from_secs(2);

/// Rows of a journal.
type Rows = Vec<Map<String, Value>>;

/// An open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// Of the rows that are whole.
    len: u64,
    /// Whether the last row lacks its newline.
    newline: bool,
    synced: Instant,
}

impl Journal {
    /// Opens or makes a journal; returns it with the rows that are in it. A row that a kill has torn is still
    /// in the file: whoever knows from the rows that the journal is its own calls [`Journal::repair`].
    pub(crate) fn open(path: &Path) -> anyhow::Result<(Self, Rows)> {
        Self::open_or_make(path).with_context(|| format!("cannot use {}", path.display()))
    }

    /// The rows of a journal that may not be there; nothing is made or repaired.
    pub(crate) fn rows(path: &Path) -> anyhow::Result<Rows> {
        match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            bytes => Ok(whole_rows(&bytes.with_context(|| format!("cannot read {}", path.display()))?)?.0),
        }
    }

    fn open_or_make(path: &Path) -> anyhow::Result<(Self, Rows)> {
        ensure!(!is_place_of_checkpoint(path), "it is the place of a checkpoint's file: choose another name");
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent)?;
        }
        // a pipe or a device without an end would be read for ever
        if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
            bail!("it is not a regular file: rows are written to regular files only");
        }
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => bail!("another run is writing it"),
            // some network file systems have no locks; a single run is safe without
            Err(std::fs::TryLockError::Error(_)) => {}
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let (rows, len, newline) = whole_rows(&bytes)?;
        // the only line is torn: a row of ours that a kill has cut, or a file of somebody else's
        ensure!(len > 0 || ROW.starts_with(&bytes) || bytes.starts_with(ROW), "it holds no rows");
        Ok((Self { path: path.to_owned(), file, len, newline, synced: Instant::now() }, rows))
    }

    /// Drops a row that is torn, and ends the last.
    pub(crate) fn repair(&mut self) -> anyhow::Result<()> {
        let mut repair = || {
            self.file.set_len(self.len)?;
            self.file.seek(SeekFrom::Start(self.len))?;
            if self.newline {
                self.write(b"\n")?;
                self.newline = false;
            }
            Ok::<_, std::io::Error>(())
        };
        repair().with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Appends a row.
    pub(crate) fn append(&mut self, row: &impl Serialize) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(row)?;
        line.push(b'\n');
        self.write(&line).with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            // a full disk must leave no half row behind; if this fails too, opening drops it
            let _ = self.file.set_len(self.len);
            let _ = self.file.seek(SeekFrom::Start(self.len));
            return Err(error);
        }
        self.len += bytes.len() as u64;
        if self.synced.elapsed() >= SYNC_EVERY {
            self.file.sync_data()?;
            self.synced = Instant::now();
        }
        Ok(())
    }

    /// Waits until all rows are on the disk.
    pub(crate) fn sync(&self) -> anyhow::Result<()> {
        self.file.sync_all().with_context(|| format!("cannot sync {}", self.path.display()))
    }
}

/// Writes a file so that it is there whole or not at all.
pub fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent)?;
    Ok(atomic::replace(path, bytes)?)
}

/// The rows of a journal, the length that they take, and whether the last lacks only its newline.
fn whole_rows(bytes: &[u8]) -> anyhow::Result<(Rows, u64, bool)> {
    let mut rows = Vec::new();
    let mut start = 0;
    for (index, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let whole = line.ends_with(b"\n");
        match serde_json::from_slice(line) {
            Ok(row) => rows.push(row),
            Err(_) if !whole => return Ok((rows, start as u64, false)),
            Err(_) if line.trim_ascii().is_empty() => {}
            Err(error) => bail!("line {}: {error}; repair or remove the file", index + 1),
        }
        start += line.len();
        if !whole {
            return Ok((rows, start as u64, true));
        }
    }
    Ok((rows, start as u64, false))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_journal_cut_anywhere_loses_at_most_the_row_that_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/rows.jsonl");
        let rows = [json!({"question_id": "甲\n"}), json!({"question_id": [1, 2]}), json!({})];
        let (mut journal, found) = Journal::open(&path).unwrap();
        journal.repair().unwrap();
        assert!(found.is_empty());
        for row in &rows {
            journal.append(row).unwrap();
        }
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut journal, found) = Journal::open(&path).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), whole[..cut], "{cut}: nothing is repaired unasked");
            journal.repair().unwrap();
            let lines = whole[..cut].iter().filter(|&&byte| byte == b'\n').count();
            // a row without its newline is still a row
            assert!(found.len() == lines || found.len() == lines + 1, "{cut}: {}", found.len());
            for row in &rows[found.len()..] {
                journal.append(row).unwrap();
            }
            drop(journal);
            assert_eq!(std::fs::read(&path).unwrap(), whole, "{cut}");
        }
    }

    #[test]
    fn damage_inside_and_a_second_writer_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, "{}\n{\"a\n{}\n").unwrap();
        assert!(format!("{:#}", Journal::open(&path).unwrap_err()).contains("line 2"));
        // a file of somebody else's whose only line is torn
        std::fs::write(&path, "{ \"settings\": [").unwrap();
        assert!(format!("{:#}", Journal::open(&path).unwrap_err()).contains("holds no rows"));
        assert!(format!("{:#}", Journal::open(Path::new("/dev/zero")).unwrap_err()).contains("regular file"));
        std::fs::write(&path, "{}\n").unwrap();
        let _open = Journal::open(&path).unwrap();
        assert!(format!("{:#}", Journal::open(&path).unwrap_err()).contains("another run"));
    }
}
