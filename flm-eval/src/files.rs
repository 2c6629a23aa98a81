//! Reading files no further than their kind needs: a device or a pipe without an end is refused, not read for ever.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, ensure};

/// The most bytes of questions, answers or judgments in one file.
pub(crate) const ROWS: u64 = 1 << 30;
/// The most bytes of a file that says something of them: a rubric, temperatures, a template.
pub(crate) const SETTINGS: u64 = 16 << 20;

/// All bytes of a file that has at most `limit`.
pub(crate) fn read(path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    let context = || format!("cannot read {}", path.display());
    let mut bytes = Vec::new();
    let read =
        |bytes: &mut Vec<u8>| -> io::Result<usize> { File::open(path)?.take(limit + 1).read_to_end(bytes) };
    read(&mut bytes).with_context(context)?;
    ensure!(bytes.len() as u64 <= limit, "{} has more than {limit} bytes", path.display());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_end_is_refused() {
        assert!(read(Path::new("/dev/zero"), 1000).unwrap_err().to_string().contains("more than 1000 bytes"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "four").unwrap();
        assert_eq!(read(file.path(), 4).unwrap(), b"four");
        assert!(read(file.path(), 3).is_err());
    }
}
