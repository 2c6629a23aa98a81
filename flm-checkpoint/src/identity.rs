//! Whether a run may go on where another stopped: the same tool, options and source files.

use crate::checksums::file_name;
use crate::error::Result;
use crate::error::io;
use crate::read::Checkpoint;
use serde::Deserialize;
use serde::Serialize;
use std::fmt::Display;
use std::fs;
use std::os::unix::fs::MetadataExt;

/// What two runs must have in common for one to go on where the other stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunKey {
    /// Command and version, as in `flm convert 0.1.0`.
    pub tool: String,
    /// Name and value of everything that decides what is written.
    pub options: Vec<(String, String)>,
    /// The files that are read, with size and modification time.
    pub source: Vec<SourceFile>,
}

/// A file of the source: nothing of it is read to tell whether it changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    pub name: String,
    pub bytes: u64,
    /// Of the last change: seconds and nanoseconds.
    pub modified: (i64, i64),
}

impl RunKey {
    /// The key of a run of `tool` (name and version) on `source`; `options` are named for people.
    pub fn new(tool: &str, options: &[(&str, &dyn Display)], source: &Checkpoint) -> Result<Self> {
        let config = source.dir().join("config.json");
        let paths = source.files().iter().map(|f| f.path.clone()).chain([config]);
        let source = paths.map(|path| {
            let meta = fs::metadata(&path).map_err(io("look at", &path))?;
            let modified = (meta.mtime(), meta.mtime_nsec());
            Ok(SourceFile { name: file_name(&path), bytes: meta.len(), modified })
        });
        Ok(Self {
            tool: tool.into(),
            options: options.iter().map(|(name, value)| ((*name).into(), value.to_string())).collect(),
            source: source.collect::<Result<_>>()?,
        })
    }

    /// What differs, in words.
    pub fn difference(&self, begun: &Self) -> Option<String> {
        if self.tool != begun.tool {
            return Some(format!("another program or version ({}, now {})", begun.tool, self.tool));
        }
        if let Some(((name, is), (_, was))) =
            self.options.iter().zip(&begun.options).find(|(is, was)| is != was)
        {
            return Some(format!("another {name} ({was}, now {is})"));
        }
        if self.source != begun.source {
            let file = self.source.iter().find(|f| !begun.source.contains(f));
            let name = file.or(begun.source.first()).map_or("", |f| f.name.as_str());
            return Some(format!("another source ({name} has changed since)"));
        }
        None
    }
}
