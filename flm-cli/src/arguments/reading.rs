//! Texts from files and standard input, bounded.

use std::{io::Read, path::Path};

use anyhow::{Context, ensure};

/// The text of a file, or of standard input for `-`.
pub(crate) fn read_text(path: &Path, limit: u64) -> anyhow::Result<String> {
    let (text, whole) = read_start(path, limit)?;
    ensure!(whole, "{} has more than {limit} bytes", path.display());
    Ok(text)
}

/// What editors of other systems begin UTF-8 files with; no part of the text.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// The first `limit` bytes of a UTF-8 file, or of standard input for `-`, cut at a character and without its
/// byte order mark; and whether that is all of it.
pub(crate) fn read_start(path: &Path, limit: u64) -> anyhow::Result<(String, bool)> {
    let mut bytes = Vec::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().lock().take(limit + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
    };
    read.with_context(|| format!("cannot read {}", path.display()))?;
    let whole = bytes.len() as u64 <= limit;
    bytes.truncate(limit as usize);
    let cut = match std::str::from_utf8(&bytes) {
        // the last character is cut
        Err(error) if !whole && error.error_len().is_none() => error.valid_up_to(),
        _ => bytes.len(),
    };
    bytes.truncate(cut);
    if bytes.starts_with(BOM) {
        bytes.drain(..BOM.len());
    }
    let text = String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8 text", path.display()))?;
    Ok((text, whole))
}

/// The most bytes that a token is taken to have, where a text is read for so many tokens only.
pub(crate) const TOKEN_BYTES: u64 = 256;
/// The most bytes of a recipe.
pub(crate) const RECIPE_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_is_no_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prompt.txt");
        for (bytes, limit, expected) in [
            ("\u{feff}天地", 100, Some("天地")),
            ("天\u{feff}地", 100, Some("天\u{feff}地")),
            ("\u{feff}", 100, Some("")),
            ("\u{feff}天地", 8, None),
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(read_text(&path, limit).ok().as_deref(), expected, "{bytes:?}");
        }
    }
}
