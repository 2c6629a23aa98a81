//! The files of a checkpoint that are neither weights nor config.

use std::fs::{self, File};
use std::path::Path;

use crate::error::{Result, io};
use crate::read::file::OpenFile;

/// Tokenizer, chat template and text; code (`*.py`) is left behind.
const NAMES: [&str; 10] = [
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "README.md",
];

/// Copies tokenizer, chat template, generation config and licence files from `src` to `dst`, where present.
///
/// Links are followed, anything that is not a regular file is an error. Returns the names, sorted.
pub fn copy_side_files(src: &Path, dst: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(src).map_err(io("list", src))? {
        let entry = entry.map_err(io("list", src))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if NAMES.contains(&name.as_str()) || name.starts_with("LICENSE") {
            names.push(name);
        }
    }
    names.sort();
    for name in &names {
        let (from, to) = (src.join(name), dst.join(name));
        let mut source = OpenFile::open(&from)?.file;
        // Not fs::copy: it would carry over the mode of the Hub's read-only blobs.
        let mut target = File::create(&to).map_err(io("create", &to))?;
        std::io::copy(&mut source, &mut target).map_err(io("copy to", &to))?;
    }
    Ok(names)
}
