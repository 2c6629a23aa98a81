//! Files that a user names for a result: written whole, and never over an input, a device or a file that is
//! not an earlier result of the same kind.

use std::io::{ErrorKind, Read};
use std::path::Path;

use anyhow::{Context, ensure};
use flm_checkpoint::{atomic, is_place_of_checkpoint};

/// What a result file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A safetensors file of `flm logits`.
    Logits,
    /// An HTML page of flm.
    Page(Page),
    /// An SVG picture of flm.
    Picture,
    /// scores.json of `flm eval alignbench`.
    Scores,
}

/// What a page shows; each kind has a mark of its own, somewhere in its first [`HEAD`] bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Page {
    /// Of `flm eval report`.
    Evaluation,
    /// Of `flm verify`.
    Verification,
}

impl Page {
    /// The element of the page's head that tells its kind.
    pub(crate) fn mark(self) -> &'static str {
        match self {
            Self::Evaluation => r#"<meta name="generator" content="flm eval report">"#,
            Self::Verification => r#"<meta name="generator" content="flm verify">"#,
        }
    }
}

/// The first line of a picture.
pub(crate) const PICTURE: &str = "<!-- made by flm -->\n";
/// Bytes that are looked at to tell what a file is.
const HEAD: u64 = 4096;

impl Kind {
    fn is_of(self, head: &[u8]) -> bool {
        let holds = |text: &str| head.windows(text.len()).any(|part| part == text.as_bytes());
        match self {
            Self::Page(page) => holds(page.mark()),
            Self::Picture => head.starts_with(PICTURE.as_bytes()),
            // as it is written: what was answered comes first, with the digests that belong to it
            Self::Scores => {
                head.starts_with(b"{\n  \"answers\": {\n")
                    && [r#""model_digest": "#, r#""data_sha256": "#, r#""settings_digest": "#]
                        .iter()
                        .all(|key| holds(key))
            }
            // eight bytes of length, then a header whose only tensors are these
            Self::Logits => {
                let header = head.get(8..).unwrap_or_default();
                let text = String::from_utf8_lossy(header);
                let end = text.find("}}").map_or(text.len(), |at| at + 2);
                serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&text[..end]).is_ok_and(
                    |names| {
                        names.contains_key("logits")
                            && names.keys().all(|name| ["logits", "hidden"].contains(&name.as_str()))
                    },
                )
            }
        }
    }
}

/// Fails where `path` may not be written; to be asked before the work, and by [`write`] again.
///
/// # Errors
/// Where a checkpoint has its files, whatever `force` says; where there is a file of another kind (unless
/// `force`), or anything but a regular file.
pub(crate) fn check(path: &Path, kind: Kind, force: bool) -> anyhow::Result<()> {
    ensure!(
        !is_place_of_checkpoint(path),
        "{} is the place of a checkpoint's file: choose another name for the result",
        path.display()
    );
    let meta = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        meta => meta.with_context(|| format!("cannot look at {}", path.display()))?,
    };
    ensure!(
        meta.is_file(),
        "{} is not a regular file: results are written to regular files only",
        path.display()
    );
    let head = head(path)?;
    ensure!(
        force || meta.len() == 0 || kind.is_of(&head),
        "{} exists and is no earlier result of this command: choose another name, or pass --force to replace it",
        path.display()
    );
    Ok(())
}

/// Fails where lines may not be added to the file `path`: where a checkpoint has its files, at anything but a
/// regular file, and where the first line is none of `ours`.
pub(crate) fn check_appended(path: &Path, ours: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    ensure!(
        !is_place_of_checkpoint(path),
        "{} is the place of a checkpoint's file: choose another name",
        path.display()
    );
    let meta = match std::fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        meta => meta.with_context(|| format!("cannot look at {}", path.display()))?,
    };
    ensure!(meta.is_file(), "{} is not a regular file", path.display());
    let head = head(path)?;
    let head = String::from_utf8_lossy(&head);
    ensure!(
        head.is_empty() || ours(head.lines().next().unwrap_or_default()),
        "{} is a file of another kind: choose another name",
        path.display()
    );
    Ok(())
}

/// The beginning of a file, which tells what it is.
fn head(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut head = Vec::new();
    let file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    file.take(HEAD).read_to_end(&mut head)?;
    Ok(head)
}

/// Writes a result, whole or not at all.
///
/// # Errors
/// Those of [`check`], and where the file cannot be written.
pub(crate) fn write(path: &Path, kind: Kind, bytes: &[u8], force: bool) -> anyhow::Result<()> {
    check(path, kind, force)?;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    atomic::replace(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_results_are_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let page = |page: Page| format!("<!doctype html>{}", page.mark());
        let (evaluation, verification) = (page(Page::Evaluation), page(Page::Verification));
        let logits =
            candle_core::Tensor::zeros((1, 2), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        let bytes = |name: &str| {
            let file = dir.path().join("tensors");
            candle_core::safetensors::save(&std::collections::HashMap::from([(name, logits.clone())]), &file)
                .unwrap();
            std::fs::read(file).unwrap()
        };
        let (ours, weights) = (bytes("logits"), bytes("model.norm.weight"));
        let scores = br#"{
  "answers": {
    "model": "m",
    "model_digest": "0",
    "data_sha256": "0",
    "settings_digest": "0","#;
        for (kind, own) in [
            (Kind::Page(Page::Evaluation), evaluation.as_bytes()),
            (Kind::Page(Page::Verification), verification.as_bytes()),
            (Kind::Picture, format!("{PICTURE}<svg/>").as_bytes()),
            (Kind::Logits, &ours),
            (Kind::Scores, scores),
        ] {
            let pages = [evaluation.as_bytes(), verification.as_bytes()];
            let others = [&b"mine"[..], &weights, b"<svg/>", b"<!doctype html>", b"{\n  \"answers\": {\n"];
            for other in others.into_iter().chain(pages.into_iter().filter(|page| *page != own)) {
                std::fs::write(&path, other).unwrap();
                assert!(write(&path, kind, b"new", false).is_err(), "{kind:?}");
                assert_eq!(std::fs::read(&path).unwrap(), other);
                write(&path, kind, b"new", true).unwrap();
            }
            std::fs::write(&path, own).unwrap();
            write(&path, kind, b"new", false).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"new");
        }
        // links and devices are left alone, --force or not
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for target in [link.as_path(), Path::new("/dev/null"), dir.path()] {
            assert!(write(target, Kind::Page(Page::Evaluation), b"x", true).is_err(), "{}", target.display());
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }
}
